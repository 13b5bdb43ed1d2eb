//! Objects as rows, for people: what `kubectl get` prints.

use serde_json::{Value, json};
use stolos_k8s::meta;

use crate::registry::Resource;
use crate::route::metadata_of;

type Cell = fn(&Value) -> Value;

/// A `meta.k8s.io/v1 Table` of objects; `definitions` may be left out of all but the first.
#[must_use]
pub(crate) fn render(resource: &Resource, objects: &[&Value], definitions: bool) -> Value {
    let now = jiff::Timestamp::now();
    let columns = columns(resource);
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut cells = vec![json!(meta::name(object))];
            cells.extend(columns.iter().map(|column| column.value(object, now)));
            json!({"cells": cells, "object": metadata_of(object)})
        })
        .collect();
    let definition = |name: &str, kind: &str, priority: i64| {
        json!({"name": name, "type": kind, "format": if name == "Name" { "name" } else { "" }, "description": name,
            "priority": priority})
    };
    let mut heads = vec![definition("Name", "string", 0)];
    heads.extend(columns.iter().map(|column| definition(&column.name, column.kind, column.priority)));
    let version = objects.last().map(|object| object["metadata"]["resourceVersion"].clone());
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version.unwrap_or_default()},
        "columnDefinitions": if definitions { heads } else { Vec::new() }, "rows": rows})
}

struct Column {
    name: String,
    kind: &'static str,
    priority: i64,
    source: Source,
}

enum Source {
    Built(Cell),
    Path(String),
    Since(String),
}

impl Column {
    fn value(&self, object: &Value, now: jiff::Timestamp) -> Value {
        match &self.source {
            Source::Built(cell) => cell(object),
            Source::Path(path) => look(object, path).unwrap_or(Value::Null),
            Source::Since(path) => {
                let at = look(object, path).and_then(|at| at.as_str().and_then(|at| at.parse().ok()));
                json!(at.map_or_else(|| "<unknown>".into(), |at| age(now, at)))
            }
        }
    }
}

fn columns(resource: &Resource) -> Vec<Column> {
    if let Some(custom) = &resource.custom
        && !custom.columns.is_empty()
    {
        return custom
            .columns
            .iter()
            .map(|column| {
                let path = column["jsonPath"].as_str().unwrap_or_default().to_owned();
                let kind = match column["type"].as_str() {
                    Some("integer") => "integer",
                    Some("number") => "number",
                    Some("boolean") => "boolean",
                    _ => "string",
                };
                let source = if column["type"] == "date" { Source::Since(path) } else { Source::Path(path) };
                let name = column["name"].as_str().unwrap_or_default().to_owned();
                Column { name, kind, priority: column["priority"].as_i64().unwrap_or(0), source }
            })
            .collect();
    }
    let wide = 1;
    let built: &[(&str, i64, Cell)] = match &*resource.storage {
        "pods" => &[
            ("Ready", 0, |pod| {
                let total = pod["spec"]["containers"].as_array().map_or(0, Vec::len);
                let ready = statuses(pod).filter(|status| status["ready"] == true).count();
                json!(format!("{ready}/{total}"))
            }),
            ("Status", 0, |pod| json!(pod_status(pod))),
            ("Restarts", 0, |pod| {
                json!(statuses(pod).filter_map(|status| status["restartCount"].as_i64()).sum::<i64>().to_string())
            }),
            ("Age", 0, born),
            ("IP", wide, |pod| or_none(&pod["status"]["podIP"])),
            ("Node", wide, |pod| or_none(&pod["spec"]["nodeName"])),
            ("Nominated Node", wide, |pod| or_none(&pod["status"]["nominatedNodeName"])),
            ("Readiness Gates", wide, |_| json!("<none>")),
        ],
        "deployments.apps" => &[
            ("Ready", 0, |d| {
                let ready = number(&d["status"]["readyReplicas"]);
                json!(format!("{ready}/{}", number(&d["spec"]["replicas"])))
            }),
            ("Up-to-date", 0, |d| json!(number(&d["status"]["updatedReplicas"]))),
            ("Available", 0, |d| json!(number(&d["status"]["availableReplicas"]))),
            ("Age", 0, born),
            ("Containers", wide, |d| containers(d, "name")),
            ("Images", wide, |d| containers(d, "image")),
            ("Selector", wide, |d| json!(crate::rules::selector_text(&d["spec"]["selector"]))),
        ],
        "replicasets.apps" => &[
            ("Desired", 0, |r| json!(number(&r["spec"]["replicas"]))),
            ("Current", 0, |r| json!(number(&r["status"]["replicas"]))),
            ("Ready", 0, |r| json!(number(&r["status"]["readyReplicas"]))),
            ("Age", 0, born),
            ("Containers", wide, |r| containers(r, "name")),
            ("Images", wide, |r| containers(r, "image")),
            ("Selector", wide, |r| json!(crate::rules::selector_text(&r["spec"]["selector"]))),
        ],
        "services" => &[
            ("Type", 0, |s| s["spec"]["type"].clone()),
            ("Cluster-IP", 0, |s| or_none(&s["spec"]["clusterIP"])),
            ("External-IP", 0, |s| {
                let ingress = s["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten();
                let found: Vec<_> =
                    ingress.filter_map(|i| i["ip"].as_str().or_else(|| i["hostname"].as_str())).collect();
                match (found.is_empty(), s["spec"]["type"].as_str()) {
                    (false, _) => json!(found.join(",")),
                    (true, Some("LoadBalancer")) => json!("<pending>"),
                    (true, Some("ExternalName")) => s["spec"]["externalName"].clone(),
                    _ => json!("<none>"),
                }
            }),
            ("Port(s)", 0, |s| {
                let ports = s["spec"]["ports"].as_array().into_iter().flatten();
                let shown: Vec<_> =
                    ports.map(|p| format!("{}/{}", p["port"], p["protocol"].as_str().unwrap_or("TCP"))).collect();
                json!(if shown.is_empty() { "<none>".into() } else { shown.join(",") })
            }),
            ("Age", 0, born),
            ("Selector", wide, |s| json!(crate::rules::selector_text(&s["spec"]["selector"]))),
        ],
        "namespaces" => &[("Status", 0, |n| n["status"]["phase"].clone()), ("Age", 0, born)],
        "nodes" => &[
            ("Status", 0, |n| {
                let ready = n["status"]["conditions"].as_array().into_iter().flatten();
                let ready = ready.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
                let held = if n["spec"]["unschedulable"] == true { ",SchedulingDisabled" } else { "" };
                json!(format!("{}{held}", if ready { "Ready" } else { "NotReady" }))
            }),
            ("Roles", 0, |n| {
                let labels = n["metadata"]["labels"].as_object().into_iter().flatten();
                let roles: Vec<_> =
                    labels.filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/")).collect();
                json!(if roles.is_empty() { "<none>".into() } else { roles.join(",") })
            }),
            ("Age", 0, born),
            ("Version", 0, |n| n["status"]["nodeInfo"]["kubeletVersion"].clone()),
            ("Internal-IP", wide, |n| {
                let addresses = n["status"]["addresses"].as_array().into_iter().flatten();
                let mut internal = addresses.filter(|a| a["type"] == "InternalIP");
                internal.next().map_or(json!("<none>"), |a| a["address"].clone())
            }),
            ("Container-Runtime", wide, |n| n["status"]["nodeInfo"]["containerRuntimeVersion"].clone()),
        ],
        "secrets" => &[
            ("Type", 0, |s| s["type"].clone()),
            ("Data", 0, |s| json!(s["data"].as_object().map_or(0, serde_json::Map::len))),
            ("Age", 0, born),
        ],
        "configmaps" => &[
            ("Data", 0, |c| {
                let count = |field: &str| c[field].as_object().map_or(0, serde_json::Map::len);
                json!(count("data") + count("binaryData"))
            }),
            ("Age", 0, born),
        ],
        "serviceaccounts" => {
            &[("Secrets", 0, |s| json!(s["secrets"].as_array().map_or(0, Vec::len))), ("Age", 0, born)]
        }
        "endpoints" => &[
            ("Endpoints", 0, |e| {
                let subsets = e["subsets"].as_array().into_iter().flatten();
                let shown: Vec<String> = subsets
                    .flat_map(|s| {
                        let ports: Vec<_> =
                            s["ports"].as_array().into_iter().flatten().map(|p| p["port"].clone()).collect();
                        let addresses = s["addresses"].as_array().into_iter().flatten();
                        addresses
                            .flat_map(move |a| {
                                let ip = a["ip"].as_str().unwrap_or_default().to_owned();
                                ports.clone().into_iter().map(move |port| format!("{ip}:{port}"))
                            })
                            .collect::<Vec<_>>()
                    })
                    .collect();
                json!(if shown.is_empty() { "<none>".into() } else { shown.join(",") })
            }),
            ("Age", 0, born),
        ],
        "endpointslices.discovery.k8s.io" => &[
            ("AddressType", 0, |e| e["addressType"].clone()),
            ("Ports", 0, |e| {
                let ports = e["ports"].as_array().into_iter().flatten();
                json!(ports.map(|p| p["port"].to_string()).collect::<Vec<_>>().join(","))
            }),
            ("Endpoints", 0, |e| {
                let endpoints = e["endpoints"].as_array().into_iter().flatten();
                let all: Vec<_> = endpoints
                    .flat_map(|e| e["addresses"].as_array().into_iter().flatten())
                    .filter_map(Value::as_str)
                    .collect();
                json!(all.join(","))
            }),
            ("Age", 0, born),
        ],
        "events" => &[
            ("Last Seen", 0, |e| {
                let at = [&e["lastTimestamp"], &e["eventTime"], &e["metadata"]["creationTimestamp"]];
                let at = at.into_iter().find_map(|at| at.as_str()?.parse().ok());
                json!(at.map_or_else(|| "<unknown>".into(), |at| age(jiff::Timestamp::now(), at)))
            }),
            ("Type", 0, |e| e["type"].clone()),
            ("Reason", 0, |e| e["reason"].clone()),
            ("Object", 0, |e| {
                let object = &e["involvedObject"];
                let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
                json!(format!("{kind}/{}", object["name"].as_str().unwrap_or_default()))
            }),
            ("Message", 0, |e| e["message"].clone()),
        ],
        "leases.coordination.k8s.io" => &[("Holder", 0, |l| or_none(&l["spec"]["holderIdentity"])), ("Age", 0, born)],
        "customresourcedefinitions.apiextensions.k8s.io" => {
            &[("Created At", 0, |c| c["metadata"]["creationTimestamp"].clone())]
        }
        "clusterrolebindings.rbac.authorization.k8s.io" | "rolebindings.rbac.authorization.k8s.io" => &[
            ("Role", 0, |b| {
                let role = &b["roleRef"];
                json!(format!(
                    "{}/{}",
                    role["kind"].as_str().unwrap_or_default(),
                    role["name"].as_str().unwrap_or_default()
                ))
            }),
            ("Age", 0, born),
        ],
        "mutatingwebhookconfigurations.admissionregistration.k8s.io"
        | "validatingwebhookconfigurations.admissionregistration.k8s.io" => {
            &[("Webhooks", 0, |w| json!(w["webhooks"].as_array().map_or(0, Vec::len))), ("Age", 0, born)]
        }
        _ => &[("Age", 0, born)],
    };
    built
        .iter()
        .map(|(name, priority, cell)| Column {
            name: (*name).to_owned(),
            kind: "string",
            priority: *priority,
            source: Source::Built(*cell),
        })
        .collect()
}

fn statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    pod["status"]["containerStatuses"].as_array().into_iter().flatten()
}

/// The one word for how a pod is, as kubectl's users know it.
fn pod_status(pod: &Value) -> String {
    let status = &pod["status"];
    if meta::deletion_timestamp(pod).is_some() {
        return "Terminating".into();
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for (index, init) in status["initContainerStatuses"].as_array().into_iter().flatten().enumerate() {
        let state = &init["state"];
        if state["terminated"]["exitCode"] == 0 || (init["started"] == true && state["running"].is_object()) {
            continue;
        }
        let reason = text(&state["waiting"]["reason"]);
        if !reason.is_empty() && reason != "PodInitializing" {
            return format!("Init:{reason}");
        }
        let total = pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
        return format!("Init:{index}/{total}");
    }
    let mut word = if text(&status["reason"]).is_empty() { text(&status["phase"]) } else { text(&status["reason"]) };
    for container in status["containerStatuses"].as_array().into_iter().flatten().rev() {
        let (waiting, terminated) = (&container["state"]["waiting"], &container["state"]["terminated"]);
        if !text(&waiting["reason"]).is_empty() {
            word = text(&waiting["reason"]);
        } else if terminated.is_object() {
            let reason = text(&terminated["reason"]);
            word = if reason.is_empty() { format!("ExitCode:{}", terminated["exitCode"]) } else { reason };
        }
    }
    word
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

fn or_none(value: &Value) -> Value {
    if value.as_str().unwrap_or_default().is_empty() { json!("<none>") } else { value.clone() }
}

fn containers(object: &Value, field: &str) -> Value {
    let containers = object["spec"]["template"]["spec"]["containers"].as_array().into_iter().flatten();
    json!(containers.filter_map(|c| c[field].as_str()).collect::<Vec<_>>().join(","))
}

fn born(object: &Value) -> Value {
    let at = meta::creation_timestamp(object).parse().ok();
    json!(at.map_or_else(|| "<unknown>".into(), |at| age(jiff::Timestamp::now(), at)))
}

/// How long ago, in kubectl's words: `5s`, `3m20s`, `47h`, `12d`.
fn age(now: jiff::Timestamp, at: jiff::Timestamp) -> String {
    let seconds = (now.as_second() - at.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |a: i64, unit: &str, b: i64, sub: &str| {
        if b == 0 { format!("{a}{unit}") } else { format!("{a}{unit}{b}{sub}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        _ => two(days / 365, "y", days % 365, "d"),
    }
}

/// The value at a simple JSONPath: fields, indices, and the condition filter `[?(@.type=="Ready")]`.
fn look(object: &Value, path: &str) -> Option<Value> {
    let path = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    let mut at = object;
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let end = inner.find(']')?;
            let index = &inner[..end];
            rest = &inner[end + 1..];
            at = if let Ok(number) = index.parse::<usize>() {
                at.get(number)?
            } else if let Some(filter) = index.strip_prefix("?(@.") {
                let (field, wanted) = filter.trim_end_matches(')').split_once("==")?;
                let wanted = wanted.trim().trim_matches(['"', '\'']);
                at.as_array()?.iter().find(|item| item[field.trim()] == wanted)?
            } else if index == "*" {
                at.get(0)?
            } else {
                at.get(index.trim_matches(['"', '\'']))?
            };
        } else {
            let inner = rest.strip_prefix('.').unwrap_or(rest);
            let mut end = 0;
            let bytes = inner.as_bytes();
            while end < bytes.len()
                && bytes[end] != b'['
                && (bytes[end] != b'.' || (end > 0 && bytes[end - 1] == b'\\'))
            {
                end += 1;
            }
            let field = inner[..end].replace('\\', "");
            rest = &inner[end..];
            if !field.is_empty() {
                at = at.get(&field)?;
            } else if end == 0 && inner.is_empty() {
                break;
            }
        }
    }
    Some(at.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_printer_columns() {
        let object = json!({"spec": {"hosts": ["a", "b"], "x.y": 1}, "status": {"conditions": [
            {"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]}});
        let cases = [
            (".spec.hosts[1]", json!("b")),
            (".spec.hosts", json!(["a", "b"])),
            (".spec.x\\.y", json!(1)),
            (".status.conditions[?(@.type==\"Ready\")].status", json!("True")),
        ];
        for (path, expected) in cases {
            assert_eq!(look(&object, path), Some(expected), "{path}");
        }
        assert_eq!(look(&object, ".spec.nothing.here"), None);
    }

    #[test]
    fn ages_as_kubectl_says_them() {
        let now = jiff::Timestamp::from_second(1_000_000_000).unwrap();
        let ago = |seconds: i64| age(now, jiff::Timestamp::from_second(1_000_000_000 - seconds).unwrap());
        let said: Vec<_> = [5, 119, 200, 700, 11_000, 50_000, 200_000, 900_000].map(ago).into();
        assert_eq!(said, ["5s", "119s", "3m20s", "11m", "3h3m", "13h", "2d7h", "10d"]);
    }
}
