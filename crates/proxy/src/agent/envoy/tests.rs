//! With a real Envoy, where `STOLOS_ENVOY` names one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Mutex;

use futures::future::BoxFuture;
use stolos_serve::{HostNet, Listener, Net, Output, Programs, Stream};
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::listener::v3 as listener;
use stolos_xds::envoy::config::route::v3 as route;
use stolos_xds::envoy::extensions::filters::http::router::v3::Router;
use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use stolos_xds::envoy::extensions::transport_sockets::tls::v3 as tls;
use stolos_xds::message::{LISTENER, address};
use stolos_xds::{Resources, Snapshot, pack};

use super::*;
use crate::agent::tests::{ControlPlane, container};

#[path = "../../../../../tests/programs.rs"]
mod programs;

#[test]
fn only_the_connections_of_others_are_waited_for() {
    let stats = "listener.127.9.9.1_15006.downstream_cx_active: 3\nlistener.127.9.9.1_15021.downstream_cx_active: 1\n\
                 listener.127.9.9.1_15006.worker_0.downstream_cx_active: 3\nlistener.admin.downstream_cx_active: 1\n\
                 http.inbound_0.0.0.0_80.downstream_cx_active: 3\nlistener.127.9.9.1_15443.downstream_cx_active: 2\n";
    assert_eq!(connections(stats), 5);
    assert_eq!(connections("no such page"), 0);
}

/// A pod of which the Envoy's part is at an address of its own.
struct Pod {
    at: Ipv4Addr,
    program: PathBuf,
    ports: Mutex<BTreeSet<u16>>,
}

impl Programs for Pod {
    fn address(&self) -> IpAddr {
        self.at.into()
    }
    fn start(&self, program: &str, arguments: &[String], directory: &Path, output: Output) -> io::Result<Program> {
        assert_eq!(program, "envoy");
        Program::start(&self.program, arguments, directory, output)
    }
    fn listens(&self, ports: BTreeSet<u16>) -> BoxFuture<'_, io::Result<()>> {
        *self.ports.lock().unwrap() = ports;
        Box::pin(async { Ok(()) })
    }
}

/// Localhost is the pod.
struct Inside(Ipv4Addr);

impl Net for Inside {
    fn address(&self) -> IpAddr {
        self.0.into()
    }
    fn dial(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        let to = if to.port() == ADMIN_PORT { SocketAddr::from((self.0, ADMIN_PORT)) } else { to };
        Box::pin(async move { HostNet::default().dial(to).await })
    }
    fn bind(&self, _: u16) -> BoxFuture<'_, io::Result<Listener>> {
        Box::pin(async { Err(io::ErrorKind::Unsupported.into()) })
    }
    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async { Ok(vec![Ipv4Addr::LOCALHOST.into()]) })
    }
}

/// A listener with the workload's certificate, that answers everything.
fn encrypted(at: Ipv4Addr, port: u16) -> listener::Listener {
    let envoy_grpc = core::grpc_service::EnvoyGrpc { cluster_name: "sds-grpc".into(), ..Default::default() };
    let api = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        grpc_services: vec![core::GrpcService {
            target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(envoy_grpc)),
            ..Default::default()
        }],
        ..Default::default()
    };
    let source = core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(api)),
        ..Default::default()
    };
    let secret = |name: &str| tls::SdsSecretConfig { name: name.into(), sds_config: Some(source.clone()) };
    let validation = tls::common_tls_context::ValidationContextType::ValidationContextSdsSecretConfig(secret("ROOTCA"));
    let context = tls::DownstreamTlsContext {
        common_tls_context: Some(tls::CommonTlsContext {
            tls_certificate_sds_secret_configs: vec![secret("default")],
            validation_context_type: Some(validation),
            ..Default::default()
        }),
        ..Default::default()
    };
    let every = route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".into())),
        ..Default::default()
    };
    let answer = route::DirectResponseAction { status: 200, ..Default::default() };
    let routes = vec![route::Route {
        r#match: Some(every),
        action: Some(route::route::Action::DirectResponse(answer)),
        ..Default::default()
    }];
    let host = route::VirtualHost { name: "all".into(), domains: vec!["*".into()], routes, ..Default::default() };
    let config = route::RouteConfiguration { virtual_hosts: vec![host], ..Default::default() };
    let manager = hcm::HttpConnectionManager {
        stat_prefix: "in".into(),
        route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(config)),
        http_filters: vec![hcm::HttpFilter {
            name: "envoy.filters.http.router".into(),
            config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(&Router::default()))),
            ..Default::default()
        }],
        ..Default::default()
    };
    listener::Listener {
        name: "in".into(),
        address: Some(address(at.to_string(), port)),
        filter_chains: vec![listener::FilterChain {
            filters: vec![listener::Filter {
                name: "envoy.filters.network.http_connection_manager".into(),
                config_type: Some(listener::filter::ConfigType::TypedConfig(pack(&manager))),
            }],
            transport_socket: Some(core::TransportSocket {
                name: "envoy.transport_sockets.tls".into(),
                config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack(&context))),
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.unwrap_or_else(|_| panic!("{what} in time"))
}

/// The serial number of the certificate that Envoy shows.
async fn serial(container: &Container) -> Option<String> {
    let page = page_of(container, http::Method::GET, "/certs").await.ok()?;
    let page: serde_json::Value = serde_json::from_str(&page).ok()?;
    let serial = page.pointer("/certificates/0/cert_chain/0/serial_number")?.as_str()?;
    Some(serial.to_owned())
}

async fn lives(is_delta: bool) {
    let Some(program) = programs::program("STOLOS_ENVOY") else { return };
    let (stop, root) = (Stop::new(), tempfile::tempdir().unwrap());
    // A path too long for a socket's address: the agent's way around it is tried along.
    let root = root.path().join("a-folder-of-a-pod-whose-name-is-long".repeat(3));
    std::fs::create_dir_all(&root).unwrap();
    let control = ControlPlane::new(Duration::from_secs(6));
    let port = control.serve(&stop).await;
    let at =
        Ipv4Addr::from([127, rand::random_range(130..250), rand::random_range(1..250), rand::random_range(1..250)]);
    let taught = Snapshot::clone(&control.snapshots.borrow()).with(LISTENER, Resources::of([&encrypted(at, 18443)]));
    control.snapshots.send_replace(Arc::new(taught));

    let pod = Arc::new(Pod { at, program, ports: Mutex::default() });
    let mut container = container(&root, port, control.authority.roots_pem());
    container.net = Arc::new(Inside(at));
    container.programs = Some(Arc::clone(&pod) as Arc<dyn Programs>);
    container.env.insert("ISTIO_DELTA_XDS".into(), is_delta.to_string());
    let asked = Stop::new();
    let running = tokio::spawn(run(container.clone(), Duration::from_secs(2), asked.clone()));

    let first = eventually("a certificate", async || serial(&container).await).await;
    eventually("the listener", async || tokio::net::TcpStream::connect((at, 18443)).await.ok()).await;
    let mode = |name| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(root.join("etc/istio/proxy").join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("SDS"), mode("XDS")), (0o600, 0o600));
    assert_eq!(*pod.ports.lock().unwrap(), [15000, 15021, 15090, 18443].into());
    let ready = tokio::net::TcpStream::connect((at, HEALTH_PORT)).await;
    assert!(ready.is_ok(), "ready is said at its port: {ready:?}");
    // Half its life later there is another, in the same Envoy.
    eventually("another certificate", async || serial(&container).await.filter(|now| *now != first)).await;

    asked.ask();
    let ended = tokio::time::timeout(Duration::from_secs(10), running).await.expect("drained in time");
    ended.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect((at, 18443)).await.is_err(), "it is gone");
    stop.ask();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_lives_with_its_agent_by_differences() {
    lives(true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_lives_with_its_agent_by_the_state_of_the_world() {
    lives(false).await;
}
