//! `stolos hub`: a hub, its members, and who is let in.

mod config;
mod down;
mod held;
mod join;
mod joining;
mod kubeconfig;
mod mesh;
mod status;
mod token;
mod unjoin;
mod up;
mod which;

use clap::Subcommand;
use stolos_serve::Stop;

use crate::command::interpret::{self, InterpretArgs};
use crate::command::until;
use crate::command::why::{self, SimulateArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;
use token::TokenCommand;

pub(crate) use joining::JoiningArgs;
pub(crate) use which::WhichArgs;

/// `stolos hub`
#[derive(Debug, Subcommand)]
pub(crate) enum HubCommand {
    /// Start a hub: an API server for Karmada's kinds and its controllers, in one process
    Up(Box<up::UpArgs>),
    /// End a hub; what is in its folder, and in the members, stays
    Down(down::DownArgs),
    /// Make a cluster a member that the hub talks to
    Join(join::JoinArgs),
    /// Take a member out of the hub, also one that is dead
    Unjoin(unjoin::UnjoinArgs),
    /// Say how members are: ready or not, since when, and whether their agents are there
    Status(status::StatusArgs),
    /// Write a kubeconfig for kubectl in members, through the hub
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Say what the loss of members would do, without touching anything
    Simulate(SimulateArgs),
    /// Try the scripts of a ResourceInterpreterCustomization, without a hub
    Interpret(InterpretArgs),
    /// Print the hub's kubeconfig, which has all rights
    Config(config::ConfigArgs),
    /// Tell the hub how far its members are from each other, as `stolos verify -o json` measured it
    Measured(mesh::MeasuredArgs),
    /// Let in agents of clusters that cannot be dialled
    #[command(subcommand)]
    Token(TokenCommand),
}

pub(crate) async fn run(command: HubCommand, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    match command {
        HubCommand::Up(args) => up::run(&args, screen, stop).await,
        HubCommand::Down(args) => until(stop, down::run(&args, screen)).await,
        HubCommand::Config(args) => config::run(&args, screen),
        HubCommand::Join(args) => until(stop, join::run(args, screen)).await,
        HubCommand::Unjoin(args) => until(stop, unjoin::run(&args, screen)).await,
        HubCommand::Token(TokenCommand::Create(args)) => until(stop, token::create(&args, screen)).await,
        HubCommand::Status(args) => until(stop, status::run(&args, screen)).await,
        HubCommand::Kubeconfig(args) => until(stop, kubeconfig::run(args, screen)).await,
        HubCommand::Measured(args) => until(stop, mesh::measured(&args, screen)).await,
        HubCommand::Simulate(args) => until(stop, why::simulate(&args, screen)).await,
        HubCommand::Interpret(args) => interpret::run(&args, screen),
    }
}
