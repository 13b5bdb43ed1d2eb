use std::fmt;

use serde::Serialize;
use sha2::{Digest, Sha256};

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{found}` is not a {what}: {why}")]
pub struct NameError {
    /// What it should have been, such as "cluster name".
    pub what: &'static str,
    /// The text as found.
    pub found: String,
    /// The rule it breaks.
    pub why: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $rule:ident, $form:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Understands `text`.
            ///
            /// # Errors
            ///
            #[doc = concat!("When `text` is not ", $form, " of at most ", $max, " characters.")]
            pub fn parse(text: &str) -> Result<Self, NameError> {
                $rule(text, $max)
                    .map(|()| Self(text.to_owned()))
                    .map_err(|why| NameError { what: $what, found: text.to_owned(), why })
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// A Kubernetes cluster that takes part in the mesh; also Istio's cluster ID and the data key of its remote secret.
    ClusterName, "cluster name", 63, dns_label, "a DNS-1123 label (lower-case letters, digits and `-`)"
);
name!(
    /// A set of clusters whose pods can dial each other. The value of the label `topology.istio.io/network`.
    NetworkName, "network name", 63, label_value, "a label's value (letters, digits, `-`, `_` and `.`)"
);
name!(
    /// The mesh ID: `metadata.name` of a `Mesh`, `mesh_id` of a topology.yaml, `meshID` of a ristioctl file.
    MeshName, "mesh name", 63, dns_label, "a DNS-1123 label (lower-case letters, digits and `-`)"
);

impl ClusterName {
    /// The name that a cluster known only by its kubeconfig context gets: the context's own where that is a name,
    /// else one that is made of it and the same every time.
    ///
    /// `arn:aws:eks:eu-west-1:1234:cluster/Prod` becomes `arn-aws-eks-eu-west-1-1234-cluster-prod-` and eight
    /// hexadecimal digits of the context's SHA-256, so that two contexts which differ only in such letters stay two.
    #[must_use]
    pub fn from_context(context: &str) -> Self {
        Self::parse(context).unwrap_or_else(|_| {
            let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
            let readable: String = context.chars().map(plain).skip_while(|c| *c == '-').take(54).collect();
            let readable = if readable.is_empty() { "context" } else { &readable };
            let digest = Sha256::digest(context.as_bytes());
            let hash: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            Self(format!("{readable}-{hash}"))
        })
    }
}

/// A name like `text` that is a DNS-1123 label, to suggest.
pub(crate) fn like(text: &str) -> Option<String> {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = text.chars().map(plain).take(63).collect();
    let name = name.trim_matches('-').to_owned();
    (!name.is_empty()).then_some(name)
}

/// What Kubernetes takes as the value of a label, but for the empty one.
fn label_value(text: &str, max: usize) -> Result<(), &'static str> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    match text.as_bytes() {
        [] => Err("it is empty"),
        bytes if bytes.len() > max => Err("it is longer than 63 characters"),
        bytes if !bytes.iter().all(|b| inner(*b)) => Err("only letters, digits, `-`, `_` and `.` may be in it"),
        [first, .., last] if !first.is_ascii_alphanumeric() || !last.is_ascii_alphanumeric() => {
            Err("it must start and end with a letter or digit")
        }
        [only] if !only.is_ascii_alphanumeric() => Err("it must start and end with a letter or digit"),
        _ => Ok(()),
    }
}

/// RFC 1123 as Kubernetes reads it.
fn dns_label(text: &str, max: usize) -> Result<(), &'static str> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match text.as_bytes() {
        [] => Err("it is empty"),
        bytes if bytes.len() > max => Err("it is longer than 63 characters"),
        bytes if !bytes.iter().all(|b| inner(*b)) => Err("only lower-case letters, digits and `-` may be in it"),
        [first, .., last] if !edge(*first) || !edge(*last) => Err("it must start and end with a letter or digit"),
        [only] if !edge(*only) => Err("it must start and end with a letter or digit"),
        _ => Ok(()),
    }
}
