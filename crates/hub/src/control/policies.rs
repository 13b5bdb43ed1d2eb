//! Policies: their permanent id, their finalizer, and the templates that they mean.

use std::sync::Arc;

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::Hub;
use super::detect::strip;
use crate::choose::Claim;
use crate::mirror::{self, Key, Mirror};
use crate::model::{self, ClusterTaintPolicy, OverridePolicy, Problem, PropagationPolicy};
use crate::queue::{Again, Trouble};
use crate::{admit, label};

/// Who says it.
const FROM: &str = "resource-detector";

/// Looks at one policy.
pub(super) async fn look(hub: Arc<Hub>, key: Key) -> Result<Again, Trouble> {
    let mirror = hub.policies_of(&key.0);
    let Some(policy) = mirror.get(&key.0, &key.1) else { return Ok(None) };
    let finalizer = if key.0.is_empty() { label::CLUSTER_POLICY_FINALIZER } else { label::POLICY_FINALIZER };
    if meta::deletion_timestamp(&policy).is_some() {
        return end(&hub, mirror, &policy, finalizer).await;
    }
    // There may be no webhook before us: what one would do when a policy is written is done when it is seen.
    let mut complete = Value::clone(&policy);
    admit::default(&mut complete, &uuid::Uuid::new_v4().to_string());
    if complete != *policy {
        hub.change(mirror, &policy, &complete).await?;
        return Ok(None);
    }
    let refused = refused(&policy);
    for problem in &refused {
        hub.events.warning(&policy, FROM, "ApplyPolicyFailed", problem.as_str());
    }
    if let Ok((read, _)) = model::read::<PropagationPolicy>(&policy)
        && refused.is_empty()
    {
        for warning in admit::warnings(&read) {
            hub.events.warning(&policy, FROM, "PolicyWarning", warning.to_string());
        }
    }
    Ok(None)
}

/// Why a policy does nothing, if so: what a webhook would have refused, and what nobody can read.
pub(super) fn refused(policy: &Value) -> Vec<String> {
    match model::read::<PropagationPolicy>(policy) {
        Err(problem) => vec![problem.to_string()],
        Ok((policy, _)) => admit::problems(&policy).iter().map(ToString::to_string).collect(),
    }
}

/// Why an override policy changes nothing, if so.
pub(super) fn override_refused(policy: &Value) -> Vec<String> {
    match model::read::<OverridePolicy>(policy) {
        Err(problem) => vec![problem.to_string()],
        Ok((policy, _)) => admit::override_problems(&policy).iter().map(ToString::to_string).collect(),
    }
}

/// Why a taint policy taints nothing, if so. Of two with the same taint, the one that was there first counts.
pub(super) fn taint_refused(policy: &Value, others: &[ClusterTaintPolicy]) -> Vec<String> {
    match model::read::<ClusterTaintPolicy>(policy) {
        Err(problem) => vec![problem.to_string()],
        Ok((policy, _)) => tainted_by(&policy, others).iter().map(ToString::to_string).collect(),
    }
}

/// The same of one that is read.
pub(super) fn tainted_by(policy: &ClusterTaintPolicy, others: &[ClusterTaintPolicy]) -> Vec<Problem> {
    let age = |of: &ClusterTaintPolicy| (of.metadata.creation_timestamp, of.metadata.name.clone());
    let older: Vec<ClusterTaintPolicy> = others.iter().filter(|other| age(other) < age(policy)).cloned().collect();
    admit::taint_problems(policy, &older)
}

/// A policy goes: what it has claimed is free, and keeps running where it is.
async fn end(hub: &Hub, mirror: &Mirror, policy: &Value, finalizer: &str) -> Result<Again, Trouble> {
    let finalizers = meta::finalizers(policy);
    if !finalizers.contains(&finalizer) {
        return Ok(None);
    }
    let claimed = |object: &Value| {
        Claim::of(object)
            .is_some_and(|claim| claim.namespace == meta::namespace(policy) && claim.name == meta::name(policy))
    };
    for template in hub.claimed_by(&mirror::key(policy)) {
        if let Some((mirror, template)) = hub.template(&template).filter(|(_, template)| claimed(template)) {
            free(hub, &mirror, &template).await?;
        }
    }
    for bindings in [&hub.own.bindings, &hub.own.cluster_bindings] {
        for binding in bindings.list().into_iter().filter(|binding| claimed(binding)) {
            free(hub, bindings, &binding).await?;
        }
    }
    let left: Vec<_> = finalizers.into_iter().filter(|known| *known != finalizer).collect();
    let mut complete = policy.clone();
    complete["metadata"]["finalizers"] = json!(left);
    match hub.change(mirror, policy, &complete).await {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(None),
    }
}

async fn free(hub: &Hub, mirror: &Mirror, object: &Value) -> Result<(), Trouble> {
    let mut free = object.clone();
    strip(&mut free);
    match hub.change(mirror, object, &free).await {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}
