//! What a member says of itself: whether it is well, its version, its kinds, its nodes, what is left of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::discovery::{Discovery, Scope};
use serde_json::{Value, json};
use stolos_cluster::objects::Resource;
use stolos_k8s::meta;
use stolos_k8s::quantity::Quantity;

use crate::estimate::amount;
use crate::model::ResourceModel;

/// How long one question to a member may take.
const ANSWER: Duration = Duration::from_secs(5);

/// Whether a member is well, as the `Ready` condition says it (Karmada v1.18.2, `clusterStatus`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) ready: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: &'static str,
}

const READY: Health =
    Health { ready: true, reason: "ClusterReady", message: "cluster is healthy and ready to accept workloads" };
const NOT_READY: Health = Health {
    ready: false,
    reason: "ClusterNotReady",
    message: "cluster is reachable but health endpoint responded without ok",
};
const NOT_REACHABLE: Health =
    Health { ready: false, reason: "ClusterNotReachable", message: "cluster is not reachable" };

impl Health {
    /// Whether somebody answered.
    pub(crate) fn reached(&self) -> bool {
        *self != NOT_REACHABLE
    }
}

/// What was seen of a member.
pub(crate) struct Observed {
    pub(crate) health: Health,
    /// Its version, where it said it.
    pub(crate) version: Option<String>,
}

/// Asks whether a member is well, and for its version.
pub(crate) async fn observe(client: &kube::Client) -> Observed {
    let health = match ask(client, "/readyz").await {
        Some(200) => READY,
        Some(404) => match ask(client, "/healthz").await {
            Some(200) => READY,
            Some(_) => NOT_READY,
            None => NOT_REACHABLE,
        },
        Some(_) => NOT_READY,
        None => NOT_REACHABLE,
    };
    let version = if health.ready {
        let asked = tokio::time::timeout(ANSWER, client.apiserver_version()).await;
        asked.ok().and_then(Result::ok).map(|info| info.git_version)
    } else {
        None
    };
    Observed { health, version }
}

/// The code that a page is answered with; `None` where nobody answers.
async fn ask(client: &kube::Client, page: &str) -> Option<u16> {
    let request = http::Request::get(page).body(Vec::new()).ok()?;
    match tokio::time::timeout(ANSWER, client.request_text(request)).await {
        Ok(Ok(_)) => Some(200),
        Ok(Err(kube::Error::Api(status))) => Some(status.code),
        _ => None,
    }
}

/// A kind that an API server serves, in the version that it prefers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) resource: Resource,
    /// Whether its objects can be listed, watched and deleted: what a template must.
    pub(crate) is_kept: bool,
}

/// The kinds that an API server serves, each in the preferred version of its group.
pub(crate) async fn kinds(client: &kube::Client) -> Result<Vec<Kind>, kube::Error> {
    let discovery = discover(client).await?;
    let mut kinds = Vec::new();
    for group in discovery.groups_alphabetical() {
        for (resource, can) in group.recommended_resources() {
            let is_kept = ["list", "watch", "delete"].iter().all(|verb| can.supports_operation(verb));
            let resource = Resource {
                api_version: resource.api_version,
                kind: resource.kind,
                plural: resource.plural,
                namespaced: can.scope == Scope::Namespaced,
            };
            kinds.push(Kind { resource, is_kept });
        }
    }
    Ok(kinds)
}

/// Two requests where the API server knows aggregated discovery (Kubernetes 1.26), one for each version where not.
async fn discover(client: &kube::Client) -> Result<Discovery, kube::Error> {
    match Discovery::new(client.clone()).run_aggregated().await {
        Ok(discovery) => Ok(discovery),
        Err(_) => Discovery::new(client.clone()).run().await,
    }
}

/// Every version of every kind that a member serves, as `status.apiEnablements`.
pub(crate) async fn enablements(client: &kube::Client) -> Option<Vec<Value>> {
    let discovery = tokio::time::timeout(4 * ANSWER, discover(client)).await.ok()?.ok()?;
    let mut all: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for group in discovery.groups() {
        for version in group.versions() {
            let mut resources = group.versioned_resources(version);
            resources.sort_by(|a, b| a.0.plural.cmp(&b.0.plural));
            let key = if group.name().is_empty() { version.to_owned() } else { format!("{}/{version}", group.name()) };
            let named = resources.iter().map(|(r, _)| json!({"kind": r.kind, "name": r.plural}));
            all.entry(key).or_default().extend(named);
        }
    }
    Some(all.into_iter().map(|(version, resources)| json!({"groupVersion": version, "resources": resources})).collect())
}

/// `status.nodeSummary` and `status.resourceSummary`, from a member's nodes and pods, and its grades of nodes.
pub(crate) fn summary(nodes: &[Arc<Value>], pods: &[Arc<Value>], models: &[ResourceModel]) -> (Value, Value) {
    let ready = |node: &Value| {
        let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let counted = json!({"totalNum": nodes.len(), "readyNum": nodes.iter().filter(|node| ready(node)).count()});
    let (mut allocatable, mut allocating, mut allocated) = (Sum::default(), Sum::default(), Sum::default());
    let open: Vec<&Arc<Value>> =
        nodes.iter().filter(|node| ready(node) && node["spec"]["unschedulable"] != true).collect();
    for node in &open {
        allocatable.add(&node["status"]["allocatable"]);
    }
    for pod in pods {
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            continue;
        }
        let scheduled = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        let sum = if scheduled { &mut allocated } else { &mut allocating };
        for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
            sum.add(&container["resources"]["requests"]);
        }
        sum.add(&json!({"pods": "1"}));
    }
    let mut resources = json!({"allocatable": allocatable.0, "allocating": allocating.0, "allocated": allocated.0});
    if !models.is_empty() {
        resources["allocatableModelings"] = modelings(&open, pods, models).into();
    }
    (counted, resources)
}

/// How many nodes there are of each grade by what is left of them (Karmada v1.18.2, gate
/// `CustomizedClusterResourceModeling`): a node is of the highest grade whose least it has of every resource. One that is full
/// of pods is of none.
fn modelings(nodes: &[&Arc<Value>], pods: &[Arc<Value>], models: &[ResourceModel]) -> Vec<Value> {
    let mut counts = vec![0_i64; models.len()];
    for node in nodes {
        let name = meta::name(node);
        let there = pods.iter().filter(|pod| {
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            pod["spec"]["nodeName"] == name && !matches!(phase, "Succeeded" | "Failed")
        });
        let (mut taken, mut count) = (Sum::default(), 0_i128);
        for pod in there {
            count += 1;
            for container in pod["spec"]["containers"].as_array().into_iter().flatten() {
                taken.add(&container["resources"]["requests"]);
            }
        }
        let allocatable = &node["status"]["allocatable"];
        if amount(allocatable.get("pods")) <= count * 1_000_000_000 {
            continue;
        }
        let left = |resource: &str| {
            amount(allocatable.get(resource))
                - amount(taken.0.get(resource).map(|it| Value::from(it.as_str())).as_ref())
        };
        let holds =
            |model: &&ResourceModel| model.ranges.iter().all(|range| left(&range.name) >= amount(Some(&range.min)));
        if let Some(at) = models.iter().rposition(|model| holds(&model)) {
            counts[at] += 1;
        }
    }
    models.iter().zip(counts).map(|(model, count)| json!({"grade": model.grade, "count": count})).collect()
}

/// Amounts of resources, as Kubernetes writes them.
#[derive(Default)]
struct Sum(BTreeMap<String, String>);

impl Sum {
    fn add(&mut self, amounts: &Value) {
        for (name, amount) in amounts.as_object().into_iter().flatten() {
            let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
            let Ok(amount) = Quantity::parse(&text) else { continue };
            let sum = self.0.get(name).and_then(|known| Quantity::parse(known).ok());
            self.0.insert(name.clone(), sum.map_or(amount, |sum| sum.plus(amount)).to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_what_is_there_taken_and_waiting() {
        let node = |ready: &str, off: bool| {
            Arc::new(json!({"spec": {"unschedulable": off}, "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}}}))
        };
        let pod = |phase: &str, node: &str| {
            Arc::new(json!({"spec": {"nodeName": node, "containers": [{"resources": {"requests": {"cpu": "500m"}}}]},
                "status": {"phase": phase}}))
        };
        let nodes = [node("True", false), node("True", true), node("False", false)];
        let pods = [pod("Running", "n"), pod("Running", "n"), pod("Pending", ""), pod("Succeeded", "n")];
        let (nodes, resources) = summary(&nodes, &pods, &[]);
        assert_eq!(nodes, json!({"totalNum": 3, "readyNum": 2}));
        assert_eq!(
            resources,
            json!({"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"},
                "allocating": {"cpu": "500m", "pods": "1"}, "allocated": {"cpu": "1", "pods": "2"}})
        );
    }

    /// What is left of a node decides, and the resource of which it has least.
    #[test]
    fn nodes_are_graded_by_what_is_left_of_them() {
        let node = |name: &str, cpu: &str, memory: &str, pods: &str| {
            Arc::new(json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "allocatable": {"cpu": cpu, "memory": memory, "pods": pods}}}))
        };
        let pod = |phase: &str, node: &str, cpu: &str| {
            let requests = json!([{"resources": {"requests": {"cpu": cpu}}}]);
            Arc::new(json!({"spec": {"nodeName": node, "containers": requests}, "status": {"phase": phase}}))
        };
        let models: Vec<ResourceModel> = serde_json::from_value(json!([
            {"grade": 0, "ranges": [{"name": "cpu", "min": "0", "max": "1"}, {"name": "memory", "min": "0", "max": "4Gi"}]},
            {"grade": 1, "ranges": [{"name": "cpu", "min": "1", "max": "2"}, {"name": "memory", "min": "4Gi", "max": "16Gi"}]},
            {"grade": 2, "ranges": [{"name": "cpu", "min": "2", "max": "9"}, {"name": "memory", "min": "16Gi", "max": "99Gi"}]}]))
        .unwrap();
        let nodes = [
            node("large", "8", "64Gi", "110"),
            node("large-of-cpu", "8", "5Gi", "110"),
            node("taken", "8", "64Gi", "110"),
            node("done", "2", "16Gi", "110"),
            node("full", "8", "64Gi", "1"),
        ];
        let pods = [pod("Running", "taken", "7500m"), pod("Succeeded", "done", "2"), pod("Running", "full", "1")];
        let (_, resources) = summary(&nodes, &pods, &models);
        assert_eq!(
            resources["allocatableModelings"],
            json!([{"grade": 0, "count": 1}, {"grade": 1, "count": 1}, {"grade": 2, "count": 2}])
        );
    }
}
