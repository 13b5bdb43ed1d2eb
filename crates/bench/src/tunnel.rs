//! The tunnel beside a direct connection: the same bytes over the same TLS, once through an agent that dialled out and once
//! straight to where they lead.

use std::io::{BufRead as _, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use futures::future::try_join_all;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use stolos_pki::tls::{ClientAuth, Peers};
use stolos_pki::{Credentials, Roots};
use stolos_serve::{HostNet, Net as _, Stop};
use stolos_tunnel::agent::{self, Target};
use stolos_tunnel::{Limits, PROTOCOL, Relay};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::process::{memory, on_end};
use crate::table::{RUNS, row};
use crate::tls::Trust;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const MEMBER: &str = "member";
/// What a stream asks for in its first byte: to have its bytes back, or so many bytes.
const ECHO: u8 = b'e';
const SOURCE: u8 = b's';
/// Bytes of a small request and of its answer.
const SMALL: usize = 1024;
/// Round trips of one run.
const TRIPS: usize = 2_000;
/// Bytes of one download.
const BULK: u64 = 1 << 30;
/// Streams that are open at once where the limits are raised: two descriptors of the agent's process each, of 20,000.
const MANY: usize = 8_000;
/// Streams opened and closed, one after the other, so many at a time.
const ALL: usize = 1_000_000;
const AT_ONCE: usize = 64;

/// `bench tunnel`
pub(crate) fn tunnel(out: &mut impl Write) -> Result<()> {
    crate::process::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let world = World::start().await?;
        trips(&world, out).await?;
        bulk(&world, out).await?;
        open(&world, out).await?;
        wear(&world, out).await
    })
}

/// Round trips of 1 KB: over a stream that is open, and each over a new one.
async fn trips(world: &World, out: &mut impl Write) -> Result<()> {
    let (mut kept, mut fresh) = ([vec![], vec![]], [vec![], vec![]]);
    for _ in 0..RUNS {
        for (way, through) in [true, false].into_iter().enumerate() {
            let mut took = Vec::new();
            let mut stream = world.open(through, ECHO).await?;
            for _ in 0..TRIPS {
                took.push(trip(&mut stream).await?);
            }
            kept[way].push(took);
            let mut took = Vec::new();
            for _ in 0..TRIPS {
                let began = Instant::now();
                let mut stream = world.open(through, ECHO).await?;
                trip(&mut stream).await?;
                took.push(began.elapsed());
            }
            fresh[way].push(took);
        }
    }
    for (what, ways) in [("over an open stream", kept), ("each over a new stream", fresh)] {
        let [through, direct] = ways.map(|runs| runs.into_iter().map(sorted).collect::<Vec<_>>());
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            let of = |runs: &[Vec<f64>]| -> Vec<f64> {
                runs.iter().map(|took| took[((took.len() as f64 * share) as usize).min(took.len() - 1)]).collect()
            };
            let (through, direct) = (of(&through), of(&direct));
            row(out, &format!("tunnel: 1 KB and back {what}: {name}, ms"), through.iter().copied())?;
            row(out, &format!("direct TLS: the same: {name}, ms"), direct.iter().copied())?;
            let added = through.iter().zip(&direct).map(|(through, direct)| through - direct);
            row(out, &format!("… added: {name}, ms"), added)?;
        }
    }
    Ok(())
}

fn sorted(took: Vec<Duration>) -> Vec<f64> {
    let mut took: Vec<f64> = took.into_iter().map(|took| took.as_secs_f64() * 1e3).collect();
    took.sort_by(f64::total_cmp);
    took
}

async fn trip(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Duration> {
    let (began, mut answer) = (Instant::now(), [0; SMALL]);
    stream.write_all(&[7; SMALL]).await?;
    stream.flush().await?;
    stream.read_exact(&mut answer).await?;
    Ok(began.elapsed())
}

/// One gibibyte, over one stream and over eight at once.
async fn bulk(world: &World, out: &mut impl Write) -> Result<()> {
    for streams in [1, 8] {
        let (mut through, mut direct) = (vec![], vec![]);
        for _ in 0..RUNS {
            for (runs, way) in [(&mut through, true), (&mut direct, false)] {
                let began = Instant::now();
                try_join_all((0..streams).map(|_| download(world, way, BULK / streams))).await?;
                runs.push(BULK as f64 / f64::from(1 << 20) / began.elapsed().as_secs_f64());
            }
        }
        row(out, &format!("tunnel: download over {streams} streams, MiB/s"), through.iter().copied())?;
        row(out, "direct TLS: the same, MiB/s", direct.iter().copied())?;
        crate::table::ratio(out, "tunnel / direct", &through, &direct)?;
    }
    Ok(())
}

async fn download(world: &World, through: bool, bytes: u64) -> Result<()> {
    let mut stream = world.open(through, SOURCE).await?;
    stream.write_all(&bytes.to_be_bytes()).await?;
    stream.flush().await?;
    let (mut left, mut buffer) = (bytes, vec![0; 256 << 10]);
    while left > 0 {
        let read = stream.read(&mut buffer).await?;
        ensure!(read > 0, "{left} bytes are missing");
        left -= read as u64;
    }
    Ok(())
}

/// How many streams are open at once, each of which has carried bytes both ways, and what they cost.
async fn open(world: &World, out: &mut impl Write) -> Result<()> {
    let before = world.memory()?;
    let began = Instant::now();
    let opened = stream::iter(0..MANY).map(|_| async {
        let mut stream = world.open(true, ECHO).await?;
        trip(&mut stream).await?;
        anyhow::Ok(stream)
    });
    let streams: Vec<_> = opened.buffer_unordered(AT_ONCE).try_collect().await?;
    let (took, after) = (began.elapsed().as_secs_f64(), world.memory()?);
    let open = world.relay.status().iter().map(|member| member.open).sum::<u64>();
    ensure!(open as usize == MANY, "{open} streams are open");
    row(out, "tunnel: streams open at once over one connection (limit raised for it)", [streams.len() as f64])?;
    row(out, "… until all of them had carried 1 KB both ways, s", [took])?;
    row(out, "… memory of each at the hub's end, this bench's buffers included, KiB", [per(before.0, after.0)])?;
    row(out, "… memory of each at the agent's end, KiB", [per(before.1, after.1)])
}

fn per(before: f64, after: f64) -> f64 {
    (after - before) * 1024.0 / MANY as f64
}

/// Memory before and after very many streams.
async fn wear(world: &World, out: &mut impl Write) -> Result<()> {
    let one = async || {
        let mut stream = world.open(true, ECHO).await?;
        trip(&mut stream).await?;
        anyhow::Ok(())
    };
    let some = async |count: usize| stream::iter((0..count).map(Ok)).try_for_each_concurrent(AT_ONCE, |_| one()).await;
    // What the first ones cost is there afterwards.
    some(ALL / 100).await?;
    let before = world.memory()?;
    let began = Instant::now();
    some(ALL).await?;
    let (took, after) = (began.elapsed().as_secs_f64(), world.memory()?);
    row(out, &format!("tunnel: {ALL} streams, each with 1 KB both ways: streams/s"), [ALL as f64 / took])?;
    for (end, before, after) in [("hub's", before.0, after.0), ("agent's", before.1, after.1)] {
        row(out, &format!("… memory at the {end} end before, MiB"), [before])?;
        row(out, &format!("… memory at the {end} end after, MiB"), [after])?;
    }
    Ok(())
}

/// A relay and its client in this process; the agent and what it leads to in another.
struct World {
    relay: Arc<Relay>,
    agent: Child,
    direct: SocketAddr,
    client: Arc<ClientConfig>,
    stop: Stop,
}

/// A connection either way.
trait Way: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Way for T {}

impl World {
    async fn start() -> Result<Self> {
        let trust = Trust::new()?;
        let listener = HostNet::new(HERE).bind(0).await?;
        let address = listener.local_addr()?;
        let limits = Limits { streams: MANY + AT_ONCE, ..Limits::default() };
        let (relay, stop) = (Relay::new(limits), Stop::new());
        let tls = trust.server("hub", &[PROTOCOL])?;
        let who = |_: &[CertificateDer<'_>]| Ok(MEMBER.to_owned());
        let serve =
            Arc::clone(&relay).serve(listener, Arc::new(move || tls.clone()), Arc::new(who), None, stop.child());
        tokio::spawn(serve);
        let mut agent = on_end(&std::env::current_exe()?);
        agent.arg("tunnel-agent").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut agent = agent.spawn()?;
        let setup = json!({"relay": address, "agent": trust.told("agent")?, "server": trust.told("server")?});
        writeln!(agent.stdin.as_mut().context("no input")?, "{setup}")?;
        let mut line = String::new();
        BufReader::new(agent.stdout.take().context("no output")?).read_line(&mut line)?;
        let world =
            Self { relay, agent, direct: line.trim().parse()?, client: trust.client("hub", &[b"bench"])?, stop };
        // The first stream waits for the agent.
        trip(&mut world.open(true, ECHO).await?).await?;
        Ok(world)
    }

    /// A stream through the tunnel or a connection past it, that has said what it wants.
    async fn open(&self, through: bool, what: u8) -> Result<Box<dyn Way>> {
        let mut stream: Box<dyn Way> = if through {
            Box::new(self.relay.open(MEMBER, "inside").await?)
        } else {
            let tcp = TcpStream::connect(self.direct).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from("server")?;
            Box::new(TlsConnector::from(Arc::clone(&self.client)).connect(name, tcp).await?)
        };
        stream.write_all(&[what]).await?;
        Ok(stream)
    }

    /// MiB resident: here, and in the agent.
    fn memory(&self) -> Result<(f64, f64)> {
        Ok((memory(std::process::id())?.0, memory(self.agent.id())?.0))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.ask();
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// The agent, and what it leads to: `stolos-bench tunnel-agent`, told by its standard input what it needs.
pub(crate) fn agent() -> Result<()> {
    crate::process::raise_open_files();
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let setup: Value = serde_json::from_str(&line)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let inside = TcpListener::bind((HERE, 0)).await?;
        let port = inside.local_addr()?.port();
        tokio::spawn(serve(inside, None));
        let direct = TcpListener::bind((HERE, 0)).await?;
        let about = direct.local_addr()?;
        let (own, roots) = credentials(&setup["server"])?;
        let tls = stolos_pki::tls::server(&own, ClientAuth::Required(roots, Peers::Any), &[b"bench"])?;
        tokio::spawn(serve(direct, Some(tls)));
        writeln!(std::io::stdout(), "{about}")?;
        let (own, roots) = credentials(&setup["agent"])?;
        let tls = stolos_pki::tls::client(Some(&own), &roots, Peers::Any, &[PROTOCOL])?;
        let relay: SocketAddr = setup["relay"].as_str().context("relay")?.parse()?;
        let config = agent::Config {
            net: Arc::new(HostNet::new(HERE)),
            host: relay.ip().to_string(),
            port: relay.port(),
            name: ServerName::try_from("hub")?,
            tls: Arc::new(move || Arc::clone(&tls)),
            targets: [("inside".to_owned(), Target { host: HERE.to_string(), port })].into(),
            streams: u32::try_from(MANY + AT_ONCE)?,
        };
        agent::run(config, Stop::new(), |_| {}).await;
        Ok(())
    })
}

/// Whose it is: key, chain and roots.
fn credentials(told: &Value) -> Result<(Credentials, Roots)> {
    let text = |field: &str| told[field].as_str().ok_or_else(|| anyhow!("no {field}"));
    Ok((Credentials::from_pem(text("chain")?, text("key")?)?, Roots::from_pem(text("roots")?)?))
}

async fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let _ = tcp.set_nodelay(true);
        let tls = tls.clone().map(TlsAcceptor::from);
        tokio::spawn(async move {
            let served = match tls {
                Some(tls) => match tls.accept(tcp).await {
                    Ok(stream) => answer(stream).await,
                    Err(error) => Err(error),
                },
                None => answer(tcp).await,
            };
            drop(served);
        });
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    if stream.read_u8().await? == ECHO {
        let (mut from, mut to) = tokio::io::split(stream);
        return tokio::io::copy(&mut from, &mut to).await.map(drop);
    }
    let (mut left, bytes) = (stream.read_u64().await?, vec![0; 64 << 10]);
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        stream.write_all(&bytes[..now]).await?;
        left -= now as u64;
    }
    stream.shutdown().await
}
