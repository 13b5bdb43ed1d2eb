use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stolos_pki::Certificate;

use crate::Objects;
use crate::object::{self, secret_text};
use crate::operator::Operator;
use crate::release::{Release, Rollback, Uninstall};

/// A readable name that is the same in every plan of a mesh, such as `trust/cluster-east-1/cacerts`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct StepId(pub(crate) String);

impl StepId {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a step does to what is there, in one character.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// `+`: it was not there.
    Add,
    /// `~`: it was different.
    Change,
    /// `-`: it goes.
    Remove,
    /// `…`: nothing is written, something has to become true.
    Wait,
}

impl Action {
    /// The one character.
    #[must_use]
    pub fn symbol(self) -> char {
        match self {
            Self::Add => '+',
            Self::Change => '~',
            Self::Remove => '-',
            Self::Wait => '…',
        }
    }
}

/// One change in one place, small enough to be repeated safely.
///
/// A step is data: it can be printed, stored and read back. It never carries a secret; what is secret is made while
/// the step is carried out.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its name.
    pub id: StepId,
    /// What it does to what is there.
    pub action: Action,
    /// Where; `None` is the state folder.
    pub cluster: Option<String>,
    /// What is done.
    pub change: Change,
    /// Steps that must have succeeded before this one starts.
    pub after: BTreeSet<StepId>,
    /// What in the mesh file or in the clusters made it necessary.
    pub because: String,
    /// What differs, object by object.
    pub diff: Vec<ObjectDiff>,
}

/// The name of a pod that is tried and never made.
const TRIAL: &str = "stolos-injection-trial";

/// Stands for an address that is known only when the step is carried out.
pub const ADDRESS: &str = "<address of the primary's gateway>";

/// What a step does. Doing it twice is the same as doing it once.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Change {
    /// Make a root certificate in the state folder, if there is none.
    #[serde(rename_all = "camelCase")]
    MakeRoot {
        /// `O=` of it.
        organization: String,
        /// Seconds from its making to its end.
        validity_seconds: u64,
    },
    /// Issue a signing certificate for this cluster from the root, and write it as Secret `cacerts`.
    #[serde(rename_all = "camelCase")]
    IssueIntermediate {
        /// `O=` of it.
        organization: String,
        /// The SPIFFE trust domain.
        trust_domain: String,
        /// Seconds from its making to its end.
        validity_seconds: u64,
        /// The Secret without its data.
        secret: Value,
    },
    /// Server-side apply these objects, all at once.
    Write {
        /// Whole, as wanted.
        objects: Vec<Value>,
    },
    /// Let this cluster's control plane read cluster `read`: a token of `read`, bound to the Secret that stands for
    /// this cluster there, written here as a remote secret.
    #[serde(rename_all = "camelCase")]
    Link {
        /// The cluster to be read.
        read: String,
        /// Where its API server is reached from here.
        server: String,
        /// The certificate authority of that address, as PEM; empty where the system's own are trusted.
        authority: String,
        /// The life of the token.
        token_seconds: u64,
        /// Whose token it is, if not the reader's in the cluster that is read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<Account>,
        /// The Secret without its data.
        secret: Value,
    },
    /// Make a cluster a member of the hub, which then dials it, or is dialled by an agent that is installed there.
    #[serde(rename_all = "camelCase")]
    Join {
        /// The cluster, which is called so in the hub as well.
        member: String,
        /// Where it is.
        region: Option<String>,
        /// Where in the region it is.
        zone: Option<String>,
        /// Labels of the hub's Cluster.
        labels: BTreeMap<String, String>,
        /// The image of the agent in it that dials the hub, where it is not the hub that dials.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        agent: Option<String>,
    },
    /// Take a cluster out of the hub, with all that the hub brought there.
    #[serde(rename_all = "camelCase")]
    Unjoin {
        /// What it is called in the hub.
        member: String,
    },
    /// Install a release with `helm`, or upgrade it.
    #[serde(rename_all = "camelCase")]
    Install {
        /// The kubeconfig context of the cluster.
        context: String,
        /// The release.
        release: Release,
    },
    /// Uninstall releases with `helm`, one after the other.
    #[serde(rename_all = "camelCase")]
    Uninstall {
        /// The kubeconfig context of the cluster.
        context: String,
        /// The releases.
        releases: Vec<Uninstall>,
    },
    /// Lead a release back to what it was, with `helm`.
    #[serde(rename_all = "camelCase")]
    Rollback {
        /// The kubeconfig context of the cluster.
        context: String,
        /// The release, and to what.
        release: Rollback,
    },
    /// Install what a document says with `istioctl`, and write down that it was done.
    #[serde(rename_all = "camelCase")]
    Operate {
        /// The kubeconfig context of the cluster.
        context: String,
        /// The document.
        operator: Operator,
    },
    /// Take away with `istioctl` what documents said, one after the other, and forget them.
    #[serde(rename_all = "camelCase")]
    Withdraw {
        /// The kubeconfig context of the cluster.
        context: String,
        /// The documents.
        operators: Vec<Operator>,
    },
    /// Delete these objects, as long as they are still the ones that were seen.
    Remove {
        /// Key and UID of each.
        objects: Vec<(ObjectKey, String)>,
    },
    /// Give up the fields Stolos owns in an object that is not its own.
    Release {
        /// The object's key and nothing else.
        object: ObjectKey,
    },
    /// Do this with the external address of a Service of another cluster where [`ADDRESS`] stands: the address was not
    /// there yet when the plan was made.
    #[serde(rename_all = "camelCase")]
    WithAddress {
        /// The other cluster.
        of: String,
        /// Its Service, in the control plane's namespace.
        service: String,
        /// What is done.
        change: Box<Change>,
    },
    /// Wait until all of these hold.
    Wait {
        /// What is waited for.
        conditions: Vec<Condition>,
    },
}

/// A service account, and the Secret that its tokens are bound to: they end when that does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// The place that has both, as steps call it.
    pub place: String,
    /// The namespace of both.
    pub namespace: String,
    /// The account.
    pub name: String,
    /// The Secret.
    pub secret: String,
}

impl Change {
    /// The commands of other people's programs that it runs, as a shell would take them.
    #[must_use]
    pub fn commands(&self) -> Vec<String> {
        match self {
            Self::Install { context, release } => vec![release.command(context)],
            Self::Uninstall { context, releases } => releases.iter().map(|release| release.command(context)).collect(),
            Self::Rollback { context, release } => vec![release.command(context)],
            Self::Operate { context, operator } => vec![operator.command(context, true)],
            Self::Withdraw { context, operators } => operators.iter().map(|o| o.command(context, false)).collect(),
            Self::WithAddress { change, .. } => change.commands(),
            _ => vec![],
        }
    }

    /// What is done once an address is known, if it waits for one; else the change itself.
    #[must_use]
    pub fn inner(&self) -> &Self {
        match self {
            Self::WithAddress { change, .. } => change.inner(),
            change => change,
        }
    }

    /// The change with `address` where [`ADDRESS`] stands.
    #[must_use]
    pub fn with_address(&self, address: &str) -> Self {
        fn fill(value: &mut Value, address: &str) {
            match value {
                Value::String(text) if text.contains(ADDRESS) => *text = text.replace(ADDRESS, address),
                Value::Array(items) => items.iter_mut().for_each(|item| fill(item, address)),
                Value::Object(fields) => fields.values_mut().for_each(|field| fill(field, address)),
                _ => {}
            }
        }
        let mut change = self.inner().clone();
        match &mut change {
            Self::Write { objects } => objects.iter_mut().for_each(|object| fill(object, address)),
            Self::Install { release, .. } => fill(&mut release.values, address),
            Self::Operate { operator, .. } => fill(&mut operator.document, address),
            _ => {}
        }
        change
    }
}

/// Something that becomes true after a write, by somebody else's hand.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Condition {
    /// The Deployment has rolled out.
    Available {
        /// Its namespace.
        namespace: String,
        /// Its name.
        deployment: String,
    },
    /// The control plane has written its CA into every webhook of the configuration.
    Trusted {
        /// The MutatingWebhookConfiguration.
        webhook: String,
    },
    /// The root in effect (ConfigMap `istio-ca-root-cert`) is the root intended (Secret `cacerts`).
    RootPublished {
        /// The control plane's namespace.
        namespace: String,
    },
    /// A root is published, by the control plane of another cluster.
    RootReceived {
        /// The control plane's namespace.
        namespace: String,
    },
    /// A pod that asks for a sidecar gets one: told by a dry run, so it is nothing that objects show.
    Injects {
        /// Where such a pod is tried.
        namespace: String,
        /// The revision it asks for, if not the default one.
        revision: Option<String>,
    },
    /// The Service has an external address.
    Addressed {
        /// Its namespace.
        namespace: String,
        /// Its name.
        service: String,
    },
    /// The API server serves the kind.
    Established {
        /// The CustomResourceDefinition.
        crd: String,
    },
    /// The object is no more.
    Gone {
        /// Which.
        object: ObjectKey,
    },
    /// No pod with these labels is left.
    NoPods {
        /// Where.
        namespace: String,
        /// Their labels.
        labels: BTreeMap<String, String>,
    },
    /// No control plane here reads that cluster any more, and every proxy has taken that; so have all proxies of the
    /// remotes that are led from here. The control planes tell it, so it is nothing that objects show.
    Forgotten {
        /// Which cluster.
        cluster: String,
        /// Clusters whose proxies must be connected to a control plane here.
        remotes: Vec<String>,
    },
}

impl Condition {
    /// The objects that decide it. Pods are listed by label instead: see [`Condition::NoPods`].
    #[must_use]
    pub fn reads(&self) -> Vec<ObjectKey> {
        match self {
            Self::Available { namespace, deployment } => {
                vec![ObjectKey::new("apps/v1", "Deployment", Some(namespace), deployment)]
            }
            Self::Trusted { webhook } => vec![webhook_key(webhook)],
            Self::RootPublished { namespace } => vec![published_key(namespace), cacerts_key(namespace)],
            Self::RootReceived { namespace } => vec![published_key(namespace)],
            Self::Addressed { namespace, service } => vec![ObjectKey::new("v1", "Service", Some(namespace), service)],
            Self::Established { crd } => {
                vec![ObjectKey::new("apiextensions.k8s.io/v1", "CustomResourceDefinition", None, crd)]
            }
            Self::Gone { object } => vec![object.clone()],
            Self::NoPods { .. } | Self::Injects { .. } | Self::Forgotten { .. } => vec![],
        }
    }

    /// The pod by which [`Condition::Injects`] is told.
    #[must_use]
    pub fn trial(&self) -> Option<Value> {
        let Self::Injects { namespace, revision } = self else { return None };
        let mut labels = json!({"sidecar.istio.io/inject": "true"});
        if let Some(revision) = revision {
            labels["istio.io/rev"] = revision.as_str().into();
        }
        Some(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": TRIAL, "namespace": namespace, "labels": labels},
            "spec": {"containers": [{"name": "trial", "image": "trial"}]}}))
    }

    /// What was seen of [`Condition::Forgotten`], as an object among others: what is missing, if anything is.
    #[must_use]
    pub fn sight(&self, missing: Option<String>) -> Option<Value> {
        let Self::Forgotten { cluster, .. } = self else { return None };
        let key = sight_key(cluster);
        Some(json!({"apiVersion": key.api_version, "kind": key.kind, "metadata": {"name": key.name},
            "status": {"missing": missing}}))
    }

    /// Whether it holds among `objects`.
    ///
    /// # Errors
    ///
    /// What is missing, in words that end "waiting for …" well.
    pub fn holds(&self, objects: &Objects) -> Result<(), String> {
        match self {
            Self::Available { namespace, deployment } => {
                let key = ObjectKey::new("apps/v1", "Deployment", Some(namespace), deployment);
                let live = objects.get(&key).ok_or_else(|| format!("{key} to exist"))?;
                rolled_out(live).map_err(|why| format!("{key} to be available ({why})"))
            }
            Self::Trusted { webhook } => {
                let key = webhook_key(webhook);
                let live = objects.get(&key).ok_or_else(|| format!("{key} to exist"))?;
                let hooks = live["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
                let trusted = |hook: &Value| hook["clientConfig"]["caBundle"].as_str().is_some_and(|ca| !ca.is_empty());
                if !hooks.is_empty() && hooks.iter().all(trusted) {
                    return Ok(());
                }
                Err(format!("the control plane to write its CA into {key}"))
            }
            Self::RootPublished { namespace } => {
                let intended = objects.get(&cacerts_key(namespace)).and_then(|s| secret_text(s, "root-cert.pem"));
                let published =
                    objects.get(&published_key(namespace)).and_then(|c| c["data"]["root-cert.pem"].as_str());
                match (intended, published) {
                    (Some(intended), Some(published)) if same_roots(&intended, published) => Ok(()),
                    (_, None) => Err(format!("ConfigMap {namespace}/istio-ca-root-cert to be published")),
                    _ => Err(format!("ConfigMap {namespace}/istio-ca-root-cert to hold the root of Secret cacerts")),
                }
            }
            Self::RootReceived { namespace } => {
                let published = objects.get(&published_key(namespace));
                match published.and_then(|c| c["data"]["root-cert.pem"].as_str()).map(Certificate::all_from_pem) {
                    Some(Ok(roots)) if !roots.is_empty() => Ok(()),
                    _ => Err(format!("the primary to publish ConfigMap {namespace}/istio-ca-root-cert")),
                }
            }
            Self::Injects { namespace, .. } => {
                let pod = objects.get(&ObjectKey::new("v1", "Pod", Some(namespace), TRIAL));
                let containers = pod.and_then(|pod| pod["spec"]["containers"].as_array());
                if containers.is_some_and(|all| all.iter().any(|container| container["name"] == "istio-proxy")) {
                    return Ok(());
                }
                let why = pod.and_then(|pod| pod["status"]["message"].as_str());
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                Err(format!("a pod that asks for a sidecar to get one{why}"))
            }
            Self::Addressed { namespace, service } => {
                let key = ObjectKey::new("v1", "Service", Some(namespace), service);
                let live = objects.get(&key).ok_or_else(|| format!("{key} to exist"))?;
                match external_address(live) {
                    Some(_) => Ok(()),
                    None => Err(format!("{key} to get an external address")),
                }
            }
            Self::Established { crd } => {
                let key = &self.reads()[0];
                let live = objects.get(key).ok_or_else(|| format!("{key} to exist"))?;
                let established = |c: &Value| c["type"] == "Established" && c["status"] == "True";
                match live["status"]["conditions"].as_array() {
                    Some(conditions) if conditions.iter().any(established) => Ok(()),
                    _ => Err(format!("the API server to serve {crd}")),
                }
            }
            Self::Gone { object } => match objects.get(object) {
                None => Ok(()),
                Some(_) => Err(format!("{object} to be gone")),
            },
            Self::NoPods { namespace, labels } => {
                let labelled = |pod: &Value| labels.iter().all(|(k, v)| pod["metadata"]["labels"][k] == **v);
                let left = objects
                    .kind("Pod")
                    .filter(|(key, pod)| key.namespace.as_deref() == Some(namespace) && labelled(pod))
                    .count();
                if left == 0 {
                    return Ok(());
                }
                let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                Err(format!("{left} pods {} in {namespace} to end", labels.join(",")))
            }
            Self::Forgotten { cluster, .. } => {
                let missing = objects.get(&sight_key(cluster)).map(|sight| &sight["status"]["missing"]);
                match missing {
                    Some(Value::Null) => Ok(()),
                    Some(missing) => Err(missing.as_str().unwrap_or_default().to_owned()),
                    None => Err(format!("proxies to forget {cluster}")),
                }
            }
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Available { namespace, deployment } => write!(f, "Deployment {namespace}/{deployment} is available"),
            Self::Trusted { webhook } => write!(f, "webhook {webhook} trusts its control plane"),
            Self::RootPublished { namespace } => write!(f, "{namespace}/istio-ca-root-cert holds the root"),
            Self::RootReceived { namespace } => write!(f, "{namespace}/istio-ca-root-cert is published"),
            Self::Injects { namespace, .. } => write!(f, "pods in {namespace} get sidecars"),
            Self::Addressed { namespace, service } => write!(f, "Service {namespace}/{service} has an address"),
            Self::Established { crd } => write!(f, "{crd} is served"),
            Self::Gone { object } => write!(f, "{object} is gone"),
            Self::NoPods { namespace, labels } => {
                let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
                write!(f, "no pod {} is left in {namespace}", labels.join(","))
            }
            Self::Forgotten { cluster, .. } => write!(f, "no proxy sends to {cluster} any more"),
        }
    }
}

fn sight_key(cluster: &str) -> ObjectKey {
    ObjectKey::new("stolos.dev/v1alpha1", "Sight", None, &format!("forgotten-{cluster}"))
}

/// The first address that a Service has outside its cluster: an IP if there is one, else a name.
#[must_use]
pub fn external_address(service: &Value) -> Option<&str> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array().map(Vec::as_slice).unwrap_or_default();
    let first = |field: &str| ingress.iter().find_map(|entry| entry[field].as_str().filter(|text| !text.is_empty()));
    first("ip").or_else(|| service["spec"]["externalIPs"][0].as_str()).or_else(|| first("hostname"))
}

/// As `kubectl rollout status` decides.
fn rolled_out(deployment: &Value) -> Result<(), String> {
    let number = |value: &Value, otherwise: i64| value.as_i64().unwrap_or(otherwise);
    let wanted = number(&deployment["spec"]["replicas"], 1);
    let status = &deployment["status"];
    if number(&status["observedGeneration"], 0) < number(&deployment["metadata"]["generation"], 0) {
        return Err("its new form is not seen yet".into());
    }
    let updated = number(&status["updatedReplicas"], 0);
    let total = number(&status["replicas"], 0);
    let available = number(&status["availableReplicas"], 0);
    match () {
        () if updated < wanted => Err(format!("{updated} of {wanted} updated")),
        () if total > updated => Err(format!("{} old pods are ending", total - updated)),
        () if available < updated => Err(format!("{available} of {updated} ready")),
        () => Ok(()),
    }
}

/// Whether two bundles hold the same certificates, however they are wrapped and ordered.
fn same_roots(one: &str, other: &str) -> bool {
    let fingerprints = |pem: &str| -> Option<BTreeSet<String>> {
        Some(Certificate::all_from_pem(pem).ok()?.iter().map(Certificate::fingerprint).collect())
    };
    fingerprints(one).is_some_and(|roots| !roots.is_empty() && Some(roots) == fingerprints(other))
}

fn webhook_key(name: &str) -> ObjectKey {
    ObjectKey::new("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", None, name)
}

fn published_key(namespace: &str) -> ObjectKey {
    ObjectKey::new("v1", "ConfigMap", Some(namespace), object::ROOT_CONFIG_MAP)
}

fn cacerts_key(namespace: &str) -> ObjectKey {
    ObjectKey::new("v1", "Secret", Some(namespace), object::CACERTS_SECRET)
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectKey {
    /// Such as `apps/v1`.
    pub api_version: String,
    /// Such as `Deployment`.
    pub kind: String,
    /// `None` for what no namespace holds.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// A key.
    #[must_use]
    pub fn new(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Self {
        Self {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        }
    }

    /// The key of `object`.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            api_version: text(&object["apiVersion"]),
            kind: text(&object["kind"]),
            namespace: object["metadata"]["namespace"].as_str().map(str::to_owned),
            name: text(&object["metadata"]["name"]),
        }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// What differs in one object.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectDiff {
    /// Which.
    pub object: ObjectKey,
    /// What becomes of it.
    pub action: Action,
    /// Field by field, for an object that is changed.
    pub fields: Vec<FieldDiff>,
}

/// What differs in one field. A secret value is never in it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct FieldDiff {
    /// Such as `spec.replicas`.
    pub path: String,
    /// What is there.
    pub from: Option<String>,
    /// What is wanted.
    pub to: Option<String>,
}
