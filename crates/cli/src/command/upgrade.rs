//! `stolos upgrade`: another control plane for a running mesh, by revision.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use stolos_apply::{News, Reason, Stopped, UpgradeNews, UpgradeOptions, UpgradeReport, upgrade, upgrade_status};
use stolos_check::{Options, Verdict, VerifyReport, Workload};
use stolos_cluster::Cluster;
use stolos_plan::upgrade::{Asks, Phase, Upgrade, Way};
use stolos_serve::Stop;

use crate::command::plan::{Scene, SceneArgs};
use crate::command::verify::prove;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{OutputArgs, SampleArgs};
use crate::screen::{Mark, Screen, Tone, count, elapsed};

/// `stolos upgrade`
#[derive(Args, Debug)]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    scene: SceneArgs,

    /// Lead namespaces and gateways back to the old revision, and take the new one away
    #[arg(long)]
    rollback: bool,

    /// Only these namespaces, in this order; then end, if there are others [default: all, by name]
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    namespaces: Vec<String>,

    /// End after one namespace; run it again for the next
    #[arg(long)]
    one_by_one: bool,

    /// End after this phase
    #[arg(long, value_name = "PHASE", conflicts_with = "rollback")]
    until: Option<Until>,

    /// Only say what would be done, and how far it is; exits with 2 if there is anything
    #[arg(long)]
    dry_run: bool,

    /// Do not ask before it begins
    #[arg(short, long)]
    yes: bool,

    /// How long one wait may take, in seconds: for a control plane, a rollout, or the last proxy to leave
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,

    /// A registry that mirrors Docker Hub, for the images of what proves the mesh between the steps
    #[arg(long, value_name = "HOST[/PATH]")]
    registry: Option<String>,

    #[command(flatten)]
    output: OutputArgs,
}

/// A phase to end after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Until {
    /// The new control plane stands beside the old one
    Canary,
    /// Namespaces have moved
    Namespaces,
    /// Gateways have moved
    Gateways,
}

impl UpgradeArgs {
    fn options(&self) -> UpgradeOptions {
        UpgradeOptions {
            way: if self.rollback { Way::Back } else { Way::Forward },
            namespaces: self.namespaces.clone(),
            one_by_one: self.one_by_one,
            until: self.until.map(|until| match until {
                Until::Canary => Phase::Canary,
                Until::Namespaces => Phase::Namespaces,
                Until::Gateways => Phase::Gateways,
            }),
            patience: Duration::from_secs(self.timeout),
        }
    }

    /// The command, as a user would give it again.
    fn again(&self, back: bool) -> String {
        let files: Vec<_> = self.scene.mesh.file.iter().map(|f| format!(" -f {}", f.display())).collect();
        format!("stolos upgrade{}{}", files.concat(), if back { " --rollback" } else { "" })
    }
}

pub(crate) async fn run(args: UpgradeArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let scene = args.scene.open(&SampleArgs { samples: Vec::new() }, screen).await?;
    let options = args.options();
    let output = args.output.output;
    screen.line(format!("Looking at {}", count(scene.mesh.clusters.len(), "cluster")));
    let Scene { mesh, clusters, state } = &scene;
    let now = tokio::select! {
        now = upgrade_status(options.way, &options.namespaces, mesh, clusters, state) => now?,
        () = stop.asked() => return Err(Failure::interrupted()),
    };
    if args.dry_run || now.is_done() {
        if output.is_document() {
            screen.document(output, &document("UpgradePlan", &scene, &now)?)?;
        } else {
            screen.data(&now.text());
        }
        return Ok(if now.is_done() { Exit::Good } else { Exit::Findings });
    }
    if !output.is_document() {
        screen.data(&now.text());
    }
    if !args.yes {
        consent(&now, screen)?;
    }
    let members: Vec<Cluster> = mesh.clusters.iter().filter_map(|c| clusters.get(c.name.as_str()).ok()).collect();
    // What a killed run has left would be taken for workloads.
    stolos_check::sweep(mesh, &members).await?;
    let report = {
        let progress = screen.progress(None);
        let hear = |news: UpgradeNews<'_>| heard(&news, screen, &progress);
        let proving = async |asks: Asks| proven(&args, &scene, &members, asks, screen, stop).await;
        upgrade(&options, mesh, clusters, state, stop.asked(), &hear, proving).await?
    };
    if output.is_document() {
        screen.document(output, &document("UpgradeReport", &scene, &report)?)?;
    } else {
        screen.data(&ended(&report, &args, screen));
    }
    Ok(match report.stopped.map(|stopped| stopped.reason) {
        None | Some(Reason::Asked) => Exit::Good,
        Some(Reason::Unproven | Reason::ByHand) => Exit::Findings,
        Some(Reason::TimedOut) => Exit::TimedOut,
        Some(Reason::Failed) => Exit::Partial,
        Some(Reason::Interrupted) => Exit::Interrupted,
    })
}

fn document(kind: &str, scene: &Scene, what: &impl serde::Serialize) -> Result<Value, Failure> {
    let mut document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": kind, "mesh": scene.mesh.name});
    let fields = serde_json::to_value(what).map_err(|error| Failure::caused(&error))?;
    if let (Value::Object(document), Value::Object(fields)) = (&mut document, fields) {
        document.extend(fields);
    }
    Ok(document)
}

/// Asks before it begins: workloads are restarted, and control planes go.
fn consent(now: &Upgrade, screen: &Screen) -> Result<(), Failure> {
    let what = "workloads of these namespaces are restarted, and at the end control planes are uninstalled";
    match screen.ask("Workloads are restarted, and at the end control planes are uninstalled. Go on?") {
        Some(true) => Ok(()),
        Some(false) => Err(Failure::new("nothing was changed, as you said no")),
        None => Err(Failure::new(format!(
            "{} would be gone on with, and nobody can be asked",
            now.next().map_or("nothing", Phase::word)
        ))
        .because(what)
        .hint("`--yes` goes on without asking; `--dry-run` says what would be done")),
    }
}

fn heard(news: &UpgradeNews<'_>, screen: &Screen, progress: &crate::screen::Progress<'_>) {
    let good = || screen.progress_tone(Tone::Good, "✓");
    match news {
        UpgradeNews::Phase(phase, way) => screen.line(format!("{phase}: {}", phase.purpose(*way))),
        UpgradeNews::Labelled(cluster, namespace, asks) => {
            screen.line(format!("  ~ {cluster}: namespace {namespace} asks for {asks}"));
        }
        UpgradeNews::Restarted(cluster, namespace, what) => {
            screen.line(format!("  ~ {cluster}: restarting {what} of {namespace}"));
        }
        UpgradeNews::Waiting(what) => screen.line(format!("  … waiting: {what}")),
        UpgradeNews::Moved(cluster, namespace, took) => {
            screen.line(format!("  {} {cluster}: namespace {namespace} has moved ({})", good(), elapsed(*took)));
        }
        UpgradeNews::Released => screen.line(format!("  {} nobody is connected to what is to go", good())),
        UpgradeNews::Step(news) => match news {
            News::Started(step) => progress.begin(step.id.as_str(), &format!("{} {}", step.action.symbol(), step.id)),
            News::Waiting(step, what) => progress.note(step.id.as_str(), &format!("{} waiting for {what}", step.id)),
            News::Said(step, line) => progress.said(&format!("{}: {line}", step.id)),
            News::Done(step, _) => progress.end(step.id.as_str(), Mark::Done, step.id.as_str()),
            News::Failed(step, why) => progress.end(step.id.as_str(), Mark::Failed, &format!("{}: {why}", step.id)),
            News::Skipped(step, after) => {
                let text = format!("{}: not tried, as {after} did not succeed", step.id);
                progress.end(step.id.as_str(), Mark::Skipped, &text);
            }
        },
    }
}

/// Proves the mesh with workloads of verify's own that ask for proxies like this; what is wrong, where it is not.
async fn proven(
    args: &UpgradeArgs,
    scene: &Scene,
    members: &[Cluster],
    asks: Asks,
    screen: &Screen,
    stop: &Stop,
) -> Result<(), Vec<String>> {
    let mut workload = Workload::default();
    if let Some(registry) = &args.registry {
        workload = workload.mirrored(registry);
    }
    workload.injection = asks.label().map(|(label, value)| (label.to_owned(), value.to_owned()));
    let options = Options { ready: Duration::from_secs(args.timeout.max(60)), workload, ..Options::default() };
    screen.line(format!("proof, with {asks}"));
    let report = prove(&scene.mesh, members, &options, screen, stop).await.map_err(|why| vec![why.to_string()])?;
    if report.verdict == Verdict::Fail { Err(wrong(&report)) } else { Ok(()) }
}

fn wrong(report: &VerifyReport) -> Vec<String> {
    let pairs = report.pairs.iter().filter(|pair| pair.verdict == Verdict::Fail);
    let pairs = pairs.map(|pair| format!("{} → {}: {}", pair.from, pair.to, pair.why.join("; ")));
    let refusals = report.refusals.iter().filter(|refusal| refusal.verdict == Verdict::Fail);
    pairs.chain(refusals.map(|refusal| format!("{}: {}: {}", refusal.cluster, refusal.what, refusal.saw))).collect()
}

fn ended(report: &UpgradeReport, args: &UpgradeArgs, screen: &Screen) -> String {
    let Upgrade { way, from, to, .. } = &report.upgrade;
    let named = |(revision, version): &(String, String)| format!("{revision} ({version})");
    let Some(Stopped { phase, reason, seen }) = &report.stopped else {
        let gone = from.iter().map(named).collect::<Vec<_>>().join(", ");
        let mut text = format!(
            "{} the mesh is at {}; {gone} is gone, {}.\n",
            screen.data_tone(Tone::Good, "✓ done:"),
            named(to),
            count(usize::try_from(report.writes).unwrap_or(usize::MAX), "write")
        );
        if *way == Way::Back {
            text += "The mesh file still names the revision that is gone: put the old `revision` and `version` back, or \
                     `stolos apply` installs it again. The definitions (`istio-base`) stay as new as they are until then.\n";
        }
        return text;
    };
    let mut text = String::new();
    let mark = match reason {
        Reason::Asked => screen.data_tone(Tone::Good, "…"),
        _ => screen.data_tone(Tone::Bad, "✗"),
    };
    seen.iter().for_each(|what| text += &format!("{mark} {what}\n"));
    let said = match reason {
        Reason::Asked if seen.is_empty() => "It ended here, as it was asked to",
        Reason::Asked => "It ended here, as it was asked to; these are left in this phase",
        Reason::Interrupted => "Interrupted",
        Reason::Failed => "A change was refused, and nothing of what follows was begun",
        Reason::TimedOut => "That was waited for in vain, and nothing of what follows was begun",
        Reason::Unproven => "The mesh does not do what its file says, and nothing of what follows was begun",
        Reason::ByHand => "That is not for Stolos to do, and the old control plane stays as long as it serves anybody",
    };
    let back = *way == Way::Back;
    text += &format!("Phase {phase}: {said}.\n  to go on    {}\n", args.again(back));
    let other = if back { "to go forward again" } else { "to go back" };
    text += &format!("  {other}  {}\n", args.again(!back));
    text
}
