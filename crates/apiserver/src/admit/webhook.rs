//! Webhooks, as `admissionregistration.k8s.io/v1` describes them: which are asked, what they are told, what their answers
//! mean. Errors have Kubernetes' words.

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

use super::Operation;
use crate::api::Api;
use crate::auth;
use crate::cel;
use crate::convert;
use crate::failure::{Failure, Result};
use crate::registry::Resource;
use crate::rules;
use crate::verb::How;
use crate::warning;

/// What a webhook is asked about.
pub(super) struct Question<'a> {
    pub(super) resource: &'a Arc<Resource>,
    pub(super) operation: Operation,
    pub(super) sub: &'a str,
    pub(super) before: Option<&'a Value>,
    pub(super) how: &'a How,
}

/// The most that a webhook may answer.
const MOST_ANSWER: usize = 3 << 20;

/// The webhooks of all configurations, in the order of their names, whose rules may mean what the question is about.
pub(super) fn of(api: &Api, configurations: &str, question: &Question<'_>) -> Vec<Value> {
    let resource = question.resource;
    if resource.group == "admissionregistration.k8s.io" || !resource.is_stored() {
        return Vec::new();
    }
    let found = api.state.cache(configurations).list("");
    let all = found.iter().flat_map(|object| object.value["webhooks"].as_array().into_iter().flatten());
    all.filter(|webhook| resource_for(api, webhook, question).is_some()).cloned().collect()
}

/// Whether a webhook is to be asked, and as which version of the resource it knows the object.
///
/// # Errors
///
/// When one of its match conditions cannot be evaluated and it fails closed.
pub(super) fn matches(
    api: &Api,
    webhook: &Value,
    question: &Question<'_>,
    object: Option<&Value>,
) -> Result<Option<Arc<Resource>>> {
    let Some(as_what) = resource_for(api, webhook, question) else { return Ok(None) };
    let subject = object.or(question.before);
    let labels = |object: Option<&Value>| object.map(|object| object["metadata"]["labels"].clone()).unwrap_or_default();
    let is_namespace = &*question.resource.storage == "namespaces";
    if question.resource.namespaced || is_namespace {
        let namespace = if is_namespace {
            labels(subject)
        } else {
            let name = subject.map(meta::namespace).unwrap_or_default();
            labels(api.state.get("namespaces", "", name).as_ref().map(|namespace| &*namespace.value))
        };
        if !selects(&webhook["namespaceSelector"], &namespace) {
            return Ok(None);
        }
    }
    let selector = &webhook["objectSelector"];
    let selected = object.is_some_and(|object| selects(selector, &labels(Some(object))))
        || question.before.is_some_and(|before| selects(selector, &labels(Some(before))));
    if !selected {
        return Ok(None);
    }
    let conditions = webhook["matchConditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.is_empty() {
        return Ok(Some(as_what));
    }
    let object = object.map(|object| seen_as(question.resource, &as_what, object));
    let mut request = request(question, &as_what, "", object.as_ref());
    let (object, before) = (object.unwrap_or_default(), request["oldObject"].take());
    request["object"] = Value::Null;
    let variables = [("object", &object), ("oldObject", &before), ("request", &request)];
    Ok(meets(webhook, conditions, &variables)?.then_some(as_what))
}

/// Whether all conditions are met. One that is not met counts more than one that cannot be evaluated (KEP-3716).
fn meets(webhook: &Value, conditions: &[Value], variables: &[(&str, &Value)]) -> Result<bool> {
    let mut problems = Vec::new();
    for condition in conditions {
        let text = condition["expression"].as_str().unwrap_or_default();
        match cel::cached(text).and_then(|expression| expression.holds(variables)) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(problem) => problems.push(format!("expression '{text}' resulted in error: {problem}")),
        }
    }
    if problems.is_empty() {
        return Ok(true);
    }
    let name = webhook["name"].as_str().unwrap_or_default();
    if webhook["failurePolicy"] == "Ignore" {
        tracing::warn!(webhook = name, ?problems, "match conditions failed; the webhook is passed over");
        return Ok(false);
    }
    Err(Failure::other(
        403,
        "Forbidden",
        format!("admission webhook {name:?} denied the request: {}", problems.join(", ")),
    ))
}

/// For webhooks an absent selector selects everything.
fn selects(selector: &Value, labels: &Value) -> bool {
    selector.is_null() || rules::label_selector_matches(selector, labels)
}

/// The resource as a webhook's rules name it: the one of the request, or with `matchPolicy: Equivalent` another version.
fn resource_for(api: &Api, webhook: &Value, question: &Question<'_>) -> Option<Arc<Resource>> {
    let rules = || webhook["rules"].as_array().into_iter().flatten();
    if rules().any(|rule| rule_matches(rule, question.resource, question)) {
        return Some(Arc::clone(question.resource));
    }
    if webhook["matchPolicy"] == "Exact" {
        return None;
    }
    let table = api.registry.table();
    let others = table.equivalents(question.resource);
    rules().find_map(|rule| others.iter().find(|other| rule_matches(rule, other, question)).cloned())
}

fn rule_matches(rule: &Value, resource: &Resource, question: &Question<'_>) -> bool {
    let texts = |field: &str| rule[field].as_array().into_iter().flatten().filter_map(Value::as_str);
    let among = |field: &str, wanted: &str| texts(field).any(|one| one == "*" || one == wanted);
    let listed = |one: &str| {
        let (plural, sub) = one.split_once('/').unwrap_or((one, ""));
        (plural == "*" || plural == resource.plural) && (sub == "*" || sub == question.sub)
    };
    let scope = match rule["scope"].as_str() {
        Some("Namespaced") => resource.namespaced,
        Some("Cluster") => !resource.namespaced,
        _ => true,
    };
    scope
        && among("operations", question.operation.word())
        && among("apiGroups", &resource.group)
        && among("apiVersions", &resource.version)
        && texts("resources").any(listed)
}

/// An object in the version that a webhook knows.
fn seen_as(from: &Resource, to: &Resource, object: &Value) -> Value {
    let mut object = object.clone();
    if !std::ptr::eq(from, to) {
        convert::to_stored(from, &mut object);
        convert::from_stored(to, &mut object);
    }
    object
}

/// Asks one webhook; gives back the object if it may change it and did.
pub(super) async fn ask(
    api: &Arc<Api>,
    webhook: &Value,
    question: &Question<'_>,
    as_what: &Resource,
    object: Option<&Value>,
    may_change: bool,
) -> Result<Option<Value>> {
    let name = webhook["name"].as_str().unwrap_or_default();
    if question.how.dry_run && !matches!(webhook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
        let message = format!("admission webhook {name:?} does not support dry run");
        return Err(Failure::bad_request(message));
    }
    let uid = uuid::Uuid::new_v4().to_string();
    let sent = object.map(|object| seen_as(question.resource, as_what, object));
    let review = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": request(question, as_what, &uid, sent.as_ref())});
    let seconds = webhook["timeoutSeconds"].as_u64().unwrap_or(10);
    let (url, service) = target(&webhook["clientConfig"], seconds);
    let call = tokio::time::timeout(Duration::from_secs(seconds), call(api, webhook, &url, service, &review));
    let answer = match call.await {
        Ok(answer) => answer,
        Err(_) => Err(format!("failed to call webhook: Post {url:?}: context deadline exceeded")),
    };
    let judged = answer.and_then(|answer| judge(name, &uid, &answer, sent.as_ref().filter(|_| may_change)));
    match judged {
        Ok(Ok(Some(patched))) => Ok(Some(seen_as(as_what, question.resource, &patched))),
        Ok(verdict) => verdict,
        Err(why) if webhook["failurePolicy"] == "Ignore" => {
            tracing::warn!(webhook = name, why, "webhook failed and is ignored, as its failurePolicy says");
            Ok(None)
        }
        Err(why) => Err(Failure::internal(format!("failed calling webhook {name:?}: {why}"))),
    }
}

/// What a webhook is told of a request.
fn request(question: &Question<'_>, as_what: &Resource, uid: &str, object: Option<&Value>) -> Value {
    let gvk =
        |resource: &Resource| json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
    let gvr = |resource: &Resource| json!({"group": resource.group, "version": resource.version, "resource": resource.plural});
    let resource = &**question.resource;
    let subject = object.or(question.before);
    let options = match question.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
    };
    let mut request = json!({
        "uid": uid, "kind": gvk(as_what), "resource": gvr(as_what),
        "requestKind": gvk(resource), "requestResource": gvr(resource),
        "name": subject.map(meta::name).unwrap_or_default(),
        "operation": question.operation.word(),
        "userInfo": auth::user_info(&question.how.user),
        "object": object, "oldObject": question.before.map(|before| seen_as(resource, as_what, before)),
        "dryRun": question.how.dry_run,
        "options": {"kind": options, "apiVersion": "meta.k8s.io/v1"},
    });
    if !question.how.manager.is_empty() && question.operation != Operation::Delete {
        request["options"]["fieldManager"] = json!(question.how.manager);
    }
    if resource.namespaced {
        request["namespace"] = json!(subject.map(meta::namespace).unwrap_or_default());
    } else if &*resource.storage == "namespaces" {
        request["namespace"] = request["name"].clone();
    }
    if !question.sub.is_empty() {
        request["subResource"] = json!(question.sub);
        request["requestSubResource"] = json!(question.sub);
    }
    request
}

/// What a webhook's answer means. The outer error is the webhook's fault, the inner one its verdict. `object` is what it
/// may change.
#[allow(clippy::type_complexity)]
fn judge(name: &str, uid: &str, answer: &Value, object: Option<&Value>) -> Result<Result<Option<Value>>, String> {
    let invalid = |why: String| Err(format!("received invalid webhook response: {why}"));
    if answer["kind"] != "AdmissionReview" || answer["apiVersion"] != "admission.k8s.io/v1" {
        return invalid(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
            answer["apiVersion"].as_str().unwrap_or_default(),
            answer["kind"].as_str().unwrap_or_default()
        ));
    }
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".into());
    }
    if response["uid"] != uid {
        return invalid(format!("expected response.uid={uid:?}, got {}", response["uid"]));
    }
    for text in response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        warning::add(text);
    }
    if response["allowed"] != true {
        return Ok(Err(denial(name, &response["status"])));
    }
    let Some(object) = object else { return Ok(Ok(None)) };
    let Some(patch) = response["patch"].as_str().filter(|patch| !patch.is_empty()) else { return Ok(Ok(None)) };
    match response["patchType"].as_str() {
        Some("JSONPatch") => {}
        None => return invalid("webhook returned response.patch but not response.patchType".into()),
        Some(other) => return Ok(Err(Failure::internal(format!("unsupported patch type {other:?}")))),
    }
    Ok(patched(object, patch).map(Some).map_err(Failure::internal))
}

/// What a webhook's patch makes of an object.
fn patched(object: &Value, patch: &str) -> Result<Value, String> {
    let bytes = STANDARD.decode(patch).map_err(|error| format!("cannot read the patch: {error}"))?;
    let patch: json_patch::Patch =
        serde_json::from_slice(&bytes).map_err(|error| format!("cannot read the patch: {error}"))?;
    let mut patched = object.clone();
    json_patch::patch(&mut patched, &patch).map_err(|error| format!("cannot apply the patch: {error}"))?;
    if kind_of(&patched) != kind_of(object) {
        return Err("the patch changes what the object is".into());
    }
    Ok(patched)
}

/// A webhook's refusal: its own code, reason and details, and its name before its words.
fn denial(name: &str, status: &Value) -> Failure {
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).unwrap_or(400).max(400);
    let text = |field: &str| status[field].as_str().filter(|said| !said.is_empty());
    let message = match text("message").or_else(|| text("reason")) {
        Some(said) => format!("admission webhook {name:?} denied the request: {said}"),
        None => format!("admission webhook {name:?} denied the request without explanation"),
    };
    let reason = text("reason").unwrap_or_default().to_owned();
    let mut failure = Failure::other(code, "", message);
    failure.reason = reason.into();
    if status["details"].is_object() {
        failure = failure.with_details(status["details"].clone());
    }
    failure
}

fn kind_of(object: &Value) -> (&str, &str) {
    (kind::split_api_version(meta::api_version(object)).0, meta::kind(object))
}

/// Where a webhook is: its URL as errors name it, and the Service's namespace, name and port, if it is one.
fn target(client: &Value, seconds: u64) -> (String, Option<(String, String, u16)>) {
    let service = &client["service"];
    if service.is_object() {
        let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
        let (namespace, name, path) = (text("namespace"), text("name"), text("path"));
        let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
        let path = path.trim_start_matches('/');
        let url = format!("https://{name}.{namespace}.svc:{port}/{path}?timeout={seconds}s");
        return (url, Some((namespace, name, port)));
    }
    let url = client["url"].as_str().unwrap_or_default();
    let mark = if url.contains('?') { '&' } else { '?' };
    (format!("{url}{mark}timeout={seconds}s"), None)
}

/// Sends a review and reads the answer.
async fn call(
    api: &Arc<Api>,
    webhook: &Value,
    url: &str,
    service: Option<(String, String, u16)>,
    review: &Value,
) -> Result<Value, String> {
    let failed = |why: String| format!("failed to call webhook: Post {url:?}: {why}");
    let resolver = api.resolver().ok_or_else(|| failed("the server was given no way to Services".into()))?;
    if let Some(answer) = webhook["clientConfig"]["url"].as_str().and_then(|url| resolver.review(url, review)) {
        return answer.map_err(|error| failed(error.to_string()));
    }
    let uri: http::Uri = url.parse().map_err(|error: http::uri::InvalidUri| failed(error.to_string()))?;
    let name = uri.host().ok_or_else(|| failed("the URL names no host".into()))?.to_owned();
    let (stream, host) = match &service {
        Some((namespace, name, port)) => {
            (resolver.dial(namespace, name, *port).await, format!("{name}.{namespace}.svc"))
        }
        None => (resolver.dial_host(&name, uri.port_u16().unwrap_or(443)).await, name),
    };
    let stream = stream.map_err(|error| failed(format!("dial tcp: {error}")))?;
    let bundle = webhook["clientConfig"]["caBundle"].as_str().unwrap_or_default();
    let tls = client_tls(bundle).map_err(failed)?;
    let server =
        ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|error| failed(error.to_string()))?;
    let stream = tokio_rustls::TlsConnector::from(tls).connect(server, stream).await;
    let stream = stream.map_err(|error| failed(format!("tls: failed to verify certificate: {error}")))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| failed(error.to_string()))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = http::Request::post(path)
        .header(http::header::HOST, host)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::ACCEPT, "application/json")
        .body(Full::new(Bytes::from(review.to_string())))
        .map_err(|error| failed(error.to_string()))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| failed(error.to_string()))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST_ANSWER).collect().await;
        let body = body.map_err(|error| failed(error.to_string()))?.to_bytes();
        if !status.is_success() {
            return Err(format!("failed to call webhook: {}", refused(status, &body)));
        }
        serde_json::from_slice(&body)
            .map_err(|error| format!("failed to call webhook: couldn't get version/kind; json parse error: {error}"))
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => match ended {
            // The connection is over, the answer may still be in our hands.
            Ok(()) => exchange.await,
            Err(error) => Err(failed(error.to_string())),
        },
    }
}

/// What client-go says of an answer without success.
fn refused(status: http::StatusCode, body: &[u8]) -> String {
    let said: String = String::from_utf8_lossy(body).trim().chars().take(256).collect();
    match status.as_u16() {
        404 => "the server could not find the requested resource".into(),
        500.. => format!("an error on the server ({said:?}) has prevented the request from succeeding"),
        _ => "the server rejected our request for an unknown reason".into(),
    }
}

fn client_tls(bundle: &str) -> Result<Arc<rustls::ClientConfig>, String> {
    let pem = STANDARD.decode(bundle).map_err(|error| format!("unable to load root certificates: {error}"))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("unable to load root certificates: {error}"))?;
        roots.add(certificate).map_err(|error| format!("unable to load root certificates: {error}"))?;
    }
    if roots.is_empty() {
        return Err("tls: failed to verify certificate: x509: certificate signed by unknown authority".into());
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
    fn verdicts() {
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {}});
        let judge = |response: Value| {
            let answer = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
            judge("w", "1", &answer, Some(&object))
        };
        let other = judge(json!({"uid": "2", "allowed": true})).unwrap_err();
        assert_eq!(other, "received invalid webhook response: expected response.uid=\"1\", got \"2\"");
        assert!(matches!(judge(json!({"uid": "1", "allowed": true})), Ok(Ok(None))));
        let denied =
            |status: Value| judge(json!({"uid": "1", "allowed": false, "status": status})).unwrap().unwrap_err();
        let failure = denied(json!({"message": "no", "code": 403, "reason": "Forbidden"}));
        assert_eq!((failure.code, failure.message.as_str()), (403, "admission webhook \"w\" denied the request: no"));
        assert_eq!(failure.reason, "Forbidden");
        let failure = denied(json!({"code": 200, "details": {"kind": "x"}}));
        assert_eq!((failure.code, &failure.details["kind"]), (400, &json!("x")));
        assert_eq!(failure.message, "admission webhook \"w\" denied the request without explanation");
        let patch = |patch: &str| {
            judge(json!({"uid": "1", "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch)}))
                .unwrap()
        };
        let added = patch(r#"[{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]"#).unwrap();
        assert_eq!(added.unwrap()["metadata"]["labels"]["a"], "b");
        assert_eq!(patch(r#"[{"op": "replace", "path": "/kind", "value": "Secret"}]"#).unwrap_err().code, 500);
        assert!(patch("nonsense").is_err());
        let untyped = judge(json!({"uid": "1", "allowed": true, "patch": STANDARD.encode("[]")})).unwrap_err();
        assert!(untyped.ends_with("webhook returned response.patch but not response.patchType"));
    }

    #[test]
    fn conditions_that_fail_count_less_than_those_that_are_not_met() {
        let meets = |policy: &str, conditions: &[&str]| {
            let conditions: Vec<Value> =
                conditions.iter().map(|text| json!({"name": "c", "expression": text})).collect();
            let object = json!({"metadata": {"labels": {"a": "b"}}});
            let webhook = json!({"name": "w", "failurePolicy": policy});
            meets(&webhook, &conditions, &[("object", &object)]).map_err(|failure| failure.code)
        };
        let (yes, no, fails) = ("object.metadata.labels.a == 'b'", "has(object.spec)", "object.spec.x == 1");
        let cases: [(&str, &[&str], _); 6] = [
            ("Fail", &[yes], Ok(true)),
            ("Fail", &[yes, no], Ok(false)),
            ("Fail", &[fails, no], Ok(false)),
            ("Fail", &[fails, yes], Err(403)),
            ("Ignore", &[fails, yes], Ok(false)),
            ("Fail", &[], Ok(true)),
        ];
        for (policy, conditions, expected) in cases {
            assert_eq!(meets(policy, conditions), expected, "{policy} {conditions:?}");
        }
    }

    #[test]
    fn rules_name_operations_resources_and_scope() {
        let table = crate::registry::Registry::new([]).table();
        let pods = table.find("", "v1", "pods").unwrap();
        let how = How::internal();
        let matches = |sub: &str, rule: Value| {
            let question = Question { resource: pods, operation: Operation::Update, sub, before: None, how: &how };
            let mut whole =
                json!({"operations": ["UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
            for (key, value) in rule.as_object().unwrap() {
                whole[key] = value.clone();
            }
            rule_matches(&whole, pods, &question)
        };
        let cases = [
            ("", json!({}), true),
            ("", json!({"operations": ["CREATE"]}), false),
            ("", json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]}), true),
            ("", json!({"scope": "Cluster"}), false),
            ("", json!({"scope": "Namespaced"}), true),
            ("status", json!({}), false),
            ("status", json!({"resources": ["*"]}), false),
            ("status", json!({"resources": ["pods/status"]}), true),
            ("status", json!({"resources": ["pods/*"]}), true),
            ("status", json!({"resources": ["*/status"]}), true),
            ("", json!({"resources": ["*/*"]}), true),
            ("", json!({"resources": ["pods/status"]}), false),
        ];
        for (sub, rule, expected) in cases {
            assert_eq!(matches(sub, rule.clone()), expected, "{sub} {rule}");
        }
    }
}
