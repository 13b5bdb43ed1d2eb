//! ristioctl's two clusters, with API servers that let nobody of the other cluster in: both dial out to a hub, and each
//! control plane reads the other one through that. Proven with traffic, with a tunnel that is cut and healed, and taken
//! down to nothing.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use stolos_spec::{Api, Hub, Origin, Sample, SourceText, mesh_yaml, read};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::lists::{at_rest, identities};
use crate::programs;
use crate::setup_mesh::equal_lists;
use crate::world::{Run, World, eventually, finish, text};

const RISTIOCTL: &str = include_str!("../../../spec/tests/inputs/ristioctl/mesh.yaml");
const CLUSTERS: [&str; 2] = ["cluster1", "cluster2"];
const PATIENCE: Duration = Duration::from_secs(60);

/// What ristioctl's file says, and that each API server is reached through a hub; or that each cluster is to be its member.
fn mesh(through: bool) -> String {
    let mut mesh = read(&SourceText { path: "mesh.yaml".into(), text: RISTIOCTL.into() }, None).unwrap().mesh;
    mesh.origin = Origin::Mesh;
    mesh.control_plane.version = None;
    mesh.samples.insert(Sample::Sleep);
    mesh.hub = Some(Hub { context: "hub".into(), kubeconfig: Some("hub.yaml".into()), address: None, join: !through });
    for cluster in &mut mesh.clusters {
        cluster.api = through.then_some(Api::Tunnel);
    }
    mesh_yaml(&mesh)
}

struct Apart {
    world: World,
    kubectl: PathBuf,
    file: PathBuf,
    _hub: Child,
    /// What an agent is told: the hub's door, and its authority.
    door: [String; 2],
}

impl Apart {
    /// The lab, with private API servers where these are reached through the hub, and a hub that is in none of its networks.
    async fn start(through: bool) -> Option<Self> {
        let kubectl = programs::program("STOLOS_KUBECTL")?;
        let mut world = World::new();
        let file = world.write("mesh.yaml", &mesh(through));
        world.up(&file).await;
        if through {
            world.good(&["lab", "fault", "private", "cluster1", "cluster2", "-f", text(&file)]).await;
        }
        let flags = ["hub", "up", "--data", "hub", "--listen", "127.0.0.2:0", "--san", "127.0.0.2"];
        let mut command = world.stolos(flags);
        command.args(["--kubeconfig-out", "hub.yaml"]);
        let mut hub = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(hub.stdout.take().unwrap()).lines();
        let said = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it is not up").unwrap();
        assert!(said.is_some_and(|line| line.starts_with("export KUBECONFIG=")), "it did not start");
        Some(Self { world, kubectl, file, _hub: hub, door: Default::default() })
    }

    /// A one-time token.
    async fn token(&mut self) -> String {
        let said = self.world.good(&["hub", "token", "create", "--data", "hub"]).await.out;
        let words: Vec<&str> = said.split_whitespace().collect();
        let after = |flag: &str| words[words.iter().position(|word| *word == flag).unwrap() + 1].to_owned();
        self.door = [after("--hub"), after("--authority")];
        after("--token")
    }

    /// Starts the agent of a cluster, which ends with its handle, and waits until it is connected. It needs a token once.
    async fn agent(&self, cluster: &str, token: Option<&str>) -> Child {
        let [door, authority] = &self.door;
        let mut command = self.world.stolos(["agent", cluster, "--hub", door, "--authority", authority, "--data"]);
        command.arg(self.world.path(&format!("agent-{cluster}")));
        if let Some(token) = token {
            command.args(["--token", token]);
        }
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let said = async {
            let mut all = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                all.push(line);
                if all.last().is_some_and(|line| line.contains("✓ connected to")) {
                    return;
                }
            }
            panic!("it ended: {all:#?}");
        };
        tokio::time::timeout(PATIENCE, said).await.expect("it does not connect");
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        process
    }

    /// Runs kubectl against the hub.
    async fn kubectl(&self, args: &[&str]) -> Run {
        let mut command = Command::new(&self.kubectl);
        command.args(["--kubeconfig", "hub.yaml"]).args(args).env_clear().env("HOME", self.world.path(""));
        command.current_dir(self.world.path(""));
        finish(command).await
    }

    /// Runs kubectl against a cluster, through the hub.
    async fn through_hub(&self, cluster: &str, args: &[&str]) -> Run {
        let config = std::fs::read_to_string(self.world.path("hub.yaml")).unwrap();
        let server = config.lines().find_map(|line| line.trim().strip_prefix("server:")).unwrap().trim();
        let server = server.trim_matches('"');
        let server = format!("{server}/apis/cluster.karmada.io/v1alpha1/clusters/{cluster}/proxy");
        self.kubectl(&[&["--server", &server], args].concat()).await
    }

    /// The versions of helloworld that answer a client in a cluster.
    async fn heard(&self, from: &str) -> Vec<&'static str> {
        let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do curl -sS -m 5 helloworld:5000/hello; done";
        let command = ["exec", "-n", "sample", "deploy/sleep", "-c", "sleep", "--", "sh", "-c", script];
        let mut kubectl = Command::new(&self.kubectl);
        kubectl.args(["--kubeconfig", text(&self.world.path("kubeconfig")), "--context", from]).args(command);
        kubectl.env_clear().env("HOME", self.world.path(""));
        let said = finish(kubectl).await.ends_with(0).out;
        ["v1", "v2"].into_iter().filter(|version| said.contains(&format!("version: {version}"))).collect()
    }

    async fn status(&self) -> Value {
        self.world.run(&["status", "-f", text(&self.file), "-o", "json"]).await.document()
    }

    /// How many endpoints of helloworld in the second cluster the control plane of the first knows.
    async fn known(&self) -> Value {
        let report = self.world.good(&["status", "--services", "-f", text(&self.file), "-o", "json"]).await.document();
        let services = report["services"].as_array().unwrap();
        let service = services.iter().find(|service| service["name"] == "helloworld").unwrap();
        service["registries"]["cluster1"]["cluster2"].clone()
    }

    /// Ids of what `check` finds.
    async fn findings(&self) -> Vec<String> {
        let report = self.world.run(&["check", "-f", text(&self.file), "-o", "json"]).await.document();
        let findings = report["findings"].as_array().unwrap_or_else(|| panic!("{report:#}"));
        findings.iter().map(|finding| format!("{} {}", finding["id"], finding["seen"])).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ristioctls_mesh_with_api_servers_that_nobody_dials() {
    let Some(mut apart) = Apart::start(true).await else { return };
    let file = apart.file.clone();
    let file = text(&file);

    // The hub has neither of them yet: that is said, and nothing is written.
    let refused = apart.world.run(&["apply", "-f", file, "--yes"]).await;
    assert!(refused.code != Some(0) && refused.err.contains("it is not a member of that"), "{}", refused.err);

    let mut agents = Vec::new();
    for cluster in CLUSTERS {
        let token = apart.token().await;
        agents.push(apart.agent(cluster, Some(&token)).await);
    }
    eventually("both are members", PATIENCE, async || {
        let clusters = apart.kubectl(&["get", "clusters"]).await.out;
        let ready = clusters.lines().filter(|line| line.split_whitespace().skip(2).take(2).eq(["Pull", "True"]));
        if ready.count() == 2 { Ok(()) } else { Err(clusters) }
    })
    .await;
    let clusters = apart.world.clusters(&CLUSTERS).await;
    let mut before = Vec::new();
    for cluster in &clusters {
        before.push(identities(&at_rest(&cluster.client).await));
    }

    let plan = apart.world.run(&["plan", "-f", file]).await.ends_with(2).out;
    assert!(plan.contains("+ links/hub/cluster1.reads.cluster2"), "{plan}");
    apart.world.good(&["apply", "-f", file, "--yes"]).await;
    apart.world.good(&["plan", "-f", file]).await;
    let again = apart.world.good(&["apply", "-f", file, "--yes", "-o", "json"]).await.document();
    assert_eq!(again["report"]["writes"], 0, "{again:#}");
    // Nobody tried another way.
    let lab = apart.world.lab(&apart.file).await;
    let dialled = lab["refusals"].as_array().unwrap().iter().filter(|r| r["from"] != r["to"]);
    assert_eq!(dialled.filter(|r| CLUSTERS.contains(&r["from"].as_str().unwrap())).count(), 0, "{lab:#}");
    apart.world.proven(&apart.file, 4).await;
    for from in CLUSTERS {
        assert_eq!(apart.heard(from).await, ["v1", "v2"], "from {from}");
    }
    let status = apart.status().await;
    for cluster in status["clusters"].as_array().unwrap() {
        assert_eq!(
            (&cluster["tunnel"]["member"], &cluster["tunnel"]["cut"]),
            (&cluster["name"], &Value::Null),
            "{status:#}"
        );
    }
    let findings = apart.findings().await;
    assert!(findings.is_empty(), "{findings:#?}");

    // A person's way into a cluster that nobody can dial.
    let inside = ["exec", "-n", "sample", "deploy/sleep", "-c", "sleep", "--", "curl", "-sS", "helloworld:5000/hello"];
    let said = apart.through_hub("cluster2", &inside).await.ends_with(0);
    assert!(said.out.contains("version: v"), "{}", said.out);

    // The tunnel of one is cut: that is said with its age, and what is known goes on.
    drop(agents.pop());
    let scale =
        ["--context", "cluster2", "--kubeconfig", "kubeconfig", "scale", "-n", "sample", "deployment/helloworld-v2"];
    apart.kubectl(&[&scale[..], &["--replicas=2"]].concat()).await.ends_with(0);
    eventually("the cut is said", PATIENCE, async || {
        let status = apart.status().await;
        let cut = status["clusters"][1]["tunnel"]["cut"].as_str().unwrap_or_default().to_owned();
        if cut.contains("no agent of cluster") && cut.contains("since") { Ok(()) } else { Err(cut) }
    })
    .await;
    let shown = apart.world.good(&["status", "-f", file]).await.out;
    assert!(shown.contains("cluster2: the others do not reach its API server through the hub"), "{shown}");
    let findings = apart.findings().await;
    assert!(
        findings.iter().any(|f| f.starts_with("\"D-21\"") && f.contains("does not reach cluster2")),
        "{findings:#?}"
    );
    assert_eq!(apart.heard("cluster1").await, ["v1", "v2"]);
    assert_eq!(apart.known().await, 1, "nobody told it of the second");

    // Healed: what came meanwhile is known, without another word from anybody.
    agents.push(apart.agent("cluster2", None).await);
    eventually("the second endpoint", PATIENCE, async || {
        let known = apart.known().await;
        if known == 2 { Ok(()) } else { Err(known) }
    })
    .await;
    apart.kubectl(&[&scale[..], &["--replicas=1"]].concat()).await.ends_with(0);

    apart.world.good(&["teardown", "-f", file, "--yes"]).await;
    for (cluster, before) in clusters.iter().zip(&before) {
        equal_lists(cluster, before).await;
    }
    let left =
        apart.kubectl(&["get", "namespaces,clusterroles,clusterrolebindings", "-l", "stolos.dev/mesh", "-o", "name"]);
    assert_eq!(left.await.ends_with(0).out, "");

    // Who leaves the hub loses its account there too, as long as its tunnel is up; what is left of another is said.
    apart.world.good(&["hub", "unjoin", "cluster1", "--data", "hub"]).await;
    let roles = ["--context", "cluster1", "--kubeconfig", "kubeconfig", "get", "clusterroles,namespaces", "-o", "name"];
    eventually("nothing of the hub's", PATIENCE, async || {
        let left = apart.kubectl(&roles).await.ends_with(0).out;
        if left.contains("karmada") { Err(left) } else { Ok(()) }
    })
    .await;
    drop(agents.pop());
    let left = apart.world.run(&["hub", "unjoin", "cluster2", "--data", "hub"]).await.ends_with(2);
    assert!(left.out.contains("the hub's account in cluster2 is still there"), "{}", left.out);
}

/// `hub.join`: what can be dialled becomes a member with the mesh, and leaves with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_joins_what_can_be_dialled() {
    let Some(apart) = Apart::start(false).await else { return };
    let file = text(&apart.file);
    let clusters = apart.world.clusters(&CLUSTERS).await;
    let mut before = Vec::new();
    for cluster in &clusters {
        before.push(identities(&at_rest(&cluster.client).await));
    }
    let plan = apart.world.run(&["plan", "-f", file]).await.ends_with(2).out;
    assert!(plan.contains("+ hub/hub/join-cluster1"), "{plan}");
    apart.world.good(&["apply", "-f", file, "--yes"]).await;
    let members = apart.kubectl(&["get", "clusters"]).await.out;
    let ready = members.lines().filter(|line| line.split_whitespace().skip(2).take(2).eq(["Push", "True"]));
    assert_eq!(ready.count(), 2, "{members}");
    apart.world.good(&["plan", "-f", file]).await;
    apart.world.good(&["teardown", "-f", file, "--yes"]).await;
    assert_eq!(apart.kubectl(&["get", "clusters", "-o", "name"]).await.ends_with(0).out, "");
    for (cluster, before) in clusters.iter().zip(&before) {
        equal_lists(cluster, before).await;
    }
}
