//! Shifts the traffic of a mesh away from one cluster, and back.
//!
//! That a cluster is drained is written in the cluster itself (an annotation of `istio-system`, by a field manager of its
//! own), before anything of it is done: so `plan` knows it, `apply` keeps it, and a run that was killed is finished by
//! either. The others then forget the cluster's endpoints, one after the other: their credentials for it go (contract
//! C.6, 1 and 2), its pods, its gateway and what they themselves send to others stay.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};
use stolos_cluster::objects;
use stolos_k8s::{istio, meta};
use stolos_plan::{DRAINED, DRAINER, SYSTEM_NAMESPACE, is_owned, remote_secret_name};
use stolos_spec::{Mesh, Role};
use tokio::time::Instant;

use crate::observe::resource;
use crate::rotate::connected;
use crate::trust::debug_pages;
use crate::{Clusters, Error, Lock, State, crash};
use stolos_serve::because;

/// Between two looks at what the control planes say.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What is heard while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum DrainNews<'a> {
    /// A cluster's credential for the drained one is gone.
    Forgot(&'a str),
    /// What is waited for, and where.
    Waiting(&'a str, &'a str),
    /// A cluster sends nothing there any more, as so many of its proxies have taken.
    Confirmed(&'a str, usize, Duration),
}

/// How a run ended.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DrainReport {
    /// Clusters that are confirmed to send nothing there.
    pub confirmed: Vec<String>,
    /// What was waited for in vain, and where. The clusters after that one were not touched.
    pub unmet: Vec<(String, String)>,
    /// Whether somebody stopped it.
    pub interrupted: bool,
}

/// Lets every other cluster forget the endpoints of `name`, one after the other, and confirms it.
///
/// # Errors
///
/// Why nothing was done, or could not go on.
pub async fn drain(
    mesh: &Mesh,
    clusters: &Clusters,
    state: &State,
    name: &str,
    patience: Duration,
    interrupt: impl Future<Output = ()>,
    hear: &(dyn Fn(DrainNews<'_>) + Sync),
) -> Result<DrainReport, Error> {
    let refuse = |why: String| Err(Error::Drain(why));
    let Some(member) = mesh.clusters.iter().find(|c| c.name.as_str() == name) else {
        let known: Vec<_> = mesh.clusters.iter().map(|c| c.name.as_str()).collect();
        return refuse(format!("there is no cluster `{name}` in the mesh; there is {}", known.join(", ")));
    };
    if member.role != Role::Primary {
        return refuse(format!("{name} has no control plane of its own: the one that serves it must go on reading it"));
    }
    let lock = Lock::take(mesh, clusters, state).await?;
    let mut report = DrainReport::default();
    let mut interrupt = std::pin::pin!(interrupt);
    let held = async {
        let all = connected(mesh, clusters)?;
        let others: Vec<_> = all.iter().filter(|(c, primary)| *primary && c.name != name).map(|(c, _)| c).collect();
        let Some((drained, _)) = all.iter().find(|(cluster, _)| cluster.name == name) else { return Ok(report) };
        if others.is_empty() {
            return Err(Error::Drain(format!("there is no other cluster to take what {name} serves")));
        }
        say(drained, true).await?;
        for cluster in others {
            let one = async {
                let failed = |why: String| Error::Cluster { cluster: cluster.name.clone(), why };
                if forget(mesh, cluster, name).await.map_err(failed)? {
                    hear(DrainNews::Forgot(&cluster.name));
                }
                Ok::<_, Error>(confirm(cluster, name, patience, hear).await)
            };
            let ended = tokio::select! {
                ended = one => ended?,
                () = &mut interrupt => { report.interrupted = true; Err("interrupted".to_owned()) }
                () = lock.lost() => { report.interrupted = true; Err("the lock of the mesh was lost".to_owned()) }
            };
            match ended {
                Ok(()) => report.confirmed.push(cluster.name.clone()),
                Err(missing) => {
                    report.unmet.push((cluster.name.clone(), missing));
                    break;
                }
            }
        }
        Ok(report)
    };
    let result = held.await;
    lock.release().await;
    result
}

/// Takes the word back that a cluster is drained; the next apply gives the others their credentials again.
///
/// # Errors
///
/// When there is no such cluster, or it cannot be written to.
pub async fn undrain(mesh: &Mesh, clusters: &Clusters, name: &str) -> Result<(), Error> {
    let all = connected(mesh, clusters)?;
    match all.iter().find(|(cluster, _)| cluster.name == name) {
        Some((cluster, _)) => say(cluster, false).await,
        None => Err(Error::Drain(format!("there is no cluster `{name}` in the mesh"))),
    }
}

/// Waits until every other cluster's control planes read `name` again; what is missing where, when patience ends.
///
/// # Errors
///
/// When a cluster is not connected.
pub async fn returned(
    mesh: &Mesh,
    clusters: &Clusters,
    name: &str,
    patience: Duration,
) -> Result<Vec<(String, String)>, Error> {
    let deadline = Instant::now() + patience;
    let mut missing = Vec::new();
    for (cluster, _) in connected(mesh, clusters)?.iter().filter(|(c, primary)| *primary && c.name != name) {
        let mut pause = PAUSES.0;
        loop {
            let why = match debug_pages(cluster, istio::DEBUG_PORT, &["/debug/clusterz"]).await {
                Err(why) => why,
                Ok(pages) => {
                    let lacks = pages.iter().find_map(|(pod, pages)| match pages {
                        Err(why) => Some(format!("control plane {pod}: not measured ({why})")),
                        Ok(pages) if pages.iter().all(|page| reads(page, name)) => None,
                        Ok(_) => Some(format!("control plane {pod} does not read {name} yet")),
                    });
                    match lacks {
                        None => break,
                        Some(why) => why,
                    }
                }
            };
            if Instant::now() >= deadline {
                missing.push((cluster.name.clone(), why));
                break;
            }
            tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
            pause = (pause * 3 / 2).min(PAUSES.1);
        }
    }
    Ok(missing)
}

/// Whether a `clusterz` page says that a cluster is read.
fn reads(clusterz: &Value, cluster: &str) -> bool {
    let synced = |known: &Value| known["id"] == cluster && known["syncStatus"] == "synced";
    clusterz.as_array().into_iter().flatten().any(synced)
}

/// Writes into the cluster that it is drained, or no longer.
async fn say(cluster: &stolos_cluster::Cluster, drained: bool) -> Result<(), Error> {
    let failed = |why: String| Error::Cluster { cluster: cluster.name.clone(), why };
    let namespaces = resource("v1", "Namespace");
    let live = objects::get(&cluster.client, &namespaces, None, SYSTEM_NAMESPACE).await;
    let live = live.map_err(|error| failed(because(&error)))?;
    let live = live.ok_or_else(|| failed(format!("there is no namespace {SYSTEM_NAMESPACE}; apply first")))?;
    let known = meta::annotation(&live, DRAINED).is_some();
    if known == drained {
        return Ok(());
    }
    let mut namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE}});
    if drained {
        let now = jiff::Timestamp::try_from(SystemTime::now()).map(|at| format!("{at:.0}")).unwrap_or_default();
        namespace["metadata"]["annotations"] = json!({DRAINED: now});
    }
    crash::pass(crash::Point::WriteBefore);
    let written = objects::apply(&cluster.client, &namespaces, &namespace, DRAINER, true).await;
    crash::pass(crash::Point::WriteAfter);
    written.map(drop).map_err(|error| failed(because(&error)))
}

/// Deletes the credential for the drained cluster, if it is the mesh's own. Whether there was one.
async fn forget(mesh: &Mesh, cluster: &stolos_cluster::Cluster, drained: &str) -> Result<bool, String> {
    let secrets = resource("v1", "Secret");
    let name = remote_secret_name(drained);
    let found = objects::get(&cluster.client, &secrets, Some(SYSTEM_NAMESPACE), &name).await;
    let Some(found) = found.map_err(|error| because(&error))? else { return Ok(false) };
    if !is_owned(mesh.name.as_str(), &found) {
        return Err(format!("Secret {SYSTEM_NAMESPACE}/{name} was not made by Stolos for this mesh"));
    }
    crash::pass(crash::Point::WriteBefore);
    let gone = objects::delete(&cluster.client, &secrets, Some(SYSTEM_NAMESPACE), &name, Some(meta::uid(&found))).await;
    crash::pass(crash::Point::WriteAfter);
    gone.map_err(|error| because(&error))
}

/// Waits until no control plane of the cluster knows the drained one, and every proxy has taken that.
async fn confirm(
    cluster: &stolos_cluster::Cluster,
    drained: &str,
    patience: Duration,
    hear: &(dyn Fn(DrainNews<'_>) + Sync),
) -> Result<(), String> {
    let began = Instant::now();
    let (deadline, mut pause, mut said) = (began + patience, PAUSES.0, String::new());
    loop {
        let missing = match forgotten(cluster, drained, &[]).await {
            Ok(proxies) => {
                hear(DrainNews::Confirmed(&cluster.name, proxies, began.elapsed()));
                return Ok(());
            }
            Err(missing) => missing,
        };
        if missing != said {
            hear(DrainNews::Waiting(&cluster.name, &missing));
            said = missing;
        }
        if Instant::now() >= deadline {
            return Err(format!("waited {} s in vain: {said}", patience.as_secs()));
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
        pause = (pause * 3 / 2).min(PAUSES.1);
    }
}

/// How many proxies have taken that a cluster is unknown here; or what is missing. Those of `awaited` have to be among them.
pub(crate) async fn forgotten(
    cluster: &stolos_cluster::Cluster,
    former: &str,
    awaited: &[String],
) -> Result<usize, String> {
    let pages = debug_pages(cluster, istio::DEBUG_PORT, &["/debug/clusterz", "/debug/syncz"]).await?;
    let (mut proxies, mut connected) = (0, BTreeSet::new());
    for (pod, pages) in pages {
        let pages = pages.map_err(|why| format!("control plane {pod}: not measured ({why})"))?;
        let [clusterz, syncz] = pages.as_slice() else { return Err(format!("control plane {pod} said nothing")) };
        if knows(clusterz, former) {
            return Err(format!("control plane {pod} reads {former} still"));
        }
        proxies += settled(syncz).map_err(|proxy| format!("proxy {proxy} has not taken its configuration yet"))?;
        connected
            .extend(syncz.as_array().into_iter().flatten().filter_map(|row| row["proxy"].as_str().map(str::to_owned)));
    }
    match awaited.iter().find(|proxy| !connected.contains(*proxy)) {
        None => Ok(proxies),
        Some(proxy) => Err(format!("proxy {proxy} is not connected yet")),
    }
}

/// Whether a `clusterz` page names a cluster.
fn knows(clusterz: &Value, cluster: &str) -> bool {
    clusterz.as_array().into_iter().flatten().any(|known| known["id"] == cluster)
}

/// How many proxies a `syncz` page has; or the first that has not taken what it was sent.
fn settled(syncz: &Value) -> Result<usize, String> {
    let rows = syncz.as_array().map(Vec::as_slice).unwrap_or_default();
    let stale = |row: &&Value| {
        let behind = row["settled"].is_string() && row["settled"] != row["snapshot"];
        let sent = ["cluster", "listener", "endpoint", "route"].iter().any(|of| row[format!("{of}_status")] == "STALE");
        behind || sent
    };
    match rows.iter().find(stale) {
        None => Ok(rows.len()),
        Some(row) => Err(row["proxy"].as_str().unwrap_or_default().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_say_who_is_known_and_who_is_behind() {
        let clusterz = json!([{"id": "east", "syncStatus": "synced"}, {"id": "west"}]);
        assert!(knows(&clusterz, "west") && !knows(&clusterz, "north") && !knows(&json!(null), "west"));
        let row = |settled: &str, status: &str| json!({"proxy": "a.b", "snapshot": "2", "settled": settled, "endpoint_status": status});
        assert_eq!(settled(&json!([row("2", "SYNCED"), row("2", "NOT SENT")])), Ok(2));
        for behind in [row("1", "SYNCED"), row("2", "STALE")] {
            assert_eq!(settled(&json!([behind])), Err("a.b".to_owned()));
        }
    }
}
