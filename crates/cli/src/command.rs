//! The commands, one file each.

pub(crate) mod agent;
pub(crate) mod apply;
pub(crate) mod bundle;
pub(crate) mod cert;
pub(crate) mod check;
pub(crate) mod cluster;
pub(crate) mod completions;
pub(crate) mod create_mesh;
pub(crate) mod credential;
pub(crate) mod demo;
pub(crate) mod explain;
pub(crate) mod export;
pub(crate) mod get;
pub(crate) mod graph;
pub(crate) mod hub;
pub(crate) mod init;
pub(crate) mod interpret;
pub(crate) mod lab;
pub(crate) mod man;
pub(crate) mod operator;
pub(crate) mod plan;
pub(crate) mod pod;
pub(crate) mod proxy_status;
pub(crate) mod role;
pub(crate) mod status;
pub(crate) mod upgrade;
pub(crate) mod verify;
pub(crate) mod why;

use std::time::Duration;

use clap::{Parser, Subcommand};
use stolos_serve::Stop;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::{Color, Screen};

/// The version with the facts of the build; `-V` prints the number alone.
pub(crate) const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit:    ",
    env!("STOLOS_BUILD_COMMIT"),
    "\nbuilt for: ",
    env!("STOLOS_BUILD_TARGET"),
    ", ",
    env!("STOLOS_BUILD_PROFILE"),
    "\ncompiler:  ",
    env!("STOLOS_BUILD_RUSTC"),
);

/// One service mesh over many Kubernetes clusters, from one file, and proven.
#[derive(Debug, Parser)]
#[command(
    name = "stolos",
    version,
    long_version = LONG_VERSION,
    propagate_version = true,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    /// Say more about what is going on; twice for even more
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,

    /// Print no progress
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// Whether to colour
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true, hide_possible_values = true)]
    pub(crate) color: Color,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build a mesh over three clusters in this process, and prove it
    Demo(demo::DemoArgs),
    /// Run whole clusters in one process
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Write a mesh file from kubeconfig contexts, or from what the clusters are already
    Init(init::InitArgs),
    /// Make the clusters of several kubeconfigs one mesh, as `asmcli create-mesh` did
    CreateMesh(create_mesh::CreateMeshArgs),
    /// Say what would change in which cluster, and what that would touch
    Plan(plan::PlanArgs),
    /// Make the clusters one mesh
    Apply(apply::ApplyArgs),
    /// Take the mesh out of the clusters
    Teardown(apply::TeardownArgs),
    /// Say what is there: clusters, control planes, gateways, peers, services, certificates
    Status(status::StatusArgs),
    /// Say what every proxy has of its configuration
    #[command(alias = "ps")]
    ProxyStatus(proxy_status::ProxyStatusArgs),
    /// Name the cause of what is wrong, and the command that mends it
    Check(check::CheckArgs),
    /// Pack what is known of the mesh into one archive, without its secrets
    Bundle(bundle::BundleArgs),
    /// Prove the mesh with real requests between every two clusters
    Verify(verify::VerifyArgs),
    /// Draw the mesh
    Graph(graph::GraphArgs),
    /// Look at certificates, and replace them
    #[command(subcommand)]
    Cert(cert::CertCommand),
    /// Hand out credentials that read a cluster and end, and take them back
    #[command(subcommand)]
    Credential(credential::CredentialCommand),
    /// Write what apply would do as files of a Git repository
    Export(export::ExportArgs),
    /// Add a cluster, remove one, shift traffic away from one and back
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Place workloads on clusters by Karmada's policies
    #[command(subcommand)]
    Hub(hub::HubCommand),
    /// Say why a workload of the hub is where it is, and what would change it
    Why(why::WhyArgs),
    /// List objects of all members of a hub at once
    Get(get::GetArgs),
    /// Print the log of a pod in a member of a hub
    #[command(alias = "log")]
    Logs(pod::LogsArgs),
    /// Run a command in a pod in a member of a hub
    Exec(pod::ExecArgs),
    /// Replace the control planes of a running mesh by revision, step by step, and back
    Upgrade(upgrade::UpgradeArgs),
    /// Connect a cluster that cannot be dialled to a hub, for ever
    Agent(agent::AgentArgs),
    /// Keep the clusters as the mesh file says, for ever
    Operator(operator::OperatorArgs),
    /// Explain a finding or a cause by its id
    Explain(explain::ExplainArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
    /// Write the manual pages
    Man(man::ManArgs),
    /// Run a control plane, as Stolos' own image does
    #[command(hide = true)]
    Control(role::ControlArgs),
    /// Run a sidecar or a gateway, as Stolos' own image does
    #[command(hide = true)]
    Proxy(role::ProxyArgs),
}

impl Command {
    /// Whether this is a container's role, whose log is all that people see of it.
    pub(crate) fn is_role(&self) -> bool {
        matches!(self, Self::Agent(_) | Self::Control(_) | Self::Operator(_) | Self::Proxy(_))
    }

    /// How long its end waits for what is still running: for nobody who types, as the next line is the shell's.
    pub(crate) fn patience(&self) -> Duration {
        if matches!(self, Self::Exec(_)) { Duration::ZERO } else { Duration::from_secs(2) }
    }

    /// How many threads it is to have; `None` for one per core.
    pub(crate) fn threads(&self) -> Option<usize> {
        match self {
            Self::Proxy(args) => Some(args.threads()),
            _ => None,
        }
    }

    /// Does what was asked.
    pub(crate) async fn run(self, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
        match self {
            // There is nothing to clean up: the first Ctrl-C ends it.
            Self::Status(args) => until(stop, status::run(args, screen)).await,
            Self::ProxyStatus(args) => until(stop, proxy_status::run(args, screen)).await,
            Self::Graph(args) => until(stop, graph::run(args, screen)).await,
            Self::Why(args) => until(stop, why::run(&args, screen)).await,
            Self::Get(args) => until(stop, get::run(args, screen)).await,
            Self::Logs(args) => until(stop, pod::logs(args, screen)).await,
            Self::Exec(args) => until(stop, pod::exec(args, screen)).await,
            Self::Demo(args) => demo::run(args, screen, stop).await,
            Self::Lab(command) => lab::run(command, screen, stop).await,
            Self::Init(args) => init::run(args, screen, stop).await,
            Self::CreateMesh(args) => create_mesh::run(args, screen, stop).await,
            Self::Plan(args) => plan::run(args, screen, stop).await,
            Self::Apply(args) => apply::apply(args, screen, stop).await,
            Self::Teardown(args) => apply::teardown(args, screen, stop).await,
            Self::Check(args) => check::run(args, screen, stop).await,
            Self::Bundle(args) => bundle::run(args, screen, stop).await,
            Self::Verify(args) => verify::run(args, screen, stop).await,
            Self::Cert(command) => cert::run(command, screen, stop).await,
            Self::Export(args) => export::run(&args, screen),
            Self::Cluster(command) => cluster::run(command, screen, stop).await,
            Self::Hub(command) => hub::run(command, screen, stop).await,
            Self::Upgrade(args) => upgrade::run(args, screen, stop).await,
            Self::Agent(args) => agent::run(args, screen, stop).await,
            Self::Operator(args) => operator::run(args, screen, stop).await,
            Self::Credential(command) => credential::run(command, screen).await,
            Self::Explain(args) => explain::run(&args, screen),
            Self::Control(args) => role::control(args, screen, stop).await,
            Self::Proxy(args) => role::proxy(args, screen, stop).await,
            Self::Completions(args) => completions::run(&args, screen),
            Self::Man(args) => man::run(&args, screen),
        }
    }
}

/// Does it until it is done, or somebody asks it to stop.
async fn until(stop: &Stop, doing: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    tokio::select! {
        biased;
        done = doing => done,
        () = stop.asked() => Err(Failure::interrupted()),
    }
}
