//! Logs, exec, attach and port-forward: requests that become streams.
//!
//! The framing is that of Kubernetes' WebSocket subprotocols `v5.channel.k8s.io` and `v4.channel.k8s.io`: the first
//! byte of a message says which stream it belongs to.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, coding::CloseCode};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::route::{self, Ask, Body, BoxError};
use crate::runtime::default_container;
use crate::runtime::{ContainerRef, Exit, LogOptions, PodRuntime, Reader, RuntimeError, Size, Streams, Writer};

/// Whether a request is one of these.
#[must_use]
pub(crate) fn is_stream(ask: &Ask) -> bool {
    &*ask.resource.storage == "pods" && matches!(ask.target.sub.as_str(), "log" | "exec" | "attach" | "portforward")
}

/// Answers it.
///
/// # Errors
///
/// When the pod, the container or the runtime is not there.
pub(crate) async fn answer(api: &Arc<Api>, ask: Ask, upgrade: Option<OnUpgrade>) -> Result<Response<Body>> {
    let (namespace, name) = (&ask.target.namespace, &ask.target.name);
    let pod = api.state.get("pods", namespace, name).ok_or_else(|| Failure::not_found("pods", name))?;
    let pod = &pod.value;
    if pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty() {
        return Err(Failure::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let runtime = api
        .runtime()
        .ok_or_else(|| Failure::not_implemented("this API server runs no pods: its embedder gave it no pod runtime"))?;
    if ask.target.sub == "portforward" {
        return forward(api, &ask, runtime, upgrade);
    }
    let container = container(&ask, pod)?;
    if ask.target.sub == "log" {
        return log(api, &ask, runtime, container).await;
    }
    run(api, &ask, runtime, container, upgrade)
}

fn container(ask: &Ask, pod: &Value) -> Result<ContainerRef> {
    let name = &ask.target.name;
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let all: Vec<&str> = lists
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten())
        .filter_map(|container| container["name"].as_str())
        .collect();
    let many = pod["spec"]["containers"].as_array().is_some_and(|list| list.len() > 1);
    let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].is_string();
    let container = match ask.query.get("container") {
        Some(container) => container.to_owned(),
        None if many && !annotated => {
            let message =
                format!("a container name must be specified for pod {name}, choose one of: [{}]", all.join(" "));
            return Err(Failure::bad_request(message));
        }
        None => default_container(pod).unwrap_or_default(),
    };
    if !all.contains(&container.as_str()) {
        return Err(Failure::bad_request(format!("container {container} is not valid for pod {name}")));
    }
    Ok(ContainerRef {
        namespace: ask.target.namespace.clone(),
        pod: name.clone(),
        uid: stolos_k8s::meta::uid(pod).to_owned(),
        container,
    })
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        match error {
            RuntimeError::NotFound(message) => Self::other(404, "NotFound", message),
            RuntimeError::BadRequest(message) => Self::bad_request(message),
            RuntimeError::Failed(message) => Self::internal(message),
        }
    }
}

async fn log(
    api: &Arc<Api>,
    ask: &Ask,
    runtime: Arc<dyn PodRuntime>,
    container: ContainerRef,
) -> Result<Response<Body>> {
    let since = match (ask.query.number::<u64>("sinceSeconds")?, ask.query.get("sinceTime")) {
        (Some(seconds), _) => Some(Duration::from_secs(seconds)),
        (None, Some(time)) => {
            let time: jiff::Timestamp = time.parse().map_err(|_| Failure::bad_request("invalid sinceTime"))?;
            Some(Duration::try_from(jiff::Timestamp::now().duration_since(time)).unwrap_or_default())
        }
        (None, None) => None,
    };
    let options = LogOptions {
        follow: ask.query.is("follow"),
        previous: ask.query.is("previous"),
        timestamps: ask.query.is("timestamps"),
        tail_lines: ask.query.number("tailLines")?,
        since,
        limit_bytes: ask.query.number("limitBytes")?,
    };
    let stop = api.stop.clone();
    let lines = runtime.logs(container, options).await?;
    let lines = lines.take_until(async move { stop.asked().await });
    let frames = lines.map(|bytes: Bytes| Ok::<_, BoxError>(Frame::data(bytes)));
    let mut response = Response::new(StreamBody::new(frames.boxed()).boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    Ok(response)
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// The subprotocol that both sides speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    V5,
    V4,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Self::V5 => "v5.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
        }
    }

    fn choose(headers: &HeaderMap) -> Result<Self> {
        let offers = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
        let offers: Vec<&str> = offers.flat_map(|value| value.split(',')).map(str::trim).collect();
        let known = [Self::V5, Self::V4].into_iter().find(|protocol| offers.contains(&protocol.name()));
        known.ok_or_else(|| {
            Failure::bad_request(format!(
                "none of the subprotocols {offers:?} is spoken here: v5.channel.k8s.io and v4.channel.k8s.io are"
            ))
        })
    }
}

/// Answers the handshake and hands the socket to `serve` once it is there.
fn accept<F>(
    api: &Arc<Api>,
    ask: &Ask,
    upgrade: Option<OnUpgrade>,
    serve: impl FnOnce(Socket, Protocol) -> F + Send + 'static,
) -> Result<Response<Body>>
where
    F: Future<Output = ()> + Send + 'static,
{
    let text =
        |name| ask.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok()).unwrap_or_default();
    if !text(header::UPGRADE).eq_ignore_ascii_case("websocket") {
        return Err(Failure::bad_request("Upgrade request required: WebSocket is spoken here"));
    }
    let upgrade = upgrade.ok_or_else(|| Failure::bad_request("this connection cannot be upgraded: use HTTP/1.1"))?;
    let protocol = Protocol::choose(&ask.headers)?;
    let key = derive_accept_key(text(header::SEC_WEBSOCKET_KEY).as_bytes());
    let stop = api.stop.clone();
    tokio::spawn(async move {
        let serving = async {
            match upgrade.await {
                Ok(upgraded) => {
                    let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
                    serve(socket, protocol).await;
                }
                Err(error) => tracing::debug!(%error, "a client did not go through with its upgrade"),
            }
        };
        tokio::select! {
            () = serving => {}
            () = stop.asked() => {}
        }
    });
    let mut response = Response::new(route::full(Bytes::new()));
    *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, http::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, http::HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, http::HeaderValue::from_static(protocol.name()));
    if let Ok(key) = http::HeaderValue::from_str(&key) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    }
    Ok(response)
}

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In v5: the stream named by the next byte ends.
const CLOSE: u8 = 255;
/// What is buffered between a process and its client.
const BUFFER: usize = 64 << 10;

fn run(
    api: &Arc<Api>,
    ask: &Ask,
    runtime: Arc<dyn PodRuntime>,
    container: ContainerRef,
    upgrade: Option<OnUpgrade>,
) -> Result<Response<Body>> {
    let is_exec = ask.target.sub == "exec";
    let command = ask.query.all("command").to_vec();
    if is_exec && command.is_empty() {
        return Err(Failure::bad_request("you must specify at least 1 command for the container"));
    }
    let tty = ask.query.is("tty");
    let wants = |stream| ask.query.is(stream);
    let (stdin, stdout, stderr) = (wants("stdin"), wants("stdout"), wants("stderr") && !tty);
    if !stdin && !stdout && !stderr {
        return Err(Failure::bad_request("you must specify at least one of stdin, stdout, stderr"));
    }
    accept(api, ask, upgrade, move |socket, protocol| async move {
        let (to_process, stdin) = stdin.then(|| tokio::io::duplex(BUFFER)).unzip();
        let (stdout, from_stdout) = stdout.then(|| tokio::io::duplex(BUFFER)).unzip();
        let (stderr, from_stderr) = stderr.then(|| tokio::io::duplex(BUFFER)).unzip();
        let (sizes, resize) = mpsc::channel(8);
        let streams = Streams {
            stdin: stdin.map(|half| Box::new(half) as Reader),
            stdout: stdout.map(|half| Box::new(half) as Writer),
            stderr: stderr.map(|half| Box::new(half) as Writer),
            tty,
            resize,
        };
        let process = async {
            if is_exec {
                runtime.exec(container, command, streams).await
            } else {
                runtime.attach(container, streams).await
            }
        };
        let (mut sink, mut source) = socket.split();
        let (out, mut outgoing) = mpsc::channel::<Message>(16);
        let sending = async {
            while let Some(message) = outgoing.recv().await {
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            // kubectl takes a close without a code for a failure.
            let frame = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
            let _ = sink.send(Message::Close(Some(frame))).await;
        };
        let receiving = async {
            let mut to_process = to_process;
            while let Some(Ok(message)) = source.next().await {
                let Message::Binary(bytes) = message else {
                    if message.is_close() {
                        return;
                    }
                    continue;
                };
                match (bytes.first(), bytes.get(1..).unwrap_or_default()) {
                    (Some(&STDIN), data) => {
                        if let Some(pipe) = &mut to_process
                            && pipe.write_all(data).await.is_err()
                        {
                            to_process = None;
                        }
                    }
                    (Some(&RESIZE), data) => {
                        if let Some(size) = read_size(data) {
                            let _ = sizes.try_send(size);
                        }
                    }
                    (Some(&CLOSE), [STDIN]) if protocol == Protocol::V5 => to_process = None,
                    _ => {}
                }
            }
        };
        let running = async {
            let (first, second) = (out.clone(), out.clone());
            let pumps = async move {
                tokio::join!(pump(from_stdout, STDOUT, &first), pump(from_stderr, STDERR, &second));
            };
            tokio::pin!(pumps);
            tokio::pin!(process);
            let ended = tokio::select! {
                ended = &mut process => {
                    // Whoever keeps an output open after the end does not keep the client.
                    let _ = tokio::time::timeout(Duration::from_secs(2), &mut pumps).await;
                    ended
                }
                () = &mut pumps => process.await,
            };
            let status = end_status(ended).to_string();
            let _ = out.send(frame(ERROR, status.as_bytes())).await;
            drop(out);
        };
        // Ends with the process once its end is sent, or when the client leaves.
        let to_the_end = async {
            tokio::join!(running, sending);
        };
        until_closed(to_the_end, receiving).await;
    })
}

/// Goes on until the client leaves; once everything is said it gets a moment to say goodbye.
async fn until_closed(saying: impl Future<Output = ()>, hearing: impl Future<Output = ()>) {
    tokio::pin!(hearing);
    tokio::select! {
        () = saying => {
            let _ = tokio::time::timeout(Duration::from_secs(2), hearing).await;
        }
        () = &mut hearing => {}
    }
}

async fn pump(from: Option<tokio::io::DuplexStream>, channel: u8, out: &mpsc::Sender<Message>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 32 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if out.send(frame(channel, &buffer[..n])).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn frame(channel: u8, data: &[u8]) -> Message {
    let mut bytes = Vec::with_capacity(data.len() + 1);
    bytes.push(channel);
    bytes.extend_from_slice(data);
    Message::binary(bytes)
}

fn read_size(data: &[u8]) -> Option<Size> {
    let size: Value = serde_json::from_slice(data).ok()?;
    let number = |field: &str| size[field].as_u64().and_then(|n| u16::try_from(n).ok());
    Some(Size { width: number("Width")?, height: number("Height")? })
}

/// How a process ended, as a Status.
fn end_status(ended: Result<Exit, RuntimeError>) -> Value {
    match ended {
        Ok(Exit { code: 0 }) => json!({"metadata": {}, "status": "Success"}),
        Ok(Exit { code }) => json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "code": 500,
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}}),
        Err(error) => {
            let mut status = Failure::from(error).status();
            status["message"] = json!(status["message"].as_str().unwrap_or_default());
            status
        }
    }
}

/// Port-forward as kube-rs speaks it: two channels per port, the second for errors, both opened by the port's number.
fn forward(
    api: &Arc<Api>,
    ask: &Ask,
    runtime: Arc<dyn PodRuntime>,
    upgrade: Option<OnUpgrade>,
) -> Result<Response<Body>> {
    Protocol::choose(&ask.headers)?;
    let ports = ask.query.all("ports").iter().flat_map(|ports| ports.split(','));
    let ports: Vec<u16> = ports
        .map(|port| port.parse().map_err(|_| Failure::bad_request(format!("invalid port {port:?}"))))
        .collect::<Result<_>>()?;
    if ports.is_empty() || ports.len() > 100 {
        return Err(Failure::bad_request("query parameter \"ports\" is required"));
    }
    let (namespace, name) = (ask.target.namespace.clone(), ask.target.name.clone());
    accept(api, ask, upgrade, move |socket, _| async move {
        let (mut sink, mut source) = socket.split();
        let (out, mut outgoing) = mpsc::channel::<Message>(16);
        let mut writers: Vec<Option<mpsc::Sender<Bytes>>> = Vec::new();
        let mut connections = Vec::new();
        for (index, port) in ports.iter().copied().enumerate() {
            let (data, error) = (u8::try_from(index * 2).unwrap_or(254), u8::try_from(index * 2 + 1).unwrap_or(254));
            let (to_pod, incoming) = mpsc::channel(16);
            writers.push(Some(to_pod));
            let (runtime, out) = (Arc::clone(&runtime), out.clone());
            let (namespace, name) = (&namespace, &name);
            connections.push(async move {
                for channel in [data, error] {
                    let _ = out.send(frame(channel, &port.to_le_bytes())).await;
                }
                if let Err(why) = connect(runtime, namespace, name, port, data, incoming, &out).await {
                    let message = format!("error forwarding port {port} to pod {name}: {why}");
                    let _ = out.send(frame(error, message.as_bytes())).await;
                }
            });
        }
        drop(out);
        let sending = async {
            while let Some(message) = outgoing.recv().await {
                if sink.send(message).await.is_err() {
                    return;
                }
            }
            // kubectl takes a close without a code for a failure.
            let frame = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() };
            let _ = sink.send(Message::Close(Some(frame))).await;
        };
        let receiving = async {
            while let Some(Ok(message)) = source.next().await {
                match message {
                    Message::Binary(bytes) => {
                        let Some(&channel) = bytes.first() else { continue };
                        if channel == CLOSE {
                            if let Some(writer) = bytes.get(1).and_then(|c| writers.get_mut(usize::from(c / 2))) {
                                *writer = None;
                            }
                        } else if channel % 2 == 0
                            && let Some(Some(writer)) = writers.get(usize::from(channel / 2))
                        {
                            let _ = writer.send(bytes.slice(1..)).await;
                        }
                    }
                    Message::Close(_) => return,
                    _ => {}
                }
            }
        };
        let forwarding = async {
            tokio::join!(futures::future::join_all(connections), sending);
        };
        until_closed(forwarding, receiving).await;
    })
}

async fn connect(
    runtime: Arc<dyn PodRuntime>,
    namespace: &str,
    pod: &str,
    port: u16,
    channel: u8,
    mut incoming: mpsc::Receiver<Bytes>,
    out: &mpsc::Sender<Message>,
) -> std::io::Result<()> {
    let connection = tokio::time::timeout(Duration::from_secs(10), runtime.dial(namespace, pod, port)).await;
    let connection = connection.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    let (mut from, mut to) = tokio::io::split(connection);
    let reading = async {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match from.read(&mut buffer).await? {
                0 => return Ok(()),
                n => {
                    if out.send(frame(channel, &buffer[..n])).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    };
    let writing = async {
        while let Some(bytes) = incoming.recv().await {
            to.write_all(&bytes).await?;
        }
        to.shutdown().await?;
        // The pod may still have much to say.
        std::future::pending().await
    };
    tokio::select! {
        done = reading => done,
        failed = writing => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subprotocols_are_chosen_newest_first() {
        let chosen = |offer: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, http::HeaderValue::from_static(offer));
            Protocol::choose(&headers).ok()
        };
        assert_eq!(chosen("v4.channel.k8s.io, v5.channel.k8s.io"), Some(Protocol::V5));
        assert_eq!(chosen("v4.channel.k8s.io"), Some(Protocol::V4));
        assert_eq!(chosen("SPDY/3.1+portforward.k8s.io"), None);
    }

    #[test]
    fn the_end_of_a_process_is_told_as_kubernetes_tells_it() {
        assert_eq!(end_status(Ok(Exit { code: 0 }))["status"], "Success");
        let failed = end_status(Ok(Exit { code: 7 }));
        assert_eq!(failed["details"]["causes"][0]["message"], "7");
        assert_eq!(end_status(Err(RuntimeError::BadRequest("no".into())))["code"], 400);
    }
}
