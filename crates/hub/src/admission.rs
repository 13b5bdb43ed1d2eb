//! Tells an API server to ask the hub whether something may be written ([`crate::admit::review`]).

use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};

use crate::{Error, MANAGER, label};

/// What the configuration is called.
pub(crate) const NAME: &str = "stolos-hub";

/// Tells an API server to ask at `url`.
///
/// # Errors
///
/// When it does not take the configuration.
pub(crate) async fn install(client: &kube::Client, url: &str) -> Result<(), Error> {
    let kind = Resource::named("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration")?;
    objects::apply(client, &kind, &configuration(url), MANAGER, true).await?;
    Ok(())
}

/// What the API server is told.
fn configuration(url: &str) -> Value {
    let hook = |name: &str, policy: &str, rules: Value| {
        json!({"name": name, "clientConfig": {"url": url}, "rules": rules, "failurePolicy": policy, "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": 5, "matchPolicy": "Equivalent"})
    };
    let written = |group: &str, resources: Value| {
        json!([{"apiGroups": [group], "apiVersions": ["v1alpha1"], "operations": ["CREATE", "UPDATE"],
            "resources": resources, "scope": "*"}])
    };
    // While the hub comes up nobody answers. What it would have refused does nothing and says so in an event; what is
    // protected must not be lost by that.
    let policies = ["propagationpolicies", "clusterpropagationpolicies", "overridepolicies", "clusteroverridepolicies"];
    let mut protected = hook(
        "deletion.hub.stolos.dev",
        "Fail",
        json!([{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["DELETE"], "resources": ["*"], "scope": "*"}]),
    );
    protected["objectSelector"] = json!({"matchLabels": {label::DELETION_PROTECTED: "Always"}});
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
    "metadata": {"name": NAME, "labels": {label::SYSTEM: "true"}},
    "webhooks": [
        hook("policies.hub.stolos.dev", "Ignore", written("policy.karmada.io", json!(policies))),
        hook("interpreters.hub.stolos.dev", "Ignore",
            written("config.karmada.io", json!(["resourceinterpretercustomizations"]))),
        protected,
    ]})
}
