//! What a client is told when it does not get what it asked for: a `metav1.Status`.

use std::borrow::Cow;

use serde_json::{Value, json};

/// A request that failed. Renders as a `metav1.Status` and its HTTP status code.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// The HTTP status code.
    pub(crate) code: u16,
    /// The machine's word for it, such as `NotFound`.
    pub(crate) reason: Cow<'static, str>,
    /// The sentence for people.
    pub(crate) message: String,
    /// `details` of the Status, or null.
    pub(crate) details: Value,
    /// `metadata.continue` of the Status: where a list that broke off may go on.
    pub(crate) resume: Option<String>,
}

/// The result of everything a client can ask for.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// One thing wrong with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    /// Where: `spec.containers[0].name`.
    pub(crate) field: String,
    /// `FieldValueInvalid`, `FieldValueRequired`, ….
    pub(crate) reason: Cow<'static, str>,
    /// What is wrong.
    pub(crate) message: String,
}

impl Cause {
    /// A field that must be there and is not.
    pub(crate) fn required(field: impl Into<String>, message: &str) -> Self {
        let message = if message.is_empty() { "Required value".into() } else { format!("Required value: {message}") };
        Self { field: field.into(), reason: Cow::Borrowed("FieldValueRequired"), message }
    }

    /// A value that cannot be.
    pub(crate) fn invalid(field: impl Into<String>, value: &Value, message: &str) -> Self {
        Self {
            field: field.into(),
            reason: Cow::Borrowed("FieldValueInvalid"),
            message: format!("Invalid value: {value}: {message}"),
        }
    }

    /// A value that may not be.
    pub(crate) fn forbidden(field: impl Into<String>, message: &str) -> Self {
        Self {
            field: field.into(),
            reason: Cow::Borrowed("FieldValueForbidden"),
            message: format!("Forbidden: {message}"),
        }
    }
}

impl Failure {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason: Cow::Borrowed(reason), message: message.into(), details: Value::Null, resume: None }
    }

    fn about(mut self, resource: &str, name: &str) -> Self {
        let (kind, group) = resource.split_once('.').unwrap_or((resource, ""));
        self.details = json!({"name": name, "kind": kind});
        if !group.is_empty() {
            self.details["group"] = json!(group);
        }
        self
    }

    /// 404 for an object. `resource` is `pods` or `deployments.apps`.
    #[must_use]
    pub(crate) fn not_found(resource: &str, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} {name:?} not found")).about(resource, name)
    }

    /// 404 for a path that nobody serves.
    #[must_use]
    pub(crate) fn no_such_path() -> Self {
        let mut failure = Self::new(404, "NotFound", "the server could not find the requested resource");
        failure.details = json!({});
        failure
    }

    /// 409: an object of that name is there already.
    #[must_use]
    pub(crate) fn already_exists(resource: &str, name: &str) -> Self {
        Self::new(409, "AlreadyExists", format!("{resource} {name:?} already exists")).about(resource, name)
    }

    /// 409: somebody else was faster, or a precondition does not hold.
    #[must_use]
    pub(crate) fn conflict(resource: &str, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// 409: the object changed since it was read.
    #[must_use]
    pub(crate) fn modified(resource: &str, name: &str) -> Self {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(resource, name, why)
    }

    /// 422: the object cannot be, and why. `kind` is `Deployment.apps`.
    #[must_use]
    pub(crate) fn invalid(kind: &str, group: &str, name: &str, causes: &[Cause]) -> Self {
        let said: Vec<_> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let said = if said.len() == 1 { said[0].clone() } else { format!("[{}]", said.join(", ")) };
        let full = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let mut failure = Self::new(422, "Invalid", format!("{full} {name:?} is invalid: {said}"));
        let causes: Vec<_> =
            causes.iter().map(|c| json!({"reason": c.reason, "message": c.message, "field": c.field})).collect();
        failure.details = json!({"name": name, "kind": kind, "causes": causes});
        if !group.is_empty() {
            failure.details["group"] = json!(group);
        }
        failure
    }

    /// 400: the request makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: who are you?
    #[must_use]
    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: you may not.
    #[must_use]
    pub(crate) fn forbidden(resource: &str, name: &str, why: &str) -> Self {
        let shown = if name.is_empty() { resource.to_owned() } else { format!("{resource} {name:?}") };
        Self::new(403, "Forbidden", format!("{shown} is forbidden: {why}")).about(resource, name)
    }

    /// 405.
    #[must_use]
    pub(crate) fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 406: none of the formats asked for is spoken here.
    #[must_use]
    pub(crate) fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json";
        Self::new(406, "NotAcceptable", message)
    }

    /// 410: that revision is gone.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413.
    #[must_use]
    pub(crate) fn too_large(limit: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit}"))
    }

    /// 415.
    #[must_use]
    pub(crate) fn unsupported_media_type(given: &str, accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted} (it was {given:?})"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 429: come back in a second.
    pub(crate) fn too_many_requests(message: impl Into<String>) -> Self {
        let mut failure = Self::new(429, "TooManyRequests", message);
        failure.details = json!({"retryAfterSeconds": 1});
        failure
    }

    /// 500.
    pub(crate) fn internal(message: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// 501.
    pub(crate) fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(501, "NotImplemented", message)
    }

    /// 503.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504.
    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self::new(504, "Timeout", message)
    }

    /// With a code, reason and message of somebody else's choosing (a webhook's).
    pub(crate) fn other(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, reason, message)
    }

    /// With `details`.
    #[must_use]
    pub(crate) fn with_details(mut self, details: Value) -> Self {
        self.details = details;
        self
    }

    /// The `metav1.Status`.
    #[must_use]
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if let Some(token) = &self.resume {
            status["metadata"]["continue"] = json!(token);
        }
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

impl From<Failure> for stolos_k8s::Status {
    fn from(failure: Failure) -> Self {
        let read = Self::from_value(&failure.status());
        let Failure { code, reason, message, .. } = failure;
        read.unwrap_or_else(|| Self { code, reason: reason.into_owned(), message, details: None })
    }
}

/// The Status of a thing that was done and has no other answer.
#[must_use]
pub(crate) fn success(resource: &str, name: &str, uid: &str) -> Value {
    let (kind, group) = resource.split_once('.').unwrap_or((resource, ""));
    let mut details = json!({"name": name, "kind": kind, "uid": uid});
    if !group.is_empty() {
        details["group"] = json!(group);
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

impl From<stolos_k8s::status::Status> for Failure {
    fn from(status: stolos_k8s::status::Status) -> Self {
        let details = status.to_value()["details"].clone();
        Self { code: status.code, reason: Cow::Owned(status.reason), message: status.message, details, resume: None }
    }
}

impl From<stolos_k8s::status::FieldError> for Cause {
    fn from(error: stolos_k8s::status::FieldError) -> Self {
        let cause = error.cause();
        Self { field: cause.field, reason: Cow::Owned(cause.reason), message: cause.message }
    }
}
