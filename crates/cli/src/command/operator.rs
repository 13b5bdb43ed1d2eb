use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use stolos_apply::State;
use stolos_operator::Settings;
use stolos_serve::{HostNet, Net as _, Stop};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ClusterArgs, MeshArgs};
use crate::screen::{Color, Screen};

/// `stolos operator`
#[derive(Args, Debug)]
pub(crate) struct OperatorArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    clusters: ClusterArgs,

    /// A file whose first line is the passphrase of the root's key [default: $STOLOS_PASSPHRASE]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,

    /// Seconds between the end of one round and the next; a change of the mesh file is seen after five
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval: u64,

    /// How long one wait may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,

    /// Also take away what the mesh file no longer says, without asking anybody
    #[arg(long)]
    prune: bool,

    /// Where /metrics, /healthz and /readyz are served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// This replica's name in the Lease, to which it adds a random part [default: the host's]
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    identity: Option<String>,
}

pub(crate) async fn run(args: OperatorArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    // Said at once, with all its warnings, rather than by a process that fails again and again.
    let mesh = args.mesh.read(screen)?;
    let state = State::at(args.mesh.state(&mesh)?, stolos_apply::passphrase(args.passphrase_file.as_deref())?);
    let net = HostNet::new(args.listen.ip());
    let listener = net.bind(args.listen.port()).await.map_err(|error| {
        Failure::caused(&error)
            .while_doing(format!("could not listen on {}", args.listen))
            .hint("name another address with `--listen ADDRESS`")
    })?;
    let (files, silent) = (args.mesh.clone(), Screen::new(Color::Never, true));
    let settings = Settings {
        read: Box::new(move || files.read_quietly(&silent).map_err(|failure| failure.to_string())),
        kubeconfig: args.clusters.kubeconfig,
        state,
        interval: Duration::from_secs(args.interval),
        patience: Duration::from_secs(args.timeout),
        prune: args.prune,
        identity: stolos_cluster::lease::identity(args.identity.as_deref()),
    };
    stolos_operator::run(settings, listener, stop.clone()).await;
    Ok(Exit::Good)
}
