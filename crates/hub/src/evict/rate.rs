//! Whose turn it is to leave a cluster: so many in a second and no more, fewer while many clusters are lost at once. It has no
//! clock of its own.

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use super::Settings;
use crate::model::Cluster;

/// How long who waits behind others does so before it looks again: it is told when it is its turn, and this is only should
/// that be missed.
const LOOKED_AFTER: Duration = Duration::from_secs(600);
/// How long who waits looks away while nobody may leave at all.
const NEVER: Duration = Duration::from_secs(3600);

/// How many workloads leave in a second while clusters are as they are.
///
/// Where more than `unhealthy_cluster_threshold` of them are lost, all that they had would come to the few that are left: fewer
/// leave then, and in a hub of no more than `large_cluster_num_threshold` clusters none. That is Kubernetes' node lifecycle
/// (`--secondary-node-eviction-rate`, `--unhealthy-zone-threshold`, `--large-cluster-size-threshold`) with the names and
/// numbers of Karmada's proposal for clusters; v1.18.2 has `--resource-eviction-rate` alone. One that was never heard of
/// is not lost, and one that leaves the hub is none.
#[must_use]
pub fn per_second(clusters: &[impl Borrow<Cluster>], settings: &Settings) -> f64 {
    let staying = clusters.iter().map(Borrow::borrow).filter(|cluster| cluster.metadata.deletion_timestamp.is_none());
    let (mut all, mut lost) = (0_u32, 0_u32);
    for cluster in staying {
        let ready = cluster.status.conditions.iter().find(|condition| condition.type_ == "Ready");
        all += 1;
        lost += u32::from(ready.is_some_and(|ready| ready.status != "True"));
    }
    let normal = settings.eviction_rate;
    if f64::from(lost) <= settings.unhealthy_cluster_threshold * f64::from(all) {
        normal
    } else if all <= settings.large_cluster_num_threshold {
        0.0
    } else {
        settings.secondary_eviction_rate.min(normal)
    }
}

/// Who waits to leave a cluster, and when the last one was let through. Those of a higher rank go first, others as they came.
#[derive(Clone, Debug)]
pub struct Turns<K> {
    /// How many in a second, as it was said last.
    per_second: f64,
    last: Option<Duration>,
    waiting: BTreeMap<Place, K>,
    places: HashMap<K, Place>,
    came: u64,
}

/// By rank, then as they came.
type Place = (Reverse<i64>, u64);

impl<K: Clone + Eq + Hash> Turns<K> {
    /// Nobody waits, and the first may leave at once.
    #[must_use]
    pub fn new(per_second: f64) -> Self {
        Self { per_second, last: None, waiting: BTreeMap::new(), places: HashMap::new(), came: 0 }
    }

    /// Lets `key` leave at `now`, counted from any beginning, if it is its turn; otherwise it waits from now on.
    ///
    /// # Errors
    ///
    /// How long until it should ask again, if it is not told before ([`Turns::next`]).
    pub fn ask(&mut self, key: &K, rank: i64, per_second: f64, now: Duration) -> Result<(), Duration> {
        self.per_second = per_second;
        let came = match self.places.get(key) {
            Some((_, came)) => *came,
            None => {
                self.came += 1;
                self.came
            }
        };
        self.give_up(key);
        let place = (Reverse(rank), came);
        let left = self.left(now);
        let is_first = self.waiting.keys().next().is_none_or(|first| place < *first);
        if is_first && left == Some(Duration::ZERO) {
            self.last = Some(now);
            return Ok(());
        }
        self.waiting.insert(place, key.clone());
        self.places.insert(key.clone(), place);
        Err(left.map_or(NEVER, |left| if is_first { left } else { LOOKED_AFTER.max(left) }))
    }

    /// `key` waits no longer, whether it has left or need not.
    pub fn give_up(&mut self, key: &K) {
        if let Some(place) = self.places.remove(key) {
            self.waiting.remove(&place);
        }
    }

    /// Whose turn is next, and in how long; nothing where nobody waits, or nobody may leave at all.
    #[must_use]
    pub fn next(&self, now: Duration) -> Option<(&K, Duration)> {
        self.waiting.values().next().zip(self.left(now))
    }

    /// How many leave in a second, as it was said last.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.per_second
    }

    /// How long until somebody may leave; nothing: nobody may.
    fn left(&self, now: Duration) -> Option<Duration> {
        if self.per_second <= 0.0 {
            return None;
        }
        let every = Duration::try_from_secs_f64(1.0 / self.per_second).unwrap_or(Duration::MAX);
        Some(self.last.map_or(Duration::ZERO, |last| last.saturating_add(every).saturating_sub(now)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    /// Clusters of which so many are ready, lost, new, and on their way out (and lost).
    fn clusters(ready: usize, lost: usize, new: usize, leaving: usize) -> Vec<Cluster> {
        let cluster = |ready: Option<&str>, leaves: bool| -> Cluster {
            let conditions: Vec<_> =
                ready.map(|status| json!({"type": "Ready", "status": status})).into_iter().collect();
            let mut metadata = json!({"name": "c"});
            if leaves {
                metadata["deletionTimestamp"] = "2026-11-22T10:00:00Z".into();
            }
            let object =
                json!({"metadata": metadata, "spec": {"syncMode": "Push"}, "status": {"conditions": conditions}});
            serde_json::from_value(object).unwrap()
        };
        let some = |count: usize, cluster: Cluster| std::iter::repeat_n(cluster, count);
        some(ready, cluster(Some("True"), false))
            .chain(some(lost, cluster(Some("Unknown"), false)))
            .chain(some(new, cluster(None, false)))
            .chain(some(leaving, cluster(Some("False"), true)))
            .collect()
    }

    #[test]
    fn fewer_leave_while_many_clusters_are_lost() {
        let settings = Settings::default();
        let small_hubs_stop = Settings { large_cluster_num_threshold: 10, ..settings };
        let never = Settings { eviction_rate: 0.0, ..settings };
        for ((ready, lost, new, leaving), settings, expected) in [
            ((3, 0, 0, 0), settings, 0.5),
            ((2, 1, 0, 0), settings, 0.5),
            // 0.5 of them.
            ((1, 1, 0, 0), settings, 0.5),
            ((1, 2, 0, 0), settings, 0.1),
            // 0.55 of them is not more than that.
            ((9, 11, 0, 0), settings, 0.5),
            ((8, 12, 0, 0), settings, 0.1),
            // Nobody knows yet how a new one is, and one that leaves is not counted.
            ((1, 2, 2, 0), settings, 0.5),
            ((2, 2, 0, 9), settings, 0.5),
            ((3, 7, 0, 0), small_hubs_stop, 0.0),
            ((3, 8, 0, 0), small_hubs_stop, 0.1),
            ((5, 5, 0, 0), small_hubs_stop, 0.5),
            // The slower rate is never the faster one.
            ((1, 2, 0, 0), never, 0.0),
            ((0, 0, 0, 0), settings, 0.5),
        ] {
            let found = per_second(&clusters(ready, lost, new, leaving), &settings);
            assert!((found - expected).abs() < 1e-9, "{ready} {lost} {new} {leaving}: {found}");
        }
    }

    #[test]
    fn whoever_waits_leaves_by_rank_and_then_as_it_came() {
        let mut turns = Turns::new(0.5);
        let mut ask = |key: &'static str, rank: i64, at: f64| turns.ask(&key, rank, 0.5, seconds(at));
        assert_eq!(ask("first", 0, 10.0), Ok(()));
        assert_eq!(ask("second", 0, 10.5), Err(seconds(1.5)));
        assert_eq!(ask("third", 0, 11.0), Err(LOOKED_AFTER));
        assert_eq!(ask("high", 7, 11.0), Err(seconds(1.0)));
        // Its time has come, but not its turn.
        assert_eq!(ask("third", 0, 12.0), Err(LOOKED_AFTER));
        assert_eq!(turns.next(seconds(12.0)), Some((&"high", Duration::ZERO)));
        assert_eq!(turns.ask(&"high", 7, 0.5, seconds(12.0)), Ok(()));
        // Who has to wait keeps its place.
        assert_eq!(turns.next(seconds(12.0)), Some((&"second", seconds(2.0))));
        turns.give_up(&"second");
        assert_eq!(turns.next(seconds(13.0)), Some((&"third", seconds(1.0))));
        assert_eq!(turns.ask(&"third", 0, 0.5, seconds(14.0)), Ok(()));
        assert_eq!(turns.next(seconds(14.0)), None);
    }

    #[test]
    fn a_slower_rate_holds_for_who_waits_already() {
        let mut turns = Turns::new(0.5);
        assert_eq!(turns.ask(&"a", 0, 0.5, Duration::ZERO), Ok(()));
        assert_eq!(turns.ask(&"b", 0, 0.5, seconds(1.0)), Err(seconds(1.0)));
        assert_eq!(turns.ask(&"b", 0, 0.1, seconds(2.0)), Err(seconds(8.0)));
        assert_eq!(turns.next(seconds(3.0)), Some((&"b", seconds(7.0))));
        assert_eq!(turns.ask(&"b", 0, 0.0, seconds(3.0)), Err(NEVER));
        assert_eq!(turns.next(seconds(99.0)), None);
        assert_eq!(turns.ask(&"b", 0, 0.5, seconds(4.0)), Ok(()));
    }
}
