//! Clusters that are a mesh already, or nearly, read back into what their mesh file would say.
//!
//! Whoever installed it: what counts is what a control plane was told (its environment and the injector's values), what
//! is labelled (networks, gateways), and what the clusters hold of each other (remote secrets). Nothing is guessed where
//! nothing stands; that is said instead.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use stolos_pki::Certificate;
use stolos_spec::{Api, Cluster, ClusterName, Engine, Installer, Mesh, MeshName, Mtls, NetworkName, Role, Sample};

use crate::build::remembered_by;
use crate::object::{
    CACERTS_SECRET, MANAGED_BY_LABEL, MANAGER, MEMBERSHIP, MESH_LABEL, ROOT_CONFIG_MAP, SAMPLE_NAMESPACE,
    SYSTEM_NAMESPACE, mesh_of, secret_text,
};
use crate::operator::recorded;
use crate::release::{Deployed, deployed};
use crate::values::{EASTWEST, INGRESS, Layers, Minor, Place};
use crate::{ClusterState, Note, ObjectKey};

/// What was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Adopted {
    /// The mesh that the clusters are.
    pub mesh: Mesh,
    /// What a person should know of it.
    pub notes: Vec<Note>,
    /// The root that all of them trust, as PEM, where there is one.
    pub root: Option<String>,
}

/// Reads `mesh`, of which only contexts are certain, back from what its clusters (`seen`, by the names that `mesh` has) are.
/// `named` says that the mesh's name was asked for, `networks` which clusters' networks were.
///
/// # Errors
///
/// What makes one mesh of them impossible, in words.
pub fn adopt(
    mut mesh: Mesh,
    seen: &BTreeMap<String, ClusterState>,
    named: bool,
    networks: &BTreeSet<String>,
) -> Result<Adopted, String> {
    let mut notes = Vec::new();
    let mut note = |cluster: Option<&ClusterName>, text: String| {
        notes.push(Note { cluster: cluster.map(ToString::to_string), text });
    };
    let mut uids: BTreeMap<&str, &Cluster> = BTreeMap::new();
    for cluster in &mesh.clusters {
        let Some(state) = seen.get(cluster.name.as_str()) else { continue };
        if let Some(other) = uids.insert(&state.uid, cluster).filter(|_| !state.uid.is_empty()) {
            return Err(format!("{} and {} are the same cluster", other.context, cluster.context));
        }
    }
    let finds: Vec<Find<'_>> =
        mesh.clusters.iter().map(|cluster| Find::of(seen.get(cluster.name.as_str()), seen)).collect();

    if !named {
        let ids: BTreeSet<_> = finds.iter().filter_map(|find| find.mesh.clone()).collect();
        if ids.len() > 1 {
            let list: Vec<_> = ids.iter().map(|id| format!("`{id}`")).collect();
            note(None, format!("the clusters say that they are of several meshes: {}", list.join(", ")));
        }
        match finds.iter().find_map(|find| find.mesh.as_ref()).map(|id| (MeshName::parse(id), id)) {
            Some((Ok(name), _)) => mesh.name = name,
            Some((Err(why), id)) => {
                note(None, format!("the mesh calls itself `{id}`: {why}; it is called `{}`", mesh.name))
            }
            None => note(None, format!("no control plane says what the mesh is called; it is called `{}`", mesh.name)),
        }
    }
    mesh.trust.organization = mesh.name.to_string();

    let mut taken = BTreeSet::new();
    for (cluster, find) in mesh.clusters.iter_mut().zip(&finds) {
        match find.id.as_ref().map(|id| (ClusterName::parse(id), id)) {
            Some((Ok(name), _)) => cluster.name = name,
            Some((Err(why), id)) => {
                let text = format!("its control plane calls it `{id}`: {why}. A new name takes every proxy's restart");
                note(Some(&cluster.name), text);
            }
            None if find.state.is_some() => {
                note(Some(&cluster.name), "nothing says what it is called; it is called by its context".to_owned())
            }
            None => {}
        }
        if !taken.insert(cluster.name.clone()) {
            return Err(format!("two of these clusters are called `{}`", cluster.name));
        }
        let asked = networks.contains(&cluster.context);
        match find.network.as_ref().map(|network| NetworkName::parse(network)) {
            Some(Ok(network)) if !asked => cluster.network = network,
            None if !asked => note(
                Some(&cluster.name),
                format!("it has no network label; it is taken to be on `{}`", cluster.network),
            ),
            _ => {}
        }
        if let Some(server) = &find.server {
            cluster.api = Some(Api::Server(server.clone()));
        }
    }
    let primaries: Vec<ClusterName> =
        mesh.clusters.iter().zip(&finds).filter(|(_, f)| f.istiod.is_some()).map(|(c, _)| c.name.clone()).collect();
    for (cluster, find) in mesh.clusters.iter_mut().zip(&finds).filter(|(_, f)| f.istiod.is_none()) {
        let served = find.served_by.iter().find_map(|name| match name.as_str() {
            "*" => primaries.first(),
            name => primaries.iter().find(|primary| primary.as_str() == name),
        });
        match served {
            Some(primary) => cluster.role = Role::Remote { primary: primary.clone() },
            None if find.state.is_some() => note(Some(&cluster.name), "there is no control plane in it yet".to_owned()),
            None => note(Some(&cluster.name), "it did not answer; only its context is known".to_owned()),
        }
    }

    let root = roots(&mesh, &finds, &mut note);
    if let Some(organization) = root.as_deref().and_then(organization) {
        mesh.trust.organization = organization;
    }
    if let Some(domain) = finds.iter().find_map(|find| find.trust_domain.clone()) {
        mesh.trust.domain = domain;
    }
    let strict = |find: &Find<'_>| find.istiod.is_none() || find.strict;
    if finds.iter().any(|find| find.istiod.is_some()) && !finds.iter().all(strict) {
        mesh.mtls = Mtls::Permissive;
        note(None, "plaintext is accepted inside the mesh: PeerAuthentication `default` of istio-system is not STRICT everywhere".to_owned());
    }
    if let Some(hosts) = finds.iter().find_map(|find| find.hosts.clone()).filter(|hosts| !hosts.is_empty()) {
        mesh.expose = hosts;
    }
    mesh.samples = finds.iter().flat_map(|find| find.samples.iter().copied()).collect();
    engine(&mut mesh, &finds, &mut note);
    Ok(Adopted { mesh, notes, root })
}

/// Which Istio, from whom, with which values of the user's own.
fn engine(mesh: &mut Mesh, finds: &[Find<'_>], note: &mut impl FnMut(Option<&ClusterName>, String)) {
    // In a lab it is the small engine's, unless its marks say that an installer of Istio's brought it.
    let installed = |find: &Find<'_>| find.owner.is_some_and(|owner| !matches!(owner, Owner::Small | Owner::Hand));
    if finds.iter().filter_map(|find| find.state).all(|state| state.is_lab) && !finds.iter().any(installed) {
        return;
    }
    mesh.control_plane.engine = Engine::Istio;
    let Some(first) = finds.iter().find(|find| find.istiod.is_some()) else { return };
    let revisions: BTreeSet<_> = finds.iter().filter(|f| f.istiod.is_some()).map(|f| f.revision.clone()).collect();
    if revisions.len() > 1 {
        note(None, "the clusters have control planes of different revisions".to_owned());
    }
    mesh.control_plane.revision.clone_from(&first.revision);
    mesh.control_plane.version.clone_from(&first.version);
    let versions: BTreeSet<_> = finds.iter().filter_map(|find| find.version.clone()).collect();
    if versions.len() > 1 {
        let list: Vec<_> = versions.into_iter().collect();
        note(None, format!("the clusters have different versions of Istio: {}", list.join(", ")));
    }
    let owners: BTreeSet<_> = finds.iter().filter_map(|find| find.owner).collect();
    if owners.iter().all(|owner| *owner == Owner::Helm) {
        given(mesh, finds, note);
    } else if owners.iter().all(|owner| *owner == Owner::Istioctl) {
        mesh.control_plane.installer = Installer::Istioctl;
    } else {
        mesh.control_plane.installer = Installer::None;
        for (cluster, find) in mesh.clusters.iter().zip(finds) {
            if let Some(who) = find.owner.and_then(Owner::stranger) {
                note(Some(&cluster.name), format!("its control plane was installed by {who}; it is used as it is"));
            }
        }
    }
}

/// What the user's own file said, as far as Helm remembers it: what its releases have beyond what Stolos gives them.
fn given(mesh: &mut Mesh, finds: &[Find<'_>], note: &mut impl FnMut(Option<&ClusterName>, String)) {
    let version = mesh.control_plane.version.as_deref().and_then(Minor::of).unwrap_or(Minor(1, 30));
    type Extra = Option<Map<String, Value>>;
    let mut found: Vec<[Extra; 3]> = Vec::new();
    mesh.control_plane.gateways.ingress = Some(Map::new());
    for (cluster, find) in mesh.clusters.iter().zip(finds) {
        let place = Place { mesh, cluster, version, primary_address: None };
        let istiod =
            find.revision.as_ref().map_or_else(|| "istiod".to_owned(), |revision| format!("istiod-{revision}"));
        let extra = |name: &str, layers: Option<Layers>| -> Extra {
            let live = find.releases.get(&(SYSTEM_NAMESPACE.to_owned(), name.to_owned()))?;
            match beyond(&live.values, &layers?.merged().0) {
                Some(Value::Object(extra)) => Some(extra),
                _ => Some(Map::new()),
            }
        };
        if find.istiod.is_some() {
            found.push([
                extra(&istiod, Some(place.istiod())),
                extra(EASTWEST, Some(place.eastwest())),
                extra(INGRESS, place.ingress()),
            ]);
        }
    }
    let mut common = |index: usize, what: &str| {
        let mut all = found.iter().filter_map(|extras| extras[index].clone());
        let first = all.next();
        if all.any(|other| Some(&other) != first.as_ref()) {
            note(None, format!("the values of {what} differ from cluster to cluster; the first cluster's are taken"));
        }
        first
    };
    let (values, eastwest, ingress) =
        (common(0, "istiod"), common(1, "the east-west gateway"), common(2, "the ingress gateway"));
    mesh.control_plane.values = Value::Object(values.unwrap_or_default());
    mesh.control_plane.gateways.eastwest = eastwest.unwrap_or_default();
    mesh.control_plane.gateways.ingress = ingress;
}

/// What `live` says that `known` does not.
fn beyond(live: &Value, known: &Value) -> Option<Value> {
    match (live, known) {
        (Value::Object(live), Value::Object(known)) => {
            let extra = live.iter().filter_map(|(key, value)| {
                let rest = known.get(key).map_or_else(|| Some(value.clone()), |known| beyond(value, known));
                rest.map(|rest| (key.clone(), rest))
            });
            Some(extra.collect::<Map<_, _>>()).filter(|extra| !extra.is_empty()).map(Value::Object)
        }
        (Value::Null, _) => None,
        (live, known) => (live != known).then(|| live.clone()),
    }
}

/// The root that all clusters trust, if it is one.
fn roots(mesh: &Mesh, finds: &[Find<'_>], note: &mut impl FnMut(Option<&ClusterName>, String)) -> Option<String> {
    let mut roots: BTreeMap<String, (String, Vec<String>)> = BTreeMap::new();
    for (cluster, find) in mesh.clusters.iter().zip(finds) {
        let Some(pem) = &find.root else { continue };
        let Ok(root) = Certificate::from_pem(pem) else {
            note(Some(&cluster.name), "its root certificate cannot be read".to_owned());
            continue;
        };
        roots.entry(root.fingerprint()).or_insert((root.pem(), vec![])).1.push(cluster.name.to_string());
        if find.self_signed {
            let text = "its control plane signs for itself (Secret istio-ca-secret), with a root that no other cluster can \
                        share: the plan gives it a signing certificate of a common one, and its workloads must be restarted";
            note(Some(&cluster.name), text.to_owned());
        }
    }
    if roots.len() > 1 {
        let list: Vec<_> = roots.values().map(|(_, clusters)| clusters.join(", ")).collect();
        note(None, format!("they do not trust one root: {} (`stolos explain D-01`)", list.join(" against ")));
    }
    let only = roots.into_values().next().filter(|_| finds.iter().all(|find| !find.self_signed));
    only.map(|(pem, _)| pem)
}

fn organization(pem: &str) -> Option<String> {
    let root = Certificate::from_pem(pem).ok()?;
    let subject = root.subject();
    let organization = subject.split("O=").nth(1)?.split(", CN=").next()?.trim_end_matches(", ").to_owned();
    Some(organization).filter(|organization| !organization.is_empty())
}

/// Who installed a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    /// Stolos, with Helm.
    Helm,
    /// Stolos, with `istioctl`.
    Istioctl,
    /// Somebody else, with Helm.
    OtherHelm,
    /// Somebody else, with `istioctl` or an operator.
    OtherOperator,
    /// Stolos, and it is the small engine.
    Small,
    /// Somebody by hand, as far as can be seen.
    Hand,
}

impl Owner {
    /// Who it is, where it is not Stolos.
    fn stranger(self) -> Option<&'static str> {
        match self {
            Self::Helm | Self::Istioctl => None,
            Self::OtherHelm => Some("somebody with Helm"),
            Self::OtherOperator => Some("somebody with istioctl or an operator"),
            Self::Small => Some("the small engine"),
            Self::Hand => Some("somebody by hand"),
        }
    }
}

/// What one cluster says of itself, and what the others hold of it.
#[derive(Default)]
struct Find<'a> {
    state: Option<&'a ClusterState>,
    istiod: Option<&'a Value>,
    owner: Option<Owner>,
    mesh: Option<String>,
    id: Option<String>,
    network: Option<String>,
    /// Where the others reach its API server, if not where we do.
    server: Option<String>,
    revision: Option<String>,
    version: Option<String>,
    trust_domain: Option<String>,
    root: Option<String>,
    self_signed: bool,
    strict: bool,
    hosts: Option<Vec<String>>,
    served_by: Vec<String>,
    samples: BTreeSet<Sample>,
    releases: BTreeMap<(String, String), Deployed>,
}

impl<'a> Find<'a> {
    fn of(state: Option<&'a ClusterState>, all: &BTreeMap<String, ClusterState>) -> Self {
        let Some(state) = state else { return Self::default() };
        let object = |version: &str, kind: &str, name: &str| {
            state.objects.get(&ObjectKey::new(version, kind, Some(SYSTEM_NAMESPACE), name))
        };
        let istiod = state
            .objects
            .kind("Deployment")
            .find(|(key, object)| {
                key.namespace.as_deref() == Some(SYSTEM_NAMESPACE) && object["metadata"]["labels"]["app"] == "istiod"
            })
            .map(|(_, object)| object);
        let labels = |object: Option<&'a Value>, label: &str| {
            object.and_then(|object| object["metadata"]["labels"][label].as_str()).map(str::to_owned)
        };
        let revision = labels(istiod, "istio.io/rev").filter(|revision| revision != "default");
        let suffix = revision.as_ref().map(|revision| format!("-{revision}")).unwrap_or_default();
        let values = object("v1", "ConfigMap", &format!("istio-sidecar-injector{suffix}"));
        let values: Value =
            values.and_then(|map| serde_json::from_str(map["data"]["values"].as_str()?).ok()).unwrap_or_default();
        let told = |pointer: &str| values.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let system = state.objects.get(&ObjectKey::new("v1", "Namespace", None, SYSTEM_NAMESPACE));
        let config = object("v1", "ConfigMap", &format!("istio{suffix}"));
        let settings = config.and_then(|map| map["data"]["mesh"].as_str()).unwrap_or_default();
        let membership = object("v1", "ConfigMap", MEMBERSHIP);
        let own = membership.and_then(|map| remembered_by(map).into_iter().find(|member| member.uid == state.uid));
        let known = |id: &String| !id.is_empty() && id != "Kubernetes";
        let held = held(state, all);
        let id = istiod
            .and_then(|istiod| variable(istiod, "CLUSTER_ID"))
            .filter(known)
            .or_else(|| told("/global/multiCluster/clusterName").filter(known))
            .or_else(|| own.map(|member| member.name))
            .or_else(|| held.iter().find(|(_, server)| *server == state.server).map(|(id, _)| id.clone()));
        let server = held.iter().find(|(key, server)| Some(key) == id.as_ref() && *server != state.server);
        let cacerts = object("v1", "Secret", CACERTS_SECRET);
        let published = object("v1", "ConfigMap", ROOT_CONFIG_MAP);
        let self_signed = cacerts.is_none() && istiod.is_some();
        let root = cacerts.and_then(|secret| secret_text(secret, "root-cert.pem"));
        let root = root.or_else(|| published?["data"]["root-cert.pem"].as_str().map(str::to_owned));
        let releases = deployed(&state.objects);
        let strict = state.objects.kind("PeerAuthentication").any(|(key, object)| {
            let here = key.namespace.as_deref() == Some(SYSTEM_NAMESPACE) && object["spec"]["selector"].is_null();
            here && object["spec"]["mtls"]["mode"] == "STRICT"
        });
        let annotation =
            system.and_then(|s| s["metadata"]["annotations"]["topology.istio.io/controlPlaneClusters"].as_str());
        Self {
            state: Some(state),
            owner: istiod.map(|istiod| owner(state, istiod, &releases)),
            mesh: membership
                .and_then(|map| map["data"]["mesh"].as_str().map(str::to_owned))
                .or_else(|| told("/global/meshID"))
                .or_else(|| labels(istiod, MESH_LABEL))
                .filter(|id| !id.is_empty()),
            id,
            network: labels(system, "topology.istio.io/network")
                .or_else(|| told("/global/network"))
                .filter(|network| !network.is_empty()),
            server: server.map(|(_, server)| server.clone()),
            version: istiod.and_then(|istiod| version(istiod, &releases)),
            revision,
            trust_domain: setting(settings, "trustDomain").filter(|domain| !domain.is_empty()),
            root,
            self_signed,
            strict,
            hosts: hosts(state),
            served_by: annotation
                .map(|text| text.split(',').map(|name| name.trim().to_owned()).collect())
                .unwrap_or_default(),
            samples: samples(state),
            releases,
            istiod,
        }
    }
}

/// Keys under which other clusters hold this one or could, each with the server that it leads to.
fn held(state: &ClusterState, all: &BTreeMap<String, ClusterState>) -> Vec<(String, String)> {
    let others = all.values().filter(|other| other.uid != state.uid);
    others
        .flat_map(|state| remote_entries(state, |_| true))
        .map(|(key, _, text)| (key, server_in(&text).unwrap_or_default()))
        .collect()
}

/// Every cluster that those remote secrets of a cluster hold that are `wanted`: its id, the Secret, the kubeconfig.
pub(crate) fn remote_entries(state: &ClusterState, wanted: impl Fn(&Value) -> bool) -> Vec<(String, &Value, String)> {
    let secrets = state.objects.kind("Secret").filter(|(key, secret)| {
        key.namespace.as_deref() == Some(SYSTEM_NAMESPACE)
            && secret["metadata"]["labels"]["istio/multiCluster"] == "true"
            && wanted(secret)
    });
    let entries = secrets.flat_map(|(_, secret)| {
        let keys = secret["data"].as_object().into_iter().flatten().map(|(key, _)| key.clone());
        keys.filter_map(|key| Some((key.clone(), secret, secret_text(secret, &key)?))).collect::<Vec<_>>()
    });
    entries.collect()
}

/// The server in a kubeconfig of one cluster.
pub(crate) fn server_in(kubeconfig: &str) -> Option<String> {
    let value = kubeconfig.lines().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("server:"))?;
    Some(value.trim().trim_matches(['"', '\'']).trim_end_matches('/').to_owned())
}

fn variable(deployment: &Value, name: &str) -> Option<String> {
    let containers = deployment["spec"]["template"]["spec"]["containers"].as_array()?;
    let variables = containers.iter().filter_map(|container| container["env"].as_array()).flatten();
    let found = variables.into_iter().find(|variable| variable["name"] == name)?;
    found["value"].as_str().map(str::to_owned)
}

/// A setting of the first level of a mesh configuration.
fn setting(settings: &str, key: &str) -> Option<String> {
    let value = settings.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    Some(value.trim().trim_matches(['"', '\'']).to_owned())
}

fn owner(state: &ClusterState, istiod: &Value, releases: &BTreeMap<(String, String), Deployed>) -> Owner {
    let metadata = &istiod["metadata"];
    let by_helm = metadata["annotations"]["meta.helm.sh/release-name"].as_str();
    let by_operator = metadata["labels"]["install.operator.istio.io/owning-resource"].is_string();
    let release = by_helm.and_then(|name| releases.get(&(SYSTEM_NAMESPACE.to_owned(), name.to_owned())));
    // Those that Stolos installed bear its label.
    match release {
        Some(release) if release.mesh.is_some() => Owner::Helm,
        _ if by_helm.is_some() => Owner::OtherHelm,
        _ if by_operator && mesh_label(state).is_some_and(|mesh| !recorded(&state.objects, &mesh).is_empty()) => {
            Owner::Istioctl
        }
        _ if by_operator => Owner::OtherOperator,
        _ if mesh_of(istiod).is_some() => Owner::Small,
        _ => Owner::Hand,
    }
}

fn mesh_label(state: &ClusterState) -> Option<String> {
    let maps = state.objects.kind("ConfigMap");
    let mut ours = maps.filter(|(_, map)| map["metadata"]["labels"][MANAGED_BY_LABEL] == MANAGER);
    ours.find_map(|(_, map)| map["metadata"]["labels"][MESH_LABEL].as_str().map(str::to_owned))
}

/// The version of a control plane: its chart's, else its image's.
fn version(istiod: &Value, releases: &BTreeMap<(String, String), Deployed>) -> Option<String> {
    let by_helm = istiod["metadata"]["annotations"]["meta.helm.sh/release-name"].as_str();
    let chart = by_helm.and_then(|name| releases.get(&(SYSTEM_NAMESPACE.to_owned(), name.to_owned()))?.chart.clone());
    let image = istiod["spec"]["template"]["spec"]["containers"][0]["image"].as_str();
    let tag = image.and_then(|image| image.split('@').next()?.rsplit('/').next()?.split_once(':')).map(|(_, tag)| tag);
    // `1.28.0-distroless` is an image of 1.28.0.
    let tag = tag.map(|tag| tag.trim_end_matches("-distroless").trim_end_matches("-debug").to_owned());
    chart.map(|(_, version)| version).or(tag).filter(|version| Minor::of(version).is_some())
}

fn hosts(state: &ClusterState) -> Option<Vec<String>> {
    let (_, gateway) = state.objects.kind("Gateway").find(|(key, gateway)| {
        key.namespace.as_deref() == Some(SYSTEM_NAMESPACE)
            && gateway["spec"]["servers"]
                .as_array()
                .is_some_and(|s| s.iter().any(|s| s["tls"]["mode"] == "AUTO_PASSTHROUGH"))
    })?;
    let servers = gateway["spec"]["servers"].as_array()?;
    let server = servers.iter().find(|server| server["tls"]["mode"] == "AUTO_PASSTHROUGH")?;
    Some(server["hosts"].as_array()?.iter().filter_map(|host| host.as_str().map(str::to_owned)).collect())
}

/// Samples of ours.
fn samples(state: &ClusterState) -> BTreeSet<Sample> {
    let ours = |namespace: &str| {
        let key = ObjectKey::new("v1", "Namespace", None, namespace);
        state.objects.get(&key).is_some_and(|namespace| mesh_of(namespace).is_some())
    };
    let has = |namespace: &str, name: &str| {
        let mut deployments = state.objects.kind("Deployment");
        ours(namespace)
            && deployments.any(|(key, _)| key.namespace.as_deref() == Some(namespace) && key.name.starts_with(name))
    };
    let all = [
        (Sample::Helloworld, SAMPLE_NAMESPACE, "helloworld"),
        (Sample::Sleep, SAMPLE_NAMESPACE, "sleep"),
        (Sample::Bookinfo, "bookinfo", "productpage"),
    ];
    all.into_iter().filter(|(_, namespace, name)| has(namespace, name)).map(|(sample, ..)| sample).collect()
}

#[cfg(test)]
#[path = "adopt_tests.rs"]
mod tests;
