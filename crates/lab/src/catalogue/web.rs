//! Serving HTTP from a container, in a few lines.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use stolos_serve::listen::{self, Settings};

use super::Launch;

pub(super) type Reply = Response<Full<Bytes>>;

/// Serves `answer` on `port` until the container is stopped, as HTTP/1.1 (with upgrades) and HTTP/2; returns its exit
/// code.
pub(super) async fn serve<F, B>(
    launch: &Launch,
    port: u16,
    answer: impl Fn(Request<Incoming>) -> F + Send + Sync + 'static,
) -> i32
where
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let listener = match launch.container.net.bind(port).await {
        Ok(listener) => listener,
        Err(error) => {
            launch.container.output.line(format!("cannot listen on port {port}: {error}"));
            return 1;
        }
    };
    let answer = Arc::new(answer);
    let settings = Settings { grace: Duration::from_secs(1), ..Settings::default() };
    listen::http(listener, settings, launch.stop.clone(), move |_| {
        let answer = Arc::clone(&answer);
        hyper::service::service_fn(move |request| {
            let reply = answer(request);
            async move { Ok::<_, std::convert::Infallible>(reply.await) }
        })
    })
    .await;
    0
}

pub(super) fn reply(status: StatusCode, kind: &str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    if let Ok(kind) = kind.parse() {
        reply.headers_mut().insert("content-type", kind);
    }
    reply
}

pub(super) fn text(body: impl Into<Bytes>) -> Reply {
    reply(StatusCode::OK, "text/html; charset=utf-8", body)
}

pub(super) fn json(body: &serde_json::Value) -> Reply {
    reply(StatusCode::OK, "application/json; charset=utf-8", serde_json::to_vec_pretty(body).unwrap_or_default())
}

pub(super) fn missing() -> Reply {
    reply(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n")
}
