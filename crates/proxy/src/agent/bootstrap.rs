//! What Envoy is told before it knows anything: who it is, where its agent is, and what it always listens for.
//!
//! As Istio's bootstrap (`tools/packaging/common/envoy_bootstrap.json`), with two differences: sockets are where
//! [`Programs::address`](stolos_serve::Programs::address) says, since in a lab many Envoys share a machine, and
//! connections to others leave from the pod's address for the same reason.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use stolos_xds::envoy::config::core::v3::Node;
use stolos_xds::prost_types::value::Kind;
use stolos_xds::prost_types::{Struct, Value as ProtoValue};

/// Envoy's pages.
pub(super) const ADMIN_PORT: u16 = 15000;
/// Readiness, as Istio's agent serves it.
pub(super) const HEALTH_PORT: u16 = 15021;
/// Envoy's metrics.
pub(super) const METRICS_PORT: u16 = 15090;
/// The agent's socket for configuration, beside the bootstrap.
pub(super) const XDS_SOCKET: &str = "XDS";
/// The agent's socket for keys and certificates.
pub(super) const SDS_SOCKET: &str = "SDS";

/// What of a bootstrap differs from pod to pod.
pub(super) struct Bootstrap<'a> {
    /// What Envoy says of itself.
    pub(super) node: &'a Node,
    /// Where it listens.
    pub(super) listen: IpAddr,
    /// Where its connections come from, if it must not be left to the system.
    pub(super) source: Option<&'a str>,
    /// Whether it asks for differences or for the state of the world.
    pub(super) delta: bool,
}

impl Bootstrap<'_> {
    /// The document.
    pub(super) fn json(&self) -> Value {
        let ads = json!({"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"});
        let mut bootstrap = json!({
            "node": node(self.node),
            "layered_runtime": {"layers": [{"name": "global config", "static_layer": {
                "re2.max_program_size.error_level": "32768",
            }}]},
            "admin": {"address": self.admin()},
            "dynamic_resources": {
                "lds_config": ads,
                "cds_config": ads,
                "ads_config": {
                    "api_type": if self.delta { "DELTA_GRPC" } else { "GRPC" },
                    "set_node_on_first_message_only": true,
                    "transport_api_version": "V3",
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
                },
            },
            "static_resources": {
                "clusters": [
                    agent("xds-grpc", XDS_SOCKET),
                    agent("sds-grpc", SDS_SOCKET),
                    self.pages(),
                ],
                "listeners": [
                    self.listener("prometheus", METRICS_PORT, "/stats/prometheus", "/stats/prometheus"),
                    self.listener("health", HEALTH_PORT, "/healthz/ready", "/ready"),
                ],
            },
        });
        if let Some(source) = self.source {
            bootstrap["cluster_manager"] =
                json!({"upstream_bind_config": {"source_address": {"address": source, "port_value": 0}}});
        }
        bootstrap
    }

    /// Its own pages are for its container alone.
    fn admin(&self) -> Value {
        let alone = self.listen.is_unspecified();
        address(if alone { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { self.listen }, ADMIN_PORT)
    }

    /// Envoy's own pages as a cluster.
    fn pages(&self) -> Value {
        json!({
            "name": "prometheus_stats", "type": "STATIC", "connect_timeout": "0.250s",
            "load_assignment": {"cluster_name": "prometheus_stats", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": self.admin()}}]}]},
        })
    }

    /// A listener through which one of Envoy's pages is seen, and no other.
    fn listener(&self, name: &str, port: u16, path: &str, page: &str) -> Value {
        let route = json!({"match": {"path": path}, "route": {"cluster": "prometheus_stats", "prefix_rewrite": page}});
        json!({
            "name": name,
            "address": address(self.listen, port),
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "codec_type": "AUTO",
                    "stat_prefix": name,
                    "route_config": {"virtual_hosts": [{"name": "backend", "domains": ["*"], "routes": [route]}]},
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                    }],
                },
            }]}],
        })
    }
}

fn address(host: IpAddr, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

/// A cluster that is the agent. The socket's path is relative, because Envoy runs in the folder: absolute ones can be
/// longer than the 107 bytes that a socket's address holds.
fn agent(name: &str, socket: &str) -> Value {
    json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }},
        // Nobody's address: a source address is for other machines, and this is a file.
        "upstream_bind_config": {},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [
            {"endpoint": {"address": {"pipe": {"path": format!("./{socket}")}}}}]}]},
    })
}

/// A node as JSON, without what Envoy says of its own build.
fn node(node: &Node) -> Value {
    json!({
        "id": node.id,
        "cluster": node.cluster,
        "metadata": node.metadata.as_ref().map_or_else(|| json!({}), structure),
    })
}

fn structure(of: &Struct) -> Value {
    Value::Object(of.fields.iter().map(|(key, value)| (key.clone(), plain(value))).collect())
}

fn plain(value: &ProtoValue) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => json!(value),
        Some(Kind::NumberValue(value)) => json!(value),
        Some(Kind::StringValue(value)) => json!(value),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(plain).collect()),
        Some(Kind::StructValue(fields)) => structure(fields),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stolos_xds::message::{list, object, string};

    #[test]
    fn a_bootstrap_says_who_where_and_how() {
        let metadata = stolos_xds::message::structure([
            ("CLUSTER_ID", string("east")),
            ("LABELS", object([("app", string("sleep"))])),
            ("LIST", list([string("a")])),
        ]);
        let node = Node {
            id: "sidecar~127.9.2.1~sleep-1.sample~sample.svc.cluster.local".into(),
            cluster: "sleep.sample".into(),
            metadata: Some(metadata),
            ..Node::default()
        };
        let of =
            |delta| Bootstrap { node: &node, listen: [127, 9, 9, 1].into(), source: Some("127.9.2.1"), delta }.json();
        let made = of(true);
        insta::assert_snapshot!(made["node"], @r#"{"cluster":"sleep.sample","id":"sidecar~127.9.2.1~sleep-1.sample~sample.svc.cluster.local","metadata":{"CLUSTER_ID":"east","LABELS":{"app":"sleep"},"LIST":["a"]}}"#);
        assert_eq!(made["dynamic_resources"]["ads_config"]["api_type"], "DELTA_GRPC");
        assert_eq!(of(false)["dynamic_resources"]["ads_config"]["api_type"], "GRPC");
        assert_eq!(made["admin"]["address"]["socket_address"]["address"], "127.9.9.1");
        let names = |what: &str| {
            let all = made["static_resources"][what].as_array().unwrap();
            all.iter().map(|one| one["name"].as_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            (names("clusters"), names("listeners")),
            ("xds-grpc sds-grpc prometheus_stats".into(), "prometheus health".into())
        );
        let elsewhere = Bootstrap { node: &node, listen: [0, 0, 0, 0].into(), source: None, delta: true }.json();
        assert!(elsewhere.get("cluster_manager").is_none());
        assert_eq!(elsewhere["admin"]["address"]["socket_address"]["address"], "127.0.0.1");
    }
}
