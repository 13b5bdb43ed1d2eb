//! The one writer: optimistic concurrency in front, durable storage behind, caches for readers at the end.
//!
//! # Flow of a write
//!
//! 1. [`State::commit`] compares the revision the caller has seen with the newest accepted one, gives the change its
//!    revision and queues it (under one short lock; a conflict ends here).
//! 2. The writer thread takes all that is queued, makes it durable in one step, and puts it into the caches in order.
//! 3. Watchers wake, callers get their answer. What a reader has seen can no longer be lost.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, mpsc};
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use stolos_k8s::patch;
use tokio::sync::oneshot;

use crate::store::{Change, Error, Key, Store};
use crate::watch::{AGE, Cache, Event, Object, TOGETHER, Window};

/// What the object must look like for a change to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expect {
    /// It must not exist.
    Absent,
    /// It must exist with this revision.
    Revision(u64),
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// The object is not what the caller thinks it is.
    #[error("the object has been modified")]
    Conflict,
    /// It exists already.
    #[error("the object exists already")]
    Exists,
    /// It does not exist (any more).
    #[error("the object does not exist")]
    Missing,
    /// It is nested so deep that its text could not be read again.
    #[error("the object is nested too deep")]
    TooDeep,
    /// Storage takes no more writes.
    #[error("storage is not accepting writes")]
    Storage,
}

/// A change that somebody wants.
#[derive(Debug)]
pub(crate) struct Write {
    /// Which object.
    pub(crate) key: Key,
    /// What it must be before.
    pub(crate) expect: Expect,
    /// What it becomes; `None` deletes it.
    pub(crate) value: Option<Value>,
}

/// All objects of one server.
pub(crate) struct State {
    head: Mutex<Head>,
    queue: Mutex<Option<mpsc::Sender<Job>>>,
    caches: RwLock<HashMap<Arc<str>, Arc<Cache>>>,
    committed: AtomicU64,
    loaded: u64,
    stopped: AtomicBool,
    window: Window,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    changed: tokio::sync::watch::Sender<u64>,
    follower: OnceLock<Follower>,
}

/// Who derives something from the objects of one resource.
struct Follower {
    resource: &'static str,
    follow: Box<dyn Fn(&State) + Send + Sync>,
}

/// Accepted changes that are not durable yet.
struct Head {
    revision: u64,
    pending: HashMap<Key, (u64, Option<Arc<Object>>)>,
}

struct Job {
    changes: Vec<(Change, Event)>,
    done: oneshot::Sender<Result<(), Refused>>,
}

impl State {
    /// Loads everything from `store` and starts the writer.
    ///
    /// # Errors
    ///
    /// When the store cannot be read, or holds what is not JSON.
    pub(crate) fn open(mut store: Box<dyn Store>, window: Window) -> Result<Arc<Self>, Error> {
        let loaded = store.load()?;
        let mut caches: HashMap<Arc<str>, Arc<Cache>> = HashMap::new();
        // Revision 1 is never the revision of an object, so that a list of an empty server has one to watch from.
        let revision = loaded.revision.max(1);
        for change in loaded.objects {
            let Some(json) = change.value else { continue };
            serde_json::from_slice::<serde::de::IgnoredAny>(&json).map_err(|error| Error::Io {
                what: "read an object from",
                path: format!("{}/{}/{}", change.key.resource, change.key.namespace, change.key.name).into(),
                source: error.into(),
            })?;
            let cache = caches
                .entry(Arc::clone(&change.key.resource))
                .or_insert_with(|| Arc::new(Cache::new(revision, window)));
            let object = Object::unread(json, change.revision);
            cache.load((change.key.namespace, change.key.name), object);
        }
        let (queue, jobs) = mpsc::channel();
        let state = Arc::new(Self {
            head: Mutex::new(Head { revision, pending: HashMap::new() }),
            queue: Mutex::new(Some(queue)),
            caches: RwLock::new(caches),
            committed: AtomicU64::new(revision),
            loaded: revision,
            stopped: AtomicBool::new(false),
            window,
            writer: Mutex::new(None),
            changed: tokio::sync::watch::channel(revision).0,
            follower: OnceLock::new(),
        });
        let writer = Arc::downgrade(&state);
        let thread = std::thread::Builder::new()
            .name("apiserver-store".into())
            .stack_size(512 << 10)
            .spawn(move || write_jobs(&jobs, store, &writer))
            .map_err(|source| Error::Io { what: "start the writer of", path: "storage".into(), source })?;
        *lock(&state.writer) = Some(thread);
        Ok(state)
    }

    /// The last durable revision.
    #[must_use]
    pub(crate) fn revision(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// The revision that was loaded: every change since then has been an event.
    #[must_use]
    pub(crate) fn loaded(&self) -> u64 {
        self.loaded
    }

    /// Whether storage still takes writes.
    #[must_use]
    pub(crate) fn is_well(&self) -> bool {
        !self.stopped.load(Ordering::Acquire)
    }

    /// Calls `follow` after each durable change of a resource, before anybody hears of it. It is the writer who calls, so
    /// the last call has seen the last change, and it does not matter whether the one who asked for it is still there.
    pub(crate) fn follow(&self, resource: &'static str, follow: impl Fn(&Self) + Send + Sync + 'static) {
        follow(self);
        let first = self.follower.set(Follower { resource, follow: Box::new(follow) });
        debug_assert!(first.is_ok(), "there is one follower");
    }

    /// Wakes at every durable change of anything.
    #[must_use]
    pub(crate) fn subscribe(&self) -> tokio::sync::watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The cache of a resource; made when it is asked for the first time.
    #[must_use]
    pub(crate) fn cache(&self, resource: &str) -> Arc<Cache> {
        if let Some(cache) = self.caches.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(resource) {
            return Arc::clone(cache);
        }
        let mut caches = self.caches.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let fresh = || Arc::new(Cache::new(self.loaded, self.window));
        Arc::clone(caches.entry(resource.into()).or_insert_with(fresh))
    }

    /// The names of all resources that were ever touched.
    #[must_use]
    pub(crate) fn resources(&self) -> Vec<Arc<str>> {
        self.caches.read().unwrap_or_else(std::sync::PoisonError::into_inner).keys().cloned().collect()
    }

    /// A durable object.
    #[must_use]
    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Object>> {
        self.cache(resource).get(namespace, name)
    }

    /// The newest accepted state of an object, durable or not: what a write must build on.
    #[must_use]
    pub(crate) fn newest(&self, key: &Key) -> Option<Arc<Object>> {
        if let Some((_, pending)) = lock(&self.head).pending.get(key) {
            return pending.clone();
        }
        self.get(&key.resource, &key.namespace, &key.name)
    }

    /// Makes one change durable and visible.
    ///
    /// The object returned is the new one; for a deletion its last state with the revision of the deletion.
    ///
    /// # Errors
    ///
    /// When the object is not as expected, or storage has failed.
    pub(crate) async fn commit(&self, write: Write) -> Result<Arc<Object>, Refused> {
        let mut written = self.commit_all(vec![write]).await?;
        written.pop().ok_or(Refused::Storage)
    }

    /// Makes all changes durable in one step, or none.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub(crate) async fn commit_all(&self, writes: Vec<Write>) -> Result<Vec<Arc<Object>>, Refused> {
        if !self.is_well() {
            return Err(Refused::Storage);
        }
        if writes.is_empty() {
            return Ok(Vec::new());
        }
        let (objects, done) = self.accept(writes)?;
        done.await.map_err(|_| Refused::Storage)??;
        Ok(objects)
    }

    #[allow(clippy::type_complexity)]
    fn accept(
        &self,
        writes: Vec<Write>,
    ) -> Result<(Vec<Arc<Object>>, oneshot::Receiver<Result<(), Refused>>), Refused> {
        if writes.iter().filter_map(|write| write.value.as_ref()).any(|value| patch::depth(value) > DEEPEST) {
            return Err(Refused::TooDeep);
        }
        let mut head = lock(&self.head);
        let before: Vec<_> = writes
            .iter()
            .map(|write| {
                let key = &write.key;
                let current = match head.pending.get(key) {
                    Some((_, pending)) => pending.clone(),
                    None => self.get(&key.resource, &key.namespace, &key.name),
                };
                match (write.expect, &current) {
                    (Expect::Absent, None) => Ok(current),
                    (Expect::Absent, Some(_)) => Err(Refused::Exists),
                    (Expect::Revision(_), None) => Err(Refused::Missing),
                    (Expect::Revision(seen), Some(now)) if now.revision == seen => Ok(current),
                    (Expect::Revision(_), Some(_)) => Err(Refused::Conflict),
                }
            })
            .collect::<Result<_, _>>()?;
        let mut changes = Vec::with_capacity(writes.len());
        let mut objects = Vec::with_capacity(writes.len());
        for (write, before) in writes.into_iter().zip(before) {
            head.revision += 1;
            let revision = head.revision;
            let deleted = write.value.is_none();
            let mut value = match (write.value, &before) {
                (Some(value), _) => value,
                (None, Some(before)) => before.value.clone(),
                (None, None) => return Err(Refused::Missing),
            };
            value["metadata"]["resourceVersion"] = Value::String(revision.to_string());
            let json = Bytes::from(serde_json::to_vec(&value).unwrap_or_default());
            let object = Object::new(value, json.clone(), revision);
            head.pending.insert(write.key.clone(), (revision, (!deleted).then(|| Arc::clone(&object))));
            let change = Change { key: write.key, revision, value: (!deleted).then_some(json) };
            changes.push((change, Event { revision, before, object: Arc::clone(&object), deleted }));
            objects.push(object);
        }
        let (done, answer) = oneshot::channel();
        // Sent under the lock, so that the queue is in the order of revisions.
        match &*lock(&self.queue) {
            Some(queue) if queue.send(Job { changes, done }).is_ok() => Ok((objects, answer)),
            _ => Err(Refused::Storage),
        }
    }

    /// Ends the writer after what is queued, and waits for it.
    pub(crate) async fn close(&self) {
        drop(lock(&self.queue).take());
        let thread = lock(&self.writer).take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }

    /// Keeps all windows together within their share: the fullest one gives.
    fn bound_windows(&self) {
        let caches = self.caches.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut held: Vec<(usize, &Arc<Cache>)> = caches.values().map(|cache| (cache.held(), cache)).collect();
        let mut over = held.iter().map(|(bytes, _)| bytes).sum::<usize>().saturating_sub(self.window.bytes * TOGETHER);
        held.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        for (bytes, cache) in held {
            if over == 0 {
                return;
            }
            cache.shrink_to(bytes - over.min(bytes / 2));
            over = over.saturating_sub(bytes - cache.held());
        }
    }

    /// Lets go of events that nobody can be waiting for any more, and of trees that nobody looks into.
    pub(crate) fn forget(&self) {
        let now = std::time::Instant::now();
        let Some(moment) = now.checked_sub(AGE) else { return };
        let caches = self.caches.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        for cache in caches.values() {
            cache.forget_before(moment);
            // Whoever follows has read what is half a second old.
            cache.forget_trees(now.checked_sub(Duration::from_millis(500)).unwrap_or(now));
        }
    }

    fn publish(&self, changes: Vec<(Change, Event)>) {
        let Some(last) = changes.last().map(|(change, _)| change.revision) else { return };
        let mut touched: Vec<(Arc<Cache>, u64)> = Vec::new();
        let follower = self.follower.get();
        let followed = follower.filter(|f| changes.iter().any(|(change, _)| *change.key.resource == *f.resource));
        let mut done = Vec::with_capacity(changes.len());
        for (change, event) in changes {
            let cache = self.cache(&change.key.resource);
            let key = change.key;
            cache.apply((key.namespace.clone(), key.name.clone()), event);
            match touched.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &cache)) {
                Some((_, revision)) => *revision = change.revision,
                None => touched.push((cache, change.revision)),
            }
            done.push((key, change.revision));
        }
        self.bound_windows();
        if let Some(follower) = followed {
            (follower.follow)(self);
        }
        self.committed.store(last, Ordering::Release);
        let mut head = lock(&self.head);
        for (key, revision) in done {
            if head.pending.get(&key).is_some_and(|(newest, _)| *newest == revision) {
                head.pending.remove(&key);
            }
        }
        drop(head);
        for (cache, revision) in touched {
            cache.announce(revision);
        }
        self.changed.send_replace(last);
    }
}

/// How deep what is stored is nested at most; the text of a list nests two deeper, and readers stop at 128.
const DEEPEST: usize = 120;

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// As many changes as one group commit takes.
const GROUP: usize = 1024;

fn write_jobs(jobs: &mpsc::Receiver<Job>, mut store: Box<dyn Store>, state: &std::sync::Weak<State>) {
    while let Ok(first) = jobs.recv() {
        let mut changes = Vec::new();
        let mut events = Vec::new();
        let mut waiting = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            for (change, event) in job.changes {
                changes.push(change);
                events.push(event);
            }
            waiting.push(job.done);
            next = if changes.len() < GROUP { jobs.try_recv().ok() } else { None };
        }
        let appended = store.append(&changes);
        let Some(state) = state.upgrade() else { return };
        match appended {
            Ok(()) => {
                state.publish(changes.into_iter().zip(events).collect());
                for done in waiting {
                    let _ = done.send(Ok(()));
                }
            }
            Err(error) => {
                if !state.stopped.swap(true, Ordering::AcqRel) {
                    tracing::error!(%error, "storage failed; no more writes are accepted");
                }
                for done in waiting {
                    let _ = done.send(Err(Refused::Storage));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Loaded, Memory};
    use serde_json::json;

    const WINDOW: Window = Window { events: 100, bytes: 1 << 20 };

    fn key(name: &str) -> Key {
        Key { resource: "configmaps".into(), namespace: "default".into(), name: name.into() }
    }

    fn write(name: &str, expect: Expect) -> Write {
        Write { key: key(name), expect, value: Some(json!({"metadata": {"name": name, "namespace": "default"}})) }
    }

    #[tokio::test]
    async fn of_two_writers_that_saw_the_same_revision_one_wins() {
        let state = State::open(Box::new(Memory), WINDOW).unwrap();
        let made = state.commit(write("a", Expect::Absent)).await.unwrap();
        assert!(matches!(state.commit(write("a", Expect::Absent)).await, Err(Refused::Exists)));
        let writes = (0..10).map(|_| state.commit(write("a", Expect::Revision(made.revision))));
        let results = futures::future::join_all(writes).await;
        assert_eq!(results.iter().filter(|r| r.is_ok()).count(), 1);
        assert!(results.iter().filter_map(|r| r.as_ref().err()).all(|e| matches!(e, Refused::Conflict)));
        state.close().await;
    }

    #[tokio::test]
    async fn all_windows_together_are_bounded() {
        let window = Window { events: 10_000, bytes: 50_000 };
        let state = State::open(Box::new(Memory), window).unwrap();
        let mut last = [0; 6];
        for index in 0..300 {
            let (of, resource) = (index % 6, ["configmaps", "secrets", "pods", "events", "leases", "nodes"][index % 6]);
            let key = Key { resource: resource.into(), ..key("a") };
            let value = json!({"metadata": {"name": "a"}, "data": {"a": "x".repeat(500), "index": index}});
            let expect = if index < 6 { Expect::Absent } else { Expect::Revision(last[of]) };
            last[of] = state.commit(Write { key, expect, value: Some(value) }).await.unwrap().revision;
        }
        let held: usize = state.resources().iter().map(|resource| state.cache(resource).held()).sum();
        assert!((60_000..=150_000).contains(&held), "{held}");
        state.close().await;
    }

    struct Broken;
    impl Store for Broken {
        fn load(&mut self) -> Result<Loaded, Error> {
            Ok(Loaded::default())
        }
        fn append(&mut self, _: &[Change]) -> Result<(), Error> {
            Err(Error::Stopped)
        }
    }

    #[tokio::test]
    async fn a_write_that_is_not_durable_is_never_seen() {
        let state = State::open(Box::new(Broken), WINDOW).unwrap();
        assert!(matches!(state.commit(write("a", Expect::Absent)).await, Err(Refused::Storage)));
        assert!(state.get("configmaps", "default", "a").is_none());
        assert!(!state.is_well());
    }
}
