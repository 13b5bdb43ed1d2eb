//! The east-west gateway of each cluster, where the mesh has more than one network.

use serde_json::{Value, json};
use stolos_spec::{Cluster, Mesh};

use super::{Scene, Sketch, id};
use crate::Condition;
use crate::object::{SYSTEM_NAMESPACE, ours};

/// Deployment, Service and service account.
pub(super) const GATEWAY: &str = "istio-eastwestgateway";

pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    if !scene.mesh.needs_gateways() {
        return;
    }
    for (cluster, state) in &scene.live {
        let name = cluster.name.as_str();
        let here = |what: &str| id("gateways", name, what);
        // What the gateway serves comes first, so that it never runs without knowing.
        let before = vec![id("trust", name, "namespace"), id("control", name, "crds-served")];
        let expose = ours(scene.mesh_name(), expose(scene.mesh));
        sketch.write(name, state, here("expose"), before, vec![expose]);
        // The Service first: its address takes longest, and it needs no control plane.
        let service = ours(scene.mesh_name(), service(cluster));
        sketch.write(name, state, here("address"), vec![id("trust", name, "namespace")], vec![service]);
        // The injector fills the pod in, so it must answer before.
        let objects = workload(cluster).into_iter().map(|object| ours(scene.mesh_name(), object)).collect();
        sketch.write(name, state, here("eastwest"), vec![id("control", name, "ready")], objects);
        let until = vec![
            Condition::Available { namespace: SYSTEM_NAMESPACE.to_owned(), deployment: GATEWAY.to_owned() },
            Condition::Addressed { namespace: SYSTEM_NAMESPACE.to_owned(), service: GATEWAY.to_owned() },
        ];
        sketch.wait(name, state, here("ready"), ["expose", "address", "eastwest"].map(here).to_vec(), until);
    }
}

fn labels(cluster: &Cluster) -> Value {
    json!({"app": GATEWAY, "istio": "eastwestgateway", "topology.istio.io/network": cluster.network.as_str()})
}

fn workload(cluster: &Cluster) -> Vec<Value> {
    let mut pod_labels = labels(cluster);
    pod_labels["sidecar.istio.io/inject"] = "true".into();
    let port = |name: &str, number: u16| json!({"name": name, "containerPort": number, "protocol": "TCP"});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": GATEWAY, "namespace": SYSTEM_NAMESPACE, "labels": labels(cluster)}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": GATEWAY, "namespace": SYSTEM_NAMESPACE, "labels": labels(cluster)},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": GATEWAY, "istio": "eastwestgateway"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": pod_labels, "annotations": {"inject.istio.io/templates": "gateway"}},
                "spec": {
                    "serviceAccountName": GATEWAY,
                    "terminationGracePeriodSeconds": 30,
                    "containers": [{
                        "name": "istio-proxy",
                        "image": "auto",
                        // Only endpoints of its own network, or two gateways would send to each other in circles.
                        "env": [{"name": "ISTIO_META_REQUESTED_NETWORK_VIEW", "value": cluster.network.as_str()}],
                        "ports": [port("status-port", 15021), port("tls", 15443)],
                    }],
                },
            },
        }}),
    ]
}

/// Istiod is not exposed (no cluster has its control plane elsewhere), so 15012 and 15017 are not either.
fn service(cluster: &Cluster) -> Value {
    let port = |name: &str, number: u16| json!({"name": name, "port": number, "targetPort": number, "protocol": "TCP"});
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": GATEWAY, "namespace": SYSTEM_NAMESPACE, "labels": labels(cluster)},
        "spec": {"type": "LoadBalancer", "selector": {"app": GATEWAY, "istio": "eastwestgateway"},
            "ports": [port("status-port", 15021), port("tls", 15443)]}})
}

pub(super) fn expose(mesh: &Mesh) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
        "metadata": {"name": "cross-network-gateway", "namespace": SYSTEM_NAMESPACE, "labels": {}},
        "spec": {"selector": {"istio": "eastwestgateway"}, "servers": [{
            "port": {"number": 15443, "name": "tls", "protocol": "TLS"},
            "tls": {"mode": "AUTO_PASSTHROUGH"},
            "hosts": mesh.expose}]}})
}
