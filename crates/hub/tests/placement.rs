//! The examples of docs/placement.md are true, and policies of the shapes people write are accepted.

use serde_json::{Value, json};
use stolos_hub::choose::choose;
use stolos_hub::divide::{Algorithm, Candidate, Division, NameOrder, Strategy};
use stolos_hub::model::{
    Binding, Cluster, ClusterTaintPolicy, OverridePolicy, PropagationPolicy, TargetCluster, WorkloadRebalancer, read,
};
use stolos_hub::place::{Settings, place};
use stolos_hub::{admit, overrides, why};

const PAGE: &str = include_str!("../../../docs/placement.md");

/// The blocks of the page that are marked with `language`.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    PAGE.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap()).collect()
}

/// The rows of the tables whose first column is `replicas`, with the table's column names.
fn rows(columns: &str) -> Vec<Vec<&'static str>> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let mut inside = false;
    let mut rows = Vec::new();
    for line in PAGE.lines() {
        inside = (inside || line == columns) && line.starts_with('|');
        if inside && line != columns && !line.starts_with("|---") {
            rows.push(cells(line));
        }
    }
    rows
}

fn pairs(text: &str) -> Vec<(String, i64)> {
    text.split_whitespace().map(|word| (word[..1].to_owned(), word[1..].parse().unwrap())).collect()
}

fn shown(clusters: &[TargetCluster]) -> String {
    clusters.iter().map(|cluster| format!("{}{}", cluster.name, cluster.replicas)).collect::<Vec<_>>().join(" ")
}

#[test]
fn the_tables_are_true() {
    let weighted = rows("| replicas | weights | names | newest | v1.2 |");
    assert_eq!(weighted.len(), 8);
    for row in weighted {
        let candidates: Vec<Candidate> = (pairs(row[1]).into_iter())
            .map(|(name, weight)| Candidate { name, tier: 0, weight, available: 0 })
            .collect();
        for (algorithm, expected) in [(Algorithm::Newest, row[3]), (Algorithm::V1_2, row[4])] {
            let division = Division {
                algorithm,
                strategy: Strategy::StaticWeight,
                replicas: row[0].parse().unwrap(),
                candidates: &candidates,
                current: &[],
                fresh: false,
                order: if row[2] == "z–a" { NameOrder::Descending } else { NameOrder::Ascending },
                keep_empty: false,
            };
            assert_eq!(shown(&division.divide().unwrap().clusters), expected, "{row:?} {algorithm:?}");
        }
    }
    // The first table by room is of dynamic weights, the second of Aggregated.
    let by_room = rows("| replicas | room | runs | fresh | newest | v1.2 |");
    assert_eq!(by_room.len(), 12);
    for (at, row) in by_room.iter().enumerate() {
        let strategy = if at < 7 { Strategy::DynamicWeight } else { Strategy::Aggregated };
        let candidates: Vec<Candidate> = (pairs(row[1]).into_iter())
            .map(|(name, available)| Candidate { name, tier: 0, weight: 0, available })
            .collect();
        let current: Vec<TargetCluster> =
            pairs(row[2]).into_iter().map(|(name, replicas)| TargetCluster { name, replicas }).collect();
        for (algorithm, expected) in [(Algorithm::Newest, row[4]), (Algorithm::V1_2, row[5])] {
            let division = Division {
                algorithm,
                strategy,
                replicas: row[0].parse().unwrap(),
                candidates: &candidates,
                current: &current,
                fresh: row[3] == "yes",
                order: NameOrder::Ascending,
                keep_empty: false,
            };
            let divided = division.divide().map_or("too little".to_owned(), |divided| shown(&divided.clusters));
            assert!(expected == "–" || divided == expected, "{row:?} {algorithm:?}: {divided}");
        }
    }
}

/// Clusters that serve Deployments and Services; the lost one is tainted.
fn clusters(names: &[&str], lost: &str) -> Vec<Cluster> {
    let cluster = |name: &&str| {
        let taints = match *name == lost {
            true => json!([{"key": "cluster.karmada.io/unreachable", "effect": "NoSchedule"}]),
            false => json!([]),
        };
        let served = json!([{"groupVersion": "apps/v1", "resources": [{"name": "deployments", "kind": "Deployment"}]},
            {"groupVersion": "v1", "resources": [{"name": "services", "kind": "Service"}]}]);
        let cluster =
            json!({"metadata": {"name": name}, "spec": {"taints": taints}, "status": {"apiEnablements": served}});
        read(&cluster).unwrap().0
    };
    names.iter().map(cluster).collect()
}

#[test]
fn the_first_policy_does_what_is_said_of_it_and_why() {
    let policy: Value = serde_saphyr::from_str(blocks("yaml")[0]).unwrap();
    let policies = [read::<PropagationPolicy>(&policy).unwrap().0];
    let binding = |kind: &str, api_version: &str, replicas: i64| -> Binding {
        let binding = json!({"metadata": {"name": "hello"}, "spec": {
            "resource": {"apiVersion": api_version, "kind": kind, "namespace": "default", "name": "hello"},
            "replicas": replicas, "placement": policy["spec"]["placement"]}});
        read(&binding).unwrap().0
    };
    let placed = |binding: &Binding, lost: &str| {
        place(binding, &clusters(&["ap", "eu", "us", "other"][..3], lost), &|_| 0, Settings::default())
    };
    let deployment = binding("Deployment", "apps/v1", 10);
    assert_eq!(
        placed(&deployment, "").outcome.event(),
        "Binding has been scheduled successfully. Result: {ap:2, eu:4, us:4}"
    );
    assert!(PAGE.contains("Ten replicas become eu 4, ap 2, us 4."));
    assert_eq!(
        placed(&binding("Service", "v1", 0), "").outcome.event(),
        "Binding has been scheduled successfully. Result: {ap:0, eu:0, us:0}"
    );
    let template =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "hello", "namespace": "default"}});
    let choice = choose(&template, &policies, Algorithm::Newest, false);
    let why = why::why(&deployment.spec.resource, choice.as_ref(), Some(&placed(&deployment, "us")));
    assert_eq!(why.to_string(), blocks("why")[0]);
}

#[test]
fn the_rebalancer_is_one() {
    let rebalancer: Value = serde_saphyr::from_str(blocks("yaml")[1]).unwrap();
    let (read, unknown) = read::<WorkloadRebalancer>(&rebalancer).unwrap();
    assert_eq!((unknown, read.spec.workloads[0].name.as_str()), (vec![], "hello"));
}

#[test]
fn the_override_does_what_is_said_of_it() {
    let policy: Value = serde_saphyr::from_str(blocks("yaml")[2]).unwrap();
    let (policy, unknown) = read::<OverridePolicy>(&policy).unwrap();
    assert_eq!((unknown, admit::override_problems(&policy)), (vec![], vec![]));
    let template = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "hello", "namespace": "default"},
        "spec": {"template": {"spec": {"containers": [{"name": "hello", "image": "docker.io/podinfo:6"}]}}}});
    let of = |cluster: &str| {
        let mut manifest = template.clone();
        overrides::apply(&mut manifest, &clusters(&[cluster], "")[0], std::slice::from_ref(&policy)).unwrap();
        manifest["spec"]["template"]["spec"]["containers"][0].clone()
    };
    assert_eq!(of("eu"), template["spec"]["template"]["spec"]["containers"][0]);
    let expected =
        json!({"name": "hello", "image": "mirror.example/podinfo:6", "env": [{"name": "REGION", "value": "ap"}]});
    assert_eq!(of("ap"), expected);
}

#[test]
fn the_messages_are_the_ones_that_come() {
    let policy = |placement: Value| {
        let selectors = json!([{"apiVersion": "v1", "kind": "Service"}]);
        json!({"metadata": {"name": "p"}, "spec": {"resourceSelectors": selectors, "placement": placement}})
    };
    let spread = |most: i64, least: i64| {
        let constraint = json!({"spreadByField": "cluster", "maxGroups": most, "minGroups": least});
        read::<PropagationPolicy>(&policy(json!({"spreadConstraints": [constraint]}))).unwrap().0
    };
    let (_, unknown) = read::<PropagationPolicy>(&policy(json!({"clusterAffinity": {"clusterName": ["eu"]}}))).unwrap();
    let said = [unknown, admit::problems(&spread(2, 3)), admit::warnings(&spread(0, 1), Algorithm::Newest)].concat();
    let said: Vec<String> = said.iter().map(|problem| format!("{problem}\n")).collect();
    assert_eq!(said.concat(), blocks("text")[0]);
}

/// Shapes of policies that Karmada's users write, one file each.
#[test]
fn policies_of_every_shape_are_accepted() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/policies");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10);
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut policy: Value = serde_saphyr::from_str(&text).unwrap();
        let found = match policy["kind"].as_str().unwrap() {
            "PropagationPolicy" | "ClusterPropagationPolicy" => {
                admit::default(&mut policy, "6f0c");
                let (read_back, unknown) = read::<PropagationPolicy>(&policy).unwrap();
                [unknown, admit::problems(&read_back)].concat()
            }
            "ClusterTaintPolicy" => {
                let (read_back, unknown) = read::<ClusterTaintPolicy>(&policy).unwrap();
                [unknown, admit::taint_problems(&read_back, &[]), admit::taint_warnings(&read_back)].concat()
            }
            _ => {
                admit::default_override(&mut policy);
                let (read_back, unknown) = read::<OverridePolicy>(&policy).unwrap();
                [unknown, admit::override_problems(&read_back)].concat()
            }
        };
        assert_eq!(found, [], "{}", file.display());
    }
}
