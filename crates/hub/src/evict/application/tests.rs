use serde_json::{Value, json};

use super::*;
use crate::model::{Cluster, read};
use crate::place::{self, Outcome};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

/// A binding of so many replicas; each cluster as `eu 3 unhealthy`.
fn binding(replicas: i64, placement: &Value, application: &Value, places: &str) -> Binding {
    let rows: Vec<Vec<&str>> =
        places.split(", ").filter(|row| !row.is_empty()).map(|row| row.split(' ').collect()).collect();
    let clusters: Vec<Value> =
        rows.iter().map(|row| json!({"name": row[0], "replicas": row[1].parse::<i64>().unwrap()})).collect();
    let said: Vec<Value> = (rows.iter().filter(|row| row.len() > 2))
        .map(|row| json!({"clusterName": row[0], "applied": true, "health": row[2]}))
        .collect();
    read(&json!({"metadata": {"name": "web-deployment", "namespace": "shop"},
        "spec": {"resource": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "web"},
            "replicas": replicas, "placement": placement, "failover": {"application": application}, "clusters": clusters},
        "status": {"aggregatedStatus": said}}))
    .unwrap()
    .0
}

fn seen(_: &str) -> Option<String> {
    Some("one".to_owned())
}

/// Where a binding goes among eu, ap and us, which have room.
fn place(binding: &Binding) -> Result<Vec<TargetCluster>, String> {
    let cluster = |name| {
        let served = json!([{"groupVersion": "apps/v1", "resources": [{"name": "deployments", "kind": "Deployment"}]}]);
        read::<Cluster>(&json!({"metadata": {"name": name}, "spec": {}, "status": {"apiEnablements": served}}))
            .unwrap()
            .0
    };
    match place::place(binding, &["ap", "eu", "us"].map(cluster), &|_| 10, place::Settings::default()).outcome {
        Outcome::Placed { clusters, .. } => Ok(clusters),
        other => Err(other.message().to_owned()),
    }
}

fn even() -> Value {
    json!({"replicaScheduling": {"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Weighted"}})
}

fn one() -> Value {
    json!({"spreadConstraints": [{"spreadByField": "cluster", "minGroups": 1, "maxGroups": 1}]})
}

#[test]
fn a_copy_is_due_when_it_has_been_unhealthy_for_so_long() {
    let mut watch = Watch::default();
    let mut look = |at_seconds: i64, places: &str, of: Option<&str>| {
        let binding = binding(6, &even(), &json!({}), places);
        let (due, again) = watch.look(&binding, &|_| of.map(str::to_owned), at(at_seconds));
        format!("{} {}", due.join(","), again.map_or_else(|| "-".to_owned(), |again| again.as_secs().to_string()))
    };
    let ill = "ap 3 Healthy, eu 3 Unhealthy";
    for (seconds, places, of, expected) in [
        // Before anybody has said anything, nothing is known; 300 s are Karmada's.
        (0, "ap 3, eu 3", Some("one"), " -"),
        (0, ill, Some("one"), " 300"),
        (100, ill, Some("one"), " 200"),
        // Well again, and from the beginning.
        (110, "ap 3 Healthy, eu 3 Healthy", Some("one"), " -"),
        (120, ill, Some("one"), " 300"),
        // What cannot be known, or is not said by a member that answers, neither begins nor ends anything.
        (200, "ap 3 Healthy, eu 3 Unknown", Some("one"), " -"),
        (500, ill, None, " -"),
        (419, ill, Some("one"), " 1"),
        // Another manifest has its own time.
        (420, ill, Some("two"), " 300"),
        (720, ill, Some("two"), "eu -"),
        (730, ill, Some("two"), "eu -"),
    ] {
        assert_eq!(look(seconds, places, of), expected, "{seconds}: {places}");
    }
    let quick = binding(1, &one(), &json!({"decisionConditions": {"tolerationSeconds": 0}}), "eu 1 Unhealthy");
    assert_eq!(Watch::default().look(&quick, &seen, at(0)), (vec!["eu".to_owned()], None));
    let mut held = quick.clone();
    held.spec.suspension = Some(crate::model::Suspension { dispatching: Some(true), ..Default::default() });
    assert_eq!(Watch::default().look(&held, &seen, at(0)), (vec![], None));
}

#[test]
fn a_task_is_as_karmada_writes_it() {
    let task = |application: Value| {
        let ill = binding(6, &even(), &application, "ap 3 Healthy, eu 3 Unhealthy");
        let (change, _) = leave(&ill, &Watch::of(&ill), "eu", &place, at(0)).unwrap();
        assert_eq!(change.clusters, [TargetCluster { name: "ap".to_owned(), replicas: 3 }]);
        let mut task = serde_json::to_value(&change.tasks[0]).unwrap();
        task.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        task
    };
    insta::assert_snapshot!(task(json!({"purgeMode": "Gracefully", "gracePeriodSeconds": 60})), @r#"{"clustersBeforeFailover":["ap","eu"],"creationTimestamp":"2023-11-14T22:13:20Z","fromCluster":"eu","gracePeriodSeconds":60,"message":"it has been unhealthy in eu for 300 s","producer":"resource-binding-application-failover-controller","purgeMode":"Gracefully","reason":"ApplicationFailure","replicas":3}"#);
    let kept = task(json!({"purgeMode": "Never"}));
    assert_eq!((&kept["purgeMode"], &kept["suppressDeletion"]), (&json!("Never"), &json!(true)));
    let direct = task(json!({"purgeMode": "Immediately", "decisionConditions": {"tolerationSeconds": 5}}));
    assert_eq!((&direct["purgeMode"], direct.get("gracePeriodSeconds")), (&json!("Directly"), None));
    assert_eq!(direct["message"], "it has been unhealthy in eu for 5 s");
}

/// What is unhealthy leaves only for where it may be well.
#[test]
fn a_copy_stays_where_nothing_would_take_its_place() {
    let only_eu = json!({"clusterAffinity": {"clusterNames": ["eu"]}});
    let everywhere = json!({});
    let cases = [
        (1, one(), "eu 1 Unhealthy", "leaves"),
        (6, even(), "ap 3 Healthy, eu 3 Unhealthy", "leaves"),
        (6, even(), "ap 3 Unhealthy, eu 3 Unhealthy", "leaves"),
        // All that there is: the image is bad, say.
        (
            6,
            even(),
            "ap 2 Unhealthy, eu 2 Unhealthy, us 2 Unhealthy",
            "nothing would take its place: it would go to ap, us, \
            where it is unhealthy, too",
        ),
        (
            1,
            only_eu,
            "eu 1 Unhealthy",
            "nothing would take its place: 0/3 clusters are available: 1 cluster(s) is in the \
            process of eviction, 2 cluster(s) did not match the placement cluster affinity constraint.",
        ),
        // Every cluster has all: the others do not get more by it.
        (
            2,
            everywhere,
            "ap 2 Healthy, eu 2 Unhealthy, us 2 Healthy",
            "nothing would take its place: no other cluster would get \
            it",
        ),
    ];
    for (replicas, placement, places, expected) in cases {
        let ill = binding(replicas, &placement, &json!({}), places);
        let left = leave(&ill, &Watch::of(&ill), "eu", &place, at(0));
        assert_eq!(left.map_or_else(|stays| stays.to_string(), |_| "leaves".to_owned()), expected, "{places}");
    }
    let rules = json!({"statePreservation": {"rules": [{"aliasLabelName": "id", "jsonPath": "{.id}"}]}});
    let mut ill = binding(6, &even(), &rules, "ap 3 Healthy, eu 3 Unhealthy");
    let left = |binding: &Binding| leave(binding, &Watch::of(binding), "eu", &place, at(0));
    insta::assert_snapshot!(left(&ill).unwrap_err(), @"its state cannot be preserved: the hub has no status of it from eu yet");
    ill.status.aggregated_status[1].status = Some(json!({"id": 7}));
    let tasks = left(&ill).unwrap().0.tasks;
    assert_eq!(tasks[0].preserved_label_state, [("id".to_owned(), "7".to_owned())].into());
    let ill = binding(6, &even(), &json!({}), "ap 3 Healthy, eu 3 Unhealthy");
    assert_eq!(outlook(&ill, &place), ["eu is unhealthy: after 300 s of it, it is left"]);
}

/// A workload that is well nowhere has been everywhere once, and stays where it came to last.
#[test]
fn nothing_bounces() {
    let mut binding = binding(1, &one(), &json!({}), "ap 1 Unhealthy");
    let mut been = vec!["ap".to_owned()];
    let why = loop {
        let place_now = binding.spec.clusters[0].name.clone();
        let mut watch = Watch::default();
        watch.look(&binding, &seen, at(0));
        let (change, failures) = match leave(&binding, &watch, &place_now, &place, at(0)) {
            Ok(left) => left,
            Err(stays) => break stays,
        };
        // The old one is gone in the meantime, as if it were replaced.
        assert_eq!(change.tasks.len(), 1);
        binding.metadata.annotations.insert(FAILED_IN.to_owned(), failures.written().unwrap());
        binding.spec.clusters = change.clusters;
        binding.spec.clusters = place(&binding).unwrap();
        let now = binding.spec.clusters[0].name.clone();
        binding.status.aggregated_status[0].cluster_name.clone_from(&now);
        been.push(now);
        assert!(been.len() <= 3, "{been:?}");
    };
    assert_eq!(been, ["ap", "eu", "us"]);
    insta::assert_snapshot!(why, @"nothing would take its place: 0/3 clusters are available: 1 cluster(s) is in the process of eviction, 2 cluster(s) had seen the workload fail.");
}

#[test]
fn a_failure_is_forgotten_when_something_is_another() {
    let hour = 3600;
    let failed = |times: u32| {
        let mut failures = Failures::default();
        (0..times).for_each(|_| failures.add("eu", "one", at(0)));
        failures
    };
    let away = binding(1, &one(), &json!({}), "ap 1 Healthy");
    let after = |times: u32, seconds: i64, binding: &Binding, of: &str| {
        let mut failures = failed(times);
        let again = failures.look(binding, &|_| Some(of.to_owned()), at(seconds));
        let state = match (failures.0.is_empty(), failures.since("eu")) {
            (true, _) => "forgotten",
            (_, None) => "over",
            (_, Some(_)) => "out",
        };
        format!("{state} {}", again.map_or(0, |again| again.as_secs()))
    };
    assert_eq!(after(1, 60, &away, "one"), "out 3540");
    assert_eq!(after(1, hour, &away, "one"), "over 0");
    // Each time for twice as long, and never for more than a day.
    assert_eq!(after(2, hour, &away, "one"), "out 3600");
    assert_eq!(after(9, hour, &away, "one"), format!("out {}", 23 * hour));
    assert_eq!(after(1, 60, &away, "two"), "forgotten 0");
    assert_eq!(after(1, 60, &binding(1, &one(), &json!({}), "eu 1 Healthy"), "one"), "forgotten 0");
    let mut asked = away.clone();
    asked.spec.reschedule_triggered_at = Some(at(30));
    assert_eq!(after(1, 60, &asked, "one"), "forgotten 0");
    // What is over is kept for the count, and written as it was read.
    let mut over = failed(1);
    over.look(&away, &seen, at(hour));
    let mut binding = away.clone();
    binding.metadata.annotations.insert(FAILED_IN.to_owned(), over.written().unwrap());
    assert_eq!(Failures::of(&binding), over);
    over.add("eu", "one", at(hour));
    assert_eq!((over.0["eu"].times, over.0["eu"].over), (2, false));
    assert_eq!(Failures::default().written(), None);
}
