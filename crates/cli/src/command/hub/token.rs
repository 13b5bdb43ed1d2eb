//! `stolos hub token`: what lets agents of clusters in that cannot be dialled.

use std::time::Duration;

use clap::{Args, Subcommand};
use stolos_hub::{gate, member};

use super::WhichArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::{Screen, count};

/// `stolos hub token`
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token that lets one agent in, once, and print the command that uses it
    Create(TokenArgs),
}

/// `stolos hub token create`
#[derive(Args, Debug)]
pub(crate) struct TokenArgs {
    /// What the cluster is, or will be, called in the hub: the token lets an agent of no other in
    name: String,

    /// For how many hours it is good
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8760))]
    ttl: u64,

    /// End the certificates of all agents that the member has had so far, at once
    #[arg(long)]
    rotate: bool,

    #[command(flatten)]
    which: WhichArgs,
}

pub(super) async fn create(args: &TokenArgs, screen: &Screen) -> Result<Exit, Failure> {
    let hub = args.which.client().await?;
    let Some(notice) = gate::notice(&hub).await? else {
        return Err(Failure::new("this hub takes no agents in").hint("`stolos hub up --agents ADDRESS` does"));
    };
    let hours = count(usize::try_from(args.ttl).unwrap_or(usize::MAX), "hour");
    let name = args.name.as_str();
    member::check_name(name)?;
    if args.rotate {
        gate::end(&hub, name).await?;
        screen.line(format!("The certificates of {name}'s agents have ended."));
    }
    let token = gate::token::create(&hub, Duration::from_secs(args.ttl * 3600), name).await?;
    screen.line(format!("In the cluster {name}, within {hours} and once:"));
    // Arguments of programs are there for everybody to see.
    screen.data(&format!(
        "STOLOS_AGENT_TOKEN={} stolos agent {name} --hub {} --authority {}",
        token.expose(),
        notice.address,
        notice.authority
    ));
    Ok(Exit::Good)
}
