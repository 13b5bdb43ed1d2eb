//! Server-side apply: several managers write one object, and each field knows whom it belongs to.
//!
//! [`apply`] is what `kubectl apply --server-side` asks for; [`update`] keeps the books for every other write. Both
//! take values and return the object to store, with `metadata.managedFields`.

mod compare;
mod managers;
mod merge;

use serde_json::Value;

pub use managers::{Conflict, Conflicts, Operation};

use crate::lists::Shape;
use crate::meta;
use crate::path::{FieldSet, Step};
use crate::status::Status;
use compare::{Changes, field_set};
use managers::{ManagerId, Managers};

/// Who writes, what and when.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// The field manager.
    pub manager: &'a str,
    /// The version the object is written in, `apps/v1`.
    pub api_version: &'a str,
    /// The subresource written to, or empty.
    pub subresource: &'a str,
    /// Now, as `metadata` has it: RFC 3339 in whole seconds.
    pub now: &'a str,
    /// What is known about the kind.
    pub shape: Shape<'a>,
    /// Whether `status` is only written through the subresource `status`.
    pub status_apart: bool,
}

/// An apply cannot be done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// Fields belong to others: 409.
    #[error(transparent)]
    Conflicts(#[from] Conflicts),
    /// What is applied makes no sense: 400.
    #[error("{0}")]
    Malformed(String),
}

impl ApplyError {
    /// The answer to the client.
    pub fn to_status(&self) -> Status {
        match self {
            ApplyError::Conflicts(conflicts) => conflicts.to_status(),
            ApplyError::Malformed(problem) => Status::bad_request(problem.clone()),
        }
    }
}

/// Applies what a manager wants (`config`) to the object there is.
///
/// The answer is the whole object: `live` with what is wanted, without what the manager wanted before and does not any
/// more. With `force` it takes fields from others. When nothing changes the answer equals `live`, times included.
pub fn apply(live: Option<&Value>, config: &Value, write: &Write<'_>, force: bool) -> Result<Value, ApplyError> {
    if meta::managed_fields(config).is_some_and(|fields| !fields.is_empty()) {
        return Err(ApplyError::Malformed("metadata.managedFields must be nil".into()));
    }
    if !config.is_object() {
        return Err(ApplyError::Malformed("the applied configuration must be an object".into()));
    }
    let wanted = own_part(config, write);
    let wanted_set = field_set(&wanted, write.shape).map_err(ApplyError::Malformed)?;
    let owned = strip(wanted_set.clone());

    let mut managers = Managers::of(live);
    let old = live.map(without_managed_fields);
    if let Some(old) = &old
        && managers.is_empty()
        && !owned.is_empty()
    {
        managers.adopt_before_first_apply(old, write);
    }

    let me = ManagerId::applier(write);
    let mut merged = merge::merge(old.as_ref(), &wanted, write.shape);
    if let Some(before) = managers.fields(&me) {
        let others = managers.all_but(&me);
        merge::prune(&mut merged, &before, &wanted_set.union(&others), write.shape);
    }

    let changes = Changes::between(old.as_ref(), &merged, write.shape);
    let mut conflicts = managers.conflicts(&me, &changes);
    if !conflicts.is_empty() && write.manager == KUBECTL {
        conflicts.forgive(&applied_before(old.as_ref(), write));
    }
    if !conflicts.is_empty() && !force {
        return Err(ApplyError::Conflicts(conflicts));
    }
    managers.give_up(&me, &changes);
    managers.set_applied(me, owned, write, !changes.is_empty());
    if let (true, Some(old)) = (changes.is_empty(), old) {
        merged = old;
    }
    if write.manager == KUBECTL && meta::annotation(&merged, LAST_APPLIED).is_some() {
        // The annotation of `kubectl apply` without server-side apply is kept true, for those who go back. Nobody owns
        // it anew (Kubernetes' `lastAppliedUpdater`).
        meta::set_annotation(&mut merged, LAST_APPLIED, &last_applied(config));
    }
    managers.write(&mut merged);
    Ok(merged)
}

/// The manager as which `kubectl apply --server-side` applies, and where `kubectl apply` keeps what it applied.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What kubectl writes down of what it applies.
fn last_applied(config: &Value) -> String {
    let mut config = without_managed_fields(config);
    if let Some(notes) = config.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        notes.remove(LAST_APPLIED);
    }
    format!("{config}\n")
}

/// Fields that `kubectl apply` wrote and nobody has changed since: as the same user's they are no conflict when kubectl
/// applies on the server's side (Kubernetes' `lastAppliedManager`).
fn applied_before(live: Option<&Value>, write: &Write<'_>) -> FieldSet {
    let Some(live) = live else { return FieldSet::new() };
    let text = meta::annotation(live, LAST_APPLIED).unwrap_or_default();
    let Ok(before) = serde_json::from_str::<Value>(text) else { return FieldSet::new() };
    let before = own_part(&before, write);
    let Ok(set) = field_set(&before, write.shape) else { return FieldSet::new() };
    let now = Changes::between(Some(&before), &own_part(live, write), write.shape);
    let added = Changes::between(Some(&own_part(live, write)), &before, write.shape);
    set.difference(&now.changed).difference(&now.removed).difference(&added.changed)
}

/// Keeps the books for a create, update or patch: `object` is what will be stored, and who manages what is written into it.
///
/// A write that changes nothing changes no times either. `object` may carry `managedFields` of its own; one empty entry
/// (`[{}]`) forgets all managers.
pub fn update(live: Option<&Value>, object: &mut Value, write: &Write<'_>) {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    let given = match metadata.and_then(|metadata| metadata.remove("managedFields")) {
        Some(Value::Array(given)) => given,
        _ => Vec::new(),
    };
    if let [only] = given.as_slice()
        && only.as_object().is_some_and(serde_json::Map::is_empty)
    {
        return;
    }
    let kept = live.and_then(meta::managed_fields);
    let mut managers = match kept {
        // Mostly a write brings back what it got, or nothing.
        Some(kept) if *kept == given => Managers::kept(given),
        _ if Managers::readable(&given) => Managers::read(&given),
        _ => Managers::default(),
    };
    if managers.is_empty() {
        managers = Managers::kept(kept.cloned().unwrap_or_default());
    }
    if live.is_some() && managers.is_empty() {
        // Nobody kept books so far (or they were cleared): the first apply will.
        return;
    }
    let changes = Changes::between_parts(live, object, write);
    managers.put_update(ManagerId::updater(write), changes, write);
    managers.write(object);
}

/// Who manages which fields of an object, for display: manager, operation, and fields as kubectl writes them.
pub fn owners(object: &Value) -> Vec<(String, Operation, Vec<String>)> {
    Managers::of(Some(object)).list()
}

/// The part of an object that this write is about, without nulls and without what only the server writes.
fn own_part(object: &Value, write: &Write<'_>) -> Value {
    let mut part = object.clone();
    meta::remove_nulls(&mut part);
    if let Some(map) = part.as_object_mut() {
        map.retain(|key, _| write.is_about(key));
        if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|key, _| write.is_about_metadata(key));
        }
    }
    part
}

impl Write<'_> {
    /// Whether it is about a field of the object.
    fn is_about(&self, field: &str) -> bool {
        match self.subresource {
            "status" => matches!(field, "apiVersion" | "kind" | "metadata" | "status"),
            _ => !(self.status_apart && field == "status"),
        }
    }

    /// Whether it is about a field of its metadata.
    fn is_about_metadata(&self, field: &str) -> bool {
        let server = ["managedFields", "uid", "resourceVersion", "generation", "creationTimestamp", "selfLink"];
        match self.subresource {
            "status" => matches!(field, "name" | "namespace"),
            _ => !server.contains(&field),
        }
    }
}

/// Fields nobody manages.
fn strip(mut set: FieldSet) -> FieldSet {
    let field = |name: &str| Step::Field(name.to_owned());
    set.remove(&[field("apiVersion")]);
    set.remove(&[field("kind")]);
    let server = ["name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields"];
    for name in server.into_iter().chain(["resourceVersion", "clusterName"]) {
        set.remove(&[field("metadata"), field(name)]);
    }
    set.without_member(&[field("metadata")])
}

fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    if object.pointer("/metadata/managedFields").is_some() {
        meta::metadata_mut(&mut object).remove("managedFields");
    }
    object
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod worked;
