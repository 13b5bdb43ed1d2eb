//! Expressions in CEL: the rules of custom resources (`x-kubernetes-validations`) and the match conditions of webhooks.
//!
//! This is the only module that knows which interpreter does it. [`check`] says at the creation of a definition what is
//! wrong with its rules; [`Rules`] evaluates them on objects, as KEP-2876 says: transition rules where an old value can
//! be found, rules of what did not change only warn (KEP-4008), and all of it within a cost known beforehand
//! ([`bound`]). What the interpreter cannot do is refused, never passed over.

mod bound;
mod value;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};

use kube_cel::KubeCelExt as _;
use kube_cel::cel::common::ast::{CallExpr, ComprehensionExpr, Expr, IdedExpr, ListExpr, LiteralValue};
use kube_cel::cel::objects::OptionalValue;
use kube_cel::cel::parser::Parser;
use kube_cel::cel::{Context, ExecutionError, Value as Cel};
use serde_json::Value;

use crate::failure::Cause;
use bound::{Bounds, Known};

/// The most of one rule's text, and of its tree's depth: what the recursive interpreter surely takes.
const MOST_TEXT: usize = 10_000;
const MOST_DEPTH: usize = 100;
/// From here on an expression is evaluated on a stack of its own.
const DEEP: usize = 14;
/// What one evaluation may cost, and all of one object; Kubernetes' own limits.
const MOST_OF_A_CALL: u64 = 1_000_000;
const MOST_OF_AN_OBJECT: u64 = 10_000_000;
/// What one rule may cost at its schema's worst. Ours are coarser bounds than Kubernetes' estimates, so only what is far
/// beyond its limit (10 million) is refused; objects are held to [`MOST_OF_A_CALL`] anyhow.
const MOST_OF_A_RULE: u64 = 1_000_000_000;
/// The longest message that an expression may make.
const MOST_MESSAGE: usize = 5 << 10;

/// A compiled expression.
#[derive(Debug)]
pub(crate) struct Expression {
    tree: IdedExpr,
    /// Whether an ordinary stack may be too small for it.
    deep: bool,
}

impl Expression {
    /// Compiles an expression.
    ///
    /// # Errors
    ///
    /// In words for people, when it cannot be read, or is too long or too deep.
    pub(crate) fn compile(text: &str) -> Result<Self, String> {
        if text.len() > MOST_TEXT {
            return Err(format!("expression exceeds the maximum length of {MOST_TEXT} characters"));
        }
        // The parser recurses over what others wrote, so it gets a stack that this text cannot exhaust.
        let parse = || {
            let parsed = Parser::new().enable_optional_syntax(true).parse(text);
            let mut tree = parsed.map_err(|errors| format!("compilation failed: {errors}"))?;
            expand(&mut tree)?;
            let depth = depth(&tree, MOST_DEPTH + 1);
            if depth > MOST_DEPTH {
                return Err(format!("compilation failed: expression nests deeper than {MOST_DEPTH}"));
            }
            Ok(Self { tree, deep: depth > DEEP })
        };
        roomy("cel-parser", parse).unwrap_or_else(|| Err("compilation failed: the expression cannot be read".into()))
    }

    /// Evaluates a condition with variables.
    ///
    /// # Errors
    ///
    /// When it fails, is no boolean, or would cost too much.
    pub(crate) fn holds(&self, variables: &[(&str, &Value)]) -> Result<bool, String> {
        let known = variables.iter().map(|(name, value)| (*name, Known::Json(value)));
        let cost = Bounds::of(&self.tree, known).cost;
        if cost > MOST_OF_A_CALL {
            return Err("operation cancelled: actual cost limit exceeded".into());
        }
        let evaluate = || {
            with_context(|base| {
                let mut context = base.new_inner_scope();
                for (name, value) in variables {
                    context.add_variable_from_value(*name, value::untyped(value));
                }
                match context.resolve(&self.tree) {
                    Ok(Cel::Bool(holds)) => Ok(holds),
                    Ok(_) => Err("must evaluate to bool".into()),
                    Err(error) => Err(said(&error)),
                }
            })
        };
        safely(self.deep, evaluate).unwrap_or_else(|| Err("the expression cannot be evaluated".into()))
    }

    /// What is wrong with a condition over these variables: names that nobody knows, and what is surely no boolean.
    pub(crate) fn check_condition(&self, variables: &[&str]) -> Option<String> {
        let anything = || Known::Sized { len: 0, weight: 1 };
        let bounds = Bounds::of(&self.tree, variables.iter().map(|name| (*name, anything())));
        let plain = bounds.may_be("boolean");
        let problem = bounds.problem.map(|problem| format!("compilation failed: {problem}"));
        problem.or_else(|| (!plain).then(|| "must evaluate to bool".to_owned()))
    }

    fn uses(&self, variable: &str) -> bool {
        self.tree.references().has_variable(variable)
    }
}

/// A compiled expression, kept: those of webhooks are asked for with each request.
///
/// # Errors
///
/// As [`Expression::compile`].
pub(crate) fn cached(text: &str) -> Result<Arc<Expression>, String> {
    const MOST: usize = 1024;
    static KNOWN: LazyLock<Mutex<HashMap<String, Arc<Expression>>>> = LazyLock::new(Mutex::default);
    let known = || KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(found) = known().get(text) {
        return Ok(Arc::clone(found));
    }
    let made = Arc::new(Expression::compile(text)?);
    let mut known = known();
    if known.len() >= MOST {
        known.clear();
    }
    known.insert(text.to_owned(), Arc::clone(&made));
    Ok(made)
}

/// Runs something on a stack that is large enough for whatever others wrote; nothing if it panics.
fn roomy<T: Send>(name: &str, run: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.into()).stack_size(256 << 20);
        thread.spawn_scoped(scope, run).ok()?.join().ok()
    })
}

/// Runs the interpreter; nothing if it panics, for what it cannot do is refused and no more.
fn safely<T: Send>(deep: bool, run: impl FnOnce() -> T + Send) -> Option<T> {
    if deep {
        return roomy("cel", run);
    }
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).ok()
}

/// How deep a tree is, counted up to `most`. Not recursive, for it is what makes recursion safe.
fn depth(tree: &IdedExpr, most: usize) -> usize {
    let mut level = vec![tree];
    let mut depth = 0;
    while !level.is_empty() && depth < most {
        depth += 1;
        level = level.into_iter().flat_map(children).collect();
    }
    depth
}

fn children(tree: &IdedExpr) -> Vec<&IdedExpr> {
    use kube_cel::cel::common::ast::EntryExpr;
    match &tree.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::Comprehension(all) => {
            vec![&all.iter_range, &all.accu_init, &all.loop_cond, &all.loop_step, &all.result]
        }
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Map(map) => {
            let both = map.entries.iter().flat_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
                EntryExpr::StructField(field) => vec![&field.value],
            });
            both.collect()
        }
        Expr::Struct(made) => {
            let fields = made.entries.iter().map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => &entry.value,
                EntryExpr::StructField(field) => &field.value,
            });
            fields.collect()
        }
    }
}

fn children_mut(tree: &mut IdedExpr) -> Vec<&mut IdedExpr> {
    use kube_cel::cel::common::ast::EntryExpr;
    match &mut tree.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
        Expr::Call(call) => call.target.as_deref_mut().into_iter().chain(&mut call.args).collect(),
        Expr::Comprehension(all) => {
            let all = &mut **all;
            vec![&mut all.iter_range, &mut all.accu_init, &mut all.loop_cond, &mut all.loop_step, &mut all.result]
        }
        Expr::List(list) => list.elements.iter_mut().collect(),
        Expr::Select(select) => vec![&mut select.operand],
        Expr::Map(map) => {
            let both = map.entries.iter_mut().flat_map(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => vec![&mut entry.key, &mut entry.value],
                EntryExpr::StructField(field) => vec![&mut field.value],
            });
            both.collect()
        }
        Expr::Struct(made) => {
            let fields = made.entries.iter_mut().map(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => &mut entry.value,
                EntryExpr::StructField(field) => &mut field.value,
            });
            fields.collect()
        }
    }
}

/// Expands the macros that the parser does not know: `cel.bind`, `optMap`, `optFlatMap`. A variable is bound as cel-go
/// does it, as the accumulator of a loop over nothing.
fn expand(tree: &mut IdedExpr) -> Result<(), String> {
    for child in children_mut(tree) {
        expand(child)?;
    }
    let id = tree.id;
    // `a.?b` is `a[?"b"]` (the interpreter fails where the former finds nothing), and whatever follows stays optional.
    let chained = |tree: &IdedExpr| matches!(&tree.expr, Expr::Call(call) if call.func_name == "_[?_]");
    if let Expr::Select(select) = &mut tree.expr
        && !select.test
        && chained(&select.operand)
    {
        let field = IdedExpr { id, expr: Expr::Literal(LiteralValue::String(select.field.as_str().into())) };
        let args = vec![std::mem::take(&mut *select.operand), field];
        tree.expr = Expr::Call(CallExpr { func_name: "_[?_]".into(), target: None, args });
    }
    let Expr::Call(call) = &mut tree.expr else { return Ok(()) };
    if call.func_name == "_?._" || (call.func_name == "_[_]" && call.args.first().is_some_and(chained)) {
        call.func_name = "_[?_]".into();
    }
    let of_cel = matches!(call.target.as_deref(), Some(IdedExpr { expr: Expr::Ident(name), .. }) if name == "cel");
    let name = |tree: &IdedExpr| match &tree.expr {
        Expr::Ident(name) => Ok(name.clone()),
        _ => Err("compilation failed: argument must be a simple name".to_owned()),
    };
    let made = |expr: Expr| IdedExpr { id, expr };
    let bind = |variable: String, init: IdedExpr, result: IdedExpr| {
        let none = made(Expr::List(ListExpr::new(Vec::new())));
        let no = made(Expr::Literal(LiteralValue::Boolean(false.into())));
        Expr::Comprehension(Box::new(ComprehensionExpr {
            iter_range: none,
            iter_var: "#unused".into(),
            iter_var2: None,
            loop_step: made(Expr::Ident(variable.clone())),
            accu_var: variable,
            accu_init: init,
            loop_cond: no,
            result,
        }))
    };
    let call_of = |target: Option<IdedExpr>, name: &str, args: Vec<IdedExpr>| {
        made(Expr::Call(CallExpr { func_name: name.into(), target: target.map(Box::new), args }))
    };
    match (call.func_name.as_str(), call.args.len()) {
        ("bind", 3) if of_cel => {
            let variable = name(&call.args[0])?;
            let result = call.args.remove(2);
            let init = call.args.remove(1);
            tree.expr = bind(variable, init, result);
        }
        ("optMap" | "optFlatMap", 2) if call.target.is_some() => {
            let flat = call.func_name == "optFlatMap";
            let variable = name(&call.args[0])?;
            let Some(target) = call.target.take() else { return Ok(()) };
            let optional =
                |name: &str, args: Vec<IdedExpr>| call_of(Some(made(Expr::Ident("optional".into()))), name, args);
            let value = call_of(Some((*target).clone()), "value", Vec::new());
            let result = call.args.remove(1);
            let bound = made(bind(variable, value, result));
            let some = if flat { bound } else { optional("of", vec![bound]) };
            let has = call_of(Some(*target), "hasValue", Vec::new());
            tree.expr = call_of(None, "_?_:_", vec![has, some, optional("none", Vec::new())]).expr;
        }
        _ => {}
    }
    Ok(())
}

fn with_context<T>(evaluate: impl FnOnce(&Context<'_>) -> T) -> T {
    thread_local! {
        static BASE: RefCell<Context<'static>> = RefCell::new({
            let mut context = Context::default().with_all();
            // `type(x)`, as far as it can be compared with `string`, `int` and so on.
            context.add_function("type", |value: Cel| -> Result<Cel, ExecutionError> {
                Ok(Cel::String(Arc::new(value::type_name(&value).to_owned())))
            });
            context.add_function("dyn", |value: Cel| -> Result<Cel, ExecutionError> { Ok(value) });
            for name in bound::TYPES {
                context.add_variable_from_value(*name, (*name).to_owned());
            }
            context
        });
    }
    BASE.with_borrow(|base| evaluate(base))
}

fn said(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::UndeclaredReference(name) => format!("undeclared reference to '{name}'"),
        ExecutionError::IndexOutOfBounds(_) => "index out of bounds".into(),
        ExecutionError::DivisionByZero(_) => "division by zero".into(),
        // Others show whole values; an object's may be large.
        other => other.to_string().chars().take(256).collect(),
    }
}

/// One rule of `x-kubernetes-validations`.
#[derive(Debug)]
struct Rule {
    text: String,
    expression: Result<Expression, String>,
    message: Option<String>,
    message_expression: Option<Expression>,
    reason: String,
    field: String,
    uses_old: bool,
    optional_old: bool,
}

impl Rule {
    fn read(json: &Value) -> Self {
        let text = |key: &str| json[key].as_str().unwrap_or_default();
        let expression = Expression::compile(text("rule"));
        let message_expression = Some(text("messageExpression")).filter(|text| !text.is_empty());
        let message_expression = message_expression.and_then(|text| Expression::compile(text).ok());
        Self {
            uses_old: expression.as_ref().is_ok_and(|expression| expression.uses("oldSelf")),
            expression,
            message: Some(text("message").trim()).filter(|text| !text.is_empty()).map(str::to_owned),
            message_expression,
            reason: text("reason").to_owned(),
            field: text("fieldPath").to_owned(),
            optional_old: json["optionalOldSelf"] == true,
            text: text("rule").trim().to_owned(),
        }
    }

    fn is_deep(&self) -> bool {
        self.expression.iter().chain(&self.message_expression).any(|expression| expression.deep)
    }

    fn said(&self) -> String {
        self.message.clone().unwrap_or_else(|| format!("failed rule: {}", self.text))
    }

    fn message(&self, context: &Context<'_>) -> String {
        let made = self.message_expression.as_ref().and_then(|message| match context.resolve(&message.tree) {
            Ok(Cel::String(text)) => Some(text.trim().to_owned()),
            _ => None,
        });
        let fits = |text: &String| !text.is_empty() && !text.contains('\n') && text.len() <= MOST_MESSAGE;
        made.filter(fits).unwrap_or_else(|| self.said())
    }

    fn cause(&self, path: &str, kind: &str, message: String) -> Cause {
        let at = format!("{path}{}", self.field);
        let at = at.trim_start_matches('.').to_owned();
        match self.reason.as_str() {
            "FieldValueRequired" => Cause::required(at, &message),
            "FieldValueForbidden" => Cause::forbidden(at, &message),
            "FieldValueDuplicate" => {
                Cause { field: at, reason: "FieldValueDuplicate".into(), message: format!("Duplicate value: {kind:?}") }
            }
            _ => Cause::invalid(at, &Value::from(kind), &message),
        }
    }
}

/// A part of a schema with rules in it or below, and what rules need to know of it.
#[derive(Debug)]
struct Node {
    kind: String,
    typed: value::Typed,
    rules: Vec<Rule>,
    /// Whether this or anything below has a rule.
    ruled: bool,
    /// Whether one of these rules needs a stack of its own.
    deep: bool,
    properties: BTreeMap<String, Node>,
    additional: Option<Box<Node>>,
    items: Option<Box<Node>>,
    keys: Option<Vec<String>>,
}

impl Node {
    fn read(schema: &Value) -> Self {
        let below = |key: &str| schema.get(key).filter(|below| below.is_object());
        let properties = schema["properties"].as_object().into_iter().flatten();
        let properties: BTreeMap<_, _> = properties.map(|(name, below)| (name.clone(), Self::read(below))).collect();
        let boxed = |key: &str| below(key).map(|below| Box::new(Self::read(below)));
        let (additional, items) = (boxed("additionalProperties"), boxed("items"));
        let rules: Vec<Rule> =
            schema["x-kubernetes-validations"].as_array().into_iter().flatten().map(Rule::read).collect();
        let parts = || properties.values().chain(additional.as_deref()).chain(items.as_deref());
        let ruled = !rules.is_empty() || parts().any(|part| part.ruled);
        let deep = rules.iter().any(Rule::is_deep) || parts().any(|part| part.deep);
        let is_map_list = schema["x-kubernetes-list-type"] == "map";
        let keys = schema["x-kubernetes-list-map-keys"].as_array().filter(|_| is_map_list);
        let keys = keys.map(|keys| keys.iter().filter_map(Value::as_str).map(str::to_owned).collect());
        Self {
            kind: schema["type"].as_str().unwrap_or_default().to_owned(),
            typed: value::Typed::of(schema),
            rules,
            ruled,
            deep,
            properties,
            additional,
            items,
            keys,
        }
    }
}

/// The rules of one version of a custom resource, compiled.
#[derive(Debug)]
pub(crate) struct Rules(Node);

/// What rules say of an object.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Why it cannot be stored.
    pub(crate) causes: Vec<Cause>,
    /// Rules broken by what was there before and did not change.
    pub(crate) warnings: Vec<String>,
}

impl Rules {
    /// Compiles the rules of an `openAPIV3Schema`; nothing if it has none.
    #[must_use]
    pub(crate) fn compile(schema: &Value) -> Option<Self> {
        if !has_rules(schema) {
            return None;
        }
        Some(Self(Node::read(schema)))
    }

    /// Evaluates all rules on an object that has the schema's types.
    #[must_use]
    pub(crate) fn judge(&self, object: &Value, before: Option<&Value>) -> Verdict {
        let judge = || {
            let mut judge = Judge { verdict: Verdict::default(), budget: MOST_OF_AN_OBJECT, over: false };
            judge.look(&self.0, object, before, "");
            judge.verdict
        };
        safely(self.0.deep, judge).unwrap_or_else(|| {
            let causes = vec![Cause::invalid("<nil>", &Value::Null, "validation rules could not be evaluated")];
            Verdict { causes, warnings: Vec::new() }
        })
    }
}

/// The rules of one version of a custom resource, compiled when the first object comes and kept.
#[derive(Debug)]
pub(crate) struct LazyRules {
    schema: Option<Box<Value>>,
    compiled: OnceLock<Option<Rules>>,
}

impl LazyRules {
    /// The rules of an `openAPIV3Schema`.
    #[must_use]
    pub(crate) fn new(schema: &Value) -> Self {
        let schema = has_rules(schema).then(|| Box::new(schema.clone()));
        Self { schema, compiled: OnceLock::new() }
    }

    /// The rules, if there are any.
    pub(crate) fn get(&self) -> Option<&Rules> {
        let schema = self.schema.as_deref()?;
        self.compiled.get_or_init(|| Rules::compile(schema)).as_ref()
    }
}

fn has_rules(schema: &Value) -> bool {
    match schema {
        Value::Object(map) => map.contains_key("x-kubernetes-validations") || map.values().any(has_rules),
        Value::Array(list) => list.iter().any(has_rules),
        _ => false,
    }
}

struct Judge {
    verdict: Verdict,
    budget: u64,
    over: bool,
}

impl Judge {
    fn look(&mut self, node: &Node, value: &Value, old: Option<&Value>, path: &str) {
        if !node.ruled || self.over || value.is_null() {
            return;
        }
        if !node.rules.is_empty() {
            self.rules(node, value, old, path);
        }
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    let known = node.properties.get(name);
                    let Some(below) = known.or(node.additional.as_deref()) else { continue };
                    let path = if known.is_some() { format!("{path}.{name}") } else { format!("{path}[{name}]") };
                    self.look(below, value, old.and_then(|old| old.get(name)), &path);
                }
            }
            Value::Array(list) => {
                let Some(below) = &node.items else { return };
                for (index, value) in list.iter().enumerate() {
                    // Only entries of a list with keys can be found again in the old one.
                    let before = node.keys.as_ref().and_then(|keys| {
                        let same = |other: &&Value| keys.iter().all(|key| other.get(key) == value.get(key));
                        old?.as_array()?.iter().find(same)
                    });
                    self.look(below, value, before, &format!("{path}[{index}]"));
                }
            }
            _ => {}
        }
    }

    fn rules(&mut self, node: &Node, value: &Value, old: Option<&Value>, path: &str) {
        let plain = path.trim_start_matches('.').to_owned();
        let kind = Value::from(node.kind.as_str());
        with_context(|base| {
            let mut context = base.new_inner_scope();
            context.add_variable_from_value("self", value::typed(value, node, base));
            for rule in &node.rules {
                if rule.uses_old && old.is_none() && !rule.optional_old {
                    continue;
                }
                let expression = match &rule.expression {
                    Ok(expression) => expression,
                    Err(problem) => {
                        self.verdict.causes.push(Cause::invalid(plain.clone(), &kind, problem));
                        continue;
                    }
                };
                let known = [("self", Known::Json(value)), ("oldSelf", Known::Json(old.unwrap_or(&Value::Null)))];
                let mut cost = Bounds::of(&expression.tree, known).cost;
                if let Some(message) = &rule.message_expression {
                    cost = cost.saturating_add(Bounds::of(&message.tree, known).cost);
                }
                if cost > MOST_OF_A_CALL {
                    let problem = format!("call cost exceeds limit for rule: {}", rule.said());
                    self.verdict.causes.push(Cause::invalid(plain.clone(), &kind, &problem));
                    self.over = true;
                    return;
                }
                if cost > self.budget {
                    let problem = "validation failed due to running out of cost budget, no further validation rules \
                                   will be run";
                    self.verdict.causes.push(Cause::invalid(plain.clone(), &kind, problem));
                    self.over = true;
                    return;
                }
                self.budget -= cost;
                let mut scope = context.new_inner_scope();
                if rule.uses_old || rule.message_expression.is_some() {
                    let before = old.map(|old| value::typed(old, node, base));
                    let before = match before {
                        Some(before) if rule.optional_old => value::optional(OptionalValue::of(before)),
                        None if rule.optional_old => value::optional(OptionalValue::none()),
                        Some(before) => before,
                        None => Cel::Null,
                    };
                    scope.add_variable_from_value("oldSelf", before);
                }
                let cause = match scope.resolve(&expression.tree) {
                    Ok(Cel::Bool(true)) => continue,
                    Ok(Cel::Bool(false)) => rule.cause(path, &node.kind, rule.message(&scope)),
                    Ok(_) => Cause::invalid(plain.clone(), &kind, &format!("rule is no boolean: {}", rule.said())),
                    Err(error) => {
                        let problem = match &error {
                            ExecutionError::NoSuchOverload => format!(
                                "no such overload: call arguments did not match a supported operator, function or macro \
                                 signature for rule: {}",
                                rule.said()
                            ),
                            error => format!("{} evaluating rule: {}", said(error), rule.said()),
                        };
                        Cause::invalid(plain.clone(), &kind, &problem)
                    }
                };
                if !rule.uses_old && old == Some(value) {
                    self.verdict.warnings.push(format!("{}: {}", cause.field, cause.message));
                } else {
                    self.verdict.causes.push(cause);
                }
            }
        });
    }
}

const REASONS: [&str; 4] = ["FieldValueRequired", "FieldValueForbidden", "FieldValueInvalid", "FieldValueDuplicate"];

/// What is wrong with the rules of an `openAPIV3Schema` that stands at `at`.
#[must_use]
pub(crate) fn check(schema: &Value, at: &str) -> Vec<Cause> {
    let mut causes = Vec::new();
    if has_rules(schema) {
        check_part(schema, at, Place { root: true, correlates: true, often: 1 }, &mut causes);
    }
    causes
}

#[derive(Clone, Copy)]
struct Place {
    root: bool,
    /// Whether an old value can be found for each new one.
    correlates: bool,
    /// How often it is there, at the most.
    often: u64,
}

fn check_part(schema: &Value, at: &str, place: Place, causes: &mut Vec<Cause>) {
    let rules = schema["x-kubernetes-validations"].as_array();
    for (index, rule) in rules.into_iter().flatten().enumerate() {
        check_rule(schema, rule, &format!("{at}.x-kubernetes-validations[{index}]"), place, causes);
    }
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        check_part(below, &format!("{at}.properties[{name}]"), Place { root: false, ..place }, causes);
    }
    let often = place.often.saturating_mul(bound::schema_len(schema));
    if schema["additionalProperties"].is_object() {
        let place = Place { root: false, often, ..place };
        check_part(&schema["additionalProperties"], &format!("{at}.additionalProperties"), place, causes);
    }
    if schema["items"].is_object() {
        let correlates = place.correlates && schema["x-kubernetes-list-type"] == "map";
        let place = Place { root: false, correlates, often };
        check_part(&schema["items"], &format!("{at}.items"), place, causes);
    }
}

fn check_rule(schema: &Value, rule: &Value, at: &str, place: Place, causes: &mut Vec<Cause>) {
    let text = |key: &str| rule[key].as_str().unwrap_or_default();
    let expression = text("rule").trim();
    if expression.is_empty() {
        causes.push(Cause::required(format!("{at}.rule"), "rule is not specified"));
        return;
    }
    let message = rule["message"].as_str();
    if message.is_some_and(|message| message.trim().is_empty()) {
        let problem = "message must be non-empty if specified";
        causes.push(Cause::invalid(format!("{at}.message"), &rule["message"], problem));
    } else if message.is_some_and(|message| message.trim().contains('\n')) {
        causes.push(Cause::invalid(format!("{at}.message"), &rule["message"], "message must not contain line breaks"));
    } else if message.is_none() && expression.contains('\n') {
        let problem = "message must be specified if rule contains line breaks";
        causes.push(Cause::required(format!("{at}.message"), problem));
    }
    if !rule["reason"].is_null() && !REASONS.contains(&text("reason")) {
        let supported = REASONS.map(|reason| format!("{reason:?}")).join(", ");
        causes.push(Cause {
            field: format!("{at}.reason"),
            reason: "FieldValueNotSupported".into(),
            message: format!("Unsupported value: {}: supported values: {supported}", rule["reason"]),
        });
    }
    if let Some(path) = rule["fieldPath"].as_str()
        && let Err(problem) = find(schema, path)
    {
        causes.push(Cause::invalid(format!("{at}.fieldPath"), &rule["fieldPath"], &problem));
    }
    let mut uses_old = false;
    match Expression::compile(text("rule")) {
        Err(problem) => causes.push(Cause::invalid(format!("{at}.rule"), &rule["rule"], &problem)),
        Ok(compiled) => {
            uses_old = compiled.uses("oldSelf");
            let bounds = Bounds::of(&compiled.tree, names(schema, place));
            let wrong = bounds.problem.clone().map(|problem| format!("compilation failed: {problem}"));
            let wrong = wrong.or_else(|| (!bounds.may_be("boolean")).then(|| "must evaluate to a bool".to_owned()));
            if let Some(problem) = wrong {
                causes.push(Cause::invalid(format!("{at}.rule"), &rule["rule"], &problem));
            } else if bounds.cost.saturating_mul(place.often) > MOST_OF_A_RULE {
                let problem = "estimated rule cost exceeds budget (try simplifying the rule, or adding maxItems, \
                               maxProperties, and maxLength where arrays, maps, and strings are declared)";
                causes.push(Cause::forbidden(format!("{at}.rule"), problem));
            }
            if uses_old && !place.correlates {
                let problem = "oldSelf cannot be used on the uncorrelatable portion of the schema";
                causes.push(Cause::invalid(format!("{at}.rule"), &rule["rule"], problem));
            }
        }
    }
    if !uses_old && !rule["optionalOldSelf"].is_null() {
        let problem = "may not be set if oldSelf is not used in rule";
        causes.push(Cause::invalid(format!("{at}.optionalOldSelf"), &rule["optionalOldSelf"], problem));
    }
    if rule["messageExpression"].is_string() {
        let at = format!("{at}.messageExpression");
        let given = &rule["messageExpression"];
        if text("messageExpression").trim().is_empty() {
            causes.push(Cause::required(at, "must be non-empty if specified"));
            return;
        }
        match Expression::compile(text("messageExpression")) {
            Err(problem) => causes.push(Cause::invalid(at, given, &problem)),
            Ok(compiled) => {
                let bounds = Bounds::of(&compiled.tree, names(schema, place));
                let wrong = bounds.problem.clone().map(|problem| format!("compilation failed: {problem}"));
                let not_text = (!bounds.may_be("string")).then(|| "must evaluate to a string".to_owned());
                if let Some(problem) = wrong.or(not_text) {
                    causes.push(Cause::invalid(at, given, &problem));
                }
            }
        }
    }
}

fn names(schema: &Value, place: Place) -> [(&'static str, Known<'_>); 2] {
    let known = Known::Schema(schema, place.root);
    [("self", known), ("oldSelf", known)]
}

/// Whether a `fieldPath` such as `.spec['a-b'].c` leads to a field of the schema.
fn find(schema: &Value, path: &str) -> Result<(), String> {
    let mut at = schema;
    let mut rest = path;
    if rest.is_empty() {
        return Err("fieldPath must be non-empty if specified".into());
    }
    while !rest.is_empty() {
        let name;
        if let Some(below) = rest.strip_prefix('.') {
            let end = below.find(['.', '[']).unwrap_or(below.len());
            (name, rest) = below.split_at(end);
        } else if let Some(below) = rest.strip_prefix("['") {
            let Some((quoted, after)) = below.split_once("']") else {
                return Err("fieldPath must be a valid path: unterminated name".into());
            };
            (name, rest) = (quoted, after);
        } else {
            return Err("fieldPath must be a valid path: expected . or ['".into());
        }
        let below = at["properties"].get(name).or_else(|| at.get("additionalProperties").filter(|a| a.is_object()));
        at = below.ok_or("fieldPath must be a valid path: does not refer to a valid field")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
