//! `create-mesh` in asmcli's form: a kubeconfig for each cluster, and nothing else.

use std::path::PathBuf;

use crate::lists::{all_equal_lists, lists_at_rest};
use crate::world::{World, text};

const GATEWAY: &str = include_str!("../../../spec/tests/inputs/asmcli/eastwest.yaml");

/// Clusters that run, on this network or each on one of its own, and a kubeconfig for each of them alone.
pub(crate) async fn clusters_of_a_fleet(world: &mut World, network: &str, contexts: &[&str]) -> Vec<PathBuf> {
    let network = |context: &str| if network.is_empty() { format!("there-{context}") } else { network.to_owned() };
    let lines = contexts.iter().map(|context| format!("- {context}: {}\n", network(context)));
    let lab = world.write("lab.yaml", &lines.collect::<String>());
    world.up(&lab).await;
    let all = kube::config::Kubeconfig::read_from(world.path("kubeconfig")).unwrap();
    let mut files = Vec::new();
    for context in contexts {
        let mut one = all.clone();
        one.contexts.retain(|c| c.name == *context);
        let named = one.contexts[0].context.clone().unwrap();
        one.clusters.retain(|c| c.name == named.cluster);
        one.auth_infos.retain(|u| Some(&u.name) == named.user.as_ref());
        one.current_context = Some((*context).to_owned());
        files.push(world.write(&format!("{context}.kubeconfig"), &serde_saphyr::to_string(&one).unwrap()));
    }
    // Nobody finds them all in one place.
    std::fs::rename(world.path("kubeconfig"), world.path("all")).unwrap();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_kubeconfigs_become_one_mesh_and_go_apart_again() {
    let contexts = ["cn-1", "cn-2", "cn-3"];
    let mut world = World::new();
    let files = clusters_of_a_fleet(&mut world, "", &contexts).await;
    let [one, two, three] = [0, 1, 2].map(|index: usize| text(&files[index]));
    let mut clusters = Vec::new();
    for (context, file) in contexts.iter().zip(&files) {
        let kubeconfig = stolos_cluster::Kubeconfig::find(Some(file), None).unwrap();
        clusters.push(stolos_cluster::connect(&kubeconfig, context, context).await.unwrap());
    }
    let before = lists_at_rest(&clusters).await;

    let asked = ["create-mesh", "my-fleet", one, two, three, "--write", "mesh.yaml"];
    // It only plans where it is told so, and does nothing where nobody can say yes.
    world.run(&[&asked[..], &["--dry-run"]].concat()).await.ends_with(2);
    world.run(&asked).await.ends_with(1);
    assert!(!world.path("mesh.yaml").exists());
    let built = world.good(&[&asked[..], &["--yes"]].concat()).await;
    assert!(built.out.contains("9 of 9 pairs pass"), "{}", built.out);

    // The file that it wrote is all that is needed from here on.
    let file = world.path("mesh.yaml");
    world.good(&["plan", "-f", text(&file)]).await;
    let report = world.proven(&file, 9).await;
    for pair in report["pairs"].as_array().unwrap() {
        assert_eq!(pair["gateway"].is_string(), pair["from"] != pair["to"], "{pair:#}");
    }
    // Again, as asmcli is run again for every change: the clusters' own labels now say their networks.
    let again = world.good(&[&asked[..], &["--yes", "--no-verify"]].concat()).await;
    assert!(again.out.contains("No changes") && !again.err.contains("warning"), "{}\n{}", again.out, again.err);

    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
}

/// The system's own documents put two separate networks on `--network default`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_default_network_for_clusters_that_cannot_dial_each_other_is_named() {
    let mut world = World::new();
    let files = clusters_of_a_fleet(&mut world, "", &["cn-1", "cn-2"]).await;
    let gateway = world.write("eastwest.yaml", GATEWAY);
    let run = world
        .run(&[
            "create-mesh",
            "my-fleet",
            text(&files[0]),
            text(&files[1]),
            "--gateway",
            text(&gateway),
            "--yes",
            "-D",
            ".",
        ])
        .await
        .ends_with(2);
    assert!(run.err.contains("`cn-1` and `cn-2` are on one network, `default`"), "{}", run.err);
    let check = world.run(&["check", "-f", text(&world.path("mesh.yaml"))]).await.ends_with(2);
    assert!(check.out.contains("Begin with D-08"), "{}", check.out);
}
