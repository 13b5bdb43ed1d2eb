//! What a cluster's controllers know: watch caches that also believe their own writes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use stolos_serve::Stop;
use tokio::sync::{Notify, watch};

/// Namespace and name.
pub(crate) type Key = (String, String);

/// All objects of one kind in a cluster, as of a moment ago.
///
/// A controller that has written an object tells the cache ([`wrote`](Self::wrote)), so that its next look does not
/// miss what it did itself.
pub(crate) struct Cache<K> {
    objects: RwLock<BTreeMap<Key, Arc<K>>>,
    /// The newest revision the watch has shown.
    seen: AtomicU64,
    pokes: Mutex<Vec<Arc<Notify>>>,
    ready: watch::Sender<bool>,
}

pub(crate) trait Cached:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static> Cached for K {}

impl<K: Cached> Cache<K> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            objects: RwLock::default(),
            seen: AtomicU64::new(0),
            pokes: Mutex::default(),
            ready: watch::Sender::new(false),
        })
    }

    /// Follows the cluster until `stop`.
    pub(crate) async fn run(self: Arc<Self>, client: kube::Client, stop: Stop) {
        let events = watcher::watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut fresh = BTreeMap::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = stop.asked() => return,
            };
            match event {
                Some(Ok(event)) => self.take(event, &mut fresh),
                Some(Err(error)) => tracing::debug!(kind = %K::kind(&()), %error, "watch failed, trying again"),
                None => return,
            }
        }
    }

    fn take(&self, event: Event<K>, fresh: &mut BTreeMap<Key, Arc<K>>) {
        match event {
            Event::Init => fresh.clear(),
            Event::InitApply(object) => {
                self.saw(&object);
                fresh.insert(key(&object), Arc::new(object));
                return;
            }
            Event::InitDone => {
                *self.objects.write().unwrap_or_else(PoisonError::into_inner) = std::mem::take(fresh);
                self.ready.send_replace(true);
            }
            Event::Apply(object) => {
                self.saw(&object);
                self.insert(object);
            }
            Event::Delete(object) => {
                self.saw(&object);
                let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
                let key = key(&object);
                if objects.get(&key).is_some_and(|known| known.uid() == object.uid()) {
                    objects.remove(&key);
                }
            }
        }
        self.poke();
    }

    fn saw(&self, object: &K) {
        self.seen.fetch_max(revision(object), Ordering::AcqRel);
    }

    fn insert(&self, object: K) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let key = key(&object);
        if objects.get(&key).is_none_or(|known| revision(known.as_ref()) <= revision(&object)) {
            objects.insert(key, Arc::new(object));
        }
    }

    /// Believes a write at once. What the watch has passed already it knows better.
    pub(crate) fn wrote(&self, object: K) {
        if revision(&object) > self.seen.load(Ordering::Acquire) {
            self.insert(object);
            self.poke();
        }
    }

    pub(crate) async fn ready(&self) {
        // The sender lives as long as this cache: the wait cannot fail.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// From now on every change pokes `notify`.
    pub(crate) fn subscribe(&self, notify: &Arc<Notify>) {
        self.pokes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(notify));
    }

    pub(crate) fn unsubscribe(&self, notify: &Arc<Notify>) {
        self.pokes.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| !Arc::ptr_eq(known, notify));
    }

    fn poke(&self) {
        for poke in self.pokes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            poke.notify_one();
        }
    }

    pub(crate) fn list(&self) -> Vec<Arc<K>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}

pub(crate) fn key<K: ResourceExt>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn revision<K: ResourceExt>(object: &K) -> u64 {
    object.resource_version().and_then(|revision| revision.parse().ok()).unwrap_or(0)
}
