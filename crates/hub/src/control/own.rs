//! The kinds that the hub itself works with, and whom a change of one concerns.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::Value;
use stolos_cluster::objects::Resource;
use stolos_k8s::meta;

use super::queues::Queues;
use super::{Hub, bind, index};
use crate::kinds;
use crate::member::CREDENTIALS;
use crate::mirror::{Key, Mirror};

/// The kinds that the hub itself works with.
pub(super) struct Own {
    pub(super) clusters: Arc<Mirror>,
    pub(super) secrets: Arc<Mirror>,
    pub(super) policies: Arc<Mirror>,
    pub(super) cluster_policies: Arc<Mirror>,
    pub(super) overrides: Arc<Mirror>,
    pub(super) cluster_overrides: Arc<Mirror>,
    pub(super) taint_policies: Arc<Mirror>,
    pub(super) bindings: Arc<Mirror>,
    pub(super) cluster_bindings: Arc<Mirror>,
    pub(super) works: Arc<Mirror>,
    pub(super) customizations: Arc<Mirror>,
    pub(super) rebalancers: Arc<Mirror>,
}

impl Own {
    /// Mirrors that tell the hub and its queues of every change. They see nothing yet: whoever has them starts them.
    pub(super) fn new(
        hub: &Weak<Hub>,
        queues: &Arc<Queues>,
        moving: &Arc<Mutex<HashSet<Key>>>,
        pods: &Arc<Mutex<index::Pods>>,
    ) -> Self {
        let of_hub = hub.clone();
        let clusters = Mirror::new(kinds::clusters(), None, None, move |before, now| {
            if let Some(hub) = of_hub.upgrade() {
                hub.cluster_changed(before, now);
            }
        });
        let poke = Arc::clone(queues);
        let credentials = Resource {
            api_version: "v1".to_owned(),
            kind: "Secret".to_owned(),
            plural: "secrets".to_owned(),
            namespaced: true,
        };
        let secrets = Mirror::new(credentials, Some(CREDENTIALS), None, move |before, now| {
            if let Some(secret) = now.or(before) {
                poke.clusters.add(meta::name(secret).to_owned());
            }
        });
        let policy = |kind| {
            let hub = hub.clone();
            Mirror::new(kind, None, None, move |before, now| {
                if let Some(hub) = hub.upgrade() {
                    hub.policy_changed(before, now);
                }
            })
        };
        let overriding = |kind| {
            let hub = hub.clone();
            Mirror::new(kind, None, None, move |_, now| {
                if let Some(hub) = hub.upgrade() {
                    hub.override_changed(now);
                }
            })
        };
        let of_hub = hub.clone();
        let taint_policies = Mirror::new(kinds::taint_policies(), None, None, move |_, now| {
            if let Some(hub) = of_hub.upgrade() {
                hub.taint_policy_changed(now);
            }
        });
        let binding = |kind| {
            let poke = Arc::clone(queues);
            let changed = move |before: Option<&_>, now: Option<&_>| poke.add_binding(before, now);
            Mirror::new(kind, None, None, changed)
        };
        let poke = Arc::clone(queues);
        let (waiting, of_pods) = (Arc::clone(moving), Arc::clone(pods));
        let works = Mirror::new(kinds::works(), None, None, move |before, now| {
            let mut pods = of_pods.lock().unwrap_or_else(PoisonError::into_inner);
            pods.put(before.map(|before| &**before), now.map(|now| &**now));
            drop(pods);
            poke.add_work(before, now);
            // What it says may be what another copy waits for.
            if let Some(binding) = now.and_then(|work| bind::binding_of(work))
                && waiting.lock().unwrap_or_else(PoisonError::into_inner).contains(&binding)
            {
                poke.bind.add(binding);
            }
        });
        let of_hub = hub.clone();
        let customizations = Mirror::new(kinds::customizations(), None, None, move |before, now| {
            if let Some(hub) = of_hub.upgrade() {
                hub.customization_changed(before, now);
            }
        });
        let poke = Arc::clone(queues);
        let rebalancers = Mirror::new(kinds::rebalancers(), None, None, move |_, now| {
            if let Some(now) = now {
                poke.rebalance.add(meta::name(now).to_owned());
            }
        });
        Self {
            clusters,
            secrets,
            policies: policy(kinds::policies()),
            cluster_policies: policy(kinds::cluster_policies()),
            overrides: overriding(kinds::overrides()),
            cluster_overrides: overriding(kinds::cluster_overrides()),
            taint_policies,
            bindings: binding(kinds::bindings()),
            cluster_bindings: binding(kinds::cluster_bindings()),
            works,
            customizations,
            rebalancers,
        }
    }

    /// Bindings, with a namespace and without.
    pub(super) fn all_bindings(&self) -> [&Arc<Mirror>; 2] {
        [&self.bindings, &self.cluster_bindings]
    }

    pub(super) fn all(&self) -> [&Arc<Mirror>; 12] {
        [
            &self.clusters,
            &self.secrets,
            &self.policies,
            &self.cluster_policies,
            &self.overrides,
            &self.cluster_overrides,
            &self.taint_policies,
            &self.bindings,
            &self.cluster_bindings,
            &self.works,
            &self.customizations,
            &self.rebalancers,
        ]
    }
}

impl Hub {
    pub(super) fn policies_of(&self, namespace: &str) -> &Arc<Mirror> {
        if namespace.is_empty() { &self.own.cluster_policies } else { &self.own.policies }
    }

    pub(super) fn bindings_of(&self, namespace: &str) -> &Arc<Mirror> {
        if namespace.is_empty() { &self.own.cluster_bindings } else { &self.own.bindings }
    }

    /// A binding, with the mirror that it is in.
    pub(super) fn binding(&self, key: &Key) -> Option<(Arc<Mirror>, Arc<Value>)> {
        let mirror = self.bindings_of(&key.0);
        Some((Arc::clone(mirror), mirror.get(&key.0, &key.1)?))
    }

    /// A member's Cluster.
    pub(crate) fn cluster_object(&self, name: &str) -> Option<Arc<Value>> {
        self.own.clusters.get("", name)
    }

    /// A Secret with a credential.
    pub(crate) fn secret(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.own.secrets.get(namespace, name)
    }
}
