//! Requests that two parties could read in two ways are refused before anybody acts on them. Pure.
//!
//! A proxy that frames messages itself cannot be made to send half a request along with another's body; what is left
//! of request smuggling are requests whose *meaning* differs between it and the application: for whom they are, where
//! they lead, how long they are. Of a length given twice in different ways hyper keeps `chunked`, drops the other and
//! ends the connection after the response (RFC 9112, section 6.1); lengths that disagree, folded lines and bare
//! control characters it refuses itself.

use http::header;
use http::request::Parts;
use http::{Method, Version};

use super::headers::{self, Local};

/// As many header lines as Envoy takes.
const MOST_HEADERS: usize = 100;

/// Whether a request means the same to everybody.
pub(super) fn judge(parts: &Parts) -> Result<(), Local> {
    if parts.headers.len() > MOST_HEADERS {
        return Err(headers::TOO_MANY_HEADERS);
    }
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    // RFC 9112, section 3.2: 400 for more than one.
    if another.is_some() {
        return Err(headers::BAD_REQUEST);
    }
    let authority = parts.uri.authority().map(|authority| authority.as_str());
    // RFC 9113, section 8.3.1: a Host that names somebody else is malformed. An absolute URI of HTTP/1.1 overrules
    // Host instead (RFC 9112, section 3.2.2); `prepare` sees to that.
    if parts.version == Version::HTTP_2
        && let (Some(host), Some(authority)) = (host, authority)
        && !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes())
    {
        return Err(headers::BAD_REQUEST);
    }
    let named = authority.map(str::as_bytes).or(host.map(|host| host.as_bytes())).unwrap_or_default();
    if !is_authority(named) {
        return Err(headers::BAD_REQUEST);
    }
    let path = parts.uri.path();
    let whole_server = path == "*" && parts.method == Method::OPTIONS;
    let absolute = path.is_empty() && authority.is_some();
    // Anything else would be another form of request target for whoever reads it next.
    if !(path.starts_with('/') || whole_server || absolute) {
        return Err(headers::BAD_REQUEST);
    }
    // Lengths are framing's business; one that framing has not understood must not reach anybody.
    let mut lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter();
    let plain = |value: &http::HeaderValue| !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit);
    if let Some(first) = lengths.next()
        && (!plain(first) || lengths.next().is_some() || parts.headers.contains_key(header::TRANSFER_ENCODING))
    {
        return Err(headers::BAD_REQUEST);
    }
    Ok(())
}

/// Whether this is a host with or without a port, and nothing in front (RFC 9110, section 4.2.4) or behind.
fn is_authority(text: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(byte);
    text.len() <= 255 && text.iter().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;
    use proptest::prelude::*;

    fn verdict(request: http::request::Builder) -> &'static str {
        let (parts, ()) = request.body(()).unwrap().into_parts();
        match judge(&parts) {
            Ok(()) => "goes on",
            Err(local) if local == headers::TOO_MANY_HEADERS => "too many headers",
            Err(_) => "bad request",
        }
    }

    #[test]
    fn requests_that_can_be_read_in_two_ways_are_refused() {
        let h1 = || Request::builder().uri("/a");
        let h2 = |uri: &str| Request::builder().version(Version::HTTP_2).uri(uri);
        let many = || (0..101).fold(h1().header("host", "a"), |request, _| request.header("x", "y"));
        let rows: [(&str, http::request::Builder, &str); 15] = [
            ("a host", h1().header("host", "a:80"), "goes on"),
            ("an address", h1().header("host", "[::1]:80"), "goes on"),
            ("two hosts", h1().header("host", "a").header("host", "a"), "bad request"),
            ("a user", h1().header("host", "a@b"), "bad request"),
            ("a path in the host", h1().header("host", "a/b"), "bad request"),
            ("a list in the host", h1().header("host", "a,b"), "bad request"),
            ("absolute", Request::builder().uri("http://b/x").header("host", "a"), "goes on"),
            ("absolute without a path", Request::builder().uri("http://b").header("host", "b"), "goes on"),
            ("the same twice", h2("http://b/x").header("host", "B"), "goes on"),
            ("another host", h2("http://b/x").header("host", "a"), "bad request"),
            ("the whole server", Request::options("*").header("host", "a"), "goes on"),
            ("all of it, got", Request::get("*").header("host", "a"), "bad request"),
            ("a signed length", h1().header("host", "a").header("content-length", "+5"), "bad request"),
            (
                "two lengths",
                h1().header("host", "a").header("content-length", "5").header("content-length", "5"),
                "bad request",
            ),
            (
                "both",
                h1().header("host", "a").header("content-length", "5").header("transfer-encoding", "chunked"),
                "bad request",
            ),
        ];
        for (what, request, expected) in rows {
            assert_eq!(verdict(request), expected, "{what}");
        }
        assert_eq!(verdict(many()), "too many headers");
    }

    proptest! {
        #[test]
        fn what_goes_on_names_one_host_and_one_path(
            uri in "[a-z/:@*?.]{1,20}", hosts in proptest::collection::vec("[ -~]{0,12}", 0..3), h2: bool,
        ) {
            let mut request = Request::builder().uri(&*uri);
            if h2 {
                request = request.version(Version::HTTP_2);
            }
            for host in &hosts {
                request = request.header("host", host);
            }
            let Ok(request) = request.body(()) else { return Ok(()) };
            let (parts, ()) = request.into_parts();
            if judge(&parts).is_ok() {
                prop_assert!(parts.headers.get_all("host").iter().count() <= 1);
                for host in parts.headers.get_all("host") {
                    let bad = |byte: &u8| b"/@,\\ #?".contains(byte);
                    prop_assert!(parts.uri.authority().is_some() || !host.as_bytes().iter().any(bad));
                }
                let path = parts.uri.path();
                prop_assert!(path.starts_with('/') || path.is_empty());
            }
        }
    }
}
