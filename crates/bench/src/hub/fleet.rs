//! A hub and its members, as processes that end with the bench.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use kube::Client;
use serde_json::Value;
use stolos_cluster::Kubeconfig;

use crate::apiserver::{CONTEXT, Server};
use crate::process::{on_end, quiet, resident};

/// How long members may take to be ready.
const PATIENCE: Duration = Duration::from_secs(120);

/// A hub in the background, with its store on disk; ends with this value.
pub(super) struct Hub {
    home: tempfile::TempDir,
    stolos: PathBuf,
    pub(super) process: u32,
    pub(super) client: Client,
}

impl Hub {
    pub(super) async fn up(stolos: &Path) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let up =
            quiet(stolos, home.path()).args(["hub", "up", "--detach", "--data"]).arg(data(home.path())).status()?;
        ensure!(up.success(), "the hub did not start");
        let process = std::fs::read_to_string(data(home.path()).join("hub.lock"))?.trim().parse()?;
        let kubeconfig = Kubeconfig::find(Some(&data(home.path()).join("kubeconfig")), None)?;
        let context = kubeconfig.current_context().context("the hub's kubeconfig has no context")?.to_owned();
        let client = stolos_cluster::connect(&kubeconfig, "hub", &context).await?.client;
        Ok(Self { home, stolos: stolos.to_owned(), process, client })
    }

    fn run(&self, arguments: &[&str]) -> Command {
        let mut command = quiet(&self.stolos, self.home.path());
        command.args(arguments).arg("--data").arg(data(self.home.path()));
        command
    }

    /// Makes a cluster a member that the hub dials.
    pub(super) fn join(&self, name: &str, context: &str, kubeconfig: &Path) -> Result<()> {
        let joined =
            self.run(&["hub", "join", name, "--context", context]).arg("--kubeconfig").arg(kubeconfig).status()?;
        ensure!(joined.success(), "{name} did not join");
        Ok(())
    }

    /// Starts an agent for each member.
    pub(super) async fn let_in(&self, members: &[Member]) -> Result<Vec<Agent>> {
        let mut agents = Vec::new();
        for Member { name, kubeconfig, .. } in members {
            let made = self.run(&["hub", "token", "create", name]).stdout(Stdio::piped()).output()?;
            ensure!(made.status.success(), "no token was made");
            let line = String::from_utf8(made.stdout)?;
            // `STOLOS_AGENT_TOKEN=… stolos agent NAME --hub … --authority …`
            let (token, words) = line.trim().split_once(' ').context("what was printed is no command")?;
            let words = words.split_whitespace().skip(1);
            let mut agent = on_end(&self.stolos);
            agent.env("STOLOS_AGENT_TOKEN", token.trim_start_matches("STOLOS_AGENT_TOKEN="));
            agent.env("XDG_STATE_HOME", self.home.path().join("agents")).stdout(Stdio::null()).stderr(Stdio::null());
            agent.args(words).args(["--context", CONTEXT]).arg("--kubeconfig").arg(kubeconfig);
            agents.push(Agent(agent.spawn()?));
        }
        Ok(agents)
    }

    /// Waits until the hub calls so many members ready.
    pub(super) async fn all_ready(&self, count: usize) -> Result<()> {
        let began = Instant::now();
        loop {
            let request = http::Request::get("/apis/cluster.karmada.io/v1alpha1/clusters").body(vec![])?;
            let clusters = self.client.request::<Value>(request).await?;
            let is_ready = |cluster: &&Value| {
                let conditions = cluster["status"]["conditions"].as_array();
                conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
            };
            let ready = clusters["items"].as_array().into_iter().flatten().filter(is_ready).count();
            if ready == count {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "{ready} of {count} members are ready");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// The most memory it had resident so far, in MiB.
    pub(super) fn most_memory(&self) -> f64 {
        resident(self.process)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.run(&["hub", "down"]).status();
    }
}

fn data(home: &Path) -> PathBuf {
    home.join("hub")
}

/// An agent; ends with this value.
pub(super) struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An API server without nodes.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) kubeconfig: PathBuf,
    pub(super) client: Client,
    _server: Server,
    _dir: tempfile::TempDir,
}

impl Member {
    pub(super) async fn start(n: usize) -> Result<Self> {
        let name = format!("m{n}");
        let dir = tempfile::tempdir()?;
        let (server, _) = Server::start(&dir.path().join("data")).await?;
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig().to_string())?;
        let client = clients(&kubeconfig, &[CONTEXT.to_owned()]).await?.remove(0);
        Ok(Self { name, kubeconfig, client, _server: server, _dir: dir })
    }
}

/// A client for each context.
pub(super) async fn clients(kubeconfig: &Path, contexts: &[String]) -> Result<Vec<Client>> {
    let kubeconfig = Kubeconfig::find(Some(kubeconfig), None)?;
    let connecting = contexts.iter().map(async |name| stolos_cluster::connect(&kubeconfig, name, name).await);
    Ok(try_join_all(connecting).await?.into_iter().map(|cluster| cluster.client).collect())
}
