//! The parts of a mesh, in the order a person would explain them.

pub(crate) mod addresses;
mod control;
mod gateways;
mod hub;
mod ingress;
mod istio;
mod leftovers;
mod links;
mod remote;
mod samples;
mod trust;
pub(crate) mod upgrade;

pub use hub::{RememberedHub, hub_namespace, remembered_hub};

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_spec::{Cluster, Engine, Mesh, Origin};

use crate::compare::differences;
use crate::graph::{Draft, Work, ordered};
use crate::object::{MANAGED_BY_LABEL, MEMBERSHIP, MESH_LABEL, SYSTEM_NAMESPACE, is_touched, mesh_of, upgrading};
use crate::{
    Action, Blast, Change, ClusterState, Condition, FieldDiff, Leftover, Member, Note, ObjectDiff, ObjectKey, Observed,
    Plan, Purpose, Sight, VERSION,
};

/// Those of the small engine.
const PARTS: &[fn(&Scene<'_>, &mut Sketch)] = &[
    trust::steps,
    control::steps,
    remote::steps,
    gateways::steps,
    ingress::steps,
    hub::steps,
    links::steps,
    samples::steps,
    leftovers::steps,
];

/// Those of real Istio: trust, links and samples are the same, since Istio is whose objects they are.
const ISTIO_PARTS: &[fn(&Scene<'_>, &mut Sketch)] =
    &[trust::steps, istio::steps, hub::steps, links::steps, samples::steps, leftovers::steps];

/// Plans the steps that take `observed` to `mesh`.
///
/// A cluster that cannot be reached is left as it is, and so is what the others know of it: the plan says so and goes
/// on with the rest.
///
/// # Errors
///
/// Every reason why nothing may be written, all at once.
pub fn plan(mesh: &Mesh, observed: &Observed) -> Result<Plan, Blocked> {
    let observed = without_what_is_going(observed);
    let scene = Scene::new(mesh, &observed);
    let mut sketch = Sketch::new(mesh);
    scene.preflight(&mut sketch);
    if sketch.problems.is_empty() {
        for part in if scene.istio { ISTIO_PARTS } else { PARTS } {
            part(&scene, &mut sketch);
        }
    }
    sketch.finish(&scene, Purpose::Apply)
}

/// Plans the steps after which nothing of the mesh is left in the clusters of `mesh`, nor in those that they
/// remember. Objects that Stolos did not make for this mesh stay, and so does what holds them.
///
/// # Errors
///
/// Every reason why nothing may be removed, all at once.
pub fn teardown(mesh: &Mesh, observed: &Observed) -> Result<Plan, Blocked> {
    let scene = Scene::new(mesh, observed);
    let mut sketch = Sketch::new(mesh);
    scene.preflight(&mut sketch);
    if sketch.problems.is_empty() {
        leftovers::teardown(&scene, &mut sketch);
        hub::teardown(&scene, &mut sketch);
        if observed.state.root.is_some() {
            sketch.note(None, format!("the root certificate stays in {}", observed.state.folder));
        }
    }
    sketch.finish(&scene, Purpose::Teardown)
}

/// Whether the engine is the small one: decision 18.
pub(crate) fn is_small(mesh: &Mesh, observed: &Observed) -> bool {
    !Scene::new(mesh, observed).istio
}

/// What is in a namespace that is being deleted goes with it, so to a plan it is not there.
fn without_what_is_going(observed: &Observed) -> Cow<'_, Observed> {
    let is_going = |namespace: &Value| namespace["metadata"]["deletionTimestamp"].is_string();
    let going = |state: &ClusterState| -> BTreeSet<String> {
        state.objects.kind("Namespace").filter(|(_, o)| is_going(o)).map(|(key, _)| key.name.clone()).collect()
    };
    let hub = observed.hub.as_ref().and_then(Sight::state);
    if observed.seen().map(|(_, state)| state).chain(hub).all(|state| going(state).is_empty()) {
        return Cow::Borrowed(observed);
    }
    let mut rest = observed.clone();
    for sight in rest.clusters.values_mut().chain(rest.hub.as_mut()) {
        let Sight::Seen(state) = sight else { continue };
        let going = going(state);
        let inside = |key: &&ObjectKey| key.namespace.as_ref().is_some_and(|n| going.contains(n));
        let keys: Vec<ObjectKey> = state.objects.iter().map(|(key, _)| key).filter(inside).cloned().collect();
        for key in &keys {
            state.objects.remove(key);
        }
    }
    Cow::Owned(rest)
}

/// Why nothing may be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocked {
    /// Every reason.
    pub problems: Vec<Problem>,
}

impl std::error::Error for Blocked {}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

/// One reason why nothing may be written, and the ways on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Problem {
    /// Stable, such as `other-root`.
    pub id: String,
    /// Where; `None` for the mesh as a whole.
    pub cluster: Option<String>,
    /// What is wrong.
    pub text: String,
    /// What a person can do.
    pub ways: Vec<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(cluster) = &self.cluster {
            write!(f, "{cluster}: ")?;
        }
        write!(f, "{}", self.text)?;
        for way in &self.ways {
            write!(f, "\n  → {way}")?;
        }
        Ok(())
    }
}

/// A cluster as the mesh remembers it, in ConfigMap `stolos-mesh`, so that one that has left the file is still found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Remembered {
    /// Its name in the mesh.
    pub name: String,
    /// The kubeconfig context it was reached by.
    pub context: String,
    /// The kubeconfig file its entry named, if any.
    pub kubeconfig: Option<String>,
    /// Its API server.
    pub server: String,
    /// The UID of its `kube-system`.
    pub uid: String,
    /// Its network.
    pub network: String,
}

/// The clusters that `state` remembers as members of the mesh called `mesh`.
#[must_use]
pub fn remembered(mesh: &str, state: &ClusterState) -> Vec<Remembered> {
    let key = ObjectKey::new("v1", "ConfigMap", Some(SYSTEM_NAMESPACE), MEMBERSHIP);
    state.objects.get(&key).filter(|o| mesh_of(o) == Some(mesh)).map(remembered_by).unwrap_or_default()
}

/// What a ConfigMap `stolos-mesh` says, whoever's it is.
pub(crate) fn remembered_by(object: &Value) -> Vec<Remembered> {
    object["data"]["members"].as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// What the parts look at.
struct Scene<'a> {
    mesh: &'a Mesh,
    observed: &'a Observed,
    /// The mesh's clusters that answered, in the order of the file.
    live: Vec<(&'a Cluster, &'a ClusterState)>,
    /// Clusters that are remembered but no longer in the file.
    former: BTreeMap<String, Remembered>,
    /// What the hub shows, where one is wanted, or was, and answers.
    hub: Option<&'a ClusterState>,
    /// Whether the engine is real Istio: decision 18.
    istio: bool,
    reach: Reach,
}

/// How much of a mesh a plan is about: an upgrade by revision goes one part after the other (contract C.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All that the file says.
    Everything,
    /// The same while an upgrade to the file's revision is under way: it moves gateways and namespaces, when it is their turn.
    Held,
    /// The definitions, and the control planes of the file's revision beside those that are there.
    Beside,
    /// The same, and the gateways.
    Gateways,
    /// All that the file says, and control planes of other revisions go.
    Retirement,
}

impl<'a> Scene<'a> {
    fn new(mesh: &'a Mesh, observed: &'a Observed) -> Self {
        let live: Vec<_> = mesh.clusters.iter().filter_map(|c| Some((c, observed.cluster(c.name.as_str())?))).collect();
        let former = live
            .iter()
            .flat_map(|(_, state)| remembered(mesh.name.as_str(), state))
            .filter(|member| mesh.clusters.iter().all(|c| c.name.as_str() != member.name))
            .map(|member| (member.name.clone(), member))
            .collect();
        let istio = match mesh.control_plane.engine {
            Engine::Istio => true,
            Engine::Stolos => false,
            Engine::Auto => !live.is_empty() && live.iter().all(|(_, state)| !state.is_lab),
        };
        let to = mesh.control_plane.revision.as_deref().filter(|_| istio);
        let held = to.is_some() && live.iter().any(|(_, state)| upgrading(state) == to);
        let reach = if held { Reach::Held } else { Reach::Everything };
        let hub = observed.hub.as_ref().and_then(Sight::state);
        Self { mesh, observed, live, former, hub, istio, reach }
    }

    /// The kubeconfig context of a cluster of the mesh, or of one that left it.
    fn context(&self, cluster: &str) -> String {
        let member = self.mesh.clusters.iter().find(|c| c.name.as_str() == cluster).map(|c| c.context.clone());
        member.or_else(|| self.former.get(cluster).map(|f| f.context.clone())).unwrap_or_default()
    }

    /// The Deployment of the control plane, as the chart names it (B.8).
    fn istiod(&self) -> String {
        match self.mesh.control_plane.revision.as_deref().filter(|_| self.istio) {
            Some(revision) => format!("{}-{revision}", control::ISTIOD),
            None => control::ISTIOD.to_owned(),
        }
    }

    /// The name by which the file now has the cluster that was remembered as `former`.
    fn renamed(&self, former: &str) -> Option<&'a str> {
        let uid = self.former.get(former).map(|member| member.uid.as_str()).filter(|uid| !uid.is_empty())?;
        self.live.iter().find(|(_, state)| state.uid == uid).map(|(cluster, _)| cluster.name.as_str())
    }

    /// The cluster, if it has left the file, answered, and is still the one it was.
    fn departed(&self, name: &str) -> Result<&'a ClusterState, String> {
        let member = self.former.get(name).ok_or("it is not remembered")?;
        match self.observed.clusters.get(name) {
            Some(Sight::Seen(state)) if state.uid == member.uid => Ok(state),
            Some(Sight::Seen(_)) => Err(format!("context `{}` now leads to another cluster", member.context)),
            Some(Sight::Unreachable { why, .. }) => Err(why.clone()),
            None => Err("nobody looked".to_owned()),
        }
    }

    /// What must hold before anything is written anywhere.
    fn preflight(&self, sketch: &mut Sketch) {
        if self.live.is_empty() {
            let reasons = self.mesh.clusters.iter().filter_map(|c| match self.observed.clusters.get(c.name.as_str()) {
                Some(Sight::Unreachable { why, .. }) => Some(format!("{}: {why}", c.name)),
                _ => None,
            });
            let text = format!("no cluster answers ({})", reasons.collect::<Vec<_>>().join("; "));
            sketch.problem("no-cluster", None, text, &[]);
        }
        for cluster in &self.mesh.clusters {
            if let Some(Sight::Unreachable { why, .. }) = self.observed.clusters.get(cluster.name.as_str()) {
                sketch.note(Some(cluster.name.as_str()), format!("not reachable, so nothing is planned for it: {why}"));
            }
        }
        self.engine(sketch);
        if self.reach == Reach::Held {
            let to = self.mesh.control_plane.revision.as_deref().unwrap_or_default();
            let text = format!(
                "an upgrade to revision {to} is under way, which moves gateways and namespaces: `stolos upgrade` goes on \
                 with it, `stolos upgrade --rollback` takes it back"
            );
            sketch.note(None, text);
        }
        addresses::check(self, sketch);
        hub::check(self, sketch);
        let mut seen: BTreeMap<&str, &Cluster> = BTreeMap::new();
        for (cluster, state) in &self.live {
            let name = cluster.name.as_str();
            if let Some(other) = seen.insert(state.uid.as_str(), cluster).filter(|_| !state.uid.is_empty()) {
                let text = format!("it is the same cluster as {} (kube-system has the same UID)", other.name);
                sketch.problem("same-cluster", Some(name), text, &["give each cluster of the mesh one entry"]);
            }
            for missing in &state.unreadable {
                let text = format!("could not read {}: {}", missing.what, missing.why);
                sketch.problem(
                    "unreadable",
                    Some(name),
                    text,
                    &["use a context that may read and write the mesh's objects"],
                );
            }
        }
    }

    /// Which engine: decision 18.
    fn engine(&self, sketch: &mut Sketch) {
        let (lab, real): (Vec<_>, Vec<_>) = self.live.iter().partition(|(_, state)| state.is_lab);
        let names = |clusters: &[&(&Cluster, &ClusterState)]| {
            clusters.iter().map(|(c, _)| c.name.to_string()).collect::<Vec<_>>().join(", ")
        };
        // One chosen by name may be tried anywhere; together, lab and real clusters reach each other never.
        if !lab.is_empty() && !real.is_empty() {
            let text = format!(
                "a mesh is made of lab clusters or of real ones; these are lab clusters: {}; these are not: {}",
                names(&lab),
                names(&real)
            );
            sketch.problem("engine-mixed", None, text, &["take the ones or the others out of the mesh file"]);
        }
        if let Some(revision) = self.mesh.control_plane.revision.as_ref().filter(|_| !self.istio) {
            let text = format!("the small engine has no revisions, and the file names one: {revision}");
            sketch.problem("revision", None, text, &["leave `controlPlane.revision` out", "`engine: istio`"]);
        }
        if let Some(version) = self.mesh.control_plane.version.as_ref().filter(|_| !self.istio) {
            let text = match self.mesh.origin {
                Origin::Mesh => format!("version {version} is Istio's; the small engine has Stolos' own, {VERSION}"),
                _ => format!("the file wishes for Istio {version}; the small engine is Stolos' own, {VERSION}"),
            };
            sketch.note(None, text);
        }
    }

    fn mesh_name(&self) -> &'a str {
        self.mesh.name.as_str()
    }
}

/// The plan while it is drawn.
struct Sketch {
    mesh: String,
    drafts: Vec<Draft>,
    /// Objects that belong to the mesh, by cluster, changed or not.
    wanted: BTreeSet<(String, ObjectKey)>,
    /// Those of them that somebody else's objects are.
    foreign: BTreeSet<(String, ObjectKey)>,
    notes: Vec<Note>,
    problems: Vec<Problem>,
    blast: Blast,
    leftovers: Vec<Leftover>,
    /// The engine with its version.
    engine: String,
}

impl Sketch {
    fn new(mesh: &Mesh) -> Self {
        Self {
            mesh: mesh.name.to_string(),
            drafts: vec![],
            wanted: BTreeSet::new(),
            foreign: BTreeSet::new(),
            notes: vec![],
            problems: vec![],
            blast: Blast::default(),
            leftovers: vec![],
            engine: match mesh.control_plane.engine {
                Engine::Istio => "istio".to_owned(),
                _ => format!("stolos {VERSION}"),
            },
        }
    }

    fn note(&mut self, cluster: Option<&str>, text: impl Into<String>) {
        let note = Note { cluster: cluster.map(str::to_owned), text: text.into() };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    fn problem(&mut self, id: &str, cluster: Option<&str>, text: impl Into<String>, ways: &[&str]) {
        self.problems.push(Problem {
            id: id.to_owned(),
            cluster: cluster.map(str::to_owned),
            text: text.into(),
            ways: ways.iter().map(|way| (*way).to_owned()).collect(),
        });
    }

    fn leftover(&mut self, cluster: &str, object: Option<ObjectKey>, why: impl Into<String>) {
        self.leftovers.push(Leftover { cluster: cluster.to_owned(), object, why: why.into() });
    }

    fn want(&mut self, cluster: &str, key: ObjectKey) {
        self.wanted.insert((cluster.to_owned(), key));
    }

    fn draft(&mut self, id: String, cluster: Option<&str>, after: Vec<String>, work: Work) {
        self.drafts.push(Draft { id, cluster: cluster.map(str::to_owned), after, work });
    }

    /// These objects are to be in `cluster` as they are here.
    fn write(&mut self, cluster: &str, state: &ClusterState, id: String, after: Vec<String>, objects: Vec<Value>) {
        let (mut changed, mut diff) = (Vec::new(), Vec::new());
        for object in objects {
            let key = ObjectKey::of(&object);
            self.want(cluster, key.clone());
            let live = state.objects.get(&key);
            if let Some(live) = live {
                if self.is_good_as_it_is(&object, live) {
                    self.foreign.insert((cluster.to_owned(), key));
                    continue;
                }
                if !self.may_write(cluster, &key, &object, live) {
                    continue;
                }
            }
            let fields = live.map(|live| differences(&object, live));
            let action = match &fields {
                None => Action::Add,
                Some(fields) if fields.is_empty() => continue,
                Some(_) => Action::Change,
            };
            diff.push(ObjectDiff { object: key, action, fields: fields.unwrap_or_default() });
            changed.push(object);
        }
        let work = if changed.is_empty() {
            Work::Nothing
        } else {
            let all_new = diff.iter().all(|d| d.action == Action::Add);
            let action = if all_new { Action::Add } else { Action::Change };
            Work::Do { action, change: Change::Write { objects: changed }, because: reason(&diff), diff }
        };
        self.draft(id, Some(cluster), after, work);
    }

    /// Whether an object that is not ours (any more) says all that ours would, but for whose it is. It is left alone, and is
    /// not ours to take away.
    fn is_good_as_it_is(&self, wanted: &Value, live: &Value) -> bool {
        if mesh_of(wanted).is_none() || mesh_of(live).is_some() {
            return false;
        }
        let mut wanted = wanted.clone();
        if let Some(labels) = wanted["metadata"]["labels"].as_object_mut() {
            labels.remove(MANAGED_BY_LABEL);
            labels.remove(MESH_LABEL);
        }
        differences(&wanted, live).is_empty()
    }

    /// Whether the object that stands where ours is to stand is ours to write. One that is wanted without our labels
    /// (a namespace we found) is shared, so it is.
    fn may_write(&mut self, cluster: &str, key: &ObjectKey, wanted: &Value, live: &Value) -> bool {
        match mesh_of(live) {
            Some(mesh) if mesh == self.mesh => true,
            Some(mesh) => {
                let text = format!("{key} belongs to mesh `{mesh}`");
                self.problem("other-mesh", Some(cluster), text, &["tear that mesh down first, or use another cluster"]);
                false
            }
            None if mesh_of(wanted).is_none() || is_touched(live) => true,
            None => {
                let text = format!("{key} exists and was not made by Stolos");
                self.problem("foreign", Some(cluster), text, &["remove it, or use another cluster"]);
                false
            }
        }
    }

    /// Waits here, when something before it has work or when it does not hold now.
    fn wait(&mut self, cluster: &str, state: &ClusterState, id: String, after: Vec<String>, until: Vec<Condition>) {
        let unmet: Vec<&Condition> = until.iter().filter(|c| c.holds(&state.objects).is_err()).collect();
        let needed = !unmet.is_empty();
        let because = match unmet.as_slice() {
            [] => "until the change has taken effect".to_owned(),
            [one] => format!("until {one}"),
            [first, rest @ ..] => format!("until {first} (and {} more)", rest.len()),
        };
        let work = Work::Wait { change: Change::Wait { conditions: until }, because, needed };
        self.draft(id, Some(cluster), after, work);
    }

    /// Waits here for what the objects of a cluster do not show, if that is `needed` or something before it has work.
    fn wait_unseen(&mut self, cluster: &str, id: String, after: Vec<String>, until: Condition, needed: bool) {
        let because = format!("until {until}");
        let work = Work::Wait { change: Change::Wait { conditions: vec![until] }, because, needed };
        self.draft(id, Some(cluster), after, work);
    }

    /// Deletes these objects. None, and there is no work.
    fn remove(&mut self, cluster: &str, id: String, after: Vec<String>, objects: Vec<&Value>, because: String) {
        let diff =
            objects.iter().map(|o| ObjectDiff { object: ObjectKey::of(o), action: Action::Remove, fields: vec![] });
        let uid = |o: &Value| o["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let change = Change::Remove { objects: objects.iter().map(|o| (ObjectKey::of(o), uid(o))).collect() };
        let work = match objects.is_empty() {
            true => Work::Nothing,
            false => Work::Do { action: Action::Remove, change, because, diff: diff.collect() },
        };
        self.draft(id, Some(cluster), after, work);
    }

    fn finish(mut self, scene: &Scene<'_>, purpose: Purpose) -> Result<Plan, Blocked> {
        if !self.problems.is_empty() {
            return Err(Blocked { problems: self.problems });
        }
        let mut others: BTreeMap<String, Vec<ObjectKey>> = BTreeMap::new();
        for (cluster, key) in std::mem::take(&mut self.foreign) {
            others.entry(cluster).or_default().push(key);
        }
        for (cluster, keys) in others {
            let text = match keys.as_slice() {
                [one] => format!("{one} is not labelled as Stolos' own; it is as it should be, and stays at teardown"),
                [first, rest @ ..] => format!(
                    "{first} and {} more objects are not labelled as Stolos' own; they are as they should be, and stay at teardown",
                    rest.len()
                ),
                [] => continue,
            };
            self.note(Some(&cluster), text);
        }
        Ok(Plan {
            mesh: self.mesh,
            purpose,
            engine: self.engine,
            members: members(scene),
            steps: ordered(self.drafts),
            blast: self.blast,
            notes: self.notes,
            leftovers: self.leftovers,
        })
    }
}

fn members(scene: &Scene<'_>) -> Vec<Member> {
    let current = scene.mesh.clusters.iter().map(|c| (c.name.as_str(), Some(c.network.to_string())));
    let former = scene.former.keys().map(|name| (name.as_str(), None));
    let member = |(name, network): (&str, Option<String>)| {
        let (server, version, unreachable) = match scene.observed.clusters.get(name) {
            Some(Sight::Seen(state)) => (Some(state.server.clone()), Some(state.version.clone()), None),
            Some(Sight::Unreachable { server, why }) => (server.clone(), None, Some(why.clone())),
            None => (None, None, None),
        };
        Member { name: name.to_owned(), network, server, version, unreachable }
    };
    let hub = scene.observed.hub.iter().map(|sight| hub::place(scene.mesh, sight));
    current.chain(former).map(member).chain(hub).collect()
}

fn reason(diff: &[ObjectDiff]) -> String {
    let Some(first) = diff.iter().find(|d| d.action == Action::Change).or(diff.first()) else { return String::new() };
    let what = match first.fields.first() {
        None => format!("{} does not exist", first.object),
        Some(FieldDiff { path, from, to }) => {
            let side = |side: &Option<String>| side.clone().unwrap_or_else(|| "absent".to_owned());
            // Lines of a longer text are quoted.
            let is = if from.as_ref().or(to.as_ref()).is_some_and(|text| text.starts_with('`')) { "has" } else { "is" };
            format!("{}: {path} {is} {}, not {}", first.object, side(from), side(to))
        }
    };
    match diff.len() - 1 {
        0 => what,
        more => format!("{what} (and {more} more)"),
    }
}

/// `part/cluster/name`.
fn id(part: &str, cluster: &str, name: &str) -> String {
    format!("{part}/{cluster}/{name}")
}
