//! Istio's own objects, read into plain values; and what of them is not acted on.
//!
//! | Kind | What is acted on |
//! |---|---|
//! | PeerAuthentication | all of it |
//! | AuthorizationPolicy | ALLOW and DENY; selector, root namespace; principals, namespaces, serviceAccounts, ipBlocks; hosts, ports, methods, paths; when: `source.*`, `destination.*`, `connection.sni`, `request.headers[…]` |
//! | DestinationRule | host, subsets, exportTo, workloadSelector; load balancing (simple), localityLbSetting, outlierDetection, connect timeout and limits, TLS modes DISABLE and ISTIO_MUTUAL; per port |
//! | Gateway | servers with tls.mode AUTO_PASSTHROUGH or PASSTHROUGH; servers of HTTP |
//! | VirtualService | HTTP routes of workloads' requests to Services and of what comes in by a Gateway: matches on path, method, authority, headers, port, gateway; weights, timeouts, retries, rewrites, direct responses; `tls` of gateways, by server name |
//!
//! Nothing is ignored silently: every kind and field that this control plane does not act on becomes a [`Finding`],
//! and a *security* object that it cannot fully obey closes the workloads it applies to (decision 29).

pub mod authorization;
pub mod ingress;
mod tls_route;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Map, Value};

use self::authorization::Authorization;
use self::ingress::HttpServer;
use crate::model::{Labels, exported, host_matches, selects};

pub use tls_route::{TlsMatch, TlsRoutes, TlsRule, TlsServer};

/// What a VirtualService calls the sidecars, among gateways.
pub const MESH: &str = stolos_k8s::istio::MESH_GATEWAY;

/// An Istio object, as read from the API.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its kind.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// Seconds since 1970.
    pub created: i64,
    /// Its spec.
    pub spec: Value,
}

/// What of an object is not acted on.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The object.
    pub kind: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// The fields, as paths below `spec`; empty when the kind as a whole is not.
    pub fields: Vec<String>,
    /// Whether the workloads it applies to are closed because of it.
    pub closes: bool,
}

impl Finding {
    /// In one sentence.
    #[must_use]
    pub fn message(&self) -> String {
        let what = if self.fields.is_empty() {
            format!("the kind {} is not supported by this control plane", self.kind)
        } else {
            format!("not supported by this control plane: {}", self.fields.join(", "))
        };
        if self.closes {
            format!("{what}; because it cannot be fully obeyed, the workloads it applies to refuse all connections")
        } else {
            what
        }
    }
}

/// All policies of the config cluster, oldest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policies {
    /// DestinationRules.
    pub destinations: Vec<DestinationRule>,
    /// PeerAuthentications.
    pub peers: Vec<PeerAuthentication>,
    /// Gateways.
    pub gateways: Vec<GatewayConfig>,
    /// VirtualServices, for what workloads send.
    pub virtual_services: Vec<VirtualService>,
    /// VirtualServices' rules for TLS that gateways pass through.
    pub tls_routes: Vec<TlsRoutes>,
    /// AuthorizationPolicies that can be obeyed.
    pub authorizations: Vec<Authorization>,
    /// Workloads that refuse everything, because a security object cannot be obeyed.
    pub closed: Vec<Applies>,
    /// What is not acted on.
    pub findings: Vec<Finding>,
}

impl Policies {
    /// Reads objects of any kind.
    #[must_use]
    pub fn read(objects: impl IntoIterator<Item = Object>, domain: &str) -> Self {
        let mut objects: Vec<_> = objects.into_iter().collect();
        objects.sort_by(|a, b| (a.created, &a.name, &a.namespace).cmp(&(b.created, &b.name, &b.namespace)));
        let mut policies = Self::default();
        for object in objects {
            policies.add(&object, domain);
        }
        policies
    }

    fn add(&mut self, object: &Object, domain: &str) {
        let mut fields = Vec::new();
        let empty = Map::new();
        let spec = object.spec.as_object().unwrap_or(&empty);
        let mut closes = false;
        let mut whole = false;
        match object.kind.as_str() {
            "DestinationRule" => {
                self.destinations.push(DestinationRule::read(object, spec, domain, &mut fields));
            }
            "PeerAuthentication" => {
                let policy = PeerAuthentication::read(object, spec, &mut fields);
                closes = !fields.is_empty();
                if closes {
                    self.closed.push(policy.applies.clone());
                }
                self.peers.push(policy);
            }
            "VirtualService" => {
                self.tls_routes.extend(TlsRoutes::read(object, spec, domain, &mut fields));
                if !TlsRoutes::is_all_of(spec) {
                    self.virtual_services.push(VirtualService::read(object, spec, domain, &mut fields));
                }
            }
            "Gateway" => {
                self.gateways.push(GatewayConfig::read(object, spec, &mut fields));
            }
            "AuthorizationPolicy" => {
                let policy = Authorization::read(object, spec, &mut fields);
                // AUDIT denies nothing: not obeying it lets nobody in.
                closes = !fields.is_empty() && text(spec, "action") != Some("AUDIT");
                if closes {
                    self.closed.push(Authorization::applies(object, spec));
                } else {
                    self.authorizations.extend(policy);
                }
            }
            "RequestAuthentication" => {
                (whole, closes) = (true, true);
                self.closed.push(Authorization::applies(object, spec));
            }
            _ => whole = true,
        }
        if whole || !fields.is_empty() {
            self.findings.push(Finding {
                kind: object.kind.clone(),
                namespace: object.namespace.clone(),
                name: object.name.clone(),
                uid: object.uid.clone(),
                generation: object.generation,
                fields,
                closes,
            });
        }
    }

    /// The mode in which a workload takes connections on one of its ports.
    #[must_use]
    pub fn mtls(&self, root: &str, namespace: &str, labels: &Labels, port: u16) -> Mtls {
        let workload =
            self.peers.iter().find(|p| !p.applies.selector.is_empty() && p.applies.to(root, namespace, labels));
        if let Some(policy) = workload {
            if let Some(mode) = policy.ports.get(&port).copied().flatten() {
                return mode;
            }
            if let Some(mode) = policy.mode {
                return mode;
            }
        }
        self.mtls_of_namespace(root, namespace)
    }

    /// The mode without what is said of single workloads: all that a client's clusters go by.
    #[must_use]
    pub fn mtls_of_namespace(&self, root: &str, namespace: &str) -> Mtls {
        let of = |namespace: &str| {
            let oldest = self.peers.iter().find(|p| p.applies.namespace == namespace && p.applies.selector.is_empty());
            oldest.and_then(|p| p.mode)
        };
        of(namespace).or_else(|| of(root)).unwrap_or(Mtls::Permissive)
    }

    /// How requests of a client in `namespace` to `host` are routed: by the oldest that names it, else by the most
    /// general pattern that covers it.
    #[must_use]
    pub fn virtual_service(&self, namespace: &str, host: &str) -> Option<&VirtualService> {
        let seen = |vs: &&VirtualService| exported(&vs.export_to, &vs.namespace, namespace);
        let exact = self.virtual_services.iter().filter(seen).find(|vs| vs.hosts.iter().any(|own| own == host));
        exact.or_else(|| {
            self.virtual_services.iter().filter(seen).find(|vs| vs.hosts.iter().any(|own| host_matches(own, host)))
        })
    }

    /// Whether a workload refuses everything.
    #[must_use]
    pub fn is_closed(&self, root: &str, namespace: &str, labels: &Labels) -> bool {
        self.closed.iter().any(|applies| applies.to(root, namespace, labels))
    }

    /// What a client in `namespace` with `labels` is told about `host` of `service_namespace`.
    #[must_use]
    pub fn destination(
        &self,
        root: &str,
        namespace: &str,
        labels: &Labels,
        host: &str,
        service_namespace: &str,
    ) -> Option<DestinationRule> {
        let mut places = Vec::new();
        if namespace != root {
            places.push(namespace);
        }
        for place in [service_namespace, root] {
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places.into_iter().find_map(|place| {
            let seen = |rule: &&DestinationRule| {
                rule.namespace == place
                    && host_matches(&rule.host, host)
                    && exported(&rule.export_to, &rule.namespace, namespace)
                    && (rule.workloads.is_empty() || (place == namespace && selects(&rule.workloads, labels)))
            };
            let found: Vec<_> = self.destinations.iter().filter(seen).collect();
            // The most specific host of this namespace; then a rule for these workloads; then the oldest.
            let best = found.iter().map(|rule| (rule.host.starts_with('*'), usize::MAX - rule.host.len())).min()?;
            let mut of_host: Vec<_> = found
                .into_iter()
                .filter(|rule| (rule.host.starts_with('*'), usize::MAX - rule.host.len()) == best)
                .collect();
            of_host.sort_by_key(|rule| rule.workloads.is_empty());
            let mut merged = DestinationRule::clone(of_host.first()?);
            for other in &of_host[1..] {
                if other.workloads != merged.workloads {
                    continue;
                }
                if merged.policy.is_none() {
                    merged.policy = other.policy.clone();
                }
                for subset in &other.subsets {
                    if merged.subsets.iter().all(|have| have.name != subset.name) {
                        merged.subsets.push(subset.clone());
                    }
                }
            }
            Some(merged)
        })
    }
}

/// Which workloads something applies to.
#[derive(Clone, Debug, PartialEq)]
pub struct Applies {
    /// Where it is; the root namespace means everywhere.
    pub namespace: String,
    /// Whom it selects; empty is everybody.
    pub selector: Labels,
    /// It selects in a way that is not understood: taken as everybody.
    pub any: bool,
}

impl Applies {
    fn to(&self, root: &str, namespace: &str, labels: &Labels) -> bool {
        (self.namespace == root || self.namespace == namespace) && (self.any || selects(&self.selector, labels))
    }
}

/// How a workload takes connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mtls {
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// mTLS only.
    Strict,
}

impl Mtls {
    /// Nothing said inherits; what is not understood is as strict as can be.
    fn read(value: &Value, path: &str, left: &mut Vec<String>) -> Option<Self> {
        match value.get("mode").and_then(Value::as_str) {
            None | Some("UNSET") => None,
            Some("DISABLE") => Some(Self::Disable),
            Some("PERMISSIVE") => Some(Self::Permissive),
            Some("STRICT") => Some(Self::Strict),
            Some(other) => {
                left.push(format!("{path}.mode: {other}"));
                Some(Self::Strict)
            }
        }
    }
}

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerAuthentication {
    /// Whom it applies to.
    pub applies: Applies,
    /// Its mode; `None` inherits.
    pub mode: Option<Mtls>,
    /// Modes of single workload ports.
    pub ports: BTreeMap<u16, Option<Mtls>>,
}

impl PeerAuthentication {
    fn read(object: &Object, spec: &Map<String, Value>, left: &mut Vec<String>) -> Self {
        known(spec, "", &["selector", "mtls", "portLevelMtls"], left);
        let selector = match_labels(spec);
        let own = spec.get("mtls").and_then(|v| Mtls::read(v, "mtls", left));
        let mut ports = BTreeMap::new();
        if let Some(levels) = spec.get("portLevelMtls").and_then(Value::as_object) {
            for (port, value) in levels {
                let value = Mtls::read(value, &format!("portLevelMtls.{port}"), left);
                match port.parse() {
                    Ok(port) => _ = ports.insert(port, value),
                    Err(_) => left.push(format!("portLevelMtls.{port}")),
                }
            }
        }
        let applies = Applies { namespace: object.namespace.clone(), selector, any: false };
        Self { applies, mode: own, ports }
    }
}

/// A Gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayConfig {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The proxies that serve it.
    pub selector: Labels,
    /// Its servers that pass mTLS through by SNI: port and hosts.
    pub passthrough: Vec<(u16, Vec<String>)>,
    /// Its servers that take requests.
    pub http: Vec<HttpServer>,
    /// Its servers that pass TLS through as VirtualServices say.
    pub tls: Vec<TlsServer>,
}

impl GatewayConfig {
    fn read(object: &Object, spec: &Map<String, Value>, left: &mut Vec<String>) -> Self {
        known(spec, "", &["selector", "servers"], left);
        let (mut passthrough, mut http, mut tls) = (Vec::new(), Vec::new(), Vec::new());
        for (at, server) in list(spec, "servers").iter().enumerate() {
            let path = format!("servers[{at}]");
            let Some(server) = server.as_object() else { continue };
            if let Some(server) = TlsServer::read(server, &path, left) {
                tls.push(server);
                continue;
            }
            if let Some(found) = HttpServer::read(server, &path, &object.namespace, left) {
                http.extend(found);
                continue;
            }
            let mode = server.get("tls").and_then(|tls| tls.get("mode")).and_then(Value::as_str);
            let port = server.get("port").and_then(|p| p.get("number")).and_then(Value::as_u64);
            let (Some("AUTO_PASSTHROUGH"), Some(port)) = (mode, port.and_then(|p| u16::try_from(p).ok())) else {
                left.push(format!("{path} (only tls.mode AUTO_PASSTHROUGH and PASSTHROUGH and protocol HTTP are)"));
                continue;
            };
            known(server, &path, &["port", "hosts", "tls", "name"], left);
            // `namespace/host`: the prefix is dropped and filters nothing, as in Istio.
            let hosts = texts(server, "hosts")
                .into_iter()
                .map(|host| host.split_once('/').map_or(host.clone(), |(_, host)| host.to_owned()))
                .collect();
            passthrough.push((port, hosts));
        }
        let selector = spec.get("selector").map(labels).unwrap_or_default();
        Self { namespace: object.namespace.clone(), name: object.name.clone(), selector, passthrough, http, tls }
    }

    /// As VirtualServices name it.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A VirtualService, as far as it says how requests are routed: those of workloads, and those that come in by gateways.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The hosts it is for, of what workloads send: those of Services.
    pub hosts: Vec<String>,
    /// The hosts it is for, of what comes in by gateways.
    pub outer_hosts: Vec<String>,
    /// The gateways it is for, as `namespace/name`.
    pub gateways: Vec<String>,
    /// Which namespaces see it.
    pub export_to: BTreeSet<String>,
    /// The first that matches decides.
    pub http: Vec<HttpRule>,
}

/// What happens to some requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpRule {
    /// Its name.
    pub name: String,
    /// Which requests; empty is all.
    pub matches: Vec<HttpMatch>,
    /// Where they go.
    pub to: Vec<Destination>,
    /// The answer they get instead.
    pub respond: Option<(u16, String)>,
    /// How long they may take; none is without limit.
    pub timeout: Option<Duration>,
    /// How often they are tried again, if not as usual.
    pub retries: Option<Retries>,
    /// What replaces the matched part of the path.
    pub rewrite_path: Option<String>,
    /// What replaces the host.
    pub rewrite_host: Option<String>,
}

/// A part of the requests to a host.
#[derive(Clone, Debug, PartialEq)]
pub struct Destination {
    /// The host.
    pub host: String,
    /// The subset, or the empty name.
    pub subset: String,
    /// Its port, if it has several.
    pub port: Option<u16>,
    /// Its share.
    pub weight: u32,
}

/// Retries of one rule.
#[derive(Clone, Debug, PartialEq)]
pub struct Retries {
    /// How often.
    pub attempts: u32,
    /// How long each may take.
    pub per_try: Option<Duration>,
    /// When; empty is as usual.
    pub on: Vec<String>,
    /// Which answers.
    pub statuses: Vec<u32>,
}

/// Which requests; all of it must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpMatch {
    /// The path.
    pub uri: Option<TextMatch>,
    /// Whether the case of the path does not count.
    pub ignore_case: bool,
    /// Headers, the method among them as `:method`.
    pub headers: Vec<(String, TextMatch)>,
    /// The service's port, or the gateway's.
    pub port: Option<u16>,
    /// Only what is on its way through these, as `namespace/name`, or is sent by workloads (`mesh`); empty is all.
    pub gateways: Vec<String>,
}

impl HttpMatch {
    /// Whether it is for requests that come by this gateway (or `mesh`) to this port.
    #[must_use]
    pub fn applies(&self, gateway: &str, port: u16) -> bool {
        let of_gateway = self.gateways.is_empty() || self.gateways.iter().any(|name| name == gateway);
        of_gateway && self.port.is_none_or(|number| number == port)
    }
}

/// How a text must be.
#[derive(Clone, Debug, PartialEq)]
pub enum TextMatch {
    /// This.
    Exact(String),
    /// Beginning so.
    Prefix(String),
    /// Such.
    Regex(String),
    /// There.
    Present,
}

impl TextMatch {
    fn read(value: &Value) -> Option<Self> {
        let Some((how, text)) = value.as_object()?.iter().next() else { return Some(Self::Present) };
        let text = text.as_str()?.to_owned();
        match how.as_str() {
            "exact" => Some(Self::Exact(text)),
            "prefix" => Some(Self::Prefix(text)),
            "regex" => Some(Self::Regex(text)),
            _ => None,
        }
    }
}

/// The conditions under which a request may be sent again, of those that proxies know.
const RETRY_ON: &[&str] = &[
    "connect-failure",
    "reset-before-request",
    "reset",
    "refused-stream",
    "gateway-error",
    "5xx",
    "retriable-4xx",
    "retriable-status-codes",
    "cancelled",
    "deadline-exceeded",
    "resource-exhausted",
    "internal",
    "unavailable",
];

impl VirtualService {
    fn read(object: &Object, spec: &Map<String, Value>, domain: &str, left: &mut Vec<String>) -> Self {
        known(spec, "", &["hosts", "gateways", "http", "tls", "exportTo"], left);
        let named = |written: String| ingress::gateway_name(&written, &object.namespace);
        let mut gateways: Vec<_> = texts(spec, "gateways").into_iter().map(named).collect();
        let of_mesh = gateways.is_empty() || gateways.iter().any(|name| name == MESH);
        gateways.retain(|name| name != MESH);
        let full = |host: &str| {
            let short = !host.contains('.') && host != "*";
            if short { format!("{host}.{}.svc.{domain}", object.namespace) } else { host.to_owned() }
        };
        let suffix = format!(".svc.{domain}");
        let all: Vec<_> = texts(spec, "hosts").iter().map(|host| full(host)).collect();
        let (mut hosts, others): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|host| host.ends_with(&suffix));
        if of_mesh {
            left.extend(others.into_iter().map(|host| format!("hosts: {host} (only those of Services are)")));
        } else {
            hosts.clear();
        }
        let rules = list(spec, "http").iter().enumerate();
        let http =
            rules.filter_map(|(at, rule)| HttpRule::read(rule.as_object()?, &format!("http[{at}]"), &full, left));
        let mut http: Vec<_> = http.collect();
        for matching in http.iter_mut().flat_map(|rule| &mut rule.matches) {
            matching.gateways = std::mem::take(&mut matching.gateways).into_iter().map(named).collect();
        }
        Self {
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            hosts,
            outer_hosts: if gateways.is_empty() { Vec::new() } else { all },
            gateways,
            export_to: texts(spec, "exportTo").into_iter().collect(),
            http,
        }
    }
}

impl HttpRule {
    /// None when it would match or do something else than it says.
    fn read(
        map: &Map<String, Value>,
        path: &str,
        full: &dyn Fn(&str) -> String,
        left: &mut Vec<String>,
    ) -> Option<Self> {
        known(map, path, &["name", "match", "route", "timeout", "retries", "rewrite", "directResponse"], left);
        let written = list(map, "match");
        let matches: Vec<_> = written
            .iter()
            .enumerate()
            .filter_map(|(at, value)| HttpMatch::read(value.as_object()?, &format!("{path}.match[{at}]"), left))
            .collect();
        let mut to = Vec::new();
        for (at, route) in list(map, "route").iter().enumerate() {
            let (Some(route), path) = (route.as_object(), format!("{path}.route[{at}]")) else { continue };
            known(route, &path, &["destination", "weight"], left);
            let Some(destination) = route.get("destination").and_then(Value::as_object) else { continue };
            known(destination, &format!("{path}.destination"), &["host", "subset", "port"], left);
            let port = destination.get("port").and_then(|port| port.get("number")).and_then(Value::as_u64);
            to.push(Destination {
                host: full(text(destination, "host").unwrap_or_default()),
                subset: text(destination, "subset").unwrap_or_default().to_owned(),
                port: port.and_then(|port| u16::try_from(port).ok()),
                weight: number(route, "weight").unwrap_or_default(),
            });
        }
        let respond = map.get("directResponse").and_then(|response| {
            let status = response.get("status").and_then(Value::as_u64).and_then(|s| u16::try_from(s).ok())?;
            let body = response.pointer("/body/string").and_then(Value::as_str).unwrap_or_default();
            Some((status, body.to_owned()))
        });
        let rewrite = map.get("rewrite").and_then(Value::as_object);
        if let Some(rewrite) = rewrite {
            known(rewrite, &format!("{path}.rewrite"), &["uri", "authority"], left);
        }
        // A rule whose every match is beyond us must not become one that matches everything.
        let lost = !written.is_empty() && matches.is_empty();
        if lost || (to.is_empty() && respond.is_none()) {
            return None;
        }
        let of_rewrite = |name: &str| rewrite.and_then(|rewrite| text(rewrite, name)).map(str::to_owned);
        Some(Self {
            name: text(map, "name").unwrap_or_default().to_owned(),
            matches,
            to,
            respond,
            timeout: text(map, "timeout").and_then(duration),
            retries: map.get("retries").and_then(Value::as_object).map(|r| Retries::read(r, path, left)),
            rewrite_path: of_rewrite("uri"),
            rewrite_host: of_rewrite("authority"),
        })
    }
}

impl HttpMatch {
    /// None when it has a condition that is not understood: fewer requests match rather than more.
    fn read(map: &Map<String, Value>, path: &str, left: &mut Vec<String>) -> Option<Self> {
        let before = left.len();
        let names = ["name", "uri", "ignoreUriCase", "method", "authority", "headers", "port", "gateways"];
        known(map, path, &names, left);
        let mut read = |field: &str, value: &Value| {
            let found = TextMatch::read(value);
            if found.is_none() {
                left.push(format!("{path}.{field}"));
            }
            found
        };
        let uri = map.get("uri").and_then(|value| read("uri", value));
        let mut headers = Vec::new();
        for (name, value) in map.get("headers").and_then(Value::as_object).into_iter().flatten() {
            headers.extend(read("headers", value).map(|how| (name.to_ascii_lowercase(), how)));
        }
        for field in ["method", "authority"] {
            let how = map.get(field).and_then(|value| read(field, value));
            headers.extend(how.map(|how| (format!(":{field}"), how)));
        }
        (left.len() == before).then(|| Self {
            uri,
            ignore_case: map.get("ignoreUriCase").and_then(Value::as_bool).unwrap_or(false),
            headers,
            port: number(map, "port").and_then(|port| u16::try_from(port).ok()),
            gateways: texts(map, "gateways"),
        })
    }
}

impl Retries {
    fn read(map: &Map<String, Value>, path: &str, left: &mut Vec<String>) -> Self {
        let path = format!("{path}.retries");
        known(map, &path, &["attempts", "perTryTimeout", "retryOn"], left);
        let (mut on, mut statuses) = (Vec::new(), Vec::new());
        for condition in text(map, "retryOn").unwrap_or_default().split(',').map(str::trim).filter(|c| !c.is_empty()) {
            match condition.parse() {
                Ok(status) => statuses.push(status),
                Err(_) if RETRY_ON.contains(&condition) => on.push(condition.to_owned()),
                Err(_) => left.push(format!("{path}.retryOn: {condition}")),
            }
        }
        if !statuses.is_empty() && !on.iter().any(|condition| condition == "retriable-status-codes") {
            on.push("retriable-status-codes".to_owned());
        }
        let attempts = number(map, "attempts").unwrap_or_default();
        Self { attempts, per_try: text(map, "perTryTimeout").and_then(duration), on, statuses }
    }
}

/// A DestinationRule.
#[derive(Clone, Debug, PartialEq)]
pub struct DestinationRule {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The hosts it is for.
    pub host: String,
    /// What applies to all of the host.
    pub policy: Option<TrafficPolicy>,
    /// Named parts of the host's workloads.
    pub subsets: Vec<Subset>,
    /// Which namespaces see it.
    pub export_to: BTreeSet<String>,
    /// The client workloads it is for; empty is all.
    pub workloads: Labels,
}

/// A named part of a host's workloads.
#[derive(Clone, Debug, PartialEq)]
pub struct Subset {
    /// Its name.
    pub name: String,
    /// Its workloads' labels.
    pub labels: Labels,
    /// What applies to it in particular.
    pub policy: Option<TrafficPolicy>,
}

impl DestinationRule {
    fn read(object: &Object, spec: &Map<String, Value>, domain: &str, left: &mut Vec<String>) -> Self {
        known(spec, "", &["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"], left);
        let host = text(spec, "host").unwrap_or_default();
        let host = if host.contains('.') || host == "*" {
            host.to_owned()
        } else {
            format!("{host}.{}.svc.{domain}", object.namespace)
        };
        let policy = spec.get("trafficPolicy").map(|v| TrafficPolicy::read(v, "trafficPolicy", left));
        let mut subsets = Vec::new();
        for (at, subset) in list(spec, "subsets").iter().enumerate() {
            let Some(subset) = subset.as_object() else { continue };
            let path = format!("subsets[{at}]");
            known(subset, &path, &["name", "labels", "trafficPolicy"], left);
            subsets.push(Subset {
                name: text(subset, "name").unwrap_or_default().to_owned(),
                labels: subset.get("labels").map(labels).unwrap_or_default(),
                policy: subset
                    .get("trafficPolicy")
                    .map(|v| TrafficPolicy::read(v, &format!("{path}.trafficPolicy"), left)),
            });
        }
        let workloads = spec.get("workloadSelector").and_then(|s| s.get("matchLabels")).map(labels);
        Self {
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            host,
            policy,
            subsets,
            export_to: texts(spec, "exportTo").into_iter().collect(),
            workloads: workloads.unwrap_or_default(),
        }
    }

    /// The subset of this name.
    #[must_use]
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        self.subsets.iter().find(|subset| subset.name == name)
    }

    /// What applies to a port, and to a subset if one is named.
    #[must_use]
    pub fn effective(&self, port: u16, subset: &str) -> PortPolicy {
        let base = self.policy.as_ref().map(|policy| policy.for_port(port)).unwrap_or_default();
        match self.subset(subset).and_then(|subset| subset.policy.as_ref()) {
            Some(policy) => policy.for_port(port).over(base),
            None => base,
        }
    }

    /// The TLS mode by which endpoints are judged: a subset's own policy only (Istio 1.30, section 6.4).
    #[must_use]
    pub fn endpoint_tls(&self, port: u16, subset: &str) -> Option<TlsMode> {
        let policy = if subset.is_empty() {
            self.policy.as_ref()
        } else {
            self.subset(subset).and_then(|subset| subset.policy.as_ref())
        };
        policy?.for_port(port).tls.map(|tls| tls.mode)
    }
}

/// What applies to a host, or a subset of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficPolicy {
    /// To all ports.
    pub all: PortPolicy,
    /// To these ports instead.
    pub ports: BTreeMap<u16, PortPolicy>,
}

impl TrafficPolicy {
    fn read(value: &Value, path: &str, left: &mut Vec<String>) -> Self {
        let Some(map) = value.as_object() else { return Self::default() };
        known(map, path, &["loadBalancer", "connectionPool", "outlierDetection", "tls", "portLevelSettings"], left);
        let mut ports = BTreeMap::new();
        for (at, entry) in list(map, "portLevelSettings").iter().enumerate() {
            let path = format!("{path}.portLevelSettings[{at}]");
            let Some(entry) = entry.as_object() else { continue };
            known(entry, &path, &["port", "loadBalancer", "connectionPool", "outlierDetection", "tls"], left);
            let number = entry.get("port").and_then(|p| p.get("number")).and_then(Value::as_u64);
            if let Some(number) = number.and_then(|n| u16::try_from(n).ok()) {
                ports.insert(number, PortPolicy::read(entry, &path, left));
            }
        }
        Self { all: PortPolicy::read(map, path, left), ports }
    }

    /// A port's entry replaces the whole.
    #[must_use]
    pub fn for_port(&self, port: u16) -> PortPolicy {
        self.ports.get(&port).unwrap_or(&self.all).clone()
    }
}

/// What applies to one port.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PortPolicy {
    /// How to choose among endpoints.
    pub balance: Option<Balance>,
    /// Preferences by place.
    pub locality: Option<LocalitySetting>,
    /// When to leave an endpoint out.
    pub outlier: Option<Outlier>,
    /// How to dial.
    pub tls: Option<ClientTls>,
    /// How long to try.
    pub connect_timeout: Option<Duration>,
    /// Limits.
    pub limits: Limits,
}

/// Limits of a client towards a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// Connections.
    pub connections: Option<u32>,
    /// Requests waiting for a connection.
    pub pending: Option<u32>,
    /// Requests under way.
    pub requests: Option<u32>,
    /// Retries under way.
    pub retries: Option<u32>,
    /// Requests a connection may carry.
    pub per_connection: Option<u32>,
}

impl PortPolicy {
    fn read(map: &Map<String, Value>, path: &str, left: &mut Vec<String>) -> Self {
        let mut policy = Self::default();
        let section = |name: &str| map.get(name).and_then(Value::as_object);
        if let Some(balancer) = section("loadBalancer") {
            let path = format!("{path}.loadBalancer");
            known(balancer, &path, &["simple", "localityLbSetting"], left);
            policy.balance = match text(balancer, "simple") {
                None | Some("UNSPECIFIED") => None,
                Some("RANDOM") => Some(Balance::Random),
                Some("ROUND_ROBIN") => Some(Balance::RoundRobin),
                Some("LEAST_REQUEST" | "LEAST_CONN") => Some(Balance::LeastRequest),
                Some(other) => {
                    left.push(format!("{path}.simple: {other}"));
                    None
                }
            };
            let setting = balancer.get("localityLbSetting");
            policy.locality = setting.map(|v| LocalitySetting::read(v, &format!("{path}.localityLbSetting"), left));
        }
        if let Some(pool) = section("connectionPool") {
            let path = format!("{path}.connectionPool");
            known(pool, &path, &["tcp", "http"], left);
            if let Some(tcp) = pool.get("tcp").and_then(Value::as_object) {
                known(tcp, &format!("{path}.tcp"), &["connectTimeout", "maxConnections"], left);
                policy.connect_timeout = text(tcp, "connectTimeout").and_then(duration);
                policy.limits.connections = number(tcp, "maxConnections");
            }
            if let Some(http) = pool.get("http").and_then(Value::as_object) {
                let names = ["http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries"];
                known(http, &format!("{path}.http"), &names, left);
                policy.limits.pending = number(http, names[0]);
                policy.limits.requests = number(http, names[1]);
                policy.limits.per_connection = number(http, names[2]);
                policy.limits.retries = number(http, names[3]);
            }
        }
        if let Some(outlier) = section("outlierDetection") {
            policy.outlier = Some(Outlier::read(outlier, &format!("{path}.outlierDetection"), left));
        }
        if let Some(tls) = section("tls") {
            let path = format!("{path}.tls");
            known(tls, &path, &["mode", "sni", "subjectAltNames"], left);
            let mode = match text(tls, "mode") {
                None | Some("DISABLE") => TlsMode::Disable,
                Some("ISTIO_MUTUAL") => TlsMode::IstioMutual,
                Some(other) => {
                    left.push(format!("{path}.mode: {other}"));
                    TlsMode::Unsupported
                }
            };
            policy.tls = Some(ClientTls {
                mode,
                sni: text(tls, "sni").map(str::to_owned),
                names: texts(tls, "subjectAltNames"),
            });
        }
        policy
    }

    fn over(self, base: Self) -> Self {
        let limits = if self.limits == Limits::default() { base.limits } else { self.limits };
        Self {
            balance: self.balance.or(base.balance),
            locality: self.locality.or(base.locality),
            outlier: self.outlier.or(base.outlier),
            tls: self.tls.or(base.tls),
            connect_timeout: self.connect_timeout.or(base.connect_timeout),
            limits,
        }
    }
}

/// How to choose among endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The less busy of two.
    LeastRequest,
    /// By lot.
    Random,
    /// In turn.
    RoundRobin,
}

/// How a client speaks TLS to a host.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientTls {
    /// The mode.
    pub mode: TlsMode,
    /// The server name, if not the usual one.
    pub sni: Option<String>,
    /// The identities taken, if not the usual ones.
    pub names: Vec<String>,
}

/// Whether a client speaks TLS to a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// No.
    Disable,
    /// With its workload identity.
    IstioMutual,
    /// In a way this control plane does not know: no connection at all.
    Unsupported,
}

/// When an endpoint is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlier {
    /// After this many 5xx in a row.
    pub consecutive_5xx: Option<u32>,
    /// After this many gateway errors in a row.
    pub consecutive_gateway: Option<u32>,
    /// After this many local errors in a row, counted apart when `split`.
    pub consecutive_local: Option<u32>,
    /// Whether local errors are counted apart.
    pub split: bool,
    /// How often is looked.
    pub interval: Option<Duration>,
    /// For how long, times the number of ejections.
    pub base: Option<Duration>,
    /// At most this part of all endpoints.
    pub max_percent: Option<u32>,
    /// Below this part of healthy ones all are used.
    pub min_health: Option<u32>,
}

impl Outlier {
    fn read(map: &Map<String, Value>, path: &str, left: &mut Vec<String>) -> Self {
        let names = [
            "consecutive5xxErrors",
            "consecutiveErrors",
            "consecutiveGatewayErrors",
            "consecutiveLocalOriginFailures",
            "splitExternalLocalOriginErrors",
            "interval",
            "baseEjectionTime",
            "maxEjectionPercent",
            "minHealthPercent",
        ];
        known(map, path, &names, left);
        Self {
            consecutive_5xx: number(map, names[0]).or_else(|| number(map, names[1])),
            consecutive_gateway: number(map, names[2]),
            consecutive_local: number(map, names[3]),
            split: map.get(names[4]).and_then(Value::as_bool).unwrap_or(false),
            interval: text(map, names[5]).and_then(duration),
            base: text(map, names[6]).and_then(duration),
            max_percent: number(map, names[7]),
            min_health: number(map, names[8]),
        }
    }
}

/// Preferences by place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalitySetting {
    /// `enabled: false` turns all of it off.
    pub disabled: bool,
    /// From where, how much to where.
    pub distribute: Vec<(String, Vec<(String, u32)>)>,
    /// From region, to region.
    pub failover: Vec<(String, String)>,
    /// Labels by which endpoints are near.
    pub failover_priority: Vec<String>,
}

impl LocalitySetting {
    /// Reads it from the API's form.
    pub fn read(value: &Value, path: &str, left: &mut Vec<String>) -> Self {
        let Some(map) = value.as_object() else { return Self::default() };
        known(map, path, &["enabled", "distribute", "failover", "failoverPriority"], left);
        let from = |entry: &Value| entry.get("from").and_then(Value::as_str).unwrap_or_default().to_owned();
        let distribute = list(map, "distribute").iter().map(|entry| {
            let to = entry.get("to").and_then(Value::as_object);
            let to = to.into_iter().flatten().map(|(place, weight)| {
                (place.clone(), weight.as_u64().and_then(|w| u32::try_from(w).ok()).unwrap_or_default())
            });
            (from(entry), to.collect())
        });
        let failover = list(map, "failover")
            .iter()
            .map(|entry| (from(entry), entry.get("to").and_then(Value::as_str).unwrap_or_default().to_owned()));
        Self {
            disabled: map.get("enabled").and_then(Value::as_bool) == Some(false),
            distribute: distribute.collect(),
            failover: failover.collect(),
            failover_priority: texts(map, "failoverPriority"),
        }
    }
}

/// Notes every field that is not known.
fn known(map: &Map<String, Value>, path: &str, names: &[&str], left: &mut Vec<String>) {
    for name in map.keys().filter(|name| !names.contains(&name.as_str())) {
        left.push(if path.is_empty() { name.clone() } else { format!("{path}.{name}") });
    }
}

fn text<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    map.get(name).and_then(Value::as_str)
}

fn number(map: &Map<String, Value>, name: &str) -> Option<u32> {
    map.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok())
}

fn list<'a>(map: &'a Map<String, Value>, name: &str) -> &'a [Value] {
    map.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn texts(map: &Map<String, Value>, name: &str) -> Vec<String> {
    list(map, name).iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn labels(value: &Value) -> Labels {
    let texts = value.as_object().into_iter().flatten();
    texts.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn match_labels(spec: &Map<String, Value>) -> Labels {
    spec.get("selector").and_then(|selector| selector.get("matchLabels")).map(labels).unwrap_or_default()
}

/// A duration as Go and protobuf write it: `1h30m`, `1.5s`, `500ms`.
#[must_use]
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        seconds += value
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = &rest[unit..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(kind: &str, namespace: &str, name: &str, created: i64, spec: Value) -> Object {
        Object {
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            generation: 1,
            created,
            spec,
        }
    }

    fn peer(namespace: &str, name: &str, created: i64, spec: Value) -> Object {
        object("PeerAuthentication", namespace, name, created, spec)
    }

    fn labels_of(app: &str) -> Labels {
        [("app".to_owned(), app.to_owned())].into()
    }

    #[test]
    fn peer_authentication_goes_mesh_namespace_workload_and_the_oldest_counts() {
        let policies = Policies::read(
            [
                peer("istio-system", "default", 1, json!({"mtls": {"mode": "STRICT"}})),
                peer("istio-system", "later", 2, json!({"mtls": {"mode": "DISABLE"}})),
                peer("open", "default", 3, json!({"mtls": {"mode": "PERMISSIVE"}})),
                peer("unset", "default", 3, json!({"mtls": {"mode": "UNSET"}})),
                peer(
                    "open",
                    "web",
                    4,
                    json!({
                        "selector": {"matchLabels": {"app": "web"}},
                        "mtls": {"mode": "UNSET"},
                        "portLevelMtls": {"8080": {"mode": "DISABLE"}, "9090": {"mode": "UNSET"}},
                    }),
                ),
            ],
            "cluster.local",
        );
        let mode = |namespace: &str, app: &str, port| policies.mtls("istio-system", namespace, &labels_of(app), port);
        assert_eq!(mode("sample", "a", 80), Mtls::Strict);
        assert_eq!(mode("open", "a", 80), Mtls::Permissive);
        assert_eq!(mode("unset", "a", 80), Mtls::Strict);
        assert_eq!(mode("open", "web", 8080), Mtls::Disable);
        assert_eq!(mode("open", "web", 9090), Mtls::Permissive);
        assert_eq!(Policies::default().mtls("istio-system", "x", &Labels::new(), 1), Mtls::Permissive);
        assert!(policies.findings.is_empty());
    }

    #[test]
    fn what_is_not_obeyed_is_found_and_security_closes() {
        let policies = Policies::read(
            [
                peer("a", "odd", 1, json!({"mtls": {"mode": "MAYBE"}, "selector": {"matchLabels": {"app": "x"}}})),
                object(
                    "AuthorizationPolicy",
                    "b",
                    "deny",
                    2,
                    json!({"selector": {"matchLabels": {"app": "y"}}, "rules": [
                        {"from": [{"source": {"requestPrincipals": ["*"], "ipBlocks": ["10.0.0.0/33"]}}]},
                        {"to": [{"operation": {"paths": ["/a/{*}"], "ports": ["http"]}}], "when": [{"key": "request.auth.claims[a]", "values": ["b"]}]}]}),
                ),
                object(
                    "AuthorizationPolicy",
                    "b",
                    "custom",
                    3,
                    json!({"action": "CUSTOM", "provider": {"name": "x"}, "selector": {"matchLabels": {"app": "z"}}}),
                ),
                object("AuthorizationPolicy", "b", "audit", 3, json!({"action": "AUDIT"})),
                object(
                    "VirtualService",
                    "c",
                    "vs",
                    4,
                    json!({"hosts": ["x", "y.example.com"], "gateways": ["mesh", "in"], "http": [
                    {"match": [{"sourceLabels": {}}], "route": [{"destination": {"host": "x"}}]},
                    {"mirror": {}, "retries": {"attempts": 1, "retryOn": "503,odd"}, "route": [{"destination": {"host": "x"}}]},
                    {"redirect": {}}]}),
                ),
                object("Sidecar", "c", "sidecar", 4, json!({})),
                object(
                    "DestinationRule",
                    "c",
                    "dr",
                    5,
                    json!({"host": "x", "trafficPolicy": {
                    "loadBalancer": {"consistentHash": {}}, "tunnel": {}}}),
                ),
                object(
                    "Gateway",
                    "c",
                    "ingress",
                    6,
                    json!({"servers": [
                    {"port": {"number": 80}},
                    {"port": {"number": 443, "protocol": "HTTPS"}, "tls": {"mode": "SIMPLE", "credentialName": "a"}},
                    {"port": {"number": 80, "protocol": "HTTP"}, "tls": {"httpsRedirect": true}},
                    {"port": {"number": 81, "protocol": "http"}, "bind": "1.2.3.4"}]}),
                ),
            ],
            "cluster.local",
        );
        let closed = |namespace: &str, app: &str| policies.is_closed("istio-system", namespace, &labels_of(app));
        assert!(closed("a", "x") && closed("b", "y") && closed("b", "z"));
        assert!(!closed("a", "y") && !closed("b", "x") && !closed("c", "x"));
        let findings: Vec<_> =
            policies.findings.iter().map(|f| format!("{} {}: {}", f.kind, f.name, f.message())).collect();
        let vs = policies.virtual_service("anywhere", "x.c.svc.cluster.local").unwrap();
        assert_eq!(vs.http.len(), 1, "what would match or do something else is left out");
        assert_eq!(vs.http[0].retries.as_ref().unwrap().statuses, [503]);
        insta::assert_snapshot!(findings.join("\n"), @r"
        PeerAuthentication odd: not supported by this control plane: mtls.mode: MAYBE; because it cannot be fully obeyed, the workloads it applies to refuse all connections
        AuthorizationPolicy deny: not supported by this control plane: rules[0].from[0].source.requestPrincipals, rules[0].from[0].source.ipBlocks: 10.0.0.0/33, rules[1].to[0].operation.ports: http, rules[1].to[0].operation.paths: /a/{*}, rules[1].when[0].key: request.auth.claims[a]; because it cannot be fully obeyed, the workloads it applies to refuse all connections
        AuthorizationPolicy audit: not supported by this control plane: action: AUDIT
        AuthorizationPolicy custom: not supported by this control plane: provider, action: CUSTOM; because it cannot be fully obeyed, the workloads it applies to refuse all connections
        Sidecar sidecar: the kind Sidecar is not supported by this control plane
        VirtualService vs: not supported by this control plane: hosts: y.example.com (only those of Services are), http[0].match[0].sourceLabels, http[1].mirror, http[1].retries.retryOn: odd, http[2].redirect
        DestinationRule dr: not supported by this control plane: trafficPolicy.tunnel, trafficPolicy.loadBalancer.consistentHash
        Gateway ingress: not supported by this control plane: servers[0] (only tls.mode AUTO_PASSTHROUGH and PASSTHROUGH and protocol HTTP are), servers[1].tls (HTTPS is not ended here), servers[2].tls.httpsRedirect, servers[3].bind
        ");
    }

    #[test]
    fn destination_rules_are_looked_up_and_merged() {
        let rule =
            |namespace: &str, name: &str, created, spec| object("DestinationRule", namespace, name, created, spec);
        let timeout = |text: &str| json!({"connectionPool": {"tcp": {"connectTimeout": text}}});
        let policies = Policies::read(
            [
                rule("istio-system", "root", 1, json!({"host": "*.local", "trafficPolicy": timeout("1s")})),
                rule("shop", "first", 2, json!({"host": "web", "subsets": [{"name": "v1", "labels": {"v": "1"}}]})),
                rule(
                    "shop",
                    "second",
                    3,
                    json!({"host": "web.shop.svc.cluster.local", "trafficPolicy": timeout("2s"),
                    "subsets": [{"name": "v1", "labels": {"v": "other"}}, {"name": "v2", "labels": {"v": "2"},
                        "trafficPolicy": {"outlierDetection": {"consecutive5xxErrors": 7}}}]}),
                ),
                rule("client", "own", 4, json!({"host": "*.shop.svc.cluster.local", "trafficPolicy": timeout("3s")})),
                rule("hidden", "own", 5, json!({"host": "web.shop.svc.cluster.local", "exportTo": ["."]})),
            ],
            "cluster.local",
        );
        let host = "web.shop.svc.cluster.local";
        let of = |client: &str| policies.destination("istio-system", client, &Labels::new(), host, "shop").unwrap();
        let connect = |client: &str| of(client).effective(80, "").connect_timeout.map(|d| d.as_secs());
        assert_eq!(connect("client"), Some(3));
        assert_eq!(connect("elsewhere"), Some(2));
        let merged = of("elsewhere");
        assert_eq!(
            merged.subsets.iter().map(|s| (&*s.name, &*s.labels["v"])).collect::<Vec<_>>(),
            [("v1", "1"), ("v2", "2")]
        );
        let v2 = merged.effective(80, "v2");
        assert_eq!(v2.outlier.unwrap().consecutive_5xx, Some(7));
        assert_eq!(v2.connect_timeout, Some(Duration::from_secs(2)));
        let other = policies.destination("istio-system", "x", &Labels::new(), "b.c.svc.cluster.local", "c").unwrap();
        assert_eq!(other.name, "root");
    }

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [("1s", 1000), ("500ms", 500), ("1m30s", 90_000), ("0.5s", 500), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "1", "x", "1y", "s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
