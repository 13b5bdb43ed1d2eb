//! `apply` and `teardown` are killed in the middle, and the next run ends where an undisturbed one does.
//!
//! The binary kills itself with SIGKILL at the n-th journal note, or before or after the n-th write to an API server
//! (`STOLOS_CRASH_AT`). Here some n are tried; with `STOLOS_SWEEP=all` every one, until a run finishes.

use std::os::unix::process::ExitStatusExt as _;

use crate::Desk;
use crate::lab::{LabDesk, objects};

const CONTEXTS: [&str; 2] = ["cluster-1", "cluster-2"];

#[test]
fn killed_at_a_journal_note() {
    sweep("journal", &[2, 31]);
}

#[test]
fn killed_before_a_write_is_sent() {
    sweep("write-before", &[9, 44]);
}

#[test]
fn killed_after_a_write_is_answered() {
    sweep("write-after", &[1, 27]);
}

#[expect(clippy::print_stderr, reason = "the number of kills is part of the proof")]
fn sweep(point: &str, some: &[u32]) {
    let all = std::env::var("STOLOS_SWEEP").is_ok_and(|v| v == "all");
    let counts: Box<dyn Iterator<Item = u32>> = if all { Box::new(1..) } else { Box::new(some.iter().copied()) };
    let desk = LabDesk(Desk::new());
    desk.good(&["lab", "up", "--clusters", "2", "--networks", "2", "--detach"]);
    let empty = lasting(&desk);
    desk.good(&["apply", "-f", "state/mesh.yaml"]);
    let built = lasting(&desk);
    desk.good(&["teardown", "-f", "state/mesh.yaml", "--yes"]);
    assert_eq!(lasting(&desk), empty, "an undisturbed run");

    let mut kills = 0;
    for count in counts {
        let at = format!("{point}:{count}");
        let killed_apply = killed(&desk, &["apply", "-f", "state/mesh.yaml"], &at);
        desk.good(&["apply", "-f", "state/mesh.yaml"]);
        assert_eq!(lasting(&desk), built, "apply killed at {at}");
        assert_eq!(desk.run(&["plan", "-f", "state/mesh.yaml"]).code, Some(0), "apply killed at {at}");
        let killed_teardown = killed(&desk, &["teardown", "-f", "state/mesh.yaml", "--yes"], &at);
        desk.good(&["teardown", "-f", "state/mesh.yaml", "--yes"]);
        assert_eq!(lasting(&desk), empty, "teardown killed at {at}");
        kills += u32::from(killed_apply) + u32::from(killed_teardown);
        if !killed_apply && !killed_teardown {
            break;
        }
    }
    eprintln!("{point}: {kills} kills");
    assert!(kills > 0);
}

/// Runs the command until it kills itself; whether it did, or finished before.
fn killed(desk: &LabDesk, args: &[&str], at: &str) -> bool {
    let output = desk.command(args).env("STOLOS_CRASH_AT", at).output().unwrap();
    match (output.status.signal(), output.status.code()) {
        (Some(9), _) => true,
        (None, Some(0)) => false,
        other => panic!("{args:?} at {at} ended with {other:?}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// What is there, but for what controllers make and name themselves.
fn lasting(desk: &LabDesk) -> Vec<String> {
    let passing = ["Pod", "ReplicaSet", "EndpointSlice", "Endpoints"];
    let mut found = objects(desk, &CONTEXTS);
    found.retain(|object| !passing.iter().any(|kind| object.split(' ').nth(1) == Some(kind)));
    // UIDs differ from run to run.
    found.into_iter().map(|object| object.rsplit_once(' ').map_or(object.clone(), |(o, _)| o.to_owned())).collect()
}
