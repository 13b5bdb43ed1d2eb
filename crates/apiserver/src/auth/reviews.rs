//! Reviews: objects that are only asked, never kept.

use std::sync::Arc;

use http::Response;
use serde_json::{Value, json};

use super::access::{self, Attributes};
use super::{User, tokens};
use crate::api::Api;
use crate::failure::{Cause, Failure, Result};
use crate::route::{self, Ask, Body, Target};

/// Answers a review.
///
/// # Errors
///
/// When the kind of review is unknown, or what it asks makes no sense.
pub(crate) fn review(api: &Arc<Api>, ask: &Ask, request: &Value) -> Result<Response<Body>> {
    let mut answer = request.clone();
    let spec = &request["spec"];
    let kind = ask.resource.kind.as_str();
    answer["status"] = match kind {
        "TokenReview" => token(api, spec)?,
        "SelfSubjectReview" => json!({"userInfo": user_info(&ask.user)}),
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            check_attributes(&ask.resource.kind, spec)?;
            let user = subject(spec);
            if user.name.is_empty() && user.groups.is_empty() {
                let cause = Cause::invalid("spec.user", &json!(""), "at least one of user or group must be specified");
                return Err(invalid(kind, cause));
            }
            if kind == "LocalSubjectAccessReview" {
                check_local(ask, spec)?;
            }
            access(api, &user, spec)
        }
        "SelfSubjectAccessReview" => {
            check_attributes(&ask.resource.kind, spec)?;
            access(api, &ask.user, spec)
        }
        "SelfSubjectRulesReview" => rules(api, &ask.user, spec["namespace"].as_str().unwrap_or_default())?,
        _ => return Err(Failure::no_such_path()),
    };
    answer["kind"] = json!(ask.resource.kind);
    answer["apiVersion"] = json!(ask.resource.api_version());
    if !answer["metadata"].is_object() {
        answer["metadata"] = json!({});
    }
    answer["metadata"]["creationTimestamp"] = Value::Null;
    Ok(route::json_value(201, &answer))
}

fn invalid(kind: &str, cause: Cause) -> Failure {
    Failure::invalid(kind, "authorization.k8s.io", "", &[cause])
}

fn token(api: &Api, spec: &Value) -> Result<Value> {
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Failure::bad_request("token is required for TokenReview in authentication"));
    }
    let texts = spec["audiences"].as_array().into_iter().flatten();
    let mut wanted: Vec<String> = texts.filter_map(|v| v.as_str().map(str::to_owned)).collect();
    if wanted.is_empty() {
        wanted.clone_from(&api.settings.audiences);
    }
    Ok(match tokens::check_token(api, token, &wanted) {
        Ok((user, audiences)) => json!({"authenticated": true, "user": user_info(&user), "audiences": audiences}),
        Err(why) => json!({"authenticated": false, "user": {}, "error": why}),
    })
}

/// Exactly one of two kinds of question.
fn check_attributes(kind: &str, spec: &Value) -> Result<()> {
    let (resource, path) = (spec["resourceAttributes"].is_object(), spec["nonResourceAttributes"].is_object());
    let (field, why) = match (resource, path) {
        (true, true) => ("spec.nonResourceAttributes", "cannot be specified in combination with resourceAttributes"),
        (false, false) => {
            ("spec.resourceAttributes", "exactly one of nonResourceAttributes or resourceAttributes must be specified")
        }
        _ => return Ok(()),
    };
    let value = spec.get(field.trim_start_matches("spec.")).unwrap_or(&Value::Null);
    Err(invalid(kind, Cause::invalid(field, value, why)))
}

fn check_local(ask: &Ask, spec: &Value) -> Result<()> {
    let kind = &ask.resource.kind;
    if spec["nonResourceAttributes"].is_object() {
        let why = "disallowed on this kind of request";
        return Err(invalid(kind, Cause::invalid("spec.nonResourceAttributes", &spec["nonResourceAttributes"], why)));
    }
    let namespace = &spec["resourceAttributes"]["namespace"];
    if namespace.as_str().unwrap_or_default() != ask.target.namespace {
        let why = format!("spec.resourceAttributes.namespace must match namespace: {}", ask.target.namespace);
        return Err(Failure::bad_request(why));
    }
    Ok(())
}

fn subject(spec: &Value) -> User {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let extra = spec["extra"].as_object().into_iter().flatten();
    User {
        name: spec["user"].as_str().unwrap_or_default().into(),
        uid: spec["uid"].as_str().unwrap_or_default().into(),
        groups: texts(&spec["groups"]),
        extra: extra.map(|(key, values)| (key.clone(), texts(values))).collect(),
    }
}

fn access(api: &Api, user: &User, spec: &Value) -> Value {
    if user.is_master() {
        return json!({"allowed": true});
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let attributes = &spec["resourceAttributes"];
    let why = if attributes.is_object() {
        let mut target = Target {
            group: text(&attributes["group"]),
            version: text(&attributes["version"]),
            namespace: text(&attributes["namespace"]),
            plural: text(&attributes["resource"]),
            name: text(&attributes["name"]),
            sub: text(&attributes["subresource"]),
        };
        // A namespace is in its own namespace, as for a request.
        if target.plural == "namespaces" && target.group.is_empty() && target.namespace.is_empty() {
            target.namespace.clone_from(&target.name);
        }
        access::why(api, user, &Attributes::of(&text(&attributes["verb"]), &target))
    } else {
        let path = &spec["nonResourceAttributes"];
        access::why(api, user, &Attributes::of_path(&text(&path["verb"]), &text(&path["path"])))
    };
    match why {
        Some(why) => json!({"allowed": true, "reason": why}),
        None => json!({"allowed": false}),
    }
}

fn rules(api: &Api, user: &User, namespace: &str) -> Result<Value> {
    if namespace.is_empty() {
        return Err(Failure::bad_request("no namespace on request"));
    }
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    if user.is_master() {
        resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    access::for_each_rule(api, user, namespace, |rule, _| {
        let list = if rule["nonResourceURLs"].is_array() { &mut paths } else { &mut resources };
        list.push(rule.clone());
        true
    });
    Ok(json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false}))
}

/// `UserInfo`, as reviews and webhooks show it.
#[must_use]
pub(crate) fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}
