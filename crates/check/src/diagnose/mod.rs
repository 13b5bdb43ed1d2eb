//! Names the cause of what is wrong with a mesh, and the command that mends it.
//!
//! Look, decide, do: `look` reads every cluster into a [`Snapshot`] and tries what can be tried without changing
//! anything; then each of the sixty [`causes`] is one pure function over mesh and snapshot; what it found is put in an
//! order in which the first finding is the one that explains the others. Mending is left to the person who reads it.

mod causes;
mod checks;
mod formats;
mod kubeconfig;
mod look;
pub(crate) mod scene;
pub mod snapshot;
mod try_out;

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use stolos_cluster::Cluster;
use stolos_serve::Stop;
use stolos_spec::Mesh;

pub use causes::{CAUSES, Cause, Group, cause};
pub use formats::{junit, sarif};
use scene::{Judgement, Scene};
pub use snapshot::Snapshot;

/// How much time lies between two looks at what changes by itself.
const SECOND_LOOK: Duration = Duration::from_millis(1500);

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Traffic is broken.
    Error,
    /// Traffic will break, or some of it does.
    Warning,
    /// It looks like a fault and is none.
    Info,
}

/// What to look for.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// Before anything is installed: only what can be known then.
    pub before: bool,
    /// These causes only, if there are any.
    pub only: Vec<String>,
    /// Not these causes.
    pub skip: Vec<String>,
    /// The command that makes the mesh as its file says, for the advice: `stolos apply -f mesh.yaml`.
    pub apply: String,
}

/// What `check` found. Fields are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckReport {
    /// `stolos.dev/v1alpha1`.
    pub api_version: &'static str,
    /// `CheckReport`.
    pub kind: &'static str,
    /// The mesh.
    pub mesh: String,
    /// `fail` where there is an error or a warning.
    pub verdict: CheckVerdict,
    /// How many.
    pub summary: Summary,
    /// The first is the one that explains the most.
    pub findings: Vec<Finding>,
    /// Every cause that was asked for, by number.
    pub checks: Vec<CheckResult>,
    /// Every cluster of the mesh.
    pub clusters: Vec<CheckedCluster>,
    /// RFC 3339.
    pub started_at: String,
    /// How long it took.
    pub duration_ms: u64,
}

/// What `check` says in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckVerdict {
    /// Everything that was measured is as it should be.
    Pass,
    /// Something is not.
    Fail,
    /// Nothing could be measured.
    Unknown,
}

/// How many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Findings of severity `error`.
    pub errors: usize,
    /// Findings of severity `warning`.
    pub warnings: usize,
    /// Findings of severity `info`.
    pub infos: usize,
    /// Causes that are excluded.
    pub healthy: usize,
    /// Causes of which something could not be measured.
    pub not_measured: usize,
    /// Causes that this mesh cannot have.
    pub not_applicable: usize,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// `D-01` to `D-60`.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Which cause, in words.
    pub title: &'static str,
    /// Where; null for the mesh as a whole.
    pub cluster: Option<String>,
    /// Which object, as `Kind namespace/name`.
    pub object: Option<String>,
    /// What was seen.
    pub seen: String,
    /// Since when, RFC 3339; null where nothing tells.
    pub since: Option<String>,
    /// Why that breaks the mesh.
    pub why: &'static str,
    /// The command that mends it, or what to do.
    pub mend: String,
    /// An earlier finding's id that explains this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follows: Option<&'static str>,
}

/// What became of looking for one cause.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckResult {
    /// `D-01` to `D-60`.
    pub id: &'static str,
    /// The cause in words.
    pub title: &'static str,
    /// What holds where the cause is absent.
    pub healthy: &'static str,
    /// The group it stands in.
    pub group: Group,
    /// What came out.
    pub result: Outcome,
    /// How many things were looked at.
    pub looked: usize,
    /// What could not be measured.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_measured: Vec<Gap>,
}

/// What looking for a cause came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It was looked for everywhere and is nowhere.
    Healthy,
    /// It is there.
    Found,
    /// It was not found, but some of what it takes to exclude it could not be measured.
    NotMeasured,
    /// This mesh has nothing that could have it.
    NotApplicable,
}

/// What could not be measured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Gap {
    /// Where.
    pub cluster: Option<String>,
    /// Why.
    pub why: String,
}

/// A cluster, as far as `check` got.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckedCluster {
    /// Its name in the mesh.
    pub name: String,
    /// Its API server.
    pub server: String,
    /// Its Kubernetes version.
    pub version: Option<String>,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// When it was read, RFC 3339.
    pub measured_at: Option<String>,
}

/// Looks at every cluster of `mesh` and says what is wrong, and how to mend it.
///
/// What changes by itself while a mesh is being built (pods, addresses, what a control plane has heard) is looked at
/// twice before it is held against the mesh.
///
/// # Errors
///
/// [`Interrupted`](crate::Error::Interrupted). A cluster that does not answer is part of the report.
pub async fn check(
    mesh: &Mesh,
    clusters: &[Cluster],
    options: &CheckOptions,
    stop: &Stop,
) -> Result<CheckReport, crate::Error> {
    observed(mesh, clusters, options, &[], stop).await.map(|(_, report)| report)
}

/// The same, with what it was judged by, and with objects of the kinds `beside` in it.
pub(crate) async fn observed(
    mesh: &Mesh,
    clusters: &[Cluster],
    options: &CheckOptions,
    beside: &[look::Listed],
    stop: &Stop,
) -> Result<(Snapshot, CheckReport), crate::Error> {
    let (started, began) = (SystemTime::now(), Instant::now());
    let looking = async {
        let first = look::look(mesh, clusters, options.before, beside).await;
        let report = judge(mesh, &first, options);
        if report.findings.iter().all(|f| cause(f.id).is_none_or(|c| !c.volatile)) {
            return (first, report);
        }
        tokio::time::sleep(SECOND_LOOK).await;
        let second = look::look(mesh, clusters, options.before, beside).await;
        let report = judge(mesh, &second, options).confirmed_by(&report);
        (second, report)
    };
    let (snapshot, mut report) = tokio::select! {
        done = looking => done,
        () = stop.asked() => return Err(crate::Error::Interrupted),
    };
    for checked in &mut report.clusters {
        let cluster = clusters.iter().find(|c| c.name == checked.name);
        checked.server = cluster.map(|c| c.server.clone()).unwrap_or_default();
    }
    report.started_at = rfc3339(started);
    report.duration_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok((snapshot, report))
}

/// What a snapshot says. Pure: the same snapshot always gets the same report.
#[must_use]
pub fn judge(mesh: &Mesh, snapshot: &Snapshot, options: &CheckOptions) -> CheckReport {
    let scene = Scene::new(mesh, snapshot, &options.apply);
    let wanted = CAUSES.iter().filter(|c| {
        let named = |list: &[String]| list.iter().any(|id| id.eq_ignore_ascii_case(c.id));
        (!options.before || c.before) && (options.only.is_empty() || named(&options.only)) && !named(&options.skip)
    });
    let (mut findings, mut checks) = (Vec::new(), Vec::new());
    for cause in wanted {
        let mut judgement = Judgement::default();
        (cause.check)(&scene, &mut judgement);
        checks.push(result(mesh, snapshot, cause, &judgement));
        findings.extend(judgement.findings.into_iter().map(|found| Finding {
            id: cause.id,
            severity: found.severity.unwrap_or(cause.severity),
            title: cause.title,
            cluster: found.cluster,
            object: found.object,
            seen: found.seen,
            since: found.since.map(rfc3339),
            why: cause.why,
            mend: found.mend,
            follows: None,
        }));
    }
    let mut report = CheckReport {
        api_version: "stolos.dev/v1alpha1",
        kind: "CheckReport",
        mesh: mesh.name.to_string(),
        verdict: CheckVerdict::Unknown,
        summary: Summary::default(),
        findings,
        checks,
        clusters: checked(mesh, snapshot),
        started_at: rfc3339(snapshot.now),
        duration_ms: 0,
    };
    report.settle();
    report
}

fn result(mesh: &Mesh, snapshot: &Snapshot, cause: &Cause, judgement: &Judgement) -> CheckResult {
    let mut gaps: Vec<Gap> =
        judgement.gaps.iter().map(|(cluster, why)| Gap { cluster: cluster.clone(), why: why.clone() }).collect();
    // A cluster that did not answer could have anything.
    for cluster in &mesh.clusters {
        let sight = snapshot.clusters.get(cluster.name.as_str());
        if let Some(why) = sight.map_or(Some("nobody looked"), snapshot::Datum::why) {
            gaps.push(Gap { cluster: Some(cluster.name.to_string()), why: format!("it did not answer: {why}") });
        }
    }
    gaps.sort();
    gaps.dedup();
    let outcome = match (judgement.findings.is_empty(), gaps.is_empty(), judgement.looked) {
        (false, ..) => Outcome::Found,
        (true, false, _) => Outcome::NotMeasured,
        (true, true, 0) => Outcome::NotApplicable,
        (true, true, _) => Outcome::Healthy,
    };
    CheckResult {
        id: cause.id,
        title: cause.title,
        healthy: cause.healthy,
        group: cause.group,
        result: outcome,
        looked: judgement.looked,
        not_measured: gaps,
    }
}

fn checked(mesh: &Mesh, snapshot: &Snapshot) -> Vec<CheckedCluster> {
    let one = |wanted: &stolos_spec::Cluster| {
        let sight = snapshot.clusters.get(wanted.name.as_str());
        let seen = sight.and_then(snapshot::Datum::value);
        CheckedCluster {
            name: wanted.name.to_string(),
            server: seen.map(|s| s.server.clone()).unwrap_or_default(),
            version: seen.map(|s| s.version.clone()),
            unreachable: sight.map_or(Some("nobody looked"), snapshot::Datum::why).map(str::to_owned),
            measured_at: match sight {
                Some(snapshot::Datum::Read { at, .. }) => Some(rfc3339(*at)),
                _ => None,
            },
        }
    };
    mesh.clusters.iter().map(one).collect()
}

impl CheckReport {
    /// Puts the findings in order, says which explains which, and counts.
    fn settle(&mut self) {
        self.findings.sort_by_key(|f| (f.severity, causes::rank(f.id)));
        for index in 0..self.findings.len() {
            let (earlier, rest) = self.findings.split_at_mut(index);
            let Some(this) = rest.first_mut() else { continue };
            let explained = |by: &&Finding| {
                by.id != this.id
                    && causes::explains(by.id, this.id)
                    && (by.cluster.is_none()
                        || this.cluster.is_none()
                        || by.cluster == this.cluster
                        || causes::reaches_far(by.id))
            };
            this.follows = earlier.iter().find(explained).map(|by| by.id);
        }
        let count = |severity| self.findings.iter().filter(|f| f.severity == severity).count();
        let results = |outcome| self.checks.iter().filter(|c| c.result == outcome).count();
        self.summary = Summary {
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            infos: count(Severity::Info),
            healthy: results(Outcome::Healthy),
            not_measured: results(Outcome::NotMeasured),
            not_applicable: results(Outcome::NotApplicable),
        };
        self.verdict = match self.summary {
            s if s.errors + s.warnings > 0 => CheckVerdict::Fail,
            s if s.healthy + s.infos > 0 => CheckVerdict::Pass,
            _ => CheckVerdict::Unknown,
        };
    }

    /// Without the findings about what changes by itself that `earlier` did not have.
    fn confirmed_by(mut self, earlier: &Self) -> Self {
        let before = |f: &Finding| earlier.findings.iter().any(|e| (e.id, &e.cluster) == (f.id, &f.cluster));
        self.findings.retain(|f| cause(f.id).is_none_or(|c| !c.volatile) || before(f));
        for check in &mut self.checks {
            if check.result == Outcome::Found && self.findings.iter().all(|f| f.id != check.id) {
                check.result = if check.not_measured.is_empty() { Outcome::Healthy } else { Outcome::NotMeasured };
            }
        }
        self.settle();
        self
    }
}

pub(crate) fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

pub(crate) fn rfc3339(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at)
        .map_or_else(|_| "unknown".to_owned(), |t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
