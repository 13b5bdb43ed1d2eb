//! What the hub knows of the native kinds (Karmada v1.18.2's default interpreters): how many replicas they have and what
//! one needs, what a member may keep, how they are, and what else they need. All are plain functions on JSON.
//! [`Interpreters`] knows other kinds too, by scripts.

mod aggregate;
mod custom;
mod dependencies;
mod prune;
mod replicas;
mod retain;
mod script;
mod status;

use serde_json::Value;
use stolos_k8s::meta;

pub use aggregate::aggregate;
pub use custom::{Interpreters, Operation};
pub use dependencies::{Dependency, dependencies};
pub use prune::manifest;
pub use replicas::{Replicas, completions, count, replicas, revise};
pub use retain::{merge, retain};
pub use script::{ScriptError, check};
pub use status::{Ready, health, ready, reflect};

/// The native kinds that are not like all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Native {
    Deployment,
    StatefulSet,
    ReplicaSet,
    DaemonSet,
    Job,
    CronJob,
    Pod,
    Service,
    Ingress,
    PersistentVolumeClaim,
    PersistentVolume,
    PodDisruptionBudget,
    HorizontalPodAutoscaler,
    ServiceAccount,
    Secret,
    ServiceImport,
}

/// Which of them an object is.
fn native(object: &Value) -> Option<Native> {
    let api_version = meta::api_version(object);
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    Some(match (group, meta::kind(object)) {
        ("apps", "Deployment") => Native::Deployment,
        ("apps", "StatefulSet") => Native::StatefulSet,
        ("apps", "ReplicaSet") => Native::ReplicaSet,
        ("apps", "DaemonSet") => Native::DaemonSet,
        ("batch", "Job") => Native::Job,
        ("batch", "CronJob") => Native::CronJob,
        ("", "Pod") => Native::Pod,
        ("", "Service") => Native::Service,
        ("networking.k8s.io", "Ingress") => Native::Ingress,
        ("", "PersistentVolumeClaim") => Native::PersistentVolumeClaim,
        ("", "PersistentVolume") => Native::PersistentVolume,
        ("policy", "PodDisruptionBudget") => Native::PodDisruptionBudget,
        ("autoscaling", "HorizontalPodAutoscaler") => Native::HorizontalPodAutoscaler,
        ("", "ServiceAccount") => Native::ServiceAccount,
        ("", "Secret") => Native::Secret,
        ("multicluster.x-k8s.io", "ServiceImport") => Native::ServiceImport,
        _ => return None,
    })
}

/// Where an object's pods are described.
fn pod_template(object: &Value) -> Option<&Value> {
    match native(object)? {
        Native::Pod => Some(object),
        Native::CronJob => object.pointer("/spec/jobTemplate/spec/template"),
        Native::Deployment | Native::StatefulSet | Native::ReplicaSet | Native::DaemonSet | Native::Job => {
            object.pointer("/spec/template")
        }
        _ => None,
    }
}

fn number(object: &Value, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests;
