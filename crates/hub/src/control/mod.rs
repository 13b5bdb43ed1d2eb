//! What the hub does, for ever: one queue for each question.
//!
//! Each `look` answers the question of one queue, and a change that it writes may ask another one. Start at [`start()`], then
//! read `queues.rs` (which change asks which question) and `schedule.rs`, which is a typical answer.

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
mod heartbeat;
mod impersonate;
mod index;
mod interpret;
mod members;
mod meshes;
mod namespaces;
mod own;
mod policies;
mod queues;
mod rebalance;
mod schedule;
mod template;
mod write;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use serde_json::Value;
use stolos_cluster::near::Keeper;
use stolos_serve::{Listener, Net, Stop};
use stolos_tunnel::{Limits as TunnelLimits, Relay};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::admission::Asked;
use crate::event::{self, Recorder};
use crate::evict::Settings as Patience;
use crate::evict::application::Watch;
use crate::evict::rate::Turns;
use crate::interpret::Interpreters;
use crate::member::Ways;
use crate::mirror::{self, Key};
use crate::model::{Cluster, ClusterTaintPolicy, OverridePolicy};
use crate::place;
use crate::proxy::{Audit, Limits, Proxy};
use crate::queue::{Again, Queue, Trouble};
use crate::{Error, gate};
pub(crate) use bind::binding_of;
pub use figures::Pages;
use members::Member;
use own::Own;
use queues::Queues;
use template::{TemplateKey, Templates};

/// How many things of one queue are looked at at once. Most looks wait for the disk, which takes all that wait together.
const AT_ONCE: usize = 64;
/// The same of Works: one that waits for a member that is silent must not hold up the others'.
const WORKS_AT_ONCE: usize = 128;
/// Who leaves a cluster: those of a higher priority first, and each look asks for its turn.
const EVICTED_AT_ONCE: usize = 1;
/// How long the first look at everything may take.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// What the hub is given.
pub struct Settings {
    /// The API server that it works with.
    pub keeper: Keeper,
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
                algorithm: hub.placing.algorithm,
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
/// 3. The queues, each its own task, and each look; nothing is kept between two runs but what the API server has.
///
/// # Errors
///
/// When the API server cannot be made ready. Later trouble is tried again instead.
pub async fn start(settings: Settings, stop: &Stop) -> Result<Running, Error> {
    let Settings { keeper, net, door, admission, patience, placing } = settings;
    crate::install::install(keeper.client()).await?;
    crate::placing::record(keeper.client(), placing).await?;
    let tasks = TaskTracker::new();
    let (events, entries) = Recorder::new();
    let relay = door.is_some().then(|| Relay::new(TunnelLimits::default()));
    let ways = Ways { net, relay: relay.clone() };
    let hub = Hub::new(keeper.clone(), ways, (patience, placing), events, stop.clone(), tasks.clone());
    let queues = Arc::clone(&hub.queues);
    tasks.spawn(event::write(entries, keeper, move || queues.are_deciding(), stop.clone()));
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

/// What a queue's looks do. What is to be decided goes first: where thousands come at once, those of a higher priority get their
/// room, and everybody can see where his workload goes, before the last of them is everywhere.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Decides,
    CarriesOut,
}

/// What all its parts share.
pub(crate) struct Hub {
    keeper: Keeper,
    /// Of the same API server, for what is asked seldom.
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
    read_overrides: policies::Typed<OverridePolicy>,
    /// Taint policies as types, as of the last change of one.
    read_taint_policies: policies::Typed<ClusterTaintPolicy>,
    /// What is known of kinds, as of the last change of a customization.
    interpreters: RwLock<Arc<Interpreters>>,
    /// Turns of scripts.
    scripts: Semaphore,
    /// Templates that no policy selects.
    waiting: Mutex<HashSet<TemplateKey>>,
    /// Templates that have changed since they were looked at: what a lazy policy waits for.
    touched: Arc<Mutex<HashSet<TemplateKey>>>,
    /// Templates that get a policy's claim just now.
    claiming: Arc<Mutex<HashSet<TemplateKey>>>,
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
    /// Which workload leaves its cluster next, by the time since `began`.
    evictions: Mutex<Turns<Key>>,
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

impl Hub {
    fn new(
        keeper: Keeper,
        ways: Ways,
        (patience, placing): (Patience, place::Settings),
        events: Recorder,
        stop: Stop,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let queues = Arc::new(Queues::new());
        let moving: Arc<Mutex<HashSet<Key>>> = Arc::default();
        let pods: Arc<Mutex<index::Pods>> = Arc::default();
        Arc::new_cyclic(|hub: &Weak<Self>| Self {
            client: keeper.client().clone(),
            keeper,
            ways,
            own: Own::new(hub, &queues, &moving, &pods),
            queues,
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
            claiming: Arc::default(),
            unmatched: Mutex::default(),
            prepared: Mutex::default(),
            moving,
            evictions: Mutex::new(Turns::new(patience.eviction_rate)),
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
        })
    }

    /// Starts the mirrors, and waits until each has seen its whole kind; whether they have.
    async fn first_look(self: &Arc<Self>) -> bool {
        for mirror in self.own.all() {
            self.tasks.spawn(Arc::clone(mirror).run(self.keeper.clone(), mirror::OLD, self.stop.clone()));
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
        self.answer(&queues.clusters, WORKS_AT_ONCE, Part::Decides, clusters::look);
        self.answer(&queues.namespaces, AT_ONCE, Part::Decides, namespaces::look);
        self.answer(&queues.policies, AT_ONCE, Part::Decides, policies::look);
        self.answer(&queues.templates, AT_ONCE, Part::Decides, detect::look);
        self.answer(&queues.schedule, AT_ONCE, Part::Decides, schedule::look);
        self.answer(&queues.evict, EVICTED_AT_ONCE, Part::Decides, evict::look);
        self.answer(&queues.bind, AT_ONCE, Part::CarriesOut, bind::look);
        self.answer(&queues.depend, AT_ONCE, Part::CarriesOut, depend::look);
        self.answer(&queues.works, WORKS_AT_ONCE, Part::CarriesOut, execute::look);
        self.answer(&queues.aggregate, AT_ONCE, Part::CarriesOut, aggregate::look);
        self.answer(&queues.impersonate, AT_ONCE, Part::Decides, impersonate::look);
        self.answer(&queues.rebalance, AT_ONCE, Part::Decides, rebalance::look);
    }

    /// Answers the question of a queue until the hub stops.
    fn answer<K, F>(
        self: &Arc<Self>,
        queue: &Arc<Queue<K>>,
        at_once: usize,
        part: Part,
        look: impl Fn(Arc<Self>, K) -> F + Send + 'static,
    ) where
        K: Clone + Ord + std::hash::Hash + std::fmt::Debug + Send + 'static,
        F: Future<Output = Result<Again, Trouble>> + Send + 'static,
    {
        let (hub, queues) = (Arc::clone(self), Arc::clone(&self.queues));
        let look = move |key| look(Arc::clone(&hub), key);
        let yield_to = move || part == Part::CarriesOut && queues.are_deciding();
        self.tasks.spawn(Arc::clone(queue).run(at_once, yield_to, self.stop.clone(), look));
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
}

#[cfg(test)]
mod tests;
