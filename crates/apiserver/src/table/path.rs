//! Simple JSONPath, as printer columns use it.

use serde_json::Value;

/// The value at a path: fields, indices, and the condition filter `[?(@.type=="Ready")]`; of many, the first.
pub(super) fn look<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let path = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let mut at = object;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let end = closing(inner)?;
            let index = &inner[..end];
            rest = &inner[end + 1..];
            at = if let Ok(number) = index.parse::<usize>() {
                at.get(number)?
            } else if let Some(filter) = index.strip_prefix("?(@") {
                let (left, wanted) = filter.trim_end_matches(')').split_once("==")?;
                let wanted = wanted.trim().trim_matches(['"', '\'']);
                let fits = |item: &&Value| match look(item, left.trim()) {
                    Some(Value::String(found)) => found == wanted,
                    Some(other) => wanted.parse::<Value>().is_ok_and(|wanted| wanted == *other),
                    None => false,
                };
                at.as_array()?.iter().find(fits)?
            } else if index == "*" {
                match at {
                    Value::Object(map) => map.values().next()?,
                    other => other.get(0)?,
                }
            } else {
                at.get(index.trim_matches(['"', '\'']))?
            };
            continue;
        }
        let inner = rest.strip_prefix('.').unwrap_or(rest);
        let bytes = inner.as_bytes();
        let mut end = 0;
        while end < bytes.len() && (!matches!(bytes[end], b'[' | b'.') || (end > 0 && bytes[end - 1] == b'\\')) {
            end += 1;
        }
        let field = inner[..end].replace('\\', "");
        rest = &inner[end..];
        if !field.is_empty() {
            at = at.get(&field)?;
        } else if !rest.starts_with('[') {
            return None;
        }
    }
    Some(at)
}

/// Where the bracket ends that has been opened; brackets in quotes do not count.
fn closing(text: &str) -> Option<usize> {
    let mut quote = None;
    for (index, letter) in text.char_indices() {
        match (letter, quote) {
            (']', None) => return Some(index),
            ('"' | '\'', None) => quote = Some(letter),
            (letter, Some(open)) if letter == open => quote = None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_of_printer_columns() {
        let object = json!({"spec": {"hosts": ["a", "b"], "x.y": 1, "z]": 2}, "status": {"conditions": [
            {"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        let cases = [
            (".spec.hosts[1]", json!("b")),
            ("{.spec.hosts[*]}", json!("a")),
            (".spec.hosts", json!(["a", "b"])),
            (".spec.x\\.y", json!(1)),
            (".spec['z]']", json!(2)),
            ("$.spec[\"hosts\"][0]", json!("a")),
            (".status.conditions[?(@.type==\"Ready\")].status", json!("True")),
            (".status.conditions[?(@.type=='Other')].status", json!("False")),
        ];
        for (path, expected) in cases {
            assert_eq!(look(&object, path), Some(&expected), "{path}");
        }
        for path in [".spec.nothing.here", "..", ".spec.hosts[", ".spec.hosts[9]"] {
            assert_eq!(look(&object, path), None, "{path}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_path_ends(path in ".{0,40}") {
            look(&json!({"a": [{"b": 1}]}), &path);
        }
    }
}
