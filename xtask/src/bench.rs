//! Times the release binary as its users run it. Prints a Markdown table; what stands in `docs/benchmarks.md` is copied
//! from here by hand, with the machine it was measured on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Runs of each measurement.
const RUNS: usize = 5;
/// One run that takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(300);

/// `cargo xtask bench`: builds the release binary and measures the demo, and `apply` beside its critical path.
pub(crate) fn bench() -> Result<()> {
    let built = Command::new(env!("CARGO")).args(["build", "--release", "--package", "stolos-cli"]).status()?;
    ensure!(built.success(), "the release build failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let stolos = target.join("release/stolos").canonicalize()?;

    let mut out = std::io::stdout();
    writeln!(out, "| what | median | least | most |\n|---|---|---|---|")?;
    let mut demo = Vec::new();
    for _ in 0..RUNS {
        demo.push(run_demo(&stolos)?);
    }
    row(&mut out, "demo: process start to proof, 3 clusters, s", demo.iter().map(|d| d.0))?;
    row(&mut out, "demo: most memory resident, MiB", demo.iter().map(|d| d.1))?;
    for clusters in [3, 10] {
        let mut applies = Vec::new();
        for _ in 0..RUNS {
            applies.push(run_apply(&stolos, clusters)?);
        }
        let what = format!("apply, {clusters} clusters, 20 ms added to every API call");
        row(&mut out, &format!("{what}: whole command, s"), applies.iter().map(|a| a.0))?;
        row(&mut out, &format!("{what}: critical path of its steps, s"), applies.iter().map(|a| a.1))?;
    }
    Ok(())
}

/// Seconds until the end of `demo --once`, and MiB at its largest.
fn run_demo(stolos: &Path) -> Result<(f64, f64)> {
    let home = tempfile::tempdir()?;
    let began = Instant::now();
    let mut demo = quiet(stolos, home.path()).args(["demo", "--once", "-o", "json"]).spawn()?;
    let mut largest = 0.0_f64;
    let status = loop {
        largest = largest.max(resident(&demo));
        if let Some(status) = demo.try_wait()? {
            break status;
        }
        ensure!(began.elapsed() < PATIENCE, "the demo does not end");
        std::thread::sleep(Duration::from_millis(10));
    };
    ensure!(status.success(), "the demo ended with {status}");
    Ok((began.elapsed().as_secs_f64(), largest))
}

/// The most memory a process has had resident so far, in MiB (`VmHWM`, proc(5)).
fn resident(process: &Child) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// Seconds that `apply` took, and the seconds of the longest chain of steps that had to wait for one another.
fn run_apply(stolos: &Path, clusters: usize) -> Result<(f64, f64)> {
    let home = tempfile::tempdir()?;
    let file = home.path().join("mesh.yaml");
    let mut mesh =
        "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: bench}\nspec:\n  clusters:\n".to_owned();
    for n in 1..=clusters {
        writeln!(mesh, "  - {{name: c{n}, network: n{}}}", n % 2)?;
    }
    std::fs::write(&file, mesh)?;
    let file = file.to_str().context("path")?;
    let run = |arguments: &[&str]| -> Result<std::process::Output> {
        let mut command = quiet(stolos, home.path());
        Ok(command.stdout(Stdio::piped()).args(arguments).output()?)
    };
    let up = run(&["lab", "up", "-f", file, "--detach", "--api-delay", "20"])?;
    ensure!(up.status.success(), "the lab did not start");
    let measured = (|| {
        let state = home.path().join("state/stolos/bench");
        let kubeconfig = state.join("kubeconfig");
        let kubeconfig = kubeconfig.to_str().context("path")?;
        let plan = run(&["plan", "-f", file, "--kubeconfig", kubeconfig, "-o", "json"])?;
        let began = Instant::now();
        let applied = run(&["apply", "-f", file, "--kubeconfig", kubeconfig, "--yes"])?;
        let took = began.elapsed().as_secs_f64();
        ensure!(applied.status.success(), "apply ended with {}", applied.status);
        Ok((took, critical_path(&serde_json::from_slice(&plan.stdout)?, &journal(&state)?)?))
    })();
    let down = run(&["lab", "down", "-f", file])?;
    ensure!(down.status.success(), "the lab did not stop");
    measured
}

/// Seconds that each step took, by its id.
fn journal(state: &Path) -> Result<BTreeMap<String, f64>> {
    let file = std::fs::read_dir(state)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("journal")))
        .context("no journal")?;
    let (mut started, mut took) = (BTreeMap::new(), BTreeMap::new());
    for line in std::fs::read_to_string(file)?.lines() {
        let note: Value = serde_json::from_str(line)?;
        let (step, at) =
            (note["step"].as_str().context("step")?.to_owned(), seconds(note["at"].as_str().context("at")?)?);
        match note["event"].as_str() {
            Some("started") => drop(started.insert(step, at)),
            Some("succeeded") => {
                if let Some(began) = started.get(&step) {
                    took.insert(step, at - began);
                }
            }
            _ => {}
        }
    }
    Ok(took)
}

/// Seconds since midnight of an RFC 3339 time in UTC: enough to subtract two of one run.
fn seconds(at: &str) -> Result<f64> {
    let clock = at.split_once('T').context("no time")?.1.trim_end_matches('Z');
    let parts: Vec<f64> = clock.split(':').map(str::parse).collect::<Result<_, _>>()?;
    match parts[..] {
        [hours, minutes, seconds] => Ok(hours * 3600.0 + minutes * 60.0 + seconds),
        _ => bail!("`{at}` is no time"),
    }
}

/// The longest way through the plan.
fn critical_path(plan: &Value, took: &BTreeMap<String, f64>) -> Result<f64> {
    let steps = plan["steps"].as_array().context("the plan has no steps")?;
    let after: BTreeMap<&str, Vec<&str>> = steps
        .iter()
        .filter_map(|s| Some((s["id"].as_str()?, s["after"].as_array()?.iter().filter_map(Value::as_str).collect())))
        .collect();
    fn until<'a>(
        step: &'a str,
        after: &BTreeMap<&'a str, Vec<&'a str>>,
        took: &BTreeMap<String, f64>,
        known: &mut BTreeMap<&'a str, f64>,
    ) -> f64 {
        if let Some(known) = known.get(step) {
            return *known;
        }
        let before = after.get(step).into_iter().flatten().map(|b| until(b, after, took, known)).fold(0.0, f64::max);
        let end = before + took.get(step).copied().unwrap_or(0.0);
        known.insert(step, end);
        end
    }
    let mut known = BTreeMap::new();
    Ok(after.keys().map(|step| until(step, &after, took, &mut known)).fold(0.0, f64::max))
}

fn quiet(stolos: &Path, home: &Path) -> Command {
    let mut command = Command::new(stolos);
    command
        .env("XDG_STATE_HOME", home.join("state"))
        .env_remove("KUBECONFIG")
        .env_remove("STOLOS_STATE")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn row(out: &mut impl std::io::Write, what: &str, values: impl Iterator<Item = f64>) -> Result<()> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (least, most) = (values[0], values[values.len() - 1]);
    writeln!(out, "| {what} | {:.2} | {least:.2} | {most:.2} |", values[values.len() / 2])?;
    Ok(())
}
