//! What a member that is not ready is tainted with, and for how long a policy puts up with it.

use std::time::Duration;

use jiff::Timestamp;

use super::Settings;
use crate::label::{NOT_READY, UNREACHABLE};
use crate::model::{Cluster, Condition, Taint, TaintEffect, Toleration};
use crate::place::affinity::tolerates;

/// How long ago something was by this clock; nothing where it has not been yet: clocks differ.
pub(super) fn since(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or(Duration::ZERO)
}

/// The taints that a Cluster is to have by its condition `Ready`, and when to look again.
///
/// Not ready: nothing new comes (`NoSchedule`, Karmada v1.18.2). Not ready for longer than `failover_eviction_timeout`: what
/// is there leaves (`NoExecute`); Karmada's controller did so up to v1.13 and leaves it to people since then. Other people's
/// taints stay as they are, but for the time that a `NoExecute` without one gets: for how long it is tolerated counts from then.
#[must_use]
pub fn wanted(
    before: &[Taint],
    ready: Option<&Condition>,
    now: Timestamp,
    settings: &Settings,
) -> (Vec<Taint>, Option<Duration>) {
    let key = match ready.map(|ready| ready.status.as_str()) {
        Some("True") => None,
        Some("Unknown") => Some(UNREACHABLE),
        _ => Some(NOT_READY),
    };
    let lasts = ready.and_then(|ready| ready.last_transition_time).map_or(Duration::ZERO, |then| since(then, now));
    let left = settings.failover_eviction_timeout.checked_sub(lasts).filter(|left| !left.is_zero());
    let evicts = settings.evicts && ready.is_some() && left.is_none();
    let effects: &[TaintEffect] = match key {
        Some(_) if evicts => &[TaintEffect::NoSchedule, TaintEffect::NoExecute],
        Some(_) => &[TaintEffect::NoSchedule],
        None => &[],
    };
    let ours = |taint: &Taint| [UNREACHABLE, NOT_READY].contains(&taint.key.as_str()) && taint.value.is_empty();
    let meant = |taint: &Taint| key == Some(taint.key.as_str()) && effects.contains(&taint.effect);
    let mut after: Vec<Taint> = before.iter().filter(|taint| !ours(taint) || meant(taint)).cloned().collect();
    for effect in effects {
        if let Some(key) = key
            && !after.iter().any(|taint| ours(taint) && taint.effect == *effect)
        {
            // What was so under the other name has been so since then.
            let known = before.iter().find(|taint| ours(taint) && taint.effect == *effect);
            let added = known.and_then(|taint| taint.time_added).unwrap_or(now);
            let added = Some(added);
            after.push(Taint { key: key.to_owned(), value: String::new(), effect: *effect, time_added: added });
        }
    }
    // Of whoever wrote one by hand it counts from when it is first seen (Karmada's mutation of Clusters).
    for taint in after.iter_mut().filter(|taint| taint.effect == TaintEffect::NoExecute) {
        taint.time_added.get_or_insert(now);
    }
    let again = left.filter(|_| settings.evicts && key.is_some() && ready.is_some());
    (after, again)
}

/// For how long more a cluster's `NoExecute` taints are put up with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tolerated {
    /// There is none, or all are for ever.
    Always,
    /// For so long.
    For(Duration),
    /// No longer.
    No,
}

/// For how long more a workload may stay in a cluster (Kubernetes' taint manager, which Karmada's follows): a taint that is
/// not tolerated, not at all; one that is tolerated for some time, until the shortest of these times after it was added. The
/// hub's own taints of a cluster that is ready again are about to go.
#[must_use]
pub fn tolerated(cluster: &Cluster, tolerations: &[Toleration], now: Timestamp) -> Tolerated {
    let mut shortest: Option<Duration> = None;
    let over = |taint: &Taint| cluster.status.ready() && [UNREACHABLE, NOT_READY].contains(&taint.key.as_str());
    let taints = cluster.spec.taints.iter().filter(|taint| taint.effect == TaintEffect::NoExecute);
    for taint in taints.filter(|taint| !over(taint)) {
        let mut matching = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if matching.peek().is_none() {
            return Tolerated::No;
        }
        let Some(seconds) = matching.filter_map(|toleration| toleration.toleration_seconds).min() else { continue };
        let patience = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let left = patience.saturating_sub(taint.time_added.map_or(Duration::ZERO, |then| since(then, now)));
        shortest = Some(shortest.map_or(left, |known| known.min(left)));
    }
    match shortest {
        None => Tolerated::Always,
        Some(left) if left.is_zero() => Tolerated::No,
        Some(left) => Tolerated::For(left),
    }
}
