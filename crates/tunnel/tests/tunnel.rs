//! Real agents, real TLS, real sockets: streams to what cannot be dialled, and what happens when the connection goes.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use futures::future::{BoxFuture, join_all};
use stolos_pki::tls::{ClientAuth, Peers};
use stolos_pki::{Authority, Roots, SpiffeId};
use stolos_serve::{Gate, HostNet, Listener, Net, Stop};
use stolos_tunnel::agent::{self, Target};
use stolos_tunnel::{Error, Limits, PROTOCOL, Relay};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DAY: Duration = Duration::from_secs(86_400);

/// The machine's network, with a gate in every connection that is dialled.
struct Gated(HostNet, Arc<Gate>);

impl Net for Gated {
    fn address(&self) -> IpAddr {
        self.0.address()
    }

    fn dial(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<stolos_serve::Stream>> {
        Box::pin(async move {
            let tcp = tokio::net::TcpStream::connect(to).await?;
            Ok(stolos_serve::Stream::gated(tcp, Some(Arc::clone(&self.1))))
        })
    }

    fn bind(&self, port: u16) -> BoxFuture<'_, io::Result<Listener>> {
        self.0.bind(port)
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        self.0.resolve(host)
    }
}

/// A relay, the cluster behind it, and who may dial.
struct World {
    relay: Arc<Relay>,
    authority: Authority,
    address: SocketAddr,
    inside: SocketAddr,
    stop: Stop,
    tasks: Vec<JoinHandle<()>>,
}

impl World {
    async fn new(limits: Limits) -> Self {
        let authority = Authority::new_root("tunnel", 10 * DAY, SystemTime::now()).unwrap();
        let roots = Roots::from_pem(authority.roots_pem()).unwrap();
        let own = authority.sign_server(&["hub".into()], &[], None, DAY, SystemTime::now()).unwrap();
        let clients = ClientAuth::Required(roots, Peers::TrustDomains(["hub.local".to_owned()].into()));
        let tls = stolos_pki::tls::server(&own, clients, &[PROTOCOL]).unwrap();
        let listener = HostNet::new(HERE).bind(0).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (relay, stop) = (Relay::new(limits), Stop::new());
        let who = |certificates: &[rustls_pki_types::CertificateDer<'_>]| {
            let uri = stolos_pki::tls::peer_uri(certificates).ok_or("it has no identity")?;
            uri.rsplit('/').next().map(str::to_owned).ok_or_else(|| "it has no name".to_owned())
        };
        let serving =
            Arc::clone(&relay).serve(listener, Arc::new(move || tls.clone()), Arc::new(who), None, stop.child());
        let inside = TcpListener::bind((HERE, 0)).await.unwrap();
        let mut world = Self { relay, authority, address, inside: inside.local_addr().unwrap(), stop, tasks: vec![] };
        world.tasks.push(tokio::spawn(serving));
        world.tasks.push(tokio::spawn(echo(inside)));
        world
    }

    fn config(&self, member: &str, authority: &Authority, gate: &Arc<Gate>) -> agent::Config {
        let id = SpiffeId::parse(&format!("spiffe://hub.local/ns/stolos-hub/sa/{member}")).unwrap();
        let own = authority.sign_server(&[], &[], Some(&id), DAY, SystemTime::now()).unwrap();
        let roots = Roots::from_pem(self.authority.roots_pem()).unwrap();
        let tls = stolos_pki::tls::client_by_name(Some(&own), &roots, &[PROTOCOL]).unwrap();
        let target = |port| Target { host: HERE.to_string(), port };
        agent::Config {
            net: Arc::new(Gated(HostNet::new(HERE), Arc::clone(gate))),
            host: self.address.ip().to_string(),
            port: self.address.port(),
            name: "hub".try_into().unwrap(),
            tls: Arc::new(move || tls.clone()),
            targets: BTreeMap::from([("api".into(), target(self.inside.port())), ("dead".into(), target(1))]),
            streams: 1024,
        }
    }

    /// An agent of `member`, and what ends it.
    fn agent(&mut self, member: &str, gate: &Arc<Gate>) -> Stop {
        let stop = self.stop.child();
        let running = agent::run(self.config(member, &self.authority, gate), stop.clone(), |_| {});
        self.tasks.push(tokio::spawn(running));
        stop
    }

    async fn connections(&self, member: &str, count: usize) {
        for _ in 0..1500 {
            let status = self.relay.status();
            let seen = status.iter().find(|m| m.name == member).map_or(0, |m| m.connections.len());
            if seen == count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{member} never had {count} connections: {:?}", self.relay.status());
    }

    async fn end(self) {
        self.stop.ask();
        self.tasks.into_iter().for_each(|task| task.abort());
    }
}

/// Talks without end to whoever comes, and counts what it could say.
async fn flood(listener: TcpListener, said: Arc<AtomicU64>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let said = Arc::clone(&said);
        tokio::spawn(async move {
            while stream.write_all(&[7; 16 << 10]).await.is_ok() {
                said.fetch_add(16 << 10, Ordering::Relaxed);
            }
        });
    }
}

/// Says back what it hears, and closes when the other side has.
async fn echo(listener: TcpListener) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
    }
}

/// Sends `size` bytes and hears them back, each direction ended by its own side.
async fn there_and_back(relay: &Relay, member: &str, size: usize, seed: usize) -> Result<(), String> {
    let stream = relay.open(member, "api").await.map_err(|e| e.to_string())?;
    let (mut read, mut write) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..size).map(|n| ((n * 31 + seed * 7) % 251) as u8).collect();
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await?;
        write.shutdown().await
    });
    let mut heard = Vec::new();
    read.read_to_end(&mut heard).await.map_err(|e| e.to_string())?;
    sending.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    if heard == expected { Ok(()) } else { Err(format!("{} of {size} bytes came back", heard.len())) }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_go_over_one_connection_and_none_mixes_with_another() {
    let mut world = World::new(Limits::default()).await;
    world.agent("eu", &Gate::open());
    let streams = (0..200).map(|n| there_and_back(&world.relay, "eu", [0, 1, 70_000, 900_000][n % 4], n));
    for (n, ended) in join_all(streams).await.into_iter().enumerate() {
        ended.unwrap_or_else(|why| panic!("stream {n}: {why}"));
    }
    let status = world.relay.status();
    assert_eq!(status[0].connections.len(), 1);
    assert_eq!((status[0].opened, status[0].open), (200, 0));
    assert_eq!(status[0].sent, status[0].received);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_or_not_there_is_said() {
    let mut world = World::new(Limits { patience: Duration::from_millis(300), ..Limits::default() }).await;
    let said = |error: Error| error.to_string();
    let nobody = said(world.relay.open("eu", "api").await.unwrap_err());
    assert_eq!(nobody, "no agent of `eu` is connected, and none ever was");
    let agent = world.agent("eu", &Gate::open());
    world.connections("eu", 1).await;
    let unknown = said(world.relay.open("eu", "etcd").await.unwrap_err());
    assert_eq!(unknown, "the agent of `eu` could not open `etcd`: the agent offers no `etcd`");
    let dead = said(world.relay.open("eu", "dead").await.unwrap_err());
    assert!(dead.starts_with("the agent of `eu` could not open `dead`: 127.0.0.1:1: "), "{dead}");
    agent.ask();
    world.connections("eu", 0).await;
    let left = said(world.relay.open("eu", "api").await.unwrap_err());
    assert!(left.starts_with("no agent of `eu` is connected since "), "{left}");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_is_not_let_in() {
    let mut world = World::new(Limits { patience: Duration::from_millis(300), ..Limits::default() }).await;
    let foreign = Authority::new_root("foreign", DAY, SystemTime::now()).unwrap();
    let (said, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let config = world.config("eu", &foreign, &Gate::open());
    world.tasks.push(tokio::spawn(agent::run(config, world.stop.child(), move |news| drop(said.send(news)))));
    // It is told so at the handshake, or, since TLS 1.3 lets a client finish first, right after it.
    let lost = loop {
        match heard.recv().await.unwrap() {
            agent::News::Lost { why, .. } => break why,
            agent::News::Connected => {}
        }
    };
    assert!(!lost.is_empty());
    assert!(matches!(world.relay.open("eu", "api").await, Err(Error::Absent { lost: None, .. })));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_counted_and_given_back() {
    let limits = Limits { streams: 3, patience: Duration::from_millis(300), ..Limits::default() };
    let mut world = World::new(limits).await;
    world.agent("eu", &Gate::open());
    world.connections("eu", 1).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(world.relay.open("eu", "api").await.unwrap());
    }
    let full = world.relay.open("eu", "api").await.unwrap_err().to_string();
    assert_eq!(full, "`eu` has 3 streams open on each of its connections, which is all it may have");
    open.pop();
    there_and_back(&world.relay, "eu", 1000, 1).await.unwrap();
    world.end().await;
}

/// Whatever cuts it: the streams of then end with it, and a new one is there as soon as the agent is.
#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_is_cut_again_and_again_heals() {
    let mut world = World::new(Limits { patience: Duration::from_secs(30), ..Limits::default() }).await;
    world.agent("eu", &Gate::open());
    for round in 0..8 {
        let mut old = world.relay.open("eu", "api").await.unwrap();
        old.write_all(b"before").await.unwrap();
        let mut heard = [0; 6];
        old.read_exact(&mut heard).await.unwrap();
        world.relay.forget("eu");
        let mut rest = Vec::new();
        let ended = old.read_to_end(&mut rest).await;
        assert!(ended.is_err() || rest.is_empty(), "round {round}: {ended:?} {rest:?}");
        there_and_back(&world.relay, "eu", 100_000, round).await.unwrap();
    }
    world.end().await;
}

/// Nothing says that it is dead: no bytes come any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_fell_silent_is_found() {
    let mut world = World::new(Limits::default()).await;
    let gate = Gate::open();
    world.agent("eu", &gate);
    world.connections("eu", 1).await;
    gate.set_shut(true);
    world.connections("eu", 0).await;
    assert!(world.relay.status()[0].lost.is_some());
    gate.set_shut(false);
    world.connections("eu", 1).await;
    there_and_back(&world.relay, "eu", 1000, 1).await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_stand_in_for_each_other() {
    let mut world = World::new(Limits { patience: Duration::from_secs(30), ..Limits::default() }).await;
    let first = Gate::open();
    world.agent("eu", &first);
    let second = world.agent("eu", &Gate::open());
    world.connections("eu", 2).await;
    // One falls silent: what is asked of it meanwhile goes to the other, once its silence is noticed.
    first.set_shut(true);
    for ended in join_all((0..20).map(|n| there_and_back(&world.relay, "eu", 5000, n))).await {
        ended.unwrap();
    }
    first.set_shut(false);
    world.connections("eu", 2).await;
    second.ask();
    world.connections("eu", 1).await;
    there_and_back(&world.relay, "eu", 5000, 1).await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_nobody_reads_hold_up_no_other() {
    let mut world = World::new(Limits::default()).await;
    let listener = TcpListener::bind((HERE, 0)).await.unwrap();
    let said = Arc::new(AtomicU64::new(0));
    let mut config = world.config("eu", &world.authority, &Gate::open());
    config
        .targets
        .insert("flood".into(), Target { host: HERE.to_string(), port: listener.local_addr().unwrap().port() });
    world.tasks.push(tokio::spawn(flood(listener, Arc::clone(&said))));
    world.tasks.push(tokio::spawn(agent::run(config, world.stop.child(), |_| {})));
    let unread: Vec<_> = join_all((0..48).map(|_| world.relay.open("eu", "flood"))).await;
    assert!(unread.iter().all(Result::is_ok));
    // Each has all under way that it may.
    let full = async {
        while said.load(Ordering::Relaxed) < 48 << 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), full).await.expect("the streams hold each other up");
    there_and_back(&world.relay, "eu", 900_000, 1).await.unwrap();
    drop(unread);
    world.end().await;
}
