use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use futures::stream::{self, StreamExt as _};
use serde_json::Value;
use stolos_cluster::objects::{self, Resource};
use stolos_cluster::{Cluster, Error};
use stolos_plan::{
    ClusterState, ObjectKey, Observed, Remembered, SAMPLE_NAMESPACE, SYSTEM_NAMESPACE, Sight, Unreadable,
};
use stolos_spec::Mesh;

use crate::clusters::because;
use crate::{Clusters, State};

/// How long one cluster may take to be looked at. One that is slower counts as unreachable.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many questions one cluster is asked at a time. They share one connection where the API server speaks HTTP/2.
const AT_ONCE: usize = 64;

/// Namespaces that a mesh makes.
const NAMESPACES: [&str; 3] = [SYSTEM_NAMESPACE, SAMPLE_NAMESPACE, "bookinfo"];

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
    former.retain(|name, _| !seen.contains_key(name));
    let former = former.into_values().map(|member| async move {
        let sight = look(clusters.former(&member).await).await;
        (member.name, sight)
    });
    seen.extend(futures::future::join_all(former).await);
    Observed { now, clusters: seen, state: state.facts(mesh, now) }
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
    let version = async {
        let version = http::Request::get("/version").body(vec![]).map_err(|e| e.to_string())?;
        cluster.client.request::<Value>(version).await.map_err(|e| because(&e))
    };
    let (version, ()) = tokio::join!(version, ask(cluster, asking, &mut state));
    let version = version?;
    state.version = text(&version["gitVersion"]);
    state.is_lab = version["gitTreeState"] == "stolos-lab";

    let system = state.objects.get(&ObjectKey::new("v1", "Namespace", None, "kube-system"));
    state.uid = system.map(|namespace| text(&namespace["metadata"]["uid"])).unwrap_or_default();
    Ok(state)
}

/// One list to ask for.
struct Question {
    resource: Resource,
    namespace: Option<&'static str>,
    labels: Option<&'static str>,
}

impl Question {
    fn of(resource: Resource) -> Self {
        Self { resource, namespace: None, labels: None }
    }
}

async fn ask(cluster: &Cluster, questions: Vec<Question>, state: &mut ClusterState) {
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

fn unreadable(question: &Question, error: &Error) -> Unreadable {
    let place = question.namespace.map(|n| format!(" in {n}")).unwrap_or_default();
    Unreadable { what: format!("{}{place}", question.resource.plural), why: because(error) }
}

/// The authority of the API server's address as PEM, from the same kubeconfig as the address: only together do they
/// fit where a proxy stands before the API server.
fn authority(cluster: &Cluster) -> String {
    let certificates = cluster.authorities.iter().filter_map(|der| {
        let certificate = stolos_pki::Certificate::from_der(der.clone().into()).ok()?;
        Some(certificate.pem())
    });
    certificates.collect()
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
