//! Taint policies: which ones are refused, and what of the others does nothing.

use super::affinity_problems;
use crate::label::{NOT_READY, UNREACHABLE};
use crate::model::{ClusterTaintPolicy, Problem};

/// What a ClusterTaintPolicy is refused for. `others` are those that the hub has: no two may have the same taint.
#[must_use]
pub fn taint_problems(policy: &ClusterTaintPolicy, others: &[ClusterTaintPolicy]) -> Vec<Problem> {
    let spec = &policy.spec;
    let mut found = Vec::new();
    if let Some(target) = &spec.target_clusters {
        affinity_problems(target, "spec.targetClusters", &mut found);
    }
    if spec.taints.is_empty() {
        found.push(Problem::new("spec.taints", "is empty", "say which taints: key and effect"));
    }
    for (path, conditions) in
        [("addOnConditions", &spec.add_on_conditions), ("removeOnConditions", &spec.remove_on_conditions)]
    {
        for (at, condition) in conditions.iter().enumerate() {
            let path = format!("spec.{path}[{at}].statusValues");
            let odd =
                condition.status_values.iter().find(|value| !["True", "False", "Unknown"].contains(&value.as_str()));
            if condition.status_values.is_empty() {
                found.push(Problem::new(path, "is empty", "write what the condition may be: True, False, Unknown"));
            } else if let Some(odd) = odd {
                found.push(Problem::new(path, format!("has {odd:?}"), "write True, False or Unknown"));
            }
        }
    }
    for (at, taint) in spec.taints.iter().enumerate() {
        let path = format!("spec.taints[{at}]");
        let called = format!("{}:{:?}", taint.key, taint.effect);
        if taint.key.is_empty() {
            found.push(Problem::new(format!("{path}.key"), "is empty", "write the taint's key"));
        }
        if spec.taints[..at].iter().any(|known| known.key == taint.key && known.effect == taint.effect) {
            found.push(Problem::new(&path, format!("is {called} for the second time"), "take one of the two out"));
        }
        let same = |other: &&ClusterTaintPolicy| {
            other.metadata.name != policy.metadata.name
                && other.spec.taints.iter().any(|known| known.key == taint.key && known.effect == taint.effect)
        };
        if let Some(other) = others.iter().find(same) {
            let what = format!("is {called}, which the policy {} has already", other.metadata.name);
            found.push(Problem::new(&path, what, "each taint is one policy's: take another key"));
        }
    }
    found
}

/// What of an accepted taint policy does nothing, or not what it seems to.
#[must_use]
pub fn taint_warnings(policy: &ClusterTaintPolicy) -> Vec<Problem> {
    let spec = &policy.spec;
    let mut found = Vec::new();
    if spec.add_on_conditions.is_empty() && spec.remove_on_conditions.is_empty() {
        let instead = "say when its taints are added or taken away";
        found.push(Problem::new("spec", "has neither addOnConditions nor removeOnConditions", instead));
    }
    for (at, taint) in spec.taints.iter().enumerate() {
        if [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) {
            let path = format!("spec.taints[{at}].key");
            found.push(Problem::new(
                path,
                "is a taint of the hub's own, which comes and goes by itself",
                "take another key",
            ));
        }
    }
    found
}
