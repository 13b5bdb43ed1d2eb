//! What is to be looked at: each thing once, never twice at the same time, later and later while it fails; what has a higher
//! rank before the others.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::RngExt as _;
use stolos_serve::Stop;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::JoinMap;

/// Why something could not be finished. It is tried again a little later.
pub(crate) type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// When a thing is to be looked at again though nothing has changed; `None` for never.
pub(crate) type Again = Option<Duration>;

/// How long what happens to one thing is gathered, where whoever asks is in no hurry.
const SOON: Duration = Duration::from_millis(100);
const FIRST: Duration = Duration::from_millis(50);
const LAST: Duration = Duration::from_secs(30);

/// So many are looked at at once in a queue that yields to others, and so often is asked whether it still has to.
const FEW: usize = 1;
const YIELD: Duration = Duration::from_millis(10);
/// So often one more begins there: those that are under way may wait for somebody who is silent.
const ONE_MORE: Duration = Duration::from_millis(50);

/// A queue holds as many keys as there are things, and no more.
pub(crate) struct Queue<K> {
    name: &'static str,
    waiting: Mutex<Waiting<K>>,
    wake: Notify,
    under_way: AtomicUsize,
    done: AtomicU64,
    failed: AtomicU64,
    /// When it looked up last.
    moved: Mutex<Instant>,
}

/// How a queue is.
pub(crate) struct Figures {
    pub(crate) name: &'static str,
    /// What is to be looked at now.
    pub(crate) waiting: usize,
    /// What is to be looked at again.
    pub(crate) later: usize,
    pub(crate) under_way: usize,
    /// Looks that said that all is well.
    pub(crate) done: u64,
    /// Looks that have to be tried again.
    pub(crate) failed: u64,
    /// For how long it has not looked up; it does so every half minute at least.
    pub(crate) silent: Duration,
}

struct Waiting<K> {
    ready: BTreeMap<Turn, K>,
    /// What is in `ready`, and where.
    queued: HashMap<K, Turn>,
    later: HashMap<K, Instant>,
    /// The entries of `later` by time; those that are no longer in it are passed over.
    times: BinaryHeap<Reverse<(Instant, K)>>,
    failures: HashMap<K, u32>,
    /// Whose rank is not 0.
    ranks: HashMap<K, i64>,
    came: u64,
}

/// When it is something's turn: by rank, then as they came.
type Turn = (Reverse<i64>, u64);

impl<K: Clone + Eq + Hash> Waiting<K> {
    fn push(&mut self, key: K) {
        if !self.queued.contains_key(&key) {
            let turn = (Reverse(self.ranks.get(&key).copied().unwrap_or(0)), self.came);
            self.came += 1;
            self.queued.insert(key.clone(), turn);
            self.ready.insert(turn, key);
        }
    }
}

impl<K: Clone + Ord + Hash + Debug + Send + 'static> Queue<K> {
    pub(crate) fn new(name: &'static str) -> Arc<Self> {
        let waiting = Waiting {
            ready: BTreeMap::new(),
            queued: HashMap::new(),
            later: HashMap::new(),
            times: BinaryHeap::new(),
            failures: HashMap::new(),
            ranks: HashMap::new(),
            came: 0,
        };
        Arc::new(Self {
            name,
            waiting: Mutex::new(waiting),
            wake: Notify::new(),
            under_way: AtomicUsize::new(0),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            moved: Mutex::new(Instant::now()),
        })
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting<K>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn figures(&self) -> Figures {
        let waiting = self.waiting();
        Figures {
            name: self.name,
            waiting: waiting.ready.len(),
            later: waiting.later.len(),
            under_way: self.under_way.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            silent: self.moved.lock().unwrap_or_else(PoisonError::into_inner).elapsed(),
        }
    }

    /// Looks at a thing as soon as it may be.
    pub(crate) fn add(&self, key: K) {
        let mut waiting = self.waiting();
        waiting.later.remove(&key);
        waiting.push(key);
        drop(waiting);
        self.wake.notify_one();
    }

    /// Looks at a thing in a moment, once for all that happens to it until then.
    pub(crate) fn add_soon(&self, key: K) {
        self.add_in(key, SOON);
    }

    /// Looks at a thing after so long at the latest.
    pub(crate) fn add_in(&self, key: K, delay: Duration) {
        self.add_after(key, delay);
        self.wake.notify_one();
    }

    /// From now on a thing goes before those of a lower rank, and after those of a higher one; 0 is what others have.
    pub(crate) fn rank(&self, key: &K, rank: i64) {
        let mut waiting = self.waiting();
        let before = match rank {
            0 => waiting.ranks.remove(key),
            rank => waiting.ranks.insert(key.clone(), rank),
        };
        if before.unwrap_or(0) != rank
            && let Some(turn) = waiting.queued.get(key).copied()
        {
            let turns = (turn, (Reverse(rank), turn.1));
            waiting.ready.remove(&turns.0);
            waiting.ready.insert(turns.1, key.clone());
            waiting.queued.insert(key.clone(), turns.1);
        }
    }

    /// Whether some things go before others.
    pub(crate) fn is_ranked(&self) -> bool {
        !self.waiting().ranks.is_empty()
    }

    fn add_after(&self, key: K, delay: Duration) {
        let at = Instant::now() + delay;
        let mut waiting = self.waiting();
        if !waiting.queued.contains_key(&key) && waiting.later.get(&key).is_none_or(|known| at < *known) {
            waiting.later.insert(key.clone(), at);
            waiting.times.push(Reverse((at, key)));
        }
    }

    /// Whether something is to be looked at now.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting().ready.is_empty()
    }

    /// Looks at everything that is added until `stop`, so many at once; fewer while it has to `yield_to` others. Each look is
    /// a task of its own: some compute for long, and whoever shares a task with many of them waits for all.
    pub(crate) async fn run<F>(
        self: Arc<Self>,
        at_once: usize,
        yield_to: impl Fn() -> bool + Send,
        stop: Stop,
        look: impl Fn(K) -> F + Send,
    ) where
        F: Future<Output = Result<Again, Trouble>> + Send + 'static,
    {
        let mut running: JoinMap<K, Result<Again, Trouble>> = JoinMap::new();
        let mut began = Instant::now();
        loop {
            let mut due = self.due();
            let now = Instant::now();
            let mut room = at_once.saturating_sub(running.len());
            if yield_to() {
                due = Some(due.map_or(now + YIELD, |due| due.min(now + YIELD)));
                let few = FEW.saturating_sub(running.len());
                room = room.min(few.max(usize::from(now >= began + ONE_MORE)));
            }
            for _ in 0..room {
                let Some(key) = self.next(|key| running.contains_key(key)) else { break };
                let look = look(key.clone());
                running.spawn(key, look);
                began = now;
            }
            self.under_way.store(running.len(), Ordering::Relaxed);
            *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            tokio::select! {
                () = stop.asked() => return running.shutdown().await,
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(|| Instant::now() + LAST)) => {}
                Some((key, ended)) = running.join_next() => {
                    self.looked(key, ended.unwrap_or_else(|panicked| Err(Trouble::from(panicked))));
                }
            }
        }
    }

    fn looked(&self, key: K, result: Result<Again, Trouble>) {
        let count = if result.is_ok() { &self.done } else { &self.failed };
        count.fetch_add(1, Ordering::Relaxed);
        match result {
            Ok(again) => {
                self.waiting().failures.remove(&key);
                if let Some(again) = again {
                    self.add_after(key, again);
                }
            }
            Err(error) => {
                let mut waiting = self.waiting();
                let failures = waiting.failures.entry(key.clone()).or_default();
                *failures += 1;
                let delay = FIRST.saturating_mul(1 << (*failures - 1).min(16)).min(LAST);
                drop(waiting);
                tracing::debug!(queue = self.name, ?key, %error, "trying again");
                self.add_after(key, delay.mul_f64(rand::rng().random_range(0.7..1.3)));
            }
        }
    }

    /// Moves what is due to the ready ones, and says when the next will be.
    fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut waiting = self.waiting();
        while let Some(Reverse((at, key))) = waiting.times.peek() {
            let is_meant = waiting.later.get(key) == Some(at);
            if is_meant && *at > now {
                return Some(*at);
            }
            let Some(Reverse((_, key))) = waiting.times.pop() else { break };
            if is_meant {
                waiting.later.remove(&key);
                waiting.push(key);
            }
        }
        None
    }

    /// The first that is not being looked at.
    fn next(&self, is_looked_at: impl Fn(&K) -> bool) -> Option<K> {
        let mut waiting = self.waiting();
        let turn = waiting.ready.iter().find(|(_, key)| !is_looked_at(key)).map(|(turn, _)| *turn)?;
        let key = waiting.ready.remove(&turn)?;
        waiting.queued.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn each_thing_is_looked_at_once_and_again_while_it_fails() {
        let (queue, stop) = (Queue::new("test"), Stop::new());
        for key in ["a", "b", "a"] {
            queue.add(key);
        }
        let looked = Arc::new(Mutex::new(Vec::new()));
        let (told, asked) = (Arc::clone(&looked), stop.clone());
        let look = move |key: &'static str| {
            let mut told = told.lock().unwrap();
            told.push(key);
            if told.len() == 5 {
                asked.ask();
            }
            async move { if key == "b" { Err("not yet".into()) } else { Ok(None) } }
        };
        Arc::clone(&queue).run(1, || false, stop, look).await;
        assert_eq!(*looked.lock().unwrap(), ["a", "b", "b", "b", "b"]);
    }

    #[tokio::test]
    async fn what_is_looked_at_is_not_looked_at_beside_that() {
        let (queue, stop) = (Queue::new("test"), Stop::new());
        queue.add("a");
        let looking = Arc::new(AtomicUsize::new(0));
        let (again, asked) = (Arc::clone(&queue), stop.clone());
        let looks = Arc::new(AtomicUsize::new(0));
        let look = move |key: &'static str| {
            let (looking, again, asked) = (Arc::clone(&looking), Arc::clone(&again), asked.clone());
            let count = looks.fetch_add(1, Ordering::AcqRel);
            async move {
                assert_eq!(looking.fetch_add(1, Ordering::AcqRel), 0, "two looks at {key} at once");
                if count < 3 {
                    again.add(key);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                } else {
                    asked.ask();
                }
                looking.fetch_sub(1, Ordering::AcqRel);
                Ok(None)
            }
        };
        Arc::clone(&queue).run(2, || false, stop, look).await;
    }

    #[tokio::test]
    async fn a_look_that_breaks_is_tried_again_and_holds_up_nobody() {
        let (queue, stop) = (Queue::new("test"), Stop::new());
        queue.add("breaks");
        queue.add("fine");
        let looked = Arc::new(Mutex::new(Vec::new()));
        let (told, asked) = (Arc::clone(&looked), stop.clone());
        let look = move |key: &'static str| {
            let mut told = told.lock().unwrap();
            let first = !told.contains(&key);
            told.push(key);
            if told.len() == 3 {
                asked.ask();
            }
            async move {
                assert!(key == "fine" || !first, "as if by a mistake of ours");
                Ok(None)
            }
        };
        Arc::clone(&queue).run(1, || false, stop, look).await;
        assert_eq!(*looked.lock().unwrap(), ["breaks", "fine", "breaks"]);
    }

    #[tokio::test]
    async fn what_happens_together_is_looked_at_once() {
        let (queue, stop) = (Queue::new("test"), Stop::new());
        let looked = Arc::new(Mutex::new(Vec::new()));
        let (told, asked) = (Arc::clone(&looked), stop.clone());
        let look = move |key: &'static str| {
            told.lock().unwrap().push(key);
            if key == "last" {
                asked.ask();
            }
            async { Ok(None) }
        };
        for _ in 0..3 {
            queue.add_soon("often");
        }
        queue.add_after("last", SOON * 2);
        queue.add("now");
        Arc::clone(&queue).run(4, || false, stop, look).await;
        assert_eq!(*looked.lock().unwrap(), ["now", "often", "last"]);
    }

    #[tokio::test]
    async fn who_yields_goes_on_slowly_and_then_at_once() {
        let (queue, stop) = (Queue::new("test"), Stop::new());
        (0..40).for_each(|key| queue.add(key));
        let others = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new([0, 0])));
        let (busy, told, asked) = (Arc::clone(&others), Arc::clone(&most), stop.clone());
        let looks = Arc::new(AtomicUsize::new(0));
        let look = move |_| {
            let (at_once, looks, busy) = (Arc::clone(&at_once), Arc::clone(&looks), Arc::clone(&busy));
            let (told, asked) = (Arc::clone(&told), asked.clone());
            async move {
                let now = at_once.fetch_add(1, Ordering::AcqRel) + 1;
                let phase = usize::from(!busy.load(Ordering::Acquire));
                let most = told.lock().unwrap()[phase].max(now);
                told.lock().unwrap()[phase] = most;
                tokio::time::sleep(Duration::from_millis(5)).await;
                at_once.fetch_sub(1, Ordering::AcqRel);
                match looks.fetch_add(1, Ordering::AcqRel) + 1 {
                    8 => busy.store(false, Ordering::Release),
                    40 => asked.ask(),
                    _ => {}
                }
                Ok(None)
            }
        };
        Arc::clone(&queue).run(16, move || others.load(Ordering::Acquire), stop, look).await;
        let [slowly, at_once] = *most.lock().unwrap();
        assert!(slowly < 8 && at_once == 16, "{slowly} {at_once}");
    }

    #[tokio::test]
    async fn who_yields_does_not_wait_for_one_that_hangs() {
        let (queue, stop) = (Queue::new("test"), Stop::new());
        (0..4).for_each(|key| queue.add(key));
        let asked = stop.clone();
        let looked = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&looked);
        let look = move |key| {
            told.lock().unwrap().push(key);
            let asked = asked.clone();
            async move {
                match key {
                    0 => std::future::pending().await,
                    3 => asked.ask(),
                    _ => {}
                }
                Ok(None)
            }
        };
        let run = Arc::clone(&queue).run(16, || true, stop, look);
        tokio::time::timeout(Duration::from_secs(10), run).await.unwrap();
        assert_eq!(*looked.lock().unwrap(), [0, 1, 2, 3]);
    }

    #[tokio::test]
    async fn what_has_a_higher_rank_goes_first() {
        let queue = Queue::new("test");
        queue.rank(&"high", 9);
        queue.rank(&"low", -1);
        for key in ["low", "one", "two", "high", "raised", "lowered"] {
            queue.add(key);
        }
        queue.rank(&"raised", 5);
        queue.rank(&"lowered", -9);
        queue.rank(&"low", 0);
        let order: Vec<&str> = std::iter::from_fn(|| queue.next(|_| false)).collect();
        assert_eq!(order, ["high", "raised", "low", "one", "two", "lowered"]);
    }
}
