//! What the proxy knows: one writer that takes in resources, and any number of readers.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use http::HeaderValue;
use stolos_serve::{Container, Net, Output, Stop};
use stolos_xds::envoy::config::cluster::v3::Cluster as ClusterMessage;
use stolos_xds::envoy::config::endpoint::v3::ClusterLoadAssignment;
use stolos_xds::envoy::config::listener::v3::Listener as ListenerMessage;
use stolos_xds::envoy::config::route::v3::RouteConfiguration;
use stolos_xds::{Any, message, unpack};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use crate::agent::AgentHandle;
use crate::compile::{self, Refused};
use crate::config::{Cluster, Config, Host, Kind, Listener, Routes};
use crate::metrics::{Metrics, Workload};
use crate::tls::Identity;

/// What every connection may look at.
pub(crate) struct Shared {
    pub(crate) net: Arc<dyn Net>,
    pub(crate) output: Output,
    pub(crate) config: ArcSwap<Config>,
    pub(crate) identity: ArcSwapOption<Identity>,
    pub(crate) metrics: Metrics,
    /// Who the workload is, for labels.
    pub(crate) local: Workload,
    /// The same, as it is said to peers.
    pub(crate) said: Option<HeaderValue>,
    /// Given when the proxy starts to drain: connections end when it is polite.
    pub(crate) draining: Stop,
    /// Given when draining has taken long enough.
    pub(crate) cut: Stop,
    /// Every connection and every upstream connection.
    pub(crate) tasks: TaskTracker,
    /// Whether redirection is told by PROXY headers.
    pub(crate) by_header: bool,
    /// Counts the changes of listeners.
    pub(crate) changed: watch::Sender<u64>,
    /// Whether all that was asked for has come.
    pub(crate) complete: AtomicBool,
    /// Whether every listener has its socket.
    pub(crate) listening: AtomicBool,
    /// Knows why the proxy is not ready, if there is one.
    pub(crate) agent: OnceLock<AgentHandle>,
    own: ArcSwap<HashSet<SocketAddr>>,
    started: Instant,
}

impl Shared {
    fn new(container: &Container, local: Workload) -> Self {
        Self {
            net: Arc::clone(&container.net),
            output: container.output.clone(),
            config: ArcSwap::default(),
            identity: ArcSwapOption::empty(),
            metrics: Metrics::default(),
            said: local.to_header(),
            local,
            draining: Stop::new(),
            cut: Stop::new(),
            tasks: TaskTracker::new(),
            by_header: container.var("ISTIO_META_STOLOS_REDIRECT") == Some("proxy-protocol"),
            changed: watch::Sender::new(0),
            complete: AtomicBool::new(false),
            listening: AtomicBool::new(false),
            agent: OnceLock::new(),
            own: ArcSwap::default(),
            started: Instant::now(),
        }
    }

    /// Milliseconds of the proxy's own clock.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether connections would come back here: a proxy never dials itself.
    pub(crate) fn is_own(&self, address: SocketAddr) -> bool {
        self.own.load().contains(&address)
    }

    pub(crate) fn set_own(&self, addresses: HashSet<SocketAddr>) {
        self.own.store(Arc::new(addresses));
    }

    /// Whether the proxy may take traffic.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub(crate) fn readiness(&self) -> Result<(), String> {
        if self.draining.is_asked() {
            return Err("draining".into());
        }
        if let Some(agent) = self.agent.get() {
            agent.readiness()?;
        }
        match (self.complete.load(Ordering::Acquire), self.listening.load(Ordering::Acquire)) {
            (false, _) => Err("the configuration is not complete yet".into()),
            (_, false) => Err("a port cannot be listened on yet".into()),
            _ => Ok(()),
        }
    }

    /// The cluster of this name, with endpoints if they come soon.
    pub(crate) async fn cluster(&self, name: &str) -> Option<Arc<Cluster>> {
        const SOON: Duration = Duration::from_secs(1);
        let cluster = Arc::clone(self.config.load().clusters.get(name)?);
        if cluster.is_warming() {
            self.warm(&cluster, SOON).await;
        } else if let Kind::Dns(names) = &cluster.kind
            && cluster.names_are_old(self.now())
        {
            // One looks, the others go on with what there is.
            cluster.resolved_at.store(self.now(), Ordering::Relaxed);
            let _ = tokio::time::timeout(SOON, self.resolve(&cluster, names)).await;
        }
        Some(cluster)
    }

    async fn warm(&self, cluster: &Arc<Cluster>, soon: Duration) {
        if let Kind::Dns(names) = &cluster.kind {
            let _ = tokio::time::timeout(soon, self.resolve(cluster, names)).await;
            return;
        }
        let arrived = cluster.arrived.notified();
        tokio::pin!(arrived);
        arrived.as_mut().enable();
        if cluster.is_warming() {
            let _ = tokio::time::timeout(soon, arrived).await;
        }
    }

    /// Looks the names of a DNS cluster up; what cannot be found keeps the old hosts.
    async fn resolve(&self, cluster: &Cluster, names: &[(String, u16, u32)]) {
        let mut found = Vec::new();
        for (name, port, weight) in names {
            match self.net.resolve(name).await {
                Ok(addresses) => {
                    found.extend(addresses.into_iter().map(|ip| (SocketAddr::new(ip, *port), *weight)));
                }
                Err(error) => tracing::debug!(cluster = cluster.name, name, %error, "cannot resolve"),
            }
        }
        if !found.is_empty() || cluster.endpoints.load().is_none() {
            cluster.set_resolved(&found, self.now());
        }
    }
}

/// Takes in resources; the only one who changes what the proxy does.
///
/// Resources that cannot be obeyed are refused by name, the others of the same update are taken, and whatever is
/// refused leaves the version before it in force.
pub struct Store {
    shared: Arc<Shared>,
    clusters: HashMap<String, (Any, Arc<Cluster>)>,
    assignments: HashMap<String, ClusterLoadAssignment>,
    /// Which clusters take their endpoints from an assignment.
    of_assignment: HashMap<String, BTreeSet<String>>,
    listeners: BTreeMap<String, Known>,
    /// Listeners that wait for their routes; the version before them goes on.
    warming: BTreeMap<String, Known>,
    routes: HashMap<String, Arc<Routes>>,
    received: HashSet<String>,
    generation: u64,
}

#[derive(Clone)]
struct Known {
    listener: Arc<Listener>,
    routes: BTreeSet<String>,
}

impl Store {
    pub(crate) fn new(container: &Container, local: Workload) -> (Self, Arc<Shared>) {
        let shared = Arc::new(Shared::new(container, local));
        let store = Self {
            shared: Arc::clone(&shared),
            clusters: HashMap::new(),
            assignments: HashMap::new(),
            of_assignment: HashMap::new(),
            listeners: BTreeMap::new(),
            warming: BTreeMap::new(),
            routes: HashMap::new(),
            received: HashSet::new(),
            generation: 0,
        };
        (store, shared)
    }

    /// Sets who the workload is and whom it trusts. Connections that exist go on; new ones use it.
    pub fn set_identity(&mut self, of: Arc<crate::agent::Identity>) {
        self.generation += 1;
        let uri = of.credentials.leaf().uris().first().map(|uri| Arc::from(uri.as_str())).unwrap_or_default();
        let identity = Identity { of, uri, generation: self.generation };
        self.shared.identity.store(Some(Arc::new(identity)));
        self.note_completeness();
    }

    /// Takes in one response of the control plane: resources of one type that are new or changed, and the names of
    /// those that are gone.
    ///
    /// # Errors
    ///
    /// The text of a NACK: which resources were refused, and why. The others have been taken.
    pub fn update(&mut self, type_url: &str, changed: &[(String, Any)], removed: &[String]) -> Result<(), String> {
        let mut refused = Vec::new();
        match type_url {
            message::CLUSTER => self.update_clusters(changed, removed, &mut refused),
            message::ENDPOINT => self.update_endpoints(changed, removed, &mut refused),
            message::LISTENER => self.update_listeners(changed, removed, &mut refused),
            message::ROUTE => self.update_routes(changed, removed, &mut refused),
            other => refused.push(format!("type `{other}` was not asked for")),
        }
        self.received.insert(type_url.to_owned());
        self.note_completeness();
        if refused.is_empty() {
            self.shared.metrics.update_success.inc();
            return Ok(());
        }
        self.shared.metrics.update_rejected.inc();
        let text = refused.join("\n");
        tracing::warn!(type_url, "resources refused: {text}");
        Err(text)
    }

    /// The names that are needed of a type: endpoints of clusters, routes of listeners. Changes with every
    /// [`update`](Self::update).
    #[must_use]
    pub fn wanted(&self, type_url: &str) -> BTreeSet<String> {
        match type_url {
            message::ENDPOINT => self.of_assignment.keys().cloned().collect(),
            message::ROUTE => {
                let all = self.listeners.values().chain(self.warming.values());
                all.flat_map(|known| known.routes.iter().cloned()).collect()
            }
            _ => BTreeSet::new(),
        }
    }

    #[cfg(test)]
    pub(crate) fn shared_for_tests(&self) -> &Shared {
        &self.shared
    }

    fn update_clusters(&mut self, changed: &[(String, Any)], removed: &[String], refused: &mut Vec<String>) {
        for (name, any) in changed {
            if self.clusters.get(name).is_some_and(|(known, _)| known == any) {
                continue;
            }
            match self.compile_cluster(any) {
                Ok(cluster) => self.put_cluster(name, any, cluster),
                Err(error) => refused.push(format!("cluster `{name}`: {error}")),
            }
        }
        for name in removed {
            if let Some((_, old)) = self.clusters.remove(name) {
                self.forget_assignment(&old);
                retire(&old.hosts(), &[]);
            }
        }
        self.publish();
    }

    fn compile_cluster(&self, any: &Any) -> Result<Cluster, Refused> {
        let message: ClusterMessage = unpack(any).map_err(|e| Refused::new(e.to_string()))?;
        compile::cluster(&message)
    }

    fn put_cluster(&mut self, name: &str, any: &Any, cluster: Cluster) {
        let old = self.clusters.remove(name).map(|(_, old)| old);
        let known = old.as_ref().map(|old| old.hosts()).unwrap_or_default();
        if let Some(old) = &old {
            cluster.ejected_until.store(old.ejected_until.load(Ordering::Relaxed), Ordering::Relaxed);
            if !matches!(&cluster.kind, Kind::Eds(eds) if old.kind == Kind::Eds(eds.clone())) {
                self.forget_assignment(old);
            }
        }
        if let Kind::Eds(eds) = &cluster.kind {
            self.of_assignment.entry(eds.clone()).or_default().insert(name.to_owned());
            if let Some(assignment) = self.assignments.get(eds) {
                let by_address = known.iter().map(|host| (host.address, Arc::clone(host))).collect();
                // It was taken before; another cluster's terms do not make addresses bad.
                if let Ok(endpoints) = compile::endpoints(assignment, &cluster, &by_address) {
                    cluster.endpoints.store(Some(Arc::new(endpoints)));
                }
            }
        }
        retire(&known, &cluster.hosts());
        self.clusters.insert(name.to_owned(), (any.clone(), Arc::new(cluster)));
    }

    fn forget_assignment(&mut self, cluster: &Cluster) {
        let Kind::Eds(eds) = &cluster.kind else { return };
        let Some(users) = self.of_assignment.get_mut(eds) else { return };
        users.remove(&cluster.name);
        if users.is_empty() {
            self.of_assignment.remove(eds);
            self.assignments.remove(eds);
        }
    }

    fn update_endpoints(&mut self, changed: &[(String, Any)], removed: &[String], refused: &mut Vec<String>) {
        for (name, any) in changed {
            match unpack::<ClusterLoadAssignment>(any) {
                Ok(message) => {
                    if let Err(error) = self.put_endpoints(name, message) {
                        refused.push(format!("endpoints `{name}`: {error}"));
                    }
                }
                Err(error) => refused.push(format!("endpoints `{name}`: {error}")),
            }
        }
        for name in removed {
            // Gone means none; the cluster itself may still be there.
            let _ = self.put_endpoints(name, ClusterLoadAssignment::default());
            self.assignments.remove(name);
        }
    }

    fn put_endpoints(&mut self, name: &str, message: ClusterLoadAssignment) -> Result<(), Refused> {
        for cluster in self.of_assignment.get(name).into_iter().flatten() {
            let Some((_, cluster)) = self.clusters.get(cluster) else { continue };
            let old = cluster.hosts();
            let known = old.iter().map(|host| (host.address, Arc::clone(host))).collect();
            let endpoints = compile::endpoints(&message, cluster, &known)?;
            cluster.endpoints.store(Some(Arc::new(endpoints)));
            cluster.arrived.notify_waiters();
            retire(&old, &cluster.hosts());
        }
        self.assignments.insert(name.to_owned(), message);
        Ok(())
    }

    fn update_listeners(&mut self, changed: &[(String, Any)], removed: &[String], refused: &mut Vec<String>) {
        for (name, any) in changed {
            let compiled =
                unpack::<ListenerMessage>(any).map_err(|e| Refused::new(e.to_string())).and_then(|message| {
                    let routes = &mut self.routes;
                    compile::listener(&message, &mut |name| route_slot(routes, name))
                });
            match compiled {
                Ok(listening) => {
                    refused.extend(listening.closed.iter().map(|closed| format!("listener `{name}`: {closed}")));
                    let known = Known { listener: Arc::new(listening.listener), routes: listening.routes };
                    self.warming.insert(name.clone(), known);
                }
                Err(error) => refused.push(format!("listener `{name}`: {error}")),
            }
        }
        for name in removed {
            self.warming.remove(name);
            self.listeners.remove(name);
        }
        self.publish();
    }

    fn update_routes(&mut self, changed: &[(String, Any)], removed: &[String], refused: &mut Vec<String>) {
        for (name, any) in changed {
            let compiled = unpack::<RouteConfiguration>(any).map_err(|e| Refused::new(e.to_string()));
            match compiled.and_then(|message| compile::routes(&message)) {
                Ok(table) => route_slot(&mut self.routes, name).table.store(Some(Arc::new(table))),
                Err(error) => refused.push(format!("routes `{name}`: {error}")),
            }
        }
        for name in removed {
            if let Some(routes) = self.routes.get(name) {
                routes.table.store(None);
            }
        }
        if !self.warming.is_empty() {
            self.publish();
        }
    }

    /// Puts listeners whose routes have come into force, and gives readers a new snapshot.
    fn publish(&mut self) {
        let routes = &self.routes;
        let has = |name: &String| routes.get(name).is_some_and(|routes| routes.table.load().is_some());
        let warm: Vec<String> = self
            .warming
            .iter()
            .filter(|(_, known)| known.routes.iter().all(has))
            .map(|(name, _)| name.clone())
            .collect();
        for name in warm {
            if let Some(known) = self.warming.remove(&name) {
                self.listeners.insert(name, known);
            }
        }
        let used = self.wanted(message::ROUTE);
        self.routes.retain(|name, _| used.contains(name));
        let listeners: BTreeMap<String, Arc<Listener>> =
            self.listeners.iter().map(|(name, known)| (name.clone(), Arc::clone(&known.listener))).collect();
        let redirected = listeners.values().filter(|listener| !listener.bind);
        let redirected = redirected.map(|listener| ((listener.address, listener.port), Arc::clone(listener))).collect();
        let clusters = self.clusters.iter().map(|(name, (_, cluster))| (name.clone(), Arc::clone(cluster))).collect();
        self.shared.config.store(Arc::new(Config { listeners, clusters, redirected }));
        self.shared.changed.send_modify(|count| *count += 1);
    }

    fn note_completeness(&self) {
        let has = |type_url| self.received.contains(type_url);
        let complete = has(message::CLUSTER)
            && has(message::LISTENER)
            && self.warming.is_empty()
            && self.shared.identity.load().is_some();
        // Once complete, always: what is warming later does not undo what works.
        if complete {
            self.shared.complete.store(true, Ordering::Release);
        }
    }
}

/// Whether a resource can be obeyed, without doing anything about it.
///
/// # Errors
///
/// The text of a NACK.
pub fn check(type_url: &str, resource: &Any) -> Result<(), String> {
    fn message<M: stolos_xds::prost::Name + Default>(any: &Any) -> Result<M, Refused> {
        unpack(any).map_err(|error| Refused::new(error.to_string()))
    }
    let checked = match type_url {
        message::CLUSTER => message(resource).and_then(|m| compile::cluster(&m).map(drop)),
        message::LISTENER => message(resource).and_then(|m| compile::listener(&m, &mut |_| Arc::default()).map(drop)),
        message::ROUTE => message(resource).and_then(|m| compile::routes(&m).map(drop)),
        message::ENDPOINT => message(resource).and_then(|m| compile::check_endpoints(&m)),
        _ => Ok(()),
    };
    checked.map_err(|refused| refused.to_string())
}

fn route_slot(routes: &mut HashMap<String, Arc<Routes>>, name: &str) -> Arc<Routes> {
    Arc::clone(routes.entry(name.to_owned()).or_default())
}

/// Retires the hosts of `old` that are not in `new`.
fn retire(old: &[Arc<Host>], new: &[Arc<Host>]) {
    let kept: HashSet<*const Host> = new.iter().map(Arc::as_ptr).collect();
    for host in old.iter().filter(|host| !kept.contains(&Arc::as_ptr(host))) {
        host.retire();
    }
}
