//! What a Gateway says of requests that come from outside, and how VirtualServices name it.

use serde_json::{Map, Value};

use super::{known, text, texts};
use crate::model::host_matches;

/// A server of a Gateway that takes HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpServer {
    /// The Service's port, as the Gateway says it.
    pub port: u16,
    /// The hosts it takes requests for.
    pub hosts: Vec<ServerHost>,
}

/// A host of a server, and whose VirtualServices may serve it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerHost {
    /// Only those of this namespace; none is anybody's.
    pub namespace: Option<String>,
    /// The host, or a pattern.
    pub host: String,
}

impl HttpServer {
    /// None when the server is of another kind; `Some(None)` when it is one that cannot be obeyed.
    ///
    /// What speaks HTTP in plain text is served: HTTP, HTTP2, GRPC and GRPC-WEB. A server that ends TLS, or that sends
    /// clients over to TLS, is not opened at all rather than served in another way than it says.
    pub(super) fn read(
        server: &Map<String, Value>,
        path: &str,
        namespace: &str,
        left: &mut Vec<String>,
    ) -> Option<Option<Self>> {
        let port = server.get("port").and_then(Value::as_object)?;
        let protocol = text(port, "protocol").unwrap_or_default().to_ascii_uppercase();
        match protocol.as_str() {
            "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB" => {}
            "HTTPS" => {
                left.push(format!("{path}.tls (HTTPS is not ended here)"));
                return Some(None);
            }
            _ => return None,
        }
        if server.get("tls").and_then(|tls| tls.get("httpsRedirect")).and_then(Value::as_bool) == Some(true) {
            left.push(format!("{path}.tls.httpsRedirect"));
            return Some(None);
        }
        known(server, path, &["port", "hosts", "name", "defaultEndpoint"], left);
        let Some(number) = port.get("number").and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok()) else {
            left.push(format!("{path}.port.number"));
            return Some(None);
        };
        let host = |written: String| match written.split_once('/') {
            None | Some(("*", _)) => {
                let host = written.split_once('/').map_or(written.as_str(), |(_, host)| host).to_owned();
                ServerHost { namespace: None, host }
            }
            Some((".", host)) => ServerHost { namespace: Some(namespace.to_owned()), host: host.to_owned() },
            Some((of, host)) => ServerHost { namespace: Some(of.to_owned()), host: host.to_owned() },
        };
        Some(Some(Self { port: number, hosts: texts(server, "hosts").into_iter().map(host).collect() }))
    }

    /// The domains under which a VirtualService of `namespace` serves its `host` here: the narrower of the two names.
    pub fn domains<'a>(&'a self, namespace: &'a str, host: &'a str) -> impl Iterator<Item = &'a str> {
        let of_namespace = move |own: &&ServerHost| own.namespace.as_deref().is_none_or(|of| of == namespace);
        self.hosts.iter().filter(of_namespace).filter_map(move |own| narrower(&own.host, host))
    }
}

/// Of two names or patterns the one that the other covers.
fn narrower<'a>(a: &'a str, b: &'a str) -> Option<&'a str> {
    // `*.shop` covers `*.a.shop`, not the other way round.
    let covers = |wide: &str, narrow: &str| match narrow.strip_prefix('*') {
        Some(suffix) => wide.starts_with('*') && host_matches(wide, suffix),
        None => host_matches(wide, narrow),
    };
    if covers(a, b) {
        Some(b)
    } else if covers(b, a) {
        Some(a)
    } else {
        None
    }
}

/// A gateway as a VirtualService of `namespace` names it: `namespace/name`, or `mesh`.
pub(super) fn gateway_name(written: &str, namespace: &str) -> String {
    if written == super::MESH {
        return written.to_owned();
    }
    match written.split_once('/') {
        Some((".", name)) => format!("{namespace}/{name}"),
        Some(_) => written.to_owned(),
        None => {
            // A full host name, as Istio once had it.
            let mut parts = written.split('.');
            let name = parts.next().unwrap_or_default();
            format!("{}/{name}", parts.next().unwrap_or(namespace))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrower_name_is_served() {
        let cases = [
            ("*", "*", Some("*")),
            ("*", "book.example.com", Some("book.example.com")),
            ("book.example.com", "*", Some("book.example.com")),
            ("*.example.com", "book.example.com", Some("book.example.com")),
            ("*.example.com", "*", Some("*.example.com")),
            ("*.example.com", "*.a.example.com", Some("*.a.example.com")),
            ("*.a.example.com", "*.example.com", Some("*.a.example.com")),
            ("a.example.com", "b.example.com", None),
            ("*.example.com", "*.example.org", None),
        ];
        for (server, service, expected) in cases {
            assert_eq!(narrower(server, service), expected, "{server} and {service}");
        }
    }

    #[test]
    fn gateways_are_named_in_four_ways() {
        let cases = [
            ("mesh", "mesh"),
            ("shop-gateway", "shop/shop-gateway"),
            ("./shop-gateway", "shop/shop-gateway"),
            ("infra/public", "infra/public"),
            ("public.infra.svc.cluster.local", "infra/public"),
        ];
        for (written, expected) in cases {
            assert_eq!(gateway_name(written, "shop"), expected, "{written}");
        }
    }
}
