//! Admission: what happens to an object between a client's wish and storage.
//!
//! First the service account of a pod, then webhooks, each given what the one before made of the object; what webhooks
//! changed is looked at once more. A webhook is reached through the embedder's
//! [`ServiceResolver`](crate::runtime::ServiceResolver), over HTTPS, and believed only with a certificate of its
//! `caBundle`.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use stolos_k8s::{kind, meta};

use crate::api::Api;
use crate::auth;
use crate::defaults;
use crate::failure::{Failure, Result};
use crate::registry::Resource;
use crate::rules;
use crate::verb::How;

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

/// What a webhook is asked about.
struct Question<'a> {
    resource: &'a Resource,
    operation: Operation,
    sub: &'a str,
    before: Option<&'a Value>,
    how: &'a How,
}

/// Lets everybody who may change an object do so.
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
    mut object: Value,
    how: &How,
) -> Result<Value> {
    let is_new_pod = &*resource.storage == "pods" && operation == Operation::Create && sub.is_empty();
    if is_new_pod {
        service_account(api, &mut object).await?;
    }
    let webhooks = webhooks(api, MUTATING, resource);
    if webhooks.is_empty() {
        return Ok(object);
    }
    let question = Question { resource, operation, sub, before, how };
    let mut seen_by: Vec<Option<Value>> = vec![None; webhooks.len()];
    for round in 0..2 {
        let at_start = object.clone();
        for (webhook, seen) in webhooks.iter().zip(&mut seen_by) {
            let again = round > 0;
            if again
                && (webhook["reinvocationPolicy"] != "IfNeeded" || seen.as_ref().is_none_or(|seen| *seen == object))
            {
                continue;
            }
            if !matches(api, webhook, &question, Some(&object)) {
                continue;
            }
            if let Some(patched) = ask(api, webhook, &question, Some(&object)).await? {
                object = patched;
            }
            *seen = Some(object.clone());
        }
        if is_new_pod && object != at_start {
            // Containers that a webhook added need the account's token as well.
            service_account(api, &mut object).await?;
        }
        if object == at_start {
            break;
        }
    }
    Ok(object)
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
    let question = Question { resource, operation, sub, before, how };
    let webhooks = webhooks(api, VALIDATING, resource);
    let asked = webhooks.iter().filter(|webhook| matches(api, webhook, &question, object));
    let answers = asked.map(|webhook| ask(api, webhook, &question, object));
    futures::future::try_join_all(answers).await.map(drop)
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

// Webhooks.

fn webhooks(api: &Api, configurations: &str, resource: &Resource) -> Vec<Value> {
    if resource.group == "admissionregistration.k8s.io" || !resource.is_stored() {
        return Vec::new();
    }
    let found = api.state.cache(configurations).list("");
    found.iter().flat_map(|object| object.value["webhooks"].as_array().into_iter().flatten().cloned()).collect()
}

fn matches(api: &Api, webhook: &Value, question: &Question<'_>, object: Option<&Value>) -> bool {
    let rules = webhook["rules"].as_array().into_iter().flatten();
    let mut any = rules.filter(|rule| rule_matches(api, rule, webhook, question));
    if any.next().is_none() {
        return false;
    }
    let subject = object.or(question.before);
    let labels = |object: Option<&Value>| object.map(|object| object["metadata"]["labels"].clone()).unwrap_or_default();
    let is_namespace = &*question.resource.storage == "namespaces";
    if question.resource.namespaced || is_namespace {
        let namespace = if is_namespace {
            labels(subject)
        } else {
            let name = subject.map(meta::namespace).unwrap_or_default();
            labels(api.state.get("namespaces", "", name).as_ref().map(|namespace| &namespace.value))
        };
        if !selects(&webhook["namespaceSelector"], &namespace) {
            return false;
        }
    }
    let selector = &webhook["objectSelector"];
    selects(selector, &labels(object)) || (question.before.is_some() && selects(selector, &labels(question.before)))
}

/// For webhooks an absent selector selects everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    selector.is_null() || rules::label_selector_matches(selector, labels)
}

fn rule_matches(api: &Api, rule: &Value, webhook: &Value, question: &Question<'_>) -> bool {
    let resource = question.resource;
    let among = |field: &str, wanted: &str| {
        rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).any(|one| one == "*" || one == wanted)
    };
    let version = |rule: &Value| {
        let listed = rule["apiVersions"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let listed: Vec<_> = listed.collect();
        if listed.contains(&"*") || listed.contains(&resource.version.as_str()) {
            return true;
        }
        let table = api.registry.table();
        webhook["matchPolicy"] != "Exact"
            && listed.iter().any(|version| table.find(&resource.group, version, &resource.plural).is_some())
    };
    let resources = rule["resources"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let listed = |one: &str| match one.split_once('/') {
        None => question.sub.is_empty() && (one == "*" || one == resource.plural),
        Some((plural, sub)) => {
            (plural == "*" || plural == resource.plural) && (sub == "*" || (sub == question.sub && !sub.is_empty()))
        }
    };
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => resource.namespaced,
        Some("Cluster") => !resource.namespaced,
        _ => true,
    };
    scope
        && among("operations", question.operation.word())
        && among("apiGroups", &resource.group)
        && version(rule)
        && resources.into_iter().any(listed)
}

/// Asks one webhook; gives back the object if it changed it.
async fn ask(
    api: &Arc<Api>,
    webhook: &Value,
    question: &Question<'_>,
    object: Option<&Value>,
) -> Result<Option<Value>> {
    let name = webhook["name"].as_str().unwrap_or_default();
    if question.how.dry_run && !matches!(webhook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
        let message = format!("admission webhook {name:?} does not support dry run");
        return Err(Failure::bad_request(message));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let review = review(question, &uid, object);
    let seconds = webhook["timeoutSeconds"].as_u64().unwrap_or(10);
    let call = tokio::time::timeout(Duration::from_secs(seconds), call(api, &webhook["clientConfig"], &review));
    let answer = match call.await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {seconds}s")),
    };
    let judged = answer.and_then(|answer| judge(name, &uid, &answer, object));
    match judged {
        Ok(verdict) => verdict,
        Err(why) if webhook["failurePolicy"] == "Ignore" => {
            tracing::warn!(webhook = name, why, "webhook failed and is ignored, as its failurePolicy says");
            Ok(None)
        }
        Err(why) => Err(Failure::internal(format!("failed calling webhook {name:?}: failed to call webhook: {why}"))),
    }
}

fn review(question: &Question<'_>, uid: &str, object: Option<&Value>) -> Value {
    let resource = question.resource;
    let gvk = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let gvr = json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
    let subject = object.or(question.before);
    let options = match question.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
    };
    let mut request = json!({
        "uid": uid, "kind": gvk, "resource": gvr, "requestKind": gvk, "requestResource": gvr,
        "name": subject.map(meta::name).unwrap_or_default(),
        "operation": question.operation.word(),
        "userInfo": auth::user_info(&question.how.user),
        "object": object, "oldObject": question.before, "dryRun": question.how.dry_run,
        "options": {"kind": options, "apiVersion": "meta.k8s.io/v1"},
    });
    if resource.namespaced {
        request["namespace"] = json!(subject.map(meta::namespace).unwrap_or_default());
    } else if &*resource.storage == "namespaces" {
        request["namespace"] = request["name"].clone();
    }
    if !question.sub.is_empty() {
        request["subResource"] = json!(question.sub);
        request["requestSubResource"] = json!(question.sub);
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
}

/// What a webhook's answer means. The outer error is the webhook's fault, the inner one its verdict.
#[allow(clippy::type_complexity)]
fn judge(name: &str, uid: &str, answer: &Value, object: Option<&Value>) -> Result<Result<Option<Value>>, String> {
    let response = &answer["response"];
    if response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {}", response["uid"]));
    }
    if response["allowed"] != true {
        let status = &response["status"];
        let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(400).max(400);
        let said = status["message"].as_str().filter(|said| !said.is_empty());
        let said = said.or_else(|| status["reason"].as_str().filter(|said| !said.is_empty()));
        let message = match said {
            Some(said) => format!("admission webhook {name:?} denied the request: {said}"),
            None => format!("admission webhook {name:?} denied the request without explanation"),
        };
        let reason = match code {
            403 => "Forbidden",
            409 => "Conflict",
            422 => "Invalid",
            _ => "BadRequest",
        };
        return Ok(Err(Failure::other(code, reason, message)));
    }
    let Some(patch) = response["patch"].as_str().filter(|patch| !patch.is_empty()) else { return Ok(Ok(None)) };
    if response["patchType"] != "JSONPatch" {
        return Err(format!("invalid response: patchType {} is not JSONPatch", response["patchType"]));
    }
    let Some(object) = object else { return Err("a patch for an object that goes".into()) };
    let bytes = STANDARD.decode(patch).map_err(|error| format!("cannot read the patch: {error}"))?;
    let patch: json_patch::Patch =
        serde_json::from_slice(&bytes).map_err(|error| format!("cannot read the patch: {error}"))?;
    let mut patched = object.clone();
    json_patch::patch(&mut patched, &patch).map_err(|error| format!("cannot apply the patch: {error}"))?;
    if kind_of(&patched) != kind_of(object) {
        return Err("the patch changes what the object is".into());
    }
    Ok(Ok(Some(patched)))
}

fn kind_of(object: &Value) -> (&str, &str) {
    (kind::split_api_version(meta::api_version(object)).1, meta::kind(object))
}

/// Sends a review and reads the answer.
async fn call(api: &Arc<Api>, client: &Value, review: &Value) -> Result<Value, String> {
    let resolver = api.resolver().ok_or("no way to Services: the server was given no resolver")?;
    let service = &client["service"];
    let (stream, host, path) = if service.is_object() {
        let text = |field: &str| service[field].as_str().unwrap_or_default();
        let (namespace, name) = (text("namespace"), text("name"));
        let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
        let stream = resolver.dial(namespace, name, port).await;
        let host = format!("{name}.{namespace}.svc");
        (stream.map_err(|error| format!("dial {host}:{port}: {error}"))?, host, text("path").to_owned())
    } else {
        let url = client["url"].as_str().unwrap_or_default();
        let uri: http::Uri = url.parse().map_err(|error| format!("cannot read the URL {url:?}: {error}"))?;
        let host = uri.host().ok_or_else(|| format!("the URL {url:?} names no host"))?.to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let stream = resolver.dial_host(&host, port).await;
        let path = uri.path_and_query().map_or_else(String::new, ToString::to_string);
        (stream.map_err(|error| format!("dial {host}:{port}: {error}"))?, host, path)
    };
    let tls = client_tls(client["caBundle"].as_str().unwrap_or_default())?;
    let server = ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
    let stream = tokio_rustls::TlsConnector::from(tls).connect(server, stream).await;
    let stream = stream.map_err(|error| format!("tls: {error}"))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| error.to_string())?;
    let path = if path.is_empty() { "/" } else { &path };
    let request = http::Request::post(path)
        .header(http::header::HOST, host)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), 3 << 20).collect().await.map_err(|error| error.to_string())?;
        if !status.is_success() {
            return Err(format!("the server answered {status}"));
        }
        serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("cannot read the answer: {error}"))
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            // The connection is over, the answer may still be in our hands.
            Ok(()) => exchange.await,
            Err(error) => Err(error.to_string()),
        },
    }
}

fn client_tls(bundle: &str) -> Result<Arc<rustls::ClientConfig>, String> {
    let pem = STANDARD.decode(bundle).map_err(|error| format!("cannot read caBundle: {error}"))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("cannot read caBundle: {error}"))?;
        roots.add(certificate).map_err(|error| format!("cannot use caBundle: {error}"))?;
    }
    if roots.is_empty() {
        return Err("tls: failed to verify certificate: caBundle is empty".into());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn verdicts() {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}});
        let judge = |response: Value| judge("w", "1", &json!({"response": response}), Some(&object));
        assert!(judge(json!({"uid": "2", "allowed": true})).is_err(), "not an answer to our question");
        assert!(matches!(judge(json!({"uid": "1", "allowed": true})), Ok(Ok(None))));
        let denied = judge(json!({"uid": "1", "allowed": false, "status": {"message": "no", "code": 403}}));
        let denied = denied.unwrap().unwrap_err();
        assert_eq!((denied.code, denied.message.as_str()), (403, "admission webhook \"w\" denied the request: no"));
        let patch = |patch: &str| {
            judge(json!({"uid": "1", "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch)}))
        };
        let patched = patch(r#"[{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]"#).unwrap().unwrap();
        assert_eq!(patched.unwrap()["metadata"]["labels"]["a"], "b");
        assert!(patch(r#"[{"op": "replace", "path": "/kind", "value": "Secret"}]"#).is_err());
        assert!(patch("nonsense").is_err());
    }
}
