//! Override policies: what is filled in, and what is refused.

use serde_json::Value;
use stolos_k8s::meta;

use super::{affinity_problems, fill_namespace, items, selector_problems, selector_warnings};
use crate::model::{
    ClusterAffinity, ImageComponent, ImageOverrider, OverrideOperator, OverridePolicy, OverrideSpec, Overriders,
    Problem,
};
use crate::overrides::is_version;

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
    if is_old(spec) && !spec.override_rules.is_empty() {
        found.push(Problem::new(
            "spec.overrideRules",
            "stands beside the old targetCluster and overriders",
            "move them into a rule of their own",
        ));
    }
    for (path, target, overriders) in rules(spec) {
        if let Some(affinity) = target {
            affinity_problems(affinity, &format!("{path}.targetCluster"), &mut found);
        }
        overrider_problems(overriders, &format!("{path}.overriders"), &mut found);
    }
    found
}

/// Whether it is written as before there were rules.
fn is_old(spec: &OverrideSpec) -> bool {
    spec.target_cluster.is_some() || spec.overriders != Overriders::default()
}

/// Where each rule is, also the one of the old form; which clusters it means, and what it does.
fn rules(spec: &OverrideSpec) -> impl Iterator<Item = (String, Option<&ClusterAffinity>, &Overriders)> {
    let rules = spec.override_rules.iter().enumerate();
    let rules =
        rules.map(|(at, rule)| (format!("spec.overrideRules[{at}]"), rule.target_cluster.as_ref(), &rule.overriders));
    rules.chain(is_old(spec).then(|| ("spec".to_owned(), spec.target_cluster.as_ref(), &spec.overriders)))
}

/// What of an accepted override policy does nothing, or not what it seems to.
#[must_use]
pub fn override_warnings(policy: &OverridePolicy) -> Vec<Problem> {
    let spec = &policy.spec;
    let mut found = selector_warnings(&spec.resource_selectors);
    if spec.override_rules.is_empty() && !is_old(spec) {
        found.push(Problem::new(
            "spec.overrideRules",
            "is empty: nothing is changed",
            "say for which clusters, and what",
        ));
    }
    for (path, _, overriders) in rules(spec) {
        let path = format!("{path}.overriders");
        if *overriders == Overriders::default() {
            found.push(Problem::new(&path, "is empty: nothing is changed", "write one, as plaintext"));
        }
        overrider_warnings(overriders, &path, &mut found);
    }
    found
}

fn overrider_warnings(overriders: &Overriders, path: &str, found: &mut Vec<Problem>) {
    let mut warn = |path: String, what: &str, instead: &str| found.push(Problem::new(path, what, instead));
    let (beside, both) = ("is not looked at with operator: remove", "take one of the two out");
    for (at, ImageOverrider { component, operator, value, .. }) in overriders.image.iter().enumerate() {
        let path = format!("{path}.imageOverrider[{at}].value");
        if *operator == OverrideOperator::Remove && !value.is_empty() {
            warn(path, beside, both);
        } else if (*component, *operator) == (ImageComponent::Tag, OverrideOperator::Replace) && !is_version(value) {
            warn(path, "is neither a tag nor a digest: the image stays as it is", "write one, as v2");
        }
    }
    for (name, list) in [("commandOverrider", &overriders.command), ("argsOverrider", &overriders.args)] {
        for (at, _) in list.iter().enumerate().filter(|(_, overrider)| overrider.value.is_empty()) {
            warn(format!("{path}.{name}[{at}].value"), "is empty: nothing is changed", "write which words");
        }
    }
    for (name, list) in [("labelsOverrider", &overriders.labels), ("annotationsOverrider", &overriders.annotations)] {
        for (at, _) in list.iter().enumerate().filter(|(_, overrider)| overrider.value.is_empty()) {
            warn(format!("{path}.{name}[{at}].value"), "is empty: nothing is changed", "write which keys");
        }
    }
    for (at, overrider) in overriders.field.iter().enumerate() {
        for (kind, list) in [("json", &overrider.json), ("yaml", &overrider.yaml)] {
            let beside_value = |operator, value: &Value| operator == OverrideOperator::Remove && !value.is_null();
            for (inner, _) in list.iter().enumerate().filter(|(_, it)| beside_value(it.operator, &it.value)) {
                warn(format!("{path}.fieldOverrider[{at}].{kind}[{inner}].value"), beside, both);
            }
        }
    }
    for (at, overrider) in overriders.plaintext.iter().enumerate() {
        if overrider.operator == OverrideOperator::Remove && !overrider.value.is_null() {
            warn(format!("{path}.plaintext[{at}].value"), beside, both);
        }
    }
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
