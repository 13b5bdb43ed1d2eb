//! What the control plane knows, as plain values: services, endpoints, gateways, policies, proxies.
//!
//! A [`World`] is one immutable picture of all clusters. The parts of it that did not change between two pictures are
//! the same `Arc`s.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use stolos_k8s::istio;

use crate::policy::Policies;

/// Labels, or annotations.
pub type Labels = BTreeMap<String, String>;

/// Where something runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    /// The region.
    pub region: String,
    /// The zone.
    pub zone: String,
    /// The subzone.
    pub subzone: String,
}

impl Locality {
    /// Reads `region/zone/subzone`, of which any tail may be missing.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), subzone: next() }
    }

    /// Reads the value of a pod's locality label, in which dots may stand for slashes.
    #[must_use]
    pub fn parse_label(text: &str) -> Self {
        if text.contains('/') { Self::parse(text) } else { Self::parse(&text.replace('.', "/")) }
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.region.is_empty()
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.region)?;
        if !self.zone.is_empty() || !self.subzone.is_empty() {
            write!(f, "/{}", self.zone)?;
        }
        if !self.subzone.is_empty() {
            write!(f, "/{}", self.subzone)?;
        }
        Ok(())
    }
}

/// What a service port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2, gRPC included.
    Http2,
    /// Bytes.
    Tcp,
    /// TLS of the application's own.
    Tls,
    /// Not said: found out per connection.
    Auto,
    /// Datagrams: not carried.
    Udp,
}

impl Protocol {
    /// Whether the port is declared to speak HTTP.
    #[must_use]
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }

    /// The protocol of a Service port, by `appProtocol`, else by the prefix of its name.
    #[must_use]
    pub fn of(transport: &str, app_protocol: Option<&str>, name: &str, number: u16) -> Self {
        if transport.eq_ignore_ascii_case("udp") {
            return Self::Udp;
        }
        let by_name = |name: &str| match name.to_ascii_lowercase().as_str() {
            "http" => Some(Self::Http),
            "http2" | "grpc" | "grpc-web" => Some(Self::Http2),
            "tcp" | "mongo" | "mysql" | "redis" => Some(Self::Tcp),
            "https" | "tls" => Some(Self::Tls),
            "udp" => Some(Self::Udp),
            _ => None,
        };
        // As in Istio, what `appProtocol` says stands alone: the name is not looked at beside it.
        match app_protocol {
            Some("kubernetes.io/h2c") => return Self::Http2,
            Some("kubernetes.io/ws") => return Self::Http,
            Some("kubernetes.io/wss") => return Self::Tls,
            _ => {}
        }
        let name = app_protocol.unwrap_or(name);
        let web = name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("grpc-web"));
        let prefix = if web { "grpc-web" } else { name.split('-').next().unwrap_or(name) };
        match by_name(prefix) {
            Some(known) => known,
            // Ports whose servers speak first: sniffing would wait for ever.
            None if matches!(number, 25 | 53 | 3306 | 27017) => Self::Tcp,
            None => Self::Auto,
        }
    }
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Port {
    /// Its name; the empty name is one.
    pub name: String,
    /// Its number.
    pub number: u16,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it leads.
    #[serde(skip)]
    pub target: Target,
}

/// The port of the workload behind a service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This number.
    Number(u16),
    /// The container port of this name.
    Named(String),
}

/// How a service is reached.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Resolution {
    /// Its endpoints are known: load balancing by the client.
    ClientSide,
    /// Headless: wherever the client dials.
    Passthrough,
    /// Another name for that host.
    Alias(String),
}

/// A service; read in one cluster, or merged over all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its full host name.
    pub host: Arc<str>,
    /// Its ports.
    pub ports: Vec<Port>,
    /// How it is reached.
    pub resolution: Resolution,
    /// Its addresses in each cluster.
    pub vips: BTreeMap<Arc<str>, Vec<IpAddr>>,
    /// Its address where the cluster has none of its own: that of the first cluster that has the service.
    pub vip: Option<IpAddr>,
    /// The identities of the workloads behind it.
    pub accounts: BTreeSet<String>,
    /// Its labels.
    pub labels: Labels,
    /// The pods behind it; empty selects none.
    pub selector: Labels,
    /// Seconds since 1970.
    pub created: i64,
    /// Namespaces that see it: `*`, `.`, `~` or names. Empty is `*`.
    pub export_to: BTreeSet<String>,
    /// Only endpoints on the client's node.
    pub node_local: bool,
    /// Names resolve to pods that are not ready, too.
    pub publish_not_ready: bool,
    /// `PreferClose` and its kin.
    pub distribution: Option<Distribution>,
}

impl Service {
    /// The port of this number.
    #[must_use]
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Its addresses for a proxy in `cluster`.
    pub fn vips_for<'a>(&'a self, cluster: &str) -> impl Iterator<Item = IpAddr> + 'a {
        let own = self.vips.get(cluster).map(Vec::as_slice).unwrap_or_default();
        own.iter().copied().chain(self.vip.filter(|_| own.is_empty()))
    }

    /// Whether workloads of `namespace` see it.
    #[must_use]
    pub fn is_visible_in(&self, namespace: &str) -> bool {
        exported(&self.export_to, &self.namespace, namespace)
    }

    /// Whether this service has the label that keeps draining endpoints.
    #[must_use]
    pub fn keeps_draining(&self) -> bool {
        self.labels.contains_key("istio.io/persistent-session")
            || self.labels.contains_key("istio.io/persistent-session-header")
    }
}

/// Whether something of `own` namespace, exported to `to`, is seen in `namespace`.
#[must_use]
pub fn exported(to: &BTreeSet<String>, own: &str, namespace: &str) -> bool {
    to.is_empty()
        || to.iter().any(|to| match to.as_str() {
            "*" => true,
            "." => own == namespace,
            "~" => false,
            name => name == namespace,
        })
}

/// Preference of a service for endpoints close by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Same zone.
    SameZone,
    /// Same node.
    SameNode,
}

/// How an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub enum Health {
    /// Ready.
    Healthy,
    /// Not ready.
    Unhealthy,
    /// Going, and still serving sessions.
    Draining,
    /// Going.
    Terminating,
}

/// One address and port of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: Option<IpAddr>,
    /// Its port.
    pub port: u16,
    /// The service port's name.
    pub port_name: String,
    /// The cluster it runs in.
    pub cluster: Arc<str>,
    /// The network it is on; empty is unknown.
    pub network: Arc<str>,
    /// Where it runs.
    pub locality: Locality,
    /// Its SPIFFE identity; empty is none.
    pub identity: String,
    /// Whether it takes mTLS.
    pub tls: bool,
    /// Its share.
    pub weight: u32,
    /// Its labels, with those that are derived.
    pub labels: Arc<Labels>,
    /// How it is.
    pub health: Health,
    /// Its workload.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// Its node.
    pub node: String,
    /// The pod's host name and subdomain, if it has them.
    pub hostname: Option<(String, String)>,
}

/// A way into a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Gateway {
    /// Where to dial.
    pub address: IpAddr,
    /// The port for mTLS that is passed through.
    pub port: u16,
    /// The network it leads into.
    pub network: Arc<str>,
    /// The cluster it is in; empty: not known to be in any.
    pub cluster: Arc<str>,
}

/// The gateways of all networks, in order, and what is derived from them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateways {
    all: Vec<Gateway>,
    by_network: BTreeMap<Arc<str>, Vec<Gateway>>,
    by_cluster: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Vec<Gateway>>>,
    scale: u64,
}

impl Gateways {
    /// The union of these.
    pub fn new(all: impl IntoIterator<Item = Gateway>) -> Self {
        let all: Vec<_> = all.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let mut by_network = BTreeMap::<_, Vec<_>>::new();
        let mut by_cluster = BTreeMap::<_, BTreeMap<_, Vec<_>>>::new();
        for gateway in &all {
            by_network.entry(Arc::clone(&gateway.network)).or_default().push(gateway.clone());
            let of_network = by_cluster.entry(Arc::clone(&gateway.network)).or_default();
            of_network.entry(Arc::clone(&gateway.cluster)).or_default().push(gateway.clone());
        }
        let counts = by_network.values().chain(by_cluster.values().flat_map(BTreeMap::values)).map(Vec::len);
        let scale = counts.fold(1, |scale, count| lcm(scale, count as u64));
        Self { all, by_network, by_cluster, scale }
    }

    /// All of them, by address.
    #[must_use]
    pub fn all(&self) -> &[Gateway] {
        &self.all
    }

    /// Those of `cluster` on `network`, or, if it has none there, those of the network.
    #[must_use]
    pub fn of(&self, network: &str, cluster: &str) -> &[Gateway] {
        let own = self.by_cluster.get(network).and_then(|clusters| clusters.get(cluster));
        own.or_else(|| self.by_network.get(network)).map(Vec::as_slice).unwrap_or_default()
    }

    /// What every weight is multiplied by, so that it divides by the number of gateways of any network and of any
    /// cluster on it.
    #[must_use]
    pub fn scale(&self) -> u64 {
        self.scale
    }
}

fn lcm(a: u64, b: u64) -> u64 {
    fn gcd(a: u64, b: u64) -> u64 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    if a == 0 || b == 0 { a.max(b) } else { (a / gcd(a, b)).saturating_mul(b) }
}

/// Services by host name, and in the order that decides conflicts between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// By host name.
    pub by_host: BTreeMap<Arc<str>, Arc<Service>>,
    /// By age, then name, then namespace.
    pub in_order: Vec<Arc<Service>>,
}

/// What is known of one cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterView {
    /// Its ID.
    pub id: Arc<str>,
    /// Its network: the label of its system namespace.
    pub network: Arc<str>,
    /// Its services.
    pub services: Arc<BTreeMap<Arc<str>, Arc<Service>>>,
    /// The identities behind them, from its own pods.
    pub accounts: Arc<BTreeMap<Arc<str>, BTreeSet<String>>>,
    /// The endpoints of its services.
    pub endpoints: BTreeMap<Arc<str>, Arc<Vec<Endpoint>>>,
    /// Its cross-network gateways.
    pub gateways: Arc<Vec<Gateway>>,
    /// Its namespaces and their labels.
    pub namespaces: Arc<BTreeMap<String, Labels>>,
    /// Where its pods run, by namespace and name.
    pub pods: Arc<BTreeMap<(String, String), Arc<PodFacts>>>,
}

/// What is kept of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its labels.
    pub labels: Labels,
    /// Its service account.
    pub account: String,
    /// Its node.
    pub node: String,
    /// Its workload's name.
    pub workload: String,
    /// Its own host name and subdomain.
    pub hostname: Option<(String, String)>,
    /// Its containers' named ports.
    pub ports: BTreeMap<String, u16>,
    /// Where it runs.
    pub locality: Locality,
}

/// The mesh's settings, as far as this control plane acts on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// This control plane's cluster.
    pub own: Arc<str>,
    /// The mesh.
    pub mesh: String,
    /// The trust domain.
    pub trust_domain: String,
    /// Other names of it.
    pub trust_domain_aliases: Vec<String>,
    /// The DNS suffix.
    pub domain: String,
    /// The root namespace.
    pub root_namespace: String,
    /// Whether unknown destinations are let through.
    pub allow_any: bool,
    /// Whether clients use mTLS where servers take it.
    pub auto_mtls: bool,
    /// Where access logs go; empty is nowhere.
    pub access_log: String,
    /// How long a client's first bytes are waited for where they tell the protocol; zero is for ever.
    pub detection: std::time::Duration,
    /// The mesh's own locality setting.
    pub locality: Option<crate::policy::LocalitySetting>,
    /// Hosts whose endpoints stay in their cluster, most specific first: pattern, whether local.
    pub cluster_local: Vec<(String, bool)>,
    /// Networks given by `meshNetworks`, by cluster.
    pub networks: BTreeMap<String, String>,
    /// Gateways given by `meshNetworks`.
    pub gateways: Vec<Gateway>,
    /// Those of them that are given by name: name, port, network.
    pub gateway_names: Vec<(String, u16, Arc<str>)>,
}

impl Default for Settings {
    fn default() -> Self {
        let domain = istio::DEFAULT_DOMAIN;
        Self {
            own: istio::DEFAULT_CLUSTER_ID.into(),
            mesh: String::new(),
            trust_domain: domain.to_owned(),
            trust_domain_aliases: Vec::new(),
            domain: domain.to_owned(),
            root_namespace: istio::SYSTEM_NAMESPACE.to_owned(),
            allow_any: true,
            auto_mtls: true,
            access_log: "/dev/stdout".to_owned(),
            // Istio waits for ever, and a server that speaks first on a port of which nothing is said hangs. Every wait
            // of ours is bounded; this is the bound that Istio had while it had one.
            detection: std::time::Duration::from_secs(5),
            locality: None,
            cluster_local: vec![
                (format!("istiod.{}.svc.{domain}", istio::SYSTEM_NAMESPACE), true),
                (format!("kubernetes.default.svc.{domain}"), true),
                (format!("*.kube-system.svc.{domain}"), true),
            ],
            networks: BTreeMap::new(),
            gateways: Vec::new(),
            gateway_names: Vec::new(),
        }
    }
}

impl Settings {
    /// Whether a service's endpoints are only for its own cluster.
    #[must_use]
    pub fn is_cluster_local(&self, host: &str) -> bool {
        self.cluster_local.iter().find(|(pattern, _)| host_matches(pattern, host)).is_some_and(|(_, local)| *local)
    }

    /// The mesh's trust domains.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.trust_domain.as_str()).chain(self.trust_domain_aliases.iter().map(String::as_str))
    }
}

/// Whether `host` is `pattern`, or under it when it is `*.something` or `*`.
#[must_use]
pub fn host_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => host.ends_with(suffix),
        None => pattern == host,
    }
}

/// One picture of everything.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Counts pictures.
    pub version: u64,
    /// When the first change was seen that made it differ from the picture before.
    pub since: Option<std::time::Instant>,
    /// The mesh's settings.
    pub settings: Arc<Settings>,
    /// The clusters, the own one first, then in the order they came.
    pub clusters: Vec<Arc<ClusterView>>,
    /// Their services, merged.
    pub services: Arc<Services>,
    /// Their gateways.
    pub gateways: Arc<Gateways>,
    /// The policies of the own cluster.
    pub policies: Arc<Policies>,
    /// The clusters' places in the order of their IDs.
    by_id: Vec<usize>,
}

impl World {
    /// The cluster of this ID.
    #[must_use]
    pub fn cluster(&self, id: &str) -> Option<&Arc<ClusterView>> {
        self.clusters.iter().find(|cluster| &*cluster.id == id)
    }

    /// All endpoints of a host, by cluster.
    pub fn endpoints<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Endpoint> {
        let shards = self.by_id.iter().filter_map(|at| self.clusters[*at].endpoints.get(host));
        shards.flat_map(|endpoints| endpoints.iter())
    }

    /// The picture that these views, settings and policies make, reusing what is the same in `before`.
    #[must_use]
    pub fn compose(
        before: &World,
        settings: Arc<Settings>,
        clusters: Vec<Arc<ClusterView>>,
        policies: Arc<Policies>,
    ) -> Self {
        let same_services = before.clusters.len() == clusters.len()
            && before.clusters.iter().zip(&clusters).all(|(a, b)| {
                a.id == b.id && Arc::ptr_eq(&a.services, &b.services) && Arc::ptr_eq(&a.accounts, &b.accounts)
            });
        let services = if same_services {
            Arc::clone(&before.services)
        } else {
            let merged = crate::translate::services::merge(&clusters, &before.services);
            if merged == *before.services { Arc::clone(&before.services) } else { Arc::new(merged) }
        };
        let gateways = Gateways::new(
            clusters.iter().flat_map(|c| c.gateways.iter().cloned()).chain(settings.gateways.iter().cloned()),
        );
        let gateways = if gateways == *before.gateways { Arc::clone(&before.gateways) } else { Arc::new(gateways) };
        let mut by_id: Vec<_> = (0..clusters.len()).collect();
        by_id.sort_by(|a, b| clusters[*a].id.cmp(&clusters[*b].id));
        Self { version: before.version + 1, since: None, settings, clusters, services, gateways, policies, by_id }
    }
}

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum ProxyKind {
    /// Beside a workload.
    Sidecar,
    /// On its own.
    Router,
}

/// A proxy that asks for configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyInfo {
    /// Its node ID.
    pub id: String,
    /// What it is for.
    pub kind: ProxyKind,
    /// Its address.
    pub address: Option<IpAddr>,
    /// Its pod.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its cluster.
    pub cluster: Arc<str>,
    /// Its network; empty is unknown.
    pub network: Arc<str>,
    /// The networks whose endpoints it wants to see; empty is all.
    pub view: BTreeSet<String>,
    /// Its service account.
    pub account: String,
    /// Its pod's labels.
    pub labels: Labels,
    /// Where it runs.
    pub locality: Locality,
    /// Its node.
    pub node: String,
    /// Whether connections come to it with PROXY headers instead of being redirected.
    pub proxy_protocol: bool,
    /// Where it is to listen, if it may not everywhere: several share a machine.
    pub bind: Option<IpAddr>,
    /// Whether it answers DNS questions.
    pub dns: bool,
    /// Its version.
    pub version: String,
    /// What it is, and its own version: `envoy 1.40.0`.
    pub program: String,
}

impl ProxyInfo {
    /// The address of its listeners: its own where it says so, or where connections are brought to it by others; else
    /// any, as on Istio, where packets are redirected.
    #[must_use]
    pub fn listens_at(&self) -> IpAddr {
        let own = self.bind.or(self.address.filter(|_| self.proxy_protocol));
        own.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
    }
}

impl Default for ProxyInfo {
    fn default() -> Self {
        Self {
            id: String::new(),
            kind: ProxyKind::Sidecar,
            address: None,
            name: String::new(),
            namespace: String::new(),
            cluster: istio::DEFAULT_CLUSTER_ID.into(),
            network: "".into(),
            view: BTreeSet::new(),
            account: String::new(),
            labels: Labels::new(),
            locality: Locality::default(),
            node: String::new(),
            proxy_protocol: false,
            bind: None,
            dns: false,
            version: String::new(),
            program: String::new(),
        }
    }
}

/// Whether `labels` have all of `selector`.
#[must_use]
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_are_told_by_app_protocol_then_name() {
        let of = |app, name| Protocol::of("TCP", app, name, 8080);
        assert_eq!(of(None, "http"), Protocol::Http);
        assert_eq!(of(None, "http-web"), Protocol::Http);
        assert_eq!(of(None, "grpc-web-x"), Protocol::Http2);
        assert_eq!(of(None, "tls-istiod"), Protocol::Tls);
        assert_eq!(of(None, "status-port"), Protocol::Auto);
        assert_eq!(of(None, ""), Protocol::Auto);
        assert_eq!(of(Some("tcp"), "http"), Protocol::Tcp);
        assert_eq!(of(Some("kubernetes.io/h2c"), "x"), Protocol::Http2);
        assert_eq!(of(Some("kubernetes.io/ws"), "tcp"), Protocol::Http);
        assert_eq!(of(Some("kubernetes.io/wss"), "http"), Protocol::Tls);
        assert_eq!(of(Some("GRPC"), "tcp"), Protocol::Http2);
        assert_eq!(of(Some("http2-x"), "tcp"), Protocol::Http2);
        assert_eq!(of(None, "Mongo-db"), Protocol::Tcp);
        assert_eq!(of(None, "GRPC-Web"), Protocol::Http2);
        for (name, expected) in
            [("mysql", Protocol::Tcp), ("redis-1", Protocol::Tcp), ("https", Protocol::Tls), ("grpc", Protocol::Http2)]
        {
            assert_eq!(of(None, name), expected, "{name}");
        }
        assert_eq!(of(Some("unknown"), "http"), Protocol::Auto, "appProtocol stands alone");
        assert_eq!(Protocol::of("UDP", None, "http", 1), Protocol::Udp);
        assert_eq!(Protocol::of("TCP", None, "db", 3306), Protocol::Tcp);
    }

    #[test]
    fn the_most_specific_cluster_local_setting_decides() {
        let settings = Settings::default();
        assert!(settings.is_cluster_local("kube-dns.kube-system.svc.cluster.local"));
        assert!(settings.is_cluster_local("kubernetes.default.svc.cluster.local"));
        assert!(!settings.is_cluster_local("helloworld.sample.svc.cluster.local"));
    }

    #[test]
    fn localities_read_and_write() {
        for text in ["", "r", "r/z", "r/z/s"] {
            assert_eq!(Locality::parse(text).to_string(), text);
        }
        assert_eq!(Locality::parse_label("r.z").to_string(), "r/z");
        assert_eq!(Locality::parse_label("r.1/z").to_string(), "r.1/z");
    }
}
