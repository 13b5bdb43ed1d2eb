//! Between the version an object is asked for in and the one it is stored in.
//!
//! All versions of a kind have the same fields (conversion `None`), so only `apiVersion` differs. The one exception is
//! `events.k8s.io`, which is another view of the core group's events.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::registry::Resource;
use crate::watch::Object;

/// Names of the same fields: in `events.k8s.io/v1`, in `v1`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("deprecatedSource", "source"),
    ("reportingController", "reportingComponent"),
];

/// Makes of a stored object one in the version asked for.
pub(crate) fn from_stored(resource: &Resource, object: &mut Value) {
    if resource.group != resource.stored_group {
        rename(object, EVENT_FIELDS.iter().map(|(new, old)| (*old, *new)));
    }
    object["apiVersion"] = json!(resource.api_version());
}

/// A stored object in the version asked for; no copy where that is the one it was stored in.
#[must_use]
pub(crate) fn shown<'a>(resource: &Resource, object: &'a Value) -> Cow<'a, Value> {
    if resource.group == resource.stored_group && object["apiVersion"] == resource.api_version() {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    from_stored(resource, &mut object);
    Cow::Owned(object)
}

/// Makes of an object in the version asked for one to store.
pub(crate) fn to_stored(resource: &Resource, object: &mut Value) {
    if resource.group != resource.stored_group {
        rename(object, EVENT_FIELDS.iter().copied());
    }
    object["apiVersion"] = json!(resource.stored_api_version());
}

fn rename<'a>(object: &mut Value, fields: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in fields {
        if let Some(value) = map.remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}

/// A stored object's JSON in the version asked for.
#[must_use]
pub(crate) fn json_of(resource: &Resource, object: &Object) -> Bytes {
    if resource.group == resource.stored_group {
        if resource.custom.is_none() {
            return object.json.clone();
        }
        // Keys are sorted, so `apiVersion` comes first in almost every object: replace it without parsing. What an
        // object says of itself is what was the storage version when it was written.
        let wanted = format!("{{\"apiVersion\":\"{}\"", resource.api_version());
        if object.json.starts_with(wanted.as_bytes()) {
            return object.json.clone();
        }
        let stored = format!("{{\"apiVersion\":\"{}\"", object.value["apiVersion"].as_str().unwrap_or_default());
        if let Some(rest) = object.json.strip_prefix(stored.as_bytes()) {
            let mut bytes = wanted.into_bytes();
            bytes.extend_from_slice(rest);
            return Bytes::from(bytes);
        }
    }
    let mut value = object.value.clone();
    from_stored(resource, &mut value);
    Bytes::from(serde_json::to_vec(&value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_in_both_groups() {
        let table = crate::registry::Registry::new([]).table();
        let new = table.find("events.k8s.io", "v1", "events").unwrap();
        let event = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "it happened", "reason": "R",
            "regarding": {"kind": "Pod", "name": "p"}, "metadata": {"name": "e"}});
        let mut stored = event.clone();
        to_stored(new, &mut stored);
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!((&stored["message"], &stored["involvedObject"]["name"]), (&json!("it happened"), &json!("p")));
        assert_eq!(*shown(new, &stored), event);
        let old = table.find("", "v1", "events").unwrap();
        assert!(matches!(shown(old, &stored), Cow::Borrowed(_)));
        from_stored(new, &mut stored);
        assert_eq!(stored, event);
        assert_eq!(&*table.find_stored("events").unwrap().group, "");
    }
}
