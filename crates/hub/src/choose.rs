//! Which policy a template follows (Karmada v1.18.2): namespaced before cluster-wide, then explicit priority, then how
//! exactly it is selected, then the name. What a policy has claimed stays its own while it still selects it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stolos_k8s::meta;

use crate::divide::Algorithm;
use crate::label;
use crate::model::{Preemption, PropagationPolicy, ResourceSelector};

/// How exactly a selector names a template; greater goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Match {
    /// All of a kind, or of everything.
    All,
    /// By labels.
    Labels,
    /// By name.
    Name,
}

/// How a selector names a template, if it does. `home` stands for its namespace where none is written.
#[must_use]
pub fn selects(selector: &ResourceSelector, home: &str, template: &Value) -> Option<Match> {
    let namespace = if selector.namespace.is_empty() { home } else { &selector.namespace };
    if selector.api_version != meta::api_version(template)
        || selector.kind != meta::kind(template)
        || !(namespace.is_empty() || namespace == meta::namespace(template))
    {
        return None;
    }
    if !selector.name.is_empty() {
        return (selector.name == meta::name(template)).then_some(Match::Name);
    }
    match &selector.label_selector {
        None => Some(Match::All),
        Some(labels) => labels.matches(&meta::labels(template)).then_some(Match::Labels),
    }
}

/// How exactly the best of these selectors names a template.
#[must_use]
pub fn best_match(selectors: &[ResourceSelector], home: &str, template: &Value) -> Option<Match> {
    selectors.iter().filter_map(|selector| selects(selector, home, template)).max()
}

/// How exactly a policy selects a template.
#[must_use]
pub fn policy_match(policy: &PropagationPolicy, template: &Value) -> Option<Match> {
    let home = &policy.metadata.namespace;
    let within = home.is_empty() || home == meta::namespace(template);
    (within && policy.metadata.deletion_timestamp.is_none())
        .then(|| best_match(&policy.spec.resource_selectors, home, template))
        .flatten()
}

/// Which policy has claimed a template, by its label and annotations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The policy's permanent id.
    pub id: String,
    /// Its namespace; empty for one of the whole hub.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Claim {
    /// The claim on a template, a namespaced one before a cluster-wide one.
    #[must_use]
    pub fn of(template: &Value) -> Option<Self> {
        let text = |found: Option<&str>| found.unwrap_or_default().to_owned();
        let name = meta::annotation(template, label::POLICY_NAME).filter(|name| !name.is_empty());
        if let Some(name) = name {
            let namespace = text(meta::annotation(template, label::POLICY_NAMESPACE));
            let id = text(meta::label(template, label::POLICY_ID));
            return Some(Self { id, namespace, name: name.to_owned() });
        }
        let name = meta::annotation(template, label::CLUSTER_POLICY_NAME).filter(|name| !name.is_empty())?;
        let id = text(meta::label(template, label::CLUSTER_POLICY_ID));
        Some(Self { id, namespace: String::new(), name: name.to_owned() })
    }

    /// Whether this is the policy that has claimed.
    #[must_use]
    pub fn is_of(&self, policy: &PropagationPolicy) -> bool {
        let metadata = &policy.metadata;
        let key = if metadata.namespace.is_empty() { label::CLUSTER_POLICY_ID } else { label::POLICY_ID };
        let same = |id: &String| self.id.is_empty() || *id == self.id;
        metadata.namespace == self.namespace && metadata.name == self.name && metadata.labels.get(key).is_none_or(same)
    }
}

/// The policy that a template follows, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice<'a> {
    /// The policy.
    pub policy: &'a PropagationPolicy,
    /// How exactly it selects the template.
    pub matched: Match,
    /// It had the template before, and keeps it.
    pub claimed: bool,
    /// The others that select the template.
    pub others: Vec<Other>,
}

/// A policy that selects a template and does not get it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Other {
    /// As `ClusterPropagationPolicy all`.
    pub policy: String,
    /// Why not.
    pub reason: String,
}

/// What a policy is called, with its kind.
#[must_use]
pub fn called(policy: &PropagationPolicy) -> String {
    match policy.metadata.namespace.as_str() {
        "" => format!("ClusterPropagationPolicy {}", policy.metadata.name),
        namespace => format!("PropagationPolicy {namespace}/{}", policy.metadata.name),
    }
}

/// Chooses the policy of a template among all of the hub. `preemption` is Karmada's gate `PropagationPolicyPreemption`.
#[must_use]
pub fn choose<'a>(
    template: &Value,
    policies: impl IntoIterator<Item = &'a PropagationPolicy>,
    algorithm: Algorithm,
    preemption: bool,
) -> Option<Choice<'a>> {
    let mut matching: Vec<(&PropagationPolicy, Match)> =
        policies.into_iter().filter_map(|policy| Some((policy, policy_match(policy, template)?))).collect();
    // v1.2 knows neither priorities nor how exactly a policy selects.
    let rank = |(policy, matched): &(&PropagationPolicy, Match)| {
        let wide = policy.metadata.namespace.is_empty();
        let (priority, matched) = match algorithm {
            Algorithm::Newest => (policy.spec.priority, *matched),
            Algorithm::V1_2 => (0, Match::All),
        };
        (wide, std::cmp::Reverse((priority, matched)), policy.metadata.name.clone())
    };
    matching.sort_by_cached_key(rank);
    let claim = Claim::of(template);
    let held = claim.and_then(|claim| matching.iter().position(|(policy, _)| claim.is_of(policy)));
    let taken = held.filter(|_| preemption).and_then(|held| {
        let holder = matching[held].0;
        matching.iter().position(|(policy, _)| preempts(policy, holder))
    });
    let at = taken.or(held).unwrap_or(0);
    let (policy, matched) = *matching.get(at)?;
    let claimed = taken.is_none() && held.is_some();
    let others = matching.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, (other, how))| {
        let reason = passed_over((policy, matched), (other, *how), claimed, algorithm);
        Other { policy: called(other), reason }
    });
    Some(Choice { policy, matched, claimed, others: others.collect() })
}

/// Why `other` did not get the template that `chosen` has.
fn passed_over(
    (chosen, matched): (&PropagationPolicy, Match),
    (other, how): (&PropagationPolicy, Match),
    claimed: bool,
    algorithm: Algorithm,
) -> String {
    let wide = |policy: &PropagationPolicy| policy.metadata.namespace.is_empty();
    let (ours, theirs) = (chosen.spec.priority, other.spec.priority);
    if wide(other) && !wide(chosen) {
        "policies of the namespace go first".to_owned()
    } else if algorithm == Algorithm::Newest && theirs < ours {
        format!("its priority {theirs} is lower than {ours}")
    } else if claimed && (wide(chosen) != wide(other) || theirs > ours) {
        "the template is claimed already, and stays while its policy selects it".to_owned()
    } else if algorithm == Algorithm::Newest && how < matched && theirs == ours {
        "it selects the template less exactly".to_owned()
    } else if chosen.metadata.name < other.metadata.name {
        "its name comes later".to_owned()
    } else {
        "the template is claimed already, and stays while its policy selects it".to_owned()
    }
}

/// Whether a policy takes templates that another one has: only with `preemption: Always`; a namespaced one from a
/// cluster-wide one always, else with a higher priority; never a cluster-wide one from a namespaced one.
#[must_use]
pub fn preempts(challenger: &PropagationPolicy, holder: &PropagationPolicy) -> bool {
    let (theirs, ours) = (challenger.metadata.namespace.is_empty(), holder.metadata.namespace.is_empty());
    challenger.spec.preemption == Preemption::Always
        && match (theirs, ours) {
            (false, true) => true,
            (true, false) => false,
            _ => challenger.spec.priority > holder.spec.priority,
        }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::read;

    /// `ns/name priority selector`: a namespace of `-` is the whole hub; selectors are `name`, `label`, `kind`, `other`.
    fn policy(text: &str) -> PropagationPolicy {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (namespace, name) = words[0].split_once('/').unwrap();
        let selector = match words[2] {
            "name" => json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}),
            "label" => {
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "labelSelector": {"matchLabels": {"a": "b"}}})
            }
            "kind" => json!({"apiVersion": "apps/v1", "kind": "Deployment"}),
            _ => json!({"apiVersion": "v1", "kind": "Service", "name": "web"}),
        };
        let preemption = if words.get(3) == Some(&"takes") { "Always" } else { "Never" };
        let mut policy = json!({"metadata": {"name": name, "labels": {}}, "spec": {
            "resourceSelectors": [selector], "priority": words[1].parse::<i64>().unwrap(), "preemption": preemption}});
        if namespace != "-" {
            policy["metadata"]["namespace"] = namespace.into();
        }
        read(&policy).unwrap().0
    }

    fn template(claimed: &str) -> Value {
        let mut template = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "shop", "labels": {"a": "b"}}});
        match claimed.split_once('/') {
            Some(("-", name)) => meta::set_annotation(&mut template, label::CLUSTER_POLICY_NAME, name),
            Some((namespace, name)) => {
                meta::set_annotation(&mut template, label::POLICY_NAMESPACE, namespace);
                meta::set_annotation(&mut template, label::POLICY_NAME, name);
            }
            None => {}
        }
        template
    }

    #[test]
    fn the_policy_is_chosen_as_karmada_does() {
        // Policies; who claims; the newest's choice; v1.2's.
        let cases: [(&[&str], &str, &str, &str); 11] = [
            (&["shop/a 0 other"], "", "-", "-"),
            (&["other/a 0 name"], "", "-", "-"),
            (&["-/a 9 name", "shop/b 0 kind"], "", "shop/b", "shop/b"),
            (&["shop/a 0 kind", "shop/b 5 kind"], "", "shop/b", "shop/a"),
            (&["shop/a 0 kind", "shop/b 0 label", "shop/c 0 name"], "", "shop/c", "shop/a"),
            (&["shop/b 0 name", "shop/a 0 name"], "", "shop/a", "shop/a"),
            (&["-/a 0 kind", "-/b 0 label"], "", "-/b", "-/a"),
            // Claimed stays claimed, and a claim whose policy no longer selects is nothing.
            (&["shop/a 9 name", "shop/b 0 kind"], "shop/b", "shop/b", "shop/b"),
            (&["shop/a 0 name", "-/b 0 kind"], "-/b", "-/b", "-/b"),
            (&["shop/a 0 name", "shop/b 0 other"], "shop/b", "shop/a", "shop/a"),
            (&["shop/a 0 name"], "shop/gone", "shop/a", "shop/a"),
        ];
        for (policies, claimed, newest, v1_2) in cases {
            let policies: Vec<PropagationPolicy> = policies.iter().map(|text| policy(text)).collect();
            for (algorithm, expected) in [(Algorithm::Newest, newest), (Algorithm::V1_2, v1_2)] {
                let template = template(claimed);
                let choice = choose(&template, &policies, algorithm, false);
                let name = choice.map_or("-".to_owned(), |choice| {
                    let metadata = &choice.policy.metadata;
                    let namespace = if metadata.namespace.is_empty() { "-" } else { &metadata.namespace };
                    format!("{namespace}/{}", metadata.name)
                });
                assert_eq!(name, expected, "{algorithm:?} {:?}", policies.iter().map(called).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_policy_takes_what_another_one_has_only_by_the_rules() {
        for (challenger, holder, takes) in [
            ("shop/a 0 name takes", "-/b 9 name", true),
            ("shop/a 0 name", "-/b 9 name", false),
            ("shop/a 2 name takes", "shop/b 1 name", true),
            ("shop/a 1 name takes", "shop/b 1 name", false),
            ("-/a 2 name takes", "-/b 1 name", true),
            ("-/a 9 name takes", "shop/b 0 name", false),
        ] {
            let policies = [policy(challenger), policy(holder)];
            assert_eq!(preempts(&policies[0], &policies[1]), takes, "{challenger} over {holder}");
            let template = template(holder.split(' ').next().unwrap());
            let name = |preemption| {
                choose(&template, &policies, Algorithm::Newest, preemption).unwrap().policy.metadata.name.clone()
            };
            assert_eq!((name(true), name(false)), (if takes { "a" } else { "b" }.to_owned(), "b".to_owned()));
        }
    }

    #[test]
    fn the_others_are_told_why_not() {
        let policies = ["shop/b 5 label", "shop/a 1 name", "shop/d 5 label", "shop/c 5 kind", "-/e 9 name"].map(policy);
        let template = template("");
        let choice = choose(&template, &policies, Algorithm::Newest, false).unwrap();
        let others: Vec<String> =
            choice.others.iter().map(|other| format!("{}: {}", other.policy, other.reason)).collect();
        insta::assert_snapshot!(format!("{}\n{}", called(choice.policy), others.join("\n")), @"
        PropagationPolicy shop/b
        PropagationPolicy shop/d: its name comes later
        PropagationPolicy shop/c: it selects the template less exactly
        PropagationPolicy shop/a: its priority 1 is lower than 5
        ClusterPropagationPolicy e: policies of the namespace go first
        ");
    }
}
