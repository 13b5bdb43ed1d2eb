//! What a container says to its agent, in Istio's words.

use std::collections::BTreeMap;
use std::io;

use stolos_pki::{Roots, SpiffeId};
use stolos_serve::Container;
use stolos_xds::envoy::config::core::v3::Node;
use stolos_xds::message::{object, string, structure};
use stolos_xds::prost_types::Value;
use stolos_xds::prost_types::value::Kind as ValueKind;

/// The workload's token for the authority, projected by the kubelet and renewed under way.
pub(super) const TOKEN: &str = "/var/run/secrets/tokens/istio-token";
/// The roots that the control plane's own certificate is checked against.
const ROOTS: &str = "/var/run/secrets/istio/root-cert.pem";
/// What the small engine's control plane says of who signs here (SHA-256 of its certificate); Istio's says nothing.
const SIGNER: &str = "/var/run/secrets/istio/ca-cert.sha256";
const LABELS: &str = "/etc/istio/pod/labels";
const ANNOTATIONS: &str = "/etc/istio/pod/annotations";
/// Where a control plane is when nothing else is said.
const CONTROL_PLANE: &str = "istiod.istio-system.svc:15012";

/// What a proxy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Beside an application.
    Sidecar,
    /// On its own, as gateways are.
    Router,
}

impl Kind {
    /// As node ids have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::Router => "router",
        }
    }
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A DNS name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Why a container is no place for an agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The arguments are not a proxy's.
    #[error("expected the arguments `proxy sidecar` or `proxy router`, found `{0}`")]
    Arguments(String),
    /// Another proxy was asked for, and cannot be run.
    #[error("cannot run Envoy: {0}")]
    Program(String),
    /// It did run, and ended unasked.
    #[error("Envoy ended by itself: {0}")]
    Ended(String),
    /// A variable is needed and not set.
    #[error("the environment variable {0} is not set")]
    Unset(&'static str),
    /// A variable is set to something else than it should be.
    #[error("{variable} is `{found}`, which is not of the form host:port")]
    Place {
        /// Which one.
        variable: &'static str,
        /// What it says.
        found: String,
    },
}

/// What a container says, read once. Tokens, roots, labels and annotations change and are read when needed.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the proxy is for.
    pub kind: Kind,
    /// Its identity, as it asks for it; the authority goes by the token.
    pub identity: SpiffeId,
    /// The cluster it runs in.
    pub cluster: String,
    /// Where certificates come from.
    pub authority: Place,
    /// Where configuration comes from.
    pub discovery: Place,
    /// How long its certificates should live, in seconds; 0 leaves it to the authority.
    pub lifetime: i64,
    /// Whether it answers its application's DNS questions.
    pub wants_names: bool,
    /// The node's id.
    pub id: String,
    pod: String,
    addresses: Vec<String>,
    /// Node metadata from the environment.
    metadata: BTreeMap<String, Value>,
}

impl Settings {
    /// Reads a container's arguments and environment.
    ///
    /// # Errors
    ///
    /// [`Unusable`].
    pub fn read(container: &Container) -> Result<Self, Unusable> {
        let arguments: Vec<&str> = container.args.iter().map(String::as_str).collect();
        let kind = match arguments[..] {
            ["proxy", "sidecar", ..] => Kind::Sidecar,
            ["proxy", "router", ..] => Kind::Router,
            _ => return Err(Unusable::Arguments(arguments.join(" "))),
        };
        let need = |name| container.var(name).map(str::to_owned).ok_or(Unusable::Unset(name));
        let (pod, namespace) = (need("POD_NAME")?, need("POD_NAMESPACE")?);
        let account = container.var("SERVICE_ACCOUNT").unwrap_or("default");
        let domain = container.var("TRUST_DOMAIN").unwrap_or("cluster.local");

        let addresses: Vec<String> = match container.var("INSTANCE_IPS").or_else(|| container.var("INSTANCE_IP")) {
            Some(addresses) => addresses.split(',').map(|address| address.trim().to_owned()).collect(),
            None => vec![container.net.address().to_string()],
        };
        let given = arguments.windows(2).find(|pair| pair[0] == "--domain").map(|pair| pair[1]);
        // `$(POD_NAMESPACE)` is for the kubelet to fill in; where it did not, the default says the same.
        let dns_domain = given.filter(|domain| !domain.contains("$(")).map(str::to_owned);
        let dns_domain = dns_domain.unwrap_or_else(|| format!("{namespace}.svc.cluster.local"));
        let id = format!("{}~{}~{pod}.{namespace}~{dns_domain}", kind.word(), addresses[0]);

        let config = proxy_config(container.var("PROXY_CONFIG").unwrap_or_default());
        let discovery = config.get("discoveryAddress").and_then(serde_json::Value::as_str).unwrap_or(CONTROL_PLANE);
        let discovery = place("PROXY_CONFIG discoveryAddress", discovery)?;
        let authority = match container.var("CA_ADDR") {
            Some(address) => place("CA_ADDR", address)?,
            None => discovery.clone(),
        };
        let metadata = metadata(container, &config, &namespace, account, &addresses);
        let cluster = match metadata.get("CLUSTER_ID").and_then(|value| value.kind.as_ref()) {
            Some(ValueKind::StringValue(cluster)) => cluster.clone(),
            _ => "Kubernetes".to_owned(),
        };
        let is_true = |value: &Value| matches!(&value.kind, Some(ValueKind::StringValue(text)) if text == "true");
        Ok(Self {
            kind,
            identity: SpiffeId::new(domain, &namespace, account),
            cluster,
            authority,
            discovery,
            lifetime: container.var("SECRET_TTL").and_then(seconds).unwrap_or(0),
            wants_names: metadata.get("DNS_CAPTURE").is_some_and(is_true),
            id,
            pod,
            addresses,
            metadata,
        })
    }

    /// What the proxy says of itself now.
    #[must_use]
    pub fn node(&self, container: &Container) -> Node {
        let mut metadata = self.metadata.clone();
        for (key, file) in [("LABELS", LABELS), ("ANNOTATIONS", ANNOTATIONS)] {
            // A pod without labels has an empty file, and a test pod none.
            let text = std::fs::read_to_string(container.path(file)).unwrap_or_default();
            let pairs = downward(&text);
            if !pairs.is_empty() || !metadata.contains_key(key) {
                metadata.insert(key.into(), object(pairs.into_iter().map(|(key, value)| (key, string(value)))));
            }
        }
        metadata.insert("NAME".into(), string(&self.pod));
        let app = stolos_xds::message::text_at(&structure(metadata.clone()), &["LABELS", "app"]).map(str::to_owned);
        let cluster = format!("{}.{}", app.as_deref().unwrap_or("istio-proxy"), self.identity.namespace);
        Node {
            id: self.id.clone(),
            cluster,
            metadata: Some(structure(metadata)),
            user_agent_name: "stolos".into(),
            ..Node::default()
        }
    }

    /// The pod's addresses, the main one first.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }
}

/// The mesh's roots, as they are mounted now.
pub(super) fn mounted_roots(container: &Container) -> io::Result<Roots> {
    let path = container.path(ROOTS);
    let say = |why: String| format!("cannot read the roots {}: {why}", path.display());
    let bundle = std::fs::read_to_string(&path).map_err(|e| io::Error::new(e.kind(), say(e.to_string())))?;
    Roots::from_pem(&bundle).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, say(e.to_string())))
}

/// The mesh's roots and who signs, as they are mounted now: when either changes, a certificate is asked for anew.
pub(super) fn mounted_authority(container: &Container) -> io::Result<(Roots, Option<String>)> {
    let signer = std::fs::read_to_string(container.path(SIGNER)).ok();
    Ok((mounted_roots(container)?, signer))
}

/// Node metadata from the environment: `ISTIO_META_X` is X, `ISTIO_METAJSON_X` an object X.
fn metadata(
    container: &Container,
    config: &serde_json::Map<String, serde_json::Value>,
    namespace: &str,
    account: &str,
    addresses: &[String],
) -> BTreeMap<String, Value> {
    let mut metadata = BTreeMap::new();
    for (name, text) in &container.env {
        if let Some(key) = name.strip_prefix("ISTIO_METAJSON_") {
            if let Ok(value @ serde_json::Value::Object(_)) = serde_json::from_str(text) {
                metadata.insert(key.to_owned(), from_json(&value));
            }
        } else if let Some(key) = name.strip_prefix("ISTIO_META_")
            && !text.is_empty()
        {
            metadata.insert(key.to_owned(), string(text));
        }
    }
    for (key, text) in [
        ("NAMESPACE", namespace.to_owned()),
        ("SERVICE_ACCOUNT", account.to_owned()),
        ("INSTANCE_IPS", addresses.join(",")),
    ] {
        metadata.insert(key.to_owned(), string(text));
    }
    if !config.is_empty() {
        metadata.insert("PROXY_CONFIG".into(), from_json(&serde_json::Value::Object(config.clone())));
    }
    metadata.entry("ISTIO_VERSION".into()).or_insert_with(|| string(concat!(env!("CARGO_PKG_VERSION"), "-stolos")));
    metadata
}

fn proxy_config(text: &str) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(config)) => config,
        _ => serde_json::Map::new(),
    }
}

fn from_json(value: &serde_json::Value) -> Value {
    let kind = match value {
        serde_json::Value::Null => ValueKind::NullValue(0),
        serde_json::Value::Bool(value) => ValueKind::BoolValue(*value),
        serde_json::Value::Number(number) => ValueKind::NumberValue(number.as_f64().unwrap_or_default()),
        serde_json::Value::String(text) => return string(text),
        serde_json::Value::Array(values) => return stolos_xds::message::list(values.iter().map(from_json)),
        serde_json::Value::Object(fields) => {
            return object(fields.iter().map(|(key, value)| (key.clone(), from_json(value))));
        }
    };
    Value { kind: Some(kind) }
}

fn place(variable: &'static str, text: &str) -> Result<Place, Unusable> {
    let unusable = || Unusable::Place { variable, found: text.to_owned() };
    let (host, port) = text.rsplit_once(':').ok_or_else(unusable)?;
    if host.is_empty() {
        return Err(unusable());
    }
    Ok(Place { host: host.to_owned(), port: port.parse().map_err(|_| unusable())? })
}

/// A duration as Go writes it, `24h0m0s`; whole seconds.
fn seconds(text: &str) -> Option<i64> {
    let (mut total, mut number) = (0_i64, String::new());
    for c in text.chars() {
        if c.is_ascii_digit() {
            number.push(c);
            continue;
        }
        let unit = match c {
            'h' => 3600,
            'm' => 60,
            's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<i64>().ok()?.checked_mul(unit)?)?;
        number.clear();
    }
    number.is_empty().then_some(total)
}

/// The lines `key="value"` of a downward API file, whose values are quoted.
fn downward(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| value.trim_matches('"').to_owned());
        Some((key.trim().to_owned(), value))
    };
    text.lines().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use stolos_serve::{HostNet, Output};
    use stolos_xds::message::{text_at, texts_at};

    fn container(args: &[&str], env: &[(&str, &str)]) -> Container {
        Container {
            net: Arc::new(HostNet::new([10, 0, 0, 7].into())),
            root: "/nonexistent".into(),
            env: env.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            args: args.iter().map(ToString::to_string).collect(),
            output: Output::discard(),
            programs: None,
        }
    }

    #[test]
    fn an_injected_container_is_understood() {
        let container = container(
            &["proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local"],
            &[
                ("POD_NAME", "sleep-1"),
                ("POD_NAMESPACE", "sample"),
                ("SERVICE_ACCOUNT", "sleep"),
                ("INSTANCE_IP", "127.16.2.3"),
                ("TRUST_DOMAIN", "mesh.example"),
                ("CA_ADDR", "istiod-canary.istio-system.svc:15012"),
                ("PROXY_CONFIG", r#"{"discoveryAddress": "10.1.2.3:15010"}"#),
                ("ISTIO_META_CLUSTER_ID", "east"),
                ("ISTIO_META_NETWORK", "network-east"),
                ("ISTIO_META_UNSET", ""),
                ("ISTIO_METAJSON_LABELS", r#"{"app": "sleep"}"#),
                ("SECRET_TTL", "12h30m0s"),
            ],
        );
        let settings = Settings::read(&container).unwrap();
        assert_eq!(settings.identity.to_string(), "spiffe://mesh.example/ns/sample/sa/sleep");
        assert_eq!(settings.authority.host, "istiod-canary.istio-system.svc");
        assert_eq!((settings.discovery.host.as_str(), settings.discovery.port), ("10.1.2.3", 15010));
        assert_eq!((settings.cluster.as_str(), settings.lifetime), ("east", 45_000));
        let node = settings.node(&container);
        insta::assert_snapshot!(node.id, @"sidecar~127.16.2.3~sleep-1.sample~sample.svc.cluster.local");
        assert_eq!(node.cluster, "sleep.sample");
        let metadata = node.metadata.unwrap();
        assert_eq!(text_at(&metadata, &["NETWORK"]), Some("network-east"));
        assert_eq!(text_at(&metadata, &["UNSET"]), None);
        assert_eq!(text_at(&metadata, &["NAMESPACE"]), Some("sample"));
        assert_eq!(text_at(&metadata, &["PROXY_CONFIG", "discoveryAddress"]), Some("10.1.2.3:15010"));
        assert_eq!(texts_at(&metadata, &["LABELS"]), [("app".to_owned(), "sleep".to_owned())].into());
    }

    #[test]
    fn what_is_missing_is_named() {
        let pod = [("POD_NAME", "p"), ("POD_NAMESPACE", "n")];
        let read = |args: &[&str], env: &[(&str, &str)]| Settings::read(&container(args, env)).unwrap_err().to_string();
        insta::assert_snapshot!(read(&["run"], &pod), @"expected the arguments `proxy sidecar` or `proxy router`, found `run`");
        insta::assert_snapshot!(read(&["proxy", "router"], &pod[..1]), @"the environment variable POD_NAMESPACE is not set");
        let wrong = [pod[0], pod[1], ("CA_ADDR", "istiod")];
        insta::assert_snapshot!(read(&["proxy", "router"], &wrong), @"CA_ADDR is `istiod`, which is not of the form host:port");
    }

    #[test]
    fn downward_files_are_unquoted() {
        let pairs = downward("app=\"sleep\"\nnote=\"two\\nlines and \\\"quotes\\\"\"\n\nnot a pair\n");
        assert_eq!(pairs["app"], "sleep");
        assert_eq!(pairs["note"], "two\nlines and \"quotes\"");
        assert_eq!(pairs.len(), 2);
    }

    #[test]
    fn durations_are_gos() {
        for (text, expected) in [("24h0m0s", Some(86_400)), ("90s", Some(90)), ("", Some(0)), ("1d", None), ("5", None)]
        {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }
}
