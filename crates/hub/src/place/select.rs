//! Which of the candidates are taken: spread constraints (Karmada v1.18.2 and v1.2.7).

mod region;

use crate::divide::Algorithm;
use crate::model::{Division, Placement, SchedulingType, SpreadConstraint, SpreadField, Weights};

/// A cluster that passed the filters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) name: String,
    pub(super) region: String,
    /// See [`crate::divide::Candidate::tier`].
    pub(super) tier: usize,
    pub(super) score: i64,
    /// Replicas that fit, with those that are there.
    pub(super) room: i64,
}

/// Takes clusters from the candidates, which are in their order.
pub(super) fn select(
    fits: &[Fit],
    placement: &Placement,
    algorithm: Algorithm,
    replicas: i64,
) -> Result<Vec<Fit>, String> {
    let constraint = |field| placement.spread_constraints.iter().find(|found| found.spread_by_field == Some(field));
    // Both are asked of the placement, whatever the template is.
    let scheduling = placement.replica_scheduling.as_ref();
    let divided = scheduling.filter(|scheduling| scheduling.scheduling == SchedulingType::Divided);
    let fixed = |weights: &Weights| !weights.fixed.is_empty();
    let weighted = match algorithm {
        Algorithm::Newest => divided.is_some_and(|scheduling| {
            let weights = scheduling.weights.as_ref();
            scheduling.division != Some(Division::Aggregated)
                && weights.is_none_or(|weights| fixed(weights) && weights.dynamic.is_none())
        }),
        Algorithm::V1_2 => scheduling.and_then(|scheduling| scheduling.weights.as_ref()).is_some_and(fixed),
    };
    if placement.spread_constraints.is_empty() || weighted {
        return Ok(fits.to_vec());
    }
    // How much room the selection needs, where room matters.
    let need = divided.map(|_| replicas);
    let by_cluster = constraint(SpreadField::Cluster);
    match (constraint(SpreadField::Region), by_cluster) {
        (Some(by_region), _) => region::select(fits, by_region, by_cluster, algorithm, replicas, need),
        (None, Some(by_cluster)) => by_clusters(fits, by_cluster, need),
        (None, None) => Err("just support cluster and region spread constraint".to_owned()),
    }
}

/// The first clusters, as many as may be; where room matters, those without room are replaced from the last.
fn by_clusters(fits: &[Fit], constraint: &SpreadConstraint, need: Option<i64>) -> Result<Vec<Fit>, String> {
    if i64::try_from(fits.len()).unwrap_or(i64::MAX) < constraint.min_groups {
        return Err("the number of feasible clusters is less than spreadConstraint.MinGroups".to_owned());
    }
    let most = usize::try_from(constraint.max_groups).unwrap_or(0).min(fits.len());
    let (mut chosen, mut others) = (fits[..most].to_vec(), fits[most..].to_vec());
    let Some(need) = need else { return Ok(chosen) };
    let room = |chosen: &[Fit]| chosen.iter().fold(0_i64, |sum, fit| sum.saturating_add(fit.room));
    for at in (0..chosen.len()).rev() {
        if room(&chosen) >= need {
            break;
        }
        // The first of the greatest.
        let mut best: Option<usize> = None;
        for (other, fit) in others.iter().enumerate() {
            if fit.room > best.map_or(chosen[at].room, |best: usize| others[best].room) {
                best = Some(other);
            }
        }
        if let Some(best) = best {
            std::mem::swap(&mut chosen[at], &mut others[best]);
        }
    }
    if room(&chosen) < need {
        return Err(format!("no enough resource when selecting {most} clusters"));
    }
    Ok(chosen)
}
