//! CronJobs: Jobs at their time.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};

use super::schedule::Schedule;
use super::{Later, Trouble, by_controller, each, gone, is_code, owned_by, put_status, stamp};
use crate::cluster::Shared;

const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let cron = shared.caches.cronjobs.list();
    if cron.is_empty() {
        return Ok(());
    }
    let mut owned = by_controller(shared.caches.jobs.list());
    let work = cron.into_iter().filter(|cron| cron.metadata.deletion_timestamp.is_none()).map(|cron| {
        let jobs = cron.uid().and_then(|uid| owned.remove(&uid)).unwrap_or_default();
        carry_out(&shared, cron, jobs)
    });
    each(work).await?;
    // Schedules have no finer step than the minute.
    Err(Later::seconds(60 - Timestamp::now().as_second().rem_euclid(60)))
}

async fn carry_out(shared: &Shared, cron: Arc<CronJob>, jobs: Vec<Arc<Job>>) -> Result<(), Trouble> {
    let namespace = cron.namespace().unwrap_or_default();
    let api: Api<Job> = Api::namespaced(shared.client.clone(), &namespace);
    let mut decision = decide(&cron, &jobs, Timestamp::now());
    if let Some((reason, message)) = decision.trouble.take() {
        shared.events.warning(cron.as_ref(), reason, message);
    }
    for name in &decision.delete {
        gone(api.delete(name, &DeleteParams::background()).await)?;
        shared.events.normal(cron.as_ref(), "SuccessfulDelete", format!("Deleted job {name}"));
    }
    if let Some(due) = decision.create {
        let job = job(&cron, due)?;
        match api.create(&PostParams::default(), &job).await {
            Ok(job) => {
                shared.events.normal(cron.as_ref(), "SuccessfulCreate", format!("Created job {}", job.name_any()));
                let reference = json!({"apiVersion": "batch/v1", "kind": "Job", "namespace": namespace,
                    "name": job.name_any(), "uid": job.uid(), "resourceVersion": job.resource_version()});
                if let Some(active) = decision.status["active"].as_array_mut() {
                    active.push(reference);
                } else {
                    decision.status["active"] = json!([reference]);
                }
                shared.caches.jobs.wrote(job);
            }
            Err(error) if is_code(&error, 409) => {}
            Err(error) => {
                shared.events.warning(cron.as_ref(), "FailedCreate", format!("Error creating job: {error}"));
                return Err(error.into());
            }
        }
        decision.status["lastScheduleTime"] = json!(stamp(due));
    }
    put_status(shared, &shared.caches.cronjobs, cron.as_ref(), &cron.status, decision.status).await
}

#[derive(Default)]
struct Decision {
    create: Option<Timestamp>,
    delete: Vec<String>,
    status: Value,
    trouble: Option<(&'static str, String)>,
}

fn end(job: &Job) -> Option<&str> {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut ends = conditions.filter(|c| c.status == "True").map(|c| c.type_.as_str());
    ends.find(|kind| matches!(*kind, "Complete" | "Failed"))
}

fn decide(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let spec = &cron.spec;
    let before = cron.status.clone().unwrap_or_default();
    let active: Vec<_> = jobs.iter().filter(|job| end(job).is_none()).collect();
    let references: Vec<_> = active
        .iter()
        .map(|job| {
            json!({"apiVersion": "batch/v1", "kind": "Job", "namespace": job.namespace(), "name": job.name_any(),
                "uid": job.uid(), "resourceVersion": job.resource_version()})
        })
        .collect();
    let finished = |kind: &str| {
        let mut of_kind: Vec<_> = jobs.iter().filter(|job| end(job) == Some(kind)).collect();
        of_kind.sort_by_key(|job| job.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0));
        of_kind
    };
    let (good, bad) = (finished("Complete"), finished("Failed"));
    for (of_kind, limit) in
        [(&good, spec.successful_jobs_history_limit.unwrap_or(3)), (&bad, spec.failed_jobs_history_limit.unwrap_or(1))]
    {
        let excess = of_kind.len().saturating_sub(limit.max(0) as usize);
        decision.delete.extend(of_kind[..excess].iter().map(|job| job.name_any()));
    }
    let succeeded = good.iter().filter_map(|job| job.status.as_ref()?.completion_time.as_ref()).map(|t| t.0).max();
    let succeeded = succeeded.max(before.last_successful_time.as_ref().map(|t| t.0));
    // The same jobs in the same order are no news, whatever their revisions.
    let same = before.active.as_ref().is_some_and(|known| {
        known.len() == active.len() && known.iter().zip(&active).all(|(known, job)| known.uid == job.uid())
    });
    decision.status = json!({
        "active": if same { json!(before.active) } else if references.is_empty() { Value::Null } else { json!(references) },
        "lastSuccessfulTime": succeeded.map(stamp),
    });
    if spec.suspend == Some(true) {
        return decision;
    }
    let zone = match spec.time_zone.as_deref().map(TimeZone::get) {
        None => TimeZone::UTC,
        Some(Ok(zone)) => zone,
        Some(Err(error)) => {
            decision.trouble = Some(("UnknownTimeZone", format!("invalid timeZone: {error}")));
            return decision;
        }
    };
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(error) => {
            decision.trouble =
                Some(("UnparseableSchedule", format!("unparseable schedule {:?}: {error}", spec.schedule)));
            return decision;
        }
    };
    let made = cron.creation_timestamp().map_or(now, |t| t.0);
    let last = before.last_schedule_time.as_ref().map_or(made, |t| t.0);
    let Some(due) = schedule.last_due(last, now, &zone) else { return decision };
    if spec.starting_deadline_seconds.is_some_and(|limit| now.duration_since(due).as_secs() > limit) {
        return decision;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => return decision,
        Some("Replace") => decision.delete.extend(active.iter().map(|job| job.name_any())),
        _ => {}
    }
    decision.create = Some(due);
    decision
}

fn job(cron: &CronJob, due: Timestamp) -> Result<Job, Trouble> {
    let template = cron.spec.job_template.clone();
    let mut job = Job { metadata: template.metadata.unwrap_or_default(), spec: template.spec, status: None };
    job.metadata.name = Some(format!("{}-{}", cron.name_any(), due.as_second() / 60));
    job.metadata.namespace = cron.namespace();
    job.metadata.owner_references = Some(vec![owned_by("batch/v1", "CronJob", cron)]);
    job.metadata.annotations.get_or_insert_default().insert(SCHEDULED.to_owned(), stamp(due));
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let now: Timestamp = "2026-11-21T12:00:30Z".parse().unwrap();
        let cron = |more: Value| -> CronJob {
            let mut value = json!({"metadata": {"name": "c", "uid": "u", "creationTimestamp": "2026-11-21T11:00:00Z"},
                "spec": {"schedule": "*/5 * * * *", "jobTemplate": {}}});
            for (field, more) in more.as_object().unwrap() {
                value["spec"][field] = more.clone();
            }
            serde_json::from_value(value).unwrap()
        };
        let job = |name: &str, end: &str| -> Arc<Job> {
            let conditions = if end.is_empty() { json!([]) } else { json!([{"type": end, "status": "True"}]) };
            let value = json!({"metadata": {"name": name, "uid": name}, "status": {"conditions": conditions}});
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let due = "2026-11-21T12:00:00Z".parse::<Timestamp>().unwrap();
        let cases = [
            (json!({}), vec![], Some(due), vec![]),
            (json!({"suspend": true}), vec![], None, vec![]),
            (json!({"startingDeadlineSeconds": 10}), vec![], None, vec![]),
            (json!({"concurrencyPolicy": "Forbid"}), vec![job("a", "")], None, vec![]),
            (json!({"concurrencyPolicy": "Replace"}), vec![job("a", "")], Some(due), vec!["a"]),
            (json!({"failedJobsHistoryLimit": 0}), vec![job("a", "Failed")], Some(due), vec!["a"]),
            (json!({"timeZone": "Nowhere/Land"}), vec![], None, vec![]),
        ];
        for (spec, jobs, create, delete) in cases {
            let decision = decide(&cron(spec.clone()), &jobs, now);
            assert_eq!(
                (decision.create, decision.delete),
                (create, delete.iter().map(|d| (*d).to_owned()).collect()),
                "{spec}"
            );
        }
    }
}
