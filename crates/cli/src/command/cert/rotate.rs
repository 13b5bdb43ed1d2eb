//! `stolos cert rotate`: new certificates for a running mesh.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use stolos_apply::{
    ClusterProgress, Direction, ReissueNews, RotationNews, RotationReport, reissue, rotate, rotation_status,
};
use stolos_plan::rotation::{Phase, Rotation};
use stolos_serve::Stop;

use crate::command::plan::{Scene, SceneArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{OutputArgs, SampleArgs};
use crate::screen::{Screen, Tone, count, elapsed};

/// `stolos cert rotate`
#[derive(Debug, Subcommand)]
pub(crate) enum RotateCommand {
    /// Replace the root, in phases, without a request lost; run again to go on after an interruption
    Root(RootArgs),
    /// Give clusters new signing certificates of the root there is, one cluster after the other
    Intermediates(IntermediatesArgs),
}

/// `stolos cert rotate intermediates`
#[derive(Args, Debug)]
pub(crate) struct IntermediatesArgs {
    #[command(flatten)]
    scene: SceneArgs,

    /// Only in this cluster; may be given several times [default: all with a control plane]
    #[arg(long, value_name = "NAME")]
    cluster: Vec<String>,

    /// Only say what would be done; exits with 2
    #[arg(long)]
    dry_run: bool,

    /// How long the control planes of one cluster may take to show the new one, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,

    #[command(flatten)]
    output: OutputArgs,
}

/// `stolos cert rotate root`
#[derive(Args, Debug)]
pub(crate) struct RootArgs {
    #[command(flatten)]
    scene: SceneArgs,

    /// Take it back: the old root is the only one again. Possible until the old root is being retired
    #[arg(long, conflicts_with = "status")]
    abort: bool,

    /// Only say where it is and what the phase still waits for
    #[arg(long)]
    status: bool,

    /// Only say what would be done; exits with 2 if there is anything
    #[arg(long, conflicts_with = "status")]
    dry_run: bool,

    /// Do not ask before it begins
    #[arg(short, long)]
    yes: bool,

    /// How long the confirmation of one phase may take, in seconds. Real Istio's workloads renew by themselves within
    /// half a certificate's life
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    timeout: u64,

    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(command: RotateCommand, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    match command {
        RotateCommand::Root(args) => root(args, screen, stop).await,
        RotateCommand::Intermediates(args) => intermediates(args, screen, stop).await,
    }
}

async fn intermediates(args: IntermediatesArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let scene = args.scene.open(&SampleArgs { samples: Vec::new() }, screen).await?;
    if args.dry_run {
        let with = scene.mesh.clusters.iter().filter(|c| c.role == stolos_spec::Role::Primary);
        let names: Vec<_> = with.map(|c| c.name.to_string()).collect();
        let names: Vec<_> = names.into_iter().filter(|n| args.cluster.is_empty() || args.cluster.contains(n)).collect();
        screen.data(&format!("A new signing certificate, one after the other, for: {}\n", names.join(", ")));
        return Ok(Exit::Findings);
    }
    let hear = |news: ReissueNews<'_>| match news {
        ReissueNews::Issued(cluster, serial) => screen.line(format!("  ~ {cluster}: serial {serial}")),
        ReissueNews::Waiting(cluster, what) => screen.line(format!("  … {cluster}: waiting, as {what}")),
        ReissueNews::Shown(cluster, count, took) => screen.line(format!(
            "  {} {cluster}: shown at 15012 by {} ({})",
            screen.progress_tone(Tone::Good, "✓"),
            self::count(count, "control plane"),
            elapsed(took)
        )),
    };
    let patience = Duration::from_secs(args.timeout);
    let report = reissue(&scene.mesh, &scene.clusters, &scene.state, &args.cluster, patience, stop.asked(), &hear);
    let report = report.await?;
    if args.output.output.is_document() {
        let mut document =
            json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "ReissueReport", "mesh": scene.mesh.name});
        merge(&mut document, &report)?;
        screen.document(args.output.output, &document)?;
    } else {
        for (cluster, why) in &report.unmet {
            screen.data(&format!("{} {cluster}: {why}\n", screen.data_tone(Tone::Bad, "✗")));
        }
        let left =
            if report.left.is_empty() { String::new() } else { format!("; not begun: {}", report.left.join(", ")) };
        let done =
            screen.data_tone(if report.unmet.is_empty() { Tone::Good } else { Tone::Bad }, "new signing certificates:");
        screen.data(&format!(
            "{done} {}{left}. Workloads follow when they renew.\n",
            count(report.issued.len(), "cluster")
        ));
    }
    Ok(match () {
        () if report.interrupted => Exit::Interrupted,
        () if report.unmet.is_empty() => Exit::Good,
        () => Exit::TimedOut,
    })
}

async fn root(args: RootArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let scene = args.scene.open(&SampleArgs { samples: Vec::new() }, screen).await?;
    if args.status || args.dry_run {
        return status(&args, &scene, screen).await;
    }
    let known = scene.state.rotation()?;
    if known.is_none() && !args.abort && !args.yes {
        consent(screen)?;
    }
    let direction = if args.abort { Direction::Back } else { Direction::Forward };
    let progress = screen.progress(None);
    let hear = |news: RotationNews<'_>| match news {
        RotationNews::Phase(rotation) => screen.line(format!("{}: {}", rotation.phase, rotation.phase.purpose())),
        RotationNews::Wrote(cluster, what) => screen.line(format!("  ~ {cluster} {what}")),
        RotationNews::Waiting(what) => screen.line(format!("  … waiting for {what}")),
        RotationNews::Confirmed(rotation, cluster, proxies, took) => {
            let place = cluster.map(|cluster| format!(" in {cluster}")).unwrap_or_default();
            screen.line(format!(
                "  {} {}{place}: {} seen ({})",
                screen.progress_tone(Tone::Good, "✓"),
                rotation.phase.gate(),
                proxies_of(proxies),
                elapsed(took)
            ));
        }
    };
    let patience = Duration::from_secs(args.timeout);
    let report = rotate(direction, &scene.mesh, &scene.clusters, &scene.state, patience, stop.asked(), &hear).await?;
    drop(progress);
    if args.output.output.is_document() {
        let mut document =
            json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "RotationReport", "mesh": scene.mesh.name});
        merge(&mut document, &report)?;
        screen.document(args.output.output, &document)?;
    } else {
        screen.data(&ended(&report, screen));
    }
    Ok(match () {
        () if report.done => Exit::Good,
        () if report.interrupted => Exit::Interrupted,
        () => Exit::TimedOut,
    })
}

fn merge(document: &mut Value, report: &impl serde::Serialize) -> Result<(), Failure> {
    let Value::Object(fields) = serde_json::to_value(report).map_err(|error| Failure::caused(&error))? else {
        return Ok(());
    };
    if let Value::Object(document) = document {
        document.extend(fields);
    }
    Ok(())
}

/// Asks before the root is replaced: what is outside these clusters and trusts the old root alone is not seen.
fn consent(screen: &Screen) -> Result<(), Failure> {
    let what = "at the end the old root is trusted by nobody: what is outside these clusters (virtual machines, pinned \
                caBundles, copies of root-cert.pem) cannot be seen from here and must be given the new one";
    match screen.ask(&format!("{what}. Go on?")) {
        Some(true) => Ok(()),
        Some(false) => Err(Failure::new("nothing was changed, as you said no")),
        None => Err(Failure::new("the root would be replaced, and nobody can be asked")
            .because(what)
            .hint("`--yes` goes on without asking; `--dry-run` says what would be done")),
    }
}

fn ended(report: &RotationReport, screen: &Screen) -> String {
    let short = |print: &str| print.chars().take(16).collect::<String>();
    let rotation = &report.rotation;
    if report.done {
        let text = match rotation.phase.is_back() {
            false => format!(
                "the root is {} now; {} is trusted by nobody any more",
                short(&rotation.to),
                short(&rotation.from)
            ),
            true => format!("the root is {} as before; {} is gone", short(&rotation.from), short(&rotation.to)),
        };
        let done = screen.data_tone(Tone::Good, "✓ done:");
        return format!(
            "{done} {text}; {} seen, {}.\n",
            proxies_of(report.proxies),
            count(usize::try_from(report.writes).unwrap_or(usize::MAX), "write")
        );
    }
    let mut text = String::new();
    for (cluster, unmet) in &report.unmet {
        for what in unmet {
            text += &format!("{} {cluster}: {what}\n", screen.data_tone(Tone::Bad, "✗"));
        }
    }
    let again = if rotation.phase.is_back() { " --abort" } else { "" };
    text += &format!(
        "Phase {} is not confirmed yet, and nothing of what follows was begun. Run `stolos cert rotate root{again}` again to \
         go on",
        rotation.phase
    );
    text += match rotation.phase {
        Phase::Distribute | Phase::Reissue => "; `--abort` takes it back.\n",
        _ => ".\n",
    };
    if matches!(rotation.phase, Phase::Distribute | Phase::Reissue | Phase::Restore) && !report.unmet.is_empty() {
        text += "Real Istio's workloads take another root at their next renewal (half a day by default); `kubectl rollout \
                 restart` of those named hurries that.\n";
    }
    text
}

async fn status(args: &RootArgs, scene: &Scene, screen: &Screen) -> Result<Exit, Failure> {
    screen.line(format!("Asking {}", count(scene.mesh.clusters.len(), "cluster")));
    let found = rotation_status(&scene.mesh, &scene.clusters, &scene.state).await?;
    let output = args.output.output;
    if output.is_document() {
        let (rotation, clusters) = found.clone().unzip();
        let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "RotationStatus", "mesh": scene.mesh.name,
            "underWay": rotation.is_some(), "rotation": rotation, "clusters": clusters});
        screen.document(output, &document)?;
    } else {
        screen.data(&told(found.as_ref(), args, scene));
    }
    // A dry run of a rotation that could go on, or begin, has something to do.
    let anything = args.dry_run && (found.is_some() || !args.abort);
    Ok(if anything { Exit::Findings } else { Exit::Good })
}

fn told(found: Option<&(Rotation, BTreeMap<String, ClusterProgress>)>, args: &RootArgs, scene: &Scene) -> String {
    let Some((rotation, clusters)) = found else {
        let mut text = "No replacement of the root is under way from this state folder.\n".to_owned();
        if args.dry_run && !args.abort {
            let phases = [Phase::Distribute, Phase::Reissue, Phase::Retire];
            text += &format!("In {}:\n", count(scene.mesh.clusters.len(), "cluster"));
            for phase in phases {
                text += &format!("  {phase}: {}; confirmed: {}\n", phase.purpose(), phase.gate());
            }
        }
        return text;
    };
    let mut text = format!(
        "Phase {} since {}: {}.\n  from {}\n  to   {}\n",
        rotation.phase,
        rotation.started_at,
        rotation.phase.purpose(),
        rotation.from,
        rotation.to
    );
    for (cluster, progress) in clusters {
        match progress.unmet.as_slice() {
            [] => text += &format!("✓ {cluster}: {} ({})\n", rotation.phase.gate(), proxies_of(progress.proxies)),
            unmet => unmet.iter().for_each(|what| text += &format!("✗ {cluster}: {what}\n")),
        }
    }
    text
}

fn proxies_of(number: usize) -> String {
    if number == 1 { "1 proxy".to_owned() } else { format!("{number} proxies") }
}
