//! Two labs on one machine, and a lab that was killed.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::world::{World, eventually, text};

fn mesh(name: &str) -> String {
    format!(
        "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: {name}}}\nspec:\n  clusters:\n\
         \x20 - {{name: a, context: {name}-a, network: network-a}}\n\
         \x20 - {{name: b, context: {name}-b, network: network-b}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_meshes_side_by_side_and_one_is_killed_and_comes_back() {
    let (first, second) = tokio::join!(built("red"), built("blue"));
    let ((mut first, red), (second, blue)) = (first, second);
    // Both are proven at the same time.
    tokio::join!(first.proven(&red, 4), second.proven(&blue, 4));

    let before = first.lab(&red).await;
    let other = second.lab(&blue).await;
    let subnets = |lab: &Value| places(lab, "subnet");
    assert!(subnets(&before).iter().all(|subnet| !subnets(&other).contains(subnet)), "{before:#}\n{other:#}");

    let pid = before["pid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(pid.try_into().ok()?)).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    eventually("the lab's end", Duration::from_secs(20), || async {
        let run = first.run(&["lab", "status", "-f", text(&red), "-o", "json"]).await;
        if run.code == Some(0) { Err(run.out) } else { Ok(()) }
    })
    .await;
    // The other one does not notice.
    second.proven(&blue, 4).await;

    first.up(&red).await;
    let after = first.lab(&red).await;
    for place in ["subnet", "server", "context", "network"] {
        assert_eq!(places(&before, place), places(&after, place), "{place}");
    }
    // It is the mesh that it was: nothing to do, no pod missing, and it works.
    first.good(&["plan", "-f", text(&red)]).await;
    for context in ["red-a", "red-b"] {
        let cluster = first.cluster(context).await;
        for app in ["istiod", "istio-eastwestgateway"] {
            eventually(&format!("{app} runs in {context}"), Duration::from_secs(60), || async {
                let ready = crate::setup_mesh::ready_pods(&cluster.client, "istio-system", app).await;
                if ready.is_empty() { Err("no pod is ready") } else { Ok(()) }
            })
            .await;
        }
    }
    first.proven(&red, 4).await;
    let gateways = |lab: &Value| places(lab, "loadBalancers");
    assert_eq!(gateways(&before), gateways(&first.lab(&red).await), "gateways keep their addresses");
}

/// A mesh in a lab of its own, applied; its file.
async fn built(name: &str) -> (World, PathBuf) {
    let mut world = World::new();
    let file = world.write("mesh.yaml", &mesh(name));
    world.up(&file).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    (world, file)
}

/// One property of each cluster.
fn places(lab: &Value, what: &str) -> Vec<Value> {
    lab["clusters"].as_array().unwrap().iter().map(|cluster| cluster[what].clone()).collect()
}
