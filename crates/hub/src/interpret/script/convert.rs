//! Between JSON and Lua, as Karmada's interpreter does it (gopher-lua with `layeh.com/gopher-json`, Karmada v1.18.2).
//!
//! Lua has one kind of number and one kind of table, and no null. So a null is left out on the way in; a whole number comes
//! back as one; and an empty table is nothing or `[]` or `{}`, which only the objects that went in can tell.

use std::collections::HashSet;

use mlua::Lua;
use serde_json::{Map, Number, Value};

/// A result is nested so deep at the most (serde_json's own limit is 128).
const DEEPEST: usize = 100;
/// A result has so many values at the most: a table that is in many places counts in each.
const MOST_VALUES: usize = 1_000_000;

/// A value for a script.
pub(super) fn to_lua(lua: &Lua, value: &Value) -> mlua::Result<mlua::Value> {
    Ok(match value {
        Value::Null => mlua::Value::Nil,
        Value::Bool(value) => mlua::Value::Boolean(*value),
        Value::Number(number) => mlua::Value::Number(number.as_f64().unwrap_or_default()),
        Value::String(text) => mlua::Value::String(lua.create_string(text)?),
        Value::Array(items) => {
            let table = lua.create_table_with_capacity(items.len(), 0)?;
            for (at, item) in items.iter().filter(|item| !item.is_null()).enumerate() {
                table.raw_set(at + 1, to_lua(lua, item)?)?;
            }
            mlua::Value::Table(table)
        }
        Value::Object(fields) => {
            let table = lua.create_table_with_capacity(0, fields.len())?;
            for (field, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                table.raw_set(field.as_str(), to_lua(lua, value)?)?;
            }
            mlua::Value::Table(table)
        }
    })
}

/// What a script has given back. Empty tables are `[]`; [`restore`] knows better.
pub(super) fn from_lua(value: &mlua::Value) -> Result<Value, String> {
    read(value, DEEPEST, &mut 0)
}

fn read(value: &mlua::Value, depth: usize, values: &mut usize) -> Result<Value, String> {
    *values += 1;
    if depth == 0 || *values > MOST_VALUES {
        return Err("cannot encode recursively nested tables to JSON".to_owned());
    }
    Ok(match value {
        mlua::Value::Nil => Value::Null,
        mlua::Value::Boolean(value) => Value::Bool(*value),
        mlua::Value::Integer(number) => Value::from(*number),
        mlua::Value::Number(number) => Value::Number(whole_or_not(*number)?),
        // Go's encoder puts U+FFFD where a text is no UTF-8.
        mlua::Value::String(text) => Value::String(text.to_string_lossy()),
        mlua::Value::Table(table) => {
            let mut fields = Map::new();
            let mut items: Vec<Option<Value>> = Vec::new();
            for pair in table.pairs::<mlua::Value, mlua::Value>() {
                let (key, value) = pair.map_err(|error| error.to_string())?;
                let value = read(&value, depth - 1, values)?;
                match key {
                    mlua::Value::String(key) => {
                        fields.insert(key.to_string_lossy(), value);
                    }
                    mlua::Value::Integer(key) => {
                        let at = usize::try_from(key).ok().and_then(|key| key.checked_sub(1));
                        // A hole as wide as all that may be returned is one.
                        let at = at.filter(|at| *at < MOST_VALUES).ok_or("cannot encode sparse array")?;
                        if items.len() <= at {
                            items.resize(at + 1, None);
                        }
                        items[at] = Some(value);
                    }
                    _ => return Err("cannot encode mixed or invalid key types".to_owned()),
                }
            }
            match (fields.is_empty(), items.is_empty()) {
                (false, false) => return Err("cannot encode mixed or invalid key types".to_owned()),
                (false, true) => Value::Object(fields),
                (true, _) => {
                    Value::Array(items.into_iter().collect::<Option<_>>().ok_or("cannot encode sparse array")?)
                }
            }
        }
        other => return Err(format!("cannot encode {} to JSON", other.type_name())),
    })
}

/// A number without a part after the point is written without one.
fn whole_or_not(number: f64) -> Result<Number, String> {
    // Every whole number of this size is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() <= EXACT {
        #[allow(clippy::cast_possible_truncation)]
        return Ok(Number::from(number as i64));
    }
    Number::from_f64(number).ok_or_else(|| format!("cannot encode {number} to JSON"))
}

/// Where something is, by its fields alone: places in lists do not count.
type Path = Vec<String>;

/// Where objects have empty lists and empty maps.
#[derive(Default)]
struct Empty {
    lists: HashSet<Path>,
    maps: HashSet<Path>,
}

impl Empty {
    fn find(&mut self, value: &Value, path: &mut Path) {
        match value {
            Value::Array(items) if items.is_empty() => {
                self.lists.insert(path.clone());
            }
            Value::Object(fields) if fields.is_empty() => {
                self.maps.insert(path.clone());
            }
            Value::Array(items) => items.iter().for_each(|item| self.find(item, path)),
            Value::Object(fields) => {
                for (field, value) in fields {
                    path.push(field.clone());
                    self.find(value, path);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    /// Whether an empty table stays, and what it becomes.
    fn restore(&self, value: &mut Value, path: &mut Path) -> bool {
        match value {
            Value::Array(items) if items.is_empty() => {
                if self.maps.contains(path) {
                    *value = Value::Object(Map::new());
                    return true;
                }
                self.lists.contains(path)
            }
            Value::Array(items) => {
                items.retain_mut(|item| self.restore(item, path));
                true
            }
            Value::Object(fields) => {
                fields.retain(|field, value| {
                    path.push(field.clone());
                    let stays = self.restore(value, path);
                    path.pop();
                    stays
                });
                true
            }
            _ => true,
        }
    }
}

/// Makes of the empty tables of a result what they were in the objects that it was made from: lists or maps. One that none
/// of them has is left out. The result itself is a map where it is empty.
pub(super) fn restore(mut result: Value, made_from: &[&Value]) -> Value {
    if result.as_array().is_some_and(Vec::is_empty) {
        return Value::Object(Map::new());
    }
    let mut empty = Empty::default();
    for object in made_from {
        empty.find(object, &mut Path::new());
    }
    empty.restore(&mut result, &mut Path::new());
    result
}
