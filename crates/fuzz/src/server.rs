//! An API server inside the process, and clients that mean it no good.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::json;
use stolos_apiserver::runtime::{Connection, ContainerRef, Exit, LogOptions, PodRuntime, RuntimeError, Streams};
use stolos_apiserver::{Builder, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

/// Longer than any answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a connection is left alone after everything was said: whoever waits for more does so for ever.
const SILENCE: Duration = Duration::from_millis(3);
/// How many inputs one server takes: objects that were made pile up.
const LIFE: u32 = 300;

struct World {
    runtime: Runtime,
    server: Server,
    left: u32,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

/// Runs `ask` with a server that has one pod, `default/p`.
#[allow(clippy::expect_used, reason = "without a server there is nothing to try")]
fn with_server(ask: impl AsyncFnOnce(&Server)) {
    WORLD.with_borrow_mut(|world| {
        if world.as_ref().is_none_or(|world| world.left == 0) {
            if let Some(World { runtime, server, .. }) = world.take() {
                runtime.block_on(server.stop());
                runtime.shutdown_background();
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let server = runtime.block_on(async {
                let server = Builder::new().pod_runtime(Arc::new(Echo)).window(64, 1 << 20).start().await;
                let server = server.expect("a server");
                for (path, object) in seeds() {
                    let request = Request::post(path).header("content-type", "application/json");
                    let request = request.body(object.to_string().into_bytes()).expect("a request");
                    server.client().request::<serde_json::Value>(request).await.expect("a seed is taken");
                }
                server
            });
            *world = Some(World { runtime, server, left: LIFE });
        }
        let Some(world) = world else { return };
        world.left -= 1;
        let World { runtime, server, .. } = world;
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE, ask(server)).await.expect("the API server does not answer");
        });
    });
}

fn seeds() -> [(&'static str, serde_json::Value); 4] {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "a"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}});
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema":
                {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]}});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": {"a": "b"}});
    [
        ("/api/v1/namespaces/default/pods", pod),
        ("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd),
        ("/api/v1/namespaces/default/configmaps", map),
        ("/api/v1/namespaces/default/serviceaccounts", account),
    ]
}

/// `METHOD PATH`, header lines, an empty line, a body: what any client may send.
pub(crate) fn request(bytes: &[u8]) {
    let Some(request) = parse(bytes) else { return };
    with_server(async |server| send(server, request).await);
}

/// A body in Kubernetes' protobuf; the first byte chooses where it goes.
pub(crate) fn protobuf(bytes: &[u8]) {
    let Some((which, body)) = bytes.split_first() else { return };
    let path = [
        "/api/v1/namespaces/default/configmaps",
        "/api/v1/namespaces/default/pods",
        "/apis/apps/v1/namespaces/default/deployments",
        "/api/v1/namespaces/default/services",
    ][usize::from(*which) % 4];
    let request = Request::post(path).header("content-type", "application/vnd.kubernetes.protobuf");
    let Ok(request) = request.body(Body::from(body.to_vec())) else { return };
    with_server(async |server| send(server, request).await);
}

async fn send(server: &Server, request: Request<Body>) {
    let Ok(answer) = server.client().send(request).await else { return };
    let status = answer.status();
    // A watch does not end by itself.
    let is_json = is_one_document(&answer);
    let reading = async {
        let mut body = answer.into_body();
        let mut text = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        }
        text
    };
    let Ok(text) = tokio::time::timeout(SILENCE, reading).await else { return };
    let read = serde_json::from_slice::<serde_json::Value>(&text);
    assert!(read.is_ok() || !is_json, "the answer cannot be read: {read:?}");
    if status == 500 {
        // Kubernetes answers so to an apply of what no schema declares.
        let read = read.unwrap_or_default();
        let expected = read["message"].as_str().is_some_and(|m| m.starts_with("failed to create typed patch object"));
        assert!(expected, "an answer of 500 is a fault of ours: {read}");
    }
}

fn is_one_document(answer: &http::Response<Body>) -> bool {
    let kind = answer.headers().get("content-type").and_then(|value| value.to_str().ok());
    answer.headers().contains_key("content-length") && kind.is_some_and(|kind| kind.starts_with("application/json"))
}

fn parse(bytes: &[u8]) -> Option<Request<Body>> {
    let end = bytes.windows(2).position(|two| two == b"\n\n").unwrap_or(bytes.len());
    let body = bytes.get(end + 2..).unwrap_or_default();
    let mut lines = bytes[..end].split(|byte| *byte == b'\n');
    let mut first = lines.next()?.splitn(2, |byte| *byte == b' ');
    let method = Method::from_bytes(first.next()?).ok()?;
    let mut request = Request::builder().method(method).uri(first.next()?);
    for line in lines {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(parts.next()?).ok()?;
        // An upgrade has targets of its own.
        if name == http::header::UPGRADE {
            return None;
        }
        request = request.header(name, HeaderValue::from_bytes(parts.next()?.trim_ascii()).ok()?);
    }
    request.body(Body::from(body.to_vec())).ok()
}

/// Bytes as they come over a socket: heads, chunks, pipelines.
pub(crate) fn http(bytes: &[u8]) {
    with_server(async |server| drop(talk(server, false, bytes).await));
}

/// A bearer token.
pub(crate) fn token(bytes: &[u8]) {
    let token: Vec<u8> = bytes.iter().copied().filter(|byte| !byte.is_ascii_control()).collect();
    let head = b"GET /api/v1/namespaces HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer ";
    let said = [&head[..], &token, b"\r\n\r\n"].concat();
    with_server(async |server| {
        let answer = talk(server, false, &said).await;
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "a token nobody gave out is taken");
    });
}

/// A bearer token without the HTTP around it; and header and claims of one that the server has signed, whatever they say.
pub(crate) fn jwt(bytes: &[u8]) {
    let _ = is_believed(bytes);
}

pub(crate) fn is_believed(bytes: &[u8]) -> bool {
    let mut believed = false;
    with_server(async |server| believed = stolos_apiserver::fuzz::token(server, bytes));
    believed
}

/// Frames after the upgrade to WebSocket of `kubectl exec`; the first byte chooses the subprotocol.
pub(crate) fn websocket(bytes: &[u8]) {
    let Some((which, frames)) = bytes.split_first() else { return };
    let protocol = ["v5.channel.k8s.io", "v4.channel.k8s.io", "portforward.k8s.io", "SPDY/3.1+portforward.k8s.io"]
        [usize::from(*which) % 4];
    let verb = if protocol.contains("portforward") { "portforward?ports=80" } else { EXEC };
    let said = upgrade(
        "GET",
        verb,
        &format!(
            "upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
         sec-websocket-protocol: {protocol}\r\n"
        ),
    );
    with_server(async |server| drop(talk(server, true, &[&said, frames].concat()).await));
}

/// Frames after the upgrade to SPDY of an older `kubectl exec` or `port-forward`.
pub(crate) fn spdy(bytes: &[u8]) {
    let Some((which, frames)) = bytes.split_first() else { return };
    let (verb, version) = [(EXEC, "v4.channel.k8s.io"), ("portforward", "portforward.k8s.io")][usize::from(*which) % 2];
    let said = upgrade("POST", verb, &format!("upgrade: SPDY/3.1\r\nx-stream-protocol-version: {version}\r\n"));
    with_server(async |server| drop(talk(server, true, &[&said, frames].concat()).await));
}

const EXEC: &str = "exec?command=cat&stdin=true&stdout=true&stderr=true";

fn upgrade(method: &str, verb: &str, headers: &str) -> Vec<u8> {
    format!(
        "{method} /api/v1/namespaces/default/pods/p/{verb} HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\n{headers}\r\n"
    )
    .into_bytes()
}

/// Says `bytes` on a connection of its own and hears what comes back until there is nothing more.
async fn talk(server: &Server, trusted: bool, bytes: &[u8]) -> Vec<u8> {
    let mut stream = stolos_apiserver::fuzz::connect(server, trusted);
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let saying = async {
        let _ = writer.write_all(bytes).await;
        let _ = writer.flush().await;
        std::future::pending::<()>().await;
    };
    let hearing = async {
        let (mut heard, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            match tokio::time::timeout(SILENCE, reader.read(&mut piece)).await {
                Ok(Ok(count)) if count > 0 && heard.len() < 1 << 20 => heard.extend_from_slice(&piece[..count]),
                _ => return heard,
            }
        }
    };
    tokio::select! {
        () = saying => Vec::new(),
        heard = hearing => heard,
    }
}

/// A runtime whose processes say what they hear.
struct Echo;

impl PodRuntime for Echo {
    fn logs(&self, _: ContainerRef, _: LogOptions) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, RuntimeError>> {
        Box::pin(async { Ok(Box::pin(futures::stream::empty()) as BoxStream<'static, Bytes>) })
    }

    fn exec(
        &self,
        container: ContainerRef,
        _: Vec<String>,
        streams: Streams,
    ) -> BoxFuture<'_, Result<Exit, RuntimeError>> {
        self.attach(container, streams)
    }

    fn attach(&self, _: ContainerRef, streams: Streams) -> BoxFuture<'_, Result<Exit, RuntimeError>> {
        Box::pin(async move {
            if let (Some(mut input), Some(mut output)) = (streams.stdin, streams.stdout) {
                let _ = tokio::io::copy(&mut input, &mut output).await;
            }
            Ok(Exit { code: 0 })
        })
    }

    fn dial<'a>(&'a self, _: &'a str, _: &'a str, _: u16) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async {
            let (near, far) = tokio::io::duplex(4096);
            tokio::spawn(async move {
                let (mut reader, mut writer) = tokio::io::split(far);
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
            });
            Ok(Box::new(near) as Box<dyn Connection>)
        })
    }
}
