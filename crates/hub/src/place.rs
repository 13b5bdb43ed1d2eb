//! Where the replicas of a binding go: which clusters may have it, which of them are taken, and how many each gets.
//!
//! The decision holds all that it was made from, for [`crate::why`]. Nothing here knows the time, a socket or an estimator:
//! how much room a cluster has is an argument.

pub mod affinity;
mod filter;
mod select;
mod trigger;

use std::borrow::Borrow;

use serde::{Deserialize, Serialize};

use crate::divide::{Algorithm, Candidate, Division, Movement, NameOrder, Strategy, Tie};
use crate::evict::application::Failures;
use crate::mesh::Standing;
use crate::model::{
    self, Binding, BindingSpec, Cluster, DynamicWeight, Placement, SchedulingType, TargetCluster, Weights,
};

pub use filter::Exclusion;
use filter::{filter, groups};
use select::{Fit, select};
pub use trigger::{Trigger, due, fresh};

/// How a hub decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whose algorithms.
    pub algorithm: Algorithm,
    /// Clusters that get no replicas of a workload stay in the result (Karmada's `--enable-empty-workload-propagation`).
    pub keep_empty: bool,
}

/// What a binding's clusters become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// These, chosen by this affinity group.
    Placed {
        /// The result, by name.
        clusters: Vec<TargetCluster>,
        /// The group's name, where the placement has groups.
        group: Option<String>,
    },
    /// None: nothing fits. Karmada empties `spec.clusters` then, which deletes the workload everywhere; the hub keeps what
    /// runs, and says so with Karmada's condition.
    NoFit {
        /// Karmada's message.
        message: String,
    },
    /// As they are: there is too little room now.
    Unschedulable {
        /// Karmada's message.
        message: String,
    },
    /// As they are: the constraints cannot be kept.
    Failed {
        /// Karmada's message.
        message: String,
    },
}

impl Outcome {
    /// The reason of condition `Scheduled`: Karmada's.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Placed { .. } => "Success",
            Self::NoFit { .. } => "NoClusterFit",
            Self::Unschedulable { .. } => "Unschedulable",
            Self::Failed { .. } => "SchedulerError",
        }
    }

    /// The message of condition `Scheduled`: Karmada's.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Placed { .. } => "Binding has been scheduled successfully.",
            Self::NoFit { message } | Self::Unschedulable { message } | Self::Failed { message } => message,
        }
    }

    /// The message of event `ScheduleBindingSucceed` or `ScheduleBindingFailed`: Karmada's.
    #[must_use]
    pub fn event(&self) -> String {
        match self {
            Self::Placed { clusters, .. } => {
                let shares: Vec<String> =
                    clusters.iter().map(|cluster| format!("{}:{}", cluster.name, cluster.replicas)).collect();
                format!("{} Result: {{{}}}", self.message(), shares.join(", "))
            }
            _ => self.message().to_owned(),
        }
    }
}

/// A decision, with what it was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// What becomes of the binding.
    pub outcome: Outcome,
    /// Whose algorithms decided.
    pub algorithm: Algorithm,
    /// How replicas become shares.
    pub strategy: Strategy,
    /// How many there are.
    pub replicas: i64,
    /// Whether what ran before did not count.
    pub fresh: bool,
    /// Which names go first where nothing else decides.
    pub order: NameOrder,
    /// The affinity groups that were tried; the last one decided.
    pub attempts: Vec<Attempt>,
}

/// One affinity group that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Its name, where the placement has groups.
    pub group: Option<String>,
    /// All clusters of the hub: candidates in their order, then the others by name.
    pub clusters: Vec<Verdict>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
    /// Which way the division went, if there was one.
    pub movement: Option<Movement>,
    /// Who got the last replica by name only.
    pub tie: Option<Tie>,
}

/// One cluster in one attempt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Verdict {
    /// The cluster.
    pub cluster: String,
    /// Why it is no candidate.
    pub excluded: Option<Exclusion>,
    /// By which tier it is one.
    pub tier: usize,
    /// Its score: 100 where the workload is there already, and what its place in a mesh is worth.
    pub score: i64,
    /// Its place in a mesh, if it is in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<Standing>,
    /// The policy's weight for it.
    pub weight: i64,
    /// How many more replicas fit; nothing where that does not matter.
    pub available: Option<i64>,
    /// How many replicas it had.
    pub current: Option<i64>,
    /// Whether the spread constraints took it.
    pub selected: bool,
    /// How many replicas it gets.
    pub replicas: Option<i64>,
}

/// How replicas of a binding become shares.
#[must_use]
pub fn strategy(spec: &BindingSpec) -> Strategy {
    let workload = spec.replicas > 0 || spec.replica_requirements.is_some();
    if !workload || spec.components.len() > 1 {
        return Strategy::Unnumbered;
    }
    let scheduling = spec.placement.as_ref().and_then(|placement| placement.replica_scheduling.as_ref());
    let Some(scheduling) = scheduling.filter(|found| found.scheduling == SchedulingType::Divided) else {
        return Strategy::Duplicated;
    };
    let dynamic = |weights: &Weights| weights.dynamic == Some(DynamicWeight::AvailableReplicas);
    match scheduling.division {
        Some(model::Division::Aggregated) => Strategy::Aggregated,
        _ if scheduling.weights.as_ref().is_some_and(dynamic) => Strategy::DynamicWeight,
        _ => Strategy::StaticWeight,
    }
}

/// The weight of a cluster: the greatest of the rules that mean it; in v1.2 the first one's.
fn weight(placement: &Placement, cluster: &Cluster, algorithm: Algorithm) -> i64 {
    let weights = placement.replica_scheduling.as_ref().and_then(|scheduling| scheduling.weights.as_ref());
    let mut meant = weights
        .iter()
        .flat_map(|weights| &weights.fixed)
        .filter_map(|rule| affinity::matches(&rule.target_cluster, cluster).then_some(rule.weight));
    match algorithm {
        Algorithm::Newest => meant.max(),
        Algorithm::V1_2 => meant.next(),
    }
    .unwrap_or(0)
}

/// Decides where a binding goes. `available` says how many more of its replicas fit into a cluster
/// ([`crate::estimate::available`], or who knows better).
#[must_use]
pub fn place<C: Borrow<Cluster>>(
    binding: &Binding,
    clusters: &[C],
    available: &dyn Fn(&Cluster) -> i64,
    settings: Settings,
) -> Decision {
    let spec = &binding.spec;
    let all = Placement::default();
    let placement = spec.placement.as_ref().unwrap_or(&all);
    let world = World {
        spec,
        placement,
        clusters: clusters.iter().map(C::borrow).collect(),
        available,
        settings,
        strategy: strategy(spec),
        fresh: fresh(binding),
        // Whoever asks for a fresh division asks for the clusters where it has failed, too.
        failures: if fresh(binding) { Failures::default() } else { Failures::of(binding) },
    };
    let groups = groups(placement);
    let observed = &binding.status.scheduler_observed_affinity_name;
    let first = groups.iter().position(|group| group.name == Some(observed)).unwrap_or(0);
    let mut attempts = Vec::new();
    let mut failures = Vec::new();
    let mut outcome = None;
    for group in &groups[first..] {
        let (attempt, tried) = world.attempt(group);
        attempts.push(attempt);
        match tried {
            placed @ Outcome::Placed { .. } => {
                outcome = Some(placed);
                break;
            }
            failure => failures.push(failure),
        }
    }
    // That nothing fits is told only when it is so for every group.
    let outcome = outcome.or_else(|| {
        let real = failures.iter().position(|failure| !matches!(failure, Outcome::NoFit { .. }));
        failures.into_iter().nth(real.unwrap_or(0))
    });
    Decision {
        outcome: outcome.unwrap_or_else(|| Outcome::NoFit { message: "0/0 clusters are available".to_owned() }),
        algorithm: settings.algorithm,
        strategy: world.strategy,
        replicas: spec.replicas,
        fresh: world.fresh,
        order: NameOrder::of(&spec.resource.uid),
        attempts,
    }
}

/// All that one binding's decision is made from.
struct World<'a> {
    spec: &'a BindingSpec,
    placement: &'a Placement,
    clusters: Vec<&'a Cluster>,
    available: &'a dyn Fn(&Cluster) -> i64,
    settings: Settings,
    strategy: Strategy,
    fresh: bool,
    failures: Failures,
}

/// Room of clusters that is not asked for.
const UNLIMITED: i64 = i32::MAX as i64;

impl World<'_> {
    /// Tries one affinity group.
    fn attempt(&self, group: &filter::Group<'_>) -> (Attempt, Outcome) {
        let Self { spec, placement, strategy, settings, .. } = self;
        let (strategy, settings) = (*strategy, *settings);
        let workload = strategy != Strategy::Unnumbered;
        let mut verdicts: Vec<(Verdict, Fit)> = Vec::new();
        let mut excluded: Vec<Verdict> = Vec::new();
        for &cluster in &self.clusters {
            let name = &cluster.metadata.name;
            let target = spec.clusters.iter().find(|target| target.name == *name);
            let verdict = Verdict {
                cluster: name.clone(),
                current: target.map(|target| target.replicas),
                weight: if strategy == Strategy::StaticWeight {
                    weight(placement, cluster, settings.algorithm)
                } else {
                    0
                },
                ..Verdict::default()
            };
            // Where it is it may stay: what takes it away from there is its eviction.
            let failed = self.failures.since(name).filter(|_| target.is_none()).map(Exclusion::Failed);
            let fits = filter(spec, placement, group, cluster, workload);
            let tier = match fits.and_then(|tier| failed.map_or(Ok(tier), Err)) {
                Ok(tier) => tier,
                Err(exclusion) => {
                    excluded.push(Verdict { excluded: Some(exclusion), ..verdict });
                    continue;
                }
            };
            let there = target.is_some_and(|target| settings.algorithm == Algorithm::Newest || target.replicas > 0);
            // v1.2 knows no meshes.
            let mesh = Standing::of(cluster).filter(|_| settings.algorithm == Algorithm::Newest);
            let score = if there { 100 } else { 0 } + mesh.as_ref().map_or(0, Standing::score);
            let available = (workload && spec.replicas > 0).then(|| (self.available)(cluster).clamp(0, UNLIMITED));
            let room = available.map_or(UNLIMITED, |room| room + target.map_or(0, |target| target.replicas.max(0)));
            let fit = Fit { name: name.clone(), region: cluster.spec.region.clone(), tier, score, room };
            verdicts.push((Verdict { tier, score, mesh, available, ..verdict }, fit));
        }
        verdicts.sort_by(|(_, one), (_, other)| {
            let room = |fit: &Fit| if settings.algorithm == Algorithm::Newest { fit.room } else { 0 };
            (one.tier.cmp(&other.tier))
                .then_with(|| other.score.cmp(&one.score))
                .then_with(|| room(other).cmp(&room(one)))
                .then_with(|| one.name.cmp(&other.name))
        });
        excluded.sort_by(|one, other| one.cluster.cmp(&other.cluster));
        let (mut candidates, fits): (Vec<Verdict>, Vec<Fit>) = verdicts.into_iter().unzip();
        let mut attempt = Attempt {
            group: group.name.map(str::to_owned),
            clusters: Vec::new(),
            failure: None,
            movement: None,
            tie: None,
        };
        let outcome = if fits.is_empty() {
            let excluded: Vec<&Exclusion> = excluded.iter().filter_map(|verdict| verdict.excluded.as_ref()).collect();
            Outcome::NoFit { message: filter::nothing_fits(&excluded) }
        } else {
            self.assign(&fits, &mut candidates, &mut attempt)
        };
        if !matches!(outcome, Outcome::Placed { .. }) {
            attempt.failure = Some(outcome.message().to_owned());
        }
        attempt.clusters = candidates.into_iter().chain(excluded).collect();
        (attempt, outcome)
    }

    /// Selects among the candidates and divides.
    fn assign(&self, fits: &[Fit], verdicts: &mut [Verdict], attempt: &mut Attempt) -> Outcome {
        let Self { spec, placement, strategy, settings, fresh, .. } = *self;
        let selected = match select(fits, placement, settings.algorithm, spec.replicas) {
            Ok(selected) => selected,
            Err(message) => return Outcome::Failed { message },
        };
        if selected.is_empty() {
            return Outcome::Failed { message: "no clusters available to schedule".to_owned() };
        }
        for verdict in verdicts.iter_mut() {
            verdict.selected = selected.iter().any(|fit| fit.name == verdict.cluster);
        }
        let candidates: Vec<Candidate> = (verdicts.iter())
            .filter(|verdict| verdict.selected)
            .map(|verdict| Candidate {
                name: verdict.cluster.clone(),
                tier: verdict.tier,
                weight: verdict.weight,
                available: verdict.available.unwrap_or(UNLIMITED),
            })
            .collect();
        let division = Division {
            algorithm: settings.algorithm,
            strategy,
            replicas: spec.replicas,
            candidates: &candidates,
            current: &spec.clusters,
            fresh,
            order: NameOrder::of(&spec.resource.uid),
            keep_empty: settings.keep_empty,
        };
        let divided = match division.divide() {
            Ok(divided) => divided,
            Err(few) => return Outcome::Unschedulable { message: few.to_string() },
        };
        for verdict in verdicts.iter_mut().filter(|_| strategy != Strategy::Unnumbered) {
            let share = divided.clusters.iter().find(|cluster| cluster.name == verdict.cluster);
            verdict.replicas = verdict.selected.then(|| share.map_or(0, |share| share.replicas));
        }
        attempt.movement = Some(divided.movement);
        attempt.tie = divided.tie;
        Outcome::Placed { clusters: divided.clusters, group: attempt.group.clone() }
    }
}

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;
