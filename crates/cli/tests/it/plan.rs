//! Planning and applying against API servers that nobody runs workloads for.

use serde_json::{Value, json};
use stolos_apiserver::{Builder, Server};

use crate::Desk;

/// API servers that say they are lab clusters, with a kubeconfig in the desk's folder.
async fn servers(desk: &Desk, names: &[&str]) -> Vec<Server> {
    let mut config: Option<Value> = None;
    let mut servers = Vec::new();
    for name in names {
        let server = Builder::new().version_suffix("stolos-lab").start().await.unwrap();
        let one = server.kubeconfig(name);
        config = Some(match config {
            None => one,
            Some(mut all) => {
                for part in ["clusters", "contexts", "users"] {
                    all[part].as_array_mut().unwrap().extend(one[part].as_array().unwrap().clone());
                }
                all
            }
        });
        servers.push(server);
    }
    desk.write("config", &config.unwrap_or(json!({})).to_string());
    servers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_for_empty_clusters_adds_everything_and_writes_nothing() {
    let desk = Desk::new();
    let servers = servers(&desk, &["a", "b"]).await;
    desk.write("mesh.yaml", "{name: my, clusters: {a: net-1, b: net-2}}");
    let run = desk.run(["plan", "--kubeconfig", "config", "-o", "json"]);
    let plan: Value = serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{e}: {}", run.shown()));
    assert_eq!(run.code, Some(2), "{}", run.err);
    assert_eq!(run.err, "Looking at 2 clusters\n");
    assert!(plan["summary"]["add"].as_u64().unwrap() > 10 && plan["summary"]["remove"] == 0, "{plan}");
    assert_eq!(plan["steps"].as_array().unwrap()[0]["action"], "add");

    let run = desk.run(["apply", "--kubeconfig", "config", "--dry-run"]);
    assert_eq!(run.code, Some(2));
    assert!(run.out.contains("to add, 0 to change, 0 to remove"), "{}", run.shown());
    assert!(!desk.path().join(".local").exists(), "a dry run leaves nothing");
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_reads_like_a_list_of_reasons() {
    let desk = Desk::new();
    let servers = servers(&desk, &["a"]).await;
    desk.write("mesh.yaml", "{name: my, clusters: [a]}");
    let run = desk.run(["plan", "--kubeconfig", "config"]);
    insta::with_settings!({filters => vec![(r"127\.0\.0\.1:\d+", "[ADDRESS]"), (r"v1\.\d+\.\d+\S*", "[KUBERNETES]"), (r"and \d+ more", "and [N] more")]}, {
        insta::assert_snapshot!(run.shown(), @r#"
        exit 2
        --- stdout
        Mesh my, engine stolos [VERSION]
          a  https://[ADDRESS]  network, Kubernetes [KUBERNETES]

        state folder
          + trust/root  [FOLDER]/.local/state/stolos/my has no root certificate yet

        a
          + trust/a/namespace     Namespace istio-system does not exist
          + trust/a/cacerts       Secret istio-system/cacerts does not exist
          + control/a/crds        CustomResourceDefinition gateways.networking.istio.io does not exist (and [N] more)
          + control/a/access      ServiceAccount istio-system/istiod does not exist (and [N] more)
          + control/a/config      ConfigMap istio-system/istio does not exist (and [N] more)
          + control/a/istiod      Deployment istio-system/istiod does not exist (and [N] more)
          + control/a/injector    MutatingWebhookConfiguration istio-sidecar-injector does not exist
          + control/a/mtls        PeerAuthentication istio-system/default does not exist
          + control/a/membership  ConfigMap istio-system/stolos-mesh does not exist
          + links/a/reader        ServiceAccount istio-system/istio-reader-service-account does not exist (and [N] more)

        Plan: 11 to add, 0 to change, 0 to remove.
        --- stderr
        Looking at 1 cluster
        "#);
    });
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_that_ends_badly_is_a_timeout_and_says_what_was_missing() {
    let desk = Desk::new();
    let servers = servers(&desk, &["a"]).await;
    desk.write("mesh.yaml", "{name: my, clusters: [a]}");
    let run = desk.run(["apply", "--kubeconfig", "config", "--timeout", "1"]);
    assert_eq!(run.code, Some(3), "{}", run.shown());
    assert!(run.out.contains("Run it again"), "{}", run.shown());
    assert!(desk.path().join(".local/state/stolos/my/root-key.pem").exists());
    for server in servers {
        server.stop().await;
    }
}
