//! Whether a schema is structural: every field has a type of its own, and conditions only narrow it.

use serde_json::Value;

use crate::status::FieldError;

/// What keeps a schema from being structural. `field` is where it stands in its object.
pub fn check_structural(schema: &Value, field: &str) -> Vec<FieldError> {
    let mut problems = Vec::new();
    match schema.get("type").and_then(Value::as_str) {
        Some("object") => {}
        None | Some("") => problems.push(FieldError::required(at(field, "type"), "must not be empty at the root")),
        Some(other) => problems.push(FieldError::invalid(at(field, "type"), other, "must be object at the root")),
    }
    check(schema, field, Place::Root, &mut problems);
    problems
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Root,
    Field,
    Item,
}

/// Keywords of OpenAPI that a structural schema must not have.
const FORBIDDEN: &[&str] = &[
    "$ref",
    "definitions",
    "dependencies",
    "deprecated",
    "discriminator",
    "id",
    "patternProperties",
    "readOnly",
    "writeOnly",
    "xml",
    "additionalItems",
];
/// Keywords that conditions must not have, since they describe rather than narrow.
const NOT_IN_CONDITIONS: &[&str] = &[
    "description",
    "type",
    "default",
    "additionalProperties",
    "nullable",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
];

fn check(schema: &Value, field: &str, place: Place, problems: &mut Vec<FieldError>) {
    let flag = |key: &str| schema.get(key).and_then(Value::as_bool).unwrap_or(false);
    let kind = schema.get("type").and_then(Value::as_str).unwrap_or("");
    let int_or_string = flag("x-kubernetes-int-or-string");
    let preserve = flag("x-kubernetes-preserve-unknown-fields");

    check_forbidden(schema, field, problems);
    if kind.is_empty() && place != Place::Root && !int_or_string && !preserve {
        let what = if place == Place::Item {
            "must not be empty for specified array items"
        } else {
            "must not be empty for specified object fields"
        };
        problems.push(FieldError::required(at(field, "type"), what));
    }
    if int_or_string && !kind.is_empty() {
        problems.push(FieldError::forbidden(at(field, "type"), "must be empty if x-kubernetes-int-or-string is true"));
    }
    if flag("x-kubernetes-embedded-resource") && kind != "object" {
        problems.push(FieldError::invalid(
            at(field, "type"),
            kind,
            "must be object if x-kubernetes-embedded-resource is true",
        ));
    }
    check_list(schema, field, kind, problems);
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = schema.get("additionalProperties").filter(|additional| !additional.is_null());
    match additional {
        Some(_) if properties.is_some_and(|properties| !properties.is_empty()) => {
            problems.push(FieldError::forbidden(
                at(field, "additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            ));
        }
        Some(Value::Bool(false)) => {
            problems.push(FieldError::forbidden(
                at(field, "additionalProperties"),
                "additionalProperties cannot be set to false",
            ));
        }
        Some(_) if place == Place::Root => {
            problems.push(FieldError::forbidden(at(field, "additionalProperties"), "must not be used at the root"));
        }
        Some(below @ Value::Object(_)) => check(below, &at(field, "additionalProperties"), Place::Field, problems),
        _ => {}
    }
    for (name, below) in properties.into_iter().flatten() {
        let path = at(field, &format!("properties[{name}]"));
        match (place, name.as_str()) {
            (Place::Root, "metadata") => check_metadata(below, &path, problems),
            (Place::Root, "apiVersion" | "kind") => {}
            _ => check(below, &path, Place::Field, problems),
        }
    }
    if let Some(items) = schema.get("items").filter(|items| !items.is_null()) {
        match items {
            Value::Array(_) => problems
                .push(FieldError::forbidden(at(field, "items"), "items must be a schema object and not an array")),
            items => check(items, &at(field, "items"), Place::Item, problems),
        }
    } else if kind == "array" {
        problems.push(FieldError::required(at(field, "items"), "must be specified"));
    }
    check_conditions(schema, field, int_or_string, problems);
}

fn check_forbidden(schema: &Value, field: &str, problems: &mut Vec<FieldError>) {
    for key in FORBIDDEN {
        if schema.get(key).is_some_and(|value| !value.is_null()) {
            problems.push(FieldError::forbidden(at(field, key), format!("{key} is not supported")));
        }
    }
    if schema.get("uniqueItems").and_then(Value::as_bool) == Some(true) {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        problems.push(FieldError::forbidden(at(field, "uniqueItems"), detail));
    }
}

fn check_list(schema: &Value, field: &str, kind: &str, problems: &mut Vec<FieldError>) {
    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array);
    let Some(list_type) = schema.get("x-kubernetes-list-type").and_then(Value::as_str) else {
        if keys.is_some() {
            let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
            problems.push(FieldError::required(at(field, "x-kubernetes-list-type"), detail));
        }
        return;
    };
    if kind != "array" {
        problems.push(FieldError::invalid(
            at(field, "type"),
            kind,
            "must be array if x-kubernetes-list-type is specified",
        ));
    }
    match list_type {
        "atomic" | "set" => {}
        "map" => {
            let keys = keys.filter(|keys| !keys.is_empty());
            if keys.is_none() {
                problems.push(FieldError::required(
                    at(field, "x-kubernetes-list-map-keys"),
                    "must not be empty if x-kubernetes-list-type is map",
                ));
            }
            for (index, key) in keys.into_iter().flatten().enumerate() {
                let known = key.as_str().and_then(|key| schema.get("items")?.get("properties")?.get(key));
                if known.is_none() {
                    let place = at(field, &format!("x-kubernetes-list-map-keys[{index}]"));
                    problems.push(FieldError::invalid(place, key.clone(), "must be the name of an item property"));
                }
            }
        }
        other => {
            let supported = ["atomic".into(), "map".into(), "set".into()];
            problems.push(FieldError::not_supported(at(field, "x-kubernetes-list-type"), other, &supported));
        }
    }
}

fn check_metadata(schema: &Value, field: &str, problems: &mut Vec<FieldError>) {
    if schema.get("type").and_then(Value::as_str) != Some("object") {
        let found = schema.get("type").cloned().unwrap_or(Value::from(""));
        problems.push(FieldError::invalid(at(field, "type"), found, "must be object"));
    }
    for name in schema.get("properties").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name) {
        if name != "name" && name != "generateName" {
            problems.push(FieldError::forbidden(
                at(field, &format!("properties[{name}]")),
                "must not specify anything other than name and generateName, but metadata is implicitly specified",
            ));
        }
    }
}

fn check_conditions(schema: &Value, field: &str, int_or_string: bool, problems: &mut Vec<FieldError>) {
    for key in ["allOf", "anyOf", "oneOf"] {
        for (index, below) in schema.get(key).and_then(Value::as_array).into_iter().flatten().enumerate() {
            // `anyOf: [{type: integer}, {type: string}]` is how an integer or string is written.
            let types = int_or_string && below.as_object().is_some_and(|below| below.keys().all(|key| key == "type"));
            let nested = int_or_string && key == "allOf" && index == 0;
            if !types && !nested {
                check_condition(below, &at(field, &format!("{key}[{index}]")), problems);
            }
        }
    }
    if let Some(not) = schema.get("not").filter(|not| !not.is_null()) {
        check_condition(not, &at(field, "not"), problems);
    }
}

fn check_condition(schema: &Value, field: &str, problems: &mut Vec<FieldError>) {
    check_forbidden(schema, field, problems);
    for key in NOT_IN_CONDITIONS {
        let set = !matches!(schema.get(key), None | Some(Value::Null | Value::Bool(false)));
        if set {
            let detail = "must be empty to be structural";
            problems.push(FieldError::forbidden(at(field, key), detail));
        }
    }
    for (name, below) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        check_condition(below, &at(field, &format!("properties[{name}]")), problems);
    }
    if let Some(items) = schema.get("items").filter(|items| !items.is_null()) {
        check_condition(items, &at(field, "items"), problems);
    }
    check_conditions(schema, field, false, problems);
}

fn at(field: &str, step: &str) -> String {
    if field.is_empty() { step.to_owned() } else { format!("{field}.{step}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schemas_that_are_not_structural_say_why() {
        let schema = json!({"type": "object", "properties": {
        "metadata": {"type": "object", "properties": {"name": {"type": "string"}, "labels": {"type": "object"}}},
        "spec": {"properties": {
            "a": {"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": {"type": "string"}},
            "b": {"type": "array"},
            "c": {"type": "array", "items": {}},
            "d": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "e": {"type": "object", "oneOf": [{"type": "object", "required": ["x"]}]},
            "f": {"$ref": "#/x", "type": "string"},
            "g": {"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}},
        }}}});
        let problems: Vec<String> = check_structural(&schema, "schema").iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(problems.join("\n"), @r#"
        schema.properties[metadata].properties[labels]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified
        schema.properties[spec].type: Required value: must not be empty for specified object fields
        schema.properties[spec].properties[a].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive
        schema.properties[spec].properties[b].items: Required value: must be specified
        schema.properties[spec].properties[c].items.type: Required value: must not be empty for specified array items
        schema.properties[spec].properties[e].oneOf[0].type: Forbidden: must be empty to be structural
        schema.properties[spec].properties[f].$ref: Forbidden: $ref is not supported
        schema.properties[spec].properties[g].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map
        "#);
        assert_eq!(check_structural(&json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}), ""), []);
    }
}
