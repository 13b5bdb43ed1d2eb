//! Several hubs on one API that is somebody else's: one acts, the others stand by.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::hub::{Invitation, PATIENCE, agent};
use crate::programs;
use crate::world::{Run, World, eventually, finish, text};

/// Three clusters, of which `us` is the one with the API.
struct Outside {
    world: World,
    kubectl: PathBuf,
}

impl Outside {
    async fn kubectl(&self, context: &str, args: &[&str]) -> Run {
        finish(self.world.program(&self.kubectl, ["--context", context].iter().chain(args))).await
    }

    /// Runs kubectl in a member, through the hub that listens at `hub`.
    async fn through(&self, hub: &str, member: &str, args: &[&str]) -> Run {
        let server = format!("https://{hub}/apis/cluster.karmada.io/v1alpha1/clusters/{member}/proxy");
        let which = ["--kubeconfig", "members.kubeconfig", "--server", &server];
        finish(self.world.program(&self.kubectl, which.iter().chain(args))).await
    }

    /// Where a hub listens for members' readers and for the API server.
    fn listens(&self, name: &str) -> String {
        let path = self.world.path(&format!("hub-{name}/listen"));
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }

    /// Puts a ConfigMap for `eu` and `ap` on the API.
    async fn propagate(&self, name: &str) {
        let both = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{from: hub}}\n---\n\
             apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
             resourceSelectors: [{{apiVersion: v1, kind: ConfigMap, name: {name}}}]\n  \
             placement: {{clusterAffinity: {{clusterNames: [eu, ap]}}}}\n"
        );
        let file = self.world.write("both.yaml", &both);
        // Policies wait for a hub that answers; whatever else is written does not.
        self.kubectl("us", &["create", "configmap", &format!("{name}-beside")]).await.ends_with(0);
        eventually("the policy is taken", PATIENCE, async || {
            let run = self.kubectl("us", &["apply", "-f", text(&file)]).await;
            if run.code == Some(0) { Ok(()) } else { Err(run.err) }
        })
        .await;
    }

    /// Waits until a member has a ConfigMap of the hub's.
    async fn has(&self, member: &str, name: &str) {
        eventually(name, PATIENCE, async || {
            let run = self.kubectl(member, &["get", "configmap", name]).await;
            if run.code == Some(0) { Ok(()) } else { Err(run.err) }
        })
        .await;
    }
}

/// One of several hubs on an API that is somebody else's.
struct Elected {
    process: Child,
    lines: tokio::sync::mpsc::UnboundedReceiver<String>,
}

impl Elected {
    /// Starts a hub on the API of `us`. All have one name, as pods of two clusters may.
    fn start(hub: &Outside, name: &str, agents: &str) -> Self {
        let mut command = hub.world.stolos(["hub", "up", "--kubeconfig"]);
        command.arg(hub.world.path("kubeconfig")).args(["--context", "us", "--identity", "pod-0", "--agents", agents]);
        // Outside of the lab, where its API servers reach it: the host's own address is nobody's there.
        command.args(["--listen", "127.0.0.2:0"]);
        command.args(["--data", &format!("hub-{name}")]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut said = BufReader::new(process.stderr.take().unwrap()).lines();
        let (tell, lines) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = said.next_line().await {
                let _ = tell.send(line);
            }
        });
        Self { process, lines }
    }

    /// Waits until it says this.
    async fn says(&mut self, wanted: &str) {
        let mut all = Vec::new();
        let said = async {
            while let Some(line) = self.lines.recv().await {
                let found = line.contains(wanted);
                all.push(line);
                if found {
                    return true;
                }
            }
            false
        };
        let said = tokio::time::timeout(PATIENCE, said).await;
        assert_eq!(said, Ok(true), "`{wanted}` is not in\n{}", all.join("\n"));
    }
}

/// Two hubs on one API: one acts, and when it is killed the other one does, with members that are dialled and with one
/// that dials.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_hubs_on_one_api_one_acts() {
    let Some(kubectl) = programs::program("STOLOS_KUBECTL") else { return };
    let mut world = World::new();
    let lab = world.write(
        "lab.yaml",
        "- {context: us, network: us}\n- {context: eu, network: eu}\n- {context: ap, network: ap}\n",
    );
    world.up(&lab).await;
    let hub = Outside { world, kubectl };
    // A hub that begins looks once whether there are nodes.
    eventually("nodes of us", PATIENCE, async || {
        let run = hub.kubectl("us", &["get", "nodes", "-o", "name"]).await;
        if run.out.contains("node/") { Ok(()) } else { Err(run.err) }
    })
    .await;
    // Both would let agents in at the same address; the one that leads does.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut first = Elected::start(&hub, "first", &free);
    first.says("workload that is applied here also runs here").await;
    first.says("✓ this hub leads").await;
    let mut second = Elected::start(&hub, "second", &free);
    second.says("standing by: pod-0-").await;

    let api = ["--hub-kubeconfig", "kubeconfig", "--hub-context", "us"];
    hub.world.good(&[&["hub", "join", "eu"], &api[..]].concat()).await;
    let invited = Invitation::of(&hub.world.good(&[&["hub", "token", "create", "ap"], &api[..]].concat()).await.out);
    let _agent = agent(&hub.world, "ap", &invited.flags(&[]), &invited.address).await;
    hub.propagate("one").await;
    for member in ["eu", "ap"] {
        hub.has(member, "one").await;
    }

    asked_before_writes(&hub).await;
    members_are_reached(&hub, &api).await;

    // Killed, not asked to end: its Lease says that it is there for some seconds more.
    let killed = Instant::now();
    first.process.kill().await.unwrap();
    hub.propagate("two").await;
    second.says("✓ this hub leads").await;
    // Its Lease is over after 8 s; the rest is for a machine with much to do.
    assert!(killed.elapsed() < Duration::from_secs(60), "it took {:?}", killed.elapsed());
    for member in ["eu", "ap"] {
        hub.has(member, "two").await;
    }
    // Who leads now is where members are reached, and who is asked.
    let names = ["get", "configmap", "two", "--all-clusters", "-o", "name"];
    let seen = hub.world.good(&[&names[..], &api[..]].concat()).await.out;
    assert_eq!(seen, "ap configmap/two\neu configmap/two\n");
    asked_before_writes(&hub).await;
    // What was there stays as it was, and is still looked after.
    hub.kubectl("eu", &["delete", "configmap", "one"]).await.ends_with(0);
    hub.has("eu", "one").await;

    // One that is asked to end gives the Lease back.
    let mut third = Elected::start(&hub, "third", &free);
    third.says("standing by: pod-0-").await;
    hub.world.good(&["hub", "down", "--data", "hub-second"]).await;
    assert!(second.process.wait().await.unwrap().success());
    third.says("✓ this hub leads").await;
    hub.kubectl("us", &["delete", "configmap", "one", "two"]).await.ends_with(0);
    for member in ["eu", "ap"] {
        eventually("nothing of the hub's", PATIENCE, async || {
            let left = hub.kubectl(member, &["get", "configmaps", "-o", "name"]).await.out;
            if left.contains("one") || left.contains("two") { Err(left) } else { Ok(()) }
        })
        .await;
    }
    hub.world.good(&[&["hub", "unjoin", "eu"], &api[..]].concat()).await;
    hub.world.good(&["hub", "down", "--data", "hub-third"]).await;
    nobody_answers(&hub).await;
}

/// Without a hub what was not judged is not written, what is protected is not deleted, and everything else is as ever.
async fn nobody_answers(hub: &Outside) {
    let policy = "apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {name: right}\nspec:\n  \
        resourceSelectors: [{apiVersion: v1, kind: ConfigMap, name: one}]\n  placement: {}\n";
    let file = hub.world.write("right.yaml", policy);
    let apply = ["apply", "-f", text(&file)];
    let refused = hub.kubectl("us", &apply).await.ends_with(1).err;
    assert!(refused.contains(r#"failed calling webhook "policies.hub.stolos.dev""#), "{refused}");
    let label = "resourcetemplate.karmada.io/deletion-protected";
    hub.kubectl("us", &["create", "configmap", "precious"]).await.ends_with(0);
    hub.kubectl("us", &["label", "configmap", "precious", &format!("{label}=Always")]).await.ends_with(0);
    let refused = hub.kubectl("us", &["delete", "configmap", "precious"]).await.ends_with(1).err;
    assert!(refused.contains(r#"failed calling webhook "deletion.hub.stolos.dev""#), "{refused}");
    hub.kubectl("us", &["label", "configmap", "precious", &format!("{label}-")]).await.ends_with(0);
    hub.kubectl("us", &["delete", "configmap", "precious"]).await.ends_with(0);
    // Gone for good: this is all that it leaves in the way.
    hub.kubectl("us", &["delete", "validatingwebhookconfiguration", "stolos-hub"]).await.ends_with(0);
    hub.kubectl("us", &apply).await.ends_with(0);
}

/// The API server asks the hub before it writes a policy, or deletes what is protected.
async fn asked_before_writes(hub: &Outside) {
    let both = "apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {name: wrong}\nspec:\n  \
        resourceSelectors: [{apiVersion: v1, kind: ConfigMap, namespace: other}]\n";
    let file = hub.world.write("wrong.yaml", both);
    let refused = hub.kubectl("us", &["apply", "-f", text(&file)]).await.ends_with(1).err;
    let words =
        r#"admission webhook "policies.hub.stolos.dev" denied the request: spec.resourceSelectors[0].namespace"#;
    assert!(refused.contains(words), "{refused}");
    let label = "resourcetemplate.karmada.io/deletion-protected";
    hub.kubectl("us", &["create", "configmap", "precious"]).await.ends_with(0);
    hub.kubectl("us", &["label", "configmap", "precious", &format!("{label}=Always")]).await.ends_with(0);
    let refused = hub.kubectl("us", &["delete", "configmap", "precious"]).await.ends_with(1).err;
    assert!(refused.contains(r#"admission webhook "deletion.hub.stolos.dev" denied the request"#), "{refused}");
    hub.kubectl("us", &["label", "configmap", "precious", &format!("{label}-")]).await.ends_with(0);
    hub.kubectl("us", &["delete", "configmap", "precious"]).await.ends_with(0);
}

/// Members are reached beside that API, by whoever may there, also by way of the hub that stands by.
async fn members_are_reached(hub: &Outside, api: &[&str]) {
    let all = [&["get", "configmap", "one", "--all-clusters", "-o", "name"], api].concat();
    assert_eq!(hub.world.good(&all).await.out, "ap configmap/one\neu configmap/one\n");
    hub.world.good(&[&["hub", "kubeconfig", "--out", "members.kubeconfig"], api].concat()).await;
    let (first, second) = (hub.listens("first"), hub.listens("second"));
    for (place, member) in [(&first, "eu"), (&first, "ap"), (&second, "eu"), (&second, "ap")] {
        let name = hub.through(place, member, &["get", "configmap", "one", "-o", "name"]).await.ends_with(0).out;
        assert_eq!(name, "configmap/one\n", "{member} at {place}");
    }
    // A token is what that API says of it, and so is what they may.
    let token = hub.kubectl("us", &["create", "token", "default"]).await.ends_with(0).out.trim().to_owned();
    let by = |token: &str| {
        let text = std::fs::read_to_string(hub.world.path("members.kubeconfig")).unwrap();
        let mut config: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        config["users"][0]["user"] = serde_json::json!({"token": token});
        hub.world.write("members.kubeconfig", &config.to_string());
    };
    by(&token);
    let version = ["get", "--raw", "/apis/cluster.karmada.io/v1alpha1/clusters/eu/proxy/version"];
    let refused = hub.through(&first, "eu", &version).await.ends_with(1).err;
    let words = r#"User "system:serviceaccount:default:default" cannot get resource "clusters/proxy""#;
    assert!(refused.contains(words), "{refused}");
    let role =
        ["create", "clusterrole", "eu-reader", "--verb=get,list", "--resource=clusters.cluster.karmada.io/proxy"];
    hub.kubectl("us", &[&role[..], &["--resource-name=eu"]].concat()).await.ends_with(0);
    let binding = ["create", "clusterrolebinding", "eu-reader", "--clusterrole=eu-reader"];
    hub.kubectl("us", &[&binding[..], &["--serviceaccount=default:default"]].concat()).await.ends_with(0);
    // The hub lets them, and the member decides what they may there.
    let refused = eventually("the hub lets them", PATIENCE, async || {
        let run = hub.through(&second, "eu", &["get", "configmap", "one"]).await;
        if run.err.contains(r#"resource "configmaps""#) { Ok(run.err) } else { Err(run.err) }
    })
    .await;
    assert!(refused.contains(r#"User "system:serviceaccount:default:default" cannot get"#), "{refused}");
    by("nobody's");
    let refused = hub.through(&second, "eu", &version).await.ends_with(1).err;
    assert!(refused.contains("Unauthorized") || refused.contains("logged in"), "{refused}");
    let log = std::fs::read_to_string(hub.world.path("hub-first/audit.jsonl")).unwrap();
    assert!(log.contains(r#""user":"system:serviceaccount:default:default""#) && !log.contains(&token), "{log}");
}
