//! What the built-in kinds are made of: every type, field and description of Kubernetes' own OpenAPI.
//!
//! Two files beside this one carry it, written by `cargo xtask openapi`: `definitions.z` with every word, read only
//! when somebody asks for OpenAPI, and `types.z` without descriptions, read into [`Types`] at the first write.

mod read;

pub use read::{read, read_metadata};

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, BufReader};
use std::sync::LazyLock;

use flate2::read::ZlibDecoder;
use serde::Deserialize;
use serde_json::Value;

/// The release of Kubernetes that is described.
pub const RELEASE: &str = "v1.34.1";

/// The name of the definition of every object's metadata.
pub const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Every definition as `(name, schema in JSON)`, the schema as OpenAPI v3 has it.
pub fn definitions() -> impl Iterator<Item = (String, String)> {
    lines(include_bytes!("builtin/definitions.z"))
}

fn lines(packed: &'static [u8]) -> impl Iterator<Item = (String, String)> {
    let lines = BufReader::new(ZlibDecoder::new(packed)).lines();
    // The files are part of this program and a test reads them whole.
    lines.map_while(Result::ok).filter_map(|line| line.split_once('\t').map(|(name, text)| (name.into(), text.into())))
}

/// The types of all built-in kinds.
#[must_use]
pub fn types() -> &'static Types {
    static TYPES: LazyLock<Types> = LazyLock::new(|| Types::load(lines(include_bytes!("builtin/types.z"))));
    &TYPES
}

/// All types by name and by kind.
#[derive(Debug, Default)]
pub struct Types {
    all: Vec<Definition>,
    names: HashMap<Box<str>, usize>,
    kinds: HashMap<(String, String, String), usize>,
}

/// A type with a name.
#[derive(Debug)]
pub struct Definition {
    /// `io.k8s.api.apps.v1.Deployment`.
    pub name: Box<str>,
    /// What it is.
    pub place: Place,
    /// Fields that must be there.
    pub required: Box<[&'static str]>,
}

/// What is at one place of an object.
#[derive(Debug)]
pub struct Place {
    /// The type.
    pub what: What,
    marks: Option<Box<Marks>>,
}

/// A field.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub place: Place,
}

/// Types.
#[derive(Debug)]
pub enum What {
    /// Anything.
    Any,
    /// Any object.
    Object,
    /// Text.
    Text,
    /// Bytes in base64.
    Bytes,
    /// A time.
    Time,
    /// A 32 bit integer.
    Int32,
    /// A 64 bit integer.
    Int64,
    /// A number.
    Number,
    /// True or false.
    Boolean,
    /// An integer or a text.
    IntOrString,
    /// An amount.
    Quantity,
    /// An object with fields, sorted by name.
    Fields(Box<[Field]>),
    /// A list.
    List(Box<Place>),
    /// A map from text.
    Map(Box<Place>),
    /// The type with that index.
    Is(usize),
}

/// How a place is merged and owned: Kubernetes' `x-kubernetes-*` marks.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Marks {
    /// `x-kubernetes-list-type`.
    pub list_type: Option<super::ListType>,
    /// `x-kubernetes-list-map-keys`.
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
    /// `x-kubernetes-patch-merge-key`.
    pub merge_key: Option<String>,
    /// `x-kubernetes-patch-strategy` has `merge`.
    pub merge: bool,
    /// `x-kubernetes-patch-strategy` has `retainKeys`.
    pub retain_keys: bool,
    /// `default`.
    pub default: Option<Value>,
}

impl Types {
    /// The type of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Definition> {
        self.names.get(name).map(|index| &self.all[*index])
    }

    /// The type of a kind.
    #[must_use]
    pub fn of_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Definition> {
        let key = (group.to_owned(), version.to_owned(), kind.to_owned());
        self.kinds.get(&key).map(|index| &self.all[*index])
    }

    /// The type at an index of [`What::Is`].
    #[must_use]
    pub fn at(&self, index: usize) -> &Definition {
        &self.all[index]
    }

    /// The type behind a name, as deep as it goes.
    #[must_use]
    pub fn resolve<'a>(&'a self, place: &'a Place) -> &'a What {
        match &place.what {
            What::Is(index) => self.resolve(&self.all[*index].place),
            what => what,
        }
    }

    /// The names of a type and of everything it is made of.
    pub fn closure(&self, name: &str, into: &mut std::collections::BTreeSet<Box<str>>) {
        fn within(types: &Types, what: &What, into: &mut std::collections::BTreeSet<Box<str>>) {
            match what {
                What::Is(index) => types.closure(&types.all[*index].name, into),
                What::Fields(fields) => fields.iter().for_each(|field| within(types, &field.place.what, into)),
                What::List(of) | What::Map(of) => within(types, &of.what, into),
                _ => {}
            }
        }
        let Some(found) = self.get(name) else { return };
        if into.insert(found.name.clone()) {
            within(self, &found.place.what, into);
        }
    }

    fn load(lines: impl Iterator<Item = (String, String)>) -> Self {
        let read: Vec<(String, Raw)> = lines
            .filter_map(|(name, text)| match serde_json::from_str(&text) {
                Ok(raw) => Some((name, raw)),
                Err(error) => {
                    debug_assert!(false, "{name}: {error}");
                    None
                }
            })
            .collect();
        let names: HashMap<Box<str>, usize> =
            read.iter().enumerate().map(|(index, (name, _))| (name.as_str().into(), index)).collect();
        let mut words = Words::default();
        let mut types = Self { names, ..Self::default() };
        for (index, (name, raw)) in read.into_iter().enumerate() {
            for kind in &raw.kinds {
                types.kinds.insert((kind.group.clone(), kind.version.clone(), kind.kind.clone()), index);
            }
            let required = raw.required.iter().map(|field| words.keep(field)).collect();
            let place = types.place(raw, &mut words);
            let place = match name.rsplit('.').next() {
                Some("Quantity") => Place { what: What::Quantity, ..place },
                Some("RawExtension") => Place { what: What::Any, ..place },
                _ => place,
            };
            types.all.push(Definition { name: name.into(), place, required });
        }
        types
    }

    fn place(&self, raw: Raw, words: &mut Words) -> Place {
        let marks = raw.marks();
        let named = raw.reference.as_deref().or_else(|| raw.all_of.first().and_then(|one| one.reference.as_deref()));
        let named = named.and_then(|text| self.names.get(text.rsplit('/').next().unwrap_or_default()));
        let what = if let Some(index) = named {
            What::Is(*index)
        } else {
            match (raw.kind.as_deref(), raw.format.as_deref()) {
                (_, Some("int-or-string")) => What::IntOrString,
                (Some("string"), Some("byte")) => What::Bytes,
                (Some("string"), Some("date-time")) => What::Time,
                (Some("string"), _) => What::Text,
                (Some("integer"), Some("int64")) => What::Int64,
                (Some("integer"), _) => What::Int32,
                (Some("number"), _) => What::Number,
                (Some("boolean"), _) => What::Boolean,
                (Some("array"), _) => match raw.items {
                    Some(items) => What::List(Box::new(self.place(*items, words))),
                    None => What::Any,
                },
                (Some("object"), _) => match (raw.properties, raw.additional) {
                    (fields, None) if fields.is_empty() => What::Object,
                    (_, Some(entry)) => What::Map(Box::new(self.place(*entry, words))),
                    (fields, None) => {
                        let field = |(name, raw): (String, Raw)| Field {
                            name: words.keep(&name),
                            place: self.place(raw, words),
                        };
                        What::Fields(fields.into_iter().map(field).collect())
                    }
                },
                _ => What::Any,
            }
        };
        Place { what, marks }
    }
}

impl Place {
    /// How it is merged and owned, where that is said.
    #[must_use]
    pub fn marks(&self) -> Option<&Marks> {
        self.marks.as_deref()
    }
}

impl What {
    /// The field of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        let What::Fields(fields) = self else { return None };
        fields.binary_search_by(|field| field.name.cmp(name)).ok().map(|index| &fields[index])
    }
}

/// Names of fields, each kept once for as long as the program runs.
#[derive(Default)]
struct Words(HashMap<&'static str, ()>);

impl Words {
    fn keep(&mut self, word: &str) -> &'static str {
        if let Some((known, ())) = self.0.get_key_value(word) {
            return known;
        }
        let kept: &'static str = Box::leak(word.into());
        self.0.insert(kept, ());
        kept
    }
}

/// A schema as OpenAPI v3 writes it.
#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "type")]
    kind: Option<String>,
    format: Option<String>,
    #[serde(rename = "$ref")]
    reference: Option<String>,
    #[serde(rename = "allOf", default)]
    all_of: Vec<Raw>,
    #[serde(default)]
    properties: BTreeMap<String, Raw>,
    #[serde(rename = "additionalProperties")]
    additional: Option<Box<Raw>>,
    items: Option<Box<Raw>>,
    #[serde(default)]
    required: Vec<String>,
    default: Option<Value>,
    #[serde(rename = "x-kubernetes-group-version-kind", default)]
    kinds: Vec<RawKind>,
    #[serde(rename = "x-kubernetes-list-type")]
    list_type: Option<String>,
    #[serde(rename = "x-kubernetes-list-map-keys", default)]
    list_map_keys: Vec<String>,
    #[serde(rename = "x-kubernetes-map-type")]
    map_type: Option<String>,
    #[serde(rename = "x-kubernetes-patch-merge-key")]
    merge_key: Option<String>,
    #[serde(rename = "x-kubernetes-patch-strategy", default)]
    strategy: String,
}

#[derive(Deserialize)]
struct RawKind {
    group: String,
    version: String,
    kind: String,
}

impl Raw {
    fn marks(&self) -> Option<Box<Marks>> {
        use super::ListType;
        let list_type = match self.list_type.as_deref() {
            Some("set") => Some(ListType::Set),
            Some("map") => Some(ListType::Map),
            Some("atomic") => Some(ListType::Atomic),
            _ => None,
        };
        let has = |what: &str| self.strategy.split(',').any(|part| part == what);
        let empty = |value: &Value| match value {
            Value::String(text) => text.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Number(number) => number.as_i64() == Some(0),
            other => other.is_null() || *other == Value::Bool(false),
        };
        let marks = Marks {
            list_type,
            list_map_keys: self.list_map_keys.clone(),
            atomic: self.map_type.as_deref() == Some("atomic"),
            merge_key: self.merge_key.clone(),
            merge: has("merge"),
            retain_keys: has("retainKeys"),
            default: self.default.clone().filter(|value| !empty(value)),
        };
        (marks != Marks::default()).then(|| Box::new(marks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_kind_is_described() {
        let named: Vec<String> = definitions().map(|(name, _)| name).collect();
        assert_eq!(named.len(), types().all.len());
        for kind in crate::kind::all() {
            let found = types().of_kind(kind.group, kind.version, kind.kind);
            let found = found.unwrap_or_else(|| panic!("{}/{} {}", kind.group, kind.version, kind.kind));
            assert!(found.place.what.field("metadata").is_some() || kind.kind == "Namespace", "{}", found.name);
        }
        for (name, text) in definitions() {
            assert!(text.contains("\"description\""), "{name}");
            let _: Value = serde_json::from_str(&text).unwrap();
        }
    }

    #[test]
    fn marks_are_kubernetes_own() {
        let types = types();
        let deployment = types.of_kind("apps", "v1", "Deployment").unwrap();
        let mut place = &deployment.place;
        for step in ["spec", "template", "spec", "containers"] {
            place = &types.resolve(place).field(step).unwrap().place;
        }
        let marks = place.marks().unwrap();
        assert_eq!((marks.merge, marks.merge_key.as_deref()), (true, Some("name")));
        let What::List(container) = &place.what else { panic!("{place:?}") };
        let ports = types.resolve(container).field("ports").unwrap();
        let marks = ports.place.marks().unwrap();
        assert_eq!(marks.list_map_keys, ["containerPort", "protocol"]);
        assert!(matches!(
            types.resolve(&types.get("io.k8s.api.core.v1.ResourceRequirements").unwrap().place),
            What::Fields(_)
        ));
        let mut all = std::collections::BTreeSet::new();
        types.closure(&deployment.name, &mut all);
        assert!(all.len() > 80 && all.contains(OBJECT_META), "{}", all.len());
    }
}
