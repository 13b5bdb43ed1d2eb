//! PodDisruptionBudgets: how many of the pods they speak of may be evicted now.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};
use serde_json::{Value, json};

use super::{Trouble, condition, controller, each, is_active, put_status, stamp};
use crate::cluster::Shared;

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let budgets = shared.caches.budgets.list();
    if budgets.is_empty() {
        return Ok(());
    }
    let pods = shared.caches.pods.list();
    each(budgets.into_iter().map(|budget| carry_out(&shared, budget, &pods))).await
}

async fn carry_out(shared: &Shared, budget: Arc<PodDisruptionBudget>, pods: &[Arc<Pod>]) -> Result<(), Trouble> {
    let selector = budget.spec.as_ref().and_then(|s| s.selector.clone());
    // No selector speaks of no pod, an empty one of all (policy/v1).
    let covered: Vec<_> = pods
        .iter()
        .filter(|pod| pod.namespace() == budget.namespace() && is_active(pod))
        .filter(|pod| selector.as_ref().is_some_and(|s| matches(s, pod)))
        .collect();
    let mut owners: Vec<_> = covered.iter().filter_map(|pod| controller(pod.as_ref())).collect();
    owners.sort_unstable();
    owners.dedup();
    let replicas = |uid: &&str| {
        let sets = shared.caches.replicasets.list();
        let set = sets.iter().find(|s| s.uid().as_deref() == Some(*uid)).and_then(|s| s.spec.replicas);
        let stateful = shared.caches.statefulsets.list();
        set.or_else(|| stateful.iter().find(|s| s.uid().as_deref() == Some(*uid)).and_then(|s| s.spec.replicas))
    };
    let expected: i32 = owners.iter().filter_map(replicas).sum();
    let bare = covered.iter().filter(|pod| controller(pod.as_ref()).is_none()).count() as i32;
    let healthy = covered.iter().filter(|pod| condition(pod, "Ready")).count() as i32;
    let status = status(&budget, (expected + bare).max(covered.len() as i32), healthy);
    put_status(shared, &shared.caches.budgets, budget.as_ref(), &budget.status, status).await
}

fn matches(selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector, pod: &Pod) -> bool {
    Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(pod.labels()))
}

fn status(budget: &PodDisruptionBudget, expected: i32, healthy: i32) -> Value {
    let spec = budget.spec.as_ref();
    // Both round up, as the disruption controller does.
    let part = |value: &IntOrString| match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent = text.trim_end_matches('%').parse::<i64>().unwrap_or(0).clamp(0, 100);
            ((percent * i64::from(expected) + 99) / 100) as i32
        }
    };
    let desired = match spec.map(|s| (&s.max_unavailable, &s.min_available)) {
        Some((Some(most), _)) => (expected - part(most)).max(0),
        Some((_, Some(least))) => part(least),
        _ => 0,
    };
    let allowed = if expected == 0 { 0 } else { (healthy - desired).max(0) };
    let (answer, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let known = budget.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let known = known.into_iter().find(|c| c.type_ == "DisruptionAllowed" && c.status == answer);
    let since = known.map_or_else(jiff::Timestamp::now, |c| c.last_transition_time.0);
    json!({
        "observedGeneration": budget.metadata.generation,
        "expectedPods": expected,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "disruptionsAllowed": allowed,
        "conditions": [{"type": "DisruptionAllowed", "status": answer, "reason": reason, "message": "",
            "observedGeneration": budget.metadata.generation, "lastTransitionTime": stamp(since)}],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_disrupted() {
        let cases = [
            (json!({"minAvailable": 1}), 2, 2, 1),
            (json!({"minAvailable": 2}), 2, 2, 0),
            (json!({"minAvailable": "50%"}), 3, 3, 1),
            (json!({"maxUnavailable": 1}), 3, 3, 1),
            (json!({"maxUnavailable": 1}), 3, 2, 0),
            (json!({"maxUnavailable": "34%"}), 3, 3, 2),
            (json!({"minAvailable": 0}), 0, 0, 0),
        ];
        for (spec, expected, healthy, allowed) in cases {
            let budget = serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": spec})).unwrap();
            assert_eq!(status(&budget, expected, healthy)["disruptionsAllowed"], allowed, "{spec}");
        }
    }
}
