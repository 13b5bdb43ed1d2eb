//! A primary and a remote by the real Helm (contract B.7, C.3): on different networks, then with another primary.

use super::{charts, helm, nothing_is_written_again, releases};
use crate::lists::{all_equal_lists, lists_at_rest};
use crate::world::{World, text};

/// Clusters by name, network and primary.
pub(super) fn mesh(clusters: &[(&str, &str, &str)], control: &str) -> String {
    let head = format!(
        "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: charted}}\nspec:\n  samples: [helloworld, sleep]\n  \
         controlPlane: {{engine: istio, charts: charts, {control}}}\n  clusters:\n"
    );
    let line = |(name, network, primary): &(&str, &str, &str)| match *primary {
        "" => format!("  - {{name: {name}, context: {name}, network: {network}}}\n"),
        primary => {
            format!("  - {{name: {name}, context: {name}, network: {network}, controlPlane: {{primary: {primary}}}}}\n")
        }
    };
    clusters.iter().map(line).fold(head, |text, line| text + &line)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_and_its_remote_by_helm() {
    let Some(helm) = helm() else { return };
    let mut world = World::new();
    charts(&world, "1.28.0");
    let control = "version: 1.28.0";
    let lab = [("one", "east", ""), ("two", "east", ""), ("far", "west", "one")];
    let everyone = world.write("lab.yaml", &mesh(&lab, control));
    let pair = [("one", "east", ""), ("far", "west", "one")];
    let file = world.write("mesh.yaml", &mesh(&pair, control));
    world.up(&everyone).await;
    let clusters = world.clusters(&["one", "two", "far"]).await;
    let before = lists_at_rest(&clusters).await;

    let plan = world.run(&["plan", "-f", text(&file)]).await.ends_with(2);
    assert!(plan.out.contains("control/far/istiod"), "{}", plan.out);
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let expected = [
        "istio-base base-1.28.0 1 deployed",
        "istio-eastwestgateway gateway-1.28.0 1 deployed",
        "istiod istiod-1.28.0 1 deployed",
    ];
    for context in ["one", "far"] {
        assert_eq!(releases(&world, &helm, context).await, expected, "{context}");
    }
    let built = [clusters[0].clone(), clusters[2].clone()];
    crate::golden::compare("istio-primary-remote", &built).await;
    world.proven(&file, 4).await;
    nothing_is_written_again(&world, &file, &[clusters[0].clone(), clusters[2].clone()]).await;
    world.good(&["check", "-f", text(&file)]).await;

    // Another primary comes, and takes the remote over.
    let moved = [("one", "east", ""), ("two", "east", ""), ("far", "west", "two")];
    world.write("mesh.yaml", &mesh(&moved, control));
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.proven(&file, 9).await;
    nothing_is_written_again(&world, &file, &clusters).await;

    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
}
