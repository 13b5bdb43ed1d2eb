//! JSON as values of CEL.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use kube_cel::cel::objects::{Key, Map, OptionalValue};
use kube_cel::cel::{Context, Value as Cel};
use serde_json::{Number, Value};

use super::{Expression, Node};

/// Words of CEL that are no names of fields.
const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

/// A field's name as rules write it (KEP-2876, "field name escaping").
pub(super) fn escape(name: &str) -> String {
    if RESERVED.contains(&name) {
        return format!("__{name}__");
    }
    let pairs = [("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")];
    let mut escaped = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let pair = pairs.iter().find(|(plain, _)| rest.starts_with(plain));
        match pair {
            Some((plain, shown)) => {
                escaped.push_str(shown);
                rest = &rest[plain.len()..];
            }
            None => {
                escaped.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    escaped
}

/// What a schema says of a string beyond that it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// `format: date-time` and `date`.
    Time,
    /// `format: duration`.
    Duration,
    /// `format: byte`.
    Bytes,
    /// `type: number`: whole ones are no integers.
    Number,
    /// Nothing.
    Plain,
}

impl Typed {
    pub(super) fn of(schema: &Value) -> Self {
        if schema["x-kubernetes-int-or-string"] == true {
            return Self::Plain;
        }
        match (schema["type"].as_str(), schema["format"].as_str()) {
            (Some("number"), _) => Self::Number,
            (Some("string"), Some("date-time" | "date")) => Self::Time,
            (Some("string"), Some("duration")) => Self::Duration,
            (Some("string"), Some("byte")) => Self::Bytes,
            _ => Self::Plain,
        }
    }
}

fn number(number: &Number) -> Cel {
    match (number.as_i64(), number.as_u64()) {
        (Some(number), _) => Cel::Int(number),
        (None, Some(number)) => Cel::UInt(number),
        (None, None) => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
    }
}

fn text(text: &str) -> Cel {
    Cel::String(Arc::new(text.to_owned()))
}

/// A value that no schema is known of: fields keep their names, reserved words are there in both forms.
pub(super) fn untyped(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(given) => number(given),
        Value::String(given) => text(given),
        Value::Array(list) => Cel::List(Arc::new(list.iter().map(untyped).collect())),
        Value::Object(fields) => {
            let mut map = HashMap::with_capacity(fields.len());
            for (name, value) in fields {
                let value = untyped(value);
                if RESERVED.contains(&name.as_str()) {
                    map.insert(Key::from(escape(name)), value.clone());
                }
                map.insert(Key::from(name.as_str()), value);
            }
            Cel::Map(Map { map: Arc::new(map) })
        }
    }
}

/// A value as its schema says: times are times, and fields have the names that rules write.
pub(super) fn typed(value: &Value, node: &Node, context: &Context<'_>) -> Cel {
    static TIME: LazyLock<Option<Expression>> = LazyLock::new(|| Expression::compile("timestamp(x)").ok());
    static DURATION: LazyLock<Option<Expression>> = LazyLock::new(|| Expression::compile("duration(x)").ok());
    let made = |by: &Option<Expression>, given: &str| {
        let mut scope = context.new_inner_scope();
        scope.add_variable_from_value("x", given.to_owned());
        by.as_ref().and_then(|by| scope.resolve(&by.tree).ok()).unwrap_or_else(|| text(given))
    };
    match value {
        Value::String(given) => match node.typed {
            Typed::Time if given.len() == 10 => made(&TIME, &format!("{given}T00:00:00Z")),
            Typed::Time => made(&TIME, given),
            Typed::Duration => made(&DURATION, given),
            Typed::Bytes => {
                let bytes = base64::engine::general_purpose::STANDARD.decode(given);
                bytes.map_or_else(|_| text(given), |bytes| Cel::Bytes(Arc::new(bytes)))
            }
            _ => text(given),
        },
        Value::Number(given) if node.typed == Typed::Number => Cel::Float(given.as_f64().unwrap_or(f64::NAN)),
        Value::Array(list) => {
            let items = list.iter().map(|item| match &node.items {
                Some(below) => typed(item, below, context),
                None => untyped(item),
            });
            Cel::List(Arc::new(items.collect()))
        }
        Value::Object(fields) => {
            let mut map = HashMap::with_capacity(fields.len());
            for (name, value) in fields {
                match (node.properties.get(name), &node.additional) {
                    (Some(below), _) => map.insert(Key::from(escape(name)), typed(value, below, context)),
                    // Keys of a map are data and stay what they are.
                    (None, Some(below)) => map.insert(Key::from(name.as_str()), typed(value, below, context)),
                    (None, None) => map.insert(Key::from(escape(name)), untyped(value)),
                };
            }
            Cel::Map(Map { map: Arc::new(map) })
        }
        other => untyped(other),
    }
}

pub(super) fn optional(value: OptionalValue) -> Cel {
    Cel::Opaque(Arc::new(value))
}

/// The name of a value's type.
pub(super) fn type_name(value: &Cel) -> &'static str {
    match value {
        Cel::List(_) => "list",
        Cel::Map(_) => "map",
        Cel::Int(_) => "int",
        Cel::UInt(_) => "uint",
        Cel::Float(_) => "double",
        Cel::String(_) => "string",
        Cel::Bytes(_) => "bytes",
        Cel::Bool(_) => "bool",
        Cel::Null => "null_type",
        _ => "dyn",
    }
}
