//! HTTP/2 and gRPC through a proxy: limits, refusals, ends, back-pressure.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::SinkExt;
use futures::channel::mpsc;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use stolos_xds::envoy::config::cluster::v3 as cluster;
use stolos_xds::envoy::extensions::upstreams::http::v3 as upstream;
use stolos_xds::pack;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::sidecar::{CLUSTER, SERVICE, VIP, of_port, routes, service, virtual_outbound};
use super::world::{Running, SOON, endpoints, original};

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A proxy that reaches plain HTTP/2 hosts at these addresses.
fn proxy(addresses: &[SocketAddr]) -> Running {
    use upstream::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };
    let options = upstream::HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Default::default())),
        })),
        ..Default::default()
    };
    let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned();
    let cluster = cluster::Cluster {
        typed_extension_protocol_options: [(name, pack(&options))].into(),
        ..service("spiffe://cluster.local/ns/sample/sa/helloworld")
    };
    let mut proxy = Running::start();
    proxy.put(CLUSTER, &cluster);
    proxy.put(CLUSTER, &endpoints(CLUSTER, addresses, false));
    proxy.put("PassthroughCluster", &original("PassthroughCluster"));
    proxy.put("virtualOutbound", &virtual_outbound());
    proxy.put("0.0.0.0_5000", &of_port(5000));
    proxy.put("5000", &routes("5000", CLUSTER));
    proxy
}

async fn client(proxy: &Running) -> SendRequest<Body> {
    let stream = TokioIo::new(proxy.redirected(VIP).await);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn call(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://{SERVICE}:5000{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("x-request-id", format!("id-of-{path}"))
        .body(body)
        .unwrap()
}

fn empty() -> Body {
    Full::new(Bytes::new()).boxed_unsync()
}

async fn soon<T>(doing: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, doing).await.expect("it did not happen in time")
}

/// An HTTP/2 server of which every stream is given to `answer`, and how many connections it has had.
async fn server<F>(
    settings: h2::server::Builder,
    answer: impl Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> F + Clone + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, connections) = (socket.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = socket.accept().await {
            count.fetch_add(1, Ordering::Relaxed);
            let (settings, answer) = (settings.clone(), answer.clone());
            tokio::spawn(async move {
                let Ok(mut connection) = settings.handshake::<_, Bytes>(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(answer(request, respond));
                }
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn the_proxys_own_answers_to_grpc_are_trailers() {
    let proxy = proxy(&[]);
    let mut sender = client(&proxy).await;
    let response = soon(sender.send_request(call("/call", empty()))).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(response.headers()["grpc-message"], "no healthy upstream");
    assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
    counted(&proxy, "14").await;
    let line = proxy.line("id-of-/call").await;
    assert_eq!((&line["flags"], &line["code"]), (&"UH".into(), &200.into()));
}

#[tokio::test]
async fn a_host_that_takes_few_streams_gets_another_connection() {
    let (open, opened) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, most) = (Arc::clone(&open), Arc::clone(&opened));
    let mut settings = h2::server::Builder::new();
    settings.max_concurrent_streams(2);
    let (address, connections) = server(settings, move |_, mut respond| {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            // Never ends by itself.
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            now.fetch_sub(1, Ordering::Relaxed);
        }
    })
    .await;
    let proxy = proxy(&[address]);
    let mut sender = client(&proxy).await;
    let mut held = Vec::new();
    for turn in 0..7 {
        let response = soon(sender.send_request(call(&format!("/{turn}"), empty()))).await.unwrap();
        assert_eq!(response.status(), 200);
        held.push(response);
    }
    assert_eq!((opened.load(Ordering::Relaxed), connections.load(Ordering::Relaxed)), (7, 4));
    // What ends makes room, and the client's going reaches the host.
    drop(held);
    soon(async {
        while open.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    soon(sender.send_request(call("/last", empty()))).await.unwrap();
    assert_eq!(connections.load(Ordering::Relaxed), 4);
}

async fn good() -> SocketAddr {
    let answer = |_, mut respond: h2::server::SendResponse<Bytes>| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        stream.send_trailers([("grpc-status".parse().unwrap(), "0".parse().unwrap())].into_iter().collect()).unwrap();
    };
    server(h2::server::Builder::new(), answer).await.0
}

/// A host that says goodbye to whoever has just asked, without having looked at what was asked.
async fn leaving() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            tokio::spawn(async move {
                stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
                let mut seen = Vec::new();
                // HEADERS of the first stream.
                while !seen.windows(9).any(|frame| frame[3] == 1 && frame[5..9] == [0, 0, 0, 1]) {
                    if stream.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let go_away = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                let _ = stream.write_all(&go_away).await;
                let _ = tokio::time::timeout(Duration::from_secs(1), stream.read_buf(&mut seen)).await;
            });
        }
    });
    address
}

/// Waits until there are calls with this outcome among what was counted.
async fn counted(proxy: &Running, outcome: &str) {
    let label = format!("grpc_response_status=\"{outcome}\"");
    let told = || proxy.store.shared_for_tests().metrics.text();
    soon(async {
        while !told().lines().any(|line| line.starts_with("istio_requests_total{") && line.contains(&label)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_a_host_has_not_looked_at_is_sent_elsewhere_whatever_it_is() {
    let refuse = |_, mut respond: h2::server::SendResponse<Bytes>| async move {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
    };
    let (refusing, _) = server(h2::server::Builder::new(), refuse).await;
    for bad in [refusing, leaving().await] {
        let proxy = proxy(&[bad, good().await]);
        let mut sender = client(&proxy).await;
        // Which host is the first is drawn: of so many one is the bad one.
        for turn in 0..40 {
            let body = Full::new(Bytes::from_static(b"\0\0\0\0\0")).boxed_unsync();
            let response = soon(sender.send_request(call(&format!("/{turn}"), body))).await.unwrap();
            assert_eq!(response.status(), 200, "{turn}");
            let body = soon(response.into_body().collect()).await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0", "{turn}");
        }
        assert!(proxy.store_retries() > 0);
        counted(&proxy, "0").await;
    }
}

#[tokio::test]
async fn what_may_have_been_done_is_not_done_again() {
    let done = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&done);
    let (address, _) = server(h2::server::Builder::new(), move |_, mut respond| {
        let count = Arc::clone(&count);
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
        }
    })
    .await;
    // As the control plane writes it for methods that are not idempotent.
    let mut routes = routes("5000", CLUSTER);
    if let Some(stolos_xds::envoy::config::route::v3::route::Action::Route(action)) =
        &mut routes.virtual_hosts[0].routes[0].action
    {
        let retry = action.retry_policy.as_mut().unwrap();
        retry.retry_on = "connect-failure,refused-stream,reset-before-request".into();
    }
    let mut proxy = proxy(&[address]);
    proxy.put("5000", &routes);
    let response = soon(client(&proxy).await.send_request(call("/once", empty()))).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "14");
    assert_eq!(done.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn asked_to_stop_it_says_goodbye_and_lets_streams_end() {
    let (end, ended) = tokio::sync::watch::channel(false);
    let (address, _) = server(h2::server::Builder::new(), move |_, mut respond| {
        let mut ended = ended.clone();
        async move {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            let _ = ended.wait_for(|ended| *ended).await;
            let _ = stream.send_data(Bytes::from_static(b"whole"), true);
        }
    })
    .await;
    let proxy = proxy(&[address]);
    let mut sender = client(&proxy).await;
    let response: Response<Incoming> = soon(sender.send_request(call("/slow", empty()))).await.unwrap();
    proxy.stop.ask();
    // GOAWAY: nothing new.
    soon(async {
        while sender.ready().await.is_ok() && sender.send_request(call("/new", empty())).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    end.send_replace(true);
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), "whole");
}

#[tokio::test]
async fn a_slow_reader_slows_the_sender_down() {
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 256;
    let (read, may) = tokio::sync::watch::channel(false);
    let (address, _) = server(h2::server::Builder::new(), move |request, mut respond| {
        let mut may = may.clone();
        async move {
            let _ = may.wait_for(|may| *may).await;
            let (mut body, mut sum) = (request.into_body(), 0);
            while let Some(Ok(data)) = body.data().await {
                sum += data.len();
                let _ = body.flow_control().release_capacity(data.len());
            }
            let response = Response::builder().header("x-sum", sum.to_string()).body(()).unwrap();
            respond.send_response(response, true).unwrap();
        }
    })
    .await;
    let proxy = proxy(&[address]);
    let mut sender = client(&proxy).await;
    let (mut say, said) = mpsc::channel::<Result<Frame<Bytes>, Infallible>>(0);
    let answering = tokio::spawn(sender.send_request(call("/much", StreamBody::new(said).boxed_unsync())));
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let saying = tokio::spawn(async move {
        for _ in 0..CHUNKS {
            say.send(Ok(Frame::data(Bytes::from(vec![1; CHUNK])))).await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let held = sent.load(Ordering::Relaxed) * CHUNK;
    assert!((CHUNK..8 << 20).contains(&held), "{held} bytes are under way");
    read.send_replace(true);
    soon(saying).await.unwrap();
    let response = soon(answering).await.unwrap().unwrap();
    assert_eq!(response.headers()["x-sum"], (CHUNK * CHUNKS).to_string());
}

#[tokio::test]
async fn an_upgrade_is_refused_where_only_http2_is_spoken() {
    let proxy = proxy(&[good().await]);
    let mut stream: TcpStream = proxy.redirected(VIP).await;
    let request = format!("GET / HTTP/1.1\r\nhost: {SERVICE}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[tokio::test]
async fn every_request_is_balanced_by_itself_and_versions_are_translated() {
    let named = |name: &'static str| {
        server(h2::server::Builder::new(), move |request, mut respond| async move {
            let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
            let response = Response::builder().header("x-name", name).header("x-host", host).body(()).unwrap();
            respond.send_response(response, true).unwrap();
        })
    };
    let (a, b) = tokio::join!(named("a"), named("b"));
    let h2 = proxy(&[a.0, b.0]);
    let mut sender = client(&h2).await;
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for turn in 0..40 {
        let response = soon(sender.send_request(call(&format!("/{turn}"), empty()))).await.unwrap();
        *seen.entry(response.headers()["x-name"].to_str().unwrap().to_owned()).or_default() += 1;
    }
    assert!(seen.len() == 2 && seen.values().all(|count| *count >= 5), "{seen:?}");
    assert_eq!((a.1.load(Ordering::Relaxed), b.1.load(Ordering::Relaxed)), (1, 1), "a connection each");

    // A client of HTTP/1.1 in front of hosts of HTTP/2: Host is what `:authority` says.
    let mut stream = h2.redirected(VIP).await;
    stream
        .write_all(format!("GET / HTTP/1.1\r\nhost: {SERVICE}\r\nconnection: close\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(&format!("x-host: {SERVICE}")), "{answer}");

    // And the other way round: one Host, one Cookie, nothing of HTTP/2's.
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut h1 = proxy(&[socket.local_addr().unwrap()]);
    h1.put(CLUSTER, &service("spiffe://cluster.local/ns/sample/sa/helloworld"));
    let mut sender = client(&h1).await;
    let mut request = call("/old?x=1", Full::new(Bytes::from_static(b"hello")).boxed_unsync());
    for crumb in ["a=1", "b=2"] {
        request.headers_mut().append("cookie", crumb.parse().unwrap());
    }
    let asking = tokio::spawn(sender.send_request(request));
    let (mut inner, _) = soon(socket.accept()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"hello") {
        assert!(soon(inner.read_buf(&mut head)).await.unwrap() > 0, "{}", String::from_utf8_lossy(&head));
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.starts_with("post /old?x=1 http/1.1\r\n"), "{head}");
    for (line, count) in [
        (format!("host: {SERVICE}:5000\r\n"), 1),
        ("cookie: a=1; b=2\r\n".into(), 1),
        ("content-length: 5\r\n".into(), 1),
        ("transfer-encoding".into(), 0),
    ] {
        assert_eq!(head.matches(&line).count(), count, "{line} in {head}");
    }
    inner
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\nkeep-alive: 5\r\n\r\n")
        .await
        .unwrap();
    let response = soon(asking).await.unwrap().unwrap();
    assert!(response.status() == 200 && !response.headers().contains_key("keep-alive"), "{:?}", response.headers());
}

#[tokio::test]
async fn a_tunnel_in_which_nothing_moves_ends() {
    use stolos_xds::envoy::config::listener::v3::filter::ConfigType;
    use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut proxy = proxy(&[socket.local_addr().unwrap()]);
    proxy.put(CLUSTER, &service("spiffe://cluster.local/ns/sample/sa/helloworld"));
    let mut listener = of_port(5000);
    if let Some(ConfigType::TypedConfig(any)) = &mut listener.filter_chains[0].filters[0].config_type {
        let mut manager: HttpConnectionManager = stolos_xds::unpack(any).unwrap();
        manager.stream_idle_timeout = super::world::millis(1000);
        *any = pack(&manager);
    }
    proxy.put("0.0.0.0_5000", &listener);
    let mut stream = proxy.redirected(VIP).await;
    let request = format!("GET / HTTP/1.1\r\nhost: {SERVICE}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut inner, _) = soon(socket.accept()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        soon(inner.read_buf(&mut head)).await.unwrap();
    }
    inner
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    // What moves keeps it open, longer than the limit.
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        inner.write_all(b".").await.unwrap();
    }
    let mut seen = Vec::new();
    soon(stream.read_to_end(&mut seen)).await.unwrap();
    assert!(seen.ends_with(b"......"), "{}", String::from_utf8_lossy(&seen));
}

#[tokio::test]
async fn a_websocket_over_http2_reaches_an_application_of_http1() {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut proxy = proxy(&[socket.local_addr().unwrap()]);
    proxy.put(CLUSTER, &service("spiffe://cluster.local/ns/sample/sa/helloworld"));
    let stream = TokioIo::new(proxy.redirected(VIP).await);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let ask = |path: &str, protocol: &'static str| {
        let mut request = Request::connect(format!("http://{SERVICE}:5000{path}"))
            .header("sec-websocket-version", "13")
            .header("x-request-id", format!("id-of-{path}"))
            .body(empty())
            .unwrap();
        request.extensions_mut().insert(hyper::ext::Protocol::from_static(protocol));
        request
    };
    // Only once the proxy has said so may a client speak like this.
    let first = call("/first", empty());
    let answering = tokio::spawn(sender.send_request(first));
    let (mut inner, _) = soon(socket.accept()).await.unwrap();
    let head = async |inner: &mut TcpStream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(soon(inner.read_buf(&mut head)).await.unwrap() > 0);
        }
        String::from_utf8(head).unwrap().to_lowercase()
    };
    head(&mut inner).await;
    inner.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
    soon(answering).await.unwrap().unwrap();

    let answering = tokio::spawn(sender.send_request(ask("/chat?x=1", "websocket")));
    let (mut inner, _) = soon(socket.accept()).await.unwrap();
    let seen = head(&mut inner).await;
    assert!(seen.starts_with("get /chat?x=1 http/1.1\r\n"), "{seen}");
    for line in
        ["connection: upgrade\r\n", "upgrade: websocket\r\n", "sec-websocket-key: ", "sec-websocket-version: 13\r\n"]
    {
        assert_eq!(seen.matches(line).count(), 1, "{line} in {seen}");
    }
    inner
        .write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
              sec-websocket-accept: x\r\n\r\nhello",
        )
        .await
        .unwrap();
    let response = soon(answering).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    for name in ["connection", "upgrade", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(name), "{:?}", response.headers());
    }
    let mut stream = TokioIo::new(soon(hyper::upgrade::on(response)).await.unwrap());
    let mut five = [0; 5];
    soon(stream.read_exact(&mut five)).await.unwrap();
    assert_eq!(&five, b"hello");
    stream.write_all(b"world").await.unwrap();
    soon(inner.read_exact(&mut five)).await.unwrap();
    assert_eq!(&five, b"world");

    // An application that answers like any other has opened nothing.
    let answering = tokio::spawn(sender.send_request(ask("/plain", "websocket")));
    let (mut inner, _) = soon(socket.accept()).await.unwrap();
    head(&mut inner).await;
    inner.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno").await.unwrap();
    assert_eq!(soon(answering).await.unwrap().unwrap().status(), 503);
    // What is allowed nowhere, and a plain CONNECT.
    assert_eq!(soon(sender.send_request(ask("/other", "connect-udp"))).await.unwrap().status(), 403);
}

/// gRPC-Web is HTTP like any other: its trailers are part of the body, over either version.
#[tokio::test]
async fn grpc_web_goes_through_as_it_is() {
    const BODY: &[u8] = b"\0\0\0\0\x02hi\x80\0\0\0\x0fgrpc-status: 0\r\n";
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut proxy = proxy(&[socket.local_addr().unwrap()]);
    proxy.put(CLUSTER, &service("spiffe://cluster.local/ns/sample/sa/helloworld"));
    let mut sender = client(&proxy).await;
    let mut request = call("/web", Full::new(Bytes::from_static(b"\0\0\0\0\x01?")).boxed_unsync());
    request.headers_mut().insert("content-type", "application/grpc-web+proto".parse().unwrap());
    let answering = tokio::spawn(sender.send_request(request));
    let (mut inner, _) = soon(socket.accept()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\x01?") {
        assert!(soon(inner.read_buf(&mut seen)).await.unwrap() > 0);
    }
    assert!(String::from_utf8_lossy(&seen).contains("content-type: application/grpc-web+proto\r\n"));
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/grpc-web+proto\r\ncontent-length: {}\r\n\r\n",
        BODY.len()
    );
    inner.write_all(&[head.as_bytes(), BODY].concat()).await.unwrap();
    let response = soon(answering).await.unwrap().unwrap();
    assert_eq!(response.headers()["content-type"], "application/grpc-web+proto");
    assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), BODY);
}
