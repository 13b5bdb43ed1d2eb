//! Bytes both ways between two connections, with what must not be lost: half-closes, counts, idle limits.
//!
//! Two plain sockets start with a buffer all connections of a thread share, so that a quiet connection holds none;
//! a direction that proves to be bulk is moved on through a pipe inside the kernel (`splice`).

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use rustix::pipe::{PipeFlags, SpliceFlags};
use stolos_serve::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::Instant;

/// How much is read at once; a read that fills it calls for `splice`.
const CHUNK: usize = 32 * 1024;
/// The pipe between two spliced sockets. With the 64 KiB it has by itself (pipe(7)), bulk moved at two thirds of the speed.
const PIPE: usize = 256 * 1024;
/// After this many moves that would have fitted into memory a direction is no bulk any more, and its pipe is closed.
const LULL: u32 = 16;

/// What has passed, each way, and when last.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// From the client to the server.
    pub(crate) up: AtomicU64,
    /// From the server to the client.
    pub(crate) down: AtomicU64,
}

impl Traffic {
    fn sum(&self) -> u64 {
        self.up.load(Ordering::Relaxed) + self.down.load(Ordering::Relaxed)
    }
}

/// Carries bytes between two plain sockets until both directions have ended, `head` first.
pub(crate) async fn plain(
    mut client: Stream,
    head: Bytes,
    mut server: Stream,
    traffic: &Traffic,
    idle: Duration,
) -> io::Result<()> {
    if client.link().is_some() || server.link().is_some() {
        return linked(client, head, server, traffic, idle).await;
    }
    traffic.up.fetch_add(head.len() as u64, Ordering::Relaxed);
    let ended = {
        let (from_client, to_client) = client.tcp_mut().split();
        let (from_server, to_server) = server.tcp_mut().split();
        let both = Both {
            up: Way::new(from_client, to_server, &traffic.up, head),
            down: Way::new(from_server, to_client, &traffic.down, Bytes::new()),
        };
        watched(both, traffic, idle).await
    };
    if ended.is_err() {
        // Each end learns that the other did not end in order.
        client.reset_on_drop();
        server.reset_on_drop();
    }
    ended
}

/// As [`plain`], where bytes cross a link that may hold them up: only the stream itself knows how.
async fn linked(client: Stream, head: Bytes, mut server: Stream, traffic: &Traffic, idle: Duration) -> io::Result<()> {
    let mut client = Counted { inner: client, read: &traffic.up };
    let both = Box::pin(async {
        server.write_all(&head).await?;
        traffic.up.fetch_add(head.len() as u64, Ordering::Relaxed);
        let mut server = Counted { inner: &mut server, read: &traffic.down };
        tokio::io::copy_bidirectional(&mut client, &mut server).await.map(|_| ())
    });
    let ended = watched(both, traffic, idle).await;
    if ended.is_err() {
        client.inner.reset_on_drop();
        server.reset_on_drop();
    }
    ended
}

/// Carries bytes between any two connections, at least one of which is TLS.
pub(crate) async fn any<A, B>(client: A, server: B, traffic: &Traffic, idle: Duration) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = Counted { inner: client, read: &traffic.up };
    let mut server = Counted { inner: server, read: &traffic.down };
    let both = Box::pin(async { tokio::io::copy_bidirectional(&mut client, &mut server).await.map(|_| ()) });
    let ended = watched(both, traffic, idle).await;
    if ended.is_err() {
        let _ = tokio::time::timeout(Duration::from_millis(100), client.inner.shutdown()).await;
    }
    ended
}

/// Ends `moving` when nothing has moved for `idle`.
async fn watched(
    mut moving: impl Future<Output = io::Result<()>> + Unpin,
    traffic: &Traffic,
    idle: Duration,
) -> io::Result<()> {
    let mut seen = traffic.sum();
    let sleep = tokio::time::sleep(idle);
    tokio::pin!(sleep);
    loop {
        tokio::select! {
            ended = &mut moving => return ended,
            () = &mut sleep => {
                let now = traffic.sum();
                if now == seen {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "idle for too long"));
                }
                seen = now;
                sleep.as_mut().reset(Instant::now() + idle);
            }
        }
    }
}

/// Both directions, until both have ended.
///
/// Written out instead of as two `async` blocks: it is what every open connection holds, and what every piece of every
/// connection wakes. A read that leaves nothing behind is known to (tokio clears the readiness that `epoll` reports
/// once), so that it is not tried again in vain.
struct Both<'a> {
    up: Way<'a>,
    down: Way<'a>,
}

impl Future for Both<'_> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { up, down } = &mut *self;
        // Both each time: a failure of one ends the other.
        let (moved_up, moved_down) = (up.poll(cx)?, down.poll(cx)?);
        if moved_up.is_ready() && moved_down.is_ready() {
            // Closing the sockets says it.
            return Poll::Ready(Ok(()));
        }
        up.tell_end();
        down.tell_end();
        Poll::Pending
    }
}

/// One direction.
struct Way<'a> {
    from: ReadHalf<'a>,
    to: WriteHalf<'a>,
    moved: &'a AtomicU64,
    /// Read, but not written yet; usually nothing.
    rest: Bytes,
    pipe: Option<Box<Pipe>>,
    /// Whether the kernel refused to splice these two.
    refused: bool,
    end: End,
}

/// How far a direction's end has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    /// Nothing more comes, and all that came has been written.
    Seen,
    /// The receiver knows.
    Told,
}

impl<'a> Way<'a> {
    fn new(from: ReadHalf<'a>, to: WriteHalf<'a>, moved: &'a AtomicU64, head: Bytes) -> Self {
        Self { from, to, moved, rest: head, pipe: None, refused: false, end: End::Open }
    }

    /// Moves what can be moved; ready when it has ended.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.end == End::Open {
            while !self.rest.is_empty() {
                match ready!(Pin::new(&mut self.to).poll_write(cx, &self.rest))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    written => self.rest.advance(written),
                }
            }
            // Lets go of what it lay in.
            self.rest = Bytes::new();
            let ended = match &mut self.pipe {
                None => ready!(self.through_memory(cx))?,
                Some(_) => ready!(self.through_pipe(cx))?,
            };
            if ended {
                self.end = End::Seen;
                self.pipe = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Passes the end on, once.
    fn tell_end(&mut self) {
        if self.end == End::Seen {
            let _ = socket2::SockRef::from(self.to.as_ref()).shutdown(Shutdown::Write);
            self.end = End::Told;
        }
    }

    /// Moves what is there; says whether that was the end.
    fn through_memory(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        with_scratch(|scratch| {
            let mut space = ReadBuf::new(scratch);
            ready!(Pin::new(&mut self.from).poll_read(cx, &mut space))?;
            let read = space.filled();
            if read.is_empty() {
                return Poll::Ready(Ok(true));
            }
            self.moved.fetch_add(read.len() as u64, Ordering::Relaxed);
            let written = match Pin::new(&mut self.to).poll_write(cx, read) {
                Poll::Ready(written) => written?,
                Poll::Pending => 0,
            };
            if written < read.len() {
                self.rest = Bytes::copy_from_slice(&read[written..]);
            }
            if read.len() == CHUNK && !self.refused {
                self.pipe = Pipe::new().ok().map(Box::new);
                self.refused = self.pipe.is_none();
            }
            Poll::Ready(Ok(false))
        })
    }

    /// The same, past memory.
    fn through_pipe(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(false)) };
        let (from, to) = (self.from.as_ref(), self.to.as_ref());
        while pipe.held > 0 {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || splice(&pipe.out, to, pipe.held)) {
                Ok(count) => pipe.held -= count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if pipe.small >= LULL {
            self.pipe = None;
            return Poll::Ready(Ok(false));
        }
        ready!(from.poll_read_ready(cx))?;
        match from.try_io(Interest::READABLE, || splice(from, &pipe.into, PIPE)) {
            Ok(0) => return Poll::Ready(Ok(true)),
            Ok(count) => {
                pipe.held = count;
                self.moved.fetch_add(count as u64, Ordering::Relaxed);
                pipe.note(count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => (self.pipe, self.refused) = (None, true),
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Ready(Ok(false))
    }
}

/// The pipe between two spliced sockets.
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    /// What is in it.
    held: usize,
    /// How many moves in a row were small.
    small: u32,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Not granted to everybody (`pipe-user-pages-soft`, pipe(7)); the size it has works too.
        let _ = rustix::pipe::fcntl_setpipe_size(&into, PIPE);
        Ok(Self { out, into, held: 0, small: 0 })
    }

    /// Notes whether that was worth a pipe.
    fn note(&mut self, count: usize) {
        self.small = if count < CHUNK / 2 { self.small + 1 } else { 0 };
    }
}

fn splice(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    rustix::pipe::splice(from, None, to, None, most, flags).map_err(io::Error::from)
}

thread_local! {
    /// Used only between two awaits, so one per thread is enough.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// Memory of this thread, for as long as `used` runs.
pub(crate) fn with_scratch<T>(used: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| used(scratch))
}

/// Counts what is read.
struct Counted<'a, S> {
    inner: S,
    read: &'a AtomicU64,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<'_, S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.read.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<'_, S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// A connection whose first bytes have been read already and are read again.
#[derive(Debug)]
pub(crate) struct Rewound {
    head: Bytes,
    stream: Stream,
}

impl Rewound {
    pub(crate) fn new(head: Bytes, stream: Stream) -> Self {
        Self { head, stream }
    }

    /// What has not been read again yet, and the connection.
    pub(crate) fn into_parts(self) -> (Bytes, Stream) {
        (self.head, self.stream)
    }
}

impl AsyncRead for Rewound {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.head.is_empty() {
            let count = self.head.len().min(buf.remaining());
            buf.put_slice(&self.head.split_to(count));
            if self.head.is_empty() {
                // Lets go of what the bytes were read into.
                self.head = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    async fn pair() -> (TcpStream, Stream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (outside, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (outside.unwrap(), Stream::from(accepted.unwrap().0))
    }

    #[tokio::test]
    async fn bulk_is_spliced_whole_and_half_closes_are_kept() {
        const SIZE: usize = 64 << 20;
        let ((mut client, inner_client), (mut server, inner_server)) = (pair().await, pair().await);
        let traffic = std::sync::Arc::new(Traffic::default());
        let carried = std::sync::Arc::clone(&traffic);
        let carrying = tokio::spawn(async move {
            let idle = Duration::from_secs(20);
            plain(inner_client, Bytes::from_static(b"head"), inner_server, &carried, idle).await
        });
        let sending = tokio::spawn(async move {
            let block: Vec<u8> = (0..1 << 16).map(|i| (i % 251) as u8).collect();
            for _ in 0..SIZE / block.len() {
                client.write_all(&block).await.unwrap();
            }
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        });
        let mut all = Vec::with_capacity(SIZE + 4);
        server.read_to_end(&mut all).await.unwrap();
        assert_eq!((&all[..4], all.len()), (&b"head"[..], SIZE + 4));
        assert!(all[4..].chunks(1 << 16).all(|chunk| chunk[250] == 250 && chunk[251] == 0));
        server.write_all(b"thank you").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(sending.await.unwrap(), "thank you", "the client could still be answered after its half-close");
        carrying.await.unwrap().unwrap();
        assert_eq!(traffic.up.load(Ordering::Relaxed), SIZE as u64 + 4);
        assert_eq!(traffic.down.load(Ordering::Relaxed), 9);
    }

    /// Bulk, then small pieces for longer than a lull, then bulk again: whole, and in order.
    #[tokio::test]
    async fn what_was_bulk_may_become_small_and_bulk_again() {
        let ((mut client, inner_client), (mut server, inner_server)) = (pair().await, pair().await);
        let carrying = tokio::spawn(async move {
            let traffic = Traffic::default();
            plain(inner_client, Bytes::new(), inner_server, &traffic, Duration::from_secs(20)).await.map(|()| traffic)
        });
        let mut total = 0;
        for round in 0..2 {
            const BULK: usize = 4 << 20;
            let block: Vec<u8> = (0..BULK).map(|i| (i % 251) as u8).collect();
            let mut got = vec![0; BULK];
            let (sent, read) = tokio::join!(client.write_all(&block), server.read_exact(&mut got));
            sent.unwrap();
            read.unwrap();
            assert!(got == block, "round {round}");
            for piece in 0..3 * LULL {
                let piece = piece.to_be_bytes();
                client.write_all(&piece).await.unwrap();
                let mut got = [0; 4];
                server.read_exact(&mut got).await.unwrap();
                assert_eq!(got, piece);
                server.write_all(&got).await.unwrap();
                client.read_exact(&mut got).await.unwrap();
            }
            total += BULK as u64 + u64::from(3 * LULL * 4);
        }
        client.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0, "the end arrives");
        drop(server);
        let traffic = carrying.await.unwrap().unwrap();
        assert_eq!(traffic.up.load(Ordering::Relaxed), total);
    }

    /// A receiver that does not read holds its sender up, and nothing is lost when it goes on.
    #[tokio::test]
    async fn a_slow_receiver_loses_nothing() {
        let ((mut client, inner_client), (mut server, inner_server)) = (pair().await, pair().await);
        let carrying = tokio::spawn(async move {
            plain(inner_client, Bytes::from_static(b"head"), inner_server, &Traffic::default(), Duration::from_secs(20))
                .await
        });
        let mut sent = 0_usize;
        let block = vec![5; 10_000];
        while let Ok(Ok(count)) = tokio::time::timeout(Duration::from_millis(100), client.write(&block)).await {
            sent += count;
        }
        client.shutdown().await.unwrap();
        let mut all = Vec::new();
        server.read_to_end(&mut all).await.unwrap();
        assert_eq!((&all[..4], all.len()), (&b"head"[..], sent + 4));
        drop(server);
        carrying.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_idle_connection_is_ended() {
        let ((mut client, inner_client), (_server, inner_server)) = (pair().await, pair().await);
        let traffic = Traffic::default();
        let error = plain(inner_client, Bytes::new(), inner_server, &traffic, Duration::from_millis(50)).await;
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(client.read_u8().await.is_err());
    }
}
