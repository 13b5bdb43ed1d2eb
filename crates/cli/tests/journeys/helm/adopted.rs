//! An Istio that somebody installed by hand with the real Helm, half of a mesh already: it is read back, what is missing
//! between its clusters is brought, and it is left as it was.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, PostParams};
use serde_json::json;
use stolos_cluster::Cluster;
use stolos_pki::Authority;

use super::{by_hand, charts, helm, releases};
use crate::lists::{equal_lists, lists_at_rest};
use crate::setup_mesh::ready_pods;
use crate::world::{World, eventually, text};

const CLUSTERS: [(&str, &str); 2] = [("east-1", "network-east"), ("west-1", "network-west")];

/// Namespace, network and a signing certificate of one common root, as a careful person would make them.
async fn prepare(cluster: &Cluster, network: &str, root: &Authority) {
    let labels = json!({"topology.istio.io/network": network});
    let namespace = json!({"metadata": {"name": "istio-system", "labels": labels}});
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    let made = root.issue_intermediate(&cluster.name, "Theirs", "cluster.local", year, SystemTime::now()).unwrap();
    let secret = json!({"metadata": {"name": "cacerts"}, "stringData": {"ca-cert.pem": made.ca_cert,
        "ca-key.pem": made.ca_key.expose(), "cert-chain.pem": made.cert_chain, "root-cert.pem": made.root_cert}});
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "istio-system");
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_elses_istio_becomes_a_mesh_and_stays_his() {
    let Some(helm) = helm() else { return };
    let mut world = World::new();
    charts(&world, "1.28.0");
    let lab: String = CLUSTERS.iter().map(|(name, network)| format!("- {name}: {network}\n")).collect();
    let lab = world.write("lab.yaml", &lab);
    world.up(&lab).await;
    let clusters = world.clusters(&CLUSTERS.map(|(name, _)| name)).await;
    let root = Authority::new_root("Theirs", Duration::from_secs(3650 * 24 * 60 * 60), SystemTime::now()).unwrap();
    for (cluster, (name, network)) in clusters.iter().zip(CLUSTERS) {
        prepare(cluster, network, &root).await;
        let values = format!(
            "global.meshID=theirs,global.multiCluster.clusterName={name},global.network={network},meshConfig.trustDomain=cluster.local"
        );
        let gateway = format!(
            "name=their-gateway,networkGateway={network},labels.istio=eastwestgateway,labels.app=their-gateway"
        );
        for (release, chart, values) in [
            ("base", "charts/base", "global.istioNamespace=istio-system"),
            ("istiod", "charts/istiod", &values),
            ("gw", "charts/gateway", &gateway),
        ] {
            let install = ["upgrade", "--install", release, chart, "--namespace", "istio-system", "--set", values];
            by_hand(&world, &helm, name, &install).await;
        }
        eventually("their gateway is there", Duration::from_secs(60), || async {
            let ready = ready_pods(&cluster.client, "istio-system", "their-gateway").await;
            if ready.is_empty() { Err("no pod is ready".to_owned()) } else { Ok(()) }
        })
        .await;
    }
    let before = lists_at_rest(&clusters).await;
    let mut installed = Vec::new();
    for cluster in &clusters {
        installed.push(releases(&world, &helm, &cluster.name).await);
    }

    let run = world.good(&["init", "--from-clusters", "east-1", "west-1", "-o", "mesh.yaml"]).await;
    assert!(run.err.contains("installed by somebody with Helm; it is used as it is"), "{}", run.err);
    let file = world.path("mesh.yaml");
    let written = std::fs::read_to_string(&file).unwrap();
    for line in
        ["name: theirs", "installer: none", "version: \"1.28.0\"", "network: network-west", "organization: Theirs"]
    {
        assert!(written.contains(line), "{line}\n{written}");
    }
    // What is missing, and nothing else: the way in, the credentials, and the memory of the mesh.
    let plan = world.run(&["plan", "-f", text(&file), "-o", "json"]).await.ends_with(2).document();
    let mut steps: Vec<_> = plan["steps"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    steps.retain(|step| step.contains("east-1/") && !step.ends_with("/ready"));
    steps.sort_unstable();
    insta::assert_snapshot!(steps.join("\n"), @r#"
    control/east-1/membership
    gateways/east-1/expose
    links/east-1/peers
    links/east-1/west-1
    "#);
    assert_eq!(plan["summary"]["change"], 0, "{plan:#}");

    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.good(&["plan", "-f", text(&file)]).await;
    world.proven(&file, 4).await;
    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    for ((cluster, before), installed) in clusters.iter().zip(&before).zip(&installed) {
        equal_lists(cluster, before).await;
        assert_eq!(&releases(&world, &helm, &cluster.name).await, installed);
    }
}
