//! What fuzz targets call: ways in that nobody else is meant to use.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use stolos_serve::listen::Peer;
use tokio::io::DuplexStream;

use crate::auth::{Caller, User};
use crate::{Server, route};

/// An HTTP/1.1 connection inside the process: of a client with all rights if it is `trusted`, of anybody otherwise.
#[must_use]
pub fn connect(server: &Server, trusted: bool) -> DuplexStream {
    let api = server.api();
    let caller = match trusted {
        true => Caller::Inside(User::internal()),
        false => Caller::outside(&Peer { address: server.address(), certificates: Arc::from([]) }),
    };
    let caller = Arc::new(caller);
    let (near, far) = tokio::io::duplex(64 << 10);
    let service =
        hyper::service::service_fn(move |request| route::handle(Arc::clone(&api), Arc::clone(&caller), request));
    let serving =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades();
    tokio::spawn(async move {
        if let Err(error) = serving.await {
            tracing::debug!(%error, "connection inside the process ended");
        }
    });
    near
}

/// Reads bytes as SPDY frames, whole and in pieces.
///
/// # Panics
///
/// When how they arrive matters, or what was read cannot be written and read again.
pub fn spdy(bytes: &[u8]) {
    crate::stream::fuzz_spdy(bytes);
}

/// Reads bytes as WebSocket frames, whole and in pieces.
///
/// # Panics
///
/// When how they arrive matters, or a channel's message is not written as it was read.
pub fn websocket(bytes: &[u8]) {
    crate::stream::fuzz_websocket(bytes);
}

/// Reads bytes as a bearer token, and as header and claims (a zero byte between them) of a token that this server has
/// signed, with `$UID` standing for the UID of service account `default/a`. Whether the second was believed.
///
/// # Panics
///
/// When a token that nobody signed is believed, or one stands for more than its claims say.
#[must_use]
pub fn token(server: &Server, bytes: &[u8]) -> bool {
    crate::auth::fuzz_token(&server.api(), bytes)
}
