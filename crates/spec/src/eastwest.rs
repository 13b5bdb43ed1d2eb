//! What `gen-eastwest-gateway.sh` prints: an IstioOperator called `eastwest`, with one gateway and nothing else.

use serde_json::{Map, Value, json};

use crate::problem::{Notes, quoted};
use crate::yaml::{self, Node};

/// A gateway as such a file describes it.
#[derive(Debug, Default)]
pub(crate) struct Gateway {
    pub(crate) network: Option<String>,
    /// What it says beyond what Stolos decides, as values of Istio's chart `gateway`.
    pub(crate) values: Map<String, Value>,
}

/// The ports that every east-west gateway has.
const PORTS: [i64; 4] = [15021, 15443, 15012, 15017];

/// What the operator calls otherwise than the chart, and what both call the same.
const KEYS: [(&str, &[&str]); 10] = [
    ("replicaCount", &["replicaCount"]),
    ("resources", &["resources"]),
    ("nodeSelector", &["nodeSelector"]),
    ("tolerations", &["tolerations"]),
    ("affinity", &["affinity"]),
    ("podAnnotations", &["podAnnotations"]),
    ("priorityClassName", &["priorityClassName"]),
    ("serviceAnnotations", &["service", "annotations"]),
    ("podDisruptionBudget", &["podDisruptionBudget"]),
    ("imagePullPolicy", &["imagePullPolicy"]),
];

/// Whether a document is one.
pub(crate) fn is_one(node: &Node) -> bool {
    let operator = node.get("kind").and_then(Node::text) == Some("IstioOperator");
    let named = node.get("metadata").and_then(|m| m.get("name")).and_then(Node::text) == Some("eastwest");
    operator && (named || components(node).iter().any(is_eastwest))
}

fn components(node: &Node) -> &[Node] {
    let gateways = node.get("spec").and_then(|s| s.get("components")).and_then(|c| c.get("ingressGateways"));
    gateways.map(Node::items).unwrap_or_default()
}

fn is_eastwest(component: &Node) -> bool {
    component.get("name").and_then(Node::text) == Some("istio-eastwestgateway")
}

/// Reads the one document of a file.
pub(crate) fn read(notes: &mut Notes<'_>) -> Option<Gateway> {
    let documents = yaml::documents(notes)?;
    let [document] = documents.as_slice() else {
        notes.problem(None, format!("the file has {} documents", documents.len())).expected("one gateway");
        return None;
    };
    if !is_one(document) {
        notes
            .problem(document.get("kind").map_or(document.at, |kind| kind.at), "this is no east-west gateway")
            .expected("what `gen-eastwest-gateway.sh` prints: an IstioOperator called `eastwest`");
        return None;
    }
    understand(notes, document)
}

/// Understands a document that is one.
pub(crate) fn understand(notes: &mut Notes<'_>, node: &Node) -> Option<Gateway> {
    let mut gateway = Gateway::default();
    let spec = node.get("spec")?;
    let global = spec.get("values").and_then(|v| v.get("global"));
    gateway.network = global.and_then(|g| g.get("network")).and_then(Node::text).map(str::to_owned);
    if let Some(revision) = spec.get("revision").filter(|r| r.text().is_some_and(|text| !text.is_empty())) {
        notes.warn(
            revision.at,
            format!("the gateway is to be injected by the revision {}", revision.description()),
            "it gets the mesh's own, which `controlPlane.revision` names",
        );
    }
    // `--mesh` and `--cluster` were taken and forgotten; somebody may have written down what they were to say.
    let said = [global.and_then(|g| g.get("meshID")), global.and_then(|g| g.get("multiCluster"))];
    let at = said.into_iter().flatten().next().map(|n| n.at).or(node.get("metadata").map(|m| m.at));
    notes.warn(
        at,
        "`gen-eastwest-gateway.sh` takes `--mesh` and `--cluster` and ignores both: the file belongs to no cluster",
        "the mesh and the clusters it is given together with decide",
    );
    let mut passed = Vec::new();
    for component in components(node) {
        if !is_eastwest(component) {
            let name = component.get("name").map_or_else(|| "without a name".to_owned(), Node::description);
            notes.warn(component.at, format!("the gateway {name} is no east-west gateway"), "it is ignored");
            continue;
        }
        let label = component.get("label").and_then(|l| l.get("topology.istio.io/network")).and_then(Node::text);
        gateway.network = gateway.network.or(label.map(str::to_owned));
        for entry in component.get("k8s").map(Node::entries).unwrap_or_default() {
            let known = KEYS.iter().find(|(key, _)| *key == entry.key);
            match (entry.key.as_str(), known) {
                (_, Some((_, path))) => put(&mut gateway.values, path, entry.value.json()),
                ("hpaSpec", _) => autoscaling(&entry.value, &mut gateway.values),
                ("env", _) => env(&entry.value, &mut gateway.values),
                ("service", _) => service(notes, &entry.value, &mut gateway.values),
                (other, _) => passed.push(quoted(&format!("k8s.{other}"))),
            }
        }
    }
    if !passed.is_empty() {
        notes.warn(
            None,
            format!("keys of the gateway that Istio's chart has no value for: {}", passed.join(", ")),
            "they are ignored",
        );
    }
    Some(gateway)
}

fn put(values: &mut Map<String, Value>, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => {
            values.insert((*last).to_owned(), value);
        }
        [first, rest @ ..] => {
            if let Some(below) = values.entry(*first).or_insert_with(|| json!({})).as_object_mut() {
                put(below, rest, value);
            }
        }
    }
}

fn autoscaling(node: &Node, values: &mut Map<String, Value>) {
    for key in ["minReplicas", "maxReplicas"] {
        if let Some(count) = node.get(key) {
            put(values, &["autoscaling", key], count.json());
        }
    }
}

fn env(node: &Node, values: &mut Map<String, Value>) {
    for item in node.items() {
        let (name, value) = (item.get("name").and_then(Node::text), item.get("value").and_then(Node::text));
        if let (Some(name), Some(value)) = (name, value)
            && name != "ISTIO_META_REQUESTED_NETWORK_VIEW"
            && name != "ISTIO_META_ROUTER_MODE"
        {
            put(values, &["env", name], value.into());
        }
    }
}

fn service(notes: &mut Notes<'_>, node: &Node, values: &mut Map<String, Value>) {
    for entry in node.entries() {
        if entry.key != "ports" {
            put(values, &["service", &entry.key], entry.value.json());
            continue;
        }
        for port in entry.value.items() {
            let number = port.get("port").and_then(Node::text).and_then(|text| text.parse::<i64>().ok());
            if number.is_none_or(|number| !PORTS.contains(&number)) {
                let what = port.get("port").map_or_else(|| "nothing".to_owned(), Node::description);
                notes.warn(
                    port.at,
                    format!("the gateway has a port of its own, {what}"),
                    "an east-west gateway has 15021, 15443, 15012 and 15017; this one is left out",
                );
            }
        }
    }
}
