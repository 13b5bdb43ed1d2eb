use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use stolos_cluster::{Cluster, Kubeconfig};
use stolos_plan::{Remembered, RememberedHub};
use stolos_serve::because;
use stolos_spec::{HUB, Mesh};

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
        let clusters = Self { known: Mutex::new(known), flag: flag.map(Path::to_owned) };
        // A hub that cannot be connected stops nobody who does not need it: it counts as one that does not answer.
        if let Some(hub) = mesh.hub.as_ref().filter(|_| mesh.needs_hub()) {
            clusters.connect_hub(&hub.context, hub.kubeconfig.as_deref()).await;
        }
        Ok(clusters)
    }

    /// Connects the hub, if it is not connected yet.
    async fn connect_hub(&self, context: &str, kubeconfig: Option<&Path>) {
        if self.known.lock().unwrap_or_else(PoisonError::into_inner).contains_key(HUB) {
            return;
        }
        let connecting = async {
            // A file that the mesh file names for the hub is the hub's, whatever the clusters' is.
            let kubeconfig = Kubeconfig::find(kubeconfig.or(self.flag.as_deref()), None)?;
            stolos_cluster::connect(&kubeconfig, context, HUB).await
        };
        let found = connecting.await.map_err(|error| because(&error));
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(HUB.to_owned(), found);
    }

    /// The hub of `mesh`, where clusters are reached through it; else the one that they remember, `former`.
    pub(crate) async fn hub(&self, mesh: &Mesh, former: Option<RememberedHub>) -> Option<Result<Cluster, String>> {
        match (&mesh.hub, former) {
            (Some(hub), _) if mesh.needs_hub() => {
                self.connect_hub(&hub.context, hub.kubeconfig.as_deref()).await;
            }
            (_, Some(former)) => {
                self.connect_hub(&former.context, former.kubeconfig.as_deref().map(Path::new)).await;
            }
            (_, None) => return None,
        }
        Some(self.get(HUB))
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
