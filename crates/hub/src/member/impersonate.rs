//! Who may be acted for in a member: those whom the hub's own roles let through to it, and nobody else (Karmada v1.18.2,
//! `unifiedAuth`).
//!
//! Karmada lists the subjects of the bindings by which somebody may `clusters/proxy` of the member. A group among them is not
//! enough: whoever is in it is acted for by their own name, too, and nobody can list who is in it. So [`Names`] also has
//! those who came, as long as they may come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use stolos_k8s::meta;

use crate::proxy::Caller;

const GROUP: &str = "cluster.karmada.io";
/// `system:masters` is nobody's beyond the hub; the others are added by every API server.
const NEVER: [&str; 3] = ["system:masters", "system:authenticated", "system:unauthenticated"];
const ACCOUNT: &str = "system:serviceaccount:";

/// A subject of a binding, as a name: a service account is a user with a longer one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    User(String),
    Group(String),
}

/// Whom the hub's roles let use `clusters/proxy` of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Let(BTreeSet<Subject>);

impl Let {
    /// By the ClusterRoles and ClusterRoleBindings of the hub.
    pub(crate) fn of(member: &str, roles: &[Arc<Value>], bindings: &[Arc<Value>]) -> Self {
        let lets: BTreeSet<&str> =
            roles.iter().filter(|role| lets(role, member)).map(|role| meta::name(role)).collect();
        let named = |binding: &&Arc<Value>| {
            let role = &binding["roleRef"];
            role["kind"] == "ClusterRole" && role["name"].as_str().is_some_and(|name| lets.contains(name))
        };
        let subjects = bindings.iter().filter(named).flat_map(|binding| binding["subjects"].as_array()).flatten();
        Self(subjects.filter_map(subject).collect())
    }

    /// Whether somebody is let.
    pub(crate) fn lets(&self, caller: &Caller) -> bool {
        self.0.contains(&Subject::User(caller.name.clone()))
            || caller.groups.iter().any(|group| self.0.contains(&Subject::Group(group.clone())))
    }
}

/// Whether a role says something of `clusters/proxy` of this member.
fn lets(role: &Value, member: &str) -> bool {
    role["rules"].as_array().into_iter().flatten().any(|rule| {
        let has = |field: &str, wanted: &[&str]| {
            rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).any(|one| wanted.contains(&one))
        };
        let names = rule["resourceNames"].as_array().is_some_and(|names| !names.is_empty());
        has("apiGroups", &["*", GROUP])
            && has("resources", &["*", "clusters/proxy", "*/proxy"])
            && (!names || has("resourceNames", &[member]))
    })
}

fn subject(subject: &Value) -> Option<Subject> {
    let name = subject["name"].as_str()?.to_owned();
    match subject["kind"].as_str()? {
        "User" => Some(Subject::User(name)),
        "Group" => Some(Subject::Group(name)),
        "ServiceAccount" => Some(Subject::User(format!("{ACCOUNT}{}:{name}", subject["namespace"].as_str()?))),
        _ => None,
    }
}

/// Who may be acted for in one member, as names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    users: BTreeSet<String>,
    groups: BTreeSet<String>,
    accounts: BTreeSet<String>,
}

impl Names {
    /// Those who are let by name. The parts of an API server itself, which its own roles let do everything, are not: none
    /// of them asks for a member, and in a member they would be the member's.
    pub(crate) fn of(all: &Let) -> Self {
        let mut names = Self::default();
        for subject in &all.0 {
            match subject {
                Subject::User(name) if name.starts_with("system:serviceaccount:kube-system:") => {}
                Subject::User(name) if name.starts_with("system:") && !name.starts_with(ACCOUNT) => {}
                Subject::Group(name) if name.starts_with("system:") => {}
                Subject::User(name) => names.add_user(name),
                Subject::Group(name) => drop(names.groups.insert(name.clone())),
            }
        }
        names
    }

    fn add_user(&mut self, name: &str) {
        match name.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':')) {
            Some((_, account)) => self.accounts.insert(account.to_owned()),
            None => self.users.insert(name.to_owned()),
        };
    }

    /// Somebody who came, with all that they are.
    pub(crate) fn add(&mut self, caller: &Caller) {
        self.add_user(&caller.name);
        self.groups.extend(caller.groups.iter().filter(|group| !NEVER.contains(&group.as_str())).cloned());
    }

    /// Whether all of these are among them.
    pub(crate) fn has(&self, others: &Self) -> bool {
        others.users.is_subset(&self.users)
            && others.groups.is_subset(&self.groups)
            && others.accounts.is_subset(&self.accounts)
    }

    /// The kinds with their names.
    fn kinds(&self) -> [(&'static str, &BTreeSet<String>); 3] {
        [("users", &self.users), ("serviceaccounts", &self.accounts), ("groups", &self.groups)]
    }

    /// The rules of the role in the member, in Karmada's order.
    pub(crate) fn rules(&self) -> Value {
        let named = self.kinds().into_iter().filter(|(_, names)| !names.is_empty());
        let rule = |(kind, names): (&str, &BTreeSet<String>)| json!({"apiGroups": [""], "resources": [kind], "verbs": ["impersonate"], "resourceNames": names});
        named.map(rule).collect()
    }

    /// What is to be allowed before somebody can be acted for: resource and name.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.kinds().into_iter().flat_map(|(kind, names)| names.iter().map(move |name| (kind, name.as_str())))
    }
}

/// Those who came, of one member.
#[derive(Debug, Default)]
pub(crate) struct Came(BTreeMap<String, Guest>);

#[derive(Debug)]
struct Guest {
    caller: Caller,
    /// Whether it were roles that let them; an API that is somebody else's may have other ways.
    by_roles: bool,
    last: tokio::time::Instant,
}

/// How many are remembered of one member.
const MOST: usize = 1000;
/// For how long, if no role says that they may come.
const REMEMBERED: std::time::Duration = std::time::Duration::from_secs(600);

impl Came {
    /// Somebody who was let through.
    pub(crate) fn put(&mut self, caller: &Caller, all: &Let, now: tokio::time::Instant) {
        if self.0.len() >= MOST
            && !self.0.contains_key(&caller.name)
            && let Some(oldest) = self.0.iter().min_by_key(|(_, guest)| guest.last).map(|(name, _)| name.clone())
        {
            self.0.remove(&oldest);
        }
        let guest = Guest { caller: caller.clone(), by_roles: all.lets(caller), last: now };
        self.0.insert(caller.name.clone(), guest);
    }

    /// Adds those who may still come to `names`, and forgets the others.
    pub(crate) fn add_to(&mut self, names: &mut Names, all: &Let, now: tokio::time::Instant) {
        self.0.retain(|_, guest| match guest.by_roles {
            true => all.lets(&guest.caller),
            false => now.saturating_duration_since(guest.last) < REMEMBERED,
        });
        self.0.values().for_each(|guest| names.add(&guest.caller));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, rules: Value) -> Arc<Value> {
        Arc::new(json!({"kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}))
    }

    fn binding(role: &str, subjects: Value) -> Arc<Value> {
        Arc::new(json!({"roleRef": {"kind": "ClusterRole", "name": role}, "subjects": subjects}))
    }

    fn caller(name: &str, groups: &[&str]) -> Caller {
        Caller { name: name.into(), groups: groups.iter().map(|group| (*group).to_owned()).collect() }
    }

    fn hub() -> (Vec<Arc<Value>>, Vec<Arc<Value>>) {
        let proxy = |names: Value| {
            json!([{"apiGroups": ["cluster.karmada.io"], "resources": ["clusters/proxy"],
            "verbs": ["get"], "resourceNames": names}])
        };
        let roles = vec![
            role("all", json!([{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])),
            role("eu", proxy(json!(["eu"]))),
            role("any", proxy(json!([]))),
            role("clusters", json!([{"apiGroups": ["cluster.karmada.io"], "resources": ["clusters"], "verbs": ["*"]}])),
        ];
        let bindings = vec![
            binding("all", json!([{"kind": "Group", "name": "system:masters"}, {"kind": "User", "name": "root"}])),
            binding("all", json!([{"kind": "ServiceAccount", "name": "gc", "namespace": "kube-system"}])),
            binding("eu", json!([{"kind": "User", "name": "jane"}, {"kind": "Group", "name": "dev"}])),
            binding("any", json!([{"kind": "ServiceAccount", "name": "bot", "namespace": "ci"}])),
            binding("clusters", json!([{"kind": "User", "name": "joe"}])),
        ];
        (roles, bindings)
    }

    #[test]
    fn only_those_whom_the_hub_lets_may_be_acted_for() {
        let (roles, bindings) = hub();
        let rules = |member: &str| {
            let rules = Names::of(&Let::of(member, &roles, &bindings)).rules();
            let lines = rules.as_array().unwrap().iter().map(|rule| {
                format!("{} {} {} {}", rule["verbs"], rule["apiGroups"], rule["resources"], rule["resourceNames"])
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        insta::assert_snapshot!(rules("eu"), @r#"
        ["impersonate"] [""] ["users"] ["jane","root"]
        ["impersonate"] [""] ["serviceaccounts"] ["bot"]
        ["impersonate"] [""] ["groups"] ["dev"]
        "#);
        insta::assert_snapshot!(rules("ap"), @r#"
        ["impersonate"] [""] ["users"] ["root"]
        ["impersonate"] [""] ["serviceaccounts"] ["bot"]
        "#);
    }

    #[test]
    fn who_came_is_known_by_name_as_long_as_they_may_come() {
        let (roles, mut bindings) = hub();
        let now = tokio::time::Instant::now();
        let all = Let::of("eu", &roles, &bindings);
        let mut came = Came::default();
        let ann = caller("ann", &["dev", "ops", "system:authenticated"]);
        assert!(all.lets(&ann) && !all.lets(&caller("eve", &["ops"])));
        came.put(&ann, &all, now);
        came.put(&caller("by-another-way", &[]), &all, now);
        let (mut names, mut needed) = (Names::of(&all), Names::default());
        needed.add(&ann);
        assert!(!names.has(&needed));
        came.add_to(&mut names, &all, now);
        assert!(names.has(&needed));
        let each: Vec<_> = needed.each().collect();
        assert_eq!(each, [("users", "ann"), ("groups", "dev"), ("groups", "ops")]);
        // The group may not come any more; and whom no role knew is forgotten after a while.
        bindings.retain(|binding| binding["roleRef"]["name"] != "eu");
        let all = Let::of("eu", &roles, &bindings);
        let mut names = Names::of(&all);
        came.add_to(&mut names, &all, now);
        assert!(!names.has(&needed) && names.users.contains("by-another-way"));
        let mut names = Names::of(&all);
        came.add_to(&mut names, &all, now + REMEMBERED);
        assert_eq!(names, Names::of(&all));
    }
}
