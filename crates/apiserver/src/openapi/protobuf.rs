//! OpenAPI v2 in protobuf: the messages of `openapiv2/OpenAPIv2.proto` of google/gnostic, which kubectl reads.
//!
//! Only what the documents here use is written. The numbers are those of the fields in that file.

use serde_json::{Map, Value};

use super::v2;

/// The document in protobuf.
#[derive(Default)]
pub(super) struct Writer {
    paths: Vec<u8>,
    definitions: Vec<u8>,
}

impl v2::Write for Writer {
    fn path(&mut self, path: &str, item: &Value) {
        message(&mut self.paths, 2, |named| {
            text(named, 1, path);
            message(named, 2, |out| path_item(out, item));
        });
    }

    fn definition(&mut self, name: &str, value: &Value) {
        message(&mut self.definitions, 1, |named| {
            text(named, 1, name);
            message(named, 2, |out| schema(out, value));
        });
    }

    fn finish(self, title: &str, version: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.paths.len() + self.definitions.len() + 64);
        text(&mut out, 1, "2.0");
        message(&mut out, 2, |info| {
            text(info, 1, title);
            text(info, 2, version);
        });
        bytes(&mut out, 8, &self.paths);
        bytes(&mut out, 9, &self.definitions);
        out
    }
}

fn path_item(out: &mut Vec<u8>, item: &Value) {
    for (method, field) in [("get", 2), ("put", 3), ("post", 4), ("delete", 5), ("patch", 8)] {
        if item[method].is_object() {
            message(out, field, |out| operation(out, &item[method]));
        }
    }
    items(&item["parameters"]).for_each(|one| message(out, 9, |out| parameters_item(out, one)));
}

fn operation(out: &mut Vec<u8>, operation: &Value) {
    let texts = |out: &mut Vec<u8>, field, list: &Value| {
        items(list).filter_map(Value::as_str).for_each(|one| text(out, field, one));
    };
    texts(out, 1, &operation["tags"]);
    for (name, field) in [("description", 3), ("operationId", 5)] {
        text(out, field, operation[name].as_str().unwrap_or_default());
    }
    texts(out, 6, &operation["produces"]);
    texts(out, 7, &operation["consumes"]);
    items(&operation["parameters"]).for_each(|one| message(out, 8, |out| parameters_item(out, one)));
    message(out, 9, |out| {
        for (code, response) in operation["responses"].as_object().into_iter().flatten() {
            message(out, 1, |named| {
                text(named, 1, code);
                message(named, 2, |value| message(value, 1, |out| self::response(out, response)));
            });
        }
    });
    texts(out, 10, &operation["schemes"]);
    extensions(out, 13, operation.as_object());
}

fn response(out: &mut Vec<u8>, response: &Value) {
    text(out, 1, response["description"].as_str().unwrap_or_default());
    if response["schema"].is_object() {
        message(out, 2, |item| message(item, 1, |out| schema(out, &response["schema"])));
    }
}

/// A parameter, in the wrappings that say what sort it is.
fn parameters_item(out: &mut Vec<u8>, parameter: &Value) {
    let word = |field: &str| parameter[field].as_str().unwrap_or_default();
    message(out, 1, |out| match word("in") {
        "body" => message(out, 1, |out| {
            text(out, 1, word("description"));
            text(out, 2, word("name"));
            text(out, 3, "body");
            boolean(out, 4, &parameter["required"]);
            message(out, 5, |out| schema(out, &parameter["schema"]));
        }),
        place => message(out, 2, |out| {
            let (sort, unique) = if place == "path" { (4, 19) } else { (3, 20) };
            let kind = if place == "path" { 5 } else { 6 };
            message(out, sort, |out| {
                boolean(out, 1, &parameter["required"]);
                text(out, 2, place);
                text(out, 3, word("description"));
                text(out, 4, word("name"));
                text(out, kind, word("type"));
                boolean(out, unique, &parameter["uniqueItems"]);
            });
        }),
    });
}

fn schema(out: &mut Vec<u8>, value: &Value) {
    let word = |field: &str| value[field].as_str().unwrap_or_default();
    for (name, field) in [("$ref", 1), ("format", 2), ("title", 3), ("description", 4), ("pattern", 13)] {
        text(out, field, word(name));
    }
    for (name, field) in [("multipleOf", 6), ("maximum", 7), ("minimum", 9)] {
        if let Some(number) = value[name].as_f64() {
            key(out, field, 1);
            out.extend(number.to_le_bytes());
        }
    }
    let flags = [("exclusiveMaximum", 8), ("exclusiveMinimum", 10), ("uniqueItems", 16), ("readOnly", 27)];
    flags.iter().for_each(|(name, field)| boolean(out, *field, &value[*name]));
    let counts = [
        ("maxLength", 11),
        ("minLength", 12),
        ("maxItems", 14),
        ("minItems", 15),
        ("maxProperties", 17),
        ("minProperties", 18),
    ];
    for (name, field) in counts {
        if let Some(number) = value[name].as_u64() {
            key(out, field, 0);
            varint(out, number);
        }
    }
    items(&value["required"]).filter_map(Value::as_str).for_each(|one| text(out, 19, one));
    items(&value["enum"]).for_each(|one| message(out, 20, |out| any(out, one)));
    match &value["additionalProperties"] {
        Value::Bool(allowed) => message(out, 21, |out| {
            key(out, 2, 0);
            varint(out, u64::from(*allowed));
        }),
        Value::Object(_) => message(out, 21, |out| message(out, 1, |out| schema(out, &value["additionalProperties"]))),
        _ => {}
    }
    if !word("type").is_empty() {
        message(out, 22, |out| text(out, 1, word("type")));
    }
    if value["items"].is_object() {
        message(out, 23, |out| message(out, 1, |out| schema(out, &value["items"])));
    }
    if let Some(fields) = value["properties"].as_object() {
        message(out, 25, |out| {
            for (name, below) in fields {
                message(out, 1, |named| {
                    text(named, 1, name);
                    message(named, 2, |out| schema(out, below));
                });
            }
        });
    }
    extensions(out, 31, value.as_object());
}

fn extensions(out: &mut Vec<u8>, field: u32, map: Option<&Map<String, Value>>) {
    for (name, value) in map.into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        message(out, field, |named| {
            text(named, 1, name);
            message(named, 2, |out| any(out, value));
        });
    }
}

/// Any value is written in YAML, of which JSON is a part.
fn any(out: &mut Vec<u8>, value: &Value) {
    text(out, 2, &value.to_string());
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn boolean(out: &mut Vec<u8>, field: u32, value: &Value) {
    if *value == Value::Bool(true) {
        key(out, field, 0);
        varint(out, 1);
    }
}

fn text(out: &mut Vec<u8>, field: u32, text: &str) {
    if !text.is_empty() {
        bytes(out, field, text.as_bytes());
    }
}

fn message(out: &mut Vec<u8>, field: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    write(&mut inner);
    bytes(out, field, &inner);
}

fn bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    key(out, field, 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn key(out: &mut Vec<u8>, field: u32, wire: u32) {
    varint(out, u64::from(field << 3 | wire));
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_is_written_field_by_field() {
        let mut out = Vec::new();
        schema(&mut out, &json!({"type": "string", "x-a": {"b": 1}, "required": ["r"]}));
        let type_item = [0xb2, 1, 8, 10, 6, b's', b't', b'r', b'i', b'n', b'g'];
        let required = [0x9a, 1, 1, b'r'];
        let mut extension = vec![0xfa, 1, 16, 10, 3];
        extension.extend(b"x-a");
        extension.extend([18, 9, 18, 7]);
        extension.extend(b"{\"b\":1}");
        assert_eq!(out, [&required[..], &type_item, &extension].concat());
    }
}
