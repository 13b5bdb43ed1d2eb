//! Sockets as a value: who may dial whom is decided by whoever hands out the [`Net`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

/// A network as one process (a pod, or the host) sees it.
///
/// Every wait is the caller's to bound: a dial across a partition hangs, as it does on a real network.
pub trait Net: Send + Sync + 'static {
    /// The address that others see this process under.
    fn address(&self) -> IpAddr;

    /// Connects to `to`, from this process' own address.
    fn dial(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Stream>>;

    /// Listens on `port` of this process' address; port 0 picks a free one.
    fn bind(&self, port: u16) -> BoxFuture<'_, io::Result<Listener>>;

    /// The addresses of a host name, in the order to try them; an IP literal is its own address.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::NotFound`] when the name does not exist.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// The network of the machine: ordinary sockets and the system's resolver.
#[derive(Clone, Debug)]
pub struct HostNet {
    address: IpAddr,
}

impl HostNet {
    /// Binds on `address`; dials from wherever the system chooses.
    #[must_use]
    pub fn new(address: IpAddr) -> Self {
        Self { address }
    }
}

impl Default for HostNet {
    fn default() -> Self {
        Self::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }
}

impl Net for HostNet {
    fn address(&self) -> IpAddr {
        self.address
    }

    fn dial(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move { Ok(Stream::from(TcpStream::connect(to).await?)) })
    }

    fn bind(&self, port: u16) -> BoxFuture<'_, io::Result<Listener>> {
        Box::pin(async move { Ok(Listener::from(TcpListener::bind((self.address, port)).await?)) })
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            if let Ok(address) = host.parse() {
                return Ok(vec![address]);
            }
            let found: Vec<_> = tokio::net::lookup_host((host, 0)).await?.map(|a| a.ip()).collect();
            if found.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no address for `{host}`")));
            }
            Ok(found)
        })
    }
}

/// Connects to the first address of `host` that answers.
///
/// # Errors
///
/// When there is no address, or why the last of them did not answer.
pub async fn reach(net: &dyn Net, host: &str, port: u16) -> io::Result<Stream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("no address for `{host}`"));
    for address in net.resolve(host).await? {
        match net.dial(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What bytes meet on their way in one direction of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weather {
    /// How much later they arrive.
    pub delay: Duration,
    /// By how much that varies, either way.
    pub jitter: Duration,
    /// The share of segments that are lost, 0 to 1. TCP sends them again, so what is lost comes late: see
    /// [`Gate::late`].
    pub loss: f64,
}

impl Weather {
    fn is_calm(&self) -> bool {
        *self == Self::default()
    }
}

/// The bytes of one segment on an ordinary network.
const SEGMENT: usize = 1448;
/// The least time before TCP sends again what was not acknowledged: Linux' `TCP_RTO_MIN`.
const SHORTEST_RETRY: Duration = Duration::from_millis(200);
/// The time before TCP sends its first segment again (RFC 6298, 2.1).
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// How often the time before the next try is doubled.
const DOUBLINGS: u32 = 6;

/// One direction of a link: a point that bytes must pass, and that can be shut or slow. While it is shut nothing moves
/// and nothing fails, as on a partitioned network.
#[derive(Debug, Default)]
pub struct Gate {
    shut: AtomicBool,
    opened: Notify,
    rough: AtomicBool,
    weather: Mutex<Weather>,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn open() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Shuts or opens the gate; whatever waits at it goes on when it opens.
    pub fn set_shut(&self, shut: bool) {
        self.shut.store(shut, Ordering::SeqCst);
        if !shut {
            self.opened.notify_waiters();
        }
    }

    /// Whether nothing passes now.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    /// Waits until the gate is open.
    pub async fn passable(&self) {
        while self.is_shut() {
            let opened = self.opened.notified();
            tokio::pin!(opened);
            opened.as_mut().enable();
            if self.is_shut() {
                opened.await;
            }
        }
    }

    /// What bytes meet from now on.
    pub fn set_weather(&self, weather: Weather) {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
        self.rough.store(!weather.is_calm(), Ordering::Release);
    }

    /// What bytes meet now.
    #[must_use]
    pub fn weather(&self) -> Weather {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether bytes come late or get lost now.
    #[must_use]
    pub fn is_rough(&self) -> bool {
        self.rough.load(Ordering::Acquire)
    }

    /// How much later than at once `bytes` arrive that are sent now.
    ///
    /// A lost segment comes when TCP has sent it again: after a round trip where three more segments follow it (fast
    /// retransmit, RFC 5681), otherwise after the retransmission timeout, which doubles each time. The round trip is
    /// taken to be twice this direction's delay. What TCP does to the rate after a loss is not imitated.
    #[must_use]
    pub fn late(&self, bytes: usize) -> Duration {
        let weather = self.weather();
        let (mut late, trip) = (wavering(&weather), weather.delay * 2);
        if weather.loss > 0.0 {
            let segments = bytes.div_ceil(SEGMENT).max(1);
            let lost = (0..segments).filter(|_| is_lost(&weather)).map(|segment| {
                if segments - segment > 3 && !is_lost(&weather) {
                    trip
                } else {
                    retries(SHORTEST_RETRY + trip, &weather)
                }
            });
            late += lost.max().unwrap_or_default();
        }
        late
    }

    /// What the first segment of a connection takes: a lost one is sent again after a second, then two, and so on.
    #[must_use]
    pub fn greeting(&self) -> Duration {
        let weather = self.weather();
        let again = if is_lost(&weather) { retries(FIRST_RETRY, &weather) } else { Duration::ZERO };
        wavering(&weather) + again
    }
}

fn wavering(weather: &Weather) -> Duration {
    let sway = weather.jitter.as_secs_f64() * (rand::random::<f64>() * 2.0 - 1.0);
    Duration::from_secs_f64((weather.delay.as_secs_f64() + sway).max(0.0))
}

fn is_lost(weather: &Weather) -> bool {
    weather.loss > 0.0 && rand::random::<f64>() < weather.loss
}

/// The sum of the timeouts until one try comes through.
fn retries(first: Duration, weather: &Weather) -> Duration {
    let (mut sum, mut next) = (first, first);
    for _ in 0..DOUBLINGS {
        if !is_lost(weather) {
            break;
        }
        next *= 2;
        sum += next;
    }
    sum
}

/// The link that a connection crosses, as its end here sees it.
#[derive(Clone, Debug)]
pub struct Link {
    /// What comes from the other end passes this.
    pub inward: Arc<Gate>,
    /// What goes to the other end passes this.
    pub outward: Arc<Gate>,
    /// Whether the other end does not know of the link (somebody else's process): then what is sent there passes
    /// unhindered, and its delay is added to that of what comes from there. A round trip takes as long as it should.
    pub alone: bool,
}

impl Link {
    /// The two round trips' worth of first segments, before which a connection is not made.
    #[must_use]
    pub fn greeting(&self) -> Duration {
        self.inward.greeting() + self.outward.greeting()
    }

    /// Waits until both directions are open, as a connection needs both to be made.
    pub async fn passable(&self) {
        self.inward.passable().await;
        self.outward.passable().await;
    }

    fn is_rough(&self) -> bool {
        self.inward.is_rough() || (self.alone && self.outward.is_rough())
    }

    fn late(&self, bytes: usize) -> Duration {
        let other = if self.alone { self.outward.late(0) } else { Duration::ZERO };
        self.inward.late(bytes) + other
    }
}

thread_local! {
    /// What is read into before it is known how much there is; used only within one call.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; Held::CHUNK]);
}

/// Bytes that have arrived and are held back until their time has come.
struct Held {
    chunks: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    /// How the stream ends after them.
    end: Option<io::Result<()>>,
    /// When the connection was made, over a link that takes its time; what came before was sent then at the earliest.
    not_before: Instant,
    /// Nothing overtakes what came before it.
    last: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Held {
    /// How much one connection has on its way at most: what a receive window would allow.
    const MOST: usize = 1 << 20;
    const CHUNK: usize = 64 * 1024;

    fn new(not_before: Instant) -> Self {
        let sleep = Box::pin(tokio::time::sleep_until(not_before));
        Self { chunks: VecDeque::new(), bytes: 0, end: None, not_before, last: not_before, sleep }
    }

    /// Takes in what has arrived; when it returns, the socket will wake us for more, or no more is wanted.
    fn fill(&mut self, tcp: &mut TcpStream, link: &Link, cx: &mut Context<'_>) {
        while self.end.is_none() && self.bytes < Self::MOST {
            let read = SCRATCH.with_borrow_mut(|scratch| {
                let mut space = ReadBuf::new(scratch);
                let read = ready!(Pin::new(&mut *tcp).poll_read(cx, &mut space));
                Poll::Ready((read, Bytes::copy_from_slice(space.filled())))
            });
            let Poll::Ready((read, arrived)) = read else { return };
            self.last = self.last.max(Instant::now().max(self.not_before) + link.late(arrived.len()));
            match read {
                Err(error) => self.end = Some(Err(error)),
                Ok(()) if arrived.is_empty() => self.end = Some(Ok(())),
                Ok(()) => {
                    self.bytes += arrived.len();
                    self.chunks.push_back((self.last, arrived));
                }
            }
        }
    }

    fn poll_read(
        &mut self,
        tcp: &mut TcpStream,
        link: &Link,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.fill(tcp, link, cx);
        let due = match (self.chunks.front(), &self.end) {
            (Some((due, _)), _) => *due,
            (None, Some(_)) => self.last,
            (None, None) => return Poll::Pending,
        };
        if due > Instant::now() {
            self.sleep.as_mut().reset(due);
            ready!(self.sleep.as_mut().poll(cx));
        }
        let Some((_, chunk)) = self.chunks.front_mut() else {
            return Poll::Ready(self.end.replace(Ok(())).unwrap_or(Ok(())));
        };
        let part = chunk.split_to(chunk.len().min(buf.remaining()));
        buf.put_slice(&part);
        self.bytes -= part.len();
        if chunk.is_empty() {
            self.chunks.pop_front();
        }
        Poll::Ready(Ok(()))
    }

    /// Whether nothing is held back.
    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.end.is_none()
    }
}

/// A TCP connection, over a [`Link`] if it crosses one.
pub struct Stream {
    tcp: TcpStream,
    link: Option<Box<Link>>,
    reading: Option<BoxFuture<'static, ()>>,
    writing: Option<BoxFuture<'static, ()>>,
    held: Option<Box<Held>>,
}

impl Stream {
    /// `tcp`, held up in both directions whenever `gate` is shut.
    #[must_use]
    pub fn gated(tcp: TcpStream, gate: Option<Arc<Gate>>) -> Self {
        Self::linked(tcp, gate.map(|gate| Link { inward: Arc::clone(&gate), outward: gate, alone: false }))
    }

    /// `tcp`, over `link`.
    #[must_use]
    pub fn linked(tcp: TcpStream, link: Option<Link>) -> Self {
        let _ = tcp.set_nodelay(true);
        Self::prompt(tcp, link)
    }

    /// The same, of a socket that sends without waiting (`TCP_NODELAY`) already.
    fn prompt(tcp: TcpStream, link: Option<Link>) -> Self {
        Self { tcp, link: link.map(Box::new), reading: None, writing: None, held: None }
    }

    /// Nothing is read before `when`: what a connection took to be made that the kernel made at once.
    pub fn hold_until(&mut self, when: Instant) {
        self.held = Some(Box::new(Held::new(when)));
    }

    /// The socket, for what only a socket can do (`splice`, `shutdown`, options). Bytes that cross a
    /// [`link`](Self::link) must not be moved through it.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The same, to be divided into its two directions.
    #[must_use]
    pub fn tcp_mut(&mut self) -> &mut TcpStream {
        &mut self.tcp
    }

    /// The link this connection crosses, if any.
    #[must_use]
    pub fn link(&self) -> Option<&Link> {
        self.link.as_deref()
    }

    /// The other end.
    ///
    /// # Errors
    ///
    /// When the socket is no longer connected.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.peer_addr()
    }

    /// This end.
    ///
    /// # Errors
    ///
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Has the kernel ask the other end whether it is still there: after `silence`, then every `interval`, and gives the
    /// connection up after `unanswered` questions.
    pub fn ask_whether_alive(&self, silence: Duration, interval: Duration, unanswered: u32) {
        let asking = socket2::TcpKeepalive::new().with_time(silence).with_interval(interval).with_retries(unanswered);
        // A system that cannot is as it was.
        let _ = socket2::SockRef::from(&self.tcp).set_tcp_keepalive(&asking);
    }

    /// Makes the drop of this connection a reset instead of an orderly end.
    pub fn reset_on_drop(&self) {
        let _ = socket2::SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
    }

    fn poll_gate(
        gate: Option<&Arc<Gate>>,
        waiting: &mut Option<BoxFuture<'static, ()>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(gate) = gate else { return Poll::Ready(()) };
        if waiting.is_none() {
            if !gate.is_shut() {
                return Poll::Ready(());
            }
            let gate = Arc::clone(gate);
            *waiting = Some(Box::pin(async move { gate.passable().await }));
        }
        if let Some(future) = waiting {
            ready!(future.as_mut().poll(cx));
        }
        *waiting = None;
        Poll::Ready(())
    }

    fn poll_outward(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        Self::poll_gate(self.link.as_ref().map(|link| &link.outward), &mut self.writing, cx)
    }
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::gated(tcp, None)
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("tcp", &self.tcp).field("link", &self.link).finish_non_exhaustive()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(link) = this.link.as_deref() else { return Pin::new(&mut this.tcp).poll_read(cx, buf) };
        ready!(Self::poll_gate(Some(&link.inward), &mut this.reading, cx));
        if link.alone {
            // The other end does not know that its acknowledgements do not arrive.
            ready!(Self::poll_gate(Some(&link.outward), &mut this.reading, cx));
        }
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let rough = link.is_rough();
        if rough && this.held.is_none() {
            this.held = Some(Box::new(Held::new(Instant::now())));
        }
        let Some(held) = &mut this.held else { return Pin::new(&mut this.tcp).poll_read(cx, buf) };
        let read = held.poll_read(&mut this.tcp, link, cx, buf);
        if !rough && held.is_empty() && read.is_ready() {
            this.held = None;
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_outward(cx));
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_outward(cx));
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_outward(cx));
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// What a [`Door`] says of a connection that has just arrived.
#[derive(Debug)]
pub enum Admission {
    /// Let it in.
    Pass,
    /// Let it in, over the link it has come by.
    Through(Link),
    /// Reset it. The door has counted it.
    Refuse,
}

/// Decides about every connection that arrives at a [`Listener`]. Must not block.
pub trait Door: Send + Sync + 'static {
    /// May `peer` come in at `local`?
    fn admit(&self, peer: SocketAddr, local: SocketAddr) -> Admission;
}

/// A listening socket, with a [`Door`] if not everybody may come in.
pub struct Listener {
    tcp: TcpListener,
    door: Option<Arc<dyn Door>>,
}

impl Listener {
    /// `tcp`, guarded by `door`.
    #[must_use]
    pub fn guarded(tcp: TcpListener, door: Arc<dyn Door>) -> Self {
        Self { door: Some(door), ..Self::from(tcp) }
    }

    /// The address it listens on.
    ///
    /// # Errors
    ///
    /// When the socket is gone.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next admitted connection and its peer. Refused ones are reset and never seen.
    ///
    /// Passing trouble (a peer that left before it was accepted, no free descriptor) is waited out, not returned.
    ///
    /// # Errors
    ///
    /// When the socket itself is broken.
    pub async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        loop {
            let (tcp, peer) = match self.tcp.accept().await {
                Ok(accepted) => accepted,
                Err(error) if is_passing(&error) => {
                    tracing::debug!(%error, "accept failed, trying again");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some(door) = &self.door else { return Ok((Stream::prompt(tcp, None), peer)) };
            match door.admit(peer, tcp.local_addr()?) {
                Admission::Pass => return Ok((Stream::prompt(tcp, None), peer)),
                Admission::Through(link) => {
                    let greeting = if link.alone { link.greeting() } else { Duration::ZERO };
                    let mut stream = Stream::prompt(tcp, Some(link));
                    if !greeting.is_zero() {
                        stream.hold_until(Instant::now() + greeting);
                    }
                    return Ok((stream, peer));
                }
                Admission::Refuse => Stream::from(tcp).reset_on_drop(),
            }
        }
    }
}

/// A peer that says nothing is asked after 30 s whether it is still there, and is not after 4 more questions.
const KEEPALIVE: socket2::TcpKeepalive = socket2::TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(10))
    .with_retries(4);

/// Whether the next `accept` may well succeed.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
        || matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}

impl From<TcpListener> for Listener {
    fn from(tcp: TcpListener) -> Self {
        // Linux and the BSDs hand both down to what is accepted: once instead of for every connection.
        let socket = socket2::SockRef::from(&tcp);
        let _ = socket.set_tcp_nodelay(true);
        // A session of a client that vanished has nothing to write by which that would be noticed.
        let _ = socket.set_tcp_keepalive(&KEEPALIVE);
        Self { tcp, door: None }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Cut(Arc<Gate>);
    impl Door for Cut {
        fn admit(&self, _: SocketAddr, _: SocketAddr) -> Admission {
            let gate = &self.0;
            Admission::Through(Link { inward: Arc::clone(gate), outward: Arc::clone(gate), alone: false })
        }
    }
    struct Nobody;
    impl Door for Nobody {
        fn admit(&self, _: SocketAddr, _: SocketAddr) -> Admission {
            Admission::Refuse
        }
    }

    #[tokio::test]
    async fn what_is_accepted_sends_without_waiting() {
        for guarded in [false, true] {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let listener = match guarded {
                true => Listener::guarded(tcp, Arc::new(Cut(Gate::open()))),
                false => Listener::from(tcp),
            };
            let _client = HostNet::default().dial(listener.local_addr().unwrap()).await.unwrap();
            let (server, _) = listener.accept().await.unwrap();
            assert!(server.tcp().nodelay().unwrap());
        }
    }

    #[tokio::test]
    async fn a_shut_gate_stalls_and_an_opened_one_goes_on() {
        let gate = Gate::open();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = Listener::guarded(tcp, Arc::new(Cut(Arc::clone(&gate))));
        let to = listener.local_addr().unwrap();
        let mut client = HostNet::default().dial(to).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();

        gate.set_shut(true);
        client.write_all(b"x").await.unwrap();
        let mut byte = [0];
        let stalled = tokio::time::timeout(Duration::from_millis(50), server.read_exact(&mut byte)).await;
        assert!(stalled.is_err(), "nothing passes a shut gate");

        gate.set_shut(false);
        tokio::time::timeout(Duration::from_secs(5), server.read_exact(&mut byte)).await.unwrap().unwrap();
        assert_eq!(&byte, b"x");
    }

    /// Two ends of one connection over a link with these gates: (to the first, to the second).
    async fn pair(first: &Arc<Gate>, second: &Arc<Gate>, alone: bool) -> (Stream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (other, _) = listener.accept().await.unwrap();
        let link = |inward: &Arc<Gate>, outward: &Arc<Gate>| {
            Some(Link { inward: Arc::clone(inward), outward: Arc::clone(outward), alone })
        };
        (
            Stream::linked(one, if alone { None } else { link(first, second) }),
            Stream::linked(other, link(second, first)),
        )
    }

    /// The shortest of some: a busy machine only ever adds to them.
    async fn round_trip(one: &mut Stream, other: &mut Stream) -> Duration {
        let mut shortest = Duration::MAX;
        for _ in 0..5 {
            let began = Instant::now();
            one.write_all(b"ping").await.unwrap();
            let mut bytes = [0; 4];
            other.read_exact(&mut bytes).await.unwrap();
            other.write_all(b"pong").await.unwrap();
            one.read_exact(&mut bytes).await.unwrap();
            shortest = shortest.min(began.elapsed());
        }
        shortest
    }

    #[tokio::test]
    async fn a_delay_is_one_of_its_direction_and_stops_when_it_is_lifted() {
        for alone in [false, true] {
            let (there, back) = (Gate::open(), Gate::open());
            let (mut one, mut other) = pair(&back, &there, alone).await;
            let slow = Weather { delay: Duration::from_millis(60), ..Weather::default() };
            there.set_weather(slow);
            let took = round_trip(&mut one, &mut other).await;
            assert!((60..110).contains(&took.as_millis()), "one way: {took:?}");
            back.set_weather(slow);
            let took = round_trip(&mut one, &mut other).await;
            assert!((120..190).contains(&took.as_millis()), "both ways: {took:?}");
            for gate in [&there, &back] {
                gate.set_weather(Weather::default());
            }
            assert!(round_trip(&mut one, &mut other).await < Duration::from_millis(50));
            assert!(one.held.is_none() && other.held.is_none(), "nothing is kept for later");
        }
    }

    /// Late, but side by side: a delay takes nothing from the rate. And in order, whatever the jitter.
    #[tokio::test]
    async fn what_is_late_arrives_whole_in_order_and_with_its_end() {
        let (there, back) = (Gate::open(), Gate::open());
        let (mut one, mut other) = pair(&back, &there, false).await;
        there.set_weather(Weather { delay: Duration::from_millis(40), jitter: Duration::from_millis(30), loss: 0.0 });
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let writing = {
            let sent = sent.clone();
            tokio::spawn(async move {
                one.write_all(&sent).await.unwrap();
                one.shutdown().await.unwrap();
                one
            })
        };
        let began = Instant::now();
        let mut got = Vec::new();
        other.read_to_end(&mut got).await.unwrap();
        assert!(got == sent, "{} of {} bytes, or others", got.len(), sent.len());
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_cut_of_one_direction_leaves_the_other() {
        let (there, back) = (Gate::open(), Gate::open());
        let (mut one, mut other) = pair(&back, &there, false).await;
        there.set_shut(true);
        other.write_all(b"a").await.unwrap();
        assert_eq!(one.read_u8().await.unwrap(), b'a');
        let stalled = tokio::time::timeout(Duration::from_millis(50), one.write_all(b"b")).await;
        assert!(stalled.is_err(), "nothing gets there");
        there.set_shut(false);
        one.write_all(b"c").await.unwrap();
        assert_eq!(other.read_u8().await.unwrap(), b'c');
    }

    #[test]
    fn loss_is_time() {
        let gate = Gate::open();
        gate.set_weather(Weather { loss: 0.05, delay: Duration::from_millis(10), jitter: Duration::ZERO });
        let late: Vec<_> = (0..4000).map(|_| gate.late(100)).collect();
        let again = late.iter().filter(|l| **l >= SHORTEST_RETRY).count();
        assert!((100..320).contains(&again), "{again} of 4000 single segments were sent again, about 200 expected");
        assert!(late.iter().all(|l| *l == Duration::from_millis(10) || *l >= Duration::from_millis(230)));
        let greeted = (0..4000).filter(|_| gate.greeting() >= FIRST_RETRY).count();
        assert!((100..320).contains(&greeted), "{greeted}");
        gate.set_weather(Weather::default());
        assert_eq!((gate.late(1 << 20), gate.greeting()), (Duration::ZERO, Duration::ZERO));
    }

    #[tokio::test]
    async fn the_kernel_asks_whether_the_other_end_is_there() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = HostNet::default().dial(tcp.local_addr().unwrap()).await.unwrap();
        let socket = || socket2::SockRef::from(stream.tcp());
        assert!(!socket().keepalive().unwrap());
        stream.ask_whether_alive(Duration::from_secs(15), Duration::from_secs(5), 3);
        assert!(socket().keepalive().unwrap());
        let times = (socket().tcp_keepalive_time().unwrap(), socket().tcp_keepalive_interval().unwrap());
        assert_eq!(times, (Duration::from_secs(15), Duration::from_secs(5)));
        assert_eq!(socket().tcp_keepalive_retries().unwrap(), 3);
    }

    #[tokio::test]
    async fn a_refused_peer_is_reset() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = Listener::guarded(tcp, Arc::new(Nobody));
        let to = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move { listener.accept().await.map(|_| ()) });
        let mut client = HostNet::default().dial(to).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(5), client.read_u8()).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        accepting.abort();
    }
}
