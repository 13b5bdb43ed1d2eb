//! Looking into a pod through the API server's port-forward: a page it serves to itself, the certificates it shows.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use stolos_serve::handshake::shown;

use crate::{Carried, Duplex, Error};

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
    let what = format!("read {path} of pod {namespace}/{pod}, port {port}");
    look(client, namespace, pod, port, what, |stream| get(stream, path)).await
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
    let what = format!("read the certificate of pod {namespace}/{pod}, port {port}");
    look(client, namespace, pod, port, what, |stream| shown(stream, name, &[])).await
}

/// Forwards a port, does one thing over it, and ends that, all within [`LOOK`].
async fn look<S, T, F: Future<Output = Result<T, String>>>(
    client: &kube::Client,
    namespace: &str,
    pod: &str,
    port: u16,
    what: String,
    ask: S,
) -> Result<T, Error>
where
    S: FnOnce(Carried) -> F,
{
    let failed = |why: String| Error::Forward { what: what.clone(), why };
    let asking = async {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let forward = pods.portforward(pod, &[port]).await;
        let mut forward = forward.map_err(|e| Error::Request { what: what.clone(), source: Box::new(e) })?;
        let stream = forward.take_stream(port).ok_or_else(|| failed("the port was not forwarded".into()))?;
        let answer = ask(Box::pin(stream)).await.map_err(failed);
        forward.abort();
        answer
    };
    let answer = tokio::time::timeout(LOOK, asking).await;
    answer.unwrap_or_else(|_| Err(Error::NoAnswer { what: what.clone(), after: LOOK }))
}

/// One request over HTTP/1.1: Envoy answers nothing older.
async fn get(stream: impl Duplex + Unpin, path: &str) -> Result<String, String> {
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
