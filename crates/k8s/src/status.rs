//! `metav1.Status`: how Kubernetes says that something went well or wrong, in its own words.

use serde_json::{Map, Value, json};

use crate::kind::group_resource;

/// An answer that is not an object: code, reason, message and details.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// The HTTP status.
    pub code: u16,
    /// The reason, `NotFound`; empty for success.
    pub reason: String,
    /// For people.
    pub message: String,
    /// What it is about.
    pub details: Option<Details>,
}

/// What a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The name.
    pub name: String,
    /// The group.
    pub group: String,
    /// The resource (for [`Status::invalid`] the kind).
    pub kind: String,
    /// The UID.
    pub uid: String,
    /// What is wrong with which field.
    pub causes: Vec<Cause>,
    /// When to try again.
    pub retry_after_seconds: Option<u32>,
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cause {
    /// `FieldValueInvalid`, …
    pub reason: String,
    /// For people.
    pub message: String,
    /// The field, `spec.replicas`.
    pub field: String,
}

/// Which resource an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource<'a> {
    /// The group; empty for the core group.
    pub group: &'a str,
    /// The resource, `pods`.
    pub plural: &'a str,
}

impl<'a> Resource<'a> {
    /// A resource.
    pub fn new(group: &'a str, plural: &'a str) -> Self {
        Resource { group, plural }
    }

    fn qualified(&self) -> String {
        group_resource(self.group, self.plural)
    }

    fn details(&self, name: &str) -> Details {
        Details { name: name.into(), group: self.group.into(), kind: self.plural.into(), ..Details::default() }
    }
}

impl<'a> From<&'a crate::Kind> for Resource<'a> {
    fn from(kind: &'a crate::Kind) -> Self {
        Resource { group: kind.group, plural: kind.plural }
    }
}

impl Status {
    /// 200: done, e.g. deleted.
    pub fn success(resource: Resource<'_>, name: &str, uid: &str) -> Self {
        let details = Details { uid: uid.into(), ..resource.details(name) };
        Status { code: 200, reason: String::new(), message: String::new(), details: Some(details) }
    }

    /// 404: there is no such object.
    pub fn not_found(resource: Resource<'_>, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Self::about(404, "NotFound", message, resource.details(name))
    }

    /// 404: there is no such path.
    pub fn no_such_path() -> Self {
        let mut status = Self::plain(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(Details::default());
        status
    }

    /// 409: there is one already.
    pub fn already_exists(resource: Resource<'_>, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        Self::about(409, "AlreadyExists", message, resource.details(name))
    }

    /// 409: somebody else was faster.
    pub fn conflict(resource: Resource<'_>, name: &str) -> Self {
        Self::conflict_because(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409: it cannot be done now, e.g. a precondition does not hold.
    pub fn conflict_because(resource: Resource<'_>, name: &str, because: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {because}", resource.qualified());
        Self::about(409, "Conflict", message, resource.details(name))
    }

    /// 409: the UID asked for is not the object's.
    pub fn conflict_of_uids(resource: Resource<'_>, name: &str, wanted: &str, found: &str) -> Self {
        let because = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}");
        Self::conflict_because(resource, name, &because)
    }

    /// 409: server-side apply met fields of others.
    pub fn apply_conflict(message: impl Into<String>, causes: Vec<Cause>) -> Self {
        Self::about(409, "Conflict", message.into(), Details { causes, ..Details::default() })
    }

    /// 403: not allowed, in RBAC's words. `user` may be empty for the anonymous one.
    pub fn forbidden_to(
        user: &str,
        verb: &str,
        resource: Resource<'_>,
        subresource: Option<&str>,
        namespace: Option<&str>,
        name: &str,
    ) -> Self {
        let user = if user.is_empty() { "system:anonymous" } else { user };
        let asked = match subresource {
            Some(subresource) => format!("{}/{subresource}", resource.plural),
            None => resource.plural.to_owned(),
        };
        let place = match namespace.filter(|namespace| !namespace.is_empty()) {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".to_owned(),
        };
        let because =
            format!("User \"{user}\" cannot {verb} resource \"{asked}\" in API group \"{}\" {place}", resource.group);
        Self::forbidden(resource, name, &because)
    }

    /// 403: not allowed to ask for a path that is no resource.
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        let user = if user.is_empty() { "system:anonymous" } else { user };
        let message = format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\"");
        Self::about(403, "Forbidden", message, Details::default())
    }

    /// 403: not allowed, for this reason.
    pub fn forbidden(resource: Resource<'_>, name: &str, because: &str) -> Self {
        let message = match name {
            "" => format!("{} is forbidden: {because}", resource.qualified()),
            name => format!("{} \"{name}\" is forbidden: {because}", resource.qualified()),
        };
        Self::about(403, "Forbidden", message, resource.details(name))
    }

    /// 403: nothing new may be made in a namespace that is on its way out.
    pub fn namespace_terminating(resource: Resource<'_>, name: &str, namespace: &str) -> Self {
        let because = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Self::forbidden(resource, name, &because);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            });
        }
        status
    }

    /// 401: who are you?
    pub fn unauthorized() -> Self {
        Self::plain(401, "Unauthorized", "Unauthorized")
    }

    /// 422: fields are wrong.
    pub fn invalid(group: &str, kind: &str, name: &str, problems: &[FieldError]) -> Self {
        let texts: Vec<String> = problems.iter().map(FieldError::to_string).collect();
        let text = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = group_resource(group, kind);
        let details = Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            causes: problems.iter().map(FieldError::cause).collect(),
            ..Details::default()
        };
        Self::about(422, "Invalid", format!("{qualified} \"{name}\" is invalid: {text}"), details)
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::plain(400, "BadRequest", message)
    }

    /// 410: a watch or list asks for what is forgotten.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::plain(410, "Expired", message)
    }

    /// 410: a watch asks for a resource version that is forgotten.
    pub fn too_old_resource_version(asked: u64, oldest: u64) -> Self {
        Self::expired(format!("too old resource version: {asked} ({oldest})"))
    }

    /// 410: a list's continue token is forgotten.
    pub fn continue_expired() -> Self {
        Self::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        )
    }

    /// 410: it was here and is not any more.
    pub fn gone(message: impl Into<String>) -> Self {
        Self::plain(410, "Gone", message)
    }

    /// 504: a list or get asks for a resource version that is yet to come.
    pub fn too_large_resource_version(asked: u64, newest: u64) -> Self {
        let mut status = Self::timeout(format!("Too large resource version: {asked}, current: {newest}"), 1);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "ResourceVersionTooLarge".into(),
                message: "Too large resource version".into(),
                field: String::new(),
            });
        }
        status
    }

    /// 504: it took too long.
    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds: Some(retry_after_seconds), ..Details::default() };
        Self::about(504, "Timeout", format!("Timeout: {}", message.into()), details)
    }

    /// 500: cannot be done just now.
    pub fn server_timeout(resource: Resource<'_>, operation: &str, retry_after_seconds: u32) -> Self {
        let message = format!(
            "The {operation} operation against {} could not be completed at this time, please try again.",
            resource.qualified()
        );
        let details = Details { retry_after_seconds: Some(retry_after_seconds), ..resource.details("") };
        Self::about(500, "ServerTimeout", message, details)
    }

    /// 429: too much at a time.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let details = Details { retry_after_seconds: Some(retry_after_seconds), ..Details::default() };
        Self::about(429, "TooManyRequests", message.into(), details)
    }

    /// 429: an eviction would leave too few.
    pub fn disruption_budget(budget: &str, needed: i64, healthy: i64) -> Self {
        let mut status =
            Self::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", 0);
        if let Some(details) = &mut status.details {
            details.retry_after_seconds = None;
            details.causes.push(Cause {
                reason: "DisruptionBudget".into(),
                message: format!(
                    "The disruption budget {budget} needs {needed} healthy pods and has {healthy} currently"
                ),
                field: String::new(),
            });
        }
        status
    }

    /// 405: the resource cannot do that.
    pub fn method_not_allowed(resource: Resource<'_>, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind \"{}\"", resource.qualified());
        Self::about(405, "MethodNotAllowed", message, resource.details(""))
    }

    /// 406: no answer in a form that was asked for.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let accepted = accepted.join(", ");
        Self::plain(406, "NotAcceptable", format!("only the following media types are accepted: {accepted}"))
    }

    /// 415: the body is in a form we do not read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let accepted = accepted.join(", ");
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::plain(415, "UnsupportedMediaType", message)
    }

    /// 413: the body is too large.
    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::plain(413, "RequestEntityTooLarge", message)
    }

    /// 500: our fault.
    pub fn internal(message: impl std::fmt::Display) -> Self {
        let text = message.to_string();
        let causes = vec![Cause { reason: String::new(), message: text.clone(), field: String::new() }];
        let details = Details { causes, ..Details::default() };
        Self::about(500, "InternalError", format!("Internal error occurred: {text}"), details)
    }

    /// 503: not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::plain(503, "ServiceUnavailable", message)
    }

    /// Any code, reason and message.
    pub fn plain(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Status { code, reason: reason.into(), message: message.into(), details: None }
    }

    /// The JSON sent to the client.
    pub fn to_value(&self) -> Value {
        let mut status = Map::new();
        status.insert("kind".into(), "Status".into());
        status.insert("apiVersion".into(), "v1".into());
        status.insert("metadata".into(), json!({}));
        status.insert("status".into(), if self.is_success() { "Success".into() } else { "Failure".into() });
        put(&mut status, "message", &self.message);
        put(&mut status, "reason", &self.reason);
        if let Some(details) = &self.details {
            status.insert("details".into(), details.to_value());
        }
        if !self.is_success() {
            status.insert("code".into(), self.code.into());
        }
        Value::Object(status)
    }

    /// Reads what [`Status::to_value`] (or any API server) wrote.
    pub fn from_value(value: &Value) -> Option<Self> {
        if value.get("kind").and_then(Value::as_str) != Some("Status") {
            return None;
        }
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or("").to_owned();
        let success = text(value, "status") == "Success";
        let code = value.get("code").and_then(Value::as_u64).and_then(|code| u16::try_from(code).ok());
        let details = value.get("details").map(|details| Details {
            name: text(details, "name"),
            group: text(details, "group"),
            kind: text(details, "kind"),
            uid: text(details, "uid"),
            causes: details
                .get("causes")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(|cause| Cause {
                    reason: text(cause, "reason"),
                    message: text(cause, "message"),
                    field: text(cause, "field"),
                })
                .collect(),
            retry_after_seconds: details
                .get("retryAfterSeconds")
                .and_then(Value::as_u64)
                .and_then(|seconds| u32::try_from(seconds).ok()),
        });
        Some(Status {
            code: code.unwrap_or(if success { 200 } else { 500 }),
            reason: text(value, "reason"),
            message: text(value, "message"),
            details,
        })
    }

    /// Whether nothing went wrong.
    pub fn is_success(&self) -> bool {
        self.code < 400
    }

    /// The seconds for the header `Retry-After`.
    pub fn retry_after(&self) -> Option<u32> {
        self.details.as_ref().and_then(|details| details.retry_after_seconds)
    }

    fn about(code: u16, reason: &str, message: String, details: Details) -> Self {
        Status { code, reason: reason.into(), message, details: Some(details) }
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut details = Map::new();
        put(&mut details, "name", &self.name);
        put(&mut details, "group", &self.group);
        put(&mut details, "kind", &self.kind);
        put(&mut details, "uid", &self.uid);
        if !self.causes.is_empty() {
            details.insert("causes".into(), self.causes.iter().map(Cause::to_value).collect());
        }
        if let Some(seconds) = self.retry_after_seconds {
            details.insert("retryAfterSeconds".into(), seconds.into());
        }
        Value::Object(details)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut cause = Map::new();
        put(&mut cause, "reason", &self.reason);
        put(&mut cause, "message", &self.message);
        put(&mut cause, "field", &self.field);
        Value::Object(cause)
    }
}

fn put(map: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        map.insert(key.into(), text.into());
    }
}

/// What is wrong with one field, as Kubernetes says it.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// The field, `spec.containers[0].name`; empty for the whole.
    pub field: String,
    /// What kind of wrong.
    pub fault: Fault,
    /// The value, where it is named.
    pub value: Option<Value>,
    /// More.
    pub detail: String,
}

/// Kinds of wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It must be there.
    Required,
    /// It is not as it must be.
    Invalid,
    /// It is none of the values there are.
    NotSupported,
    /// It is there twice.
    Duplicate,
    /// It must not be there.
    Forbidden,
    /// It is too long.
    TooLong,
    /// It has too many entries.
    TooMany,
    /// It names what is not there.
    NotFound,
    /// It is of another type.
    TypeInvalid,
}

impl FieldError {
    /// `field: Required value: detail`.
    pub fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        FieldError { field: field.into(), fault: Fault::Required, value: None, detail: detail.into() }
    }

    /// `field: Invalid value: value: detail`.
    pub fn invalid(field: impl Into<String>, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        let value = Some(value.into());
        FieldError { field: field.into(), fault: Fault::Invalid, value, detail: detail.into() }
    }

    /// `field: Invalid value: "object": detail`, of another type than it must be.
    pub fn wrong_type(field: impl Into<String>, found: &str, detail: impl Into<String>) -> Self {
        let value = Some(found.into());
        FieldError { field: field.into(), fault: Fault::TypeInvalid, value, detail: detail.into() }
    }

    /// `field: Unsupported value: "c": supported values: "a", "b"`.
    pub fn not_supported(field: impl Into<String>, value: impl Into<Value>, supported: &[Value]) -> Self {
        let supported: Vec<String> = supported.iter().map(Value::to_string).collect();
        FieldError {
            field: field.into(),
            fault: Fault::NotSupported,
            value: Some(value.into()),
            detail: if supported.is_empty() {
                String::new()
            } else {
                format!("supported values: {}", supported.join(", "))
            },
        }
    }

    /// `field: Duplicate value: value`.
    pub fn duplicate(field: impl Into<String>, value: impl Into<Value>) -> Self {
        let value = Some(value.into());
        FieldError { field: field.into(), fault: Fault::Duplicate, value, detail: String::new() }
    }

    /// `field: Forbidden: detail`.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        FieldError { field: field.into(), fault: Fault::Forbidden, value: None, detail: detail.into() }
    }

    /// `field: Not found: value`.
    pub fn not_found(field: impl Into<String>, value: impl Into<Value>) -> Self {
        let value = Some(value.into());
        FieldError { field: field.into(), fault: Fault::NotFound, value, detail: String::new() }
    }

    /// `field: Too long: may not be more than 3 bytes`.
    pub fn too_long(field: impl Into<String>, most: u64) -> Self {
        let detail = format!("may not be more than {most} bytes");
        FieldError { field: field.into(), fault: Fault::TooLong, value: None, detail }
    }

    /// `field: Too many: 3: must have at most 2 items`.
    pub fn too_many(field: impl Into<String>, found: usize, most: u64) -> Self {
        let detail = format!("must have at most {most} items");
        FieldError { field: field.into(), fault: Fault::TooMany, value: Some(found.into()), detail }
    }

    /// For a [`Status`].
    pub fn cause(&self) -> Cause {
        Cause { reason: self.fault.reason().into(), message: self.text(), field: self.field.clone() }
    }

    fn text(&self) -> String {
        let mut text = self.fault.words().to_owned();
        if let Some(value) = &self.value {
            text.push_str(": ");
            text.push_str(&value.to_string());
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let field = if self.field.is_empty() { "<nil>" } else { &self.field };
        write!(formatter, "{field}: {}", self.text())
    }
}

impl Fault {
    fn words(self) -> &'static str {
        match self {
            Fault::Required => "Required value",
            Fault::Invalid | Fault::TypeInvalid => "Invalid value",
            Fault::NotSupported => "Unsupported value",
            Fault::Duplicate => "Duplicate value",
            Fault::Forbidden => "Forbidden",
            Fault::TooLong => "Too long",
            Fault::TooMany => "Too many",
            Fault::NotFound => "Not found",
        }
    }

    fn reason(self) -> &'static str {
        match self {
            Fault::Required => "FieldValueRequired",
            Fault::Invalid => "FieldValueInvalid",
            Fault::TypeInvalid => "FieldValueTypeInvalid",
            Fault::NotSupported => "FieldValueNotSupported",
            Fault::Duplicate => "FieldValueDuplicate",
            Fault::Forbidden => "FieldValueForbidden",
            Fault::TooLong => "FieldValueTooLong",
            Fault::TooMany => "FieldValueTooMany",
            Fault::NotFound => "FieldValueNotFound",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PODS: Resource<'static> = Resource { group: "", plural: "pods" };
    const DEPLOYMENTS: Resource<'static> = Resource { group: "apps", plural: "deployments" };

    #[test]
    fn messages_are_kubernetes_own() {
        let invalid = Status::invalid("apps", "Deployment", "x", &[FieldError::required("spec.selector", "")]);
        let two = [
            FieldError::invalid("spec.replicas", -1, "must be greater than or equal to 0"),
            FieldError::not_supported("spec.type", "c", &["a".into(), "b".into()]),
        ];
        let user = "system:serviceaccount:sample:default";
        let cases = [
            (Status::not_found(PODS, "x"), 404, "NotFound", "pods \"x\" not found"),
            (Status::not_found(DEPLOYMENTS, "x"), 404, "NotFound", "deployments.apps \"x\" not found"),
            (Status::already_exists(PODS, "x"), 409, "AlreadyExists", "pods \"x\" already exists"),
            (
                Status::conflict(PODS, "x"),
                409,
                "Conflict",
                "Operation cannot be fulfilled on pods \"x\": the object has been modified; please apply your changes to the latest version and try again",
            ),
            (invalid, 422, "Invalid", "Deployment.apps \"x\" is invalid: spec.selector: Required value"),
            (
                Status::invalid("", "Pod", "x", &two),
                422,
                "Invalid",
                "Pod \"x\" is invalid: [spec.replicas: Invalid value: -1: must be greater than or equal to 0, spec.type: Unsupported value: \"c\": supported values: \"a\", \"b\"]",
            ),
            (
                Status::forbidden_to(user, "list", DEPLOYMENTS, None, Some("sample"), ""),
                403,
                "Forbidden",
                "deployments.apps is forbidden: User \"system:serviceaccount:sample:default\" cannot list resource \"deployments\" in API group \"apps\" in the namespace \"sample\"",
            ),
            (
                Status::forbidden_to("", "get", PODS, Some("log"), None, "x"),
                403,
                "Forbidden",
                "pods \"x\" is forbidden: User \"system:anonymous\" cannot get resource \"pods/log\" in API group \"\" at the cluster scope",
            ),
            (Status::too_old_resource_version(1, 5), 410, "Expired", "too old resource version: 1 (5)"),
            (Status::timeout("request did not complete", 0), 504, "Timeout", "Timeout: request did not complete"),
            (
                Status::method_not_allowed(PODS, "patch"),
                405,
                "MethodNotAllowed",
                "patch is not supported on resources of kind \"pods\"",
            ),
        ];
        for (status, code, reason, message) in cases {
            assert_eq!((status.code, status.reason.as_str(), status.message.as_str()), (code, reason, message));
            assert_eq!(Status::from_value(&status.to_value()), Some(status));
        }
    }

    #[test]
    fn the_json_is_kubernetes_own() {
        let status = Status::invalid("apps", "Deployment", "x", &[FieldError::required("spec.selector", "")]);
        assert_eq!(
            status.to_value(),
            json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "Deployment.apps \"x\" is invalid: spec.selector: Required value",
                "reason": "Invalid",
                "details": {"name": "x", "group": "apps", "kind": "Deployment", "causes": [
                    {"reason": "FieldValueRequired", "message": "Required value", "field": "spec.selector"}]},
                "code": 422
            })
        );
        assert_eq!(
            Status::success(PODS, "x", "u").to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": "x", "kind": "pods", "uid": "u"}})
        );
    }

    proptest::proptest! {
        #[test]
        fn any_status_is_read_or_refused(status in crate::path::tests::any_json(), details in crate::path::tests::any_json()) {
            Status::from_value(&status);
            let status = Status::from_value(&json!({"kind": "Status", "code": status, "details": details}));
            proptest::prop_assert!(status.is_some());
        }
    }
}
