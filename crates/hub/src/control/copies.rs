//! What each cluster has of a template and is to have, as [`crate::evict::guard`] wants to know it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use serde_json::Value;
use stolos_k8s::meta;

use super::Hub;
use super::bind::{binding_of, links, targets};
use super::clusters::is_ready;
use super::template::TemplateKey;
use crate::evict::floor::{Floor, budgets_of};
use crate::evict::guard::{self, Copy, Facts, Place};
use crate::evict::task::is_direct;
use crate::interpret::{self, Ready};
use crate::mirror::{Key, Mirror};
use crate::model::Health;
use crate::queue::Trouble;
use crate::{label, name};

/// A template on its way to where its binding says.
pub(super) struct Moving {
    pub(super) copies: Vec<Copy>,
    pub(super) floor: Floor,
    /// What the clusters that are meant get, in the order of their names.
    pub(super) parts: Vec<Part>,
    /// Why the floor is not the one that somebody said.
    pub(super) trouble: Option<String>,
}

/// What one cluster gets.
pub(super) struct Part {
    pub(super) cluster: String,
    pub(super) manifest: Value,
    pub(super) overridden: Vec<(&'static str, String)>,
}

impl Hub {
    /// All copies of a template, by cluster.
    pub(super) async fn moving(&self, binding: &Value, template: &Value) -> Result<Moving, Trouble> {
        let targets = targets(binding);
        let own = binding["spec"]["clusters"].as_array().into_iter().flatten();
        let scheduled: Vec<&str> = own.filter_map(|target| target["name"].as_str()).collect();
        let completions = interpret::completions(template, &scheduled);
        let of = TemplateKey::of_binding(binding);
        let work_name = name::work(&of.kind, &of.name, &of.namespace);
        let (id, _) = links(binding);
        let numbered = interpret::replicas(template).is_some();
        let clusters = self.own.clusters.list();
        let (mut places, mut parts) = (Vec::new(), Vec::new());
        let works: Vec<Option<Arc<Value>>> = (clusters.iter())
            .map(|cluster| {
                let work = self.own.works.get(&name::execution_namespace(meta::name(cluster)), &work_name);
                work.filter(|work| meta::label(work, id) == meta::label(binding, id))
            })
            .collect();
        let left = guard::left_behind(meta::annotation(binding, label::LEFT_BEHIND));
        for (cluster, work) in clusters.iter().zip(&works) {
            let name = meta::name(cluster);
            let going = meta::deletion_timestamp(cluster).is_some();
            let share = targets.iter().find(|(target, _)| target == name).filter(|_| !going);
            let left = left.get(name).copied().filter(|_| !going);
            if share.is_none() && work.is_none() && left.is_none() {
                continue;
            }
            let mut wanted = None;
            if let Some((_, replicas)) = share {
                let mut manifest = interpret::manifest(template);
                if scheduled.contains(&name) {
                    self.interpret(template, |known| known.revise(&mut manifest, *replicas)).await?;
                }
                if let Some(share) = completions.iter().flatten().zip(&scheduled).find(|(_, of)| **of == name) {
                    manifest["spec"]["completions"] = (*share.0).into();
                }
                let overridden = self.overridden(&mut manifest, cluster)?;
                wanted = Some((*replicas, guard::asked(&manifest)));
                parts.push(Part { cluster: name.to_owned(), manifest, overridden });
            }
            let (heard, ready) = (self.hears(cluster), is_ready(cluster));
            let needed = !numbered && wanted.is_none() && self.serves_what_leaves(template, name);
            places.push(Place { cluster: name, wanted, work: work.as_deref(), heard, ready, needed, left });
        }
        let tasks = binding["spec"]["gracefulEvictionTasks"].as_array().into_iter().flatten();
        let facts = Facts {
            replicas: binding["spec"]["replicas"].as_i64().unwrap_or(0),
            divided: binding["spec"]["placement"]["replicaScheduling"]["replicaSchedulingType"] == "Divided",
            numbered,
            tasks: tasks.filter_map(|task| Some((task["fromCluster"].as_str()?, is_direct(task)))).collect(),
        };
        let (copies, wanted) = guard::copies(&facts, &places);
        let (floor, trouble) = self.floor(binding, template, wanted);
        Ok(Moving { copies, floor, parts, trouble })
    }

    /// How many replicas of a template must stay good.
    fn floor(&self, binding: &Value, template: &Value, wanted: i64) -> (Floor, Option<String>) {
        let of_policy = |namespace: &str, name: Option<&str>| self.policies_of(namespace).get(namespace, name?);
        let claimed = |key| meta::annotation(binding, key);
        let policy = of_policy(claimed(label::POLICY_NAMESPACE).unwrap_or_default(), claimed(label::POLICY_NAME))
            .or_else(|| of_policy("", claimed(label::CLUSTER_POLICY_NAME)));
        let said = policy.as_deref().and_then(|policy| meta::annotation(policy, label::MIN_AVAILABLE));
        let budgets: Vec<Arc<Value>> = self
            .mirror_of("policy/v1", "PodDisruptionBudget")
            .map(|mirror| mirror.of_namespace(meta::namespace(template)))
            .unwrap_or_default();
        let budgets = budgets_of(template, budgets.iter().map(|budget| &**budget));
        match Floor::of(template, said, &budgets, wanted) {
            Ok(floor) => (floor, None),
            Err((floor, trouble)) => (floor, Some(trouble)),
        }
    }

    /// Whether a template is a Service of pods that are still in a cluster and are to leave it: it leaves after them.
    fn serves_what_leaves(&self, template: &Value, cluster: &str) -> bool {
        let selector = template["spec"]["selector"].as_object().filter(|selector| !selector.is_empty());
        let Some(selector) = selector.filter(|_| meta::kind(template) == "Service") else { return false };
        let space = name::execution_namespace(cluster);
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let works = pods.that_may_be_selected(&space, meta::namespace(template), selector);
        drop(pods);
        works.iter().filter_map(|work| self.own.works.get(&space, work)).any(|work| {
            let manifest = &work["spec"]["workload"]["manifests"][0];
            let labels = manifest.pointer("/spec/template/metadata/labels");
            meta::namespace(manifest) == meta::namespace(template)
                && labels.is_some_and(|labels| selector.iter().all(|(key, value)| labels[key] == *value))
                && binding_of(&work)
                    .and_then(|key| self.binding(&key))
                    .is_some_and(|(_, binding)| targets(&binding).iter().all(|(name, _)| name != cluster))
        })
    }

    /// Whether a member's object may become one of `to` replicas: the last look before the write, at the object as it is.
    ///
    /// # Errors
    ///
    /// Why not.
    pub(super) async fn may_lower(&self, work: &Value, cluster: &str, live: &Value, to: i64) -> Result<(), Trouble> {
        // What belongs to no binding, or to one that goes, is nobody's to keep.
        let Some((_, binding)) = binding_of(work).and_then(|key| self.binding(&key)) else { return Ok(()) };
        let template = self.template(&TemplateKey::of_binding(&binding));
        let Some((_, template)) = template.filter(|(_, template)| {
            meta::deletion_timestamp(&binding).is_none()
                && meta::deletion_timestamp(template).is_none()
                && meta::uid(template) == binding["spec"]["resource"]["uid"]
        }) else {
            return Ok(());
        };
        let leaves = self.own.clusters.get("", cluster).is_none_or(|of| meta::deletion_timestamp(&of).is_some());
        if leaves && interpret::replicas(&template).is_none() {
            return Ok(());
        }
        let moving = self.moving(&binding, &template).await?;
        let status = interpret::reflect(live).unwrap_or_default();
        let good = match interpret::ready(live, &status) {
            Ready::Count(count) => count,
            Ready::Stale => guard::asked(live),
            Ready::ByHealth if self.interpret(live, |known| known.health(live)).await? == Health::Unhealthy => 0,
            Ready::ByHealth => guard::asked(live),
        };
        guard::last_look(&moving.copies, cluster, good, guard::asked(live), to, &moving.floor)
            .map_err(|wait| wait.to_string().into())
    }

    /// Notes at its binding that a Work lets go of its object, of so many replicas, or that the object is gone.
    pub(super) async fn leave_behind(&self, work: &Value, cluster: &str, replicas: Option<i64>) -> Result<(), Trouble> {
        let Some((mirror, binding)) = binding_of(work).and_then(|key| self.binding(&key)) else { return Ok(()) };
        let mut left = guard::left_behind(meta::annotation(&binding, label::LEFT_BEHIND));
        match replicas {
            Some(replicas) => left.insert(cluster.to_owned(), replicas),
            None => left.remove(cluster),
        };
        self.put_left_behind(&mirror, &binding, &left).await
    }

    /// Forgets what another Work has taken over, or what is in a cluster that is no longer the hub's.
    pub(super) async fn forget_left_behind(&self, key: &Key) -> Result<(), Trouble> {
        let Some((mirror, binding)) = self.binding(key) else { return Ok(()) };
        let Some(left) = meta::annotation(&binding, label::LEFT_BEHIND) else { return Ok(()) };
        let mut left = guard::left_behind(Some(left));
        let of = TemplateKey::of_binding(&binding);
        let work_name = name::work(&of.kind, &of.name, &of.namespace);
        left.retain(|cluster, _| {
            let work = self.own.works.get(&name::execution_namespace(cluster), &work_name);
            let of = self.own.clusters.get("", cluster);
            work.is_none_or(|work| meta::deletion_timestamp(&work).is_some())
                && of.is_some_and(|of| meta::deletion_timestamp(&of).is_none())
        });
        self.put_left_behind(&mirror, &binding, &left).await
    }

    async fn put_left_behind(
        &self,
        mirror: &Mirror,
        binding: &Value,
        left: &BTreeMap<String, i64>,
    ) -> Result<(), Trouble> {
        let before = meta::annotation(binding, label::LEFT_BEHIND);
        if *left == guard::left_behind(before) && !(left.is_empty() && before.is_some()) {
            return Ok(());
        }
        let mut after = binding.clone();
        if left.is_empty() {
            if let Some(annotations) = after["metadata"]["annotations"].as_object_mut() {
                annotations.remove(label::LEFT_BEHIND);
            }
        } else {
            meta::set_annotation(&mut after, label::LEFT_BEHIND, &serde_json::to_string(left)?);
        }
        self.change(mirror, binding, &after).await?;
        Ok(())
    }

    /// Whether a binding wants its copy in a cluster, so that a Work that goes there lets go of it instead of taking it.
    pub(super) fn is_wanted(&self, work: &Value, cluster: &str) -> bool {
        let Some((_, binding)) = binding_of(work).and_then(|key| self.binding(&key)) else { return false };
        let template = self.template(&TemplateKey::of_binding(&binding));
        let lives = template.is_some_and(|(_, template)| {
            meta::deletion_timestamp(&template).is_none() && meta::uid(&template) == binding["spec"]["resource"]["uid"]
        });
        let (id, _) = links(&binding);
        lives
            && meta::deletion_timestamp(&binding).is_none()
            && meta::label(work, id) == meta::label(&binding, id)
            && targets(&binding).iter().any(|(target, _)| target == cluster)
    }
}
