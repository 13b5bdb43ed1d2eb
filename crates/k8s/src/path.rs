//! Sets of fields: what a manager owns, and `fieldsV1`, the form in which objects carry it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// One step of a path: a field, an entry of a list by its keys, a value of a set, or a place in a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A field of an object or an entry of a map.
    Field(String),
    /// The entry of a list with these keys: a JSON object, written with sorted keys.
    Key(String),
    /// The entry of a set: a JSON value.
    Value(String),
    /// An entry by its place.
    Index(usize),
}

impl Step {
    /// The entry with these keys.
    pub fn key(keys: &BTreeMap<String, Value>) -> Self {
        Step::Key(write_object(keys.iter().map(|(key, value)| (key.as_str(), value))))
    }

    /// The entry of a set.
    pub fn value(value: &Value) -> Self {
        Step::Value(write(value))
    }

    /// As in `fieldsV1`: `f:replicas`, `k:{"name":"a"}`, `v:"x"`, `i:0`.
    pub fn encode(&self) -> String {
        match self {
            Step::Field(name) => format!("f:{name}"),
            Step::Key(keys) => format!("k:{keys}"),
            Step::Value(value) => format!("v:{value}"),
            Step::Index(index) => format!("i:{index}"),
        }
    }

    /// Reads what [`Step::encode`] writes.
    pub fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        match kind {
            "f" => Some(Step::Field(rest.to_owned())),
            "k" => match serde_json::from_str(rest).ok()? {
                Value::Object(keys) => Some(Step::Key(write(&Value::Object(keys)))),
                _ => None,
            },
            "v" => serde_json::from_str(rest).ok().map(|value: Value| Step::value(&value)),
            "i" => rest.parse().ok().map(Step::Index),
            _ => None,
        }
    }
}

impl std::fmt::Display for Step {
    /// As in kubectl's messages: `.replicas`, `[name="a"]`, `[="x"]`, `[0]`.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Step::Field(name) => write!(formatter, ".{name}"),
            Step::Key(keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(formatter, "[{}]", keys.join(","))
            }
            Step::Value(value) => write!(formatter, "[={value}]"),
            Step::Index(index) => write!(formatter, "[{index}]"),
        }
    }
}

/// A set of fields, as a tree. A field can be in the set without what is below it, and the other way round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    member: bool,
    below: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    /// The empty set.
    pub fn new() -> Self {
        FieldSet::default()
    }

    /// Reads `fieldsV1`; steps that are none are left out.
    pub fn decode(fields: &Value) -> Self {
        FieldSet { member: false, ..FieldSet::decode_node(fields) }
    }

    fn decode_node(fields: &Value) -> Self {
        let mut set = FieldSet::new();
        for (key, value) in fields.as_object().into_iter().flatten() {
            if key == "." {
                set.member = true;
            } else if let Some(step) = Step::decode(key) {
                let mut below = FieldSet::decode_node(value);
                if below.is_empty() {
                    below.member = true;
                }
                set.below.insert(step, below);
            }
        }
        set
    }

    /// Whether anything of this set is among what `fieldsV1` names: what [`FieldSet::decode`] and
    /// [`FieldSet::intersection`] would tell, without reading all of it.
    pub fn meets(&self, fields: &Value) -> bool {
        let Some(fields) = fields.as_object() else { return false };
        self.below.iter().any(|(step, below)| {
            fields.get(&step.encode()).is_some_and(|found| (below.member && is_member(found)) || below.meets(found))
        })
    }

    /// Whether all of this set is among what `fieldsV1` names.
    pub fn is_within(&self, fields: &Value) -> bool {
        self.below.iter().all(|(step, below)| {
            let found = fields.as_object().and_then(|fields| fields.get(&step.encode()));
            found.is_some_and(|found| (!below.member || is_member(found)) && below.is_within(found))
        })
    }

    /// Writes `fieldsV1`.
    pub fn encode(&self) -> Value {
        let mut fields = Map::new();
        if self.member && !self.below.is_empty() {
            fields.insert(".".into(), Value::Object(Map::new()));
        }
        for (step, below) in &self.below {
            fields.insert(step.encode(), below.encode());
        }
        Value::Object(fields)
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        !self.member && self.below.is_empty()
    }

    /// Whether the field at the root of this set is itself in it.
    pub fn is_member(&self) -> bool {
        self.member
    }

    /// Puts the root itself in.
    pub fn set_member(&mut self) {
        self.member = true;
    }

    /// What is below a step.
    pub fn get(&self, step: &Step) -> Option<&FieldSet> {
        self.below.get(step)
    }

    /// The steps and what is below each.
    pub fn iter(&self) -> impl Iterator<Item = (&Step, &FieldSet)> {
        self.below.iter()
    }

    /// Puts what is not empty below a step.
    pub fn put(&mut self, step: Step, below: FieldSet) {
        if !below.is_empty() {
            self.below.insert(step, below);
        }
    }

    /// Puts the path itself in.
    pub fn insert(&mut self, path: &[Step]) {
        match path.split_first() {
            None => self.member = true,
            Some((step, rest)) => self.below.entry(step.clone()).or_default().insert(rest),
        }
    }

    /// Takes the path and everything below it out.
    pub fn remove(&mut self, path: &[Step]) {
        match path {
            [] => *self = FieldSet::new(),
            [step] => {
                self.below.remove(step);
            }
            [step, rest @ ..] => {
                if let Some(below) = self.below.get_mut(step) {
                    below.remove(rest);
                    if below.is_empty() {
                        self.below.remove(step);
                    }
                }
            }
        }
    }

    /// The set without the path itself; what is below it stays.
    pub fn without_member(mut self, path: &[Step]) -> Self {
        match path.split_first() {
            None => self.member = false,
            Some((step, rest)) => {
                if let Some(below) = self.below.remove(step) {
                    self.put(step.clone(), below.without_member(rest));
                }
            }
        }
        self
    }

    /// Only what is at or below the path.
    pub fn only(&self, path: &[Step]) -> Self {
        let mut set = FieldSet::new();
        match path.split_first() {
            None => return self.clone(),
            Some((step, rest)) => {
                if let Some(below) = self.below.get(step) {
                    set.put(step.clone(), below.only(rest));
                }
            }
        }
        set
    }

    /// What is in either.
    pub fn union(&self, other: &Self) -> Self {
        let mut union = self.clone();
        union.add(other.clone());
        union
    }

    /// Puts in what is in the other.
    pub fn add(&mut self, other: Self) {
        if self.below.is_empty() {
            self.below = other.below;
        } else {
            for (step, below) in other.below {
                self.below.entry(step).or_default().add(below);
            }
        }
        self.member |= other.member;
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = FieldSet { member: self.member && other.member, below: BTreeMap::new() };
        for (step, below) in &self.below {
            if let Some(others) = other.below.get(step) {
                both.put(step.clone(), below.intersection(others));
            }
        }
        both
    }

    /// What is in this and not in the other.
    pub fn difference(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        rest.subtract(other);
        rest
    }

    /// Takes out what is in the other.
    pub fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        for (step, others) in &other.below {
            if let Some(below) = self.below.get_mut(step) {
                below.subtract(others);
                if below.is_empty() {
                    self.below.remove(step);
                }
            }
        }
    }

    /// The paths in it, as kubectl writes them.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, path: &str, paths: &mut Vec<String>) {
        if self.member {
            paths.push(path.to_owned());
        }
        for (step, below) in &self.below {
            below.collect(&format!("{path}{step}"), paths);
        }
    }
}

/// Whether `fieldsV1` names a field itself, and not only what is below it.
fn is_member(below: &Value) -> bool {
    below.as_object().is_none_or(|below| below.is_empty() || below.contains_key("."))
}

/// JSON with sorted keys, whatever the order of a map is elsewhere.
fn write(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let sorted: BTreeMap<&str, &Value> = map.iter().map(|(key, value)| (key.as_str(), value)).collect();
            write_object(sorted.into_iter())
        }
        Value::Array(list) => format!("[{}]", list.iter().map(write).collect::<Vec<_>>().join(",")),
        scalar => scalar.to_string(),
    }
}

fn write_object<'a>(sorted: impl Iterator<Item = (&'a str, &'a Value)>) -> String {
    let entries: Vec<String> = sorted.map(|(key, value)| format!("{}:{}", Value::from(key), write(value))).collect();
    format!("{{{}}}", entries.join(","))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// Any JSON, small, with few different keys so that two of them meet.
    pub(crate) fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-2i64..5).prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any_key(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn any_key() -> impl Strategy<Value = String> {
        prop::sample::select(vec![
            "a",
            "b",
            "name",
            "spec",
            "metadata",
            "ports",
            "port",
            "containers",
            "template",
            "labels",
            "finalizers",
            "type",
            "items",
            "properties",
            "required",
            "$patch",
            "$retainKeys",
            "$setElementOrder/containers",
            "$deleteFromPrimitiveList/finalizers",
            "f:a",
            "k:{\"name\":\"a\"}",
            "v:1",
            "i:0",
            ".",
            "status",
            "managedFields",
            "manager",
            "operation",
            "apiVersion",
            "fieldsV1",
            "versions",
            "names",
            "schema",
            "openAPIV3Schema",
            "pattern",
            "minimum",
            "enum",
            "default",
            "additionalProperties",
            "allOf",
        ])
        .prop_map(str::to_owned)
    }

    #[test]
    fn fields_are_written_as_kubernetes_does() {
        let fields = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\"x\"": {}}},
            "f:spec": {"f:replicas": {}, "f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}, "i:0": {}}}
        });
        let set = FieldSet::decode(&fields);
        assert_eq!(set.encode(), fields);
        insta::assert_snapshot!(set.paths().join("\n"), @r#"
        .metadata.finalizers[="x"]
        .metadata.labels
        .metadata.labels.app
        .spec.containers[name="a"]
        .spec.containers[name="a"].image
        .spec.containers[0]
        .spec.replicas
        "#);
    }

    fn any_set() -> impl Strategy<Value = FieldSet> {
        let step = prop_oneof![
            "[ab]".prop_map(Step::Field),
            "[ab]".prop_map(|name| Step::key(&BTreeMap::from([("name".to_owned(), Value::from(name))]))),
            (0i64..2).prop_map(|value| Step::value(&value.into())),
            (0usize..2).prop_map(Step::Index),
        ];
        let path = prop::collection::vec(step, 1..4);
        prop::collection::vec(path, 0..6).prop_map(|paths| {
            let mut set = FieldSet::new();
            paths.iter().for_each(|path| set.insert(path));
            set
        })
    }

    proptest! {
        #[test]
        fn sets_are_read_as_written(set in any_set()) {
            prop_assert_eq!(FieldSet::decode(&set.encode()), set);
        }

        #[test]
        fn sets_obey_the_laws_of_sets(a in any_set(), b in any_set()) {
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.difference(&b).intersection(&b).is_empty());
        }

        #[test]
        fn any_fields_are_read(value in any_json()) {
            let set = FieldSet::decode(&value);
            prop_assert_eq!(FieldSet::decode(&set.encode()), set);
        }

        #[test]
        fn any_step_is_read_or_refused(text in ".*") {
            if let Some(step) = Step::decode(&text) {
                prop_assert_eq!(Step::decode(&step.encode()), Some(step));
            }
        }
    }
}
