//! The server under test: a process of its own that dies with the bench.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::wire::{Client, Connection};

/// Its context in its kubeconfig.
pub(crate) const CONTEXT: &str = "bench";
/// What the child says on its first line, once it listens.
const TIME_TO_START: Duration = Duration::from_secs(30);

/// Runs the server in `dir` until the standard input ends: `stolos-bench serve-apiserver DIR`.
pub(crate) fn serve(dir: &Path) -> Result<()> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = stolos_apiserver::Server::builder().data_dir(dir).start().await?;
        let admin = server.admin();
        let about = json!({"address": server.address().to_string(), "ca": server.ca(),
            "certificate": admin.certificate, "key": admin.key, "kubeconfig": server.kubeconfig(CONTEXT)});
        writeln!(std::io::stdout(), "{about}")?;
        let end = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        end.await??;
        server.stop().await;
        Ok(())
    })
}

/// A thousand watchers are a thousand descriptors on either side.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// The server as a child.
pub(crate) struct Server {
    child: Child,
    /// With all rights, by client certificate.
    pub(super) admin: Client,
    about: Value,
}

impl Server {
    /// Starts it in `dir` and waits until `/readyz` says so; gives the seconds from exec to that answer.
    pub(crate) async fn start(dir: &Path) -> Result<(Self, f64)> {
        let began = Instant::now();
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve-apiserver").arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(began.elapsed() < TIME_TO_START, "the server does not start");
        let about: Value = serde_json::from_str(&line).context("the server did not start")?;
        let text = |field: &str| about[field].as_str().context("no answer");
        let admin = Client::new(text("address")?, text("ca")?, Some((text("certificate")?, text("key")?)), None)?;
        let mut connection = admin.connect().await?;
        let ready = admin.request("GET", "/readyz", "", b"");
        while connection.call(&ready).await?.status != 200 {
            ensure!(began.elapsed() < TIME_TO_START, "the server does not become ready");
        }
        let took = began.elapsed().as_secs_f64();
        Ok((Self { child, admin, about }, took))
    }

    /// For clients that are told by a file, with all rights.
    pub(crate) fn kubeconfig(&self) -> &Value {
        &self.about["kubeconfig"]
    }

    pub(super) fn process(&self) -> u32 {
        self.child.id()
    }

    /// A service account that may read and write ConfigMaps, as a controller in the cluster may.
    pub(super) async fn workload(&self) -> Result<Client> {
        const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";
        let admin = &self.admin;
        let mut connection = admin.connect().await?;
        let accounts = "/api/v1/namespaces/bench/serviceaccounts";
        let wanted = [
            ("/api/v1/namespaces".to_owned(), json!({"metadata": {"name": "bench"}})),
            (accounts.to_owned(), json!({"metadata": {"name": "worker"}})),
            (
                format!("{RBAC}/clusterroles"),
                json!({"metadata": {"name": "worker"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"],
                    "verbs": ["get", "list", "watch", "create", "patch", "update", "delete"]}]}),
            ),
            (
                format!("{RBAC}/clusterrolebindings"),
                json!({"metadata": {"name": "worker"},
                    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "worker"},
                    "subjects": [{"kind": "ServiceAccount", "name": "worker", "namespace": "bench"}]}),
            ),
        ];
        for (path, object) in wanted {
            create(&mut connection, admin, &path, &object).await?;
        }
        let request = json!({"spec": {"expirationSeconds": 3600}});
        let made = create(&mut connection, admin, &format!("{accounts}/worker/token"), &request).await?;
        let token = made["status"]["token"].as_str().context("no token")?;
        let text = |field: &str| self.about[field].as_str().context("no answer");
        Client::new(text("address")?, text("ca")?, None, Some(token))
    }

    /// Ends it as a crash does, so that what follows starts from what was durable.
    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn create(connection: &mut Connection, client: &Client, path: &str, object: &Value) -> Result<Value> {
    let answer =
        connection.call(&client.request("POST", path, "application/json", object.to_string().as_bytes())).await?;
    ensure!(answer.status == 201, "{path}: {}: {}", answer.status, String::from_utf8_lossy(&answer.begin));
    Ok(serde_json::from_slice(&answer.begin)?)
}
