//! What a binding says: which template, how many replicas, which clusters.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Condition, ConflictResolution, Failover, Placement, PurgeMode, Suspension, Toleration, absent};

/// `spec` of ResourceBinding and ClusterResourceBinding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BindingSpec {
    /// The template.
    pub resource: ObjectReference,
    /// Also what the workload needs.
    #[serde(default, skip_serializing_if = "absent")]
    pub propagate_deps: bool,
    /// What one replica needs.
    #[serde(default, skip_serializing_if = "absent")]
    pub replica_requirements: Option<ReplicaRequirements>,
    /// How many replicas, all together.
    #[serde(default, skip_serializing_if = "absent")]
    pub replicas: i64,
    /// Several pod templates in one workload (Karmada's gate `MultiplePodTemplatesScheduling`).
    #[serde(default, skip_serializing_if = "absent")]
    pub components: Vec<Component>,
    /// The result: which clusters, and how many replicas in each.
    #[serde(default, skip_serializing_if = "absent")]
    pub clusters: Vec<TargetCluster>,
    /// Copied from the policy; absent: the binding is attached to others and is not scheduled.
    #[serde(default, skip_serializing_if = "absent")]
    pub placement: Option<Placement>,
    /// Copies that leave.
    #[serde(default, skip_serializing_if = "absent")]
    pub graceful_eviction_tasks: Vec<EvictionTask>,
    /// The bindings that need this template, with their clusters.
    #[serde(default, skip_serializing_if = "absent")]
    pub required_by: Vec<BindingSnapshot>,
    /// Who schedules; empty: the hub.
    #[serde(default, skip_serializing_if = "absent")]
    pub scheduler_name: String,
    /// Copied from the policy.
    #[serde(default, skip_serializing_if = "absent")]
    pub failover: Option<Failover>,
    /// Copied from the policy.
    #[serde(default, skip_serializing_if = "absent")]
    pub conflict_resolution: ConflictResolution,
    /// Newer than the last scheduling: everything is divided afresh.
    #[serde(default, skip_serializing_if = "absent")]
    pub reschedule_triggered_at: Option<jiff::Timestamp>,
    /// Copied from the policy.
    #[serde(default, skip_serializing_if = "absent")]
    pub suspension: Option<Suspension>,
    /// Copied from the policy.
    #[serde(default, skip_serializing_if = "absent")]
    pub preserve_resources_on_deletion: bool,
    /// Which bindings are scheduled first.
    #[serde(default, skip_serializing_if = "absent")]
    pub schedule_priority: Option<BindingPriority>,
    /// Groups for `workloadAffinity`.
    #[serde(default, skip_serializing_if = "absent")]
    pub workload_affinity_groups: Option<Value>,
}

/// Which bindings are scheduled first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BindingPriority {
    /// Higher ones first.
    pub priority: i64,
}

/// The template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ObjectReference {
    /// Group and version.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// The namespace; empty for what has none.
    #[serde(default, skip_serializing_if = "absent")]
    pub namespace: String,
    /// The name.
    pub name: String,
    /// The identity.
    #[serde(default, skip_serializing_if = "absent")]
    pub uid: String,
    /// The version in the store.
    #[serde(default, skip_serializing_if = "absent")]
    pub resource_version: String,
}

/// A cluster of the result.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetCluster {
    /// The cluster.
    pub name: String,
    /// Its replicas; 0 for what has none.
    #[serde(default, skip_serializing_if = "absent")]
    pub replicas: i64,
}

/// What one replica needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ReplicaRequirements {
    /// Which nodes.
    #[serde(skip_serializing_if = "absent")]
    pub node_claim: Option<NodeClaim>,
    /// How much of what, as Kubernetes writes amounts.
    #[serde(skip_serializing_if = "absent")]
    pub resource_request: BTreeMap<String, Value>,
    /// The namespace (Karmada's gate `ResourceQuotaEstimate`).
    #[serde(skip_serializing_if = "absent")]
    pub namespace: String,
    /// The pods' priority class.
    #[serde(skip_serializing_if = "absent")]
    pub priority_class_name: String,
}

/// Which nodes a replica can run on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct NodeClaim {
    /// The pod's required node affinity.
    #[serde(skip_serializing_if = "absent")]
    pub hard_node_affinity: Option<Value>,
    /// The pod's node selector.
    #[serde(skip_serializing_if = "absent")]
    pub node_selector: BTreeMap<String, String>,
    /// The pod's tolerations.
    #[serde(skip_serializing_if = "absent")]
    pub tolerations: Vec<Toleration>,
}

/// One pod template of several.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Component {
    /// Its name.
    pub name: String,
    /// Its replicas.
    #[serde(default)]
    pub replicas: i64,
    /// What one needs.
    #[serde(default, skip_serializing_if = "absent")]
    pub replica_requirements: Option<ReplicaRequirements>,
}

/// A copy that leaves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvictionTask {
    /// Which cluster it leaves.
    pub from_cluster: String,
    /// How.
    #[serde(default, skip_serializing_if = "absent")]
    pub purge_mode: Option<PurgeMode>,
    /// How many replicas leave.
    #[serde(default, skip_serializing_if = "absent")]
    pub replicas: Option<i64>,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    #[serde(default, skip_serializing_if = "absent")]
    pub message: String,
    /// Who wants it.
    pub producer: String,
    /// How long the copy may stay.
    #[serde(default, skip_serializing_if = "absent")]
    pub grace_period_seconds: Option<i64>,
    /// It stays until somebody says otherwise.
    #[serde(default, skip_serializing_if = "absent")]
    pub suppress_deletion: Option<bool>,
    /// Labels for the new copy.
    #[serde(default, skip_serializing_if = "absent")]
    pub preserved_label_state: BTreeMap<String, String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "absent")]
    pub creation_timestamp: Option<jiff::Timestamp>,
    /// Where the workload was before.
    #[serde(default, skip_serializing_if = "absent")]
    pub clusters_before_failover: Vec<String>,
}

/// A binding that needs this template.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindingSnapshot {
    /// Its namespace; empty for a ClusterResourceBinding.
    #[serde(default, skip_serializing_if = "absent")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its clusters.
    #[serde(default, skip_serializing_if = "absent")]
    pub clusters: Vec<TargetCluster>,
}

/// `status` of ResourceBinding and ClusterResourceBinding.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct BindingStatus {
    /// The generation that was scheduled.
    #[serde(skip_serializing_if = "absent")]
    pub scheduler_observed_generation: i64,
    /// The affinity group in use.
    #[serde(skip_serializing_if = "absent", rename = "schedulerObservingAffinityName")]
    pub scheduler_observed_affinity_name: String,
    /// When it was scheduled.
    #[serde(skip_serializing_if = "absent")]
    pub last_scheduled_time: Option<jiff::Timestamp>,
    /// `Scheduled`, `FullyApplied`.
    #[serde(skip_serializing_if = "absent")]
    pub conditions: Vec<Condition>,
    /// What members say.
    #[serde(skip_serializing_if = "absent")]
    pub aggregated_status: Vec<AggregatedStatusItem>,
}

/// What one member says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AggregatedStatusItem {
    /// The member.
    pub cluster_name: String,
    /// The copy's status, as reflected.
    #[serde(default, skip_serializing_if = "absent")]
    pub status: Option<Value>,
    /// Whether the copy is as wanted.
    #[serde(default, skip_serializing_if = "absent")]
    pub applied: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "absent")]
    pub applied_message: String,
    /// Whether it is well.
    #[serde(default, skip_serializing_if = "absent")]
    pub health: Option<Health>,
}

/// Whether a copy is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Health {
    Healthy,
    Unhealthy,
    Unknown,
}
