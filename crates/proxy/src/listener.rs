//! Sockets that accept, and the story of a connection up to the chain that serves it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::BytesMut;
use rustix::net::RecvFlags;
use stolos_serve::{Listener as Socket, Stop, Stream};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use crate::config::{Action, Chain, Http, Listener, Origin};
use crate::copy::{self, Rewound};
use crate::inspect::{self, Hello, Look};
use crate::matching::Facts;
use crate::rbac;
use crate::route::Asked;
use crate::state::Shared;
use crate::tls::Peer;
use crate::{http, log, metrics, tcp};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long until a port that could not be bound is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Keeps one socket per listener that has one, until `stop`.
///
/// A changed listener keeps its socket and serves new connections; those that exist keep the chain they came by.
pub(crate) async fn run(shared: Arc<Shared>, stop: Stop) {
    let mut changed = shared.changed.subscribe();
    let mut bound: HashMap<u16, Bound> = HashMap::new();
    loop {
        changed.mark_unchanged();
        let all = reconcile(&shared, &mut bound).await;
        shared.listening.store(all, Ordering::Release);
        tokio::select! {
            _ = changed.changed() => {}
            () = tokio::time::sleep(RETRY), if !all => {}
            () = stop.asked() => break,
        }
    }
    for (_, bound) in bound {
        bound.stop.ask();
    }
}

struct Bound {
    current: Arc<ArcSwap<Listener>>,
    address: SocketAddr,
    stop: Stop,
}

/// Brings sockets in line with the configuration; false when one could not be bound.
async fn reconcile(shared: &Arc<Shared>, bound: &mut HashMap<u16, Bound>) -> bool {
    let config = shared.config.load_full();
    let wanted: HashMap<u16, &Arc<Listener>> =
        config.listeners.values().filter(|l| l.bind).map(|listener| (listener.port, listener)).collect();
    bound.retain(|port, bound| {
        let keep = wanted.contains_key(port);
        if !keep {
            bound.stop.ask();
        }
        keep
    });
    let mut all = true;
    for (port, listener) in wanted {
        if let Some(bound) = bound.get(&port) {
            bound.current.store(Arc::clone(listener));
            continue;
        }
        match shared.net.bind(port).await.and_then(|socket| Ok((socket.local_addr()?, socket))) {
            Ok((address, socket)) => {
                let current = Arc::new(ArcSwap::from(Arc::clone(listener)));
                let stop = shared.draining.child();
                let accepting = accept(Arc::clone(shared), socket, address, Arc::clone(&current), stop.clone());
                shared.tasks.spawn(accepting);
                tracing::info!(listener = listener.name, %address, "listening");
                bound.insert(port, Bound { current, address, stop });
            }
            Err(error) => {
                tracing::warn!(listener = listener.name, port, %error, "cannot listen, trying again");
                all = false;
            }
        }
    }
    let own = bound.values().flat_map(|bound| {
        let named = SocketAddr::new(shared.net.address(), bound.address.port());
        [bound.address, named]
    });
    shared.set_own(own.collect::<HashSet<_>>());
    all
}

async fn accept(shared: Arc<Shared>, socket: Socket, address: SocketAddr, current: Arc<ArcSwap<Listener>>, stop: Stop) {
    let stopped = stop.asked();
    tokio::pin!(stopped);
    loop {
        let (stream, peer) = tokio::select! {
            accepted = socket.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => return tracing::error!(%error, "cannot accept any more"),
            },
            () = &mut stopped => return,
        };
        let (shared, current) = (Arc::clone(&shared), Arc::clone(&current));
        let tasks = shared.tasks.clone();
        tasks.spawn(async move {
            shared.metrics.connections.inc();
            serve(&shared, current, stream, peer, address).await;
            shared.metrics.connections.dec();
        });
    }
}

/// A connection whose bytes go to an action.
pub(crate) enum Client {
    Plain(Rewound),
    Tls(Box<TlsStream<Rewound>>),
}

/// What is known of a connection.
pub(crate) struct Arrived {
    pub(crate) remote: SocketAddr,
    /// Where the client meant to go.
    pub(crate) destination: SocketAddr,
    pub(crate) hello: Hello,
    /// What its plain bytes speak, if that was looked at.
    pub(crate) http: Option<&'static str>,
    pub(crate) peer: Option<Peer>,
    pub(crate) tls: bool,
    /// The application protocol TLS settled on.
    pub(crate) settled: Option<Vec<u8>>,
    pub(crate) chain: Arc<Chain>,
    /// The listener it came by, and what that is now; none where it was handed on to another listener.
    origin: Option<(Arc<Listener>, Arc<ArcSwap<Listener>>)>,
}

/// What a listener that has changed since says of a connection.
enum Now {
    /// The same as before.
    Same,
    /// Another chain takes it.
    Chain(Arc<Chain>),
    /// Nothing that takes requests.
    Nothing,
}

impl Arrived {
    /// What policy looks at.
    pub(crate) fn subject<'a>(&'a self, asked: Option<Asked<'a>>) -> rbac::Subject<'a> {
        rbac::Subject {
            peer: self.peer.as_ref().map(|peer| &*peer.uri),
            source: self.remote.ip(),
            destination: self.destination,
            server_name: self.hello.server_name.as_deref().unwrap_or_default(),
            asked,
        }
    }

    /// Whether a request may pass. By the listener as it is now: policy that has changed holds for connections that exist.
    pub(crate) fn judge(&self, http: &Http, asked: Asked<'_>) -> Result<(), rbac::Refusal> {
        let chain;
        let access = match self.now() {
            Now::Same => &http.access,
            Now::Nothing => return Err(rbac::Refusal::Closed),
            Now::Chain(found) => {
                chain = found;
                let Action::Http(http) = &chain.action else { return Err(rbac::Refusal::Closed) };
                rbac::judge(&chain.access, &self.subject(None))?;
                &http.access
            }
        };
        if access.is_empty() { Ok(()) } else { rbac::judge(access, &self.subject(Some(asked))) }
    }

    fn now(&self) -> Now {
        let Some((listener, current)) = &self.origin else { return Now::Same };
        let current = current.load();
        if Arc::ptr_eq(listener, &current) {
            return Now::Same;
        }
        let plain = self.http.map(ToOwned::to_owned);
        let facts = Facts {
            destination: self.destination,
            server_name: self.hello.server_name.as_deref(),
            transport: if self.tls { "tls" } else { "raw_buffer" },
            protocols: if plain.is_some() { plain.as_slice() } else { &self.hello.protocols },
        };
        current.chains.find(facts).cloned().map_or(Now::Nothing, Now::Chain)
    }

    /// What a log line says of the connection itself.
    pub(crate) fn entry(&self) -> log::Entry<'_> {
        log::Entry {
            downstream_uri: self.peer.as_ref().map(|peer| &*peer.uri).unwrap_or_default(),
            downstream_local: Some(self.destination),
            downstream_remote: Some(self.remote),
            server_name: self.hello.server_name.as_deref().unwrap_or_default(),
            chain: &self.chain.name,
            ..log::Entry::default()
        }
    }
}

/// Serves a connection that arrived at the socket bound to `bound`: where did it mean to go, what does it speak, which
/// chain takes it, who is it.
async fn serve(
    shared: &Arc<Shared>,
    current: Arc<ArcSwap<Listener>>,
    stream: Stream,
    peer: SocketAddr,
    bound: SocketAddr,
) {
    let mut listener = current.load_full();
    // A socket bound to one address takes nothing for another.
    let known = !bound.ip().is_unspecified() && listener.origin != Origin::Kernel;
    let Ok(local) = (if known { Ok(bound) } else { stream.local_addr() }) else { return };
    let mut opening = Opening { stream, buffer: BytesMut::new(), remote: peer, destination: local, restored: false };
    let mut origin = Some((Arc::clone(&listener), current));
    if let Err(error) = opening.restore(&listener).await {
        return tracing::debug!(%peer, listener = listener.name, %error, "no original destination");
    }
    if listener.use_original_dst
        && opening.restored
        && let Some(other) = shared.config.load().redirected(opening.destination)
    {
        listener = Arc::clone(other);
        origin = None;
    }
    let found = match opening.look(&listener).await {
        Ok(found) => found,
        Err(error) => return tracing::debug!(%peer, listener = listener.name, %error, "connection given up"),
    };
    let (transport, hello, http) = match found {
        Found::Tls(hello) => ("tls", hello, None),
        Found::Http(version) => ("raw_buffer", Hello::default(), Some(version)),
        Found::Raw => ("raw_buffer", Hello::default(), None),
    };
    let plain = http.map(ToOwned::to_owned);
    let facts = Facts {
        destination: opening.destination,
        server_name: hello.server_name.as_deref(),
        transport,
        protocols: if plain.is_some() { plain.as_slice() } else { &hello.protocols },
    };
    let Some(chain) = listener.chains.find(facts).cloned() else {
        return no_chain(shared, &listener, &opening, &hello);
    };
    let Opening { stream, buffer, remote, destination, .. } = opening;
    let client = Rewound::new(buffer.freeze(), stream);
    let mut arrived = Arrived {
        remote,
        destination,
        hello,
        http,
        peer: None,
        tls: false,
        settled: None,
        chain: Arc::clone(&chain),
        origin,
    };
    let client = match &chain.tls {
        None => Client::Plain(client),
        Some(tls) => {
            let identity = shared.identity.load_full();
            let shaking = Box::pin(tls.accept(client, &arrived.hello.protocols, identity.as_deref()));
            let stream = match tokio::time::timeout(HANDSHAKE, shaking).await {
                Ok(Ok(stream)) => stream,
                failed => {
                    shared.metrics.handshake_failures.inc();
                    let why = failed.map_or_else(
                        |_| "took too long".to_owned(),
                        |f| f.err().map_or_else(String::new, |e| e.to_string()),
                    );
                    return refused(shared, &arrived, &why);
                }
            };
            let (_, session) = stream.get_ref();
            arrived.peer = Peer::of(session.peer_certificates());
            arrived.settled = session.alpn_protocol().map(<[u8]>::to_vec);
            arrived.tls = true;
            Client::Tls(Box::new(stream))
        }
    };
    if let Err(refusal) = rbac::judge(&chain.access, &arrived.subject(None)) {
        return refused(shared, &arrived, &format!("rbac_access_denied_matched_policy[{}]", refusal.policy()));
    }
    // Each on the heap, so that a connection costs what it does and not what the other kind would.
    match &chain.action {
        Action::Tcp(tcp) => Box::pin(tcp::serve(shared, tcp, arrived, client)).await,
        Action::Http(http) => Box::pin(http::serve(shared, http, arrived, client)).await,
        Action::Close(why) => refused(shared, &arrived, why),
    }
}

fn no_chain(shared: &Shared, listener: &Listener, opening: &Opening, hello: &Hello) {
    shared.metrics.no_chain.inc();
    let entry = log::Entry {
        start: metrics::Timestamp::now(),
        flags: "NR",
        details: "filter_chain_not_found",
        downstream_local: Some(opening.destination),
        downstream_remote: Some(opening.remote),
        server_name: hello.server_name.as_deref().unwrap_or_default(),
        ..log::Entry::default()
    };
    log::write(&listener.log, &shared.output, &entry);
}

/// Tells the chain's log about a connection that got no further than this.
fn refused(shared: &Shared, arrived: &Arrived, why: &str) {
    tracing::debug!(remote = %arrived.remote, chain = arrived.chain.name, why, "connection refused");
    let logs = match &arrived.chain.action {
        Action::Http(http) => &http.log,
        Action::Tcp(tcp) => &tcp.log,
        Action::Close(_) => return,
    };
    let entry = log::Entry { start: metrics::Timestamp::now(), flags: "DPE", failure: why, ..arrived.entry() };
    log::write(logs, &shared.output, &entry);
}

/// A connection of which only the first bytes are known.
struct Opening {
    stream: Stream,
    buffer: BytesMut,
    remote: SocketAddr,
    destination: SocketAddr,
    restored: bool,
}

/// What the first bytes were.
enum Found {
    Tls(Hello),
    Http(&'static str),
    Raw,
}

impl Opening {
    /// Finds out where the client meant to go.
    async fn restore(&mut self, listener: &Listener) -> io::Result<()> {
        match listener.origin {
            Origin::Here => {}
            Origin::Kernel => {
                let socket = socket2::SockRef::from(self.stream.tcp());
                let original = match self.destination {
                    SocketAddr::V4(_) => socket.original_dst_v4(),
                    SocketAddr::V6(_) => socket.original_dst_v6(),
                };
                // Without redirection there is none, and the connection meant to come here.
                if let Some(original) = original.ok().and_then(|original| original.as_socket()) {
                    self.destination = original;
                    self.restored = true;
                }
            }
            Origin::Header { optional } => {
                let deadline = Instant::now() + listener.patience;
                let proxied = self.read(deadline, |bytes| (inspect::proxy_v2(bytes), false)).await?;
                match proxied {
                    Read::Yes(proxied) => {
                        let _ = self.buffer.split_to(proxied.length);
                        if let Some((source, destination)) = proxied.addresses {
                            (self.remote, self.destination, self.restored) = (source, destination, true);
                        }
                    }
                    _ if optional => {}
                    _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no PROXY header")),
                }
            }
        }
        Ok(())
    }

    /// Looks at the first bytes as far as the listener asks for it.
    async fn look(&mut self, listener: &Listener) -> io::Result<Found> {
        let port = self.destination.port();
        let (tls, http) = (listener.inspect_tls.wants(port), listener.inspect_http.wants(port));
        if !tls && !http {
            return Ok(Found::Raw);
        }
        let deadline = Instant::now() + listener.patience;
        let examine = |bytes: &[u8]| {
            let hello = if tls { inspect::client_hello(bytes) } else { Look::No };
            match hello {
                Look::Yes(hello) => (Look::Yes(Found::Tls(hello)), false),
                Look::More => (Look::More, !bytes.is_empty()),
                Look::No if !http => (Look::No, false),
                Look::No => match inspect::http(bytes) {
                    Look::Yes(version) => (Look::Yes(Found::Http(version)), false),
                    Look::More => (Look::More, false),
                    Look::No => (Look::No, false),
                },
            }
        };
        match self.read(deadline, examine).await? {
            Read::Yes(found) => Ok(found),
            Read::No => Ok(Found::Raw),
            Read::Ended if self.buffer.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            Read::Ended => Ok(Found::Raw),
            Read::Late if listener.lenient => Ok(Found::Raw),
            Read::Late => Err(io::Error::new(io::ErrorKind::TimedOut, "the client said too little")),
        }
    }

    /// Takes what has arrived already, into memory that is no larger than that. Says whether there was something.
    fn at_once(&mut self) -> io::Result<bool> {
        const MOST: usize = 8 * 1024;
        if self.stream.link().is_some() {
            // Only the stream itself knows whether it has arrived.
            return Ok(false);
        }
        copy::with_scratch(|scratch| {
            let socket = self.stream.tcp();
            match rustix::net::recv(socket, &mut scratch[..MOST], RecvFlags::DONTWAIT) {
                // The end is left for the reader proper.
                Ok((count, _)) => {
                    self.buffer.extend_from_slice(&scratch[..count]);
                    Ok(count > 0)
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Reads until `parse` can say what it is. `parse` also says whether half of it is nothing to go on with.
    async fn read<T>(&mut self, deadline: Instant, parse: impl Fn(&[u8]) -> (Look<T>, bool)) -> io::Result<Read<T>> {
        loop {
            let half = match parse(&self.buffer) {
                (Look::Yes(found), _) => return Ok(Read::Yes(found)),
                (Look::No, _) => return Ok(Read::No),
                (Look::More, half) => half,
            };
            if self.buffer.len() >= inspect::MOST {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
            }
            // A client that has something to say has usually said it when it is accepted.
            if self.buffer.is_empty() && self.at_once()? {
                continue;
            }
            self.buffer.reserve(2048);
            let ended = match tokio::time::timeout_at(deadline, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => Read::Ended,
                Ok(Ok(_)) => continue,
                Ok(Err(error)) => return Err(error),
                Err(_) => Read::Late,
            };
            return match half {
                true => Err(io::Error::new(io::ErrorKind::TimedOut, "half a ClientHello")),
                false => Ok(ended),
            };
        }
    }
}

enum Read<T> {
    Yes(T),
    No,
    /// The client said no more.
    Ended,
    /// The time was up.
    Late,
}
