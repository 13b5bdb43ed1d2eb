//! What can be done at which path.

use serde_json::{Value, json};

use super::{Style, schema_name};
use crate::registry::Resource;

/// A parameter: its name, its type, what it does.
type Parameter = (&'static str, &'static str, &'static str);

const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "When present, modifications are not persisted. Only `All` is valid: every stage of the request is processed.",
);
const FIELD_MANAGER: Parameter =
    ("fieldManager", "string", "A name for the actor that makes the changes. Required for apply requests.");
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: `Ignore` drops them, `Warn` (the default) drops them with a warning, \
     `Strict` refuses the request.",
);
const FORCE: Parameter =
    ("force", "boolean", "Take fields from other managers in an apply request. Must be unset for other patches.");
const WRITE: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
const PATCH: &[Parameter] = &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE];
const DELETE: &[Parameter] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "Seconds before the object is deleted; zero means at once."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "What becomes of dependents: `Orphan`, `Background` or `Foreground`."),
];
const LIST: &[Parameter] = &[
    ("allowWatchBookmarks", "boolean", "Ask for events of type BOOKMARK."),
    ("continue", "string", "Where to go on with a list that came in parts."),
    ("fieldSelector", "string", "Restrict the objects by their fields. Defaults to everything."),
    ("labelSelector", "string", "Restrict the objects by their labels. Defaults to everything."),
    ("limit", "integer", "The most objects to answer with."),
    ("resourceVersion", "string", "Which state of the objects is wanted."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: `Exact` or `NotOlderThan`."),
    ("sendInitialEvents", "boolean", "Begin a watch with the objects that there are, and a bookmark after them."),
    ("timeoutSeconds", "integer", "Seconds after which the request ends."),
    ("watch", "boolean", "Watch for changes instead of listing."),
];

const PATCHES: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// The paths of a resource, each with its operations.
pub(super) fn of(resource: &Resource, style: Style) -> Vec<(String, Value)> {
    let root = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    let everywhere = format!("{root}/{}", resource.plural);
    let all = if resource.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", resource.plural)
    } else {
        everywhere.clone()
    };
    let one = format!("{all}/{{name}}");
    let paths = Paths { resource, style };
    let own = (resource.group.as_str(), resource.version.as_str(), resource.kind.as_str());
    let mut found = vec![(all, paths.item(&resource.verbs, own, "", false))];
    if resource.verbs.iter().any(|verb| matches!(verb.as_str(), "get" | "delete" | "update" | "patch")) {
        found.push((one.clone(), paths.item(&resource.verbs, own, "", true)));
    }
    if resource.namespaced && resource.verbs.iter().any(|verb| verb == "list") {
        let item = json!({
            "get": paths.operation("list", "ForAllNamespaces", own, ""),
            "parameters": [],
        });
        found.push((everywhere, item));
    }
    for sub in &resource.subresources {
        let (group, version, kind) = &sub.gvk;
        found.push((format!("{one}/{}", sub.name), paths.item(&sub.verbs, (group, version, kind), &sub.name, true)));
    }
    found
}

struct Paths<'a> {
    resource: &'a Resource,
    style: Style,
}

impl Paths<'_> {
    /// The operations at one path: of an object, or of a collection.
    fn item(&self, verbs: &[String], gvk: (&str, &str, &str), sub: &str, one: bool) -> Value {
        let mut item = json!({});
        for verb in verbs {
            let method = match (verb.as_str(), one) {
                ("get", true) | ("list", false) => "get",
                ("update", true) => "put",
                ("patch", true) => "patch",
                ("delete", true) | ("deletecollection", false) => "delete",
                ("create", false) => "post",
                ("create", true) if !sub.is_empty() => "post",
                _ => continue,
            };
            item[method] = self.operation(verb, "", gvk, sub);
        }
        let mut parameters = Vec::new();
        if one {
            parameters.push(self.place("name", &format!("name of the {}", self.resource.kind)));
        }
        if self.resource.namespaced {
            parameters.push(self.place("namespace", "object name and auth scope, such as for teams and projects"));
        }
        item["parameters"] = json!(parameters);
        item
    }

    fn operation(&self, verb: &str, everywhere: &str, (group, version, kind): (&str, &str, &str), sub: &str) -> Value {
        let own = self.resource;
        let (action, word, queries): (_, _, &[Parameter]) = match verb {
            "list" => ("list", "list", LIST),
            "create" => ("post", "create", WRITE),
            "update" => ("put", "replace", WRITE),
            "patch" => ("patch", "patch", PATCH),
            "delete" => ("delete", "delete", DELETE),
            "deletecollection" => ("deletecollection", "deleteCollection", DELETE),
            _ => ("get", "read", &[]),
        };
        let title = |text: &str| {
            let mut letters = text.chars();
            letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default()
        };
        let area = if own.group.is_empty() { "core" } else { own.group.split('.').next().unwrap_or_default() };
        let scope = if own.namespaced && everywhere.is_empty() { "Namespaced" } else { "" };
        let id = format!("{word}{}{}{scope}{}{}{everywhere}", title(area), title(&own.version), own.kind, title(sub));
        // What is streamed has no schema: what goes in and out is bytes.
        let streams = !sub.is_empty() && kind.ends_with("Options");
        let (action, queries) = if streams { ("connect", &[][..]) } else { (action, queries) };
        let object = schema_name(group, version, kind);
        let options = "io.k8s.apimachinery.pkg.apis.meta.v1";
        let answered = match verb {
            "list" => schema_name(&own.group, &own.version, &own.list_kind),
            "delete" | "deletecollection" => format!("{options}.Status"),
            _ => object.clone(),
        };
        let sent = match verb {
            _ if streams => None,
            "create" | "update" => Some(object),
            "patch" => Some(format!("{options}.Patch")),
            "delete" | "deletecollection" => Some(format!("{options}.DeleteOptions")),
            _ => None,
        };
        let mut parameters: Vec<Value> = queries.iter().map(|query| self.query(*query)).collect();
        let body = sent.as_ref().map(|name| self.style.reference(name));
        let required = !verb.starts_with("delete");
        let patches = || PATCHES.iter().filter(|media| own.custom.is_none() || !media.contains("strategic"));
        let mut operation = json!({
            "description": format!("{word} {}{}", own.kind, if sub.is_empty() { String::new() } else { format!(" {sub}") }),
            "operationId": id,
            "tags": [format!("{area}_{}", own.version)],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        let mut responses = json!({"401": {"description": "Unauthorized"}});
        let codes: &[(&str, &str)] = match verb {
            "create" => &[("200", "OK"), ("201", "Created"), ("202", "Accepted")],
            "update" | "patch" => &[("200", "OK"), ("201", "Created")],
            "delete" => &[("200", "OK"), ("202", "Accepted")],
            _ => &[("200", "OK")],
        };
        for (code, words) in codes {
            let schema = if streams { json!({"type": "string"}) } else { self.style.reference(&answered) };
            responses[*code] = match self.style {
                Style::V2 => json!({"description": words, "schema": schema}),
                Style::V3 => json!({"description": words, "content": {"application/json": {"schema": schema}}}),
            };
        }
        match (self.style, body) {
            (Style::V2, Some(schema)) => {
                parameters.insert(0, json!({"in": "body", "name": "body", "required": required, "schema": schema}));
            }
            (Style::V3, Some(schema)) => {
                let content: serde_json::Map<_, _> = match verb {
                    "patch" => patches().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect(),
                    _ => [("*/*".to_owned(), json!({"schema": schema}))].into_iter().collect(),
                };
                operation["requestBody"] = json!({"content": content});
                if required {
                    operation["requestBody"]["required"] = json!(true);
                }
            }
            (_, None) => {}
        }
        if self.style == Style::V2 {
            operation["schemes"] = json!(["https"]);
            operation["produces"] = json!(["application/json"]);
            operation["consumes"] =
                if verb == "patch" { patches().map(|media| json!(media)).collect() } else { json!(["*/*"]) };
        }
        operation["parameters"] = json!(parameters);
        operation["responses"] = responses;
        operation
    }

    fn query(&self, (name, kind, words): Parameter) -> Value {
        match self.style {
            Style::V2 => json!({"name": name, "in": "query", "description": words, "type": kind, "uniqueItems": true}),
            Style::V3 => {
                json!({"name": name, "in": "query", "description": words, "schema": {"type": kind, "uniqueItems": true}})
            }
        }
    }

    fn place(&self, name: &str, words: &str) -> Value {
        let mut place = self.query(("", "string", ""));
        place["name"] = json!(name);
        place["in"] = json!("path");
        place["description"] = json!(words);
        place["required"] = json!(true);
        place
    }
}
