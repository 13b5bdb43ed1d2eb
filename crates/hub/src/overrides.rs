//! Changes of a manifest on its way to one cluster (Karmada v1.18.2's override manager).
//!
//! Cluster-wide policies come first, then those of the namespace; among each, those that select less exactly first, then by
//! name: what comes later wins. Inside a policy its rules in their order, and inside a rule image, command, args, labels,
//! annotations, field, plaintext. Overrides come after the division of replicas, so one that sets them wins.

mod image;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stolos_k8s::meta;
use stolos_k8s::patch::PatchError;

use crate::choose::{Match, best_match};
use crate::label::{APPLIED_CLUSTER_OVERRIDES, APPLIED_OVERRIDES};
use crate::model::{
    Cluster, CommandOverrider, FieldOperation, MapOverrider, OverrideOperator, OverridePolicy, Overriders,
};
use crate::place::affinity;

pub use image::Image;
pub(crate) use image::is_version;

/// One rule that was applied, as it is recorded on the Work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The policy.
    pub policy_name: String,
    /// What it did.
    pub overriders: Overriders,
}

/// What was applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AppliedOverrides {
    /// Of cluster-wide policies.
    pub cluster: Vec<Applied>,
    /// Of the namespace's.
    pub namespaced: Vec<Applied>,
}

impl AppliedOverrides {
    /// The annotations of the Work.
    #[must_use]
    pub fn annotations(&self) -> Vec<(&'static str, String)> {
        [(APPLIED_CLUSTER_OVERRIDES, &self.cluster), (APPLIED_OVERRIDES, &self.namespaced)]
            .into_iter()
            .filter(|(_, applied)| !applied.is_empty())
            .filter_map(|(key, applied)| Some((key, serde_json::to_string(applied).ok()?)))
            .collect()
    }
}

/// A policy cannot be applied to a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot apply {policy} to {kind} {name}: {field}: {why}")]
pub struct OverrideError {
    /// The policy, with its kind.
    pub policy: String,
    /// The manifest's kind.
    pub kind: String,
    /// The manifest's name.
    pub name: String,
    /// Which overrider, or which path.
    pub field: String,
    /// Why not.
    pub why: String,
}

/// How exactly a policy selects a manifest, if it does; without selectors it selects all.
#[must_use]
pub fn override_match(policy: &OverridePolicy, manifest: &Value) -> Option<Match> {
    let home = &policy.metadata.namespace;
    if !home.is_empty() && home != meta::namespace(manifest) {
        return None;
    }
    match policy.spec.resource_selectors.as_slice() {
        [] => Some(Match::All),
        selectors => best_match(selectors, home, manifest),
    }
}

/// Applies all policies that select a manifest to it, for one cluster.
///
/// # Errors
///
/// When one cannot be applied; then the manifest is as it was, and nothing of it should go out.
pub fn apply(
    manifest: &mut Value,
    cluster: &Cluster,
    policies: &[OverridePolicy],
) -> Result<AppliedOverrides, OverrideError> {
    let mut selected: Vec<(&OverridePolicy, Match)> =
        policies.iter().filter_map(|policy| Some((policy, override_match(policy, manifest)?))).collect();
    selected.sort_by_key(|(policy, matched)| (!policy.metadata.namespace.is_empty(), *matched, &policy.metadata.name));
    let mut changed = manifest.clone();
    let mut applied = AppliedOverrides::default();
    for (policy, _) in selected {
        let spec = &policy.spec;
        let old = (spec.override_rules.is_empty()).then_some((&spec.target_cluster, &spec.overriders));
        let rules = spec.override_rules.iter().map(|rule| (&rule.target_cluster, &rule.overriders));
        for (target, overriders) in rules.chain(old) {
            if *overriders == Overriders::default()
                || target.as_ref().is_some_and(|target| !affinity::matches(target, cluster))
            {
                continue;
            }
            let wide = policy.metadata.namespace.is_empty();
            change(&mut changed, overriders).map_err(|(field, why)| OverrideError {
                policy: match wide {
                    true => format!("ClusterOverridePolicy {}", policy.metadata.name),
                    false => format!("OverridePolicy {}/{}", policy.metadata.namespace, policy.metadata.name),
                },
                kind: meta::kind(manifest).to_owned(),
                name: meta::name(manifest).to_owned(),
                field,
                why,
            })?;
            let entry = Applied { policy_name: policy.metadata.name.clone(), overriders: overriders.clone() };
            if wide { applied.cluster.push(entry) } else { applied.namespaced.push(entry) }
        }
    }
    *manifest = changed;
    Ok(applied)
}

/// Where, and why not.
type Refusal = (String, String);

/// Makes the changes of one rule, in their order.
fn change(manifest: &mut Value, overriders: &Overriders) -> Result<(), Refusal> {
    for overrider in &overriders.image {
        image::change(manifest, overrider)?;
    }
    for overrider in &overriders.command {
        words(manifest, "command", overrider);
    }
    for overrider in &overriders.args {
        words(manifest, "args", overrider);
    }
    for overrider in &overriders.labels {
        keys(manifest, "labels", overrider);
    }
    for overrider in &overriders.annotations {
        keys(manifest, "annotations", overrider);
    }
    for overrider in &overriders.field {
        let path = &overrider.field_path;
        let text = manifest.pointer_mut(path).ok_or_else(|| (path.clone(), "there is no such field".to_owned()))?;
        let refused = |why: String| (path.clone(), why);
        let found = text.as_str().ok_or_else(|| refused("it is not a text".to_owned()))?;
        let written = if overrider.yaml.is_empty() {
            let value = serde_json::from_str(found).map_err(|error| refused(format!("it is not JSON: {error}")))?;
            patched(&value, &overrider.json).map_err(refused)?.to_string()
        } else {
            let value: Value =
                serde_saphyr::from_str(found).map_err(|error| refused(format!("it is not YAML: {error}")))?;
            let value = patched(&value, &overrider.yaml).map_err(refused)?;
            serde_saphyr::to_string(&value).map_err(|error| refused(error.to_string()))?
        };
        *text = written.into();
    }
    if !overriders.plaintext.is_empty() {
        let operations = overriders
            .plaintext
            .iter()
            .map(|overrider| operation(overrider.operator, &overrider.path, &overrider.value));
        *manifest = stolos_k8s::patch::json(manifest, &operations.collect())
            .map_err(|error| ("plaintext".to_owned(), told(error)))?;
    }
    Ok(())
}

fn patched(value: &Value, operations: &[FieldOperation]) -> Result<Value, String> {
    let patch = operations.iter().map(|change| operation(change.operator, &change.sub_path, &change.value)).collect();
    stolos_k8s::patch::json(value, &patch).map_err(told)
}

/// Why a patch does not fit, without the words of an API server's answer.
fn told(error: PatchError) -> String {
    match error {
        PatchError::Malformed(why) | PatchError::DoesNotFit(why) => why,
    }
}

/// One operation of a JSON patch (RFC 6902).
fn operation(operator: OverrideOperator, path: &str, value: &Value) -> Value {
    match operator {
        OverrideOperator::Add => json!({"op": "add", "path": path, "value": value}),
        OverrideOperator::Replace => json!({"op": "replace", "path": path, "value": value}),
        OverrideOperator::Remove => json!({"op": "remove", "path": path}),
    }
}

/// The containers of the kinds that images, commands and arguments are found in by themselves.
fn containers(manifest: &mut Value) -> Option<&mut Vec<Value>> {
    let pointer = match meta::kind(manifest) {
        "Pod" => "/spec/containers",
        "ReplicaSet" | "Deployment" | "DaemonSet" | "StatefulSet" | "Job" => "/spec/template/spec/containers",
        _ => return None,
    };
    manifest.pointer_mut(pointer)?.as_array_mut()
}

/// Adds words to a container's command or arguments, or takes out those that are equal.
fn words(manifest: &mut Value, field: &str, overrider: &CommandOverrider) {
    let named =
        |container: &&mut Value| container.get("name").and_then(Value::as_str) == Some(&overrider.container_name);
    for container in containers(manifest).into_iter().flatten().filter(named) {
        let Some(container) = container.as_object_mut() else { continue };
        let mut words = container.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
        match overrider.operator {
            OverrideOperator::Add => words.extend(overrider.value.iter().map(|word| Value::from(word.as_str()))),
            OverrideOperator::Remove => {
                words.retain(|word| !overrider.value.iter().any(|gone| *word == gone.as_str()));
            }
            OverrideOperator::Replace => continue,
        }
        if container.contains_key(field) || !words.is_empty() {
            container.insert(field.to_owned(), words.into());
        }
    }
}

/// Adds labels or annotations, or changes or takes out those that are there.
fn keys(manifest: &mut Value, field: &str, overrider: &MapOverrider) {
    let found = meta::metadata_mut(manifest).entry(field).or_insert_with(|| Value::Object(Map::new()));
    let Some(map) = found.as_object_mut() else { return };
    for (key, value) in &overrider.value {
        match overrider.operator {
            OverrideOperator::Remove => {
                map.remove(key);
            }
            OverrideOperator::Replace if !map.contains_key(key) => {}
            OverrideOperator::Add | OverrideOperator::Replace => {
                map.insert(key.clone(), value.as_str().into());
            }
        }
    }
    if map.is_empty() {
        meta::metadata_mut(manifest).remove(field);
    }
}

#[cfg(test)]
mod tests;
