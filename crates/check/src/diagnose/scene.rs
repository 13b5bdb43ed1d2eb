//! What a cause looks at: the mesh as it is meant and the snapshot, with what is asked for again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use serde_json::Value;
use stolos_k8s::selector::LabelSelector;
use stolos_k8s::{istio, meta};
use stolos_pki::{CaCerts, Certificate, Secret};
use stolos_spec::{Mesh, Role};

use super::snapshot::{Datum, Seen, Snapshot};

/// Which control plane a cluster runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    /// Stolos' own.
    Stolos,
    /// Real Istio.
    Istio,
}

impl Engine {
    /// What a control plane must be able to list in the clusters it reads (contract B.5).
    pub(crate) fn reads(self) -> &'static [(&'static str, &'static str)] {
        const BOTH: [(&str, &str); 5] =
            [("", "namespaces"), ("", "services"), ("", "pods"), ("", "nodes"), ("discovery.k8s.io", "endpointslices")];
        const ISTIO: [(&str, &str); 9] = [
            ("", "namespaces"),
            ("", "services"),
            ("", "pods"),
            ("", "nodes"),
            ("discovery.k8s.io", "endpointslices"),
            ("", "endpoints"),
            ("apps", "replicasets"),
            ("networking.istio.io", "workloadentries"),
            ("apiextensions.k8s.io", "customresourcedefinitions"),
        ];
        match self {
            Self::Stolos => &BOTH,
            Self::Istio => &ISTIO,
        }
    }
}

/// Which control plane runs in a cluster, by its image.
pub(crate) fn engine(seen: &Seen) -> Engine {
    let small = seen.istiod_deployments().filter_map(image).any(|image| image.starts_with("stolos/"));
    if small || (seen.is_lab && seen.istiod_deployments().next().is_none()) { Engine::Stolos } else { Engine::Istio }
}

fn image(deployment: &Value) -> Option<&str> {
    deployment["spec"]["template"]["spec"]["containers"][0]["image"].as_str()
}

/// A cluster of the mesh that answered.
#[derive(Clone, Copy)]
pub(crate) struct Member<'a> {
    pub(crate) wanted: &'a stolos_spec::Cluster,
    pub(crate) seen: &'a Seen,
}

impl<'a> Member<'a> {
    pub(crate) fn name(&self) -> &'a str {
        self.wanted.name.as_str()
    }

    pub(crate) fn network(&self) -> &'a str {
        self.wanted.network.as_str()
    }

    pub(crate) fn is_primary(&self) -> bool {
        matches!(self.wanted.role, Role::Primary)
    }

    pub(crate) fn engine(&self) -> Engine {
        engine(self.seen)
    }

    /// `kubectl --context …`
    pub(crate) fn kubectl(&self, rest: &str) -> String {
        format!("kubectl --context {} {rest}", self.seen.context)
    }

    /// Whether a control plane is there.
    pub(crate) fn has_istiod(&self) -> bool {
        self.seen.istiod_deployments().next().is_some()
    }

    /// The mesh configuration: ConfigMap `istio`, key `mesh`.
    pub(crate) fn mesh_config(&self) -> Value {
        self.mesh_config_map().and_then(|m| yaml(&m["data"][istio::MESH_KEY])).unwrap_or_default()
    }

    pub(crate) fn mesh_config_map(&self) -> Option<&'a Value> {
        self.revisioned(istio::MESH_CONFIG_MAP)
    }

    /// The injector's values.
    pub(crate) fn values(&self) -> Value {
        self.revisioned(istio::INJECTOR_CONFIG_MAP)
            .and_then(|m| yaml(&m["data"][istio::VALUES_KEY]))
            .unwrap_or_default()
    }

    /// A ConfigMap by its name, or with the control plane's revision behind it (contract B.8).
    fn revisioned(&self, name: &str) -> Option<&'a Value> {
        self.seen.system("ConfigMap", name).or_else(|| {
            let revision =
                self.seen.istiod_deployments().filter_map(|d| meta::label(d, istio::REVISION_LABEL)).next()?;
            self.seen.system("ConfigMap", &format!("{name}-{revision}"))
        })
    }

    /// A variable of the control plane's environment.
    pub(crate) fn istiod_env(&self, name: &str) -> Option<&'a str> {
        self.seen.istiod_deployments().find_map(|d| {
            let containers = d["spec"]["template"]["spec"]["containers"].as_array()?;
            containers.iter().find_map(|c| super::snapshot::variable(c, name))
        })
    }

    /// The control plane's version, from its image's tag.
    pub(crate) fn istiod_version(&self) -> Option<Version> {
        self.seen.istiod_deployments().filter_map(image).find_map(Version::of_image)
    }

    /// Certificates of a text in a Secret of the control plane's namespace.
    pub(crate) fn cacerts(&self) -> Option<&'a Value> {
        self.seen.system("Secret", istio::CACERTS_SECRET)
    }

    /// The root in effect, as the control plane publishes it.
    pub(crate) fn published_roots(&self) -> Option<Vec<Certificate>> {
        let map = self.seen.system("ConfigMap", istio::ROOT_CONFIG_MAP)?;
        Certificate::all_from_pem(map["data"][istio::ROOT_CERT_KEY].as_str()?).ok()
    }

    /// Secrets that make clusters known here: in the control plane's namespace, with the label.
    pub(crate) fn remote_secrets(&self) -> impl Iterator<Item = &'a Value> {
        self.seen.all("Secret").iter().filter(|s| meta::label(s, istio::MULTI_CLUSTER_LABEL) == Some(istio::TRUE))
    }

    /// Pods with a proxy that run.
    pub(crate) fn proxied(&self) -> impl Iterator<Item = (&'a Value, &'a Value)> {
        self.seen
            .all("Pod")
            .iter()
            .filter(|p| !super::snapshot::is_over(p))
            .filter_map(|p| Some((p, super::snapshot::proxy(p)?)))
    }

    pub(crate) fn namespace(&self, name: &str) -> Option<&'a Value> {
        self.seen.all("Namespace").iter().find(|n| meta::name(n) == name)
    }

    /// Services that people brought.
    pub(crate) fn services(&self) -> impl Iterator<Item = &'a Value> {
        self.seen.all("Service").iter().filter(|s| {
            !is_system(meta::namespace(s)) && (meta::namespace(s), meta::name(s)) != ("default", "kubernetes")
        })
    }
}

/// A version's first two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

impl Version {
    /// From `…/pilot:1.28.0-distroless`.
    pub(crate) fn of_image(image: &str) -> Option<Self> {
        let (_, tag) = image.split('@').next()?.rsplit_once(':')?;
        let mut numbers = tag.trim_start_matches('v').split(['.', '-']).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Some(Self { major, minor }),
            _ => None,
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What every cause is given.
pub(crate) struct Scene<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) snapshot: &'a Snapshot,
    /// Those that answered, in the order of the file.
    pub(crate) members: Vec<Member<'a>>,
    /// `stolos apply -f mesh.yaml`
    pub(crate) apply: String,
}

impl<'a> Scene<'a> {
    pub(crate) fn new(mesh: &'a Mesh, snapshot: &'a Snapshot, apply: &str) -> Self {
        let members = mesh.clusters.iter().filter_map(|wanted| {
            let seen = snapshot.clusters.get(wanted.name.as_str()).and_then(Datum::value)?;
            Some(Member { wanted, seen })
        });
        Self { mesh, snapshot, members: members.collect(), apply: apply.to_owned() }
    }

    pub(crate) fn primaries(&self) -> impl Iterator<Item = &Member<'a>> {
        self.members.iter().filter(|m| m.is_primary())
    }

    pub(crate) fn member(&self, name: &str) -> Option<&Member<'a>> {
        self.members.iter().find(|m| m.name() == name)
    }

    pub(crate) fn is_member(&self, name: &str) -> bool {
        self.mesh.clusters.iter().any(|c| c.name.as_str() == name)
    }

    /// The member whose configuration counts for `member`: its primary's.
    pub(crate) fn config_of(&self, member: &Member<'a>) -> Option<&Member<'a>> {
        match &member.wanted.role {
            Role::Primary => self.member(member.name()),
            Role::Remote { primary } => self.member(primary.as_str()),
        }
    }

    /// Services that exist in two clusters or more, by namespace and name.
    pub(crate) fn shared(&self) -> BTreeMap<(&'a str, &'a str), Vec<(Member<'a>, &'a Value)>> {
        let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for member in &self.members {
            for service in member.services() {
                all.entry((meta::namespace(service), meta::name(service))).or_default().push((*member, service));
            }
        }
        all.retain(|_, places| places.len() > 1);
        all
    }

    /// By the API server's clock of a cluster, where that is known.
    pub(crate) fn clock(&self, member: &Member<'_>) -> SystemTime {
        member.seen.clock.map_or(self.snapshot.now, |clock| clock.api)
    }
}

/// Namespaces of Kubernetes and of the mesh itself.
pub(crate) fn is_system(namespace: &str) -> bool {
    istio::NEVER_INJECTED_NAMESPACES.contains(&namespace)
        || namespace == istio::SYSTEM_NAMESPACE
        || namespace == "metallb-system"
}

pub(crate) fn yaml(text: &Value) -> Option<Value> {
    serde_saphyr::from_str(text.as_str()?).ok()
}

/// A value of a Secret.
pub(crate) fn secret_text(secret: &Value, key: &str) -> Option<String> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(secret["data"][key].as_str()?).ok()?;
    String::from_utf8(bytes).ok()
}

/// The keys of a Secret's data.
pub(crate) fn secret_keys(secret: &Value) -> BTreeSet<&str> {
    secret["data"].as_object().into_iter().flat_map(|data| data.keys()).map(String::as_str).collect()
}

/// `cacerts` in either of its forms (contract B.1), where no key is missing.
pub(crate) fn ca_certs(secret: &Value) -> Option<CaCerts> {
    let text = |key: &str| secret_text(secret, key);
    // A file `tls.crt` wins over Istio's own names.
    if let Some(certificate) = text("tls.crt") {
        let root = text("ca.crt")?;
        return Some(CaCerts {
            ca_cert: certificate.clone(),
            ca_key: Secret::new(text("tls.key")?),
            cert_chain: format!("{}\n{root}", certificate.trim_end()),
            root_cert: root,
        });
    }
    Some(CaCerts {
        ca_cert: text(istio::CA_CERT_KEY)?,
        ca_key: Secret::new(text(istio::CA_KEY_KEY)?),
        cert_chain: text(istio::CERT_CHAIN_KEY)?,
        root_cert: text(istio::ROOT_CERT_KEY)?,
    })
}

/// A moment at which all of these are valid, or the one at which the first is: so that what a check at load refuses
/// besides time can be told apart from time.
pub(crate) fn moment_of_validity(certificates: &[Certificate]) -> Option<SystemTime> {
    let from = certificates.iter().map(Certificate::not_before).max()?;
    Some(from + Duration::from_secs(1))
}

/// The first characters of a fingerprint.
pub(crate) fn short(fingerprint: &str) -> &str {
    fingerprint.get(..12).unwrap_or(fingerprint)
}

/// Whether a LabelSelector in JSON selects these labels; an absent one selects everything.
pub(crate) fn selects(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
    selector.is_null() || LabelSelector::from_value(selector).is_ok_and(|s| s.matches(labels))
}

/// Names, as many as a line takes.
pub(crate) fn some(names: impl IntoIterator<Item = impl ToString>) -> String {
    let names: Vec<String> = names.into_iter().map(|n| n.to_string()).collect();
    match names.len() {
        0 => "none".to_owned(),
        1..=3 => names.join(", "),
        more => format!("{} and {} more", names[..2].join(", "), more - 2),
    }
}

/// What was found, what was not measured, and how much was looked at.
#[derive(Default)]
pub(crate) struct Judgement {
    pub(crate) findings: Vec<Found>,
    pub(crate) gaps: Vec<(Option<String>, String)>,
    pub(crate) looked: usize,
}

/// One finding, before it is told whose it is.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) cluster: Option<String>,
    pub(crate) object: Option<String>,
    pub(crate) seen: String,
    pub(crate) since: Option<SystemTime>,
    pub(crate) mend: String,
    /// If it is milder than its cause mostly is, or graver.
    pub(crate) severity: Option<super::Severity>,
}

impl Found {
    pub(crate) fn since(&mut self, since: Option<SystemTime>) -> &mut Self {
        self.since = since;
        self
    }

    pub(crate) fn object(&mut self, object: impl Into<String>) -> &mut Self {
        self.object = Some(object.into());
        self
    }

    pub(crate) fn severity(&mut self, severity: super::Severity) -> &mut Self {
        self.severity = Some(severity);
        self
    }
}

impl Judgement {
    /// One more thing that could have been wrong was looked at.
    pub(crate) fn looked(&mut self) {
        self.looked += 1;
    }

    /// Something is wrong.
    pub(crate) fn found(
        &mut self,
        member: &Member<'_>,
        seen: impl Into<String>,
        mend: impl Into<String>,
    ) -> &mut Found {
        self.push(Some(member.name().to_owned()), seen.into(), mend.into())
    }

    fn push(&mut self, cluster: Option<String>, seen: String, mend: String) -> &mut Found {
        self.findings.push(Found { cluster, object: None, seen, since: None, mend, severity: None });
        let last = self.findings.len() - 1;
        &mut self.findings[last]
    }

    /// Something could not be told.
    pub(crate) fn gap(&mut self, member: &Member<'_>, why: impl Into<String>) {
        self.gaps.push((Some(member.name().to_owned()), why.into()));
    }

    /// Whether all these kinds could be read; what could not is a gap.
    pub(crate) fn can_read(&mut self, member: &Member<'_>, kinds: &[&str]) -> bool {
        let mut all = true;
        for kind in kinds {
            if let Some(why) = member.seen.unread(kind) {
                let kind = kind.split(['/', '.']).next().unwrap_or(kind);
                self.gap(member, format!("could not read objects of kind {kind}: {why}"));
                all = false;
            }
        }
        all
    }
}
