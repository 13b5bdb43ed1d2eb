//! `stolos upgrade`: from 1.27 to 1.28 by revision under load, killed on the way, led back and finished.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use stolos_cluster::Cluster;
use stolos_plan::upgrade::injected_by;

use super::{NAMES, charts, helm, mesh, releases};
use crate::lists::{all_equal_lists, lists_at_rest};
use crate::traffic::{Sent, Traffic, figures};
use crate::world::{Run, World, eventually, finish, say, text};

const NEW: &str = "version: 1.28.0, revision: 1-28-0";

/// A pod that nobody makes anew, so that its stream of requests goes on while everything else is restarted.
async fn caller(cluster: &Cluster) -> Traffic {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "sample");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "caller", "labels": {"app": "caller"}},
        "spec": {"serviceAccountName": "sleep", "containers": [{"name": "sleep", "image": "curlimages/curl",
            "command": ["/bin/sleep", "infinity"]}]}});
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    eventually("the caller is ready", Duration::from_secs(60), || async {
        let pod = pods.get("caller").await.map_err(|error| error.to_string())?;
        let ready = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        let ready = ready.filter(|c| c.type_ == "Ready").any(|c| c.status == "True");
        if ready { Ok(()) } else { Err("it is not".to_owned()) }
    })
    .await;
    Traffic::start(&cluster.client, "caller")
}

/// Servers say when they are ready, and end later than everybody knows that they go, as whoever restarts them without a
/// request lost has it: Istio's samples do neither.
async fn patient(cluster: &Cluster) {
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "sample");
    for found in deployments.list(&ListParams::default().labels("app=helloworld")).await.unwrap() {
        let name = found.metadata.name.unwrap();
        let patch = json!({"spec": {"template": {"spec": {"containers": [
            {"name": "helloworld", "lifecycle": {"preStop": {"sleep": {"seconds": 8}}},
                "readinessProbe": {"httpGet": {"path": "/hello", "port": 5000}, "periodSeconds": 1}}]}}}});
        deployments.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
    }
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "sample");
    eventually("the patient server alone is left", Duration::from_secs(90), || async {
        let found =
            pods.list(&ListParams::default().labels("app=helloworld")).await.map_err(|error| error.to_string())?;
        let patient = |pod: &Pod| pod.spec.iter().flat_map(|s| &s.containers).any(|c| c.lifecycle.is_some());
        let left: Vec<_> =
            found.items.iter().filter(|pod| !patient(pod)).filter_map(|p| p.metadata.name.as_ref()).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

/// Labels and annotations of namespace `sample` that say who is asked for proxies.
async fn asks(cluster: &Cluster) -> Value {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let metadata = namespaces.get("sample").await.unwrap().metadata;
    let (labels, annotations) = (metadata.labels.unwrap_or_default(), metadata.annotations.unwrap_or_default());
    json!([labels.get("istio-injection"), labels.get("istio.io/rev"), annotations.get("stolos.dev/upgraded-from")])
}

/// The control planes that made the proxies of `sample`, but for the caller's.
async fn made_by(cluster: &Cluster) -> Vec<String> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "sample");
    let pods = pods.list(&ListParams::default()).await.unwrap().items;
    let pods = pods.iter().filter(|pod| pod.metadata.name.as_deref() != Some("caller"));
    let pods = pods.filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let mut made: Vec<_> = pods.filter_map(|pod| injected_by(&serde_json::to_value(pod).unwrap())).collect();
    made.sort();
    made.dedup();
    made
}

async fn upgrade(world: &World, file: &Path, flags: &[&str]) -> Run {
    world.run(&[&["upgrade", "-f", text(file), "--yes"], flags].concat()).await
}

/// Killed after so many writes, of which the lock is the first.
async fn killed(world: &World, file: &Path, flags: &[&str], after: &str) {
    let mut command = world.stolos([&["upgrade", "-f", text(file), "--yes"], flags].concat());
    command.env("STOLOS_CRASH_AT", after);
    let run = finish(command).await;
    assert_eq!(run.code, None, "{after} {flags:?}\n{}\n{}", run.out, run.err);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_under_load_is_killed_led_back_and_finished() {
    let Some(helm) = helm() else { return };
    let mut world = World::new();
    charts(&world, "1.27.0");
    let file = world.write("mesh.yaml", &mesh(3, "version: 1.27.0"));
    world.up(&file).await;
    let clusters = world.clusters(&NAMES).await;
    let before = lists_at_rest(&clusters).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let nothing = world.good(&["upgrade", "-f", text(&file), "--dry-run"]).await;
    assert!(nothing.out.starts_with("Everything is at default (1.27.0)"), "{}", nothing.out);

    charts(&world, "1.28.0");
    // Another version alone is no upgrade by revision.
    world.write("mesh.yaml", &mesh(3, "version: 1.28.0"));
    let in_place = upgrade(&world, &file, &[]).await.ends_with(1);
    assert!(in_place.err.contains("`controlPlane.revision: 1-28-0` beside the version"), "{}", in_place.err);
    world.write("mesh.yaml", &mesh(3, NEW));
    futures::future::join_all(clusters.iter().map(patient)).await;
    let began = Instant::now();
    let mut traffic = Vec::new();
    for cluster in &clusters {
        traffic.push(caller(cluster).await);
    }
    let plan = world.run(&["upgrade", "-f", text(&file), "--dry-run"]).await.ends_with(2);
    insta::assert_snapshot!("upgrade_plan", plan.out);
    let nobody = world.run(&["upgrade", "-f", text(&file)]).await.ends_with(1);
    assert!(nobody.err.contains("nobody can be asked"), "{}", nobody.err);
    let back = upgrade(&world, &file, &["--rollback"]).await.ends_with(1);
    assert!(back.err.contains("there is no control plane `1-28-0` in any cluster"), "{}", back.err);

    // The canary: nobody has moved yet.
    killed(&world, &file, &["--until", "canary"], "write-after:6").await;
    upgrade(&world, &file, &["--until", "canary"]).await.ends_with(0);
    let beside = [
        "istio-base base-1.28.0 2 deployed",
        "istio-eastwestgateway gateway-1.27.0 1 deployed",
        "istiod istiod-1.27.0 1 deployed",
        "istiod-1-28-0 istiod-1.28.0 1 deployed",
    ];
    for (name, cluster) in NAMES.iter().zip(&clusters) {
        // Where Helm died in the middle of it, it was asked once more.
        let once = |release: String| release.replace("istiod-1.28.0 2 deployed", "istiod-1.28.0 1 deployed");
        let found: Vec<_> = releases(&world, &helm, name).await.into_iter().map(once).collect();
        assert_eq!(found, beside, "{name}");
        assert_eq!(asks(cluster).await, json!(["enabled", null, null]));
        assert_eq!(made_by(cluster).await, ["default"]);
    }

    // Namespaces: killed with the label of one cluster written and nothing restarted yet, then while it is.
    killed(&world, &file, &["--until", "namespaces"], "write-after:2").await;
    killed(&world, &file, &["--until", "namespaces"], "write-after:4").await;
    upgrade(&world, &file, &["--until", "namespaces"]).await.ends_with(0);
    for cluster in &clusters {
        assert_eq!(asks(cluster).await, json!([null, "1-28-0", "istio-injection=enabled"]));
        assert_eq!(made_by(cluster).await, ["1-28-0"]);
    }
    // One gateway moves as well, then all of it is led back.
    killed(&world, &file, &["--until", "gateways"], "write-after:2").await;
    killed(&world, &file, &["--rollback"], "write-after:2").await;
    let back = upgrade(&world, &file, &["--rollback"]).await;
    // The callers are nobody's to restart, but they have stayed with the old control plane.
    let back = back.ends_with(0);
    assert!(back.out.contains("the mesh is at default (1.27.0); 1-28-0 (1.28.0) is gone"), "{}", back.out);
    for (name, cluster) in NAMES.iter().zip(&clusters) {
        let there = releases(&world, &helm, name).await;
        assert!(there.contains(&"istiod istiod-1.27.0 1 deployed".to_owned()) && there.len() == 3, "{there:?}");
        assert!(there.iter().any(|line| line.starts_with("istio-eastwestgateway gateway-1.27.0 ")), "{there:?}");
        assert_eq!(asks(cluster).await, json!(["enabled", null, null]));
        assert_eq!(made_by(cluster).await, ["default"]);
    }

    // Forward again, as far as the callers let it.
    upgrade(&world, &file, &["--until", "namespaces"]).await.ends_with(0);
    upgrade(&world, &file, &["--until", "gateways"]).await.ends_with(0);
    let held = upgrade(&world, &file, &[]).await.ends_with(2);
    assert!(held.out.contains("pod/caller: nobody makes it anew"), "{}", held.out);
    assert!(held.out.contains("stolos upgrade -f") && held.out.contains("--rollback"), "{}", held.out);

    let mut sent: Vec<Sent> = Vec::new();
    for stream in traffic {
        stream.more(10).await;
        sent.extend(stream.end().await);
    }
    say(&figures("upgraded by revision, led back, upgraded again, killed 5 times", &sent));
    let failed: Vec<_> = sent.iter().filter(|sent| sent.failed()).collect();
    let at: Vec<_> = failed.iter().map(|sent| sent.at.duration_since(began)).collect();
    // Every server was made anew four times and every gateway three times: on a busy machine one news comes too late.
    assert!(
        failed.len() * 1000 <= sent.len(),
        "{} of {} requests failed at {at:?}: {failed:?}",
        failed.len(),
        sent.len()
    );

    for cluster in &clusters {
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "sample");
        pods.delete("caller", &DeleteParams::default()).await.unwrap();
    }
    let done = upgrade(&world, &file, &["-o", "json"]).await.ends_with(0).document();
    assert_eq!((&done["done"], &done["stopped"]), (&json!(true), &Value::Null), "{done:#}");
    for (name, cluster) in NAMES.iter().zip(&clusters) {
        let there = releases(&world, &helm, name).await;
        assert!(there.len() == 3 && there[2] == "istiod-1-28-0 istiod-1.28.0 1 deployed", "{there:?}");
        assert_eq!(asks(cluster).await, json!([null, "1-28-0", null]));
    }
    world.good(&["upgrade", "-f", text(&file), "--dry-run"]).await;
    world.good(&["plan", "-f", text(&file)]).await;
    world.proven(&file, 9).await;

    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
}

/// A remote's proxies are connected to its primary's control plane: that stays as long as they are, and what led the
/// remote to it goes first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_and_its_remote_are_upgraded() {
    let Some(helm) = helm() else { return };
    let mut world = World::new();
    charts(&world, "1.27.0");
    let pair = [("one", "east", ""), ("far", "west", "one")];
    let file = world.write("mesh.yaml", &super::remote::mesh(&pair, "version: 1.27.0"));
    world.up(&file).await;
    let clusters = world.clusters(&["one", "far"]).await;
    let before = lists_at_rest(&clusters).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;

    // The small engine has no revisions, and says so.
    let small = mesh(1, "").replace("engine: istio, charts: charts, ", "engine: stolos").replace("east-1", "one");
    let small = world.write("small.yaml", &small);
    let refused = upgrade(&world, &small, &[]).await.ends_with(1);
    assert!(refused.err.contains("the small engine has no revisions"), "{}", refused.err);

    charts(&world, "1.28.0");
    world.write("mesh.yaml", &super::remote::mesh(&pair, NEW));
    upgrade(&world, &file, &["--one-by-one"]).await.ends_with(0);
    for (name, count) in [("one", 3), ("far", 3)] {
        let there = releases(&world, &helm, name).await;
        assert!(there.len() == count && there[2] == "istiod-1-28-0 istiod-1.28.0 1 deployed", "{name}: {there:?}");
    }
    world.good(&["plan", "-f", text(&file)]).await;
    world.proven(&file, 4).await;
    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
}
