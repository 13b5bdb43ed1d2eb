//! Which kinds people mean.

use std::fmt::Write as _;

use serde_json::Value;

use super::{Question, encoded};

/// A kind that an API server serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Kind {
    group: String,
    version: String,
    plural: String,
    pub(super) singular: String,
    kind: String,
    short: Vec<String>,
    categories: Vec<String>,
    namespaced: bool,
    listed: bool,
    /// Whether it was meant by a category, such as `all`.
    pub(super) by_category: bool,
}

impl Kind {
    /// `pods`, `deployments.apps`.
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The path with its query that answers.
    pub(super) fn path(&self, question: &Question) -> String {
        let mut path = match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        };
        if let Some(namespace) = question.namespace.as_ref().filter(|_| self.namespaced) {
            let _ = write!(path, "/namespaces/{}", encoded(namespace));
        }
        let _ = write!(path, "/{}", self.plural);
        if let Some(name) = &question.name {
            let _ = write!(path, "/{}", encoded(name));
            return path;
        }
        let mut mark = '?';
        for (parameter, value) in [("labelSelector", &question.labels), ("fieldSelector", &question.fields)] {
            if let Some(value) = value {
                let _ = write!(path, "{mark}{parameter}={}", encoded(value));
                mark = '&';
            }
        }
        path
    }

    fn is_called(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        self.plural == name || self.singular == name || self.kind.to_lowercase() == name || self.short.contains(&name)
    }

    /// Whether `deployments`, `deployments.apps` or `deployments.v1.apps` is this one.
    fn is_meant(&self, word: &str) -> bool {
        if self.is_called(word) {
            return true;
        }
        word.split_once('.').is_some_and(|(name, rest)| {
            self.is_called(name)
                && (rest == self.group
                    || rest.split_once('.') == Some((&self.version, &self.group))
                    || rest == format!("{}.", self.version))
        })
    }
}

/// The kinds that are meant, in the order of the words; by one word of several kinds the first, as the server has them.
pub(super) fn choose(all: &[Kind], words: &str) -> Result<Vec<Kind>, String> {
    let mut chosen: Vec<Kind> = Vec::new();
    for word in words.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let named = all.iter().find(|kind| kind.is_meant(word)).cloned();
        let found: Vec<Kind> = match named {
            Some(kind) if !kind.listed => return Err(format!("{word} cannot be listed")),
            Some(kind) => vec![kind],
            None => {
                let of = all.iter().filter(|kind| kind.listed && kind.categories.iter().any(|c| c == word));
                of.map(|kind| Kind { by_category: true, ..kind.clone() }).collect()
            }
        };
        if found.is_empty() {
            return Err(format!("it serves no kind {word:?}"));
        }
        for kind in found {
            if !chosen.iter().any(|known| known.qualified() == kind.qualified()) {
                chosen.push(kind);
            }
        }
    }
    if chosen.is_empty() { Err("no kind is named".to_owned()) } else { Ok(chosen) }
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The kinds of an `APIGroupDiscoveryList`, each in its group's first version that has it.
pub(super) fn of_aggregated(document: &Value) -> Vec<Kind> {
    let mut all: Vec<Kind> = Vec::new();
    for group in document["items"].as_array().into_iter().flatten() {
        let name = text(&group["metadata"]["name"]);
        for version in group["versions"].as_array().into_iter().flatten() {
            for resource in version["resources"].as_array().into_iter().flatten() {
                let kind = Kind {
                    group: name.clone(),
                    version: text(&version["version"]),
                    plural: text(&resource["resource"]),
                    singular: text(&resource["singularResource"]),
                    kind: text(&resource["responseKind"]["kind"]),
                    short: texts(&resource["shortNames"]),
                    categories: texts(&resource["categories"]),
                    namespaced: resource["scope"] == "Namespaced",
                    listed: texts(&resource["verbs"]).iter().any(|verb| verb == "list"),
                    by_category: false,
                };
                if !all.iter().any(|known| known.group == kind.group && known.plural == kind.plural) {
                    all.push(kind);
                }
            }
        }
    }
    all
}

/// The versions to ask of an `APIVersions` or `APIGroupList`: of each group the preferred one.
pub(super) fn versions(document: &Value) -> Vec<String> {
    let groups = document["groups"].as_array().into_iter().flatten();
    let preferred = groups.map(|group| text(&group["preferredVersion"]["groupVersion"]));
    texts(&document["versions"]).into_iter().chain(preferred).filter(|version| !version.is_empty()).collect()
}

/// The kinds of an `APIResourceList`.
pub(super) fn of_list(document: &Value) -> Vec<Kind> {
    let of = text(&document["groupVersion"]);
    let (group, version) = of.split_once('/').unwrap_or(("", &of));
    let resources = document["resources"].as_array().into_iter().flatten();
    resources
        .filter(|resource| !text(&resource["name"]).contains('/'))
        .map(|resource| Kind {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: text(&resource["name"]),
            singular: text(&resource["singularName"]),
            kind: text(&resource["kind"]),
            short: texts(&resource["shortNames"]),
            categories: texts(&resource["categories"]),
            namespaced: resource["namespaced"] == true,
            listed: texts(&resource["verbs"]).iter().any(|verb| verb == "list"),
            by_category: false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn kinds() -> Vec<Kind> {
        let resource = |name: &str, kind: &str, short: &str, all: bool| {
            json!({"resource": name, "singularResource": kind.to_lowercase(), "responseKind": {"kind": kind},
                "shortNames": [short], "categories": if all { vec!["all"] } else { vec![] },
                "scope": "Namespaced", "verbs": ["get", "list"]})
        };
        let mut kinds = of_aggregated(&json!({"items": [{"metadata": {}, "versions": [{"version": "v1", "resources": [
            resource("pods", "Pod", "po", true),
            resource("events", "Event", "ev", false),
            {"resource": "bindings", "responseKind": {"kind": "Binding"}, "scope": "Namespaced", "verbs": ["create"]},
        ]}]}]}));
        kinds.extend(of_aggregated(&json!({"items": [
            {"metadata": {"name": "apps"}, "versions": [
                {"version": "v1", "resources": [resource("deployments", "Deployment", "deploy", true)]},
                {"version": "v1beta1", "resources": [resource("deployments", "Deployment", "deploy", true)]}]},
            {"metadata": {"name": "events.k8s.io"}, "versions": [
                {"version": "v1", "resources": [resource("events", "Event", "ev", false)]}]},
        ]})));
        kinds
    }

    #[test]
    fn kinds_are_found_as_people_write_them() {
        let kinds = kinds();
        let found = |words: &str| -> Result<String, String> {
            Ok(choose(&kinds, words)?.iter().map(Kind::qualified).collect::<Vec<_>>().join(" "))
        };
        for (words, expected) in [
            ("pods", Ok("pods")),
            ("po", Ok("pods")),
            ("Pod", Ok("pods")),
            ("deploy,po,pods", Ok("deployments.apps pods")),
            ("deployments.apps", Ok("deployments.apps")),
            ("deployments.v1.apps", Ok("deployments.apps")),
            ("events", Ok("events")),
            ("events.events.k8s.io", Ok("events.events.k8s.io")),
            ("all", Ok("pods deployments.apps")),
            ("gateways", Err(r#"it serves no kind "gateways""#)),
            ("deployments.v2.apps", Err(r#"it serves no kind "deployments.v2.apps""#)),
            ("bindings", Err("bindings cannot be listed")),
            (" , ", Err("no kind is named")),
        ] {
            let found = found(words);
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{words}");
        }
    }

    #[test]
    fn a_question_is_a_path() {
        let kind = |words: &str| choose(&kinds(), words).unwrap().remove(0);
        let question = Question {
            namespace: Some("shop".into()),
            labels: Some("app in (a,b)".into()),
            fields: Some("status.phase=Running".into()),
            ..Question::default()
        };
        let path =
            "/api/v1/namespaces/shop/pods?labelSelector=app%20in%20%28a%2Cb%29&fieldSelector=status.phase%3DRunning";
        assert_eq!(kind("pods").path(&question), path);
        let question = Question { name: Some("a/b".into()), ..Question::default() };
        assert_eq!(kind("deploy").path(&question), "/apis/apps/v1/deployments/a%2Fb");
    }

    #[test]
    fn older_servers_say_the_same_in_pieces() {
        assert_eq!(versions(&json!({"kind": "APIVersions", "versions": ["v1"]})), ["v1"]);
        let groups = json!({"groups": [{"preferredVersion": {"groupVersion": "apps/v1"}}, {}]});
        assert_eq!(versions(&groups), ["apps/v1"]);
        let list = of_list(&json!({"groupVersion": "apps/v1", "resources": [
            {"name": "deployments", "singularName": "deployment", "kind": "Deployment", "namespaced": true,
                "shortNames": ["deploy"], "categories": ["all"], "verbs": ["list"]},
            {"name": "deployments/scale", "kind": "Scale", "namespaced": true, "verbs": ["get"]}]}));
        assert_eq!(list.iter().map(Kind::qualified).collect::<Vec<_>>(), ["deployments.apps"]);
        assert!(list[0].namespaced && list[0].listed);
    }
}
