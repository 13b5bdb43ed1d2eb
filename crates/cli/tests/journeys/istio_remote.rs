//! The files of a shared control plane, as they are: the remote's own kubeconfig, and the values of `istio-remote`.

use crate::asmcli::clusters_of_a_fleet;
use crate::lists::{all_equal_lists, lists_at_rest};
use crate::world::{World, text};

const VALUES: &str = include_str!("../../../spec/tests/inputs/istio-remote/values.yaml");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_files_to_proof_and_back() {
    let mut world = World::new();
    let names = ["istio-control-plane", "istio-remote1"];
    let files = clusters_of_a_fleet(&mut world, "flat", &names).await;
    let values = world.write("values.yaml", VALUES);
    // The file that generate-kubeconfig.sh wrote has no more than a name.
    let remote = world.path("istio-remote1");
    std::fs::rename(&files[1], &remote).unwrap();
    std::fs::rename(&files[0], world.path("kubeconfig")).unwrap();
    let mut clusters = Vec::new();
    for (name, file) in names.iter().zip([world.path("kubeconfig"), remote.clone()]) {
        let kubeconfig = stolos_cluster::Kubeconfig::find(Some(&file), None).unwrap();
        clusters.push(stolos_cluster::connect(&kubeconfig, name, name).await.unwrap());
    }
    let before = lists_at_rest(&clusters).await;

    let files = ["-f", text(&remote), "-f", text(&values), "--primary", names[0]];
    let with = |command: &[&'static str]| [command, &files[..]].concat();
    let plan = world.run(&with(&["plan"])).await.ends_with(2);
    assert!(plan.err.contains("Mixer and its statsd bridge are no more"), "{}", plan.err);
    world.good(&with(&["apply", "--yes"])).await;
    world.good(&with(&["plan"])).await;
    let proof = world.good(&with(&["verify"])).await;
    assert!(proof.out.contains("4 of 4 pairs pass"), "{}", proof.out);
    world.good(&with(&["teardown", "--yes"])).await;
    all_equal_lists(&clusters, &before).await;
}
