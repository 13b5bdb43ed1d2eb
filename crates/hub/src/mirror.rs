//! All objects of one kind, as an API server had them a moment ago.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use kube::core::DynamicObject;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde_json::Value;
use stolos_cluster::objects::Resource;
use stolos_k8s::meta;
use stolos_serve::Stop;
use tokio::sync::watch;

/// Namespace and name.
pub(crate) type Key = (String, String);

/// What became of an object: what it was, and what it is; one of them at least is there.
pub(crate) type Changed = dyn Fn(Option<&Arc<Value>>, Option<&Arc<Value>>) + Send + Sync;

/// A watch cache that believes its owner's writes at once, so that the next look does not miss what it did itself.
pub(crate) struct Mirror {
    pub(crate) resource: Resource,
    namespace: Option<&'static str>,
    labels: Option<&'static str>,
    objects: RwLock<BTreeMap<Key, Arc<Value>>>,
    /// The newest revision that the watch has shown.
    seen: AtomicU64,
    ready: watch::Sender<bool>,
    changed: Box<Changed>,
}

impl Mirror {
    /// Of the objects in this namespace and with these labels, or of all.
    pub(crate) fn new(
        resource: Resource,
        namespace: Option<&'static str>,
        labels: Option<&'static str>,
        changed: impl Fn(Option<&Arc<Value>>, Option<&Arc<Value>>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            resource,
            namespace,
            labels,
            objects: RwLock::default(),
            seen: AtomicU64::new(0),
            ready: watch::Sender::new(false),
            changed: Box::new(changed),
        })
    }

    /// Follows the API server until `stop`.
    pub(crate) async fn run(self: Arc<Self>, client: kube::Client, stop: Stop) {
        let mut config = watcher::Config::default();
        if let Some(labels) = self.labels {
            config = config.labels(labels);
        }
        let events = watcher::watcher(self.resource.api(&client, self.namespace), config).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut fresh = BTreeMap::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = stop.asked() => return,
            };
            match event {
                Some(Ok(event)) => self.take(event, &mut fresh),
                Some(Err(error)) => tracing::debug!(kind = self.resource.kind, %error, "watch failed, trying again"),
                None => return,
            }
        }
    }

    fn take(&self, event: Event<DynamicObject>, fresh: &mut BTreeMap<Key, Arc<Value>>) {
        match event {
            Event::Init => fresh.clear(),
            Event::InitApply(object) => {
                if let Some(object) = self.read(object) {
                    fresh.insert(key(&object), Arc::new(object));
                }
            }
            Event::InitDone => self.take_all(std::mem::take(fresh)),
            Event::Apply(object) => {
                if let Some(object) = self.read(object) {
                    self.insert(object);
                }
            }
            Event::Delete(object) => {
                let Some(object) = self.read(object) else { return };
                let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
                let key = key(&object);
                // One of the same name may be there already.
                let gone = objects.get(&key).is_some_and(|known| meta::uid(known) == meta::uid(&object));
                let before = if gone { objects.remove(&key) } else { None };
                drop(objects);
                if before.is_some() {
                    (self.changed)(before.as_ref(), None);
                }
            }
        }
    }

    /// Everything anew: what is no longer there is told as well.
    fn take_all(&self, fresh: BTreeMap<Key, Arc<Value>>) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *objects, fresh);
        let now = objects.clone();
        drop(objects);
        self.ready.send_replace(true);
        for (key, old) in &before {
            if !now.contains_key(key) {
                (self.changed)(Some(old), None);
            }
        }
        for (key, object) in &now {
            let old = before.get(key);
            if old.is_none_or(|old| revision(old) != revision(object)) {
                (self.changed)(old, Some(object));
            }
        }
    }

    /// Reads an object as the watch shows it. Field ownership is much and of no use here.
    fn read(&self, mut object: DynamicObject) -> Option<Value> {
        object.metadata.managed_fields = None;
        object.types.get_or_insert_with(|| kube::core::TypeMeta {
            api_version: self.resource.api_version.clone(),
            kind: self.resource.kind.clone(),
        });
        let object = serde_json::to_value(object).ok()?;
        self.seen.fetch_max(revision(&object), Ordering::AcqRel);
        Some(object)
    }

    fn insert(&self, object: Value) {
        let (key, object) = (key(&object), Arc::new(object));
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let before = objects.get(&key).cloned();
        if before.as_ref().is_some_and(|before| revision(before) >= revision(&object)) {
            return;
        }
        objects.insert(key, Arc::clone(&object));
        drop(objects);
        (self.changed)(before.as_ref(), Some(&object));
    }

    /// Believes a write at once. What the watch has passed already it knows better.
    pub(crate) fn wrote(&self, mut object: Value) {
        // A write that ended a deletion answers with what was there last.
        let ended = meta::deletion_timestamp(&object).is_some() && meta::finalizers(&object).is_empty();
        if revision(&object) > self.seen.load(Ordering::Acquire) && !ended {
            meta::metadata_mut(&mut object).remove("managedFields");
            self.insert(object);
        }
    }

    /// Waits until the whole kind has been seen once, for so long at most; whether it has.
    pub(crate) async fn ready(&self, patience: Duration) -> bool {
        let mut ready = self.ready.subscribe();
        tokio::time::timeout(patience, ready.wait_for(|ready| *ready)).await.is_ok_and(|seen| seen.is_ok())
    }

    pub(crate) fn list(&self) -> Vec<Arc<Value>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// All of one namespace.
    pub(crate) fn of_namespace(&self, namespace: &str) -> Vec<Arc<Value>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let from = objects.range((namespace.to_owned(), String::new())..);
        from.take_while(|((of, _), _)| of == namespace).map(|(_, object)| Arc::clone(object)).collect()
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}

pub(crate) fn key(object: &Value) -> Key {
    (meta::namespace(object).to_owned(), meta::name(object).to_owned())
}

fn revision(object: &Value) -> u64 {
    meta::resource_version(object).parse().unwrap_or(0)
}
