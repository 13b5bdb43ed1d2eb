use serde_json::{Value, json};

use super::*;
use crate::choose::choose;
use crate::divide::Algorithm;
use crate::model::{Binding, Cluster, PropagationPolicy, read};
use crate::place::{Settings, place};

/// A hub with four clusters, of which one is lost and one is far; everything that `stolos why` will ask.
fn explained(replicas: i64, current: Value, placement: Value) -> Why {
    let room = |cluster: &Cluster| match cluster.metadata.name.as_str() {
        "eu" => 4,
        "ap" => 2,
        _ => 9,
    };
    let clusters: Vec<Cluster> = [("ap", false), ("eu", false), ("lost", true), ("us", false)]
        .map(|(name, lost)| {
            let taints = if lost {
                json!([{"key": "cluster.karmada.io/unreachable", "effect": "NoSchedule"}])
            } else {
                json!([])
            };
            let cluster = json!({"metadata": {"name": name}, "spec": {"taints": taints}, "status": {"apiEnablements": [
                {"groupVersion": "apps/v1", "resources": [{"name": "deployments", "kind": "Deployment"}]}]}});
            read(&cluster).unwrap().0
        })
        .into();
    let template =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"}});
    let binding = json!({"metadata": {"name": "web-deployment", "namespace": "shop"}, "spec": {
        "resource": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "web"},
        "replicas": replicas, "clusters": current, "placement": placement}});
    let binding: Binding = read(&binding).unwrap().0;
    let policies: Vec<PropagationPolicy> = [("shop", "web", "web"), ("shop", "yes", ""), ("", "all", "")]
        .map(|(namespace, name, of)| {
            let policy = json!({"metadata": {"name": name, "namespace": namespace}, "spec": {
                "resourceSelectors": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": of}]}});
            read(&policy).unwrap().0
        })
        .into();
    let choice = choose(&template, &policies, Algorithm::Newest, false);
    let decision = place(&binding, &clusters, &room, Settings::default());
    why(&binding.spec.resource, choice.as_ref(), Some(&decision))
}

fn divided(weights: Value) -> Value {
    json!({"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Weighted", "weightPreference": weights})
}

#[test]
fn weights_are_explained() {
    let weights: Vec<Value> = (["eu", "ap", "us"].iter())
        .map(|name| json!({"targetCluster": {"clusterNames": [name]}, "weight": 1}))
        .collect();
    let placement = json!({"clusterAffinity": {"exclude": ["nobody"]},
        "replicaScheduling": divided(json!({"staticWeightList": weights}))});
    let why = explained(10, json!([{"name": "eu", "replicas": 5}]), placement);
    insta::assert_snapshot!(why, @"
        Deployment shop/web: 10 replicas, divided by weights of the policy

        policy: PropagationPolicy shop/web, which selects it by name
          not PropagationPolicy shop/yes: it selects the template less exactly
          not ClusterPropagationPolicy all: policies of the namespace go first

        clusters:
          eu    3 replicas, had 5, weight 1, score 100: it is there already
          us    3 replicas, weight 1
          ap    4 replicas, weight 1
          lost  left out: its taint cluster.karmada.io/unreachable:NoSchedule is not tolerated
          the last replica went to ap: eu, us had the same claim, and names go from a to z for this UID

        what would change it:
          one replica more: eu 3 → 4
          one replica less: ap 4 → 3
          another UID of the template, or a weight or room that is not equal: ap and eu, us had the same claim to the last replica
          for lost: taking the taint cluster.karmada.io/unreachable:NoSchedule from lost, or a toleration for it in placement.clusterTolerations
          not a cluster that joins, and not room that comes or goes: what runs is divided again when its number or its placement changes, or with a WorkloadRebalancer
        ");
    // What is written is read again.
    assert_eq!(serde_json::from_value::<Why>(json!(why)).unwrap(), why);
}

#[test]
fn room_and_overflow_are_explained() {
    let placement = json!({"clusterAffinities": [
        {"affinityName": "gone", "clusterNames": ["lost"]},
        {"affinityName": "near", "clusterNames": ["eu"], "overflowAffinities": [{"affinityName": "cloud", "clusterNames": ["ap"]}]}],
        "replicaScheduling": divided(json!({"dynamicWeight": "AvailableReplicas"}))});
    insta::assert_snapshot!(explained(5, json!([]), placement.clone()), @"
        Deployment shop/web: 5 replicas, divided by the room in the clusters

        policy: PropagationPolicy shop/web, which selects it by name
          not PropagationPolicy shop/yes: it selects the template less exactly
          not ClusterPropagationPolicy all: policies of the namespace go first

        clusters, by affinity group gone:
          ap    left out: it is not meant: clusterNames does not name it
          eu    left out: it is not meant: clusterNames does not name it
          lost  left out: its taint cluster.karmada.io/unreachable:NoSchedule is not tolerated
          us    left out: it is not meant: clusterNames does not name it
          not possible: 0/4 clusters are available: 1 cluster(s) had untolerated taint {cluster.karmada.io/unreachable:NoSchedule}, 3 cluster(s) did not match the placement cluster affinity constraint.

        clusters, by affinity group near:
          eu    4 replicas, room for 4 more
          ap    1 replica, room for 2 more, overflow group 1
          lost  left out: its taint cluster.karmada.io/unreachable:NoSchedule is not tolerated
          us    left out: it is not meant: clusterNames does not name it

        what would change it:
          one replica more: ap 1 → 2
          one replica less: ap 1 → 0
          for lost: taking the taint cluster.karmada.io/unreachable:NoSchedule from lost, or a toleration for it in placement.clusterTolerations
          for us: a clusterAffinity that means us (clusterNames does not name it)
          not a cluster that joins, and not room that comes or goes: what runs is divided again when its number or its placement changes, or with a WorkloadRebalancer
        ");
    insta::assert_snapshot!(explained(9, json!([{"name": "eu", "replicas": 2}]), placement), @"
        Deployment shop/web: 9 replicas, divided by the room in the clusters

        policy: PropagationPolicy shop/web, which selects it by name
          not PropagationPolicy shop/yes: it selects the template less exactly
          not ClusterPropagationPolicy all: policies of the namespace go first

        clusters, by affinity group gone:
          ap    left out: it is not meant: clusterNames does not name it
          eu    left out: it is not meant: clusterNames does not name it
          lost  left out: its taint cluster.karmada.io/unreachable:NoSchedule is not tolerated
          us    left out: it is not meant: clusterNames does not name it
          not possible: 0/4 clusters are available: 1 cluster(s) had untolerated taint {cluster.karmada.io/unreachable:NoSchedule}, 3 cluster(s) did not match the placement cluster affinity constraint.

        clusters, by affinity group near:
          eu    selected, room for 4 more, score 100: it is there already
          ap    selected, room for 2 more, overflow group 1
          lost  left out: its taint cluster.karmada.io/unreachable:NoSchedule is not tolerated
          us    left out: it is not meant: clusterNames does not name it
          not possible: Clusters available replicas 6 are not enough to schedule.

        Unschedulable: Clusters available replicas 6 are not enough to schedule.
          nothing new is placed, and what runs stays where it is

        what would change it:
          room for 1 more in the clusters that are selected, or fewer replicas
          for lost: taking the taint cluster.karmada.io/unreachable:NoSchedule from lost, or a toleration for it in placement.clusterTolerations
          for us: a clusterAffinity that means us (clusterNames does not name it)
        ");
}

#[test]
fn a_template_without_a_binding_is_explained_by_the_policy_it_would_follow() {
    let template = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": {"replicas": 2}});
    let policy = json!({"metadata": {"name": "all"}, "spec": {
        "resourceSelectors": [{"apiVersion": "apps/v1", "kind": "Deployment"}]}});
    let policies = [read::<PropagationPolicy>(&policy).unwrap().0];
    let cluster = json!({"metadata": {"name": "eu"}, "spec": {}, "status": {"apiEnablements": [
        {"groupVersion": "apps/v1", "resources": [{"name": "deployments", "kind": "Deployment"}]}]}});
    let clusters = [read::<Cluster>(&cluster).unwrap().0];
    let why = explain(&template, None, &policies, &clusters, Settings::default());
    insta::assert_snapshot!(why, @"
        Deployment shop/web: 2 replicas, each cluster gets all

        policy: ClusterPropagationPolicy all, which selects it with all of its kind

        clusters:
          eu  2 replicas
        ");
    assert!(explain(&template, None, &[], &clusters, Settings::default()).decision.is_none());
    // What a workload brings along has a binding without a placement.
    let brought = json!({"metadata": {"name": "c-configmap"}, "spec": {
        "resource": {"apiVersion": "v1", "kind": "ConfigMap", "namespace": "shop", "name": "c"},
        "requiredBy": [{"namespace": "shop", "name": "web-deployment", "clusters": [{"name": "eu", "replicas": 2}]}]}});
    let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": "shop"}});
    let why = explain(&config, Some(&read(&brought).unwrap().0), &[], &clusters, Settings::default());
    assert_eq!(why.changes.last().unwrap(), "where web-deployment goes, which needs it: eu");
}

#[test]
fn spread_and_what_has_no_policy_are_explained() {
    let placement = json!({"spreadConstraints": [{"spreadByField": "cluster", "minGroups": 1, "maxGroups": 2}]});
    insta::assert_snapshot!(explained(2, json!([]), placement), @"
        Deployment shop/web: 2 replicas, each cluster gets all

        policy: PropagationPolicy shop/web, which selects it by name
          not PropagationPolicy shop/yes: it selects the template less exactly
          not ClusterPropagationPolicy all: policies of the namespace go first

        clusters:
          us    2 replicas
          eu    2 replicas
          ap    not taken by the spread constraints
          lost  left out: its taint cluster.karmada.io/unreachable:NoSchedule is not tolerated

        what would change it:
          a spread constraint with a greater maxGroups, for ap
          for lost: taking the taint cluster.karmada.io/unreachable:NoSchedule from lost, or a toleration for it in placement.clusterTolerations
        ");
    let nowhere = json!({"clusterAffinity": {"clusterNames": ["mars"]}});
    insta::assert_snapshot!(explained(2, json!([{"name": "eu", "replicas": 2}]), nowhere), @"
        Deployment shop/web: 2 replicas, each cluster gets all

        policy: PropagationPolicy shop/web, which selects it by name
          not PropagationPolicy shop/yes: it selects the template less exactly
          not ClusterPropagationPolicy all: policies of the namespace go first

        clusters:
          ap    left out: it is not meant: clusterNames does not name it
          eu    left out: it is not meant: clusterNames does not name it
          lost  left out: its taint cluster.karmada.io/unreachable:NoSchedule is not tolerated
          us    left out: it is not meant: clusterNames does not name it
          not possible: 0/4 clusters are available: 1 cluster(s) had untolerated taint {cluster.karmada.io/unreachable:NoSchedule}, 3 cluster(s) did not match the placement cluster affinity constraint.

        NoClusterFit: 0/4 clusters are available: 1 cluster(s) had untolerated taint {cluster.karmada.io/unreachable:NoSchedule}, 3 cluster(s) did not match the placement cluster affinity constraint.
          nothing new is placed, and what runs stays where it is

        what would change it:
          for ap: a clusterAffinity that means ap (clusterNames does not name it)
          for eu: a clusterAffinity that means eu (clusterNames does not name it)
          for lost: taking the taint cluster.karmada.io/unreachable:NoSchedule from lost, or a toleration for it in placement.clusterTolerations
          for us: a clusterAffinity that means us (clusterNames does not name it)
        ");
    let config =
        ObjectReference { kind: "ConfigMap".into(), name: "c".into(), namespace: "shop".into(), ..Default::default() };
    insta::assert_snapshot!(why(&config, None, None), @"
        ConfigMap shop/c

        policy: none selects it

        what would change it:
          a PropagationPolicy whose resourceSelectors mean this ConfigMap
        ");
}

#[test]
fn where_nothing_is_weighed_all_are_alike() {
    let placement = json!({"replicaScheduling": divided(Value::Null)});
    let said = explained(3, json!([]), placement).to_string();
    assert!(said.contains("the policy gives none of them a weight, so all are alike"), "{said}");
    assert!(!said.contains("weight 0"), "{said}");
}
