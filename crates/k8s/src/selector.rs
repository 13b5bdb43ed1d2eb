//! Which objects a client asks for: by labels and by fields.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::meta::{check_label_value, check_qualified_name};

/// Which labels an object must have: all requirements hold. None at all selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// Selects nothing, as an absent `LabelSelector` does in some kinds.
    nothing: bool,
}

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What must hold.
    pub test: Test,
}

/// What must hold for a label.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Test {
    /// It has one of these values.
    In(BTreeSet<String>),
    /// It is absent or has none of these values.
    NotIn(BTreeSet<String>),
    /// It is there.
    Exists,
    /// It is absent.
    DoesNotExist,
}

/// A text or an object is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text cannot be read.
    #[error("unable to parse requirement: found {found}, expected: {expected}")]
    Syntax {
        /// What is there.
        found: String,
        /// What should be.
        expected: &'static str,
    },
    /// The key is not one.
    #[error("unable to parse requirement: key: Invalid value: {key:?}: {problem}")]
    Key {
        /// The key.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// A value is not one.
    #[error("unable to parse requirement: values: Invalid value: {value:?}: {problem}")]
    Value {
        /// The value.
        value: String,
        /// What is wrong.
        problem: String,
    },
    /// A LabelSelector's expression makes no sense.
    #[error("{operator:?} is not a valid label selector operator")]
    Operator {
        /// The operator.
        operator: String,
    },
    /// `In` without values, or `Exists` with some.
    #[error("values: Invalid value: {problem}")]
    Values {
        /// What is wrong.
        problem: &'static str,
    },
    /// The JSON is not of a selector's shape.
    #[error("{field}: must be {expected}")]
    Shape {
        /// Where.
        field: &'static str,
        /// What must be there.
        expected: &'static str,
    },
    /// A field selector's term has no operator.
    #[error("invalid selector: {selector:?}; can't understand {term:?}")]
    Field {
        /// The whole.
        selector: String,
        /// The part.
        term: String,
    },
}

impl LabelSelector {
    /// Selects everything.
    pub fn everything() -> Self {
        LabelSelector::default()
    }

    /// Selects nothing.
    pub fn nothing() -> Self {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    /// Objects with all these labels: a Service's `spec.selector`.
    pub fn of_labels(labels: &BTreeMap<String, String>) -> Self {
        let requirements = labels
            .iter()
            .map(|(key, value)| Requirement { key: key.clone(), test: Test::In(BTreeSet::from([value.clone()])) });
        LabelSelector { requirements: requirements.collect(), nothing: false }
    }

    /// Reads `a=b,c!=d,e in (x,y),f notin (z),g,!h`.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Parser::new(text).selector()
    }

    /// Reads `{"matchLabels": …, "matchExpressions": …}`. Null selects nothing and `{}` everything.
    pub fn from_value(value: &Value) -> Result<Self, SelectorError> {
        let shape = |field, expected| SelectorError::Shape { field, expected };
        let selector = match value {
            Value::Null => return Ok(Self::nothing()),
            Value::Object(selector) => selector,
            _ => return Err(shape("selector", "an object")),
        };
        let mut requirements = Vec::new();
        match selector.get("matchLabels") {
            None | Some(Value::Null) => {}
            Some(Value::Object(labels)) => {
                for (key, value) in labels {
                    let value = value.as_str().ok_or(shape("matchLabels", "a map of strings"))?;
                    requirements.push(requirement(key.clone(), Test::In(BTreeSet::from([value.to_owned()])))?);
                }
            }
            Some(_) => return Err(shape("matchLabels", "a map of strings")),
        }
        match selector.get("matchExpressions") {
            None | Some(Value::Null) => {}
            Some(Value::Array(expressions)) => {
                for expression in expressions {
                    requirements.push(expression_requirement(expression)?);
                }
            }
            Some(_) => return Err(shape("matchExpressions", "a list")),
        }
        Ok(LabelSelector { requirements, nothing: false })
    }

    /// Whether these labels are selected.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches_with(|key| labels.get(key).map(String::as_str))
    }

    /// Whether the object's labels are selected.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches_with(|key| crate::meta::label(object, key))
    }

    /// Whether nothing is asked for, so that everything is selected.
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether nothing can match.
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    /// The requirements.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    fn matches_with<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing
            && self.requirements.iter().all(|requirement| {
                let value = label(&requirement.key);
                match &requirement.test {
                    Test::In(values) => value.is_some_and(|value| values.contains(value)),
                    Test::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                    Test::Exists => value.is_some(),
                    Test::DoesNotExist => value.is_none(),
                }
            })
    }
}

impl FromStr for LabelSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                formatter.write_str(",")?;
            }
            requirement.fmt(formatter)?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Requirement { key, test } = self;
        let list = |values: &BTreeSet<String>| values.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        match test {
            Test::In(values) if values.len() == 1 => write!(formatter, "{key}={}", list(values)),
            Test::NotIn(values) if values.len() == 1 => write!(formatter, "{key}!={}", list(values)),
            Test::In(values) => write!(formatter, "{key} in ({})", list(values)),
            Test::NotIn(values) => write!(formatter, "{key} notin ({})", list(values)),
            Test::Exists => formatter.write_str(key),
            Test::DoesNotExist => write!(formatter, "!{key}"),
        }
    }
}

fn requirement(key: String, test: Test) -> Result<Requirement, SelectorError> {
    if let Some(problem) = check_qualified_name(&key).into_iter().next() {
        return Err(SelectorError::Key { key, problem });
    }
    if let Test::In(values) | Test::NotIn(values) = &test {
        for value in values {
            if let Some(problem) = check_label_value(value).into_iter().next() {
                return Err(SelectorError::Value { value: value.clone(), problem });
            }
        }
    }
    Ok(Requirement { key, test })
}

fn expression_requirement(expression: &Value) -> Result<Requirement, SelectorError> {
    let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or("");
    let values: BTreeSet<String> = match expression.get("values") {
        None | Some(Value::Null) => BTreeSet::new(),
        Some(Value::Array(values)) => values
            .iter()
            .map(|value| value.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or(SelectorError::Shape { field: "values", expected: "a list of strings" })?,
        Some(_) => return Err(SelectorError::Shape { field: "values", expected: "a list of strings" }),
    };
    let some = |values: BTreeSet<String>| match values.is_empty() {
        true => Err(SelectorError::Values { problem: "for 'in', 'notin' operators, values set can't be empty" }),
        false => Ok(values),
    };
    let none = |values: BTreeSet<String>| match values.is_empty() {
        true => Ok(()),
        false => Err(SelectorError::Values { problem: "values set must be empty for exists and does not exist" }),
    };
    let test = match text("operator") {
        "In" => Test::In(some(values)?),
        "NotIn" => Test::NotIn(some(values)?),
        "Exists" => none(values).map(|()| Test::Exists)?,
        "DoesNotExist" => none(values).map(|()| Test::DoesNotExist)?,
        operator => return Err(SelectorError::Operator { operator: operator.to_owned() }),
    };
    requirement(text("key").to_owned(), test)
}

/// Reads the text form, token by token.
struct Parser<'a> {
    rest: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Token<'a> {
    Word(&'a str),
    Equals,
    NotEquals,
    Not,
    Comma,
    Open,
    Close,
    End,
    Unknown(&'a str),
}

impl<'a> Token<'a> {
    fn text(self) -> String {
        let text = match self {
            Token::Word(word) | Token::Unknown(word) => word,
            Token::Equals => "=",
            Token::NotEquals => "!=",
            Token::Not => "!",
            Token::Comma => ",",
            Token::Open => "(",
            Token::Close => ")",
            Token::End => "",
        };
        format!("'{text}'")
    }
}

impl<'a> Parser<'a> {
    fn new(rest: &'a str) -> Self {
        Parser { rest }
    }

    fn selector(mut self) -> Result<LabelSelector, SelectorError> {
        let mut requirements = Vec::new();
        if self.peek() == Token::End {
            return Ok(LabelSelector::everything());
        }
        loop {
            requirements.push(self.requirement()?);
            match self.next() {
                Token::End => return Ok(LabelSelector { requirements, nothing: false }),
                // A comma at the end is allowed, as in Kubernetes, but not two in a row.
                Token::Comma if self.peek() != Token::End => {}
                Token::Comma => return Err(syntax(Token::End, "identifier after ','")),
                other => return Err(syntax(other, "',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        match self.next() {
            Token::Not => match self.next() {
                Token::Word(key) => requirement(key.to_owned(), Test::DoesNotExist),
                other => Err(syntax(other, "identifier")),
            },
            Token::Word(key) => {
                let test = self.test()?;
                requirement(key.to_owned(), test)
            }
            other => Err(syntax(other, "!, identifier, or 'end of string'")),
        }
    }

    fn test(&mut self) -> Result<Test, SelectorError> {
        match self.peek() {
            Token::End | Token::Comma => Ok(Test::Exists),
            Token::Equals => {
                self.next();
                Ok(Test::In(BTreeSet::from([self.value()])))
            }
            Token::NotEquals => {
                self.next();
                Ok(Test::NotIn(BTreeSet::from([self.value()])))
            }
            Token::Word("in") => {
                self.next();
                self.values().map(Test::In)
            }
            Token::Word("notin") => {
                self.next();
                self.values().map(Test::NotIn)
            }
            other => Err(syntax(other, "in, notin, =, ==, !=")),
        }
    }

    /// The value after `=`, which may be empty.
    fn value(&mut self) -> String {
        match self.peek() {
            Token::Word(word) => {
                self.next();
                word.to_owned()
            }
            _ => String::new(),
        }
    }

    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        match self.next() {
            Token::Open => {}
            other => return Err(syntax(other, "'('")),
        }
        let mut values = BTreeSet::new();
        loop {
            values.insert(self.value());
            match self.next() {
                Token::Comma => {}
                Token::Close => return Ok(values),
                other => return Err(syntax(other, "',' or ')'")),
            }
        }
    }

    fn peek(&self) -> Token<'a> {
        Parser { rest: self.rest }.next()
    }

    fn next(&mut self) -> Token<'a> {
        let text = self.rest.trim_start();
        let (token, length) = match text.as_bytes() {
            [] => (Token::End, 0),
            [b'=', b'=', ..] => (Token::Equals, 2),
            [b'=', ..] => (Token::Equals, 1),
            [b'!', b'=', ..] => (Token::NotEquals, 2),
            [b'!', ..] => (Token::Not, 1),
            [b',', ..] => (Token::Comma, 1),
            [b'(', ..] => (Token::Open, 1),
            [b')', ..] => (Token::Close, 1),
            [b'<' | b'>', ..] => (Token::Unknown(&text[..1]), 1),
            _ => {
                let ends = |letter: char| letter.is_whitespace() || "=!,()<>".contains(letter);
                let length = text.find(ends).unwrap_or(text.len());
                (Token::Word(&text[..length]), length)
            }
        };
        self.rest = &text[length..];
        token
    }
}

fn syntax(found: Token<'_>, expected: &'static str) -> SelectorError {
    SelectorError::Syntax { found: found.text(), expected }
}

/// Which fields an object must have: `metadata.name=a,status.phase!=Running`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One requirement on one field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldTerm {
    /// The field, `metadata.name`.
    pub field: String,
    /// The value it must, or must not, have.
    pub value: String,
    /// Whether it must.
    pub equal: bool,
}

impl FieldSelector {
    /// Reads `a=b,c!=d`; `\`, `,` and `=` in values are written with `\` before them.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in split_unescaped(text) {
            if term.is_empty() {
                continue;
            }
            let error = || SelectorError::Field { selector: text.to_owned(), term: term.to_owned() };
            let at = unescaped(term, |byte| byte == b'=' || byte == b'!').ok_or_else(error)?;
            let (field, rest) = term.split_at(at);
            let (equal, rest) = match rest.as_bytes() {
                [b'!', b'=', ..] => (false, &rest[2..]),
                [b'=', b'=', ..] => (true, &rest[2..]),
                [b'=', ..] => (true, &rest[1..]),
                _ => return Err(error()),
            };
            let value = unescape(rest).ok_or_else(error)?;
            terms.push(FieldTerm { field: field.to_owned(), value, equal });
        }
        Ok(FieldSelector { terms })
    }

    /// Whether the object has these fields; an absent field is an empty one.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(|field| field_text(object, field))
    }

    /// Whether fields, found by `field`, are selected.
    pub fn matches(&self, field: impl Fn(&str) -> String) -> bool {
        self.terms.iter().all(|term| (field(&term.field) == term.value) == term.equal)
    }

    /// Whether nothing is asked for.
    pub fn is_everything(&self) -> bool {
        self.terms.is_empty()
    }

    /// The requirements.
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// The value a field must have, if one is asked for: `metadata.name` makes a list a get.
    pub fn exactly(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| term.value.as_str())
    }

    /// The first field that objects of the kind cannot be selected by.
    pub fn unsupported(&self, group: &str, kind: &str) -> Option<&str> {
        let supported = |field: &str| {
            matches!(field, "metadata.name" | "metadata.namespace") || selectable(group, kind).contains(&field)
        };
        self.terms.iter().map(|term| term.field.as_str()).find(|field| !supported(field))
    }
}

impl FromStr for FieldSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, term) in self.terms.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let operator = if term.equal { "=" } else { "!=" };
            write!(formatter, "{comma}{}{operator}{}", term.field, escape(&term.value))?;
        }
        Ok(())
    }
}

/// Fields beside name and namespace that objects of a kind can be selected by.
pub fn selectable(group: &str, kind: &str) -> &'static [&'static str] {
    match (group, kind) {
        ("", "Pod") => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        ("", "Service") => &["spec.clusterIP", "spec.type"],
        ("", "Secret") => &["type"],
        ("", "Namespace") => &["status.phase"],
        ("", "Node") => &["spec.unschedulable"],
        ("", "ReplicationController") | ("apps", "ReplicaSet") => &["status.replicas"],
        ("batch", "Job") => &["status.successful"],
        ("", "Event") => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        ("events.k8s.io", "Event") => &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        _ => &[],
    }
}

fn field_text(object: &Value, field: &str) -> String {
    let found = field.split('.').try_fold(object, |value, part| value.get(part));
    match found {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => flag.to_string(),
        Some(Value::Number(number)) => number.to_string(),
        // Kubernetes writes false for flags that are left out.
        None if matches!(field, "spec.unschedulable" | "spec.hostNetwork") => "false".into(),
        // An Event's source is its component.
        Some(Value::Object(source)) if field == "source" => {
            source.get("component").and_then(Value::as_str).unwrap_or("").to_owned()
        }
        _ => String::new(),
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(at) = unescaped(rest, |byte| byte == b',') {
        parts.push(&rest[..at]);
        rest = &rest[at + 1..];
    }
    parts.push(rest);
    parts
}

/// Where the first byte is that `wanted` accepts and no `\` precedes. `wanted` accepts ASCII only.
fn unescaped(text: &str, wanted: impl Fn(u8) -> bool) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        if escaped {
            escaped = false;
        } else if byte == b'\\' {
            escaped = true;
        } else if wanted(byte) {
            return Some(at);
        }
    }
    None
}

fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => match letters.next() {
                Some(escaped @ ('\\' | ',' | '=')) => plain.push(escaped),
                _ => return None,
            },
            ',' | '=' => return None,
            letter => plain.push(letter),
        }
    }
    Some(plain)
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if matches!(letter, '\\' | ',' | '=') {
            escaped.push('\\');
        }
        escaped.push(letter);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn labels_are_selected() {
        let found = labels(&[("a", "b"), ("e", "x"), ("g", ""), ("n.io/x", "1")]);
        for (selector, selected) in [
            ("", true),
            ("a=b", true),
            ("a==b", true),
            ("a = b", true),
            ("a!=b", false),
            ("c!=d", true),
            ("e in (x,y)", true),
            ("e notin (x,y)", false),
            ("f notin (z)", true),
            ("g", true),
            ("!g", false),
            ("!h", true),
            ("g=", true),
            ("g in (,x)", true),
            ("n.io/x=1", true),
            ("a=b,c!=d,e in (x,y),f notin (z),g,!h", true),
            ("a in (b) , !h", true),
            ("in=x", false),
            ("a=b,a=c", false),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap().matches(&found), selected, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_says_why() {
        let errors: Vec<String> = ["a=b=c", "a in x", "a in (x", "=a", "a,,b", "!", "a<1", "a b", "ä", "a=b,", "a=ö"]
            .into_iter()
            .map(|text| format!("{text}  {:.100}", LabelSelector::parse(text).unwrap_err().to_string()))
            .collect();
        insta::assert_snapshot!(errors.join("\n"), @r#"
        a=b=c  unable to parse requirement: found '=', expected: ',' or 'end of string'
        a in x  unable to parse requirement: found 'x', expected: '('
        a in (x  unable to parse requirement: found '', expected: ',' or ')'
        =a  unable to parse requirement: found '=', expected: !, identifier, or 'end of string'
        a,,b  unable to parse requirement: found ',', expected: !, identifier, or 'end of string'
        !  unable to parse requirement: found '', expected: identifier
        a<1  unable to parse requirement: found '<', expected: in, notin, =, ==, !=
        a b  unable to parse requirement: found 'b', expected: in, notin, =, ==, !=
        ä  unable to parse requirement: key: Invalid value: "ä": name part must consist of alphanumeric charact
        a=b,  unable to parse requirement: found '', expected: identifier after ','
        a=ö  unable to parse requirement: values: Invalid value: "ö": a valid label must be an empty string or co
        "#);
    }

    #[test]
    fn selectors_of_objects_are_read() {
        let selector = LabelSelector::from_value(&json!({
            "matchLabels": {"a": "b"},
            "matchExpressions": [
                {"key": "c", "operator": "In", "values": ["x", "y"]}, {"key": "d", "operator": "DoesNotExist"}]}))
        .unwrap();
        assert_eq!(selector.to_string(), "a=b,c in (x,y),!d");
        assert!(selector.matches(&labels(&[("a", "b"), ("c", "y")])));
        assert!(LabelSelector::from_value(&json!({})).unwrap().is_everything());
        assert!(!LabelSelector::from_value(&Value::Null).unwrap().matches(&BTreeMap::new()));
        for bad in [
            json!([]),
            json!({"matchLabels": []}),
            json!({"matchLabels": {"a": 1}}),
            json!({"matchExpressions": [{"key": "a", "operator": "In"}]}),
            json!({"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["x"]}]}),
            json!({"matchExpressions": [{"key": "a", "operator": "Near"}]}),
            json!({"matchExpressions": [{"operator": "Exists"}]}),
        ] {
            assert!(LabelSelector::from_value(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fields_are_selected() {
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        for (selector, selected) in [
            ("", true),
            ("metadata.name=a", true),
            ("metadata.name==a,spec.nodeName!=m", true),
            ("status.phase!=Running", false),
            ("spec.hostNetwork=false", true),
            ("metadata.namespace=", true),
        ] {
            assert_eq!(FieldSelector::parse(selector).unwrap().matches_object(&pod), selected, "{selector}");
        }
        assert!(FieldSelector::parse("metadata.name").is_err());
        let selector = FieldSelector::parse("metadata.name=a,spec.secret=1").unwrap();
        assert_eq!(selector.exactly("metadata.name"), Some("a"));
        assert_eq!(selector.unsupported("", "Pod"), Some("spec.secret"));
    }

    fn any_selector() -> impl Strategy<Value = LabelSelector> {
        let key = "([a-z]{1,5}\\.io/)?[a-zA-Z0-9]([a-z_.-]{0,4}[a-z0-9])?";
        let values = || prop::collection::btree_set("([a-z0-9]([a-z_.-]{0,4}[a-z0-9])?)?", 1..4);
        let test = prop_oneof![
            values().prop_map(Test::In),
            values().prop_map(Test::NotIn),
            Just(Test::Exists),
            Just(Test::DoesNotExist)
        ];
        let requirement = (key, test).prop_map(|(key, test)| Requirement { key, test });
        prop::collection::vec(requirement, 0..5).prop_map(|requirements| LabelSelector { requirements, nothing: false })
    }

    proptest! {
        #[test]
        fn selectors_are_read_as_written(selector in any_selector()) {
            prop_assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
        }

        #[test]
        fn field_selectors_are_read_as_written(terms in prop::collection::vec(("[a-z.]{1,8}", "[^\n]{0,6}", any::<bool>()), 0..4)) {
            let terms = terms.into_iter().map(|(field, value, equal)| FieldTerm { field, value, equal }).collect();
            let selector = FieldSelector { terms };
            // "a!=…" and "a=" followed by "=…" would read differently, so values that begin with "=" are escaped.
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()), Ok(selector));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".*") {
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }

        #[test]
        fn any_object_is_a_selector_or_refused(labels in crate::path::tests::any_json(), operator in "In|NotIn|Exists|x",
            key in "[a-z]?", values in crate::path::tests::any_json()) {
            let _ = LabelSelector::from_value(&labels);
            let expressions = json!([{"key": key, "operator": operator, "values": values}]);
            if let Ok(selector) = LabelSelector::from_value(&json!({"matchLabels": null, "matchExpressions": expressions})) {
                prop_assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
            }
            let _ = LabelSelector::from_value(&json!({"matchLabels": labels}));
        }

        #[test]
        fn any_pieces_are_read_or_refused(pieces in prop::collection::vec("[a!=,() \\\\]|in|notin|ä", 0..12)) {
            let text = pieces.concat();
            let _ = LabelSelector::parse(&text);
            let _ = FieldSelector::parse(&text);
        }
    }
}
