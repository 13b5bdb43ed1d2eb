//! What only an upgrade needs to know of clusters.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use serde_json::Value;
use stolos_cluster::{Cluster, objects};
use stolos_k8s::{istio, meta};
use stolos_plan::upgrade::{Besides, ClusterSight, Namespace};
use stolos_plan::{Observed, SYSTEM_NAMESPACE};
use stolos_serve::because;
use stolos_spec::Mesh;

use crate::observe::resource;
use crate::trust::debug_pages;
use crate::{Clusters, Error, State, observe};

/// What makes pods anew when its template changes.
const WORKLOADS: [&str; 3] = ["Deployment", "StatefulSet", "DaemonSet"];
/// What every plan reads, and what only an upgrade needs to know.
pub(super) async fn look(
    mesh: &Mesh,
    clusters: &Clusters,
    state: &State,
    connections: bool,
) -> Result<(Observed, Vec<ClusterSight>), Error> {
    let observed = observe(mesh, clusters, state).await;
    stolos_plan::upgrade::check(mesh, &observed)?;
    let looks = mesh.clusters.iter().map(|member| async {
        let name = member.name.as_str();
        let cluster = clusters.get(name).map_err(|why| Error::Cluster { cluster: name.to_owned(), why })?;
        let besides = besides(&cluster, None, connections).await;
        let state = observed.cluster(name).cloned().unwrap_or_default();
        Ok(ClusterSight::of(mesh, member, &state, &besides))
    });
    let sights = join_all(looks).await.into_iter().collect::<Result<Vec<_>, Error>>()?;
    Ok((observed, sights))
}

/// Pods and workloads of a namespace, or of all; and who is connected to the control planes.
async fn besides(cluster: &Cluster, namespace: Option<&str>, connections: bool) -> Besides {
    let mut besides = Besides::default();
    let list = |version: &'static str, kind: &'static str| async move {
        (kind, objects::list(&cluster.client, &resource(version, kind), namespace, None).await)
    };
    let pods = list("v1", "Pod");
    let workloads = join_all(WORKLOADS.map(|kind| list("apps/v1", kind)));
    let connected = async {
        match connections {
            true => debug_pages(cluster, istio::DEBUG_PORT, &["/debug/syncz"]).await,
            false => Ok(vec![]),
        }
    };
    let (pods, workloads, connected) = tokio::join!(pods, workloads, connected);
    for (kind, listed) in [pods].into_iter().chain(workloads) {
        match listed {
            Ok(found) if kind == "Pod" => besides.pods = found,
            Ok(found) => besides.workloads.extend(found),
            Err(error) => besides.unread.push(format!("{kind}s: not measured ({})", because(&error))),
        }
    }
    match connected {
        Err(why) => besides.unread.push(format!("control planes: not measured ({why})")),
        Ok(pods) => besides.connected = pods.into_iter().map(|(pod, pages)| (pod, pages.map(proxies))).collect(),
    }
    besides
}

/// The proxies on a `syncz` page.
fn proxies(pages: Vec<Value>) -> Vec<String> {
    let rows = pages.iter().filter_map(Value::as_array).flatten();
    rows.filter_map(|row| Some(row["proxy"].as_str()?.to_owned())).collect()
}

/// What a namespace is now.
pub(super) async fn inside(
    cluster: &Cluster,
    name: &str,
    tags: &BTreeMap<String, String>,
) -> Result<Option<Namespace>, String> {
    let namespaces = resource("v1", "Namespace");
    let (live, besides) =
        tokio::join!(objects::get(&cluster.client, &namespaces, None, name), besides(cluster, Some(name), false));
    let live = live.map_err(|error| because(&error))?;
    if let Some(why) = besides.unread.first() {
        return Err(why.clone());
    }
    let pods: Vec<&Value> = besides.pods.iter().collect();
    Ok(live.and_then(|live| Namespace::of(&live, &pods, &besides.workloads, tags)))
}

/// Whether every control plane `to` of a cluster reads all clusters that any of the others does.
pub(super) async fn reads_as_much(cluster: &Cluster, to: &str) -> Result<(), String> {
    let labels = format!("{}={}", istio::APP_LABEL, istio::ISTIOD);
    let pods = objects::list(&cluster.client, &resource("v1", "Pod"), Some(SYSTEM_NAMESPACE), Some(&labels)).await;
    let pods = pods.map_err(|error| because(&error))?;
    let is_new = |name: &str| {
        let pod = pods.iter().find(|pod| meta::name(pod) == name);
        pod.is_some_and(|pod| meta::label(pod, istio::REVISION_LABEL) == Some(to))
    };
    let (mut old, mut new) = (BTreeSet::new(), Vec::new());
    for (pod, pages) in debug_pages(cluster, istio::DEBUG_PORT, &["/debug/clusterz"]).await? {
        let pages = match pages {
            Ok(pages) => pages,
            Err(why) if is_new(&pod) => return Err(format!("control plane {pod}: not measured ({why})")),
            // One that goes need not answer.
            Err(_) => continue,
        };
        let rows = pages.iter().filter_map(Value::as_array).flatten();
        let synced = rows.filter(|row| row["syncStatus"] == "synced").filter_map(|row| row["id"].as_str());
        let synced: BTreeSet<String> = synced.map(str::to_owned).collect();
        if is_new(&pod) { new.push((pod, synced)) } else { old.extend(synced) }
    }
    if new.is_empty() {
        return Err(format!("no control plane of revision {to} runs yet"));
    }
    for (pod, synced) in &new {
        if let Some(lacks) = old.difference(synced).next() {
            return Err(format!("control plane {pod} does not read {lacks} yet"));
        }
    }
    Ok(())
}
