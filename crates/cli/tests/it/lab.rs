//! A lab in the background, a mesh on it, and both gone again.

use serde_json::Value;

use crate::{Desk, Run};

/// A desk whose lab goes down with it, also when a test fails.
pub(crate) struct LabDesk(pub(crate) Desk);

impl LabDesk {
    pub(crate) fn run(&self, args: &[&str]) -> Run {
        self.0.finish(&mut self.command(args))
    }

    pub(crate) fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.0.command();
        command
            .args(args)
            .env("KUBECONFIG", self.0.path().join("config"))
            .env("STOLOS_STATE", self.0.path().join("state"));
        command
    }

    pub(crate) fn good(&self, args: &[&str]) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, Some(0), "{args:?}: {}", run.shown());
        run
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let run = self.run(args);
        serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", run.shown()))
    }
}

impl Drop for LabDesk {
    fn drop(&mut self) {
        let _ = self.command(&["lab", "down"]).output();
    }
}

/// The other systems' own files, unmodified.
const TOPOLOGY: &str = include_str!("../../../spec/tests/inputs/setup-mesh/topology.yaml");
const BASE: &str = include_str!("../../../spec/tests/inputs/setup-mesh/base.yaml");
const RISTIOCTL: &str = include_str!("../../../spec/tests/inputs/ristioctl/mesh.yaml");

#[test]
fn a_topology_becomes_a_lab_and_a_mesh_and_nothing_again() {
    let desk = LabDesk(Desk::new());
    desk.0.write("topology.yaml", TOPOLOGY);
    desk.0.write("base.yaml", BASE);
    let up = desk.good(&["lab", "up", "--detach"]);
    assert_eq!(up.out, "export KUBECONFIG=[FOLDER]/state/kubeconfig\n", "{}", up.shown());
    assert!(desk.0.read("config").starts_with("# Written by stolos lab"), "$KUBECONFIG is written too");
    assert_eq!(desk.good(&["lab", "env"]).out, up.out);
    let status = desk.json(&["lab", "status", "-o", "json"]);
    assert_eq!(status["clusters"].as_array().unwrap().len(), 3, "{status}");
    let second = desk.run(&["lab", "up", "--detach"]);
    assert!(second.code == Some(1) && second.err.contains("is running already"), "{}", second.shown());

    let contexts = ["context-east-1", "context-east-2", "context-west-1"];
    let before = objects(&desk, &contexts);
    let applied = desk.good(&["apply", "--samples"]);
    assert!(applied.out.contains("✓ done:"), "{}", applied.shown());
    let again = desk.good(&["apply", "--samples"]);
    assert!(again.out.contains("No changes"), "{}", again.shown());
    assert_eq!(desk.run(&["plan", "--samples"]).code, Some(0));

    let report = desk.json(&["verify", "-o", "json"]);
    assert_eq!(report["verdict"], "pass", "{report:#}");
    let status = desk.json(&["status", "-o", "json"]);
    assert_eq!(status["clusters"].as_array().unwrap().len(), 3, "{status}");
    assert!(desk.good(&["graph"]).out.contains("network-west"));
    assert!(desk.good(&["cert", "list"]).out.contains("intermediate"));

    assert_eq!(desk.run(&["lab", "fault", "partition", "nowhere"]).code, Some(1));
    desk.good(&["lab", "fault", "partition", "network-west"]);
    assert_eq!(desk.json(&["lab", "status", "-o", "json"])["clusters"][2]["cutOff"], true);
    desk.good(&["lab", "fault", "heal"]);

    let refused = desk.run(&["teardown"]);
    assert!(refused.code == Some(1) && refused.err.contains("nobody can be asked"), "{}", refused.shown());
    desk.good(&["teardown", "--yes"]);
    assert_eq!(objects(&desk, &contexts), before, "what was there before is there again, and nothing else");

    desk.good(&["lab", "down"]);
    assert_eq!(desk.run(&["lab", "status"]).code, Some(1));
    assert!(desk.good(&["lab", "down"]).err.contains("no lab runs"));
}

#[test]
fn so_many_clusters_come_without_a_file() {
    let desk = LabDesk(Desk::new());
    desk.good(&["lab", "up", "--clusters", "2", "--networks", "2", "--detach"]);
    let plan = desk.json(&["plan", "-f", "state/mesh.yaml", "-o", "json"]);
    assert_eq!(plan["clusters"][1]["network"], "network-2", "{plan}");
    desk.good(&["lab", "down"]);
}

#[test]
fn a_ristioctl_file_becomes_a_lab_and_a_mesh() {
    let desk = LabDesk(Desk::new());
    desk.0.write("mesh.yaml", RISTIOCTL);
    desk.good(&["lab", "up", "--detach"]);
    // The file says where its clusters' kubeconfig is: there it is, and nothing else is needed.
    assert!(desk.0.read("kubeconfig-istio-demo.yaml").starts_with("# Written by stolos lab"));
    let applied = desk.good(&["apply"]);
    assert!(applied.out.contains("the file wishes for Istio 1.18.0"), "{}", applied.shown());
    let report = desk.json(&["verify", "-o", "json"]);
    assert_eq!(report["verdict"], "pass", "{report:#}");
    assert!(report["pairs"][1]["gateway"].is_string(), "each cluster has a network of its own: {report:#}");
    desk.good(&["teardown", "--yes"]);
    desk.good(&["lab", "down"]);
}

/// The names of all objects but events and Leases, in every cluster.
pub(crate) fn objects(desk: &LabDesk, contexts: &[&str]) -> Vec<String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let file = desk.0.path().join("config");
        let kubeconfig = stolos_cluster::Kubeconfig::find(Some(&file), None).unwrap();
        let mut found = Vec::new();
        for context in contexts {
            let cluster = stolos_cluster::connect(&kubeconfig, context, context).await.unwrap();
            found.extend(listed(context, cluster.client).await);
        }
        found
    })
}

async fn listed(context: &str, client: kube::Client) -> Vec<String> {
    use kube::api::{Api, DynamicObject, ListParams};
    use kube::discovery::{Discovery, verbs};
    let discovery = Discovery::new(client.clone()).run().await.unwrap();
    let mut found = std::collections::BTreeSet::new();
    for group in discovery.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            if !capabilities.supports_operation(verbs::LIST) || ["Event", "Lease"].contains(&resource.kind.as_str()) {
                continue;
            }
            let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
            for object in api.list(&ListParams::default()).await.unwrap() {
                let (namespace, name) = (object.metadata.namespace.unwrap_or_default(), object.metadata.name.unwrap());
                let uid = object.metadata.uid.unwrap_or_default();
                found.insert(format!("{context} {} {namespace}/{name} {uid}", resource.kind));
            }
        }
    }
    found.into_iter().collect()
}
