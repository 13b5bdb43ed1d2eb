//! `stolos hub join`: a cluster that the hub dials becomes a member.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use stolos_cluster::{Kubeconfig, connect};
use stolos_hub::member;

use super::{JoiningArgs, WhichArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::{Screen, Tone};

/// `stolos hub join`
#[derive(Args, Debug)]
pub(crate) struct JoinArgs {
    /// What the cluster is called in the hub
    name: String,

    /// The kubeconfig context it is reached by [default: its name in the hub]
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,

    /// The kubeconfig that the context is in [default: $KUBECONFIG, ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    #[command(flatten)]
    joining: JoiningArgs,

    /// How long to wait until it is ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,

    #[command(flatten)]
    which: WhichArgs,
}

pub(super) async fn run(args: JoinArgs, screen: &Screen) -> Result<Exit, Failure> {
    let hub = args.which.client().await?;
    let kubeconfig = Kubeconfig::find(args.kubeconfig.as_deref(), None)?;
    let context = args.context.as_ref().unwrap_or(&args.name);
    let cluster = connect(&kubeconfig, context, &args.name).await?;
    screen.line(format!("Joining {} ({})", args.name, cluster.server));
    member::join(&hub, &cluster, &args.joining.of(&args.name)).await?;
    let patience = Duration::from_secs(args.timeout);
    member::ready(&hub, &args.name, patience).await?;
    screen.line(format!("  {} {} is a member, and ready", screen.progress_tone(Tone::Good, "✓"), args.name));
    Ok(Exit::Good)
}
