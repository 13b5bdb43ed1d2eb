//! ReplicaSets: as many pods as wanted.

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{AT_ONCE, Later, Trouble, adopt, by_controller, condition, each, is_active, orphans, pods, put_status};
use crate::cluster::Shared;

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let pods = shared.caches.pods.list();
    let orphans = orphans(&pods);
    let mut owned = by_controller(pods);
    let sets = shared.caches.replicasets.list().into_iter().filter(|s| s.metadata.deletion_timestamp.is_none());
    let work = sets.map(|set| {
        let pods = set.uid().and_then(|uid| owned.remove(&uid)).unwrap_or_default();
        carry_out(&shared, set, pods, &orphans)
    });
    each(work).await
}

async fn carry_out(
    shared: &Shared,
    set: Arc<ReplicaSet>,
    mut pods: Vec<Arc<Pod>>,
    orphans: &[Arc<Pod>],
) -> Result<(), Trouble> {
    adopt(shared, &shared.caches.pods, set.as_ref(), &set.spec.selector, orphans, &mut pods).await?;
    let wanted = set.spec.replicas.unwrap_or(1).max(0) as usize;
    let mut active: Vec<_> = pods.into_iter().filter(|pod| is_active(pod)).collect();
    let mut trouble: Result<(), Trouble> = Ok(());
    if active.len() < wanted {
        let missing = wanted - active.len();
        let template = set.spec.template.clone().unwrap_or_default();
        let create = (0..missing).map(|_| {
            let pod = pods::from_template(&template, set.as_ref());
            pods::create(shared, set.as_ref(), pod)
        });
        let created: Vec<_> = futures::stream::iter(create).buffer_unordered(AT_ONCE).collect().await;
        for result in created {
            match result {
                Ok(pod) => active.push(pod),
                Err(error) => trouble = Err(error.into()),
            }
        }
    } else if active.len() > wanted {
        active.sort_by_key(|pod| keep_rank(pod));
        for pod in active.drain(wanted..) {
            pods::delete(shared, set.as_ref(), &pod).await?;
        }
    }
    let ready = active.iter().filter(|pod| condition(pod, "Ready")).count();
    let least = set.spec.min_ready_seconds;
    let available = active.iter().filter(|pod| pods::is_available(pod, least)).count();
    let failed = trouble.as_ref().err().map(ToString::to_string);
    let status = status(&set, active.len(), ready, available, failed.as_deref());
    put_status(shared, &shared.caches.replicasets, set.as_ref(), &set.status, status).await?;
    if available < ready {
        // Nothing else will poke us when a pod has been ready for long enough.
        trouble = trouble.and(Err(Later::seconds(1)));
    }
    trouble
}

fn status(set: &ReplicaSet, have: usize, ready: usize, available: usize, failed: Option<&str>) -> Value {
    let number = |n: usize| if n == 0 { Value::Null } else { json!(n) };
    let conditions = failed.map_or(
        Value::Null,
        |message| json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}]),
    );
    json!({
        "observedGeneration": set.metadata.generation,
        "replicas": have,
        "fullyLabeledReplicas": number(have),
        "readyReplicas": number(ready),
        "availableReplicas": number(available),
        "conditions": conditions,
    })
}

/// Pods that stay longest come first: ready before not, older before newer, placed before not.
fn keep_rank(pod: &Pod) -> (bool, bool, jiff::Timestamp) {
    let placed = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
    let created = pod.creation_timestamp().map_or(jiff::Timestamp::MAX, |t| t.0);
    (!condition(pod, "Ready"), !placed, created)
}
