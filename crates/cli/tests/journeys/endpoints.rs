//! The proxies' own view of the endpoints decides a proof: what one does not have is named, by our proxy and by Envoy.

use std::collections::BTreeSet;
use std::path::Path;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams};
use serde_json::Value;

use crate::setup_mesh::reasons;
use crate::world::{World, text};

const MESH: &str = "apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata: {name: held}
spec:
  clusters:
  - {name: a, context: held-a, network: east}
  - {name: b, context: held-b, network: east}
  - {name: c, context: held-c, network: west}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_our_proxy_lacks_is_named() {
    what_is_lacking_is_named(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_envoy_lacks_is_named() {
    let Some(envoy) = crate::programs::program("STOLOS_ENVOY") else { return };
    what_is_lacking_is_named(Some(&envoy)).await;
}

async fn what_is_lacking_is_named(envoy: Option<&Path>) {
    let mut world = World::new();
    let file = world.write("mesh.yaml", MESH);
    let flags = envoy.map(|envoy| vec!["--envoy", text(envoy), "--envoy-for", "all"]).unwrap_or_default();
    world.up_with(&file, &flags).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let report = world.proven(&file, 9).await;
    let mut held = BTreeSet::new();
    for pair in report["pairs"].as_array().unwrap() {
        let endpoints = &pair["endpoints"];
        assert_eq!(endpoints["state"], "held", "{pair:#}");
        let addresses: Vec<&str> =
            endpoints["addresses"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let [address] = addresses[..] else { panic!("one server, or the gateway of its cluster: {pair:#}") };
        assert!(address.ends_with(if pair["gateway"].is_string() { ":15443" } else { ":5000" }), "{pair:#}");
        held.insert(address.to_owned());
    }
    assert_eq!(held.len(), 6, "three servers and three gateways: {held:?}");

    // Cluster a may no longer read the two others: one on its own network, one behind a gateway. And c, behind whose back
    // the network of b goes on to have a gateway, may no longer read b.
    for (reader, other) in [("a", "b"), ("a", "c"), ("c", "b")] {
        let cluster = world.cluster(&format!("held-{reader}")).await;
        let secrets: Api<Secret> = Api::namespaced(cluster.client, "istio-system");
        secrets.delete(&format!("istio-remote-secret-{other}"), &DeleteParams::default()).await.unwrap();
    }
    let (run, report) = world.verify(&file).await;
    run.ends_with(2);
    for pair in report["pairs"].as_array().unwrap() {
        let (from, to) = (pair["from"].as_str().unwrap(), pair["to"].as_str().unwrap());
        let lacks = matches!((from, to), ("a", "b" | "c") | ("c", "b"));
        assert_eq!(pair["endpoints"]["state"], if lacks { "missing" } else { "held" }, "{pair:#}");
        assert_eq!(pair["verdict"], if lacks { "fail" } else { "pass" }, "{pair:#}");
    }
    let direct = reasons(&report, "a", "b");
    assert!(direct.starts_with("its proxy has no endpoint for `b`: its server `127."), "{direct}");
    let across = reasons(&report, "a", "c");
    assert!(across.starts_with("its proxy has no endpoint for `c`: `127."), "{across}");
    assert!(across.contains(":15443`, the way into `west`, is missing"), "{across}");

    // As test results: the endpoints that are missing are failures of their own.
    let junit = world.run(&["verify", "-f", text(&file), "-o", "junit"]).await.ends_with(2).out;
    assert!(junit.contains("classname=\"endpoints\" name=\"a to b\"><failure message=\"its proxy has no"), "{junit}");
    assert!(junit.contains("classname=\"endpoints\" name=\"b to a\"/>"), "{junit}");
}
