//! A hub and three clusters: Karmada's files as they are, plain kubectl, edits, a hub that is killed, and the way back.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use stolos_cluster::objects::{self, Resource};
use stolos_pki::{Authority, Credentials, SpiffeId, WorkloadRequest};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::programs;
use crate::world::{Run, World, eventually, finish, text};

const FILES: [(&str, &str); 5] = [
    ("policy-1-even.yaml", include_str!("../../../spec/tests/inputs/karmada/policy-1-even.yaml")),
    ("policy-2-weighted.yaml", include_str!("../../../spec/tests/inputs/karmada/policy-2-weighted.yaml")),
    ("policy-3-with-sleep.yaml", include_str!("../../../spec/tests/inputs/karmada/policy-3-with-sleep.yaml")),
    ("hello.yaml", include_str!("../../../spec/tests/inputs/karmada/hello.yaml")),
    ("sleep.yaml", include_str!("../../../spec/tests/inputs/karmada/sleep.yaml")),
];
pub(crate) const MEMBERS: [&str; 3] = ["eu", "ap", "us"];
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A lab of three clusters, and a hub beside it.
pub(crate) struct Hub {
    pub(crate) world: World,
    pub(crate) kubectl: PathBuf,
    pub(crate) process: Child,
}

impl Hub {
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with a hub that is told more.
    pub(crate) async fn start_with(flags: &[&str]) -> Option<Self> {
        let kubectl = programs::program("STOLOS_KUBECTL")?;
        let mut world = World::new();
        let paths: Vec<_> = FILES.iter().map(|(name, text)| world.write(name, text)).collect();
        world.up(&paths[0]).await;
        let process = up_with(&world, flags).await;
        Some(Self { world, kubectl, process })
    }

    /// Runs kubectl against the hub.
    pub(crate) async fn kubectl(&self, args: &[&str]) -> Run {
        self.run_kubectl(&["--kubeconfig", text(&self.world.path("hub/kubeconfig"))], args).await
    }

    /// Runs kubectl against a member.
    pub(crate) async fn in_member(&self, member: &str, args: &[&str]) -> Run {
        self.run_kubectl(&["--kubeconfig", text(&self.world.path("kubeconfig")), "--context", member], args).await
    }

    async fn run_kubectl(&self, which: &[&str], args: &[&str]) -> Run {
        finish(self.world.program(&self.kubectl, which.iter().chain(args))).await
    }

    /// Replicas that are wanted and that are ready, in each member that has the Deployment.
    pub(crate) async fn replicas(&self, deployment: &str) -> BTreeMap<&'static str, (i64, i64)> {
        let mut found = BTreeMap::new();
        for member in MEMBERS {
            let run = self.in_member(member, &["get", "deployment", deployment, "-o", "json"]).await;
            if run.code == Some(0) {
                let deployment = run.document();
                let ready = deployment["status"]["readyReplicas"].as_i64().unwrap_or(0);
                found.insert(member, (deployment["spec"]["replicas"].as_i64().unwrap_or(0), ready));
            }
        }
        found
    }

    /// The same of one of which so many must be ready at any time. Members are read one after the other: what one has lost by
    /// now another may have got since it was read, so that too few are looked at again.
    pub(crate) async fn replicas_not_below(&self, deployment: &str, least: i64) -> BTreeMap<&'static str, (i64, i64)> {
        let found = self.replicas(deployment).await;
        if found.values().map(|(_, ready)| ready).sum::<i64>() < least {
            let again = self.replicas(deployment).await;
            let most =
                |member| [&found, &again].into_iter().filter_map(|look| look.get(member)).map(|(_, it)| *it).max();
            let ready: i64 = MEMBERS.iter().filter_map(most).sum();
            assert!(ready >= least, "{ready} are ready, which is less than {least}: {found:?}, then {again:?}");
        }
        found
    }

    /// Waits until a Deployment is wanted and ready in the members as said.
    pub(crate) async fn runs(&self, deployment: &str, wanted: &[(&'static str, i64)]) {
        let wanted: BTreeMap<_, _> = wanted.iter().map(|(member, count)| (*member, (*count, *count))).collect();
        eventually(deployment, PATIENCE, async || {
            let found = self.replicas(deployment).await;
            if found == wanted { Ok(()) } else { Err(format!("{found:?}, not {wanted:?}")) }
        })
        .await;
    }

    /// Waits until so many replicas of `hello` are ready, and returns how they are divided.
    pub(crate) async fn divided(&self, all: i64) -> BTreeMap<&'static str, i64> {
        eventually("division", PATIENCE, async || {
            let found = self.replicas("hello").await;
            let (wanted, ready) = found.values().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
            match (wanted, ready) == (all, all) {
                true => Ok(found.into_iter().map(|(member, (wanted, _))| (member, wanted)).collect()),
                false => Err(format!("{found:?}, not {all} in all")),
            }
        })
        .await
    }

    /// Waits until an event says this about an object of the hub.
    pub(crate) async fn says(&self, kind: &str, name: &str, reason: &str, message: &str) {
        let of = format!("involvedObject.kind={kind},involvedObject.name={name},reason={reason}");
        eventually(reason, PATIENCE, async || {
            let events = self.kubectl(&["get", "events", "--field-selector", &of]).await.out;
            if events.contains(message) { Ok(()) } else { Err(format!("no `{message}` in:\n{events}")) }
        })
        .await;
    }

    /// The UIDs of what the hub brought to the members, and of its pods.
    async fn identities(&self) -> Vec<String> {
        let mut all = Vec::new();
        for member in MEMBERS {
            let list = self.in_member(member, &["get", "deployments,services,pods", "-o", "json"]).await.document();
            for object in list["items"].as_array().unwrap() {
                all.push(format!("{member} {} {}", object["kind"], object["metadata"]["uid"]));
            }
        }
        all.sort();
        all
    }
}

/// Starts a hub, which ends with its handle.
pub(crate) async fn up(world: &World) -> Child {
    up_with(world, &[]).await
}

async fn up_with(world: &World, flags: &[&str]) -> Child {
    let mut command = world.stolos(["hub", "up", "--data", "hub"]);
    command.args(flags);
    let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let said = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it is not up").unwrap();
    assert!(said.is_some_and(|line| line.starts_with("export KUBECONFIG=")), "it did not start");
    process
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn karmadas_files_run_as_they_are() {
    let Some(mut hub) = Hub::start().await else { return };
    for (member, region) in [("eu", "eu-west"), ("ap", "ap-south"), ("us", "us-west")] {
        hub.world.good(&["hub", "join", member, "--data", "hub", "--region", region]).await;
    }
    let clusters = hub.kubectl(&["get", "clusters"]).await.ends_with(0).out;
    let words: Vec<Vec<&str>> = clusters.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["NAME", "VERSION", "MODE", "READY", "AGE"], "{clusters}");
    let ready: Vec<_> = words[1..].iter().map(|line| (line[0], line[2], line[3])).collect();
    assert_eq!(ready, [("ap", "Push", "True"), ("eu", "Push", "True"), ("us", "Push", "True")]);
    // The same again renews it; another name for the same cluster is refused.
    hub.world.good(&["hub", "join", "eu", "--data", "hub", "--region", "eu-west"]).await;
    let twice = hub.world.run(&["hub", "join", "eu2", "--context", "eu", "--data", "hub"]).await.ends_with(1);
    assert!(twice.err.contains("the hub has this cluster already, as `eu`"), "{}", twice.err);

    // Without a policy nothing goes anywhere, and that is said.
    hub.kubectl(&["apply", "-f", "hello.yaml"]).await.ends_with(0);
    hub.says("Deployment", "hello", "ApplyPolicyFailed", "No policy match for resource").await;
    assert!(hub.replicas("hello").await.is_empty());

    hub.kubectl(&["apply", "-f", "policy-1-even.yaml"]).await.ends_with(0);
    hub.runs("hello", &[("eu", 1), ("ap", 1), ("us", 1)]).await;
    for member in MEMBERS {
        eventually("the Service", PATIENCE, async || {
            let run = hub.in_member(member, &["get", "service", "hello"]).await;
            if run.code == Some(0) { Ok(()) } else { Err(run.err) }
        })
        .await;
    }
    for (reason, message) in [
        ("ApplyPolicySucceed", "Apply policy(default/hello-propagation) succeed"),
        ("ScheduleBindingSucceed", "Binding has been scheduled successfully. Result: {ap:1, eu:1, us:1}"),
        ("SyncWorkSucceed", "Sync work of ResourceBinding(default/hello-deployment) successful."),
        (
            "AggregateStatusSucceed",
            "Update ResourceBinding(default/hello-deployment) with AggregatedStatus successfully.",
        ),
        ("SyncSucceed", "Successfully applied resource(default/hello) to cluster eu"),
    ] {
        hub.says("Deployment", "hello", reason, message).await;
    }
    let bindings = hub.kubectl(&["get", "rb"]).await.ends_with(0).out;
    assert!(bindings.starts_with("NAME") && bindings.contains("SCHEDULED   FULLYAPPLIED   AGE"), "{bindings}");
    let works = hub.kubectl(&["get", "works", "-n", "karmada-es-eu"]).await.ends_with(0).out;
    assert!(works.contains("WORKLOAD-KIND") && works.contains("Deployment"), "{works}");

    // Ten replicas are divided as evenly as ten can be.
    hub.kubectl(&["scale", "deployment", "hello", "--replicas=10"]).await.ends_with(0);
    let mut shares: Vec<_> = hub.divided(10).await.into_values().collect();
    shares.sort_unstable();
    assert_eq!(shares, [3, 3, 4]);
    hub.kubectl(&["apply", "-f", "policy-2-weighted.yaml"]).await.ends_with(0);
    hub.runs("hello", &[("ap", 2), ("eu", 4), ("us", 4)]).await;
    eventually("the template's own status", PATIENCE, async || {
        let hello = hub.kubectl(&["get", "deployment", "hello", "-o", "json"]).await.document();
        if hello["status"]["readyReplicas"] == 10 { Ok(()) } else { Err(hello["status"].to_string()) }
    })
    .await;

    // That the policy is looked at again writes nothing, though the template has got another status since.
    let generation = ["get", "rb", "hello-deployment", "-o", "jsonpath={.metadata.generation}"];
    let before = hub.kubectl(&generation).await.ends_with(0).out;
    hub.kubectl(&["label", "propagationpolicy", "hello-propagation", "looked=at"]).await.ends_with(0);

    // What somebody edits or deletes in a member is put back.
    hub.in_member("eu", &["scale", "deployment", "hello", "--replicas=9"]).await.ends_with(0);
    hub.in_member("us", &["label", "deployment", "hello", "karmada.io/managed-", "mine=stays"]).await.ends_with(0);
    hub.in_member("ap", &["delete", "service", "hello"]).await.ends_with(0);
    hub.runs("hello", &[("ap", 2), ("eu", 4), ("us", 4)]).await;
    eventually("the Service of ap and the label of us", PATIENCE, async || {
        let service = hub.in_member("ap", &["get", "service", "hello"]).await;
        let labels =
            hub.in_member("us", &["get", "deployment", "hello", "-o", "jsonpath={.metadata.labels}"]).await.out;
        let labels: Value = serde_json::from_str(&labels).unwrap_or_default();
        match service.code == Some(0) && labels["karmada.io/managed"] == "true" && labels["mine"] == "stays" {
            true => Ok(()),
            false => Err(format!("{} {labels}", service.err)),
        }
    })
    .await;

    assert_eq!(hub.kubectl(&generation).await.ends_with(0).out, before, "its binding was written again");

    // Without the hub members go on; with it again nothing of theirs is another one.
    let before = hub.identities().await;
    hub.process.kill().await.unwrap();
    hub.in_member("eu", &["get", "deployment", "hello"]).await.ends_with(0);
    hub.process = up(&hub.world).await;
    hub.kubectl(&["apply", "-f", "sleep.yaml", "-f", "policy-3-with-sleep.yaml"]).await.ends_with(0);
    hub.runs("hello", &[("ap", 4), ("eu", 2), ("us", 4)]).await;
    let after = hub.identities().await;
    let kept = |what: &str| before.iter().filter(|known| known.contains(what)).all(|known| after.contains(known));
    assert!(kept("\"Deployment\"") && kept("\"Service\""), "{before:#?}\n{after:#?}");
    eventually("sleep, once", PATIENCE, async || {
        let found = hub.replicas("sleep").await;
        if found.values().copied().eq([(1, 1)]) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;

    // A policy's end leaves workloads where they are, a template's takes them along.
    hub.kubectl(&["delete", "pp", "hello-propagation"]).await.ends_with(0);
    hub.runs("hello", &[("ap", 4), ("eu", 2), ("us", 4)]).await;
    hub.kubectl(&["delete", "-f", "hello.yaml", "-f", "sleep.yaml"]).await.ends_with(0);
    hub.runs("hello", &[]).await;
    hub.runs("sleep", &[]).await;
    eventually("no binding and no Work", PATIENCE, async || {
        let left = hub.kubectl(&["get", "rb,works", "-A", "-o", "name"]).await.ends_with(0).out;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    for member in MEMBERS {
        let left = hub.in_member(member, &["get", "services", "-o", "name"]).await.ends_with(0).out;
        assert_eq!(left.trim(), "service/kubernetes", "{member}");
    }

    // A member that leaves loses what the hub brought, and the hub its account there.
    hub.world.good(&["hub", "unjoin", "us", "--data", "hub"]).await;
    let clusters = hub.kubectl(&["get", "clusters", "-o", "name"]).await.ends_with(0).out;
    assert_eq!(
        clusters.split_whitespace().collect::<Vec<_>>(),
        ["cluster.cluster.karmada.io/ap", "cluster.cluster.karmada.io/eu"]
    );
    hub.says("Cluster", "us", "RemoveExecutionSpaceSucceed", "execution space(karmada-es-us)").await;
    eventually("no account in us", PATIENCE, async || {
        let left = hub.in_member("us", &["get", "clusterroles,clusterrolebindings,namespaces", "-o", "name"]).await.out;
        if left.contains("karmada") { Err(left) } else { Ok(()) }
    })
    .await;
    hub.world.good(&["hub", "down", "--data", "hub"]).await;
    assert!(hub.process.wait().await.unwrap().success());
}

/// A workload that needs a ConfigMap, where it goes, and what is different in `eu`.
const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web-cfg, namespace: shop}
data: {greeting: hello}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: stefanprodan/podinfo, envFrom: [{configMapRef: {name: web-cfg}}]}
---
apiVersion: policy.karmada.io/v1alpha1
kind: PropagationPolicy
metadata: {name: web, namespace: shop}
spec:
  propagateDeps: true
  dependentOverrides: [web]
  resourceSelectors: [{apiVersion: apps/v1, kind: Deployment, name: web}]
  placement: {clusterAffinity: {clusterNames: [eu, ap]}}
";
const OVERRIDE: &str = "
apiVersion: policy.karmada.io/v1alpha1
kind: OverridePolicy
metadata: {name: web, namespace: shop}
spec:
  resourceSelectors: [{apiVersion: apps/v1, kind: Deployment, name: web}]
  overrideRules:
  - targetCluster: {clusterNames: [eu]}
    overriders:
      labelsOverrider: [{operator: add, value: {region: europe}}]
      plaintext: [{path: /spec/replicas, operator: replace, value: 1}]
";

impl Hub {
    /// Applies a text to the hub.
    pub(crate) async fn apply(&self, name: &str, yaml: &str) {
        let path = self.world.write(name, yaml);
        self.kubectl(&["apply", "-f", text(&path)]).await.ends_with(0);
    }

    /// The Services called `web-…` of each member, with their UIDs.
    async fn services(&self) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        for member in MEMBERS {
            let list = ["get", "services", "-o", "jsonpath={range .items[*]}{.metadata.name}={.metadata.uid} {end}"];
            let list = self.in_member(member, &list).await.out;
            let mut of: Vec<_> = list.split_whitespace().filter(|s| s.starts_with("web-")).map(str::to_owned).collect();
            of.sort();
            found.push(of);
        }
        found
    }

    /// Waits until what kubectl prints of a member's object is this.
    pub(crate) async fn prints(&self, member: &str, object: &[&str], path: &str, wanted: &str) {
        let path = format!("jsonpath={{{path}}}");
        let args = [&["get"], object, &["-o", &path]].concat();
        eventually(wanted, PATIENCE, async || {
            let run = self.in_member(member, &args).await;
            if run.code == Some(0) && run.out == wanted { Ok(()) } else { Err(format!("{}{}", run.out, run.err)) }
        })
        .await;
    }

    /// Waits until a condition of the Work that brings a ConfigMap to `eu` is like this.
    pub(crate) async fn work_says(&self, name: &str, condition: &str, wanted: &str) {
        eventually(name, PATIENCE, async || {
            let works = self.kubectl(&["get", "works", "-n", "karmada-es-eu", "-o", "json"]).await.document();
            let mut works = works["items"].as_array().unwrap().iter();
            let work = works.find(|work| work["spec"]["workload"]["manifests"][0]["metadata"]["name"] == name);
            let conditions = work.map(|work| work["status"]["conditions"].clone()).unwrap_or_default();
            let mut conditions = conditions.as_array().into_iter().flatten();
            let found =
                conditions.find(|c| c["type"] == condition).map(|c| format!("{} {}", c["status"], c["message"]));
            match found {
                Some(found) if found.contains(wanted) => Ok(()),
                found => Err(format!("{found:?}, not {wanted}")),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_do_what_they_say() {
    let Some(mut hub) = Hub::start().await else { return };
    for member in ["eu", "ap"] {
        hub.world.good(&["hub", "join", member, "--data", "hub"]).await;
    }

    // It waits for its overrides, then takes along what it needs; overrides come after the division.
    hub.apply("shop.yaml", SHOP).await;
    let events = ["get", "events", "-n", "shop", "--field-selector", "reason=ApplyPolicyFailed"];
    eventually("the override policy is waited for", PATIENCE, async || {
        let events = hub.kubectl(&events).await.out;
        if events.contains("it waits for the override policy web") { Ok(()) } else { Err(events) }
    })
    .await;
    hub.apply("override.yaml", OVERRIDE).await;
    let web = ["deployment", "web", "-n", "shop"];
    hub.prints("eu", &web, ".metadata.labels.region", "europe").await;
    hub.prints("eu", &web, ".status.readyReplicas", "1").await;
    hub.prints("ap", &web, ".status.readyReplicas", "2").await;
    hub.prints("ap", &web, ".metadata.labels.region", "").await;
    for member in ["eu", "ap"] {
        hub.prints(member, &["configmap", "web-cfg", "-n", "shop"], ".data.greeting", "hello").await;
    }
    // What it needs stays as the hub has it, and goes when it is needed no more.
    let edit =
        ["patch", "configmap", "web-cfg", "-n", "shop", "--type=merge", "-p", r#"{"data":{"greeting":"again"}}"#];
    hub.kubectl(&edit).await.ends_with(0);
    hub.prints("ap", &["configmap", "web-cfg", "-n", "shop"], ".data.greeting", "again").await;
    let without = r#"[{"op": "remove", "path": "/spec/template/spec/containers/0/envFrom"}]"#;
    hub.kubectl(&["patch", "deployment", "web", "-n", "shop", "--type=json", "-p", without]).await.ends_with(0);
    eventually("web-cfg has gone", PATIENCE, async || {
        let run = hub.in_member("ap", &["get", "configmap", "web-cfg", "-n", "shop"]).await;
        if run.err.contains("NotFound") { Ok(()) } else { Err(run.out) }
    })
    .await;

    // A dead member leaves, what is left in it is said, and the others do not notice.
    hub.world.good(&["lab", "fault", "kill", "ap", "-f", "policy-1-even.yaml"]).await;
    let left = hub.world.run(&["hub", "unjoin", "ap", "--data", "hub"]).await.ends_with(2);
    assert!(left.out.contains("apps/v1 Deployment shop/web") && left.out.contains("account in ap"), "{}", left.out);
    hub.prints("eu", &web, ".status.readyReplicas", "1").await;
    hub.world.good(&["lab", "fault", "start", "ap", "-f", "policy-1-even.yaml"]).await;
    hub.prints("ap", &web, ".spec.replicas", "2").await;
    hub.process.kill().await.unwrap();
}

/// What `hub token create` prints: where the hub takes agents in, and what else they are told.
pub(crate) struct Invitation {
    pub(crate) address: String,
    flags: [String; 4],
}

impl Invitation {
    pub(crate) fn of(said: &str) -> Self {
        let words: Vec<&str> = said.split_whitespace().skip_while(|word| !word.starts_with("STOLOS_AGENT")).collect();
        let [token, "stolos", "agent", _, "--hub", address, "--authority", authority] = words[..] else {
            panic!("{said}")
        };
        let token = token.trim_start_matches("STOLOS_AGENT_TOKEN=");
        Self { address: address.to_owned(), flags: ["--authority", authority, "--token", token].map(str::to_owned) }
    }

    /// The authority and the token, as flags, before `more`.
    pub(crate) fn flags<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        self.flags.iter().map(String::as_str).chain(more.iter().copied()).collect()
    }
}

impl Hub {
    /// Starts an agent, which ends with its handle, and waits until it says that it is connected.
    pub(crate) async fn agent(&self, name: &str, more: &[&str], address: &str) -> Child {
        agent(&self.world, name, more, address).await
    }
}

/// Starts an agent, which ends with its handle, and waits until it says that it is connected.
pub(crate) async fn agent(world: &World, name: &str, more: &[&str], address: &str) -> Child {
    let mut command = world.stolos(["agent", name, "--hub", address, "--data"]);
    command.arg(world.path(&format!("agent-{name}"))).args(more);
    connected(command).await
}

/// Starts an agent and waits until it says that it is connected.
pub(crate) async fn connected(mut command: Command) -> Child {
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
    let said = async {
        let mut all = Vec::new();
        while let Ok(Some(line)) = lines.next_line().await {
            all.push(line);
            if all.last().is_some_and(|line| line.contains("✓ connected to")) {
                return Ok(());
            }
        }
        Err(all)
    };
    tokio::time::timeout(PATIENCE, said).await.expect("it does not connect").expect("it ended");
    // What it says later goes nowhere, but must not stop it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    process
}

/// A cluster that the hub does not dial: its agent does, with a token that works once and a certificate ever after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_dials_out() {
    let Some(mut hub) = Hub::start().await else { return };
    let invited = Invitation::of(&hub.world.good(&["hub", "token", "create", "eu", "--data", "hub"]).await.out);
    let address = invited.address.clone();
    let credentials = invited.flags(&["--context", "eu", "--region", "eu-west"]);
    let (authority, token) = (credentials[1], credentials[3]);

    // Another hub's authority, then another token: nobody is let in, and the good token is as good as before.
    let wrong = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let flags = ["agent", "eu", "--hub", &address, "--data", "agent-eu", "--authority", wrong, "--token", token];
    let refused = hub.world.run(&flags).await.ends_with(1);
    assert!(refused.err.contains("it is another hub, or somebody between"), "{}", refused.err);
    let flags = ["agent", "eu", "--hub", &address, "--data", "agent-eu", "--authority", authority, "--token"];
    let refused = hub.world.run(&[&flags[..], &["aaaaaa.0123456789abcdef"]].concat()).await.ends_with(1);
    assert!(refused.err.contains("the hub does not know this token"), "{}", refused.err);
    // It is eu's alone: ap does not come in with it, under no name, and whoever is refused has made nothing in the cluster.
    let again = ["agent", "ap", "--hub", &address, "--data", "agent-ap"];
    let refused = hub.world.run(&[&again[..], &credentials[..4]].concat()).await.ends_with(1);
    assert!(refused.err.contains("this token was not made for an agent of `ap`"), "{}", refused.err);
    let roles = Resource::named("rbac.authorization.k8s.io/v1", "ClusterRole").unwrap();
    for member in ["eu", "ap"] {
        let cluster = hub.world.cluster(member).await;
        let all = objects::list(&cluster.client, &roles, None, None).await.unwrap();
        let of_hub = |role: &&serde_json::Value| role["metadata"]["name"].as_str().unwrap().contains("karmada");
        assert_eq!(all.iter().filter(of_hub).count(), 0, "{member}");
    }
    let agent = hub.agent("eu", &credentials, &address).await;
    let used = ["agent", "eu", "--hub", &address, "--data", "agent-other", "--context", "eu"];
    let refused = hub.world.run(&[&used[..], &credentials[..4]].concat()).await.ends_with(1);
    assert!(refused.err.contains("the hub does not know this token; it was used already"), "{}", refused.err);
    // What eu's agent keeps is no other's.
    let other = ["agent", "ap", "--hub", &address, "--data", "agent-eu"];
    let refused = hub.world.run(&other).await.ends_with(1);
    assert!(refused.err.contains("it is the identity of `eu`, not of `ap`"), "{}", refused.err);
    let none = hub.world.run(&again).await.ends_with(1);
    assert!(none.err.contains("stolos hub token create"), "{}", none.err);

    eventually("eu is ready", PATIENCE, async || {
        let clusters = hub.kubectl(&["get", "clusters"]).await.out;
        let line = clusters.lines().find(|line| line.starts_with("eu")).unwrap_or_default().to_owned();
        let words: Vec<_> = line.split_whitespace().collect();
        if words.get(2..4) == Some(&["Pull", "True"]) { Ok(()) } else { Err(clusters) }
    })
    .await;
    // Whoever knows Karmada looks there for when it was heard last.
    let lease = "jsonpath={.spec.holderIdentity} {.spec.leaseDurationSeconds} {.metadata.ownerReferences[0].kind} {.spec.renewTime}";
    let heard = hub.kubectl(&["get", "lease", "eu", "-n", "karmada-cluster", "-o", lease]).await.ends_with(0).out;
    assert!(heard.starts_with("eu 40 Cluster 20"), "{heard}");
    hub.kubectl(&["apply", "-f", "hello.yaml", "-f", "policy-1-even.yaml"]).await.ends_with(0);
    hub.runs("hello", &[("eu", 3)]).await;

    // Without its agent nothing reaches it, and that is said; with it again, what was missed is made up for. It needs
    // no token any more.
    drop(agent);
    hub.kubectl(&["scale", "deployment", "hello", "--replicas=4"]).await.ends_with(0);
    eventually("what is wrong with the Work", PATIENCE, async || {
        let works = hub.kubectl(&["get", "works", "-n", "karmada-es-eu", "-o", "json"]).await.out;
        let events = hub.kubectl(&["get", "events", "-A"]).await.out;
        match works.contains("no agent of `eu`") || events.contains("no agent of `eu`") {
            true => Ok(()),
            false => Err(format!("{works}\n{events}")),
        }
    })
    .await;
    assert_eq!(hub.replicas("hello").await.get("eu"), Some(&(3, 3)));
    let _agent = hub.agent("eu", &["--context", "eu"], &address).await;
    hub.runs("hello", &[("eu", 4)]).await;

    // A hub that is killed is dialled again.
    hub.process.kill().await.unwrap();
    hub.process = up(&hub.world).await;
    hub.kubectl(&["scale", "deployment", "hello", "--replicas=5"]).await.ends_with(0);
    hub.runs("hello", &[("eu", 5)]).await;

    // An expired or stolen token's kind: nothing of what was secret is in what the agent keeps for others to read.
    use std::os::unix::fs::PermissionsExt as _;
    for file in ["agent.pem", "hub-ca.crt"] {
        let mode = std::fs::metadata(hub.world.path("agent-eu").join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{file}");
    }
    hub.world.good(&["hub", "down", "--data", "hub"]).await;
    assert!(hub.process.wait().await.unwrap().success());
}

/// The identity of a member's agents ends when it is said so, and when the member leaves: a copy of it opens nothing again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_ends_with_its_membership() {
    let Some(hub) = Hub::start().await else { return };
    let token = async |more: &[&str]| {
        Invitation::of(&hub.world.good(&[&["hub", "token", "create", "eu", "--data", "hub"], more].concat()).await.out)
    };
    let invited = token(&[]).await;
    let address = invited.address.clone();
    let here = ["--context", "eu"];
    let mut first = hub.agent("eu", &invited.flags(&here), &address).await;
    let copy = |name: &str| {
        let (from, to) = (hub.world.path("agent-eu"), hub.world.path(name));
        std::fs::create_dir(&to).unwrap();
        for file in ["agent.pem", "hub-ca.crt"] {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    };
    let refused = async |folder: &str, why: &str| {
        let flags = ["agent", "eu", "--hub", &address, "--data", folder, "--context", "eu"];
        let run = hub.world.run(&flags).await.ends_with(1);
        assert!(run.err.contains(why) && run.err.contains("hub token create"), "{}", run.err);
    };
    copy("stolen-before");

    // Ended by hand: the agent that is connected ends, and a token for that member alone lets another in.
    let invited = token(&["--rotate"]).await;
    let ended = tokio::time::timeout(PATIENCE, first.wait()).await.expect("it goes on").unwrap();
    assert_eq!(ended.code(), Some(1));
    refused("stolen-before", "the certificate of this agent of `eu` was ended").await;
    let second = hub.agent("eu", &invited.flags(&here), &address).await;
    copy("stolen-after");
    copy("stolen-again");

    // It leaves: nobody comes back with what it had, also not when one of its name has joined.
    hub.world.good(&["hub", "unjoin", "eu", "--data", "hub"]).await;
    drop(second);
    refused("stolen-after", "the hub has no cluster `eu` any more").await;
    // A token is what counts where there is one, whatever else is kept.
    let _third = hub.agent("eu", &token(&[]).await.flags(&here), &address).await;
    eventually("eu is back", PATIENCE, async || {
        let clusters = hub.kubectl(&["get", "clusters"]).await.out;
        if clusters.contains("eu ") { Ok(()) } else { Err(clusters) }
    })
    .await;
    for folder in ["stolen-before", "stolen-after", "stolen-again"] {
        let kept = hub.world.path(folder).join("agent.pem").exists();
        assert_eq!(kept, folder == "stolen-again", "{folder}: what ended is not kept");
    }
    refused("stolen-again", "the certificate of this agent of `eu` was ended").await;
    let wrong = hub.world.run(&["hub", "token", "create", "nobody", "--data", "hub", "--rotate"]).await.ends_with(1);
    assert!(wrong.err.contains("the hub has no cluster `nobody`"), "{}", wrong.err);
}

/// A certificate that is older than a day is replaced by its agent, with another key, before it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_renews_its_certificate() {
    const DAY: Duration = Duration::from_secs(86_400);
    let Some(hub) = Hub::start().await else { return };
    let invited = Invitation::of(&hub.world.good(&["hub", "token", "create", "eu", "--data", "hub"]).await.out);
    let address = invited.address.clone();
    drop(hub.agent("eu", &invited.flags(&["--context", "eu"]), &address).await);

    // What an agent has that was away for three days.
    let file = hub.world.path("agent-eu/agent.pem");
    let kept = || std::fs::read_to_string(&file).unwrap();
    let leaf = |pem: &str| Credentials::from_pem(pem, pem).unwrap().leaf().clone();
    let id = SpiffeId::parse(&leaf(&kept()).uris()[0]).unwrap();
    let secret = ["get", "secret", "stolos-agents-ca", "-n", "karmada-system", "-o"];
    let of = async |field: &str| {
        let template = format!("go-template={{{{index .data \"{field}\" | base64decode}}}}");
        hub.kubectl(&[&secret[..], &[&template]].concat()).await.ends_with(0).out
    };
    let authority = Authority::load(&of("tls.crt").await, &of("tls.key").await, SystemTime::now()).unwrap();
    let request = WorkloadRequest::new(&id).unwrap();
    let then = SystemTime::now() - 3 * DAY;
    let chain = authority.sign_workload(&request.csr_pem, &id, 30 * DAY, then).unwrap();
    std::fs::write(&file, format!("{}{}", request.key.to_pem().expose(), chain[0])).unwrap();
    let old = kept();
    assert!(leaf(&old).not_before() < SystemTime::now() - 2 * DAY);

    let agent = hub.agent("eu", &["--context", "eu"], &address).await;
    eventually("another certificate", PATIENCE, async || {
        let fresh = leaf(&kept());
        match fresh.not_before() > SystemTime::now() - DAY && fresh.uris() == [id.to_string()] {
            true => Ok(()),
            false => Err(format!("{:?} {:?}", fresh.not_before(), fresh.uris())),
        }
    })
    .await;
    let key = |pem: &str| pem.split("-----BEGIN CERTIFICATE-----").next().unwrap().to_owned();
    assert_ne!(key(&kept()), key(&old));
    // It is let in by that one.
    drop(agent);
    let _agent = hub.agent("eu", &["--context", "eu"], &address).await;
}

/// The hub is killed at any moment while it has much to do: nothing is lost, nothing is there twice, and all is as wanted
/// in the end. `STOLOS_HUB_KILLS` says how often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hub_may_be_killed_at_any_moment() {
    const WORKLOADS: usize = 12;
    let Some(mut hub) = Hub::start().await else { return };
    for member in MEMBERS {
        hub.world.good(&["hub", "join", member, "--data", "hub"]).await;
    }
    let all = |round: usize| -> String {
        let one = |index: usize| {
            let replicas = 1 + (round * 5 + index) % 7;
            format!(
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web-{index}}}\nspec:\n  replicas: {replicas}\n  \
                 selector: {{matchLabels: {{app: web-{index}}}}}\n  template:\n    \
                 metadata: {{labels: {{app: web-{index}}}}}\n    spec: {{containers: [{{name: web, image: sleep}}]}}\n---\n\
                 apiVersion: v1\nkind: Service\nmetadata: {{name: web-{index}}}\nspec: {{ports: [{{port: 80}}]}}\n---\n"
            )
        };
        (0..WORKLOADS).map(one).collect()
    };
    let divided = "    replicaScheduling: {replicaSchedulingType: Divided, replicaDivisionPreference: Weighted}\n";
    let policy = format!(
        "apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {{name: all}}\nspec:\n  \
         resourceSelectors: [{{apiVersion: apps/v1, kind: Deployment}}, {{apiVersion: v1, kind: Service}}]\n  \
         placement:\n    clusterAffinity: {{clusterNames: [eu, ap, us]}}\n{divided}"
    );
    hub.apply("policy.yaml", &policy).await;
    hub.apply("all.yaml", &all(0)).await;
    let before = eventually("every Service everywhere", PATIENCE, async || {
        let found = hub.services().await;
        if found.iter().all(|of| of.len() == WORKLOADS) { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await;

    let rounds: usize = std::env::var("STOLOS_HUB_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    for round in 1..=rounds {
        let file = hub.world.write("all.yaml", &all(round));
        // Killed while it still applies, or soon after: a different moment each time.
        let apply = ["--kubeconfig", "hub/kubeconfig", "apply", "-f", text(&file)];
        let mut command = hub.world.program(&hub.kubectl, apply);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut applying = command.spawn().unwrap();
        tokio::time::sleep(Duration::from_millis((round as u64 * 379) % 1500)).await;
        hub.process.kill().await.unwrap();
        let _ = applying.wait().await;
        hub.process = up(&hub.world).await;
    }
    hub.apply("all.yaml", &all(rounds)).await;
    for index in 0..WORKLOADS {
        let (name, wanted) = (format!("web-{index}"), (1 + (rounds * 5 + index) % 7) as i64);
        eventually(&name, PATIENCE, async || {
            let found = hub.replicas(&name).await;
            let sum: i64 = found.values().map(|(wanted, _)| wanted).sum();
            if sum == wanted { Ok(()) } else { Err(format!("{found:?}, not {wanted} in all")) }
        })
        .await;
    }
    let after = hub.services().await;
    assert_eq!(before, after, "the same Services as before");
    hub.process.kill().await.unwrap();
}
