//! Jobs: pods that run to their end, so many times.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{EnvVar, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

use super::{Later, Trouble, by_controller, condition, each, gone, pods, put_status, stamp};
use crate::cluster::Shared;

/// The first wait after a failed pod; it doubles up to [`LONGEST`] (Kubernetes' own figures).
const FIRST: i64 = 10;
const LONGEST: i64 = 600;
/// Which of an indexed Job's completions a pod works at.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let jobs = shared.caches.jobs.list();
    if jobs.is_empty() {
        return Ok(());
    }
    let mut owned = by_controller(shared.caches.pods.list());
    let work = jobs.into_iter().filter(|job| job.metadata.deletion_timestamp.is_none()).map(|job| {
        let pods = job.uid().and_then(|uid| owned.remove(&uid)).unwrap_or_default();
        carry_out(&shared, job, pods)
    });
    each(work).await
}

async fn carry_out(shared: &Shared, job: Arc<Job>, owned: Vec<Arc<Pod>>) -> Result<(), Trouble> {
    let decision = decide(&job, &owned, Timestamp::now());
    if decision.remove {
        let api: Api<Job> = Api::namespaced(shared.client.clone(), &job.namespace().unwrap_or_default());
        return Ok(gone(api.delete(&job.name_any(), &DeleteParams::background()).await)?);
    }
    for pod in &decision.delete {
        pods::delete(shared, job.as_ref(), pod).await?;
    }
    for index in &decision.create {
        pods::create(shared, job.as_ref(), pod(&job, *index)).await?;
    }
    if let Some((reason, message)) = decision.news {
        match reason {
            "BackoffLimitExceeded" | "DeadlineExceeded" => shared.events.warning(job.as_ref(), reason, message.into()),
            _ => shared.events.normal(job.as_ref(), reason, message.into()),
        }
    }
    if let Some(status) = decision.status {
        put_status(shared, &shared.caches.jobs, job.as_ref(), &job.status, status).await?;
    }
    decision.wait.map_or(Ok(()), |seconds| Err(Later::seconds(seconds)))
}

#[derive(Default)]
struct Decision {
    /// Pods to make, with their index where the Job is indexed.
    create: Vec<Option<i32>>,
    delete: Vec<Arc<Pod>>,
    status: Option<Value>,
    /// Reason and message of an event.
    news: Option<(&'static str, &'static str)>,
    /// The whole Job has outlived its `ttlSecondsAfterFinished`.
    remove: bool,
    /// Seconds until time alone changes something.
    wait: Option<i64>,
}

/// # Flow
///
/// 1. A Job that is finished only waits to be removed.
/// 2. Too many failures or too long: the pods go, `Failed`. Enough successes: `Complete`.
/// 3. Else as many pods as are missing, no sooner after a failure than the back-off says.
fn decide(job: &Job, owned: &[Arc<Pod>], now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let Some(spec) = &job.spec else { return decision };
    let before = job.status.clone().unwrap_or_default();
    let finished = before
        .conditions
        .iter()
        .flatten()
        .find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
    if let Some(finished) = finished {
        if let Some(ttl) = spec.ttl_seconds_after_finished {
            let ended = before.completion_time.as_ref().or(finished.last_transition_time.as_ref()).map_or(now, |t| t.0);
            let left = i64::from(ttl) - now.duration_since(ended).as_secs();
            decision.remove = left <= 0;
            decision.wait = (left > 0).then_some(left);
        }
        return decision;
    }
    let indexed = spec.completion_mode.as_deref() == Some("Indexed");
    let suspended = spec.suspend == Some(true);
    let index = |pod: &Pod| pod.annotations().get(INDEX).and_then(|index| index.parse::<i32>().ok());
    let of_phase = |phase: &str| owned.iter().filter(|pod| pods::phase(pod) == phase).collect::<Vec<_>>();
    let done = of_phase("Succeeded");
    let completed: BTreeSet<i32> = done.iter().filter_map(|pod| index(pod)).collect();
    // Pods that somebody removed still count.
    let succeeded = if indexed { completed.len() as i32 } else { done.len() as i32 }.max(before.succeeded.unwrap_or(0));
    let failed = (of_phase("Failed").len() as i32).max(before.failed.unwrap_or(0));
    let active: Vec<_> = owned
        .iter()
        .filter(|pod| !pods::is_going(pod) && !matches!(pods::phase(pod), "Failed" | "Succeeded"))
        .collect();
    let restarts: i32 = active
        .iter()
        .flat_map(|pod| pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()))
        .map(|status| status.restart_count)
        .sum();
    let parallelism = spec.parallelism.unwrap_or(1).max(0);
    let start = before.start_time.as_ref().map_or(now, |t| t.0);

    let too_often = failed + restarts > spec.backoff_limit.unwrap_or(6);
    let age = now.duration_since(start).as_secs();
    let too_long = spec.active_deadline_seconds.is_some_and(|limit| !suspended && age >= limit);
    let enough = match spec.completions {
        Some(completions) => succeeded >= completions,
        // A work queue: one success, and all pods have ended.
        None => succeeded > 0 && active.is_empty(),
    };
    let at = stamp(now);
    let condition_of = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastProbeTime": at, "lastTransitionTime": at})
    };
    let mut conditions = serde_json::to_value(&before.conditions).ok().filter(Value::is_array).unwrap_or(json!([]));
    let push = |conditions: &mut Value, condition: Value| {
        if let Some(list) = conditions.as_array_mut() {
            list.retain(|known| known["type"] != condition["type"]);
            list.push(condition);
        }
    };
    let mut left = active.len() as i32;
    let mut ended = Value::Null;
    if too_often || too_long {
        let (reason, message) = if too_often {
            ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        } else {
            ("DeadlineExceeded", "Job was active longer than specified deadline")
        };
        decision.delete = active.iter().map(|pod| Arc::clone(pod)).collect();
        left = 0;
        push(&mut conditions, condition_of("FailureTarget", "True", reason, message));
        push(&mut conditions, condition_of("Failed", "True", reason, message));
        decision.news = Some((reason, message));
    } else if enough {
        // What still runs beyond enough goes.
        decision.delete = active.iter().map(|pod| Arc::clone(pod)).collect();
        left = 0;
        let message = "Reached expected number of succeeded pods";
        push(&mut conditions, condition_of("SuccessCriteriaMet", "True", "CompletionsReached", message));
        push(&mut conditions, condition_of("Complete", "True", "CompletionsReached", message));
        ended = json!(at);
        decision.news = Some(("Completed", "Job completed"));
    } else if suspended {
        decision.delete = active.iter().map(|pod| Arc::clone(pod)).collect();
        left = 0;
        let known = before.conditions.iter().flatten().any(|c| c.type_ == "Suspended" && c.status == "True");
        if !known {
            push(&mut conditions, condition_of("Suspended", "True", "JobSuspended", "Job suspended"));
            decision.news = Some(("Suspended", "Job suspended"));
        }
    } else {
        if before.conditions.iter().flatten().any(|c| c.type_ == "Suspended" && c.status == "True") {
            push(&mut conditions, condition_of("Suspended", "False", "JobResumed", "Job resumed"));
            decision.news = Some(("Resumed", "Job resumed"));
        }
        let wanted = match spec.completions {
            Some(completions) => parallelism.min(completions - succeeded),
            None if succeeded > 0 => left,
            None => parallelism,
        };
        let missing = (wanted - left).max(0);
        let last_failure = of_phase("Failed").iter().filter_map(|pod| ended_at(pod)).max();
        let backoff = FIRST.checked_shl((failed - 1).clamp(0, 16) as u32).unwrap_or(LONGEST).min(LONGEST);
        let rest = match last_failure {
            Some(at) if failed > 0 => backoff - now.duration_since(at).as_secs(),
            _ => 0,
        };
        if missing > 0 && rest > 0 {
            decision.wait = Some(rest);
        } else if indexed {
            let busy: BTreeSet<i32> = active.iter().filter_map(|pod| index(pod)).collect();
            let free = (0..spec.completions.unwrap_or(0)).filter(|i| !completed.contains(i) && !busy.contains(i));
            decision.create = free.take(missing as usize).map(Some).collect();
        } else {
            decision.create = vec![None; missing as usize];
        }
        left += decision.create.len() as i32;
        if wanted < active.len() as i32 {
            decision.delete = active[wanted.max(0) as usize..].iter().map(|pod| Arc::clone(pod)).collect();
            left = wanted;
        }
        if let Some(limit) = spec.active_deadline_seconds {
            let until = limit - age;
            decision.wait = Some(decision.wait.map_or(until, |wait| wait.min(until)));
        }
    }
    let ready = active.iter().filter(|pod| condition(pod, "Ready")).count() as i32;
    let number = |n: i32| if n == 0 { Value::Null } else { json!(n) };
    let mut status = json!({
        "startTime": if suspended { Value::Null } else { json!(stamp(start)) },
        "active": number(left),
        "ready": ready.min(left),
        "terminating": owned.iter().filter(|p| pods::is_going(p) && pods::phase(p) == "Running").count(),
        "succeeded": number(succeeded),
        "failed": number(failed),
        "uncountedTerminatedPods": {},
        "conditions": if conditions.as_array().is_some_and(Vec::is_empty) { Value::Null } else { conditions },
    });
    if indexed {
        status["completedIndexes"] = json!(ranges(&completed));
    }
    if !ended.is_null() {
        status["completionTime"] = ended;
    }
    decision.status = Some(status);
    decision
}

/// `0,2-4`.
fn ranges(of: &BTreeSet<i32>) -> String {
    let mut parts: Vec<(i32, i32)> = Vec::new();
    for index in of {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => parts.push((*index, *index)),
        }
    }
    let text = |(from, to): &(i32, i32)| if from == to { from.to_string() } else { format!("{from}-{to}") };
    parts.iter().map(text).collect::<Vec<_>>().join(",")
}

fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    statuses.filter_map(|s| Some(s.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0)).max()
}

fn pod(job: &Job, index: Option<i32>) -> Pod {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let mut pod = pods::from_template(&template, job);
    let labels = pod.metadata.labels.get_or_insert_default();
    let (name, uid) = (job.name_any(), job.uid().unwrap_or_default());
    for (label, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        labels.entry(label.to_owned()).or_insert_with(|| value.clone());
    }
    let Some(index) = index else { return pod };
    labels.insert(INDEX.to_owned(), index.to_string());
    pod.metadata.annotations.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    pod.metadata.generate_name = Some(format!("{name}-{index}-"));
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(format!("{name}-{index}"));
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let variable =
            EnvVar { name: "JOB_COMPLETION_INDEX".to_owned(), value: Some(index.to_string()), value_from: None };
        container.env.get_or_insert_default().push(variable);
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(spec: Value) -> Job {
        let mut value = json!({"metadata": {"name": "j", "uid": "u"},
            "spec": {"template": {"spec": {"containers": [{"name": "c"}]}}, "completions": 1, "parallelism": 1}});
        for (field, more) in spec.as_object().unwrap() {
            value["spec"][field] = more.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn member(phase: &str, index: Option<i32>) -> Arc<Pod> {
        let annotations = index.map(|index| json!({INDEX: index.to_string()}));
        let value = json!({"metadata": {"name": "p", "annotations": annotations}, "status": {"phase": phase}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn ends(decision: &Decision) -> Vec<String> {
        let status = decision.status.as_ref().unwrap();
        let conditions = status["conditions"].as_array().into_iter().flatten();
        conditions.map(|c| c["type"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn so_many_pods_until_it_is_done() {
        let two = json!({"completions": 2, "parallelism": 2});
        let indexed = json!({"completions": 3, "parallelism": 2, "completionMode": "Indexed"});
        let (run, done, failed) = ("Running", "Succeeded", "Failed");
        /// A Job's spec, its pods, how many are created, how many go, and the conditions after that.
        type Case = (Value, Vec<Arc<Pod>>, usize, usize, &'static [&'static str]);
        let cases: [Case; 9] = [
            (json!({}), vec![], 1, 0, &[]),
            (two.clone(), vec![], 2, 0, &[]),
            (two.clone(), vec![member(run, None), member(done, None)], 0, 0, &[]),
            (two, vec![member(done, None), member(done, None)], 0, 0, &["SuccessCriteriaMet", "Complete"]),
            (indexed.clone(), vec![member(done, Some(0))], 2, 0, &[]),
            (indexed, vec![member(done, Some(0)), member(run, Some(2))], 1, 0, &[]),
            (json!({"backoffLimit": 0}), vec![member(failed, None)], 0, 0, &["FailureTarget", "Failed"]),
            (json!({"backoffLimit": 1}), vec![member(failed, None)], 1, 0, &[]),
            (json!({"suspend": true}), vec![member(run, None)], 0, 1, &["Suspended"]),
        ];
        for (spec, pods, create, delete, conditions) in cases {
            let decision = decide(&job(spec.clone()), &pods, Timestamp::now());
            assert_eq!((decision.create.len(), decision.delete.len()), (create, delete), "{spec}");
            assert_eq!(ends(&decision), conditions, "{spec}");
        }
    }

    #[test]
    fn indexes_read_as_ranges() {
        assert_eq!(ranges(&BTreeSet::from([0, 2, 3, 4])), "0,2-4");
        assert_eq!(ranges(&BTreeSet::new()), "");
    }
}
