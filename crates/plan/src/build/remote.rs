//! A cluster that uses the control plane of another (contract B.7, C.3): what is in the remote and what in the primary,
//! with the small engine. With real Istio the charts bring the remote's part, and what exposes the primary is the same.
//!
//! The order keeps two things from waiting for each other: the primary hears of the remote (its remote secret) once the
//! webhook there leads to it, and only then trusts the webhook; the remote's own gateway, whose pod the webhook
//! completes, comes after that.

use std::net::IpAddr;

use serde_json::{Value, json};
use stolos_spec::{Cluster, ClusterName};

use super::addresses::{self, Way};
use super::control::{self, INJECTOR, ISTIOD};
use super::gateways::GATEWAY;
use super::{Scene, Sketch, id};
use crate::graph::Work;
use crate::object::{MANAGER, SYSTEM_NAMESPACE, is_owned, ours};
use crate::step::external_address;
use crate::{ADDRESS, Change, ClusterState, Condition, ObjectKey};

/// The annotation of a remote's system namespace that says who leads there. It must be there before the primary comes.
pub(super) const LEADERS: &str = "topology.istio.io/controlPlaneClusters";
/// The Gateway and the VirtualService by which the primary's gateway passes on to its control plane.
const EXPOSED: &str = "istiod-gateway";
const ROUTES: &str = "istiod-vs";
/// The ports of a primary's gateway that lead to its control plane: discovery and certificates, and the webhook.
pub(super) const PORTS: [(&str, u16); 2] = [("tls-istiod", 15012), ("tls-webhook", 15017)];

/// What a remote has instead of a control plane.
pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    for (cluster, state) in &scene.live {
        let Some(primary) = cluster.primary() else { continue };
        let name = cluster.name.as_str();
        if was_primary(scene, sketch, name, state) {
            continue;
        }
        let here = |what: &str| id("control", name, what);
        let label = |objects: Vec<Value>| -> Vec<Value> {
            objects.into_iter().map(|object| ours(scene.mesh_name(), object)).collect()
        };
        if let Some(address) = address(scene, sketch, cluster, primary) {
            let after = vec![
                id("trust", name, "namespace"),
                id("gateways", primary.as_str(), "ready"),
                id("gateways", primary.as_str(), "expose-istiod"),
            ];
            sketch.write(name, state, here("istiod"), after, label(way(&address)));
            sketch.late(primary, GATEWAY);
            let path = format!("/inject/cluster/{name}/net/{}", cluster.network);
            let injector = label(vec![control::injector(&path)]);
            sketch.write(name, state, here("injector"), vec![here("istiod")], injector);
            let until = vec![
                Condition::Trusted { webhook: INJECTOR.to_owned() },
                Condition::RootReceived { namespace: SYSTEM_NAMESPACE.to_owned() },
            ];
            // The primary does both once it reads this cluster.
            let link = id("links", primary.as_str(), name);
            let primary_ready = id("control", primary.as_str(), "ready");
            let after = vec![here("istiod"), here("injector"), link, primary_ready];
            sketch.wait(name, state, here("trusted"), after, until);
            ready(sketch, name, None);
        }
        control::membership(scene, sketch, name, state);
    }
}

/// A control plane that is to go would leave a cluster whose pods are served by nobody for a while, and endpoints that
/// nobody takes away: that is no change of one file.
pub(super) fn was_primary(scene: &Scene<'_>, sketch: &mut Sketch, cluster: &str, state: &ClusterState) -> bool {
    let key = ObjectKey::new("apps/v1", "Deployment", Some(SYSTEM_NAMESPACE), &scene.istiod());
    if state.objects.get(&key).is_none() {
        return false;
    }
    let text = "it runs a control plane of its own and is to use that of another cluster";
    let ways = [
        "take it out of the mesh file, apply, put it back as a remote, and apply again",
        "leave `controlPlane.primary` out",
    ];
    sketch.problem("was-primary", Some(cluster), text, &ways);
    true
}

/// Where the primary's gateway is, or [`ADDRESS`] where that will be known only later. `None` where nothing can be
/// planned.
pub(super) fn address(
    scene: &Scene<'_>,
    sketch: &mut Sketch,
    cluster: &Cluster,
    primary: &ClusterName,
) -> Option<String> {
    let name = cluster.name.as_str();
    let Some(state) = scene.observed.cluster(primary.as_str()) else {
        let text = format!("its primary, {primary}, is not reachable: its way there stays as it is");
        sketch.note(Some(name), text);
        for (version, kind, namespace, name_of) in [
            ("v1", "Service", Some(SYSTEM_NAMESPACE), ISTIOD),
            ("discovery.k8s.io/v1", "EndpointSlice", Some(SYSTEM_NAMESPACE), ISTIOD),
            ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", None, INJECTOR),
        ] {
            sketch.want(name, ObjectKey::new(version, kind, namespace, name_of));
        }
        return None;
    };
    let by_nodes = |primary: &Cluster| Way::of(primary, &addresses::values(scene.mesh, primary)) == Way::Nodes;
    if scene.mesh.cluster(primary).is_some_and(by_nodes) {
        let text = format!(
            "the gateway of its primary {primary} is reached at its nodes' ports, and a remote finds its control plane at \
             15012 and 15017"
        );
        let ways = [
            "a gateway of type LoadBalancer, or with `externalIPs`, at the primary",
            "`gateway: {addresses: [192.0.2.10]}` at the primary, where something of yours leads to it",
        ];
        sketch.problem("nodeport-gateway", Some(name), text, &ways);
        return None;
    }
    let key = ObjectKey::new("v1", "Service", Some(SYSTEM_NAMESPACE), GATEWAY);
    // What is given by hand goes before what the Service has: an IP address, if there is one.
    let by_hand = scene.mesh.cluster(primary).and_then(Cluster::gateway_by_hand).and_then(|gateway| {
        gateway.addresses.iter().find(|address| address.parse::<IpAddr>().is_ok()).or(gateway.addresses.first())
    });
    match by_hand.map(String::as_str).or_else(|| state.objects.get(&key).and_then(external_address)) {
        Some(address) if address.parse::<IpAddr>().is_ok() => Some(address.to_owned()),
        Some(host) => {
            let text = format!(
                "the gateway of its primary {primary} has no IP address but a name, {host}: an API server calls no webhook \
                 through it (a Service of type ExternalName), so no pod of {name} would get a sidecar"
            );
            let ways = ["give the load balancer of that gateway a fixed IP address", "make it a primary"];
            sketch.problem("hostname-gateway", Some(name), text, &ways);
            None
        }
        None => Some(ADDRESS.to_owned()),
    }
}

/// Service `istiod` of a remote: no pod is behind it but the primary's gateway.
fn way(address: &str) -> Vec<Value> {
    let labels = json!({"app": ISTIOD, "istio.io/rev": "default"});
    let port = |name: &str, port: u16, target: u16| json!({"name": name, "port": port, "targetPort": target, "protocol": "TCP"});
    let family = match address.parse() {
        Ok(IpAddr::V6(_)) => "IPv6",
        _ => "IPv4",
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": ISTIOD, "namespace": SYSTEM_NAMESPACE, "labels": labels},
            "spec": {"ports": [port("tcp-istiod", 15012, 15012), port("tcp-webhook", 443, 15017)]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": ISTIOD, "namespace": SYSTEM_NAMESPACE, "labels": {
                "app": ISTIOD,
                "kubernetes.io/service-name": ISTIOD,
                "endpointslice.kubernetes.io/managed-by": MANAGER,
            }},
            "addressType": family,
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"name": "tcp-istiod", "port": 15012, "protocol": "TCP"},
                {"name": "tcp-webhook", "port": 15017, "protocol": "TCP"}]}),
    ]
}

/// Nothing that the primary has to complete is made before it does (C.3).
pub(super) fn ready(sketch: &mut Sketch, cluster: &str, revision: Option<&str>) {
    let until = Condition::Injects { namespace: SYSTEM_NAMESPACE.to_owned(), revision: revision.map(str::to_owned) };
    sketch.wait_unseen(cluster, id("control", cluster, "ready"), vec![id("control", cluster, "trusted")], until, false);
}

/// Whether an EndpointSlice is one that [`way`] makes, and not a controller's.
pub(super) fn is_way(mesh: &str, key: &ObjectKey, object: &Value) -> bool {
    let by = &object["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"];
    key.kind == "EndpointSlice" && is_owned(mesh, object) && *by == MANAGER
}

/// What makes a primary's gateway lead to its control plane (Istio's `expose-istiod.yaml`, and of a revision
/// `expose-istiod-rev.yaml.tmpl`). The webhook's port of the gateway is another than that of the Service (E.12).
pub(super) fn expose(istiod: &str, revision: Option<&str>) -> Vec<Value> {
    let server = |name: &str, port: u16| json!({"port": {"number": port, "name": name, "protocol": "tls"}, "tls": {"mode": "PASSTHROUGH"}, "hosts": ["*"]});
    let names = match revision {
        None => json!(["*"]),
        Some(_) => {
            json!([
                format!("{istiod}.{SYSTEM_NAMESPACE}.svc"),
                format!("{istiod}.{SYSTEM_NAMESPACE}.svc.cluster.local")
            ])
        }
    };
    let host = format!("{istiod}.{SYSTEM_NAMESPACE}.svc.cluster.local");
    let route = |at: u16, to: u16| {
        json!({"match": [{"port": at, "sniHosts": names}],
            "route": [{"destination": {"host": host, "port": {"number": to}}}]})
    };
    let routes = revision.map_or_else(|| ROUTES.to_owned(), |revision| format!("{ROUTES}-{revision}"));
    vec![
        json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
            "metadata": {"name": EXPOSED, "namespace": SYSTEM_NAMESPACE, "labels": {}},
            "spec": {"selector": {"istio": "eastwestgateway"},
                "servers": [server("tls-istiod", 15012), server("tls-istiodwebhook", 15017)]}}),
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": routes, "namespace": SYSTEM_NAMESPACE, "labels": {}},
            "spec": {"hosts": ["*"], "gateways": [EXPOSED], "tls": [route(15012, 15012), route(15017, 443)]}}),
    ]
}

/// The steps after which every remote of the file is served by the primary that the file says.
pub(super) fn served(scene: &Scene<'_>) -> Vec<String> {
    let remotes = scene.live.iter().filter(|(cluster, _)| cluster.primary().is_some());
    remotes.map(|(cluster, _)| id("control", cluster.name.as_str(), "ready")).collect()
}

impl Sketch {
    /// The step that was drafted last gets an address of `of`'s Service while it is carried out, if it needs one.
    pub(super) fn late(&mut self, of: &ClusterName, service: &str) {
        let Some(draft) = self.drafts.last_mut() else { return };
        let Work::Do { change, .. } = &mut draft.work else { return };
        let text = serde_json::to_string(change).unwrap_or_default();
        if text.contains(ADDRESS) {
            let inner = Box::new(change.clone());
            *change = Change::WithAddress { of: of.to_string(), service: service.to_owned(), change: inner };
        }
    }
}
