use std::time::Duration;

use clap::Args;
use serde_json::json;
use stolos_apply::{Goal, Report};
use stolos_plan::{Action, Plan};
use stolos_serve::Stop;

use crate::command::plan::{Scene, SceneArgs, carried_out, planned, show};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{OutputArgs, SampleArgs};
use crate::screen::{Screen, Tone, count, elapsed};

/// How a plan is carried out.
#[derive(Args, Debug)]
pub(crate) struct CarryOutArgs {
    /// Only say what would be done; exits with 2 if there is anything
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Do not ask before something is removed
    #[arg(short, long)]
    pub(crate) yes: bool,

    /// How long one wait may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

impl CarryOutArgs {
    /// How long one wait may take.
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// `stolos apply`
#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    scene: SceneArgs,
    #[command(flatten)]
    samples: SampleArgs,
    #[command(flatten)]
    carry_out: CarryOutArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// `stolos teardown`
#[derive(Args, Debug)]
pub(crate) struct TeardownArgs {
    #[command(flatten)]
    scene: SceneArgs,
    #[command(flatten)]
    carry_out: CarryOutArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn apply(args: ApplyArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    reach(Goal::Apply, &args.scene, &args.samples, &args.carry_out, args.output, screen, stop).await
}

pub(crate) async fn teardown(args: TeardownArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let none = SampleArgs { samples: Vec::new() };
    reach(Goal::Teardown, &args.scene, &none, &args.carry_out, args.output, screen, stop).await
}

async fn reach(
    goal: Goal,
    scene: &SceneArgs,
    samples: &SampleArgs,
    how: &CarryOutArgs,
    output: OutputArgs,
    screen: &Screen,
    stop: &Stop,
) -> Result<Exit, Failure> {
    let scene = scene.open(samples, screen).await?;
    carry_out(goal, &scene, how, output, || Ok(()), screen, stop).await
}

/// Plans, shows, asks where something would go, and does it; `ready` is what is to be done before, once all is agreed.
pub(crate) async fn carry_out(
    goal: Goal,
    scene: &Scene,
    how: &CarryOutArgs,
    output: OutputArgs,
    ready: impl FnOnce() -> Result<(), Failure>,
    screen: &Screen,
    stop: &Stop,
) -> Result<Exit, Failure> {
    let output = output.output;
    let plan = scene.plan(goal, screen, stop).await?;
    if how.dry_run {
        show(&plan, output, screen)?;
        return Ok(planned(&plan));
    }
    if !output.is_document() {
        show(&plan, output, screen)?;
    }
    if plan.destroys() && !how.yes {
        consent(&plan, screen)?;
    }
    ready()?;
    let report = scene.carry_out(goal, &plan, how.patience(), screen, stop).await?;
    if output.is_document() {
        let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "ApplyReport", "mesh": plan.mesh,
            "purpose": plan.purpose, "summary": plan.summary(), "report": report, "leftovers": plan.leftovers,
            "notes": plan.notes});
        screen.document(output, &document)?;
    } else {
        screen.data(&summary(&plan, &report, screen));
    }
    let unreachable = plan.members.iter().any(|member| member.unreachable.is_some());
    Ok(match carried_out(&report) {
        Exit::Good if unreachable => Exit::Partial,
        Exit::Good if goal == Goal::Teardown && !plan.leftovers.is_empty() => Exit::Findings,
        exit => exit,
    })
}

/// Asks before anything is taken away. Where nobody can answer, what would go is listed and nothing is done.
fn consent(plan: &Plan, screen: &Screen) -> Result<(), Failure> {
    let going: Vec<_> = plan.steps.iter().filter(|s| s.action == Action::Remove).collect();
    match screen.ask(&format!("{} something away. Go on?", takes(going.len()))) {
        Some(true) => Ok(()),
        Some(false) => Err(Failure::new("nothing was changed, as you said no")),
        None => {
            let list: Vec<_> = going.iter().map(|s| format!("- {}  {}", s.id, s.because)).collect();
            Err(Failure::new(format!("{} something away, and nobody can be asked", takes(going.len())))
                .because(list.join("\n"))
                .hint("`--yes` goes on without asking; `--dry-run` shows everything"))
        }
    }
}

pub(crate) fn summary(plan: &Plan, report: &Report, screen: &Screen) -> String {
    if plan.is_settled() {
        return String::new();
    }
    let mut text = String::new();
    for failure in &report.failed {
        text += &format!("{} {}: {}\n", screen.data_tone(Tone::Bad, "✗"), failure.step, failure.why);
    }
    let took = elapsed(report.took);
    let done = report.done.len();
    text += &match carried_out(report) {
        Exit::Good if plan.is_empty() => format!("Nothing was written; what had to be waited for is there ({took}).\n"),
        Exit::Good => {
            let writes = count(usize::try_from(report.writes).unwrap_or(usize::MAX), "write");
            format!("{} {} in {took}, {writes}.\n", screen.data_tone(Tone::Good, "✓ done:"), count(done, "step"))
        }
        _ => format!(
            "{done} steps done, {} failed, {} not tried, in {took}. Run it again: what is done stays done.\n",
            report.failed.len(),
            report.skipped.len()
        ),
    };
    text
}

fn takes(steps: usize) -> String {
    if steps == 1 { "1 step takes".to_owned() } else { format!("{steps} steps take") }
}
