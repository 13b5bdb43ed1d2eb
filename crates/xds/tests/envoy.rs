//! A real Envoy takes what this server sends. `STOLOS_ENVOY` names it; without it these tests say that they did not
//! run, and fail where `STOLOS_REQUIRE_PROGRAMS=1`.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use stolos_serve::{Listener, Stop, listen};
use stolos_xds::envoy::config::cluster::v3::Cluster;
use stolos_xds::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
use stolos_xds::envoy::config::core::v3::{
    AggregatedConfigSource, ApiVersion, ConfigSource, config_source::ConfigSourceSpecifier,
};
use stolos_xds::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use stolos_xds::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use stolos_xds::envoy::config::listener::v3::filter::ConfigType;
use stolos_xds::envoy::config::listener::v3::{Filter, FilterChain, Listener as EnvoyListener};
use stolos_xds::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route, route_action, route_match,
};
use stolos_xds::envoy::extensions::filters::http::router::v3::Router;
use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds, http_connection_manager::RouteSpecifier, http_filter,
};
use stolos_xds::message::{CLUSTER, ENDPOINT, LISTENER, ROUTE, address};
use stolos_xds::server::{Nack, Proxy, Server, Source, per_connection};
use stolos_xds::{Resources, Snapshot, pack, pack_as};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[path = "../../../tests/programs.rs"]
mod programs;
use tokio::sync::watch;

/// Where Envoy listens, at an address of its own.
const PORT: u16 = 18080;

struct World {
    now: watch::Sender<Arc<Snapshot>>,
    settled: watch::Sender<Option<Arc<str>>>,
    refused: Mutex<Vec<Nack>>,
}

impl Source for World {
    fn connect<'a>(&'a self, _: &'a Proxy) -> BoxFuture<'a, Result<watch::Receiver<Arc<Snapshot>>, tonic::Status>> {
        Box::pin(async { Ok(self.now.subscribe()) })
    }
    fn settled(&self, _: &Proxy, version: &Arc<str>) {
        self.settled.send_replace(Some(Arc::clone(version)));
    }
    fn refused(&self, _: &Proxy, nack: &Nack) {
        self.refused.lock().unwrap().push(nack.clone());
    }
}

fn ads() -> Option<ConfigSource> {
    Some(ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..ConfigSource::default()
    })
}

/// One service behind one listener.
fn world(version: &str, at: Ipv4Addr, upstream: u16, connect_millis: i32, is_bad: bool) -> Snapshot {
    let cluster = Cluster {
        name: "service".into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), ..Default::default() }),
        connect_timeout: Some(stolos_xds::prost_types::Duration { seconds: 0, nanos: connect_millis * 1_000_000 }),
        ..Cluster::default()
    };
    let endpoint = Endpoint { address: Some(address("127.0.0.1", upstream)), ..Endpoint::default() };
    let endpoint = LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(endpoint)), ..LbEndpoint::default() };
    let locality = LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..LocalityLbEndpoints::default() };
    let endpoints =
        ClusterLoadAssignment { cluster_name: "service".into(), endpoints: vec![locality], ..Default::default() };
    let of_router = if is_bad {
        pack_as("type.googleapis.com/no.such.Filter", &Router::default())
    } else {
        pack(&Router::default())
    };
    let router = HttpFilter {
        name: "envoy.filters.http.router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(of_router)),
        ..HttpFilter::default()
    };
    let manager = HttpConnectionManager {
        stat_prefix: "in".into(),
        route_specifier: Some(RouteSpecifier::Rds(Rds { config_source: ads(), route_config_name: "80".into() })),
        http_filters: vec![router],
        ..HttpConnectionManager::default()
    };
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".into(),
        config_type: Some(ConfigType::TypedConfig(pack(&manager))),
    };
    let listener = EnvoyListener {
        name: "in".into(),
        address: Some(address(at.to_string(), PORT)),
        filter_chains: vec![FilterChain { filters: vec![filter], ..FilterChain::default() }],
        ..EnvoyListener::default()
    };
    let action = RouteAction {
        cluster_specifier: Some(route_action::ClusterSpecifier::Cluster("service".into())),
        ..RouteAction::default()
    };
    let every =
        RouteMatch { path_specifier: Some(route_match::PathSpecifier::Prefix("/".into())), ..RouteMatch::default() };
    let route = Route { r#match: Some(every), action: Some(route::Action::Route(action)), ..Route::default() };
    let host = VirtualHost { name: "all".into(), domains: vec!["*".into()], routes: vec![route], ..Default::default() };
    let routes = RouteConfiguration { name: "80".into(), virtual_hosts: vec![host], ..Default::default() };
    Snapshot::new(version)
        .with(CLUSTER, Resources::of([&cluster]))
        .with(ENDPOINT, Resources::of([&endpoints]))
        .with(LISTENER, Resources::of([&listener]))
        .with(ROUTE, Resources::of([&routes]))
}

/// Answers every connection with `body`.
async fn upstream(body: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            });
        }
    });
    port
}

async fn get(at: Ipv4Addr) -> String {
    let Ok(mut stream) = TcpStream::connect((at, PORT)).await else { return "no listener".into() };
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

async fn answers(at: Ipv4Addr, body: &str) {
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = get(at).await;
        if answer.ends_with(body) {
            return;
        }
        assert!(tokio::time::Instant::now() < until, "expected {body}, found {answer}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn takes_what_is_sent(api_type: &str) {
    let Some(envoy) = programs::program("STOLOS_ENVOY") else { return };
    let (first, second) = (upstream("first").await, upstream("second").await);
    // Nobody else's: a port of 127.0.0.1 that is free now may be taken before Envoy is there.
    let at =
        Ipv4Addr::from([127, rand::random_range(130..250), rand::random_range(1..250), rand::random_range(1..250)]);
    let now = watch::Sender::new(Arc::new(world("1", at, first, 500, false)));
    let world_ = Arc::new(World { now, settled: watch::Sender::new(None), refused: Mutex::default() });
    let stop = Stop::new();
    let server = Server::new(Arc::clone(&world_), stop.clone());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let control = tcp.local_addr().unwrap().port();
    let routes = tonic::service::Routes::new(server.service()).into_axum_router();
    let serving =
        tokio::spawn(listen::http(Listener::from(tcp), listen::Settings::default(), stop.clone(), move |peer| {
            per_connection(routes.clone(), peer)
        }));

    let folder = tempfile::tempdir().unwrap();
    let bootstrap = folder.path().join("bootstrap.yaml");
    let text = format!(
        "node: {{id: sidecar~127.0.0.1~a.b~c, cluster: a}}
dynamic_resources:
  ads_config: {{api_type: {api_type}, transport_api_version: V3, grpc_services: [{{envoy_grpc: {{cluster_name: xds}}}}]}}
  cds_config: {{ads: {{}}, resource_api_version: V3}}
  lds_config: {{ads: {{}}, resource_api_version: V3}}
static_resources:
  clusters:
  - name: xds
    type: STATIC
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    load_assignment:
      cluster_name: xds
      endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {control}}}}}}}}}]}}]
"
    );
    std::fs::write(&bootstrap, text).unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let mut child = tokio::process::Command::new(envoy)
        .args(["--disable-hot-restart", "--concurrency", "1", "-l", "info", "-c"])
        .arg(&bootstrap)
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap();

    answers(at, "first").await;
    // Endpoints alone; then a cluster that must warm anew, whose endpoints have not changed.
    world_.now.send_replace(Arc::new(world("2", at, second, 500, false)));
    answers(at, "second").await;
    world_.now.send_replace(Arc::new(world("3", at, second, 600, false)));
    let mut settled = world_.settled.subscribe();
    let wait = settled.wait_for(|settled| settled.as_deref() == Some("3"));
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap().unwrap();
    answers(at, "second").await;
    assert!(world_.refused.lock().unwrap().is_empty(), "{:?}", world_.refused.lock().unwrap());
    let status = server.connections();
    for of in [CLUSTER, ENDPOINT, LISTENER, ROUTE] {
        assert_eq!(status[0].types[of].word(), "SYNCED", "{of}");
    }
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(!log.contains("fetch timed out"), "{log}");

    world_.now.send_replace(Arc::new(world("4", at, first, 600, true)));
    answers(at, "first").await;
    let wait = settled.wait_for(|settled| settled.as_deref() == Some("4"));
    tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap().unwrap();
    assert_eq!(server.totals()[LISTENER].refused, 1);
    assert_eq!(server.connections()[0].types[LISTENER].word(), "ERROR");

    child.kill().await.unwrap();
    stop.ask();
    server.ended().await;
    serving.await.unwrap();
}

#[tokio::test]
async fn envoy_takes_changes() {
    takes_what_is_sent("DELTA_GRPC").await;
}

#[tokio::test]
async fn envoy_takes_the_state_of_the_world() {
    takes_what_is_sent("GRPC").await;
}
