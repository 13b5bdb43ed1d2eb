//! What members say of a template comes together in its binding, and in its own status.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::Hub;
use super::bind::targets;
use super::clusters::{condition, set_condition};
use super::interpret::unanswered;
use super::template::TemplateKey;
use crate::mirror::Key;
use crate::model::AggregatedStatusItem;
use crate::name;
use crate::queue::{Again, Trouble};

/// Who says it.
const FROM: &str = "resource-binding-status-controller";
/// Who says it of what has no namespace.
const FROM_CLUSTER: &str = "cluster-resource-binding-status-controller";

/// For so long what is new may have said nothing yet, without that being worth a word.
const NEW: Duration = Duration::from_secs(2);
/// When that is looked at again if nobody says anything meanwhile.
const LOOKED_AFTER: Duration = Duration::from_secs(1);

/// Looks at one binding.
pub(super) async fn look(hub: Arc<Hub>, key: Key) -> Result<Again, Trouble> {
    let Some((mirror, binding)) = hub.binding(&key) else { return Ok(None) };
    if meta::deletion_timestamp(&binding).is_some() {
        return Ok(None);
    }
    let template = TemplateKey::of_binding(&binding);
    let work_name = name::work(&template.kind, &template.name, &template.namespace);
    let mut targets = targets(&binding);
    targets.sort();
    let mut items = Vec::new();
    for (cluster, _) in &targets {
        if let Some(work) = hub.own.works.get(&name::execution_namespace(cluster), &work_name) {
            if is_silent(&work, jiff::Timestamp::now()) {
                // What it says brings us here again, and each word of another meanwhile.
                return Ok(Some(LOOKED_AFTER));
            }
            items.push(item(cluster, &work));
        }
    }
    let mut status = binding["status"].clone();
    let fully = !targets.is_empty() && items.len() == targets.len() && items.iter().all(|item| item["applied"] == true);
    if !targets.is_empty() || condition(&status, "FullyApplied").is_some() {
        let (value, reason, message) = match fully {
            true => ("True", "FullyAppliedSuccess", "All works have been successfully applied"),
            false => {
                ("False", "FullyAppliedFailed", "Failed to apply all works, see status.aggregatedStatus for details")
            }
        };
        set_condition(&mut status, "FullyApplied", value, reason, message);
    }
    status["aggregatedStatus"] = items.clone().into();
    let (from, of) = match key.0.as_str() {
        "" => (FROM_CLUSTER, format!("ClusterResourceBinding({})", key.1)),
        namespace => (FROM, format!("ResourceBinding({namespace}/{})", key.1)),
    };
    let object = hub.template(&template).filter(|(_, object)| meta::uid(object) == binding["spec"]["resource"]["uid"]);
    if hub.put_status(&mirror, &binding, &status).await? {
        let text = format!("Update {of} with AggregatedStatus successfully.");
        hub.events.normal(&binding, from, "AggregateStatusSucceed", text.as_str());
        if let Some((_, object)) = &object {
            hub.events.normal(object, from, "AggregateStatusSucceed", text);
        }
    }
    if let Some((mirror, object)) = object {
        let said = serde_json::from_value::<Vec<AggregatedStatusItem>>(items.into())?;
        let status = match hub.interpret(&object, |known| known.aggregate(&object, &said)).await {
            Ok(status) => status,
            Err(error) => {
                let text = unanswered("Aggregate status of", &object, &error);
                hub.events.warning(&binding, from, "AggregateStatusFailed", text.as_str());
                hub.events.warning(&object, from, "AggregateStatusFailed", text);
                return Err(error.into());
            }
        };
        if let Some(status) = status {
            hub.put_status(&mirror, &object, &status).await?;
        }
    }
    Ok(None)
}

/// Whether a Work is so new that nobody can have said anything of it yet, and nobody has.
fn is_silent(work: &Value, now: jiff::Timestamp) -> bool {
    let made = work["metadata"]["creationTimestamp"].as_str().and_then(|at| at.parse::<jiff::Timestamp>().ok());
    work["status"].is_null() && made.is_some_and(|made| now.duration_since(made).unsigned_abs() < NEW)
}

/// What one member says.
fn item(cluster: &str, work: &Value) -> Value {
    let applied = condition(&work["status"], "Applied");
    let mut item = json!({"clusterName": cluster});
    match applied {
        Some(applied) if applied["status"] == "True" => {
            item["applied"] = true.into();
            let first = &work["status"]["manifestStatuses"][0];
            if !first["status"].is_null() {
                item["status"] = first["status"].clone();
            }
            item["health"] = first["health"].as_str().unwrap_or("Unknown").into();
        }
        Some(applied) => {
            item["applied"] = false.into();
            item["appliedMessage"] = applied["message"].clone();
            item["health"] = "Unknown".into();
        }
        None => item["health"] = "Unknown".into(),
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_waited_for() {
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap();
        let work = |status: Value| json!({"metadata": {"creationTimestamp": "2026-11-22T10:00:00Z"}, "status": status});
        let silent = work(Value::Null);
        for (seconds, expected) in [(0, true), (1, true), (2, false), (60, false)] {
            let now = at("2026-11-22T10:00:00Z") + jiff::SignedDuration::from_secs(seconds);
            assert_eq!(is_silent(&silent, now), expected, "after {seconds} s");
        }
        let said = work(json!({"conditions": [{"type": "Applied", "status": "False"}]}));
        assert!(!is_silent(&said, at("2026-11-22T10:00:00Z")));
        // A clock that was set back must not keep a binding silent.
        assert!(!is_silent(&silent, at("2026-11-22T09:00:00Z")));
    }
}
