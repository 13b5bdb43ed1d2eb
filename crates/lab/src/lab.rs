//! The lab as a whole.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::ResourceExt;
use serde::Serialize;
use stolos_serve::Stop;
use tokio::sync::Mutex;

use crate::address::{CLUSTERS_PER_BLOCK, Claim, Subnet};
use crate::catalogue::Catalogue;
use crate::cluster::{Cluster, LoadBalancer, Manner};
use crate::network::{Refusal, World};
use crate::state::{Folder, Placed, Record};
use crate::{Error, Fault, LabCluster, LabConfig, kubeconfig, socket};

/// A running lab. Dropping it stops it in the background; [`stop`](Lab::stop) waits.
pub struct Lab {
    inner: Arc<Inner>,
    control: tokio_util::task::AbortOnDropHandle<()>,
}

pub(crate) struct Inner {
    name: String,
    world: Arc<World>,
    catalogue: Catalogue,
    manner: Manner,
    clusters: Mutex<Vec<Slot>>,
    /// Asked when somebody wants the lab to end.
    down: Stop,
    started: Instant,
    /// Gives the addresses back when everything else is gone.
    _claim: Claim,
    /// Last: who may have the folder may have its addresses.
    folder: Folder,
}

struct Slot {
    spec: LabCluster,
    index: usize,
    subnet: Subnet,
    running: Option<Cluster>,
}

/// What a lab looks like now.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LabStatus {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub state: PathBuf,
    /// Its process.
    pub pid: u32,
    /// Milliseconds since it started.
    pub up_ms: u64,
    /// Its clusters.
    pub clusters: Vec<ClusterStatus>,
    /// Connections refused because of where they came from or went to.
    pub refusals: Vec<Refusal>,
    /// What is wrong with links now.
    pub faults: Vec<Fault>,
}

/// What a cluster looks like now.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Name, context, network, place.
    #[serde(flatten)]
    pub cluster: LabCluster,
    /// Its addresses.
    pub subnet: String,
    /// Its API server's URL.
    pub server: String,
    /// Whether it runs; a killed one does not.
    pub running: bool,
    /// Whether it is cut off from the others.
    pub cut_off: bool,
    /// How many pods its kubelet runs.
    pub pods: usize,
    /// Services with an address outside.
    pub load_balancers: Vec<LoadBalancer>,
}

impl Lab {
    /// Brings a lab up, from what is in its folder if it was there before.
    ///
    /// # Flow
    ///
    /// 1. Take the folder; claim addresses, the old ones where there are old ones.
    /// 2. Start every cluster, all at once.
    /// 3. Write the kubeconfig and open the control socket.
    ///
    /// # Errors
    ///
    /// When the folder or the addresses are somebody else's, or a cluster cannot start; nothing is left running then.
    pub async fn start(config: LabConfig) -> Result<Self, Error> {
        if !cfg!(target_os = "linux") {
            let text =
                "a lab needs Linux: its pods have addresses inside 127.0.0.0/8, which other systems do not route";
            return Err(Error::Config(text.to_owned()));
        }
        raise_file_limit();
        let folder = Folder::hold(&config.state)?;
        let before = folder.record()?.unwrap_or_default();
        let (record, claim) = place(&config, before, &folder).await?;
        folder.set_record(&record)?;

        let world = World::new();
        let wanted: HashSet<&str> = match config.clusters.len() {
            0 => record.clusters.iter().map(|p| p.cluster.name.as_str()).collect(),
            _ => config.clusters.iter().map(|c| c.name.as_str()).collect(),
        };
        let mut slots = Vec::new();
        for placed in record.clusters.iter().filter(|p| wanted.contains(p.cluster.name.as_str())) {
            let index = world.add(&placed.cluster.name, &placed.cluster.network, placed.subnet);
            slots.push(Slot { spec: placed.cluster.clone(), index, subnet: placed.subnet, running: None });
        }
        if let Some(recorded) = &config.recorded {
            for slot in &slots {
                let objects = recorded.get(&slot.spec.name).map(Vec::as_slice).unwrap_or_default();
                crate::record::put(
                    &slot.spec.name,
                    &cluster_folder(folder.path(), &slot.spec.name).join("api"),
                    objects,
                )?;
            }
        }
        let manner = Manner { slow: config.api_delay, recorded: record.recorded };
        let starting = slots.iter().map(|slot| {
            let folder = cluster_folder(folder.path(), &slot.spec.name);
            let (spec, index, subnet, world) = (slot.spec.clone(), slot.index, slot.subnet, Arc::clone(&world));
            let catalogue = config.catalogue.clone();
            // A task each, so that clusters start on all cores.
            tokio::spawn(async move { Cluster::start(&spec, index, subnet, &folder, &world, &catalogue, manner).await })
        });
        let started = futures::future::join_all(starting).await;
        let mut failure = None;
        for (slot, result) in slots.iter_mut().zip(started) {
            match result {
                Ok(Ok(cluster)) => slot.running = Some(cluster),
                Ok(Err(error)) => failure = Some(error),
                Err(error) => failure = Some(Error::Config(format!("cluster `{}`: {error}", slot.spec.name))),
            }
        }
        if let Some(error) = failure {
            futures::future::join_all(slots.into_iter().filter_map(|s| s.running).map(Cluster::stop)).await;
            return Err(error);
        }
        let inner = Arc::new(Inner {
            name: config.name,
            folder,
            world,
            catalogue: config.catalogue,
            manner,
            clusters: Mutex::new(slots),
            down: Stop::new(),
            started: Instant::now(),
            _claim: claim,
        });
        let text = inner.kubeconfig().await;
        crate::state::put(&inner.folder.path().join("kubeconfig"), text.as_bytes())?;
        for path in &config.kubeconfigs {
            if !kubeconfig::write_beside(path, &text)? {
                tracing::warn!(path = %path.display(), "left alone: this kubeconfig was not written by a lab");
            }
        }
        let listener = socket::listen(inner.folder.path())?;
        let control =
            tokio_util::task::AbortOnDropHandle::new(tokio::spawn(socket::serve(listener, Arc::clone(&inner))));
        Ok(Self { inner, control })
    }

    /// The kubeconfig with every cluster's context, mode 0600.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.inner.folder.path().join("kubeconfig")
    }

    /// The lab's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.inner.folder.path()
    }

    /// The network, for tests and the curious.
    #[must_use]
    pub fn world(&self) -> &Arc<World> {
        &self.inner.world
    }

    /// A client of a cluster inside this process, with all rights.
    pub async fn client(&self, cluster: &str) -> Option<kube::Client> {
        let clusters = self.inner.clusters.lock().await;
        let slot = clusters.iter().find(|slot| slot.spec.name == cluster)?;
        slot.running.as_ref().map(|running| running.server.client())
    }

    /// What the lab looks like now.
    pub async fn status(&self) -> LabStatus {
        self.inner.status().await
    }

    /// Makes something go wrong, or right again.
    ///
    /// # Errors
    ///
    /// When it names something the lab does not have.
    pub async fn fault(&self, fault: &Fault) -> Result<(), Error> {
        self.inner.fault(fault).await
    }

    /// Waits until somebody asks the lab to end, over its socket.
    pub async fn asked_down(&self) {
        self.inner.down.asked().await;
    }

    /// Stops everything. What is in the folder stays, and the next start goes on from there.
    pub async fn stop(self) {
        self.inner.down.ask();
        let clusters = std::mem::take(&mut *self.inner.clusters.lock().await);
        futures::future::join_all(clusters.into_iter().filter_map(|s| s.running).map(Cluster::stop)).await;
        // Waited for, because it shares what holds the folder's lock.
        self.control.abort();
        let _ = self.control.await;
        socket::remove(self.inner.folder.path());
    }
}

impl Inner {
    async fn kubeconfig(&self) -> String {
        let clusters = self.clusters.lock().await;
        let parts = clusters.iter().filter_map(|slot| Some(slot.running.as_ref()?.kubeconfig(&slot.spec.context)));
        kubeconfig::text(&parts.collect::<Vec<_>>())
    }

    pub(crate) fn ask_down(&self) {
        self.down.ask();
    }

    pub(crate) async fn status(&self) -> LabStatus {
        let clusters = self.clusters.lock().await;
        let clusters = clusters.iter().map(|slot| ClusterStatus {
            cluster: slot.spec.clone(),
            subnet: slot.subnet.to_string(),
            server: format!("https://{}", slot.subnet.api_server()),
            running: slot.running.is_some(),
            cut_off: self.world.is_cut(slot.index),
            pods: slot.running.as_ref().map_or(0, |cluster| cluster.kubelet.count()),
            load_balancers: slot.running.as_ref().map_or_else(Vec::new, Cluster::balancers),
        });
        LabStatus {
            name: self.name.clone(),
            state: self.folder.path().to_owned(),
            pid: std::process::id(),
            up_ms: self.started.elapsed().as_millis() as u64,
            clusters: clusters.collect(),
            refusals: self.world.refusals(),
            faults: self.world.faults(),
        }
    }

    pub(crate) async fn fault(&self, fault: &Fault) -> Result<(), Error> {
        match fault {
            Fault::Partition { .. }
            | Fault::Cut { .. }
            | Fault::Delay { .. }
            | Fault::Loss { .. }
            | Fault::Private { .. } => {
                for place in fault.places() {
                    self.find(place).await?;
                }
                self.world.afflict(fault.clone());
            }
            Fault::Heal { what: Some(what) } => self.world.heal(Some(&self.find(what).await?)),
            Fault::Heal { what: None } => self.world.heal(None),
            Fault::KillPod { cluster, namespace, pod } => {
                self.with(cluster, |running| match running.kubelet.find(namespace, pod) {
                    Some(run) => {
                        run.kill();
                        Ok(())
                    }
                    None => Err(Error::Unknown {
                        what: "pod",
                        name: format!("{namespace}/{pod}"),
                        have: "none of that name on the node".to_owned(),
                    }),
                })
                .await?;
            }
            Fault::KillGateway { cluster } => {
                self.with(cluster, |running| {
                    let pods = running.shared.caches.pods.list();
                    let gateways =
                        pods.iter().filter(|p| p.labels().get("istio").is_some_and(|v| v == "eastwestgateway"));
                    let gateways = gateways
                        .filter_map(|p| running.kubelet.find(&p.namespace().unwrap_or_default(), &p.name_any()));
                    let killed = gateways.map(|run| run.kill()).count();
                    if killed > 0 {
                        return Ok(());
                    }
                    let have = "no running pod labelled istio=eastwestgateway".to_owned();
                    Err(Error::Unknown { what: "gateway of cluster", name: cluster.clone(), have })
                })
                .await?;
            }
            Fault::KillCluster { cluster } => {
                let running = {
                    let mut clusters = self.clusters.lock().await;
                    let slot = self.slot(&mut clusters, cluster)?;
                    slot.running.take()
                };
                if let Some(running) = running {
                    running.kill().await;
                }
            }
            Fault::Start { cluster } => {
                let mut clusters = self.clusters.lock().await;
                let slot = self.slot(&mut clusters, cluster)?;
                if slot.running.is_none() {
                    let folder = cluster_folder(self.folder.path(), &slot.spec.name);
                    let (spec, world) = (&slot.spec, &self.world);
                    let starting =
                        Cluster::start(spec, slot.index, slot.subnet, &folder, world, &self.catalogue, self.manner);
                    slot.running = Some(starting.await?);
                }
            }
        }
        Ok(())
    }

    async fn with<T>(&self, cluster: &str, work: impl FnOnce(&Cluster) -> Result<T, Error>) -> Result<T, Error> {
        let mut clusters = self.clusters.lock().await;
        let slot = self.slot(&mut clusters, cluster)?;
        match &slot.running {
            Some(running) => work(running),
            None => Err(Error::Config(format!("cluster `{cluster}` has been killed and does not run"))),
        }
    }

    fn slot<'a>(&self, clusters: &'a mut [Slot], name: &str) -> Result<&'a mut Slot, Error> {
        let have = clusters.iter().map(|slot| slot.spec.name.clone()).collect::<Vec<_>>().join(", ");
        let found = clusters.iter_mut().find(|slot| slot.spec.name == name);
        found.ok_or_else(|| Error::Unknown { what: "cluster", name: name.to_owned(), have })
    }

    async fn find(&self, name: &str) -> Result<Vec<usize>, Error> {
        let found = self.world.find(name);
        if !found.is_empty() {
            return Ok(found);
        }
        let clusters = self.clusters.lock().await;
        let names = clusters.iter().flat_map(|slot| [slot.spec.name.clone(), slot.spec.network.clone()]);
        let names: std::collections::BTreeSet<_> = names.collect();
        let have = names.into_iter().collect::<Vec<_>>().join(", ");
        Err(Error::Unknown { what: "cluster or network", name: name.to_owned(), have })
    }
}

fn cluster_folder(state: &Path, cluster: &str) -> PathBuf {
    state.join("clusters").join(cluster)
}

/// Gives every cluster its addresses: the old ones to those that had some.
async fn place(config: &LabConfig, before: Record, folder: &Folder) -> Result<(Record, Claim), Error> {
    let mut names = HashSet::new();
    for cluster in &config.clusters {
        if !names.insert(&cluster.name) {
            return Err(Error::Config(format!("two clusters are called `{}`", cluster.name)));
        }
        if cluster.name.is_empty()
            || !cluster.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        {
            return Err(Error::Config(format!(
                "`{}` cannot be a cluster's name: it must be a DNS label",
                cluster.name
            )));
        }
    }
    if config.clusters.is_empty() && before.clusters.is_empty() {
        return Err(Error::Config("a lab needs at least one cluster".to_owned()));
    }
    if before.recorded != config.recorded.is_some() && !before.clusters.is_empty() {
        let (is, other) = match before.recorded {
            true => ("what was recorded elsewhere", "a lab that runs something"),
            false => ("a lab that runs something", "what was recorded elsewhere"),
        };
        return Err(Error::Config(format!(
            "{} holds {is}; {other} needs a folder of its own",
            folder.path().display()
        )));
    }
    let mut record = Record {
        version: 1,
        name: config.name.clone(),
        blocks: Vec::new(),
        clusters: before.clusters,
        recorded: config.recorded.is_some(),
    };
    for cluster in &config.clusters {
        match record.clusters.iter_mut().find(|p| p.cluster.name == cluster.name) {
            Some(placed) => placed.cluster = cluster.clone(),
            // A place of block 0 is none: it is given below.
            None => record.clusters.push(Placed { cluster: cluster.clone(), subnet: Subnet { block: 0, slot: 0 } }),
        }
    }
    let count = record.clusters.len();
    let claim = match Claim::make(&before.blocks, count, &config.name, folder.path()).await {
        Err(Error::AddressesHeld { .. }) if config.renumber => {
            record.clusters.iter_mut().for_each(|placed| placed.subnet.block = 0);
            Claim::make(&[], count, &config.name, folder.path()).await?
        }
        result => result?,
    };
    record.blocks = claim.blocks().to_vec();
    let taken: HashSet<Subnet> = record.clusters.iter().map(|p| p.subnet).filter(|s| s.block != 0).collect();
    let slots = |block: u8| (0..CLUSTERS_PER_BLOCK as u8).map(move |slot| Subnet { block, slot });
    let mut free = record.blocks.iter().copied().flat_map(slots).filter(|s| !taken.contains(s));
    for placed in record.clusters.iter_mut().filter(|p| p.subnet.block == 0) {
        placed.subnet = free.next().ok_or(Error::NoAddresses { needed: count.div_ceil(CLUSTERS_PER_BLOCK) })?;
    }
    Ok((record, claim))
}

/// Every pod, watch and connection is a descriptor: take as many as this process may have.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    const NEEDED: u64 = 4096;
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    if limit.maximum.is_some_and(|most| most < NEEDED) {
        tracing::warn!(most = limit.maximum, "few open files are allowed here; a lab of three clusters needs {NEEDED}");
    }
}

/// How long the control socket gives a client.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
