use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::Desk;

#[test]
fn the_demo_proves_nine_pairs_and_says_so_in_one_document() {
    let desk = Desk::new();
    let run = desk.finish(desk.command().args(["demo", "--once", "-o", "json"]).env("TMPDIR", desk.path()));
    assert_eq!(run.code, Some(0), "{}", run.shown());
    let report: Value = serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{e}: {}", run.shown()));
    assert_eq!((&report["kind"], &report["verdict"]), (&Value::from("VerifyReport"), &Value::from("pass")));
    let pairs = report["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 9);
    for pair in pairs {
        let west = |side: &str| pair[side].as_str().unwrap().contains("west");
        assert_eq!(pair["verdict"], "pass", "{pair}");
        assert_eq!(pair["gateway"].is_null(), west("from") == west("to"), "{pair}");
        assert!(pair["identity"].as_str().unwrap().starts_with("spiffe://cluster.local/ns/"), "{pair}");
    }
    assert!(run.err.contains("From start to proof"), "{}", run.err);
    assert!(!run.err.contains('\u{1b}'), "a pipe gets plain lines: {}", run.err);
    assert_eq!(std::fs::read_dir(desk.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn ctrl_c_ends_the_demo_and_takes_its_folder_away() {
    let desk = Desk::new();
    let mut child = desk
        .command()
        .args(["demo"])
        .env("TMPDIR", desk.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines.find(|line| line.as_ref().unwrap().contains("Building the mesh")).unwrap().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let rest = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());
    let began = std::time::Instant::now();
    let status = child.wait().unwrap();
    assert!(began.elapsed() < Duration::from_secs(60), "it takes {:?}", began.elapsed());
    assert_eq!(status.code(), Some(130), "{:?}", rest.join());
    assert_eq!(std::fs::read_dir(desk.path()).unwrap().count(), 0, "nothing is left");
}
