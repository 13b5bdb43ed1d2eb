use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use stolos_cluster::{Kubeconfig, connect};
use stolos_hub::gate::agent::{self, Hub, Identity, News, Registering, Store, Target};
use stolos_hub::{Error, gate, member};
use stolos_serve::{HostNet, Stop};

use super::hub::JoiningArgs;
use super::role::container;
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
    #[arg(long, value_name = "HOST:PORT", required_unless_present = "in_cluster")]
    hub: Option<String>,

    /// This is a pod of the cluster, as `hub.join: agent` makes it: all that it is to know is in a Secret of its own
    #[arg(long, conflicts_with_all = ["hub", "token", "authority", "context", "kubeconfig", "data"])]
    in_cluster: bool,

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
    if args.in_cluster {
        let words = ["agent", args.name.as_str(), "--in-cluster"].map(str::to_owned);
        gate::pod::run(container(words.to_vec(), screen), stop.clone()).await?;
        return Ok(Exit::Good);
    }
    let net = Arc::new(HostNet::default());
    // Without `--in-cluster` there is one: clap says so.
    let at = args.hub.unwrap_or_default();
    let (host, port) = address(&at)?;
    let hub = Hub { net, host, port };
    let kubeconfig = Kubeconfig::find(args.kubeconfig.as_deref(), None)?;
    let context = args.context.as_ref().unwrap_or(&args.name);
    let cluster = connect(&kubeconfig, context, &args.name).await?;
    let api = Target::of_url(&cluster.server)
        .ok_or_else(|| Failure::new(format!("`{}` is no URL of an API server", cluster.server)))?;
    let store = Store::Folder(StateArgs { state: args.data }.folder(&format!("agent-{}", args.name))?);
    let again = format!(
        "at the hub, `stolos hub token create {}` prints the command with a token that lets it in again",
        args.name
    );
    let registered = match args.token {
        Some(token) => {
            let token = stolos_pki::Secret::new(token);
            // With a token there is an authority: clap says so.
            let fingerprint = args.authority.clone().unwrap_or_default();
            let who = (args.name.as_str(), member::identity(&cluster.client).await?);
            member::check_name(who.0)?;
            match agent::may_register(&hub, &token, &fingerprint, (who.0, &who.1)).await {
                Ok(()) => {
                    screen.line(format!("Registering {} with the hub at {at}", args.name));
                    let joining = args.joining.of(&args.name);
                    let credential = Some(member::credential(&cluster, &args.name).await?);
                    let registering = Registering { token, fingerprint, joining, credential };
                    Ok(agent::register(&hub, registering, &store).await?)
                }
                // It was used the last time, or is another's: what it brought then may still be good.
                Err(refused @ Error::Token(_)) => Err(Some(refused)),
                Err(error) => return Err(error.into()),
            }
        }
        None => Err(None),
    };
    let identity = match registered {
        Ok(identity) => identity,
        Err(refused) => match Identity::load(&store, &args.name, SystemTime::now()).await {
            Ok(Some(identity)) => identity,
            Ok(None) => {
                let none = || Failure::new(format!("the hub has not let {} in yet", args.name));
                return Err(refused.map_or_else(none, Failure::from).hint(again));
            }
            Err(ended @ Error::Ended(_)) => return Err(Failure::from(refused.unwrap_or(ended)).hint(again)),
            Err(error) => return Err(error.into()),
        },
    };
    let good = screen.progress_tone(Tone::Good, "✓");
    let bad = screen.progress_tone(Tone::Bad, "✗");
    let news = |news| match news {
        News::Connected => screen.line(format!("{good} connected to {at}")),
        News::Lost { why, pause } => {
            screen.line(format!("{bad} not connected to {at}: {why}; again in {}", elapsed(pause)));
        }
    };
    match agent::run(hub, identity, &args.name, api, stop.clone(), news).await {
        Ok(()) => Ok(Exit::Good),
        Err(ended @ Error::Ended(_)) => {
            // What ended is kept no longer.
            store.forget().await?;
            Err(Failure::from(ended).hint(again))
        }
        Err(error) => Err(error.into()),
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
