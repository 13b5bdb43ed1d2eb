//! What is to be looked at, and which change of a binding or a Work asks for which look.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use stolos_k8s::meta;
use tokio::sync::Notify;

use super::template::TemplateKey;
use super::{bind, evict, failover};
use crate::mirror::{self, Key};
use crate::queue::Queue;

/// What is to be looked at.
pub(super) struct Queues {
    /// Members, by name: what they are and how they are.
    pub(super) clusters: Arc<Queue<String>>,
    /// Namespaces of the hub, which every member has.
    pub(super) namespaces: Arc<Queue<String>>,
    /// Policies: what is theirs.
    pub(super) policies: Arc<Queue<Key>>,
    /// Templates: which policy they follow.
    pub(super) templates: Arc<Queue<TemplateKey>>,
    /// Bindings: which clusters they go to.
    pub(super) schedule: Arc<Queue<Key>>,
    /// Bindings: what leaves its cluster.
    pub(super) evict: Arc<Queue<Key>>,
    /// Bindings: which Works they have.
    pub(super) bind: Arc<Queue<Key>>,
    /// Works: what is in the member.
    pub(super) works: Arc<Queue<Key>>,
    /// Bindings: what their workloads need.
    pub(super) depend: Arc<Queue<Key>>,
    /// Bindings: what has come of them.
    pub(super) aggregate: Arc<Queue<Key>>,
    /// Members: who may be acted for there.
    pub(super) impersonate: Arc<Queue<String>>,
    /// Rebalancers: what they ask for.
    pub(super) rebalance: Arc<Queue<String>>,
    /// Which kinds there are.
    pub(super) kinds: Notify,
    /// Bindings whose workloads take what they need with them.
    pub(super) needing: Mutex<BTreeSet<Key>>,
}

impl Queues {
    pub(super) fn new() -> Self {
        Self {
            clusters: Queue::new("clusters"),
            namespaces: Queue::new("namespaces"),
            policies: Queue::new("policies"),
            templates: Queue::new("templates"),
            schedule: Queue::new("schedule"),
            evict: Queue::new("evict"),
            bind: Queue::new("bind"),
            works: Queue::new("works"),
            depend: Queue::new("depend"),
            aggregate: Queue::new("aggregate"),
            impersonate: Queue::new("impersonate"),
            rebalance: Queue::new("rebalance"),
            kinds: Notify::new(),
            needing: Mutex::default(),
        }
    }

    /// Whether something waits for a decision where it goes.
    pub(super) fn are_deciding(&self) -> bool {
        self.templates.has_waiting() || self.schedule.has_waiting()
    }

    /// Bindings of a namespace whose workloads take what they need with them.
    pub(super) fn needing(&self, namespace: &str) -> Vec<Key> {
        let needing = self.needing.lock().unwrap_or_else(PoisonError::into_inner);
        let from = needing.range((namespace.to_owned(), String::new())..);
        from.take_while(|(of, _)| of == namespace).cloned().collect()
    }

    pub(super) fn add_binding(&self, before: Option<&Arc<Value>>, now: Option<&Arc<Value>>) {
        let needs = |binding: &&Arc<Value>| binding["spec"]["propagateDeps"] == true;
        if before.filter(needs).is_some() != now.filter(needs).is_some()
            && let Some(binding) = now.or(before)
        {
            let mut needing = self.needing.lock().unwrap_or_else(PoisonError::into_inner);
            match now.filter(needs) {
                Some(_) => needing.insert(mirror::key(binding)),
                None => needing.remove(&mirror::key(binding)),
            };
        }
        let Some(now) = now else {
            // Deleted by hand: the detector makes it anew.
            if let Some(before) = before {
                self.templates.add(TemplateKey::of_binding(before));
                self.rank(before, 0);
            }
            return;
        };
        let key = mirror::key(now);
        self.rank(now, now["spec"]["schedulePriority"]["priority"].as_i64().unwrap_or(0));
        let same = |field: &str| before.is_some_and(|before| before[field] == now[field]);
        let books = ["labels", "annotations", "finalizers", "deletionTimestamp"];
        let marks = before.is_some_and(|b| books.iter().all(|book| b["metadata"][book] == now["metadata"][book]));
        if !(same("spec") && marks) {
            self.schedule.add(key.clone());
            self.evict.add(key.clone());
            self.bind.add(key.clone());
            self.depend.add(key.clone());
        }
        if !same("status") && (!evict::leaving(now).is_empty() || failover::is_wanted(now)) {
            self.evict.add(key.clone());
        }
        if !same("spec") {
            self.aggregate.add_soon(key);
        }
    }

    /// Bindings of a higher priority are scheduled first, and leave their clusters first.
    fn rank(&self, binding: &Value, priority: i64) {
        let key = mirror::key(binding);
        self.schedule.rank(&key, priority);
        self.evict.rank(&key, priority);
    }

    pub(super) fn add_work(&self, before: Option<&Arc<Value>>, now: Option<&Arc<Value>>) {
        let Some(work) = now.or(before) else { return };
        let of = bind::binding_of(work);
        let Some(now) = now else {
            // Whoever wrote it looks whether it is to be there.
            match of {
                Some(binding) => {
                    self.bind.add(binding.clone());
                    self.depend.add(binding);
                }
                None => {
                    for manifest in work["spec"]["workload"]["manifests"].as_array().into_iter().flatten() {
                        self.namespaces.add(meta::name(manifest).to_owned());
                    }
                }
            }
            return;
        };
        let changed = |field: &str| before.is_none_or(|before| before[field] != now[field]);
        let going = before.is_none_or(|b| meta::deletion_timestamp(b) != meta::deletion_timestamp(now));
        if changed("spec") || going {
            self.works.add(mirror::key(now));
        }
        if let Some(binding) = of
            && changed("status")
        {
            // Several members say something of one template at about the same time.
            self.aggregate.add_soon(binding);
        }
    }
}
