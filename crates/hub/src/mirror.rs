//! All objects of one kind, as an API server had them a moment ago.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde_json::Value;
use stolos_cluster::Bare;
use stolos_cluster::objects::Resource;
use stolos_k8s::meta;
use stolos_serve::Stop;
use tokio::sync::watch;

/// Namespace and name.
pub(crate) type Key = (String, String);

/// What became of an object: what it was, and what it is; one of them at least is there.
pub(crate) type Changed = dyn Fn(Option<&Arc<Value>>, Option<&Arc<Value>>) + Send + Sync;

/// What an object was and what it is.
type Change = (Option<Arc<Value>>, Option<Arc<Value>>);

/// How often what nobody has looked at since the last time becomes text: thousands come at once, are looked at a few times
/// and then for long not.
pub(crate) const OLD: Duration = Duration::from_secs(3);
/// The same of members' pods and nodes, which are counted every ten seconds (`--cluster-status-update-frequency`) and stay
/// trees.
pub(crate) const OLD_WHERE_COUNTED: Duration = Duration::from_secs(15);
/// So many at a time: whoever writes waits meanwhile.
const AT_ONCE: usize = 256;

/// A watch cache that believes its owner's writes at once, so that the next look does not miss what it did itself.
pub(crate) struct Mirror {
    pub(crate) resource: Resource,
    namespace: Option<&'static str>,
    labels: Option<&'static str>,
    objects: RwLock<BTreeMap<Key, Kept>>,
    /// The newest revision that the watch has shown.
    seen: AtomicU64,
    ready: watch::Sender<bool>,
    changed: Box<Changed>,
}

/// An object in memory. As a tree it takes ten times the room of its text, so that those that nobody has looked at lately
/// are text.
struct Kept {
    revision: u64,
    form: Form,
}

enum Form {
    Tree {
        object: Arc<Value>,
        /// Whether somebody has asked for it lately.
        used: AtomicBool,
    },
    Text(Box<[u8]>),
}

impl Kept {
    fn new(object: Arc<Value>) -> Self {
        Self { revision: revision(&object), form: Form::Tree { object, used: AtomicBool::new(true) } }
    }

    /// The object, to be looked at once.
    fn glance(&self) -> Arc<Value> {
        match &self.form {
            Form::Tree { object, .. } => Arc::clone(object),
            // It was written by us, from a tree.
            Form::Text(text) => Arc::new(serde_json::from_slice(text).unwrap_or_default()),
        }
    }

    /// The object, where it is a tree.
    fn tree(&self) -> Option<Arc<Value>> {
        let Form::Tree { object, used } = &self.form else { return None };
        // Read first: a line that many cores write is slow for all of them.
        if !used.load(Ordering::Relaxed) {
            used.store(true, Ordering::Relaxed);
        }
        Some(Arc::clone(object))
    }

    /// The object. It is a tree from now on: who asks once asks again.
    fn look(&mut self) -> Arc<Value> {
        self.tree().unwrap_or_else(|| {
            let object = self.glance();
            self.form = Form::Tree { object: Arc::clone(&object), used: AtomicBool::new(true) };
            object
        })
    }

    /// Makes text of it, if nobody has asked for it since this was asked last.
    fn forget(&mut self) -> Option<Arc<Value>> {
        let Form::Tree { object, used } = &self.form else { return None };
        if used.swap(false, Ordering::Relaxed) {
            return None;
        }
        let text = serde_json::to_vec(object).ok()?.into_boxed_slice();
        match std::mem::replace(&mut self.form, Form::Text(text)) {
            Form::Tree { object, .. } => Some(object),
            Form::Text(_) => None,
        }
    }
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

    /// Follows the API server until `stop`; what nobody has looked at for as long as `old` becomes text.
    pub(crate) async fn run(self: Arc<Self>, client: kube::Client, old: Duration, stop: Stop) {
        let mut config = watcher::Config::default();
        if let Some(labels) = self.labels {
            config = config.labels(labels);
        }
        let events = watcher::watcher(self.resource.bare_api(&client, self.namespace), config).default_backoff();
        let mut events = std::pin::pin!(events);
        let mut fresh = BTreeMap::new();
        let mut old = tokio::time::interval(old);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                _ = old.tick() => {
                    self.forget();
                    continue;
                }
                () = stop.asked() => return,
            };
            match event {
                Some(Ok(event)) => self.take(event, &mut fresh),
                Some(Err(error)) => tracing::debug!(kind = self.resource.kind, %error, "watch failed, trying again"),
                None => return,
            }
        }
    }

    /// Makes text of what nobody has asked for lately.
    fn forget(&self) {
        let mut from = Bound::Unbounded;
        loop {
            // Dropped after the lock: that is most of the work.
            let mut forgotten = Vec::new();
            let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
            let mut last = None;
            for (key, kept) in objects.range_mut((from, Bound::Unbounded)).take(AT_ONCE) {
                forgotten.extend(kept.forget());
                last = Some(key.clone());
            }
            drop(objects);
            let Some(last) = last else { return };
            from = Bound::Excluded(last);
        }
    }

    fn take(&self, event: Event<Bare>, fresh: &mut BTreeMap<Key, Kept>) {
        match event {
            Event::Init => fresh.clear(),
            Event::InitApply(object) => {
                let object = self.read(object);
                fresh.insert(key(&object), Kept::new(Arc::new(object)));
            }
            Event::InitDone => self.take_all(std::mem::take(fresh)),
            Event::Apply(object) => self.insert(Arc::new(self.read(object)), || None),
            Event::Delete(object) => {
                let object = self.read(object);
                let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
                let key = key(&object);
                // One of the same name may be there already.
                let before = objects.get(&key).map(Kept::glance);
                let gone = before.filter(|known| meta::uid(known) == meta::uid(&object));
                if gone.is_some() {
                    objects.remove(&key);
                }
                drop(objects);
                if gone.is_some() {
                    (self.changed)(gone.as_ref(), None);
                }
            }
        }
    }

    /// Everything anew: what is no longer there is told as well.
    fn take_all(&self, fresh: BTreeMap<Key, Kept>) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *objects, fresh);
        let gone = before.iter().filter(|(key, _)| !objects.contains_key(*key));
        let gone: Vec<_> = gone.map(|(_, old)| (Some(old.glance()), None)).collect();
        let other = objects.iter().filter_map(|(key, object)| {
            let old = before.get(key);
            let is_new = old.is_none_or(|old| old.revision != object.revision);
            is_new.then(|| (old.map(Kept::glance), Some(object.glance())))
        });
        let changed: Vec<Change> = gone.into_iter().chain(other).collect();
        drop(objects);
        self.ready.send_replace(true);
        for (old, now) in &changed {
            (self.changed)(old.as_ref(), now.as_ref());
        }
    }

    /// Reads an object as the watch shows it.
    fn read(&self, Bare { mut value, .. }: Bare) -> Value {
        // Lists leave the kind of their items out.
        for (field, text) in [("apiVersion", &self.resource.api_version), ("kind", &self.resource.kind)] {
            if value[field].is_null() {
                value[field] = text.as_str().into();
            }
        }
        self.seen.fetch_max(revision(&value), Ordering::AcqRel);
        value
    }

    /// Takes an object that is newer than what there is, and than `passed`, if anything has.
    fn insert(&self, object: Arc<Value>, passed: impl FnOnce() -> Option<u64>) {
        let key = key(&object);
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let now = Kept::new(Arc::clone(&object));
        // Asked under the lock: what ends meanwhile has been seen by then, or waits for it.
        let passed = passed().is_some_and(|passed| now.revision <= passed);
        if passed || objects.get(&key).is_some_and(|before| before.revision >= now.revision) {
            return;
        }
        let before = objects.insert(key, now).map(|before| before.glance());
        drop(objects);
        (self.changed)(before.as_ref(), Some(&object));
    }

    /// Believes a write at once. What the watch has passed already it knows better.
    pub(crate) fn wrote(&self, object: &Arc<Value>) {
        // A write that ended a deletion answers with what was there last.
        let ended = meta::deletion_timestamp(object).is_some() && meta::finalizers(object).is_empty();
        if !ended {
            self.insert(Arc::clone(object), || Some(self.seen.load(Ordering::Acquire)));
        }
    }

    /// Waits until the whole kind has been seen once, for so long at most; whether it has.
    pub(crate) async fn ready(&self, patience: Duration) -> bool {
        let mut ready = self.ready.subscribe();
        tokio::time::timeout(patience, ready.wait_for(|ready| *ready)).await.is_ok_and(|seen| seen.is_ok())
    }

    pub(crate) fn list(&self) -> Vec<Arc<Value>> {
        self.objects.write().unwrap_or_else(PoisonError::into_inner).values_mut().map(Kept::look).collect()
    }

    /// All, for those who pass by now and then: what is text stays so.
    pub(crate) fn glance(&self) -> Vec<Arc<Value>> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).values().map(Kept::glance).collect()
    }

    /// Where all of them are.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.objects.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// All of one namespace.
    pub(crate) fn of_namespace(&self, namespace: &str) -> Vec<Arc<Value>> {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let from = objects.range_mut((namespace.to_owned(), String::new())..);
        from.take_while(|((of, _), _)| of == namespace).map(|(_, object)| object.look()).collect()
    }

    /// Where all of one namespace are.
    pub(crate) fn keys_of_namespace(&self, namespace: &str) -> Vec<Key> {
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        let from = objects.range((namespace.to_owned(), String::new())..);
        from.take_while(|((of, _), _)| of == namespace).map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = (namespace.to_owned(), name.to_owned());
        let objects = self.objects.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(tree) = objects.get(&key)?.tree() {
            return Some(tree);
        }
        drop(objects);
        self.objects.write().unwrap_or_else(PoisonError::into_inner).get_mut(&key).map(Kept::look)
    }
}

pub(crate) fn key(object: &Value) -> Key {
    (meta::namespace(object).to_owned(), meta::name(object).to_owned())
}

fn revision(object: &Value) -> u64 {
    meta::resource_version(object).parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, revision: u64) -> Arc<Value> {
        Arc::new(json!({"metadata": {"namespace": "n", "name": name, "resourceVersion": revision.to_string()}}))
    }

    /// `serde_json` reads the last digits of such numbers right only with its feature `float_roundtrip`.
    #[test]
    fn numbers_of_many_digits_stay_as_they_are_as_text() {
        let resource = Resource::named("v1", "ConfigMap").unwrap();
        let mirror = Mirror::new(resource, None, None, |_, _| {});
        let numbers =
            [31.245_270_191_439_438_f64, 0.1 + 0.2, 2.225_073_858_507_201_4e-308, 1.797_693_134_862_315_7e308];
        let object =
            Arc::new(json!({"metadata": {"namespace": "n", "name": "a", "resourceVersion": "1"}, "spec": numbers}));
        mirror.wrote(&object);
        mirror.forget();
        mirror.forget();
        let key = ("n".to_owned(), "a".to_owned());
        assert!(matches!(mirror.objects.read().unwrap()[&key].form, Form::Text(_)));
        assert_eq!(mirror.get("n", "a"), Some(object));
    }

    #[test]
    fn what_nobody_looks_at_is_text_and_the_same() {
        let told: Arc<std::sync::Mutex<Vec<Change>>> = Arc::default();
        let news = Arc::clone(&told);
        let resource = Resource::named("v1", "ConfigMap").unwrap();
        let mirror = Mirror::new(resource, None, None, move |before, now| {
            news.lock().unwrap().push((before.cloned(), now.cloned()));
        });
        mirror.wrote(&object("a", 1));
        mirror.wrote(&object("b", 2));
        let is_text = |name: &str| {
            let objects = mirror.objects.read().unwrap();
            matches!(objects[&("n".to_owned(), name.to_owned())].form, Form::Text(_))
        };
        // What is new counts as looked at.
        mirror.forget();
        assert!(!is_text("a") && !is_text("b"));
        assert_eq!(mirror.get("n", "a"), Some(object("a", 1)));
        mirror.forget();
        assert!(!is_text("a") && is_text("b"));
        assert_eq!(mirror.glance(), [object("a", 1), object("b", 2)]);
        assert!(is_text("b"));
        // A change is told with what was before, and an older state is none.
        told.lock().unwrap().clear();
        mirror.wrote(&object("b", 3));
        mirror.wrote(&object("b", 2));
        assert_eq!(*told.lock().unwrap(), [(Some(object("b", 2)), Some(object("b", 3)))]);
        for _ in 0..2 {
            mirror.forget();
        }
        assert!(is_text("a") && is_text("b"));
        assert_eq!(mirror.of_namespace("n"), [object("a", 1), object("b", 3)]);
        assert!(!is_text("a") && !is_text("b"));
    }
}
