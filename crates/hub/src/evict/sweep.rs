//! The controllers' decisions over a world that fails in every way, seed by seed: what [`super`], [`crate::place`] and the
//! control loops decide with is called here as the loops call it, between steps that come in any order.
//!
//! After every write to a member that takes good replicas away, enough are left; what is placed is what is wanted; and when
//! nothing fails any more, all ends where the last decision said, and stays there. `STOLOS_SEEDS=N` plays so many seeds,
//! `STOLOS_SEED=S` one of them and tells what happened.

mod faults;
mod world;

use std::time::Duration;

use serde_json::json;

use super::floor::{By, Floor};
use super::guard::{self, Action, Copy, Ending, Facts, Place};
use super::health::{self, Seen};
use super::taint;
use super::task::{self, Change, News};
use crate::divide::Strategy;
use crate::label::{APPLIED_PLACEMENT, LEAST_ASKED};
use crate::model::{AggregatedStatusItem, Condition, Health, PurgeMode, SchedulingType};
use crate::place::{self, Outcome};
use faults::{MINE, NAMES};
use world::{Member, Object, Op, Report, Stored, Views, World};

impl World {
    fn floor(&self, wanted: i64) -> Floor {
        match self.wish.floor {
            Some(said) => Floor { least: said.clamp(1.min(wanted), wanted), by: By::Annotation },
            None => Floor::of_all(wanted),
        }
    }

    /// As `control::clusters` does: asks a member, believes it or not, taints it.
    fn clusters_look(&mut self, name: &str) {
        let seen = match self.members.get(name) {
            Some(member) if member.reached => Seen::Ready,
            _ if name < "b" => Seen::Silent,
            _ => Seen::NotReady,
        };
        let (clock, now, settings) = (self.clock(), self.now, self.settings);
        let Some(at) = self.clusters.iter().position(|cluster| cluster.metadata.name == name) else { return };
        let cluster = &mut self.clusters[at];
        let ready = cluster.status.conditions.first().map(|ready| ready.status.clone());
        let believed = if ready.as_deref() == Some(seen.status()) {
            self.memory.doubts.remove(name);
            false
        } else {
            let since = *self.memory.doubts.entry(name.to_owned()).or_insert(now);
            let since = Duration::from_millis((now - since).unsigned_abs());
            health::believed(ready.as_deref(), seen, since, &settings)
        };
        if believed {
            self.memory.doubts.remove(name);
            cluster.status.conditions = vec![Condition {
                type_: "Ready".to_owned(),
                status: seen.status().to_owned(),
                last_transition_time: Some(clock),
                ..Condition::default()
            }];
        }
        let (after, _) = taint::wanted(&cluster.spec.taints, cluster.status.conditions.first(), clock, &settings);
        cluster.spec.taints = after;
        let leaves = cluster.metadata.deletion_timestamp.is_some();
        if leaves {
            match self.works.get_mut(name) {
                Some(stored) => stored.work["metadata"]["deletionTimestamp"] = "now".into(),
                None => {
                    self.clusters.remove(at);
                    self.memory.doubts.remove(name);
                    // What is left in it is somebody else's now.
                    self.members.insert(name.to_owned(), Member::new());
                    self.memory.mirror.remove(name);
                    self.memory.books.remove(name);
                }
            }
        }
        if believed {
            self.say(|_| format!("{name} is believed to be {seen:?}"));
        }
    }

    /// As `control::schedule` does.
    fn schedule_look(&mut self) {
        let clusters = &self.clusters;
        let going = |name: &str| {
            let of = clusters.iter().find(|cluster| cluster.metadata.name == name);
            of.is_none_or(|cluster| cluster.metadata.deletion_timestamp.is_some())
        };
        if place::due(&self.binding, &going).is_none() {
            let scheduled = self.binding.metadata.annotations.contains_key(APPLIED_PLACEMENT);
            if scheduled {
                self.binding.status.scheduler_observed_generation = self.binding.metadata.generation;
            }
            return;
        }
        let candidates: Vec<_> =
            clusters.iter().filter(|cluster| cluster.metadata.deletion_timestamp.is_none()).cloned().collect();
        let decision = place::place(&self.binding, &candidates, &|_| 100, place::Settings::default());
        let Outcome::Placed { clusters, .. } = &decision.outcome else { return };
        let placed: i64 = clusters.iter().map(|target| target.replicas).sum();
        if !matches!(decision.strategy, Strategy::Duplicated | Strategy::Unnumbered) && placed != self.wish.replicas {
            self.violated(&format!("{placed} of {} are placed", self.wish.replicas));
        }
        if clusters.is_empty() {
            self.violated("placed nowhere");
        }
        let applied = serde_json::to_string(&self.binding.spec.placement).unwrap();
        if self.binding.spec.clusters != *clusters {
            self.binding.spec.clusters.clone_from(clusters);
            self.binding.metadata.generation += 1;
            self.say(|it| format!("placed: {:?}", it.binding.spec.clusters));
        }
        self.binding.metadata.annotations.insert(APPLIED_PLACEMENT.to_owned(), applied);
        self.binding.status.scheduler_observed_generation = self.binding.metadata.generation;
    }

    /// As `control::evict` does.
    fn evict_look(&mut self) {
        let clock = self.clock();
        let has_work = |cluster: &str| self.works.contains_key(cluster);
        if let Some(change) = task::assess(&self.binding, &self.clusters, &has_work, clock, &self.settings)
            && !change.news.is_empty()
        {
            self.change(change);
            return;
        }
        if let Some(change) = task::evict(&self.binding, &self.clusters, clock, &self.settings)
            && !change.news.is_empty()
        {
            let elapsed = Duration::from_millis((self.now - self.memory.began).unsigned_abs());
            if self.memory.rate.take(elapsed).is_ok() {
                self.change(change);
            }
        }
    }

    fn change(&mut self, change: Change) {
        let Change { clusters, tasks, news, .. } = change;
        self.evicted += news.iter().filter(|(_, news)| *news == News::Evicted).count();
        self.binding.spec.clusters = clusters;
        self.binding.spec.graceful_eviction_tasks = tasks;
        self.binding.metadata.generation += 1;
        self.say(|it| format!("{news:?}, now {:?}", it.binding.spec.clusters));
    }

    fn wanted(&self, name: &str) -> Option<i64> {
        let leaves = self.cluster(name).is_none_or(|cluster| cluster.metadata.deletion_timestamp.is_some());
        let target = self.binding.spec.clusters.iter().find(|target| target.name == name);
        target.filter(|_| !leaves).map(|target| target.replicas)
    }

    /// As `control::copies` does.
    fn copies(&self) -> (Vec<Copy>, Floor) {
        let spec = &self.binding.spec;
        let places: Vec<Place<'_>> = (self.clusters.iter())
            .map(|cluster| {
                let name = cluster.metadata.name.as_str();
                let wanted = self.wanted(name).map(|share| (share, share));
                let heard = cluster.status.ready() && !self.memory.doubts.contains_key(name);
                let work = self.works.get(name).map(|stored| &stored.work);
                Place { cluster: name, wanted, work, heard, needed: false }
            })
            .filter(|place| place.wanted.is_some() || place.work.is_some())
            .collect();
        let scheduling = spec.placement.as_ref().and_then(|placement| placement.replica_scheduling.as_ref());
        let facts = Facts {
            replicas: spec.replicas,
            divided: scheduling.is_some_and(|scheduling| scheduling.scheduling == SchedulingType::Divided),
            numbered: true,
            tasks: (spec.graceful_eviction_tasks.iter())
                .map(|task| (task.from_cluster.as_str(), task.purge_mode == Some(PurgeMode::Directly)))
                .collect(),
        };
        let (copies, wanted) = guard::copies(&facts, &places);
        (copies, self.floor(wanted))
    }

    /// As `control::bind` does; what it writes is on its way then.
    fn bind_look(&mut self) {
        // Of one thing one look at a time.
        let busy = self.ops.iter().any(|op| matches!(op, Op::PutWork { .. } | Op::RemoveWork { .. }));
        if busy || !self.binding.metadata.annotations.contains_key(APPLIED_PLACEMENT) {
            return;
        }
        let (copies, floor) = self.copies();
        for step in guard::plan(&copies, &floor) {
            let stored = self.works.get(&step.cluster);
            let held = copies.iter().find(|copy| copy.cluster == step.cluster).and_then(|copy| copy.held);
            match (step.action, stored) {
                (Action::Put(replicas), _) if held == Some(replicas) => {}
                (Action::Put(_), Some(stored)) if !stored.work["metadata"]["deletionTimestamp"].is_null() => {}
                (Action::Put(replicas), stored) => {
                    let revision = stored.map(|stored| stored.revision);
                    self.ops.push(Op::PutWork { cluster: step.cluster, replicas, revision });
                }
                (Action::Remove, Some(stored)) if stored.work["metadata"]["deletionTimestamp"].is_null() => {
                    self.ops.push(Op::RemoveWork { cluster: step.cluster, uid: stored.uid });
                }
                _ => {}
            }
        }
    }

    /// What a decision to make a member's object smaller is made from.
    fn views(&self, copies: &[Copy], cluster: &str, floor: &Floor) -> Views {
        let purged = copies.iter().any(|copy| copy.cluster == cluster && copy.purged);
        let counted = copies.iter().filter(|copy| copy.cluster != cluster).filter_map(|copy| {
            let counted = guard::counted(std::slice::from_ref(copy), "");
            let at = self.works.get(&copy.cluster)?.said_at;
            (counted > 0).then(|| (copy.cluster.clone(), counted, at))
        });
        // What people want is asked of them, not of the hub.
        let wanted = self.wish.replicas;
        let least = self.wish.floor.map_or(wanted, |said| said.clamp(1, wanted));
        Views { floor: least, free: purged && !floor.is_said(), counted: counted.collect() }
    }

    /// As `control::execute` does.
    fn execute_look(&mut self, name: &str) {
        if self.ops.iter().any(|op| op.is_to(name)) {
            return;
        }
        let Some(stored) = self.works.get(name) else { return };
        let reached = self.members.get(name).is_some_and(|member| member.reached);
        let ready = self.cluster(name).is_some_and(|cluster| cluster.status.ready());
        let leaves = self.cluster(name).is_none_or(|cluster| cluster.metadata.deletion_timestamp.is_some());
        let asked = guard::asked(&stored.work["spec"]["workload"]["manifests"][0]);
        if !stored.work["metadata"]["deletionTimestamp"].is_null() {
            match guard::ending(leaves, self.wanted(name).is_some(), ready) {
                Ending::LetGo => {
                    self.works.remove(name);
                }
                Ending::TakeBack if reached => match &self.members[name].object {
                    None => {
                        self.works.remove(name);
                    }
                    Some(live) => {
                        let (copies, floor) = self.copies();
                        if guard::last_look(&copies, name, live.good(), live.replicas, 0, &floor).is_ok() {
                            let views = self.views(&copies, name, &floor);
                            self.ops.push(Op::Delete { cluster: name.to_owned(), version: live.version, views });
                        }
                    }
                },
                _ => {}
            }
            return;
        }
        if !ready || !reached {
            return;
        }
        let Some(report) = self.memory.mirror.get(name) else { return };
        let Some(live) = report.object.clone() else {
            self.ops.push(Op::Create { cluster: name.to_owned(), replicas: asked });
            return;
        };
        let known = self.memory.books.get(name) == Some(&(asked, live.generation.unsigned_abs()));
        if live.replicas == asked && known {
            let at = report.at;
            let generation = stored.work["metadata"]["generation"].clone();
            let health = if live.is_well() { "Healthy" } else { "Unhealthy" };
            let status = json!({"conditions": [{"type": "Applied", "status": "True", "observedGeneration": generation}],
                "manifestStatuses": [{"status": live.status(), "health": health}]});
            let revision = self.id();
            let Some(stored) = self.works.get_mut(name) else { return };
            if stored.work["status"] != status {
                stored.work["status"] = status;
                stored.revision = revision;
            }
            stored.said_at = at;
            return;
        }
        let (copies, floor) = self.copies();
        if asked < live.replicas && guard::last_look(&copies, name, live.good(), live.replicas, asked, &floor).is_err()
        {
            let (at, revision) = (report.at, self.id());
            let Some(stored) = self.works.get_mut(name) else { return };
            stored.work["status"]["manifestStatuses"] = json!([{"status": live.status(), "health": "Unhealthy"}]);
            (stored.said_at, stored.revision) = (at, revision);
            return;
        }
        let views = self.views(&copies, name, &floor);
        self.ops.push(Op::Set { cluster: name.to_owned(), replicas: asked, version: live.version, views });
    }

    /// As `control::aggregate` does.
    fn aggregate_look(&mut self) {
        let items = self.binding.spec.clusters.iter().filter_map(|target| {
            let status = &self.works.get(&target.name)?.work["status"];
            Some(AggregatedStatusItem {
                cluster_name: target.name.clone(),
                status: None,
                applied: status["conditions"][0]["status"] == "True",
                applied_message: String::new(),
                health: (status["manifestStatuses"][0]["health"] == "Healthy").then_some(Health::Healthy),
            })
        });
        self.binding.status.aggregated_status = items.collect();
    }

    /// A request arrives, and its answer, unless `lost`.
    fn arrive(&mut self, op: Op, lost: bool) {
        self.say(|_| format!("{op:?}{}", if lost { ", and nobody hears of it" } else { "" }));
        let id = self.id();
        match op {
            Op::PutWork { cluster, replicas, revision } => {
                let manifest = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": replicas}});
                let is_member = self.cluster(&cluster).is_some();
                match (self.works.get_mut(&cluster), revision) {
                    (Some(stored), Some(revision)) if stored.revision == revision => {
                        let generation = stored.work["metadata"]["generation"].as_i64().unwrap() + 1;
                        let least = guard::least_asked(Some(&stored.work), replicas).to_string();
                        stored.work["metadata"]["annotations"][LEAST_ASKED] = least.into();
                        stored.work["metadata"]["generation"] = generation.into();
                        stored.work["spec"]["workload"]["manifests"] = json!([manifest]);
                        stored.revision = id;
                    }
                    (None, None) if is_member => {
                        let work =
                            json!({"metadata": {"generation": 1}, "spec": {"workload": {"manifests": [manifest]}}});
                        self.works.insert(cluster, Stored { uid: id, revision: id, work, said_at: 0 });
                    }
                    _ => {}
                }
            }
            Op::RemoveWork { cluster, uid } => {
                if let Some(stored) = self.works.get_mut(&cluster).filter(|stored| stored.uid == uid) {
                    stored.work["metadata"]["deletionTimestamp"] = "now".into();
                    stored.revision = id;
                }
            }
            Op::Create { cluster, replicas } => self.write(&cluster, None, Some(replicas), None, lost),
            Op::Set { cluster, replicas, version, views } => {
                self.write(&cluster, Some(version), Some(replicas), Some(&views), lost);
            }
            Op::Delete { cluster, version, views } => self.write(&cluster, Some(version), None, Some(&views), lost),
        }
    }

    /// A request that writes a member's object arrives there.
    fn write(&mut self, name: &str, version: Option<u64>, replicas: Option<i64>, views: Option<&Views>, lost: bool) {
        let now = self.now;
        let Some(member) = self.members.get_mut(name).filter(|member| member.reached) else {
            self.memory.books.remove(name);
            return;
        };
        let ready = member.ready();
        if member.object.as_ref().map(|object| object.version) != version {
            // A conflict: it is read again.
            let report = member.report(now);
            self.memory.mirror.insert(name.to_owned(), report);
            self.memory.books.remove(name);
            return;
        }
        member.version += 1;
        let version = member.version;
        member.object = match (member.object.take(), replicas) {
            (_, None) => None,
            (None, Some(replicas)) => Some(Object { version, generation: 1, observed: false, replicas, ready: 0 }),
            (Some(object), Some(replicas)) if object.replicas == replicas => Some(Object { version, ..object }),
            (Some(object), Some(replicas)) => Some(Object {
                version,
                generation: object.generation + 1,
                observed: false,
                replicas,
                ready: object.ready.min(replicas),
            }),
        };
        let (report, after) = (member.report(now), member.ready());
        let generation = member.object.as_ref().map_or(0, |object| object.generation.unsigned_abs());
        if lost {
            self.memory.books.remove(name);
        } else {
            self.memory.mirror.insert(name.to_owned(), report);
            self.memory.books.insert(name.to_owned(), (replicas.unwrap_or(0), generation));
        }
        if let Some(views) = views {
            self.check(name, ready, after, views);
        }
    }

    /// What members have said arrives: of each the newest that is known counts.
    fn deliver(&mut self) {
        let now = self.now;
        for (name, member) in &mut self.members {
            if !member.reached {
                continue;
            }
            let (due, later): (Vec<_>, Vec<_>) = member.flow.drain(..).partition(|(at, _)| *at <= now);
            member.flow = later;
            for (_, report) in due {
                let known = self.memory.mirror.get(name).map_or(0, |known: &Report| known.version);
                if report.version > known {
                    self.memory.mirror.insert(name.clone(), report);
                }
            }
        }
    }

    /// One controller looks at one thing, or time passes.
    fn step(&mut self) {
        let name = NAMES[self.chance.below(NAMES.len() as i64) as usize];
        match self.chance.below(14) {
            0 | 1 => self.clusters_look(name),
            2 => self.schedule_look(),
            3 => self.evict_look(),
            4 | 5 => self.bind_look(),
            6 | 7 => self.execute_look(name),
            8 => self.aggregate_look(),
            9 | 10 if !self.ops.is_empty() => {
                let at = self.chance.below(self.ops.len() as i64) as usize;
                let op = self.ops.swap_remove(at);
                let lost = self.chance.is(10);
                self.arrive(op, lost);
            }
            11 => {
                let (now, chance) = (self.now, &mut self.chance);
                self.members.values_mut().for_each(|member| member.work(now, chance));
            }
            12 => self.deliver(),
            _ => self.now += 200 + self.chance.below(6_000),
        }
    }

    /// Every controller looks at everything once, in order.
    fn round(&mut self) {
        self.now += 5_000;
        let now = self.now;
        let chance = &mut self.chance;
        self.members.values_mut().for_each(|member| member.work(now, chance));
        self.now += 8_000;
        self.deliver();
        for name in NAMES {
            self.clusters_look(name);
        }
        self.evict_look();
        self.schedule_look();
        self.bind_look();
        self.finish();
        for name in NAMES {
            self.execute_look(name);
        }
        self.finish();
        for name in NAMES {
            self.execute_look(name);
        }
        self.aggregate_look();
    }

    fn finish(&mut self) {
        for op in std::mem::take(&mut self.ops) {
            self.arrive(op, false);
        }
    }

    /// What each member has.
    fn found(&self) -> Vec<(String, i64, i64)> {
        let found = self.members.iter().filter(|(name, _)| self.cluster(name).is_some());
        found.filter_map(|(name, it)| it.object.as_ref().map(|o| (name.clone(), o.replicas, o.ready))).collect()
    }

    /// Nothing fails any more: all that is wanted comes to be, and then nothing changes.
    fn heal(&mut self) {
        self.say(|_| "nothing fails any more".to_owned());
        self.finish();
        for member in self.members.values_mut() {
            (member.reached, member.alive, member.stuck) = (true, true, 0);
        }
        for name in NAMES {
            self.list(name);
        }
        for cluster in &mut self.clusters {
            cluster.spec.taints.retain(|taint| taint.key != MINE);
        }
        let mut settled = 0;
        for _ in 0..250 {
            self.round();
            settled = if self.is_settled() { settled + 1 } else { 0 };
            if settled == 2 {
                return;
            }
        }
        if self.fits() {
            self.violated(&format!(
                "it does not settle: {:?} of {:?}, tasks {:?}, works {:?}",
                self.found(),
                self.binding.spec.clusters,
                self.binding.spec.graceful_eviction_tasks,
                self.works.iter().map(|(name, stored)| format!("{name} {}", stored.work)).collect::<Vec<_>>()
            ));
        }
    }

    /// Whether there is a cluster that the policy means.
    fn fits(&self) -> bool {
        let placement = self.binding.spec.placement.as_ref().unwrap();
        let meant = placement.cluster_affinity.as_ref().unwrap();
        self.clusters
            .iter()
            .any(|cluster| cluster.metadata.deletion_timestamp.is_none() && place::affinity::matches(meant, cluster))
    }

    fn is_settled(&self) -> bool {
        let spec = &self.binding.spec;
        let wanted: Vec<_> =
            spec.clusters.iter().map(|target| (target.name.clone(), target.replicas, target.replicas)).collect();
        self.found() == wanted
            && spec.graceful_eviction_tasks.is_empty()
            && self.works.len() == wanted.len()
            && self.clusters.iter().all(|cluster| cluster.spec.taints.is_empty())
            && self.binding.status.scheduler_observed_generation == self.binding.metadata.generation
    }
}

/// Plays one seed; how often good replicas were taken away, and how many copies were evicted.
fn play(seed: u64, tells: bool) -> (usize, usize) {
    let mut world = faults::world(seed, tells);
    // It begins well, mostly.
    if world.chance.is(80) {
        (0..5).for_each(|_| world.round());
    }
    for _ in 0..3 {
        if world.chance.is(50) {
            world.edit();
        }
        for _ in 0..1 + world.chance.below(4) {
            world.fault();
            (0..world.chance.below(60)).for_each(|_| world.step());
        }
        // Long enough for thresholds to pass.
        for _ in 0..world.chance.below(6) {
            world.round();
        }
    }
    world.heal();
    (world.taken, world.evicted)
}

#[test]
fn no_seed_loses_a_good_copy() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("STOLOS_SEED") {
        play(seed, true);
        return;
    }
    let seeds = number("STOLOS_SEEDS").unwrap_or(10_000);
    let (mut taken, mut evicted) = (0, 0);
    for seed in 0..seeds {
        let (of_taken, of_evicted) = play(seed, false);
        taken += of_taken;
        evicted += of_evicted;
    }
    // A world in which nothing ever moves proves nothing.
    assert!(taken as u64 > seeds / 4 && evicted as u64 > seeds / 5, "{taken} taken, {evicted} evicted");
}
