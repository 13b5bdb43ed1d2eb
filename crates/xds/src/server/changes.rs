//! What differs between two states, found once for all the proxies that go from one to the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::version::Resources;

/// How many pairs are remembered: groups of proxies times types that change together.
const REMEMBERED: usize = 1024;

/// The names that differ between pairs of states.
#[derive(Default)]
pub(super) struct Changes(Mutex<HashMap<(usize, usize), Known>>);

/// While a `Weak` is kept, its address is not given to another state.
struct Known {
    before: Weak<Resources>,
    after: Weak<Resources>,
    names: Arc<[Arc<str>]>,
}

impl Changes {
    /// The names that differ between two states.
    pub(super) fn between(&self, before: &Arc<Resources>, after: &Arc<Resources>) -> Arc<[Arc<str>]> {
        let pair = (Arc::as_ptr(before).addr(), Arc::as_ptr(after).addr());
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(&pair) {
            return Arc::clone(&known.names);
        }
        if known.len() >= REMEMBERED {
            known.retain(|_, known| known.before.strong_count() > 0 && known.after.strong_count() > 0);
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        // Under the lock, so that a thousand proxies that ask at once wait for one answer.
        let names: Arc<[Arc<str>]> = before.differences(after).into();
        let (before, after) = (Arc::downgrade(before), Arc::downgrade(after));
        known.insert(pair, Known { before, after, names: Arc::clone(&names) });
        names
    }
}
