//! The names of CustomResourceDefinitions: each is one definition's within its group.
//!
//! As Kubernetes' naming controller has it (apiextensions-apiserver, `calculateNamesAndConditions`): a definition whose
//! names are taken says so in `NamesAccepted=False` and is not established, hence not served, until they are free; one
//! that is established already goes on under the names it had. Unlike there, a definition is established with the very
//! write that makes it, so names of writes under way are claimed ([`Claims`]).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use stolos_k8s::meta;

use crate::api::Api;
use crate::registry::CRDS;

/// Names that definitions under way have been given, with the group and name of each definition.
pub(crate) type Claims = Arc<Mutex<Vec<(String, String, Used)>>>;

/// What a write has claimed; it is free again when the write has come to its end, and then stored or not.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Claims,
    definition: String,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = claims.iter().position(|(_, definition, _)| *definition == self.definition) {
            claims.swap_remove(at);
        }
    }
}

/// Names in use.
#[derive(Debug, Default, Clone)]
pub(crate) struct Used {
    resources: HashSet<String>,
    kinds: HashSet<String>,
}

impl Used {
    fn add(&mut self, names: &Value) {
        let text = |key: &str| names[key].as_str().map(str::to_owned);
        let short = names["shortNames"].as_array().into_iter().flatten().filter_map(|name| name.as_str());
        self.resources.extend([text("plural"), text("singular")].into_iter().flatten());
        self.resources.extend(short.map(str::to_owned));
        self.kinds.extend([text("kind"), text("listKind")].into_iter().flatten());
    }

    fn extend(&mut self, other: &Self) {
        self.resources.extend(other.resources.iter().cloned());
        self.kinds.extend(other.kinds.iter().cloned());
    }
}

/// Gives a definition that is about to be written the names that are free, and says in its conditions whether these are
/// all that it asks for.
#[must_use]
pub(crate) fn settle(api: &Api, crd: &mut Value) -> Claim {
    let (group, name) = (crd["spec"]["group"].as_str().unwrap_or_default().to_owned(), meta::name(crd).to_owned());
    let mut used = Used::default();
    // Under the lock, so that of two the second sees what the first has claimed, or written.
    let mut claims = api.naming.lock().unwrap_or_else(PoisonError::into_inner);
    for other in api.state.cache(CRDS).list("") {
        if meta::name(&other.value) != name && other.value["spec"]["group"] == group.as_str() {
            used.add(&other.value["status"]["acceptedNames"]);
        }
    }
    for (_, _, theirs) in claims.iter().filter(|(in_group, other, _)| *in_group == group && *other != name) {
        used.extend(theirs);
    }
    name_one(crd, &used, &api.now());
    let mut ours = Used::default();
    ours.add(&crd["status"]["acceptedNames"]);
    claims.push((group, name.clone(), ours));
    drop(claims);
    Claim { claims: Arc::clone(&api.naming), definition: name }
}

/// Whether a definition waits for names that another has.
#[must_use]
pub(crate) fn waits(crd: &Value) -> bool {
    condition(crd, "NamesAccepted").is_some_and(|condition| condition["status"] != "True")
}

/// Whether a definition may be served.
#[must_use]
pub(crate) fn is_established(crd: &Value) -> bool {
    condition(crd, "Established").is_none_or(|condition| condition["status"] != "False")
}

fn condition<'a>(crd: &'a Value, kind: &str) -> Option<&'a Value> {
    crd["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// The pure part of [`settle`].
fn name_one(crd: &mut Value, used: &Used, now: &str) {
    let wanted = crd["spec"]["names"].clone();
    let had = crd["status"]["acceptedNames"].clone();
    let mut accepted = if had.is_object() { had.clone() } else { json!({}) };
    let (mut reason, mut message) = ("NoConflicts", "no conflicts found".to_owned());
    // The last conflict is the one that is told.
    let taken = |name: &str| format!("{name:?} is already in use");
    let names = [
        ("plural", "PluralConflict", &used.resources),
        ("singular", "SingularConflict", &used.resources),
        ("shortNames", "ShortNamesConflict", &used.resources),
        ("kind", "KindConflict", &used.kinds),
        ("listKind", "ListKindConflict", &used.kinds),
    ];
    for (field, conflict, used) in names {
        let listed = |names: &Value| -> Vec<String> {
            let one = names[field].as_str().into_iter();
            let many = names[field].as_array().into_iter().flatten().filter_map(|name| name.as_str());
            one.chain(many).map(str::to_owned).collect()
        };
        let ours = listed(&had);
        let lost: Vec<String> = listed(&wanted)
            .iter()
            .filter(|name| !ours.contains(name) && used.contains(*name))
            .map(|n| taken(n))
            .collect();
        if lost.is_empty() {
            accepted[field] = wanted[field].clone();
        } else {
            reason = conflict;
            message = if lost.len() == 1 { lost.concat() } else { format!("[{}]", lost.join(", ")) };
            // The API asks for these two, whatever they are.
            if matches!(field, "plural" | "kind") && accepted[field].is_null() {
                accepted[field] = json!("");
            }
        }
    }
    accepted["categories"] = wanted["categories"].clone();
    if let Some(map) = accepted.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    let all = reason == "NoConflicts";
    crd["status"]["acceptedNames"] = accepted;
    set(crd, "NamesAccepted", all, reason, &message, now);
    let was = condition(crd, "Established").is_some_and(|condition| condition["status"] == "True");
    if all && !was {
        set(crd, "Established", true, "InitialNamesAccepted", "the initial names have been accepted", now);
    } else if !was {
        set(crd, "Established", false, "NotAccepted", "not all names are accepted", now);
    }
}

fn set(crd: &mut Value, kind: &str, holds: bool, reason: &str, message: &str, now: &str) {
    let status = if holds { "True" } else { "False" };
    let conditions = &mut crd["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else { return };
    let new = json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now});
    match list.iter_mut().find(|known| known["type"] == kind) {
        Some(known) if known["status"] == status => {
            known["reason"] = new["reason"].clone();
            known["message"] = new["message"].clone();
        }
        Some(known) => *known = new,
        None => list.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_definitions_in_a_group() {
        let crd = |plural: &str, kind: &str, short: &[&str]| {
            json!({"spec": {"names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind,
                "listKind": format!("{kind}List"), "shortNames": short}}})
        };
        let mut used = Used::default();
        used.add(&crd("widgets", "Widget", &["wi", "wd"])["spec"]["names"]);
        let told = |mut crd: Value| {
            name_one(&mut crd, &used, "now");
            let of = |kind: &str| {
                let found = condition(&crd, kind).unwrap();
                format!("{kind}={} {}: {}", found["status"].as_str().unwrap(), found["reason"], found["message"])
            };
            let names = crd["status"]["acceptedNames"].to_string();
            format!("{} / {} / {names} / {}", of("NamesAccepted"), of("Established"), is_established(&crd))
        };
        let mut established = crd("gears", "Gear", &["ge"]);
        name_one(&mut established, &used, "before");
        established["spec"]["names"]["shortNames"] = json!(["wi"]);
        insta::assert_snapshot!([
            told(crd("gears", "Gear", &[])),
            told(crd("widgetz", "Widget", &[])),
            told(crd("gears", "Gear", &["wi", "wd", "ge"])),
            told(established),
        ].join("\n"), @r#"
        NamesAccepted=True "NoConflicts": "no conflicts found" / Established=True "InitialNamesAccepted": "the initial names have been accepted" / {"kind":"Gear","listKind":"GearList","plural":"gears","shortNames":[],"singular":"gear"} / true
        NamesAccepted=False "ListKindConflict": "\"WidgetList\" is already in use" / Established=False "NotAccepted": "not all names are accepted" / {"kind":"","plural":"widgetz","shortNames":[]} / false
        NamesAccepted=False "ShortNamesConflict": "[\"wi\" is already in use, \"wd\" is already in use]" / Established=False "NotAccepted": "not all names are accepted" / {"kind":"Gear","listKind":"GearList","plural":"gears","singular":"gear"} / false
        NamesAccepted=False "ShortNamesConflict": "\"wi\" is already in use" / Established=True "InitialNamesAccepted": "the initial names have been accepted" / {"kind":"Gear","listKind":"GearList","plural":"gears","shortNames":["ge"],"singular":"gear"} / true
        "#);
    }
}
