//! Makes and judges keys, certificates, chains and trust bundles.
//!
//! An [`Authority`] signs: the root of a mesh signs one intermediate per cluster ([`CaCerts`], the four files of
//! Istio's Secret `cacerts`), and an intermediate signs workloads. [`tls`] turns [`Credentials`] and [`Roots`] into
//! rustls configurations that check SPIFFE identities. Nothing here reads files or clocks: time is an argument.
//!
//! Start at [`Authority`], then read [`tls`].

mod authority;
mod certificate;
mod credentials;
mod encrypt;
mod identity;
mod key;
pub mod tls;

pub use authority::{Authority, CaCerts, CaFacts, IntermediateRequest, Refused};
pub use certificate::{Certificate, leads_to, verify_chain};
pub use credentials::{Credentials, Roots, WorkloadRequest};
pub use encrypt::{decrypt_key, encrypt_key, is_encrypted};
pub use identity::{IdentityError, SpiffeId};
pub use key::{PrivateKey, Secret};

/// What went wrong while making something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A text was not what it should be.
    #[error("could not read the {what}: {why}")]
    Read {
        /// What was read, such as "certificate".
        what: &'static str,
        /// Why it could not be.
        why: String,
    },
    /// A key or certificate could not be made.
    #[error("could not make the {what}: {why}")]
    Make {
        /// What was being made.
        what: &'static str,
        /// Why it could not be.
        why: String,
    },
    /// A request asks for more than it may have.
    #[error("the certificate request is refused: {0}")]
    Request(String),
    /// The passphrase does not open the key.
    #[error("the passphrase does not open the key")]
    Passphrase,
}

impl Error {
    fn read(what: &'static str, why: impl ToString) -> Self {
        Self::Read { what, why: why.to_string() }
    }

    fn make(what: &'static str, why: impl ToString) -> Self {
        Self::Make { what, why: why.to_string() }
    }
}
