//! What can go wrong on demand.

use serde::{Deserialize, Serialize};

/// A fault, or its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "fault")]
pub enum Fault {
    /// Everything of a cluster ends at once; [`Fault::Start`] brings it back from its storage.
    KillCluster {
        /// Which.
        cluster: String,
    },
    /// Starts a killed cluster.
    Start {
        /// Which.
        cluster: String,
    },
    /// Every container of a pod ends as by SIGKILL; the kubelet starts it again.
    KillPod {
        /// In which cluster.
        cluster: String,
        /// In which namespace.
        namespace: String,
        /// Which.
        pod: String,
    },
    /// The east-west gateway pods of a cluster are killed.
    KillGateway {
        /// Which cluster's.
        cluster: String,
    },
    /// A cluster, or all clusters of a network, is cut off from the others: connections hang, streams stall.
    Partition {
        /// The cluster's or the network's name.
        what: String,
    },
    /// A partition ends.
    Heal {
        /// The cluster's or the network's name; everything if not said.
        what: Option<String>,
    },
}
