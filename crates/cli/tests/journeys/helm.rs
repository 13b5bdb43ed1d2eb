//! Engine `istio` against a lab, with the real Helm and charts of our own in place of Istio's: what they make is the
//! lab's own control plane under Istio's names, so the mesh that comes of it is proven like any other.
//!
//! Helm is found by `STOLOS_HELM` (`.ci/programs` brings it).

mod adopted;
mod remote;
mod upgrade;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value;
use stolos_cluster::Cluster;

use crate::lists::{all_equal_lists, difference, equal_lists, everything, lists_at_rest, versions};
use crate::world::{World, say, text};

const NAMES: [&str; 3] = ["east-1", "east-2", "west-1"];

/// Helm, if the journey is to go on.
fn helm() -> Option<PathBuf> {
    crate::programs::program("STOLOS_HELM")
}

/// A mesh of the first so many clusters, with this said of its control plane.
fn mesh(clusters: usize, control: &str) -> String {
    let head = format!(
        "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: charted}}\nspec:\n  samples: [helloworld, sleep]\n  \
         controlPlane: {{engine: istio, charts: charts, {control}}}\n  clusters:\n"
    );
    let line = |name: &&str| {
        let network = name.split('-').next().unwrap_or_default();
        format!("  - {{name: {name}, context: {name}, network: network-{network}}}\n")
    };
    NAMES.iter().take(clusters).map(line).fold(head, |text, line| text + &line)
}

/// Puts the charts into the world, as that version.
fn charts(world: &World, version: &str) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/charts");
    copy(&from, &world.path("charts"), version);
    // Istio's definitions say that they outlive their release.
    let mut definitions = String::new();
    for mut crd in stolos_k8s::istio::crds() {
        crd["metadata"]["annotations"]["helm.sh/resource-policy"] = "keep".into();
        let _ = writeln!(definitions, "---\n{crd}");
    }
    let files = world.path("charts/base/files");
    std::fs::create_dir_all(&files).unwrap();
    std::fs::write(files.join("crd-all.gen.yaml"), definitions).unwrap();
}

fn copy(from: &Path, to: &Path, version: &str) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to, version);
        } else {
            let text = std::fs::read_to_string(&from).unwrap();
            let chart = entry.file_name() == "Chart.yaml";
            std::fs::write(to, if chart { text.replace("1.28.0", version) } else { text }).unwrap();
        }
    }
}

/// Runs the user's own Helm, which must succeed.
async fn by_hand(world: &World, helm: &Path, context: &str, args: &[&str]) -> String {
    let mut command = world.program(helm, args);
    command.args(["--kube-context", context]);
    crate::world::finish(command).await.ends_with(0).out
}

/// Names, chart versions and revisions of the releases in istio-system.
async fn releases(world: &World, helm: &Path, context: &str) -> Vec<String> {
    let list = by_hand(world, helm, context, &["list", "--namespace", "istio-system", "-o", "json"]).await;
    let list: Vec<Value> = serde_json::from_str(&list).unwrap();
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let line = |r: &Value| {
        format!("{} {} {} {}", text(&r["name"]), text(&r["chart"]), text(&r["revision"]), text(&r["status"]))
    };
    list.iter().map(line).collect()
}

/// Applying the same file again plans nothing, writes nothing and changes nothing.
async fn nothing_is_written_again(world: &World, file: &Path, clusters: &[Cluster]) {
    let plan = world.good(&["plan", "-f", text(file), "-o", "json"]).await.document();
    assert_eq!(plan["summary"], serde_json::json!({"add": 0, "change": 0, "remove": 0}), "{plan:#}");
    let mut written = String::new();
    for _ in 0..4 {
        let mut before = Vec::new();
        for cluster in clusters {
            before.push(versions(&everything(&cluster.client).await.unwrap()));
        }
        let report = world.good(&["apply", "-f", text(file), "--yes", "-o", "json"]).await.document();
        assert_eq!(report["report"]["writes"], 0, "{report:#}");
        written.clear();
        for (cluster, before) in clusters.iter().zip(&before) {
            written += &difference(before, &versions(&everything(&cluster.client).await.unwrap()));
        }
        if written.is_empty() {
            return;
        }
    }
    panic!("every apply wrote something:\n{written}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_clusters_by_helm_from_nothing_to_nothing() {
    let Some(helm) = helm() else { return };
    let mut world = World::new();
    charts(&world, "1.27.0");
    let file = world.write("mesh.yaml", &mesh(3, "version: 1.27.0"));
    world.up(&file).await;
    let clusters = world.clusters(&NAMES).await;
    // Somebody else's release is none of ours, wherever it is.
    let theirs = [
        "upgrade",
        "--install",
        "theirs",
        "charts/gateway",
        "--namespace",
        "default",
        "--set",
        "service.type=ClusterIP,replicaCount=0",
    ];
    by_hand(&world, &helm, "east-1", &theirs).await;
    let before = lists_at_rest(&clusters).await;

    // The plan needs no Helm, and says what Helm will be asked for.
    let mut plan = world.stolos(["plan", "-f", text(&file)]);
    plan.env_remove("STOLOS_HELM").env("PATH", "/nowhere");
    let plan = crate::world::finish(plan).await.ends_with(2);
    assert!(plan.out.contains("$ helm upgrade --install istiod "), "{}", plan.out);
    // Without one nothing is touched.
    let mut apply = world.stolos(["apply", "-f", text(&file), "--yes"]);
    apply.env_remove("STOLOS_HELM").env("PATH", "/nowhere");
    let refused = crate::world::finish(apply).await.ends_with(1);
    assert!(refused.err.contains("`helm` is not there: Helm 3.14 or newer, or Helm 4 is needed"), "{}", refused.err);
    all_equal_lists(&clusters, &before).await;

    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    for context in NAMES {
        let expected = [
            "istio-base base-1.27.0 1 deployed",
            "istio-eastwestgateway gateway-1.27.0 1 deployed",
            "istiod istiod-1.27.0 1 deployed",
        ];
        assert_eq!(releases(&world, &helm, context).await, expected, "{context}");
    }
    crate::golden::compare("istio-multi-primary-mixed", &clusters).await;
    world.proven(&file, 9).await;
    nothing_is_written_again(&world, &file, &clusters).await;

    // A newer chart and another value: an upgrade of each release that they concern.
    charts(&world, "1.28.0");
    world.write(
        "mesh.yaml",
        &mesh(3, "version: 1.28.0, values: {meshConfig: {accessLogEncoding: JSON, ingressClass: other}}"),
    );
    world.run(&["plan", "-f", text(&file)]).await.ends_with(2);
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    for context in NAMES {
        let expected = [
            "istio-base base-1.28.0 2 deployed",
            "istio-eastwestgateway gateway-1.28.0 2 deployed",
            "istiod istiod-1.28.0 2 deployed",
        ];
        assert_eq!(releases(&world, &helm, context).await, expected, "{context}");
    }
    world.proven(&file, 9).await;
    nothing_is_written_again(&world, &file, &clusters).await;

    // One leaves: its releases go, and the others forget it. What is on one network needs no gateway any more.
    world.write("mesh.yaml", &mesh(2, "version: 1.28.0"));
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    assert_eq!(releases(&world, &helm, "west-1").await, Vec::<String>::new());
    equal_lists(&clusters[2], &before[2]).await;
    let expected = ["istio-base base-1.28.0 2 deployed", "istiod istiod-1.28.0 3 deployed"];
    assert_eq!(releases(&world, &helm, "east-1").await, expected);
    world.proven(&file, 4).await;
    nothing_is_written_again(&world, &file, &clusters[..2]).await;

    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    let theirs = by_hand(&world, &helm, "east-1", &["list", "--namespace", "default", "--short"]).await;
    assert_eq!(theirs.trim(), "theirs");
}

/// From 1.27 to 1.28 by revision: the new control plane beside the old one, then everything moved to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_by_revision_stands_beside_the_old_control_plane() {
    let Some(helm) = helm() else { return };
    let mut world = World::new();
    charts(&world, "1.27.0");
    let file = world.write("mesh.yaml", &mesh(3, "version: 1.27.0"));
    world.up(&file).await;
    let clusters = world.clusters(&NAMES).await;
    let before = lists_at_rest(&clusters).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;

    charts(&world, "1.28.0");
    world.write("mesh.yaml", &mesh(3, "version: 1.28.0, revision: 1-28-0"));
    let plan = world.run(&["plan", "-f", text(&file)]).await.ends_with(2);
    assert!(
        plan.out.contains("Release istio-system/istiod (istiod 1.27.0) is not what the mesh file asks for, and stays"),
        "{}",
        plan.out
    );
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let expected = [
        "istio-base base-1.28.0 2 deployed",
        "istio-eastwestgateway gateway-1.28.0 2 deployed",
        "istiod istiod-1.27.0 1 deployed",
        "istiod-1-28-0 istiod-1.28.0 1 deployed",
    ];
    assert_eq!(releases(&world, &helm, "west-1").await, expected);
    // Probes and gateways are injected by the new one.
    world.proven(&file, 9).await;
    nothing_is_written_again(&world, &file, &clusters).await;

    world.good(&["teardown", "-f", text(&file), "--yes"]).await;
    all_equal_lists(&clusters, &before).await;
}

/// A Helm that is killed in the middle leaves a release that no Helm touches any more; the next apply does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_helm_that_was_killed_is_no_obstacle() {
    let Some(helm) = helm() else { return };
    let mut world = World::new();
    charts(&world, "1.28.0");
    let lab = world.write("lab.yaml", &mesh(1, "version: 1.28.0"));
    let file = world.write("mesh.yaml", &mesh(1, "version: 1.28.0"));
    world.up(&lab).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    // The newest revision says that it is under way, and nobody is at it.
    let cluster = world.cluster("east-1").await;
    let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> =
        kube::Api::namespaced(cluster.client.clone(), "istio-system");
    let mut stuck = secrets.get("sh.helm.release.v1.istiod.v1").await.unwrap();
    stuck.metadata.name = Some("sh.helm.release.v1.istiod.v2".into());
    stuck.metadata.resource_version = None;
    stuck.metadata.uid = None;
    let labels = stuck.metadata.labels.get_or_insert_default();
    labels.insert("status".into(), "pending-upgrade".into());
    labels.insert("version".into(), "2".into());
    let release = stuck.data.as_mut().unwrap().get_mut("release").unwrap();
    release.0 = pending(&release.0);
    secrets.create(&kube::api::PostParams::default(), &stuck).await.unwrap();
    let refused = by_hand(&world, &helm, "east-1", &["status", "istiod", "--namespace", "istio-system"]).await;
    assert!(refused.contains("pending-upgrade"), "{refused}");

    let plan = world.run(&["plan", "-f", text(&file)]).await.ends_with(2);
    assert!(plan.out.contains("status is pending-upgrade, not deployed"), "{}", plan.out);
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.good(&["plan", "-f", text(&file)]).await;
    world.proven(&file, 1).await;
}

/// The same release, under way.
fn pending(release: &[u8]) -> Vec<u8> {
    use std::io::Read as _;

    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    let packed = BASE64_STANDARD.decode(release).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut text).unwrap();
    let mut stored: Value = serde_json::from_str(&text).unwrap();
    stored["info"]["status"] = "pending-upgrade".into();
    stored["version"] = 2.into();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(stored.to_string().as_bytes()).unwrap();
    BASE64_STANDARD.encode(packed.finish().unwrap()).into_bytes()
}

/// What Helm says when it fails is what the user reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chart_that_refuses_its_values_is_heard() {
    let Some(_) = helm() else { return };
    let mut world = World::new();
    charts(&world, "1.28.0");
    let file = world.write("mesh.yaml", &mesh(1, "version: 1.28.0, gateways: {ingress: {nonsense: true}}"));
    world.up(&file).await;
    let run = world.run(&["apply", "-f", text(&file), "--yes"]).await;
    assert_ne!(run.code, Some(0));
    assert!(
        run.out.contains("helm upgrade --install ended with exit status: 1") && run.out.contains("nonsense"),
        "{} {}",
        run.out,
        run.err
    );
    // The values were in a file for a moment, and are gone.
    let left: Vec<_> = std::fs::read_dir(world.state("charted")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("values-")), "{left:?}");
    say("helm's own words reached the user");
}
