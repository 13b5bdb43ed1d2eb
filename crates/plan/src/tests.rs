//! Laws: a plan carried out leaves nothing to plan, from wherever it starts and wherever it was cut short.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};
use stolos_pki::Authority;
use stolos_spec::{Mesh, Mtls, Sample, SourceText, read};

use crate::*;

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) fn mesh(clusters: &[(&str, &str)]) -> Mesh {
    let cluster = |(name, network): &(&str, &str)| json!({"name": name, "context": format!("context-{name}"), "network": network});
    let document = json!({
        "apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"},
        "spec": {
            "trust": {"organization": "mymesh.example.com"},
            "clusters": clusters.iter().map(cluster).collect::<Vec<_>>(),
            "samples": ["helloworld", "sleep"],
        },
    });
    read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh
}

fn three() -> Mesh {
    mesh(&[("east-1", "network-east"), ("east-2", "network-east"), ("west-1", "network-west")])
}

/// Clusters and a state folder that do what steps say.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) observed: Observed,
    root: Option<std::sync::Arc<Authority>>,
    made: u32,
}

impl World {
    pub(crate) fn new(names: &[&str]) -> Self {
        let now = UNIX_EPOCH + 20_000 * DAY;
        let state = StateFacts { folder: "/state".into(), ..StateFacts::default() };
        let mut world = Self {
            observed: Observed { now, clusters: Default::default(), hub: None, state, charts: vec![] },
            root: None,
            made: 0,
        };
        names.iter().for_each(|name| world.join(name));
        world
    }

    pub(crate) fn join(&mut self, name: &str) {
        let mut state = ClusterState {
            server: format!("https://{name}:6443"),
            authority: "the authority\n".into(),
            version: "v1.34.0+stolos".into(),
            is_lab: true,
            uid: format!("uid-{name}"),
            ..ClusterState::default()
        };
        state.objects.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}));
        self.observed.clusters.insert(name.into(), Sight::Seen(state));
    }

    pub(crate) fn state(&mut self, cluster: &str) -> &mut ClusterState {
        let hub = self.observed.hub.as_mut().filter(|_| cluster == stolos_spec::HUB);
        match hub.or(self.observed.clusters.get_mut(cluster)) {
            Some(Sight::Seen(state)) => state,
            _ => panic!("{cluster} is not there"),
        }
    }

    pub(crate) fn run(&mut self, plan: &Plan) {
        let mut done = BTreeSet::new();
        for step in &plan.steps {
            assert!(step.after.is_subset(&done), "{} is too early", step.id);
            self.carry_out(step);
            done.insert(step.id.clone());
        }
    }

    pub(crate) fn carry_out(&mut self, step: &Step) {
        let now = self.observed.now;
        self.made += 1;
        let uid = format!("made-{}", self.made);
        let cluster = step.cluster.clone().unwrap_or_default();
        match &step.change {
            Change::MakeRoot { organization, validity_seconds } => {
                let root = Authority::new_root(organization, Duration::from_secs(*validity_seconds), now).unwrap();
                self.observed.state.root = Some(RootFacts {
                    fingerprint: root.certificate().fingerprint(),
                    not_after: root.certificate().not_after(),
                    key: Ok(()),
                });
                self.root = Some(root.into());
            }
            Change::IssueIntermediate { organization, trust_domain, validity_seconds, secret } => {
                let validity = Duration::from_secs(*validity_seconds);
                let root = self.root.clone().unwrap();
                let made = root.issue_intermediate(&cluster, organization, trust_domain, validity, now).unwrap();
                let mut secret = secret.clone();
                secret["data"] = json!({
                    "ca-cert.pem": BASE64_STANDARD.encode(made.ca_cert),
                    "ca-key.pem": BASE64_STANDARD.encode(made.ca_key.expose()),
                    "cert-chain.pem": BASE64_STANDARD.encode(made.cert_chain),
                    "root-cert.pem": BASE64_STANDARD.encode(made.root_cert)});
                self.apply_secret(&cluster, &secret, &uid);
            }
            Change::Write { objects } => {
                for (index, object) in objects.iter().enumerate() {
                    let state = self.state(&cluster);
                    if let Some(namespace) = object["metadata"]["namespace"].as_str() {
                        let key = ObjectKey::new("v1", "Namespace", None, namespace);
                        assert!(state.objects.get(&key).is_some(), "{}: no namespace {namespace}", step.id);
                    }
                    let old = state.objects.get(&ObjectKey::of(object));
                    let mut new = applied(old, object);
                    if old.is_none() {
                        new["metadata"]["uid"] = format!("{uid}-{index}").into();
                    }
                    state.objects.put(new);
                }
            }
            Change::Link { read, server, authority, token_seconds, account, secret } => {
                let whose = account.clone().unwrap_or_else(|| Account {
                    place: read.clone(),
                    namespace: SYSTEM_NAMESPACE.into(),
                    name: READER_SERVICE_ACCOUNT.into(),
                    secret: peer_secret(&cluster),
                });
                let bound = ObjectKey::new("v1", "Secret", Some(&whose.namespace), &whose.secret);
                let account = ObjectKey::new("v1", "ServiceAccount", Some(&whose.namespace), &whose.name);
                let objects = &self.state(&whose.place).objects;
                let issued = now.duration_since(UNIX_EPOCH).unwrap().as_secs();
                let claims = json!({"iat": issued, "exp": issued + token_seconds, "kubernetes.io": {
                    "secret": {"uid": objects.get(&bound).unwrap()["metadata"]["uid"]},
                    "serviceaccount": {"uid": objects.get(&account).unwrap()["metadata"]["uid"]}}});
                let token = format!("head.{}.sign", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
                let mut secret = secret.clone();
                let text = link_kubeconfig(read, server, authority, &token);
                secret["data"][read] = BASE64_STANDARD.encode(text).into();
                self.apply_secret(&cluster, &secret, &uid);
            }
            Change::Join { member, labels, agent, .. } => {
                let id = self.state(member).uid.clone();
                let mode = if agent.is_some() { "Pull" } else { "Push" };
                self.agent(member, &uid, agent.as_deref());
                self.state(&cluster).objects.put(
                    json!({"apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster",
                    "metadata": {"name": member, "labels": labels, "uid": uid}, "spec": {"id": id, "syncMode": mode},
                    "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
                );
            }
            Change::Unjoin { member } => {
                let key = ObjectKey::new("cluster.karmada.io/v1alpha1", "Cluster", None, member);
                let gone = self.state(&cluster).objects.remove(&key).unwrap();
                assert!(is_owned("mymesh", &gone), "{key}");
                self.agent(member, &uid, None);
            }
            Change::Remove { objects } => {
                for (key, uid) in objects {
                    let state = self.state(&cluster);
                    let Some(gone) = state.objects.remove(key) else { continue };
                    assert_eq!(gone["metadata"]["uid"], **uid, "{key}");
                    let ours = is_owned("mymesh", &gone) || key.kind == "CustomResourceDefinition";
                    assert!(ours || key.name == ROOT_CONFIG_MAP, "{key} is not ours");
                    if key.kind == "Namespace" {
                        let inside: Vec<_> = state.objects.iter().map(|(k, _)| k.clone()).collect();
                        for inside in inside.iter().filter(|k| k.namespace.as_ref() == Some(&key.name)) {
                            state.objects.remove(inside);
                        }
                    }
                }
            }
            Change::Install { release, .. } => self.helm_install(&cluster, release, &uid),
            Change::Operate { operator, .. } => self.operate(&cluster, operator, &uid),
            Change::Withdraw { operators, .. } => {
                operators.iter().for_each(|gone| self.withdraw(&cluster, gone));
            }
            Change::Uninstall { releases, .. } => {
                releases.iter().for_each(|gone| self.helm_uninstall(&cluster, gone));
            }
            Change::Rollback { release, .. } => self.helm_rollback(&cluster, release, &uid),
            Change::Release { object } => {
                let state = self.state(&cluster);
                let live = state.objects.get(object).unwrap();
                let nothing = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": object.name}});
                let live = applied(Some(live), &nothing);
                state.objects.put(live);
            }
            Change::WithAddress { of, service, change } => {
                let key = ObjectKey::new("v1", "Service", Some(SYSTEM_NAMESPACE), service);
                let service = self.state(of).objects.get(&key).expect("the gateway's Service").clone();
                let change = change.with_address(crate::external_address(&service).expect("it has an address"));
                self.carry_out(&Step { change, ..step.clone() });
            }
            Change::Wait { conditions } => {
                for condition in conditions {
                    self.come_true(&cluster, condition);
                }
            }
        }
    }

    /// What Istio's charts make, as far as a plan looks at it.
    fn helm_install(&mut self, cluster: &str, release: &Release, uid: &str) {
        let annotations = json!({"meta.helm.sh/release-name": release.name,
            "meta.helm.sh/release-namespace": release.namespace, "helm.sh/resource-policy": "keep"});
        let marks = json!({"annotations": annotations, "labels": {"app.kubernetes.io/managed-by": "Helm"}});
        let chart = release.chart.reference.rsplit('/').next().unwrap();
        self.make(cluster, chart, &release.name, &release.values, &marks, uid);
        let version = release.chart.version.clone().unwrap_or_else(|| "1.28.0".into());
        let version = version.strip_prefix('~').map_or(version.clone(), |minor| minor.replace(".0", ".3"));
        let state = self.state(cluster);
        let before =
            state.objects.kind("Secret").filter(|(key, _)| key.name.contains(&format!(".{}.v", release.name))).count();
        let revision = before as u64 + 1;
        state.objects.put(crate::release::tests::secret(release, revision, "deployed", &version));
    }

    /// The chart and the values of that revision, as a new one.
    fn helm_rollback(&mut self, cluster: &str, back: &Rollback, uid: &str) {
        let known = crate::release::history(&self.state(cluster).objects, &back.namespace, &back.name);
        let then = known.iter().find(|release| release.revision == back.revision).expect("Helm remembers it");
        let (chart, version) = then.chart.clone().unwrap();
        let release = Release {
            name: back.name.clone(),
            namespace: back.namespace.clone(),
            chart: Chart { reference: chart, repository: None, version: Some(version) },
            values: then.values.clone(),
            mesh: then.mesh.clone().unwrap(),
            stuck: false,
        };
        self.helm_install(cluster, &release, uid);
    }

    /// As `istioctl` does it.
    fn operate(&mut self, cluster: &str, operator: &Operator, uid: &str) {
        let marks = json!({"labels": {"install.operator.istio.io/owning-resource": operator.name}});
        let spec = &operator.document["spec"];
        if spec["profile"] == "empty" {
            let gateway = &spec["components"]["ingressGateways"][0];
            let values = json!({"networkGateway": gateway["label"]["topology.istio.io/network"]});
            self.make(cluster, "gateway", gateway["name"].as_str().unwrap(), &values, &marks, uid);
        } else {
            let name = spec["revision"].as_str().map_or("istiod".to_owned(), |revision| format!("istiod-{revision}"));
            self.make(cluster, "base", "base", &Value::Null, &marks, uid);
            self.make(cluster, "istiod", &name, &spec["values"], &marks, uid);
        }
        let mut record = operator.record();
        record["metadata"]["uid"] = format!("{uid}-record").into();
        self.state(cluster).objects.put(record);
    }

    fn make(&mut self, cluster: &str, chart: &str, name: &str, values: &Value, marks: &Value, uid: &str) {
        let state = self.state(cluster);
        let metadata = |name: &str, app: &str| {
            let mut metadata = marks.clone();
            metadata["name"] = name.into();
            metadata["namespace"] = "istio-system".into();
            metadata["labels"]["app"] = app.into();
            metadata["uid"] = format!("{uid}-{name}").into();
            metadata
        };
        let app = if chart == "istiod" { "istiod" } else { name };
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(name, app),
            "spec": {"selector": {"matchLabels": {"app": name}}}});
        let made: Vec<Value> = match chart {
            "base" => {
                let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
                    "metadata": metadata(READER_SERVICE_ACCOUNT, "istio-reader")});
                let crds = stolos_k8s::istio::crds().into_iter().map(|mut crd| {
                    crd["metadata"]["annotations"] = marks["annotations"].clone();
                    crd["metadata"]["labels"] = marks["labels"].clone();
                    crd["metadata"]["uid"] = format!("{uid}-{}", crd["metadata"]["name"]).into();
                    crd
                });
                crds.chain([account]).collect()
            }
            "istiod" | "istiod-remote" => {
                let mut webhook = json!({"apiVersion": "admissionregistration.k8s.io/v1",
                    "kind": "MutatingWebhookConfiguration", "metadata": marks.clone(),
                    "webhooks": [{"name": "a", "clientConfig": {}}]});
                webhook["metadata"]["name"] = name.replace("istiod", "istio-sidecar-injector").into();
                if values["istiodRemote"]["enabled"] == true {
                    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                        "metadata": metadata(name, "istiod"),
                        "endpoints": [{"addresses": [values["global"]["remotePilotAddress"]]}]});
                    webhook["webhooks"][0]["clientConfig"]["service"]["path"] =
                        values["istiodRemote"]["injectionPath"].clone();
                    vec![slice, webhook]
                } else {
                    vec![deployment, webhook]
                }
            }
            _ => {
                let mut service = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata(name, name)});
                service["metadata"]["labels"]["topology.istio.io/network"] = values["networkGateway"].clone();
                vec![deployment, service]
            }
        };
        for mut object in made {
            // What is there stays the object that it is.
            if let Some(there) = state.objects.get(&ObjectKey::of(&object)) {
                object["metadata"]["uid"] = there["metadata"]["uid"].clone();
            }
            state.objects.put(object);
        }
    }

    /// What `istioctl` made goes, but for the definitions, and the memory of it.
    fn withdraw(&mut self, cluster: &str, operator: &Operator) {
        let state = self.state(cluster);
        let goes = |key: &ObjectKey, object: &Value| {
            let of =
                object["metadata"]["labels"]["install.operator.istio.io/owning-resource"] == operator.name.as_str();
            (of && key.kind != "CustomResourceDefinition") || *key == ObjectKey::of(&operator.record())
        };
        let keys: Vec<_> = state.objects.iter().filter(|(k, o)| goes(k, o)).map(|(k, _)| k.clone()).collect();
        assert!(!keys.is_empty(), "{} is not there", operator.name);
        keys.iter().for_each(|key| drop(state.objects.remove(key)));
    }

    /// Objects of the release go, but for what says that it is to be kept, and so does Helm's memory of it.
    fn helm_uninstall(&mut self, cluster: &str, gone: &Uninstall) {
        let state = self.state(cluster);
        let goes = |key: &ObjectKey, object: &Value| {
            let of = object["metadata"]["annotations"]["meta.helm.sh/release-name"] == gone.name.as_str();
            (of && key.kind != "CustomResourceDefinition")
                || key.name.starts_with(&format!("sh.helm.release.v1.{}.v", gone.name))
        };
        let keys: Vec<_> = state.objects.iter().filter(|(k, o)| goes(k, o)).map(|(k, _)| k.clone()).collect();
        assert!(!keys.is_empty(), "{} is not there", gone.name);
        keys.iter().for_each(|key| drop(state.objects.remove(key)));
    }

    /// An agent comes that is let in as the Cluster with this `uid`, or goes.
    fn agent(&mut self, cluster: &str, uid: &str, image: Option<&str>) {
        let now = self.observed.now;
        let objects = &mut self.state(cluster).objects;
        let Some(image) = image else {
            let gone: Vec<_> = objects.iter().map(|(key, _)| key.clone()).filter(|key| key.name == AGENT).collect();
            gone.iter().for_each(|key| drop(objects.remove(key)));
            return;
        };
        let authority = Authority::new_root("hub", Duration::from_secs(864_000), now).unwrap();
        let id = stolos_pki::SpiffeId::new("hub.stolos.dev", "karmada-cluster", format!("{cluster}.{uid}"));
        let request = stolos_pki::WorkloadRequest::new(&id).unwrap();
        let chain = authority.sign_workload(&request.csr_pem, &id, Duration::ZERO, now).unwrap();
        objects.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": AGENT}}));
        objects.put(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": AGENT, "namespace": AGENT},
            "data": {"agent.pem": BASE64_STANDARD.encode(&chain[0])}}));
        objects.put(
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": AGENT, "namespace": AGENT},
            "spec": {"template": {"spec": {"containers": [{"image": image}]}}}}),
        );
    }

    fn apply_secret(&mut self, cluster: &str, secret: &Value, uid: &str) {
        let state = self.state(cluster);
        let old = state.objects.get(&ObjectKey::of(secret));
        let mut new = applied(old, secret);
        if old.is_none() {
            new["metadata"]["uid"] = uid.into();
        }
        state.objects.put(new);
    }

    fn come_true(&mut self, cluster: &str, condition: &Condition) {
        let uid = format!("published-{}", self.made);
        let place = self.observed.clusters.keys().position(|name| name == cluster).unwrap_or_default();
        let roots = self.observed.seen().filter_map(|(_, state)| {
            let key = ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), CACERTS_SECRET);
            secret_text(state.objects.get(&key)?, "root-cert.pem")
        });
        let roots: Vec<_> = roots.collect();
        let state = self.state(cluster);
        let keys = condition.reads();
        let mut object = keys.first().and_then(|key| state.objects.get(key)).cloned();
        match (condition, &mut object) {
            (Condition::Available { .. }, Some(object)) => {
                object["status"] = json!({"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1});
            }
            (Condition::Trusted { .. }, Some(object)) => {
                for hook in object["webhooks"].as_array_mut().unwrap() {
                    hook["clientConfig"]["caBundle"] = "Y2E=".into();
                }
            }
            (Condition::Addressed { .. }, Some(object)) => {
                object["status"] = json!({"loadBalancer": {"ingress": [{"ip": format!("127.16.{}.16", place * 16)}]}});
            }
            (Condition::Established { .. }, Some(object)) => {
                object["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
            }
            (Condition::RootPublished { .. } | Condition::RootReceived { .. }, _) => {
                let own = keys.get(1).map(|key| secret_text(state.objects.get(key).unwrap(), "root-cert.pem").unwrap());
                let root = own.or_else(|| roots.first().cloned()).expect("somebody has a root");
                for namespace in [SYSTEM_NAMESPACE, "kube-system"] {
                    state.objects.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
                        "name": ROOT_CONFIG_MAP, "namespace": namespace, "uid": uid,
                        "labels": {"istio.io/config": "true"}}, "data": {"root-cert.pem": root}}));
                }
                return;
            }
            (Condition::Gone { object: key }, _) => {
                state.objects.remove(key);
                return;
            }
            (Condition::NoPods { .. } | Condition::Injects { .. } | Condition::Forgotten { .. }, _) => return,
            (condition, None) => panic!("{cluster}: nothing to wait for in {condition}"),
        }
        state.objects.extend(object);
    }
}

/// As the API server applies it.
fn applied(live: Option<&Value>, object: &Value) -> Value {
    let key = ObjectKey::of(object);
    let write = stolos_k8s::ssa::Write {
        manager: MANAGER,
        api_version: &key.api_version,
        subresource: "",
        now: "2026-01-01T00:00:00Z",
        shape: stolos_k8s::lists::Shape::of(&key.api_version, &key.kind),
        status_apart: true,
    };
    stolos_k8s::ssa::apply(live, object, &write, true).unwrap()
}

pub(crate) fn ids(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|s| format!("{} {}", s.action.symbol(), s.id)).collect()
}

#[test]
fn three_fresh_clusters_get_everything() {
    let plan = plan(&three(), &World::new(&["east-1", "east-2", "west-1"]).observed).unwrap();
    insta::assert_snapshot!(Show::default().text(&plan));
    let document = plan.document();
    assert_eq!(document["summary"], json!({"add": plan.summary().add, "change": 0, "remove": 0}));
    assert_eq!(document["kind"], "Plan");
    // A plan survives being stored.
    let stored = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), plan);
}

#[test]
fn one_network_needs_no_gateway() {
    let plan = plan(&mesh(&[("a", "n"), ("b", "n")]), &World::new(&["a", "b"]).observed).unwrap();
    assert!(plan.steps.iter().all(|step| !step.id.as_str().starts_with("gateways/")));
    assert!(plan.steps.iter().any(|step| step.id.as_str() == "links/a/b"));
}

#[test]
fn an_ingress_gateway_comes_where_the_file_wants_one_and_goes_with_the_wish() {
    let mut world = World::new(&["a", "b"]);
    let mut mesh = mesh(&[("a", "n"), ("b", "n")]);
    world.run(&plan(&mesh, &world.observed).unwrap());
    let values = json!({"replicaCount": 1, "autoscaling": {"enabled": true}, "service": {"type": "NodePort", "annotations": {"a/b": "c"}}});
    mesh.control_plane.gateways.ingress = values.as_object().cloned();
    mesh.samples = [Sample::Helloworld, Sample::Sleep, Sample::Bookinfo].into();
    let wanted = plan(&mesh, &world.observed).unwrap();
    let of_a: Vec<_> =
        ids(&wanted).into_iter().filter(|id| id.contains("gateways/a/") || id.contains("bookinfo-gateway")).collect();
    assert_eq!(
        of_a,
        [
            "+ gateways/a/ingress-address",
            "+ gateways/a/ingress",
            "… gateways/a/ingress-ready",
            "+ samples/a/bookinfo-gateway",
            "+ samples/b/bookinfo-gateway",
        ]
    );
    let notes: Vec<_> = wanted.notes.iter().map(|note| note.text.as_str()).collect();
    assert_eq!(notes, ["the small engine does not act on these values of gateways.ingress: autoscaling.enabled"]);
    world.run(&wanted);
    assert_eq!(ids(&plan(&mesh, &world.observed).unwrap()), Vec::<String>::new());
    let key = ObjectKey::new("v1", "Service", Some("istio-system"), "istio-ingressgateway");
    let service = world.state("a").objects.get(&key).unwrap();
    assert_eq!(
        (&service["spec"]["type"], &service["metadata"]["annotations"]["a/b"]),
        (&json!("NodePort"), &json!("c"))
    );
    mesh.control_plane.gateways.ingress = None;
    let unwanted = plan(&mesh, &world.observed).unwrap();
    assert!(unwanted.steps.iter().all(|step| step.action != Action::Add), "{:?}", ids(&unwanted));
    world.run(&unwanted);
    assert!(world.state("a").objects.get(&key).is_none());
}

#[test]
fn what_is_built_needs_nothing_and_printing_it_shows_no_secret() {
    let mut world = World::new(&["east-1", "east-2", "west-1"]);
    let first = plan(&three(), &world.observed).unwrap();
    world.run(&first);
    let second = plan(&three(), &world.observed).unwrap();
    assert_eq!(ids(&second), Vec::<String>::new());
    insta::assert_snapshot!(Show::default().text(&second), @r"
    Mesh mymesh, engine stolos 0.1.0
      east-1  https://east-1:6443  network-east, Kubernetes v1.34.0+stolos
      east-2  https://east-2:6443  network-east, Kubernetes v1.34.0+stolos
      west-1  https://west-1:6443  network-west, Kubernetes v1.34.0+stolos

    No changes: the clusters match the mesh.
    ");
}

#[test]
fn a_cluster_joins_and_leaves() {
    let mut world = World::new(&["east-1", "east-2", "west-1", "west-2"]);
    let before = three();
    world.run(&plan(&before, &world.observed).unwrap());
    let names = [
        ("east-1", "network-east"),
        ("east-2", "network-east"),
        ("west-1", "network-west"),
        ("west-2", "network-west"),
    ];
    let joining = plan(&mesh(&names), &world.observed).unwrap();
    // Those who run already hear of it only when its gateway has an address.
    let told = joining.steps.iter().find(|s| s.id.as_str() == "links/east-1/west-2").unwrap();
    assert!(told.after.iter().any(|id| id.as_str() == "gateways/west-2/ready"), "{:?}", told.after);
    assert!(joining.steps.iter().all(|s| s.action != Action::Remove));
    world.run(&joining);
    assert!(plan(&mesh(&names), &world.observed).unwrap().is_settled());

    for name in ["west-2", "east-1"] {
        world.state(name).objects.extend([
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop", "namespace": "default"}}),
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": "shop-1", "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "shop"}}, "endpoints": [{"addresses": ["10.0.0.1"]}]}),
        ]);
    }
    let leaving = plan(&before, &world.observed).unwrap();
    assert_eq!(leaving.blast.endpoints, ["default/shop: loses its endpoints in west-2, and keeps those in east-1"]);
    assert_eq!(leaving.blast.credentials.len(), 3);
    insta::assert_snapshot!(ids(&leaving).join("\n"));
    world.run(&leaving);
    assert_eq!(ids(&plan(&before, &world.observed).unwrap()), Vec::<String>::new());
    let owned = |state: &ClusterState| state.objects.iter().filter(|(_, o)| is_owned("mymesh", o)).count();
    assert_eq!(owned(world.state("west-2")), 0);
}

#[test]
fn a_former_cluster_that_is_dead_is_remembered_until_it_can_be_cleaned() {
    let mut world = World::new(&["a", "b", "c"]);
    world.run(&plan(&mesh(&[("a", "n"), ("b", "n"), ("c", "n")]), &world.observed).unwrap());
    let alive = world.observed.clusters.insert("c".into(), Sight::Unreachable { server: None, why: "no route".into() });
    let after = mesh(&[("a", "n"), ("b", "n")]);
    let leaving = plan(&after, &world.observed).unwrap();
    assert_eq!(
        ids(&leaving),
        ["- leftovers/a/forget-c", "- leftovers/a/revoke-c", "- leftovers/b/forget-c", "- leftovers/b/revoke-c"]
    );
    assert_eq!(leaving.notes[0].cluster.as_deref(), Some("c"));
    world.run(&leaving);
    assert!(plan(&after, &world.observed).unwrap().is_settled());
    // It comes back, and is cleaned.
    world.observed.clusters.insert("c".into(), alive.unwrap());
    let cleaning = plan(&after, &world.observed).unwrap();
    assert!(!cleaning.is_empty());
    world.run(&cleaning);
    let settled = plan(&after, &world.observed).unwrap();
    assert!(settled.is_settled() && settled.notes.is_empty(), "{:?} {:?}", ids(&settled), settled.notes);
}

#[test]
fn a_dead_cluster_stops_nobody_else() {
    let mut world = World::new(&["a", "b"]);
    world.observed.clusters.insert("c".into(), Sight::Unreachable { server: None, why: "no route".into() });
    let mesh = mesh(&[("a", "n"), ("b", "n"), ("c", "n")]);
    let plan_without = plan(&mesh, &world.observed).unwrap();
    assert!(plan_without.steps.iter().all(|s| s.cluster.as_deref() != Some("c")));
    world.run(&plan_without);
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
    // It comes to life.
    world.join("c");
    world.run(&plan(&mesh, &world.observed).unwrap());
    // And dies again: what the others know of it stays.
    world.observed.clusters.insert("c".into(), Sight::Unreachable { server: None, why: "no route".into() });
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
}

#[test]
fn tokens_and_certificates_are_renewed_in_time_and_not_before() {
    let mut world = World::new(&["a", "b"]);
    let mesh = mesh(&[("a", "n"), ("b", "n")]);
    world.run(&plan(&mesh, &world.observed).unwrap());
    world.observed.now += 14 * DAY;
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
    world.observed.now += 2 * DAY;
    let renewal = plan(&mesh, &world.observed).unwrap();
    assert_eq!(ids(&renewal), ["~ links/a/b", "~ links/b/a"]);
    assert_eq!(renewal.steps[0].because, "less than half of the life of the token for b is left (14 of 30 days)");
    world.observed.now += 690 * DAY;
    let renewal = plan(&mesh, &world.observed).unwrap();
    let reissued = renewal.steps.iter().find(|s| s.id.as_str() == "trust/a/cacerts").unwrap();
    assert_eq!(reissued.because, "the signing certificate ends in 24 days (renewed 30 days before)");
    assert_eq!(renewal.blast.certificates.len(), 2);
    world.run(&renewal);
    assert_eq!(ids(&plan(&mesh, &world.observed).unwrap()), Vec::<String>::new());
}

#[test]
fn a_revoked_credential_is_replaced() {
    let mut world = World::new(&["a", "b"]);
    let mesh = mesh(&[("a", "n"), ("b", "n")]);
    world.run(&plan(&mesh, &world.observed).unwrap());
    let key = ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), "stolos-peer-b");
    world.state("a").objects.remove(&key);
    let again = plan(&mesh, &world.observed).unwrap();
    assert_eq!(ids(&again), ["+ links/a/peers", "~ links/b/a"]);
    world.run(&again);
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
}

#[test]
fn what_blocks_is_said_all_at_once() {
    let mut world = World::new(&["a", "b"]);
    let mesh = mesh(&[("a", "n"), ("b", "n")]);
    world.run(&plan(&mesh, &world.observed).unwrap());
    let said = |world: &World, mesh: &Mesh| match plan(mesh, &world.observed) {
        Ok(_) => vec![],
        Err(blocked) => blocked.problems.into_iter().map(|p| p.id).collect::<Vec<_>>(),
    };

    let mut empty_folder = world.clone();
    empty_folder.observed.state.root = None;
    assert_eq!(said(&empty_folder, &mesh), ["no-root"]);

    let mut other_root = world.clone();
    let root = Authority::new_root("other", 10 * DAY, world.observed.now).unwrap();
    other_root.observed.state.root.as_mut().unwrap().fingerprint = root.certificate().fingerprint();
    assert_eq!(said(&other_root, &mesh), ["other-root", "other-root"]);
    let text = plan(&mesh, &other_root.observed).unwrap_err().to_string();
    assert!(text.contains(&root.certificate().fingerprint()) && text.contains("--state"), "{text}");

    let mut no_key = world.clone();
    no_key.observed.state.root.as_mut().unwrap().key = Err("no passphrase".into());
    assert_eq!(said(&no_key, &mesh), Vec::<String>::new());
    let secret = ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), CACERTS_SECRET);
    no_key.state("a").objects.remove(&secret);
    assert_eq!(said(&no_key, &mesh), ["root-key"]);

    let mut mixed = world.clone();
    mixed.state("b").is_lab = false;
    assert_eq!(said(&mixed, &mesh), ["engine-mixed"]);
    let mut real = mixed.clone();
    real.state("a").is_lab = false;
    assert_eq!(said(&real, &mesh), ["engine-changed", "engine-changed"]);

    let mut twice = world.clone();
    twice.state("b").uid = "uid-a".into();
    assert_eq!(said(&twice, &mesh), ["same-cluster"]);

    let mut foreign = World::new(&["a", "b"]);
    foreign.state("a").objects.put(json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "istiod", "namespace": "istio-system"}}));
    assert_eq!(said(&foreign, &mesh), ["foreign"]);
}

#[test]
fn a_namespace_that_was_there_is_shared_and_stays() {
    let mut world = World::new(&["a"]);
    world.state("a").objects.put(json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "istio-system", "uid": "before", "labels": {"theirs": "1"}}}));
    let mesh = mesh(&[("a", "n")]);
    world.run(&plan(&mesh, &world.observed).unwrap());
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
    let teardown_plan = teardown(&mesh, &world.observed).unwrap();
    assert!(ids(&teardown_plan).contains(&"~ teardown/a/release".to_owned()));
    world.run(&teardown_plan);
    let left: Vec<_> = world.state("a").objects.iter().map(|(k, _)| k.to_string()).collect();
    assert_eq!(left, ["Namespace istio-system", "Namespace kube-system"]);
    assert!(teardown(&mesh, &world.observed).unwrap().is_settled());
}

#[test]
fn teardown_leaves_what_is_not_ours_and_says_so() {
    let mut world = World::new(&["a"]);
    let mesh = mesh(&[("a", "n")]);
    world.run(&plan(&mesh, &world.observed).unwrap());
    world.state("a").objects.put(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "mine", "namespace": "sample", "uid": "mine"}}));
    let plan = teardown(&mesh, &world.observed).unwrap();
    let stays: Vec<_> = plan.leftovers.iter().map(|l| l.object.as_ref().unwrap().to_string()).collect();
    assert_eq!(stays, ["Namespace sample"]);
    world.run(&plan);
    let left: Vec<_> = world.state("a").objects.iter().map(|(k, _)| k.to_string()).collect();
    assert_eq!(left, ["ConfigMap sample/mine", "Namespace kube-system", "Namespace sample"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// From any half-built state, with any step lost to a crash, the next plan ends where an undisturbed one ends;
    /// and teardown leaves what was there before.
    #[test]
    fn planning_the_outcome_plans_nothing(
        networks in prop::collection::vec(0..3_usize, 1..5),
        cuts in prop::collection::vec(0..80_usize, 0..4),
        permissive in any::<bool>(),
        bookinfo in any::<bool>(),
    ) {
        let names = ["a", "b", "c", "d"];
        let nets = ["n0", "n1", "n2"];
        let pairs: Vec<_> = networks.iter().enumerate().map(|(i, n)| (names[i], nets[*n])).collect();
        let mut mesh = mesh(&pairs);
        if permissive { mesh.mtls = Mtls::Permissive; }
        if bookinfo { mesh.samples.insert(Sample::Bookinfo); }
        let mut world = World::new(&names[..pairs.len()]);
        for cut in &cuts {
            let mut plan = plan(&mesh, &world.observed).unwrap();
            plan.steps.truncate(*cut);
            world.run(&plan);
        }
        world.run(&plan(&mesh, &world.observed).unwrap());
        let again = plan(&mesh, &world.observed).unwrap();
        prop_assert!(again.is_settled(), "{:?}", ids(&again));

        for cut in &cuts {
            let mut plan = teardown(&mesh, &world.observed).unwrap();
            plan.steps.truncate(*cut);
            world.run(&plan);
        }
        world.run(&teardown(&mesh, &world.observed).unwrap());
        let again = teardown(&mesh, &world.observed).unwrap();
        prop_assert!(again.is_settled() && again.leftovers.is_empty(), "{:?}", ids(&again));
        for name in &names[..pairs.len()] {
            let left: Vec<_> = world.state(name).objects.iter().map(|(k, _)| k.to_string()).collect();
            prop_assert_eq!(left, vec!["Namespace kube-system".to_owned()]);
        }
    }
}

#[test]
fn a_renamed_cluster_is_not_torn_down() {
    let mut world = World::new(&["a", "b"]);
    world.run(&plan(&mesh(&[("a", "n"), ("b", "n")]), &world.observed).unwrap());
    let state = world.observed.clusters["b"].clone();
    world.observed.clusters.insert("c".into(), state.clone());
    let renamed = mesh(&[("a", "n"), ("c", "n")]);
    let plan_rename = plan(&renamed, &world.observed).unwrap();
    assert!(plan_rename.steps.iter().all(|s| s.action != Action::Remove || s.id.as_str().starts_with("leftovers/")));
    let removed: Vec<_> = ids(&plan_rename).into_iter().filter(|id| id.starts_with('-')).collect();
    assert_eq!(
        removed,
        ["- leftovers/a/forget-b", "- leftovers/a/revoke-b", "- leftovers/c/secret-istio-remote-secret-b"]
            .into_iter()
            .filter(|id| removed.contains(&(*id).to_owned()))
            .collect::<Vec<_>>()
    );
    world.run(&plan_rename);
    world.observed.clusters.remove("b");
    assert_eq!(ids(&plan(&renamed, &world.observed).unwrap()), Vec::<String>::new());
}

#[test]
fn what_is_in_a_namespace_that_goes_is_made_again_after_it_went() {
    let mut world = World::new(&["a"]);
    let mesh = mesh(&[("a", "n")]);
    world.run(&plan(&mesh, &world.observed).unwrap());
    let key = ObjectKey::new("v1", "Namespace", None, SYSTEM_NAMESPACE);
    let mut going = world.state("a").objects.get(&key).unwrap().clone();
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    world.state("a").objects.put(going);
    let again = plan(&mesh, &world.observed).unwrap();
    let namespace = again.steps.iter().find(|s| s.id.as_str() == "trust/a/namespace").unwrap();
    assert!(namespace.after.iter().any(|id| id.as_str() == "trust/a/namespace-gone"));
    assert!(
        ids(&again).contains(&"+ trust/a/cacerts".to_owned()) && ids(&again).contains(&"+ control/a/istiod".to_owned())
    );
    world.run(&again);
}

#[test]
fn a_change_of_network_is_a_change_and_nothing_else() {
    let mut world = World::new(&["a", "b"]);
    world.run(&plan(&mesh(&[("a", "n"), ("b", "n")]), &world.observed).unwrap());
    let moved = mesh(&[("a", "n"), ("b", "m")]);
    let plan_move = plan(&moved, &world.observed).unwrap();
    assert!(ids(&plan_move).contains(&"~ trust/b/namespace".to_owned()));
    assert_eq!(
        plan_move.notes[0].text,
        "its network changes from n to m: pods that are injected keep the old one until they are restarted"
    );
    let config = plan_move.steps.iter().find(|s| s.id.as_str() == "control/b/config").unwrap();
    assert_eq!(
        config.because,
        "ConfigMap istio-system/istio-sidecar-injector: data.values has `\"network\": \"n\",`, not `\"network\": \"m\",`"
    );
    world.run(&plan_move);
    assert!(plan(&moved, &world.observed).unwrap().is_settled());
    // And back: the gateways are not wanted any more.
    let back = mesh(&[("a", "n"), ("b", "n")]);
    let plan_back = plan(&back, &world.observed).unwrap();
    assert!(
        ids(&plan_back).contains(&"- leftovers/a/deployment-istio-eastwestgateway".to_owned()),
        "{:?}",
        ids(&plan_back)
    );
    world.run(&plan_back);
    assert!(plan(&back, &world.observed).unwrap().is_settled());
    let _: SystemTime = world.observed.now;
}

#[test]
fn what_takes_something_away_can_be_held_back_and_is_planned_again() {
    let mut world = World::new(&["east-1", "east-2", "west-1"]);
    world.run(&plan(&three(), &world.observed).unwrap());
    let two = mesh(&[("east-1", "network-east"), ("east-2", "network-east")]);
    let removals = |plan: &Plan| -> Vec<String> {
        plan.steps.iter().filter(|s| s.action == Action::Remove).map(|s| s.id.to_string()).collect()
    };
    let whole = plan(&two, &world.observed).unwrap();
    assert!(!removals(&whole).is_empty());
    let kept = whole.clone().without_removals();
    assert!(!kept.destroys() && kept.steps.len() < whole.steps.len());
    world.run(&kept);
    // Nothing is forgotten: the same goes in the end, and the rest is as it should be.
    let next = plan(&two, &world.observed).unwrap();
    assert_eq!(removals(&next), removals(&whole));
    assert!(next.clone().without_removals().is_empty(), "{:?}", ids(&next.without_removals()));
    world.run(&plan(&two, &world.observed).unwrap());
    assert!(plan(&two, &world.observed).unwrap().is_settled());
}

#[test]
fn a_credential_that_was_handed_out_stays_until_teardown() {
    let mut world = World::new(&["a", "b"]);
    let mesh = mesh(&[("a", "n"), ("b", "n")]);
    world.run(&plan(&mesh, &world.observed).unwrap());
    let handed_out = ours(
        "mymesh",
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "stolos-credential-reader",
            "namespace": SYSTEM_NAMESPACE, "uid": "u", "labels": {CREDENTIAL_LABEL: "reader"}}}),
    );
    world.state("a").objects.put(handed_out.clone());
    assert_eq!(ids(&plan(&mesh, &world.observed).unwrap()), Vec::<String>::new());
    let going = teardown(&mesh, &world.observed).unwrap();
    let goes = |step: &Step| step.diff.iter().any(|diff| diff.object == ObjectKey::of(&handed_out));
    assert!(going.steps.iter().any(goes), "{:?}", ids(&going));
}
