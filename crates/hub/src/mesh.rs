//! The mesh that members are in, as far as placement has to know it: which members are one mesh, whether each one's
//! gateway answers, and how far they are from each other.
//!
//! What is known of it is kept on Clusters as annotations, so that whoever decides or explains has it at hand. The hub reads
//! name and gateway from the members themselves (ConfigMap `istio-system/stolos-mesh`, pods with `istio: eastwestgateway`);
//! what was measured between them is what `stolos verify` reports, told to the hub with `stolos hub measured`. Members of no
//! mesh have no score, so that without one every decision is Karmada's.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_k8s::istio::MESH_LABEL;
use stolos_k8s::meta;

use crate::model::{Cluster, TargetCluster};

/// On a Cluster: the mesh that it is in.
pub const MESH: &str = "hub.stolos.dev/mesh";
/// On a Cluster: whether its gateway is `ready` or `down`. Without one, it needs none.
pub const GATEWAY: &str = "hub.stolos.dev/gateway";
/// On a Cluster: milliseconds to others, by their names in the hub, as JSON.
pub const LATENCY: &str = "hub.stolos.dev/latency-ms";
/// On a Cluster: when that was measured (RFC 3339). Without one, nobody knows, and it stays.
pub const MEASURED: &str = "hub.stolos.dev/latency-measured-at";
/// How long it is believed: distances change with routes and with regions, not by the hour.
pub const BELIEVED: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);
/// On a Service: `false` lets it go where its policy says, and nowhere else.
pub const EVERYWHERE: &str = "hub.stolos.dev/everywhere";

/// What a gateway and no distance at all are worth; together less than that a workload is there already (100).
const GATEWAY_SCORE: i64 = 25;
const NEAR_SCORE: i64 = 25;
/// At this distance nearness is worth nothing.
const FAR: u32 = 500;

/// A member's place in a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// The mesh.
    pub mesh: String,
    /// Whether its gateway is ready, if it has one.
    pub gateway: Option<bool>,
    /// How many milliseconds the others are away on average, where that was measured.
    pub latency_ms: Option<u32>,
}

impl Standing {
    /// What is known of a member's place in a mesh, if it is in one.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Option<Self> {
        let annotations = &cluster.metadata.annotations;
        let mesh = annotations.get(MESH).filter(|mesh| !mesh.is_empty())?.clone();
        let gateway = annotations.get(GATEWAY).map(|gateway| gateway == "ready");
        let far: BTreeMap<String, f64> =
            annotations.get(LATENCY).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let far: Vec<f64> = far.into_values().filter(|far| far.is_finite() && *far >= 0.0).collect();
        let latency_ms = match far.len() {
            0 => None,
            // Nobody is further away than that, and the cast saturates.
            count => Some((far.iter().sum::<f64>() / count as f64).ceil().min(f64::from(u32::MAX)) as u32),
        };
        Some(Self { mesh, gateway, latency_ms })
    }

    /// What it is worth among candidates: 0 to 50. One whose gateway is down is worth nothing, since nobody reaches it.
    #[must_use]
    pub fn score(&self) -> i64 {
        if self.gateway == Some(false) {
            return 0;
        }
        let near = self.latency_ms.map_or(0, |far| NEAR_SCORE * i64::from(FAR - far.min(FAR)) / i64::from(FAR));
        GATEWAY_SCORE + near
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "in mesh {}", self.mesh)?;
        match self.gateway {
            Some(true) => write!(f, ", its gateway is ready")?,
            Some(false) => write!(f, ", its gateway is down")?,
            None => {}
        }
        match self.latency_ms {
            Some(far) => write!(f, ", {far} ms from the others"),
            None => Ok(()),
        }
    }
}

/// What a member's own objects say of its mesh: the annotations that its Cluster is to have; none where it is in no mesh.
#[must_use]
pub fn seen(membership: Option<&Value>, gateways: &[bool]) -> BTreeMap<&'static str, String> {
    let Some(mesh) = membership.and_then(|found| meta::label(found, MESH_LABEL)) else { return BTreeMap::new() };
    let mut seen = BTreeMap::from([(MESH, mesh.to_owned())]);
    if !gateways.is_empty() {
        let ready = gateways.iter().any(|ready| *ready);
        seen.insert(GATEWAY, if ready { "ready" } else { "down" }.to_owned());
    }
    seen
}

/// The annotations that say what was measured from a member just now: milliseconds by name.
#[must_use]
pub fn told(far: &Value) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    serde_json::json!({LATENCY: far.to_string(), MEASURED: now})
}

/// Whether what was measured from a member is too old to be believed.
#[must_use]
pub fn is_over(cluster: &Value, now: jiff::Timestamp) -> bool {
    let measured = meta::annotation(cluster, MEASURED).filter(|_| meta::annotation(cluster, LATENCY).is_some());
    // A time that is none was written by nobody who measured.
    measured.is_some_and(|at| at.parse::<jiff::Timestamp>().map_or(true, |at| now.duration_since(at) > BELIEVED))
}

/// Where else the Services of a workload go: to every member of the meshes that its clusters are in. A caller there finds
/// the name, and the mesh the way; without the Service the name is unknown there, and the call ends before it begins.
#[must_use]
pub fn company(placed: &[TargetCluster], clusters: &[impl Borrow<Cluster>]) -> Vec<String> {
    let clusters: Vec<&Cluster> = clusters.iter().map(Borrow::borrow).collect();
    let mesh_of = |name: &str| {
        let cluster = clusters.iter().find(|cluster| cluster.metadata.name == name)?;
        Standing::of(cluster).map(|standing| standing.mesh)
    };
    let meshes: Vec<String> = placed.iter().filter_map(|target| mesh_of(&target.name)).collect();
    let together = |cluster: &&Cluster| Standing::of(cluster).is_some_and(|standing| meshes.contains(&standing.mesh));
    let mut all: Vec<String> =
        clusters.into_iter().filter(together).map(|cluster| cluster.metadata.name.clone()).collect();
    all.sort_unstable();
    all
}

/// Whether a Service leads to the pods of a workload, and is to be known wherever these can be called.
#[must_use]
pub fn leads_to(service: &Value, workload: &Value) -> bool {
    let labels = &workload["spec"]["template"]["metadata"]["labels"];
    let selector = service["spec"]["selector"].as_object().filter(|selector| !selector.is_empty());
    meta::namespace(service) == meta::namespace(workload)
        && meta::annotation(service, EVERYWHERE) != Some("false")
        && selector.is_some_and(|selector| selector.iter().all(|(key, value)| labels[key] == *value))
}

/// What was measured between members, by both names, from a report of `stolos verify`: the median of answered requests.
///
/// # Errors
///
/// When it is no such report.
pub fn measured(report: &Value) -> Result<BTreeMap<String, BTreeMap<String, f64>>, String> {
    if report["kind"] != "VerifyReport" {
        return Err("it is no VerifyReport; `stolos verify -o json` prints one".to_owned());
    }
    let mut all: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    for pair in report["pairs"].as_array().into_iter().flatten() {
        let (Some(from), Some(to)) = (pair["from"].as_str(), pair["to"].as_str()) else { continue };
        if let Some(median) = pair["latencyMs"]["p50"].as_f64().filter(|_| from != to) {
            all.entry(from.to_owned()).or_default().insert(to.to_owned(), median);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::read;

    fn cluster(name: &str, annotations: Value) -> Cluster {
        read(&json!({"metadata": {"name": name, "annotations": annotations}, "spec": {}})).unwrap().0
    }

    #[test]
    fn what_was_measured_is_believed_for_a_day() {
        let now: jiff::Timestamp = "2026-01-02T00:00:00Z".parse().unwrap();
        for (what, annotations, over) in [
            ("fresh", json!({LATENCY: "{}", MEASURED: "2026-01-01T12:00:00Z"}), false),
            ("a day", json!({LATENCY: "{}", MEASURED: "2026-01-01T00:00:00Z"}), false),
            ("old", json!({LATENCY: "{}", MEASURED: "2025-12-31T23:59:59Z"}), true),
            ("by a clock that is ahead", json!({LATENCY: "{}", MEASURED: "2026-01-02T01:00:00Z"}), false),
            ("no time", json!({LATENCY: "{}", MEASURED: "yesterday"}), true),
            ("written by hand", json!({LATENCY: "{}"}), false),
            ("nothing", json!({MEASURED: "2025-01-01T00:00:00Z"}), false),
        ] {
            assert_eq!(is_over(&json!({"metadata": {"annotations": annotations}}), now), over, "{what}");
        }
    }

    #[test]
    fn a_standing_is_read_and_weighed() {
        let far = |ms: &str| json!({MESH: "m", GATEWAY: "ready", LATENCY: format!("{{\"ap\": {ms}, \"us\": {ms}}}")});
        for (annotations, latency, score) in [
            (json!({MESH: "m"}), None, 25),
            (json!({MESH: "m", GATEWAY: "ready"}), None, 25),
            (json!({MESH: "m", GATEWAY: "down", LATENCY: "{\"ap\": 1}"}), Some(1), 0),
            (far("0.4"), Some(1), 49),
            (far("250"), Some(250), 37),
            (far("9000"), Some(9000), 25),
            (json!({MESH: "m", LATENCY: "nonsense"}), None, 25),
        ] {
            let standing = Standing::of(&cluster("eu", annotations.clone())).unwrap();
            assert_eq!((standing.latency_ms, standing.score()), (latency, score), "{annotations}");
        }
        assert_eq!(Standing::of(&cluster("eu", json!({GATEWAY: "ready"}))), None);
    }

    #[test]
    fn services_go_to_all_of_a_mesh_and_to_no_other() {
        let clusters = [
            cluster("us", json!({MESH: "m"})),
            cluster("eu", json!({MESH: "m"})),
            cluster("ap", json!({MESH: "other"})),
            cluster("alone", json!({})),
        ];
        let to = |names: &[&str]| -> Vec<TargetCluster> {
            names.iter().map(|name| TargetCluster { name: (*name).to_owned(), replicas: 1 }).collect()
        };
        assert_eq!(company(&to(&["eu"]), &clusters), ["eu", "us"]);
        assert_eq!(company(&to(&["alone"]), &clusters), Vec::<String>::new());
        assert_eq!(company(&to(&["eu", "ap"]), &clusters), ["ap", "eu", "us"]);
        assert_eq!(company(&to(&[]), &clusters), Vec::<String>::new());
    }

    #[test]
    fn a_service_leads_to_what_its_selector_means() {
        let workload = json!({"metadata": {"namespace": "shop"}, "spec": {"template": {"metadata": {"labels": {"app": "web", "v": "1"}}}}});
        let service = |namespace: &str, selector: Value, everywhere: &str| json!({"metadata": {"namespace": namespace, "annotations": {EVERYWHERE: everywhere}}, "spec": {"selector": selector}});
        for (service, leads) in [
            (service("shop", json!({"app": "web"}), ""), true),
            (service("shop", json!({"app": "web", "v": "1"}), "true"), true),
            (service("shop", json!({"app": "web"}), "false"), false),
            (service("shop", json!({"app": "web", "v": "2"}), ""), false),
            (service("bank", json!({"app": "web"}), ""), false),
            (service("shop", json!({}), ""), false),
            (service("shop", json!(null), ""), false),
        ] {
            assert_eq!(leads_to(&service, &workload), leads, "{service}");
        }
    }

    #[test]
    fn what_is_seen_and_measured_is_what_members_and_reports_say() {
        let membership = json!({"metadata": {"labels": {MESH_LABEL: "m"}}});
        assert_eq!(seen(Some(&membership), &[]), BTreeMap::from([(MESH, "m".to_owned())]));
        assert_eq!(seen(Some(&membership), &[false, true])[GATEWAY], "ready");
        assert_eq!(seen(Some(&membership), &[false])[GATEWAY], "down");
        assert!(seen(None, &[true]).is_empty());
        let report = json!({"kind": "VerifyReport", "pairs": [
            {"from": "eu", "to": "eu", "latencyMs": {"p50": 0.2}},
            {"from": "eu", "to": "ap", "latencyMs": {"p50": 120.5}},
            {"from": "ap", "to": "eu", "latencyMs": null}]});
        assert_eq!(
            measured(&report),
            Ok(BTreeMap::from([("eu".to_owned(), BTreeMap::from([("ap".to_owned(), 120.5)]))]))
        );
        assert!(measured(&json!({"kind": "Mesh"})).is_err());
    }
}
