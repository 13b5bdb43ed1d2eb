//! What stands before every write that makes something smaller: a Work that goes, or one that asks for fewer replicas.
//!
//! A hub knows of a member what it last said, and of a silent one nothing. So of each copy two numbers are known: how many
//! replicas are good at least, and at most. What is to stay is counted by the first, what would be lost by the second.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_k8s::meta;

use super::floor::{By, Floor};
use crate::interpret;
use crate::label::{LEAST_ASKED, SETTLED};

/// Why something waits that would leave too few good ones, in one word.
pub const REPLACEMENT_NOT_READY: &str = "ReplacementNotReady";

/// What one cluster has of a workload and is to have. What has no replicas counts as one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// The cluster.
    pub cluster: String,
    /// How many are wanted there; nothing: no copy at all.
    pub wanted: Option<i64>,
    /// How many its Work asks for; nothing: it has none.
    pub held: Option<i64>,
    /// How many are known to be good.
    pub least: i64,
    /// How many may be good.
    pub most: i64,
    /// Whether the member is well and answers: only then is what it has counted on.
    pub heard: bool,
    /// Whether the store says that the member is well: as long as it does, the end of what it has is waited for.
    pub ready: bool,
    /// An eviction task keeps it for now.
    pub leaving: bool,
    /// The policy wants it gone first (`purgeMode: Directly`).
    pub purged: bool,
    /// How many a Work asked for that has let go of it; nothing: none has.
    pub left: Option<i64>,
}

/// What is to be done with one cluster's Work now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The cluster.
    pub cluster: String,
    /// What.
    pub action: Action,
    /// Why it is not yet as wanted.
    pub wait: Option<Wait>,
}

/// What is done with a Work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It asks for so many.
    Put(i64),
    /// It goes.
    Remove,
    /// Nothing.
    Leave,
}

/// Why something does not become smaller yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Wait {
    /// Too few would be good without it.
    Floor {
        /// The cluster that keeps what it has.
        cluster: String,
        /// How many it keeps.
        keeps: i64,
        /// How many it is to have.
        wanted: i64,
        /// How many are good elsewhere.
        elsewhere: i64,
        /// How many must be.
        floor: Floor,
    },
    /// Its member does not answer: what would be taken away there is taken away when it is back, whatever is good then.
    Silent {
        /// The cluster that keeps what it has.
        cluster: String,
        /// How many it keeps.
        keeps: i64,
    },
    /// The old copy is to be gone first (`purgeMode: Directly`), and is not yet.
    Purge {
        /// The cluster that gets nothing more until then.
        cluster: String,
        /// The cluster that has the old copy.
        from: String,
    },
}

impl Wait {
    /// Why in one word, for a condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Floor { .. } => REPLACEMENT_NOT_READY,
            Self::Silent { .. } => "ClusterNotReady",
            Self::Purge { .. } => "OldCopyNotGone",
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Floor { cluster, keeps, wanted, elsewhere, floor } => {
                write!(f, "{cluster} keeps {keeps} until {wanted} are enough: {elsewhere} are ready elsewhere, and ")?;
                match &floor.by {
                    By::Default => write!(f, "all {} stay ready while they move", floor.least),
                    By::Annotation => write!(f, "stolos.dev/min-available wants {}", floor.least),
                    By::Budget(name) => write!(f, "the disruption budget {name} wants {}", floor.least),
                }
            }
            Self::Silent { cluster, keeps } => {
                write!(f, "{cluster} keeps {keeps} while it is not ready; what is too much goes when it is back")
            }
            Self::Purge { cluster, from } => {
                write!(f, "{cluster} gets nothing more until the copy in {from} is gone: purgeMode is Directly")
            }
        }
    }
}

/// What a binding says about its copies.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// How many replicas it has in all.
    pub replicas: i64,
    /// Whether they are divided; otherwise each cluster has all.
    pub divided: bool,
    /// Whether its kind has replicas.
    pub numbered: bool,
    /// The clusters of its eviction tasks, and whether the copy goes before the others are there.
    pub tasks: Vec<(&'a str, bool)>,
}

/// What there is in one cluster, and is to be.
#[derive(Clone, Debug)]
pub struct Place<'a> {
    /// The cluster.
    pub cluster: &'a str,
    /// What is to be there: its share, and what its manifest asks for when all overrides are in it.
    pub wanted: Option<(i64, i64)>,
    /// Its Work.
    pub work: Option<&'a Value>,
    /// Whether the member is well and answers.
    pub heard: bool,
    /// Whether the store says that the member is well.
    pub ready: bool,
    /// Something that is leaving needs it there.
    pub needed: bool,
    /// How many a Work asked for that has let go of it ([`left_behind`]).
    pub left: Option<i64>,
}

/// The copies of a binding, and how many good replicas are wanted in all.
#[must_use]
pub fn copies(facts: &Facts<'_>, places: &[Place<'_>]) -> (Vec<Copy>, i64) {
    let has_task = |cluster: &str, direct| facts.tasks.contains(&(cluster, direct));
    let copies = places.iter().map(|place| {
        let Place { cluster, wanted, work, heard, ready, needed, left } = place;
        let held = work.map(|work| asked(&work["spec"]["workload"]["manifests"][0]));
        let (least, most) = work.zip(held).map_or((0, 0), |(work, held)| said(work, held));
        Copy {
            cluster: (*cluster).to_owned(),
            wanted: wanted.map(|(_, asked)| asked),
            held,
            least,
            most,
            heard: *heard,
            ready: *ready,
            leaving: has_task(cluster, false) || *needed,
            purged: has_task(cluster, true),
            left: *left,
        }
    });
    let sum =
        |of: &dyn Fn(&(i64, i64)) -> i64| places.iter().filter_map(|place| place.wanted.as_ref().map(of)).sum::<i64>();
    let whole = match facts.divided {
        true => sum(&|wanted| wanted.0) >= facts.replicas,
        false => places.iter().any(|place| place.wanted.is_some_and(|(share, _)| share >= facts.replicas)),
    };
    let wanted = match facts.numbered {
        // What has no place yet is wanted all the same; overrides may want less than was divided.
        true if whole => facts.replicas.min(sum(&|wanted| wanted.1)),
        true => facts.replicas,
        false => 1,
    };
    (copies.collect(), wanted)
}

/// How many replicas a manifest asks for; one where its kind has none.
#[must_use]
pub fn asked(manifest: &Value) -> i64 {
    interpret::count(manifest).unwrap_or(1)
}

/// What becomes of a member's object when its Work goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It stays, and the Work goes without it.
    LetGo,
    /// It is not known yet: the member does not answer.
    Wait,
    /// It goes first, if nothing is lost by that.
    TakeBack,
}

/// What becomes of a member's object when its Work goes: what is wanted there again is taken over by the Work that is made
/// anew, what a dead member has stays there when it leaves the hub, and otherwise it is waited for (karmada.md 12, 22).
#[must_use]
pub fn ending(leaves: bool, wanted: bool, reached: bool) -> Ending {
    match (leaves, wanted, reached) {
        (false, true, _) | (true, _, false) => Ending::LetGo,
        (false, false, false) => Ending::Wait,
        (_, _, true) => Ending::TakeBack,
    }
}

/// What a binding that goes waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parting {
    /// Its Works: each takes back what it brought.
    Works,
    /// What Works have let go of in these clusters: no other Work is made that would take it back.
    LeftBehind(Vec<String>),
    /// Nothing: it goes.
    Nothing,
}

/// What a binding that goes waits for, whether it has Works and with what they have let go of ([`left_behind`]).
#[must_use]
pub fn parting(has_works: bool, left: &BTreeMap<String, i64>) -> Parting {
    match (has_works, left.is_empty()) {
        (true, _) => Parting::Works,
        (false, false) => Parting::LeftBehind(left.keys().cloned().collect()),
        (false, true) => Parting::Nothing,
    }
}

/// Where a Work has let go of its object, with how many replicas it asked for, by a binding's annotation ([`crate::label::LEFT_BEHIND`]).
#[must_use]
pub fn left_behind(annotation: Option<&str>) -> BTreeMap<String, i64> {
    annotation.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// The last look before a member's object of which `good` are ready becomes one of `to`: the others may be other ones by now
/// than when its Work was written.
///
/// # Errors
///
/// Why not.
pub fn last_look(copies: &[Copy], cluster: &str, good: i64, keeps: i64, to: i64, floor: &Floor) -> Result<(), Wait> {
    let purged = copies.iter().any(|copy| copy.cluster == cluster && copy.purged);
    let elsewhere = counted(copies, cluster);
    if (purged && !floor.is_said()) || may_lower(good, to, elsewhere, floor) {
        return Ok(());
    }
    Err(Wait::Floor { cluster: cluster.to_owned(), keeps, wanted: to, elsewhere, floor: floor.clone() })
}

impl Copy {
    /// How many good replicas may be counted on.
    fn counted(&self) -> i64 {
        if self.heard { self.least.min(self.held.unwrap_or(0)).max(0) } else { 0 }
    }
}

/// How many good replicas may be counted on in the clusters that are not `except`.
#[must_use]
pub fn counted(copies: &[Copy], except: &str) -> i64 {
    copies.iter().filter(|copy| copy.cluster != except).map(Copy::counted).sum()
}

/// Whether a copy of which `good` are ready may become `to`, with so many good elsewhere.
#[must_use]
pub fn may_lower(good: i64, to: i64, elsewhere: i64, floor: &Floor) -> bool {
    good <= to || elsewhere + to >= floor.least
}

/// The steps that may be taken now towards what is wanted, by cluster. More is given at once; less only where the floor is
/// kept by what is known to be good, one copy after the other.
#[must_use]
pub fn plan(copies: &[Copy], floor: &Floor) -> Vec<Step> {
    let mut good: Vec<i64> = copies.iter().map(Copy::counted).collect();
    let mut steps = Vec::with_capacity(copies.len());
    // What must not run twice: nobody gets more before the old copy is gone (Karmada v1.18.2). A lost member cannot be
    // waited for; one that was not asked yet, by a hub that has just begun to lead, is none.
    let there = |it: &Copy| it.held.is_some() || it.left.is_some();
    let purging = |it: &&Copy| it.purged && there(it) && it.wanted.is_none() && it.ready && !floor.is_said();
    let purging = copies.iter().find(purging).map(|copy| copy.cluster.clone());
    for (at, copy) in copies.iter().enumerate() {
        let step = |action, wait| Step { cluster: copy.cluster.clone(), action, wait };
        let wanted = copy.wanted.unwrap_or(0);
        if let Some(from) = purging.clone().filter(|_| copy.wanted.is_some() && wanted > copy.held.unwrap_or(0)) {
            let action = copy.held.map_or(Action::Leave, Action::Put);
            steps.push(step(action, Some(Wait::Purge { cluster: copy.cluster.clone(), from })));
            continue;
        }
        let Some(held) = copy.held else {
            // What was let go of and is not wanted after all is taken over first, and goes as any other then.
            steps.extend(copy.wanted.or(copy.left).map(|wanted| step(Action::Put(wanted), None)));
            continue;
        };
        if copy.wanted.is_some() && wanted >= held {
            steps.push(step(Action::Put(wanted), None));
            continue;
        }
        let done = if copy.wanted.is_some() { Action::Put(wanted) } else { Action::Remove };
        if copy.purged && !floor.is_said() {
            good[at] = good[at].min(wanted);
            steps.push(step(done, None));
            continue;
        }
        if copy.leaving && copy.wanted.is_none() {
            steps.push(step(Action::Leave, None));
            continue;
        }
        if !copy.heard {
            let keep = if copy.wanted.is_some() { Action::Put(held) } else { Action::Leave };
            steps.push(step(keep, Some(Wait::Silent { cluster: copy.cluster.clone(), keeps: held })));
            continue;
        }
        let elsewhere: i64 = good.iter().enumerate().filter(|(of, _)| *of != at).map(|(_, good)| good).sum();
        let most = copy.most.min(held);
        let missing = floor.least - elsewhere;
        let to = if may_lower(most, wanted, elsewhere, floor) {
            wanted
        } else if good[at] >= missing {
            missing.clamp(wanted, held)
        } else {
            // Already fewer than there must be: what is good stays.
            most.clamp(wanted, held)
        };
        good[at] = good[at].min(to);
        if to == wanted {
            steps.push(step(done, None));
            continue;
        }
        let cluster = copy.cluster.clone();
        let wait = Wait::Floor { cluster, keeps: to, wanted, elsewhere, floor: floor.clone() };
        // What nobody wants any more is written again only to make it smaller.
        let action = if copy.wanted.is_none() && to == held { Action::Leave } else { Action::Put(to) };
        steps.push(step(action, Some(wait)));
    }
    steps
}

/// Whether a Work's condition says so of its manifest as it is now.
fn says(work: &Value, condition: &str, status: &str) -> bool {
    let said = work["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == condition);
    said.is_some_and(|said| {
        said["status"] == status && said["observedGeneration"].as_i64() == Some(meta::generation(work))
    })
}

/// Whether what a Work says of its member is about its manifest as it is now.
fn is_current(work: &Value) -> bool {
    says(work, "Applied", "True")
}

/// Whether all of a Work's manifest is in its member but that it is to become smaller, which the last look did not let it:
/// the object bears the mark of this generation, so that nothing that was sent for an older one can arrive any more.
fn is_held_back(work: &Value) -> bool {
    says(work, SETTLED, "False")
}

/// The fewest replicas that a Work has asked for and that may still become true in its member, if it is to ask for so many
/// now ([`LEAST_ASKED`]): what was ready when the member said something last, and no more than this, is ready still.
#[must_use]
pub fn least_asked(before: Option<&Value>, now: i64) -> i64 {
    let Some(before) = before.filter(|before| !is_current(before)) else { return now };
    let known = meta::annotation(before, LEAST_ASKED).and_then(|text| text.parse::<i64>().ok());
    let asked = asked(&before["spec"]["workload"]["manifests"][0]);
    known.filter(|_| !is_held_back(before)).unwrap_or(asked).min(now)
}

/// How many replicas of a Work's first manifest are good, at least and at most, by what its member said last. Of a manifest
/// that the member has not got yet at most all may be, and at least what was good before and nobody has asked to go since.
#[must_use]
pub fn said(work: &Value, held: i64) -> (i64, i64) {
    if meta::deletion_timestamp(work).is_some() {
        return (0, held);
    }
    let said = &work["status"]["manifestStatuses"][0];
    let manifest = &work["spec"]["workload"]["manifests"][0];
    let good = match interpret::ready(manifest, &said["status"]) {
        interpret::Ready::Count(count) => Some(count.min(held)),
        interpret::Ready::Stale => None,
        interpret::Ready::ByHealth => match said["health"].as_str() {
            Some("Healthy") => Some(held),
            Some("Unhealthy") => Some(0),
            _ => None,
        },
    };
    match good {
        Some(good) if is_current(work) => (good, good),
        Some(good) => (good.min(least_asked(Some(work), held)), held),
        None => (0, held),
    }
}
