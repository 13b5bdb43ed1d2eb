//! Upgrades a mesh by revision, phase by phase (contract C.10), and leads it back.
//!
//! What is to be done and how far it is is decided in [`stolos_plan::upgrade`], from what the clusters say; here it is
//! looked at and done. Nothing of it is remembered in the state folder: every look finds out anew, so a run that is
//! killed anywhere is gone on with by the next one.

mod look;
mod phases;

use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};
use stolos_cluster::{Cluster, objects};
use stolos_k8s::istio;
use stolos_plan::upgrade::{
    Asks, ClusterSight, Namespace, Phase, Upgrade, WAS_ANNOTATION, Way, Workload, decide, plan_of,
};
use stolos_plan::{MANAGER, Observed, Plan, SYSTEM_NAMESPACE, UPGRADING, is_owned, ours};
use stolos_serve::because;
use stolos_spec::Mesh;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::change::may_pass;
use crate::observe::resource;
use crate::{Clusters, Error, Lock, News, Options, State, Verdict, crash, execute};
use look::{look, reads_as_much};

/// The field manager of what an upgrade changes in objects that are not Stolos' own.
const UPGRADER: &str = "stolos-upgrade";
/// What `kubectl rollout restart` sets.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";
/// How often a write is sent again when the API server was busy or the connection broke.
const TRIES: u32 = 4;
/// Between two looks at what is waited for.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// How it goes.
#[derive(Clone, Debug)]
pub struct UpgradeOptions {
    /// Which way.
    pub way: Way,
    /// Only these namespaces, in this order; all, by name, if there are none.
    pub namespaces: Vec<String>,
    /// End after one namespace.
    pub one_by_one: bool,
    /// End after this phase.
    pub until: Option<Phase>,
    /// How long one wait may take.
    pub patience: Duration,
}

/// What is heard while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum UpgradeNews<'a> {
    /// A phase begins, or goes on.
    Phase(Phase, Way),
    /// Something of a phase's plan.
    Step(News<'a>),
    /// A namespace of a cluster asks for other proxies now.
    Labelled(&'a str, &'a str, &'a Asks),
    /// Workloads of it are being restarted.
    Restarted(&'a str, &'a str, &'a str),
    /// What is waited for, each time that changes.
    Waiting(&'a str),
    /// All of a namespace has proxies of the other control plane, after so much time.
    Moved(&'a str, &'a str, Duration),
    /// Nobody is connected any more to what is to go.
    Released,
}

/// How a run of it ended.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UpgradeReport {
    /// Where it is now.
    #[serde(flatten)]
    pub upgrade: Upgrade,
    /// Whether there is nothing left to do.
    pub done: bool,
    /// Why it ended before that.
    pub stopped: Option<Stopped>,
    /// How many writes were sent, runs of Helm among them.
    pub writes: u64,
}

/// Why a run ended before everything was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stopped {
    /// In which phase.
    pub phase: Phase,
    /// What for.
    pub reason: Reason,
    /// What was seen.
    pub seen: Vec<String>,
}

/// What a run ended for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// It was to end here.
    Asked,
    /// Somebody stopped it.
    Interrupted,
    /// A change was refused.
    Failed,
    /// What was waited for did not come.
    TimedOut,
    /// The mesh did not do what its file says.
    Unproven,
    /// Somebody has to do something first that is not for Stolos to do.
    ByHand,
}

/// Looks at every cluster of the mesh, and says what an upgrade would do and how far it is. Writes nothing.
///
/// # Errors
///
/// Why the mesh cannot be upgraded like that, or looked at.
pub async fn upgrade_status(
    way: Way,
    namespaces: &[String],
    mesh: &Mesh,
    clusters: &Clusters,
    state: &State,
) -> Result<Upgrade, Error> {
    let (_, sights) = look(mesh, clusters, state, false).await?;
    Ok(decide(way, mesh, namespaces, &sights)?)
}

/// Upgrades the mesh to the revision that its file names, or leads it back, from wherever it is. `prove` is asked between
/// the steps whether the mesh still does what its file says, with workloads that ask for proxies as it is told.
///
/// # Errors
///
/// Why nothing was done, or could not go on. Why it ended early is in the report.
pub async fn upgrade<P: AsyncFn(Asks) -> Result<(), Vec<String>>>(
    options: &UpgradeOptions,
    mesh: &Mesh,
    clusters: &Clusters,
    state: &State,
    interrupt: impl Future<Output = ()>,
    hear: &(dyn Fn(UpgradeNews<'_>) + Sync + Send),
    prove: P,
) -> Result<UpgradeReport, Error> {
    let lock = Lock::take(mesh, clusters, state).await?;
    let stop = CancellationToken::new();
    let mut run = Run { options, mesh, clusters, state, hear, prove, stop: stop.clone(), writes: 0, proven: false };
    let stopping = async {
        tokio::select! {
            () = interrupt => {}
            () = lock.lost() => tracing::error!("the lock of the mesh was lost"),
        }
        stop.cancel();
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = run.go() => result,
        () = stopping => Err(Error::Upgrade("interrupted".to_owned())),
    };
    lock.release().await;
    result
}

struct Run<'a, P> {
    options: &'a UpgradeOptions,
    mesh: &'a Mesh,
    clusters: &'a Clusters,
    state: &'a State,
    hear: &'a (dyn Fn(UpgradeNews<'_>) + Sync + Send),
    prove: P,
    stop: CancellationToken,
    writes: u64,
    /// Whether nothing was changed since the mesh was proven last.
    proven: bool,
}

/// Why a phase ended early, as far as the phase knows.
type Early = (Reason, Vec<String>);

impl<P: AsyncFn(Asks) -> Result<(), Vec<String>>> Run<'_, P> {
    async fn look(&self, connections: bool) -> Result<(Observed, Vec<ClusterSight>, Upgrade), Error> {
        let (observed, sights) = look(self.mesh, self.clusters, self.state, connections).await?;
        let upgrade = decide(self.options.way, self.mesh, &self.options.namespaces, &sights)?;
        Ok((observed, sights, upgrade))
    }

    /// Phase after phase, until there is none or one does not come to its end.
    async fn go(&mut self) -> Result<UpgradeReport, Error> {
        let (_, sights, first) = self.look(false).await?;
        if first.way == Way::Forward && !first.is_done() {
            // From here on apply leaves to us what is ours to move.
            let to = first.to.0.as_str();
            self.mark(sights.iter().filter(|sight| sight.upgrading.as_deref() != Some(to)), Some(to)).await?;
        }
        for phase in first.phases.iter().map(|stage| stage.phase).collect::<Vec<_>>() {
            let (observed, sights, upgrade) = self.look(false).await?;
            if upgrade.open(phase).next().is_some() {
                (self.hear)(UpgradeNews::Phase(phase, upgrade.way));
                let ended = self.phase(phase, &observed, &sights, &upgrade).await?;
                if let Err((reason, seen)) = ended {
                    return Ok(self.report(first, Some(Stopped { phase, reason, seen })).await);
                }
            }
            if self.options.until == Some(phase) && phase != Phase::Retire {
                let stopped = Stopped { phase, reason: Reason::Asked, seen: vec![] };
                return Ok(self.report(first, Some(stopped)).await);
            }
        }
        Ok(self.report(first, None).await)
    }

    async fn report(&self, mut upgrade: Upgrade, stopped: Option<Stopped>) -> UpgradeReport {
        if stopped.is_some() {
            // Where it is now; where that cannot be seen, where it began.
            if let Ok((.., now)) = self.look(false).await {
                upgrade = now;
            }
        } else {
            // What went cannot be seen any more.
            upgrade.phases.iter_mut().flat_map(|stage| &mut stage.tasks).for_each(|task| task.done = true);
        }
        UpgradeReport { done: stopped.is_none(), upgrade, stopped, writes: self.writes }
    }

    async fn phase(
        &mut self,
        phase: Phase,
        observed: &Observed,
        sights: &[ClusterSight],
        upgrade: &Upgrade,
    ) -> Result<Result<(), Early>, Error> {
        let to = upgrade.to.0.as_str();
        match phase {
            Phase::Canary => {
                let plan = plan_of(phase, upgrade.way, to, self.mesh, observed)?;
                if let Err(early) = self.carry_out(&plan).await? {
                    return Ok(Err(early));
                }
                Ok(self.reads(to).await)
            }
            Phase::Namespaces => self.namespaces(observed, sights, upgrade).await,
            Phase::Gateways => self.gateways(upgrade).await,
            Phase::Retire => self.retire(sights, upgrade).await,
        }
    }

    /// Carries out a part's plan; why it did not all succeed.
    async fn carry_out(&mut self, plan: &Plan) -> Result<Result<(), Early>, Error> {
        let options = Options { patience: self.options.patience, ..Options::default() };
        let hear = self.hear;
        let progress = |news: News<'_>| hear(UpgradeNews::Step(news));
        let stopped = self.stop.clone();
        let stopped = async move { stopped.cancelled().await };
        let report = execute(plan, self.mesh, self.clusters, self.state, options, stopped, &progress).await?;
        self.writes += report.writes;
        self.proven &= report.writes == 0;
        let seen = report.failed.iter().map(|failure| format!("{}: {}", failure.step, failure.why)).collect();
        Ok(match report.verdict() {
            Verdict::Done => Ok(()),
            Verdict::Interrupted => Err((Reason::Interrupted, seen)),
            Verdict::TimedOut => Err((Reason::TimedOut, seen)),
            Verdict::Partial | Verdict::Failed => Err((Reason::Failed, seen)),
        })
    }

    /// Asks whether the mesh does what it should, for who asks for the control plane `to`; once after each change.
    async fn proof(&mut self, to: &str) -> Result<(), Early> {
        if self.proven {
            return Ok(());
        }
        (self.prove)(Asks::for_revision(to)).await.map_err(|seen| match self.stop.is_cancelled() {
            true => (Reason::Interrupted, seen),
            false => (Reason::Unproven, seen),
        })?;
        self.proven = true;
        Ok(())
    }

    /// Waits until the new control planes read every cluster that the old ones read.
    async fn reads(&self, to: &str) -> Result<(), Early> {
        let lacks = || async {
            let mut lacks = Vec::new();
            for member in self.mesh.clusters.iter().filter(|member| member.primary().is_none()) {
                let Ok(cluster) = self.clusters.get(member.name.as_str()) else { continue };
                if let Err(why) = reads_as_much(&cluster, to).await {
                    lacks.push(format!("{}: {why}", member.name));
                }
            }
            lacks
        };
        self.wait(lacks).await
    }

    /// Waits until nothing is missing, for as long as patience lasts.
    async fn wait<F: Future<Output = Vec<String>>>(&self, missing: impl Fn() -> F) -> Result<(), Early> {
        let deadline = Instant::now() + self.options.patience;
        let (mut pause, mut said) = (PAUSES.0, String::new());
        loop {
            let missing = missing().await;
            if missing.is_empty() {
                return Ok(());
            }
            let now = missing.join("; ");
            if now != said {
                (self.hear)(UpgradeNews::Waiting(&now));
                said = now;
            }
            if Instant::now() >= deadline {
                return Err((Reason::TimedOut, missing));
            }
            tokio::select! {
                () = tokio::time::sleep_until(deadline.min(Instant::now() + pause)) => {}
                () = self.stop.cancelled() => return Err((Reason::Interrupted, missing)),
            }
            pause = (pause * 3 / 2).min(PAUSES.1);
        }
    }

    /// Writes how a namespace asks for proxies, and how it did before.
    async fn label(&mut self, cluster: &Cluster, namespace: &Namespace, wanted: &Asks) -> Result<(), String> {
        let namespaces = resource("v1", "Namespace");
        let name = namespace.name.as_str();
        let live = objects::get(&cluster.client, &namespaces, None, name).await.map_err(|error| because(&error))?;
        let live = live.ok_or("it is gone")?;
        let mut labels = json!({istio::INJECTION_LABEL: null, istio::REVISION_LABEL: null});
        if let Some((label, value)) = wanted.label() {
            labels[label] = value.into();
        }
        let was = match self.options.way {
            Way::Forward => Some(namespace.was.as_ref().unwrap_or(&namespace.asks).to_string()),
            Way::Back => None,
        };
        let patch = json!({"metadata": {"labels": labels, "annotations": {WAS_ANNOTATION: was}}});
        self.write(|| objects::merge(&cluster.client, &namespaces, (None, name), &patch, false, UPGRADER)).await?;
        if is_owned(self.mesh.name.as_str(), &live) {
            // As the plan of the whole mesh writes it, so that what it owns is what it wants.
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {}}});
            let mut object = ours(self.mesh.name.as_str(), object);
            if let Some((label, value)) = wanted.label() {
                object["metadata"]["labels"][label] = value.into();
            }
            self.write(|| objects::apply(&cluster.client, &namespaces, &object, MANAGER, true)).await?;
        }
        Ok(())
    }

    /// As `kubectl rollout restart` does it.
    async fn restart(&mut self, cluster: &Cluster, namespace: &str, workload: &Workload) -> Result<(), String> {
        let now = jiff::Timestamp::try_from(SystemTime::now()).map(|at| format!("{at:.0}")).unwrap_or_default();
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED: now}}}}});
        let kind = resource("apps/v1", &workload.kind);
        self.write(|| {
            objects::merge(&cluster.client, &kind, (Some(namespace), &workload.name), &patch, false, UPGRADER)
        })
        .await
    }

    /// Sends a write, again if the API server was busy or the connection broke.
    async fn write<F: Future<Output = Result<Value, stolos_cluster::Error>>>(
        &mut self,
        send: impl Fn() -> F,
    ) -> Result<(), String> {
        let mut pause = Duration::from_millis(100);
        for attempt in 1.. {
            crash::pass(crash::Point::WriteBefore);
            let answer = send().await;
            crash::pass(crash::Point::WriteAfter);
            self.writes += 1;
            self.proven = false;
            match answer {
                Ok(_) => break,
                Err(error) if attempt < TRIES && may_pass(&error) => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
                Err(error) => return Err(because(&error)),
            }
        }
        Ok(())
    }

    /// Writes into clusters that an upgrade is under way, and where it leads; or no longer.
    async fn mark(&mut self, sights: impl Iterator<Item = &ClusterSight>, to: Option<&str>) -> Result<(), Error> {
        let namespaces = resource("v1", "Namespace");
        let patch = json!({"metadata": {"annotations": {UPGRADING: to}}});
        for sight in sights {
            let failed = |why: String| Error::Cluster { cluster: sight.name.clone(), why };
            let cluster = self.clusters.get(&sight.name).map_err(failed)?;
            let mark =
                || objects::merge(&cluster.client, &namespaces, (None, SYSTEM_NAMESPACE), &patch, false, UPGRADER);
            self.write(mark).await.map_err(failed)?;
        }
        Ok(())
    }
}
