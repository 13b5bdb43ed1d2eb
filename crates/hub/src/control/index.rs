//! Policies as types and where to look for them: a template asks for those that may select it and a policy for the
//! templates that it may select, without either looking through all of the other. A Service finds its pods' Works likewise.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use serde_json::Value;
use stolos_k8s::meta;

use super::template::TemplateKey;
use super::{Hub, policies};
use crate::choose::{self, Claim};
use crate::mirror::{self, Key};
use crate::model::{self, PropagationPolicy, ResourceSelector};

/// What one selector asks for: `apiVersion`, kind, namespace and name; empty is any.
type Wanted = (String, String, String, String);

/// Every policy that a webhook would have let in, by what it selects.
#[derive(Default)]
pub(super) struct Policies {
    all: BTreeMap<Key, Arc<PropagationPolicy>>,
    by: HashMap<Wanted, BTreeSet<Key>>,
}

impl Policies {
    /// A policy is so now, or is gone.
    pub(super) fn put(&mut self, key: &Key, now: Option<&Value>) {
        if let Some(before) = self.all.remove(key) {
            for wanted in wants(&before) {
                if let Some(keys) = self.by.get_mut(&wanted) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.by.remove(&wanted);
                    }
                }
            }
        }
        // One that a webhook would have refused selects nothing.
        let now = now.filter(|policy| policies::refused(policy).is_empty());
        let Some((policy, _)) = now.and_then(|policy| model::read::<PropagationPolicy>(policy).ok()) else { return };
        for wanted in wants(&policy) {
            self.by.entry(wanted).or_default().insert(key.clone());
        }
        self.all.insert(key.clone(), Arc::new(policy));
    }

    /// Those that may select a template, in the order of their names; what they really select they say themselves.
    pub(super) fn that_may_select(&self, template: &Value) -> Vec<Arc<PropagationPolicy>> {
        let (version, kind) = (meta::api_version(template), meta::kind(template));
        let mut keys = BTreeSet::new();
        for namespace in BTreeSet::from([meta::namespace(template), ""]) {
            for name in [meta::name(template), ""] {
                let wanted = [version, kind, namespace, name].map(str::to_owned);
                keys.extend(self.by.get(&wanted.into()).into_iter().flatten());
            }
        }
        keys.into_iter().filter_map(|key| self.all.get(key).cloned()).collect()
    }
}

fn wants(policy: &PropagationPolicy) -> impl Iterator<Item = Wanted> {
    let home = &policy.metadata.namespace;
    policy.spec.resource_selectors.iter().map(move |selector| {
        let namespace = within(selector, home).to_owned();
        (selector.api_version.clone(), selector.kind.clone(), namespace, selector.name.clone())
    })
}

/// The namespace that a selector of a policy in `home` is about; empty for any.
fn within<'a>(selector: &'a ResourceSelector, home: &'a str) -> &'a str {
    if selector.namespace.is_empty() { home } else { &selector.namespace }
}

/// Which templates a policy has claimed.
#[derive(Default)]
pub(super) struct Claims(HashMap<Key, HashSet<TemplateKey>>);

impl Claims {
    /// A template was one thing and is another now.
    pub(super) fn put(&mut self, before: Option<&Value>, now: Option<&Value>) {
        let of = |template: &Value| Claim::of(template).map(|claim| (claim.namespace, claim.name));
        let (was, is) = (before.and_then(of), now.and_then(of));
        let Some(template) = now.or(before).map(TemplateKey::of).filter(|_| was != is) else { return };
        if let Some(was) = was
            && let Some(claimed) = self.0.get_mut(&was)
        {
            claimed.remove(&template);
            if claimed.is_empty() {
                self.0.remove(&was);
            }
        }
        if let Some(is) = is {
            self.0.entry(is).or_default().insert(template);
        }
    }

    /// Those of one policy.
    pub(super) fn of(&self, policy: &Key) -> Vec<TemplateKey> {
        self.0.get(policy).into_iter().flatten().cloned().collect()
    }
}

/// Which Works bring pods with a label: execution namespace, namespace of the pods, key and value, of which only a hash is
/// kept. Whoever asks looks at what is found.
#[derive(Default)]
pub(super) struct Pods(HashMap<u64, BTreeSet<Arc<str>>>);

impl Pods {
    /// A Work was one thing and is another now.
    pub(super) fn put(&mut self, before: Option<&Value>, now: Option<&Value>) {
        let Some(work) = now.or(before).filter(|_| before.map(pods) != now.map(pods)) else { return };
        let (was, is) = (before.map(labelled).unwrap_or_default(), now.map(labelled).unwrap_or_default());
        let name: Arc<str> = meta::name(work).into();
        for label in was {
            if let Some(names) = self.0.get_mut(&label) {
                names.remove(&name);
                if names.is_empty() {
                    self.0.remove(&label);
                }
            }
        }
        for label in is {
            self.0.entry(label).or_default().insert(Arc::clone(&name));
        }
    }

    /// The names of the Works of an execution namespace that may bring pods that a selector selects: those of its rarest
    /// label.
    pub(super) fn that_may_be_selected(
        &self,
        space: &str,
        namespace: &str,
        selector: &serde_json::Map<String, Value>,
    ) -> Vec<Arc<str>> {
        let label = |(key, value): (&String, &Value)| self.0.get(&labelled_by(space, namespace, key, value.as_str()?));
        let found: Option<Vec<_>> = selector.iter().map(label).collect();
        let rarest = found.into_iter().flatten().min_by_key(|names| names.len());
        rarest.into_iter().flatten().cloned().collect()
    }
}

/// The namespace and the labels of the pods that a Work brings.
fn pods(work: &Value) -> (&str, Option<&serde_json::Map<String, Value>>) {
    let manifest = &work["spec"]["workload"]["manifests"][0];
    let labels = manifest.pointer("/spec/template/metadata/labels").and_then(Value::as_object);
    (meta::namespace(manifest), labels)
}

fn labelled(work: &Value) -> BTreeSet<u64> {
    let (namespace, labels) = pods(work);
    let of =
        |(key, value): (&String, &Value)| Some(labelled_by(meta::namespace(work), namespace, key, value.as_str()?));
    labels.into_iter().flatten().filter_map(of).collect()
}

fn labelled_by(space: &str, namespace: &str, key: &str, value: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (space, namespace, key, value).hash(&mut hasher);
    hasher.finish()
}

impl Hub {
    /// Queues the templates that a policy selects, or has claimed.
    pub(super) fn queue_templates(&self, policy: &Value) {
        for template in self.claimed_by(&mirror::key(policy)) {
            self.queues.templates.add(template);
        }
        let Ok((policy, _)) = model::read::<PropagationPolicy>(policy) else { return };
        for selector in &policy.spec.resource_selectors {
            let Some(mirror) = self.mirror_of(&selector.api_version, &selector.kind) else { continue };
            let found = match (within(selector, &policy.metadata.namespace), selector.name.as_str()) {
                ("", _) => mirror.list(),
                (namespace, "") => mirror.of_namespace(namespace),
                (namespace, name) => mirror.get(namespace, name).into_iter().collect(),
            };
            for template in found.iter().filter(|template| choose::policy_match(&policy, template).is_some()) {
                self.queues.templates.add(TemplateKey::of(template));
            }
        }
    }

    /// The templates that a policy has claimed.
    pub(super) fn claimed_by(&self, policy: &Key) -> Vec<TemplateKey> {
        self.claims.lock().unwrap_or_else(std::sync::PoisonError::into_inner).of(policy)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(namespace: &str, name: &str, selector: Value) -> Value {
        let kind = if namespace.is_empty() { "ClusterPropagationPolicy" } else { "PropagationPolicy" };
        json!({"apiVersion": "policy.karmada.io/v1alpha1", "kind": kind,
            "metadata": {"namespace": namespace, "name": name}, "spec": {"resourceSelectors": [selector]}})
    }

    /// Whatever is looked up is what looking through all would have found.
    #[test]
    fn nobody_is_overlooked() {
        let deployment = |more: Value| {
            let mut selector = json!({"apiVersion": "apps/v1", "kind": "Deployment"});
            selector.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            selector
        };
        let all = [
            policy("shop", "by-name", deployment(json!({"name": "web"}))),
            policy("shop", "by-label", deployment(json!({"labelSelector": {"matchLabels": {"app": "web"}}}))),
            policy("shop", "everything", deployment(json!({}))),
            policy("bank", "elsewhere", deployment(json!({"name": "web"}))),
            policy("", "wide", deployment(json!({}))),
            policy("", "wide-by-name", deployment(json!({"name": "web"}))),
            policy("", "wide-by-namespace", deployment(json!({"namespace": "shop"}))),
            policy("", "other-kind", json!({"apiVersion": "v1", "kind": "Service", "name": "web"})),
        ];
        let mut index = Policies::default();
        all.iter().for_each(|policy| index.put(&mirror::key(policy), Some(policy)));
        let names = |found: Vec<Arc<PropagationPolicy>>, template: &Value| -> Vec<String> {
            let selecting = found.into_iter().filter(|policy| choose::policy_match(policy, template).is_some());
            selecting.map(|policy| policy.metadata.name.clone()).collect()
        };
        for (namespace, name) in [("shop", "web"), ("shop", "api"), ("bank", "web"), ("inn", "web")] {
            let template = json!({"apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}}});
            let every: BTreeMap<Key, Arc<PropagationPolicy>> =
                all.iter().map(|p| (mirror::key(p), Arc::new(model::read(p).unwrap().0))).collect();
            let expected = names(every.into_values().collect(), &template);
            assert_eq!(names(index.that_may_select(&template), &template), expected, "{namespace}/{name}");
        }
        all.iter().for_each(|policy| index.put(&mirror::key(policy), None));
        assert!(index.all.is_empty() && index.by.is_empty());
    }

    #[test]
    fn a_claim_moves_with_its_template() {
        let template = |of: Option<&str>| {
            let annotations =
                of.map(|name| json!({crate::label::POLICY_NAMESPACE: "shop", crate::label::POLICY_NAME: name}));
            json!({"apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"namespace": "shop", "name": "web", "annotations": annotations}})
        };
        let (free, first, second) = (template(None), template(Some("first")), template(Some("second")));
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        let mut claims = Claims::default();
        claims.put(None, Some(&free));
        assert!(claims.0.is_empty());
        claims.put(Some(&free), Some(&first));
        assert_eq!(claims.of(&key("first")), [TemplateKey::of(&first)]);
        claims.put(Some(&first), Some(&second));
        assert!(claims.of(&key("first")).is_empty());
        assert_eq!(claims.of(&key("second")), [TemplateKey::of(&second)]);
        claims.put(Some(&second), None);
        assert!(claims.0.is_empty());
    }

    #[test]
    fn a_service_finds_the_works_of_its_pods() {
        let work = |space: &str, name: &str, labels: Value| {
            json!({"metadata": {"namespace": space, "name": name}, "spec": {"workload": {"manifests": [
                {"kind": "Deployment", "metadata": {"namespace": "shop"}, "spec": {"template": {"metadata": {"labels": labels}}}}]}}})
        };
        let web = work("karmada-es-eu", "web", json!({"app": "web", "team": "a"}));
        let all = [
            &web,
            &work("karmada-es-eu", "api", json!({"app": "api", "team": "a"})),
            &work("karmada-es-us", "web", json!({"app": "web", "team": "a"})),
        ];
        let mut pods = Pods::default();
        all.iter().for_each(|work| pods.put(None, Some(work)));
        let found = |pods: &Pods, namespace: &str, selector: Value| {
            pods.that_may_be_selected("karmada-es-eu", namespace, selector.as_object().unwrap()).join(" ")
        };
        assert_eq!(found(&pods, "shop", json!({"team": "a", "app": "web"})), "web");
        assert_eq!(found(&pods, "shop", json!({"team": "a"})), "api web");
        assert_eq!(found(&pods, "shop", json!({"team": "a", "app": "db"})), "");
        assert_eq!(found(&pods, "bank", json!({"app": "web"})), "");
        let moved = work("karmada-es-eu", "web", json!({"app": "www"}));
        pods.put(Some(&web), Some(&moved));
        assert_eq!(found(&pods, "shop", json!({"app": "web"})), "");
        assert_eq!(found(&pods, "shop", json!({"app": "www"})), "web");
        [&moved, all[1], all[2]].iter().for_each(|work| pods.put(Some(work), None));
        assert!(pods.0.is_empty());
    }
}
