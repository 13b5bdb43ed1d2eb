//! Kubernetes events, written on the side and never waited for.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use serde_json::json;
use stolos_serve::Stop;
use tokio::sync::mpsc;

/// Events waiting to be written; more are dropped.
const QUEUE: usize = 1024;
/// Recent events that are counted instead of repeated.
const REMEMBERED: usize = 512;

/// Takes events.
#[derive(Clone)]
pub(crate) struct Recorder(mpsc::Sender<Entry>);

/// Events on their way.
pub(crate) struct Entries(mpsc::Receiver<Entry>);

struct Entry {
    about: serde_json::Value,
    namespace: String,
    name: String,
    kind: &'static str,
    reason: &'static str,
    message: String,
}

impl Recorder {
    pub(crate) fn new() -> (Self, Entries) {
        let (sender, receiver) = mpsc::channel::<Entry>(QUEUE);
        (Self(sender), Entries(receiver))
    }

    pub(crate) fn normal<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &'static str, message: String) {
        self.send(about, "Normal", reason, message);
    }

    pub(crate) fn warning<K: Resource<DynamicType = ()>>(&self, about: &K, reason: &'static str, message: String) {
        self.send(about, "Warning", reason, message);
    }

    fn send<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        kind: &'static str,
        reason: &'static str,
        message: String,
    ) {
        let entry = Entry {
            about: json!({
                "apiVersion": K::api_version(&()), "kind": K::kind(&()), "namespace": about.namespace(),
                "name": about.name_any(), "uid": about.uid(), "resourceVersion": about.resource_version(),
            }),
            namespace: about.namespace().unwrap_or_else(|| "default".to_owned()),
            name: about.name_any(),
            kind,
            reason,
            message,
        };
        // A full queue drops the event: events are news, not truth.
        let _ = self.0.try_send(entry);
    }
}

/// Writes what comes until `stop`.
pub(crate) async fn write(mut entries: Entries, client: kube::Client, stop: Stop) {
    let mut known: HashMap<(String, &'static str, String), (String, i64)> = HashMap::new();
    loop {
        let entry = tokio::select! {
            entry = entries.0.recv() => match entry { Some(entry) => entry, None => return },
            () = stop.asked() => return,
        };
        let api: Api<Event> = Api::namespaced(client.clone(), &entry.namespace);
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let uid = entry.about["uid"].as_str().unwrap_or("").to_owned();
        let key = (uid, entry.reason, entry.message.clone());
        if let Some((name, count)) = known.get_mut(&key) {
            *count += 1;
            let patch = json!({"count": count, "lastTimestamp": now});
            if api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                continue;
            }
            known.remove(&key);
        }
        let component = component(entry.about["kind"].as_str().unwrap_or(""), entry.reason);
        let name = format!("{}.{:016x}", entry.name, rand::random::<u64>());
        let event = serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": entry.namespace},
            "involvedObject": entry.about, "type": entry.kind, "reason": entry.reason, "message": entry.message,
            "source": {"component": component}, "reportingComponent": component, "reportingInstance": "",
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        }));
        let Ok(event) = event else { continue };
        match api.create(&PostParams::default(), &event).await {
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

/// Who would say this in a cluster whose parts are programs of their own: what `kubectl describe` shows as `From`.
fn component(kind: &str, reason: &str) -> &'static str {
    match (kind, reason) {
        ("Pod", "Scheduled" | "FailedScheduling") => "default-scheduler",
        ("Pod", "TaintManagerEviction") => "taint-eviction-controller",
        ("Pod" | "Node", _) => "kubelet",
        ("Deployment", _) => "deployment-controller",
        ("ReplicaSet", _) => "replicaset-controller",
        ("StatefulSet", _) => "statefulset-controller",
        ("DaemonSet", _) => "daemonset-controller",
        ("Job", _) => "job-controller",
        ("CronJob", _) => "cronjob-controller",
        ("Service", _) => "service-controller",
        _ => "stolos-lab",
    }
}
