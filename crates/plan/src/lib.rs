//! Decides how to make the clusters match the mesh.
//!
//! [`plan()`] compares a mesh with what was [`Observed`] and returns a [`Plan`]: named [`Step`]s, each with its reason
//! and the steps that must come first. [`teardown()`] plans the way back. Nothing here talks to a cluster, reads a
//! clock or knows a secret: two equal inputs give equal plans, on any machine, at any time.
//!
//! Start at [`plan()`], then read `build/trust.rs`, which is a typical part. `compare.rs` decides whether a live object
//! is as wanted; `step.rs` says what a step is; [`rotation`] decides how a root is replaced, [`upgrade`] how a
//! control plane is.

mod adopt;
mod build;
mod compare;
#[cfg(test)]
mod day_two_tests;
mod export;
mod graph;
#[cfg(test)]
mod hub_tests;
#[cfg(test)]
mod hundred_tests;
#[cfg(test)]
mod istio_tests;
mod object;
mod observed;
mod operator;
mod release;
#[cfg(test)]
mod remote_tests;
pub mod rotation;
mod show;
mod step;
#[cfg(test)]
mod tests;
pub mod upgrade;
mod values;

pub use adopt::{Adopted, adopt};
pub use build::{
    Blocked, Problem, Remembered, RememberedHub, hub_namespace, plan, remembered, remembered_hub, teardown,
};
pub use export::{Export, ExportOptions, Format, Secrets, export};
pub use graph::{Blast, Leftover, Member, Note, Plan, Purpose, Summary};
pub use object::{
    AGENT, CACERTS_SECRET, CREDENTIAL_LABEL, DRAINED, DRAINER, MANAGED_BY_LABEL, MANAGER, MEMBERSHIP, MESH_LABEL,
    READER_SERVICE_ACCOUNT, ROOT_CONFIG_MAP, SAMPLE_NAMESPACE, SYSTEM_NAMESPACE, UPGRADING, drained, is_owned,
    link_kubeconfig, ours, peer_secret, remote_secret_name, secret_text, token_life, upgrading,
};
pub use observed::{ClusterState, LocalChart, Objects, Observed, RootFacts, Sight, StateFacts, Unreadable};
pub use operator::Operator;
pub use release::{Chart, RELEASE_SECRET, Release, Rollback, Uninstall, is_pending, quoted};
pub use show::Show;
pub use step::{
    ADDRESS, Account, Action, Change, Condition, FieldDiff, ObjectDiff, ObjectKey, Step, StepId, external_address,
};

/// The version of Stolos' own images: the small engine is exactly as old as the binary that installs it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
