//! Which fields a value has, and which differ between two.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

use super::Write;
use crate::lists::{List, Shape};
use crate::meta;
use crate::path::{FieldSet, Step};

/// What differs between an object and its successor.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Changes {
    /// Fields that are new or have another value.
    pub(super) changed: FieldSet,
    /// Fields that are gone.
    pub(super) removed: FieldSet,
}

impl Changes {
    pub(super) fn between(old: Option<&Value>, new: &Value, shape: Shape<'_>) -> Self {
        compare(old, Some(new), shape, Place::Root(None))
    }

    /// What differs in the part that a write is about. Nulls are as good as absent.
    pub(super) fn between_parts(old: Option<&Value>, new: &Value, write: &Write<'_>) -> Self {
        let (old, new) = (old.map(without_nulls), without_nulls(new));
        compare(old.as_deref(), Some(&new), write.shape, Place::Root(Some(write)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }

    /// A field that has another value as a whole.
    fn whole(old: Option<&Value>, new: Option<&Value>) -> Self {
        let mut changes = Changes::default();
        match (old, new) {
            (_, Some(_)) => changes.changed.set_member(),
            (Some(_), None) => changes.removed.set_member(),
            (None, None) => {}
        }
        changes
    }

    fn put(&mut self, step: Step, below: Changes) {
        self.changed.put(step.clone(), below.changed);
        self.removed.put(step, below.removed);
    }
}

/// Where a value stands: some parts of an object are always there, as far as ownership goes.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// The object: all of it, or what a write is about.
    Root(Option<&'a Write<'a>>),
    /// Its `metadata`, likewise.
    Metadata(Option<&'a Write<'a>>),
    /// Its `spec` or `status`.
    Part,
    /// Anything else.
    Inside,
}

impl Place<'_> {
    fn below(self, key: &str) -> Self {
        match (self, key) {
            (Place::Root(write), "metadata") => Place::Metadata(write),
            (Place::Root(_), "spec" | "status") => Place::Part,
            _ => Place::Inside,
        }
    }

    fn counts(self, key: &str) -> bool {
        match self {
            Place::Root(Some(write)) => write.is_about(key),
            Place::Metadata(Some(write)) => write.is_about_metadata(key),
            _ => true,
        }
    }
}

fn compare(old: Option<&Value>, new: Option<&Value>, shape: Shape<'_>, place: Place<'_>) -> Changes {
    if old == new {
        return Changes::default();
    }
    let either_full = is_full(old) || is_full(new);
    let mut changes = Changes::default();
    match (old, new) {
        (None | Some(Value::Object(_)), None | Some(Value::Object(_))) if either_full && !shape.is_atomic() => {
            let gone = keys(old).filter(|key| entry(new, key).is_none());
            for key in gone.chain(keys(new)).filter(|key| place.counts(key)) {
                let below = compare(entry(old, key), entry(new, key), shape.field(key).0, place.below(key));
                changes.put(Step::Field(key.to_owned()), below);
            }
        }
        (None | Some(Value::Array(_)), None | Some(Value::Array(_))) if either_full => {
            let list = shape.list();
            let (Some(old), Some(new)) = (by_step(old, &list), by_step(new, &list)) else {
                return Changes::whole(old, new);
            };
            for step in old.keys().filter(|step| !new.contains_key(step)).chain(new.keys()) {
                let below = compare(old.get(step).copied(), new.get(step).copied(), shape.item(), Place::Inside);
                changes.put(step.clone(), below);
            }
        }
        // Another type, or a value as a whole: what was below is gone.
        (Some(was), Some(_)) => {
            if (was.is_object() && !shape.is_atomic()) || was.is_array() {
                changes = compare(old, None, shape, place);
                changes.removed = changes.removed.without_member(&[]);
            }
            changes.changed.set_member();
            return changes;
        }
        _ => return Changes::whole(old, new),
    }
    if matches!(place, Place::Inside) {
        match (old, new) {
            (None, Some(_)) => changes.changed.set_member(),
            (Some(_), None) => changes.removed.set_member(),
            _ => {}
        }
    }
    changes
}

/// The fields of what a manager applies, or why it cannot be applied.
pub(super) fn field_set(value: &Value, shape: Shape<'_>) -> Result<FieldSet, String> {
    let mut set = FieldSet::new();
    match value {
        Value::Object(map) if !map.is_empty() && !shape.is_atomic() => {
            for (key, value) in map {
                let (below_shape, is_field) = shape.field(key);
                let mut below = field_set(value, below_shape).map_err(|problem| format!(".{key}{problem}"))?;
                if !is_field {
                    below.set_member();
                }
                set.put(Step::Field(key.clone()), below);
            }
        }
        Value::Array(list) if !list.is_empty() && shape.list() != List::Atomic => {
            let kind = shape.list();
            for (index, item) in list.iter().enumerate() {
                let lacks = |key| {
                    format!(
                        "[{index}]: associative list with keys has an element that omits key field \"{key}\" (and doesn't have default value)"
                    )
                };
                let Some(step) = kind.step(item).map_err(lacks)? else { continue };
                if set.get(&step).is_some() {
                    return Err(format!(": duplicate entries for key {step}"));
                }
                let mut below = field_set(item, shape.item()).map_err(|problem| format!("[{index}]{problem}"))?;
                below.set_member();
                set.put(step, below);
            }
        }
        _ => set.set_member(),
    }
    Ok(set)
}

/// The entries of a list by their steps; none when some have no step of their own, so that only the whole can be
/// compared.
pub(super) fn by_step<'a>(list: Option<&'a Value>, kind: &List<'_>) -> Option<BTreeMap<Step, &'a Value>> {
    let mut found = BTreeMap::new();
    for item in list.and_then(Value::as_array).into_iter().flatten() {
        let step = kind.step(item).ok()??;
        if found.insert(step, item).is_some() {
            return None;
        }
    }
    match kind {
        List::Atomic => None,
        _ => Some(found),
    }
}

fn without_nulls(value: &Value) -> Cow<'_, Value> {
    if !has_nulls(value) {
        return Cow::Borrowed(value);
    }
    let mut value = value.clone();
    meta::remove_nulls(&mut value);
    Cow::Owned(value)
}

fn has_nulls(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.values().any(|value| value.is_null() || has_nulls(value)),
        Value::Array(list) => list.iter().any(has_nulls),
        _ => false,
    }
}

fn is_full(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Object(map)) => !map.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        _ => false,
    }
}

fn keys(value: Option<&Value>) -> impl Iterator<Item = &str> {
    value.and_then(Value::as_object).into_iter().flatten().map(|(key, _)| key.as_str())
}

fn entry<'a>(value: Option<&'a Value>, key: &str) -> Option<&'a Value> {
    value?.get(key)
}
