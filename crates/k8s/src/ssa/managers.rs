//! `metadata.managedFields`: who manages what.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value};

use super::compare::{Changes, field_set};
use super::{Write, own_part, strip};
use crate::meta;
use crate::path::FieldSet;
use crate::status::{Cause, Status};

/// How a manager came to its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By any other write.
    Update,
}

impl Operation {
    /// As in `managedFields`.
    pub fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// Fields that an apply would take from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conflicts(pub Vec<Conflict>);

/// One field that an apply would take from one other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conflict {
    /// The other, as kubectl says it: `"x" using apps/v1`.
    pub manager: String,
    /// The field, `.spec.replicas`.
    pub field: String,
}

impl Conflicts {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes out what is about these fields.
    pub(super) fn forgive(&mut self, fields: &FieldSet) {
        let fields = fields.paths();
        self.0.retain(|conflict| !fields.contains(&conflict.field));
    }

    /// The answer to the client.
    pub fn to_status(&self) -> Status {
        let causes = self.0.iter().map(|conflict| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {}", conflict.manager),
            field: conflict.field.clone(),
        });
        Status::apply_conflict(self.to_string(), causes.collect())
    }
}

impl std::error::Error for Conflicts {}

impl std::fmt::Display for Conflicts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let [Conflict { manager, field }] = self.0.as_slice() {
            return write!(formatter, "Apply failed with 1 conflict: conflict with {manager}: {field}");
        }
        let mut by_manager: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for Conflict { manager, field } in &self.0 {
            by_manager.entry(manager).or_default().push(field);
        }
        let mut lines = Vec::new();
        for (manager, fields) in by_manager {
            lines.push(format!("conflicts with {manager}:"));
            lines.extend(fields.into_iter().map(|field| format!("- {field}")));
        }
        write!(formatter, "Apply failed with {} conflicts: {}", self.0.len(), lines.join("\n"))
    }
}

/// Who a manager is: appliers keep their fields over versions, others have them by version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ManagerId {
    operation: Operation,
    manager: String,
    api_version: String,
    subresource: String,
}

impl ManagerId {
    pub(super) fn applier(write: &Write<'_>) -> Self {
        Self::new(Operation::Apply, write.manager, "", write.subresource)
    }

    pub(super) fn updater(write: &Write<'_>) -> Self {
        Self::new(Operation::Update, write.manager, write.api_version, write.subresource)
    }

    fn new(operation: Operation, manager: &str, api_version: &str, subresource: &str) -> Self {
        ManagerId {
            operation,
            manager: manager.to_owned(),
            api_version: api_version.to_owned(),
            subresource: subresource.to_owned(),
        }
    }

    fn shown(&self) -> String {
        let mut shown = Value::from(self.manager.as_str()).to_string();
        if !self.subresource.is_empty() {
            shown.push_str(&format!(" with subresource \"{}\"", self.subresource));
        }
        if self.operation == Operation::Update {
            shown.push_str(&format!(" using {}", self.api_version));
        }
        shown
    }
}

#[derive(Clone, Debug)]
struct Managed {
    api_version: String,
    time: String,
    fields: Fields,
}

/// What somebody manages.
#[derive(Clone, Debug)]
enum Fields {
    Read(FieldSet),
    /// `fieldsV1` as we wrote it. Most writes touch few fields of few managers: the others' need not be read.
    Kept(Value),
}

impl Fields {
    fn read(&self) -> Cow<'_, FieldSet> {
        match self {
            Self::Read(fields) => Cow::Borrowed(fields),
            Self::Kept(fields) => Cow::Owned(FieldSet::decode(fields)),
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut FieldSet)) {
        let mut fields = match std::mem::replace(self, Self::Kept(Value::Null)) {
            Self::Read(fields) => fields,
            Self::Kept(fields) => FieldSet::decode(&fields),
        };
        change(&mut fields);
        *self = Self::Read(fields);
    }

    fn meet(&self, others: &FieldSet) -> bool {
        match self {
            Self::Read(_) => true,
            Self::Kept(fields) => others.meets(fields),
        }
    }

    fn subtract(&mut self, others: &FieldSet) {
        if self.meet(others) {
            self.change(|fields| fields.subtract(others));
        }
    }

    fn add(&mut self, others: FieldSet) {
        let has_all = matches!(self, Self::Kept(fields) if others.is_within(fields));
        if !has_all {
            self.change(|fields| fields.add(others));
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Read(fields) => fields.is_empty(),
            Self::Kept(fields) => fields.as_object().is_none_or(Map::is_empty),
        }
    }

    fn encode(self) -> Value {
        match self {
            Self::Read(fields) => fields.encode(),
            Self::Kept(fields) => fields,
        }
    }
}

/// All managers of an object.
#[derive(Clone, Debug, Default)]
pub(super) struct Managers(BTreeMap<ManagerId, Managed>);

/// At most so many managers that do not apply; older ones become [`ANCIENT`].
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

impl Managers {
    /// Reads an object's managers.
    pub(super) fn of(object: Option<&Value>) -> Self {
        let entries = object.and_then(meta::managed_fields);
        Self::read(entries.map_or(&[], Vec::as_slice))
    }

    /// Reads `managedFields`.
    pub(super) fn read(entries: &[Value]) -> Self {
        Self::gather(entries.iter().map(|entry| {
            let fields = entry.get("fieldsV1").map(FieldSet::decode).unwrap_or_default();
            (Cow::Borrowed(entry), Fields::Read(fields))
        }))
    }

    /// Takes `managedFields` as we wrote them: what each manages is read where it changes.
    pub(super) fn kept(entries: Vec<Value>) -> Self {
        Self::gather(entries.into_iter().map(|mut entry| {
            let fields = entry.get_mut("fieldsV1").map(Value::take).unwrap_or_default();
            (Cow::Owned(entry), Fields::Kept(fields))
        }))
    }

    fn gather<'a>(entries: impl Iterator<Item = (Cow<'a, Value>, Fields)>) -> Self {
        let mut managers = Managers::default();
        for (entry, fields) in entries {
            let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or("");
            let operation = match text("operation") {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => continue,
            };
            let version = if operation == Operation::Apply { "" } else { text("apiVersion") };
            let id = ManagerId::new(operation, text("manager"), version, text("subresource"));
            match managers.0.entry(id) {
                Entry::Occupied(mut known) => {
                    known.get_mut().fields.change(|known| known.add(fields.read().into_owned()))
                }
                Entry::Vacant(place) => {
                    let (api_version, time) = (text("apiVersion").to_owned(), text("time").to_owned());
                    place.insert(Managed { api_version, time, fields });
                }
            }
        }
        managers
    }

    /// Whether every entry can be read; if not, what a client sent is not what it got, and is left aside.
    pub(super) fn readable(entries: &[Value]) -> bool {
        entries.iter().all(|entry| {
            let fields = entry.get("fieldsV1").is_none_or(Value::is_object);
            let kind = matches!(entry.get("fieldsType").and_then(Value::as_str), None | Some("" | "FieldsV1"));
            let operation = matches!(entry.get("operation").and_then(Value::as_str), Some("Apply" | "Update"));
            fields && kind && operation
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn fields(&self, id: &ManagerId) -> Option<Cow<'_, FieldSet>> {
        self.0.get(id).map(|managed| managed.fields.read())
    }

    /// What all but one manage.
    pub(super) fn all_but(&self, me: &ManagerId) -> FieldSet {
        let mut all = FieldSet::new();
        self.others(me).for_each(|(_, managed)| all.add(managed.fields.read().into_owned()));
        all
    }

    /// An object without managers belongs to what was before the first apply.
    pub(super) fn adopt_before_first_apply(&mut self, live: &Value, write: &Write<'_>) {
        let everything = Write { subresource: "", ..*write };
        if let Ok(fields) = field_set(&own_part(live, &everything), write.shape) {
            let id = ManagerId::new(Operation::Update, BEFORE_FIRST_APPLY, write.api_version, "");
            let managed = Managed {
                api_version: write.api_version.into(),
                time: write.now.into(),
                fields: Fields::Read(strip(fields)),
            };
            self.0.insert(id, managed);
        }
    }

    /// What these changes would take from others.
    pub(super) fn conflicts(&self, me: &ManagerId, changes: &Changes) -> Conflicts {
        let mut conflicts = Vec::new();
        for (id, managed) in self.others(me) {
            let fields = managed.fields.read().intersection(&changes.changed).paths();
            conflicts.extend(fields.into_iter().map(|field| Conflict { manager: id.shown(), field }));
        }
        conflicts.sort();
        Conflicts(conflicts)
    }

    /// Others lose what is changed or gone.
    pub(super) fn give_up(&mut self, me: &ManagerId, changes: &Changes) {
        for (_, managed) in self.0.iter_mut().filter(|(id, _)| *id != me) {
            managed.fields.subtract(&changes.changed);
            managed.fields.subtract(&changes.removed);
        }
    }

    /// Everybody loses what a write that is no apply changed or removed, and who made it gets what it changed.
    pub(super) fn put_update(&mut self, me: ManagerId, changes: Changes, write: &Write<'_>) {
        for (_, managed) in self.0.iter_mut().filter(|(id, _)| **id != me) {
            managed.fields.subtract(&changes.changed);
            managed.fields.subtract(&changes.removed);
        }
        let Changes { changed, removed } = changes;
        let fields = strip(changed.clone());
        if let Some(mine) = self.0.get_mut(&me) {
            mine.fields.subtract(&removed);
            // Of its own fields it loses those for good that nobody manages.
            mine.fields.subtract(&changed.difference(&fields));
        }
        if fields.is_empty() {
            return;
        }
        let managed = self.0.entry(me).or_insert_with(|| Managed {
            api_version: write.api_version.into(),
            time: String::new(),
            fields: Fields::Read(FieldSet::new()),
        });
        managed.fields.add(fields);
        managed.time = write.now.into();
    }

    /// Puts down what is applied. The time is only new when something changed.
    pub(super) fn set_applied(&mut self, me: ManagerId, fields: FieldSet, write: &Write<'_>, changed: bool) {
        let managed = self.0.entry(me).or_insert_with(|| Managed {
            api_version: String::new(),
            time: write.now.into(),
            fields: Fields::Read(FieldSet::new()),
        });
        managed.fields = Fields::Read(fields);
        managed.api_version = write.api_version.into();
        if changed {
            managed.time = write.now.into();
        }
    }

    /// Writes the managers into an object.
    pub(super) fn write(mut self, object: &mut Value) {
        self.0.retain(|_, managed| !managed.fields.is_empty());
        self.cap();
        let metadata = meta::metadata_mut(object);
        if self.0.is_empty() {
            metadata.remove("managedFields");
            return;
        }
        let mut entries: Vec<(ManagerId, Managed)> = self.0.into_iter().collect();
        entries.sort_by(|(one, one_managed), (other, other_managed)| {
            (one.operation, &one_managed.time, one).cmp(&(other.operation, &other_managed.time, other))
        });
        let entries = entries.into_iter().map(|(id, managed)| {
            let mut entry = Map::new();
            entry.insert("manager".into(), id.manager.into());
            entry.insert("operation".into(), id.operation.as_str().into());
            entry.insert("apiVersion".into(), managed.api_version.into());
            if !managed.time.is_empty() {
                entry.insert("time".into(), managed.time.into());
            }
            entry.insert("fieldsType".into(), "FieldsV1".into());
            entry.insert("fieldsV1".into(), managed.fields.encode());
            if !id.subresource.is_empty() {
                entry.insert("subresource".into(), id.subresource.into());
            }
            Value::Object(entry)
        });
        metadata.insert("managedFields".into(), entries.collect());
    }

    /// For display.
    pub(super) fn list(&self) -> Vec<(String, Operation, Vec<String>)> {
        self.0.iter().map(|(id, managed)| (id.manager.clone(), id.operation, managed.fields.read().paths())).collect()
    }

    /// Too many managers that do not apply: the oldest become one.
    fn cap(&mut self) {
        let mut updaters: Vec<(String, ManagerId)> = self
            .0
            .iter()
            .filter(|(id, _)| id.operation == Operation::Update)
            .map(|(id, managed)| (managed.time.clone(), id.clone()))
            .collect();
        if updaters.len() <= MAX_UPDATERS {
            return;
        }
        updaters.sort();
        // The bucket itself needs a place, unless it has one.
        let bucket_exists = updaters.iter().any(|(_, id)| id.manager == ANCIENT);
        let surplus = updaters.len() - MAX_UPDATERS + usize::from(!bucket_exists);
        for (_, id) in updaters.into_iter().filter(|(_, id)| id.manager != ANCIENT).take(surplus) {
            let Some(old) = self.0.remove(&id) else { continue };
            let bucket = ManagerId::new(Operation::Update, ANCIENT, &old.api_version, "");
            match self.0.get_mut(&bucket) {
                Some(managed) => {
                    managed.fields.add(old.fields.read().into_owned());
                    managed.time = managed.time.clone().max(old.time);
                }
                None => {
                    self.0.insert(bucket, old);
                }
            }
        }
    }

    fn others<'a>(&'a self, me: &ManagerId) -> impl Iterator<Item = (&'a ManagerId, &'a Managed)> {
        let me = me.clone();
        self.0.iter().filter(move |(id, _)| **id != me)
    }
}
