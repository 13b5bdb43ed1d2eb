//! What a member's object keeps when the hub writes it again.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use stolos_k8s::meta;

use super::{Native, list, native, number, text};
use crate::label::{MANAGED_ANNOTATIONS, MANAGED_LABELS, RETAIN_REPLICAS};

/// What to write over a member's object: the wanted one, with the member's version, finalizers and owners, with labels and
/// annotations that others have put there, and with what [`retain`] keeps.
#[must_use]
pub fn merge(wanted: &Value, observed: &Value) -> Value {
    let mut merged = books(wanted, observed);
    retain(&mut merged, observed);
    merged
}

/// The part of [`merge`] that is the same for all kinds.
pub(super) fn books(wanted: &Value, observed: &Value) -> Value {
    let mut merged = wanted.clone();
    for field in ["resourceVersion", "finalizers", "ownerReferences"] {
        if let Some(value) = observed.get("metadata").and_then(|metadata| metadata.get(field)) {
            meta::metadata_mut(&mut merged).insert(field.to_owned(), value.clone());
        }
    }
    for (field, owned) in [("labels", MANAGED_LABELS), ("annotations", MANAGED_ANNOTATIONS)] {
        let of = |object: &Value| -> Map<String, Value> {
            object.pointer(&format!("/metadata/{field}")).and_then(Value::as_object).cloned().unwrap_or_default()
        };
        // What the hub wrote before and does not write any more goes; what is not the hub's stays.
        let before: BTreeSet<&str> =
            meta::annotation(observed, owned).unwrap_or_default().split(',').filter(|key| !key.is_empty()).collect();
        let mut all = of(observed);
        all.retain(|key, _| !before.contains(key.as_str()));
        all.extend(of(wanted));
        if !all.is_empty() {
            meta::metadata_mut(&mut merged).insert(field.to_owned(), all.into());
        }
    }
    merged
}

/// Keeps what the member decides: addresses, volumes, selectors that its controllers made.
pub fn retain(wanted: &mut Value, observed: &Value) {
    match native(wanted) {
        Some(Native::Deployment) if meta::label(wanted, RETAIN_REPLICAS) == Some("true") => {
            keep(wanted, observed, &["spec", "replicas"]);
        }
        Some(Native::Job) => {
            keep(wanted, observed, &["spec", "selector", "matchLabels"]);
            keep(wanted, observed, &["spec", "template", "metadata", "labels"]);
        }
        Some(Native::Pod) => {
            for field in ["nodeName", "serviceAccountName", "volumes"] {
                keep(wanted, observed, &["spec", field]);
            }
            for containers in ["containers", "initContainers"] {
                volume_mounts(wanted, observed, containers);
            }
        }
        Some(Native::Service) => service(wanted, observed),
        Some(Native::PersistentVolumeClaim) => keep(wanted, observed, &["spec", "volumeName"]),
        Some(Native::PersistentVolume) => keep(wanted, observed, &["spec", "claimRef"]),
        Some(Native::ServiceAccount) => {
            let mut secrets = list(wanted, "/secrets").to_vec();
            for secret in list(observed, "/secrets") {
                if !secrets.iter().any(|known| text(known, "/name") == text(secret, "/name")) {
                    secrets.push(secret.clone());
                }
            }
            if let Some(object) = wanted.as_object_mut().filter(|_| !secrets.is_empty()) {
                object.insert("secrets".to_owned(), secrets.into());
            }
        }
        Some(Native::Secret) if text(wanted, "/type") == "kubernetes.io/service-account-token" => {
            keep(wanted, observed, &["data"]);
        }
        _ => {}
    }
}

/// Takes a field from the member's object, if it has it.
fn keep(wanted: &mut Value, observed: &Value, path: &[&str]) {
    let Some(value) = observed.pointer(&format!("/{}", path.join("/"))).filter(|value| !value.is_null()) else {
        return;
    };
    let Some((last, holders)) = path.split_last() else { return };
    let mut holder = wanted;
    for field in holders {
        let Some(object) = holder.as_object_mut() else { return };
        holder = object.entry(*field).or_insert_with(|| Value::Object(Map::new()));
    }
    if let Some(object) = holder.as_object_mut() {
        object.insert((*last).to_owned(), value.clone());
    }
}

/// A container's mounts, by its name: an API server adds the token's.
fn volume_mounts(wanted: &mut Value, observed: &Value, containers: &str) {
    let pointer = format!("/spec/{containers}");
    let Some(list_of_wanted) = wanted.pointer_mut(&pointer).and_then(Value::as_array_mut) else { return };
    for container in list_of_wanted {
        let name = text(container, "/name").to_owned();
        if let Some(found) = list(observed, &pointer).iter().find(|found| text(found, "/name") == name) {
            keep(container, found, &["volumeMounts"]);
        }
    }
}

/// Addresses and node ports are the member's.
fn service(wanted: &mut Value, observed: &Value) {
    if text(wanted, "/spec/clusterIP").is_empty() {
        keep(wanted, observed, &["spec", "clusterIP"]);
        keep(wanted, observed, &["spec", "clusterIPs"]);
    }
    if number(observed, "/spec/healthCheckNodePort").is_some_and(|port| port != 0) {
        keep(wanted, observed, &["spec", "healthCheckNodePort"]);
    }
    let Some(ports) = wanted.pointer_mut("/spec/ports").and_then(Value::as_array_mut) else { return };
    let key = |port: &Value| {
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP").to_owned();
        (text(port, "/name").to_owned(), protocol, number(port, "/port"))
    };
    for port in ports.iter_mut().filter(|port| number(port, "/nodePort").unwrap_or(0) == 0) {
        let found = list(observed, "/spec/ports").iter().find(|found| key(found) == key(port));
        if let Some(found) = found.filter(|found| number(found, "/nodePort").unwrap_or(0) != 0) {
            keep(port, found, &["nodePort"]);
        }
    }
}
