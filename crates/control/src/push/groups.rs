//! What proxies that would be sent the same have in common, made once for all of them.
//!
//! A [`Group`] is made of an [`Outward`] part (clusters, listeners, routes, names: what namespace and cluster decide) and
//! of endpoints (what network and, seldom, place decide).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use stolos_xds::envoy::config::listener::v3::Listener;
use stolos_xds::{Resource, Resources};

use super::shared::{self, Part, Shared};
use crate::model::{ClusterView, Labels, Locality, ProxyInfo, ProxyKind, Resolution, Service, World};
use crate::policy::LocalitySetting;
use crate::translate::endpoints::Style;
use crate::translate::{gateway, ingress, listeners, names, tls_routes};

/// What proxies of one group have in common, and what else they are told apart by.
#[derive(Clone, PartialEq, Eq, Hash)]
struct GroupKey {
    outward: OutwardKey,
    network: Arc<str>,
    view: BTreeSet<String>,
    /// Where the place decides.
    place: Option<Locality>,
    /// Where the node decides.
    node: Option<String>,
}

/// What decides on everything but endpoints.
#[derive(Clone, PartialEq, Eq, Hash)]
struct OutwardKey {
    kind: ProxyKind,
    cluster: Arc<str>,
    namespace: String,
    /// Where names are asked of the proxy: its network, because names of pods are told of those that are near.
    dns: Option<Arc<str>>,
    /// Where labels decide: gateways, failover by labels, rules for some workloads.
    labels: Option<Labels>,
    /// Where a gateway listens.
    at: Option<IpAddr>,
    /// Where the proxy is itself behind a headless service.
    address: Option<IpAddr>,
}

/// What proxies of one group are sent.
pub(super) struct Group {
    pub(super) outward: Arc<Outward>,
    pub(super) endpoints: Arc<Resources>,
    /// One of its proxies.
    info: Arc<ProxyInfo>,
}

/// All of it but endpoints.
#[derive(Default)]
pub(super) struct Outward {
    pub(super) clusters: Arc<Resources>,
    pub(super) listeners: Arc<Resources>,
    pub(super) routes: Arc<Resources>,
    pub(super) names: Option<Arc<Resources>>,
    /// What clusters and endpoints are made of, by host.
    parts: BTreeMap<Arc<str>, Arc<Part>>,
}

/// All groups at one picture.
#[derive(Default)]
pub(super) struct Groups {
    world: Arc<World>,
    made: HashMap<GroupKey, Arc<Group>>,
    outward: HashMap<OutwardKey, Arc<Outward>>,
    /// Groups and outward parts of the picture before: what is the same stays the same `Arc`.
    before: HashMap<GroupKey, Arc<Group>>,
    outward_before: HashMap<OutwardKey, Arc<Outward>>,
    /// What became of the groups before, by their addresses, where only endpoints are others.
    became: HashMap<usize, Arc<Group>>,
    shared: Shared,
    /// The hosts whose endpoints changed since the picture before.
    pub(super) moved: BTreeSet<Arc<str>>,
    /// Whether nothing else did.
    pub(super) only_endpoints: bool,
    traits: Traits,
}

/// What of a picture makes proxies differ.
#[derive(Clone, Debug, Default)]
struct Traits {
    labels: bool,
    nodes: bool,
    places: bool,
    headless: BTreeSet<IpAddr>,
}

impl Groups {
    /// The picture that groups are of.
    pub(super) fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.made.len()
    }

    /// Goes on to a picture.
    pub(super) fn begin(&mut self, world: &Arc<World>) {
        if Arc::ptr_eq(world, &self.world) {
            return;
        }
        let before = std::mem::replace(&mut self.world, Arc::clone(world));
        self.moved = moved(&before, world);
        let same_gateways = Arc::ptr_eq(&before.gateways, &world.gateways);
        // The endpoints of a headless service are listeners and names, too.
        let headless = self.moved.iter().any(|host| {
            let service = world.services.by_host.get(host);
            service.is_some_and(|service| service.resolution == Resolution::Passthrough)
        });
        let same_services = Arc::ptr_eq(&before.services, &world.services);
        self.only_endpoints = !headless
            && same_gateways
            && same_services
            && Arc::ptr_eq(&before.settings, &world.settings)
            && Arc::ptr_eq(&before.policies, &world.policies);
        self.shared.begin(world, &self.moved, same_gateways);
        if !same_services {
            for (host, service) in &before.services.by_host {
                if world.services.by_host.get(host).is_none_or(|now| !Arc::ptr_eq(service, now)) {
                    self.shared.forget(host);
                }
            }
        }
        self.became.clear();
        if self.only_endpoints {
            let made = std::mem::take(&mut self.made);
            for (key, group) in made {
                // Its proxies are gone, but for this copy and the one in `before`, which is empty now.
                if Arc::strong_count(&group) == 1 {
                    continue;
                }
                let now = self.patch(&group);
                self.became.insert(Arc::as_ptr(&group).addr(), Arc::clone(&now));
                self.before.insert(key.clone(), group);
                self.made.insert(key, now);
            }
        } else {
            self.traits = traits(world);
            self.before = std::mem::take(&mut self.made);
            self.outward_before = std::mem::take(&mut self.outward);
        }
    }

    /// Forgets the groups that nobody is in any more.
    pub(super) fn end(&mut self) {
        if !self.only_endpoints {
            let used: BTreeSet<usize> = self.made.values().map(|group| Arc::as_ptr(&group.outward).addr()).collect();
            self.outward.retain(|_, outward| used.contains(&Arc::as_ptr(outward).addr()));
        }
        self.before.clear();
        self.outward_before.clear();
        self.became.clear();
        if self.world.version.is_multiple_of(SWEEP) || !self.only_endpoints {
            self.shared.sweep(&self.world);
        }
    }

    /// What has become of a group of the picture before, where only endpoints are others.
    pub(super) fn became(&self, before: &Arc<Group>) -> Option<Arc<Group>> {
        self.became.get(&Arc::as_ptr(before).addr()).cloned()
    }

    /// The group of a proxy.
    pub(super) fn of(&mut self, info: &Arc<ProxyInfo>) -> Arc<Group> {
        let labels = (self.traits.labels || info.kind == ProxyKind::Router).then(|| info.labels.clone());
        let key = GroupKey {
            outward: OutwardKey {
                kind: info.kind,
                cluster: Arc::clone(&info.cluster),
                namespace: info.namespace.clone(),
                dns: info.dns.then(|| Arc::clone(&info.network)),
                labels,
                at: (info.kind == ProxyKind::Router).then(|| info.listens_at()),
                address: info.address.filter(|address| self.traits.headless.contains(address)),
            },
            network: Arc::clone(&info.network),
            view: info.view.clone(),
            place: (self.traits.places || self.traits.labels).then(|| info.locality.clone()),
            node: (self.traits.nodes || self.traits.labels).then(|| info.node.clone()),
        };
        if let Some(made) = self.made.get(&key) {
            return Arc::clone(made);
        }
        let outward = match self.outward.get(&key.outward) {
            Some(outward) => Arc::clone(outward),
            None => {
                let made = Arc::new(self.outward(info, &key.outward));
                self.outward.insert(key.outward.clone(), Arc::clone(&made));
                made
            }
        };
        let world = Arc::clone(&self.world);
        let mut all = Vec::new();
        for part in outward.parts.values() {
            all.extend(self.shared.endpoints(&world, info, part));
        }
        let mut endpoints = Arc::new(all.into_iter().collect::<Resources>());
        if let Some(before) = self.before.get(&key) {
            keep(&mut endpoints, &before.endpoints);
        }
        let group = Arc::new(Group { outward, endpoints, info: Arc::clone(info) });
        self.made.insert(key, Arc::clone(&group));
        group
    }

    fn outward(&mut self, info: &ProxyInfo, key: &OutwardKey) -> Outward {
        let world = Arc::clone(&self.world);
        let mut parts = BTreeMap::new();
        match info.kind {
            ProxyKind::Sidecar => {
                for (service, rule) in shared::wishes_of_sidecar(&world, info) {
                    let rule = self.shared.rule(&service.host, rule);
                    let part = self.shared.of_sidecar(&world, info, service, rule);
                    parts.insert(Arc::clone(&service.host), part);
                }
            }
            ProxyKind::Router => {
                for (service, rule, wishes) in wishes_of_router(&world, info) {
                    let rule = self.shared.rule(&service.host, rule.map(|rule| (*rule).clone()));
                    let part = Arc::new(shared::part(&world, info, service, rule, wishes));
                    parts.insert(Arc::clone(&service.host), part);
                }
            }
        }
        let (built, routes) = match info.kind {
            ProxyKind::Sidecar => (listeners::outbound(&world, info), listeners::routes(&world, info)),
            ProxyKind::Router => {
                let mut built = gateway::listeners(&world, info);
                tls_routes::add(&mut built, &world, info);
                // Of two servers that want one port in different ways, one gets it.
                let free = |one: &Listener| built.iter().all(|have| have.name != one.name);
                let more: Vec<_> = ingress::listeners(&world, info).into_iter().filter(free).collect();
                built.extend(more);
                (built, ingress::routes(&world, info))
            }
        };
        let mut outward = Outward {
            clusters: Arc::new(parts.values().flat_map(|part| part.clusters.iter().cloned()).collect()),
            listeners: Arc::new(built.iter().map(Resource::of).collect()),
            routes: Arc::new(Resources::of(&routes)),
            names: info.dns.then(|| Arc::new(Resources::of([&names::table(&world, info)]))),
            parts,
        };
        if let Some(before) = self.outward_before.get(key) {
            keep(&mut outward.clusters, &before.clusters);
            keep(&mut outward.listeners, &before.listeners);
            keep(&mut outward.routes, &before.routes);
            if let (Some(now), Some(before)) = (&mut outward.names, &before.names) {
                keep(now, before);
            }
        }
        outward
    }

    /// The group, with the endpoints of the hosts that have moved made anew.
    fn patch(&mut self, before: &Group) -> Arc<Group> {
        let mut endpoints = Arc::clone(&before.endpoints);
        for host in &self.moved {
            if let Some(part) = before.outward.parts.get(host) {
                self.shared.update(&self.world, &before.info, part, &mut endpoints);
            }
        }
        Arc::new(Group { outward: Arc::clone(&before.outward), endpoints, info: Arc::clone(&before.info) })
    }
}

/// How many pictures may pass before what nobody has is looked for.
const SWEEP: u64 = 64;

fn keep(now: &mut Arc<Resources>, before: &Arc<Resources>) {
    if now.len() == before.len() && now.differences(before).is_empty() {
        *now = Arc::clone(before);
    }
}

/// What a gateway wants of each service.
type RouterWish<'a> = (&'a Arc<Service>, Option<Arc<crate::policy::DestinationRule>>, Vec<shared::Wish>);

fn wishes_of_router<'a>(world: &'a World, info: &'a ProxyInfo) -> Vec<RouterWish<'a>> {
    let mut by_host = BTreeMap::<&Arc<str>, RouterWish<'a>>::new();
    let mut seen = BTreeSet::new();
    for passed in gateway::passed(world, info).into_values().flatten() {
        if seen.insert(passed.sni())
            && let Some((host, service)) = world.services.by_host.get_key_value(&passed.service.host)
        {
            let wish = (passed.port.clone(), passed.subset, Style::Passthrough);
            by_host.entry(host).or_insert_with(|| (service, passed.rule, Vec::new())).2.push(wish);
        }
    }
    for sent in ingress::sent(world, info) {
        let wish = (sent.port.clone(), sent.subset, Style::Client);
        let of_host = by_host.entry(&sent.service.host).or_insert_with(|| {
            let root = &world.settings.root_namespace;
            let (host, namespace) = (&sent.service.host, &sent.service.namespace);
            let rule = world.policies.destination(root, &info.namespace, &info.labels, host, namespace);
            (sent.service, rule.map(Arc::new), Vec::new())
        });
        of_host.2.push(wish);
    }
    for routed in tls_routes::routed(world, info) {
        let wish = (routed.port.clone(), routed.subset.to_owned(), Style::Client);
        let of_host = by_host.entry(&routed.service.host);
        let of_host = of_host.or_insert_with(|| (routed.service, routed.rule, Vec::new()));
        if !of_host.2.contains(&wish) {
            of_host.2.push(wish);
        }
    }
    by_host.into_values().collect()
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
        places: shared::minds_places(world),
        nodes: services().any(|service| service.node_local || service.distribution.is_some()),
        headless: headless
            .flat_map(|service| world.endpoints(&service.host).filter_map(|e| e.address).collect::<Vec<_>>())
            .collect(),
    }
}
