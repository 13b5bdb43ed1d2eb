//! New signing certificates for clusters that run, of the root they have (contract C.8): one cluster after the other, and
//! the next only when every control plane of the one before shows the new one.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use stolos_cluster::Cluster;
use stolos_pki::CaCerts;
use stolos_spec::Mesh;
use tokio::time::Instant;

use crate::rotate::{cacerts, connected, write_cacerts};
use crate::trust::shown;
use crate::{Clusters, Error, Lock, State};

/// Between two looks at what a control plane shows.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// What is heard while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum ReissueNews<'a> {
    /// A cluster was given a new signing certificate: its name and the serial.
    Issued(&'a str, &'a str),
    /// What is waited for, each time that changes.
    Waiting(&'a str, &'a str),
    /// So many control planes of a cluster show it, after so long.
    Shown(&'a str, usize, Duration),
}

/// How a run ended.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReissueReport {
    /// Serials of the certificates that are shown now, by cluster, in the order in which they were issued.
    pub issued: Vec<(String, String)>,
    /// What was waited for in vain, and where. No cluster after that one was touched.
    pub unmet: BTreeMap<String, String>,
    /// Clusters that were not come to.
    pub left: Vec<String>,
    /// Whether somebody stopped it.
    pub interrupted: bool,
}

/// Issues a new signing certificate for each of `only`, or for every cluster of the mesh with a control plane.
///
/// Run again after an interruption it begins anew, which costs a certificate and nothing else.
///
/// # Errors
///
/// Why nothing could be done, or not go on. What was waited for in vain is in the report.
pub async fn reissue(
    mesh: &Mesh,
    clusters: &Clusters,
    state: &State,
    only: &[String],
    patience: Duration,
    interrupt: impl Future<Output = ()>,
    hear: &(dyn Fn(ReissueNews<'_>) + Sync),
) -> Result<ReissueReport, Error> {
    if let Some(unknown) = only.iter().find(|name| mesh.clusters.iter().all(|c| c.name.as_str() != **name)) {
        let known: Vec<_> = mesh.clusters.iter().map(|c| c.name.as_str()).collect();
        return Err(Error::Rotation(format!(
            "there is no cluster `{unknown}` in the mesh; there is {}",
            known.join(", ")
        )));
    }
    let lock = Lock::take(mesh, clusters, state).await?;
    let mut report = ReissueReport::default();
    let mut interrupt = std::pin::pin!(interrupt);
    let held = async {
        if let Some(rotation) = state.rotation()? {
            return Err(Error::Rotation(format!(
                "the root is being replaced (phase {}), which issues every signing certificate anew",
                rotation.phase
            )));
        }
        let members =
            connected(mesh, clusters)?.into_iter().filter(|(_, primary)| *primary).map(|(cluster, _)| cluster);
        let wanted = |cluster: &Cluster| only.is_empty() || only.contains(&cluster.name);
        let mut left: Vec<Cluster> = members.filter(wanted).collect();
        left.reverse();
        while let Some(cluster) = left.pop() {
            let one = one(mesh, &cluster, state, patience, hear);
            let ended = tokio::select! {
                ended = one => ended?,
                () = &mut interrupt => { report.interrupted = true; Err("interrupted".to_owned()) }
                () = lock.lost() => { report.interrupted = true; Err("the lock of the mesh was lost".to_owned()) }
            };
            match ended {
                Ok(serial) => report.issued.push((cluster.name.clone(), serial)),
                Err(missing) => {
                    _ = report.unmet.insert(cluster.name.clone(), missing);
                    break;
                }
            }
        }
        report.left = left.into_iter().rev().map(|cluster| cluster.name).collect();
        Ok(report)
    };
    let result = held.await;
    lock.release().await;
    result
}

/// One cluster: its new serial, or what was waited for in vain.
async fn one(
    mesh: &Mesh,
    cluster: &Cluster,
    state: &State,
    patience: Duration,
    hear: &(dyn Fn(ReissueNews<'_>) + Sync),
) -> Result<Result<String, String>, Error> {
    let failed = |why: String| Error::Cluster { cluster: cluster.name.clone(), why };
    let now = SystemTime::now();
    let (_, live, facts) = cacerts(mesh, cluster, now).await.map_err(failed)?;
    let issued = state.issue(mesh, &cluster.name, now).await?;
    // The bundle stays as it is, byte by byte: who signs is what changes.
    let files = CaCerts { root_cert: live.root_cert, ..issued };
    let checked = files.check(now.max(SystemTime::now())).map_err(|refused| {
        failed(format!("a new signing certificate does not lead to the root that the cluster trusts ({refused})"))
    })?;
    if checked.roots != facts.roots {
        return Err(failed("its roots changed meanwhile; run again".to_owned()));
    }
    write_cacerts(mesh, cluster, &files).await.map_err(failed)?;
    let serial = checked.signing.serial().to_owned();
    hear(ReissueNews::Issued(&cluster.name, &serial));
    let began = Instant::now();
    let (deadline, mut pause, mut said) = (began + patience, PAUSES.0, String::new());
    loop {
        let missing = match shown(cluster).await {
            Err(why) => format!("control planes: not measured ({why})"),
            Ok(control_planes) => {
                let lacks = |shown: &Result<Vec<stolos_pki::Certificate>, String>| match shown {
                    Ok(chain) if chain.iter().any(|c| c.serial() == serial) => None,
                    Ok(_) => Some("shows another signing certificate at 15012 still".to_owned()),
                    Err(why) => Some(format!("not measured ({why})")),
                };
                let lacking = control_planes.iter().find_map(|(pod, shown)| Some(format!("{pod}: {}", lacks(shown)?)));
                match lacking {
                    None => {
                        hear(ReissueNews::Shown(&cluster.name, control_planes.len(), began.elapsed()));
                        return Ok(Ok(serial));
                    }
                    Some(lacking) => lacking,
                }
            }
        };
        if missing != said {
            hear(ReissueNews::Waiting(&cluster.name, &missing));
            said = missing;
        }
        if Instant::now() >= deadline {
            return Ok(Err(format!("waited {} s in vain: {said}", patience.as_secs())));
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + pause)).await;
        pause = (pause * 3 / 2).min(PAUSES.1);
    }
}
