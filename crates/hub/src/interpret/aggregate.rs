//! A template's own status, made from what members say.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use stolos_k8s::meta;

use super::status::generations;
use super::{Native, list, native, number, text};
use crate::model::AggregatedStatusItem;

/// The status of a template: what it is now, with the members' part. Nothing for kinds that have none, or when it stays
/// as it is for good.
#[must_use]
pub fn aggregate(template: &Value, items: &[AggregatedStatusItem]) -> Option<Value> {
    let kind = native(template)?;
    let said: Vec<(&str, &Value)> =
        (items.iter()).filter_map(|item| Some((item.cluster_name.as_str(), item.status.as_ref()?))).collect();
    let mut status = template.get("status").and_then(Value::as_object).cloned().unwrap_or_default();
    match kind {
        Native::Deployment => sums(
            &mut status,
            &said,
            &["replicas", "readyReplicas", "updatedReplicas", "availableReplicas", "unavailableReplicas"],
        ),
        Native::StatefulSet => sums(
            &mut status,
            &said,
            &["replicas", "readyReplicas", "updatedReplicas", "availableReplicas", "currentReplicas"],
        ),
        Native::ReplicaSet => {
            sums(&mut status, &said, &["replicas", "readyReplicas", "availableReplicas", "fullyLabeledReplicas"]);
        }
        Native::DaemonSet => sums(
            &mut status,
            &said,
            &[
                "desiredNumberScheduled",
                "currentNumberScheduled",
                "numberReady",
                "updatedNumberScheduled",
                "numberAvailable",
                "numberUnavailable",
                "numberMisscheduled",
            ],
        ),
        Native::HorizontalPodAutoscaler => sums(&mut status, &said, &["currentReplicas", "desiredReplicas"]),
        Native::PodDisruptionBudget => {
            sums(&mut status, &said, &["disruptionsAllowed", "expectedPods", "desiredHealthy", "currentHealthy"]);
            let pods = said.iter().flat_map(|(cluster, said)| {
                let pods = said.get("disruptedPods").and_then(Value::as_object);
                pods.into_iter().flatten().map(move |(pod, since)| (format!("{cluster}/{pod}"), since.clone()))
            });
            put(&mut status, "disruptedPods", pods.collect::<Map<_, _>>().into());
        }
        Native::Service if text(template, "/spec/type") != "LoadBalancer" => return None,
        Native::Service | Native::Ingress => {
            let mut addresses: Vec<Value> =
                said.iter().flat_map(|(_, said)| list(said, "/loadBalancer/ingress")).cloned().collect();
            addresses.sort_by_key(|address| (text(address, "/ip").to_owned(), text(address, "/hostname").to_owned()));
            addresses.dedup();
            let balancer = if addresses.is_empty() { json!({}) } else { json!({ "ingress": addresses }) };
            status.insert("loadBalancer".to_owned(), balancer);
        }
        Native::Job => return job(template, status, items, &said),
        Native::CronJob => {
            let active: Vec<Value> = said.iter().flat_map(|(_, said)| list(said, "/active")).cloned().collect();
            put(&mut status, "active", active.into());
            for field in ["lastScheduleTime", "lastSuccessfulTime"] {
                latest(&mut status, field, &said);
            }
        }
        Native::Pod => {
            let phases: BTreeSet<&str> = (items.iter())
                .map(|item| item.status.as_ref().map_or("Pending", |status| text(status, "/phase")))
                .collect();
            first_of(&mut status, &phases, &["Failed", "Pending", "Running", "Succeeded"]);
            for field in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
                let pointer = format!("/{field}");
                let all: Vec<Value> = said.iter().flat_map(|(_, said)| list(said, &pointer)).cloned().collect();
                put(&mut status, field, all.into());
            }
        }
        Native::PersistentVolume => {
            first_of(&mut status, &phases(&said), &["Failed", "Pending", "Available", "Bound", "Released"]);
        }
        Native::PersistentVolumeClaim => {
            let phases = phases(&said);
            let other = phases.iter().find(|phase| **phase != "Bound").copied();
            let phase = phases.get("Lost").copied().or(other).or_else(|| phases.first().copied());
            if let Some(phase) = phase {
                status.insert("phase".to_owned(), phase.into());
            }
        }
        Native::ServiceAccount | Native::Secret | Native::ServiceImport => return None,
    }
    if generations(Some(kind)) && observed(template, items) {
        status.insert("observedGeneration".to_owned(), json!(meta::generation(template)));
    }
    Some(status.into())
}

/// Whether every member has seen the newest: its own object's, of the template's newest.
fn observed(template: &Value, items: &[AggregatedStatusItem]) -> bool {
    items.iter().all(|item| {
        let of = |field: &str| item.status.as_ref().and_then(|status| number(status, field));
        of("/observedGeneration").unwrap_or(0) == of("/generation").unwrap_or(-1)
            && of("/resourceTemplateGeneration") == Some(meta::generation(template))
    })
}

/// Sets a field, or takes it out when it is empty or 0, as Kubernetes leaves such fields out.
fn put(status: &mut Map<String, Value>, field: &str, value: Value) {
    let empty = match &value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        _ => false,
    };
    match empty {
        true => status.remove(field),
        false => status.insert(field.to_owned(), value),
    };
}

fn sums(status: &mut Map<String, Value>, said: &[(&str, &Value)], fields: &[&str]) {
    for field in fields {
        let sum: i64 = said.iter().filter_map(|(_, said)| said.get(*field).and_then(Value::as_i64)).sum();
        put(status, field, sum.into());
    }
}

fn phases<'a>(said: &[(&str, &'a Value)]) -> BTreeSet<&'a str> {
    said.iter().map(|(_, said)| text(said, "/phase")).filter(|phase| !phase.is_empty()).collect()
}

/// The phase that comes first in an order.
fn first_of(status: &mut Map<String, Value>, phases: &BTreeSet<&str>, order: &[&str]) {
    if let Some(phase) = order.iter().find(|phase| phases.contains(**phase)) {
        status.insert("phase".to_owned(), (*phase).into());
    }
}

/// The latest of the members' times. All are written alike, so their text is in their order.
fn latest(status: &mut Map<String, Value>, field: &str, said: &[(&str, &Value)]) {
    let times = said.iter().filter_map(|(_, said)| said.get(field).and_then(Value::as_str));
    put(status, field, times.max().map_or(Value::Null, Value::from));
}

/// Sums and times; complete when it is in every cluster, failed when it has failed in one; and then it stays so.
fn job(
    template: &Value,
    mut status: Map<String, Value>,
    items: &[AggregatedStatusItem],
    said: &[(&str, &Value)],
) -> Option<Value> {
    let finished = |status: &Value, kind: &str| {
        list(status, "/conditions")
            .iter()
            .find(|condition| text(condition, "/type") == kind && text(condition, "/status") == "True")
            .cloned()
    };
    let own = template.get("status").cloned().unwrap_or_default();
    if finished(&own, "Complete").or_else(|| finished(&own, "Failed")).is_some() {
        return None;
    }
    sums(&mut status, said, &["active", "succeeded", "failed"]);
    let first = said.iter().filter_map(|(_, said)| said.get("startTime").and_then(Value::as_str)).min();
    put(&mut status, "startTime", first.map_or(Value::Null, Value::from));
    let ends = |kind: &str| -> Vec<(&str, Value)> {
        said.iter().filter_map(|(cluster, said)| Some((*cluster, finished(said, kind)?))).collect()
    };
    let (failed, complete) = (ends("Failed"), ends("Complete"));
    let since = |ends: &[(&str, Value)]| {
        let times = ends.iter().map(|(_, condition)| text(condition, "/lastTransitionTime"));
        times.max().unwrap_or_default().to_owned()
    };
    let condition = |kind: &str, reason: &str, message: String, since: String| {
        json!([{"type": kind, "status": "True", "reason": reason, "message": message,
            "lastProbeTime": since, "lastTransitionTime": since}])
    };
    if !failed.is_empty() {
        let clusters: Vec<&str> = failed.iter().map(|(cluster, _)| *cluster).collect();
        let message = format!("Job executed failed in member clusters {}", clusters.join(","));
        status.insert("conditions".to_owned(), condition("Failed", "JobFailed", message, since(&failed)));
    } else if !items.is_empty() && complete.len() == items.len() {
        let message = "Job completed".to_owned();
        status.insert("conditions".to_owned(), condition("Complete", "Completed", message, since(&complete)));
        latest(&mut status, "completionTime", said);
    }
    Some(status.into())
}
