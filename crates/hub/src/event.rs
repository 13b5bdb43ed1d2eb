//! Kubernetes events, written on the side and never waited for.

use std::collections::HashMap;

use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;
use stolos_serve::Stop;
use tokio::sync::mpsc;

use crate::MANAGER;

/// Events waiting to be written; more are dropped.
const QUEUE: usize = 4096;
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

/// Writes what comes until `stop`.
pub(crate) async fn write(entries: Entries, client: kube::Client, stop: Stop) {
    let mut entries = entries.0;
    let resource =
        Resource { api_version: "v1".into(), kind: "Event".into(), plural: "events".into(), namespaced: true };
    let mut known: HashMap<(String, &'static str, String), (String, u64)> = HashMap::new();
    loop {
        let entry = tokio::select! {
            entry = entries.recv() => entry,
            () = stop.asked() => return,
        };
        let Some(entry) = entry else { return };
        let text = |field: &str| entry.about[field].as_str().unwrap_or_default().to_owned();
        // Events about what has no namespace are in `default`, as client-go writes them.
        let namespace = Some(text("namespace")).filter(|n| !n.is_empty()).unwrap_or_else(|| "default".to_owned());
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let key = (text("uid"), entry.reason, entry.message.clone());
        if let Some((name, count)) = known.get_mut(&key) {
            *count += 1;
            let patch = json!({"count": count, "lastTimestamp": now});
            let place = (Some(namespace.as_str()), name.as_str());
            if objects::merge(&client, &resource, place, &patch, false, MANAGER).await.is_ok() {
                continue;
            }
            known.remove(&key);
        }
        let name = format!("{}.{:016x}", text("name"), rand::random::<u64>());
        let mut about = entry.about.clone();
        if text("namespace").is_empty()
            && let Some(fields) = about.as_object_mut()
        {
            fields.remove("namespace");
        }
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about, "type": if entry.warning { "Warning" } else { "Normal" },
            "reason": entry.reason, "message": entry.message, "source": {"component": entry.from},
            "reportingComponent": entry.from, "reportingInstance": "",
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        });
        match objects::create(&client, &resource, &event, MANAGER).await {
            Ok(_) => {
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(key, (name, 1));
            }
            Err(error) => tracing::debug!(%error, "cannot write an event"),
        }
    }
}
