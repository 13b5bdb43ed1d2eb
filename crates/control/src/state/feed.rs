//! Another way to know: nobody watches, somebody tells. For measurements and simulations with more clusters than a
//! machine could run API servers of; everything behind the watches is what it always is.

use std::sync::Arc;
use std::time::Instant;

use stolos_serve::{Net, Stop};
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use super::{CONFIG, Event, Run, SECRETS, Seen, Slot, State, Writer};
use crate::Config;
use crate::model::{Labels, PodFacts};
use crate::policy::Object;
use crate::push::Done;
use crate::registry::{Change, NodeFacts, Registry, ServiceFacts, SliceFacts};

/// Tells a control plane what its watches would have seen.
#[derive(Clone)]
pub struct Feed {
    events: mpsc::Sender<Event>,
    /// The control plane's state, which follows what is told.
    pub state: State,
    /// How far the proxies are.
    pub done: watch::Receiver<Done>,
}

impl Feed {
    /// Namespaces of a cluster: their labels.
    pub async fn namespaces(&self, cluster: &Arc<str>, change: Change<Labels>) {
        self.tell(cluster, Seen::Namespaces(change)).await;
    }

    /// Services of a cluster.
    pub async fn services(&self, cluster: &Arc<str>, change: Change<ServiceFacts>) {
        self.tell(cluster, Seen::Services(change)).await;
    }

    /// EndpointSlices of a cluster.
    pub async fn slices(&self, cluster: &Arc<str>, change: Change<SliceFacts>) {
        self.tell(cluster, Seen::Slices(change)).await;
    }

    /// Pods of a cluster.
    pub async fn pods(&self, cluster: &Arc<str>, change: Change<PodFacts>) {
        self.tell(cluster, Seen::Pods(change)).await;
    }

    /// Nodes of a cluster: their labels.
    pub async fn nodes(&self, cluster: &Arc<str>, change: Change<NodeFacts>) {
        self.tell(cluster, Seen::Nodes(change)).await;
    }

    /// Istio's objects of one kind.
    pub async fn objects(&self, kind: &'static str, change: Change<Object>) {
        // An error means that the control plane is gone.
        let _ = self.events.send(Event::Objects { kind, change }).await;
    }

    async fn tell(&self, cluster: &Arc<str>, seen: Seen) {
        let event = Event::Cluster { id: Arc::clone(cluster), generation: 0, seen: Box::new(seen) };
        // An error means that the control plane is gone.
        let _ = self.events.send(event).await;
    }
}

/// What [`Feed`] is made of once proxies are served.
pub(crate) struct Told {
    pub(crate) state: State,
    events: mpsc::Sender<Event>,
}

impl Told {
    pub(crate) fn feed(self, done: watch::Receiver<Done>) -> Feed {
        Feed { events: self.events, state: self.state, done }
    }
}

/// As [`super::start`], with these remote clusters, and without a watch.
pub(crate) fn start(config: &Config, clusters: &[&str], net: Arc<dyn Net>, stop: Stop, tasks: &TaskTracker) -> Told {
    let (mut writer, inbox, state) = Writer::new(config, net, &stop, tasks);
    writer.listed = stolos_k8s::istio::KINDS.iter().map(|kind| kind.kind).chain([SECRETS, CONFIG]).collect();
    writer.slots.extend(clusters.iter().map(|id| Slot {
        id: (*id).into(),
        secret: format!("told/{id}"),
        current: Some(Run { generation: 0, registry: Registry::new(id, false), stop: stop.child() }),
        next: None,
        since: Instant::now(),
        timed_out: false,
        error: None,
        refused: false,
        client: None,
    }));
    let events = writer.watches.events.clone();
    tasks.spawn(writer.run(inbox, stop));
    Told { state, events }
}
