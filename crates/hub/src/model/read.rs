//! Reading an object so that nothing of it is ignored without a word.

use std::borrow::Borrow;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_path_to_error::Segment;

/// Something in an object that the hub does not take as it stands: where, what was found, what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Where, as `spec.placement.clusterAffinity.clusterNames[0]`.
    pub path: String,
    /// What was found.
    pub found: String,
    /// What to write instead; empty when `found` says it already.
    pub instead: String,
}

impl Problem {
    /// A problem at a place.
    pub(crate) fn new(path: impl Into<String>, found: impl Into<String>, instead: impl Into<String>) -> Self {
        Self { path: path.into(), found: found.into(), instead: instead.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { path, found, instead } = self;
        let path = if path.is_empty() { "the object" } else { path };
        match instead.as_str() {
            "" => write!(f, "{path}: {found}"),
            instead => write!(f, "{path}: {found}; {instead}"),
        }
    }
}

impl std::error::Error for Problem {}

/// So many unknown fields are named; the rest of such an object is not looked at.
const MOST_UNKNOWN: usize = 50;

/// Reads all objects that can be read: one that cannot decides nothing.
pub fn read_all<T: DeserializeOwned>(objects: &[impl Borrow<Value>]) -> Vec<T> {
    objects.iter().filter_map(|object| read(object.borrow()).ok()).map(|(object, _)| object).collect()
}

/// Reads an object and says which of its fields are unknown. What to do with these is the caller's: a policy is refused
/// or warned about, an object that another version of the API wrote is taken as far as it is understood.
///
/// # Errors
///
/// When a field is missing or is not of its kind, or when there are more unknown fields than anybody reads.
pub fn read<T: DeserializeOwned>(object: &Value) -> Result<(T, Vec<Problem>), Problem> {
    let mut object = object.clone();
    stolos_k8s::meta::remove_nulls(&mut object);
    let mut unknown = Vec::new();
    loop {
        let error = match serde_path_to_error::deserialize::<_, T>(&object) {
            Ok(read) => return Ok((read, unknown)),
            Err(error) => error,
        };
        let text = error.inner().to_string();
        let path: Vec<Segment> = error.path().iter().cloned().collect();
        let shown = shown(&path);
        let Some((field, known)) = unknown_field(&text) else {
            return Err(Problem::new(shown, text, ""));
        };
        let (field, known) = (field.to_owned(), names(known));
        // The path ends with the field, or with the object that holds it.
        let at = match path.last() {
            Some(Segment::Map { key }) if *key == field => &path[..path.len() - 1],
            _ => &path[..],
        };
        let whole = if at.len() < path.len() { shown } else { joined(&shown, &field) };
        let instead = match nearest(&field, &known) {
            Some(near) => format!("did you mean {near}?"),
            None if known.is_empty() => "take it out".to_owned(),
            None => format!("known here: {}", known.join(", ")),
        };
        let problem = Problem::new(whole, "the hub knows no such field", instead);
        let gone = parent(&mut object, at).and_then(|parent| parent.remove(&field)).is_some();
        if !gone || unknown.len() >= MOST_UNKNOWN {
            return Err(problem);
        }
        unknown.push(problem);
    }
}

/// The field and the rest of serde's words: ``unknown field `x`, expected one of `a`, `b` ``.
fn unknown_field(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix("unknown field `")?.split_once('`')
}

/// The names that serde quotes.
fn names(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn joined(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn shown(path: &[Segment]) -> String {
    path.iter().fold(String::new(), |path, segment| match segment {
        Segment::Seq { index } => format!("{path}[{index}]"),
        Segment::Map { key } => joined(&path, key),
        Segment::Enum { variant } => joined(&path, variant),
        Segment::Unknown => path,
    })
}

fn parent<'a>(object: &'a mut Value, path: &[Segment]) -> Option<&'a mut serde_json::Map<String, Value>> {
    path.iter()
        .try_fold(object, |value, segment| match segment {
            Segment::Seq { index } => value.get_mut(index),
            Segment::Map { key } => value.get_mut(key),
            Segment::Enum { .. } | Segment::Unknown => None,
        })?
        .as_object_mut()
}

/// The known name that is fewest letters away, if it is near.
fn nearest<'a>(field: &str, known: &'a [String]) -> Option<&'a str> {
    let (near, distance) =
        known.iter().map(|name| (name, distance(field, name))).min_by_key(|(_, distance)| *distance)?;
    (distance <= 1 + field.len() / 4).then_some(near)
}

/// How many letters must be put in, taken out or changed (Levenshtein); capitals do not count.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.to_lowercase().chars().enumerate() {
        let mut corner = line;
        row[0] = line + 1;
        for (column, against) in other.iter().enumerate() {
            let change = corner + usize::from(letter != *against);
            corner = row[column + 1];
            row[column + 1] = change.min(row[column] + 1).min(corner + 1);
        }
    }
    row[other.len()]
}
