//! Policies: their permanent id, their finalizer, and the templates that they mean; what there is of override and taint
//! policies.

use std::sync::{Arc, PoisonError, RwLock};

use serde::de::DeserializeOwned;
use serde_json::Value;
use stolos_k8s::meta;

use super::detect::strip;
use super::template::TemplateKey;
use super::{Hub, clusters};
use crate::choose::Claim;
use crate::mirror::{self, Key, Mirror};
use crate::model::{self, ClusterTaintPolicy, OverridePolicy, Problem, PropagationPolicy};
use crate::queue::{Again, Trouble};
use crate::{admit, label, overrides};

/// Who says it.
const FROM: &str = "resource-detector";
/// Who says it of override policies.
const FROM_OVERRIDES: &str = "override-manager";

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
    let warnings = |read: &PropagationPolicy| admit::warnings(read, hub.placing.algorithm);
    hub.say_of_policy(&policy, FROM, (refused(&policy), "ApplyPolicyFailed"), warnings);
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
    if !meta::finalizers(policy).contains(&finalizer) {
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
    for bindings in hub.own.all_bindings() {
        for binding in bindings.list().into_iter().filter(|binding| claimed(binding)) {
            free(hub, bindings, &binding).await?;
        }
    }
    hub.let_go(mirror, policy, finalizer).await?;
    Ok(None)
}

async fn free(hub: &Hub, mirror: &Mirror, object: &Value) -> Result<(), Trouble> {
    let mut free = object.clone();
    strip(&mut free);
    Ok(hub.change_if_there(mirror, object, &free).await?)
}

impl Hub {
    /// A policy has changed: itself, and the templates that it had or has.
    pub(super) fn policy_changed(&self, before: Option<&Arc<Value>>, now: Option<&Arc<Value>>) {
        if let Some(policy) = now.or(before) {
            let key = mirror::key(policy);
            // Two that come at once may be told in any order: what is there is asked for.
            let mut policies = self.policies.write().unwrap_or_else(PoisonError::into_inner);
            policies.put(&key, self.policies_of(&key.0).get(&key.0, &key.1).as_deref());
        }
        for policy in before.into_iter().chain(now) {
            self.queue_templates(policy);
        }
        if let Some(policy) = now {
            self.queues.policies.add(mirror::key(policy));
        }
    }

    /// The policies that may select a template.
    pub(super) fn policies_for(&self, template: &Value) -> Vec<Arc<PropagationPolicy>> {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).that_may_select(template)
    }

    /// Says why a policy does nothing, as events of that name, or else what of it does nothing.
    fn say_of_policy<T: DeserializeOwned>(
        &self,
        policy: &Value,
        from: &'static str,
        (refused, reason): (Vec<String>, &'static str),
        warnings: impl Fn(&T) -> Vec<Problem>,
    ) {
        if refused.is_empty()
            && let Ok((read, _)) = model::read::<T>(policy)
        {
            for warning in warnings(&read) {
                self.events.warning(policy, from, "PolicyWarning", warning.to_string());
            }
        }
        for problem in refused {
            self.events.warning(policy, from, reason, problem);
        }
    }

    /// An override policy has changed: what it may have changed is made anew.
    pub(super) fn override_changed(&self, now: Option<&Arc<Value>>) {
        if let Some(policy) = now {
            let refused = (override_refused(policy), "ApplyOverridePolicyFailed");
            self.say_of_policy(policy, FROM_OVERRIDES, refused, admit::override_warnings);
        }
        *self.read_overrides.write().unwrap_or_else(PoisonError::into_inner) = None;
        for bindings in self.own.all_bindings() {
            for binding in bindings.list() {
                self.queues.bind.add(mirror::key(&binding));
                self.queues.evict.add(mirror::key(&binding));
                // A policy may have waited for it.
                self.queues.templates.add(TemplateKey::of_binding(&binding));
            }
        }
        for template in self.templates_of(|version, kind| (version, kind) == ("v1", "Namespace")) {
            self.queues.namespaces.add(meta::name(&template).to_owned());
        }
        let waiting: Vec<_> = self.waiting().iter().cloned().collect();
        for template in waiting {
            self.queues.templates.add(template);
        }
    }

    /// All override policies, as types. One that a webhook would have refused changes nothing.
    fn overrides(&self) -> Arc<Vec<OverridePolicy>> {
        typed(&self.read_overrides, || {
            let all = [self.own.overrides.list(), self.own.cluster_overrides.list()].concat();
            all.into_iter().filter(|policy| override_refused(policy).is_empty()).collect()
        })
    }

    /// What the override policies make of a manifest for a cluster, and which of them, as annotations of the Work.
    pub(super) fn overridden(
        &self,
        manifest: &mut Value,
        cluster: &Value,
    ) -> Result<Vec<(&'static str, String)>, Trouble> {
        let policies = self.overrides();
        if policies.is_empty() {
            return Ok(Vec::new());
        }
        let Some(cluster) = self.cluster(cluster) else { return Err("its cluster cannot be read".into()) };
        Ok(overrides::apply(manifest, &cluster, &policies)?.annotations())
    }

    /// A taint policy has changed: every member is looked at. One that a webhook would have refused taints nothing.
    pub(super) fn taint_policy_changed(&self, now: Option<&Arc<Value>>) {
        *self.read_taint_policies.write().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(policy) = now {
            let refused = (taint_refused(policy, &self.taint_policies()), "ApplyPolicyFailed");
            self.say_of_policy(policy, clusters::FROM_TAINTS, refused, admit::taint_warnings);
        }
        for cluster in self.own.clusters.list() {
            self.queues.clusters.add(meta::name(&cluster).to_owned());
        }
    }

    /// All taint policies, as types.
    pub(super) fn taint_policies(&self) -> Arc<Vec<ClusterTaintPolicy>> {
        typed(&self.read_taint_policies, || self.own.taint_policies.list())
    }
}

/// Objects of a kind as types, as of the last change of one.
pub(super) type Typed<T> = RwLock<Option<Arc<Vec<T>>>>;

/// What is known, or what is read of `all` and known from then on.
fn typed<T: serde::de::DeserializeOwned>(known: &Typed<T>, all: impl FnOnce() -> Vec<Arc<Value>>) -> Arc<Vec<T>> {
    if let Some(known) = &*known.read().unwrap_or_else(PoisonError::into_inner) {
        return Arc::clone(known);
    }
    let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(known.insert(Arc::new(model::read_all(&all()))))
}
