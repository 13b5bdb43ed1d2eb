use std::time::{Duration, Instant};

use stolos_plan::{Action, Blocked, Observed, Plan, StepId};
use stolos_spec::Mesh;

use crate::execute::millis;
use crate::{Clusters, Error, Lock, Options, Progress, Report, State, execute, observe};

/// Where a run is to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// The clusters are the mesh.
    Apply,
    /// The same, as far as that takes nothing away.
    Keep,
    /// Nothing of the mesh is left.
    Teardown,
}

impl Goal {
    /// The way there.
    ///
    /// # Errors
    ///
    /// Every reason against it.
    pub fn plan(self, mesh: &Mesh, observed: &Observed) -> Result<Plan, Blocked> {
        match self {
            Self::Apply => stolos_plan::plan(mesh, observed),
            Self::Keep => stolos_plan::plan(mesh, observed).map(Plan::without_removals),
            Self::Teardown => stolos_plan::teardown(mesh, observed),
        }
    }
}

/// Carries out what `shown` says.
///
/// When that writes anything, the lock is taken and everything is looked at and planned again under it, so that two
/// people never act on what they saw before the other acted. What was not shown is not done: if there is any, nothing
/// is.
///
/// # Errors
///
/// Why nothing was done. What happened to single steps is in the report.
#[expect(clippy::too_many_arguments, reason = "each is a different thing, and all are needed")]
pub async fn run(
    goal: Goal,
    shown: &Plan,
    mesh: &Mesh,
    clusters: &Clusters,
    state: &State,
    options: Options,
    interrupt: impl Future<Output = ()>,
    progress: &dyn Progress,
) -> Result<Report, Error> {
    if shown.is_empty() {
        return execute(shown, mesh, clusters, state, options, interrupt, progress).await;
    }
    // What is missing on this machine is said before anybody is locked out.
    crate::program::needed(shown).await?;
    let began = Instant::now();
    let lock = Lock::take(mesh, clusters, state).await?;
    let locked = began.elapsed();
    let mut looked = Duration::ZERO;
    let held = async {
        let observed = observe(mesh, clusters, state).await;
        let plan = goal.plan(mesh, &observed)?;
        looked = began.elapsed() - locked;
        if let Some(new) = unseen(shown, &plan) {
            return Err(Error::Changed { what: new.to_string() });
        }
        let interrupt = async {
            tokio::select! {
                () = interrupt => {}
                () = lock.lost() => tracing::error!("the lock of the mesh was lost"),
            }
        };
        execute(&plan, mesh, clusters, state, options, interrupt, progress).await
    };
    let mut result = held.await;
    let held = began.elapsed();
    lock.release().await;
    if let Ok(report) = &mut result {
        report.timing.lock = millis(locked);
        report.timing.look = millis(looked);
        report.timing.release = millis(began.elapsed() - held);
    }
    result
}

/// The first step that would change something and was not shown.
fn unseen<'a>(shown: &Plan, plan: &'a Plan) -> Option<&'a StepId> {
    let seen = |id: &StepId, action: Action| shown.steps.iter().any(|step| step.id == *id && step.action == action);
    plan.steps.iter().find(|step| step.action != Action::Wait && !seen(&step.id, step.action)).map(|step| &step.id)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use stolos_spec::*;

    /// Clusters of these names, alternating between two networks.
    pub(crate) fn mesh(names: &[&str]) -> Mesh {
        let day = Duration::from_secs(86_400);
        let cluster = |(index, name): (usize, &&str)| Cluster {
            name: ClusterName::parse(name).unwrap(),
            context: (*name).to_owned(),
            kubeconfig: None,
            network: NetworkName::parse(if index % 2 == 0 { "east" } else { "west" }).unwrap(),
            region: None,
            zone: None,
            role: Role::Primary,
            api: None,
            gateway: None,
        };
        Mesh {
            name: MeshName::parse("mymesh").unwrap(),
            trust: Trust {
                domain: "cluster.local".into(),
                organization: "example.com".into(),
                root: Root::SelfSigned { validity: 3650 * day },
                intermediates: IntermediateTrust { validity: 730 * day, renew_before: 30 * day },
            },
            control_plane: ControlPlane::of(Engine::Stolos),
            clusters: names.iter().enumerate().map(cluster).collect(),
            mtls: Mtls::Strict,
            expose: vec!["*.local".into()],
            hub: None,
            samples: BTreeSet::from([Sample::Helloworld, Sample::Sleep]),
            origin: Origin::Mesh,
        }
    }
}
