//! Looking into a pod through the API server's port-forward: a page it serves to itself, the certificates it shows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::Error;

/// How long one look may take.
pub const LOOK: Duration = Duration::from_secs(10);
/// The largest page that is read.
const LARGEST: u64 = 64 << 20;

/// The body of `path` as the pod serves it over plain HTTP at `port`.
///
/// # Errors
///
/// When the port cannot be forwarded, nobody answers in time, or the answer is no 200.
pub async fn page(client: &kube::Client, namespace: &str, pod: &str, port: u16, path: &str) -> Result<String, Error> {
    let what = || format!("read {path} of pod {namespace}/{pod}, port {port}");
    let failed = |why: String| Error::Forward { what: what(), why };
    let ask = async {
        let mut forward = open(client, namespace, pod, port, &what).await?;
        let mut stream = forward.take_stream(port).ok_or_else(|| failed("the port was not forwarded".into()))?;
        // HTTP/1.0, so that the body ends with the connection and is in one piece.
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.map_err(|e| failed(e.to_string()))?;
        let mut answer = Vec::new();
        (&mut stream).take(LARGEST).read_to_end(&mut answer).await.map_err(|e| failed(e.to_string()))?;
        drop(stream);
        forward.abort();
        let text = String::from_utf8_lossy(&answer);
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| failed("it closed without an answer".into()))?;
        match head.split_whitespace().nth(1) {
            Some("200") => Ok(body.to_owned()),
            status => Err(failed(format!("it answers {}", status.unwrap_or("nonsense")))),
        }
    };
    tokio::time::timeout(LOOK, ask).await.unwrap_or_else(|_| Err(Error::NoAnswer { what: what(), after: LOOK }))
}

/// The certificates (DER, leaf first) that the pod shows in a TLS handshake at `port`. Nothing is believed and nothing
/// is sent: the handshake ends there.
///
/// # Errors
///
/// When the port cannot be forwarded, or no certificate is shown in time.
pub async fn certificates(
    client: &kube::Client,
    namespace: &str,
    pod: &str,
    port: u16,
    name: &str,
) -> Result<Vec<Vec<u8>>, Error> {
    let what = || format!("read the certificate of pod {namespace}/{pod}, port {port}");
    let failed = |why: String| Error::Forward { what: what(), why };
    let ask = async {
        let mut forward = open(client, namespace, pod, port, &what).await?;
        let stream = forward.take_stream(port).ok_or_else(|| failed("the port was not forwarded".into()))?;
        let shown = shown(stream, name).await.map_err(failed);
        forward.abort();
        shown
    };
    tokio::time::timeout(LOOK, ask).await.unwrap_or_else(|_| Err(Error::NoAnswer { what: what(), after: LOOK }))
}

async fn open(
    client: &kube::Client,
    namespace: &str,
    pod: &str,
    port: u16,
    what: &impl Fn() -> String,
) -> Result<kube::api::Portforwarder, Error> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    pods.portforward(pod, &[port]).await.map_err(|source| Error::Request { what: what(), source: Box::new(source) })
}

/// What the other end of `stream` shows.
async fn shown(stream: impl AsyncRead + AsyncWrite + Unpin, name: &str) -> Result<Vec<Vec<u8>>, String> {
    let seen = Arc::new(Seen::default());
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(|e| e.to_string())?;
    let ended = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let chain = seen.chain.lock().unwrap_or_else(PoisonError::into_inner).take();
    chain.ok_or_else(|| ended.err().map_or_else(|| "it showed none".to_owned(), |error| error.to_string()))
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
