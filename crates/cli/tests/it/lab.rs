//! What the commands say about a lab in the background and a mesh on it. What they do is in `tests/journeys`.

use serde_json::Value;

use crate::{Desk, Run};

/// A desk whose lab goes down with it, also when a test fails.
struct LabDesk(Desk);

impl LabDesk {
    fn run(&self, args: &[&str]) -> Run {
        self.0.finish(&mut self.command(args))
    }

    fn command(&self, args: &[&str]) -> std::process::Command {
        let mut command = self.0.command();
        command
            .args(args)
            .env("KUBECONFIG", self.0.path().join("config"))
            .env("STOLOS_STATE", self.0.path().join("state"));
        command
    }

    fn good(&self, args: &[&str]) -> Run {
        let run = self.run(args);
        assert_eq!(run.code, Some(0), "{args:?}: {}", run.shown());
        run
    }

    fn json(&self, args: &[&str]) -> Value {
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

    let between = ["lab", "fault", "delay", "network-east", "network-west", "20ms", "--jitter", "5ms"];
    desk.good(&between);
    desk.good(&["lab", "fault", "loss", "network-east", "network-west", "2.5%", "--one-way"]);
    desk.good(&["lab", "fault", "partition", "--one-way", "context-west-1", "network-east"]);
    let shown = desk.good(&["lab", "status"]).out;
    for line in [
        "network-east ↔ network-west: 20 ms ± 5 ms later",
        "network-east → network-west: 2.5% lost",
        "context-west-1 → network-east: cut",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    assert_eq!(desk.run(&["lab", "fault", "delay", "network-east", "nowhere", "1ms"]).code, Some(1));
    desk.good(&["lab", "fault", "heal"]);
    assert_eq!(desk.json(&["lab", "status", "-o", "json"])["faults"], serde_json::json!([]));

    let refused = desk.run(&["teardown"]);
    assert!(refused.code == Some(1) && refused.err.contains("nobody can be asked"), "{}", refused.shown());
    desk.good(&["teardown", "--yes"]);
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
