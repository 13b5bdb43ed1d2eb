//! Looks at the clusters and carries out a plan, with a journal.
//!
//! What to do is never decided here: [`observe()`] looks, `stolos_plan` decides, [`run()`] does, under a [`Lock`] in the
//! mesh's first cluster. A run that is cut short at any point is finished by running again: the clusters are the truth,
//! and every step may be done twice.
//!
//! [`rotate()`] replaces the root of a running mesh, phase by phase; [`reissue()`] replaces signing certificates,
//! [`drain()`] shifts traffic away from a cluster, [`upgrade()`] replaces control planes by revision.
//!
//! Start at [`run()`], then read [`execute()`] and `change.rs`. [`State`] is the folder with the root and the journal.

mod change;
mod clusters;
mod crash;
pub mod credential;
mod drain;
mod execute;
mod journal;
mod lock;
mod observe;
mod program;
mod reissue;
mod rotate;
mod run;
mod state;
mod trust;
mod upgrade;

pub use clusters::Clusters;
pub use drain::{DrainNews, DrainReport, drain, returned, undrain};
pub use execute::{Failure, News, Options, Progress, Report, Silent, Timing, Verdict, execute};
pub use lock::{Leader, Lock};
pub use observe::{charts, observe};
pub use reissue::{ReissueNews, ReissueReport, reissue};
pub use rotate::{ClusterProgress, Direction, RotationNews, RotationReport, rotate, rotation_status};
pub use run::{Goal, run};
pub use state::{State, passphrase};
pub use stolos_serve::because;
pub use upgrade::{Reason, Stopped, UpgradeNews, UpgradeOptions, UpgradeReport, upgrade, upgrade_status};

/// Why a run did not start, or could not go on at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state folder cannot be read or written.
    #[error("could not {what} {path}")]
    Folder {
        /// The attempt, such as "write".
        what: &'static str,
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another run of this machine uses the state folder.
    #[error("another run is using {0}")]
    FolderInUse(std::path::PathBuf),
    /// The root certificate or its key cannot be used.
    #[error("could not use the root certificate: {0}")]
    Root(String),
    /// The root cannot be replaced, or not like this.
    #[error("{0}")]
    Rotation(String),
    /// An upgrade cannot go on.
    #[error("{0}")]
    Upgrade(String),
    /// A cluster cannot be drained.
    #[error("{0}")]
    Drain(String),
    /// Somebody else is changing the mesh.
    #[error("{holder} is changing the mesh, since {since} (Lease kube-system/{lease} in {cluster})")]
    Locked {
        /// Who.
        holder: String,
        /// Since when.
        since: String,
        /// The Lease.
        lease: String,
        /// The cluster it is in.
        cluster: String,
    },
    /// The lock could not be taken, kept or given back.
    #[error("could not take the lock of the mesh")]
    Lock(#[source] Box<stolos_cluster::Error>),
    /// A cluster that is needed could not be connected.
    #[error("{cluster} cannot be used: {why}")]
    Cluster {
        /// Which.
        cluster: String,
        /// Why.
        why: String,
    },
    /// A program that is needed is not there.
    #[error("`{name}` is not there: {needed} is needed")]
    NoProgram {
        /// Which.
        name: &'static str,
        /// Its version.
        needed: String,
    },
    /// A program that is needed is too old.
    #[error("{path} is {found}: {needed} is needed")]
    OldProgram {
        /// Where it is.
        path: std::path::PathBuf,
        /// What it says of itself.
        found: String,
        /// What would do.
        needed: String,
    },
    /// A program that is needed cannot be used.
    #[error("{path} cannot be used: {why}")]
    Program {
        /// Where it is.
        path: std::path::PathBuf,
        /// Why.
        why: String,
    },
    /// Planning under the lock found a reason against it.
    #[error("{0}")]
    Blocked(#[from] stolos_plan::Blocked),
    /// The clusters changed between showing the plan and carrying it out.
    #[error("the clusters have changed since the plan was shown: {what}; run again to see the new plan")]
    Changed {
        /// The first step that was not shown.
        what: String,
    },
}
