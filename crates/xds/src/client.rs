//! The proxy's side: one delta stream that is kept up, and what it has brought.
//!
//! [`Client::start`] gives a [`Handle`]: a watch of the [`Snapshot`] that the proxy now has, and a say in what it is
//! subscribed to. Every resource is judged by [`Client::check`] before it is taken; a bad one is refused by name, the
//! good ones of the same response are taken. What was taken stays while the control plane is away, and a new stream
//! says what is there already, so that only the difference comes.

pub(crate) mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use stolos_serve::{Net, Stop, because, net};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::envoy::config::cluster::v3::Cluster;
use crate::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use crate::envoy::config::core::v3::Node;
use crate::envoy::config::listener::v3::Listener;
use crate::envoy::config::listener::v3::filter::ConfigType;
use crate::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use crate::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::message::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use crate::version::{Resource, Snapshot};
use session::Session;

/// The largest response taken.
const RESPONSE_LIMIT: usize = 256 << 20;
/// How often the connection is probed, and how long an answer may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// How much of what was sent may be on its way: at 50 ms this is 80 MB/s.
const WINDOW: u32 = 4 << 20;
/// Requests written but not yet taken by the connection.
const QUEUE: usize = 16;

/// Makes a TLS configuration for the next connection: roots and certificates change under way.
pub type Tls = Arc<dyn Fn() -> io::Result<Arc<rustls::ClientConfig>> + Send + Sync>;
/// Says which names of which types are wanted, from what is there. Asked when a type has changed of which everything is
/// wanted.
pub type Follow = Arc<dyn Fn(&Snapshot) -> BTreeMap<String, BTreeSet<String>> + Send + Sync>;

/// gRPC metadata for the next stream.
pub type Metadata = Arc<dyn Fn() -> BoxFuture<'static, io::Result<MetadataMap>> + Send + Sync>;
/// Whether a resource (of a type URL) can be taken; the message of a refusal.
pub type Check = Arc<dyn Fn(&str, &Resource) -> Result<(), String> + Send + Sync>;

/// Where a control plane is, and how to reach it.
#[derive(Clone)]
pub struct Target {
    /// The network to dial in.
    pub net: Arc<dyn Net>,
    /// Its DNS name; also the name its certificate is checked for.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// TLS, offering ALPN `h2`; without, the connection is plaintext.
    pub tls: Option<Tls>,
    /// How long resolving, connecting and the handshakes may take together.
    pub timeout: Duration,
}

/// Why a control plane cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    /// It cannot be addressed.
    #[error("`{0}` is no host name")]
    Name(String),
    /// No connection.
    #[error("cannot connect to {0}")]
    Connect(String, #[source] tonic::transport::Error),
    /// No connection in time.
    #[error("cannot connect to {0} within {1:?}")]
    Timeout(String, Duration),
}

impl Target {
    /// Opens a connection for gRPC. It is not reopened when it breaks.
    ///
    /// # Errors
    ///
    /// [`Unreachable`].
    pub async fn connect(&self) -> Result<Channel, Unreachable> {
        let place = format!("{}:{}", self.host, self.port);
        let uri = |scheme: &str| -> Result<Uri, Unreachable> {
            format!("{scheme}://{place}").parse().map_err(|_| Unreachable::Name(place.clone()))
        };
        // The endpoint is plaintext to tonic, because TLS is ours; the requests say `https` nevertheless.
        let origin = uri(if self.tls.is_some() { "https" } else { "http" })?;
        let endpoint = Endpoint::from(uri("http")?)
            .origin(origin)
            .http2_keep_alive_interval(KEEPALIVE.0)
            .keep_alive_timeout(KEEPALIVE.1)
            .keep_alive_while_idle(true)
            // Fixed: an adaptive one asks for an echo of what it receives, and each is two more packets.
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let target = self.clone();
        let once = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let connector = tower::service_fn(move |_: Uri| {
            let (target, again) = (target.clone(), once.swap(true, std::sync::atomic::Ordering::SeqCst));
            async move {
                if again {
                    return Err(io::Error::new(io::ErrorKind::NotConnected, "the connection is used up"));
                }
                target.dial().await.map(TokioIo::new)
            }
        });
        match tokio::time::timeout(self.timeout, endpoint.connect_with_connector(connector)).await {
            Ok(connected) => connected.map_err(|error| Unreachable::Connect(place, error)),
            Err(_) => Err(Unreachable::Timeout(place, self.timeout)),
        }
    }

    /// A byte stream to the first address that answers.
    async fn dial(&self) -> io::Result<Box<dyn Bytes>> {
        let stream = net::reach(&*self.net, &self.host, self.port).await?;
        let Some(tls) = &self.tls else { return Ok(Box::new(stream)) };
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Box::new(TlsConnector::from(tls()?).connect(name, stream).await?))
    }
}

/// What a connection is made of.
trait Bytes: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static> Bytes for T {}

/// A discovery client, ready to start.
#[derive(Clone)]
pub struct Client {
    /// The control plane.
    pub target: Target,
    /// What the proxy says of itself, asked for at every new stream.
    pub node: Arc<dyn Fn() -> Node + Send + Sync>,
    /// gRPC metadata, asked for at every new stream: the token is renewed under way.
    pub metadata: Metadata,
    /// Types of which everything is wanted, in the order to ask.
    pub wildcards: Vec<String>,
    /// Which names are wanted because of what is there; [`references`] for a proxy.
    pub follow: Follow,
    /// What is taken and what is refused.
    pub check: Check,
    /// The wait before the second attempt, and the longest one.
    pub backoff: (Duration, Duration),
}

impl Client {
    /// A proxy's client: clusters and listeners, and the endpoints and routes these refer to. Takes everything.
    #[must_use]
    pub fn new(target: Target, node: Node) -> Self {
        Self {
            target,
            node: Arc::new(move || node.clone()),
            metadata: Arc::new(|| Box::pin(async { Ok(MetadataMap::new()) })),
            wildcards: vec![CLUSTER.to_owned(), LISTENER.to_owned()],
            follow: Arc::new(references),
            check: Arc::new(|_, _| Ok(())),
            backoff: (Duration::from_millis(100), Duration::from_secs(10)),
        }
    }

    /// Starts the client's task, which ends at `stop`.
    #[must_use]
    pub fn start(self, stop: Stop) -> Handle {
        let (snapshots, snapshot) = watch::channel(Arc::new(Snapshot::new("0")));
        let (links, link) = watch::channel(Link::Down { attempts: 0, why: "not yet tried".into() });
        let (wanted, wishes) = watch::channel(BTreeMap::new());
        let tasks = TaskTracker::new();
        tasks.spawn(async move {
            let session = Session::new(self.wildcards.clone());
            tokio::select! {
                () = stop.asked() => {}
                () = Running { client: self, session, snapshots, links, wishes }.run() => {}
            }
        });
        tasks.close();
        Handle { snapshot, link, wanted: Arc::new(wanted), tasks }
    }
}

/// A started client.
#[derive(Clone)]
pub struct Handle {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    link: watch::Receiver<Link>,
    wanted: Arc<watch::Sender<BTreeMap<String, BTreeSet<String>>>>,
    tasks: TaskTracker,
}

/// The state of the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Link {
    /// It is up: the control plane has answered on it.
    Up,
    /// It is down, after this many attempts since it was last up, and why.
    Down {
        /// How often it was tried.
        attempts: u32,
        /// The last attempt's error.
        why: String,
    },
}

impl Handle {
    /// What the proxy has. A type is there from its first answer on, even if that was empty; an unchanged type or
    /// resource is the same `Arc` as before.
    #[must_use]
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshot.clone()
    }

    /// Whether the control plane is there.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    /// Wants these names of a type, beside those that are followed; replaces what was wanted by this call before.
    pub fn want(&self, type_url: &str, names: impl IntoIterator<Item = impl Into<String>>) {
        let names: BTreeSet<String> = names.into_iter().map(Into::into).collect();
        self.wanted.send_modify(|wanted| {
            wanted.insert(type_url.to_owned(), names);
        });
    }

    /// Waits until the task has ended.
    pub async fn ended(&self) {
        self.tasks.wait().await;
    }
}

/// The names that clusters and listeners refer to: endpoints of EDS clusters, route configurations of HTTP filters.
#[must_use]
pub fn references(snapshot: &Snapshot) -> BTreeMap<String, BTreeSet<String>> {
    let clusters = snapshot.get(CLUSTER).into_iter().flat_map(|clusters| clusters.iter());
    let endpoints = clusters.filter_map(|cluster| endpoints_of(&cluster.message().ok()?)).collect();
    let listeners = snapshot.get(LISTENER).into_iter().flat_map(|listeners| listeners.iter());
    let routes = listeners.filter_map(|listener| listener.message().ok()).flat_map(|l| routes_of(&l)).collect();
    [(ENDPOINT.to_owned(), endpoints), (ROUTE.to_owned(), routes)].into()
}

fn endpoints_of(cluster: &Cluster) -> Option<String> {
    let eds = DiscoveryType::Eds as i32;
    if !matches!(cluster.cluster_discovery_type, Some(ClusterDiscoveryType::Type(of)) if of == eds) {
        return None;
    }
    let named = cluster.eds_cluster_config.as_ref().map(|eds| eds.service_name.as_str());
    Some(named.filter(|name| !name.is_empty()).unwrap_or(&cluster.name).to_owned())
}

fn routes_of(listener: &Listener) -> BTreeSet<String> {
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let filters = chains.flat_map(|chain| &chain.filters);
    let route = |filter: &crate::envoy::config::listener::v3::Filter| {
        let Some(ConfigType::TypedConfig(config)) = &filter.config_type else { return None };
        let manager: hcm::HttpConnectionManager = crate::unpack(config).ok()?;
        match manager.route_specifier? {
            hcm::http_connection_manager::RouteSpecifier::Rds(rds) => Some(rds.route_config_name),
            _ => None,
        }
    };
    filters.filter_map(route).collect()
}

/// The client's task.
struct Running {
    client: Client,
    session: Session,
    snapshots: watch::Sender<Arc<Snapshot>>,
    links: watch::Sender<Link>,
    wishes: watch::Receiver<BTreeMap<String, BTreeSet<String>>>,
}

impl Running {
    async fn run(mut self) {
        let mut attempts = 0;
        loop {
            let why = match self.stream().await {
                Ok(()) => "the control plane ended the stream".to_owned(),
                Err(error) => error,
            };
            // Whoever was up starts over with a short wait.
            attempts = if *self.links.borrow() == Link::Up { 1 } else { attempts + 1 };
            tracing::debug!(attempts, why, "no discovery stream");
            self.links.send_replace(Link::Down { attempts, why });
            tokio::time::sleep(pause(attempts, self.client.backoff, rand::random())).await;
        }
    }

    /// One stream, to its end.
    async fn stream(&mut self) -> Result<(), String> {
        let metadata = (self.client.metadata)().await.map_err(|error| format!("cannot prepare a stream: {error}"))?;
        let channel = self.client.target.connect().await.map_err(|error| because(&error))?;
        let mut discovery = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(RESPONSE_LIMIT);

        let (requests, queue) = mpsc::channel(QUEUE);
        let queue = futures::stream::unfold(queue, |mut queue| async move { Some((queue.recv().await?, queue)) });
        let mut request = tonic::Request::new(queue);
        *request.metadata_mut() = metadata;
        self.session.want(&self.wishes.borrow_and_update().clone(), &(self.client.follow)(self.session.snapshot()));
        self.session.open((self.client.node)());

        // A server may answer its headers only with its first response, so the first requests go out beside the call.
        let opening = discovery.delta_aggregated_resources(request);
        tokio::pin!(opening);
        let mut responses = loop {
            tokio::select! {
                opened = &mut opening => break opened.map_err(|status| say(&status))?.into_inner(),
                permit = requests.reserve(), if self.session.has_request() => {
                    if let (Ok(permit), Some(request)) = (permit, self.session.request()) {
                        permit.send(request);
                    }
                }
            }
        };
        loop {
            tokio::select! {
                response = responses.message(), if !self.session.is_congested() => {
                    let Some(response) = response.map_err(|status| say(&status))? else { return Ok(()) };
                    self.links.send_if_modified(|link| std::mem::replace(link, Link::Up) != Link::Up);
                    let check = Arc::clone(&self.client.check);
                    // What is asked for by name refers to nothing: an endpoint's change has no consequences.
                    let refers = self.client.wildcards.contains(&response.type_url);
                    if self.session.response(response, &*check) {
                        if refers {
                            let follow = (self.client.follow)(self.session.snapshot());
                            self.session.want(&self.wishes.borrow().clone(), &follow);
                        }
                        self.snapshots.send_replace(Arc::new(self.session.snapshot().clone()));
                    }
                }
                permit = requests.reserve(), if self.session.has_request() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(request) = self.session.request() {
                        permit.send(request);
                    }
                }
                Ok(()) = self.wishes.changed() => {
                    let wishes = self.wishes.borrow_and_update().clone();
                    let follow = (self.client.follow)(self.session.snapshot());
                    if self.session.want(&wishes, &follow) {
                        self.snapshots.send_replace(Arc::new(self.session.snapshot().clone()));
                    }
                }
            }
        }
    }
}

/// The wait before the next attempt: doubling, up to a limit, of which a random part between half and all is waited.
#[must_use]
pub fn pause(attempts: u32, (first, longest): (Duration, Duration), random: f64) -> Duration {
    let doubled = first.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    doubled.min(longest).mul_f64(0.5 + random / 2.0)
}

fn say(status: &tonic::Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_and_are_bounded() {
        let backoff = (Duration::from_millis(100), Duration::from_secs(10));
        for (attempts, random, millis) in [(1, 0.0, 50), (1, 1.0, 100), (3, 1.0, 400), (40, 1.0, 10_000)] {
            assert_eq!(pause(attempts, backoff, random), Duration::from_millis(millis), "{attempts} {random}");
        }
    }

    #[test]
    fn references_are_followed() {
        let rds = hcm::Rds { route_config_name: "80".into(), ..Default::default() };
        let manager = hcm::HttpConnectionManager {
            route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)),
            ..Default::default()
        };
        let filter = crate::envoy::config::listener::v3::Filter {
            name: "http".into(),
            config_type: Some(ConfigType::TypedConfig(crate::pack(&manager))),
        };
        let chain = crate::envoy::config::listener::v3::FilterChain { filters: vec![filter], ..Default::default() };
        let listener = Listener { name: "l".into(), filter_chains: vec![chain], ..Default::default() };
        let eds = ClusterDiscoveryType::Type(DiscoveryType::Eds as i32);
        let clusters = [
            Cluster { name: "eds".into(), cluster_discovery_type: Some(eds), ..Default::default() },
            Cluster { name: "static".into(), ..Default::default() },
        ];
        let snapshot = Snapshot::new("1")
            .with(CLUSTER, crate::Resources::of(&clusters))
            .with(LISTENER, crate::Resources::of([&listener]));
        let wanted = references(&snapshot);
        assert_eq!(wanted[ENDPOINT], ["eds".to_owned()].into());
        assert_eq!(wanted[ROUTE], ["80".to_owned()].into());
    }
}
