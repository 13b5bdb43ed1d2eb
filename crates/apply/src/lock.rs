use std::fs::File;
use std::time::Duration;

use serde_json::json;
use stolos_cluster::lease::{Held, Lease, Taken, Times, Write};
use stolos_plan::ours;
use stolos_spec::Mesh;

use crate::{Clusters, Error, State, crash};

const TIMES: Times =
    Times { life: Duration::from_secs(30), deadline: Duration::from_secs(25), renewal: Duration::from_secs(10) };

/// The right to change a mesh: Lease `stolos-<mesh>` in `kube-system` of its first cluster.
///
/// Its holder is the state folder. A Lease that our own folder holds was left by a run that was killed, for this run
/// has the folder to itself; it is taken over at once. Anybody else's must have expired.
pub struct Lock {
    held: Held,
    _folder: File,
}

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] when somebody else has it.
    pub async fn take(mesh: &Mesh, clusters: &Clusters, state: &State) -> Result<Self, Error> {
        let folder = state.hold()?;
        let (name, holder) = (format!("stolos-{}", mesh.name), format!("stolos-{}", state.identity()?));
        Ok(Self { held: take(mesh, clusters, name, holder).await?, _folder: folder })
    }

    /// Completes when somebody else has taken the lock, or it could not be renewed for so long that they might.
    pub async fn lost(&self) {
        self.held.lost().await;
    }

    /// Gives the lock back. A Lease that cannot be deleted expires by itself.
    pub async fn release(self) {
        self.held.release().await;
    }
}

/// Being the one of several operators of a mesh that acts: Lease `stolos-operator-<mesh>` beside that of [`Lock`].
pub struct Leader {
    held: Held,
}

impl Leader {
    /// Leads, as `identity`, if nobody else does.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] when somebody else does.
    pub async fn take(mesh: &Mesh, clusters: &Clusters, identity: &str) -> Result<Self, Error> {
        let held = take(mesh, clusters, format!("stolos-operator-{}", mesh.name), identity.to_owned()).await?;
        Ok(Self { held })
    }

    /// Completes when somebody else leads, or the Lease could not be renewed for so long that they might.
    pub async fn lost(&self) {
        self.held.lost().await;
    }

    /// Lets another one lead. A Lease that cannot be deleted expires by itself.
    pub async fn release(self) {
        self.held.release().await;
    }
}

/// A Lease in the first cluster of the mesh.
async fn take(mesh: &Mesh, clusters: &Clusters, name: String, holder: String) -> Result<Held, Error> {
    let first = mesh.clusters.first().map(|c| c.name.to_string()).unwrap_or_default();
    let cluster = clusters.get(&first).map_err(|why| Error::Cluster { cluster: first, why })?;
    let metadata = json!({"name": name, "namespace": "kube-system", "labels": {}});
    let metadata = ours(mesh.name.as_str(), json!({"metadata": metadata}))["metadata"].take();
    let lease = Lease::new(cluster.client.clone(), metadata, holder, TIMES).around(|write| {
        crash::pass(match write {
            Write::Before => crash::Point::WriteBefore,
            Write::After => crash::Point::WriteAfter,
        });
    });
    match lease.take().await {
        Ok(Taken::Held(held)) => Ok(held),
        Ok(Taken::Theirs { holder, since }) => {
            Err(Error::Locked { holder, since, lease: name, cluster: cluster.name.clone() })
        }
        Err(source) => Err(Error::Lock(Box::new(source))),
    }
}
