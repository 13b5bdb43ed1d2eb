use clap::Args;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ClusterArgs, MeshArgs, OutputArgs, clusters};
use crate::screen::{Screen, count};
use crate::view;

/// `stolos status`
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    clusters: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(args: StatusArgs, screen: &Screen) -> Result<Exit, Failure> {
    let mesh = args.mesh.read(screen)?;
    let clusters = clusters(&mesh, &args.mesh, &args.clusters).await?;
    screen.line(format!("Asking {}", count(clusters.len(), "cluster")));
    let report = stolos_check::status(&mesh, &clusters).await;
    match args.output.output {
        output if output.is_document() => screen.document(output, &report)?,
        output => screen.data(&view::status(screen, &report, output)),
    }
    let unreachable = report.clusters.iter().filter(|c| c.unreachable.is_some()).count();
    Ok(match unreachable {
        0 => Exit::Good,
        all if all == report.clusters.len() => Exit::Error,
        _ => Exit::Partial,
    })
}
