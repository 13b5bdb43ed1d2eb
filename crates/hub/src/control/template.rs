//! Templates: the objects of every kind that people put into the hub.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use stolos_k8s::meta;

use super::{Hub, detect};
use crate::install::NAMESPACE;
use crate::label;
use crate::member::{self, CREDENTIALS, Kind};
use crate::mirror::{self, Mirror};

/// How often the API server is asked for kinds (Karmada v1.18.2).
const KINDS: Duration = Duration::from_secs(30);

/// How long after a change of a definition.
const SETTLED: Duration = Duration::from_millis(300);

/// An object that may be a template.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct TemplateKey {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl TemplateKey {
    pub(crate) fn of(object: &Value) -> Self {
        Self {
            api_version: meta::api_version(object).to_owned(),
            kind: meta::kind(object).to_owned(),
            namespace: meta::namespace(object).to_owned(),
            name: meta::name(object).to_owned(),
        }
    }

    /// The template that a binding is of.
    pub(crate) fn of_binding(binding: &Value) -> Self {
        let resource = &binding["spec"]["resource"];
        let text = |field: &str| resource[field].as_str().unwrap_or_default().to_owned();
        Self { api_version: text("apiVersion"), kind: text("kind"), namespace: text("namespace"), name: text("name") }
    }
}

/// Mirrors of every kind that can be a template.
pub(super) type Templates = HashMap<(String, String), Arc<Mirror>>;

/// Asks for kinds again and again, and mirrors each.
pub(super) async fn follow(hub: Arc<Hub>) {
    loop {
        look(&hub).await;
        tokio::select! {
            () = tokio::time::sleep(KINDS) => {}
            // Definitions come together, and each is written several times until it is served.
            () = hub.queues.kinds.notified() => tokio::time::sleep(SETTLED).await,
            () = hub.stop.asked() => return,
        }
    }
}

/// One look at the kinds that are served; those that are new are mirrored from now on.
pub(super) async fn look(hub: &Arc<Hub>) {
    let kinds = match member::kinds(&hub.client).await {
        Ok(kinds) => kinds,
        Err(error) => {
            tracing::debug!(%error, "cannot see which kinds there are");
            return;
        }
    };
    for kind in kinds.into_iter().filter(is_template_kind) {
        let key = (kind.resource.api_version.clone(), kind.resource.kind.clone());
        let mut templates = hub.templates.write().unwrap_or_else(PoisonError::into_inner);
        if templates.contains_key(&key) {
            continue;
        }
        let (queues, touched, claims) = (Arc::clone(&hub.queues), Arc::clone(&hub.touched), Arc::clone(&hub.claims));
        let claiming = Arc::clone(&hub.claiming);
        let weak = Arc::downgrade(hub);
        let mirror = Mirror::new(kind.resource, None, None, move |before, now| {
            let Some(object) = now.or(before) else { return };
            let mut claims = claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.put(before.map(|before| &**before), now.map(|now| &**now));
            drop(claims);
            if meta::kind(object) == "CustomResourceDefinition" {
                queues.kinds.notify_one();
            }
            if meta::kind(object) == "Namespace" && meta::api_version(object) == "v1" {
                queues.namespaces.add(meta::name(object).to_owned());
            }
            if before.zip(now).is_none_or(|(before, now)| has_changed(before, now)) {
                let grants = matches!(meta::kind(object), "ClusterRole" | "ClusterRoleBinding");
                if grants && let Some(hub) = weak.upgrade() {
                    hub.roles_changed();
                }
                let key = TemplateKey::of(object);
                if before.zip(now).is_some_and(|(before, now)| is_claimed_alone(before, now))
                    && claiming.lock().unwrap_or_else(PoisonError::into_inner).contains(&key)
                {
                    // Whoever has just put the claim there is looking at it.
                    return;
                }
                touched.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone());
                queues.templates.add(key);
            }
        });
        hub.tasks.spawn(Arc::clone(&mirror).run(hub.keeper.clone(), mirror::OLD, hub.stop.clone()));
        templates.insert(key, mirror);
    }
}

/// Whether objects of a kind can be templates: not what the hub itself works with, and not news about others.
fn is_template_kind(kind: &Kind) -> bool {
    let group = kind.resource.api_version.split_once('/').map_or("", |(group, _)| group);
    let is_own = group.ends_with(".karmada.io");
    let is_news = kind.resource.kind == "Event" || matches!(group, "events.k8s.io" | "coordination.k8s.io");
    kind.is_kept && !is_own && !is_news
}

/// Whether something else than the status and the books has changed.
fn has_changed(before: &Value, now: &Value) -> bool {
    !essence(before).eq(essence(now))
}

/// Whether nothing but a policy's claim is different.
fn is_claimed_alone(before: &Value, now: &Value) -> bool {
    fn rest(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
        essence(object).filter(|(field, _)| !matches!(field.as_str(), "labels" | "annotations"))
    }
    rest(before).eq(rest(now)) && detect::unclaimed(before).eq(detect::unclaimed(now))
}

/// What people write of an object, field by field: neither its status nor the books.
pub(super) fn essence(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    const BOOKS: [&str; 3] = ["resourceVersion", "generation", "managedFields"];
    let fields =
        object.as_object().into_iter().flatten().filter(|(field, _)| !matches!(field.as_str(), "status" | "metadata"));
    let metadata = object["metadata"].as_object().into_iter().flatten();
    fields.chain(metadata.filter(|(field, _)| !BOOKS.contains(&field.as_str())))
}

/// Whether the hub leaves the objects of a namespace alone.
pub(super) fn is_reserved(namespace: &str) -> bool {
    matches!(namespace, NAMESPACE | CREDENTIALS)
        || namespace.starts_with("karmada-es-")
        // Karmada's `--skipped-propagating-namespaces` by default.
        || namespace.starts_with("kube-")
}

/// Whether policies are looked for for an object at all.
pub(super) fn is_template(object: &Value) -> bool {
    let namespace = match meta::namespace(object) {
        "" if meta::kind(object) == "Namespace" => meta::name(object),
        namespace => namespace,
    };
    !is_reserved(namespace)
        && meta::label(object, label::CLAIMED_BY).is_none()
        && meta::name(object) != "extension-apiserver-authentication"
}

/// Whether an object is one that every API server or the hub makes by itself, of which nobody wants to read that it goes nowhere.
pub(super) fn is_of_every_server(object: &Value) -> bool {
    match (meta::kind(object), meta::name(object)) {
        ("Namespace", _) | ("ConfigMap", "kube-root-ca.crt") | ("ServiceAccount", "default") => true,
        ("Service" | "Endpoints" | "EndpointSlice", "kubernetes") => meta::namespace(object) == "default",
        ("CustomResourceDefinition", name) => name.ends_with(".karmada.io"),
        ("ValidatingWebhookConfiguration", name) => name == crate::admission::NAME,
        ("APIService" | "FlowSchema" | "PriorityLevelConfiguration" | "PriorityClass", _) => true,
        (_, name) => meta::label(object, "kubernetes.io/bootstrapping").is_some() || name.starts_with("system:"),
    }
}

/// What a member's object bears: whose it is, and which labels and annotations are the hub's.
pub(crate) fn mark(manifest: &mut Value, labels: &[(&str, &str)], annotations: &[(&str, &str)]) {
    for (key, value) in labels {
        meta::set_label(manifest, key, value);
    }
    for (key, value) in annotations {
        meta::set_annotation(manifest, key, value);
    }
    let owned: Vec<String> = meta::labels(manifest).into_keys().collect();
    meta::set_annotation(manifest, label::MANAGED_LABELS, &owned.join(","));
    let mut owned = meta::annotations(manifest);
    owned.insert(label::MANAGED_ANNOTATIONS.to_owned(), String::new());
    let owned: Vec<String> = owned.into_keys().collect();
    meta::set_annotation(manifest, label::MANAGED_ANNOTATIONS, &owned.join(","));
}

impl Hub {
    /// The mirror of a kind of templates.
    pub(super) fn mirror_of(&self, api_version: &str, kind: &str) -> Option<Arc<Mirror>> {
        let templates = self.templates.read().unwrap_or_else(PoisonError::into_inner);
        templates.get(&(api_version.to_owned(), kind.to_owned())).cloned()
    }

    /// A template, with the mirror that it is in.
    pub(super) fn template(&self, key: &TemplateKey) -> Option<(Arc<Mirror>, Arc<Value>)> {
        let mirror = self.mirror_of(&key.api_version, &key.kind)?;
        let object = mirror.get(&key.namespace, &key.name)?;
        Some((mirror, object))
    }

    /// All templates of the kinds that `wanted` names.
    pub(super) fn templates_of(&self, wanted: impl Fn(&str, &str) -> bool) -> Vec<Arc<Value>> {
        let templates = self.templates.read().unwrap_or_else(PoisonError::into_inner);
        let mirrors: Vec<_> = templates
            .iter()
            .filter(|((api_version, kind), _)| wanted(api_version, kind))
            .map(|(_, mirror)| Arc::clone(mirror))
            .collect();
        drop(templates);
        mirrors.iter().flat_map(|mirror| mirror.list()).collect()
    }

    /// Something has happened to what a member got of a template: its own events say it, as Karmada's do.
    pub(super) fn about_template(&self, manifest: &Value) -> Value {
        let uid = meta::annotation(manifest, label::TEMPLATE_UID).unwrap_or_default();
        json!({"apiVersion": meta::api_version(manifest), "kind": meta::kind(manifest),
            "metadata": {"namespace": meta::namespace(manifest), "name": meta::name(manifest), "uid": uid}})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_object_says_which_keys_are_the_hubs() {
        let mut manifest = json!({"metadata": {"labels": {"app": "hello"}, "annotations": {"z": "1"}}});
        mark(&mut manifest, &[(label::MANAGED, "true")], &[(label::WORK_NAME, "w")]);
        assert_eq!(meta::annotation(&manifest, label::MANAGED_LABELS), Some("app,karmada.io/managed"));
        insta::assert_snapshot!(meta::annotation(&manifest, label::MANAGED_ANNOTATIONS).unwrap(), @"resourcetemplate.karmada.io/managed-annotations,resourcetemplate.karmada.io/managed-labels,work.karmada.io/name,z");
    }

    #[test]
    fn a_claim_is_told_from_an_edit() {
        let object = |labels: Value, annotations: Value, replicas: u32| {
            json!({"metadata": {"name": "a", "labels": labels, "annotations": annotations, "resourceVersion": "1"},
                "spec": {"replicas": replicas}})
        };
        let before = object(json!({"app": "a"}), Value::Null, 1);
        let claim = json!({label::POLICY_NAMESPACE: "n", label::POLICY_NAME: "p"});
        let claimed = object(json!({"app": "a", label::POLICY_ID: "1"}), claim.clone(), 1);
        assert!(is_claimed_alone(&before, &claimed) && is_claimed_alone(&claimed, &before));
        for edited in [
            object(json!({"app": "b", label::POLICY_ID: "1"}), claim.clone(), 1),
            object(json!({"app": "a", label::POLICY_ID: "1"}), json!({"note": "x"}), 1),
            object(json!({"app": "a", label::POLICY_ID: "1"}), claim, 2),
        ] {
            assert!(!is_claimed_alone(&before, &edited), "{edited}");
        }
    }

    #[test]
    fn only_what_people_write_counts_as_a_change() {
        let object = |replicas: u32, revision: &str, ready: u32| json!({"metadata": {"resourceVersion": revision}, "spec": {"replicas": replicas}, "status": {"ready": ready}});
        assert!(!has_changed(&object(1, "1", 0), &object(1, "2", 1)));
        assert!(has_changed(&object(1, "1", 0), &object(2, "2", 0)));
    }
}
