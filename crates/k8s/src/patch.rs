//! The three kinds of patches besides server-side apply ([`crate::ssa`]).

use serde_json::{Map, Value};

use crate::lists::{PatchList, Shape};

/// A patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// It is not of a patch's form: 400.
    #[error("error decoding patch: {0}")]
    Malformed(String),
    /// It does not fit the object: 422.
    #[error("the server rejected our request due to an error in our request: {0}")]
    DoesNotFit(String),
}

/// How deep an object may be nested. Readers stop at 128 (serde_json), and `managedFields` repeats a path somewhat deeper
/// than it lies.
pub const DEEPEST: usize = 100;
/// Operations of one JSON patch at most (as kube-apiserver).
const MOST_OPERATIONS: usize = 10_000;
/// How much JSON the operations of one patch may copy and move, all together: as kube-apiserver's
/// `AccumulatedCopySizeLimit`, the most that a request may hold. Without it a short patch doubles an object again and
/// again.
const MOST_COPIED: usize = 3 << 20;

/// How deep `value` is nested; 0 for a scalar.
#[must_use]
pub fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Applies a JSON patch (RFC 6902). One that would make an object deeper than [`DEEPEST`], or copies without measure, does
/// not fit.
pub fn json(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    use json_patch::PatchOperation::{Add, Copy, Move, Remove, Replace, Test};

    let refused = |why: &str| PatchError::DoesNotFit(why.to_owned());
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| PatchError::Malformed(error.to_string()))?;
    if operations.len() > MOST_OPERATIONS {
        return Err(refused(&format!("a JSON patch may have {MOST_OPERATIONS} operations")));
    }
    let mut patched = object.clone();
    let mut copied = 0;
    for operation in operations.iter() {
        let (to, deep) = match operation {
            Add(add) => (&*add.path, depth(&add.value)),
            Replace(replace) => (&*replace.path, depth(&replace.value)),
            Copy(json_patch::CopyOperation { from, path }) | Move(json_patch::MoveOperation { from, path }) => {
                let source = patched.pointer(from.as_str()).unwrap_or(&Value::Null);
                copied += serde_json::to_vec(source).map_or(0, |text| text.len());
                if copied > MOST_COPIED {
                    return Err(refused("the patch copies and moves too much"));
                }
                (&**path, depth(source))
            }
            Remove(_) | Test(_) => (operation.path(), 0),
        };
        if to.as_str().matches('/').count() + deep > DEEPEST {
            return Err(refused(&format!("{to}: an object may be nested {DEEPEST} deep")));
        }
        // One by one and on a copy of ours: the crate's own way back panics where an operation before has moved what it
        // would undo.
        json_patch::patch_unsafe(&mut patched, std::slice::from_ref(operation))
            .map_err(|error| PatchError::DoesNotFit(error.to_string()))?;
    }
    Ok(patched)
}

/// Applies a JSON merge patch (RFC 7386).
pub fn merge(object: &Value, patch: &Value) -> Value {
    let mut patched = object.clone();
    json_patch::merge(&mut patched, patch);
    patched
}

/// Applies a strategic merge patch: lists with a merge key are merged entry by entry, and directives are obeyed.
pub fn strategic(object: &Value, patch: &Value, shape: Shape<'_>) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed("a strategic merge patch must be an object".into()));
    };
    let old = object.as_object().cloned().unwrap_or_default();
    merge_maps(old, patch, shape).map(Value::Object)
}

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_VALUES: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

fn merge_maps(
    mut old: Map<String, Value>,
    patch: &Map<String, Value>,
    shape: Shape<'_>,
) -> Result<Map<String, Value>, PatchError> {
    match patch.get(DIRECTIVE) {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => {
                let mut replacement = without_directives(patch, shape)?;
                replacement.remove(DIRECTIVE);
                return Ok(replacement);
            }
            "delete" => return Ok(Map::new()),
            "merge" => {}
            other => return Err(unknown_directive(other)),
        },
        Some(other) => return Err(unknown_directive(&other.to_string())),
    }
    if let Some(retained) = patch.get(RETAIN_KEYS) {
        let retained = retained.as_array().ok_or_else(|| malformed("$retainKeys must be a list"))?;
        let retained: Vec<&str> = retained.iter().filter_map(Value::as_str).collect();
        let given = patch.iter().filter(|(key, value)| !key.starts_with('$') && !value.is_null());
        if let Some((key, _)) = given.into_iter().find(|(key, _)| !retained.contains(&key.as_str())) {
            return Err(malformed(&format!("field {key} is in the patch but not in its $retainKeys list")));
        }
        old.retain(|key, _| retained.contains(&key.as_str()));
    }
    // Lists first that only directives are given for.
    for (key, values) in patch {
        if let Some(field) = key.strip_prefix(DELETE_VALUES) {
            let values = values.as_array().ok_or_else(|| malformed("$deleteFromPrimitiveList must be a list"))?;
            if let Some(Value::Array(list)) = old.get_mut(field) {
                list.retain(|value| !values.contains(value));
            }
        }
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        let below = shape.field(key).0;
        match (old.remove(key), value) {
            (_, Value::Null) => {}
            (Some(Value::Object(old_map)), Value::Object(patch_map)) => {
                old.insert(key.clone(), Value::Object(merge_maps(old_map, patch_map, below)?));
            }
            (Some(Value::Array(old_list)), Value::Array(patch_list)) => {
                old.insert(key.clone(), Value::Array(merge_lists(old_list, patch_list, below)?));
            }
            (_, Value::Object(patch_map)) => {
                old.insert(key.clone(), Value::Object(merge_maps(Map::new(), patch_map, below)?));
            }
            (_, Value::Array(patch_list)) => {
                old.insert(key.clone(), Value::Array(merge_lists(Vec::new(), patch_list, below)?));
            }
            (_, scalar) => {
                old.insert(key.clone(), scalar.clone());
            }
        }
    }
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(SET_ORDER) {
            let order = order.as_array().ok_or_else(|| malformed("$setElementOrder must be a list"))?;
            let patch_list = shape.field(field).0.patch_list();
            if let Some(Value::Array(list)) = old.get_mut(field) {
                set_order(list, order, patch_list);
            }
        }
    }
    Ok(old)
}

fn merge_lists(mut old: Vec<Value>, patch: &[Value], shape: Shape<'_>) -> Result<Vec<Value>, PatchError> {
    match shape.patch_list() {
        PatchList::Replace => {
            // A list that is replaced takes everything as it is, but for an entry that says so again.
            let entries = patch.iter().filter(|item| !is_directive_alone(item));
            Ok(entries.cloned().collect())
        }
        PatchList::Values => {
            for value in patch {
                if !old.contains(value) {
                    old.push(value.clone());
                }
            }
            Ok(old)
        }
        PatchList::Merge(key) => merge_entries(old, patch, key, shape.item()),
    }
}

fn merge_entries(
    mut old: Vec<Value>,
    patch: &[Value],
    key: &str,
    item_shape: Shape<'_>,
) -> Result<Vec<Value>, PatchError> {
    let directive = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str).map(str::to_owned);
    if patch.iter().any(|item| directive(item).as_deref() == Some("replace") && is_directive_alone(item)) {
        old.clear();
    }
    for item in patch.iter().filter(|item| !is_directive_alone(item)) {
        let Value::Object(entry) = item else {
            return Err(malformed(&format!("a list with merge key {key} must hold objects")));
        };
        let Some(identity) = entry.get(key) else {
            return Err(malformed(&format!("map: {item} does not contain declared merge key: {key}")));
        };
        let found = old.iter().position(|known| known.get(key) == Some(identity));
        match directive(item).as_deref() {
            Some("delete") => old.retain(|known| known.get(key) != Some(identity)),
            None | Some("merge" | "replace") => match found {
                Some(index) => {
                    let known = old[index].as_object().cloned().unwrap_or_default();
                    old[index] = Value::Object(merge_maps(known, entry, item_shape)?);
                }
                None => old.push(Value::Object(without_directives(entry, item_shape)?)),
            },
            Some(other) => return Err(unknown_directive(other)),
        }
    }
    Ok(old)
}

/// What a patch adds where there was nothing: itself, without directives and nulls.
fn without_directives(patch: &Map<String, Value>, shape: Shape<'_>) -> Result<Map<String, Value>, PatchError> {
    let mut plain = patch.clone();
    plain.remove(DIRECTIVE);
    merge_maps(Map::new(), &plain, shape)
}

/// Whether an entry of a list is only a directive for the list: `{"$patch": "replace"}`.
fn is_directive_alone(item: &Value) -> bool {
    item.as_object().is_some_and(|item| item.len() == 1 && item.contains_key(DIRECTIVE))
}

/// Sorts a list: what `order` names stands in its order, and the rest where it stood between them.
fn set_order(list: &mut Vec<Value>, order: &[Value], patch_list: PatchList) {
    let place = |item: &Value| match patch_list {
        PatchList::Merge(key) => {
            let identity = item.get(key)?;
            order.iter().position(|wanted| wanted.get(key) == Some(identity))
        }
        _ => order.iter().position(|wanted| wanted == item),
    };
    let old: Vec<(Option<usize>, usize, Value)> =
        std::mem::take(list).into_iter().enumerate().map(|(index, item)| (place(&item), index, item)).collect();
    let (mut ordered, others): (Vec<_>, Vec<_>) = old.into_iter().partition(|(place, ..)| place.is_some());
    ordered.sort_by_key(|(place, index, _)| (*place, *index));
    let mut others = others.into_iter().peekable();
    for (_, index, item) in ordered {
        while let Some((_, _, other)) = others.next_if(|(_, other_index, _)| *other_index < index) {
            list.push(other);
        }
        list.push(item);
    }
    list.extend(others.map(|(_, _, other)| other));
}

fn unknown_directive(directive: &str) -> PatchError {
    malformed(&format!("unknown patch type {directive} found"))
}

fn malformed(problem: &str) -> PatchError {
    PatchError::Malformed(problem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn deployment(containers: Value) -> Value {
        json!({"spec": {"template": {"spec": {"containers": containers}}}})
    }

    #[test]
    fn containers_are_merged_by_name() {
        let cases = [
            // An image is changed, the rest stays.
            (
                json!([{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]),
                json!([{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}]),
                json!([{"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}]}, {"name": "b"}]),
            ),
            // One is added, one is taken away.
            (
                json!([{"name": "a"}, {"name": "b"}]),
                json!([{"name": "c", "image": null}, {"name": "a", "$patch": "delete"}]),
                json!([{"name": "b"}, {"name": "c"}]),
            ),
            // All are replaced.
            (json!([{"name": "a"}]), json!([{"$patch": "replace"}, {"name": "b"}]), json!([{"name": "b"}])),
            // One is replaced.
            (
                json!([{"name": "a", "image": "1", "stdin": true}]),
                json!([{"name": "a", "image": "2", "$patch": "replace"}]),
                json!([{"name": "a", "image": "2"}]),
            ),
            // Lists without a key are replaced.
            (
                json!([{"name": "a", "args": ["1", "2"]}]),
                json!([{"name": "a", "args": ["3"]}]),
                json!([{"name": "a", "args": ["3"]}]),
            ),
            // Ports by number, mounts by path.
            (
                json!([{"name": "a", "ports": [{"containerPort": 80}], "volumeMounts": [{"mountPath": "/a", "name": "x"}]}]),
                json!([{"name": "a", "ports": [{"containerPort": 80, "name": "h"}, {"containerPort": 81}], "volumeMounts": [{"mountPath": "/a", "readOnly": true}]}]),
                json!([{"name": "a", "ports": [{"containerPort": 80, "name": "h"}, {"containerPort": 81}], "volumeMounts": [{"mountPath": "/a", "name": "x", "readOnly": true}]}]),
            ),
        ];
        let shape = Shape::of("apps/v1", "Deployment");
        for (old, patch, wanted) in cases {
            assert_eq!(strategic(&deployment(old), &deployment(patch), shape), Ok(deployment(wanted)));
        }
    }

    #[test]
    fn directives_are_obeyed() {
        let shape = Shape::of("apps/v1", "Deployment");
        let cases = [
            (
                json!({"metadata": {"finalizers": ["a", "b"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c", "b"], "$setElementOrder/finalizers": ["c", "b"]}}),
                json!({"metadata": {"finalizers": ["c", "b"]}}),
            ),
            (
                json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
                json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
                json!({"spec": {"strategy": {"type": "Recreate"}}}),
            ),
            (
                json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
                json!({"metadata": {"labels": {"$patch": "replace", "c": "3"}}}),
                json!({"metadata": {"labels": {"c": "3"}}}),
            ),
            (
                json!({"metadata": {"labels": {"a": "1"}}}),
                json!({"metadata": {"labels": {"$patch": "delete"}}}),
                json!({"metadata": {"labels": {}}}),
            ),
            (
                json!({"metadata": {"labels": {"a": "1"}}}),
                json!({"metadata": {"labels": {"a": null}}}),
                json!({"metadata": {"labels": {}}}),
            ),
        ];
        for (old, patch, wanted) in cases {
            assert_eq!(strategic(&old, &patch, shape), Ok(wanted), "{patch}");
        }
        let old = deployment(json!([{"name": "server"}, {"name": "a"}, {"name": "b"}]));
        let patch = json!({"spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": "1"}]}}}});
        let wanted = deployment(json!([{"name": "server"}, {"name": "b"}, {"name": "a", "image": "1"}]));
        assert_eq!(strategic(&old, &patch, shape), Ok(wanted));
    }

    #[test]
    fn malformed_patches_say_why() {
        let shape = Shape::of("apps/v1", "Deployment");
        for (patch, message) in [
            (json!([]), "error decoding patch: a strategic merge patch must be an object"),
            (json!({"spec": {"$patch": "explode"}}), "error decoding patch: unknown patch type explode found"),
            (
                deployment(json!([{"image": "1"}])),
                "error decoding patch: map: {\"image\":\"1\"} does not contain declared merge key: name",
            ),
        ] {
            assert_eq!(strategic(&json!({}), &patch, shape).unwrap_err().to_string(), message);
        }
        assert!(matches!(json(&json!({}), &json!([{"op": "fly"}])), Err(PatchError::Malformed(_))));
        let test = json!([{"op": "test", "path": "/a", "value": 1}]);
        assert!(matches!(json(&json!({"a": 2}), &test), Err(PatchError::DoesNotFit(_))));
        assert_eq!(json(&json!({"a": 2}), &json!([{"op": "replace", "path": "/a", "value": 1}])), Ok(json!({"a": 1})));
        assert_eq!(
            merge(&json!({"a": 1, "b": {"c": 1}}), &json!({"a": null, "b": {"d": 2}})),
            json!({"b": {"c": 1, "d": 2}})
        );
    }

    proptest! {
        #[test]
        fn any_patch_is_applied_or_refused(old in crate::path::tests::any_json(), patch in crate::path::tests::any_json()) {
            let shape = Shape::of("apps/v1", "Deployment");
            if let Ok(patched) = strategic(&old, &patch, shape) {
                prop_assert!(patched.is_object());
            }
            let _ = strategic(&json!({"spec": {"template": {"spec": old.clone()}}}), &json!({"spec": {"template": {"spec": patch.clone()}}}), shape);
            let merged = merge(&old, &patch);
            prop_assert_eq!(merge(&merged, &patch), merged);
            let _ = json(&old, &patch);
        }

        #[test]
        fn any_operation_is_applied_or_refused(old in crate::path::tests::any_json(), value in crate::path::tests::any_json(),
            operation in prop::sample::select(vec!["add", "remove", "replace", "move", "copy", "test"]),
            path in "(/[a-c0-2~-]{0,3}){0,3}", from in "(/[a-c0-2]{0,3}){0,3}") {
            let _ = json(&old, &json!([{"op": operation, "path": path, "from": from, "value": value}]));
        }
    }

    /// Found by the fuzz target `patch`: the third operation fails, and what the second moved is in the way of undoing
    /// the first.
    #[test]
    fn a_patch_that_fails_late_is_an_error() {
        let object = json!({"labels": {"a": "b"}});
        let patch = json!([{"op": "add", "path": "/labels/x", "value": "z"},
            {"op": "move", "from": "/labels", "path": "/nowhere/labels"}, {"op": "remove", "path": "/labels"}]);
        assert!(matches!(super::json(&object, &patch), Err(PatchError::DoesNotFit(_))));
    }

    #[test]
    fn a_short_patch_makes_no_giant_and_no_abyss() {
        let doubling: Vec<_> =
            (0..64).map(|n| json!({"op": "copy", "from": "/a", "path": format!("/a/{n}")})).collect();
        let refused = super::json(&json!({"a": {"x": "0123456789"}}), &Value::Array(doubling)).unwrap_err().to_string();
        assert!(refused.contains("too much") || refused.contains("deep"), "{refused}");
        let nested = |deep: usize| (0..deep).fold(json!({}), |inner, _| json!({"a": inner}));
        let path = "/a".repeat(60);
        let deeper = json!([{"op": "add", "path": format!("{path}/b"), "value": nested(60)}]);
        assert!(super::json(&nested(80), &deeper).unwrap_err().to_string().contains("nested 100 deep"));
        assert_eq!(depth(&nested(5)), 6);
    }
}
