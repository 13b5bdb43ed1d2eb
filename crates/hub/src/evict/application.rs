//! Which copies leave a cluster that is well because they are not (Karmada v1.18.2's application failover,
//! `failover.application` of a policy).
//!
//! Karmada moves a workload that can run nowhere from cluster to cluster for ever. Here a copy leaves only where something
//! takes its place that is not known to be unhealthy, too; and where a workload has failed it does not go again as long as
//! it is the same ([`Failures`]).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::state;
use super::taint::since;
use super::task::{Change, News, sooner};
use crate::divide::Strategy;
use crate::label::FAILED_IN;
use crate::model::{ApplicationFailover, Binding, EvictionTask, Health, PurgeMode, TargetCluster};
use crate::place::strategy;

/// Why a copy leaves.
pub const APPLICATION_FAILURE: &str = "ApplicationFailure";
/// Who wants what leaves because it is not well.
pub const PRODUCER: &str = "resource-binding-application-failover-controller";
/// The same of what has no namespace.
pub const CLUSTER_PRODUCER: &str = "cluster-resource-binding-application-failover-controller";
/// For how long a copy may be unhealthy where the policy does not say it.
const TOLERATION: u64 = 300;
/// For how long a workload does not go again where it has failed: for so long at first, then twice as long each time.
const FIRST: Duration = Duration::from_secs(3600);
/// And never for longer than this.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What a binding's policy says about copies that are not well, if anything is done about them now.
#[must_use]
pub fn wanted(binding: &Binding) -> Option<&ApplicationFailover> {
    let spec = &binding.spec;
    let suspended = |it: &crate::model::Suspension| it.scheduling == Some(true) || it.dispatching == Some(true);
    if spec.placement.is_none() || spec.suspension.as_ref().is_some_and(suspended) {
        return None;
    }
    spec.failover.as_ref()?.application.as_ref()
}

fn toleration(application: &ApplicationFailover) -> Duration {
    let said = application.decision_conditions.toleration_seconds;
    Duration::from_secs(said.map_or(TOLERATION, |seconds| u64::try_from(seconds).unwrap_or(0)))
}

/// Who says that a binding's copy leaves.
#[must_use]
pub fn producer(binding: &Binding) -> &'static str {
    if binding.metadata.namespace.is_empty() { CLUSTER_PRODUCER } else { PRODUCER }
}

/// Since when the copies of a binding have been unhealthy. As with Karmada, a hub that starts again counts from then.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Watch {
    unhealthy: BTreeMap<String, Since>,
}

#[derive(Clone, Debug, PartialEq)]
struct Since {
    /// The manifest that is unhealthy: another one gets its own time.
    of: String,
    at: Timestamp,
    told: bool,
}

impl Watch {
    /// Takes in what members say now: the clusters whose copy has been unhealthy for too long, and when to look again.
    /// `seen` tells a cluster's manifest from another one, if the cluster is well and answers: what a silent one said last
    /// neither begins nor ends anything.
    pub fn look(
        &mut self,
        binding: &Binding,
        seen: &dyn Fn(&str) -> Option<String>,
        now: Timestamp,
    ) -> (Vec<String>, Option<Duration>) {
        let (mut due, mut again) = (Vec::new(), None);
        let Some(application) = wanted(binding) else {
            self.unhealthy.clear();
            return (due, again);
        };
        let patience = toleration(application);
        self.unhealthy
            .retain(|cluster, _| stays(binding, cluster) && health(binding, cluster) != Some(Health::Healthy));
        for target in unhealthy(binding) {
            let Some(of) = seen(target) else { continue };
            let known = self.unhealthy.entry(target.to_owned());
            let known = known.or_insert_with(|| Since { of: of.clone(), at: now, told: false });
            if known.of != of {
                *known = Since { of, at: now, told: false };
            }
            let left = patience.saturating_sub(since(known.at, now));
            match left.is_zero() {
                true => due.push(target.to_owned()),
                false => sooner(&mut again, left),
            }
        }
        (due, again)
    }

    /// What is unhealthy by a binding alone, for those who explain it.
    #[must_use]
    pub fn of(binding: &Binding) -> Self {
        let known = |cluster: &str| {
            let since = Since { of: String::new(), at: Timestamp::UNIX_EPOCH, told: false };
            (cluster.to_owned(), since)
        };
        Self { unhealthy: unhealthy(binding).map(known).collect() }
    }

    /// Whether it was said of a cluster before that its copy stays; from now on it was.
    pub fn told(&mut self, cluster: &str) -> bool {
        self.unhealthy.get_mut(cluster).is_none_or(|known| std::mem::replace(&mut known.told, true))
    }
}

/// The clusters of a binding whose copy is unhealthy and is not leaving yet.
fn unhealthy(binding: &Binding) -> impl Iterator<Item = &str> {
    let names = binding.spec.clusters.iter().map(|target| target.name.as_str());
    names.filter(|cluster| stays(binding, cluster) && health(binding, cluster) == Some(Health::Unhealthy))
}

/// Whether a cluster is one of a binding's, and no task says that its copy leaves.
fn stays(binding: &Binding, cluster: &str) -> bool {
    let spec = &binding.spec;
    spec.clusters.iter().any(|target| target.name == cluster)
        && !spec.graceful_eviction_tasks.iter().any(|task| task.from_cluster == cluster)
}

fn health(binding: &Binding, cluster: &str) -> Option<Health> {
    binding.status.aggregated_status.iter().find(|item| item.cluster_name == cluster)?.health
}

/// Where a workload has failed: it does not go there again for an hour, and each time it fails there again for twice as
/// long, up to a day. It is forgotten when what would go there is another one, when it is well there, and when somebody
/// asks for a fresh division.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Failures(BTreeMap<String, Failure>);

/// That a workload has failed in a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Which manifest.
    pub of: String,
    /// When it left.
    pub at: Timestamp,
    /// How often, up to now.
    pub times: u32,
    /// Its time is over: it may go there again.
    #[serde(default, skip_serializing_if = "crate::model::absent")]
    pub over: bool,
}

impl Failure {
    fn lasts(&self) -> Duration {
        FIRST.saturating_mul(2_u32.saturating_pow(self.times.saturating_sub(1))).min(LONGEST)
    }
}

impl Failures {
    /// The clusters where it has failed.
    pub fn clusters(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// What a binding remembers.
    #[must_use]
    pub fn of(binding: &Binding) -> Self {
        let known = binding.metadata.annotations.get(FAILED_IN);
        known.and_then(|known| serde_json::from_str(known).ok()).unwrap_or_default()
    }

    /// As an annotation; nothing where there is nothing to remember.
    #[must_use]
    pub fn written(&self) -> Option<String> {
        serde_json::to_string(self).ok().filter(|_| !self.0.is_empty())
    }

    /// Since when a workload does not go to a cluster, if it does not.
    #[must_use]
    pub fn since(&self, cluster: &str) -> Option<Timestamp> {
        self.0.get(cluster).filter(|failure| !failure.over).map(|failure| failure.at)
    }

    /// Forgets what is over; when to look again. `seen` tells what would go to a cluster of the hub from another manifest.
    pub fn look(
        &mut self,
        binding: &Binding,
        seen: &dyn Fn(&str) -> Option<String>,
        now: Timestamp,
    ) -> Option<Duration> {
        let asked = binding.spec.reschedule_triggered_at;
        let well = |cluster: &str| stays(binding, cluster) && health(binding, cluster) == Some(Health::Healthy);
        self.0.retain(|cluster, failure| {
            seen(cluster).is_some_and(|of| of == failure.of)
                && asked.is_none_or(|asked| asked <= failure.at)
                && !well(cluster)
        });
        let mut again = None;
        for failure in self.0.values_mut().filter(|failure| !failure.over) {
            let left = failure.lasts().saturating_sub(since(failure.at, now));
            failure.over = left.is_zero();
            if !failure.over {
                sooner(&mut again, left);
            }
        }
        again
    }

    fn add(&mut self, cluster: &str, of: &str, now: Timestamp) {
        let known = self.0.get(cluster).filter(|known| known.of == of).map_or(0, |known| known.times);
        let failure = Failure { of: of.to_owned(), at: now, times: known.saturating_add(1), over: false };
        self.0.insert(cluster.to_owned(), failure);
    }
}

/// Why a copy stays though it is not well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stays {
    /// Nothing would take its place: why.
    NowhereElse(String),
    /// What the next copy is to get from it cannot be read: why.
    NoState(String),
}

impl fmt::Display for Stays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NowhereElse(why) => write!(f, "nothing would take its place: {why}"),
            Self::NoState(why) => write!(f, "its state cannot be preserved: {why}"),
        }
    }
}

/// Lets the copy of one cluster leave: the binding's places from then on, and where it has failed. `place` says where a
/// binding would go.
///
/// # Errors
///
/// Why it stays.
pub fn leave(
    binding: &Binding,
    watch: &Watch,
    cluster: &str,
    place: &dyn Fn(&Binding) -> Result<Vec<TargetCluster>, String>,
    now: Timestamp,
) -> Result<(Change, Failures), Stays> {
    let spec = &binding.spec;
    let application = wanted(binding).cloned().unwrap_or_default();
    let mode = application.purge_mode.unwrap_or_default();
    let target = spec.clusters.iter().find(|target| target.name == cluster);
    let replicas = target.map(|target| target.replicas).filter(|replicas| *replicas > 0);
    let kept = state::preserve(application.state_preservation.as_ref(), binding, cluster).map_err(Stays::NoState)?;
    let task = EvictionTask {
        from_cluster: cluster.to_owned(),
        purge_mode: Some(mode),
        replicas,
        reason: APPLICATION_FAILURE.to_owned(),
        message: format!("it has been unhealthy in {cluster} for {} s", toleration(&application).as_secs()),
        producer: producer(binding).to_owned(),
        grace_period_seconds: application.grace_period_seconds.filter(|_| mode == PurgeMode::Gracefully),
        suppress_deletion: (mode == PurgeMode::Never).then_some(true),
        preserved_label_state: kept,
        creation_timestamp: Some(now),
        clusters_before_failover: spec.clusters.iter().map(|target| target.name.clone()).collect(),
    };
    let mut failures = Failures::of(binding);
    failures.add(cluster, watch.unhealthy.get(cluster).map_or("", |known| known.of.as_str()), now);

    let mut without = binding.clone();
    without.spec.clusters.retain(|target| target.name != cluster);
    without.spec.graceful_eviction_tasks.push(task);
    without.metadata.annotations.extend(failures.written().map(|written| (FAILED_IN.to_owned(), written)));
    let then = place(&without).map_err(Stays::NowhereElse)?;
    let divided = !matches!(strategy(spec), Strategy::Duplicated | Strategy::Unnumbered);
    let before = |name: &str| spec.clusters.iter().find(|known| known.name == name);
    let gains: Vec<&TargetCluster> = then
        .iter()
        .filter(|new| before(&new.name).is_none_or(|known| divided && new.replicas > known.replicas))
        .collect();
    if gains.is_empty() {
        return Err(Stays::NowhereElse("no other cluster would get it".to_owned()));
    }
    if gains.iter().all(|new| watch.unhealthy.contains_key(&new.name)) {
        let names: Vec<&str> = gains.iter().map(|new| new.name.as_str()).collect();
        return Err(Stays::NowhereElse(format!("it would go to {}, where it is unhealthy, too", names.join(", "))));
    }
    let change = Change {
        clusters: without.spec.clusters,
        tasks: without.spec.graceful_eviction_tasks,
        news: vec![(cluster.to_owned(), News::Evicted)],
        ..Change::default()
    };
    Ok((change, failures))
}

/// What there is to say about the copies of a binding that are not well.
#[must_use]
pub fn outlook(binding: &Binding, place: &dyn Fn(&Binding) -> Result<Vec<TargetCluster>, String>) -> Vec<String> {
    let Some(application) = wanted(binding) else { return Vec::new() };
    let watch = Watch::of(binding);
    let patience = toleration(application).as_secs();
    let told =
        watch.unhealthy.keys().map(|cluster| match leave(binding, &watch, cluster, place, Timestamp::UNIX_EPOCH) {
            Ok(_) => format!("{cluster} is unhealthy: after {patience} s of it, it is left"),
            Err(stays) => format!("{cluster} is unhealthy and is not left: {stays}"),
        });
    told.collect()
}

#[cfg(test)]
mod tests;
