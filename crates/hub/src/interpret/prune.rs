//! What of a template does not go to members: what an API server wrote into it.

use serde_json::{Map, Value};
use stolos_k8s::meta;

use super::{Native, native, text};

/// The labels that a Job's controller makes its selector from, in both forms.
const JOB_LABELS: [&str; 4] =
    ["controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"];

/// The manifest of a template for a member, before its share, overrides and the hub's own labels.
#[must_use]
pub fn manifest(template: &Value) -> Value {
    let mut manifest = template.clone();
    let kind = native(template);
    let name = meta::name(template).to_owned();
    let token = text(template, "/type") == "kubernetes.io/service-account-token";
    let Some(object) = manifest.as_object_mut() else { return manifest };
    object.remove("status");
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        for field in [
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "managedFields",
            "resourceVersion",
            "selfLink",
            "uid",
            "ownerReferences",
            "finalizers",
        ] {
            metadata.remove(field);
        }
        let annotations: &[&str] = match kind {
            Some(Native::Deployment) => {
                &["deployment.kubernetes.io/revision", "deployment.kubernetes.io/revision-history"]
            }
            Some(Native::Secret) if token => &["kubernetes.io/service-account.uid"],
            Some(Native::PersistentVolumeClaim) => &["volume.kubernetes.io/selected-node"],
            _ => &[],
        };
        remove(metadata, "annotations", annotations);
    }
    match kind {
        Some(Native::Secret) if token => {
            object.remove("data");
        }
        Some(Native::ServiceAccount) => {
            let made = format!("{name}-token-");
            if let Some(secrets) = object.get_mut("secrets").and_then(Value::as_array_mut) {
                secrets.retain(|secret| !text(secret, "/name").starts_with(&made));
            }
        }
        Some(Native::Service) => {
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
                && spec.get("clusterIP").is_some_and(|address| address != "None")
            {
                spec.remove("clusterIP");
                spec.remove("clusterIPs");
            }
        }
        Some(Native::Job) => {
            if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
                spec.remove("ttlSecondsAfterFinished");
                if spec.get("manualSelector") != Some(&Value::Bool(true)) {
                    if let Some(selector) = spec.get_mut("selector").and_then(Value::as_object_mut) {
                        remove(selector, "matchLabels", &JOB_LABELS);
                        if selector.is_empty() {
                            spec.remove("selector");
                        }
                    }
                    let metadata = spec.get_mut("template").and_then(|template| template.get_mut("metadata"));
                    if let Some(metadata) = metadata.and_then(Value::as_object_mut) {
                        remove(metadata, "labels", &JOB_LABELS);
                    }
                }
            }
        }
        _ => {}
    }
    manifest
}

/// Takes keys out of a map, and the map when it is empty then.
fn remove(holder: &mut Map<String, Value>, map: &str, keys: &[&str]) {
    let Some(found) = holder.get_mut(map).and_then(Value::as_object_mut).filter(|_| !keys.is_empty()) else { return };
    for key in keys {
        found.remove(*key);
    }
    if found.is_empty() {
        holder.remove(map);
    }
}
