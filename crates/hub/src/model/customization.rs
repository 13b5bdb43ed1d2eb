//! What a ResourceInterpreterCustomization says of a kind (`config.karmada.io/v1alpha1`).

use serde::{Deserialize, Serialize};

use super::absent;

/// `spec` of ResourceInterpreterCustomization.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomizationSpec {
    /// The kind.
    pub target: CustomizationTarget,
    /// What is to be known of it.
    pub customizations: CustomizationRules,
}

/// The kind that a customization is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CustomizationTarget {
    /// Group and version.
    pub api_version: String,
    /// The kind.
    pub kind: String,
}

/// One script for each question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct CustomizationRules {
    /// `Retain`: what a member's object keeps.
    #[serde(skip_serializing_if = "absent")]
    pub retention: Option<LuaRule>,
    /// `GetReplicas`: how many, and what one needs.
    #[serde(skip_serializing_if = "absent")]
    pub replica_resource: Option<LuaRule>,
    /// `GetComponents`: several pod templates, each with its replicas.
    #[serde(skip_serializing_if = "absent")]
    pub component_resource: Option<LuaRule>,
    /// `ReviseReplica`: a member's share.
    #[serde(skip_serializing_if = "absent")]
    pub replica_revision: Option<LuaRule>,
    /// `ReflectStatus`: what of a status is kept.
    #[serde(skip_serializing_if = "absent")]
    pub status_reflection: Option<LuaRule>,
    /// `AggregateStatus`: the template's own status.
    #[serde(skip_serializing_if = "absent")]
    pub status_aggregation: Option<LuaRule>,
    /// `InterpretHealth`: whether a member's object is well.
    #[serde(skip_serializing_if = "absent")]
    pub health_interpretation: Option<LuaRule>,
    /// `GetDependencies`: what else it needs.
    #[serde(skip_serializing_if = "absent")]
    pub dependency_interpretation: Option<LuaRule>,
}

/// A script.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LuaRule {
    /// Its text: a whole function, with what it uses.
    pub lua_script: String,
}
