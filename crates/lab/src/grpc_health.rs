//! `grpc.health.v1`: what a `grpc` probe asks, and what an application answers.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use stolos_serve::Stream;

/// `HealthCheckRequest`: of which service.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub(crate) status: i32,
}

/// `ServingStatus` of a service that serves.
pub(crate) const SERVING: i32 = 1;

/// The most an answer may be.
const LARGEST: usize = 16 * 1024;

/// Asks over `stream` whether `service` serves; an empty name is the server as a whole.
///
/// The caller bounds the time. HTTP/2 with prior knowledge and no TLS, as the kubelet does.
pub(crate) async fn check(stream: Stream, authority: &str, service: &str) -> Result<(), String> {
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_timeout(Duration::from_secs(5));
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(stream)).await.map_err(|e| format!("no HTTP/2: {}", causes(&e)))?;
    let asked = HealthCheckRequest { service: service.to_owned() }.encode_to_vec();
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(asked.len()).map_err(|_| "the service's name is too long")?);
    body.put_slice(&asked);
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.34")
        .body(Full::new(body.freeze()))
        .map_err(|e| e.to_string())?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(|e| causes(&e))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, LARGEST).collect().await.map_err(|e| e.to_string())?;
        if parts.status != StatusCode::OK {
            return Err(format!("HTTP status {}", parts.status.as_u16()));
        }
        // An answer without a message has its status in the headers.
        let trailers = body.trailers().cloned().unwrap_or_default();
        let text = |name: &str| {
            let value = trailers.get(name).or_else(|| parts.headers.get(name));
            value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        match text("grpc-status").as_deref() {
            Some("0") => {}
            // A server without this service says so in one way or another.
            Some("12") => {
                return Err("the server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned());
            }
            Some(code) => return Err(format!("gRPC status {code}: {}", text("grpc-message").unwrap_or_default())),
            None => return Err("no gRPC status".to_owned()),
        }
        status(&body.to_bytes())
    };
    let mut asking = std::pin::pin!(asking);
    tokio::select! {
        answer = &mut asking => answer,
        _ = connection => asking.await,
    }
}

fn status(body: &Bytes) -> Result<(), String> {
    let message = body.get(5..).filter(|_| body[0] == 0).ok_or("no answer in the answer")?;
    let response = HealthCheckResponse::decode(message).map_err(|e| e.to_string())?;
    let name = match response.status {
        SERVING => return Ok(()),
        0 => "UNKNOWN",
        2 => "NOT_SERVING",
        3 => "SERVICE_UNKNOWN",
        _ => "of an unknown kind",
    };
    Err(format!("service unhealthy (responded with \"{name}\")"))
}

fn causes(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{cause}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    /// One connection to a server that answers every request so.
    async fn asked(
        service: &str,
        answer: impl Fn() -> http::Response<http_body_util::Full<Bytes>> + Send + Sync + Clone + 'static,
    ) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let serve = hyper::service::service_fn(move |_| {
                let answer = answer.clone();
                async move { Ok::<_, std::convert::Infallible>(answer()) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), serve).await;
        });
        let stream = Stream::from(TcpStream::connect(address).await.unwrap());
        let said = tokio::time::timeout(Duration::from_secs(10), check(stream, "a:1", service)).await.unwrap();
        server.abort();
        said
    }

    #[tokio::test]
    async fn whoever_serves_is_told_from_whoever_does_not() {
        let answered = |status: i32, code: &'static str| {
            move || {
                let message = HealthCheckResponse { status }.encode_to_vec();
                let body = [&[0, 0, 0, 0, u8::try_from(message.len()).unwrap()][..], &message].concat();
                http::Response::builder().header("grpc-status", code).body(Full::new(body.into())).unwrap()
            }
        };
        assert_eq!(asked("", answered(SERVING, "0")).await, Ok(()));
        let why = |said: Result<(), String>| said.unwrap_err();
        assert_eq!(why(asked("", answered(2, "0")).await), "service unhealthy (responded with \"NOT_SERVING\")");
        assert_eq!(why(asked("x", answered(SERVING, "5")).await), "gRPC status 5: ");
        assert!(why(asked("", answered(SERVING, "12")).await).contains("does not implement"));
        let web = || http::Response::builder().status(404).body(Full::new(Bytes::from_static(b"no"))).unwrap();
        assert_eq!(why(asked("", web).await), "HTTP status 404");
        // Nothing that speaks HTTP/2 at all.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = Stream::from(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        drop(listener);
        assert!(check(stream, "a:1", "").await.is_err());
    }
}
