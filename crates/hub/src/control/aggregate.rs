//! What members say of a template comes together in its binding, and in its own status.

use std::sync::Arc;

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
