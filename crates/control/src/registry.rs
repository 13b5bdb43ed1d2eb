//! One cluster's objects, reduced to what discovery needs of them.
//!
//! A [`Registry`] takes changes as they come and makes a [`ClusterView`] when asked. Only what a change touches is
//! made anew; a change that changes nothing is dropped at the door.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;
use k8s_openapi::api::discovery::v1 as discovery;
use stolos_k8s::istio;

use crate::model::{
    ClusterView, Distribution, Endpoint, Gateway, Health, Labels, Locality, PodFacts, Port, Protocol, Resolution,
    Service, Settings, Target, selects,
};

/// Namespace (empty for none) and name.
pub type Key = (String, String);

/// What happened to one kind of object.
#[derive(Clone, Debug)]
pub enum Change<F> {
    /// This one is there now, so.
    Set(Key, F),
    /// This one is gone.
    Gone(Key),
    /// These are all there are.
    All(BTreeMap<Key, F>),
}

/// One kind of object.
#[derive(Debug)]
struct Table<F> {
    rows: BTreeMap<Key, Arc<F>>,
    listed: bool,
}

impl<F> Default for Table<F> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), listed: false }
    }
}

impl<F: PartialEq> Table<F> {
    /// Takes a change; says which rows are not what they were.
    fn apply(&mut self, change: Change<F>) -> Vec<Key> {
        match change {
            Change::Set(key, fact) => match self.rows.get(&key) {
                Some(have) if **have == fact => Vec::new(),
                _ => {
                    self.rows.insert(key.clone(), Arc::new(fact));
                    vec![key]
                }
            },
            Change::Gone(key) => self.rows.remove(&key).map(|_| key).into_iter().collect(),
            Change::All(mut all) => {
                self.listed = true;
                let mut changed = Vec::new();
                self.rows.retain(|key, have| match all.remove(key) {
                    Some(fact) if fact == **have => true,
                    Some(fact) => {
                        *have = Arc::new(fact);
                        changed.push(key.clone());
                        true
                    }
                    None => {
                        changed.push(key.clone());
                        false
                    }
                });
                for (key, fact) in all {
                    changed.push(key.clone());
                    self.rows.insert(key, Arc::new(fact));
                }
                changed
            }
        }
    }

    fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a Key, &'a Arc<F>)> {
        self.rows.range((namespace.to_owned(), String::new())..).take_while(move |((ns, _), _)| ns == namespace)
    }
}

/// What is kept of a Service, beyond [`Service`].
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFacts {
    /// For discovery.
    pub service: Service,
    /// The network it is a gateway of, and the port for it.
    pub gateway: Option<(String, u16)>,
    /// Where the nodes with these labels lead there, the port that they do it at.
    pub on_nodes: Option<(Labels, u16)>,
    /// Its external addresses.
    pub external: Vec<IpAddr>,
    /// Its external host names.
    pub external_hosts: Vec<String>,
    /// Service accounts of its namespace that are behind it, by annotation.
    pub accounts: Vec<String>,
}

/// What is kept of a Node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    /// Its labels.
    pub labels: Labels,
    /// Its address outside of the cluster.
    pub external: Option<IpAddr>,
}

/// What is kept of an EndpointSlice.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceFacts {
    /// The Service it is of.
    pub service: String,
    /// Its ports: name and number.
    pub ports: Vec<(String, u16)>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceEndpoint {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its pod, if it is one.
    pub pod: Option<Key>,
    /// Its node.
    pub node: Option<String>,
    /// How it is: ready, serving, terminating.
    pub conditions: (Option<bool>, Option<bool>, Option<bool>),
}

/// How many changes at once are looked at as a whole, because looking at each would be the square of them.
const MANY: usize = 16;

/// The slices of each service.
type SlicesOf<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a Arc<SliceFacts>>>;

/// The objects of one cluster.
#[derive(Debug)]
pub struct Registry {
    id: Arc<str>,
    /// Whether proxies of this cluster are served here, so that its pods must be known one by one.
    own: bool,
    namespaces: Table<Labels>,
    services: Table<ServiceFacts>,
    slices: Table<SliceFacts>,
    pods: Table<PodFacts>,
    nodes: Table<NodeFacts>,
    resolved: BTreeMap<String, Vec<IpAddr>>,
    dirty: Dirty,
    made: Option<(Arc<Settings>, Arc<ClusterView>)>,
}

#[derive(Debug, Default)]
struct Dirty {
    all: bool,
    services: bool,
    pods: bool,
    hosts: BTreeSet<Key>,
}

impl Registry {
    /// An empty one.
    #[must_use]
    pub fn new(id: &str, own: bool) -> Self {
        Self {
            id: id.into(),
            own,
            namespaces: Table::default(),
            services: Table::default(),
            slices: Table::default(),
            pods: Table::default(),
            nodes: Table::default(),
            resolved: BTreeMap::new(),
            dirty: Dirty { all: true, ..Dirty::default() },
            made: None,
        }
    }

    /// Whether every kind has been listed once.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.namespaces.listed && self.services.listed && self.slices.listed && self.pods.listed && self.nodes.listed
    }

    /// Namespaces changed.
    pub fn namespaces(&mut self, change: Change<Labels>) {
        if !self.namespaces.apply(change).is_empty() {
            self.dirty.all = true;
        }
    }

    /// Services changed.
    pub fn services(&mut self, change: Change<ServiceFacts>) {
        let changed = self.services.apply(change);
        self.dirty.services |= !changed.is_empty();
        self.dirty.hosts.extend(changed);
    }

    /// EndpointSlices changed.
    pub fn slices(&mut self, change: Change<SliceFacts>) {
        // A slice that is gone no longer says whose it was.
        let of = |slices: &Table<SliceFacts>, key: &Key| {
            slices.rows.get(key).map(|slice| (key.0.clone(), slice.service.clone()))
        };
        let before: Vec<_> = match &change {
            Change::Set(key, _) | Change::Gone(key) => of(&self.slices, key).into_iter().collect(),
            Change::All(_) => self.slices.rows.keys().filter_map(|key| of(&self.slices, key)).collect(),
        };
        let changed = self.slices.apply(change);
        if !changed.is_empty() {
            self.dirty.hosts.extend(before);
            self.dirty.hosts.extend(changed.iter().filter_map(|key| of(&self.slices, key)));
        }
    }

    /// Pods changed.
    pub fn pods(&mut self, change: Change<PodFacts>) {
        let changed = self.pods.apply(change);
        self.dirty.pods |= !changed.is_empty();
        if changed.len() > MANY {
            let of = |((namespace, _), slice): (&Key, &Arc<SliceFacts>)| (namespace.clone(), slice.service.clone());
            self.dirty.hosts.extend(self.slices.rows.iter().map(of));
            return;
        }
        for key in changed {
            for ((namespace, _), slice) in self.slices.in_namespace(&key.0) {
                if slice.endpoints.iter().any(|endpoint| endpoint.pod.as_ref() == Some(&key)) {
                    self.dirty.hosts.insert((namespace.clone(), slice.service.clone()));
                }
            }
        }
    }

    /// Nodes changed.
    pub fn nodes(&mut self, change: Change<NodeFacts>) {
        if !self.nodes.apply(change).is_empty() {
            self.dirty.all = true;
        }
    }

    /// The gateway host names that want resolving.
    #[must_use]
    pub fn unresolved(&self) -> BTreeSet<String> {
        let gateways = self.services.rows.values().filter(|facts| facts.gateway.is_some());
        gateways.flat_map(|facts| facts.external_hosts.iter().cloned()).collect()
    }

    /// Takes what gateway host names resolve to.
    pub fn resolved(&mut self, resolved: &BTreeMap<String, Vec<IpAddr>>) {
        if self.resolved != *resolved {
            self.resolved = resolved.clone();
            self.dirty.services = true;
        }
    }

    /// The picture now; the same `Arc` as before if nothing changed.
    pub fn view(&mut self, settings: &Arc<Settings>) -> Arc<ClusterView> {
        let dirty = std::mem::take(&mut self.dirty);
        let before = match self.made.take() {
            Some((with, view)) if Arc::ptr_eq(&with, settings) || with == *settings => Some(view),
            _ => None,
        };
        let view = match before {
            Some(view) if !(dirty.all || dirty.services || dirty.pods) && dirty.hosts.is_empty() => view,
            Some(view) if !dirty.all => Arc::new(self.patched(&view, settings, &dirty)),
            _ => Arc::new(self.whole(settings)),
        };
        self.made = Some((Arc::clone(settings), Arc::clone(&view)));
        view
    }

    fn whole(&self, settings: &Settings) -> ClusterView {
        let network = self.network(settings);
        let mut view = ClusterView {
            id: Arc::clone(&self.id),
            network: network.clone(),
            services: Arc::new(self.all_services()),
            gateways: Arc::new(self.gateways(&network)),
            namespaces: Arc::new(
                self.namespaces.rows.iter().map(|((_, name), labels)| (name.clone(), Labels::clone(labels))).collect(),
            ),
            pods: self.pod_view(),
            ..ClusterView::default()
        };
        let hosts: Vec<_> = self.services.rows.keys().cloned().collect();
        self.set_endpoints(&mut view, settings, hosts.iter());
        view
    }

    fn patched(&self, before: &ClusterView, settings: &Settings, dirty: &Dirty) -> ClusterView {
        let mut view = before.clone();
        if dirty.services {
            view.services = Arc::new(self.all_services());
            let gateways = self.gateways(&view.network);
            if gateways != *view.gateways {
                view.gateways = Arc::new(gateways);
            }
        }
        if dirty.pods && self.own {
            view.pods = self.pod_view();
        }
        self.set_endpoints(&mut view, settings, dirty.hosts.iter());
        view
    }

    fn network(&self, settings: &Settings) -> Arc<str> {
        let system = self.namespaces.rows.get(&(String::new(), settings.root_namespace.clone()));
        let label = system.and_then(|labels| labels.get(istio::NETWORK_LABEL));
        label.or_else(|| settings.networks.get(&*self.id)).map(String::as_str).unwrap_or_default().into()
    }

    fn all_services(&self) -> BTreeMap<Arc<str>, Arc<Service>> {
        let of = |facts: &Arc<ServiceFacts>| {
            let mut service = facts.service.clone();
            if service.distribution.is_none() {
                let labels = self.namespaces.rows.get(&(String::new(), service.namespace.clone()));
                let own = labels.and_then(|labels| labels.get(istio::TRAFFIC_DISTRIBUTION_ANNOTATION));
                service.distribution = own.and_then(|value| distribution(value));
            }
            let vips: Vec<_> = service.vip.into_iter().chain(service.vips.values().flatten().copied()).collect();
            service.vip = vips.first().copied();
            service.vips = if vips.is_empty() { BTreeMap::new() } else { [(Arc::clone(&self.id), dedup(vips))].into() };
            (Arc::clone(&service.host), Arc::new(service))
        };
        self.services.rows.values().map(of).collect()
    }

    fn gateways(&self, _network: &str) -> Vec<Gateway> {
        let mut gateways = Vec::new();
        for facts in self.services.rows.values() {
            let Some((network, port)) = &facts.gateway else { continue };
            let names = facts.external_hosts.iter().filter_map(|host| self.resolved.get(host)).flatten();
            let at = facts.external.iter().chain(names).map(|address| (*address, *port));
            let on_nodes = facts.on_nodes.iter().flat_map(|(selector, port)| {
                let nodes = self.nodes.rows.values().filter(|node| selects(selector, &node.labels));
                nodes.filter_map(|node| Some((node.external?, *port)))
            });
            for (address, port) in at.chain(on_nodes) {
                gateways.push(Gateway {
                    address,
                    port,
                    network: network.as_str().into(),
                    cluster: Arc::clone(&self.id),
                });
            }
        }
        gateways.sort();
        gateways.dedup();
        gateways
    }

    fn pod_view(&self) -> Arc<BTreeMap<Key, Arc<PodFacts>>> {
        if !self.own {
            return Arc::default();
        }
        let placed = self.pods.rows.iter().map(|(key, pod)| {
            let locality = self.locality(pod);
            let pod = if locality == pod.locality {
                Arc::clone(pod)
            } else {
                Arc::new(PodFacts { locality, ..PodFacts::clone(pod) })
            };
            (key.clone(), pod)
        });
        Arc::new(placed.collect())
    }

    fn locality(&self, pod: &PodFacts) -> Locality {
        if let Some(label) = pod.labels.get("topology.istio.io/locality") {
            return Locality::parse_label(label);
        }
        if let Some(label) = pod.labels.get("istio-locality") {
            return Locality::parse_label(label);
        }
        self.locality_of_node(&pod.node)
    }

    fn locality_of_node(&self, node: &str) -> Locality {
        let Some(node) = self.nodes.rows.get(&(String::new(), node.to_owned())) else { return Locality::default() };
        let labels = &node.labels;
        let of = |names: &[&str]| names.iter().find_map(|name| labels.get(*name)).cloned().unwrap_or_default();
        Locality {
            region: of(&[istio::REGION_LABEL, "failure-domain.beta.kubernetes.io/region"]),
            zone: of(&[istio::ZONE_LABEL, "failure-domain.beta.kubernetes.io/zone"]),
            subzone: of(&[istio::SUBZONE_LABEL]),
        }
    }

    /// Makes the endpoints of these services anew.
    fn set_endpoints<'a>(
        &self,
        view: &mut ClusterView,
        settings: &Settings,
        hosts: impl ExactSizeIterator<Item = &'a Key>,
    ) {
        let slices = (hosts.len() > MANY).then(|| self.slices_of());
        for key in hosts {
            let host: Arc<str> = istio::host(&key.1, &key.0, &settings.domain).into();
            let endpoints = match self.services.rows.get(key) {
                Some(facts) => self.endpoints(facts, settings, &view.network, slices.as_ref()),
                None => Vec::new(),
            };
            let written = self.services.rows.get(key).map(|facts| facts.accounts.as_slice()).unwrap_or_default();
            let written = written.iter().map(|account| {
                if account.starts_with("spiffe://") {
                    account.clone()
                } else {
                    format!("spiffe://{}/ns/{}/sa/{account}", settings.trust_domain, key.0)
                }
            });
            let found = endpoints.iter().map(|e| e.identity.clone()).filter(|identity| !identity.is_empty());
            let accounts: BTreeSet<_> = found.chain(written).collect();
            let same = view.accounts.get(&host).map_or(accounts.is_empty(), |have| *have == accounts);
            if !same {
                let all = Arc::make_mut(&mut view.accounts);
                if accounts.is_empty() {
                    all.remove(&host);
                } else {
                    all.insert(Arc::clone(&host), accounts);
                }
            }
            if !self.services.rows.contains_key(key) {
                view.endpoints.remove(&host);
            } else if view.endpoints.get(&host).is_none_or(|have| **have != endpoints) {
                view.endpoints.insert(host, Arc::new(endpoints));
            }
        }
    }

    fn slices_of(&self) -> SlicesOf<'_> {
        let mut of = SlicesOf::new();
        for ((namespace, _), slice) in &self.slices.rows {
            of.entry((namespace, &slice.service)).or_default().push(slice);
        }
        of
    }

    fn endpoints(
        &self,
        facts: &ServiceFacts,
        settings: &Settings,
        network: &Arc<str>,
        slices: Option<&SlicesOf<'_>>,
    ) -> Vec<Endpoint> {
        let service = &facts.service;
        let (mut endpoints, mut seen) = (Vec::new(), BTreeSet::new());
        let slices = match slices {
            Some(known) => known.get(&(service.namespace.as_str(), service.name.as_str())).cloned().unwrap_or_default(),
            None => {
                let near = self.slices.in_namespace(&service.namespace).map(|(_, slice)| slice);
                near.filter(|slice| slice.service == service.name).collect()
            }
        };
        for slice in slices {
            for endpoint in &slice.endpoints {
                let pod = match &endpoint.pod {
                    // Its pod is not known yet: held back until it is.
                    Some(key) => match self.pods.rows.get(key) {
                        Some(pod) => Some(pod),
                        None => continue,
                    },
                    None => None,
                };
                let health = health(endpoint.conditions, service.keeps_draining());
                let described = self.describe(endpoint, pod, settings, network);
                for address in &endpoint.addresses {
                    for (name, port) in &slice.ports {
                        if seen.insert((*address, name.clone())) {
                            endpoints.push(Endpoint {
                                address: Some(*address),
                                port: *port,
                                port_name: name.clone(),
                                health,
                                ..described.clone()
                            });
                        }
                    }
                }
            }
        }
        endpoints.sort_by(|a, b| (&a.address, &a.port_name).cmp(&(&b.address, &b.port_name)));
        endpoints
    }

    /// Everything about an endpoint but address, port and health.
    fn describe(
        &self,
        endpoint: &SliceEndpoint,
        pod: Option<&Arc<PodFacts>>,
        settings: &Settings,
        network: &Arc<str>,
    ) -> Endpoint {
        let node = pod.map(|pod| pod.node.clone()).or_else(|| endpoint.node.clone()).unwrap_or_default();
        let locality = pod.map_or_else(|| self.locality_of_node(&node), |pod| self.locality(pod));
        let mut labels = pod.map(|pod| pod.labels.clone()).unwrap_or_default();
        let network = labels.get(istio::NETWORK_LABEL).map_or_else(|| Arc::clone(network), |own| own.as_str().into());
        let derived = [
            (istio::REGION_LABEL, locality.region.as_str()),
            (istio::ZONE_LABEL, &locality.zone),
            (istio::SUBZONE_LABEL, &locality.subzone),
            (istio::CLUSTER_LABEL, &self.id),
            ("kubernetes.io/hostname", &node),
            (istio::NETWORK_LABEL, &network),
        ];
        for (name, value) in derived {
            if !value.is_empty() {
                labels.insert(name.to_owned(), value.to_owned());
            }
        }
        let identity =
            pod.map(|pod| format!("spiffe://{}/ns/{}/sa/{}", settings.trust_domain, pod.namespace, pod.account));
        Endpoint {
            address: None,
            port: 0,
            port_name: String::new(),
            cluster: Arc::clone(&self.id),
            network,
            locality,
            identity: identity.unwrap_or_default(),
            tls: labels.get(istio::TLS_MODE_LABEL).is_some_and(|mode| mode == istio::TLS_MODE_ISTIO),
            weight: 1,
            labels: Arc::new(labels),
            health: Health::Healthy,
            workload: pod.map(|pod| pod.workload.clone()).unwrap_or_default(),
            namespace: pod.map(|pod| pod.namespace.clone()).unwrap_or_default(),
            node,
            hostname: pod.and_then(|pod| pod.hostname.clone()),
        }
    }
}

fn dedup(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    addresses.retain(|address| seen.insert(*address));
    addresses
}

fn health((ready, serving, terminating): (Option<bool>, Option<bool>, Option<bool>), keeps_draining: bool) -> Health {
    if ready.unwrap_or(true) {
        Health::Healthy
    } else if keeps_draining && serving.unwrap_or(true) && terminating.unwrap_or(true) {
        Health::Draining
    } else if terminating.unwrap_or(true) {
        Health::Terminating
    } else {
        Health::Unhealthy
    }
}

fn distribution(value: &str) -> Option<Distribution> {
    match value.to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => Some(Distribution::SameZone),
        "prefersamenode" => Some(Distribution::SameNode),
        _ => None,
    }
}

/// Reads a Namespace.
#[must_use]
pub fn namespace(object: api::Namespace) -> Option<(Key, Labels)> {
    Some(((String::new(), object.metadata.name?), object.metadata.labels.unwrap_or_default()))
}

/// Reads a Node.
#[must_use]
pub fn node(object: api::Node) -> Option<(Key, NodeFacts)> {
    let addresses = object.status.and_then(|status| status.addresses).unwrap_or_default();
    let external = addresses.into_iter().filter(|address| address.type_ == "ExternalIP");
    let external = external.filter_map(|address| address.address.parse().ok()).next();
    let labels = object.metadata.labels.unwrap_or_default();
    Some(((String::new(), object.metadata.name?), NodeFacts { labels, external }))
}

/// Reads a Service.
#[must_use]
pub fn service(object: api::Service, domain: &str) -> Option<(Key, ServiceFacts)> {
    let metadata = object.metadata;
    let (name, namespace) = (metadata.name?, metadata.namespace?);
    let spec = object.spec.unwrap_or_default();
    let labels = metadata.labels.unwrap_or_default();
    let annotations = metadata.annotations.unwrap_or_default();
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    let node_ports: BTreeMap<u16, u16> = spec
        .ports
        .iter()
        .flatten()
        .filter_map(|port| Some((u16::try_from(port.port).ok()?, u16::try_from(port.node_port?).ok()?)))
        .collect();
    let ports: Vec<Port> = spec
        .ports
        .into_iter()
        .flatten()
        .filter_map(|port| {
            let number = u16::try_from(port.port).ok()?;
            let name = port.name.unwrap_or_default();
            let transport = port.protocol.as_deref().unwrap_or("TCP");
            let target = match port.target_port {
                Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(target)) => {
                    Target::Number(u16::try_from(target).ok().filter(|t| *t > 0).unwrap_or(number))
                }
                Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(target)) => {
                    target.parse().map_or(Target::Named(target), Target::Number)
                }
                None => Target::Number(number),
            };
            let protocol = Protocol::of(transport, port.app_protocol.as_deref(), &name, number);
            Some(Port { name, number, protocol, target })
        })
        .collect();
    let resolution = if kind == "ExternalName" {
        Resolution::Alias(spec.external_name.clone().unwrap_or_default())
    } else if spec.cluster_ip.as_deref() == Some("None") {
        Resolution::Passthrough
    } else {
        Resolution::ClientSide
    };
    let vips: Vec<IpAddr> = spec
        .cluster_ips
        .unwrap_or_default()
        .into_iter()
        .chain(spec.cluster_ip)
        .filter_map(|address| address.parse().ok())
        .collect();
    let vips = dedup(vips);
    let ingress = object.status.and_then(|status| status.load_balancer).and_then(|balancer| balancer.ingress);
    let (mut external, mut external_hosts) = (Vec::new(), Vec::new());
    if kind == "LoadBalancer" {
        for entry in ingress.into_iter().flatten() {
            match (entry.ip.and_then(|ip| ip.parse().ok()), entry.hostname) {
                (Some(ip), _) => external.push(ip),
                (None, Some(host)) => external_hosts.push(host),
                (None, None) => {}
            }
        }
        if !external.is_empty() {
            external_hosts.clear();
        }
    }
    external.extend(spec.external_ips.into_iter().flatten().filter_map(|ip| ip.parse::<IpAddr>().ok()));
    let gateway = labels.get(istio::NETWORK_LABEL).and_then(|network| {
        let port = labels.get(istio::GATEWAY_PORT_LABEL).and_then(|port| port.parse().ok());
        let port = port.unwrap_or(istio::CROSS_NETWORK_PORT);
        // A Service that does not have the port cannot lead there.
        ports.iter().any(|have| have.number == port).then(|| (network.clone(), port))
    });
    // An object of labels; one that is empty, or cannot be read, is every node (B.3). Without it the nodes do not count.
    let on_nodes = annotations.get(istio::NODE_SELECTOR_ANNOTATION).filter(|_| kind == "NodePort").and_then(|text| {
        let selector: Labels = serde_json::from_str(text).unwrap_or_default();
        Some((selector, *node_ports.get(&gateway.as_ref()?.1)?))
    });
    let list = |name: &str| {
        let text = annotations.get(name).map(String::as_str).unwrap_or_default();
        text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect::<Vec<_>>()
    };
    let mut accounts = list(istio::SERVICE_ACCOUNTS_ANNOTATION);
    accounts.extend(
        list(istio::CANONICAL_SERVICE_ACCOUNTS_ANNOTATION)
            .into_iter()
            .map(|identity| if identity.starts_with("spiffe://") { identity } else { format!("spiffe://{identity}") }),
    );
    let wanted = spec.traffic_distribution.or_else(|| annotations.get(istio::TRAFFIC_DISTRIBUTION_ANNOTATION).cloned());
    let service = Service {
        host: istio::host(&name, &namespace, domain).into(),
        vip: vips.first().copied(),
        vips: if vips.is_empty() { BTreeMap::new() } else { [("".into(), vips)].into() },
        ports,
        resolution,
        accounts: BTreeSet::new(),
        selector: spec.selector.unwrap_or_default(),
        created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
        export_to: list(istio::EXPORT_TO_ANNOTATION).into_iter().collect(),
        node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        distribution: wanted.and_then(|value| distribution(&value)),
        labels,
        name: name.clone(),
        namespace: namespace.clone(),
    };
    Some(((namespace, name), ServiceFacts { service, gateway, on_nodes, external, external_hosts, accounts }))
}

/// Reads an EndpointSlice; none for those that discovery leaves out.
#[must_use]
pub fn slice(object: discovery::EndpointSlice) -> Option<(Key, SliceFacts)> {
    let metadata = object.metadata;
    let labels = metadata.labels.unwrap_or_default();
    let (name, namespace) = (metadata.name?, metadata.namespace?);
    if object.address_type == "FQDN" || labels.contains_key("multicluster.kubernetes.io/service-name") {
        return None;
    }
    let service = labels.get(istio::SERVICE_NAME_LABEL)?.clone();
    let ports = object.ports.into_iter().flatten().filter_map(|port| {
        let number = u16::try_from(port.port?).ok()?;
        (port.protocol.as_deref() != Some("UDP")).then(|| (port.name.unwrap_or_default(), number))
    });
    let endpoints = object.endpoints.into_iter().flatten().map(|endpoint| {
        let conditions = endpoint.conditions.map(|c| (c.ready, c.serving, c.terminating)).unwrap_or_default();
        let pod = endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod"));
        SliceEndpoint {
            addresses: endpoint.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
            pod: pod.and_then(|pod| Some((pod.namespace.unwrap_or_else(|| namespace.clone()), pod.name?))),
            node: endpoint.node_name,
            conditions,
        }
    });
    let facts = SliceFacts { service, ports: ports.collect(), endpoints: endpoints.collect() };
    Some(((namespace, name), facts))
}

/// Reads a Pod.
#[must_use]
pub fn pod(object: api::Pod) -> Option<(Key, PodFacts)> {
    let metadata = object.metadata;
    let (name, namespace) = (metadata.name?, metadata.namespace?);
    let spec = object.spec.unwrap_or_default();
    let labels = metadata.labels.unwrap_or_default();
    let owner = metadata.owner_references.unwrap_or_default().into_iter().find(|owner| owner.controller == Some(true));
    let workload = match owner {
        Some(owner) if owner.kind == "ReplicaSet" => {
            let hash = labels.get("pod-template-hash").map(|hash| format!("-{hash}"));
            hash.and_then(|hash| owner.name.strip_suffix(&hash).map(str::to_owned)).unwrap_or(owner.name)
        }
        Some(owner) => owner.name,
        None => name.clone(),
    };
    let status = object.status.unwrap_or_default();
    let ips = status.pod_ips.into_iter().flatten().filter_map(|ip| ip.ip.as_str().parse().ok());
    let addresses: Vec<IpAddr> = ips.chain(status.pod_ip.and_then(|ip| ip.parse().ok())).collect();
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    let ports = ports.filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)));
    let hostname = match (spec.hostname, spec.subdomain) {
        (Some(hostname), Some(subdomain)) => Some((hostname, subdomain)),
        (None, Some(subdomain)) => Some((name.clone(), subdomain)),
        _ => None,
    };
    let facts = PodFacts {
        addresses: dedup(addresses),
        account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
        node: spec.node_name.unwrap_or_default(),
        ports: ports.collect(),
        workload,
        hostname,
        labels,
        locality: Locality::default(),
        name: name.clone(),
        namespace: namespace.clone(),
    };
    Some(((namespace, name), facts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn all<F>(facts: impl IntoIterator<Item = Option<(Key, F)>>) -> Change<F> {
        Change::All(facts.into_iter().map(Option::unwrap).collect())
    }

    fn service_of(value: Value) -> Option<(Key, ServiceFacts)> {
        service(read(value), "cluster.local")
    }

    fn web() -> Value {
        json!({"metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "selector": {"app": "web"},
                "ports": [{"name": "http", "port": 80, "targetPort": "web"}]}})
    }

    fn web_pod(name: &str, address: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "shop",
                "labels": {"app": "web", "pod-template-hash": "abc", "security.istio.io/tlsMode": "istio"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "uid": "u", "controller": true}]},
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "containers": [
                {"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"podIP": address}})
    }

    fn web_slice(endpoints: &[(&str, &str, bool)]) -> Value {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(pod, address, ready)| {
                json!({"addresses": [address], "conditions": {"ready": ready, "terminating": false},
                "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"}})
            })
            .collect();
        json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints})
    }

    fn registry() -> Registry {
        let mut registry = Registry::new("east", true);
        registry.namespaces(all([namespace(read(json!({"metadata": {"name": "istio-system",
            "labels": {"topology.istio.io/network": "net1"}}})))]));
        registry.nodes(all([node(read(json!({"metadata": {"name": "n1", "labels": {
            "topology.kubernetes.io/region": "r1", "topology.kubernetes.io/zone": "z1"}}})))]));
        registry.services(all([service_of(web())]));
        registry.pods(all([pod(read(web_pod("web-1", "10.1.0.1")))]));
        assert!(!registry.is_synced());
        registry.slices(all([slice(read(web_slice(&[("web-1", "10.1.0.1", true), ("web-2", "10.1.0.2", true)])))]));
        assert!(registry.is_synced());
        registry
    }

    const HOST: &str = "web.shop.svc.cluster.local";

    fn seen(view: &ClusterView) -> Vec<String> {
        let of = |e: &Endpoint| {
            format!("{}:{} {} {} {:?} tls={}", e.address.unwrap(), e.port, e.network, e.locality, e.health, e.tls)
        };
        view.endpoints[HOST].iter().map(of).collect()
    }

    #[test]
    fn an_endpoint_is_held_back_until_its_pod_is_known() {
        let settings = Arc::new(Settings::default());
        let mut registry = registry();
        let first = registry.view(&settings);
        assert_eq!(seen(&first), ["10.1.0.1:8080 net1 r1/z1 Healthy tls=true"]);
        assert_eq!(first.accounts[HOST].iter().collect::<Vec<_>>(), ["spiffe://cluster.local/ns/shop/sa/web"]);
        assert_eq!(first.endpoints[HOST][0].workload, "web");
        assert!(Arc::ptr_eq(&first, &registry.view(&settings)), "nothing changed");

        let (key, facts) = pod(read(web_pod("web-2", "10.1.0.2"))).unwrap();
        registry.pods(Change::Set(key.clone(), facts.clone()));
        let second = registry.view(&settings);
        assert_eq!(second.endpoints[HOST].len(), 2);
        assert!(Arc::ptr_eq(&first.services, &second.services));
        assert!(Arc::ptr_eq(&first.accounts, &second.accounts), "the same account again");

        registry.pods(Change::Set(key, facts));
        assert!(Arc::ptr_eq(&second, &registry.view(&settings)), "the same pod again");
    }

    #[test]
    fn endpoints_come_go_and_change() {
        let settings = Arc::new(Settings::default());
        let mut registry = registry();
        registry.view(&settings);
        let (key, facts) = slice(read(web_slice(&[("web-1", "10.1.0.1", false)]))).unwrap();
        registry.slices(Change::Set(key.clone(), facts));
        assert_eq!(seen(&registry.view(&settings)), ["10.1.0.1:8080 net1 r1/z1 Unhealthy tls=true"]);
        registry.slices(Change::Gone(key));
        assert!(registry.view(&settings).endpoints[HOST].is_empty());
        registry.services(Change::Gone(("shop".into(), "web".into())));
        let view = registry.view(&settings);
        assert!(view.services.is_empty() && view.endpoints.is_empty());
    }

    #[test]
    fn the_systems_namespace_names_the_network() {
        let settings = Arc::new(Settings::default());
        let mut registry = registry();
        assert_eq!(&*registry.view(&settings).network, "net1");
        registry.namespaces(all([]));
        let view = registry.view(&settings);
        assert_eq!(&*view.network, "");
        assert!(seen(&view)[0].contains("8080  r1/z1"), "endpoints follow");
    }

    #[test]
    fn gateways_are_labelled_services_that_have_the_port() {
        let gateway = |labels: Value, port: u16, status: Value| {
            json!({"metadata": {"name": "gw", "namespace": "istio-system", "labels": labels},
                "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": [{"name": "tls", "port": port}]},
                "status": {"loadBalancer": {"ingress": status}}})
        };
        let label = json!({"topology.istio.io/network": "net1"});
        let other = json!({"topology.istio.io/network": "net1", "networking.istio.io/gatewayPort": "8443"});
        let ip = json!([{"ip": "192.0.2.1"}]);
        let gateways = |object: Value| {
            let mut registry = registry();
            registry.services(all([service_of(object)]));
            registry.resolved(&[("lb.example.com".to_owned(), vec!["192.0.2.9".parse().unwrap()])].into());
            let view = registry.view(&Arc::new(Settings::default()));
            view.gateways
                .iter()
                .map(|g| format!("{}:{} {} {}", g.address, g.port, g.network, g.cluster))
                .collect::<Vec<_>>()
        };
        assert_eq!(gateways(gateway(label.clone(), 15443, ip.clone())), ["192.0.2.1:15443 net1 east"]);
        assert_eq!(gateways(gateway(other, 8443, ip.clone())), ["192.0.2.1:8443 net1 east"]);
        assert!(gateways(gateway(label.clone(), 443, ip.clone())).is_empty(), "the port is not one of the Service's");
        assert!(gateways(gateway(json!({}), 15443, ip)).is_empty(), "no label");
        assert!(gateways(gateway(label.clone(), 15443, json!(null))).is_empty(), "still pending");
        let by_name = gateway(label, 15443, json!([{"hostname": "lb.example.com"}]));
        assert_eq!(gateways(by_name), ["192.0.2.9:15443 net1 east"]);
    }

    #[test]
    fn nodes_lead_to_a_gateway_where_an_annotation_says_which() {
        let gateways = |kind: &str, annotations: Value, external: Value| {
            let mut registry = registry();
            let node = |name: &str, zone: &str, address: &str| {
                node(read(json!({"metadata": {"name": name, "labels": {"zone": zone}}, "status": {"addresses": [
                    {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "ExternalIP", "address": address}]}})))
            };
            let inner = super::node(read(json!({"metadata": {"name": "n3", "labels": {"zone": "a"}},
                "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.3"}]}})));
            registry.nodes(all([node("n1", "a", "192.0.2.1"), node("n2", "b", "192.0.2.2"), inner]));
            registry.services(all([service_of(json!({
                "metadata": {"name": "gw", "namespace": "istio-system", "annotations": annotations,
                    "labels": {"topology.istio.io/network": "net1"}},
                "spec": {"type": kind, "clusterIP": "10.96.0.9", "externalIPs": external,
                    "ports": [{"name": "tls", "port": 15443, "nodePort": 31443}]}}))]));
            let view = registry.view(&Arc::new(Settings::default()));
            view.gateways.iter().map(|g| format!("{}:{}", g.address, g.port)).collect::<Vec<_>>()
        };
        let selector = |text: &str| json!({"traffic.istio.io/nodeSelector": text});
        let cases = [
            ("NodePort", json!({}), json!([]), vec![]),
            ("NodePort", selector("{}"), json!([]), vec!["192.0.2.1:31443", "192.0.2.2:31443"]),
            ("NodePort", selector("not JSON"), json!([]), vec!["192.0.2.1:31443", "192.0.2.2:31443"]),
            ("NodePort", selector(r#"{"zone": "a"}"#), json!([]), vec!["192.0.2.1:31443"]),
            ("NodePort", selector(r#"{"zone": "c"}"#), json!([]), vec![]),
            (
                "NodePort",
                selector(r#"{"zone": "b"}"#),
                json!(["192.0.2.7"]),
                vec!["192.0.2.2:31443", "192.0.2.7:15443"],
            ),
            ("ClusterIP", json!({}), json!(["192.0.2.7"]), vec!["192.0.2.7:15443"]),
            ("LoadBalancer", selector("{}"), json!([]), vec![]),
        ];
        for (kind, annotations, external, expected) in cases {
            let what = format!("{kind} {annotations} {external}");
            assert_eq!(gateways(kind, annotations, external), expected, "{what}");
        }
    }

    #[test]
    fn a_list_replaces_what_was_there() {
        let mut table = Table::default();
        let key = |name: &str| (String::new(), name.to_owned());
        table.apply(Change::All([(key("a"), 1), (key("b"), 1)].into()));
        let mut changed = table.apply(Change::All([(key("b"), 2), (key("c"), 1)].into()));
        changed.sort();
        assert_eq!(changed, [key("a"), key("b"), key("c")]);
        assert!(table.apply(Change::All([(key("b"), 2), (key("c"), 1)].into())).is_empty());
    }
}
