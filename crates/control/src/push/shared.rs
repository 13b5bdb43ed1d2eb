//! Resources that many groups of proxies have in common, each made once.
//!
//! A cluster of a service is the same for all sidecars that the same rule applies to. Its endpoints depend, besides, on
//! where the client is, but only as far as something asks for that: always on its network, seldom on its place, node or
//! labels ([`Needs`]). So a thousand proxies in twenty namespaces and three zones share one resource, and a change of
//! an endpoint is translated once per network.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use stolos_xds::{Resource, Resources};

use crate::model::{Labels, Locality, Port, ProxyInfo, Resolution, Service, Settings, World};
use crate::policy::{DestinationRule, LocalitySetting, Policies, PortPolicy};
use crate::translate::endpoints::{self, Style};
use crate::translate::{clusters, listeners};

/// What a group gets of one service.
pub(super) struct Part {
    pub(super) service: Arc<Service>,
    rule: Option<Arc<DestinationRule>>,
    /// Its clusters.
    pub(super) clusters: Vec<Arc<Resource>>,
    /// Its endpoint resources.
    wanted: Vec<Wanted>,
}

/// One endpoint resource.
struct Wanted {
    name: Arc<str>,
    port: Port,
    subset: String,
    style: Style,
    needs: Needs,
}

/// What, beside its network, decides which endpoints a client gets, and in which order.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Needs {
    cluster: bool,
    place: bool,
    /// Labels, and what becomes one: cluster, node, place.
    labels: bool,
    node: bool,
}

/// Where a client is, as far as it decides.
#[derive(PartialEq)]
struct Reach {
    network: Arc<str>,
    view: BTreeSet<String>,
    cluster: Option<Arc<str>>,
    place: Option<Locality>,
    labels: Option<Labels>,
    node: Option<String>,
}

impl Reach {
    fn of(info: &ProxyInfo, needs: Needs) -> Self {
        Self {
            network: Arc::clone(&info.network),
            view: info.view.clone(),
            cluster: (needs.cluster || needs.labels).then(|| Arc::clone(&info.cluster)),
            place: (needs.place || needs.labels).then(|| info.locality.clone()),
            labels: needs.labels.then(|| info.labels.clone()),
            node: (needs.node || needs.labels).then(|| info.node.clone()),
        }
    }
}

/// An endpoint resource that has been made.
struct Made {
    reach: Reach,
    /// What it was made by; the same `Arc` for equal rules.
    rule: Option<Arc<DestinationRule>>,
    resource: Arc<Resource>,
}

/// What of a service somebody wants: port, subset, in which form.
pub(super) type Wish = (Port, String, Style);

/// What has been made, of the picture that [`Shared::begin`] was told of last.
#[derive(Default)]
pub(super) struct Shared {
    settings: Arc<Settings>,
    policies: Arc<Policies>,
    rules: HashMap<Arc<str>, Vec<Arc<DestinationRule>>>,
    /// Of sidecars, by host.
    parts: HashMap<Arc<str>, Vec<Arc<Part>>>,
    /// By host.
    endpoints: HashMap<Arc<str>, Vec<Made>>,
}

impl Shared {
    /// Goes on to a picture, in which the endpoints of these hosts are others.
    pub(super) fn begin(&mut self, world: &World, moved: &BTreeSet<Arc<str>>, same_gateways: bool) {
        if !Arc::ptr_eq(&self.settings, &world.settings) || !Arc::ptr_eq(&self.policies, &world.policies) {
            *self = Self {
                settings: Arc::clone(&world.settings),
                policies: Arc::clone(&world.policies),
                ..Self::default()
            };
            return;
        }
        if !same_gateways {
            self.endpoints.clear();
        }
        for host in moved {
            self.endpoints.remove(host);
            let service = world.services.by_host.get(host);
            // What a headless service's clusters are depends on its endpoints.
            if service.is_none_or(|service| service.resolution == Resolution::Passthrough) {
                self.parts.remove(host);
            }
        }
    }

    /// Forgets what nobody has any more.
    pub(super) fn sweep(&mut self, world: &World) {
        self.parts.retain(|host, _| world.services.by_host.contains_key(host));
        self.rules.retain(|host, _| world.services.by_host.contains_key(host));
        self.endpoints.retain(|host, made| {
            made.retain(|made| Arc::strong_count(&made.resource) > 1);
            !made.is_empty() && world.services.by_host.contains_key(host)
        });
    }

    /// The rule for a host; equal rules are the same `Arc`.
    pub(super) fn rule(&mut self, host: &Arc<str>, rule: Option<DestinationRule>) -> Option<Arc<DestinationRule>> {
        let rule = rule?;
        let known = self.rules.entry(Arc::clone(host)).or_default();
        if let Some(same) = known.iter().find(|have| ***have == rule) {
            return Some(Arc::clone(same));
        }
        let rule = Arc::new(rule);
        known.push(Arc::clone(&rule));
        Some(rule)
    }

    /// What sidecars get of a service by a rule.
    pub(super) fn of_sidecar(
        &mut self,
        world: &World,
        info: &ProxyInfo,
        service: &Arc<Service>,
        rule: Option<Arc<DestinationRule>>,
    ) -> Arc<Part> {
        let known = self.parts.entry(Arc::clone(&service.host)).or_default();
        known.retain(|part| Arc::ptr_eq(&part.service, service));
        if let Some(part) = known.iter().find(|part| is_same(part.rule.as_ref(), rule.as_ref())) {
            return Arc::clone(part);
        }
        let subsets = rule.iter().flat_map(|rule| rule.subsets.iter().map(|subset| subset.name.clone()));
        let subsets: Vec<_> = std::iter::once(String::new()).chain(subsets).collect();
        let of_port = |port: &Port| {
            subsets.iter().map(|subset| (port.clone(), subset.clone(), Style::Client)).collect::<Vec<_>>()
        };
        let wishes = service.ports.iter().flat_map(of_port).collect();
        let part = Arc::new(part(world, info, service, rule, wishes));
        known.push(Arc::clone(&part));
        part
    }

    /// The endpoint resources of a part, for a client such as `info`.
    pub(super) fn endpoints(&mut self, world: &World, info: &ProxyInfo, part: &Part) -> Vec<Arc<Resource>> {
        if part.wanted.is_empty() {
            return Vec::new();
        }
        let known = self.endpoints.entry(Arc::clone(&part.service.host)).or_default();
        let of = |wanted: &Wanted| {
            let reach = Reach::of(info, wanted.needs);
            let same = |made: &&Made| {
                made.resource.name == wanted.name
                    && is_same(made.rule.as_ref(), part.rule.as_ref())
                    && made.reach == reach
            };
            if let Some(made) = known.iter().find(same) {
                return Arc::clone(&made.resource);
            }
            let (service, rule) = (&part.service, part.rule.as_deref());
            let groups = endpoints::select(world, info, service, &wanted.port, &wanted.subset, wanted.style, rule);
            let mut resource = Resource::of(&endpoints::assignment(&wanted.name, groups));
            resource.name = Arc::clone(&wanted.name);
            let resource = Arc::new(resource);
            known.push(Made { reach, rule: part.rule.clone(), resource: Arc::clone(&resource) });
            resource
        };
        part.wanted.iter().map(of).collect()
    }

    /// Puts the endpoint resources of a part among others; those of the same content stay.
    pub(super) fn update(&mut self, world: &World, info: &ProxyInfo, part: &Part, all: &mut Arc<Resources>) {
        for resource in self.endpoints(world, info, part) {
            if all.get(&resource.name).is_none_or(|have| have.version != resource.version) {
                Arc::make_mut(all).insert(resource);
            }
        }
    }

    /// Services whose endpoints were made of a service that is another now are made again.
    pub(super) fn forget(&mut self, host: &Arc<str>) {
        self.endpoints.remove(host);
    }
}

fn is_same(a: Option<&Arc<DestinationRule>>, b: Option<&Arc<DestinationRule>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

/// What somebody gets of a service who wants this of it.
pub(super) fn part(
    world: &World,
    info: &ProxyInfo,
    service: &Arc<Service>,
    rule: Option<Arc<DestinationRule>>,
    wishes: Vec<Wish>,
) -> Part {
    let mut part = Part { service: Arc::clone(service), rule, clusters: Vec::new(), wanted: Vec::new() };
    for (port, subset, style) in wishes {
        let rule = part.rule.as_deref();
        let cluster = clusters::outbound(world, info, service, &port, &subset, style, rule);
        let Some(cluster) = cluster else { continue };
        let resource = Resource::of(&cluster);
        if cluster.eds_cluster_config.is_some() {
            let needs =
                needs(world, service, &rule.map(|rule| rule.effective(port.number, &subset)).unwrap_or_default());
            part.wanted.push(Wanted { name: Arc::clone(&resource.name), port, subset, style, needs });
        }
        part.clusters.push(Arc::new(resource));
    }
    part
}

/// What [`endpoints::select`] looks at of a client.
fn needs(world: &World, service: &Service, policy: &PortPolicy) -> Needs {
    let mut needs =
        Needs { cluster: world.settings.is_cluster_local(&service.host), node: service.node_local, ..Needs::default() };
    let mut by = |setting: &LocalitySetting, failover: bool| {
        needs.labels |= failover && !setting.failover_priority.is_empty();
        needs.place |= failover || !setting.distribute.is_empty();
    };
    match (&policy.locality, service.distribution, &world.settings.locality) {
        (Some(setting), ..) | (None, None, Some(setting)) if setting.disabled => {}
        (Some(setting), ..) | (None, None, Some(setting)) => by(setting, policy.outlier.is_some()),
        (None, Some(_), _) => needs.labels = true,
        (None, None, None) => by(&LocalitySetting::default(), policy.outlier.is_some()),
    }
    needs
}

/// Whether anything of a picture goes by the place that a client is in.
pub(super) fn minds_places(world: &World) -> bool {
    let rules = world.policies.destinations.iter();
    let policies =
        rules.flat_map(|rule| rule.policy.iter().chain(rule.subsets.iter().filter_map(|s| s.policy.as_ref())));
    let mut policies = policies.flat_map(|policy| std::iter::once(&policy.all).chain(policy.ports.values()));
    policies.any(|policy| policy.locality.is_some() || policy.outlier.is_some())
        || world.settings.locality.as_ref().is_some_and(|setting| !setting.distribute.is_empty())
        || world.services.in_order.iter().any(|service| service.distribution.is_some())
}

/// The services that a sidecar may send to, with the rule for each.
pub(super) fn wishes_of_sidecar<'a>(
    world: &'a World,
    info: &'a ProxyInfo,
) -> impl Iterator<Item = (&'a Arc<Service>, Option<DestinationRule>)> {
    let root = &world.settings.root_namespace;
    listeners::visible(world, info).map(move |service| {
        let rule = world.policies.destination(root, &info.namespace, &info.labels, &service.host, &service.namespace);
        (service, rule)
    })
}
