use jiff::Timestamp;
use serde_json::{Value, json};

use super::floor::{By, Floor, budgets_of};
use super::guard::{Action, Copy, plan};
use super::{Settings, taint, task};
use crate::model::{Binding, Cluster, read};

/// One row of a table: what a cluster is to have and has, as `eu 0/10 ready 10`, with what is special about it.
fn copies(rows: &str) -> Vec<Copy> {
    let copy = |row: &str| {
        let words: Vec<&str> = row.split_whitespace().collect();
        let number = |text: &str| (text != "-").then(|| text.parse().unwrap());
        let (wanted, held) = words[1].split_once('/').unwrap();
        let ready = words.get(2).map_or("0", |word| *word);
        let (least, most) = match ready {
            "?" => (0, number(held).unwrap_or(0)),
            count => (count.parse().unwrap(), count.parse().unwrap()),
        };
        let is = |what: &str| words.contains(&what);
        Copy {
            cluster: words[0].to_owned(),
            wanted: number(wanted),
            held: number(held),
            least,
            most,
            heard: !is("silent") && !is("unasked"),
            ready: !is("silent"),
            leaving: is("leaving"),
            purged: is("purged"),
            left: words.iter().find_map(|word| word.strip_prefix("left=")).and_then(number),
        }
    };
    rows.split(',').map(|row| copy(row.trim())).collect()
}

fn planned(rows: &str, floor: &Floor) -> String {
    let steps = plan(&copies(rows), floor).into_iter().map(|step| {
        let action = match step.action {
            Action::Put(count) => count.to_string(),
            Action::Remove => "gone".to_owned(),
            Action::Leave => "left".to_owned(),
        };
        let wait = if step.wait.is_some() { "…" } else { "" };
        format!("{} {action}{wait}", step.cluster)
    });
    steps.collect::<Vec<_>>().join(", ")
}

/// Each copy as `cluster wanted/held ready`: the steps that are taken now, `…` where something is waited for.
#[test]
fn the_new_ones_are_ready_before_the_old_ones_go() {
    let cases = [
        // A move: first the new ones, then one old one for each new one that is ready.
        ("eu -/10 10, us 10/-", "eu left…, us 10"),
        ("eu -/10 10, us 10/10 0", "eu left…, us 10"),
        ("eu -/10 10, us 10/10 4", "eu 6…, us 10"),
        ("eu -/6 6, us 10/10 7", "eu 3…, us 10"),
        ("eu -/3 3, us 10/10 10", "eu gone, us 10"),
        // What the member says of an older manifest says nothing.
        ("eu -/10 10, us 10/10 ?", "eu left…, us 10"),
        ("eu -/10 ?, us 10/10 10", "eu gone, us 10"),
        // A part moves.
        ("ap 2/2 2, eu 3/6 6, us 5/2 2", "ap 2, eu 6…, us 5"),
        ("ap 2/2 2, eu 3/6 6, us 5/5 4", "ap 2, eu 4…, us 5"),
        // Fewer are wanted: nothing is waited for, unless they are not ready.
        ("eu 1/5 5, us 2/5 5", "eu 5…, us 5…"),
        // Nothing good is lost with what is not good.
        ("eu -/10 0, us 10/10 0", "eu gone, us 10"),
        ("eu -/10 2, us 10/10 0", "eu 2…, us 10"),
        // A silent member: neither counted nor made smaller.
        ("eu -/10 10 silent, us 10/10 10", "eu left…, us 10"),
        ("eu 4/10 10 silent, us 6/6 6", "eu 10…, us 6"),
        ("ap -/5 5, eu 5/5 5 silent, us 5/5 5", "ap left…, eu 5, us 5"),
        // What a Work has let go of is wanted, or is taken over to be taken away.
        ("eu 4/- 0 left=6, us 6/6 6", "eu 4, us 6"),
        ("eu -/- 0 left=6, us 10/10 10", "eu 6, us 10"),
        // What an eviction task keeps stays whole; what is purged goes first.
        ("eu -/10 10 leaving, us 10/10 10", "eu left, us 10"),
        ("eu -/10 10 purged, us 10/10 0", "eu gone, us 10"),
        ("eu -/10 10 silent purged, us 10/10 0", "eu gone, us 10"),
        // And nobody gets more before it is gone, if that can be known.
        ("ap 6/4 4, eu -/4 4 purged, us 2/-", "ap 4…, eu gone, us left…"),
        ("ap 6/4 4, eu -/4 4 silent purged, us 2/-", "ap 6, eu gone, us 2"),
        ("ap 6/4 4, eu -/4 4 unasked purged, us 2/-", "ap 4…, eu gone, us left…"),
        ("ap 6/4 4, eu -/- 0 purged left=4, us 2/-", "ap 4…, eu 4, us left…"),
        ("ap 6/4 4, eu -/- 0 purged, us 2/-", "ap 6, us 2"),
    ];
    let all = Floor::of_all(10);
    for (rows, expected) in cases {
        assert_eq!(planned(rows, &all), expected, "{rows}");
    }
    // To fewer: three of ten.
    assert_eq!(planned("eu 1/5 5, us 2/5 5", &Floor::of_all(3)), "eu 1, us 2");
    // A floor that somebody said lets old ones go earlier, and holds for what is purged, too.
    let said = Floor { least: 8, by: By::Annotation };
    assert_eq!(planned("eu -/10 10, us 10/10 0", &said), "eu 8…, us 10");
    assert_eq!(planned("eu -/10 10 purged, us 10/10 0", &said), "eu 8…, us 10");
    assert_eq!(planned("eu -/10 10 purged, us 10/-", &said), "eu 8…, us 10");
    // What has no replicas counts as one.
    let one = Floor::of_all(1);
    assert_eq!(planned("eu -/1 1, us 1/-", &one), "eu left…, us 1");
    assert_eq!(planned("eu -/1 1, us 1/1 1", &one), "eu gone, us 1");
}

#[test]
fn a_floor_is_a_number_or_a_part() {
    let template = |said: Option<&str>| {
        let mut template = json!({"metadata": {"namespace": "shop"},
            "spec": {"template": {"metadata": {"labels": {"app": "web"}}}}});
        if let Some(said) = said {
            template["metadata"]["annotations"] = json!({"stolos.dev/min-available": said});
        }
        template
    };
    let budget = |name: &str, app: &str, spec: Value| {
        let mut budget = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        budget["spec"]["selector"] = json!({"matchLabels": {"app": app}});
        budget
    };
    let budgets = [
        budget("half", "web", json!({"minAvailable": "50%"})),
        budget("most", "web", json!({"maxUnavailable": 3})),
        budget("other", "db", json!({"minAvailable": 9})),
    ];
    let budgets = budgets_of(&template(None), &budgets);
    let least = |said, policy, wanted| Floor::of(&template(said), policy, &[], wanted).unwrap().least;
    assert_eq!([least(None, None, 10), least(None, None, 0)], [10, 0]);
    assert_eq!([least(Some("8"), None, 10), least(Some("75%"), None, 10), least(None, Some("30%"), 10)], [8, 8, 3]);
    // Who scales down means it; the last one stays all the same.
    assert_eq!([least(Some("8"), None, 5), least(Some("0"), None, 5), least(Some("0"), None, 0)], [5, 1, 0]);
    let strictest = Floor::of(&template(None), None, &budgets, 10).unwrap();
    assert_eq!(strictest, Floor { least: 7, by: By::Budget("most".to_owned()) });
    let (all, why) = Floor::of(&template(Some("most")), None, &[], 10).unwrap_err();
    assert_eq!(all, Floor::of_all(10));
    insta::assert_snapshot!(why, @"stolos.dev/min-available is `most`; write a number of replicas, as `2`, or a part of them, as `50%`");
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

fn cluster(name: &str, ready: &str, taints: &Value) -> Cluster {
    let ready = json!([{"type": "Ready", "status": ready, "reason": "", "message": "", "lastTransitionTime": at(0)}]);
    read(&json!({"metadata": {"name": name}, "spec": {"taints": taints}, "status": {"conditions": ready}})).unwrap().0
}

/// By the condition and for how long it has been so, with 300 s of patience: the taints, and when to look again.
#[test]
fn a_member_that_is_not_ready_is_tainted() {
    let taints = |status: &str, seconds: i64, before: &Value, settings: &Settings| {
        let cluster = cluster("eu", status, before);
        let ready = cluster.status.conditions.first();
        let (after, again) = taint::wanted(&cluster.spec.taints, ready, at(seconds), settings);
        let said = after.iter().map(|taint| {
            let key = taint.key.strip_prefix("cluster.karmada.io/").unwrap_or(&taint.key);
            format!("{key}:{:?}", taint.effect)
        });
        let again = again.map_or_else(|| "-".to_owned(), |it| it.as_secs().to_string());
        format!("{again} {}", said.collect::<Vec<_>>().join(" ")).trim().to_owned()
    };
    let (none, settings) = (json!([]), Settings::default());
    let mine = json!([{"key": "mine", "effect": "NoExecute"},
        {"key": "cluster.karmada.io/not-ready", "effect": "NoSchedule"}]);
    // What somebody wrote without a time has been there since it was first seen.
    let seen = cluster("eu", "True", &mine);
    let (once, _) = taint::wanted(&seen.spec.taints, seen.status.conditions.first(), at(7), &settings);
    let (twice, _) = taint::wanted(&once, seen.status.conditions.first(), at(70), &settings);
    assert_eq!((once[0].time_added, twice[0].time_added), (Some(at(7)), Some(at(7))));
    let rows = [
        taints("True", 900, &none, &settings),
        taints("False", 10, &none, &settings),
        taints("False", 300, &none, &settings),
        taints("Unknown", 300, &none, &settings),
        // A clock that is behind waits longer.
        taints("False", -50, &none, &settings),
        taints("False", 900, &none, &Settings { evicts: false, ..settings }),
        taints("True", 0, &mine, &settings),
        taints("Unknown", 0, &mine, &settings),
    ];
    insta::assert_snapshot!(rows.join("\n"), @"
    -
    290 not-ready:NoSchedule
    - not-ready:NoSchedule not-ready:NoExecute
    - unreachable:NoSchedule unreachable:NoExecute
    300 not-ready:NoSchedule
    - not-ready:NoSchedule
    - mine:NoExecute
    300 mine:NoExecute unreachable:NoSchedule
    ");
}

/// A binding of ten replicas in `eu` and `us`, with its policy's tolerations.
fn binding(tolerations: &Value) -> Binding {
    read(&json!({"metadata": {"name": "web", "generation": 2}, "spec": {
        "resource": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "replicas": 10,
        "placement": {"clusterTolerations": tolerations, "replicaScheduling": {"replicaSchedulingType": "Divided"}},
        "clusters": [{"name": "eu", "replicas": 4}, {"name": "us", "replicas": 6}]},
        "status": {"schedulerObservedGeneration": 2}}))
    .unwrap()
    .0
}

#[test]
fn what_is_not_tolerated_leaves() {
    let lost = json!([{"key": "cluster.karmada.io/not-ready", "effect": "NoExecute", "timeAdded": at(0)}]);
    let evicted = |tolerations: Value, ready: [&str; 2], seconds: i64| {
        let clusters = [cluster("eu", ready[0], &lost), cluster("us", ready[1], &json!([]))];
        match task::evict(&binding(&tolerations), &clusters, at(seconds), &Settings::default()) {
            None => "stays".to_owned(),
            Some(change) if change.news.is_empty() => format!("in {} s", change.again.unwrap().as_secs()),
            Some(change) => {
                let task = &change.tasks[0];
                let clusters: Vec<_> = change.clusters.iter().map(|it| (it.name.as_str(), it.replicas)).collect();
                format!("{} {:?} leaves {clusters:?}", task.from_cluster, task.replicas)
            }
        }
    };
    let tolerated =
        |seconds: Value| json!([{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}]);
    let rows = [
        evicted(json!([]), ["False", "True"], 0),
        evicted(tolerated(60.into()), ["False", "True"], 10),
        evicted(tolerated(60.into()), ["False", "True"], 60),
        evicted(tolerated(Value::Null), ["False", "True"], 9_000),
        // There is nowhere to go, or it is the hub that is cut off.
        evicted(json!([]), ["False", "False"], 0),
        // It is ready again: its taint is about to go.
        evicted(json!([]), ["True", "True"], 0),
    ];
    insta::assert_snapshot!(rows.join("\n"), @r#"
    eu Some(4) leaves [("us", 6)]
    in 50 s
    eu Some(4) leaves [("us", 6)]
    stays
    stays
    stays
    "#);
}

#[test]
fn what_leaves_has_left_when_all_others_are_well() {
    let lost = json!([{"key": "cluster.karmada.io/not-ready", "effect": "NoExecute", "timeAdded": at(0)}]);
    let mine = json!([{"key": "mine", "effect": "NoExecute", "timeAdded": at(0)}]);
    let assessed = |of_us: i64, healthy: bool, eu: Option<Cluster>, seconds: i64| {
        let mut binding = binding(&json!([]));
        binding.spec.clusters.remove(0);
        binding.spec.clusters[0].replicas = of_us;
        binding.spec.graceful_eviction_tasks = serde_json::from_value(json!([{"fromCluster": "eu", "replicas": 4,
            "reason": "TaintUntolerated", "producer": "TaintManager", "creationTimestamp": at(0)}]))
        .unwrap();
        let health = if healthy { "Healthy" } else { "Unhealthy" };
        binding.status.aggregated_status =
            serde_json::from_value(json!([{"clusterName": "us", "applied": true, "health": health}])).unwrap();
        let clusters: Vec<Cluster> = eu.into_iter().chain([cluster("us", "True", &json!([]))]).collect();
        match task::assess(&binding, &clusters, &|_| true, at(seconds), &Settings::default()) {
            None => "stays".to_owned(),
            Some(change) if change.news.is_empty() => format!("in {} s", change.again.unwrap().as_secs()),
            Some(change) => {
                let clusters: Vec<_> = change.clusters.iter().map(|it| (it.name.as_str(), it.replicas)).collect();
                format!("{:?} {clusters:?}", change.news[0].1)
            }
        }
    };
    let (gone, back) = (Some(cluster("eu", "False", &lost)), Some(cluster("eu", "True", &lost)));
    let cleared = Some(cluster("eu", "True", &mine));
    let rows = [
        // What is lost stays as it is, whatever time it takes, until it is back or no longer the hub's.
        assessed(10, true, gone.clone(), 9_000),
        assessed(10, true, None, 1),
        // It is back: nothing, something, all has taken its place.
        assessed(6, true, back.clone(), 1),
        assessed(10, false, back.clone(), 100),
        assessed(10, true, back.clone(), 1),
        assessed(10, false, back, 600),
        // A cluster that is well and that somebody clears.
        assessed(10, false, cleared.clone(), 100),
        assessed(10, true, cleared.clone(), 1),
        assessed(6, true, cleared, 600),
    ];
    insta::assert_snapshot!(rows.join("\n"), @r#"
    stays
    Gone [("us", 10)]
    Returned [("eu", 4), ("us", 6)]
    in 500 s
    Replaced [("us", 10)]
    Returned [("eu", 4), ("us", 10)]
    in 500 s
    Replaced [("us", 10)]
    TimedOut [("us", 6)]
    "#);
}

/// A copy that is to go at once keeps its place when the one that was to have its replicas leaves the hub.
#[test]
fn what_was_given_to_a_cluster_that_left_counts_for_nothing() {
    let mut binding = binding(&json!([]));
    binding.spec.clusters.remove(0);
    binding.spec.clusters[0].replicas = binding.spec.replicas;
    binding.spec.graceful_eviction_tasks = serde_json::from_value(json!([{"fromCluster": "eu", "replicas": 4,
        "purgeMode": "Directly", "reason": "TaintUntolerated", "producer": "TaintManager", "creationTimestamp": at(0)}]))
    .unwrap();
    let only_eu = [cluster("eu", "True", &json!([]))];
    let change = task::assess(&binding, &only_eu, &|_| true, at(1), &Settings::default()).unwrap();
    assert!(change.tasks.is_empty(), "{:?}", change.news);
    assert!(change.clusters.iter().any(|target| target.name == "eu" && target.replicas == 4), "{:?}", change.clusters);
}

/// What a task of `eu` becomes: with these fields more, with Works in these clusters, after so many seconds.
#[test]
fn a_task_ends_as_its_policy_says() {
    let assessed = |more: Value, works: &[&str], seconds: i64| {
        let mut binding = binding(&json!([]));
        binding.spec.clusters.remove(0);
        binding.spec.clusters[0].replicas = 6;
        let mut task = json!({"fromCluster": "eu", "replicas": 4, "reason": "ApplicationFailure",
            "producer": "resource-binding-application-failover-controller", "creationTimestamp": at(0)});
        task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        binding.spec.graceful_eviction_tasks = serde_json::from_value(json!([task])).unwrap();
        let clusters = [cluster("eu", "True", &json!([])), cluster("us", "True", &json!([]))];
        match task::assess(&binding, &clusters, &|name| works.contains(&name), at(seconds), &Settings::default()) {
            None => "stays".to_owned(),
            Some(change) if change.news.is_empty() => format!("in {} s", change.again.unwrap().as_secs()),
            Some(change) => format!("{:?} {}", change.news[0].1, change.clusters.len()),
        }
    };
    let (both, us) = (["eu", "us"], ["us"]);
    let direct = json!({"purgeMode": "Directly"});
    let state = json!({"purgeMode": "Directly", "preservedLabelState": {"id": "7"}});
    for (more, works, seconds, expected) in [
        // That its cluster is well is no news, other than with a taint: nothing comes back.
        (json!({}), &both[..], 1, "in 599 s"),
        (json!({"gracePeriodSeconds": 60}), &both, 60, "TimedOut 1"),
        // Kept, until somebody says that it may go.
        (json!({"purgeMode": "Never", "suppressDeletion": true}), &both, 9_000, "stays"),
        (json!({"purgeMode": "Never", "suppressDeletion": false}), &both, 1, "TimedOut 1"),
        (direct.clone(), &both, 9_000, "stays"),
        (direct, &us, 1, "Replaced 1"),
        // What it said is with the next one first, if there is one in time.
        (state.clone(), &both, 1, "stays"),
        (state.clone(), &[], 1, "in 599 s"),
        (state.clone(), &us, 1, "Replaced 1"),
        (state, &[], 600, "Replaced 1"),
    ] {
        assert_eq!(assessed(more.clone(), works, seconds), expected, "{more} {works:?} {seconds}");
    }
}

/// Seed 78,312: it left for a cluster that then left the hub, and nothing may be placed where it is to leave.
#[test]
fn what_leaves_directly_stays_where_its_new_place_has_gone() {
    let mut binding = binding(&json!([]));
    binding.spec.clusters.remove(0);
    let clusters = [cluster("eu", "True", &json!([]))];
    for (producer, seconds, expected) in [
        ("resource-binding-application-failover-controller", 1, Some(None)),
        ("resource-binding-application-failover-controller", 600, Some(Some(task::News::TimedOut))),
        // As soon as the taint is gone, it may stay anyway.
        (task::TAINT_MANAGER, 1, Some(Some(task::News::Returned))),
    ] {
        binding.spec.graceful_eviction_tasks = serde_json::from_value(json!([{"fromCluster": "eu", "replicas": 4,
            "reason": "R", "producer": producer, "purgeMode": "Directly", "creationTimestamp": at(0)}]))
        .unwrap();
        let change = task::assess(&binding, &clusters, &|_| true, at(seconds), &Settings::default());
        let news = change.map(|change| change.news.first().map(|(_, news)| *news));
        assert_eq!(news, expected, "{producer} after {seconds} s");
    }
}

#[test]
fn what_cannot_be_preserved_stays() {
    let lost = json!([{"key": "cluster.karmada.io/not-ready", "effect": "NoExecute", "timeAdded": at(0)}]);
    let clusters = [cluster("eu", "False", &lost), cluster("us", "True", &json!([]))];
    let mut binding = binding(&json!([]));
    let rules = json!([{"aliasLabelName": "from", "jsonPath": "{.jobID}"}]);
    binding.spec.failover =
        serde_json::from_value(json!({"cluster": {"purgeMode": "Directly", "statePreservation": {"rules": rules}}}))
            .unwrap();
    let evicted = |binding: &Binding| task::evict(binding, &clusters, at(0), &Settings::default()).unwrap();
    let kept = evicted(&binding);
    assert_eq!((kept.news, kept.clusters.len()), (vec![], 2));
    insta::assert_snapshot!(kept.kept[0].1, @"the hub has no status of it from eu yet");
    binding.status.aggregated_status =
        serde_json::from_value(json!([{"clusterName": "eu", "applied": true, "status": {"jobID": "ab"}}])).unwrap();
    let task = &evicted(&binding).tasks[0];
    assert_eq!(json!(task.preserved_label_state), json!({"from": "ab"}));
    assert_eq!(task.clusters_before_failover, ["eu", "us"]);
}
