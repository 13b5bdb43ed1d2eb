//! What leaves a cluster that is lost, or that somebody tainted: the decisions are [`crate::evict::task`]'s.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use stolos_k8s::meta;

use super::template::TemplateKey;
use super::{Hub, failover};
use crate::evict::rate::Turns;
use crate::evict::task::{self, Change, News};
use crate::evict::{guard, rate};
use crate::mirror::{Key, Mirror};
use crate::model::{self, Binding, Cluster};
use crate::queue::{Again, Trouble};
use crate::{label, name};

/// Who says it, of what is to leave.
const FROM: &str = "taint-manager";
/// Who says it, of what has left.
const FROM_GRACEFUL: &str = "graceful-eviction-controller";

/// How often what stays because of its state is looked at again.
const LOOKED_AFTER: Duration = Duration::from_secs(60);

/// Looks at one binding.
pub(super) async fn look(hub: Arc<Hub>, key: Key) -> Result<Again, Trouble> {
    let mut turn = Turn { hub: &hub, key: &key, waits: false };
    let Some((mirror, object)) = hub.binding(&key) else { return Ok(None) };
    if meta::deletion_timestamp(&object).is_some() {
        hub.forget_watch(&object);
        return Ok(None);
    }
    let all = hub.own.clusters.list();
    let looked_at = !leaving(&object).is_empty() || failover::is_wanted(&object);
    if !looked_at && !all.iter().any(|cluster| is_tainted(cluster)) {
        hub.forget_watch(&object);
        return Ok(None);
    }
    let (binding, _) = model::read::<Binding>(&object)?;
    let clusters: Vec<Arc<Cluster>> = all.iter().filter_map(|cluster| hub.cluster(cluster)).collect();
    let now = jiff::Timestamp::now();
    let of = TemplateKey::of_binding(&object);
    let work = name::work(&of.kind, &of.name, &of.namespace);
    let left = guard::left_behind(meta::annotation(&object, label::LEFT_BEHIND));
    // What a Work has let go of is there, too.
    let has_work = |cluster: &str| {
        left.contains_key(cluster) || hub.own.works.get(&name::execution_namespace(cluster), &work).is_some()
    };
    let mut again: Again = None;
    if let Some(change) = task::assess(&binding, &clusters, &has_work, now, &hub.patience) {
        if !change.news.is_empty() {
            // What it is then is looked at anew.
            return write(&hub, &mirror, &object, change).await;
        }
        again = change.again;
    }
    if let Some(change) = task::evict(&binding, &clusters, now, &hub.patience) {
        for (cluster, why) in &change.kept {
            let text = format!("Its state in cluster {cluster} cannot be preserved, so it stays there: {why}.");
            hub.events.warning(&object, FROM, "EvictWorkloadFromClusterFailed", text);
            again = Some(again.map_or(LOOKED_AFTER, |known| known.min(LOOKED_AFTER)));
        }
        if !change.news.is_empty() {
            if let Err(wait) = turn.ask(&object, &clusters) {
                return Ok(Some(again.map_or(wait, |known| known.min(wait))));
            }
            return write(&hub, &mirror, &object, change).await;
        }
        again = [again, change.again].into_iter().flatten().min();
    }
    let then = failover::look(&hub, &mirror, &object, &binding, (&clusters, &mut turn)).await?;
    Ok([again, then].into_iter().flatten().min())
}

/// The tasks of a binding.
pub(super) fn leaving(binding: &Value) -> &[Value] {
    binding["spec"]["gracefulEvictionTasks"].as_array().map_or(&[], Vec::as_slice)
}

fn is_tainted(cluster: &Value) -> bool {
    cluster["spec"]["taints"].as_array().into_iter().flatten().any(|taint| taint["effect"] == "NoExecute")
}

async fn write(hub: &Hub, mirror: &Mirror, object: &Value, change: Change) -> Result<Again, Trouble> {
    let after = changed(object, &change)?;
    hub.change(mirror, object, &after).await?;
    tell(hub, object, &change.news, FROM);
    Ok(change.again)
}

/// A binding with its places as they are decided.
pub(super) fn changed(object: &Value, change: &Change) -> Result<Value, Trouble> {
    let Change { clusters, tasks, .. } = change;
    let mut after = object.clone();
    after["spec"]["clusters"] = serde_json::to_value(clusters)?;
    after["spec"]["gracefulEvictionTasks"] = serde_json::to_value(tasks)?;
    if tasks.is_empty()
        && let Some(spec) = after["spec"].as_object_mut()
    {
        spec.remove("gracefulEvictionTasks");
    }
    Ok(after)
}

/// Says what has happened; `from` is who wanted it.
pub(super) fn tell(hub: &Hub, object: &Value, news: &[(String, News)], from: &'static str) {
    let template = hub.template(&TemplateKey::of_binding(object));
    for about in [Some(object), template.as_ref().map(|(_, template)| &**template)].into_iter().flatten() {
        for (cluster, news) in news {
            let (from, text) = match news {
                News::Evicted => (from, format!("Evict from cluster {cluster} succeed.")),
                News::Replaced => (FROM_GRACEFUL, format!("What left cluster {cluster} is well elsewhere.")),
                News::TimedOut => (
                    FROM_GRACEFUL,
                    format!(
                        "The time to leave cluster {cluster} is over; its copy goes when enough are ready elsewhere."
                    ),
                ),
                News::Gone => (FROM_GRACEFUL, format!("Cluster {cluster} is no longer the hub's.")),
                News::Returned => (
                    FROM_GRACEFUL,
                    format!("Cluster {cluster} is back before anything took its place; its copy stays."),
                ),
            };
            hub.events.normal(about, from, "EvictWorkloadFromClusterSucceed", text);
        }
    }
}

/// A look at a binding that may let it leave a cluster. A binding that has not asked in its last look waits no longer; then,
/// and whenever one has left, the next one is told when its turn is, and no other is.
pub(super) struct Turn<'a> {
    hub: &'a Hub,
    key: &'a Key,
    waits: bool,
}

impl Turn<'_> {
    /// Lets it leave, or says how long it is to wait.
    pub(super) fn ask(&mut self, binding: &Value, clusters: &[Arc<Cluster>]) -> Result<(), Duration> {
        let rank = binding["spec"]["schedulePriority"]["priority"].as_i64().unwrap_or(0);
        let per_second = rate::per_second(clusters, &self.hub.patience);
        let mut turns = self.hub.turns();
        if per_second < turns.per_second() {
            tracing::warn!(per_second, "many clusters are lost at once: workloads leave theirs more slowly");
        }
        let asked = turns.ask(self.key, rank, per_second, self.hub.began.elapsed());
        self.waits = asked.is_err();
        asked
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self.hub.turns();
        if !self.waits {
            turns.give_up(self.key);
        }
        let next = turns.next(self.hub.began.elapsed()).map(|(key, wait)| (key.clone(), wait));
        drop(turns);
        if let Some((key, wait)) = next {
            self.hub.queues.evict.add_in(key, wait);
        }
    }
}

impl Hub {
    fn turns(&self) -> MutexGuard<'_, Turns<Key>> {
        self.evictions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has changed that decides what may stay where it is.
    pub(super) fn look_at_evictions(&self) {
        for bindings in self.own.all_bindings() {
            for binding in bindings.keys() {
                self.queues.evict.add(binding);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::control::tests::nobodys;

    fn cluster(name: &str, ready: &str, taints: Value) -> Arc<Value> {
        Arc::new(json!({"apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster",
            "metadata": {"name": name, "resourceVersion": "1"}, "spec": {"syncMode": "Push", "taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
    }

    fn binding(name: &str, cluster: &str, revision: u64) -> Arc<Value> {
        Arc::new(json!({"apiVersion": "work.karmada.io/v1alpha2", "kind": "ResourceBinding",
            "metadata": {"namespace": "shop", "name": name, "resourceVersion": revision.to_string()},
            "spec": {"resource": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": name},
                "replicas": 1, "placement": {}, "clusters": [{"name": cluster, "replicas": 1}],
                "schedulePriority": {"priority": i64::from(name == "first")}}}))
    }

    /// Of many that wait only one is told when to look again; what wakes them all reads no Cluster twice.
    #[tokio::test]
    async fn only_who_is_next_looks_again() {
        let hub = Hub::at_rest(nobodys());
        hub.own.clusters.wrote(&cluster("eu", "False", json!([{"key": label::NOT_READY, "effect": "NoExecute"}])));
        hub.own.clusters.wrote(&cluster("us", "True", json!([])));
        let names: Vec<String> = (0..200).map(|number| format!("web-{number}")).collect();
        names.iter().for_each(|name| hub.own.bindings.wrote(&binding(name, "eu", 2)));
        hub.own.bindings.wrote(&binding("first", "eu", 2));
        let key = |name: &str| ("shop".to_owned(), name.to_owned());
        // One has just left.
        hub.turns().ask(&key("gone"), 0, 0.5, hub.began.elapsed()).unwrap();

        let mut soon = 0;
        for name in names.iter().map(String::as_str).chain(["first"]) {
            let again = look(Arc::clone(&hub), key(name)).await.unwrap().unwrap();
            soon += usize::from(again < Duration::from_secs(60));
        }
        assert_eq!(soon, 2, "the first that came, and the one before which nobody goes");
        let next = || hub.turns().next(hub.began.elapsed()).map(|(key, _)| key.1.clone());
        assert_eq!(next().as_deref(), Some("first"));
        assert_eq!(hub.read_clusters.lock().unwrap().len(), 2);

        // What need not leave any more keeps nobody waiting.
        hub.own.bindings.wrote(&binding("first", "us", 3));
        look(Arc::clone(&hub), key("first")).await.unwrap();
        assert_eq!(next().as_deref(), Some("web-0"));
    }
}
