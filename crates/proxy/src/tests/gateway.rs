//! The east-west gateway: bytes untouched, by server name and application protocol.

use std::time::{Duration, Instant};

use stolos_xds::envoy::config::listener::v3 as listener;
use stolos_xds::envoy::extensions::access_loggers::file::v3 as file_log;
use stolos_xds::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use stolos_xds::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use stolos_xds::message::{self, string, structure};
use stolos_xds::pack;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::world::{Running, any_filter, eds, endpoints, listener_filter, millis};
use crate::inspect::tests::hello_bytes;

const NAME: &str = "outbound_.5000_._.helloworld.sample.svc.cluster.local";

/// A gateway's listener, as Istio writes it for AUTO_PASSTHROUGH.
pub(super) fn passthrough(names: &[&str]) -> listener::Listener {
    let log = file_log::FileAccessLog {
        path: "/dev/stdout".into(),
        access_log_format: Some(file_log::file_access_log::AccessLogFormat::LogFormat(
            stolos_xds::envoy::config::core::v3::SubstitutionFormatString {
                format: Some(stolos_xds::envoy::config::core::v3::substitution_format_string::Format::JsonFormat(
                    structure([
                        ("sni", string("%REQUESTED_SERVER_NAME%")),
                        ("flags", string("%RESPONSE_FLAGS%")),
                        ("upstream_cluster", string("%UPSTREAM_CLUSTER%")),
                        ("received", string("%BYTES_RECEIVED%")),
                    ]),
                )),
                ..Default::default()
            },
        )),
    };
    let log = stolos_xds::envoy::config::accesslog::v3::AccessLog {
        config_type: Some(stolos_xds::envoy::config::accesslog::v3::access_log::ConfigType::TypedConfig(pack(&log))),
        ..Default::default()
    };
    let chain = |name: &&str| listener::FilterChain {
        name: (*name).into(),
        filter_chain_match: Some(listener::FilterChainMatch {
            server_names: vec![(*name).into()],
            application_protocols: vec!["istio".into(), "istio-http/1.1".into(), "istio-h2".into()],
            ..Default::default()
        }),
        filters: vec![any_filter(
            "envoy.filters.network.tcp_proxy",
            pack(&TcpProxy {
                cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster((*name).into())),
                access_log: vec![log.clone()],
                ..Default::default()
            }),
        )],
        ..Default::default()
    };
    listener::Listener {
        name: "0.0.0.0_15443".into(),
        address: Some(message::address("0.0.0.0", 15443)),
        listener_filters: vec![listener_filter(&TlsInspector::default())],
        filter_chains: names.iter().map(chain).collect(),
        access_log: vec![log.clone()],
        ..Default::default()
    }
}

async fn gateway() -> (Running, TcpListener) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut gateway = Running::start();
    gateway.put(NAME, &eds(NAME));
    gateway.put(NAME, &endpoints(NAME, &[server.local_addr().unwrap()], false));
    gateway.put("0.0.0.0_15443", &passthrough(&[NAME]));
    (gateway, server)
}

#[tokio::test]
async fn bytes_pass_untouched_by_name_and_protocol() {
    let (gateway, server) = gateway().await;
    for half in [0, 100] {
        let mut client = gateway.dial(15443).await;
        let hello = hello_bytes(NAME, &["istio-http/1.1", "istio", "http/1.1"]);
        // Whole, and in two pieces.
        client.write_all(&hello[..half]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.write_all(&hello[half..]).await.unwrap();
        let (mut inner, _) = server.accept().await.unwrap();
        let mut seen = vec![0; hello.len()];
        inner.read_exact(&mut seen).await.unwrap();
        assert_eq!(seen, hello);
        inner.write_all(b"server hello").await.unwrap();
        inner.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"server hello");
        client.write_all(b"after the half-close").await.unwrap();
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        inner.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"after the half-close");
    }
    let line = gateway.line("\"flags\":\"-\"").await;
    assert_eq!(line["sni"], NAME);
    assert_eq!(line["upstream_cluster"], NAME);
    assert!(line["received"].as_u64().unwrap() > 100);
}

#[tokio::test]
async fn what_no_chain_takes_is_closed() {
    let (gateway, _server) = gateway().await;
    let other = "outbound_.5000_._.other.sample.svc.cluster.local";
    for bytes in [
        hello_bytes(other, &["istio"]),
        hello_bytes(NAME, &["h2"]),
        hello_bytes(NAME, &[]),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut client = gateway.dial(15443).await;
        client.write_all(&bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        assert!(rest.is_empty());
    }
    assert_eq!(gateway.line(other).await["flags"], "NR");
}

#[tokio::test]
async fn half_a_hello_is_given_up_without_spinning() {
    let (mut gateway, _server) = gateway().await;
    let mut listener = passthrough(&[NAME]);
    listener.listener_filters_timeout = millis(200);
    gateway.put("0.0.0.0_15443", &listener);
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut client = gateway.dial(15443).await;
    client.write_all(&hello_bytes(NAME, &["istio"])[..50]).await.unwrap();
    let (before, began) = (cpu_nanos(), Instant::now());
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert!(rest.is_empty() && began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
    // This runtime has one thread, the proxy's work included.
    let nanos = cpu_nanos() - before;
    assert!(nanos < 50_000_000, "{nanos} ns of CPU for nothing");
}

/// What this thread has worked so far.
fn cpu_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_running_connection_survives_the_end_of_its_chain() {
    let (mut gateway, server) = gateway().await;
    let mut client = gateway.dial(15443).await;
    client.write_all(&hello_bytes(NAME, &["istio"])).await.unwrap();
    let (mut inner, _) = server.accept().await.unwrap();
    gateway.put("0.0.0.0_15443", &passthrough(&["outbound_.1_._.x"]));
    gateway.store.update(stolos_xds::message::CLUSTER, &[], &[NAME.to_owned()]).unwrap();
    inner.write_all(b"still here").await.unwrap();
    let mut still = [0; 10];
    client.read_exact(&mut still).await.unwrap();
    assert_eq!(&still, b"still here");
}

#[tokio::test]
async fn a_dead_pod_behind_it_is_passed_over() {
    let (mut gateway, server) = gateway().await;
    let dead = [super::world::nobody(), super::world::nobody()];
    gateway.put(NAME, &endpoints(NAME, &[dead[0], server.local_addr().unwrap(), dead[1]], false));
    for _ in 0..10 {
        let mut client = gateway.dial(15443).await;
        client.write_all(&hello_bytes(NAME, &["istio"])).await.unwrap();
        let (mut inner, _) = server.accept().await.unwrap();
        inner.write_all(b"!").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'!');
    }
    // With nobody alive it ends soon.
    gateway.put(NAME, &endpoints(NAME, &dead, false));
    let mut client = gateway.dial(15443).await;
    client.write_all(&hello_bytes(NAME, &["istio"])).await.unwrap();
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert_eq!(gateway.line("\"UF\"").await["sni"], NAME);
}

#[tokio::test]
async fn a_name_without_endpoints_is_closed_and_flagged() {
    let (mut gateway, _server) = gateway().await;
    gateway.put(NAME, &endpoints(NAME, &[], false));
    let mut client = gateway.dial(15443).await;
    client.write_all(&hello_bytes(NAME, &["istio"])).await.unwrap();
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert_eq!(gateway.line("\"UH\"").await["sni"], NAME);
}
