//! The controllers that make a cluster's objects into running things: Deployments, ReplicaSets, endpoints, load
//! balancers, nodes and the scheduler.
//!
//! Each is one loop that looks at everything it is responsible for, decides in pure code, and writes the difference.

mod deployment;
mod endpoints;
mod loadbalancer;
mod node;
mod replicaset;
mod scheduler;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::cluster::Shared;

/// How many writes one controller has under way at once.
const AT_ONCE: usize = 32;

/// Starts every controller of a cluster.
pub(crate) fn start(shared: &Arc<Shared>, tasks: &TaskTracker) {
    let caches = &shared.caches;
    let poke = Arc::new(Notify::new());
    caches.deployments.subscribe(&poke);
    caches.replicasets.subscribe(&poke);
    tasks.spawn(forever("deployments", poke, Arc::clone(shared), deployment::reconcile));

    let poke = Arc::new(Notify::new());
    caches.replicasets.subscribe(&poke);
    caches.pods.subscribe(&poke);
    tasks.spawn(forever("replicasets", poke, Arc::clone(shared), replicaset::reconcile));

    let poke = Arc::new(Notify::new());
    caches.services.subscribe(&poke);
    caches.pods.subscribe(&poke);
    tasks.spawn(forever("endpoints", poke, Arc::clone(shared), endpoints::reconcile));

    let poke = Arc::new(Notify::new());
    caches.services.subscribe(&poke);
    tasks.spawn(forever("load balancers", poke, Arc::clone(shared), loadbalancer::reconcile));

    let poke = Arc::new(Notify::new());
    caches.pods.subscribe(&poke);
    tasks.spawn(forever("scheduler", poke, Arc::clone(shared), scheduler::reconcile));

    tasks.spawn(node::run(Arc::clone(shared)));
}

/// Why a controller could not finish its round. It tries again a little later.
pub(crate) type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// Runs `reconcile` whenever `poke` is given, and again, later and later, while it fails.
async fn forever<F>(
    name: &'static str,
    poke: Arc<Notify>,
    shared: Arc<Shared>,
    reconcile: impl Fn(Arc<Shared>) -> F + Send,
) where
    F: Future<Output = Result<(), Trouble>> + Send,
{
    let stop = shared.stop.clone();
    const FIRST: Duration = Duration::from_millis(50);
    const LAST: Duration = Duration::from_secs(5);
    let mut delay = FIRST;
    poke.notify_one();
    loop {
        tokio::select! {
            () = poke.notified() => {}
            () = stop.asked() => return,
        }
        let result = tokio::select! {
            result = reconcile(Arc::clone(&shared)) => result,
            () = stop.asked() => return,
        };
        match result {
            Ok(()) => delay = FIRST,
            Err(error) => {
                tracing::debug!(controller = name, cluster = %shared.name, %error, "trying again");
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = stop.asked() => return,
                }
                delay = (delay * 2).min(LAST);
                poke.notify_one();
            }
        }
    }
}

/// Carries out all of `work`, some of it at once. The first trouble is told when the rest is done.
async fn each(work: impl Iterator<Item = impl Future<Output = Result<(), Trouble>>>) -> Result<(), Trouble> {
    let mut results = futures::stream::iter(work).buffer_unordered(AT_ONCE);
    let mut trouble = Ok(());
    while let Some(result) = results.next().await {
        trouble = trouble.and(result);
    }
    trouble
}

/// `objects` by the UID of the controller that owns them.
fn by_controller<K: ResourceExt>(objects: Vec<Arc<K>>) -> HashMap<String, Vec<Arc<K>>> {
    let mut owned: HashMap<_, Vec<_>> = HashMap::new();
    for object in objects {
        if let Some(owner) = controller(object.as_ref()) {
            owned.entry(owner.to_owned()).or_default().push(object);
        }
    }
    owned
}

/// The UID of the controller that owns an object.
pub(crate) fn controller(object: &impl ResourceExt) -> Option<&str> {
    object.owner_references().iter().find(|o| o.controller == Some(true)).map(|o| o.uid.as_str())
}

fn owned_by(api_version: &str, kind: &str, owner: &impl ResourceExt) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Whether a pod's condition of this type is true.
pub(crate) fn condition(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind && c.status == "True")
}

/// Whether a pod still counts for its owner.
fn is_active(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

/// A short, stable, readable hash of a value.
fn short_hash(value: &Value, length: usize) -> String {
    // The alphabet of Kubernetes' own suffixes: no vowels, so no words.
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let text = value.to_string();
    let mut hash =
        text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut out = String::new();
    for _ in 0..length {
        out.push(ALPHABET[(hash % ALPHABET.len() as u64) as usize] as char);
        hash /= ALPHABET.len() as u64;
    }
    out
}

/// An absent object is as good as a deleted one.
fn gone<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error),
    }
}

fn is_code(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}
