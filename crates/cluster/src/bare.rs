//! Objects as they are followed and written by machines: JSON, read in one go.
//!
//! `DynamicObject` reads each object into a buffer (serde's `flatten`), from there into typed metadata and a rest, and is
//! put together again whenever JSON is wanted. Who follows thousands of objects pays that for each of their changes.

use std::borrow::Cow;
use std::fmt;

use kube::api::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

/// An object without the books of who manages which field: they are half of most objects, and only `kubectl` and plans ask.
#[derive(Clone, Debug)]
pub struct Bare {
    /// The object.
    pub value: Value,
    /// Of it only what watching asks for.
    metadata: ObjectMeta,
}

impl<'de> Deserialize<'de> for Bare {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        let value = reader.deserialize_map(Fields { is_metadata: false })?;
        let revision = value["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        Ok(Self { value, metadata: ObjectMeta { resource_version: revision, ..ObjectMeta::default() } })
    }
}

/// The fields of an object, or of its metadata.
struct Fields {
    is_metadata: bool,
}

impl<'de> DeserializeSeed<'de> for Fields {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields {
    type Value = Value;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut fields = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let value = match (self.is_metadata, name.as_str()) {
                (false, "metadata") => entries.next_value_seed(Fields { is_metadata: true })?,
                (true, "managedFields") => {
                    entries.next_value::<IgnoredAny>()?;
                    continue;
                }
                _ => entries.next_value()?,
            };
            fields.insert(name, value);
        }
        if !self.is_metadata && !fields.contains_key("metadata") {
            return Err(A::Error::missing_field("metadata"));
        }
        Ok(Value::Object(fields))
    }
}

impl kube::Resource for Bare {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        of.api_version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::Resource as _;
    use serde_json::json;

    use super::*;

    #[test]
    fn all_but_the_books_is_read() {
        let text = r#"{"kind":"Thing","spec":{"managedFields":[1],"metadata":{"a":[null]}},
            "metadata":{"name":"a","resourceVersion":"7","managedFields":[{"manager":"x"}]}}"#;
        let bare: Bare = serde_json::from_str(text).unwrap();
        assert_eq!(
            bare.value,
            json!({"kind": "Thing", "spec": {"managedFields": [1], "metadata": {"a": [null]}},
                "metadata": {"name": "a", "resourceVersion": "7"}})
        );
        assert_eq!(bare.meta().resource_version.as_deref(), Some("7"));
        for wrong in ["[]", "{}", r#"{"metadata": 1}"#] {
            assert!(serde_json::from_str::<Bare>(wrong).is_err(), "{wrong}");
        }
    }
}
