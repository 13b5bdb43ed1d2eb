use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use stolos_apply::{Clusters, Goal, News, Options, Report, State, Verdict, observe};
use stolos_plan::{Plan, Show};
use stolos_serve::Stop;
use stolos_spec::{Mesh, Origin, Sample};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ClusterArgs, MeshArgs, OutputArgs, SampleArgs, with_lab};
use crate::screen::{Mark, Output, Screen, count};

/// What a plan is made from.
#[derive(Args, Debug)]
pub(crate) struct SceneArgs {
    #[command(flatten)]
    pub(crate) mesh: MeshArgs,
    #[command(flatten)]
    pub(crate) clusters: ClusterArgs,

    /// A file whose first line is the passphrase of the root's key [default: $STOLOS_PASSPHRASE]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// `stolos plan`
#[derive(Args, Debug)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    scene: SceneArgs,
    #[command(flatten)]
    samples: SampleArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What a plan is made from, understood and connected.
pub(crate) struct Scene {
    pub(crate) mesh: Mesh,
    pub(crate) clusters: Clusters,
    pub(crate) state: State,
}

impl SceneArgs {
    /// Reads the mesh and connects its clusters; nothing is asked of them yet.
    pub(crate) async fn open(&self, samples: &SampleArgs, screen: &Screen) -> Result<Scene, Failure> {
        self.of(self.mesh.read(screen)?, samples).await
    }

    /// The same for a mesh that is read already.
    pub(crate) async fn of(&self, mut mesh: Mesh, samples: &SampleArgs) -> Result<Scene, Failure> {
        mesh.samples.extend(samples.samples.iter().copied().map(Sample::from));
        let folder = self.mesh.state(&mesh)?;
        // A topology.yaml has no place for the organization: the root that `init` made remembers it.
        if mesh.origin == Origin::Topology
            && mesh.trust.organization == mesh.name.as_str()
            && let Some(organization) = crate::root::organization(&folder)
        {
            mesh.trust.organization = organization;
        }
        let clusters = Clusters::connect(&mesh, self.clusters.kubeconfig.as_deref()).await;
        let clusters = clusters.map_err(|error| with_lab(error, &folder))?;
        let state = State::at(folder, stolos_apply::passphrase(self.passphrase_file.as_deref())?);
        Ok(Scene { mesh, clusters, state })
    }
}

impl Scene {
    /// Looks at the clusters and decides.
    pub(crate) async fn plan(&self, goal: Goal, screen: &Screen, stop: &Stop) -> Result<Plan, Failure> {
        screen.line(format!("Looking at {}", count(self.mesh.clusters.len(), "cluster")));
        let began = Instant::now();
        let observed = tokio::select! {
            observed = observe(&self.mesh, &self.clusters, &self.state) => observed,
            () = stop.asked() => return Err(Failure::interrupted()),
        };
        let looked = began.elapsed();
        let plan = goal.plan(&self.mesh, &observed)?;
        tracing::info!(
            objects = observed.seen().map(|(_, state)| state.objects.iter().count()).sum::<usize>(),
            steps = plan.steps.len(),
            look_ms = looked.as_millis(),
            plan_ms = (began.elapsed() - looked).as_millis(),
            "looked and planned"
        );
        Ok(plan)
    }

    /// Carries out a plan with progress on the screen.
    pub(crate) async fn carry_out(
        &self,
        goal: Goal,
        plan: &Plan,
        patience: Duration,
        screen: &Screen,
        stop: &Stop,
    ) -> Result<Report, Failure> {
        let progress = screen.progress(Some(plan.steps.len()));
        let hear = |news: News<'_>| match news {
            News::Started(step) => progress.begin(step.id.as_str(), &format!("{} {}", step.action.symbol(), step.id)),
            News::Waiting(step, what) => progress.note(step.id.as_str(), &format!("{} waiting for {what}", step.id)),
            News::Said(step, line) => progress.said(&format!("{}: {line}", step.id)),
            News::Done(step, _) => progress.end(step.id.as_str(), Mark::Done, step.id.as_str()),
            News::Failed(step, why) => progress.end(step.id.as_str(), Mark::Failed, &format!("{}: {why}", step.id)),
            News::Skipped(step, after) => {
                progress.end(
                    step.id.as_str(),
                    Mark::Skipped,
                    &format!("{}: not tried, as {after} did not succeed", step.id),
                );
            }
        };
        let options = Options { patience, ..Options::default() };
        let report =
            stolos_apply::run(goal, plan, &self.mesh, &self.clusters, &self.state, options, stop.asked(), &hear)
                .await?;
        drop(progress);
        Ok(report)
    }
}

pub(crate) async fn run(args: PlanArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let scene = args.scene.open(&args.samples, screen).await?;
    let plan = scene.plan(Goal::Apply, screen, stop).await?;
    show(&plan, args.output.output, screen)?;
    Ok(planned(&plan))
}

/// Prints a plan as data.
pub(crate) fn show(plan: &Plan, output: Output, screen: &Screen) -> Result<(), Failure> {
    if output.is_document() {
        return screen.document(output, &plan.document());
    }
    screen.data(&Show { color: screen.colors_data(), objects: output == Output::Wide }.text(plan));
    Ok(())
}

/// How a command ends that only plans.
pub(crate) fn planned(plan: &Plan) -> Exit {
    if plan.is_empty() { Exit::Good } else { Exit::Findings }
}

/// How a command ends that has carried out a plan.
pub(crate) fn carried_out(report: &Report) -> Exit {
    match report.verdict() {
        Verdict::Done => Exit::Good,
        Verdict::TimedOut => Exit::TimedOut,
        Verdict::Partial => Exit::Partial,
        Verdict::Failed => Exit::Error,
        Verdict::Interrupted => Exit::Interrupted,
    }
}
