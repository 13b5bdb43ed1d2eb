//! Two operators keep one mesh: what one of them does, what it leaves alone, and that the other takes over.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, ListParams};
use serde_json::Value;
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Child;

use crate::world::{World, eventually, finish, page, text};

const MESH: &str = "apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata: {name: kept}
spec:
  clusters:
  - {name: east, network: east}
  - {name: west, network: west}
";
const PATIENCE: Duration = Duration::from_secs(90);

/// An operator, and where its pages are.
struct Operator {
    process: Child,
    address: String,
    /// Its standard error is read to the end, so that it never waits for a reader.
    reading: tokio::task::JoinHandle<()>,
}

impl Operator {
    async fn start(world: &World, file: &Path, name: &str) -> Self {
        let mut command = world.stolos(["operator", "-f", text(file), "--interval", "1", "--listen", "127.0.0.1:0"]);
        command.args(["--identity", name]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let address = loop {
            let line = lines.next_line().await.unwrap().expect("it ended before it served anything");
            if let Some((_, rest)) = line.split_once("address=") {
                break rest.split_whitespace().next().unwrap().to_owned();
            }
        };
        let reading = tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self { process, address, reading }
    }

    /// Status and body of one of its pages.
    async fn page(&self, path: &str) -> Result<(u16, String), String> {
        page(&self.address, path).await
    }

    /// One of its figures.
    async fn figure(&self, name: &str) -> Result<f64, String> {
        let (_, page) = self.page("/metrics").await?;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.ok_or_else(|| format!("no {name} in\n{page}"))
    }

    async fn until(&self, name: &str, what: &str, is: impl Fn(f64) -> bool) -> f64 {
        eventually(what, PATIENCE, || async {
            let value = self.figure(name).await?;
            if is(value) { Ok(value) } else { Err(format!("{name} is {value}")) }
        })
        .await
    }

    /// Asks it to end, which it does in order.
    async fn end(mut self) {
        let pid = rustix::process::Pid::from_raw(self.process.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = tokio::time::timeout(PATIENCE, self.process.wait()).await.expect("it does not end").unwrap();
        assert_eq!(status.code(), Some(0));
        self.reading.await.unwrap();
    }
}

/// What the alerts and the dashboard ask for is what an operator and a control plane export.
async fn exports_what_is_alerted_about(world: &World, operator: &Operator) {
    let east = world.cluster("east").await;
    let pods: Api<Pod> = Api::namespaced(east.client.clone(), "istio-system");
    let istiod = pods.list(&ListParams::default().labels("app=istiod")).await.unwrap();
    let istiod = istiod.items[0].metadata.name.clone().unwrap();
    let ask = ["curl", "-sS", "-m", "5", "http://localhost:15014/metrics"];
    let mut process = pods.exec(&istiod, ask, &AttachParams::default()).await.unwrap();
    let mut exported = String::new();
    process.stdout().unwrap().read_to_string(&mut exported).await.unwrap();
    process.join().await.unwrap();
    exported += &operator.page("/metrics").await.unwrap().1;

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    let name = regex::Regex::new(r"\b(stolos_operator|pilot|citadel|istiod|sidecar_injection)_[a-z_]+\b").unwrap();
    for file in ["prometheus/rules.yaml", "grafana/stolos.json"] {
        let wanted = std::fs::read_to_string(root.join(file)).unwrap();
        let wanted: BTreeSet<&str> = name.find_iter(&wanted).map(|found| found.as_str()).collect();
        let missing: Vec<_> = wanted.iter().filter(|name| !exported.contains(**name)).collect();
        assert!(
            wanted.len() > 5 && missing.is_empty(),
            "{file} asks for {missing:?}, which nobody exports:\n{exported}"
        );
    }
}

/// The chart, by the real Helm: every object is one that an API server takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_chart_is_taken_by_an_api_server() {
    let Some(helm) = crate::programs::program("STOLOS_HELM") else { return };
    let mut world = World::new();
    let file = world.write("mesh.yaml", MESH);
    world.up(&file).await;
    let east = world.cluster("east").await;
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/charts/stolos-operator");
    let install = |more: &[&str]| {
        let chart = ["install", "keeper", text(&chart), "--kube-context", "east", "--namespace", "stolos"];
        let mut command = world.program(&helm, chart);
        command.args(["--create-namespace", "--set", "state.accessModes={ReadWriteMany}"]).args(more);
        finish(command)
    };
    let refused = install(&[]).await.ends_with(1);
    assert!(refused.err.contains("say which mesh: --set-file mesh=mesh.yaml"), "{}", refused.err);
    let mesh = format!("mesh={}", text(&file));
    let values = "replicas=2,prune=true,verbosity=3,passphraseSecret=phrase";
    install(&["--set-file", &mesh, "--set", values]).await.ends_with(0);

    let get = |version: &str, kind: &str| {
        let (resource, client) = (Resource::named(version, kind).unwrap(), east.client.clone());
        async move { objects::get(&client, &resource, Some("stolos"), "keeper-stolos-operator").await.unwrap().unwrap() }
    };
    let config = get("v1", "ConfigMap").await;
    assert_eq!(config["data"]["mesh.yaml"], MESH);
    let deployment = get("apps/v1", "Deployment").await;
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let claim = pod["volumes"].as_array().unwrap().iter().find(|v| v["name"] == "state").unwrap();
    assert_eq!(
        claim["persistentVolumeClaim"]["claimName"],
        get("v1", "PersistentVolumeClaim").await["metadata"]["name"]
    );
    get("v1", "Service").await;
    // The arguments are ones that the binary takes.
    let args: Vec<_> = pod["containers"][0]["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    insta::assert_snapshot!(args.join("\n"), @r"
    operator
    --file=/etc/stolos/mesh/mesh.yaml
    --kubeconfig=/etc/stolos/kubeconfig/kubeconfig
    --state=/var/lib/stolos
    --interval=60
    --timeout=120
    --listen=0.0.0.0:8080
    --passphrase-file=/etc/stolos/passphrase/passphrase
    --prune
    -v
    -v
    ");
    let understood = world.run(&args).await.ends_with(1);
    assert!(understood.err.contains("could not read /etc/stolos/mesh/mesh.yaml"), "{}", understood.err);
}

async fn label(cluster: &Cluster) -> Option<String> {
    let namespaces = Resource::named("v1", "Namespace").unwrap();
    let found = objects::get(&cluster.client, &namespaces, None, "istio-system").await.unwrap()?;
    found["metadata"]["labels"]["topology.istio.io/network"].as_str().map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_keeps_the_mesh_and_another_takes_over() {
    let mut world = World::new();
    let file = world.write("mesh.yaml", MESH);
    world.up(&file).await;

    // From nothing.
    let first = Operator::start(&world, &file, "first").await;
    first.until("stolos_operator_last_success_timestamp_seconds", "the mesh is built", |at| at > 0.0).await;
    world.good(&["plan", "-f", text(&file)]).await;
    world.proven(&file, 4).await;
    assert_eq!(first.page("/healthz").await.unwrap().0, 200);
    assert_eq!(first.page("/readyz").await.unwrap().0, 200);
    first
        .until("stolos_operator_expiry_timestamp_seconds{cluster=\"east\",what=\"intermediate\"}", "its end", |end| {
            end > 1e9
        })
        .await;

    exports_what_is_alerted_about(&world, &first).await;

    // The other one stands by.
    let second = Operator::start(&world, &file, "second").await;
    let ready =
        || async { (second.page("/readyz").await?.0 == 200).then_some(()).ok_or_else(|| "not ready".to_owned()) };
    eventually("the second is ready", PATIENCE, ready).await;
    assert_eq!(
        (first.figure("stolos_operator_leader").await, second.figure("stolos_operator_leader").await),
        (Ok(1.0), Ok(0.0))
    );

    // Somebody changes what is Stolos' own.
    let east = world.cluster("east").await;
    assert_eq!(label(&east).await.as_deref(), Some("east"));
    let wrong = serde_json::json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "istio-system", "labels": {"topology.istio.io/network": "elsewhere"}}});
    let namespaces = Resource::of(&wrong).unwrap();
    objects::apply(&east.client, &namespaces, &wrong, "somebody", true).await.unwrap();
    let healed = || async {
        let label = label(&east).await;
        if label.as_deref() == Some("east") { Ok(()) } else { Err(format!("{label:?}")) }
    };
    eventually("the label is put right", PATIENCE, healed).await;

    // A cluster disappears from the file: nobody is there to be asked.
    std::fs::write(&file, MESH.replace("  - {name: west, network: west}\n", "")).unwrap();
    first.until("stolos_operator_held_back_steps", "the file is read again", |held| held > 0.0).await;
    let west = world.cluster("west").await;
    assert_eq!(label(&west).await.as_deref(), Some("west"), "west was taken out of the mesh");
    std::fs::write(&file, MESH).unwrap();
    first.until("stolos_operator_held_back_steps", "the file is read again", |held| held == 0.0).await;

    // One ends, the other goes on, with what is to be done now.
    first.end().await;
    second.until("stolos_operator_leader", "the second takes over", |leads| leads == 1.0).await;
    second.until("stolos_operator_last_success_timestamp_seconds", "its first round", |at| at > 0.0).await;
    world.good(&["plan", "-f", text(&file)]).await;
    world.proven(&file, 4).await;
    second.end().await;
    // A person can take everything away.
    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    assert_eq!(label(&east).await, None);
}
