use std::fmt;

use serde::Serialize;

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
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Understands `text`.
            ///
            /// # Errors
            ///
            /// When `text` is not a DNS-1123 label (lower-case letters, digits and `-`, at most
            #[doc = concat!($max, " characters), the form that Kubernetes object names and labels take.")]
            pub fn parse(text: &str) -> Result<Self, NameError> {
                dns_label(text, $max)
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
    ClusterName, "cluster name", 63
);
name!(
    /// A set of clusters whose pods can dial each other. The value of the label `topology.istio.io/network`.
    NetworkName, "network name", 63
);
name!(
    /// The mesh ID: `metadata.name` of a `Mesh`, `mesh_id` of a topology.yaml, `meshID` of a ristioctl file.
    MeshName, "mesh name", 63
);

/// RFC 1123 as Kubernetes reads it.
fn dns_label(text: &str, max: usize) -> Result<(), &'static str> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match text.as_bytes() {
        [] => Err("it is empty"),
        bytes if bytes.len() > max => Err("it is too long"),
        bytes if !bytes.iter().all(|b| inner(*b)) => Err("only lower-case letters, digits and `-` may be in it"),
        [first, .., last] if !edge(*first) || !edge(*last) => Err("it must start and end with a letter or digit"),
        [only] if !edge(*only) => Err("it must start and end with a letter or digit"),
        _ => Ok(()),
    }
}
