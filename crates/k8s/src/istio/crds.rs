//! Istio's CustomResourceDefinitions: names, versions and columns as Istio's own; schemas that keep every field.

use serde_json::{Value, json};

/// One of Istio's kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IstioKind {
    /// The group, `networking.istio.io`.
    pub group: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// The resource.
    pub plural: &'static str,
    /// The singular resource.
    pub singular: &'static str,
    /// Short names.
    pub short_names: &'static [&'static str],
    /// The versions served, oldest first; the last is the stored one.
    pub versions: &'static [&'static str],
    /// Columns of `kubectl get`: name, path, type.
    columns: &'static [(&'static str, &'static str, &'static str)],
}

impl IstioKind {
    /// The newest version: the stored one.
    pub fn version(&self) -> &'static str {
        self.versions.last().copied().unwrap_or("v1")
    }

    /// `networking.istio.io/v1`.
    pub fn api_version(&self) -> String {
        crate::kind::api_version(self.group, self.version())
    }

    /// The CustomResourceDefinition's name, `gateways.networking.istio.io`.
    pub fn crd_name(&self) -> String {
        crate::kind::group_resource(self.group, self.plural)
    }

    fn crd(&self) -> Value {
        json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.crd_name(), "labels": {"app": "istio-pilot", "release": "istio"}},
            "spec": {
                "group": self.group,
                "names": {
                    "kind": self.kind,
                    "listKind": format!("{}List", self.kind),
                    "plural": self.plural,
                    "singular": self.singular,
                    "shortNames": self.short_names,
                    "categories": ["istio-io", self.group.replace('.', "-")],
                },
                "scope": "Namespaced",
                "conversion": {"strategy": "None"},
                "versions": self.versions.iter().rev().map(|version| self.crd_version(version)).collect::<Vec<_>>(),
            },
        })
    }

    fn crd_version(&self, version: &str) -> Value {
        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let columns = self
            .columns
            .iter()
            .chain([&AGE])
            .map(|(name, path, kind)| json!({"name": name, "jsonPath": path, "type": kind}));
        json!({
            "name": version,
            "served": true,
            "storage": version == self.version(),
            "subresources": {"status": {}},
            "additionalPrinterColumns": columns.collect::<Vec<_>>(),
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}},
        })
    }
}

/// Istio's kinds.
pub const KINDS: &[IstioKind] = &[
    networking("Gateway", "gateways", "gateway", &["gw"], NETWORKING_VERSIONS, &[]),
    networking(
        "VirtualService",
        "virtualservices",
        "virtualservice",
        &["vs"],
        NETWORKING_VERSIONS,
        &[("Gateways", ".spec.gateways", "string"), ("Hosts", ".spec.hosts", "string")],
    ),
    networking(
        "DestinationRule",
        "destinationrules",
        "destinationrule",
        &["dr"],
        NETWORKING_VERSIONS,
        &[("Host", ".spec.host", "string")],
    ),
    networking(
        "ServiceEntry",
        "serviceentries",
        "serviceentry",
        &["se"],
        NETWORKING_VERSIONS,
        &[
            ("Hosts", ".spec.hosts", "string"),
            ("Location", ".spec.location", "string"),
            ("Resolution", ".spec.resolution", "string"),
        ],
    ),
    networking("Sidecar", "sidecars", "sidecar", &[], NETWORKING_VERSIONS, &[]),
    networking(
        "WorkloadEntry",
        "workloadentries",
        "workloadentry",
        &["we"],
        NETWORKING_VERSIONS,
        &[("Address", ".spec.address", "string")],
    ),
    networking("WorkloadGroup", "workloadgroups", "workloadgroup", &["wg"], NETWORKING_VERSIONS, &[]),
    networking("ProxyConfig", "proxyconfigs", "proxyconfig", &[], &["v1beta1"], &[]),
    networking("EnvoyFilter", "envoyfilters", "envoyfilter", &[], &["v1alpha3"], &[]),
    security(
        "PeerAuthentication",
        "peerauthentications",
        "peerauthentication",
        &["pa"],
        &[("Mode", ".spec.mtls.mode", "string")],
    ),
    security(
        "AuthorizationPolicy",
        "authorizationpolicies",
        "authorizationpolicy",
        &["ap"],
        &[("Action", ".spec.action", "string")],
    ),
    security("RequestAuthentication", "requestauthentications", "requestauthentication", &["ra"], &[]),
    IstioKind {
        group: "telemetry.istio.io",
        kind: "Telemetry",
        plural: "telemetries",
        singular: "telemetry",
        short_names: &["telemetry"],
        versions: &["v1alpha1", "v1"],
        columns: &[],
    },
];

/// The CustomResourceDefinitions of all of Istio's kinds.
pub fn crds() -> Vec<Value> {
    KINDS.iter().map(IstioKind::crd).collect()
}

/// One of Istio's kinds by its name.
pub fn kind(kind: &str) -> Option<&'static IstioKind> {
    KINDS.iter().find(|known| known.kind == kind)
}

const NETWORKING_VERSIONS: &[&str] = &["v1alpha3", "v1beta1", "v1"];
const AGE: (&str, &str, &str) = ("Age", ".metadata.creationTimestamp", "date");

const fn networking(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short_names: &'static [&'static str],
    versions: &'static [&'static str],
    columns: &'static [(&'static str, &'static str, &'static str)],
) -> IstioKind {
    IstioKind { group: "networking.istio.io", kind, plural, singular, short_names, versions, columns }
}

const fn security(
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short_names: &'static [&'static str],
    columns: &'static [(&'static str, &'static str, &'static str)],
) -> IstioKind {
    let versions = &["v1beta1", "v1"];
    IstioKind { group: "security.istio.io", kind, plural, singular, short_names, versions, columns }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_istios() {
        let gateway = kind("Gateway").unwrap().crd();
        assert_eq!(gateway["metadata"]["name"], "gateways.networking.istio.io");
        let versions: Vec<_> = gateway["spec"]["versions"].as_array().unwrap().iter().map(|v| &v["name"]).collect();
        assert_eq!(versions, ["v1", "v1beta1", "v1alpha3"]);
        assert_eq!(gateway["spec"]["names"]["categories"], json!(["istio-io", "networking-istio-io"]));
        assert_eq!(kind("PeerAuthentication").unwrap().short_names, ["pa"]);
        assert_eq!(crds().len(), 13);
    }
}
