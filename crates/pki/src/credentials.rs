use rcgen::{CertificateParams, DistinguishedName, SanType};
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::{Certificate, Error, PrivateKey, Secret, SpiffeId};

/// A certificate with the chain above it and its key: what a TLS endpoint shows.
pub struct Credentials {
    chain: Vec<Certificate>,
    key: PrivateKeyDer<'static>,
}

impl Credentials {
    /// Reads a chain (leaf first) and the leaf's key.
    ///
    /// # Errors
    ///
    /// When either cannot be read, the chain is empty, or the key is not the leaf's.
    pub fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, Error> {
        let chain = Certificate::all_from_pem(chain_pem)?;
        let Some(leaf) = chain.first() else {
            return Err(Error::read("certificate chain", "it is empty"));
        };
        let key = PrivateKey::from_pem(key_pem)?;
        if key.public_der() != leaf.public_der() {
            return Err(Error::read("private key", format!("it is not the key of `{}`", leaf.subject())));
        }
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|e| Error::read("private key", format!("{e:?}")))?;
        Ok(Self { chain, key })
    }

    pub(crate) fn new(chain: Vec<Certificate>, key: &PrivateKey) -> Result<Self, Error> {
        let key = PrivateKeyDer::try_from(key.to_der().to_vec()).map_err(|e| Error::make("credentials", e))?;
        Ok(Self { chain, key })
    }

    /// The chain, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    /// The certificate itself.
    #[must_use]
    pub fn leaf(&self) -> &Certificate {
        // Both constructors have seen at least one certificate.
        &self.chain[0]
    }

    /// The chain as PEM, leaf first.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(Certificate::pem).collect()
    }

    /// The key as PKCS#8 PEM, for handing on (SDS); never print it.
    ///
    /// # Errors
    ///
    /// When the key is of a form that cannot be written as PKCS#8.
    pub fn key_pem(&self) -> Result<Secret, Error> {
        let pair = rcgen::KeyPair::try_from(&self.key).map_err(|e| Error::make("key", e))?;
        Ok(Secret::new(pair.serialize_pem()))
    }

    pub(crate) fn for_rustls(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain.iter().map(|c| c.der().clone()).collect(), self.key.clone_key())
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// The root certificates somebody trusts. May be several while a root is being replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots(Vec<Certificate>);

impl Roots {
    /// Reads a PEM bundle.
    ///
    /// # Errors
    ///
    /// When it holds no certificate or one that cannot be read.
    pub fn from_pem(bundle: &str) -> Result<Self, Error> {
        let roots = Certificate::all_from_pem(bundle)?;
        if roots.is_empty() {
            return Err(Error::read("root bundle", "it holds no certificate"));
        }
        Ok(Self(roots))
    }

    /// The roots.
    #[must_use]
    pub fn certificates(&self) -> &[Certificate] {
        &self.0
    }

    pub(crate) fn store(&self) -> Result<RootCertStore, Error> {
        let mut store = RootCertStore::empty();
        for root in &self.0 {
            store.add(root.der().clone()).map_err(|e| Error::read("root certificate", e))?;
        }
        Ok(store)
    }
}

/// A new key and the request to certify it.
pub struct WorkloadRequest {
    /// The PKCS#10 request.
    pub csr_pem: String,
    /// The key. It never leaves its owner.
    pub key: PrivateKey,
}

impl WorkloadRequest {
    /// A request for `id`. The signer decides the identity from the caller's token; what is asked here is a courtesy.
    ///
    /// # Errors
    ///
    /// When the system has no randomness, or `id` cannot stand in a certificate.
    pub fn new(id: &SpiffeId) -> Result<Self, Error> {
        let key = PrivateKey::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let uri = id.to_string().try_into().map_err(|e| Error::make("certificate request", e))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        let csr = params.serialize_request(key.pair()).map_err(|e| Error::make("certificate request", e))?;
        let csr_pem = csr.pem().map_err(|e| Error::make("certificate request", e))?;
        Ok(Self { csr_pem, key })
    }
}
