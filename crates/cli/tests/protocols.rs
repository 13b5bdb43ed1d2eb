//! Every protocol from a pod of one cluster to a pod of another, on two networks: through a sidecar, the other
//! network's gateway and a sidecar again. Clients dial with their pod's own sockets and use ordinary libraries.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::{Api, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stolos_apply::{Clusters, Goal, News, Options, State, Verdict, observe, run};
use stolos_cluster::Kubeconfig;
use stolos_lab::catalogue::Image;
use stolos_lab::{Lab, LabConfig};
use stolos_serve::{Net, Stream, listen};
use stolos_spec::SourceText;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio_tungstenite::tungstenite::Message;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

const PATIENCE: Duration = Duration::from_secs(90);
const NAMESPACE: &str = "wire";
const MESH: &str = "\
apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata:
  name: protocols
spec:
  trust:
    organization: example.com
  clusters:
    - {name: east-1, network: network-east, region: us-east}
    - {name: east-2, network: network-east, region: us-east}
    - {name: west-1, network: network-west, region: us-west}
";

/// The sockets of pods that do nothing themselves, by pod.
type Nets = Arc<Mutex<HashMap<String, Arc<dyn Net>>>>;

struct World {
    lab: Lab,
    nets: Nets,
    clients: HashMap<&'static str, Client>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let nets = Nets::default();
        let mesh = stolos_spec::read(&SourceText::new(Path::new("mesh.yaml"), MESH), None).unwrap().mesh;
        let mut config = LabConfig::from_mesh(&mesh, folder.path().join("lab"));
        let handed = Arc::clone(&nets);
        config.catalogue.add(
            "test/hands",
            Image::new("hands", move |launch| {
                handed.lock().unwrap().insert(launch.hostname.clone(), Arc::clone(&launch.container.net));
                Box::pin(async move {
                    launch.stop.asked().await;
                    0
                })
            }),
        );
        config.catalogue.add("test/mirror", Image::new("mirror", |launch| Box::pin(mirror(launch))));
        let lab = Lab::start(config).await.unwrap();

        let kubeconfig = Kubeconfig::find(Some(&folder.path().join("lab/kubeconfig")), None).unwrap();
        let (mut clusters, mut clients) = (Vec::new(), HashMap::new());
        for name in ["east-1", "east-2", "west-1"] {
            let context = &mesh.clusters.iter().find(|cluster| cluster.name.as_str() == name).unwrap().context;
            let cluster = stolos_cluster::connect(&kubeconfig, context, name).await.unwrap();
            clients.insert(name, lab.client(name).await.unwrap());
            clusters.push(cluster);
        }
        let (clusters, state) = (Clusters::of(clusters), State::at(folder.path().join("state"), None));
        let plan = Goal::Apply.plan(&mesh, &observe(&mesh, &clusters, &state).await).unwrap();
        let options = Options { patience: PATIENCE, ..Options::default() };
        let quiet = |_: News<'_>| {};
        let never = std::future::pending();
        let report = run(Goal::Apply, &plan, &mesh, &clusters, &state, options, never, &quiet).await.unwrap();
        assert_eq!(report.verdict(), Verdict::Done, "{:?}", report.failed);
        let world = Self { lab, nets, clients, _folder: folder };
        for cluster in world.clients.keys() {
            let labels = json!({"istio-injection": "enabled"});
            let namespace = json!({"metadata": {"name": NAMESPACE, "labels": labels}});
            let api: Api<Namespace> = Api::all(world.clients[cluster].clone());
            api.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
        }
        world
    }

    async fn create<K>(&self, cluster: &str, object: Value)
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let object: K = serde_json::from_value(object).unwrap();
        let api: Api<K> = Api::namespaced(self.clients[cluster].clone(), NAMESPACE);
        // The namespace's service account comes a moment later than the namespace.
        eventually("an object is taken", || async {
            api.create(&PostParams::default(), &object).await.map_err(|error| error.to_string())
        })
        .await;
    }

    async fn pod(&self, cluster: &str, name: &str, image: &str, more: Value) {
        let mut container = json!({"name": "app", "image": image});
        let mut spec = json!({"terminationGracePeriodSeconds": 1});
        for (field, value) in more.as_object().into_iter().flatten() {
            let place = if ["hostname", "subdomain"].contains(&field.as_str()) { &mut spec } else { &mut container };
            place[field] = value.clone();
        }
        spec["containers"] = json!([container]);
        let app = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
        self.create::<Pod>(cluster, json!({"metadata": {"name": name, "labels": {"app": app}}, "spec": spec})).await;
    }

    async fn service(&self, cluster: &str, name: &str, app: &str, ports: Value) {
        let headless = ["web", "lines"].contains(&name);
        let mut spec = json!({"selector": {"app": app}, "ports": ports});
        if headless {
            spec["clusterIP"] = json!("None");
        }
        self.create::<Service>(cluster, json!({"metadata": {"name": name}, "spec": spec})).await;
    }

    /// Waits until all pods of the test are ready.
    async fn settled(&self) {
        for (cluster, client) in &self.clients {
            let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
            eventually(&format!("pods of {cluster} are ready"), || async {
                let all = pods.list(&Default::default()).await.map_err(|error| error.to_string())?;
                let unready: Vec<_> = all.items.iter().filter(|pod| !is_ready(pod)).map(|p| p.name_any()).collect();
                if unready.is_empty() { Ok(()) } else { Err(unready.join(", ")) }
            })
            .await;
        }
    }

    fn net(&self, pod: &str) -> Arc<dyn Net> {
        Arc::clone(&self.nets.lock().unwrap()[pod])
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let sidecar = pod.spec.iter().any(|spec| spec.containers.len() == 2);
    sidecar && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn eventually<T, F: Future<Output = Result<T, String>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(found) => return found,
            Err(missing) => assert!(began.elapsed() < PATIENCE, "{what}: never: {missing}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn soon<T>(what: &str, doing: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), doing).await.unwrap_or_else(|_| panic!("{what}: hangs"))
}

/// Sends back, over HTTP/2, what a request carries while it comes: data, and trailers behind it.
async fn mirror(launch: stolos_lab::catalogue::Launch) -> i32 {
    let listener = launch.container.net.bind(8080).await.unwrap();
    let settings = listen::Settings { grace: Duration::from_secs(1), ..Default::default() };
    listen::http(listener, settings, launch.stop.clone(), |_| {
        hyper::service::service_fn(|request: Request<Incoming>| async move {
            let version = format!("{:?}", request.version());
            let te = request.headers().get("te").cloned();
            let client = request.headers().get("x-forwarded-client-cert").cloned();
            let mut response = Response::new(request.into_body());
            for (name, value) in [("x-te", te), ("x-client", client), ("x-version", version.parse().ok())] {
                if let Some(value) = value {
                    response.headers_mut().insert(name, value);
                }
            }
            Ok::<_, Infallible>(response)
        })
    })
    .await;
    0
}

/// A connection as a program in the pod gets one: the name is resolved, the first address dialled.
async fn dial(net: &Arc<dyn Net>, host: &str, port: u16) -> io::Result<Stream> {
    let address = net.resolve(host).await?[0];
    net.dial(SocketAddr::new(address, port)).await
}

async fn grpc(net: &Arc<dyn Net>, host: &str, port: u16) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{host}:{port}")).unwrap();
    let net = Arc::clone(net);
    let connector = tower::service_fn(move |uri: http::Uri| {
        let net = Arc::clone(&net);
        async move { dial(&net, uri.host().unwrap(), uri.port_u16().unwrap()).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.unwrap()
}

#[derive(Clone, PartialEq, prost::Message)]
struct Hello {
    #[prost(string, tag = "1")]
    text: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Wrong {
    #[prost(uint32, tag = "1")]
    code: u32,
    #[prost(string, tag = "2")]
    reason: String,
}

fn hello(text: impl Into<String>) -> Hello {
    Hello { text: text.into() }
}

/// The four shapes of a call, an error with its trailers, and metadata both ways.
async fn all_shapes(net: &Arc<dyn Net>, host: &str, port: u16) {
    let mut client = tonic::client::Grpc::new(grpc(net, host, port).await);
    let path = |method: &'static str| http::uri::PathAndQuery::from_static(method);
    let codec = ProstCodec::<Hello, Hello>::default;

    client.ready().await.unwrap();
    let reply = client.unary(tonic::Request::new(hello("you")), path("/hello.HelloService/SayHello"), codec()).await;
    let reply = reply.unwrap();
    assert!(reply.metadata().contains_key("x-served-by"), "{:?}", reply.metadata());
    assert_eq!(reply.into_inner(), hello("hello you"));

    client.ready().await.unwrap();
    let request = tonic::Request::new(hello("all"));
    let replies = client.server_streaming(request, path("/hello.HelloService/LotsOfReplies"), codec()).await.unwrap();
    let replies: Vec<_> = replies.into_inner().map(Result::unwrap).collect().await;
    assert_eq!(replies, vec![hello("hello all"); 10]);

    client.ready().await.unwrap();
    let greetings = futures::stream::iter(["a", "b", "c"].map(hello));
    let request = tonic::Request::new(greetings);
    let reply = client.client_streaming(request, path("/hello.HelloService/LotsOfGreetings"), codec()).await.unwrap();
    assert_eq!(reply.into_inner(), hello("hello a, b, c"));

    // Turn by turn: nothing waits for the end of the other direction.
    client.ready().await.unwrap();
    let (mut say, said) = futures::channel::mpsc::channel(1);
    let bidi = client.streaming(tonic::Request::new(said), path("/hello.HelloService/BidiHello"), codec());
    let mut heard = None;
    let opened = async {
        let bidi = bidi.await.unwrap();
        heard = Some(bidi.into_inner());
    };
    let first = async { say.send(hello("0")).await.unwrap() };
    tokio::join!(opened, first);
    let mut heard = heard.unwrap();
    for turn in 0..50 {
        assert_eq!(heard.message().await.unwrap().unwrap(), hello(format!("hello {turn}")));
        say.send(hello((turn + 1).to_string())).await.unwrap();
    }
    drop(say);
    assert_eq!(heard.message().await.unwrap().unwrap(), hello("hello 50"));
    assert_eq!(heard.message().await.unwrap(), None);
    assert!(heard.trailers().await.is_ok());

    client.ready().await.unwrap();
    let wrong = Wrong { code: 9, reason: "not now".into() };
    let codec = ProstCodec::<Wrong, Hello>::default();
    let error = client.unary(tonic::Request::new(wrong), path("/grpcbin.GRPCBin/SpecificError"), codec).await;
    let error = error.unwrap_err();
    assert_eq!((error.code(), error.message()), (tonic::Code::FailedPrecondition, "not now"));
    assert_eq!(error.metadata().get("x-grpcbin").unwrap(), "trailer");
}

/// One HTTP/2 exchange whose parts come one after the other, with trailers both ways.
async fn trailers_both_ways(net: &Arc<dyn Net>, host: &str, port: u16) -> HeaderMap {
    let stream = dial(net, host, port).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let (mut say, said) = futures::channel::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(1);
    let request = Request::post(format!("http://{host}:{port}/mirror"))
        .header("te", "trailers")
        .body(StreamBody::new(said))
        .unwrap();
    let answering = sender.send_request(request);
    say.send(Ok(Frame::data(Bytes::from_static(b"first")))).await.unwrap();
    let response = answering.await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::OK, Version::HTTP_2));
    let headers = response.headers().clone();
    let mut body = response.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    say.send(Ok(Frame::data(Bytes::from_static(b"second")))).await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "second");
    let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), HeaderValue::from_static("42"))]);
    say.send(Ok(Frame::trailers(trailers.clone()))).await.unwrap();
    drop(say);
    let last = loop {
        let frame = body.frame().await.expect("trailers come").unwrap();
        if let Ok(trailers) = frame.into_trailers() {
            break trailers;
        }
    };
    assert_eq!(last, trailers);
    drop(sender);
    connection.abort();
    headers
}

async fn get(net: &Arc<dyn Net>, host: &str, port: u16, path: &str) -> Result<(StatusCode, String), String> {
    let stream = dial(net, host, port).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path).header("host", format!("{host}:{port}")).body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    connection.abort();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

async fn web_socket(net: &Arc<dyn Net>, host: &str, port: u16) {
    let stream = dial(net, host, port).await.unwrap();
    let (mut socket, response) =
        tokio_tungstenite::client_async(format!("ws://{host}:{port}/chat"), stream).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let first = socket.next().await.unwrap().unwrap();
    assert_eq!(first.to_text().unwrap(), "Request served by sockets");
    for size in [1, 1000, 200_000] {
        let message = Message::binary(vec![7; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
}

/// Lines to a server that speaks second; the client ends its side first and still hears the rest.
async fn echoed(net: &Arc<dyn Net>, host: &str, port: u16) {
    let mut stream = dial(net, host, port).await.unwrap();
    stream.write_all(b"\x00one\ntwo\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"hello \x00one\nhello two\n");
}

/// A mail to a server that speaks first; how long its first words took.
async fn mailed(net: &Arc<dyn Net>, host: &str, port: u16) -> Duration {
    let began = Instant::now();
    let mut stream = BufReader::new(dial(net, host, port).await.unwrap());
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert!(line.starts_with("220 ") && line.contains("ESMTP"), "{line}");
    let took = began.elapsed();
    for (say, expected) in [("HELO me", "250"), ("MAIL FROM:<a@b>", "250"), ("NOOP", "250"), ("QUIT", "221")] {
        stream.write_all(format!("{say}\r\n").as_bytes()).await.unwrap();
        line.clear();
        stream.read_line(&mut line).await.unwrap();
        assert!(line.starts_with(expected), "{say}: {line}");
    }
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_protocol_crosses_two_clusters_on_two_networks() {
    let world = World::start().await;
    let probe = json!({"readinessProbe": {"grpc": {"port": 9000}, "periodSeconds": 1}});
    tokio::join!(
        world.pod("east-1", "hands-east", "test/hands", json!({})),
        world.pod("west-1", "hands-west", "test/hands", json!({})),
        world.pod("west-1", "grpcbin", "moul/grpcbin", probe),
        world.pod("west-1", "mirror", "test/mirror", json!({})),
        world.pod("west-1", "sockets", "jmalloc/echo-server", json!({})),
        world.pod("west-1", "httpbin", "mccutchen/go-httpbin", json!({})),
        world.pod("west-1", "tcp-echo", "docker.io/istio/tcp-echo-server:1.3", json!({"args": ["9000", "hello"]})),
        world.pod("west-1", "mail", "mailhog/mailhog", json!({})),
        world.pod(
            "east-2",
            "lines-0",
            "istio/tcp-echo-server",
            json!({"args": ["7000", "hello"], "hostname": "lines-0", "subdomain": "lines"}),
        ),
        world.pod("east-2", "web-0", "jmalloc/echo-server", json!({"hostname": "web-0", "subdomain": "web"})),
        world.pod("east-2", "web-1", "jmalloc/echo-server", json!({"hostname": "web-1", "subdomain": "web"})),
    );
    // These Services exist in the servers' cluster alone: their names are known to the mesh only.
    let ports = |list: &[(&str, u16, u16, &str)]| -> Value {
        list.iter()
            .map(|(name, port, target, app)| {
                let mut one = json!({"name": name, "port": port, "targetPort": target});
                if !app.is_empty() {
                    one["appProtocol"] = json!(app);
                }
                one
            })
            .collect()
    };
    let grpcs = ports(&[("grpc", 9000, 9000, "")]);
    world.service("west-1", "grpcbin", "grpcbin", grpcs).await;
    let mirrors = ports(&[("http2", 80, 8080, ""), ("x", 81, 8080, "kubernetes.io/h2c")]);
    world.service("west-1", "mirror", "mirror", mirrors).await;
    let sockets = ports(&[("http-web", 80, 8080, ""), ("x", 81, 8080, "kubernetes.io/ws")]);
    world.service("west-1", "sockets", "sockets", sockets).await;
    world.service("west-1", "httpbin", "httpbin", ports(&[("http", 8000, 8080, "")])).await;
    let lines = ports(&[("tcp", 9000, 9000, ""), ("redis-x", 9001, 9000, "")]);
    world.service("west-1", "tcp-echo", "tcp-echo", lines).await;
    world.service("west-1", "mail", "mail", ports(&[("tcp-smtp", 1025, 1025, "")])).await;
    world.service("east-2", "web", "web", ports(&[("http", 8080, 8080, "")])).await;
    world.service("east-2", "lines", "lines", ports(&[("tcp", 7000, 7000, "")])).await;
    // The same behind ports of which nothing is said.
    world.service("west-1", "s-grpcbin", "grpcbin", ports(&[("a", 9100, 9000, "")])).await;
    world.service("west-1", "s-sockets", "sockets", ports(&[("a", 9101, 8080, "")])).await;
    world.service("west-1", "s-tcp-echo", "tcp-echo", ports(&[("a", 9102, 9000, "")])).await;
    world.service("west-1", "s-mail", "mail", ports(&[("a", 9103, 1025, "")])).await;
    world.settled().await;
    let (east, west) = (world.net("hands-east"), world.net("hands-west"));

    // The last Service's name, from the other cluster's table of names.
    let names = ["grpcbin", "s-mail", "s-mail.wire", "s-mail.wire.svc.cluster.local"];
    for name in names {
        let found = eventually(name, || async { east.resolve(name).await.map_err(|e| e.to_string()) }).await;
        assert!(found[0].to_string().starts_with("10."), "{name}: {found:?}");
    }
    let nobody = east.resolve("nobody.wire").await.unwrap_err();
    assert_eq!(nobody.kind(), io::ErrorKind::NotFound);
    eventually("requests get through", || async {
        match get(&east, "httpbin.wire", 8000, "/hostname").await? {
            (StatusCode::OK, body) if body.contains("httpbin") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;

    soon("gRPC", all_shapes(&east, "grpcbin", 9000)).await;
    for port in [80, 81] {
        let headers = soon("HTTP/2", trailers_both_ways(&east, "mirror.wire", port)).await;
        assert_eq!(headers["x-te"], "trailers");
        assert_eq!(headers["x-version"], "HTTP/2.0");
        let client = headers["x-client"].to_str().unwrap();
        assert!(client.contains("URI=spiffe://cluster.local/ns/wire/sa/default"), "{client}");
        soon("WebSocket", web_socket(&east, "sockets.wire", port)).await;
    }
    soon("TCP", echoed(&east, "tcp-echo", 9000)).await;
    soon("TCP", echoed(&east, "tcp-echo", 9001)).await;
    let took = soon("TCP, server first", mailed(&east, "mail", 1025)).await;
    assert!(took < Duration::from_secs(3), "{took:?}");

    // What nothing is said of is found out, on both sides.
    soon("sniffed gRPC", all_shapes(&east, "s-grpcbin", 9100)).await;
    soon("sniffed WebSocket", web_socket(&east, "s-sockets", 9101)).await;
    soon("sniffed TCP", echoed(&east, "s-tcp-echo", 9102)).await;
    let took = soon("sniffed TCP, server first", mailed(&east, "s-mail", 9103)).await;
    assert!(took > Duration::from_secs(2), "it was looked at: {took:?}");

    // Pods of a headless service by name: those of the network, whatever the cluster.
    let pods: Api<Pod> = Api::namespaced(world.clients["east-2"].clone(), NAMESPACE);
    let mut all = Vec::new();
    for name in ["web-0", "web-1"] {
        let pod = pods.get(name).await.unwrap();
        let address: IpAddr = pod.status.unwrap().pod_ip.unwrap().parse().unwrap();
        all.push(address);
        let host = format!("{name}.web.wire.svc.cluster.local");
        assert_eq!(east.resolve(&host).await.unwrap(), [address]);
        assert_eq!(east.resolve(&format!("{name}.web")).await.unwrap(), [address]);
        let (status, said) = soon("a pod by name", get(&east, &host, 8080, "/")).await.unwrap();
        assert!(status == StatusCode::OK && said.contains(&format!("served by {name}")), "{said}");
        assert!(said.contains("x-forwarded-client-cert"), "over mTLS: {said}");
    }
    soon("TCP to a pod by name", echoed(&east, "lines-0.lines", 7000)).await;
    let mut found = east.resolve("web").await.unwrap();
    found.sort();
    all.sort();
    assert_eq!(found, all);
    // Nobody leads there from another network.
    assert_eq!(west.resolve("web-0.web").await.unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(west.resolve("web").await.unwrap_err().kind(), io::ErrorKind::NotFound);
    world.lab.stop().await;
}
