use serde_json::{Value, json};

use super::*;
use crate::model::read;

/// Clusters from lines: `name region available taint-or-label…`; a word with `=` is a label, with `:` a taint.
fn world(lines: &str) -> (Vec<Cluster>, Vec<(String, i64)>) {
    let mut room = Vec::new();
    let cluster = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut cluster = json!({"metadata": {"name": words[0], "labels": {}}, "spec": {"region": words[1], "taints": []},
            "status": {"apiEnablements": [{"groupVersion": "apps/v1",
                "resources": [{"name": "deployments", "kind": "Deployment"}]}]}});
        room.push((words[0].to_owned(), words[2].parse().unwrap()));
        for word in &words[3..] {
            match (word.split_once('='), word.split_once(':'), *word) {
                (Some((key, value)), _, _) => cluster["metadata"]["labels"][key] = value.into(),
                (_, Some((key, effect)), _) => {
                    cluster["spec"]["taints"].as_array_mut().unwrap().push(json!({"key": key, "effect": effect}));
                }
                (_, _, "deleting") => cluster["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into(),
                (_, _, "bare") => cluster["status"] = json!({}),
                other => panic!("{other:?}"),
            }
        }
        read::<Cluster>(&cluster).unwrap().0
    };
    (lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(cluster).collect(), room)
}

fn binding(replicas: i64, current: &str, placement: &Value) -> Binding {
    let clusters: Vec<Value> = current
        .split_whitespace()
        .map(|word| word.split_once(':').unwrap())
        .map(|(name, replicas)| json!({"name": name, "replicas": replicas.parse::<i64>().unwrap()}))
        .collect();
    let binding = json!({"metadata": {"name": "web-deployment", "namespace": "shop"}, "spec": {
        "resource": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "web"},
        "replicas": replicas, "placement": placement, "clusters": clusters}});
    read(&binding).unwrap().0
}

/// What is decided, in one line.
fn decided(binding: &Binding, lines: &str, algorithm: Algorithm) -> String {
    let (clusters, room) = world(lines);
    let available = |cluster: &Cluster| room.iter().find(|(name, _)| *name == cluster.metadata.name).unwrap().1;
    let decision = place(binding, &clusters, &available, Settings { algorithm, keep_empty: false });
    match &decision.outcome {
        Outcome::Placed { clusters, group } => {
            let shares: Vec<String> =
                clusters.iter().map(|cluster| format!("{}:{}", cluster.name, cluster.replicas)).collect();
            let group = group.as_ref().map(|group| format!(" by {group}")).unwrap_or_default();
            format!("{}{group}", shares.join(" "))
        }
        outcome => format!("{}: {}", outcome.reason(), outcome.message()),
    }
}

fn spread(by: &[(&str, i64, i64)]) -> Value {
    by.iter().map(|(field, min, max)| json!({"spreadByField": field, "minGroups": min, "maxGroups": max})).collect()
}

const DUPLICATED: &str = r#"{"replicaSchedulingType": "Duplicated"}"#;
const DYNAMIC: &str = r#"{"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Weighted",
    "weightPreference": {"dynamicWeight": "AvailableReplicas"}}"#;
const AGGREGATED: &str = r#"{"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Aggregated"}"#;

#[test]
fn spread_constraints_select_as_worked_out() {
    let abc = "a r1 9\nb r1 9\nc r2 9";
    let cases: [(&str, &str, i64, &str, Value, &str); 14] = [
        (abc, "", 2, DUPLICATED, spread(&[("cluster", 2, 2)]), "a:2 b:2"),
        (abc, "c:2", 2, DUPLICATED, spread(&[("cluster", 1, 1)]), "c:2"),
        (abc, "", 2, DUPLICATED, spread(&[("region", 2, 2), ("cluster", 2, 3)]), "a:2 b:2 c:2"),
        (abc, "", 2, DUPLICATED, spread(&[("region", 2, 2), ("cluster", 2, 2)]), "a:2 c:2"),
        (abc, "", 2, DUPLICATED, spread(&[("region", 1, 1), ("cluster", 2, 2)]), "a:2 b:2"),
        ("a r 40 \nb r 30\nc r 60", "", 80, DYNAMIC, spread(&[("cluster", 1, 2)]), "a:32 c:48"),
        (
            "a r 4\nb r 3\nc r 6",
            "",
            11,
            AGGREGATED,
            spread(&[("cluster", 1, 2)]),
            "SchedulerError: no enough resource when selecting 2 clusters",
        ),
        (
            "a r 4\nb r 3",
            "",
            2,
            DUPLICATED,
            spread(&[("cluster", 3, 3)]),
            "SchedulerError: the number of feasible clusters is less than spreadConstraint.MinGroups",
        ),
        (abc, "", 2, DUPLICATED, spread(&[("cluster", 1, 0)]), "SchedulerError: no clusters available to schedule"),
        (
            abc,
            "",
            2,
            DYNAMIC,
            spread(&[("cluster", 1, 0)]),
            "SchedulerError: no enough resource when selecting 0 clusters",
        ),
        (
            abc,
            "",
            2,
            DUPLICATED,
            spread(&[("region", 3, 3), ("cluster", 3, 3)]),
            "SchedulerError: the number of feasible region is less than spreadConstraint.MinGroups",
        ),
        (
            abc,
            "",
            2,
            DUPLICATED,
            spread(&[("region", 1, 1), ("cluster", 3, 3)]),
            "SchedulerError: the number of clusters is less than the cluster spreadConstraint.MinGroups",
        ),
        // The region with room for its part wins, and the one that needs fewer regions.
        ("a r1 1\nb r2 9\nc r3 9", "", 8, DYNAMIC, spread(&[("region", 1, 2), ("cluster", 1, 2)]), "b:8"),
        // Weights of the policy are for all candidates.
        (abc, "", 3, r#"{"replicaSchedulingType": "Divided"}"#, spread(&[("cluster", 1, 1)]), "a:1 b:1 c:1"),
    ];
    for (clusters, current, replicas, scheduling, constraints, expected) in cases {
        let scheduling: Value = serde_json::from_str(scheduling).unwrap();
        let placement = json!({"replicaScheduling": scheduling, "spreadConstraints": constraints});
        let binding = binding(replicas, current, &placement);
        assert_eq!(decided(&binding, clusters, Algorithm::Newest), expected, "{constraints}");
    }
}

#[test]
fn v1_2_selects_by_score_and_name_alone() {
    let clusters = "a r1 1\nb r2 9\nc r2 9\nd r3 9";
    let duplicated: Value = serde_json::from_str(DUPLICATED).unwrap();
    for (current, constraints, expected) in [
        ("", spread(&[("cluster", 1, 2)]), "a:2 b:2"),
        ("d:2", spread(&[("cluster", 1, 2)]), "a:2 d:2"),
        ("d:0", spread(&[("cluster", 1, 2)]), "a:2 b:2"),
        ("", spread(&[("region", 2, 2), ("cluster", 2, 3)]), "a:2 b:2 c:2"),
        ("", spread(&[("region", 1, 1), ("cluster", 2, 3)]), "b:2 c:2"),
        ("d:2", spread(&[("region", 1, 1), ("cluster", 1, 3)]), "d:2"),
    ] {
        let placement = json!({"replicaScheduling": duplicated, "spreadConstraints": constraints});
        let binding = binding(2, current, &placement);
        assert_eq!(decided(&binding, clusters, Algorithm::V1_2), expected, "{current} {constraints}");
    }
}

#[test]
fn clusters_are_filtered_as_karmada_does() {
    let clusters = "a eu 9 tier=gold
        b eu 9 tier=gold dead:NoSchedule
        c us 9 slow:PreferNoSchedule
        d us 9 gone:NoExecute
        e us 9 bare
        f us 9 deleting";
    for (current, placement, expected) in [
        ("", json!({}), "a:1 c:1"),
        ("b:1 e:1", json!({}), "a:1 b:1 c:1 e:1"),
        ("f:1", json!({}), "a:1 c:1"),
        ("", json!({"clusterTolerations": [{"key": "dead", "operator": "Exists"}]}), "a:1 b:1 c:1"),
        ("", json!({"clusterTolerations": [{"operator": "Exists", "effect": "NoExecute"}]}), "a:1 c:1 d:1"),
        ("", json!({"clusterAffinity": {"labelSelector": {"matchLabels": {"tier": "gold"}}}}), "a:1"),
        ("", json!({"clusterAffinity": {"exclude": ["a"]}}), "c:1"),
        ("", json!({"clusterAffinity": {"clusterNames": ["c", "f", "nobody"]}}), "c:1"),
        (
            "",
            json!({"clusterAffinity": {"fieldSelector": {"matchExpressions": [
            {"key": "region", "operator": "NotIn", "values": ["eu"]}]}}}),
            "c:1",
        ),
        (
            "",
            json!({"clusterAffinity": {"fieldSelector": {"matchExpressions": [
            {"key": "zone", "operator": "In", "values": ["z"]}]}}}),
            "NoClusterFit: 0/6 clusters are available: 1 cluster(s) did not have the API resource, \
             1 cluster(s) had untolerated taint {dead:NoSchedule}, 1 cluster(s) had untolerated taint {gone:NoExecute}, \
             1 cluster(s) were being deleted, 2 cluster(s) did not match the placement cluster affinity constraint.",
        ),
        (
            "",
            json!({"spreadConstraints": [{"spreadByField": "cluster", "minGroups": 1, "maxGroups": 9},
            {"spreadByField": "provider", "minGroups": 1, "maxGroups": 9}]}),
            "NoClusterFit: 0/6 clusters are available: 1 cluster(s) did not have the API resource, \
             1 cluster(s) had untolerated taint {dead:NoSchedule}, 1 cluster(s) had untolerated taint {gone:NoExecute}, \
             1 cluster(s) were being deleted, 2 cluster(s) did not have provider property.",
        ),
    ] {
        assert_eq!(decided(&binding(1, current, &placement), clusters, Algorithm::Newest), expected, "{placement}");
    }
    let mut leaving = binding(1, "", &json!({}));
    leaving.spec.graceful_eviction_tasks = vec![model::EvictionTask { from_cluster: "a".into(), ..Default::default() }];
    assert_eq!(decided(&leaving, clusters, Algorithm::Newest), "c:1");
    assert_eq!(decided(&binding(1, "", &json!({})), "", Algorithm::Newest), "NoClusterFit: 0/0 clusters are available");
}

#[test]
fn affinity_groups_are_tried_in_order_from_the_one_in_use() {
    let clusters = "a r 4\nb r 2 dead:NoSchedule\nc r 9\nd r 9";
    let scheduling: Value = serde_json::from_str(DYNAMIC).unwrap();
    let placement = json!({"replicaScheduling": scheduling, "clusterAffinities": [
        {"affinityName": "none", "clusterNames": ["b"]},
        {"affinityName": "near", "clusterNames": ["a"], "overflowAffinities": [
            {"affinityName": "cloud", "clusterNames": ["a", "c"]}]},
        {"affinityName": "far", "clusterNames": ["d"]}]});
    for (replicas, observed, expected) in [
        (3, "", "a:3 by near"),
        (6, "", "a:4 c:2 by near"),
        (9, "far", "d:9 by far"),
        (14, "", "Unschedulable: Clusters available replicas 13 are not enough to schedule."),
        (3, "gone", "a:3 by near"),
    ] {
        let mut binding = binding(replicas, "", &placement);
        binding.status.scheduler_observed_affinity_name = observed.into();
        assert_eq!(decided(&binding, clusters, Algorithm::Newest), expected, "{replicas} {observed}");
    }
}

/// The reference system's own scenario: 1:1:1, ten replicas, then 2:1:2, and karmada.md's example of section 28.
#[test]
fn weights_of_policies_are_divided_and_divided_again() {
    let weights = |rules: &[(&str, i64)]| -> Value {
        let rules: Vec<Value> = (rules.iter())
            .map(|(name, weight)| json!({"targetCluster": {"clusterNames": [name]}, "weight": weight}))
            .collect();
        json!({"clusterAffinity": {"clusterNames": ["eu", "ap", "us"]}, "replicaScheduling": {
            "replicaSchedulingType": "Divided", "replicaDivisionPreference": "Weighted",
            "weightPreference": {"staticWeightList": rules}}})
    };
    let clusters = "eu r 0\nap r 0\nus r 0\nother r 9";
    let even = weights(&[("us", 1), ("ap", 1), ("eu", 1)]);
    let uneven = weights(&[("us", 2), ("ap", 1), ("eu", 2)]);
    assert_eq!(decided(&binding(3, "", &even), clusters, Algorithm::Newest), "ap:1 eu:1 us:1");
    assert_eq!(decided(&binding(10, "ap:1 eu:1 us:1", &even), clusters, Algorithm::Newest), "ap:4 eu:3 us:3");
    for algorithm in [Algorithm::Newest, Algorithm::V1_2] {
        let shares = decided(&binding(10, "ap:4 eu:3 us:3", &uneven), clusters, algorithm);
        assert_eq!(shares, "ap:2 eu:4 us:4", "{algorithm:?}");
    }
    // A cluster's weight is the greatest of its rules; in v1.2 the first.
    let twice = weights(&[("eu", 1), ("ap", 1), ("eu", 3)]);
    assert_eq!(decided(&binding(8, "", &twice), clusters, Algorithm::Newest), "ap:2 eu:6");
    assert_eq!(decided(&binding(8, "", &twice), clusters, Algorithm::V1_2), "ap:4 eu:4 us:0");
    // Section 28: 7 of 2:1:1 with an odd UID, then 9, then without the third cluster.
    let of = |replicas, names: &[(&str, i64)]| {
        let mut placement = weights(names);
        placement["clusterAffinity"]["clusterNames"] = names.iter().map(|(name, _)| *name).collect();
        let mut binding = binding(replicas, "", &placement);
        binding.spec.resource.uid = "11111111-1111-1111-1111-111111111111".into();
        decided(&binding, "c1 r 0\nc2 r 0\nc3 r 0", Algorithm::Newest)
    };
    assert_eq!(of(7, &[("c1", 2), ("c2", 1), ("c3", 1)]), "c1:3 c2:2 c3:2");
    assert_eq!(of(9, &[("c1", 2), ("c2", 1), ("c3", 1)]), "c1:5 c2:2 c3:2");
    assert_eq!(of(9, &[("c1", 2), ("c2", 1)]), "c1:6 c2:3");
}

#[test]
fn what_is_not_a_workload_goes_everywhere_without_numbers() {
    let clusters = "a r 0\nb r 0";
    let mut config = binding(0, "", &json!({}));
    assert_eq!(decided(&config, clusters, Algorithm::Newest), "a:0 b:0");
    // A workload scaled to 0 that asks for resources goes nowhere; one that asks for nothing is no workload.
    config.spec.replica_requirements = Some(model::ReplicaRequirements::default());
    assert_eq!(decided(&config, clusters, Algorithm::Newest), "");
    config.spec.components = vec![model::Component::default(), model::Component::default()];
    assert_eq!(decided(&config, clusters, Algorithm::Newest), "a:0 b:0");
}

#[test]
fn a_binding_is_scheduled_when_something_changed() {
    let dynamic: Value = serde_json::from_str(DYNAMIC).unwrap();
    let placement = json!({"replicaScheduling": dynamic, "clusterAffinities": [
        {"affinityName": "near", "clusterNames": ["a"]}, {"affinityName": "far", "clusterNames": ["b"]}]});
    let scheduled = |placement: &Value, applied: &Value| {
        let mut binding = binding(3, "a:3", placement);
        binding.metadata.annotations.insert(crate::label::APPLIED_PLACEMENT.into(), applied.to_string());
        binding.status.scheduler_observed_affinity_name = "near".into();
        binding.status.last_scheduled_time = Some("2026-01-01T00:00:00Z".parse().unwrap());
        binding
    };
    let due = |binding: &Binding| due(binding, &|name| name == "gone");
    let settled = scheduled(&placement, &placement);
    assert_eq!(due(&settled), None);
    // Another group's change moves nothing; the one in use does, and so does everything else.
    let with = |change: &dyn Fn(&mut Value)| {
        let mut placement = placement.clone();
        change(&mut placement);
        placement
    };
    let far = with(&|placement| placement["clusterAffinities"][1]["clusterNames"] = json!(["c"]));
    let near = with(&|placement| placement["clusterAffinities"][0]["clusterNames"] = json!(["c"]));
    let renamed = with(&|placement| placement["clusterAffinities"][0]["affinityName"] = json!("other"));
    let tolerant = with(&|placement| placement["clusterTolerations"] = json!([{"operator": "Exists"}]));
    for (now, trigger) in [
        (&far, None),
        (&near, Some(Trigger::Placement)),
        (&renamed, Some(Trigger::Placement)),
        (&tolerant, Some(Trigger::Placement)),
    ] {
        assert_eq!(due(&scheduled(now, &placement)), trigger, "{now}");
    }
    let changed = |change: &dyn Fn(&mut Binding)| {
        let mut binding = settled.clone();
        change(&mut binding);
        due(&binding)
    };
    assert_eq!(changed(&|binding| binding.metadata.annotations.clear()), Some(Trigger::Placement));
    assert_eq!(changed(&|binding| binding.spec.replicas = 4), Some(Trigger::Replicas));
    assert_eq!(changed(&|binding| binding.spec.clusters[0].name = "gone".into()), Some(Trigger::ClusterGone));
    let asked = |at: &str| changed(&|binding| binding.spec.reschedule_triggered_at = Some(at.parse().unwrap()));
    assert_eq!(asked("2026-01-01T00:00:01Z"), Some(Trigger::Reschedule));
    assert_eq!(asked("2025-12-31T23:59:59Z"), None);
    let none = |change: &dyn Fn(&mut Binding)| {
        changed(&|binding| {
            binding.spec.replicas = 4;
            change(binding);
        })
    };
    assert_eq!(none(&|binding| binding.spec.scheduler_name = "mine".into()), None);
    assert_eq!(none(&|binding| binding.spec.placement = None), None);
    let suspended = model::Suspension { scheduling: Some(true), ..Default::default() };
    assert_eq!(none(&|binding| binding.spec.suspension = Some(suspended.clone())), None);
    let mut everywhere = scheduled(&json!({}), &json!({}));
    assert_eq!(super::due(&everywhere, &|_| false), Some(Trigger::EachTime));
    everywhere.spec.replicas = 9;
    assert_eq!(super::due(&everywhere, &|_| false), Some(Trigger::Replicas));
}

/// With a mesh the nearer one with a gateway that answers is taken; without one, Karmada's order.
#[test]
fn a_mesh_is_a_score_and_no_mesh_is_none() {
    let world = |known: [Value; 3]| -> Decision {
        let clusters: Vec<Cluster> = ["a", "b", "c"]
            .into_iter()
            .zip(known)
            .map(|(name, annotations)| {
                let cluster = json!({"metadata": {"name": name, "annotations": annotations}, "spec": {}, "status": {"apiEnablements": [
                    {"groupVersion": "apps/v1", "resources": [{"name": "deployments", "kind": "Deployment"}]}]}});
                model::read(&cluster).unwrap().0
            })
            .collect();
        let binding = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2,
            "resource": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "placement": {"spreadConstraints": [{"spreadByField": "cluster", "minGroups": 1, "maxGroups": 1}]}}});
        let binding: Binding = model::read(&binding).unwrap().0;
        place(&binding, &clusters, &|_| 10, Settings::default())
    };
    let chosen = |decision: &Decision| match &decision.outcome {
        Outcome::Placed { clusters, .. } => clusters.iter().map(|it| it.name.clone()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let of = |gateway: &str, far: u32| json!({crate::mesh::MESH: "m", crate::mesh::GATEWAY: gateway, crate::mesh::LATENCY: format!("{{\"x\": {far}}}")});
    let none = world([json!({}), json!({}), json!({})]);
    assert_eq!(chosen(&none), ["a"]);
    assert!(none.attempts[0].clusters.iter().all(|verdict| verdict.score == 0 && verdict.mesh.is_none()));
    assert_eq!(chosen(&world([of("down", 1), of("ready", 200), of("ready", 20)])), ["c"]);
    assert_eq!(chosen(&world([of("down", 1), of("ready", 200), json!({})])), ["b"]);
    // Alike in the mesh is as without one.
    assert_eq!(chosen(&world([of("ready", 30), of("ready", 30), of("ready", 30)])), ["a"]);
}
