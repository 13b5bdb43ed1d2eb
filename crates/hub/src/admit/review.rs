//! What an API server is answered that asks whether something may be written (`admission.k8s.io/v1`): the part of
//! Karmada's webhooks that no schema can do.

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::{default, override_problems, override_warnings, problems, taint_problems, taint_warnings, warnings};
use crate::divide::Algorithm;
use crate::interpret::{self, Interpreters, Operation, check};
use crate::label;
use crate::model::{
    ClusterTaintPolicy, Customization, CustomizationTarget, OverridePolicy, Problem, PropagationPolicy, read,
};

/// What is said of a write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why it may not be; nothing when it may.
    pub refused: Option<String>,
    /// What the writer should know.
    pub warnings: Vec<String>,
}

impl Verdict {
    fn refused(why: impl Into<String>) -> Self {
        Self { refused: Some(why.into()), warnings: Vec::new() }
    }
}

/// What the hub has that something written may contradict.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Others {
    /// What it is told of kinds.
    pub customizations: Vec<Customization>,
    /// What taints its members.
    pub taint_policies: Vec<ClusterTaintPolicy>,
    /// Whose algorithms it decides with.
    pub algorithm: Algorithm,
}

/// Answers an AdmissionReview; `others` is what the hub has.
#[must_use]
pub fn review(review: &Value, others: &Others) -> Value {
    let request = &review["request"];
    let Verdict { refused, warnings } = judge(request, others);
    let mut response = json!({"uid": request["uid"], "allowed": refused.is_none()});
    if let Some(why) = refused {
        response["status"] = json!({"code": 403, "message": why, "reason": "Forbidden"});
    }
    if !warnings.is_empty() {
        response["warnings"] = warnings.into();
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

/// Judges a request of an AdmissionReview.
#[must_use]
pub fn judge(request: &Value, others: &Others) -> Verdict {
    if request["operation"] == "DELETE" {
        return match meta::label(&request["oldObject"], label::DELETION_PROTECTED) {
            Some("Always") => Verdict::refused(format!(
                "This resource is protected, please make sure to remove the label: {}",
                label::DELETION_PROTECTED
            )),
            _ => Verdict::default(),
        };
    }
    let object = &request["object"];
    // What was written before there was anybody to ask must still be able to lose its finalizer.
    if meta::deletion_timestamp(object).is_some() || request["oldObject"]["spec"] == object["spec"] {
        return Verdict::default();
    }
    match meta::kind(object) {
        "PropagationPolicy" | "ClusterPropagationPolicy" => {
            let mut complete = object.clone();
            default(&mut complete, "new");
            of::<PropagationPolicy>(&complete, problems, |policy| warnings(policy, others.algorithm))
        }
        "OverridePolicy" | "ClusterOverridePolicy" => {
            let mut complete = object.clone();
            super::default_override(&mut complete);
            of::<OverridePolicy>(&complete, override_problems, override_warnings)
        }
        "ClusterTaintPolicy" => {
            of::<ClusterTaintPolicy>(object, |policy| taint_problems(policy, &others.taint_policies), taint_warnings)
        }
        "ResourceInterpreterCustomization" => match read::<Customization>(object) {
            Err(problem) => Verdict::refused(problem.to_string()),
            Ok((customization, _)) => match customization_problem(&customization, &others.customizations) {
                Some(problem) => Verdict::refused(problem),
                None => Verdict { refused: None, warnings: customization_warnings(&customization) },
            },
        },
        _ => Verdict::default(),
    }
}

fn of<T: serde::de::DeserializeOwned>(
    object: &Value,
    problems: impl Fn(&T) -> Vec<Problem>,
    warnings: impl Fn(&T) -> Vec<Problem>,
) -> Verdict {
    let (read, unknown) = match read::<T>(object) {
        Ok(read) => read,
        Err(problem) => return Verdict::refused(problem.to_string()),
    };
    let refused: Vec<String> = problems(&read).iter().map(ToString::to_string).collect();
    if !refused.is_empty() {
        return Verdict::refused(refused.join("\n"));
    }
    let warned = unknown.iter().chain(&warnings(&read)).map(ToString::to_string).collect();
    Verdict { refused: None, warnings: warned }
}

/// What a customization is refused for (Karmada v1.18.2): a question that another one answers already, or a script that
/// cannot be read.
#[must_use]
pub fn customization_problem(customization: &Customization, others: &[Customization]) -> Option<String> {
    let scripts = |of: &Customization, operation: Operation| operation.script(&of.spec.customizations).is_some();
    for other in others {
        let same = other.metadata.name != customization.metadata.name && other.spec.target == customization.spec.target;
        // Dependencies may come from several.
        let conflict = Operation::ALL.into_iter().find(|operation| {
            *operation != Operation::InterpretDependency
                && scripts(other, *operation)
                && scripts(customization, *operation)
        });
        if let Some(operation) = conflict.filter(|_| same) {
            return Some(format!(
                "conflicting with InterpreterOperation({}) of existing ResourceInterpreterCustomization({})",
                operation.name(),
                other.metadata.name
            ));
        }
    }
    Operation::ALL.into_iter().find_map(|operation| {
        let error = check(operation.script(&customization.spec.customizations)?).err()?;
        Some(format!("InterpreterOperation({}) Lua script error: {error}", operation.name()))
    })
}

/// What of a customization does less than it seems to.
fn customization_warnings(customization: &Customization) -> Vec<String> {
    let CustomizationTarget { api_version, kind } = &customization.spec.target;
    let has = |operation: Operation| operation.script(&customization.spec.customizations).is_some();
    let mut warned = Vec::new();
    if Operation::ALL.into_iter().all(|operation| !has(operation)) {
        warned.push(format!("spec.customizations: has no script, and so says nothing of {api_version} {kind}"));
    }
    for operation in Operation::ALL.into_iter().filter(|operation| has(*operation)) {
        let script = operation.script(&customization.spec.customizations).unwrap_or_default();
        if !script.contains(operation.function()) {
            let (field, function) = (operation.field(), operation.function());
            warned.push(format!("spec.customizations.{field}.luaScript: has no function {function}; write one"));
        }
    }
    if has(Operation::InterpretReplica) && has(Operation::InterpretComponent) {
        let text = "is not looked at beside componentResource; take one of the two out";
        warned.push(format!("spec.customizations.replicaResource: {text}"));
    }
    let sample = json!({"apiVersion": api_version, "kind": kind});
    let revised = has(Operation::ReviseReplica)
        || interpret::replicas(&sample).is_some()
        || Interpreters::well_known().has(&sample, Operation::ReviseReplica);
    if has(Operation::InterpretReplica) && !has(Operation::InterpretComponent) && !revised {
        let text = "is there without replicaRevision: every member gets the template's own number; write one";
        warned.push(format!("spec.customizations.replicaResource: {text}"));
    }
    warned
}

#[cfg(test)]
mod tests;
