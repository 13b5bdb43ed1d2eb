//! TLS between workloads: who somebody is, is the one URI SAN of a certificate that leads to our roots.
//!
//! The server name a client sends is never checked as a name: in a mesh it is routing (`outbound_.5000_._.…`), and
//! the identity is what counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{Credentials, Error, Roots};

/// Which identities are accepted on the other end, after its certificate has been traced to a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peers {
    /// Any.
    Any,
    /// Exactly one of these URIs. An empty set accepts any, as Envoy's empty SAN list does.
    Exactly(BTreeSet<String>),
    /// Any of these trust domains.
    TrustDomains(BTreeSet<String>),
}

impl Peers {
    /// Whether `uri` is accepted.
    #[must_use]
    pub fn accept(&self, uri: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exactly(uris) => uris.is_empty() || uris.contains(uri),
            Self::TrustDomains(domains) => uri
                .strip_prefix("spiffe://")
                .and_then(|rest| rest.split_once('/'))
                .is_some_and(|(domain, _)| domains.contains(domain)),
        }
    }
}

/// A peer whose certificate leads to our roots, but whose identity is not the one we came for.
///
/// Reaches the caller inside [`rustls::Error`]; [`wrong_identity`] finds it there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer is {}", if found.is_empty() { "without an identity".to_owned() } else { found.join(" and ") })]
pub struct WrongIdentity {
    /// The URI SANs it showed.
    pub found: Vec<String>,
}

/// The [`WrongIdentity`] that made a handshake fail, if that was the reason.
#[must_use]
pub fn wrong_identity<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a WrongIdentity> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) = error.downcast_ref() {
            return other.0.downcast_ref();
        }
        // An `io::Error` hands out its source's source; the error it carries is behind `get_ref`.
        cause = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// Whether a server asks clients for certificates.
#[derive(Clone, Debug)]
pub enum ClientAuth {
    /// It does not.
    None,
    /// It does, and takes clients without one too.
    Optional(Roots, Peers),
    /// It does, and refuses clients without one.
    Required(Roots, Peers),
    /// It does, and takes clients without one too; whom a certificate names is for the caller to read.
    Named(Roots),
}

/// A client that checks identities, TLS 1.2 to 1.3.
///
/// # Errors
///
/// When credentials or roots are of a form rustls does not take.
pub fn client(
    credentials: Option<&Credentials>,
    roots: &Roots,
    peers: Peers,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = Arc::new(IdentityVerifier::new(roots, peers, true)?);
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::make("TLS client", e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    finish_client(builder, credentials, alpn)
}

/// A client that checks the server's DNS name or address, as on the web: for reaching the control plane.
///
/// # Errors
///
/// When the roots are of a form rustls does not take.
pub fn client_by_name(
    credentials: Option<&Credentials>,
    roots: &Roots,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::make("TLS client", e))?
        .with_root_certificates(roots.store()?);
    finish_client(builder, credentials, alpn)
}

fn finish_client(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    credentials: Option<&Credentials>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, Error> {
    let mut config = match credentials {
        Some(credentials) => {
            let (chain, key) = credentials.for_rustls();
            builder.with_client_auth_cert(chain, key).map_err(|e| Error::make("TLS client", e))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// A server, TLS 1.2 to 1.3.
///
/// # Errors
///
/// When credentials or roots are of a form rustls does not take.
pub fn server(credentials: &Credentials, clients: ClientAuth, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::make("TLS server", e))?;
    let builder = match clients {
        ClientAuth::None => builder.with_no_client_auth(),
        ClientAuth::Optional(roots, peers) => {
            builder.with_client_cert_verifier(Arc::new(IdentityVerifier::new(&roots, peers, false)?))
        }
        ClientAuth::Named(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots.store()?), provider());
            let verifier = verifier.allow_unauthenticated().build().map_err(|e| Error::make("TLS server", e))?;
            builder.with_client_cert_verifier(verifier)
        }
        ClientAuth::Required(roots, peers) => {
            builder.with_client_cert_verifier(Arc::new(IdentityVerifier::new(&roots, peers, true)?))
        }
    };
    let (chain, key) = credentials.for_rustls();
    let mut config = builder.with_single_cert(chain, key).map_err(|e| Error::make("TLS server", e))?;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// The one URI SAN of the first of `certificates`, if it has exactly one.
#[must_use]
pub fn peer_uri(certificates: &[CertificateDer<'_>]) -> Option<String> {
    let leaf = webpki::EndEntityCert::try_from(certificates.first()?).ok()?;
    let mut uris = leaf.valid_uri_names();
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Some(uri.to_owned()),
        _ => None,
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Path to a root, then exactly one URI, then one that is accepted.
#[derive(Debug)]
struct IdentityVerifier {
    roots: RootCertStore,
    peers: Peers,
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl IdentityVerifier {
    fn new(roots: &Roots, peers: Peers, mandatory: bool) -> Result<Self, Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        Ok(Self { roots: roots.store()?, peers, mandatory, algorithms })
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: webpki::KeyUsage,
    ) -> Result<(), rustls::Error> {
        let certificate = webpki::EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
        certificate
            .verify_for_usage(self.algorithms.all, &self.roots.roots, intermediates, now, usage, None, None)
            .map_err(refusal)?;
        let found: Vec<String> = certificate.valid_uri_names().map(ToOwned::to_owned).collect();
        match found.as_slice() {
            [one] if self.peers.accept(one) => Ok(()),
            _ => Err(CertificateError::Other(rustls::OtherError(Arc::new(WrongIdentity { found }))).into()),
        }
    }
}

fn refusal(error: webpki::Error) -> rustls::Error {
    match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired.into(),
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet.into(),
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        other => CertificateError::Other(rustls::OtherError(Arc::new(other))).into(),
    }
}

impl ServerCertVerifier for IdentityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, webpki::KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for IdentityVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now, webpki::KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
