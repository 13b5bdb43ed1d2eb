//! A cluster joins a mesh under traffic, and leaves it again.

use std::time::Duration;

use kube::api::{Api, DynamicObject, ListParams};
use serde_json::Value;
use stolos_cluster::Cluster;

use crate::lists::{Everything, everything};
use crate::setup_mesh::ready_pods;
use crate::traffic::{Traffic, figures};
use crate::world::{World, eventually, say, text};

const NAMES: [&str; 4] = ["east-1", "east-2", "west-1", "north-1"];

/// A mesh of the first so many clusters.
fn mesh(clusters: usize) -> String {
    let head = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: growing}\n\
                spec:\n  samples: [helloworld, sleep]\n  clusters:\n";
    let line = |name: &&str| {
        let network = name.split('-').next().unwrap_or_default();
        format!("  - {{name: {name}, context: {name}, network: network-{network}}}\n")
    };
    NAMES.iter().take(clusters).map(line).fold(head.to_owned(), |text, line| text + &line)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_joins_and_leaves_and_no_request_notices() {
    let mut world = World::new();
    let everyone = world.write("lab.yaml", &mesh(4));
    let file = world.write("mesh.yaml", &mesh(3));
    world.up(&everyone).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let clusters = world.clusters(&NAMES).await;

    let mut streams = Vec::new();
    for cluster in [&clusters[0], &clusters[2]] {
        let pods = ready_pods(&cluster.client, "sample", "sleep").await;
        streams.push((&cluster.name, Traffic::start(&cluster.client, &pods[0])));
    }
    for (_, stream) in &streams {
        stream.more(20).await;
    }

    // It joins: the file has one more line.
    world.write("mesh.yaml", &mesh(4));
    world.run(&["plan", "-f", text(&file)]).await.ends_with(2);
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.good(&["plan", "-f", text(&file)]).await;
    world.proven(&file, 16).await;
    let newcomer = ready_pods(&clusters[3].client, "sample", "helloworld").await;
    for (name, stream) in &streams {
        let since = std::time::Instant::now();
        let answered = |sent: &[crate::traffic::Sent]| sent.iter().any(|sent| newcomer.contains(&sent.by));
        stream.until(&format!("{name} is answered by the newcomer"), since, answered).await;
    }
    // What the newcomer may read of the first cluster, copied by somebody.
    let copied = credential(&clusters[3], &clusters[0].name).await;
    assert_eq!(may_read(&copied).await, Ok(()));

    // It leaves: the line is gone.
    world.write("mesh.yaml", &mesh(3));
    // A removal is never done unasked.
    world.run(&["apply", "-f", text(&file)]).await.ends_with(1);
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.good(&["plan", "-f", text(&file)]).await;
    assert_eq!(may_read(&copied).await, Err(401), "a credential that was copied is worth nothing");
    for cluster in &clusters[..3] {
        let all = everything(&cluster.client).await.unwrap();
        assert_eq!(mentions(&all, "north-1"), Vec::<&String>::new(), "{}", cluster.name);
    }
    world.proven(&file, 9).await;
    for (name, stream) in &streams {
        let since = std::time::Instant::now();
        stream.until(&format!("{name} goes on"), since, |sent| sent.len() >= 60).await;
        let late = stream.sent().into_iter().filter(|sent| sent.at >= since);
        let late: Vec<_> = late.filter(|sent| newcomer.contains(&sent.by)).collect();
        assert!(late.is_empty(), "{name}: who has left still answers: {late:?}");
    }

    for (name, stream) in streams {
        let sent = stream.end().await;
        say(&figures(&format!("joining and leaving, seen from {name}"), &sent));
        let failed: Vec<_> = sent.iter().filter(|sent| sent.failed()).collect();
        assert!(failed.is_empty(), "{name}: {failed:?}");
    }
}

/// Objects that speak of a cluster.
fn mentions<'a>(all: &'a Everything, cluster: &str) -> Vec<&'a String> {
    let speaks = |object: &Value| {
        let metadata = &object["metadata"];
        [&metadata["name"], &metadata["labels"], &metadata["annotations"], &object["data"], &object["subjects"]]
            .iter()
            .any(|part| part.to_string().contains(cluster))
    };
    all.iter().filter(|(_, object)| speaks(object)).map(|(key, _)| key).collect()
}

/// The kubeconfig with which the control plane of `holder` reads `peer`.
async fn credential(holder: &Cluster, peer: &str) -> String {
    use k8s_openapi::api::core::v1::Secret;
    let secrets: Api<Secret> = Api::namespaced(holder.client.clone(), "istio-system");
    let list = secrets.list(&ListParams::default().labels("istio/multiCluster=true")).await.unwrap();
    let found = list.items.iter().filter_map(|secret| secret.data.as_ref()?.get(peer)).next();
    String::from_utf8(found.expect("a remote secret").0.clone()).unwrap()
}

/// Whether a kubeconfig reads Services; otherwise the answer's code.
async fn may_read(kubeconfig: &str) -> Result<(), u16> {
    eventually("an answer", Duration::from_secs(20), || async {
        let config = stolos_cluster::from_kubeconfig_text(kubeconfig).await.map_err(|e| e.to_string())?;
        let client = stolos_cluster::client(config, std::sync::Arc::new(stolos_serve::HostNet::default()))
            .map_err(|e| e.to_string())?;
        let services = kube::core::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk("", "v1", "Service"));
        let api: Api<DynamicObject> = Api::all_with(client, &services);
        match api.list(&ListParams::default()).await {
            Ok(_) => Ok(Ok(())),
            Err(kube::Error::Api(status)) => Ok(Err(status.code)),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}
