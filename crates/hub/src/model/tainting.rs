//! What a ClusterTaintPolicy says.

use serde::{Deserialize, Serialize};

use super::{ClusterAffinity, FieldOperator, TaintEffect, absent};

/// `spec` of ClusterTaintPolicy: taints that clusters get and lose by their conditions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TaintPolicySpec {
    /// Which clusters; absent: all.
    #[serde(default, skip_serializing_if = "absent")]
    pub target_clusters: Option<ClusterAffinity>,
    /// When all of these hold, the taints are added; empty: never.
    #[serde(default, skip_serializing_if = "absent")]
    pub add_on_conditions: Vec<MatchCondition>,
    /// When all of these hold, the taints are taken away; empty: never.
    #[serde(default, skip_serializing_if = "absent")]
    pub remove_on_conditions: Vec<MatchCondition>,
    /// The taints.
    pub taints: Vec<PolicyTaint>,
}

/// What a condition of a Cluster must be. One that the Cluster has not got is nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MatchCondition {
    /// Which condition.
    pub condition_type: String,
    /// One of these, or none of them.
    pub operator: FieldOperator,
    /// `True`, `False`, `Unknown`.
    pub status_values: Vec<String>,
}

/// A taint of a policy: its time is when it is added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyTaint {
    /// Its key.
    pub key: String,
    /// What it does.
    pub effect: TaintEffect,
    /// Its value.
    #[serde(default, skip_serializing_if = "absent")]
    pub value: String,
}
