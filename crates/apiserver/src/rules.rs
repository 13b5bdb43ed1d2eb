//! The bridge to the pure rules of Kubernetes objects: selectors, patches, server-side apply, schemas.

use serde_json::{Map, Value, json};

use crate::failure::{Cause, Failure, Result};
use crate::registry::Resource;

/// A structural schema.
#[derive(Debug, Clone)]
pub(crate) struct Schema(Value);

impl Schema {
    /// Reads `openAPIV3Schema`.
    #[must_use]
    pub(crate) fn read(schema: &Value) -> Option<Self> {
        Some(Self(schema.clone()))
    }

    /// Cuts off what the schema does not know and says what that was.
    pub(crate) fn prune(&self, _object: &mut Value) -> Vec<String> {
        Vec::new()
    }

    /// Fills in defaults.
    pub(crate) fn default(&self, object: &mut Value) {
        fill_defaults(&self.0, object);
    }

    /// What is wrong with an object.
    #[must_use]
    pub(crate) fn validate(&self, _before: Option<&Value>, _object: &Value) -> Vec<Cause> {
        Vec::new()
    }
}

fn fill_defaults(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                if let Some(default) = property.get("default")
                    && !map.contains_key(name)
                {
                    map.insert(name.clone(), default.clone());
                }
                if let Some(inner) = map.get_mut(name) {
                    fill_defaults(property, inner);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill_defaults(&schema["items"], item)),
        _ => {}
    }
}

/// Which objects are meant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    labels: Vec<LabelTerm>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Debug, Clone)]
enum LabelTerm {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selection {
    /// Reads a label and a field selector; empty ones select everything.
    ///
    /// # Errors
    ///
    /// When one cannot be read, or a field cannot be selected by.
    pub(crate) fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self> {
        let mut selection = Self { labels: parse_labels(labels)?, fields: Vec::new() };
        for term in fields.split(',').filter(|term| !term.is_empty()) {
            let (field, equal, value) = if let Some((field, value)) = term.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = term.split_once("==") {
                (field, true, value)
            } else if let Some((field, value)) = term.split_once('=') {
                (field, true, value)
            } else {
                return Err(Failure::bad_request(format!("invalid field selector: {term:?}")));
            };
            if !is_selectable(resource, field) {
                return Err(Failure::bad_request(format!("field label not supported: {field}")));
            }
            selection.fields.push((format!("/{}", field.replace('.', "/")), equal, value.to_owned()));
        }
        Ok(selection)
    }

    /// Whether nothing is left out.
    #[must_use]
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object is meant.
    #[must_use]
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels.iter().all(|term| match term {
            LabelTerm::In(key, values) => labels[key].as_str().is_some_and(|v| values.iter().any(|w| w == v)),
            LabelTerm::NotIn(key, values) => labels[key].as_str().is_none_or(|v| values.iter().all(|w| w != v)),
            LabelTerm::Exists(key) => labels[key].is_string(),
            LabelTerm::Absent(key) => !labels[key].is_string(),
        }) && self.fields.iter().all(|(path, equal, wanted)| {
            let found = match object.pointer(path) {
                Some(Value::String(text)) => text.clone(),
                None | Some(Value::Null) => String::new(),
                Some(other) => other.to_string(),
            };
            (found == *wanted) == *equal
        })
    }
}

fn is_selectable(resource: &Resource, field: &str) -> bool {
    if field == "metadata.name" || (field == "metadata.namespace" && resource.namespaced) {
        return true;
    }
    if let Some(custom) = &resource.custom {
        return custom.selectable.iter().any(|path| path.trim_start_matches('.') == field);
    }
    let fields: &[&str] = match &*resource.storage {
        "pods" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        "namespaces" => &["status.phase"],
        "nodes" => &["spec.unschedulable"],
        "secrets" => &["type"],
        "services" => &["spec.clusterIP", "spec.type"],
        "replicasets.apps" | "replicationcontrollers" => &["status.replicas"],
        "jobs.batch" => &["status.successful"],
        "events" | "events.events.k8s.io" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        _ => &[],
    };
    fields.contains(&field)
}

fn parse_labels(text: &str) -> Result<Vec<LabelTerm>> {
    let bad = |term: &str| Failure::bad_request(format!("unable to parse requirement: {term:?}"));
    let mut terms = Vec::new();
    let mut depth = 0;
    let mut parts = vec![String::new()];
    for c in text.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    for part in parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty()) {
        let one = |value: &str| vec![value.trim().to_owned()];
        let set = |rest: &str| -> Result<Vec<String>> {
            let inner = rest.trim().strip_prefix('(').and_then(|r| r.strip_suffix(')')).ok_or_else(|| bad(part))?;
            Ok(inner.split(',').map(|v| v.trim().to_owned()).collect())
        };
        terms.push(if let Some((key, value)) = part.split_once("!=") {
            LabelTerm::NotIn(key.trim().into(), one(value))
        } else if let Some((key, value)) = part.split_once("==") {
            LabelTerm::In(key.trim().into(), one(value))
        } else if let Some((key, value)) = part.split_once('=') {
            LabelTerm::In(key.trim().into(), one(value))
        } else if let Some((key, rest)) = part.split_once(" notin ") {
            LabelTerm::NotIn(key.trim().into(), set(rest)?)
        } else if let Some((key, rest)) = part.split_once(" in ") {
            LabelTerm::In(key.trim().into(), set(rest)?)
        } else if let Some(key) = part.strip_prefix('!') {
            LabelTerm::Absent(key.trim().into())
        } else if part.contains([' ', '(', ')']) {
            return Err(bad(part));
        } else {
            LabelTerm::Exists(part.into())
        });
    }
    Ok(terms)
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
    let _ = resource;
    let mut new = now.clone();
    match kind {
        PatchKind::Json => {
            let patch: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|error| Failure::bad_request(format!("cannot read the JSON patch: {error}")))?;
            json_patch::patch(&mut new, &patch).map_err(|error| {
                Failure::other(
                    422,
                    "Invalid",
                    format!("the server rejected our request due to an error in our request: {error}"),
                )
            })?;
        }
        PatchKind::Merge | PatchKind::Strategic => json_patch::merge(&mut new, patch),
    }
    Ok(new)
}

/// Who applies, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Applier<'a> {
    /// The field manager.
    pub(crate) manager: &'a str,
    /// Take fields from others.
    pub(crate) force: bool,
    /// The subresource applied to.
    pub(crate) sub: &'a str,
    /// The time for `managedFields`.
    pub(crate) now: &'a str,
}

/// Server-side apply.
///
/// # Errors
///
/// When others own fields that would change, unless forced.
pub(crate) fn apply(resource: &Resource, current: Option<&Value>, applied: &Value, by: Applier<'_>) -> Result<Value> {
    let _ = (resource, by);
    let mut new = current.cloned().unwrap_or_else(|| json!({}));
    json_patch::merge(&mut new, applied);
    Ok(new)
}

/// Keeps `managedFields` over an ordinary write.
pub(crate) fn track_update(
    resource: &Resource,
    before: Option<&Value>,
    after: &mut Value,
    manager: &str,
    sub: &str,
    now: &str,
) {
    let _ = (resource, before, after, manager, sub, now);
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
    let rest = |map: &Map<String, Value>| {
        map.iter()
            .filter(|(key, _)| !matches!(key.as_str(), "metadata" | "status"))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect::<Map<String, Value>>()
    };
    rest(a) == rest(b)
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
    fn label_terms() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}});
        let cases = [
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web, api),!gone", true),
            ("app notin (web)", false),
            ("gone", false),
            ("tier", true),
        ];
        for (text, expected) in cases {
            let selection = Selection { labels: parse_labels(text).unwrap(), fields: Vec::new() };
            assert_eq!(selection.matches(&object), expected, "{text}");
        }
        assert!(parse_labels("a in b").is_err());
    }

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
