//! Admission: what happens to an object between a client's wish and storage.
//!
//! First what pods get that do not say it (tolerations, amounts of a LimitRange, a service account), then webhooks, each given what the one before made of the object; what webhooks
//! changed is looked at once more. A webhook is reached through the embedder's
//! [`ServiceResolver`](crate::runtime::ServiceResolver), over HTTPS, and believed only with a certificate of its
//! `caBundle`.

mod limits;
mod webhook;

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use stolos_k8s::meta;

use crate::api::Api;
use crate::defaults;
use crate::failure::{Failure, Result};
use crate::registry::Resource;
use crate::verb::How;
use webhook::Question;

/// What is done to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// It comes into being.
    Create,
    /// It changes.
    Update,
    /// It goes.
    Delete,
}

impl Operation {
    fn word(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
const VALIDATING: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";

/// Lets everybody who may change an object do so; whether there was somebody.
///
/// # Errors
///
/// When somebody refuses it.
pub(crate) async fn mutate(
    api: &Arc<Api>,
    resource: &Arc<Resource>,
    operation: Operation,
    sub: &str,
    before: Option<&Value>,
    object: &mut Value,
    how: &How,
) -> Result<bool> {
    let is_new_pod = &*resource.storage == "pods" && operation == Operation::Create && sub.is_empty();
    if is_new_pod {
        tolerations(object);
        limits::fill(api, object);
        service_account(api, object).await?;
    }
    let is_new_claim =
        &*resource.storage == "persistentvolumeclaims" && operation == Operation::Create && sub.is_empty();
    if is_new_claim {
        storage_class(api, object);
    }
    let question = Question { resource, operation, sub, before, how };
    let webhooks = webhook::of(api, MUTATING, &question);
    if webhooks.is_empty() {
        return Ok(is_new_pod || is_new_claim);
    }
    let mut seen_by: Vec<Option<Value>> = vec![None; webhooks.len()];
    for round in 0..2 {
        let at_start = object.clone();
        for (webhook, seen) in webhooks.iter().zip(&mut seen_by) {
            let again = round > 0;
            if again && (webhook["reinvocationPolicy"] != "IfNeeded" || seen.as_ref().is_none_or(|seen| seen == object))
            {
                continue;
            }
            let Some(as_what) = webhook::matches(api, webhook, &question, Some(object))? else { continue };
            if let Some(patched) = webhook::ask(api, webhook, &question, &as_what, Some(object), true).await? {
                *object = patched;
            }
            *seen = Some(object.clone());
        }
        if is_new_pod && *object != at_start {
            limits::fill(api, object);
            // Containers that a webhook added need the account's token as well.
            service_account(api, object).await?;
        }
        if *object == at_start {
            break;
        }
    }
    Ok(true)
}

/// Asks everybody, those who may change objects too, whether an object may go.
///
/// # Errors
///
/// When somebody refuses it.
pub(crate) async fn delete(api: &Arc<Api>, resource: &Arc<Resource>, before: &Value, how: &How) -> Result<()> {
    let question = Question { resource, operation: Operation::Delete, sub: "", before: Some(before), how };
    for webhook in webhook::of(api, MUTATING, &question) {
        if let Some(as_what) = webhook::matches(api, &webhook, &question, None)? {
            webhook::ask(api, &webhook, &question, &as_what, None, true).await?;
        }
    }
    validate(api, resource, Operation::Delete, "", Some(before), None, how).await
}

/// Asks everybody who may refuse an object.
///
/// # Errors
///
/// When somebody refuses it.
pub(crate) async fn validate(
    api: &Arc<Api>,
    resource: &Arc<Resource>,
    operation: Operation,
    sub: &str,
    before: Option<&Value>,
    object: Option<&Value>,
    how: &How,
) -> Result<()> {
    if let (Some(object), "pods" | "persistentvolumeclaims", "") = (object, &*resource.storage, sub)
        && (operation == Operation::Create || &*resource.storage != "pods")
    {
        limits::check(api, &resource.storage, object)?;
    }
    let question = Question { resource, operation, sub, before, how };
    let webhooks = webhook::of(api, VALIDATING, &question);
    let mut asked = Vec::new();
    for webhook in &webhooks {
        if let Some(as_what) = webhook::matches(api, webhook, &question, object)? {
            asked.push((webhook, as_what));
        }
    }
    let asked = asked.iter().map(|(webhook, as_what)| webhook::ask(api, webhook, &question, as_what, object, false));
    futures::future::try_join_all(asked).await.map(drop)
}

/// Lets a pod stay for five minutes on a node that is not ready or cannot be reached, unless it says something else
/// (Kubernetes' `DefaultTolerationSeconds`).
fn tolerations(pod: &mut Value) {
    let known = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for taint in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let says = |toleration: &Value| {
            let (key, effect) = (text(&toleration["key"]), text(&toleration["effect"]));
            (key.is_empty() || key == taint) && matches!(effect.as_str(), "" | "NoExecute")
        };
        if known.iter().any(says) {
            continue;
        }
        if !pod["spec"]["tolerations"].is_array() {
            pod["spec"]["tolerations"] = json!([]);
        }
        if let Some(list) = pod["spec"]["tolerations"].as_array_mut() {
            list.push(json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
        }
    }
}

/// Gives a claim that names no class the default one, the newest of several (Kubernetes' `DefaultStorageClass`).
fn storage_class(api: &Api, claim: &mut Value) {
    const DEFAULT: [&str; 2] =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    let spoken = !claim["spec"]["storageClassName"].is_null()
        || meta::annotation(claim, "volume.beta.kubernetes.io/storage-class").is_some();
    if spoken || !claim["spec"].is_object() {
        return;
    }
    let classes = api.state.cache("storageclasses.storage.k8s.io").list("");
    let is_default = |class: &Value| DEFAULT.iter().any(|key| meta::annotation(class, key) == Some("true"));
    let age = |class: &Value| class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    let newest = classes.iter().filter(|class| is_default(&class.value)).max_by(|a, b| {
        // Of two of one second the first by name.
        (age(&a.value), meta::name(&b.value)).cmp(&(age(&b.value), meta::name(&a.value)))
    });
    if let Some(class) = newest {
        claim["spec"]["storageClassName"] = json!(meta::name(&class.value));
    }
}

// Service accounts.

const MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";

/// Gives a pod its account, and its containers the account's token.
async fn service_account(api: &Arc<Api>, pod: &mut Value) -> Result<()> {
    let namespace = meta::namespace(pod).to_owned();
    let named = pod["spec"]["serviceAccountName"].as_str().filter(|name| !name.is_empty()).unwrap_or("default");
    let name = named.to_owned();
    pod["spec"]["serviceAccountName"] = json!(name);
    pod["spec"]["serviceAccount"] = json!(name);
    let account = find_account(api, &namespace, &name).await?;
    let automount = pod["spec"]["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    if let Some(secrets) = account["imagePullSecrets"].as_array()
        && !secrets.is_empty()
        && pod["spec"]["imagePullSecrets"].as_array().is_none_or(Vec::is_empty)
    {
        pod["spec"]["imagePullSecrets"] = json!(secrets);
    }
    if automount {
        mount_token(pod);
    }
    Ok(())
}

/// The account; a namespace's first one may take a moment to appear.
async fn find_account(api: &Arc<Api>, namespace: &str, name: &str) -> Result<Value> {
    let mut changed = api.state.subscribe();
    let appears = async {
        loop {
            changed.borrow_and_update();
            if let Some(account) = api.state.get("serviceaccounts", namespace, name) {
                return account.value.clone();
            }
            let _ = changed.changed().await;
        }
    };
    let patience = if name == "default" { Duration::from_secs(2) } else { Duration::from_millis(100) };
    tokio::time::timeout(patience, appears).await.map_err(|_| {
        let why = format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        Failure::forbidden("pods", "", &why)
    })
}

fn mount_token(pod: &mut Value) {
    let is_token = |volume: &Value| volume["name"].as_str().is_some_and(|name| name.starts_with(VOLUME));
    let known = pod["spec"]["volumes"].as_array().into_iter().flatten().find(|volume| is_token(volume));
    let volume = known.map_or_else(
        || format!("{VOLUME}{}", meta::suffix(rand::random(), 5)),
        |volume| volume["name"].as_str().unwrap_or_default().to_owned(),
    );
    let mut used = false;
    for list in ["initContainers", "containers"] {
        for container in defaults::items(pod, &format!("/spec/{list}")) {
            let mounts = &mut container["volumeMounts"];
            if !mounts.is_array() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            if !mounts.iter().any(|mount| mount["mountPath"] == MOUNT) {
                mounts.push(json!({"name": volume, "readOnly": true, "mountPath": MOUNT}));
                used = true;
            }
        }
    }
    if pod["spec"]["initContainers"].is_null()
        && let Some(spec) = pod["spec"].as_object_mut()
    {
        spec.remove("initContainers");
    }
    if !pod["spec"]["volumes"].is_array() {
        pod["spec"]["volumes"] = json!([]);
    }
    let Some(volumes) = pod["spec"]["volumes"].as_array_mut() else { return };
    if used && !volumes.iter().any(is_token) {
        let namespace =
            json!({"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}});
        volumes.push(json!({"name": volume, "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [namespace]}},
        ]}}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_bear_a_node_in_trouble_for_five_minutes() {
        let all = |given: Value| {
            let mut pod = json!({"spec": {"tolerations": given}});
            tolerations(&mut pod);
            let once = pod.clone();
            tolerations(&mut pod);
            assert_eq!(pod, once);
            let list = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
            list.iter().map(|one| format!("{} {}", one["key"], one["tolerationSeconds"])).collect::<Vec<_>>().join(", ")
        };
        insta::assert_snapshot!([
            all(json!(null)),
            all(json!([{"operator": "Exists"}])),
            all(json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute", "tolerationSeconds": 5}])),
            all(json!([{"operator": "Exists", "effect": "NoSchedule"}])),
        ].join("\n"), @r#"
        "node.kubernetes.io/not-ready" 300, "node.kubernetes.io/unreachable" 300
        null null
        "node.kubernetes.io/not-ready" 5, "node.kubernetes.io/unreachable" 300
        null null, "node.kubernetes.io/not-ready" 300, "node.kubernetes.io/unreachable" 300
        "#);
    }

    #[test]
    fn a_token_is_mounted_once_into_every_container() {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b",
            "volumeMounts": [{"name": "mine", "mountPath": MOUNT}]}]}});
        mount_token(&mut pod);
        pod["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "added"}));
        mount_token(&mut pod);
        let once = pod.clone();
        mount_token(&mut pod);
        assert_eq!(pod, once);
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);
        let mounts = |i: usize| pod["spec"]["containers"][i]["volumeMounts"].as_array().unwrap().len();
        assert_eq!((mounts(0), mounts(1), mounts(2)), (1, 1, 1));
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"][0]["name"], "mine");
    }
}
