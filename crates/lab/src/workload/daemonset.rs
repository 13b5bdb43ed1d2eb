//! DaemonSets: one pod on the node, if it may be there.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use kube::ResourceExt;
use serde_json::{Value, json};

use super::history::{self, HASH, Owner};
use super::{Later, Trouble, adopt, condition, pods, put_status, scheduler};
use crate::cluster::Shared;

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    history::reconcile(&shared, shared.caches.daemonsets.list(), |owner| carry_out(&shared, owner)).await
}

async fn carry_out(shared: &Shared, owner: Owner<DaemonSet>) -> Result<(), Trouble> {
    let Owner { set, pods: mut owned, revisions, orphans } = owner;
    let spec = &set.spec;
    let Some(node) = shared.caches.nodes.get("", &shared.node) else { return Ok(()) };
    adopt(shared, &shared.caches.pods, set.as_ref(), &spec.selector, &orphans, &mut owned).await?;
    let history = history::of(shared, set.as_ref(), &spec.template, &spec.selector, revisions).await?;
    let hash = history.update.labels().get(HASH).cloned().unwrap_or_default();
    let fresh = pod(&set, &hash);
    let belongs = scheduler::refusal(&node, &fresh).is_none();
    let decision = decide(&set, &owned, &hash, belongs);
    for pod in &decision.delete {
        pods::delete(shared, set.as_ref(), pod).await?;
    }
    if decision.create {
        pods::create(shared, set.as_ref(), fresh).await?;
    }
    put_status(shared, &shared.caches.daemonsets, set.as_ref(), &set.status, decision.status).await?;
    let used: BTreeSet<_> = owned.iter().filter_map(|pod| pod.labels().get(HASH).cloned()).collect();
    history::forget(shared, &history, spec.revision_history_limit, &used).await?;
    if decision.waits { Err(Later::seconds(1)) } else { Ok(()) }
}

struct Decision {
    create: bool,
    delete: Vec<Arc<Pod>>,
    status: Value,
    waits: bool,
}

fn decide(set: &DaemonSet, owned: &[Arc<Pod>], hash: &str, belongs: bool) -> Decision {
    let least = set.spec.min_ready_seconds;
    let on_delete = set.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    let is_new = |pod: &Pod| pod.labels().get(HASH).is_some_and(|label| label == hash);
    let here: Vec<_> = owned.iter().filter(|pod| !pods::is_going(pod)).collect();
    let failed = |pod: &Pod| matches!(pods::phase(pod), "Failed" | "Succeeded");
    let delete: Vec<_> = here
        .iter()
        .enumerate()
        .filter(|(at, pod)| !belongs || failed(pod) || *at > 0 || !on_delete && !is_new(pod))
        .map(|(_, pod)| Arc::clone(pod))
        .collect();
    let count = |question: &dyn Fn(&Pod) -> bool| here.iter().filter(|pod| question(pod)).count().min(1) as i32;
    let desired = i32::from(belongs);
    let available = count(&|pod| pods::is_available(pod, least));
    let present = count(&|_| true);
    let status = json!({
        "observedGeneration": set.metadata.generation,
        "desiredNumberScheduled": desired,
        "currentNumberScheduled": present.min(desired),
        "numberMisscheduled": if belongs { 0 } else { present },
        "numberReady": count(&|pod| condition(pod, "Ready")),
        "updatedNumberScheduled": count(&is_new),
        "numberAvailable": available,
        "numberUnavailable": (desired - available).max(0),
    });
    // The old pod goes before the new one comes, as with `maxUnavailable: 1`: there is one node.
    let create = belongs && owned.iter().all(|pod| pods::is_going(pod) && failed(pod));
    Decision { create, delete, status, waits: available < count(&|pod| condition(pod, "Ready")) }
}

fn pod(set: &DaemonSet, hash: &str) -> Pod {
    let mut pod = pods::from_template(&set.spec.template, set);
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    let generation = set.annotations().get("deprecated.daemonset.template.generation");
    labels.insert("pod-template-generation".to_owned(), generation.cloned().unwrap_or_else(|| "1".to_owned()));
    // What a daemon must not be stopped by; the list is Kubernetes' (daemon controller, AddOrUpdateDaemonPodTolerations).
    let tolerations = pod.spec.get_or_insert_default().tolerations.get_or_insert_default();
    for (key, effect) in [
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ] {
        tolerations.push(Toleration {
            key: Some(format!("node.kubernetes.io/{key}")),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        });
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pod_of_the_right_revision() {
        let set: DaemonSet = serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {
            "selector": {}, "template": {"spec": {"containers": []}}}}))
        .unwrap();
        let member = |hash: &str, going: bool| -> Arc<Pod> {
            let gone = going.then_some("2026-01-01T00:00:00Z");
            let value = json!({"metadata": {"name": "p", "labels": {HASH: hash}, "deletionTimestamp": gone},
                "status": {"phase": "Running"}});
            Arc::new(serde_json::from_value(value).unwrap())
        };
        // Pods, whether one may be here: whether one is made, how many go.
        let cases = [
            (vec![], true, (true, 0)),
            (vec![], false, (false, 0)),
            (vec![member("a", false)], true, (false, 0)),
            (vec![member("b", false)], true, (false, 1)),
            (vec![member("b", true)], true, (false, 0)),
            (vec![member("a", false)], false, (false, 1)),
            (vec![member("a", false), member("a", false)], true, (false, 1)),
        ];
        for (owned, belongs, expected) in cases {
            let decision = decide(&set, &owned, "a", belongs);
            assert_eq!((decision.create, decision.delete.len()), expected);
        }
    }
}
