//! Puts what a manager wants into an object, and takes out what it does not want any more.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::lists::{List, Shape};
use crate::path::{FieldSet, Step};

/// `live` with everything that is in `wanted`.
pub(super) fn merge(live: Option<&Value>, wanted: &Value, shape: Shape<'_>) -> Value {
    match (live, wanted) {
        (Some(Value::Object(live)), Value::Object(wanted)) if !shape.is_atomic() => {
            let mut merged = live.clone();
            for (key, value) in wanted {
                let value = merge(live.get(key), value, shape.field(key).0);
                merged.insert(key.clone(), value);
            }
            Value::Object(merged)
        }
        (Some(Value::Array(live)), Value::Array(wanted)) => match shape.list() {
            List::Atomic => Value::Array(wanted.clone()),
            list => Value::Array(merge_lists(live, wanted, &list, shape.item())),
        },
        _ => wanted.clone(),
    }
}

/// Wanted entries in their order; the others stay where they stand between them.
fn merge_lists(live: &[Value], wanted: &[Value], list: &List<'_>, item_shape: Shape<'_>) -> Vec<Value> {
    let step = |item: &Value| list.step(item).ok().flatten();
    let wanted_steps: Vec<Option<Step>> = wanted.iter().map(step).collect();
    let mut live_by_step: BTreeMap<Step, &Value> = BTreeMap::new();
    for item in live {
        if let Some(step) = step(item) {
            live_by_step.entry(step).or_insert(item);
        }
    }
    let mut merged = Vec::with_capacity(live.len() + wanted.len());
    let mut next = 0;
    let take = |index: usize, merged: &mut Vec<Value>| {
        let known = wanted_steps[index].as_ref().and_then(|step| live_by_step.get(step).copied());
        merged.push(merge(known, &wanted[index], item_shape));
    };
    for item in live {
        let step = step(item);
        match wanted_steps.iter().position(|wanted| wanted.is_some() && *wanted == step) {
            None => merged.push(item.clone()),
            // Everything wanted up to this entry comes first, unless it came already.
            Some(place) => {
                while next <= place {
                    take(next, &mut merged);
                    next += 1;
                }
            }
        }
    }
    while next < wanted.len() {
        take(next, &mut merged);
        next += 1;
    }
    merged
}

/// Takes out what was wanted `before` and nobody manages any more.
pub(super) fn prune(value: &mut Value, before: &FieldSet, managed: &FieldSet, shape: Shape<'_>) {
    match value {
        Value::Object(map) if !shape.is_atomic() => {
            for (step, before) in before.iter() {
                let Step::Field(name) = step else { continue };
                let Some(below) = map.get_mut(name) else { continue };
                if prune_below(below, before, managed.get(step), shape.field(name).0) {
                    map.remove(name);
                }
            }
        }
        Value::Array(list) => {
            let kind = shape.list();
            list.retain_mut(|item| {
                let Some(step) = kind.step(item).ok().flatten() else { return true };
                let Some(before) = before.get(&step) else { return true };
                !prune_below(item, before, managed.get(&step), shape.item())
            });
        }
        _ => {}
    }
}

/// Whether nothing that anybody wants is left.
fn prune_below(value: &mut Value, before: &FieldSet, managed: Option<&FieldSet>, shape: Shape<'_>) -> bool {
    let Some(managed) = managed else { return true };
    let was_empty = is_empty(value);
    prune(value, before, managed, shape);
    is_empty(value) && !was_empty && !managed.is_member()
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}
