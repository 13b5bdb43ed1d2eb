//! The small control plane: watches clusters, translates them for proxies, and signs workload identities.
//!
//! It reads Istio's API (the kinds listed at [`policy`]) and Kubernetes' own, in its cluster and in every cluster it
//! has a remote secret of; and it sends proxies what Istio's control plane would send. It never writes to a cluster,
//! but for the trust bundle, its webhook's CA (both also in remote clusters that name it as theirs) and what it has to
//! say about objects it cannot act on.
//!
//! Look: `state` watches and keeps one picture, a [`model::World`]. Decide: [`translate`], pure. Do: `push`, `sign`,
//! `inject`. Start at [`run`].

mod debug;
mod inject;
mod metrics;
pub mod model;
pub mod policy;
mod push;
pub mod registry;
pub mod remote;
mod root_cert;
pub mod settings;
mod sign;
pub mod state;
mod status;
pub mod translate;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use stolos_k8s::istio;
use stolos_serve::listen::{self, Peer, Settings};
use stolos_serve::{Container, Listener, Stop};
use stolos_xds::istio::v1::auth::istio_certificate_service_server::IstioCertificateServiceServer;
use stolos_xds::server::{Server, per_connection};
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

pub use inject::{Values, answer, inject};
pub use push::Done;
pub use state::feed::Feed;

/// Why the control plane cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not told which cluster it is in.
    #[error("CLUSTER_ID is not set")]
    NoCluster,
    /// It cannot reach its own cluster.
    #[error("cannot reach the API server")]
    Cluster(#[from] stolos_cluster::Error),
    /// There is nothing to sign with.
    #[error(
        "Secret `cacerts` is not mounted at /etc/cacerts, or lacks ca-cert.pem, ca-key.pem, cert-chain.pem or root-cert.pem"
    )]
    NoAuthority,
    /// What there is to sign with is of no use.
    #[error("Secret `cacerts` is refused: {0}")]
    Authority(String),
    /// A port cannot be opened.
    #[error("cannot listen on port {port}")]
    Listen {
        /// The port.
        port: u16,
        /// Why not.
        source: std::io::Error,
    },
}

/// How this control plane is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its cluster's ID.
    pub cluster: String,
    /// The mesh's ID.
    pub mesh: String,
    /// The trust domain, unless the mesh's settings say another.
    pub trust_domain: String,
    /// Its namespace: where the mesh's own objects are.
    pub namespace: String,
    /// Its revision.
    pub revision: String,
    /// The network of its proxies, if neither the injector's values nor the namespace's label say it.
    pub network: Option<String>,
    /// Its pod.
    pub pod: String,
    /// How long a remote cluster may take before start-up goes on without it.
    pub remote_timeout: Duration,
    /// Whether it serves clusters without a control plane of their own (`EXTERNAL_ISTIOD`).
    pub external: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster: String::new(),
            mesh: String::new(),
            trust_domain: istio::DEFAULT_DOMAIN.to_owned(),
            namespace: istio::SYSTEM_NAMESPACE.to_owned(),
            revision: istio::DEFAULT_REVISION.to_owned(),
            network: None,
            pod: istio::ISTIOD.to_owned(),
            remote_timeout: Duration::from_secs(30),
            external: false,
        }
    }
}

impl Config {
    /// From the container's environment.
    ///
    /// # Errors
    ///
    /// When it does not say which cluster this is.
    pub fn of(container: &Container) -> Result<Self, Error> {
        let default = Self::default();
        let or = |name: &str, default: String| container.var(name).map_or(default, str::to_owned);
        let timeout = container.var("PILOT_REMOTE_CLUSTER_TIMEOUT").and_then(policy::duration);
        Ok(Self {
            cluster: container.var("CLUSTER_ID").ok_or(Error::NoCluster)?.to_owned(),
            mesh: or("MESH_ID", default.mesh),
            trust_domain: or("TRUST_DOMAIN", default.trust_domain),
            namespace: or("POD_NAMESPACE", default.namespace),
            revision: or("REVISION", default.revision),
            network: container.var("NETWORK").map(str::to_owned),
            pod: or("POD_NAME", default.pod),
            remote_timeout: timeout.unwrap_or(default.remote_timeout),
            external: container.var("EXTERNAL_ISTIOD") == Some("true"),
        })
    }
}

/// Runs the control plane of the cluster that `container` is in, until `stop`.
///
/// # Errors
///
/// When it cannot start: no cluster, no authority, no ports.
pub async fn run(container: Container, stop: Stop) -> Result<(), Error> {
    let kube = stolos_cluster::in_cluster(&container)?;
    let client = stolos_cluster::client(kube, Arc::clone(&container.net))?;
    run_with(container, client, stop).await
}

/// As [`run`], with a client for the own cluster.
///
/// # Errors
///
/// As [`run`].
pub async fn run_with(container: Container, client: kube::Client, stop: Stop) -> Result<(), Error> {
    serve(container, client, stop, None).await
}

/// As [`run_with`], with these remote clusters, of which everything is told instead of watched: `begun` is handed the
/// [`Feed`] once proxies are served. For measurements; the own cluster's API server is still asked whose tokens are.
///
/// # Errors
///
/// As [`run`].
pub async fn run_told(
    container: Container,
    client: kube::Client,
    clusters: &[&str],
    stop: Stop,
    begun: impl FnOnce(Feed) + Send,
) -> Result<(), Error> {
    serve(container, client, stop, Some(Teller { clusters, begun: Box::new(begun) })).await
}

/// Who tells what there is, where nobody watches.
struct Teller<'a> {
    clusters: &'a [&'a str],
    begun: Box<dyn FnOnce(Feed) + Send + 'a>,
}

async fn serve(
    container: Container,
    client: kube::Client,
    stop: Stop,
    teller: Option<Teller<'_>>,
) -> Result<(), Error> {
    let config = Config::of(&container)?;
    let trust = sign::Trust::load(&container, &config, SystemTime::now())?;
    let ports = Ports::bind(&container).await?;
    container.output.line(format!(
        "stolos control {}, a small control plane that reads Istio's API: cluster {}, mesh {}",
        env!("CARGO_PKG_VERSION"),
        config.cluster,
        config.mesh
    ));

    // Whatever way this ends, everything it started ends with it.
    let stop = stop.child();
    let _guard = Guard(stop.clone());
    let tasks = TaskTracker::new();
    let metrics = Arc::new(metrics::Metrics::default());
    let net = Arc::clone(&container.net);
    let told =
        teller.map(|teller| (state::feed::start(&config, teller.clusters, net, stop.clone(), &tasks), teller.begun));
    let state = match &told {
        Some((told, _)) => told.state.clone(),
        None => state::start(&config, client.clone(), Arc::clone(&container.net), stop.clone(), &tasks),
    };
    let authenticator = Arc::new(sign::Authenticator::new(client.clone(), &config.cluster, state.clients.clone()));
    let pusher = push::Pusher::new(state.clone(), Arc::clone(&authenticator), Arc::clone(&metrics));
    let server = Server::new(Arc::clone(&pusher), stop.clone());
    let signer = sign::CertificateService {
        authenticator,
        trust: Arc::clone(&trust),
        state: state.clone(),
        metrics: Arc::clone(&metrics),
    };

    tasks.spawn(Arc::clone(&pusher).run(stop.clone()));
    tasks.spawn(Arc::clone(&trust).follow(container.clone(), config.clone(), stop.clone()));
    tasks.spawn(root_cert::publish(client.clone(), config.clone(), state.clone(), Arc::clone(&trust), stop.clone()));
    tasks.spawn(status::report(client, config.clone(), state.clone(), stop.clone()));

    let tls = Settings {
        tls: Some(Arc::new({
            let trust = Arc::clone(&trust);
            move || trust.serving()
        })),
        ..Settings::default()
    };
    let grpc = Routes::new(server.service()).add_service(IstioCertificateServiceServer::new(signer)).prepare();
    tasks.spawn(listen::http(ports.xds, tls.clone(), stop.clone(), move |peer: Peer| {
        per_connection(grpc.clone(), peer)
    }));
    let webhook = inject::webhook(config.clone(), state.clone(), Arc::clone(&metrics));
    tasks.spawn(listen::http(ports.webhook, tls, stop.clone(), move |_| {
        hyper_util::service::TowerToHyperService::new(webhook.clone())
    }));
    if let Some((told, begun)) = told {
        begun(told.feed(pusher.done()));
    }
    let pages = debug::pages(debug::Pages { state: state.clone(), pusher, server: server.clone(), metrics });
    for listener in [ports.debug, ports.monitoring] {
        let pages = pages.clone();
        tasks.spawn(listen::http(listener, Settings::default(), stop.clone(), move |_| {
            hyper_util::service::TowerToHyperService::new(pages.clone())
        }));
    }

    tokio::select! {
        () = state.ready() => container.output.line(format!("ready: {}", summary(&state))),
        () = stop.asked() => {}
    }
    stop.asked().await;
    tasks.close();
    tasks.wait().await;
    server.ended().await;
    Ok(())
}

fn summary(state: &state::State) -> String {
    let report = state.reports.borrow();
    let clusters: Vec<_> = report.clusters.iter().map(|c| format!("{} {}", c.id, c.status)).collect();
    clusters.join(", ")
}

/// Asks for the end when it is dropped.
struct Guard(Stop);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.ask();
    }
}

struct Ports {
    xds: Listener,
    webhook: Listener,
    debug: Listener,
    monitoring: Listener,
}

impl Ports {
    async fn bind(container: &Container) -> Result<Self, Error> {
        let bind =
            |port: u16| async move { container.net.bind(port).await.map_err(|source| Error::Listen { port, source }) };
        Ok(Self {
            xds: bind(istio::XDS_PORT).await?,
            webhook: bind(istio::WEBHOOK_PORT).await?,
            debug: bind(istio::DEBUG_PORT).await?,
            monitoring: bind(istio::MONITORING_PORT).await?,
        })
    }
}
