//! Clusters whose API servers nobody dials: the others read them through a hub, to which they have dialled out.
//!
//! For each control plane and each such cluster the hub has an account of its own, which may pass the hub's proxy to that
//! one cluster and nothing else (Karmada's `clusters/proxy`, named by `resourceNames`), and a Secret that its tokens are
//! bound to. Towards the cluster the hub's proxy acts in that account's name, so that a binding there says what it reads.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stolos_k8s::meta;
use stolos_pki::Certificate;
use stolos_spec::{Api, Cluster, HUB, Join, Mesh};

use super::{Scene, Sketch, id};
use crate::graph::Work;
use crate::object::{AGENT, MEMBERSHIP, SYSTEM_NAMESPACE, is_owned, mesh_of, namespace, ours, secret_text};
use crate::{Action, Change, ClusterState, Condition, Member, ObjectDiff, ObjectKey, Sight, VERSION};

const RBAC: &str = "rbac.authorization.k8s.io/v1";
/// The group and version of the hub's clusters.
const CLUSTERS: &str = "cluster.karmada.io/v1alpha1";
/// Who reads, at what a pair has in the hub; and who is read.
const READER: &str = "stolos.dev/peer";
const READ: &str = "stolos.dev/reads";
/// Keeps a namespace of the hub out of its members (Karmada v1.18).
const STAYS_HERE: &str = "namespace.karmada.io/skip-auto-propagation";

/// The binding, in a cluster that is read through the hub, that says who may read it.
pub(super) const READERS: &str = "stolos-hub-readers";

/// A hub as the mesh remembers it, in ConfigMap `stolos-mesh`, so that one that has left the file is still found.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RememberedHub {
    /// The kubeconfig context it was reached by.
    pub context: String,
    /// The kubeconfig file that the mesh file named, if any.
    pub kubeconfig: Option<String>,
    /// The UID of its `kube-system`.
    pub uid: String,
}

/// The hub that `state` remembers of the mesh called `mesh`.
#[must_use]
pub fn remembered_hub(mesh: &str, state: &ClusterState) -> Option<RememberedHub> {
    let key = ObjectKey::new("v1", "ConfigMap", Some(SYSTEM_NAMESPACE), MEMBERSHIP);
    let object = state.objects.get(&key).filter(|object| mesh_of(object) == Some(mesh))?;
    serde_json::from_str(object["data"]["hub"].as_str()?).ok()
}

/// The namespace, in its hub, of what a mesh has there.
#[must_use]
pub fn hub_namespace(mesh: &str) -> String {
    format!("stolos-mesh-{mesh}")
}

/// What is called after a pair: no name of a cluster has a dot, so that no two pairs share one.
fn pair(into: &str, read: &str) -> String {
    format!("{into}.reads.{read}")
}

/// How the control plane of a cluster reads another one through the hub.
pub(super) struct Way<'a> {
    /// What the hub shows.
    pub(super) hub: &'a ClusterState,
    /// Where the API server of the other is reached.
    pub(super) server: String,
    /// Where the account is.
    pub(super) namespace: String,
    /// What the account and its Secret are called.
    pub(super) name: String,
    /// The step that makes the other a member, if one does.
    pub(super) member: String,
}

impl<'a> Way<'a> {
    /// None where the hub does not answer, or does not know the cluster.
    pub(super) fn of(scene: &Scene<'a>, into: &Cluster, read: &Cluster) -> Option<Self> {
        let hub = scene.hub?;
        let (member, _) = called(scene, hub, read, scene.observed.cluster(read.name.as_str())?).ok()?;
        let address = scene.mesh.hub.as_ref().and_then(|hub| hub.address.clone());
        let address = address.unwrap_or_else(|| hub.server.trim_end_matches('/').to_owned());
        Some(Self {
            hub,
            server: format!("{address}/apis/{CLUSTERS}/clusters/{member}/proxy"),
            namespace: hub_namespace(scene.mesh_name()),
            name: pair(into.name.as_str(), read.name.as_str()),
            member: id_of_join(read.name.as_str()),
        })
    }

    /// The step that makes the account.
    pub(super) fn step(&self) -> String {
        id("links", HUB, &self.name)
    }
}

/// The step that lets readers into a cluster.
pub(super) fn readers_step(read: &str) -> String {
    id("links", read, "hub-readers")
}

/// The hub's Cluster for a cluster of the mesh: the one that is the same, whatever it is called there.
fn member<'a>(hub: &'a ClusterState, read: &Cluster, state: &ClusterState) -> Result<&'a Value, NoMember> {
    let clusters = || hub.objects.kind("Cluster").map(|(_, object)| object);
    let id = |object: &Value| object["spec"]["id"].as_str().unwrap_or_default().to_owned();
    if let Some(same) = clusters().find(|object| !state.uid.is_empty() && id(object) == state.uid) {
        return Ok(same);
    }
    let name = read.name.as_str();
    match clusters().find(|object| meta::name(object) == name) {
        Some(called) if id(called).is_empty() => Ok(called),
        Some(_) => {
            let text = "its API server is to be reached through the hub, and what the hub calls so is another cluster";
            let ways = [format!("`stolos hub unjoin {name}`, then join this one"), another_way()];
            Err((text.to_owned(), ways))
        }
        None => {
            let text = "its API server is to be reached through the hub, and it is not a member of that";
            let ways = [
                format!(
                    "`stolos hub token create {name}` at the hub, and what it prints in the cluster; or `hub.join: agent`"
                ),
                another_way(),
            ];
            Err((text.to_owned(), ways))
        }
    }
}

/// Why a cluster is not the member that it should be, and the ways out.
type NoMember = (String, [String; 2]);

/// What the hub calls a cluster, and its Cluster there; nothing yet where this run makes it a member.
fn called<'a>(
    scene: &Scene<'_>,
    hub: &'a ClusterState,
    read: &Cluster,
    state: &ClusterState,
) -> Result<(String, Option<&'a Value>), NoMember> {
    let joins = scene.mesh.hub.as_ref().and_then(|hub| hub.joins(read)).is_some();
    match member(hub, read, state) {
        Ok(found) => Ok((meta::name(found).to_owned(), Some(found))),
        Err(_) if joins => Ok((read.name.to_string(), None)),
        Err(why) => Err(why),
    }
}

fn another_way() -> String {
    "leave `api: {via: tunnel}` out where the others can dial it".to_owned()
}

/// What must hold before anything is written anywhere.
pub(super) fn check(scene: &Scene<'_>, sketch: &mut Sketch) {
    let hub = match &scene.observed.hub {
        None => {
            if scene.mesh.uses_tunnel() {
                let through = scene.mesh.clusters.iter().filter(|read| read.api == Some(Api::Tunnel));
                let names: Vec<_> = through.map(|read| read.name.as_str()).collect();
                let text = format!(
                    "nobody asked the hub, so that what the others need to read {} through it is not among this",
                    names.join(", ")
                );
                sketch.note(None, text);
            }
            return;
        }
        Some(Sight::Unreachable { why, .. }) => {
            sketch.note(Some(HUB), format!("not reachable, so nothing is planned for it: {why}"));
            return;
        }
        Some(Sight::Seen(hub)) => hub,
    };
    if let Some((cluster, _)) = scene.live.iter().find(|(_, state)| !state.uid.is_empty() && state.uid == hub.uid) {
        let text = format!("it is the same as {} (kube-system has the same UID)", cluster.name);
        sketch.problem("same-cluster", Some(HUB), text, &["a hub has an API server of its own"]);
    }
    for missing in &hub.unreadable {
        let text = format!("could not read {}: {}", missing.what, missing.why);
        sketch.problem("unreadable", Some(HUB), text, &["use a context that may do everything in the hub"]);
    }
}

/// The accounts of the hub, and who may read in the clusters behind it; and clusters that are to be its members.
pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    join(scene, sketch);
    accounts(scene, sketch);
}

/// Clusters that can be dialled become members, where the file says so. They bear the labels of what is ours: who was a
/// member before stays one.
fn join(scene: &Scene<'_>, sketch: &mut Sketch) {
    let Some(hub) = scene.hub else { return };
    for cluster in &scene.mesh.clusters {
        let name = cluster.name.as_str();
        let key = ObjectKey::new(CLUSTERS, "Cluster", None, name);
        let join = scene.mesh.hub.as_ref().and_then(|hub| hub.joins(cluster));
        // Who is read through the hub stays its member, whoever made it one.
        if join.is_some() || scene.mesh.hub.is_some() && cluster.api == Some(Api::Tunnel) {
            sketch.want(HUB, key.clone());
        }
        let Some(join) = join else { continue };
        let Some(state) = scene.observed.cluster(name) else { continue };
        let known: Vec<&Value> = hub.objects.kind("Cluster").map(|(_, object)| object).collect();
        let id = |object: &Value| object["spec"]["id"].as_str().unwrap_or_default().to_owned();
        let same = known.iter().find(|object| !state.uid.is_empty() && id(object) == state.uid);
        let because = match same {
            None => format!("{name} is not a member of the hub yet"),
            // Who was a member before stays as it is.
            Some(object) if !is_owned(scene.mesh_name(), object) => continue,
            Some(object) => match lacks(scene, join, name, state, object) {
                Some(why) => why,
                None => continue,
            },
        };
        if known
            .iter()
            .any(|object| meta::name(object) == name && ![String::new(), state.uid.clone()].contains(&id(object)))
        {
            let text = "it is to be a member of the hub, and what the hub calls so is another cluster";
            let unjoin = format!("`stolos hub unjoin {name}`");
            sketch.problem("no-member", Some(name), text, &[&unjoin, "`hub.join: false`"]);
            continue;
        }
        let labels = ours(scene.mesh_name(), json!({"metadata": {"labels": {}}}))["metadata"]["labels"].clone();
        let change = Change::Join {
            member: name.to_owned(),
            region: cluster.region.clone(),
            zone: cluster.zone.clone(),
            labels: serde_json::from_value(labels).unwrap_or_default(),
            agent: (join == Join::Agent).then(agent_image),
        };
        let action = if same.is_some() { Action::Change } else { Action::Add };
        let diff = vec![ObjectDiff { object: key, action, fields: vec![] }];
        let work = Work::Do { action, change, because, diff };
        sketch.draft(id_of_join(name), Some(HUB), vec![], work);
    }
}

/// The image that an agent's pod runs.
fn agent_image() -> String {
    format!("stolos:{VERSION}")
}

/// What is wrong with a member that this mesh made one, so that it is made one again.
fn lacks(scene: &Scene<'_>, join: Join, name: &str, state: &ClusterState, member: &Value) -> Option<String> {
    // One of which the hub says nothing yet was cut short: its credential may never have come.
    if member["status"]["conditions"].as_array().is_none_or(Vec::is_empty) {
        return Some(format!("{name} is not a member of the hub yet"));
    }
    let dials = member["spec"]["syncMode"] == "Pull";
    match (join, dials) {
        (Join::Dialled, false) => return None,
        (Join::Dialled, true) => return Some(format!("{name} is to be dialled by the hub, and an agent dials it")),
        (Join::Agent, false) => return Some(format!("the hub dials {name}, where an agent is to dial it")),
        (Join::Agent, true) => {}
    }
    let find = |version: &str, kind: &str| state.objects.get(&ObjectKey::new(version, kind, Some(AGENT), AGENT));
    let (Some(deployment), Some(secret)) = (find("apps/v1", "Deployment"), find("v1", "Secret")) else {
        return Some(format!("the agent of {name} is not installed"));
    };
    let image = &deployment["spec"]["template"]["spec"]["containers"][0]["image"];
    if *image != *agent_image() {
        return Some(format!(
            "the agent of {name} runs {}, not {}",
            image.as_str().unwrap_or("nothing"),
            agent_image()
        ));
    }
    // What it registered for: the hub takes no certificate of another membership, nor one that is over.
    let epoch = meta::annotation(member, "stolos.dev/agents-epoch").unwrap_or(meta::uid(member));
    let own = secret_text(secret, "agent.pem").and_then(|pem| Certificate::all_from_pem(&pem).ok()?.into_iter().next());
    let good = own.is_some_and(|own| {
        own.not_after() > scene.observed.now && own.uris().iter().any(|uri| uri.ends_with(&format!(".{epoch}")))
    });
    (!good).then(|| format!("the agent of {name} has no certificate that the hub takes: it gets a token for another"))
}

fn id_of_join(member: &str) -> String {
    id("hub", HUB, &format!("join-{member}"))
}

/// Members that the mesh made such and does not want any more leave the hub, when `after` is done.
fn leave(sketch: &mut Sketch, part: &str, members: Vec<&Value>, after: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut steps = Vec::new();
    for member in members {
        let name = meta::name(member);
        let step = id(part, HUB, &format!("unjoin-{name}"));
        let diff = vec![ObjectDiff { object: ObjectKey::of(member), action: Action::Remove, fields: vec![] }];
        let because = format!("{name} was made a member by this mesh; what the hub brought there goes with it");
        let change = Change::Unjoin { member: name.to_owned() };
        let work = Work::Do { action: Action::Remove, change, because, diff };
        sketch.draft(step.clone(), Some(HUB), after(name), work);
        steps.push(step);
    }
    steps
}

fn accounts(scene: &Scene<'_>, sketch: &mut Sketch) {
    let through = || scene.mesh.clusters.iter().filter(|read| read.api == Some(Api::Tunnel));
    let Some(hub) = scene.hub.filter(|_| scene.mesh.uses_tunnel()) else {
        // What is known through a hub that does not answer stays.
        let readers = ObjectKey::new(RBAC, "ClusterRoleBinding", None, READERS);
        return through().for_each(|read| sketch.want(read.name.as_str(), readers.clone()));
    };
    let mesh = scene.mesh_name();
    let space = hub_namespace(mesh);
    if let Some(before) = other_hub(scene, hub) {
        let text = format!(
            "the mesh was with another hub before (context {}): what it has there stays, and its tokens end by themselves: \
             kubectl --context {} delete namespace {space}",
            before.context, before.context
        );
        sketch.note(Some(HUB), text);
    }
    let key = ObjectKey::new("v1", "Namespace", None, &space);
    let (going, mut after, mut without) = (id("links", HUB, "namespace-gone"), vec![], None);
    if hub.objects.get(&key).is_some_and(|live| live["metadata"]["deletionTimestamp"].is_string()) {
        sketch.wait(HUB, hub, going.clone(), vec![], vec![Condition::Gone { object: key.clone() }]);
        after.push(going);
        let mut rest = hub.clone();
        rest.objects.remove(&key);
        without = Some(rest);
    }
    let mut wanted = ours(mesh, namespace(&space));
    wanted["metadata"]["labels"][STAYS_HERE] = "true".into();
    sketch.write(HUB, without.as_ref().unwrap_or(hub), id("links", HUB, "namespace"), after, vec![wanted]);
    for read in through() {
        readers(scene, sketch, hub, &space, read);
    }
}

fn readers(scene: &Scene<'_>, sketch: &mut Sketch, hub: &ClusterState, space: &str, read: &Cluster) {
    let name = read.name.as_str();
    let state = scene.observed.cluster(name);
    let found = state.map(|state| called(scene, hub, read, state));
    if let Some(Err((text, ways))) = &found {
        let ways: Vec<&str> = ways.iter().map(String::as_str).collect();
        sketch.problem("no-member", Some(name), text, &ways);
        return;
    }
    let found = found.and_then(Result::ok);
    if let Some(why) = found.as_ref().and_then(|(_, live)| not_ready((*live)?)) {
        let text = format!("the hub does not reach it now ({why}): whoever reads it goes by what is known");
        sketch.note(Some(name), text);
    }
    let mut subjects = Vec::new();
    for into in scene.mesh.clusters.iter().filter(|into| into.name != read.name && into.primary().is_none()) {
        let called = pair(into.name.as_str(), name);
        let user = format!("system:serviceaccount:{space}:{called}");
        subjects.push(json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}));
        let objects = account(scene.mesh_name(), space, into, read, found.as_ref().map_or("", |(name, _)| name));
        match &found {
            Some(_) => {
                let after = vec![id("links", HUB, "namespace")];
                sketch.write(HUB, hub, id("links", HUB, &called), after, objects);
            }
            // What is known of a cluster that does not answer stays.
            None => objects.iter().for_each(|object| sketch.want(HUB, ObjectKey::of(object))),
        }
    }
    let Some(state) = state.filter(|_| !subjects.is_empty()) else { return };
    let role = reader_role(scene);
    let binding = json!({"apiVersion": RBAC, "kind": "ClusterRoleBinding",
        "metadata": {"name": READERS, "labels": {"app": "istio-reader"}},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": subjects});
    let after = vec![id("links", name, "reader")];
    sketch.write(name, state, readers_step(name), after, vec![ours(scene.mesh_name(), binding)]);
}

/// What a pair has in the hub. A primary does more in its own remote than read (B.5): the binding there says what.
fn account(mesh: &str, space: &str, into: &Cluster, read: &Cluster, member: &str) -> Vec<Value> {
    let (into_name, read_name) = (into.name.as_str(), read.name.as_str());
    let name = pair(into_name, read_name);
    let wide = format!("{space}:{name}");
    let own = |mut object: Value| {
        object["metadata"]["annotations"] = json!({READER: into_name, READ: read_name});
        ours(mesh, object)
    };
    let mut verbs = vec!["get", "list", "watch"];
    if read.primary() == Some(&into.name) {
        verbs.extend(["create", "update", "patch"]);
    }
    vec![
        own(json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": name, "namespace": space, "labels": {}}})),
        own(json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": name, "namespace": space, "labels": {}}})),
        own(json!({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": wide, "labels": {}},
            "rules": [{"apiGroups": ["cluster.karmada.io"], "resources": ["clusters/proxy"],
                "resourceNames": [member], "verbs": verbs}]})),
        own(json!({"apiVersion": RBAC, "kind": "ClusterRoleBinding", "metadata": {"name": wide, "labels": {}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": wide},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": space}]})),
    ]
}

/// The role of a control plane that reads another cluster: the small engine's, or the one of Istio's charts (1.30,
/// `istio-discovery/templates/reader-clusterrole.yaml`).
fn reader_role(scene: &Scene<'_>) -> String {
    match scene.mesh.control_plane.revision.as_deref().filter(|_| scene.istio) {
        Some(revision) => format!("istio-reader-clusterrole-{revision}-{SYSTEM_NAMESPACE}"),
        None => super::links::ROLE.to_owned(),
    }
}

/// Why the hub does not reach a member, if it does not.
fn not_ready(member: &Value) -> Option<String> {
    let conditions = member["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    (ready["status"] != "True").then(|| ready["message"].as_str().unwrap_or("it is not ready").to_owned())
}

/// The hub that the mesh was with, where that is another one than `hub`.
fn other_hub(scene: &Scene<'_>, hub: &ClusterState) -> Option<RememberedHub> {
    let known = scene.live.iter().find_map(|(_, state)| remembered_hub(scene.mesh_name(), state))?;
    (!known.uid.is_empty() && known.uid != hub.uid).then_some(known)
}

/// What the mesh is to remember of its hub in the cluster of `state`, and what must have happened before.
pub(super) fn memory(scene: &Scene<'_>, state: &ClusterState) -> (Option<RememberedHub>, Vec<String>) {
    let before = remembered_hub(scene.mesh_name(), state);
    match (&scene.mesh.hub, scene.hub) {
        (Some(file), Some(hub)) if scene.mesh.needs_hub() => {
            let kubeconfig = file.kubeconfig.as_deref().map(Path::display).map(|path| path.to_string());
            (Some(RememberedHub { context: file.context.clone(), kubeconfig, uid: hub.uid.clone() }), vec![])
        }
        // It is forgotten when nothing is left there.
        (_, Some(_)) => (None, vec![id("leftovers", HUB, "gone")]),
        (_, None) => (before, vec![]),
    }
}

/// What the mesh has in the hub and no longer wants: pairs one by one, when nobody uses them any more, then the rest.
pub(super) fn leftovers(scene: &Scene<'_>, sketch: &mut Sketch) {
    let Some(hub) = scene.hub else { return };
    let owned = hub.objects.iter().filter(|(_, object)| is_owned(scene.mesh_name(), object));
    let unwanted = owned.filter(|(key, _)| !sketch.wanted.contains(&(HUB.to_owned(), (*key).clone())));
    let mut pairs: BTreeMap<(String, String), Vec<&Value>> = BTreeMap::new();
    let (mut rest, mut members) = (Vec::new(), Vec::new());
    for (key, object) in unwanted {
        if key.kind == "Cluster" {
            members.push(object);
            continue;
        }
        let said = |what: &str| object["metadata"]["annotations"][what].as_str().map(str::to_owned);
        match (said(READER), said(READ)) {
            (Some(into), Some(read)) => pairs.entry((into, read)).or_default().push(object),
            _ if key.kind == "Namespace" => rest.push(object),
            _ => {}
        }
    }
    let mut revoked = leave(sketch, "leftovers", members, |name| vec![id("teardown", name, "gone")]);
    let of_mesh = |name: &str| scene.mesh.clusters.iter().any(|cluster| cluster.name.as_str() == name);
    for ((into, read), objects) in pairs {
        // One that cannot be given another credential keeps this one.
        if of_mesh(&into) && of_mesh(&read) && scene.observed.cluster(&into).is_none() {
            rest.clear();
            continue;
        }
        let step = id("leftovers", HUB, &format!("revoke-{}", pair(&into, &read)));
        let mut after = vec![
            id("links", &into, &read),
            id("leftovers", &into, &format!("forget-{read}")),
            id("leftovers", &into, &format!("secret-{}", crate::remote_secret_name(&read))),
            id("teardown", &into, "links"),
        ];
        // One that leaves is not cut off from what it still uses.
        after.push(id("teardown", &into, "stopped"));
        sketch.blast.credentials.push(format!("{into}: its token for {read}, of the hub"));
        sketch.remove(HUB, step.clone(), after, objects, format!("{into} no longer reads {read} through the hub"));
        revoked.push(step);
    }
    take_namespace(scene, sketch, hub, "leftovers", rest, revoked, "no cluster is reached through the hub any more");
}

/// Takes the mesh out of its hub.
pub(super) fn teardown(scene: &Scene<'_>, sketch: &mut Sketch) {
    let hub = match &scene.observed.hub {
        None => return,
        Some(Sight::Unreachable { why, .. }) => {
            let text = format!(
                "it cannot be reached, so namespace {} and the roles of the mesh stay in it: {why}",
                hub_namespace(scene.mesh_name())
            );
            return sketch.leftover(HUB, None, text);
        }
        Some(Sight::Seen(hub)) => hub,
    };
    let owned = hub.objects.iter().filter(|(_, object)| is_owned(scene.mesh_name(), object));
    let (members, owned): (Vec<_>, Vec<_>) = owned.partition(|(key, _)| key.kind == "Cluster");
    let members = members.into_iter().map(|(_, object)| object).collect();
    let mut left = leave(sketch, "teardown", members, |name| vec![id("teardown", name, "gone")]);
    let (spaces, rest): (Vec<_>, Vec<_>) = owned.into_iter().partition(|(key, _)| key.kind == "Namespace");
    let values =
        |objects: Vec<(&ObjectKey, &'_ Value)>| objects.into_iter().map(|(_, o)| o.clone()).collect::<Vec<_>>();
    let (spaces, rest) = (values(spaces), values(rest));
    let after = scene.observed.clusters.keys().map(|cluster| id("teardown", cluster, "links")).collect();
    let step = id("teardown", HUB, "credentials");
    let because = "the mesh is torn down";
    sketch.remove(HUB, step.clone(), after, rest.iter().collect(), because.to_owned());
    left.push(step);
    take_namespace(scene, sketch, hub, "teardown", spaces.iter().collect(), left, because);
}

/// The namespace goes last, unless somebody else has something in it.
fn take_namespace(
    scene: &Scene<'_>,
    sketch: &mut Sketch,
    hub: &ClusterState,
    part: &str,
    namespaces: Vec<&Value>,
    after: Vec<String>,
    because: &str,
) {
    let mesh = scene.mesh_name();
    let going: BTreeSet<&str> = namespaces.iter().map(|namespace| meta::name(namespace)).collect();
    let foreign: Vec<String> = hub
        .objects
        .iter()
        .filter(|(key, _)| key.namespace.as_deref().is_some_and(|space| going.contains(space)))
        .filter(|(key, object)| !super::leftovers::is_ours_or_derived(mesh, key, object))
        .map(|(key, _)| key.to_string())
        .collect();
    let stays = super::leftovers::because_of(&foreign);
    let namespaces = match stays {
        Some(why) => {
            for namespace in namespaces {
                sketch.leftover(HUB, Some(ObjectKey::of(namespace)), why.clone());
            }
            vec![]
        }
        None => namespaces,
    };
    let until: Vec<_> =
        namespaces.iter().map(|namespace| Condition::Gone { object: ObjectKey::of(namespace) }).collect();
    let mut last = after.clone();
    sketch.remove(HUB, id(part, HUB, "namespace"), after, namespaces, because.to_owned());
    last.push(id(part, HUB, "namespace"));
    match until.is_empty() {
        true => sketch.draft(id(part, HUB, "gone"), Some(HUB), last, Work::Nothing),
        false => sketch.wait(HUB, hub, id(part, HUB, "gone"), last, until),
    }
}

/// The hub among the places that a plan was made of.
pub(super) fn place(mesh: &Mesh, sight: &Sight) -> Member {
    let (server, version, unreachable) = match sight {
        Sight::Seen(state) => (Some(state.server.clone()), Some(state.version.clone()), None),
        Sight::Unreachable { server, why } => (server.clone(), None, Some(why.clone())),
    };
    let network = mesh.needs_hub().then(|| "the hub".to_owned());
    Member { name: HUB.to_owned(), network, server, version, unreachable }
}
