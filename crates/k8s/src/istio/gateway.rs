//! `Gateway` of `networking.istio.io`: what a gateway's pods listen on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Object, fields};

/// A Gateway.
pub type Gateway = Object<GatewaySpec>;

/// What a gateway listens on, and which pods it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewaySpec {
    /// Labels of the gateway's pods.
    pub selector: BTreeMap<String, String>,
    /// What it listens on.
    pub servers: Vec<GatewayServer>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// One port and the hosts behind it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayServer {
    /// A name for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The port.
    pub port: GatewayPort,
    /// Hosts, `*.local`, `namespace/host`.
    pub hosts: Vec<String>,
    /// How TLS is handled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl GatewayServer {
    /// The hosts without their `namespace/`.
    pub fn host_names(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().map(|host| host.split_once('/').map_or(host.as_str(), |(_, host)| host))
    }

    /// Whether this server passes mesh traffic through by SNI.
    pub fn is_auto_passthrough(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.mode == ServerTlsMode::AutoPassthrough)
    }
}

/// A gateway's port.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayPort {
    /// The number.
    pub number: u16,
    /// The name.
    pub name: String,
    /// `TLS`, `HTTP`, `HTTPS`, `TCP`, … in any case.
    pub protocol: String,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// How a gateway's server handles TLS.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServerTls {
    /// The mode.
    pub mode: ServerTlsMode,
    /// The Secret with the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_name: Option<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Modes of [`ServerTls`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ServerTlsMode {
    /// Pass on by SNI as a VirtualService says.
    #[default]
    Passthrough,
    /// End TLS here.
    Simple,
    /// End mutual TLS here.
    Mutual,
    /// Pass on by Istio's SNI.
    AutoPassthrough,
    /// End mutual TLS here with the mesh's certificates.
    IstioMutual,
    /// Ask for a client certificate.
    OptionalMutual,
}

fields!(GatewaySpec, servers as "servers");
fields!(GatewayServer, port as "port", tls as "tls");
fields!(GatewayPort);
fields!(ServerTls);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio::unknown_fields;
    use serde_json::json;

    #[test]
    fn the_cross_network_gateway_is_read() {
        let gateway = Gateway::read(&json!({
            "apiVersion": "networking.istio.io/v1", "kind": "Gateway",
            "metadata": {"name": "cross-network-gateway", "namespace": "istio-system"},
            "spec": {"selector": {"istio": "eastwestgateway"}, "servers": [{
                "port": {"number": 15443, "name": "tls", "protocol": "TLS"},
                "tls": {"mode": "AUTO_PASSTHROUGH", "cipherSuites": ["a"]}, "hosts": ["shop/*.local"], "bind": "1.2.3.4"}]}
        }))
        .unwrap();
        assert!(gateway.spec.servers[0].is_auto_passthrough());
        assert_eq!(gateway.spec.servers[0].host_names().collect::<Vec<_>>(), ["*.local"]);
        assert_eq!(unknown_fields(&gateway.spec), ["servers[0].bind", "servers[0].tls.cipherSuites"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let error = Gateway::read(&json!({"kind": "Gateway", "metadata": {"name": "a", "namespace": "b"},
            "spec": {"servers": [{"tls": {"mode": "SOMETHING"}}]}}));
        let error = error.unwrap_err().to_string();
        assert!(error.starts_with("cannot read Gateway b/a: unknown variant `SOMETHING`"), "{error}");
    }
}
