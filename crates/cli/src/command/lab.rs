use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use stolos_lab::catalogue::{Envoy, Image, Launch};
use stolos_lab::{EnvoyFor, Fault, Lab, LabCluster, LabConfig, socket};
use stolos_serve::Stop;
use stolos_spec::{MeshName, from_contexts, mesh_yaml};

use crate::background;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{MeshArgs, OutputArgs, StateArgs, ToldArgs};
use crate::screen::{Screen, Tone, count, elapsed};

/// `stolos lab`
#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Start clusters in one process: those a mesh file names, or so many
    Up(UpArgs),
    /// Open an archive of `stolos bundle` as clusters to look around in; nothing runs in them
    Load(LoadArgs),
    /// End a lab; what is in its folder stays for the next time
    Down(DownArgs),
    /// Say what is in a lab
    Status(StatusArgs),
    /// Print how to reach a lab
    Env(EnvArgs),
    /// Break something, or mend it
    #[command(subcommand)]
    Fault(FaultCommand),
}

/// `stolos lab up`
#[derive(Args, Debug)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    mesh: MeshArgs,

    /// So many clusters, instead of those of a mesh file
    #[arg(long, value_name = "N", conflicts_with = "base", value_parser = clap::value_parser!(u16).range(1..=1000))]
    clusters: Option<u16>,

    /// On so many networks
    #[arg(long, value_name = "N", default_value_t = 1, requires = "clusters", value_parser = clap::value_parser!(u16).range(1..=1000))]
    networks: u16,

    /// Let it go on in the background once it is up
    #[arg(long)]
    detach: bool,

    /// This is the process in the background
    #[arg(long, hide = true)]
    detached: bool,

    /// A kubeconfig to write besides the lab's own; never one that is somebody else's
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Take new addresses where another lab holds the old ones
    #[arg(long)]
    renumber: bool,

    /// Added to every API call, in milliseconds: how distant clusters feel
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=60_000))]
    api_delay: u64,

    /// A real Envoy, for pods annotated `stolos.dev/proxy: envoy`
    #[arg(long, value_name = "PROGRAM", env = "STOLOS_ENVOY", hide_env_values = true)]
    envoy: Option<PathBuf>,

    /// Which other pods it is the proxy of
    #[arg(long, value_name = "PODS", default_value = "annotated", requires = "envoy")]
    envoy_for: EnvoyPods,
}

/// `stolos lab load`
#[derive(Args, Debug)]
pub(crate) struct LoadArgs {
    /// The archive
    #[arg(value_name = "BUNDLE")]
    bundle: PathBuf,

    #[command(flatten)]
    state: StateArgs,

    /// Let it go on in the background once it is up
    #[arg(long)]
    detach: bool,

    /// This is the process in the background
    #[arg(long, hide = true)]
    detached: bool,

    /// A kubeconfig to write besides the lab's own; never one that is somebody else's
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Take new addresses where another lab holds the old ones
    #[arg(long)]
    renumber: bool,
}

/// Which pods run an Envoy: those that ask for it, or these as well.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum EnvoyPods {
    Annotated,
    All,
    Gateways,
    Sidecars,
    Half,
}

impl From<EnvoyPods> for EnvoyFor {
    fn from(pods: EnvoyPods) -> Self {
        match pods {
            EnvoyPods::Annotated => Self::Annotated,
            EnvoyPods::All => Self::All,
            EnvoyPods::Gateways => Self::Gateways,
            EnvoyPods::Sidecars => Self::Sidecars,
            EnvoyPods::Half => Self::Half,
        }
    }
}

/// Which lab.
#[derive(Args, Debug)]
pub(crate) struct WhichArgs {
    /// The mesh file the lab was started from
    #[arg(short, long, value_name = "FILE", env = "STOLOS_FILE")]
    file: Option<PathBuf>,

    #[command(flatten)]
    state: StateArgs,
}

/// `stolos lab down`
#[derive(Args, Debug)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    which: WhichArgs,

    /// How long to wait for its end, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
}

/// `stolos lab status`
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// `stolos lab env`
#[derive(Args, Debug)]
pub(crate) struct EnvArgs {
    #[command(flatten)]
    which: WhichArgs,
}

/// `stolos lab fault`
#[derive(Debug, Subcommand)]
pub(crate) enum FaultCommand {
    /// Kill a cluster, a pod, or a cluster's east-west gateway
    Kill(KillArgs),
    /// Start a killed cluster again
    Start(ClusterOfLab),
    /// Cut a cluster or a network off from the others: connections hang, nothing is refused
    Partition(PartitionArgs),
    /// Let nobody of another cluster into the API servers of clusters or networks
    Private(PrivateArgs),
    /// Let everything between two networks or clusters arrive later
    Delay(DelayArgs),
    /// Lose a share of the segments between two networks or clusters: TCP sends them again, later
    Loss(LossArgs),
    /// End partitions, delays and losses, and open private API servers
    Heal(HealArgs),
}

/// `stolos lab fault kill`
#[derive(Args, Debug)]
pub(crate) struct KillArgs {
    /// The cluster
    cluster: String,

    /// Only this pod of it, as `namespace/name`
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "gateway")]
    pod: Option<String>,

    /// Only its east-west gateway
    #[arg(long)]
    gateway: bool,

    #[command(flatten)]
    which: WhichArgs,
}

/// A cluster of a lab.
#[derive(Args, Debug)]
pub(crate) struct ClusterOfLab {
    /// The cluster
    cluster: String,
    #[command(flatten)]
    which: WhichArgs,
}

/// `stolos lab fault partition`
#[derive(Args, Debug)]
pub(crate) struct PartitionArgs {
    /// Clusters or networks
    #[arg(required = true, value_name = "CLUSTER|NETWORK")]
    what: Vec<String>,

    /// Only what the first sends to the second gets lost; exactly two are named
    #[arg(long)]
    one_way: bool,

    #[command(flatten)]
    which: WhichArgs,
}

/// `stolos lab fault private`
#[derive(Args, Debug)]
pub(crate) struct PrivateArgs {
    /// Clusters or networks
    #[arg(required = true, value_name = "CLUSTER|NETWORK")]
    what: Vec<String>,

    #[command(flatten)]
    which: WhichArgs,
}

/// Two ends of a link.
#[derive(Args, Debug)]
pub(crate) struct LinkArgs {
    /// One end
    #[arg(value_name = "CLUSTER|NETWORK")]
    from: String,

    /// The other end
    #[arg(value_name = "CLUSTER|NETWORK")]
    to: String,

    /// Only what the first sends to the second
    #[arg(long)]
    one_way: bool,

    #[command(flatten)]
    which: WhichArgs,
}

/// `stolos lab fault delay`
#[derive(Args, Debug)]
pub(crate) struct DelayArgs {
    #[command(flatten)]
    link: LinkArgs,

    /// By how much in each direction, such as `50ms` or `1.5s`; a round trip takes twice as much longer
    #[arg(value_name = "TIME", value_parser = milliseconds)]
    delay: u64,

    /// By how much it varies, either way
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = milliseconds)]
    jitter: u64,
}

/// `stolos lab fault loss`
#[derive(Args, Debug)]
pub(crate) struct LossArgs {
    #[command(flatten)]
    link: LinkArgs,

    /// How many of a hundred segments, such as `5%`
    #[arg(value_name = "PERCENT", value_parser = percent)]
    loss: f64,
}

/// A time as people write it, up to a minute.
fn milliseconds(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1.0),
        None => (text.strip_suffix('s').ok_or("a unit is missing: write `50ms` or `1.5s`")?, 1000.0),
    };
    let number: f64 = number.trim().parse().map_err(|_| format!("`{number}` is no number"))?;
    let milliseconds = number * unit;
    if !(0.0..=60_000.0).contains(&milliseconds) {
        return Err("at most `60s`, and not less than nothing".to_owned());
    }
    Ok(milliseconds.round() as u64)
}

/// A share as people write it.
fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    let number: f64 = number.parse().map_err(|_| format!("`{number}` is no number"))?;
    if (0.0..=100.0).contains(&number) { Ok(number) } else { Err("from `0%` to `100%`".to_owned()) }
}

/// `stolos lab fault heal`
#[derive(Args, Debug)]
pub(crate) struct HealArgs {
    /// Clusters or networks; all there are where none is named
    #[arg(value_name = "CLUSTER|NETWORK")]
    what: Vec<String>,
    #[command(flatten)]
    which: WhichArgs,
}

pub(crate) async fn run(command: LabCommand, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    match command {
        LabCommand::Up(args) if args.detach => {
            let config = args.config(screen)?;
            let mesh_file = args.clusters.map(|_| config.state.join("mesh.yaml"));
            detach(config, mesh_file, screen, stop).await
        }
        LabCommand::Up(args) => up(args, screen, stop).await,
        LabCommand::Load(args) => load(args, screen, stop).await,
        LabCommand::Down(args) => down(args, screen).await,
        LabCommand::Status(args) => status(args, screen).await,
        LabCommand::Env(args) => env(&args, screen),
        LabCommand::Fault(command) => fault(command, screen).await,
    }
}

impl UpArgs {
    /// What the lab is to be.
    fn config(&self, screen: &Screen) -> Result<LabConfig, Failure> {
        crate::lab::supported()?;
        let mut config = match self.clusters {
            Some(clusters) => {
                LabConfig::with_counts(self.mesh.state.folder("lab")?, clusters.into(), self.networks.into())
            }
            None => {
                let mesh = self.mesh.read(screen)?;
                let state = self.mesh.state(&mesh)?;
                let mut config = LabConfig::from_mesh(&mesh, state);
                // A ristioctl file says where its clusters' kubeconfig is to be found: there it will be.
                config.kubeconfigs.extend(mesh.clusters.iter().filter_map(|c| c.kubeconfig.clone()));
                config
            }
        };
        config.kubeconfigs.extend(self.kubeconfig.clone().or_else(one_of_the_environment));
        config.kubeconfigs.sort();
        config.kubeconfigs.dedup();
        config.renumber = self.renumber;
        config.api_delay = Duration::from_millis(self.api_delay);
        if let Some(program) = &self.envoy {
            let program = program.canonicalize().map_err(|error| {
                Failure::caused(&error).while_doing(format!("cannot run the Envoy {}", program.display()))
            })?;
            config.catalogue.set_envoy(Envoy { program, of: self.envoy_for.into() });
        }
        // The image of this program, as far as a lab has a use for it: the agent that `hub.join: agent` installs.
        config.catalogue.add("stolos", Image::new("stolos", |launch| Box::pin(agent(launch))));
        Ok(config)
    }
}

/// A pod of an agent.
async fn agent(launch: Launch) -> i32 {
    let output = launch.container.output.clone();
    match stolos_hub::gate::pod::run(launch.container, launch.stop).await {
        Ok(()) => 0,
        Err(error) => {
            output.line(format!("error: {}", stolos_serve::because(&error)));
            1
        }
    }
}

/// The file that `$KUBECONFIG` names, if it names one.
fn one_of_the_environment() -> Option<PathBuf> {
    let variable = std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty())?;
    let mut files = std::env::split_paths(&variable);
    files.next().filter(|_| files.next().is_none())
}

async fn up(args: UpArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    if args.detached {
        // Away from the terminal: its Ctrl-C and its end are not ours.
        let _ = rustix::process::setsid();
    }
    let config = args.config(screen)?;
    let mesh_file = args.clusters.map(|_| mesh_file(&config)).transpose()?;
    hold(config, args.detached, mesh_file, screen, stop).await
}

/// A lab of what is in an archive.
async fn load(args: LoadArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    if args.detached {
        let _ = rustix::process::setsid();
    }
    crate::lab::supported()?;
    let bundle = crate::command::bundle::open(&args.bundle)?;
    let name = format!("{}-loaded", bundle.mesh.name);
    let mut config = LabConfig::new(name.clone(), args.state.folder(&name)?);
    let mut recorded = BTreeMap::new();
    for cluster in bundle.clusters {
        if let (Some(why), None) = (&cluster.said.unreachable, &cluster.seen) {
            screen.line(format!("  - {} is not in it: {why}", cluster.said.name));
            continue;
        }
        config.clusters.push(LabCluster {
            name: cluster.said.name.clone(),
            context: cluster.said.context,
            network: cluster.said.network,
            region: cluster.said.region,
            zone: cluster.said.zone,
        });
        recorded.insert(cluster.said.name, cluster.objects);
    }
    if config.clusters.is_empty() {
        return Err(Failure::new(format!("no cluster is in {}", args.bundle.display())));
    }
    config.recorded = Some(Arc::new(recorded));
    config.kubeconfigs.extend(args.kubeconfig.or_else(one_of_the_environment));
    config.renumber = args.renumber;
    screen.line(format!("What was there at {}; nothing runs in it", bundle.manifest.made_at));
    if args.detach {
        return detach(config, None, screen, stop).await;
    }
    hold(config, args.detached, None, screen, stop).await
}

/// Starts a lab and keeps it until somebody ends it.
async fn hold(
    config: LabConfig,
    detached: bool,
    mesh_file: Option<PathBuf>,
    screen: &Screen,
    stop: &Stop,
) -> Result<Exit, Failure> {
    let kubeconfigs = config.kubeconfigs.clone();
    let began = Instant::now();
    screen.heading(format!("Starting {}", count(config.clusters.len(), "cluster")));
    let lab = tokio::select! {
        lab = Lab::start(config) => lab?,
        () = stop.asked() => return Err(Failure::interrupted()),
    };
    screen.line(format!("  {} up after {}", screen.progress_tone(Tone::Good, "✓"), elapsed(began.elapsed())));
    if detached {
        screen.data(background::READY);
    } else {
        let status = serde_json::to_value(lab.status().await).map_err(|e| Failure::caused(&e))?;
        screen.data(&crate::view::lab(screen, &status));
        if let Some(file) = mesh_file {
            screen.line(format!("a mesh of these clusters: stolos apply -f {}", file.display()));
        }
        say_left_alone(&kubeconfigs, screen);
        screen.data(&export(&lab.kubeconfig()));
        screen.line("The lab stays up until Ctrl-C.");
    }
    let live = live(&lab, screen);
    tokio::select! {
        () = stop.asked() => {}
        () = lab.asked_down() => {}
        () = live => {}
    }
    screen.line("Stopping the lab; what is in its folder stays");
    lab.stop().await;
    Ok(Exit::Good)
}

/// What goes on in the lab, on one line of a terminal, until it is dropped.
async fn live(lab: &Lab, screen: &Screen) {
    if !screen.is_live() {
        return std::future::pending().await;
    }
    let progress = screen.progress(None);
    progress.begin("live", "");
    loop {
        let status = lab.status().await;
        let running = status.clusters.iter().filter(|c| c.running).count();
        let cut = status.clusters.iter().filter(|c| c.cut_off).count();
        let pods: usize = status.clusters.iter().map(|c| c.pods).sum();
        let refused: u64 = status.refusals.iter().map(|r| r.count).sum();
        let mut text = format!("{} running, {}, {refused} refused", count(running, "cluster"), count(pods, "pod"));
        if cut > 0 {
            text += &format!(", {cut} cut off");
        }
        progress.note("live", &text);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// A mesh of the lab's clusters, for whoever has no file of their own.
fn mesh_file(config: &LabConfig) -> Result<PathBuf, Failure> {
    let contexts: Vec<_> = config.clusters.iter().map(|c| (c.context.clone(), Some(c.network.clone()))).collect();
    let name = MeshName::parse(&config.name).map_err(|e| Failure::caused(&e))?;
    let mut mesh = from_contexts(&name, &contexts)?.mesh;
    for (cluster, of_lab) in mesh.clusters.iter_mut().zip(&config.clusters) {
        cluster.region.clone_from(&of_lab.region);
        cluster.zone.clone_from(&of_lab.zone);
    }
    let path = config.state.join("mesh.yaml");
    let written = std::fs::create_dir_all(&config.state).and_then(|()| std::fs::write(&path, mesh_yaml(&mesh)));
    written.map_err(|e| Failure::caused(&e).while_doing(format!("could not write {}", path.display())))?;
    Ok(path)
}

/// How long a lab may take to come up.
const UP: Duration = Duration::from_secs(120);

/// Starts the same command again in the background, and waits until it is up.
async fn detach(config: LabConfig, mesh_file: Option<PathBuf>, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    screen.line(format!("Starting {} in the background", count(config.clusters.len(), "cluster")));
    let process = background::start("lab", &config.state, UP, stop).await?;
    let kubeconfig = config.state.join("kubeconfig");
    screen.line(format!("  {} up, with process {}", screen.progress_tone(Tone::Good, "✓"), process));
    screen.line(format!("  `stolos lab down --state {}` ends it", config.state.display()));
    if let Some(file) = mesh_file {
        screen.line(format!("  a mesh of these clusters: stolos apply -f {}", file.display()));
    }
    say_left_alone(&config.kubeconfigs, screen);
    screen.data(&export(&kubeconfig));
    Ok(Exit::Good)
}

/// Says which kubeconfigs were not written, since a lab did not make them.
fn say_left_alone(kubeconfigs: &[PathBuf], screen: &Screen) {
    let ours =
        |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.starts_with("# Written by stolos lab"));
    for path in kubeconfigs.iter().filter(|path| !ours(path)) {
        screen.say(&format!("warning: {} is left alone, as no lab has written it", path.display()));
    }
}

fn export(kubeconfig: &Path) -> String {
    format!("export KUBECONFIG={}", stolos_plan::quoted(&kubeconfig.to_string_lossy()))
}

impl WhichArgs {
    /// The lab's folder: named, or the mesh file's, or the one of the only lab there is.
    fn folder(&self, screen: &Screen) -> Result<PathBuf, Failure> {
        if self.state.state.is_some() {
            return self.state.folder("lab");
        }
        if let Some(file) = &self.file {
            let mesh =
                MeshArgs { file: vec![file.clone()], base: None, told: ToldArgs::default(), state: self.state.clone() };
            return mesh.state(&mesh.read_quietly(screen)?);
        }
        let beside = self.state.folder("lab")?;
        let meshes = beside.parent().map(std::fs::read_dir);
        let labs: Vec<_> = match meshes {
            Some(Ok(folders)) => {
                folders.filter_map(|f| Some(f.ok()?.path())).filter(|f| f.join("lab.json").is_file()).collect()
            }
            _ => Vec::new(),
        };
        let running: Vec<_> = labs.iter().filter(|lab| is_held(lab)).collect();
        match (running.as_slice(), labs.as_slice()) {
            ([one], _) => Ok((*one).clone()),
            ([], [one]) => Ok(one.clone()),
            ([], []) => Err(Failure::new("there is no lab").hint("`stolos lab up -f FILE --detach` starts one")),
            (several, _) => {
                let list: Vec<_> = several.iter().map(|l| format!("  --state {}", l.display())).collect();
                let what = if several.is_empty() {
                    "no lab runs, and there is more than one folder of one"
                } else {
                    "more than one lab runs"
                };
                Err(Failure::new(what)
                    .hint(format!("name the mesh file with `-f FILE`, or one of\n{}", list.join("\n"))))
            }
        }
    }
}

/// Whether a process holds the lab's folder.
fn is_held(folder: &Path) -> bool {
    background::is_held(&folder.join("lab.lock"))
}

async fn down(args: DownArgs, screen: &Screen) -> Result<Exit, Failure> {
    let folder = args.which.folder(screen)?;
    if !is_held(&folder) {
        screen.line(format!("no lab runs in {}", folder.display()));
        return Ok(Exit::Good);
    }
    screen.line(format!("Ending the lab in {}", folder.display()));
    socket::down(&folder).await?;
    let patience = Duration::from_secs(args.timeout);
    let ended = async {
        while is_held(&folder) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(patience, ended).await.map_err(|_| {
        Failure::new(format!("the lab has not ended after {}", elapsed(patience))).exit_with(Exit::TimedOut)
    })?;
    screen.line("it has ended; what is in its folder stays for the next time");
    Ok(Exit::Good)
}

async fn status(args: StatusArgs, screen: &Screen) -> Result<Exit, Failure> {
    let folder = args.which.folder(screen)?;
    let status = socket::status(&folder).await?;
    match args.output.output {
        output if output.is_document() => screen.document(output, &status)?,
        _ => screen.data(&crate::view::lab(screen, &status)),
    }
    Ok(Exit::Good)
}

fn env(args: &EnvArgs, screen: &Screen) -> Result<Exit, Failure> {
    let folder = args.which.folder(screen)?;
    let kubeconfig = folder.join("kubeconfig");
    if !kubeconfig.is_file() {
        return Err(Failure::new(format!("no lab was ever up in {}", folder.display()))
            .hint("`stolos lab up -f FILE --detach` starts one"));
    }
    if !is_held(&folder) {
        screen.say("warning: this lab does not run at the moment");
    }
    screen.data(&export(&kubeconfig));
    Ok(Exit::Good)
}

async fn fault(command: FaultCommand, screen: &Screen) -> Result<Exit, Failure> {
    let (which, faults) = match command {
        FaultCommand::Kill(args) => {
            let cluster = args.cluster;
            let fault = match (args.pod, args.gateway) {
                (Some(pod), _) => {
                    let (namespace, pod) = pod.split_once('/').unwrap_or(("default", &pod));
                    Fault::KillPod { cluster, namespace: namespace.to_owned(), pod: pod.to_owned() }
                }
                (None, true) => Fault::KillGateway { cluster },
                (None, false) => Fault::KillCluster { cluster },
            };
            (args.which, vec![fault])
        }
        FaultCommand::Start(args) => (args.which, vec![Fault::Start { cluster: args.cluster }]),
        FaultCommand::Partition(args) if args.one_way => {
            let [from, to] = <[String; 2]>::try_from(args.what)
                .map_err(|_| Failure::new("`--one-way` needs exactly two: who sends, and to whom"))?;
            (args.which, vec![Fault::Cut { from, to }])
        }
        FaultCommand::Delay(DelayArgs { link, delay, jitter }) => {
            let LinkArgs { from, to, one_way, which } = link;
            (which, vec![Fault::Delay { from, to, delay_ms: delay, jitter_ms: jitter, one_way }])
        }
        FaultCommand::Loss(LossArgs { link, loss }) => {
            let LinkArgs { from, to, one_way, which } = link;
            (which, vec![Fault::Loss { from, to, percent: loss, one_way }])
        }
        FaultCommand::Partition(args) => {
            (args.which, args.what.into_iter().map(|what| Fault::Partition { what }).collect())
        }
        FaultCommand::Private(args) => {
            (args.which, args.what.into_iter().map(|what| Fault::Private { what }).collect())
        }
        FaultCommand::Heal(args) if args.what.is_empty() => (args.which, vec![Fault::Heal { what: None }]),
        FaultCommand::Heal(args) => {
            (args.which, args.what.into_iter().map(|what| Fault::Heal { what: Some(what) }).collect())
        }
    };
    let folder = which.folder(screen)?;
    for fault in faults {
        let said = match &fault {
            Fault::KillPod { cluster, namespace, pod } => format!("killed pod {namespace}/{pod} of {cluster}"),
            Fault::KillGateway { cluster } => format!("killed the east-west gateway of {cluster}"),
            Fault::KillCluster { cluster } => {
                format!("killed {cluster}; `stolos lab fault start {cluster}` brings it back")
            }
            Fault::Start { cluster } => format!("{cluster} runs again"),
            Fault::Partition { what } => format!("{what} is cut off; `stolos lab fault heal {what}` ends it"),
            Fault::Private { what } => {
                format!("the API server of {what} lets no other cluster in; `stolos lab fault heal {what}` ends it")
            }
            Fault::Cut { .. } | Fault::Delay { .. } | Fault::Loss { .. } => {
                format!("{}; `stolos lab fault heal` ends it", fault.in_words())
            }
            Fault::Heal { what: Some(what) } => format!("{what} is connected again"),
            Fault::Heal { what: None } => "all are connected again".to_owned(),
        };
        socket::fault(&folder, fault).await?;
        screen.line(said);
    }
    Ok(Exit::Good)
}

#[cfg(test)]
mod fault_tests {
    use super::*;

    #[test]
    fn times_and_shares_as_people_write_them() {
        for (text, time) in [("50ms", Some(50)), ("1.5s", Some(1500)), ("0ms", Some(0)), ("60s", Some(60_000))] {
            assert_eq!(milliseconds(text).ok(), time, "{text}");
        }
        for bad in ["50", "ms", "-1ms", "61s", "NaNs", "infs", ""] {
            assert!(milliseconds(bad).is_err(), "{bad}");
        }
        for (text, share) in [("5%", Some(5.0)), ("0.1", Some(0.1)), ("100%", Some(100.0))] {
            assert_eq!(percent(text).ok(), share, "{text}");
        }
        for bad in ["%", "101%", "-1", "NaN"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
    }
}
