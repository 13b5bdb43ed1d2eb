//! What readers see: per resource the objects of now, and a bounded window of what just happened.
//!
//! A watcher has no queue of its own. It remembers the revision it has seen and reads the shared window from there;
//! one that falls behind the window is told so (410 Gone) and lists again. So a slow watcher costs nothing.
//!
//! The window is bounded three ways: by events, by the bytes its objects really hold (an object that was parsed is
//! several times as large as its text), and by age. What was deleted is held by nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, Deref};
use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

/// An object as it was stored at one revision.
#[derive(Debug)]
pub(crate) struct Object {
    /// The object, with its `resourceVersion`.
    pub(crate) value: Tree,
    /// The same as JSON text.
    pub(crate) json: Bytes,
    /// The revision of its last change.
    pub(crate) revision: u64,
}

impl Object {
    /// About how much memory it holds.
    fn weight(&self) -> usize {
        128 + self.json.len() + self.value.read.get().map_or(0, weight)
    }

    /// An object that somebody has at hand already.
    #[must_use]
    pub(crate) fn new(value: Value, json: Bytes, revision: u64) -> Arc<Self> {
        Arc::new(Self { value: Tree { json: json.clone(), read: value.into() }, json, revision })
    }

    /// An object as text, which is read if somebody looks inside. As a tree it takes five times the memory and more.
    #[must_use]
    pub(crate) fn unread(json: Bytes, revision: u64) -> Arc<Self> {
        Arc::new(Self { value: Tree { json: json.clone(), read: OnceLock::new() }, json, revision })
    }

    fn forgotten(&self) -> Arc<Self> {
        Self::unread(self.json.clone(), self.revision)
    }
}

/// About how much memory a value holds beside itself: B-tree nodes are two thirds full on average.
fn weight(value: &Value) -> usize {
    const SLOT: usize = size_of::<Value>();
    const ENTRY: usize = (SLOT + size_of::<String>()) * 3 / 2;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => text.capacity(),
        Value::Array(list) => list.capacity() * SLOT + list.iter().map(weight).sum::<usize>(),
        Value::Object(map) => map.iter().map(|(key, value)| ENTRY + key.capacity() + weight(value)).sum(),
    }
}

/// JSON text that becomes a tree when somebody looks inside.
pub(crate) struct Tree {
    json: Bytes,
    read: OnceLock<Value>,
}

impl Deref for Tree {
    type Target = Value;

    fn deref(&self) -> &Value {
        // It was written by us, from a tree.
        self.read.get_or_init(|| serde_json::from_slice(&self.json).unwrap_or_default())
    }
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tree").field(&self.json.len()).finish()
    }
}

/// One change, as watchers see it.
#[derive(Debug)]
pub(crate) struct Event {
    /// The revision that it made.
    pub(crate) revision: u64,
    /// The object before, unless it was created.
    pub(crate) before: Option<Arc<Object>>,
    /// The object after; for a deletion its last state, with the revision of the deletion.
    pub(crate) object: Arc<Object>,
    /// Whether the object is gone.
    pub(crate) deleted: bool,
}

/// Namespace and name.
pub(crate) type Place = (String, String);

/// The revision asked for lies before the window: list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expired {
    /// The oldest revision that can be continued from.
    pub(crate) oldest: u64,
}

/// How much of the past a resource keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Events at most.
    pub(crate) events: usize,
    /// Bytes of objects at most; all resources together keep at most [`TOGETHER`] times as much.
    pub(crate) bytes: usize,
}

/// How many full windows all resources of a server share.
pub(crate) const TOGETHER: usize = 3;
/// How long an event is kept when there is room for it: as long as etcd keeps a revision for Kubernetes.
pub(crate) const AGE: Duration = Duration::from_secs(300);

/// The objects of one resource.
#[derive(Debug)]
pub(crate) struct Cache {
    inner: RwLock<Inner>,
    changed: watch::Sender<u64>,
    window: Window,
}

#[derive(Debug)]
struct Inner {
    objects: BTreeMap<Place, Arc<Object>>,
    events: VecDeque<Kept>,
    event_bytes: usize,
    /// Events after this revision are in the window.
    compacted: u64,
    /// The revision of the last change.
    last: u64,
}

#[derive(Debug)]
struct Kept {
    event: Arc<Event>,
    weight: usize,
    since: Instant,
}

impl Inner {
    /// Lets the oldest event go.
    fn forget(&mut self) {
        if let Some(old) = self.events.pop_front() {
            self.event_bytes -= old.weight;
            self.compacted = old.event.revision;
        }
        if self.events.capacity() > 64 && self.events.len() < self.events.capacity() / 4 {
            self.events.shrink_to(self.events.len() * 2);
        }
    }
}

impl Inner {
    /// From now on the event of `revision` is history: nobody but a late watcher reads it, so text is enough.
    fn pass_into_history(&mut self, revision: u64) {
        let at = self.events.partition_point(|kept| kept.event.revision < revision);
        if let Some(kept) = self.events.get_mut(at).filter(|kept| kept.event.revision == revision) {
            let event = kept.event.as_text();
            let weight = event.weight();
            self.event_bytes = self.event_bytes - kept.weight + weight;
            *kept = Kept { event: Arc::new(event), weight, since: kept.since };
        }
    }
}

impl Event {
    fn as_text(&self) -> Self {
        let before = self.before.as_ref().map(|before| before.forgotten());
        Self { revision: self.revision, before, object: self.object.forgotten(), deleted: self.deleted }
    }

    /// About how much memory it holds: what was before may be held by this event alone.
    fn weight(&self) -> usize {
        self.object.weight() + self.before.as_ref().map_or(0, |before| before.weight())
    }
}

impl Cache {
    /// An empty cache whose past before `revision` is unknown.
    #[must_use]
    pub(crate) fn new(revision: u64, window: Window) -> Self {
        let inner = Inner {
            objects: BTreeMap::new(),
            events: VecDeque::new(),
            event_bytes: 0,
            compacted: revision,
            last: revision,
        };
        Self { inner: RwLock::new(inner), changed: watch::channel(revision).0, window }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Puts an object there without an event: for loading.
    pub(crate) fn load(&self, place: Place, object: Arc<Object>) {
        self.write().objects.insert(place, object);
    }

    /// Takes a durable change in. Watchers are told by [`announce`](Self::announce).
    pub(crate) fn apply(&self, place: Place, event: Event) {
        let mut inner = self.write();
        let mut event = event;
        if let Some(before) = &event.before {
            inner.pass_into_history(before.revision);
        }
        if event.deleted {
            inner.objects.remove(&place);
            event = event.as_text();
        } else {
            inner.objects.insert(place, Arc::clone(&event.object));
        }
        let weight = event.weight();
        inner.event_bytes += weight;
        inner.last = event.revision;
        inner.events.push_back(Kept { event: Arc::new(event), weight, since: Instant::now() });
        while inner.events.len() > self.window.events
            || (inner.event_bytes > self.window.bytes && inner.events.len() > 1)
        {
            inner.forget();
        }
    }

    /// The bytes that the window holds.
    #[must_use]
    pub(crate) fn held(&self) -> usize {
        self.read().event_bytes
    }

    /// Lets events go, the oldest first, until the window holds at most so many bytes.
    pub(crate) fn shrink_to(&self, bytes: usize) {
        let mut inner = self.write();
        while inner.event_bytes > bytes {
            inner.forget();
        }
    }

    /// Lets go of the events before a moment.
    pub(crate) fn forget_before(&self, moment: Instant) {
        if self.read().events.front().is_none_or(|oldest| oldest.since >= moment) {
            return;
        }
        let mut inner = self.write();
        while inner.events.front().is_some_and(|oldest| oldest.since < moment) {
            inner.forget();
        }
    }

    /// Wakes the watchers.
    pub(crate) fn announce(&self, revision: u64) {
        self.changed.send_replace(revision);
    }

    /// One object.
    #[must_use]
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        // A tuple of borrowed strings is no borrowed tuple of strings, hence the copy.
        self.read().objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// The objects of a namespace, or of all when it is empty.
    #[must_use]
    pub(crate) fn list(&self, namespace: &str) -> Vec<Arc<Object>> {
        list(&self.read(), namespace)
    }

    /// How many objects there are.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether there is none.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects as they were at `revision`, in order of namespace and name.
    ///
    /// # Errors
    ///
    /// When that lies before the window.
    pub(crate) fn list_at(&self, namespace: &str, revision: u64) -> Result<BTreeMap<Place, Arc<Object>>, Expired> {
        let inner = self.read();
        if revision < inner.compacted {
            return Err(Expired { oldest: inner.compacted });
        }
        let in_scope = |place: &Place| namespace.is_empty() || place.0 == namespace;
        let mut objects: BTreeMap<_, _> =
            inner.objects.iter().filter(|(p, _)| in_scope(p)).map(|(p, o)| (p.clone(), Arc::clone(o))).collect();
        let events = inner.events.iter().rev().map(|kept| &kept.event);
        for event in events.take_while(|event| event.revision > revision) {
            let place = place_of(&event.object.value);
            if !in_scope(&place) {
                continue;
            }
            match &event.before {
                Some(before) => objects.insert(place, Arc::clone(before)),
                None => objects.remove(&place),
            };
        }
        Ok(objects)
    }

    /// At most `limit` events after `revision`, oldest first.
    ///
    /// # Errors
    ///
    /// When events after `revision` have left the window.
    pub(crate) fn events_after(&self, revision: u64, limit: usize) -> Result<Vec<Arc<Event>>, Expired> {
        let inner = self.read();
        if revision < inner.compacted {
            return Err(Expired { oldest: inner.compacted });
        }
        let from = inner.events.partition_point(|kept| kept.event.revision <= revision);
        Ok(inner.events.range(from..).take(limit).map(|kept| Arc::clone(&kept.event)).collect())
    }

    /// The objects of now with their revision: a watch may follow from it without a gap, and
    /// [`list_at`](Self::list_at) shows the same again.
    ///
    /// `committed` is the server's revision, read before.
    #[must_use]
    pub(crate) fn snapshot(&self, namespace: &str, committed: u64) -> (Vec<Arc<Object>>, u64) {
        let inner = self.read();
        (list(&inner, namespace), inner.last.max(committed))
    }

    /// Wakes at every change.
    #[must_use]
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

fn list(inner: &Inner, namespace: &str) -> Vec<Arc<Object>> {
    if namespace.is_empty() {
        return inner.objects.values().cloned().collect();
    }
    let from = (namespace.to_owned(), String::new());
    let range = inner.objects.range((Bound::Included(from), Bound::Unbounded));
    range.take_while(|((ns, _), _)| ns == namespace).map(|(_, object)| Arc::clone(object)).collect()
}

/// Namespace and name of an object.
#[must_use]
pub(crate) fn place_of(object: &Value) -> Place {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// Follows one resource from a revision on.
pub(crate) struct Watcher {
    cache: Arc<Cache>,
    changed: watch::Receiver<u64>,
    after: u64,
}

impl Watcher {
    /// Follows `cache` from the events after `revision`.
    #[must_use]
    pub(crate) fn new(cache: Arc<Cache>, revision: u64) -> Self {
        let changed = cache.subscribe();
        Self { cache, changed, after: revision }
    }

    /// The next events, never none. Cancel safe.
    ///
    /// # Errors
    ///
    /// When this watcher has fallen behind the window.
    pub(crate) async fn next(&mut self) -> Result<Vec<Arc<Event>>, Expired> {
        loop {
            self.changed.borrow_and_update();
            let events = self.cache.events_after(self.after, 256)?;
            if let Some(last) = events.last() {
                self.after = last.revision;
                return Ok(events);
            }
            // The sender lives in the cache that we hold, so this cannot end in an error.
            let _ = self.changed.changed().await;
        }
    }

    /// What is there now, without waiting.
    ///
    /// # Errors
    ///
    /// When this watcher has fallen behind the window.
    pub(crate) fn ready(&mut self) -> Result<Vec<Arc<Event>>, Expired> {
        self.changed.borrow_and_update();
        let events = self.cache.events_after(self.after, usize::MAX)?;
        if let Some(last) = events.last() {
            self.after = last.revision;
        }
        Ok(events)
    }

    /// The revision seen.
    #[must_use]
    pub(crate) fn after(&self) -> u64 {
        self.after
    }

    /// Says that everything up to `revision` has been seen; gives the revision up to which that is really so.
    pub(crate) fn seen(&mut self, revision: u64) -> u64 {
        self.after = self.after.max(revision);
        self.after
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, revision: u64) -> Arc<Object> {
        let value = json!({"metadata": {"name": name, "resourceVersion": revision.to_string()}});
        let json = Bytes::from(serde_json::to_vec(&value).unwrap());
        Object::new(value, json, revision)
    }

    fn put(cache: &Cache, name: &str, revision: u64) {
        let before = cache.get("", name);
        let event = Event { revision, before, object: object(name, revision), deleted: false };
        cache.apply((String::new(), name.into()), event);
        cache.announce(revision);
    }

    fn delete(cache: &Cache, name: &str, revision: u64) {
        let before = cache.get("", name);
        let event = Event { revision, before, object: object(name, revision), deleted: true };
        cache.apply((String::new(), name.into()), event);
        cache.announce(revision);
    }

    const WINDOW: Window = Window { events: 3, bytes: 1 << 20 };

    #[test]
    fn the_past_can_be_listed_as_long_as_the_window_reaches() {
        let cache = Cache::new(0, Window { events: 10, bytes: 1 << 20 });
        put(&cache, "a", 1);
        put(&cache, "b", 2);
        put(&cache, "a", 3);
        delete(&cache, "b", 4);
        let at = |revision| -> Vec<(String, u64)> {
            cache.list_at("", revision).unwrap().into_iter().map(|((_, name), o)| (name, o.revision)).collect()
        };
        assert_eq!(at(1), [("a".into(), 1)]);
        assert_eq!(at(2), [("a".into(), 1), ("b".into(), 2)]);
        assert_eq!(at(3), [("a".into(), 3), ("b".into(), 2)]);
        assert_eq!(at(4), [("a".into(), 3)]);
    }

    #[test]
    fn what_was_deleted_is_released_by_bytes_and_by_age() {
        let cache = Cache::new(0, Window { events: 1000, bytes: 20_000 });
        put(&cache, "kept", 1);
        let gone = cache.get("", "kept").map(|object| Arc::downgrade(&object)).unwrap();
        for revision in 2..200 {
            put(&cache, "kept", revision);
        }
        assert!(cache.held() <= 20_000 && cache.events_after(190, 100).is_ok());
        assert!(cache.events_after(1, 1).is_err(), "the bytes are counted as they are in memory");
        assert!(gone.upgrade().is_none());
        delete(&cache, "kept", 200);
        let gone = Arc::downgrade(&cache.events_after(199, 1).unwrap()[0].object);
        cache.forget_before(Instant::now() - AGE);
        assert!(gone.upgrade().is_some());
        cache.forget_before(Instant::now() + AGE);
        assert!(gone.upgrade().is_none());
        assert_eq!((cache.held(), cache.events_after(200, 1).map(|events| events.len())), (0, Ok(0)));
        assert!(cache.events_after(199, 1).is_err());
    }

    #[test]
    fn history_is_kept_as_text() {
        let cache = Cache::new(0, Window { events: 10, bytes: 1 << 20 });
        put(&cache, "a", 1);
        put(&cache, "a", 2);
        put(&cache, "a", 3);
        let is_tree = |object: &Arc<Object>| object.value.read.get().is_some();
        let events = cache.events_after(0, 10).unwrap();
        let trees: Vec<_> = events.iter().map(|e| (is_tree(&e.object), e.before.as_ref().map(is_tree))).collect();
        assert_eq!(trees, [(false, None), (false, Some(false)), (true, Some(true))], "only the last is at hand");
        assert_eq!(events[0].object.value["metadata"]["resourceVersion"], "1", "but all can be looked into");
        delete(&cache, "a", 4);
        assert!(cache.events_after(0, 10).unwrap()[1..].iter().all(|event| !is_tree(&event.object)));
    }

    #[tokio::test]
    async fn a_watcher_that_falls_behind_is_told_so() {
        let cache = Arc::new(Cache::new(0, WINDOW));
        let mut watcher = Watcher::new(Arc::clone(&cache), 0);
        for revision in 1..=3 {
            put(&cache, "a", revision);
        }
        assert_eq!(watcher.next().await.unwrap().len(), 3);
        for revision in 4..=8 {
            put(&cache, "a", revision);
        }
        assert_eq!(watcher.next().await.unwrap_err(), Expired { oldest: 5 });
    }
}
