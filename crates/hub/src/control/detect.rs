//! Detector: which policy a template follows, and the binding that says so.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::interpret::unanswered;
use super::template::{TemplateKey, is_of_every_server, is_template};
use super::{Hub, schedule};
use crate::choose::{self, Claim};
use crate::interpret::Replicas;
use crate::mirror::{Key, Mirror};
use crate::model::{Activation, Component, PropagationPolicy};
use crate::queue::{Again, Trouble};
use crate::{label, name};

/// Who says it.
const FROM: &str = "resource-detector";
/// A template and its policy often come together: only then is it said that there is none.
const SECOND_LOOK: Duration = Duration::from_millis(500);
/// Of so many templates at most it is remembered that no policy selects them.
const MOST_UNMATCHED: usize = 100_000;

/// Looks at one template.
pub(super) async fn look(hub: Arc<Hub>, key: TemplateKey) -> Result<Again, Trouble> {
    let touched = hub.touched.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    let looked = follow(&hub, key.clone(), touched).await;
    if touched && !matches!(looked, Ok(Followed::Settled(_))) {
        // A lazy policy goes out with an edit of the template: it still has to.
        hub.touched.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
    }
    match looked? {
        Followed::Settled(again) => Ok(again),
        Followed::Waits => Ok(None),
    }
}

/// What became of a look at a template.
enum Followed {
    /// There is nothing more to do, or nothing before then.
    Settled(Again),
    /// What it waits for brings us here again.
    Waits,
}

async fn follow(hub: &Hub, key: TemplateKey, touched: bool) -> Result<Followed, Trouble> {
    let Some((mirror, template)) = hub.template(&key) else {
        hub.waiting().remove(&key);
        return Ok(Followed::Settled(None));
    };
    if meta::deletion_timestamp(&template).is_some() || !is_template(&template) {
        return Ok(Followed::Settled(None));
    }
    let needed = hub.tell_needing(&template);
    let policies = hub.policies_for(&template);
    let choice = choose::choose(&template, policies.iter().map(|policy| &**policy), hub.placing.algorithm, true);
    let Some(choice) = choice else {
        release(hub, &mirror, &template).await?;
        if needed {
            return Ok(Followed::Settled(None));
        }
        let first = hub.waiting().insert(key);
        if first {
            return Ok(Followed::Settled(Some(SECOND_LOOK)));
        }
        if !hub.said_unmatched(meta::uid(&template)) && !is_of_every_server(&template) {
            hub.events.warning(&template, FROM, "ApplyPolicyFailed", "No policy match for resource");
        }
        return Ok(Followed::Settled(None));
    };
    hub.waiting().remove(&key);
    hub.forget_unmatched(meta::uid(&template));
    let (claim, text) = match choice.policy.metadata.namespace.as_str() {
        "" => (Claimed::of(choice.policy), format!("Apply cluster policy({}) ", choice.policy.metadata.name)),
        namespace => {
            (Claimed::of(choice.policy), format!("Apply policy({namespace}/{}) ", choice.policy.metadata.name))
        }
    };
    if claim.id.is_empty() {
        // It has not got its id yet; that it does brings us here again.
        return Ok(Followed::Waits);
    }
    // A lazy policy's edits wait for the template (karmada.md 10.2).
    let lazy = choice.policy.spec.activation_preference == Activation::Lazy && choice.claimed;
    if lazy && !touched && hub.binding(&binding_key(&template)).is_some() {
        return Ok(Followed::Settled(None));
    }
    if let Some(missing) = hub.missing_override(choice.policy) {
        let message = format!("{text}failed: it waits for the override policy {missing}");
        hub.events.warning(&template, FROM, "ApplyPolicyFailed", message);
        hub.waiting().insert(key);
        return Ok(Followed::Waits);
    }
    let from = preempted(&policies, &template, choice.policy);
    match apply(hub, &mirror, &template, choice.policy, (&claim, touched)).await {
        Ok(changed) => {
            if let Some(from) = from {
                let mut news = format!("{} preempted {} successfully", said(choice.policy), said(from));
                news[..1].make_ascii_uppercase();
                hub.events.normal(&template, FROM, "PreemptPolicySucceed", news);
            }
            if changed {
                hub.events.normal(&template, FROM, "ApplyPolicySucceed", text + "succeed");
            }
        }
        Err(error) => {
            hub.events.warning(&template, FROM, "ApplyPolicyFailed", format!("{text}failed: {error}"));
            return Err(error);
        }
    }
    Ok(Followed::Settled(None))
}

/// The policy that has a template and loses it to `taker`, if it still selects it: whoever does not lets it go.
fn preempted<'a>(
    policies: &'a [Arc<PropagationPolicy>],
    template: &Value,
    taker: &PropagationPolicy,
) -> Option<&'a PropagationPolicy> {
    let claim = Claim::of(template).filter(|claim| !claim.is_of(taker))?;
    policies
        .iter()
        .map(Arc::as_ref)
        .find(|policy| claim.is_of(policy) && choose::policy_match(policy, template).is_some())
}

/// What Karmada's events call a policy.
fn said(policy: &PropagationPolicy) -> String {
    let metadata = &policy.metadata;
    match metadata.namespace.as_str() {
        "" => format!("cluster propagation policy({})", metadata.name),
        namespace => format!("propagation policy({namespace}/{})", metadata.name),
    }
}

impl Hub {
    pub(super) fn waiting(&self) -> MutexGuard<'_, HashSet<TemplateKey>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claiming(&self) -> MutexGuard<'_, HashSet<TemplateKey>> {
        self.claiming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was said of this template before that no policy selects it; from now on it was.
    fn said_unmatched(&self, uid: &str) -> bool {
        let mut said = self.unmatched.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= MOST_UNMATCHED {
            said.clear();
        }
        !said.insert(uid.to_owned())
    }

    fn forget_unmatched(&self, uid: &str) {
        self.unmatched.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// How a policy's templates are ranked, by the class that it names (Karmada's gate `PriorityBasedScheduling`).
    fn priority(&self, policy: &PropagationPolicy) -> Result<Option<i64>, Trouble> {
        let Some(said) = &policy.spec.schedule_priority else { return Ok(None) };
        let classes = self.mirror_of("scheduling.k8s.io/v1", "PriorityClass");
        let class = classes.and_then(|classes| classes.get("", &said.priority_class_name));
        match class.and_then(|class| class["value"].as_i64()) {
            Some(priority) => Ok(Some(priority)),
            None => Err(format!("there is no PriorityClass {} in the hub", said.priority_class_name).into()),
        }
    }

    /// The first of the override policies that a policy waits for and that is not there.
    fn missing_override(&self, policy: &PropagationPolicy) -> Option<String> {
        let namespace = policy.metadata.namespace.as_str();
        let mirror = if namespace.is_empty() { &self.own.cluster_overrides } else { &self.own.overrides };
        policy.spec.dependent_overrides.iter().find(|name| mirror.get(namespace, name).is_none()).cloned()
    }
}

/// What a policy puts on what it claims.
pub(super) struct Claimed {
    pub(super) id: String,
    namespace: String,
    name: String,
}

/// Every key that a claim may put on an object: labels, then annotations.
const CLAIM_LABELS: [&str; 2] = [label::POLICY_ID, label::CLUSTER_POLICY_ID];
const CLAIM_ANNOTATIONS: [&str; 3] = [label::POLICY_NAMESPACE, label::POLICY_NAME, label::CLUSTER_POLICY_NAME];

impl Claimed {
    fn of(policy: &PropagationPolicy) -> Self {
        let metadata = &policy.metadata;
        let key = if metadata.namespace.is_empty() { label::CLUSTER_POLICY_ID } else { label::POLICY_ID };
        let id = metadata.labels.get(key).cloned().unwrap_or_default();
        Self { id, namespace: metadata.namespace.clone(), name: metadata.name.clone() }
    }

    fn labels(&self) -> Vec<(&'static str, &str)> {
        let key = if self.namespace.is_empty() { label::CLUSTER_POLICY_ID } else { label::POLICY_ID };
        vec![(key, &self.id)]
    }

    fn annotations(&self) -> Vec<(&'static str, &str)> {
        match self.namespace.as_str() {
            "" => vec![(label::CLUSTER_POLICY_NAME, &self.name)],
            namespace => vec![(label::POLICY_NAMESPACE, namespace), (label::POLICY_NAME, &self.name)],
        }
    }

    /// An object with this claim, and no other.
    fn put(&self, object: &mut Value) {
        strip(object);
        for (key, value) in self.labels() {
            meta::set_label(object, key, value);
        }
        for (key, value) in self.annotations() {
            meta::set_annotation(object, key, value);
        }
    }
}

/// An object without any claim.
pub(super) fn strip(object: &mut Value) {
    let mut remove = |of: &str, keys: &[&str]| {
        if let Some(known) = object["metadata"][of].as_object_mut() {
            known.retain(|key, _| !keys.contains(&key.as_str()));
        }
    };
    remove("labels", &CLAIM_LABELS);
    remove("annotations", &CLAIM_ANNOTATIONS);
}

/// The labels and annotations of an object that are no claim's.
pub(super) fn unclaimed(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let fields = |of: &str| object["metadata"][of].as_object().into_iter().flatten();
    let labels = fields("labels").filter(|(key, _)| !CLAIM_LABELS.contains(&key.as_str()));
    labels.chain(fields("annotations").filter(|(key, _)| !CLAIM_ANNOTATIONS.contains(&key.as_str())))
}

/// The binding of a template.
fn binding_key(template: &Value) -> Key {
    (meta::namespace(template).to_owned(), name::binding(meta::kind(template), meta::name(template)))
}

/// Takes the claim of a policy that is gone, or selects it no longer, from a template and its binding. The binding and
/// its Works stay: workloads keep running (karmada.md 10.3).
async fn release(hub: &Hub, mirror: &Mirror, template: &Value) -> Result<(), Trouble> {
    if Claim::of(template).is_none() {
        return Ok(());
    }
    // The binding first: as long as the template has its claim, this is done again where it did not come to its end.
    if let Some((mirror, binding)) = hub.binding(&binding_key(template)) {
        let mut free = Value::clone(&binding);
        strip(&mut free);
        hub.change(&mirror, &binding, &free).await?;
    }
    let mut free = template.clone();
    strip(&mut free);
    hub.change(mirror, template, &free).await?;
    Ok(())
}

/// Claims a template and writes its binding; whether the binding is another one now. `touched` says whether people have
/// written the template since it was looked at last.
async fn apply(
    hub: &Hub,
    mirror: &Mirror,
    template: &Value,
    policy: &PropagationPolicy,
    (claim, touched): (&Claimed, bool),
) -> Result<bool, Trouble> {
    let mut claimed = template.clone();
    claim.put(&mut claimed);
    let written;
    let template = if claimed == *template {
        template
    } else {
        let key = TemplateKey::of(template);
        hub.claiming().insert(key.clone());
        let changed = hub.change(mirror, template, &claimed).await;
        hub.claiming().remove(&key);
        written = changed?;
        &*written
    };
    let key = binding_key(template);
    let bindings = hub.bindings_of(&key.0);
    let before = bindings.get(&key.0, &key.1);
    if before.as_ref().is_some_and(|before| meta::deletion_timestamp(before).is_some()) {
        return Err("the binding of a template of this name is still on its way out".into());
    }
    let needs = needs(hub, template).await?;
    let priority = hub.priority(policy)?;
    let mut wanted = binding(template, policy, claim, (needs, priority), before.as_deref())?;
    if let Some(before) = before.as_ref().filter(|_| !touched)
        && before["spec"]["resource"]["uid"] == wanted["spec"]["resource"]["uid"]
    {
        // Its status alone is new, which the hub writes itself.
        wanted["spec"]["resource"]["resourceVersion"] = before["spec"]["resource"]["resourceVersion"].clone();
    }
    match before {
        None => {
            let decided = schedule::at_once(hub, &mut wanted)?;
            let made = hub.create(bindings, &wanted).await?;
            schedule::say_at_once(hub, &made, decided.as_ref());
        }
        Some(before) if essence(&before) == essence(&wanted) => return Ok(false),
        Some(_) => {
            hub.replace(bindings, &wanted).await?;
        }
    }
    Ok(true)
}

/// What of a binding its detector decides.
fn essence(binding: &Value) -> Value {
    json!([
        binding["metadata"]["labels"],
        binding["metadata"]["annotations"],
        binding["metadata"]["finalizers"],
        binding["metadata"]["ownerReferences"],
        binding["spec"]
    ])
}

/// What a template needs in a cluster.
#[derive(Default)]
struct Needs {
    replicas: Option<Replicas>,
    components: Vec<Component>,
}

async fn needs(hub: &Hub, template: &Value) -> Result<Needs, Trouble> {
    let answer = hub.interpret(template, |known| {
        let failed = |what, reason| move |error| (what, reason, error);
        if let Some(components) =
            known.components(template).map_err(failed("Get components of", "GetComponentsFailed"))?
        {
            return Ok(Needs { replicas: None, components });
        }
        let replicas = known.replicas(template).map_err(failed("Get replicas of", "GetReplicasFailed"))?;
        Ok(Needs { replicas, components: Vec::new() })
    });
    answer.await.map_err(|(what, reason, error)| {
        hub.events.warning(template, FROM, reason, unanswered(what, template, &error));
        error.into()
    })
}

/// The kind of a binding in a namespace or in none, its finalizer, and the label of its id.
pub(super) fn kind_in(namespace: &str) -> (&'static str, &'static str, &'static str) {
    match namespace {
        "" => ("ClusterResourceBinding", label::CLUSTER_BINDING_FINALIZER, label::CLUSTER_BINDING_ID),
        _ => ("ResourceBinding", label::BINDING_FINALIZER, label::BINDING_ID),
    }
}

/// The binding of a template: what the policy says, what the template needs, and what others have written before.
fn binding(
    template: &Value,
    policy: &PropagationPolicy,
    claim: &Claimed,
    (needs, priority): (Needs, Option<i64>),
    before: Option<&Value>,
) -> Result<Value, Trouble> {
    let (namespace, kind) = (meta::namespace(template), meta::kind(template));
    let (own_kind, finalizer, id) = kind_in(namespace);
    let mut binding = before.cloned().unwrap_or_else(|| {
        json!({"apiVersion": "work.karmada.io/v1alpha2", "kind": own_kind,
            "metadata": {"name": name::binding(kind, meta::name(template)),
                "labels": {id: uuid::Uuid::new_v4().to_string()}}, "spec": {}})
    });
    if !namespace.is_empty() {
        binding["metadata"]["namespace"] = namespace.into();
    }
    claim.put(&mut binding);
    if meta::label(&binding, id).is_none() {
        meta::set_label(&mut binding, id, &uuid::Uuid::new_v4().to_string());
    }
    let mut finalizers: Vec<String> = meta::finalizers(&binding).into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|known| known == finalizer) {
        finalizers.push(finalizer.to_owned());
    }
    binding["metadata"]["finalizers"] = finalizers.into();
    binding["metadata"]["ownerReferences"] = json!([{"apiVersion": meta::api_version(template), "kind": kind,
        "name": meta::name(template), "uid": meta::uid(template), "controller": true, "blockOwnerDeletion": true}]);
    let spec = &policy.spec;
    let from = &mut binding["spec"];
    from["resource"] = json!({"apiVersion": meta::api_version(template), "kind": kind, "name": meta::name(template),
        "uid": meta::uid(template), "resourceVersion": meta::resource_version(template)});
    if !namespace.is_empty() {
        from["resource"]["namespace"] = namespace.into();
    }
    let Needs { replicas, components } = needs;
    let (replicas, requirements) = replicas.map_or((0, None), |needs| (needs.count, needs.requirements));
    let mut put = |field: &str, value: Option<Value>| match value {
        Some(value) => from[field] = value,
        None => {
            if let Some(fields) = from.as_object_mut() {
                fields.remove(field);
            }
        }
    };
    let yes = |value: bool| value.then_some(Value::Bool(true));
    put("replicas", (replicas > 0).then(|| replicas.into()));
    put("replicaRequirements", requirements.map(serde_json::to_value).transpose()?);
    put("components", (!components.is_empty()).then(|| serde_json::to_value(components)).transpose()?);
    put("propagateDeps", yes(spec.propagate_deps || spec.association));
    put("conflictResolution", Some(serde_json::to_value(spec.conflict_resolution)?));
    put("placement", Some(serde_json::to_value(&spec.placement)?));
    put("schedulePriority", priority.map(|priority| json!({"priority": priority})));
    put("failover", spec.failover.as_ref().map(serde_json::to_value).transpose()?);
    put("preserveResourcesOnDeletion", yes(spec.preserve_resources_on_deletion));
    let scheduler = Some(spec.scheduler_name.as_str()).filter(|name| !name.is_empty());
    put("schedulerName", Some(scheduler.unwrap_or(label::DEFAULT_SCHEDULER).into()));
    let mut suspension = spec.suspension.as_ref().map(serde_json::to_value).transpose()?;
    if let Some(scheduling) =
        before.map(|before| &before["spec"]["suspension"]["scheduling"]).filter(|s| s.is_boolean())
    {
        suspension.get_or_insert_with(|| json!({}))["scheduling"] = scheduling.clone();
    }
    put("suspension", suspension);
    Ok(binding)
}
