//! Override policies: what is filled in, and what is refused.

use serde_json::Value;
use stolos_k8s::meta;

use super::{affinity_problems, fill_namespace, items, selector_problems};
use crate::model::{ImageOverrider, OverrideOperator, OverridePolicy, Overriders, Problem};

/// Fills in what an OverridePolicy leaves open.
pub fn default_override(policy: &mut Value) {
    let home = meta::namespace(policy).to_owned();
    let Some(spec) = policy.get_mut("spec") else { return };
    for selector in items(spec.get_mut("resourceSelectors")) {
        fill_namespace(selector, &home);
    }
}

/// What an OverridePolicy or ClusterOverridePolicy is refused for.
#[must_use]
pub fn override_problems(policy: &OverridePolicy) -> Vec<Problem> {
    let spec = &policy.spec;
    let mut found = Vec::new();
    for (at, selector) in spec.resource_selectors.iter().enumerate() {
        selector_problems(selector, &policy.metadata.namespace, &format!("spec.resourceSelectors[{at}]"), &mut found);
    }
    let old = spec.target_cluster.is_some() || spec.overriders != Overriders::default();
    if old && !spec.override_rules.is_empty() {
        found.push(Problem::new(
            "spec.overrideRules",
            "stands beside the old targetCluster and overriders",
            "move them into a rule of their own",
        ));
    }
    let rules = spec.override_rules.iter().enumerate();
    let rules =
        rules.map(|(at, rule)| (format!("spec.overrideRules[{at}]"), rule.target_cluster.as_ref(), &rule.overriders));
    let old = old.then(|| ("spec".to_owned(), spec.target_cluster.as_ref(), &spec.overriders));
    for (path, target, overriders) in rules.chain(old) {
        if let Some(affinity) = target {
            affinity_problems(affinity, &format!("{path}.targetCluster"), &mut found);
        }
        overrider_problems(overriders, &format!("{path}.overriders"), &mut found);
    }
    found
}

fn overrider_problems(overriders: &Overriders, path: &str, found: &mut Vec<Problem>) {
    let mut refuse = |path: String, what: &str, instead: &str| found.push(Problem::new(path, what, instead));
    let pointer = "write a JSON pointer, as /spec/replicas";
    for (at, ImageOverrider { predicate, operator, value, .. }) in overriders.image.iter().enumerate() {
        let path = format!("{path}.imageOverrider[{at}]");
        if value.is_empty() && *operator != OverrideOperator::Remove {
            refuse(format!("{path}.value"), "is empty", "write with what, or operator: remove");
        }
        if predicate.as_ref().is_some_and(|predicate| !predicate.path.starts_with('/')) {
            refuse(format!("{path}.predicate.path"), "does not begin with /", "write a JSON pointer to the image");
        }
    }
    for (name, list) in [("commandOverrider", &overriders.command), ("argsOverrider", &overriders.args)] {
        for (at, overrider) in list.iter().enumerate() {
            let path = format!("{path}.{name}[{at}]");
            if overrider.container_name.is_empty() {
                refuse(format!("{path}.containerName"), "is empty", "name the container");
            }
            if overrider.operator == OverrideOperator::Replace {
                refuse(format!("{path}.operator"), "is replace", "write add or remove");
            }
        }
    }
    for (at, overrider) in overriders.field.iter().enumerate() {
        let path = format!("{path}.fieldOverrider[{at}]");
        if !overrider.field_path.starts_with('/') {
            refuse(format!("{path}.fieldPath"), "does not begin with /", pointer);
        }
        if overrider.json.is_empty() == overrider.yaml.is_empty() {
            refuse(path.clone(), "has not one of json and yaml", "write what the text is: json or yaml");
        }
        for (kind, list) in [("json", &overrider.json), ("yaml", &overrider.yaml)] {
            for (at, operation) in list.iter().enumerate() {
                if !operation.sub_path.starts_with('/') {
                    refuse(format!("{path}.{kind}[{at}].subPath"), "does not begin with /", pointer);
                }
            }
        }
    }
    for (at, overrider) in overriders.plaintext.iter().enumerate() {
        if !overrider.path.starts_with('/') {
            refuse(format!("{path}.plaintext[{at}].path"), "does not begin with /", pointer);
        }
    }
}
