//! AuthorizationPolicies: who may do what to a workload (Istio 1.30, `security.istio.io/v1`).

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::{Applies, Object, Policies, known, list, match_labels, text, texts};
use crate::model::Labels;

/// A policy that can be obeyed.
#[derive(Clone, Debug, PartialEq)]
pub struct Authorization {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whom it is about.
    pub applies: Applies,
    /// What becomes of what its rules match.
    pub action: Action,
    /// Any of them; none matches nothing.
    pub rules: Vec<Rule>,
}

/// What becomes of what a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// It is refused, whatever else allows it.
    Deny,
    /// It is let in; and with one such policy, nothing that none of them matches.
    Allow,
}

/// Some requests, or connections. All three parts must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// Who: any of these, of each all of it. None is everybody.
    pub from: Vec<Vec<Condition>>,
    /// What: the same.
    pub to: Vec<Vec<Condition>>,
    /// Under which conditions: all of them.
    pub when: Vec<Condition>,
}

/// What something must be: one of these, and none of those. An empty list says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// What of it.
    pub of: Attribute,
    /// One of these.
    pub values: Vec<String>,
    /// None of these.
    pub not_values: Vec<String>,
}

/// What is known of a connection or a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// The peer's identity, without `spiffe://`.
    Principal,
    /// The namespace in it.
    Namespace,
    /// `namespace/account` in it.
    ServiceAccount,
    /// The address the connection comes from.
    Ip,
    /// The workload's address.
    DestinationIp,
    /// The workload's port.
    Port,
    /// The server name that TLS asked for.
    Sni,
    /// The host of a request.
    Host,
    /// Its method.
    Method,
    /// Its path, without its query.
    Path,
    /// A header of it.
    Header(String),
}

impl Attribute {
    /// Whether only requests have it.
    #[must_use]
    pub fn is_of_requests(&self) -> bool {
        matches!(self, Self::Host | Self::Method | Self::Path | Self::Header(_))
    }

    /// Whether it says who, not what.
    #[must_use]
    pub fn is_of_source(&self) -> bool {
        matches!(self, Self::Principal | Self::Namespace | Self::ServiceAccount | Self::Ip | Self::Header(_))
    }

    /// Whether it can be compared with this.
    fn takes(&self, value: &str) -> bool {
        match self {
            Self::Ip | Self::DestinationIp => block(value).is_some(),
            Self::Port => value.parse::<u16>().is_ok(),
            // Templates of paths (`{*}`) are another language.
            Self::Path => !value.is_empty() && !value.contains('{'),
            // Account names have no patterns.
            Self::ServiceAccount => !value.is_empty() && !value.contains('*'),
            _ => !value.is_empty(),
        }
    }
}

/// An address, or a block of them, as address and length.
#[must_use]
pub fn block(text: &str) -> Option<(IpAddr, u32)> {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Some(most), |length| length.parse().ok())?;
    (length <= most).then_some((address, length))
}

const SOURCE: [(&str, &str, Attribute); 4] = [
    ("principals", "notPrincipals", Attribute::Principal),
    ("namespaces", "notNamespaces", Attribute::Namespace),
    ("serviceAccounts", "notServiceAccounts", Attribute::ServiceAccount),
    ("ipBlocks", "notIpBlocks", Attribute::Ip),
];
const OPERATION: [(&str, &str, Attribute); 4] = [
    ("hosts", "notHosts", Attribute::Host),
    ("ports", "notPorts", Attribute::Port),
    ("methods", "notMethods", Attribute::Method),
    ("paths", "notPaths", Attribute::Path),
];

impl Authorization {
    /// None for a policy that lets in and keeps out nobody (AUDIT), or that cannot be obeyed: then something is left.
    pub(super) fn read(object: &Object, spec: &Map<String, Value>, left: &mut Vec<String>) -> Option<Self> {
        known(spec, "", &["selector", "action", "rules"], left);
        let action = match text(spec, "action") {
            None | Some("ALLOW") => Action::Allow,
            Some("DENY") => Action::Deny,
            Some(other) => {
                left.push(format!("action: {other}"));
                return None;
            }
        };
        let mut rules = Vec::new();
        for (at, rule) in list(spec, "rules").iter().enumerate() {
            let path = format!("rules[{at}]");
            // A rule that is null matches as an empty one does.
            let empty = Map::new();
            rules.push(Rule::read(rule.as_object().unwrap_or(&empty), &path, &object.namespace, left));
        }
        Some(Self {
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            applies: Self::applies(object, spec),
            action,
            rules,
        })
    }

    /// Whom a policy is about, whether or not it can be obeyed.
    pub(super) fn applies(object: &Object, spec: &Map<String, Value>) -> Applies {
        Applies {
            namespace: object.namespace.clone(),
            selector: match_labels(spec),
            any: spec.contains_key("targetRef") || spec.contains_key("targetRefs"),
        }
    }
}

impl Rule {
    fn read(map: &Map<String, Value>, path: &str, namespace: &str, left: &mut Vec<String>) -> Self {
        known(map, path, &["from", "to", "when"], left);
        let mut part = |name: &str, of: &str, fields: &[(&str, &str, Attribute)]| {
            let mut all = Vec::new();
            for (at, entry) in list(map, name).iter().enumerate() {
                let path = format!("{path}.{name}[{at}]");
                let Some(inner) = entry.get(of).and_then(Value::as_object) else {
                    left.push(path);
                    continue;
                };
                let path = format!("{path}.{of}");
                let names: Vec<_> = fields.iter().flat_map(|(with, without, _)| [*with, *without]).collect();
                known(inner, &path, &names, left);
                let mut conditions = Vec::new();
                for (with, without, attribute) in fields {
                    let condition = Condition {
                        of: attribute.clone(),
                        values: texts(inner, with),
                        not_values: texts(inner, without),
                    };
                    let places = [(*with, &condition.values), (*without, &condition.not_values)];
                    for (field, value) in places.into_iter().flat_map(|(f, values)| values.iter().map(move |v| (f, v)))
                    {
                        if !attribute.takes(value) {
                            left.push(format!("{path}.{field}: {value}"));
                        }
                    }
                    conditions.extend(condition.in_namespace(namespace));
                }
                all.push(conditions);
            }
            all
        };
        let from = part("from", "source", &SOURCE);
        let to = part("to", "operation", &OPERATION);
        let mut when = Vec::new();
        for (at, condition) in list(map, "when").iter().enumerate() {
            let path = format!("{path}.when[{at}]");
            let Some(condition) = condition.as_object() else { continue };
            known(condition, &path, &["key", "values", "notValues"], left);
            let key = text(condition, "key").unwrap_or_default();
            let Some(of) = attribute(key) else {
                left.push(format!("{path}.key: {key}"));
                continue;
            };
            let read = Condition { of, values: texts(condition, "values"), not_values: texts(condition, "notValues") };
            for value in read.values.iter().chain(&read.not_values).filter(|value| !read.of.takes(value)) {
                left.push(format!("{path}: {value}"));
            }
            when.extend(read.in_namespace(namespace));
        }
        Self { from, to, when }
    }
}

impl Condition {
    /// With accounts of no namespace in the policy's; none when it says nothing.
    fn in_namespace(mut self, namespace: &str) -> Option<Self> {
        if self.of == Attribute::ServiceAccount {
            for account in self.values.iter_mut().chain(&mut self.not_values).filter(|account| !account.contains('/')) {
                *account = format!("{namespace}/{account}");
            }
        }
        (!self.values.is_empty() || !self.not_values.is_empty()).then_some(self)
    }
}

/// What a condition's key stands for.
fn attribute(key: &str) -> Option<Attribute> {
    Some(match key {
        "source.principal" => Attribute::Principal,
        "source.namespace" => Attribute::Namespace,
        "source.serviceAccount" => Attribute::ServiceAccount,
        "source.ip" => Attribute::Ip,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::Port,
        "connection.sni" => Attribute::Sni,
        _ => {
            let name = key.strip_prefix("request.headers[")?.strip_suffix(']')?;
            Attribute::Header(Some(name).filter(|name| !name.is_empty())?.to_ascii_lowercase())
        }
    })
}

impl Policies {
    /// The policies about a workload, those that deny first, and in each the oldest first.
    #[must_use]
    pub fn authorizations(&self, root: &str, namespace: &str, labels: &Labels) -> Vec<&Authorization> {
        let mut found: Vec<_> =
            self.authorizations.iter().filter(|policy| policy.applies.to(root, namespace, labels)).collect();
        found.sort_by_key(|policy| policy.action);
        found
    }
}
