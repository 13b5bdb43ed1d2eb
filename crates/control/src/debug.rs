//! Pages for people and programs that want to look inside: readiness, metrics, `/debug/…` under Istio's names.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Query, State as Extract};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use serde_json::{Map, Value, json};
use stolos_serve::exposition;
use stolos_xds::message;
use stolos_xds::server::Server;

use crate::metrics::Metrics;
use crate::model::{Resolution, World};
use crate::push::{Pusher, Shown};
use crate::state::State;

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Pages {
    /// The picture.
    pub(crate) state: State,
    /// What was sent.
    pub(crate) pusher: Arc<Pusher>,
    /// What was taken.
    pub(crate) server: Server<Pusher>,
    /// What was counted.
    pub(crate) metrics: Arc<Metrics>,
}

/// The pages.
pub(crate) fn pages(pages: Pages) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/debug/registryz", get(|Extract(p): Extract<Pages>| async move { Json(registryz(&p.world())) }))
        .route("/debug/endpointz", get(|Extract(p): Extract<Pages>| async move { Json(endpointz(&p.world())) }))
        .route("/debug/endpointShardz", get(|Extract(p): Extract<Pages>| async move { Json(endpointz(&p.world())) }))
        .route(
            "/debug/networkz",
            get(|Extract(p): Extract<Pages>| async move { Json(json!(p.world().gateways.all())) }),
        )
        .route("/debug/clusterz", get(clusterz))
        .route("/debug/syncz", get(syncz))
        .route("/debug/config_dump", get(config_dump))
        .route("/debug/unsupported", get(unsupported))
        .with_state(pages)
}

impl Pages {
    fn world(&self) -> Arc<World> {
        self.state.worlds.borrow().clone()
    }
}

async fn ready(Extract(pages): Extract<Pages>) -> Response {
    let report = pages.state.reports.borrow().clone();
    if report.ready {
        (StatusCode::OK, "ready\n").into_response()
    } else {
        let text = format!("waiting for {}\n", report.waiting.join(", "));
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn metrics(Extract(pages): Extract<Pages>) -> Response {
    let text = pages.metrics.text(&pages.state, pages.server.connections().len(), &pages.server.totals());
    ([("content-type", exposition::MEDIA_TYPE)], text).into_response()
}

/// All services, merged.
fn registryz(world: &World) -> Value {
    let services = world.services.in_order.iter().map(|service| {
        let resolution = match &service.resolution {
            Resolution::ClientSide => "ClientSideLB",
            Resolution::Passthrough => "Passthrough",
            Resolution::Alias(_) => "Alias",
        };
        json!({
            "hostname": &*service.host,
            "ports": service.ports.iter().map(|port| json!({
                "name": port.name, "port": port.number, "protocol": port.protocol,
            })).collect::<Vec<_>>(),
            "clusterVIPs": {"Addresses": service.vips.iter().map(|(id, vips)| (id.to_string(), json!(vips))).collect::<Map<_, _>>()},
            "defaultAddress": service.vip,
            "Resolution": resolution,
            "serviceAccounts": service.accounts,
            "Attributes": {
                "ServiceRegistry": "Kubernetes", "Name": service.name, "Namespace": service.namespace,
                "Labels": service.labels, "LabelSelectors": service.selector, "ExportTo": service.export_to,
            },
        })
    });
    services.collect()
}

/// Host, namespace, shards, endpoints.
fn endpointz(world: &World) -> Value {
    let mut hosts = BTreeMap::<String, (String, Map<String, Value>)>::new();
    for cluster in &world.clusters {
        for (host, endpoints) in &cluster.endpoints {
            let Some(service) = world.services.by_host.get(host) else { continue };
            let shard = endpoints.iter().map(|endpoint| {
                json!({
                    "Addresses": [endpoint.address], "EndpointPort": endpoint.port, "ServicePortName": endpoint.port_name,
                    "ServiceAccount": endpoint.identity, "Network": &*endpoint.network,
                    "Locality": {"Label": endpoint.locality.to_string(), "ClusterID": &*endpoint.cluster},
                    "TLSMode": if endpoint.tls { "istio" } else { "disabled" }, "LbWeight": endpoint.weight,
                    "HealthStatus": endpoint.health, "WorkloadName": endpoint.workload, "Namespace": endpoint.namespace,
                    "NodeName": endpoint.node,
                })
            });
            let entry = hosts.entry(host.to_string()).or_insert_with(|| (service.namespace.clone(), Map::new()));
            entry.1.insert(format!("Kubernetes/{}", cluster.id), shard.collect());
        }
    }
    let hosts = hosts.into_iter().map(|(host, (namespace, shards))| {
        let accounts = world.services.by_host.get(host.as_str()).map(|service| json!(service.accounts));
        let mut of_namespace = Map::new();
        of_namespace.insert(namespace, json!({"Shards": shards, "ServiceAccounts": accounts}));
        (host, Value::Object(of_namespace))
    });
    Value::Object(hosts.collect())
}

async fn clusterz(Extract(pages): Extract<Pages>) -> Json<Value> {
    let report = pages.state.reports.borrow().clone();
    let clusters = report.clusters.iter().map(|cluster| {
        let mut shown = json!({"id": cluster.id, "secretName": cluster.secret, "syncStatus": cluster.status});
        if let Some(error) = &cluster.error {
            shown["error"] = json!(error);
        }
        shown
    });
    Json(clusters.collect())
}

async fn syncz(Extract(pages): Extract<Pages>) -> Json<Value> {
    let shown = pages.pusher.connected();
    let rows = pages.server.connections().into_iter().filter_map(|connection| {
        let Shown { info, snapshot, .. } = shown.get(&connection.connection)?;
        let mut row = json!({
            "cluster_id": &*info.cluster,
            "proxy": format!("{}.{}", info.name, info.namespace),
            "proxy_type": info.kind,
            "istio_version": info.version,
            "program": info.program,
            "network": &*info.network,
            "connected_at": timestamp(connection.connected_at),
            "snapshot": &*snapshot.version,
            "settled": connection.settled.as_deref(),
        });
        let types = [
            ("cluster", message::CLUSTER),
            ("listener", message::LISTENER),
            ("route", message::ROUTE),
            ("endpoint", message::ENDPOINT),
            ("name_table", message::NAME_TABLE),
        ];
        for (name, type_url) in types {
            let Some(status) = connection.types.get(type_url) else { continue };
            row[format!("{name}_sent")] = json!(status.sent.as_deref());
            row[format!("{name}_acked")] = json!(status.taken.as_deref());
            row[format!("{name}_status")] = json!(status.word());
            row[format!("{name}_rejects")] = json!(status.refusals);
            if let Some(nack) = &status.refused {
                row[format!("{name}_error")] = json!(nack.message);
            }
        }
        Some(row)
    });
    Json(rows.collect())
}

fn timestamp(at: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(at).map(|at| at.to_string()).unwrap_or_default()
}

/// The names and versions of what a proxy should have.
async fn config_dump(
    Extract(pages): Extract<Pages>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Result<Json<Value>, (StatusCode, String)> {
    let connected = pages.pusher.connected();
    let names: Vec<_> =
        connected.values().map(|shown| format!("{}.{}", shown.info.name, shown.info.namespace)).collect();
    let wanted = query.get("proxyID").cloned().unwrap_or_default();
    let found = connected.values().find(|shown| format!("{}.{}", shown.info.name, shown.info.namespace) == wanted);
    let Some(Shown { info, since, snapshot }) = found else {
        let text = format!("no proxy `{wanted}` is connected; ?proxyID= one of: {}\n", names.join(", "));
        return Err((StatusCode::NOT_FOUND, text));
    };
    let types = snapshot.iter().map(|(type_url, resources)| {
        let resources = resources.iter().map(|r| (r.name.to_string(), json!(&*r.version)));
        (type_url.to_string(), Value::Object(resources.collect()))
    });
    Ok(Json(json!({
        "node": info.id,
        "connectedAt": timestamp(*since),
        "version": &*snapshot.version,
        "resources": Value::Object(types.collect()),
    })))
}

/// What is not acted on.
async fn unsupported(Extract(pages): Extract<Pages>) -> Json<Value> {
    let world = pages.world();
    let findings = world.policies.findings.iter().map(|finding| {
        json!({"kind": finding.kind, "namespace": finding.namespace, "name": finding.name,
            "fields": finding.fields, "closes": finding.closes, "message": finding.message()})
    });
    let unread = &pages.state.reports.borrow().unread;
    Json(json!({"objects": findings.collect::<Vec<_>>(), "meshConfig": unread}))
}
