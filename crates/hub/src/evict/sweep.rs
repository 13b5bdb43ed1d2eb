//! The controllers' decisions over a world that fails in every way, seed by seed: what [`super`], [`crate::place`] and the
//! control loops decide with is called here as the loops call it, between steps that come in any order.
//!
//! After every write to a member that takes good replicas away, enough are left; what is placed is what is wanted; workloads
//! leave one after the other, a Service after its pods; and when nothing fails any more, all ends where the last decision
//! said, and stays there. `STOLOS_SEEDS=N` plays so many seeds, `STOLOS_SEED=S` one of them and tells what happened. That
//! each rule is seen where it is broken is [`rules`]' test.

mod faults;
mod looks;
mod member;
mod rules;
mod world;

use serde_json::json;

use super::application::Failures;
use super::guard;
use crate::label::LEAST_ASKED;
use crate::place;
use faults::{MINE, NAMES};
use member::Asked;
use rules::Rule;
use world::{Answer, Op, Stored, Tally, Views, World, Write};

impl World {
    /// A request arrives, and its answer does or does not.
    fn arrive(&mut self, op: Op, answer: Answer) {
        self.say(|_| format!("{op:?}, {answer:?}"));
        let Op { app: of, cluster, what } = op;
        match what {
            Write::PutWork { replicas, image, revision } => self.put_work(of, cluster, replicas, image, revision),
            Write::RemoveWork { uid } => {
                let revision = self.id();
                if let Some(stored) = self.apps[of].works.get_mut(&cluster).filter(|stored| stored.uid == uid) {
                    stored.work["metadata"]["deletionTimestamp"] = "now".into();
                    stored.revision = revision;
                }
            }
            Write::Create { asked } => self.write((of, cluster), None, Some((asked, true)), None, answer),
            Write::Set { asked, version, views, settles } => {
                self.write((of, cluster), Some(version), Some((asked, settles)), Some(&views), answer);
            }
            Write::Delete { version, views } => self.write((of, cluster), Some(version), None, Some(&views), answer),
        }
    }

    /// A Work is written, as `control::bind` writes it.
    fn put_work(&mut self, of: usize, cluster: String, replicas: i64, image: i64, revision: Option<u64>) {
        let (id, is_member, naive) = (self.id(), self.cluster(&cluster).is_some(), self.is_off(Rule::LeastAsked));
        let app = &mut self.apps[of];
        let manifest = match app.serves {
            true => json!({"apiVersion": "v1", "kind": "Service", "image": image}),
            false => {
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": replicas}, "image": image})
            }
        };
        match (app.works.get_mut(&cluster), revision) {
            (Some(stored), Some(revision)) if stored.revision == revision => {
                let generation = stored.work["metadata"]["generation"].as_i64().unwrap() + 1;
                if guard::asked(&stored.work["spec"]["workload"]["manifests"][0]) != replicas {
                    let least = if naive { replicas } else { guard::least_asked(Some(&stored.work), replicas) };
                    stored.work["metadata"]["annotations"][LEAST_ASKED] = least.to_string().into();
                }
                stored.work["metadata"]["generation"] = generation.into();
                stored.work["spec"]["workload"]["manifests"] = json!([manifest]);
                stored.revision = id;
            }
            (None, None) if is_member => {
                let work = json!({"metadata": {"generation": 1}, "spec": {"workload": {"manifests": [manifest]}}});
                app.works.insert(cluster, Stored { uid: id, revision: id, work, said_at: 0 });
            }
            _ => {}
        }
    }

    /// A request that writes a member's object arrives there.
    fn write(
        &mut self,
        key: (usize, String),
        version: Option<u64>,
        asked: Option<(Asked, bool)>,
        views: Option<&Views>,
        answer: Answer,
    ) {
        let (now, checks) = (self.now, !self.is_off(Rule::Precondition));
        let Some(member) = self.members.get_mut(&key.1).filter(|member| member.reached) else {
            if answer != Answer::Late {
                self.memory.books.remove(&key);
            }
            return;
        };
        let (of, ready, before) = (key.0, member.ready(key.0), member.version);
        let done = member.write(of, version, asked.map(|(asked, _)| asked), checks);
        let (report, after, changed) = (member.report(of, now), member.ready(of), member.version != before);
        if changed {
            member.tell(of, now, &mut self.chance);
        }
        self.tally.late += usize::from(changed && answer == Answer::Late);
        match answer {
            Answer::Late => {}
            Answer::Lost => drop(self.memory.books.remove(&key)),
            Answer::Heard => {
                match asked {
                    Some((asked, true)) if done => drop(self.memory.books.insert(key.clone(), asked)),
                    // A conflict: it is read again.
                    _ => drop(self.memory.books.remove(&key)),
                }
                self.memory.mirror.insert(key.clone(), report);
            }
        }
        if let Some(views) = views {
            self.check(of, &key.1, ready, after, views);
        }
    }

    /// The hub waits no longer for a request that is still on its way.
    fn give_up(&mut self, op: Op) {
        self.say(|_| format!("nobody waits any longer for {op:?}"));
        self.memory.books.remove(&(op.app, op.cluster.clone()));
        // An object that is made when its Work has gone is nobody's, with Karmada as here; it takes nothing away.
        if !matches!(op.what, Write::Create { .. }) {
            self.late.push(op);
        }
    }

    /// What members have said arrives: of each the newest that is known counts.
    fn deliver(&mut self) {
        let now = self.now;
        for (name, member) in self.members.iter_mut().filter(|(_, member)| member.reached) {
            for (app, slot) in member.slots.iter_mut().enumerate() {
                let (due, later): (Vec<_>, Vec<_>) = slot.flow.drain(..).partition(|(at, _)| *at <= now);
                slot.flow = later;
                for (_, report) in due {
                    let key = (app, name.clone());
                    if self.memory.mirror.get(&key).is_none_or(|known| report.version > known.version) {
                        self.memory.mirror.insert(key, report);
                    }
                }
            }
        }
    }

    /// One controller looks at one thing, or time passes.
    fn step(&mut self) {
        let name = NAMES[self.chance.one_of(NAMES.len())];
        let of = self.chance.one_of(self.apps.len());
        match self.chance.below(15) {
            0 | 1 => self.clusters_look(name),
            2 => self.schedule_look(of),
            3 => self.evict_look(of),
            4 | 5 => self.bind_look(of),
            6 | 7 => self.execute_look(of, name),
            8 => self.aggregate_look(of),
            9 | 10 if !self.ops.is_empty() => {
                let at = self.chance.one_of(self.ops.len());
                let op = self.ops.swap_remove(at);
                match self.chance.below(20) {
                    0 | 1 => self.arrive(op, Answer::Lost),
                    2 | 3 => self.give_up(op),
                    _ => self.arrive(op, Answer::Heard),
                }
            }
            11 => {
                let (now, chance) = (self.now, &mut self.chance);
                self.members.values_mut().for_each(|member| member.work(now, chance));
            }
            12 => self.deliver(),
            13 if !self.late.is_empty() => {
                let at = self.chance.one_of(self.late.len());
                let op = self.late.swap_remove(at);
                self.arrive(op, Answer::Late);
            }
            _ => self.now += 200 + self.chance.below(6_000),
        }
    }

    /// Every controller looks at everything once, in order.
    fn round(&mut self) {
        self.now += 5_000;
        let (now, chance) = (self.now, &mut self.chance);
        self.members.values_mut().for_each(|member| member.work(now, chance));
        self.now += 8_000;
        self.deliver();
        for name in NAMES {
            self.clusters_look(name);
        }
        for of in 0..self.apps.len() {
            self.evict_look(of);
            self.schedule_look(of);
            self.bind_look(of);
        }
        self.finish();
        for _ in 0..2 {
            for of in 0..self.apps.len() {
                NAMES.into_iter().for_each(|name| self.execute_look(of, name));
            }
            self.finish();
        }
        (0..self.apps.len()).for_each(|of| self.aggregate_look(of));
    }

    fn finish(&mut self) {
        for op in std::mem::take(&mut self.ops) {
            self.arrive(op, Answer::Heard);
        }
    }

    /// What each member has of a workload.
    fn found(&self, of: usize) -> Vec<(String, i64, i64)> {
        let found = self.members.iter().filter(|(name, _)| self.cluster(name).is_some());
        let object = found.filter_map(|(name, it)| it.slots[of].object.as_ref().map(|object| (name, object)));
        object.map(|(name, object)| (name.clone(), object.replicas, object.ready)).collect()
    }

    /// Nothing fails any more: all that is wanted comes to be, and then nothing changes.
    fn heal(&mut self) {
        self.say(|_| "nothing fails any more".to_owned());
        self.finish();
        for op in std::mem::take(&mut self.late) {
            self.arrive(op, Answer::Late);
        }
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
            if self.violation.is_some() {
                return;
            }
            settled = if self.is_settled() { settled + 1 } else { 0 };
            if settled == 2 {
                return;
            }
        }
        for of in (0..self.apps.len()).filter(|of| !self.is_well(*of)).collect::<Vec<_>>() {
            let app = &self.apps[of];
            let works: Vec<String> = app.works.iter().map(|(name, stored)| format!("{name} {}", stored.work)).collect();
            let what = format!(
                "{of} does not settle: {:?} of {:?}, {:?}, tasks {:?}, works {works:?}",
                self.found(of),
                app.binding.spec.clusters,
                app.wish,
                app.binding.spec.graceful_eviction_tasks,
            );
            self.violated(&what);
        }
    }

    fn is_settled(&self) -> bool {
        self.clusters.iter().all(|cluster| cluster.spec.taints.is_empty())
            && (0..self.apps.len()).all(|of| self.is_well(of))
    }

    /// Whether a cluster is meant by a workload's policy that it has not failed in.
    fn fits_somewhere(&self, of: usize) -> bool {
        let binding = &self.apps[of].binding;
        let failures = Failures::of(binding);
        let meant = binding.spec.placement.as_ref().unwrap().cluster_affinity.as_ref().unwrap();
        let takes = |name: &str| !self.leaves(name) && failures.since(name).is_none();
        let fits = |cluster| place::affinity::matches(meant, cluster) && takes(&cluster.metadata.name);
        self.clusters.iter().any(fits)
    }

    /// Whether a workload is where it is wanted, or no cluster is that the policy means.
    fn is_well(&self, of: usize) -> bool {
        let app = &self.apps[of];
        if app.goes() {
            return app.gone && app.works.is_empty() && self.found(of).is_empty();
        }
        // A Service stays where pods are that have nowhere to go.
        if !self.fits_somewhere(of) || (app.serves && !self.apps[0].goes() && !self.fits_somewhere(0)) {
            return true;
        }
        let binding = &app.binding;
        let wanted: Vec<_> = (binding.spec.clusters.iter())
            .filter_map(|target| self.wanted(of, &target.name).map(|(_, asked)| (target.name.clone(), asked, asked)))
            .collect();
        self.found(of) == wanted
            && wanted.len() == binding.spec.clusters.len()
            && binding.spec.graceful_eviction_tasks.is_empty()
            && self.apps[of].works.len() == wanted.len()
            && binding.status.scheduler_observed_generation == binding.metadata.generation
    }
}

/// Plays one seed, with a rule of the guard broken or with none: what happened, or what should not have.
fn play(seed: u64, tells: bool, off: Option<Rule>) -> Result<Tally, String> {
    let mut world = faults::world(seed, tells, off);
    // It begins well, mostly.
    if world.chance.is(80) {
        (0..5).for_each(|_| world.round());
    }
    for _ in 0..3 {
        if world.chance.is(50) {
            let of = world.chance.one_of(world.apps.len());
            world.edit(of);
        }
        for _ in 0..1 + world.chance.below(4) {
            world.fault();
            (0..world.chance.below(60)).for_each(|_| world.step());
        }
        // Long enough for thresholds to pass.
        for _ in 0..world.chance.below(6) {
            world.round();
        }
        if world.violation.is_some() {
            break;
        }
    }
    if world.violation.is_none() {
        world.heal();
    }
    world.violation.map_or(Ok(world.tally), Err)
}

/// Seed 24,222 of the sweep as it was first: a policy went from all replicas in each cluster to divided ones while reports
/// and answers were lost. Each copy has too many, its Work asks for few, and each waits for what the others last said.
#[test]
fn copies_that_are_all_too_many_do_not_wait_for_each_other() {
    let mut world = faults::of_three();
    for (name, asked, least) in [("ap", 4, 3), ("eu", 4, 4), ("me", 5, 3)] {
        world.put_copy(name, (asked, 9), 3);
        let stored = world.apps[0].works.get_mut(name).unwrap();
        stored.work["metadata"]["annotations"] = json!({LEAST_ASKED: least.to_string()});
    }
    world.end_work("eu");
    world.heal();
    assert_eq!(world.violation, None);
    let at = |name: &str, replicas| (name.to_owned(), replicas, replicas);
    assert_eq!(world.found(0), [at("ap", 4), at("me", 5)]);
}

#[test]
fn no_seed_loses_a_good_copy() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("STOLOS_SEED") {
        play(seed, true, None).unwrap_or_else(|violation| panic!("{violation}"));
        return;
    }
    let seeds = number("STOLOS_SEEDS").unwrap_or(10_000);
    let mut all = Tally::default();
    for seed in 0..seeds {
        let tally = play(seed, false, None).unwrap_or_else(|violation| panic!("{violation}"));
        all.taken += tally.taken;
        all.evicted += tally.evicted;
        all.late += tally.late;
        all.waits += tally.waits;
        all.failed += tally.failed;
        all.gone += tally.gone;
    }
    // A world in which nothing ever moves proves nothing.
    let seeds = usize::try_from(seeds).unwrap();
    let moves = all.taken > seeds / 4 && all.evicted > seeds / 5 && all.late > seeds / 50 && all.waits > seeds;
    let moves = moves && all.failed > seeds / 50 && all.gone > seeds / 5;
    assert!(moves || seeds < 1_000, "{all:?}");
}
