//! What was seen: every datum with the time it was read, or the reason why it could not be.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_k8s::{istio, meta};

/// Something that was to be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Datum<T> {
    /// It was.
    Read {
        /// What it is.
        value: T,
        /// When.
        #[serde(with = "time")]
        at: SystemTime,
    },
    /// It was not.
    Unread {
        /// Why.
        why: String,
    },
}

impl<T> Datum<T> {
    /// What was read.
    pub fn value(&self) -> Option<&T> {
        match self {
            Self::Read { value, .. } => Some(value),
            Self::Unread { .. } => None,
        }
    }

    /// Why it was not read.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Read { .. } => None,
            Self::Unread { why } => Some(why),
        }
    }

    /// Read now.
    pub fn now(value: T) -> Self {
        Self::Read { value, at: SystemTime::now() }
    }

    /// Read now, or not.
    pub fn of(read: Result<T, String>) -> Self {
        match read {
            Ok(value) => Self::now(value),
            Err(why) => Self::Unread { why },
        }
    }
}

/// Everything that the causes are judged by.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// When the look ended, by this machine's clock.
    pub now: SystemTime,
    /// By the cluster's name in the mesh.
    pub clusters: BTreeMap<String, Datum<Seen>>,
}

/// One cluster.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Seen {
    /// The kubeconfig context.
    pub context: String,
    /// The URL of its API server, as the kubeconfig says.
    pub server: String,
    /// `/version`'s `gitVersion`.
    pub version: String,
    /// Whether it is a lab cluster.
    pub is_lab: bool,
    /// The UID of `kube-system`.
    pub uid: String,
    /// The clocks, read together.
    pub clock: Option<Clock>,
    /// Objects by kind. An archive has files of their own for these.
    #[serde(skip)]
    pub objects: BTreeMap<String, Datum<Vec<Value>>>,
    /// Every running pod of the control plane.
    pub istiods: Vec<Istiod>,
    /// Gateways of other networks, dialled from inside this cluster and from this machine.
    pub gateways: Vec<GatewayProbe>,
    /// Pods of other clusters on the same network, dialled from inside this cluster.
    pub paths: Vec<PathProbe>,
    /// The credentials that this cluster's remote secrets hold, tried.
    pub credentials: Vec<CredentialProbe>,
    /// Names of load balancers, resolved from this machine.
    pub names: BTreeMap<String, Datum<Vec<IpAddr>>>,
    /// What a pod that asks for a sidecar is answered, without making it; only where the control plane is elsewhere.
    pub injection: Option<Datum<Result<(), String>>>,
}

/// Two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clock {
    /// The API server's, from the header `Date`.
    #[serde(with = "time")]
    pub api: SystemTime,
    /// This machine's, in the middle of that exchange.
    #[serde(with = "time")]
    pub local: SystemTime,
}

/// One pod of a control plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Istiod {
    /// Its name.
    pub pod: String,
    /// `/debug/clusterz`.
    pub clusterz: Datum<Value>,
    /// `/debug/endpointShardz`.
    pub shards: Datum<Value>,
}

/// From where something was dialled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum From {
    /// From a pod of the cluster that the probe stands under.
    Inside(String),
    /// From the machine that runs the check.
    Here,
}

impl std::fmt::Display for From {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inside(pod) => write!(f, "from pod {pod}"),
            Self::Here => f.write_str("from this machine"),
        }
    }
}

/// How far a connection got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Touch {
    /// Somebody took it.
    Reached,
    /// Somebody refused it at once.
    Refused,
    /// Nobody said anything.
    Silent,
    /// The name has no address.
    Unresolved,
    /// It began and stood still: small packets pass and large ones do not.
    Stalled,
    /// In other words.
    Other(String),
}

impl std::fmt::Display for Touch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reached => "reached",
            Self::Refused => "refused (nothing listens there)",
            Self::Silent => "no answer (filtered, or no route)",
            Self::Unresolved => "the name has no address",
            Self::Stalled => "it connected and then stood still",
            Self::Other(why) => why,
        })
    }
}

/// A gateway that was dialled.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayProbe {
    /// The cluster it stands in.
    pub cluster: String,
    /// `namespace/name` of its Service.
    pub service: String,
    /// Its address.
    pub address: String,
    /// The port.
    pub port: u16,
    /// From where.
    pub from: From,
    /// How far that got.
    pub touch: Datum<Touch>,
    /// A handshake as a proxy makes it, with the name of a service and Istio's ALPN; only from this machine, and only
    /// where there is a service to ask for.
    pub handshake: Option<Handshake>,
}

/// What a TLS handshake through a gateway showed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Handshake {
    /// The name that was asked for.
    pub sni: String,
    /// The certificates that came back (DER, leaf first), or what went wrong.
    #[serde(with = "shown_chain")]
    pub chain: Result<Vec<Vec<u8>>, String>,
}

/// A pod that was dialled.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathProbe {
    /// Its cluster.
    pub cluster: String,
    /// Its name.
    pub pod: String,
    /// Its address.
    pub address: String,
    /// From which pod.
    pub from: String,
    /// How far that got.
    pub touch: Datum<Touch>,
}

/// A remote secret's credential that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialProbe {
    /// `namespace/name` of the Secret.
    pub secret: String,
    /// The key.
    pub key: String,
    /// The server it names.
    pub server: String,
    /// The server, dialled from inside the cluster that holds the secret.
    pub inside: Option<Datum<Touch>>,
    /// What the server said to the credential, asked from this machine.
    pub answer: Datum<CredentialAnswer>,
}

/// What an API server said to a credential.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum CredentialAnswer {
    /// It is somebody.
    Accepted {
        /// What it may not read of what a control plane needs: `get endpointslices.discovery.k8s.io`.
        missing: Vec<String>,
        /// Whether it may do anything.
        anything: bool,
        /// The UID of `kube-system`, where that may be read.
        uid: Option<String>,
    },
    /// The token is not accepted (401).
    Unauthorized(String),
    /// TLS failed: the certificate is not for this name, or not from the authority that the kubeconfig names.
    Untrusted(String),
    /// A hub answered that it does not reach the cluster now (502 to 504).
    NotReached(String),
}

/// Times as people write them, to the microsecond: what a clock is off by must survive.
mod time {
    use std::time::SystemTime;

    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        let at = jiff::Timestamp::try_from(*at).map_err(S::Error::custom)?;
        to.serialize_str(&at.to_string())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(from)?;
        super::instant(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is no time")))
    }
}

/// Certificates as PEM has them, without its frame.
mod shown_chain {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    type Chain = Result<Vec<Vec<u8>>, String>;

    pub(super) fn serialize<S: Serializer>(chain: &Chain, to: S) -> Result<S::Ok, S::Error> {
        let text = chain.as_ref().map(|chain| chain.iter().map(|der| STANDARD.encode(der)).collect::<Vec<_>>());
        text.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Chain, D::Error> {
        match Result::<Vec<String>, String>::deserialize(from)? {
            Ok(chain) => {
                let chain: Result<Vec<_>, _> = chain.iter().map(|der| STANDARD.decode(der)).collect();
                chain.map(Ok).map_err(D::Error::custom)
            }
            Err(why) => Ok(Err(why)),
        }
    }
}

/// Kinds that are listed, and where: `apiVersion`, `kind`, whether only in the control plane's namespace.
pub(crate) const LISTED: [(&str, &str, bool); 17] = [
    ("v1", "Namespace", false),
    ("v1", "Node", false),
    ("v1", "Service", false),
    ("v1", "Pod", false),
    ("discovery.k8s.io/v1", "EndpointSlice", false),
    ("apps/v1", "Deployment", false),
    ("v1", "Secret", true),
    ("v1", "ConfigMap", true),
    ("policy/v1", "PodDisruptionBudget", false),
    ("networking.k8s.io/v1", "NetworkPolicy", false),
    ("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", false),
    ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", false),
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition", false),
    ("coordination.k8s.io/v1", "Lease", false),
    ("apps/v1", "DaemonSet", false),
    ("networking.k8s.io/v1", "ServiceCIDR", false),
    ("gateway.networking.k8s.io/v1", "Gateway", false),
];

/// Where Kubernetes' own Gateways are kept, since Istio's have the same kind.
pub(crate) const KUBERNETES_GATEWAYS: &str = "Gateway.gateway.networking.k8s.io";
/// Where Secrets of all namespaces with the label of remote secrets are kept.
pub(crate) const LABELLED_SECRETS: &str = "Secret/istio/multiCluster";

impl Seen {
    /// Objects of a kind; none where they could not be read.
    pub fn all(&self, kind: &str) -> &[Value] {
        self.objects.get(kind).and_then(Datum::value).map(Vec::as_slice).unwrap_or_default()
    }

    /// Why objects of a kind could not be read, if so.
    pub fn unread(&self, kind: &str) -> Option<&str> {
        self.objects.get(kind).map_or(Some("it was not asked for"), Datum::why)
    }

    /// One object.
    pub fn get(&self, kind: &str, namespace: &str, name: &str) -> Option<&Value> {
        self.all(kind).iter().find(|o| meta::namespace(o) == namespace && meta::name(o) == name)
    }

    /// One object in the control plane's namespace.
    pub fn system(&self, kind: &str, name: &str) -> Option<&Value> {
        self.get(kind, istio::SYSTEM_NAMESPACE, name)
    }

    /// The control plane's namespace.
    pub fn system_namespace(&self) -> Option<&Value> {
        self.all("Namespace").iter().find(|n| meta::name(n) == istio::SYSTEM_NAMESPACE)
    }

    /// Deployments of control planes.
    pub fn istiod_deployments(&self) -> impl Iterator<Item = &Value> {
        self.all("Deployment").iter().filter(|d| {
            meta::namespace(d) == istio::SYSTEM_NAMESPACE && meta::label(d, istio::APP_LABEL) == Some(istio::ISTIOD)
        })
    }

    /// Services that carry the label of a network: gateways.
    pub fn gateway_services(&self) -> impl Iterator<Item = (&Value, &str)> {
        self.all("Service").iter().filter_map(|s| Some((s, meta::label(s, istio::NETWORK_LABEL)?)))
    }

    /// Pods that a Service selects.
    pub fn pods_of<'a>(&'a self, service: &Value) -> Vec<&'a Value> {
        let Some(selector) = service["spec"]["selector"].as_object().filter(|s| !s.is_empty()) else { return vec![] };
        self.all("Pod")
            .iter()
            .filter(|p| meta::namespace(p) == meta::namespace(service))
            .filter(|p| selector.iter().all(|(key, value)| meta::label(p, key) == value.as_str()))
            .collect()
    }
}

/// `namespace/name`, or the name alone.
pub(crate) fn path(object: &Value) -> String {
    match meta::namespace(object) {
        "" => meta::name(object).to_owned(),
        namespace => format!("{namespace}/{}", meta::name(object)),
    }
}

/// `Kind namespace/name`.
pub(crate) fn named(kind: &str, object: &Value) -> String {
    format!("{kind} {}", path(object))
}

/// Whether a pod says that it is ready.
pub(crate) fn is_ready(pod: &Value) -> bool {
    meta::deletion_timestamp(pod).is_none()
        && pod["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// Whether a pod is at its end or on its way there.
pub(crate) fn is_over(pod: &Value) -> bool {
    meta::deletion_timestamp(pod).is_some() || matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// The proxy's container, if the pod has one; native sidecars are init containers.
pub(crate) fn proxy(pod: &Value) -> Option<&Value> {
    let containers = |field: &str| pod["spec"][field].as_array().into_iter().flatten();
    containers("containers").chain(containers("initContainers")).find(|c| c["name"] == istio::PROXY_CONTAINER)
}

/// A variable of a container's environment, where it is written down.
pub(crate) fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    container["env"].as_array()?.iter().find(|e| e["name"] == name)?["value"].as_str()
}

/// When an object was changed last, as far as it tells.
pub(crate) fn since(object: &Value) -> Option<SystemTime> {
    let fields = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let times = fields.filter_map(|f| f["time"].as_str());
    let last = times.max().or(Some(meta::creation_timestamp(object)));
    last.and_then(instant)
}

/// Reads RFC 3339.
pub(crate) fn instant(text: &str) -> Option<SystemTime> {
    text.parse::<jiff::Timestamp>().ok().map(SystemTime::from)
}
