use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt as _};
use serde::Serialize;
use stolos_plan::{Action, Plan, Step, StepId};
use stolos_spec::Mesh;
use tokio::sync::Semaphore;

use crate::change::{Cause, Ears, Hands, make};
use crate::journal::{Event, Journal};
use crate::{Clusters, Error, State};

/// How a plan is carried out.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long one wait may take, such as for a Deployment to become available.
    pub patience: Duration,
    /// How many requests may be under way in one cluster.
    pub at_once: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { patience: Duration::from_secs(120), at_once: 16 }
    }
}

/// Who hears how it goes. Called often, so it must not wait for anything.
pub trait Progress: Send + Sync {
    /// Hears one piece of news.
    fn news(&self, news: News<'_>);
}

/// Hears nothing.
pub struct Silent;

impl Progress for Silent {
    fn news(&self, _: News<'_>) {}
}

impl<F: Fn(News<'_>) + Send + Sync> Progress for F {
    fn news(&self, news: News<'_>) {
        self(news);
    }
}

/// What happened to a step.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// It started.
    Started(&'a Step),
    /// It waits for something; said again when that changes.
    Waiting(&'a Step, &'a str),
    /// A program that it runs said a line.
    Said(&'a Step, &'a str),
    /// It succeeded, in so much time.
    Done(&'a Step, Duration),
    /// It failed.
    Failed(&'a Step, &'a str),
    /// It was not tried, because the other step did not succeed.
    Skipped(&'a Step, &'a StepId),
}

/// How a run ended.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Steps that succeeded.
    pub done: Vec<StepId>,
    /// Steps that failed, with the reason.
    pub failed: Vec<Failure>,
    /// Steps that were not tried, because one before them did not succeed or the run was interrupted.
    pub skipped: Vec<StepId>,
    /// Whether somebody stopped it.
    pub interrupted: bool,
    /// How many writes were sent to API servers.
    pub writes: u64,
    /// How long it took, without the lock and the look under it.
    pub took: Duration,
    /// How long the lock took, the look and the plan under it, and every step: what the whole took, taken apart.
    pub timing: Timing,
}

/// Where the time of a run went, in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Timing {
    /// Taking the lock.
    pub lock: f64,
    /// Looking and planning again under the lock.
    pub look: f64,
    /// Giving the lock back.
    pub release: f64,
    /// Every step that was tried, waits included: when it began, counted from the first, and when it ended.
    pub steps: BTreeMap<StepId, (f64, f64)>,
}

/// Milliseconds, for people and diagrams.
pub(crate) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

/// A step that failed.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Which.
    pub step: StepId,
    /// Why.
    pub why: String,
    /// Whether it was waited for in vain.
    pub timed_out: bool,
}

/// What a run amounts to; each has an exit code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was done: 0.
    Done,
    /// Nothing but waits ended badly: 3.
    TimedOut,
    /// Some was done, some was not: 4.
    Partial,
    /// Nothing was done: 1.
    Failed,
    /// Somebody stopped it: 130.
    Interrupted,
}

impl Report {
    /// What the run amounts to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match () {
            () if self.interrupted => Verdict::Interrupted,
            () if self.failed.is_empty() && self.skipped.is_empty() => Verdict::Done,
            () if self.failed.iter().all(|failure| failure.timed_out) => Verdict::TimedOut,
            () if self.done.is_empty() => Verdict::Failed,
            () => Verdict::Partial,
        }
    }
}

/// Carries out `plan`: every step as soon as those before it have succeeded, side by side. A failure stops what
/// depends on it and nothing else. When `interrupt` completes no further step is started, what waits is given up, and
/// writes under way are finished.
///
/// # Errors
///
/// When the journal cannot be opened. What happens to steps is in the report.
pub async fn execute(
    plan: &Plan,
    mesh: &Mesh,
    clusters: &Clusters,
    state: &State,
    options: Options,
    interrupt: impl Future<Output = ()>,
    progress: &dyn Progress,
) -> Result<Report, Error> {
    let started = Instant::now();
    let programs = crate::program::needed(plan).await?;
    let writes = AtomicU64::new(0);
    let journal = Journal::new(state.journal()?);
    let rooms: Mutex<BTreeMap<String, Arc<Semaphore>>> = Mutex::default();
    let room = |cluster: &str| {
        let mut rooms = rooms.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(rooms.entry(cluster.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(options.at_once))))
    };
    let patience = options.patience;
    let hands = Hands { mesh, clusters, state, patience, writes: &writes, room: &room, programs: &programs };

    let mut report = Report::default();
    let mut queue = Queue::new(plan);
    let mut running = FuturesUnordered::new();
    let mut interrupt = std::pin::pin!(interrupt);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    loop {
        while !report.interrupted
            && let Some(step) = queue.ready.pop_front()
        {
            running.push(carry_out(step, &hands, &journal, stopped.clone(), progress, started));
        }
        let (step, result, time) = tokio::select! {
            biased;
            () = &mut interrupt, if !report.interrupted => {
                report.interrupted = true;
                stop.send_replace(true);
                continue;
            }
            ended = running.next() => match ended {
                Some(ended) => ended,
                None => break,
            },
        };
        report.timing.steps.insert(step.id.clone(), time);
        match result {
            Ok(()) => {
                report.done.push(step.id.clone());
                queue.succeeded(&step.id);
            }
            Err(cause) => {
                let (why, timed_out) = match cause {
                    Cause::Error(why) => (why, false),
                    Cause::TimedOut(why) => (why, true),
                };
                report.failed.push(Failure { step: step.id.clone(), why, timed_out });
                for skipped in queue.failed(&step.id) {
                    progress.news(News::Skipped(skipped, &step.id));
                    report.skipped.push(skipped.id.clone());
                }
            }
        }
    }
    report.skipped.extend(queue.ready.into_iter().map(|step| step.id.clone()));
    report.skipped.extend(queue.open.into_keys().cloned());
    report.writes = writes.load(Ordering::Relaxed);
    report.took = started.elapsed();
    Ok(report)
}

/// Which steps may start.
struct Queue<'a> {
    /// Those that may, in the order in which they became ready.
    ready: VecDeque<&'a Step>,
    /// Those that may not yet (or, after an interruption, were not started), with how many they still wait for.
    open: BTreeMap<&'a StepId, (&'a Step, usize)>,
    /// Who waits for a step.
    waiting: BTreeMap<&'a StepId, Vec<&'a StepId>>,
}

impl<'a> Queue<'a> {
    fn new(plan: &'a Plan) -> Self {
        let mut queue = Self { ready: VecDeque::new(), open: BTreeMap::new(), waiting: BTreeMap::new() };
        for step in &plan.steps {
            queue.open.insert(&step.id, (step, step.after.len()));
            for before in &step.after {
                queue.waiting.entry(before).or_default().push(&step.id);
            }
        }
        queue.ready.extend(plan.steps.iter().filter(|step| step.after.is_empty()));
        queue.ready.iter().for_each(|step| {
            queue.open.remove(&step.id);
        });
        queue
    }

    fn succeeded(&mut self, id: &StepId) {
        for after in self.waiting.remove(id).unwrap_or_default() {
            let Some((step, left)) = self.open.get_mut(after) else { continue };
            *left -= 1;
            if *left == 0 {
                self.ready.push_back(step);
                self.open.remove(after);
            }
        }
    }

    /// Everything that comes after `id`, however far, will not be tried.
    fn failed(&mut self, id: &StepId) -> Vec<&'a Step> {
        let mut skipped = vec![];
        let mut broken = self.waiting.remove(id).unwrap_or_default();
        while let Some(after) = broken.pop() {
            if let Some((step, _)) = self.open.remove(after) {
                skipped.push(step);
                broken.extend(self.waiting.remove(after).unwrap_or_default());
            }
        }
        skipped
    }
}

async fn carry_out<'a>(
    step: &'a Step,
    hands: &Hands<'_>,
    journal: &Journal,
    mut stopped: tokio::sync::watch::Receiver<bool>,
    progress: &dyn Progress,
    run: Instant,
) -> (&'a Step, Result<(), Cause>, (f64, f64)) {
    let started = Instant::now();
    progress.news(News::Started(step));
    let waiting = |what: &str| progress.news(News::Waiting(step, what));
    let said = |line: &str| progress.news(News::Said(step, line));
    let hear = Ears { waiting: &waiting, said: &said };
    let work = async {
        if step.action == Action::Wait {
            // A wait changes nothing, so there is nothing to record and it can be given up at any moment.
            return tokio::select! {
                made = make(hands, step, &hear) => made,
                _ = stopped.wait_for(|stop| *stop) => Err(Cause::Error("interrupted".to_owned())),
            };
        }
        journal.note(&step.id, &Event::Started).await?;
        let made = make(hands, step, &hear).await;
        let event = match &made {
            Ok(()) => Event::Succeeded,
            Err(Cause::Error(why) | Cause::TimedOut(why)) => Event::Failed(why.clone()),
        };
        journal.note(&step.id, &event).await?;
        made
    };
    let result = work.await;
    match &result {
        Ok(()) => progress.news(News::Done(step, started.elapsed())),
        Err(Cause::Error(why) | Cause::TimedOut(why)) => progress.news(News::Failed(step, why)),
    }
    (step, result, (millis(started - run), millis(run.elapsed())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(steps: &[(&str, &[&str])]) -> Plan {
        let step = |(id, after): &(&str, &[&str])| {
            serde_json::json!({"id": id, "action": "add", "cluster": "a", "change": {"kind": "write", "objects": []},
                "after": after, "because": "", "diff": []})
        };
        serde_json::from_value(serde_json::json!({"mesh": "m", "purpose": "apply", "engine": "", "members": [],
            "steps": steps.iter().map(step).collect::<Vec<_>>(), "notes": [], "leftovers": [],
            "blast": {"endpoints": [], "certificates": [], "credentials": []}}))
        .unwrap()
    }

    #[test]
    fn a_failure_stops_what_depends_on_it_and_nothing_else() {
        let plan = plan(&[("a", &[]), ("b", &["a"]), ("c", &["a", "b"]), ("x", &[]), ("y", &["x"])]);
        let names = |steps: &[&Step]| steps.iter().map(|s| s.id.to_string()).collect::<Vec<_>>();
        let mut queue = Queue::new(&plan);
        assert_eq!(names(queue.ready.make_contiguous()), ["a", "x"]);
        queue.ready.clear();
        queue.succeeded(&plan.steps[3].id);
        assert_eq!(names(queue.ready.make_contiguous()), ["y"]);
        assert_eq!(names(&queue.failed(&plan.steps[0].id)), ["c", "b"]);
        assert!(queue.open.is_empty());
    }

    /// A run can be spawned.
    #[test]
    fn a_run_is_send() {
        fn _is_send<T: Send>(_: &T) {}
        fn _check(plan: &Plan, mesh: &Mesh, clusters: &Clusters, state: &State) {
            _is_send(&execute(plan, mesh, clusters, state, Options::default(), async {}, &Silent));
            _is_send(&crate::observe(mesh, clusters, state));
        }
    }
}
