//! All objects of one kind, as an API server had them a moment ago.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use rand::RngExt as _;
use serde_json::Value;
use stolos_cluster::Bare;
use stolos_cluster::near::{self, Keeper, Near, News, Stored, Written};
use stolos_cluster::objects::Resource;
use stolos_k8s::meta;
use stolos_k8s::selector::LabelSelector;
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
pub(crate) const OLD: Duration = Duration::from_secs(1);
/// The same of members' pods and nodes, which are counted every ten seconds (`--cluster-status-update-frequency`) and stay
/// trees.
pub(crate) const OLD_WHERE_COUNTED: Duration = Duration::from_secs(15);
/// A kind that cannot be followed is asked for again after so long at first, and at last.
const FIRST_AGAIN: Duration = Duration::from_millis(50);
const LAST_AGAIN: Duration = Duration::from_secs(30);
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
    /// Its text, where the API server of this process has it in memory anyway.
    stored: Option<Bytes>,
}

enum Form {
    Tree {
        object: Arc<Value>,
        /// Whether somebody has asked for it lately.
        used: AtomicBool,
    },
    Text(Bytes),
}

impl Kept {
    fn new(object: Arc<Value>) -> Self {
        Self { revision: revision(&object), form: Form::Tree { object, used: AtomicBool::new(true) }, stored: None }
    }

    /// The object, to be looked at once.
    fn glance(&self) -> Arc<Value> {
        match &self.form {
            Form::Tree { object, .. } => Arc::clone(object),
            Form::Text(text) => Arc::new(near::read(text)),
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
        let text = self.stored.clone().or_else(|| serde_json::to_vec(object).ok().map(Bytes::from))?;
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
    pub(crate) async fn run(self: Arc<Self>, keeper: Keeper, old: Duration, stop: Stop) {
        match keeper.here() {
            Some(near) => self.follow(&**near, old, stop).await,
            None => self.watch(keeper.client(), old, stop).await,
        }
    }

    /// Follows one in this process.
    async fn follow(&self, near: &dyn Near, old: Duration, stop: Stop) {
        let mut news = near.follow(&self.resource);
        let mut old = tokio::time::interval(old);
        let mut failures = 0;
        loop {
            let news = tokio::select! {
                news = news.next() => news,
                _ = old.tick() => {
                    self.forget();
                    continue;
                }
                () = stop.asked() => return,
            };
            match news {
                Some(Ok(News::All(objects, revision))) => {
                    failures = 0;
                    self.take_all_stored(objects, revision);
                }
                Some(Ok(News::Changed(changes))) => {
                    changes.into_iter().for_each(|(stored, is_gone)| self.take_stored(stored, is_gone));
                }
                Some(Err(error)) => {
                    tracing::debug!(kind = self.resource.kind, %error, "cannot follow, trying again");
                    failures += 1;
                    let pause = FIRST_AGAIN.saturating_mul(1 << failures.min(10)).min(LAST_AGAIN);
                    tokio::select! {
                        () = tokio::time::sleep(pause.mul_f64(rand::rng().random_range(0.7..1.3))) => {}
                        () = stop.asked() => return,
                    }
                }
                None => return,
            }
        }
    }

    /// All that there was at a revision. Only what is news is read: who falls behind has to catch up.
    fn take_all_stored(&self, all: Vec<Stored>, revision: u64) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let there: HashSet<Key> = all.iter().map(|stored| (stored.namespace.clone(), stored.name.clone())).collect();
        // What was written after that is not missing.
        let is_gone = |key: &Key, kept: &Kept| kept.revision <= revision && !there.contains(key);
        let gone: Vec<_> = objects.extract_if(.., |key, kept| is_gone(key, kept)).collect();
        drop(objects);
        for (_, kept) in gone {
            (self.changed)(Some(&kept.glance()), None);
        }
        all.into_iter().for_each(|stored| self.take_stored(stored, false));
        self.seen.fetch_max(revision, Ordering::AcqRel);
        self.ready.send_replace(true);
    }

    fn take_stored(&self, stored: Stored, is_gone: bool) {
        if !self.is_of_namespace(&stored.namespace) {
            return;
        }
        self.seen.fetch_max(stored.revision, Ordering::AcqRel);
        let key = (stored.namespace.clone(), stored.name.clone());
        if !is_gone
            && let Some(kept) = self.objects.write().unwrap_or_else(PoisonError::into_inner).get_mut(&key)
            && kept.revision >= stored.revision
        {
            // Mostly the echo of a write of our own.
            if kept.revision == stored.revision {
                kept.stored = Some(stored.json);
            }
            return;
        }
        let object = Arc::new(stored.read());
        match is_gone || !self.is_meant(&object) {
            true => self.remove(&object),
            false => self.insert(object, Some(stored.json), || None),
        }
    }

    fn is_of_namespace(&self, namespace: &str) -> bool {
        self.namespace.is_none_or(|only| only == namespace)
    }

    /// Whether it has the labels that objects of this mirror have.
    fn is_meant(&self, object: &Value) -> bool {
        self.labels
            .is_none_or(|labels| LabelSelector::parse(labels).is_ok_and(|selector| selector.matches_object(object)))
    }

    /// Follows one over HTTP.
    async fn watch(&self, client: &kube::Client, old: Duration, stop: Stop) {
        let mut config = watcher::Config::default();
        if let Some(labels) = self.labels {
            config = config.labels(labels);
        }
        let events = watcher::watcher(self.resource.bare_api(client, self.namespace), config).default_backoff();
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
            Event::Apply(object) => self.insert(Arc::new(self.read(object)), None, || None),
            Event::Delete(object) => self.remove(&self.read(object)),
        }
    }

    fn remove(&self, object: &Value) {
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let key = key(object);
        // One of the same name may be there already.
        let before = objects.get(&key).map(Kept::glance);
        let gone = before.filter(|known| meta::uid(known) == meta::uid(object));
        if gone.is_some() {
            objects.remove(&key);
        }
        drop(objects);
        if gone.is_some() {
            (self.changed)(gone.as_ref(), None);
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
    fn insert(&self, object: Arc<Value>, stored: Option<Bytes>, passed: impl FnOnce() -> Option<u64>) {
        let key = key(&object);
        let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
        let now = Kept { stored, ..Kept::new(Arc::clone(&object)) };
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
        self.believe(object, None);
    }

    /// Believes a write at once, and says what it has made.
    pub(crate) fn take_written(&self, written: Written) -> Arc<Value> {
        let mut text = None;
        if let Written::Stored(stored) = &written {
            let key = (stored.namespace.clone(), stored.name.clone());
            let mut objects = self.objects.write().unwrap_or_else(PoisonError::into_inner);
            // Often what follows the server was faster.
            if let Some(kept) = objects.get_mut(&key).filter(|kept| kept.revision == stored.revision) {
                return kept.look();
            }
            text = Some(stored.json.clone());
        }
        let object = Arc::new(written.read());
        self.believe(&object, text);
        object
    }

    fn believe(&self, object: &Arc<Value>, stored: Option<Bytes>) {
        // A write that ended a deletion answers with what was there last.
        let ended = meta::deletion_timestamp(object).is_some() && meta::finalizers(object).is_empty();
        if !ended {
            self.insert(Arc::clone(object), stored, || Some(self.seen.load(Ordering::Acquire)));
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
    fn who_fell_behind_reads_only_what_is_news() {
        let told: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
        let news = Arc::clone(&told);
        let resource = Resource::named("v1", "ConfigMap").unwrap();
        let mirror = Mirror::new(resource, Some("n"), None, move |before, now| {
            let say = |object: Option<&Arc<Value>>| {
                object.map_or("-".to_owned(), |it| format!("{}@{}", meta::name(it), meta::resource_version(it)))
            };
            news.lock().unwrap().push(format!("{} > {}", say(before), say(now)));
        });
        let stored = |namespace: &str, name: &str, revision: u64| {
            let json = serde_json::to_vec(&*object(name, revision)).unwrap().into();
            Stored { namespace: namespace.into(), name: name.into(), revision, json }
        };
        mirror.take_all_stored(vec![stored("n", "a", 1), stored("n", "b", 2), stored("other", "x", 2)], 4);
        mirror.wrote(&object("mine", 9));
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), ["- > a@1", "- > b@2", "- > mine@9"]);

        // What is known is not read again, and what was written after that is not missing.
        let before = mirror.get("n", "a").unwrap();
        mirror.take_all_stored(vec![stored("n", "a", 1), stored("n", "c", 5)], 6);
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), ["b@2 > -", "- > c@5"]);
        assert!(Arc::ptr_eq(&before, &mirror.get("n", "a").unwrap()));

        // A write whose echo came first is not read again.
        let seen = mirror.get("n", "c").unwrap();
        assert!(Arc::ptr_eq(&seen, &mirror.take_written(Written::Stored(stored("n", "c", 5)))));
        let written = mirror.take_written(Written::Stored(stored("n", "c", 7)));
        assert!(Arc::ptr_eq(&written, &mirror.get("n", "c").unwrap()));
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), ["c@5 > c@7"]);

        // The echo of a write is none; its text is kept for when the tree goes.
        let echo = stored("n", "mine", 9);
        let text = echo.json.clone();
        mirror.take_stored(echo, false);
        mirror.forget();
        mirror.forget();
        assert!(told.lock().unwrap().is_empty());
        match &mirror.objects.read().unwrap()[&("n".to_owned(), "mine".to_owned())].form {
            Form::Text(kept) => assert_eq!(kept.as_ptr(), text.as_ptr()),
            Form::Tree { .. } => panic!("nobody has looked at it"),
        }
        mirror.take_stored(stored("n", "mine", 11), true);
        mirror.take_stored(stored("n", "a", 12), false);
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), ["mine@9 > -", "a@1 > a@12"]);
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
