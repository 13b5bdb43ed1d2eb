//! Requests, one by one: find the route, choose a host, send, and once more where that does no harm.
//!
//! [`serve`] reads requests off a client's connection; each passes `guard` (does it mean the same to everybody),
//! `request` (whom it is for), the route table, `upstream` (a host, and another one) and comes back through `reply`, or
//! goes over to bytes in `tunnel`. HTTP/1.1 and HTTP/2 differ in how they are read and written only.

pub(crate) mod body;
pub(crate) mod exchange;
pub(crate) mod fuzz;
mod guard;
pub(crate) mod headers;
mod reply;
mod request;
mod tunnel;
mod upstream;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};

use self::reply::{here, introduce_server, redirected, respond};
use self::request::{authority, introduce_client, prepare, rewrite, scheme};
use crate::config::Http;
use crate::http::body::{ResponseBody, Tee};
use crate::http::exchange::Exchange;
use crate::http::headers::Local;
use crate::listener::{Arrived, Client};
use crate::metrics;
use crate::rbac::Refusal;
use crate::route::{self, Asked};
use crate::state::Shared;

/// How long a client may think about its next request, and twice that at most.
const QUIET: Duration = Duration::from_secs(300);
/// What it is given to end in order when it has thought too long.
const LAST: Duration = Duration::from_secs(10);
/// How often a client's quiet HTTP/2 connection is asked whether it is still there, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));

/// A client's connection, as its requests see it.
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) http: Arc<Http>,
    pub(crate) arrived: Arrived,
    pub(crate) series: metrics::Cache,
    /// Workloads that have spoken over it.
    peers: metrics::Peers,
    client_cert: Option<HeaderValue>,
    /// Requests that have begun, and how many of them have not ended.
    begun: AtomicU64,
    open: AtomicU32,
    /// Whether it turned out to be HTTP/2, which asks a quiet client whether it is still there.
    asks: AtomicBool,
}

impl Connection {
    /// Returns when the client has not begun a request for a long time, and none is under way.
    ///
    /// One timer for the whole connection: hyper's own (`header_read_timeout`) is made, entered and removed again for
    /// every request.
    async fn quiet(&self) {
        loop {
            let before = self.begun.load(Ordering::Relaxed);
            tokio::time::sleep(QUIET).await;
            let idle = self.begun.load(Ordering::Relaxed) == before && self.open.load(Ordering::Relaxed) == 0;
            if idle && !self.asks.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

/// Serves a connection until either side has had enough.
pub(crate) async fn serve(shared: &Arc<Shared>, http: &Arc<Http>, arrived: Arrived, client: Client) {
    let version = match (arrived.settled.as_deref(), arrived.http) {
        (Some(b"h2" | b"istio-h2"), _) | (_, Some("h2c")) => Some(Version::HTTP_2),
        (Some(b"http/1.1" | b"http/1.0" | b"istio-http/1.1" | b"istio-http/1.0"), _) | (_, Some(_)) => {
            Some(Version::HTTP_11)
        }
        _ => None,
    };
    let identity = shared.identity.load();
    let own = identity.as_ref().map(|identity| &*identity.uri).unwrap_or_default();
    let client_cert = arrived.peer.as_ref().and_then(|peer| headers::client_cert(own, peer));
    let connection = Arc::new(Connection {
        shared: Arc::clone(shared),
        http: Arc::clone(http),
        arrived,
        series: metrics::Cache::default(),
        peers: metrics::Peers::default(),
        client_cert,
        begun: AtomicU64::new(0),
        open: AtomicU32::new(0),
        asks: AtomicBool::new(version == Some(Version::HTTP_2)),
    });
    match client {
        Client::Plain(io) => drive(connection, io, version).await,
        Client::Tls(io) => drive(connection, io, version).await,
    }
}

async fn drive<I>(connection: Arc<Connection>, io: I, version: Option<Version>)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = Arc::clone(&connection.shared);
    let (streams, largest_head) = (connection.http.streams, connection.http.largest_head);
    // What is read ahead of HTTP/1.1 is its head; hyper's own least is 8 KiB.
    let ahead = usize::try_from(largest_head).unwrap_or(usize::MAX).max(64 * 1024);
    let watched = Arc::clone(&connection);
    let service = service_fn(move |request| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(answer(connection, request).await) }
    });
    let io = TokioIo::new(io);
    // The three differ in type only: serve, until the proxy drains or the client is quiet, then politely, until it is
    // cut. What is served is looked at first: nearly always it is why the task was woken.
    macro_rules! serve {
        ($connection:expr) => {{
            let mut serving = Box::pin($connection);
            let ended = tokio::select! {
                biased;
                result = serving.as_mut() => Ok(result),
                () = shared.draining.asked() => Err(None),
                () = watched.quiet() => Err(Some(LAST)),
            };
            let result = match ended {
                Ok(result) => result.map_err(|e| e.to_string()),
                Err(within) => {
                    serving.as_mut().graceful_shutdown();
                    tokio::select! {
                        result = serving.as_mut() => result.map_err(|e| e.to_string()),
                        () = shared.cut.asked() => Err("drained".to_owned()),
                        () = tokio::time::sleep(within.unwrap_or_default()), if within.is_some() => {
                            Err("the client was quiet".to_owned())
                        }
                    }
                }
            };
            if let Err(error) = result {
                tracing::debug!(error, "client connection ended");
            }
        }};
    }
    match version {
        Some(Version::HTTP_2) => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .adaptive_window(true)
                .max_concurrent_streams(streams)
                .max_header_list_size(largest_head)
                .enable_connect_protocol()
                .keep_alive_interval(PING.0)
                .keep_alive_timeout(PING.1);
            serve!(builder.serve_connection(io, service));
        }
        Some(_) => {
            let mut builder = http1::Builder::new();
            builder.header_read_timeout(None).max_buf_size(ahead);
            serve!(builder.serve_connection(io, service).with_upgrades());
        }
        None => {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder.http1().header_read_timeout(None).max_buf_size(ahead).half_close(true);
            builder
                .http2()
                .timer(TokioTimer::new())
                .adaptive_window(true)
                .max_concurrent_streams(streams)
                .max_header_list_size(largest_head)
                .enable_connect_protocol()
                .keep_alive_interval(PING.0)
                .keep_alive_timeout(PING.1);
            serve!(builder.serve_connection_with_upgrades(io, service));
        }
    }
}

/// Answers one request.
async fn answer(connection: Arc<Connection>, mut request: Request<Incoming>) -> Response<ResponseBody> {
    let extended = request::extended_connect(&mut request);
    let upgrade = headers::upgrade(request.method(), request.headers());
    let client_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let authority = authority(&parts);
    let mut exchange = Exchange::begin(&connection, &parts, authority);
    if let Err(local) = guard::judge(&parts) {
        return here(exchange, local);
    }
    prepare(&connection, &mut parts);
    if extended {
        parts.version = Version::HTTP_11;
    }
    let introduced = introduce_client(&mut exchange, &mut parts);
    exchange.keep_request(&parts.headers);

    let asked = Asked {
        method: &parts.method,
        authority: &exchange.authority,
        path: parts.uri.path(),
        query: parts.uri.query(),
        scheme: scheme(&connection),
        headers: &parts.headers,
    };
    if let Err(refusal) = connection.arrived.judge(&connection.http, asked) {
        tracing::debug!(remote = %connection.arrived.remote, policy = refusal.policy(), "request refused");
        let mut response = here(exchange, headers::DENIED);
        if refusal == Refusal::Closed && parts.version != Version::HTTP_2 {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        return response;
    }
    if parts.method == Method::CONNECT || exchange.authority.is_empty() {
        return here(exchange, headers::BAD_REQUEST);
    }
    let Some(table) = connection.http.routes.table.load_full() else { return here(exchange, headers::NO_ROUTE) };
    let Some((host, route)) = table.find(asked) else { return here(exchange, headers::NO_ROUTE) };
    exchange.route = Some(Arc::clone(if route.name.is_empty() { &host.name } else { &route.name }));
    let changes = [&route.changes, &host.headers, &table.headers];
    let forward = match &route.action {
        route::Action::Respond { status, body } => {
            let local = Local { status: *status, flags: "", details: "direct_response", body: "" };
            return respond(exchange, local, body.clone());
        }
        route::Action::Redirect(redirect) => return redirected(exchange, redirect, route, &parts),
        route::Action::Forward(forward) => forward,
    };

    let allowed = |list: &[String]| upgrade.as_ref().is_some_and(|to| list.contains(to));
    let upgrade = upgrade.clone().filter(|_| allowed(&forward.upgrades) || allowed(&connection.http.upgrades));
    if extended && upgrade.is_none() {
        return here(exchange, headers::NO_UPGRADE);
    }
    headers::remove_hop_by_hop(&mut parts.headers);
    parts.headers.remove(header::EXPECT);
    for change in changes {
        change.request(&mut parts.headers);
    }
    if let Some(to) = &upgrade {
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Ok(to) = HeaderValue::from_str(to) {
            parts.headers.insert(header::UPGRADE, to);
        }
    }
    rewrite(&mut parts, forward, route);
    if !body.is_end_stream() {
        exchange.tee = Some(Tee::new(body, forward.retry.most > 0));
    }
    // A connection between two requests should not keep room for this.
    let mut response = match Box::pin(upstream::send(&mut exchange, forward, host, &parts)).await {
        Ok(response) => response,
        Err(local) => return here(exchange, local),
    };

    exchange.first_byte(&mut response);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return tunnel::switched(exchange, response, client_upgrade.filter(|_| upgrade.is_some()), extended);
    }
    if extended && response.status().is_success() {
        // The client would take it for a tunnel.
        return here(exchange, headers::RESET);
    }
    headers::remove_hop_by_hop(response.headers_mut());
    introduce_server(&mut exchange, response.headers_mut(), introduced);
    for change in changes {
        change.response(response.headers_mut());
    }
    let (mut parts, body) = response.into_parts();
    parts.version = Version::HTTP_11;
    parts.extensions = http::Extensions::new();
    Response::from_parts(parts, ResponseBody::host(body, exchange))
}
