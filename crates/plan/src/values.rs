//! The values that Istio's charts are given: what a mesh of several clusters needs, as the contract says it.
//!
//! Three layers, the later ones winning: what Stolos suggests, what the user's file says, and what makes the mesh one
//! mesh (which nobody can choose differently without breaking it). The section of the multi-cluster contract that asks
//! for a value is named beside it.

use serde_json::{Map, Value, json};
use stolos_spec::{Cluster, ControlPlane, Mesh, Role};

use crate::build::addresses;
use crate::object::SYSTEM_NAMESPACE;

/// The east-west gateway's release, Deployment, Service and service account.
pub(crate) const EASTWEST: &str = "istio-eastwestgateway";
/// What the chart gives a gateway between networks to listen on.
const PORTS: [(&str, u16); 4] = [("status-port", 15021), ("tls", 15443), ("tls-istiod", 15012), ("tls-webhook", 15017)];
/// The same of the ingress gateway.
pub(crate) const INGRESS: &str = "istio-ingressgateway";

/// A minor version of Istio, such as 1.28.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Minor(pub(crate) u32, pub(crate) u32);

impl Minor {
    /// From `1.28`, `1.28.3`, `v1.28.3-beta.1`.
    pub(crate) fn of(version: &str) -> Option<Self> {
        let mut parts = version.trim_start_matches('v').split(['.', '-', '+']);
        Some(Self(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

impl std::fmt::Display for Minor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The values of one chart, in layers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Layers {
    /// What is so unless the user's file says otherwise.
    pub(crate) suggested: Value,
    /// What the user's file says.
    pub(crate) given: Value,
    /// What the mesh needs.
    pub(crate) needed: Value,
}

impl Layers {
    /// The values, and the given ones that do not count because the mesh needs another: path, given, used.
    pub(crate) fn merged(self) -> (Value, Vec<(String, Value, Value)>) {
        let mut overridden = Vec::new();
        contradictions(&self.given, &self.needed, "", &mut overridden);
        let mut values = self.suggested;
        lay(&mut values, self.given);
        lay(&mut values, self.needed);
        (values, overridden)
    }
}

/// Maps are merged, everything else is replaced.
pub(crate) fn lay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                match under.get_mut(&key) {
                    Some(below) => lay(below, value),
                    None => drop(under.insert(key, value)),
                }
            }
        }
        (under, over) => *under = over,
    }
}

fn contradictions(given: &Value, needed: &Value, path: &str, found: &mut Vec<(String, Value, Value)>) {
    match (given, needed) {
        (Value::Object(given), Value::Object(needed)) => {
            for (key, value) in given {
                let dot = if path.is_empty() { "" } else { "." };
                let Some(needed) = needed.get(key) else { continue };
                contradictions(value, needed, &format!("{path}{dot}{key}"), found);
            }
        }
        (given, needed) if given == needed => {}
        (given, needed) => found.push((path.to_owned(), given.clone(), needed.clone())),
    }
}

/// What the values of one cluster follow from.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) cluster: &'a Cluster,
    pub(crate) version: Minor,
    /// Where a remote's primary can be reached: its east-west gateway. `None` for a primary.
    pub(crate) primary_address: Option<&'a str>,
}

impl Place<'_> {
    fn control(&self) -> &ControlPlane {
        &self.mesh.control_plane
    }

    fn is_remote(&self) -> bool {
        matches!(self.cluster.role, Role::Remote { .. })
    }

    /// Whether another cluster uses the control plane of this one.
    pub(crate) fn has_remotes(&self) -> bool {
        self.mesh.serves_remotes(&self.cluster.name)
    }

    /// Whether an east-west gateway is needed here: where there are other networks (C.4), and at a primary with remotes
    /// even on one network, since they reach its control plane through it (C.3, E.11).
    pub(crate) fn needs_eastwest(&self) -> bool {
        self.mesh.needs_gateway(self.cluster)
    }

    fn given(&self) -> Map<String, Value> {
        self.control().values.as_object().cloned().unwrap_or_default()
    }

    /// Chart `base`: the definitions, and what is the cluster's rather than a revision's.
    pub(crate) fn base(&self) -> Layers {
        let given = self.given();
        // The overlay is one for all charts; what is said of other charts only makes releases differ.
        let given: Map<_, _> = given
            .into_iter()
            .filter(|(key, _)| ["global", "base", "defaultRevision"].contains(&key.as_str()))
            .collect();
        let mut needed = json!({"global": {"istioNamespace": SYSTEM_NAMESPACE}});
        // From 1.24 a remote's charts are told by profile (B.7).
        if self.is_remote() && self.version >= Minor(1, 24) {
            needed["profile"] = "remote".into();
        }
        // The default validator answers to the revision there is (B.8).
        let suggested = match &self.control().revision {
            Some(revision) => json!({"defaultRevision": revision}),
            None => json!({}),
        };
        Layers { suggested, given: Value::Object(given), needed }
    }

    /// Chart `istiod`, or `istiod-remote` of a remote below 1.24.
    pub(crate) fn istiod(&self) -> Layers {
        let mut given = self.given();
        // Values of charts that are no more: gateways have a chart of their own.
        if let Some(Value::Object(gateways)) = given.get_mut("gateways") {
            gateways.retain(|key, _| !key.starts_with("istio-"));
            if gateways.is_empty() {
                given.remove("gateways");
            }
        }
        given.remove("defaultRevision");
        let mut needed = json!({
            "global": {
                // One root namespace of one name everywhere (B.6).
                "istioNamespace": SYSTEM_NAMESPACE,
                // Equal everywhere (B.6).
                "meshID": self.mesh.name.as_str(),
                // The data key of its remote secret, byte for byte (B.5, B.6).
                "multiCluster": {"clusterName": self.cluster.name.as_str()},
                // What the namespace's label says (B.2).
                "network": self.cluster.network.as_str(),
            },
        });
        let mut suggested = json!({});
        if let Some(networks) = addresses::mesh_networks(self.mesh).filter(|_| self.cluster.primary().is_none()) {
            needed["global"]["meshNetworks"] = networks;
        }
        if let Some(revision) = &self.control().revision {
            needed["revision"] = revision.as_str().into();
        }
        if let Role::Remote { .. } = &self.cluster.role {
            self.remote(&mut needed);
        } else {
            // The same in every cluster, or identities are strangers to each other (B.6).
            needed["meshConfig"]["trustDomain"] = self.mesh.trust.domain.as_str().into();
            suggested = json!({
                "meshConfig": {
                    "accessLogFile": "/dev/stdout",
                    "accessLogEncoding": "JSON",
                    "defaultConfig": {"proxyMetadata": {
                        // A Service of another cluster has no name without it (E.21, D-34).
                        "ISTIO_META_DNS_CAPTURE": "true",
                        // With the one below: the root can be replaced without a restart (C.9).
                        "PROXY_CONFIG_XDS_AGENT": "true",
                    }},
                },
                "pilot": {"env": {"ISTIO_MULTIROOT_MESH": "true"}},
            });
        }
        if self.has_remotes() {
            // It serves others: patches their webhooks, writes the root there (B.7).
            needed["global"]["externalIstiod"] = true.into();
            if self.version < Minor(1, 23) {
                needed["pilot"]["env"]["EXTERNAL_ISTIOD"] = "true".into();
            }
        }
        Layers { suggested, given: Value::Object(given), needed }
    }

    /// B.7: no control plane of its own, but the webhook and the Service that lead to the primary's.
    fn remote(&self, needed: &mut Value) {
        if self.version >= Minor(1, 24) {
            needed["profile"] = "remote".into();
        }
        let (cluster, network) = (self.cluster.name.as_str(), self.cluster.network.as_str());
        let path = format!("/inject/cluster/{cluster}/net/{network}");
        needed["istiodRemote"] = json!({"enabled": true, "injectionPath": path});
        let Some(address) = self.primary_address else { return };
        needed["global"]["remotePilotAddress"] = address.into();
        if address != crate::ADDRESS && address.parse::<std::net::IpAddr>().is_err() {
            // A Service of type ExternalName is none that an API server calls webhooks through (E.14).
            needed["istiodRemote"] = json!({"enabled": true, "injectionURL": format!("https://{address}:15017{path}")});
        }
    }

    /// Chart `gateway` for what stands between networks (B.4). `networkGateway` makes the Service's label, the pods'
    /// `ISTIO_META_REQUESTED_NETWORK_VIEW` and the four ports.
    pub(crate) fn eastwest(&self) -> Layers {
        let mut needed = json!({
            "name": EASTWEST,
            // What the Gateway `cross-network-gateway` selects.
            "labels": {"app": EASTWEST, "istio": "eastwestgateway"},
        });
        let network = self.cluster.network.as_str();
        let mut given = addresses::values(self.mesh, self.cluster);
        if self.cluster.gateway_by_hand().is_some() {
            // All of `networkGateway` but the label of the Service, whose own address is not to count.
            given.remove("networkGateway");
            needed["env"] = json!({"ISTIO_META_REQUESTED_NETWORK_VIEW": network});
            let port = |(name, number): (&str, u16)| json!({"name": name, "port": number, "targetPort": number});
            needed["service"] = json!({"ports": PORTS.map(port)});
        } else {
            needed["networkGateway"] = network.into();
        }
        self.revise(&mut needed);
        Layers { suggested: json!({}), given: Value::Object(given), needed }
    }

    /// Chart `gateway` for what comes from outside, where the file wants one.
    pub(crate) fn ingress(&self) -> Option<Layers> {
        let given = Value::Object(self.control().gateways.ingress.clone()?);
        let mut needed = json!({"name": INGRESS, "labels": {"app": INGRESS, "istio": "ingressgateway"}});
        self.revise(&mut needed);
        Some(Layers { suggested: json!({}), given, needed })
    }

    fn revise(&self, needed: &mut Value) {
        if let Some(revision) = &self.control().revision {
            needed["revision"] = revision.as_str().into();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use stolos_spec::{SourceText, read};

    use super::*;

    fn mesh(control: &Value, clusters: &[(&str, &str, Option<&str>)]) -> Mesh {
        let cluster = |(name, network, primary): &(&str, &str, Option<&str>)| {
            let mut cluster = json!({"name": name, "network": network});
            if let Some(primary) = primary {
                cluster["controlPlane"]["primary"] = (*primary).into();
            }
            cluster
        };
        let clusters: Vec<_> = clusters.iter().map(cluster).collect();
        let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"},
            "spec": {"controlPlane": control, "clusters": clusters}});
        read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh
    }

    /// Every value that every chart is given in every cluster.
    fn all(mesh: &Mesh, version: Minor, address: &str) -> String {
        let mut text = String::new();
        for cluster in &mesh.clusters {
            let remote = matches!(cluster.role, Role::Remote { .. });
            let place = Place { mesh, cluster, version, primary_address: Some(address).filter(|_| remote) };
            let mut line = |chart: &str, layers: Layers| {
                let _ = writeln!(text, "{} {chart}: {}", cluster.name, layers.merged().0);
            };
            line("base", place.base());
            line("istiod", place.istiod());
            if place.needs_eastwest() {
                line("eastwest", place.eastwest());
            }
            if let Some(ingress) = place.ingress() {
                line("ingress", ingress);
            }
        }
        text
    }

    #[test]
    fn several_primaries_on_one_network_need_no_gateway() {
        let mesh = mesh(&json!({"engine": "istio"}), &[("a", "net", None), ("b", "net", None)]);
        insta::assert_snapshot!(all(&mesh, Minor(1, 28), ""), @r#"
        a base: {"global":{"istioNamespace":"istio-system"}}
        a istiod: {"global":{"istioNamespace":"istio-system","meshID":"mymesh","multiCluster":{"clusterName":"a"},"network":"net"},"meshConfig":{"accessLogEncoding":"JSON","accessLogFile":"/dev/stdout","defaultConfig":{"proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true","PROXY_CONFIG_XDS_AGENT":"true"}},"trustDomain":"cluster.local"},"pilot":{"env":{"ISTIO_MULTIROOT_MESH":"true"}}}
        b base: {"global":{"istioNamespace":"istio-system"}}
        b istiod: {"global":{"istioNamespace":"istio-system","meshID":"mymesh","multiCluster":{"clusterName":"b"},"network":"net"},"meshConfig":{"accessLogEncoding":"JSON","accessLogFile":"/dev/stdout","defaultConfig":{"proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true","PROXY_CONFIG_XDS_AGENT":"true"}},"trustDomain":"cluster.local"},"pilot":{"env":{"ISTIO_MULTIROOT_MESH":"true"}}}
        "#);
    }

    /// The reference: two clusters on one network and a third on another, with a revision and an ingress gateway.
    #[test]
    fn mixed_networks_get_a_gateway_in_every_cluster() {
        let control = json!({"engine": "istio", "revision": "1-28-0", "gateways": {
            "eastwest": {"service": {"annotations": {"a": "b"}}, "networkGateway": "other"}, "ingress": {"replicaCount": 2}}});
        let mesh = mesh(&control, &[("east-1", "east", None), ("east-2", "east", None), ("west-1", "west", None)]);
        let text = all(&mesh, Minor(1, 28), "");
        let lines: Vec<_> = text.lines().filter(|line| !line.contains("istiod:")).collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        east-1 base: {"defaultRevision":"1-28-0","global":{"istioNamespace":"istio-system"}}
        east-1 eastwest: {"labels":{"app":"istio-eastwestgateway","istio":"eastwestgateway"},"name":"istio-eastwestgateway","networkGateway":"east","revision":"1-28-0","service":{"annotations":{"a":"b"}}}
        east-1 ingress: {"labels":{"app":"istio-ingressgateway","istio":"ingressgateway"},"name":"istio-ingressgateway","replicaCount":2,"revision":"1-28-0"}
        east-2 base: {"defaultRevision":"1-28-0","global":{"istioNamespace":"istio-system"}}
        east-2 eastwest: {"labels":{"app":"istio-eastwestgateway","istio":"eastwestgateway"},"name":"istio-eastwestgateway","networkGateway":"east","revision":"1-28-0","service":{"annotations":{"a":"b"}}}
        east-2 ingress: {"labels":{"app":"istio-ingressgateway","istio":"ingressgateway"},"name":"istio-ingressgateway","replicaCount":2,"revision":"1-28-0"}
        west-1 base: {"defaultRevision":"1-28-0","global":{"istioNamespace":"istio-system"}}
        west-1 eastwest: {"labels":{"app":"istio-eastwestgateway","istio":"eastwestgateway"},"name":"istio-eastwestgateway","networkGateway":"west","revision":"1-28-0","service":{"annotations":{"a":"b"}}}
        west-1 ingress: {"labels":{"app":"istio-ingressgateway","istio":"ingressgateway"},"name":"istio-ingressgateway","replicaCount":2,"revision":"1-28-0"}
        "#);
        let istiod: Vec<_> = text.lines().filter(|line| line.contains("istiod:")).collect();
        assert!(istiod.iter().all(|line| line.contains(r#""revision":"1-28-0""#)), "{istiod:?}");
    }

    /// On one network the primary has a gateway all the same: its remotes reach its control plane through it.
    #[test]
    fn a_remote_is_told_where_its_primary_is() {
        let mesh = mesh(&json!({"engine": "istio"}), &[("p", "net", None), ("r", "net", Some("p"))]);
        insta::assert_snapshot!(all(&mesh, Minor(1, 28), "192.0.2.1"), @r#"
        p base: {"global":{"istioNamespace":"istio-system"}}
        p istiod: {"global":{"externalIstiod":true,"istioNamespace":"istio-system","meshID":"mymesh","multiCluster":{"clusterName":"p"},"network":"net"},"meshConfig":{"accessLogEncoding":"JSON","accessLogFile":"/dev/stdout","defaultConfig":{"proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true","PROXY_CONFIG_XDS_AGENT":"true"}},"trustDomain":"cluster.local"},"pilot":{"env":{"ISTIO_MULTIROOT_MESH":"true"}}}
        p eastwest: {"labels":{"app":"istio-eastwestgateway","istio":"eastwestgateway"},"name":"istio-eastwestgateway","networkGateway":"net"}
        r base: {"global":{"istioNamespace":"istio-system"},"profile":"remote"}
        r istiod: {"global":{"istioNamespace":"istio-system","meshID":"mymesh","multiCluster":{"clusterName":"r"},"network":"net","remotePilotAddress":"192.0.2.1"},"istiodRemote":{"enabled":true,"injectionPath":"/inject/cluster/r/net/net"},"profile":"remote"}
        "#);
        // A name is none that an API server would call: the webhook gets a URL.
        let named = all(&mesh, Minor(1, 28), "lb.example.com");
        assert!(named.contains(r#""injectionURL":"https://lb.example.com:15017/inject/cluster/r/net/net""#), "{named}");
    }

    #[test]
    fn older_versions_are_told_in_their_own_words() {
        let mesh = mesh(&json!({"engine": "istio"}), &[("p", "east", None), ("r", "west", Some("p"))]);
        for (version, environment, profile) in [
            (Minor(1, 20), true, false),
            (Minor(1, 22), true, false),
            (Minor(1, 23), false, false),
            (Minor(1, 24), false, true),
        ] {
            let text = all(&mesh, version, "192.0.2.1");
            assert_eq!(text.contains(r#""EXTERNAL_ISTIOD":"true""#), environment, "{version}");
            assert_eq!(text.contains(r#""profile":"remote""#), profile, "{version}");
            assert!(text.contains("r eastwest:"), "{text}");
        }
    }

    #[test]
    fn what_the_mesh_needs_wins_over_what_is_given_and_that_over_what_is_suggested() {
        let control = json!({"engine": "istio", "values": {
            "meshConfig": {"trustDomain": "other", "accessLogFile": "", "defaultConfig": {"proxyMetadata": {"A": "b"}}},
            "gateways": {"istio-ingressgateway": {"type": "NodePort"}, "seccompProfile": {}},
            "global": {"istioNamespace": "mesh", "hub": "registry.example.com"}, "base": {"enableCRDTemplates": true}}});
        let mesh = mesh(&control, &[("a", "net", None)]);
        let place = Place { mesh: &mesh, cluster: &mesh.clusters[0], version: Minor(1, 28), primary_address: None };
        let (values, overridden) = place.istiod().merged();
        insta::assert_snapshot!(values, @r#"{"base":{"enableCRDTemplates":true},"gateways":{"seccompProfile":{}},"global":{"hub":"registry.example.com","istioNamespace":"istio-system","meshID":"mymesh","multiCluster":{"clusterName":"a"},"network":"net"},"meshConfig":{"accessLogEncoding":"JSON","accessLogFile":"","defaultConfig":{"proxyMetadata":{"A":"b","ISTIO_META_DNS_CAPTURE":"true","PROXY_CONFIG_XDS_AGENT":"true"}},"trustDomain":"cluster.local"},"pilot":{"env":{"ISTIO_MULTIROOT_MESH":"true"}}}"#);
        let paths: Vec<_> = overridden.iter().map(|(path, given, used)| format!("{path} {given} {used}")).collect();
        assert_eq!(
            paths,
            [r#"global.istioNamespace "mesh" "istio-system""#, r#"meshConfig.trustDomain "other" "cluster.local""#]
        );
        insta::assert_snapshot!(place.base().merged().0, @r#"{"base":{"enableCRDTemplates":true},"global":{"hub":"registry.example.com","istioNamespace":"istio-system"}}"#);
    }
}
