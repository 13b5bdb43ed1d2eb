//! Which host of a cluster a request goes to.
//!
//! [`Endpoints`] is compiled once per change; [`Endpoints::pick`] decides, given the time and randomness, and touches
//! nothing but a round-robin counter.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::outlier::Health;

/// How a host is chosen among equals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    /// The less busy of two drawn by weight.
    LeastRequest,
    /// In turn; unequal weights are drawn.
    RoundRobin,
    /// Drawn by weight.
    Random,
}

/// What choosing needs to know of a host.
pub(crate) trait Candidate {
    /// Its record of failures.
    fn health(&self) -> &Health;
    /// How many requests or connections it has open.
    fn active(&self) -> &AtomicU32;
}

/// One host as the control plane lists it.
pub(crate) struct Listed<H> {
    pub(crate) host: Arc<H>,
    pub(crate) weight: u32,
    /// Whether the control plane says it is fit to serve.
    pub(crate) healthy: bool,
    pub(crate) priority: u32,
}

/// The hosts of a cluster, by priority.
pub(crate) struct Endpoints<H> {
    priorities: Vec<Priority<H>>,
    panic_percent: u32,
}

struct Priority<H> {
    level: u32,
    healthy: Group<H>,
    all: Group<H>,
}

struct Group<H> {
    hosts: Vec<(Arc<H>, u32)>,
    /// Sums of weights, when weights differ.
    sums: Option<Vec<u64>>,
    turn: AtomicUsize,
}

impl<H: Candidate> Endpoints<H> {
    /// Compiles a list. Below `panic_percent` healthy hosts in a priority, all of them are used.
    pub(crate) fn new(listed: Vec<Listed<H>>, panic_percent: u32) -> Self {
        let mut levels: Vec<u32> = listed.iter().map(|l| l.priority).collect();
        levels.sort_unstable();
        levels.dedup();
        let group = |level: u32, unfit_too: bool| {
            let of_level = listed.iter().filter(|l| l.priority == level && (l.healthy || unfit_too));
            Group::new(of_level.map(|l| (Arc::clone(&l.host), l.weight.max(1))).collect())
        };
        let priority = |level| Priority { level, healthy: group(level, false), all: group(level, true) };
        Self { priorities: levels.into_iter().map(priority).collect(), panic_percent }
    }

    /// All hosts, as the control plane lists them.
    pub(crate) fn listed(&self) -> impl Iterator<Item = Listed<H>> {
        self.priorities.iter().flat_map(|p| {
            let fit: HashSet<*const H> = p.healthy.hosts.iter().map(|(host, _)| Arc::as_ptr(host)).collect();
            p.all.hosts.iter().map(move |(host, weight)| Listed {
                host: Arc::clone(host),
                weight: *weight,
                healthy: fit.contains(&Arc::as_ptr(host)),
                priority: p.level,
            })
        })
    }

    /// All hosts.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Arc<H>> {
        self.priorities.iter().flat_map(|p| p.all.hosts.iter().map(|(host, _)| host))
    }

    /// Chooses a host, one not in `tried` if there is one.
    ///
    /// `ejections` says whether any host may be ejected now: without it no host's record is looked at.
    pub(crate) fn pick(
        &self,
        policy: Policy,
        now: u64,
        ejections: bool,
        tried: &[Arc<H>],
        random: &mut dyn FnMut() -> u64,
    ) -> Option<Arc<H>> {
        let (priority, panic) = self.priority(now, ejections, random)?;
        let group = if panic { &priority.all } else { &priority.healthy };
        let ejections = ejections && !panic;
        let out = |host: &Arc<H>| ejections && host.health().is_ejected(now);
        let fit = |host: &Arc<H>| !out(host) && !tried.iter().any(|known| Arc::ptr_eq(known, host));
        if let Some(host) = group.choose(policy, random, &fit) {
            return Some(host);
        }
        // Better another priority than the same host again; what was tried is better than nothing, what is ejected
        // is not.
        for other in self.priorities.iter().filter(|_| !tried.is_empty()) {
            if let Some(host) = other.healthy.choose(policy, random, &fit) {
                return Some(host);
            }
        }
        group.choose(policy, random, &|host: &Arc<H>| !out(host))
    }

    fn priority(&self, now: u64, ejections: bool, random: &mut dyn FnMut() -> u64) -> Option<(&Priority<H>, bool)> {
        if let [only] = self.priorities.as_slice()
            && !ejections
            && only.healthy.hosts.len() == only.all.hosts.len()
        {
            return Some((only, false));
        }
        let counts: Vec<(usize, usize)> = self
            .priorities
            .iter()
            .map(|p| {
                let ejected = |(host, _): &&(Arc<H>, u32)| host.health().is_ejected(now);
                let out = if ejections { p.healthy.hosts.iter().filter(ejected).count() } else { 0 };
                (p.healthy.hosts.len() - out, p.all.hosts.len())
            })
            .collect();
        let shares = shares(&counts, self.panic_percent);
        let total: u64 = shares.iter().map(|share| u64::from(share.percent)).sum();
        let mut drawn = if total == 0 { return None } else { random() % total };
        for (priority, share) in self.priorities.iter().zip(&shares) {
            if drawn < u64::from(share.percent) {
                return Some((priority, share.panic));
            }
            drawn -= u64::from(share.percent);
        }
        None
    }
}

/// How much of the traffic a priority gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Share {
    percent: u32,
    panic: bool,
}

/// Divides traffic over priorities of `(healthy, all)` hosts: a priority serves fully while at least 1/1.4 of it is
/// healthy, the rest spills to the next.
fn shares(counts: &[(usize, usize)], panic_percent: u32) -> Vec<Share> {
    let percent = |healthy: usize, all: usize, factor: usize| {
        (factor * healthy).checked_div(all).map_or(0, |share| u32::try_from(share.min(100)).unwrap_or(100))
    };
    let health: Vec<u32> = counts.iter().map(|(healthy, all)| percent(*healthy, *all, 140)).collect();
    let total = health.iter().sum::<u32>().min(100);
    if total == 0 {
        // Nobody is healthy: everybody, if panic is allowed at all.
        let first = counts.iter().position(|(_, all)| *all > 0);
        let share = |at| Share { percent: if panic_percent > 0 && Some(at) == first { 100 } else { 0 }, panic: true };
        return (0..counts.len()).map(share).collect();
    }
    let mut left = 100;
    let mut out: Vec<Share> = health
        .iter()
        .zip(counts)
        .map(|(health, (healthy, all))| {
            let share = left.min(health * 100 / total);
            left -= share;
            // Panic matters only when the healthy of all priorities together cannot carry everything.
            Share { percent: share, panic: total < 100 && percent(*healthy, *all, 100) < panic_percent }
        })
        .collect();
    if let Some(first) = out.iter_mut().find(|share| share.percent > 0) {
        first.percent += left;
    }
    out
}

impl<H: Candidate> Group<H> {
    fn new(hosts: Vec<(Arc<H>, u32)>) -> Self {
        let equal = hosts.windows(2).all(|two| two[0].1 == two[1].1);
        let mut sum = 0;
        let sums = hosts.iter().map(|(_, weight)| {
            sum += u64::from(*weight);
            sum
        });
        let sums = (!equal).then(|| sums.collect());
        Self { hosts, sums, turn: AtomicUsize::new(0) }
    }

    fn choose(&self, policy: Policy, random: &mut dyn FnMut() -> u64, fit: &dyn Fn(&Arc<H>) -> bool) -> Option<Arc<H>> {
        let first = self.draw(policy, random, fit)?;
        if policy != Policy::LeastRequest || self.hosts.len() < 2 {
            return Some(Arc::clone(&self.hosts[first].0));
        }
        let second = self.draw(policy, random, fit)?;
        let load = |at: usize, other: usize| {
            let (host, _) = &self.hosts[at];
            u64::from(host.active().load(Ordering::Relaxed)) * u64::from(self.hosts[other].1)
        };
        let better = if load(second, first) < load(first, second) { second } else { first };
        Some(Arc::clone(&self.hosts[better].0))
    }

    fn draw(&self, policy: Policy, random: &mut dyn FnMut() -> u64, fit: &dyn Fn(&Arc<H>) -> bool) -> Option<usize> {
        const DRAWS: usize = 8;
        let count = self.hosts.len();
        if count == 0 {
            return None;
        }
        let mut at = 0;
        for _ in 0..DRAWS {
            at = match (&self.sums, policy) {
                (None, Policy::RoundRobin) => self.turn.fetch_add(1, Ordering::Relaxed) % count,
                (None, _) => usize::try_from(random() % count as u64).unwrap_or(0),
                (Some(sums), _) => {
                    let drawn = random() % sums[count - 1];
                    sums.partition_point(|sum| *sum <= drawn)
                }
            };
            if fit(&self.hosts[at].0) {
                return Some(at);
            }
        }
        // Unlucky, or few are fit: the next one that is.
        (1..=count).map(|step| (at + step) % count).find(|at| fit(&self.hosts[*at].0))
    }
}

/// Draws one of `weights`.
pub(crate) fn weighted(weights: impl Iterator<Item = u32> + Clone, random: u64) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    let mut drawn = if total == 0 { return None } else { random % total };
    for (at, weight) in weights.enumerate() {
        if drawn < u64::from(weight) {
            return Some(at);
        }
        drawn -= u64::from(weight);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Default)]
    struct Fake {
        health: Health,
        active: AtomicU32,
    }

    impl Candidate for Fake {
        fn health(&self) -> &Health {
            &self.health
        }
        fn active(&self) -> &AtomicU32 {
            &self.active
        }
    }

    fn endpoints(rows: &[(u32, u32, bool)], panic: u32) -> (Endpoints<Fake>, Vec<Arc<Fake>>) {
        let hosts: Vec<Arc<Fake>> = rows.iter().map(|_| Arc::default()).collect();
        let listed = rows.iter().zip(&hosts).map(|((priority, weight, healthy), host)| Listed {
            host: Arc::clone(host),
            weight: *weight,
            healthy: *healthy,
            priority: *priority,
        });
        (Endpoints::new(listed.collect(), panic), hosts)
    }

    /// A generator good enough for counting.
    fn random() -> impl FnMut() -> u64 {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        }
    }

    fn counts(endpoints: &Endpoints<Fake>, hosts: &[Arc<Fake>], policy: Policy, ejections: bool) -> Vec<usize> {
        let mut random = random();
        let mut counts = vec![0; hosts.len()];
        for _ in 0..6000 {
            let Some(picked) = endpoints.pick(policy, 1000, ejections, &[], &mut random) else { continue };
            counts[hosts.iter().position(|h| Arc::ptr_eq(h, &picked)).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn weights_are_kept() {
        let (endpoints, hosts) = endpoints(&[(0, 2, true), (0, 2, true), (0, 2, true), (0, 6, true)], 50);
        for policy in [Policy::LeastRequest, Policy::RoundRobin, Policy::Random] {
            let counts = counts(&endpoints, &hosts, policy, false);
            assert!((900..1100).contains(&counts[0]) && (2800..3200).contains(&counts[3]), "{policy:?} {counts:?}");
        }
    }

    #[test]
    fn the_busy_one_gets_less() {
        let (endpoints, hosts) = endpoints(&[(0, 1, true), (0, 1, true)], 50);
        hosts[0].active.store(10, Ordering::Relaxed);
        let counts = counts(&endpoints, &hosts, Policy::LeastRequest, false);
        assert!(counts[0] < counts[1] / 2, "{counts:?}");
    }

    #[test]
    fn the_next_priority_serves_when_the_first_is_ejected() {
        let (endpoints, hosts) = endpoints(&[(0, 1, true), (0, 1, true), (1, 1, true)], 0);
        assert_eq!(counts(&endpoints, &hosts, Policy::LeastRequest, true)[2], 0);
        for host in &hosts[..2] {
            host.health.eject_until(2000);
        }
        assert_eq!(counts(&endpoints, &hosts, Policy::LeastRequest, true), [0, 0, 6000]);
        hosts[2].health.eject_until(2000);
        assert_eq!(counts(&endpoints, &hosts, Policy::LeastRequest, true), [0, 0, 0], "no panic, nobody");
    }

    #[test]
    fn a_tried_host_is_tried_again_only_when_it_is_the_only_one() {
        let (two, hosts) = endpoints(&[(0, 1, true), (0, 1, true)], 50);
        let mut random = random();
        for _ in 0..100 {
            let tried = [Arc::clone(&hosts[0])];
            let picked = two.pick(Policy::LeastRequest, 0, false, &tried, &mut random).unwrap();
            assert!(Arc::ptr_eq(&picked, &hosts[1]));
            assert!(two.pick(Policy::LeastRequest, 0, false, &hosts, &mut random).is_some());
        }
    }

    #[test]
    fn a_second_try_goes_to_the_next_priority_rather_than_to_the_same_host() {
        let (endpoints, hosts) = endpoints(&[(0, 1, true), (1, 1, true)], 0);
        let tried = [Arc::clone(&hosts[0])];
        let picked = endpoints.pick(Policy::LeastRequest, 0, false, &tried, &mut random()).unwrap();
        assert!(Arc::ptr_eq(&picked, &hosts[1]));
    }

    #[test]
    fn traffic_spills_over_priorities_as_in_envoys_documents() {
        let of = |counts: &[(usize, usize)]| shares(counts, 0).iter().map(|s| s.percent).collect::<Vec<_>>();
        assert_eq!(of(&[(100, 100), (100, 100)]), [100, 0]);
        assert_eq!(of(&[(72, 100), (72, 100)]), [100, 0]);
        assert_eq!(of(&[(71, 100), (71, 100)]), [99, 1]);
        assert_eq!(of(&[(50, 100), (50, 100)]), [70, 30]);
        assert_eq!(of(&[(25, 100), (100, 100)]), [35, 65]);
        assert_eq!(of(&[(25, 100), (25, 100)]), [50, 50]);
        assert_eq!(of(&[(0, 4), (0, 4)]), [0, 0]);
    }

    proptest! {
        #[test]
        fn somebody_healthy_is_picked_when_there_is_one(
            rows in proptest::collection::vec((0u32..3, 0u32..5, any::<bool>()), 0..12),
            seed: u64,
        ) {
            let (endpoints, hosts) = endpoints(&rows, 0);
            let picked = endpoints.pick(Policy::LeastRequest, 0, true, &[], &mut || seed);
            let healthy = rows.iter().any(|row| row.2);
            prop_assert_eq!(picked.is_some(), healthy);
            if let Some(picked) = picked {
                let at = hosts.iter().position(|h| Arc::ptr_eq(h, &picked)).unwrap();
                prop_assert!(rows[at].2);
            }
        }
    }
}
