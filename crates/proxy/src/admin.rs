//! What others may ask the proxy: is it ready, what has it counted, and (from the pod itself, as a port-forward comes)
//! which certificate it shows, whom it trusts, and which endpoints it has.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use serde_json::json;
use stolos_serve::{Stop, listen};

use crate::state::Shared;

/// Readiness.
const HEALTH: u16 = 15021;
/// Envoy's statistics, where Prometheus looks for them.
const STATS: u16 = 15090;
/// The agent's merged statistics; the same here.
const MERGED: u16 = 15020;

/// Envoy's own pages. Of these there are `/config_dump`, with the secrets in it and nothing else (certificates as every
/// handshake shows them, and no key), and `/clusters?format=json`.
const ADMIN: u16 = 15000;

/// Serves the ports until `stop`. A port that is taken is tried again.
pub(crate) async fn run(shared: Arc<Shared>, stop: Stop) {
    tokio::join!(
        serve(Arc::clone(&shared), HEALTH, stop.clone()),
        serve(Arc::clone(&shared), STATS, stop.clone()),
        serve(Arc::clone(&shared), MERGED, stop.clone()),
        serve(shared, ADMIN, stop),
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
            let uri = request.uri();
            let response = answer(&shared, port, uri.path(), uri.query().unwrap_or_default());
            async move { Ok::<_, Infallible>(response) }
        })
    })
    .await;
}

fn answer(shared: &Shared, port: u16, path: &str, query: &str) -> Response<Full<Bytes>> {
    let (status, kind, body) = match path {
        "/healthz/ready" => match shared.readiness() {
            Ok(()) => (StatusCode::OK, "text/plain", String::new()),
            Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", format!("not ready: {missing}\n")),
        },
        "/config_dump" if port == ADMIN => (StatusCode::OK, "application/json", secrets(shared)),
        "/clusters" if port == ADMIN && query.split('&').any(|part| part == "format=json") => {
            (StatusCode::OK, "application/json", clusters(shared))
        }
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

/// The secrets in use, as Envoy's `SecretsConfigDump` (admin/v3/config_dump_shared.proto) has them: what
/// `istioctl proxy-config secret` reads.
fn secrets(shared: &Shared) -> String {
    use base64::Engine as _;
    let inline = |pem: String| json!({"inline_bytes": base64::engine::general_purpose::STANDARD.encode(pem)});
    let identity = shared.identity.load();
    let secrets = identity.iter().flat_map(|identity| {
        let of = &identity.of;
        let roots = of.roots.certificates().iter().map(stolos_pki::Certificate::pem).collect();
        let secret = |name: &str, kind: &str, body: serde_json::Value| {
            json!({"name": name, "version_info": of.credentials.leaf().serial(), "secret": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
                "name": name, kind: body}})
        };
        [
            secret("default", "tls_certificate", json!({"certificate_chain": inline(of.credentials.chain_pem())})),
            secret("ROOTCA", "validation_context", json!({"trusted_ca": inline(roots)})),
        ]
    });
    let dump = json!({"@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump",
        "dynamic_active_secrets": secrets.collect::<Vec<_>>()});
    json!({"configs": [dump]}).to_string()
}

/// The clusters with their hosts, as Envoy's `Clusters` (admin/v3/clusters.proto) has them: what `istioctl proxy-config
/// endpoints` reads. As there, what is false is left out.
fn clusters(shared: &Shared) -> String {
    let config = shared.config.load();
    let now = shared.now();
    let mut clusters: Vec<_> = config.clusters.values().collect();
    clusters.sort_by(|a, b| a.name.cmp(&b.name));
    let statuses = clusters.into_iter().map(|cluster| {
        let endpoints = cluster.endpoints.load();
        let hosts = endpoints.iter().flat_map(|endpoints| endpoints.listed()).map(|listed| {
            let eds = if listed.healthy { "HEALTHY" } else { "UNHEALTHY" };
            let mut health = json!({"eds_health_status": eds});
            if listed.host.health.is_ejected(now) {
                health["failed_outlier_check"] = true.into();
            }
            let (ip, port) = (listed.host.address.ip().to_string(), listed.host.address.port());
            json!({
                "address": {"socket_address": {"address": ip, "port_value": port}},
                "health_status": health, "weight": listed.weight, "priority": listed.priority,
            })
        });
        json!({"name": cluster.name, "added_via_api": true, "host_statuses": hosts.collect::<Vec<_>>()})
    });
    json!({"cluster_statuses": statuses.collect::<Vec<_>>()}).to_string()
}
