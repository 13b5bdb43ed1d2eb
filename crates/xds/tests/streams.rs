//! Server and client over real sockets.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use stolos_serve::{HostNet, Listener, Stop, listen};
use stolos_xds::client::{Client, Handle, Link, Target};
use stolos_xds::envoy::config::cluster::v3::Cluster;
use stolos_xds::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType};
use stolos_xds::envoy::config::core::v3::Node;
use stolos_xds::envoy::config::endpoint::v3::ClusterLoadAssignment;
use stolos_xds::envoy::config::listener::v3::Listener as EnvoyListener;
use stolos_xds::envoy::service::discovery::v3 as discovery;
use stolos_xds::message::{CLUSTER, ENDPOINT, LISTENER, string, structure};
use stolos_xds::server::{Nack, Proxy, Server, Source, per_connection};
use stolos_xds::{Resources, Snapshot, unpack};
use tokio::sync::watch;

/// One state for all proxies.
struct World {
    now: watch::Sender<Arc<Snapshot>>,
    settled: watch::Sender<Option<Arc<str>>>,
    refused: Mutex<Vec<Nack>>,
}

impl World {
    fn new(now: Snapshot) -> Arc<Self> {
        let (now, settled) = (watch::Sender::new(Arc::new(now)), watch::Sender::new(None));
        Arc::new(Self { now, settled, refused: Mutex::default() })
    }
}

impl Source for World {
    fn connect<'a>(&'a self, proxy: &'a Proxy) -> BoxFuture<'a, Result<watch::Receiver<Arc<Snapshot>>, tonic::Status>> {
        Box::pin(async move {
            if proxy.metadata.get("authorization").is_none_or(|token| token != "Bearer token") {
                return Err(tonic::Status::unauthenticated("no token"));
            }
            assert_eq!(proxy.text(&["CLUSTER_ID"]), Some("east"));
            assert!(proxy.peer().is_some());
            Ok(self.now.subscribe())
        })
    }

    fn settled(&self, _: &Proxy, version: &Arc<str>) {
        self.settled.send_replace(Some(Arc::clone(version)));
    }

    fn refused(&self, _: &Proxy, nack: &Nack) {
        self.refused.lock().unwrap().push(nack.clone());
    }
}

struct Serving {
    server: Server<World>,
    world: Arc<World>,
    stop: Stop,
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Serving {
    async fn start(world: Arc<World>, port: u16) -> Self {
        let stop = Stop::new();
        let server = Server::new(Arc::clone(&world), stop.clone());
        let tcp = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = tcp.local_addr().unwrap().port();
        let routes = tonic::service::Routes::new(server.service()).into_axum_router();
        let task =
            tokio::spawn(listen::http(Listener::from(tcp), listen::Settings::default(), stop.clone(), move |peer| {
                per_connection(routes.clone(), peer)
            }));
        Self { server, world, stop, port, task }
    }

    async fn end(self) {
        self.stop.ask();
        self.server.ended().await;
        self.task.await.unwrap();
    }

    async fn settled(&self, version: &str) {
        let mut settled = self.world.settled.subscribe();
        let wait = settled.wait_for(|settled| settled.as_deref() == Some(version));
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("the proxy settles").unwrap();
    }

    fn resources_sent(&self, type_url: &str) -> u64 {
        self.server.totals().get(type_url).map_or(0, |totals| totals.resources)
    }
}

fn target(port: u16) -> Target {
    Target {
        net: Arc::new(HostNet::default()),
        host: "127.0.0.1".into(),
        port,
        tls: None,
        timeout: Duration::from_secs(5),
    }
}

fn client(port: u16) -> Client {
    let metadata = structure([("CLUSTER_ID", string("east"))]);
    let node = Node { id: "sidecar~1".into(), metadata: Some(metadata), ..Node::default() };
    let mut client = Client::new(target(port), node);
    client.metadata = Arc::new(|| {
        Box::pin(async {
            let mut metadata = tonic::metadata::MetadataMap::new();
            metadata.insert("authorization", "Bearer token".parse().unwrap());
            Ok(metadata)
        })
    });
    client.backoff = (Duration::from_millis(10), Duration::from_millis(50));
    client
}

fn cluster(name: String, content: &str) -> Cluster {
    Cluster {
        name,
        alt_stat_name: content.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        ..Cluster::default()
    }
}

/// `count` clusters with their endpoints; the first `changed` of each differ with `version`.
fn world(version: &str, count: usize, changed: usize) -> Snapshot {
    let endpoints: Vec<_> = (0..count)
        .map(|n| ClusterLoadAssignment {
            cluster_name: format!("c{n:04}"),
            policy: (n < changed).then(|| stolos_xds::envoy::config::endpoint::v3::cluster_load_assignment::Policy {
                overprovisioning_factor: Some(version.parse().unwrap()),
                ..Default::default()
            }),
            ..Default::default()
        })
        .collect();
    let clusters: Vec<_> = (0..count).map(|n| cluster(format!("c{n:04}"), "")).collect();
    let listener = EnvoyListener { name: "l".into(), ..EnvoyListener::default() };
    Snapshot::new(version)
        .with(CLUSTER, Resources::of(&clusters))
        .with(ENDPOINT, Resources::of(&endpoints))
        .with(LISTENER, Resources::of([&listener]))
}

async fn wait(handle: &Handle, what: &str, is: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut snapshots = handle.snapshots();
    let wait = snapshots.wait_for(|snapshot| is(snapshot));
    let found = tokio::time::timeout(Duration::from_secs(10), wait).await;
    found.unwrap_or_else(|_| panic!("{what} in time")).unwrap().clone()
}

fn has(snapshot: &Snapshot, type_url: &str, count: usize) -> bool {
    snapshot.get(type_url).is_some_and(|resources| resources.len() == count)
}

#[tokio::test]
async fn a_change_among_a_thousand_sends_just_the_change() {
    let serving = Serving::start(World::new(world("1", 1000, 0)), 0).await;
    let stop = Stop::new();
    let handle = client(serving.port).start(stop.clone());
    wait(&handle, "everything", |s| has(s, CLUSTER, 1000) && has(s, ENDPOINT, 1000) && has(s, LISTENER, 1)).await;
    serving.settled("1").await;
    let sent = [CLUSTER, ENDPOINT, LISTENER].map(|of| serving.resources_sent(of));
    assert_eq!(sent, [1000, 1000, 1]);
    let connections = serving.server.connections();
    assert_eq!(connections.len(), 1);
    assert_eq!((connections[0].node.as_str(), connections[0].types[CLUSTER].word()), ("sidecar~1", "SYNCED"));

    serving.world.now.send_replace(Arc::new(world("2", 1000, 3)));
    serving.settled("2").await;
    let sent = [CLUSTER, ENDPOINT, LISTENER].map(|of| serving.resources_sent(of));
    assert_eq!(sent, [1000, 1003, 1]);

    serving.world.now.send_replace(Arc::new(world("3", 998, 3)));
    wait(&handle, "removal", |s| has(s, CLUSTER, 998) && has(s, ENDPOINT, 998)).await;
    stop.ask();
    handle.ended().await;
    serving.end().await;
}

#[tokio::test]
async fn a_reconnect_resumes() {
    let world_ = World::new(world("1", 100, 0));
    let serving = Serving::start(Arc::clone(&world_), 0).await;
    let port = serving.port;
    let stop = Stop::new();
    let handle = client(port).start(stop.clone());
    wait(&handle, "everything", |s| has(s, CLUSTER, 100) && has(s, ENDPOINT, 100)).await;
    serving.settled("1").await;
    serving.end().await;
    let mut link = handle.link();
    let down = link.wait_for(|link| matches!(link, Link::Down { .. }));
    tokio::time::timeout(Duration::from_secs(5), down).await.unwrap().unwrap();
    assert!(has(&handle.snapshots().borrow(), CLUSTER, 100), "what was taken stays");

    world_.now.send_replace(Arc::new(world("2", 100, 2)));
    let serving = Serving::start(world_, port).await;
    let twice = |s: &Snapshot| s.resource(ENDPOINT, "c0001").map(|resource| resource.version.clone());
    let new = twice(&world("2", 100, 2));
    wait(&handle, "the change", |s| twice(s) == new).await;
    let sent = [CLUSTER, ENDPOINT, LISTENER].map(|of| serving.resources_sent(of));
    assert_eq!(sent, [0, 2, 0], "only what changed meanwhile");
    stop.ask();
    handle.ended().await;
    serving.end().await;
}

#[tokio::test]
async fn a_refusal_is_seen() {
    let snapshot = |bad: &str| {
        let clusters = [cluster("a".into(), bad), cluster("b".into(), "")];
        Snapshot::new(format!("with {bad}")).with(CLUSTER, Resources::of(&clusters))
    };
    let serving = Serving::start(World::new(snapshot("good")), 0).await;
    let stop = Stop::new();
    let mut client = client(serving.port);
    client.check = Arc::new(|_, resource| match unpack::<Cluster>(&resource.body) {
        Ok(cluster) if cluster.alt_stat_name == "bad" => Err("alt_stat_name is bad".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    });
    let handle = client.start(stop.clone());
    serving.settled("with good").await;
    serving.world.now.send_replace(Arc::new(snapshot("bad")));
    serving.settled("with bad").await;
    let nacks: Vec<_> = serving.world.refused.lock().unwrap().iter().map(|nack| nack.message.clone()).collect();
    assert_eq!(nacks, ["a: alt_stat_name is bad"]);
    let connections = serving.server.connections();
    let status = &connections[0].types[CLUSTER];
    assert_eq!((status.word(), status.refusals, status.sent.as_deref()), ("ERROR", 1, Some("with bad")));
    assert_eq!(serving.server.totals()[CLUSTER].refused, 1);
    let kept = handle.snapshots().borrow().resource(CLUSTER, "a").unwrap().message::<Cluster>().unwrap();
    assert_eq!(kept.alt_stat_name, "good");

    serving.world.now.send_replace(Arc::new(snapshot("better")));
    serving.settled("with better").await;
    assert_eq!(serving.server.connections()[0].types[CLUSTER].word(), "SYNCED");
    stop.ask();
    handle.ended().await;
    serving.end().await;
}

#[tokio::test]
async fn who_is_not_let_in_is_told_and_tries_again() {
    let serving = Serving::start(World::new(world("1", 1, 0)), 0).await;
    let stop = Stop::new();
    let mut client = client(serving.port);
    let calls = Arc::new(AtomicUsize::new(0));
    let (count, metadata) = (Arc::clone(&calls), Arc::clone(&client.metadata));
    client.metadata = Arc::new(move || match count.fetch_add(1, Ordering::SeqCst) {
        0 => Box::pin(async { Ok(tonic::metadata::MetadataMap::new()) }),
        _ => metadata(),
    });
    let handle = client.start(stop.clone());
    let mut link = handle.link();
    let wait = link.wait_for(|link| matches!(link, Link::Down { attempts: 1, why } if why.contains("no token")));
    tokio::time::timeout(Duration::from_secs(5), wait).await.unwrap().unwrap();
    let wait = link.wait_for(|link| *link == Link::Up);
    tokio::time::timeout(Duration::from_secs(5), wait).await.unwrap().unwrap();
    stop.ask();
    handle.ended().await;
    serving.end().await;
}

#[tokio::test]
async fn the_state_of_the_world_is_served_too() {
    let serving = Serving::start(World::new(world("1", 2, 0)), 0).await;
    let channel = target(serving.port).connect().await.unwrap();
    let mut ads = discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient::new(channel);
    let (requests, mut queue) = tokio::sync::mpsc::channel(8);
    let metadata = structure([("CLUSTER_ID", string("east"))]);
    let node = Node { metadata: Some(metadata), ..Node::default() };
    let ask = |nonce: &str| discovery::DiscoveryRequest {
        type_url: CLUSTER.into(),
        response_nonce: nonce.into(),
        node: Some(node.clone()),
        ..Default::default()
    };
    requests.send(ask("")).await.unwrap();
    let mut request = tonic::Request::new(futures::stream::poll_fn(move |cx| queue.poll_recv(cx)));
    request.metadata_mut().insert("authorization", "Bearer token".parse().unwrap());
    let mut responses = ads.stream_aggregated_resources(request).await.unwrap().into_inner();
    let first = responses.message().await.unwrap().unwrap();
    assert_eq!((first.resources.len(), first.version_info.as_str()), (2, "1"));
    requests.send(ask(&first.nonce)).await.unwrap();
    serving.world.now.send_replace(Arc::new(world("2", 3, 0)));
    let second = responses.message().await.unwrap().unwrap();
    assert_eq!((second.resources.len(), second.version_info.as_str()), (3, "2"));
    drop(requests);
    serving.end().await;
}
