//! Whether a CustomResourceDefinition can be served, and what it says when it says nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Schema, check_structural};
use crate::meta;
use crate::status::FieldError;

/// Fills in what Kubernetes does: singular and list kind, conversion, conditions of the names.
pub fn default_crd(crd: &mut Value) {
    let kind = text(crd, "/spec/names/kind").to_owned();
    let Some(spec) = crd.get_mut("spec").and_then(Value::as_object_mut) else { return };
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let empty = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or("").is_empty();
        if empty(names.get("singular")) {
            names.insert("singular".into(), kind.to_lowercase().into());
        }
        if empty(names.get("listKind")) && !kind.is_empty() {
            names.insert("listKind".into(), format!("{kind}List").into());
        }
    }
    if spec.get("conversion").is_none_or(Value::is_null) {
        spec.insert("conversion".into(), json!({"strategy": "None"}));
    }
}

/// Everything that is wrong with a CustomResourceDefinition.
pub fn validate_crd(crd: &Value) -> Vec<FieldError> {
    let mut problems = Vec::new();
    let group = text(crd, "/spec/group");
    let plural = text(crd, "/spec/names/plural");
    let wanted = format!("{plural}.{group}");
    if meta::name(crd) != wanted {
        let detail = "must be spec.names.plural+\".\"+spec.group";
        problems.push(FieldError::invalid("metadata.name", meta::name(crd), detail));
    }
    check_group(group, &mut problems);
    check_names(crd, &mut problems);
    match text(crd, "/spec/scope") {
        "Namespaced" | "Cluster" => {}
        "" => problems.push(FieldError::required("spec.scope", "")),
        other => {
            let supported = ["Cluster".into(), "Namespaced".into()];
            problems.push(FieldError::not_supported("spec.scope", other, &supported));
        }
    }
    check_versions(crd, &mut problems);
    match text(crd, "/spec/conversion/strategy") {
        "" | "None" => {}
        "Webhook" => {
            if crd.pointer("/spec/conversion/webhook/clientConfig").is_none() {
                problems.push(FieldError::required("spec.conversion.webhook.clientConfig", ""));
            }
        }
        other => {
            let supported = ["None".into(), "Webhook".into()];
            problems.push(FieldError::not_supported("spec.conversion.strategy", other, &supported));
        }
    }
    if crd.pointer("/spec/preserveUnknownFields").and_then(Value::as_bool) == Some(true) {
        let detail =
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        problems.push(FieldError::invalid("spec.preserveUnknownFields", true, detail));
    }
    problems
}

fn check_group(group: &str, problems: &mut Vec<FieldError>) {
    if group.is_empty() {
        problems.push(FieldError::required("spec.group", ""));
        return;
    }
    for problem in meta::check_subdomain(group) {
        problems.push(FieldError::invalid("spec.group", group, problem));
    }
    if !group.contains('.') {
        problems.push(FieldError::invalid("spec.group", group, "should be a domain with at least one dot"));
    }
}

fn check_names(crd: &Value, problems: &mut Vec<FieldError>) {
    for (field, required) in [("plural", true), ("singular", false), ("kind", true), ("listKind", false)] {
        let path = format!("spec.names.{field}");
        let name = text(crd, &format!("/spec/names/{field}"));
        if name.is_empty() {
            if required {
                problems.push(FieldError::required(path, ""));
            }
            continue;
        }
        for problem in meta::check_dns1035(&name.to_lowercase()) {
            problems.push(FieldError::invalid(path.clone(), name, problem));
        }
        if matches!(field, "plural" | "singular") && name != name.to_lowercase() {
            problems.push(FieldError::invalid(path, name, meta::DNS1035_MESSAGE));
        }
    }
    let kind = text(crd, "/spec/names/kind");
    if !kind.is_empty() && kind == text(crd, "/spec/names/listKind") {
        problems.push(FieldError::invalid("spec.names.listKind", kind, "kind and listKind may not be the same"));
    }
    for list in ["shortNames", "categories"] {
        let names = crd.pointer(&format!("/spec/names/{list}")).and_then(Value::as_array);
        for (index, name) in names.into_iter().flatten().enumerate() {
            for problem in meta::check_dns1035(name.as_str().unwrap_or("")) {
                problems.push(FieldError::invalid(format!("spec.names.{list}[{index}]"), name.clone(), problem));
            }
        }
    }
}

fn check_versions(crd: &Value, problems: &mut Vec<FieldError>) {
    let versions = crd.pointer("/spec/versions").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if versions.is_empty() {
        problems.push(FieldError::required("spec.versions", "must have at least one version"));
        return;
    }
    let mut seen = BTreeSet::new();
    let mut stored = 0;
    for (index, version) in versions.iter().enumerate() {
        let field = format!("spec.versions[{index}]");
        let name = text(version, "/name");
        for problem in meta::check_dns1035(name) {
            problems.push(FieldError::invalid(format!("{field}.name"), name, problem));
        }
        if !seen.insert(name) {
            problems.push(FieldError::duplicate(format!("{field}.name"), name));
        }
        for flag in ["served", "storage"] {
            if !version.get(flag).is_some_and(Value::is_boolean) {
                problems.push(FieldError::required(format!("{field}.{flag}"), ""));
            }
        }
        if version.get("storage").and_then(Value::as_bool) == Some(true) {
            stored += 1;
        }
        let field = format!("{field}.schema.openAPIV3Schema");
        match version.pointer("/schema/openAPIV3Schema") {
            None | Some(Value::Null) => problems.push(FieldError::required(field, "schemas are required")),
            Some(schema) => {
                problems.extend(check_structural(schema, &field));
                if let Err(error) = Schema::root(schema) {
                    let field = format!("{field}.{}", error.path)
                        .replace(".openAPIV3Schema.openAPIV3Schema", ".openAPIV3Schema");
                    problems.push(FieldError::invalid(field, "", error.problem));
                }
            }
        }
    }
    if stored != 1 {
        let versions = Value::Array(versions.iter().map(|version| text(version, "/name").into()).collect());
        let detail = "must have exactly one version marked as storage version";
        problems.push(FieldError::invalid("spec.versions", versions, detail));
    }
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn istios_definitions_are_valid() {
        for mut crd in crate::istio::crds() {
            assert_eq!(validate_crd(&crd), [], "{}", meta::name(&crd));
            let before = crd.clone();
            default_crd(&mut crd);
            assert_eq!(crd, before);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let crd = json!({"metadata": {"name": "x"}, "spec": {
            "group": "example", "scope": "Here", "names": {"plural": "Widgets", "kind": "Widget", "listKind": "Widget"},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "string", "pattern": "("}}}}},
                {"name": "v1", "served": true, "storage": true}]}});
        let problems: Vec<String> =
            validate_crd(&crd).iter().map(|problem| format!("{:.120}", problem.to_string())).collect();
        insta::assert_snapshot!(problems.join("\n"), @r#"
        metadata.name: Invalid value: "x": must be spec.names.plural+"."+spec.group
        spec.group: Invalid value: "example": should be a domain with at least one dot
        spec.names.plural: Invalid value: "Widgets": a DNS-1035 label must consist of lower case alphanumeric characters or '-',
        spec.names.listKind: Invalid value: "Widget": kind and listKind may not be the same
        spec.scope: Unsupported value: "Here": supported values: "Cluster", "Namespaced"
        spec.versions[0].schema.openAPIV3Schema.properties[spec]: Invalid value: "": pattern must be a valid regular expression:
        spec.versions[1].name: Duplicate value: "v1"
        spec.versions[1].schema.openAPIV3Schema: Required value: schemas are required
        spec.versions: Invalid value: ["v1","v1"]: must have exactly one version marked as storage version
        "#);
    }

    proptest! {
        #[test]
        fn any_definition_is_checked(crd in crate::path::tests::any_json(), spec in crate::path::tests::any_json()) {
            validate_crd(&crd);
            let mut crd = json!({"metadata": crd, "spec": spec});
            validate_crd(&crd);
            default_crd(&mut crd);
        }
    }
}
