//! Connections to hosts: made within a time limit, kept while they are of use, never more than the cluster allows.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use stolos_serve::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::client::TlsStream;

use crate::config::{Cluster, Host, Transport};
use crate::http::body::RequestBody;
use crate::inspect;
use crate::state::Shared;
use crate::tls::{Peer, Use};

/// The most idle connections kept to one host.
const MOST_IDLE: usize = 256;
/// How long a connection is kept without use.
pub(crate) const IDLE: Duration = Duration::from_secs(60);
/// The most that the headers of one response may take, as in Envoy.
const LARGEST_HEAD: u32 = 60 * 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("connection failure: {0}")]
    Dial(#[source] io::Error),
    #[error("connection timeout")]
    Timeout,
    #[error("TLS error: {0}")]
    Tls(#[from] crate::tls::Error),
    #[error("overflow")]
    Overflow,
    #[error("the proxy would dial itself")]
    Loop,
    #[error("HTTP handshake failed: {0}")]
    Http(#[source] hyper::Error),
}

/// A connection to a host.
pub(crate) enum Wire {
    Plain(Stream),
    Tls(Box<TlsStream<Stream>>),
}

impl Wire {
    /// Its end here.
    pub(crate) fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.local_addr().ok(),
            Self::Tls(stream) => stream.get_ref().0.local_addr().ok(),
        }
    }
}

/// A connection to a host, and who is at its other end.
pub(crate) struct Connected {
    pub(crate) wire: Wire,
    pub(crate) peer: Option<Arc<str>>,
    pub(crate) permit: Permit,
}

/// One of the connections a cluster may have.
pub(crate) struct Permit(Arc<Cluster>);

impl Permit {
    fn take(cluster: &Arc<Cluster>) -> Option<Self> {
        if cluster.connections.fetch_add(1, Ordering::Relaxed) >= cluster.max_connections {
            cluster.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Self(Arc::clone(cluster)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One of the requests or connections a host has open.
pub(crate) struct Busy(Arc<Host>);

impl Busy {
    pub(crate) fn with(host: &Arc<Host>) -> Self {
        host.active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(host))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connects to `host` within the cluster's connect timeout, handshake included.
pub(crate) async fn connect(
    shared: &Shared,
    cluster: &Arc<Cluster>,
    host: &Host,
    usage: Use,
) -> Result<Connected, Error> {
    if shared.is_own(host.address) {
        return Err(Error::Loop);
    }
    let permit = Permit::take(cluster).ok_or(Error::Overflow)?;
    let connecting = async {
        let stream = dial(shared, host).await.map_err(Error::Dial)?;
        let Transport::Tls(tls) = &host.transport else {
            return Ok(Connected { wire: Wire::Plain(stream), peer: None, permit });
        };
        let identity = shared.identity.load_full();
        let tls = tls.connect(stream, usage, identity.as_deref()).await?;
        let peer = Peer::of(tls.get_ref().1.peer_certificates()).map(|peer| peer.uri);
        Ok(Connected { wire: Wire::Tls(Box::new(tls)), peer, permit })
    };
    tokio::time::timeout(cluster.connect_timeout, connecting).await.unwrap_or(Err(Error::Timeout))
}

/// A connection to `host`; mutual TLS with the workload itself comes in as anybody's does.
///
/// Where packets are redirected the kernel sees to that. Where headers tell of redirection, what the proxy dials at
/// its own workload is past the redirection, so it has to knock at the right door itself.
async fn dial(shared: &Shared, host: &Host) -> io::Result<Stream> {
    const INBOUND: u16 = 15006;
    let itself = host.address.ip() == shared.net.address();
    if !(shared.by_header && itself && matches!(host.transport, Transport::Tls(_))) {
        return shared.net.dial(host.address).await;
    }
    let mut stream = shared.net.dial(SocketAddr::new(host.address.ip(), INBOUND)).await?;
    let header = inspect::proxy_v2_header(stream.local_addr()?, host.address);
    stream.write_all(&header).await?;
    Ok(stream)
}

/// Why a host is waited for no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// The time was up.
    Late,
    /// It is not there any more.
    Dead,
}

/// Returns when `limit` has come, or, where the host is watched, when it has shown that it is not there any more. A
/// host that answers never lets it return before. One timer for both: most requests are answered before either.
///
/// On a network that is cut nothing fails: what was sent is simply never answered. So a host that is silent for a
/// while is asked for a new connection; one that does not get through in time means that the old ones are dead too.
/// However many requests wait for a host, one of them asks.
pub(crate) async fn given_up(
    shared: &Shared,
    cluster: &Arc<Cluster>,
    host: &Host,
    usage: Use,
    limit: tokio::time::Instant,
    watch: bool,
) -> GivenUp {
    const LONGEST: Duration = Duration::from_secs(10);
    let mut wait = cluster.connect_timeout / 2;
    loop {
        let next = tokio::time::Instant::now() + wait;
        if !watch || limit <= next {
            tokio::time::sleep_until(limit).await;
            return GivenUp::Late;
        }
        tokio::time::sleep_until(next).await;
        match tokio::time::timeout_at(limit, answers(shared, cluster, host, usage, wait)).await {
            Ok(true) => {}
            Ok(false) => return GivenUp::Dead,
            Err(_) => return GivenUp::Late,
        }
        wait = (wait * 2).min(LONGEST);
    }
}

async fn answers(shared: &Shared, cluster: &Arc<Cluster>, host: &Host, usage: Use, recent: Duration) -> bool {
    const LOOK: Duration = Duration::from_millis(10);
    let asked = shared.now();
    let recent = u64::try_from(recent.as_millis()).unwrap_or(u64::MAX);
    loop {
        if host.alive_at.load(Ordering::Relaxed) > asked.saturating_sub(recent) {
            return true;
        }
        if host.dead_at.load(Ordering::Relaxed) > asked {
            return false;
        }
        if !host.probing.swap(true, Ordering::AcqRel) {
            // Also when the one that asks gives up.
            let _probing = Probing(host);
            let alive = connect(shared, cluster, host, usage).await.is_ok();
            let noted = if alive { &host.alive_at } else { &host.dead_at };
            noted.store(shared.now().max(asked + 1), Ordering::Relaxed);
            return alive;
        }
        tokio::time::sleep(LOOK).await;
    }
}

struct Probing<'a>(&'a Host);

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        self.0.probing.store(false, Ordering::Release);
    }
}

/// The sending half of an HTTP connection.
pub(crate) enum Sender {
    Http1(http1::SendRequest<RequestBody>),
    Http2(http2::SendRequest<RequestBody>),
}

impl Sender {
    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    fn speaks(&self, usage: Use) -> bool {
        matches!((self, usage), (Self::Http1(_), Use::Http1) | (Self::Http2(_), Use::Http2))
    }
}

/// What is known of an HTTP connection while it lives.
#[derive(Clone)]
pub(crate) struct About {
    pub(crate) local: Option<SocketAddr>,
    pub(crate) peer: Option<Arc<str>>,
    /// How many more requests it may serve after this one; none said is no limit.
    left: Option<u32>,
    streams: Arc<Streams>,
}

/// The requests an HTTP/2 connection carries at once.
#[derive(Default)]
struct Streams {
    open: AtomicU32,
    /// How many the host takes; 0 before it has said so.
    most: AtomicU32,
}

impl Streams {
    /// What RFC 9113 (section 6.5.2) recommends as the least a host should take, until it says what it takes.
    const UNSAID: u32 = 100;
    /// More would make one lost packet everybody's; the next connection is opened instead.
    const MOST: u32 = 1024;

    /// A place for one more, if there is one. Without, a stream that never ends could keep others waiting for ever.
    fn enter(self: &Arc<Self>) -> Option<Place> {
        let most = match self.most.load(Ordering::Relaxed) {
            0 => Self::UNSAID,
            said => said.min(Self::MOST),
        };
        if self.open.fetch_add(1, Ordering::Relaxed) >= most {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place(Arc::clone(self)))
    }
}

/// One of the requests a connection carries.
pub(crate) struct Place(Arc<Streams>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An HTTP connection nobody uses.
pub(crate) struct Idle {
    sender: Sender,
    about: About,
    since: Instant,
}

/// An HTTP connection in use.
pub(crate) struct Leased {
    pub(crate) sender: Sender,
    pub(crate) about: About,
    /// Whether it has served before, and so may just be closing.
    pub(crate) reused: bool,
    /// Of an HTTP/2 connection.
    _place: Option<Place>,
}

/// An HTTP connection to `host`: a kept one, or a new one.
pub(crate) async fn lease(
    shared: &Arc<Shared>,
    cluster: &Arc<Cluster>,
    host: &Arc<Host>,
    usage: Use,
) -> Result<Leased, Error> {
    while let Some((mut idle, place)) = take(host, usage) {
        let ready = match &mut idle.sender {
            Sender::Http1(sender) if sender.is_ready() => true,
            // Its last response has just ended, and the connection is about to notice.
            Sender::Http1(sender) => {
                matches!(tokio::time::timeout(Duration::from_millis(5), sender.ready()).await, Ok(Ok(())))
            }
            Sender::Http2(sender) => sender.is_ready(),
        };
        if ready {
            return Ok(Leased { sender: idle.sender, about: idle.about, reused: true, _place: place });
        }
    }
    let connected = connect(shared, cluster, host, usage).await?;
    let left = cluster.requests_per_connection.map(|most| most.saturating_sub(1));
    let about = About { local: connected.wire.local(), peer: connected.peer, left, streams: Arc::default() };
    let sender = start(shared, connected.wire, connected.permit, usage, &about.streams).await?;
    let place = if usage == Use::Http2 { about.streams.enter() } else { None };
    if let Sender::Http2(sender) = &sender
        && about.left != Some(0)
    {
        // Shared at once: streams are many, the connection is one.
        let kept = Idle { sender: Sender::Http2(sender.clone()), about: about.clone(), since: Instant::now() };
        host.idle().push_back(kept);
    }
    Ok(Leased { sender, about, reused: false, _place: place })
}

/// Keeps a connection for the next request.
pub(crate) fn give_back(host: &Host, leased: Leased) {
    let Leased { sender, about, .. } = leased;
    // An HTTP/2 connection has been kept since it was made.
    let kept = matches!(sender, Sender::Http2(_));
    if kept || about.left == Some(0) || sender.is_closed() || host.retired.load(Ordering::Acquire) {
        return;
    }
    let mut idle = host.idle();
    if idle.len() >= MOST_IDLE {
        idle.retain(|kept| !kept.sender.is_closed());
    }
    if idle.len() < MOST_IDLE {
        idle.push_back(Idle { sender, about, since: Instant::now() });
    }
}

/// The most recently used connection, so that the others can grow old; one of HTTP/2 that has a place left.
///
/// Looks at no more than it must: of a hundred idle connections the others' memory is cold, and touching it would cost
/// more than all of the choice. Those that have closed meanwhile go when they are met, or with [`close_old`].
fn take(host: &Host, usage: Use) -> Option<(Idle, Option<Place>)> {
    let mut idle = host.idle();
    let mut next = idle.len();
    while next > 0 {
        next -= 1;
        if !idle[next].sender.speaks(usage) {
            continue;
        }
        if idle[next].sender.is_closed() {
            idle.remove(next);
            continue;
        }
        let place = match idle[next].sender {
            Sender::Http1(_) => None,
            Sender::Http2(_) => match idle[next].about.streams.enter() {
                None => continue,
                entered => entered,
            },
        };
        let left = idle[next].about.left.map(|left| left.saturating_sub(1));
        idle[next].about.left = left;
        if let Sender::Http2(sender) = &idle[next].sender
            && left != Some(0)
        {
            let (sender, about) = (Sender::Http2(sender.clone()), idle[next].about.clone());
            idle[next].since = Instant::now();
            return Some((Idle { sender, about, since: Instant::now() }, place));
        }
        return Some((idle.remove(next)?, place));
    }
    None
}

/// Closes what has not been used for [`IDLE`].
pub(crate) fn close_old(host: &Host, now: Instant) {
    let busy = host.active.load(Ordering::Relaxed) > 0;
    host.idle().retain(|kept| {
        let young = now.duration_since(kept.since) < IDLE;
        !kept.sender.is_closed() && (young || (busy && matches!(kept.sender, Sender::Http2(_))))
    });
}

async fn start(
    shared: &Arc<Shared>,
    wire: Wire,
    permit: Permit,
    usage: Use,
    streams: &Arc<Streams>,
) -> Result<Sender, Error> {
    let io = TokioIo::new(wire);
    if usage == Use::Http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .adaptive_window(true)
            .max_header_list_size(LARGEST_HEAD)
            .keep_alive_interval(Some(Duration::from_secs(30)));
        let (sender, mut connection) = builder.handshake(io).await.map_err(Error::Http)?;
        let streams = Arc::clone(streams);
        shared.tasks.spawn(async move {
            // Whenever something has come in, the host may have said how many requests it takes.
            let running = std::future::poll_fn(|cx| {
                let polled = Pin::new(&mut connection).poll(cx);
                let most = u32::try_from(connection.current_max_send_streams()).unwrap_or(u32::MAX);
                streams.most.store(most.max(1), Ordering::Relaxed);
                polled
            });
            if let Err(error) = running.await {
                tracing::debug!(%error, "upstream connection ended");
            }
            drop(permit);
        });
        return Ok(Sender::Http2(sender));
    }
    let mut builder = http1::Builder::new();
    builder.max_buf_size(64 * 1024);
    let (sender, connection) = builder.handshake(io).await.map_err(Error::Http)?;
    shared.tasks.spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "upstream connection ended");
        }
        drop(permit);
    });
    Ok(Sender::Http1(sender))
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
