//! A stream of requests from a pod, which goes on until it is told to end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinHandle;

use crate::world::eventually;

/// One request, as its client saw it.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    /// When it was sent.
    pub(crate) at: Instant,
    pub(crate) took: Duration,
    /// 0 when there was no answer.
    pub(crate) status: u16,
    /// The pod that answered, or what the client said instead.
    pub(crate) by: String,
}

impl Sent {
    pub(crate) fn failed(&self) -> bool {
        !(200..300).contains(&self.status)
    }
}

/// Requests from a sleep pod to HelloWorld, one after another.
pub(crate) struct Traffic {
    end: Arc<AtomicBool>,
    sent: Arc<Mutex<Vec<Sent>>>,
    task: JoinHandle<()>,
}

/// Few enough that the end comes soon, enough that starting them costs little.
const BATCH: usize = 20;
const MARK: &str = "~~ ";

impl Traffic {
    /// Starts requests in the cluster's pod `pod` of namespace `sample`.
    pub(crate) fn start(client: &kube::Client, pod: &str) -> Self {
        let pods: Api<Pod> = Api::namespaced(client.clone(), "sample");
        let (end, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let task = tokio::spawn(stream(pods, pod.to_owned(), Arc::clone(&end), Arc::clone(&sent)));
        Self { end, sent, task }
    }

    /// All so far.
    pub(crate) fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    /// Waits until requests sent after `since` satisfy `enough`.
    pub(crate) async fn until(&self, what: &str, since: Instant, enough: impl Fn(&[Sent]) -> bool) {
        eventually(what, Duration::from_secs(90), || async {
            let sent: Vec<_> = self.sent().into_iter().filter(|sent| sent.at >= since).collect();
            let last: Vec<_> = sent.iter().rev().take(5).collect();
            if enough(&sent) { Ok(()) } else { Err(format!("{} requests, the last {last:?}", sent.len())) }
        })
        .await;
    }

    /// Waits for so many more requests.
    pub(crate) async fn more(&self, count: usize) {
        self.until(&format!("{count} more requests"), Instant::now(), |sent| sent.len() >= count).await;
    }

    /// Ends the stream and returns all that was sent.
    pub(crate) async fn end(self) -> Vec<Sent> {
        self.end.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        let sent = self.sent.lock().unwrap();
        sent.clone()
    }
}

async fn stream(pods: Api<Pod>, pod: String, end: Arc<AtomicBool>, sent: Arc<Mutex<Vec<Sent>>>) {
    let script = format!(
        "for i in $(seq 1 {BATCH}); do curl -sS -m 20 -w '\\n{MARK}%{{http_code}} %{{time_total}}\\n' \
         http://helloworld.sample:5000/hello 2>&1; done"
    );
    while !end.load(Ordering::Relaxed) {
        let params = AttachParams::default().container("sleep").stdin(false).stdout(true).stderr(false);
        let mut process = pods.exec(&pod, ["sh", "-c", &script], &params).await.unwrap();
        let mut lines = BufReader::new(process.stdout().unwrap()).lines();
        let mut words = String::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            let Some(figures) = line.strip_prefix(MARK) else {
                if !line.trim().is_empty() {
                    words = line.rsplit_once("instance: ").map_or(line.as_str(), |(_, pod)| pod.trim()).to_owned();
                }
                continue;
            };
            let mut figures = figures.split_whitespace();
            let status = figures.next().and_then(|status| status.parse().ok()).unwrap_or(0);
            let took = figures.next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0.0);
            let took = Duration::from_secs_f64(took);
            let at = Instant::now().checked_sub(took).unwrap();
            sent.lock().unwrap().push(Sent { at, took, status, by: std::mem::take(&mut words) });
        }
    }
}

/// How many, how many failed, and the slowest: for people.
pub(crate) fn figures(what: &str, sent: &[Sent]) -> String {
    let failed = sent.iter().filter(|s| s.failed()).count();
    let slowest = sent.iter().map(|s| s.took).max().unwrap_or_default();
    format!("{what}: {} requests, {failed} failed, the slowest took {:.2} s", sent.len(), slowest.as_secs_f64())
}
