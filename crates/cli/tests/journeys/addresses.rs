//! The ways in which a gateway between networks is reached (contract B.3), each proven by traffic: a load balancer that
//! has a name only, the nodes' ports, `externalIPs`, and addresses that are given by hand.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use stolos_cluster::Cluster;

use crate::world::{World, eventually, say, text};

/// Four clusters, each on a network of its own, with what is said of the gateway of each.
fn mesh(gateways: [&str; 4]) -> String {
    let head = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: ways}\nspec:\n  clusters:\n".to_owned();
    let line = |(name, gateway): (&str, &str)| {
        format!("  - {{name: {name}, context: ways-{name}, network: net-{name}{gateway}}}\n")
    };
    ["a", "b", "c", "d"].into_iter().zip(gateways).map(line).fold(head, |text, line| text + &line)
}

async fn gateway(cluster: &Cluster) -> Service {
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "istio-system");
    services.get("istio-eastwestgateway").await.unwrap()
}

/// The gateway by which a pair goes, by the report.
fn by<'a>(report: &'a Value, from: &str, to: &str) -> &'a str {
    let pairs = report["pairs"].as_array().unwrap();
    let pair = pairs.iter().find(|pair| pair["from"] == from && pair["to"] == to).unwrap();
    pair["gateway"].as_str().unwrap_or("direct")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_are_reached_in_every_way() {
    let mut world = World::new();
    let file = world.write("mesh.yaml", &mesh([""; 4]));
    world.up(&file).await;
    let clusters = world.clusters(&["ways-a", "ways-b", "ways-c", "ways-d"]).await;
    let node = |cluster: &Cluster| {
        let nodes: Api<Node> = Api::all(cluster.client.clone());
        async move {
            eventually("the node has an address", Duration::from_secs(30), || async {
                let nodes = nodes.list(&Default::default()).await.map_err(|error| error.to_string())?;
                let addresses = nodes.items.into_iter().filter_map(|node| node.status?.addresses).flatten();
                let external = addresses.into_iter().find(|address| address.type_ == "ExternalIP");
                external.map(|address| address.address).ok_or_else(|| "none".to_owned())
            })
            .await
        }
    };
    let node_of_b = node(&clusters[1]).await;
    // An address of the cluster's range that no load balancer gets as long as others are free.
    let sibling = |node: &str, last: u8| format!("{}.{last}", node.rsplit_once('.').unwrap().0);
    let (of_c, of_d) = (sibling(&node(&clusters[2]).await, 200), sibling(&node(&clusters[3]).await, 16));

    // A port of nodes that nobody is told to look for is a gateway that nobody finds: refused before anything is done.
    let blind = world.write("blind.yaml", &mesh(["", ", gateway: {values: {service: {type: NodePort}}}", "", ""]));
    let run = world.run(&["plan", "-f", text(&blind)]).await.ends_with(1);
    assert!(run.err.contains("NodePort without the annotation traffic.istio.io/nodeSelector"), "{}", run.err);

    let by_name = ", gateway: {values: {service: {loadBalancerClass: stolos.dev/hostname}}}".to_owned();
    let on_nodes =
        ", gateway: {values: {service: {type: NodePort, annotations: {traffic.istio.io/nodeSelector: '{}'}}}}"
            .to_owned();
    let external = format!(", gateway: {{values: {{service: {{type: ClusterIP, externalIPs: [{of_c}]}}}}}}");
    // What leads there is ours to know: here the Service's own load balancer, by its address.
    let by_hand = format!(", gateway: {{addresses: [{of_d}], port: 15443}}");
    world.write("mesh.yaml", &mesh([&by_name, &on_nodes, &external, &by_hand]));
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.good(&["plan", "-f", text(&file)]).await;

    let services = [
        gateway(&clusters[0]).await,
        gateway(&clusters[1]).await,
        gateway(&clusters[2]).await,
        gateway(&clusters[3]).await,
    ];
    let shown = serde_json::to_value(&services[0].status).unwrap();
    assert_eq!(shown["loadBalancer"]["ingress"], json!([{"hostname": "istio-eastwestgateway.istio-system.a.lb.test"}]));
    let ports = services[1].spec.as_ref().unwrap().ports.as_ref().unwrap();
    let node_port = ports.iter().find(|port| port.port == 15443).unwrap().node_port.unwrap();
    let labels = |service: &Service| service.metadata.labels.clone().unwrap_or_default();
    assert!(labels(&services[2]).contains_key("topology.istio.io/network"));
    assert!(!labels(&services[3]).contains_key("topology.istio.io/network"), "only what is written by hand counts");

    let report = world.proven(&file, 16).await;
    let remembered =
        |service: &Service| service.metadata.annotations.clone().unwrap()["stolos.dev/load-balancer-address"].clone();
    let of_a = remembered(&services[0]);
    for (to, expected) in [
        ("a", format!("{of_a}:15443")),
        ("b", format!("{node_of_b}:{node_port}")),
        ("c", format!("{of_c}:15443")),
        ("d", format!("{of_d}:15443")),
    ] {
        for from in ["a", "b", "c", "d"].into_iter().filter(|from| *from != to) {
            assert_eq!(by(&report, from, to), expected, "{from} to {to}");
        }
        say(&format!("{to} is reached at {expected}"));
    }
    let status = world.good(&["status", "-f", text(&file), "-o", "json"]).await.document();
    assert_eq!(status["clusters"][3]["gateways"][0]["addresses"], json!([format!("{of_d}:15443")]), "{status:#}");

    // The name leads elsewhere: control planes ask again, and nobody has to be told.
    let moved = sibling(&of_a, 201);
    let patch = json!({"metadata": {"annotations": {"stolos.dev/load-balancer-address": moved}}});
    let api: Api<Service> = Api::namespaced(clusters[0].client.clone(), "istio-system");
    api.patch("istio-eastwestgateway", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    eventually("the name's new address is used", Duration::from_secs(90), || async {
        let (_, report) = world.verify(&file).await;
        let now = by(&report, "b", "a");
        if now == format!("{moved}:15443") { Ok(()) } else { Err(format!("b reaches a by {now}")) }
    })
    .await;
    world.proven(&file, 16).await;
}
