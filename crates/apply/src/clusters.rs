use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use stolos_cluster::{Cluster, Kubeconfig};
use stolos_plan::Remembered;
use stolos_serve::because;
use stolos_spec::Mesh;

/// The connected clusters of a mesh, and of those that left it once they are asked for.
pub struct Clusters {
    known: Mutex<BTreeMap<String, Result<Cluster, String>>>,
    flag: Option<PathBuf>,
}

impl Clusters {
    /// Connects every cluster of `mesh`. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// When a kubeconfig or a context is not there.
    pub async fn connect(mesh: &Mesh, flag: Option<&Path>) -> Result<Self, stolos_cluster::Error> {
        let mut known = BTreeMap::new();
        for cluster in &mesh.clusters {
            let kubeconfig = Kubeconfig::find(flag, cluster.kubeconfig.as_deref())?;
            let name = cluster.name.as_str();
            known.insert(name.to_owned(), Ok(stolos_cluster::connect(&kubeconfig, &cluster.context, name).await?));
        }
        Ok(Self { known: Mutex::new(known), flag: flag.map(Path::to_owned) })
    }

    /// Clusters that are connected already.
    #[must_use]
    pub fn of(clusters: impl IntoIterator<Item = Cluster>) -> Self {
        let known = clusters.into_iter().map(|cluster| (cluster.name.clone(), Ok(cluster))).collect();
        Self { known: Mutex::new(known), flag: None }
    }

    /// The cluster called `name`.
    ///
    /// # Errors
    ///
    /// Why it could not be connected, in words.
    pub fn get(&self, name: &str) -> Result<Cluster, String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).cloned().unwrap_or_else(|| Err("it is not connected".to_owned()))
    }

    /// A cluster that left the mesh, by what the others remember of it.
    pub(crate) async fn former(&self, member: &Remembered) -> Result<Cluster, String> {
        if let Some(known) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&member.name) {
            return known.clone();
        }
        let connecting = async {
            let own = member.kubeconfig.as_deref().map(Path::new);
            let kubeconfig = Kubeconfig::find(self.flag.as_deref(), own)?;
            stolos_cluster::connect(&kubeconfig, &member.context, &member.name).await
        };
        let found = connecting.await.map_err(|error| because(&error));
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(member.name.clone(), found.clone());
        found
    }
}
