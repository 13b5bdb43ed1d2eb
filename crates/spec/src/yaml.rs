//! A YAML text as a tree whose every node knows its place.
//!
//! Deriving readers stop at the first mistake and forget how a thing was written. Here the tree is built first, and
//! the readers beside this module walk it, so that every problem of a file is told at once and the traps of old
//! readers (quotes, comments, indentation) can be seen.

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, ScanError};

use crate::problem::{At, Notes, nearest, one_of, quoted};

/// The most nodes a file may have, with aliases written out: far above any mesh, far below a memory's end.
const MOST_NODES: usize = 200_000;
/// The deepest nesting.
const DEEPEST: usize = 64;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) at: At,
    pub(crate) value: Value,
    height: usize,
    nodes: usize,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Scalar { text: String, plain: bool },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_at: At,
    pub(crate) value: Node,
}

/// The documents of a text that have content. `None`, with a problem noted, where it is not YAML.
pub(crate) fn documents(notes: &mut Notes<'_>) -> Option<Vec<Node>> {
    match parse(&notes.file().text) {
        Ok(documents) => Some(documents.into_iter().filter(|d| !d.is_null()).collect()),
        Err(Broken::Scan(error)) => {
            let marker = error.marker();
            let at = At { line: marker.line(), column: marker.col() + 1, length: 1 };
            let tab = notes.line(at.line).chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
            let problem = notes.problem(at, format!("this is not YAML: {}", error.info()));
            if tab {
                problem.hint("indent with spaces: YAML takes no tabs there");
            }
            None
        }
        Err(Broken::Limit(at, what)) => {
            notes.problem(at, what);
            None
        }
    }
}

enum Broken {
    Scan(ScanError),
    Limit(At, &'static str),
}

enum Open {
    List(Vec<Node>),
    Map(Vec<Entry>, Option<(String, At)>),
}

fn parse(text: &str) -> Result<Vec<Node>, Broken> {
    let options =
        granit_parser::options! { emit_comments: false, flow_nesting_limit: DEEPEST, block_nesting_limit: DEEPEST };
    let mut documents = Vec::new();
    let mut open: Vec<(Open, At, usize)> = Vec::new();
    let mut anchors: std::collections::BTreeMap<usize, Node> = std::collections::BTreeMap::new();
    let mut nodes = 0;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(Broken::Scan)?;
        let (start, end) = (span.start, span.end);
        let length = if end.line() == start.line() { end.col().saturating_sub(start.col()) } else { 1 };
        let at = At { line: start.line(), column: start.col() + 1, length };
        // An alias brings all of its nodes again; a collection's own were counted as they came.
        let (node, anchor, counts) = match event {
            Event::DocumentStart(..) => {
                anchors.clear();
                continue;
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && !tag.is_some_and(|t| t.is_yaml_core_schema_tag("str"));
                (Node::leaf(at, text.into_owned(), plain), anchor, 1)
            }
            Event::SequenceStart(_, anchor, _) => {
                open.push((Open::List(Vec::new()), at, anchor));
                continue;
            }
            Event::MappingStart(_, anchor, _) => {
                open.push((Open::Map(Vec::new(), None), at, anchor));
                continue;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some((collection, at, anchor)) = open.pop() else { continue };
                (Node::collection(at, collection), anchor, 1)
            }
            Event::Alias(id) => match anchors.get(&id) {
                Some(node) => (Node { at, ..node.clone() }, 0, node.nodes),
                None => return Err(Broken::Limit(at, "this alias points at what contains it")),
            },
            _ => continue,
        };
        nodes += counts;
        if nodes > MOST_NODES {
            return Err(Broken::Limit(at, "the file has too many nodes (aliases count as what they stand for)"));
        }
        if node.height + open.len() > DEEPEST {
            return Err(Broken::Limit(at, "this is nested too deeply"));
        }
        if anchor != 0 {
            anchors.insert(anchor, node.clone());
        }
        match open.last_mut() {
            None => documents.push(node),
            Some((Open::List(items), ..)) => items.push(node),
            Some((Open::Map(entries, key), ..)) => match key.take() {
                None => match node.value {
                    Value::Scalar { text, .. } => *key = Some((text, node.at)),
                    _ => return Err(Broken::Limit(node.at, "a key here must be a word, not a list or a map")),
                },
                Some((key, _)) if key == "<<" => merge(entries, node),
                Some((key, key_at)) => entries.push(Entry { key, key_at, value: node }),
            },
        }
    }
    Ok(documents)
}

/// What YAML 1.1's merge key does: entries of the given maps that are not there already.
fn merge(entries: &mut Vec<Entry>, from: Node) {
    match from.value {
        Value::Map(more) => {
            for entry in more {
                if !entries.iter().any(|e| e.key == entry.key) {
                    entries.push(entry);
                }
            }
        }
        Value::List(maps) => maps.into_iter().for_each(|map| merge(entries, map)),
        Value::Scalar { .. } => {}
    }
}

impl Node {
    fn leaf(at: At, text: String, plain: bool) -> Self {
        Self { at, value: Value::Scalar { text, plain }, height: 1, nodes: 1 }
    }

    fn collection(at: At, open: Open) -> Self {
        let value = match open {
            Open::List(items) => Value::List(items),
            Open::Map(entries, _) => Value::Map(entries),
        };
        let (mut height, mut nodes) = (0, 1);
        let mut count = |node: &Node| {
            height = height.max(node.height);
            nodes += node.nodes;
        };
        match &value {
            Value::List(items) => items.iter().for_each(&mut count),
            Value::Map(entries) => entries.iter().for_each(|e| count(&e.value)),
            Value::Scalar { .. } => {}
        }
        Self { at: At { length: 1, ..at }, value, height: height + 1, nodes }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The entry called `key` of a map.
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries().iter().find(|e| e.key == key).map(|e| &e.value)
    }

    /// The entries of a map; none of anything else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list; none of anything else.
    pub(crate) fn items(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The text of a scalar that is not null.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    /// A boolean, as YAML 1.2 and Go read it.
    pub(crate) fn boolean(&self) -> Option<bool> {
        match &self.value {
            Value::Scalar { text, plain: true } => match text.as_str() {
                "true" | "True" | "TRUE" => Some(true),
                "false" | "False" | "FALSE" => Some(false),
                _ => None,
            },
            _ => None,
        }
    }

    /// What it is, for a message.
    pub(crate) fn description(&self) -> String {
        match &self.value {
            _ if self.is_null() => "nothing".to_owned(),
            Value::Scalar { text, .. } => quoted(text),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map".to_owned(),
        }
    }

    /// The node as a JSON value.
    pub(crate) fn json(&self) -> serde_json::Value {
        match &self.value {
            _ if self.is_null() => serde_json::Value::Null,
            Value::Scalar { text, plain: false } => text.as_str().into(),
            Value::Scalar { text, plain: true } => plain_json(text, self.boolean()),
            Value::List(items) => items.iter().map(Node::json).collect(),
            Value::Map(entries) => entries.iter().map(|e| (e.key.clone(), e.value.json())).collect(),
        }
    }
}

fn plain_json(text: &str, boolean: Option<bool>) -> serde_json::Value {
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.'));
    if let Some(boolean) = boolean {
        boolean.into()
    } else if let Ok(number) = text.parse::<i64>() {
        number.into()
    } else if let Some(number) = numeric.then(|| text.parse::<f64>().ok()).flatten().filter(|n| n.is_finite()) {
        number.into()
    } else {
        text.into()
    }
}

/// How a map's unknown fields are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// The file is ours.
    Refused,
    /// The file is another system's, whose own reader ignored them.
    Ignored,
}

/// A map's known fields.
pub(crate) struct Fields<'n> {
    /// Where the map stands, such as `clusters[1]`; empty for the document.
    pub(crate) path: String,
    pub(crate) at: At,
    entries: Vec<&'n Entry>,
}

impl<'n> Fields<'n> {
    /// Reads a map that may have the fields `known`. Null is an empty map.
    pub(crate) fn of(
        notes: &mut Notes<'_>,
        node: &'n Node,
        path: &str,
        known: &[&'static str],
        unknown: Unknown,
    ) -> Option<Self> {
        if !matches!(node.value, Value::Map(_)) && !node.is_null() {
            let what = format!("{} is {}", name_of(path), node.description());
            notes.problem(node.at, what).expected(format!("a map with {}", one_of(known)));
            return None;
        }
        let mut entries: Vec<&Entry> = Vec::new();
        for entry in node.entries() {
            // Go's readers, which the foreign systems use, take a field's name in any case.
            let known_as = known.iter().find(|k| match unknown {
                Unknown::Refused => **k == entry.key,
                Unknown::Ignored => k.eq_ignore_ascii_case(&entry.key),
            });
            match known_as {
                Some(_) => {
                    if let Some(first) = entries.iter().find(|e| e.key.eq_ignore_ascii_case(&entry.key)) {
                        let line = first.key_at.line;
                        notes
                            .problem(entry.key_at, format!("{} is written twice", quoted(&entry.key)))
                            .expected(format!("one of each; the first stands in line {line}"));
                    } else {
                        entries.push(entry);
                    }
                }
                None => unknown_field(notes, entry, path, known, unknown),
            }
        }
        Some(Self { path: path.to_owned(), at: node.at, entries })
    }

    pub(crate) fn entry(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().copied().find(|e| e.key.eq_ignore_ascii_case(key))
    }

    /// The value of `key`, where it is written and not null.
    pub(crate) fn node(&self, key: &str) -> Option<&'n Node> {
        self.entry(key).map(|e| &e.value).filter(|v| !v.is_null())
    }

    /// The path of a field, such as `clusters[1].network`.
    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// A field whose value is one text. Numbers and the like are kept as written.
    pub(crate) fn text(&self, notes: &mut Notes<'_>, key: &str) -> Option<(&'n str, At)> {
        let node = self.node(key)?;
        let text = node.text();
        if text.is_none() {
            let what = format!("`{}` is {}", self.path_of(key), node.description());
            notes.problem(node.at, what).expected("one text");
        }
        Some((text?, node.at))
    }
}

fn unknown_field(notes: &mut Notes<'_>, entry: &Entry, path: &str, known: &[&'static str], unknown: Unknown) {
    let near = nearest(&entry.key, known);
    let what = format!("{} is not a field of {}", quoted(&entry.key), name_of(path));
    match unknown {
        Unknown::Refused => {
            let problem = notes.problem(entry.key_at, what).expected(one_of(known));
            if let Some(near) = near {
                problem.hint(format!("write `{near}`"));
            }
        }
        Unknown::Ignored => {
            let meant = near.map(|near| format!("; was `{near}` meant?")).unwrap_or_default();
            notes.warn(entry.key_at, what, format!("it is ignored{meant}"));
        }
    }
}

/// How a message calls the map at `path`.
pub(crate) fn name_of(path: &str) -> String {
    if path.is_empty() { "the document".to_owned() } else { format!("`{path}`") }
}

impl Node {
    /// What stands where nothing is written.
    pub(crate) fn null() -> Self {
        Self::leaf(At::default(), String::new(), true)
    }
}
