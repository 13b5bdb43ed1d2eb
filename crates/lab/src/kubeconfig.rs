//! The kubeconfig of a lab's clusters.

use std::io;
use std::path::Path;

use serde_json::Value;

use crate::{Error, state};

/// The first line of every kubeconfig a lab writes; a file that begins otherwise is somebody else's.
const MARK: &str = "# Written by stolos lab; it is written anew whenever the lab starts.";

/// One file for all clusters, from one kubeconfig each.
pub(crate) fn text(parts: &[Value]) -> String {
    let mut out = format!("{MARK}\napiVersion: v1\nkind: Config\npreferences: {{}}\n");
    if let Some(first) = parts.first() {
        out += &format!("current-context: {}\n", scalar(&first["current-context"]));
    }
    for list in ["clusters", "contexts", "users"] {
        out += &format!("{list}:\n");
        for entry in parts.iter().flat_map(|part| part[list].as_array().into_iter().flatten()) {
            out += &format!("- name: {}\n", scalar(&entry["name"]));
            for (kind, fields) in entry.as_object().into_iter().flatten().filter(|(kind, _)| *kind != "name") {
                out += &format!("  {kind}:\n");
                for (field, value) in fields.as_object().into_iter().flatten() {
                    out += &format!("    {field}: {}\n", scalar(value));
                }
            }
        }
    }
    out
}

/// A JSON string is a YAML string, whatever is in it.
fn scalar(value: &Value) -> String {
    match value.as_str() {
        Some(text) if !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "+/=".contains(c)) => {
            // Base64 and plain words need no quotes, unless they look like another type.
            if text.chars().all(|c| c.is_ascii_digit()) || matches!(text, "true" | "false" | "null" | "yes" | "no") {
                value.to_string()
            } else {
                text.to_owned()
            }
        }
        _ => value.to_string(),
    }
}

/// Writes `text` to `path` unless somebody else's file is there; returns whether it was written.
pub(crate) fn write_beside(path: &Path, text: &str) -> Result<bool, Error> {
    match std::fs::read_to_string(path) {
        Ok(there) if !there.starts_with(MARK) => return Ok(false),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
                state::make(folder).map_err(|source| Error::State {
                    attempt: "make the folder",
                    path: folder.to_owned(),
                    source,
                })?;
            }
        }
        Err(source) => return Err(Error::State { attempt: "read", path: path.to_owned(), source }),
    }
    state::put(path, text.as_bytes()).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_for_two_clusters() {
        let part = |name: &str| {
            json!({
                "current-context": name,
                "clusters": [{"name": name, "cluster": {"server": "https://127.16.0.1:6443", "certificate-authority-data": "QUJD=="}}],
                "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
                "users": [{"name": name, "user": {"client-key-data": "123"}}],
            })
        };
        insta::assert_snapshot!(text(&[part("east@x"), part("west")]), @r#"
        # Written by stolos lab; it is written anew whenever the lab starts.
        apiVersion: v1
        kind: Config
        preferences: {}
        current-context: "east@x"
        clusters:
        - name: "east@x"
          cluster:
            certificate-authority-data: QUJD==
            server: "https://127.16.0.1:6443"
        - name: west
          cluster:
            certificate-authority-data: QUJD==
            server: "https://127.16.0.1:6443"
        contexts:
        - name: "east@x"
          context:
            cluster: "east@x"
            user: "east@x"
        - name: west
          context:
            cluster: west
            user: west
        users:
        - name: "east@x"
          user:
            client-key-data: "123"
        - name: west
          user:
            client-key-data: "123"
        "#);
    }

    #[test]
    fn nobody_elses_file_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/config");
        assert!(write_beside(&path, &text(&[])).unwrap());
        assert!(write_beside(&path, &text(&[])).unwrap(), "a lab's own file is written again");
        std::fs::write(&path, "apiVersion: v1\n").unwrap();
        assert!(!write_beside(&path, &text(&[])).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "apiVersion: v1\n");
    }
}
