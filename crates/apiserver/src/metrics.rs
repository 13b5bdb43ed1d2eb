//! What `/metrics` shows, by the names Kubernetes' own servers use where they count the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::api::Api;

/// Upper ends of the buckets of durations, in seconds.
const BUCKETS: [f64; 14] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];
/// The most kinds of request counted apart; the rest is counted together.
const MOST: usize = 4096;

/// What kind of request it was.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Series {
    /// `GET`, `LIST`, `WATCH`, `POST`, ….
    pub(crate) verb: &'static str,
    /// The group, empty for core and for what is no resource.
    pub(crate) group: String,
    /// The version.
    pub(crate) version: String,
    /// The plural, empty for what is no resource.
    pub(crate) resource: String,
    /// The subresource, or the path of what is no resource.
    pub(crate) sub: String,
    /// `resource`, `namespace`, `cluster`, or empty for what is no resource.
    pub(crate) scope: &'static str,
}

#[derive(Debug, Default)]
struct Counts {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    seconds: f64,
    timed: u64,
}

/// Counters.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    series: Mutex<BTreeMap<Series, Counts>>,
    /// Requests refused because too many were under way: reading, writing.
    pub(crate) refused: [AtomicU64; 2],
}

impl Metrics {
    /// Counts an answer; `took` is `None` for what goes on as long as it likes.
    pub(crate) fn count(&self, series: Series, code: u16, took: Option<Duration>) {
        let mut all = self.series.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let series = if all.len() < MOST || all.contains_key(&series) { series } else { Series::default() };
        let counts = all.entry(series).or_default();
        *counts.codes.entry(code).or_default() += 1;
        let Some(took) = took.map(|took| took.as_secs_f64()) else { return };
        counts.seconds += took;
        counts.timed += 1;
        if let Some(bucket) = BUCKETS.iter().position(|end| took <= *end) {
            counts.buckets[bucket] += 1;
        }
    }

    fn write(&self, text: &mut String) {
        let all = self.series.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let labels = |series: &Series| {
            format!(
                "group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
                series.group, series.resource, series.scope, series.sub, series.verb, series.version
            )
        };
        head(text, "apiserver_request_total", "counter", "Requests answered.");
        for (series, counts) in &*all {
            for (code, count) in &counts.codes {
                let _ = writeln!(text, "apiserver_request_total{{code=\"{code}\",{}}} {count}", labels(series));
            }
        }
        let name = "apiserver_request_duration_seconds";
        head(text, name, "histogram", "Time until an answer was ready; watches and streams are not timed.");
        for (series, counts) in all.iter().filter(|(_, counts)| counts.timed > 0) {
            let (labels, mut sum) = (labels(series), 0);
            for (end, count) in BUCKETS.iter().zip(counts.buckets) {
                sum += count;
                let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{end}\"}} {sum}");
            }
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", counts.timed);
            let _ = writeln!(text, "{name}_sum{{{labels}}} {}", counts.seconds);
            let _ = writeln!(text, "{name}_count{{{labels}}} {}", counts.timed);
        }
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// The text that Prometheus reads.
#[must_use]
pub(crate) fn text(api: &Api) -> String {
    let mut text = String::new();
    api.metrics.write(&mut text);
    let kinds = ["readOnly", "mutating"];
    head(&mut text, "apiserver_current_inflight_requests", "gauge", "Requests under way.");
    for (kind, count) in kinds.iter().zip(api.under_way()) {
        let _ = writeln!(text, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {count}");
    }
    head(&mut text, "apiserver_dropped_requests_total", "counter", "Requests refused because too many were under way.");
    for (kind, count) in kinds.iter().zip(&api.metrics.refused) {
        let count = count.load(Ordering::Relaxed);
        let _ = writeln!(text, "apiserver_dropped_requests_total{{request_kind=\"{kind}\"}} {count}");
    }
    head(&mut text, "apiserver_longrunning_requests", "gauge", "Watches under way.");
    let _ = writeln!(text, "apiserver_longrunning_requests{{verb=\"WATCH\"}} {}", api.watches_under_way());
    head(&mut text, "apiserver_storage_revision", "gauge", "The last durable revision.");
    let _ = writeln!(text, "apiserver_storage_revision {}", api.state.revision());
    let mut resources = api.state.resources();
    resources.sort_unstable();
    head(&mut text, "apiserver_storage_objects", "gauge", "Objects stored.");
    for resource in &resources {
        let count = api.state.cache(resource).len();
        let _ = writeln!(text, "apiserver_storage_objects{{resource=\"{resource}\"}} {count}");
    }
    head(&mut text, "apiserver_watch_cache_bytes", "gauge", "Memory held by what happened lately, for watches.");
    for resource in &resources {
        let held = api.state.cache(resource).held();
        let _ = writeln!(text, "apiserver_watch_cache_bytes{{resource=\"{resource}\"}} {held}");
    }
    process(&mut text);
    text
}

/// What the process uses; other servers may live in it.
fn process(text: &mut String) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse::<u64>().ok());
    if let Some(kibibytes) = resident {
        head(text, "process_resident_memory_bytes", "gauge", "Memory of the process.");
        let _ = writeln!(text, "process_resident_memory_bytes {}", kibibytes * 1024);
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        head(text, "process_open_fds", "gauge", "Open files of the process.");
        let _ = writeln!(text, "process_open_fds {}", open.count());
    }
}
