//! The control plane's side: one stream per proxy, on which it gets what changed.
//!
//! A [`Source`] says what a proxy should have, as a watch of [`Snapshot`]s; [`Server`] sees to it that the proxy gets
//! there. It sends a resource only if the proxy has not got its version, in the order that never leaves a reference
//! dangling, with at most one unanswered response per type. A slow proxy skips the states in between.
//!
//! Start at [`Server`]; what is sent when is decided in `session`, without any I/O.

mod changes;
#[cfg(test)]
mod laws;
mod request;
mod session;
mod status;
mod wire;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use stolos_serve::Stop;
use stolos_serve::listen::Peer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tonic::codec::BufferSettings;
use tonic::metadata::MetadataMap;
use tonic::{Code, Streaming};
use tonic_prost::ProstCodec;

use crate::envoy::config::core::v3::Node;
use crate::envoy::service::discovery::v3 as discovery;
use crate::version::Snapshot;
use changes::Changes;
use session::{Answer, Ask, Heard, Mode, Session};

use status::Register;
pub use status::{Connection, Nack, Totals, TypeStatus};
use wire::Responses;

/// How long a new stream may stay silent.
const FIRST_REQUEST: Duration = Duration::from_secs(15);
/// The largest request taken: 100,000 names fit.
const REQUEST_LIMIT: usize = 32 << 20;
/// A response of more bytes than this is large …
const LARGE: usize = 64 << 10;
/// … and so many proxies may be sent such responses at a time, in the order in which they come to it: a thousand that
/// connect at once would have all of their first responses in memory.
const TURNS: usize = 32;
/// How long one keeps its turn at most: who is slow or gone holds nobody up …
const TURN: Duration = Duration::from_secs(5);
/// … and how long the others wait at most.
const WAIT: Duration = Duration::from_secs(60);
/// Responses written but not yet taken by the connection.
const QUEUE: usize = 1;

/// A proxy that has connected.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// This stream's number, unique within the server.
    pub connection: u64,
    /// What the proxy says of itself. Nothing of it is verified.
    pub node: Node,
    /// The gRPC metadata of its request.
    pub metadata: MetadataMap,
    /// What the layers before this service have attached: the [`Peer`] if [`per_connection`] is used, and whatever an
    /// authenticating layer found out.
    pub extensions: http::Extensions,
}

impl Proxy {
    /// The connection's other end.
    #[must_use]
    pub fn peer(&self) -> Option<&Peer> {
        self.extensions.get()
    }

    /// A text of the node's metadata.
    #[must_use]
    pub fn text(&self, path: &[&str]) -> Option<&str> {
        crate::message::text_at(self.node.metadata.as_ref()?, path)
    }
}

/// Says what proxies should have.
pub trait Source: Send + Sync + 'static {
    /// What `proxy` should have, from now on. The receiver is dropped when the proxy is gone; ending the watch ends
    /// the stream.
    ///
    /// # Errors
    ///
    /// The status that its stream ends with: `Unauthenticated`, `PermissionDenied`, or `Unavailable` if this server
    /// is not ready.
    fn connect<'a>(&'a self, proxy: &'a Proxy) -> BoxFuture<'a, Result<watch::Receiver<Arc<Snapshot>>, tonic::Status>>;

    /// `proxy` has everything of snapshot `version`: nothing is left to send, and all of it is acknowledged (or
    /// refused, see [`refused`](Self::refused)). Must not block.
    fn settled(&self, proxy: &Proxy, version: &Arc<str>) {
        let _ = (proxy, version);
    }

    /// `proxy` has refused a response. Must not block.
    fn refused(&self, proxy: &Proxy, nack: &Nack) {
        let _ = (proxy, nack);
    }
}

/// The aggregated discovery service, both variants.
pub struct Server<S> {
    shared: Arc<Shared<S>>,
}

struct Shared<S> {
    source: Arc<S>,
    register: Register,
    changes: Arc<Changes>,
    connections: AtomicU64,
    turns: Arc<Semaphore>,
    stop: Stop,
    tasks: TaskTracker,
}

impl<S> Clone for Server<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S: Source> Server<S> {
    /// A server of what `source` says. Its streams end at `stop`.
    pub fn new(source: Arc<S>, stop: Stop) -> Self {
        let shared = Shared {
            source,
            register: Register::default(),
            changes: Arc::default(),
            connections: AtomicU64::new(0),
            turns: Arc::new(Semaphore::new(TURNS)),
            stop,
            tasks: TaskTracker::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// As a gRPC service, to add to `tonic::service::Routes`.
    #[must_use]
    pub fn service(&self) -> Discovery<S> {
        Discovery(self.clone())
    }

    /// Every connected proxy, and what it has of what it should have.
    #[must_use]
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.register.connections()
    }

    /// What has happened since the start, by type URL.
    #[must_use]
    pub fn totals(&self) -> std::collections::BTreeMap<Arc<str>, Totals> {
        self.shared.register.totals()
    }

    /// Waits until every stream has ended; ask its `stop` first.
    pub async fn ended(&self) {
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    /// Starts the task of one stream.
    fn serve<P: Protocol>(&self, request: http::Request<tonic::body::Body>) -> http::Response<tonic::body::Body> {
        let (parts, body) = request.into_parts();
        let decoder = ProstCodec::<(), P::Request>::raw_decoder(BufferSettings::default());
        let requests = Streaming::new_request(decoder, body, None, Some(REQUEST_LIMIT));
        let (responses, answers) = mpsc::channel(QUEUE);
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            let metadata = MetadataMap::from_headers(parts.headers);
            if let Err(status) = shared.stream::<P>(metadata, parts.extensions, requests, &responses).await {
                tracing::debug!(code = ?status.code(), message = status.message(), "discovery stream ends");
                // Nobody may be listening any more.
                let _ = tokio::time::timeout(Duration::from_secs(5), responses.send(Err(status))).await;
            }
        });
        let mut response = http::Response::new(tonic::body::Body::new(Responses::new(P::MODE, answers)));
        let grpc = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
        response
    }
}

impl<S: Source> Shared<S> {
    /// One stream, from its first request to its end.
    async fn stream<P: Protocol>(
        &self,
        metadata: MetadataMap,
        extensions: http::Extensions,
        mut requests: Streaming<P::Request>,
        responses: &mpsc::Sender<Result<Answer, tonic::Status>>,
    ) -> Result<(), tonic::Status> {
        let first = match tokio::time::timeout(FIRST_REQUEST, requests.message()).await {
            Ok(first) => first?,
            Err(_) => return Err(tonic::Status::deadline_exceeded("no request within 15 s")),
        };
        let Some(mut first) = first else { return Ok(()) };
        let Some(node) = P::node(&mut first) else {
            return Err(tonic::Status::invalid_argument("the first request must name its node"));
        };
        let connection = self.connections.fetch_add(1, Ordering::Relaxed) + 1;
        let proxy = Proxy { connection, node, metadata, extensions };
        let mut snapshots = tokio::select! {
            connected = self.source.connect(&proxy) => connected?,
            () = self.stop.asked() => return Err(tonic::Status::unavailable("shutting down")),
            () = responses.closed() => return Ok(()),
        };
        let book = self.register.enter(&proxy);
        let mut session = Session::new(P::MODE, connection, Arc::clone(&self.changes));
        session.snapshot(Arc::clone(&snapshots.borrow_and_update()));
        self.hear(&proxy, &book, &mut session, P::ask(first));

        let mut turn: Option<(OwnedSemaphorePermit, Instant)> = None;
        loop {
            let until = turn.as_ref().map_or_else(Instant::now, |(_, until)| *until);
            tokio::select! {
                () = self.stop.asked() => return Err(tonic::Status::unavailable("shutting down")),
                () = responses.closed() => return Ok(()),
                request = requests.message() => match request {
                    Ok(Some(request)) => self.hear(&proxy, &book, &mut session, P::ask(request)),
                    Ok(None) => return Ok(()),
                    // The proxy is gone, or its connection is.
                    Err(status) if matches!(status.code(), Code::Cancelled | Code::Unknown | Code::Unavailable) => {
                        return Ok(());
                    }
                    Err(status) => return Err(status),
                },
                () = tokio::time::sleep_until(until), if turn.is_some() => turn = None,
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return Err(tonic::Status::unavailable("no longer served here"));
                    }
                    session.snapshot(Arc::clone(&snapshots.borrow_and_update()));
                }
                permit = responses.reserve(), if session.is_stirred() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(answer) = session.answer() {
                        if turn.is_none() && answer.bytes() > LARGE {
                            turn = tokio::select! {
                                turn = self.turn() => turn,
                                () = self.stop.asked() => return Err(tonic::Status::unavailable("shutting down")),
                                () = responses.closed() => return Ok(()),
                            };
                        }
                        book.sent(&answer);
                        permit.send(Ok(answer));
                    } else if let Some(version) = session.settled() {
                        turn = None;
                        book.settled(&version);
                        self.source.settled(&proxy, &version);
                    }
                }
            }
        }
    }

    /// Waits until large responses may be sent to another proxy.
    async fn turn(&self) -> Option<(OwnedSemaphorePermit, Instant)> {
        let turn = tokio::time::timeout(WAIT, Arc::clone(&self.turns).acquire_owned()).await;
        Some((turn.ok()?.ok()?, Instant::now() + TURN))
    }

    fn hear(&self, proxy: &Proxy, book: &status::Book<'_>, session: &mut Session, ask: Ask) {
        let type_url = ask.type_url.clone();
        let heard = session.request(ask);
        book.subscribed(session, &type_url);
        match heard {
            Heard::Nothing => {}
            Heard::Taken { type_url, version } => book.taken(&type_url, version),
            Heard::Refused { type_url, version, message } => {
                let nack = Nack::new(type_url, version, message);
                tracing::warn!(
                    node = proxy.node.id, type_url = %nack.type_url, message = nack.message, "proxy refuses resources"
                );
                book.refused(&nack);
                self.source.refused(proxy, &nack);
            }
        }
    }
}

/// The service, as gRPC routes requests to it.
pub struct Discovery<S>(Server<S>);

impl<S> Clone for Discovery<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> tonic::server::NamedService for Discovery<S> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<S: Source> tower::Service<http::Request<tonic::body::Body>> for Discovery<S> {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        std::future::ready(Ok(match request.uri().path().rsplit_once('/').map(|(_, method)| method) {
            Some("StreamAggregatedResources") => self.0.serve::<Whole>(request),
            Some("DeltaAggregatedResources") => self.0.serve::<Delta>(request),
            _ => tonic::Status::unimplemented("no such method").into_http(),
        }))
    }
}

/// The service of one connection, for `serve::listen::http`: `service` with the [`Peer`] among the extensions of
/// every request.
///
/// ```ignore
/// let routes = Routes::new(server.service()).add_service(authority).into_axum_router();
/// listen::http(listener, settings, stop, move |peer| per_connection(routes.clone(), peer)).await;
/// ```
pub fn per_connection<T, B>(
    service: T,
    peer: Peer,
) -> impl hyper::service::Service<
    http::Request<hyper::body::Incoming>,
    Response = http::Response<B>,
    Error = Infallible,
    Future: Send + 'static,
> + Send
+ 'static
where
    T: tower::Service<http::Request<tonic::body::Body>, Response = http::Response<B>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    T::Future: Send + 'static,
    B: hyper::body::Body + Send + 'static,
{
    hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (service, peer) = (service.clone(), peer.clone());
        async move {
            let mut request = request.map(tonic::body::Body::new);
            request.extensions_mut().insert(peer);
            tower::ServiceExt::oneshot(service, request).await
        }
    })
}

/// What the two variants of the protocol differ in on the wire.
trait Protocol: Send + Sync + 'static {
    type Request: prost::Message + Default + Send + 'static;
    /// What [`wire`] writes.
    #[cfg(test)]
    type Message: prost::Message + Default;
    const MODE: Mode;

    fn node(request: &mut Self::Request) -> Option<Node>;
    fn ask(request: Self::Request) -> Ask;
    #[cfg(test)]
    fn response(answer: Answer) -> Self::Message;
}

/// Only what changed.
enum Delta {}

impl Protocol for Delta {
    type Request = discovery::DeltaDiscoveryRequest;
    #[cfg(test)]
    type Message = discovery::DeltaDiscoveryResponse;
    const MODE: Mode = Mode::Delta;

    fn node(request: &mut Self::Request) -> Option<Node> {
        request.node.take()
    }

    fn ask(request: Self::Request) -> Ask {
        Ask {
            type_url: request.type_url,
            subscribe: request.resource_names_subscribe.iter().collect(),
            unsubscribe: request.resource_names_unsubscribe,
            initial: request.initial_resource_versions,
            nonce: request.response_nonce,
            refusal: request.error_detail.map(|detail| detail.message),
        }
    }

    #[cfg(test)]
    fn response(answer: Answer) -> Self::Message {
        let resource = |resource: Arc<crate::Resource>| discovery::Resource {
            name: resource.name.to_string(),
            version: resource.version.to_string(),
            resource: Some(resource.body.clone()),
            ..discovery::Resource::default()
        };
        discovery::DeltaDiscoveryResponse {
            system_version_info: answer.version.to_string(),
            resources: answer.resources.into_iter().map(resource).collect(),
            type_url: answer.type_url.to_string(),
            removed_resources: answer.removed.iter().map(ToString::to_string).collect(),
            nonce: answer.nonce,
            ..discovery::DeltaDiscoveryResponse::default()
        }
    }
}

/// The state of the world.
enum Whole {}

impl Protocol for Whole {
    type Request = request::Wanted;
    #[cfg(test)]
    type Message = discovery::DiscoveryResponse;
    const MODE: Mode = Mode::Whole;

    fn node(request: &mut Self::Request) -> Option<Node> {
        request.node.take()
    }

    fn ask(request: Self::Request) -> Ask {
        Ask {
            type_url: request.type_url,
            subscribe: request.names,
            unsubscribe: Vec::new(),
            initial: std::collections::BTreeMap::new(),
            nonce: request.nonce,
            refusal: request.refusal.map(|detail| detail.message),
        }
    }

    #[cfg(test)]
    fn response(answer: Answer) -> Self::Message {
        discovery::DiscoveryResponse {
            version_info: answer.version.to_string(),
            resources: answer.resources.into_iter().map(|resource| resource.body.clone()).collect(),
            type_url: answer.type_url.to_string(),
            nonce: answer.nonce,
            ..discovery::DiscoveryResponse::default()
        }
    }
}
