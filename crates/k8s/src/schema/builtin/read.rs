//! Reads an object as the type it claims to be, and says in Kubernetes' words what does not fit.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::{Definition, OBJECT_META, Place, Types, What, types};
use crate::quantity::Quantity;

/// Reads an object as a built-in type: fields it does not have are taken out and named (`spec.foo`,
/// `spec.containers[0].imag`), nulls are taken out, amounts are written as Kubernetes writes them.
///
/// # Errors
///
/// When a field holds another type. The words are those of Go's JSON decoder, since clients know them.
pub fn read(definition: &Definition, object: &mut Value) -> Result<Vec<String>, String> {
    let mut reader = Reader { types: types(), unknown: Vec::new() };
    let owner = go_name(&definition.name).1;
    reader.place(&definition.place, owner, object, &At { up: None, step: Step::Root })?;
    Ok(reader.unknown)
}

/// Reads only the metadata of an object: the part of a custom resource that is no matter of its schema.
///
/// # Errors
///
/// When a field holds another type.
pub fn read_metadata(object: &mut Value) -> Result<Vec<String>, String> {
    let mut reader = Reader { types: types(), unknown: Vec::new() };
    let root = At { up: None, step: Step::Root };
    if let (Some(metadata), Some(definition)) = (object.get_mut("metadata"), types().get(OBJECT_META)) {
        let at = At { up: Some(&root), step: Step::Name("metadata") };
        reader.place(&definition.place, "ObjectMeta", metadata, &at)?;
    }
    Ok(reader.unknown)
}

struct Reader {
    types: &'static Types,
    unknown: Vec<String>,
}

/// The way to a place.
struct At<'a> {
    up: Option<&'a At<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Root,
    /// A field.
    Name(&'a str),
    /// An entry of a map.
    Key(&'a str),
    /// An entry of a list.
    Index(usize),
}

impl At<'_> {
    /// `spec.containers[0].name`
    fn path(&self) -> String {
        let mut path = self.up.map(At::path).unwrap_or_default();
        match self.step {
            Step::Root => {}
            Step::Name(name) | Step::Key(name) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(name);
            }
            Step::Index(index) => path.push_str(&format!("[{index}]")),
        }
        path
    }

    /// `spec.containers.name`, as Go's decoder says it.
    fn fields(&self) -> String {
        let path = self.up.map(At::fields).unwrap_or_default();
        match self.step {
            Step::Name(name) if path.is_empty() => name.to_owned(),
            Step::Name(name) => format!("{path}.{name}"),
            _ => path,
        }
    }
}

impl Reader {
    fn place(&mut self, place: &Place, owner: &str, value: &mut Value, at: &At<'_>) -> Result<(), String> {
        let right = match (&place.what, &*value) {
            (What::Any, _) | (_, Value::Null) => return Ok(()),
            (What::Is(index), _) => {
                let definition = self.types.at(*index);
                return self.named(definition, place, owner, value, at);
            }
            (What::Object, found) => found.is_object(),
            (What::Text, found) => found.is_string(),
            (What::Boolean, found) => found.is_boolean(),
            (What::Number, found) => found.is_number(),
            (What::Int32, found) => found.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
            (What::Int64, found) => found.is_i64(),
            (What::Bytes, Value::String(text)) => {
                if let Err(error) = base64::engine::general_purpose::STANDARD.decode(text) {
                    let offset = match error {
                        base64::DecodeError::InvalidByte(offset, _)
                        | base64::DecodeError::InvalidLastSymbol(offset, _) => offset,
                        _ => text.len(),
                    };
                    return Err(format!("illegal base64 data at input byte {offset}"));
                }
                true
            }
            (What::Time, Value::String(text)) => {
                if text.parse::<jiff::Timestamp>().is_err() {
                    let text = Value::from(text.as_str());
                    return Err(format!(
                        "parsing time {text} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text} as \"2006\""
                    ));
                }
                true
            }
            (What::IntOrString, Value::String(_)) => true,
            (What::IntOrString, found) => {
                if found.as_i64().is_none_or(|number| i32::try_from(number).is_err()) {
                    return Err(format!("json: cannot unmarshal {} into Go value of type int32", json_name(found)));
                }
                true
            }
            (What::Quantity, found) => {
                let text = match found {
                    Value::String(text) => text.trim().to_owned(),
                    other => other.to_string(),
                };
                let quantity = Quantity::parse(&text).map_err(|error| error.to_string())?;
                *value = Value::from(quantity.to_string());
                return Ok(());
            }
            (What::Fields(_), Value::Object(_))
            | (What::List(_), Value::Array(_))
            | (What::Map(_), Value::Object(_)) => true,
            _ => false,
        };
        if !right {
            return Err(self.refuse(place, owner, value, at));
        }
        match (&place.what, value) {
            (What::Fields(_), Value::Object(map)) => self.fields(place, owner, map, at),
            (What::List(item), Value::Array(list)) => {
                for (index, value) in list.iter_mut().enumerate() {
                    self.place(item, owner, value, &At { up: Some(at), step: Step::Index(index) })?;
                }
                Ok(())
            }
            (What::Map(entry), Value::Object(map)) => {
                for (key, value) in map.iter_mut() {
                    self.place(entry, owner, value, &At { up: Some(at), step: Step::Key(key) })?;
                    if value.is_null() && matches!(entry.what, What::Text) {
                        *value = Value::from("");
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn named(
        &mut self,
        definition: &Definition,
        place: &Place,
        owner: &str,
        value: &mut Value,
        at: &At<'_>,
    ) -> Result<(), String> {
        match (&definition.place.what, &*value) {
            (What::Fields(_), Value::Object(_)) => {
                self.place(&definition.place, go_name(&definition.name).1, value, at)
            }
            // What is wrong is the type of the field, not of something in it.
            (What::Fields(_) | What::Object | What::Text | What::List(_), _)
                if !fits(&definition.place.what, value) =>
            {
                Err(self.refuse(place, owner, value, at))
            }
            _ => self.place(&definition.place, owner, value, at),
        }
    }

    fn fields(&mut self, place: &Place, owner: &str, map: &mut Map<String, Value>, at: &At<'_>) -> Result<(), String> {
        let mut failed = None;
        map.retain(|name, value| {
            if failed.is_some() {
                return true;
            }
            let here = At { up: Some(at), step: Step::Name(name) };
            let Some(field) = place.what.field(name) else {
                self.unknown.push(here.path());
                return false;
            };
            failed = self.place(&field.place, owner, value, &here).err();
            failed.is_some() || !value.is_null()
        });
        failed.map_or(Ok(()), Err)
    }

    fn refuse(&self, place: &Place, owner: &str, value: &Value, at: &At<'_>) -> String {
        let (found, wanted) = (json_name(value), self.go_type(place));
        match at.fields() {
            fields if fields.is_empty() => format!("json: cannot unmarshal {found} into Go value of type {wanted}"),
            fields => format!("json: cannot unmarshal {found} into Go struct field {owner}.{fields} of type {wanted}"),
        }
    }

    fn go_type(&self, place: &Place) -> String {
        match &place.what {
            What::Any => "interface {}".into(),
            What::Object => "map[string]interface {}".into(),
            What::Text => "string".into(),
            What::Bytes => "[]uint8".into(),
            What::Time => "v1.Time".into(),
            What::Int32 => "int32".into(),
            What::Int64 => "int64".into(),
            What::Number => "float64".into(),
            What::Boolean => "bool".into(),
            What::IntOrString => "intstr.IntOrString".into(),
            What::Quantity => "resource.Quantity".into(),
            What::Fields(_) => "struct".into(),
            What::List(item) => format!("[]{}", self.go_type(item)),
            What::Map(entry) => format!("map[string]{}", self.go_type(entry)),
            What::Is(index) => {
                let (package, name) = go_name(&self.types.at(*index).name);
                format!("{package}.{name}")
            }
        }
    }
}

fn fits(what: &What, value: &Value) -> bool {
    match what {
        What::Fields(_) | What::Object => value.is_object() || value.is_null(),
        What::Text => value.is_string() || value.is_null(),
        What::List(_) => value.is_array() || value.is_null(),
        _ => true,
    }
}

/// Package and name of a Go type: `v1` and `DeploymentSpec` of `io.k8s.api.apps.v1.DeploymentSpec`.
fn go_name(name: &str) -> (&str, &str) {
    let (package, name) = name.rsplit_once('.').unwrap_or(("", name));
    (package.rsplit('.').next().unwrap_or_default(), name)
}

fn json_name(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(number) if number.is_f64() || number.as_i64().is_none_or(|n| i32::try_from(n).is_err()) => {
            format!("number {number}")
        }
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(_) => "array".into(),
        Value::Object(_) => "object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment() -> &'static Definition {
        types().of_kind("apps", "v1", "Deployment").unwrap()
    }

    #[test]
    fn what_is_not_known_is_named_and_taken_out() {
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "extra": 1,
            "metadata": {"name": "a", "creationTimestamp": null, "label": {}},
            "spec": {"replcas": 3, "template": {"spec": {"containers": [
                {"name": "c", "imag": "x", "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}}}]}}}});
        let unknown = read(deployment(), &mut object).unwrap();
        assert_eq!(unknown, ["extra", "metadata.label", "spec.replcas", "spec.template.spec.containers[0].imag"]);
        assert_eq!(
            object,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
                "spec": {"template": {"spec": {"containers": [
                    {"name": "c", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}}}})
        );
    }

    #[test]
    fn wrong_types_are_refused_in_gos_words() {
        let cases = [
            json!({"spec": {"replicas": "3"}}),
            json!({"spec": {"replicas": 1.5}}),
            json!({"spec": []}),
            json!({"metadata": {"labels": {"a": true}}}),
            json!({"metadata": {"labels": "a"}}),
            json!({"metadata": {"creationTimestamp": "yesterday"}}),
            json!({"spec": {"template": {"spec": {"containers": {}}}}}),
            json!({"spec": {"template": {"spec": {"containers": [{"env": [{"value": 1}]}]}}}}),
            json!({"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}}}),
            json!({"spec": {"strategy": {"rollingUpdate": {"maxSurge": true}}}}),
        ];
        let said: Vec<String> =
            cases.into_iter().map(|mut object| read(deployment(), &mut object).unwrap_err()).collect();
        insta::assert_snapshot!(said.join("\n"), @r#"
        json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32
        json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32
        json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec
        json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels of type string
        json: cannot unmarshal string into Go struct field ObjectMeta.metadata.labels of type map[string]string
        parsing time "yesterday" as "2006-01-02T15:04:05Z07:00": cannot parse "yesterday" as "2006"
        json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container
        json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string
        quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
        json: cannot unmarshal bool into Go value of type int32
        "#);
        let secret = types().of_kind("", "v1", "Secret").unwrap();
        assert_eq!(read(secret, &mut json!({"data": {"a": "%"}})).unwrap_err(), "illegal base64 data at input byte 0");
    }

    #[test]
    fn metadata_of_custom_resources() {
        let mut object = json!({"metadata": {"name": "a", "nmae": "b"}, "spec": 1});
        assert_eq!(read_metadata(&mut object).unwrap(), ["metadata.nmae"]);
        assert_eq!(object, json!({"metadata": {"name": "a"}, "spec": 1}));
        assert!(read_metadata(&mut json!({"metadata": {"annotations": {"a": 1}}})).is_err());
    }

    proptest::proptest! {
        #[test]
        fn reading_twice_is_reading_once(spec in crate::path::tests::any_json(), metadata in crate::path::tests::any_json()) {
            let mut object = json!({"metadata": metadata, "spec": spec});
            if read(deployment(), &mut object).is_ok() {
                let once = object.clone();
                proptest::prop_assert_eq!(read(deployment(), &mut object).unwrap(), Vec::<String>::new());
                proptest::prop_assert_eq!(once, object);
            }
        }
    }
}
