//! `stolos hub down`: the end of a hub in the background.

use std::time::Duration;

use clap::Args;

use super::held::LOCK;
use super::which::DataArgs;
use crate::background;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::{Screen, elapsed};

/// `stolos hub down`
#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    data: DataArgs,

    /// How long to wait for its end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

pub(super) async fn run(args: &DownArgs, screen: &Screen) -> Result<Exit, Failure> {
    let folder = args.data.folder()?;
    let lock = folder.join(LOCK);
    if !background::is_held(&lock) {
        screen.line(format!("no hub runs in {}", folder.display()));
        return Ok(Exit::Good);
    }
    let process = std::fs::read_to_string(&lock).ok().and_then(|text| text.trim().parse().ok());
    let Some(process) = process.and_then(rustix::process::Pid::from_raw) else {
        return Err(Failure::new(format!("{} does not say which process the hub is", lock.display())));
    };
    screen.line(format!("Ending the hub in {}", folder.display()));
    rustix::process::kill_process(process, rustix::process::Signal::TERM)
        .map_err(|error| Failure::caused(&error).while_doing("could not ask the hub to end"))?;
    let patience = Duration::from_secs(args.timeout);
    let ended = async {
        while background::is_held(&lock) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(patience, ended).await.map_err(|_| {
        Failure::new(format!("the hub has not ended after {}", elapsed(patience))).exit_with(Exit::TimedOut)
    })?;
    screen.line("it has ended; what is in its folder stays for the next time");
    Ok(Exit::Good)
}
