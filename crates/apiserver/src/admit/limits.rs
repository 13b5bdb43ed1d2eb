//! LimitRanges: what containers get that do not say what they need, and what nobody may ask for.
//!
//! Kubernetes' `LimitRanger` (1.34, `plugin/pkg/admission/limitranger`), in its words.

use std::sync::Arc;

use serde_json::{Value, json};
use stolos_k8s::meta;
use stolos_k8s::quantity::Quantity;

use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::quota::{Amounts, amounts, of_pod};
use crate::watch::Object;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

fn ranges(api: &Api, namespace: &str) -> Vec<Arc<Object>> {
    let cache = api.state.cache("limitranges");
    if cache.is_empty() { Vec::new() } else { cache.list(namespace) }
}

/// Gives a new pod's containers what the LimitRanges of its namespace say.
pub(super) fn fill(api: &Api, pod: &mut Value) {
    for range in ranges(api, meta::namespace(pod)) {
        fill_from(&range.value, pod);
    }
}

fn entries(range: &Value) -> impl Iterator<Item = &Value> {
    range["spec"]["limits"].as_array().into_iter().flatten()
}

fn fill_from(range: &Value, pod: &mut Value) {
    let (mut requests, mut limits) = (serde_json::Map::new(), serde_json::Map::new());
    for entry in entries(range).filter(|entry| entry["type"] == "Container") {
        for (from, to) in [("defaultRequest", &mut requests), ("default", &mut limits)] {
            for (name, amount) in entry[from].as_object().into_iter().flatten() {
                to.insert(name.clone(), amount.clone());
            }
        }
    }
    let mut said = Vec::new();
    for (list, kind) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (which, word, given) in [("requests", "request", &requests), ("limits", "limit", &limits)] {
                let mut set: Vec<&str> = Vec::new();
                for (resource, amount) in given {
                    if container["resources"][which].get(resource).is_none_or(Value::is_null) {
                        if !container["resources"].is_object() {
                            container["resources"] = json!({});
                        }
                        if !container["resources"][which].is_object() {
                            container["resources"][which] = json!({});
                        }
                        container["resources"][which][resource] = amount.clone();
                        set.push(resource);
                    }
                }
                if !set.is_empty() {
                    set.sort_unstable();
                    said.push(format!("{} {word} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
    if !said.is_empty() {
        meta::set_annotation(pod, ANNOTATION, &format!("LimitRanger plugin set: {}", said.join("; ")));
    }
}

/// Whether a pod or a claim stays within the LimitRanges of its namespace.
///
/// # Errors
///
/// When it does not.
pub(super) fn check(api: &Api, storage: &str, object: &Value) -> Result<()> {
    for range in ranges(api, meta::namespace(object)) {
        let wrong = match storage {
            "pods" => wrong_with_pod(&range.value, object),
            _ => wrong_with_claim(&range.value, object),
        };
        let why = match wrong.as_slice() {
            [] => continue,
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        return Err(Failure::forbidden(storage, meta::name(object), &why));
    }
    Ok(())
}

fn wrong_with_pod(range: &Value, pod: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    for entry in entries(range) {
        match entry["type"].as_str() {
            Some("Container") => {
                let containers =
                    ["containers", "initContainers"].iter().filter_map(|list| pod["spec"][list].as_array());
                for container in containers.flatten() {
                    let resources = &container["resources"];
                    bounds(
                        entry,
                        "Container",
                        &amounts(&resources["requests"]),
                        &amounts(&resources["limits"]),
                        &mut wrong,
                    );
                }
            }
            Some("Pod") => {
                let spec = &pod["spec"];
                bounds(entry, "Pod", &of_pod(spec, "requests"), &of_pod(spec, "limits"), &mut wrong);
            }
            _ => {}
        }
    }
    wrong
}

fn bounds(entry: &Value, kind: &str, requests: &Amounts, limits: &Amounts, wrong: &mut Vec<String>) {
    for (name, least) in amounts(&entry["min"]) {
        let is = format!("minimum {name} usage per {kind} is {least}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => wrong.push(format!("{is}.  No request is specified")),
            (Some(request), _) if request.nano() < least.nano() => {
                wrong.push(format!("{is}, but request is {request}"))
            }
            (_, Some(limit)) if limit.nano() < least.nano() => wrong.push(format!("{is}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, most) in amounts(&entry["max"]) {
        let is = format!("maximum {name} usage per {kind} is {most}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => wrong.push(format!("{is}.  No limit is specified")),
            (_, Some(limit)) if limit.nano() > most.nano() => wrong.push(format!("{is}, but limit is {limit}")),
            (Some(request), _) if request.nano() > most.nano() => wrong.push(format!("{is}, but request is {request}")),
            _ => {}
        }
    }
    for (name, most) in amounts(&entry["maxLimitRequestRatio"]) {
        let is = format!("{name} max limit to request ratio per {kind} is {most}");
        let given = |all: &Amounts| all.get(&name).map(Quantity::nano).filter(|nano| *nano != 0);
        match (given(requests), given(limits)) {
            (None, _) => wrong.push(format!("{is}, but no request is specified or request is 0")),
            (_, None) => wrong.push(format!("{is}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                #[allow(clippy::cast_precision_loss, reason = "it is shown with six digits, as Kubernetes shows it")]
                let (ratio, most) = (limit as f64 / request as f64, most.nano() as f64 / 1e9);
                if ratio > most {
                    wrong.push(format!("{is}, but provided ratio is {ratio:.6}"));
                }
            }
        }
    }
}

fn wrong_with_claim(range: &Value, claim: &Value) -> Vec<String> {
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    let mut wrong = Vec::new();
    for entry in entries(range).filter(|entry| entry["type"] == "PersistentVolumeClaim") {
        for (bound, word) in [("min", "minimum"), ("max", "maximum")] {
            for (name, amount) in amounts(&entry[bound]) {
                let is = format!("{word} {name} usage per PersistentVolumeClaim is {amount}");
                match requests.get(&name) {
                    None => wrong.push(format!("{is}.  No request is specified")),
                    Some(request) => {
                        let beyond = if bound == "min" {
                            request.nano() < amount.nano()
                        } else {
                            request.nano() > amount.nano()
                        };
                        if beyond {
                            wrong.push(format!("{is}, but request is {request}"));
                        }
                    }
                }
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range() -> Value {
        json!({"spec": {"limits": [
            {"type": "Container", "default": {"cpu": "500m", "memory": "1Gi"}, "defaultRequest": {"cpu": "250m"},
                "max": {"cpu": "1"}, "min": {"cpu": "100m"}, "maxLimitRequestRatio": {"cpu": "4"}},
            {"type": "Pod", "max": {"cpu": "1500m"}},
            {"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}},
        ]}})
    }

    #[test]
    fn containers_get_what_they_do_not_ask_for() {
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}}],
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "300m"}}}]}});
        fill_from(&range(), &mut pod);
        let of = |list: &str, at: usize| pod["spec"][list][at]["resources"].to_string();
        insta::assert_snapshot!([of("containers", 0), of("containers", 1), of("initContainers", 0)].join("\n"), @r#"
        {"limits":{"cpu":"500m","memory":"1Gi"},"requests":{"cpu":"250m"}}
        {"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1"}}
        {"limits":{"cpu":"500m","memory":"1Gi"},"requests":{"cpu":"300m"}}
        "#);
        assert_eq!(
            meta::annotation(&pod, ANNOTATION),
            Some(
                "LimitRanger plugin set: cpu request for container a; cpu, memory limit for container a; \
                 memory limit for container b; cpu, memory limit for init container i"
            )
        );
        let once = pod.clone();
        fill_from(&range(), &mut pod);
        assert_eq!(pod, once);
    }

    #[test]
    fn what_is_beyond_the_limits_is_said_in_kubernetes_words() {
        let pod = |requests: Value, limits: Value| {
            json!({"spec": {"containers":
            [{"name": "a", "resources": {"requests": requests, "limits": limits}}]}})
        };
        assert!(wrong_with_pod(&range(), &pod(json!({"cpu": "250m"}), json!({"cpu": "500m"}))).is_empty());
        let wrong = [
            wrong_with_pod(&range(), &pod(json!({"cpu": "50m"}), json!({"cpu": "2"}))),
            wrong_with_pod(&range(), &pod(json!({}), json!({}))),
            wrong_with_claim(&range(), &json!({"spec": {"resources": {"requests": {"storage": "3Gi"}}}})),
            wrong_with_claim(&range(), &json!({"spec": {"resources": {"requests": {"storage": "1Mi"}}}})),
        ];
        insta::assert_snapshot!(wrong.iter().map(|all| all.join("\n")).collect::<Vec<_>>().join("\n--\n"), @r"
        minimum cpu usage per Container is 100m, but request is 50m
        maximum cpu usage per Container is 1, but limit is 2
        cpu max limit to request ratio per Container is 4, but provided ratio is 40.000000
        maximum cpu usage per Pod is 1500m, but limit is 2
        --
        minimum cpu usage per Container is 100m.  No request is specified
        maximum cpu usage per Container is 1.  No limit is specified
        cpu max limit to request ratio per Container is 4, but no request is specified or request is 0
        maximum cpu usage per Pod is 1500m.  No limit is specified
        --
        maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi
        --
        minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi
        ");
    }
}
