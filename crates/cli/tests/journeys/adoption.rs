//! A mesh whose file is gone, or that somebody else calls his own, is read back from its clusters.

use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::json;
use stolos_cluster::Cluster;

use crate::lists::{all_equal_lists, everything, identities};
use crate::setup_mesh::{self, CONTEXTS};
use crate::world::{World, text};

const LABELS: [&str; 2] = ["app.kubernetes.io/managed-by", "stolos.dev/mesh"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_file_is_written_again_and_plans_nothing() {
    let mut world = World::new();
    let file = setup_mesh::lab(&mut world).await;
    world.good(&["apply", "-f", text(&file), "--samples", "--yes"]).await;

    let init = ["init", "--from-clusters", CONTEXTS[0], CONTEXTS[1], CONTEXTS[2], "-o", "found.yaml"];
    let run = world.good(&init).await;
    assert!(!run.err.contains("note:"), "{}", run.err);
    let found = world.path("found.yaml");
    let plan = world.good(&["plan", "-f", text(&found)]).await;
    assert!(plan.out.contains("No changes"), "{}", plan.out);
    world.proven(&found, 9).await;

    // On another machine the root is known by its certificate, and that is enough for as long as nothing is signed.
    let folder = world.path("elsewhere");
    let elsewhere = ["--state", text(&folder), "--force"];
    let run = world.good(&[&init[..], &elsewhere].concat()).await;
    assert!(run.err.contains("its key is not known here"), "{}", run.err);
    world.good(&["plan", "-f", text(&found), "--state", text(&folder)]).await;

    // Nothing says any more that Stolos made it: it is used as it is.
    let clusters = world.clusters(&CONTEXTS).await;
    let mut before = Vec::new();
    for cluster in &clusters {
        disown(cluster).await;
        before.push(identities(&everything(&cluster.client).await.unwrap()));
    }
    world.good(&[&init[..], &["--force"]].concat()).await;
    let plan = world.good(&["plan", "-f", text(&found)]).await;
    assert!(plan.out.contains("No changes") && plan.out.contains("not labelled as Stolos' own"), "{}", plan.out);
    world.proven(&found, 9).await;
    // And nobody takes away what is somebody else's.
    world.run(&["teardown", "-f", text(&found), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
}

/// Takes Stolos' labels off everything in a cluster.
async fn disown(cluster: &Cluster) {
    let off = json!({"metadata": {"labels": {LABELS[0]: null, LABELS[1]: null}}});
    for (_, object) in everything(&cluster.client).await.unwrap() {
        let metadata = &object["metadata"];
        if LABELS.iter().all(|label| metadata["labels"][label].is_null()) || !metadata["ownerReferences"].is_null() {
            continue;
        }
        let (version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = match metadata["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
            None => Api::all_with(cluster.client.clone(), &resource),
        };
        api.patch(metadata["name"].as_str().unwrap(), &PatchParams::default(), &Patch::Merge(&off)).await.unwrap();
    }
}
