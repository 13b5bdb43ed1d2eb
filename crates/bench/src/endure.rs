//! `endure`: does anything grow, and is anything lost?

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::labs::Lab;
use crate::process::memory;

/// Between two samples.
const PERIOD: Duration = Duration::from_secs(10);

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
}

/// One lab of three clusters on two networks. Until time is over: build a mesh with samples, prove it, kill a gateway,
/// prove it again, change the links, take the samples away, tear the mesh down every fifth time. Whatever is learnt at
/// once (code that is paged in, caches that fill) is over after the first fifth, so the slope is taken from there on.
fn churn(stolos: &Path, duration: Duration) -> Result<()> {
    let lab = Lab::up(stolos, 3, &[])?;
    let mut out = std::io::stdout();
    let began = Instant::now();
    let (mut samples, mut last, mut rounds, mut failures): (Vec<Sample>, _, u32, u32) = (vec![], None, 0, 0);
    let sample = |samples: &mut Vec<Sample>, last: &mut Option<Instant>| -> Result<()> {
        if last.is_none_or(|last| last.elapsed() >= PERIOD) {
            *last = Some(Instant::now());
            let (resident, anonymous, descriptors) = memory(lab.process)?;
            samples.push(Sample { minutes: began.elapsed().as_secs_f64() / 60.0, resident, anonymous, descriptors });
        }
        Ok(())
    };
    while began.elapsed() < duration {
        rounds += 1;
        let mut steps: Vec<(bool, Vec<&str>)> = vec![
            (true, vec!["apply", "--samples", "--yes"]),
            (true, vec!["verify"]),
            (false, vec!["lab", "fault", "kill", "c1", "--gateway"]),
            (false, vec!["lab", "fault", "delay", "n0", "n1", "5ms"]),
            (true, vec!["verify"]),
            (false, vec!["lab", "fault", "heal"]),
            (true, vec!["apply", "--yes"]),
        ];
        if rounds % 5 == 0 {
            steps.push((true, vec!["teardown", "--yes"]));
        }
        for (on_mesh, step) in steps {
            let done = match on_mesh {
                true => lab.on_mesh(&step)?,
                false => lab.run(&[&step[..], &["-f", &lab.file]].concat())?,
            };
            if !done.status.success() {
                failures += 1;
                let said = String::from_utf8_lossy(&done.stdout).into_owned();
                writeln!(out, "round {rounds}: {step:?} ended with {}\n{said}", done.status)?;
            }
            sample(&mut samples, &mut last)?;
        }
    }
    std::thread::sleep(Duration::from_secs(5));
    last = None;
    sample(&mut samples, &mut last)?;
    let steady: Vec<&Sample> = samples.iter().skip(samples.len() / 5).collect();
    writeln!(
        out,
        "{rounds} rounds in {:.1} minutes, {failures} commands failed",
        began.elapsed().as_secs_f64() / 60.0
    )?;
    writeln!(out, "| what | first | after a fifth | last | most | slope |\n|---|---|---|---|---|---|")?;
    let mut row = |what: &str, value: &dyn Fn(&Sample) -> f64| -> Result<()> {
        let points: Vec<(f64, f64)> = steady.iter().map(|s| (s.minutes, value(s))).collect();
        let most = samples.iter().map(value).fold(0.0, f64::max);
        let (first, fifth) = (samples.first().map_or(0.0, value), steady.first().map_or(0.0, |s| value(s)));
        let last = samples.last().map_or(0.0, value);
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
    ensure!(failures == 0, "{failures} commands failed");
    Ok(())
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
