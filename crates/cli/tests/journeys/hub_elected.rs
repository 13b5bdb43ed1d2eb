//! Several hubs on one API that is somebody else's: one acts, the others stand by.

use std::path::PathBuf;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;

use crate::hub::{PATIENCE, agent};
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

    /// Puts a ConfigMap for `eu` and `ap` on the API.
    async fn propagate(&self, name: &str) {
        let both = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{from: hub}}\n---\n\
             apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
             resourceSelectors: [{{apiVersion: v1, kind: ConfigMap, name: {name}}}]\n  \
             placement: {{clusterAffinity: {{clusterNames: [eu, ap]}}}}\n"
        );
        let file = self.world.write("both.yaml", &both);
        self.kubectl("us", &["apply", "-f", text(&file)]).await.ends_with(0);
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
    // Both would let agents in at the same address; the one that leads does.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mut first = Elected::start(&hub, "first", &free);
    first.says("workload that is applied here also runs here").await;
    first.says("this hub leads").await;
    let mut second = Elected::start(&hub, "second", &free);
    second.says("standing by: pod-0-").await;

    let api = ["--hub-kubeconfig", "kubeconfig", "--hub-context", "us"];
    hub.world.good(&[&["hub", "join", "eu"], &api[..]].concat()).await;
    let said = hub.world.good(&[&["hub", "token", "create"], &api[..]].concat()).await.out;
    let words: Vec<&str> = said.split_whitespace().collect();
    let _agent = agent(&hub.world, "ap", &words[5..], words[4]).await;
    hub.propagate("one").await;
    for member in ["eu", "ap"] {
        hub.has(member, "one").await;
    }

    // Killed, not asked to end: its Lease says that it is there for some seconds more.
    first.process.kill().await.unwrap();
    hub.propagate("two").await;
    second.says("this hub leads").await;
    for member in ["eu", "ap"] {
        hub.has(member, "two").await;
    }
    // What was there stays as it was, and is still looked after.
    hub.kubectl("eu", &["delete", "configmap", "one"]).await.ends_with(0);
    hub.has("eu", "one").await;

    // One that is asked to end gives the Lease back.
    let mut third = Elected::start(&hub, "third", &free);
    third.says("standing by: pod-0-").await;
    hub.world.good(&["hub", "down", "--data", "hub-second"]).await;
    assert!(second.process.wait().await.unwrap().success());
    third.says("this hub leads").await;
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
}
