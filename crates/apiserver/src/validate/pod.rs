//! What a pod's spec must be, alone or in a template, in the words of Kubernetes' `core/validation`.

use std::collections::HashSet;

use serde_json::{Value, json};
use stolos_k8s::meta;
use stolos_k8s::quantity::Quantity;

use super::{choice, items, not_found, port_number, text};
use crate::failure::Cause;

/// Checks the spec of a pod.
pub(super) fn check_spec(at: &str, spec: &Value, causes: &mut Vec<Cause>) {
    let volumes = check_volumes(&format!("{at}.volumes"), spec, causes);
    if items(&spec["containers"]).len() == 0 {
        causes.push(Cause::required(format!("{at}.containers"), ""));
    }
    let mut names = HashSet::new();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (index, container) in items(&spec[list]).enumerate() {
            let at = format!("{at}.{list}[{index}]");
            check_name(&format!("{at}.name"), text(&container["name"]), &mut names, causes);
            check_container(&at, container, &volumes, causes);
        }
    }
    choice(format!("{at}.restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"], causes);
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    choice(format!("{at}.dnsPolicy"), &spec["dnsPolicy"], &policies, causes);
    if spec["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        let at = format!("{at}.terminationGracePeriodSeconds");
        causes.push(Cause::invalid(at, &spec["terminationGracePeriodSeconds"], NOT_NEGATIVE));
    }
    if spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| !(1..=i64::from(i32::MAX)).contains(&seconds)) {
        let message = "must be between 1 and 2147483647, inclusive";
        causes.push(Cause::invalid(format!("{at}.activeDeadlineSeconds"), &spec["activeDeadlineSeconds"], message));
    }
    for field in ["serviceAccountName", "nodeName", "priorityClassName", "runtimeClassName"] {
        if !text(&spec[field]).is_empty() {
            for message in meta::check_subdomain(text(&spec[field])) {
                causes.push(Cause::invalid(format!("{at}.{field}"), &spec[field], &message));
            }
        }
    }
    for field in ["hostname", "subdomain"] {
        if !text(&spec[field]).is_empty() {
            for message in meta::check_label(text(&spec[field])) {
                causes.push(Cause::invalid(format!("{at}.{field}"), &spec[field], &message));
            }
        }
    }
    for (index, toleration) in items(&spec["tolerations"]).enumerate() {
        let at = format!("{at}.tolerations[{index}]");
        let (key, operator) = (text(&toleration["key"]), text(&toleration["operator"]));
        if key.is_empty() && operator != "Exists" {
            let message = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            causes.push(Cause::invalid(format!("{at}.operator"), &json!(operator), message));
        } else if operator == "Exists" && !text(&toleration["value"]).is_empty() {
            let message = "value must be empty when `operator` is 'Exists'";
            causes.push(Cause::invalid(format!("{at}.operator"), &toleration["value"], message));
        } else if !operator.is_empty() {
            choice(format!("{at}.operator"), &toleration["operator"], &["Equal", "Exists"], causes);
        }
        if !text(&toleration["effect"]).is_empty() {
            let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
            choice(format!("{at}.effect"), &toleration["effect"], &effects, causes);
        }
    }
}

/// What every count must be.
pub(super) const NOT_NEGATIVE: &str = "must be greater than or equal to 0";

fn check_name<'a>(at: &str, name: &'a str, names: &mut HashSet<&'a str>, causes: &mut Vec<Cause>) {
    if name.is_empty() {
        causes.push(Cause::required(at, ""));
        return;
    }
    let problems = meta::check_label(name);
    if problems.is_empty() && !names.insert(name) {
        causes.push(super::duplicate(at, &json!(name)));
    }
    causes.extend(problems.iter().map(|problem| Cause::invalid(at, &json!(name), problem)));
}

/// Checks the volumes and returns their names.
fn check_volumes<'a>(at: &str, spec: &'a Value, causes: &mut Vec<Cause>) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    for (index, volume) in items(&spec["volumes"]).enumerate() {
        let at = format!("{at}[{index}]");
        check_name(&format!("{at}.name"), text(&volume["name"]), &mut names, causes);
        let sources = volume.as_object().into_iter().flatten().filter(|(field, _)| *field != "name");
        for (field, _) in sources.skip(1) {
            causes.push(Cause::forbidden(format!("{at}.{field}"), "may not specify more than 1 volume type"));
        }
        if volume["secret"].is_object() && text(&volume["secret"]["secretName"]).is_empty() {
            causes.push(Cause::required(format!("{at}.secret.secretName"), ""));
        }
        if volume["configMap"].is_object() && text(&volume["configMap"]["name"]).is_empty() {
            causes.push(Cause::required(format!("{at}.configMap.name"), ""));
        }
        if volume["hostPath"].is_object() && text(&volume["hostPath"]["path"]).is_empty() {
            causes.push(Cause::required(format!("{at}.hostPath.path"), ""));
        }
        let claim = &volume["persistentVolumeClaim"];
        if claim.is_object() && text(&claim["claimName"]).is_empty() {
            causes.push(Cause::required(format!("{at}.persistentVolumeClaim.claimName"), ""));
        }
    }
    names
}

fn check_container(at: &str, container: &Value, volumes: &HashSet<&str>, causes: &mut Vec<Cause>) {
    let image = text(&container["image"]);
    if image.is_empty() {
        causes.push(Cause::required(format!("{at}.image"), ""));
    } else if image.trim() != image {
        let message = "must not have leading or trailing whitespace";
        causes.push(Cause::invalid(format!("{at}.image"), &container["image"], message));
    }
    let policies = ["Always", "IfNotPresent", "Never"];
    choice(format!("{at}.imagePullPolicy"), &container["imagePullPolicy"], &policies, causes);
    let policies = ["File", "FallbackToLogsOnError"];
    choice(format!("{at}.terminationMessagePolicy"), &container["terminationMessagePolicy"], &policies, causes);
    check_ports(at, container, causes);
    for (index, variable) in items(&container["env"]).enumerate() {
        let at = format!("{at}.env[{index}]");
        let name = text(&variable["name"]);
        if name.is_empty() {
            causes.push(Cause::required(format!("{at}.name"), ""));
        } else if !name.bytes().all(|letter| (b' '..=b'~').contains(&letter) && letter != b'=') {
            let message =
                "a valid environment variable name must consist only of printable ASCII characters other than '='";
            causes.push(Cause::invalid(format!("{at}.name"), &variable["name"], message));
        }
        let from = &variable["valueFrom"];
        if from.is_object() {
            let at = format!("{at}.valueFrom");
            match from.as_object().map_or(0, serde_json::Map::len) {
                0 => {
                    let message = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, \
                                   `secretKeyRef` or `fileKeyRef`";
                    causes.push(Cause::invalid(at, &json!(""), message));
                }
                _ if !text(&variable["value"]).is_empty() => {
                    causes.push(Cause::invalid(at, &json!(""), "may not be specified when `value` is not empty"));
                }
                1 => {}
                _ => {
                    let message = "may not have more than one field specified at a time";
                    causes.push(Cause::invalid(at, &json!(""), message));
                }
            }
        }
    }
    let mut paths = HashSet::new();
    for (index, mount) in items(&container["volumeMounts"]).enumerate() {
        let at = format!("{at}.volumeMounts[{index}]");
        match text(&mount["name"]) {
            "" => causes.push(Cause::required(format!("{at}.name"), "")),
            name if !volumes.contains(name) => causes.push(not_found(format!("{at}.name"), &mount["name"])),
            _ => {}
        }
        match text(&mount["mountPath"]) {
            "" => causes.push(Cause::required(format!("{at}.mountPath"), "")),
            path if !paths.insert(path) => {
                causes.push(Cause::invalid(format!("{at}.mountPath"), &mount["mountPath"], "must be unique"));
            }
            _ => {}
        }
    }
    check_resources(&format!("{at}.resources"), &container["resources"], causes);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        check_probe(&format!("{at}.{probe}"), probe, &container[probe], causes);
    }
    for hook in ["postStart", "preStop"] {
        if container["lifecycle"][hook].is_object() {
            check_handler(&format!("{at}.lifecycle.{hook}"), &container["lifecycle"][hook], causes);
        }
    }
}

fn check_ports(at: &str, container: &Value, causes: &mut Vec<Cause>) {
    let mut names = HashSet::new();
    for (index, port) in items(&container["ports"]).enumerate() {
        let at = format!("{at}.ports[{index}]");
        let name = text(&port["name"]);
        if !name.is_empty() {
            let problems = check_port_name(name);
            if problems.is_empty() && !names.insert(name) {
                causes.push(super::duplicate(format!("{at}.name"), &port["name"]));
            }
            for problem in problems {
                causes.push(Cause::invalid(format!("{at}.name"), &port["name"], problem));
            }
        }
        match port["containerPort"].as_i64() {
            None | Some(0) => causes.push(Cause::required(format!("{at}.containerPort"), "")),
            Some(_) => port_number(format!("{at}.containerPort"), &port["containerPort"], causes),
        }
        if port["hostPort"].as_i64().is_some_and(|port| port != 0) {
            port_number(format!("{at}.hostPort"), &port["hostPort"], causes);
        }
        choice(format!("{at}.protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"], causes);
    }
}

/// What is wrong with the name of a port.
fn check_port_name(name: &str) -> Vec<&'static str> {
    let mut problems = Vec::new();
    if name.len() > 15 {
        problems.push("must be no more than 15 characters");
    }
    if !name.bytes().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == b'-') {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|letter| letter.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        problems.push("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        problems.push("must not begin or end with a hyphen");
    }
    problems
}

/// Checks requests and limits, and that no request is above its limit.
pub(super) fn check_resources(at: &str, resources: &Value, causes: &mut Vec<Cause>) {
    let amount = |value: &Value| Quantity::parse(text(value)).ok();
    for field in ["limits", "requests"] {
        for (name, value) in resources[field].as_object().into_iter().flatten() {
            let at = format!("{at}.{field}[{name}]");
            let standard = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
                || name.starts_with("hugepages-")
                || name.contains('/');
            if !standard {
                for message in [
                    "must be a standard resource type or fully qualified",
                    "must be a standard resource for containers",
                ] {
                    causes.push(Cause::invalid(at.clone(), &json!(name), message));
                }
            }
            if amount(value).is_some_and(|amount| amount.nano() < 0) {
                causes.push(Cause::invalid(at, value, NOT_NEGATIVE));
            }
        }
    }
    for (name, value) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][name.as_str()];
        if let (Some(request), Some(most)) = (amount(value), amount(limit))
            && request.nano() > most.nano()
        {
            let message = format!("must be less than or equal to {name} limit of {}", text(limit));
            causes.push(Cause::invalid(format!("{at}.requests"), value, &message));
        }
    }
}

fn check_probe(at: &str, kind: &str, probe: &Value, causes: &mut Vec<Cause>) {
    if !probe.is_object() {
        return;
    }
    check_handler(at, probe, causes);
    let counts = ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"];
    for field in counts {
        if probe[field].as_i64().is_some_and(|number| number < 0) {
            causes.push(Cause::invalid(format!("{at}.{field}"), &probe[field], NOT_NEGATIVE));
        }
    }
    if kind != "readinessProbe" && probe["successThreshold"].as_i64().is_some_and(|times| times != 1) {
        causes.push(Cause::invalid(format!("{at}.successThreshold"), &probe["successThreshold"], "must be 1"));
    }
}

fn check_handler(at: &str, handler: &Value, causes: &mut Vec<Cause>) {
    let handlers = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let given: Vec<_> = handlers.into_iter().filter(|field| handler[*field].is_object()).collect();
    if given.is_empty() {
        causes.push(Cause::required(at, "must specify a handler type"));
    }
    for field in given.iter().skip(1) {
        causes.push(Cause::forbidden(format!("{at}.{field}"), "may not specify more than 1 handler type"));
    }
    if given.first() == Some(&"exec") && items(&handler["exec"]["command"]).len() == 0 {
        causes.push(Cause::required(format!("{at}.exec.command"), ""));
    }
    for field in ["httpGet", "tcpSocket", "grpc"] {
        if given.contains(&field) && handler[field]["port"].is_number() {
            port_number(format!("{at}.{field}.port"), &handler[field]["port"], causes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_ports() {
        assert_eq!(check_port_name("http-1"), Vec::<&str>::new());
        assert_eq!(check_port_name("123").len(), 1);
        assert_eq!(check_port_name("-A--a-name-that-is-long").len(), 4);
    }
}
