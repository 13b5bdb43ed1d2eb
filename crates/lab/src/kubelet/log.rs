//! A container's log: the last lines, and whoever follows.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::watch;

/// The most bytes a log keeps; older lines go.
const KEPT: usize = 2 << 20;

/// A bounded log with numbered lines.
pub(crate) struct Log {
    ring: Mutex<Ring>,
    /// The number of the next line, or `u64::MAX` once the container has ended.
    head: watch::Sender<u64>,
}

#[derive(Default)]
struct Ring {
    first: u64,
    bytes: usize,
    lines: VecDeque<Line>,
    ended: bool,
}

/// One line and when it was written.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) at: Timestamp,
    pub(crate) text: Arc<str>,
}

impl Log {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { ring: Mutex::default(), head: watch::Sender::new(0) })
    }

    pub(crate) fn push(&self, text: &str) {
        let head = {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.bytes += text.len();
            ring.lines.push_back(Line { at: Timestamp::now(), text: text.into() });
            while ring.bytes > KEPT && ring.lines.len() > 1 {
                let gone = ring.lines.pop_front().map_or(0, |line| line.text.len());
                ring.bytes -= gone;
                ring.first += 1;
            }
            ring.first + ring.lines.len() as u64
        };
        self.head.send_replace(head);
    }

    /// Nothing more will come.
    pub(crate) fn end(&self) {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner).ended = true;
        self.head.send_replace(u64::MAX);
    }

    /// The lines from number `from` on, the number after them, and whether that is all there will ever be.
    pub(crate) fn read(&self, from: u64) -> (Vec<Line>, u64, bool) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = from.saturating_sub(ring.first).min(ring.lines.len() as u64) as usize;
        let lines: Vec<_> = ring.lines.iter().skip(skip).cloned().collect();
        (lines, ring.first + ring.lines.len() as u64, ring.ended)
    }

    /// Told whenever there is more.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.head.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_lines_go_and_numbers_stay() {
        let log = Log::new();
        let long = "x".repeat(KEPT / 4);
        for _ in 0..6 {
            log.push(&long);
        }
        let (lines, next, ended) = log.read(0);
        assert_eq!((lines.len(), next, ended), (4, 6, false));
        log.push("y");
        log.end();
        let (lines, next, ended) = log.read(6);
        assert_eq!((lines.len(), next, ended), (1, 7, true));
        assert_eq!(&*lines[0].text, "y");
    }
}
