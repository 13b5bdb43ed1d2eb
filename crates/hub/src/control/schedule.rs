//! Which clusters a binding goes to: the decision is [`crate::place`]'s, the writing is here.

use std::sync::Arc;

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::Hub;
use super::clusters::{condition, set_condition};
use super::template::TemplateKey;
use crate::mirror::{Key, Mirror};
use crate::model::{self, Binding, Cluster, TargetCluster};
use crate::place::{self, Decision, Outcome, Trigger};
use crate::queue::{Again, Trouble};
use crate::{estimate, label};

/// Who says it.
const FROM: &str = "default-scheduler";
/// The generation of what is made.
const FIRST_GENERATION: i64 = 1;

/// Looks at one binding.
pub(super) async fn look(hub: Arc<Hub>, key: Key) -> Result<Again, Trouble> {
    let Some((mirror, object)) = hub.binding(&key) else { return Ok(None) };
    if meta::deletion_timestamp(&object).is_some() {
        return Ok(None);
    }
    let (binding, _) = model::read::<Binding>(&object)?;
    let all = hub.own.clusters.list();
    let going = |name: &str| {
        all.iter().find(|cluster| meta::name(cluster) == name).is_none_or(|c| meta::deletion_timestamp(c).is_some())
    };
    let Some(trigger) = place::due(&binding, &going) else { return observe(&hub, &mirror, &object, &binding).await };
    let decision = decide(&hub, &binding, &all);
    tracing::debug!(binding = ?key, ?trigger, outcome = ?decision.outcome, "scheduled");

    let mut placed = Value::clone(&object);
    let mut status = object["status"].clone();
    let fine = match &decision.outcome {
        Outcome::Placed { clusters, group } => {
            put(&mut placed, &binding, clusters)?;
            match group {
                Some(group) => status["schedulerObservingAffinityName"] = group.as_str().into(),
                None => {
                    if let Some(fields) = status.as_object_mut() {
                        fields.remove("schedulerObservingAffinityName");
                    }
                }
            }
            true
        }
        // Karmada empties the result where nothing fits. Here what runs is kept until it fits somewhere else: a copy is
        // never deleted because there is no place for it.
        _ => false,
    };
    let changed = placed != *object;
    let before = condition(&object["status"], "Scheduled").cloned();
    let now = if changed { hub.change(&mirror, &object, &placed).await? } else { Arc::clone(&object) };
    let value = if fine { "True" } else { "False" };
    set_condition(&mut status, "Scheduled", value, decision.outcome.reason(), decision.outcome.message());
    let observed = status["schedulerObservedGeneration"] == meta::generation(&now);
    if fine && (changed || !observed || trigger == Trigger::Reschedule) {
        status["schedulerObservedGeneration"] = meta::generation(&now).into();
        // Whoever asked for it with a time that is ahead has had it: it is not divided afresh again when that has come.
        let asked = binding.spec.reschedule_triggered_at.filter(|asked| *asked > jiff::Timestamp::now());
        status["lastScheduledTime"] = asked.map_or_else(super::write::now, |asked| asked.to_string()).into();
    }
    if changed || before.as_ref() != condition(&status, "Scheduled") {
        say(&hub, &now, &decision.outcome);
    }
    // Somebody else may be faster; what is decided is said by then, and `observe` writes it with the next look.
    hub.put_status(&mirror, &now, &status).await?;
    match fine {
        true => Ok(None),
        // Room comes and goes without anybody saying so.
        false => Err(decision.outcome.event().into()),
    }
}

/// Decides for a binding that is to be made: it comes with its clusters, which saves a write and a look for each. What waits
/// for others, or does not fit, or tries one affinity group after the other, is decided when it is there; so is everything
/// while some bindings go before others. A server of another process takes no status with it: [`observe`] writes that then.
pub(super) fn at_once(hub: &Hub, wanted: &mut Value) -> Result<Option<Outcome>, Trouble> {
    if hub.queues.schedule.is_ranked() {
        return Ok(None);
    }
    let (binding, _) = model::read::<Binding>(wanted)?;
    if binding.spec.schedule_priority.is_some() || place::due(&binding, &|_| false).is_none() {
        return Ok(None);
    }
    let outcome = decide(hub, &binding, &hub.own.clusters.list()).outcome;
    let Outcome::Placed { clusters, group: None } = &outcome else { return Ok(None) };
    put(wanted, &binding, clusters)?;
    let mut status = json!({});
    placed(&mut status, &outcome, FIRST_GENERATION);
    wanted["status"] = status;
    Ok(Some(outcome))
}

/// Says of a binding that was made what was decided [`at_once`], if its status does.
pub(super) fn say_at_once(hub: &Hub, binding: &Value, outcome: Option<&Outcome>) {
    if let Some(outcome) = outcome
        && condition(&binding["status"], "Scheduled").is_some()
    {
        say(hub, binding, outcome);
    }
}

/// A status that says where a binding goes, as of one of its generations.
fn placed(status: &mut Value, outcome: &Outcome, generation: i64) {
    set_condition(status, "Scheduled", "True", outcome.reason(), outcome.message());
    status["schedulerObservedGeneration"] = generation.into();
    if status["lastScheduledTime"].is_null() {
        status["lastScheduledTime"] = super::write::now().into();
    }
}

fn decide(hub: &Hub, binding: &Binding, all: &[Arc<Value>]) -> Decision {
    let staying = all.iter().filter(|cluster| meta::deletion_timestamp(cluster).is_none());
    let clusters: Vec<Arc<Cluster>> = staying.filter_map(|cluster| hub.cluster(cluster)).collect();
    let requirements = binding.spec.replica_requirements.as_ref();
    let room = |cluster: &Cluster| estimate::available(cluster, requirements);
    place::place(binding, &clusters, &room, hub.placing)
}

/// Writes down where a binding goes, and by which placement.
fn put(object: &mut Value, binding: &Binding, clusters: &[TargetCluster]) -> Result<(), Trouble> {
    object["spec"]["clusters"] = serde_json::to_value(clusters)?;
    let applied = serde_json::to_string(&binding.spec.placement)?;
    meta::set_annotation(object, label::APPLIED_PLACEMENT, &applied);
    Ok(())
}

/// Says what was decided, of the binding and of its template.
fn say(hub: &Hub, binding: &Value, outcome: &Outcome) {
    let template = hub.template(&TemplateKey::of_binding(binding));
    for about in [Some(binding), template.as_ref().map(|(_, template)| &**template)].into_iter().flatten() {
        match outcome {
            Outcome::Placed { .. } => hub.events.normal(about, FROM, "ScheduleBindingSucceed", outcome.event()),
            _ => hub.events.warning(about, FROM, "ScheduleBindingFailed", outcome.event()),
        }
    }
}

/// Nothing is to be decided, but what was decided is not said yet: the binding came with its clusters ([`at_once`]), somebody
/// was faster, or the hub ended in between.
async fn observe(hub: &Hub, mirror: &Mirror, object: &Value, binding: &Binding) -> Result<Again, Trouble> {
    let scheduled = binding.metadata.annotations.contains_key(label::APPLIED_PLACEMENT);
    if !scheduled || binding.status.scheduler_observed_generation == binding.metadata.generation {
        return Ok(None);
    }
    let outcome = Outcome::Placed { clusters: binding.spec.clusters.clone(), group: None };
    if condition(&object["status"], "Scheduled").is_none() {
        say(hub, object, &outcome);
    }
    let mut status = object["status"].clone();
    placed(&mut status, &outcome, binding.metadata.generation);
    hub.put_status(mirror, object, &status).await?;
    Ok(None)
}
