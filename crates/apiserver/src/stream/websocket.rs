//! WebSockets: the channel protocols of Kubernetes, and bytes in a row through one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use futures::stream::SplitSink;
use futures::{Sink as _, SinkExt as _, Stream as _};
use http::{HeaderMap, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, coding::CloseCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::failure::{Failure, Result};

/// The largest message that is taken.
const MAX_MESSAGE: usize = 4 << 20;

pub(crate) type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// The server's end of an upgraded connection.
pub(crate) async fn socket(upgraded: hyper::upgrade::Upgraded) -> Socket {
    serve(TokioIo::new(upgraded)).await
}

/// The server's end of a connection that has left HTTP already.
async fn serve<S: AsyncRead + AsyncWrite + Unpin>(connection: S) -> WebSocketStream<S> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await
}

/// A subprotocol in which the first byte of a message says which stream it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Channels {
    /// What the client calls it; empty when it named none.
    pub(crate) name: &'static str,
    /// 1, 4 or 5.
    pub(crate) version: u8,
    /// Whether messages are text: a digit, then base64.
    base64: bool,
}

/// For `exec` and `attach`, newest first.
pub(crate) const EXEC: &[Channels] = &[
    Channels { name: "v5.channel.k8s.io", version: 5, base64: false },
    Channels { name: "v4.channel.k8s.io", version: 4, base64: false },
    Channels { name: "v4.base64.channel.k8s.io", version: 4, base64: true },
    Channels { name: "channel.k8s.io", version: 1, base64: false },
    Channels { name: "base64.channel.k8s.io", version: 1, base64: true },
    UNNAMED,
];

/// For `port-forward`; the name [`TUNNEL`] stands beside them.
pub(crate) const FORWARD: &[Channels] = &[
    Channels { name: "v4.channel.k8s.io", version: 4, base64: false },
    Channels { name: "v4.base64.channel.k8s.io", version: 4, base64: true },
    UNNAMED,
];

const UNNAMED: Channels = Channels { name: "", version: 1, base64: false };

/// A whole SPDY connection in the binary messages of a WebSocket (KEP-4006).
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// The subprotocols a client offers.
pub(crate) fn offers(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|offer| !offer.is_empty()).collect()
}

impl Channels {
    /// The first of `known` that the client offers.
    ///
    /// # Errors
    ///
    /// When it offers none of them.
    pub(crate) fn choose(headers: &HeaderMap, known: &[Self]) -> Result<Self> {
        let offers = offers(headers);
        let fits = |channels: &&Self| match offers.as_slice() {
            [] => channels.name.is_empty(),
            offers => offers.contains(&channels.name),
        };
        known.iter().find(fits).copied().ok_or_else(|| {
            let known: Vec<_> = known.iter().map(|channels| channels.name).filter(|name| !name.is_empty()).collect();
            Failure::bad_request(format!("none of the subprotocols {offers:?} is spoken here: {known:?} are"))
        })
    }

    /// A message of a channel.
    pub(crate) fn message(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::with_capacity(data.len() / 3 * 4 + 8);
            text.push(char::from(b'0' + channel % 10));
            STANDARD.encode_string(data, &mut text);
            return Message::text(text);
        }
        let mut bytes = Vec::with_capacity(data.len() + 1);
        bytes.push(channel);
        bytes.extend_from_slice(data);
        Message::binary(bytes)
    }

    /// The channel and data of a message, if it is one.
    pub(crate) fn read(self, message: Message) -> Option<(u8, Bytes)> {
        let mut bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => Bytes::copy_from_slice(text.as_bytes()),
            _ => return None,
        };
        let channel = bytes.try_get_u8().ok()?;
        if !self.base64 {
            return Some((channel, bytes));
        }
        let channel = channel.checked_sub(b'0').filter(|channel| *channel < 10)?;
        Some((channel, STANDARD.decode(&bytes).ok()?.into()))
    }
}

/// Writes `messages` to their end and then closes. Pings show whether anybody is there.
pub(crate) async fn send(mut sink: SplitSink<Socket, Message>, mut messages: mpsc::Receiver<Message>, ping: Duration) {
    let mut pings = tokio::time::interval_at(Instant::now() + ping, ping);
    pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let message = tokio::select! {
            message = messages.recv() => message,
            _ = pings.tick() => Some(Message::Ping(Bytes::new())),
        };
        let Some(message) = message else { break };
        if sink.send(message).await.is_err() {
            return;
        }
    }
    let _ = sink.send(goodbye()).await;
}

/// kubectl takes a close without a code for a failure.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::default() }))
}

/// A WebSocket as a stream of bytes: what a client of [`TUNNEL`] sends in binary messages of any size.
pub(crate) struct Tunnel<S> {
    socket: WebSocketStream<S>,
    rest: Bytes,
    closing: bool,
}

impl<S> Tunnel<S> {
    pub(crate) fn new(socket: WebSocketStream<S>) -> Self {
        Self { socket, rest: Bytes::new(), closing: false }
    }
}

fn broken(error: tokio_tungstenite::tungstenite::Error) -> io::Error {
    match error {
        tokio_tungstenite::tungstenite::Error::Io(error) => error,
        error => io::Error::other(error),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let count = bytes.len().min(64 << 10);
        let mut socket = Pin::new(&mut self.socket);
        ready!(socket.as_mut().poll_ready(cx)).map_err(broken)?;
        socket.start_send(Message::binary(Bytes::copy_from_slice(&bytes[..count]))).map_err(broken)?;
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(broken)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            let mut socket = Pin::new(&mut self.socket);
            ready!(socket.as_mut().poll_ready(cx)).map_err(broken)?;
            socket.start_send(goodbye()).map_err(broken)?;
            self.closing = true;
        }
        match ready!(Pin::new(&mut self.socket).poll_flush(cx)) {
            Ok(()) | Err(tokio_tungstenite::tungstenite::Error::ConnectionClosed) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(broken(error))),
        }
    }
}

/// A client that says what it has to say in pieces of at most so many bytes, and closes.
struct Script {
    rest: Bytes,
    piece: usize,
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let count = self.piece.min(self.rest.len()).min(buffer.remaining());
        buffer.put_slice(&self.rest.split_to(count));
        Poll::Ready(Ok(()))
    }
}

/// Reads whatever `bytes` are as frames (RFC 6455), whole and in pieces, as messages of every subprotocol and as the
/// bytes of a tunnel: how they arrive does not matter, and what was read of a channel is written alike.
///
/// For fuzzing only.
///
/// # Panics
///
/// When one of these does not hold.
#[allow(clippy::expect_used, reason = "a panic is what a fuzzer looks for")]
pub(crate) fn fuzz(bytes: &[u8]) {
    use futures::{FutureExt as _, StreamExt as _};
    use tokio::io::AsyncReadExt as _;

    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let bytes = Bytes::copy_from_slice(bytes);
    let script = |piece| tokio::io::join(Script { rest: bytes.clone(), piece }, tokio::io::sink());
    let messages = |piece| {
        let hearing = async {
            let mut heard = Vec::new();
            let mut socket = serve(script(piece)).await;
            while let Some(Ok(message)) = socket.next().await {
                heard.push(message);
            }
            heard
        };
        hearing.now_or_never().expect("a client that has closed is not waited for")
    };
    let piece = usize::from(cut) + 1 + bytes.len() / 512;
    let whole = messages(usize::MAX);
    assert_eq!(whole, messages(piece), "how bytes arrive must not matter");
    let tunnelled = async {
        let mut heard = Vec::new();
        let _ = Tunnel::new(serve(script(piece)).await).read_to_end(&mut heard).await;
        heard
    };
    let tunnelled = tunnelled.now_or_never().expect("a client that has closed is not waited for");
    let binary = whole.iter().take_while(|message| !message.is_close()).filter(|message| message.is_binary());
    let expected: Vec<u8> = binary.flat_map(|message| message.clone().into_data()).collect();
    assert_eq!(tunnelled, expected, "a tunnel carries what is in its binary messages");
    for channels in EXEC.iter().chain(FORWARD) {
        for message in &whole {
            if let Some((channel, data)) = channels.read(message.clone()) {
                // Answers go out on channels of one digit only.
                let again = channels.read(channels.message(channel, &data));
                assert_eq!(again, Some((channel, data)), "{channels:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn headers(offer: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !offer.is_empty() {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, offer.parse().unwrap());
        }
        headers
    }

    #[test]
    fn subprotocols_are_chosen_newest_first() {
        let chosen = |offer, known| Channels::choose(&headers(offer), known).map(|channels| channels.name).ok();
        assert_eq!(chosen("v4.channel.k8s.io, v5.channel.k8s.io", EXEC), Some("v5.channel.k8s.io"));
        assert_eq!(chosen("v4.channel.k8s.io", EXEC), Some("v4.channel.k8s.io"));
        assert_eq!(chosen("base64.channel.k8s.io", EXEC), Some("base64.channel.k8s.io"));
        assert_eq!(chosen("", EXEC), Some(""));
        assert_eq!(chosen("v9.channel.k8s.io", EXEC), None);
        assert_eq!(chosen("v5.channel.k8s.io,v4.channel.k8s.io", FORWARD), Some("v4.channel.k8s.io"));
        assert_eq!(chosen(TUNNEL, FORWARD), None);
    }

    #[tokio::test]
    async fn bytes_go_through_a_tunnel_in_messages_of_any_size() {
        use futures::StreamExt as _;
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let (near, far) = tokio::io::duplex(1000);
        let mut client = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
        let mut tunnel = Tunnel::new(WebSocketStream::from_raw_socket(far, Role::Server, None).await);
        let serving = async move {
            let mut read = [0; 7];
            tunnel.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"abcdefg");
            tunnel.write_all(&vec![1; 200_000]).await.unwrap();
            tunnel.shutdown().await.unwrap();
            assert_eq!(tunnel.read(&mut read).await.unwrap(), 0);
        };
        let asking = async {
            for piece in ["abc", "", "defg"] {
                client.send(Message::binary(piece.as_bytes().to_vec())).await.unwrap();
            }
            client.send(Message::Ping(Bytes::new())).await.unwrap();
            let (mut count, mut code) = (0, None);
            while let Some(Ok(message)) = client.next().await {
                match message {
                    Message::Binary(bytes) => count += bytes.len(),
                    Message::Close(frame) => code = frame.map(|frame| frame.code),
                    _ => {}
                }
            }
            assert_eq!((count, code), (200_000, Some(CloseCode::Normal)));
        };
        tokio::join!(serving, asking);
    }

    proptest! {
        #[test]
        fn messages_are_read_as_written(
            which in 0..EXEC.len(),
            channel in 0..5_u8,
            data in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let channels = EXEC[which];
            let (to, read) = channels.read(channels.message(channel, &data)).unwrap();
            prop_assert_eq!((to, &read[..]), (channel, &data[..]));
        }

        #[test]
        fn whatever_comes_nothing_panics(which in 0..EXEC.len(), data in proptest::collection::vec(any::<u8>(), 0..50)) {
            let _ = EXEC[which].read(Message::binary(data.clone()));
            let _ = EXEC[which].read(Message::text(String::from_utf8_lossy(&data).into_owned()));
        }
    }
}
