//! The control loops' looks, each as the loop does it, with the decisions themselves.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::member::{Asked, Member};
use super::rules::Rule;
use super::world::{App, Op, Stored, Views, World, Write};
use crate::divide::Strategy;
use crate::evict::application::{self, Failures};
use crate::evict::floor::{By, Floor};
use crate::evict::guard::{self, Action, Copy, Ending, Facts, Parting, Place};
use crate::evict::health::{self, Seen};
use crate::evict::task::{self, Change, News};
use crate::evict::{rate, taint};
use crate::label::{APPLIED_PLACEMENT, FAILED_IN, SETTLED};
use crate::model::{AggregatedStatusItem, Binding, Cluster, Condition, Health, PurgeMode, SchedulingType};
use crate::place::{self, Outcome};

impl World {
    /// As `control::clusters` does: asks a member, believes it or not, taints it.
    pub(super) fn clusters_look(&mut self, name: &str) {
        let seen = match self.members.get(name) {
            Some(member) if member.reached => Seen::Ready,
            _ if name < "b" => Seen::Silent,
            _ => Seen::NotReady,
        };
        if seen == Seen::Ready {
            self.memory.answered.insert(name.to_owned(), self.now);
        }
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
        if cluster.metadata.deletion_timestamp.is_some() {
            self.leave(at, name);
        }
        if believed {
            self.say(|_| format!("{name} is believed to be {seen:?}"));
        }
    }

    /// A cluster leaves the hub: its Works first.
    fn leave(&mut self, at: usize, name: &str) {
        let mut left = false;
        for stored in self.apps.iter_mut().filter_map(|app| app.works.get_mut(name)) {
            stored.work["metadata"]["deletionTimestamp"] = "now".into();
            left = true;
        }
        if left {
            return;
        }
        self.clusters.remove(at);
        self.memory.doubts.remove(name);
        // What is left in it is somebody else's now.
        let plain: Vec<bool> = self.apps.iter().map(|app| app.serves).collect();
        let version = self.members.get(name).map_or(1, |member| member.version + 1);
        self.members.insert(name.to_owned(), Member::new(&plain, version));
        self.memory.mirror.retain(|(_, of), _| of != name);
        self.memory.books.retain(|(_, of), _| of != name);
    }

    /// As `control::schedule` does.
    pub(super) fn schedule_look(&mut self, of: usize) {
        let forgets = self.is_off(Rule::Failed);
        let app = &mut self.apps[of];
        if app.goes() {
            return;
        }
        let clusters = &self.clusters;
        let going = |name: &str| {
            let of = clusters.iter().find(|cluster| cluster.metadata.name == name);
            of.is_none_or(|cluster| cluster.metadata.deletion_timestamp.is_some())
        };
        if place::due(&app.binding, &going).is_none() {
            let scheduled = app.binding.metadata.annotations.contains_key(APPLIED_PLACEMENT);
            if scheduled {
                app.binding.status.scheduler_observed_generation = app.binding.metadata.generation;
            }
            return;
        }
        let candidates: Vec<_> =
            clusters.iter().filter(|cluster| cluster.metadata.deletion_timestamp.is_none()).collect();
        let forgetful = forgets.then(|| {
            let mut binding = app.binding.clone();
            binding.metadata.annotations.remove(FAILED_IN);
            binding
        });
        let of_binding = forgetful.as_ref().unwrap_or(&app.binding);
        let decision = place::place(of_binding, &candidates, &|_| 100, place::Settings::default());
        let Outcome::Placed { clusters, .. } = decision.outcome else { return };
        let placed: i64 = clusters.iter().map(|target| target.replicas).sum();
        let divided = !matches!(decision.strategy, Strategy::Duplicated | Strategy::Unnumbered);
        let wrong = divided && placed != app.wish.replicas || clusters.is_empty();
        let applied = serde_json::to_string(&app.binding.spec.placement).unwrap();
        let failures = Failures::of(&app.binding);
        let has = |name: &str| app.binding.spec.clusters.iter().any(|target| target.name == name);
        let failed = clusters.iter().find(|new| !has(&new.name) && failures.since(&new.name).is_some());
        let failed = failed.map(|new| new.name.clone());
        let moved = app.binding.spec.clusters != clusters;
        if moved {
            app.binding.spec.clusters.clone_from(&clusters);
            app.binding.metadata.generation += 1;
        }
        app.binding.metadata.annotations.insert(APPLIED_PLACEMENT.to_owned(), applied);
        app.binding.status.scheduler_observed_generation = app.binding.metadata.generation;
        if moved {
            self.say(|_| format!("placed {of}: {clusters:?}"));
        }
        if let Some(name) = failed {
            self.violated(&format!("{of} goes to {name} again, where it has failed"));
        }
        if wrong {
            self.violated(&format!("placed {of}: {clusters:?} for {:?}", self.apps[of].wish));
        }
    }

    /// As `control::evict` does.
    pub(super) fn evict_look(&mut self, of: usize) {
        if !self.leave_clusters(of) {
            self.memory.turns.give_up(&of);
        }
    }

    /// Whether a workload waits for its turn.
    fn leave_clusters(&mut self, of: usize) -> bool {
        let clock = self.clock();
        let app = &self.apps[of];
        if app.goes() {
            self.memory.watches.remove(&of);
            return false;
        }
        let has_work = |cluster: &str| app.works.contains_key(cluster);
        if let Some(change) = task::assess(&app.binding, &self.clusters, &has_work, clock, &self.settings)
            && !change.news.is_empty()
        {
            self.change(of, change);
            return false;
        }
        if let Some(change) = task::evict(&app.binding, &self.clusters, clock, &self.settings)
            && !change.news.is_empty()
        {
            let may_leave = self.may_leave(of);
            if may_leave {
                self.change(of, change);
            }
            return !may_leave;
        }
        self.failover_look(of)
    }

    /// As `control::failover` does; whether a workload waits for its turn.
    fn failover_look(&mut self, of: usize) -> bool {
        let clock = self.clock();
        let App { binding, wish, .. } = &self.apps[of];
        let known = Failures::of(binding);
        if wish.failover.is_none() && known == Failures::default() {
            self.memory.watches.remove(&of);
            return false;
        }
        let manifest =
            |name: &str| self.cluster(name).map(|_| format!("{} {:?}", wish.image, wish.overrides.get(name)));
        let mut failures = known.clone();
        failures.look(binding, &manifest, clock);
        if failures != known {
            self.remember(of, &failures);
            return false;
        }
        let well = |name: &str| self.cluster(name).filter(|cluster| self.hears(cluster)).and_then(|_| manifest(name));
        let mut watch = self.memory.watches.get(&of).cloned().unwrap_or_default();
        let (due, _) = watch.look(binding, &well, clock);
        let staying: Vec<&Cluster> =
            self.clusters.iter().filter(|cluster| cluster.metadata.deletion_timestamp.is_none()).collect();
        let place =
            |binding: &Binding| match place::place(binding, &staying, &|_| 100, place::Settings::default()).outcome {
                Outcome::Placed { clusters, .. } => Ok(clusters),
                other => Err(other.message().to_owned()),
            };
        let left = due.iter().find_map(|cluster| application::leave(binding, &watch, cluster, &place, clock).ok());
        self.memory.watches.insert(of, watch);
        let Some((change, failures)) = left else { return false };
        if !self.may_leave(of) {
            return true;
        }
        self.tally.failed += 1;
        self.remember(of, &failures);
        self.change(of, change);
        false
    }

    /// Where a workload has failed is written onto its binding.
    fn remember(&mut self, of: usize, failures: &Failures) {
        let annotations = &mut self.apps[of].binding.metadata.annotations;
        match failures.written() {
            Some(written) => annotations.insert(FAILED_IN.to_owned(), written),
            None => annotations.remove(FAILED_IN),
        };
    }

    /// Whether it is a workload's turn to leave a cluster.
    fn may_leave(&mut self, of: usize) -> bool {
        let per_second = match self.is_off(Rule::Slower) {
            true => self.settings.eviction_rate,
            false => rate::per_second(&self.clusters, &self.settings),
        };
        let elapsed = Duration::from_millis((self.now - self.memory.began).unsigned_abs());
        if self.memory.turns.ask(&of, 0, per_second, elapsed).is_err() && !self.is_off(Rule::Rate) {
            return false;
        }
        let last = self.memory.sent_away.replace(self.now);
        let staying = || self.clusters.iter().filter(|cluster| cluster.metadata.deletion_timestamp.is_none());
        let lost = staying().filter(|it| !it.status.conditions.is_empty() && !it.status.ready()).count();
        let least = match lost * 100 > staying().count() * 55 {
            true => 1_000.0 / self.settings.secondary_eviction_rate,
            false => 1_000.0 / self.settings.eviction_rate,
        };
        if last.is_some_and(|last| ((self.now - last) as f64) < least) {
            self.violated(&format!("{of} leaves too soon after another one"));
        }
        true
    }

    fn change(&mut self, of: usize, change: Change) {
        let Change { clusters, tasks, news, .. } = change;
        self.tally.evicted += news.iter().filter(|(_, news)| *news == News::Evicted).count();
        let binding = &mut self.apps[of].binding;
        binding.spec.clusters = clusters;
        binding.spec.graceful_eviction_tasks = tasks;
        binding.metadata.generation += 1;
        self.say(|it| format!("{of} {news:?}, now {:?}", it.apps[of].binding.spec.clusters));
    }

    /// What a workload is to have in a cluster: its share, and what is asked for there with all overrides.
    pub(super) fn wanted(&self, of: usize, name: &str) -> Option<(i64, i64)> {
        let app = &self.apps[of];
        let target = app.binding.spec.clusters.iter().find(|target| target.name == name).filter(|_| !self.leaves(name));
        let asked = |share| if app.serves { 1 } else { app.wish.overrides.get(name).copied().unwrap_or(share) };
        target.map(|target| (target.replicas, asked(target.replicas)))
    }

    /// Whether pods of the first workload are still in a cluster and are to leave it.
    fn pods_leave(&self, name: &str) -> bool {
        let pods = &self.apps[0];
        pods.works.contains_key(name) && pods.binding.spec.clusters.iter().all(|target| target.name != name)
    }

    fn is_divided(&self, of: usize) -> bool {
        let placement = self.apps[of].binding.spec.placement.as_ref();
        let scheduling = placement.and_then(|placement| placement.replica_scheduling.as_ref());
        scheduling.is_some_and(|scheduling| scheduling.scheduling == SchedulingType::Divided)
    }

    /// Whether what a member has may be counted on.
    fn hears(&self, cluster: &Cluster) -> bool {
        let name = cluster.metadata.name.as_str();
        let answered = self.memory.answered.get(name).map(|at| (self.now - at).unsigned_abs());
        cluster.status.ready()
            && !self.memory.doubts.contains_key(name)
            && (self.is_off(Rule::Unasked) || health::heard(answered.map(Duration::from_millis), &self.settings))
    }

    /// As `control::copies` does.
    pub(super) fn copies(&self, of: usize) -> (Vec<Copy>, Floor) {
        let app = &self.apps[of];
        let works: Vec<Option<Cow<'_, Value>>> =
            self.clusters.iter().map(|it| app.works.get(&it.metadata.name).map(|it| self.as_believed(it))).collect();
        let left = app.left_behind();
        let places: Vec<Place<'_>> = (self.clusters.iter().zip(&works))
            .map(|(cluster, work)| {
                let name = cluster.metadata.name.as_str();
                let wanted = self.wanted(of, name);
                let heard = self.hears(cluster);
                let left = left.get(name).copied().filter(|_| !self.leaves(name));
                let needed = app.serves && wanted.is_none() && self.pods_leave(name);
                Place {
                    cluster: name,
                    wanted,
                    work: work.as_deref(),
                    ready: cluster.status.ready(),
                    heard: heard || self.is_off(Rule::Silence),
                    needed: needed && !self.is_off(Rule::Needed),
                    left,
                }
            })
            .filter(|place| place.wanted.is_some() || place.work.is_some() || place.left.is_some())
            .collect();
        let spec = &app.binding.spec;
        let facts = Facts {
            replicas: spec.replicas,
            divided: self.is_divided(of),
            numbered: !app.serves,
            tasks: (spec.graceful_eviction_tasks.iter())
                .map(|task| (task.from_cluster.as_str(), task.purge_mode == Some(PurgeMode::Directly)))
                .collect(),
        };
        let (copies, wanted) = guard::copies(&facts, &places);
        let mut floor = match app.wish.floor {
            Some(said) => Floor { least: said.clamp(1.min(wanted), wanted), by: By::Annotation },
            None => Floor::of_all(wanted),
        };
        floor.least -= i64::from(self.is_off(Rule::Floor));
        (copies, floor)
    }

    /// A Work as the guard sees it, or as it would see it with one of its rules broken.
    fn as_believed<'a>(&self, stored: &'a Stored) -> Cow<'a, Value> {
        let mut work = Cow::Borrowed(&stored.work);
        if self.is_off(Rule::Ending) && stored.is_leaving() {
            work.to_mut()["metadata"]["deletionTimestamp"] = Value::Null;
        }
        if self.is_off(Rule::Generation) && work["status"]["conditions"].is_array() {
            let generation = work["metadata"]["generation"].clone();
            for condition in work.to_mut()["status"]["conditions"].as_array_mut().unwrap() {
                condition["observedGeneration"] = generation.clone();
            }
        }
        work
    }

    /// As `control::bind` does; what it writes is on its way then.
    pub(super) fn bind_look(&mut self, of: usize) {
        // Of one thing one look at a time.
        let busy = self.ops.iter().any(|op| op.app == of && op.is_work());
        if busy || self.apps[of].gone {
            return;
        }
        if self.apps[of].goes() {
            self.part(of);
            return;
        }
        if !self.apps[of].binding.metadata.annotations.contains_key(APPLIED_PLACEMENT) {
            return;
        }
        self.forget_left_behind(of);
        let (copies, floor) = self.copies(of);
        let image = self.apps[of].wish.image;
        for step in guard::plan(&copies, &floor) {
            self.tally.waits += usize::from(step.wait.is_some());
            let cluster = step.cluster;
            let stored = self.apps[of].works.get(&cluster);
            let copy = copies.iter().find(|copy| copy.cluster == cluster).unwrap();
            let what = match (step.action, stored) {
                (_, Some(stored)) if stored.is_leaving() => continue,
                (Action::Put(replicas), Some(stored)) if copy.held == Some(replicas) && stored.image() == image => {
                    continue;
                }
                (Action::Put(replicas), stored) => {
                    Write::PutWork { replicas, image, revision: stored.map(|stored| stored.revision) }
                }
                (Action::Remove, Some(stored)) => Write::RemoveWork { uid: stored.uid },
                _ => continue,
            };
            if matches!(what, Write::RemoveWork { .. })
                && self.apps[of].serves
                && !copy.purged
                && self.pods_leave(&cluster)
            {
                self.violated(&format!("the Service leaves {cluster} before its pods"));
            }
            self.ops.push(Op { app: of, cluster, what });
        }
    }

    /// A binding goes when its Works are gone, and what they have let go of.
    fn part(&mut self, of: usize) {
        let app = &self.apps[of];
        let left = if self.is_off(Rule::Parting) { BTreeMap::new() } else { app.left_behind() };
        let mut waits = false;
        match guard::parting(!app.works.is_empty(), &left) {
            Parting::Works => {
                waits = true;
                for (cluster, stored) in app.works.iter().filter(|(_, stored)| !stored.is_leaving()) {
                    let what = Write::RemoveWork { uid: stored.uid };
                    self.ops.push(Op { app: of, cluster: cluster.clone(), what });
                }
            }
            Parting::LeftBehind(clusters) => {
                for cluster in clusters {
                    waits |= !self.take_left_behind(of, &cluster);
                }
            }
            Parting::Nothing => {}
        }
        if waits {
            return;
        }
        let has = |name: &String| self.members[name].slots[of].object.is_some();
        let names: Vec<String> = self.clusters.iter().map(|cluster| cluster.metadata.name.clone()).collect();
        if let Some(name) = names.iter().find(|name| !self.leaves(name) && has(name)) {
            self.violated(&format!("{of} is gone, and {name} still has it"));
        }
        self.apps[of].gone = true;
        self.tally.gone += 1;
        self.memory.books.retain(|(app, _), _| *app != of);
        // What was sent for a binding that has gone is not played: its Works bear its identity, and the next one has another.
        self.late.retain(|op| op.app != of || !op.is_work());
        self.say(|_| format!("{of} is gone"));
    }

    /// Takes back what a Work has let go of; whether it has gone.
    fn take_left_behind(&mut self, of: usize, name: &str) -> bool {
        let ready = self.cluster(name).is_some_and(|cluster| cluster.status.ready());
        let busy = self.ops.iter().any(|op| op.app == of && op.cluster == name);
        match guard::ending(self.leaves(name), false, ready) {
            Ending::LetGo => true,
            Ending::TakeBack if !busy && self.members[name].reached => match &self.members[name].slots[of].object {
                None => true,
                Some(live) => {
                    let views = Views { floor: 0, free: true, counted: Vec::new() };
                    let what = Write::Delete { version: live.version, views };
                    self.ops.push(Op { app: of, cluster: name.to_owned(), what });
                    false
                }
            },
            _ => false,
        }
    }

    /// What another Work has taken over is no longer left behind, nor what is in a cluster that is not the hub's.
    fn forget_left_behind(&mut self, of: usize) {
        let mut left = self.apps[of].left_behind();
        left.retain(|name, _| self.apps[of].works.get(name).is_none_or(Stored::is_leaving) && !self.leaves(name));
        self.apps[of].leave_behind(&left);
    }

    /// Whether a member has answered so lately that what it has lost since may be unknown.
    fn is_fresh(&self, name: &str) -> bool {
        let patience = self.settings.status_update_frequency + Duration::from_secs(5);
        let at = self.memory.answered.get(name);
        at.is_some_and(|at| Duration::from_millis((self.now - at).unsigned_abs()) <= patience)
    }

    /// What a decision to make a member's object smaller is made from.
    fn views(&self, of: usize, copies: &[Copy], cluster: &str, floor: &Floor) -> Views {
        let app = &self.apps[of];
        let purged = copies.iter().any(|copy| copy.cluster == cluster && copy.purged);
        let heard = |copy: &&Copy| copy.cluster != cluster && self.is_fresh(&copy.cluster);
        let counted = copies.iter().filter(heard).filter_map(|copy| {
            let counted = guard::counted(std::slice::from_ref(copy), "");
            let at = app.works.get(&copy.cluster)?.said_at;
            (counted > 0).then(|| (copy.cluster.clone(), counted, at))
        });
        // What people want is asked of them, not of the guard.
        let targets = &app.binding.spec.clusters;
        let sum: i64 = targets.iter().filter_map(|target| self.wanted(of, &target.name)).map(|(_, asked)| asked).sum();
        let shares = || targets.iter().filter_map(|target| self.wanted(of, &target.name)).map(|(share, _)| share);
        let placed = if self.is_divided(of) { shares().sum() } else { shares().max().unwrap_or(0) };
        let wanted = match app.serves {
            true => 1,
            // Overrides may want less than was divided.
            false if placed >= app.wish.replicas => app.wish.replicas.min(sum),
            false => app.wish.replicas,
        };
        let least = app.wish.floor.map_or(wanted, |said| said.clamp(1.min(wanted), wanted));
        // What has no replicas goes with its cluster.
        let free = app.goes() || (purged && !floor.is_said()) || (app.serves && self.leaves(cluster));
        Views { floor: least, free, counted: counted.collect() }
    }

    /// As `control::execute` does.
    pub(super) fn execute_look(&mut self, of: usize, name: &str) {
        if self.ops.iter().any(|op| op.app == of && op.cluster == name && !op.is_work()) {
            return;
        }
        let key = (of, name.to_owned());
        let Some(stored) = self.apps[of].works.get(name) else { return };
        let reached = self.members.get(name).is_some_and(|member| member.reached);
        let ready = self.cluster(name).is_some_and(|cluster| cluster.status.ready());
        let generation = stored.work["metadata"]["generation"].as_i64().unwrap();
        let mark = (stored.uid, if self.is_off(Rule::Mark) { 0 } else { generation });
        let replicas = guard::asked(&stored.work["spec"]["workload"]["manifests"][0]);
        let asked = Asked { replicas, image: stored.image(), mark };
        if stored.is_leaving() {
            self.end(of, name, ready, reached);
            return;
        }
        if !ready || !reached {
            return;
        }
        let Some(report) = self.memory.mirror.get(&key) else { return };
        let at = report.at;
        let cluster = name.to_owned();
        let Some(live) = report.object.clone() else {
            self.ops.push(Op { app: of, cluster, what: Write::Create { asked } });
            return;
        };
        let said = json!([{"status": live.status(), "health": live.health()}]);
        if live.is_as(&asked) && self.memory.books.get(&key) == Some(&asked) {
            let applied = json!({"type": "Applied", "status": "True", "observedGeneration": generation});
            self.tell(&key, json!({"conditions": [applied], "manifestStatuses": said}), at);
            return;
        }
        let (copies, floor) = self.copies(of);
        if asked.replicas < live.replicas
            && !self.apps[of].goes()
            && !self.is_off(Rule::LastLook)
            && guard::last_look(&copies, name, live.good(), live.replicas, asked.replicas, &floor).is_err()
        {
            // All of it but what would take too much away.
            let held = Asked { replicas: live.replicas, ..asked };
            if live.is_as(&held) {
                let before = &self.apps[of].works[name].work["status"]["conditions"];
                let applied = before.as_array().into_iter().flatten().filter(|it| it["type"] != SETTLED).cloned();
                let waits = json!({"type": SETTLED, "status": "False", "observedGeneration": generation});
                let conditions: Vec<Value> = applied.chain([waits]).collect();
                self.tell(&key, json!({"conditions": conditions, "manifestStatuses": said}), at);
            } else {
                let views = self.views(of, &copies, name, &floor);
                let what = Write::Set { asked: held, version: live.version, views, settles: false };
                self.ops.push(Op { app: of, cluster, what });
            }
            return;
        }
        let views = self.views(of, &copies, name, &floor);
        let what = Write::Set { asked, version: live.version, views, settles: true };
        self.ops.push(Op { app: of, cluster, what });
    }

    /// A Work says how its member's object was at a time.
    fn tell(&mut self, key: &(usize, String), status: Value, at: i64) {
        let revision = self.id();
        let Some(stored) = self.apps[key.0].works.get_mut(&key.1) else { return };
        if stored.work["status"] != status {
            stored.work["status"] = status;
            stored.revision = revision;
        }
        stored.said_at = at;
    }

    /// A Work goes: what it brought goes before it, or is left behind.
    fn end(&mut self, of: usize, name: &str, ready: bool, reached: bool) {
        let goes = self.apps[of].goes();
        match guard::ending(self.leaves(name), !goes && self.wanted(of, name).is_some(), ready) {
            Ending::LetGo => {
                let (leaves, forgets) = (self.leaves(name), self.is_off(Rule::LeftBehind));
                let app = &mut self.apps[of];
                let Some(stored) = app.works.remove(name) else { return };
                if !leaves && !forgets {
                    let asked = guard::asked(&stored.work["spec"]["workload"]["manifests"][0]);
                    let mut left = app.left_behind();
                    left.insert(name.to_owned(), asked);
                    app.leave_behind(&left);
                }
            }
            Ending::TakeBack if reached => match &self.members[name].slots[of].object {
                None => {
                    let app = &mut self.apps[of];
                    app.works.remove(name);
                    let mut left = app.left_behind();
                    left.remove(name);
                    app.leave_behind(&left);
                }
                Some(live) => {
                    let (copies, floor) = self.copies(of);
                    let free = goes || (self.apps[of].serves && self.leaves(name)) || self.is_off(Rule::LastLook);
                    if free || guard::last_look(&copies, name, live.good(), live.replicas, 0, &floor).is_ok() {
                        let views = self.views(of, &copies, name, &floor);
                        let what = Write::Delete { version: live.version, views };
                        self.memory.books.remove(&(of, name.to_owned()));
                        self.ops.push(Op { app: of, cluster: name.to_owned(), what });
                    }
                }
            },
            _ => {}
        }
    }

    /// As `control::aggregate` does.
    pub(super) fn aggregate_look(&mut self, of: usize) {
        let app = &mut self.apps[of];
        let items = app.binding.spec.clusters.iter().filter_map(|target| {
            let status = &app.works.get(&target.name)?.work["status"];
            let applied = status["conditions"].as_array().into_iter().flatten().find(|it| it["type"] == "Applied");
            Some(AggregatedStatusItem {
                cluster_name: target.name.clone(),
                status: None,
                applied: applied.is_some_and(|applied| applied["status"] == "True"),
                applied_message: String::new(),
                health: match status["manifestStatuses"][0]["health"].as_str() {
                    Some("Healthy") => Some(Health::Healthy),
                    Some("Unhealthy") => Some(Health::Unhealthy),
                    _ => None,
                },
            })
        });
        app.binding.status.aggregated_status = items.collect();
    }
}
