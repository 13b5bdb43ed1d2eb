//! Proves, from outside, that a mesh does what its file says.
//!
//! * [`verify()`] reads from the proxies which endpoints they have, sends real requests from every cluster to every
//!   cluster, and tries what must be refused.
//! * [`reaches()`] is content with one answer between the samples of two clusters.
//! * [`status()`] says what is there, with the age of everything it says.
//! * [`graph()`] draws it.
//! * [`diagnose`] names the cause of what is wrong, and what mends it.
//! * [`bundle`] packs all that was seen into one archive, without its secrets.
//!
//! Nothing is changed but what [`verify()`] brings along and takes away again. What the numbers mean is decided in
//! `judge`, which is pure.

pub mod bundle;
pub mod diagnose;
mod exec;
mod graph;
mod judge;
mod probe;
mod proxies;
mod reach;
mod refuse;
mod report;
mod status;
mod verify;

pub use graph::{Format, graph};
pub use probe::Workload;
pub use proxies::{ProxyReport, ProxyStatus, TypeStatus, proxies};
pub use reach::reaches;
pub use report::{EndpointState, Endpoints, Latency, Pair, Refusal, Verdict, VerifyReport};
pub use status::services::{Registered, ServicesReport, services};
pub use status::{
    CertificateStatus, ClusterStatus, ControlPlaneStatus, Expiry, GatewayStatus, PeerStatus, ServiceStatus,
    StatusReport, TunnelStatus, expiries, status, through_hub,
};
pub use verify::{News, Options, sweep, verify};

/// A time for the name of a file: `20260131T235959Z`.
#[must_use]
pub fn compact_time(at: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(at).map_or_else(|_| "unknown".to_owned(), |t| t.strftime("%Y%m%dT%H%M%SZ").to_string())
}

/// Why nothing could be proven.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A cluster could not be asked.
    #[error("could not prove anything about `{cluster}`")]
    Cluster {
        /// The cluster.
        cluster: String,
        /// Why.
        #[source]
        source: stolos_cluster::Error,
    },
    /// Verify runs in namespaces of its own making only.
    #[error("namespace `{namespace}` is already in `{cluster}`: verify makes its own and removes it again")]
    NamespaceExists {
        /// The cluster.
        cluster: String,
        /// The namespace.
        namespace: String,
    },
    /// What verify brings along did not start.
    #[error("the probe in `{cluster}` is not ready after {} s: {why}", after.as_secs())]
    ProbeNotReady {
        /// The cluster.
        cluster: String,
        /// How long we waited.
        after: std::time::Duration,
        /// What was still missing.
        why: String,
    },
    /// A command in a client pod could not be run.
    #[error("could not run the client in `{cluster}`")]
    Exec {
        /// The cluster.
        cluster: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// A command in a client pod failed, or did not end in time.
    #[error("the client in `{cluster}` did not do its work: {why}")]
    Client {
        /// The cluster.
        cluster: String,
        /// What it said.
        why: String,
    },
    /// Somebody asked us to stop.
    #[error("interrupted")]
    Interrupted,
}
