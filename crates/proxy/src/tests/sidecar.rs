//! A client's sidecar and a server's, with the mutual TLS between them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use stolos_serve::{Listener as Socket, Stop, listen};
use stolos_xds::envoy::config::accesslog::v3 as accesslog;
use stolos_xds::envoy::config::cluster::v3 as cluster;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::listener::v3 as listener;
use stolos_xds::envoy::config::route::v3 as route;
use stolos_xds::envoy::extensions::access_loggers::file::v3 as file_log;
use stolos_xds::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use stolos_xds::envoy::extensions::filters::listener::proxy_protocol::v3::ProxyProtocol;
use stolos_xds::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use stolos_xds::envoy::extensions::filters::network::tcp_proxy::v3::{TcpProxy, tcp_proxy};
use stolos_xds::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use stolos_xds::envoy::extensions::transport_sockets::tls::v3 as tls;
use stolos_xds::envoy::r#type::matcher::v3 as matcher;
use stolos_xds::message::{self, string, structure};
use stolos_xds::pack;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::world::{
    Running, SOON, Trust, any_filter, eds, endpoints, eventually, listener_filter, millis, nobody, original, socket,
};
use crate::inspect::tests::proxy_bytes;

pub(super) const SERVICE: &str = "helloworld.sample.svc.cluster.local";
pub(super) const CLUSTER: &str = "outbound|5000||helloworld.sample.svc.cluster.local";
pub(super) const VIP: &str = "10.96.0.7:5000";
const SERVER_ID: &str = "spiffe://cluster.local/ns/sample/sa/helloworld";
const CLIENT_ID: &str = "spiffe://cluster.local/ns/sample/sa/sleep";

// ---- What a control plane would write --------------------------------------------------------------------------

fn logs() -> Vec<accesslog::AccessLog> {
    let fields = [
        ("id", "%REQ(X-REQUEST-ID)%"),
        ("path", "%REQ(:PATH)%"),
        ("code", "%RESPONSE_CODE%"),
        ("flags", "%RESPONSE_FLAGS%"),
        ("host", "%UPSTREAM_HOST%"),
        ("cluster", "%UPSTREAM_CLUSTER%"),
        ("server", "%UPSTREAM_PEER_URI_SAN%"),
        ("client", "%DOWNSTREAM_PEER_URI_SAN%"),
        ("sni", "%REQUESTED_SERVER_NAME%"),
        ("sent", "%BYTES_SENT%"),
        ("received", "%BYTES_RECEIVED%"),
        ("why", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ];
    let format = structure(fields.map(|(key, value)| (key, string(value))));
    let format = core::SubstitutionFormatString {
        format: Some(core::substitution_format_string::Format::JsonFormat(format)),
        ..Default::default()
    };
    let log = file_log::FileAccessLog {
        path: "/dev/stdout".into(),
        access_log_format: Some(file_log::file_access_log::AccessLogFormat::LogFormat(format)),
    };
    vec![accesslog::AccessLog {
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(pack(&log))),
        ..Default::default()
    }]
}

fn common_tls(pattern: Option<matcher::string_matcher::MatchPattern>, alpn: &[&str]) -> tls::CommonTlsContext {
    let secret = |name: &str| tls::SdsSecretConfig { name: name.into(), sds_config: None };
    let names = pattern.map(|pattern| tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(matcher::StringMatcher { match_pattern: Some(pattern), ..Default::default() }),
        ..Default::default()
    });
    let combined = tls::common_tls_context::CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: names.into_iter().collect(),
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(secret("ROOTCA")),
        ..Default::default()
    };
    tls::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![secret("default")],
        alpn_protocols: alpn.iter().map(|p| (*p).into()).collect(),
        validation_context_type: Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(
            combined,
        )),
        ..Default::default()
    }
}

/// The cluster of the service, whose servers must be `identity`.
pub(super) fn service(identity: &str) -> cluster::Cluster {
    let context = tls::UpstreamTlsContext {
        common_tls_context: Some(common_tls(
            Some(matcher::string_matcher::MatchPattern::Exact(identity.into())),
            &["istio-peer-exchange", "istio"],
        )),
        sni: "outbound_.5000_._.helloworld.sample.svc.cluster.local".into(),
        ..Default::default()
    };
    let one = |name: &str, fields: &[(&str, &str)], socket| cluster::cluster::TransportSocketMatch {
        name: name.into(),
        r#match: Some(structure(fields.iter().map(|(key, value)| (*key, string(*value))))),
        transport_socket: Some(socket),
    };
    cluster::Cluster {
        transport_socket_matches: vec![
            one("tlsMode-istio", &[("tlsMode", "istio")], socket("envoy.transport_sockets.tls", pack(&context))),
            one("tlsMode-disabled", &[], socket("envoy.transport_sockets.raw_buffer", pack(&RawBuffer::default()))),
        ],
        outlier_detection: Some(cluster::OutlierDetection {
            consecutive_gateway_failure: Some(3),
            enforcing_consecutive_gateway_failure: Some(100),
            enforcing_consecutive_5xx: Some(0),
            base_ejection_time: millis(60_000),
            max_ejection_percent: Some(99),
            ..Default::default()
        }),
        ..eds(CLUSTER)
    }
}

pub(super) fn routes(name: &str, to: &str) -> route::RouteConfiguration {
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(to.into())),
        timeout: millis(0),
        retry_policy: Some(route::RetryPolicy {
            retry_on: "connect-failure,refused-stream,reset-before-request,reset".into(),
            num_retries: Some(2),
            retry_host_predicate: vec![route::retry_policy::RetryHostPredicate::default()],
            retry_back_off: Some(route::retry_policy::RetryBackOff {
                base_interval: millis(1),
                max_interval: millis(2),
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let any_path = route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".into())),
        ..Default::default()
    };
    let host = |domain: &str, action| route::VirtualHost {
        name: domain.into(),
        domains: vec![domain.into()],
        routes: vec![route::Route { r#match: Some(any_path.clone()), action: Some(action), ..Default::default() }],
        ..Default::default()
    };
    let unknown = route::DirectResponseAction { status: 502, ..Default::default() };
    route::RouteConfiguration {
        name: name.into(),
        virtual_hosts: vec![
            host(if name == "inbound" { "*" } else { SERVICE }, route::route::Action::Route(action)),
            host("unknown.example", route::route::Action::DirectResponse(unknown)),
        ],
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

fn manager(routes: hcm::http_connection_manager::RouteSpecifier, append: bool) -> listener::Filter {
    use hcm::http_connection_manager::ForwardClientCertDetails::{AppendForward, Sanitize};
    let manager = hcm::HttpConnectionManager {
        http_filters: vec![hcm::HttpFilter { name: "envoy.filters.http.router".into(), ..Default::default() }],
        route_specifier: Some(routes),
        access_log: logs(),
        upgrade_configs: vec![hcm::http_connection_manager::UpgradeConfig {
            upgrade_type: "websocket".into(),
            ..Default::default()
        }],
        forward_client_cert_details: if append { AppendForward } else { Sanitize }.into(),
        ..Default::default()
    };
    any_filter("envoy.filters.network.http_connection_manager", pack(&manager))
}

fn bytes_to(name: &str) -> listener::Filter {
    let proxy = TcpProxy {
        cluster_specifier: Some(tcp_proxy::ClusterSpecifier::Cluster(name.into())),
        access_log: logs(),
        ..Default::default()
    };
    any_filter("envoy.filters.network.tcp_proxy", pack(&proxy))
}

/// `virtualOutbound`.
pub(super) fn virtual_outbound() -> listener::Listener {
    listener::Listener {
        name: "virtualOutbound".into(),
        address: Some(message::address("0.0.0.0", 15001)),
        use_original_dst: Some(true),
        listener_filters: vec![listener_filter(&ProxyProtocol::default())],
        filter_chains: vec![listener::FilterChain {
            filters: vec![bytes_to("PassthroughCluster")],
            ..Default::default()
        }],
        traffic_direction: core::TrafficDirection::Outbound.into(),
        ..Default::default()
    }
}

pub(super) fn of_port(port: u16) -> listener::Listener {
    let rds = hcm::Rds { route_config_name: port.to_string(), ..Default::default() };
    listener::Listener {
        name: format!("0.0.0.0_{port}"),
        address: Some(message::address("0.0.0.0", port)),
        bind_to_port: Some(false),
        filter_chains: vec![listener::FilterChain {
            filters: vec![manager(hcm::http_connection_manager::RouteSpecifier::Rds(rds), false)],
            ..Default::default()
        }],
        traffic_direction: core::TrafficDirection::Outbound.into(),
        ..Default::default()
    }
}

/// `virtualInbound` of a workload whose port `target` speaks whatever is sent, under STRICT.
fn virtual_inbound(target: u16) -> listener::Listener {
    let prefix = matcher::string_matcher::MatchPattern::Prefix("spiffe://cluster.local/".into());
    let chain = |protocols: &[&str], alpn: &[&str], filter| {
        let context = tls::DownstreamTlsContext {
            common_tls_context: Some(common_tls(Some(prefix.clone()), alpn)),
            require_client_certificate: Some(true),
            ..Default::default()
        };
        listener::FilterChain {
            filter_chain_match: Some(listener::FilterChainMatch {
                destination_port: Some(target.into()),
                transport_protocol: "tls".into(),
                application_protocols: protocols.iter().map(|p| (*p).into()).collect(),
                ..Default::default()
            }),
            transport_socket: Some(socket("envoy.transport_sockets.tls", pack(&context))),
            filters: vec![filter],
            ..Default::default()
        }
    };
    let inline = hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes("inbound", "inbound|80||"));
    listener::Listener {
        name: "virtualInbound".into(),
        address: Some(message::address("0.0.0.0", 15006)),
        listener_filters: vec![
            listener_filter(&ProxyProtocol::default()),
            listener_filter(&TlsInspector::default()),
            listener_filter(&HttpInspector::default()),
        ],
        filter_chains: vec![
            chain(&["istio-http/1.1", "istio-h2"], &["h2", "http/1.1"], manager(inline, true)),
            chain(&[], &["istio-peer-exchange", "h2", "http/1.1"], bytes_to("inbound|80||")),
        ],
        traffic_direction: core::TrafficDirection::Inbound.into(),
        ..Default::default()
    }
}

// ---- The pods --------------------------------------------------------------------------------------------------

/// A server's pod: an application, its sidecar, and the kubelet's redirect before it.
struct Pod {
    sidecar: Running,
    application: SocketAddr,
    /// What a client dials.
    address: SocketAddr,
}

impl Pod {
    async fn start(trust: &Trust, account: &str, application: SocketAddr) -> Self {
        let mut sidecar = Running::start_in("west");
        sidecar.identify(trust, account);
        sidecar.put("inbound|80||", &original("inbound|80||"));
        sidecar.put("virtualInbound", &virtual_inbound(application.port()));
        let (redirect, inbound) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), sidecar.at(15006).await);
        let address = redirect.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut client, peer)) = redirect.accept().await {
                tokio::spawn(async move {
                    let mut proxy = TcpStream::connect(inbound).await?;
                    proxy.write_all(&proxy_bytes(&peer.to_string(), &application.to_string())).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut proxy).await
                });
            }
        });
        Self { sidecar, application, address }
    }
}

impl Running {
    fn identify(&mut self, trust: &Trust, account: &str) {
        let (credentials, roots) = (trust.workload(account), trust.roots());
        self.store.set_identity(Arc::new(crate::agent::Identity { credentials, roots }));
    }

    /// A connection that meant to go to `to`, as the kubelet redirects it.
    pub(super) async fn redirected(&self, to: &str) -> TcpStream {
        let mut stream = self.dial(15001).await;
        stream.write_all(&proxy_bytes("10.1.0.9:4000", to)).await.unwrap();
        stream
    }

    async fn client(&self) -> SendRequest<Full<Bytes>> {
        let stream = TokioIo::new(self.redirected(VIP).await);
        let (sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

/// A client's sidecar that knows the service at `addresses`.
fn client_sidecar(trust: &Trust, identity: &str, addresses: &[SocketAddr]) -> Running {
    let mut sidecar = Running::start();
    sidecar.identify(trust, "sleep");
    outbound(&mut sidecar, identity, addresses);
    sidecar
}

fn outbound(sidecar: &mut Running, identity: &str, addresses: &[SocketAddr]) {
    sidecar.put(CLUSTER, &service(identity));
    sidecar.put(CLUSTER, &endpoints(CLUSTER, addresses, true));
    sidecar.put("PassthroughCluster", &original("PassthroughCluster"));
    sidecar.put("virtualOutbound", &virtual_outbound());
    sidecar.put("0.0.0.0_5000", &of_port(5000));
    sidecar.put("5000", &routes("5000", CLUSTER));
}

/// An application that says its name, what it was asked and by whom.
async fn application(name: &'static str) -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let serving = listen::http(Socket::from(socket), listen::Settings::default(), Stop::new(), move |_| {
        service_fn(move |request: Request<Incoming>| async move {
            let header = |name: &str| {
                let value = request.headers().get(name).and_then(|value| value.to_str().ok());
                value.unwrap_or("-").to_owned()
            };
            let (host, id, cert) = (header("host"), header("x-request-id"), header("x-forwarded-client-cert"));
            let proto = header("x-forwarded-proto");
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.map(|body| body.to_bytes().len()).unwrap_or(0);
            let text = format!("{name} {path} host={host} id={id} proto={proto} body={body} cert={cert}");
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
        })
    });
    tokio::spawn(serving);
    address
}

fn get(path: &str) -> Request<Full<Bytes>> {
    request("GET", path, Bytes::new())
}

fn request(method: &str, path: &str, body: Bytes) -> Request<Full<Bytes>> {
    let builder = Request::builder().method(method).uri(path).header("host", format!("{SERVICE}:5000"));
    builder.header("x-request-id", format!("id-of-{path}")).body(Full::new(body)).unwrap()
}

async fn ask(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> (u16, String) {
    let asking = async {
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    };
    tokio::time::timeout(SOON, asking).await.unwrap()
}

// ---- Tests -----------------------------------------------------------------------------------------------------

#[tokio::test]
async fn a_request_arrives_with_both_identities() {
    let trust = Trust::new();
    let pod = Pod::start(&trust, "helloworld", application("v1").await).await;
    let client = client_sidecar(&trust, SERVER_ID, &[pod.address]);
    let mut sender = client.client().await;
    let (status, body) = ask(&mut sender, request("POST", "/hello", Bytes::from(vec![1; 200_000]))).await;
    assert_eq!(status, 200);
    let hash = body.split(";Hash=").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let body = body.replace(&hash, "…");
    insta::assert_snapshot!(body, @r#"v1 /hello host=helloworld.sample.svc.cluster.local:5000 id=id-of-/hello proto=http body=200000 cert=By=spiffe://cluster.local/ns/sample/sa/helloworld;Hash=…;Subject="";URI=spiffe://cluster.local/ns/sample/sa/sleep"#);

    let at_client = client.line("id-of-/hello").await;
    assert_eq!(at_client["server"], SERVER_ID);
    assert_eq!(at_client["host"], pod.address.to_string());
    assert_eq!(at_client["cluster"], CLUSTER);
    assert_eq!(at_client["received"], 200_000);
    let at_server = pod.sidecar.line("id-of-/hello").await;
    assert_eq!(at_server["client"], CLIENT_ID);
    assert_eq!(at_server["host"], pod.application.to_string());
    assert_eq!(at_server["sni"], "outbound_.5000_._.helloworld.sample.svc.cluster.local");

    // The next requests use the connection again.
    for turn in 0..50 {
        let path = format!("/again/{turn}");
        assert_eq!(ask(&mut sender, get(&path)).await.0, 200);
    }
    let mut metrics = TcpStream::connect(client.at(15090).await).await.unwrap();
    metrics.write_all(b"GET /stats/prometheus HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    metrics.read_to_string(&mut text).await.unwrap();
    let line = text.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap();
    for label in [r#"source_cluster="east""#, r#"destination_cluster="west""#, r#"response_code="200""#] {
        assert!(line.contains(label), "{line}");
    }
    assert!(line.ends_with(" 51"), "{line}");
    let mut ready = TcpStream::connect(client.at(15021).await).await.unwrap();
    ready.write_all(b"GET /healthz/ready HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    ready.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.0 200"), "{text}");
}

#[tokio::test]
async fn another_identity_and_another_root_are_refused() {
    let (trust, foreign) = (Trust::new(), Trust::new());
    let application = application("v1").await;
    let wrong = Pod::start(&trust, "somebody-else", application).await;
    let strange = Pod::start(&foreign, "helloworld", application).await;
    for (pod, why) in [(&wrong, "somebody-else"), (&strange, "invalid peer certificate")] {
        let client = client_sidecar(&trust, SERVER_ID, &[pod.address]);
        let (status, body) = ask(&mut client.client().await, get("/refused")).await;
        assert_eq!(status, 503, "{body}");
        let line = client.line("id-of-/refused").await;
        assert_eq!(line["flags"], "UF");
        assert!(line["why"].as_str().unwrap().contains(why), "{line}");
    }
}

#[tokio::test]
async fn plaintext_is_refused_where_strict_holds() {
    let trust = Trust::new();
    let pod = Pod::start(&trust, "helloworld", application("v1").await).await;
    let mut plain = TcpStream::connect(pod.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_host_is_passed_over_and_left_out() {
    let trust = Trust::new();
    let pod = Pod::start(&trust, "helloworld", application("v1").await).await;
    let dead = nobody();
    let client = client_sidecar(&trust, SERVER_ID, &[pod.address, dead]);
    let mut sender = client.client().await;
    let (mut slowest, mut retried) = (Duration::ZERO, 0);
    for turn in 0..60 {
        let began = Instant::now();
        // Connect failures are repeated whatever the method.
        let method = if turn % 2 == 0 { "GET" } else { "POST" };
        let (status, body) = ask(&mut sender, request(method, &format!("/turn/{turn}"), Bytes::from("x"))).await;
        assert_eq!(status, 200, "{body}");
        slowest = slowest.max(began.elapsed());
        retried = client.store_retries();
    }
    assert_eq!(retried, 3, "three failures in a row eject");
    assert!(slowest < Duration::from_millis(1500), "{slowest:?}");
}

impl Running {
    pub(super) fn store_retries(&self) -> u64 {
        self.store.shared_for_tests().metrics.retries.get()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_survives_every_change_of_configuration() {
    let trust = Trust::new();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let application = socket.local_addr().unwrap();
    let pod = Pod::start(&trust, "helloworld", application).await;
    let mut client = client_sidecar(&trust, SERVER_ID, &[pod.address]);
    let mut sender = client.client().await;
    let asking = tokio::spawn(async move {
        let response = sender.send_request(get("/stream")).await.unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    });
    let (mut inner, _) = socket.accept().await.unwrap();
    let mut head = [0; 4096];
    let _ = inner.read(&mut head).await.unwrap();
    inner.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n").await.unwrap();
    for turn in 0..50 {
        inner.write_all(b"..").await.unwrap();
        client.put("0.0.0.0_5000", &listener::Listener { stat_prefix: turn.to_string(), ..of_port(5000) });
        client.put("virtualOutbound", &listener::Listener { stat_prefix: turn.to_string(), ..virtual_outbound() });
        client.put(CLUSTER, &cluster::Cluster { alt_stat_name: turn.to_string(), ..service(SERVER_ID) });
        client.put(CLUSTER, &endpoints(CLUSTER, &[nobody()], true));
        client.identify(&trust, "sleep");
        tokio::task::yield_now().await;
    }
    let all = tokio::time::timeout(SOON, asking).await.unwrap().unwrap();
    assert_eq!(all.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_never_fail_while_the_configuration_changes() {
    let trust = Trust::new();
    let pods = [
        Pod::start(&trust, "helloworld", application("v1").await).await,
        Pod::start(&trust, "helloworld", application("v2").await).await,
    ];
    let mut client = client_sidecar(&trust, SERVER_ID, &[pods[0].address]);
    let (failed, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut asking = Vec::new();
    for worker in 0..4 {
        let mut sender = client.client().await;
        let (failed, done) = (Arc::clone(&failed), Arc::clone(&done));
        asking.push(tokio::spawn(async move {
            for turn in 0..50 {
                let (status, _) = ask(&mut sender, get(&format!("/{worker}/{turn}"))).await;
                failed.fetch_add(usize::from(status != 200), Ordering::Relaxed);
                done.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let mut turn = 0;
    while done.load(Ordering::Relaxed) < 200 {
        turn += 1;
        client.put(CLUSTER, &cluster::Cluster { alt_stat_name: turn.to_string(), ..service(SERVER_ID) });
        client.put(CLUSTER, &endpoints(CLUSTER, &[pods[turn % 2].address], true));
        client.put("0.0.0.0_5000", &listener::Listener { stat_prefix: turn.to_string(), ..of_port(5000) });
        client.put("5000", &routes("5000", CLUSTER));
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for one in asking {
        one.await.unwrap();
    }
    assert_eq!(failed.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn what_the_proxy_answers_itself_is_flagged() {
    let trust = Trust::new();
    let mut client = client_sidecar(&trust, SERVER_ID, &[]);
    let mut sender = client.client().await;
    let named = |host: &str, path: &str| {
        let request = Request::builder().uri(path).header("host", host).header("x-request-id", format!("id-of-{path}"));
        request.body(Full::new(Bytes::new())).unwrap()
    };
    for (request, status, flags, path) in [
        (named("nobody.knows", "/1"), 404, "NR", "/1"),
        (named("unknown.example", "/2"), 502, "-", "/2"),
        (named(SERVICE, "/3"), 503, "UH", "/3"),
    ] {
        assert_eq!(ask(&mut sender, request).await.0, status, "{path}");
        assert_eq!(client.line(&format!("id-of-{path}\"")).await["flags"], flags);
    }
    client.store.update(message::CLUSTER, &[], &[CLUSTER.to_owned()]).unwrap();
    assert_eq!(ask(&mut sender, named(SERVICE, "/4")).await.0, 503);
    assert_eq!(client.line("id-of-/4\"").await["flags"], "NC");
}

#[tokio::test]
async fn unknown_destinations_pass_through_and_websockets_too() {
    let trust = Trust::new();
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = echo.local_addr().unwrap();
    let client = client_sidecar(&trust, SERVER_ID, &[]);
    let mut stream = client.redirected(&address.to_string()).await;
    stream.write_all(b"ping").await.unwrap();
    let (mut inner, _) = echo.accept().await.unwrap();
    let mut four = [0; 4];
    inner.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"ping");

    let pod = Pod::start(&trust, "helloworld", address).await;
    let client = client_sidecar(&trust, SERVER_ID, &[pod.address]);
    let mut stream = client.redirected(VIP).await;
    let request = format!("GET /chat HTTP/1.1\r\nhost: {SERVICE}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut inner, _) = echo.accept().await.unwrap();
    let mut head = [0; 2048];
    let count = inner.read(&mut head).await.unwrap();
    let head = String::from_utf8_lossy(&head[..count]).to_lowercase();
    assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
    inner
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello")
        .await
        .unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"hello") {
        assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
    }
    stream.write_all(b"world").await.unwrap();
    let mut five = [0; 5];
    inner.read_exact(&mut five).await.unwrap();
    assert_eq!(&five, b"world");
}

#[tokio::test]
async fn what_cannot_be_obeyed_is_refused_and_policy_closes() {
    let trust = Trust::new();
    let mut client = client_sidecar(&trust, SERVER_ID, &[]);
    let bad = cluster::Cluster { lb_policy: cluster::cluster::LbPolicy::Maglev.into(), ..service(SERVER_ID) };
    let text = client.try_put(CLUSTER, &bad).unwrap_err();
    insta::assert_snapshot!(text, @"cluster `outbound|5000||helloworld.sample.svc.cluster.local`: load balancing policy Ok(Maglev) is not supported");

    // A filter nobody here knows may be one that says no.
    let mut listener = of_port(5000);
    let unknown = any_filter(
        "envoy.filters.network.ext_authz",
        stolos_xds::Any {
            type_url: "type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz".into(),
            value: Vec::new(),
        },
    );
    listener.filter_chains[0].filters.insert(0, unknown);
    let text = client.try_put("0.0.0.0_5000", &listener).unwrap_err();
    assert!(text.contains("passes nothing") && text.contains("ext_authz"), "{text}");
    let mut stream = client.redirected(VIP).await;
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty());
}

#[tokio::test]
async fn asked_to_stop_it_finishes_what_it_has_begun() {
    let trust = Trust::new();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pod = Pod::start(&trust, "helloworld", socket.local_addr().unwrap()).await;
    let mut client = client_sidecar(&trust, SERVER_ID, &[pod.address]);
    let mut sender = client.client().await;
    let asking = tokio::spawn(async move { ask(&mut sender, get("/slow")).await });
    let (mut inner, _) = socket.accept().await.unwrap();
    let mut head = [0; 4096];
    let _ = inner.read(&mut head).await.unwrap();
    let port = client.at(15001).await;
    client.stop.ask();
    eventually(|| std::net::TcpStream::connect_timeout(&port, Duration::from_millis(50)).is_err().then_some(())).await;
    inner.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    assert_eq!(asking.await.unwrap(), (200, "ok".to_owned()));
    let task = std::mem::replace(&mut client.task, tokio::spawn(async {}));
    tokio::time::timeout(SOON, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_host_that_falls_silent_is_found_out() {
    let trust = Trust::new();
    let pods = [
        Pod::start(&trust, "helloworld", application("v1").await).await,
        Pod::start(&trust, "helloworld", application("v2").await).await,
    ];
    // What stands before the second pod can be shut: nothing passes then, and nothing fails.
    let (gate, front) = (stolos_serve::Gate::open(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = front.local_addr().unwrap();
    let (shut, behind) = (Arc::clone(&gate), pods[1].address);
    tokio::spawn(async move {
        while let Ok((client, _)) = front.accept().await {
            let gate = Arc::clone(&shut);
            tokio::spawn(async move {
                let mut client = stolos_serve::Stream::gated(client, Some(Arc::clone(&gate)));
                let server = TcpStream::connect(behind).await?;
                let mut server = stolos_serve::Stream::gated(server, Some(gate));
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    let client = client_sidecar(&trust, SERVER_ID, &[pods[0].address, address]);
    let mut senders = [client.client().await, client.client().await, client.client().await, client.client().await];
    let mut answered = [false; 2];
    while answered != [true; 2] {
        for sender in &mut senders {
            let (_, body) = ask(sender, get("/warm")).await;
            answered[usize::from(body.starts_with("v2"))] = true;
        }
    }
    gate.set_shut(true);
    let mut slowest = Duration::ZERO;
    for turn in 0..10 {
        for sender in &mut senders {
            let began = Instant::now();
            let (status, body) = ask(sender, get(&format!("/{turn}"))).await;
            assert!(status == 200 && body.starts_with("v1"), "{status} {body}");
            slowest = slowest.max(began.elapsed());
        }
    }
    // Some 0.8 s; without being found out it would have no end.
    assert!(slowest < Duration::from_secs(5), "{slowest:?}");
}

#[tokio::test]
async fn identity_survives_a_gateway_and_so_do_labels() {
    let trust = Trust::new();
    let pod = Pod::start(&trust, "helloworld", application("v1").await).await;
    let name = "outbound_.5000_._.helloworld.sample.svc.cluster.local";
    let mut gateway = Running::start();
    gateway.put(name, &eds(name));
    gateway.put(name, &endpoints(name, &[pod.address], true));
    gateway.put("0.0.0.0_15443", &super::gateway::passthrough(&[name]));
    let through = gateway.at(15443).await;
    let mut client = client_sidecar(&trust, SERVER_ID, &[]);
    let mut assignment = endpoints(CLUSTER, &[through], true);
    // A gateway does not say who is behind it.
    let metadata = assignment.endpoints[0].lb_endpoints[0].metadata.as_mut().unwrap();
    metadata.filter_metadata.remove("istio");
    client.put(CLUSTER, &assignment);
    let mut sender = client.client().await;
    let (status, body) = ask(&mut sender, get("/far")).await;
    assert!(status == 200 && body.starts_with("v1"), "{status} {body}");
    let line = client.line("id-of-/far").await;
    assert_eq!((line["server"].as_str(), line["host"].as_str()), (Some(SERVER_ID), Some(&*through.to_string())));
    for (proxy, reporter) in [(&client, "source"), (&pod.sidecar, "destination")] {
        let text = proxy.store.shared_for_tests().metrics.text();
        let line = text.lines().find(|line| line.starts_with("istio_requests_total{")).unwrap();
        assert!(line.contains(reporter) && line.contains(r#"source_cluster="east""#), "{line}");
        assert!(line.contains(r#"destination_cluster="west""#), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_passes_with_its_trailers() {
    use hyper::client::conn::http2;
    let trust = Trust::new();
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(listen::http(Socket::from(socket), listen::Settings::default(), Stop::new(), |_| {
        service_fn(|request: Request<Incoming>| async move {
            let version = format!("{:?} {}", request.version(), request.uri().host().unwrap_or("-"));
            let trailers = http::HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                http::HeaderValue::from_static("0"),
            )]);
            let body = Full::new(Bytes::from(version)).with_trailers(async move { Some(Ok(trailers)) });
            Ok::<_, Infallible>(Response::new(body))
        })
    }));
    let options = stolos_xds::envoy::extensions::upstreams::http::v3::HttpProtocolOptions {
        upstream_protocol_options: Some(
            stolos_xds::envoy::extensions::upstreams::http::v3::http_protocol_options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(
                Default::default(),
            ),
        ),
        ..Default::default()
    };
    let same = |cluster: cluster::Cluster| cluster::Cluster {
        typed_extension_protocol_options: [(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            pack(&options),
        )]
        .into(),
        ..cluster
    };
    let mut pod = Pod::start(&trust, "helloworld", address).await;
    pod.sidecar.put("inbound|80||", &same(original("inbound|80||")));
    let mut client = client_sidecar(&trust, SERVER_ID, &[pod.address]);
    client.put(CLUSTER, &same(service(SERVER_ID)));
    let stream = TokioIo::new(client.redirected(VIP).await);
    let (sender, connection) = http2::handshake(hyper_util::rt::TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let asking = (0..20).map(|turn| {
        let mut sender = sender.clone();
        async move {
            let uri = format!("http://{SERVICE}/h2/{turn}");
            let request = Request::builder().method("POST").uri(uri).body(Full::new(Bytes::from("x"))).unwrap();
            let response = sender.send_request(request).await.unwrap();
            response.into_body().collect().await.unwrap()
        }
    });
    for collected in tokio::time::timeout(SOON, futures::future::join_all(asking)).await.unwrap() {
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), format!("HTTP/2.0 {SERVICE}"));
    }
}

#[tokio::test]
async fn bytes_of_any_protocol_are_carried_with_both_identities() {
    let trust = Trust::new();
    let database = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pod = Pod::start(&trust, "helloworld", database.local_addr().unwrap()).await;
    let mut client = client_sidecar(&trust, SERVER_ID, &[pod.address]);
    let listener = listener::Listener {
        name: "10.96.0.8_3306".into(),
        address: Some(message::address("10.96.0.8", 3306)),
        bind_to_port: Some(false),
        filter_chains: vec![listener::FilterChain { filters: vec![bytes_to(CLUSTER)], ..Default::default() }],
        ..Default::default()
    };
    client.put("10.96.0.8_3306", &listener);
    let mut stream = client.redirected("10.96.0.8:3306").await;
    let (mut inner, _) = database.accept().await.unwrap();
    // The server speaks first, and the client ends first.
    inner.write_all(b"welcome").await.unwrap();
    let mut seven = [0; 7];
    stream.read_exact(&mut seven).await.unwrap();
    stream.write_all(b"bye").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    inner.read_to_string(&mut rest).await.unwrap();
    inner.write_all(b"bye bye").await.unwrap();
    inner.shutdown().await.unwrap();
    let mut last = String::new();
    stream.read_to_string(&mut last).await.unwrap();
    assert_eq!((&seven, &*rest, &*last), (b"welcome", "bye", "bye bye"));
    let line = client.line("\"sent\":14").await;
    assert_eq!((line["server"].as_str(), line["flags"].as_str()), (Some(SERVER_ID), Some("-")));
    assert_eq!(pod.sidecar.line("\"sent\":14").await["client"], CLIENT_ID);
}

#[tokio::test]
async fn a_workload_that_calls_itself_comes_in_as_anybody() {
    let trust = Trust::new();
    let application = application("v1").await;
    let mut sidecar = Running::start_with(&[("ISTIO_META_STOLOS_REDIRECT", "proxy-protocol")]);
    sidecar.identify(&trust, "helloworld");
    sidecar.put("inbound|80||", &original("inbound|80||"));
    sidecar.put("virtualInbound", &virtual_inbound(application.port()));
    outbound(&mut sidecar, SERVER_ID, &[application]);
    sidecar.at(15006).await;
    let (status, body) = ask(&mut sidecar.client().await, get("/self")).await;
    assert!(status == 200 && body.ends_with(&format!("URI={SERVER_ID}")), "{status} {body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_dies_under_load_fails_no_idempotent_request() {
    let trust = Trust::new();
    let alive = Pod::start(&trust, "helloworld", application("v1").await).await;
    let dying = Pod::start(&trust, "helloworld", application("v2").await).await;
    let client = client_sidecar(&trust, SERVER_ID, &[alive.address, dying.address]);
    let done = Arc::new(AtomicUsize::new(0));
    let mut asking = Vec::new();
    for worker in 0..4 {
        let (mut sender, done) = (client.client().await, Arc::clone(&done));
        asking.push(tokio::spawn(async move {
            let (mut failed, mut slowest) = (0, Duration::ZERO);
            for turn in 0..60 {
                let began = Instant::now();
                failed += usize::from(ask(&mut sender, get(&format!("/{worker}/{turn}"))).await.0 != 200);
                slowest = slowest.max(began.elapsed());
                done.fetch_add(1, Ordering::Relaxed);
            }
            (failed, slowest)
        }));
    }
    eventually(|| (done.load(Ordering::Relaxed) >= 40).then_some(())).await;
    drop(dying);
    for one in asking {
        let (failed, slowest) = one.await.unwrap();
        assert!(failed == 0 && slowest < Duration::from_millis(1500), "{failed} failed, slowest {slowest:?}");
    }
}
