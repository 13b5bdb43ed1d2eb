//! What the hub does, for ever: one queue for each question.

mod agents;
mod aggregate;
mod bind;
mod clusters;
mod copies;
mod depend;
mod detect;
mod evict;
mod execute;
mod failover;
mod figures;
mod impersonate;
mod index;
mod interpret;
mod members;
mod meshes;
mod namespaces;
mod policies;
mod rebalance;
mod schedule;
mod template;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use serde_json::Value;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;
use stolos_serve::{Listener, Net, Stop};
use stolos_tunnel::{Limits as TunnelLimits, Relay};
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::admission::Asked;
use crate::event::{self, Recorder};
use crate::evict::Settings as Patience;
use crate::evict::application::Watch;
use crate::evict::health;
use crate::evict::rate::Rate;
use crate::interpret::Interpreters;
use crate::member::{self, CREDENTIALS, Ways};
use crate::mirror::{self, Key, Mirror};
use crate::model::{self, Cluster, ClusterTaintPolicy, OverridePolicy, PropagationPolicy};
use crate::place;
use crate::proxy::{Audit, Limits, Proxy};
use crate::queue::{Again, Queue, Trouble};
use crate::{Error, MANAGER, gate, overrides};
pub use figures::Pages;
use members::Member;
use template::{TemplateKey, Templates};

/// How many things of one queue are looked at at once.
const AT_ONCE: usize = 16;
/// The same of Works: one that waits for a member that is silent must not hold up the others'.
const WORKS_AT_ONCE: usize = 128;
/// Of so many templates at most it is remembered that no policy selects them.
const MOST_UNMATCHED: usize = 100_000;
/// How long the first look at everything may take.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// What the hub is given.
pub struct Settings {
    /// The API server that it works with.
    pub client: kube::Client,
    /// Where its sockets to members come from.
    pub net: Arc<dyn Net>,
    /// Where agents of members come in that cannot be dialled, if they may.
    pub door: Option<Door>,
    /// Where the API server asks [`Running::review`] before it writes, if it can.
    pub admission: Option<Asked>,
    /// How patient it is with its members.
    pub patience: Patience,
    /// How it places.
    pub placing: place::Settings,
}

/// Where agents come in.
pub struct Door {
    /// The socket.
    pub listener: Listener,
    /// Names and addresses that agents dial, for its certificate; the first is the one that is told.
    pub names: Vec<String>,
}

/// A hub at work.
pub struct Running {
    hub: Arc<Hub>,
    tasks: TaskTracker,
    stop: Stop,
}

/// Answers an AdmissionReview of the API server.
pub type Review = Arc<dyn Fn(&Value) -> Value + Send + Sync>;

impl Running {
    /// Passes others' requests on to members, for whoever serves the hub's API.
    #[must_use]
    pub fn proxy(&self, limits: Limits, audit: Audit) -> Proxy {
        Proxy::new(Arc::clone(&self.hub), limits, audit)
    }

    /// What answers the API server when it asks whether something may be written.
    #[must_use]
    pub fn review(&self) -> Review {
        let hub = Arc::downgrade(&self.hub);
        Arc::new(move |review| {
            let others = hub.upgrade().map(|hub| crate::admit::Others {
                customizations: hub.customizations(),
                taint_policies: hub.taint_policies().as_ref().clone(),
            });
            crate::admit::review(review, &others.unwrap_or_default())
        })
    }

    /// Returns when the hub was asked to stop and has.
    pub async fn ended(self) {
        self.stop.asked().await;
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), self.tasks.wait()).await.is_err() {
            tracing::warn!("parts of the hub do not end");
        }
    }
}

/// Begins to work, until `stop`.
///
/// # Flow
///
/// 1. The kinds and namespaces, as far as they are not there.
/// 2. A mirror of each kind of the hub's own, until each is complete: what acts on less would undo what it cannot see.
/// 3. The queues, each its own task; nothing is kept between two runs but what the API server has.
///
/// # Errors
///
/// When the API server cannot be made ready. Later trouble is tried again instead.
pub async fn start(settings: Settings, stop: &Stop) -> Result<Running, Error> {
    let Settings { client, net, door, admission, patience, placing } = settings;
    crate::install::install(&client).await?;
    crate::placing::record(&client, placing).await?;
    let tasks = TaskTracker::new();
    let (events, entries) = Recorder::new();
    tasks.spawn(event::write(entries, client.clone(), stop.clone()));
    let relay = door.is_some().then(|| Relay::new(TunnelLimits::default()));
    let ways = Ways { net, relay: relay.clone() };
    let hub = Hub::new(client, ways, (patience, placing), events, stop.clone(), tasks.clone());
    if !hub.first_look().await {
        stop.ask();
        return Err(Error::NotServed(FIRST_LOOK));
    }
    if let Some(asked) = admission {
        crate::admission::install(&hub.client, &asked).await?;
    }
    // Whose certificate is good is known by now.
    if let (Some(door), Some(relay)) = (door, relay) {
        let of_door = Arc::downgrade(&hub);
        let known: gate::Known = Arc::new(move |name| of_door.upgrade()?.own.clusters.get("", name));
        gate::open(&hub.client, door, &relay, known, &hub.tasks, stop).await?;
    }
    hub.start();
    Ok(Running { hub, tasks, stop: stop.clone() })
}

/// The kinds that the hub itself works with.
struct Own {
    clusters: Arc<Mirror>,
    secrets: Arc<Mirror>,
    policies: Arc<Mirror>,
    cluster_policies: Arc<Mirror>,
    overrides: Arc<Mirror>,
    cluster_overrides: Arc<Mirror>,
    taint_policies: Arc<Mirror>,
    bindings: Arc<Mirror>,
    cluster_bindings: Arc<Mirror>,
    works: Arc<Mirror>,
    customizations: Arc<Mirror>,
    rebalancers: Arc<Mirror>,
}

impl Own {
    fn all(&self) -> [&Arc<Mirror>; 12] {
        [
            &self.clusters,
            &self.secrets,
            &self.policies,
            &self.cluster_policies,
            &self.overrides,
            &self.cluster_overrides,
            &self.taint_policies,
            &self.bindings,
            &self.cluster_bindings,
            &self.works,
            &self.customizations,
            &self.rebalancers,
        ]
    }
}

/// The time as Kubernetes writes it.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The merge patch (RFC 7386) that makes `after` of `before`.
fn difference(before: &Value, after: &Value) -> Value {
    let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else { return after.clone() };
    let mut patch = serde_json::Map::new();
    for (field, value) in new {
        match old.get(field) {
            Some(known) if known == value => {}
            Some(known) if known.is_object() && value.is_object() => {
                patch.insert(field.clone(), difference(known, value));
            }
            _ => {
                patch.insert(field.clone(), value.clone());
            }
        }
    }
    patch.extend(old.keys().filter(|field| !new.contains_key(*field)).map(|field| (field.clone(), Value::Null)));
    patch.into()
}

/// What all its parts share.
pub(crate) struct Hub {
    client: kube::Client,
    ways: Ways,
    own: Own,
    queues: Arc<Queues>,
    members: RwLock<BTreeMap<String, Arc<Member>>>,
    templates: RwLock<Templates>,
    /// Policies, by what they select.
    policies: RwLock<index::Policies>,
    /// Templates, by the policy that has claimed them.
    claims: Arc<Mutex<index::Claims>>,
    /// Works, by the labels of the pods that they bring.
    pods: Arc<Mutex<index::Pods>>,
    /// Members as types, with the revision that was read.
    read_clusters: Mutex<HashMap<String, (String, Arc<Cluster>)>>,
    /// Override policies as types, as of the last change of one.
    read_overrides: Typed<OverridePolicy>,
    /// Taint policies as types, as of the last change of one.
    read_taint_policies: Typed<ClusterTaintPolicy>,
    /// What is known of kinds, as of the last change of a customization.
    interpreters: RwLock<Arc<Interpreters>>,
    /// Turns of scripts.
    scripts: Semaphore,
    /// Templates that no policy selects.
    waiting: Mutex<HashSet<TemplateKey>>,
    /// Templates that have changed since they were looked at: what a lazy policy waits for.
    touched: Arc<Mutex<HashSet<TemplateKey>>>,
    /// Those of `waiting`, by UID, of which that was said.
    unmatched: Mutex<HashSet<String>>,
    /// Members whose namespace of Works is there.
    prepared: Mutex<HashSet<String>>,
    /// Bindings of which a copy waits to become smaller: what their Works say lets it.
    moving: Arc<Mutex<HashSet<Key>>>,
    /// How patient it is.
    patience: Patience,
    /// How it places.
    placing: place::Settings,
    /// How many workloads leave their clusters at once, by the time since `began`.
    evictions: Mutex<Rate>,
    began: Instant,
    /// Since when copies are unhealthy whose policy says what happens then.
    watches: Mutex<HashMap<Key, Watch>>,
    /// Who may be acted for in members.
    standings: Mutex<BTreeMap<String, impersonate::Standing>>,
    /// Since when members say something else than their `Ready` condition.
    doubts: Mutex<HashMap<String, Instant>>,
    /// When members were asked last that said then that they are well.
    answered: Mutex<HashMap<String, Instant>>,
    events: Recorder,
    stop: Stop,
    tasks: TaskTracker,
}

/// Objects of a kind as types, as of the last change of one.
type Typed<T> = RwLock<Option<Arc<Vec<T>>>>;

/// What is known, or what is read of `all` and known from then on.
fn typed<T: serde::de::DeserializeOwned>(known: &Typed<T>, all: impl FnOnce() -> Vec<Arc<Value>>) -> Arc<Vec<T>> {
    if let Some(known) = &*known.read().unwrap_or_else(PoisonError::into_inner) {
        return Arc::clone(known);
    }
    let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
    let read: Vec<T> = all().iter().filter_map(|object| model::read(object).ok().map(|(object, _)| object)).collect();
    Arc::clone(known.insert(Arc::new(read)))
}

/// What is to be looked at.
struct Queues {
    /// Members, by name: what they are and how they are.
    clusters: Arc<Queue<String>>,
    /// Namespaces of the hub, which every member has.
    namespaces: Arc<Queue<String>>,
    /// Policies: what is theirs.
    policies: Arc<Queue<Key>>,
    /// Templates: which policy they follow.
    templates: Arc<Queue<TemplateKey>>,
    /// Bindings: which clusters they go to.
    schedule: Arc<Queue<Key>>,
    /// Bindings: what leaves its cluster.
    evict: Arc<Queue<Key>>,
    /// Bindings: which Works they have.
    bind: Arc<Queue<Key>>,
    /// Works: what is in the member.
    works: Arc<Queue<Key>>,
    /// Bindings: what their workloads need.
    depend: Arc<Queue<Key>>,
    /// Bindings: what has come of them.
    aggregate: Arc<Queue<Key>>,
    /// Members: who may be acted for there.
    impersonate: Arc<Queue<String>>,
    /// Rebalancers: what they ask for.
    rebalance: Arc<Queue<String>>,
    /// Which kinds there are.
    kinds: Notify,
}

impl Queues {
    fn new() -> Self {
        Self {
            clusters: Queue::new("clusters"),
            namespaces: Queue::new("namespaces"),
            policies: Queue::new("policies"),
            templates: Queue::new("templates"),
            schedule: Queue::new("schedule"),
            evict: Queue::new("evict"),
            bind: Queue::new("bind"),
            works: Queue::new("works"),
            depend: Queue::new("depend"),
            aggregate: Queue::new("aggregate"),
            impersonate: Queue::new("impersonate"),
            rebalance: Queue::new("rebalance"),
            kinds: Notify::new(),
        }
    }

    fn add_binding(&self, before: Option<&Arc<Value>>, now: Option<&Arc<Value>>) {
        let Some(now) = now else {
            // Deleted by hand: the detector makes it anew.
            if let Some(before) = before {
                self.templates.add(TemplateKey::of_binding(before));
                self.rank(before, 0);
            }
            return;
        };
        let key = mirror::key(now);
        self.rank(now, now["spec"]["schedulePriority"]["priority"].as_i64().unwrap_or(0));
        let same = |field: &str| before.is_some_and(|before| before[field] == now[field]);
        let books = ["labels", "annotations", "finalizers", "deletionTimestamp"];
        let marks = before.is_some_and(|b| books.iter().all(|book| b["metadata"][book] == now["metadata"][book]));
        if !(same("spec") && marks) {
            self.schedule.add(key.clone());
            self.evict.add(key.clone());
            self.bind.add(key.clone());
            self.depend.add(key.clone());
        }
        if !same("status") && (!evict::leaving(now).is_empty() || failover::is_wanted(now)) {
            self.evict.add(key.clone());
        }
        if !same("spec") {
            self.aggregate.add_soon(key);
        }
    }

    /// Bindings of a higher priority are scheduled first, and leave their clusters first.
    fn rank(&self, binding: &Value, priority: i64) {
        let key = mirror::key(binding);
        self.schedule.rank(&key, priority);
        self.evict.rank(&key, priority);
    }

    fn add_work(&self, before: Option<&Arc<Value>>, now: Option<&Arc<Value>>) {
        let Some(work) = now.or(before) else { return };
        let of = bind::binding_of(work);
        let Some(now) = now else {
            // Whoever wrote it looks whether it is to be there.
            match of {
                Some(binding) => {
                    self.bind.add(binding.clone());
                    self.depend.add(binding);
                }
                None => {
                    for manifest in work["spec"]["workload"]["manifests"].as_array().into_iter().flatten() {
                        self.namespaces.add(meta::name(manifest).to_owned());
                    }
                }
            }
            return;
        };
        let changed = |field: &str| before.is_none_or(|before| before[field] != now[field]);
        let going = before.is_none_or(|b| meta::deletion_timestamp(b) != meta::deletion_timestamp(now));
        if changed("spec") || going {
            self.works.add(mirror::key(now));
        }
        if let Some(binding) = of
            && changed("status")
        {
            // Several members say something of one template at about the same time.
            self.aggregate.add_soon(binding);
        }
    }
}

impl Hub {
    fn new(
        client: kube::Client,
        ways: Ways,
        (patience, placing): (Patience, place::Settings),
        events: Recorder,
        stop: Stop,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let queues = Arc::new(Queues::new());
        let moving: Arc<Mutex<HashSet<Key>>> = Arc::default();
        let pods: Arc<Mutex<index::Pods>> = Arc::default();
        let of = |api_version: &str, kind: &str, plural: &str, namespaced| Resource {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            namespaced,
        };
        const POLICY: &str = "policy.karmada.io/v1alpha1";
        const WORK: &str = "work.karmada.io/v1alpha2";
        Arc::new_cyclic(|hub: &Weak<Self>| {
            let of_hub = hub.clone();
            let clusters = Mirror::new(member::clusters(), None, None, move |before, now| {
                if let Some(hub) = of_hub.upgrade() {
                    hub.cluster_changed(before, now);
                }
            });
            let poke = Arc::clone(&queues);
            let secrets = of("v1", "Secret", "secrets", true);
            let secrets = Mirror::new(secrets, Some(CREDENTIALS), None, move |before, now| {
                if let Some(secret) = now.or(before) {
                    poke.clusters.add(meta::name(secret).to_owned());
                }
            });
            let policy = |kind, plural, namespaced| {
                let hub = hub.clone();
                Mirror::new(of(POLICY, kind, plural, namespaced), None, None, move |before, now| {
                    if let Some(hub) = hub.upgrade() {
                        hub.policy_changed(before, now);
                    }
                })
            };
            let overriding = |kind, plural, namespaced| {
                let hub = hub.clone();
                Mirror::new(of(POLICY, kind, plural, namespaced), None, None, move |_, now| {
                    if let Some(hub) = hub.upgrade() {
                        hub.override_changed(now);
                    }
                })
            };
            let of_hub = hub.clone();
            let taint_policies = of(POLICY, "ClusterTaintPolicy", "clustertaintpolicies", false);
            let taint_policies = Mirror::new(taint_policies, None, None, move |_, now| {
                if let Some(hub) = of_hub.upgrade() {
                    hub.taint_policy_changed(now);
                }
            });
            let binding = |kind, plural, namespaced| {
                let poke = Arc::clone(&queues);
                let changed = move |before: Option<&_>, now: Option<&_>| poke.add_binding(before, now);
                Mirror::new(of(WORK, kind, plural, namespaced), None, None, changed)
            };
            let poke = Arc::clone(&queues);
            let (waiting, of_pods) = (Arc::clone(&moving), Arc::clone(&pods));
            let works = Mirror::new(member::works(), None, None, move |before, now| {
                let mut pods = of_pods.lock().unwrap_or_else(PoisonError::into_inner);
                pods.put(before.map(|before| &**before), now.map(|now| &**now));
                drop(pods);
                poke.add_work(before, now);
                // What it says may be what another copy waits for.
                if let Some(binding) = now.and_then(|work| bind::binding_of(work))
                    && waiting.lock().unwrap_or_else(PoisonError::into_inner).contains(&binding)
                {
                    poke.bind.add(binding);
                }
            });
            let of_hub = hub.clone();
            let customizations = of(
                "config.karmada.io/v1alpha1",
                "ResourceInterpreterCustomization",
                "resourceinterpretercustomizations",
                false,
            );
            let customizations = Mirror::new(customizations, None, None, move |before, now| {
                if let Some(hub) = of_hub.upgrade() {
                    hub.customization_changed(before, now);
                }
            });
            let poke = Arc::clone(&queues);
            let rebalancers = of("apps.karmada.io/v1alpha1", "WorkloadRebalancer", "workloadrebalancers", false);
            let rebalancers = Mirror::new(rebalancers, None, None, move |_, now| {
                if let Some(now) = now {
                    poke.rebalance.add(meta::name(now).to_owned());
                }
            });
            let own = Own {
                clusters,
                secrets,
                policies: policy("PropagationPolicy", "propagationpolicies", true),
                cluster_policies: policy("ClusterPropagationPolicy", "clusterpropagationpolicies", false),
                overrides: overriding("OverridePolicy", "overridepolicies", true),
                cluster_overrides: overriding("ClusterOverridePolicy", "clusteroverridepolicies", false),
                taint_policies,
                bindings: binding("ResourceBinding", "resourcebindings", true),
                cluster_bindings: binding("ClusterResourceBinding", "clusterresourcebindings", false),
                works,
                customizations,
                rebalancers,
            };
            Self {
                client,
                ways,
                own,
                queues: Arc::clone(&queues),
                members: RwLock::default(),
                templates: RwLock::default(),
                read_clusters: Mutex::default(),
                policies: RwLock::default(),
                claims: Arc::default(),
                pods,
                read_overrides: RwLock::default(),
                read_taint_policies: RwLock::default(),
                interpreters: RwLock::new(Interpreters::well_known()),
                scripts: Semaphore::new(interpret::SCRIPTS_AT_ONCE),
                waiting: Mutex::default(),
                touched: Arc::default(),
                unmatched: Mutex::default(),
                prepared: Mutex::default(),
                moving,
                evictions: Mutex::new(Rate::new(patience.eviction_rate)),
                patience,
                placing,
                began: Instant::now(),
                watches: Mutex::default(),
                standings: Mutex::default(),
                doubts: Mutex::default(),
                answered: Mutex::default(),
                events,
                stop,
                tasks,
            }
        })
    }

    /// Starts the mirrors, and waits until each has seen its whole kind; whether they have.
    async fn first_look(self: &Arc<Self>) -> bool {
        for mirror in self.own.all() {
            self.tasks.spawn(Arc::clone(mirror).run(self.client.clone(), self.stop.clone()));
        }
        let mut ready =
            futures::future::join_all(self.own.all().map(|mirror| mirror.ready(FIRST_LOOK))).await.into_iter();
        template::look(self).await;
        let mirrors: Vec<_> = self.templates.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        let mut templates =
            futures::future::join_all(mirrors.iter().map(|mirror| mirror.ready(FIRST_LOOK))).await.into_iter();
        !mirrors.is_empty() && ready.all(|ready| ready) && templates.all(|ready| ready)
    }

    fn start(self: &Arc<Self>) {
        self.tasks.spawn(template::follow(Arc::clone(self)));
        self.tasks.spawn(agents::follow(Arc::clone(self)));
        let queues = &self.queues;
        // As many silent members keep nobody from asking the others.
        self.answer(&queues.clusters, WORKS_AT_ONCE, clusters::look);
        self.answer(&queues.namespaces, AT_ONCE, namespaces::look);
        self.answer(&queues.policies, AT_ONCE, policies::look);
        self.answer(&queues.templates, AT_ONCE, detect::look);
        self.answer(&queues.schedule, AT_ONCE, schedule::look);
        self.answer(&queues.evict, AT_ONCE, evict::look);
        self.answer(&queues.bind, AT_ONCE, bind::look);
        self.answer(&queues.depend, AT_ONCE, depend::look);
        self.answer(&queues.works, WORKS_AT_ONCE, execute::look);
        self.answer(&queues.aggregate, AT_ONCE, aggregate::look);
        self.answer(&queues.impersonate, AT_ONCE, impersonate::look);
        self.answer(&queues.rebalance, AT_ONCE, rebalance::look);
    }

    /// Answers the question of a queue until the hub stops.
    fn answer<K, F>(
        self: &Arc<Self>,
        queue: &Arc<Queue<K>>,
        at_once: usize,
        look: impl Fn(Arc<Self>, K) -> F + Send + 'static,
    ) where
        K: Clone + Ord + std::hash::Hash + std::fmt::Debug + Send + 'static,
        F: Future<Output = Result<Again, Trouble>> + Send + 'static,
    {
        let hub = Arc::clone(self);
        let look = move |key| look(Arc::clone(&hub), key);
        self.tasks.spawn(Arc::clone(queue).run(at_once, self.stop.clone(), look));
    }

    /// A member has changed: itself, and all that depends on what it is and whether it is ready.
    fn cluster_changed(&self, before: Option<&Arc<Value>>, now: Option<&Arc<Value>>) {
        let Some(cluster) = now.or(before) else { return };
        self.queues.clusters.add(meta::name(cluster).to_owned());
        let over = before.is_some_and(|before| now.is_none_or(|now| gate::epoch(before) != gate::epoch(now)));
        if let Some(relay) = self.ways.relay.as_ref().filter(|_| over) {
            relay.forget(meta::name(cluster));
        }
        let mesh = |cluster: &Arc<Value>| meta::annotation(cluster, crate::mesh::MESH).map(str::to_owned);
        if before.and_then(mesh) != now.and_then(mesh) {
            for binding in self.own.bindings.keys() {
                self.queues.depend.add(binding);
            }
        }
        let facts = |cluster: &Value| {
            let enabled = !cluster["status"]["apiEnablements"].is_null();
            serde_json::json!([
                cluster["spec"],
                cluster["metadata"]["labels"],
                cluster["metadata"]["deletionTimestamp"],
                clusters::is_ready(cluster),
                enabled
            ])
        };
        if before.map(|b| facts(b)) == now.map(|n| facts(n)) {
            return;
        }
        self.queues.impersonate.add(meta::name(cluster).to_owned());
        for bindings in [&self.own.bindings, &self.own.cluster_bindings] {
            for binding in bindings.keys() {
                self.queues.schedule.add(binding);
            }
        }
        self.look_at_evictions();
        self.retry_works(meta::name(cluster));
    }

    /// Whether a copy of a binding waits to become smaller.
    fn wait_for(&self, binding: &Key, waits: bool) {
        let mut moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
        match waits {
            true => moving.insert(binding.clone()),
            false => moving.remove(binding),
        };
    }

    /// A member has become ready, is reached in another way, or leaves: all its Works are looked at.
    fn retry_works(&self, cluster: &str) {
        for work in self.own.works.keys_of_namespace(&crate::name::execution_namespace(cluster)) {
            self.queues.works.add(work);
        }
    }

    /// A policy has changed: itself, and the templates that it had or has.
    fn policy_changed(&self, before: Option<&Arc<Value>>, now: Option<&Arc<Value>>) {
        if let Some(policy) = now.or(before) {
            let key = mirror::key(policy);
            // Two that come at once may be told in any order: what is there is asked for.
            let mut policies = self.policies.write().unwrap_or_else(PoisonError::into_inner);
            policies.put(&key, self.policies_of(&key.0).get(&key.0, &key.1).as_deref());
        }
        for policy in before.into_iter().chain(now) {
            self.queue_templates(policy);
        }
        if let Some(policy) = now {
            self.queues.policies.add(mirror::key(policy));
        }
    }

    /// The policies that may select a template.
    fn policies_for(&self, template: &Value) -> Vec<Arc<PropagationPolicy>> {
        self.policies.read().unwrap_or_else(PoisonError::into_inner).that_may_select(template)
    }

    fn policies_of(&self, namespace: &str) -> &Arc<Mirror> {
        if namespace.is_empty() { &self.own.cluster_policies } else { &self.own.policies }
    }

    fn bindings_of(&self, namespace: &str) -> &Arc<Mirror> {
        if namespace.is_empty() { &self.own.cluster_bindings } else { &self.own.bindings }
    }

    /// A binding, with the mirror that it is in.
    fn binding(&self, key: &Key) -> Option<(Arc<Mirror>, Arc<Value>)> {
        let mirror = self.bindings_of(&key.0);
        Some((Arc::clone(mirror), mirror.get(&key.0, &key.1)?))
    }

    fn waiting(&self) -> MutexGuard<'_, HashSet<TemplateKey>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was said of this template before that no policy selects it; from now on it was.
    fn said_unmatched(&self, uid: &str) -> bool {
        let mut said = self.unmatched.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= MOST_UNMATCHED {
            said.clear();
        }
        !said.insert(uid.to_owned())
    }

    fn forget_unmatched(&self, uid: &str) {
        self.unmatched.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Whether a member's namespace of Works is there.
    fn is_prepared(&self, cluster: &str) -> bool {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).contains(cluster)
    }

    /// A member's namespace of Works is there from now on: it gets the hub's namespaces.
    fn prepare(&self, cluster: &str) {
        if self.prepared.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster.to_owned()) {
            for namespace in self.templates_of(|version, kind| (version, kind) == ("v1", "Namespace")) {
                self.queues.namespaces.add(meta::name(&namespace).to_owned());
            }
            self.retry_works(cluster);
        }
    }

    /// What the override policies make of a manifest for a cluster, and which of them, as annotations of the Work.
    fn overridden(&self, manifest: &mut Value, cluster: &Value) -> Result<Vec<(&'static str, String)>, Trouble> {
        let policies = self.overrides();
        if policies.is_empty() {
            return Ok(Vec::new());
        }
        let Some(cluster) = self.cluster(cluster) else { return Err("its cluster cannot be read".into()) };
        Ok(overrides::apply(manifest, &cluster, &policies)?.annotations())
    }

    /// A member as a type; nothing of what cannot be read. It is read once for each revision: members say every few
    /// seconds how they are, and every binding asks for all of them.
    fn cluster(&self, object: &Value) -> Option<Arc<Cluster>> {
        let (name, revision) = (meta::name(object), meta::resource_version(object));
        let mut read = self.read_clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, cluster)) = read.get(name)
            && known == revision
        {
            return Some(Arc::clone(cluster));
        }
        let cluster = Arc::new(model::read::<Cluster>(object).ok()?.0);
        read.insert(name.to_owned(), (revision.to_owned(), Arc::clone(&cluster)));
        Some(cluster)
    }

    /// An override policy has changed: what it may have changed is made anew.
    fn override_changed(&self, now: Option<&Arc<Value>>) {
        if let Some(policy) = now {
            for problem in policies::override_refused(policy) {
                self.events.warning(policy, "override-manager", "ApplyOverridePolicyFailed", problem);
            }
        }
        *self.read_overrides.write().unwrap_or_else(PoisonError::into_inner) = None;
        for bindings in [&self.own.bindings, &self.own.cluster_bindings] {
            for binding in bindings.list() {
                self.queues.bind.add(mirror::key(&binding));
                self.queues.evict.add(mirror::key(&binding));
                // A policy may have waited for it.
                self.queues.templates.add(TemplateKey::of_binding(&binding));
            }
        }
        for template in self.templates_of(|version, kind| (version, kind) == ("v1", "Namespace")) {
            self.queues.namespaces.add(meta::name(&template).to_owned());
        }
        let waiting: Vec<_> = self.waiting().iter().cloned().collect();
        for template in waiting {
            self.queues.templates.add(template);
        }
    }

    /// All override policies, as types. One that a webhook would have refused changes nothing.
    fn overrides(&self) -> Arc<Vec<OverridePolicy>> {
        typed(&self.read_overrides, || {
            let all = [self.own.overrides.list(), self.own.cluster_overrides.list()].concat();
            all.into_iter().filter(|policy| policies::override_refused(policy).is_empty()).collect()
        })
    }

    /// A taint policy has changed: every member is looked at. One that a webhook would have refused taints nothing.
    fn taint_policy_changed(&self, now: Option<&Arc<Value>>) {
        *self.read_taint_policies.write().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(policy) = now {
            for problem in policies::taint_refused(policy, &self.taint_policies()) {
                self.events.warning(policy, clusters::FROM_TAINTS, "ApplyPolicyFailed", problem);
            }
        }
        for cluster in self.own.clusters.list() {
            self.queues.clusters.add(meta::name(&cluster).to_owned());
        }
    }

    /// All taint policies, as types.
    fn taint_policies(&self) -> Arc<Vec<ClusterTaintPolicy>> {
        typed(&self.read_taint_policies, || self.own.taint_policies.list())
    }

    /// A member's Cluster.
    pub(crate) fn cluster_object(&self, name: &str) -> Option<Arc<Value>> {
        self.own.clusters.get("", name)
    }

    /// A Secret with a credential.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.own.secrets.get(namespace, name)
    }

    pub(crate) fn ways(&self) -> &Ways {
        &self.ways
    }

    pub(crate) fn stop(&self) -> Stop {
        self.stop.clone()
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    fn member(&self, name: &str) -> Option<Arc<Member>> {
        self.members.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn put_member(&self, name: &str, member: Member) {
        self.members.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), Arc::new(member));
        self.stands_anew(name);
        self.queues.impersonate.add(name.to_owned());
        self.retry_works(name);
    }

    fn forget_member(&self, name: &str) {
        self.members.write().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// A member is no longer the hub's.
    fn forget(&self, name: &str) {
        self.forget_member(name);
        self.doubts().remove(name);
        self.answered().remove(name);
        self.read_clusters.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn answered(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what a member has may be counted on: it is ready, and has said so itself just now.
    fn hears(&self, cluster: &Value) -> bool {
        let name = meta::name(cluster);
        let answered = self.answered().get(name).map(Instant::elapsed);
        clusters::is_ready(cluster) && !self.doubts().contains_key(name) && health::heard(answered, &self.patience)
    }

    fn doubts(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Merges a patch into an object of a mirrored kind.
    async fn merge(
        &self,
        mirror: &Mirror,
        key: &Key,
        patch: &Value,
        status: bool,
    ) -> Result<Arc<Value>, stolos_cluster::Error> {
        let place = (Some(key.0.as_str()).filter(|n| !n.is_empty()), key.1.as_str());
        let now = Arc::new(objects::merge(&self.client, &mirror.resource, place, patch, status, MANAGER).await?);
        mirror.wrote(&now);
        Ok(now)
    }

    /// Makes `after` of an object of a mirrored kind, if nobody else has changed it; what it is then.
    async fn change(
        &self,
        mirror: &Mirror,
        before: &Value,
        after: &Value,
    ) -> Result<Arc<Value>, stolos_cluster::Error> {
        let mut patch = difference(before, after);
        patch["metadata"]["resourceVersion"] = meta::resource_version(before).into();
        self.merge(mirror, &mirror::key(before), &patch, false).await
    }

    /// Writes the status of an object of a mirrored kind where it differs, if nobody else has changed the object: parts
    /// of it are lists, which would undo each other's entries. Whether it differed.
    async fn put_status(&self, mirror: &Mirror, object: &Value, status: &Value) -> Result<bool, stolos_cluster::Error> {
        let part = |status: &Value| serde_json::json!({"status": status});
        let mut patch = difference(&part(&object["status"]), &part(status));
        if patch["status"].as_object().is_none_or(serde_json::Map::is_empty) {
            return Ok(false);
        }
        patch["metadata"] = serde_json::json!({"resourceVersion": meta::resource_version(object)});
        match self.merge(mirror, &mirror::key(object), &patch, true).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(true),
        }
    }

    /// Creates an object of a mirrored kind.
    async fn create(&self, mirror: &Mirror, object: &Value) -> Result<Arc<Value>, stolos_cluster::Error> {
        let now = Arc::new(objects::create(&self.client, &mirror.resource, object, MANAGER).await?);
        mirror.wrote(&now);
        Ok(now)
    }

    /// Replaces an object of a mirrored kind.
    async fn replace(&self, mirror: &Mirror, object: &Value) -> Result<Arc<Value>, stolos_cluster::Error> {
        let now = Arc::new(objects::replace(&self.client, &mirror.resource, object, MANAGER).await?);
        mirror.wrote(&now);
        Ok(now)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_is_the_patch_from_one_to_the_other() {
        let before = json!({"a": {"x": 1, "y": 2}, "b": [1], "c": "gone"});
        let after = json!({"a": {"x": 1, "z": 3}, "b": [1, 2], "d": {"new": {}}});
        let patch = difference(&before, &after);
        assert_eq!(patch, json!({"a": {"y": null, "z": 3}, "b": [1, 2], "c": null, "d": {"new": {}}}));
        assert_eq!(stolos_k8s::patch::merge(&before, &patch), after);
        assert_eq!(difference(&after, &after), json!({}));
    }
}
