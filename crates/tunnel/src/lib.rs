//! Carries byte streams to a cluster that cannot be dialled.
//!
//! An [`agent`] in the cluster dials out, once, over TLS, and then *serves* HTTP/2 on the connection it made; the
//! [`Relay`] at the other end asks for streams on it with `CONNECT` (RFC 9113, 8.5). One connection, many streams, each with
//! flow control of its own. What the bytes are is nobody's business here: an API server's TLS goes through end to end.
//!
//! * A name, not an address, says where a stream leads ([`agent::Config::targets`]): the relay's side chooses among what the
//!   agent's side offers, and reaches nothing else.
//! * A connection that is dead without having said so is found by pings in [`DEAD_AFTER`].
//! * Several agents may serve one member: streams go to the one with the fewest, and a new stream survives the loss of
//!   any but the last. Streams that were open on a connection end with it.
//!
//! Start at [`Relay::open`], then read [`agent::run`].

pub mod agent;
mod relay;
mod stream;

use std::time::Duration;

pub use relay::{Error, Limits, Member, Others, Relay, Who};
pub use stream::Stream;

/// The protocol's name in TLS (ALPN, RFC 7301): another version of it is another name.
pub const PROTOCOL: &[u8] = b"stolos-tunnel/1";

/// How often each side asks whether the other is still there.
pub const PING: Duration = Duration::from_secs(2);

/// How long an answer to that may take.
pub const PONG: Duration = Duration::from_secs(4);

/// After how long a connection that fell silent counts as lost, at the latest.
pub const DEAD_AFTER: Duration = Duration::from_secs(PING.as_secs() + PONG.as_secs());

/// How long dialling with the TLS handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// What one stream may have under way that its reader has not taken yet, in bytes: at 100 ms of distance this is
/// 10 MB/s, where HTTP/2's own 64 KiB would be 0.6.
const STREAM_WINDOW: u32 = 1 << 20;

/// The same for all streams of a connection together: so much that some hundred which nobody reads (a log that is followed
/// behind a pager) hold up no other.
const CONNECTION_WINDOW: u32 = 256 << 20;

/// Bytes in one frame: fewer wake-ups for bulk, and no stream makes the others wait long for it.
const FRAME: u32 = 64 << 10;

/// Why a stream was refused, in words.
const WHY: &str = "stolos-why";
