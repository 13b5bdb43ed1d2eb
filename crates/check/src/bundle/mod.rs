//! One archive of what can be known of a mesh, without its secrets: for a report of a fault, or to study it elsewhere.
//!
//! [`gather`] reads (with `diagnose`'s look, the only one there is), [`write`] takes the secrets out and packs,
//! [`Bundle::open`] reads an archive back, as far as `check` and a lab need it. What could not be had is named in the
//! archive's `manifest.json` and takes nothing else with it.

mod forms;
mod gather;
mod pack;
mod redact;
mod unpack;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use gather::{GatherOptions, Gathered, News, Page, gather};
pub use pack::{Contents, Extra, write};
pub(crate) use redact::MARK;
pub use redact::Redactor;
pub use unpack::{Bundle, BundledCluster};

/// What an archive says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Manifest {
    /// `stolos.dev/v1alpha1`.
    pub api_version: String,
    /// `Bundle`.
    pub kind: String,
    /// The mesh.
    pub mesh: String,
    /// When it was made, RFC 3339.
    pub made_at: String,
    /// What made it.
    pub made_by: String,
    /// Every cluster of the mesh, in the order of its file.
    pub clusters: Vec<ManifestCluster>,
    /// What is there.
    pub files: Vec<ManifestFile>,
    /// What is not, and why.
    pub missing: Vec<Missing>,
    /// How many secrets were taken out, by type.
    pub redacted: BTreeMap<String, usize>,
    /// What other systems' files leave out and was said on the command line: the cluster whose control plane is shared,
    /// those that share it.
    pub told: ManifestTold,
}

/// A cluster, by the mesh file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManifestCluster {
    /// Its name.
    pub name: String,
    /// Its kubeconfig context.
    pub context: String,
    /// Its network.
    pub network: String,
    /// Its region.
    pub region: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// Its API server.
    pub server: String,
    /// Its Kubernetes version.
    pub version: Option<String>,
    /// When it was read, RFC 3339.
    pub read_at: Option<String>,
    /// Why it could not be.
    pub unreachable: Option<String>,
}

/// A file of the archive.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManifestFile {
    /// Where it is.
    pub path: String,
    /// What it is.
    pub what: String,
    /// Of which cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// When it was read, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// How large it is.
    pub bytes: usize,
    /// Under which name `check` keeps these objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<String>,
    /// How many there were, where not all are here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_from: Option<usize>,
}

/// Something that could not be had.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Missing {
    /// What.
    pub what: String,
    /// Of which cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Why.
    pub why: String,
    /// Under which name `check` would keep these objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub objects: Option<String>,
}

/// What was said on the command line beside the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManifestTold {
    /// The mesh's name.
    pub name: Option<String>,
    /// The cluster whose control plane the others share, and its network.
    pub primary: Option<(String, Option<String>)>,
    /// Those that share it, and their networks.
    pub remotes: Vec<(String, Option<String>)>,
    /// Which of the files under `mesh/` was given as `--base`.
    pub base: Option<String>,
}

/// Why there is no archive, or it cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It cannot be written.
    #[error("could not write the archive")]
    Write(#[source] std::io::Error),
    /// It cannot be read.
    #[error("could not read the archive")]
    Read(#[source] std::io::Error),
    /// It is another kind of archive, or a newer one.
    #[error("this is no archive of `stolos bundle`: {0}")]
    Foreign(String),
    /// It is larger than anybody wants to hold.
    #[error("the archive holds more than {} MiB", .0 >> 20)]
    TooLarge(u64),
    /// Its mesh file cannot be read.
    #[error("the archive's mesh file cannot be read: {0}")]
    Mesh(String),
}
