//! `stolos hub up`: an API server for Karmada's kinds and the hub, in one process; or the hub alone ([`elected`]).

mod elected;
mod near;
mod patience;
mod proxy;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::Args;
use stolos_apiserver::Server;
use stolos_apiserver::runtime::ServiceResolver;
use stolos_cluster::near::Keeper;
use stolos_hub::divide::Algorithm;
use stolos_hub::front::Service;
use stolos_hub::{Asked, Door, Pages, Review, place};
use stolos_serve::{HostNet, Net as _, Stop, Stream};
use tokio::runtime::Runtime;

use super::held::{AGENTS, Held, LISTEN};
use super::which::{DataArgs, KUBECONFIG, existing};
use crate::background;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::file::{self, Eyes};
use crate::screen::{Screen, Tone, elapsed};
use near::Here;
use patience::PatienceArgs;

/// The first line of a kubeconfig that is a hub's.
const WRITTEN: &str = "# Written by stolos hub up";
/// How long a hub may take to come up.
const UP: Duration = Duration::from_secs(60);

/// `stolos hub up`
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    data: DataArgs,

    /// Where it listens [default: where it did before, else a free port of 127.0.0.1; with `--kubeconfig`: nowhere]. With
    /// `--kubeconfig` members are reached there, and that API asks there before Karmada's kinds are written
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,

    /// The Service of the cluster behind `--kubeconfig` that leads to `--listen`, for its API server, which otherwise dials the
    /// first `--san`
    #[arg(long, value_name = "NAMESPACE/NAME[:PORT]", requires = "kubeconfig", requires = "listen")]
    service: Option<Service>,

    /// Where other hubs on that API reach this one's `--listen` [default: the address that it listens on, else the first `--san`]
    #[arg(long, value_name = "IP", env = "POD_IP")]
    peer: Option<IpAddr>,

    /// Where agents come in of members that cannot be dialled [default: where they did before, else a free port beside
    /// the API; with `--kubeconfig`: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    agents: Option<SocketAddr>,

    /// Where /metrics, /healthz and /readyz are served [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<SocketAddr>,

    /// Another name or address that clients and agents use: goes into the certificates
    #[arg(long, value_name = "NAME|IP")]
    san: Vec<String>,

    /// A kubeconfig to write besides the hub's own; never one that is somebody else's
    #[arg(long, value_name = "FILE", conflicts_with = "kubeconfig")]
    kubeconfig_out: Option<PathBuf>,

    /// Run the controllers alone, on the Kubernetes API that this kubeconfig leads to; of several hubs there one acts, and
    /// the others stand by
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// The context in it [default: its current one]
    #[arg(long, value_name = "CONTEXT", requires = "kubeconfig")]
    context: Option<String>,

    /// Where it is written who asked what of which member through the hub [default: audit.jsonl in the hub's folder]
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,

    /// Whose algorithms choose policies and clusters and divide replicas: those of Karmada v1.18, or of v1.2
    #[arg(long, value_name = "VERSION", default_value = "v1.18", value_parser = ["v1.18", "v1.2"])]
    division: String,

    /// This hub's name in the Lease, to which it adds a random part [default: the host's]
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    identity: Option<String>,

    /// Let it go on in the background once it is up
    #[arg(long)]
    detach: bool,

    /// This is the process in the background
    #[arg(long, hide = true)]
    detached: bool,

    #[command(flatten, next_help_heading = "When a cluster is lost")]
    patience: PatienceArgs,
}

impl UpArgs {
    /// How it places.
    fn placing(&self) -> place::Settings {
        let algorithm = if self.division == "v1.2" { Algorithm::V1_2 } else { Algorithm::Newest };
        place::Settings { algorithm, ..place::Settings::default() }
    }
}

pub(super) async fn run(args: &UpArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    if args.detach { detach(args, screen, stop).await } else { up(args, screen, stop).await }
}

async fn detach(args: &UpArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let folder = args.data.folder()?;
    screen.line("Starting a hub in the background");
    let process = background::start("hub", &folder, UP, stop).await?;
    screen.line(format!("  {} up, with process {process}", screen.progress_tone(Tone::Good, "✓")));
    screen.line(format!("  `stolos hub down{}` ends it", args.data.flag()));
    if args.kubeconfig.is_none() {
        screen.data(&export(&folder.join(KUBECONFIG)));
    }
    Ok(Exit::Good)
}

fn export(kubeconfig: &Path) -> String {
    format!("export KUBECONFIG={}", stolos_plan::quoted(&kubeconfig.to_string_lossy()))
}

async fn up(args: &UpArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    if args.detached {
        // Away from the terminal: its Ctrl-C and its end are not ours.
        let _ = rustix::process::setsid();
    }
    let began = std::time::Instant::now();
    let held = Held::take(args.data.folder()?)?;
    let pages = pages(args, stop).await?;
    if let Some(file) = &args.kubeconfig {
        let client = existing(Some(file), args.context.as_deref()).await?;
        return elected::run(args, &held, client, pages, screen, stop).await;
    }
    let hosts = Arc::new(Hosts::default());
    let server = serve(args, &held, Arc::clone(&hosts)).await?;
    let net = Arc::new(HostNet::default());
    let door = door(args, &held).await?;
    let settings = stolos_hub::Settings {
        keeper: Keeper::near(server.client(), Arc::new(Here(server.near()))),
        net,
        door,
        admission: Some(Asked::Here { url: REVIEWS.to_owned() }),
        patience: args.patience.settings(),
        placing: args.placing(),
    };
    let (hub, _threads) = Threads::start(settings, stop).await?;
    let audit = proxy::serve(&server, &hub, args.audit_log.as_deref(), &held.folder)?;
    let _ = hosts.hub.set(hub.review());
    pages.acts(&hub);
    if args.detached {
        screen.data(background::READY);
    } else {
        screen.line(format!("{} up after {}", screen.progress_tone(Tone::Good, "✓"), elapsed(began.elapsed())));
        screen.data(&export(&held.folder.join(KUBECONFIG)));
        screen.line("The hub stays up until Ctrl-C.");
    }
    hub.ended().await;
    screen.line("Stopping the hub; what is in its folder and in its members stays");
    server.stop().await;
    audit.close().await;
    Ok(Exit::Good)
}

/// Threads of the hub's own. With thousands of workloads to look at it is busy for many seconds: whoever asks its API must not
/// wait for his turn behind each of them.
struct Threads(Option<Runtime>);

impl Threads {
    async fn start(settings: stolos_hub::Settings, stop: &Stop) -> Result<(stolos_hub::Running, Self), Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("hub").enable_all().build();
        let runtime = runtime.map_err(|error| Failure::caused(&error).while_doing("could not start the hub"))?;
        let handle = runtime.handle().clone();
        let threads = Self(Some(runtime));
        let stop = stop.clone();
        let started = match handle.spawn(async move { stolos_hub::start(settings, &stop).await }).await {
            Ok(started) => started.map_err(|error| Failure::caused(&error)),
            Err(ended) => Err(Failure::caused(&ended)),
        };
        Ok((started.map_err(|failure| failure.while_doing("could not start the hub"))?, threads))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // What is its own has ended by then, and nothing asynchronous may wait for a runtime.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// How much of the past the hub's API server keeps of each kind, in events and bytes. One policy may be for thousands of
/// workloads, each of which is written several times then: whoever follows them and falls behind has to look at all anew.
const WINDOW: (usize, usize) = (32_768, 32 << 20);

/// Where the hub's own API server asks the hub; nobody dials it.
const REVIEWS: &str = "https://hub.localhost/review";

/// The way from the hub's API server to webhooks: the hub itself, and those that a URL names. No Service of the hub has
/// anybody behind it.
#[derive(Default)]
struct Hosts {
    hub: OnceLock<Review>,
}

impl ServiceResolver for Hosts {
    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        service: &'a str,
        _: u16,
    ) -> futures::future::BoxFuture<'a, std::io::Result<Stream>> {
        let text = format!("nothing runs in a hub, so nobody is behind the Service {namespace}/{service}: write a url");
        Box::pin(async { Err(std::io::Error::new(std::io::ErrorKind::Unsupported, text)) })
    }

    fn dial_host<'a>(&'a self, host: &'a str, port: u16) -> futures::future::BoxFuture<'a, std::io::Result<Stream>> {
        Box::pin(async move { stolos_serve::net::reach(&HostNet::default(), host, port).await })
    }

    fn review(&self, url: &str, review: &serde_json::Value) -> Option<std::io::Result<serde_json::Value>> {
        let early = || std::io::Error::new(std::io::ErrorKind::NotConnected, "the hub is still coming up");
        (url == REVIEWS).then(|| self.hub.get().map(|hub| hub(review)).ok_or_else(early))
    }
}

/// What the hub says of itself, served where it was asked for.
async fn pages(args: &UpArgs, stop: &Stop) -> Result<Arc<Pages>, Failure> {
    let pages = Arc::new(Pages::default());
    if let Some(address) = args.metrics {
        let listener = HostNet::new(address.ip()).bind(address.port()).await.map_err(|error| {
            Failure::caused(&error)
                .while_doing(format!("could not listen on {address}"))
                .hint("name another address with `--metrics ADDRESS`")
        })?;
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "serving /metrics, /healthz and /readyz");
        }
        tokio::spawn(Arc::clone(&pages).serve(listener, stop.clone()));
    }
    Ok(pages)
}

/// Where agents come in: beside the API where nothing is said, and nowhere beside somebody else's.
async fn door(args: &UpArgs, held: &Held) -> Result<Option<Door>, Failure> {
    let wanted = args.agents.or_else(|| held.remembered(AGENTS));
    let beside = || args.kubeconfig.is_none().then(|| held.remembered(LISTEN)).flatten();
    let Some(address) = wanted.or_else(|| Some((beside()?.ip(), 0).into())) else { return Ok(None) };
    let listener = held.listen(AGENTS, "--agents", address).await?;
    Ok(Some(Door { listener, names: names(args, address) }))
}

/// What this hub is called at an address. What people say comes first: that is what others are told.
fn names(args: &UpArgs, address: SocketAddr) -> Vec<String> {
    let mut names = args.san.clone();
    if !address.ip().is_unspecified() {
        names.push(address.ip().to_string());
    }
    names.push("localhost".to_owned());
    names
}

/// The hub's own API server, and the kubeconfigs for it.
async fn serve(args: &UpArgs, held: &Held, hosts: Arc<Hosts>) -> Result<Server, Failure> {
    let address = args.listen.or_else(|| held.remembered(LISTEN)).unwrap_or((Ipv4Addr::LOCALHOST, 0).into());
    let listener = held.listen(LISTEN, "--listen", address).await?;
    let mut builder = Server::builder().data_dir(&held.folder).listener(listener).version_suffix("stolos-hub");
    builder = builder.service_resolver(hosts).window(WINDOW.0, WINDOW.1);
    for name in &args.san {
        builder = match name.parse::<IpAddr>() {
            Ok(address) => builder.address(address),
            Err(_) => builder.name(name),
        };
    }
    let server =
        builder.start().await.map_err(|error| Failure::caused(&error).while_doing("could not start the hub"))?;
    let config = server.kubeconfig("hub");
    let text = serde_saphyr::to_string(&config).map_err(|error| Failure::caused(&error))?;
    let text = format!("{WRITTEN}\n{text}");
    file::replace(&held.folder.join(KUBECONFIG), &text, Eyes::Owner)?;
    if let Some(path) = &args.kubeconfig_out {
        let ours = match std::fs::read_to_string(path) {
            Ok(text) => text.starts_with(WRITTEN),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        if !ours {
            return Err(Failure::new(format!("{} is left alone, as no hub has written it", path.display()))
                .hint("name another file with `--kubeconfig-out FILE`"));
        }
        file::replace(path, &text, Eyes::Owner)?;
    }
    Ok(server)
}
