//! The east-west gateway of each cluster, where the mesh has more than one network; and on one network that of each
//! primary with remotes, which reach its control plane through it (E.11).

use serde_json::{Value, json};
use stolos_spec::{Cluster, Mesh};

use super::addresses::{self, Way};
use super::ingress::Given;
use super::{Scene, Sketch, id, remote};
use crate::Condition;
use crate::object::{SYSTEM_NAMESPACE, ours};

/// Deployment, Service and service account.
pub(super) const GATEWAY: &str = "istio-eastwestgateway";

pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    for (cluster, state) in scene.live.iter().filter(|(cluster, _)| scene.mesh.needs_gateway(cluster)) {
        let name = cluster.name.as_str();
        let here = |what: &str| id("gateways", name, what);
        let serves = scene.mesh.serves_remotes(&cluster.name);
        // What the gateway serves comes first, so that it never runs without knowing. A remote's gateway is told by its
        // primary, which reads no such objects but its own cluster's (E.19).
        let before = || vec![id("trust", name, "namespace"), id("control", name, "crds-served")];
        if scene.mesh.needs_gateways() && cluster.primary().is_none() {
            let expose = ours(scene.mesh_name(), expose(scene.mesh));
            sketch.write(name, state, here("expose"), before(), vec![expose]);
        }
        if serves {
            let expose = remote::expose(super::control::ISTIOD, None).into_iter();
            let expose = expose.map(|object| ours(scene.mesh_name(), object)).collect();
            sketch.write(name, state, here("expose-istiod"), before(), expose);
        }
        // The Service first: its address takes longest, and it needs no control plane.
        let values = addresses::values(scene.mesh, cluster);
        let way = Way::of(cluster, &values);
        let mut service = Given(&values).lay_over(service(cluster, serves));
        if way == Way::ByHand {
            service["metadata"]["labels"] = selector();
        }
        let service = ours(scene.mesh_name(), service);
        sketch.write(name, state, here("address"), vec![id("trust", name, "namespace")], vec![service]);
        if cluster.primary().is_some() && way == Way::Service {
            // Its primary must not hear of endpoints whose gateway has no address, and makes the gateway's pod.
            let address = Condition::Addressed { namespace: SYSTEM_NAMESPACE.to_owned(), service: GATEWAY.to_owned() };
            sketch.wait(name, state, here("addressed"), vec![here("address")], vec![address]);
        }
        // The injector fills the pod in, so it must answer before.
        let objects = workload(cluster, serves, Given(&values).replicas())
            .into_iter()
            .map(|object| ours(scene.mesh_name(), object))
            .collect();
        sketch.write(name, state, here("eastwest"), vec![id("control", name, "ready")], objects);
        let mut until =
            vec![Condition::Available { namespace: SYSTEM_NAMESPACE.to_owned(), deployment: GATEWAY.to_owned() }];
        if way == Way::Service {
            until.push(Condition::Addressed { namespace: SYSTEM_NAMESPACE.to_owned(), service: GATEWAY.to_owned() });
        }
        sketch.wait(
            name,
            state,
            here("ready"),
            ["expose", "expose-istiod", "address", "eastwest"].map(here).to_vec(),
            until,
        );
    }
}

fn selector() -> Value {
    json!({"app": GATEWAY, "istio": "eastwestgateway"})
}

fn labels(cluster: &Cluster) -> Value {
    json!({"app": GATEWAY, "istio": "eastwestgateway", "topology.istio.io/network": cluster.network.as_str()})
}

fn workload(cluster: &Cluster, serves: bool, replicas: u64) -> Vec<Value> {
    let port = |(name, number): (&str, u16)| json!({"name": name, "containerPort": number, "protocol": "TCP"});
    // Only endpoints of its own network, or two gateways would send to each other in circles.
    let env = json!([{"name": "ISTIO_META_REQUESTED_NETWORK_VIEW", "value": cluster.network.as_str()}]);
    let container = json!({"name": "istio-proxy", "image": "auto", "env": env, "ports": ports(serves).map(port).collect::<Vec<_>>()});
    gateway(GATEWAY, &labels(cluster), &selector(), replicas, &container)
}

/// The account and the Deployment of a gateway, whose pod the injector fills in.
pub(super) fn gateway(name: &str, labels: &Value, selector: &Value, replicas: u64, container: &Value) -> Vec<Value> {
    let mut pod_labels = labels.clone();
    pod_labels["sidecar.istio.io/inject"] = "true".into();
    let metadata = json!({"name": name, "namespace": SYSTEM_NAMESPACE, "labels": labels});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": pod_labels, "annotations": {"inject.istio.io/templates": "gateway"}},
                "spec": {
                    "serviceAccountName": name,
                    "terminationGracePeriodSeconds": 30,
                    "containers": [container],
                },
            },
        }}),
    ]
}

/// Those of the control plane only where other clusters use it.
fn ports(serves: bool) -> impl Iterator<Item = (&'static str, u16)> {
    let control = remote::PORTS.into_iter().filter(move |_| serves);
    [("status-port", 15021), ("tls", 15443)].into_iter().chain(control)
}

fn service(cluster: &Cluster, serves: bool) -> Value {
    let port =
        |(name, number): (&str, u16)| json!({"name": name, "port": number, "targetPort": number, "protocol": "TCP"});
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": GATEWAY, "namespace": SYSTEM_NAMESPACE, "labels": labels(cluster)},
        "spec": {"type": "LoadBalancer", "selector": {"app": GATEWAY, "istio": "eastwestgateway"},
            "ports": ports(serves).map(port).collect::<Vec<_>>()}})
}

pub(super) fn expose(mesh: &Mesh) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
        "metadata": {"name": "cross-network-gateway", "namespace": SYSTEM_NAMESPACE, "labels": {}},
        "spec": {"selector": {"istio": "eastwestgateway"}, "servers": [{
            "port": {"number": 15443, "name": "tls", "protocol": "TLS"},
            "tls": {"mode": "AUTO_PASSTHROUGH"},
            "hosts": mesh.expose}]}})
}
