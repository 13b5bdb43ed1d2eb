//! What a Work says: the manifests of one member cluster, and how they are there.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Condition, Health, absent};

/// `spec` of Work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WorkSpec {
    /// What is wanted.
    #[serde(skip_serializing_if = "absent")]
    pub workload: Workload,
    /// Nothing goes out for now.
    #[serde(skip_serializing_if = "absent")]
    pub suspend_dispatching: Option<bool>,
    /// The member keeps the object when the Work goes.
    #[serde(skip_serializing_if = "absent")]
    pub preserve_resources_on_deletion: Option<bool>,
}

/// What is wanted in the member.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Workload {
    /// The objects; the hub writes one.
    #[serde(skip_serializing_if = "absent")]
    pub manifests: Vec<Value>,
}

/// `status` of Work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WorkStatus {
    /// `Applied`, `Dispatching`.
    #[serde(skip_serializing_if = "absent")]
    pub conditions: Vec<Condition>,
    /// How each manifest is there.
    #[serde(skip_serializing_if = "absent")]
    pub manifest_statuses: Vec<ManifestStatus>,
}

/// How one manifest is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestStatus {
    /// Which.
    pub identifier: ResourceIdentifier,
    /// Its status, as reflected.
    #[serde(default, skip_serializing_if = "absent")]
    pub status: Option<Value>,
    /// Whether it is well.
    #[serde(default, skip_serializing_if = "absent")]
    pub health: Option<Health>,
}

/// Which manifest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResourceIdentifier {
    /// Its place in the list.
    pub ordinal: i64,
    /// API group.
    #[serde(skip_serializing_if = "absent")]
    pub group: String,
    /// API version.
    pub version: String,
    /// The kind.
    pub kind: String,
    /// The kind's name in URLs.
    pub resource: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}
