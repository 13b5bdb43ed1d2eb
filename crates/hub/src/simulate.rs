//! What the loss of clusters would do, without touching anything: which replicas would go where, which would have no place, and
//! how full the others would be.
//!
//! Every binding with replicas in a lost cluster is placed again as if that cluster were not there, one after the other, and
//! each takes the room that it is given. Whether and when a hub moves replicas after a real loss is a matter of taints and
//! tolerations; this says what would come of it.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::divide::Strategy;
use crate::estimate::{amount, available};
use crate::model::{Binding, BindingSpec, Cluster, TargetCluster};
use crate::place::{Outcome, Settings, place, strategy};

/// What a loss would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Loss {
    /// The clusters that are lost.
    pub lost: Vec<String>,
    /// The workloads that had replicas there.
    pub workloads: Vec<Moved>,
    /// The clusters that are left.
    pub clusters: Vec<Load>,
}

/// One workload that had replicas in a lost cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Moved {
    /// As `Deployment shop/web`.
    pub template: String,
    /// Where its replicas are.
    pub before: Vec<TargetCluster>,
    /// Where they would be.
    pub after: Vec<TargetCluster>,
    /// How many would have no place.
    pub pending: i64,
    /// Why.
    pub why: Option<String>,
}

/// How full a cluster that is left would be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// The cluster.
    pub cluster: String,
    /// Replicas that are there.
    pub before: i64,
    /// Replicas that would be.
    pub after: i64,
    /// Pods that fit now; nothing where the cluster does not say.
    pub room_before: Option<i64>,
    /// Pods that would fit then.
    pub room_after: Option<i64>,
}

/// What would come of losing these clusters.
#[must_use]
pub fn lose(bindings: &[Binding], clusters: &[Cluster], lost: &[&str], settings: Settings) -> Loss {
    let gone = |name: &str| lost.contains(&name);
    let mut left: Vec<Cluster> = clusters.iter().filter(|cluster| !gone(&cluster.metadata.name)).cloned().collect();
    left.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
    let free = |cluster: &Cluster| cluster.status.resource_summary.as_ref().map(|_| available(cluster, None));
    let room: Vec<Option<i64>> = left.iter().map(free).collect();
    let mut hit: Vec<&Binding> = (bindings.iter())
        .filter(|binding| binding.spec.placement.is_some() && strategy(&binding.spec) != Strategy::Unnumbered)
        .filter(|binding| binding.spec.clusters.iter().any(|cluster| gone(&cluster.name)))
        .collect();
    // Those that are scheduled first, first.
    hit.sort_by_key(|binding| {
        let priority = binding.spec.schedule_priority.as_ref().map_or(0, |priority| priority.priority);
        let resource = &binding.spec.resource;
        (std::cmp::Reverse(priority), resource.namespace.clone(), resource.name.clone(), resource.kind.clone())
    });
    let workloads: Vec<Moved> = hit.into_iter().map(|binding| moved(binding, &mut left, &gone, settings)).collect();
    let held = |of: &dyn Fn(&Binding) -> i64| bindings.iter().map(of).sum::<i64>();
    let loads = left.iter().zip(room).map(|(cluster, room_before)| {
        let name = &cluster.metadata.name;
        let before = held(&|binding| replicas(&binding.spec.clusters, name));
        let gained: i64 = workloads.iter().map(|it| replicas(&it.after, name) - replicas(&it.before, name)).sum();
        Load { cluster: name.clone(), before, after: before + gained, room_before, room_after: free(cluster) }
    });
    Loss { lost: lost.iter().map(|name| (*name).to_owned()).collect(), clusters: loads.collect(), workloads }
}

fn replicas(clusters: &[TargetCluster], name: &str) -> i64 {
    clusters.iter().find(|cluster| cluster.name == name).map_or(0, |cluster| cluster.replicas)
}

/// Places one workload without the lost clusters, and takes the room it is given.
fn moved(binding: &Binding, left: &mut [Cluster], gone: &dyn Fn(&str) -> bool, settings: Settings) -> Moved {
    let spec = &binding.spec;
    let mut without = binding.clone();
    without.spec.clusters.retain(|cluster| !gone(&cluster.name));
    let stays = without.spec.clusters.clone();
    let requirements = spec.replica_requirements.as_ref();
    let decision = place(&without, left, &|cluster| available(cluster, requirements), settings);
    let lost: i64 = spec.clusters.iter().filter(|cluster| gone(&cluster.name)).map(|cluster| cluster.replicas).sum();
    let divided = decision.strategy != Strategy::Duplicated;
    let (after, mut pending, mut why) = match &decision.outcome {
        Outcome::Placed { clusters, .. } => (clusters.clone(), 0, None),
        // A copy of its own that has no other place is gone; replicas of a whole wait.
        outcome => (stays.clone(), if divided { lost } else { 0 }, Some(outcome.message().to_owned())),
    };
    let mut full = Vec::new();
    for cluster in left {
        let name = &cluster.metadata.name;
        let gained = replicas(&after, name) - replicas(&stays, name);
        if gained <= 0 {
            continue;
        }
        // By weights and by copies, replicas go where there is no room, and wait there.
        let over = cluster.status.resource_summary.as_ref().map_or(0, |_| gained - available(cluster, requirements));
        if over > 0 {
            pending += over;
            full.push(format!("{name} has no room for {over}"));
        }
        take(cluster, spec, gained);
    }
    if !full.is_empty() {
        why = Some(full.join(", "));
    }
    let resource = &spec.resource;
    let template = match resource.namespace.as_str() {
        "" => format!("{} {}", resource.kind, resource.name),
        namespace => format!("{} {namespace}/{}", resource.kind, resource.name),
    };
    Moved { template, before: spec.clusters.clone(), after, pending, why }
}

/// Counts replicas as placed in a cluster.
fn take(cluster: &mut Cluster, spec: &BindingSpec, replicas: i64) {
    let Some(summary) = &mut cluster.status.resource_summary else { return };
    let request = spec.replica_requirements.iter().flat_map(|requirements| &requirements.resource_request);
    let wanted = request.map(|(resource, one)| (resource.as_str(), amount(Some(one))));
    for (resource, one) in wanted.chain([("pods", 1_000_000_000)]) {
        let allocated = amount(summary.allocated.get(resource)) + one * i128::from(replicas);
        summary.allocated.insert(resource.to_owned(), json!(format!("{allocated}n")));
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss { lost, workloads, clusters } = self;
        let gone: i64 = (workloads.iter().flat_map(|it| &it.before))
            .filter(|cluster| lost.contains(&cluster.name))
            .map(|cluster| cluster.replicas)
            .sum();
        let pending: i64 = workloads.iter().map(|it| it.pending).sum();
        writeln!(
            f,
            "without {}: {gone} replicas of {} workloads are lost there, {pending} would have no place",
            lost.join(", "),
            workloads.len()
        )?;
        if !workloads.is_empty() {
            writeln!(f, "\nworkloads:")?;
        }
        let width = workloads.iter().map(|it| it.template.chars().count()).max().unwrap_or(0);
        for it in workloads {
            let mut names: Vec<&str> = it.before.iter().chain(&it.after).map(|cluster| cluster.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            let moves: Vec<String> = (names.iter())
                .map(|name| (name, replicas(&it.before, name), replicas(&it.after, name)))
                .filter(|(_, before, after)| before != after)
                .map(|(name, before, after)| format!("{name} {before} → {after}"))
                .collect();
            write!(f, "  {:width$}  {}", it.template, moves.join(", "))?;
            match (&it.why, it.pending) {
                (Some(why), 0) => writeln!(f, "; {why}")?,
                (Some(why), pending) => writeln!(f, "; {pending} without a place: {why}")?,
                (None, _) => writeln!(f)?,
            }
        }
        if !clusters.is_empty() {
            writeln!(f, "\nclusters:")?;
        }
        let width = clusters.iter().map(|it| it.cluster.chars().count()).max().unwrap_or(0);
        for Load { cluster, before, after, room_before, room_after } in clusters {
            let room = match (room_before, room_after) {
                (Some(before), Some(after)) => format!("room for {before} → {after} pods"),
                _ => "does not say how much room it has".to_owned(),
            };
            writeln!(f, "  {cluster:width$}  {before} → {after} replicas, {room}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
