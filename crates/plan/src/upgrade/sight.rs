//! What an upgrade needs to know of a cluster, read from its objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use serde_json::Value;
use stolos_k8s::selector::LabelSelector;
use stolos_k8s::{istio, meta};
use stolos_spec::{Cluster, Mesh};

use crate::build::upgrade::{DEFAULT, is_control, revision_of};
use crate::object::{SYSTEM_NAMESPACE, upgrading};
use crate::release::deployed;
use crate::values::{EASTWEST, INGRESS};
use crate::{ClusterState, Condition};

/// By which a namespace that an upgrade has moved remembers how it asked for proxies before.
pub const WAS_ANNOTATION: &str = "stolos.dev/upgraded-from";

/// One cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterSight {
    /// Its name in the mesh.
    pub name: String,
    /// Control planes of this mesh that are installed here; of a remote, what leads to its primary's.
    pub control_planes: Vec<ControlPlane>,
    /// The gateways that Stolos installed here.
    pub gateways: Vec<Gateway>,
    /// Namespaces whose pods have proxies, or would get them.
    pub namespaces: Vec<Namespace>,
    /// Proxies that are connected to control planes of this cluster, whose ever they are, by the control plane's revision.
    pub connected: BTreeMap<String, BTreeSet<String>>,
    /// The revision that an upgrade under way leads to, as the cluster remembers it.
    pub upgrading: Option<String>,
    /// What could not be seen.
    pub unread: Vec<String>,
}

/// A control plane, or what leads to one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane {
    /// What it is called: `default` without a revision.
    pub revision: String,
    /// Helm's name of it.
    pub release: String,
    /// The version of its chart.
    pub version: String,
    /// Whether it answers, or why not.
    pub ready: Result<(), String>,
}

/// A gateway of Stolos' own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Helm's name of it, which is that of its Deployment.
    pub release: String,
    /// The control plane that it asks for.
    pub revision: String,
    /// Its pods, by the control plane that made their proxies.
    pub proxies: BTreeMap<String, usize>,
    /// Whether it has rolled out, or why not.
    pub settled: Result<(), String>,
}

/// How a namespace asks for proxies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asks {
    /// It does not, or refuses them; single pods may.
    No,
    /// `istio-injection=enabled`: those of the default control plane, or of tag `default`.
    Enabled,
    /// `istio.io/rev`: those of a revision, or of a tag.
    Revision(String),
}

impl Asks {
    /// As the label says it; `istio-injection=enabled` wins over a revision (contract B.8).
    #[must_use]
    pub fn of(namespace: &Value) -> Self {
        match meta::label(namespace, istio::INJECTION_LABEL) {
            Some(istio::INJECTION_ENABLED) => return Self::Enabled,
            Some(_) => return Self::No,
            None => {}
        }
        meta::label(namespace, istio::REVISION_LABEL).map_or(Self::No, |revision| Self::Revision(revision.to_owned()))
    }

    /// The same, from the text that [`fmt::Display`] makes of it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('=')? {
            (istio::INJECTION_LABEL, istio::INJECTION_ENABLED) => Some(Self::Enabled),
            (istio::REVISION_LABEL, revision) if !revision.is_empty() => Some(Self::Revision(revision.to_owned())),
            _ => None,
        }
    }

    /// For a namespace that asks for exactly this control plane.
    #[must_use]
    pub fn for_revision(revision: &str) -> Self {
        match revision {
            DEFAULT => Self::Enabled,
            revision => Self::Revision(revision.to_owned()),
        }
    }

    /// Label and value.
    #[must_use]
    pub fn label(&self) -> Option<(&'static str, &str)> {
        match self {
            Self::No => None,
            Self::Enabled => Some((istio::INJECTION_LABEL, istio::INJECTION_ENABLED)),
            Self::Revision(revision) => Some((istio::REVISION_LABEL, revision)),
        }
    }
}

impl fmt::Display for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.label() {
            None => f.write_str("no label"),
            Some((label, value)) => write!(f, "{label}={value}"),
        }
    }
}

/// A namespace with proxies.
#[derive(Clone, Debug, PartialEq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// How it asks for proxies.
    pub asks: Asks,
    /// Whose it gets.
    pub revision: Option<String>,
    /// The tag that says so, if it is one that does.
    pub tag: Option<String>,
    /// How it asked before an upgrade moved it.
    pub was: Option<Asks>,
    /// What runs in it.
    pub workloads: Vec<Workload>,
}

/// Pods that belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// `Deployment`, `StatefulSet`, `DaemonSet`; else the kind of whoever made the pods, or `Pod`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its pods with proxies, by the control plane that made the proxy.
    pub proxies: BTreeMap<String, usize>,
    /// What keeps its rollout from its end, if anything.
    pub rolling: Option<String>,
    /// Why restarting it is not for Stolos to do, or would not help.
    pub by_hand: Option<String>,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.to_lowercase(), self.name)
    }
}

/// What was read of a cluster besides what every plan reads.
#[derive(Clone, Debug, Default)]
pub struct Besides {
    /// All pods.
    pub pods: Vec<Value>,
    /// All Deployments, StatefulSets and DaemonSets.
    pub workloads: Vec<Value>,
    /// By control plane's pod, the proxies that are connected to it.
    pub connected: Vec<(String, Result<Vec<String>, String>)>,
    /// What could not be read.
    pub unread: Vec<String>,
}

impl ClusterSight {
    /// What these objects say.
    #[must_use]
    pub fn of(mesh: &Mesh, cluster: &Cluster, state: &ClusterState, besides: &Besides) -> Self {
        let pods: Vec<&Value> = besides.pods.iter().filter(|pod| lives(pod)).collect();
        let tags = tags(state);
        let releases = deployed(&state.objects);
        let mut sight = Self {
            name: cluster.name.to_string(),
            upgrading: upgrading(state).map(str::to_owned),
            unread: besides.unread.clone(),
            ..Self::default()
        };
        for release in releases.values().filter(|release| is_control(release, mesh.name.as_str())) {
            let ready = match cluster.primary() {
                Some(_) => Ok(()),
                None => {
                    let available = Condition::Available {
                        namespace: SYSTEM_NAMESPACE.to_owned(),
                        deployment: release.name.clone(),
                    };
                    available.holds(&state.objects).map_err(|why| why.to_string())
                }
            };
            sight.control_planes.push(ControlPlane {
                revision: revision_of(&release.values).to_owned(),
                release: release.name.clone(),
                version: release.chart.as_ref().map(|(_, version)| version.clone()).unwrap_or_default(),
                ready: match release.status.as_str() {
                    "deployed" => ready,
                    status => Err(format!("the release is {status}")),
                },
            });
        }
        for name in [EASTWEST, INGRESS] {
            let release = releases.get(&(SYSTEM_NAMESPACE.to_owned(), name.to_owned()));
            let Some(release) = release.filter(|r| r.mesh.as_deref() == Some(mesh.name.as_str())) else { continue };
            let is_its = |pod: &&&Value| is_of_gateway(pod, name);
            let mut proxies = BTreeMap::new();
            for revision in pods.iter().filter(is_its).filter_map(|pod| injected_by(pod)) {
                *proxies.entry(revision).or_default() += 1;
            }
            let deployment = besides.workloads.iter().find(|w| {
                meta::kind(w) == "Deployment" && meta::namespace(w) == SYSTEM_NAMESPACE && meta::name(w) == name
            });
            sight.gateways.push(Gateway {
                release: name.to_owned(),
                revision: revision_of(&release.values).to_owned(),
                proxies,
                settled: deployment.and_then(rolling).map_or(Ok(()), Err),
            });
        }
        let mut by_namespace: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for pod in &pods {
            by_namespace.entry(meta::namespace(pod)).or_default().push(pod);
        }
        for (key, object) in state.objects.kind("Namespace") {
            if istio::NEVER_INJECTED_NAMESPACES.contains(&key.name.as_str()) || !lives(object) {
                continue;
            }
            let inside = by_namespace.remove(key.name.as_str()).unwrap_or_default();
            sight.namespaces.extend(Namespace::of(object, &inside, &besides.workloads, &tags));
        }
        let revision_of_pod = |name: &str| {
            let pod = pods.iter().find(|pod| meta::namespace(pod) == SYSTEM_NAMESPACE && meta::name(pod) == name)?;
            Some(meta::label(pod, istio::REVISION_LABEL).unwrap_or(DEFAULT).to_owned())
        };
        for (pod, proxies) in &besides.connected {
            match (revision_of_pod(pod), proxies) {
                (Some(revision), Ok(proxies)) => {
                    sight.connected.entry(revision).or_default().extend(proxies.iter().cloned());
                }
                (Some(_), Err(why)) => {
                    sight.unread.push(format!("who is connected to control plane {pod}: not measured ({why})"));
                }
                // It went in the meantime.
                (None, _) => {}
            }
        }
        sight
    }
}

impl Namespace {
    /// What these objects say; `None` where neither the namespace nor a pod has to do with proxies.
    #[must_use]
    pub fn of(
        namespace: &Value,
        pods: &[&Value],
        workloads: &[Value],
        tags: &BTreeMap<String, String>,
    ) -> Option<Self> {
        let name = meta::name(namespace);
        let asks = Asks::of(namespace);
        let named = match &asks {
            Asks::No => None,
            Asks::Enabled => Some(DEFAULT),
            Asks::Revision(revision) => Some(revision.as_str()),
        };
        let tag = named.filter(|named| tags.contains_key(*named)).map(str::to_owned);
        let revision = named.map(|named| tags.get(named).map_or(named, String::as_str).to_owned());
        let was = meta::annotation(namespace, WAS_ANNOTATION).and_then(Asks::parse);
        let here: Vec<&Value> = workloads.iter().filter(|w| meta::namespace(w) == name && lives(w)).collect();
        let mut found: BTreeMap<(String, String), Workload> = BTreeMap::new();
        let own = |pod: &Value| name == SYSTEM_NAMESPACE && [EASTWEST, INGRESS].iter().any(|g| is_of_gateway(pod, g));
        for pod in pods.iter().filter(|pod| lives(pod) && !own(pod)) {
            let Some(revision) = injected_by(pod) else { continue };
            let of = here.iter().find(|workload| {
                LabelSelector::from_value(&workload["spec"]["selector"]).is_ok_and(|s| s.matches_object(pod))
            });
            let workload = match of {
                Some(workload) => Workload::of(workload, asks == Asks::No),
                None => Workload::made_by(pod),
            };
            let key = (workload.kind.clone(), workload.name.clone());
            *found.entry(key).or_insert(workload).proxies.entry(revision).or_default() += 1;
        }
        let nothing = (revision.is_none() && was.is_none()) && found.is_empty();
        (!nothing).then(|| Self {
            name: name.to_owned(),
            asks,
            revision,
            tag,
            was,
            workloads: found.into_values().collect(),
        })
    }

    /// Whether nothing in it has to do with another control plane than `revision`.
    #[must_use]
    pub fn is_at(&self, revision: &str) -> bool {
        self.revision.as_deref().is_none_or(|asked| asked == revision)
            && self.workloads.iter().all(|workload| workload.is_at(revision))
    }
}

impl Workload {
    /// A workload whose pods are made anew by changing its template.
    fn of(object: &Value, alone: bool) -> Self {
        let template = &object["spec"]["template"]["metadata"];
        let asked = |label: &str| template["labels"][label].as_str();
        let by_hand = if let Some(revision) = asked(istio::REVISION_LABEL) {
            Some(format!("its pod template asks for `{}={revision}` itself", istio::REVISION_LABEL))
        } else if alone {
            Some(format!(
                "its pod template asks for a proxy itself (`{}`), its namespace does not: name a revision in the \
                 template, or label the namespace",
                istio::INJECT_LABEL
            ))
        } else if object["spec"]["updateStrategy"]["type"] == "OnDelete" {
            Some("its update strategy is `OnDelete`: delete its pods when it suits you".to_owned())
        } else {
            None
        };
        Self {
            kind: meta::kind(object).to_owned(),
            name: meta::name(object).to_owned(),
            proxies: BTreeMap::new(),
            rolling: rolling(object),
            by_hand,
        }
    }

    /// A pod of somebody whom Stolos cannot ask to make it anew.
    fn made_by(pod: &Value) -> Self {
        let (kind, name) = match meta::controller(pod) {
            Some(owner) => (owner.kind.to_owned(), owner.name.to_owned()),
            None => ("Pod".to_owned(), meta::name(pod).to_owned()),
        };
        let by_hand = match kind.as_str() {
            "Pod" => "nobody makes it anew: delete it and make it again".to_owned(),
            "Job" => "it ends by itself, or is deleted".to_owned(),
            kind => format!("Stolos does not know how a {kind} is restarted"),
        };
        Self { kind, name, by_hand: Some(by_hand), ..Self::default() }
    }

    /// Whether all its proxies are made by `revision`.
    #[must_use]
    pub fn is_at(&self, revision: &str) -> bool {
        self.proxies.keys().all(|by| by == revision)
    }
}

/// Whether it is not on its way out, and has not ended.
fn lives(object: &Value) -> bool {
    let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    meta::deletion_timestamp(object).is_none() && (!ended || meta::kind(object) == "Namespace")
}

/// Whether a pod is one of the gateway that Helm calls `name`.
fn is_of_gateway(pod: &Value, name: &str) -> bool {
    meta::namespace(pod) == SYSTEM_NAMESPACE && meta::label(pod, istio::APP_LABEL) == Some(name)
}

/// The control plane that made the proxy of a pod (Istio 1.10 and newer write it down), if it has one.
#[must_use]
pub fn injected_by(pod: &Value) -> Option<String> {
    let status = meta::annotation(pod, istio::STATUS_ANNOTATION)?;
    let status: Value = serde_json::from_str(status).ok()?;
    let revision = status["revision"].as_str().or_else(|| meta::annotation(pod, istio::REVISION_ANNOTATION));
    Some(revision.filter(|revision| !revision.is_empty()).unwrap_or(DEFAULT).to_owned())
}

/// What keeps a rollout from its end, as `kubectl rollout status` tells it.
#[must_use]
pub fn rolling(object: &Value) -> Option<String> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    if number(&status["observedGeneration"]) < meta::generation(object) {
        return Some("its change has not been seen yet".to_owned());
    }
    let (wanted, updated, ready) = match meta::kind(object) {
        "DaemonSet" => {
            let wanted = number(&status["desiredNumberScheduled"]);
            (wanted, number(&status["updatedNumberScheduled"]), number(&status["numberAvailable"]))
        }
        kind => {
            let wanted = spec["replicas"].as_i64().unwrap_or(1);
            let ready = if kind == "StatefulSet" { "readyReplicas" } else { "availableReplicas" };
            let all = number(&status["replicas"]);
            let updated = match kind {
                "StatefulSet" if status["updateRevision"] == status["currentRevision"] => wanted,
                _ => number(&status["updatedReplicas"]),
            };
            if updated >= wanted && all > updated && kind == "Deployment" {
                return Some(format!("{} old pods are not gone yet", all - updated));
            }
            (wanted, updated, number(&status[ready]))
        }
    };
    match () {
        () if updated < wanted => Some(format!("{updated} of {wanted} pods are new")),
        () if ready < wanted => Some(format!("{ready} of {wanted} pods are ready")),
        () => None,
    }
}

/// Which revision each tag names (Istio's `istioctl tag`): by its webhooks.
#[must_use]
pub fn tags(state: &ClusterState) -> BTreeMap<String, String> {
    let webhooks = state.objects.kind("MutatingWebhookConfiguration");
    let tag = |(_, object): (_, &Value)| {
        let tag = meta::label(object, istio::TAG_LABEL)?;
        Some((tag.to_owned(), meta::label(object, istio::REVISION_LABEL)?.to_owned()))
    };
    webhooks.filter_map(tag).collect()
}
