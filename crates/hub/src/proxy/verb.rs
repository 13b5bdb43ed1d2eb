//! What a request that is passed on asks of the member, in one word of Kubernetes.

use http::Method;
use percent_encoding::percent_decode_str;

/// Subresources that carry a session into a pod: whoever may only read has none, whatever the method.
const SESSIONS: [&str; 3] = ["exec", "attach", "portforward"];

/// The verb of a request by its path in the member, as Kubernetes' own authorization has it (v1.34, `RequestInfo`), with
/// one difference: what becomes a session is `create`, also where a WebSocket makes it a GET. `None` for methods that
/// no API server serves.
pub(crate) fn of(method: &Method, path: &str, query: &str, upgrades: bool) -> Option<&'static str> {
    // As Go's servers read a path: decoded once, then taken apart.
    let path = percent_decode_str(path).decode_utf8_lossy();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let below = match parts.as_slice() {
        ["api", _, below @ ..] | ["apis", _, _, below @ ..] if !below.is_empty() => Some(below),
        _ => None,
    };
    let (old_watch, below) = match below {
        Some(["watch", below @ ..]) if !below.is_empty() => (true, below),
        below => (false, below.unwrap_or_default()),
    };
    let below = match below {
        ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => below,
        ["namespaces", _, below @ ..] => below,
        below => below,
    };
    let (named, sub) = (below.len() > 1, below.get(2).copied().unwrap_or_default());
    let verb = match *method {
        Method::GET | Method::HEAD if old_watch || (!below.is_empty() && sub.is_empty() && watches(query)) => "watch",
        Method::GET | Method::HEAD if named || below.is_empty() => "get",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named || below.is_empty() => "delete",
        Method::DELETE => "deletecollection",
        _ => return None,
    };
    Some(if upgrades || SESSIONS.contains(&sub) { "create" } else { verb })
}

/// Whether the answer goes on for as long as both sides like.
pub(crate) fn goes_on(verb: &str, path: &str, query: &str, upgrades: bool) -> bool {
    upgrades || verb == "watch" || (path.ends_with("/log") && is_set(query, "follow"))
}

fn watches(query: &str) -> bool {
    is_set(query, "watch")
}

/// Whether a parameter is there and not false, as Kubernetes reads such.
fn is_set(query: &str, name: &str) -> bool {
    query.split('&').any(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decode_str(value).decode_utf8_lossy().to_lowercase();
        percent_decode_str(key).decode_utf8_lossy() == name && !["false", "0", "f"].contains(&value.as_str())
    })
}

/// Whether a path has parts that lead upwards: behind a server's own prefix they would lead out of it.
pub(crate) fn leads_upwards(path: &str) -> bool {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    decoded.split(['/', '\\']).any(|part| matches!(part, "." | ".."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_verb() {
        for (method, path, query, expected) in [
            ("GET", "/api/v1/pods", "", "list"),
            ("GET", "/api/v1/pods", "watch=true", "watch"),
            ("GET", "/api/v1/pods", "%77atch=1", "watch"),
            ("GET", "/api/v1/pods", "watch=false", "list"),
            ("GET", "/api/v1/watch/pods", "", "watch"),
            ("GET", "/api/v1/namespaces", "", "list"),
            ("GET", "/api/v1/namespaces/a", "", "get"),
            ("GET", "/api/v1/namespaces/a/pods", "", "list"),
            ("GET", "/api/v1/namespaces/a/pods/b", "", "get"),
            ("GET", "/api/v1/namespaces/a/pods/b", "watch", "watch"),
            ("GET", "/api/v1/namespaces/a/pods/b/log", "follow=true", "get"),
            ("HEAD", "/apis/apps/v1/namespaces/a/deployments/b/scale", "", "get"),
            ("GET", "/version", "", "get"),
            ("GET", "/apis/apps/v1", "watch=true", "get"),
            ("GET", "", "", "get"),
            ("POST", "/api/v1/namespaces/a/pods", "", "create"),
            ("PUT", "/api/v1/namespaces/a/pods/b/status", "", "update"),
            ("PATCH", "/api/v1/namespaces/a", "", "patch"),
            ("DELETE", "/api/v1/namespaces/a", "", "delete"),
            ("DELETE", "/api/v1/namespaces/a/pods", "", "deletecollection"),
            ("DELETE", "/apis/g.io/v1/things/x", "", "delete"),
            // A read-only role opens no session, however it is asked for.
            ("GET", "/api/v1/namespaces/a/pods/b/exec", "command=sh", "create"),
            ("GET", "/api/v1/namespaces/a/pods/b/%65xec", "command=sh", "create"),
            ("GET", "/api/v1/namespaces/a/pods/b%2Fexec", "command=sh", "create"),
            ("POST", "/api/v1/namespaces/a/pods/b/portforward", "", "create"),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert_eq!(of(&method, path, query, false), Some(expected), "{method} {path}?{query}");
        }
        assert_eq!(of(&Method::GET, "/api/v1/namespaces/a/pods/b/proxy/", "", true), Some("create"));
        assert_eq!(of(&Method::CONNECT, "/api/v1/pods", "", false), None);
    }

    #[test]
    fn no_path_leads_upwards() {
        for path in ["/api/../x", "/..", "/api/%2e%2e/x", "/api/.%2E%2fx", "/a/./b", "/a/..\\b"] {
            assert!(leads_upwards(path), "{path}");
        }
        for path in ["/api/v1/pods", "/api/v1/namespaces/a..b/pods/...", ""] {
            assert!(!leads_upwards(path), "{path}");
        }
    }
}
