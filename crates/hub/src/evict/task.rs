//! Which copies leave a tainted cluster, and what becomes of those that are leaving (Karmada v1.18.2's taint manager and
//! graceful eviction, `gracefulEvictionTasks` of a binding).
//!
//! Two things are not as Karmada has them. A task of a cluster that is not ready stays until it is ready again or has left
//! the hub: what would be taken away while nobody looks would be taken away when the cluster is back, whatever is good by
//! then. And a cluster that is back in time keeps its copy, if nothing has taken its place.

use std::borrow::Borrow;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::taint::{Tolerated, since, tolerated};
use super::{Settings, state};
use crate::divide::Strategy;
use crate::label::APPLIED_PLACEMENT;
use crate::model::{
    Binding, Cluster, EvictionTask, Health, Placement, PurgeMode, TaintEffect, TargetCluster, Toleration,
};
use crate::place::strategy;

/// Who wants what leaves because of a taint.
pub const TAINT_MANAGER: &str = "TaintManager";
/// Why it does.
pub const TAINT_UNTOLERATED: &str = "TaintUntolerated";

/// Whether a task takes the old copy away at once, by either of Karmada's words for it.
pub(crate) fn is_direct(task: &Value) -> bool {
    task["purgeMode"] == "Directly" || task["purgeMode"] == "Immediately"
}

/// What becomes of a binding's places.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Its clusters from now on.
    pub clusters: Vec<TargetCluster>,
    /// Its tasks from now on.
    pub tasks: Vec<EvictionTask>,
    /// Which copies would leave if their state could be preserved, and why it cannot.
    pub kept: Vec<(String, String)>,
    /// What has happened, cluster by cluster.
    pub news: Vec<(String, News)>,
    /// When to look again though nothing has changed.
    pub again: Option<Duration>,
}

/// What has happened to a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It is to leave.
    Evicted,
    /// It may go: all others are well.
    Replaced,
    /// It may go as soon as the floor is kept without it: its time is over.
    TimedOut,
    /// Its cluster is no longer the hub's.
    Gone,
    /// It stays: its cluster is back, and nothing has taken its place.
    Returned,
}

pub(super) fn sooner(again: &mut Option<Duration>, then: Duration) {
    *again = Some(again.map_or(then, |known| known.min(then)));
}

/// What the policy that a binding was placed by puts up with.
fn tolerations(binding: &Binding) -> Vec<Toleration> {
    let applied = binding.metadata.annotations.get(APPLIED_PLACEMENT);
    let applied = applied.and_then(|applied| serde_json::from_str::<Placement>(applied).ok());
    let placement = applied.or_else(|| binding.spec.placement.clone());
    placement.map(|placement| placement.cluster_tolerations).unwrap_or_default()
}

/// Which copies leave now; nothing where none does and none will.
///
/// With no cluster ready nothing leaves: there is nowhere to go, and it may be the hub that is cut off.
#[must_use]
pub fn evict(
    binding: &Binding,
    clusters: &[impl Borrow<Cluster>],
    now: Timestamp,
    settings: &Settings,
) -> Option<Change> {
    let spec = &binding.spec;
    let suspended = spec.suspension.as_ref().is_some_and(|suspension| suspension.scheduling == Some(true));
    if !settings.evicts || spec.placement.is_none() || suspended {
        return None;
    }
    let all = || clusters.iter().map(Borrow::borrow);
    let of = |name: &str| all().find(|cluster| cluster.metadata.name == name);
    let tainted = |cluster: &Cluster| cluster.spec.taints.iter().any(|taint| taint.effect == TaintEffect::NoExecute);
    if !spec.clusters.iter().any(|target| of(&target.name).is_some_and(tainted)) {
        return None;
    }
    if !all().any(|cluster| cluster.status.ready()) {
        return None;
    }
    let tolerations = tolerations(binding);
    let before: Vec<String> = spec.clusters.iter().map(|target| target.name.clone()).collect();
    let mut change = Change { tasks: spec.graceful_eviction_tasks.clone(), ..Change::default() };
    for target in &spec.clusters {
        let known = spec.graceful_eviction_tasks.iter().any(|task| task.from_cluster == target.name);
        let patience = of(&target.name).map_or(Tolerated::Always, |cluster| tolerated(cluster, &tolerations, now));
        match patience {
            Tolerated::No if !known => {}
            Tolerated::For(left) => {
                sooner(&mut change.again, left);
                change.clusters.push(target.clone());
                continue;
            }
            _ => {
                change.clusters.push(target.clone());
                continue;
            }
        }
        let of_policy = spec.failover.as_ref().and_then(|failover| failover.cluster.as_ref());
        let mode = of_policy.and_then(|cluster| cluster.purge_mode).unwrap_or(settings.purge_mode);
        let rules = of_policy.and_then(|cluster| cluster.state_preservation.as_ref());
        let preserved = match state::preserve(rules, binding, &target.name) {
            Ok(preserved) => preserved,
            Err(why) => {
                change.clusters.push(target.clone());
                change.kept.push((target.name.clone(), why));
                continue;
            }
        };
        change.tasks.push(EvictionTask {
            from_cluster: target.name.clone(),
            purge_mode: Some(mode),
            replicas: (target.replicas > 0).then_some(target.replicas),
            reason: TAINT_UNTOLERATED.to_owned(),
            message: format!("the policy does not tolerate a taint of {}", target.name),
            producer: TAINT_MANAGER.to_owned(),
            grace_period_seconds: None,
            suppress_deletion: (mode == PurgeMode::Never).then_some(true),
            preserved_label_state: preserved,
            creation_timestamp: Some(now),
            clusters_before_failover: before.clone(),
        });
        change.news.push((target.name.clone(), News::Evicted));
    }
    let says = |change: &Change| !change.news.is_empty() || !change.kept.is_empty() || change.again.is_some();
    Some(change).filter(says)
}

/// What becomes of the copies that are leaving; nothing where none is. `has_work` says of a cluster whether the binding's
/// Work is still there.
#[must_use]
pub fn assess(
    binding: &Binding,
    clusters: &[impl Borrow<Cluster>],
    has_work: &dyn Fn(&str) -> bool,
    now: Timestamp,
    settings: &Settings,
) -> Option<Change> {
    let spec = &binding.spec;
    if spec.graceful_eviction_tasks.is_empty() {
        return None;
    }
    let tolerations = tolerations(binding);
    let settled = settled(binding);
    let divided = !matches!(strategy(spec), Strategy::Duplicated | Strategy::Unnumbered);
    let there = |name: &str| {
        let found = clusters.iter().map(Borrow::borrow).find(|cluster| cluster.metadata.name == name);
        found.filter(|cluster| cluster.metadata.deletion_timestamp.is_none())
    };
    let is_there = |name: &String| there(name).is_some();
    let taken = spec.clusters.iter().any(|target| is_there(&target.name));
    let mut change = Change { clusters: spec.clusters.clone(), ..Change::default() };
    for task in &spec.graceful_eviction_tasks {
        let name = &task.from_cluster;
        let cluster = there(name);
        let grace = task.grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let grace = grace.map_or(settings.graceful_eviction_timeout, Duration::from_secs);
        let left = grace.saturating_sub(task.creation_timestamp.map_or(Duration::ZERO, |then| since(then, now)));
        // What is promised to a cluster that has left the hub is nowhere.
        let placed: i64 =
            change.clusters.iter().filter(|target| is_there(&target.name)).map(|target| target.replicas).sum();
        let missing = spec.replicas - placed;
        let back = |cluster: &Cluster| {
            task.producer == TAINT_MANAGER && tolerated(cluster, &tolerations, now) != Tolerated::No
        };
        let replicas = task.replicas.unwrap_or(0);
        let directly = task.purge_mode == Some(PurgeMode::Directly);
        let mut restore = |replicas: i64| {
            if !change.clusters.iter().any(|target| target.name == *name) {
                change.clusters.push(TargetCluster { name: name.clone(), replicas });
                change.clusters.sort();
            }
            News::Returned
        };
        let news = match cluster {
            None => Some(News::Gone),
            Some(_) if task.suppress_deletion == Some(true) => None,
            // No overlap is wanted: the task is over when the copy is gone, and what it said is with the next one.
            Some(_) if directly && !has_work(name) => {
                let handed = task.preserved_label_state.is_empty()
                    || (!spec.clusters.is_empty() && spec.clusters.iter().all(|target| has_work(&target.name)));
                if !handed && !left.is_zero() {
                    sooner(&mut change.again, left);
                }
                (handed || left.is_zero()).then_some(News::Replaced)
            }
            Some(cluster) if !cluster.status.ready() => None,
            // Somebody has seen that it may go (Karmada v1.18.2).
            Some(_) if task.suppress_deletion == Some(false) => Some(News::TimedOut),
            Some(cluster) if back(cluster) => match divided {
                false => Some(restore(replicas)),
                true if missing > 0 => Some(restore(replicas.min(missing))),
                true if directly => None,
                true if settled => Some(News::Replaced),
                true if left.is_zero() => Some(restore(replicas)),
                true => {
                    sooner(&mut change.again, left);
                    None
                }
            },
            // Unless what took its place has left the hub: nothing else would ever let it stay, where the scheduler places
            // nothing as long as it is to leave. After its time that decides anew.
            Some(_) if directly && (task.producer == TAINT_MANAGER || taken) => None,
            Some(_) if settled => Some(News::Replaced),
            Some(_) if left.is_zero() => Some(News::TimedOut),
            Some(_) => {
                sooner(&mut change.again, left);
                None
            }
        };
        match news {
            Some(news) => change.news.push((name.clone(), news)),
            None => change.tasks.push(task.clone()),
        }
    }
    Some(change).filter(|change| !change.news.is_empty() || change.again.is_some())
}

/// Whether a binding is placed as it is now, whole, and all its copies are well.
fn settled(binding: &Binding) -> bool {
    let Binding { metadata, spec, status, .. } = binding;
    let well = |target: &TargetCluster| {
        let said = status.aggregated_status.iter().find(|item| item.cluster_name == target.name);
        said.is_some_and(|item| item.applied && item.health == Some(Health::Healthy))
    };
    let divided = !matches!(strategy(spec), Strategy::Duplicated | Strategy::Unnumbered);
    let placed: i64 = spec.clusters.iter().map(|target| target.replicas).sum();
    status.scheduler_observed_generation == metadata.generation
        && !spec.clusters.is_empty()
        && (!divided || placed == spec.replicas)
        && spec.clusters.iter().all(well)
}
