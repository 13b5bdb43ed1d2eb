//! The bridge to the pure rules of Kubernetes objects: selectors, patches, server-side apply, schemas.

use serde_json::{Map, Value, json};

use stolos_k8s::lists::Shape;
use stolos_k8s::selector::{FieldSelector, LabelSelector};
use stolos_k8s::{patch, schema, ssa};

use crate::failure::{Cause, Failure, Result};
use crate::registry::{Custom, Resource};

/// A structural schema.
#[derive(Debug)]
pub(crate) struct Schema(schema::Schema);

impl Schema {
    /// Reads `openAPIV3Schema`.
    #[must_use]
    pub(crate) fn read(json: &Value) -> Option<Self> {
        match schema::Schema::root(json) {
            Ok(schema) => Some(Self(schema)),
            Err(error) => {
                // Definitions are checked before they are stored, so this is one of an older server.
                tracing::warn!(%error, "a stored schema cannot be read; objects are not checked by it");
                None
            }
        }
    }

    /// Cuts off what the schema does not know and says what that was.
    pub(crate) fn prune(&self, object: &mut Value) -> Vec<String> {
        self.0.prune(object)
    }

    /// Fills in defaults.
    pub(crate) fn default(&self, object: &mut Value) {
        self.0.fill_defaults(object);
    }

    /// What is wrong with an object.
    #[must_use]
    pub(crate) fn validate(&self, object: &Value) -> Vec<Cause> {
        self.0.validate(object).into_iter().map(Cause::from).collect()
    }
}

/// How lists and maps of a kind are merged and owned.
fn shape(resource: &Resource) -> Shape<'_> {
    match &resource.custom {
        Some(Custom { schema: Some(schema), .. }) => Shape::of_schema(&schema.0),
        Some(_) => Shape::UNKNOWN,
        None => Shape::of(&resource.api_version(), &resource.kind),
    }
}

/// Which objects are meant.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Selection {
    /// Reads a label and a field selector; empty ones select everything.
    ///
    /// # Errors
    ///
    /// When one cannot be read, or a field cannot be selected by.
    pub(crate) fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self> {
        let fields_text = fields;
        let labels = LabelSelector::parse(labels).map_err(|error| Failure::bad_request(error.to_string()))?;
        let fields = FieldSelector::parse(fields).map_err(|error| Failure::bad_request(error.to_string()))?;
        let unknown = match &resource.custom {
            None => fields.unsupported(&resource.group, &resource.kind),
            Some(custom) => fields.terms().iter().map(|term| term.field.as_str()).find(|field| {
                !matches!(*field, "metadata.name" | "metadata.namespace")
                    && !custom.selectable.iter().any(|path| path.trim_start_matches('.') == *field)
            }),
        };
        match unknown {
            Some(field) => Err(Failure::bad_request(format!("field label not supported: {field}"))),
            None if resource.group != resource.stored_group => {
                // Events of the new group are stored with the old one's names.
                let stored = fields_as_stored(fields_text);
                let fields = FieldSelector::parse(&stored).map_err(|error| Failure::bad_request(error.to_string()))?;
                Ok(Self { labels, fields })
            }
            None => Ok(Self { labels, fields }),
        }
    }

    /// Whether nothing is left out.
    #[must_use]
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Whether an object is meant.
    #[must_use]
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.fields.matches_object(object) && (self.labels.is_everything() || self.labels.matches_object(object))
    }
}

/// A field selector of `events.k8s.io/v1` with the names of `v1`.
fn fields_as_stored(fields: &str) -> String {
    let terms = fields.split(',').map(|term| {
        let term = term.trim();
        if let Some(rest) = term.strip_prefix("regarding.") {
            return format!("involvedObject.{rest}");
        }
        match term.strip_prefix("reportingController") {
            Some(rest) => format!("reportingComponent{rest}"),
            None => term.to_owned(),
        }
    });
    terms.collect::<Vec<_>>().join(",")
}

/// Whether a `LabelSelector` selects labels. An absent one selects nothing, an empty one everything.
#[must_use]
pub(crate) fn label_selector_matches(selector: &Value, labels: &Value) -> bool {
    let Some(selector) = selector.as_object() else { return false };
    let exact = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    let terms = selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten();
    let has = |key: &str| labels.get(key).is_some_and(Value::is_string);
    let among = |term: &Value, key: &str| {
        term["values"].as_array().is_some_and(|values| labels.get(key).is_some_and(|found| values.contains(found)))
    };
    exact.into_iter().all(|(key, value)| labels.get(key) == Some(value))
        && terms.into_iter().all(|term| {
            let key = term["key"].as_str().unwrap_or_default();
            match term["operator"].as_str() {
                Some("In") => among(term, key),
                Some("NotIn") => !among(term, key),
                Some("Exists") => has(key),
                Some("DoesNotExist") => !has(key),
                _ => false,
            }
        })
}

/// A selector in the form `a=b,c=d`.
#[must_use]
pub(crate) fn selector_text(selector: &Value) -> String {
    let labels = selector.get("matchLabels").unwrap_or(selector);
    let pairs = labels.as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect::<Vec<_>>().join(",")
}

/// The formats of patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' own.
    Strategic,
}

/// The object that a patch makes of `now`.
///
/// # Errors
///
/// When the patch does not fit.
pub(crate) fn patch(kind: PatchKind, resource: &Resource, now: &Value, patch: &Value) -> Result<Value> {
    let patched = match kind {
        PatchKind::Json => patch::json(now, patch),
        PatchKind::Merge => Ok(patch::merge(now, patch)),
        PatchKind::Strategic => patch::strategic(now, patch, shape(resource)),
    };
    patched.map_err(|error| match error {
        patch::PatchError::Malformed(_) => Failure::bad_request(error.to_string()),
        patch::PatchError::DoesNotFit(_) => Failure::other(422, "Invalid", error.to_string()),
    })
}

/// Who writes, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer<'a> {
    /// The field manager.
    pub(crate) manager: &'a str,
    /// Take fields from others, when applying.
    pub(crate) force: bool,
    /// The subresource written to.
    pub(crate) sub: &'a str,
    /// The time for `managedFields`.
    pub(crate) now: &'a str,
}

fn write<'a>(resource: &'a Resource, api_version: &'a str, by: Writer<'a>) -> ssa::Write<'a> {
    ssa::Write {
        manager: by.manager,
        api_version,
        subresource: by.sub,
        now: by.now,
        shape: shape(resource),
        status_apart: resource.has_status,
    }
}

/// Server-side apply.
///
/// # Errors
///
/// When others own fields that would change, unless forced.
pub(crate) fn apply(resource: &Resource, current: Option<&Value>, wanted: &Value, by: Writer<'_>) -> Result<Value> {
    let api_version = resource.api_version();
    ssa::apply(current, wanted, &write(resource, &api_version, by), by.force)
        .map_err(|error| Failure::from(error.to_status()))
}

/// Keeps `managedFields` over an ordinary write.
pub(crate) fn track_update(resource: &Resource, before: Option<&Value>, after: &mut Value, by: Writer<'_>) {
    let api_version = resource.api_version();
    ssa::update(before, after, &write(resource, &api_version, by));
}

/// Whether two objects are the same but for the times in `managedFields` and the revision.
#[must_use]
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    same_but(a, b, |key, a, b| match key {
        "metadata" => same_metadata(a, b),
        _ => a == b,
    })
}

fn same_metadata(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    same_but(a, b, |key, a, b| match key {
        "managedFields" => {
            let (Some(a), Some(b)) = (a.as_array(), b.as_array()) else { return a == b };
            a.len() == b.len() && a.iter().all(|entry| b.iter().any(|other| same_entry(entry, other)))
        }
        "resourceVersion" => true,
        _ => a == b,
    })
}

fn same_entry(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    same_but(a, b, |key, a, b| key == "time" || a == b)
}

fn same_but(a: &Map<String, Value>, b: &Map<String, Value>, same: impl Fn(&str, &Value, &Value) -> bool) -> bool {
    let ignored = |key: &String| matches!(key.as_str(), "resourceVersion" | "time");
    let missing = |x: &Map<String, Value>, key: &String| !ignored(key) && !x.contains_key(key);
    !a.keys().any(|key| missing(b, key))
        && !b.keys().any(|key| missing(a, key))
        && a.iter().all(|(key, value)| b.get(key).is_none_or(|other| same(key, value, other)))
}

/// Whether everything but metadata and status is the same: if not, the generation grows.
#[must_use]
pub(crate) fn same_but_metadata_and_status(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return a == b };
    fn rest(map: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
        map.iter().filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status"))
    }
    rest(a).eq(rest(b))
}

/// Sets the value at a JSON pointer, making objects on the way.
pub(crate) fn set(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for part in pointer.trim_start_matches('/').split('/') {
        if !at.is_object() {
            *at = json!({});
        }
        at = &mut at[part];
    }
    *at = value;
}

/// Sets a condition by its type.
pub(crate) fn set_condition(object: &mut Value, condition: &Value) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    let conditions = &mut object["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    match list.iter_mut().find(|known| known["type"] == condition["type"]) {
        Some(known) if known["status"] == condition["status"] && known["reason"] == condition["reason"] => {}
        Some(known) => *known = condition.clone(),
        None => list.push(condition.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_revisions_make_no_difference() {
        let a =
            json!({"metadata": {"resourceVersion": "1", "managedFields": [{"manager": "x", "time": "1"}]}, "spec": 1});
        let b =
            json!({"metadata": {"resourceVersion": "2", "managedFields": [{"manager": "x", "time": "2"}]}, "spec": 1});
        let c = json!({"metadata": {"managedFields": [{"manager": "y", "time": "2"}]}, "spec": 1});
        assert!(same(&a, &b));
        assert!(!same(&a, &c));
    }
}
