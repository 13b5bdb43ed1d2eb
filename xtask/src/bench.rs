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

/// The sections, in the order in which they run when none is named.
const SECTIONS: [&str; 3] = ["demo", "apply", "lab"];

/// `cargo xtask bench [SECTION…]`: builds the release binary (or takes `$STOLOS_BIN`) and measures.
pub(crate) fn bench(sections: &[&str]) -> Result<()> {
    if let Some(unknown) = sections.iter().find(|section| !SECTIONS.contains(section)) {
        bail!("`{unknown}` is no section; there are {}", SECTIONS.join(", "));
    }
    let stolos = binary()?;
    let mut out = std::io::stdout();
    writeln!(out, "| what | median | least | most |\n|---|---|---|---|")?;
    for section in SECTIONS.into_iter().filter(|section| sections.is_empty() || sections.contains(section)) {
        match section {
            "demo" => bench_demo(&stolos, &mut out)?,
            "apply" => bench_apply(&stolos, &mut out)?,
            _ => bench_lab(&stolos, &mut out)?,
        }
    }
    Ok(())
}

/// The release binary, freshly built unless `$STOLOS_BIN` names one.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("STOLOS_BIN") {
        return Ok(PathBuf::from(given).canonicalize()?);
    }
    let built = Command::new(env!("CARGO")).args(["build", "--release", "--package", "stolos-cli"]).status()?;
    ensure!(built.success(), "the release build failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    Ok(target.join("release/stolos").canonicalize()?)
}

fn bench_demo(stolos: &Path, out: &mut impl std::io::Write) -> Result<()> {
    let mut demo = Vec::new();
    for _ in 0..RUNS {
        demo.push(run_demo(stolos)?);
    }
    row(out, "demo: process start to proof, 3 clusters, s", demo.iter().map(|d| d.0))?;
    row(out, "demo: most memory resident, MiB", demo.iter().map(|d| d.1))
}

fn bench_apply(stolos: &Path, out: &mut impl std::io::Write) -> Result<()> {
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
fn bench_lab(stolos: &Path, out: &mut impl std::io::Write) -> Result<()> {
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

/// MiB resident, of them anonymous (what is not the binary's own text), and open descriptors.
pub(crate) fn memory(process: u32) -> Result<(f64, f64, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    };
    Ok((of("VmRSS:"), of("RssAnon:"), std::fs::read_dir(format!("/proc/{process}/fd"))?.count()))
}

/// CPU-seconds a process has used, at 100 ticks a second (proc(5)).
pub(crate) fn cpu(process: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let after = stat.rsplit_once(')').context("stat")?.1;
    let fields: Vec<f64> = after.split_whitespace().skip(11).take(2).filter_map(|f| f.parse().ok()).collect();
    Ok(fields.iter().sum::<f64>() / 100.0)
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
