//! `stolos hub unjoin`: a member leaves, also one that is dead; what is left in it is said.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use stolos_hub::member;
use stolos_serve::HostNet;

use super::WhichArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::{Screen, Tone, count};

/// `stolos hub unjoin`
#[derive(Args, Debug)]
pub(crate) struct UnjoinArgs {
    /// What the cluster is called in the hub
    name: String,

    /// How long to wait until what the hub brought is gone, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,

    #[command(flatten)]
    which: WhichArgs,
}

pub(super) async fn run(args: &UnjoinArgs, screen: &Screen) -> Result<Exit, Failure> {
    let hub = args.which.client().await?;
    screen.line(format!("Taking {} out of the hub", args.name));
    let net = Arc::new(HostNet::default());
    let left = member::unjoin(&hub, &args.name, net, Duration::from_secs(args.timeout)).await?;
    screen.line(format!("  {} {} has left the hub", screen.progress_tone(Tone::Good, "✓"), args.name));
    if !left.objects.is_empty() {
        screen.data(&format!("left in {}: {}", args.name, count(left.objects.len(), "object")));
        for object in &left.objects {
            screen.data(&format!("  {object}"));
        }
    }
    if let Some(why) = &left.account {
        screen.data(&format!(
            "the hub's account in {} is still there ({why}); with it back: kubectl delete clusterrole {}",
            args.name,
            member::role(&args.name)
        ));
    }
    Ok(if left == member::Left::default() { Exit::Good } else { Exit::Findings })
}
