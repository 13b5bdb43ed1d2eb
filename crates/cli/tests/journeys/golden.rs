//! What `apply` wrote, field by field, in files that people can hold against Istio's documents: for every topology one
//! file per cluster, in `tests/golden/<topology>/<cluster>.snap`.
//!
//! An object is shown with the fields whose manager is Stolos or Helm, so without what the API server, its controllers
//! and the control plane add, and without the addresses and node ports that are allocated. What is another each time stands
//! there by its kind: `(certificate)`, `(token)`, `(time)`, `(uid)`, `(version)`, `127.N.…`; YAML inside of YAML is laid
//! open. Left out are the samples (Istio's own), Helm's memory of its releases, and what Istio's definitions say beyond
//! their names.
//!
//! `INSTA_UPDATE=always cargo test -p stolos-cli --test journeys` writes the files anew.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use regex::Regex;
use serde_json::{Map, Value};
use stolos_cluster::Cluster;
use stolos_k8s::istio;

use crate::lists::everything;
use crate::world::{World, text};

/// The field managers whose writing is `apply`'s.
const MANAGERS: [&str; 2] = ["stolos", "helm"];

/// Compares all that `apply` wrote into the clusters of a topology with its files.
pub(crate) async fn compare(topology: &str, clusters: &[Cluster]) {
    let folder = format!("{}/tests/golden/{topology}", env!("CARGO_MANIFEST_DIR"));
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for cluster in clusters {
        let written = written(cluster).await;
        settings.bind(|| insta::assert_snapshot!(cluster.name.as_str(), written));
    }
}

/// Everything that `apply` wrote into a cluster, as YAML documents in the order of kinds and names.
async fn written(cluster: &Cluster) -> String {
    let masks = Masks::new();
    let (mut documents, mut definitions) = (Vec::new(), String::new());
    for (key, object) in everything(&cluster.client).await.unwrap() {
        let elsewhere = object["metadata"]["namespace"].as_str().is_some_and(|of| of != istio::SYSTEM_NAMESPACE);
        if elsewhere || key == "Namespace. -/sample" || key.contains("/sh.helm.release.") {
            continue;
        }
        let managers = object["metadata"]["managedFields"].as_array().into_iter().flatten();
        let ours = managers.filter(|one| MANAGERS.iter().any(|name| one["manager"] == *name));
        let fields = ours.fold(Value::Null, |all, one| merged(all, &one["fieldsV1"]));
        if fields.is_null() {
            continue;
        }
        if object["kind"] == "CustomResourceDefinition" {
            definitions += &format!("# CustomResourceDefinition {}\n", object["metadata"]["name"].as_str().unwrap());
            continue;
        }
        let mut shown = owned(&object, &fields);
        for part in ["apiVersion", "kind"] {
            shown[part] = object[part].clone();
        }
        for part in ["name", "namespace"] {
            if let Some(value) = object["metadata"].get(part) {
                shown["metadata"][part] = value.clone();
            }
        }
        if object["kind"] == "Secret" {
            for value in shown.get_mut("data").and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
                let bytes = BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap();
                *value = String::from_utf8(bytes).unwrap().into();
            }
        }
        documents.push(serde_saphyr::to_string(&masks.apply(shown)).unwrap());
    }
    format!("{definitions}---\n{}", documents.join("---\n"))
}

/// The fields of two managers (`fieldsV1`, KEP-555) as one tree.
fn merged(all: Value, more: &Value) -> Value {
    let (Value::Object(mut all), Value::Object(more)) = (all, more) else { return more.clone() };
    for (key, value) in more {
        let known = all.remove(key).unwrap_or_default();
        all.insert(key.clone(), merged(known, value));
    }
    Value::Object(all)
}

/// The part of `value` that these fields name.
fn owned(value: &Value, fields: &Value) -> Value {
    let children: Vec<(&str, &Value)> = fields
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != ".")
        .map(|(key, child)| (key.as_str(), child))
        .collect();
    match value {
        // A whole value, whatever it is made of.
        _ if children.is_empty() => value.clone(),
        Value::Array(items) => {
            let part = |item: &Value| {
                children.iter().find_map(|(key, child)| match key.split_once(':')? {
                    ("k", keys) => {
                        let keys: Map<String, Value> = serde_json::from_str(keys).ok()?;
                        keys.iter().all(|(key, value)| item.get(key) == Some(value)).then(|| owned(item, child))
                    }
                    ("v", key) => (serde_json::from_str::<Value>(key).ok()? == *item).then(|| item.clone()),
                    _ => None,
                })
            };
            items.iter().filter_map(part).collect()
        }
        Value::Object(map) => {
            let part = |(key, child): &(&str, &Value)| {
                let name = key.strip_prefix("f:")?;
                Some((name.to_owned(), owned(map.get(name)?, child)))
            };
            Value::Object(children.iter().filter_map(part).collect())
        }
        other => other.clone(),
    }
}

/// What is another each time, and what stands for it.
struct Masks(Vec<(Regex, &'static str)>);

impl Masks {
    fn new() -> Self {
        let masks = [
            (r"(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", "(certificate)"),
            (r"(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n?", "(private key)"),
            (r"LS0tLS1CRUdJTi[A-Za-z0-9+/=]+", "(certificate)"),
            (r"eyJ[\w-]+\.[\w-]+\.[\w-]+", "(token)"),
            (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "(uid)"),
            (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "(time)"),
            (r"\b([0-9A-Fa-f]{64}|([0-9A-F]{2}:){31}[0-9A-F]{2})\b", "(hash)"),
            // A lab's range is the first that is free.
            (r"\b127\.\d+\.", "127.N."),
        ];
        let mut masks = Vec::from(masks.map(|(pattern, with)| (Regex::new(pattern).unwrap(), with)));
        let own_version = format!(r"\b{}\b", regex::escape(env!("CARGO_PKG_VERSION")));
        masks.push((Regex::new(&own_version).unwrap(), "(version)"));
        Self(masks)
    }

    /// The same with placeholders, maps in the order of their keys, and YAML inside of strings laid open.
    fn apply(&self, value: Value) -> Value {
        match value {
            Value::String(text) => match serde_saphyr::from_str::<Value>(&text) {
                Ok(inner @ Value::Object(_)) if text.contains('\n') => self.apply(inner),
                _ => {
                    let masked =
                        |text: String, (pattern, with): &(Regex, &str)| pattern.replace_all(&text, *with).into();
                    self.0.iter().fold(text, masked).into()
                }
            },
            Value::Array(items) => items.into_iter().map(|item| self.apply(item)).collect(),
            Value::Object(map) => {
                // Helm writes as one who updates, and so owns what the API server allocates for it.
                let allocated = |key: &str, value: &Value| {
                    key == "nodePort" || (matches!(key, "clusterIP" | "clusterIPs") && value != "None")
                };
                let fields = map.into_iter().filter(|(key, value)| !allocated(key, value));
                let mut fields: Vec<_> = fields.map(|(key, value)| (key, self.apply(value))).collect();
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                Value::Object(fields.into_iter().collect())
            }
            other => other,
        }
    }
}

#[test]
fn what_somebody_else_wrote_is_not_shown() {
    use serde_json::json;
    let object = json!({"metadata": {"labels": {"a": "1", "b": "2"}}, "data": {"x": {"y": 1}}, "spec": {
        "ports": [{"port": 1, "name": "one", "nodePort": 3}, {"port": 2}], "finalizers": ["m", "n"]}});
    let first = json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:data": {}});
    let second = json!({"f:spec": {"f:ports": {"k:{\"port\":1}": {".": {}, "f:port": {}, "f:name": {}}}, "f:finalizers": {"v:\"n\"": {}}}});
    assert_eq!(
        owned(&object, &merged(merged(Value::Null, &first), &second)),
        json!({"metadata": {"labels": {"a": "1"}}, "data": {"x": {"y": 1}}, "spec": {
            "ports": [{"port": 1, "name": "one"}], "finalizers": ["n"]}})
    );
    let masked = Masks::new().apply(json!("at 127.193.16.16 since 2026-01-02T03:04:05Z"));
    assert_eq!(masked, "at 127.N.16.16 since (time)");
}

/// Multi-primary, on one network and on several.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_primaries_as_written() {
    for (topology, networks) in [("multi-primary-one-network", ["flat", "flat"]), ("multi-primary", ["east", "west"])] {
        let mut world = World::new();
        let clusters = ["one", "two"];
        let lines = clusters
            .iter()
            .zip(networks)
            .map(|(cluster, network)| format!("  - {{name: {cluster}, context: {cluster}, network: {network}}}\n"));
        let head = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: golden}\nspec:\n  clusters:\n";
        let file = world.write("mesh.yaml", &(head.to_owned() + &lines.collect::<String>()));
        world.up(&file).await;
        world.good(&["apply", "-f", text(&file), "--yes"]).await;
        compare(topology, &world.clusters(&clusters).await).await;
    }
}
