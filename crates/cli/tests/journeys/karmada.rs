//! Karmada's own files: the policies name the clusters, and what stood beside them is left alone or done by Stolos.

use crate::lists::{all_equal_lists, lists_at_rest};
use crate::world::{World, text};

const FILES: [(&str, &str); 7] = [
    ("policy-1-even.yaml", include_str!("../../../spec/tests/inputs/karmada/policy-1-even.yaml")),
    ("policy-2-weighted.yaml", include_str!("../../../spec/tests/inputs/karmada/policy-2-weighted.yaml")),
    ("policy-3-with-sleep.yaml", include_str!("../../../spec/tests/inputs/karmada/policy-3-with-sleep.yaml")),
    ("hello.yaml", include_str!("../../../spec/tests/inputs/karmada/hello.yaml")),
    ("sleep.yaml", include_str!("../../../spec/tests/inputs/karmada/sleep.yaml")),
    ("expose.yaml", include_str!("../../../spec/tests/inputs/karmada/expose.yaml")),
    ("remote-secret-as-printed.yaml", include_str!("../../../spec/tests/inputs/karmada/remote-secret-as-printed.yaml")),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_files_to_proof_and_back() {
    let mut world = World::new();
    let paths: Vec<_> = FILES.iter().map(|(name, text)| world.write(name, text)).collect();
    world.up(&paths[0]).await;
    let clusters = world.clusters(&["eu", "ap", "us"]).await;
    let before = lists_at_rest(&clusters).await;

    let files: Vec<_> = paths.iter().flat_map(|path| ["-f", text(path)]).collect();
    let with = |command: &[&'static str]| [command, &files[..]].concat();
    let plan = world.run(&with(&["plan"])).await.ends_with(2);
    assert!(plan.err.contains("the label `istio/multiCluster` is the boolean `true`"), "{}", plan.err);
    assert!(plan.err.contains("the weights (us 2, ap 1, eu 2) divide replicas, not traffic"), "{}", plan.err);
    world.good(&with(&["apply", "--yes"])).await;
    world.good(&with(&["plan"])).await;
    // Any of the policies is the whole mesh.
    let report = world.proven(&paths[2], 9).await;
    for pair in report["pairs"].as_array().unwrap() {
        assert_eq!(pair["gateway"].is_string(), pair["from"] != pair["to"], "{pair:#}");
    }
    world.good(&with(&["teardown", "--yes"])).await;
    all_equal_lists(&clusters, &before).await;
}
