//! What leaves a cluster that is lost, or that somebody tainted: the decisions are [`crate::evict::task`]'s.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde_json::Value;
use stolos_k8s::meta;

use super::template::TemplateKey;
use super::{Hub, failover};
use crate::evict::guard;
use crate::evict::task::{self, Change, News};
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
    let clusters: Vec<Cluster> =
        all.iter().filter_map(|cluster| model::read::<Cluster>(cluster).ok().map(|(cluster, _)| cluster)).collect();
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
            if let Err(wait) = hub.may_evict() {
                return Ok(Some(wait));
            }
            return write(&hub, &mirror, &object, change).await;
        }
        again = [again, change.again].into_iter().flatten().min();
    }
    let then = failover::look(&hub, &mirror, &object, &binding, &clusters).await?;
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

impl Hub {
    /// Lets one workload leave its cluster, or says how long it is to wait.
    pub(super) fn may_evict(&self) -> Result<(), Duration> {
        self.evictions.lock().unwrap_or_else(PoisonError::into_inner).take(self.began.elapsed())
    }

    /// Something has changed that decides what may stay where it is.
    pub(super) fn look_at_evictions(&self) {
        for bindings in [&self.own.bindings, &self.own.cluster_bindings] {
            for binding in bindings.keys() {
                self.queues.evict.add(binding);
            }
        }
    }
}
