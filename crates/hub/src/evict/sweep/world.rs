//! The world of the sweep: members as they really are, and how they fail. No thread, no socket, no clock.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::evict::Settings;
use crate::evict::rate::Rate;
use crate::model::{ApiEnablement, ApiResource, Binding, Cluster};

/// Chance that is the same every time (SplitMix64).
pub(super) struct Chance(pub(super) u64);

impl Chance {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, limit: i64) -> i64 {
        (self.next() % u64::try_from(limit.max(1)).unwrap()).cast_signed()
    }

    pub(super) fn is(&mut self, percent: i64) -> bool {
        self.below(100) < percent
    }
}

/// A member's object.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Object {
    pub(super) version: u64,
    pub(super) generation: i64,
    /// Whether the member's own controller has seen this generation.
    pub(super) observed: bool,
    pub(super) replicas: i64,
    pub(super) ready: i64,
}

impl Object {
    pub(super) fn status(&self) -> Value {
        let observed = if self.observed { self.generation } else { self.generation - 1 };
        json!({"generation": self.generation, "observedGeneration": observed, "availableReplicas": self.ready})
    }

    pub(super) fn is_well(&self) -> bool {
        self.observed && self.ready >= self.replicas
    }

    /// How many may be ready.
    pub(super) fn good(&self) -> i64 {
        if self.observed { self.ready } else { self.replicas.max(self.ready) }
    }
}

/// What a member says of its object: as it was at a time.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) version: u64,
    pub(super) at: i64,
    pub(super) object: Option<Object>,
}

/// A member as it is.
pub(super) struct Member {
    /// Whether the hub reaches it.
    pub(super) reached: bool,
    /// Whether its pods run.
    pub(super) alive: bool,
    pub(super) object: Option<Object>,
    pub(super) version: u64,
    /// Until when new pods do not become ready.
    pub(super) stuck: i64,
    /// What is on its way to the hub, and when it arrives.
    pub(super) flow: Vec<(i64, Report)>,
    /// Good replicas that faults have taken, and when.
    pub(super) losses: Vec<(i64, i64)>,
}

impl Member {
    pub(super) fn new() -> Self {
        let (flow, losses) = (Vec::new(), Vec::new());
        Self { reached: true, alive: true, object: None, version: 1, stuck: 0, flow, losses }
    }

    pub(super) fn ready(&self) -> i64 {
        self.object.as_ref().filter(|_| self.alive).map_or(0, |object| object.ready)
    }

    /// Takes good replicas away, as faults do.
    pub(super) fn lose(&mut self, count: i64, now: i64) {
        let version = self.version + 1;
        if let Some(object) = &mut self.object
            && object.ready > 0
        {
            let lost = count.min(object.ready);
            object.ready -= lost;
            object.version = version;
            self.version = version;
            self.losses.push((now, lost));
        }
    }

    /// What faults have taken since.
    pub(super) fn lost_since(&self, then: i64) -> i64 {
        self.losses.iter().filter(|(at, _)| *at >= then).map(|(_, count)| count).sum()
    }

    pub(super) fn report(&self, now: i64) -> Report {
        Report { version: self.version, at: now, object: self.object.clone() }
    }

    /// Its own controllers work for a moment.
    pub(super) fn work(&mut self, now: i64, chance: &mut Chance) {
        if !self.alive {
            return;
        }
        let stuck = self.stuck > now;
        let version = self.version + 1;
        let Some(object) = &mut self.object else { return };
        let before = object.clone();
        object.observed = true;
        if object.ready < object.replicas && !stuck {
            object.ready += 1 + chance.below(object.replicas - object.ready);
        }
        if *object != before {
            object.version = version;
            self.version = version;
            let report = self.report(now);
            // Late, out of order, twice.
            for _ in 0..1 + i64::from(chance.is(15)) {
                self.flow.push((now + chance.below(8_000), report.clone()));
            }
        }
    }
}

/// A request that is on its way.
#[derive(Clone, Debug)]
pub(super) enum Op {
    /// Makes a Work ask for so many, if it is as it was (`revision`), or makes it.
    PutWork { cluster: String, replicas: i64, revision: Option<u64> },
    /// Asks for a Work's end.
    RemoveWork { cluster: String, uid: u64 },
    /// Creates a member's object.
    Create { cluster: String, replicas: i64 },
    /// Makes a member's object ask for so many, if it is as it was.
    Set { cluster: String, replicas: i64, version: u64, views: Views },
    /// Deletes a member's object, if it is as it was.
    Delete { cluster: String, version: u64, views: Views },
}

impl Op {
    /// Whether it is on its way to a member.
    pub(super) fn is_to(&self, name: &str) -> bool {
        match self {
            Self::Create { cluster, .. } | Self::Set { cluster, .. } | Self::Delete { cluster, .. } => cluster == name,
            Self::PutWork { .. } | Self::RemoveWork { .. } => false,
        }
    }
}

/// What a decision to take good replicas away was made from: how many must stay, and of which members what was believed, with
/// the time that it was true at.
#[derive(Clone, Debug)]
pub(super) struct Views {
    pub(super) floor: i64,
    /// Nobody asked that anything stays (`purgeMode: Directly`).
    pub(super) free: bool,
    pub(super) counted: Vec<(String, i64, i64)>,
}

/// A Work in the hub's store.
pub(super) struct Stored {
    pub(super) uid: u64,
    pub(super) revision: u64,
    pub(super) work: Value,
    /// When that was true what its status says.
    pub(super) said_at: i64,
}

/// What people want.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) replicas: i64,
    pub(super) floor: Option<i64>,
}

/// What the hub knows besides its store; gone when it is killed.
pub(super) struct Memory {
    pub(super) doubts: BTreeMap<String, i64>,
    pub(super) mirror: BTreeMap<String, Report>,
    /// Members whose object is as it was written last.
    pub(super) books: BTreeMap<String, (i64, u64)>,
    pub(super) rate: Rate,
    pub(super) began: i64,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) chance: Chance,
    pub(super) now: i64,
    /// How wrong the hub's clock is.
    pub(super) skew: i64,
    pub(super) settings: Settings,
    pub(super) wish: Wish,
    pub(super) members: BTreeMap<String, Member>,
    pub(super) clusters: Vec<Cluster>,
    pub(super) binding: Binding,
    pub(super) works: BTreeMap<String, Stored>,
    pub(super) memory: Memory,
    pub(super) ops: Vec<Op>,
    pub(super) next: u64,
    pub(super) log: Option<Vec<String>>,
    /// How many times good replicas were taken away, and how many copies were evicted: a sweep that never does proves nothing.
    pub(super) taken: usize,
    pub(super) evicted: usize,
}

/// A Cluster that serves Deployments.
pub(super) fn cluster(name: &str) -> Cluster {
    let mut cluster = Cluster::default();
    name.clone_into(&mut cluster.metadata.name);
    cluster.status.api_enablements = vec![ApiEnablement {
        group_version: "apps/v1".to_owned(),
        resources: vec![ApiResource { name: "deployments".to_owned(), kind: "Deployment".to_owned() }],
    }];
    cluster
}

impl World {
    pub(super) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn say(&mut self, what: impl FnOnce(&Self) -> String) {
        if self.log.is_some() {
            let text = format!("{:>8.1} {}", self.now as f64 / 1000.0, what(self));
            self.log.iter_mut().for_each(|log| log.push(text.clone()));
        }
    }

    /// The time by the hub's clock.
    pub(super) fn clock(&self) -> Timestamp {
        Timestamp::from_millisecond(1_700_000_000_000 + self.now + self.skew).unwrap()
    }

    /// Breaks, with all that led here.
    #[track_caller]
    pub(super) fn violated(&self, what: &str) -> ! {
        let log = self.log.as_ref().map_or_else(String::new, |log| log.join("\n"));
        panic!("seed {}: {what}\n{log}\nSTOLOS_SEED={} plays it again and tells it", self.seed, self.seed);
    }

    pub(super) fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.metadata.name == name)
    }

    /// A member's pods disappear, or its object does: the request that did it, against what it was allowed by.
    pub(super) fn check(&mut self, cluster: &str, before: i64, after: i64, views: &Views) {
        if after >= before {
            return;
        }
        self.taken += 1;
        if views.free {
            return;
        }
        let ready: i64 = self.members.values().map(Member::ready).sum();
        let unseen: i64 = (views.counted.iter())
            .map(|(name, counted, at)| self.members.get(name).map_or(*counted, |it| it.lost_since(*at)).min(*counted))
            .sum();
        if ready + unseen < views.floor {
            self.violated(&format!(
                "{cluster} went from {before} to {after} ready, which leaves {ready} of {}, {unseen} lost unseen: {views:?}",
                views.floor
            ));
        }
    }
}
