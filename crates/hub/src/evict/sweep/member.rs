//! Members of the sweep's world as they really are. No thread, no socket, no clock.

use serde_json::{Value, json};

use super::world::Chance;

/// Which Work an object was written for last (its label), and which generation of it (its annotation).
pub(super) type Mark = (u64, i64);

/// What a Work asks of an object.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Asked {
    pub(super) replicas: i64,
    pub(super) image: i64,
    pub(super) mark: Mark,
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
    pub(super) image: i64,
    pub(super) mark: Mark,
}

impl Object {
    pub(super) fn status(&self) -> Value {
        let observed = if self.observed { self.generation } else { self.generation - 1 };
        json!({"generation": self.generation, "observedGeneration": observed, "availableReplicas": self.ready})
    }

    pub(super) fn health(&self) -> &'static str {
        if self.observed && self.ready >= self.replicas { "Healthy" } else { "Unhealthy" }
    }

    /// How many may be ready.
    pub(super) fn good(&self) -> i64 {
        if self.observed { self.ready } else { self.replicas.max(self.ready) }
    }

    pub(super) fn is_as(&self, asked: &Asked) -> bool {
        (self.replicas, self.image, self.mark) == (asked.replicas, asked.image, asked.mark)
    }
}

/// What a member says of an object: as it was at a time.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) version: u64,
    pub(super) at: i64,
    pub(super) object: Option<Object>,
}

/// What a member has of one workload.
#[derive(Default)]
pub(super) struct Slot {
    /// It has no replicas: it is there or not.
    pub(super) plain: bool,
    pub(super) object: Option<Object>,
    /// What is on its way to the hub, and when it arrives.
    pub(super) flow: Vec<(i64, Report)>,
    /// Good replicas that faults have taken, and when.
    pub(super) losses: Vec<(i64, i64)>,
}

/// A member as it is.
pub(super) struct Member {
    /// Whether the hub reaches it.
    pub(super) reached: bool,
    /// Whether its pods run.
    pub(super) alive: bool,
    /// Of each workload.
    pub(super) slots: Vec<Slot>,
    pub(super) version: u64,
    /// Until when new pods do not become ready.
    pub(super) stuck: i64,
}

impl Member {
    /// Without anything of these workloads, of which some are plain.
    pub(super) fn new(plain: &[bool], version: u64) -> Self {
        let slots = plain.iter().map(|plain| Slot { plain: *plain, ..Slot::default() }).collect();
        Self { reached: true, alive: true, slots, version, stuck: 0 }
    }

    pub(super) fn ready(&self, app: usize) -> i64 {
        self.slots[app].object.as_ref().filter(|_| self.alive).map_or(0, |object| object.ready)
    }

    /// Takes good replicas away, as faults do.
    pub(super) fn lose(&mut self, app: usize, count: i64, now: i64) {
        let version = self.version + 1;
        let slot = &mut self.slots[app];
        if let Some(object) = &mut slot.object
            && object.ready > 0
        {
            let lost = count.min(object.ready);
            slot.losses.push((now, lost));
            if !slot.plain {
                object.ready -= lost;
                object.version = version;
                self.version = version;
            }
        }
    }

    /// What faults have taken since.
    pub(super) fn lost_since(&self, app: usize, then: i64) -> i64 {
        self.slots[app].losses.iter().filter(|(at, _)| *at >= then).map(|(_, count)| count).sum()
    }

    pub(super) fn report(&self, app: usize, now: i64) -> Report {
        Report { version: self.version, at: now, object: self.slots[app].object.clone() }
    }

    /// Tells the hub how something is: late, out of order, twice.
    pub(super) fn tell(&mut self, app: usize, now: i64, chance: &mut Chance) {
        let report = self.report(app, now);
        for _ in 0..1 + i64::from(chance.is(15)) {
            self.slots[app].flow.push((now + chance.below(8_000), report.clone()));
        }
    }

    /// Its own controllers work for a moment.
    pub(super) fn work(&mut self, now: i64, chance: &mut Chance) {
        if !self.alive {
            return;
        }
        let stuck = self.stuck > now;
        for app in 0..self.slots.len() {
            let version = self.version + 1;
            let Slot { plain: false, object: Some(object), .. } = &mut self.slots[app] else { continue };
            let before = object.clone();
            object.observed = true;
            if object.ready < object.replicas && !stuck {
                object.ready += 1 + chance.below(object.replicas - object.ready);
            }
            if *object != before {
                object.version = version;
                self.version = version;
                self.tell(app, now, chance);
            }
        }
    }

    /// A write arrives: makes, changes or deletes an object that is still at `version`; whether it was.
    ///
    /// As Kubernetes' API server does, what changes nothing changes no revision, and annotations of a Deployment count as its
    /// generation's.
    pub(super) fn write(&mut self, app: usize, version: Option<u64>, asked: Option<Asked>, checks: bool) -> bool {
        let Slot { plain, object, .. } = &mut self.slots[app];
        let plain = *plain;
        let found = object.as_ref().map(|object| object.version);
        if found != version && (checks || found.is_none() || version.is_none()) {
            return false;
        }
        let next = self.version + 1;
        let after = match (object.as_ref(), asked) {
            (_, None) => None,
            (Some(object), Some(asked)) if object.is_as(&asked) => return true,
            (None, Some(Asked { replicas, image, mark })) => {
                let ready = if plain { replicas } else { 0 };
                Some(Object { version: next, generation: 1, observed: plain, replicas, ready, image, mark })
            }
            (Some(object), Some(Asked { replicas, image, mark })) => Some(Object {
                version: next,
                generation: object.generation + 1,
                observed: plain,
                replicas,
                ready: object.ready.min(replicas),
                image,
                mark,
            }),
        };
        *object = after;
        self.version = next;
        true
    }
}
