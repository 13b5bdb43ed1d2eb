//! The published schemas of custom resources.

use serde_json::{Value, json};
use stolos_k8s::schema::builtin;

use super::{Style, schema_name};
use crate::registry::Resource;

const CONVENTIONS: &str = "https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md";

/// The schemas of an object and of its list, as OpenAPI v3 has them. Without a definition nothing is known but that
/// they are objects.
pub(super) fn schemas(resource: &Resource, crd: Option<&Value>) -> Vec<(String, Value)> {
    let versions = crd.and_then(|crd| crd["spec"]["versions"].as_array());
    let version = versions.and_then(|all| all.iter().find(|one| one["name"] == resource.version.as_str()));
    let mut schema = version.map_or(Value::Null, |version| version["schema"]["openAPIV3Schema"].clone());
    if !schema.is_object() {
        schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
    let gvk = |kind: &str| json!([{"group": resource.group, "version": resource.version, "kind": kind}]);
    let name = schema_name(&resource.group, &resource.version, &resource.kind);
    let meta = "Standard object's metadata. More info: ";
    let of = |name: &str, words: &str| json!({"allOf": [Style::V3.reference(name)], "description": words});
    let metadata = of(builtin::OBJECT_META, &format!("{meta}{CONVENTIONS}#metadata"));
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    let fields = &mut schema["properties"];
    fields["apiVersion"] = text("The version of the schema of this object. More info: ", "#resources");
    fields["kind"] = text("The kind of this object. More info: ", "#types-kinds");
    fields["metadata"] = metadata;
    schema["x-kubernetes-group-version-kind"] = gvk(&resource.kind);
    let list_meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
    let list = json!({
        "description": format!("{} is a list of {}", resource.list_kind, resource.kind),
        "type": "object", "required": ["items"],
        "properties": {
            "apiVersion": text("The version of the schema of this list. More info: ", "#resources"),
            "kind": text("The kind of this list. More info: ", "#types-kinds"),
            "metadata": of(list_meta, &format!("Standard list metadata. More info: {CONVENTIONS}#types-kinds")),
            "items": {"type": "array", "items": of(&name, ""),
                "description": format!("List of {}. More info: {CONVENTIONS}", resource.plural)},
        },
        "x-kubernetes-group-version-kind": gvk(&resource.list_kind),
    });
    vec![(name, schema), (schema_name(&resource.group, &resource.version, &resource.list_kind), list)]
}

fn text(words: &str, anchor: &str) -> Value {
    json!({"type": "string", "description": format!("{words}{CONVENTIONS}{anchor}")})
}
