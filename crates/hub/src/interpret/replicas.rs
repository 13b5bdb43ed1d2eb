//! How many replicas a workload has, what one needs, and a member's share of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stolos_k8s::meta;
use stolos_k8s::quantity::Quantity;

use super::{Native, list, native, number, pod_template, text};
use crate::divide::{NameOrder, Vote, seats};
use crate::model::{NodeClaim, ReplicaRequirements};

/// How many replicas, and what one needs (nothing where it asks for nothing).
#[derive(Clone, Debug, PartialEq)]
pub struct Replicas {
    /// How many.
    pub count: i64,
    /// What one needs.
    pub requirements: Option<ReplicaRequirements>,
}

/// The replicas of a workload; nothing for other kinds.
#[must_use]
pub fn replicas(template: &Value) -> Option<Replicas> {
    let count = count(template)?;
    Some(Replicas { count, requirements: pod_template(template).and_then(requirements) })
}

/// How many replicas a workload has; nothing for other kinds.
#[must_use]
pub fn count(template: &Value) -> Option<i64> {
    Some(match native(template)? {
        Native::Deployment | Native::StatefulSet | Native::ReplicaSet => {
            number(template, "/spec/replicas").unwrap_or(0)
        }
        Native::Job => {
            let parallelism = number(template, "/spec/parallelism").unwrap_or(0);
            number(template, "/spec/completions").map_or(parallelism, |completions| completions.min(parallelism))
        }
        Native::Pod => 1,
        _ => return None,
    })
}

/// Sets a member's share, where the template has the field.
pub fn revise(manifest: &mut Value, replicas: i64) {
    let field = match native(manifest) {
        Some(Native::Deployment | Native::StatefulSet | Native::ReplicaSet) => "/spec/replicas",
        Some(Native::Job) => "/spec/parallelism",
        _ => return,
    };
    if let Some(field) = manifest.pointer_mut(field) {
        *field = replicas.into();
    }
}

/// A Job's `completions` for each of its clusters, in their order: all the same, what remains by name. Nothing where it has
/// none.
#[must_use]
pub fn completions(template: &Value, clusters: &[&str]) -> Option<Vec<i64>> {
    let completions = number(template, "/spec/completions").filter(|_| native(template) == Some(Native::Job))?;
    let votes: Vec<Vote<'_>> = clusters.iter().map(|name| Vote { name, votes: 1 }).collect();
    Some(seats(completions, &votes, NameOrder::of(meta::uid(template))).shares)
}

/// What one pod needs, by its template.
pub(super) fn requirements(template: &Value) -> Option<ReplicaRequirements> {
    let spec = template.get("spec")?;
    let claim = NodeClaim {
        hard_node_affinity: spec
            .pointer("/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution")
            .cloned(),
        node_selector: texts(spec.get("nodeSelector")),
        tolerations: spec
            .get("tolerations")
            .and_then(|found| serde_json::from_value(found.clone()).ok())
            .unwrap_or_default(),
    };
    let resource_request = request(spec);
    if claim == NodeClaim::default() && resource_request.is_empty() {
        return None;
    }
    Some(ReplicaRequirements {
        node_claim: (claim != NodeClaim::default()).then_some(claim),
        resource_request,
        namespace: String::new(),
        priority_class_name: text(spec, "/priorityClassName").to_owned(),
    })
}

fn texts(map: Option<&Value>) -> BTreeMap<String, String> {
    let map = map.and_then(Value::as_object);
    map.into_iter().flatten().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// What a pod asks for: all containers together, or one that runs before them if it asks for more (Kubernetes' rule for
/// requests, with sidecars among the containers), and the overhead.
fn request(spec: &Value) -> BTreeMap<String, Value> {
    let asked = |container: &Value| amounts(container.pointer("/resources/requests"));
    let mut sum: BTreeMap<String, Quantity> = BTreeMap::new();
    let mut first: BTreeMap<String, Quantity> = BTreeMap::new();
    let add = |sum: &mut BTreeMap<String, Quantity>, more: Vec<(String, Quantity)>| {
        for (resource, amount) in more {
            let before = sum.get(&resource).copied();
            sum.insert(resource, before.map_or(amount, |before| before.plus(amount)));
        }
    };
    for container in list(spec, "/containers") {
        add(&mut sum, asked(container));
    }
    for container in list(spec, "/initContainers") {
        if text(container, "/restartPolicy") == "Always" {
            add(&mut sum, asked(container));
            continue;
        }
        for (resource, amount) in asked(container) {
            let most = first.entry(resource).or_insert(amount);
            if most.nano() < amount.nano() {
                *most = amount;
            }
        }
    }
    for (resource, amount) in first {
        let all = sum.entry(resource).or_insert(amount);
        if all.nano() < amount.nano() {
            *all = amount;
        }
    }
    add(&mut sum, amounts(spec.get("overhead")));
    sum.into_iter().map(|(resource, amount)| (resource, json!(amount.to_string()))).collect()
}

fn amounts(map: Option<&Value>) -> Vec<(String, Quantity)> {
    let map = map.and_then(Value::as_object);
    let read = |(resource, amount): (&String, &Value)| {
        let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
        Some((resource.clone(), Quantity::parse(&text).ok()?))
    };
    map.into_iter().flatten().filter_map(read).collect()
}
