//! HorizontalPodAutoscalers (`autoscaling/v2`): as many pods as what is measured of them asks for.
//!
//! Kubernetes' algorithm: for each metric `⌈current × measured / target⌉`, within a tenth of the target nothing, the
//! largest of them, no faster than `behavior` lets, between the bounds. A lab measures the time of processors only, so
//! other metrics are told to be missing, as Kubernetes tells it. Nobody is watched: every [`ROUND`] all are looked at.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stolos_k8s::quantity::Quantity;

use super::{Trouble, condition, is_code, stamp};
use crate::cluster::Shared;

/// How often they are looked at: `--horizontal-pod-autoscaler-sync-period`.
const ROUND: Duration = Duration::from_secs(15);
/// What does not matter: `--horizontal-pod-autoscaler-tolerance`.
const TOLERANCE: f64 = 0.1;
/// How long a lower number is slept over unless `behavior` says it.
const DOWN_WINDOW: u64 = 300;

/// What was thought of a target before, newest last.
type Past = Vec<(Instant, i64)>;

/// Runs them until the cluster stops.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut past: HashMap<String, Past> = HashMap::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(ROUND) => {}
            () = shared.stop.asked() => return,
        }
        if let Err(error) = look(&shared, &mut past).await {
            tracing::debug!(cluster = %shared.name, %error, "cannot look at the autoscalers, trying again");
        }
    }
}

async fn get(shared: &Shared, path: &str) -> Result<Value, kube::Error> {
    let request = http::Request::get(path).body(Vec::new()).map_err(|error| kube::Error::Service(error.into()))?;
    shared.client.request(request).await
}

async fn merge(shared: &Shared, path: &str, patch: &Value) -> Result<Value, Trouble> {
    let request = http::Request::patch(path).header("content-type", "application/merge-patch+json");
    Ok(shared.client.request(request.body(patch.to_string().into_bytes())?).await?)
}

async fn look(shared: &Shared, past: &mut HashMap<String, Past>) -> Result<(), Trouble> {
    let all = get(shared, "/apis/autoscaling/v2/horizontalpodautoscalers").await?;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    past.retain(|uid, _| all.iter().any(|scaler| scaler["metadata"]["uid"] == uid.as_str()));
    for scaler in &all {
        let uid = text(&scaler["metadata"]["uid"]);
        if let Err(error) = carry_out(shared, scaler, past.entry(uid).or_default()).await {
            tracing::debug!(cluster = %shared.name, %error, "cannot carry out an autoscaler, trying again");
        }
    }
    Ok(())
}

/// The path of a target, of the kinds that have a scale here.
fn target(scaler: &Value) -> Option<String> {
    let reference = &scaler["spec"]["scaleTargetRef"];
    let plural = match (reference["apiVersion"].as_str()?, reference["kind"].as_str()?) {
        ("apps/v1", "Deployment") => "deployments",
        ("apps/v1", "ReplicaSet") => "replicasets",
        ("apps/v1", "StatefulSet") => "statefulsets",
        _ => return None,
    };
    let namespace = scaler["metadata"]["namespace"].as_str()?;
    Some(format!("/apis/apps/v1/namespaces/{namespace}/{plural}/{}/scale", reference["name"].as_str()?))
}

async fn carry_out(shared: &Shared, scaler: &Value, past: &mut Past) -> Result<(), Trouble> {
    let namespace = scaler["metadata"]["namespace"].as_str().unwrap_or_default();
    let name = scaler["metadata"]["name"].as_str().unwrap_or_default();
    let own = format!("/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers/{name}/status");
    let path = target(scaler);
    let scale = match &path {
        Some(path) => get(shared, path).await.map_err(|error| error.to_string()),
        None => Err("no matches for the kind of the target".to_owned()),
    };
    let (Some(path), Ok(scale)) = (path, &scale) else {
        let why = scale.as_ref().err().cloned().unwrap_or_default();
        let message = format!("the HPA controller was unable to get the target's current scale: {why}");
        let told = conditions(scaler, &[("AbleToScale", false, "FailedGetScale", message)]);
        return put(shared, &own, scaler, json!({"conditions": told})).await;
    };
    let usage = get(shared, &format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods")).await;
    let usage = match usage {
        Ok(usage) => usage["items"].as_array().cloned().unwrap_or_default(),
        Err(error) if is_code(&error, 404) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let pods = chosen(shared, namespace, scale["status"]["selector"].as_str().unwrap_or_default());
    let current = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    let decision = decide(scaler, current, &pods, &usage, past, Instant::now());
    let mut status = json!({
        "observedGeneration": scaler["metadata"]["generation"],
        "currentReplicas": scale["status"]["replicas"],
        "desiredReplicas": decision.wanted,
        "currentMetrics": decision.metrics,
        "conditions": conditions(scaler, &decision.told),
    });
    if decision.wanted != current {
        merge(shared, &path, &json!({"spec": {"replicas": decision.wanted}})).await?;
        status["lastScaleTime"] = json!(stamp(jiff::Timestamp::now()));
        let text = format!("New size: {}; reason: {}", decision.wanted, decision.reason);
        if let Ok(object) =
            serde_json::from_value::<k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler>(scaler.clone())
        {
            shared.events.normal(&object, "SuccessfulRescale", text);
        }
    }
    put(shared, &own, scaler, status).await
}

async fn put(shared: &Shared, path: &str, scaler: &Value, status: Value) -> Result<(), Trouble> {
    if super::differs(&scaler["status"], &status) {
        merge(shared, path, &json!({"status": status})).await?;
    }
    Ok(())
}

/// A pod of a target: its name, whether it is ready, and what each container asks of the processors, in billionths.
struct Chosen {
    name: String,
    ready: bool,
    asked: Vec<(String, Option<i128>)>,
}

fn chosen(shared: &Shared, namespace: &str, selector: &str) -> Vec<Chosen> {
    let Ok(selector) = stolos_k8s::LabelSelector::parse(selector) else { return Vec::new() };
    let pods = shared.caches.pods.list().into_iter().filter(|pod| {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        pod.metadata.namespace.as_deref() == Some(namespace) && selector.matches(&labels) && super::is_active(pod)
    });
    let asked = |container: &k8s_openapi::api::core::v1::Container| {
        let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let cpu = requests.and_then(|requests| requests.get("cpu"));
        let cpu = cpu.and_then(|cpu| Quantity::parse(&cpu.0).ok()).map(|cpu| cpu.nano());
        (container.name.clone(), cpu)
    };
    pods.map(|pod| Chosen {
        name: pod.metadata.name.clone().unwrap_or_default(),
        ready: condition(&pod, "Ready"),
        asked: pod.spec.iter().flat_map(|spec| &spec.containers).map(asked).collect(),
    })
    .collect()
}

type Told = (&'static str, bool, &'static str, String);

struct Decision {
    wanted: i64,
    metrics: Vec<Value>,
    told: Vec<Told>,
    reason: String,
}

/// What one metric asks for: how many pods, what to show, what it is called.
fn proposal(metric: &Value, current: i64, pods: &[Chosen], usage: &[Value]) -> Result<(i64, Value, String), String> {
    let kind = metric["type"].as_str().unwrap_or_default();
    let (field, source) = match kind {
        "Resource" => ("resource", &metric["resource"]),
        "ContainerResource" => ("containerResource", &metric["containerResource"]),
        other => return Err(format!("metrics of type {other} are not known here")),
    };
    let (resource, only) = (source["name"].as_str().unwrap_or_default(), source["container"].as_str());
    let nothing =
        || format!("unable to get metrics for resource {resource}: no metrics returned from resource metrics API");
    if resource != "cpu" {
        return Err(nothing());
    }
    let by_share = source["target"]["type"] == "Utilization";
    // What is used, what was asked for, and how many pods these are of; of those that are ready and measured.
    let mut known = Sum::default();
    let (mut starting, mut unmeasured) = (Sum::default(), Sum::default());
    for pod in pods {
        let measured = usage.iter().find(|usage| usage["metadata"]["name"] == pod.name.as_str());
        let containers = measured.and_then(|measured| measured["containers"].as_array());
        let counts = |name: &str| {
            // Sidecars are not measured, so what they ask for does not count either.
            only.is_none_or(|only| only == name)
                && containers.is_none_or(|all| all.iter().any(|container| container["name"] == name))
        };
        let mut one = Sum { pods: 1, ..Sum::default() };
        for (name, wants) in pod.asked.iter().filter(|(name, _)| counts(name)) {
            one.asked += match wants {
                Some(wants) => *wants,
                None if by_share => {
                    return Err(format!(
                        "failed to get cpu utilization: missing request for cpu in container {name} of Pod {}",
                        pod.name
                    ));
                }
                None => 0,
            };
        }
        for container in containers.into_iter().flatten() {
            if counts(container["name"].as_str().unwrap_or_default()) {
                let amount = container["usage"]["cpu"].as_str().and_then(|cpu| Quantity::parse(cpu).ok());
                one.used += amount.map_or(0, |amount| amount.nano());
            }
        }
        match (pod.ready, containers) {
            (true, Some(_)) => known.add(&one),
            (true, None) => unmeasured.add(&one),
            (false, _) => starting.add(&one),
        }
    }
    if known.pods == 0 {
        return Err(nothing());
    }
    let average = known.used / known.pods;
    let mut now =
        json!({"averageValue": Quantity::parse(&format!("{average}n")).map(|q| q.to_string()).unwrap_or_default()});
    let share = source["target"]["averageUtilization"].as_i64().unwrap_or(100).max(1);
    let value = source["target"]["averageValue"].as_str().and_then(|text| Quantity::parse(text).ok());
    let value = value.map_or(1, |value| value.nano()).max(1);
    #[allow(clippy::cast_precision_loss, reason = "a ratio of what is measured roughly")]
    let ratio = |of: &Sum| match by_share {
        true => (of.used * 100 / of.asked.max(1)) as f64 / share as f64,
        false => of.used as f64 / of.pods as f64 / value as f64,
    };
    let what = if by_share {
        now["averageUtilization"] = json!(i64::try_from(known.used * 100 / known.asked.max(1)).unwrap_or(i64::MAX));
        "cpu resource utilization (percentage of request)"
    } else {
        "cpu resource"
    };
    let mut shown = json!({"type": kind, field: {"name": resource, "current": now}});
    if let Some(only) = only {
        shown[field]["container"] = json!(only);
    }
    let measured = ratio(&known);
    // Pods that are starting, or are not measured, are thought to use what speaks against a change.
    if measured > 1.0 {
        known.add(&Sum { used: 0, ..starting });
        known.add(&Sum { used: 0, ..unmeasured });
    } else {
        let used = if by_share { unmeasured.asked * i128::from(share.max(100)) / 100 } else { value * unmeasured.pods };
        known.add(&Sum { used, ..unmeasured });
    }
    let ratio = ratio(&known);
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "counts of pods are small")]
    let wanted = (ratio * known.pods as f64).ceil() as i64;
    let against =
        (measured > 1.0 && (ratio < 1.0 || wanted < current)) || (measured < 1.0 && (ratio > 1.0 || wanted > current));
    let wanted = if (ratio - 1.0).abs() <= TOLERANCE || against { current } else { wanted };
    let word = if wanted < current { "All metrics below target".to_owned() } else { format!("{what} above target") };
    Ok((wanted, shown, word))
}

/// Of some pods: how many they are, what they use and what they asked for, in billionths of a processor.
#[derive(Clone, Copy, Default)]
struct Sum {
    pods: i128,
    used: i128,
    asked: i128,
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.pods += other.pods;
        self.used += other.used;
        self.asked += other.asked;
    }
}

/// How far `behavior` lets a number go in one round: by the policy that lets it go furthest, or least, or not at all.
fn furthest(rules: &Value, current: i64, up: bool) -> i64 {
    let policies = rules["policies"].as_array().cloned().unwrap_or_else(|| match up {
        true => vec![json!({"type": "Pods", "value": 4}), json!({"type": "Percent", "value": 100})],
        false => vec![json!({"type": "Percent", "value": 100})],
    });
    let steps = policies.iter().map(|policy| {
        let value = policy["value"].as_i64().unwrap_or(0);
        match policy["type"].as_str() {
            Some("Percent") => (current * value + 99) / 100,
            _ => value,
        }
    });
    let step = match rules["selectPolicy"].as_str() {
        Some("Disabled") => Some(0),
        Some("Min") => steps.min(),
        _ => steps.max(),
    };
    let step = step.unwrap_or(0);
    if up { current + step } else { (current - step).max(0) }
}

/// What is looked at where nothing is said.
fn usual() -> Vec<Value> {
    let target = json!({"type": "Utilization", "averageUtilization": 80});
    vec![json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})]
}

fn decide(scaler: &Value, current: i64, pods: &[Chosen], usage: &[Value], past: &mut Past, now: Instant) -> Decision {
    let spec = &scaler["spec"];
    let least = spec["minReplicas"].as_i64().unwrap_or(1);
    let most = spec["maxReplicas"].as_i64().unwrap_or(least).max(least);
    let able = |reason, message: &str| ("AbleToScale", true, reason, message.to_owned());
    let mut decision = Decision { wanted: current, metrics: Vec::new(), told: Vec::new(), reason: String::new() };
    if current == 0 {
        let message = "scaling is disabled since the replica count of the target is zero";
        decision.told.push(able("SucceededGetScale", "the HPA controller was able to get the target's current scale"));
        decision.told.push(("ScalingActive", false, "ScalingDisabled", message.to_owned()));
        return decision;
    }
    let metrics = spec["metrics"].as_array().filter(|metrics| !metrics.is_empty()).cloned().unwrap_or_else(usual);
    let (mut best, mut failed): (Option<(i64, String)>, Option<String>) = (None, None);
    for metric in &metrics {
        match proposal(metric, current, pods, usage) {
            Ok((wanted, shown, reason)) => {
                decision.metrics.push(shown);
                if best.as_ref().is_none_or(|(known, _)| wanted > *known) {
                    best = Some((wanted, reason));
                }
            }
            Err(why) => failed = failed.or(Some(why)),
        }
    }
    let active = "the HPA was able to successfully calculate a replica count from what is measured";
    // What is not known might ask for more: then nothing is taken away (as Kubernetes has it).
    let (proposed, reason) = match (best, failed) {
        (Some((wanted, reason)), Some(_)) if wanted > current => (wanted, reason),
        (Some((wanted, reason)), None) => (wanted, reason),
        (_, why) => {
            let why = why.unwrap_or_default();
            decision
                .told
                .push(able("SucceededGetScale", "the HPA controller was able to get the target's current scale"));
            let message = format!("the HPA was unable to compute the replica count: {why}");
            decision.told.push(("ScalingActive", false, "FailedGetResourceMetric", message));
            let bounded = current.clamp(least, most);
            decision.wanted = bounded;
            decision.reason = if bounded < current {
                "Current number of replicas above Spec.MaxReplicas"
            } else {
                "Current number of replicas below Spec.MinReplicas"
            }
            .to_owned();
            return decision;
        }
    };
    let window = |rules: &Value, default: u64| rules["stabilizationWindowSeconds"].as_u64().unwrap_or(default);
    let (up, down) = (&spec["behavior"]["scaleUp"], &spec["behavior"]["scaleDown"]);
    let (up_window, down_window) = (window(up, 0), window(down, DOWN_WINDOW));
    past.retain(|(at, _)| now.duration_since(*at).as_secs() <= up_window.max(down_window));
    past.push((now, proposed));
    let within =
        |seconds: u64| past.iter().filter(move |(at, _)| now.duration_since(*at).as_secs() <= seconds).map(|(_, n)| *n);
    let lowest = within(up_window).min().unwrap_or(proposed);
    let highest = within(down_window).max().unwrap_or(proposed);
    let settled = if current < lowest {
        lowest
    } else if current > highest {
        highest
    } else {
        current
    };
    let message = if settled == proposed {
        "recommended size matches current size"
    } else {
        "recent recommendations were higher than current one, applying the highest recent recommendation"
    };
    decision.told.push(match settled == proposed {
        true => able("ReadyForNewScale", message),
        false => able("ScaleDownStabilized", message),
    });
    decision.told.push(("ScalingActive", true, "ValidMetricFound", active.to_owned()));
    let fastest = furthest(if settled > current { up } else { down }, current, settled > current);
    let (wanted, limit) = if settled > current && settled > fastest.min(most) {
        let why = match fastest < most {
            true => ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"),
            false => ("TooManyReplicas", "the desired replica count is more than the maximum replica count"),
        };
        (fastest.min(most), Some(why))
    } else if settled < current && settled < fastest.max(least) {
        let why = match fastest > least {
            true => ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"),
            false => ("TooFewReplicas", "the desired replica count is less than the minimum replica count"),
        };
        (fastest.max(least), Some(why))
    } else if settled < least {
        (least, Some(("TooFewReplicas", "the desired replica count is less than the minimum replica count")))
    } else {
        (settled, None)
    };
    decision.wanted = wanted.clamp(least, most);
    decision.told.push(match limit {
        Some((reason, message)) => ("ScalingLimited", true, reason, message.to_owned()),
        None => {
            let message = "the desired count is within the acceptable range";
            ("ScalingLimited", false, "DesiredWithinRange", message.to_owned())
        }
    });
    decision.reason = reason;
    decision
}

/// The conditions with what is new in them; a time changes with its status only.
fn conditions(scaler: &Value, told: &[Told]) -> Value {
    let mut all = scaler["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for (kind, holds, reason, message) in told {
        let status = if *holds { "True" } else { "False" };
        let known = all.iter_mut().find(|condition| condition["type"] == *kind);
        let mut new = json!({"type": kind, "status": status, "reason": reason, "message": message});
        match known {
            Some(known) => {
                new["lastTransitionTime"] = match known["status"] == status {
                    true => known["lastTransitionTime"].clone(),
                    false => json!(stamp(jiff::Timestamp::now())),
                };
                *known = new;
            }
            None => {
                new["lastTransitionTime"] = json!(stamp(jiff::Timestamp::now()));
                all.push(new);
            }
        }
    }
    Value::Array(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(count: usize) -> Vec<Chosen> {
        let pod =
            |n: usize| Chosen { name: format!("p{n}"), ready: true, asked: vec![("c".into(), Some(100_000_000))] };
        (0..count).map(pod).collect()
    }

    fn usage(each: &[&str]) -> Vec<Value> {
        let pod = |(n, cpu): (usize, &&str)| {
            json!({"metadata": {"name": format!("p{n}")},
            "containers": [{"name": "c", "usage": {"cpu": cpu}}]})
        };
        each.iter().enumerate().map(pod).collect()
    }

    fn scaler(more: Value) -> Value {
        let mut scaler = json!({"spec": {"minReplicas": 1, "maxReplicas": 10, "metrics": [{"type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]}});
        for (field, value) in more.as_object().unwrap() {
            scaler["spec"][field] = value.clone();
        }
        scaler
    }

    fn told(decision: &Decision) -> String {
        let told = decision.told.iter().map(|(kind, holds, reason, _)| format!("{kind}={holds} {reason}"));
        format!("{} ({})", decision.wanted, told.collect::<Vec<_>>().join(", "))
    }

    #[test]
    fn as_many_pods_as_what_is_measured_asks_for() {
        let now = Instant::now();
        let mut said = Vec::new();
        let mut ask = |spec: Value, current: usize, used: &[&str]| {
            let decision = decide(&scaler(spec), current as i64, &pods(current), &usage(used), &mut Past::new(), now);
            said.push(told(&decision));
            decision
        };
        // Twice the target, at the target, far above the most, far above in one step.
        let twice = ask(json!({}), 2, &["100m", "100m"]);
        assert_eq!(twice.metrics[0]["resource"]["current"], json!({"averageValue": "100m", "averageUtilization": 100}));
        assert_eq!(twice.reason, "cpu resource utilization (percentage of request) above target");
        ask(json!({}), 2, &["52m", "50m"]);
        ask(json!({"maxReplicas": 3}), 2, &["900m", "900m"]);
        ask(json!({}), 1, &["900m"]);
        // Less than is there, and not below the least.
        ask(json!({"behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}), 4, &["1m", "1m", "1m", "1m"]);
        ask(
            json!({"minReplicas": 3, "behavior": {"scaleDown": {"policies": [{"type": "Pods", "value": 1}]}}}),
            6,
            &["1m"; 6],
        );
        ask(json!({"minReplicas": 2}), 1, &["1m"]);
        // What nobody measures, and what is switched off.
        ask(json!({"metrics": [{"type": "Resource", "resource": {"name": "memory", "target": {}}}]}), 2, &[]);
        ask(json!({}), 0, &[]);
        ask(
            json!({"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue",
            "averageValue": "30m"}}}]}),
            2,
            &["100m", "20m"],
        );
        insta::assert_snapshot!(said.join("\n"), @r"
        4 (AbleToScale=true ReadyForNewScale, ScalingActive=true ValidMetricFound, ScalingLimited=false DesiredWithinRange)
        2 (AbleToScale=true ReadyForNewScale, ScalingActive=true ValidMetricFound, ScalingLimited=false DesiredWithinRange)
        3 (AbleToScale=true ReadyForNewScale, ScalingActive=true ValidMetricFound, ScalingLimited=true TooManyReplicas)
        5 (AbleToScale=true ReadyForNewScale, ScalingActive=true ValidMetricFound, ScalingLimited=true ScaleUpLimit)
        1 (AbleToScale=true ReadyForNewScale, ScalingActive=true ValidMetricFound, ScalingLimited=false DesiredWithinRange)
        5 (AbleToScale=true ReadyForNewScale, ScalingActive=true ValidMetricFound, ScalingLimited=true ScaleDownLimit)
        2 (AbleToScale=true ReadyForNewScale, ScalingActive=true ValidMetricFound, ScalingLimited=true TooFewReplicas)
        2 (AbleToScale=true SucceededGetScale, ScalingActive=false FailedGetResourceMetric)
        0 (AbleToScale=true SucceededGetScale, ScalingActive=false ScalingDisabled)
        4 (AbleToScale=true ReadyForNewScale, ScalingActive=true ValidMetricFound, ScalingLimited=false DesiredWithinRange)
        ");
    }

    #[test]
    fn pods_that_start_or_are_not_measured_speak_against_a_change() {
        let ask = |current: usize, ready: usize, used: &[&str]| {
            let mut pods = pods(current);
            pods.iter_mut().skip(ready).for_each(|pod| pod.ready = false);
            proposal(&scaler(json!({}))["spec"]["metrics"][0], current as i64, &pods, &usage(used)).map(|found| found.0)
        };
        // Twice the target in one of four, in two of three; far below it in two of four that are ready, or are there.
        assert_eq!(ask(4, 4, &["100m"]), Ok(4));
        assert_eq!(ask(4, 1, &["100m"]), Ok(4));
        assert_eq!(ask(3, 2, &["100m", "100m"]), Ok(4));
        assert_eq!(ask(4, 4, &["1m", "1m"]), Ok(4));
        assert_eq!(ask(4, 2, &["1m", "1m"]), Ok(1));
        assert!(ask(2, 0, &["1m", "1m"]).is_err());
    }

    #[test]
    fn a_lower_number_is_slept_over() {
        let (began, mut past) = (Instant::now(), Past::new());
        let mut at = |seconds: u64, used: &str| {
            let now = began + Duration::from_secs(seconds);
            let decision = decide(&scaler(json!({})), 2, &pods(2), &usage(&[used, used]), &mut past, now);
            (decision.wanted, decision.told[0].2)
        };
        assert_eq!(at(0, "50m"), (2, "ReadyForNewScale"));
        assert_eq!(at(15, "1m"), (2, "ScaleDownStabilized"));
        assert_eq!(at(299, "1m"), (2, "ScaleDownStabilized"));
        assert_eq!(at(301, "1m"), (1, "ReadyForNewScale"));
    }

    #[test]
    fn targets_have_a_path() {
        let of = |version: &str, kind: &str| {
            target(
                &json!({"metadata": {"namespace": "x"}, "spec": {"scaleTargetRef": {"apiVersion": version, "kind": kind, "name": "a"}}}),
            )
        };
        assert_eq!(of("apps/v1", "Deployment").unwrap(), "/apis/apps/v1/namespaces/x/deployments/a/scale");
        assert_eq!(of("v1", "Pod"), None);
    }
}
