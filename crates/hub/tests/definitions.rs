//! The hub's kinds as they are served and as they are read are the same: what the one knows, the other does.

use serde_json::{Value, json};
use stolos_hub::model::{
    Binding, Cluster, ClusterTaintPolicy, Customization, OverridePolicy, Problem, PropagationPolicy, Work,
    WorkloadRebalancer, read,
};
use stolos_k8s::schema::Schema;

fn definitions() -> Vec<Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/crds");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()).collect()
}

fn schema(definition: &Value) -> &Value {
    definition.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap()
}

/// A value that has every field of a schema; `of` is the field it is for, after the one that holds it.
fn sample(schema: &Value, of: (&str, &str)) -> Value {
    let values = schema["enum"].as_array();
    // What is written where nothing is need not be written.
    let usual = |value: &Value| *value == schema["default"] || *value == "" || *value == "Abort";
    if let Some(value) = values.and_then(|values| values.iter().find(|value| !usual(value))) {
        return value.clone();
    }
    match schema["type"].as_str() {
        Some("object") => match (schema["properties"].as_object(), schema.get("additionalProperties")) {
            (Some(fields), _) => {
                fields.iter().map(|(field, schema)| (field.clone(), sample(schema, (of.1, field)))).collect()
            }
            (None, Some(values)) => json!({ "k": sample(values, of) }),
            (None, None) => json!({}),
        },
        Some("array") => json!([sample(&schema["items"], of)]),
        Some("integer" | "number") => json!(1),
        Some("boolean") => json!(true),
        _ if schema["format"] == "date-time" => json!("2026-01-02T03:04:05Z"),
        // Kubernetes' own types name their values in words only.
        _ => match of {
            ("matchExpressions", "operator") => json!("In"),
            ("clusterTolerations" | "tolerations", "operator") => json!("Exists"),
            (_, "effect") => json!("NoSchedule"),
            (_, "purgeMode") => json!("Never"),
            (_, "health") => json!("Healthy"),
            _ => json!("1"),
        },
    }
}

/// Reads an object of any of the hub's kinds, and writes it again.
fn read_back(object: &Value) -> (Value, Vec<Problem>) {
    fn of<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) -> (Value, Vec<Problem>) {
        let (read, unknown) = read::<T>(object).unwrap_or_else(|problem| panic!("{}: {problem}", object["kind"]));
        (serde_json::to_value(read).unwrap(), unknown)
    }
    match object["kind"].as_str().unwrap() {
        "PropagationPolicy" | "ClusterPropagationPolicy" => of::<PropagationPolicy>(object),
        "OverridePolicy" | "ClusterOverridePolicy" => of::<OverridePolicy>(object),
        "ResourceBinding" | "ClusterResourceBinding" => of::<Binding>(object),
        "Work" => of::<Work>(object),
        "Cluster" => of::<Cluster>(object),
        "WorkloadRebalancer" => of::<WorkloadRebalancer>(object),
        "ClusterTaintPolicy" => of::<ClusterTaintPolicy>(object),
        "ResourceInterpreterCustomization" => of::<Customization>(object),
        other => panic!("{other}: the test does not know this kind"),
    }
}

#[test]
fn every_field_that_is_served_is_read() {
    let definitions = definitions();
    assert_eq!(definitions.len(), 11);
    for definition in &definitions {
        let kind = &definition["spec"]["names"]["kind"];
        let mut object = sample(schema(definition), ("", ""));
        object["kind"] = kind.clone();
        object["metadata"] = json!({"name": "x"});
        let (again, unknown) = read_back(&object);
        assert_eq!(unknown, [], "{kind}");
        assert_eq!(again, object, "{kind}");
    }
}

#[test]
fn policies_that_people_write_pass_the_served_schema_whole() {
    let definitions = definitions();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies");
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().path();
        let policy: Value = serde_saphyr::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let definition = definitions.iter().find(|it| it["spec"]["names"]["kind"] == policy["kind"]).unwrap();
        let schema = Schema::root(schema(definition)).unwrap();
        let mut pruned = policy.clone();
        assert_eq!((schema.prune(&mut pruned), &pruned), (vec![], &policy), "{}", file.display());
        schema.fill_defaults(&mut pruned);
        assert!(schema.validate(&pruned).is_empty(), "{}: {:?}", file.display(), schema.validate(&pruned));
    }
}
