//! What a PropagationPolicy says besides its placement.

use serde::{Deserialize, Serialize};

use super::{LabelSelector, Placement, absent};

/// `spec` of PropagationPolicy and ClusterPropagationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PropagationSpec {
    /// What is placed.
    pub resource_selectors: Vec<ResourceSelector>,
    /// Old name of `propagate_deps`.
    #[serde(default, skip_serializing_if = "absent")]
    pub association: bool,
    /// Also what the workload needs: ConfigMaps, Secrets and so on.
    #[serde(default, skip_serializing_if = "absent")]
    pub propagate_deps: bool,
    /// Where to.
    #[serde(default, skip_serializing_if = "absent")]
    pub placement: Placement,
    /// Higher ones go first.
    #[serde(default, skip_serializing_if = "absent")]
    pub priority: i64,
    /// Whether it takes what another policy has.
    #[serde(default, skip_serializing_if = "absent")]
    pub preemption: Preemption,
    /// Wait for these override policies.
    #[serde(default, skip_serializing_if = "absent")]
    pub dependent_overrides: Vec<String>,
    /// Who schedules; empty: the hub.
    #[serde(default, skip_serializing_if = "absent")]
    pub scheduler_name: String,
    /// What happens when a cluster or the workload in it fails.
    #[serde(default, skip_serializing_if = "absent")]
    pub failover: Option<Failover>,
    /// What happens when a member has the object already.
    #[serde(default, skip_serializing_if = "absent")]
    pub conflict_resolution: ConflictResolution,
    /// When edits of the policy reach templates.
    #[serde(default, skip_serializing_if = "absent")]
    pub activation_preference: Activation,
    /// What does not go out to members for now.
    #[serde(default, skip_serializing_if = "absent")]
    pub suspension: Option<Suspension>,
    /// Members keep the object when the template goes.
    #[serde(default, skip_serializing_if = "absent")]
    pub preserve_resources_on_deletion: bool,
    /// Which bindings are scheduled first (Karmada's gate `PriorityBasedScheduling`).
    #[serde(default, skip_serializing_if = "absent")]
    pub schedule_priority: Option<SchedulePriority>,
}

/// Which templates. A name goes before labels; neither chooses all of the kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceSelector {
    /// Group and version.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// The namespace; empty: the policy's own, or every one.
    #[serde(default, skip_serializing_if = "absent")]
    pub namespace: String,
    /// The name.
    #[serde(default, skip_serializing_if = "absent")]
    pub name: String,
    /// The labels; ignored with a name.
    #[serde(default, skip_serializing_if = "absent")]
    pub label_selector: Option<LabelSelector>,
}

/// Whether a policy takes what another one has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum Preemption {
    #[default]
    Never,
    Always,
}

/// What happens when a member has the object already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConflictResolution {
    /// It stays as it is.
    #[default]
    Abort,
    /// The hub takes it over.
    Overwrite,
}

/// When edits of a policy reach templates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// At once.
    #[default]
    #[serde(rename = "")]
    Eager,
    /// When the template itself changes.
    Lazy,
}

/// What does not go out to members for now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Suspension {
    /// Nothing goes out.
    #[serde(skip_serializing_if = "absent")]
    pub dispatching: Option<bool>,
    /// Nothing goes out to these.
    #[serde(skip_serializing_if = "absent")]
    pub dispatching_on_clusters: Option<SuspendedClusters>,
    /// Nothing is scheduled (only in bindings).
    #[serde(skip_serializing_if = "absent")]
    pub scheduling: Option<bool>,
}

/// Clusters that nothing goes out to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct SuspendedClusters {
    /// Their names.
    #[serde(skip_serializing_if = "absent", rename = "clusterNames")]
    pub clusters: Vec<String>,
}

/// What happens when a cluster or the workload in it fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Failover {
    /// When the workload is unhealthy.
    #[serde(skip_serializing_if = "absent")]
    pub application: Option<ApplicationFailover>,
    /// When the cluster is lost.
    #[serde(skip_serializing_if = "absent")]
    pub cluster: Option<ClusterFailover>,
}

/// When the workload is unhealthy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ApplicationFailover {
    /// When it counts as failed.
    #[serde(skip_serializing_if = "absent")]
    pub decision_conditions: DecisionConditions,
    /// How the old copy goes.
    #[serde(skip_serializing_if = "absent")]
    pub purge_mode: Option<PurgeMode>,
    /// How long the old copy may stay.
    #[serde(skip_serializing_if = "absent")]
    pub grace_period_seconds: Option<i64>,
    /// What of the old copy's status the new one gets.
    #[serde(skip_serializing_if = "absent")]
    pub state_preservation: Option<StatePreservation>,
}

/// When a workload counts as failed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DecisionConditions {
    /// Unhealthy for so long; absent: 300.
    #[serde(skip_serializing_if = "absent")]
    pub toleration_seconds: Option<i64>,
}

/// When the cluster is lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClusterFailover {
    /// How the old copy goes.
    #[serde(skip_serializing_if = "absent")]
    pub purge_mode: Option<PurgeMode>,
    /// What of the old copy's status the new one gets.
    #[serde(skip_serializing_if = "absent")]
    pub state_preservation: Option<StatePreservation>,
}

/// How an old copy goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PurgeMode {
    /// At once.
    #[serde(alias = "Immediately")]
    Directly,
    /// When the new one is ready, or its time is over.
    #[default]
    #[serde(alias = "Graciously")]
    Gracefully,
    /// Not at all.
    Never,
}

/// What of a status is carried over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatePreservation {
    /// One value each.
    pub rules: Vec<StateRule>,
}

/// One value of a status that becomes a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StateRule {
    /// The label.
    pub alias_label_name: String,
    /// Where the value is.
    pub json_path: String,
}

/// Which bindings are scheduled first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SchedulePriority {
    /// What kind of class.
    pub priority_class_source: String,
    /// The class.
    pub priority_class_name: String,
}
