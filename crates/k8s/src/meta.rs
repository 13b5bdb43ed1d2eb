//! What every object has: names, labels, owners. Small readers on JSON; what is absent reads as empty.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// `apiVersion`.
pub fn api_version(object: &Value) -> &str {
    text(object.get("apiVersion"))
}

/// `kind`.
pub fn kind(object: &Value) -> &str {
    text(object.get("kind"))
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    text(of_metadata(object, "name"))
}

/// `metadata.generateName`.
pub fn generate_name(object: &Value) -> &str {
    text(of_metadata(object, "generateName"))
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    text(of_metadata(object, "namespace"))
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    text(of_metadata(object, "uid"))
}

/// `metadata.resourceVersion`.
pub fn resource_version(object: &Value) -> &str {
    text(of_metadata(object, "resourceVersion"))
}

/// `metadata.creationTimestamp`.
pub fn creation_timestamp(object: &Value) -> &str {
    text(of_metadata(object, "creationTimestamp"))
}

/// `metadata.deletionTimestamp`, when deletion was asked for.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    of_metadata(object, "deletionTimestamp").and_then(Value::as_str)
}

/// `metadata.generation`.
pub fn generation(object: &Value) -> i64 {
    of_metadata(object, "generation").and_then(Value::as_i64).unwrap_or(0)
}

/// `metadata.labels`.
pub fn labels(object: &Value) -> BTreeMap<String, String> {
    texts(of_metadata(object, "labels"))
}

/// `metadata.annotations`.
pub fn annotations(object: &Value) -> BTreeMap<String, String> {
    texts(of_metadata(object, "annotations"))
}

/// One label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("labels")?.get(key)?.as_str()
}

/// One annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(key)?.as_str()
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = of_metadata(object, "finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// `metadata.managedFields`, if there are any.
pub fn managed_fields(object: &Value) -> Option<&Vec<Value>> {
    of_metadata(object, "managedFields")?.as_array()
}

/// One of `metadata.ownerReferences`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerReference<'a> {
    /// The owner's `apiVersion`.
    pub api_version: &'a str,
    /// The owner's kind.
    pub kind: &'a str,
    /// The owner's name.
    pub name: &'a str,
    /// The owner's UID: what counts.
    pub uid: &'a str,
    /// Whether it is the controller.
    pub controller: bool,
    /// Whether deleting the owner in the foreground waits for this object.
    pub block_owner_deletion: bool,
}

/// `metadata.ownerReferences`.
pub fn owner_references(object: &Value) -> Vec<OwnerReference<'_>> {
    let list = of_metadata(object, "ownerReferences").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .map(|owner| OwnerReference {
            api_version: text(owner.get("apiVersion")),
            kind: text(owner.get("kind")),
            name: text(owner.get("name")),
            uid: text(owner.get("uid")),
            controller: flag(owner, "controller"),
            block_owner_deletion: flag(owner, "blockOwnerDeletion"),
        })
        .collect()
}

/// The owner that controls the object.
pub fn controller(object: &Value) -> Option<OwnerReference<'_>> {
    owner_references(object).into_iter().find(|owner| owner.controller)
}

/// The `metadata` to write to, made when absent. What is not an object is replaced by one.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    object_mut(child_mut(object, "metadata"))
}

/// Sets a label.
pub fn set_label(object: &mut Value, key: &str, value: &str) {
    let labels = metadata_mut(object).entry("labels").or_insert(Value::Null);
    object_mut(labels).insert(key.to_owned(), value.into());
}

/// Sets an annotation.
pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    let annotations = metadata_mut(object).entry("annotations").or_insert(Value::Null);
    object_mut(annotations).insert(key.to_owned(), value.into());
}

/// Takes out every field that is null: in Kubernetes, null is absent.
pub fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(remove_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

/// The letters of generated names: no vowels and nothing that looks like another.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How many letters follow a `generateName`.
const SUFFIX: usize = 5;
/// How long a name may be for a suffix to follow.
const MAX_GENERATED_BASE: usize = 63 - SUFFIX;

/// `generateName` with a suffix made from `randomness`; the base is cut so that the name stays a DNS label.
pub fn generated_name(base: &str, randomness: u64) -> String {
    let mut end = base.len().min(MAX_GENERATED_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{}", &base[..end], suffix(randomness, SUFFIX))
}

/// `length` letters (at most 13 are independent) as Kubernetes makes them, from `randomness`.
pub fn suffix(mut randomness: u64, length: usize) -> String {
    let base = ALPHABET.len() as u64;
    (0..length)
        .map(|_| {
            let letter = ALPHABET[(randomness % base) as usize];
            randomness /= base;
            char::from(letter)
        })
        .collect()
}

/// The letters by which Kubernetes writes a hash so that it cannot spell a word (`pod-template-hash`).
pub fn safe_encode(text: &str) -> String {
    text.bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

/// Kubernetes' words for a name that is not a DNS-1123 subdomain.
pub const SUBDOMAIN_MESSAGE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
/// Kubernetes' words for a name that is not a DNS-1123 label.
pub const LABEL_MESSAGE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
/// Kubernetes' words for a name that is not a DNS-1035 label.
pub const DNS1035_MESSAGE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_MESSAGE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_MESSAGE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
/// Kubernetes' words for a name that cannot be part of a path (RBAC's names).
const PATH_MESSAGES: [&str; 2] = ["may not be '.'", "may not be '..'"];

/// What is wrong with a DNS-1123 subdomain: most objects' names.
pub fn check_subdomain(name: &str) -> Vec<String> {
    let mut problems = at_most(name, 253);
    if !name.split('.').all(is_label) {
        problems.push(SUBDOMAIN_MESSAGE.into());
    }
    problems
}

/// What is wrong with a DNS-1123 label: namespaces' names.
pub fn check_label(name: &str) -> Vec<String> {
    let mut problems = at_most(name, 63);
    if !is_label(name) {
        problems.push(LABEL_MESSAGE.into());
    }
    problems
}

/// What is wrong with a DNS-1035 label: Services' names.
pub fn check_dns1035(name: &str) -> Vec<String> {
    let mut problems = at_most(name, 63);
    if !is_label(name) || name.starts_with(|first: char| first.is_ascii_digit()) {
        problems.push(DNS1035_MESSAGE.into());
    }
    problems
}

/// What is wrong with a name that only has to be one part of a path: RBAC's.
pub fn check_path_segment(name: &str) -> Vec<String> {
    match name {
        "." => vec![PATH_MESSAGES[0].into()],
        ".." => vec![PATH_MESSAGES[1].into()],
        _ => {
            ["/", "%"].iter().filter(|bad| name.contains(**bad)).map(|bad| format!("may not contain '{bad}'")).collect()
        }
    }
}

/// What is wrong with the name of an object of this kind.
pub fn check_name(group: &str, kind: &str, name: &str) -> Vec<String> {
    match (group, kind) {
        ("", "Namespace") => check_label(name),
        ("", "Service") => check_dns1035(name),
        ("rbac.authorization.k8s.io", _) => check_path_segment(name),
        _ => check_subdomain(name),
    }
}

/// What is wrong with a label's or annotation's key.
pub fn check_qualified_name(key: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let name = match key.split_once('/') {
        None => key,
        Some((prefix, name)) => {
            if name.contains('/') {
                return vec!["a valid label key must consist of alphanumeric characters, '-', '_' or '.', with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')".into()];
            }
            if prefix.is_empty() {
                problems.push("prefix part must be non-empty".to_owned());
            } else {
                problems.extend(check_subdomain(prefix).into_iter().map(|problem| format!("prefix part {problem}")));
            }
            name
        }
    };
    if name.is_empty() {
        problems.push("name part must be non-empty".into());
    } else if name.len() > 63 {
        problems.push("name part must be no more than 63 characters".into());
    }
    if !is_word(name) {
        problems.push(QUALIFIED_MESSAGE.into());
    }
    problems
}

/// What is wrong with a label's value.
pub fn check_label_value(value: &str) -> Vec<String> {
    let mut problems = at_most(value, 63);
    if !value.is_empty() && !is_word(value) {
        problems.push(LABEL_VALUE_MESSAGE.into());
    }
    problems
}

fn at_most(text: &str, length: usize) -> Vec<String> {
    if text.len() > length { vec![format!("must be no more than {length} characters")] } else { Vec::new() }
}

fn is_label(text: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    !text.is_empty() && text.as_bytes().iter().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_word(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// A field of `metadata`. (`Value::pointer` makes a text of each step; this is asked several times for each write.)
fn of_metadata<'a>(object: &'a Value, field: &str) -> Option<&'a Value> {
    object.get("metadata")?.get(field)
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or("")
}

fn flag(object: &Value, key: &str) -> bool {
    object.get(key).and_then(Value::as_bool).unwrap_or(false)
}

fn texts(object: Option<&Value>) -> BTreeMap<String, String> {
    let entries = object.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn child_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut Value {
    object_mut(object).entry(key.to_owned()).or_insert(Value::Null)
}

fn object_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn what_is_absent_reads_as_empty() {
        let empty = json!({});
        assert_eq!((name(&empty), namespace(&empty), uid(&empty)), ("", "", ""));
        assert!(labels(&empty).is_empty() && finalizers(&empty).is_empty() && controller(&empty).is_none());
        let pod = json!({"metadata": {"name": "a", "labels": {"k": "v", "n": 1}, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": true}]}});
        assert_eq!(labels(&pod), BTreeMap::from([("k".into(), "v".into())]));
        assert_eq!(controller(&pod).unwrap().kind, "ReplicaSet");
    }

    #[test]
    fn names_are_checked_as_kubernetes_does() {
        for good in ["a", "a-b", "a.b-c", "1", "example.com"] {
            assert!(check_subdomain(good).is_empty(), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", ".a", "a_b", "ä"] {
            assert!(!check_subdomain(bad).is_empty(), "{bad}");
        }
        assert!(!check_label("a.b").is_empty());
        assert!(!check_dns1035("1a").is_empty());
        assert!(check_name("rbac.authorization.k8s.io", "ClusterRole", "system:a").is_empty());
        assert!(!check_name("rbac.authorization.k8s.io", "ClusterRole", "a/b").is_empty());
        assert!(check_qualified_name("topology.istio.io/network").is_empty());
        for bad in ["", "/a", "a/", "a/b/c", "A b", "Ä/b"] {
            assert!(!check_qualified_name(bad).is_empty(), "{bad}");
        }
        assert!(check_label_value("").is_empty() && !check_label_value("a b").is_empty());
    }

    proptest! {
        #[test]
        fn generated_names_are_valid(base in "[a-z][a-z0-9-]{0,80}", randomness: u64) {
            let name = generated_name(&base, randomness);
            prop_assert!(check_label(&name).is_empty(), "{}", name);
        }

        #[test]
        fn setting_a_label_reads_back(value in crate::path::tests::any_json(), key in "[a-z]{1,5}", text in "[a-z]{0,5}") {
            let mut value = value;
            set_label(&mut value, &key, &text);
            prop_assert_eq!(label(&value, &key), Some(text.as_str()));
        }
    }
}
