//! What goes wrong, and what people do meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::member::{Member, Object};
use super::rules::Rule;
use super::world::{Answer, App, Chance, Memory, Stored, Tally, Wish, World, cluster};
use crate::evict::Settings;
use crate::label::APPLIED_PLACEMENT;
use crate::model::{
    ApplicationFailover, Binding, ClusterAffinity, DecisionConditions, Division, Failover, Placement, PurgeMode,
    ReplicaScheduling, SchedulingType, StaticWeight, Taint, TaintEffect, TargetCluster, Toleration, TolerationOperator,
    Weights,
};

pub(super) const NAMES: [&str; 5] = ["ap", "eu", "me", "sa", "us"];
pub(super) const MINE: &str = "example.com/mine";

/// A world as a seed makes it.
pub(super) fn world(seed: u64, tells: bool, off: Option<Rule>) -> World {
    let mut chance = Chance(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0x5DEE_CE66_D1CE_4E5B);
    let members = 2 + chance.one_of(3);
    let purge = if chance.is(10) { PurgeMode::Directly } else { PurgeMode::Gracefully };
    let settings = Settings {
        status_update_frequency: Duration::from_secs([10, 30, 90][chance.one_of(3)]),
        failover_eviction_timeout: Duration::from_secs([20, 60, 300][chance.one_of(3)]),
        graceful_eviction_timeout: Duration::from_secs([30, 120, 600][chance.one_of(3)]),
        eviction_rate: 0.5,
        purge_mode: purge,
        ..Settings::default()
    };
    // One workload mostly, with a Service of it, or with another one that leaves at the same rate.
    let kinds: &[bool] = match chance.below(10) {
        0..=5 => &[false],
        6 | 7 => &[false, true],
        8 => &[false, false],
        _ => &[false, true, false],
    };
    let mut world = empty(seed, chance, settings, &NAMES[..members], kinds);
    (world.log, world.off) = (tells.then(Vec::new), off);
    (0..kinds.len()).for_each(|of| world.edit(of));
    NAMES.into_iter().for_each(|name| world.list(name));
    world
}

/// Three clusters and one workload, nine replicas of which are to be in two of them.
pub(super) fn of_three() -> World {
    let mut world = empty(0, Chance(0), Settings::default(), &NAMES[..3], &[false]);
    let app = &mut world.apps[0];
    app.wish.replicas = 9;
    app.binding.spec.replicas = 9;
    let clusters = ["ap", "me"].map(str::to_owned).to_vec();
    app.binding.spec.placement = Some(Placement {
        cluster_affinity: Some(ClusterAffinity { clusters, ..ClusterAffinity::default() }),
        replica_scheduling: Some(ReplicaScheduling {
            scheduling: SchedulingType::Divided,
            division: Some(Division::Weighted),
            ..ReplicaScheduling::default()
        }),
        ..Placement::default()
    });
    app.binding.spec.clusters = vec![target("ap", 4), target("me", 5)];
    let applied = serde_json::to_string(&app.binding.spec.placement).unwrap();
    app.binding.metadata.annotations.insert(APPLIED_PLACEMENT.to_owned(), applied);
    app.binding.status.scheduler_observed_generation = app.binding.metadata.generation;
    world
}

pub(super) fn target(name: &str, replicas: i64) -> TargetCluster {
    TargetCluster { name: name.to_owned(), replicas }
}

fn empty(seed: u64, chance: Chance, settings: Settings, names: &[&str], kinds: &[bool]) -> World {
    World {
        seed,
        chance,
        now: 0,
        skew: 0,
        settings,
        members: names.iter().map(|name| ((*name).to_owned(), Member::new(kinds, 1))).collect(),
        clusters: names.iter().map(|name| cluster(name)).collect(),
        apps: kinds.iter().enumerate().map(|(at, serves)| app(&format!("{seed:x}-{at}"), *serves)).collect(),
        memory: Memory::new(&settings, 0),
        ops: Vec::new(),
        late: Vec::new(),
        next: 0,
        log: None,
        off: None,
        violation: None,
        tally: Tally::default(),
    }
}

fn app(uid: &str, serves: bool) -> App {
    let mut binding = Binding::default();
    binding.metadata.generation = 1;
    let (version, kind) = if serves { ("v1", "Service") } else { ("apps/v1", "Deployment") };
    version.clone_into(&mut binding.spec.resource.api_version);
    kind.clone_into(&mut binding.spec.resource.kind);
    uid.clone_into(&mut binding.spec.resource.uid);
    let wish = Wish { replicas: i64::from(!serves), floor: None, image: 1, overrides: BTreeMap::new(), failover: None };
    App { binding, works: BTreeMap::new(), wish, before: None, serves, gone: false }
}

/// A placement as people write it.
fn placement(chance: &mut Chance) -> Placement {
    let names: Vec<String> = NAMES.iter().filter(|_| chance.is(70)).map(|name| (*name).to_owned()).collect();
    let mut tolerations = Vec::new();
    if chance.is(25) {
        let seconds = [None, Some(0), Some(30), Some(200)][chance.one_of(4)];
        tolerations.push(Toleration {
            operator: TolerationOperator::Exists,
            effect: Some(TaintEffect::NoExecute),
            toleration_seconds: seconds,
            ..Toleration::default()
        });
    }
    let named = |clusters: Vec<String>| ClusterAffinity { clusters, ..ClusterAffinity::default() };
    // Whoever is not named weighs nothing.
    let mut fixed = Vec::new();
    if chance.is(30) {
        for name in NAMES {
            if chance.is(80) {
                let target_cluster = named(vec![name.to_owned()]);
                fixed.push(StaticWeight { target_cluster, weight: 1 + chance.below(4) });
            }
        }
    }
    let divided = ReplicaScheduling {
        scheduling: SchedulingType::Divided,
        division: Some(if chance.is(25) { Division::Aggregated } else { Division::Weighted }),
        weights: (!fixed.is_empty()).then_some(Weights { fixed, dynamic: None }),
    };
    Placement {
        cluster_affinity: Some(named(names)),
        cluster_tolerations: tolerations,
        replica_scheduling: chance.is(75).then_some(divided),
        ..Placement::default()
    }
}

impl World {
    /// Puts a copy of the first workload where it is: what its Work asks for and has been told of the first generation, and
    /// how many there are, all of them good. The Work's revision.
    pub(super) fn put_copy(&mut self, name: &str, (asked, found): (i64, i64), generation: i64) -> u64 {
        let uid = self.id();
        let mark = (uid, if self.is_off(Rule::Mark) { 0 } else { 1 });
        let object =
            Object { version: 1, generation: 1, observed: true, replicas: found, ready: found, image: 1, mark };
        let work = json!({
            "metadata": {"generation": generation},
            "spec": {"workload": {"manifests": [{"apiVersion": "apps/v1", "kind": "Deployment",
                "spec": {"replicas": asked}, "image": 1}]}},
            "status": {"conditions": [{"type": "Applied", "status": "True", "observedGeneration": 1}],
                "manifestStatuses": [{"status": object.status(), "health": object.health()}]},
        });
        self.members.get_mut(name).unwrap().slots[0].object = Some(object);
        self.apps[0].works.insert(name.to_owned(), Stored { uid, revision: uid, work, said_at: 0 });
        uid
    }

    /// Somebody asks for the end of a Work of the first workload.
    pub(super) fn end_work(&mut self, name: &str) {
        self.apps[0].works.get_mut(name).unwrap().work["metadata"]["deletionTimestamp"] = "now".into();
    }

    /// Somebody edits the policy, an override policy or the template, or takes the last edit back. A Service goes where its
    /// pods go.
    pub(super) fn edit(&mut self, of: usize) {
        self.make_again(of);
        let of = if self.apps[of].serves { 0 } else { of };
        self.make_again(of);
        if self.apps[of].goes() {
            return;
        }
        let app = &mut self.apps[of];
        let known = app.binding.spec.placement.clone().map(|placement| (app.wish.clone(), placement));
        let before = std::mem::replace(&mut app.before, known);
        match before.filter(|_| self.chance.is(25)) {
            Some((wish, placement)) => {
                app.wish = wish;
                self.put_placement(of, &placement);
            }
            None => self.edit_anew(of),
        }
        let app = &mut self.apps[of];
        app.binding.spec.replicas = app.wish.replicas;
        let application = app.wish.failover.clone();
        app.binding.spec.failover = application.map(|it| Failover { application: Some(it), cluster: None });
        app.binding.metadata.generation += 1;
        self.say(|it| {
            format!("somebody wants {of}: {:?} by {:?}", it.apps[of].wish, it.apps[of].binding.spec.placement)
        });
    }

    fn edit_anew(&mut self, of: usize) {
        if self.chance.is(70) || self.apps[of].binding.spec.placement.is_none() {
            let placement = placement(&mut self.chance);
            self.put_placement(of, &placement);
        }
        let (chance, wish) = (&mut self.chance, &mut self.apps[of].wish);
        if chance.is(50) {
            wish.replicas = 1 + chance.below(10);
        }
        if chance.is(30) {
            wish.floor = chance.is(60).then(|| chance.below(wish.replicas + 1));
        }
        if chance.is(15) {
            wish.image += 1;
        }
        if chance.is(20) {
            let name = NAMES[chance.one_of(NAMES.len())];
            match chance.is(60) {
                true => drop(wish.overrides.insert(name.to_owned(), 1 + chance.below(10))),
                false => wish.overrides.clear(),
            }
        }
        if chance.is(20) {
            let modes = [None, Some(PurgeMode::Gracefully), Some(PurgeMode::Directly)];
            let application = ApplicationFailover {
                decision_conditions: DecisionConditions {
                    toleration_seconds: [None, Some(0), Some(30)][chance.one_of(3)],
                },
                purge_mode: modes[chance.one_of(3)],
                ..ApplicationFailover::default()
            };
            wish.failover = chance.is(80).then_some(application);
        }
    }

    /// Somebody deletes a template: its binding goes.
    pub(super) fn delete(&mut self, of: usize) {
        let at = self.clock();
        if !self.apps[of].goes() {
            self.apps[of].binding.metadata.deletion_timestamp = Some(at);
            self.say(|_| format!("somebody deletes {of}"));
        }
    }

    /// Somebody makes a template again that is gone.
    fn make_again(&mut self, of: usize) {
        let gone = &self.apps[of];
        if !gone.gone {
            return;
        }
        let mut again = app(&format!("{}'", gone.binding.spec.resource.uid), gone.serves);
        again.wish = gone.wish.clone();
        again.binding.spec.placement.clone_from(&gone.binding.spec.placement);
        again.binding.spec.failover.clone_from(&gone.binding.spec.failover);
        again.binding.spec.replicas = gone.binding.spec.replicas;
        self.apps[of] = again;
        self.say(|_| format!("somebody makes {of} again"));
    }

    fn put_placement(&mut self, of: usize, placement: &Placement) {
        for (at, app) in self.apps.iter_mut().enumerate() {
            if at == of || (app.serves && of == 0) {
                app.binding.spec.placement = Some(placement.clone());
                app.binding.metadata.generation += 1;
            }
        }
    }

    /// The hub reaches a member again: it sees everything anew.
    pub(super) fn list(&mut self, name: &str) {
        if let Some(member) = self.members.get_mut(name).filter(|member| member.reached) {
            for app in 0..member.slots.len() {
                member.slots[app].flow.clear();
                self.memory.mirror.insert((app, name.to_owned()), member.report(app, self.now));
            }
        }
    }

    /// The hub is killed and started again, with another clock; what was on its way arrives now, much later, or never.
    pub(super) fn crash(&mut self) {
        self.say(|_| "the hub is killed".to_owned());
        for op in std::mem::take(&mut self.ops) {
            match self.chance.below(4) {
                0 | 1 => self.arrive(op, Answer::Late),
                2 => self.give_up(op),
                _ => {}
            }
        }
        self.skew = self.chance.below(240_000) - 120_000;
        self.memory = Memory::new(&self.settings, self.now);
        for name in NAMES {
            self.list(name);
        }
    }

    /// Something goes wrong, or somebody does something.
    pub(super) fn fault(&mut self) {
        let name = NAMES[self.chance.one_of(NAMES.len())];
        let (now, what) = (self.now, self.chance.below(14));
        let clock = self.clock();
        let Self { members, chance, .. } = self;
        match (what, members.get_mut(name)) {
            (0 | 1, Some(member)) => member.reached = false,
            (2, Some(member)) => {
                (0..member.slots.len()).for_each(|app| member.lose(app, i64::MAX, now));
                (member.reached, member.alive) = (false, false);
            }
            (3..=5, Some(member)) => {
                (member.reached, member.alive) = (true, true);
                self.list(name);
            }
            (6, Some(member)) => {
                let app = chance.one_of(member.slots.len());
                if !member.slots[app].plain {
                    member.lose(app, 1 + chance.below(4), now);
                    member.tell(app, now, chance);
                }
            }
            (7, Some(member)) => member.stuck = now + chance.below(120_000),
            (8, _) => self.crash(),
            (9, _) => {
                let of = self.chance.one_of(self.apps.len());
                self.edit(of);
            }
            (10, _) => self.clear(name),
            (11, _) => match self.clusters.iter_mut().find(|cluster| cluster.metadata.name == name) {
                Some(leaving) => leaving.metadata.deletion_timestamp = Some(clock),
                None => {
                    self.clusters.push(cluster(name));
                    self.clusters.sort_by(|one, other| one.metadata.name.cmp(&other.metadata.name));
                    let plain: Vec<bool> = self.apps.iter().map(|app| app.serves).collect();
                    self.members.entry(name.to_owned()).or_insert_with(|| Member::new(&plain, 1));
                    self.list(name);
                }
            },
            (13, _) => {
                let of = self.chance.one_of(self.apps.len());
                match self.apps[of].gone {
                    true => self.make_again(of),
                    false => self.delete(of),
                }
            }
            // The clock is set right, or wrong.
            (12, _) => self.skew = chance.below(240_000) - 120_000,
            _ => return,
        }
        self.say(|_| format!("fault {what} of {name}"));
    }

    /// Somebody clears a cluster, or is done with that.
    fn clear(&mut self, name: &str) {
        let time_added = Some(self.clock());
        let Some(cluster) = self.clusters.iter_mut().find(|cluster| cluster.metadata.name == name) else { return };
        let before = cluster.spec.taints.len();
        cluster.spec.taints.retain(|taint| taint.key != MINE);
        if cluster.spec.taints.len() == before {
            let (key, value, effect) = (MINE.to_owned(), String::new(), TaintEffect::NoExecute);
            cluster.spec.taints.push(Taint { key, value, effect, time_added });
        }
    }
}
