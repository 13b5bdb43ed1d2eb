//! The schema of a custom resource: what may be in an object, what is filled in, what is dropped, what is wrong.
//!
//! A [`Schema`] is read once from a CustomResourceDefinition's `openAPIV3Schema` and then used on every object:
//! [`Schema::prune`], [`Schema::fill_defaults`], [`Schema::validate`], in this order, as Kubernetes does.

pub mod builtin;
mod crd;
mod structural;
mod validate;

pub use crd::{default_crd, validate_crd};
pub use structural::check_structural;

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::{Map, Value};

/// What may be at one place of an object.
#[derive(Clone, Debug, Default)]
pub struct Schema {
    /// The JSON type; none where anything may be.
    pub kind: Option<Type>,
    /// Known fields.
    pub properties: BTreeMap<String, Schema>,
    /// What other fields hold, where these are entries of a map.
    pub additional: Option<Box<Schema>>,
    /// What a list holds.
    pub items: Option<Box<Schema>>,
    /// What is filled in when it is absent.
    pub default: Option<Value>,
    /// Whether null may be there.
    pub nullable: bool,
    /// Whether unknown fields are kept.
    pub preserve_unknown_fields: bool,
    /// Whether it is an integer or a string.
    pub int_or_string: bool,
    /// Whether it is a whole object, with `apiVersion`, `kind` and `metadata`.
    pub embedded_resource: bool,
    /// How a list is owned.
    pub list_type: ListType,
    /// The keys of a list that is a map.
    pub list_map_keys: Vec<String>,
    /// Whether an object is owned as a whole.
    pub atomic: bool,
    checks: Checks,
}

/// The way to a place of an object. It is text only when something is to be said of the place.
enum Trail<'a> {
    Root(&'a str),
    Field(&'a Trail<'a>, &'a str),
    Index(&'a Trail<'a>, usize),
}

impl Trail<'_> {
    fn is_root(&self) -> bool {
        matches!(self, Trail::Root(""))
    }
}

impl std::fmt::Display for Trail<'_> {
    fn fmt(&self, text: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trail::Root(place) => text.write_str(place),
            Trail::Field(above, name) if above.is_root() => text.write_str(name),
            Trail::Field(above, name) => write!(text, "{above}.{name}"),
            Trail::Index(above, index) => write!(text, "{above}[{index}]"),
        }
    }
}

impl From<&Trail<'_>> for String {
    fn from(trail: &Trail<'_>) -> Self {
        trail.to_string()
    }
}

/// JSON types of a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `object`
    Object,
    /// `array`
    Array,
    /// `string`
    String,
    /// `integer`
    Integer,
    /// `number`
    Number,
    /// `boolean`
    Boolean,
}

/// How a list is owned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// As a whole.
    #[default]
    Atomic,
    /// Each value for itself.
    Set,
    /// Each entry for itself, told apart by keys.
    Map,
}

/// What is checked beside the type.
#[derive(Clone, Debug, Default)]
struct Checks {
    required: Vec<String>,
    choices: Option<Vec<Value>>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    exclusive_minimum: bool,
    exclusive_maximum: bool,
    multiple_of: Option<f64>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    pattern: Option<Regex>,
    format: Option<String>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    unique_items: bool,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    not: Option<Box<Schema>>,
    /// Rules in CEL, which are not evaluated.
    rules: Vec<String>,
}

/// A schema cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot read schema at {path}: {problem}")]
pub struct SchemaError {
    /// Where, from the schema's root: `properties[spec].pattern`.
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

impl Schema {
    /// Reads the schema of a whole object, `openAPIV3Schema`: `apiVersion`, `kind` and `metadata` are always part of it.
    pub fn root(json: &Value) -> Result<Self, SchemaError> {
        let mut schema = Self::parse(json)?;
        schema.embedded_resource = true;
        Ok(schema)
    }

    /// Reads the schema of a part.
    pub fn parse(json: &Value) -> Result<Self, SchemaError> {
        Reader { json, path: String::new() }.schema()
    }

    /// Rules in CEL (`x-kubernetes-validations`) anywhere in the schema. They are not evaluated; say so.
    pub fn rules(&self) -> Vec<&str> {
        let parts = self.properties.values().chain(self.additional.as_deref()).chain(self.items.as_deref());
        self.checks.rules.iter().map(String::as_str).chain(parts.flat_map(Schema::rules)).collect()
    }

    /// Drops fields the schema does not know, and says which: `spec.foo`.
    pub fn prune(&self, value: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        self.prune_at(&Trail::Root(""), value, &mut dropped);
        dropped
    }

    /// Fills in defaults. Null where it may not be and a default is known counts as absent.
    pub fn fill_defaults(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (name, schema) in &self.properties {
                    let Some(default) = &schema.default else { continue };
                    let absent = match map.get(name) {
                        None => true,
                        Some(Value::Null) => !schema.nullable,
                        Some(_) => false,
                    };
                    if absent {
                        map.insert(name.clone(), default.clone());
                    }
                }
                for (name, value) in map {
                    if let Some(schema) = self.properties.get(name).or(self.additional.as_deref()) {
                        schema.fill_defaults(value);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    list.iter_mut().for_each(|item| items.fill_defaults(item));
                }
            }
            _ => {}
        }
    }

    fn prune_at(&self, path: &Trail<'_>, value: &mut Value, dropped: &mut Vec<String>) {
        match value {
            Value::Object(map) => self.prune_map(path, map, dropped),
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for (index, item) in list.iter_mut().enumerate() {
                        items.prune_at(&Trail::Index(path, index), item, dropped);
                    }
                }
            }
            _ => {}
        }
    }

    fn prune_map(&self, path: &Trail<'_>, map: &mut Map<String, Value>, dropped: &mut Vec<String>) {
        map.retain(|name, value| {
            let below = Trail::Field(path, name);
            if self.embedded_resource && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                return true;
            }
            match self.properties.get(name).or(self.additional.as_deref()) {
                Some(schema) => {
                    schema.prune_at(&below, value, dropped);
                    true
                }
                None if self.preserve_unknown_fields => true,
                None => {
                    dropped.push(below.to_string());
                    false
                }
            }
        });
    }
}

impl Type {
    /// As in schemas.
    pub fn as_str(self) -> &'static str {
        match self {
            Type::Object => "object",
            Type::Array => "array",
            Type::String => "string",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Type::Object, Type::Array, Type::String, Type::Integer, Type::Number, Type::Boolean]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// Reads a schema and knows where it is.
struct Reader<'a> {
    json: &'a Value,
    path: String,
}

impl<'a> Reader<'a> {
    fn schema(&self) -> Result<Schema, SchemaError> {
        if !self.json.is_object() {
            return Err(self.problem("must be an object"));
        }
        let kind = match self.text("type")? {
            None | Some("") => None,
            Some(text) => Some(Type::parse(text).ok_or_else(|| self.problem(&format!("unknown type \"{text}\"")))?),
        };
        let list_type = match self.text("x-kubernetes-list-type")? {
            None | Some("atomic") => ListType::Atomic,
            Some("set") => ListType::Set,
            Some("map") => ListType::Map,
            Some(other) => return Err(self.problem(&format!("unknown x-kubernetes-list-type \"{other}\""))),
        };
        Ok(Schema {
            kind,
            properties: self.properties()?,
            additional: self.additional()?,
            items: self.below("items").map(|reader| reader.schema()).transpose()?.map(Box::new),
            default: self.json.get("default").cloned(),
            nullable: self.flag("nullable")?,
            preserve_unknown_fields: self.flag("x-kubernetes-preserve-unknown-fields")?,
            int_or_string: self.flag("x-kubernetes-int-or-string")?,
            embedded_resource: self.flag("x-kubernetes-embedded-resource")?,
            list_type,
            list_map_keys: self.texts("x-kubernetes-list-map-keys")?,
            atomic: self.text("x-kubernetes-map-type")? == Some("atomic"),
            checks: self.checks()?,
        })
    }

    fn checks(&self) -> Result<Checks, SchemaError> {
        let pattern = match self.text("pattern")? {
            None | Some("") => None,
            Some(pattern) => Some(
                Regex::new(pattern)
                    .map_err(|error| self.problem(&format!("pattern must be a valid regular expression: {error}")))?,
            ),
        };
        let choices = match self.json.get("enum") {
            None | Some(Value::Null) => None,
            Some(Value::Array(choices)) => Some(choices.clone()),
            Some(_) => return Err(self.problem("enum must be a list")),
        };
        Ok(Checks {
            required: self.texts("required")?,
            choices,
            minimum: self.number("minimum")?,
            maximum: self.number("maximum")?,
            exclusive_minimum: self.flag("exclusiveMinimum")?,
            exclusive_maximum: self.flag("exclusiveMaximum")?,
            multiple_of: self.number("multipleOf")?,
            min_length: self.count("minLength")?,
            max_length: self.count("maxLength")?,
            pattern,
            format: self.text("format")?.filter(|format| !format.is_empty()).map(str::to_owned),
            min_items: self.count("minItems")?,
            max_items: self.count("maxItems")?,
            unique_items: self.flag("uniqueItems")?,
            min_properties: self.count("minProperties")?,
            max_properties: self.count("maxProperties")?,
            all_of: self.schemas("allOf")?,
            any_of: self.schemas("anyOf")?,
            one_of: self.schemas("oneOf")?,
            not: self.below("not").map(|reader| reader.schema()).transpose()?.map(Box::new),
            rules: self.rules(),
        })
    }

    fn properties(&self) -> Result<BTreeMap<String, Schema>, SchemaError> {
        match self.json.get("properties") {
            None | Some(Value::Null) => Ok(BTreeMap::new()),
            Some(Value::Object(properties)) => properties
                .iter()
                .map(|(name, json)| {
                    let reader = Reader { json, path: join(&self.path, &format!("properties[{name}]")) };
                    Ok((name.clone(), reader.schema()?))
                })
                .collect(),
            Some(_) => Err(self.problem("properties must be an object")),
        }
    }

    fn additional(&self) -> Result<Option<Box<Schema>>, SchemaError> {
        match self.json.get("additionalProperties") {
            None | Some(Value::Null | Value::Bool(false)) => Ok(None),
            Some(Value::Bool(true)) => {
                Ok(Some(Box::new(Schema { preserve_unknown_fields: true, ..Schema::default() })))
            }
            Some(json) => {
                let reader = Reader { json, path: join(&self.path, "additionalProperties") };
                Ok(Some(Box::new(reader.schema()?)))
            }
        }
    }

    fn schemas(&self, key: &str) -> Result<Vec<Schema>, SchemaError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => list
                .iter()
                .enumerate()
                .map(|(index, json)| Reader { json, path: join(&self.path, &format!("{key}[{index}]")) }.schema())
                .collect(),
            Some(_) => Err(self.problem(&format!("{key} must be a list"))),
        }
    }

    fn rules(&self) -> Vec<String> {
        let rules = self.json.get("x-kubernetes-validations").and_then(Value::as_array);
        let rules = rules.into_iter().flatten().filter_map(|rule| rule.get("rule")?.as_str());
        rules.map(str::to_owned).collect()
    }

    fn below(&self, key: &str) -> Option<Reader<'a>> {
        let json = self.json.get(key).filter(|json| !json.is_null())?;
        Some(Reader { json, path: join(&self.path, key) })
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, SchemaError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.problem(&format!("{key} must be a string"))),
        }
    }

    fn texts(&self, key: &str) -> Result<Vec<String>, SchemaError> {
        let problem = || self.problem(&format!("{key} must be a list of strings"));
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(list)) => {
                list.iter().map(|text| text.as_str().map(str::to_owned).ok_or_else(problem)).collect()
            }
            Some(_) => Err(problem()),
        }
    }

    fn flag(&self, key: &str) -> Result<bool, SchemaError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.problem(&format!("{key} must be a boolean"))),
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>, SchemaError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(number) => match number.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.problem(&format!("{key} must be a number"))),
            },
        }
    }

    fn count(&self, key: &str) -> Result<Option<u64>, SchemaError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(count) => match count.as_u64() {
                Some(count) => Ok(Some(count)),
                None => Err(self.problem(&format!("{key} must be a non-negative integer"))),
            },
        }
    }

    fn problem(&self, problem: &str) -> SchemaError {
        let path = if self.path.is_empty() { "openAPIV3Schema" } else { &self.path };
        SchemaError { path: path.to_owned(), problem: problem.to_owned() }
    }
}

fn join(path: &str, step: &str) -> String {
    if path.is_empty() { step.to_owned() } else { format!("{path}.{step}") }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// A schema with most things in it.
    pub(crate) fn widget() -> Schema {
        Schema::root(&json!({
            "type": "object",
            "required": ["spec"],
            "properties": {
                "spec": {
                    "type": "object",
                    "required": ["size"],
                    "properties": {
                        "size": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 10},
                        "color": {"type": "string", "enum": ["red", "green"], "default": "red"},
                        "name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 5, "minLength": 2},
                        "port": {"x-kubernetes-int-or-string": true},
                        "when": {"type": "string", "format": "date-time", "nullable": true},
                        "tags": {"type": "array", "x-kubernetes-list-type": "set", "maxItems": 3,
                            "items": {"type": "string"}},
                        "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                            "items": {"type": "object", "required": ["id"], "properties": {
                                "id": {"type": "string"}, "weight": {"type": "number", "default": 1}}}},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                            "closed": {"type": "object"}}},
                        "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {
                            "spec": {"type": "object"}}},
                        "choice": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                            "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
                        "limits": {"type": "object", "x-kubernetes-map-type": "atomic",
                            "additionalProperties": {"type": "integer"}}
                    }
                },
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}
            }
        }))
        .unwrap()
    }

    #[test]
    fn unknown_fields_are_dropped_and_named() {
        let mut value = json!({
            "apiVersion": "a/v1", "kind": "Widget", "metadata": {"name": "w", "anything": 1}, "extra": 1,
            "spec": {"size": 1, "sise": 2, "parts": [{"id": "a", "x": 1}], "labels": {"a": "b"},
                "open": {"any": {"thing": 1}, "closed": {"x": 1}},
                "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"y": 1}, "z": 1}},
            "status": {"a": 1}
        });
        let dropped = widget().prune(&mut value);
        assert_eq!(
            dropped,
            ["extra", "spec.open.closed.x", "spec.parts[0].x", "spec.sise", "spec.template.spec.y", "spec.template.z"]
        );
        assert_eq!(
            value,
            json!({
                "apiVersion": "a/v1", "kind": "Widget", "metadata": {"name": "w", "anything": 1},
                "spec": {"size": 1, "parts": [{"id": "a"}], "labels": {"a": "b"},
                    "open": {"any": {"thing": 1}, "closed": {}},
                    "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}},
                "status": {"a": 1}
            })
        );
    }

    #[test]
    fn defaults_are_filled_in() {
        let mut value = json!({"spec": {"size": 1, "color": null, "parts": [{"id": "a"}, {"id": "b", "weight": 2}]}});
        widget().fill_defaults(&mut value);
        assert_eq!(
            value,
            json!({"spec": {"size": 1, "color": "red", "parts": [{"id": "a", "weight": 1}, {"id": "b", "weight": 2}]}})
        );
    }

    #[test]
    fn what_is_no_schema_says_where() {
        for (schema, message) in [
            (json!(1), "cannot read schema at openAPIV3Schema: must be an object"),
            (
                json!({"properties": {"spec": {"type": "thing"}}}),
                "cannot read schema at properties[spec]: unknown type \"thing\"",
            ),
            (
                json!({"items": {"minLength": -1}}),
                "cannot read schema at items: minLength must be a non-negative integer",
            ),
        ] {
            assert_eq!(Schema::parse(&schema).unwrap_err().to_string(), message);
        }
        assert!(Schema::parse(&json!({"pattern": "("})).is_err());
    }

    proptest! {
        #[test]
        fn any_schema_is_read_or_refused(schema in crate::path::tests::any_json(), value in crate::path::tests::any_json()) {
            check_structural(&schema, "schema");
            if let Ok(schema) = Schema::root(&schema) {
                let mut value = value;
                schema.prune(&mut value);
                prop_assert!(schema.prune(&mut value).is_empty());
                schema.fill_defaults(&mut value);
                schema.validate(&value);
            }
        }

        #[test]
        fn any_value_is_checked(value in crate::path::tests::any_json()) {
            let mut value = json!({"spec": value});
            widget().prune(&mut value);
            prop_assert!(widget().prune(&mut value).is_empty());
            widget().fill_defaults(&mut value);
            let filled = value.clone();
            widget().fill_defaults(&mut value);
            prop_assert_eq!(&value, &filled);
            widget().validate(&value);
        }
    }
}
