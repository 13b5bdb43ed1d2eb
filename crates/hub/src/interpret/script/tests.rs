use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// What `F` of a script gives for an object.
fn f(script: &str, object: &Value) -> Result<Given, ScriptError> {
    call(script, "F", &[object], &[object]).map(|[first, _]| first)
}

fn said(script: &str) -> String {
    match f(script, &json!({})) {
        Ok(given) => format!("{given:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_script_sees_an_object_and_returns_one() {
    let object = json!({"spec": {"size": 3, "ratio": 0.5, "on": true, "names": ["a", "b"], "nothing": null}});
    let script = r#"
        -- Globals, as Karmada's own examples have them.
        seen = 0
        function F(object)
          for at, name in ipairs(object.spec.names) do
            seen = seen + 1
            object.spec.names[at] = string.upper(name) .. seen
          end
          object.spec.size = object.spec.size * 2
          object.spec.kind = type(object.spec.nothing)
          return object
        end"#;
    assert_eq!(
        f(script, &object),
        Ok(Given::Table(json!({"spec": {"size": 6, "ratio": 0.5, "on": true, "names": ["A1", "B2"], "kind": "nil"}})))
    );
    // Nothing of one call is there in the next.
    assert_eq!(f("function F() seen = (seen or 0) + 1 return seen end", &object), Ok(Given::Number(1.0)));
    assert_eq!(f("function F() seen = (seen or 0) + 1 return seen end", &object), Ok(Given::Number(1.0)));
}

#[test]
fn nothing_else_is_in_reach() {
    let lines: Vec<String> = [
        "return io",
        "return debug and debug.getupvalue",
        "return coroutine",
        "return os.execute or os.getenv or os.exit or os.remove",
        "return type(os.time())",
        "return loadstring('return 1')()",
        "return load('return 1')()",
        "return string.dump and string.dump(F)",
        "return require('socket')",
        "return getfenv(0)",
        "return setmetatable({}, {})",
        "return getmetatable('').__index",
        "string.upper = nil return 'x'",
        "return dofile('/etc/passwd')",
        "return collectgarbage('count')",
        "return newproxy()",
    ]
    .iter()
    .map(|body| format!("{body}\n    {}", said(&format!("function F() {body} end"))))
    .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    return io
        Nil
    return debug and debug.getupvalue
        Nil
    return coroutine
        Nil
    return os.execute or os.getenv or os.exit or os.remove
        Nil
    return type(os.time())
        Other("string")
    return loadstring('return 1')()
        call function loadstring is not supported in a resource interpreter
    return load('return 1')()
        call function load is not supported in a resource interpreter
    return string.dump and string.dump(F)
        Nil
    return require('socket')
        module socket not found: there is kube and no other
    return getfenv(0)
        call function getfenv is not supported in a resource interpreter
    return setmetatable({}, {})
        call function setmetatable is not supported in a resource interpreter
    return getmetatable('').__index
        call function getmetatable is not supported in a resource interpreter
    string.upper = nil return 'x'
        luaScript:1: attempt to modify a readonly table
    return dofile('/etc/passwd')
        call function dofile is not supported in a resource interpreter
    return collectgarbage('count')
        call function collectgarbage is not supported in a resource interpreter
    return newproxy()
        call function newproxy is not supported in a resource interpreter
    "#);
}

#[test]
fn a_script_ends() {
    let lines: Vec<String> = [
        ("loop", "while true do end"),
        ("loop that catches", "while true do pcall(function() while true do end end) end"),
        ("loop that catches in catches", "local function f() pcall(f) f() end f()"),
        ("pattern", "return string.find(string.rep('a', 300), string.rep('.-', 30) .. 'b')"),
        ("memory", "local t = {} while true do t[#t + 1] = string.rep('x', 100000) .. #t end"),
        ("one string", "return #string.rep('x', 1000000000)"),
        ("table that holds itself", "local t = {} t.t = t return t"),
        ("tables that double", "local t = {1} for _ = 1, 60 do t = {t, t} end return t"),
        ("deep tables", "local t = {} for _ = 1, 1000 do t = {t} end return t"),
    ]
    .iter()
    .map(|(name, body)| format!("{name}: {}", said(&format!("function F() {body} end"))))
    .collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    loop: the script does not end within 1 s of processor time
    loop that catches: the script does not end within 1 s of processor time
    loop that catches in catches: the script does not end within 1 s of processor time
    pattern: the script does not end within 1 s of processor time
    memory: the script needs more than 64 MiB of memory
    one string: the script needs more than 64 MiB of memory
    table that holds itself: cannot encode recursively nested tables to JSON
    tables that double: cannot encode recursively nested tables to JSON
    deep tables: cannot encode recursively nested tables to JSON
    ");
    assert_eq!(said("while true do end"), ScriptError::TooLong.to_string());
}

#[test]
fn what_is_wrong_with_a_script_is_said() {
    let lines: Vec<String> = [
        "function F(",
        "function G() end",
        "F = 1",
        "function F(object)\n  return object.spec.replicas\nend",
        "function F() error('no such thing') end",
        "function F() return F end",
        "function F() return {F} end",
        "function F() return {1, nil, 3} end",
        "function F() return {1, a = 2} end",
        "function F() return {[1.5] = 2} end",
        "function F() return {a = 0 / 0} end",
    ]
    .iter()
    .map(|script| said(script))
    .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    the script cannot be read: luaScript:1: Expected identifier when parsing variable name, got <eof>
    not found function F
    F is not a function: number
    luaScript:2: attempt to index nil with 'replicas'
    luaScript:1: no such thing
    Other("function")
    cannot encode function to JSON
    cannot encode sparse array
    cannot encode mixed or invalid key types
    cannot encode mixed or invalid key types
    cannot encode NaN to JSON
    "#);
    // What looks like compiled code is read as a text.
    assert!(matches!(f("\u{1b}Lua", &json!({})), Err(ScriptError::Syntax(_))));
    assert_eq!(check("function F(").unwrap_err().to_string(), lines[0]);
    assert_eq!(check("function F() end while true do end"), Ok(()));
}

#[test]
fn empty_tables_are_what_they_were() {
    let object = json!({"spec": {"list": [], "map": {}, "items": [{"list": [], "map": {}}], "both": "x"}, "other": {}});
    assert_eq!(f("function F(o) return o end", &object), Ok(Given::Table(object.clone())));
    // One that comes from nowhere says nothing, in lists too; a place in a list is as good as another.
    let script = "function F(o) o.spec.new = {} o.spec.items[2] = {list = {}, new = {}, name = 'x'} return o end";
    let mut wanted = object.clone();
    wanted["spec"]["items"] = json!([{"list": [], "map": {}}, {"list": [], "name": "x"}]);
    assert_eq!(f(script, &object), Ok(Given::Table(wanted)));
    assert_eq!(f("function F(o) return {} end", &object), Ok(Given::Table(json!({}))));
}

#[test]
fn numbers_are_whole_where_they_can_be() {
    let script = "function F(o) return {o.a, o.a / 2, o.b, 1e15, 1e300, -0.5, 2^53} end";
    let given = f(script, &json!({"a": 3, "b": 7.0}));
    assert_eq!(
        given,
        Ok(Given::Table(json!([3, 1.5, 7, 1_000_000_000_000_000_i64, 1e300, -0.5, 9_007_199_254_740_992_i64])))
    );
}

#[test]
fn the_library_kube_knows_amounts_and_pods() {
    let template = json!({"spec": {"serviceAccountName": "robot", "nodeSelector": {"disk": "ssd"},
        "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}, "envFrom": [{"configMapRef": {"name": "c"}}]},
            {"name": "b", "resources": {"requests": {"cpu": "1"}}}],
        "volumes": [{"name": "v", "secret": {"secretName": "s"}}, {"name": "e", "emptyDir": {}}]}});
    let script = r#"
        local kube = require("kube")
        function F(template)
          return {
            sum = kube.resourceAdd("100m", nil, "1", "400m"),
            none = kube.resourceAdd(),
            quantity = kube.getResourceQuantity("1500m"),
            no_quantity = kube.getResourceQuantity(nil),
            needs = kube.accuratePodRequirements(template),
            nothing = type(kube.accuratePodRequirements({spec = {containers = {{name = "a"}}}})),
            dependencies = kube.getPodDependencies(template, "shop"),
            elsewhere = kube.getPodDependencies({spec = {serviceAccountName = "x"}}),
          }
        end"#;
    let Given::Table(given) = f(script, &template).unwrap() else { panic!("no table") };
    insta::assert_snapshot!(serde_json::to_string_pretty(&given).unwrap(), @r#"
    {
      "dependencies": [
        {
          "apiVersion": "v1",
          "kind": "ConfigMap",
          "name": "c",
          "namespace": "shop"
        },
        {
          "apiVersion": "v1",
          "kind": "Secret",
          "name": "s",
          "namespace": "shop"
        },
        {
          "apiVersion": "v1",
          "kind": "ServiceAccount",
          "name": "robot",
          "namespace": "shop"
        }
      ],
      "elsewhere": [
        {
          "apiVersion": "v1",
          "kind": "ServiceAccount",
          "name": "x",
          "namespace": "default"
        }
      ],
      "needs": {
        "nodeClaim": {
          "nodeSelector": {
            "disk": "ssd"
          }
        },
        "resourceRequest": {
          "cpu": "1100m",
          "memory": "1Gi"
        }
      },
      "no_quantity": 0,
      "none": "0",
      "nothing": "nil",
      "quantity": 1.5,
      "sum": "1500m"
    }
    "#);
    let lines: Vec<String> = [
        "kube.resourceAdd('much')",
        "kube.getResourceQuantity(7)",
        "kube.getResourceQuantity('-1')",
        "kube.accuratePodRequirements()",
        "kube.getPodDependencies('x', 'y')",
        "rawset(kube, 'a', 1)",
    ]
    .iter()
    .map(|line| said(&format!("local kube = require('kube') function F() {line} end")))
    .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    "much" is no amount: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'
    an amount is a string, as "100m", and this is a number
    the amount -1 is less than 0
    bad argument #1 to accuratePodRequirements (table expected, got nil)
    bad argument #1 to getPodDependencies (table expected, got string)
    call function rawset is not supported in a resource interpreter
    "#);
}

/// JSON without what Lua cannot hold: nulls, whole numbers beyond 2^53.
fn json_values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        (-9_007_199_254_740_992_i64..=9_007_199_254_740_992).prop_map(Value::from),
        any::<f64>()
            .prop_filter("a number with a part after the point", |n| n.is_finite() && n.fract() != 0.0)
            .prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((".{0,6}", inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// Whether some place has an empty list and, in another item, an empty map: those two are one to Karmada.
fn is_plain(value: &Value) -> bool {
    fn places(value: &Value, path: &str, found: &mut std::collections::BTreeMap<String, u8>) {
        match value {
            Value::Array(items) if items.is_empty() => *found.entry(path.to_owned()).or_default() |= 1,
            Value::Object(fields) if fields.is_empty() => *found.entry(path.to_owned()).or_default() |= 2,
            Value::Array(items) => items.iter().for_each(|item| places(item, path, found)),
            Value::Object(fields) => {
                fields.iter().for_each(|(field, value)| places(value, &format!("{path}/{field:?}"), found));
            }
            _ => {}
        }
    }
    let mut found = std::collections::BTreeMap::new();
    places(value, "", &mut found);
    found.values().all(|kinds| *kinds != 3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_object_survives_a_script_that_does_nothing(value in json_values().prop_filter("plain", is_plain)) {
        let object = json!({"metadata": {"name": "x"}, "spec": value});
        prop_assert_eq!(f("function F(o) return o end", &object), Ok(Given::Table(object.clone())));
    }

    #[test]
    fn no_text_is_a_script_that_breaks_the_hub(text in "[ -~\n]{0,60}") {
        // Only that there is an answer.
        let _ = said(&text);
    }
}
