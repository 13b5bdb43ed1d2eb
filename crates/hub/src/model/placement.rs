//! Where to: `placement` of a policy, and of a binding.

use serde::{Deserialize, Serialize};

use super::{LabelSelector, Requirement, absent};

/// `placement`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Placement {
    /// Which clusters may be chosen; absent: all.
    #[serde(skip_serializing_if = "absent")]
    pub cluster_affinity: Option<ClusterAffinity>,
    /// Groups of clusters, tried in this order.
    #[serde(skip_serializing_if = "absent")]
    pub cluster_affinities: Vec<ClusterAffinityTerm>,
    /// Which taints of clusters do not matter.
    #[serde(skip_serializing_if = "absent")]
    pub cluster_tolerations: Vec<Toleration>,
    /// How many clusters and regions.
    #[serde(skip_serializing_if = "absent")]
    pub spread_constraints: Vec<SpreadConstraint>,
    /// How replicas are divided; absent: every cluster gets all.
    #[serde(skip_serializing_if = "absent")]
    pub replica_scheduling: Option<ReplicaScheduling>,
    /// Together with, or apart from, other workloads (Karmada's gate `WorkloadAffinity`).
    #[serde(skip_serializing_if = "absent")]
    pub workload_affinity: Option<WorkloadAffinity>,
}

/// Which clusters: all parts that are given must hold, and an empty one chooses all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ClusterAffinity {
    /// By labels of the Cluster.
    #[serde(skip_serializing_if = "absent")]
    pub label_selector: Option<LabelSelector>,
    /// By provider, region, zone.
    #[serde(skip_serializing_if = "absent")]
    pub field_selector: Option<FieldSelector>,
    /// By name.
    #[serde(skip_serializing_if = "absent", rename = "clusterNames")]
    pub clusters: Vec<String>,
    /// Never these.
    #[serde(skip_serializing_if = "absent", rename = "exclude")]
    pub excluded: Vec<String>,
}

/// By provider, region, zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct FieldSelector {
    /// All must hold.
    #[serde(skip_serializing_if = "absent")]
    pub match_expressions: Vec<Requirement<FieldOperator>>,
}

/// What may be asked of a field of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum FieldOperator {
    In,
    NotIn,
}

/// A group of clusters, with groups that take what does not fit into it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "TermAsWritten", into = "TermAsWritten")]
pub struct ClusterAffinityTerm {
    /// The group's name.
    pub name: String,
    /// Its clusters.
    pub affinity: ClusterAffinity,
    /// Where the rest goes, in this order.
    pub overflow: Vec<OverflowAffinity>,
}

/// A group that takes what did not fit into the ones before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OverflowAsWritten", into = "OverflowAsWritten")]
pub struct OverflowAffinity {
    /// The group's name.
    pub name: String,
    /// Its clusters.
    pub affinity: ClusterAffinity,
}

/// As written: the affinity's fields lie beside the name (serde's `flatten` would let unknown fields pass).
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OverflowAsWritten {
    affinity_name: String,
    #[serde(default, skip_serializing_if = "absent")]
    label_selector: Option<LabelSelector>,
    #[serde(default, skip_serializing_if = "absent")]
    field_selector: Option<FieldSelector>,
    #[serde(default, skip_serializing_if = "absent")]
    cluster_names: Vec<String>,
    #[serde(default, skip_serializing_if = "absent")]
    exclude: Vec<String>,
}

/// As written, with the groups for the rest.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TermAsWritten {
    affinity_name: String,
    #[serde(default, skip_serializing_if = "absent")]
    label_selector: Option<LabelSelector>,
    #[serde(default, skip_serializing_if = "absent")]
    field_selector: Option<FieldSelector>,
    #[serde(default, skip_serializing_if = "absent")]
    cluster_names: Vec<String>,
    #[serde(default, skip_serializing_if = "absent")]
    exclude: Vec<String>,
    #[serde(default, skip_serializing_if = "absent")]
    overflow_affinities: Vec<OverflowAffinity>,
}

impl From<OverflowAsWritten> for OverflowAffinity {
    fn from(written: OverflowAsWritten) -> Self {
        let OverflowAsWritten { affinity_name, label_selector, field_selector, cluster_names, exclude } = written;
        let affinity = ClusterAffinity { label_selector, field_selector, clusters: cluster_names, excluded: exclude };
        Self { name: affinity_name, affinity }
    }
}

impl From<OverflowAffinity> for OverflowAsWritten {
    fn from(OverflowAffinity { name, affinity }: OverflowAffinity) -> Self {
        let ClusterAffinity { label_selector, field_selector, clusters, excluded } = affinity;
        Self { affinity_name: name, label_selector, field_selector, cluster_names: clusters, exclude: excluded }
    }
}

impl From<TermAsWritten> for ClusterAffinityTerm {
    fn from(written: TermAsWritten) -> Self {
        let TermAsWritten {
            affinity_name,
            label_selector,
            field_selector,
            cluster_names,
            exclude,
            overflow_affinities,
        } = written;
        let affinity = ClusterAffinity { label_selector, field_selector, clusters: cluster_names, excluded: exclude };
        Self { name: affinity_name, affinity, overflow: overflow_affinities }
    }
}

impl From<ClusterAffinityTerm> for TermAsWritten {
    fn from(ClusterAffinityTerm { name, affinity, overflow }: ClusterAffinityTerm) -> Self {
        let ClusterAffinity { label_selector, field_selector, clusters, excluded } = affinity;
        Self {
            affinity_name: name,
            label_selector,
            field_selector,
            cluster_names: clusters,
            exclude: excluded,
            overflow_affinities: overflow,
        }
    }
}

/// A taint that does not matter (`corev1.Toleration`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Toleration {
    /// The taint's key; empty with `Exists`: every one.
    #[serde(skip_serializing_if = "absent")]
    pub key: String,
    /// How the value is compared.
    #[serde(skip_serializing_if = "absent")]
    pub operator: TolerationOperator,
    /// The taint's value.
    #[serde(skip_serializing_if = "absent")]
    pub value: String,
    /// The taint's effect; absent: every one.
    #[serde(skip_serializing_if = "absent")]
    pub effect: Option<TaintEffect>,
    /// For so long, for `NoExecute`; absent: for ever.
    #[serde(skip_serializing_if = "absent")]
    pub toleration_seconds: Option<i64>,
}

/// How a toleration compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum TolerationOperator {
    #[default]
    Equal,
    Exists,
    /// Kubernetes knows it; Karmada refuses it.
    Lt,
    /// Kubernetes knows it; Karmada refuses it.
    Gt,
}

/// What a taint does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

/// How many clusters, or regions, are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct SpreadConstraint {
    /// What is counted.
    #[serde(skip_serializing_if = "absent")]
    pub spread_by_field: Option<SpreadField>,
    /// What is counted, by a label; Karmada's scheduler does not act on it.
    #[serde(skip_serializing_if = "absent")]
    pub spread_by_label: String,
    /// At most; 0 is none at all (Karmada's behaviour, not "no limit").
    #[serde(skip_serializing_if = "absent")]
    pub max_groups: i64,
    /// At least.
    #[serde(skip_serializing_if = "absent")]
    pub min_groups: i64,
}

/// What a spread constraint counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum SpreadField {
    Cluster,
    Region,
    Zone,
    Provider,
}

/// How replicas are divided.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ReplicaScheduling {
    /// All for each, or a share for each.
    #[serde(rename = "replicaSchedulingType")]
    pub scheduling: SchedulingType,
    /// How shares are made.
    #[serde(skip_serializing_if = "absent", rename = "replicaDivisionPreference")]
    pub division: Option<Division>,
    /// The weights.
    #[serde(skip_serializing_if = "absent", rename = "weightPreference")]
    pub weights: Option<Weights>,
}

/// All for each, or a share for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SchedulingType {
    /// Every cluster gets all replicas.
    #[default]
    Duplicated,
    /// Every cluster gets a share.
    Divided,
}

/// How shares are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Division {
    /// In as few clusters as hold them.
    Aggregated,
    /// By weight.
    Weighted,
}

/// Weights of clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Weights {
    /// Fixed ones.
    #[serde(skip_serializing_if = "absent", rename = "staticWeightList")]
    pub fixed: Vec<StaticWeight>,
    /// By what clusters have left; goes before the fixed ones.
    #[serde(skip_serializing_if = "absent", rename = "dynamicWeight")]
    pub dynamic: Option<DynamicWeight>,
}

/// The weight of some clusters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StaticWeight {
    /// Which clusters.
    pub target_cluster: ClusterAffinity,
    /// Their weight, 1 or more.
    pub weight: i64,
}

/// What a weight is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DynamicWeight {
    /// How many more replicas fit.
    AvailableReplicas,
}

/// Together with, or apart from, workloads of the same group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct WorkloadAffinity {
    /// In the clusters of the group.
    #[serde(skip_serializing_if = "absent")]
    pub affinity: Option<WorkloadGroup>,
    /// Not in the clusters of the group.
    #[serde(skip_serializing_if = "absent")]
    pub anti_affinity: Option<WorkloadGroup>,
}

/// Workloads whose label has the same value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadGroup {
    /// The label.
    pub group_by_label_key: String,
}
