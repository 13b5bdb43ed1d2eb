//! Helm values laid over what Stolos computes: `base.yaml` beside a topology.yaml, or `spec.controlPlane.values`.

use crate::mesh::{Engine, Mesh, Mtls};
use crate::problem::{At, Notes, quoted};
use crate::yaml::{Node, Value, name_of};

/// What an overlay says, once what Stolos always decides itself is taken out of it.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    pub(crate) mtls: Option<Mtls>,
    pub(crate) trust_domain: Option<(String, At)>,
    /// The values that remain.
    pub(crate) values: serde_json::Map<String, serde_json::Value>,
}

/// Reads an IstioControlPlane or IstioOperator document, or a plain map of Helm values.
pub(crate) fn read(notes: &mut Notes<'_>, node: &Node, path: &str, mesh: &Mesh) -> Option<Overlay> {
    let kind = node.get("kind").and_then(Node::text);
    match kind {
        Some(kind @ ("IstioControlPlane" | "IstioOperator")) => {
            if kind == "IstioControlPlane" {
                let at = node.get("kind").map(|kind| kind.at);
                notes.warn(
                    at,
                    "`IstioControlPlane` is how Istio 1.4 was configured; today's Istio does not read it",
                    "its values are laid over those that Stolos computes",
                );
            }
            operator(notes, node, path, mesh)
        }
        Some(other) => {
            let at = node.get("kind").map(|kind| kind.at);
            notes
                .problem(at, format!("{} is of kind {}", name_of(path), quoted(other)))
                .expected("`IstioOperator`, `IstioControlPlane`, or plain Helm values");
            None
        }
        None => {
            let mut keys = Keys::new(mesh);
            let values = keys.values(notes, node, path)?;
            Some(keys.finish(notes, values, path))
        }
    }
}

fn operator(notes: &mut Notes<'_>, node: &Node, path: &str, mesh: &Mesh) -> Option<Overlay> {
    let mut keys = Keys::new(mesh);
    let mut values = serde_json::Map::new();
    let mut below_values = serde_json::Map::new();
    let path_of = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    let spec = match node.get("spec") {
        Some(spec) if !spec.is_null() => spec,
        _ => return Some(Overlay::default()),
    };
    let spec_path = path_of("spec");
    if !matches!(spec.value, Value::Map(_)) {
        notes.problem(spec.at, format!("`{spec_path}` is {}", spec.description())).expected("a map");
        return None;
    }
    for entry in spec.entries() {
        let path = format!("{spec_path}.{}", entry.key);
        match entry.key.as_str() {
            "values" => values = keys.values(notes, &entry.value, &path)?,
            "meshConfig" => {
                for field in entry.value.entries() {
                    if field.key == "trustDomain" {
                        keys.trust_domain = field.value.text().map(|t| (t.to_owned(), field.value.at));
                    } else {
                        keys.leaves(&field.value, &format!("{path}.{}", field.key));
                        // The charts have it among their values.
                        if let Some(settings) = below(&mut below_values, "meshConfig") {
                            settings.insert(field.key.clone(), field.value.json());
                        }
                    }
                }
            }
            "hub" | "tag" => {
                keys.leaves(&entry.value, &path);
                if let Some(global) = below(&mut below_values, "global") {
                    global.insert(entry.key.clone(), entry.value.json());
                }
            }
            "components" | "addonComponents" => {
                for component in entry.value.entries() {
                    let path = format!("{path}.{}", component.key);
                    if !keys.is_gone(notes, &component.key, component.key_at, &path) {
                        keys.leaves(&component.value, &path);
                        keys.placeless(&component.value, &path);
                    }
                }
            }
            _ => {
                keys.leaves(&entry.value, &path);
                keys.placeless(&entry.value, &path);
            }
        }
    }
    // What stands under `values` itself wins over the operator's own words for the same.
    merge(&mut below_values, values);
    Some(keys.finish(notes, below_values, path))
}

/// The map at `key`, made where there is none.
fn below<'v>(
    values: &'v mut serde_json::Map<String, serde_json::Value>,
    key: &str,
) -> Option<&'v mut serde_json::Map<String, serde_json::Value>> {
    values.entry(key).or_insert_with(|| serde_json::json!({})).as_object_mut()
}

/// Parts of Istio 1.4 that no supported Istio has.
const GONE: &[&str] =
    &["citadel", "galley", "mixer", "nodeagent", "policy", "telemetry", "sidecarInjectorWebhook", "certmanager"];

struct Keys {
    protected: Vec<(&'static [&'static str], String)>,
    mtls: Option<Mtls>,
    trust_domain: Option<(String, At)>,
    /// What the small engine does not act on.
    passive: Vec<String>,
    /// What has no place in Istio's charts either.
    placeless: Vec<String>,
    engine: Engine,
}

impl Keys {
    fn new(mesh: &Mesh) -> Self {
        let each = |of: &dyn Fn(&crate::Cluster) -> String| {
            let mut words: Vec<String> = mesh.clusters.iter().map(of).collect();
            words.dedup();
            match words.as_slice() {
                [one] => format!("`{one}`"),
                [] => "its cluster's".to_owned(),
                some if some.len() <= 3 => {
                    let list: Vec<_> = some.iter().map(|w| format!("`{w}`")).collect();
                    format!("each cluster's own ({})", list.join(", "))
                }
                [first, ..] => format!("each cluster's own (`{first}`, …)"),
            }
        };
        let name = each(&|c| c.name.to_string());
        let network = each(&|c| c.network.to_string());
        let networks: Vec<_> = mesh.networks().into_iter().map(|n| format!("`{n}`")).collect();
        let computed = format!("computed from the clusters' networks ({})", networks.join(", "));
        Self {
            protected: vec![
                (&["global", "meshID"], format!("`{}`", mesh.name)),
                (&["global", "multiCluster", "clusterName"], name),
                (&["global", "network"], network.clone()),
                (&["gateways", "istio-ingressgateway", "env", "ISTIO_MESH_NETWORK"], network),
                (&["global", "controlPlaneSecurityEnabled"], "`true`: nothing else is possible today".to_owned()),
                (&["global", "meshNetworks"], computed.clone()),
                (&["pilot", "meshNetworks"], computed),
            ],
            mtls: None,
            trust_domain: None,
            passive: Vec::new(),
            placeless: Vec::new(),
            engine: mesh.control_plane.engine,
        }
    }

    fn values(
        &mut self,
        notes: &mut Notes<'_>,
        node: &Node,
        path: &str,
    ) -> Option<serde_json::Map<String, serde_json::Value>> {
        if node.is_null() || matches!(&node.value, Value::Map(entries) if entries.is_empty()) {
            return Some(serde_json::Map::new());
        }
        if !matches!(node.value, Value::Map(_)) {
            notes
                .problem(node.at, format!("{} is {}", name_of(path), node.description()))
                .expected("a map of Helm values, such as `{global: {proxy: {logLevel: info}}}`");
            return None;
        }
        let mut trail = Vec::new();
        match self.below(notes, node, path, &mut trail) {
            Some(serde_json::Value::Object(values)) => Some(values),
            _ => Some(serde_json::Map::new()),
        }
    }

    /// What remains of a node once the keys that Stolos decides are taken out; nothing if nothing does.
    fn below<'n>(
        &mut self,
        notes: &mut Notes<'_>,
        node: &'n Node,
        path: &str,
        trail: &mut Vec<&'n str>,
    ) -> Option<serde_json::Value> {
        if let Some(used) = self.protected.iter().find(|(keys, _)| keys == trail).map(|(_, used)| used.clone()) {
            let found = match &node.value {
                Value::Scalar { .. } if !node.is_null() => node.description(),
                _ => quoted(&node.json().to_string()),
            };
            notes.warn(node.at, format!("`{path}` is {found}"), format!("Stolos always decides this itself: {used}"));
            return None;
        }
        match trail.as_slice() {
            ["global", "mtls", "enabled"] => {
                match node.boolean() {
                    Some(true) => self.mtls = Some(Mtls::Strict),
                    Some(false) => {
                        self.mtls = Some(Mtls::Permissive);
                        notes.warn(
                            node.at,
                            format!("`{path}` is `false`"),
                            "plaintext is accepted beside mTLS inside the mesh (`mtls: permissive`); the gateways between \
                             networks never accept it",
                        );
                    }
                    None => {
                        notes
                            .problem(node.at, format!("`{path}` is {}", node.description()))
                            .expected("`true` or `false`");
                    }
                }
                return None;
            }
            ["security", "selfSigned"] => {
                if node.boolean() != Some(false) {
                    notes.warn(
                        node.at,
                        format!("`{path}` is {}", node.description()),
                        "Stolos uses `false`: clusters that sign for themselves do not trust each other, so each gets an \
                         intermediate of one common root",
                    );
                }
                return None;
            }
            ["global", "trustDomain"] => {
                self.trust_domain = node.text().map(|t| (t.to_owned(), node.at));
                return None;
            }
            _ => {}
        }
        match &node.value {
            Value::Map(entries) if !entries.is_empty() => {
                let mut left = serde_json::Map::new();
                for entry in entries {
                    let path = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
                    if trail.is_empty() && self.is_gone(notes, &entry.key, entry.key_at, &path) {
                        continue;
                    }
                    trail.push(&entry.key);
                    if let Some(value) = self.below(notes, &entry.value, &path, trail) {
                        left.insert(entry.key.clone(), value);
                    }
                    trail.pop();
                }
                (!left.is_empty()).then_some(serde_json::Value::Object(left))
            }
            _ => {
                self.passive.push(path.to_owned());
                Some(node.json())
            }
        }
    }

    fn is_gone(&self, notes: &mut Notes<'_>, key: &str, at: At, path: &str) -> bool {
        let gone = GONE.iter().any(|gone| gone.eq_ignore_ascii_case(key));
        if gone {
            notes.warn(at, format!("`{path}` configures a part that Istio no longer has"), "it is ignored");
        }
        gone
    }

    fn leaves(&mut self, node: &Node, path: &str) {
        paths(node, path, &mut self.passive);
    }

    fn placeless(&mut self, node: &Node, path: &str) {
        paths(node, path, &mut self.placeless);
    }

    fn finish(self, notes: &mut Notes<'_>, values: serde_json::Map<String, serde_json::Value>, path: &str) -> Overlay {
        if self.engine == Engine::Istio {
            if !self.placeless.is_empty() {
                let list: Vec<_> = self.placeless.iter().map(|key| quoted(key)).collect();
                notes.warn(
                    None,
                    format!("keys of an IstioOperator that are no values of Istio's charts: {}", list.join(", ")),
                    "they are ignored; what a chart's values can say goes under `values`, what concerns gateways under \
                     `controlPlane.gateways`",
                );
            }
        } else if !self.passive.is_empty() {
            let list: Vec<_> = self.passive.iter().map(|key| quoted(key)).collect();
            let place = if path.is_empty() { String::new() } else { format!("`{path}` sets ") };
            notes.warn(
                None,
                format!("{place}keys that the engine `stolos` does not act on: {}", list.join(", ")),
                "Stolos' own small control plane keeps to its defaults; only the engine `istio` is given them",
            );
        }
        Overlay { mtls: self.mtls, trust_domain: self.trust_domain, values }
    }
}

fn paths(node: &Node, path: &str, found: &mut Vec<String>) {
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => {
            entries.iter().for_each(|entry| paths(&entry.value, &format!("{path}.{}", entry.key), found));
        }
        _ => found.push(path.to_owned()),
    }
}

/// Lays `over` onto `under`; maps are merged, everything else is replaced.
pub(crate) fn merge(
    under: &mut serde_json::Map<String, serde_json::Value>,
    over: serde_json::Map<String, serde_json::Value>,
) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(serde_json::Value::Object(under)), serde_json::Value::Object(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}
