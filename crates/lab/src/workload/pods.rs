//! What every controller that has pods does with them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::{Resource, ResourceExt};

use super::{condition, gone, is_code, owned_by};
use crate::cluster::Shared;

/// A pod of a template, with a name of its own that begins with its owner's.
pub(super) fn from_template<K: Resource<DynamicType = ()>>(template: &PodTemplateSpec, owner: &K) -> Pod {
    let mut pod =
        Pod { metadata: template.metadata.clone().unwrap_or_default(), spec: template.spec.clone(), status: None };
    pod.metadata.name = None;
    pod.metadata.generate_name = Some(format!("{}-", owner.name_any()));
    pod.metadata.namespace = owner.namespace();
    pod.metadata.owner_references = Some(vec![owned_by(&K::api_version(&()), &K::kind(&()), owner)]);
    pod
}

/// Makes a pod and says so in an event of its owner's.
pub(super) async fn create<K: Resource<DynamicType = ()>>(
    shared: &Shared,
    owner: &K,
    pod: Pod,
) -> Result<Arc<Pod>, kube::Error> {
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &owner.namespace().unwrap_or_default());
    match api.create(&PostParams::default(), &pod).await {
        Ok(pod) => {
            shared.caches.pods.wrote(pod.clone());
            shared.events.normal(owner, "SuccessfulCreate", format!("Created pod: {}", pod.name_any()));
            Ok(Arc::new(pod))
        }
        Err(error) => {
            if !is_code(&error, 404) {
                shared.events.warning(owner, "FailedCreate", format!("Error creating: {error}"));
            }
            Err(error)
        }
    }
}

/// Asks a pod to go and says so in an event of its owner's.
pub(super) async fn delete<K: Resource<DynamicType = ()>>(
    shared: &Shared,
    owner: &K,
    pod: &Pod,
) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &pod.namespace().unwrap_or_default());
    // Names of StatefulSets' pods come again: the one that was looked at is meant.
    let preconditions = Some(Preconditions { uid: pod.uid(), resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::default() };
    match api.delete(&pod.name_any(), &params).await {
        Err(error) if is_code(&error, 409) => Ok(()),
        Ok(_) => {
            shared.events.normal(owner, "SuccessfulDelete", format!("Deleted pod: {}", pod.name_any()));
            Ok(())
        }
        result => gone(result),
    }
}

/// Whether a pod has been ready for so many seconds.
pub(super) fn is_available(pod: &Pod, least: Option<i32>) -> bool {
    if !condition(pod, "Ready") {
        return false;
    }
    let least = i64::from(least.unwrap_or(0));
    if least == 0 {
        return true;
    }
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let since = conditions.into_iter().find(|c| c.type_ == "Ready").and_then(|c| c.last_transition_time.as_ref());
    since.is_some_and(|since| jiff::Timestamp::now().duration_since(since.0).as_secs() >= least)
}

/// A pod's phase.
pub(super) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending")
}

/// Whether a pod has been asked to go.
pub(super) fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}
