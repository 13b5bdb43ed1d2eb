//! Deployments: which ReplicaSets there are, and how large each is.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Later, Trouble, adopt, by_controller, differs, each, gone, is_code, orphans, owned_by, short_hash, stamp};
use crate::cluster::Shared;

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
/// The numbers that a ReplicaSet had before it became the newest again.
const EARLIER: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not inherit (deployment/util, annotationsToSkip).
const OWN: [&str; 5] = ["kubectl.kubernetes.io/last-applied-configuration", REVISION, EARLIER, DESIRED, MOST];

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let sets = shared.caches.replicasets.list();
    let orphans = orphans(&sets);
    let mut owned = by_controller(sets);
    let deployments = shared.caches.deployments.list().into_iter().filter(|d| d.metadata.deletion_timestamp.is_none());
    let work = deployments.map(|deployment| {
        let sets = deployment.uid().and_then(|uid| owned.remove(&uid)).unwrap_or_default();
        carry_out(&shared, deployment, sets, &orphans)
    });
    each(work).await
}

async fn carry_out(
    shared: &Shared,
    deployment: Arc<Deployment>,
    mut sets: Vec<Arc<ReplicaSet>>,
    orphans: &[Arc<ReplicaSet>],
) -> Result<(), Trouble> {
    let selector = &deployment.spec.selector;
    adopt(shared, &shared.caches.replicasets, deployment.as_ref(), selector, orphans, &mut sets).await?;
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
    decision.deadline.map_or(Ok(()), |seconds| Err(Later::seconds(seconds)))
}

#[derive(Default)]
struct Decision {
    create: Option<ReplicaSet>,
    change: Vec<(String, Change)>,
    remove: Vec<String>,
    /// A new number for the Deployment's own annotation.
    revision: Option<i64>,
    status: Option<Value>,
    /// Seconds until a rollout that does not move has failed.
    deadline: Option<i64>,
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
        None if !paused => decision.create = Some(replica_set(deployment, &hash, number, room(0), replicas + surge)),
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
            let mut marks = inherited(deployment);
            marks.insert(REVISION.to_owned(), number.to_string());
            marks.insert(DESIRED.to_owned(), replicas.to_string());
            marks.insert(MOST.to_owned(), (replicas + surge).to_string());
            if let Some(before) = set.annotations().get(REVISION).filter(|r| **r != number.to_string()) {
                let earlier = set.annotations().get(EARLIER).map(|list| format!("{list},{before}"));
                marks.insert(EARLIER.to_owned(), earlier.unwrap_or_else(|| before.clone()));
            }
            for (name, value) in marks {
                if set.annotations().get(&name) != Some(&value) {
                    patch["metadata"]["annotations"][name] = json!(value);
                }
            }
            let least = spec.min_ready_seconds.unwrap_or(0);
            if set.spec.min_ready_seconds.unwrap_or(0) != least {
                patch["spec"]["minReadySeconds"] = json!(least);
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
    let (status, deadline) = status(deployment, sets, new.map(|set| set.as_ref()), replicas, unavailable, now);
    decision.status = status;
    decision.deadline = deadline;
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

/// What a ReplicaSet takes over from its Deployment, `kubernetes.io/change-cause` among it.
fn inherited(deployment: &Deployment) -> BTreeMap<String, String> {
    let annotations = deployment.annotations().iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
    annotations.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn replica_set(deployment: &Deployment, hash: &str, revision: i64, replicas: i32, most: i32) -> ReplicaSet {
    let mut set = ReplicaSet::default();
    let spec = &deployment.spec;
    set.metadata.name = Some(format!("{}-{hash}", deployment.name_any()));
    set.metadata.namespace = deployment.namespace();
    set.metadata.owner_references = Some(vec![owned_by("apps/v1", "Deployment", deployment)]);
    let mut annotations = inherited(deployment);
    annotations.insert(REVISION.to_owned(), revision.to_string());
    annotations.insert(DESIRED.to_owned(), spec.replicas.unwrap_or(1).to_string());
    annotations.insert(MOST.to_owned(), most.to_string());
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

/// The status the Deployment should have, if it has another; and the seconds until it will have another by time alone.
fn status(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    new: Option<&ReplicaSet>,
    replicas: i32,
    unavailable: i32,
    now: jiff::Timestamp,
) -> (Option<Value>, Option<i64>) {
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
    let old = before["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Progressing");
    let known = |reason: &str| old.is_some_and(|c| c["reason"] == reason);
    // Progress (deployment/util, DeploymentProgressing): more of the new, less of the old, more that work.
    let number = |field: &str| before[field].as_i64().unwrap_or(0) as i32;
    let moved = updated > number("updatedReplicas")
        || have - updated < number("replicas") - number("updatedReplicas")
        || ready > number("readyReplicas")
        || available > number("availableReplicas");
    let moved_at = old.and_then(|c| c["lastUpdateTime"].as_str()).and_then(|t| t.parse().ok()).unwrap_or(now);
    let paused = deployment.spec.paused == Some(true);
    let limit = i64::from(deployment.spec.progress_deadline_seconds.unwrap_or(600));
    // The largest number means: wait for ever.
    let unlimited = limit == i64::from(i32::MAX);
    let left = limit - now.duration_since(moved_at).as_secs();
    let mut deadline = None;
    let progressing = if paused {
        ("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused".to_owned())
    } else if known("DeploymentPaused") {
        ("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed".to_owned())
    } else if complete {
        let text = format!("ReplicaSet \"{set_name}\" has successfully progressed.");
        ("Progressing", "True", "NewReplicaSetAvailable", text)
    } else if let Some(old) = old
        .filter(|_| !moved && known("NewReplicaSetAvailable") && new.is_some_and(|set| updated == counts(set).wanted))
    {
        // It was complete: pods that fail later are no failed rollout.
        ("Progressing", "True", "NewReplicaSetAvailable", old["message"].as_str().unwrap_or_default().to_owned())
    } else if !unlimited && !moved && old.is_some() && (left <= 0 || known("ProgressDeadlineExceeded")) {
        let text = format!("ReplicaSet \"{set_name}\" has timed out progressing.");
        ("Progressing", "False", "ProgressDeadlineExceeded", text)
    } else if new.is_some() {
        deadline = (!unlimited).then_some(left.max(1));
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
            let unchanged = same
                && old.is_some_and(|c| c["reason"] == reason && c["message"] == message.as_str())
                && !(moved && reason == "ReplicaSetUpdated");
            let keep = |field: &str| old.map(|c| c[field].clone()).filter(|v| !v.is_null());
            let now = json!(stamp(now));
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
    (differs(&before, &after).then_some(after), deadline)
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
    fn a_rollout_that_does_not_move_has_failed_after_its_deadline() {
        let mut web = deployment(2, "a:1");
        let began = jiff::Timestamp::now();
        let set = Arc::new(decide(&web, &[], began).create.unwrap());
        let reason = |web: &mut Deployment, now| {
            let decision = decide(web, &[Arc::clone(&set)], now);
            if let Some(status) = decision.status {
                web.status = Some(serde_json::from_value(status).unwrap());
            }
            let conditions = web.status.as_ref().unwrap().conditions.clone().unwrap();
            let reason =
                conditions.into_iter().find(|c| c.type_.as_deref() == Some("Progressing")).unwrap().reason.unwrap();
            (reason, decision.deadline)
        };
        let after = |seconds| began + jiff::SignedDuration::from_secs(seconds);
        web.spec.progress_deadline_seconds = Some(60);
        assert_eq!(reason(&mut web, began), ("ReplicaSetUpdated".to_owned(), Some(60)));
        assert_eq!(reason(&mut web, after(50)), ("ReplicaSetUpdated".to_owned(), Some(10)));
        assert_eq!(reason(&mut web, after(61)), ("ProgressDeadlineExceeded".to_owned(), None));
        web.spec.paused = Some(true);
        assert_eq!(reason(&mut web, after(62)).0, "DeploymentPaused");
        web.spec.paused = None;
        assert_eq!(reason(&mut web, after(63)).0, "DeploymentResumed");
        assert_eq!(reason(&mut web, after(64)).0, "ReplicaSetUpdated");
    }

    #[test]
    fn going_back_keeps_the_earlier_number() {
        let mut first = deployment(1, "a:1");
        let now = jiff::Timestamp::now();
        let old = Arc::new(decide(&first, &[], now).create.unwrap());
        let new = Arc::new(decide(&deployment(1, "a:2"), std::slice::from_ref(&old), now).create.unwrap());
        assert_eq!(new.annotations()[REVISION], "2");
        let cause = ("kubernetes.io/change-cause".to_owned(), "back".to_owned());
        first.metadata.annotations = Some([cause.clone()].into());
        let decision = decide(&first, &[old, new], now);
        let (_, change) = &decision.change[0];
        let annotations = &change.patch["metadata"]["annotations"];
        assert_eq!((&annotations[REVISION], &annotations[EARLIER]), (&json!("3"), &json!("1")));
        assert_eq!(annotations[cause.0], "back");
    }

    #[test]
    fn parts() {
        let percent = |text: &str| IntOrString::String(text.to_owned());
        assert_eq!(part(&percent("25%"), 3, true), 1);
        assert_eq!(part(&percent("25%"), 3, false), 0);
        assert_eq!(part(&IntOrString::Int(2), 3, false), 2);
    }
}
