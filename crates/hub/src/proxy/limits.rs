//! How much one caller may ask of one member at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// What each caller may, of each member; and all of them together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests under way at once; watches and sessions count for as long as they last.
    pub open: usize,
    /// Requests under way in one member at once, of all callers: each is a stream of its tunnel, and the hub itself and the
    /// control planes of a mesh need some of those.
    pub member: usize,
    /// Requests per second, for ever.
    pub rate: f64,
    /// Requests at once after a pause.
    pub burst: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { open: 256, member: 768, rate: 100.0, burst: 400.0 }
    }
}

/// Of so many callers and members something is remembered before those are forgotten that have done nothing for a while.
const MANY: usize = 1024;

/// Counts requests.
pub(super) struct Gauge {
    limits: Limits,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    buckets: HashMap<Pair, Bucket>,
    /// How many requests are under way in each member.
    members: HashMap<String, usize>,
}

/// Caller and member.
type Pair = (String, String);

struct Bucket {
    open: usize,
    left: f64,
    at: Instant,
}

/// Why a request is not let through, and when to come again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany {
    pub(super) why: String,
    pub(super) seconds: u32,
}

impl Gauge {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, known: Mutex::default() })
    }

    /// A place for one request, until it is dropped.
    pub(super) fn enter(self: &Arc<Self>, caller: &str, member: &str, now: Instant) -> Result<Place, TooMany> {
        let Limits { open, member: all, rate, burst } = self.limits;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { buckets, members } = &mut *known;
        if buckets.len() >= MANY {
            buckets.retain(|_, bucket| bucket.open > 0 || bucket.filled(rate, burst, now) < burst);
        }
        if members.get(member).is_some_and(|open| *open >= all) {
            let why = format!("{all} requests are under way to {member}, which is all that it may have");
            return Err(TooMany { why, seconds: 5 });
        }
        let pair = (caller.to_owned(), member.to_owned());
        let bucket = buckets.entry(pair.clone()).or_insert(Bucket { open: 0, left: burst, at: now });
        bucket.left = bucket.filled(rate, burst, now);
        bucket.at = now;
        if bucket.open >= open {
            let why =
                format!("{caller} has {open} requests under way to {member}, which is all that one caller may have");
            return Err(TooMany { why, seconds: 5 });
        }
        if bucket.left < 1.0 {
            let why = format!("{caller} asks {member} for more than {rate} things a second");
            return Err(TooMany { why, seconds: 1 });
        }
        bucket.left -= 1.0;
        bucket.open += 1;
        *members.entry(member.to_owned()).or_default() += 1;
        Ok(Place { gauge: Arc::clone(self), pair })
    }
}

impl Bucket {
    fn filled(&self, rate: f64, burst: f64, now: Instant) -> f64 {
        (self.left + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(burst)
    }
}

/// A request under way.
pub(super) struct Place {
    gauge: Arc<Gauge>,
    pair: Pair,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut known = self.gauge.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = known.buckets.get_mut(&self.pair) {
            bucket.open = bucket.open.saturating_sub(1);
        }
        if let Some(open) = known.members.get_mut(&self.pair.1) {
            *open -= 1;
            if *open == 0 {
                known.members.remove(&self.pair.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_caller_has_places_and_a_rate_of_its_own() {
        let gauge = Gauge::new(Limits { open: 2, member: 9, rate: 1.0, burst: 3.0 });
        let start = Instant::now();
        let enter = |caller: &str, member: &str, seconds: u64| {
            gauge.enter(caller, member, start + Duration::from_secs(seconds)).map_err(|refused| refused.seconds)
        };
        let (first, _second) = (enter("jane", "eu", 0).unwrap(), enter("jane", "eu", 0).unwrap());
        assert_eq!(enter("jane", "eu", 0).err(), Some(5), "all places are taken");
        assert!(enter("joe", "eu", 0).is_ok() && enter("jane", "ap", 0).is_ok(), "others have their own");
        drop(first);
        drop(enter("jane", "eu", 0).unwrap());
        assert_eq!(enter("jane", "eu", 0).err(), Some(1), "three at once were the burst");
        assert!(enter("jane", "eu", 1).is_ok(), "one more each second");
        assert_eq!(enter("jane", "eu", 1).err(), Some(1));
    }

    #[test]
    fn a_member_has_places_for_all_callers_together() {
        let gauge = Gauge::new(Limits { open: 2, member: 3, rate: 1.0, burst: 9.0 });
        let enter = |caller: &str, member: &str| gauge.enter(caller, member, Instant::now()).map_err(|no| no.why);
        let places: Vec<_> = ["jane", "jane", "joe"].map(|caller| enter(caller, "eu").unwrap()).into();
        let full = "3 requests are under way to eu, which is all that it may have";
        assert_eq!(enter("joe", "eu").err().as_deref(), Some(full));
        assert!(enter("joe", "ap").is_ok());
        drop(places);
        assert!(enter("joe", "eu").is_ok());
        assert!(gauge.known.lock().unwrap().members.is_empty());
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let gauge = Gauge::new(Limits { open: 1, member: 9, rate: 1.0, burst: 1.0 });
        let start = Instant::now();
        let stays = gauge.enter("stays", "eu", start).unwrap();
        for number in 0..MANY {
            drop(gauge.enter(&format!("caller-{number}"), "eu", start));
        }
        drop(gauge.enter("last", "eu", start + Duration::from_secs(10)));
        assert_eq!(gauge.known.lock().unwrap().buckets.len(), 2);
        drop(stays);
    }
}
