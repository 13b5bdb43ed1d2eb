//! Holds a connection to one Kubernetes cluster: kubeconfigs, clients over any network, reading and applying objects.
//!
//! What to write is never decided here. Start at [`Kubeconfig`], then [`connect()`], then [`objects`]. [`lease`] says which of
//! several acts, and [`near`] is for who has the API server in his own process.

mod bare;
mod connect;
pub mod forward;
mod kubeconfig;
pub mod lease;
pub mod near;
pub mod objects;
mod pass;

pub use bare::Bare;
pub use connect::{Carried, Cluster, Duplex, Reach, Way, client, client_over, connect, in_cluster};
pub use kubeconfig::{Kubeconfig, from_kubeconfig_text};
pub use pass::{Passage, Unpassed};

/// Why a cluster could not be reached or asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A pod could not be looked into.
    #[error("could not {what}: {why}")]
    Forward {
        /// The attempt.
        what: String,
        /// Why.
        why: String,
    },
    /// A kubeconfig file cannot be read.
    #[error("could not read the kubeconfig {path}")]
    ReadKubeconfig {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// There is no kubeconfig at all.
    #[error("no kubeconfig found")]
    NoKubeconfig {
        /// The places that were looked at.
        looked: Vec<std::path::PathBuf>,
    },
    /// The context is in none of the files.
    #[error("no context `{context}` in {}", list(files))]
    NoContext {
        /// The context as asked for.
        context: String,
        /// The files that were read.
        files: Vec<std::path::PathBuf>,
        /// The contexts they do have.
        have: Vec<String>,
    },
    /// A context does not make a usable client.
    #[error("the kubeconfig context `{context}` cannot be used")]
    Context {
        /// The context.
        context: String,
        /// Why.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// A kubeconfig in a remote secret is of a kind that a control plane must not run.
    #[error("the kubeconfig is refused: {0}")]
    Refused(String),
    /// A container lacks what a pod has.
    #[error("this is no pod with a service account: {0}")]
    InCluster(String),
    /// TLS or authentication could not be set up.
    #[error("could not set up the connection to {server}")]
    Client {
        /// The API server.
        server: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server could not be asked, or said no.
    #[error("could not {what}")]
    Request {
        /// The attempt, such as "apply Secret istio-system/cacerts".
        what: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("could not {what}: no answer in {} s", after.as_secs_f32())]
    NoAnswer {
        /// The attempt.
        what: String,
        /// How long we waited.
        after: std::time::Duration,
    },
    /// An object is of a kind that nobody has told us the resource of.
    #[error("no resource is known for {kind} of {api_version}")]
    UnknownKind {
        /// Its `apiVersion`.
        api_version: String,
        /// Its `kind`.
        kind: String,
    },
}

impl Error {
    /// The API server's answer, when it gave one.
    #[must_use]
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Request { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether the API server said that there is no such object (or no such kind).
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|s| s.code == 404)
    }

    /// Whether the API server said that this may not be done.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.status().is_some_and(|s| s.code == 403)
    }

    /// Whether the API server said that somebody else was faster.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|s| s.code == 409)
    }
}

fn list(files: &[std::path::PathBuf]) -> String {
    files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
}
