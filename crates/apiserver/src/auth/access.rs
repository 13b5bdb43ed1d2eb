//! Roles: what somebody may do, and what they may give away.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, OnceLock};

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::User;
use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::registry::Resource;
use crate::route::Target;
use crate::watch::{Cache, Object};

const GROUP: &str = "rbac.authorization.k8s.io";
pub(super) const CLUSTER_ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
pub(super) const CLUSTER_BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
const ROLES: &str = "roles.rbac.authorization.k8s.io";
const BINDINGS: &str = "rolebindings.rbac.authorization.k8s.io";

/// May `user` do `verb` to `target`?
///
/// # Errors
///
/// 403 if not.
pub(crate) fn authorize(api: &Api, user: &User, verb: &str, target: &Target) -> Result<()> {
    if user.is_master() || allowed(api, user, &Attributes::of(verb, target)) {
        return Ok(());
    }
    let resource =
        if target.sub.is_empty() { target.plural.clone() } else { format!("{}/{}", target.plural, target.sub) };
    let full = stolos_k8s::kind::group_resource(&target.group, &target.plural);
    let scope = if target.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", target.namespace)
    };
    let why =
        format!("User {:?} cannot {verb} resource {resource:?} in API group {:?} {scope}", user.name, target.group);
    Err(Failure::forbidden(&full, &target.name, &why))
}

/// May `user` do `verb` to a path that is no resource?
///
/// # Errors
///
/// 403 if not.
pub(crate) fn authorize_path(api: &Api, user: &User, verb: &str, path: &str) -> Result<()> {
    if user.is_master() || allowed(api, user, &Attributes::of_path(verb, path)) {
        return Ok(());
    }
    let message = format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name);
    Err(Failure::other(403, "Forbidden", message).with_details(json!({})))
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Attributes<'a> {
    verb: &'a str,
    group: &'a str,
    resource: &'a str,
    sub: &'a str,
    name: &'a str,
    namespace: &'a str,
    path: &'a str,
}

impl<'a> Attributes<'a> {
    pub(super) fn of(verb: &'a str, target: &'a Target) -> Self {
        Self {
            verb,
            group: &target.group,
            resource: &target.plural,
            sub: &target.sub,
            name: &target.name,
            namespace: &target.namespace,
            path: "",
        }
    }

    pub(super) fn of_path(verb: &'a str, path: &'a str) -> Self {
        Self { verb, path, ..Self::default() }
    }
}

fn allowed(api: &Api, user: &User, wanted: &Attributes<'_>) -> bool {
    let mut allowed = false;
    for_each_rule(api, user, wanted.namespace, |rule, _| {
        allowed = covers(rule, wanted);
        !allowed
    });
    allowed
}

/// The binding that allows it, in the words of Kubernetes' own authorizer, or `None` when nothing does.
pub(super) fn why(api: &Api, user: &User, wanted: &Attributes<'_>) -> Option<String> {
    let mut reason = None;
    for_each_rule(api, user, wanted.namespace, |rule, grant| {
        if covers(rule, wanted) {
            reason = Some(grant.to_string());
        }
        reason.is_none()
    });
    reason
}

/// Why a rule holds for somebody.
pub(super) struct Grant<'a> {
    binding: &'a Value,
    subject: &'a Value,
    namespace: &'a str,
}

impl std::fmt::Display for Grant<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
        let name = meta::name(self.binding);
        let (kind, name) = match self.namespace {
            "" => ("ClusterRoleBinding", name.to_owned()),
            namespace => ("RoleBinding", format!("{name}/{namespace}")),
        };
        let role = &self.binding["roleRef"];
        let subject = match self.subject["kind"].as_str() {
            Some("ServiceAccount") => {
                let namespace = self.subject["namespace"].as_str().unwrap_or(self.namespace);
                format!("{}/{namespace}", text(&self.subject["name"]))
            }
            _ => text(&self.subject["name"]),
        };
        let (role_kind, role_name, subject_kind) =
            (text(&role["kind"]), text(&role["name"]), text(&self.subject["kind"]));
        write!(f, "RBAC: allowed by {kind} {name:?} of {role_kind} {role_name:?} to {subject_kind} {subject:?}")
    }
}

/// A binding that names somebody, and its role.
#[derive(Debug)]
struct Bound {
    binding: Arc<Object>,
    /// Which of its subjects.
    subject: usize,
    /// Where it holds, empty for everywhere.
    namespace: String,
    role: Arc<Object>,
}

/// What bindings name whom: found once for each user and namespace, and anew after any change of roles or bindings.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    caches: OnceLock<[Arc<Cache>; 4]>,
    known: Mutex<KnownGrants>,
}

#[derive(Debug, Default)]
struct KnownGrants {
    /// The last change of each of the resources when these were found.
    at: [u64; 4],
    grants: HashMap<String, Arc<[Bound]>>,
}

/// As many users and namespaces are remembered; where there are more, remembering begins anew.
const MOST_KNOWN: usize = 1024;

impl Grants {
    fn of(&self, api: &Api, user: &User, namespace: &str) -> Arc<[Bound]> {
        let caches = self.caches.get_or_init(|| {
            [CLUSTER_ROLES, CLUSTER_BINDINGS, ROLES, BINDINGS].map(|resource| api.state.cache(resource))
        });
        let lock = || self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Read before anything is found: what changes meanwhile makes it stale, never what is stale look fresh.
        let at = caches.each_ref().map(|cache| cache.last());
        let mut key = String::with_capacity(128);
        for part in [namespace, &user.name].into_iter().chain(user.groups.iter().map(String::as_str)) {
            // With its length, so that no name can pass for a name and a group.
            let _ = write!(key, "{}:{part}", part.len());
        }
        if let Some(known) =
            Some(lock()).filter(|known| known.at == at).and_then(|known| known.grants.get(&key).cloned())
        {
            return known;
        }
        let found: Arc<[Bound]> = find(caches, user, namespace).into();
        let mut known = lock();
        if known.at != at || known.grants.len() >= MOST_KNOWN {
            known.grants.clear();
            known.at = at;
        }
        known.grants.insert(key, Arc::clone(&found));
        found
    }
}

/// The bindings that name `user`, for everywhere and for `namespace`.
fn find(
    [cluster_roles, cluster_bindings, roles, bindings]: &[Arc<Cache>; 4],
    user: &User,
    namespace: &str,
) -> Vec<Bound> {
    let mut found = Vec::new();
    let mut look = |binding: Arc<Object>, namespace: &str| {
        let value = &binding.value;
        let subjects = value["subjects"].as_array().map(Vec::as_slice).unwrap_or_default();
        let Some(subject) = subjects.iter().position(|subject| is_subject(subject, user, namespace)) else { return };
        let name = value["roleRef"]["name"].as_str().unwrap_or_default();
        let role = match value["roleRef"]["kind"].as_str() {
            Some("ClusterRole") => cluster_roles.get("", name),
            Some("Role") => roles.get(namespace, name),
            _ => None,
        };
        if let Some(role) = role {
            found.push(Bound { binding, subject, namespace: namespace.to_owned(), role });
        }
    };
    cluster_bindings.list("").into_iter().for_each(|binding| look(binding, ""));
    if !namespace.is_empty() {
        bindings.list(namespace).into_iter().for_each(|binding| look(binding, namespace));
    }
    found
}

/// Every rule that holds for `user` in `namespace`, for as long as `each` wants more.
pub(super) fn for_each_rule(api: &Api, user: &User, namespace: &str, mut each: impl FnMut(&Value, &Grant<'_>) -> bool) {
    for Bound { binding, subject, namespace, role } in &*api.grants.of(api, user, namespace) {
        let grant = Grant { binding: &binding.value, subject: &binding.value["subjects"][subject], namespace };
        let rules = role.value["rules"].as_array().into_iter().flatten();
        if !rules.into_iter().all(|rule| each(rule, &grant)) {
            return;
        }
    }
}

fn is_subject(subject: &Value, user: &User, namespace: &str) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => user.name == name,
        Some("Group") => user.groups.iter().any(|group| group == name),
        Some("ServiceAccount") => {
            let namespace = subject["namespace"].as_str().unwrap_or(namespace);
            user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
                == Some((namespace, name))
        }
        _ => false,
    }
}

fn holds(list: &Value, wanted: impl Fn(&str) -> bool) -> bool {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).any(wanted)
}

fn covers(rule: &Value, wanted: &Attributes<'_>) -> bool {
    if !holds(&rule["verbs"], |verb| verb == "*" || verb == wanted.verb) {
        return false;
    }
    if !wanted.path.is_empty() {
        return holds(&rule["nonResourceURLs"], |url| {
            url == "*"
                || url == wanted.path
                || url.strip_suffix('*').is_some_and(|start| wanted.path.starts_with(start))
        });
    }
    let resource = |listed: &str| match (listed.split_once('/'), wanted.sub) {
        _ if listed == "*" => true,
        (None, "") => listed == wanted.resource,
        (Some((resource, sub)), wanted_sub) if !wanted_sub.is_empty() => {
            (resource == "*" || resource == wanted.resource) && sub == wanted_sub
        }
        _ => false,
    };
    let names = rule["resourceNames"].as_array().map(Vec::as_slice).unwrap_or_default();
    holds(&rule["apiGroups"], |group| group == "*" || group == wanted.group)
        && holds(&rule["resources"], resource)
        && (names.is_empty() || names.iter().any(|name| name == wanted.name))
}

/// As many single permissions as a role is looked through for; one with more is not given away by halves.
const MOST_ATOMS: usize = 100_000;

/// Nobody gives away by a role or binding what they do not have, unless they may `escalate` or `bind`.
///
/// # Errors
///
/// 403 when they would.
pub(crate) fn check_escalation(
    api: &Api,
    resource: &Resource,
    user: &User,
    before: Option<&Value>,
    object: &Value,
) -> Result<()> {
    if resource.group != GROUP || user.is_master() {
        return Ok(());
    }
    // Who changes but a label of it gives nothing away.
    let parts = ["rules", "aggregationRule", "roleRef", "subjects"];
    if before.is_some_and(|before| parts.iter().all(|part| before.get(part) == object.get(part))) {
        return Ok(());
    }
    let namespace = meta::namespace(object);
    let target = |plural: &str, name: &str, namespace: &str| Target {
        group: resource.group.clone(),
        version: "v1".into(),
        plural: plural.into(),
        name: name.into(),
        namespace: namespace.into(),
        sub: String::new(),
    };
    let (rules, allowed) = match resource.plural.as_str() {
        "roles" | "clusterroles" => {
            let target = target(&resource.plural, meta::name(object), namespace);
            let aggregates = |role: &Value| role["aggregationRule"].is_object();
            // It may gather anything, so it takes everything.
            let rules = if aggregates(object) || before.is_some_and(aggregates) {
                json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
                    {"nonResourceURLs": ["*"], "verbs": ["*"]}])
            } else {
                object["rules"].clone()
            };
            (rules, authorize(api, user, "escalate", &target).is_ok())
        }
        _ => {
            let (kind, name) = (&object["roleRef"]["kind"], object["roleRef"]["name"].as_str().unwrap_or_default());
            let (plural, scope) = if kind == "Role" { ("roles", namespace) } else { ("clusterroles", "") };
            let role = api.state.get(if kind == "Role" { ROLES } else { CLUSTER_ROLES }, scope, name);
            let allowed = authorize(api, user, "bind", &target(plural, name, namespace)).is_ok();
            // A role that is not there may be anything one day.
            let Some(role) = role.filter(|_| !allowed) else {
                return if allowed { Ok(()) } else { Err(Failure::not_found(&format!("{plural}.{GROUP}"), name)) };
            };
            (role.value["rules"].clone(), false)
        }
    };
    if allowed {
        return Ok(());
    }
    let mut own = Vec::new();
    for_each_rule(api, user, namespace, |rule, _| {
        own.push(rule.clone());
        true
    });
    let refused = |missing: &str| {
        let why = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{missing}",
            user.name,
            quoted(user.groups.iter().map(String::as_str))
        );
        Err(Failure::forbidden(&resource.storage, meta::name(object), &why))
    };
    let mut missing: Vec<String> = Vec::new();
    let mut looked_at = 0;
    for rule in rules.as_array().into_iter().flatten() {
        let mut verbs_missing: Vec<(Atom<'_>, Vec<&str>)> = Vec::new();
        let everything = for_each_atom(rule, &mut |atom| {
            looked_at += 1;
            if !own.iter().any(|rule| covers(rule, &atom.attributes())) {
                match verbs_missing.iter_mut().find(|(known, _)| known.same_but_verb(&atom)) {
                    Some((_, verbs)) => verbs.push(atom.verb),
                    None => verbs_missing.push((atom, vec![atom.verb])),
                }
            }
            looked_at < MOST_ATOMS && verbs_missing.len() < 32
        });
        missing.extend(verbs_missing.iter().map(|(atom, verbs)| atom.describe(verbs)));
        if !everything {
            missing.push("and more".into());
            break;
        }
    }
    if missing.is_empty() { Ok(()) } else { refused(&missing.join("\n")) }
}

/// One verb on one resource or path, as roles are made of.
#[derive(Debug, Clone, Copy)]
struct Atom<'a> {
    verb: &'a str,
    group: &'a str,
    resource: &'a str,
    name: &'a str,
    path: &'a str,
}

impl<'a> Atom<'a> {
    fn attributes(&self) -> Attributes<'a> {
        let (resource, sub) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        Attributes {
            verb: self.verb,
            group: self.group,
            resource,
            sub,
            name: self.name,
            namespace: "",
            path: self.path,
        }
    }

    fn same_but_verb(&self, other: &Self) -> bool {
        (self.group, self.resource, self.name, self.path) == (other.group, other.resource, other.name, other.path)
    }

    /// As Kubernetes prints a rule.
    fn describe(&self, verbs: &[&str]) -> String {
        let verbs = quoted(verbs.iter().copied());
        if !self.path.is_empty() {
            return format!("{{NonResourceURLs:[{:?}], Verbs:{verbs}}}", self.path);
        }
        let names = if self.name.is_empty() { String::new() } else { format!(", ResourceNames:[{:?}]", self.name) };
        format!("{{APIGroups:[{:?}], Resources:[{:?}]{names}, Verbs:{verbs}}}", self.group, self.resource)
    }
}

fn quoted<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", texts.map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" "))
}

fn texts(value: &Value) -> impl Iterator<Item = &str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Every single permission of a rule, for as long as `each` wants more; says whether it wanted all.
fn for_each_atom<'a>(rule: &'a Value, each: &mut impl FnMut(Atom<'a>) -> bool) -> bool {
    let unnamed = rule["resourceNames"].as_array().is_none_or(Vec::is_empty);
    for path in texts(&rule["nonResourceURLs"]) {
        for verb in texts(&rule["verbs"]) {
            if !each(Atom { verb, group: "", resource: "", name: "", path }) {
                return false;
            }
        }
    }
    for group in texts(&rule["apiGroups"]) {
        for resource in texts(&rule["resources"]) {
            for name in texts(&rule["resourceNames"]).chain(unnamed.then_some("")) {
                for verb in texts(&rule["verbs"]) {
                    if !each(Atom { verb, group, resource, name, path: "" }) {
                        return false;
                    }
                }
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_cover_what_they_say() {
        let rule = json!({"apiGroups": [""], "resources": ["pods", "pods/log", "*/status"], "verbs": ["get", "list"]});
        let named = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"], "resourceNames": ["a"]});
        let wanted = |verb, resource, sub, name| Attributes { verb, resource, sub, name, ..Attributes::default() };
        let cases = [
            (&rule, wanted("get", "pods", "", ""), true),
            (&rule, wanted("get", "pods", "log", ""), true),
            (&rule, wanted("get", "pods", "exec", ""), false),
            (&rule, wanted("get", "nodes", "status", ""), true),
            (&rule, wanted("create", "pods", "", ""), false),
            (&named, wanted("create", "pods", "", "a"), true),
            (&named, wanted("list", "pods", "", ""), false),
        ];
        for (rule, attributes, expected) in cases {
            assert_eq!(covers(rule, &attributes), expected, "{attributes:?}");
        }
        let urls = json!({"nonResourceURLs": ["/apis/*", "/version"], "verbs": ["get"]});
        assert!(covers(&urls, &Attributes::of_path("get", "/apis/apps/v1")));
        assert!(!covers(&urls, &Attributes::of_path("get", "/versions")));
    }

    #[test]
    fn a_rule_is_taken_apart_and_no_further_than_wanted() {
        let rule = json!({"apiGroups": ["", "apps"], "resources": ["pods", "pods/log"], "verbs": ["get", "list"],
            "resourceNames": ["a", "b"]});
        let mut seen = Vec::new();
        assert!(for_each_atom(&rule, &mut |atom| {
            seen.push(atom.describe(&[atom.verb]));
            true
        }));
        assert_eq!(seen.len(), 16);
        assert_eq!(seen[0], r#"{APIGroups:[""], Resources:["pods"], ResourceNames:["a"], Verbs:["get"]}"#);
        let mut count = 0;
        let all = for_each_atom(&rule, &mut |_| {
            count += 1;
            count < 5
        });
        assert_eq!((all, count), (false, 5));
    }
}
