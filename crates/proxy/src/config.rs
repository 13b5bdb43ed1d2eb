//! What the proxy does, compiled from xDS: immutable, shared, replaced as a whole.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use crate::balance::{Candidate, Endpoints, Listed, Policy};
use crate::matching::Table;
use crate::outlier::{self, Health, Outcome};
use crate::pool::Idle;
use crate::rbac::Rules;
use crate::tls::{Downstream, Upstream};
use crate::{log, metrics, route};

/// One moment's configuration. Held for one decision, then let go; a connection keeps only its chain.
#[derive(Default)]
pub(crate) struct Config {
    /// By name.
    pub(crate) listeners: BTreeMap<String, Arc<Listener>>,
    /// By name.
    pub(crate) clusters: HashMap<String, Arc<Cluster>>,
    /// Listeners that take over redirected connections, by original destination; `None` is any address.
    pub(crate) redirected: HashMap<(Option<IpAddr>, u16), Arc<Listener>>,
}

impl Config {
    /// The listener for connections that meant to go to `destination`.
    pub(crate) fn redirected(&self, destination: SocketAddr) -> Option<&Arc<Listener>> {
        let exact = (Some(destination.ip()), destination.port());
        self.redirected.get(&exact).or_else(|| self.redirected.get(&(None, destination.port())))
    }
}

/// Where connections arrive, and how they are told apart.
pub(crate) struct Listener {
    pub(crate) name: String,
    /// `None` for the unspecified address.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
    /// Whether it has a socket; without one it gets connections from a listener with `use_original_dst`.
    pub(crate) bind: bool,
    pub(crate) use_original_dst: bool,
    /// Where the original destination is read.
    pub(crate) origin: Origin,
    pub(crate) inspect_tls: Inspect,
    pub(crate) inspect_http: Inspect,
    /// How long inspection may take.
    pub(crate) patience: Duration,
    /// What happens then: go on with what is known, or close.
    pub(crate) lenient: bool,
    pub(crate) chains: Table<Arc<Chain>>,
    /// Logs connections no chain took.
    pub(crate) log: Vec<Arc<log::Log>>,
}

/// Whether first bytes are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Inspect {
    /// They are not.
    Nothing,
    /// They are, except of connections to these ports.
    Except(Vec<Range<u16>>),
}

impl Inspect {
    /// Whether the first bytes of a connection to `port` are looked at.
    pub(crate) fn wants(&self, port: u16) -> bool {
        matches!(self, Self::Except(ranges) if !ranges.iter().any(|range| range.contains(&port)))
    }
}

/// Where a listener learns a connection's original destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It is where it arrived.
    Here,
    /// A PROXY v2 header says it. `optional`: a connection without one is taken as it is.
    Header {
        /// Whether a connection without the header is taken as it is.
        optional: bool,
    },
    /// The kernel remembers it (`SO_ORIGINAL_DST`).
    Kernel,
}

/// What becomes of the connections that match.
pub(crate) struct Chain {
    pub(crate) name: String,
    pub(crate) tls: Option<Arc<Downstream>>,
    /// Who may connect, filter by filter.
    pub(crate) access: Vec<Rules>,
    pub(crate) action: Action,
}

/// The last filter of a chain.
pub(crate) enum Action {
    /// Requests, one by one.
    Http(Arc<Http>),
    /// The connection as a whole.
    Tcp(Arc<Tcp>),
    /// Nothing passes: policy says so, or the chain asks for something this proxy cannot do and must not skip.
    Close(String),
}

/// On whose behalf a chain works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// For the workload's clients.
    Inbound,
    /// For the workload as a client, or in between.
    Outbound,
}

/// How requests are treated.
pub(crate) struct Http {
    pub(crate) side: Side,
    pub(crate) routes: Arc<Routes>,
    pub(crate) forward_cert: ForwardCert,
    pub(crate) log: Vec<Arc<log::Log>>,
    /// The headers `log` shows.
    pub(crate) logged: log::Headers,
    pub(crate) upgrades: Vec<String>,
    pub(crate) request_id: bool,
    /// Whether dot segments are resolved before routing.
    pub(crate) normalize: bool,
    /// Whether `//` is one slash.
    pub(crate) merge_slashes: bool,
    /// Whether clients are outside the mesh: they are told apart by their address, and not believed about it.
    pub(crate) edge: bool,
    /// Who may ask for what, filter by filter.
    pub(crate) access: Vec<Rules>,
    /// A stream on which nothing moves ends after this; zero is never.
    pub(crate) idle: Duration,
    /// How many requests one HTTP/2 connection has at once.
    pub(crate) streams: u32,
    /// The most that the headers of a request may take.
    pub(crate) largest_head: u32,
}

/// What is done with `x-forwarded-client-cert`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForwardCert {
    /// Removed.
    Sanitize,
    /// Left when the client showed a certificate, else removed.
    Forward,
    /// This client appended.
    Append,
    /// Replaced by this client.
    Set,
    /// Left.
    Always,
}

/// A route table that may be replaced, or not have arrived yet.
#[derive(Default)]
pub(crate) struct Routes {
    pub(crate) table: ArcSwapOption<route::Table>,
}

/// How whole connections are treated.
pub(crate) struct Tcp {
    pub(crate) side: Side,
    /// Names and weights.
    pub(crate) clusters: Vec<(String, u32)>,
    pub(crate) log: Vec<Arc<log::Log>>,
    /// Whether `log` shows the address that upstream connections come from.
    pub(crate) local_logged: bool,
    pub(crate) idle: Duration,
    /// How often a connection is tried; unsaid, a few times, each on another host.
    pub(crate) attempts: Option<u32>,
}

/// A set of hosts that serve the same thing, and how they are reached.
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) connect_timeout: Duration,
    pub(crate) policy: Policy,
    pub(crate) panic_percent: u32,
    pub(crate) by_locality: bool,
    pub(crate) outlier: Option<outlier::Settings>,
    pub(crate) protocol: Protocol,
    /// First match of an endpoint's metadata, else the default.
    pub(crate) transport_matches: Vec<(BTreeMap<String, String>, Transport)>,
    pub(crate) transport: Transport,
    pub(crate) max_connections: u32,
    /// How many requests one connection may serve; none said is no limit.
    pub(crate) requests_per_connection: Option<u32>,
    pub(crate) service: Service,

    pub(crate) endpoints: ArcSwapOption<Endpoints<Host>>,
    /// Told when `endpoints` is set.
    pub(crate) arrived: Notify,
    /// When the last ejection of any host ends; before that, records must be looked at.
    pub(crate) ejected_until: AtomicU64,
    /// How many upstream connections there are.
    pub(crate) connections: AtomicU32,
    /// When names were last looked up.
    pub(crate) resolved_at: AtomicU64,
    /// Hosts that came by original destination.
    pub(crate) original: Mutex<HashMap<SocketAddr, Arc<Host>>>,
}

/// Where a cluster's hosts come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Listed in the cluster itself.
    Static,
    /// From EDS, under this name.
    Eds(String),
    /// Wherever the connection meant to go.
    OriginalDst,
    /// From DNS: host, port, weight.
    Dns(Vec<(String, u16, u32)>),
}

/// What a cluster's hosts speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// What the client spoke.
    Same,
}

/// How a connection to a host is secured.
#[derive(Clone)]
pub(crate) enum Transport {
    /// Not at all.
    Plain,
    /// With TLS.
    Tls(Arc<Upstream>),
}

/// The service a cluster stands for, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) host: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) namespace: Arc<str>,
}

/// One address of a cluster, with what is known and kept of it.
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    /// The address as text, for logs.
    pub(crate) text: Arc<str>,
    pub(crate) transport: Transport,
    /// The index in `transport_matches` the transport came from; hosts are kept only while it stays.
    pub(crate) transport_match: Option<usize>,
    pub(crate) health: Arc<Health>,
    pub(crate) active: AtomicU32,
    pub(crate) workload: metrics::Workload,
    pub(crate) idle: Mutex<VecDeque<Idle>>,
    /// Set when the host has left the cluster: connections are no longer kept.
    pub(crate) retired: AtomicBool,
    /// When it last gave a sign of life, and when a connection last failed, in the proxy's own milliseconds.
    pub(crate) alive_at: AtomicU64,
    pub(crate) dead_at: AtomicU64,
    /// Whether somebody is finding out.
    pub(crate) probing: AtomicBool,
    pub(crate) series: metrics::Cache,
    /// Workloads that answered under this address: behind a gateway there are several.
    pub(crate) peers: metrics::Peers,
    pub(crate) tcp_series: OnceLock<metrics::Connections>,
}

impl Host {
    pub(crate) fn new(address: SocketAddr, transport: Transport) -> Self {
        Self {
            address,
            text: address.to_string().into(),
            transport,
            transport_match: None,
            health: Arc::default(),
            active: AtomicU32::new(0),
            workload: metrics::Workload::default(),
            idle: Mutex::default(),
            retired: AtomicBool::new(false),
            alive_at: AtomicU64::new(0),
            dead_at: AtomicU64::new(0),
            probing: AtomicBool::new(false),
            series: metrics::Cache::default(),
            peers: metrics::Peers::default(),
            tcp_series: OnceLock::new(),
        }
    }

    pub(crate) fn idle(&self) -> MutexGuard<'_, VecDeque<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether connections to it are Istio's mutual TLS: its proxy is one of ours.
    pub(crate) fn is_in_mesh(&self) -> bool {
        matches!(&self.transport, Transport::Tls(tls) if tls.istio)
    }

    /// Closes what is idle, and lets nothing become idle again.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        let idle = std::mem::take(&mut *self.idle());
        drop(idle);
    }
}

impl Candidate for Host {
    fn health(&self) -> &Health {
        &self.health
    }

    fn active(&self) -> &AtomicU32 {
        &self.active
    }
}

impl Cluster {
    /// Chooses a host, not one of `tried` if there is another. For a cluster of kind original destination that is
    /// `original`.
    pub(crate) fn pick(&self, original: Option<SocketAddr>, now: u64, tried: &[Arc<Host>]) -> Option<Arc<Host>> {
        if self.kind == Kind::OriginalDst {
            return original.map(|address| self.original_host(address));
        }
        let ejections = self.ejected_until.load(Ordering::Relaxed) > now;
        self.endpoints.load().as_ref()?.pick(self.policy, now, ejections, tried, &mut rand::random::<u64>)
    }

    /// Whether nothing has said yet which hosts there are.
    pub(crate) fn is_warming(&self) -> bool {
        matches!(self.kind, Kind::Eds(_) | Kind::Dns(_)) && self.endpoints.load().is_none()
    }

    /// Notes how an exchange with `host` ended, and ejects it if that was once too often.
    pub(crate) fn note(&self, host: &Host, outcome: Outcome, now: u64) {
        let Some(settings) = &self.outlier else { return };
        if !host.health.note(outcome, settings) || host.health.is_ejected(now) {
            return;
        }
        let endpoints = self.endpoints.load();
        let Some(endpoints) = endpoints.as_ref() else { return };
        let (mut ejected, mut total) = (0, 0);
        for host in endpoints.hosts() {
            total += 1;
            ejected += usize::from(host.health.is_ejected(now));
        }
        if outlier::may_eject(ejected, total, settings) {
            let until = host.health.eject(now, settings);
            self.ejected_until.fetch_max(until, Ordering::Relaxed);
            tracing::info!(cluster = self.name, host = %host.address, ms = until - now, "host ejected");
        }
    }

    fn original_host(&self, address: SocketAddr) -> Arc<Host> {
        const MOST: usize = 1024;
        let mut hosts = self.original.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = hosts.get(&address) {
            return Arc::clone(host);
        }
        if hosts.len() >= MOST {
            // Those in use live on in whoever uses them.
            hosts.retain(|_, host| host.active.load(Ordering::Relaxed) > 0);
        }
        let host = Arc::new(Host::new(address, self.transport.clone()));
        hosts.insert(address, Arc::clone(&host));
        host
    }

    /// Whether names were looked up so long ago that it is time again.
    pub(crate) fn names_are_old(&self, now: u64) -> bool {
        const REFRESH_MS: u64 = 5_000;
        now.saturating_sub(self.resolved_at.load(Ordering::Relaxed)) >= REFRESH_MS
    }

    /// Takes the addresses DNS gave; hosts already known go on as they are.
    pub(crate) fn set_resolved(&self, found: &[(SocketAddr, u32)], now: u64) {
        let old = self.hosts();
        let listed = found.iter().map(|(address, weight)| {
            let known = old.iter().find(|host| host.address == *address).map(Arc::clone);
            let host = known.unwrap_or_else(|| Arc::new(Host::new(*address, self.transport.clone())));
            Listed { host, weight: *weight, healthy: true, priority: 0 }
        });
        self.endpoints.store(Some(Arc::new(Endpoints::new(listed.collect(), self.panic_percent))));
        self.resolved_at.store(now, Ordering::Relaxed);
        old.iter()
            .filter(|host| !found.iter().any(|(address, _)| *address == host.address))
            .for_each(|host| host.retire());
    }

    /// All hosts there are now.
    pub(crate) fn hosts(&self) -> Vec<Arc<Host>> {
        let original = self.original.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = self.endpoints.load();
        original.values().chain(listed.iter().flat_map(|e| e.hosts())).map(Arc::clone).collect()
    }

    /// The transport of an endpoint with this metadata.
    pub(crate) fn transport_for(&self, metadata: &BTreeMap<String, String>) -> (Transport, Option<usize>) {
        let fits =
            |wanted: &BTreeMap<String, String>| wanted.iter().all(|(key, value)| metadata.get(key) == Some(value));
        match self.transport_matches.iter().position(|(wanted, _)| fits(wanted)) {
            Some(at) => (self.transport_matches[at].1.clone(), Some(at)),
            None => (self.transport.clone(), None),
        }
    }
}
