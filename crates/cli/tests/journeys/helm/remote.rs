//! A primary and a remote by the real Helm (contract B.7, C.3): on different networks, then with another primary.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};
use stolos_cluster::Cluster;

use super::{charts, contract, helm, nothing_is_written_again, releases};
use crate::lists::{at_rest, everything, identities};
use crate::setup_mesh::equal_lists;
use crate::world::{World, text};

/// Clusters by name, network and primary.
fn mesh(clusters: &[(&str, &str, &str)], control: &str) -> String {
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

/// What makes the one a primary and the other its remote, as it is: B.7. Addresses are the lab's and another each time.
async fn exposure(cluster: &Cluster) -> String {
    let all = everything(&cluster.client).await.unwrap();
    let mut shown: BTreeMap<&str, Value> = BTreeMap::new();
    for (key, object) in &all {
        let part = match key.as_str() {
            "Namespace. -/istio-system" => object["metadata"]["annotations"].clone(),
            "Gateway.networking.istio.io istio-system/istiod-gateway"
            | "VirtualService.networking.istio.io istio-system/istiod-vs" => object["spec"].clone(),
            "Service. istio-system/istiod" => {
                let port = |port: &Value| {
                    format!("{} {} to {}", port["name"].as_str().unwrap_or_default(), port["port"], port["targetPort"])
                };
                let ports: Vec<_> = object["spec"]["ports"].as_array().unwrap().iter().map(port).collect();
                json!({"selector": object["spec"]["selector"], "ports": ports})
            }
            "EndpointSlice.discovery.k8s.io istio-system/istiod" => {
                json!({"service": object["metadata"]["labels"]["kubernetes.io/service-name"],
                    "addresses": object["endpoints"][0]["addresses"].as_array().map(Vec::len), "ports": object["ports"]})
            }
            "MutatingWebhookConfiguration.admissionregistration.k8s.io -/istio-sidecar-injector" => {
                let hook = |hook: &Value| {
                    let config = &hook["clientConfig"];
                    json!({"service": config["service"], "trusted": config["caBundle"].is_string()})
                };
                object["webhooks"].as_array().unwrap().iter().map(hook).collect()
            }
            _ => continue,
        };
        shown.insert(key, part);
    }
    let mut text = format!("== {}\n", cluster.name);
    for (key, part) in shown {
        let _ = writeln!(text, "{key}\n  {}", serde_json::to_string_pretty(&part).unwrap().replace('\n', "\n  "));
    }
    text
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
    let mut before = Vec::new();
    for cluster in &clusters {
        before.push(identities(&at_rest(&cluster.client).await));
    }

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
    let mut golden = String::new();
    for cluster in [&clusters[0], &clusters[2]] {
        golden += &contract(cluster).await;
        golden += &exposure(cluster).await;
    }
    insta::assert_snapshot!("remote_objects", golden);
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
    for (cluster, before) in clusters.iter().zip(&before) {
        equal_lists(cluster, before).await;
    }
}
