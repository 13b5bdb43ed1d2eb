//! Sockets as a value: who may dial whom is decided by whoever hands out the [`Net`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

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

/// A point that bytes must pass, and that can be shut: while it is shut nothing moves and nothing fails, as on a
/// partitioned network.
#[derive(Debug, Default)]
pub struct Gate {
    shut: AtomicBool,
    opened: Notify,
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
}

/// A TCP connection, behind a [`Gate`] if it crosses a link that can be cut.
pub struct Stream {
    tcp: TcpStream,
    gate: Option<Arc<Gate>>,
    reading: Option<BoxFuture<'static, ()>>,
    writing: Option<BoxFuture<'static, ()>>,
}

impl Stream {
    /// `tcp`, held up whenever `gate` is shut.
    #[must_use]
    pub fn gated(tcp: TcpStream, gate: Option<Arc<Gate>>) -> Self {
        let _ = tcp.set_nodelay(true);
        Self { tcp, gate, reading: None, writing: None }
    }

    /// The socket, for what only a socket can do (`splice`, `shutdown`, options).
    /// Whoever moves bytes through it waits for [`passable`](Self::passable) before each move.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// The gate this connection passes, if any.
    #[must_use]
    pub fn gate(&self) -> Option<&Arc<Gate>> {
        self.gate.as_ref()
    }

    /// Waits until bytes may move.
    pub async fn passable(&self) {
        if let Some(gate) = &self.gate {
            gate.passable().await;
        }
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

    /// Makes the drop of this connection a reset instead of an orderly end.
    pub fn reset_on_drop(&self) {
        let _ = socket2::SockRef::from(&self.tcp).set_linger(Some(std::time::Duration::ZERO));
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
}

impl From<TcpStream> for Stream {
    fn from(tcp: TcpStream) -> Self {
        Self::gated(tcp, None)
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("tcp", &self.tcp).field("gate", &self.gate).finish_non_exhaustive()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Self::poll_gate(this.gate.as_ref(), &mut this.reading, cx));
        Pin::new(&mut this.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(Self::poll_gate(this.gate.as_ref(), &mut this.writing, cx));
        Pin::new(&mut this.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        ready!(Self::poll_gate(this.gate.as_ref(), &mut this.writing, cx));
        Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Self::poll_gate(this.gate.as_ref(), &mut this.writing, cx));
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}

/// What a [`Door`] says of a connection that has just arrived.
#[derive(Debug)]
pub enum Admission {
    /// Let it in.
    Pass,
    /// Let it in, and hold it up whenever the gate is shut.
    Through(Arc<Gate>),
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
        Self { tcp, door: Some(door) }
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
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let Some(door) = &self.door else { return Ok((Stream::from(tcp), peer)) };
            match door.admit(peer, tcp.local_addr()?) {
                Admission::Pass => return Ok((Stream::from(tcp), peer)),
                Admission::Through(gate) => return Ok((Stream::gated(tcp, Some(gate)), peer)),
                Admission::Refuse => Stream::from(tcp).reset_on_drop(),
            }
        }
    }
}

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
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Cut(Arc<Gate>);
    impl Door for Cut {
        fn admit(&self, _: SocketAddr, _: SocketAddr) -> Admission {
            Admission::Through(Arc::clone(&self.0))
        }
    }
    struct Nobody;
    impl Door for Nobody {
        fn admit(&self, _: SocketAddr, _: SocketAddr) -> Admission {
            Admission::Refuse
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
