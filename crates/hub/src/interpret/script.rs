//! Runs a script of somebody's: Lua, alone in a state of its own, with nothing in reach but what it was given, and for so
//! long and in so much memory and no more.

mod convert;
mod kube;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use mlua::chunk::{ChunkMode, Compiler};
use mlua::{Lua, LuaOptions, MultiValue, StdLib, VmState};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

/// How much processor time one call may take (Karmada v1.18.2 gives a second on the clock; a busy machine shall not fail
/// what is well).
const LONGEST: Duration = Duration::from_secs(1);
/// How much memory one call may have.
const MOST_MEMORY: usize = 64 << 20;
/// The clock is looked at once in so many steps.
const STEPS: u32 = 500;

/// What Karmada takes out of Lua's base (v1.18.2), and what Luau has besides.
const FORBIDDEN: [&str; 15] = [
    "collectgarbage",
    "dofile",
    "getfenv",
    "getmetatable",
    "load",
    "loadfile",
    "loadstring",
    "rawequal",
    "rawget",
    "rawset",
    "rawlen",
    "setfenv",
    "setmetatable",
    "module",
    "newproxy",
];

/// Why a script gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// It cannot be read.
    #[error("the script cannot be read: {0}")]
    Syntax(String),
    /// It has not the function that is asked.
    #[error("not found function {0}")]
    NoFunction(&'static str),
    /// It failed.
    #[error("{0}")]
    Failed(String),
    /// It does not come to an end.
    #[error("the script does not end within {} s of processor time", LONGEST.as_secs())]
    TooLong,
    /// It wants too much memory.
    #[error("the script needs more than {} MiB of memory", MOST_MEMORY >> 20)]
    TooLarge,
    /// It gave something else than what was asked for.
    #[error("{0}")]
    Result(String),
}

/// What a script gave back.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Given {
    /// Nothing.
    Nil,
    /// Yes or no.
    Bool(bool),
    /// A number.
    Number(f64),
    /// A table; empty ones are as in the objects it was made from.
    Table(Value),
    /// Something else, by the name of its type.
    Other(&'static str),
}

impl Given {
    /// What it is, in Lua's word.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool(_) => "boolean",
            Self::Number(_) => "number",
            Self::Table(_) => "table",
            Self::Other(kind) => kind,
        }
    }
}

/// What a value is, in Lua's word.
fn kind(value: &mlua::Value) -> &'static str {
    match value {
        mlua::Value::Integer(_) => "number",
        other => other.type_name(),
    }
}

fn failed(error: &mlua::Error) -> ScriptError {
    match error {
        mlua::Error::SyntaxError { message, .. } => ScriptError::Syntax(first_line(message)),
        mlua::Error::MemoryError(_) => ScriptError::TooLarge,
        mlua::Error::CallbackError { cause, .. } => failed(cause),
        mlua::Error::WithContext { cause, .. } => failed(cause),
        mlua::Error::RuntimeError(text) => ScriptError::Failed(first_line(text)),
        other => ScriptError::Failed(first_line(&other.to_string())),
    }
}

/// Without Lua's traceback, which is of no use for one function.
fn first_line(text: &str) -> String {
    text.split("\nstack traceback:").next().unwrap_or_default().trim().to_owned()
}

/// A state with the safe libraries, a limit of time and one of memory. The first tells when the time is over.
fn state() -> mlua::Result<(Rc<Cell<bool>>, Lua)> {
    let libraries = StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::OS;
    let lua = Lua::new_with(libraries, LuaOptions::default())?;
    lua.set_memory_limit(MOST_MEMORY)?;
    // Luau calls some of its functions without a look at their names; those that are forbidden it must not.
    lua.set_compiler(Compiler::new().set_disabled_builtins(FORBIDDEN));
    let globals = lua.globals();
    for name in FORBIDDEN {
        let refuse = move |_: &Lua, _: MultiValue| -> mlua::Result<()> {
            Err(mlua::Error::RuntimeError(format!("call function {name} is not supported in a resource interpreter")))
        };
        globals.raw_set(name, lua.create_function(refuse)?)?;
    }
    globals.raw_set(
        "print",
        lua.create_function(|_, said: mlua::Variadic<mlua::Value>| {
            let said: Vec<String> = said.iter().map(|value| value.to_string().unwrap_or_default()).collect();
            tracing::debug!("a script says: {}", said.join("\t"));
            Ok(())
        })?,
    )?;
    let kube = kube::library(&lua)?;
    kube.set_readonly(true);
    globals.raw_set(
        "require",
        lua.create_function(move |_, name: String| match name.as_str() {
            "kube" => Ok(kube.clone()),
            other => Err(mlua::Error::RuntimeError(format!("module {other} not found: there is kube and no other"))),
        })?,
    )?;
    lua.sandbox(true)?;
    let over = Rc::new(Cell::new(false));
    let (flag, steps) = (Rc::clone(&over), Cell::new(0_u32));
    let end = processor_time() + LONGEST;
    lua.set_interrupt(move |_| {
        steps.set(steps.get().wrapping_add(1));
        if !flag.get() && steps.get().is_multiple_of(STEPS) && processor_time() > end {
            flag.set(true);
        }
        // From then on every step fails, so that no `pcall` outlives it.
        match flag.get() {
            true => Err(mlua::Error::RuntimeError("time is over".to_owned())),
            false => Ok(VmState::Continue),
        }
    });
    Ok((over, lua))
}

/// How much this thread has worked.
fn processor_time() -> Duration {
    let spent = clock_gettime(ClockId::ThreadCPUTime);
    let whole = u64::try_from(spent.tv_sec).unwrap_or_default();
    Duration::from_secs(whole) + Duration::from_nanos(u64::try_from(spent.tv_nsec).unwrap_or_default())
}

/// Whether a script can be read.
///
/// # Errors
///
/// Why not.
pub fn check(script: &str) -> Result<(), ScriptError> {
    let lua = Lua::new_with(StdLib::NONE, LuaOptions::default()).map_err(|error| failed(&error))?;
    let chunk = lua.load(script).set_name("=luaScript").set_mode(ChunkMode::Text);
    chunk.into_function().map(drop).map_err(|error| failed(&error))
}

/// Calls a function of a script. The empty tables of what it returns become what they are in `made_from`.
///
/// # Errors
///
/// When it cannot be read, fails, or takes too long or too much.
pub(super) fn call(
    script: &str,
    function: &'static str,
    arguments: &[&Value],
    made_from: &[&Value],
) -> Result<[Given; 2], ScriptError> {
    let (over, lua) = state().map_err(|error| failed(&error))?;
    let answer = ask(&lua, script, function, arguments, made_from);
    if over.get() { Err(ScriptError::TooLong) } else { answer }
}

fn ask(
    lua: &Lua,
    script: &str,
    function: &'static str,
    arguments: &[&Value],
    made_from: &[&Value],
) -> Result<[Given; 2], ScriptError> {
    let failed = |error: mlua::Error| failed(&error);
    lua.load(script).set_name("=luaScript").set_mode(ChunkMode::Text).exec().map_err(failed)?;
    let asked = match lua.globals().get::<mlua::Value>(function).map_err(failed)? {
        mlua::Value::Function(asked) => asked,
        mlua::Value::Nil => return Err(ScriptError::NoFunction(function)),
        other => return Err(ScriptError::Result(format!("{function} is not a function: {}", kind(&other)))),
    };
    let arguments: Vec<mlua::Value> =
        arguments.iter().map(|argument| convert::to_lua(lua, argument)).collect::<Result<_, _>>().map_err(failed)?;
    let mut results = asked.call::<MultiValue>(MultiValue::from_vec(arguments)).map_err(failed)?.into_iter();
    let mut next = || {
        Ok(match results.next() {
            None | Some(mlua::Value::Nil) => Given::Nil,
            Some(mlua::Value::Boolean(value)) => Given::Bool(value),
            #[allow(clippy::cast_precision_loss)]
            Some(mlua::Value::Integer(number)) => Given::Number(number as f64),
            Some(mlua::Value::Number(number)) => Given::Number(number),
            Some(table @ mlua::Value::Table(_)) => {
                Given::Table(convert::restore(convert::from_lua(&table).map_err(ScriptError::Result)?, made_from))
            }
            Some(other) => Given::Other(kind(&other)),
        })
    };
    Ok([next()?, next()?])
}

#[cfg(test)]
mod tests;
