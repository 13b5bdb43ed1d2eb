//! ristioctl's two clusters, with API servers that let nobody of the other cluster in: both dial out to a hub, and each
//! control plane reads the other one through that. Proven with traffic, with a tunnel that is cut and healed, and taken
//! down to nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::Value;
use stolos_cluster::objects::{self, Resource};
use stolos_cluster::{Cluster, Kubeconfig, connect};
use stolos_spec::{Api, Hub, Join, Origin, Sample, SourceText, mesh_yaml, read};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::bundle::{secrets, unpacked};
use crate::hub::{Invitation, agent};
use crate::lists::{all_equal_lists, everything, lists_at_rest, meant};
use crate::programs;
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
    mesh.hub = Some(Hub {
        context: "hub".into(),
        kubeconfig: Some("hub.yaml".into()),
        address: None,
        join: (!through).then_some(Join::Dialled),
    });
    for cluster in &mut mesh.clusters {
        cluster.api = through.then_some(Api::Tunnel);
    }
    mesh_yaml(&mesh)
}

pub(crate) struct Apart {
    pub(crate) world: World,
    kubectl: PathBuf,
    pub(crate) file: PathBuf,
    _hub: Child,
    /// What an agent is told: the hub's door, and its authority.
    door: [String; 2],
}

impl Apart {
    /// The lab, with private API servers where these are reached through the hub, and a hub that is in none of its networks.
    async fn start(through: bool) -> Option<Self> {
        let private = if through { &CLUSTERS[..] } else { &[] };
        Self::of(&mesh(through), private).await
    }

    /// The same of another mesh; the API servers of `private` let nobody of another cluster in.
    pub(crate) async fn of(mesh: &str, private: &[&str]) -> Option<Self> {
        let kubectl = programs::program("STOLOS_KUBECTL")?;
        let mut world = World::new();
        let file = world.write("mesh.yaml", mesh);
        world.up(&file).await;
        if !private.is_empty() {
            world.good(&[&["lab", "fault", "private"], private, &["-f", text(&file)]].concat()).await;
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
    async fn token(&mut self, cluster: &str) -> String {
        let said = self.world.good(&["hub", "token", "create", cluster, "--data", "hub"]).await.out;
        let invited = Invitation::of(&said);
        let flags = invited.flags(&[]);
        self.door = [invited.address.clone(), flags[1].to_owned()];
        flags[3].to_owned()
    }

    /// Starts the agent of a cluster, which ends with its handle, and waits until it is connected. It needs a token once.
    async fn agent(&self, cluster: &str, token: Option<&str>) -> Child {
        let [door, authority] = &self.door;
        let mut more = vec!["--authority", authority];
        more.extend(token.into_iter().flat_map(|token| ["--token", token]));
        agent(&self.world, cluster, &more, door).await
    }

    /// The agents of clusters that are let in for the first time, once both sides know it.
    pub(crate) async fn agents(&mut self, clusters: &[&str]) -> Vec<Child> {
        let mut agents = Vec::new();
        for cluster in clusters {
            let token = self.token(cluster).await;
            agents.push(self.agent(cluster, Some(&token)).await);
        }
        eventually("all are members", PATIENCE, async || self.members("Pull", clusters.len()).await).await;
        agents
    }

    /// So many clusters are members that are reached so, and ready; what else there is where they are not.
    async fn members(&self, mode: &str, count: usize) -> Result<(), String> {
        let said = self.kubectl(&["get", "clusters"]).await.out;
        let ready = said.lines().filter(|line| line.split_whitespace().skip(2).take(2).eq([mode, "True"]));
        if ready.count() == count { Ok(()) } else { Err(said) }
    }

    /// What the mesh called so has in the hub, as it was meant.
    pub(crate) async fn in_hub(&self) -> BTreeSet<String> {
        let kubeconfig = Kubeconfig::find(Some(&self.world.path("hub.yaml")), None).unwrap();
        let context = kubeconfig.current_context().unwrap().to_owned();
        let hub = connect(&kubeconfig, &context, "hub").await.unwrap();
        let mut all = everything(&hub.client).await.unwrap();
        all.retain(|_, object| object["metadata"]["labels"]["stolos.dev/mesh"].is_string());
        meant(&all)
    }

    /// Runs kubectl against the hub.
    async fn kubectl(&self, args: &[&str]) -> Run {
        finish(self.world.program(&self.kubectl, ["--kubeconfig", "hub.yaml"].iter().chain(args))).await
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
        let script = "for i in $(seq 40); do curl -sS -m 5 helloworld:5000/hello; done";
        let client = ["--context", from, "exec", "-n", "sample", "deploy/sleep", "-c", "sleep"];
        let kubectl = self.world.program(&self.kubectl, [&client[..], &["--", "sh", "-c", script]].concat());
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

    let mut agents = apart.agents(&CLUSTERS).await;
    let clusters = apart.world.clusters(&CLUSTERS).await;
    let before = lists_at_rest(&clusters).await;

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

    // Both doors, tried from a pod of each cluster: its own API server answers, the other's lets it not in.
    for from in CLUSTERS {
        for to in &clusters {
            let version = format!("{}/version", to.server.trim_end_matches('/'));
            let client =
                ["--context", from, "--kubeconfig", "kubeconfig", "exec", "-n", "sample", "deploy/sleep", "-c"];
            let curl = ["sleep", "--", "curl", "-sk", "-m", "5", &version];
            let run = apart.kubectl(&[&client[..], &curl].concat()).await;
            assert_eq!(run.code == Some(0), to.name == from, "from {from} to {}: {}{}", to.name, run.out, run.err);
        }
    }
    let lab = apart.world.lab(&apart.file).await;
    let refused = |from: &str, to: &str| {
        lab["refusals"].as_array().unwrap().iter().any(|refusal| refusal["from"] == from && refusal["to"] == to)
    };
    assert!(refused("cluster1", "cluster2") && refused("cluster2", "cluster1"), "{lab:#}");

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
    all_equal_lists(&clusters, &before).await;
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
    let before = lists_at_rest(&clusters).await;
    let plan = apart.world.run(&["plan", "-f", file]).await.ends_with(2).out;
    assert!(plan.contains("+ hub/hub/join-cluster1"), "{plan}");
    apart.world.good(&["apply", "-f", file, "--yes"]).await;
    apart.members("Push", 2).await.unwrap();
    apart.world.good(&["plan", "-f", file]).await;
    apart.world.good(&["teardown", "-f", file, "--yes"]).await;
    assert_eq!(apart.kubectl(&["get", "clusters", "-o", "name"]).await.ends_with(0).out, "");
    all_equal_lists(&clusters, &before).await;
}

const HELLO: &str = "apiVersion: apps/v1
kind: Deployment
metadata: {name: hello}
spec:
  replicas: 4
  selector: {matchLabels: {app: hello}}
  template:
    metadata: {labels: {app: hello}}
    spec: {containers: [{name: hello, image: stefanprodan/podinfo}]}
---
apiVersion: policy.karmada.io/v1alpha1
kind: PropagationPolicy
metadata: {name: hello}
spec:
  resourceSelectors: [{apiVersion: apps/v1, kind: Deployment, name: hello}]
  placement:
    replicaScheduling:
      replicaSchedulingType: Divided
      replicaDivisionPreference: Weighted
      weightPreference:
        staticWeightList:
        - {targetCluster: {clusterNames: [cluster1]}, weight: 1}
        - {targetCluster: {clusterNames: [cluster2]}, weight: 3}
";

/// `hub.join: agent`: one command installs agents in clusters that nobody dials, builds the mesh that reads through them, and
/// another takes both back. A workload is placed there, an agent dies and comes back by itself, and what nobody could get in
/// with any more is mended by the next run.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn apply_installs_agents_and_takes_them_back() {
    let installed = mesh(true).replace("  hub:\n", "  hub:\n    join: agent\n");
    let Some(apart) = Apart::of(&installed, &CLUSTERS).await else { return };
    let file = text(&apart.file);
    let clusters = apart.world.clusters(&CLUSTERS).await;
    let before = lists_at_rest(&clusters).await;
    let plan = apart.world.run(&["plan", "-f", file]).await.ends_with(2).out;
    assert!(plan.contains("+ hub/hub/join-cluster1") && plan.contains("+ links/cluster1/cluster2"), "{plan}");
    apart.world.good(&["apply", "-f", file, "--yes"]).await;
    apart.members("Pull", 2).await.unwrap();
    apart.world.good(&["plan", "-f", file]).await;
    apart.world.proven(&apart.file, 4).await;

    apart.world.write("hello.yaml", HELLO);
    apart.kubectl(&["apply", "-f", "hello.yaml"]).await.ends_with(0);
    let runs = async |cluster: &str| {
        let get = ["--kubeconfig", "kubeconfig", "--context", cluster, "get", "deployment", "hello", "-o"];
        apart.kubectl(&[&get[..], &["jsonpath={.status.readyReplicas}"]].concat()).await.out
    };
    let placed = async |wanted: [&str; 2]| {
        eventually("the workload is where it is to be", PATIENCE, async || {
            let now = [runs("cluster1").await, runs("cluster2").await];
            if now == wanted { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await
    };
    placed(["1", "3"]).await;

    // Its pod may do nothing but keep its own certificate.
    let may = |what: &'static [&'static str]| {
        let who =
            ["--as", "system:serviceaccount:stolos-agent:stolos-agent", "--kubeconfig", "kubeconfig", "--context"];
        let ask = [&["auth", "can-i"][..], what, &who[..], &["cluster2"]].concat();
        let apart = &apart;
        async move { apart.kubectl(&ask).await.out.trim() == "yes" }
    };
    assert!(may(&["get", "secrets/stolos-agent", "-n", "stolos-agent"]).await);
    assert!(!may(&["list", "secrets", "-n", "stolos-agent"]).await && !may(&["get", "pods", "-A"]).await);

    // A pod that dies comes back by itself, with the certificate that it kept.
    let agent = ["--kubeconfig", "kubeconfig", "--context", "cluster2", "-n", "stolos-agent"];
    apart.kubectl(&[&agent[..], &["delete", "pods", "--all"]].concat()).await.ends_with(0);
    apart.kubectl(&["scale", "deployment", "hello", "--replicas=8"]).await.ends_with(0);
    placed(["2", "6"]).await;
    apart.world.good(&["plan", "-f", file]).await;

    // What it kept was ended by hand, and nobody gave it a token: the next run does.
    apart.world.good(&["hub", "token", "create", "cluster2", "--data", "hub", "--rotate"]).await;
    let plan = apart.world.run(&["plan", "-f", file]).await.ends_with(2).out;
    assert!(plan.contains("the agent of cluster2 has no certificate that the hub takes"), "{plan}");
    apart.world.good(&["apply", "-f", file, "--yes"]).await;
    apart.world.good(&["plan", "-f", file]).await;
    apart.kubectl(&["scale", "deployment", "hello", "--replicas=4"]).await.ends_with(0);
    placed(["1", "3"]).await;

    // The hub takes no last copy away because its clusters leave: whose it is does.
    apart.kubectl(&["delete", "-f", "hello.yaml"]).await.ends_with(0);
    placed(["", ""]).await;
    apart.world.good(&["teardown", "-f", file, "--yes"]).await;
    assert_eq!(apart.kubectl(&["get", "clusters", "-o", "name"]).await.ends_with(0).out, "");
    assert_eq!(apart.in_hub().await, BTreeSet::new());
    all_equal_lists(&clusters, &before).await;
}

/// The credential of `cluster1` for `cluster2`, as its control plane has it.
async fn held(cluster: &Cluster) -> (Value, String) {
    let kind = Resource::named("v1", "Secret").unwrap();
    let secret = objects::get(&cluster.client, &kind, Some("istio-system"), "istio-remote-secret-cluster2").await;
    let secret = secret.unwrap().expect("a remote secret");
    let text = BASE64_STANDARD.decode(secret["data"]["cluster2"].as_str().unwrap()).unwrap();
    (secret, String::from_utf8(text).unwrap())
}

/// The same kubeconfig with a token whose life is as good as over. Nobody accepts it: it is not what was signed.
fn aged(kubeconfig: &str) -> String {
    let (_, rest) = kubeconfig.split_once("token: ").unwrap();
    let token = rest.lines().next().unwrap().trim_matches(['"', ' ']);
    let parts: Vec<&str> = token.split('.').collect();
    let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    (claims["iat"], claims["exp"]) = ((now - 2_500_000).into(), (now + 3_000).into());
    let claims = BASE64_URL_SAFE_NO_PAD.encode(claims.to_string());
    kubeconfig.replace(token, &format!("{}.{claims}.{}", parts[0], parts[2]))
}

/// Whoever has the credential of `cluster1` for `cluster2` reads that member, as far as discovery goes, and nothing else:
/// neither writes there nor gets into a pod, reads no other member and nothing of the hub's own.
async fn may_read_one_member(apart: &Apart, kubeconfig: &str) {
    const OF: &str = "/apis/cluster.karmada.io/v1alpha1/clusters/cluster2/proxy";
    assert!(kubeconfig.contains(OF), "it leads elsewhere");
    let elsewhere = [(OF, "stolen"), (&OF.replace("cluster2", "cluster1"), "stolen-other"), ("", "stolen-hub")];
    for (path, name) in elsewhere {
        apart.world.write(&format!("{name}.yaml"), &kubeconfig.replace(OF, path));
    }
    let by = async |name: &str, args: &[&str]| {
        let file = format!("{name}.yaml");
        finish(apart.world.program(&apart.kubectl, [&["--kubeconfig", &file], args].concat())).await
    };
    let pods =
        by("stolen", &["get", "pods,services,endpointslices", "-n", "sample", "-o", "name"]).await.ends_with(0).out;
    assert!(pods.contains("pod/helloworld-v2") && pods.contains("service/helloworld"), "{pods}");
    let pod = pods.lines().find(|name| name.starts_with("pod/sleep")).unwrap();
    let cannot = |verb: &str| format!(r#"cannot {verb} resource "clusters/proxy""#);
    for (args, why) in [
        (&["create", "configmap", "mine", "-n", "sample"][..], cannot("create")),
        (&["exec", "-n", "sample", pod, "--", "id"], cannot("create")),
        // It may ask there what discovery asks, and the member refuses the rest.
        (&["get", "deployments", "-n", "sample"], r#"cannot list resource "deployments""#.to_owned()),
        (&["delete", "service", "helloworld", "-n", "sample"], cannot("delete")),
        (&["label", "service", "helloworld", "-n", "sample", "a=b"], cannot("patch")),
    ] {
        let refused = by("stolen", args).await.ends_with(1).err;
        assert!(refused.contains(&why), "{args:?}: {refused}");
    }
    // (kubectl forgets the words of an answer to what it asks first.)
    for (name, args) in [
        ("stolen-other", &["get", "--raw", "/api/v1/namespaces/sample/pods"][..]),
        ("stolen-hub", &["get", "clusters"]),
        ("stolen-hub", &["get", "secrets", "-A"]),
        ("stolen-hub", &["get", "works", "-A"]),
    ] {
        let refused = by(name, args).await.ends_with(1).err;
        assert!(refused.to_lowercase().contains("forbidden"), "{name} {args:?}: {refused}");
    }
}

/// What becomes of the tunnel's credentials with time: they are listed, judged, packed without being given away, renewed by
/// an operator, and end with the cluster that leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_through_the_hub_are_watched_renewed_and_taken_back() {
    let Some(mut apart) = Apart::start(true).await else { return };
    let file = apart.file.clone();
    let file = text(&file);
    let _agents = apart.agents(&CLUSTERS).await;
    apart.world.good(&["apply", "-f", file, "--yes"]).await;
    let clusters = apart.world.clusters(&CLUSTERS).await;

    let listed = async || {
        let list = apart.world.good(&["cert", "list", "-f", file, "-o", "json"]).await.document();
        let all = list["certificates"].as_array().unwrap().clone();
        all.into_iter().find(|one| one["cluster"] == "cluster1" && one["what"] == "token for cluster2").unwrap()
    };
    let days = listed().await["daysLeft"].as_i64().unwrap();
    assert!((28..=30).contains(&days), "{days} days");

    may_read_one_member(&apart, &held(&clusters[0]).await.1).await;

    // A bundle has none of it: neither the credential, nor that of the hub's own accounts in the members.
    let archive = apart.world.path("a.tar.gz");
    apart.world.good(&["bundle", "-f", file, "-o", text(&archive)]).await;
    let files = unpacked(&archive);
    let mut hidden = Vec::new();
    for cluster in &clusters {
        hidden.extend(secrets(&cluster.client).await);
        let kind = Resource::named("v1", "Secret").unwrap();
        for secret in objects::list(&cluster.client, &kind, Some("karmada-cluster"), None).await.unwrap() {
            let token = BASE64_STANDARD.decode(secret["data"]["token"].as_str().unwrap()).unwrap();
            hidden.push(String::from_utf8(token).unwrap());
        }
    }
    let tokens = hidden.iter().filter(|text| text.starts_with("eyJ")).count();
    assert!(tokens >= 6, "one for each direction, and two of the hub in each: {tokens}");
    for (path, text) in &files {
        for secret in &hidden {
            assert!(!text.contains(secret) && !text.contains(&BASE64_STANDARD.encode(secret)), "{path}");
        }
    }
    assert!(files.values().any(|text| text.contains("/clusters/cluster2/proxy")), "where it leads is no secret");

    // Its life is as good as over: that is found, and what an operator is for.
    let (mut secret, before) = held(&clusters[0]).await;
    let old = aged(&before);
    secret["data"]["cluster2"] = BASE64_STANDARD.encode(&old).into();
    secret["metadata"].as_object_mut().unwrap().remove("managedFields");
    let kind = Resource::named("v1", "Secret").unwrap();
    objects::replace(&clusters[0].client, &kind, &secret, "journey").await.unwrap();
    assert_eq!(listed().await["daysLeft"], 0);
    let findings = apart.findings().await;
    assert!(findings.iter().any(|finding| finding.contains("token for cluster2 ends in 0 hours")), "{findings:#?}");
    let plan = apart.world.run(&["plan", "-f", file]).await.ends_with(2).out;
    assert!(plan.contains("less than half of the life of the token for cluster2 is left"), "{plan}");

    let mut operator = apart.world.stolos(["operator", "-f", file, "--interval", "1", "--listen", "127.0.0.1:0"]);
    let operator = operator.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let renewed = async |than: &str| {
        eventually("another credential", PATIENCE, async || {
            let now = held(&clusters[0]).await.1;
            if now == than { Err("the same as before") } else { Ok(now) }
        })
        .await
    };
    let after = renewed(&old).await;
    assert!(after != before && listed().await["daysLeft"].as_i64() >= Some(28));
    // What ends it in the hub is no reason to be without one.
    let space = apart.in_hub().await.into_iter().find_map(|line| Some(line.strip_prefix("Namespace. -/")?.to_owned()));
    let space = space.and_then(|line| line.split(' ').next().map(str::to_owned)).unwrap();
    apart.kubectl(&["delete", "secret", "-n", &space, "cluster1.reads.cluster2"]).await.ends_with(0);
    renewed(&after).await;
    eventually("nothing is left to be done", PATIENCE, async || {
        let plan = apart.world.run(&["plan", "-f", file]).await;
        if plan.code == Some(0) { Ok(()) } else { Err(plan.out) }
    })
    .await;
    drop(operator);
    let findings = apart.findings().await;
    assert!(findings.is_empty(), "{findings:#?}");

    // It leaves: nothing of it is in the hub, nor in the other, and what the other could do in it is over.
    apart.world.good(&["cluster", "remove", "cluster2", "-f", file, "--yes"]).await;
    let rest = apart.in_hub().await;
    assert!(rest.iter().all(|line| !line.contains("cluster2")), "{rest:#?}");
    let (first, second) =
        (everything(&clusters[0].client).await.unwrap(), everything(&clusters[1].client).await.unwrap());
    let names = |all: &crate::lists::Everything, part: &str| {
        all.keys().filter(|key| key.contains(part)).cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(&first, "istio-remote-secret"), Vec::<String>::new());
    assert_eq!(names(&second, "stolos-hub-readers"), Vec::<String>::new());
    assert_eq!(names(&second, "istio"), Vec::<String>::new());
    apart.world.good(&["plan", "-f", file]).await;
    apart.world.good(&["teardown", "-f", file, "--yes"]).await;
    assert_eq!(apart.in_hub().await, BTreeSet::new());
}
