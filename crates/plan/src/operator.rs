//! `istioctl`'s documents: what is to be installed, and what was, as Stolos wrote it down.
//!
//! `istioctl` leaves no memory of what it was asked for in a cluster, so Stolos keeps one of its own: a ConfigMap per
//! document, written when the installation has succeeded.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::object::{SYSTEM_NAMESPACE, is_owned, ours};
use crate::release::shell;
use crate::{ObjectKey, Objects};

/// What the memory's names begin with.
pub(crate) const RECORD: &str = "stolos-istioctl-";
/// The label by which Istio's installer knows its objects again.
const OWNER: &str = "install.operator.istio.io/owning-resource";

/// An IstioOperator document, and which `istioctl` it is for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Operator {
    /// Its name, by which the installer knows its objects again.
    pub name: String,
    /// The version, `1.28.0` or `1.28`.
    pub version: String,
    /// The document.
    pub document: Value,
    /// A folder with Istio's charts, where nothing is to be fetched.
    pub manifests: Option<String>,
    /// The mesh it belongs to.
    pub mesh: String,
}

impl Operator {
    /// A document of that name with that `spec`.
    pub(crate) fn new(name: &str, version: &str, mesh: &str, spec: Value, manifests: Option<String>) -> Self {
        let document = json!({"apiVersion": "install.istio.io/v1alpha1", "kind": "IstioOperator",
            "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE}, "spec": spec});
        Self { name: name.to_owned(), version: version.to_owned(), document, manifests, mesh: mesh.to_owned() }
    }

    /// What `istioctl` is called with to install it from the file `document`.
    #[must_use]
    pub fn install(&self, context: &str, document: &str, seconds: u64) -> Vec<String> {
        let seconds = format!("{seconds}s");
        let mut arguments = vec!["install", "--skip-confirmation", "--filename", document];
        arguments.extend(["--readiness-timeout", &seconds, "--context", context]);
        if let Some(folder) = &self.manifests {
            arguments.extend(["--manifests", folder]);
        }
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// What `istioctl` is called with to take it away again.
    #[must_use]
    pub fn uninstall(&self, context: &str, document: &str) -> Vec<String> {
        let mut arguments = vec!["uninstall", "--skip-confirmation", "--filename", document, "--context", context];
        if let Some(folder) = &self.manifests {
            arguments.extend(["--manifests", folder]);
        }
        arguments.into_iter().map(str::to_owned).collect()
    }

    /// The whole command in one line, as a plan shows it.
    pub(crate) fn command(&self, context: &str, installs: bool) -> String {
        let file = format!("{}.yaml", self.name);
        let arguments = if installs { self.install(context, &file, 120) } else { self.uninstall(context, &file) };
        shell("istioctl", &arguments)
    }

    /// The memory of it.
    #[must_use]
    pub fn record(&self) -> Value {
        ours(
            &self.mesh,
            json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": format!("{RECORD}{}", self.name), "namespace": SYSTEM_NAMESPACE, "labels": {}},
                "data": {"version": self.version, "document": self.document.to_string(),
                    "manifests": self.manifests.clone().unwrap_or_default()}}),
        )
    }

    /// Where the memory of it is.
    pub(crate) fn record_key(name: &str) -> ObjectKey {
        ObjectKey::new("v1", "ConfigMap", Some(SYSTEM_NAMESPACE), &format!("{RECORD}{name}"))
    }
}

/// What was installed with `istioctl` for `mesh`.
pub(crate) fn recorded(objects: &Objects, mesh: &str) -> Vec<Operator> {
    let records = objects.kind("ConfigMap").filter(|(key, object)| {
        key.name.starts_with(RECORD) && key.namespace.as_deref() == Some(SYSTEM_NAMESPACE) && is_owned(mesh, object)
    });
    let read = |(key, object): (&ObjectKey, &Value)| {
        let text = |field: &str| object["data"][field].as_str().unwrap_or_default();
        Operator {
            name: key.name.trim_start_matches(RECORD).to_owned(),
            version: text("version").to_owned(),
            document: serde_json::from_str(text("document")).unwrap_or(Value::Null),
            manifests: Some(text("manifests").to_owned()).filter(|folder| !folder.is_empty()),
            mesh: mesh.to_owned(),
        }
    };
    records.map(read).collect()
}

/// Whether `istioctl` made `object` for one of these.
pub(crate) fn is_of(object: &Value, operators: &[Operator]) -> bool {
    let owner = object["metadata"]["labels"][OWNER].as_str();
    owner.is_some_and(|owner| operators.iter().any(|operator| operator.name == owner))
}

/// Values of chart `istiod` as the `spec` of a document: `istioctl` wants the mesh configuration in a place of its own.
pub(crate) fn control(values: Value, revision: Option<&str>, ingress: Option<&Map<String, Value>>) -> Value {
    let mut values = values;
    let settings = values.as_object_mut().and_then(|values| values.remove("meshConfig")).unwrap_or_else(|| json!({}));
    let mut spec = json!({"profile": "minimal", "meshConfig": settings, "values": values});
    if let Some(revision) = revision {
        spec["revision"] = revision.into();
        // It is said once.
        if let Some(values) = spec["values"].as_object_mut() {
            values.remove("revision");
        }
    }
    if ingress.is_some() {
        spec["components"] = json!({"ingressGateways": [{"name": "istio-ingressgateway", "enabled": true,
            "namespace": SYSTEM_NAMESPACE}]});
    }
    spec
}

/// The `spec` of the east-west gateway's document, as Istio's `gen-eastwest-gateway.sh` has it (contract A4).
pub(crate) fn eastwest(name: &str, network: &str, revision: Option<&str>) -> Value {
    let port = |name: &str, number: u16| json!({"name": name, "port": number, "targetPort": number});
    let mut spec = json!({
        "profile": "empty",
        "components": {"ingressGateways": [{
            "name": name,
            "namespace": SYSTEM_NAMESPACE,
            "enabled": true,
            "label": {"istio": "eastwestgateway", "app": name, "topology.istio.io/network": network},
            "k8s": {
                "env": [{"name": "ISTIO_META_REQUESTED_NETWORK_VIEW", "value": network}],
                "service": {"ports": [port("status-port", 15021), port("tls", 15443), port("tls-istiod", 15012),
                    port("tls-webhook", 15017)]},
            },
        }]},
        "values": {"gateways": {"istio-ingressgateway": {"injectionTemplate": "gateway"}}, "global": {"network": network}},
    });
    if let Some(revision) = revision {
        spec["revision"] = revision.into();
    }
    spec
}
