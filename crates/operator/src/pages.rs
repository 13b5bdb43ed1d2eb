//! `/metrics` for Prometheus, `/healthz` and `/readyz` for the kubelet.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Router, routing::get};
use hyper_util::service::TowerToHyperService;
use stolos_serve::exposition;
use stolos_serve::listen::{self, Settings};
use stolos_serve::{Listener, Stop};

use crate::metrics::Metrics;

/// Serves until `stop`.
pub(crate) async fn serve(listener: Listener, metrics: Arc<Metrics>, stop: Stop) {
    let pages = Router::new()
        .route("/metrics", get(text))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .with_state(metrics);
    listen::http(listener, Settings::default(), stop, move |_| TowerToHyperService::new(pages.clone())).await;
}

async fn text(State(metrics): State<Arc<Metrics>>) -> ([(&'static str, &'static str); 1], String) {
    ([("content-type", exposition::MEDIA_TYPE)], metrics.text())
}

async fn health(State(metrics): State<Arc<Metrics>>) -> (StatusCode, &'static str) {
    match metrics.is_stuck() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "one round does not end\n"),
        false => (StatusCode::OK, "ok\n"),
    }
}

async fn ready(State(metrics): State<Arc<Metrics>>) -> (StatusCode, &'static str) {
    match metrics.is_ready() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "has not looked at the clusters yet\n"),
    }
}
