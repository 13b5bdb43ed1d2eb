//! Clusters that use the control plane of another, on its network and on another one (contract B.7, C.3): built, proven
//! by traffic, led to another primary, and taken away again.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams};
use serde_json::Value;
use stolos_cluster::Cluster;

use crate::lists::{all_equal_lists, equal_lists, everything, lists_at_rest};
use crate::setup_mesh::{nothing_is_written_again, ready_pods};
use crate::traffic::Traffic;
use crate::world::{World, eventually, text};

/// A mesh of clusters by name, network and primary.
fn mesh(clusters: &[(&str, &str, &str)]) -> String {
    let head = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: shared}\n\
                spec:\n  samples: [helloworld, sleep]\n  clusters:\n";
    let line = |(name, network, primary): &(&str, &str, &str)| match *primary {
        "" => format!("  - {{name: {name}, context: {name}, network: {network}}}\n"),
        primary => {
            format!("  - {{name: {name}, context: {name}, network: {network}, controlPlane: {{primary: {primary}}}}}\n")
        }
    };
    clusters.iter().map(line).fold(head.to_owned(), |text, line| text + &line)
}

/// Kinds and names of what is ours in a cluster, without what controllers made of it.
async fn ours(cluster: &Cluster) -> String {
    let all = everything(&cluster.client).await.unwrap();
    let owned = |object: &Value| {
        object["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "stolos"
            && object["metadata"]["ownerReferences"].is_null()
            && object["metadata"]["namespace"] != "sample"
    };
    let names: Vec<_> = all.iter().filter(|(_, object)| owned(object)).map(|(key, _)| key.as_str()).collect();
    names.join("\n")
}

/// Whom the proxies of `cluster` are connected to, as `proxy-status` says it.
async fn served_by(world: &World, file: &std::path::Path, cluster: &str) -> BTreeSet<String> {
    let report = world.good(&["proxy-status", "-f", text(file), "-o", "json"]).await.document();
    let proxies = report["proxies"].as_array().unwrap().iter().filter(|proxy| proxy["cluster"] == cluster);
    proxies.filter_map(|proxy| proxy["istiod"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_remote_on_its_primarys_network() {
    let mut world = World::new();
    let file = world.write("mesh.yaml", &mesh(&[("one", "flat", ""), ("two", "flat", "one")]));
    world.up(&file).await;
    let clusters = world.clusters(&["one", "two"]).await;
    let before = lists_at_rest(&clusters).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    crate::golden::compare("primary-remote-one-network", &clusters).await;
    let report = world.proven(&file, 4).await;
    let gateways: BTreeSet<_> =
        report["pairs"].as_array().unwrap().iter().map(|pair| pair["gateway"].to_string()).collect();
    assert_eq!(gateways, BTreeSet::from(["null".to_owned()]), "one network: everybody is reached directly");
    nothing_is_written_again(&world, &file, &clusters).await;
    insta::assert_snapshot!(ours(&clusters[1]).await, @r"
    ClusterRole.rbac.authorization.k8s.io -/istio-reader-clusterrole-istio-system
    ClusterRoleBinding.rbac.authorization.k8s.io -/istio-reader-clusterrole-istio-system
    ConfigMap. istio-system/stolos-mesh
    EndpointSlice.discovery.k8s.io istio-system/istiod
    MutatingWebhookConfiguration.admissionregistration.k8s.io -/istio-sidecar-injector
    Namespace. -/istio-system
    Namespace. -/sample
    Secret. istio-system/stolos-peer-one
    Service. istio-system/istiod
    ServiceAccount. istio-system/istio-reader-service-account
    ");
    let status = world.good(&["status", "-f", text(&file), "-o", "json"]).await.document();
    assert_eq!(status["clusters"][1]["primary"], "one");
    assert_eq!(status["clusters"][1]["peers"].as_array().map(Vec::len), Some(0), "{status:#}");
    world.good(&["check", "-f", text(&file)]).await;
    let istiod = ready_pods(&clusters[0].client, "istio-system", "istiod").await;
    assert_eq!(served_by(&world, &file, "two").await, istiod.into_iter().collect());

    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remotes_on_other_networks_and_a_primary_that_is_replaced() {
    let mut world = World::new();
    let everyone = [("one", "east", ""), ("two", "west", ""), ("far", "north", "one"), ("near", "east", "one")];
    let file = world.write("mesh.yaml", &mesh(&everyone));
    world.up(&file).await;
    let clusters = world.clusters(&["one", "two", "far", "near"]).await;
    let before = lists_at_rest(&clusters).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    crate::golden::compare("primary-remote", &clusters).await;
    world.proven(&file, 16).await;
    nothing_is_written_again(&world, &file, &clusters).await;
    world.good(&["check", "-f", text(&file)]).await;

    // Another primary for one of them, under traffic from it and to it.
    let client = ready_pods(&clusters[2].client, "sample", "sleep").await;
    let stream = Traffic::start(&clusters[2].client, &client[0]);
    stream.more(20).await;
    let moved = [("one", "east", ""), ("two", "west", ""), ("far", "north", "two"), ("near", "east", "one")];
    world.write("mesh.yaml", &mesh(&moved));
    world.run(&["plan", "-f", text(&file)]).await.ends_with(2);
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    nothing_is_written_again(&world, &file, &clusters).await;
    world.proven(&file, 16).await;
    // A proxy stays where it is connected until it has to connect anew; what is new there is the new primary's.
    let pods: Api<Pod> = Api::namespaced(clusters[2].client.clone(), "istio-system");
    let gateway = ListParams::default().labels("app=istio-eastwestgateway");
    pods.delete_collection(&DeleteParams::default(), &gateway).await.unwrap();
    let new = ready_pods(&clusters[1].client, "istio-system", "istiod").await;
    eventually("a proxy of the remote at its new primary", Duration::from_secs(60), || async {
        let served = served_by(&world, &file, "far").await;
        if new.iter().any(|pod| served.contains(pod)) { Ok(()) } else { Err(format!("{served:?}")) }
    })
    .await;

    // The old primary leaves, and its other remote goes along to the one that stays.
    let alone = [("two", "west", ""), ("far", "north", "two"), ("near", "east", "two")];
    world.write("mesh.yaml", &mesh(&alone));
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    equal_lists(&clusters[0], &before[0]).await;
    let sent = stream.end().await;
    let failed: Vec<_> = sent.iter().filter(|sent| sent.failed()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    world.proven(&file, 9).await;
    world.good(&["plan", "-f", text(&file)]).await;

    // A remote leaves.
    world.write("mesh.yaml", &mesh(&alone[..2]));
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    equal_lists(&clusters[3], &before[3]).await;
    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
}
