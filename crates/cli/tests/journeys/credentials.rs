//! A credential that is handed out reads, ends, and is taken back; a user's own goes nowhere.

use std::os::unix::fs::PermissionsExt as _;

use k8s_openapi::api::core::v1::{Secret, Service};
use kube::api::{Api, ListParams};

use crate::lists::{all_equal_lists, lists_at_rest};
use crate::world::{World, text};

const MESH: &str = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: m}\nspec:\n  clusters:\n  \
                    - {name: one, network: n}\n  - {name: two, network: n}\n";

/// What a credential gets when it asks for Services, and for Secrets.
async fn reads(kubeconfig: &str) -> [u16; 2] {
    let config = stolos_cluster::from_kubeconfig_text(kubeconfig).await.unwrap();
    let client = stolos_cluster::client(config, std::sync::Arc::new(stolos_serve::HostNet::default())).unwrap();
    let code = |error: Option<kube::Error>| match error {
        None => 200,
        Some(kube::Error::Api(status)) => status.code,
        Some(error) => panic!("{error}"),
    };
    let services: Api<Service> = Api::all(client.clone());
    let secrets: Api<Secret> = Api::all(client);
    let all = ListParams::default();
    [code(services.list(&all).await.err()), code(secrets.list(&all).await.err())]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_reads_ends_and_is_taken_back() {
    let mut world = World::new();
    let file = world.write("mesh.yaml", MESH);
    world.up(&file).await;
    let clusters = world.clusters(&["one", "two"]).await;
    let before = lists_at_rest(&clusters).await;
    // A kubeconfig as clouds hand them out: a program says who one is.
    exec_instead(&world);
    let with = |command: &[&'static str]| [command, &["-f", text(&file)]].concat();
    world.good(&with(&["apply", "--yes"])).await;
    let secrets: Api<Secret> = Api::namespaced(clusters[0].client.clone(), "istio-system");
    let held = secrets.get("istio-remote-secret-two").await.unwrap().data.unwrap();
    let held = String::from_utf8(held["two"].0.clone()).unwrap();
    assert!(
        !held.contains("exec") && !held.contains("client-key") && held.contains("token:"),
        "a user's own stays at home"
    );

    let create = ["credential", "create", "two", "--name", "reader1", "--expires", "12h"];
    world.good(&[&with(&create)[..], &["--write", "two.kubeconfig"]].concat()).await;
    let path = world.path("two.kubeconfig");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let kubeconfig = std::fs::read_to_string(&path).unwrap();
    assert_eq!(reads(&kubeconfig).await, [200, 403]);
    // It is never replaced unasked.
    world.run(&[&with(&create)[..], &["--write", "two.kubeconfig"]].concat()).await.ends_with(1);
    let wide =
        ["credential", "create", "two", "--name", "wide", "--read-secrets", "--server", "https://two.example:6443"];
    let wide = world.good(&[&with(&wide)[..], &["-o", "secret"]].concat()).await.out;
    assert!(wide.contains("istio/multiCluster: \"true\"") && wide.contains("https://two.example:6443"), "shape");

    let list = world.good(&[&with(&["credential", "list"])[..], &["-o", "json"]].concat()).await.document();
    let names: Vec<_> =
        list["credentials"].as_array().unwrap().iter().map(|c| (&c["name"], &c["readsSecrets"])).collect();
    assert_eq!(names, [(&"reader1".into(), &false.into()), (&"wide".into(), &true.into())]);
    assert!(list["credentials"][0]["expires"].is_string(), "{list:#}");

    // An apply leaves it alone; revoking is at once.
    world.good(&with(&["plan"])).await;
    world.good(&with(&["apply", "--yes"])).await;
    assert_eq!(reads(&kubeconfig).await, [200, 403]);
    world.good(&with(&["credential", "revoke", "two", "reader1"])).await;
    assert_eq!(reads(&kubeconfig).await, [401, 401]);
    world.run(&with(&["credential", "revoke", "two", "reader1"])).await.ends_with(1);

    // And a teardown leaves none.
    world.good(&with(&["teardown", "--yes"])).await;
    all_equal_lists(&clusters, &before).await;
}

/// Puts a program that prints the credentials where the credentials were.
fn exec_instead(world: &World) {
    let path = world.path("kubeconfig");
    let mut config: serde_json::Value = serde_saphyr::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    for user in config["users"].as_array_mut().unwrap() {
        let name = user["name"].as_str().unwrap().to_owned();
        let own = user["user"].take();
        let decode = |key: &str| {
            use base64::Engine as _;
            let text = own[key].as_str()?;
            String::from_utf8(base64::prelude::BASE64_STANDARD.decode(text).ok()?).ok()
        };
        let mut status = serde_json::Map::new();
        for (from, to) in [("client-certificate-data", "clientCertificateData"), ("client-key-data", "clientKeyData")] {
            status.extend(decode(from).map(|pem| (to.to_owned(), pem.into())));
        }
        status.extend(own["token"].as_str().map(|token| ("token".to_owned(), token.into())));
        let answer = serde_json::json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status});
        let answers = world.write(&format!("{name}.json"), &answer.to_string());
        user["user"] = serde_json::json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "cat",
            "args": [text(&answers)], "interactiveMode": "Never"}});
    }
    std::fs::write(&path, config.to_string()).unwrap();
}
