//! Whether a live object is as wanted.
//!
//! A live object has more in it than was asked for: defaults, status, other people's fields. So the question is not
//! equality but two others: is everything that is wanted there ([`differences`]), and is nothing of *ours* there that
//! is no longer wanted? The second is read from `managedFields`, where the API server keeps who set what.

use serde_json::{Map, Value};
use similar::{ChangeTag, TextDiff};

use crate::{FieldDiff, MANAGER};

/// What must change in `live` for it to be as `wanted`; empty when nothing must.
pub(crate) fn differences(wanted: &Value, live: &Value) -> Vec<FieldDiff> {
    let mut found = Vec::new();
    let keyed = !is_custom(wanted);
    for (field, value) in wanted.as_object().into_iter().flatten() {
        match field.as_str() {
            "apiVersion" | "kind" => {}
            "metadata" => {
                for part in ["labels", "annotations"] {
                    // What is not asked for may be there: others have labels and annotations of their own.
                    if value[part].is_null() {
                        continue;
                    }
                    lacking(&value[part], &live["metadata"][part], &format!("metadata.{part}"), keyed, &mut found);
                }
            }
            _ => lacking(value, &live[field], field, keyed, &mut found),
        }
    }
    stale(wanted, live, &mut found);
    if wanted["kind"] == "Secret" {
        found.iter_mut().filter(|f| f.path.starts_with("data")).for_each(mask);
    }
    found
}

fn is_custom(object: &Value) -> bool {
    object["apiVersion"].as_str().is_some_and(|v| v.contains(".istio.io/"))
}

fn mask(field: &mut FieldDiff) {
    for side in [&mut field.from, &mut field.to] {
        if side.is_some() {
            *side = Some("(secret)".into());
        }
    }
}

/// Everything of `wanted` that `live` does not have.
fn lacking(wanted: &Value, live: &Value, path: &str, keyed: bool, found: &mut Vec<FieldDiff>) {
    match (wanted, live) {
        (Value::Object(wanted_fields), Value::Object(live)) => {
            for (field, value) in wanted_fields {
                let there = live.get(field).unwrap_or(&Value::Null);
                lacking(value, there, &format!("{path}.{field}"), keyed, found);
            }
        }
        (Value::Array(items), Value::Array(there)) => {
            let field = path.rsplit('.').next().unwrap_or(path);
            match merge_keys(field, items).filter(|_| keyed) {
                Some(keys) => {
                    for item in items {
                        let name = element_name(item, keys);
                        let same =
                            there.iter().find(|t| keys.iter().all(|k| item.get(k).is_none_or(|v| t.get(k) == Some(v))));
                        lacking(item, same.unwrap_or(&Value::Null), &format!("{path}[{name}]"), keyed, found);
                    }
                }
                None if items.len() == there.len() => {
                    for (index, (item, there)) in items.iter().zip(there).enumerate() {
                        lacking(item, there, &format!("{path}[{index}]"), keyed, found);
                    }
                }
                None => found.push(difference(path, live, wanted)),
            }
        }
        // What is not asked for may be there: somebody else's annotations, for one.
        (Value::Null, _) => {}
        _ if wanted == live || (is_nothing(wanted) && is_nothing(live)) => {}
        (Value::String(wanted), Value::String(live)) if wanted.contains('\n') && live.contains('\n') => {
            found.push(lines_that_differ(path, live, wanted));
        }
        _ => found.push(difference(path, live, wanted)),
    }
}

/// Absent, `null`, `{}` and `[]` mean the same to the API server.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// By which fields the API server tells the elements of a list apart, for the lists that Stolos writes; all others
/// are replaced as a whole.
fn merge_keys(field: &str, items: &[Value]) -> Option<&'static [&'static str]> {
    let first = items.first()?;
    match field {
        "containers" | "initContainers" | "env" | "volumes" | "webhooks" | "imagePullSecrets" => Some(&["name"]),
        "volumeMounts" => Some(&["mountPath"]),
        "ports" if first.get("containerPort").is_some() => Some(&["containerPort", "protocol"]),
        "ports" => Some(&["port", "protocol"]),
        _ => None,
    }
}

fn element_name(item: &Value, keys: &[&str]) -> String {
    let key = item.get("name").or_else(|| item.get(keys[0])).unwrap_or(&Value::Null);
    key.as_str().map_or_else(|| key.to_string(), str::to_owned)
}

fn difference(path: &str, from: &Value, to: &Value) -> FieldDiff {
    let side = |value: &Value| (!value.is_null()).then(|| shown(value));
    FieldDiff { path: path.to_owned(), from: side(from), to: side(to) }
}

/// Of a text of many lines only those that differ.
fn lines_that_differ(path: &str, from: &str, to: &str) -> FieldDiff {
    let diff = TextDiff::from_lines(from, to);
    let side = |tag: ChangeTag| {
        let lines = diff.iter_all_changes().filter(|change| change.tag() == tag);
        let lines: Vec<String> = lines.map(|change| change.value().trim().to_owned()).collect();
        (!lines.is_empty()).then(|| shown(&Value::from(format!("`{}`", lines.join(" ⏎ ")))))
    };
    FieldDiff { path: path.to_owned(), from: side(ChangeTag::Delete), to: side(ChangeTag::Insert) }
}

fn shown(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = value.as_str().map_or_else(|| value.to_string(), |text| text.trim_end().replace('\n', "⏎"));
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Fields that Stolos set once and no longer wants.
fn stale(wanted: &Value, live: &Value, found: &mut Vec<FieldDiff>) {
    let entries = live["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = entries.iter().filter(|entry| entry["manager"] == MANAGER && entry["operation"] == "Apply");
    for fields in ours.filter_map(|entry| entry["fieldsV1"].as_object()) {
        stale_below(fields, wanted, live, "", found);
    }
}

fn stale_below(fields: &Map<String, Value>, wanted: &Value, live: &Value, path: &str, found: &mut Vec<FieldDiff>) {
    for (field, below) in fields {
        let (name, wanted_value, live_value) = match field.split_once(':') {
            Some(("f", name)) => {
                let dot = if path.is_empty() { "" } else { "." };
                (format!("{path}{dot}{name}"), wanted.get(name), live.get(name))
            }
            Some(("k", keys)) => {
                let Ok(keys) = serde_json::from_str::<Map<String, Value>>(keys) else { continue };
                let key = keys.get("name").or_else(|| keys.values().next()).cloned().unwrap_or(Value::Null);
                (format!("{path}[{}]", shown(&key)), element(wanted, &keys), element(live, &keys))
            }
            Some(("v", value)) => {
                let Ok(value) = serde_json::from_str::<Value>(value) else { continue };
                let name = format!("{path}[{}]", shown(&value));
                let in_list = |list: &'_ Value| list.as_array().is_some_and(|l| l.contains(&value));
                if !in_list(wanted) && in_list(live) {
                    found.push(difference(&name, &value, &Value::Null));
                }
                continue;
            }
            _ => continue,
        };
        match (wanted_value, live_value, below.as_object()) {
            (None, Some(live), _) if !is_nothing(live) => found.push(difference(&name, live, &Value::Null)),
            (Some(wanted), Some(live), Some(below)) if !below.is_empty() => {
                stale_below(below, wanted, live, &name, found);
            }
            _ => {}
        }
    }
}

/// The element with these keys; a key that an element leaves out has its default there.
fn element<'a>(list: &'a Value, keys: &Map<String, Value>) -> Option<&'a Value> {
    list.as_array()?.iter().find(|item| keys.iter().all(|(k, v)| item.get(k).is_none_or(|there| there == v)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lines(wanted: &Value, live: &Value) -> Vec<String> {
        let side = |side: Option<String>| side.unwrap_or_else(|| "-".into());
        differences(wanted, live).into_iter().map(|f| format!("{} {} {}", f.path, side(f.from), side(f.to))).collect()
    }

    #[test]
    fn defaults_and_other_peoples_fields_are_no_difference() {
        let wanted = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "labels": {"x": "1"}},
            "spec": {"ports": [{"port": 80, "protocol": "TCP"}], "selector": {}}});
        let live = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "a", "uid": "u", "labels": {"x": "1", "theirs": "2"}, "annotations": {"theirs": "3"}},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 81, "protocol": "TCP"},
                {"port": 80, "protocol": "TCP", "nodePort": 30000}]}});
        assert_eq!(lines(&wanted, &live), Vec::<String>::new());
    }

    #[test]
    fn what_is_wanted_and_not_there_is_named_by_its_path() {
        let wanted = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 1, "template": {"spec":
            {"containers": [{"name": "a", "image": "b:2", "args": ["x"]}]}}}});
        let live = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 2, "template": {"spec":
            {"containers": [{"name": "a", "image": "b:1", "args": ["x", "y"]}]}}}});
        assert_eq!(
            lines(&wanted, &live),
            [
                "spec.replicas 2 1",
                r#"spec.template.spec.containers[a].args ["x","y"] ["x"]"#,
                "spec.template.spec.containers[a].image b:1 b:2",
            ]
        );
    }

    #[test]
    fn a_field_of_ours_that_is_no_longer_wanted_goes() {
        let wanted = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"labels": {"x": "1"}},
            "spec": {"ports": [{"port": 80}]}});
        let live = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"labels": {"x": "1", "old": "2", "theirs": "3"}, "managedFields": [
                {"manager": "stolos", "operation": "Apply", "fieldsV1": {
                    "f:metadata": {"f:labels": {"f:x": {}, "f:old": {}}},
                    "f:spec": {"f:ports": {r#"k:{"port":80,"protocol":"TCP"}"#: {".": {}, "f:port": {}},
                        r#"k:{"port":81,"protocol":"TCP"}"#: {".": {}, "f:port": {}}}}}},
                {"manager": "kubectl", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {"f:theirs": {}}}}}]},
            "spec": {"ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}});
        assert_eq!(
            lines(&wanted, &live),
            ["metadata.labels.old 2 -", r#"spec.ports[81] {"port":81,"protocol":"TCP"} -"#]
        );
    }

    #[test]
    fn a_secret_is_never_shown() {
        let wanted = json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "bmV3"}});
        let live = json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "b2xk"}});
        assert_eq!(lines(&wanted, &live), ["data.a (secret) (secret)"]);
    }
}
