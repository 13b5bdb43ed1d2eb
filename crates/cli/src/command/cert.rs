mod rotate;

use clap::{Args, Subcommand};
use serde_json::json;
use stolos_serve::Stop;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{BuiltArgs, OutputArgs};
use crate::screen::Screen;
use crate::view;

/// `stolos cert`
#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// List what expires: roots, intermediates and tokens of every cluster
    List(ListArgs),
    /// Issue certificates anew in a running mesh
    #[command(subcommand)]
    Rotate(rotate::RotateCommand),
}

/// `stolos cert list`
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    built: BuiltArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(command: CertCommand, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    match command {
        CertCommand::List(args) => list(args, screen).await,
        CertCommand::Rotate(command) => rotate::run(command, screen, stop).await,
    }
}

async fn list(args: ListArgs, screen: &Screen) -> Result<Exit, Failure> {
    let (mesh, clusters) = args.built.ask(screen).await?;
    let report = stolos_check::status(&mesh, &clusters).await;
    if args.output.output.is_document() {
        let list: Vec<_> = report
            .clusters
            .iter()
            .map(|c| json!({"cluster": c.name, "certificates": c.certificates, "unreachable": c.unreachable, "measuredAt": c.measured_at}))
            .collect();
        let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "CertificateList", "mesh": report.mesh, "clusters": list});
        screen.document(args.output.output, &document)?;
    } else {
        screen.data(&view::certificates(&report));
    }
    let unreachable: Vec<_> = report.clusters.iter().filter(|c| c.unreachable.is_some()).collect();
    for cluster in &unreachable {
        screen.say(&format!("{}: {}", cluster.name, cluster.unreachable.as_deref().unwrap_or_default()));
    }
    Ok(if unreachable.is_empty() { Exit::Good } else { Exit::Partial })
}
