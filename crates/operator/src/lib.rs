//! Keeps one mesh as its file says: looks, decides and does, again and again.
//!
//! One replica of several acts: the one that holds the Lease `stolos-operator-<mesh>`. Every [`Settings::interval`], and
//! whenever the file says something else, it looks at all clusters and carries out what a plan finds: tokens and signing
//! certificates that are to be renewed, objects of Stolos' own that somebody changed or removed, clusters that joined.
//! What would take something away is held back unless [`Settings::prune`] says otherwise: a file that lost a line by
//! accident must not take a cluster out of the mesh at night.
//!
//! Each change still takes the lock of the mesh, as `stolos apply` does, so that a person and an operator never act at
//! the same time.
//!
//! Start at [`run()`]. What it counts is in `metrics.rs`.

mod metrics;
mod pace;
mod pages;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stolos_apply::{Clusters, Error, Goal, Leader, News, Options, State, Verdict, because, observe};
use stolos_plan::{Plan, Sight};
use stolos_serve::{Listener, Stop};
use stolos_spec::Mesh;

use crate::metrics::{Metrics, Outcome};
use crate::pace::Pace;

/// How often the file is read again while nothing else is to be done.
const READ_AGAIN: Duration = Duration::from_secs(5);
/// How often one that stands by asks whether the other is gone.
const STAND_BY: Duration = Duration::from_secs(5);
/// How often the clusters are asked what expires when.
const EXPIRIES: Duration = Duration::from_secs(300);

/// What an operator is to keep, and how.
pub struct Settings {
    /// Reads the mesh file; the error is for people.
    pub read: Box<dyn Fn() -> Result<Mesh, String> + Send + Sync>,
    /// The kubeconfig that was given, if one was.
    pub kubeconfig: Option<PathBuf>,
    /// The folder with the root and the journal.
    pub state: State,
    /// Between the end of one round and the next.
    pub interval: Duration,
    /// How long one wait of a step may take.
    pub patience: Duration,
    /// Whether what the file no longer says is taken away.
    pub prune: bool,
    /// Who this replica is, for the Lease.
    pub identity: String,
}

/// Keeps the mesh until `stop`, and serves `/metrics`, `/healthz` and `/readyz` on `listener`.
pub async fn run(settings: Settings, listener: Listener, stop: Stop) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "serving /metrics, /healthz and /readyz");
    }
    let metrics = Arc::new(Metrics::default());
    let pages = pages::serve(listener, Arc::clone(&metrics), stop.clone());
    let operator = Operator { settings, metrics };
    tokio::join!(pages, operator.keep(&stop));
}

struct Operator {
    settings: Settings,
    metrics: Arc<Metrics>,
}

impl Operator {
    /// Leads whenever nobody else does.
    async fn keep(&self, stop: &Stop) {
        let mut pace = Pace::new(STAND_BY);
        let mut standing_by = false;
        while !stop.is_asked() {
            match self.take().await {
                Ok((leader, mesh)) => {
                    tracing::info!(mesh = %mesh.name, "leading");
                    (standing_by, pace) = (false, Pace::new(STAND_BY));
                    self.metrics.leads(true);
                    self.lead(&leader, mesh, stop).await;
                    self.metrics.leads(false);
                    leader.release().await;
                    continue;
                }
                Err(Trouble::Led(holder)) => {
                    if !std::mem::replace(&mut standing_by, true) {
                        tracing::info!(holder, "standing by");
                    }
                    self.metrics.looked();
                    pace.fine();
                }
                Err(Trouble::Other(why)) => {
                    tracing::error!(error = why, "could not start");
                    self.metrics.ended(Outcome::Failed);
                    pace.failed();
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pace.next()) => {}
                () = stop.asked() => {}
            }
        }
    }

    async fn take(&self) -> Result<(Leader, Mesh), Trouble> {
        let mesh = (self.settings.read)().map_err(Trouble::Other)?;
        let clusters = self.connect(&mesh).await.map_err(Trouble::Other)?;
        match Leader::take(&mesh, &clusters, &self.settings.identity).await {
            Ok(leader) => Ok((leader, mesh)),
            Err(Error::Locked { holder, .. }) => Err(Trouble::Led(holder)),
            Err(error) => Err(Trouble::Other(because(&error))),
        }
    }

    async fn connect(&self, mesh: &Mesh) -> Result<Clusters, String> {
        Clusters::connect(mesh, self.settings.kubeconfig.as_deref()).await.map_err(|error| because(&error))
    }

    /// Round after round, until somebody else leads, the Lease has to be in another cluster, or `stop`.
    async fn lead(&self, leader: &Leader, mut mesh: Mesh, stop: &Stop) {
        let home = mesh.clusters.first().map(|cluster| cluster.context.clone());
        let mut pace = Pace::new(self.settings.interval);
        let mut asked: Option<Instant> = None;
        let ended = async {
            tokio::select! {
                () = leader.lost() => tracing::warn!("somebody else leads now"),
                () = stop.asked() => {}
            }
        };
        tokio::pin!(ended);
        loop {
            self.metrics.begins();
            // A step under way is brought to its end by the run itself.
            let outcome = self.round(&mesh, leader, stop).await;
            self.metrics.ended(outcome);
            match outcome {
                Outcome::Failed => pace.failed(),
                Outcome::Settled | Outcome::Changed | Outcome::Busy => pace.fine(),
            }
            if asked.is_none_or(|at| at.elapsed() >= EXPIRIES) || outcome == Outcome::Changed {
                tokio::select! {
                    () = self.expiries(&mesh) => asked = Some(Instant::now()),
                    () = &mut ended => return,
                }
            }
            let next = tokio::select! {
                next = self.wait(&mesh, pace.next()) => next,
                () = &mut ended => return,
            };
            if let Some(next) = next {
                if next.name != mesh.name || next.clusters.first().map(|c| c.context.clone()) != home {
                    tracing::info!("the mesh file names another first cluster: leading from there");
                    return;
                }
                tracing::info!("the mesh file has changed");
                (mesh, pace) = (next, Pace::new(self.settings.interval));
            }
        }
    }

    /// Waits; gives the mesh when the file says another one meanwhile.
    async fn wait(&self, mesh: &Mesh, how_long: Duration) -> Option<Mesh> {
        let until = Instant::now() + how_long;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            tokio::time::sleep(left.min(READ_AGAIN)).await;
            match (self.settings.read)() {
                Ok(read) if read != *mesh => return Some(read),
                Ok(_) => {}
                // What was understood last still holds; the next round says it in its figures, too.
                Err(why) => tracing::warn!(error = why, "the mesh file cannot be read: keeping what it said before"),
            }
        }
    }

    /// Looks, decides, does.
    async fn round(&self, mesh: &Mesh, leader: &Leader, stop: &Stop) -> Outcome {
        let clusters = match self.connect(mesh).await {
            Ok(clusters) => clusters,
            Err(error) => {
                tracing::error!(error, "could not connect");
                return Outcome::Failed;
            }
        };
        let observed = tokio::select! {
            observed = observe(mesh, &clusters, &self.settings.state) => observed,
            () = stop.asked() => return Outcome::Busy,
        };
        self.metrics.reach(mesh.clusters.iter().map(|cluster| {
            let name = cluster.name.as_str();
            (name, matches!(observed.clusters.get(name), Some(Sight::Seen(_))))
        }));
        let whole = match Goal::Apply.plan(mesh, &observed) {
            Ok(plan) => plan,
            Err(blocked) => {
                tracing::error!(error = %blocked, "nothing may be written");
                return Outcome::Failed;
            }
        };
        let steps = whole.steps.len();
        let (goal, plan) = match self.settings.prune {
            true => (Goal::Apply, whole),
            false => (Goal::Keep, whole.without_removals()),
        };
        let held = steps - plan.steps.len();
        self.metrics.planned(plan.summary(), held);
        if held > 0 {
            tracing::warn!(
                steps = held,
                "held back, as they take something away: `stolos apply` asks, `--prune` does not"
            );
        }
        if plan.is_settled() {
            return Outcome::Settled;
        }
        self.carry_out(goal, &plan, mesh, &clusters, leader, stop).await
    }

    async fn carry_out(
        &self,
        goal: Goal,
        plan: &Plan,
        mesh: &Mesh,
        clusters: &Clusters,
        leader: &Leader,
        stop: &Stop,
    ) -> Outcome {
        let hear = |news: News<'_>| match news {
            News::Done(step, took) => {
                tracing::info!(step = %step.id, because = step.because, ms = took.as_millis(), "done");
            }
            News::Failed(step, why) => tracing::error!(step = %step.id, error = why, "failed"),
            News::Said(step, line) => tracing::info!(step = %step.id, "{line}"),
            News::Started(_) | News::Waiting(..) | News::Skipped(..) => {}
        };
        let options = Options { patience: self.settings.patience, ..Options::default() };
        let interrupt = async {
            tokio::select! {
                () = stop.asked() => {}
                () = leader.lost() => {}
            }
        };
        let state = &self.settings.state;
        match stolos_apply::run(goal, plan, mesh, clusters, state, options, interrupt, &hear).await {
            Ok(report) => {
                self.metrics.wrote(report.writes);
                match report.verdict() {
                    Verdict::Done if report.writes > 0 => Outcome::Changed,
                    Verdict::Done => Outcome::Settled,
                    Verdict::Interrupted => Outcome::Busy,
                    Verdict::Failed | Verdict::Partial | Verdict::TimedOut => Outcome::Failed,
                }
            }
            // Somebody else is at it; what they leave is looked at in the next round.
            Err(error @ (Error::Locked { .. } | Error::Changed { .. } | Error::FolderInUse(_))) => {
                tracing::info!(why = because(&error), "not now");
                Outcome::Busy
            }
            Err(error) => {
                tracing::error!(error = because(&error), "could not carry out the plan");
                Outcome::Failed
            }
        }
    }

    /// Asks every cluster what expires when.
    async fn expiries(&self, mesh: &Mesh) {
        let Ok(clusters) = self.connect(mesh).await else { return };
        let clusters: Vec<_> = mesh.clusters.iter().filter_map(|c| clusters.get(c.name.as_str()).ok()).collect();
        self.metrics.expire(&stolos_check::status(mesh, &clusters).await);
    }
}

enum Trouble {
    /// Another replica leads.
    Led(String),
    Other(String),
}
