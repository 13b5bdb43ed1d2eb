//! What the node and its pods use, as far as a lab can know it: the clusters of a lab and all their pods share one process.
//!
//! The node uses what the process uses, the whole lab. A container uses the time in which worker threads were inside its
//! tasks; there is no such count for Stolos' own proxy and control plane (they must not pay for it), and none of memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use stolos_apiserver::runtime::{Measured, PodUsage, Usage};

use super::Kubelet;

/// The shortest time over which use is told, once the lab is that old.
const WINDOW: Duration = Duration::from_secs(15);
/// What the kernel counts processor time in (`USER_HZ`, the same on every Linux).
const TICKS: u64 = 100;

/// Counts at two moments; use is told from the older one to now.
#[derive(Default)]
pub(super) struct Samples(Mutex<Option<(Sample, Sample)>>);

#[derive(Clone)]
struct Sample {
    at: Instant,
    process: Duration,
    /// By pod's UID and container.
    containers: HashMap<(String, String), Duration>,
}

pub(super) fn measure(kubelet: &Kubelet) -> Option<Measured> {
    let now = Sample {
        at: Instant::now(),
        process: process()?,
        containers: kubelet
            .pods()
            .values()
            .flat_map(|run| run.usage().into_iter().map(|(name, used)| ((run.uid.clone(), name), used)))
            .collect(),
    };
    let mut samples = kubelet.samples.0.lock().unwrap_or_else(PoisonError::into_inner);
    let (before, recent) = samples.get_or_insert_with(|| (now.clone(), now.clone()));
    if now.at.duration_since(recent.at) >= WINDOW {
        *before = std::mem::replace(recent, now.clone());
    }
    // Nothing came before the first sample: the containers' counts began with them, and so did the cluster's.
    let first = before.at == recent.at && now.at.duration_since(before.at) < WINDOW;
    let window = if first { kubelet.began.elapsed() } else { now.at.duration_since(before.at) };
    let share = |used: Duration| (used.as_nanos() * 1_000_000_000 / window.as_nanos().max(1)) as u64;
    let earlier = |key: &(String, String)| before.containers.get(key).copied().unwrap_or_default();
    let process = now.process.saturating_sub(if first { kubelet.used_before } else { before.process });
    let node = Usage { cpu_nanocores: share(process), memory_bytes: Some(resident()?) };
    let runs: Vec<_> = kubelet.pods().values().cloned().collect();
    let pods = runs.iter().filter_map(|run| {
        let containers: Vec<_> = run
            .usage()
            .into_iter()
            .map(|(name, used)| {
                let since = if first { Duration::ZERO } else { earlier(&(run.uid.clone(), name.clone())) };
                (name, Usage { cpu_nanocores: share(used.saturating_sub(since)), memory_bytes: None })
            })
            .collect();
        let (namespace, pod) = (run.namespace.clone(), run.name.clone());
        (!containers.is_empty()).then_some(PodUsage { namespace, pod, containers })
    });
    Some(Measured {
        at: jiff::Timestamp::now(),
        window,
        nodes: vec![(kubelet.shared.node.clone(), node)],
        pods: pods.collect(),
    })
}

/// The processor time of this process so far.
pub(super) fn process() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // After the program's name, which may hold anything: field 14 and 15 of proc(5), user and system.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS))
}

/// The resident memory of this process.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something() {
        let until = Instant::now() + Duration::from_millis(50);
        while Instant::now() < until {}
        assert!(process().unwrap() > Duration::ZERO && resident().unwrap() > 1 << 20);
    }
}
