//! Tells an API server to ask the hub whether something may be written ([`crate::admit::review`]).

use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};

use crate::{Error, MANAGER, label};

/// What the configuration is called.
pub(crate) const NAME: &str = "stolos-hub";

/// Where an API server asks.
#[derive(Clone, Debug)]
pub enum Asked {
    /// In this process: it is the hub's own, and knows the URL as the hub's.
    Here {
        /// The URL.
        url: String,
    },
    /// Over the network: it is somebody else's.
    There {
        /// `clientConfig` of its webhooks.
        client: Value,
    },
}

/// Tells an API server to ask the hub.
///
/// # Errors
///
/// When it does not take the configuration.
pub(crate) async fn install(client: &kube::Client, asked: &Asked) -> Result<(), Error> {
    let kind = Resource::named("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration")?;
    objects::apply(client, &kind, &configuration(asked), MANAGER, true).await?;
    Ok(())
}

/// What the API server is told.
///
/// Nothing but Karmada's own kinds, and what somebody has protected by label, depends on an answer: all else is written
/// whether a hub is there or not.
fn configuration(asked: &Asked) -> Value {
    let (client, policies_fail) = match asked {
        // While the hub comes up nobody answers. What it would have refused does nothing and says so in an event.
        Asked::Here { url } => (json!({"url": url}), "Ignore"),
        // As Karmada's webhooks (v1.18.2).
        Asked::There { client } => (client.clone(), "Fail"),
    };
    let hook = |name: &str, policy: &str, rules: Value| {
        json!({"name": name, "clientConfig": client, "rules": rules, "failurePolicy": policy, "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "timeoutSeconds": 5, "matchPolicy": "Equivalent"})
    };
    let written = |group: &str, resources: Value| {
        json!([{"apiGroups": [group], "apiVersions": ["v1alpha1"], "operations": ["CREATE", "UPDATE"],
            "resources": resources, "scope": "*"}])
    };
    // What is protected must not be lost because nobody answers (Karmada's fails, too). Who means it takes the label off,
    // which nobody is asked about.
    let policies = [
        "propagationpolicies",
        "clusterpropagationpolicies",
        "overridepolicies",
        "clusteroverridepolicies",
        "clustertaintpolicies",
    ];
    let mut protected = hook(
        "deletion.hub.stolos.dev",
        "Fail",
        json!([{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["DELETE"], "resources": ["*"], "scope": "*"}]),
    );
    protected["objectSelector"] = json!({"matchLabels": {label::DELETION_PROTECTED: "Always"}});
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
    "metadata": {"name": NAME, "labels": {label::SYSTEM: "true"}},
    "webhooks": [
        hook("policies.hub.stolos.dev", policies_fail, written("policy.karmada.io", json!(policies))),
        hook("interpreters.hub.stolos.dev", policies_fail,
            written("config.karmada.io", json!(["resourceinterpretercustomizations"]))),
        protected,
    ]})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_karmadas_kinds_and_what_is_protected_depend_on_an_answer() {
        let lines = |asked: &Asked| {
            let configuration = configuration(asked);
            let lines = configuration["webhooks"].as_array().unwrap().iter().map(|hook| {
                let rule = &hook["rules"][0];
                let text = |list: &Value| {
                    list.as_array().unwrap().iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
                };
                let what =
                    format!("{} {}/{}", text(&rule["operations"]), text(&rule["apiGroups"]), text(&rule["resources"]));
                let of = hook["objectSelector"]["matchLabels"].as_object().map(|labels| format!(" {labels:?}"));
                format!("{} {what}{} at {}", hook["failurePolicy"], of.unwrap_or_default(), hook["clientConfig"])
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(lines(&Asked::Here { url: "https://here/review".into() }), @r#"
        "Ignore" CREATE,UPDATE policy.karmada.io/propagationpolicies,clusterpropagationpolicies,overridepolicies,clusteroverridepolicies,clustertaintpolicies at {"url":"https://here/review"}
        "Ignore" CREATE,UPDATE config.karmada.io/resourceinterpretercustomizations at {"url":"https://here/review"}
        "Fail" DELETE */* {"resourcetemplate.karmada.io/deletion-protected": String("Always")} at {"url":"https://here/review"}
        "#);
        let there = json!({"service": {"namespace": "stolos", "name": "hub", "path": "/review"}});
        insta::assert_snapshot!(lines(&Asked::There { client: there }), @r#"
        "Fail" CREATE,UPDATE policy.karmada.io/propagationpolicies,clusterpropagationpolicies,overridepolicies,clusteroverridepolicies,clustertaintpolicies at {"service":{"name":"hub","namespace":"stolos","path":"/review"}}
        "Fail" CREATE,UPDATE config.karmada.io/resourceinterpretercustomizations at {"service":{"name":"hub","namespace":"stolos","path":"/review"}}
        "Fail" DELETE */* {"resourcetemplate.karmada.io/deletion-protected": String("Always")} at {"service":{"name":"hub","namespace":"stolos","path":"/review"}}
        "#);
    }
}
