//! What an operator counts, as Prometheus reads it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use stolos_check::StatusReport;
use stolos_plan::Summary;
use stolos_serve::exposition::Exposition;

/// A round that takes longer hangs: the waits of its steps are bounded, and there are not that many in a row.
const LONGEST: Duration = Duration::from_secs(3600);

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// There was nothing to do.
    Settled,
    /// Something was written.
    Changed,
    /// Somebody else is changing the mesh, or this one is to end.
    Busy,
    /// It could not look, plan, or carry out what it planned.
    Failed,
}

impl Outcome {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Settled, "settled"), (Self::Changed, "changed"), (Self::Busy, "busy"), (Self::Failed, "failed")];
}

#[derive(Debug, Default)]
pub(crate) struct Metrics(Mutex<Figures>);

#[derive(Debug, Default)]
struct Figures {
    leads: bool,
    looked: bool,
    rounds: BTreeMap<Outcome, u64>,
    /// When the round under way began.
    began: Option<Instant>,
    /// Unix seconds.
    succeeded: Option<u64>,
    writes: u64,
    pending: Summary,
    held: usize,
    reachable: BTreeMap<String, bool>,
    /// By cluster and what it is, the end in Unix seconds.
    expiries: BTreeMap<(String, String), i64>,
}

impl Metrics {
    fn figures(&self) -> MutexGuard<'_, Figures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This replica leads now, or no longer does.
    pub(crate) fn leads(&self, leads: bool) {
        let mut figures = self.figures();
        figures.leads = leads;
        // What one that stands by saw last is nobody's truth.
        if !leads {
            let Figures { rounds, writes, looked, .. } = std::mem::take(&mut *figures);
            *figures = Figures { rounds, writes, looked, ..Figures::default() };
        }
    }

    /// Somebody answered.
    pub(crate) fn looked(&self) {
        self.figures().looked = true;
    }

    pub(crate) fn begins(&self) {
        self.figures().began = Some(Instant::now());
    }

    pub(crate) fn ended(&self, outcome: Outcome) {
        let mut figures = self.figures();
        figures.began = None;
        *figures.rounds.entry(outcome).or_default() += 1;
        if matches!(outcome, Outcome::Settled | Outcome::Changed) {
            figures.succeeded = SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|now| now.as_secs());
            figures.looked = true;
        }
    }

    pub(crate) fn wrote(&self, writes: u64) {
        self.figures().writes += writes;
    }

    /// What a plan found to do, and how many steps it may not do.
    pub(crate) fn planned(&self, pending: Summary, held: usize) {
        let mut figures = self.figures();
        (figures.pending, figures.held, figures.looked) = (pending, held, true);
    }

    pub(crate) fn reach<'a>(&self, clusters: impl Iterator<Item = (&'a str, bool)>) {
        self.figures().reachable = clusters.map(|(name, reached)| (name.to_owned(), reached)).collect();
    }

    /// What expires when. Of a cluster that did not answer, what was known stays.
    pub(crate) fn expire(&self, report: &StatusReport) {
        let mut figures = self.figures();
        for cluster in &report.clusters {
            if cluster.unreachable.is_some() {
                continue;
            }
            figures.expiries.retain(|(name, _), _| *name != cluster.name);
            for certificate in &cluster.certificates {
                let end = certificate.not_after.as_ref().and_then(|end| end.parse::<jiff::Timestamp>().ok());
                if let Some(end) = end {
                    let key = (cluster.name.clone(), certificate.what.clone());
                    let soonest = figures.expiries.get(&key).copied().unwrap_or(i64::MAX);
                    figures.expiries.insert(key, end.as_second().min(soonest));
                }
            }
        }
        figures.expiries.retain(|(name, _), _| report.clusters.iter().any(|cluster| cluster.name == *name));
    }

    /// Whether a round has not ended for so long that it never will.
    pub(crate) fn is_stuck(&self) -> bool {
        self.figures().began.is_some_and(|began| began.elapsed() > LONGEST)
    }

    /// Whether it has looked once, or another one leads.
    pub(crate) fn is_ready(&self) -> bool {
        self.figures().looked
    }

    pub(crate) fn text(&self) -> String {
        let figures = self.figures();
        let mut page = Exposition::default();
        page.single("stolos_operator_leader", "gauge", "Whether this replica acts.", u8::from(figures.leads));
        page.family("stolos_operator_rounds_total", "counter", "Rounds by how they ended.");
        for (outcome, result) in Outcome::ALL {
            let count = figures.rounds.get(&outcome).copied().unwrap_or(0);
            page.sample("stolos_operator_rounds_total", &[("result", result)], count);
        }
        page.single("stolos_operator_writes_total", "counter", "Writes sent to API servers.", figures.writes);
        if let Some(at) = figures.succeeded {
            let help = "End of the last round after which the mesh was as its file says.";
            page.single("stolos_operator_last_success_timestamp_seconds", "gauge", help, at);
        }
        if !figures.leads {
            return page.text();
        }
        let Summary { add, change, remove } = figures.pending;
        page.family("stolos_operator_pending_steps", "gauge", "Steps that the last plan had.");
        for (action, count) in [("add", add), ("change", change), ("remove", remove)] {
            page.sample("stolos_operator_pending_steps", &[("action", action)], count);
        }
        let help = "Steps that are held back, since they take something away.";
        page.single("stolos_operator_held_back_steps", "gauge", help, figures.held);
        let help = "Whether the API server answered in the last round.";
        page.family("stolos_operator_cluster_reachable", "gauge", help);
        for (cluster, seen) in &figures.reachable {
            page.sample("stolos_operator_cluster_reachable", &[("cluster", cluster)], u8::from(*seen));
        }
        if !figures.expiries.is_empty() {
            page.family("stolos_operator_expiry_timestamp_seconds", "gauge", "When a certificate or token ends.");
        }
        for ((cluster, what), end) in &figures.expiries {
            page.sample("stolos_operator_expiry_timestamp_seconds", &[("cluster", cluster), ("what", what)], end);
        }
        page.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_reads_what_is_counted() {
        let metrics = Metrics::default();
        assert!(!metrics.is_ready());
        metrics.leads(true);
        metrics.begins();
        metrics.reach([("east", true), ("west", false)].into_iter());
        metrics.planned(Summary { add: 1, change: 2, remove: 0 }, 3);
        metrics.wrote(7);
        metrics.ended(Outcome::Failed);
        assert!(metrics.is_ready() && !metrics.is_stuck());
        insta::assert_snapshot!(metrics.text(), @r#"
        # HELP stolos_operator_leader Whether this replica acts.
        # TYPE stolos_operator_leader gauge
        stolos_operator_leader 1
        # HELP stolos_operator_rounds_total Rounds by how they ended.
        # TYPE stolos_operator_rounds_total counter
        stolos_operator_rounds_total{result="settled"} 0
        stolos_operator_rounds_total{result="changed"} 0
        stolos_operator_rounds_total{result="busy"} 0
        stolos_operator_rounds_total{result="failed"} 1
        # HELP stolos_operator_writes_total Writes sent to API servers.
        # TYPE stolos_operator_writes_total counter
        stolos_operator_writes_total 7
        # HELP stolos_operator_pending_steps Steps that the last plan had.
        # TYPE stolos_operator_pending_steps gauge
        stolos_operator_pending_steps{action="add"} 1
        stolos_operator_pending_steps{action="change"} 2
        stolos_operator_pending_steps{action="remove"} 0
        # HELP stolos_operator_held_back_steps Steps that are held back, since they take something away.
        # TYPE stolos_operator_held_back_steps gauge
        stolos_operator_held_back_steps 3
        # HELP stolos_operator_cluster_reachable Whether the API server answered in the last round.
        # TYPE stolos_operator_cluster_reachable gauge
        stolos_operator_cluster_reachable{cluster="east"} 1
        stolos_operator_cluster_reachable{cluster="west"} 0
        "#);
        // What it knew of clusters is no longer its to say.
        metrics.leads(false);
        insta::assert_snapshot!(metrics.text(), @r#"
        # HELP stolos_operator_leader Whether this replica acts.
        # TYPE stolos_operator_leader gauge
        stolos_operator_leader 0
        # HELP stolos_operator_rounds_total Rounds by how they ended.
        # TYPE stolos_operator_rounds_total counter
        stolos_operator_rounds_total{result="settled"} 0
        stolos_operator_rounds_total{result="changed"} 0
        stolos_operator_rounds_total{result="busy"} 0
        stolos_operator_rounds_total{result="failed"} 1
        # HELP stolos_operator_writes_total Writes sent to API servers.
        # TYPE stolos_operator_writes_total counter
        stolos_operator_writes_total 7
        "#);
    }
}
