//! `kill -9` at every point of an apply and of a teardown, and the next run ends in the same state.
//!
//! A run dies at its n-th journal note, before its n-th write is sent to an API server, or after its answer. Usually
//! some n are tried, spread over the whole run. `STOLOS_SWEEP=all` tries every one until the run finishes, which takes
//! minutes; `STOLOS_SWEEP=journal`, `write-before` or `write-after` every one of that point alone.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use stolos_cluster::Cluster;

use crate::lists::{all_equal_lists, difference, everything, lists_at_rest, meant};
use crate::via_tunnel::Apart;
use crate::world::{World, eventually, say, text};

const MESH: &str = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: swept}\nspec:\n  clusters:\n\
                    \x20 - {name: one, context: one, network: network-1}\n\
                    \x20 - {name: two, context: two, network: network-2}\n";

/// The second cluster uses the control plane of the first, whose gateway's address is known only in the middle of it all.
const WITH_REMOTE: &str = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: swept}\nspec:\n  clusters:\n\
                    \x20 - {name: one, context: one, network: network-1}\n\
                    \x20 - {name: two, context: two, network: network-2, controlPlane: {primary: one}}\n";

/// Each reads the other through a hub, in which the mesh has accounts.
const THROUGH_HUB: &str = "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: swept}\nspec:\n\
                    \x20 hub: {context: hub, kubeconfig: hub.yaml}\n  clusters:\n\
                    \x20 - {name: one, context: one, network: network-1, api: {via: tunnel}}\n\
                    \x20 - {name: two, context: two, network: network-2, api: {via: tunnel}}\n";

const POINTS: [&str; 3] = ["journal", "write-before", "write-after"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_anywhere_the_next_run_ends_in_the_same_state() {
    sweep(MESH, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_anywhere_between_a_primary_and_its_remote() {
    sweep(WITH_REMOTE, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_anywhere_with_a_hub_between() {
    let Some(mut apart) = Apart::of(THROUGH_HUB, &["one", "two"]).await else { return };
    let _agents = apart.agents(&["one", "two"]).await;
    let clusters = apart.world.clusters(&["one", "two"]).await;
    run(Sweep { clusters, file: &apart.file, world: &apart.world, behind: Some(&apart) }, 1).await;
}

async fn sweep(mesh: &str, rounds: usize) {
    let mut world = World::new();
    let file = world.write("mesh.yaml", mesh);
    world.up(&file).await;
    let clusters = world.clusters(&["one", "two"]).await;
    run(Sweep { clusters, file: &file, world: &world, behind: None }, rounds).await;
}

/// `rounds` of a killed apply and a killed teardown when not all are asked for, at each of the three points.
async fn run(sweep: Sweep<'_>, rounds: usize) {
    let (world, file) = (sweep.world, sweep.file);
    let before = lists_at_rest(&sweep.clusters).await;

    // Uninterrupted: what it is to be, and how many points there are.
    let applied = world.good(&["apply", "-f", text(file), "--yes", "-o", "json"]).await.document();
    let built = sweep.meaning().await;
    let torn = world.good(&["teardown", "-f", text(file), "--yes", "-o", "json"]).await.document();
    sweep.is_gone(&before).await;
    let notes = |report: &serde_json::Value| 2 * report["report"]["done"].as_array().map_or(0, Vec::len);
    let writes = |report: &serde_json::Value| usize::try_from(report["report"]["writes"].as_u64().unwrap()).unwrap();

    let began = Instant::now();
    let wanted = std::env::var("STOLOS_SWEEP").unwrap_or_default();
    let (all, points): (bool, Vec<_>) = match wanted.as_str() {
        "" => (false, POINTS.to_vec()),
        "all" => (true, POINTS.to_vec()),
        one => (true, POINTS.into_iter().filter(|point| *point == one).collect()),
    };
    assert!(!points.is_empty(), "STOLOS_SWEEP={wanted}: it is `all` or one of {POINTS:?}");
    let (mut applies, mut teardowns) = (0, 0);
    for &point in &points {
        let (most_of_apply, most_of_teardown) = match point {
            "journal" => (notes(&applied), notes(&torn)),
            _ => (writes(&applied), writes(&torn)),
        };
        let mut round = 0;
        loop {
            // Not the same places for every point.
            let place = |most: usize| match all {
                true => round + 1,
                false => 1 + (round * most + POINTS.iter().position(|p| *p == point).unwrap() * most / 4) / rounds,
            };
            let killed = sweep.killed("apply", point, place(most_of_apply)).await;
            applies += usize::from(killed);
            sweep.is_built(&built, &format!("apply {point}:{}", place(most_of_apply))).await;
            let torn = sweep.killed("teardown", point, place(most_of_teardown)).await;
            teardowns += usize::from(torn);
            world.good(&["teardown", "-f", text(file), "--yes"]).await;
            sweep.is_gone(&before).await;
            round += 1;
            let is_last = if all { !killed && !torn } else { round == rounds };
            if is_last {
                break;
            }
        }
    }
    // Killed again and again, an apply still gets further each time: if it gets as far as one write that lasts, behind the
    // lock and the tokens of both links, which are asked for at once and kept by nobody before the write that follows.
    let mut in_a_row = 0;
    while sweep.killed("apply", "write-after", if all { 4 } else { 8 }).await {
        in_a_row += 1;
        assert!(in_a_row < 200, "it does not get on");
    }
    sweep.is_built(&built, "killed in a row").await;
    world.proven(file, 4).await;
    let kills = applies + teardowns + in_a_row;
    say(&format!(
        "crash sweep: {kills} kills ({applies} of apply, {teardowns} of teardown, {in_a_row} of one apply in a row) in {:.0} s",
        began.elapsed().as_secs_f64()
    ));
    assert!(applies >= points.len() && teardowns >= points.len() && in_a_row > 0);
}

struct Sweep<'a> {
    world: &'a World,
    file: &'a Path,
    clusters: Vec<Cluster>,
    /// The hub that is between them, if one is.
    behind: Option<&'a Apart>,
}

impl Sweep<'_> {
    /// Runs a command that is to die at a point; whether it did, or finished before.
    async fn killed(&self, command: &str, point: &str, count: usize) -> bool {
        let mut run = self.world.stolos([command, "-f", text(self.file), "--yes"]);
        run.env("STOLOS_CRASH_AT", format!("{point}:{count}"));
        let output = tokio::time::timeout(Duration::from_secs(180), run.output()).await.expect("an end").unwrap();
        match (output.status.signal(), output.status.code()) {
            (Some(9), _) => true,
            (None, Some(0)) => false,
            _ => panic!("{command} {point}:{count}: {:?}\n{}", output.status, String::from_utf8_lossy(&output.stderr)),
        }
    }

    /// The next apply finishes; then there is nothing to do, and all is as without a kill.
    async fn is_built(&self, built: &[BTreeSet<String>], after: &str) {
        self.world.good(&["apply", "-f", text(self.file), "--yes"]).await;
        self.world.good(&["plan", "-f", text(self.file)]).await;
        eventually(&format!("the same state after {after}"), Duration::from_secs(20), || async {
            let now = self.meaning().await;
            let difference: String = built.iter().zip(&now).map(|(built, now)| difference(built, now)).collect();
            if difference.is_empty() { Ok(()) } else { Err(format!("\n{difference}")) }
        })
        .await;
    }

    async fn meaning(&self) -> Vec<BTreeSet<String>> {
        let mut all = Vec::new();
        for cluster in &self.clusters {
            all.push(meant(&everything(&cluster.client).await.unwrap()));
        }
        if let Some(apart) = self.behind {
            all.push(apart.in_hub().await);
        }
        all
    }

    async fn is_gone(&self, before: &[BTreeSet<String>]) {
        all_equal_lists(&self.clusters, before).await;
        if let Some(apart) = self.behind {
            assert_eq!(apart.in_hub().await, BTreeSet::new(), "what a mesh that is gone has in its hub");
        }
    }
}
