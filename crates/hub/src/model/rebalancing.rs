//! What a WorkloadRebalancer says: which workloads are divided afresh.

use serde::{Deserialize, Serialize};

use super::absent;

/// `spec` of WorkloadRebalancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RebalancerSpec {
    /// The templates.
    pub workloads: Vec<WorkloadReference>,
    /// For how long it stays when it is done; absent: until somebody deletes it.
    #[serde(default, skip_serializing_if = "absent")]
    pub ttl_seconds_after_finished: Option<i64>,
}

/// A template.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadReference {
    /// Group and version.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// The namespace; empty for what has none.
    #[serde(default, skip_serializing_if = "absent")]
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// `status` of WorkloadRebalancer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RebalancerStatus {
    /// What has come of each workload.
    #[serde(skip_serializing_if = "absent")]
    pub observed_workloads: Vec<ObservedWorkload>,
    /// Of which generation this is said.
    #[serde(skip_serializing_if = "absent")]
    pub observed_generation: i64,
    /// When all was done.
    #[serde(skip_serializing_if = "absent")]
    pub finish_time: Option<jiff::Timestamp>,
}

/// What has come of one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObservedWorkload {
    /// Which.
    pub workload: WorkloadReference,
    /// `Successful` or `Failed`.
    #[serde(default, skip_serializing_if = "absent")]
    pub result: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "absent")]
    pub reason: String,
}
