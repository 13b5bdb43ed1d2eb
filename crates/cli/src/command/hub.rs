mod elected;
mod joining;
mod kubeconfig;
mod mesh;
mod proxy;
mod status;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use clap::{Args, Subcommand};
use stolos_apiserver::Server;
use stolos_apiserver::runtime::ServiceResolver;
use stolos_cluster::{Kubeconfig, connect};
use stolos_hub::divide::Algorithm;
use stolos_hub::front::{self, Service};
use stolos_hub::member;
use stolos_hub::model::PurgeMode;
use stolos_hub::{Asked, Door, Pages, Review, everywhere, evict, gate, place};
use stolos_serve::{HostNet, Listener, Net as _, Stop, Stream};

use crate::background;
use crate::command::interpret::{self, InterpretArgs};
use crate::command::until;
use crate::command::why::{self, SimulateArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::file::{self, Eyes};
use crate::input::StateArgs;
use crate::screen::{Screen, Tone, count, elapsed};
use mesh::MeasuredArgs;

pub(crate) use joining::JoiningArgs;

/// `stolos hub`
#[derive(Debug, Subcommand)]
pub(crate) enum HubCommand {
    /// Start a hub: an API server for Karmada's kinds and its controllers, in one process
    Up(Box<UpArgs>),
    /// End a hub; what is in its folder, and in the members, stays
    Down(DownArgs),
    /// Make a cluster a member that the hub talks to
    Join(JoinArgs),
    /// Take a member out of the hub, also one that is dead
    Unjoin(UnjoinArgs),
    /// Say how members are: ready or not, since when, and whether their agents are there
    Status(status::StatusArgs),
    /// Write a kubeconfig for kubectl in members, through the hub
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Say what the loss of members would do, without touching anything
    Simulate(SimulateArgs),
    /// Try the scripts of a ResourceInterpreterCustomization, without a hub
    Interpret(InterpretArgs),
    /// Print the hub's kubeconfig, which has all rights
    Config(ConfigArgs),
    /// Tell the hub how far its members are from each other, as `stolos verify -o json` measured it
    Measured(MeasuredArgs),
    /// Let in agents of clusters that cannot be dialled
    #[command(subcommand)]
    Token(TokenCommand),
}

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

/// Where a hub keeps what it has.
#[derive(Args, Clone, Debug)]
pub(crate) struct DataArgs {
    /// The hub's folder: its objects, its authority, its kubeconfig [default: ~/.local/state/stolos/hub]
    #[arg(long, value_name = "DIR", env = "STOLOS_HUB_DATA")]
    data: Option<PathBuf>,
}

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

/// How patient a hub is with its members: Karmada's flags.
#[derive(Args, Clone, Debug)]
pub(crate) struct PatienceArgs {
    /// How often a member is asked how it is
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    cluster_status_update_frequency: Duration,

    /// How long a member must have been unwell until it counts as not ready
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    cluster_failure_threshold: Duration,

    /// How long it must have been well until it counts as ready again
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    cluster_success_threshold: Duration,

    /// How long the agent of a member may be silent
    #[arg(long, value_name = "TIME", default_value = "40s", value_parser = time)]
    cluster_monitor_grace_period: Duration,

    /// How long a member may not be ready until its workloads leave it, if their policy does not tolerate it longer
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    failover_eviction_timeout: Duration,

    /// Whether workloads leave clusters with a `NoExecute` taint at all (Karmada: false)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    enable_no_execute_taint_eviction: bool,

    /// How the old copy goes where the policy does not say it
    #[arg(long, value_name = "MODE", default_value = "Gracefully", value_parser = ["Gracefully", "Directly"])]
    no_execute_taint_eviction_purge_mode: String,

    /// How many workloads leave their clusters in a second
    #[arg(long, value_name = "NUMBER", default_value_t = 0.5, value_parser = rate)]
    resource_eviction_rate: f64,

    /// How long a copy that is to leave a cluster waits for all others to be well; it goes later where too few are ready
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    graceful_eviction_timeout: Duration,
}

impl PatienceArgs {
    fn settings(&self) -> evict::Settings {
        evict::Settings {
            status_update_frequency: self.cluster_status_update_frequency,
            failure_threshold: self.cluster_failure_threshold,
            success_threshold: self.cluster_success_threshold,
            monitor_grace_period: self.cluster_monitor_grace_period,
            failover_eviction_timeout: self.failover_eviction_timeout,
            evicts: self.enable_no_execute_taint_eviction,
            purge_mode: match self.no_execute_taint_eviction_purge_mode.as_str() {
                "Directly" => PurgeMode::Directly,
                _ => PurgeMode::Gracefully,
            },
            eviction_rate: self.resource_eviction_rate,
            graceful_eviction_timeout: self.graceful_eviction_timeout,
        }
    }
}

/// A time, as Karmada's flags have it.
fn time(text: &str) -> Result<Duration, String> {
    let parse = || {
        let mut rest = text;
        let mut all = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
            let (number, more) = rest.split_at(digits);
            let number: u64 = number.parse().ok()?;
            let unit = more.find(|c: char| c.is_ascii_digit()).unwrap_or(more.len());
            let (unit, more) = more.split_at(unit);
            all = all.checked_add(match unit {
                "ms" => Duration::from_millis(number),
                "s" => Duration::from_secs(number),
                "m" => Duration::from_secs(number.checked_mul(60)?),
                "h" => Duration::from_secs(number.checked_mul(3600)?),
                _ => return None,
            })?;
            rest = more;
        }
        Some(all).filter(|all| !all.is_zero() && *all <= Duration::from_secs(86_400 * 30))
    };
    parse().ok_or_else(|| "write a time, as `30s`, `500ms` or `1m30s`".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "write a number, as `0.5`".to_owned())?;
    if rate.is_finite() && (0.0..=10_000.0).contains(&rate) { Ok(rate) } else { Err("write 0 to 10000".to_owned()) }
}

/// `stolos hub down`
#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    data: DataArgs,

    /// How long to wait for its end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

/// Which hub.
#[derive(Args, Clone, Debug)]
pub(crate) struct WhichArgs {
    #[command(flatten)]
    data: DataArgs,

    /// The hub's kubeconfig, where it is not in a folder of this machine
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    hub_kubeconfig: Option<PathBuf>,

    /// The context in it [default: its current one]
    #[arg(long, value_name = "CONTEXT", requires = "hub_kubeconfig")]
    hub_context: Option<String>,
}

/// `stolos hub config`
#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    data: DataArgs,

    /// The URL that its reader reaches the hub by [default: where it listens]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
}

/// `stolos hub join`
#[derive(Args, Debug)]
pub(crate) struct JoinArgs {
    /// What the cluster is called in the hub
    name: String,

    /// The kubeconfig context it is reached by [default: its name in the hub]
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,

    /// The kubeconfig that the context is in [default: $KUBECONFIG, ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    #[command(flatten)]
    joining: JoiningArgs,

    /// How long to wait until it is ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,

    #[command(flatten)]
    which: WhichArgs,
}

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

pub(crate) async fn run(command: HubCommand, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    match command {
        HubCommand::Up(args) if args.detach => detach(&args, screen, stop).await,
        HubCommand::Up(args) => up(&args, screen, stop).await,
        HubCommand::Down(args) => until(stop, down(&args, screen)).await,
        HubCommand::Config(args) => config(&args, screen),
        HubCommand::Join(args) => until(stop, join(args, screen)).await,
        HubCommand::Unjoin(args) => until(stop, unjoin(&args, screen)).await,
        HubCommand::Token(TokenCommand::Create(args)) => until(stop, token(&args, screen)).await,
        HubCommand::Status(args) => until(stop, status::run(&args, screen)).await,
        HubCommand::Kubeconfig(args) => until(stop, kubeconfig::run(args, screen)).await,
        HubCommand::Measured(args) => until(stop, mesh::measured(&args, screen)).await,
        HubCommand::Simulate(args) => until(stop, why::simulate(&args, screen)).await,
        HubCommand::Interpret(args) => interpret::run(&args, screen),
    }
}

impl DataArgs {
    fn folder(&self) -> Result<PathBuf, Failure> {
        StateArgs { state: self.data.clone() }.folder("hub")
    }

    /// The flag that names the same folder again.
    fn flag(&self) -> String {
        self.data
            .as_ref()
            .map(|data| format!(" --data {}", stolos_plan::quoted(&data.to_string_lossy())))
            .unwrap_or_default()
    }
}

const LOCK: &str = "hub.lock";
const KUBECONFIG: &str = "kubeconfig";
/// Where the hub listened last.
const LISTEN: &str = "listen";
/// Where it last took agents in.
const AGENTS: &str = "agents";
/// The first line of a kubeconfig that is a hub's.
const WRITTEN: &str = "# Written by stolos hub up";
/// How long a hub may take to come up.
const UP: Duration = Duration::from_secs(60);

/// A hub's folder, held by this process.
struct Held {
    folder: PathBuf,
    _lock: std::fs::File,
}

impl Held {
    fn take(folder: PathBuf) -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt as _;
        let failed = |error: std::io::Error| {
            Failure::caused(&error).while_doing(format!("could not use the folder {}", folder.display()))
        };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        let options = &mut std::fs::OpenOptions::new();
        let mut lock =
            options.create(true).truncate(false).write(true).read(true).open(folder.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(Failure::new(format!("a hub runs in {} already", folder.display()))
                    .hint("`stolos hub down` ends it; `--data DIR` is another"));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { folder, _lock: lock })
    }

    /// Where a socket was the last time.
    fn remembered(&self, file: &str) -> Option<SocketAddr> {
        std::fs::read_to_string(self.folder.join(file)).ok()?.trim().parse().ok()
    }

    /// A socket where the hub is to listen, which it will find again in `file`.
    async fn listen(&self, file: &str, flag: &str, address: SocketAddr) -> Result<Listener, Failure> {
        let failed = |error: std::io::Error| {
            Failure::caused(&error)
                .while_doing(format!("could not listen on {address}"))
                .hint(format!("name another address with `{flag} ADDRESS`; who uses the old one then needs it, too"))
        };
        let socket = tokio::net::TcpListener::bind(address).await.map_err(failed)?;
        let bound = socket.local_addr().map_err(failed)?;
        file::replace(&self.folder.join(file), &format!("{bound}\n"), Eyes::Owner)?;
        Ok(Listener::from(socket))
    }
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
        client: server.client(),
        net,
        door,
        admission: Some(Asked::Here { url: REVIEWS.to_owned() }),
        patience: args.patience.settings(),
        placing: args.placing(),
    };
    let hub = stolos_hub::start(settings, stop).await;
    let hub = hub.map_err(|error| Failure::caused(&error).while_doing("could not start the hub"))?;
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
    builder = builder.service_resolver(hosts);
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

/// A client of an API that is somebody else's.
async fn existing(file: Option<&Path>, context: Option<&str>) -> Result<kube::Client, Failure> {
    let kubeconfig = Kubeconfig::find(file, None)?;
    let context = match context.or(kubeconfig.current_context()) {
        Some(context) => context.to_owned(),
        None => return Err(Failure::new("the kubeconfig has no current context").hint("name one with `--context`")),
    };
    Ok(connect(&kubeconfig, &context, &context).await?.client)
}

async fn down(args: &DownArgs, screen: &Screen) -> Result<Exit, Failure> {
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

impl WhichArgs {
    /// The hub's kubeconfig, and the context in it where it is not the current one.
    fn kubeconfig(&self) -> Result<(PathBuf, Option<String>), Failure> {
        if let Some(file) = &self.hub_kubeconfig {
            return Ok((file.clone(), self.hub_context.clone()));
        }
        let file = self.data.folder()?.join(KUBECONFIG);
        if !file.is_file() {
            return Err(Failure::new(format!("no hub was ever up in {}", file.parent().unwrap_or(&file).display()))
                .hint("`stolos hub up --detach` starts one; `--data DIR` or `--hub-kubeconfig FILE` name another"));
        }
        Ok((file, None))
    }

    pub(crate) async fn client(&self) -> Result<kube::Client, Failure> {
        let (file, context) = self.kubeconfig()?;
        existing(Some(&file), context.as_deref()).await
    }

    /// What serves the members of the hub whose client `hub` is, if that is not the hub's own API.
    pub(crate) async fn notice(&self, hub: &kube::Client) -> Result<Option<front::Notice>, Failure> {
        // One in a folder of this machine has an API of its own.
        if self.hub_kubeconfig.is_none() {
            return Ok(None);
        }
        match front::notice(hub).await {
            // Beside somebody else's API everybody who is known may read it; a hub's own gives nobody that right.
            Err(stolos_hub::Error::Cluster(error)) if error.is_forbidden() => Ok(None),
            notice => Ok(notice?),
        }
    }

    /// A client of what serves members, with `below` behind its address.
    async fn serving(&self, below: &str) -> Result<kube::Client, Failure> {
        let (file, context) = self.kubeconfig()?;
        let kubeconfig = Kubeconfig::find(Some(&file), None)?;
        let Some(context) = context.as_deref().or(kubeconfig.current_context()) else {
            return Err(Failure::new("the kubeconfig has no current context").hint("name one with `--hub-context`"));
        };
        let mut config = kubeconfig.context(context).await?;
        let net = Arc::new(HostNet::default());
        let mut hub = config.cluster_url.to_string();
        let api = stolos_cluster::client(config.clone(), net.clone())?;
        if let Some(front::Notice { address, authority }) = self.notice(&api).await? {
            hub = format!("https://{address}");
            let authority = stolos_pki::Roots::from_pem(&authority).map_err(|error| {
                Failure::caused(&error).while_doing("could not use what the hub says of its address")
            })?;
            config.root_cert = Some(authority.certificates().iter().map(|one| one.der().to_vec()).collect());
            config.tls_server_name = None;
            config.accept_invalid_certs = false;
            config.proxy_url = None;
        }
        let server = format!("{}{below}", hub.trim_end_matches('/'));
        config.cluster_url = server.parse().map_err(|_| Failure::new(format!("`{server}` is no URL")))?;
        Ok(stolos_cluster::client(config, net)?)
    }

    /// A client of a member, as the hub serves it.
    pub(crate) async fn member(&self, name: &str) -> Result<kube::Client, Failure> {
        self.serving(&everywhere::proxy(name)).await
    }

    /// A client of all members, as the hub serves them below `clusters/NAME/proxy`.
    pub(crate) async fn members(&self) -> Result<kube::Client, Failure> {
        self.serving("").await
    }
}

/// Prints the kubeconfig of a hub's folder, for who is to reach it by another address.
fn config(args: &ConfigArgs, screen: &Screen) -> Result<Exit, Failure> {
    let path = args.data.folder()?.join(KUBECONFIG);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Failure::caused(&error)
            .while_doing(format!("could not read {}", path.display()))
            .hint("`stolos hub up` writes it; `--data DIR` names another hub's folder")
    })?;
    let Some(server) = &args.server else {
        screen.data(text.trim_end());
        return Ok(Exit::Good);
    };
    let host = server.strip_prefix("https://").unwrap_or_default();
    if host.is_empty() || host.starts_with(['/', ':']) || host.contains(char::is_whitespace) {
        return Err(Failure::new(format!("`{server}` is no address of a hub"))
            .hint("write `https://HOST[:PORT]`, with a name that the hub was told (`hub up --san NAME`)"));
    }
    let mut config: serde_json::Value = serde_saphyr::from_str(&text).map_err(|error| Failure::caused(&error))?;
    for cluster in config["clusters"].as_array_mut().into_iter().flatten() {
        cluster["cluster"]["server"] = server.as_str().into();
    }
    screen.data(serde_saphyr::to_string(&config).map_err(|error| Failure::caused(&error))?.trim_end());
    Ok(Exit::Good)
}

async fn join(args: JoinArgs, screen: &Screen) -> Result<Exit, Failure> {
    let hub = args.which.client().await?;
    let kubeconfig = Kubeconfig::find(args.kubeconfig.as_deref(), None)?;
    let context = args.context.as_ref().unwrap_or(&args.name);
    let cluster = connect(&kubeconfig, context, &args.name).await?;
    screen.line(format!("Joining {} ({})", args.name, cluster.server));
    member::join(&hub, &cluster, &args.joining.of(&args.name)).await?;
    let patience = Duration::from_secs(args.timeout);
    member::ready(&hub, &args.name, patience).await?;
    screen.line(format!("  {} {} is a member, and ready", screen.progress_tone(Tone::Good, "✓"), args.name));
    Ok(Exit::Good)
}

async fn unjoin(args: &UnjoinArgs, screen: &Screen) -> Result<Exit, Failure> {
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

async fn token(args: &TokenArgs, screen: &Screen) -> Result<Exit, Failure> {
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
