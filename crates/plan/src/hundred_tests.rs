//! What is promised of a plan of a hundred clusters, over clusters in memory: a hundred real ones with a control plane
//! each do not come to rest on one small machine, so `cargo xtask bench plan` measures the second half here.

use std::time::Instant;

use serde_json::json;

use crate::tests::{World, mesh};
use crate::*;

const CLUSTERS: usize = 100;
/// Objects that the mesh does not make.
const OBJECTS: usize = 1000;

#[test]
#[ignore = "a benchmark: cargo xtask bench plan"]
fn plan_of_a_hundred_clusters_in_memory() {
    let names: Vec<String> = (1..=CLUSTERS).map(|n| format!("c{n}")).collect();
    let networks: Vec<String> = (1..=CLUSTERS).map(|n| format!("n{}", n % 10)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mesh = mesh(&names.iter().copied().zip(networks.iter().map(String::as_str)).collect::<Vec<_>>());
    let mut world = World::new(&names);
    for name in names {
        let state = world.state(name);
        for n in 0..OBJECTS / 4 {
            let named = |api: &str, kind: &str| {
                json!({"apiVersion": api, "kind": kind, "metadata": {
                "name": format!("app-{n}"), "namespace": "default", "uid": format!("{kind}-{n}"),
                "labels": {"app": format!("app-{n}"), "kubernetes.io/service-name": format!("app-{n}")}}})
            };
            let mut service = named("v1", "Service");
            service["spec"] =
                json!({"clusterIP": "10.0.0.1", "selector": {"app": format!("app-{n}")}, "ports": [{"port": 80}]});
            let mut slice = named("discovery.k8s.io/v1", "EndpointSlice");
            slice["endpoints"] = json!([{"addresses": ["10.1.0.1"], "conditions": {"ready": true}}]);
            let mut pod = named("v1", "Pod");
            pod["spec"] = json!({"containers": [{"name": "app", "image": "app:1"}]});
            pod["status"] = json!({"podIP": "10.1.0.1", "phase": "Running"});
            state.objects.extend([service, slice, pod, named("v1", "ConfigMap")]);
        }
    }
    for when in ["nothing built", "all built"] {
        let mut took = Vec::new();
        let mut steps = 0;
        for _ in 0..5 {
            let began = Instant::now();
            let plan = plan(&mesh, &world.observed).unwrap();
            took.push(began.elapsed().as_secs_f64());
            steps = plan.steps.len();
            if when == "nothing built" && took.len() == 5 {
                world.run(&plan);
            }
        }
        assert_eq!(steps == 0, when == "all built", "{steps} steps, {when}");
        took.sort_by(f64::total_cmp);
        let objects: usize = world.observed.seen().map(|(_, state)| state.objects.iter().count()).sum();
        println!(
            "plan, {CLUSTERS} clusters in memory, {when}: {objects} objects, {steps} steps, {:.2} s ({:.2} to {:.2})",
            took[2], took[0], took[4]
        );
    }
}
