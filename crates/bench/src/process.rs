//! Processes: started quietly, on a core of their own, and what they cost.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

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

/// The most memory a process has had resident so far, in MiB (`VmHWM`, proc(5)).
pub(crate) fn resident(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").trim().parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// A command that says nothing and keeps its state below `home`.
pub(crate) fn quiet(stolos: &Path, home: &Path) -> Command {
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

/// CPU-seconds that the living threads of a process have used, to the nanosecond (`schedstat`, proc(5)). Interrupts
/// that came to them are part of it.
pub(crate) fn busy(process: u32) -> Result<f64> {
    let mut nanos = 0;
    for task in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanos += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanos as f64 / 1e9)
}

/// Keeps the calling thread, and what it starts from now on, on one core (taskset(1), util-linux).
pub(crate) fn stay_on(core: usize) -> Result<()> {
    let thread = std::fs::read_link("/proc/thread-self")?;
    let thread = thread.file_name().context("no thread")?.to_owned();
    let done = Command::new("taskset")
        .args(["--cpu-list", "--pid", &core.to_string()])
        .arg(thread)
        .stdout(Stdio::null())
        .status()
        .context("cannot run taskset")?;
    anyhow::ensure!(done.success(), "taskset ended with {done}");
    Ok(())
}

/// A command that ends when the bench does, however that ends.
pub(crate) fn on_end(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program).stdin(Stdio::null());
    command
}

/// A command on a core of its own, that ends when the bench does, however that ends (util-linux; each replaces itself,
/// so that the child is the program).
pub(crate) fn on_core(core: usize, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "taskset", "--cpu-list", &core.to_string()]).arg(program).stdin(Stdio::null());
    command
}

/// A server has two sockets for each connection, and so has who loads it.
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}
