//! What somebody did to a mesh behind its back is shown as what it is.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret, Service};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use stolos_cluster::Cluster;
use stolos_pki::{Authority, Certificate};

use crate::setup_mesh::{self, CONTEXTS, ready_pods, reasons};
use crate::world::{World, eventually, text};

const WEST: &str = "context-west-1";

/// A second way into west's network that nobody planned.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unplanned_hop_is_shown() {
    let mut world = World::new();
    let file = setup_mesh::lab(&mut world).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let west = world.cluster(WEST).await;

    let services: Api<Service> = Api::namespaced(west.client.clone(), "istio-system");
    let planned = services.get("istio-eastwestgateway").await.unwrap();
    let decoy = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "shortcut", "labels": {"topology.istio.io/network": "network-west"}},
        "spec": {"type": "LoadBalancer", "selector": planned.spec.unwrap().selector,
            "ports": [{"name": "tls", "port": 15443, "targetPort": 15443}]},
    });
    services.create(&PostParams::default(), &serde_json::from_value(decoy).unwrap()).await.unwrap();
    let address = eventually("the decoy has an address", Duration::from_secs(30), || async {
        let service = services.get("shortcut").await.map_err(|e| e.to_string())?;
        let ingress = service.status.and_then(|s| s.load_balancer).and_then(|b| b.ingress).unwrap_or_default();
        ingress.into_iter().find_map(|i| i.ip).ok_or_else(|| "no address".to_owned())
    })
    .await;

    // Every control plane hears of it in its own time.
    let hop = format!("{address}:15443");
    let report = eventually("verify shows the hop", Duration::from_secs(60), || async {
        let (run, report) = world.verify(&file).await;
        let whys: Vec<_> = ["context-east-1", "context-east-2"].map(|from| reasons(&report, from, WEST)).into();
        if whys.iter().all(|why| why.contains(&hop)) {
            run.ends_with(2);
            Ok(report)
        } else {
            Err(format!("{whys:?}"))
        }
    })
    .await;
    assert_eq!(report["verdict"], "fail");
    for pair in report["pairs"].as_array().unwrap() {
        let through_west = pair["to"] == WEST && pair["from"] != WEST;
        assert_eq!(pair["verdict"], if through_west { "fail" } else { "pass" }, "{pair:#}");
        assert!(!through_west || pair["gateway"] == hop.as_str(), "what differs from the plan is shown: {pair:#}");
    }

    services.delete("shortcut", &DeleteParams::default()).await.unwrap();
    eventually("without the decoy all is well", Duration::from_secs(60), || async {
        let (_, report) = world.verify(&file).await;
        if report["verdict"] == "pass" { Ok(()) } else { Err(format!("{:#}", report["pairs"])) }
    })
    .await;
}

/// West's signing certificate, replaced by one of a root that nobody else trusts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_root_is_shown() {
    let mut world = World::new();
    let file = setup_mesh::lab(&mut world).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let west = world.cluster(WEST).await;

    let (now, year) = (SystemTime::now(), Duration::from_secs(365 * 24 * 60 * 60));
    let foreign = Authority::new_root("Somebody Else", year, now).unwrap();
    let theirs = foreign.issue_intermediate(WEST, "Somebody Else", "cluster.local", year, now).unwrap();
    let secrets: Api<Secret> = Api::namespaced(west.client.clone(), "istio-system");
    let swap = json!({"stringData": {
        "ca-cert.pem": theirs.ca_cert, "ca-key.pem": theirs.ca_key.expose(),
        "cert-chain.pem": theirs.cert_chain, "root-cert.pem": theirs.root_cert,
    }});
    secrets.patch("cacerts", &PatchParams::default(), &Patch::Merge(&swap)).await.unwrap();
    restart(&west, "istiod").await;
    restart(&west, "istio-eastwestgateway").await;

    let (run, report) = world.verify(&file).await;
    run.ends_with(2);
    assert_eq!(report["verdict"], "fail");
    for pair in report["pairs"].as_array().unwrap() {
        let (from, to) = (pair["from"].as_str().unwrap(), pair["to"].as_str().unwrap());
        if (from == WEST) == (to == WEST) {
            continue;
        }
        assert_eq!(pair["verdict"], "fail", "{pair:#}");
        assert_eq!(pair["answered"], 0, "{pair:#}");
        let why = reasons(&report, from, to);
        assert!(why.to_lowercase().contains("certificate"), "{from} → {to}: {why}");
    }

    // The plan knows without any traffic, and stops before it makes things worse.
    let refused = world.run(&["plan", "-f", text(&file)]).await.ends_with(1);
    let ours = std::fs::read_to_string(world.state("mymeshname").join("root-cert.pem")).unwrap();
    let said = refused.err.to_lowercase().replace(':', "");
    for root in [&Certificate::from_pem(&ours).unwrap(), foreign.certificate()] {
        assert!(said.contains(&root.fingerprint().to_lowercase().replace(':', "")), "{}", refused.err);
    }
}

/// Deletes the pods of a Deployment and waits for their successors.
pub(crate) async fn restart(cluster: &Cluster, app: &str) {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "istio-system");
    let old = ready_pods(&cluster.client, "istio-system", app).await;
    assert!(!old.is_empty(), "{app} runs");
    for pod in &old {
        pods.delete(pod, &DeleteParams::default()).await.unwrap();
    }
    eventually(&format!("{app} runs again"), Duration::from_secs(60), || async {
        let now = ready_pods(&cluster.client, "istio-system", app).await;
        if !now.is_empty() && now.iter().all(|pod| !old.contains(pod)) { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
}

/// Who answers under another name is shown with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_identity_is_shown() {
    let mut world = World::new();
    let file = setup_mesh::lab(&mut world).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let west = world.cluster(WEST).await;

    // The server that verify brings to west is given another account as soon as it is there. Verify may have seen the
    // first one's pod before that; then it is tried again.
    let impostor = tokio::spawn(give_another_account(west.client.clone()));
    let report = eventually("verify shows the other name", Duration::from_secs(90), || async {
        let (run, report) = world.verify(&file).await;
        let whys = CONTEXTS.map(|from| reasons(&report, from, WEST));
        if whys.iter().all(|why| why.contains("/sa/client`, it should be `")) {
            run.ends_with(2);
            Ok(report)
        } else {
            Err(format!("{whys:?}"))
        }
    })
    .await;
    impostor.abort();
    for pair in report["pairs"].as_array().unwrap() {
        let odd = pair["to"] == WEST;
        let identity = pair["identity"].as_str().unwrap_or_default();
        assert!(identity.ends_with(if odd { "/sa/client" } else { "/sa/helloworld" }), "{pair:#}");
        assert_eq!(pair["verdict"], if odd { "fail" } else { "pass" }, "{pair:#}");
    }
}

/// Every server that verify brings runs as its client does, from the moment it is seen.
async fn give_another_account(client: kube::Client) {
    let deployments: Api<Deployment> = Api::all(client.clone());
    let swap = json!({"spec": {
        "strategy": {"type": "Recreate", "rollingUpdate": null},
        "template": {"spec": {"serviceAccountName": "client"}},
    }});
    let events = kube::runtime::watcher(
        deployments,
        kube::runtime::watcher::Config::default().fields("metadata.name=helloworld"),
    );
    let mut events = std::pin::pin!(kube::runtime::WatchStreamExt::applied_objects(events));
    while let Some(event) = futures::StreamExt::next(&mut events).await {
        let Ok(deployment) = event else { continue };
        let namespace = deployment.metadata.namespace.unwrap_or_default();
        let account = deployment.spec.template.spec.and_then(|s| s.service_account_name);
        if namespace.starts_with("stolos-verify-") && account.as_deref() != Some("client") {
            let own: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
            // It may be gone again.
            let _ = own.patch("helloworld", &PatchParams::default(), &Patch::Strategic(&swap)).await;
        }
    }
}
