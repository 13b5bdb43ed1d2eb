//! The scheduler: a cluster of the lab has one node, so the choice is easy.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::{Trouble, each, is_code};
use crate::cluster::Shared;

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let waiting = shared.caches.pods.list().into_iter().filter(|pod| {
        let spec = pod.spec.as_ref();
        pod.metadata.deletion_timestamp.is_none()
            && spec.is_some_and(|s| s.node_name.as_deref().unwrap_or("").is_empty())
            && spec.is_some_and(|s| s.scheduling_gates.as_ref().is_none_or(Vec::is_empty))
            && spec.is_some_and(|s| s.scheduler_name.as_deref().is_none_or(|name| name == "default-scheduler"))
    });
    each(waiting.map(|pod| place(&shared, pod))).await
}

async fn place(shared: &Shared, pod: Arc<Pod>) -> Result<(), Trouble> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    let wanted = pod.spec.as_ref().and_then(|s| s.node_selector.clone()).unwrap_or_default();
    let labels = shared.node_labels();
    if let Some((label, value)) = wanted.iter().find(|(k, v)| labels.get(*k) != Some(*v)) {
        return refuse(shared, &pod, format!("0/1 nodes are available: 1 node(s) did not have {label}={value}.")).await;
    }
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "namespace": namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": shared.node},
    });
    let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/binding"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&binding)?)?;
    match shared.client.request_text(request).await {
        Ok(_) => Ok(()),
        // Gone, or bound already and the cache does not know yet.
        Err(error) if is_code(&error, 404) || is_code(&error, 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn refuse(shared: &Shared, pod: &Pod, message: String) -> Result<(), Trouble> {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if conditions.into_iter().any(|c| c.type_ == "PodScheduled" && c.message.as_deref() == Some(&message)) {
        return Ok(());
    }
    shared.events.warning(pod, "FailedScheduling", message.clone());
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &pod.namespace().unwrap_or_default());
    let patch = json!({"status": {"conditions": [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]}});
    match api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(pod) => {
            shared.caches.pods.wrote(pod);
            Ok(())
        }
        Err(error) if is_code(&error, 404) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
