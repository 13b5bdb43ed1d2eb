//! `stolos hub up --kubeconfig`: one of several hubs on an API that is somebody else's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::FutureExt as _;
use stolos_cluster::objects::{self, Resource};
use stolos_hub::front::{Address, Front};
use stolos_hub::{Election, Pages, Part};
use stolos_k8s::meta;
use stolos_serve::{HostNet, Stop};

use super::{AGENTS, Held, LISTEN, UpArgs, door, names, proxy};
use crate::background;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::{Screen, Tone, elapsed};

pub(super) async fn run(
    args: &UpArgs,
    held: &Held,
    client: kube::Client,
    pages: Arc<Pages>,
    screen: &Screen,
    stop: &Stop,
) -> Result<Exit, Failure> {
    let began = Instant::now();
    let nodes = objects::list(&client, &Resource::named("v1", "Node")?, None, None).await?;
    if !nodes.is_empty() {
        screen.line(format!(
            "{} this API has nodes: a workload that is applied here also runs here, besides in the members",
            screen.progress_tone(Tone::Warn, "!")
        ));
    }
    if args.agents.is_none() && held.remembered(AGENTS).is_none() {
        let members = match objects::list(&client, &stolos_hub::kinds::clusters(), None, None).await {
            Err(error) if error.is_not_found() => Vec::new(),
            members => members?,
        };
        let dialling = members.iter().filter(|member| member["spec"]["syncMode"] == "Pull").map(meta::name);
        let dialling: Vec<_> = dialling.collect();
        if !dialling.is_empty() {
            screen.line(format!(
                "{} {} dial out, and nobody takes them in here: `--agents ADDRESS` does",
                screen.progress_tone(Tone::Warn, "!"),
                dialling.join(", ")
            ));
        }
    }
    let identity = stolos_cluster::lease::identity(args.identity.as_deref());
    let (front, serving, log) = match args.listen.or_else(|| held.remembered(LISTEN)) {
        None => {
            let stop = stop.clone();
            (None, async move { stop.asked().await }.boxed(), None)
        }
        Some(address) if address.ip().is_unspecified() && args.san.is_empty() => {
            return Err(Failure::new(format!("nobody can be told to dial {}", address.ip()))
                .hint("name what the API server and people dial: `--san NAME`; other hubs dial `--peer ADDRESS`"));
        }
        Some(address) => {
            let listener = held.listen(LISTEN, "--listen", address).await?;
            let (log, audit) = proxy::log(args.audit_log.as_deref(), &held.folder)?;
            let address = Address {
                listener,
                names: names(args, address),
                service: args.service.clone(),
                peer: args.peer,
                identity: identity.clone(),
            };
            let opened = Front::open(&client, address, audit, stop).await;
            let (front, serving) =
                opened.map_err(|error| Failure::caused(&error).while_doing("could not start the hub"))?;
            screen.line(format!(
                "  while this hub leads, members are reached at {}, and the API asks there before Karmada's kinds are written",
                front.address()
            ));
            (Some(front), serving, Some(log))
        }
    };
    let up = AtomicBool::new(false);
    let news = |part: Part<'_>| {
        let good = screen.progress_tone(Tone::Good, "✓");
        let said = match part {
            Part::Leads => format!("{good} this hub leads"),
            Part::StandsBy { leader } => format!("{good} standing by: {leader} leads"),
            Part::Fails { why } => format!("{} {why}; trying again", screen.progress_tone(Tone::Bad, "✗")),
        };
        screen.line(said);
        let is_up = !matches!(part, Part::Fails { .. });
        if is_up && !up.swap(true, Ordering::AcqRel) {
            screen.line(format!("  up after {}; it stays up until Ctrl-C", elapsed(began.elapsed())));
            if args.detached {
                screen.data(background::READY);
            }
        }
    };
    let election = Election {
        client,
        net: Arc::new(HostNet::default()),
        identity,
        front,
        door: Box::new(|| async { door(args, held).await.map_err(|failure| failure.to_string()) }.boxed()),
        patience: args.patience.settings(),
        placing: args.placing(),
        pages,
        news: Box::new(news),
    };
    let ((), ()) = tokio::join!(stolos_hub::elect(election, stop), serving);
    if let Some(log) = log {
        log.close().await;
    }
    screen.line("Stopping the hub; what is on the API and in its members stays");
    Ok(Exit::Good)
}
