//! The hidden role `serve-control`: a control plane whose clusters are a [`Fleet`].

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use serde_json::json;
use stolos_control::registry::Change;
use stolos_control::{Done, Feed};
use stolos_k8s::istio;
use stolos_pki::Authority;
use stolos_serve::{Container, HostNet, Output, Stop};
use tokio::sync::watch;

use super::fleet::Fleet;
use super::{Ask, Told};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(170);

/// What the role is to be.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Setup {
    /// What there is.
    pub(crate) fleet: Fleet,
    /// How many proxies will come.
    pub(crate) proxies: usize,
    /// Where it may keep files.
    pub(crate) folder: PathBuf,
}

/// It serves.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Begun {
    /// At this address.
    pub(crate) address: IpAddr,
    /// So long did it take to read the fleet.
    pub(crate) seconds: f64,
}

/// Runs the role.
pub(crate) fn run(setup: &str) -> Result<()> {
    let setup: Setup = super::setup(setup)?;
    crate::process::raise_open_files();
    // As many threads as `stolos` has on a machine of two cores, although this is pinned to one.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(setup))
}

async fn serve(setup: Setup) -> Result<()> {
    // Ports are fixed, so every control plane has an address of its own.
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, 180, high, low.max(1));
    authority(&setup.folder)?;
    let env = [("CLUSTER_ID", &*setup.fleet.cluster(0)), ("MESH_ID", "mesh"), ("POD_NAME", "istiod-1")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let container = Container {
        net: Arc::new(HostNet::new(address.into())),
        root: setup.folder.clone(),
        env: env.into(),
        args: vec!["discovery".to_owned()],
        output: Output::discard(),
        programs: None,
    };
    let stop = Stop::new();
    let ids: Vec<_> = (1..setup.fleet.clusters).map(|cluster| setup.fleet.cluster(cluster)).collect();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let serving = tokio::spawn({
        let stop = stop.clone();
        async move {
            let ids: Vec<&str> = ids.iter().map(AsRef::as_ref).collect();
            stolos_control::run_told(container, reviewer(), &ids, stop, |feed| _ = sender.send(feed)).await
        }
    });
    let Ok(feed) = receiver.await else {
        serving.await??;
        bail!("the control plane has ended");
    };
    let begun = Instant::now();
    read(&setup.fleet, &feed).await?;
    tokio::time::timeout(PATIENCE, feed.state.ready()).await.context("never ready")?;
    super::say(&Begun { address: address.into(), seconds: begun.elapsed().as_secs_f64() })?;
    let mut driver = Driver { fleet: setup.fleet, done: feed.done.clone(), feed, changes: 0 };
    loop {
        // A thread of its own reads, because standard input cannot be waited for otherwise.
        let Some(ask) = tokio::task::spawn_blocking(super::line::<Ask>).await?? else { break };
        super::say(&driver.answer(ask).await?)?;
    }
    stop.ask();
    Ok(serving.await??)
}

/// Tells everything, cluster by cluster, as lists would bring it.
async fn read(fleet: &Fleet, feed: &Feed) -> Result<()> {
    for cluster in 0..fleet.clusters {
        let (id, contents) = (fleet.cluster(cluster), fleet.contents(cluster)?);
        feed.namespaces(&id, Change::All(contents.namespaces)).await;
        feed.nodes(&id, Change::All(contents.nodes)).await;
        feed.services(&id, Change::All(contents.services)).await;
        feed.slices(&id, Change::All(contents.slices)).await;
        feed.pods(&id, Change::All(contents.pods)).await;
    }
    Ok(())
}

struct Driver {
    fleet: Fleet,
    feed: Feed,
    done: watch::Receiver<Done>,
    changes: usize,
}

impl Driver {
    async fn answer(&mut self, ask: Ask) -> Result<Told> {
        let begun = Instant::now();
        let mut told = Told::default();
        match ask {
            Ask::Settle { proxies } => {
                let settled = self.done.wait_for(|done| done.proxies >= proxies);
                tokio::time::timeout(PATIENCE, settled).await.context("not all proxies have everything")??;
            }
            Ask::Change { times, of } => {
                for _ in 0..times {
                    let (cluster, change) = self.fleet.change(self.changes, of);
                    self.changes += 1;
                    let id = self.fleet.cluster(cluster);
                    let version = self.done.borrow().version;
                    let at = Instant::now();
                    self.feed.slices(&id, change).await;
                    let done = self.done.wait_for(|done| done.version > version);
                    let done = tokio::time::timeout(PATIENCE, done).await.context("a change never arrived")??;
                    told.all.extend(done.at.map(|done| done.duration_since(at).as_secs_f64() * 1000.0));
                    told.each.extend(done.delays.iter().map(|delay| delay.as_secs_f64() * 1000.0));
                    drop(done);
                    // Let what was stirred up come to rest, as changes that have nothing to do with each other do.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Ask::Flood { per_second, seconds } => {
                let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second.max(1));
                for _ in 0..per_second * seconds {
                    tick.tick().await;
                    let (cluster, change) = self.fleet.change(self.changes, super::fleet::Seen::ByAll);
                    self.changes += 1;
                    let before = self.done.borrow_and_update().version;
                    self.feed.slices(&self.fleet.cluster(cluster), change).await;
                    let done = self.done.borrow();
                    if done.version > before {
                        told.each.extend(done.delays.iter().map(|delay| delay.as_secs_f64() * 1000.0));
                    }
                }
            }
        }
        told.seconds = begun.elapsed().as_secs_f64();
        Ok(told)
    }
}

/// The own cluster's API server, which only says that a token is who it says it is: `namespace:account`.
fn reviewer() -> kube::Client {
    let service = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        let is_review = request.uri().path().ends_with("/tokenreviews");
        let body = http_body_util::BodyExt::collect(request.into_body()).await.map(|body| body.to_bytes());
        let asked: serde_json::Value =
            body.ok().and_then(|body| serde_json::from_slice(&body).ok()).unwrap_or_default();
        let token = asked["spec"]["token"].as_str().unwrap_or_default();
        let (status, answer) = if is_review {
            let user = json!({"username": format!("system:serviceaccount:{token}")});
            let status = json!({"authenticated": true, "audiences": [istio::TOKEN_AUDIENCE], "user": user});
            let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
                "metadata": {}, "spec": asked["spec"], "status": status});
            (201, review)
        } else {
            let status = json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                "reason": "NotFound", "code": 404, "message": "nothing is here"});
            (404, status)
        };
        let text = serde_json::to_vec(&answer).unwrap_or_default();
        let response = http::Response::builder().status(status).header("content-type", "application/json");
        response.body(kube::client::Body::from(text))
    });
    kube::Client::new(service, "default")
}

/// A root and this cluster's intermediate, where the control plane looks for them.
fn authority(folder: &Path) -> Result<()> {
    let (day, now) = (Duration::from_secs(24 * 3600), SystemTime::now());
    let root = Authority::new_root("mesh.example.com", day * 30, now)?;
    let made = root.issue_intermediate("bench", "mesh.example.com", "cluster.local", day * 20, now)?;
    let below = folder.join("etc/cacerts");
    std::fs::create_dir_all(&below)?;
    let files = [
        (istio::CA_CERT_KEY, made.ca_cert.as_str()),
        (istio::CA_KEY_KEY, made.ca_key.expose()),
        (istio::CERT_CHAIN_KEY, &made.cert_chain),
        (istio::ROOT_CERT_KEY, &made.root_cert),
    ];
    for (name, text) in files {
        std::fs::write(below.join(name), text)?;
    }
    Ok(std::fs::write(super::root_certificate(folder), root.roots_pem())?)
}
