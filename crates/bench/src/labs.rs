//! The release binary as its users run it: `demo`, `apply`, labs of many clusters.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::process::{cpu, memory, quiet, resident};
use crate::stream::World;
use crate::table::{RUNS, row};

/// One run that takes longer is broken.
const PATIENCE: Duration = Duration::from_secs(300);

/// `demo --once`: time to the first answer from another network and to the proof, memory.
pub(crate) fn demo(stolos: &Path, out: &mut impl Write) -> Result<()> {
    let mut demo = Vec::new();
    for _ in 0..RUNS {
        demo.push(run_demo(stolos)?);
    }
    row(
        out,
        "demo, 3 clusters: process start to the first answer from another network, s",
        demo.iter().map(|d| d.first),
    )?;
    row(out, "… memory resident then, MiB", demo.iter().map(|d| d.memory.0))?;
    row(out, "… of it anonymous, MiB", demo.iter().map(|d| d.memory.1))?;
    row(out, "… process start to the end of the whole proof, s", demo.iter().map(|d| d.whole))?;
    row(out, "… most memory resident, MiB", demo.iter().map(|d| d.largest))?;
    row(out, "… CPU-seconds", demo.iter().map(|d| d.processor))
}

/// `verify` of ten clusters: a hundred ordered pairs.
pub(crate) fn verify(stolos: &Path, out: &mut impl Write) -> Result<()> {
    let clusters = 10;
    let lab = Lab::up(stolos, clusters, &[])?;
    let applied = lab.on_mesh(&["apply", "--yes"])?;
    ensure!(applied.status.success(), "apply ended with {}", applied.status);
    let mut verified = Vec::new();
    for _ in 0..RUNS {
        let (began, before) = (Instant::now(), cpu(lab.process)?);
        let proof = lab.on_mesh(&["verify", "-o", "json"])?;
        let took = began.elapsed().as_secs_f64();
        ensure!(proof.status.success(), "verify ended with {}", proof.status);
        let report: Value = serde_json::from_slice(&proof.stdout)?;
        let pairs = report["pairs"].as_array().map_or(0, Vec::len);
        ensure!(pairs == clusters * clusters, "{pairs} pairs");
        verified.push((took, cpu(lab.process)? - before));
    }
    row(out, "verify, 10 clusters (100 pairs): whole command, s", verified.iter().map(|v| v.0))?;
    row(out, "… CPU-seconds of the lab", verified.iter().map(|v| v.1))
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

/// `plan` of a hundred clusters with a thousand objects each that a plan reads, before the mesh is built. (A hundred control
/// planes that each watch a hundred clusters are more than one machine keeps going, so what a plan of the built mesh takes is
/// measured in memory: `hundred_tests` of stolos-plan.)
pub(crate) fn plan(stolos: &Path, out: &mut impl Write) -> Result<()> {
    let clusters = 100;
    let lab = Lab::up(stolos, clusters, &[])?;
    let contexts: Vec<String> = (1..=clusters).map(|n| format!("c{n}")).collect();
    let contexts: Vec<&str> = contexts.iter().map(String::as_str).collect();
    let world = World::connect(&lab.state.join("kubeconfig"), &contexts)?;
    // The lab makes an EndpointSlice of each Service.
    for n in 0..500 {
        world.apply(&json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("service-{n}"), "namespace": "default"},
            "spec": {"selector": {"app": format!("app-{n}")}, "ports": [{"name": "http", "port": 80}]},
        }))?;
    }
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        runs.push(run_plan(&lab)?);
    }
    let what = format!("plan, {clusters} clusters, nothing built");
    row(out, &format!("{what}: objects read"), runs.iter().map(|r| r.objects))?;
    row(out, &format!("{what}: steps"), runs.iter().map(|r| r.steps))?;
    row(out, &format!("{what}: reading them, s"), runs.iter().map(|r| r.look))?;
    row(out, &format!("{what}: the plan, once they are read, s"), runs.iter().map(|r| r.plan))?;
    row(out, &format!("{what}: whole command, s"), runs.iter().map(|r| r.whole))
}

/// What one `plan` took, in seconds.
struct Planned {
    objects: f64,
    steps: f64,
    look: f64,
    plan: f64,
    whole: f64,
}

fn run_plan(lab: &Lab) -> Result<Planned> {
    let began = Instant::now();
    let kubeconfig = lab.state.join("kubeconfig");
    let mut command = quiet(&lab.stolos, lab.home.path());
    command.args(["plan", "-v", "-f", &lab.file, "--kubeconfig"]).arg(&kubeconfig).stderr(Stdio::piped());
    let output = command.output()?;
    let whole = began.elapsed().as_secs_f64();
    // 2: there are changes.
    ensure!(output.status.code() == Some(2), "plan ended with {}", output.status);
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.lines().find(|line| line.contains("looked and planned")).context("plan did not say its times")?;
    let field = |name: &str| -> Result<f64> {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        Ok(value.context(name.to_owned())?.parse()?)
    };
    Ok(Planned {
        objects: field("objects")?,
        steps: field("steps")?,
        look: field("look_ms")? / 1e3,
        plan: field("plan_ms")? / 1e3,
        whole,
    })
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

/// What one `demo --once` took.
struct Demonstrated {
    /// Seconds until a pod of another network has answered.
    first: f64,
    /// Then: MiB resident, and of them anonymous.
    memory: (f64, f64),
    /// Seconds until its end.
    whole: f64,
    /// MiB at its largest.
    largest: f64,
    processor: f64,
}

fn run_demo(stolos: &Path) -> Result<Demonstrated> {
    let home = tempfile::tempdir()?;
    let began = Instant::now();
    let command = ["demo", "--once", "-o", "json"];
    let mut demo = quiet(stolos, home.path()).args(command).stderr(Stdio::piped()).spawn()?;
    let process = demo.id();
    let progress = BufReader::new(demo.stderr.take().context("no progress")?);
    let reading = std::thread::spawn(move || {
        let mut first = None;
        // To the end, or the demo would wait for a reader.
        for line in progress.lines().map_while(Result::ok) {
            if first.is_none() && line.contains("for the first time") {
                first = Some((began.elapsed().as_secs_f64(), memory(process).map(|(all, own, _)| (all, own))));
            }
        }
        first
    });
    let (mut largest, mut processor) = (0.0_f64, 0.0_f64);
    let status = loop {
        largest = largest.max(resident(demo.id()));
        processor = processor.max(cpu(process).unwrap_or(0.0));
        if let Some(status) = demo.try_wait()? {
            break status;
        }
        ensure!(began.elapsed() < PATIENCE, "the demo does not end");
        std::thread::sleep(Duration::from_millis(10));
    };
    let whole = began.elapsed().as_secs_f64();
    ensure!(status.success(), "the demo ended with {status}");
    let first = reading.join().ok().flatten().context("the demo did not say when it was first answered")?;
    Ok(Demonstrated { first: first.0, memory: first.1?, whole, largest, processor })
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
