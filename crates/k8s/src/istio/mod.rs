//! Istio's part of a cluster: the names it gives things, its own kinds, and the Secret by which clusters know each
//! other.
//!
//! Names and shapes are Istio's, byte for byte, because Istio's own commands and control plane read them.

mod authorization_policy;
mod crds;
mod destination_rule;
mod gateway;
mod names;
mod peer_authentication;
mod remote_secret;
mod service_entry;
mod virtual_service;

pub use authorization_policy::{
    AuthorizationAction, AuthorizationCondition, AuthorizationFrom, AuthorizationOperation, AuthorizationPolicy,
    AuthorizationPolicySpec, AuthorizationRule, AuthorizationSource, AuthorizationTo,
};
pub use crds::{IstioKind, KINDS, crds, kind};
pub use destination_rule::{
    ClientTls, ClientTlsMode, ConnectionPool, ConsistentHash, DestinationRule, DestinationRuleSpec, HttpPool,
    LoadBalancer, LoadBalancerSimple, Locality, LocalityLoadBalancing, OutlierDetection, PortTrafficPolicy, Subset,
    TcpPool, TrafficPolicy,
};
pub use gateway::{Gateway, GatewayPort, GatewayServer, GatewaySpec, ServerTls, ServerTlsMode};
pub use names::*;
pub use peer_authentication::{MtlsMode, PeerAuthentication, PeerAuthenticationSpec, PeerMtls};
pub use remote_secret::{RemoteSecret, RemoteSecretError, parse_remote_secret, remote_secret};
pub use service_entry::{
    ServiceEntry, ServiceEntryEndpoint, ServiceEntryLocation, ServiceEntryPort, ServiceEntryResolution,
    ServiceEntrySpec,
};
pub use virtual_service::{
    Destination, HeaderChanges, Headers, HttpFault, HttpMatch, HttpMirror, HttpRedirect, HttpRetry, HttpRewrite,
    HttpRoute, PortSelector, RouteDestination, StringMatch, TcpMatch, TcpRoute, TlsMatch, TlsRoute, VirtualService,
    VirtualServiceSpec,
};

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The workloads a policy is for: all labels must be there. An absent or empty selector selects the whole namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkloadSelector {
    /// Labels the workload must carry.
    #[serde(alias = "labels")]
    pub match_labels: BTreeMap<String, String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl WorkloadSelector {
    /// Whether a workload with these labels is selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// An object of one of Istio's kinds, read from its JSON: what all kinds share, and the kind's own `spec`.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<S> {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.creationTimestamp` as written (RFC 3339 in UTC sorts as text), empty when absent. Older objects win
    /// conflicts.
    pub created: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `metadata.generation`, for conditions.
    pub generation: i64,
    /// The kind's own part.
    pub spec: S,
}

/// An object of one of Istio's kinds could not be read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("cannot read {kind} {namespace}/{name}: {cause}")]
pub struct ReadError {
    kind: String,
    namespace: String,
    name: String,
    cause: String,
}

impl<S: DeserializeOwned> Object<S> {
    /// Reads the object; an absent `spec` is an empty one.
    pub fn read(value: &Value) -> Result<Self, ReadError> {
        let spec = match value.get("spec") {
            None | Some(Value::Null) => Value::Object(Default::default()),
            Some(spec) => {
                let mut spec = spec.clone();
                crate::meta::remove_nulls(&mut spec);
                spec
            }
        };
        let name = crate::meta::name(value).to_owned();
        let namespace = crate::meta::namespace(value).to_owned();
        let spec = serde_json::from_value(spec).map_err(|cause| ReadError {
            kind: crate::meta::kind(value).to_owned(),
            namespace: namespace.clone(),
            name: name.clone(),
            cause: cause.to_string(),
        })?;
        Ok(Object {
            name,
            namespace,
            created: crate::meta::creation_timestamp(value).to_owned(),
            labels: crate::meta::labels(value),
            annotations: crate::meta::annotations(value),
            generation: crate::meta::generation(value),
            spec,
        })
    }

    /// Whether this object comes before `other` where the older one wins: by creation, then by name.
    pub fn is_older_than(&self, other: &Self) -> bool {
        (&self.created, &self.name, &self.namespace) < (&other.created, &other.name, &other.namespace)
    }
}

/// Paths of the fields of a spec that its type does not know, so that a caller can say what it ignores.
pub fn unknown_fields<S: Fields>(spec: &S) -> Vec<String> {
    let mut found = Vec::new();
    spec.unknown("", &mut found);
    found.sort();
    found
}

/// A type that can say which fields it was given and does not know.
pub trait Fields {
    /// Adds the paths of unknown fields below `path` to `found`.
    fn unknown(&self, path: &str, found: &mut Vec<String>);
}

/// Adds the fields of a `rest` map.
fn unknown_rest(path: &str, rest: &BTreeMap<String, Value>, found: &mut Vec<String>) {
    found.extend(rest.keys().map(|key| join(path, key)));
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

impl<T: Fields> Fields for Option<T> {
    fn unknown(&self, path: &str, found: &mut Vec<String>) {
        if let Some(inner) = self {
            inner.unknown(path, found);
        }
    }
}

impl<T: Fields> Fields for Vec<T> {
    fn unknown(&self, path: &str, found: &mut Vec<String>) {
        for (index, item) in self.iter().enumerate() {
            item.unknown(&format!("{path}[{index}]"), found);
        }
    }
}

impl<T: Fields> Fields for BTreeMap<String, T> {
    fn unknown(&self, path: &str, found: &mut Vec<String>) {
        for (key, item) in self {
            item.unknown(&join(path, key), found);
        }
    }
}

/// Writes [`Fields`] for a struct with a `rest` map, naming the fields that have unknown fields of their own.
macro_rules! fields {
    ($type:ty $(, $field:ident as $name:literal)* $(,)?) => {
        impl $crate::istio::Fields for $type {
            fn unknown(&self, path: &str, found: &mut Vec<String>) {
                $crate::istio::unknown_rest(path, &self.rest, found);
                $($crate::istio::Fields::unknown(&self.$field, &$crate::istio::join(path, $name), found);)*
            }
        }
    };
}
use fields;

fields!(WorkloadSelector);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::tests::any_json;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn null_is_absent() {
        let gateway = Gateway::read(&json!({"spec": {"selector": null, "servers": [{"hosts": null, "port": null}]}}));
        assert!(gateway.unwrap().spec.servers[0].hosts.is_empty());
        assert!(Gateway::read(&json!({"spec": null})).is_ok());
    }

    #[test]
    fn the_older_object_comes_first() {
        let object = |name: &str, created: &str| {
            Gateway::read(&json!({"metadata": {"name": name, "creationTimestamp": created}})).unwrap()
        };
        let (old, new) = (object("b", "2026-01-01T00:00:00Z"), object("a", "2026-01-02T00:00:00Z"));
        assert!(old.is_older_than(&new) && !new.is_older_than(&old));
    }

    /// Any JSON whose keys are Istio's, so that reading gets somewhere.
    fn any_spec() -> impl Strategy<Value = Value> {
        let names = [
            "servers",
            "port",
            "number",
            "tls",
            "mode",
            "hosts",
            "host",
            "http",
            "match",
            "route",
            "destination",
            "trafficPolicy",
            "subsets",
            "selector",
            "matchLabels",
            "rules",
            "from",
            "source",
            "mtls",
            "endpoints",
            "ports",
            "headers",
            "name",
        ];
        let leaf = prop_oneof![
            (-1i64..70_000).prop_map(Value::from),
            prop::sample::select(vec!["STRICT", "SIMPLE", "a", "80", ""]).prop_map(Value::from),
            any_json(),
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map(prop::sample::select(names.to_vec()), inner, 0..4)
                    .prop_map(|map| map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>()),
            ]
        })
    }

    fn read<S: DeserializeOwned + Fields>(object: &Value) {
        if let Ok(object) = Object::<S>::read(object) {
            unknown_fields(&object.spec);
        }
    }

    proptest! {
        #[test]
        fn any_object_is_read_or_refused(metadata in any_json(), spec in any_spec()) {
            let object = json!({"kind": "Thing", "metadata": metadata, "spec": spec});
            read::<GatewaySpec>(&object);
            read::<PeerAuthenticationSpec>(&object);
            read::<DestinationRuleSpec>(&object);
            read::<VirtualServiceSpec>(&object);
            read::<ServiceEntrySpec>(&object);
            read::<AuthorizationPolicySpec>(&object);
            let secret = json!({"metadata": {"labels": {MULTI_CLUSTER_LABEL: TRUE}}, "data": spec, "stringData": metadata});
            let _ = parse_remote_secret(&secret);
            let _ = parse_remote_secret(&object);
        }

        #[test]
        fn nothing_unknown_is_lost(key in "x[a-z]{3}") {
            for path in ["", "/servers/0", "/servers/0/port", "/servers/0/tls"] {
                let mut spec = json!({"servers": [{"port": {"number": 1}, "tls": {"mode": "SIMPLE"}}]});
                if let Some(Value::Object(map)) = spec.pointer_mut(path) {
                    map.insert(key.clone(), json!(1));
                }
                let gateway = Gateway::read(&json!({"spec": spec})).unwrap();
                prop_assert_eq!(unknown_fields(&gateway.spec).len(), 1);
                let written = serde_json::to_value(&gateway.spec).unwrap();
                prop_assert_eq!(written.pointer(path).and_then(|map| map.get(&key)), Some(&json!(1)));
            }
        }
    }
}
