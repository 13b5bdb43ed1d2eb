//! What a Cluster says of a member.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Condition, TaintEffect, absent};

/// `spec` of Cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClusterSpec {
    /// UID of the member's namespace `kube-system`.
    #[serde(skip_serializing_if = "absent")]
    pub id: String,
    /// Who dials: the hub, or an agent in the member.
    pub sync_mode: SyncMode,
    /// Where its API server is.
    #[serde(skip_serializing_if = "absent")]
    pub api_endpoint: String,
    /// The hub's credentials for it.
    #[serde(skip_serializing_if = "absent")]
    pub secret_ref: Option<SecretReference>,
    /// Credentials for people who come through the hub.
    #[serde(skip_serializing_if = "absent")]
    pub impersonator_secret_ref: Option<SecretReference>,
    /// Its certificate is not looked at.
    #[serde(skip_serializing_if = "absent", rename = "insecureSkipTLSVerification")]
    pub insecure_skip_tls_verification: bool,
    /// Through which proxy.
    #[serde(skip_serializing_if = "absent", rename = "proxyURL")]
    pub proxy_url: String,
    /// What the proxy is told.
    #[serde(skip_serializing_if = "absent")]
    pub proxy_header: BTreeMap<String, String>,
    /// Whose it is.
    #[serde(skip_serializing_if = "absent")]
    pub provider: String,
    /// In which region.
    #[serde(skip_serializing_if = "absent")]
    pub region: String,
    /// In which zone; old form of `zones`.
    #[serde(skip_serializing_if = "absent")]
    pub zone: String,
    /// In which zones.
    #[serde(skip_serializing_if = "absent")]
    pub zones: Vec<String>,
    /// What keeps workloads away.
    #[serde(skip_serializing_if = "absent")]
    pub taints: Vec<Taint>,
    /// Grades of nodes by size.
    #[serde(skip_serializing_if = "absent")]
    pub resource_models: Vec<ResourceModel>,
}

/// Who dials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncMode {
    /// The hub.
    #[default]
    Push,
    /// An agent in the member.
    Pull,
}

/// A Secret of the hub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretReference {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What keeps workloads away (`corev1.Taint`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "absent")]
    pub value: String,
    /// What it does.
    pub effect: TaintEffect,
    /// Since when.
    #[serde(default, skip_serializing_if = "absent")]
    pub time_added: Option<jiff::Timestamp>,
}

/// A grade of nodes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceModel {
    /// Its number, from 0.
    pub grade: u64,
    /// How large its nodes are.
    pub ranges: Vec<ResourceRange>,
}

/// From `min` to below `max` of a resource.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceRange {
    /// The resource.
    pub name: String,
    /// From, as Kubernetes writes amounts.
    pub min: Value,
    /// To.
    pub max: Value,
}

/// `status` of Cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClusterStatus {
    /// The member's version.
    #[serde(skip_serializing_if = "absent")]
    pub kubernetes_version: String,
    /// What kinds it serves.
    #[serde(skip_serializing_if = "absent")]
    pub api_enablements: Vec<ApiEnablement>,
    /// `Ready`, `CompleteAPIEnablements`.
    #[serde(skip_serializing_if = "absent")]
    pub conditions: Vec<Condition>,
    /// Its nodes.
    #[serde(skip_serializing_if = "absent")]
    pub node_summary: Option<NodeSummary>,
    /// What it has and what is taken.
    #[serde(skip_serializing_if = "absent")]
    pub resource_summary: Option<ResourceSummary>,
    /// What has been done to mend it.
    #[serde(skip_serializing_if = "absent")]
    pub remedy_actions: Vec<String>,
}

/// Kinds of one group and version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ApiEnablement {
    /// Group and version.
    pub group_version: String,
    /// The kinds.
    #[serde(default, skip_serializing_if = "absent")]
    pub resources: Vec<ApiResource>,
}

/// One kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiResource {
    /// In URLs.
    pub name: String,
    /// In objects.
    pub kind: String,
}

/// Nodes of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NodeSummary {
    /// All.
    #[serde(skip_serializing_if = "absent")]
    pub total_num: i64,
    /// Those that are ready.
    #[serde(skip_serializing_if = "absent")]
    pub ready_num: i64,
}

/// What a member has and what is taken, as Kubernetes writes amounts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ResourceSummary {
    /// What ready nodes that take pods have.
    #[serde(skip_serializing_if = "absent")]
    pub allocatable: BTreeMap<String, Value>,
    /// What waiting pods want.
    #[serde(skip_serializing_if = "absent")]
    pub allocating: BTreeMap<String, Value>,
    /// What placed pods want.
    #[serde(skip_serializing_if = "absent")]
    pub allocated: BTreeMap<String, Value>,
    /// Nodes by grade.
    #[serde(skip_serializing_if = "absent")]
    pub allocatable_modelings: Vec<AllocatableModeling>,
}

/// So many nodes of a grade.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AllocatableModeling {
    /// The grade.
    pub grade: u64,
    /// How many.
    pub count: i64,
}

impl ClusterSpec {
    /// The zones, with the old field's.
    pub fn all_zones(&self) -> impl Iterator<Item = &str> {
        let old = Some(self.zone.as_str()).filter(|zone| !zone.is_empty() && self.zones.is_empty());
        old.into_iter().chain(self.zones.iter().map(String::as_str))
    }
}

impl ClusterStatus {
    /// Whether the member serves a kind.
    #[must_use]
    pub fn serves(&self, api_version: &str, kind: &str) -> bool {
        let enabled = self.api_enablements.iter().filter(|enabled| enabled.group_version == api_version);
        enabled.flat_map(|enabled| &enabled.resources).any(|resource| resource.kind == kind)
    }

    /// Whether the member's last word is that it is ready.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }
}
