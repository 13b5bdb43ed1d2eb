//! What fuzz targets call: parsers that nobody else is meant to use from outside.

use crate::inspect::{self, Look};
use crate::{dns, http};

/// Reads `bytes` as the beginning of a connection, whole and cut short. What was read of a part stays true of the whole.
pub fn beginning(bytes: &[u8]) {
    fn steady<T: PartialEq + std::fmt::Debug>(bytes: &[u8], look: impl Fn(&[u8]) -> Look<T>) {
        let whole = look(bytes);
        for cut in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
            match look(&bytes[..cut]) {
                Look::More => {}
                part => assert_eq!(part, whole, "{} of {} bytes", cut, bytes.len()),
            }
        }
    }
    steady(bytes, inspect::proxy_v2);
    steady(bytes, inspect::client_hello);
    steady(bytes, inspect::http);
}

/// Reads bytes as HTTP/1.1 requests of a client, whole and in pieces, up to where a route is looked for.
///
/// # Panics
///
/// When how they arrive matters, or a request goes on that can be read in two ways.
pub fn http(bytes: &[u8]) {
    http::fuzz::requests_alike(bytes);
}

/// Reads bytes as a question to the workload's name server and as an answer to its resolver.
///
/// # Panics
///
/// When a question is not answered for itself.
pub fn dns(bytes: &[u8]) {
    dns::fuzz(bytes);
}
