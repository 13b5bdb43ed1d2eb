//! A mesh is packed into an archive without its secrets, and looked into elsewhere.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};

use crate::setup_mesh::{self, CONTEXTS};
use crate::world::{World, text};

/// Every file of an archive, without the folder that all are in.
pub(crate) fn unpacked(path: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let file = std::fs::File::open(path).unwrap();
    for entry in tar::Archive::new(flate2::read::GzDecoder::new(file)).entries().unwrap() {
        let mut entry = entry.unwrap();
        let (path, mut text) = (entry.path().unwrap().display().to_string(), String::new());
        entry.read_to_string(&mut text).unwrap();
        files.insert(path.split_once('/').unwrap().1.to_owned(), text);
    }
    files
}

/// What of a mesh's own Secrets must not be seen: keys, line by line, and tokens.
pub(crate) async fn secrets(client: &kube::Client) -> Vec<String> {
    let kind = Resource::named("v1", "Secret").unwrap();
    let mut found = Vec::new();
    for secret in objects::list(client, &kind, Some("istio-system"), None).await.unwrap() {
        for (key, value) in secret["data"].as_object().into_iter().flatten() {
            let clear = STANDARD.decode(value.as_str().unwrap_or_default()).unwrap();
            let clear = String::from_utf8(clear).unwrap_or_default();
            if key == "ca-key.pem" {
                found.extend(clear.lines().filter(|line| line.len() > 40).map(str::to_owned));
            }
            if let Some((_, token)) = clear.split_once("token: ") {
                let token = token.lines().next().unwrap_or_default().trim_matches(['"', ' ']).to_owned();
                found.push(token.rsplit('.').next().unwrap_or_default().to_owned());
                found.push(token);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_is_packed_without_its_secrets_and_checked_elsewhere() {
    let mut world = World::new();
    let file = setup_mesh::lab(&mut world).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let clusters = world.clusters(&CONTEXTS).await;

    let canary = "canary-of-the-journey-42";
    let secret = Resource::named("v1", "Secret").unwrap();
    let brought = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "brought", "namespace": "istio-system"},
        "stringData": {"password": canary}});
    objects::apply(&clusters[0].client, &secret, &brought, "journey", true).await.unwrap();
    let map = Resource::named("v1", "ConfigMap").unwrap();
    let brought = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "brought", "namespace": "istio-system",
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": json!({"data": {"note": canary}}).to_string()}},
        "data": {"note": format!("the password is {canary}")}});
    objects::apply(&clusters[0].client, &map, &brought, "journey", true).await.unwrap();

    let archive = world.path("a.tar.gz");
    let pack = ["bundle", "-f", text(&file), "-o", text(&archive)];
    let run = world.good(&pack).await;
    assert!(run.err.contains("look through it before you give it away"), "{}", run.err);
    assert_eq!(std::fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
    let files = unpacked(&archive);
    let mut hidden = vec![canary.to_owned()];
    for cluster in &clusters {
        hidden.extend(secrets(&cluster.client).await);
    }
    assert!(hidden.len() > 9, "there are keys and tokens: {}", hidden.len());
    for (path, text) in &files {
        for secret in &hidden {
            assert!(!text.contains(secret) && !text.contains(&STANDARD.encode(secret)), "{secret} is in {path}");
        }
        assert!(!text.contains("PRIVATE KEY"), "{path}");
    }

    // What a reader looks for is there, of every cluster.
    let manifest: Value = serde_json::from_str(&files["manifest.json"]).unwrap();
    for context in CONTEXTS {
        let of = |what: &str| {
            files.keys().any(|path| path.starts_with(&format!("clusters/{context}/")) && path.contains(what))
        };
        for what in ["objects/Pod.json", "objects/Secret.json", "syncz.json", "discovery.log", "config_dump.json"] {
            assert!(of(what), "{what} of {context}: {:#}", manifest["missing"]);
        }
    }
    for path in [
        "mesh.yaml",
        "mesh/1-topology.yaml",
        "mesh/2-base.yaml",
        "check.json",
        "plan.json",
        "status.json",
        "versions.json",
    ] {
        assert!(files.contains_key(path), "{path}: {:#}", manifest["missing"]);
    }
    assert!(manifest["redacted"]["private-key"].as_u64() > Some(2), "{:#}", manifest["redacted"]);

    let full = world.path("full.tar.gz");
    std::fs::copy(&archive, &full).unwrap();

    // One that is there is nobody's to lose.
    let again = world.run(&pack).await.ends_with(1);
    assert!(again.err.contains("is there already") && again.err.contains("--force"), "{}", again.err);
    world.good(&[&pack[..], &["--force", "--log-lines", "0", "--proxies", "0"]].concat()).await;
    assert!(unpacked(&archive).keys().all(|path| !path.contains(".log") && !path.contains("config_dump")));

    // The archive says what the clusters said.
    let from = ["check", "--from", text(&archive), "-o", "json"];
    let report = world.good(&from).await.document();
    assert_eq!(report["findings"], json!([]), "{report:#}");
    assert_eq!(report["clusters"].as_array().map(Vec::len), Some(3));

    opened(&world, &full, &files).await;

    // A cluster that is gone is named, and takes nothing else with it.
    world.good(&["lab", "fault", "kill", CONTEXTS[2], "-f", text(&file)]).await;
    world.run(&[&pack[..], &["--force"]].concat()).await.ends_with(4);
    let manifest: Value = serde_json::from_str(&unpacked(&archive)["manifest.json"]).unwrap();
    assert!(manifest["clusters"][2]["unreachable"].is_string(), "{manifest:#}");
    let report = world.run(&from).await.document();
    assert!(
        report["clusters"][2]["unreachable"].is_string() && report["summary"]["healthy"] == 0,
        "{:#}",
        report["summary"]
    );
    let only = world.path("b.tar.gz");
    world.run(&["bundle", "-f", text(&file), "-o", text(&only), "--context", CONTEXTS[0]]).await.ends_with(4);
    assert!(unpacked(&only).keys().all(|path| !path.contains(CONTEXTS[1])));
}

/// The archive as a lab: what was there is there again, and stays as it was, since nothing runs.
async fn opened(world: &World, archive: &Path, files: &BTreeMap<String, String>) {
    let kubeconfig = world.path("loaded.yaml");
    let load = ["lab", "load", text(archive), "--detach", "--kubeconfig", text(&kubeconfig)];
    let run = world.good(&load).await;
    assert!(run.out.starts_with("export KUBECONFIG="), "{}", run.out);
    let found = stolos_cluster::Kubeconfig::find(Some(&kubeconfig), None).unwrap();
    for context in CONTEXTS {
        let cluster = stolos_cluster::connect(&found, context, context).await.unwrap();
        for (api_version, kind) in [
            ("v1", "Pod"),
            ("apps/v1", "Deployment"),
            ("v1", "Secret"),
            ("networking.istio.io/v1", "Gateway"),
            ("v1", "Node"),
        ] {
            let recorded: Value =
                serde_json::from_str(&files[&format!("clusters/{context}/objects/{kind}.json")]).unwrap();
            let recorded = recorded["items"].as_array().unwrap();
            assert!(!recorded.is_empty() || kind == "Gateway", "{kind} of {context}");
            let there =
                objects::list(&cluster.client, &Resource::named(api_version, kind).unwrap(), None, None).await.unwrap();
            let one = |o: &Value| {
                let metadata = &o["metadata"];
                let place = format!(
                    "{}/{}",
                    metadata["namespace"].as_str().unwrap_or_default(),
                    metadata["name"].as_str().unwrap()
                );
                (place, json!([metadata["uid"], metadata["creationTimestamp"], o["spec"], o["status"], o["data"]]))
            };
            let recorded: BTreeMap<_, _> = recorded.iter().map(one).collect();
            let there: BTreeMap<_, _> = there.iter().map(one).collect();
            assert_eq!(there, recorded, "{kind} of {context}");
        }
    }
    let state = world.state("mymeshname-loaded");
    let status = world.good(&["lab", "status", "--state", text(&state), "-o", "json"]).await.document();
    assert!(status["clusters"].as_array().unwrap().iter().all(|c| c["pods"] == 0), "{status:#}");
    let wrong = world.run(&["lab", "up", "--clusters", "1", "--state", text(&state)]).await.ends_with(1);
    assert!(wrong.err.contains("is running already"), "{}", wrong.err);
    world.good(&["lab", "down", "--state", text(&state)]).await;
    let wrong = world.run(&["lab", "up", "--clusters", "1", "--state", text(&state)]).await.ends_with(1);
    assert!(wrong.err.contains("holds what was recorded elsewhere"), "{}", wrong.err);
}
