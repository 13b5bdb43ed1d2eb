//! The phases of an upgrade that are more than a plan: namespaces, gateways, retirement.

use std::collections::BTreeMap;

use serde_json::json;
use stolos_cluster::{Cluster, objects};
use stolos_plan::Condition;
use stolos_plan::Observed;
use stolos_plan::upgrade::{
    Asks, ClusterSight, Namespace, Phase, Upgrade, WAS_ANNOTATION, Way, Workload, holds, plan_of, tags, wanted_label,
};
use stolos_serve::because;
use tokio::time::Instant;

use super::look::{inside, look};
use super::{Early, PAUSES, Reason, Run, UPGRADER, UpgradeNews};
use crate::Error;
use crate::change::what_pods_say;
use crate::observe::resource;

impl<P: AsyncFn(Asks) -> Result<(), Vec<String>>> Run<'_, P> {
    pub(super) async fn namespaces(
        &mut self,
        observed: &Observed,
        sights: &[ClusterSight],
        upgrade: &Upgrade,
    ) -> Result<Result<(), Early>, Error> {
        let (to, only) = (upgrade.to.0.as_str(), &self.options.namespaces);
        let mut names: Vec<&str> = Vec::new();
        for task in upgrade.open(Phase::Namespaces) {
            if !names.contains(&task.subject.as_str()) {
                names.push(&task.subject);
            }
        }
        let (now, later): (Vec<&str>, Vec<&str>) =
            names.into_iter().partition(|name| only.is_empty() || only.iter().any(|only| only == name));
        let mut left: Vec<String> = later.iter().map(|name| format!("namespace {name}")).collect();
        for (at, name) in now.iter().enumerate() {
            // Back, what is wrong may be what is led back from.
            if upgrade.way == Way::Forward
                && let Err(early) = self.proof(to).await
            {
                return Ok(Err(early));
            }
            for sight in sights {
                let Some(namespace) = sight.namespaces.iter().find(|namespace| namespace.name == *name) else {
                    continue;
                };
                let tags = observed.cluster(&sight.name).map(tags).unwrap_or_default();
                let cluster = self.clusters.get(&sight.name);
                let cluster = cluster.map_err(|why| Error::Cluster { cluster: sight.name.clone(), why })?;
                if let Err(early) = self.namespace(&cluster, namespace, upgrade, &tags).await {
                    return Ok(Err(early));
                }
            }
            if self.options.one_by_one && (at + 1 < now.len() || !left.is_empty()) {
                left.extend(now[at + 1..].iter().map(|name| format!("namespace {name}")));
                left.sort();
                break;
            }
        }
        if upgrade.way == Way::Forward
            && let Err(early) = self.proof(to).await
        {
            return Ok(Err(early));
        }
        Ok(if left.is_empty() { Ok(()) } else { Err((Reason::Asked, left)) })
    }

    /// Moves one namespace of one cluster, and restarts what has proxies of the other control plane.
    async fn namespace(
        &mut self,
        cluster: &Cluster,
        namespace: &Namespace,
        upgrade: &Upgrade,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), Early> {
        let (began, to, name) = (Instant::now(), upgrade.to.0.as_str(), namespace.name.as_str());
        let leaves = |revision: &str| upgrade.from.iter().any(|(from, _)| from == revision);
        let failed = |why: String| (Reason::Failed, vec![format!("{}: namespace {name}: {why}", cluster.name)]);
        if namespace.tag.is_none() && namespace.revision.as_deref().is_some_and(leaves) {
            let wanted = wanted_label(upgrade.way, namespace, to);
            self.label(cluster, namespace, &wanted).await.map_err(failed)?;
            (self.hear)(UpgradeNews::Labelled(&cluster.name, name, &wanted));
        }
        let deadline = Instant::now() + self.options.patience;
        let (mut pause, mut said) = (PAUSES.0, String::new());
        loop {
            let now = inside(cluster, name, tags).await.map_err(failed)?;
            let old = |w: &&Workload| w.by_hand.is_none() && !w.is_at(to);
            let workloads = now.iter().flat_map(|now| &now.workloads);
            let mut missing = Vec::new();
            for workload in workloads {
                match &workload.rolling {
                    // It may be rolling out because of us: restarting it again would help nobody.
                    Some(rolling) if workload.by_hand.is_none() => missing.push((workload, rolling.clone())),
                    _ if old(&workload) => {
                        self.restart(cluster, name, workload).await.map_err(failed)?;
                        (self.hear)(UpgradeNews::Restarted(&cluster.name, name, &workload.to_string()));
                        missing.push((workload, "it is being restarted".to_owned()));
                    }
                    _ => {}
                }
            }
            if missing.is_empty() {
                (self.hear)(UpgradeNews::Moved(&cluster.name, name, began.elapsed()));
                return Ok(());
            }
            let text =
                missing.iter().map(|(workload, why)| format!("{workload} ({why})")).collect::<Vec<_>>().join(", ");
            let text = format!("{}: namespace {name}: {text}", cluster.name);
            if text != said {
                (self.hear)(UpgradeNews::Waiting(&text));
            }
            if Instant::now() >= deadline {
                let deployments = missing.iter().filter(|(workload, _)| workload.kind == "Deployment");
                let conditions: Vec<_> = deployments
                    .map(|(workload, _)| Condition::Available {
                        namespace: name.to_owned(),
                        deployment: workload.name.clone(),
                    })
                    .collect();
                let pods = what_pods_say(cluster, &conditions).await;
                return Err((Reason::TimedOut, vec![format!("{text}{pods}")]));
            }
            said = text;
            tokio::select! {
                () = tokio::time::sleep_until(deadline.min(Instant::now() + pause)) => {}
                () = self.stop.cancelled() => return Err((Reason::Interrupted, vec![said])),
            }
            pause = (pause * 3 / 2).min(PAUSES.1);
        }
    }

    pub(super) async fn gateways(&mut self, upgrade: &Upgrade) -> Result<Result<(), Early>, Error> {
        let to = upgrade.to.0.as_str();
        let mut clusters: Vec<&str> = upgrade.open(Phase::Gateways).map(|task| task.cluster.as_str()).collect();
        clusters.dedup();
        for cluster in clusters {
            if upgrade.way == Way::Forward
                && let Err(early) = self.proof(to).await
            {
                return Ok(Err(early));
            }
            let (observed, ..) = self.look(false).await?;
            let plan = plan_of(Phase::Gateways, upgrade.way, to, self.mesh, &observed)?.only(cluster);
            if let Err(early) = self.carry_out(&plan).await? {
                return Ok(Err(early));
            }
            let lacks = || async {
                let (_, sights) = match look(self.mesh, self.clusters, self.state, false).await {
                    Ok(seen) => seen,
                    Err(error) => return vec![because(&error)],
                };
                let here = sights.iter().filter(|sight| sight.name == cluster).flat_map(|sight| &sight.gateways);
                let lacks = here.filter_map(|gateway| {
                    let why = match &gateway.settled {
                        Err(why) => why.clone(),
                        Ok(()) if gateway.proxies.keys().any(|by| by != to) => "old pods are not gone yet".to_owned(),
                        Ok(()) => return None,
                    };
                    Some(format!("{cluster}: gateway {} ({why})", gateway.release))
                });
                lacks.collect()
            };
            if let Err(early) = self.wait(lacks).await {
                return Ok(Err(early));
            }
        }
        Ok(match upgrade.way {
            Way::Forward => self.proof(to).await,
            Way::Back => Ok(()),
        })
    }

    pub(super) async fn retire(
        &mut self,
        sights: &[ClusterSight],
        upgrade: &Upgrade,
    ) -> Result<Result<(), Early>, Error> {
        let to = upgrade.to.0.as_str();
        // What goes must still be what the file does not want; and what is left must do without it.
        let by_hand: Vec<String> = upgrade
            .open(Phase::Namespaces)
            .flat_map(|task| task.by_hand.iter().map(move |why| (task, why)))
            .map(|(task, why)| format!("{}: namespace {}: {why}", task.cluster, task.subject))
            .collect();
        if !by_hand.is_empty() {
            return Ok(Err((Reason::ByHand, by_hand)));
        }
        if let Err(early) = self.proof(to).await {
            return Ok(Err(early));
        }
        let held = || async {
            match look(self.mesh, self.clusters, self.state, true).await {
                Ok((_, sights)) => holds(&upgrade.from, &sights),
                Err(error) => vec![because(&error)],
            }
        };
        if let Err(early) = self.wait(held).await {
            return Ok(Err(early));
        }
        (self.hear)(UpgradeNews::Released);
        let (observed, ..) = self.look(false).await?;
        let going = match upgrade.way {
            Way::Forward => to,
            Way::Back => upgrade.from.first().map_or(to, |(revision, _)| revision.as_str()),
        };
        let plan = plan_of(Phase::Retire, upgrade.way, going, self.mesh, &observed)?;
        if let Err(early) = self.carry_out(&plan).await? {
            return Ok(Err(early));
        }
        let namespaces = resource("v1", "Namespace");
        let patch = json!({"metadata": {"annotations": {WAS_ANNOTATION: null}}});
        for sight in sights {
            let cluster = self.clusters.get(&sight.name);
            let cluster = cluster.map_err(|why| Error::Cluster { cluster: sight.name.clone(), why })?;
            for namespace in sight.namespaces.iter().filter(|namespace| namespace.was.is_some()) {
                let name = namespace.name.as_str();
                let forget = || objects::merge(&cluster.client, &namespaces, (None, name), &patch, false, UPGRADER);
                if let Err(why) = self.write(forget).await {
                    return Ok(Err((Reason::Failed, vec![format!("{}: namespace {name}: {why}", sight.name)])));
                }
            }
        }
        self.mark(sights.iter().filter(|sight| sight.upgrading.is_some()), None).await?;
        self.proven = false;
        Ok(self.proof(to).await)
    }
}
