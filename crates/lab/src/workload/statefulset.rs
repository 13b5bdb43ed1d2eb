//! StatefulSets: pods with names that stay, one after another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use super::history::{self, HASH, Owner};
use super::{Later, Trouble, adopt, condition, is_code, pods, put_status};
use crate::cluster::Shared;

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    history::reconcile(&shared, shared.caches.statefulsets.list(), |owner| carry_out(&shared, owner)).await
}

async fn carry_out(shared: &Shared, owner: Owner<StatefulSet>) -> Result<(), Trouble> {
    let Owner { set, mut pods, revisions, orphans } = owner;
    let spec = &set.spec;
    adopt(shared, &shared.caches.pods, set.as_ref(), &spec.selector, &orphans, &mut pods).await?;
    let history = history::of(shared, set.as_ref(), &spec.template, &spec.selector, revisions).await?;
    let update = history.update.name_any();
    let before = set.status.as_ref().and_then(|s| s.current_revision.clone()).unwrap_or_default();
    let current = history.all.iter().find(|r| r.name_any() == before).unwrap_or(&history.update);
    let decision = decide(&set, &pods, &current.name_any(), &update);
    for pod in &pods {
        claim(shared, &set, &pod.name_any()).await?;
    }
    for (ordinal, revision) in &decision.create {
        claim(shared, &set, &format!("{}-{ordinal}", set.name_any())).await?;
        let old = if *revision == update { None } else { history::template(current) };
        let template = old.as_ref().unwrap_or(&spec.template);
        pods::create(shared, set.as_ref(), pod(&set, template, *ordinal, revision)).await?;
    }
    for pod in &decision.delete {
        pods::delete(shared, set.as_ref(), pod).await?;
    }
    put_status(shared, &shared.caches.statefulsets, set.as_ref(), &set.status, decision.status).await?;
    let mut used: BTreeSet<_> = pods.iter().filter_map(|pod| pod.labels().get(HASH).cloned()).collect();
    used.insert(current.name_any());
    history::forget(shared, &history, spec.revision_history_limit, &used).await?;
    if decision.waits { Err(Later::seconds(1)) } else { Ok(()) }
}

fn claim_name(template: &PersistentVolumeClaim, pod: &str) -> String {
    format!("{}-{pod}", template.name_any())
}

/// Makes the claims of a pod that are not there. They outlive it, and the set (the default of
/// `persistentVolumeClaimRetentionPolicy`).
async fn claim(shared: &Shared, set: &StatefulSet, pod: &str) -> Result<(), Trouble> {
    let namespace = set.namespace().unwrap_or_default();
    for template in set.spec.volume_claim_templates.iter().flatten() {
        let name = claim_name(template, pod);
        if shared.caches.claims.get(&namespace, &name).is_some() {
            continue;
        }
        let mut made = template.clone();
        made.metadata.name = Some(name);
        made.metadata.namespace = Some(namespace.clone());
        made.metadata.labels.get_or_insert_default().extend(set.spec.selector.match_labels.clone().unwrap_or_default());
        made.status = None;
        let api: Api<PersistentVolumeClaim> = Api::namespaced(shared.client.clone(), &namespace);
        match api.create(&PostParams::default(), &made).await {
            Ok(made) => shared.caches.claims.wrote(made),
            Err(error) if is_code(&error, 409) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[derive(Default)]
struct Decision {
    /// Ordinals to make a pod for, and of which revision.
    create: Vec<(i32, String)>,
    delete: Vec<Arc<Pod>>,
    status: Value,
    /// Whether time alone will change something.
    waits: bool,
}

/// # Flow
///
/// 1. From the first ordinal up: what is missing is made. In order, unless `Parallel`: nothing is done before all
///    earlier pods are ready.
/// 2. What is too much goes, the last first.
/// 3. Pods of an old revision go, the last first, down to the partition; they come back with the new one.
fn decide(set: &StatefulSet, owned: &[Arc<Pod>], current: &str, update: &str) -> Decision {
    let mut decision = Decision::default();
    let spec = &set.spec;
    let start = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    let wanted = start..start + spec.replicas.unwrap_or(1).max(0);
    let in_order = spec.pod_management_policy.as_deref() != Some("Parallel");
    let strategy = spec.update_strategy.as_ref();
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let partition = start + rolling.and_then(|r| r.partition).unwrap_or(0);
    let on_delete = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
    let by_ordinal: BTreeMap<i32, &Arc<Pod>> =
        owned.iter().filter_map(|pod| Some((ordinal(&set.name_any(), &pod.name_any())?, pod))).collect();
    let revision = |pod: &Pod| pod.labels().get(HASH).cloned().unwrap_or_default();
    let available = |pod: &Pod| pods::is_available(pod, spec.min_ready_seconds);
    let healthy = |pod: &Pod| !pods::is_going(pod) && available(pod);
    decision.waits = by_ordinal.values().any(|pod| condition(pod, "Ready") && !available(pod));

    let mut held = false;
    for ordinal in wanted.clone() {
        match by_ordinal.get(&ordinal) {
            None => {
                let of = if ordinal < partition { current } else { update };
                decision.create.push((ordinal, of.to_owned()));
                held = true;
            }
            Some(pod) if !pods::is_going(pod) && matches!(pods::phase(pod), "Failed" | "Succeeded") => {
                decision.delete.push(Arc::clone(pod));
                held = true;
            }
            Some(pod) => held |= !healthy(pod),
        }
        if held && in_order {
            break;
        }
    }
    let mut surplus = by_ordinal.iter().rev().filter(|(ordinal, _)| !wanted.contains(ordinal)).map(|(_, pod)| *pod);
    if in_order {
        if !held && let Some(last) = surplus.next() {
            held = true;
            if !pods::is_going(last) {
                decision.delete.push(Arc::clone(last));
            }
        }
    } else {
        decision.delete.extend(surplus.filter(|pod| !pods::is_going(pod)).cloned());
    }
    // Kubernetes updates in order under `Parallel` too.
    if !held && !on_delete {
        for (_, pod) in by_ordinal.range(partition.max(start)..).rev().filter(|(ordinal, _)| wanted.contains(ordinal)) {
            if revision(pod) != update && !pods::is_going(pod) {
                decision.delete.push(Arc::clone(pod));
                break;
            }
            if !healthy(pod) {
                break;
            }
        }
    }

    let count = |question: &dyn Fn(&Pod) -> bool| by_ordinal.values().filter(|pod| question(pod)).count() as i32;
    let ready = count(&|pod| condition(pod, "Ready"));
    let updated = count(&|pod| revision(pod) == update && !pods::is_going(pod));
    let replicas = by_ordinal.len() as i32;
    let all = spec.replicas.unwrap_or(1);
    let done = !on_delete && partition <= start && updated == all && ready == all && replicas == all;
    let current = if done { update } else { current };
    decision.status = json!({
        "observedGeneration": set.metadata.generation,
        "replicas": replicas,
        "readyReplicas": ready,
        "availableReplicas": count(&|pod| available(pod)),
        "currentReplicas": count(&|pod| revision(pod) == current && !pods::is_going(pod)),
        "updatedReplicas": updated,
        "currentRevision": current,
        "updateRevision": update,
        "collisionCount": 0,
    });
    decision
}

fn ordinal(set: &str, pod: &str) -> Option<i32> {
    pod.strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

fn pod(set: &StatefulSet, template: &PodTemplateSpec, ordinal: i32, revision: &str) -> Pod {
    let mut pod = pods::from_template(template, set);
    let name = format!("{}-{ordinal}", set.name_any());
    pod.metadata.generate_name = None;
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), revision.to_owned());
    labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), name.clone());
    labels.insert("apps.kubernetes.io/pod-index".to_owned(), ordinal.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name.clone());
    spec.subdomain = set.spec.service_name.clone().filter(|s| !s.is_empty());
    for claim in set.spec.volume_claim_templates.iter().flatten() {
        let volume = claim.name_any();
        let source = PersistentVolumeClaimVolumeSource { claim_name: claim_name(claim, &name), read_only: None };
        let volumes = spec.volumes.get_or_insert_default();
        volumes.retain(|known| known.name != volume);
        volumes.push(Volume { name: volume, persistent_volume_claim: Some(source), ..Volume::default() });
    }
    pod.metadata.name = Some(name);
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i32, more: Value) -> StatefulSet {
        let mut value = json!({
            "metadata": {"name": "db", "namespace": "x", "uid": "s", "generation": 1},
            "spec": {"replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        for (field, more) in more.as_object().unwrap() {
            value["spec"][field] = more.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn member(ordinal: i32, revision: &str, ready: bool) -> Arc<Pod> {
        let status = if ready { "True" } else { "False" };
        let value = json!({"metadata": {"name": format!("db-{ordinal}"), "labels": {HASH: revision}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": status}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    /// What is made and what goes, as ordinals.
    fn steps(set: &StatefulSet, pods: &[Arc<Pod>]) -> (Vec<i32>, Vec<i32>) {
        let decision = decide(set, pods, "old", "new");
        let gone = decision.delete.iter().map(|pod| ordinal("db", &pod.name_any()).unwrap()).collect();
        (decision.create.iter().map(|(ordinal, _)| *ordinal).collect(), gone)
    }

    #[test]
    fn one_after_another() {
        let three = set(3, json!({}));
        let parallel = set(3, json!({"podManagementPolicy": "Parallel"}));
        /// The set, its pods, and the ordinals that are created and deleted.
        type Case<'a> = (&'a StatefulSet, Vec<Arc<Pod>>, (Vec<i32>, Vec<i32>));
        let cases: [Case<'_>; 7] = [
            (&three, vec![], (vec![0], vec![])),
            (&three, vec![member(0, "new", false)], (vec![], vec![])),
            (&three, vec![member(0, "new", true)], (vec![1], vec![])),
            (&parallel, vec![member(1, "new", false)], (vec![0, 2], vec![])),
            // One too many.
            (&three, (0..5).map(|n| member(n, "new", true)).collect(), (vec![], vec![4])),
            // A new revision: the last first, and only while the others are well.
            (&three, (0..3).map(|n| member(n, "old", true)).collect(), (vec![], vec![2])),
            (&three, vec![member(0, "old", true), member(1, "old", true), member(2, "new", false)], (vec![], vec![])),
        ];
        for (set, pods, expected) in cases {
            assert_eq!(steps(set, &pods), expected);
        }
    }

    #[test]
    fn a_partition_holds_the_first_back() {
        let held = set(3, json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}}));
        let after = [member(0, "old", true), member(1, "old", true), member(2, "new", true)];
        assert_eq!(steps(&held, &after), (vec![], vec![]));
        let decision = decide(&held, &after[1..], "old", "new");
        assert_eq!(decision.create, [(0, "old".to_owned())]);
        let status = decide(&held, &after, "old", "new").status;
        assert_eq!((&status["currentRevision"], &status["updatedReplicas"]), (&json!("old"), &json!(1)));
    }
}
