//! The Secret by which one cluster's control plane may read another cluster: its data's keys are cluster IDs, its
//! values kubeconfigs.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::names::{CLUSTER_ANNOTATION, MULTI_CLUSTER_LABEL, TRUE, remote_secret_name};

/// What a remote secret says about one cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteSecret {
    /// The control plane's namespace, where the secret is put.
    pub namespace: String,
    /// The cluster that may be read.
    pub cluster: String,
    /// Its API server, `https://…`.
    pub server: String,
    /// Its CA, in PEM.
    pub ca_pem: String,
    /// The name in its certificate, where `server` says another.
    pub tls_server_name: Option<String>,
    /// The reader's token.
    pub token: String,
}

impl std::fmt::Debug for RemoteSecret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let RemoteSecret { namespace, cluster, server, .. } = self;
        write!(formatter, "RemoteSecret {{ namespace: {namespace:?}, cluster: {cluster:?}, server: {server:?}, .. }}")
    }
}

impl RemoteSecret {
    /// The kubeconfig: cluster, user and context are named like the cluster.
    pub fn kubeconfig(&self) -> String {
        let text = |text: &str| Value::from(text).to_string();
        let cluster = text(&self.cluster);
        let server_name = match &self.tls_server_name {
            Some(name) => format!("    tls-server-name: {}\n", text(name)),
            None => String::new(),
        };
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: {cluster}\n\
             \x20 cluster:\n\
             \x20   certificate-authority-data: {ca}\n\
             \x20   server: {server}\n\
             {server_name}\
             contexts:\n\
             - name: {cluster}\n\
             \x20 context:\n\
             \x20   cluster: {cluster}\n\
             \x20   user: {cluster}\n\
             current-context: {cluster}\n\
             preferences: {{}}\n\
             users:\n\
             - name: {cluster}\n\
             \x20 user:\n\
             \x20   token: {token}\n",
            ca = STANDARD.encode(&self.ca_pem),
            server = text(&self.server),
            token = text(&self.token),
        )
    }
}

/// The Secret.
pub fn remote_secret(remote: &RemoteSecret) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": remote_secret_name(&remote.cluster),
            "namespace": remote.namespace,
            "labels": {MULTI_CLUSTER_LABEL: TRUE},
            "annotations": {CLUSTER_ANNOTATION: remote.cluster},
        },
        "type": "Opaque",
        "data": {&remote.cluster: STANDARD.encode(remote.kubeconfig())},
    })
}

/// A Secret is no usable remote secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteSecretError {
    /// The label is missing or another.
    #[error("label {MULTI_CLUSTER_LABEL} is not \"true\"")]
    Label,
    /// There is no cluster in it.
    #[error("it names no cluster: its data is empty")]
    Empty,
    /// A value is not base64.
    #[error("the kubeconfig of cluster {cluster} is not base64")]
    Encoding {
        /// The data's key.
        cluster: String,
    },
    /// A value is not text.
    #[error("the kubeconfig of cluster {cluster} is not UTF-8")]
    Text {
        /// The data's key.
        cluster: String,
    },
}

/// Each cluster's kubeconfig, as text.
pub fn parse_remote_secret(secret: &Value) -> Result<BTreeMap<String, String>, RemoteSecretError> {
    if crate::meta::label(secret, MULTI_CLUSTER_LABEL) != Some(TRUE) {
        return Err(RemoteSecretError::Label);
    }
    let mut clusters = BTreeMap::new();
    for (cluster, encoded) in secret.get("data").and_then(Value::as_object).into_iter().flatten() {
        let bytes = encoded.as_str().and_then(|encoded| STANDARD.decode(encoded).ok());
        let bytes = bytes.ok_or_else(|| RemoteSecretError::Encoding { cluster: cluster.clone() })?;
        let text = String::from_utf8(bytes).map_err(|_| RemoteSecretError::Text { cluster: cluster.clone() })?;
        clusters.insert(cluster.clone(), text);
    }
    for (cluster, text) in secret.get("stringData").and_then(Value::as_object).into_iter().flatten() {
        let text = text.as_str().ok_or_else(|| RemoteSecretError::Text { cluster: cluster.clone() })?;
        clusters.insert(cluster.clone(), text.to_owned());
    }
    if clusters.is_empty() { Err(RemoteSecretError::Empty) } else { Ok(clusters) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote() -> RemoteSecret {
        RemoteSecret {
            namespace: "istio-system".into(),
            cluster: "cluster-east-1".into(),
            server: "https://127.16.0.1:6443".into(),
            ca_pem: "PEM".into(),
            tls_server_name: None,
            token: "secret \"token\"".into(),
        }
    }

    #[test]
    fn what_is_built_is_read_again() {
        let secret = remote_secret(&remote());
        assert_eq!(secret["metadata"]["name"], "istio-remote-secret-cluster-east-1");
        assert_eq!(secret["metadata"]["labels"]["istio/multiCluster"], "true");
        let clusters = parse_remote_secret(&secret).unwrap();
        assert_eq!(clusters, BTreeMap::from([("cluster-east-1".into(), remote().kubeconfig())]));
        insta::assert_snapshot!(clusters["cluster-east-1"], @r#"
        apiVersion: v1
        kind: Config
        clusters:
        - name: "cluster-east-1"
          cluster:
            certificate-authority-data: UEVN
            server: "https://127.16.0.1:6443"
        contexts:
        - name: "cluster-east-1"
          context:
            cluster: "cluster-east-1"
            user: "cluster-east-1"
        current-context: "cluster-east-1"
        preferences: {}
        users:
        - name: "cluster-east-1"
          user:
            token: "secret \"token\""
        "#);
        assert!(!format!("{:?}", remote()).contains("token"));
    }

    #[test]
    fn unusable_secrets_say_why() {
        let cases = [
            (json!({}), "label istio/multiCluster is not \"true\""),
            (json!({"metadata": {"labels": {"istio/multiCluster": true}}}), "label istio/multiCluster is not \"true\""),
            (json!({"metadata": {"labels": {"istio/multiCluster": "true"}}}), "it names no cluster: its data is empty"),
            (
                json!({"metadata": {"labels": {"istio/multiCluster": "true"}}, "data": {"a": "%"}}),
                "the kubeconfig of cluster a is not base64",
            ),
            (
                json!({"metadata": {"labels": {"istio/multiCluster": "true"}}, "data": {"a": "/w=="}}),
                "the kubeconfig of cluster a is not UTF-8",
            ),
        ];
        for (secret, message) in cases {
            assert_eq!(parse_remote_secret(&secret).unwrap_err().to_string(), message);
        }
    }
}
