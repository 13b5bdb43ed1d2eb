//! TLS that a gateway does not end: Gateway servers of `tls.mode: PASSTHROUGH`, and the VirtualService rules (`tls`)
//! that say by server name whereto it goes (Istio 1.30, Gateway and VirtualService references; contract B.7).

use serde_json::{Map, Value};

use super::{Object, known, list, text, texts};
use crate::model::host_matches;

/// A Gateway's server that passes TLS through as VirtualServices say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsServer {
    /// Where it listens.
    pub port: u16,
    /// The server names it is for.
    pub hosts: Vec<String>,
}

impl TlsServer {
    /// None when it is a server of another kind.
    pub(super) fn read(server: &Map<String, Value>, path: &str, left: &mut Vec<String>) -> Option<Self> {
        let tls = server.get("tls")?;
        let mode = tls.get("mode").and_then(Value::as_str).unwrap_or("PASSTHROUGH");
        let port = server.get("port")?;
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or_default();
        let number = port.get("number").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok())?;
        if mode != "PASSTHROUGH" || !["TLS", "HTTPS"].iter().any(|known| protocol.eq_ignore_ascii_case(known)) {
            return None;
        }
        known(server, path, &["port", "hosts", "tls", "name"], left);
        // `namespace/host`: the prefix is dropped and filters nothing, as in Istio.
        let hosts = texts(server, "hosts");
        let hosts = hosts.iter().map(|host| host.split_once('/').map_or(host.as_str(), |(_, host)| host).to_owned());
        Some(Self { port: number, hosts: hosts.collect() })
    }
}

/// The `tls` rules of a VirtualService, for gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsRoutes {
    /// The VirtualService's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The gateways they are for, as `namespace/name`.
    pub gateways: Vec<String>,
    /// The first that matches decides.
    pub rules: Vec<TlsRule>,
}

/// Where some connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsRule {
    /// Which; any of them.
    pub matches: Vec<TlsMatch>,
    /// The host they go to.
    pub host: String,
    /// The subset, or the empty name.
    pub subset: String,
    /// Its port, if it has several.
    pub port: Option<u16>,
}

/// Which connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsMatch {
    /// The server's port; none is any.
    pub port: Option<u16>,
    /// The server names: `*`, `*.something` or whole ones.
    pub names: Vec<String>,
}

impl TlsMatch {
    /// The names of a server that this is about.
    pub fn at<'a>(&'a self, server: &'a TlsServer) -> impl Iterator<Item = &'a str> {
        let here = self.port.is_none_or(|port| port == server.port);
        let covered = |name: &&String| server.hosts.iter().any(|host| host == "*" || host_matches(host, name));
        self.names.iter().filter(move |name| here && covered(name)).map(String::as_str)
    }
}

impl TlsRoutes {
    /// Whether a VirtualService has no other rules than these.
    pub(super) fn is_all_of(spec: &Map<String, Value>) -> bool {
        spec.contains_key("tls") && !spec.contains_key("http") && !spec.contains_key("tcp")
    }

    /// None when there are none for gateways.
    pub(super) fn read(
        object: &Object,
        spec: &Map<String, Value>,
        domain: &str,
        left: &mut Vec<String>,
    ) -> Option<Self> {
        if !spec.contains_key("tls") {
            return None;
        }
        if Self::is_all_of(spec) {
            known(spec, "", &["hosts", "gateways", "tls", "exportTo"], left);
        }
        let gateways = texts(spec, "gateways");
        if gateways.is_empty() || gateways.iter().any(|name| name == "mesh") {
            left.push("tls (only for gateways)".to_owned());
        }
        let whole = |name: &String| match name.contains('/') {
            true => name.clone(),
            false => format!("{}/{name}", object.namespace),
        };
        let gateways: Vec<_> = gateways.iter().filter(|name| *name != "mesh").map(whole).collect();
        if gateways.is_empty() {
            return None;
        }
        let rules = list(spec, "tls").iter().enumerate();
        let rules = rules.filter_map(|(at, rule)| {
            let path = format!("tls[{at}]");
            TlsRule::read(rule.as_object()?, &path, &object.namespace, domain, left)
        });
        Some(Self { namespace: object.namespace.clone(), name: object.name.clone(), rules: rules.collect(), gateways })
    }
}

impl TlsRule {
    /// None when it would match or do something else than it says.
    fn read(
        map: &Map<String, Value>,
        path: &str,
        namespace: &str,
        domain: &str,
        left: &mut Vec<String>,
    ) -> Option<Self> {
        known(map, path, &["match", "route"], left);
        let mut matches = Vec::new();
        for (at, one) in list(map, "match").iter().enumerate() {
            let (Some(one), path) = (one.as_object(), format!("{path}.match[{at}]")) else { continue };
            let before = left.len();
            known(one, &path, &["port", "sniHosts"], left);
            // With a condition that is not understood fewer connections match rather than more.
            if left.len() == before {
                let port = one.get("port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
                matches.push(TlsMatch { port, names: texts(one, "sniHosts") });
            }
        }
        let [route] = list(map, "route") else {
            left.push(format!("{path}.route (exactly one is)"));
            return None;
        };
        let destination = route.get("destination").and_then(Value::as_object)?;
        known(destination, &format!("{path}.route[0].destination"), &["host", "subset", "port"], left);
        let host = text(destination, "host").unwrap_or_default();
        let host = if host.contains('.') { host.to_owned() } else { format!("{host}.{namespace}.svc.{domain}") };
        let port = destination.get("port").and_then(|port| port.get("number")).and_then(Value::as_u64);
        (!matches.is_empty()).then(|| Self {
            matches,
            host,
            subset: text(destination, "subset").unwrap_or_default().to_owned(),
            port: port.and_then(|port| u16::try_from(port).ok()),
        })
    }
}
