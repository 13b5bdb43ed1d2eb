//! `AuthorizationPolicy` of `security.istio.io`: who may do what to a workload.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Object, WorkloadSelector, fields};

/// An AuthorizationPolicy.
pub type AuthorizationPolicy = Object<AuthorizationPolicySpec>;

/// Who may do what to which workloads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationPolicySpec {
    /// The workloads; the whole namespace (or mesh, in the root namespace) when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// What happens where a rule matches.
    pub action: AuthorizationAction,
    /// The rules; any of them. None at all matches nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AuthorizationRule>,
    /// Fields we do not know (`targetRefs`, `provider`).
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// What happens where a rule matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuthorizationAction {
    /// Allow; with one such policy all else is denied.
    #[default]
    Allow,
    /// Deny, before all else.
    Deny,
    /// Write down.
    Audit,
    /// Ask somebody.
    Custom,
}

/// One rule: of each of its parts one entry must match. An absent part matches everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationRule {
    /// Who.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<AuthorizationFrom>,
    /// What.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<AuthorizationTo>,
    /// Under which conditions; all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<AuthorizationCondition>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Wraps a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationFrom {
    /// Who.
    pub source: AuthorizationSource,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Wraps an operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationTo {
    /// What.
    pub operation: AuthorizationOperation,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Who: everything that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationSource {
    /// `trust-domain/ns/namespace/sa/account`, with `*` at either end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    /// Namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    /// `account` or `namespace/account`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<String>,
    /// Addresses of the connection.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<String>,
    /// Fields we do not know (`requestPrincipals`, `remoteIpBlocks`).
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// What: everything that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationOperation {
    /// Hosts, with `*` at either end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<String>,
    /// Workload ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<String>,
    /// Methods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<String>,
    /// Paths, with `*` at either end or templates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// A further condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AuthorizationCondition {
    /// Of what, `source.namespace`.
    pub key: String,
    /// Any of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// None of these.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
    /// Fields we do not know.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

fields!(AuthorizationPolicySpec, selector as "selector", rules as "rules");
fields!(AuthorizationRule, from as "from", to as "to", when as "when");
fields!(AuthorizationFrom, source as "source");
fields!(AuthorizationTo, operation as "operation");
fields!(AuthorizationSource);
fields!(AuthorizationOperation);
fields!(AuthorizationCondition);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::istio::unknown_fields;
    use serde_json::json;

    #[test]
    fn a_policy_is_read() {
        let policy = AuthorizationPolicy::read(&json!({"spec": {
            "action": "DENY", "selector": {"matchLabels": {"app": "a"}},
            "rules": [{"from": [{"source": {"notNamespaces": ["sample"], "requestPrincipals": ["*"]}}],
                       "to": [{"operation": {"methods": ["GET"], "paths": ["/a*"]}}],
                       "when": [{"key": "source.ip", "values": ["1.2.3.4"]}]}]}}))
        .unwrap();
        assert_eq!(policy.spec.action, AuthorizationAction::Deny);
        assert_eq!(policy.spec.rules[0].from[0].source.not_namespaces, ["sample"]);
        assert_eq!(unknown_fields(&policy.spec), ["rules[0].from[0].source.requestPrincipals"]);
    }
}
