//! The sidecar's hop: client, outbound sidecar, mutual TLS, inbound sidecar, application; ours and Envoy's.
//!
//! Both are run as in a pod and get the same resources from the same control plane, which is what ours would send
//! (`mesh`); an Envoy has our agent beside it, which is not counted. Connections are redirected as in the lab: a PROXY
//! v2 header says where they meant to go. The load and the application have one core, all proxies the other.

mod mesh;
mod traffic;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use stolos_serve::{Container, HostNet, Output, Program, Programs, Stop};

use self::mesh::{CLIENT, Control, Places, SERVER, Spoken};
use self::traffic::{Order, Outcome};
use crate::peer::{self, LOAD_CORE, SERVER_CORE};
use crate::process::{busy, memory, on_core};
use crate::table::{RUNS, ratio, row};

/// Connections of the client.
const CONNECTIONS: usize = 64;
/// How long a pod may take to become ready.
const READY: Duration = Duration::from_secs(20);

/// A program that is a sidecar.
#[derive(Clone, Debug, PartialEq)]
enum Sidecar {
    Ours,
    Envoy(PathBuf),
}

/// Prints the section.
pub(crate) fn bench(stolos: &Path, out: &mut impl Write) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut subjects = vec![("stolos", Sidecar::Ours, 1)];
    match peer::envoy() {
        Some(envoy) => {
            writeln!(out, "| Envoy is {} | | | |", peer::version(&envoy, "--version"))?;
            subjects.push(("Envoy", Sidecar::Envoy(envoy.clone()), 1));
            subjects.push(("Envoy, 2 threads", Sidecar::Envoy(envoy), 2));
        }
        None => writeln!(out, "| Envoy is neither in `$STOLOS_ENVOY` nor in `PATH`: left out | | | |")?,
    }
    let mut subjects = subjects
        .into_iter()
        .zip(0..)
        .map(|((name, sidecar, threads), at)| {
            let mesh = Mesh::start(&runtime, stolos, &sidecar, threads, Places::of(at))?;
            Ok(Subject { name, mesh, found: Vec::new() })
        })
        .collect::<Result<Vec<_>>>()?;
    let without = Without::start()?;
    let (mut direct, mut least) = (Vec::new(), Vec::new());
    let runs = std::env::var("STOLOS_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    for _ in 0..runs {
        let (found, cores) = without.measure()?;
        direct.push(found);
        least.push(cores);
        for subject in &mut subjects {
            let found = subject.mesh.measure(subject.name == "Envoy, 2 threads")?;
            subject.found.push(found);
        }
    }
    row(out, "no sidecars, 1,000 rps of 1 KB: p50, ms", direct.iter().map(|direct| direct.p50))?;
    row(out, "… p99, ms", direct.iter().map(|direct| direct.p99))?;
    row(out, "two processes that pass bytes: vCPU of both at 1,000 rps", least)?;
    for subject in &subjects {
        subject.print(out, &direct)?;
    }
    if let [ours, theirs, ..] = subjects.as_slice() {
        for (what, of) in RATIOS {
            let figures = |subject: &Subject| subject.found.iter().map(of).collect::<Vec<_>>();
            ratio(out, &format!("{what}, ours to Envoy's"), &figures(ours), &figures(theirs))?;
        }
    }
    Ok(())
}

type Of = fn(&Found) -> f64;

const RATIOS: [(&str, Of); 3] = [
    ("vCPU", |found| found.thousand.cores),
    ("anonymous memory", |found| found.anonymous),
    ("requests/s", |found| found.most.as_ref().map_or(0.0, |most| most.rate)),
];

/// A pair of sidecars, and what was found of it, run by run.
struct Subject {
    name: &'static str,
    mesh: Mesh,
    found: Vec<Found>,
}

/// What one run found.
struct Found {
    thousand: Figures,
    two_thousand: Option<Figures>,
    most: Option<Figures>,
    bytes: Option<Figures>,
    /// MiB of the client's sidecar.
    resident: f64,
    anonymous: f64,
}

/// One stretch of load.
struct Figures {
    /// vCPU of both proxies.
    cores: f64,
    rate: f64,
    outcome: Outcome,
}

impl Subject {
    fn print(&self, out: &mut impl Write, direct: &[Outcome]) -> Result<()> {
        let Self { name, found, .. } = self;
        let middle = |of: fn(&Outcome) -> f64| {
            let mut all: Vec<f64> = direct.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let (p50, p99) = (middle(|direct| direct.p50), middle(|direct| direct.p99));
        row(out, &format!("{name}: vCPU of both sidecars at 1,000 rps"), found.iter().map(|f| f.thousand.cores))?;
        row(out, "… p50 added, ms", found.iter().map(|f| f.thousand.outcome.p50 - p50))?;
        row(out, "… p99 added, ms", found.iter().map(|f| f.thousand.outcome.p99 - p99))?;
        row(out, "… one sidecar's memory, MiB", found.iter().map(|f| f.resident))?;
        row(out, "… of it anonymous, MiB", found.iter().map(|f| f.anonymous))?;
        let per_thousand = |figures: &Figures| figures.cores / figures.rate * 1000.0;
        let of = |of: fn(&Found) -> &Option<Figures>| found.iter().filter_map(of_some(of));
        row(out, "… vCPU per 1,000 rps at 2,000 rps", of(|f| &f.two_thousand).map(per_thousand))?;
        row(out, "… at full speed, requests/s", of(|f| &f.most).map(|figures| figures.rate))?;
        row(out, "… vCPU per 1,000 rps then", of(|f| &f.most).map(per_thousand))?;
        row(out, "… the same bytes over TCP, vCPU at 1,000 rps", of(|f| &f.bytes).map(|figures| figures.cores))?;
        let failed: u64 = found.iter().map(|f| f.thousand.outcome.failed).sum();
        if failed > 0 {
            bail!("{name}: {failed} connections failed");
        }
        Ok(())
    }
}

fn of_some<'a>(of: fn(&Found) -> &Option<Figures>) -> impl Fn(&'a Found) -> Option<&'a Figures> {
    move |found| of(found).as_ref()
}

/// Two pods with sidecars and their control plane.
struct Mesh {
    places: Places,
    _folder: tempfile::TempDir,
    /// The two sidecars and whatever stands beside them.
    children: Vec<Ended>,
    /// The sidecars' processes, the client's first.
    sidecars: [u32; 2],
    stop: Stop,
}

impl Mesh {
    fn start(
        runtime: &tokio::runtime::Runtime,
        stolos: &Path,
        sidecar: &Sidecar,
        threads: usize,
        places: Places,
    ) -> Result<Self> {
        let (folder, stop) = (tempfile::tempdir()?, Stop::new());
        let control = Control::new(places)?;
        let port = runtime.block_on(control.serve(&stop))?;
        let mut children = Vec::new();
        for spoken in [Spoken::Http, Spoken::Tcp] {
            let at = |ip: Ipv4Addr| SocketAddr::from((ip, spoken.port())).to_string();
            let inbound = SocketAddr::from((places.server, 15006)).to_string();
            let mut serving = on_core(LOAD_CORE, &std::env::current_exe()?);
            serving.args(["sidecar", "serve", &at(places.application), &at(places.server), &inbound]);
            children.push(Ended(serving.stdout(Stdio::null()).spawn()?));
        }
        let mut sidecars = Vec::new();
        for (account, address) in [(CLIENT, places.client), (SERVER, places.server)] {
            let root = folder.path().join(account);
            lay_out(&root, account, control.roots())?;
            let mut command = match sidecar {
                Sidecar::Ours => {
                    let mut command = on_core(SERVER_CORE, stolos);
                    command.args(["proxy", "sidecar"]);
                    command
                }
                Sidecar::Envoy(envoy) => {
                    let mut command = on_core(LOAD_CORE, &std::env::current_exe()?);
                    command.args(["sidecar", "agent"]).arg(envoy).env("STOLOS_PROXY", "envoy");
                    command
                }
            };
            environment(&mut command, &root, account, address, port, threads);
            children.push(Ended(command.stdout(Stdio::null()).spawn()?));
            let child = children.last().map_or(0, |child| child.0.id());
            ready(address).with_context(|| format!("{sidecar:?} of {account}"))?;
            sidecars.push(match sidecar {
                Sidecar::Ours => child,
                Sidecar::Envoy(_) => fs::read_to_string(root.join("envoy.pid"))?.trim().parse()?,
            });
        }
        let sidecars = [sidecars[0], sidecars[1]];
        let mesh = Self { places, _folder: folder, children, sidecars, stop };
        mesh.load(Spoken::Http, Some(500.0), 0.5).context("the first load")?;
        Ok(mesh)
    }

    /// One run.
    fn measure(&self, short: bool) -> Result<Found> {
        let thousand = self.load(Spoken::Http, Some(1000.0), 3.0)?;
        let (resident, anonymous, _) = memory(self.sidecars[0])?;
        let long = |spoken, rate, seconds| match short {
            true => Ok(None),
            false => self.load(spoken, rate, seconds).map(Some),
        };
        Ok(Found {
            thousand,
            resident,
            anonymous,
            two_thousand: long(Spoken::Http, Some(2000.0), 2.0)?,
            most: long(Spoken::Http, None, 2.0)?,
            bytes: long(Spoken::Tcp, Some(1000.0), 1.0)?,
        })
    }

    fn load(&self, spoken: Spoken, rate: Option<f64>, seconds: f64) -> Result<Figures> {
        let to = SocketAddr::from((self.places.client, 15001));
        let order = Order { to, meant: Some(spoken.service()), connections: CONNECTIONS, rate, seconds };
        let spent = || -> Result<f64> { Ok(busy(self.sidecars[0])? + busy(self.sidecars[1])?) };
        let mut loading = Loading::start(&order)?;
        let before = spent()?;
        let outcome = loading.outcome()?;
        let cores = (spent()? - before) / outcome.seconds;
        Ok(Figures { cores, rate: outcome.answered as f64 / outcome.seconds, outcome })
    }
}

/// The same path without sidecars, and with two processes in their place that pass bytes and do nothing else: the
/// least that two processes in the middle can cost on this machine.
struct Without {
    children: Vec<Ended>,
    direct: SocketAddr,
    relayed: SocketAddr,
}

impl Without {
    fn start() -> Result<Self> {
        let places = Places::of(255);
        let at = |ip: Ipv4Addr, port: u16| SocketAddr::from((ip, port));
        let (application, direct) = (at(places.application, 8080), at(places.server, 8080));
        let (between, relayed) = (at(places.server, 15006), at(places.client, 15001));
        let role = |core: usize, role: &str, arguments: &[SocketAddr]| -> Result<Ended> {
            let mut command = on_core(core, &std::env::current_exe()?);
            command.args(["sidecar", role]).args(arguments.iter().map(ToString::to_string));
            Ok(Ended(command.stdout(Stdio::null()).spawn()?))
        };
        let children = vec![
            role(SERVER_CORE, "relay", &[relayed, between])?,
            role(SERVER_CORE, "relay", &[between, direct])?,
            role(LOAD_CORE, "serve", &[application, direct, application])?,
        ];
        let deadline = Instant::now() + READY;
        while [relayed, between, direct].iter().any(|at| std::net::TcpStream::connect(at).is_err()) {
            if Instant::now() > deadline {
                bail!("the application did not start");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { children, direct, relayed })
    }

    /// What a client finds without anybody in the middle, and vCPU and requests of the two that pass bytes.
    fn measure(&self) -> Result<(Outcome, f64)> {
        let order = |to| Order { to, meant: None, connections: CONNECTIONS, rate: Some(1000.0), seconds: 2.0 };
        let direct = Loading::start(&order(self.direct))?.outcome()?;
        let spent = || self.children[..2].iter().map(|relay| busy(relay.0.id())).sum::<Result<f64>>();
        let mut loading = Loading::start(&order(self.relayed))?;
        let before = spent()?;
        let outcome = loading.outcome()?;
        Ok((direct, (spent()? - before) / outcome.seconds))
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        // The agents first, so that their Envoys end with them.
        self.children.clear();
        self.stop.ask();
    }
}

/// A child that is asked to end, and then made to.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // An agent's Envoy is killed by its guard when the agent is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A load process.
struct Loading {
    child: Ended,
    said: BufReader<ChildStdout>,
}

impl Loading {
    /// Returns when its connections are made.
    fn start(order: &Order) -> Result<Self> {
        let mut command = on_core(LOAD_CORE, &std::env::current_exe()?);
        command.args(["sidecar", "load", &serde_json::to_string(order)?]);
        let mut child = Ended(command.stdout(Stdio::piped()).spawn()?);
        let mut said = BufReader::new(child.0.stdout.take().context("its output")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        if line.trim() != "begun" {
            bail!("the load did not begin");
        }
        Ok(Self { child, said })
    }

    fn outcome(&mut self) -> Result<Outcome> {
        let mut text = String::new();
        self.said.read_to_string(&mut text)?;
        let _ = self.child.0.wait();
        serde_json::from_str(&text).with_context(|| format!("the load said `{text}`"))
    }
}

/// What a kubelet puts into a pod.
fn lay_out(root: &Path, account: &str, roots: &str) -> Result<()> {
    let labels = format!("app=\"{account}\"\nversion=\"v1\"\n");
    for (file, text) in [
        ("var/run/secrets/tokens/istio-token", account),
        ("var/run/secrets/istio/root-cert.pem", roots),
        ("etc/istio/pod/labels", &labels),
    ] {
        let path = root.join(file);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(path, text)?;
    }
    Ok(())
}

/// What the injector says to a sidecar.
fn environment(command: &mut Command, root: &Path, account: &str, address: Ipv4Addr, port: u16, threads: usize) {
    let place = format!("127.0.0.1:{port}");
    let config = serde_json::json!({"discoveryAddress": place, "concurrency": threads});
    command
        .env("RUST_LOG", "warn")
        .env("STOLOS_ROOT", root)
        .env("POD_NAME", account)
        .env("POD_NAMESPACE", mesh::NAMESPACE)
        .env("SERVICE_ACCOUNT", account)
        .env("INSTANCE_IP", address.to_string())
        .env("TRUST_DOMAIN", "cluster.local")
        .env("CA_ADDR", &place)
        .env("PROXY_CONFIG", config.to_string())
        .env("ISTIO_META_CLUSTER_ID", mesh::CLUSTER_ID)
        .env("ISTIO_META_NETWORK", "network-east")
        .env("ISTIO_META_WORKLOAD_NAME", account)
        .env("ISTIO_META_STOLOS_REDIRECT", "proxy-protocol");
}

/// Waits until the pod at `address` says that it is ready.
fn ready(address: Ipv4Addr) -> Result<()> {
    let deadline = Instant::now() + READY;
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect((address, 15021))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: ready\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    loop {
        let said = ask();
        if said.as_ref().is_ok_and(|text| text.starts_with("HTTP/1.1 200") || text.starts_with("HTTP/1.0 200")) {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not ready in time: {said:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The parts that are processes of their own: `serve APPLICATION REDIRECTED INBOUND`, `relay FROM TO`,
/// `load ORDER`, `agent ENVOY`.
pub(crate) fn role(arguments: &[&str]) -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments {
        ["serve", application, redirected, inbound] => {
            runtime.block_on(traffic::serve(application.parse()?, redirected.parse()?, inbound.parse()?))
        }
        ["relay", from, to] => runtime.block_on(traffic::relay(from.parse()?, to.parse()?)),
        ["load", order] => {
            let order: Order = serde_json::from_str(order)?;
            let begun = || drop(writeln!(std::io::stdout(), "begun"));
            let outcome = runtime.block_on(traffic::load(&order, begun))?;
            Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(&outcome)?)?)
        }
        ["agent", envoy] => {
            let env: std::collections::BTreeMap<String, String> = std::env::vars().collect();
            let var = |name: &str| env.get(name).cloned().with_context(|| format!("{name} is not set"));
            let (root, address) = (PathBuf::from(var("STOLOS_ROOT")?), var("INSTANCE_IP")?.parse()?);
            let container = Container {
                net: Arc::new(HostNet::new(address)),
                programs: Some(Arc::new(Pinned { address, envoy: envoy.into(), pid: root.join("envoy.pid") })),
                root,
                env,
                args: vec!["proxy".into(), "sidecar".into()],
                output: Output::discard(),
            };
            Ok(runtime.block_on(stolos_proxy::run(container, Stop::new()))?)
        }
        _ => bail!("no such role: {arguments:?}"),
    }
}

/// Starts Envoy on the proxies' core, with its log where ours goes: nowhere.
struct Pinned {
    address: IpAddr,
    envoy: PathBuf,
    pid: PathBuf,
}

impl Programs for Pinned {
    fn address(&self) -> IpAddr {
        self.address
    }

    fn start(&self, _: &str, arguments: &[String], directory: &Path, output: Output) -> std::io::Result<Program> {
        let script = format!(
            "echo $$ > '{}'; exec taskset --cpu-list {SERVER_CORE} '{}' \"$@\" > /dev/null",
            self.pid.display(),
            self.envoy.display()
        );
        let all: Vec<String> =
            ["-c".to_owned(), script, "envoy".to_owned()].into_iter().chain(arguments.to_vec()).collect();
        Program::start(Path::new("/bin/sh"), &all, directory, output)
    }

    fn listens(&self, _: std::collections::BTreeSet<u16>) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
