//! The controllers that make a cluster's objects into running things: Deployments, ReplicaSets, StatefulSets, DaemonSets,
//! Jobs, CronJobs, disruption budgets, endpoints, load balancers, autoscalers, volume claims, nodes and the
//! scheduler.
//!
//! Each is one loop that looks at everything it is responsible for, decides in pure code, and writes the difference.

mod autoscaler;
pub(crate) mod claims;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod history;
mod job;
mod loadbalancer;
mod node;
mod pods;
mod replicaset;
mod schedule;
mod scheduler;
mod statefulset;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use serde_json::Value;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::cache::{Cache, Cached};
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
    caches.nodes.subscribe(&poke);
    caches.claims.subscribe(&poke);
    tasks.spawn(forever("scheduler", poke, Arc::clone(shared), scheduler::reconcile));

    let poke = Arc::new(Notify::new());
    caches.statefulsets.subscribe(&poke);
    caches.revisions.subscribe(&poke);
    caches.pods.subscribe(&poke);
    tasks.spawn(forever("statefulsets", poke, Arc::clone(shared), statefulset::reconcile));

    let poke = Arc::new(Notify::new());
    caches.daemonsets.subscribe(&poke);
    caches.revisions.subscribe(&poke);
    caches.nodes.subscribe(&poke);
    caches.pods.subscribe(&poke);
    tasks.spawn(forever("daemonsets", poke, Arc::clone(shared), daemonset::reconcile));

    let poke = Arc::new(Notify::new());
    caches.jobs.subscribe(&poke);
    caches.pods.subscribe(&poke);
    tasks.spawn(forever("jobs", poke, Arc::clone(shared), job::reconcile));

    let poke = Arc::new(Notify::new());
    caches.cronjobs.subscribe(&poke);
    caches.jobs.subscribe(&poke);
    tasks.spawn(forever("cronjobs", poke, Arc::clone(shared), cronjob::reconcile));

    let poke = Arc::new(Notify::new());
    caches.budgets.subscribe(&poke);
    caches.pods.subscribe(&poke);
    tasks.spawn(forever("disruption budgets", poke, Arc::clone(shared), disruption::reconcile));

    let poke = Arc::new(Notify::new());
    caches.claims.subscribe(&poke);
    caches.volumes.subscribe(&poke);
    caches.pods.subscribe(&poke);
    let told = claims::Told::default();
    let claims = move |shared| claims::reconcile(shared, told.clone());
    tasks.spawn(forever("claims", poke, Arc::clone(shared), claims));

    tasks.spawn(autoscaler::run(Arc::clone(shared)));
    tasks.spawn(node::run(Arc::clone(shared)));
}

/// Why a controller could not finish its round. It tries again a little later.
pub(crate) type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// Not a failure: there is something to do after this time, which nobody will poke for.
#[derive(Debug)]
struct Later(Duration);

impl Later {
    fn seconds(seconds: i64) -> Trouble {
        Box::new(Self(Duration::from_secs(seconds.max(1) as u64)))
    }
}

impl std::fmt::Display for Later {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "more to do in {:?}", self.0)
    }
}

impl std::error::Error for Later {}

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
            Err(error) if error.is::<Later>() => {
                let wait = error.downcast_ref::<Later>().map_or(FIRST, |later| later.0);
                delay = FIRST;
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = poke.notified() => {}
                    () = stop.asked() => return,
                }
                poke.notify_one();
            }
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

/// Carries out all of `work`, some of it at once. The first trouble is told when the rest is done; without trouble, the
/// nearest [`Later`].
async fn each(work: impl Iterator<Item = impl Future<Output = Result<(), Trouble>>>) -> Result<(), Trouble> {
    let mut results = futures::stream::iter(work).buffer_unordered(AT_ONCE);
    let mut trouble = Ok(());
    let mut later: Option<Duration> = None;
    while let Some(result) = results.next().await {
        match result.as_ref().err().and_then(|error| error.downcast_ref::<Later>()) {
            Some(Later(wait)) => later = Some(later.map_or(*wait, |known| known.min(*wait))),
            None => trouble = trouble.and(result),
        }
    }
    match later {
        Some(wait) if trouble.is_ok() => Err(Box::new(Later(wait))),
        _ => trouble,
    }
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

/// Makes `owner` the controller of what its selector matches and nobody controls, as the controllers of Kubernetes do:
/// what `kubectl delete --cascade=orphan` left behind finds its way to an owner of the same shape.
async fn adopt<K, O>(
    shared: &Shared,
    cache: &Cache<K>,
    owner: &O,
    selector: &LabelSelector,
    orphans: &[Arc<K>],
    owned: &mut Vec<Arc<K>>,
) -> Result<(), Trouble>
where
    K: Cached + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    O: kube::Resource<DynamicType = ()>,
{
    if orphans.is_empty() {
        return Ok(());
    }
    let Ok(selector) = Selector::try_from(selector.clone()) else { return Ok(()) };
    let mine = orphans.iter().filter(|o| o.namespace() == owner.namespace() && selector.matches(o.labels()));
    for orphan in mine.filter(|_| !selector.selects_all()) {
        let mut references = orphan.owner_references().to_vec();
        references.push(owned_by(&O::api_version(&()), &O::kind(&()), owner));
        let patch = serde_json::json!({"metadata": {"uid": orphan.uid(), "ownerReferences": references}});
        let api: Api<K> = Api::namespaced(shared.client.clone(), &orphan.namespace().unwrap_or_default());
        match api.patch(&orphan.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(adopted) => {
                cache.wrote(adopted.clone());
                owned.push(Arc::new(adopted));
            }
            // It went, or another of its name came.
            Err(error) if is_code(&error, 404) || is_code(&error, 409) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The objects that nobody controls and that are not going.
fn orphans<K: ResourceExt>(objects: &[Arc<K>]) -> Vec<Arc<K>> {
    let free = |object: &&Arc<K>| controller(object.as_ref()).is_none() && object.meta().deletion_timestamp.is_none();
    objects.iter().filter(free).cloned().collect()
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

/// The fields of `after` that differ from `before`; a count of zero and an absent one are the same.
fn differs(before: &Value, after: &Value) -> bool {
    after.as_object().into_iter().flatten().any(|(field, value)| {
        let old = &before[field];
        let nothing = |v: &Value| v.is_null() || *v == serde_json::json!(0);
        old != value && !(nothing(old) && nothing(value))
    })
}

/// Writes a status where it differs from the one that the object has.
async fn put_status<K>(
    shared: &Shared,
    cache: &Cache<K>,
    object: &K,
    before: impl serde::Serialize,
    after: Value,
) -> Result<(), Trouble>
where
    K: Cached + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
{
    if !differs(&serde_json::to_value(before)?, &after) {
        return Ok(());
    }
    let api: Api<K> = Api::namespaced(shared.client.clone(), &object.namespace().unwrap_or_default());
    let patch = Patch::Merge(serde_json::json!({"status": after}));
    match api.patch_status(&object.name_any(), &PatchParams::default(), &patch).await {
        Ok(object) => {
            cache.wrote(object);
            Ok(())
        }
        Err(error) if is_code(&error, 404) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A time as Kubernetes writes it.
fn stamp(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Whether a pod's condition of this type is true.
pub(crate) fn condition(pod: &Pod, kind: &str) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind && c.status == "True")
}

/// Whether a pod has done what it was to do.
fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Whether a pod still counts for its owner.
fn is_active(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none() && !is_over(pod)
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
