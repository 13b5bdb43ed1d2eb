use clap::Args;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{BuiltArgs, OutputArgs};
use crate::screen::Screen;
use crate::view;

/// `stolos status`
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    built: BuiltArgs,

    /// Say which services there are: host, ports, endpoints per cluster, and whether every control plane knows them
    #[arg(long)]
    services: bool,

    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(args: StatusArgs, screen: &Screen) -> Result<Exit, Failure> {
    let (mesh, clusters) = args.built.ask(screen).await?;
    if args.services {
        let report = stolos_check::services(&mesh, &clusters).await;
        match args.output.output {
            output if output.is_document() => screen.document(output, &report)?,
            _ => screen.data(&view::services(screen, &report)),
        }
        let unreachable = report.clusters.iter().filter(|c| c.unreachable.is_some()).count();
        return Ok(ends(unreachable, report.clusters.len()));
    }
    let mut report = stolos_check::status(&mesh, &clusters).await;
    if let Some(hub) = args.built.hub(&mesh).await {
        stolos_check::through_hub(&mut report, &mesh, &clusters, hub.as_ref().map_err(String::as_str)).await;
    }
    match args.output.output {
        output if output.is_document() => screen.document(output, &report)?,
        output => screen.data(&view::status(screen, &report, output)),
    }
    let unreachable = report.clusters.iter().filter(|c| c.unreachable.is_some()).count();
    Ok(ends(unreachable, report.clusters.len()))
}

/// By how many of all did not answer.
fn ends(unreachable: usize, all: usize) -> Exit {
    match unreachable {
        0 => Exit::Good,
        some if some == all => Exit::Error,
        _ => Exit::Partial,
    }
}
