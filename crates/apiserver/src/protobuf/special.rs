//! Types whose JSON is not what their fields say: those with `MarshalJSON` of their own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::wire::{self, Reader, Wire};
use super::{Error, MAGIC, Table, Type};

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    /// A time, to the second.
    Time,
    /// A time, to the microsecond.
    MicroTime,
    /// A time span, such as `1m30s`.
    Duration,
    /// JSON within.
    Raw,
    /// `100m`, `1Gi`.
    Quantity,
    /// A number or text.
    IntOrString,
    /// A list in a message of its own, to be told from none.
    Items,
    /// One schema or several.
    SchemaOrArray,
    /// A schema or whether anything goes.
    SchemaOrBool,
    /// A schema or names.
    SchemaOrStrings,
}

impl Special {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "Time" => Self::Time,
            "MicroTime" => Self::MicroTime,
            "Duration" => Self::Duration,
            "Raw" => Self::Raw,
            "Quantity" => Self::Quantity,
            "IntOrString" => Self::IntOrString,
            "Items" => Self::Items,
            "SchemaOrArray" => Self::SchemaOrArray,
            "SchemaOrBool" => Self::SchemaOrBool,
            "SchemaOrStrings" => Self::SchemaOrStrings,
            _ => return None,
        })
    }

    pub(super) fn zero(self) -> Value {
        match self {
            Self::Quantity => json!("0"),
            Self::IntOrString => json!(0),
            Self::Duration => json!("0s"),
            Self::SchemaOrBool => json!(false),
            _ => Value::Null,
        }
    }

    pub(super) fn read(self, table: &Table, bytes: &[u8], depth: usize) -> Result<Value, Error> {
        // All of them have at most three fields.
        let mut numbers = [0_i64; 4];
        let mut texts: [Option<&[u8]>; 4] = [None; 4];
        let mut second = Vec::new();
        let mut reader = Reader::new(bytes);
        while let Some((number, wire)) = reader.next()? {
            let at = number as usize;
            match wire {
                Wire::Varint(value) if at < 4 => numbers[at] = value.cast_signed(),
                Wire::Bytes(value) if at < 4 => {
                    texts[at] = Some(value);
                    if at == 2 || (self == Self::Items && at == 1) {
                        second.push(value);
                    }
                }
                _ => {}
            }
        }
        let text = |at: usize| wire::text(texts[at].unwrap_or_default());
        let schema = |bytes: &[u8]| table.value(Type::Message(table.schema), Wire::Bytes(bytes), None, depth);
        let names = || Value::Array(second.iter().map(|bytes| Value::String(wire::text(bytes))).collect());
        Ok(match self {
            // A zero time is written as nothing at all.
            Self::Time | Self::MicroTime if bytes.is_empty() => Value::Null,
            Self::Time | Self::MicroTime => {
                let impossible = |_| Error::Malformed("a time lies beyond all calendars");
                let nanos = if self == Self::Time { 0 } else { numbers[2] / 1000 * 1000 };
                let nanos = i32::try_from(nanos).map_err(|_| Error::Malformed("a time has too many nanoseconds"))?;
                let time = jiff::Timestamp::new(numbers[1], nanos).map_err(impossible)?;
                let format = if self == Self::Time { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%6fZ" };
                Value::String(time.strftime(format).to_string())
            }
            Self::Duration => Value::String(span(numbers[1])),
            Self::Raw => match texts[1].unwrap_or_default() {
                b"" => Value::Null,
                raw if raw.starts_with(MAGIC) => super::decode_at(raw, depth)?,
                raw => {
                    serde_json::from_slice(raw).map_err(|_| Error::Malformed("what should be JSON within is not"))?
                }
            },
            Self::Quantity => match text(1) {
                none if none.is_empty() => self.zero(),
                some => Value::String(some),
            },
            // Its `intVal` has 32 bits.
            Self::IntOrString if numbers[1] == 0 => json!(i32::try_from(numbers[2]).unwrap_or_default()),
            Self::IntOrString => Value::String(text(3)),
            Self::Items => names(),
            Self::SchemaOrArray if second.is_empty() => texts[1].map_or(Ok(Value::Null), schema)?,
            Self::SchemaOrArray => Value::Array(second.iter().map(|bytes| schema(bytes)).collect::<Result<_, _>>()?),
            Self::SchemaOrBool => match texts[2] {
                Some(bytes) => schema(bytes)?,
                None => Value::Bool(numbers[1] != 0),
            },
            Self::SchemaOrStrings if second.is_empty() => texts[1].map_or(Ok(Value::Null), schema)?,
            Self::SchemaOrStrings => names(),
        })
    }

    pub(super) fn write(self, table: &Table, value: &Value, field: &'static str) -> Result<Vec<u8>, Error> {
        let misfit = Error::Misfit { field };
        let mut out = Vec::new();
        let schema = |value: &Value, number: u32, out: &mut Vec<u8>| -> Result<(), Error> {
            let mut inner = Vec::new();
            table.write(table.schema, value.as_object().ok_or(Error::Misfit { field })?, &mut inner)?;
            wire::put_bytes(out, number, &inner);
            Ok(())
        };
        let names = |value: &Value, number: u32, out: &mut Vec<u8>| -> Result<(), Error> {
            for name in value.as_array().ok_or(Error::Misfit { field })? {
                wire::put_bytes(out, number, name.as_str().ok_or(Error::Misfit { field })?.as_bytes());
            }
            Ok(())
        };
        match self {
            Self::Time | Self::MicroTime => {
                let time: jiff::Timestamp = value.as_str().and_then(|text| text.parse().ok()).ok_or(misfit)?;
                // Times before 1970 have negative parts; protobuf wants the second that began and what came after.
                let whole = time.as_nanosecond().div_euclid(1_000_000_000);
                let nanos = time.as_nanosecond().rem_euclid(1_000_000_000);
                let bits = |n: i128| i64::try_from(n).unwrap_or_default().cast_unsigned();
                wire::put_varint_field(&mut out, 1, bits(whole));
                wire::put_varint_field(&mut out, 2, bits(nanos));
            }
            Self::Duration => {
                let nanos = value.as_str().and_then(nanoseconds).ok_or(misfit)?;
                wire::put_varint_field(&mut out, 1, nanos.cast_unsigned());
            }
            Self::Raw => wire::put_bytes(&mut out, 1, value.to_string().as_bytes()),
            Self::Quantity => match value {
                Value::String(text) => wire::put_bytes(&mut out, 1, text.as_bytes()),
                Value::Number(number) => wire::put_bytes(&mut out, 1, number.to_string().as_bytes()),
                _ => return Err(misfit),
            },
            Self::IntOrString => {
                let (kind, number, text) = match value {
                    Value::Number(number) => (0, number.as_i64().ok_or(misfit)?, ""),
                    Value::String(text) => (1, 0, text.as_str()),
                    _ => return Err(misfit),
                };
                wire::put_varint_field(&mut out, 1, kind);
                wire::put_varint_field(&mut out, 2, number.cast_unsigned());
                wire::put_bytes(&mut out, 3, text.as_bytes());
            }
            Self::Items => names(value, 1, &mut out)?,
            Self::SchemaOrArray => match value {
                Value::Array(list) => {
                    for one in list {
                        schema(one, 2, &mut out)?;
                    }
                }
                one => schema(one, 1, &mut out)?,
            },
            Self::SchemaOrBool => match value {
                Value::Bool(allows) => wire::put_varint_field(&mut out, 1, u64::from(*allows)),
                one => {
                    wire::put_varint_field(&mut out, 1, 1);
                    schema(one, 2, &mut out)?;
                }
            },
            Self::SchemaOrStrings => match value {
                Value::Array(_) => names(value, 2, &mut out)?,
                one => schema(one, 1, &mut out)?,
            },
        }
        Ok(out)
    }
}

/// `[]byte` in JSON.
pub(super) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// `[]byte` out of JSON.
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

const UNITS: [(&str, i64); 7] = [
    ("h", 3_600_000_000_000),
    ("ms", 1_000_000),
    ("m", 60_000_000_000),
    ("µs", 1_000),
    ("us", 1_000),
    ("ns", 1),
    ("s", 1_000_000_000),
];

/// A time span as Go prints it: `1h2m3.5s`, `1.5ms`, `0s`.
fn span(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let all = nanos.unsigned_abs();
    let decimal = |value: u64, unit: u64| {
        let text = format!("{}.{:0width$}", value / unit, value % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match all {
        0 => "0s".into(),
        1..1_000 => format!("{sign}{all}ns"),
        1_000..1_000_000 => format!("{sign}{}µs", decimal(all, 1_000)),
        1_000_000..1_000_000_000 => format!("{sign}{}ms", decimal(all, 1_000_000)),
        _ => {
            let (minutes, rest) = (all / 60_000_000_000, all % 60_000_000_000);
            let (hours, minutes) = (minutes / 60, minutes % 60);
            let seconds = decimal(rest, 1_000_000_000);
            match (hours, minutes) {
                (0, 0) => format!("{sign}{seconds}s"),
                (0, minutes) => format!("{sign}{minutes}m{seconds}s"),
                (hours, minutes) => format!("{sign}{hours}h{minutes}m{seconds}s"),
            }
        }
    }
}

/// The other way.
pub(crate) fn nanoseconds(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text),
    };
    let mut sum = 0.0;
    while !rest.is_empty() {
        if rest == "0" {
            break;
        }
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let (unit, nanos) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        #[allow(clippy::cast_precision_loss)]
        let nanos = *nanos as f64;
        sum += number * nanos;
        rest = &rest[unit.len()..];
    }
    #[allow(clippy::cast_possible_truncation)]
    Some((sign * sum).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_printed_as_go_does() {
        let cases = [
            (0, "0s"),
            (999, "999ns"),
            (1_500, "1.5µs"),
            (20_000_000, "20ms"),
            (1_000_000_000, "1s"),
            (90_500_000_000, "1m30.5s"),
            (3_600_000_000_000, "1h0m0s"),
            (-60_000_000_000, "-1m0s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(span(nanos), text);
            assert_eq!(nanoseconds(text), Some(nanos), "{text}");
        }
        assert_eq!(nanoseconds("five"), None);
    }
}
