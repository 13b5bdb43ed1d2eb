//! The library `kube` of Karmada's scripts (v1.18.2): `local kube = require("kube")`.

use mlua::{Lua, Table};
use serde_json::Value;
use stolos_k8s::quantity::Quantity;

use super::convert::{from_lua, restore, to_lua};
use super::kind;
use crate::interpret::{dependencies, replicas};

fn refuse(text: impl Into<String>) -> mlua::Error {
    mlua::Error::RuntimeError(text.into())
}

/// Makes the library.
pub(super) fn library(lua: &Lua) -> mlua::Result<Table> {
    let kube = lua.create_table()?;
    kube.raw_set(
        "resourceAdd",
        lua.create_function(|_, amounts: mlua::Variadic<mlua::Value>| {
            let mut sum = Quantity::parse("0").map_err(|error| refuse(error.to_string()))?;
            for amount in amounts.iter() {
                if let Some(amount) = quantity(amount)? {
                    sum = sum.plus(amount);
                }
            }
            Ok(sum.to_string())
        })?,
    )?;
    kube.raw_set(
        "getResourceQuantity",
        lua.create_function(|_, amount: mlua::Value| {
            let Some(amount) = quantity(&amount)? else { return Ok(0.0) };
            #[allow(clippy::cast_precision_loss)]
            let amount = amount.nano() as f64 / 1e9;
            if amount < 0.0 {
                return Err(refuse(format!("the amount {amount} is less than 0")));
            }
            Ok(amount)
        })?,
    )?;
    kube.raw_set(
        "accuratePodRequirements",
        lua.create_function(|lua, template: mlua::Value| {
            let template = pod_template("accuratePodRequirements", &template)?;
            match replicas::requirements(&template) {
                Some(needs) => to_lua(lua, &serde_json::to_value(needs).map_err(|error| refuse(error.to_string()))?),
                None => Ok(mlua::Value::Nil),
            }
        })?,
    )?;
    kube.raw_set(
        "getPodDependencies",
        lua.create_function(|lua, (template, namespace): (mlua::Value, Option<String>)| {
            let template = pod_template("getPodDependencies", &template)?;
            let namespace = namespace.unwrap_or_else(|| "default".to_owned());
            let needs = dependencies::of_template(&template, &namespace);
            to_lua(lua, &serde_json::to_value(needs).map_err(|error| refuse(error.to_string()))?)
        })?,
    )?;
    Ok(kube)
}

fn pod_template(function: &str, template: &mlua::Value) -> mlua::Result<Value> {
    if !template.is_table() {
        return Err(refuse(format!("bad argument #1 to {function} (table expected, got {})", kind(template))));
    }
    Ok(restore(from_lua(template).map_err(refuse)?, &[]))
}

/// An amount as Kubernetes writes it; nothing for nil.
fn quantity(amount: &mlua::Value) -> mlua::Result<Option<Quantity>> {
    match amount {
        mlua::Value::Nil => Ok(None),
        mlua::Value::String(text) => {
            let text = text.to_string_lossy();
            Quantity::parse(&text).map(Some).map_err(|error| refuse(format!("{text:?} is no amount: {error}")))
        }
        other => Err(refuse(format!("an amount is a string, as \"100m\", and this is a {}", kind(other)))),
    }
}
