//! The objects the hub decides with, as types: Karmada's API (v1.18.2), field by field.
//!
//! An object is read with [`read`], which names every field that the hub does not know: nothing is silently ignored.
//! Fields of Karmada's that the hub knows and does not act on are here all the same; [`crate::admit`] says so about them.

mod binding;
mod cluster;
mod customization;
mod overriding;
mod placement;
mod policy;
mod read;
mod rebalancing;
mod tainting;
mod work;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use binding::*;
pub use cluster::*;
pub use customization::*;
pub use overriding::*;
pub use placement::*;
pub use policy::*;
pub use read::{Problem, read, read_all};
pub use rebalancing::*;
pub use tainting::*;
pub use work::*;

/// A policy that places, of a namespace or of the whole hub (then `metadata.namespace` is empty).
pub type PropagationPolicy = Object<PropagationSpec>;
/// A policy that changes what a member gets, of a namespace or of the whole hub.
pub type OverridePolicy = Object<OverrideSpec>;
/// A policy that taints member clusters by their conditions.
pub type ClusterTaintPolicy = Object<TaintPolicySpec>;
/// Asks that workloads are divided afresh.
pub type WorkloadRebalancer = Object<RebalancerSpec, RebalancerStatus>;
/// Where one template goes: a ResourceBinding, or a ClusterResourceBinding (then `metadata.namespace` is empty).
pub type Binding = Object<BindingSpec, BindingStatus>;
/// What one member cluster is to hold.
pub type Work = Object<WorkSpec, WorkStatus>;
/// What the hub is told of a kind that it does not know.
pub type Customization = Object<CustomizationSpec>;
/// A member cluster.
pub type Cluster = Object<ClusterSpec, ClusterStatus>;

/// An object of the API.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Object<Spec, Status: Default + PartialEq = Nothing> {
    /// Group and version.
    #[serde(default)]
    pub api_version: String,
    /// The kind.
    #[serde(default)]
    pub kind: String,
    /// Name, labels and so on.
    #[serde(default)]
    pub metadata: Metadata,
    /// What is wanted.
    pub spec: Spec,
    /// What is.
    #[serde(default = "Status::default", skip_serializing_if = "absent")]
    pub status: Status,
}

/// The status of a kind that has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// `metadata`, as far as the hub looks at it; the rest is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// The name.
    pub name: String,
    /// The namespace; empty for what has none.
    #[serde(skip_serializing_if = "absent")]
    pub namespace: String,
    /// The identity.
    #[serde(skip_serializing_if = "absent")]
    pub uid: String,
    /// The version in the store.
    #[serde(skip_serializing_if = "absent")]
    pub resource_version: String,
    /// Counts changes of the spec.
    #[serde(skip_serializing_if = "absent")]
    pub generation: i64,
    /// When it was made.
    #[serde(skip_serializing_if = "absent")]
    pub creation_timestamp: Option<jiff::Timestamp>,
    /// Since when it is to go.
    #[serde(skip_serializing_if = "absent")]
    pub deletion_timestamp: Option<jiff::Timestamp>,
    /// Labels.
    #[serde(skip_serializing_if = "absent")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "absent")]
    pub annotations: BTreeMap<String, String>,
    /// Who has to clean up first.
    #[serde(skip_serializing_if = "absent")]
    pub finalizers: Vec<String>,
    /// The rest, as it was.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// A condition of a status (`metav1.Condition`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Condition {
    /// Which.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// In one word.
    pub reason: String,
    /// In a sentence.
    pub message: String,
    /// Since when.
    #[serde(skip_serializing_if = "absent")]
    pub last_transition_time: Option<jiff::Timestamp>,
    /// For which generation.
    #[serde(skip_serializing_if = "absent")]
    pub observed_generation: i64,
}

/// A choice by labels (`metav1.LabelSelector`); empty chooses everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels with exactly these values.
    #[serde(skip_serializing_if = "absent")]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(skip_serializing_if = "absent")]
    pub match_expressions: Vec<Requirement<LabelOperator>>,
}

/// One requirement on a label or on a field of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement<Operator> {
    /// The label or field.
    pub key: String,
    /// What must hold.
    pub operator: Operator,
    /// For these values.
    #[serde(default = "Vec::new", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// What may be asked of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum LabelOperator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    /// Whether these labels are chosen.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|Requirement { key, operator, values }| {
                let value = labels.get(key);
                match operator {
                    LabelOperator::In => value.is_some_and(|value| values.contains(value)),
                    LabelOperator::NotIn => value.is_none_or(|value| !values.contains(value)),
                    LabelOperator::Exists => value.is_some(),
                    LabelOperator::DoesNotExist => value.is_none(),
                }
            })
    }
}

/// Whether a field need not be written.
pub(crate) fn absent<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests;
