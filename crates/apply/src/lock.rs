use std::fs::File;
use std::time::Duration;

use http::{Method, Request};
use jiff::Timestamp;
use serde_json::{Value, json};
use stolos_cluster::Cluster;
use stolos_plan::ours;
use stolos_spec::Mesh;
use tokio_util::sync::CancellationToken;

use crate::{Clusters, Error, State, crash};
use stolos_serve::because;

/// How long a holder counts as alive after its last sign of life.
const LIFE: Duration = Duration::from_secs(30);
const RENEWAL: Duration = Duration::from_secs(10);
/// How often to try again when another holder was faster.
const TRIES: usize = 5;

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
        let lease =
            Lease::of(mesh, clusters, format!("stolos-{}", mesh.name), format!("stolos-{}", state.identity()?))?;
        Ok(Self { held: Held::take(lease).await?, _folder: folder })
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
        let lease = Lease::of(mesh, clusters, format!("stolos-operator-{}", mesh.name), identity.to_owned())?;
        Ok(Self { held: Held::take(lease).await? })
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

/// A Lease that is held, and renewed as long as this lives.
struct Held {
    lease: Lease,
    lost: CancellationToken,
    renewing: tokio::task::JoinHandle<()>,
}

impl Held {
    async fn take(lease: Lease) -> Result<Self, Error> {
        let mut version = None;
        for _ in 0..TRIES {
            match lease.claim().await? {
                Claim::Ours(found) => {
                    version = Some(found);
                    break;
                }
                Claim::Theirs { holder, since } => {
                    let (lease, cluster) = (lease.name, lease.cluster.name);
                    return Err(Error::Locked { holder, since, lease, cluster });
                }
                Claim::TooLate => {}
            }
        }
        let Some(version) = version else {
            let (lease, cluster) = (lease.name, lease.cluster.name);
            return Err(Error::Locked { holder: "somebody".to_owned(), since: "just now".to_owned(), lease, cluster });
        };
        let lost = CancellationToken::new();
        let renewing = tokio::spawn(renew(lease.clone(), version, lost.clone()));
        Ok(Self { lease, lost, renewing })
    }

    /// May be asked by several, and again.
    async fn lost(&self) {
        self.lost.cancelled().await;
    }

    async fn release(self) {
        self.renewing.abort();
        if let Err(error) = self.lease.delete().await {
            tracing::warn!(error = because(&error), "the Lease stays until it expires");
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

async fn renew(lease: Lease, mut version: String, lost: CancellationToken) {
    let mut last = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(RENEWAL).await;
        match lease.put(Some(&version)).await {
            Ok(Some(next)) => {
                version = next;
                last = tokio::time::Instant::now();
            }
            Ok(None) => break,
            Err(error) => tracing::warn!(error = because(&error), "could not renew the lock"),
        }
        if last.elapsed() >= LIFE {
            break;
        }
    }
    lost.cancel();
}

#[derive(Clone)]
struct Lease {
    cluster: Cluster,
    mesh: String,
    name: String,
    holder: String,
}

enum Claim {
    /// With its resource version.
    Ours(String),
    Theirs {
        holder: String,
        since: String,
    },
    TooLate,
}

impl Lease {
    /// In the first cluster of the mesh.
    fn of(mesh: &Mesh, clusters: &Clusters, name: String, holder: String) -> Result<Self, Error> {
        let first = mesh.clusters.first().map(|c| c.name.to_string()).unwrap_or_default();
        let cluster = clusters.get(&first).map_err(|why| Error::Cluster { cluster: first, why })?;
        Ok(Self { cluster, mesh: mesh.name.to_string(), name, holder })
    }

    async fn claim(&self) -> Result<Claim, Error> {
        let claimed = |version: Option<String>| version.map_or(Claim::TooLate, Claim::Ours);
        // Nearly always there is no Lease, and then one request is enough.
        if let Some(version) = self.put(None).await? {
            return Ok(Claim::Ours(version));
        }
        let Some(found) = self.send(Method::GET, Some(&self.name), None).await? else {
            return Ok(Claim::TooLate);
        };
        let spec = &found["spec"];
        let holder = spec["holderIdentity"].as_str().unwrap_or_default();
        let renewed = spec["renewTime"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
        let life = Duration::from_secs(spec["leaseDurationSeconds"].as_u64().unwrap_or(0));
        let silent = renewed.map(|at| Timestamp::now().duration_since(at)).and_then(|d| Duration::try_from(d).ok());
        // A renewal in the future (their clock is ahead) counts as one just now.
        let expired = renewed.is_none() || silent.is_some_and(|silent| silent > life);
        if holder == self.holder || holder.is_empty() || expired {
            let version = found["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            return self.put(Some(version)).await.map(claimed);
        }
        let since = spec["acquireTime"].as_str().unwrap_or("an unknown time").to_owned();
        Ok(Claim::Theirs { holder: holder.to_owned(), since })
    }

    /// Writes us as the holder: over `version`, or as a new Lease. The new version, or `None` when somebody was faster.
    async fn put(&self, version: Option<&str>) -> Result<Option<String>, Error> {
        let now = format!("{:.6}", Timestamp::now());
        let mut object = ours(
            &self.mesh,
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": self.name, "namespace": "kube-system", "labels": {}},
                "spec": {"holderIdentity": self.holder, "leaseDurationSeconds": LIFE.as_secs(),
                    "acquireTime": now, "renewTime": now}}),
        );
        let (method, name) = match version {
            None => (Method::POST, None),
            Some(version) => {
                object["metadata"]["resourceVersion"] = version.into();
                (Method::PUT, Some(self.name.as_str()))
            }
        };
        crash::pass(crash::Point::WriteBefore);
        let answer = self.send(method, name, Some(&object)).await;
        crash::pass(crash::Point::WriteAfter);
        match answer {
            Ok(written) => {
                Ok(written.and_then(|lease| lease["metadata"]["resourceVersion"].as_str().map(str::to_owned)))
            }
            Err(Error::Lock { source, .. }) if source.is_conflict() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete(&self) -> Result<(), Error> {
        crash::pass(crash::Point::WriteBefore);
        let answer = self.send(Method::DELETE, Some(&self.name), None).await;
        crash::pass(crash::Point::WriteAfter);
        answer.map(drop)
    }

    /// The answer, or `None` when there is no such Lease.
    async fn send(&self, method: Method, name: Option<&str>, body: Option<&Value>) -> Result<Option<Value>, Error> {
        let what = match method {
            Method::GET => "look at",
            Method::DELETE => "give back",
            _ => "take",
        };
        let kind = stolos_k8s::kind::path("coordination.k8s.io", "v1", "leases", Some("kube-system"), name);
        let failed = |source: stolos_cluster::Error| Error::Lock { what, source: Box::new(source) };
        let describe = || format!("{what} Lease kube-system/{}", self.name);
        let body = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(kind).header("content-type", "application/json").body(body);
        let request = request
            .map_err(kube::Error::HttpError)
            .map_err(|source| failed(stolos_cluster::Error::Request { what: describe(), source: Box::new(source) }))?;
        let after = stolos_cluster::objects::ANSWER;
        match tokio::time::timeout(after, self.cluster.client.request::<Value>(request)).await {
            Err(_) => Err(failed(stolos_cluster::Error::NoAnswer { what: describe(), after })),
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(source)) => {
                let error = stolos_cluster::Error::Request { what: describe(), source: Box::new(source) };
                if error.is_not_found() { Ok(None) } else { Err(failed(error)) }
            }
        }
    }
}
