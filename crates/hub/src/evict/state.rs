//! What of a copy's status the next copy gets as labels (`statePreservation`, Karmada v1.18.2's gate
//! `StatefulFailoverInjection`).

use std::collections::BTreeMap;

use jsonpath_rust::JsonPath as _;
use serde_json::Value;
use stolos_k8s::meta;

use super::task::is_direct;
use crate::model::{Binding, StatePreservation};

/// A rule's path: text with paths in braces, as kubectl's JSONPath templates are.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// As RFC 9535 writes it.
    Path(String),
}

/// Why nobody can read a rule's path.
#[must_use]
pub fn path_problem(template: &str) -> Option<String> {
    let parts = match parts(template) {
        Ok(parts) => parts,
        Err(why) => return Some(why),
    };
    let paths: Vec<&String> =
        parts.iter().filter_map(|part| if let Part::Path(path) = part { Some(path) } else { None }).collect();
    if paths.is_empty() {
        return Some("has no path in braces".to_owned());
    }
    let unread = paths.into_iter().find(|path| jsonpath_rust::parser::parse_json_path(path).is_err());
    unread.map(|_| format!("is {template:?}, which is no path"))
}

fn parts(template: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once('{') {
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        let end = closing(after, '}').ok_or_else(|| format!("is {template:?}: a brace is not closed"))?;
        let (path, left) = after.split_at(end);
        parts.push(Part::Path(standard(path.trim()).ok_or_else(|| format!("is {template:?}, which is no path"))?));
        rest = left.strip_prefix('}').unwrap_or(left);
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

/// Where something ends that has been opened; what is in quotes does not count.
fn closing(text: &str, end: char) -> Option<usize> {
    let mut quote = None;
    for (at, letter) in text.char_indices() {
        match quote {
            None if letter == end => return Some(at),
            None if matches!(letter, '"' | '\'') => quote = Some(letter),
            Some(open) if open == letter => quote = None,
            _ => {}
        }
    }
    None
}

/// A path of kubectl's in the words of RFC 9535: there, names of fields may have hyphens, and dots behind a backslash.
fn standard(path: &str) -> Option<String> {
    let mut rest = path.trim_start_matches(['$', '@']);
    let mut written = "$".to_owned();
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (index, after) = inner.split_at(closing(inner, ']')?);
            // A filter's parentheses are kubectl's.
            let index = match index.strip_prefix("?(").and_then(|filter| filter.strip_suffix(')')) {
                Some(filter) => format!("?{filter}"),
                None => index.to_owned(),
            };
            written += &format!("[{index}]");
            rest = after.strip_prefix(']')?;
            continue;
        }
        rest = rest.strip_prefix('.')?;
        if let Some(after) = rest.strip_prefix('.') {
            written.push_str("..");
            rest = after;
        }
        let (mut name, mut letters) = (String::new(), rest.char_indices());
        let end = loop {
            match letters.next() {
                Some((_, '\\')) => name.extend(letters.next().map(|(_, letter)| letter)),
                Some((at, '.' | '[')) => break at,
                Some((_, letter)) => name.push(letter),
                None => break rest.len(),
            }
        };
        rest = &rest[end..];
        match name.as_str() {
            // `.[0]` is `[0]`.
            "" if rest.starts_with('[') => {}
            "" => return None,
            "*" => written.push_str("[*]"),
            name => written += &format!("[{}]", Value::from(name)),
        }
    }
    Some(written)
}

fn read(template: &str, status: &Value) -> Result<String, String> {
    let mut text = String::new();
    for part in parts(template)? {
        let path = match part {
            Part::Text(literal) => {
                text += &literal;
                continue;
            }
            Part::Path(path) => path,
        };
        let found = status.query(&path).map_err(|_| format!("is {template:?}, which is no path"))?;
        let found: Vec<String> = (found.into_iter().filter(|value| !value.is_null()))
            .map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
            .collect();
        if found.is_empty() {
            return Err(format!("{template} is nowhere in its status"));
        }
        text += &found.join(" ");
    }
    Ok(text)
}

/// The labels that the next copy gets from what a cluster's copy said last.
///
/// # Errors
///
/// What of it cannot be read, or cannot be a label. Then the copy stays (Karmada v1.18.2): without its state the next one
/// would begin from nothing.
pub fn preserve(
    rules: Option<&StatePreservation>,
    binding: &Binding,
    cluster: &str,
) -> Result<BTreeMap<String, String>, String> {
    let rules = rules.map_or(&[][..], |said| said.rules.as_slice());
    if rules.is_empty() {
        return Ok(BTreeMap::new());
    }
    let said = binding.status.aggregated_status.iter().find(|item| item.cluster_name == cluster);
    let status = said.and_then(|item| item.status.as_ref());
    let Some(status) = status else { return Err(format!("the hub has no status of it from {cluster} yet")) };
    let label = |rule: &crate::model::StateRule| {
        let value = read(&rule.json_path, status)?;
        match meta::check_label_value(&value).into_iter().next() {
            None => Ok((rule.alias_label_name.clone(), value)),
            Some(why) => Err(format!("{} is `{value}`, which cannot be a label: {why}", rule.json_path)),
        }
    };
    rules.iter().map(label).collect()
}

/// The labels that the copy of a cluster gets from the one that left last: only where the workload goes to one cluster,
/// which did not have it before, and where the old copy goes first (Karmada v1.18.2, `injectReservedLabelState`).
#[must_use]
pub fn inherited(spec: &Value, cluster: &str, clusters: usize) -> BTreeMap<String, String> {
    let Some(task) = spec["gracefulEvictionTasks"].as_array().and_then(|tasks| tasks.last()) else {
        return BTreeMap::new();
    };
    let before = task["clustersBeforeFailover"].as_array().is_some_and(|before| before.iter().any(|it| it == cluster));
    if clusters != 1 || !is_direct(task) || before {
        return BTreeMap::new();
    }
    serde_json::from_value(task["preservedLabelState"].clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model;

    /// A path, and what it is in a status.
    #[test]
    fn paths_are_kubectls() {
        let status = json!({"jobID": "ab-1", "checkpoint": 9_007_199_254_740_993_i64, "job-name": "counts", "done": false,
            "a.b": "dotted", "none": null, "parts": [{"type": "Other", "at": 1}, {"type": "Ready", "at": 2}]});
        for (path, expected) in [
            ("{.jobID}", "ab-1"),
            ("{ $.jobID }", "ab-1"),
            ("{.checkpoint}", "9007199254740993"),
            ("{.job-name}", "counts"),
            (r"{.a\.b}", "dotted"),
            ("{['a.b']}", "dotted"),
            ("{.done}", "false"),
            ("{.parts[1].at}", "2"),
            ("{.parts[-1:].at}", "2"),
            ("{.parts[*].at}", "1 2"),
            ("{..type}", "Other Ready"),
            (r#"{.parts[?(@.type=="Ready")].at}"#, "2"),
            ("job-{.jobID}_{.parts[0].at}", "job-ab-1_1"),
        ] {
            assert_eq!((path_problem(path), read(path, &status)), (None, Ok(expected.to_owned())), "{path}");
        }
        for path in ["{.nothing}", "{.none}", "{.parts[7].at}"] {
            assert_eq!(read(path, &status), Err(format!("{path} is nowhere in its status")));
        }
        let problems: Vec<String> = [".jobID", "", "{.jobID", "{jobID}", "{range .parts[*]}", "{.parts[}", "{.}"]
            .into_iter()
            .map(|path| format!("{path:20}{}", path_problem(path).unwrap_or_default()))
            .collect();
        insta::assert_snapshot!(problems.join("\n"), @r#"
        .jobID              has no path in braces
                            has no path in braces
        {.jobID             is "{.jobID": a brace is not closed
        {jobID}             is "{jobID}", which is no path
        {range .parts[*]}   is "{range .parts[*]}", which is no path
        {.parts[}           is "{.parts[}", which is no path
        {.}                 is "{.}", which is no path
        "#);
    }

    fn binding(said: &Value, rules: &Value) -> (Binding, StatePreservation) {
        let binding = json!({"metadata": {"name": "b"}, "spec": {"resource": {"apiVersion": "a/v1", "kind": "Job", "name": "j"}},
            "status": {"aggregatedStatus": [{"clusterName": "eu", "applied": true, "status": said}]}});
        (model::read(&binding).unwrap().0, serde_json::from_value(json!({"rules": rules})).unwrap())
    }

    #[test]
    fn what_can_be_a_label_is_kept() {
        let kept = |said: Value, rules: Value, cluster: &str| {
            let (binding, rules) = binding(&said, &rules);
            preserve(Some(&rules), &binding, cluster).map_or_else(|why| why, |labels| json!(labels).to_string())
        };
        let rules = json!([{"aliasLabelName": "recover-from", "jsonPath": "{.id}"},
            {"aliasLabelName": "example.com/part", "jsonPath": "{.part}"}]);
        let said = json!({"id": "ab-1", "part": 3});
        let lines = [
            kept(said.clone(), rules.clone(), "eu"),
            kept(said.clone(), rules.clone(), "us"),
            kept(json!({"id": "ab-1"}), rules.clone(), "eu"),
            kept(json!({"id": "not a label", "part": 3}), rules, "eu"),
            kept(json!({}), json!([]), "us"),
        ];
        insta::assert_snapshot!(lines.join("\n"), @r#"
        {"example.com/part":"3","recover-from":"ab-1"}
        the hub has no status of it from us yet
        {.part} is nowhere in its status
        {.id} is `not a label`, which cannot be a label: a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')
        {}
        "#);
    }

    /// The last task's, for the one cluster that is new.
    #[test]
    fn the_next_copy_gets_them_where_karmada_gives_them() {
        let task = |mode: &str, id: &str| {
            json!({"fromCluster": "eu", "purgeMode": mode, "preservedLabelState": {"id": id},
                "clustersBeforeFailover": ["eu"]})
        };
        let given = |tasks: Value, cluster: &str, clusters: usize| {
            json!(inherited(&json!({"gracefulEvictionTasks": tasks}), cluster, clusters))
        };
        let direct = task("Directly", "7");
        assert_eq!(given(json!([direct]), "us", 1), json!({"id": "7"}));
        assert_eq!(given(json!([direct, task("Immediately", "8")]), "us", 1), json!({"id": "8"}));
        for (tasks, cluster, clusters) in [
            (json!([direct]), "us", 2),
            (json!([direct]), "eu", 1),
            (json!([direct, task("Gracefully", "8")]), "us", 1),
            (json!([]), "us", 1),
            (Value::Null, "us", 1),
        ] {
            assert_eq!(given(tasks.clone(), cluster, clusters), json!({}), "{tasks}");
        }
    }
}
