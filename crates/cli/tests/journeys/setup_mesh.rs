//! The reference's three contexts on two networks, from its own files.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::lists::{all_equal_lists, difference, everything, lists_at_rest, versions};
use crate::world::{World, text};

const TOPOLOGY: &str = include_str!("../../../spec/tests/inputs/setup-mesh/topology.yaml");
const BASE: &str = include_str!("../../../spec/tests/inputs/setup-mesh/base.yaml");
pub(crate) const CONTEXTS: [&str; 3] = ["context-east-1", "context-east-2", "context-west-1"];

/// The reference's mesh in a lab that runs, not applied yet; its file.
pub(crate) async fn lab(world: &mut World) -> std::path::PathBuf {
    let file = world.write("topology.yaml", TOPOLOGY);
    world.write("base.yaml", BASE);
    world.up(&file).await;
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_file_to_proof_and_back() {
    let mut world = World::new();
    let file = lab(&mut world).await;
    let clusters = world.clusters(&CONTEXTS).await;
    let before = lists_at_rest(&clusters).await;

    let plan = ["plan", "-f", text(&file), "--samples"];
    world.run(&plan).await.ends_with(2);
    world.good(&["apply", "-f", text(&file), "--samples", "--yes"]).await;
    world.good(&plan).await;

    crate::golden::compare("multi-primary-mixed", &clusters).await;

    let report = world.proven(&file, 9).await;
    for pair in report["pairs"].as_array().unwrap() {
        let is_west = |end: &str| pair[end].as_str().unwrap().contains("west");
        assert_eq!(pair["gateway"].is_string(), is_west("from") != is_west("to"), "{pair:#}");
        assert!(pair["answered"].as_u64() > Some(0) && pair["failed"] == 0, "{pair:#}");
    }

    nothing_is_written_again(&world, &file, &clusters).await;

    // Verify never runs where somebody else may be, and leaves that as it is.
    let refused = world.run(&["verify", "-f", text(&file), "--namespace", "sample"]).await.ends_with(1);
    assert!(refused.err.contains("namespace `sample` is already in `context-"), "{}", refused.err);
    let mine = ["verify", "-f", text(&file), "--namespace", "proof", "--requests", "20", "-o", "json"];
    let report = world.good(&mine).await.document();
    let identity = "spiffe://cluster.local/ns/proof/sa/helloworld";
    assert!(report["pairs"].as_array().unwrap().iter().all(|pair| pair["identity"] == identity), "{report:#}");

    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
    // There is nothing to tear down any more.
    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
}

/// A second apply reports no changes and leaves every resource version as it is. Controllers of the cluster may still
/// have something to write about pods that have just started; an apply that writes does so each time.
pub(crate) async fn nothing_is_written_again(
    world: &World,
    file: &std::path::Path,
    clusters: &[stolos_cluster::Cluster],
) {
    let mut written = Vec::new();
    for _ in 0..4 {
        let before = all_versions(clusters).await;
        let report = world.good(&["apply", "-f", text(file), "--samples", "--yes", "-o", "json"]).await.document();
        assert_eq!(report["report"]["writes"], 0, "{report:#}");
        for count in ["add", "change", "remove"] {
            assert_eq!(report["summary"][count], 0, "{report:#}");
        }
        written.push(difference(&before, &all_versions(clusters).await));
        if written.last().is_some_and(String::is_empty) {
            return;
        }
    }
    panic!("every apply wrote something:\n{}", written.join("\n"));
}

async fn all_versions(clusters: &[stolos_cluster::Cluster]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for cluster in clusters {
        let listed = versions(&everything(&cluster.client).await.unwrap());
        all.extend(listed.into_iter().map(|line| format!("{} {line}", cluster.name)));
    }
    all
}

/// Pods of a cluster whose label `app` is this one, ready.
pub(crate) async fn ready_pods(client: &kube::Client, namespace: &str, app: &str) -> Vec<String> {
    use k8s_openapi::api::core::v1::Pod;
    let pods: kube::Api<Pod> = kube::Api::namespaced(client.clone(), namespace);
    let list = pods.list(&kube::api::ListParams::default().labels(&format!("app={app}"))).await.unwrap();
    let ready = |pod: &&Pod| {
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none() && conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    list.items.iter().filter(ready).filter_map(|pod| pod.metadata.name.clone()).collect()
}

/// Reasons of the pairs between two clusters, in both directions.
pub(crate) fn reasons(report: &Value, from: &str, to: &str) -> String {
    let pairs = report["pairs"].as_array().unwrap();
    let pair = pairs.iter().find(|p| p["from"] == from && p["to"] == to).unwrap();
    pair["why"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")
}
