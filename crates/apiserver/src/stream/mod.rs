//! Logs, exec, attach and port-forward: requests that become streams.
//!
//! # Flow
//!
//! 1. [`answer`] finds the pod and its container, and what the client wants to speak: WebSocket ([`websocket`]) or
//!    SPDY/3.1 ([`spdy`]). Both begin as an HTTP/1.1 upgrade.
//! 2. Once the connection is handed over, [`exec`] or [`forward`] carries bytes between it and the
//!    [`PodRuntime`](crate::runtime::PodRuntime), in a task that ends with the connection or with the server.

mod exec;
mod forward;
mod log;
mod spdy;
mod websocket;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::route::{self, Ask, Body};
use crate::runtime::{ContainerRef, RuntimeError, default_container};
use spdy::session;
use websocket::Channels;

pub(crate) use spdy::fuzz as fuzz_spdy;
pub(crate) use websocket::fuzz as fuzz_websocket;

/// How long a connection may be silent: the kubelet's `streamingConnectionIdleTimeout`.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
/// How often a silent client is asked whether it is there.
const PING: Duration = Duration::from_secs(30);
/// The most connections of this kind at once.
const MOST: usize = 256;
/// How long connections may take to end when the server stops.
const ENDING: Duration = Duration::from_secs(2);

/// The upgraded connections of a server.
#[derive(Default)]
pub(crate) struct Running(Mutex<JoinSet<()>>);

impl Running {
    /// Goes on with `work` until it ends by itself or the server stops.
    fn start(&self, work: impl Future<Output = ()> + Send + 'static) -> Result<()> {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= MOST {
            return Err(Failure::too_many_requests("too many exec, attach and port-forward connections are open"));
        }
        tasks.spawn(work);
        Ok(())
    }

    /// Waits for the end of all, which the server's stop has asked for.
    pub(crate) async fn ended(&self) {
        let mut tasks = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let all = async { while tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(ENDING, all).await;
        tasks.shutdown().await;
    }
}

/// When something was last said.
struct Activity(Mutex<Instant>);

impl Activity {
    fn new() -> Self {
        Self(Mutex::new(Instant::now()))
    }

    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends when nothing was said for so long.
    async fn silent(&self, most: Duration) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + most;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// Whether a request is one of these.
#[must_use]
pub(crate) fn is_stream(ask: &Ask) -> bool {
    &*ask.resource.storage == "pods" && matches!(ask.target.sub.as_str(), "log" | "exec" | "attach" | "portforward")
}

/// Answers it.
///
/// # Errors
///
/// When the pod, the container or the runtime is not there, or the client speaks nothing that is spoken here.
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
        let door = forward::Door {
            runtime,
            namespace: namespace.clone(),
            pod: name.clone(),
            uid: stolos_k8s::meta::uid(pod).to_owned(),
        };
        return port_forward(api, &ask, door, upgrade);
    }
    let container = container(&ask, pod)?;
    if ask.target.sub == "log" {
        return log::answer(api, &ask, runtime, container).await;
    }
    let plan = exec::Plan::of(&ask, runtime, container)?;
    match Speech::of(&ask.headers)? {
        Speech::WebSocket => {
            let channels = Channels::choose(&ask.headers, websocket::EXEC)?;
            let switch = Switch::to_websocket(&ask.headers, channels.name);
            switch.accept(api, upgrade, move |upgraded| async move {
                exec::over_websocket(plan, channels, websocket::socket(upgraded).await).await;
            })
        }
        Speech::Spdy => {
            let (version, name) = match choose_protocol(&ask.headers, exec::PROTOCOLS) {
                // Clients of Kubernetes 1.0 named none.
                Ok(None) => (1, None),
                Ok(Some(index)) => (exec::PROTOCOLS.len() - index, exec::PROTOCOLS.get(index).copied()),
                Err(refusal) => return Ok(*refusal),
            };
            Switch::to_spdy(name).accept(api, upgrade, move |upgraded| async move {
                let io = TokioIo::new(upgraded);
                let serve = |streams| exec::over_spdy(plan, version, streams);
                ended(session::run(io, session::Limits::default(), serve).await);
            })
        }
    }
}

fn port_forward(api: &Arc<Api>, ask: &Ask, door: forward::Door, upgrade: Option<OnUpgrade>) -> Result<Response<Body>> {
    let limits = session::Limits::default();
    match Speech::of(&ask.headers)? {
        Speech::WebSocket if websocket::offers(&ask.headers).contains(&websocket::TUNNEL) => {
            let switch = Switch::to_websocket(&ask.headers, websocket::TUNNEL);
            switch.accept(api, upgrade, move |upgraded| async move {
                let io = websocket::Tunnel::new(websocket::socket(upgraded).await);
                ended(session::run(io, limits, |streams| forward::over_spdy(door, streams)).await);
            })
        }
        Speech::WebSocket => {
            let channels = Channels::choose(&ask.headers, websocket::FORWARD)?;
            let ports = forward::ports(ask)?;
            let switch = Switch::to_websocket(&ask.headers, channels.name);
            switch.accept(api, upgrade, move |upgraded| async move {
                forward::over_websocket(door, ports, channels, websocket::socket(upgraded).await).await;
            })
        }
        Speech::Spdy => {
            let name = match choose_protocol(&ask.headers, &[forward::PROTOCOL]) {
                Ok(index) => index.map(|_| forward::PROTOCOL),
                Err(refusal) => return Ok(*refusal),
            };
            Switch::to_spdy(name).accept(api, upgrade, move |upgraded| async move {
                let io = TokioIo::new(upgraded);
                ended(session::run(io, limits, |streams| forward::over_spdy(door, streams)).await);
            })
        }
    }
}

fn ended(result: std::result::Result<(), spdy::SpdyError>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a SPDY connection ended");
    }
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

/// What a client wants the connection to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    WebSocket,
    Spdy,
}

impl Speech {
    fn of(headers: &HeaderMap) -> Result<Self> {
        let wants = headers.get(header::CONNECTION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let upgrades = wants.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
        let to = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match to.to_ascii_lowercase().as_str() {
            "websocket" if upgrades => Ok(Self::WebSocket),
            "spdy/3.1" if upgrades => Ok(Self::Spdy),
            _ => Err(Failure::bad_request("Upgrade request required: WebSocket and SPDY/3.1 are spoken here")),
        }
    }
}

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");

/// The first of the client's protocols that is `known`, by its place there; `None` when it names none. The error is
/// the refusal, from which clients see what they could have said.
fn choose_protocol(headers: &HeaderMap, known: &[&str]) -> std::result::Result<Option<usize>, Box<Response<Body>>> {
    let values = headers.get_all(PROTOCOL_VERSION).iter().filter_map(|value| value.to_str().ok());
    let offers: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
    if offers.is_empty() {
        return Ok(None);
    }
    if let Some(index) = offers.iter().find_map(|offer| known.iter().position(|known| known == offer)) {
        return Ok(Some(index));
    }
    let message = format!(
        "unable to upgrade: unable to negotiate protocol: client supports {offers:?}, server accepts {known:?}"
    );
    let mut response = route::failed(&Failure::other(403, "Forbidden", message));
    for known in known {
        if let Ok(value) = HeaderValue::from_str(known) {
            response.headers_mut().append(ACCEPTED_VERSIONS, value);
        }
    }
    Err(Box::new(response))
}

/// The answer that hands the connection over.
struct Switch(Vec<(HeaderName, HeaderValue)>);

impl Switch {
    fn to_websocket(headers: &HeaderMap, protocol: &'static str) -> Self {
        let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes).unwrap_or_default();
        let mut said = vec![(header::UPGRADE, HeaderValue::from_static("websocket"))];
        said.extend(HeaderValue::from_str(&derive_accept_key(key)).ok().map(|v| (header::SEC_WEBSOCKET_ACCEPT, v)));
        if !protocol.is_empty() {
            said.push((header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol)));
        }
        Self(said)
    }

    fn to_spdy(protocol: Option<&'static str>) -> Self {
        let mut said = vec![(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"))];
        said.extend(protocol.map(|protocol| (PROTOCOL_VERSION, HeaderValue::from_static(protocol))));
        Self(said)
    }

    /// Answers, and gives the connection to `serve` once it is free.
    fn accept<F>(
        self,
        api: &Arc<Api>,
        upgrade: Option<OnUpgrade>,
        serve: impl FnOnce(Upgraded) -> F + Send + 'static,
    ) -> Result<Response<Body>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let upgrade =
            upgrade.ok_or_else(|| Failure::bad_request("this connection cannot be upgraded: use HTTP/1.1"))?;
        let stop = api.stop.clone();
        api.streams.start(async move {
            let serving = async {
                match upgrade.await {
                    Ok(upgraded) => serve(upgraded).await,
                    Err(error) => tracing::debug!(%error, "a client did not go through with its upgrade"),
                }
            };
            tokio::select! {
                () = serving => {}
                () = stop.asked() => {}
            }
        })?;
        let mut response = Response::new(route::full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.extend(self.0);
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn upgrades_are_understood() {
        let speech =
            |connection, upgrade| Speech::of(&headers(&[("connection", connection), ("upgrade", upgrade)])).ok();
        assert_eq!(speech("Upgrade", "SPDY/3.1"), Some(Speech::Spdy));
        assert_eq!(speech("keep-alive, upgrade", "WebSocket"), Some(Speech::WebSocket));
        assert_eq!(speech("close", "websocket"), None);
        assert_eq!(speech("upgrade", "h2c"), None);
    }

    #[test]
    fn protocols_are_chosen_in_the_clients_order() {
        let offered = |offers: &[&'static str]| {
            let pairs: Vec<_> = offers.iter().map(|offer| ("x-stream-protocol-version", *offer)).collect();
            choose_protocol(&headers(&pairs), exec::PROTOCOLS).map_err(|refusal| refusal.status().as_u16())
        };
        assert_eq!(offered(&[]), Ok(None));
        assert_eq!(offered(&["v4.channel.k8s.io", "v3.channel.k8s.io"]), Ok(Some(0)));
        assert_eq!(offered(&["v9.channel.k8s.io", "channel.k8s.io"]), Ok(Some(3)));
        assert_eq!(offered(&["v9.channel.k8s.io"]), Err(403));
    }
}
