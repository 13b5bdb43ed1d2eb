//! ReplicaSets: as many pods as wanted.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{AT_ONCE, Trouble, by_controller, condition, each, gone, is_active, is_code, owned_by};
use crate::cluster::Shared;

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let mut owned = by_controller(shared.caches.pods.list());
    let sets = shared.caches.replicasets.list().into_iter().filter(|s| s.metadata.deletion_timestamp.is_none());
    let work = sets.map(|set| {
        let pods = set.uid().and_then(|uid| owned.remove(&uid)).unwrap_or_default();
        carry_out(&shared, set, pods)
    });
    each(work).await
}

async fn carry_out(shared: &Shared, set: Arc<ReplicaSet>, pods: Vec<Arc<Pod>>) -> Result<(), Trouble> {
    let namespace = set.namespace().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &namespace);
    let wanted = set.spec.replicas.unwrap_or(1).max(0) as usize;
    let mut active: Vec<_> = pods.into_iter().filter(|pod| is_active(pod)).collect();
    let mut trouble: Result<(), Trouble> = Ok(());
    if active.len() < wanted {
        let missing = wanted - active.len();
        let create = (0..missing).map(|_| async {
            let created = api.create(&PostParams::default(), &pod(&set)).await;
            created.map(|pod| {
                shared.caches.pods.wrote(pod.clone());
                Arc::new(pod)
            })
        });
        let created: Vec<_> = futures::stream::iter(create).buffer_unordered(AT_ONCE).collect().await;
        for result in created {
            match result {
                Ok(pod) => active.push(pod),
                Err(error) => {
                    if !is_code(&error, 404) {
                        let text = format!("Error creating: {error}");
                        shared.events.warning(set.as_ref(), "FailedCreate", text);
                    }
                    trouble = Err(error.into());
                }
            }
        }
    } else if active.len() > wanted {
        active.sort_by_key(|pod| keep_rank(pod));
        for pod in active.drain(wanted..) {
            gone(api.delete(&pod.name_any(), &DeleteParams::default()).await)?;
        }
    }
    let ready = active.iter().filter(|pod| condition(pod, "Ready")).count();
    let available = active.iter().filter(|pod| is_available(&set, pod)).count();
    let failed = trouble.as_ref().err().map(ToString::to_string);
    let status = status(&set, active.len(), ready, available, failed.as_deref());
    let before = serde_json::to_value(&set.status).unwrap_or_default();
    let differs = |(field, value): (&String, &Value)| {
        before[field] != *value && !(value.is_null() && (before[field].is_null() || before[field] == json!(0)))
    };
    if status.as_object().into_iter().flatten().any(differs) {
        let api: Api<ReplicaSet> = Api::namespaced(shared.client.clone(), &namespace);
        let patch = json!({"status": status});
        match api.patch_status(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(set) => shared.caches.replicasets.wrote(set),
            Err(error) if is_code(&error, 404) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if available < ready {
        // Nothing else will poke us when a pod has been ready for long enough.
        return Err("pods are not ready for long enough yet".into());
    }
    trouble
}

fn status(set: &ReplicaSet, have: usize, ready: usize, available: usize, failed: Option<&str>) -> Value {
    let number = |n: usize| if n == 0 { Value::Null } else { json!(n) };
    let conditions = failed.map_or(
        Value::Null,
        |message| json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}]),
    );
    json!({
        "observedGeneration": set.metadata.generation,
        "replicas": have,
        "fullyLabeledReplicas": number(have),
        "readyReplicas": number(ready),
        "availableReplicas": number(available),
        "conditions": conditions,
    })
}

/// Pods that stay longest come first: ready before not, older before newer, placed before not.
fn keep_rank(pod: &Pod) -> (bool, bool, jiff::Timestamp) {
    let placed = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
    let created = pod.creation_timestamp().map_or(jiff::Timestamp::MAX, |t| t.0);
    (!condition(pod, "Ready"), !placed, created)
}

fn is_available(set: &ReplicaSet, pod: &Pod) -> bool {
    if !condition(pod, "Ready") {
        return false;
    }
    let least = i64::from(set.spec.min_ready_seconds.unwrap_or(0));
    if least == 0 {
        return true;
    }
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let since = conditions.into_iter().find(|c| c.type_ == "Ready").and_then(|c| c.last_transition_time.as_ref());
    since.is_some_and(|since| jiff::Timestamp::now().duration_since(since.0).as_secs() >= least)
}

fn pod(set: &ReplicaSet) -> Pod {
    let template = set.spec.template.clone().unwrap_or_default();
    let mut pod = Pod { metadata: template.metadata.unwrap_or_default(), spec: template.spec, status: None };
    pod.metadata.name = None;
    pod.metadata.generate_name = Some(format!("{}-", set.name_any()));
    pod.metadata.namespace = set.namespace();
    pod.metadata.owner_references = Some(vec![owned_by("apps/v1", "ReplicaSet", set)]);
    pod
}
