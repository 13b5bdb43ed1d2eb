//! How far the proxies are behind the picture.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// Everybody has everything.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// The picture that all proxies have.
    pub version: u64,
    /// When the last of them said so.
    pub at: Option<Instant>,
    /// How many proxies have said so since the start.
    pub proxies: usize,
    /// How long each proxy that got something since the last time was behind: from the first change that it had not
    /// to its acknowledgement of all of them.
    pub delays: Arc<[Duration]>,
}

/// Who has not acknowledged what is meant for it.
pub(crate) struct Progress {
    behind: Mutex<Behind>,
    done: watch::Sender<Done>,
}

#[derive(Default)]
struct Behind {
    version: u64,
    waiting: HashMap<u64, Waiting>,
    delays: Vec<Duration>,
    settled: usize,
}

struct Waiting {
    version: Arc<str>,
    since: Instant,
}

impl Progress {
    /// Nobody is there yet.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self { behind: Mutex::default(), done: watch::Sender::default() }
    }

    /// Whenever everybody has everything.
    #[must_use]
    pub(crate) fn done(&self) -> watch::Receiver<Done> {
        self.done.subscribe()
    }

    /// These proxies are about to be sent these versions because of a change at `since`; nobody else gets anything of
    /// picture `picture`.
    pub(crate) fn sending(&self, picture: u64, since: Instant, to: impl IntoIterator<Item = (u64, Arc<str>)>) {
        let mut behind = self.lock();
        behind.version = behind.version.max(picture);
        for (connection, version) in to {
            let waiting = behind.waiting.entry(connection).or_insert_with(|| Waiting { version: "".into(), since });
            waiting.version = version;
        }
        self.finish(behind);
    }

    /// A proxy has all of a version; how long it was behind, if that is the latest meant for it.
    pub(crate) fn settled(&self, connection: u64, version: &Arc<str>) -> Option<Duration> {
        let mut behind = self.lock();
        if behind.waiting.get(&connection).is_none_or(|waiting| waiting.version != *version) {
            return None;
        }
        let delay = behind.waiting.remove(&connection)?.since.elapsed();
        behind.delays.push(delay);
        behind.settled += 1;
        self.finish(behind);
        Some(delay)
    }

    /// A proxy has left; nobody waits for it.
    pub(crate) fn gone(&self, connection: u64) {
        let mut behind = self.lock();
        if behind.waiting.remove(&connection).is_some() {
            self.finish(behind);
        }
    }

    fn finish(&self, mut behind: MutexGuard<'_, Behind>) {
        if behind.waiting.is_empty() {
            let delays = std::mem::take(&mut behind.delays).into();
            self.done.send_replace(Done {
                version: behind.version,
                at: Some(Instant::now()),
                proxies: behind.settled,
                delays,
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Behind> {
        // Nothing panics while it holds this; if it did, the figures are still worth showing.
        self.behind.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_done_when_everybody_has_the_latest() {
        let progress = Progress::new();
        let done = progress.done();
        let version = |of: &str| -> Arc<str> { of.into() };
        let at = Instant::now();
        progress.sending(7, at, [(1, version("7")), (2, version("7"))]);
        assert!(progress.settled(1, &version("7")).is_some());
        assert!(progress.settled(1, &version("7")).is_none(), "once");
        assert_eq!(done.borrow().version, 0, "one is still behind");
        progress.sending(8, at, [(2, version("8"))]);
        assert!(progress.settled(2, &version("7")).is_none(), "an older one");
        assert!(progress.settled(2, &version("8")).is_some());
        assert_eq!((done.borrow().version, done.borrow().delays.len()), (8, 2));

        progress.sending(9, at, []);
        assert_eq!(done.borrow().version, 9, "it concerned nobody");
        progress.sending(10, at, [(3, version("10"))]);
        progress.gone(3);
        assert_eq!(done.borrow().version, 10, "nobody waits for who has left");
    }
}
