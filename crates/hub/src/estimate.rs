//! How many more replicas fit into a cluster, by what it says of its nodes (Karmada v1.18.2's general estimator).

use std::collections::BTreeMap;

use serde_json::Value;
use stolos_k8s::quantity::Quantity;

use crate::model::{Cluster, ReplicaRequirements, ResourceModel, ResourceSummary};

/// An amount as Kubernetes writes it, in billionths; 0 where it is none.
pub(crate) fn amount(value: Option<&Value>) -> i128 {
    let text = match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => return 0,
    };
    Quantity::parse(&text).map_or(0, |quantity| quantity.nano())
}

/// What is left of a resource.
fn left(summary: &ResourceSummary, resource: &str) -> i128 {
    let of = |amounts: &BTreeMap<String, Value>| amount(amounts.get(resource));
    (of(&summary.allocatable) - of(&summary.allocated) - of(&summary.allocating)).max(0)
}

fn count(replicas: i128) -> i64 {
    i64::try_from(replicas).unwrap_or(i64::MAX).min(i64::from(i32::MAX))
}

/// How many more replicas fit: as many pods as are free, and as often as the request goes into what is free. A cluster
/// that says nothing of its nodes has no room.
#[must_use]
pub fn available(cluster: &Cluster, requirements: Option<&ReplicaRequirements>) -> i64 {
    let Some(summary) = &cluster.status.resource_summary else { return 0 };
    let pods = left(summary, "pods") / 1_000_000_000;
    let request: Vec<(&str, i128)> = (requirements.iter())
        .flat_map(|requirements| &requirements.resource_request)
        .map(|(resource, value)| (resource.as_str(), amount(Some(value))))
        .filter(|(_, wanted)| *wanted > 0)
        .collect();
    let by_grade = by_grade(&cluster.spec.resource_models, summary, &request);
    let whole = || request.iter().map(|(resource, wanted)| left(summary, resource) / wanted).min().unwrap_or(i128::MAX);
    count(pods.min(by_grade.unwrap_or_else(whole)))
}

/// By grades of nodes: in each node of a grade that holds the request, as often as it goes into the grade's least. Nothing
/// where there are no grades, or where they do not tell a resource.
fn by_grade(models: &[ResourceModel], summary: &ResourceSummary, request: &[(&str, i128)]) -> Option<i128> {
    if models.is_empty() || summary.allocatable_modelings.is_empty() || request.is_empty() {
        return None;
    }
    let mut sum = 0_i128;
    for model in models {
        let mut fits = i128::MAX;
        for (resource, wanted) in request {
            let range = model.ranges.iter().find(|range| range.name == *resource)?;
            fits = fits.min(amount(Some(&range.min)) / wanted);
        }
        let nodes = summary.allocatable_modelings.iter().find(|nodes| nodes.grade == model.grade);
        sum += fits * i128::from(nodes.map_or(0, |nodes| nodes.count.max(0)));
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn room_is_what_pods_and_requests_leave() {
        let summary = json!({
            "allocatable": {"cpu": "8", "memory": "16Gi", "pods": "110"},
            "allocated": {"cpu": "3", "memory": "4Gi", "pods": "20"},
            "allocating": {"cpu": "1", "pods": "5"}});
        let models = json!([
            {"grade": 0, "ranges": [{"name": "cpu", "min": "0", "max": "1"}]},
            {"grade": 1, "ranges": [{"name": "cpu", "min": "1", "max": "2"}]},
            {"grade": 2, "ranges": [{"name": "cpu", "min": "2", "max": "9223372036854775807"}]}]);
        let nodes = json!([{"grade": 0, "count": 9}, {"grade": 1, "count": 2}, {"grade": 2, "count": 3}]);
        for (request, graded, expected) in [
            (json!({}), false, 85),
            (json!({"cpu": "100m"}), false, 40),
            (json!({"cpu": "100m", "memory": "1Gi"}), false, 12),
            (json!({"cpu": "5"}), false, 0),
            (json!({"nvidia.com/gpu": 1}), false, 0),
            (json!({"cpu": "0"}), false, 85),
            // 2 nodes of one core and 3 of two hold 500 millicores 2 and 4 times each.
            (json!({"cpu": "500m"}), true, 16),
            (json!({"cpu": "1500m"}), true, 3),
            // The grades say nothing of memory: by what is left.
            (json!({"cpu": "500m", "memory": "1Gi"}), true, 8),
        ] {
            let mut cluster: Cluster = serde_json::from_value(json!({
                "metadata": {"name": "c"}, "spec": {"syncMode": "Push"}, "status": {"resourceSummary": summary}}))
            .unwrap();
            if graded {
                cluster.spec.resource_models = serde_json::from_value(models.clone()).unwrap();
                let summary = cluster.status.resource_summary.as_mut().unwrap();
                summary.allocatable_modelings = serde_json::from_value(nodes.clone()).unwrap();
            }
            let requirements: ReplicaRequirements =
                serde_json::from_value(json!({"resourceRequest": request})).unwrap();
            assert_eq!(available(&cluster, Some(&requirements)), expected, "{request} {graded}");
            cluster.status.resource_summary = None;
            assert_eq!(available(&cluster, None), 0);
        }
    }
}
