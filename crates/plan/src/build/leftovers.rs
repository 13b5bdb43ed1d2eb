//! What is there and should not be: traces of clusters that left, parts no longer wanted, and, on teardown, all of it.
//!
//! Only objects that carry both ownership labels are deleted, and a namespace or a definition only when nothing that
//! is not ours would go with it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::control::{INJECTOR, ISTIOD};
use super::gateways::GATEWAY;
use super::{Scene, Sketch, hub, id, istio, remote};
use crate::graph::Work;
use crate::object::{
    CACERTS_SECRET, CREDENTIAL_LABEL, MANAGED_BY_LABEL, MANAGER, MEMBERSHIP, ROOT_CONFIG_MAP, SYSTEM_NAMESPACE,
    is_owned, is_touched, mesh_of, peer_secret, remote_secret_name, secret_text,
};
use crate::operator::{self, recorded};
use crate::release::{Deployed, deployed};
use crate::values::EASTWEST;
use crate::{Action, Change, ClusterState, Condition, ObjectDiff, ObjectKey, Sight};

pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    for former in scene.former.keys() {
        departure(scene, sketch, former);
    }
    for (cluster, state) in &scene.live {
        unwanted(scene, sketch, cluster.name.as_str(), state);
    }
    hub::leftovers(scene, sketch);
}

/// Takes the mesh out of every cluster of the file, and of those that left it.
pub(super) fn teardown(scene: &Scene<'_>, sketch: &mut Sketch) {
    for cluster in &scene.mesh.clusters {
        let name = cluster.name.as_str();
        match scene.observed.clusters.get(name) {
            Some(Sight::Seen(state)) => dismantle(scene, sketch, name, state, &Before::default()),
            Some(Sight::Unreachable { why, .. }) => {
                sketch.leftover(name, None, format!("it cannot be reached, so all of the mesh stays in it: {why}"));
            }
            None => sketch.leftover(name, None, "nobody looked"),
        }
    }
    for former in scene.former.keys() {
        match scene.departed(former) {
            _ if scene.renamed(former).is_some() => {}
            Ok(state) => dismantle(scene, sketch, former, state, &Before::default()),
            Err(why) => sketch.leftover(former, None, format!("it had left the mesh and cannot be cleaned: {why}")),
        }
    }
}

/// A cluster left the file (contract C.6): the others forget it, it forgets the others, then what it held of them
/// stops working, and then the mesh goes out of it.
fn departure(scene: &Scene<'_>, sketch: &mut Sketch, former: &str) {
    let departed = scene.departed(former);
    let renamed = scene.renamed(former);
    let because = match renamed {
        Some(name) => format!("{former} is now called {name}"),
        None => format!("{former} is no longer in the mesh file"),
    };
    let forget = |name: &str| id("leftovers", name, &format!("forget-{former}"));
    let mut forgotten: Vec<String> = scene.live.iter().map(|(c, _)| forget(c.name.as_str())).collect();
    // A primary that leaves serves its remotes until they have another.
    forgotten.extend(remote::served(scene));
    for (cluster, state) in &scene.live {
        let name = cluster.name.as_str();
        let owned = |key: &ObjectKey| state.objects.get(key).filter(|o| is_owned(scene.mesh_name(), o));
        let secret = ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), &remote_secret_name(former));
        sketch.want(name, secret.clone());
        sketch.remove(name, forget(name), vec![], owned(&secret).into_iter().collect(), because.clone());

        let credential = ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), &peer_secret(former));
        sketch.want(name, credential.clone());
        let found = owned(&credential);
        if found.is_some() {
            sketch.blast.credentials.push(format!("{former}: its token for {name}"));
        }
        // Last of all, so that it is not cut off from what it still uses.
        let mut after = vec![forget(name)];
        if departed.is_ok() && renamed.is_none() {
            after.push(id("teardown", former, "links"));
        }
        let revoke = id("leftovers", name, &format!("revoke-{former}"));
        sketch.remove(name, revoke, after, found.into_iter().collect(), because.clone());
    }
    if let Some(name) = renamed {
        let text = format!("was called {former}: pods that are injected keep the old name until they are restarted");
        return sketch.note(Some(name), text);
    }
    match departed {
        Ok(state) => {
            lost_endpoints(scene, sketch, former, state);
            let before = Before::of(scene, sketch, former, state, forgotten);
            dismantle(scene, sketch, former, state, &before);
            let gone = vec![id("teardown", former, "gone")];
            sketch.draft(id("leftovers", former, "gone"), Some(former), gone, Work::Nothing);
        }
        Err(why) => sketch.note(
            Some(former),
            format!(
                "left the mesh file and cannot be cleaned ({why}): its control plane and what it was given stay in it; \
                 its credentials for the other clusters are revoked"
            ),
        ),
    }
}

/// Whether a part of the mesh runs there that others may still send to, or be led by.
fn runs(state: &ClusterState, app: &str) -> bool {
    let labelled = |object: &Value| {
        object["metadata"]["labels"]["app"] == app || object["spec"]["template"]["metadata"]["labels"]["app"] == app
    };
    state.objects.kind("Deployment").any(|(_, object)| labelled(object))
}

/// Steps that come before others when a cluster leaves a mesh that goes on.
#[derive(Default)]
struct Before {
    /// Before anything.
    all: Vec<String>,
    /// Before what others may send to: proxies that the leaving control plane leads have another one first, and it is
    /// only by its end that they take one.
    serving: Vec<String>,
}

impl Before {
    fn of(scene: &Scene<'_>, sketch: &mut Sketch, former: &str, state: &ClusterState, forgotten: Vec<String>) -> Self {
        let primaries = scene.live.iter().map(|(cluster, _)| cluster).filter(|cluster| cluster.primary().is_none());
        let leads = runs(state, ISTIOD);
        let serves = leads || [GATEWAY, EASTWEST].iter().any(|app| runs(state, app));
        let (mut all, mut serving) = (forgotten.clone(), Vec::new());
        for cluster in primaries {
            let (name, of) = (cluster.name.as_str(), |what: &str| format!("{what}-{former}"));
            let forgotten_by = |remotes| Condition::Forgotten { cluster: former.to_owned(), remotes };
            let step = id("leftovers", name, &of("forgot"));
            sketch.wait_unseen(name, step.clone(), forgotten.clone(), forgotten_by(vec![]), serves);
            all.push(step);
            let remotes = scene.live.iter().filter(|(remote, _)| remote.primary() == Some(&cluster.name));
            let remotes: Vec<String> = remotes.map(|(remote, _)| remote.name.to_string()).collect();
            if !remotes.is_empty() {
                let step = id("leftovers", name, &of("leads-without"));
                let after = ["istiod", "helm-istiod", "istioctl"].map(|what| id("teardown", former, what)).to_vec();
                sketch.wait_unseen(name, step.clone(), after, forgotten_by(remotes), serves);
                serving.push(step);
            }
        }
        Self { all, serving }
    }
}

/// Services that the leaving cluster shares with others.
fn lost_endpoints(scene: &Scene<'_>, sketch: &mut Sketch, former: &str, state: &ClusterState) {
    let backed = |state: &ClusterState| -> BTreeSet<(String, String)> {
        let slices = state
            .objects
            .kind("EndpointSlice")
            .filter(|(_, slice)| slice["endpoints"].as_array().is_some_and(|endpoints| !endpoints.is_empty()));
        let service = |(key, slice): (&ObjectKey, &Value)| {
            let name = slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str()?;
            Some((key.namespace.clone()?, name.to_owned()))
        };
        slices.filter_map(service).collect()
    };
    let local = |namespace: &str| ["kube-system", SYSTEM_NAMESPACE].contains(&namespace);
    for (namespace, name) in backed(state) {
        if local(&namespace) || (namespace == "default" && name == "kubernetes") {
            continue;
        }
        let key = ObjectKey::new("v1", "Service", Some(&namespace), &name);
        let knows = scene.live.iter().filter(|(_, other)| other.objects.get(&key).is_some()).count();
        if knows == 0 {
            continue;
        }
        let others = scene.live.iter().filter(|(_, other)| backed(other).contains(&(namespace.clone(), name.clone())));
        let others: Vec<_> = others.map(|(c, _)| c.name.as_str()).collect();
        let rest = match others.as_slice() {
            [] => "and has none elsewhere".to_owned(),
            others => format!("and keeps those in {}", others.join(", ")),
        };
        sketch.blast.endpoints.push(format!("{namespace}/{name}: loses its endpoints in {former}, {rest}"));
    }
}

/// Objects of this mesh that no part wants any more. Samples stay: they may have been asked for on the command line.
fn unwanted(scene: &Scene<'_>, sketch: &mut Sketch, cluster: &str, state: &ClusterState) {
    let mut samples = false;
    let found: Vec<(ObjectKey, Value)> = state
        .objects
        .iter()
        .filter(|(key, object)| is_ours_to_delete(scene.mesh_name(), key, object))
        // Given to somebody by hand, and taken back by hand.
        .filter(|(_, object)| object["metadata"]["labels"][CREDENTIAL_LABEL].is_null())
        .filter(|(key, _)| !sketch.wanted.contains(&(cluster.to_owned(), (*key).clone())))
        .map(|(key, object)| (key.clone(), object.clone()))
        .collect();
    for (key, object) in &found {
        let in_system = key.namespace.as_deref().is_none_or(|n| n == SYSTEM_NAMESPACE) && key.kind != "Namespace";
        if !in_system || key.kind == "CustomResourceDefinition" {
            samples |= !in_system;
            continue;
        }
        let name = format!("{}-{}", key.kind.to_lowercase(), key.name);
        let because = format!("{key} is no longer wanted");
        let mut after = vec![];
        if key.kind == "Deployment" {
            after.push(id("control", cluster, "ready"));
        }
        // A way into this cluster goes when its reader has another.
        let by_hub = key.name == hub::READERS;
        let readers = scene.mesh.clusters.iter().map(|reader| reader.name.as_str());
        let readers = readers.filter(|reader| by_hub || key.name == peer_secret(reader));
        after.extend(readers.map(|reader| id("links", reader, cluster)));
        // What served a remote goes when another serves it.
        after.extend(remote::served(scene));
        sketch.remove(cluster, id("leftovers", cluster, &name), after, vec![object], because);
    }
    if samples {
        sketch.note(Some(cluster), "samples are installed that this run did not ask for; they stay until teardown");
    }
}

/// Takes the mesh out of one cluster, in the order in which nothing breaks on the way: what would refuse pods first,
/// what serves next, then what it served with, and last what the objects lived in.
fn dismantle(scene: &Scene<'_>, sketch: &mut Sketch, cluster: &str, state: &ClusterState, before: &Before) {
    let mesh = scene.mesh_name();
    let here = |what: &str| id("teardown", cluster, what);
    let because = match scene.former.contains_key(cluster) {
        true => format!("{cluster} is no longer in the mesh file"),
        false => "the mesh is torn down".to_owned(),
    };
    let releases = deployed(&state.objects);
    let operators = recorded(&state.objects, mesh);
    let goes_on = goes_on(scene, state);
    let belongs = |object: &Value| istio::belongs(&releases, mesh, object) || operator::is_of(object, &operators);
    let (kept_namespaces, kept_definitions) = kept(scene, sketch, cluster, state, &belongs);

    // Every object of ours goes in exactly one of these steps.
    let mut stages: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for (key, object) in state.objects.iter() {
        let stage = if !goes_on && is_published_root(scene, state, key, object) {
            "roots"
        } else if key.kind == "CustomResourceDefinition" && belongs(object) {
            // Istio's charts have theirs kept when they are uninstalled.
            "crds"
        } else if !is_ours_to_delete(mesh, key, object) {
            continue;
        } else {
            stage(key, object)
        };
        let stays = match stage {
            "namespaces" => kept_namespaces.contains(&key.name),
            "crds" => kept_definitions.contains(&key.name),
            _ => false,
        };
        if !stays {
            stages.entry(stage).or_default().push(object);
        }
    }
    const ORDER: [(&str, &[&str]); 12] = [
        ("injector", &[]),
        ("links", &[]),
        ("samples", &["injector"]),
        ("gateways", &["samples", "injector"]),
        ("helm-gateways", &["gateways"]),
        ("istiod", &["gateways", "injector", "links"]),
        ("helm-istiod", &["helm-gateways", "istiod"]),
        // A remote's primary would put them back as long as it can.
        ("roots", &["stopped", "links"]),
        ("config", &["roots"]),
        ("helm-base", &["config", "helm-istiod"]),
        ("crds", &["config", "helm-base"]),
        ("namespaces", &["config", "helm-base"]),
    ];
    let mut helms: BTreeMap<&str, Vec<&Deployed>> = BTreeMap::new();
    for release in releases.values().filter(|release| release.mesh.as_deref() == Some(mesh)) {
        let stage = istio::stage(release);
        if stage == "helm-base" && !definitions_stay(state, &kept_definitions) {
            let object = ObjectKey::new(crate::RELEASE_SECRET, "Release", Some(&release.namespace), &release.name);
            sketch.leftover(cluster, Some(object), "definitions would go with it that others have objects of");
            continue;
        }
        helms.entry(stage).or_default().push(release);
    }
    for (name, after) in ORDER {
        // Otherwise a control plane is there until the last that it serves is gone.
        let leads_first = name.ends_with("istiod") && !before.serving.is_empty();
        let later = |before: &str| before.ends_with("gateways") || before == "links";
        let after = after.iter().filter(|before| !(leads_first && later(before)));
        let mut after: Vec<String> = after.map(|a| here(a)).collect();
        after.extend(before.all.clone());
        // Without its links it would tell the proxies that it still leads that nobody else is there.
        if ["links", "samples", "gateways", "helm-gateways"].contains(&name) {
            after.extend(before.serving.clone());
        }
        if name.starts_with("helm-") {
            let releases = helms.remove(name).unwrap_or_default();
            // A mesh has its Istio from the one or from the other.
            if name == "helm-istiod" && !operators.is_empty() {
                istio::withdraw(scene, sketch, cluster, here("istioctl"), after.clone(), &operators, &because);
            } else if name == "helm-istiod" {
                sketch.draft(here("istioctl"), Some(cluster), after.clone(), Work::Nothing);
            }
            istio::uninstall(scene, sketch, cluster, here(name), after, &releases, &because);
        } else {
            let objects = stages.remove(name).unwrap_or_default();
            sketch.remove(cluster, here(name), after, objects, because.clone());
        }
        if name == "helm-istiod" {
            // A control plane that is still there would write what is being removed.
            let gone = |app: &str| Condition::NoPods {
                namespace: SYSTEM_NAMESPACE.to_owned(),
                labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            };
            let deployment = |name: &str| Condition::Gone {
                object: ObjectKey::new("apps/v1", "Deployment", Some(SYSTEM_NAMESPACE), name),
            };
            let ours = |name: &str| {
                let key = ObjectKey::new("apps/v1", "Deployment", Some(SYSTEM_NAMESPACE), name);
                state.objects.get(&key).is_none_or(|live| is_owned(mesh, live))
            };
            let apps = [ISTIOD, GATEWAY].into_iter().filter(|app| ours(app));
            let mut until: Vec<Condition> = apps.flat_map(|app| [deployment(app), gone(app)]).collect();
            for (key, object) in state.objects.kind("Deployment").filter(|(_, o)| belongs(o)) {
                let labels = object["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
                let labels = labels.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
                until.push(Condition::Gone { object: key.clone() });
                until.push(Condition::NoPods { namespace: key.namespace.clone().unwrap_or_default(), labels });
            }
            let after = ["istiod", "gateways", "helm-istiod", "helm-gateways", "istioctl"].map(here).to_vec();
            sketch.wait(cluster, state, here("stopped"), after, until);
        }
    }
    release(scene, sketch, cluster, state, &because);
    let namespaces = state.objects.kind("Namespace");
    let going = namespaces.filter(|(key, o)| is_owned(mesh, o) && !kept_namespaces.contains(&key.name));
    let until = going.map(|(key, _)| Condition::Gone { object: key.clone() }).collect();
    let last = ["namespaces", "crds", "membership", "release"].map(here).to_vec();
    sketch.wait(cluster, state, here("gone"), last, until);
}

/// What is ours in an object that is not: the network label of a namespace that was there before. And the memory of
/// the mesh, which goes last where its namespace stays.
fn release(scene: &Scene<'_>, sketch: &mut Sketch, cluster: &str, state: &ClusterState, because: &str) {
    let here = |what: &str| id("teardown", cluster, what);
    let membership = ObjectKey::new("v1", "ConfigMap", Some(SYSTEM_NAMESPACE), MEMBERSHIP);
    let members = state.objects.get(&membership).filter(|o| is_owned(scene.mesh_name(), o));
    let system = ObjectKey::new("v1", "Namespace", None, SYSTEM_NAMESPACE);
    let live = state.objects.get(&system);
    // In a namespace of ours it goes along with it, at the very last moment.
    let goes_along = sketch.drafts.iter().any(|draft| {
        draft.id == here("namespaces")
            && matches!(&draft.work, Work::Do { change: Change::Remove { objects }, .. }
                if objects.iter().any(|(key, _)| *key == system))
    });
    let members = members.filter(|_| !goes_along);
    let after = ["crds", "namespaces", "config", "roots"].map(here).to_vec();
    sketch.remove(cluster, here("membership"), after, members.into_iter().collect(), because.to_owned());
    // Where somebody else's mesh goes on, so does its network.
    let shared = live.filter(|live| mesh_of(live).is_none() && is_touched(live) && !goes_on(scene, state));
    let work = match shared {
        None => Work::Nothing,
        Some(_) => Work::Do {
            action: Action::Change,
            change: Change::Release { object: system.clone() },
            because: "its network label is the mesh's, the namespace is not".to_owned(),
            diff: vec![ObjectDiff { object: system, action: Action::Change, fields: vec![] }],
        },
    };
    sketch.draft(here("release"), Some(cluster), vec![here("stopped"), here("config")], work);
}

/// Whether there is a control plane that is not ours: a mesh that was only adopted, and goes on without us.
fn goes_on(scene: &Scene<'_>, state: &ClusterState) -> bool {
    let mesh = scene.mesh_name();
    let mut control = state.objects.kind("Deployment").filter(|(key, object)| {
        key.namespace.as_deref() == Some(SYSTEM_NAMESPACE) && object["metadata"]["labels"]["app"] == ISTIOD
    });
    let ours = |object: &Value| {
        is_owned(mesh, object)
            || istio::belongs(&deployed(&state.objects), mesh, object)
            || operator::is_of(object, &recorded(&state.objects, mesh))
    };
    control.any(|(_, object)| !ours(object))
}

/// Namespaces and definitions of ours that have to stay, because something in them is not ours.
fn kept(
    scene: &Scene<'_>,
    sketch: &mut Sketch,
    cluster: &str,
    state: &ClusterState,
    belongs: &dyn Fn(&Value) -> bool,
) -> (BTreeSet<String>, BTreeSet<String>) {
    let mesh = scene.mesh_name();
    let (mut namespaces, mut definitions) = (BTreeSet::new(), BTreeSet::new());
    for (key, _) in state.objects.kind("Namespace").filter(|(_, o)| is_owned(mesh, o)) {
        let inside = state.objects.iter().filter(|(k, _)| k.namespace.as_deref() == Some(&key.name));
        let foreign: Vec<String> = inside
            .filter(|(k, o)| !is_ours_or_derived(mesh, k, o) && !belongs(o))
            .map(|(k, _)| k.to_string())
            .collect();
        if let Some(why) = because_of(&foreign) {
            sketch.leftover(cluster, Some(key.clone()), why);
            namespaces.insert(key.name.clone());
        }
    }
    let ours = |crd: &Value| is_owned(mesh, crd) || belongs(crd);
    for (key, crd) in state.objects.kind("CustomResourceDefinition").filter(|(_, o)| ours(o)) {
        let (group, kind) = (crd["spec"]["group"].as_str(), crd["spec"]["names"]["kind"].as_str());
        let of_kind = state
            .objects
            .iter()
            .filter(|(k, _)| Some(k.kind.as_str()) == kind && k.api_version.split_once('/').map(|(g, _)| g) == group);
        let foreign: Vec<String> = of_kind.filter(|(_, o)| !is_owned(mesh, o)).map(|(k, _)| k.to_string()).collect();
        if let Some(why) = because_of(&foreign) {
            sketch.leftover(cluster, Some(key.clone()), why);
            definitions.insert(key.name.clone());
        }
    }
    (namespaces, definitions)
}

/// Whether the definitions that have to stay would survive Helm: those of Istio's charts say that they are to be kept.
fn definitions_stay(state: &ClusterState, kept: &BTreeSet<String>) -> bool {
    state
        .objects
        .kind("CustomResourceDefinition")
        .filter(|(key, _)| kept.contains(&key.name))
        .all(|(_, crd)| crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep")
}

pub(super) fn because_of(foreign: &[String]) -> Option<String> {
    match foreign {
        [] => None,
        [one] => Some(format!("{one} is not Stolos' own and would go with it")),
        [first, rest @ ..] => Some(format!("{first} and {} more are not Stolos' own and would go with it", rest.len())),
    }
}

/// In which step of a teardown an object goes.
fn stage(key: &ObjectKey, object: &Value) -> &'static str {
    let labelled = |name: &str| object["metadata"]["labels"][name].is_string();
    let in_system = key.namespace.as_deref() == Some(SYSTEM_NAMESPACE);
    match key.kind.as_str() {
        "Namespace" => "namespaces",
        "CustomResourceDefinition" => "crds",
        "MutatingWebhookConfiguration" if key.name == INJECTOR => "injector",
        "Secret" if in_system && labelled("istio/multiCluster") => "links",
        "Secret" if in_system && key.name.starts_with(&peer_secret("")) => "links",
        "Deployment" | "Service" | "EndpointSlice" if in_system && key.name == ISTIOD => "istiod",
        "Deployment" | "Service" if in_system && key.name == GATEWAY => "gateways",
        _ if key.namespace.is_some() && !in_system => "samples",
        _ => "config",
    }
}

/// Both labels, and no owner: what a controller made from ours (and gave our labels) goes with its owner. The memory
/// of the mesh has a moment of its own.
fn is_ours_to_delete(mesh: &str, key: &ObjectKey, object: &Value) -> bool {
    let has_owner = object["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
    let derived = ["Pod", "ReplicaSet", "EndpointSlice", "Endpoints"].contains(&key.kind.as_str())
        && !remote::is_way(mesh, key, object);
    let remembers = key.kind == "ConfigMap" && key.name == MEMBERSHIP;
    // Helm's memory is Helm's to forget.
    let release = object["type"] == crate::RELEASE_SECRET;
    // And what `istioctl` installed is forgotten when it is gone.
    let record = key.kind == "ConfigMap" && key.name.starts_with(operator::RECORD);
    is_owned(mesh, object) && !has_owner && !derived && !remembers && !release && !record
}

/// Whether deleting the namespace around it harms nobody: ours, made from ours, or made by Kubernetes and the control
/// plane for every namespace.
pub(super) fn is_ours_or_derived(mesh: &str, key: &ObjectKey, object: &Value) -> bool {
    if is_owned(mesh, object) || object["metadata"]["labels"][MANAGED_BY_LABEL] == MANAGER {
        return true;
    }
    let owners = object["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
    match key.kind.as_str() {
        "Event" | "Lease" | "Endpoints" | "EndpointSlice" => true,
        "ServiceAccount" => key.name == "default",
        "ConfigMap" => {
            let elected = key.name.starts_with("istio-") && key.name.ends_with("-election");
            ["kube-root-ca.crt", ROOT_CONFIG_MAP, "istio-leader"].contains(&key.name.as_str()) || elected
        }
        "Secret" => object["type"] == "kubernetes.io/service-account-token",
        _ => owners,
    }
}

/// The root that our control plane published, in whatever namespace. It carries no labels of ours, so it is known by
/// name and by what is in it: the root that this mesh's signing certificate chains to.
fn is_published_root(scene: &Scene<'_>, state: &ClusterState, key: &ObjectKey, object: &Value) -> bool {
    if key.kind != "ConfigMap" || key.name != ROOT_CONFIG_MAP {
        return false;
    }
    let Some(published) = object["data"]["root-cert.pem"].as_str() else { return false };
    let fingerprint = |pem: &str| stolos_pki::Certificate::from_pem(pem).ok().map(|c| c.fingerprint());
    let intended = |state: &ClusterState| {
        let cacerts = state.objects.get(&ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), CACERTS_SECRET));
        let pem = secret_text(cacerts.filter(|s| is_owned(scene.mesh_name(), s))?, "root-cert.pem")?;
        fingerprint(&pem)
    };
    // A remote has no signing certificate: its primary's root is published there.
    let others = || scene.observed.seen().filter_map(|(_, state)| intended(state));
    let folder = scene.observed.state.root.as_ref().map(|root| root.fingerprint.clone());
    let Some(found) = fingerprint(published) else { return false };
    Some(&found) == folder.as_ref() || intended(state).or_else(|| others().find(|root| *root == found)) == Some(found)
}
