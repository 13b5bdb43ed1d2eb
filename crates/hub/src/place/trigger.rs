//! When a binding is scheduled (again): Karmada v1.18.2's five reasons. A cluster that joins is none of them for divided
//! workloads: what runs stays where it is.

use serde::{Deserialize, Serialize};

use super::{Strategy, strategy};
use crate::label::{APPLIED_PLACEMENT, DEFAULT_SCHEDULER};
use crate::model::{Binding, ClusterAffinityTerm, Placement};

/// Why a binding is scheduled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Trigger {
    /// The placement is not the one it was scheduled by.
    Placement,
    /// The number of replicas is not the one that was divided.
    Replicas,
    /// Somebody asked for a fresh division.
    Reschedule,
    /// It is not divided, so it goes wherever it may, each time.
    EachTime,
    /// One of its clusters is being taken out of the hub.
    ClusterGone,
}

/// Whether everything is divided afresh: somebody asked for it since the last scheduling.
#[must_use]
pub fn fresh(binding: &Binding) -> bool {
    let asked = binding.spec.reschedule_triggered_at;
    asked.zip(binding.status.last_scheduled_time).is_some_and(|(asked, last)| asked > last)
}

/// Why a binding is to be scheduled now, if it is. `deleting` says of a cluster whether it is being taken out of the hub.
#[must_use]
pub fn due(binding: &Binding, deleting: &dyn Fn(&str) -> bool) -> Option<Trigger> {
    let spec = &binding.spec;
    let placement = spec.placement.as_ref()?;
    let ours = spec.scheduler_name.is_empty() || spec.scheduler_name == DEFAULT_SCHEDULER;
    let suspended = spec.suspension.as_ref().is_some_and(|suspension| suspension.scheduling == Some(true));
    if !ours || suspended {
        return None;
    }
    let strategy = strategy(spec);
    let divided = !matches!(strategy, Strategy::Duplicated | Strategy::Unnumbered);
    let applied = binding.metadata.annotations.get(APPLIED_PLACEMENT);
    if placement_changed(placement, applied, &binding.status.scheduler_observed_affinity_name) {
        return Some(Trigger::Placement);
    }
    let replicas_changed = match strategy {
        Strategy::Unnumbered => false,
        Strategy::Duplicated => spec.clusters.iter().any(|cluster| cluster.replicas != spec.replicas),
        _ => spec.clusters.iter().map(|cluster| cluster.replicas).sum::<i64>() != spec.replicas,
    };
    if replicas_changed {
        return Some(Trigger::Replicas);
    }
    if fresh(binding) {
        return Some(Trigger::Reschedule);
    }
    if !divided {
        return Some(Trigger::EachTime);
    }
    spec.clusters.iter().any(|cluster| deleting(&cluster.name)).then_some(Trigger::ClusterGone)
}

/// Whether the placement is another one than was applied. Of affinity groups only the one in use matters.
fn placement_changed(placement: &Placement, applied: Option<&String>, observed: &str) -> bool {
    let Some(applied) = applied.filter(|applied| !applied.is_empty()) else { return true };
    // An annotation that nobody can read does not move a workload.
    let Ok(mut applied) = serde_json::from_str::<Placement>(applied) else { return false };
    if *placement == applied {
        return false;
    }
    let groups = std::mem::take(&mut applied.cluster_affinities);
    if (Placement { cluster_affinities: Vec::new(), ..placement.clone() }) != applied {
        return true;
    }
    fn named<'a>(groups: &'a [ClusterAffinityTerm], name: &str) -> Option<&'a ClusterAffinityTerm> {
        groups.iter().find(|group| group.name == name)
    }
    match (named(&placement.cluster_affinities, observed), named(&groups, observed)) {
        (Some(now), Some(then)) => now != then,
        _ => true,
    }
}
