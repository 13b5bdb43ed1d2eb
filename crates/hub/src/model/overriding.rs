//! What an OverridePolicy says.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ClusterAffinity, ResourceSelector, absent};

/// `spec` of OverridePolicy and ClusterOverridePolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct OverrideSpec {
    /// What is changed; empty: everything.
    #[serde(skip_serializing_if = "absent")]
    pub resource_selectors: Vec<ResourceSelector>,
    /// How, by cluster.
    #[serde(skip_serializing_if = "absent")]
    pub override_rules: Vec<OverrideRule>,
    /// Old form of one rule: for which clusters.
    #[serde(skip_serializing_if = "absent")]
    pub target_cluster: Option<ClusterAffinity>,
    /// Old form of one rule: how.
    #[serde(skip_serializing_if = "absent")]
    pub overriders: Overriders,
}

/// Changes for some clusters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OverrideRule {
    /// For which clusters; absent: all.
    #[serde(default, skip_serializing_if = "absent")]
    pub target_cluster: Option<ClusterAffinity>,
    /// How.
    pub overriders: Overriders,
}

/// Changes; they are made in the order of these fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Overriders {
    /// Of images.
    #[serde(skip_serializing_if = "absent", rename = "imageOverrider")]
    pub image: Vec<ImageOverrider>,
    /// Of commands.
    #[serde(skip_serializing_if = "absent", rename = "commandOverrider")]
    pub command: Vec<CommandOverrider>,
    /// Of arguments.
    #[serde(skip_serializing_if = "absent", rename = "argsOverrider")]
    pub args: Vec<CommandOverrider>,
    /// Of labels.
    #[serde(skip_serializing_if = "absent", rename = "labelsOverrider")]
    pub labels: Vec<MapOverrider>,
    /// Of annotations.
    #[serde(skip_serializing_if = "absent", rename = "annotationsOverrider")]
    pub annotations: Vec<MapOverrider>,
    /// Of structured text inside a string.
    #[serde(skip_serializing_if = "absent", rename = "fieldOverrider")]
    pub field: Vec<FieldOverrider>,
    /// Of anything, by path.
    #[serde(skip_serializing_if = "absent")]
    pub plaintext: Vec<PlaintextOverrider>,
}

/// What an overrider does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum OverrideOperator {
    Add,
    Remove,
    Replace,
}

/// A change of an image's name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ImageOverrider {
    /// Which image; absent: those of all containers.
    #[serde(default, skip_serializing_if = "absent")]
    pub predicate: Option<ImagePredicate>,
    /// Which part of it.
    pub component: ImageComponent,
    /// What is done.
    pub operator: OverrideOperator,
    /// With what.
    #[serde(default, skip_serializing_if = "absent")]
    pub value: String,
}

/// Which image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagePredicate {
    /// A JSON pointer.
    pub path: String,
}

/// A part of an image's name: `[registry/]repository[:tag]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageComponent {
    /// Before the first `/`.
    Registry,
    /// In the middle.
    Repository,
    /// Tag, or digest.
    Tag,
}

/// A change of a container's command or arguments.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CommandOverrider {
    /// The container.
    pub container_name: String,
    /// What is done: add or remove.
    pub operator: OverrideOperator,
    /// Which words.
    #[serde(default, skip_serializing_if = "absent")]
    pub value: Vec<String>,
}

/// A change of labels or annotations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MapOverrider {
    /// What is done.
    pub operator: OverrideOperator,
    /// Which keys, with what.
    #[serde(default, skip_serializing_if = "absent")]
    pub value: BTreeMap<String, String>,
}

/// A change of structured text inside a string.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FieldOverrider {
    /// Where the string is: a JSON pointer.
    pub field_path: String,
    /// The text is JSON.
    #[serde(default, skip_serializing_if = "absent")]
    pub json: Vec<FieldOperation>,
    /// The text is YAML.
    #[serde(default, skip_serializing_if = "absent")]
    pub yaml: Vec<FieldOperation>,
}

/// One change inside the text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FieldOperation {
    /// Where in the text: a JSON pointer.
    pub sub_path: String,
    /// What is done.
    pub operator: OverrideOperator,
    /// With what.
    #[serde(default, skip_serializing_if = "absent")]
    pub value: Value,
}

/// A change of anything, by path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaintextOverrider {
    /// A JSON pointer.
    pub path: String,
    /// What is done.
    pub operator: OverrideOperator,
    /// With what.
    #[serde(default, skip_serializing_if = "absent")]
    pub value: Value,
}
