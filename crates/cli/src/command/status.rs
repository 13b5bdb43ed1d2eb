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
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(args: StatusArgs, screen: &Screen) -> Result<Exit, Failure> {
    let (mesh, clusters) = args.built.ask(screen).await?;
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
