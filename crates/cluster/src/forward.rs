//! Looking into a pod through the API server's port-forward: a page it serves to itself, the certificates it shows.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Error;

/// How long one look may take.
pub const LOOK: Duration = Duration::from_secs(10);
/// The largest page that is read.
const LARGEST: usize = 64 << 20;

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
        let stream = forward.take_stream(port).ok_or_else(|| failed("the port was not forwarded".into()))?;
        let answer = get(stream, path).await.map_err(failed);
        forward.abort();
        answer
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

/// One request over HTTP/1.1: Envoy answers nothing older.
async fn get(stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> Result<String, String> {
    let said = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
    let request = http::Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| error.to_string())?;
    let answering = async {
        let response = sender.send_request(request).await.map_err(said)?;
        let status = response.status();
        if status != http::StatusCode::OK {
            return Err(format!("it answers {status}"));
        }
        let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    };
    let mut answering = std::pin::pin!(answering);
    // The connection is driven until there is an answer; it may well end first.
    tokio::select! {
        answer = &mut answering => answer,
        _ = connection => answering.await,
    }
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
