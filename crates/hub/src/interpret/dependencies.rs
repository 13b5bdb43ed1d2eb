//! What a workload needs beside it: ConfigMaps, Secrets, a service account, claims.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_k8s::meta;

use super::{Native, list, native, pod_template, text};
use crate::model::LabelSelector;

/// An object that another one needs, as it is recorded on its binding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// Group and version.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// The namespace: always the workload's own.
    #[serde(default)]
    pub namespace: String,
    /// The name; empty with labels.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The labels, where there is no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_selector: Option<LabelSelector>,
}

/// What a template needs, by kind and name.
#[must_use]
pub fn dependencies(template: &Value) -> Vec<Dependency> {
    let namespace = meta::namespace(template);
    let mut needed: BTreeSet<(&str, &str)> = BTreeSet::new();
    match native(template) {
        Some(Native::Ingress) => {
            needed.extend(list(template, "/spec/tls").iter().map(|tls| ("Secret", text(tls, "/secretName"))));
        }
        Some(Native::ServiceImport) => return imported(meta::name(template), namespace),
        _ => {
            if let Some(spec) = pod_template(template).and_then(|template| template.get("spec")) {
                of_pod(spec, &mut needed);
            }
        }
    }
    // A StatefulSet's claims are made by its members' controllers.
    if native(template) == Some(Native::StatefulSet) {
        for claim in list(template, "/spec/volumeClaimTemplates") {
            needed.remove(&("PersistentVolumeClaim", meta::name(claim)));
        }
    }
    named(needed, namespace)
}

/// What the pods of a template need.
pub(super) fn of_template(template: &Value, namespace: &str) -> Vec<Dependency> {
    let mut needed = BTreeSet::new();
    if let Some(spec) = template.get("spec") {
        of_pod(spec, &mut needed);
    }
    named(needed, namespace)
}

fn named(needed: BTreeSet<(&str, &str)>, namespace: &str) -> Vec<Dependency> {
    let needed = needed.into_iter().filter(|(_, name)| !name.is_empty());
    needed.map(|(kind, name)| of("v1", kind, namespace, name)).collect()
}

fn of(api_version: &str, kind: &str, namespace: &str, name: &str) -> Dependency {
    Dependency {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        label_selector: None,
    }
}

/// An imported service comes as one of its own, with its endpoints.
fn imported(name: &str, namespace: &str) -> Vec<Dependency> {
    let service = format!("derived-{name}");
    let mut slices = of("discovery.k8s.io/v1", "EndpointSlice", namespace, "");
    let labels = [("kubernetes.io/service-name".to_owned(), service.clone())];
    slices.label_selector = Some(LabelSelector { match_labels: labels.into(), match_expressions: Vec::new() });
    vec![of("v1", "Service", namespace, &service), slices]
}

/// What a pod refers to.
fn of_pod<'a>(spec: &'a Value, needed: &mut BTreeSet<(&'a str, &'a str)>) {
    let account = text(spec, "/serviceAccountName");
    if account != "default" {
        needed.insert(("ServiceAccount", account));
    }
    needed.extend(list(spec, "/imagePullSecrets").iter().map(|secret| ("Secret", text(secret, "/name"))));
    for containers in ["/initContainers", "/containers", "/ephemeralContainers"] {
        for container in list(spec, containers) {
            for from in list(container, "/envFrom") {
                needed.insert(("ConfigMap", text(from, "/configMapRef/name")));
                needed.insert(("Secret", text(from, "/secretRef/name")));
            }
            for env in list(container, "/env") {
                needed.insert(("ConfigMap", text(env, "/valueFrom/configMapKeyRef/name")));
                needed.insert(("Secret", text(env, "/valueFrom/secretKeyRef/name")));
            }
        }
    }
    for volume in list(spec, "/volumes") {
        needed.insert(("PersistentVolumeClaim", text(volume, "/persistentVolumeClaim/claimName")));
        needed.insert(("ConfigMap", text(volume, "/configMap/name")));
        for secret in [
            "/secret/secretName",
            "/azureFile/secretName",
            "/cephfs/secretRef/name",
            "/cinder/secretRef/name",
            "/flexVolume/secretRef/name",
            "/rbd/secretRef/name",
            "/scaleIO/secretRef/name",
            "/iscsi/secretRef/name",
            "/storageos/secretRef/name",
            "/csi/nodePublishSecretRef/name",
        ] {
            needed.insert(("Secret", text(volume, secret)));
        }
        for source in list(volume, "/projected/sources") {
            needed.insert(("ConfigMap", text(source, "/configMap/name")));
            needed.insert(("Secret", text(source, "/secret/name")));
        }
    }
}
