//! The fault corpus: causes of failure seeded one by one in a real lab mesh. The check must name each of them first; what
//! it says beside it must be said to follow; and when the seed is taken back it must say nothing at all.
//!
//! The causes that a lab cannot have, with the reasons, are in `crates/check/src/diagnose/tests/seeds.rs`, where all sixty
//! are seeded in snapshots. `STOLOS_CORPUS=all` seeds everything that is here; without it each mesh gets the few seeds that
//! are marked as a sample, so that the journey takes a minute and not ten.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use stolos_pki::{Authority, CaCerts};

use crate::tampering::restart;
use crate::world::{World, eventually, say, text};

const MESH: &str = "\
apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata: {name: corpus}
spec:
  clusters:
    - {name: east-1, context: east-1, network: network-east}
    - {name: east-2, context: east-2, network: network-east}
    - {name: west-1, context: west-1, network: network-west}
  samples: [helloworld, sleep]
";
const WITH_REMOTE: &str = "\
apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata: {name: corpus}
spec:
  clusters:
    - {name: east-1, context: east-1, network: network-east}
    - {name: west-1, context: west-1, network: network-west, controlPlane: {primary: east-1}}
  samples: [helloworld, sleep]
";
const EAST: &str = "east-1";
const WEST: &str = "west-1";
const SYSTEM: &str = "istio-system";
const GATEWAY: &str = "istio-eastwestgateway";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a mesh may take to show a fault, or to be well again.
const PATIENCE: Duration = Duration::from_secs(90);

/// An object of some kind: `apiVersion`, `kind`, namespace, name.
#[derive(Clone, Copy)]
struct Thing(&'static str, &'static str, &'static str, &'static str);

const SECRET_OF_WEST: Thing = Thing("v1", "Secret", SYSTEM, "istio-remote-secret-west-1");
const CACERTS: Thing = Thing("v1", "Secret", SYSTEM, "cacerts");
const GATEWAY_SERVICE: Thing = Thing("v1", "Service", SYSTEM, GATEWAY);
const EXPOSED: Thing = Thing("networking.istio.io/v1", "Gateway", SYSTEM, "cross-network-gateway");
const NAMESPACE: Thing = Thing("v1", "Namespace", "", SYSTEM);
const SAMPLE: Thing = Thing("v1", "Namespace", "", "sample");
const HELLO: Thing = Thing("v1", "Service", "sample", "helloworld");
const SLEEP: Thing = Thing("apps/v1", "Deployment", "sample", "sleep");
const ISTIOD: Thing = Thing("apps/v1", "Deployment", SYSTEM, "istiod");

/// One change, or its end.
enum Step {
    /// A JSON merge patch.
    Merge(&'static str, Thing, Value),
    /// A JSON patch.
    Json(&'static str, Thing, Value),
    Create(&'static str, Value),
    Delete(&'static str, Thing),
    /// `stolos lab fault …`
    Fault(&'static [&'static str]),
    /// The pods of an app start anew.
    Restart(&'static str, &'static str),
    /// `stolos apply`: the check's own advice for most causes.
    Apply,
}
use Step::{Apply, Create, Delete, Fault, Json, Merge, Restart};

struct Seed {
    id: &'static str,
    how: &'static str,
    steps: Vec<Step>,
    undo: Vec<Step>,
    /// Whether it is also seeded where not all are asked for.
    sample: bool,
}

fn seed(id: &'static str, how: &'static str, steps: Vec<Step>, undo: Vec<Step>) -> Seed {
    Seed { id, how, steps, undo, sample: false }
}

/// A seed that is always sown.
fn sample(seed: Seed) -> Seed {
    Seed { sample: true, ..seed }
}

/// A mesh that is well.
struct Mesh {
    world: World,
    file: PathBuf,
    clusters: BTreeMap<&'static str, Cluster>,
}

impl Mesh {
    async fn up() -> Self {
        Self::of(MESH, &[EAST, "east-2", WEST]).await
    }

    async fn of(mesh: &str, names: &[&'static str]) -> Self {
        let mut world = World::new();
        let file = world.write("mesh.yaml", mesh);
        world.up(&file).await;
        world.good(&["apply", "-f", text(&file), "--yes"]).await;
        let mut clusters = BTreeMap::new();
        for name in names.iter().copied() {
            clusters.insert(name, world.cluster(name).await);
        }
        let mesh = Self { world, file, clusters };
        mesh.is_well("just built").await;
        mesh
    }

    fn api(&self, cluster: &str, Thing(api_version, kind, namespace, _): Thing) -> Api<DynamicObject> {
        let resource = Resource::named(api_version, kind).unwrap();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource =
            ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &resource.plural);
        let client = self.clusters[cluster].client.clone();
        if namespace.is_empty() {
            Api::all_with(client, &resource)
        } else {
            Api::namespaced_with(client, namespace, &resource)
        }
    }

    async fn get(&self, cluster: &str, thing: Thing) -> Value {
        serde_json::to_value(self.api(cluster, thing).get(thing.3).await.unwrap()).unwrap()
    }

    async fn take(&self, steps: &[Step]) {
        for step in steps {
            let params = PatchParams::default();
            match step {
                Merge(cluster, thing, change) => {
                    self.api(cluster, *thing).patch(thing.3, &params, &Patch::Merge(change)).await.unwrap();
                }
                Json(cluster, thing, change) => {
                    let change = serde_json::from_value(change.clone()).unwrap();
                    self.api(cluster, *thing).patch(thing.3, &params, &Patch::Json::<()>(change)).await.unwrap();
                }
                Create(cluster, object) => {
                    let resource = Resource::of(object).unwrap();
                    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
                    let (namespace, api_version) = (text("/metadata/namespace"), text("/apiVersion"));
                    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
                    let gvk = GroupVersionKind::gvk(group, version, text("/kind"));
                    let resource = ApiResource::from_gvk_with_plural(&gvk, &resource.plural);
                    let client = self.clusters[cluster].client.clone();
                    let api: Api<DynamicObject> = match namespace {
                        "" => Api::all_with(client, &resource),
                        namespace => Api::namespaced_with(client, namespace, &resource),
                    };
                    let object = serde_json::from_value(object.clone()).unwrap();
                    api.create(&PostParams::default(), &object).await.unwrap();
                }
                Delete(cluster, Thing(api_version, kind, namespace, name)) => {
                    let resource = Resource::named(api_version, kind).unwrap();
                    let namespace = Some(*namespace).filter(|n| !n.is_empty());
                    objects::delete(&self.clusters[cluster].client, &resource, namespace, name, None).await.unwrap();
                }
                Fault(words) => {
                    let words = [&["lab", "fault"], *words, &["-f", text(&self.file)]].concat();
                    self.world.good(&words).await;
                }
                Restart(cluster, app) => restart(&self.clusters[cluster], app).await,
                Apply => drop(self.world.good(&["apply", "-f", text(&self.file), "--yes"]).await),
            }
        }
    }

    async fn check(&self) -> Value {
        self.world.run(&["check", "-f", text(&self.file), "-o", "json"]).await.document()
    }

    async fn is_well(&self, when: &str) {
        eventually(when, PATIENCE, || async {
            let report = self.check().await;
            if report["findings"] == json!([]) { Ok(()) } else { Err(format!("{:#}", report["findings"])) }
        })
        .await;
    }

    /// Seeds each, looks, takes it back; and says how good the check is.
    async fn corpus(&self, of: &str, seeds: Vec<Seed>) {
        let all = match std::env::var("STOLOS_CORPUS").unwrap_or_default().as_str() {
            "" => false,
            "all" => true,
            other => panic!("STOLOS_CORPUS={other}: it is `all` or not set"),
        };
        let (mut count, mut named, mut said, mut right, mut wrong) = (0, 0, 0, 0, Vec::new());
        for Seed { id, how, steps, undo, .. } in seeds.into_iter().filter(|seed| all || seed.sample) {
            let began = Instant::now();
            count += 1;
            self.take(&steps).await;
            let report = self.names_first(id).await;
            let findings = report["findings"].as_array().unwrap();
            if findings.first().is_some_and(|first| first["id"] == id) {
                named += 1;
            } else {
                wrong.push(format!("{id} ({how}) is not named first: {}", in_short(findings)));
            }
            said += findings.len();
            for finding in findings {
                let belongs = finding["id"] == id || finding["follows"].is_string();
                right += usize::from(belongs);
                if !belongs {
                    wrong.push(format!("{id} ({how}): also {}", in_short(std::slice::from_ref(finding))));
                }
            }
            let seen = began.elapsed();
            self.take(&undo).await;
            self.is_well(&format!("well again after {id} ({how})")).await;
            say(&format!("{id} ({how}): named after {seen:.1?}, well after {:.1?}", began.elapsed()));
        }
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        // Straight to the terminal: what a passing test prints is captured.
        let _ = writeln!(
            std::io::stderr(),
            "fault corpus, {of}: {named} of {count} seeds named first (recall {:.2}); {right} of {said} findings belong to \
             the seed (precision {:.2})",
            share(named, count),
            share(right, said)
        );
        assert!(count > 0, "nothing was seeded");
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    /// The first report that names this cause first, or the last one there was patience for.
    async fn names_first(&self, id: &str) -> Value {
        let began = Instant::now();
        loop {
            let report = self.check().await;
            if report["findings"][0]["id"] == id || began.elapsed() > PATIENCE {
                return report;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The mesh's own root, which the state folder holds.
    fn root(&self) -> Authority {
        let folder = self.world.state("corpus");
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        Authority::load(&read("root-cert.pem"), &read("root-key.pem"), SystemTime::now()).unwrap()
    }

    /// The kubeconfig for west in east's remote secret, changed.
    async fn kubeconfig(&self, change: impl Fn(&mut Value)) -> Step {
        let secrets: Api<Secret> = Api::namespaced(self.clusters[EAST].client.clone(), SYSTEM);
        let secret = secrets.get(SECRET_OF_WEST.3).await.unwrap();
        let bytes = secret.data.unwrap().remove(WEST).unwrap().0;
        let mut config: Value = serde_saphyr::from_str(std::str::from_utf8(&bytes).unwrap()).unwrap();
        change(&mut config);
        Merge(EAST, SECRET_OF_WEST, json!({"stringData": {WEST: config.to_string()}}))
    }

    /// A copy of an object under another name or in another namespace.
    async fn copy(&self, cluster: &str, thing: Thing, change: impl Fn(&mut Value)) -> Value {
        let mut object = self.get(cluster, thing).await;
        object["apiVersion"] = thing.0.into();
        object["kind"] = thing.1.into();
        let (name, namespace, labels) = (
            object["metadata"]["name"].clone(),
            object["metadata"]["namespace"].clone(),
            object["metadata"]["labels"].clone(),
        );
        object["metadata"] = json!({"name": name, "labels": labels});
        if namespace.is_string() {
            object["metadata"]["namespace"] = namespace;
        }
        change(&mut object);
        object
    }

    /// ConfigMap `istio` of a cluster with its `mesh` changed.
    async fn mesh_config(&self, cluster: &'static str, from: &str, to: &str) -> Step {
        let map = Thing("v1", "ConfigMap", SYSTEM, "istio");
        let object = self.get(cluster, map).await;
        let config = object["data"]["mesh"].as_str().unwrap();
        let changed = if from.is_empty() { format!("{config}{to}\n") } else { config.replace(from, to) };
        assert_ne!(changed, config);
        Merge(cluster, map, json!({"data": {"mesh": changed}}))
    }
}

fn in_short(findings: &[Value]) -> String {
    let one = |f: &Value| format!("{} {} {} {}", f["id"], f["cluster"], f["object"], f["seen"]);
    findings.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn files(certs: &CaCerts) -> Value {
    json!({"stringData": {"ca-cert.pem": certs.ca_cert, "ca-key.pem": certs.ca_key.expose(),
        "cert-chain.pem": certs.cert_chain, "root-cert.pem": certs.root_cert}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_and_networks() {
    let mesh = Mesh::up().await;
    let now = SystemTime::now();
    let good = json!({"data": mesh.get(WEST, CACERTS).await["data"]});
    let back = || vec![Merge(WEST, CACERTS, good.clone()), Restart(WEST, "istiod"), Restart(WEST, GATEWAY)];
    let foreign = Authority::new_root("Somebody Else", YEAR, now).unwrap();
    let foreign = foreign.issue_intermediate(WEST, "Somebody Else", "cluster.local", YEAR, now).unwrap();
    let root = mesh.root();
    let issue = |validity, at| root.issue_intermediate(WEST, "mesh", "cluster.local", validity, at).unwrap();
    let expired = issue(YEAR, now - 2 * YEAR);
    let mut mismatched = issue(YEAR, now);
    mismatched.ca_key = issue(YEAR, now).ca_key;
    let seeds = vec![
        sample(seed(
            "D-01",
            "another root",
            vec![Merge(WEST, CACERTS, files(&foreign)), Restart(WEST, "istiod")],
            back(),
        )),
        seed("D-02", "another root, and nobody restarted", vec![Merge(WEST, CACERTS, files(&foreign))], back()),
        seed("D-03", "a key is missing", vec![Merge(WEST, CACERTS, json!({"data": {"cert-chain.pem": null}}))], back()),
        seed("D-04", "the key of another certificate", vec![Merge(WEST, CACERTS, files(&mismatched))], back()),
        sample(seed("D-05", "an expired intermediate", vec![Merge(WEST, CACERTS, files(&expired))], back())),
        seed(
            "D-30",
            "another trust domain",
            vec![mesh.mesh_config(WEST, "cluster.local", "west.example").await],
            vec![Apply],
        ),
        sample(seed(
            "D-07",
            "no label",
            vec![Merge(WEST, NAMESPACE, json!({"metadata": {"labels": {"topology.istio.io/network": null}}}))],
            vec![Apply],
        )),
        seed(
            "D-07",
            "another label",
            vec![Merge(WEST, NAMESPACE, json!({"metadata": {"labels": {"topology.istio.io/network": "default"}}}))],
            vec![Apply],
        ),
        seed(
            "D-58",
            "meshNetworks of old",
            vec![Merge(
                EAST,
                Thing("v1", "ConfigMap", SYSTEM, "istio"),
                json!({"data": {"meshNetworks": "networks: {network-west: {endpoints: [{fromRegistry: gone}], gateways: [{address: 127.0.9.9, port: 443}]}}"}}),
            )],
            vec![Merge(EAST, Thing("v1", "ConfigMap", SYSTEM, "istio"), json!({"data": {"meshNetworks": null}}))],
        ),
        sample(seed("D-08", "one network that is cut", vec![Fault(&["partition", "east-2"])], vec![Fault(&["heal"])])),
    ];
    mesh.corpus("trust and networks", seeds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways() {
    let mesh = Mesh::up().await;
    let label = |value: Value| json!({"metadata": {"labels": {"topology.istio.io/network": value}}});
    let at = |path: &str, value: &str| json!([{"op": "replace", "path": path, "value": value}]);
    let deny = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "deny", "namespace": SYSTEM},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
    let proxy_protocol = |value: Value| json!({"metadata": {"annotations": {"service.beta.kubernetes.io/aws-load-balancer-proxy-protocol": value}}});
    let seeds = vec![
        sample(seed("D-10", "no Service", vec![Delete(WEST, GATEWAY_SERVICE)], vec![Apply])),
        seed("D-10", "no label", vec![Merge(WEST, GATEWAY_SERVICE, label(Value::Null))], vec![Apply]),
        seed(
            "D-11",
            "no outside address",
            vec![Json(
                WEST,
                GATEWAY_SERVICE,
                json!([{"op": "replace", "path": "/spec/type", "value": "ClusterIP"},
            {"op": "remove", "path": "/spec/ports/0/nodePort"}, {"op": "remove", "path": "/spec/ports/1/nodePort"}]),
            )],
            vec![Apply],
        ),
        sample(seed(
            "D-14",
            "a network that is cut off",
            vec![Fault(&["partition", "network-west"])],
            vec![Fault(&["heal"])],
        )),
        seed(
            "D-15",
            "no port 15443",
            vec![Merge(
                WEST,
                GATEWAY_SERVICE,
                json!({"spec": {"ports": [{"name": "https", "port": 443, "targetPort": 15443}]}}),
            )],
            vec![Apply],
        ),
        seed("D-16", "no Gateway", vec![Delete(WEST, EXPOSED)], vec![Apply]),
        sample(seed(
            "D-16",
            "no AUTO_PASSTHROUGH",
            vec![Json(WEST, EXPOSED, at("/spec/servers/0/tls/mode", "PASSTHROUGH"))],
            vec![Apply],
        )),
        seed(
            "D-16",
            "a selector for nobody",
            vec![Json(WEST, EXPOSED, at("/spec/selector/istio", "ingressgateway"))],
            vec![Apply],
        ),
        seed(
            "D-44",
            "a NetworkPolicy",
            vec![Create(WEST, deny)],
            vec![Delete(WEST, Thing("networking.k8s.io/v1", "NetworkPolicy", SYSTEM, "deny"))],
        ),
        seed(
            "D-50",
            "a gateway that nobody injected",
            vec![Json(
                WEST,
                Thing("apps/v1", "Deployment", SYSTEM, GATEWAY),
                at("/spec/template/metadata/labels/sidecar.istio.io~1inject", "false"),
            )],
            vec![Apply],
        ),
        seed(
            "D-52",
            "PROXY protocol",
            vec![Merge(WEST, GATEWAY_SERVICE, proxy_protocol("*".into()))],
            vec![Merge(WEST, GATEWAY_SERVICE, proxy_protocol(Value::Null))],
        ),
    ];
    mesh.corpus("gateways", seeds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remote_secrets() {
    let mesh = Mesh::up().await;
    let east = mesh.get(EAST, Thing("v1", "ConfigMap", "kube-system", "kube-root-ca.crt")).await;
    let others_ca = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(east["data"]["ca.crt"].as_str().unwrap())
    };
    let elsewhere = mesh.copy(EAST, SECRET_OF_WEST, |s| s["metadata"]["namespace"] = "default".into()).await;
    let twice = mesh.copy(EAST, SECRET_OF_WEST, |s| s["metadata"]["name"] = "another".into()).await;
    let foreign = mesh
        .copy(EAST, SECRET_OF_WEST, |s| {
            s["metadata"] = json!({"name": "rancher", "namespace": SYSTEM, "labels": {"istio/multiCluster": "true"}});
            s["data"] = json!({"c-9": s["data"][WEST]});
        })
        .await;
    let label = json!({"metadata": {"labels": {"istio/multiCluster": "yes"}}});
    let admin = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "oops"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "istio-reader-service-account", "namespace": SYSTEM}]});
    let delete = |namespace, name| vec![Delete(EAST, Thing("v1", "Secret", namespace, name))];
    let renamed = json!([{"op": "move", "from": "/data/west-1", "path": "/data/context-west-1"}]);
    let seeds = vec![
        sample(seed("D-18", "no Secret", vec![Delete(EAST, SECRET_OF_WEST)], vec![Apply])),
        sample(seed("D-19", "another namespace", vec![Create(EAST, elsewhere), Delete(EAST, SECRET_OF_WEST)],
            vec![Delete(EAST, Thing("v1", "Secret", "default", SECRET_OF_WEST.3)), Apply])),
        seed("D-19", "another label", vec![Merge(EAST, SECRET_OF_WEST, label)], vec![Apply]),
        seed("D-19", "another key", vec![Json(EAST, SECRET_OF_WEST, renamed)], vec![Delete(EAST, SECRET_OF_WEST), Apply]),
        sample(seed("D-19", "the key twice", vec![Create(EAST, twice)], delete(SYSTEM, "another"))),
        seed("D-20", "a program", vec![mesh.kubeconfig(|c| {
            c["users"][0]["user"] = json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "aws", "interactiveMode": "Never"}});
        }).await], vec![Apply]),
        sample(seed("D-21", "127.0.0.1", vec![mesh.kubeconfig(|c| c["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:6443".into()).await], vec![Apply])),
        seed("D-22", "another CA", vec![mesh.kubeconfig(|c| c["clusters"][0]["cluster"]["certificate-authority-data"] = others_ca.clone().into()).await], vec![Apply]),
        seed("D-23", "a revoked token", vec![Delete(WEST, Thing("v1", "Secret", SYSTEM, "stolos-peer-east-1"))], vec![Apply]),
        seed("D-24", "an old role", vec![Json(WEST, Thing("rbac.authorization.k8s.io/v1", "ClusterRole", "", "istio-reader-clusterrole-istio-system"),
            json!([{"op": "remove", "path": "/rules/1"}]))], vec![Apply]),
        seed("D-57", "an admin", vec![Create(WEST, admin)], vec![Delete(WEST, Thing("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "", "oops"))]),
        seed("D-55", "somebody else's", vec![Create(EAST, foreign)], delete(SYSTEM, "rancher")),
    ];
    mesh.corpus("remote secrets", seeds).await;

    // A cluster that left the file, and nobody applied it yet.
    let two =
        mesh.world.write("two.yaml", &MESH.lines().filter(|l| !l.contains("west-1")).collect::<Vec<_>>().join("\n"));
    let report = mesh.world.run(&["check", "-f", text(&two), "-o", "json"]).await.ends_with(2).document();
    assert_eq!(report["findings"][0]["id"], "D-60", "{:#}", report["findings"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_and_policies() {
    let mesh = Mesh::up().await;
    let object = |api_version: &str, kind: &str, name: &str, spec: Value| json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": "sample"}, "spec": spec});
    const NETWORKING: &str = "networking.istio.io/v1";
    const SECURITY: &str = "security.istio.io/v1";
    let made = |id, how, cluster: &'static str, thing: Thing, spec| {
        seed(id, how, vec![Create(cluster, object(thing.0, thing.1, thing.3, spec))], vec![Delete(cluster, thing)])
    };
    let injection = |value: Value| json!({"metadata": {"labels": {"istio-injection": value}}});
    let bare = object(
        "v1",
        "Pod",
        "bare",
        json!({"containers": [{"name": "c", "image": "curlimages/curl", "command": ["/bin/sleep", "infinity"]}]}),
    );
    let capture = |annotations: Value| json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
    let export = |to: Value| json!({"metadata": {"annotations": {"networking.istio.io/exportTo": to}}});
    let selected = |value: Value| json!({"metadata": {"labels": {"mesh": value}}});
    let injector =
        Thing("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "", "istio-sidecar-injector");
    let old = mesh
        .copy(WEST, injector, |w| {
            w["metadata"] = json!({"name": "istio-sidecar-injector-old", "labels": {"app": "sidecar-injector", "istio.io/rev": "old"}});
            let mut hook = w["webhooks"][0].clone();
            hook["clientConfig"]["service"]["name"] = "istiod-old".into();
            hook["namespaceSelector"] = json!({"matchLabels": {"istio.io/rev": "old"}});
            w["webhooks"] = json!([hook]);
        })
        .await;
    let second = mesh.copy(WEST, injector, |w| w["metadata"] = json!({"name": "istio-revision-tag-default", "labels": {"app": "sidecar-injector", "istio.io/tag": "default"}})).await;
    let validator = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": "istio-validator-old"},
        "webhooks": [{"name": "validation.istio.io", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Fail",
            "rules": [{"apiGroups": ["networking.istio.io"], "apiVersions": ["*"], "operations": ["CREATE"], "resources": ["*"]}],
            "clientConfig": {"service": {"name": "istiod-old", "namespace": SYSTEM}}}]});
    let webhook = |kind, name| Thing("admissionregistration.k8s.io/v1", kind, "", name);
    let values = mesh.get(WEST, Thing("v1", "ConfigMap", SYSTEM, "istio-sidecar-injector")).await;
    let values = values["data"]["values"].as_str().unwrap().replace("\"corpus\"", "\"other\"");
    let seeds = vec![
        seed(
            "D-29",
            "another mesh ID",
            vec![Merge(
                WEST,
                Thing("v1", "ConfigMap", SYSTEM, "istio-sidecar-injector"),
                json!({"data": {"values": values}}),
            )],
            vec![Apply],
        ),
        seed(
            "D-32",
            "another setting",
            vec![mesh.mesh_config(WEST, "", "outboundTrafficPolicy: {mode: REGISTRY_ONLY}").await],
            vec![Apply],
        ),
        sample(seed(
            "D-33",
            "no injection in one cluster",
            vec![Merge(WEST, SAMPLE, injection(Value::Null))],
            vec![Apply],
        )),
        seed(
            "D-34",
            "no Service and no DNS capture",
            vec![
                Merge(
                    WEST,
                    SLEEP,
                    capture(json!({"proxy.istio.io/config": "proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"false\"}"})),
                ),
                Delete(WEST, HELLO),
            ],
            vec![Merge(WEST, SLEEP, capture(Value::Null)), Apply],
        ),
        seed(
            "D-35",
            "another port name",
            vec![Json(WEST, HELLO, json!([{"op": "replace", "path": "/spec/ports/0/name", "value": "tcp"}]))],
            vec![Apply],
        ),
        sample(seed(
            "D-36",
            "a pod older than the label",
            vec![
                Merge(WEST, SAMPLE, injection(Value::Null)),
                Create(WEST, bare),
                Merge(WEST, SAMPLE, injection("enabled".into())),
            ],
            vec![Delete(WEST, Thing("v1", "Pod", "sample", "bare"))],
        )),
        sample(made(
            "D-37",
            "a destination in plaintext",
            WEST,
            Thing(SECURITY, "PeerAuthentication", "sample", "off"),
            json!({"mtls": {"mode": "DISABLE"}}),
        )),
        made(
            "D-37",
            "clients told to speak plaintext",
            EAST,
            Thing(NETWORKING, "DestinationRule", "sample", "plain"),
            json!({"host": "helloworld", "trafficPolicy": {"tls": {"mode": "DISABLE"}}}),
        ),
        seed(
            "D-38",
            "not exported",
            vec![Merge(WEST, HELLO, export(".".into()))],
            vec![Merge(WEST, HELLO, export(Value::Null))],
        ),
        made(
            "D-39",
            "a narrow Sidecar",
            EAST,
            Thing(NETWORKING, "Sidecar", "sample", "default"),
            json!({"egress": [{"hosts": ["istio-system/*"]}]}),
        ),
        seed(
            "D-40",
            "discoverySelectors",
            vec![
                Merge(EAST, SAMPLE, selected("yes".into())),
                Merge("east-2", SAMPLE, selected("yes".into())),
                mesh.mesh_config(EAST, "", "discoverySelectors: [{matchLabels: {mesh: \"yes\"}}]").await,
            ],
            vec![Apply, Merge(EAST, SAMPLE, selected(Value::Null)), Merge("east-2", SAMPLE, selected(Value::Null))],
        ),
        made(
            "D-41",
            "outlier detection",
            EAST,
            Thing(NETWORKING, "DestinationRule", "sample", "outliers"),
            json!({"host": "helloworld", "trafficPolicy": {"outlierDetection": {"consecutive5xxErrors": 3}}}),
        ),
        made(
            "D-42",
            "a subset here only",
            EAST,
            Thing(NETWORKING, "DestinationRule", "sample", "subset"),
            json!({"host": "helloworld.sample.svc.cluster.local", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}),
        ),
        made(
            "D-43",
            "principals of old",
            WEST,
            Thing(SECURITY, "AuthorizationPolicy", "sample", "only"),
            json!({"rules": [{"from": [{"source": {"principals": ["old.example/ns/sample/sa/sleep"]}}]}]}),
        ),
        seed(
            "D-48",
            "two default revisions",
            vec![Create(WEST, second)],
            vec![Delete(WEST, webhook("MutatingWebhookConfiguration", "istio-revision-tag-default"))],
        ),
        sample(seed(
            "D-49",
            "a webhook of a removed revision",
            vec![Create(WEST, old)],
            vec![Delete(WEST, webhook("MutatingWebhookConfiguration", "istio-sidecar-injector-old"))],
        )),
        seed(
            "D-59",
            "a validator of a removed revision",
            vec![Create(WEST, validator)],
            vec![Delete(WEST, webhook("ValidatingWebhookConfiguration", "istio-validator-old"))],
        ),
        seed(
            "D-31",
            "another version",
            vec![Json(
                WEST,
                ISTIOD,
                json!([{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "stolos/control:0.9.0"}]),
            )],
            vec![Apply],
        ),
        seed(
            "D-27",
            "the default name",
            vec![Json(
                WEST,
                ISTIOD,
                json!([{"op": "replace", "path": "/spec/template/spec/containers/0/env/0/value", "value": "Kubernetes"}]),
            )],
            vec![Apply],
        ),
    ];
    mesh.corpus("services and policies", seeds).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_and_its_remote() {
    let mesh = Mesh::of(WITH_REMOTE, &[EAST, WEST]).await;
    const NETWORKING: &str = "networking.istio.io/v1";
    const SLICE: Thing = Thing("discovery.k8s.io/v1", "EndpointSlice", SYSTEM, "istiod");
    let leaders =
        |value: Value| json!({"metadata": {"annotations": {"topology.istio.io/controlPlaneClusters": value}}});
    let elsewhere = json!([{"op": "replace", "path": "/endpoints/0/addresses/0", "value": "127.255.255.250"}]);
    let seeds = vec![
        sample(seed("D-45", "another leader", vec![Merge(WEST, NAMESPACE, leaders("other".into()))], vec![Apply])),
        seed("D-45", "no leader", vec![Merge(WEST, NAMESPACE, leaders(Value::Null))], vec![Apply]),
        sample(seed("D-46", "no way to the injector", vec![Delete(WEST, SLICE)], vec![Apply])),
        seed("D-46", "a way to nobody", vec![Json(WEST, SLICE, elsewhere)], vec![Apply]),
        sample(seed(
            "D-47",
            "no Gateway",
            vec![Delete(EAST, Thing(NETWORKING, "Gateway", SYSTEM, "istiod-gateway"))],
            vec![Apply],
        )),
        seed(
            "D-47",
            "no VirtualService",
            vec![Delete(EAST, Thing(NETWORKING, "VirtualService", SYSTEM, "istiod-vs"))],
            vec![Apply],
        ),
        seed("D-18", "the remote's secret", vec![Delete(EAST, SECRET_OF_WEST)], vec![Apply]),
    ];
    mesh.corpus("a primary and its remote", seeds).await;
}

/// The fifth system's own mistake: one name for two networks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_name_for_two_networks() {
    let mut world = World::new();
    let apart = "\
apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata: {name: anthos}
spec:
  clusters:
    - {name: one, context: one, network: network-one}
    - {name: two, context: two, network: network-two}
";
    let file = world.write("mesh.yaml", apart);
    world.up(&file).await;
    let default =
        world.write("default.yaml", &apart.replace("network-one", "default").replace("network-two", "default"));
    world.good(&["apply", "-f", text(&default), "--yes"]).await;
    let run = world.run(&["check", "-f", text(&default)]).await.ends_with(2);
    assert!(run.out.contains("Begin with D-08 in one"), "{}", run.out);
    assert!(run.out.contains("× D-08 one network's name, but no way between the pods"), "{}", run.out);

    // Two entries for one cluster are named before anything is installed: a second context for it.
    let kubeconfig = std::fs::read_to_string(world.path("kubeconfig")).unwrap();
    let mut kubeconfig: Value = serde_saphyr::from_str(&kubeconfig).unwrap();
    let contexts = kubeconfig["contexts"].as_array_mut().unwrap();
    let mut again = contexts.iter().find(|c| c["name"] == "one").unwrap().clone();
    again["name"] = "again".into();
    contexts.push(again);
    world.write("kubeconfig", &kubeconfig.to_string());
    let twice = world.write("twice.yaml", &apart.replace("context: two", "context: again"));
    let report = world.run(&["check", "--before", "-f", text(&twice), "-o", "json"]).await.ends_with(2).document();
    assert_eq!(report["findings"][0]["id"], "D-28", "{:#}", report["findings"]);
}

/// Nothing is left out without a word.
#[test]
fn every_cause_is_seeded_here_or_excused() {
    let here = include_str!("fault_corpus.rs");
    let excused = include_str!("../../../check/src/diagnose/tests/seeds.rs");
    let (_, excused) = excused.split_once("NOT_IN_A_LAB").unwrap();
    let (excused, _) = excused.split_once("];").unwrap();
    for cause in stolos_check::diagnose::CAUSES {
        let quoted = format!("\"{}\"", cause.id);
        assert!(here.contains(&quoted) != excused.contains(&quoted), "{}", cause.id);
    }
}
