//! `VirtualService` of `networking.istio.io`: where requests to a host go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Object, fields};

/// A VirtualService.
pub type VirtualService = Object<VirtualServiceSpec>;

/// Where requests to hosts go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VirtualServiceSpec {
    /// The hosts; a short name means the object's namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The gateways it is for; `mesh`, the default, means all sidecars.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// Rules for HTTP; the first that matches counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub http: Vec<HttpRoute>,
    /// Rules for TLS that is not ended.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<TlsRoute>,
    /// Rules for TCP.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tcp: Vec<TcpRoute>,
    /// Namespaces it is visible to: `*`, `.`, names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// One rule for HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRoute {
    /// The name, for logs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// When; any of them. Always, when empty.
    #[serde(skip_serializing_if = "Vec::is_empty", rename = "match")]
    pub matches: Vec<HttpMatch>,
    /// Whereto.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<RouteDestination>,
    /// Send the caller elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect: Option<HttpRedirect>,
    /// Answer at once: `status`, `body`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_response: Option<Value>,
    /// The rules are in another VirtualService: `name`, `namespace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delegate: Option<Value>,
    /// Change path or host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rewrite: Option<HttpRewrite>,
    /// How long a request may take, `1s`; `0s` is for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// How often to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<HttpRetry>,
    /// Faults on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<HttpFault>,
    /// Send a copy here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<Destination>,
    /// Send copies here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<HttpMirror>,
    /// Of this part of the requests: `value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror_percentage: Option<Value>,
    /// Cross-origin rules, as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cors_policy: Option<Value>,
    /// Change headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// When a rule for HTTP counts: all that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMatch {
    /// The name, for logs.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The path with query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<StringMatch>,
    /// The scheme.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<StringMatch>,
    /// The method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<StringMatch>,
    /// The host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<StringMatch>,
    /// Headers; an empty match asks only that it is there.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, StringMatch>,
    /// Headers that must not match.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub without_headers: BTreeMap<String, StringMatch>,
    /// Query parameters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub query_params: BTreeMap<String, StringMatch>,
    /// The path's case does not matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore_uri_case: Option<bool>,
    /// The port asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Labels of the caller.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_namespace: Option<String>,
    /// Gateways, over the object's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// How a text is matched: at most one is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StringMatch {
    /// The whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<String>,
    /// The beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// RE2, the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A destination and its share.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteDestination {
    /// Whereto.
    pub destination: Destination,
    /// The share; a single destination gets all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Change headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A service, or a part of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Destination {
    /// The host; a short name means the object's namespace.
    pub host: String,
    /// The subset of a DestinationRule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// The port; may be left out where the service has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<PortSelector>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A port by number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortSelector {
    /// The number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u16>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Send the caller elsewhere.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRedirect {
    /// The new path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The new host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// The new port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The new scheme.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// 301 when not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirect_code: Option<u16>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Change path or host before sending on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRewrite {
    /// The new path, or prefix where a prefix matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// The new host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// How often to try again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRetry {
    /// So often; 0 never.
    pub attempts: i32,
    /// How long each may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try_timeout: Option<String>,
    /// On what: conditions and status codes, with commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<String>,
    /// Also in other localities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_remote_localities: Option<bool>,
    /// How long between two.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Faults on purpose, as written: `percentage.value` with `fixedDelay`, or `httpStatus`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpFault {
    /// Wait first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Value>,
    /// Fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub abort: Option<Value>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Where copies go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpMirror {
    /// Whereto.
    pub destination: Destination,
    /// Of this part of the requests: `value`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentage: Option<Value>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Changes of headers both ways.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Headers {
    /// Of requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<HeaderChanges>,
    /// Of responses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<HeaderChanges>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Changes of headers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderChanges {
    /// Overwrite.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
    /// Append.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub add: BTreeMap<String, String>,
    /// Take away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// One rule for TLS that is not ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRoute {
    /// When; any of them.
    #[serde(rename = "match")]
    pub matches: Vec<TlsMatch>,
    /// Whereto.
    pub route: Vec<RouteDestination>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// When a rule for TLS counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsMatch {
    /// Server names.
    pub sni_hosts: Vec<String>,
    /// The port asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Gateways, over the object's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// Addresses asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_subnets: Vec<String>,
    /// Labels of the caller.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_namespace: Option<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// One rule for TCP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRoute {
    /// When; any of them. Always, when empty.
    #[serde(skip_serializing_if = "Vec::is_empty", rename = "match")]
    pub matches: Vec<TcpMatch>,
    /// Whereto.
    pub route: Vec<RouteDestination>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// When a rule for TCP counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpMatch {
    /// The port asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Gateways, over the object's own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<String>,
    /// Addresses asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub destination_subnets: Vec<String>,
    /// Labels of the caller.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub source_labels: BTreeMap<String, String>,
    /// Namespace of the caller.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_namespace: Option<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

fields!(VirtualServiceSpec, http as "http", tls as "tls", tcp as "tcp");
fields!(
    HttpRoute,
    matches as "match",
    route as "route",
    redirect as "redirect",
    rewrite as "rewrite",
    retries as "retries",
    fault as "fault",
    mirror as "mirror",
    mirrors as "mirrors",
    headers as "headers",
);
fields!(
    HttpMatch,
    uri as "uri",
    scheme as "scheme",
    method as "method",
    authority as "authority",
    headers as "headers",
    without_headers as "withoutHeaders",
    query_params as "queryParams",
);
fields!(StringMatch);
fields!(RouteDestination, destination as "destination", headers as "headers");
fields!(Destination, port as "port");
fields!(PortSelector);
fields!(HttpRedirect);
fields!(HttpRewrite);
fields!(HttpRetry);
fields!(HttpFault);
fields!(HttpMirror, destination as "destination");
fields!(Headers, request as "request", response as "response");
fields!(HeaderChanges);
fields!(TlsRoute, matches as "match", route as "route");
fields!(TlsMatch);
fields!(TcpRoute, matches as "match", route as "route");
fields!(TcpMatch);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio::unknown_fields;
    use serde_json::json;

    #[test]
    fn the_control_planes_own_routes_are_read() {
        let service = VirtualService::read(&json!({"spec": {"hosts": ["*"], "gateways": ["istiod-gateway"], "tls": [
            {"match": [{"port": 15017, "sniHosts": ["*"]}],
             "route": [{"destination": {"host": "istiod.istio-system.svc.cluster.local", "port": {"number": 443}}}]}]}}))
        .unwrap();
        let route = &service.spec.tls[0];
        assert_eq!(route.matches[0].port, Some(15017));
        assert_eq!(route.route[0].destination.port.as_ref().unwrap().number, Some(443));
        assert!(unknown_fields(&service.spec).is_empty());
    }

    #[test]
    fn weights_and_unknown_fields_are_read() {
        let service = VirtualService::read(&json!({"spec": {"hosts": ["reviews"], "http": [{
            "match": [{"headers": {"end-user": {"exact": "jason", "cleverly": 1}}}],
            "route": [{"destination": {"host": "reviews", "subset": "v1"}, "weight": 90},
                      {"destination": {"host": "reviews", "subset": "v2"}, "weight": 10}],
            "timeout": "1s", "websocketUpgrade": true}]}}))
        .unwrap();
        assert_eq!(service.spec.http[0].route[1].weight, Some(10));
        assert_eq!(
            unknown_fields(&service.spec),
            ["http[0].match[0].headers.end-user.cleverly", "http[0].websocketUpgrade"]
        );
    }
}
