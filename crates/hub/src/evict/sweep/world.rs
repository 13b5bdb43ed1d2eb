//! The world of the sweep: what is true, what the hub's store says, and what the hub believes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::member::{Asked, Member, Report};
use super::rules::Rule;
use crate::evict::Settings;
use crate::evict::application::Watch;
use crate::evict::guard;
use crate::evict::rate::Turns;
use crate::label::LEFT_BEHIND;
use crate::model::{ApiEnablement, ApiResource, ApplicationFailover, Binding, Cluster, Placement};

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

    pub(super) fn one_of(&mut self, count: usize) -> usize {
        usize::try_from(self.below(count as i64)).unwrap()
    }

    pub(super) fn is(&mut self, percent: i64) -> bool {
        self.below(100) < percent
    }
}

/// A request that is on its way.
#[derive(Clone, Debug)]
pub(super) struct Op {
    /// Of which workload.
    pub(super) app: usize,
    pub(super) cluster: String,
    pub(super) what: Write,
}

/// What a request is to do.
#[derive(Clone, Debug)]
pub(super) enum Write {
    /// Makes a Work ask for so many of an image, if it is as it was (`revision`), or makes it.
    PutWork { replicas: i64, image: i64, revision: Option<u64> },
    /// Asks for a Work's end.
    RemoveWork { uid: u64 },
    /// Creates a member's object.
    Create { asked: Asked },
    /// Changes a member's object, if it is as it was; `settles`: it is then as its Work says.
    Set { asked: Asked, version: u64, views: Views, settles: bool },
    /// Deletes a member's object, if it is as it was.
    Delete { version: u64, views: Views },
}

impl Op {
    /// Whether it writes a Work.
    pub(super) fn is_work(&self) -> bool {
        matches!(self.what, Write::PutWork { .. } | Write::RemoveWork { .. })
    }
}

/// What becomes of a request's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Answer {
    /// The hub hears it.
    Heard,
    /// It does not, and knows that.
    Lost,
    /// It stopped waiting long ago.
    Late,
}

/// What a decision to take good replicas away was made from: how many must stay, and of which members what was believed, with
/// the time that it was true at; nothing of those that had not answered just before.
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

impl Stored {
    pub(super) fn is_leaving(&self) -> bool {
        !self.work["metadata"]["deletionTimestamp"].is_null()
    }

    pub(super) fn image(&self) -> i64 {
        self.work["spec"]["workload"]["manifests"][0]["image"].as_i64().unwrap_or(0)
    }
}

/// What people want.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) replicas: i64,
    pub(super) floor: Option<i64>,
    pub(super) image: i64,
    /// How many an override policy wants in a cluster, whatever was divided.
    pub(super) overrides: BTreeMap<String, i64>,
    /// What becomes of a copy that is not well (`failover.application` of the policy).
    pub(super) failover: Option<ApplicationFailover>,
}

/// One workload, or the Service of the first.
pub(super) struct App {
    pub(super) binding: Binding,
    pub(super) works: BTreeMap<String, Stored>,
    pub(super) wish: Wish,
    /// What people wanted before they edited it last.
    pub(super) before: Option<(Wish, Placement)>,
    /// A Service: it has no replicas, and stays as long as pods that leave.
    pub(super) serves: bool,
    /// Its template was deleted, and its binding has gone since.
    pub(super) gone: bool,
}

impl App {
    /// Whether its template was deleted.
    pub(super) fn goes(&self) -> bool {
        self.gone || self.binding.metadata.deletion_timestamp.is_some()
    }

    pub(super) fn left_behind(&self) -> BTreeMap<String, i64> {
        guard::left_behind(self.binding.metadata.annotations.get(LEFT_BEHIND).map(String::as_str))
    }

    pub(super) fn leave_behind(&mut self, left: &BTreeMap<String, i64>) {
        let annotations = &mut self.binding.metadata.annotations;
        match left.is_empty() {
            true => annotations.remove(LEFT_BEHIND),
            false => annotations.insert(LEFT_BEHIND.to_owned(), serde_json::to_string(left).unwrap()),
        };
    }
}

/// What the hub knows besides its store; gone when it is killed.
pub(super) struct Memory {
    pub(super) doubts: BTreeMap<String, i64>,
    pub(super) mirror: BTreeMap<(usize, String), Report>,
    /// What was written last.
    pub(super) books: BTreeMap<(usize, String), Asked>,
    pub(super) turns: Turns<usize>,
    pub(super) watches: BTreeMap<usize, Watch>,
    pub(super) began: i64,
    /// When a workload was sent away last.
    pub(super) sent_away: Option<i64>,
    /// When members were asked last that were well then.
    pub(super) answered: BTreeMap<String, i64>,
}

impl Memory {
    pub(super) fn new(settings: &Settings, began: i64) -> Self {
        Self {
            doubts: BTreeMap::new(),
            mirror: BTreeMap::new(),
            books: BTreeMap::new(),
            turns: Turns::new(settings.eviction_rate),
            watches: BTreeMap::new(),
            began,
            sent_away: None,
            answered: BTreeMap::new(),
        }
    }
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) chance: Chance,
    pub(super) now: i64,
    /// How wrong the hub's clock is.
    pub(super) skew: i64,
    pub(super) settings: Settings,
    pub(super) members: BTreeMap<String, Member>,
    pub(super) clusters: Vec<Cluster>,
    pub(super) apps: Vec<App>,
    pub(super) memory: Memory,
    pub(super) ops: Vec<Op>,
    /// Requests that nobody waits for any more and that are still on their way.
    pub(super) late: Vec<Op>,
    pub(super) next: u64,
    pub(super) log: Option<Vec<String>>,
    /// The rule of the guard that is broken.
    pub(super) off: Option<Rule>,
    /// What should never have been.
    pub(super) violation: Option<String>,
    pub(super) tally: Tally,
}

/// What has happened: a sweep in which nothing does proves nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// How many times good replicas were taken away.
    pub(super) taken: usize,
    /// How many copies were sent away from their clusters.
    pub(super) evicted: usize,
    /// How many writes arrived after the hub had stopped waiting for them, and changed something.
    pub(super) late: usize,
    /// How often a copy waited to become smaller.
    pub(super) waits: usize,
    /// How many copies left because they were not well.
    pub(super) failed: usize,
    /// How many bindings went.
    pub(super) gone: usize,
}

/// A Cluster that serves Deployments and Services.
pub(super) fn cluster(name: &str) -> Cluster {
    let mut cluster = Cluster::default();
    name.clone_into(&mut cluster.metadata.name);
    let serves = |version: &str, name: &str, kind: &str| ApiEnablement {
        group_version: version.to_owned(),
        resources: vec![ApiResource { name: name.to_owned(), kind: kind.to_owned() }],
    };
    cluster.status.api_enablements =
        vec![serves("apps/v1", "deployments", "Deployment"), serves("v1", "services", "Service")];
    cluster
}

impl World {
    pub(super) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn is_off(&self, rule: Rule) -> bool {
        self.off == Some(rule)
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

    /// Something is as it never should be: the first such thing is remembered, with all that led there.
    pub(super) fn violated(&mut self, what: &str) {
        if self.violation.is_none() {
            let log = self.log.as_ref().map_or_else(String::new, |log| log.join("\n"));
            let seed = self.seed;
            self.violation =
                Some(format!("seed {seed}: {what}\n{log}\nSTOLOS_SEED={seed} plays it again and tells it"));
        }
    }

    pub(super) fn cluster(&self, name: &str) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.metadata.name == name)
    }

    /// Whether a cluster leaves the hub, or has left it.
    pub(super) fn leaves(&self, name: &str) -> bool {
        self.cluster(name).is_none_or(|cluster| cluster.metadata.deletion_timestamp.is_some())
    }

    /// A member's pods disappear, or its object does: the request that did it, against what it was allowed by.
    pub(super) fn check(&mut self, app: usize, cluster: &str, before: i64, after: i64, views: &Views) {
        if after >= before {
            return;
        }
        self.tally.taken += 1;
        // Nobody wants anything of what was deleted.
        if views.free || self.apps[app].goes() {
            return;
        }
        let ready: i64 = self.members.values().map(|member| member.ready(app)).sum();
        let lost = |name: &str, at: i64| self.members.get(name).map_or(i64::MAX, |it| it.lost_since(app, at));
        let unseen: i64 = views.counted.iter().map(|(name, counted, at)| lost(name, *at).min(*counted)).sum();
        if ready + unseen < views.floor {
            self.violated(&format!(
                "{app} in {cluster} went from {before} to {after} ready, which leaves {ready} of {}, {unseen} lost unseen: {views:?}",
                views.floor
            ));
        }
    }
}
