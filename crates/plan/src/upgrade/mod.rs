//! Decides how a control plane is upgraded by revision, as Istio's canary upgrades are (contract C.10): the new control
//! planes beside the old ones, then the namespaces, then the gateways, and last the old control planes go.
//!
//! Where an upgrade is follows from the clusters alone, so a run that was killed anywhere is gone on with by the next
//! one, whoever makes it and wherever. [`decide()`] is given what was seen and says which task of which phase is done,
//! and what keeps the others from being done.

mod show;
mod sight;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;
use stolos_spec::{Installer, Mesh};

pub use self::sight::{
    Asks, Besides, ClusterSight, ControlPlane, Gateway, Namespace, WAS_ANNOTATION, Workload, injected_by, rolling, tags,
};
use crate::build::upgrade as parts;
use crate::build::{Reach, is_small};
use crate::object::SYSTEM_NAMESPACE;
use crate::values::Minor;
use crate::{Blocked, Observed, Plan, Problem, Sight};

/// Which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// To the revision that the mesh file names.
    #[default]
    Forward,
    /// Back from it.
    Back,
}

/// Where an upgrade is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// New control planes beside the old ones.
    Canary,
    /// Namespaces ask the other control plane for proxies, and what runs in them is restarted.
    Namespaces,
    /// Stolos' own gateways follow.
    Gateways,
    /// The control planes that nobody uses any more go.
    Retire,
}

impl Phase {
    /// Its name.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Canary => "canary",
            Self::Namespaces => "namespaces",
            Self::Gateways => "gateways",
            Self::Retire => "retire",
        }
    }

    /// What it does, in a few words.
    #[must_use]
    pub fn purpose(self, way: Way) -> &'static str {
        match (self, way) {
            (Self::Canary, _) => "the new control plane beside the old one, which serves as before",
            (Self::Namespaces, Way::Forward) => "namespaces and their workloads, one after the other",
            (Self::Namespaces, Way::Back) => "namespaces and their workloads go back, one after the other",
            (Self::Gateways, Way::Forward) => "the gateways, one cluster after the other",
            (Self::Gateways, Way::Back) => "the gateways go back, one cluster after the other",
            (Self::Retire, Way::Forward) => "the old control plane goes, when nobody is connected to it",
            (Self::Retire, Way::Back) => "the new control plane goes, when nobody is connected to it",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// What is to be upgraded, and how far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Upgrade {
    /// Which way.
    pub way: Way,
    /// Revisions that nobody is to use at the end, with their versions.
    pub from: Vec<(String, String)>,
    /// The revision that everybody is to use at the end, with its version.
    pub to: (String, String),
    /// Phase by phase, in order.
    pub phases: Vec<Stage>,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Which.
    pub phase: Phase,
    /// What is done in it, in this order.
    pub tasks: Vec<Task>,
}

/// Something to do in one cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Task {
    /// Where.
    pub cluster: String,
    /// A release or a namespace.
    pub subject: String,
    /// What is done, for people.
    pub what: String,
    /// Whether it is done.
    pub done: bool,
    /// What keeps it from being done and is not for Stolos to change.
    pub by_hand: Vec<String>,
}

impl Upgrade {
    /// The first phase in which anything is left to do.
    #[must_use]
    pub fn next(&self) -> Option<Phase> {
        self.phases.iter().find(|stage| stage.tasks.iter().any(|task| !task.done)).map(|stage| stage.phase)
    }

    /// Whether nothing is left to do.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.next().is_none()
    }

    /// What is left to do in a phase.
    pub fn open(&self, phase: Phase) -> impl Iterator<Item = &Task> {
        let stages = self.phases.iter().filter(move |stage| stage.phase == phase);
        stages.flat_map(|stage| &stage.tasks).filter(|task| !task.done)
    }
}

/// The plan of one phase, carried out like any other. [`Phase::Namespaces`] has none: it goes namespace by namespace.
///
/// # Errors
///
/// Every reason against it.
pub fn plan_of(phase: Phase, way: Way, revision: &str, mesh: &Mesh, observed: &Observed) -> Result<Plan, Blocked> {
    match (phase, way) {
        (Phase::Canary | Phase::Namespaces, _) => parts::part(Reach::Beside, mesh, observed),
        (Phase::Gateways, Way::Forward) => parts::part(Reach::Gateways, mesh, observed),
        (Phase::Retire, Way::Forward) => parts::part(Reach::Retirement, mesh, observed),
        (Phase::Gateways, Way::Back) => parts::gateways_back(revision, mesh, observed),
        (Phase::Retire, Way::Back) => parts::withdrawal(revision, mesh, observed),
    }
}

/// Says what is to be done and how far it is, from what was seen of every cluster of the mesh, in the order of the file.
///
/// `namespaces` names those that come first, in this order; the others follow by name.
///
/// # Errors
///
/// Every reason why this mesh cannot be upgraded (or led back) like that.
pub fn decide(way: Way, mesh: &Mesh, namespaces: &[String], sights: &[ClusterSight]) -> Result<Upgrade, Blocked> {
    let mut problems = Vec::new();
    let named = mesh.control_plane.revision.clone().unwrap_or_else(|| parts::DEFAULT.to_owned());
    let version = mesh.control_plane.version.clone();
    let others: BTreeSet<(String, String)> = sights
        .iter()
        .flat_map(|sight| &sight.control_planes)
        .filter(|control| control.revision != named)
        .map(|control| (control.revision.clone(), control.version.clone()))
        .collect();
    let there = sights.iter().flat_map(|sight| &sight.control_planes).find(|control| control.revision == named);
    let new = (named.clone(), there.map(|control| control.version.clone()).or(version).unwrap_or_default());
    let (from, to) = match way {
        Way::Forward => (others.iter().cloned().collect(), new),
        Way::Back => {
            let revisions: BTreeSet<&String> = others.iter().map(|(revision, _)| revision).collect();
            let lacks = sights.iter().filter(|sight| sight.control_planes.iter().all(|c| c.revision == named));
            let lacks: Vec<_> = lacks.map(|sight| sight.name.as_str()).collect();
            let forgets = sights
                .iter()
                .any(|sight| sight.upgrading.is_some() || sight.namespaces.iter().any(|n| n.was.is_some()));
            let older = |version: &str| Minor::of(version).zip(Minor::of(&new.1)).is_some_and(|(v, new)| v > new);
            if there.is_none() && !forgets {
                let text =
                    format!("there is no control plane `{named}` in any cluster, so there is nothing to go back from");
                let ways = ["`stolos upgrade` installs it", "the revision that is to go, in the mesh file"];
                problems.push(problem("canary", None, text, &ways));
            } else if others.iter().any(|(_, version)| older(version)) {
                let text = format!("the mesh file names the old control plane already: `{named}` ({})", new.1);
                let ways = ["`stolos upgrade` without `--rollback` leads to what the mesh file names"];
                problems.push(problem("backwards", None, text, &ways));
            } else if !lacks.is_empty() {
                let text = format!("there is no other control plane than `{named}` in {}", lacks.join(", "));
                problems.push(problem(
                    "retired",
                    None,
                    text,
                    &[
                        "nothing to go back to: `stolos upgrade` goes on",
                        "another revision in the mesh file, and upgrade to it",
                    ],
                ));
            } else if revisions.len() > 1 {
                let list = revisions.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(", ");
                let text = format!("there are several control planes to go back to: {list}");
                problems.push(problem("several", None, text, &["`helm uninstall` those that nobody uses"]));
            }
            (vec![new], others.first().cloned().unwrap_or_default())
        }
    };
    if way == Way::Forward {
        for sight in sights.iter().filter(|sight| sight.control_planes.is_empty()) {
            let text = "no control plane of this mesh is installed there, so there is nothing to upgrade";
            problems.push(problem("not-built", Some(&sight.name), text, &["`stolos apply` first"]));
        }
        if others.is_empty()
            && let (Some(there), Some(wanted)) = (there, mesh.control_plane.version.as_deref())
            && !is_version(wanted, &there.version)
        {
            let text = format!(
                "`{named}` is {} and the mesh file says {wanted}, but names no other revision: that is an upgrade in place",
                there.version
            );
            let revision = wanted.trim_start_matches('v').replace('.', "-");
            let ways = [
                format!("`controlPlane.revision: {revision}` beside the version, to upgrade by revision"),
                "`stolos apply` upgrades in place".to_owned(),
            ];
            problems.push(Problem { id: "in-place".to_owned(), cluster: None, text, ways: ways.into() });
        }
    }
    for name in namespaces {
        if !sights.iter().any(|sight| sight.namespaces.iter().any(|namespace| namespace.name == *name)) {
            let text = format!("namespace `{name}` has no proxies in any cluster");
            problems.push(problem("namespace", None, text, &["leave it out of `--namespaces`"]));
        }
    }
    if !problems.is_empty() {
        return Err(Blocked { problems });
    }
    let scene = Scene { way, from: &from, to: &to, sights };
    let phases = match way {
        Way::Forward => {
            vec![scene.canary(), scene.namespaces(namespaces), scene.gateways(), scene.retire()]
        }
        Way::Back => vec![scene.gateways(), scene.namespaces(namespaces), scene.retire()],
    };
    let notes = scene.notes();
    Ok(Upgrade { way, from, to, phases, notes })
}

/// Why a mesh cannot be upgraded by revision at all, whatever is in its clusters; and whom nothing was seen of.
///
/// # Errors
///
/// Every such reason.
pub fn check(mesh: &Mesh, observed: &Observed) -> Result<(), Blocked> {
    let control = &mesh.control_plane;
    let mut problems = Vec::new();
    if is_small(mesh, observed) {
        let text = "the small engine has no revisions: its control plane is as old as the binary that installs it";
        let ways = ["`stolos apply` of a newer binary replaces it in place, without a request lost", "`engine: istio`"];
        problems.push(problem("no-revisions", None, text, &ways));
    } else if control.installer != Installer::Helm {
        let text = "only what Helm installed is upgraded by revision, since Helm remembers what to go back to";
        let ways = match control.installer {
            Installer::Istioctl => {
                ["`stolos apply` with another `revision` installs a control plane beside the old one"]
            }
            _ => ["whoever installed this Istio upgrades it (`installer: none`)"],
        };
        problems.push(problem("installer", None, text, &ways));
    } else {
        for cluster in &mesh.clusters {
            let why = match observed.clusters.get(cluster.name.as_str()) {
                Some(Sight::Seen(_)) => continue,
                Some(Sight::Unreachable { why, .. }) => why.as_str(),
                None => "nobody looked",
            };
            let text = format!("it cannot be reached, so nobody knows who uses its old control plane: {why}");
            let ways = ["bring it back, or take it out of the mesh file and apply"];
            problems.push(problem("unreachable", Some(cluster.name.as_str()), text, &ways));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Blocked { problems }) }
}

fn problem(id: &str, cluster: Option<&str>, text: impl Into<String>, ways: &[&str]) -> Problem {
    Problem {
        id: id.to_owned(),
        cluster: cluster.map(str::to_owned),
        text: text.into(),
        ways: ways.iter().map(|way| (*way).to_owned()).collect(),
    }
}

/// Whether a chart of version `is` is what `wanted` asks for: all of it, or its minor.
fn is_version(wanted: &str, is: &str) -> bool {
    let (wanted, is) = (wanted.trim_start_matches('v'), is.trim_start_matches('v'));
    wanted == is || (wanted.split('.').count() <= 2 && Minor::of(wanted) == Minor::of(is))
}

struct Scene<'a> {
    way: Way,
    from: &'a [(String, String)],
    to: &'a (String, String),
    sights: &'a [ClusterSight],
}

impl Scene<'_> {
    fn leaves(&self, revision: &str) -> bool {
        self.from.iter().any(|(from, _)| from == revision)
    }

    fn canary(&self) -> Stage {
        let (to, version) = self.to;
        let task = |sight: &ClusterSight| {
            let new = sight.control_planes.iter().find(|control| control.revision == *to);
            let old: Vec<_> = sight
                .control_planes
                .iter()
                .filter(|control| control.revision != *to)
                .map(|control| format!("{} ({})", control.release, control.version))
                .collect();
            let beside = if old.is_empty() { String::new() } else { format!(" beside {}", old.join(", ")) };
            let release = new.map_or_else(|| format!("istiod-{to}"), |control| control.release.clone());
            Task {
                cluster: sight.name.clone(),
                what: format!("{release} ({version}){beside}"),
                subject: release,
                done: new.is_some_and(|control| control.ready.is_ok()),
                by_hand: vec![],
            }
        };
        Stage { phase: Phase::Canary, tasks: self.sights.iter().map(task).collect() }
    }

    fn namespaces(&self, first: &[String]) -> Stage {
        let to = self.to.0.as_str();
        let concerns = |namespace: &Namespace| {
            let asks = namespace.revision.as_deref();
            let proxies = namespace.workloads.iter().flat_map(|workload| workload.proxies.keys());
            namespace.was.is_some()
                || asks.is_some_and(|asks| self.leaves(asks))
                || proxies.into_iter().any(|by| self.leaves(by))
        };
        let mut names: Vec<&str> = first.iter().map(String::as_str).collect();
        let all: BTreeSet<&str> = self
            .sights
            .iter()
            .flat_map(|sight| &sight.namespaces)
            .filter(|namespace| concerns(namespace))
            .map(|namespace| namespace.name.as_str())
            .collect();
        names.extend(all.iter().copied().filter(|name| !first.iter().any(|first| first == name)));
        let mut tasks = Vec::new();
        for name in names {
            for sight in self.sights {
                let found = sight.namespaces.iter().find(|namespace| namespace.name == name);
                let Some(namespace) = found.filter(|namespace| concerns(namespace)) else { continue };
                tasks.push(self.namespace(sight, namespace, to));
            }
        }
        Stage { phase: Phase::Namespaces, tasks }
    }

    fn namespace(&self, sight: &ClusterSight, namespace: &Namespace, to: &str) -> Task {
        let wanted = self.wanted(namespace);
        let mut parts = Vec::new();
        if let Some(wanted) = &wanted {
            parts.push(format!("{} → {wanted}", namespace.asks));
        }
        let (mut restarts, mut by_hand) = (Vec::new(), Vec::new());
        for workload in namespace.workloads.iter().filter(|workload| !workload.is_at(to)) {
            match &workload.by_hand {
                None => restarts.push(workload.to_string()),
                Some(why) => by_hand.push(format!("{workload}: {why}")),
            }
        }
        if let Some(tag) = namespace.tag.as_ref().filter(|_| !namespace.is_at(to) && wanted.is_none()) {
            let text = format!("it follows the tag `{tag}`: `istioctl tag set {tag} --revision {to} --overwrite`");
            by_hand.insert(0, text);
        }
        if !restarts.is_empty() {
            parts.push(format!("restart {}", restarts.join(", ")));
        }
        let done = namespace.is_at(to) && wanted.is_none();
        if done && namespace.was.is_some() {
            parts.push(format!("it asks for {}", namespace.asks));
        }
        Task { cluster: sight.name.clone(), subject: namespace.name.clone(), what: parts.join("; "), done, by_hand }
    }

    /// How a namespace is to ask for proxies, if otherwise than now.
    fn wanted(&self, namespace: &Namespace) -> Option<Asks> {
        let leaves = namespace.revision.as_deref().is_some_and(|asks| self.leaves(asks));
        // A tag's namespaces follow the tag; the default tag is what `istio-injection=enabled` asks for.
        (leaves && namespace.tag.is_none()).then(|| wanted_label(self.way, namespace, &self.to.0))
    }

    fn gateways(&self) -> Stage {
        let to = self.to.0.as_str();
        let mut tasks = Vec::new();
        for sight in self.sights {
            for gateway in &sight.gateways {
                let at = gateway.revision == to && gateway.proxies.keys().all(|by| by == to);
                tasks.push(Task {
                    cluster: sight.name.clone(),
                    subject: gateway.release.clone(),
                    what: format!("{} asks for {to}", gateway.release),
                    done: at && gateway.settled.is_ok(),
                    by_hand: vec![],
                });
            }
        }
        Stage { phase: Phase::Gateways, tasks }
    }

    fn retire(&self) -> Stage {
        let mut tasks = Vec::new();
        for sight in self.sights {
            for control in sight.control_planes.iter().filter(|control| self.leaves(&control.revision)) {
                tasks.push(Task {
                    cluster: sight.name.clone(),
                    subject: control.release.clone(),
                    what: format!("uninstall {} ({})", control.release, control.version),
                    done: false,
                    by_hand: vec![],
                });
            }
            if sight.upgrading.is_some() {
                tasks.push(Task {
                    cluster: sight.name.clone(),
                    subject: SYSTEM_NAMESPACE.to_owned(),
                    what: "the word that an upgrade is under way goes".to_owned(),
                    done: false,
                    by_hand: vec![],
                });
            }
            for namespace in sight.namespaces.iter().filter(|namespace| namespace.was.is_some()) {
                tasks.push(Task {
                    cluster: sight.name.clone(),
                    subject: namespace.name.clone(),
                    what: format!("namespace {} forgets how it asked before", namespace.name),
                    done: false,
                    by_hand: vec![],
                });
            }
        }
        Stage { phase: Phase::Retire, tasks }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for (revision, version) in self.from {
            let (Some(old), Some(new)) = (Minor::of(version), Minor::of(&self.to.1)) else { continue };
            let (Minor(major, old), Minor(same, new)) = (old, new);
            if self.way == Way::Forward && (major != same || new > old + 1) {
                notes.push(format!(
                    "from {version} (`{revision}`) to {} skips a minor version, which nobody promises of several primaries",
                    self.to.1
                ));
            } else if self.way == Way::Forward && new < old {
                notes.push(format!("{} is older than {version} (`{revision}`)", self.to.1));
            }
        }
        notes
    }
}

/// The label that a namespace is to have so that it gets proxies of revision `to`. Back it gets what it had.
#[must_use]
pub fn wanted_label(way: Way, namespace: &Namespace, to: &str) -> Asks {
    match (way, &namespace.was) {
        (Way::Back, Some(was)) => was.clone(),
        (Way::Back, None) => Asks::for_revision(to),
        (Way::Forward, _) => Asks::Revision(to.to_owned()),
    }
}

/// What still keeps the control planes of `from` from going: who is connected to them, anywhere in the mesh, and whom they
/// would still be asked for proxies by.
#[must_use]
pub fn holds(from: &[(String, String)], sights: &[ClusterSight]) -> Vec<String> {
    let leaves = |revision: &str| from.iter().any(|(from, _)| from == revision);
    let mut held = Vec::new();
    for sight in sights {
        held.extend(sight.unread.iter().map(|what| format!("{}: {what}", sight.name)));
        for namespace in &sight.namespaces {
            let workloads = namespace.workloads.iter().filter(|w| w.proxies.keys().any(|by| leaves(by)));
            let workloads: Vec<_> = workloads.map(ToString::to_string).collect();
            if !workloads.is_empty() {
                held.push(format!("{}: {} of namespace {}", sight.name, workloads.join(", "), namespace.name));
            } else if namespace.revision.as_deref().is_some_and(leaves) {
                held.push(format!(
                    "{}: namespace {} asks for its proxies ({})",
                    sight.name, namespace.name, namespace.asks
                ));
            }
        }
        for gateway in sight.gateways.iter().filter(|g| g.proxies.keys().any(|by| leaves(by))) {
            held.push(format!("{}: gateway {}", sight.name, gateway.release));
        }
        for (revision, proxies) in sight.connected.iter().filter(|(revision, _)| leaves(revision)) {
            let Some(first) = proxies.first() else { continue };
            let more = if proxies.len() > 1 { format!(" and {} more", proxies.len() - 1) } else { String::new() };
            held.push(format!("{}: {first}{more} connected to `{revision}`", sight.name));
        }
    }
    held
}
