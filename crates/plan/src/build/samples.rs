//! Workloads that a mesh file asks for.

use serde_json::{Value, json};
use stolos_k8s::istio::{INJECTION_LABEL, REVISION_LABEL};
use stolos_spec::{Cluster, Role, Sample};

use super::{Reach, Scene, Sketch, id};
use crate::object::{SAMPLE_NAMESPACE, namespace, ours};
use crate::values::Minor;
use crate::{ClusterState, Condition, ObjectKey};

const BOOKINFO_NAMESPACE: &str = "bookinfo";
/// As Istio 1.28's samples/bookinfo/platform/kube/bookinfo.yaml.
const BOOKINFO_TAG: &str = "1.20.3";

pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    let samples = &scene.mesh.samples;
    for (cluster, state) in &scene.live {
        // v1 in the first cluster of the file, v2 in the second, and so on in turn.
        let place = scene.mesh.clusters.iter().position(|c| c.name == cluster.name).unwrap_or_default();
        let version = installed(state).unwrap_or(if place % 2 == 0 { "v1" } else { "v2" });
        let mut place = Place { scene, sketch, cluster, state };
        if samples.contains(&Sample::Helloworld) || samples.contains(&Sample::Sleep) {
            place.namespace(SAMPLE_NAMESPACE);
        }
        if samples.contains(&Sample::Helloworld) {
            let deployment = format!("helloworld-{version}");
            place.install("helloworld", SAMPLE_NAMESPACE, helloworld(version), &[&deployment]);
        }
        if samples.contains(&Sample::Sleep) {
            place.install("sleep", SAMPLE_NAMESPACE, sleep(), &["sleep"]);
        }
        if samples.contains(&Sample::Bookinfo) {
            place.namespace(BOOKINFO_NAMESPACE);
            let deployments: Vec<_> = BOOKS.iter().map(|(service, version)| format!("{service}-{version}")).collect();
            let deployments: Vec<_> = deployments.iter().map(String::as_str).collect();
            place.install("bookinfo", BOOKINFO_NAMESPACE, bookinfo(), &deployments);
            if scene.mesh.control_plane.gateways.ingress.is_some() && cluster.role == Role::Primary {
                place.configure("bookinfo-gateway", BOOKINFO_NAMESPACE, bookinfo_gateway(api(scene)));
            }
        }
    }
}

/// The API version of Istio's networking kinds: v1 from 1.22 on; v1beta1 is served by every version (B.4).
fn api(scene: &Scene<'_>) -> &'static str {
    let version = scene.mesh.control_plane.version.as_deref().filter(|_| scene.istio).and_then(Minor::of);
    if version.is_some_and(|minor| minor < Minor(1, 22)) { "v1beta1" } else { "v1" }
}

/// The version that is there stays, although a cluster before this one may have left the file since.
fn installed(state: &ClusterState) -> Option<&'static str> {
    ["v1", "v2"].into_iter().find(|version| {
        let name = format!("helloworld-{version}");
        state.objects.get(&ObjectKey::new("apps/v1", "Deployment", Some(SAMPLE_NAMESPACE), &name)).is_some()
    })
}

struct Place<'a, 'b> {
    scene: &'a Scene<'b>,
    sketch: &'a mut Sketch,
    cluster: &'a Cluster,
    state: &'a ClusterState,
}

impl Place<'_, '_> {
    fn id(&self, what: &str) -> String {
        id("samples", self.cluster.name.as_str(), what)
    }

    /// Ours where we make it. One that is there already must have injection on, which is not ours to switch.
    fn namespace(&mut self, name: &str) {
        let cluster = self.cluster.name.as_str();
        let key = ObjectKey::new("v1", "Namespace", None, name);
        let live = self.state.objects.get(&key);
        let step = self.id(&format!("namespace-{name}"));
        let mut wanted = ours(self.scene.mesh_name(), namespace(name));
        match &self.scene.mesh.control_plane.revision {
            // A control plane that has a revision answers to its name only (B.8).
            Some(revision) => wanted["metadata"]["labels"]["istio.io/rev"] = revision.as_str().into(),
            None => wanted["metadata"]["labels"]["istio-injection"] = "enabled".into(),
        }
        if let Some(live) = live.filter(|_| self.scene.reach == Reach::Held) {
            for label in [INJECTION_LABEL, REVISION_LABEL] {
                wanted["metadata"]["labels"][label] = live["metadata"]["labels"][label].clone();
            }
            stolos_k8s::meta::remove_nulls(&mut wanted);
        }
        match live {
            Some(live) if live["metadata"]["deletionTimestamp"].is_string() => {
                let gone = self.id(&format!("namespace-{name}-gone"));
                let until = vec![Condition::Gone { object: key.clone() }];
                self.sketch.wait(cluster, self.state, gone.clone(), vec![], until);
                let mut without = self.state.clone();
                without.objects.remove(&key);
                self.sketch.write(cluster, &without, step, vec![gone], vec![wanted]);
            }
            _ => self.sketch.write(cluster, self.state, step, vec![], vec![wanted]),
        }
    }

    /// Istio's own kinds: what a control plane reads.
    fn configure(&mut self, name: &str, namespace: &str, objects: Vec<Value>) {
        let cluster = self.cluster.name.as_str();
        let of_mesh = |mut object: Value| {
            object["metadata"]["namespace"] = namespace.into();
            ours(self.scene.mesh_name(), object)
        };
        let objects = objects.into_iter().map(of_mesh).collect();
        let before = ["crds-served", "ready"].map(|what| id("control", cluster, what));
        let after = [self.id(&format!("namespace-{namespace}"))].into_iter().chain(before).collect();
        self.sketch.write(cluster, self.state, self.id(name), after, objects);
    }

    fn install(&mut self, name: &str, namespace: &str, objects: Vec<Value>, deployments: &[&str]) {
        let cluster = self.cluster.name.as_str();
        let objects = objects.into_iter().map(|mut object| {
            object["metadata"]["namespace"] = namespace.into();
            ours(self.scene.mesh_name(), object)
        });
        // The injector must answer before, or the pods would be refused.
        let after = vec![self.id(&format!("namespace-{namespace}")), id("control", cluster, "ready")];
        let objects = objects.collect();
        self.sketch.write(cluster, self.state, self.id(name), after, objects);
        let available = |deployment: &&str| Condition::Available {
            namespace: namespace.to_owned(),
            deployment: (*deployment).to_owned(),
        };
        let until = deployments.iter().map(available).collect();
        let ready = self.id(&format!("{name}-ready"));
        self.sketch.wait(cluster, self.state, ready, vec![self.id(name)], until);
    }
}

/// The Service in every cluster, because a caller's cluster must know the name; one version of the workload in each.
fn helloworld(version: &str) -> Vec<Value> {
    let name = format!("helloworld-{version}");
    let container = json!({"name": "helloworld", "image": format!("istio/examples-helloworld-{version}"),
        "imagePullPolicy": "IfNotPresent", "resources": {"requests": {"cpu": "100m"}},
        "ports": [{"containerPort": 5000, "protocol": "TCP"}]});
    let labels = json!({"app": "helloworld", "version": version});
    vec![
        account("helloworld", json!({"app": "helloworld"})),
        service("helloworld", "http", 5000, 5000),
        deployment(&name, &labels, "helloworld", container),
    ]
}

fn sleep() -> Vec<Value> {
    let container = json!({"name": "sleep", "image": "curlimages/curl", "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sleep", "infinity"]});
    vec![
        account("sleep", json!({"app": "sleep"})),
        service("sleep", "http", 80, 80),
        deployment("sleep", &json!({"app": "sleep"}), "sleep", container),
    ]
}

const BOOKS: [(&str, &str); 6] = [
    ("details", "v1"),
    ("ratings", "v1"),
    ("reviews", "v1"),
    ("reviews", "v2"),
    ("reviews", "v3"),
    ("productpage", "v1"),
];

fn bookinfo() -> Vec<Value> {
    let mut objects = Vec::new();
    for name in ["details", "ratings", "reviews", "productpage"] {
        objects.push(account(&format!("bookinfo-{name}"), json!({"account": name})));
        objects.push(service(name, "http", 9080, 9080));
    }
    for (name, version) in BOOKS {
        let container = json!({"name": name, "imagePullPolicy": "IfNotPresent",
            "image": format!("docker.io/istio/examples-bookinfo-{name}-{version}:{BOOKINFO_TAG}"),
            "ports": [{"containerPort": 9080, "protocol": "TCP"}]});
        let labels = json!({"app": name, "version": version});
        objects.push(deployment(&format!("{name}-{version}"), &labels, &format!("bookinfo-{name}"), container));
    }
    objects
}

/// As Istio 1.28's samples/bookinfo/networking/bookinfo-gateway.yaml, but for the port: the Service's, which leads to
/// the pods' 8080, whatever the way the gateway was installed.
fn bookinfo_gateway(version: &str) -> Vec<Value> {
    let api = format!("networking.istio.io/{version}");
    let exact = |path: &str| json!({"uri": {"exact": path}});
    let prefix = |path: &str| json!({"uri": {"prefix": path}});
    vec![
        json!({"apiVersion": api, "kind": "Gateway", "metadata": {"name": "bookinfo-gateway", "labels": {}},
            "spec": {"selector": {"istio": "ingressgateway"}, "servers": [
                {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]}}),
        json!({"apiVersion": api, "kind": "VirtualService", "metadata": {"name": "bookinfo", "labels": {}},
            "spec": {"hosts": ["*"], "gateways": ["bookinfo-gateway"], "http": [{
                "match": [exact("/productpage"), prefix("/static"), exact("/login"), exact("/logout"), prefix("/api/v1/products")],
                "route": [{"destination": {"host": "productpage", "port": {"number": 9080}}}]}]}}),
    ]
}

fn account(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "labels": labels}})
}

fn service(name: &str, port_name: &str, port: u16, target: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "labels": {"app": name, "service": name}},
        "spec": {"selector": {"app": name},
            "ports": [{"name": port_name, "port": port, "targetPort": target, "protocol": "TCP"}]}})
}

fn deployment(name: &str, labels: &Value, account: &str, container: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {
                "serviceAccountName": account, "terminationGracePeriodSeconds": 1, "containers": [container]}}}})
}
