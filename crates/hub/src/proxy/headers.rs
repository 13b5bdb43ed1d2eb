//! What of a request's and an answer's head goes through.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::Caller;

/// Those of one connection, not of the message (RFC 9110, 7.6.1).
const OF_A_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
/// How a client may show a token without a header of its own (Kubernetes v1.34, `websocket.ProtocolAuthenticator`).
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// The most bytes of all headers.
pub(super) const LARGEST: usize = 64 << 10;

/// Groups that every API server adds by itself.
const EVERYONE: [&str; 2] = ["system:authenticated", "system:unauthenticated"];

/// What is asked to be switched to, if anything is.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asked = connection.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asked).cloned()
}

/// Bytes of all headers.
pub(super) fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// The head of the request to the member: what the caller showed of themselves to the hub stays here, and so does whom
/// they wanted to be; the member is told who they are, unless the hub asks in its own name.
///
/// `None` when the caller's name cannot be told.
pub(super) fn to_member(came: &HeaderMap, upgrade: Option<&HeaderValue>, caller: Option<&Caller>) -> Option<HeaderMap> {
    let mut headers = passed(came);
    for (name, _) in came {
        let text = name.as_str();
        if text.starts_with("impersonate-") || text.starts_with("x-remote-") {
            headers.remove(name);
        }
    }
    for name in [header::AUTHORIZATION, header::COOKIE, header::HOST, header::EXPECT] {
        headers.remove(name);
    }
    if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        let all: Vec<_> = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().cloned().collect();
        headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
        for protocols in all {
            let protocols = protocols.to_str().ok()?.split(',').map(str::trim);
            let kept: Vec<_> = protocols.filter(|protocol| !protocol.starts_with(TOKEN_PROTOCOL)).collect();
            if !kept.is_empty() {
                headers.append(header::SEC_WEBSOCKET_PROTOCOL, kept.join(", ").parse().ok()?);
            }
        }
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade.clone());
    }
    if let Some(caller) = caller {
        headers.insert("impersonate-user", HeaderValue::from_bytes(caller.name.as_bytes()).ok()?);
        for group in caller.groups.iter().filter(|group| !EVERYONE.contains(&group.as_str())) {
            headers.append("impersonate-group", HeaderValue::from_bytes(group.as_bytes()).ok()?);
        }
    }
    Some(headers)
}

/// The head of the answer; `base` is where the member's root is in the hub.
pub(super) fn to_caller(status: StatusCode, came: &HeaderMap, base: &str) -> HeaderMap {
    let mut headers = passed(came);
    if status == StatusCode::SWITCHING_PROTOCOLS {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Some(upgrade) = came.get(header::UPGRADE) {
            headers.insert(header::UPGRADE, upgrade.clone());
        }
    }
    // A place in the member is found below the hub's path.
    let there = came.get(header::LOCATION).and_then(|value| value.to_str().ok());
    if let Some(there) = there.filter(|there| there.starts_with('/') && !there.starts_with("//"))
        && let Ok(there) = HeaderValue::try_from(format!("{base}{there}"))
    {
        headers.insert(header::LOCATION, there);
    }
    headers
}

/// All that is not one connection's: neither what always is, nor what `Connection` names.
fn passed(came: &HeaderMap) -> HeaderMap {
    let mut headers = came.clone();
    let named = came.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    for name in named.flat_map(|value| value.split(',')) {
        headers.remove(name.trim());
    }
    for name in OF_A_CONNECTION {
        headers.remove(name);
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    fn shown(headers: &HeaderMap) -> String {
        let mut lines: Vec<_> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines.join("\n")
    }

    #[test]
    fn who_the_caller_is_is_told_and_how_they_showed_it_is_not() {
        let came = headers(&[
            ("authorization", "Bearer caller"),
            ("cookie", "session=1"),
            ("host", "hub"),
            ("accept", "application/json"),
            ("impersonate-user", "system:admin"),
            ("impersonate-group", "system:masters"),
            ("impersonate-extra-scopes", "all"),
            ("x-remote-group", "system:masters"),
            ("connection", "Upgrade, X-Hop"),
            ("x-hop", "1"),
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.abc, v5.channel.k8s.io"),
        ]);
        let jane = Caller {
            name: "jane".to_owned(),
            groups: vec!["dev".to_owned(), "ops".to_owned(), "system:authenticated".to_owned()],
        };
        let asked = upgrade(&came);
        insta::assert_snapshot!(shown(&to_member(&came, asked.as_ref(), Some(&jane)).unwrap()), @r"
        accept: application/json
        connection: Upgrade
        impersonate-group: dev
        impersonate-group: ops
        impersonate-user: jane
        sec-websocket-protocol: v5.channel.k8s.io
        upgrade: websocket
        ");
        // In the hub's own name nobody is impersonated, whatever the caller asked for.
        insta::assert_snapshot!(shown(&to_member(&came, None, None).unwrap()), @r"
        accept: application/json
        sec-websocket-protocol: v5.channel.k8s.io
        ");
        let odd = Caller { name: "jane\r\nimpersonate-group: system:masters".to_owned(), groups: Vec::new() };
        assert!(to_member(&came, None, Some(&odd)).is_none());
    }

    #[test]
    fn an_answer_keeps_what_is_not_the_connections() {
        let came = headers(&[("content-type", "text/plain"), ("connection", "close"), ("location", "/api/v1/x")]);
        insta::assert_snapshot!(shown(&to_caller(StatusCode::FOUND, &came, "/clusters/eu/proxy")), @r"
        content-type: text/plain
        location: /clusters/eu/proxy/api/v1/x
        ");
        let came = headers(&[("connection", "upgrade"), ("upgrade", "SPDY/3.1")]);
        insta::assert_snapshot!(shown(&to_caller(StatusCode::SWITCHING_PROTOCOLS, &came, "")), @r"
        connection: Upgrade
        upgrade: SPDY/3.1
        ");
    }
}
