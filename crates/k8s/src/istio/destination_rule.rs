//! `DestinationRule` of `networking.istio.io`: how a host's endpoints are divided, balanced and reached.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::virtual_service::PortSelector;
use super::{Object, WorkloadSelector, fields};

/// A DestinationRule.
pub type DestinationRule = Object<DestinationRuleSpec>;

/// How a host's endpoints are divided, balanced and reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRuleSpec {
    /// The host; a short name means the rule's namespace.
    pub host: String,
    /// For all ports and subsets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Named parts of the host's endpoints.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// Namespaces it is visible to: `*`, `.`, names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// Client workloads of the rule's namespace that it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A named part of a host's endpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subset {
    /// The name.
    pub name: String,
    /// Labels of the endpoints.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Over the host's own policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_policy: Option<TrafficPolicy>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// How endpoints are balanced and reached.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// How one is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// How many connections and requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
    /// When one is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS of the connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    /// Instead of all this, for one port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_level_settings: Vec<PortTrafficPolicy>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A port's own policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortTrafficPolicy {
    /// The service's port.
    pub port: PortSelector,
    /// How one is chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// How many connections and requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
    /// When one is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// TLS of the connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancer {
    /// A simple way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simple: Option<LoadBalancerSimple>,
    /// The same endpoint for the same caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistent_hash: Option<ConsistentHash>,
    /// Which localities, over the mesh's setting.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality_lb_setting: Option<LocalityLoadBalancing>,
    /// Seconds over which a new endpoint gets its share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_duration_secs: Option<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Simple ways of choosing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum LoadBalancerSimple {
    /// As the mesh does.
    #[default]
    Unspecified,
    /// By chance.
    Random,
    /// Straight to where the caller asked.
    Passthrough,
    /// One after the other.
    RoundRobin,
    /// The least busy of two.
    LeastRequest,
    /// The old name of the least busy of two.
    LeastConn,
}

/// What decides about the endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConsistentHash {
    /// A header's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_header_name: Option<String>,
    /// A query parameter's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_query_parameter_name: Option<String>,
    /// The caller's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_source_ip: Option<bool>,
    /// A cookie: `name`, `path`, `ttl`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_cookie: Option<Value>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Which localities traffic prefers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LocalityLoadBalancing {
    /// Whether at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Shares by where traffic comes from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub distribute: Vec<Locality>,
    /// Where to, when a region is down.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failover: Vec<Locality>,
    /// Labels whose equality decides about priority.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failover_priority: Vec<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// An entry of `distribute` (`to` is shares by locality) or of `failover` (`to` is a region).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Locality {
    /// From where: `region/zone/subzone`, with `*`.
    pub from: String,
    /// Whereto.
    pub to: Value,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// How many connections and requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConnectionPool {
    /// Connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpPool>,
    /// Requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpPool>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Limits of connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpPool {
    /// At most so many to one host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<i64>,
    /// How long connecting may take, `10s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_timeout: Option<String>,
    /// How long one may be idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<String>,
    /// How long one may live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_connection_duration: Option<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Limits of requests.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpPool {
    /// Waiting requests.
    #[serde(skip_serializing_if = "Option::is_none", rename = "http1MaxPendingRequests")]
    pub http1_max_pending_requests: Option<i64>,
    /// Active requests.
    #[serde(skip_serializing_if = "Option::is_none", rename = "http2MaxRequests")]
    pub http2_max_requests: Option<i64>,
    /// Requests per connection; 1 means no keep-alive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<i64>,
    /// Retries at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<i64>,
    /// How long a connection may be idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<String>,
    /// `DEFAULT`, `DO_NOT_UPGRADE`, `UPGRADE`.
    #[serde(skip_serializing_if = "Option::is_none", rename = "h2UpgradePolicy")]
    pub h2_upgrade_policy: Option<String>,
    /// Keep the caller's protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_client_protocol: Option<bool>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// When an endpoint is left out for a while.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetection {
    /// After so many 5xx in a row; 0 turns it off.
    #[serde(skip_serializing_if = "Option::is_none", rename = "consecutive5xxErrors")]
    pub consecutive_5xx_errors: Option<u32>,
    /// After so many 502, 503, 504 in a row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_gateway_errors: Option<u32>,
    /// The old name of the latter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_errors: Option<u32>,
    /// After so many failures to connect in a row, where these are split.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consecutive_local_origin_failures: Option<u32>,
    /// Count failures to connect apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split_external_local_origin_errors: Option<bool>,
    /// How often it is looked at, `10s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// How long the first time, `30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_ejection_time: Option<String>,
    /// At most this part of the endpoints, 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ejection_percent: Option<u32>,
    /// Only while so many are healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_health_percent: Option<u32>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// TLS of connections to a host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTls {
    /// The mode.
    pub mode: ClientTlsMode,
    /// The server name sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sni: Option<String>,
    /// The names the server must have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// The Secret with certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_name: Option<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Modes of [`ClientTls`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientTlsMode {
    /// Plaintext.
    #[default]
    Disable,
    /// Ordinary TLS.
    Simple,
    /// With a client certificate of one's own.
    Mutual,
    /// With the mesh's certificates.
    IstioMutual,
}

fields!(
    DestinationRuleSpec,
    traffic_policy as "trafficPolicy",
    subsets as "subsets",
    workload_selector as "workloadSelector",
);
fields!(Subset, traffic_policy as "trafficPolicy");
fields!(
    TrafficPolicy,
    load_balancer as "loadBalancer",
    connection_pool as "connectionPool",
    outlier_detection as "outlierDetection",
    tls as "tls",
    port_level_settings as "portLevelSettings",
);
fields!(
    PortTrafficPolicy,
    port as "port",
    load_balancer as "loadBalancer",
    connection_pool as "connectionPool",
    outlier_detection as "outlierDetection",
    tls as "tls",
);
fields!(LoadBalancer, consistent_hash as "consistentHash", locality_lb_setting as "localityLbSetting");
fields!(ConsistentHash);
fields!(LocalityLoadBalancing, distribute as "distribute", failover as "failover");
fields!(Locality);
fields!(ConnectionPool, tcp as "tcp", http as "http");
fields!(TcpPool);
fields!(HttpPool);
fields!(OutlierDetection);
fields!(ClientTls);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio::unknown_fields;
    use serde_json::json;

    #[test]
    fn a_rule_is_read_and_what_is_unknown_is_found() {
        let rule = DestinationRule::read(&json!({"spec": {
            "host": "reviews",
            "trafficPolicy": {
                "tls": {"mode": "ISTIO_MUTUAL"},
                "outlierDetection": {"consecutive5xxErrors": 3, "interval": "1s"},
                "connectionPool": {"http": {"http2MaxRequests": 5, "h2UpgradePolicy": "UPGRADE"}, "tcp": {"tcpKeepalive": {}}},
                "loadBalancer": {"simple": "ROUND_ROBIN", "localityLbSetting": {"failover": [{"from": "a", "to": "b"}]}},
                "portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "SIMPLE", "insecureSkipVerify": true}}],
                "tunnel": {}},
            "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}}))
        .unwrap();
        let policy = rule.spec.traffic_policy.as_ref().unwrap();
        assert_eq!(policy.load_balancer.as_ref().unwrap().simple, Some(LoadBalancerSimple::RoundRobin));
        assert_eq!(policy.outlier_detection.as_ref().unwrap().consecutive_5xx_errors, Some(3));
        assert_eq!(policy.port_level_settings[0].port.number, Some(80));
        assert_eq!(
            unknown_fields(&rule.spec),
            [
                "trafficPolicy.connectionPool.tcp.tcpKeepalive",
                "trafficPolicy.portLevelSettings[0].tls.insecureSkipVerify",
                "trafficPolicy.tunnel",
            ]
        );
    }
}
