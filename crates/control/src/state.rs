//! Look: watches the own cluster and every remote one, and keeps one picture of them all.
//!
//! Watches run in tasks of their own and send what they see, already reduced, to one writer. The writer alone holds
//! the registries; it gathers events for a few milliseconds and then publishes a new [`World`]. Readers take the
//! latest and never wait.

pub mod feed;
mod watches;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use stolos_k8s::istio;
use stolos_serve::{Net, Stop};
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use crate::Config;
use crate::model::{Gateway, Labels, PodFacts, Settings, World};
use crate::policy::{Object, Policies};
use crate::registry::{Change, Key, NodeFacts, Registry, ServiceFacts, SliceFacts};
use crate::remote::{Action, Kubeconfigs, Remotes};
use watches::Watches;

/// A change that comes alone is published at once. One that follows another within [`AT_MOST`] is published when nothing
/// has changed for this long …
const QUIET: Duration = Duration::from_millis(5);
/// … or this long after the first that is not published. (Istio waits for 100 ms at least, and for 10 s at most.)
const AT_MOST: Duration = Duration::from_millis(50);
/// How often gateway host names are resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);
/// How soon one that nobody knew is asked for again.
const UNRESOLVED_AGAIN: Duration = Duration::from_secs(2);

/// What is known now.
#[derive(Clone)]
pub struct State {
    /// The picture.
    pub worlds: watch::Receiver<Arc<World>>,
    /// How the looking goes.
    pub reports: watch::Receiver<Arc<Report>>,
    /// The settings' ConfigMap, the injector's values: data by name.
    pub values: watch::Receiver<Arc<BTreeMap<String, String>>>,
    /// How remote clusters are reached, by their IDs.
    pub clients: watch::Receiver<Arc<Clients>>,
}

/// How remote clusters are reached, by their IDs; the number is another for every new credential.
pub type Clients = BTreeMap<Arc<str>, (u64, Client)>;

impl State {
    /// Waits until the first complete picture.
    pub async fn ready(&self) {
        let mut reports = self.reports.clone();
        // An error means that the writer is gone, with the process.
        let _ = reports.wait_for(|report| report.ready).await;
    }
}

/// How the looking goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The clusters, the own one first.
    pub clusters: Vec<ClusterReport>,
    /// Whether there has been a complete picture.
    pub ready: bool,
    /// What it still waits for.
    pub waiting: Vec<String>,
    /// Keys of the mesh configuration that are not acted on.
    pub unread: Vec<String>,
    /// How many times a remote cluster was given up for start-up.
    pub timeouts: u64,
    /// How many times remote secrets changed something.
    pub secret_events: u64,
}

/// How one cluster is doing.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterReport {
    /// Its ID.
    pub id: String,
    /// The secret it came by; empty for the own one.
    pub secret: String,
    /// `synced`, `syncing`, `timeout` or `closed`.
    pub status: &'static str,
    /// The last error of its watches, if they are failing now.
    pub error: Option<String>,
}

enum Event {
    Cluster {
        id: Arc<str>,
        generation: u64,
        seen: Box<Seen>,
    },
    Secrets(Change<Kubeconfigs>),
    Objects {
        kind: &'static str,
        change: Change<Object>,
    },
    Config(Change<BTreeMap<String, String>>),
    Values(Change<BTreeMap<String, String>>),
    Resolved(String, Option<Vec<IpAddr>>),
    /// A watch of the own cluster's configuration fails.
    Trouble(&'static str, String),
}

enum Seen {
    /// How it is reached.
    Client(Client),
    Namespaces(Change<Labels>),
    Services(Change<ServiceFacts>),
    Slices(Change<SliceFacts>),
    Pods(Change<PodFacts>),
    Nodes(Change<NodeFacts>),
    /// A watch fails.
    Failed(String),
    /// It will not be tried again: its kubeconfig is refused.
    Refused(String),
}

/// Starts to look. Everything ends with `stop`, and is one of `tasks`.
#[must_use]
pub fn start(config: &Config, client: Client, net: Arc<dyn Net>, stop: Stop, tasks: &TaskTracker) -> State {
    let (writer, inbox, state) = Writer::new(config, net, &stop, tasks);
    writer.watches.config(&client, config);
    if let Some(own) = writer.slots.first().and_then(|slot| slot.current.as_ref()) {
        writer.watches.cluster(&client, config.cluster.as_str().into(), own.generation, &own.stop);
    }
    tasks.spawn(writer.run(inbox, stop));
    state
}

/// A cluster that is watched.
struct Slot {
    id: Arc<str>,
    secret: String,
    /// What is served of it.
    current: Option<Run>,
    /// What takes its place once it is complete.
    next: Option<Run>,
    since: Instant,
    timed_out: bool,
    error: Option<String>,
    refused: bool,
    /// The newest way to reach it.
    client: Option<(u64, Client)>,
}

struct Run {
    generation: u64,
    registry: Registry,
    stop: Stop,
}

impl Slot {
    fn is_synced(&self) -> bool {
        self.current.as_ref().is_some_and(|run| run.registry.is_synced())
    }

    fn status(&self) -> &'static str {
        match () {
            () if self.refused => "closed",
            () if self.is_synced() => "synced",
            () if self.timed_out => "timeout",
            () => "syncing",
        }
    }
}

/// The one writer.
struct Writer {
    config: Config,
    remotes: Remotes,
    watches: Watches,
    /// The own cluster, then remote ones in the order they came.
    slots: Vec<Slot>,
    generations: u64,
    settings: Arc<Settings>,
    /// The same, with names resolved.
    effective: Arc<Settings>,
    unread: Vec<String>,
    objects: BTreeMap<&'static str, BTreeMap<Key, Object>>,
    policies: Arc<Policies>,
    listed: BTreeSet<&'static str>,
    resolved: BTreeMap<String, Vec<IpAddr>>,
    asked: BTreeMap<String, Instant>,
    ready: bool,
    timeouts: u64,
    secret_events: u64,
    /// When the first change was seen that is not published.
    since: Option<Instant>,
    published: Option<Instant>,
    worlds: watch::Sender<Arc<World>>,
    reports: watch::Sender<Arc<Report>>,
    values: watch::Sender<Arc<BTreeMap<String, String>>>,
    clients: watch::Sender<Arc<Clients>>,
}

const SECRETS: &str = "remote secrets";
const CONFIG: &str = "mesh configuration";

impl Writer {
    /// One that knows of the own cluster alone, with where it is told of things, and what it makes of them.
    fn new(
        config: &Config,
        net: Arc<dyn Net>,
        stop: &Stop,
        tasks: &TaskTracker,
    ) -> (Self, mpsc::Receiver<Event>, State) {
        let (events, inbox) = mpsc::channel(1024);
        let (settings, _) = crate::settings::read(config, &BTreeMap::new());
        let settings = Arc::new(settings);
        let nothing = World::compose(&World::default(), settings.clone(), Vec::new(), Arc::default());
        let (worlds, seen_worlds) = watch::channel(Arc::new(nothing));
        let (reports, seen_reports) = watch::channel(Arc::new(Report::default()));
        let (values, seen_values) = watch::channel(Arc::new(BTreeMap::new()));
        let (clients, seen_clients) = watch::channel(Arc::new(Clients::new()));
        let domain = settings.domain.clone();
        let own = Slot {
            id: config.cluster.as_str().into(),
            secret: String::new(),
            current: Some(Run { generation: 0, registry: Registry::new(&config.cluster, true), stop: stop.child() }),
            next: None,
            since: Instant::now(),
            timed_out: false,
            error: None,
            refused: false,
            client: None,
        };
        let writer = Self {
            config: config.clone(),
            remotes: Remotes::new(&config.cluster),
            watches: Watches { events, net, stop: stop.clone(), tasks: tasks.clone(), domain },
            slots: vec![own],
            generations: 0,
            effective: Arc::clone(&settings),
            settings,
            unread: Vec::new(),
            objects: BTreeMap::new(),
            policies: Arc::default(),
            listed: BTreeSet::new(),
            resolved: BTreeMap::new(),
            asked: BTreeMap::new(),
            ready: false,
            timeouts: 0,
            secret_events: 0,
            since: None,
            published: None,
            worlds,
            reports,
            values,
            clients,
        };
        let state = State { worlds: seen_worlds, reports: seen_reports, values: seen_values, clients: seen_clients };
        (writer, inbox, state)
    }

    async fn run(mut self, mut inbox: mpsc::Receiver<Event>, stop: Stop) {
        let mut tick = tokio::time::interval(Duration::from_millis(500));
        loop {
            tokio::select! {
                () = stop.asked() => return,
                _ = tick.tick() => self.pass_time(),
                event = inbox.recv() => {
                    let Some(event) = event else { return };
                    self.since.get_or_insert_with(Instant::now);
                    self.take(event);
                    self.gather(&mut inbox).await;
                }
            }
            self.publish();
        }
    }

    /// Takes what belongs together.
    async fn gather(&mut self, inbox: &mut mpsc::Receiver<Event>) {
        let first = Instant::now();
        let alone = self.ready && self.published.is_none_or(|at| at.elapsed() > AT_MOST);
        while let Some(left) = AT_MOST.checked_sub(first.elapsed()) {
            let event = if alone {
                inbox.try_recv().ok()
            } else {
                tokio::time::timeout(left.min(QUIET), inbox.recv()).await.ok().flatten()
            };
            match event {
                Some(event) => self.take(event),
                None => break,
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Cluster { id, generation, seen } => self.see(&id, generation, *seen),
            Event::Secrets(change) => {
                self.listed.insert(SECRETS);
                for action in self.remotes.apply(change) {
                    self.act(action);
                }
            }
            Event::Objects { kind, change } => {
                let all = self.objects.entry(kind).or_default();
                let same = match change {
                    Change::Set(key, object) => all
                        .insert(key, object.clone())
                        .is_some_and(|have| have.spec == object.spec && have.generation == object.generation),
                    Change::Gone(key) => all.remove(&key).is_none(),
                    Change::All(objects) => std::mem::replace(all, objects.clone()) == objects,
                };
                let first = self.listed.insert(kind);
                if !same || first {
                    let objects = self.objects.values().flat_map(BTreeMap::values).cloned();
                    let policies = Policies::read(objects, &self.settings.domain);
                    if policies != *self.policies {
                        self.policies = Arc::new(policies);
                    }
                }
            }
            Event::Config(change) => {
                self.listed.insert(CONFIG);
                let data = one(change);
                let (settings, unread) = crate::settings::read(&self.config, &data);
                self.unread = unread;
                if settings != *self.settings {
                    self.settings = Arc::new(settings);
                }
            }
            Event::Values(change) => {
                let data = Arc::new(one(change));
                self.values.send_if_modified(|have| {
                    let changed = **have != *data;
                    *have = data;
                    changed
                });
            }
            Event::Resolved(host, addresses) => {
                // On an error the old addresses stay.
                if let Some(mut addresses) = addresses {
                    addresses.sort();
                    self.resolved.insert(host, addresses);
                }
            }
            Event::Trouble(what, error) => tracing::debug!(what, error, "a watch fails, trying again"),
        }
    }

    fn see(&mut self, id: &str, generation: u64, seen: Seen) {
        let Some(slot) = self.slots.iter_mut().find(|slot| &*slot.id == id) else { return };
        let runs = [slot.current.as_mut(), slot.next.as_mut()];
        // What a former watch still had to say is of no interest.
        let Some(run) = runs.into_iter().flatten().find(|run| run.generation == generation) else { return };
        if let Seen::Client(client) = seen {
            slot.client = Some((generation, client));
            return self.publish_clients();
        }
        if !matches!(seen, Seen::Failed(_) | Seen::Refused(_)) && slot.error.take().is_some() {
            tracing::info!(cluster = id, "the cluster answers again");
        }
        match seen {
            Seen::Namespaces(change) => run.registry.namespaces(change),
            Seen::Services(change) => run.registry.services(change),
            Seen::Slices(change) => run.registry.slices(change),
            Seen::Pods(change) => run.registry.pods(change),
            Seen::Nodes(change) => run.registry.nodes(change),
            Seen::Client(_) => {}
            Seen::Failed(error) => {
                if slot.error.is_none() {
                    tracing::warn!(cluster = id, error, "cannot watch the cluster; what is known of it stays");
                }
                slot.error = Some(error);
                return;
            }
            Seen::Refused(error) => {
                tracing::warn!(cluster = id, error, "the remote secret is of no use until it changes");
                slot.error = Some(error);
                slot.refused = slot.current.as_ref().is_none_or(|run| run.generation == generation);
                return;
            }
        }
        if slot.next.as_ref().is_some_and(|next| next.registry.is_synced()) {
            // The new way is complete: now the old one may go.
            if let Some(old) = std::mem::replace(&mut slot.current, slot.next.take()) {
                old.stop.ask();
            }
            slot.timed_out = false;
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Warn(text) => return tracing::warn!("{text}"),
            Action::Remove { cluster } => {
                self.slots.retain(|slot| {
                    let stays = *slot.id != *cluster;
                    if !stays {
                        slot.current.iter().chain(&slot.next).for_each(|run| run.stop.ask());
                    }
                    stays
                });
                self.publish_clients();
                tracing::info!(cluster, "the cluster has left");
            }
            Action::Add { cluster, secret, kubeconfig } => {
                let run = self.begin(&cluster, kubeconfig);
                self.slots.push(Slot {
                    id: cluster.as_str().into(),
                    secret,
                    current: Some(run),
                    next: None,
                    since: Instant::now(),
                    timed_out: false,
                    error: None,
                    refused: false,
                    client: None,
                });
                tracing::info!(cluster, "a cluster has joined");
            }
            Action::Replace { cluster, secret, kubeconfig } => {
                let run = self.begin(&cluster, kubeconfig);
                let Some(slot) = self.slots.iter_mut().find(|slot| *slot.id == *cluster) else { return };
                slot.secret = secret;
                slot.refused = false;
                slot.error = None;
                slot.since = Instant::now();
                if slot.is_synced() {
                    if let Some(given_up) = slot.next.replace(run) {
                        given_up.stop.ask();
                    }
                } else if let Some(useless) = slot.current.replace(run) {
                    useless.stop.ask();
                }
            }
        }
        self.secret_events += 1;
    }

    fn publish_clients(&self) {
        let client = |slot: &Slot| Some((Arc::clone(&slot.id), slot.client.clone()?));
        self.clients.send_replace(Arc::new(self.slots.iter().filter_map(client).collect()));
    }

    fn begin(&mut self, cluster: &str, kubeconfig: Vec<u8>) -> Run {
        self.generations += 1;
        let run = Run {
            generation: self.generations,
            registry: Registry::new(cluster, false),
            stop: self.watches.stop.child(),
        };
        self.watches.remote(cluster.into(), run.generation, kubeconfig, &run.stop);
        run
    }

    fn pass_time(&mut self) {
        for slot in &mut self.slots {
            if !slot.is_synced() && !slot.timed_out && slot.since.elapsed() > self.config.remote_timeout {
                slot.timed_out = true;
                if !slot.secret.is_empty() {
                    self.timeouts += 1;
                    tracing::warn!(cluster = &*slot.id, "the cluster has not been read in time; going on without it");
                }
            }
        }
        let runs = self.slots.iter().filter_map(|slot| slot.current.as_ref());
        let by_hand = self.settings.gateway_names.iter().map(|(name, ..)| name.clone());
        let wanted: BTreeSet<_> = runs.flat_map(|run| run.registry.unresolved()).chain(by_hand).collect();
        self.asked.retain(|host, _| wanted.contains(host));
        self.resolved.retain(|host, _| wanted.contains(host));
        for host in wanted {
            let again = if self.resolved.contains_key(&host) { RESOLVE_EVERY } else { UNRESOLVED_AGAIN };
            if self.asked.get(&host).is_none_or(|at| at.elapsed() > again) {
                self.asked.insert(host.clone(), Instant::now());
                self.watches.resolve(host);
            }
        }
    }

    /// The settings, with the gateways that are given by name at the addresses that these stand for now.
    fn settled(&mut self) -> Arc<Settings> {
        if self.settings.gateway_names.is_empty() {
            return Arc::clone(&self.settings);
        }
        let mut settings = Settings::clone(&self.settings);
        for (name, port, network) in &self.settings.gateway_names {
            let addresses = self.resolved.get(name).into_iter().flatten();
            let gateways = addresses.map(|address| Gateway {
                address: *address,
                port: *port,
                network: Arc::clone(network),
                cluster: "".into(),
            });
            settings.gateways.extend(gateways);
        }
        // The same as before is the same `Arc`: nothing is made anew.
        if *self.effective != settings {
            self.effective = Arc::new(settings);
        }
        Arc::clone(&self.effective)
    }

    fn publish(&mut self) {
        let settings = self.settled();
        let mut views = Vec::with_capacity(self.slots.len());
        for slot in &mut self.slots {
            if let Some(run) = slot.current.as_mut().filter(|run| run.registry.is_synced()) {
                run.registry.resolved(&self.resolved);
                views.push(run.registry.view(&settings));
            }
        }
        let before = Arc::clone(&self.worlds.borrow());
        let same = before.clusters.len() == views.len()
            && before.clusters.iter().zip(&views).all(|(a, b)| Arc::ptr_eq(a, b))
            && Arc::ptr_eq(&before.settings, &settings)
            && Arc::ptr_eq(&before.policies, &self.policies);
        if !same {
            let mut world = World::compose(&before, settings, views, Arc::clone(&self.policies));
            world.since = self.since;
            self.published = Some(Instant::now());
            self.worlds.send_replace(Arc::new(world));
        }
        self.since = None;
        let report = Arc::new(self.report());
        self.reports.send_if_modified(|have| {
            let changed = *have != report;
            *have = report;
            changed
        });
    }

    fn report(&mut self) -> Report {
        let mut waiting = Vec::new();
        let kinds = istio::KINDS.iter().map(|kind| kind.kind).chain([SECRETS, CONFIG]);
        waiting.extend(kinds.filter(|kind| !self.listed.contains(kind)).map(str::to_owned));
        for slot in &self.slots {
            // A remote cluster that fails or takes too long holds nobody up.
            let remote = !slot.secret.is_empty();
            let given_up = remote && (slot.timed_out || slot.error.is_some() || slot.refused);
            if !slot.is_synced() && !given_up {
                waiting.push(format!("cluster {}", slot.id));
            }
        }
        self.ready |= waiting.is_empty();
        Report {
            clusters: self
                .slots
                .iter()
                .map(|slot| ClusterReport {
                    id: slot.id.to_string(),
                    secret: slot.secret.clone(),
                    status: slot.status(),
                    error: slot.error.clone(),
                })
                .collect(),
            ready: self.ready,
            waiting: if self.ready { Vec::new() } else { waiting },
            unread: self.unread.clone(),
            timeouts: self.timeouts,
            secret_events: self.secret_events,
        }
    }
}

/// The data of the one ConfigMap that is watched; gone means empty.
fn one(change: Change<BTreeMap<String, String>>) -> BTreeMap<String, String> {
    match change {
        Change::Set(_, data) => data,
        Change::Gone(_) => BTreeMap::new(),
        Change::All(all) => all.into_values().next().unwrap_or_default(),
    }
}
