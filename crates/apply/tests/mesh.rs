//! A mesh over real API servers, each in this process with a port of its own. There is no kubelet: [`Hand`] says of
//! every Deployment that it is available, and does what a control plane does.

#![allow(clippy::print_stderr, reason = "a test says what went wrong")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use stolos_apiserver::{Builder, Server};
use stolos_apply::{Clusters, Goal, Lock, News, Options, Report, State, Verdict, observe, run};
use stolos_cluster::Kubeconfig;
use stolos_cluster::objects::{self, Resource};
use stolos_plan::{Action, Plan, SYSTEM_NAMESPACE};
use stolos_spec::{Mesh, SourceText, read};

struct World {
    servers: BTreeMap<String, Server>,
    hands: Vec<tokio::task::JoinHandle<()>>,
    clusters: Clusters,
    state: State,
    folder: tempfile::TempDir,
}

impl World {
    async fn of(names: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (mut servers, mut hands, mut clusters) = (BTreeMap::new(), vec![], vec![]);
        for name in names {
            let server = Builder::new().version_suffix("stolos-lab").start().await.unwrap();
            clusters.push(connect(&server, name, folder.path()).await);
            hands.push(tokio::spawn(Hand(server.client()).run()));
            servers.insert((*name).to_owned(), server);
        }
        let state = State::at(folder.path().join("state"), None);
        Self { servers, hands, clusters: Clusters::of(clusters), state, folder }
    }

    async fn plan(&self, goal: Goal, mesh: &Mesh) -> Plan {
        goal.plan(mesh, &observe(mesh, &self.clusters, &self.state).await).unwrap()
    }

    async fn run(&self, goal: Goal, mesh: &Mesh) -> Report {
        let plan = self.plan(goal, mesh).await;
        let options = Options { patience: Duration::from_secs(20), ..Options::default() };
        let never = std::future::pending();
        let said = |news: News<'_>| {
            if let News::Failed(step, why) = news {
                eprintln!("{}: {why}", step.id);
            }
        };
        let report = run(goal, &plan, mesh, &self.clusters, &self.state, options, never, &said).await.unwrap();
        assert_eq!(report.verdict(), Verdict::Done, "{:?} {:?}", report.failed, report.skipped);
        report
    }

    /// Every object but events and Leases, by cluster and key, with UID and resource version.
    async fn everything(&self) -> BTreeMap<String, (String, String)> {
        let mut all = BTreeMap::new();
        for (name, server) in &self.servers {
            let client = server.client();
            for kind in stolos_k8s::kind::all().iter().filter(|kind| kind.has_verb("list")) {
                if ["Event", "Lease"].contains(&kind.kind) {
                    continue;
                }
                let resource = Resource {
                    api_version: kind.api_version(),
                    kind: kind.kind.to_owned(),
                    plural: kind.plural.to_owned(),
                    namespaced: kind.namespaced,
                };
                for object in objects::list(&client, &resource, None, None).await.unwrap() {
                    let meta = &object["metadata"];
                    let text = |field: &str| meta[field].as_str().unwrap_or_default().to_owned();
                    let key = format!("{name} {} {}/{}", kind.kind, text("namespace"), text("name"));
                    all.insert(key, (text("uid"), text("resourceVersion")));
                }
            }
        }
        all
    }

    async fn stop(self) {
        self.hands.iter().for_each(tokio::task::JoinHandle::abort);
        for (_, server) in self.servers {
            server.stop().await;
        }
    }
}

async fn connect(server: &Server, name: &str, folder: &Path) -> stolos_cluster::Cluster {
    let path = folder.join(format!("{name}.kubeconfig"));
    std::fs::write(&path, server.kubeconfig(name).to_string()).unwrap();
    let kubeconfig = Kubeconfig::find(Some(&path), None).unwrap();
    stolos_cluster::connect(&kubeconfig, name, name).await.unwrap()
}

/// What a kubelet, a load balancer and a control plane would do.
struct Hand(kube::Client);

impl Hand {
    async fn run(self) {
        loop {
            // Objects come and go between a look and a write; the next round sees them.
            let _ = self.round().await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn round(&self) -> Result<(), kube::Error> {
        for deployment in self.api("apps/v1", "Deployment", "deployments").list(&Default::default()).await? {
            let generation = deployment.metadata.generation;
            if deployment.data["status"]["observedGeneration"] == json!(generation) {
                continue;
            }
            let status = json!({"status": {"observedGeneration": generation, "replicas": 1, "updatedReplicas": 1,
                "availableReplicas": 1, "readyReplicas": 1}});
            self.status("apps/v1", "Deployment", "deployments", &deployment, status).await?;
        }
        for service in self.api("v1", "Service", "services").list(&Default::default()).await? {
            if service.data["spec"]["type"] == "LoadBalancer"
                && service.data["status"]["loadBalancer"]["ingress"].is_null()
            {
                let status = json!({"status": {"loadBalancer": {"ingress": [{"ip": "127.16.0.16"}]}}});
                self.status("v1", "Service", "services", &service, status).await?;
            }
        }
        self.control().await
    }

    async fn control(&self) -> Result<(), kube::Error> {
        let deployments = self.within("apps/v1", "Deployment", "deployments", SYSTEM_NAMESPACE);
        if deployments.get_opt("istiod").await?.is_none() {
            return Ok(());
        }
        let Some(cacerts) = self.within("v1", "Secret", "secrets", SYSTEM_NAMESPACE).get_opt("cacerts").await? else {
            return Ok(());
        };
        let root = cacerts.data["data"]["root-cert.pem"].as_str().unwrap_or_default().to_owned();
        let root = base64::prelude::BASE64_STANDARD.decode(root).unwrap_or_default();
        let webhooks = self.api(
            "admissionregistration.k8s.io/v1",
            "MutatingWebhookConfiguration",
            "mutatingwebhookconfigurations",
        );
        if let Some(mut found) = webhooks.get_opt("istio-sidecar-injector").await? {
            let mut changed = false;
            for hook in found.data["webhooks"].as_array_mut().into_iter().flatten() {
                // Pods cannot be created here, so a webhook without a server harms nobody.
                changed |= hook["clientConfig"]["caBundle"].as_str().unwrap_or_default().is_empty();
                hook["clientConfig"]["caBundle"] = base64::prelude::BASE64_STANDARD.encode(&root).into();
            }
            if changed {
                let by = PostParams { field_manager: Some("istiod".to_owned()), ..Default::default() };
                webhooks.replace("istio-sidecar-injector", &by, &found).await?;
            }
        }
        for namespace in self.api("v1", "Namespace", "namespaces").list(&Default::default()).await? {
            let name = namespace.metadata.name.unwrap_or_default();
            if namespace.metadata.deletion_timestamp.is_some() || name == "kube-public" {
                continue;
            }
            let maps = self.within("v1", "ConfigMap", "configmaps", &name);
            if maps.get_opt("istio-ca-root-cert").await?.is_none() {
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio-ca-root-cert",
                    "namespace": name, "labels": {"istio.io/config": "true"}},
                    "data": {"root-cert.pem": String::from_utf8_lossy(&root)}});
                maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await?;
                // It may have been removed since we looked, and what was there of its own with it.
                if deployments.get_opt("istiod").await?.is_none() {
                    maps.delete("istio-ca-root-cert", &Default::default()).await?;
                }
            }
        }
        Ok(())
    }

    fn resource(version: &str, kind: &str, plural: &str) -> ApiResource {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }

    fn api(&self, version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        Api::all_with(self.0.clone(), &Self::resource(version, kind, plural))
    }

    fn within(&self, version: &str, kind: &str, plural: &str, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.0.clone(), namespace, &Self::resource(version, kind, plural))
    }

    async fn status(
        &self,
        version: &str,
        kind: &str,
        plural: &str,
        object: &DynamicObject,
        status: Value,
    ) -> Result<(), kube::Error> {
        let (namespace, name) = (object.metadata.namespace.clone(), object.metadata.name.clone());
        let api = self.within(version, kind, plural, &namespace.unwrap_or_default());
        let by = PatchParams::default();
        api.patch_status(&name.unwrap_or_default(), &by, &Patch::Merge(status)).await.map(drop)
    }
}

fn mesh(names: &[&str]) -> Mesh {
    let cluster = |name: &&str| {
        let network = if name.starts_with("west") { "network-west" } else { "network-east" };
        json!({"name": name, "context": name, "network": network})
    };
    let document = json!({
        "apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"},
        "spec": {
            "trust": {"organization": "example.com"},
            "controlPlane": {"engine": "stolos"},
            "clusters": names.iter().map(cluster).collect::<Vec<_>>(),
            "samples": ["helloworld", "sleep"],
        },
    });
    read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.steps.iter().map(|s| format!("{} {} {}", s.action.symbol(), s.id, s.because)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_is_built_once_and_torn_down_to_what_was_there() {
    let world = World::of(&["east-1", "east-2", "west-1"]).await;
    let mesh = mesh(&["east-1", "east-2", "west-1"]);
    let before = world.everything().await;

    let built = world.run(Goal::Apply, &mesh).await;
    assert!(built.writes > 50);
    let again = world.plan(Goal::Apply, &mesh).await;
    assert_eq!(steps(&again), Vec::<String>::new());

    // The credential in a remote secret opens the other cluster, and no Secret of it.
    let east = world.servers["east-1"].client();
    let secrets = stolos_cluster::objects::Resource {
        api_version: "v1".into(),
        kind: "Secret".into(),
        plural: "secrets".into(),
        namespaced: true,
    };
    let secret =
        objects::get(&east, &secrets, Some(SYSTEM_NAMESPACE), "istio-remote-secret-west-1").await.unwrap().unwrap();
    let remote = stolos_k8s::istio::parse_remote_secret(&secret).unwrap();
    let config = stolos_cluster::from_kubeconfig_text(&remote["west-1"]).await.unwrap();
    let reader = stolos_cluster::client(config, std::sync::Arc::new(stolos_serve::HostNet::default())).unwrap();
    let services =
        stolos_cluster::objects::Resource { kind: "Service".into(), plural: "services".into(), ..secrets.clone() };
    let listed = objects::list(&reader, &services, None, None).await.unwrap();
    assert!(listed.iter().any(|s| s["metadata"]["name"] == "istio-eastwestgateway"));
    let refused = objects::list(&reader, &secrets, Some(SYSTEM_NAMESPACE), None).await.unwrap_err();
    assert_eq!(refused.status().unwrap().code, 403);

    // A second run writes nothing at all.
    let settled = world.everything().await;
    let second = world.run(Goal::Apply, &mesh).await;
    assert_eq!((second.writes, second.done.len()), (0, 0));
    assert_eq!(world.everything().await, settled);

    let teardown = world.plan(Goal::Teardown, &mesh).await;
    assert!(teardown.leftovers.is_empty(), "{:?}", teardown.leftovers);
    assert!(teardown.steps.iter().all(|s| [Action::Remove, Action::Wait].contains(&s.action)));
    world.run(Goal::Teardown, &mesh).await;
    let uids = |all: BTreeMap<String, (String, String)>| -> Vec<(String, String)> {
        all.into_iter().map(|(key, (uid, _))| (key, uid)).collect()
    };
    assert_eq!(uids(world.everything().await), uids(before));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_joins_leaves_and_loses_its_access() {
    let world = World::of(&["east-1", "west-1", "west-2"]).await;
    world.run(Goal::Apply, &mesh(&["east-1", "west-1"])).await;
    world.run(Goal::Apply, &mesh(&["east-1", "west-1", "west-2"])).await;

    let secrets =
        Resource { api_version: "v1".into(), kind: "Secret".into(), plural: "secrets".into(), namespaced: true };
    let west = world.servers["west-2"].client();
    let secret =
        objects::get(&west, &secrets, Some(SYSTEM_NAMESPACE), "istio-remote-secret-east-1").await.unwrap().unwrap();
    let remote = stolos_k8s::istio::parse_remote_secret(&secret).unwrap();
    let config = stolos_cluster::from_kubeconfig_text(&remote["east-1"]).await.unwrap();
    let reader = stolos_cluster::client(config, std::sync::Arc::new(stolos_serve::HostNet::default())).unwrap();
    let services = Resource { kind: "Service".into(), plural: "services".into(), ..secrets.clone() };
    objects::list(&reader, &services, None, None).await.unwrap();

    let two = mesh(&["east-1", "west-1"]);
    world.run(Goal::Apply, &two).await;
    assert_eq!(steps(&world.plan(Goal::Apply, &two).await), Vec::<String>::new());
    // A copy of its credential, kept outside, opens nothing any more.
    let refused = objects::list(&reader, &services, None, None).await.unwrap_err();
    assert_eq!(refused.status().map(|s| s.code), Some(401), "{refused}");
    let left = world.everything().await;
    assert!(!left.keys().any(|key| key.contains("west-2 ") && key.contains("istio-system")), "{left:?}");
    assert!(!left.keys().any(|key| key.contains("istio-remote-secret-west-2")));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cut_short_is_finished_by_the_next() {
    let world = World::of(&["east-1", "west-1"]).await;
    let mesh = mesh(&["east-1", "west-1"]);
    for (goal, cuts) in [(Goal::Apply, [1_u32, 7, 13, 25, 40]), (Goal::Teardown, [1, 3, 6, 9, 12])] {
        for cut in cuts {
            let plan = world.plan(goal, &mesh).await;
            // Stops as soon as so many steps are done.
            let (stop, mut stopped) = tokio::sync::watch::channel(0);
            let count = |news: News<'_>| {
                if matches!(news, News::Done(..)) {
                    stop.send_modify(|done| *done += 1);
                }
            };
            let interrupt = async {
                let _ = stopped.wait_for(|done| *done >= cut).await;
            };
            let options = Options::default();
            let report = run(goal, &plan, &mesh, &world.clusters, &world.state, options, interrupt, &count).await;
            assert!([Verdict::Interrupted, Verdict::Done].contains(&report.unwrap().verdict()));
        }
        world.run(goal, &mesh).await;
        assert_eq!(steps(&world.plan(goal, &mesh).await), Vec::<String>::new());
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_do_not_change_a_mesh_at_once() {
    let world = World::of(&["east-1"]).await;
    let mesh = mesh(&["east-1"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let other = State::at(elsewhere.path(), None);
    let held = Lock::take(&mesh, &world.clusters, &world.state).await.unwrap();
    let refused = Lock::take(&mesh, &world.clusters, &other).await.err().unwrap();
    assert!(refused.to_string().contains("Lease kube-system/stolos-mymesh in east-1"), "{refused}");
    // Dropped without being given back, as by a kill: its own folder may go on at once, others wait for its end.
    drop(held);
    let held = Lock::take(&mesh, &world.clusters, &world.state).await.unwrap();
    held.release().await;
    Lock::take(&mesh, &world.clusters, &other).await.unwrap().release().await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_cluster_is_reported_and_the_others_go_on() {
    let mut world = World::of(&["east-1", "east-2"]).await;
    let dead = world.servers.remove("east-2").unwrap();
    dead.stop().await;
    let mesh = mesh(&["east-1", "east-2"]);
    let plan = world.plan(Goal::Apply, &mesh).await;
    assert!(plan.members[1].unreachable.is_some());
    assert!(plan.steps.iter().all(|step| step.cluster.as_deref() != Some("east-2")));
    world.run(Goal::Apply, &mesh).await;
    assert_eq!(steps(&world.plan(Goal::Apply, &mesh).await), Vec::<String>::new());
    world.stop().await;
}

/// Kills a process of its own at many points of a run, as `kill -9` would, and lets the next one go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_killed_is_finished_by_the_next() {
    let names = ["east-1", "west-1"];
    let world = World::of(&names).await;
    let mesh = mesh(&names);
    let before = world.everything().await;
    let mut kills = 0;
    for goal in ["apply", "teardown"] {
        for count in 1..=8 {
            for point in ["journal", "write-before", "write-after"] {
                let child = tokio::process::Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "child", "--ignored"])
                    .env("STOLOS_CRASH_AT", format!("{point}:{count}"))
                    .env("CHILD_FOLDER", world.folder.path())
                    .env("CHILD_GOAL", goal)
                    .kill_on_drop(true)
                    .output();
                let ended = tokio::time::timeout(Duration::from_secs(60), child).await.unwrap().unwrap();
                match std::os::unix::process::ExitStatusExt::signal(&ended.status) {
                    Some(9) => kills += 1,
                    _ => assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr)),
                }
            }
        }
        let goal = if goal == "apply" { Goal::Apply } else { Goal::Teardown };
        world.run(goal, &mesh).await;
        assert_eq!(steps(&world.plan(goal, &mesh).await), Vec::<String>::new());
    }
    eprintln!("{kills} kills");
    assert!(kills > 20, "{kills}");
    assert_eq!(world.everything().await.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    world.stop().await;
}

/// The process that is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process of another test"]
async fn child() {
    let Some(folder) = std::env::var_os("CHILD_FOLDER").map(std::path::PathBuf::from) else { return };
    let goal = if std::env::var("CHILD_GOAL").unwrap() == "apply" { Goal::Apply } else { Goal::Teardown };
    let mut clusters = vec![];
    for name in ["east-1", "west-1"] {
        let kubeconfig = Kubeconfig::find(Some(&folder.join(format!("{name}.kubeconfig"))), None).unwrap();
        clusters.push(stolos_cluster::connect(&kubeconfig, name, name).await.unwrap());
    }
    let (clusters, state, mesh) =
        (Clusters::of(clusters), State::at(folder.join("state"), None), mesh(&["east-1", "west-1"]));
    let plan = goal.plan(&mesh, &observe(&mesh, &clusters, &state).await).unwrap();
    let never = std::future::pending();
    let report =
        run(goal, &plan, &mesh, &clusters, &state, Options::default(), never, &stolos_apply::Silent).await.unwrap();
    assert_eq!(report.verdict(), Verdict::Done, "{:?}", report.failed);
}

/// Every call takes 20 ms longer: what grows with the number of clusters must be the work, not the waiting.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: run it alone, in release"]
async fn far_away_clusters() {
    for count in [3, 10] {
        let names: Vec<String> =
            (0..count).map(|n| format!("{}-{n}", if n % 3 == 2 { "west" } else { "east" })).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut world = World::of(&names).await;
        let far = names.iter().map(|name| {
            let near = world.clusters.get(name).unwrap();
            let client = kube::Client::new(Far(near.client.clone()), "default");
            stolos_cluster::Cluster { client, ..near }
        });
        world.clusters = Clusters::of(far.collect::<Vec<_>>());
        let mesh = mesh(&names);
        let started = std::time::Instant::now();
        let report = world.run(Goal::Apply, &mesh).await;
        let total = started.elapsed();
        eprintln!(
            "{count} clusters: {total:?} in all, {:?} for {} steps, {} writes",
            report.took,
            report.done.len(),
            report.writes
        );
        world.stop().await;
    }
}

#[derive(Clone)]
struct Far(kube::Client);

impl tower::Service<http::Request<kube::client::Body>> for Far {
    type Response = http::Response<kube::client::Body>;
    type Error = tower::BoxError;
    type Future = futures::future::BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<kube::client::Body>) -> Self::Future {
        let near = self.0.clone();
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(near.send(request).await?)
        })
    }
}
