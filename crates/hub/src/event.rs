//! Kubernetes events, written on the side and never waited for.

use std::collections::HashMap;

use futures::StreamExt as _;
use serde_json::{Value, json};
use stolos_cluster::near::Keeper;
use stolos_cluster::objects::Resource;
use stolos_k8s::meta;
use stolos_serve::Stop;
use tokio::sync::mpsc;

use crate::MANAGER;

/// Events waiting to be written; more are dropped. Thousands of workloads say a few each at once.
const QUEUE: usize = 32_768;
/// So many are written at once: together they are durable as fast as one.
const AT_ONCE: usize = 64;
/// The same while there is something to be decided.
const FEW: usize = 8;
/// Recent events that are counted instead of repeated.
const REMEMBERED: usize = 4096;

/// Takes events. The parts of Karmada that say them are their `From` in `kubectl describe`.
#[derive(Clone)]
pub(crate) struct Recorder(mpsc::Sender<Entry>);

/// Events on their way.
pub(crate) struct Entries(mpsc::Receiver<Entry>);

struct Entry {
    about: Value,
    from: &'static str,
    warning: bool,
    reason: &'static str,
    message: String,
}

impl Entry {
    fn text(&self, field: &str) -> &str {
        self.about[field].as_str().unwrap_or_default()
    }

    fn said(&self) -> Said {
        (self.text("uid").to_owned(), self.reason, self.message.clone())
    }
}

impl Recorder {
    pub(crate) fn new() -> (Self, Entries) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), Entries(receiver))
    }

    /// All is well with an object.
    pub(crate) fn normal(&self, about: &Value, from: &'static str, reason: &'static str, message: impl Into<String>) {
        self.send(about, from, false, reason, message.into());
    }

    /// Something is wrong with an object.
    pub(crate) fn warning(&self, about: &Value, from: &'static str, reason: &'static str, message: impl Into<String>) {
        self.send(about, from, true, reason, message.into());
    }

    fn send(&self, about: &Value, from: &'static str, warning: bool, reason: &'static str, message: String) {
        let about = json!({
            "apiVersion": meta::api_version(about), "kind": meta::kind(about), "namespace": meta::namespace(about),
            "name": meta::name(about), "uid": meta::uid(about),
        });
        // A full queue drops the event: events are news, not truth.
        let _ = self.0.try_send(Entry { about, from, warning, reason, message });
    }
}

/// What was said: about whom, why, and in which words.
type Said = (String, &'static str, String);

/// An event that is there: its name, and how often it was said.
type Written = (String, u64);

/// Writes what comes until `stop`; slowly while it has to `yield_to` others.
pub(crate) async fn write(entries: Entries, keeper: Keeper, yield_to: impl Fn() -> bool + Send, stop: Stop) {
    let mut entries = entries.0;
    let mut known: HashMap<Said, Written> = HashMap::new();
    loop {
        let mut came = Vec::new();
        let at_once = if yield_to() { FEW } else { AT_ONCE };
        let count = tokio::select! {
            count = entries.recv_many(&mut came, at_once) => count,
            () = stop.asked() => return,
        };
        if count == 0 {
            return;
        }
        // What is said twice in a moment is one event, too.
        let mut times: HashMap<Said, u64> = HashMap::new();
        came.retain(|entry| {
            let times = times.entry(entry.said()).or_default();
            *times += 1;
            *times == 1
        });
        let writes = came.into_iter().map(|entry| {
            let said = entry.said();
            let (before, times) = (known.get(&said).cloned(), times.get(&said).copied().unwrap_or(1));
            let keeper = &keeper;
            async move { (said, written(keeper, &entry, before, times).await) }
        });
        let writes: Vec<_> = writes.collect();
        let mut writes = futures::stream::iter(writes).buffer_unordered(AT_ONCE);
        while let Some((said, written)) = writes.next().await {
            if known.len() >= REMEMBERED {
                known.clear();
            }
            match written {
                Some(written) => known.insert(said, written),
                None => known.remove(&said),
            };
        }
    }
}

/// Writes an event that was said so many `times` since it was written, if it was.
async fn written(keeper: &Keeper, entry: &Entry, before: Option<Written>, times: u64) -> Option<Written> {
    let resource =
        Resource { api_version: "v1".into(), kind: "Event".into(), plural: "events".into(), namespaced: true };
    // Events about what has no namespace are in `default`, as client-go writes them.
    let namespace = if entry.text("namespace").is_empty() { "default" } else { entry.text("namespace") };
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    if let Some((name, count)) = before {
        let count = count + times;
        let patch = json!({"count": count, "lastTimestamp": now});
        if keeper.merge(&resource, (namespace, &name), &patch, false, MANAGER).await.is_ok() {
            return Some((name, count));
        }
    }
    let name = format!("{}.{:016x}", entry.text("name"), rand::random::<u64>());
    let mut about = entry.about.clone();
    if entry.text("namespace").is_empty()
        && let Some(fields) = about.as_object_mut()
    {
        fields.remove("namespace");
    }
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace},
        "involvedObject": about, "type": if entry.warning { "Warning" } else { "Normal" },
        "reason": entry.reason, "message": entry.message, "source": {"component": entry.from},
        "reportingComponent": entry.from, "reportingInstance": "",
        "firstTimestamp": now, "lastTimestamp": now, "count": times,
    });
    match keeper.create(&resource, &event, MANAGER).await {
        Ok(_) => Some((name, times)),
        Err(error) => {
            tracing::debug!(%error, "cannot write an event");
            None
        }
    }
}
