//! The small engine's ingress gateways, where the mesh file wants them; and what of the values of Istio's chart
//! `gateway` the small engine acts on.

use serde_json::{Map, Value, json};
use stolos_spec::Role;

use super::control::leaves;
use super::{Scene, Sketch, gateways, id};
use crate::Condition;
use crate::object::{SYSTEM_NAMESPACE, ours};
use crate::values::INGRESS;

/// In every cluster that has a control plane: names and labels are Istio's.
pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    let values = &scene.mesh.control_plane.gateways;
    let of_mesh = [("eastwest", Some(&values.eastwest)), ("ingress", values.ingress.as_ref())];
    let of_mesh = of_mesh.into_iter().map(|(key, values)| (None, format!("gateways.{key}"), values));
    let own = scene.mesh.clusters.iter().filter_map(|cluster| Some((cluster.name.as_str(), cluster.gateway.as_ref()?)));
    let own = own.map(|(name, gateway)| (Some(name), "gateway.values".to_owned(), Some(&gateway.values)));
    for (cluster, key, values) in of_mesh.chain(own) {
        let unused = values.map(|values| Given(values).unused()).unwrap_or_default();
        if !unused.is_empty() {
            let unused = unused.join(", ");
            sketch.note(cluster, format!("the small engine does not act on these values of {key}: {unused}"));
        }
    }
    let Some(values) = &values.ingress else { return };
    let given = Given(values);
    for (cluster, state) in scene.live.iter().filter(|(cluster, _)| cluster.role == Role::Primary) {
        let name = cluster.name.as_str();
        let here = |what: &str| id("gateways", name, what);
        let service = ours(scene.mesh_name(), given.lay_over(service()));
        let addressed = service["spec"]["type"] == "LoadBalancer";
        let namespace = vec![id("trust", name, "namespace")];
        sketch.write(name, state, here("ingress-address"), namespace, vec![service]);
        let objects = workload(given.replicas()).into_iter().map(|object| ours(scene.mesh_name(), object)).collect();
        sketch.write(name, state, here("ingress"), vec![id("control", name, "ready")], objects);
        let mut until =
            vec![Condition::Available { namespace: SYSTEM_NAMESPACE.to_owned(), deployment: INGRESS.to_owned() }];
        if addressed {
            until.push(Condition::Addressed { namespace: SYSTEM_NAMESPACE.to_owned(), service: INGRESS.to_owned() });
        }
        sketch.wait(name, state, here("ingress-ready"), ["ingress-address", "ingress"].map(here).to_vec(), until);
    }
}

fn labels() -> Value {
    json!({"app": INGRESS, "istio": "ingressgateway"})
}

/// The ports of Istio's own profile: pods need no right to a port below 1024.
fn service() -> Value {
    let port = |name: &str, number: u16, target: u16| json!({"name": name, "port": number, "targetPort": target, "protocol": "TCP"});
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": INGRESS, "namespace": SYSTEM_NAMESPACE, "labels": labels()},
        "spec": {"type": "LoadBalancer", "selector": labels(),
            "ports": [port("status-port", 15021, 15021), port("http2", 80, 8080)]}})
}

fn workload(replicas: u64) -> Vec<Value> {
    let port = |name: &str, number: u16| json!({"name": name, "containerPort": number, "protocol": "TCP"});
    let ports = [port("status-port", 15021), port("http2", 8080)];
    let container = json!({"name": "istio-proxy", "image": "auto", "ports": ports});
    gateways::gateway(INGRESS, &labels(), &labels(), replicas, &container)
}

/// Values of Istio's chart `gateway`, as a mesh file gives them.
pub(super) struct Given<'a>(pub(super) &'a Map<String, Value>);

/// Those of a Service that are the Service's own fields.
const OF_SERVICE: [&str; 6] =
    ["type", "externalIPs", "loadBalancerIP", "loadBalancerClass", "loadBalancerSourceRanges", "externalTrafficPolicy"];

impl Given<'_> {
    fn service(&self, key: &str) -> Option<&Value> {
        self.0.get("service")?.get(key)
    }

    /// How many pods.
    pub(super) fn replicas(&self) -> u64 {
        self.0.get("replicaCount").and_then(Value::as_u64).unwrap_or(1)
    }

    /// The Service, as the values want it.
    pub(super) fn lay_over(&self, mut service: Value) -> Value {
        for field in OF_SERVICE {
            if let Some(value) = self.service(field) {
                service["spec"][field] = value.clone();
            }
        }
        if let Some(ports) = self.service("ports").filter(|ports| ports.as_array().is_some_and(|all| !all.is_empty())) {
            service["spec"]["ports"] = ports.clone();
        }
        if let Some(annotations) = self.service("annotations").and_then(Value::as_object) {
            service["metadata"]["annotations"] = annotations.clone().into();
        }
        service
    }

    /// The values that say something which is not done.
    fn unused(&self) -> Vec<String> {
        let mut found = Vec::new();
        leaves(self.0, "", &mut found);
        found.retain(|path| {
            let (first, rest) = path.split_once('.').unwrap_or((path, ""));
            let second = rest.split('.').next().unwrap_or_default();
            let of_service =
                first == "service" && (OF_SERVICE.contains(&second) || ["annotations", "ports"].contains(&second));
            !(of_service || path == "replicaCount")
        });
        found
    }
}
