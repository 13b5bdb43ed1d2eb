//! What an expression can cost at the most, and what is surely wrong with it: one walk over its tree.
//!
//! The interpreter counts no steps, so they are bounded before it begins: a loop costs the length of what it runs over
//! times the cost of its body, and every value has a bound of its size, so that nothing grows unseen
//! (`cel.bind(a, s + s, cel.bind(b, a + a, …))`). With an object at hand the bounds are of this object, with only a schema
//! they are the schema's worst. As with cel-go, everything counts that could be evaluated, short circuits or not.

use kube_cel::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, SelectExpr};
use serde_json::Value;

use super::value::escape;

/// The largest request: nothing in an object is longer.
const MOST_BYTES: u64 = 3 << 20;

/// Names of types.
pub(super) const TYPES: &[&str] =
    &["int", "uint", "double", "bool", "string", "bytes", "list", "map", "null_type", "type"];

/// First parts of functions with two names.
const SPACES: &[&str] = &["sets", "math", "lists", "strings", "optional", "format", "ip", "jsonpatch", "cel", "base64"];

/// Functions that the interpreter has, operators left out.
const FUNCTIONS: &[&str] = &[
    "add",
    "asApproximateFloat",
    "asInteger",
    "bind",
    "bool",
    "bytes",
    "charAt",
    "cidr",
    "compareTo",
    "contains",
    "containsCIDR",
    "containsIP",
    "distinct",
    "double",
    "duration",
    "dyn",
    "endsWith",
    "family",
    "find",
    "findAll",
    "first",
    "flatten",
    "format",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getEscapedPath",
    "getFullYear",
    "getHost",
    "getHostname",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getPort",
    "getQuery",
    "getScheme",
    "getSeconds",
    "has",
    "hasValue",
    "indexOf",
    "int",
    "ip",
    "isCIDR",
    "isGlobalUnicast",
    "isGreaterThan",
    "isIP",
    "isInteger",
    "isLessThan",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isLoopback",
    "isQuantity",
    "isSemver",
    "isSorted",
    "isURL",
    "isUnspecified",
    "join",
    "last",
    "lastIndexOf",
    "lowerAscii",
    "major",
    "masked",
    "matches",
    "max",
    "min",
    "minor",
    "or",
    "orValue",
    "patch",
    "prefixLength",
    "quantity",
    "replace",
    "reverse",
    "semver",
    "sign",
    "size",
    "slice",
    "sort",
    "split",
    "startsWith",
    "string",
    "sub",
    "substring",
    "sum",
    "timestamp",
    "trim",
    "type",
    "uint",
    "upperAscii",
    "url",
    "validate",
    "value",
];

/// What is known of a value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Known<'a> {
    /// It is this.
    Json(&'a Value),
    /// It is of this schema; whether that is of a whole object.
    Schema(&'a Value, bool),
    /// It, and everything in it, is no longer than `len`; all of it together is no more than `weight`.
    Sized { len: u64, weight: u64 },
}

const SMALL: Known<'static> = Known::Sized { len: 1, weight: 1 };

impl<'a> Known<'a> {
    fn len(self) -> u64 {
        match self {
            Known::Json(Value::Array(list)) => list.len() as u64,
            Known::Json(Value::Object(map)) => map.len() as u64,
            Known::Json(Value::String(text)) => text.len() as u64,
            Known::Json(_) => 1,
            Known::Schema(schema, _) => schema_len(schema),
            Known::Sized { len, .. } => len,
        }
    }

    /// The longest in it, and all of it.
    fn size(self) -> (u64, u64) {
        match self {
            Known::Json(value) => measure(value),
            Known::Schema(schema, _) => (self.len(), self.len().max(schema_weight(schema, 8))),
            Known::Sized { len, weight } => (len, weight),
        }
    }

    fn sized(self) -> Self {
        let (len, weight) = self.size();
        Known::Sized { len, weight }
    }

    fn element(self) -> Self {
        match self {
            Known::Json(Value::Array(list)) => {
                let (mut len, mut weight) = (0, 0);
                for (one, all) in list.iter().map(measure) {
                    (len, weight) = (len.max(one), weight.max(all));
                }
                Known::Sized { len, weight }
            }
            // Loops over a map are over its keys.
            Known::Json(Value::Object(map)) => {
                let len = map.keys().map(String::len).max().unwrap_or(0) as u64;
                Known::Sized { len, weight: len }
            }
            Known::Schema(schema, _) if schema["items"].is_object() => Known::Schema(&schema["items"], false),
            Known::Schema(schema, _) if schema["type"] == "object" => Known::Sized { len: 256, weight: 256 },
            other => other.sized(),
        }
    }

    /// What an index leads to.
    fn entry(self) -> Self {
        match self {
            Known::Schema(schema, _) if schema["additionalProperties"].is_object() => {
                Known::Schema(&schema["additionalProperties"], false)
            }
            Known::Schema(..) => self.element(),
            other => other.sized(),
        }
    }

    fn field(self, name: &str) -> Result<Self, String> {
        match self {
            Known::Json(Value::Object(map)) => {
                let found = map.iter().find(|(key, _)| *key == name || escape(key) == name);
                Ok(found.map_or(SMALL, |(_, value)| Known::Json(value)))
            }
            Known::Json(_) => Ok(SMALL),
            Known::Schema(schema, whole) => {
                let whole = whole || schema["x-kubernetes-embedded-resource"] == true;
                if whole && matches!(name, "apiVersion" | "kind" | "metadata") {
                    return Ok(if name == "metadata" { Known::Schema(&METADATA, false) } else { short() });
                }
                let properties = schema["properties"].as_object();
                let found = properties.into_iter().flatten().find(|(key, _)| escape(key) == name);
                if let Some((_, below)) = found {
                    return Ok(Known::Schema(below, false));
                }
                if schema["additionalProperties"].is_object() {
                    return Ok(Known::Schema(&schema["additionalProperties"], false));
                }
                let open = schema["x-kubernetes-preserve-unknown-fields"] == true
                    || schema["additionalProperties"] == true
                    || schema["x-kubernetes-int-or-string"] == true
                    || schema["type"].is_null();
                match schema["type"].as_str() {
                    _ if open => Ok(Known::Sized { len: MOST_BYTES, weight: MOST_BYTES }),
                    Some("object") => Err(format!("undefined field '{name}'")),
                    Some(other) => Err(format!("type '{other}' does not support field selection")),
                    None => Ok(self.sized()),
                }
            }
            sized @ Known::Sized { .. } => Ok(sized),
        }
    }
}

/// What rules may see of an object's metadata.
static METADATA: std::sync::LazyLock<Value> = std::sync::LazyLock::new(|| {
    serde_json::json!({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 253}, "generateName": {"type": "string", "maxLength": 253}}})
});

fn short() -> Known<'static> {
    Known::Sized { len: 253, weight: 253 }
}

/// The longest in a value, and all of it.
fn measure(value: &Value) -> (u64, u64) {
    match value {
        Value::String(text) => (text.len() as u64, 1 + text.len() as u64),
        Value::Array(list) => list.iter().fold((list.len() as u64, 1), |(len, weight), item| {
            let (one, all) = measure(item);
            (len.max(one), weight + all)
        }),
        Value::Object(map) => map.iter().fold((map.len() as u64, 1), |(len, weight), (key, item)| {
            let (one, all) = measure(item);
            (len.max(one).max(key.len() as u64), weight + all + key.len() as u64)
        }),
        _ => (1, 1),
    }
}

/// How long a value of a schema can be.
pub(super) fn schema_len(schema: &Value) -> u64 {
    let limit = |key: &str| schema[key].as_u64();
    match schema["type"].as_str() {
        Some("array") => limit("maxItems").unwrap_or_else(|| MOST_BYTES / (least_bytes(&schema["items"]) + 1)),
        Some("object") => match schema["additionalProperties"].as_object() {
            Some(_) => limit("maxProperties")
                .unwrap_or_else(|| MOST_BYTES / (least_bytes(&schema["additionalProperties"]) + 5)),
            None => schema["properties"].as_object().map_or(1, |known| known.len().max(1) as u64),
        },
        Some("string") => {
            let choices = schema["enum"].as_array().map(|list| list.iter().filter_map(Value::as_str).map(str::len));
            match (limit("maxLength"), choices.and_then(Iterator::max), schema["format"].as_str()) {
                (Some(most), ..) => most,
                (None, Some(longest), _) => longest as u64,
                (None, None, Some("date-time" | "date" | "duration")) => 50,
                _ => MOST_BYTES,
            }
        }
        _ if schema["x-kubernetes-int-or-string"] == true => 1000,
        _ => 1,
    }
}

fn schema_weight(schema: &Value, deep: u8) -> u64 {
    let own = schema_len(schema);
    if deep == 0 {
        return own;
    }
    let below = |part: &Value| if part.is_object() { schema_weight(part, deep - 1) } else { 1 };
    let fields = schema["properties"].as_object().into_iter().flatten();
    let fields = fields.fold(0_u64, |all, (_, field)| all.saturating_add(below(field)));
    let each = below(&schema["items"]).max(below(&schema["additionalProperties"]));
    // All of it came in one request.
    own.saturating_mul(each).saturating_add(fields).min(MOST_BYTES)
}

/// How many bytes a value of a schema takes at the least.
fn least_bytes(schema: &Value) -> u64 {
    match schema["type"].as_str() {
        Some("string") => 2 + schema["minLength"].as_u64().unwrap_or(0),
        Some("boolean") => 4,
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            2 + required.map(|name| name.len() as u64 + 4 + least_bytes(&schema["properties"][name])).sum::<u64>()
        }
        Some("array") => 2,
        _ => 1,
    }
}

/// What a walk over an expression found.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Steps, at the most.
    pub(super) cost: u64,
    /// The first thing that is surely wrong.
    pub(super) problem: Option<String>,
    kind: Option<&'static str>,
}

impl Bounds {
    pub(super) fn of<'a>(tree: &IdedExpr, names: impl IntoIterator<Item = (&'a str, Known<'a>)>) -> Self {
        let scope = names.into_iter().map(|(name, known)| (name.to_owned(), known)).collect();
        let mut walk = Walk { scope, problem: None };
        let (cost, result) = walk.go(tree);
        Self { cost, problem: walk.problem, kind: kind_of(&tree.expr, result) }
    }

    /// Whether the result may be of a type (as schemas name them).
    pub(super) fn may_be(&self, kind: &str) -> bool {
        self.kind.is_none_or(|known| known == kind)
    }
}

/// The type of a result, where it is plain to see.
fn kind_of(expr: &Expr, result: Known<'_>) -> Option<&'static str> {
    match expr {
        Expr::Literal(LiteralValue::Boolean(_)) => Some("boolean"),
        Expr::Literal(LiteralValue::String(_)) => Some("string"),
        Expr::Literal(_) => Some("other"),
        Expr::List(_) | Expr::Map(_) | Expr::Struct(_) => Some("other"),
        Expr::Select(select) if select.test => Some("boolean"),
        Expr::Select(_) | Expr::Ident(_) => match result {
            Known::Schema(schema, _) => match schema["type"].as_str()? {
                "boolean" => Some("boolean"),
                "string" if schema["format"].is_null() => Some("string"),
                _ => Some("other"),
            },
            _ => None,
        },
        Expr::Call(call) => match call.func_name.as_str() {
            "_==_" | "_!=_" | "_<_" | "_<=_" | "_>_" | "_>=_" | "_&&_" | "_||_" | "!_" | "@in" | "_in_"
            | "contains" | "startsWith" | "endsWith" | "matches" | "hasValue" => Some("boolean"),
            "size" | "_-_" | "_*_" | "_/_" | "_%_" => Some("other"),
            "format" | "join" | "lowerAscii" | "upperAscii" | "trim" => Some("string"),
            _ => None,
        },
        _ => None,
    }
}

struct Walk<'a> {
    scope: Vec<(String, Known<'a>)>,
    problem: Option<String>,
}

impl<'a> Walk<'a> {
    fn wrong(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
    }

    fn go(&mut self, tree: &IdedExpr) -> (u64, Known<'a>) {
        match &tree.expr {
            Expr::Unspecified => (1, SMALL),
            Expr::Literal(LiteralValue::String(text)) => {
                let len = text.inner().len() as u64;
                (1, Known::Sized { len, weight: len + 1 })
            }
            Expr::Literal(_) => (1, SMALL),
            Expr::Ident(name) => match self.scope.iter().rev().find(|(known, _)| known == name) {
                Some((_, known)) => (1, *known),
                None if TYPES.contains(&name.as_str()) => (1, SMALL),
                None => {
                    self.wrong(format!("undeclared reference to '{name}' (in container '')"));
                    (1, SMALL)
                }
            },
            Expr::Select(select) => self.select(select),
            Expr::List(list) => self.all(&list.elements),
            Expr::Map(map) => {
                let entries = map.entries.iter().flat_map(|entry| match &entry.expr {
                    EntryExpr::MapEntry(entry) => [Some(&entry.key), Some(&entry.value)],
                    EntryExpr::StructField(field) => [Some(&field.value), None],
                });
                self.all(entries.flatten())
            }
            Expr::Struct(made) => {
                self.wrong(format!("undeclared reference to '{}' (in container '')", made.type_name));
                (1, SMALL)
            }
            Expr::Call(call) => self.call(call),
            Expr::Comprehension(looped) => self.looped(looped),
        }
    }

    /// Several values that become one.
    fn all<'t>(&mut self, trees: impl IntoIterator<Item = &'t IdedExpr>) -> (u64, Known<'a>) {
        let (mut cost, mut count, mut longest, mut weight) = (1_u64, 0_u64, 0_u64, 1_u64);
        for tree in trees {
            let (more, known) = self.go(tree);
            let (len, heavy) = known.size();
            (cost, count, longest) = (cost.saturating_add(more), count + 1, longest.max(len));
            weight = weight.saturating_add(heavy);
        }
        (cost, Known::Sized { len: longest.max(count), weight })
    }

    fn select(&mut self, select: &SelectExpr) -> (u64, Known<'a>) {
        let (cost, operand) = self.go(&select.operand);
        let found = operand.field(&select.field).unwrap_or_else(|problem| {
            self.wrong(problem);
            SMALL
        });
        (cost.saturating_add(1), if select.test { SMALL } else { found })
    }

    fn call(&mut self, call: &CallExpr) -> (u64, Known<'a>) {
        let name = call.func_name.as_str();
        let space = match call.target.as_deref() {
            Some(IdedExpr { expr: Expr::Ident(space), .. })
                if SPACES.contains(&space.as_str()) && !self.scope.iter().any(|(known, _)| known == space) =>
            {
                Some(space.as_str())
            }
            _ => None,
        };
        let operator = name.starts_with(['_', '!', '-', '@', '?']);
        if space.is_none() && !operator && !FUNCTIONS.contains(&name) {
            self.wrong(format!("undeclared reference to '{name}' (in container '')"));
        }
        let target = call.target.as_deref().filter(|_| space.is_none());
        let mut cost = 1_u64;
        let mut given = Vec::new();
        for tree in target.into_iter().chain(&call.args) {
            let (more, known) = self.go(tree);
            cost = cost.saturating_add(more);
            given.push(known);
        }
        let sizes: Vec<(u64, u64)> = given.iter().map(|known| known.size()).collect();
        let heavy = sizes.iter().fold(1_u64, |all, (_, weight)| all.saturating_add(*weight));
        let sum = sizes.iter().fold(0_u64, |all, (len, _)| all.saturating_add(*len));
        let product = sizes.iter().fold(1_u64, |all, (len, _)| all.saturating_mul((*len).max(1)));
        let first = given.first().copied().unwrap_or(SMALL);
        let own = first.len();
        let whole = Known::Sized { len: heavy, weight: heavy };
        let (more, result) = match (space, name) {
            (None, "_[?_]") => {
                let field = match call.args.get(1).map(|tree| &tree.expr) {
                    Some(Expr::Literal(LiteralValue::String(field))) => Some(field.inner()),
                    _ => None,
                };
                let found = match (field, first) {
                    (Some(field), Known::Schema(schema, _)) if !schema["additionalProperties"].is_object() => {
                        first.field(field)
                    }
                    (Some(field), Known::Json(_)) => first.field(field),
                    _ => Ok(first.entry()),
                };
                match found {
                    Ok(found) => (1, found),
                    Err(problem) => {
                        self.wrong(problem);
                        (1, SMALL)
                    }
                }
            }
            (None, "_[_]") => (1, first.entry()),
            (None, "value" | "orValue" | "or" | "dyn" | "first" | "last") => {
                (1, if given.len() > 1 { whole } else { first })
            }
            (None, "_+_") => (sum / 10 + 1, Known::Sized { len: sum, weight: heavy }),
            (None, "_?_:_" | "_&&_" | "_||_") => {
                let len = sizes.iter().map(|(len, _)| *len).max().unwrap_or(1);
                (1, Known::Sized { len, weight: heavy })
            }
            (
                None,
                "size" | "has" | "hasValue" | "_<_" | "_>_" | "_<=_" | "_>=_" | "!_" | "_-_" | "_*_" | "_/_" | "_%_",
            ) => (1, SMALL),
            // Equal values are compared to their ends, but only as far as both go.
            (None, "_==_" | "_!=_") => (sizes.iter().map(|(_, weight)| *weight).min().unwrap_or(1) / 10 + 1, SMALL),
            (None, "@in" | "_in_") => (given.get(1).map_or(1, |list| list.len()), SMALL),
            (None, "matches" | "find" | "findAll") => (product / 10 + 1, whole),
            (None, "contains" | "startsWith" | "endsWith") => (own / 10 + 1, SMALL),
            (None, "replace") => {
                let with = sizes.get(2).map_or(1, |(len, _)| *len);
                let len = own.saturating_mul(with.saturating_add(1));
                (len / 10 + 1, Known::Sized { len, weight: len })
            }
            (None, "distinct" | "sort") => (own.saturating_mul(own), first.sized()),
            (None, "join") => {
                let by = sizes.get(1).map_or(0, |(len, _)| *len);
                let len = heavy.saturating_add(own.saturating_mul(by));
                (len / 10 + 1, Known::Sized { len, weight: len })
            }
            (Some("sets"), _) => (product, SMALL),
            (Some("lists"), "range") => {
                let many = match call.args.first().map(|tree| &tree.expr) {
                    Some(Expr::Literal(LiteralValue::Int(many))) => u64::try_from(*many.inner()).unwrap_or(0),
                    _ => u64::MAX,
                };
                (many, Known::Sized { len: many, weight: many })
            }
            // Whatever else is there reads its arguments once and makes nothing larger of them.
            _ => (heavy / 10 + 1, whole),
        };
        (cost.saturating_add(more), result)
    }

    fn looped(&mut self, looped: &ComprehensionExpr) -> (u64, Known<'a>) {
        let (over, range) = self.go(&looped.iter_range);
        let binds = matches!(&looped.iter_range.expr, Expr::List(list) if list.elements.is_empty());
        let times = if binds { 0 } else { range.len() };
        let (init, first) = self.go(&looped.accu_init);
        let depth = self.scope.len();
        if binds {
            self.scope.push((looped.accu_var.clone(), first));
            let (cost, result) = self.go(&looped.result);
            self.scope.truncate(depth);
            return (over.saturating_add(init).saturating_add(cost), result);
        }
        self.scope.push((looped.iter_var.clone(), range.element()));
        if let Some(second) = &looped.iter_var2 {
            self.scope.push((second.clone(), range.entry()));
        }
        // What is gathered is counted once, below.
        self.scope.push((looped.accu_var.clone(), Known::Sized { len: 0, weight: 0 }));
        let (condition, _) = self.go(&looped.loop_cond);
        let (step, made) = self.go(&looped.loop_step);
        self.scope.truncate(depth);
        let (len, weight) = made.size();
        let gathers = matches!(looped.accu_init.expr, Expr::List(_));
        let result = if gathers {
            Known::Sized { len: len.max(times), weight: weight.saturating_mul(times) }
        } else {
            Known::Sized { len, weight }
        };
        self.scope.push((looped.accu_var.clone(), result));
        let (last, result) = self.go(&looped.result);
        self.scope.truncate(depth);
        let body = condition.saturating_add(step).saturating_mul(times);
        let all = over.saturating_add(init).saturating_add(body).saturating_add(last);
        // A list that grows by one is copied each time.
        let copies = if gathers { times.saturating_mul(times) / 100 } else { 0 };
        (all.saturating_add(copies), result)
    }
}
