//! The GitHub Action's own script, run as a workflow would.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::Desk;

const ACTION: &str = include_str!("../../../../action.yml");

/// The script of the step that runs Stolos.
fn script() -> String {
    let action: Value = serde_saphyr::from_str(ACTION).unwrap();
    let steps = action["runs"]["steps"].as_array().unwrap().clone();
    steps.iter().find(|step| step["id"] == "run").unwrap()["run"].as_str().unwrap().to_owned()
}

/// Runs it with a `stolos` that ends like that; its end, its outputs, its summary.
fn run(command: &str, end: i32, fail_on_findings: bool) -> (Option<i32>, String, String) {
    let desk = Desk::new();
    let stand_in = format!(
        "#!/bin/sh\ntest \"$(stat -c %a \"$5\")\" = 600 || exit 99\n[ \"$(cat \"$5\")\" = clusters ] || exit 98\n\
         echo \"called with $1 $2 $3 ${{6-}} ${{7-}}\"\nexit {end}\n"
    );
    desk.write("stolos", &stand_in);
    let make = Command::new("chmod").arg("+x").arg(desk.path().join("stolos")).status().unwrap();
    assert!(make.success());
    let path = format!("{}:{}", desk.path().display(), std::env::var("PATH").unwrap());
    // As GitHub runs `shell: bash`.
    let output = Command::new("bash")
        .args(["--noprofile", "--norc", "-eo", "pipefail", "-c", &script()])
        .current_dir(desk.path())
        .env("PATH", path)
        .env("TMPDIR", desk.path())
        .env("COMMAND", command)
        .env("MESH_FILE", "mesh.yaml")
        .env("MESH_KUBECONFIG", "clusters")
        .env("ARGUMENTS", "-o wide")
        .env("FAIL_ON_FINDINGS", fail_on_findings.to_string())
        .env("GITHUB_STEP_SUMMARY", desk.path().join("summary"))
        .env("GITHUB_OUTPUT", desk.path().join("output"))
        .output()
        .unwrap();
    let read = |name: &str| std::fs::read_to_string(desk.path().join(name)).unwrap_or_default();
    let left = std::fs::read_dir(desk.path()).unwrap().flatten().any(|e| Path::new(&e.path()).is_dir());
    assert!(!left, "the kubeconfig is left behind");
    (output.status.code(), read("output"), read("summary"))
}

#[test]
fn a_workflow_sees_how_it_ended() {
    for (command, end, fail, expected, changes) in [
        ("plan", 0, false, Some(0), "false"),
        ("plan", 2, false, Some(0), "true"),
        ("check", 2, true, Some(2), "true"),
        ("verify", 1, false, Some(1), "false"),
        ("apply", 4, false, Some(4), "false"),
    ] {
        let (code, outputs, summary) = run(command, end, fail);
        assert_eq!(code, expected, "{command} {end}");
        assert_eq!(outputs, format!("exit-code={end}\nchanges={changes}\n"), "{command} {end}");
        let consent = if command == "apply" { "--yes -o" } else { "-o wide" };
        let called = format!("called with {command} -f mesh.yaml {consent}\n");
        assert_eq!(summary, format!("### stolos {command}\n\n```text\n{called}\n```\n"));
    }
    assert_eq!(run("teardown", 0, false).0, Some(1));
}
