//! Rebalancers: somebody asks that workloads are divided afresh (Karmada v1.18.2's workload rebalancer controller).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use stolos_cluster::objects;
use stolos_k8s::meta;

use super::Hub;
use crate::model::{self, ObservedWorkload, RebalancerSpec, RebalancerStatus, WorkloadRebalancer, WorkloadReference};
use crate::name;
use crate::queue::{Again, Trouble};

/// Looks at one rebalancer.
pub(super) async fn look(hub: Arc<Hub>, name: String) -> Result<Again, Trouble> {
    let mirror = &hub.own.rebalancers;
    let Some(object) = mirror.get("", &name) else { return Ok(None) };
    if meta::deletion_timestamp(&object).is_some() {
        return Ok(None);
    }
    let (rebalancer, _) = model::read::<WorkloadRebalancer>(&object)?;
    let now = Timestamp::now();
    let WorkloadRebalancer { metadata, spec, status, .. } = rebalancer;
    if status.observed_generation == metadata.generation {
        return match remaining(&spec, &status, now) {
            Some(left) if left.is_zero() => {
                objects::delete(&hub.client, &mirror.resource, None, &name, Some(&metadata.uid)).await?;
                Ok(None)
            }
            left => Ok(left),
        };
    }
    let asked = metadata.creation_timestamp.unwrap_or(now);
    let mut observed = Vec::new();
    for workload in asked_for(&spec) {
        let known = status.observed_workloads.iter().find(|known| known.workload == workload);
        observed.push(match known.filter(|known| known.result == "Successful") {
            Some(known) => known.clone(),
            None => ask(&hub, workload, asked).await?,
        });
    }
    let status = RebalancerStatus {
        observed_workloads: observed,
        observed_generation: metadata.generation,
        finish_time: Some(now),
    };
    hub.put_status(mirror, &object, &serde_json::to_value(&status)?).await?;
    Ok(remaining(&spec, &status, now))
}

/// The workloads of a rebalancer, each once.
fn asked_for(spec: &RebalancerSpec) -> Vec<WorkloadReference> {
    let mut all = spec.workloads.clone();
    all.sort();
    all.dedup();
    all
}

/// For how long one that is done stays, if it goes by itself.
fn remaining(spec: &RebalancerSpec, status: &RebalancerStatus, now: Timestamp) -> Option<Duration> {
    let stays = Duration::from_secs(u64::try_from(spec.ttl_seconds_after_finished?).unwrap_or(0));
    let since = Duration::try_from(now.duration_since(status.finish_time?)).unwrap_or_default();
    Some(stays.saturating_sub(since))
}

/// Asks for one workload.
async fn ask(hub: &Hub, workload: WorkloadReference, asked: Timestamp) -> Result<ObservedWorkload, Trouble> {
    let key = (workload.namespace.clone(), name::binding(&workload.kind, &workload.name));
    let binding = hub.binding(&key).filter(|(_, binding)| {
        let of = &binding["spec"]["resource"];
        of["kind"] == workload.kind && of["apiVersion"] == workload.api_version
    });
    let Some((mirror, binding)) = binding else {
        let (result, reason) = ("Failed".to_owned(), "ReferencedBindingNotFound".to_owned());
        return Ok(ObservedWorkload { workload, result, reason });
    };
    let done =
        || ObservedWorkload { workload: workload.clone(), result: "Successful".to_owned(), reason: String::new() };
    let time = |value: &serde_json::Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let known = time(&binding["spec"]["rescheduleTriggeredAt"]);
    if known.is_some_and(|known| known >= asked) {
        // By this one, before it was written down here.
        return Ok(done());
    }
    // Times are of whole seconds; what has been scheduled since was not divided afresh.
    let last = time(&binding["status"]["lastScheduledTime"]);
    let later = last.and_then(|last| last.checked_add(Duration::from_secs(1)).ok());
    let asked = later.map_or(asked, |later| later.max(asked));
    let mut after = serde_json::Value::clone(&binding);
    after["spec"]["rescheduleTriggeredAt"] = serde_json::to_value(asked)?;
    hub.change(&mirror, &binding, &after).await?;
    Ok(done())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_done_goes_when_its_time_is_over() {
        let at = |seconds| Timestamp::from_second(1_700_000_000 + seconds).unwrap();
        let left = |ttl, done: Option<i64>, now| {
            let spec = RebalancerSpec { ttl_seconds_after_finished: ttl, ..RebalancerSpec::default() };
            let status = RebalancerStatus { finish_time: done.map(at), ..RebalancerStatus::default() };
            remaining(&spec, &status, at(now)).map(|left| left.as_secs())
        };
        assert_eq!(left(None, Some(0), 900), None);
        assert_eq!(left(Some(60), None, 900), None);
        assert_eq!([left(Some(60), Some(0), 10), left(Some(60), Some(0), 60)], [Some(50), Some(0)]);
        // A clock that is behind.
        assert_eq!(left(Some(60), Some(100), 0), Some(60));
    }

    #[test]
    fn each_workload_is_asked_for_once() {
        let named = |name: &str| WorkloadReference { name: name.to_owned(), ..WorkloadReference::default() };
        let spec =
            RebalancerSpec { workloads: vec![named("b"), named("a"), named("b")], ttl_seconds_after_finished: None };
        assert_eq!(asked_for(&spec), [named("a"), named("b")]);
    }
}
