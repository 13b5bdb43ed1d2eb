//! Looking at who answers, without believing anybody.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};

/// The certificates (DER, leaf first) that the other end of `stream` shows to a client that asks for `name` with these
/// protocols (ALPN). The handshake ends there and nothing is sent. It waits as long as the other end does: the caller
/// bounds it.
///
/// # Errors
///
/// Why none was shown, in words.
pub async fn shown(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    name: &str,
    protocols: &[&str],
) -> Result<Vec<Vec<u8>>, String> {
    let seen = Arc::new(Seen::default());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).map_err(|e| e.to_string())?;
    let ended = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let chain = seen.chain.lock().unwrap_or_else(PoisonError::into_inner).take();
    // Whatever came after it: the server showed who it is.
    chain.ok_or_else(|| ended.err().map_or_else(|| "it showed no certificate".to_owned(), |error| error.to_string()))
}

/// Keeps what a server shows, and believes nothing.
#[derive(Debug, Default)]
struct Seen {
    chain: Mutex<Option<Vec<Vec<u8>>>>,
}

fn only_looking<T>() -> Result<T, rustls::Error> {
    Err(rustls::Error::General("only looking".to_owned()))
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let all = std::iter::once(end_entity).chain(intermediates).map(|c| c.to_vec()).collect();
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = Some(all);
        only_looking()
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        only_looking()
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        only_looking()
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
