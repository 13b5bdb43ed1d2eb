//! What others may ask the proxy: is it ready, what has it counted.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use stolos_serve::{Stop, listen};

use crate::state::Shared;

/// Readiness.
const HEALTH: u16 = 15021;
/// Envoy's statistics, where Prometheus looks for them.
const STATS: u16 = 15090;
/// The agent's merged statistics; the same here.
const MERGED: u16 = 15020;

/// Serves the three ports until `stop`. A port that is taken is tried again.
pub(crate) async fn run(shared: Arc<Shared>, stop: Stop) {
    tokio::join!(
        serve(Arc::clone(&shared), HEALTH, stop.clone()),
        serve(Arc::clone(&shared), STATS, stop.clone()),
        serve(shared, MERGED, stop),
    );
}

async fn serve(shared: Arc<Shared>, port: u16, stop: Stop) {
    let socket = loop {
        match shared.net.bind(port).await {
            Ok(socket) => break socket,
            Err(error) => tracing::warn!(port, %error, "cannot listen, trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => {}
            () = stop.asked() => return,
        }
    };
    listen::http(socket, listen::Settings::default(), stop, move |_| {
        let shared = Arc::clone(&shared);
        service_fn(move |request: Request<hyper::body::Incoming>| {
            let response = answer(&shared, request.uri().path());
            async move { Ok::<_, Infallible>(response) }
        })
    })
    .await;
}

fn answer(shared: &Shared, path: &str) -> Response<Full<Bytes>> {
    let (status, kind, body) = match path {
        "/healthz/ready" => match shared.readiness() {
            Ok(()) => (StatusCode::OK, "text/plain", String::new()),
            Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("not ready: {missing}\n")),
        },
        "/stats/prometheus" | "/metrics" => {
            (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", shared.metrics.text())
        }
        _ => (StatusCode::NOT_FOUND, "text/plain", String::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
