//! Do: keeps every connected proxy at the latest picture.
//!
//! Proxies that would be sent the same share it: what goes out to a workload is made once per group of proxies (same
//! cluster, network, namespace, place, …), and an endpoint change makes anew only that service's endpoints. What
//! comes in to a workload is its own.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use stolos_k8s::istio;
use stolos_serve::Stop;
use stolos_xds::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use stolos_xds::envoy::r#type::v3::SemanticVersion;
use stolos_xds::message::{self, text_at, texts_at};
use stolos_xds::server::{Nack, Proxy, Source};
use stolos_xds::{Resource, Resources, Snapshot};
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::model::{
    ClusterView, Labels, Locality, PodFacts, Port, ProxyInfo, ProxyKind, Resolution, Service, Settings, World,
};
use crate::policy::{DestinationRule, LocalitySetting, Policies};
use crate::sign::Authenticator;
use crate::state::State;
use crate::translate::endpoints::{self, Style};
use crate::translate::{clusters, gateway, inbound, listeners, names};

/// How long a proxy that connects early is held until there is something to send.
const PATIENCE: Duration = Duration::from_secs(20);

/// What proxies are sent.
pub(crate) struct Pusher {
    state: State,
    authenticator: Arc<Authenticator>,
    metrics: Arc<Metrics>,
    proxies: Mutex<BTreeMap<u64, Connected>>,
    groups: Mutex<Groups>,
}

struct Connected {
    info: Arc<ProxyInfo>,
    since: SystemTime,
    built: Built,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

/// A proxy, for the debug pages.
#[derive(Clone)]
pub(crate) struct Shown {
    /// Who it is.
    pub(crate) info: Arc<ProxyInfo>,
    /// Since when it is connected.
    pub(crate) since: SystemTime,
    /// What it should have.
    pub(crate) snapshot: Arc<Snapshot>,
}

impl Pusher {
    /// One that sends what `state` says to whom `authenticator` lets in.
    #[must_use]
    pub(crate) fn new(state: State, authenticator: Arc<Authenticator>, metrics: Arc<Metrics>) -> Arc<Self> {
        let (proxies, groups) = (Mutex::default(), Mutex::default());
        Arc::new(Self { state, authenticator, metrics, proxies, groups })
    }

    /// Sends every new picture to every proxy, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: Stop) {
        let mut worlds = self.state.worlds.clone();
        loop {
            tokio::select! {
                () = stop.asked() => return,
                changed = worlds.changed() => if changed.is_err() { return },
            }
            worlds.mark_unchanged();
            let pusher = Arc::clone(&self);
            // Translating many proxies takes a while: not on a thread that others wait for.
            if tokio::task::spawn_blocking(move || pusher.push()).await.is_err() {
                tracing::error!("translating failed; proxies keep what they have");
            }
        }
    }

    fn push(&self) {
        let started = Instant::now();
        let mut groups = lock(&self.groups);
        // The latest, read under the lock: pictures are never gone back from.
        let world = &Arc::clone(&self.state.worlds.borrow());
        groups.begin(world);
        let mut proxies = lock(&self.proxies);
        // A proxy that is gone has dropped its end.
        proxies.retain(|_, proxy| !proxy.snapshots.is_closed());
        for proxy in proxies.values_mut() {
            let info = refreshed(&proxy.info, world);
            if *info != *proxy.info {
                proxy.info = info;
            }
            let (snapshot, built) = build(world, &proxy.info, &mut groups, Some(&proxy.built));
            proxy.built = built;
            proxy.snapshots.send_replace(snapshot);
        }
        groups.end();
        self.metrics.pushed(proxies.len(), started.elapsed());
    }

    /// The connected proxies, by connection.
    #[must_use]
    pub(crate) fn connected(&self) -> BTreeMap<u64, Shown> {
        let show = |(connection, proxy): (&u64, &Connected)| {
            let snapshot = Arc::clone(&proxy.snapshots.borrow());
            (*connection, Shown { info: Arc::clone(&proxy.info), since: proxy.since, snapshot })
        };
        lock(&self.proxies).iter().filter(|(_, proxy)| !proxy.snapshots.is_closed()).map(show).collect()
    }
}

impl Source for Pusher {
    fn connect<'a>(&'a self, proxy: &'a Proxy) -> BoxFuture<'a, Result<watch::Receiver<Arc<Snapshot>>, tonic::Status>> {
        Box::pin(async move {
            let info = describe(proxy)?;
            let identity = self.authenticator.authenticate(&proxy.metadata).await?;
            if identity.namespace != info.namespace {
                let text = format!(
                    "a proxy of namespace {} cannot speak for namespace {}",
                    identity.namespace, info.namespace
                );
                return Err(tonic::Status::permission_denied(text));
            }
            if !info.account.is_empty() && identity.account != info.account {
                let text = format!("the token is of service account {}, not of {}", identity.account, info.account);
                return Err(tonic::Status::permission_denied(text));
            }
            let info = ProxyInfo { account: identity.account, ..info };
            if tokio::time::timeout(PATIENCE, self.state.ready()).await.is_err() {
                return Err(tonic::Status::unavailable("the control plane has not read its clusters yet"));
            }
            let mut groups = lock(&self.groups);
            let world = Arc::clone(&self.state.worlds.borrow());
            let info = refreshed(&Arc::new(info), &world);
            groups.begin(&world);
            let (snapshot, built) = build(&world, &info, &mut groups, None);
            let (snapshots, receiver) = watch::channel(snapshot);
            let connected = Connected { info, since: SystemTime::now(), built, snapshots };
            lock(&self.proxies).insert(proxy.connection, connected);
            drop(groups);
            // Whatever came up while this was made is pushed after the lock is free: the proxy is registered by then.
            Ok(receiver)
        })
    }

    fn settled(&self, proxy: &Proxy, version: &Arc<str>) {
        self.metrics.settled();
        tracing::debug!(node = proxy.node.id, %version, "proxy has everything");
    }

    fn refused(&self, proxy: &Proxy, nack: &Nack) {
        self.metrics.refused(&nack.type_url);
        tracing::warn!(node = proxy.node.id, type_url = &*nack.type_url, message = nack.message, "proxy refused");
    }
}

/// What a proxy says of itself.
fn describe(proxy: &Proxy) -> Result<ProxyInfo, tonic::Status> {
    let node = &proxy.node;
    let parts: Vec<_> = node.id.split('~').collect();
    let [kind, address, name, domain] = parts[..] else {
        return Err(tonic::Status::invalid_argument(format!("`{}` is not <type>~<ip>~<pod>.<ns>~<domain>", node.id)));
    };
    let kind = match kind {
        "sidecar" => ProxyKind::Sidecar,
        "router" => ProxyKind::Router,
        other => return Err(tonic::Status::invalid_argument(format!("proxies of type {other} are not served"))),
    };
    let empty = Default::default();
    let metadata = node.metadata.as_ref().unwrap_or(&empty);
    let text = |field: &str| text_at(metadata, &[field]).unwrap_or_default();
    let (pod, namespace) = name.rsplit_once('.').unwrap_or((name, ""));
    let namespace = [text("NAMESPACE"), namespace, domain.split('.').next().unwrap_or_default()]
        .into_iter()
        .find(|namespace| !namespace.is_empty());
    let is_on = |value: &str| value.eq_ignore_ascii_case("true") || value == "1";
    let locality = node.locality.as_ref().map(|locality| Locality {
        region: locality.region.clone(),
        zone: locality.zone.clone(),
        subzone: locality.sub_zone.clone(),
    });
    Ok(ProxyInfo {
        id: node.id.clone(),
        kind,
        address: address.parse().ok(),
        name: pod.to_owned(),
        namespace: namespace.unwrap_or_default().to_owned(),
        cluster: text("CLUSTER_ID").into(),
        network: text("NETWORK").into(),
        view: text("REQUESTED_NETWORK_VIEW")
            .split(',')
            .map(|network| network.trim().to_owned())
            .filter(|network| !network.is_empty())
            .collect(),
        account: text("SERVICE_ACCOUNT").to_owned(),
        labels: texts_at(metadata, &["LABELS"]),
        locality: locality.unwrap_or_default(),
        node: text("NODE_NAME").to_owned(),
        proxy_protocol: text("STOLOS_REDIRECT") == istio::REDIRECT_PROXY_PROTOCOL,
        bind: text("STOLOS_BIND").parse().ok(),
        dns: is_on(text("DNS_CAPTURE")),
        version: [text("ISTIO_VERSION"), text("STOLOS_VERSION")].concat(),
        program: program(node),
    })
}

/// What a proxy is, and its version.
fn program(node: &Node) -> String {
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => {
            let number = |v: &SemanticVersion| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch);
            build.version.as_ref().map(number).unwrap_or_default()
        }
        None => String::new(),
    };
    format!("{} {version}", node.user_agent_name).trim().to_owned()
}

/// With what its pod says now: labels, node, place.
fn refreshed(info: &Arc<ProxyInfo>, world: &World) -> Arc<ProxyInfo> {
    let Some(pod) = pod_of(info, world) else { return Arc::clone(info) };
    if info.labels == pod.labels && info.node == pod.node && (info.locality == pod.locality || pod.locality.is_empty())
    {
        return Arc::clone(info);
    }
    let locality = if pod.locality.is_empty() { info.locality.clone() } else { pod.locality.clone() };
    Arc::new(ProxyInfo { labels: pod.labels.clone(), node: pod.node.clone(), locality, ..ProxyInfo::clone(info) })
}

fn pod_of<'a>(info: &ProxyInfo, world: &'a World) -> Option<&'a Arc<PodFacts>> {
    world.cluster(&info.cluster)?.pods.get(&(info.namespace.clone(), info.name.clone()))
}

/// What a proxy's own part was made of, and what came out.
#[derive(Clone, Default)]
struct Built {
    /// What it was made of.
    from: Option<From>,
    group: Option<Arc<Group>>,
    own: Arc<Own>,
    clusters: Arc<Resources>,
    listeners: Arc<Resources>,
}

/// What comes in to a proxy depends on these.
#[derive(Clone)]
struct From {
    info: Arc<ProxyInfo>,
    pod: Option<Arc<PodFacts>>,
    services: Option<Arc<ClusterView>>,
    world: Arc<World>,
}

impl From {
    fn is_same(&self, other: &Self) -> bool {
        let same_services = match (&self.services, &other.services) {
            (Some(a), Some(b)) => Arc::ptr_eq(&a.services, &b.services),
            (None, None) => true,
            _ => false,
        };
        same_services
            && *self.info == *other.info
            && self.pod == other.pod
            && Arc::ptr_eq(&self.world.policies, &other.world.policies)
            && Arc::ptr_eq(&self.world.settings, &other.world.settings)
    }
}

/// A proxy's own resources.
#[derive(Default)]
struct Own {
    clusters: Vec<Arc<Resource>>,
    listeners: Vec<Arc<Resource>>,
}

fn build(
    world: &Arc<World>,
    info: &Arc<ProxyInfo>,
    groups: &mut Groups,
    before: Option<&Built>,
) -> (Arc<Snapshot>, Built) {
    let group = groups.of(world, info);
    let from = From {
        info: Arc::clone(info),
        pod: pod_of(info, world).cloned(),
        services: world.cluster(&info.cluster).cloned(),
        world: Arc::clone(world),
    };
    let same = before.filter(|built| built.from.as_ref().is_some_and(|before| before.is_same(&from)));
    let own = match same {
        Some(built) => Arc::clone(&built.own),
        None => Arc::new(own(world, info)),
    };
    // A part whose pieces are the same is the same `Arc`, so that the server need not look into it.
    let reuse = same.filter(|built| {
        built.group.as_ref().is_some_and(|old| {
            Arc::ptr_eq(&old.clusters, &group.clusters) && Arc::ptr_eq(&old.listeners, &group.listeners)
        })
    });
    let (clusters, listeners) = match reuse {
        Some(built) => (Arc::clone(&built.clusters), Arc::clone(&built.listeners)),
        None => (
            Arc::new(group.clusters.iter().chain(&own.clusters).cloned().collect::<Resources>()),
            Arc::new(group.listeners.iter().chain(&own.listeners).cloned().collect::<Resources>()),
        ),
    };
    let mut snapshot = Snapshot::new(world.version.to_string())
        .with(message::CLUSTER, Arc::clone(&clusters))
        .with(message::ENDPOINT, Arc::clone(&group.endpoints))
        .with(message::LISTENER, Arc::clone(&listeners))
        .with(message::ROUTE, Arc::clone(&group.routes));
    if let Some(names) = &group.names {
        snapshot.set(message::NAME_TABLE, Arc::clone(names));
    }
    (Arc::new(snapshot), Built { from: Some(from), group: Some(group), own, clusters, listeners })
}

fn own(world: &World, info: &ProxyInfo) -> Own {
    if info.kind == ProxyKind::Router {
        return Own::default();
    }
    let clusters = clusters::fixed(info).into_iter().chain(inbound::clusters(world, info));
    Own {
        clusters: clusters.map(|cluster| Arc::new(Resource::of(&cluster))).collect(),
        listeners: [listeners::virtual_outbound(world, info), inbound::listener(world, info)]
            .iter()
            .map(|listener| Arc::new(Resource::of(listener)))
            .collect(),
    }
}

/// What proxies of one group have in common, and what else they are told apart by.
#[derive(Clone, PartialEq, Eq, Hash)]
struct GroupKey {
    kind: ProxyKind,
    cluster: Arc<str>,
    network: Arc<str>,
    view: BTreeSet<String>,
    namespace: String,
    locality: Locality,
    dns: bool,
    /// Where labels decide: gateways, failover by labels, rules for some workloads.
    labels: Option<Labels>,
    /// Where the node decides.
    node: Option<String>,
    /// Where a gateway listens, if not everywhere.
    bind: Option<IpAddr>,
    /// Where the proxy is itself behind a headless service.
    address: Option<IpAddr>,
}

/// What proxies of one group are sent.
struct Group {
    clusters: Arc<Vec<Arc<Resource>>>,
    endpoints: Arc<Resources>,
    listeners: Arc<Vec<Arc<Resource>>>,
    routes: Arc<Resources>,
    names: Option<Arc<Resources>>,
    /// What it is made of, by host.
    parts: Arc<BTreeMap<Arc<str>, Arc<Part>>>,
    /// What all of it was made by.
    settings: Arc<Settings>,
    policies: Arc<Policies>,
}

/// What a group gets of one service.
struct Part {
    service: Arc<Service>,
    clusters: Vec<Arc<Resource>>,
    /// Its endpoint resources: what to make anew when its endpoints change.
    wanted: Vec<Wanted>,
}

/// One endpoint resource.
#[derive(Clone)]
struct Wanted {
    name: String,
    port: Port,
    subset: String,
    style: Style,
    rule: Option<Arc<DestinationRule>>,
}

/// All groups at one picture.
#[derive(Default)]
struct Groups {
    world: Arc<World>,
    made: HashMap<GroupKey, Arc<Group>>,
    before: HashMap<GroupKey, Arc<Group>>,
    /// The hosts whose endpoints changed since the picture before.
    moved: BTreeSet<Arc<str>>,
    /// Whether nothing else did.
    only_endpoints: bool,
    /// Whether gateways are the same.
    same_gateways: bool,
    traits: Traits,
}

/// What of a picture makes proxies differ.
#[derive(Clone, Debug, Default)]
struct Traits {
    labels: bool,
    nodes: bool,
    headless: BTreeSet<IpAddr>,
}

impl Groups {
    /// Goes on to a picture.
    fn begin(&mut self, world: &Arc<World>) {
        if Arc::ptr_eq(world, &self.world) {
            return;
        }
        let before = &self.world;
        self.moved = moved(before, world);
        self.same_gateways = Arc::ptr_eq(&before.gateways, &world.gateways);
        // The endpoints of a headless service are listeners and names, too.
        let headless = self.moved.iter().any(|host| {
            let service = world.services.by_host.get(host);
            service.is_some_and(|service| service.resolution == Resolution::Passthrough)
        });
        self.only_endpoints = !headless
            && self.same_gateways
            && Arc::ptr_eq(&before.settings, &world.settings)
            && Arc::ptr_eq(&before.services, &world.services)
            && Arc::ptr_eq(&before.policies, &world.policies);
        if !self.only_endpoints {
            self.traits = traits(world);
        }
        self.world = Arc::clone(world);
        self.before = std::mem::take(&mut self.made);
    }

    /// Forgets the groups that nobody is in any more.
    fn end(&mut self) {
        self.before.clear();
    }

    fn of(&mut self, world: &Arc<World>, info: &ProxyInfo) -> Arc<Group> {
        let key = GroupKey {
            kind: info.kind,
            cluster: Arc::clone(&info.cluster),
            network: Arc::clone(&info.network),
            view: info.view.clone(),
            namespace: info.namespace.clone(),
            locality: info.locality.clone(),
            dns: info.dns,
            labels: (self.traits.labels || info.kind == ProxyKind::Router).then(|| info.labels.clone()),
            node: self.traits.nodes.then(|| info.node.clone()),
            bind: info.bind.filter(|_| info.kind == ProxyKind::Router),
            address: info.address.filter(|address| self.traits.headless.contains(address)),
        };
        if let Some(made) = self.made.get(&key) {
            return Arc::clone(made);
        }
        let group = match self.before.get(&key) {
            Some(before) if self.only_endpoints => Arc::new(patch(world, info, before, &self.moved)),
            before => {
                // What cannot have changed is not made again.
                let moved = self.same_gateways.then_some(&self.moved);
                Arc::new(whole(world, info, before.map(|before| (before.as_ref(), moved))))
            }
        };
        self.made.insert(key, Arc::clone(&group));
        group
    }
}

/// The hosts whose endpoints differ.
fn moved(before: &World, now: &World) -> BTreeSet<Arc<str>> {
    let by_id = |world: &World| -> BTreeMap<Arc<str>, Arc<ClusterView>> {
        world.clusters.iter().map(|cluster| (Arc::clone(&cluster.id), Arc::clone(cluster))).collect()
    };
    let (before, now) = (by_id(before), by_id(now));
    let mut hosts = BTreeSet::new();
    for (id, b) in &now {
        match before.get(id) {
            Some(a) if Arc::ptr_eq(a, b) => {}
            Some(a) => {
                let differs = |(host, endpoints): &(&Arc<str>, &Arc<Vec<_>>)| {
                    a.endpoints.get(*host).is_none_or(|have| !Arc::ptr_eq(have, endpoints))
                };
                hosts.extend(b.endpoints.iter().filter(differs).map(|(host, _)| Arc::clone(host)));
                hosts.extend(a.endpoints.keys().filter(|host| !b.endpoints.contains_key(*host)).cloned());
            }
            None => hosts.extend(b.endpoints.keys().cloned()),
        }
    }
    let gone = before.iter().filter(|(id, _)| !now.contains_key(*id));
    hosts.extend(gone.flat_map(|(_, cluster)| cluster.endpoints.keys().cloned()));
    hosts
}

fn traits(world: &World) -> Traits {
    let by_labels = |setting: &LocalitySetting| !setting.failover_priority.is_empty();
    let rules = &world.policies.destinations;
    let policies = rules
        .iter()
        .flat_map(|rule| rule.policy.iter().chain(rule.subsets.iter().filter_map(|subset| subset.policy.as_ref())));
    let mut policies = policies.flat_map(|policy| std::iter::once(&policy.all).chain(policy.ports.values()));
    let services = || world.services.in_order.iter();
    let headless = services().filter(|service| service.resolution == Resolution::Passthrough);
    Traits {
        labels: rules.iter().any(|rule| !rule.workloads.is_empty())
            || policies.any(|policy| policy.locality.as_ref().is_some_and(by_labels))
            || world.settings.locality.as_ref().is_some_and(by_labels)
            || services().any(|service| service.distribution.is_some()),
        nodes: services().any(|service| service.node_local || service.distribution.is_some()),
        headless: headless
            .flat_map(|service| world.endpoints(&service.host).filter_map(|e| e.address).collect::<Vec<_>>())
            .collect(),
    }
}

/// A group made anew. What is the same as before is taken from there: a service's clusters where the service and all
/// policies are, its endpoints where it is known, besides, which hosts have moved, and this one has not.
fn whole(world: &World, info: &ProxyInfo, before: Option<(&Group, Option<&BTreeSet<Arc<str>>>)>) -> Group {
    let comparable = before.filter(|(group, _)| {
        Arc::ptr_eq(&group.settings, &world.settings) && Arc::ptr_eq(&group.policies, &world.policies)
    });
    let mut parts = BTreeMap::new();
    let mut all = Resources::default();
    let wishes = match info.kind {
        ProxyKind::Sidecar => wishes_of_sidecar(world, info),
        ProxyKind::Router => wishes_of_router(world, info),
    };
    for (service, wishes) in wishes {
        let host = &service.host;
        let known = comparable.and_then(|(group, moved)| Some((group, group.parts.get(host)?, moved)));
        // What a headless service's clusters are depends on its endpoints.
        let known = known.filter(|(_, part, _)| {
            Arc::ptr_eq(&part.service, service) && service.resolution != Resolution::Passthrough
        });
        let part = match known {
            Some((_, part, _)) => Arc::clone(part),
            None => Arc::new(part(world, info, service, wishes)),
        };
        let unmoved = known.filter(|(_, _, moved)| moved.is_some_and(|moved| !moved.contains(host)));
        let same = unmoved.and_then(|(group, ..)| {
            part.wanted.iter().map(|wanted| group.endpoints.get(&wanted.name).cloned()).collect::<Option<Vec<_>>>()
        });
        match same {
            Some(same) => same.into_iter().for_each(|resource| all.insert(resource)),
            None => assignments(world, info, host, &part.wanted).into_iter().for_each(|made| all.insert(made)),
        }
        parts.insert(Arc::clone(host), part);
    }
    let (built_listeners, routes) = match info.kind {
        ProxyKind::Sidecar => (listeners::outbound(world, info), listeners::routes(world, info)),
        ProxyKind::Router => (gateway::listeners(world, info), Vec::new()),
    };
    let mut group = Group {
        clusters: Arc::new(parts.values().flat_map(|part| part.clusters.iter().cloned()).collect()),
        endpoints: Arc::new(all),
        listeners: Arc::new(built_listeners.iter().map(|listener| Arc::new(Resource::of(listener))).collect()),
        routes: Arc::new(Resources::of(&routes)),
        names: info.dns.then(|| Arc::new(Resources::of([&names::table(world, info)]))),
        parts: Arc::new(parts),
        settings: Arc::clone(&world.settings),
        policies: Arc::clone(&world.policies),
    };
    if let Some((before, _)) = before {
        keep(&mut group.clusters, &before.clusters);
        keep(&mut group.endpoints, &before.endpoints);
        keep(&mut group.listeners, &before.listeners);
        keep(&mut group.routes, &before.routes);
    }
    group
}

/// What of a service somebody wants: port, subset, in which form, and the rule for it.
type Wish = (Port, String, Style, Option<Arc<DestinationRule>>);

fn wishes_of_sidecar<'a>(world: &'a World, info: &'a ProxyInfo) -> Vec<(&'a Arc<Service>, Vec<Wish>)> {
    let root = &world.settings.root_namespace;
    let of = |service: &'a Arc<Service>| {
        let rule = world
            .policies
            .destination(root, &info.namespace, &info.labels, &service.host, &service.namespace)
            .map(Arc::new);
        let subsets = rule.iter().flat_map(|rule| rule.subsets.iter().map(|subset| subset.name.clone()));
        let subsets: Vec<_> = std::iter::once(String::new()).chain(subsets).collect();
        let of_port = |port: &Port| {
            let of_subset = |subset: &String| (port.clone(), subset.clone(), Style::Client, rule.clone());
            subsets.iter().map(of_subset).collect::<Vec<_>>()
        };
        (service, service.ports.iter().flat_map(of_port).collect())
    };
    listeners::visible(world, info).map(of).collect()
}

fn wishes_of_router<'a>(world: &'a World, info: &'a ProxyInfo) -> Vec<(&'a Arc<Service>, Vec<Wish>)> {
    let mut by_host = BTreeMap::<&Arc<str>, (&Arc<Service>, Vec<Wish>)>::new();
    let mut seen = BTreeSet::new();
    for passed in gateway::passed(world, info).into_values().flatten() {
        if seen.insert(passed.sni())
            && let Some((host, service)) = world.services.by_host.get_key_value(&passed.service.host)
        {
            let wish = (passed.port.clone(), passed.subset, Style::Passthrough, passed.rule);
            by_host.entry(host).or_insert_with(|| (service, Vec::new())).1.push(wish);
        }
    }
    by_host.into_values().collect()
}

fn part(world: &World, info: &ProxyInfo, service: &Arc<Service>, wishes: Vec<Wish>) -> Part {
    let mut part = Part { service: Arc::clone(service), clusters: Vec::new(), wanted: Vec::new() };
    for (port, subset, style, rule) in wishes {
        let cluster = clusters::outbound(world, info, service, &port, &subset, style, rule.as_deref());
        let Some(cluster) = cluster else { continue };
        if cluster.eds_cluster_config.is_some() {
            part.wanted.push(Wanted { name: cluster.name.clone(), port, subset, style, rule });
        }
        part.clusters.push(Arc::new(Resource::of(&cluster)));
    }
    part
}

fn keep<T: PartialEq>(now: &mut Arc<T>, before: &Arc<T>) {
    if **now == **before {
        *now = Arc::clone(before);
    }
}

/// The group before, with these hosts' endpoints made anew.
fn patch(world: &World, info: &ProxyInfo, before: &Group, hosts: &BTreeSet<Arc<str>>) -> Group {
    let mut endpoints = Arc::clone(&before.endpoints);
    for host in hosts {
        let Some(part) = before.parts.get(host) else { continue };
        for resource in assignments(world, info, host, &part.wanted) {
            if endpoints.get(&resource.name).is_none_or(|have| have.version != resource.version) {
                Arc::make_mut(&mut endpoints).insert(resource);
            }
        }
    }
    Group {
        clusters: Arc::clone(&before.clusters),
        endpoints,
        listeners: Arc::clone(&before.listeners),
        routes: Arc::clone(&before.routes),
        names: before.names.clone(),
        parts: Arc::clone(&before.parts),
        settings: Arc::clone(&before.settings),
        policies: Arc::clone(&before.policies),
    }
}

fn assignments(world: &World, info: &ProxyInfo, host: &Arc<str>, wanted: &[Wanted]) -> Vec<Resource> {
    let Some(service) = world.services.by_host.get(host) else { return Vec::new() };
    let of = |wanted: &Wanted| {
        let rule = wanted.rule.as_deref();
        let groups = endpoints::select(world, info, service, &wanted.port, &wanted.subset, wanted.style, rule);
        Resource::of(&endpoints::assignment(&wanted.name, groups))
    };
    wanted.iter().map(of).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in the middle leaves a state that the next picture replaces.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::fixture;

    fn names(snapshot: &Snapshot, type_url: &str) -> Vec<String> {
        snapshot.get(type_url).unwrap().iter().map(|resource| resource.name.to_string()).collect()
    }

    #[test]
    fn an_endpoint_change_makes_only_that_anew() {
        let mut world = fixture::world();
        let info = Arc::new(fixture::proxy("c1"));
        let mut groups = Groups::default();
        groups.begin(&Arc::new(world.clone()));
        let (first, built) = build(&Arc::new(world.clone()), &info, &mut groups, None);
        assert_eq!(
            names(&first, message::CLUSTER),
            [
                "BlackHoleCluster",
                "InboundPassthroughCluster",
                "PassthroughCluster",
                "inbound|8080||",
                "outbound|8080||web.shop.svc.cluster.local",
            ]
        );
        assert_eq!(names(&first, message::LISTENER), ["0.0.0.0_8080", "virtualInbound", "virtualOutbound"]);
        assert_eq!(names(&first, message::ROUTE), ["8080"]);
        assert_eq!(names(&first, message::ENDPOINT), ["outbound|8080||web.shop.svc.cluster.local"]);

        fixture::change_endpoints(&mut world, "c3", |endpoints| endpoints.truncate(1));
        let world = Arc::new(world);
        groups.begin(&world);
        assert_eq!((groups.moved.len(), groups.only_endpoints), (1, true));
        let (second, _) = build(&world, &info, &mut groups, Some(&built));
        for kept in [message::CLUSTER, message::LISTENER, message::ROUTE] {
            assert!(Arc::ptr_eq(first.get(kept).unwrap(), second.get(kept).unwrap()), "{kept}");
        }
        assert_ne!(first.get(message::ENDPOINT), second.get(message::ENDPOINT));
    }

    #[test]
    fn a_picture_made_in_steps_is_the_one_made_at_once() {
        let mut world = fixture::world();
        let info = Arc::new(fixture::proxy("c1"));
        let mut groups = Groups::default();
        let mut built = None;
        for step in 0..6usize {
            match step % 3 {
                0 => fixture::change_endpoints(&mut world, "c2", |e| e[0].weight += 1),
                1 if step > 3 => fixture::change(&mut world, "c2", |view| view.endpoints.clear()),
                1 => fixture::set_gateways(&mut world, "c3", &["3.3.3.3", "3.3.3.9"]),
                _ => fixture::change_service(&mut world, "c1", |s| s.ports[0].name = format!("http-{step}")),
            }
            let world = Arc::new(world.clone());
            groups.begin(&world);
            let (snapshot, now) = build(&world, &info, &mut groups, built.as_ref());
            built = Some(now);
            let mut fresh = Groups::default();
            fresh.begin(&world);
            let (at_once, _) = build(&world, &info, &mut fresh, None);
            for type_url in [message::CLUSTER, message::ENDPOINT, message::LISTENER, message::ROUTE] {
                assert_eq!(snapshot.get(type_url), at_once.get(type_url), "{type_url} after step {step}");
            }
        }
    }

    #[test]
    fn proxies_alike_share() {
        let world = Arc::new(fixture::world());
        let mut groups = Groups::default();
        groups.begin(&world);
        let one = groups.of(&world, &fixture::proxy("c1"));
        let other = ProxyInfo { name: "web-2".into(), ..fixture::proxy("c1") };
        assert!(Arc::ptr_eq(&one, &groups.of(&world, &other)));
        assert!(!Arc::ptr_eq(&one, &groups.of(&world, &fixture::proxy("c2"))), "another place");
    }

    /// Time for 100 clusters, 1,000 services and 1,000 proxies: everything, then one endpoint's change. Printed.
    #[test]
    #[ignore = "a measurement"]
    #[allow(clippy::print_stderr, reason = "a measurement")]
    fn one_change_among_many() {
        let (of_clusters, of_services, of_proxies) = (100, 1000, 1000);
        let small = fixture::world();
        let (service, endpoints) =
            (small.services.by_host[fixture::HOST].clone(), &small.clusters[0].endpoints[fixture::HOST]);
        let hosts: Vec<Arc<str>> =
            (0..of_services).map(|n| format!("s{n}.ns{}.svc.cluster.local", n % 20).into()).collect();
        let clusters = (0..of_clusters).map(|c| {
            let id: Arc<str> = format!("c{c}").into();
            let mut view = ClusterView::clone(&small.clusters[0]);
            view.id = id.clone();
            let services = hosts.iter().enumerate().map(|(n, host)| {
                let service = Service {
                    name: format!("s{n}"),
                    namespace: format!("ns{}", n % 20),
                    host: host.clone(),
                    ..Service::clone(&service)
                };
                (host.clone(), Arc::new(service))
            });
            view.services = Arc::new(services.collect());
            view.accounts = Arc::default();
            let endpoints = hosts.iter().enumerate().filter(|(n, _)| n % 10 == c % 10).map(|(_, host)| {
                let of = endpoints.iter().map(|e| crate::model::Endpoint { cluster: id.clone(), ..e.clone() });
                (host.clone(), Arc::new(of.collect()))
            });
            view.endpoints = endpoints.collect();
            Arc::new(view)
        });
        let mut world = World::compose(&World::default(), small.settings.clone(), clusters.collect(), Arc::default());
        let proxies: Vec<_> = (0..of_proxies)
            .map(|n| {
                Arc::new(ProxyInfo {
                    cluster: "c0".into(),
                    name: format!("p{n}"),
                    namespace: format!("ns{}", n % 20),
                    ..fixture::proxy("c1")
                })
            })
            .collect();
        let mut groups = Groups::default();
        let mut built: Vec<Built> = Vec::new();
        let mut round = |world: &World, what: &str| {
            let world = Arc::new(world.clone());
            let begun = Instant::now();
            groups.begin(&world);
            let made: Vec<_> =
                proxies.iter().enumerate().map(|(n, info)| build(&world, info, &mut groups, built.get(n)).1).collect();
            groups.end();
            built = made;
            eprintln!("{what}: {:?} for {} proxies in {} groups", begun.elapsed(), proxies.len(), groups.made.len());
        };
        round(&world, "everything");
        for _ in 0..3 {
            let mut clusters = world.clusters.clone();
            let view = Arc::make_mut(&mut clusters[7]);
            let endpoints = view.endpoints.values_mut().next().unwrap();
            Arc::make_mut(endpoints)[0].weight += 1;
            let begun = Instant::now();
            world = World::compose(&world, world.settings.clone(), clusters, world.policies.clone());
            eprintln!("compose: {:?}", begun.elapsed());
            round(&world, "one endpoint");
        }
        let mut clusters = world.clusters.clone();
        let view = Arc::make_mut(&mut clusters[7]);
        Arc::make_mut(Arc::make_mut(&mut view.services).values_mut().next().unwrap())
            .accounts
            .insert("spiffe://x".into());
        world = World::compose(&world, world.settings.clone(), clusters, world.policies.clone());
        round(&world, "one service");
    }

    #[test]
    fn a_proxy_says_who_it_is() {
        use stolos_xds::message::{object, string, structure};
        let node = Node {
            id: "router~10.0.0.1~gw-1.istio-system~istio-system.svc.cluster.local".into(),
            metadata: Some(structure([
                ("CLUSTER_ID", string("east")),
                ("NETWORK", string("net1")),
                ("REQUESTED_NETWORK_VIEW", string("net1, net2")),
                ("LABELS", object([("istio", string("eastwestgateway"))])),
                ("STOLOS_REDIRECT", string("proxy-protocol")),
                ("STOLOS_BIND", string("127.9.9.1")),
                ("DNS_CAPTURE", string("true")),
            ])),
            ..Node::default()
        };
        let proxy = |node: Node| Proxy {
            connection: 1,
            node,
            metadata: tonic::metadata::MetadataMap::new(),
            extensions: http::Extensions::new(),
        };
        let info = describe(&proxy(node)).unwrap();
        assert_eq!((info.kind, &*info.name, &*info.namespace), (ProxyKind::Router, "gw-1", "istio-system"));
        assert_eq!(info.view.len(), 2);
        assert!(info.proxy_protocol && info.dns);
        assert_eq!(info.listens_at().to_string(), "127.9.9.1");
        let redirected = ProxyInfo { bind: None, ..info.clone() };
        assert_eq!(redirected.listens_at().to_string(), "10.0.0.1", "brought to it");
        assert_eq!(ProxyInfo { proxy_protocol: false, ..redirected }.listens_at().to_string(), "0.0.0.0");
        for bad in ["", "sidecar~1.1.1.1", "ztunnel~10.0.0.1~a.b~b.svc.cluster.local"] {
            let node = Node { id: bad.into(), ..Node::default() };
            assert_eq!(describe(&proxy(node)).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
