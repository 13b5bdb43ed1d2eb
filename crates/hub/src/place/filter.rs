//! Which clusters a template may go to at all, and why not the others (Karmada v1.18.2's filter plugins).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::affinity;
use crate::model::{
    BindingSpec, Cluster, ClusterAffinity, ClusterAffinityTerm, OverflowAffinity, Placement, SpreadField,
};

/// Why a cluster is no candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Exclusion {
    /// It is being taken out of the hub.
    Deleting,
    /// It does not serve the template's kind.
    Api(String),
    /// It has a taint that is not tolerated.
    Taint(String),
    /// It is not meant.
    Affinity(String),
    /// A constraint counts something that it does not have.
    Property(SpreadField),
    /// The workload is just leaving it.
    Evicting,
    /// The workload has failed there, at this time.
    Failed(jiff::Timestamp),
}

impl Exclusion {
    /// Karmada's words, as they are counted in "0/3 clusters are available".
    pub(super) fn counted(&self) -> String {
        match self {
            Self::Deleting => "cluster(s) were being deleted".to_owned(),
            Self::Api(_) => "cluster(s) did not have the API resource".to_owned(),
            Self::Taint(taint) => format!("cluster(s) had untolerated taint {{{taint}}}"),
            Self::Affinity(_) => "cluster(s) did not match the placement cluster affinity constraint".to_owned(),
            Self::Property(field) => format!("cluster(s) did not have {} property", property(*field)),
            Self::Evicting => "cluster(s) is in the process of eviction".to_owned(),
            Self::Failed(_) => "cluster(s) had seen the workload fail".to_owned(),
        }
    }

    /// What would let the cluster in.
    pub(crate) fn remedy(&self, cluster: &str) -> Option<String> {
        Some(match self {
            Self::Deleting => return None,
            Self::Api(kind) => format!("serving {kind} in {cluster}, by its resource definition"),
            Self::Taint(taint) => {
                format!(
                    "taking the taint {taint} from {cluster}, or a toleration for it in placement.clusterTolerations"
                )
            }
            Self::Affinity(why) => format!("a clusterAffinity that means {cluster} ({why})"),
            Self::Property(field) => format!("spec.{} of Cluster {cluster}", property(*field)),
            Self::Evicting => format!("the end of the eviction from {cluster}"),
            Self::Failed(_) => format!("another template or override for {cluster}, time, or a WorkloadRebalancer"),
        })
    }
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deleting => f.write_str("it is being taken out of the hub"),
            Self::Api(kind) => write!(f, "it does not serve {kind}"),
            Self::Taint(taint) => write!(f, "its taint {taint} is not tolerated"),
            Self::Affinity(why) => write!(f, "it is not meant: {why}"),
            Self::Property(field) => write!(f, "it has no {}, which a spread constraint counts", property(*field)),
            Self::Evicting => f.write_str("the workload is being evicted from it"),
            Self::Failed(at) => write!(f, "the workload failed there at {at}, as it is now"),
        }
    }
}

/// The field of a Cluster that a constraint counts.
fn property(field: SpreadField) -> &'static str {
    match field {
        SpreadField::Cluster => "name",
        SpreadField::Region => "region",
        SpreadField::Zone => "zone",
        SpreadField::Provider => "provider",
    }
}

/// One affinity group that is tried: the group, or the one affinity of the placement, or none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) affinity: Option<&'a ClusterAffinity>,
    pub(super) overflow: &'a [OverflowAffinity],
}

/// The groups in their order; one without a name where the placement has no groups.
pub(super) fn groups(placement: &Placement) -> Vec<Group<'_>> {
    if placement.cluster_affinities.is_empty() {
        return vec![Group { name: None, affinity: placement.cluster_affinity.as_ref(), overflow: &[] }];
    }
    placement.cluster_affinities.iter().map(group).collect()
}

fn group(term: &ClusterAffinityTerm) -> Group<'_> {
    Group { name: Some(&term.name), affinity: Some(&term.affinity), overflow: &term.overflow }
}

impl Group<'_> {
    /// By which tier a cluster is meant: 0 by the group itself, from 1 by those that take the rest.
    fn tier(&self, cluster: &Cluster, workload: bool) -> Result<usize, String> {
        let Some(why) = self.affinity.and_then(|affinity| affinity::mismatch(affinity, cluster)) else {
            return Ok(0);
        };
        let overflow = self.overflow.iter().take(if workload { usize::MAX } else { 0 });
        let meant = overflow.enumerate().find(|(_, group)| affinity::matches(&group.affinity, cluster));
        meant.map(|(at, _)| at + 1).ok_or(why)
    }
}

/// By which tier a cluster is a candidate, or the first reason why it is none.
pub(super) fn filter(
    spec: &BindingSpec,
    placement: &Placement,
    group: &Group<'_>,
    cluster: &Cluster,
    workload: bool,
) -> Result<usize, Exclusion> {
    let name = &cluster.metadata.name;
    let target = spec.clusters.iter().any(|target| target.name == *name);
    let resource = &spec.resource;
    if cluster.metadata.deletion_timestamp.is_some() {
        return Err(Exclusion::Deleting);
    }
    if !target && !cluster.status.serves(&resource.api_version, &resource.kind) {
        return Err(Exclusion::Api(format!("{} {}", resource.api_version, resource.kind)));
    }
    if let Some(taint) = affinity::untolerated(cluster, &placement.cluster_tolerations).filter(|_| !target) {
        return Err(Exclusion::Taint(affinity::written(taint)));
    }
    let tier = group.tier(cluster, workload).map_err(Exclusion::Affinity)?;
    for constraint in &placement.spread_constraints {
        let missing = match constraint.spread_by_field {
            Some(SpreadField::Provider) => cluster.spec.provider.is_empty(),
            Some(SpreadField::Region) => cluster.spec.region.is_empty(),
            Some(SpreadField::Zone) => cluster.spec.all_zones().next().is_none(),
            Some(SpreadField::Cluster) | None => false,
        };
        if let Some(field) = constraint.spread_by_field.filter(|_| missing) {
            return Err(Exclusion::Property(field));
        }
    }
    if spec.graceful_eviction_tasks.iter().any(|task| task.from_cluster == *name) {
        return Err(Exclusion::Evicting);
    }
    Ok(tier)
}

/// Karmada's message when nothing fits.
pub(super) fn nothing_fits(excluded: &[&Exclusion]) -> String {
    let mut reasons: Vec<String> = excluded.iter().map(|exclusion| exclusion.counted()).collect();
    reasons.sort();
    let mut counted: Vec<(usize, String)> = Vec::new();
    for reason in reasons {
        match counted.last_mut() {
            Some((count, last)) if *last == reason => *count += 1,
            _ => counted.push((1, reason)),
        }
    }
    let mut counted: Vec<String> = counted.into_iter().map(|(count, reason)| format!("{count} {reason}")).collect();
    counted.sort();
    match counted.is_empty() {
        true => "0/0 clusters are available".to_owned(),
        false => format!("0/{} clusters are available: {}.", excluded.len(), counted.join(", ")),
    }
}
