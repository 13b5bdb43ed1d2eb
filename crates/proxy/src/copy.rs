//! Bytes both ways between two connections, with what must not be lost: half-closes, counts, idle limits.
//!
//! Two plain sockets start with a buffer all connections of a thread share, so that a quiet connection holds none;
//! a direction that proves to be bulk is moved on through a pipe inside the kernel (`splice`).

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use rustix::pipe::{PipeFlags, SpliceFlags};
use stolos_serve::Stream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// How much is read at once; a read that fills it calls for `splice`.
const CHUNK: usize = 32 * 1024;
/// The pipe between two spliced sockets.
const PIPE: usize = 256 * 1024;

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
    client: Stream,
    head: Bytes,
    server: Stream,
    traffic: &Traffic,
    idle: Duration,
) -> io::Result<()> {
    if client.link().is_some() || server.link().is_some() {
        return linked(client, head, server, traffic, idle).await;
    }
    let (near, far) = (client.tcp(), server.tcp());
    let up = async {
        write_all(far, &head).await?;
        traffic.up.fetch_add(head.len() as u64, Ordering::Relaxed);
        drop(head);
        one_way(near, far, &traffic.up).await
    };
    // On the heap once, instead of in every future that it passes through: there is one per open connection.
    let both = Box::pin(async { tokio::try_join!(up, one_way(far, near, &traffic.down)).map(|_| ()) });
    let ended = watched(both, traffic, idle).await;
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
    mut moving: Pin<Box<impl Future<Output = io::Result<()>>>>,
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

async fn one_way(from: &TcpStream, to: &TcpStream, moved: &AtomicU64) -> io::Result<()> {
    let mut splicing = true;
    loop {
        match through_memory(from, to, moved).await? {
            0 => break,
            CHUNK if splicing => match through_pipe(from, to, moved).await {
                Ok(()) => break,
                Err(Spliced::Refused) => splicing = false,
                Err(Spliced::Failed(error)) => return Err(error),
            },
            _ => {}
        }
    }
    let _ = socket2::SockRef::from(to).shutdown(Shutdown::Write);
    Ok(())
}

thread_local! {
    /// Used only between two awaits, so one per thread is enough.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// Moves what is there; 0 is the end.
async fn through_memory(from: &TcpStream, to: &TcpStream, moved: &AtomicU64) -> io::Result<usize> {
    loop {
        from.readable().await?;
        // What cannot be written at once is kept; usually nothing.
        let read = SCRATCH.with_borrow_mut(|scratch| {
            let count = from.try_read(scratch)?;
            let written = match to.try_write(&scratch[..count]) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            Ok((count, scratch[written..count].to_vec()))
        });
        match read {
            Ok((count, rest)) => {
                moved.fetch_add(count as u64, Ordering::Relaxed);
                write_all(to, &rest).await?;
                return Ok(count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

enum Spliced {
    /// The kernel will not splice these two.
    Refused,
    Failed(io::Error),
}

impl From<io::Error> for Spliced {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

async fn through_pipe(from: &TcpStream, to: &TcpStream, moved: &AtomicU64) -> Result<(), Spliced> {
    let Ok((out, into)) = pipe() else { return Err(Spliced::Refused) };
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        from.readable().await?;
        let read = from.try_io(Interest::READABLE, || {
            rustix::pipe::splice(from, None, &into, None, PIPE, flags).map_err(io::Error::from)
        });
        let mut held = match read {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(Spliced::Refused),
            Err(error) => return Err(error.into()),
        };
        moved.fetch_add(held as u64, Ordering::Relaxed);
        while held > 0 {
            to.writable().await?;
            let written = to.try_io(Interest::WRITABLE, || {
                rustix::pipe::splice(&out, None, to, None, held, flags).map_err(io::Error::from)
            });
            match written {
                Ok(count) => held -= count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// The reading and the writing end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    // Not granted to everybody; the default size works too.
    let _ = rustix::pipe::fcntl_setpipe_size(&into, PIPE);
    Ok((out, into))
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
    use tokio::net::TcpListener;

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

    #[tokio::test]
    async fn an_idle_connection_is_ended() {
        let ((mut client, inner_client), (_server, inner_server)) = (pair().await, pair().await);
        let traffic = Traffic::default();
        let error = plain(inner_client, Bytes::new(), inner_server, &traffic, Duration::from_millis(50)).await;
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(client.read_u8().await.is_err());
    }
}
