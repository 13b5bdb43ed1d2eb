//! Where the parts of the hub ask what is known of a kind.

use std::sync::{Arc, PoisonError};

use serde_json::Value;
use stolos_k8s::meta;
use tokio::runtime::{Handle, RuntimeFlavor};

use super::Hub;
use super::template::TemplateKey;
use crate::interpret::Interpreters;
use crate::mirror;
use crate::model::{self, Customization};

/// So many scripts run at once: each may take a second of a processor.
pub(super) const SCRIPTS_AT_ONCE: usize = 4;

impl Hub {
    fn interpreters(&self) -> Arc<Interpreters> {
        Arc::clone(&self.interpreters.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// All customizations that can be read.
    pub(super) fn customizations(&self) -> Vec<Customization> {
        model::read_all(&self.own.customizations.list())
    }

    /// Asks something about an object. Scripts wait for their turn, and hold up nobody else.
    pub(super) async fn interpret<T>(&self, object: &Value, ask: impl FnOnce(&Interpreters) -> T) -> T {
        let interpreters = self.interpreters();
        if !interpreters.has_any(object) {
            return ask(&interpreters);
        }
        // It is never closed.
        let _turn = self.scripts.acquire().await;
        match Handle::current().runtime_flavor() {
            RuntimeFlavor::MultiThread => tokio::task::block_in_place(|| ask(&interpreters)),
            _ => ask(&interpreters),
        }
    }

    /// Whether any script names dependencies: then an object of any kind may be one.
    pub(super) fn scripts_name_dependencies(&self) -> bool {
        self.interpreters().names_dependencies()
    }

    /// A customization has changed: all objects of its kind are looked at again.
    pub(super) fn customization_changed(&self, before: Option<&Arc<Value>>, now: Option<&Arc<Value>>) {
        let all = self.customizations();
        *self.interpreters.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Interpreters::new(&all));
        let target = |object: &Arc<Value>| {
            let target = &object["spec"]["target"];
            Some((target["apiVersion"].as_str()?.to_owned(), target["kind"].as_str()?.to_owned()))
        };
        let targets: Vec<_> = before.into_iter().chain(now).filter_map(target).collect();
        let is_meant = |api_version: &str, kind: &str| targets.iter().any(|(v, k)| v == api_version && k == kind);
        for template in self.templates_of(is_meant) {
            self.queues.templates.add(TemplateKey::of(&template));
        }
        for bindings in self.own.all_bindings() {
            for binding in bindings.list() {
                let of = TemplateKey::of_binding(&binding);
                if is_meant(&of.api_version, &of.kind) {
                    let key = mirror::key(&binding);
                    self.queues.bind.add(key.clone());
                    self.queues.depend.add(key.clone());
                    self.queues.aggregate.add(key);
                }
            }
        }
        for work in self.own.works.list() {
            let mut manifests = work["spec"]["workload"]["manifests"].as_array().into_iter().flatten();
            if manifests.any(|manifest| is_meant(meta::api_version(manifest), meta::kind(manifest))) {
                self.queues.works.add(mirror::key(&work));
            }
        }
    }
}

/// Karmada's words for a question that a script did not answer.
pub(super) fn unanswered(what: &str, object: &Value, error: &dyn std::error::Error) -> String {
    format!(
        "{what} object({}/{}/{}) failed, err: {error}.",
        meta::kind(object),
        meta::namespace(object),
        meta::name(object)
    )
}
