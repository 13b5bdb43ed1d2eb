use serde_json::{Value, json};

use super::*;
use crate::model::read;

fn cluster(name: &str, cpu: &str, pods: i64) -> Cluster {
    let summary = match pods {
        0 => Value::Null,
        pods => json!({"allocatable": {"cpu": cpu, "pods": pods}, "allocated": {"cpu": "1", "pods": 4}}),
    };
    read(&json!({"metadata": {"name": name}, "spec": {}, "status": {"resourceSummary": summary, "apiEnablements": [
        {"groupVersion": "apps/v1", "resources": [{"name": "deployments", "kind": "Deployment"}]}]}}))
    .unwrap()
    .0
}

fn binding(name: &str, cpu: &str, clusters: Value, scheduling: Value) -> Binding {
    let replicas: i64 = clusters.as_object().unwrap().values().filter_map(Value::as_i64).sum();
    let duplicated = scheduling["replicaSchedulingType"] == "Duplicated";
    let replicas = if duplicated { replicas / clusters.as_object().unwrap().len().max(1) as i64 } else { replicas };
    let clusters: Vec<Value> = (clusters.as_object().unwrap().iter())
        .map(|(name, replicas)| json!({"name": name, "replicas": replicas}))
        .collect();
    read(&json!({"metadata": {"name": name, "namespace": "shop"}, "spec": {
        "resource": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": name},
        "replicas": replicas, "replicaRequirements": {"resourceRequest": {"cpu": cpu}}, "clusters": clusters,
        "placement": {"replicaScheduling": scheduling}}}))
    .unwrap()
    .0
}

fn world() -> (Vec<Binding>, Vec<Cluster>) {
    let dynamic =
        json!({"replicaSchedulingType": "Divided", "weightPreference": {"dynamicWeight": "AvailableReplicas"}});
    let even = json!({"replicaSchedulingType": "Divided"});
    let copies = json!({"replicaSchedulingType": "Duplicated"});
    let bindings = vec![
        binding("api", "500m", json!({"eu": 4, "ap": 2}), dynamic.clone()),
        binding("big", "3", json!({"eu": 2}), dynamic.clone()),
        binding("copy", "100m", json!({"eu": 1, "us": 1}), copies),
        binding("even", "1", json!({"eu": 3, "us": 3}), even),
        binding("elsewhere", "1", json!({"ap": 1}), dynamic),
    ];
    (bindings, vec![cluster("us", "6", 20), cluster("eu", "8", 20), cluster("ap", "3", 20), cluster("new", "", 0)])
}

#[test]
fn a_loss_is_told_without_touching_anything() {
    let (bindings, clusters) = world();
    let loss = lose(&bindings, &clusters, &["eu"], Settings::default());
    insta::assert_snapshot!(loss, @"
        without eu: 10 replicas of 4 workloads are lost there, 3 would have no place

        workloads:
          Deployment shop/api   ap 2 → 3, eu 4 → 0, us 0 → 3
          Deployment shop/big   eu 2 → 0; 2 without a place: Clusters available replicas 1 are not enough to schedule.
          Deployment shop/copy  ap 0 → 1, eu 1 → 0, new 0 → 1
          Deployment shop/even  ap 0 → 2, eu 3 → 0, new 0 → 2, us 3 → 2; 1 without a place: ap has no room for 1

        clusters:
          ap   3 → 7 replicas, room for 16 → 12 pods
          new  0 → 3 replicas, does not say how much room it has
          us   4 → 6 replicas, room for 16 → 13 pods
        ");
    assert_eq!(serde_json::from_value::<Loss>(json!(loss)).unwrap(), loss);
    // Asked again it says the same.
    assert_eq!(lose(&bindings, &clusters, &["eu"], Settings::default()), loss);
}

#[test]
fn nothing_lost_is_nothing_told() {
    let (bindings, clusters) = world();
    let loss = lose(&bindings, &clusters, &["nobody"], Settings::default());
    assert_eq!(loss.workloads, []);
    assert!(loss.clusters.iter().all(|load| load.before == load.after && load.room_before == load.room_after));
    let all = lose(&bindings, &clusters, &["eu", "us", "ap", "new"], Settings::default());
    insta::assert_snapshot!(all, @"
        without eu, us, ap, new: 17 replicas of 5 workloads are lost there, 15 would have no place

        workloads:
          Deployment shop/api        ap 2 → 0, eu 4 → 0; 6 without a place: 0/0 clusters are available
          Deployment shop/big        eu 2 → 0; 2 without a place: 0/0 clusters are available
          Deployment shop/copy       eu 1 → 0, us 1 → 0; 0/0 clusters are available
          Deployment shop/elsewhere  ap 1 → 0; 1 without a place: 0/0 clusters are available
          Deployment shop/even       eu 3 → 0, us 3 → 0; 6 without a place: 0/0 clusters are available
        ");
}
