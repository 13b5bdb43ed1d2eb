use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use stolos_cluster::{Kubeconfig, connect};
use stolos_hub::gate::agent::{self, Hub, Identity, News, Registering, Target};
use stolos_hub::{Error, member};
use stolos_serve::{HostNet, Stop};

use super::hub::JoiningArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::StateArgs;
use crate::screen::{Screen, Tone, elapsed};

/// `stolos agent`
#[derive(Args, Debug)]
pub(crate) struct AgentArgs {
    /// What the cluster is called in the hub
    name: String,

    /// Where the hub takes agents in, as `stolos hub token create` says it
    #[arg(long, value_name = "HOST:PORT")]
    hub: String,

    /// The one-time token, needed until the hub has let it in once
    #[arg(long, value_name = "TOKEN", env = "STOLOS_AGENT_TOKEN", hide_env_values = true, requires = "authority")]
    token: Option<String>,

    /// The fingerprint of the hub's authority
    #[arg(long, value_name = "sha256:HEX")]
    authority: Option<String>,

    /// The kubeconfig context of this cluster [default: its name in the hub]
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,

    /// The kubeconfig that the context is in [default: $KUBECONFIG, ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Where the agent keeps its certificate [default: ~/.local/state/stolos/agent-NAME]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    #[command(flatten)]
    joining: JoiningArgs,
}

pub(crate) async fn run(args: AgentArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let net = Arc::new(HostNet::default());
    let (host, port) = address(&args.hub)?;
    let hub = Hub { net, host, port };
    let kubeconfig = Kubeconfig::find(args.kubeconfig.as_deref(), None)?;
    let context = args.context.as_ref().unwrap_or(&args.name);
    let cluster = connect(&kubeconfig, context, &args.name).await?;
    let api = Target::of_url(&cluster.server)
        .ok_or_else(|| Failure::new(format!("`{}` is no URL of an API server", cluster.server)))?;
    let folder = StateArgs { state: args.data }.folder(&format!("agent-{}", args.name))?;
    let mut token = args.token;
    loop {
        let identity = match (Identity::load(&folder, SystemTime::now())?, token.take()) {
            (Some(identity), unused) => {
                token = unused;
                identity
            }
            (None, Some(token)) => {
                screen.line(format!("Registering {} with the hub at {}", args.name, args.hub));
                let registering = Registering {
                    token: stolos_pki::Secret::new(token),
                    // With a token there is an authority: clap says so.
                    fingerprint: args.authority.clone().unwrap_or_default(),
                    joining: args.joining.clone().of(&args.name),
                    credential: Some(member::credential(&cluster, &args.name).await?),
                };
                agent::register(&hub, registering, &folder).await?
            }
            (None, None) => {
                return Err(Failure::new(format!("the hub has not let {} in yet", args.name))
                    .hint("`stolos hub token create` prints the command with a token that does"));
            }
        };
        let good = screen.progress_tone(Tone::Good, "✓");
        let bad = screen.progress_tone(Tone::Bad, "✗");
        let news = |news| match news {
            News::Connected => screen.line(format!("{good} connected to {}", args.hub)),
            News::Lost { why, pause } => {
                screen.line(format!("{bad} not connected to {}: {why}; again in {}", args.hub, elapsed(pause)));
            }
        };
        match agent::run(hub.clone(), identity, &args.name, api.clone(), stop.clone(), news).await {
            Ok(()) => return Ok(Exit::Good),
            // What ended is kept no longer: a token that was given lets it in again.
            Err(ended @ Error::Ended(_)) => {
                Identity::forget(&folder)?;
                if token.is_none() {
                    return Err(Failure::from(ended).hint(format!(
                        "`stolos hub token create --rotate {}`, or without `--rotate` where it has left the hub, prints \
                         the command with a token that lets it in again",
                        args.name
                    )));
                }
                screen.line(format!("{bad} {ended}"));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn address(text: &str) -> Result<(String, u16), Failure> {
    let parts = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
    match parts {
        Some((host, port)) if !host.is_empty() => {
            Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
        }
        _ => Err(Failure::new(format!("`{text}` is no address of a hub"))
            .hint("write `HOST:PORT`, such as `hub.example.com:8443`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, expected) in [
            ("hub.example.com:8443", Some(("hub.example.com", 8443))),
            ("127.0.0.1:1", Some(("127.0.0.1", 1))),
            ("[::1]:2", Some(("::1", 2))),
            ("hub.example.com", None),
            (":1", None),
            ("a:b", None),
        ] {
            assert_eq!(address(text).ok(), expected.map(|(host, port)| (host.to_owned(), port)), "{text}");
        }
    }
}
