//! What goes wrong, and what people do meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::{Chance, Member, Memory, Wish, World, cluster};
use crate::evict::Settings;
use crate::evict::rate::Rate;
use crate::model::{
    Binding, ClusterAffinity, Division, Placement, PurgeMode, ReplicaScheduling, SchedulingType, Taint, TaintEffect,
    Toleration, TolerationOperator,
};

pub(super) const NAMES: [&str; 5] = ["ap", "eu", "me", "sa", "us"];
pub(super) const MINE: &str = "example.com/mine";

/// A world as a seed makes it.
pub(super) fn world(seed: u64, tells: bool) -> World {
    let mut chance = Chance(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0x5DEE_CE66_D1CE_4E5B);
    let members = 2 + chance.below(3) as usize;
    let purge = if chance.is(10) { PurgeMode::Directly } else { PurgeMode::Gracefully };
    let settings = Settings {
        failover_eviction_timeout: Duration::from_secs([20, 60, 300][chance.below(3) as usize]),
        graceful_eviction_timeout: Duration::from_secs([30, 120, 600][chance.below(3) as usize]),
        eviction_rate: 0.5,
        purge_mode: purge,
        ..Settings::default()
    };
    let mut binding = Binding::default();
    binding.metadata.generation = 1;
    binding.spec.resource.api_version = "apps/v1".to_owned();
    binding.spec.resource.kind = "Deployment".to_owned();
    binding.spec.resource.uid = format!("{seed:x}");
    let began = 0;
    let memory = Memory {
        doubts: BTreeMap::new(),
        mirror: BTreeMap::new(),
        books: BTreeMap::new(),
        rate: Rate::new(settings.eviction_rate),
        began,
    };
    let mut world = World {
        seed,
        chance,
        now: 0,
        skew: 0,
        settings,
        wish: Wish { replicas: 1, floor: None },
        members: NAMES[..members].iter().map(|name| ((*name).to_owned(), Member::new())).collect(),
        clusters: NAMES[..members].iter().map(|name| cluster(name)).collect(),
        binding,
        works: BTreeMap::new(),
        memory,
        ops: Vec::new(),
        next: 0,
        log: tells.then(Vec::new),
        taken: 0,
        evicted: 0,
    };
    world.edit();
    world
}

impl World {
    /// Somebody edits the policy or the template.
    pub(super) fn edit(&mut self) {
        let chance = &mut self.chance;
        if chance.is(70) || self.binding.spec.placement.is_none() {
            let names: Vec<String> = NAMES.iter().filter(|_| chance.is(70)).map(|name| (*name).to_owned()).collect();
            let mut tolerations = Vec::new();
            if chance.is(25) {
                let seconds = [None, Some(0), Some(30), Some(200)][chance.below(4) as usize];
                tolerations.push(Toleration {
                    operator: TolerationOperator::Exists,
                    effect: Some(TaintEffect::NoExecute),
                    toleration_seconds: seconds,
                    ..Toleration::default()
                });
            }
            let divided = ReplicaScheduling {
                scheduling: SchedulingType::Divided,
                division: Some(if chance.is(25) { Division::Aggregated } else { Division::Weighted }),
                ..ReplicaScheduling::default()
            };
            self.binding.spec.placement = Some(Placement {
                cluster_affinity: Some(ClusterAffinity { clusters: names, ..ClusterAffinity::default() }),
                cluster_tolerations: tolerations,
                replica_scheduling: chance.is(75).then_some(divided),
                ..Placement::default()
            });
        }
        if chance.is(50) {
            self.wish.replicas = 1 + chance.below(10);
        }
        if chance.is(30) {
            self.wish.floor = chance.is(60).then(|| chance.below(self.wish.replicas + 1));
        }
        self.binding.spec.replicas = self.wish.replicas;
        self.binding.metadata.generation += 1;
        self.say(|it| format!("somebody wants {:?} by {:?}", it.wish, it.binding.spec.placement));
    }

    /// The hub reaches a member again: it sees everything anew.
    pub(super) fn list(&mut self, name: &str) {
        if let Some(member) = self.members.get_mut(name).filter(|member| member.reached) {
            member.flow.clear();
            let report = member.report(self.now);
            self.memory.mirror.insert(name.to_owned(), report);
        }
    }

    /// The hub is killed and started again, with another clock; what was on its way arrives, or does not.
    pub(super) fn crash(&mut self) {
        self.say(|_| "the hub is killed".to_owned());
        for op in std::mem::take(&mut self.ops) {
            if self.chance.is(50) {
                self.arrive(op, true);
            }
        }
        self.skew = self.chance.below(240_000) - 120_000;
        let rate = Rate::new(self.settings.eviction_rate);
        self.memory.doubts.clear();
        self.memory.books.clear();
        self.memory.mirror.clear();
        self.memory.rate = rate;
        self.memory.began = self.now;
        for name in NAMES {
            self.list(name);
        }
    }

    /// Something goes wrong, or somebody does something.
    pub(super) fn fault(&mut self) {
        let name = NAMES[self.chance.below(NAMES.len() as i64) as usize];
        let (now, what) = (self.now, self.chance.below(12));
        let clock = self.clock();
        let known = self.members.contains_key(name);
        match what {
            0 | 1 if known => self.members.get_mut(name).unwrap().reached = false,
            2 if known => {
                let member = self.members.get_mut(name).unwrap();
                member.lose(i64::MAX, now);
                (member.reached, member.alive) = (false, false);
            }
            3..=5 if known => {
                let member = self.members.get_mut(name).unwrap();
                (member.reached, member.alive) = (true, true);
                self.list(name);
            }
            6 if known => {
                let count = 1 + self.chance.below(4);
                let member = self.members.get_mut(name).unwrap();
                member.lose(count, now);
                let report = member.report(now);
                member.flow.push((now + 4_000, report));
            }
            7 if known => self.members.get_mut(name).unwrap().stuck = now + self.chance.below(120_000),
            8 => self.crash(),
            9 => self.edit(),
            10 => {
                // Somebody clears a cluster, or is done with that.
                if let Some(cluster) = self.clusters.iter_mut().find(|cluster| cluster.metadata.name == name) {
                    let before = cluster.spec.taints.len();
                    cluster.spec.taints.retain(|taint| taint.key != MINE);
                    if cluster.spec.taints.len() == before {
                        let (key, value) = (MINE.to_owned(), String::new());
                        let (effect, time_added) = (TaintEffect::NoExecute, Some(clock));
                        cluster.spec.taints.push(Taint { key, value, effect, time_added });
                    }
                }
            }
            11 => match self.clusters.iter_mut().find(|cluster| cluster.metadata.name == name) {
                Some(leaving) => leaving.metadata.deletion_timestamp = Some(clock),
                None => {
                    self.clusters.push(cluster(name));
                    self.clusters.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
                    self.members.entry(name.to_owned()).or_insert_with(Member::new);
                    self.list(name);
                }
            },
            _ => return,
        }
        self.say(|_| format!("fault {what} of {name}"));
    }
}
