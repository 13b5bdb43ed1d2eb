//! `stolos cluster`: one cluster of a mesh that runs.

mod member;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;
use stolos_apply::{DrainNews, DrainReport, Goal, drain, returned, undrain};
use stolos_serve::Stop;

use crate::command::plan::{Scene, SceneArgs, carried_out, show};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{OutputArgs, SampleArgs};
use crate::screen::{Screen, Tone, elapsed};

/// `stolos cluster`
#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Write a cluster into the mesh file, and make it part of the mesh
    Add(member::AddArgs),
    /// Take a cluster out of the mesh file and out of the mesh, also one that is dead
    Remove(member::RemoveArgs),
    /// Shift the mesh's traffic away from a cluster: the others forget its endpoints, and that is confirmed
    Drain(DrainArgs),
    /// Give a drained cluster its share of the traffic again
    Undrain(UndrainArgs),
}

/// `stolos cluster drain`
#[derive(Args, Debug)]
pub(crate) struct DrainArgs {
    /// The cluster, by its name in the mesh
    #[arg(value_name = "CLUSTER")]
    name: String,

    #[command(flatten)]
    scene: SceneArgs,

    /// Only say what would be done; exits with 2
    #[arg(long)]
    dry_run: bool,

    /// Do not ask, also when services are only there
    #[arg(short, long)]
    yes: bool,

    /// How long the confirmation in one cluster may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,

    #[command(flatten)]
    output: OutputArgs,
}

/// `stolos cluster undrain`
#[derive(Args, Debug)]
pub(crate) struct UndrainArgs {
    /// The cluster, by its name in the mesh
    #[arg(value_name = "CLUSTER")]
    name: String,

    #[command(flatten)]
    scene: SceneArgs,

    /// How long one wait may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,

    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(command: ClusterCommand, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    match command {
        ClusterCommand::Add(args) => member::add(args, screen, stop).await,
        ClusterCommand::Remove(args) => member::remove(args, screen, stop).await,
        ClusterCommand::Drain(args) => draining(args, screen, stop).await,
        ClusterCommand::Undrain(args) => undraining(args, screen, stop).await,
    }
}

async fn draining(args: DrainArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let scene = args.scene.open(&SampleArgs { samples: Vec::new() }, screen).await?;
    let alone = only_there(&scene, &args.name).await;
    if args.dry_run {
        let mut text =
            format!("The other clusters would forget the endpoints of {}, one after the other.\n", args.name);
        alone.iter().for_each(|service| text += &format!("- {service} has no endpoints elsewhere\n"));
        screen.data(&text);
        return Ok(Exit::Findings);
    }
    if !alone.is_empty() && !args.yes {
        consent(&args.name, &alone, screen)?;
    }
    let hear = |news: DrainNews<'_>| match news {
        DrainNews::Forgot(cluster) => screen.line(format!("  ~ {cluster} forgets {}", args.name)),
        DrainNews::Waiting(cluster, what) => screen.line(format!("  … {cluster}: waiting, as {what}")),
        DrainNews::Confirmed(cluster, proxies, took) => screen.line(format!(
            "  {} {cluster} has no endpoints of {} any more: all its {proxies} proxies have taken that ({})",
            screen.progress_tone(Tone::Good, "✓"),
            args.name,
            elapsed(took)
        )),
    };
    let patience = Duration::from_secs(args.timeout);
    let Scene { mesh, clusters, state } = &scene;
    let report = drain(mesh, clusters, state, &args.name, patience, stop.asked(), &hear).await?;
    if let Some(network) = shared_network(mesh, &args.name) {
        screen.line(format!(
            "  ! connections from other networks that other gateways of {network} brought here live on until they are closed"
        ));
    }
    ended(&report, &args, &scene, screen)
}

/// The network of a cluster, if its neighbours' gateways have brought it connections from other networks: a gateway passes
/// bytes on and cannot ask a client to come again.
fn shared_network(mesh: &stolos_spec::Mesh, name: &str) -> Option<String> {
    let network = &mesh.clusters.iter().find(|cluster| cluster.name.as_str() == name)?.network;
    let neighbours = mesh.clusters.iter().filter(|c| c.network == *network).count();
    (neighbours > 1 && mesh.needs_gateways()).then(|| network.to_string())
}

fn ended(report: &DrainReport, args: &DrainArgs, scene: &Scene, screen: &Screen) -> Result<Exit, Failure> {
    if args.output.output.is_document() {
        let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "DrainReport", "mesh": scene.mesh.name,
            "cluster": args.name, "confirmed": report.confirmed, "unmet": report.unmet,
            "interrupted": report.interrupted});
        screen.document(args.output.output, &document)?;
    } else {
        let mut text = String::new();
        for (cluster, why) in &report.unmet {
            text += &format!("{} {cluster}: {why}\n", screen.data_tone(Tone::Bad, "✗"));
        }
        text += &match report.unmet.is_empty() {
            true => format!(
                "{} {}; `stolos cluster undrain {}` brings it back, and until then apply leaves it so.\n",
                screen.data_tone(Tone::Good, "✓ drained:"),
                args.name,
                args.name
            ),
            false => "Run it again to go on; `stolos cluster undrain` takes it back.\n".to_owned(),
        };
        screen.data(&text);
    }
    Ok(match () {
        () if report.interrupted => Exit::Interrupted,
        () if report.unmet.is_empty() => Exit::Good,
        () => Exit::TimedOut,
    })
}

async fn undraining(args: UndrainArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let scene = args.scene.open(&SampleArgs { samples: Vec::new() }, screen).await?;
    undrain(&scene.mesh, &scene.clusters, &args.name).await?;
    let plan = scene.plan(Goal::Apply, screen, stop).await?;
    let output = args.output.output;
    if !output.is_document() {
        show(&plan, output, screen)?;
    }
    if plan.destroys() {
        return Err(Failure::new(format!("{} is drained no longer, but its links are not back yet", args.name))
            .because("the plan would take something else away as well")
            .hint("`stolos apply` shows it, and asks"));
    }
    let patience = Duration::from_secs(args.timeout);
    let report = scene.carry_out(Goal::Apply, &plan, patience, screen, stop).await?;
    let exit = carried_out(&report);
    if exit != Exit::Good {
        report.failed.iter().for_each(|failure| screen.data(&format!("✗ {}: {}\n", failure.step, failure.why)));
        return Ok(exit);
    }
    let missing = tokio::select! {
        missing = returned(&scene.mesh, &scene.clusters, &args.name, patience) => missing?,
        () = stop.asked() => return Err(Failure::interrupted()),
    };
    if output.is_document() {
        let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "UndrainReport", "mesh": scene.mesh.name,
            "cluster": args.name, "unmet": missing});
        screen.document(output, &document)?;
    } else if missing.is_empty() {
        screen.data(&format!("{} {} has its share again\n", screen.data_tone(Tone::Good, "✓"), args.name));
    } else {
        missing.iter().for_each(|(cluster, why)| screen.data(&format!("✗ {cluster}: {why}\n")));
    }
    Ok(if missing.is_empty() { Exit::Good } else { Exit::TimedOut })
}

/// Services that other clusters know and that have endpoints in this one alone.
async fn only_there(scene: &Scene, name: &str) -> Vec<String> {
    let clusters = scene.mesh.clusters.iter().filter_map(|member| scene.clusters.get(member.name.as_str()).ok());
    let report = stolos_check::status(&scene.mesh, &clusters.collect::<Vec<_>>()).await;
    let alone = report.services.iter().filter(|service| {
        let here = service.endpoints.get(name).is_some_and(|ready| *ready > 0);
        let elsewhere = service.endpoints.iter().any(|(cluster, ready)| cluster != name && *ready > 0);
        here && !elsewhere && service.endpoints.len() > 1
    });
    alone.map(|service| format!("{}/{}", service.namespace, service.name)).collect()
}

fn consent(name: &str, alone: &[String], screen: &Screen) -> Result<(), Failure> {
    let what = format!("only {name} has endpoints of {}, and the others would have none", alone.join(", "));
    match screen.ask(&format!("{what}. Go on?")) {
        Some(true) => Ok(()),
        Some(false) => Err(Failure::new("nothing was changed, as you said no")),
        None => Err(Failure::new(format!("{name} serves what nobody else does, and nobody can be asked"))
            .because(what)
            .hint("`--yes` goes on without asking")),
    }
}
