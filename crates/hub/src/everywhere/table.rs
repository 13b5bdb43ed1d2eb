//! Tables of many servers as one: a column CLUSTER, then what any of them has.

use serde_json::Value;
use stolos_k8s::meta;

use super::Answer;

/// What is printed of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// The kind, `deployments.apps`.
    pub resource: String,
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows; each has as many cells as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// A table for each kind, members in their order and rows in theirs.
///
/// Two servers of different versions may have different columns; what one does not have is `<none>`.
#[must_use]
pub fn merge(answers: &[Answer], namespaces: bool, wide: bool) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    let first = if namespaces { 2 } else { 1 };
    for (cluster, found) in answers.iter().filter_map(|answer| Some((&answer.cluster, answer.found.as_ref().ok()?))) {
        for found in found {
            let definitions = found.answer["columnDefinitions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let shown: Vec<(usize, String)> = definitions
                .iter()
                .enumerate()
                .filter(|(_, column)| wide || column["priority"].as_i64().unwrap_or(0) == 0)
                .map(|(index, column)| (index, harmless(column["name"].as_str().unwrap_or_default()).to_uppercase()))
                .collect();
            let rows = found.answer["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
            if rows.is_empty() {
                continue;
            }
            let known = tables.iter().position(|table| table.resource == found.resource);
            let at = known.unwrap_or_else(|| {
                let mut columns = vec!["CLUSTER".to_owned()];
                columns.extend(namespaces.then(|| "NAMESPACE".to_owned()));
                tables.push(Table { resource: found.resource.clone(), columns, rows: Vec::new() });
                tables.len() - 1
            });
            let table = &mut tables[at];
            let places: Vec<usize> = shown
                .iter()
                .map(|(_, name)| {
                    let known = table.columns.iter().skip(first).position(|column| column == name);
                    known.map_or_else(
                        || {
                            table.columns.push(name.clone());
                            table.columns.len() - 1
                        },
                        |index| index + first,
                    )
                })
                .collect();
            for row in rows {
                let mut cells = vec!["<none>".to_owned(); table.columns.len()];
                cells[0].clone_from(cluster);
                if namespaces {
                    cells[1] = harmless(meta::namespace(&row["object"]));
                }
                for ((index, _), place) in shown.iter().zip(&places) {
                    cells[*place] = cell(&row["cells"][*index]);
                }
                table.rows.push(cells);
            }
        }
    }
    for table in &mut tables {
        for row in &mut table.rows {
            row.resize(table.columns.len(), "<none>".to_owned());
        }
    }
    tables
}

/// A cell as kubectl prints it.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<none>".to_owned(),
        Value::String(text) => harmless(text),
        Value::Array(all) => all.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Text of a member's, without what would tell a terminal to do something.
pub(super) fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\t' && c != '\n' { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{Found, list, names};
    use super::*;

    fn answers() -> Vec<Answer> {
        let table = |columns: &[(&str, i64)], rows: Value| {
            let columns: Vec<_> =
                columns.iter().map(|(name, priority)| json!({"name": name, "priority": priority})).collect();
            json!({"kind": "Table", "columnDefinitions": columns, "rows": rows})
        };
        let row = |namespace: &str, name: &str, cells: Value| {
            let object = json!({"metadata": {"namespace": namespace, "name": name}});
            json!({"object": object, "cells": cells})
        };
        let found = |answer| Found { resource: "pods".into(), singular: "pod".into(), answer };
        vec![
            Answer {
                cluster: "eu".into(),
                found: Ok(vec![found(table(
                    &[("Name", 0), ("Restarts", 0), ("IP", 1)],
                    json!([row("a", "web", json!(["web", 3, "10.0.0.1"])), row("b", "db", json!(["db", 0, null]))]),
                ))]),
            },
            Answer { cluster: "ap".into(), found: Err("no answer in 10 s".into()) },
            Answer {
                cluster: "us".into(),
                found: Ok(vec![found(table(
                    &[("Name", 0), ("Ready", 0), ("Restarts", 0)],
                    json!([row("a", "web", json!(["web", "1/1", 0]))]),
                ))]),
            },
            Answer { cluster: "zz".into(), found: Ok(vec![found(table(&[("Name", 0)], json!([])))]) },
        ]
    }

    fn shown(tables: &[Table]) -> String {
        let lines = tables.iter().flat_map(|table| {
            [table.columns.join(" | ")].into_iter().chain(table.rows.iter().map(|row| row.join(" | ")))
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn columns_are_put_together_by_their_names() {
        insta::assert_snapshot!(shown(&merge(&answers(), true, false)), @r"
        CLUSTER | NAMESPACE | NAME | RESTARTS | READY
        eu | a | web | 3 | <none>
        eu | b | db | 0 | <none>
        us | a | web | 0 | 1/1
        ");
        insta::assert_snapshot!(shown(&merge(&answers(), false, true)), @r"
        CLUSTER | NAME | RESTARTS | IP | READY
        eu | web | 3 | 10.0.0.1 | <none>
        eu | db | 0 | <none> | <none>
        us | web | 0 | <none> | 1/1
        ");
        insta::assert_snapshot!(names(&answers()), @r"
        eu pod/web
        eu pod/db
        us pod/web
        ");
    }

    #[test]
    fn what_a_member_says_does_nothing_to_a_terminal() {
        assert_eq!(
            cell(&json!(["a\u{1b}]0;owned\u{7}", "b\r\u{9b}2J"])),
            "a\u{fffd}]0;owned\u{fffd},b\u{fffd}\u{fffd}2J"
        );
    }

    #[test]
    fn objects_say_where_they_are_from() {
        let of = |cluster: &str, answer| Answer {
            cluster: cluster.into(),
            found: Ok(vec![Found { resource: "pods".into(), singular: "pod".into(), answer }]),
        };
        let answers = [
            of("eu", json!({"apiVersion": "v1", "kind": "PodList", "items": [{"metadata": {"name": "a"}}]})),
            of("us", json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b", "annotations": {"x": "y"}}})),
        ];
        let list = list(&answers);
        assert_eq!(list["items"][0]["kind"], "Pod");
        let from = |index: usize| list["items"][index]["metadata"]["annotations"].to_string();
        assert_eq!(from(0), r#"{"resource.karmada.io/cached-from-cluster":"eu"}"#);
        assert_eq!(from(1), r#"{"resource.karmada.io/cached-from-cluster":"us","x":"y"}"#);
    }
}
