//! What the makers of pods must be: Deployments and their kin, Jobs, and what bounds them.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::pod::{self, NOT_NEGATIVE};
use super::{choice, items, text};
use crate::failure::Cause;
use crate::registry::Resource;
use crate::rules;

const IMMUTABLE: &str = "field is immutable";

/// Checks a Deployment, ReplicaSet, StatefulSet or DaemonSet.
pub(super) fn check(resource: &Resource, before: Option<&Value>, spec: &Value, causes: &mut Vec<Cause>) {
    let labels = &spec["template"]["metadata"]["labels"];
    if spec["selector"].is_object() {
        let empty = spec["selector"]["matchLabels"].as_object().is_none_or(serde_json::Map::is_empty)
            && spec["selector"]["matchExpressions"].as_array().is_none_or(Vec::is_empty);
        if empty {
            let message = format!("empty selector is invalid for {}", resource.singular);
            causes.push(Cause::invalid("spec.selector", &spec["selector"], &message));
        }
        if before.is_some_and(|before| before["spec"]["selector"] != spec["selector"]) {
            causes.push(Cause::invalid("spec.selector", &spec["selector"], IMMUTABLE));
        }
    } else {
        causes.push(Cause::required("spec.selector", ""));
    }
    if !rules::label_selector_matches(&spec["selector"], labels) {
        let message = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", labels, message));
    }
    counts(spec, &["replicas", "minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"], causes);
    pod::check_spec("spec.template.spec", &with_claims(spec), causes);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if matches!(text(policy), "OnFailure" | "Never") {
        choice("spec.template.spec.restartPolicy".into(), policy, &["Always"], causes);
    }
    match &*resource.storage {
        "deployments.apps" => check_strategy(spec, causes),
        "statefulsets.apps" => {
            if let Some(before) = before {
                check_stateful_update(&before["spec"], spec, causes);
            }
            let policies = ["OrderedReady", "Parallel"];
            choice("spec.podManagementPolicy".into(), &spec["podManagementPolicy"], &policies, causes);
            choice(
                "spec.updateStrategy.type".into(),
                &spec["updateStrategy"]["type"],
                &["RollingUpdate", "OnDelete"],
                causes,
            );
        }
        "daemonsets.apps" => {
            choice(
                "spec.updateStrategy.type".into(),
                &spec["updateStrategy"]["type"],
                &["RollingUpdate", "OnDelete"],
                causes,
            );
        }
        _ => {}
    }
}

/// The template's spec with the volumes that a StatefulSet gives its pods besides.
fn with_claims(spec: &Value) -> Cow<'_, Value> {
    let template = &spec["template"]["spec"];
    let known = |name: &str| items(&template["volumes"]).any(|volume| volume["name"] == name);
    let claims = items(&spec["volumeClaimTemplates"]).map(|claim| text(&claim["metadata"]["name"]));
    let mut more: Vec<_> = claims.filter(|name| !known(name)).collect();
    more.dedup();
    if more.is_empty() || !template.is_object() {
        return Cow::Borrowed(template);
    }
    let more = more.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let volumes: Vec<_> = items(&template["volumes"]).cloned().chain(more).collect();
    let mut template = template.clone();
    template["volumes"] = json!(volumes);
    Cow::Owned(template)
}

fn check_strategy(spec: &Value, causes: &mut Vec<Cause>) {
    let strategy = &spec["strategy"];
    choice("spec.strategy.type".into(), &strategy["type"], &["Recreate", "RollingUpdate"], causes);
    if strategy["type"] == "Recreate" && strategy["rollingUpdate"].is_object() {
        let message = "may not be specified when strategy `type` is 'Recreate'";
        causes.push(Cause::forbidden("spec.strategy.rollingUpdate", message));
    }
    let is_zero = |value: &Value| *value == json!(0) || *value == json!("0%");
    let rolling = &strategy["rollingUpdate"];
    for field in ["maxUnavailable", "maxSurge"] {
        int_or_percent(format!("spec.strategy.rollingUpdate.{field}"), &rolling[field], causes);
    }
    if is_zero(&rolling["maxSurge"]) && is_zero(&rolling["maxUnavailable"]) {
        let message = "may not be 0 when `maxSurge` is 0";
        causes.push(Cause::invalid("spec.strategy.rollingUpdate.maxUnavailable", &rolling["maxUnavailable"], message));
    }
    let number = |field: &str| spec[field].as_i64().unwrap_or(0);
    if spec["progressDeadlineSeconds"].is_i64() && number("progressDeadlineSeconds") <= number("minReadySeconds") {
        let message = "must be greater than minReadySeconds";
        causes.push(Cause::invalid("spec.progressDeadlineSeconds", &spec["progressDeadlineSeconds"], message));
    }
}

/// A count, or a percentage of one.
fn int_or_percent(at: String, value: &Value, causes: &mut Vec<Cause>) {
    match value {
        Value::Number(number) if number.as_i64().is_some_and(|number| number < 0) => {
            causes.push(Cause::invalid(at, value, NOT_NEGATIVE));
        }
        Value::String(given) => {
            let digits = given.strip_suffix('%').unwrap_or_default();
            if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
                let message = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  \
                               or '93%', regex used for validation is '[0-9]+%')";
                causes.push(Cause::invalid(at, value, message));
            }
        }
        _ => {}
    }
}

fn check_stateful_update(before: &Value, now: &Value, causes: &mut Vec<Cause>) {
    let free = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let rest = |spec: &Value| {
        let mut rest = spec.as_object().cloned().unwrap_or_default();
        rest.retain(|field, value| !free.contains(&field.as_str()) && !value.is_null());
        rest
    };
    if rest(before) != rest(now) {
        let message = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                       'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                       'minReadySeconds' are forbidden";
        causes.push(Cause::forbidden("spec", message));
    }
}

/// Checks a ReplicationController.
pub(super) fn check_replication(spec: &Value, causes: &mut Vec<Cause>) {
    counts(spec, &["replicas", "minReadySeconds"], causes);
    if spec["selector"].as_object().is_none_or(serde_json::Map::is_empty) {
        causes.push(Cause::required("spec.selector", ""));
    }
    if !spec["template"].is_object() {
        causes.push(Cause::required("spec.template", ""));
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if !spec["selector"].as_object().into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value)) {
        let message = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", labels, message));
    }
    pod::check_spec("spec.template.spec", &spec["template"]["spec"], causes);
}

/// Checks the spec of a Job, alone or in a CronJob.
pub(super) fn check_job(at: &str, before: Option<&Value>, spec: &Value, causes: &mut Vec<Cause>) {
    for field in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
        if spec[field].as_i64().is_some_and(|number| number < 0) {
            causes.push(Cause::invalid(format!("{at}.{field}"), &spec[field], NOT_NEGATIVE));
        }
    }
    pod::check_spec(&format!("{at}.template.spec"), &spec["template"]["spec"], causes);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy == "Always" {
        let message = "valid values: \"OnFailure\", \"Never\"";
        causes.push(Cause::required(format!("{at}.template.spec.restartPolicy"), message));
    }
    if let Some(before) = before {
        for field in ["completions", "selector", "template", "completionMode"] {
            let indexed = spec["completionMode"] == "Indexed";
            let held = before["suspend"] == true && field == "template";
            if before[field] != spec[field] && !(field == "completions" && indexed) && !held {
                causes.push(Cause::invalid(format!("{at}.{field}"), &spec[field], IMMUTABLE));
            }
        }
    }
}

/// Checks a CronJob.
pub(super) fn check_cron_job(spec: &Value, causes: &mut Vec<Cause>) {
    if text(&spec["schedule"]).is_empty() {
        causes.push(Cause::required("spec.schedule", ""));
    } else if text(&spec["schedule"]).contains("TZ") {
        let message = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        causes.push(Cause::invalid("spec.schedule", &spec["schedule"], message));
    } else if !text(&spec["schedule"]).starts_with('@') && text(&spec["schedule"]).split_whitespace().count() != 5 {
        let found = text(&spec["schedule"]).split_whitespace().count();
        let message = format!("expected exactly 5 fields, found {found}: [{}]", text(&spec["schedule"]));
        causes.push(Cause::invalid("spec.schedule", &spec["schedule"], &message));
    }
    choice("spec.concurrencyPolicy".into(), &spec["concurrencyPolicy"], &["Allow", "Forbid", "Replace"], causes);
    counts(spec, &["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"], causes);
    check_job("spec.jobTemplate.spec", None, &spec["jobTemplate"]["spec"], causes);
}

/// Checks a PodDisruptionBudget.
pub(super) fn check_budget(spec: &Value, causes: &mut Vec<Cause>) {
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        causes.push(Cause::invalid("spec", spec, "minAvailable and maxUnavailable cannot be both set"));
    }
    for field in ["minAvailable", "maxUnavailable"] {
        int_or_percent(format!("spec.{field}"), &spec[field], causes);
    }
}

/// Checks a HorizontalPodAutoscaler.
pub(super) fn check_scaler(spec: &Value, causes: &mut Vec<Cause>) {
    let (least, most) = (spec["minReplicas"].as_i64().unwrap_or(1), spec["maxReplicas"].as_i64().unwrap_or(0));
    if least < 1 {
        causes.push(Cause::invalid("spec.minReplicas", &json!(least), "must be greater than or equal to 1"));
    }
    if most < 1 {
        causes.push(Cause::invalid("spec.maxReplicas", &json!(most), "must be greater than 0"));
    }
    if most < least {
        let message = "must be greater than or equal to `minReplicas`";
        causes.push(Cause::invalid("spec.maxReplicas", &json!(most), message));
    }
    for field in ["kind", "name"] {
        if text(&spec["scaleTargetRef"][field]).is_empty() {
            causes.push(Cause::required(format!("spec.scaleTargetRef.{field}"), ""));
        }
    }
}

/// Checks that numbers are not negative.
fn counts(spec: &Value, fields: &[&str], causes: &mut Vec<Cause>) {
    for field in fields {
        if spec[*field].as_i64().is_some_and(|number| number < 0) {
            causes.push(Cause::invalid(format!("spec.{field}"), &spec[*field], NOT_NEGATIVE));
        }
    }
}

/// Checks an Ingress.
pub(super) fn check_ingress(spec: &Value, causes: &mut Vec<Cause>) {
    let backend = |at: &str, backend: &Value, causes: &mut Vec<Cause>| {
        let service = &backend["service"];
        match (service.is_object(), backend["resource"].is_object()) {
            (true, true) => {
                causes.push(Cause::invalid(at, &json!(""), "cannot set both resource and service backends"))
            }
            (false, false) => causes.push(Cause::required(at, "port name or number is required")),
            (false, true) => {}
            (true, false) => {
                if text(&service["name"]).is_empty() {
                    causes.push(Cause::required(format!("{at}.service.name"), ""));
                }
                if text(&service["port"]["name"]).is_empty() && !service["port"]["number"].is_number() {
                    causes.push(Cause::required(at, "port name or number is required"));
                }
            }
        }
    };
    if items(&spec["rules"]).len() == 0 && spec["defaultBackend"].is_null() {
        let message = "either `defaultBackend` or `rules` must be specified";
        causes.push(Cause::invalid("spec", &json!([]), message));
    }
    if spec["defaultBackend"].is_object() {
        backend("spec.defaultBackend", &spec["defaultBackend"], causes);
    }
    for (index, rule) in items(&spec["rules"]).enumerate() {
        for (number, path) in items(&rule["http"]["paths"]).enumerate() {
            let at = format!("spec.rules[{index}].http.paths[{number}]");
            match text(&path["pathType"]) {
                "" => causes.push(Cause::required(format!("{at}.pathType"), "pathType must be specified")),
                kind => {
                    let kinds = ["Exact", "ImplementationSpecific", "Prefix"];
                    choice(format!("{at}.pathType"), &path["pathType"], &kinds, causes);
                    let given = text(&path["path"]);
                    if !given.starts_with('/') && (kind != "ImplementationSpecific" || !given.is_empty()) {
                        causes.push(Cause::invalid(format!("{at}.path"), &json!(given), "must be an absolute path"));
                    }
                }
            }
            backend(&format!("{at}.backend"), &path["backend"], causes);
        }
    }
}
