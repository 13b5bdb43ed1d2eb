//! The control plane: how soon everybody has a change, at 100 clusters, 1,000 services and 1,000 proxies; and a cold
//! start.
//!
//! Two processes, each on a core of its own: `serve-control` is the control plane as it is shipped, but for its
//! watches: what they would have seen is told to it (`stolos_control::run_told`), because a hundred real API servers
//! with hundreds of thousands of endpoints would be measured instead. `simulate-proxies` are real discovery clients
//! over TLS: three of four speak the delta variant with our proxy's own client, the others the state of the world, as
//! Envoy does by default.

pub(crate) mod fleet;
pub(crate) mod proxies;
pub(crate) mod serve;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Serialize, de::DeserializeOwned};

use crate::peer::{LOAD_CORE, SERVER_CORE};
use crate::{process, table};
use fleet::Fleet;

/// What `serve-control` is told, line by line.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) enum Ask {
    /// Until this many proxies have everything.
    Settle { proxies: usize },
    /// That many changes of an endpoint, one after the other, each once everybody has the one before.
    Change { times: usize, of: fleet::Seen },
    /// This many changes a second for this many seconds, whoever has what.
    Flood { per_second: u32, seconds: u32 },
}

/// What it answers, line by line.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Told {
    /// Milliseconds from each change until the last proxy has acknowledged it.
    pub(crate) all: Vec<f64>,
    /// Milliseconds from each change to each acknowledgement.
    pub(crate) each: Vec<f64>,
    /// Seconds that it took altogether.
    pub(crate) seconds: f64,
}

/// A child with whom lines of JSON are exchanged; it dies with its standard input.
struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(core: usize, role: &str, setup: &impl Serialize) -> Result<Self> {
        let mut command = process::on_core(core, &std::env::current_exe()?);
        command.args([role, &serde_json::to_string(setup)?]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context(role.to_owned())?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let output = BufReader::new(output.context("no standard output")?);
        Ok(Self { child, input: input.context("no standard input")?, output })
    }

    fn tell(&mut self, what: &impl Serialize) -> Result<()> {
        Ok(writeln!(self.input, "{}", serde_json::to_string(what)?)?)
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        ensure!(self.output.read_line(&mut line)? > 0, "the child has ended");
        Ok(serde_json::from_str(&line)?)
    }

    fn ask<T: DeserializeOwned>(&mut self, what: &impl Serialize) -> Result<T> {
        self.tell(what)?;
        self.hear()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs the section.
pub(crate) fn control(out: &mut impl Write) -> Result<()> {
    run(out, "100 clusters, 1,000 services, 50,000 endpoints", &Fleet::default(), 1000, 200)?;
    let large = Fleet { clusters_of_service: 100, endpoints: 5, ..Fleet::default() };
    // Every proxy here holds 20 MB of endpoints, and a thousand of them more than a machine of 24 GB has.
    run(out, "the same with 500,000 endpoints and 100 proxies", &large, 100, 40)
}

/// One fleet with this many proxies, as arguments of the bench: for trying things.
pub(crate) fn once(arguments: &[&str]) -> Result<()> {
    let number = |at: usize, default: usize| arguments.get(at).map_or(Ok(default), |text| text.parse());
    let fleet = Fleet { clusters_of_service: number(0, 10)?, endpoints: number(1, 5)?, ..Fleet::default() };
    let mut out = std::io::stdout();
    table::head(&mut out)?;
    run(&mut out, "once", &fleet, number(2, 1000)?, number(3, 100)?)
}

fn run(out: &mut impl Write, name: &str, fleet: &Fleet, proxies: usize, changes: usize) -> Result<()> {
    // An endpoint goes, and comes back: an odd one out would leave the next change nothing to change.
    let changes = changes.next_multiple_of(2);
    let folder = tempfile::tempdir()?;
    let setup = serve::Setup { fleet: fleet.clone(), proxies, folder: folder.path().to_owned() };
    let mut server = Peer::start(SERVER_CORE, "serve-control", &setup)?;
    let told: serve::Begun = server.hear()?;
    let process = server.child.id();
    let (before, _, _) = process::memory(process)?;
    let row = |out: &mut _, what: &str, values: Vec<f64>| table::row(out, &format!("{name}: {what}"), values);
    row(out, "read (one core), s", vec![told.seconds])?;
    row(out, "control plane without a proxy, MiB resident", vec![before])?;

    let cpu = process::cpu(process)?;
    let setup = proxies::Setup { address: told.address, folder: folder.path().to_owned(), proxies };
    let clients = Peer::start(LOAD_CORE, "simulate-proxies", &setup)?;
    let cold: Told = server.ask(&Ask::Settle { proxies })?;
    row(
        out,
        &format!("cold start of {proxies} proxies until all have acknowledged everything, s"),
        vec![cold.seconds],
    )?;
    row(out, "… CPU of the control plane, s", vec![process::cpu(process)? - cpu])?;
    let (resident, anonymous, _) = process::memory(process)?;
    row(out, "control plane with its proxies, MiB resident", vec![resident])?;
    row(out, "… anonymous", vec![anonymous])?;

    for (what, of) in
        [("an endpoint that everybody sees", fleet::Seen::ByAll), ("one that a namespace sees", fleet::Seen::ByFew)]
    {
        let _: Told = server.ask(&Ask::Change { times: 4, of })?;
        let cpu = (process::cpu(process)?, process::cpu(clients.child.id())?);
        let told: Told = server.ask(&Ask::Change { times: changes, of })?;
        let per = |now: f64, then: f64| vec![(now - then) * 1000.0 / changes as f64];
        let all = percentiles(told.all);
        let each = percentiles(told.each);
        writeln!(
            out,
            "| {name}: {what} → acknowledged by all it concerns, ms | p50 {:.1} | p99 {:.1} | most {:.1} |",
            all[0], all[1], all[2]
        )?;
        writeln!(out, "| … by each, ms | p50 {:.1} | p99 {:.1} | most {:.1} |", each[0], each[1], each[2])?;
        row(out, "… CPU of the control plane per change, ms", per(process::cpu(process)?, cpu.0))?;
        row(out, "… CPU of the proxies per change, ms", per(process::cpu(clients.child.id())?, cpu.1))?;
    }
    Ok(())
}

/// The middle one, the one of a hundred, the last.
fn percentiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 * share) as usize).min(values.len().saturating_sub(1)));
    [at(0.5), at(0.99), at(1.0)].map(|value| value.copied().unwrap_or(f64::NAN))
}

/// Reads a line of JSON from standard input; `None` when whoever started this is gone.
pub(crate) fn line<T: DeserializeOwned>() -> Result<Option<T>> {
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line)?;
    if read == 0 { Ok(None) } else { Ok(Some(serde_json::from_str(&line)?)) }
}

/// Writes one.
pub(crate) fn say(what: &impl Serialize) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(what)?)?)
}

/// What a role reads from its only argument.
pub(crate) fn setup<T: DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).context("the setup is not JSON")
}

/// The control plane's files below this folder.
pub(crate) fn root_certificate(folder: &Path) -> std::path::PathBuf {
    folder.join("root.pem")
}
