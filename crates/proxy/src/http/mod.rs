//! Requests, one by one: find the route, choose a host, send, and once more where that does no harm.

pub(crate) mod body;
pub(crate) mod exchange;
pub(crate) mod headers;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::config::{Cluster, Host, Http, Protocol, Side};
use crate::copy::{self, Traffic};
use crate::http::body::{RequestBody, ResponseBody, Tee};
use crate::http::exchange::Exchange;
use crate::http::headers::Local;
use crate::listener::{Arrived, Client};
use crate::outlier::Outcome;
use crate::pool::{self, Busy, Leased, Sender};
use crate::route::{self, Asked, Failure, Forward, Route};
use crate::state::Shared;
use crate::tls::Use;
use crate::{balance, metrics};

/// How long a client may think about its next request.
const QUIET: Duration = Duration::from_secs(300);

/// A client's connection, as its requests see it.
pub(crate) struct Connection {
    pub(crate) shared: Arc<Shared>,
    pub(crate) http: Arc<Http>,
    pub(crate) arrived: Arrived,
    pub(crate) series: metrics::Cache,
    /// Workloads that have spoken over it.
    peers: metrics::Peers,
    client_cert: Option<HeaderValue>,
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
    let service = service_fn(move |request| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(answer(connection, request).await) }
    });
    let io = TokioIo::new(io);
    // The three differ in type only: serve, until the proxy drains, then politely, until it is cut.
    macro_rules! serve {
        ($connection:expr) => {{
            let mut serving = Box::pin($connection);
            let result = tokio::select! {
                result = serving.as_mut() => result.map_err(|e| e.to_string()),
                () = shared.draining.asked() => {
                    serving.as_mut().graceful_shutdown();
                    tokio::select! {
                        result = serving.as_mut() => result.map_err(|e| e.to_string()),
                        () = shared.cut.asked() => Err("drained".to_owned()),
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
            builder.timer(TokioTimer::new()).adaptive_window(true).max_concurrent_streams(1024);
            serve!(builder.serve_connection(io, service));
        }
        Some(_) => {
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(QUIET).max_buf_size(64 * 1024);
            serve!(builder.serve_connection(io, service).with_upgrades());
        }
        None => {
            let mut builder = auto::Builder::new(TokioExecutor::new());
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(QUIET)
                .max_buf_size(64 * 1024)
                .half_close(true);
            builder.http2().timer(TokioTimer::new()).adaptive_window(true).max_concurrent_streams(1024);
            serve!(builder.serve_connection_with_upgrades(io, service));
        }
    }
}

/// Answers one request.
async fn answer(connection: Arc<Connection>, mut request: Request<Incoming>) -> Response<ResponseBody> {
    let upgrade = headers::upgrade(request.method(), request.headers());
    let client_upgrade = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
    let (mut parts, body) = request.into_parts();
    let authority = authority(&parts);
    let mut exchange = Exchange::begin(&connection, &parts, authority);
    prepare(&connection, &mut parts);
    let introduced = introduce_client(&mut exchange, &mut parts);
    exchange.keep_request(&parts.headers);

    if connection.http.denied {
        return here(exchange, headers::DENIED);
    }
    if parts.method == Method::CONNECT || exchange.authority.is_empty() {
        return here(exchange, headers::BAD_REQUEST);
    }
    let Some(table) = connection.http.routes.table.load_full() else { return here(exchange, headers::NO_ROUTE) };
    let asked = Asked {
        method: &parts.method,
        authority: &exchange.authority,
        path: parts.uri.path(),
        query: parts.uri.query(),
        scheme: scheme(&connection),
        headers: &parts.headers,
    };
    let Some((host, route)) = table.find(asked) else { return here(exchange, headers::NO_ROUTE) };
    exchange.route = if route.name.is_empty() { host.name.clone() } else { route.name.clone() };
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
    let mut response = match Box::pin(send(&mut exchange, forward, host, &parts)).await {
        Ok(response) => response,
        Err(local) => return here(exchange, local),
    };

    exchange.first_byte(&mut response);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switched(exchange, response, client_upgrade.filter(|_| upgrade.is_some()));
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

/// Sends the request to a host of the route's cluster, and to another while the policy allows it.
async fn send(
    exchange: &mut Box<Exchange>,
    forward: &Forward,
    host: &route::Host,
    parts: &Parts,
) -> Result<Response<Incoming>, Local> {
    let connection = Arc::clone(&exchange.connection);
    let shared = &connection.shared;
    let name = match forward.clusters.as_slice() {
        [(only, _)] => only,
        several => match balance::weighted(several.iter().map(|(_, weight)| *weight), rand::random()) {
            Some(at) => &several[at].0,
            None => return Err(Local { status: forward.no_cluster, ..headers::NO_CLUSTER }),
        },
    };
    exchange.cluster_name.clone_from(name);
    let Some(cluster) = shared.cluster(name).await else {
        return Err(Local { status: forward.no_cluster, ..headers::NO_CLUSTER });
    };
    exchange.cluster = Some(Arc::clone(&cluster));
    let usage = match cluster.protocol {
        Protocol::Http1 => Use::Http1,
        Protocol::Http2 => Use::Http2,
        Protocol::Same if parts.version == Version::HTTP_2 => Use::Http2,
        Protocol::Same => Use::Http1,
    };
    let policy = &forward.retry;
    let deadline = forward.timeout.map(|timeout| Instant::from_std(exchange.began) + timeout);
    let mut tried: Vec<Arc<Host>> = Vec::new();
    loop {
        let avoid: &[Arc<Host>] = if policy.other_host { &tried } else { &[] };
        let Some(target) = cluster.pick(Some(connection.arrived.destination), shared.now(), avoid) else {
            return Err(headers::NO_HOST);
        };
        exchange.attempts += 1;
        exchange.host = Some(Arc::clone(&target));
        exchange.about = None;
        exchange.busy = Some(Busy::with(&target));
        let last = exchange.attempts > policy.most;
        let mut limit = policy.per_try.map(|limit| Instant::now() + limit);
        // Where nothing else bounds the wait, a silent host does.
        let silence = if connection.http.idle.is_zero() { Duration::from_secs(3600) } else { connection.http.idle };
        limit = [limit, deadline, Some(Instant::now() + silence)].into_iter().flatten().min();
        let attempt = Attempt { shared, cluster: &cluster, host: &target, usage, attempt_count: host.attempt_count };
        // Where silence may be answered with another host, it is looked into.
        let watch = !last && policy.after_failure(Failure::Reset, &parts.method) && repeatable(exchange);
        let trying = async {
            if !watch {
                return attempt.run(exchange, parts).await;
            }
            let dead = pool::until_dead(shared, &cluster, &target, usage);
            tokio::select! {
                biased;
                result = attempt.run(exchange, parts) => result,
                () = dead => Err(Failed { why: "the host no longer answers".into(), ..Failed::plain(Failure::Reset) }),
            }
        };
        let failed = match limit {
            Some(limit) => tokio::time::timeout_at(limit, trying).await.unwrap_or(Err(Failed::plain(Failure::Timeout))),
            None => trying.await,
        };
        let failed = match failed {
            Ok(response) => {
                target.alive_at.store(shared.now(), std::sync::atomic::Ordering::Relaxed);
                cluster.note(&target, Outcome::of_status(response.status().as_u16()), shared.now());
                let again = !last && policy.after_response(response.status(), response.headers());
                if !again || !repeatable(exchange) {
                    return Ok(response);
                }
                // The connection goes with the response nobody reads.
                exchange.leased = None;
                None
            }
            Err(failed) => {
                exchange.failure.clone_from(&failed.why);
                exchange.leased = None;
                if failed.failure != Failure::NotSent {
                    cluster.note(&target, Outcome::GatewayError, shared.now());
                }
                Some(failed)
            }
        };
        exchange.busy = None;
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if let Some(failed) = &failed
            && (last || late || !policy.after_failure(failed.failure, &parts.method) || !repeatable(exchange))
        {
            return Err(failed.local());
        }
        shared.metrics.retries.inc();
        tried.push(target);
        let (base, most) = policy.back_off;
        let most = base.saturating_mul(1 << exchange.attempts.min(10)).min(most);
        tokio::time::sleep(most.mul_f64(rand::random::<f64>() / 2.0)).await;
    }
}

/// Whether all of the request that was read is still there.
fn repeatable(exchange: &Exchange) -> bool {
    exchange.tee.as_ref().is_none_or(|tee| tee.is_whole())
}

/// An attempt without a response.
struct Failed {
    failure: Failure,
    why: String,
    overflow: bool,
}

impl Failed {
    fn plain(failure: Failure) -> Self {
        Self { failure, why: String::new(), overflow: false }
    }

    fn local(&self) -> Local {
        match self.failure {
            _ if self.overflow => headers::OVERFLOW,
            Failure::Connect => headers::NO_CONNECTION,
            Failure::Timeout => headers::TIMEOUT,
            Failure::NotSent | Failure::Reset | Failure::Refused => headers::RESET,
        }
    }
}

struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    cluster: &'a Arc<Cluster>,
    host: &'a Arc<Host>,
    usage: Use,
    attempt_count: bool,
}

impl Attempt<'_> {
    async fn run(&self, exchange: &mut Exchange, parts: &Parts) -> Result<Response<Incoming>, Failed> {
        // A kept connection may be closing just now. What never left is sent on the next one; each is tried once.
        const STALE: usize = 8;
        let mut failed = Failed::plain(Failure::NotSent);
        for _ in 0..STALE {
            let leased =
                pool::lease(self.shared, self.cluster, self.host, self.usage).await.map_err(|error| Failed {
                    failure: Failure::Connect,
                    overflow: matches!(error, pool::Error::Overflow),
                    why: error.to_string(),
                })?;
            let reused = leased.reused;
            exchange.about = Some(leased.about.clone());
            failed = match self.on(leased, exchange, parts).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            if failed.failure != Failure::NotSent {
                break;
            }
            if !reused {
                // It took the connection and closed it at once.
                self.cluster.note(self.host, Outcome::GatewayError, self.shared.now());
                break;
            }
        }
        Err(failed)
    }

    async fn on(
        &self,
        mut leased: Leased,
        exchange: &mut Exchange,
        parts: &Parts,
    ) -> Result<Response<Incoming>, Failed> {
        let body = match &exchange.tee {
            None => RequestBody::empty(),
            Some(tee) => tee.read().ok_or_else(|| Failed::plain(Failure::Reset))?,
        };
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.headers_mut() = parts.headers.clone();
        let connection = &exchange.connection;
        if let Some(said) =
            connection.shared.said.as_ref().filter(|_| connection.http.side == Side::Outbound && self.host.is_in_mesh())
        {
            request.headers_mut().insert(&headers::PEER, said.clone());
        }
        if self.attempt_count {
            request.headers_mut().insert(&headers::ATTEMPT_COUNT, HeaderValue::from(exchange.attempts));
        }
        let result = match &mut leased.sender {
            Sender::Http1(sender) => {
                *request.uri_mut() = parts.uri.clone();
                sender.try_send_request(request).await.map_err(|mut e| (e.take_message().is_some(), e.into_error()))
            }
            Sender::Http2(sender) => {
                let host = request.headers_mut().remove(header::HOST);
                let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(&exchange.authority);
                let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
                let scheme = scheme(&exchange.connection);
                let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
                *request.uri_mut() = uri.map_err(|_| Failed::plain(Failure::Reset))?;
                *request.version_mut() = Version::HTTP_2;
                sender.try_send_request(request).await.map_err(|mut e| (e.take_message().is_some(), e.into_error()))
            }
        };
        match result {
            Ok(response) => {
                exchange.leased = Some(leased);
                Ok(response)
            }
            Err((unsent, error)) => {
                // hyper does not tell why a stream was reset, but in words.
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let failure = match cause.contains("refused stream") {
                    _ if unsent => Failure::NotSent,
                    true => Failure::Refused,
                    false => Failure::Reset,
                };
                Err(Failed { failure, why: format!("{error}: {cause}"), overflow: false })
            }
        }
    }
}

impl Exchange {
    fn first_byte(&mut self, response: &mut Response<Incoming>) {
        let took = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        response.headers_mut().insert(&headers::SERVICE_TIME, HeaderValue::from(took));
        self.details = "via_upstream";
        self.failure.clear();
        let (code, headers) = (response.status().as_u16(), response.headers());
        self.keep_response(code, headers);
    }
}

/// Both ends have left HTTP: bytes from here on.
fn switched(
    exchange: Box<Exchange>,
    mut response: Response<Incoming>,
    client: Option<hyper::upgrade::OnUpgrade>,
) -> Response<ResponseBody> {
    let Some(client) = client else {
        return here(exchange, headers::RESET);
    };
    let host = hyper::upgrade::on(&mut response);
    let shared = Arc::clone(&exchange.connection.shared);
    let tasks = shared.tasks.clone();
    tasks.spawn(async move {
        let traffic = Traffic::default();
        let carrying = async {
            let both = tokio::time::timeout(Duration::from_secs(10), async { tokio::try_join!(client, host) });
            if let Ok(Ok((client, host))) = both.await {
                let idle = Duration::from_secs(3600);
                let _ = copy::any(TokioIo::new(client), TokioIo::new(host), &traffic, idle).await;
            }
        };
        tokio::select! {
            () = carrying => {}
            () = shared.cut.asked() => {}
        }
        let mut exchange = exchange;
        // The connection has been given to the two ends.
        exchange.leased = None;
        exchange.finish(traffic.down.load(std::sync::atomic::Ordering::Relaxed), true);
    });
    let (mut parts, _) = response.into_parts();
    parts.extensions = http::Extensions::new();
    Response::from_parts(parts, ResponseBody::upgraded())
}

/// The authority a request is for: the URI's, else the Host header's.
fn authority(parts: &Parts) -> String {
    let host = || parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    parts.uri.authority().map(|authority| authority.as_str()).or_else(host).unwrap_or_default().to_owned()
}

fn scheme(connection: &Connection) -> &'static str {
    if connection.arrived.tls { "https" } else { "http" }
}

/// Makes the request one of HTTP/1.1 with a Host header, with an id, and with what is known of its client.
fn prepare(connection: &Connection, parts: &mut Parts) {
    if let Some(authority) = parts.uri.authority() {
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            parts.headers.insert(header::HOST, host);
        }
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    let http = &connection.http;
    if http.normalize
        && let Some(path) = headers::normalized(parts.uri.path(), http.merge_slashes)
    {
        set_path(parts, &path);
    }
    if connection.http.request_id && !parts.headers.contains_key(&headers::REQUEST_ID) {
        let id = uuid::Uuid::new_v4().to_string();
        if let Ok(id) = HeaderValue::from_str(&id) {
            parts.headers.insert(&headers::REQUEST_ID, id);
        }
    }
    if !parts.headers.contains_key(&headers::FORWARDED_PROTO) {
        parts.headers.insert(&headers::FORWARDED_PROTO, HeaderValue::from_static(scheme(connection)));
    }
    let current = connection.client_cert.as_ref();
    headers::forward_client_cert(&mut parts.headers, connection.http.forward_cert, current);
    // Several cookies are one header in HTTP/1.1.
    if parts.version == Version::HTTP_2 && parts.headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let all: Vec<&[u8]> = parts.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(one) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
            parts.headers.insert(header::COOKIE, one);
        }
    }
}

/// Takes from a request what the client's proxy says of itself; whether it said anything.
///
/// What comes in over anything but mutual TLS is not believed, and none of it reaches the application.
fn introduce_client(exchange: &mut Exchange, parts: &mut Parts) -> bool {
    let connection = &exchange.connection;
    if connection.http.side == Side::Outbound {
        return false;
    }
    parts.headers.remove(&headers::PEER_ID);
    let Some(said) = parts.headers.remove(&headers::PEER) else { return false };
    if connection.arrived.peer.is_some() {
        exchange.peer = connection.peers.get(&said);
    }
    true
}

/// The same for responses: on the way out the server's is taken, on the way in ours is given to a client that asked.
fn introduce_server(exchange: &mut Exchange, response: &mut HeaderMap, introduced: bool) {
    let shared = &exchange.connection.shared;
    match exchange.connection.http.side {
        Side::Outbound => {
            response.remove(&headers::PEER_ID);
            let said = response.remove(&headers::PEER);
            let host = exchange.host.as_ref().filter(|host| host.is_in_mesh());
            exchange.peer = said.and_then(|said| host?.peers.get(&said));
        }
        Side::Inbound => {
            if let (true, Some(said)) = (introduced, &shared.said) {
                response.insert(&headers::PEER, said.clone());
            }
        }
    }
}

fn rewrite(parts: &mut Parts, forward: &Forward, route: &Route) {
    if let Some(host) = &forward.host_rewrite {
        parts.headers.insert(header::HOST, host.clone());
    }
    let path = match (&forward.prefix_rewrite, &forward.regex_rewrite) {
        (Some(prefix), _) => route.path.rewritten(parts.uri.path(), prefix),
        (None, Some((pattern, replacement))) => {
            pattern.replace_all(parts.uri.path(), replacement.as_str()).into_owned()
        }
        (None, None) => return,
    };
    set_path(parts, &path);
}

fn set_path(parts: &mut Parts, path: &str) {
    let whole = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    if let Ok(uri) = whole.parse() {
        parts.uri = uri;
    }
}

fn redirected(
    exchange: Box<Exchange>,
    redirect: &route::Redirect,
    route: &Route,
    parts: &Parts,
) -> Response<ResponseBody> {
    let scheme = if redirect.https { "https" } else { scheme(&exchange.connection) };
    let host = redirect.host.as_deref().unwrap_or_else(|| route::without_port(&exchange.authority)).to_owned();
    let port = redirect.port.map(|port| format!(":{port}")).unwrap_or_default();
    let path = match (&redirect.path, &redirect.prefix) {
        (Some(path), _) => path.clone(),
        (None, Some(prefix)) => route.path.rewritten(parts.uri.path(), prefix),
        (None, None) => parts.uri.path().to_owned(),
    };
    let query = parts.uri.query().filter(|_| !redirect.strip_query && !path.contains('?'));
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let local = Local { status: redirect.status, flags: "", details: "direct_response", body: "" };
    let mut response = respond(exchange, local, Bytes::new());
    if let Ok(location) = HeaderValue::from_str(&format!("{scheme}://{host}{port}{path}{query}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// An answer of the proxy's own.
fn here(exchange: Box<Exchange>, local: Local) -> Response<ResponseBody> {
    respond(exchange, local, Bytes::from_static(local.body.as_bytes()))
}

fn respond(mut exchange: Box<Exchange>, local: Local, body: Bytes) -> Response<ResponseBody> {
    exchange.flags = local.flags;
    exchange.details = local.details;
    exchange.leased = None;
    exchange.keep_response(local.status.as_u16(), &HeaderMap::new());
    let text = !body.is_empty();
    let mut response = Response::new(ResponseBody::here(body, exchange));
    *response.status_mut() = local.status;
    if text {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}
