//! Which cluster a request goes to, and under which terms. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use regex::Regex;

/// The routes of a listener, compiled.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) hosts: Vec<Host>,
    /// Exact domains, in lower case.
    pub(crate) exact: HashMap<String, usize>,
    /// `*.shop` as `.shop`, longest first.
    pub(crate) suffixes: Vec<(String, usize)>,
    /// `shop.*` as `shop.`, longest first.
    pub(crate) prefixes: Vec<(String, usize)>,
    pub(crate) any: Option<usize>,
    pub(crate) ignore_port: bool,
    pub(crate) headers: HeaderChanges,
}

/// A virtual host.
#[derive(Debug, Default)]
pub(crate) struct Host {
    pub(crate) name: Arc<str>,
    pub(crate) routes: Vec<Route>,
    pub(crate) headers: HeaderChanges,
    /// Whether the upstream is told how many attempts there were.
    pub(crate) attempt_count: bool,
}

/// One route.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) name: Arc<str>,
    pub(crate) path: Path,
    pub(crate) case_sensitive: bool,
    pub(crate) headers: Vec<HeaderMatch>,
    pub(crate) query: Vec<(String, Option<Text>)>,
    pub(crate) grpc: bool,
    pub(crate) action: Action,
    pub(crate) changes: HeaderChanges,
}

/// What a path must be.
#[derive(Debug)]
pub(crate) enum Path {
    Prefix(String),
    Exact(String),
    /// The whole path.
    Regex(Regex),
    /// `/api` fits `/api` and `/api/…`, not `/apix`.
    Segment(String),
}

/// What a text must be.
#[derive(Debug)]
pub(crate) enum Text {
    Exact(String, bool),
    Prefix(String, bool),
    Suffix(String, bool),
    Contains(String, bool),
    Regex(Regex),
}

impl Text {
    pub(crate) fn fits(&self, text: &str) -> bool {
        let fold = |ignore: bool, text: &str| if ignore { text.to_ascii_lowercase() } else { text.to_owned() };
        match self {
            Self::Exact(wanted, ignore) => {
                if *ignore {
                    wanted.eq_ignore_ascii_case(text)
                } else {
                    wanted == text
                }
            }
            Self::Prefix(wanted, ignore) => fold(*ignore, text).starts_with(&fold(*ignore, wanted)),
            Self::Suffix(wanted, ignore) => fold(*ignore, text).ends_with(&fold(*ignore, wanted)),
            Self::Contains(wanted, ignore) => fold(*ignore, text).contains(&fold(*ignore, wanted)),
            Self::Regex(regex) => regex.is_match(text),
        }
    }
}

/// What a header must be.
#[derive(Debug)]
pub(crate) struct HeaderMatch {
    pub(crate) name: HeaderKey,
    pub(crate) wanted: HeaderWanted,
    pub(crate) invert: bool,
    pub(crate) missing_is_empty: bool,
}

/// A header, or what HTTP/2 would carry as one.
#[derive(Debug)]
pub(crate) enum HeaderKey {
    Method,
    Path,
    Authority,
    Scheme,
    Named(HeaderName),
}

/// What is asked of a header.
#[derive(Debug)]
pub(crate) enum HeaderWanted {
    Present(bool),
    Text(Text),
    Range(i64, i64),
}

/// Where a matching request goes.
#[derive(Debug)]
pub(crate) enum Action {
    Forward(Box<Forward>),
    Respond { status: StatusCode, body: bytes::Bytes },
    Redirect(Redirect),
}

/// How a request is sent on.
#[derive(Debug, Default)]
pub(crate) struct Forward {
    /// Names and weights.
    pub(crate) clusters: Vec<(String, u32)>,
    /// `None` is no limit.
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: Retry,
    pub(crate) prefix_rewrite: Option<String>,
    pub(crate) regex_rewrite: Option<(Regex, String)>,
    pub(crate) host_rewrite: Option<HeaderValue>,
    pub(crate) no_cluster: StatusCode,
    pub(crate) upgrades: Vec<String>,
}

/// A redirect.
#[derive(Debug, Default)]
pub(crate) struct Redirect {
    pub(crate) status: StatusCode,
    pub(crate) https: bool,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) path: Option<String>,
    pub(crate) prefix: Option<String>,
    pub(crate) strip_query: bool,
}

/// When a request is sent once more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Retry {
    pub(crate) most: u32,
    pub(crate) per_try: Option<Duration>,
    /// No connection could be made.
    pub(crate) connect_failure: bool,
    /// The connection ended before the request was sent.
    pub(crate) reset_before_request: bool,
    /// The connection ended before the first byte of the response.
    pub(crate) reset: bool,
    /// An HTTP/2 peer refused the stream.
    pub(crate) refused_stream: bool,
    pub(crate) gateway_error: bool,
    pub(crate) any_5xx: bool,
    pub(crate) statuses: Vec<u16>,
    /// gRPC status codes.
    pub(crate) grpc: Vec<u16>,
    /// On another host than those tried.
    pub(crate) other_host: bool,
    pub(crate) back_off: (Duration, Duration),
}

/// Why an attempt gave no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection.
    Connect,
    /// The connection ended before the request was on its way.
    NotSent,
    /// The connection ended before the first byte of the response.
    Reset,
    /// The peer refused the stream, unprocessed.
    Refused,
    /// The attempt's own time was up.
    Timeout,
}

impl Retry {
    /// Whether an attempt that failed like this may be repeated.
    ///
    /// A request that may have been acted upon is repeated only when that does no harm; in this the proxy is stricter
    /// than Envoy, whose `reset` repeats any method.
    pub(crate) fn after_failure(&self, failure: Failure, method: &Method) -> bool {
        match failure {
            Failure::Connect => self.connect_failure || self.reset || self.any_5xx || self.gateway_error,
            Failure::NotSent => self.reset_before_request || self.reset || self.connect_failure || self.any_5xx,
            Failure::Refused => self.refused_stream || self.reset || self.any_5xx,
            Failure::Reset => {
                method.is_idempotent()
                    && (self.reset || self.reset_before_request || self.any_5xx || self.gateway_error)
            }
            Failure::Timeout => method.is_idempotent() && (self.any_5xx || self.gateway_error || self.reset),
        }
    }

    /// Whether a response with this status may be thrown away for another try.
    pub(crate) fn after_response(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let code = status.as_u16();
        if (self.any_5xx && status.is_server_error())
            || (self.gateway_error && matches!(code, 502..=504))
            || self.statuses.contains(&code)
        {
            return true;
        }
        let grpc = || headers.get("grpc-status")?.to_str().ok()?.parse::<u16>().ok();
        !self.grpc.is_empty() && grpc().is_some_and(|status| self.grpc.contains(&status))
    }
}

/// Headers to add and remove.
#[derive(Debug, Default)]
pub(crate) struct HeaderChanges {
    pub(crate) request_add: Vec<(HeaderName, HeaderValue, Add)>,
    pub(crate) request_remove: Vec<HeaderName>,
    pub(crate) response_add: Vec<(HeaderName, HeaderValue, Add)>,
    pub(crate) response_remove: Vec<HeaderName>,
}

/// What is done when a header to add is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Add {
    Append,
    IfAbsent,
    Overwrite,
    OverwriteIfPresent,
}

impl HeaderChanges {
    /// Changes a request's headers.
    pub(crate) fn request(&self, headers: &mut HeaderMap) {
        change(headers, &self.request_remove, &self.request_add);
    }

    /// Changes a response's headers.
    pub(crate) fn response(&self, headers: &mut HeaderMap) {
        change(headers, &self.response_remove, &self.response_add);
    }
}

fn change(headers: &mut HeaderMap, remove: &[HeaderName], add: &[(HeaderName, HeaderValue, Add)]) {
    for name in remove {
        headers.remove(name);
    }
    for (name, value, how) in add {
        let present = headers.contains_key(name);
        match how {
            Add::Append => drop(headers.append(name.clone(), value.clone())),
            Add::IfAbsent if present => {}
            Add::OverwriteIfPresent if !present => {}
            Add::IfAbsent | Add::Overwrite | Add::OverwriteIfPresent => {
                drop(headers.insert(name.clone(), value.clone()));
            }
        }
    }
}

/// What routing looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a Method,
    pub(crate) authority: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) scheme: &'a str,
    pub(crate) headers: &'a HeaderMap,
}

impl Table {
    /// The virtual host and route of a request.
    pub(crate) fn find(&self, asked: Asked<'_>) -> Option<(&Host, &Route)> {
        let host = &self.hosts[self.host(asked.authority)?];
        let route = host.routes.iter().find(|route| route.fits(asked))?;
        Some((host, route))
    }

    fn host(&self, authority: &str) -> Option<usize> {
        let authority = if self.ignore_port { without_port(authority) } else { authority };
        if let Some(exact) = self.exact.get(authority) {
            return Some(*exact);
        }
        let lower;
        let authority = if authority.bytes().any(|b| b.is_ascii_uppercase()) {
            lower = authority.to_ascii_lowercase();
            if let Some(exact) = self.exact.get(&lower) {
                return Some(*exact);
            }
            lower.as_str()
        } else {
            authority
        };
        // A wildcard stands for at least one character.
        let longer = |part: &str| authority.len() > part.len();
        let suffix = self.suffixes.iter().find(|(part, _)| authority.ends_with(part.as_str()) && longer(part));
        let prefix = || self.prefixes.iter().find(|(part, _)| authority.starts_with(part.as_str()) && longer(part));
        suffix.or_else(prefix).map(|(_, at)| *at).or(self.any)
    }
}

/// The host of an authority.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}

impl Route {
    fn fits(&self, asked: Asked<'_>) -> bool {
        self.path.fits(asked.path, self.case_sensitive)
            && self.headers.iter().all(|header| header.fits(asked))
            && self.query.iter().all(|(name, wanted)| query_fits(asked.query, name, wanted.as_ref()))
            && (!self.grpc
                || asked.headers.get("content-type").is_some_and(|v| v.as_bytes().starts_with(b"application/grpc")))
    }
}

fn query_fits(query: Option<&str>, name: &str, wanted: Option<&Text>) -> bool {
    let pairs = query.unwrap_or_default().split('&');
    let mut found = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).filter(|(key, _)| *key == name);
    found.next().is_some_and(|(_, value)| wanted.is_none_or(|wanted| wanted.fits(value)))
}

impl Path {
    fn fits(&self, path: &str, case_sensitive: bool) -> bool {
        let starts = |wanted: &str| {
            let head = path.as_bytes().get(..wanted.len());
            head.is_some_and(|head| match case_sensitive {
                true => head == wanted.as_bytes(),
                false => head.eq_ignore_ascii_case(wanted.as_bytes()),
            })
        };
        match self {
            Self::Prefix(wanted) => starts(wanted),
            Self::Exact(wanted) => path.len() == wanted.len() && starts(wanted),
            Self::Segment(wanted) => starts(wanted) && matches!(path.as_bytes().get(wanted.len()), None | Some(b'/')),
            Self::Regex(regex) => regex.is_match(path),
        }
    }

    /// The path after `prefix_rewrite`.
    pub(crate) fn rewritten(&self, path: &str, replacement: &str) -> String {
        match self {
            Self::Prefix(head) | Self::Exact(head) | Self::Segment(head) => {
                format!("{replacement}{}", path.get(head.len()..).unwrap_or_default())
            }
            Self::Regex(_) => replacement.to_owned(),
        }
    }
}

impl HeaderMatch {
    pub(crate) fn fits(&self, asked: Asked<'_>) -> bool {
        let several;
        let value = match &self.name {
            HeaderKey::Method => Some(asked.method.as_str()),
            HeaderKey::Path => Some(asked.path),
            HeaderKey::Authority => Some(asked.authority),
            HeaderKey::Scheme => Some(asked.scheme),
            HeaderKey::Named(name) => {
                let mut values = asked.headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default());
                match (values.next(), values.next()) {
                    (first, None) => first,
                    (first, second) => {
                        several = first.into_iter().chain(second).chain(values).collect::<Vec<_>>().join(",");
                        Some(several.as_str())
                    }
                }
            }
        };
        if let HeaderWanted::Present(wanted) = self.wanted {
            return (value.is_some() == wanted) != self.invert;
        }
        let value = match value {
            Some(value) => value,
            None if self.missing_is_empty => "",
            // As in Envoy: what is not there fits nothing, inverted or not.
            None => return false,
        };
        let fits = match &self.wanted {
            HeaderWanted::Present(_) => true,
            HeaderWanted::Text(text) => text.fits(value),
            HeaderWanted::Range(from, to) => value.parse::<i64>().is_ok_and(|n| (*from..*to).contains(&n)),
        };
        fits != self.invert
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: Path) -> Route {
        Route {
            name: "".into(),
            path,
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            grpc: false,
            action: Action::Respond { status: StatusCode::OK, body: bytes::Bytes::new() },
            changes: HeaderChanges::default(),
        }
    }

    fn asked<'a>(authority: &'a str, path: &'a str, headers: &'a HeaderMap) -> Asked<'a> {
        Asked { method: &Method::GET, authority, path, query: Some("a=1&b"), scheme: "http", headers }
    }

    #[test]
    fn hosts_are_found_exactly_then_by_the_longest_wildcard() {
        let names = ["exact", "suffix", "longer suffix", "prefix", "any"];
        let hosts = names.map(|name| Host {
            name: name.into(),
            routes: vec![route(Path::Prefix("/".into()))],
            ..Host::default()
        });
        let table = Table {
            hosts: hosts.into(),
            exact: [("helloworld.sample".to_owned(), 0)].into(),
            suffixes: vec![(".b.local".into(), 2), (".local".into(), 1)],
            prefixes: vec![("hello.".into(), 3)],
            any: Some(4),
            ignore_port: true,
            ..Table::default()
        };
        let headers = HeaderMap::new();
        for (authority, expected) in [
            ("helloworld.sample", "exact"),
            ("HelloWorld.sample:5000", "exact"),
            ("a.local", "suffix"),
            ("a.b.local", "longer suffix"),
            ("hello.there", "prefix"),
            ("hello.", "any"),
            ("[::1]:80", "any"),
            ("", "any"),
        ] {
            assert_eq!(&*table.find(asked(authority, "/", &headers)).unwrap().0.name, expected, "{authority}");
        }
    }

    #[test]
    fn paths_headers_and_queries() {
        let headers: HeaderMap = [("x-user", "alice"), ("x-n", "5")]
            .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
            .into_iter()
            .collect();
        let fits = |route: &Route, path: &str| route.fits(asked("a", path, &headers));
        assert!(
            fits(&route(Path::Segment("/api".into())), "/api/x")
                && !fits(&route(Path::Segment("/api".into())), "/apix")
        );
        assert!(fits(&route(Path::Exact("/a".into())), "/a") && !fits(&route(Path::Exact("/a".into())), "/ab"));
        assert!(fits(&route(Path::Regex(Regex::new("^(?:/[0-9]+)$").unwrap())), "/12"));
        let header = |name: &'static str, wanted, invert| HeaderMatch {
            name: HeaderKey::Named(HeaderName::from_static(name)),
            wanted,
            invert,
            missing_is_empty: false,
        };
        let exact = |t: &str| HeaderWanted::Text(Text::Exact(t.into(), false));
        for (header, expected) in [
            (header("x-user", exact("alice"), false), true),
            (header("x-user", exact("bob"), false), false),
            (header("x-user", exact("bob"), true), true),
            (header("x-none", HeaderWanted::Present(false), false), true),
            (header("x-n", HeaderWanted::Range(1, 6), false), true),
            (header("x-n", HeaderWanted::Range(1, 5), false), false),
        ] {
            let text = format!("{header:?}");
            let route = Route { headers: vec![header], ..route(Path::Prefix("/".into())) };
            assert_eq!(fits(&route, "/"), expected, "{text}");
        }
        for (name, value, expected) in
            [("a", Some("1"), true), ("a", Some("2"), false), ("b", None, true), ("c", None, false)]
        {
            let query = vec![(name.to_owned(), value.map(|v: &str| Text::Exact(v.into(), false)))];
            assert_eq!(fits(&Route { query, ..route(Path::Prefix("/".into())) }, "/"), expected, "{name}");
        }
    }

    #[test]
    fn only_what_does_no_harm_is_repeated() {
        let policy = Retry { most: 2, connect_failure: true, reset_before_request: true, ..Retry::default() };
        for (failure, method, expected) in [
            (Failure::Connect, Method::POST, true),
            (Failure::NotSent, Method::POST, true),
            (Failure::Reset, Method::GET, true),
            (Failure::Reset, Method::POST, false),
            (Failure::Timeout, Method::GET, false),
        ] {
            assert_eq!(policy.after_failure(failure, &method), expected, "{failure:?} {method}");
        }
        assert!(!Retry::default().after_failure(Failure::Connect, &Method::GET));
    }
}
