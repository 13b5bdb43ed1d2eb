//! What a proxy does to headers. Pure.

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};

use crate::config::ForwardCert;
use crate::tls::Peer;

pub(crate) static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) static FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) static CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
pub(crate) static ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
pub(crate) static SERVICE_TIME: HeaderName = HeaderName::from_static("x-envoy-upstream-service-time");
/// What a proxy says of its workload to the proxy at the other end, and under which name.
pub(crate) static PEER: HeaderName = HeaderName::from_static("x-envoy-peer-metadata");
pub(crate) static PEER_ID: HeaderName = HeaderName::from_static("x-envoy-peer-metadata-id");
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Removes what concerns one connection only, and what the `connection` header names.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if let Some(connection) = headers.remove(header::CONNECTION) {
        for name in connection.to_str().unwrap_or_default().split(',') {
            let name = name.trim();
            // `close` and `keep-alive` are not headers; a name that is not one cannot be there.
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes())
                && !matches!(name.as_str(), "host" | "content-length" | "x-forwarded-client-cert" | "x-forwarded-proto")
            {
                headers.remove(name);
            }
        }
    }
    for name in [&KEEP_ALIVE, &PROXY_CONNECTION, &header::TRANSFER_ENCODING, &header::UPGRADE] {
        headers.remove(name);
    }
    // Of `te` only `trailers` concerns the other end; HTTP/2 forbids anything else.
    let trailers = |te: &HeaderValue| {
        te.as_bytes().split(|byte| *byte == b',').any(|one| one.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    };
    if headers.get_all(header::TE).iter().any(trailers) {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    } else {
        headers.remove(header::TE);
    }
}

/// Says where a request came from, after whatever the client says of it (Envoy's `use_remote_address`).
pub(crate) fn forwarded_for(headers: &mut HeaderMap, client: std::net::IpAddr) {
    let mut all: Vec<u8> = Vec::new();
    for value in headers.get_all(&FORWARDED_FOR) {
        all.extend_from_slice(value.as_bytes());
        all.extend_from_slice(b",");
    }
    all.extend_from_slice(client.to_string().as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&all) {
        headers.insert(&FORWARDED_FOR, value);
    }
}

/// A path without dot segments (`%2e` is a dot, a backslash is a slash); `None` when it is so already.
pub(crate) fn normalized(path: &str, merge_slashes: bool) -> Option<String> {
    let suspicious = path.contains("/.") || path.contains('\\') || path.contains("%2e") || path.contains("%2E");
    let doubled = merge_slashes && path.contains("//");
    if !suspicious && !doubled {
        return None;
    }
    let dots = path.replace('\\', "/").replace("%2e", ".").replace("%2E", ".");
    let mut kept: Vec<&str> = Vec::new();
    let mut open = false;
    for segment in dots.split('/').skip(1) {
        open = matches!(segment, "." | ".." | "");
        match segment {
            "." => {}
            ".." => drop(kept.pop()),
            "" if merge_slashes => {}
            _ => kept.push(segment),
        }
    }
    // What ended in a slash, or in dots that stand for a folder, still does.
    let end = if open && kept.last().is_some_and(|last| !last.is_empty()) { "/" } else { "" };
    Some(format!("/{}{end}", kept.join("/")))
}

/// The protocol a request wants to go over to.
pub(crate) fn upgrade(method: &Method, headers: &HeaderMap) -> Option<String> {
    let asked = headers.get(header::CONNECTION)?.to_str().ok()?;
    let asked = asked.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let to = headers.get(header::UPGRADE)?.to_str().ok()?.to_ascii_lowercase();
    (asked && *method != Method::CONNECT && to != "h2c").then_some(to)
}

/// Whether this is gRPC: Envoy's rule, by which gRPC-Web is none.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"));
    kind.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// What a status of HTTP is in gRPC (the mapping of gRPC's own documents, which Envoy follows).
pub(crate) fn grpc_status(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// A text as `grpc-message` carries it: percent-encoded outside of printable ASCII.
pub(crate) fn grpc_message(text: &str) -> Option<HeaderValue> {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    HeaderValue::from_str(&out).ok()
}

/// Who the client is, as `x-forwarded-client-cert` says it.
pub(crate) fn client_cert(own: &str, peer: &Peer) -> Option<HeaderValue> {
    let subject = peer.subject.replace('\\', "\\\\").replace('"', "\\\"");
    let text = format!("By={own};Hash={};Subject=\"{subject}\";URI={}", peer.hash, peer.uri);
    HeaderValue::from_str(&text).ok()
}

/// Brings `x-forwarded-client-cert` in line. `current` is the client of this connection, if it showed who it is.
pub(crate) fn forward_client_cert(headers: &mut HeaderMap, how: ForwardCert, current: Option<&HeaderValue>) {
    if how == ForwardCert::Always {
        return;
    }
    let Some(current) = current else {
        // Whoever does not show who it is cannot say who others are.
        headers.remove(&CLIENT_CERT);
        return;
    };
    match how {
        ForwardCert::Sanitize => drop(headers.remove(&CLIENT_CERT)),
        ForwardCert::Set => drop(headers.insert(&CLIENT_CERT, current.clone())),
        ForwardCert::Append => {
            let before = headers.get(&CLIENT_CERT).map(|value| value.as_bytes().to_vec());
            let value = match before {
                Some(before) => HeaderValue::from_bytes(&[&before, &b","[..], current.as_bytes()].concat()).ok(),
                None => Some(current.clone()),
            };
            if let Some(value) = value {
                headers.insert(&CLIENT_CERT, value);
            }
        }
        ForwardCert::Forward | ForwardCert::Always => {}
    }
}

/// What the proxy itself answers, with the flag and the words Envoy uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) status: StatusCode,
    pub(crate) flags: &'static str,
    pub(crate) details: &'static str,
    pub(crate) body: &'static str,
}

const fn local(status: StatusCode, flags: &'static str, details: &'static str, body: &'static str) -> Local {
    Local { status, flags, details, body }
}

pub(crate) const NO_ROUTE: Local = local(StatusCode::NOT_FOUND, "NR", "route_not_found", "");
pub(crate) const BAD_REQUEST: Local = local(StatusCode::BAD_REQUEST, "DPE", "bad_request", "Bad Request");
pub(crate) const TOO_MANY_HEADERS: Local =
    local(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "DPE", "http1.too_many_headers", "");
pub(crate) const NO_UPGRADE: Local = local(StatusCode::FORBIDDEN, "", "upgrade_failed", "");
pub(crate) const DENIED: Local =
    local(StatusCode::FORBIDDEN, "", "rbac_access_denied_matched_policy[none]", "RBAC: access denied");
pub(crate) const NO_CLUSTER: Local = local(StatusCode::SERVICE_UNAVAILABLE, "NC", "cluster_not_found", "");
pub(crate) const NO_HOST: Local =
    local(StatusCode::SERVICE_UNAVAILABLE, "UH", "no_healthy_upstream", "no healthy upstream");
pub(crate) const OVERFLOW: Local = local(
    StatusCode::SERVICE_UNAVAILABLE,
    "UO",
    "overflow",
    "upstream connect error or disconnect/reset before headers. reset reason: overflow",
);
pub(crate) const NO_CONNECTION: Local = local(
    StatusCode::SERVICE_UNAVAILABLE,
    "UF",
    "upstream_reset_before_response_started{connection_failure}",
    "upstream connect error or disconnect/reset before headers. reset reason: connection failure",
);
pub(crate) const RESET: Local = local(
    StatusCode::SERVICE_UNAVAILABLE,
    "UC",
    "upstream_reset_before_response_started{connection_termination}",
    "upstream connect error or disconnect/reset before headers. reset reason: connection termination",
);
pub(crate) const TIMEOUT: Local =
    local(StatusCode::GATEWAY_TIMEOUT, "UT", "response_timeout", "upstream request timeout");

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(rows: &[(&'static str, &'static str)]) -> HeaderMap {
        let row = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn the_edge_adds_where_a_request_came_from_to_what_its_client_says() {
        let mut headers = HeaderMap::new();
        headers.append("x-forwarded-for", "192.0.2.1".parse().unwrap());
        headers.append("x-forwarded-for", "192.0.2.2, 192.0.2.3".parse().unwrap());
        forwarded_for(&mut headers, "203.0.113.9".parse().unwrap());
        assert_eq!(headers.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(headers["x-forwarded-for"], "192.0.2.1,192.0.2.2, 192.0.2.3,203.0.113.9");
    }

    #[test]
    fn what_concerns_one_connection_goes_no_further() {
        let mut map = headers(&[
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers"),
            ("host", "a"),
        ]);
        remove_hop_by_hop(&mut map);
        assert_eq!(map, headers(&[("te", "trailers"), ("host", "a")]));
        for (said, expected) in [("gzip", None), ("gzip;q=0.5, Trailers", Some("trailers")), ("xtrailers", None)] {
            let mut map = headers(&[("te", said)]);
            remove_hop_by_hop(&mut map);
            assert_eq!(map.get("te").map(|te| te.to_str().unwrap()), expected, "{said}");
        }
    }

    #[test]
    fn grpc_is_told_apart_and_spoken_to_in_its_own_words() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            assert_eq!(is_grpc(&headers(&[("content-type", kind)])), expected, "{kind}");
        }
        assert_eq!(grpc_message("50% off\n\u{e9}").unwrap(), "50%25 off%0A%C3%A9");
        let codes = [400, 403, 404, 503, 504, 500].map(|code| grpc_status(StatusCode::from_u16(code).unwrap()));
        assert_eq!(codes, [13, 7, 12, 14, 14, 2]);
    }

    #[test]
    fn paths_lose_their_dots() {
        for (path, merge, expected) in [
            ("/a/b", false, None),
            ("/a/../b", false, Some("/b")),
            ("/a/./b/", false, Some("/a/b/")),
            ("/../../etc", false, Some("/etc")),
            ("/a/%2e%2E/b", false, Some("/b")),
            ("/a\\..\\b", false, Some("/b")),
            ("/a/..", false, Some("/")),
            ("/a/b/..", false, Some("/a/")),
            ("/a//b", true, Some("/a/b")),
            ("/.well-known/x", false, Some("/.well-known/x")),
            ("//", true, Some("/")),
        ] {
            assert_eq!(normalized(path, merge).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn a_client_is_appended_and_a_liar_is_silenced() {
        let peer = Peer { uri: "spiffe://td/ns/a/sa/b".into(), hash: "ab".into(), subject: String::new() };
        let current = client_cert("spiffe://td/ns/c/sa/d", &peer).unwrap();
        let mut map = headers(&[("x-forwarded-client-cert", "By=x")]);
        forward_client_cert(&mut map, ForwardCert::Append, Some(&current));
        insta::assert_snapshot!(map[&CLIENT_CERT].to_str().unwrap(),
            @r#"By=x,By=spiffe://td/ns/c/sa/d;Hash=ab;Subject="";URI=spiffe://td/ns/a/sa/b"#);
        forward_client_cert(&mut map, ForwardCert::Append, None);
        assert!(map.is_empty());
    }
}
