//! Points at which a test lets the process die as if by `kill -9`: `STOLOS_CRASH_AT` is `journal:N` (after the N-th
//! journal note is on disk), `write-before:N` or `write-after:N` (before the N-th write is sent to an API server, or
//! after its answer), `phase:N` (before or after a phase of a rotation is on disk). Every N of a run, and the next run must end in the same state.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    Journal,
    WriteBefore,
    WriteAfter,
    Phase,
}

static COUNTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// Counts this point, and dies here if it is the one.
pub(crate) fn pass(point: Point) {
    static WANTED: OnceLock<Option<(Point, u64)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| parse(&std::env::var("STOLOS_CRASH_AT").ok()?));
    let count = COUNTS[point as usize].fetch_add(1, Ordering::SeqCst) + 1;
    if *wanted == Some((point, count)) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

fn parse(text: &str) -> Option<(Point, u64)> {
    let (point, count) = text.split_once(':')?;
    let point = match point {
        "journal" => Point::Journal,
        "write-before" => Point::WriteBefore,
        "write-after" => Point::WriteAfter,
        "phase" => Point::Phase,
        _ => return None,
    };
    Some((point, count.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_a_word_and_a_number() {
        assert_eq!(parse("journal:3"), Some((Point::Journal, 3)));
        assert_eq!(parse("write-after:12"), Some((Point::WriteAfter, 12)));
        for bad in ["", "journal", "journal:", "journal:x", "else:1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
