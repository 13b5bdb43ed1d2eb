//! A steady stream of requests through the mesh: from a pod of every cluster to HelloWorld, each of them counted.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, ListParams};
use serde_json::Value;
use stolos_cluster::objects::{self, Resource};
use stolos_cluster::{Cluster, Kubeconfig};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// The namespace of the samples.
const SAMPLES: &str = "sample";
/// Requests of one command: enough that starting it costs little.
const BATCH: usize = 40;
/// Between two requests of one client, in seconds: some load, not all that the machine can bear.
const PAUSE: &str = "0.05";
const MARK: &str = "~~ ";
/// What is waited for here is ready within seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// The clusters of a lab, to change what is in them.
pub(crate) struct World {
    runtime: Runtime,
    clusters: Vec<Cluster>,
}

impl World {
    /// Through the lab's kubeconfig.
    pub(crate) fn connect(kubeconfig: &Path, contexts: &[&str]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let clusters = runtime.block_on(async {
            let kubeconfig = Kubeconfig::find(Some(kubeconfig), None)?;
            try_join_all(contexts.iter().map(|context| stolos_cluster::connect(&kubeconfig, context, context))).await
        })?;
        Ok(Self { runtime, clusters })
    }

    /// Server-side apply, in every cluster.
    pub(crate) fn apply(&self, object: &Value) -> Result<()> {
        let writes = self.clusters.iter().map(|cluster| async {
            objects::apply(&cluster.client, &Resource::of(object)?, object, "stolos-bench", true).await
        });
        self.runtime.block_on(try_join_all(writes))?;
        Ok(())
    }

    /// Deletes an object in every cluster, where it is there.
    pub(crate) fn delete(&self, object: &Value) -> Result<()> {
        let metadata = &object["metadata"];
        let (namespace, name) = (metadata["namespace"].as_str(), metadata["name"].as_str().unwrap_or_default());
        let writes = self.clusters.iter().map(|cluster| async {
            objects::delete(&cluster.client, &Resource::of(object)?, namespace, name, None).await
        });
        self.runtime.block_on(try_join_all(writes))?;
        Ok(())
    }

    /// Merges `patch` into the Deployment whose label `app` is this, in one cluster, and waits until it is rolled out.
    pub(crate) fn roll(&self, cluster: usize, app: &str, patch: &Value) -> Result<()> {
        use k8s_openapi::api::apps::v1::Deployment;
        use kube::ResourceExt as _;
        use kube::api::{Patch, PatchParams};
        let deployments: Api<Deployment> = Api::namespaced(self.clusters[cluster].client.clone(), SAMPLES);
        self.runtime.block_on(async {
            let found = deployments.list(&ListParams::default().labels(&format!("app={app}"))).await?;
            for deployment in found {
                let name = deployment.name_any();
                let patched = deployments.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
                let (generation, began) = (patched.metadata.generation, Instant::now());
                loop {
                    let now = deployments.get(&name).await?;
                    let wanted = now.spec.replicas.unwrap_or(1);
                    let done = now.status.as_ref().is_some_and(|status| {
                        let counts = [status.replicas, status.updated_replicas, status.available_replicas];
                        status.observed_generation >= generation && counts.iter().all(|count| *count == Some(wanted))
                    });
                    if done {
                        break;
                    }
                    ensure!(began.elapsed() < PATIENCE, "{name} is not rolled out");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            Ok(())
        })
    }

    /// Starts requests from every cluster.
    pub(crate) fn load(&self) -> Load<'_> {
        let (end, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
        let clients = self.clusters.iter().map(|cluster| {
            let (cluster, end, seen) = (cluster.clone(), Arc::clone(&end), Arc::clone(&seen));
            self.runtime.spawn(async move {
                while !end.load(Ordering::Relaxed) {
                    if let Err(error) = requests(&cluster, &seen).await {
                        lock(&seen).troubles.push(format!("{}: {error:#}", cluster.name));
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            })
        });
        let clients = clients.collect();
        Load { world: self, clients, end, seen }
    }
}

/// What has been seen of the load.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Requests that were answered well, by the cluster they came from and the version that answered.
    pub(crate) answered: BTreeMap<String, usize>,
    /// What the others got instead.
    pub(crate) failed: Vec<String>,
    /// The client itself could not be started.
    pub(crate) troubles: Vec<String>,
    /// The slowest request.
    pub(crate) slowest: Duration,
}

impl Seen {
    pub(crate) fn requests(&self) -> usize {
        self.answered.values().sum::<usize>() + self.failed.len()
    }

    /// Takes what another has seen.
    pub(crate) fn add(&mut self, other: Self) {
        for (who, count) in other.answered {
            *self.answered.entry(who).or_default() += count;
        }
        self.failed.extend(other.failed);
        self.troubles.extend(other.troubles);
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Requests under way.
pub(crate) struct Load<'a> {
    world: &'a World,
    clients: Vec<JoinHandle<()>>,
    end: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
}

impl Load<'_> {
    /// What has been seen since this was asked last.
    pub(crate) fn seen(&self) -> Seen {
        std::mem::take(&mut *lock(&self.seen))
    }

    /// Ends it, after the requests that are on their way.
    pub(crate) fn end(self) -> Seen {
        self.end.store(true, Ordering::Relaxed);
        self.world.runtime.block_on(join_all(self.clients));
        std::mem::take(&mut *lock(&self.seen))
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One batch from the cluster's sleep pod.
async fn requests(cluster: &Cluster, seen: &Mutex<Seen>) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), SAMPLES);
    let sleep = pods.list(&ListParams::default().labels("app=sleep")).await?;
    let name = sleep.items.into_iter().find_map(|pod| pod.metadata.name).context("no sleep pod")?;
    let script = format!(
        "for i in $(seq 1 {BATCH}); do curl -sS -m 20 -w '\\n{MARK}%{{http_code}} %{{time_total}}\\n' \
         http://helloworld.{SAMPLES}:5000/hello 2>&1; sleep {PAUSE}; done"
    );
    let params = AttachParams::default().container("sleep").stdin(false).stdout(true).stderr(false);
    let mut process = pods.exec(&name, ["sh", "-c", &script], &params).await?;
    let mut lines = BufReader::new(process.stdout().context("no output")?).lines();
    let mut words = String::new();
    while let Some(line) = lines.next_line().await? {
        match line.strip_prefix(MARK) {
            Some(figures) => count(seen, &cluster.name, figures, &std::mem::take(&mut words)),
            None if line.trim().is_empty() => {}
            None => words = line,
        }
    }
    Ok(())
}

/// Takes the end of one answer: its status, how long it took, and what was said before.
fn count(seen: &Mutex<Seen>, from: &str, figures: &str, words: &str) {
    let mut figures = figures.split_whitespace();
    let status: u16 = figures.next().and_then(|status| status.parse().ok()).unwrap_or(0);
    let took = Duration::from_secs_f64(figures.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0));
    let mut seen = lock(seen);
    seen.slowest = seen.slowest.max(took);
    if (200..300).contains(&status) {
        let version = words.split_once("version: ").and_then(|(_, rest)| rest.split(',').next()).unwrap_or("?");
        *seen.answered.entry(format!("{from} → {version}")).or_default() += 1;
    } else {
        seen.failed.push(format!("from {from}: status {status} after {:.2} s: {words}", took.as_secs_f64()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_and_failures_told() {
        let seen = Mutex::new(Seen::default());
        count(&seen, "c1", "200 0.004", "Hello version: v1, instance: helloworld-v1-x");
        count(&seen, "c1", "200 0.002", "Hello version: v2, instance: helloworld-v2-x");
        count(&seen, "c2", "503 1.5", "no healthy upstream");
        let mut all = Seen::default();
        all.add(seen.into_inner().unwrap());
        assert_eq!((all.requests(), all.slowest), (3, Duration::from_millis(1500)));
        assert_eq!(all.answered, [("c1 → v1".to_owned(), 1), ("c1 → v2".to_owned(), 1)].into());
        assert_eq!(all.failed, ["from c2: status 503 after 1.50 s: no healthy upstream"]);
    }
}
