//! ristioctl's own file: two clusters on networks of their own, HelloWorld asked for, and a kubeconfig named in it.

use crate::lists::{all_equal_lists, lists_at_rest};
use crate::world::{World, text};

const MESH: &str = include_str!("../../../spec/tests/inputs/ristioctl/mesh.yaml");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_file_to_proof_and_back() {
    let mut world = World::new();
    let file = world.write("mesh.yaml", MESH);
    world.up(&file).await;
    // The file says where its kubeconfig is; the lab puts it there, and the commands find it by themselves.
    assert!(world.path("kubeconfig-istio-demo.yaml").is_file());
    assert!(world.path("kubeconfig").is_file(), "the environment's is written as well");

    let clusters = world.clusters(&["cluster1", "cluster2"]).await;
    let before = lists_at_rest(&clusters).await;

    world.run(&["plan", "-f", text(&file)]).await.ends_with(2);
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.good(&["plan", "-f", text(&file)]).await;
    let report = world.proven(&file, 4).await;
    for pair in report["pairs"].as_array().unwrap() {
        assert_eq!(pair["gateway"].is_string(), pair["from"] != pair["to"], "{pair:#}");
    }
    let again = world.good(&["apply", "-f", text(&file), "--yes", "-o", "json"]).await.document();
    assert_eq!(again["report"]["writes"], 0, "{again:#}");

    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
}
