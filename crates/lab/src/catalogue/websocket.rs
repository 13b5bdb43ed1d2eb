//! The server's side of a WebSocket, as the web servers of the catalogue have it.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use stolos_serve::Stop;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};
use tokio_util::task::TaskTracker;

/// The largest message that is echoed.
const LARGEST: usize = 1 << 20;

/// Whether a request asks for a WebSocket (RFC 6455, section 4.2.1).
pub(super) fn is_asked(request: &Request<Incoming>) -> bool {
    let named = |name: header::HeaderName, word: &str| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        value.split(',').any(|token| token.trim().eq_ignore_ascii_case(word))
    };
    named(header::CONNECTION, "upgrade") && named(header::UPGRADE, "websocket")
}

/// Answers such a request, and echoes what comes until either side ends; `first` is said before.
pub(super) fn echo<B: From<Bytes>>(
    mut request: Request<Incoming>,
    first: Option<String>,
    tasks: &TaskTracker,
    stop: &Stop,
) -> Response<B> {
    let mut response = Response::new(B::from(Bytes::new()));
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    let accepted = derive_accept_key(key.as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    let stop = stop.clone();
    tasks.spawn(async move {
        let talking = async {
            let io = TokioIo::new(upgrade.await.map_err(|error| error.to_string())?);
            let limits = WebSocketConfig::default().max_message_size(Some(LARGEST)).max_frame_size(Some(LARGEST));
            let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(limits)).await;
            if let Some(text) = first {
                socket.send(Message::text(text)).await.map_err(|error| error.to_string())?;
            }
            while let Some(message) = socket.next().await {
                let message = message.map_err(|error| error.to_string())?;
                if message.is_text() || message.is_binary() {
                    socket.send(message).await.map_err(|error| error.to_string())?;
                }
            }
            Ok::<_, String>(())
        };
        tokio::select! {
            ended = talking => if let Err(error) = ended {
                tracing::debug!(error, "WebSocket ended");
            },
            () = stop.asked() => {}
        }
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accepted) = HeaderValue::from_str(&accepted) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accepted);
    }
    response
}
