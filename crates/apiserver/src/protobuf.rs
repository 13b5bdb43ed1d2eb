//! Kubernetes' protobuf: `k8s\0`, then a `runtime.Unknown` that says what its bytes are.
//!
//! Inside the server everything is JSON; a request in protobuf becomes JSON at the door, and an answer becomes
//! protobuf only for a client that accepts nothing else. The law is the encoding that the Go types in `k8s.io/api`
//! describe with their `protobuf` and `json` tags: `types.txt` holds what those say (`cargo xtask protobuf` writes it).
//! It is not made of the published `.proto` files, because those do not say which fields are pointers: on the wire a
//! pointer to zero and a plain zero look the same, and only the first is a value in JSON.
//!
//! The table is text, part of the program, and read at the first request in protobuf; a server that never sees one pays
//! nothing. Bytes from outside are never trusted: nesting is bounded by [`DEPTH`], lengths by the body's own.

use std::collections::HashMap;
use std::sync::OnceLock;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::route::Ask;

pub(crate) mod answer;
pub(crate) mod special;
mod wire;

use wire::{Reader, Wire};

/// The media type.
pub const MEDIA: &str = "application/vnd.kubernetes.protobuf";
/// What every document begins with.
pub(crate) const MAGIC: &[u8] = b"k8s\0";
/// How deep messages may be nested: as deep as protobuf's own readers go.
const DEPTH: usize = 100;

/// Why a document cannot be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The bytes are not what they should be.
    #[error("cannot read protobuf: {0}")]
    Malformed(&'static str),
    /// Nobody here knows this kind.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownKind {
        /// What it says it is.
        kind: String,
        /// Of which version.
        api_version: String,
    },
    /// A field does not hold what it should.
    #[error("cannot write {field:?} as protobuf: it does not hold what its type says")]
    Misfit {
        /// The field.
        field: &'static str,
    },
}

/// Reads a document with its `k8s\0` into the JSON that Kubernetes makes of the same object.
///
/// # Errors
///
/// When it is malformed, or of a kind that is not built in.
pub fn decode(document: &[u8]) -> Result<Value, Error> {
    decode_at(document, 0)
}

/// The body of a request in JSON, whatever it was sent in.
///
/// # Errors
///
/// When it is protobuf and cannot be read, or of a kind that has no protobuf form.
pub(crate) fn body(ask: &mut Ask, body: Bytes) -> Result<Bytes, Failure> {
    if ask.content_type() != MEDIA && !body.starts_with(MAGIC) {
        return Ok(body);
    }
    if body.is_empty() {
        return Ok(body);
    }
    // As on Kubernetes: custom resources are never spoken of in protobuf.
    let options = ask.verb.starts_with("delete");
    if (ask.resource.custom.is_some() && !options) || ask.verb == "patch" {
        return Err(Failure::unsupported_media_type(MEDIA, "application/json"));
    }
    let object = decode(&body).map_err(|error| match error {
        Error::UnknownKind { .. } => Failure::bad_request(error.to_string()),
        _ => Failure::bad_request(format!("the body of the request cannot be read: {error}")),
    })?;
    ask.headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    serde_json::to_vec(&object).map(Bytes::from).map_err(Failure::internal)
}

fn decode_at(document: &[u8], depth: usize) -> Result<Value, Error> {
    let rest = document.strip_prefix(MAGIC).ok_or(Error::Malformed("it does not begin with k8s and a zero"))?;
    let (mut type_meta, mut raw, mut encoding, mut content) = (&b""[..], &b""[..], &b""[..], &b""[..]);
    let mut reader = Reader::new(rest);
    while let Some((number, value)) = reader.next()? {
        match (number, value) {
            (1, Wire::Bytes(bytes)) => type_meta = bytes,
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3, Wire::Bytes(bytes)) => encoding = bytes,
            (4, Wire::Bytes(bytes)) => content = bytes,
            _ => {}
        }
    }
    if !encoding.is_empty() {
        return Err(Error::Malformed("its content has an encoding of its own"));
    }
    let (mut api_version, mut kind) = (String::new(), String::new());
    let mut reader = Reader::new(type_meta);
    while let Some((number, value)) = reader.next()? {
        match (number, value) {
            (1, Wire::Bytes(bytes)) => api_version = wire::text(bytes),
            (2, Wire::Bytes(bytes)) => kind = wire::text(bytes),
            _ => {}
        }
    }
    match content {
        b"" | b"application/vnd.kubernetes.protobuf" => {}
        b"application/json" => {
            return serde_json::from_slice(raw).map_err(|_| Error::Malformed("its content is not the JSON it says"));
        }
        _ => return Err(Error::Malformed("its content is of another type")),
    }
    let table = Table::get();
    let Some(id) = table.kind(&api_version, &kind) else { return Err(Error::UnknownKind { kind, api_version }) };
    let mut object = Map::new();
    table.read(id, raw, &mut object, depth + 1)?;
    object.insert("apiVersion".into(), Value::String(api_version));
    object.insert("kind".into(), Value::String(kind));
    Ok(Value::Object(object))
}

/// Writes an object as a document with its `k8s\0`.
///
/// # Errors
///
/// When it is of a kind that is not built in, or does not have that kind's shape.
pub fn encode(object: &Value) -> Result<Vec<u8>, Error> {
    let text = |field: &str| object[field].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let table = Table::get();
    let unknown = || Error::UnknownKind { kind: kind.to_owned(), api_version: api_version.to_owned() };
    let id = table.kind(api_version, kind).ok_or_else(unknown)?;
    let mut type_meta = Vec::new();
    wire::put_bytes(&mut type_meta, 1, api_version.as_bytes());
    wire::put_bytes(&mut type_meta, 2, kind.as_bytes());
    let mut raw = Vec::new();
    let empty = Map::new();
    table.write(id, object.as_object().unwrap_or(&empty), &mut raw)?;
    let mut document = MAGIC.to_vec();
    wire::put_bytes(&mut document, 1, &type_meta);
    wire::put_bytes(&mut document, 2, &raw);
    wire::put_bytes(&mut document, 3, b"");
    wire::put_bytes(&mut document, 4, b"");
    Ok(document)
}

/// An event of a watch as one frame: four bytes of length, then a `WatchEvent` around a whole document.
///
/// # Errors
///
/// As [`encode`].
pub(crate) fn frame(event: &Value) -> Result<Bytes, Error> {
    let mut object = Vec::new();
    wire::put_bytes(&mut object, 1, &encode(&event["object"])?);
    let mut message = Vec::with_capacity(object.len() + 16);
    wire::put_bytes(&mut message, 1, event["type"].as_str().unwrap_or_default().as_bytes());
    wire::put_bytes(&mut message, 2, &object);
    let length = u32::try_from(message.len()).map_err(|_| Error::Malformed("an event is too large"))?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&message);
    Ok(Bytes::from(frame))
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Text,
    Bytes,
    Int,
    Bool,
    Double,
    Message(u16),
    Special(special::Special),
}

/// A field of a message.
#[derive(Debug, Clone, Copy)]
struct Field {
    number: u32,
    name: &'static str,
    pointer: bool,
    omit_empty: bool,
    omit_zero: bool,
    repeated: bool,
    map: bool,
    inline: bool,
    of: Type,
}

/// All types.
struct Table {
    kinds: HashMap<(&'static str, &'static str), u16>,
    messages: Vec<Vec<Field>>,
    /// The one type that special ones refer to.
    schema: u16,
}

impl Table {
    fn get() -> &'static Self {
        static TABLE: OnceLock<Table> = OnceLock::new();
        TABLE.get_or_init(|| Self::parse(include_str!("protobuf/types.txt")))
    }

    /// Reads the table. It is part of the program, and a test reads it whole: what cannot be read is left out.
    fn parse(text: &'static str) -> Self {
        let mut table = Self { kinds: HashMap::new(), messages: Vec::new(), schema: 0 };
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        for line in lines {
            let Some((name, fields)) = line.split_once(':') else {
                let mut parts = line.split(' ');
                if let (Some(version), Some(kind), Some(id)) = (parts.next(), parts.next(), parts.next())
                    && let Ok(id) = id.parse()
                {
                    table.kinds.insert((version, kind), id);
                }
                continue;
            };
            if name == "apiextensions/v1.JSONSchemaProps" {
                table.schema = u16::try_from(table.messages.len()).unwrap_or_default();
            }
            let fields = fields.trim().split(", ").filter(|field| !field.is_empty());
            table.messages.push(fields.filter_map(Field::parse).collect());
        }
        table
    }

    /// Types of `meta/v1`, such as `DeleteOptions`, are sent in the name of any group.
    fn kind(&self, api_version: &str, kind: &str) -> Option<u16> {
        self.kinds.get(&(api_version, kind)).or_else(|| self.kinds.get(&("*", kind))).copied()
    }

    fn fields(&self, id: u16) -> &[Field] {
        self.messages.get(usize::from(id)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Reads a message into `into`, where an earlier part of it may be already.
    fn read(&self, id: u16, bytes: &[u8], into: &mut Map<String, Value>, depth: usize) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(Error::Malformed("it is nested too deeply"));
        }
        let fields = self.fields(id);
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next()? {
            let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
            if field.inline {
                if let Type::Message(inner) = field.of {
                    self.read(inner, wire.bytes()?, into, depth + 1)?;
                }
            } else if field.map {
                let (key, value) = self.entry(field, wire.bytes()?, depth + 1)?;
                let map = into.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Some(map) = map.as_object_mut()
                    && !value.is_null()
                {
                    map.insert(key, value);
                }
            } else if field.repeated {
                let list = into.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                let Some(list) = list.as_array_mut() else { continue };
                match (field.of, wire) {
                    (Type::Int | Type::Bool | Type::Double, Wire::Bytes(packed)) => {
                        let mut reader = Reader::new(packed);
                        while !reader.is_empty() {
                            let one = if field.of == Type::Double { reader.fixed64()? } else { reader.varint()? };
                            list.push(scalar(field.of, one));
                        }
                    }
                    _ => list.push(self.value(field.of, wire, None, depth)?),
                }
            } else {
                let before = into.remove(field.name);
                let value = self.value(field.of, wire, before, depth)?;
                if !field.leaves_out(&value) {
                    into.insert(field.name.to_owned(), value);
                }
            }
        }
        Ok(())
    }

    fn value(&self, of: Type, wire: Wire<'_>, before: Option<Value>, depth: usize) -> Result<Value, Error> {
        Ok(match of {
            Type::Text => Value::String(wire::text(wire.bytes()?)),
            Type::Bytes => Value::String(special::to_base64(wire.bytes()?)),
            Type::Int | Type::Bool => scalar(of, wire.varint()?),
            Type::Double => scalar(of, wire.fixed64()?),
            Type::Message(id) => {
                // A message that comes in two parts is one.
                let mut object = match before {
                    Some(Value::Object(object)) => object,
                    _ => Map::new(),
                };
                self.read(id, wire.bytes()?, &mut object, depth + 1)?;
                Value::Object(object)
            }
            Type::Special(special) => special.read(self, wire.bytes()?, depth + 1)?,
        })
    }

    /// What a value is that was not sent.
    fn zero(of: Type) -> Value {
        match of {
            Type::Text | Type::Bytes => json!(""),
            Type::Int => json!(0),
            Type::Bool => json!(false),
            Type::Double => json!(0),
            Type::Message(_) => json!({}),
            Type::Special(special) => special.zero(),
        }
    }

    fn entry(&self, field: &Field, bytes: &[u8], depth: usize) -> Result<(String, Value), Error> {
        let (mut key, mut value) = (String::new(), None);
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next()? {
            match number {
                1 => key = wire::text(wire.bytes()?),
                2 => value = Some(self.value(field.of, wire, value.take(), depth)?),
                _ => {}
            }
        }
        Ok((key, value.unwrap_or_else(|| Self::zero(field.of))))
    }

    /// Writes a message. JSON from inside: its nesting is bounded where it was read.
    fn write(&self, id: u16, from: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), Error> {
        for field in self.fields(id) {
            if field.inline {
                let mut inner = Vec::new();
                if let Type::Message(id) = field.of {
                    self.write(id, from, &mut inner)?;
                }
                wire::put_bytes(out, field.number, &inner);
                continue;
            }
            let Some(value) = from.get(field.name).filter(|value| !value.is_null()) else { continue };
            if field.map {
                for (key, value) in value.as_object().ok_or(field.misfit())? {
                    let mut entry = Vec::new();
                    wire::put_bytes(&mut entry, 1, key.as_bytes());
                    self.put(field, 2, value, &mut entry)?;
                    wire::put_bytes(out, field.number, &entry);
                }
            } else if field.repeated {
                for value in value.as_array().ok_or(field.misfit())? {
                    self.put(field, field.number, value, out)?;
                }
            } else {
                self.put(field, field.number, value, out)?;
            }
        }
        Ok(())
    }

    fn put(&self, field: &Field, number: u32, value: &Value, out: &mut Vec<u8>) -> Result<(), Error> {
        let misfit = field.misfit();
        match field.of {
            Type::Text => wire::put_bytes(out, number, value.as_str().ok_or(misfit)?.as_bytes()),
            Type::Bytes => {
                let bytes = value.as_str().and_then(special::from_base64).ok_or(misfit)?;
                wire::put_bytes(out, number, &bytes);
            }
            Type::Int => wire::put_varint_field(out, number, value.as_i64().ok_or(misfit)?.cast_unsigned()),
            Type::Bool => wire::put_varint_field(out, number, u64::from(value.as_bool().ok_or(misfit)?)),
            Type::Double => wire::put_fixed64(out, number, value.as_f64().ok_or(misfit)?.to_bits()),
            Type::Message(id) => {
                let mut inner = Vec::new();
                self.write(id, value.as_object().ok_or(misfit)?, &mut inner)?;
                wire::put_bytes(out, number, &inner);
            }
            Type::Special(special) => {
                let inner = special.write(self, value, field.name)?;
                wire::put_bytes(out, number, &inner);
            }
        }
        Ok(())
    }
}

impl Field {
    fn parse(text: &'static str) -> Option<Self> {
        let mut parts = text.split(' ');
        let (number, name, flags, of) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let of = match of {
            "s" => Type::Text,
            "b" => Type::Bytes,
            "i" => Type::Int,
            "t" => Type::Bool,
            "d" => Type::Double,
            other => match other.parse() {
                Ok(id) => Type::Message(id),
                Err(_) => Type::Special(special::Special::named(other)?),
            },
        };
        let has = |flag| flags.contains(flag);
        Some(Self {
            number: number.parse().ok()?,
            name,
            pointer: has('p'),
            omit_empty: has('e'),
            omit_zero: has('z'),
            repeated: has('r'),
            map: has('m'),
            inline: has('n'),
            of,
        })
    }

    /// Whether Go's `encoding/json` would not write this value; a null is no value here.
    fn leaves_out(&self, value: &Value) -> bool {
        match value {
            Value::Null => true,
            _ if self.pointer => false,
            Value::Object(map) => self.omit_zero && map.is_empty(),
            Value::String(text) => self.omit_empty && !matches!(self.of, Type::Special(_)) && text.is_empty(),
            Value::Bool(value) => self.omit_empty && self.of == Type::Bool && !value,
            Value::Number(number) => {
                self.omit_empty && !matches!(self.of, Type::Special(_)) && number.as_f64() == Some(0.0)
            }
            Value::Array(_) => false,
        }
    }

    fn misfit(&self) -> Error {
        Error::Misfit { field: self.name }
    }
}

fn scalar(of: Type, bits: u64) -> Value {
    match of {
        Type::Bool => Value::Bool(bits != 0),
        Type::Double => {
            let number = f64::from_bits(bits);
            // Go writes 1 for 1.0, and so does everybody who sends JSON.
            #[allow(clippy::cast_possible_truncation)]
            let whole = number as i64;
            #[allow(clippy::cast_precision_loss, clippy::float_cmp)]
            let exact = whole as f64 == number && number.abs() < 1e15;
            if exact { json!(whole) } else { serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number) }
        }
        _ => json!(bits.cast_signed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Objects as Kubernetes' own serializers write them, in protobuf and in JSON.
    fn samples() -> Vec<(Vec<u8>, Value)> {
        let text = include_str!("protobuf/samples.txt");
        let read = |line: &str| {
            let (wire, json) = line.split_once(' ').unwrap();
            (special::from_base64(wire).unwrap(), serde_json::from_str(json).unwrap())
        };
        text.lines().map(read).collect()
    }

    #[test]
    fn the_table_is_read_whole() {
        let text = include_str!("protobuf/types.txt");
        let table = Table::get();
        let (types, kinds): (Vec<_>, Vec<_>) =
            text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).partition(|line| line.contains(':'));
        assert_eq!((table.kinds.len(), table.messages.len()), (kinds.len(), types.len()));
        let fields: usize = types
            .iter()
            .map(|line| line.split_once(": ").map_or(0, |(_, f)| f.split(", ").filter(|f| !f.is_empty()).count()))
            .sum();
        assert_eq!(table.messages.iter().map(Vec::len).sum::<usize>(), fields);
        assert!(table.fields(table.schema).iter().any(|field| field.name == "$schema"));
        for field in table.messages.iter().flatten() {
            if let Type::Message(id) = field.of {
                assert!(usize::from(id) < table.messages.len(), "{field:?}");
            }
        }
    }

    #[test]
    fn what_kubernetes_writes_is_read_as_kubernetes_reads_it() {
        let samples = samples();
        assert!(samples.len() > 80);
        for (wire, json) in samples {
            assert_eq!(decode(&wire).unwrap(), json, "{} {}", json["apiVersion"], json["kind"]);
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        for (_, json) in samples() {
            let wire = encode(&json).unwrap();
            assert_eq!(decode(&wire).unwrap(), json, "{} {}", json["apiVersion"], json["kind"]);
        }
    }

    #[test]
    fn a_pointer_to_zero_is_a_value_and_a_plain_zero_is_none() {
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "generation": 0},
            "spec": {"replicas": 0, "paused": false, "minReadySeconds": 0}});
        let read = decode(&encode(&deployment).unwrap()).unwrap();
        assert_eq!(read["spec"], json!({"replicas": 0}));
        assert_eq!(read["metadata"], json!({"name": "a"}));
    }

    #[test]
    fn options_are_the_same_in_every_group() {
        let options = json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
        assert_eq!(decode(&encode(&options).unwrap()).unwrap(), options);
        let nobody = json!({"apiVersion": "g.io/v1", "kind": "Thing"});
        assert!(matches!(encode(&nobody), Err(Error::UnknownKind { .. })));
    }

    #[test]
    fn nesting_is_bounded() {
        // `not` within `not`, which is a field of its own type.
        let table = Table::get();
        let not = table.fields(table.schema).iter().find(|field| field.name == "not").unwrap().number;
        let mut message = Vec::new();
        for _ in 0..10_000 {
            let mut outer = Vec::new();
            wire::put_bytes(&mut outer, not, &message);
            message = outer;
        }
        let read = table.read(table.schema, &message, &mut Map::new(), 0);
        assert_eq!(read, Err(Error::Malformed("it is nested too deeply")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
            for kind in ["ConfigMap", "Pod", "Event"] {
                let mut document = encode(&json!({"apiVersion": "v1", "kind": kind})).unwrap();
                wire::put_bytes(&mut document, 2, &bytes);
                let _ = decode(&document);
            }
        }

        #[test]
        fn a_document_with_a_hole_is_no_panic(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let samples = samples();
            let (mut wire, _) = samples[which.index(samples.len())].clone();
            let at = at.index(wire.len());
            wire[at] = byte;
            if let Ok(read) = decode(&wire) {
                let _ = encode(&read);
            }
            wire.truncate(at);
            let _ = decode(&wire);
        }
    }
}
