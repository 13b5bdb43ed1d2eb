//! `endure`: does anything grow, and is anything lost?

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::labs::Lab;
use crate::process::{cpu, memory};
use crate::stream::{Load, Seen, World};

/// Between two samples.
const PERIOD: Duration = Duration::from_secs(10);
/// How long the load goes on after each change.
const CALM: Duration = Duration::from_secs(2);
/// Changes of configuration in a round.
const CHANGES: u32 = 5;
/// The mesh is torn down after so many rounds.
const TEARDOWN: u32 = 5;

/// `endure [--minutes N] [--rounds N]`
pub(crate) fn endure(stolos: &Path, arguments: &[&str]) -> Result<()> {
    let (mut minutes, mut rounds) = (60, 0);
    for pair in arguments.chunks(2) {
        match pair {
            ["--minutes", number] => minutes = number.parse().context("--minutes")?,
            ["--rounds", number] => rounds = number.parse().context("--rounds")?,
            _ => bail!("usage: cargo xtask endure [--minutes N] [--rounds N]"),
        }
    }
    if rounds > 0 {
        let test = ["test", "--release", "--package", "stolos-apiserver", "--test", "it"];
        let kills = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(test)
            .args(["--", "--exact", "durable::fifty_kills_lose_nothing_that_was_acknowledged", "--nocapture"])
            .env("STOLOS_KILL_ROUNDS", rounds.to_string())
            .status()?;
        ensure!(kills.success(), "a write that was acknowledged was lost");
    }
    if minutes > 0 {
        churn(stolos, Duration::from_secs(60 * minutes))?;
    }
    Ok(())
}

/// What is sampled of the lab's process.
struct Sample {
    minutes: f64,
    resident: f64,
    anonymous: f64,
    descriptors: usize,
    processor: f64,
}

/// One lab of three clusters on two networks. Until time is over, in rounds: build a mesh with samples, prove it, change
/// pods and configuration and break things under a steady load, prove it again, take the samples away, tear the mesh
/// down every fifth time. Whatever is learnt at once (code that is paged in, caches that fill) is over after the first
/// fifth, so the slope is taken from there on.
fn churn(stolos: &Path, duration: Duration) -> Result<()> {
    let lab = Lab::up(stolos, 3, &[])?;
    let world = World::connect(&lab.state.join("kubeconfig"), &CLUSTERS)?;
    let mut churn =
        Churn { lab, began: Instant::now(), samples: vec![], last: None, failures: 0, seen: Seen::default() };
    let mut rounds = 0;
    while churn.began.elapsed() < duration {
        rounds += 1;
        churn.round(&world, rounds)?;
    }
    std::thread::sleep(Duration::from_secs(5));
    churn.last = None;
    churn.sample()?;
    churn.report(rounds)
}

/// The clusters of the lab, which are its contexts too.
const CLUSTERS: [&str; 3] = ["c1", "c2", "c3"];

struct Churn {
    lab: Lab,
    began: Instant,
    samples: Vec<Sample>,
    last: Option<Instant>,
    failures: u32,
    seen: Seen,
}

impl Churn {
    fn sample(&mut self) -> Result<()> {
        if self.last.is_none_or(|last| last.elapsed() >= PERIOD) {
            self.last = Some(Instant::now());
            let (resident, anonymous, descriptors) = memory(self.lab.process)?;
            let processor = cpu(self.lab.process)?;
            self.samples.push(Sample { minutes: self.minutes(), resident, anonymous, descriptors, processor });
        }
        Ok(())
    }

    fn minutes(&self) -> f64 {
        self.began.elapsed().as_secs_f64() / 60.0
    }

    /// A command that must succeed.
    fn command(&mut self, round: u32, arguments: &[&str]) -> Result<()> {
        let about_lab = arguments.first() == Some(&"lab");
        let done = match about_lab {
            true => self.lab.run(&[arguments, &["-f", &self.lab.file]].concat())?,
            false => self.lab.on_mesh(arguments)?,
        };
        if !done.status.success() {
            self.failures += 1;
            let said = String::from_utf8_lossy(&done.stdout).into_owned();
            writeln!(std::io::stdout(), "round {round}: {arguments:?} ended with {}\n{said}", done.status)?;
        }
        self.sample()
    }

    /// Lets the load go on for a while and tells what failed of it.
    fn under_load(&mut self, load: &Load<'_>, round: u32, what: &str) -> Result<()> {
        std::thread::sleep(CALM);
        self.take(load.seen(), round, what)?;
        self.sample()
    }

    fn take(&mut self, seen: Seen, round: u32, what: &str) -> Result<()> {
        for failed in seen.failed.iter().chain(&seen.troubles) {
            writeln!(std::io::stdout(), "round {round}, {what}: {failed}")?;
        }
        self.seen.add(seen);
        Ok(())
    }

    fn round(&mut self, world: &World, round: u32) -> Result<()> {
        self.command(round, &["apply", "--samples", "--yes"])?;
        self.command(round, &["verify"])?;
        let load = world.load();
        self.under_load(&load, round, "at rest")?;
        for change in 0..CHANGES {
            world.apply(&configuration(round * CHANGES + change))?;
            self.under_load(&load, round, "configuration changed")?;
        }
        let cluster = round as usize % CLUSTERS.len();
        for replicas in [3, 1] {
            world.roll(cluster, "helloworld", &json!({"spec": {"replicas": replicas}}))?;
            self.under_load(&load, round, "helloworld scaled")?;
        }
        let stamp = json!({"kubectl.kubernetes.io/restartedAt": format!("round {round}")});
        world.roll(cluster, "helloworld", &json!({"spec": {"template": {"metadata": {"annotations": stamp}}}}))?;
        self.under_load(&load, round, "helloworld rolled")?;
        // A gateway is killed once in its life: the second time it would, as on Kubernetes, be held back for 10 s.
        match round % TEARDOWN {
            at @ 1..=3 => {
                self.command(round, &["lab", "fault", "kill", CLUSTERS[at as usize - 1], "--gateway"])?;
                self.under_load(&load, round, "gateway killed")?;
            }
            _ => {
                self.command(round, &["lab", "fault", "partition", "n0"])?;
                self.under_load(&load, round, "network cut off")?;
                self.command(round, &["lab", "fault", "heal"])?;
                self.under_load(&load, round, "network healed")?;
            }
        }
        self.command(round, &["lab", "fault", "delay", "n0", "n1", "5ms"])?;
        self.command(round, &["verify"])?;
        self.under_load(&load, round, "link delayed")?;
        self.command(round, &["lab", "fault", "heal"])?;
        self.take(load.end(), round, "at the end")?;
        // Ours, not the mesh's: teardown leaves a namespace in which others have something.
        world.delete(&configuration(0))?;
        self.command(round, &["apply", "--yes"])?;
        if round.is_multiple_of(TEARDOWN) {
            self.command(round, &["teardown", "--yes"])?;
        }
        self.progress(round)
    }

    /// Where it stands, so that a run that is cut short has said something.
    fn progress(&self, round: u32) -> Result<()> {
        let Some(last) = self.samples.last() else { return Ok(()) };
        let (requests, failed) = (self.seen.requests(), self.seen.failed.len());
        writeln!(
            std::io::stdout(),
            "round {round}, minute {:.1}: {:.1} MiB, {:.1} anonymous; {} descriptors; {:.0} CPU-seconds; {requests} \
             requests, {failed} failed; {} commands failed",
            last.minutes,
            last.resident,
            last.anonymous,
            last.descriptors,
            last.processor,
            self.failures
        )?;
        Ok(())
    }

    fn report(&self, rounds: u32) -> Result<()> {
        let mut out = std::io::stdout();
        let (failures, failed) = (self.failures, self.seen.failed.len());
        writeln!(out, "{rounds} rounds in {:.1} minutes, {failures} commands failed", self.minutes())?;
        writeln!(
            out,
            "{} requests, {failed} failed, the slowest took {:.2} s; {} clients did not start; answered: {:?}",
            self.seen.requests(),
            self.seen.slowest.as_secs_f64(),
            self.seen.troubles.len(),
            self.seen.answered
        )?;
        let steady: Vec<&Sample> = self.samples.iter().skip(self.samples.len() / 5).collect();
        writeln!(out, "| what | first | after a fifth | last | most | slope |\n|---|---|---|---|---|---|")?;
        let mut row = |what: &str, value: &dyn Fn(&Sample) -> f64| -> Result<()> {
            let points: Vec<(f64, f64)> = steady.iter().map(|s| (s.minutes, value(s))).collect();
            let most = self.samples.iter().map(value).fold(0.0, f64::max);
            let (first, fifth) = (self.samples.first().map_or(0.0, value), steady.first().map_or(0.0, |s| value(s)));
            let last = self.samples.last().map_or(0.0, value);
            writeln!(
                out,
                "| {what} | {first:.1} | {fifth:.1} | {last:.1} | {most:.1} | {:+.3} per minute |",
                slope(&points)
            )?;
            Ok(())
        };
        row("memory resident, MiB", &|s| s.resident)?;
        row("of it anonymous, MiB", &|s| s.anonymous)?;
        row("descriptors", &|s| s.descriptors as f64)?;
        row("CPU-seconds", &|s| s.processor)?;
        ensure!(failures == 0 && failed == 0, "{failures} commands and {failed} requests failed");
        Ok(())
    }
}

/// How HelloWorld is reached: always the same service, never quite the same way.
fn configuration(number: u32) -> Value {
    let host = "helloworld.sample.svc.cluster.local";
    let timeout = format!("{}s", 10 + number % 7);
    let headers = json!({"request": {"set": {"x-change": number.to_string()}}});
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "endurance", "namespace": "sample"},
        "spec": {
            "hosts": [host],
            "http": [{"route": [{"destination": {"host": host}}], "timeout": timeout, "headers": headers}],
        },
    })
}

/// Least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), p| (x + p.0 / count, y + p.1 / count));
    let (above, below) =
        points.iter().fold((0.0, 0.0), |(a, b), p| (a + (p.0 - x) * (p.1 - y), b + (p.0 - x) * (p.0 - x)));
    if below == 0.0 { 0.0 } else { above / below }
}

#[cfg(test)]
mod tests {
    use super::slope;

    #[test]
    fn a_line_has_its_slope() {
        assert!((slope(&[(0.0, 5.0), (1.0, 7.0), (2.0, 9.0)]) - 2.0).abs() < 1e-9);
        assert!(slope(&[(0.0, 5.0), (1.0, 5.0)]).abs() < 1e-9 && slope(&[]).abs() < 1e-9);
    }
}
