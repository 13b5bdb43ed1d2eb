//! An agent in a pod of its cluster: where its hub is, the token that lets it in, and its certificate are in one Secret,
//! which is all that it may read and change.
//!
//! Whoever brings another token there is obeyed: also when one was used up by a pod that ended before it kept what it got.

use std::time::{Duration, SystemTime};

use stolos_pki::Secret;
use stolos_serve::{Container, Stop};
use stolos_tunnel::agent::Target;

use super::agent::{self, Hub, Identity, News, Registering};
use super::store::{Store, text};
use crate::Error;
use crate::member::{AGENT, AGENT_NAMESPACE, Joining};

/// Between two looks at a Secret that does not say enough: the first, and the longest.
const SOON: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_secs(15);

/// Runs `agent NAME --in-cluster`, until `stop`.
///
/// # Errors
///
/// When the arguments name no member, or there is no cluster around it.
pub async fn run(container: Container, stop: Stop) -> Result<(), Error> {
    let args: Vec<&str> = container.args.iter().map(String::as_str).filter(|arg| *arg != "--in-cluster").collect();
    let ["agent", name] = args[..] else {
        return Err(Error::Agents(format!("`{}` is no `agent NAME --in-cluster`", container.args.join(" "))));
    };
    let config = stolos_cluster::in_cluster(&container)?;
    let api = Target::of_url(&config.cluster_url.to_string())
        .ok_or_else(|| Error::Agents(format!("`{}` is no URL of an API server", config.cluster_url)))?;
    let client = stolos_cluster::client(config, std::sync::Arc::clone(&container.net))?;
    let namespace = container.var("POD_NAMESPACE").unwrap_or(AGENT_NAMESPACE).to_owned();
    let store = Store::Secret { client, namespace, name: AGENT.to_owned() };
    let output = &container.output;
    let mut pause = SOON;
    let mut said = String::new();
    while !stop.is_asked() {
        match turn(&container, &store, name, &api, &stop, &mut pause).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                let now = error.to_string();
                if now != said {
                    output.line(format!("not let in: {now}"));
                    said = now;
                }
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(rand::random_range(1.0..1.5))) => {}
            () = stop.asked() => {}
        }
        pause = (pause * 2).min(LATE);
    }
    Ok(())
}

/// One time through: by what it kept, else by a token.
async fn turn(
    container: &Container,
    store: &Store,
    name: &str,
    api: &Target,
    stop: &Stop,
    pause: &mut Duration,
) -> Result<(), Error> {
    let secret = store.secret().await?;
    let need = |key: &str| {
        text(&secret, key).ok_or_else(|| Error::Agents(format!("Secret {AGENT} has no `{key}` yet: apply brings it")))
    };
    let (address, authority) = (need("hub")?, need("authority")?);
    let (host, port) = address
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?)))
        .ok_or_else(|| Error::Agents(format!("`{address}` is no address of a hub")))?;
    let hub = Hub { net: std::sync::Arc::clone(&container.net), host, port };
    let kept = match Identity::load(store, name, SystemTime::now()).await {
        Err(Error::Ended(why)) => {
            container.output.line(why);
            None
        }
        kept => kept?,
    };
    let identity = match kept {
        Some(identity) => identity,
        None => {
            let joining = Joining { name: name.to_owned(), ..Joining::default() };
            let token = Secret::new(need("token")?);
            let registering = Registering { token, fingerprint: authority, joining, credential: None };
            agent::register(&hub, registering, store).await?
        }
    };
    let output = container.output.clone();
    let news = |news| match news {
        News::Connected => output.line(format!("connected to {address}")),
        News::Lost { why, pause } => {
            output.line(format!("not connected to {address}: {why}; again in {:.1} s", pause.as_secs_f64()));
        }
    };
    *pause = SOON;
    let ended = agent::run(hub, identity, name, api.clone(), stop.clone(), news).await;
    if let Err(Error::Ended(_)) = &ended {
        // What ended is kept no longer: a token lets it in again.
        store.forget().await?;
    }
    ended
}
