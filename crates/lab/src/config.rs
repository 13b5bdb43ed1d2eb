use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stolos_spec::mesh::Mesh;

use crate::Recorded;
use crate::catalogue::Catalogue;

/// What a lab is to be.
#[derive(Clone)]
pub struct LabConfig {
    /// Its name; a mesh's, usually.
    pub name: String,
    /// Its folder: address claim, storage of the API servers, kubeconfig, control socket.
    pub state: PathBuf,
    /// Its clusters, in order. A restart may add clusters; those of the folder that are not named stay as they are
    /// on disk and are not started.
    pub clusters: Vec<LabCluster>,
    /// Kubeconfigs to write besides the folder's own, never over one that a lab did not write.
    pub kubeconfigs: Vec<PathBuf>,
    /// The images its pods may have.
    pub catalogue: Catalogue,
    /// Added to every API call that comes over the network, for benches. The lab's own parts are not delayed.
    pub api_delay: Duration,
    /// Take new addresses when another lab holds the old ones.
    pub renumber: bool,
    /// Objects of clusters that were somewhere else: nothing runs in these.
    pub recorded: Option<Recorded>,
}

/// Which pods of a lab run an Envoy instead of our own proxy, where they do not say it themselves
/// (annotation `stolos.dev/proxy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EnvoyFor {
    /// None: only those that ask for it.
    #[default]
    Annotated,
    /// Every pod with a proxy.
    All,
    /// Gateways.
    Gateways,
    /// Pods with an application.
    Sidecars,
    /// Every other pod.
    Half,
}

/// One cluster of a lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabCluster {
    /// Its name.
    pub name: String,
    /// Its kubeconfig context.
    pub context: String,
    /// Its network.
    pub network: String,
    /// The region of its nodes.
    pub region: Option<String>,
    /// The zone of its nodes.
    pub zone: Option<String>,
}

impl LabConfig {
    /// A lab without clusters.
    #[must_use]
    pub fn new(name: impl Into<String>, state: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            state: state.into(),
            clusters: Vec::new(),
            kubeconfigs: Vec::new(),
            catalogue: Catalogue::default(),
            api_delay: Duration::ZERO,
            renumber: false,
            recorded: None,
        }
    }

    /// A lab with every cluster that `mesh` names.
    #[must_use]
    pub fn from_mesh(mesh: &Mesh, state: impl Into<PathBuf>) -> Self {
        let clusters = mesh.clusters.iter().map(|cluster| LabCluster {
            name: cluster.name.to_string(),
            context: cluster.context.clone(),
            network: cluster.network.to_string(),
            region: cluster.region.clone(),
            zone: cluster.zone.clone(),
        });
        Self { clusters: clusters.collect(), ..Self::new(mesh.name.to_string(), state) }
    }

    /// A lab of `clusters` clusters spread over `networks` networks, `cluster-1` on `network-1` and so on.
    #[must_use]
    pub fn with_counts(state: impl Into<PathBuf>, clusters: usize, networks: usize) -> Self {
        let networks = networks.clamp(1, clusters.max(1));
        let clusters = (0..clusters).map(|i| {
            let network = i * networks / clusters.max(1) + 1;
            LabCluster {
                name: format!("cluster-{}", i + 1),
                context: format!("cluster-{}", i + 1),
                network: format!("network-{network}"),
                region: Some(format!("region-{network}")),
                zone: None,
            }
        });
        Self { clusters: clusters.collect(), ..Self::new("lab", state) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_spread_evenly_over_networks() {
        let spread = |clusters, networks| {
            let config = LabConfig::with_counts("/tmp/x", clusters, networks);
            config.clusters.into_iter().map(|c| c.network).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(spread(5, 2), "network-1 network-1 network-1 network-2 network-2");
        assert_eq!(spread(2, 9), "network-1 network-2");
        assert_eq!(spread(3, 0), "network-1 network-1 network-1");
    }
}
