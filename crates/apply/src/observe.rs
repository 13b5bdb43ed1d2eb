use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures::stream::{self, StreamExt as _};
use serde_json::Value;
use stolos_cluster::objects::{self, Resource};
use stolos_cluster::{Cluster, Error};
use stolos_plan::{
    AGENT, ClusterState, LocalChart, MESH_LABEL, ObjectKey, Objects, Observed, Remembered, SAMPLE_NAMESPACE,
    SYSTEM_NAMESPACE, Sight, Unreadable, hub_namespace, remembered_hub,
};
use stolos_spec::{Charts, Mesh};

use crate::{Clusters, State};
use stolos_serve::because;

/// How long one cluster may take to be looked at. One that is slower counts as unreachable.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many questions one cluster is asked at a time. They share one connection where the API server speaks HTTP/2.
const AT_ONCE: usize = 64;

/// Namespaces that a mesh makes, and that of an agent.
const NAMESPACES: [&str; 4] = [SYSTEM_NAMESPACE, SAMPLE_NAMESPACE, "bookinfo", AGENT];

/// What is listed in those: what a mesh is made of, and what else a person may have put there.
const INSIDE: [(&str, &str); 16] = [
    ("v1", "Secret"),
    ("v1", "ConfigMap"),
    ("v1", "ServiceAccount"),
    ("v1", "Pod"),
    ("v1", "PersistentVolumeClaim"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "DaemonSet"),
    ("apps/v1", "ReplicaSet"),
    ("batch/v1", "Job"),
    ("batch/v1", "CronJob"),
    ("rbac.authorization.k8s.io/v1", "Role"),
    ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    ("networking.k8s.io/v1", "Ingress"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("policy/v1", "PodDisruptionBudget"),
];

/// What is listed everywhere.
const EVERYWHERE: [(&str, &str); 6] = [
    ("v1", "Service"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration"),
    ("rbac.authorization.k8s.io/v1", "ClusterRole"),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding"),
];

/// Looks at every cluster of the mesh, at those that left it and are still remembered, and at the state folder. All
/// clusters at the same time; a dead one costs its deadline and nothing else. Writes nothing.
pub async fn observe(mesh: &Mesh, clusters: &Clusters, state: &State) -> Observed {
    let now = SystemTime::now();
    let members = mesh.clusters.iter().map(|c| {
        let name = c.name.to_string();
        async move {
            let sight = look(clusters.get(&name)).await;
            (name, sight)
        }
    });
    let mut seen: BTreeMap<String, Sight> = futures::future::join_all(members).await.into_iter().collect();
    let mut former: BTreeMap<String, Remembered> = BTreeMap::new();
    for sight in seen.values() {
        if let Sight::Seen(cluster) = sight {
            let remembered = stolos_plan::remembered(mesh.name.as_str(), cluster);
            former.extend(remembered.into_iter().map(|member| (member.name.clone(), member)));
        }
    }
    let former_hub = seen.values().filter_map(Sight::state).find_map(|state| remembered_hub(mesh.name.as_str(), state));
    let hub = async {
        match clusters.hub(mesh, former_hub).await? {
            Ok(hub) => Some(look_at_hub(mesh, hub).await),
            Err(why) => Some(Sight::Unreachable { server: None, why }),
        }
    };
    former.retain(|name, _| !seen.contains_key(name));
    let former = former.into_values().map(|member| async move {
        let sight = look(clusters.former(&member).await).await;
        (member.name, sight)
    });
    let (former, hub) = tokio::join!(futures::future::join_all(former), hub);
    seen.extend(former);
    Observed { now, clusters: seen, hub, state: state.facts(mesh, now), charts: charts(mesh) }
}

/// Where the charts of an Istio release lie below its `manifests/charts`, and below a folder made by hand.
const PLACES: [(&str, &str); 5] = [
    ("base", "base"),
    ("istiod", "istiod"),
    ("istiod", "istio-control/istio-discovery"),
    ("istiod-remote", "istiod-remote"),
    ("gateway", "gateway"),
];

/// The charts in the folder that the mesh file names, if it names one.
#[must_use]
pub fn charts(mesh: &Mesh) -> Vec<LocalChart> {
    let Charts::Folder(folder) = &mesh.control_plane.charts else { return vec![] };
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.clone());
    let mut found = Vec::new();
    for (name, place) in PLACES {
        let path = folder.join(place);
        let text = std::fs::read_to_string(path.join("Chart.yaml")).unwrap_or_default();
        let field = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            Some(line.trim().trim_matches(['"', '\'']).to_owned())
        };
        if let Some(version) = field("version") {
            found.push(LocalChart { name: name.to_owned(), version, path: path.to_string_lossy().into_owned() });
        }
    }
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let mut archives: Vec<_> = entries.map(|entry| entry.path()).collect();
    archives.sort();
    for path in archives {
        let archive = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".tgz"));
        for name in ["base", "istiod", "istiod-remote", "gateway"] {
            let version = archive.and_then(|archive| archive.strip_prefix(name)?.strip_prefix('-'));
            if let Some(version) =
                version.filter(|v| v.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit()))
            {
                let path = path.to_string_lossy().into_owned();
                found.push(LocalChart { name: name.to_owned(), version: version.to_owned(), path });
            }
        }
    }
    found
}

async fn look(cluster: Result<Cluster, String>) -> Sight {
    let cluster = match cluster {
        Ok(cluster) => cluster,
        Err(why) => return Sight::Unreachable { server: None, why },
    };
    let server = Some(cluster.server.clone());
    match tokio::time::timeout(PATIENCE, inspect(&cluster)).await {
        Ok(Ok(state)) => Sight::Seen(state),
        Ok(Err(why)) => Sight::Unreachable { server, why },
        Err(_) => Sight::Unreachable { server, why: format!("no answer in {} s", PATIENCE.as_secs()) },
    }
}

/// What a mesh has in its hub, and the hub's clusters.
async fn look_at_hub(mesh: &Mesh, hub: Cluster) -> Sight {
    let server = Some(hub.server.clone());
    match tokio::time::timeout(PATIENCE, inspect_hub(mesh, &hub)).await {
        Ok(Ok(state)) => Sight::Seen(state),
        Ok(Err(why)) => Sight::Unreachable { server, why },
        Err(_) => Sight::Unreachable { server, why: format!("no answer in {} s", PATIENCE.as_secs()) },
    }
}

/// What is listed in the namespace of a mesh in its hub: its own, and what else a person may have put there.
const INSIDE_HUB: [(&str, &str); 6] = [
    ("v1", "Secret"),
    ("v1", "ConfigMap"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
];

async fn inspect_hub(mesh: &Mesh, hub: &Cluster) -> Result<ClusterState, String> {
    let mut state = ClusterState { server: hub.server.clone(), authority: authority(hub), ..ClusterState::default() };
    let version = version(hub).await?;
    state.version = version["gitVersion"].as_str().unwrap_or_default().to_owned();
    let space = hub_namespace(mesh.name.as_str());
    let own = format!("{MESH_LABEL}={}", mesh.name);
    let roles = ["ClusterRole", "ClusterRoleBinding"].map(|kind| resource("rbac.authorization.k8s.io/v1", kind));
    let mut asking = vec![Question::of(resource("v1", "Namespace")), Question::of(stolos_hub::kinds::clusters())];
    asking.extend(roles.map(|role| Question { labels: Some(own.as_str()), ..Question::of(role) }));
    asking.extend(
        INSIDE_HUB.iter().map(|(version, kind)| Question {
            namespace: Some(space.as_str()),
            ..Question::of(resource(version, kind))
        }),
    );
    ask(hub, asking, &mut state).await;
    let system = state.objects.get(&ObjectKey::new("v1", "Namespace", None, "kube-system"));
    state.uid = system.map(stolos_k8s::meta::uid).unwrap_or_default().to_owned();
    Ok(state)
}

async fn version(cluster: &Cluster) -> Result<Value, String> {
    let version = http::Request::get("/version").body(vec![]).map_err(|e| e.to_string())?;
    cluster.client.request::<Value>(version).await.map_err(|e| because(&e))
}

/// Two round trips: the namespaces, on the first of which the connection is made, then everything else at once.
async fn inspect(cluster: &Cluster) -> Result<ClusterState, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut state =
        ClusterState { server: cluster.server.clone(), authority: authority(cluster), ..ClusterState::default() };

    // Namespaces first: what is in one that does not exist need not be asked for.
    ask(cluster, vec![Question::of(resource("v1", "Namespace"))], &mut state).await;
    let exists = |name: &&'static str| state.objects.get(&ObjectKey::new("v1", "Namespace", None, name)).is_some();
    let namespaces: Vec<&'static str> = NAMESPACES.into_iter().filter(exists).collect();

    let mut asking: Vec<_> = EVERYWHERE.iter().map(|(version, kind)| Question::of(resource(version, kind))).collect();
    asking.extend(stolos_k8s::istio::KINDS.iter().map(|kind| Question::of(istio(kind))));
    asking.push(Question { labels: Some("istio.io/config=true"), ..Question::of(resource("v1", "ConfigMap")) });
    for namespace in namespaces {
        asking.extend(
            INSIDE.iter().map(|(version, kind)| Question {
                namespace: Some(namespace),
                ..Question::of(resource(version, kind))
            }),
        );
    }
    let (version, ()) = tokio::join!(version(cluster), ask(cluster, asking, &mut state));
    // Istio before 1.22 does not serve v1 of its kinds; the next one down every version has.
    let older: Vec<_> = stolos_k8s::istio::KINDS.iter().filter_map(|kind| older(kind, &state.objects)).collect();
    if !older.is_empty() {
        ask(cluster, older.into_iter().map(Question::of).collect(), &mut state).await;
    }
    let version = version?;
    state.version = text(&version["gitVersion"]);
    state.is_lab = version["gitTreeState"] == "stolos-lab";

    let system = state.objects.get(&ObjectKey::new("v1", "Namespace", None, "kube-system"));
    state.uid = system.map(|namespace| text(&namespace["metadata"]["uid"])).unwrap_or_default();
    Ok(state)
}

/// One list to ask for.
struct Question<'a> {
    resource: Resource,
    namespace: Option<&'a str>,
    labels: Option<&'a str>,
}

impl Question<'_> {
    fn of(resource: Resource) -> Self {
        Self { resource, namespace: None, labels: None }
    }
}

async fn ask(cluster: &Cluster, questions: Vec<Question<'_>>, state: &mut ClusterState) {
    let mut answers = Vec::new();
    for question in questions {
        answers.push(async move {
            let Question { resource, namespace, labels } = &question;
            let listed = objects::list(&cluster.client, resource, *namespace, *labels).await;
            (question, listed)
        });
    }
    let answers: Vec<_> = stream::iter(answers).buffer_unordered(AT_ONCE).collect().await;
    for (question, listed) in answers {
        match listed {
            Ok(found) => state.objects.extend(found),
            Err(error) => state.unreadable.push(unreadable(&question, &error)),
        }
    }
}

fn unreadable(question: &Question<'_>, error: &Error) -> Unreadable {
    let place = question.namespace.map(|n| format!(" in {n}")).unwrap_or_default();
    Unreadable { what: format!("{}{place}", question.resource.plural), why: because(error) }
}

/// The authority of the API server's address as PEM, from the same kubeconfig as the address: only together do they
/// fit where a proxy stands before the API server.
pub(crate) fn authority(cluster: &Cluster) -> String {
    let certificates = cluster.authorities.iter().filter_map(|der| {
        let certificate = stolos_pki::Certificate::from_der(der.clone().into()).ok()?;
        Some(certificate.pem())
    });
    certificates.collect()
}

/// How a kind of Istio's is addressed where its newest version is not served.
fn older(kind: &stolos_k8s::istio::IstioKind, objects: &Objects) -> Option<Resource> {
    let key = ObjectKey::new("apiextensions.k8s.io/v1", "CustomResourceDefinition", None, &kind.crd_name());
    let versions = objects.get(&key)?["spec"]["versions"].as_array()?.clone();
    let serves = |name: &str| versions.iter().any(|v| v["name"] == name && v["served"] == true);
    if serves(kind.version()) {
        return None;
    }
    let newest = kind.versions.iter().rev().find(|version| serves(version))?;
    Some(Resource { api_version: format!("{}/{newest}", kind.group), ..istio(kind) })
}

fn istio(kind: &stolos_k8s::istio::IstioKind) -> Resource {
    Resource {
        api_version: kind.api_version(),
        kind: kind.kind.to_owned(),
        plural: kind.plural.to_owned(),
        namespaced: true,
    }
}

/// How the API of a kind is addressed.
pub(crate) fn resource(api_version: &str, kind: &str) -> Resource {
    if let Some(known) = stolos_k8s::kind::find_kind(api_version, kind) {
        return Resource {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            plural: known.plural.to_owned(),
            namespaced: known.namespaced,
        };
    }
    let known = stolos_k8s::istio::kind(kind);
    Resource {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: known.map_or_else(|| format!("{}s", kind.to_lowercase()), |k| k.plural.to_owned()),
        namespaced: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_are_found_as_folders_archives_and_as_a_release_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let chart = |place: &str, version: &str| {
            std::fs::create_dir_all(folder.path().join(place)).unwrap();
            let text = format!("apiVersion: v2\nname: x\nversion: \"{version}\"\n");
            std::fs::write(folder.path().join(place).join("Chart.yaml"), text).unwrap();
        };
        chart("base", "1.28.0");
        chart("istio-control/istio-discovery", "1.28.0");
        for archive in ["gateway-1.27.1.tgz", "gateway-api.tgz", "istiod-remote-1.23.0.tgz"] {
            std::fs::write(folder.path().join(archive), "").unwrap();
        }
        let mut mesh = crate::run::tests::mesh(&["a"]);
        assert_eq!(charts(&mesh), []);
        mesh.control_plane.charts = Charts::Folder(folder.path().to_owned());
        let found = charts(&mesh);
        let lines: Vec<_> = found
            .iter()
            .map(|c| {
                format!("{} {} {}", c.name, c.version, c.path.strip_prefix(folder.path().to_str().unwrap()).unwrap())
            })
            .collect();
        let expected = [
            "base 1.28.0 /base",
            "istiod 1.28.0 /istio-control/istio-discovery",
            "gateway 1.27.1 /gateway-1.27.1.tgz",
            "istiod-remote 1.23.0 /istiod-remote-1.23.0.tgz",
        ];
        assert_eq!(lines, expected);
    }
}
