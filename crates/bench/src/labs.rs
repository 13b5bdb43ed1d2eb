//! The release binary as its users run it: `demo`, `apply`, labs of many clusters.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::{cpu, memory, quiet, resident};
use crate::table::{RUNS, row};

/// One run that takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(300);

/// `demo --once`: time to proof, memory.
pub(crate) fn demo(stolos: &Path, out: &mut impl Write) -> Result<()> {
    let mut demo = Vec::new();
    for _ in 0..RUNS {
        demo.push(run_demo(stolos)?);
    }
    row(out, "demo: process start to proof, 3 clusters, s", demo.iter().map(|d| d.0))?;
    row(out, "demo: most memory resident, MiB", demo.iter().map(|d| d.1))
}

/// `apply` of a mesh where every API call takes 20 ms longer, taken apart.
pub(crate) fn apply(stolos: &Path, out: &mut impl Write) -> Result<()> {
    for clusters in [3, 10] {
        let mut applies = Vec::new();
        for _ in 0..RUNS {
            applies.push(run_apply(stolos, clusters)?);
        }
        let what = format!("apply, {clusters} clusters, 20 ms added to every API call");
        row(out, &format!("{what}: whole command, s"), applies.iter().map(|a| a.whole))?;
        row(out, &format!("{what}: connecting and the first look, s"), applies.iter().map(|a| a.before))?;
        row(out, &format!("{what}: the lock, taken and given back, s"), applies.iter().map(|a| a.lock))?;
        row(out, &format!("{what}: the look under the lock, s"), applies.iter().map(|a| a.look))?;
        row(out, &format!("{what}: critical path of its steps, waits included, s"), applies.iter().map(|a| a.path))?;
        row(out, &format!("{what}: critical path of its writes alone, s"), applies.iter().map(|a| a.writes))?;
    }
    Ok(())
}

/// Labs of clusters that nothing was put into: when they are up, and what one of them costs.
pub(crate) fn lab(stolos: &Path, out: &mut impl Write) -> Result<()> {
    for clusters in [20, 100] {
        let mut labs = Vec::new();
        for _ in 0..RUNS {
            labs.push(run_lab(stolos, clusters)?);
        }
        row(out, &format!("lab of {clusters} clusters: up, s"), labs.iter().map(|l| l.0))?;
        row(out, &format!("lab of {clusters} clusters: memory resident, MiB each"), labs.iter().map(|l| l.1))?;
        row(out, &format!("lab of {clusters} clusters: CPU of 5 idle seconds, s"), labs.iter().map(|l| l.2))?;
    }
    Ok(())
}

/// Seconds until it is up, MiB for each cluster, CPU-seconds of five seconds in which nobody asks anything.
fn run_lab(stolos: &Path, clusters: usize) -> Result<(f64, f64, f64)> {
    let lab = Lab::up(stolos, clusters, &[])?;
    let each = memory(lab.process)?.0 / clusters as f64;
    std::thread::sleep(Duration::from_secs(2));
    let before = cpu(lab.process)?;
    std::thread::sleep(Duration::from_secs(5));
    Ok((lab.took, each, cpu(lab.process)? - before))
}

/// A lab in the background with a mesh file over all its clusters; ends with this value.
pub(crate) struct Lab {
    pub(crate) home: tempfile::TempDir,
    pub(crate) file: String,
    pub(crate) state: PathBuf,
    pub(crate) process: u32,
    /// Seconds from the command to the end of `lab up --detach`.
    pub(crate) took: f64,
    stolos: PathBuf,
}

impl Lab {
    pub(crate) fn up(stolos: &Path, clusters: usize, more: &[&str]) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let file = home.path().join("mesh.yaml");
        let mut mesh =
            "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {name: bench}\nspec:\n  clusters:\n".to_owned();
        for n in 1..=clusters {
            writeln!(mesh, "  - {{name: c{n}, network: n{}}}", n % 2)?;
        }
        std::fs::write(&file, mesh)?;
        let file = file.to_str().context("path")?.to_owned();
        let state = home.path().join("state/stolos/bench");
        let mut lab = Self { home, file, state, process: 0, took: 0.0, stolos: stolos.to_owned() };
        let began = Instant::now();
        let up = lab.run(&[&["lab", "up", "-f", &lab.file, "--detach"], more].concat())?;
        lab.took = began.elapsed().as_secs_f64();
        ensure!(up.status.success(), "the lab did not start");
        let status = lab.run(&["lab", "status", "-f", &lab.file, "-o", "json"])?;
        let status: Value = serde_json::from_slice(&status.stdout)?;
        lab.process = u32::try_from(status["pid"].as_u64().context("pid")?)?;
        Ok(lab)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Result<std::process::Output> {
        Ok(quiet(&self.stolos, self.home.path()).stdout(Stdio::piped()).args(arguments).output()?)
    }

    /// A command about the mesh.
    pub(crate) fn on_mesh(&self, command: &[&str]) -> Result<std::process::Output> {
        let kubeconfig = self.state.join("kubeconfig");
        let about = ["-f", &self.file, "--kubeconfig", kubeconfig.to_str().context("path")?];
        self.run(&[command, &about].concat())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.run(&["lab", "down", "-f", &self.file]);
    }
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

/// Where the seconds of one `apply` went.
struct Applied {
    whole: f64,
    before: f64,
    lock: f64,
    look: f64,
    path: f64,
    writes: f64,
}

fn run_apply(stolos: &Path, clusters: usize) -> Result<Applied> {
    let lab = Lab::up(stolos, clusters, &["--api-delay", "20"])?;
    let plan: Value = serde_json::from_slice(&lab.on_mesh(&["plan", "-o", "json"])?.stdout)?;
    let began = Instant::now();
    let applied = lab.on_mesh(&["apply", "--yes", "-o", "json"])?;
    let whole = began.elapsed().as_secs_f64();
    ensure!(applied.status.success(), "apply ended with {}", applied.status);
    let report: Value = serde_json::from_slice(&applied.stdout)?;
    let timing = &report["report"]["timing"];
    let part = |name: &str| timing[name].as_f64().unwrap_or(0.0) / 1e3;
    let took: BTreeMap<String, f64> = timing["steps"]
        .as_object()
        .context("no times of steps")?
        .iter()
        .filter_map(|(step, time)| Some((step.clone(), (time[1].as_f64()? - time[0].as_f64()?) / 1e3)))
        .collect();
    let steps = plan["steps"].as_array().context("the plan has no steps")?;
    let waits: Vec<&str> =
        steps.iter().filter(|step| step["action"] == "wait").filter_map(|step| step["id"].as_str()).collect();
    let mut written = took.clone();
    written.retain(|step, _| !waits.contains(&step.as_str()));
    let all = timing["steps"].as_object().into_iter().flatten();
    let end = all.filter_map(|(_, time)| time[1].as_f64()).fold(0.0, f64::max) / 1e3;
    let (lock, look) = (part("lock") + part("release"), part("look"));
    Ok(Applied {
        whole,
        before: whole - lock - look - end,
        lock,
        look,
        path: critical_path(&plan, &took)?,
        writes: critical_path(&plan, &written)?,
    })
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
