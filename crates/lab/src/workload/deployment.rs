//! Deployments: which ReplicaSets there are, and how large each is.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Trouble, by_controller, each, gone, is_code, owned_by, short_hash};
use crate::cluster::Shared;

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let mut owned = by_controller(shared.caches.replicasets.list());
    let deployments = shared.caches.deployments.list().into_iter().filter(|d| d.metadata.deletion_timestamp.is_none());
    let work = deployments.map(|deployment| {
        let sets = deployment.uid().and_then(|uid| owned.remove(&uid)).unwrap_or_default();
        carry_out(&shared, deployment, sets)
    });
    each(work).await
}

async fn carry_out(shared: &Shared, deployment: Arc<Deployment>, sets: Vec<Arc<ReplicaSet>>) -> Result<(), Trouble> {
    let namespace = deployment.namespace().unwrap_or_default();
    let api: Api<ReplicaSet> = Api::namespaced(shared.client.clone(), &namespace);
    let decision = decide(&deployment, &sets, jiff::Timestamp::now());
    if let Some(set) = decision.create {
        match api.create(&PostParams::default(), &set).await {
            Ok(set) => {
                let (name, replicas) = (set.name_any(), set.spec.replicas.unwrap_or(0));
                shared.caches.replicasets.wrote(set);
                let text = format!("Scaled up replica set {name} from 0 to {replicas}");
                shared.events.normal(deployment.as_ref(), "ScalingReplicaSet", text);
            }
            Err(error) if is_code(&error, 409) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for (name, change) in decision.change {
        let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(change.patch)).await;
        match patched {
            Ok(set) => shared.caches.replicasets.wrote(set),
            Err(error) if is_code(&error, 404) => {}
            Err(error) => return Err(error.into()),
        }
        if let Some((from, to)) = change.scale {
            let way = if to > from { "up" } else { "down" };
            let text = format!("Scaled {way} replica set {name} from {from} to {to}");
            shared.events.normal(deployment.as_ref(), "ScalingReplicaSet", text);
        }
    }
    for name in decision.remove {
        gone(api.delete(&name, &DeleteParams::background()).await)?;
    }
    let api: Api<Deployment> = Api::namespaced(shared.client.clone(), &namespace);
    let name = deployment.name_any();
    if let Some(revision) = decision.revision {
        let patch = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
        shared.caches.deployments.wrote(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?);
    }
    if let Some(status) = decision.status {
        let patch = json!({"status": status});
        let patched = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        match patched {
            Ok(deployment) => shared.caches.deployments.wrote(deployment),
            Err(error) if is_code(&error, 404) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[derive(Default)]
struct Decision {
    create: Option<ReplicaSet>,
    change: Vec<(String, Change)>,
    remove: Vec<String>,
    /// A new number for the Deployment's own annotation.
    revision: Option<i64>,
    status: Option<Value>,
}

struct Change {
    patch: Value,
    scale: Option<(i32, i32)>,
}

struct Counts {
    wanted: i32,
    have: i32,
    ready: i32,
    available: i32,
}

fn counts(set: &ReplicaSet) -> Counts {
    let status = set.status.as_ref();
    Counts {
        wanted: set.spec.replicas.unwrap_or(0),
        have: status.map_or(0, |s| s.replicas),
        ready: status.and_then(|s| s.ready_replicas).unwrap_or(0),
        available: status.and_then(|s| s.available_replicas).unwrap_or(0),
    }
}

/// # Flow
///
/// 1. The new ReplicaSet is the one with the template's hash; make it if there is none.
/// 2. Roll: grow the new one within `maxSurge`, shrink the old ones within `maxUnavailable`, unhealthy pods first.
/// 3. Forget old ones beyond the history limit.
/// 4. Status and conditions from what the ReplicaSets say of themselves.
fn decide(deployment: &Deployment, sets: &[Arc<ReplicaSet>], now: jiff::Timestamp) -> Decision {
    let mut decision = Decision::default();
    let spec = &deployment.spec;
    let replicas = spec.replicas.unwrap_or(1).max(0);
    let template = serde_json::to_value(&spec.template).unwrap_or_default();
    let hash = short_hash(&template, 10);
    let (new, old): (Vec<_>, Vec<_>) =
        sets.iter().partition(|set| set.labels().get(HASH).is_some_and(|label| *label == hash));
    let new = new.first().copied();
    let revision = |set: &ReplicaSet| set.annotations().get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0_i64);
    let newest_old = old.iter().map(|set| revision(set)).max().unwrap_or(0);
    let number = new.map(|set| revision(set)).filter(|r| *r > newest_old).unwrap_or(newest_old + 1);
    let paused = spec.paused == Some(true);

    let strategy = spec.strategy.as_ref();
    let recreate = strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate");
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let quarter = IntOrString::String("25%".to_owned());
    let surge = part(rolling.and_then(|r| r.max_surge.as_ref()).unwrap_or(&quarter), replicas, true);
    let mut unavailable = part(rolling.and_then(|r| r.max_unavailable.as_ref()).unwrap_or(&quarter), replicas, false);
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }

    let old_wanted: i32 = old.iter().map(|set| counts(set).wanted).sum();
    let old_have: i32 = old.iter().map(|set| counts(set).have).sum();
    let room = |new_wanted: i32| {
        if recreate {
            if old_have > 0 || old_wanted > 0 { 0 } else { replicas - new_wanted }
        } else {
            (replicas + surge - old_wanted - new_wanted).clamp(0, (replicas - new_wanted).max(0))
        }
    };
    match new {
        None if !paused => decision.create = Some(replica_set(deployment, &hash, number, room(0))),
        None => {}
        Some(set) => {
            let counts = counts(set);
            let target = if counts.wanted > replicas || old.is_empty() {
                replicas
            } else if paused {
                counts.wanted
            } else {
                counts.wanted + room(counts.wanted)
            };
            let mut patch = json!({});
            let marks =
                [(REVISION, number.to_string()), ("deployment.kubernetes.io/desired-replicas", replicas.to_string())];
            for (name, value) in marks {
                if set.annotations().get(name) != Some(&value) {
                    patch["metadata"]["annotations"][name] = json!(value);
                }
            }
            let scale = (target != counts.wanted).then_some((counts.wanted, target));
            if scale.is_some() {
                patch["spec"]["replicas"] = json!(target);
            }
            if patch != json!({}) {
                decision.change.push((set.name_any(), Change { patch, scale }));
            }
        }
    }
    if !paused {
        let new_counts = new.map_or(Counts { wanted: 0, have: 0, ready: 0, available: 0 }, |set| counts(set));
        shrink(&old, &new_counts, replicas, if recreate { replicas } else { unavailable }, recreate, &mut decision);
    }

    let limit = spec.revision_history_limit.unwrap_or(10).max(0) as usize;
    let mut idle: Vec<_> = old.iter().filter(|set| counts(set).wanted == 0 && counts(set).have == 0).collect();
    idle.sort_by_key(|set| revision(set));
    let excess = idle.len().saturating_sub(limit);
    decision.remove = idle[..excess].iter().map(|set| set.name_any()).collect();

    if new.is_some() && deployment.annotations().get(REVISION) != Some(&number.to_string()) {
        decision.revision = Some(number);
    }
    let status = status(deployment, sets, new.map(|set| set.as_ref()), replicas, unavailable, now);
    decision.status = status;
    decision
}

fn shrink(old: &[&Arc<ReplicaSet>], new: &Counts, replicas: i32, unavailable: i32, all: bool, decision: &mut Decision) {
    let total_available: i32 = old.iter().map(|set| counts(set).available).sum::<i32>() + new.available;
    let total: i32 = old.iter().map(|set| counts(set).wanted).sum::<i32>() + new.wanted;
    let least = replicas - unavailable;
    // Pods of old sets that do not work may go at once, as far as the new set's missing ones leave room.
    let mut unhealthy_room = (total - least - (new.wanted - new.available).max(0)).max(0);
    let mut healthy_room = (total_available - least).max(0);
    let mut sorted: Vec<_> = old.to_vec();
    sorted.sort_by_key(|set| set.creation_timestamp().map(|t| t.0));
    for set in sorted {
        let counts = counts(set);
        if counts.wanted == 0 {
            continue;
        }
        let mut target = counts.wanted;
        if all {
            target = 0;
        } else {
            let unhealthy = (counts.wanted - counts.available).clamp(0, unhealthy_room);
            unhealthy_room -= unhealthy;
            target -= unhealthy;
            let healthy = healthy_room.min(target).min(unhealthy_room.max(0));
            healthy_room -= healthy;
            unhealthy_room -= healthy;
            target -= healthy;
        }
        if target != counts.wanted {
            let change = Change { patch: json!({"spec": {"replicas": target}}), scale: Some((counts.wanted, target)) };
            decision.change.push((set.name_any(), change));
        }
    }
}

fn replica_set(deployment: &Deployment, hash: &str, revision: i64, replicas: i32) -> ReplicaSet {
    let mut set = ReplicaSet::default();
    let spec = &deployment.spec;
    set.metadata.name = Some(format!("{}-{hash}", deployment.name_any()));
    set.metadata.namespace = deployment.namespace();
    set.metadata.owner_references = Some(vec![owned_by("apps/v1", "Deployment", deployment)]);
    let mut annotations = deployment.annotations().clone();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    annotations.insert(REVISION.to_owned(), revision.to_string());
    annotations.insert("deployment.kubernetes.io/desired-replicas".to_owned(), spec.replicas.unwrap_or(1).to_string());
    set.metadata.annotations = Some(annotations);
    let mut template = spec.template.clone();
    let metadata = template.metadata.get_or_insert_default();
    metadata.labels.get_or_insert_default().insert(HASH.to_owned(), hash.to_owned());
    set.metadata.labels = metadata.labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash.to_owned());
    set.spec = k8s_openapi::api::apps::v1::ReplicaSetSpec {
        replicas: Some(replicas),
        min_ready_seconds: spec.min_ready_seconds,
        selector,
        template: Some(template),
    };
    set
}

/// The status the Deployment should have, if it has another.
fn status(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    new: Option<&ReplicaSet>,
    replicas: i32,
    unavailable: i32,
    now: jiff::Timestamp,
) -> Option<Value> {
    let sum = |of: fn(&Counts) -> i32| sets.iter().map(|set| of(&counts(set))).sum::<i32>();
    let (have, ready, available) = (sum(|c| c.have), sum(|c| c.ready), sum(|c| c.available));
    let updated = new.map_or(0, |set| counts(set).have);
    let before = serde_json::to_value(&deployment.status).unwrap_or_default();
    let name = deployment.name_any();
    let complete = updated == replicas && have == replicas && available == replicas && new.is_some();
    let fine = available >= replicas - unavailable.min(replicas);
    let available_now = if fine {
        ("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned())
    } else {
        (
            "Available",
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.".to_owned(),
        )
    };
    let set_name = new.map(ResourceExt::name_any).unwrap_or_default();
    let progressing = if complete {
        let text = format!("ReplicaSet \"{set_name}\" has successfully progressed.");
        ("Progressing", "True", "NewReplicaSetAvailable", text)
    } else if new.is_some() {
        let text = format!("ReplicaSet \"{set_name}\" is progressing.");
        ("Progressing", "True", "ReplicaSetUpdated", text)
    } else {
        ("Progressing", "True", "NewReplicaSetCreated", format!("Created new replica set for \"{name}\""))
    };
    let conditions: Vec<Value> = [available_now, progressing]
        .into_iter()
        .map(|(kind, status, reason, message)| {
            let old = before["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind);
            let same = old.is_some_and(|c| c["status"] == status);
            let unchanged = same && old.is_some_and(|c| c["reason"] == reason && c["message"] == message.as_str());
            let keep = |field: &str| old.map(|c| c[field].clone()).filter(|v| !v.is_null());
            let now = json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": keep("lastTransitionTime").filter(|_| same).unwrap_or_else(|| now.clone()),
                "lastUpdateTime": keep("lastUpdateTime").filter(|_| unchanged).unwrap_or(now),
            })
        })
        .collect();
    let number = |n: i32| if n == 0 { Value::Null } else { json!(n) };
    let after = json!({
        "observedGeneration": deployment.metadata.generation,
        "replicas": number(have),
        "updatedReplicas": number(updated),
        "readyReplicas": number(ready),
        "availableReplicas": number(available),
        "unavailableReplicas": number((replicas - available).max(0)),
        "conditions": conditions,
    });
    let differs = after.as_object()?.iter().any(|(field, value)| {
        let old = &before[field];
        // Zero and absent are the same count.
        old != value && !(value.is_null() && (*old == json!(0) || old.is_null()))
    });
    differs.then_some(after)
}

/// `maxSurge` and `maxUnavailable`: a number, or a part of `of` in percent.
fn part(value: &IntOrString, of: i32, up: bool) -> i32 {
    match value {
        IntOrString::Int(number) => (*number).max(0),
        IntOrString::String(text) => {
            let percent = text.trim_end_matches('%').parse::<i64>().unwrap_or(0).clamp(0, 1000);
            let scaled = percent * i64::from(of);
            (if up { (scaled + 99) / 100 } else { scaled / 100 }) as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(replicas: i32, image: &str) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "x", "uid": "d", "generation": 1},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}},
        }))
        .unwrap()
    }

    /// A roll in which every created pod becomes ready one step later; shows (old, new) at each step.
    fn roll(replicas: i32) -> Vec<(i32, i32)> {
        let first = deployment(replicas, "a:1");
        let second = deployment(replicas, "a:2");
        let now = jiff::Timestamp::now();
        let settle = |set: &mut ReplicaSet| {
            let n = counts(set).wanted;
            set.status = Some(
                serde_json::from_value(json!({"replicas": n, "readyReplicas": n, "availableReplicas": n})).unwrap(),
            );
        };
        let mut old = decide(&first, &[], now).create.unwrap();
        settle(&mut old);
        let mut sets = vec![Arc::new(old)];
        let mut steps = Vec::new();
        for _ in 0..50 {
            let decision = decide(&second, &sets, now);
            if let Some(new) = decision.create {
                sets.push(Arc::new(new));
            }
            for (name, change) in decision.change {
                let Some((_, to)) = change.scale else { continue };
                let set = sets.iter_mut().find(|s| s.name_any() == name).unwrap();
                Arc::make_mut(set).spec.replicas = Some(to);
            }
            let step = (counts(&sets[0]).wanted, counts(&sets[1]).wanted);
            if steps.last() != Some(&step) {
                steps.push(step);
            }
            sets.iter_mut().for_each(|set| settle(Arc::make_mut(set)));
            if step == (0, replicas) {
                break;
            }
        }
        steps
    }

    #[test]
    fn a_roll_never_has_too_few_or_too_many() {
        for replicas in [1, 2, 3, 4, 10] {
            let steps = roll(replicas);
            assert_eq!(steps.last(), Some(&(0, replicas)), "{steps:?}");
            let (surge, unavailable) = ((replicas + 3) / 4, replicas / 4);
            for (old, new) in &steps {
                assert!(old + new <= replicas + surge && old + new >= replicas - unavailable, "{steps:?}");
            }
        }
    }

    #[test]
    fn parts() {
        let percent = |text: &str| IntOrString::String(text.to_owned());
        assert_eq!(part(&percent("25%"), 3, true), 1);
        assert_eq!(part(&percent("25%"), 3, false), 0);
        assert_eq!(part(&IntOrString::Int(2), 3, false), 2);
    }
}
