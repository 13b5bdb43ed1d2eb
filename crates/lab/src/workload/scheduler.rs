//! The scheduler: a cluster of the lab has one node, so the choice is easy.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;

use super::{Later, Trouble, claims, each, gone, is_code};
use crate::cluster::Shared;

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let waiting = shared.caches.pods.list().into_iter().filter(|pod| {
        let spec = pod.spec.as_ref();
        pod.metadata.deletion_timestamp.is_none()
            && spec.is_some_and(|s| s.node_name.as_deref().unwrap_or("").is_empty())
            && spec.is_some_and(|s| s.scheduling_gates.as_ref().is_none_or(Vec::is_empty))
            && spec.is_some_and(|s| s.scheduler_name.as_deref().is_none_or(|name| name == "default-scheduler"))
    });
    each(waiting.map(|pod| place(&shared, pod))).await?;
    evict(&shared).await
}

/// Pods that do not bear a `NoExecute` taint leave, at once or after their `tolerationSeconds`.
async fn evict(shared: &Shared) -> Result<(), Trouble> {
    let Some(node) = shared.caches.nodes.get("", &shared.node) else { return Ok(()) };
    let taints: Vec<_> = taints(&node).filter(|taint| taint.effect == "NoExecute").collect();
    if taints.is_empty() {
        return Ok(());
    }
    let now = jiff::Timestamp::now();
    let here = shared.caches.pods.list().into_iter().filter(|pod| {
        pod.metadata.deletion_timestamp.is_none() && pod.spec.as_ref().is_some_and(|s| s.node_name.is_some())
    });
    let work = here.map(|pod| {
        let stays = taints.iter().map(|taint| stays(&pod, taint, now)).min().flatten();
        async move {
            match stays {
                Some(i64::MAX) => Ok(()),
                Some(seconds) => Err(Later::seconds(seconds)),
                None => {
                    let text =
                        format!("Marking for deletion Pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
                    shared.events.normal(pod.as_ref(), "TaintManagerEviction", text);
                    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &pod.namespace().unwrap_or_default());
                    Ok(gone(api.delete(&pod.name_any(), &DeleteParams::default()).await)?)
                }
            }
        }
    });
    each(work).await
}

/// For how many seconds more a pod bears a taint; `None` if it does not.
fn stays(pod: &Pod, taint: &Taint, now: jiff::Timestamp) -> Option<i64> {
    let since = taint.time_added.as_ref().map_or(now, |t| t.0);
    let tolerations = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten()).filter(|t| bears(t, taint));
    let longest = tolerations.map(|t| t.toleration_seconds.unwrap_or(i64::MAX)).max()?;
    if longest == i64::MAX {
        return Some(longest);
    }
    let left = longest - now.duration_since(since).as_secs();
    (left > 0).then_some(left)
}

fn taints(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec.iter().flat_map(|s| s.taints.iter().flatten())
}

/// Whether a toleration covers a taint.
fn bears(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or("");
    let key = toleration.key.as_deref().unwrap_or("");
    let value = match toleration.operator.as_deref() {
        Some("Exists") => true,
        _ => toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or(""),
    };
    (effect.is_empty() || effect == taint.effect) && (key.is_empty() || key == taint.key) && value
}

/// Why the node does not take a pod, in the scheduler's words.
pub(super) fn refusal(node: &Node, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let tolerated = |taint: &Taint| spec.tolerations.iter().flatten().any(|t| bears(t, taint));
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let unschedulable = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    let closed = node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
    let untolerated = taints(node).find(|taint| taint.effect != "PreferNoSchedule" && !tolerated(taint));
    let wanted = spec.node_selector.iter().flatten();
    if wanted.into_iter().any(|(k, v)| labels.get(k) != Some(v)) {
        return Some("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.".to_owned());
    }
    if closed && !tolerated(&unschedulable) {
        return Some("0/1 nodes are available: 1 node(s) were unschedulable.".to_owned());
    }
    let taint = untolerated.filter(|taint| taint.key != unschedulable.key || !closed)?;
    let value = taint.value.as_deref().unwrap_or("");
    Some(format!("0/1 nodes are available: 1 node(s) had untolerated taint {{{}: {value}}}.", taint.key))
}

async fn place(shared: &Shared, pod: Arc<Pod>) -> Result<(), Trouble> {
    let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
    // Until the node has registered itself there is nothing that could refuse.
    if let Some(message) = shared.caches.nodes.get("", &shared.node).and_then(|node| refusal(&node, &pod)) {
        return refuse(shared, &pod, message).await;
    }
    if let Some(message) = claims::refusal(shared, &pod) {
        return refuse(shared, &pod, message).await;
    }
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name, "namespace": namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": shared.node},
    });
    let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/pods/{name}/binding"))
        .header("content-type", "application/json")
        .body(serde_json::to_vec(&binding)?)?;
    match shared.client.request_text(request).await {
        Ok(_) => {
            let text = format!("Successfully assigned {namespace}/{name} to {}", shared.node);
            shared.events.normal(pod.as_ref(), "Scheduled", text);
            Ok(())
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_refuses() {
        let node = |spec: serde_json::Value| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n", "labels": {"zone": "a"}}, "spec": spec})).unwrap()
        };
        let pod = |spec: serde_json::Value| -> Pod {
            let mut value = json!({"metadata": {"name": "p"}, "spec": {"containers": []}});
            for (field, more) in spec.as_object().unwrap() {
                value["spec"][field] = more.clone();
            }
            serde_json::from_value(value).unwrap()
        };
        let tainted = json!({"taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]});
        let cases = [
            (json!({}), json!({}), None),
            (json!({}), json!({"nodeSelector": {"zone": "a"}}), None),
            (json!({}), json!({"nodeSelector": {"zone": "b"}}), Some("didn't match Pod's node affinity/selector")),
            (json!({"unschedulable": true}), json!({}), Some("were unschedulable")),
            (json!({"unschedulable": true}), json!({"tolerations": [{"operator": "Exists"}]}), None),
            (tainted.clone(), json!({}), Some("had untolerated taint {k: v}")),
            (tainted.clone(), json!({"tolerations": [{"key": "k", "value": "v", "effect": "NoSchedule"}]}), None),
            (tainted.clone(), json!({"tolerations": [{"key": "k", "value": "w"}]}), Some("had untolerated taint")),
            (json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]}), json!({}), None),
        ];
        for (on, of, expected) in cases {
            let said = refusal(&node(on.clone()), &pod(of.clone()));
            match expected {
                None => assert_eq!(said, None, "{on} {of}"),
                Some(part) => assert!(said.as_ref().is_some_and(|said| said.contains(part)), "{on} {of}: {said:?}"),
            }
        }
    }
}
