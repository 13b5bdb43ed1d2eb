//! What readers see: per resource the objects of now, and a bounded window of what just happened.
//!
//! A watcher has no queue of its own. It remembers the revision it has seen and reads the shared window from there;
//! one that falls behind the window is told so (410 Gone) and lists again. So a slow watcher costs nothing.
//!
//! The window is bounded three ways: by events, by the bytes that it alone holds (what objects were before; an object that
//! was parsed is several times as large as its text), and by age. Before it lets an event go it drops trees of the past,
//! the oldest first: the text says the same. Those that nobody looks into any more are dropped every now and then, too
//! ([`Cache::forget_trees`]).

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, Deref};
use std::sync::atomic::{AtomicBool, Ordering};
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

    /// The object as a tree: the one at hand, else one for this once. For those who pass by history, which must not
    /// become trees again by being passed by.
    #[must_use]
    pub(crate) fn glance(&self) -> Cow<'_, Value> {
        match self.value.read.get() {
            Some(value) => Cow::Borrowed(value),
            None => Cow::Owned(self.value.parse()),
        }
    }

    /// Of an object as text only what says whose it is, where it is and whether it goes (`metadata`, and a Secret's
    /// `type`); the tree where there is one.
    #[must_use]
    pub(crate) fn head(&self) -> Cow<'_, Value> {
        match self.value.read.get() {
            Some(value) => Cow::Borrowed(value),
            None => Cow::Owned(
                serde_json::from_slice::<Head>(&self.json).and_then(serde_json::to_value).unwrap_or_default(),
            ),
        }
    }

    fn is_tree(&self) -> bool {
        self.value.read.get().is_some()
    }

    /// An object that somebody has at hand already.
    #[must_use]
    pub(crate) fn new(value: Value, json: Bytes, revision: u64) -> Arc<Self> {
        let tree = Tree { json: json.clone(), read: value.into(), used: AtomicBool::new(true) };
        Arc::new(Self { value: tree, json, revision })
    }

    /// An object as text, which is read if somebody looks inside. As a tree it takes five times the memory and more.
    #[must_use]
    pub(crate) fn unread(json: Bytes, revision: u64) -> Arc<Self> {
        let tree = Tree { json: json.clone(), read: OnceLock::new(), used: AtomicBool::new(false) };
        Arc::new(Self { value: tree, json, revision })
    }

    /// Its namespace and name. Where it is text, only they are read.
    #[must_use]
    pub(crate) fn place(&self) -> Place {
        self.value.read.get().map_or_else(|| self.place_in_text(), place_of)
    }

    /// Whether it is in a namespace; everything is in the one without a name.
    #[must_use]
    pub(crate) fn is_in(&self, namespace: &str) -> bool {
        namespace.is_empty()
            || match self.value.read.get() {
                Some(value) => value["metadata"]["namespace"] == namespace,
                None => self.place_in_text().0 == namespace,
            }
    }

    fn place_in_text(&self) -> Place {
        #[derive(Default, serde::Deserialize)]
        struct Metadata {
            #[serde(default)]
            namespace: String,
            #[serde(default)]
            name: String,
        }
        #[derive(Default, serde::Deserialize)]
        struct Head {
            #[serde(default)]
            metadata: Metadata,
        }
        let Head { metadata } = serde_json::from_slice(&self.json).unwrap_or_default();
        (metadata.namespace, metadata.name)
    }

    fn forgotten(&self) -> Arc<Self> {
        Self::unread(self.json.clone(), self.revision)
    }
}

/// What [`Object::head`] reads.
#[derive(Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
struct Head {
    metadata: HeadMetadata,
    #[serde(skip_serializing_if = "Value::is_null")]
    r#type: Value,
}

/// Of `metadata` what controllers look at: it is a small part of it.
#[derive(Default, serde::Deserialize, serde::Serialize)]
#[serde(default, rename_all = "camelCase")]
struct HeadMetadata {
    #[serde(skip_serializing_if = "Value::is_null")]
    namespace: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    name: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    uid: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    owner_references: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    finalizers: Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    deletion_timestamp: Value,
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
    /// Whether somebody has looked inside lately.
    used: AtomicBool,
}

impl Tree {
    fn parse(&self) -> Value {
        // It was written by us, from a tree.
        serde_json::from_slice(&self.json).unwrap_or_default()
    }
}

impl Deref for Tree {
    type Target = Value;

    fn deref(&self) -> &Value {
        // Read first: a line that many cores write is slow for all of them.
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::Relaxed);
        }
        self.read.get_or_init(|| self.parse())
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

/// About what an event holds besides what is said of objects: itself, its place in the window, an object whose text is shared.
const EVENT: usize = 256;

/// Namespace and name.
pub(crate) type Place = (String, String);

/// Objects by namespace and name. Two maps, one in the other: a place can be looked up by what is borrowed, a namespace
/// is walked without comparing it at each step, and its name is held once.
#[derive(Debug, Default)]
struct Objects {
    namespaces: BTreeMap<String, BTreeMap<String, Arc<Object>>>,
    count: usize,
}

impl Objects {
    fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.namespaces.get(namespace)?.get(name)
    }

    fn insert(&mut self, (namespace, name): Place, object: Arc<Object>) {
        if self.namespaces.entry(namespace).or_default().insert(name, object).is_none() {
            self.count += 1;
        }
    }

    fn remove(&mut self, (namespace, name): &Place) {
        let Some(objects) = self.namespaces.get_mut(namespace) else { return };
        self.count -= usize::from(objects.remove(name).is_some());
        if objects.is_empty() {
            self.namespaces.remove(namespace);
        }
    }

    fn values(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.namespaces.values().flat_map(BTreeMap::values)
    }

    fn values_mut(&mut self) -> impl Iterator<Item = &mut Arc<Object>> {
        self.namespaces.values_mut().flat_map(BTreeMap::values_mut)
    }

    /// Those of a namespace, or of all when it is empty, behind a place if there is one; in order.
    fn scope<'a>(
        &'a self,
        namespace: &'a str,
        after: Option<&'a Place>,
    ) -> impl Iterator<Item = (&'a String, &'a String, &'a Arc<Object>)> {
        let first = if namespace.is_empty() { after.map_or("", |(start, _)| start) } else { namespace };
        let namespaces = self.namespaces.range::<str, _>((Bound::Included(first), Bound::Unbounded));
        let namespaces = namespaces.take_while(move |(found, _)| namespace.is_empty() || *found == namespace);
        namespaces.flat_map(move |(found, objects)| {
            let from = match after {
                Some((start, name)) if start == found => Bound::Excluded(name.as_str()),
                // The place lies in a namespace behind this one: only one was asked for.
                Some((start, _)) if start > found => Bound::Excluded("\u{10ffff}"),
                _ => Bound::Unbounded,
            };
            objects.range::<str, _>((from, Bound::Unbounded)).map(move |(name, object)| (found, name, object))
        })
    }
}

/// Some of the objects, in order of namespace and name.
#[derive(Debug)]
pub(crate) struct Page {
    /// The objects.
    pub(crate) objects: Vec<Arc<Object>>,
    /// How many more there are behind them.
    pub(crate) left: usize,
}

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
    /// Bytes that the past alone holds at most; all resources together keep at most [`TOGETHER`] times as much.
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
    objects: Objects,
    events: VecDeque<Kept>,
    event_bytes: usize,
    /// So many of the oldest events have been made text.
    texts: usize,
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
    /// Keeps the window to a number of events and of bytes; the newest event stays. What it lets go of is the caller's to
    /// drop, after the lock: that is most of the work.
    fn bound(&mut self, events: usize, bytes: usize) -> Vec<Arc<Event>> {
        let mut past = Vec::new();
        while self.event_bytes > bytes && self.texts + 1 < self.events.len() {
            past.extend(self.make_text(self.texts));
            self.texts += 1;
        }
        while self.events.len() > events || (self.event_bytes > bytes && self.events.len() > 1) {
            past.extend(self.forget());
        }
        past
    }

    /// Lets the oldest event go; that event.
    fn forget(&mut self) -> Option<Arc<Event>> {
        let old = self.events.pop_front()?;
        self.event_bytes -= old.weight;
        self.compacted = old.event.revision;
        self.texts = self.texts.saturating_sub(1);
        if self.events.capacity() > 64 && self.events.len() < self.events.capacity() / 4 {
            self.events.shrink_to(self.events.len() * 2);
        }
        Some(old.event)
    }
}

impl Inner {
    /// From now on the event of `revision` is history: nobody but a late watcher reads it, so text is enough.
    fn pass_into_history(&mut self, revision: u64) {
        let at = self.events.partition_point(|kept| kept.event.revision < revision);
        if self.events.get(at).is_some_and(|kept| kept.event.revision == revision) {
            self.make_text(at);
        }
    }

    /// Makes text of the event at a place in the window; the event that it was.
    fn make_text(&mut self, at: usize) -> Option<Arc<Event>> {
        let kept = self.events.get_mut(at).filter(|kept| kept.event.has_tree())?;
        let event = kept.event.as_text();
        let weight = event.weight();
        self.event_bytes = self.event_bytes - kept.weight + weight;
        kept.weight = weight;
        Some(std::mem::replace(&mut kept.event, Arc::new(event)))
    }
}

impl Event {
    fn as_text(&self) -> Self {
        let before = self.before.as_ref().map(|before| before.forgotten());
        Self { revision: self.revision, before, object: self.object.forgotten(), deleted: self.deleted }
    }

    fn has_tree(&self) -> bool {
        self.object.is_tree() || self.before.as_ref().is_some_and(|before| before.is_tree())
    }

    /// About how much memory it alone holds: what was before, and what is gone. What came of an object is held by those of
    /// now, and when that has changed again by the event of that.
    fn weight(&self) -> usize {
        let gone = if self.deleted { self.object.weight() } else { 0 };
        EVENT + gone + self.before.as_ref().map_or(0, |before| before.weight())
    }
}

impl Cache {
    /// An empty cache whose past before `revision` is unknown.
    #[must_use]
    pub(crate) fn new(revision: u64, window: Window) -> Self {
        let inner = Inner {
            objects: Objects::default(),
            events: VecDeque::new(),
            event_bytes: 0,
            texts: 0,
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
        let past = inner.bound(self.window.events, self.window.bytes);
        drop(inner);
        drop(past);
    }

    /// The bytes that the window holds.
    #[must_use]
    pub(crate) fn held(&self) -> usize {
        self.read().event_bytes
    }

    /// Lets trees of the past go and then events, the oldest first, until the window holds at most so many bytes; the newest
    /// event stays.
    pub(crate) fn shrink_to(&self, bytes: usize) {
        let past = self.write().bound(usize::MAX, bytes);
        drop(past);
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

    /// Makes text of trees: of the past before `moment`, and of those of now that nobody has looked into since this
    /// was done last.
    pub(crate) fn forget_trees(&self, moment: Instant) {
        {
            let inner = self.read();
            if !inner.objects.values().any(|object| object.is_tree())
                && !inner.events.iter().any(|kept| kept.event.has_tree())
            {
                return;
            }
        }
        // Dropped after the lock: that is most of the work.
        let (mut past, mut present) = (Vec::new(), Vec::new());
        let mut inner = self.write();
        let old = inner.events.partition_point(|kept| kept.since < moment);
        past.extend((0..old).filter_map(|at| inner.make_text(at)));
        inner.texts = inner.texts.max(old);
        for object in inner.objects.values_mut() {
            if object.is_tree() && !object.value.used.swap(false, Ordering::Relaxed) {
                let text = object.forgotten();
                present.push(std::mem::replace(object, text));
            }
        }
        drop(inner);
    }

    /// Wakes the watchers.
    pub(crate) fn announce(&self, revision: u64) {
        self.changed.send_replace(revision);
    }

    /// One object.
    #[must_use]
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.read().objects.get(namespace, name).cloned()
    }

    /// The objects of a namespace, or of all when it is empty.
    #[must_use]
    pub(crate) fn list(&self, namespace: &str) -> Vec<Arc<Object>> {
        list(&self.read(), namespace)
    }

    /// How many objects there are.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.read().objects.count
    }

    /// Whether there is none.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The revision of the last change.
    #[must_use]
    pub(crate) fn last(&self) -> u64 {
        self.read().last
    }

    /// At most `most` objects behind a place, as they were at `revision`.
    ///
    /// # Errors
    ///
    /// When that lies before the window.
    pub(crate) fn page_at(
        &self,
        namespace: &str,
        revision: u64,
        after: Option<&Place>,
        most: usize,
    ) -> Result<Page, Expired> {
        let inner = self.read();
        if revision < inner.compacted {
            return Err(Expired { oldest: inner.compacted });
        }
        if revision >= inner.last {
            return Ok(page(&inner.objects, namespace, after, most));
        }
        // What changed since, as it was before the first change.
        let mut before: BTreeMap<Place, Option<Arc<Object>>> = BTreeMap::new();
        let events = inner.events.iter().rev().map(|kept| &kept.event);
        for event in events.take_while(|event| event.revision > revision) {
            let place = event.object.place();
            if (namespace.is_empty() || place.0 == namespace) && after.is_none_or(|after| place > *after) {
                before.insert(place, event.before.clone());
            }
        }
        let mut then = Vec::new();
        let mut before = before.into_iter().peekable();
        for (namespace, name, object) in inner.objects.scope(namespace, after) {
            let here = (namespace.as_str(), name.as_str());
            while let Some((_, gone)) = before.next_if(|((ns, name), _)| (ns.as_str(), name.as_str()) < here) {
                then.extend(gone);
            }
            match before.next_if(|((ns, name), _)| (ns.as_str(), name.as_str()) == here) {
                Some((_, other)) => then.extend(other),
                None => then.push(Arc::clone(object)),
            }
        }
        then.extend(before.filter_map(|(_, gone)| gone));
        let left = then.len().saturating_sub(most);
        then.truncate(most);
        Ok(Page { objects: then, left })
    }

    /// At most `most` objects of now behind a place, with their revision: a watch may follow from it without a gap,
    /// and [`page_at`](Self::page_at) shows the same again.
    ///
    /// `committed` is the server's revision, read before.
    #[must_use]
    pub(crate) fn page(&self, namespace: &str, committed: u64, after: Option<&Place>, most: usize) -> (Page, u64) {
        let inner = self.read();
        (page(&inner.objects, namespace, after, most), inner.last.max(committed))
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

    /// The objects of now with their revision, as [`page`](Self::page) gives them.
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
    page(&inner.objects, namespace, None, usize::MAX).objects
}

fn page(objects: &Objects, namespace: &str, after: Option<&Place>, most: usize) -> Page {
    let there = match namespace {
        "" => objects.count,
        one => objects.namespaces.get(one).map_or(0, BTreeMap::len),
    };
    let mut scope = objects.scope(namespace, after);
    let mut found = Vec::with_capacity(most.min(there));
    found.extend(scope.by_ref().take(most).map(|(_, _, object)| Arc::clone(object)));
    // With no place to begin behind, what is left is known without a walk.
    let left = if after.is_none() { there - found.len() } else { scope.count() };
    Page { objects: found, left }
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
            let page = cache.page_at("", revision, None, usize::MAX).unwrap();
            page.objects.into_iter().map(|object| (object.place().1, object.revision)).collect()
        };
        assert_eq!(at(1), [("a".into(), 1)]);
        assert_eq!(at(2), [("a".into(), 1), ("b".into(), 2)]);
        assert_eq!(at(3), [("a".into(), 3), ("b".into(), 2)]);
        assert_eq!(at(4), [("a".into(), 3)]);
    }

    #[test]
    fn pages_are_what_a_whole_list_is() {
        let cache = Cache::new(0, Window { events: 100, bytes: 1 << 20 });
        let places = [("", "x"), ("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("c", "2"), ("c", "4")];
        let put = |place: (&str, &str), revision: u64| {
            let value = json!({"metadata": {"namespace": place.0, "name": place.1}});
            let json = Bytes::from(serde_json::to_vec(&value).unwrap());
            let event = Event {
                revision,
                before: cache.get(place.0, place.1),
                object: Object::new(value, json, revision),
                deleted: false,
            };
            cache.apply((place.0.into(), place.1.into()), event);
        };
        let drop = |place: (&str, &str), revision: u64| {
            let before = cache.get(place.0, place.1).unwrap();
            let event = Event { revision, before: Some(Arc::clone(&before)), object: before, deleted: true };
            cache.apply((place.0.into(), place.1.into()), event);
        };
        (1..).zip(places).for_each(|(revision, place)| put(place, revision));
        let told = |objects: &[Arc<Object>]| -> Vec<(Place, u64)> {
            objects.iter().map(|object| (object.place(), object.revision)).collect()
        };
        let expected: Vec<(Place, u64)> =
            (1..).zip(places).map(|(revision, place)| ((place.0.into(), place.1.into()), revision)).collect();
        // The same again when everything has changed since: something new, something gone, something other.
        for round in 0..2 {
            for namespace in ["", "a", "c", "nowhere"] {
                let whole: Vec<_> =
                    expected.iter().filter(|((ns, _), _)| namespace.is_empty() || ns == namespace).cloned().collect();
                for most in [1, 2, 3, 100] {
                    let mut found = Vec::new();
                    loop {
                        let after = found.last().map(|(place, _): &(Place, u64)| place.clone());
                        let page = cache.page_at(namespace, 7, after.as_ref(), most).unwrap();
                        assert_eq!(page.left, whole.len() - found.len() - page.objects.len(), "{namespace} {most}");
                        found.extend(told(&page.objects));
                        if page.left == 0 {
                            break;
                        }
                        assert_eq!(page.objects.len(), most);
                    }
                    assert_eq!(found, whole, "round {round}, namespace {namespace:?}, pages of {most}");
                }
            }
            let behind = |place: (&str, &str)| {
                let after = (place.0.to_owned(), place.1.to_owned());
                cache.page_at("a", 7, Some(&after), 10).unwrap().objects.len()
            };
            assert_eq!([behind(("", "z")), behind(("a", "2")), behind(("b", "0"))], [3, 1, 0]);
            if round == 0 {
                drop(("a", "2"), 8);
                put(("a", "2"), 9);
                drop(("c", "4"), 10);
                put(("b", "0"), 11);
                put(("d", "1"), 12);
                drop(("", "x"), 13);
                put(("b", "1"), 14);
            }
        }
        assert_eq!(cache.len(), 7);
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
        let is_tree = |object: &Arc<Object>| object.is_tree();
        let events = cache.events_after(0, 10).unwrap();
        let trees: Vec<_> = events.iter().map(|e| (is_tree(&e.object), e.before.as_ref().map(is_tree))).collect();
        assert_eq!(trees, [(false, None), (false, Some(false)), (true, Some(true))], "only the last is at hand");
        assert_eq!(events[0].object.value["metadata"]["resourceVersion"], "1", "but all can be looked into");
        delete(&cache, "a", 4);
        assert!(cache.events_after(0, 10).unwrap()[1..].iter().all(|event| !is_tree(&event.object)));
    }

    #[test]
    fn trees_of_the_past_go_before_its_events_do() {
        // Twenty objects that are made and change once: what each was before is a tree.
        let fill = |cache: &Cache| (0..40).for_each(|n| put(cache, &(n % 20).to_string(), n + 1));
        let cache = Cache::new(0, Window { events: 1000, bytes: 1 << 20 });
        fill(&cache);
        let with_trees = cache.held();
        cache.forget_trees(Instant::now() + AGE);
        let as_text = cache.held();
        assert!(as_text + 1000 < with_trees, "{as_text} {with_trees}");

        let cache = Cache::new(0, Window { events: 1000, bytes: as_text + 1000 });
        fill(&cache);
        assert_eq!(cache.events_after(0, 100).map(|events| events.len()), Ok(40));
        // What is made costs the past nothing: it is of now.
        let cache = Cache::new(0, Window { events: 1000, bytes: 1 << 20 });
        (1..=100).for_each(|revision| put(&cache, &revision.to_string(), revision));
        assert_eq!(cache.held(), 100 * EVENT);
    }

    #[test]
    fn trees_that_nobody_looks_into_become_text() {
        let cache = Cache::new(0, Window { events: 10, bytes: 1 << 20 });
        let (past, later) = (Instant::now(), Instant::now() + AGE);
        put(&cache, "a", 1);
        put(&cache, "a", 2);
        let event = cache.events_after(0, 1).unwrap().remove(0);
        assert_eq!((event.object.glance()["metadata"]["name"].as_str(), event.has_tree()), (Some("a"), false));
        assert_eq!(event.object.value["metadata"]["name"], "a");
        assert!(event.has_tree(), "a look is not a glance");
        let trees = || {
            let events = cache.events_after(0, 10).unwrap();
            (events.iter().filter(|event| event.has_tree()).count(), cache.get("", "a").unwrap().is_tree())
        };
        assert_eq!(trees(), (2, true));
        cache.forget_trees(past);
        assert_eq!(trees(), (2, true), "what is new is left alone, and now was in use");
        assert_eq!(cache.get("", "a").unwrap().value["metadata"]["name"], "a");
        cache.forget_trees(later);
        assert_eq!(trees(), (0, true), "now is in use again");
        cache.forget_trees(later);
        assert_eq!(trees(), (0, false));
        let held: usize = cache.events_after(0, 10).unwrap().iter().map(|event| event.weight()).sum();
        assert_eq!(cache.held(), held);
        assert_eq!(cache.get("", "a").unwrap().value["metadata"]["resourceVersion"], "2");
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
