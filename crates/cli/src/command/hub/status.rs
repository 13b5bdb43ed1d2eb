//! How members are: as Karmada's columns say it, with the age of it, and whether agents are there.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use stolos_hub::member::{self, Standing};

use super::WhichArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::OutputArgs;
use crate::screen::{Screen, Tone};
use crate::view;

/// `stolos hub status`
#[derive(Args, Debug)]
#[command(after_help = "It ends with 2 where a member is not ready, or has no agent and should have one.")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    which: WhichArgs,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(args: &StatusArgs, screen: &Screen) -> Result<Exit, Failure> {
    let hub = args.which.client().await?;
    let (members, now) = member::standings(&hub).await?;
    if args.output.output.is_document() {
        screen.document(args.output.output, &json!({"members": members}))?;
    } else if members.is_empty() {
        screen.line("The hub has no members; `stolos hub join NAME --context CTX` makes one");
    } else {
        let columns = ["CLUSTER", "MODE", "VERSION", "READY", "SINCE", "AGENTS"].map(str::to_owned);
        let tone = |good: bool, text: &str| screen.data_tone(if good { Tone::Good } else { Tone::Bad }, text);
        let row = |member: &Standing| {
            let agents = match (member.agents, member.agents_age(now)) {
                (Some(0), age) => tone(false, &format!("cut {} ago", short(age))),
                (Some(count), age) => format!("{count}, since {}", short(age)),
                (None, _) => "-".to_owned(),
            };
            let version = if member.version.is_empty() { "-" } else { &member.version };
            vec![
                member.name.clone(),
                member.mode.clone(),
                version.to_owned(),
                tone(member.ready == "True", &member.ready),
                short(member.age(now)),
                agents,
            ]
        };
        screen.data(&view::rows(&columns, &members.iter().map(row).collect::<Vec<_>>(), false));
        for member in members.iter().filter(|member| !member.message.is_empty()) {
            screen.data(&format!("  {}: {}", member.name, member.message));
        }
    }
    Ok(if members.iter().all(Standing::is_well) { Exit::Good } else { Exit::Findings })
}

/// A time as kubectl prints ages, roughly: the larger it is, the less exact.
fn short(age: Option<Duration>) -> String {
    let Some(seconds) = age.map(|age| age.as_secs()) else { return "-".to_owned() };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => format!("{}m{}s", seconds / 60, seconds % 60),
        600..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_as_exact_as_they_need_be() {
        let all = [0, 119, 121, 601, 7200, 172_800].map(|seconds| short(Some(Duration::from_secs(seconds))));
        assert_eq!(all, ["0s", "119s", "2m1s", "10m", "2h", "2d"]);
        assert_eq!(short(None), "-");
    }
}
