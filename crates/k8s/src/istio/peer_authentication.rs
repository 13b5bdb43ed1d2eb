//! `PeerAuthentication` of `security.istio.io`: whether a workload takes plaintext.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Object, WorkloadSelector, fields};

/// A PeerAuthentication.
pub type PeerAuthentication = Object<PeerAuthenticationSpec>;

/// Whether which workloads take plaintext.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerAuthenticationSpec {
    /// The workloads; the whole namespace (or mesh, in the root namespace) when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// For all ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls: Option<PeerMtls>,
    /// By workload port; counts only beside a selector.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub port_level_mtls: BTreeMap<String, PeerMtls>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl PeerAuthenticationSpec {
    /// The mode for all ports.
    pub fn mode(&self) -> MtlsMode {
        self.mtls.as_ref().map_or(MtlsMode::Unset, |mtls| mtls.mode)
    }

    /// The modes of single ports; what is no port number is left out.
    pub fn port_modes(&self) -> BTreeMap<u16, MtlsMode> {
        self.port_level_mtls.iter().filter_map(|(port, mtls)| Some((port.parse().ok()?, mtls.mode))).collect()
    }
}

/// One setting.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PeerMtls {
    /// The mode.
    pub mode: MtlsMode,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Modes of [`PeerMtls`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MtlsMode {
    /// As the level above says.
    #[default]
    Unset,
    /// Plaintext only.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

fields!(PeerAuthenticationSpec, selector as "selector", mtls as "mtls", port_level_mtls as "portLevelMtls");
fields!(PeerMtls);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn modes_are_read() {
        let policy = PeerAuthentication::read(&json!({"spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "mtls": {"mode": "STRICT"}, "portLevelMtls": {"8080": {"mode": "DISABLE"}, "x": {}}}}))
        .unwrap();
        assert_eq!(policy.spec.mode(), MtlsMode::Strict);
        assert_eq!(policy.spec.port_modes(), BTreeMap::from([(8080, MtlsMode::Disable)]));
        assert_eq!(PeerAuthentication::read(&json!({})).unwrap().spec.mode(), MtlsMode::Unset);
    }
}
