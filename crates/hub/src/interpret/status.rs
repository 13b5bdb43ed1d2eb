//! What a member's object says of itself: the part of its status that the hub keeps, and whether it is well.

use serde_json::{Map, Value, json};
use stolos_k8s::meta;

use super::{Native, list, native, number, text};
use crate::label::TEMPLATE_GENERATION;
use crate::model::Health;

/// The status of a member's object as the hub keeps it; of kinds that are not known the whole of it.
#[must_use]
pub fn reflect(object: &Value) -> Option<Value> {
    let status = object.get("status").filter(|status| !status.is_null())?;
    let fields: &[&str] = match native(object) {
        Some(Native::Deployment) => &[
            "observedGeneration",
            "replicas",
            "readyReplicas",
            "updatedReplicas",
            "availableReplicas",
            "unavailableReplicas",
        ],
        Some(Native::StatefulSet) => &[
            "observedGeneration",
            "replicas",
            "readyReplicas",
            "updatedReplicas",
            "availableReplicas",
            "currentReplicas",
        ],
        Some(Native::ReplicaSet) => {
            &["observedGeneration", "replicas", "readyReplicas", "availableReplicas", "fullyLabeledReplicas"]
        }
        Some(Native::DaemonSet) => &[
            "observedGeneration",
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "numberMisscheduled",
        ],
        Some(Native::Job) => &["active", "succeeded", "failed", "conditions", "startTime", "completionTime"],
        Some(Native::Service | Native::Ingress) => &["loadBalancer"],
        Some(Native::PodDisruptionBudget) => {
            &["disruptionsAllowed", "expectedPods", "desiredHealthy", "currentHealthy", "disruptedPods"]
        }
        Some(Native::HorizontalPodAutoscaler) => &["currentReplicas", "desiredReplicas"],
        _ => return Some(status.clone()),
    };
    let mut kept: Map<String, Value> =
        (fields.iter()).filter_map(|field| Some(((*field).to_owned(), status.get(*field)?.clone()))).collect();
    if generations(native(object)) {
        kept.insert("generation".to_owned(), json!(meta::generation(object)));
        // Which generation of the template this copy is of: the hub wrote it there.
        if let Some(generation) =
            meta::annotation(object, TEMPLATE_GENERATION).and_then(|text| text.parse::<i64>().ok())
        {
            kept.insert("resourceTemplateGeneration".to_owned(), json!(generation));
        }
    }
    Some(kept.into())
}

/// Whether a kind's status tells which generation it is of.
pub(super) fn generations(kind: Option<Native>) -> bool {
    matches!(kind, Some(Native::Deployment | Native::StatefulSet | Native::ReplicaSet | Native::DaemonSet))
}

/// How many replicas of a copy are ready, by its status as the hub keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// So many.
    Count(i64),
    /// The status is not about the copy as it is now, or there is none yet.
    Stale,
    /// The kind does not count them: all, if it is well.
    ByHealth,
}

/// How many replicas of a copy are ready: those that have been so for as long as its `minReadySeconds` wants. `status` is what
/// [`reflect`] kept of it.
#[must_use]
pub fn ready(object: &Value, status: &Value) -> Ready {
    if !matches!(native(object), Some(Native::Deployment | Native::StatefulSet | Native::ReplicaSet)) {
        return Ready::ByHealth;
    }
    let count = |field: &str| status[field].as_i64();
    match count("observedGeneration") {
        Some(observed) if Some(observed) == count("generation") => {
            Ready::Count(count("availableReplicas").unwrap_or(0))
        }
        _ => Ready::Stale,
    }
}

/// Whether a member's object is well. Kinds that say nothing of it are.
#[must_use]
pub fn health(object: &Value) -> Health {
    let count = |field: &str| number(object, &format!("/status/{field}")).unwrap_or(0);
    let observed = || count("observedGeneration") == meta::generation(object);
    let addressed = || !list(object, "/status/loadBalancer/ingress").is_empty();
    let well = match native(object) {
        Some(Native::Deployment | Native::StatefulSet) => {
            let wanted = number(object, "/spec/replicas").unwrap_or(0);
            let updated = count("updatedReplicas");
            observed() && updated >= wanted && count("availableReplicas") >= updated
        }
        Some(Native::ReplicaSet) => {
            observed() && count("availableReplicas") >= number(object, "/spec/replicas").unwrap_or(0)
        }
        Some(Native::DaemonSet) => {
            let updated = count("updatedNumberScheduled");
            observed() && updated >= count("desiredNumberScheduled") && count("numberAvailable") >= updated
        }
        Some(Native::Pod) => match text(object, "/status/phase") {
            "Succeeded" => true,
            "Running" => {
                let ready = |condition: &&Value| text(condition, "/type") == "Ready";
                list(object, "/status/conditions")
                    .iter()
                    .find(ready)
                    .is_some_and(|ready| text(ready, "/status") == "True")
            }
            _ => false,
        },
        Some(Native::Service) => text(object, "/spec/type") != "LoadBalancer" || addressed(),
        Some(Native::Ingress) => addressed(),
        Some(Native::PersistentVolumeClaim) => text(object, "/status/phase") == "Bound",
        Some(Native::PodDisruptionBudget) => count("currentHealthy") >= count("desiredHealthy"),
        _ => true,
    };
    if well { Health::Healthy } else { Health::Unhealthy }
}
