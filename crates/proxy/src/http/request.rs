//! A request on its way in: whom it is for, what is known of its client, and the form in which it goes on.

use base64::Engine as _;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Uri, Version};

use super::exchange::Exchange;
use super::{Connection, headers};
use crate::config::Side;
use crate::route::{Forward, Route};

/// The authority a request is for: the URI's, else the Host header's.
pub(super) fn authority(parts: &Parts) -> String {
    let host = || parts.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    parts.uri.authority().map(|authority| authority.as_str()).or_else(host).unwrap_or_default().to_owned()
}

/// Makes an upgrade of HTTP/1.1 of an extended CONNECT (RFC 8441), so that what follows knows one form only. Whether it
/// was one.
pub(super) fn extended_connect<B>(request: &mut Request<B>) -> bool {
    if *request.method() != Method::CONNECT {
        return false;
    }
    let Some(protocol) = request.extensions_mut().remove::<hyper::ext::Protocol>() else { return false };
    let Ok(protocol) = HeaderValue::from_str(protocol.as_str()) else { return false };
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
    // HTTP/2 needs no proof that the other end understood; a server of HTTP/1.1 asks for something to prove it with.
    let key = base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 16]>());
    if let Ok(key) = HeaderValue::from_str(&key) {
        headers.entry(header::SEC_WEBSOCKET_KEY).or_insert(key);
    }
    true
}

pub(super) fn scheme(connection: &Connection) -> &'static str {
    if connection.arrived.tls { "https" } else { "http" }
}

/// Makes the request one of HTTP/1.1 with a Host header, with an id, and with what is known of its client.
pub(super) fn prepare(connection: &Connection, parts: &mut Parts) {
    if let Some(authority) = parts.uri.authority() {
        if let Ok(host) = HeaderValue::from_str(authority.as_str()) {
            parts.headers.insert(header::HOST, host);
        }
        let path = parts.uri.path_and_query().cloned();
        parts.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    let http = &connection.http;
    if http.normalize
        && let Some(path) = headers::normalized(parts.uri.path(), http.merge_slashes)
    {
        set_path(parts, &path);
    }
    if connection.http.request_id && !parts.headers.contains_key(&headers::REQUEST_ID) {
        // From the thread's own generator (ChaCha, seeded by the system), which needs no system call every time.
        let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
        let mut text = uuid::Uuid::encode_buffer();
        if let Ok(id) = HeaderValue::from_str(id.hyphenated().encode_lower(&mut text)) {
            parts.headers.insert(&headers::REQUEST_ID, id);
        }
    }
    if http.edge {
        headers::forwarded_for(&mut parts.headers, connection.arrived.remote.ip());
        parts.headers.remove(&headers::FORWARDED_PROTO);
    }
    if !parts.headers.contains_key(&headers::FORWARDED_PROTO) {
        parts.headers.insert(&headers::FORWARDED_PROTO, HeaderValue::from_static(scheme(connection)));
    }
    let current = connection.client_cert.as_ref();
    headers::forward_client_cert(&mut parts.headers, connection.http.forward_cert, current);
    // Several cookies are one header in HTTP/1.1.
    if parts.version == Version::HTTP_2 && parts.headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let all: Vec<&[u8]> = parts.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(one) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
            parts.headers.insert(header::COOKIE, one);
        }
    }
}

/// Takes from a request what the client's proxy says of itself; whether it said anything.
///
/// What comes in over anything but mutual TLS is not believed, and none of it reaches the application.
pub(super) fn introduce_client(exchange: &mut Exchange, parts: &mut Parts) -> bool {
    let connection = &exchange.connection;
    if connection.http.side == Side::Outbound {
        return false;
    }
    parts.headers.remove(&headers::PEER_ID);
    let Some(said) = parts.headers.remove(&headers::PEER) else { return false };
    if connection.arrived.peer.is_some() {
        exchange.peer = connection.peers.get(&said);
    }
    true
}

pub(super) fn rewrite(parts: &mut Parts, forward: &Forward, route: &Route) {
    if let Some(host) = &forward.host_rewrite {
        parts.headers.insert(header::HOST, host.clone());
    }
    let path = match (&forward.prefix_rewrite, &forward.regex_rewrite) {
        (Some(prefix), _) => route.path.rewritten(parts.uri.path(), prefix),
        (None, Some((pattern, replacement))) => {
            pattern.replace_all(parts.uri.path(), replacement.as_str()).into_owned()
        }
        (None, None) => return,
    };
    set_path(parts, &path);
}

fn set_path(parts: &mut Parts, path: &str) {
    let whole = match parts.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    if let Ok(uri) = whole.parse() {
        parts.uri = uri;
    }
}
