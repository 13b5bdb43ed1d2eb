//! `ServiceEntry` of `networking.istio.io`: services that no Kubernetes Service describes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Object, WorkloadSelector, fields};

/// A ServiceEntry.
pub type ServiceEntry = Object<ServiceEntrySpec>;

/// Services that no Kubernetes Service describes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntrySpec {
    /// The hosts.
    pub hosts: Vec<String>,
    /// Virtual addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServiceEntryPort>,
    /// Whether it is part of the mesh.
    pub location: ServiceEntryLocation,
    /// Where its endpoints come from.
    pub resolution: ServiceEntryResolution,
    /// The endpoints.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<ServiceEntryEndpoint>,
    /// WorkloadEntries and pods that are its endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<WorkloadSelector>,
    /// Namespaces it is visible to: `*`, `.`, names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// The names its endpoints' certificates have.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryPort {
    /// The number.
    pub number: u16,
    /// `HTTP`, `TLS`, `TCP`, … in any case.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// The name.
    pub name: String,
    /// The endpoints' port, when another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Whether a ServiceEntry is part of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServiceEntryLocation {
    /// It is not.
    #[default]
    MeshExternal,
    /// It is.
    MeshInternal,
}

/// Where a ServiceEntry's endpoints come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServiceEntryResolution {
    /// Wherever the caller asked.
    #[default]
    None,
    /// The listed endpoints.
    Static,
    /// All addresses of a name.
    Dns,
    /// One address of a name.
    DnsRoundRobin,
    /// The address of the host asked for.
    DynamicDns,
}

/// One endpoint (also the spec of a `WorkloadEntry`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryEndpoint {
    /// An address, a name, or `unix:///path`.
    pub address: String,
    /// Ports by the entry's port names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// `region/zone/subzone`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locality: Option<String>,
    /// The share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// The service account: with one, it accepts mTLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

fields!(
    ServiceEntrySpec,
    ports as "ports",
    endpoints as "endpoints",
    workload_selector as "workloadSelector",
);
fields!(ServiceEntryPort);
fields!(ServiceEntryEndpoint);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_entry_is_read() {
        let entry = ServiceEntry::read(&json!({"spec": {
            "hosts": ["db.example.com"], "location": "MESH_INTERNAL", "resolution": "DNS_ROUND_ROBIN",
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS", "targetPort": 8443}],
            "workloadSelector": {"labels": {"app": "db"}},
            "endpoints": [{"address": "1.2.3.4", "ports": {"tls": 1}, "network": "n"}]}}))
        .unwrap();
        assert_eq!(entry.spec.resolution, ServiceEntryResolution::DnsRoundRobin);
        assert_eq!(entry.spec.workload_selector.unwrap().match_labels["app"], "db");
        assert_eq!(entry.spec.endpoints[0].ports["tls"], 1);
    }
}
