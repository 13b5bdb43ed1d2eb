//! OpenAPI v2, made of the same schemas as v3.

use std::fmt::Write as _;

use serde_json::{Value, json};
use stolos_k8s::schema::builtin;

use super::{Style, described_here, named, paths, versions};
use crate::api::Api;
use crate::discovery::VERSION;
use crate::registry::Table;

/// A form of the document. Paths come before definitions.
pub(super) trait Write {
    /// Takes a path with its operations.
    fn path(&mut self, path: &str, item: &Value);
    /// Takes a schema.
    fn definition(&mut self, name: &str, schema: &Value);
    /// The whole document.
    fn finish(self, title: &str, version: &str) -> Vec<u8>;
}

/// The document of everything that is served.
pub(super) fn document(api: &Api, table: &Table, mut into: impl Write) -> Vec<u8> {
    let mut all = Vec::new();
    for (group, version) in versions(table) {
        all.extend(table.of_version(group, version));
    }
    for resource in &all {
        for (path, item) in paths::of(resource, Style::V2) {
            into.path(&path, &item);
        }
    }
    let named = named(&all);
    for (name, text) in builtin::definitions().filter(|(name, _)| named.contains(name.as_str())) {
        let mut schema = serde_json::from_str(&text).unwrap_or_default();
        convert(&mut schema, true);
        into.definition(&name, &schema);
    }
    for resource in &all {
        for (name, mut schema) in described_here(api, resource, &resource.group, &resource.version) {
            convert(&mut schema, true);
            into.definition(&name, &schema);
        }
    }
    into.finish("Kubernetes", VERSION)
}

/// Makes of a schema of v3 one of v2. What v2 cannot say is left out, as Kubernetes does: clients that read v2 then check
/// less, and never refuse what the server takes.
fn convert(schema: &mut Value, is_root: bool) {
    let Some(map) = schema.as_object_mut() else { return };
    map.remove("default");
    if let Some(Value::Array(all)) = map.remove("allOf")
        && let [Value::Object(one)] = all.as_slice()
        && let Some(reference) = one.get("$ref")
    {
        map.insert("$ref".into(), reference.clone());
    }
    if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
        let reference = reference.replace("#/components/schemas/", "#/definitions/");
        map.insert("$ref".into(), json!(reference));
        return;
    }
    for union in ["anyOf", "not"] {
        map.remove(union);
    }
    if map.remove("oneOf").is_some() && !map.contains_key("type") && !map.contains_key("x-kubernetes-int-or-string") {
        // An integer or a text, an amount.
        map.insert("type".into(), json!("string"));
    }
    let is = |map: &serde_json::Map<String, Value>, mark: &str| map.get(mark) == Some(&Value::Bool(true));
    if is(map, "x-kubernetes-int-or-string") {
        map.remove("type");
    }
    let open = is(map, "x-kubernetes-preserve-unknown-fields") && !is_root;
    if map.remove("nullable") == Some(Value::Bool(true)) || open {
        for field in ["type", "items", "properties", "additionalProperties", "required", "enum"] {
            map.remove(field);
        }
    }
    for (field, value) in map {
        match field.as_str() {
            "properties" => {
                value.as_object_mut().into_iter().flatten().for_each(|(_, below)| convert(below, false));
            }
            "items" | "additionalProperties" => convert(value, false),
            _ => {}
        }
    }
}

/// The document in JSON.
#[derive(Default)]
pub(super) struct Json {
    paths: String,
    definitions: String,
}

impl Write for Json {
    fn path(&mut self, path: &str, item: &Value) {
        member(&mut self.paths, path, item);
    }

    fn definition(&mut self, name: &str, schema: &Value) {
        member(&mut self.definitions, name, schema);
    }

    fn finish(self, title: &str, version: &str) -> Vec<u8> {
        let info = json!({"title": title, "version": version});
        let mut out = format!("{{\"swagger\":\"2.0\",\"info\":{info},\"paths\":{{").into_bytes();
        out.extend(self.paths.into_bytes());
        out.extend(b"},\"definitions\":{");
        out.extend(self.definitions.into_bytes());
        out.extend(b"}}");
        out
    }
}

fn member(out: &mut String, name: &str, value: &Value) {
    let comma = if out.is_empty() { "" } else { "," };
    let _ = write!(out, "{comma}{}:{value}", Value::from(name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_v2_cannot_say_is_left_out() {
        let reference = "#/components/schemas/io.k8s.X";
        let mut schema = json!({"type": "object", "properties": {
            "a": {"allOf": [{"$ref": reference}], "default": {}, "description": "d"},
            "b": {"type": "array", "nullable": true, "items": {"type": "string"}, "description": "d"},
            "c": {"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"},
            "d": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "e": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"f": {"type": "string"}}},
            "default": {"type": "string", "default": "x"},
        }});
        convert(&mut schema, true);
        assert_eq!(
            schema["properties"],
            json!({
                "a": {"$ref": "#/definitions/io.k8s.X", "description": "d"},
                "b": {"description": "d"},
                "c": {"type": "string", "format": "int-or-string"},
                "d": {"x-kubernetes-int-or-string": true},
                "default": {"type": "string"},
                "e": {"x-kubernetes-preserve-unknown-fields": true},
            })
        );
    }
}
