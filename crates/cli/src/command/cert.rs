mod rotate;

use std::time::SystemTime;

use clap::{Args, Subcommand};
use serde_json::json;
use stolos_apply::State;
use stolos_serve::Stop;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{BuiltArgs, OutputArgs};
use crate::screen::Screen;
use crate::view;

/// `stolos cert`
#[derive(Debug, Subcommand)]
pub(crate) enum CertCommand {
    /// List what expires, soonest first: roots, signing certificates and tokens of all clusters
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
    let root = State::at(args.built.state(&mesh)?, None).facts(&mesh, SystemTime::now()).root;
    let list = stolos_check::expiries(&report, root.map(|root| (root.fingerprint, root.not_after)));
    if args.output.output.is_document() {
        // What each cluster said is there as well, with its age.
        let clusters: Vec<_> = report
            .clusters
            .iter()
            .map(|c| json!({"cluster": c.name, "certificates": c.certificates, "unreachable": c.unreachable, "measuredAt": c.measured_at}))
            .collect();
        let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "CertificateList", "mesh": report.mesh,
            "certificates": list, "clusters": clusters});
        screen.document(args.output.output, &document)?;
    } else {
        screen.data(&view::certificates(&list, args.output.output));
    }
    let unreachable: Vec<_> = report.clusters.iter().filter(|c| c.unreachable.is_some()).collect();
    for cluster in &unreachable {
        screen.say(&format!("{}: {}", cluster.name, cluster.unreachable.as_deref().unwrap_or_default()));
    }
    Ok(if unreachable.is_empty() { Exit::Good } else { Exit::Partial })
}
