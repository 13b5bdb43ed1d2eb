//! One cluster: an API server, its controllers, and a kubelet.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use serde::Serialize;
use stolos_apiserver::Server;
use stolos_serve::Stop;
use tokio::sync::{Notify, OnceCell};
use tokio_util::task::TaskTracker;

use crate::address::{Subnet, socket_port};
use crate::cache::Cache;
use crate::catalogue::Catalogue;
use crate::directory::{Directories, Directory};
use crate::error::Error;
use crate::events::{self, Recorder};
use crate::kubelet::pod::AskOnDrop;
use crate::kubelet::{Door, Kubelet, Resolver};
use crate::loadbalancer::Balancer;
use crate::network::World;
use crate::{LabCluster, delay, workload};

/// What every part of a cluster shares.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) region: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) subnet: Subnet,
    pub(crate) folder: PathBuf,
    pub(crate) world: Arc<World>,
    pub(crate) directories: Directories,
    pub(crate) client: kube::Client,
    pub(crate) ca: String,
    pub(crate) caches: Caches,
    pub(crate) events: Recorder,
    pub(crate) balancer: Balancer,
    pub(crate) catalogue: Catalogue,
    pub(crate) digest: Digest,
    /// Set before `stop` where the cluster is to end at once, without farewells.
    pub(crate) killed: AtomicBool,
    pub(crate) stop: Stop,
}

impl Shared {
    pub(crate) fn node_labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), self.node.clone()),
            ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            ("kubernetes.io/arch".to_owned(), architecture().to_owned()),
        ]);
        let mut place = |label: &str, value: &Option<String>| {
            if let Some(value) = value {
                labels.insert(format!("topology.kubernetes.io/{label}"), value.clone());
            }
        };
        place("region", &self.region);
        place("zone", &self.zone);
        labels
    }
}

/// The machine in Kubernetes' words.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The kinds that controllers and the kubelet look at.
pub(crate) struct Caches {
    pub(crate) deployments: Arc<Cache<Deployment>>,
    pub(crate) replicasets: Arc<Cache<ReplicaSet>>,
    pub(crate) pods: Arc<Cache<Pod>>,
    pub(crate) statefulsets: Arc<Cache<StatefulSet>>,
    pub(crate) daemonsets: Arc<Cache<DaemonSet>>,
    pub(crate) revisions: Arc<Cache<ControllerRevision>>,
    pub(crate) jobs: Arc<Cache<Job>>,
    pub(crate) cronjobs: Arc<Cache<CronJob>>,
    pub(crate) budgets: Arc<Cache<PodDisruptionBudget>>,
    pub(crate) nodes: Arc<Cache<Node>>,
    pub(crate) services: Arc<Cache<Service>>,
    pub(crate) slices: Arc<Cache<EndpointSlice>>,
    pub(crate) endpoints: Arc<Cache<Endpoints>>,
    pub(crate) configmaps: Arc<Cache<ConfigMap>>,
    pub(crate) secrets: Arc<Cache<Secret>>,
    pub(crate) claims: Arc<Cache<PersistentVolumeClaim>>,
    pub(crate) volumes: Arc<Cache<PersistentVolume>>,
}

impl Caches {
    fn new() -> Self {
        Self {
            deployments: Cache::new(),
            replicasets: Cache::new(),
            pods: Cache::new(),
            statefulsets: Cache::new(),
            daemonsets: Cache::new(),
            revisions: Cache::new(),
            jobs: Cache::new(),
            cronjobs: Cache::new(),
            budgets: Cache::new(),
            nodes: Cache::new(),
            services: Cache::new(),
            slices: Cache::new(),
            endpoints: Cache::new(),
            configmaps: Cache::new(),
            secrets: Cache::new(),
            claims: Cache::new(),
            volumes: Cache::new(),
        }
    }

    fn start(&self, client: &kube::Client, stop: &Stop, tasks: &TaskTracker) {
        tasks.spawn(Arc::clone(&self.deployments).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.replicasets).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.pods).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.statefulsets).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.daemonsets).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.revisions).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.jobs).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.cronjobs).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.budgets).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.nodes).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.services).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.slices).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.endpoints).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.configmaps).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.secrets).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.claims).run(client.clone(), stop.clone()));
        tasks.spawn(Arc::clone(&self.volumes).run(client.clone(), stop.clone()));
    }

    /// Waits until every cache has seen its whole kind: a controller that starts earlier would act on too little.
    async fn ready(&self) {
        tokio::join!(
            self.deployments.ready(),
            self.replicasets.ready(),
            self.pods.ready(),
            self.statefulsets.ready(),
            self.daemonsets.ready(),
            self.revisions.ready(),
            self.jobs.ready(),
            self.cronjobs.ready(),
            self.budgets.ready(),
            self.nodes.ready(),
            self.services.ready(),
            self.slices.ready(),
            self.endpoints.ready(),
            self.configmaps.ready(),
            self.secrets.ready(),
            self.claims.ready(),
            self.volumes.ready(),
        );
    }
}

/// The SHA-256 of this binary, computed once per process and only when somebody asks.
#[derive(Clone, Copy)]
pub(crate) struct Digest;

impl Digest {
    pub(crate) async fn get(self) -> &'static str {
        static DIGEST: OnceCell<String> = OnceCell::const_new();
        DIGEST
            .get_or_init(|| async {
                let hashing = tokio::task::spawn_blocking(|| {
                    use sha2::Digest as _;
                    let mut hash = sha2::Sha256::new();
                    let read = std::fs::File::open("/proc/self/exe")
                        .and_then(|mut file| std::io::copy(&mut file, &mut Hashing(&mut hash)));
                    read.map(|_| hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>())
                });
                match hashing.await {
                    Ok(Ok(digest)) => digest,
                    _ => "unknown".to_owned(),
                }
            })
            .await
    }
}

struct Hashing<'a>(&'a mut sha2::Sha256);

impl std::io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        sha2::Digest::update(self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How a cluster is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    /// Added to every API call.
    pub(crate) slow: Duration,
    /// It holds what was recorded elsewhere: nothing runs in it, and nothing acts.
    pub(crate) recorded: bool,
}

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) shared: Arc<Shared>,
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) server: Server,
    tasks: TaskTracker,
    /// A cluster that is dropped ends too, if unobserved.
    _ends: AskOnDrop,
}

impl Cluster {
    /// # Flow
    ///
    /// 1. The API server, from its storage if there is any.
    /// 2. The watch caches, until each is complete.
    /// 3. The kubelet and the controllers, together.
    pub(crate) async fn start(
        spec: &LabCluster,
        index: usize,
        subnet: Subnet,
        folder: &Path,
        world: &Arc<World>,
        catalogue: &Catalogue,
        manner: Manner,
    ) -> Result<Self, Error> {
        let Manner { slow, recorded } = manner;
        let failed = |part: &'static str, reason: String| Error::Cluster { cluster: spec.name.clone(), part, reason };
        let stop = Stop::new();
        let tasks = TaskTracker::new();
        let public = subnet.api_server();
        let socket = |at| async move {
            world.listen(at).await.map_err(|e| failed("the API server's socket", format!("{at}: {e}")))
        };
        let listener = if slow.is_zero() {
            socket(public).await?
        } else {
            let real = subnet.undelayed_api_server();
            tasks.spawn(delay::run(socket(public).await?, real, slow, tasks.clone(), stop.clone()));
            socket(real).await?
        };
        // Virtual addresses that never have a socket, a range of its own for each cluster.
        let services = format!("10.{}.0.0/16", 16 + index % 224);
        let server = Server::builder()
            .data_dir(folder.join("api"))
            .listener(listener)
            .address((*public.ip()).into())
            .service_cidr(services)
            .allow_loopback_endpoints(true)
            .version_suffix("stolos-lab")
            .controllers(!recorded)
            .stop(&stop)
            .start()
            .await
            .map_err(|e| failed("the API server", e.to_string()))?;
        let client = server.client();
        let caches = Caches::new();
        caches.start(&client, &stop, &tasks);
        let (recorder, entries) = Recorder::new();
        tasks.spawn(events::write(entries, client.clone(), stop.clone()));
        let directories = Directories::default();
        let shared = Arc::new(Shared {
            name: spec.name.clone(),
            node: format!("{}-node", spec.name),
            region: spec.region.clone(),
            zone: spec.zone.clone(),
            subnet,
            folder: folder.to_owned(),
            world: Arc::clone(world),
            balancer: Balancer::new(world, &directories, &tasks, &stop),
            directories,
            client,
            ca: server.ca().to_owned(),
            caches,
            events: recorder,
            catalogue: catalogue.clone(),
            digest: Digest,
            killed: AtomicBool::new(false),
            stop: stop.clone(),
        });
        let ready = tokio::time::timeout(Duration::from_secs(30), shared.caches.ready()).await;
        if ready.is_err() {
            stop.ask();
            return Err(failed("the watch caches", "the API server did not list everything within 30 s".to_owned()));
        }
        look_up(&shared);
        let kubelet = Kubelet::new(&shared, &tasks);
        server.set_pod_runtime(Arc::new(Door(Arc::clone(&kubelet))));
        server.set_service_resolver(Arc::new(Resolver(Arc::clone(&shared))));
        tasks.spawn(keep_directory(Arc::clone(&shared)));
        if !recorded {
            tasks.spawn(Arc::clone(&kubelet).run());
            workload::start(&shared, &tasks);
        }
        let ends = AskOnDrop(stop);
        Ok(Self { shared, kubelet, server, tasks, _ends: ends })
    }

    /// As if the machine had lost power: nothing says goodbye.
    pub(crate) async fn kill(self) {
        self.shared.killed.store(true, Ordering::Release);
        self.stop().await;
    }

    /// Stops everything; what is in storage stays.
    pub(crate) async fn stop(self) {
        self.shared.stop.ask();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(3), self.tasks.wait()).await.is_err() {
            tracing::warn!(cluster = %self.shared.name, "parts of the cluster do not end");
        }
        if tokio::time::timeout(Duration::from_secs(5), self.server.stop()).await.is_err() {
            tracing::warn!(cluster = %self.shared.name, "the API server does not end");
        }
    }

    /// The kubeconfig of this cluster, with the address that others use.
    pub(crate) fn kubeconfig(&self, context: &str) -> serde_json::Value {
        let mut config = self.server.kubeconfig(context);
        config["clusters"][0]["cluster"]["server"] = format!("https://{}", self.shared.subnet.api_server()).into();
        config
    }

    /// The load-balancer addresses that Services have.
    pub(crate) fn balancers(&self) -> Vec<LoadBalancer> {
        let mut balancers = Vec::new();
        for service in self.shared.caches.services.list() {
            let ingress = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()?.ingress.clone());
            for ip in ingress.into_iter().flatten().filter_map(|i| i.ip) {
                let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
                let ports = ports.map(|p| BalancedPort { port: p.port as u16, socket: socket_port(p.port as u16) });
                balancers.push(LoadBalancer {
                    namespace: service.namespace().unwrap_or_default(),
                    service: service.name_any(),
                    address: ip,
                    ports: ports.collect(),
                });
            }
        }
        balancers
    }
}

/// A Service's load-balancer address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// The address.
    pub address: String,
    /// Its ports.
    pub ports: Vec<BalancedPort>,
}

/// A port of a load balancer, and where its socket is on this machine (ports below 1024 move up).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BalancedPort {
    /// As the Service has it.
    pub port: u16,
    /// As this machine has it.
    pub socket: u16,
}

/// Keeps the pods' view of Services as the API server has it.
async fn keep_directory(shared: Arc<Shared>) {
    let poke = Arc::new(Notify::new());
    shared.caches.services.subscribe(&poke);
    shared.caches.slices.subscribe(&poke);
    loop {
        look_up(&shared);
        tokio::select! {
            () = poke.notified() => {}
            () = shared.stop.asked() => return,
        }
    }
}

fn look_up(shared: &Shared) {
    let (services, slices) = (shared.caches.services.list(), shared.caches.slices.list());
    let directory = Directory::new(services.iter().map(AsRef::as_ref), slices.iter().map(AsRef::as_ref));
    shared.directories.put(directory);
}
