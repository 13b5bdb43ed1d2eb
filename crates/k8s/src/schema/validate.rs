//! Whether an object is as its schema says, in Kubernetes' words.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{ListType, Schema, Trail, Type};
use crate::path::Step;
use crate::status::{Fault, FieldError};

impl Schema {
    /// Everything that is wrong with a value.
    pub fn validate(&self, value: &Value) -> Vec<FieldError> {
        self.validate_at("", value)
    }

    /// Everything that is wrong with a value at a field.
    pub fn validate_at(&self, field: &str, value: &Value) -> Vec<FieldError> {
        let mut problems = Vec::new();
        self.check(&Trail::Root(field), value, &mut problems);
        problems
    }

    fn check(&self, field: &Trail<'_>, value: &Value, problems: &mut Vec<FieldError>) {
        if value.is_null() && self.nullable {
            return;
        }
        if !self.check_type(field, value, problems) {
            return;
        }
        self.check_choices(field, value, problems);
        match value {
            Value::Object(map) => {
                for name in &self.checks.required {
                    if !map.contains_key(name) {
                        problems.push(FieldError::required(&Trail::Field(field, name), ""));
                    }
                }
                self.check_counts(
                    field,
                    map.len(),
                    self.checks.min_properties,
                    self.checks.max_properties,
                    "properties",
                    problems,
                );
                for (name, value) in map {
                    if let Some(schema) = self.properties.get(name).or(self.additional.as_deref()) {
                        schema.check(&Trail::Field(field, name), value, problems);
                    }
                }
                if self.embedded_resource && !field.is_root() {
                    check_embedded(field, value, problems);
                }
            }
            Value::Array(list) => {
                self.check_counts(field, list.len(), self.checks.min_items, self.checks.max_items, "items", problems);
                if let Some(items) = &self.items {
                    for (index, item) in list.iter().enumerate() {
                        items.check(&Trail::Index(field, index), item, problems);
                    }
                }
                self.check_list_type(field, list, problems);
            }
            Value::String(text) => self.check_text(field, text, problems),
            Value::Number(number) => {
                if let Some(number) = number.as_f64() {
                    self.check_number(field, value, number, problems);
                }
            }
            Value::Null | Value::Bool(_) => {}
        }
        self.check_combinations(field, value, problems);
    }

    /// Whether it is of the right type, so that looking further makes sense.
    fn check_type(&self, field: &Trail<'_>, value: &Value, problems: &mut Vec<FieldError>) -> bool {
        if self.int_or_string {
            let right = is_integer(value) || value.is_string();
            if !right {
                problems.push(wrong_type(field, value, "integer,string"));
            }
            return right;
        }
        let Some(kind) = self.kind else { return true };
        let right = match kind {
            Type::Object => value.is_object(),
            Type::Array => value.is_array(),
            Type::String => value.is_string(),
            Type::Integer => is_integer(value),
            Type::Number => value.is_number(),
            Type::Boolean => value.is_boolean(),
        };
        if !right {
            problems.push(wrong_type(field, value, kind.as_str()));
            return false;
        }
        let format = self.checks.format.as_deref().unwrap_or("");
        let fits = match (format, value.as_i64()) {
            ("int32", Some(number)) => i32::try_from(number).is_ok(),
            ("int32" | "int64", None) if kind == Type::Integer => {
                value.as_f64().is_some_and(|float| float.abs() < 9e18)
            }
            _ => true,
        };
        if !fits {
            problems.push(wrong_type(field, value, format));
        }
        fits
    }

    fn check_choices(&self, field: &Trail<'_>, value: &Value, problems: &mut Vec<FieldError>) {
        if let Some(choices) = &self.checks.choices
            && !choices.iter().any(|choice| equal(choice, value))
        {
            problems.push(FieldError::not_supported(field, value.clone(), choices));
        }
    }

    fn check_counts(
        &self,
        field: &Trail<'_>,
        found: usize,
        least: Option<u64>,
        most: Option<u64>,
        what: &str,
        problems: &mut Vec<FieldError>,
    ) {
        if let Some(most) = most
            && found as u64 > most
        {
            problems.push(FieldError::too_many(field, found, most));
        }
        if let Some(least) = least
            && (found as u64) < least
        {
            let detail = format!("{field} in body should have at least {least} {what}");
            problems.push(FieldError::invalid(field, found, detail));
        }
    }

    fn check_list_type(&self, field: &Trail<'_>, list: &[Value], problems: &mut Vec<FieldError>) {
        let mut seen = BTreeSet::new();
        for (index, item) in list.iter().enumerate() {
            let (identity, shown) = match self.list_type {
                ListType::Atomic if !self.checks.unique_items => return,
                ListType::Atomic | ListType::Set => (Step::value(item), item.clone()),
                ListType::Map => {
                    let keys = self.list_map_keys.iter();
                    let keys = keys.map(|key| (key.clone(), item.get(key).cloned().unwrap_or(Value::Null))).collect();
                    (Step::key(&keys), Value::Object(keys.into_iter().collect()))
                }
            };
            if !seen.insert(identity) {
                problems.push(FieldError::duplicate(&Trail::Index(field, index), shown));
            }
        }
    }

    fn check_text(&self, field: &Trail<'_>, text: &str, problems: &mut Vec<FieldError>) {
        let checks = &self.checks;
        let length = text.chars().count() as u64;
        if let Some(most) = checks.max_length
            && length > most
        {
            problems.push(FieldError::too_long(field, most));
        }
        if let Some(least) = checks.min_length
            && length < least
        {
            let detail = format!("{field} in body should be at least {least} chars long");
            problems.push(FieldError::invalid(field, text, detail));
        }
        if let Some(pattern) = &checks.pattern
            && !pattern.is_match(text)
        {
            let detail = format!("{field} in body should match '{pattern}'");
            problems.push(FieldError::invalid(field, text, detail));
        }
        if let Some(format) = &checks.format
            && !has_format(format, text)
        {
            let detail = format!("{field} in body must be of type {format}: {}", Value::from(text));
            problems.push(FieldError::invalid(field, text, detail));
        }
    }

    fn check_number(&self, field: &Trail<'_>, value: &Value, number: f64, problems: &mut Vec<FieldError>) {
        let checks = &self.checks;
        let mut wrong = |wish: String| {
            problems.push(FieldError::invalid(field, value.clone(), format!("{field} in body should be {wish}")));
        };
        if let Some(least) = checks.minimum {
            match checks.exclusive_minimum {
                true if number <= least => wrong(format!("greater than {least}")),
                false if number < least => wrong(format!("greater than or equal to {least}")),
                _ => {}
            }
        }
        if let Some(most) = checks.maximum {
            match checks.exclusive_maximum {
                true if number >= most => wrong(format!("less than {most}")),
                false if number > most => wrong(format!("less than or equal to {most}")),
                _ => {}
            }
        }
        if let Some(step) = checks.multiple_of
            && step > 0.0
            && ((number / step) - (number / step).round()).abs() > 1e-9
        {
            wrong(format!("a multiple of {step}"));
        }
    }

    fn check_combinations(&self, field: &Trail<'_>, value: &Value, problems: &mut Vec<FieldError>) {
        let checks = &self.checks;
        for schema in &checks.all_of {
            schema.check(field, value, problems);
        }
        let fits = |schema: &&Schema| {
            let mut problems = Vec::new();
            schema.check(field, value, &mut problems);
            problems.is_empty()
        };
        let mut wrong = |detail: String| {
            let detail = format!("{} {detail}", Value::from(field.to_string()));
            problems.push(FieldError { field: field.into(), fault: Fault::Invalid, value: Some("".into()), detail });
        };
        if !checks.any_of.is_empty() && !checks.any_of.iter().any(|schema| fits(&schema)) {
            wrong("must validate at least one schema (anyOf)".into());
        }
        if !checks.one_of.is_empty() {
            match checks.one_of.iter().filter(fits).count() {
                1 => {}
                0 => wrong("must validate one and only one schema (oneOf). Found none valid".into()),
                found => {
                    wrong(format!("must validate one and only one schema (oneOf). Found {found} valid alternatives"));
                }
            }
        }
        if let Some(not) = checks.not.as_deref()
            && fits(&not)
        {
            wrong("must not validate the schema (not)".into());
        }
    }
}

fn check_embedded(field: &Trail<'_>, value: &Value, problems: &mut Vec<FieldError>) {
    for name in ["apiVersion", "kind"] {
        match value.get(name).and_then(Value::as_str) {
            Some(text) if !text.is_empty() => {}
            _ => problems.push(FieldError::required(&Trail::Field(field, name), "must not be empty")),
        }
    }
}

fn wrong_type(field: &Trail<'_>, value: &Value, wanted: &str) -> FieldError {
    let found = type_name(value);
    let place = if field.is_root() { "<nil>".to_owned() } else { field.to_string() };
    FieldError::wrong_type(field, found, format!("{place} in body must be of type {wanted}: \"{found}\""))
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0)
}

/// Equal as JSON: 1 and 1.0 are the same number.
fn equal(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        _ => one == other,
    }
}

/// Whether a text has a format; formats nobody knows are had by every text.
fn has_format(format: &str, text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    match format {
        "date-time" | "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "cidr" => text.split_once('/').is_some_and(|(address, length)| {
            let length: Option<u8> = length.parse().ok();
            match address.parse() {
                Ok(std::net::IpAddr::V4(_)) => length.is_some_and(|length| length <= 32),
                Ok(std::net::IpAddr::V6(_)) => length.is_some_and(|length| length <= 128),
                Err(_) => false,
            }
        }),
        "uuid" => {
            let parts: Vec<&str> = text.split('-').collect();
            parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12]) && parts.iter().all(|part| digits(part))
        }
        "byte" => {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(text).is_ok()
        }
        "hostname" => text.len() <= 255 && crate::meta::check_subdomain(&text.to_lowercase()).is_empty(),
        "email" => text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty()),
        "uri" => text.split_once(':').is_some_and(|(scheme, _)| {
            scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                && scheme.chars().all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter))
        }),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::widget;
    use serde_json::json;

    #[test]
    fn what_is_wrong_is_said_as_kubernetes_does() {
        let value = json!({"spec": {
            "size": 11, "color": "blue", "name": "Abcdef", "port": 1.5, "when": "yesterday",
            "tags": ["a", "b", "a", 1], "parts": [{"id": "a"}, {"id": "a"}, {}], "labels": {"x": 1},
            "template": {"kind": "Pod"}, "choice": {"a": "x", "b": "y"}, "limits": []}});
        let problems: Vec<String> = widget().validate(&value).iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(problems.join("\n"), @r#"
        spec.choice: Invalid value: "": "spec.choice" must validate one and only one schema (oneOf). Found 2 valid alternatives
        spec.color: Unsupported value: "blue": supported values: "red", "green"
        spec.labels.x: Invalid value: "integer": spec.labels.x in body must be of type string: "integer"
        spec.limits: Invalid value: "array": spec.limits in body must be of type object: "array"
        spec.name: Too long: may not be more than 5 bytes
        spec.name: Invalid value: "Abcdef": spec.name in body should match '^[a-z]+$'
        spec.parts[2].id: Required value
        spec.parts[1]: Duplicate value: {"id":"a"}
        spec.port: Invalid value: "number": spec.port in body must be of type integer,string: "number"
        spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10
        spec.tags: Too many: 4: must have at most 3 items
        spec.tags[3]: Invalid value: "integer": spec.tags[3] in body must be of type string: "integer"
        spec.tags[2]: Duplicate value: "a"
        spec.template.apiVersion: Required value: must not be empty
        spec.when: Invalid value: "yesterday": spec.when in body must be of type date-time: "yesterday"
        "#);
        let fine = json!({"spec": {"size": 1, "port": "http", "when": null, "choice": {"a": "x"}, "tags": []}});
        assert_eq!(widget().validate(&fine), []);
        assert_eq!(widget().validate(&json!({})).first().unwrap().to_string(), "spec: Required value");
        let text = widget().validate(&json!({"spec": {"size": "1", "name": "a"}}));
        let text: Vec<String> = text.iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(text.join("\n"), @r#"
        spec.name: Invalid value: "a": spec.name in body should be at least 2 chars long
        spec.size: Invalid value: "string": spec.size in body must be of type integer: "string"
        "#);
    }
}
