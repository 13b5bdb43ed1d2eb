//! The columns of built-in kinds: those that Kubernetes prints, in its order and words.

use jiff::Timestamp;
use serde_json::{Value, json};
use stolos_k8s::meta;

use super::cells::{
    age, condition, containers, count, duration, holds, labels, list, number, selector, selector_or_none, since,
    some_of, text, text_or,
};
use crate::registry::Resource;

/// How a cell is made.
pub(super) type Cell = fn(&Value, Timestamp) -> Value;
/// Name, type, priority (1 for `-o wide`), cell.
pub(super) type Column = (&'static str, &'static str, i64, Cell);

const AGE: Column = ("Age", "string", 0, age);
const S: &str = "string";
const I: &str = "integer";
const WIDE: i64 = 1;

/// What is said of a pod that has ended.
pub(super) fn conditions(resource: &Resource, object: &Value) -> Option<Value> {
    if &*resource.storage != "pods" {
        return None;
    }
    let (reason, message) = match object["status"]["phase"].as_str()? {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return None,
    };
    Some(json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]))
}

/// The columns of a stored resource.
pub(super) fn columns(storage: &str, name: &Column) -> Vec<Column> {
    let rest: &[Column] = match storage {
        "pods" => &[
            ("Ready", S, 0, |pod, _| json!(Pod::of(pod).ready)),
            ("Status", S, 0, |pod, _| json!(Pod::of(pod).status)),
            ("Restarts", S, 0, |pod, now| {
                let Pod { restarts, restarted, .. } = Pod::of(pod);
                match restarted.filter(|_| restarts > 0) {
                    Some(at) => json!(format!("{restarts} ({} ago)", duration(now, at))),
                    None => json!(restarts.to_string()),
                }
            }),
            AGE,
            ("IP", S, WIDE, |pod, _| {
                let first = &pod["status"]["podIPs"][0]["ip"];
                text_or(if first.is_null() { &pod["status"]["podIP"] } else { first }, "<none>")
            }),
            ("Node", S, WIDE, |pod, _| text_or(&pod["spec"]["nodeName"], "<none>")),
            ("Nominated Node", S, WIDE, |pod, _| text_or(&pod["status"]["nominatedNodeName"], "<none>")),
            ("Readiness Gates", S, WIDE, |pod, _| {
                let gates = list(&pod["spec"]["readinessGates"]);
                let open = gates.clone().filter(|gate| holds(pod, text(&gate["conditionType"]))).count();
                json!(match gates.len() {
                    0 => "<none>".into(),
                    all => format!("{open}/{all}"),
                })
            }),
        ],
        "podtemplates" => {
            return vec![
                *name,
                ("Containers", S, 0, |object, _| containers(&object["template"]["spec"], "name")),
                ("Images", S, 0, |object, _| containers(&object["template"]["spec"], "image")),
                ("Pod Labels", S, 0, |object, _| labels(&object["template"]["metadata"]["labels"])),
            ];
        }
        "replicationcontrollers" => {
            return replicas(name, ("Selector", S, WIDE, |object, _| labels(&object["spec"]["selector"])));
        }
        "replicasets.apps" => {
            return replicas(name, ("Selector", S, WIDE, |object, _| selector_or_none(&object["spec"]["selector"])));
        }
        "deployments.apps" => &[
            ("Ready", S, 0, ready_of_wanted),
            ("Up-to-date", S, 0, |object, _| json!(number(&object["status"]["updatedReplicas"]))),
            ("Available", S, 0, |object, _| json!(number(&object["status"]["availableReplicas"]))),
            AGE,
            TEMPLATE_NAMES,
            TEMPLATE_IMAGES,
            ("Selector", S, WIDE, |object, _| json!(selector(&object["spec"]["selector"]))),
        ],
        "statefulsets.apps" => &[("Ready", S, 0, ready_of_wanted), AGE, TEMPLATE_NAMES, TEMPLATE_IMAGES],
        "daemonsets.apps" => &[
            ("Desired", I, 0, |object, _| json!(number(&object["status"]["desiredNumberScheduled"]))),
            ("Current", I, 0, |object, _| json!(number(&object["status"]["currentNumberScheduled"]))),
            ("Ready", I, 0, |object, _| json!(number(&object["status"]["numberReady"]))),
            ("Up-to-date", I, 0, |object, _| json!(number(&object["status"]["updatedNumberScheduled"]))),
            ("Available", I, 0, |object, _| json!(number(&object["status"]["numberAvailable"]))),
            ("Node Selector", S, 0, |object, _| labels(&object["spec"]["template"]["spec"]["nodeSelector"])),
            AGE,
            TEMPLATE_NAMES,
            TEMPLATE_IMAGES,
            ("Selector", S, WIDE, |object, _| selector_or_none(&object["spec"]["selector"])),
        ],
        "controllerrevisions.apps" => &[
            ("Controller", S, 0, |object, _| {
                let owner = list(&object["metadata"]["ownerReferences"]).find(|owner| owner["controller"] == true);
                json!(owner.map_or_else(
                    || "<none>".into(),
                    |owner| {
                        let group = text(&owner["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
                        let dot = if group.is_empty() { "" } else { "." };
                        format!("{}{dot}{group}/{}", text(&owner["kind"]).to_lowercase(), text(&owner["name"]))
                    }
                ))
            }),
            ("Revision", S, 0, |object, _| object["revision"].clone()),
            AGE,
        ],
        "jobs.batch" => &[
            ("Status", S, 0, |job, _| json!(job_status(job))),
            ("Completions", S, 0, |job, _| {
                let done = number(&job["status"]["succeeded"]);
                json!(match (job["spec"]["completions"].as_i64(), number(&job["spec"]["parallelism"])) {
                    (Some(wanted), _) => format!("{done}/{wanted}"),
                    (None, many @ 2..) => format!("{done}/1 of {many}"),
                    (None, _) => format!("{done}/1"),
                })
            }),
            ("Duration", S, 0, |job, now| {
                let at = |field: &str| job["status"][field].as_str().and_then(|at| at.parse().ok());
                json!(
                    at("startTime")
                        .map_or_else(String::new, |from| { duration(at("completionTime").unwrap_or(now), from) })
                )
            }),
            AGE,
            TEMPLATE_NAMES,
            TEMPLATE_IMAGES,
            ("Selector", S, WIDE, |job, _| selector_or_none(&job["spec"]["selector"])),
        ],
        "cronjobs.batch" => &[
            ("Schedule", S, 0, |job, _| job["spec"]["schedule"].clone()),
            ("Timezone", S, 0, |job, _| text_or(&job["spec"]["timeZone"], "<none>")),
            ("Suspend", "boolean", 0, |job, _| match job["spec"]["suspend"].as_bool() {
                Some(true) => json!("True"),
                Some(false) => json!("False"),
                None => json!("<unset>"),
            }),
            ("Active", I, 0, |job, _| json!(count(&job["status"]["active"]))),
            ("Last Schedule", S, 0, |job, now| match &job["status"]["lastScheduleTime"] {
                Value::Null => json!("<none>"),
                at => since(at, now),
            }),
            AGE,
            ("Containers", S, WIDE, |job, _| {
                containers(&job["spec"]["jobTemplate"]["spec"]["template"]["spec"], "name")
            }),
            ("Images", S, WIDE, |job, _| containers(&job["spec"]["jobTemplate"]["spec"]["template"]["spec"], "image")),
            ("Selector", S, WIDE, |job, _| selector_or_none(&job["spec"]["jobTemplate"]["spec"]["selector"])),
        ],
        "poddisruptionbudgets.policy" => &[
            ("Min Available", S, 0, |budget, _| int_or_string(&budget["spec"]["minAvailable"], "N/A")),
            ("Max Unavailable", S, 0, |budget, _| int_or_string(&budget["spec"]["maxUnavailable"], "N/A")),
            ("Allowed Disruptions", I, 0, |budget, _| json!(number(&budget["status"]["disruptionsAllowed"]))),
            AGE,
        ],
        "horizontalpodautoscalers.autoscaling" => &[
            ("Reference", S, 0, |scaler, _| {
                let target = &scaler["spec"]["scaleTargetRef"];
                json!(format!("{}/{}", text(&target["kind"]), text(&target["name"])))
            }),
            ("Targets", S, 0, |scaler, _| json!(metrics(scaler))),
            ("MinPods", S, 0, |scaler, _| int_or_string(&scaler["spec"]["minReplicas"], "<unset>")),
            ("MaxPods", S, 0, |scaler, _| json!(number(&scaler["spec"]["maxReplicas"]))),
            ("Replicas", S, 0, |scaler, _| json!(number(&scaler["status"]["currentReplicas"]))),
            AGE,
        ],
        "services" => &[
            ("Type", S, 0, |service, _| service["spec"]["type"].clone()),
            ("Cluster-IP", S, 0, |service, _| {
                let first = &service["spec"]["clusterIPs"][0];
                text_or(if first.is_null() { &service["spec"]["clusterIP"] } else { first }, "<none>")
            }),
            ("External-IP", S, 0, |service, _| json!(external(service))),
            ("Port(s)", S, 0, |service, _| {
                let ports: Vec<_> = list(&service["spec"]["ports"])
                    .map(|port| {
                        let node = port["nodePort"].as_i64().filter(|node| *node > 0);
                        let node = node.map(|node| format!(":{node}")).unwrap_or_default();
                        format!("{}{node}/{}", number(&port["port"]), port["protocol"].as_str().unwrap_or("TCP"))
                    })
                    .collect();
                json!(if ports.is_empty() { "<none>".into() } else { ports.join(",") })
            }),
            AGE,
            ("Selector", S, WIDE, |service, _| labels(&service["spec"]["selector"])),
        ],
        "ingresses.networking.k8s.io" => &[
            ("Class", S, 0, |ingress, _| text_or(&ingress["spec"]["ingressClassName"], "<none>")),
            ("Hosts", S, 0, |ingress, _| {
                let rules = list(&ingress["spec"]["rules"]);
                let hosts: Vec<_> = rules.map(|rule| text(&rule["host"])).filter(|host| !host.is_empty()).collect();
                json!(match hosts.len() {
                    0 => "*".into(),
                    1..=3 => hosts.join(","),
                    all => format!("{} + {} more...", hosts[..3].join(","), all - 3),
                })
            }),
            ("Address", S, 0, |ingress, _| json!(addresses(ingress).join(","))),
            ("Ports", S, 0, |ingress, _| json!(if count(&ingress["spec"]["tls"]) > 0 { "80, 443" } else { "80" })),
            AGE,
        ],
        "ingressclasses.networking.k8s.io" => &[
            ("Controller", S, 0, |class, _| class["spec"]["controller"].clone()),
            ("Parameters", S, 0, |class, _| {
                let of = &class["spec"]["parameters"];
                let group = of["apiGroup"].as_str().map(|group| format!(".{group}")).unwrap_or_default();
                json!(match of {
                    Value::Null => "<none>".into(),
                    of => format!("{}{group}/{}", text(&of["kind"]), text(&of["name"])),
                })
            }),
            AGE,
        ],
        "networkpolicies.networking.k8s.io" => {
            &[("Pod-Selector", S, 0, |policy, _| selector_or_none(&policy["spec"]["podSelector"])), AGE]
        }
        "endpoints" => &[("Endpoints", S, 0, |object, _| json!(endpoints(object))), AGE],
        "endpointslices.discovery.k8s.io" => &[
            ("AddressType", S, 0, |slice, _| slice["addressType"].clone()),
            ("Ports", S, 0, |slice, _| {
                let port = |port: &Value| match (port["port"].as_i64(), port["name"].as_str()) {
                    (Some(number), _) => number.to_string(),
                    (None, Some(name)) => name.to_owned(),
                    (None, None) => "*".into(),
                };
                json!(some_of(&list(&slice["ports"]).map(port).collect::<Vec<_>>()))
            }),
            ("Endpoints", S, 0, |slice, _| {
                let addresses = list(&slice["endpoints"]).flat_map(|endpoint| list(&endpoint["addresses"]));
                json!(some_of(&addresses.map(|address| text(address).to_owned()).collect::<Vec<_>>()))
            }),
            AGE,
        ],
        "namespaces" => &[("Status", S, 0, |namespace, _| namespace["status"]["phase"].clone()), AGE],
        "nodes" => &[
            ("Status", S, 0, |node, _| {
                let ready = match condition(node, "Ready") {
                    Some(ready) if ready["status"] == "True" => "Ready",
                    Some(_) => "NotReady",
                    None => "Unknown",
                };
                let held = if node["spec"]["unschedulable"] == true { ",SchedulingDisabled" } else { "" };
                json!(format!("{ready}{held}"))
            }),
            ("Roles", S, 0, |node, _| {
                let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
                let mut roles: Vec<_> = labels
                    .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                        None if key == "kubernetes.io/role" => value.as_str(),
                        role => role,
                    })
                    .filter(|role| !role.is_empty())
                    .collect();
                roles.sort_unstable();
                roles.dedup();
                json!(if roles.is_empty() { "<none>".into() } else { roles.join(",") })
            }),
            AGE,
            ("Version", S, 0, |node, _| node["status"]["nodeInfo"]["kubeletVersion"].clone()),
            ("Internal-IP", S, WIDE, |node, _| address(node, "InternalIP")),
            ("External-IP", S, WIDE, |node, _| address(node, "ExternalIP")),
            ("OS-Image", S, WIDE, |node, _| text_or(&node["status"]["nodeInfo"]["osImage"], "<unknown>")),
            ("Kernel-Version", S, WIDE, |node, _| text_or(&node["status"]["nodeInfo"]["kernelVersion"], "<unknown>")),
            ("Container-Runtime", S, WIDE, |node, _| {
                text_or(&node["status"]["nodeInfo"]["containerRuntimeVersion"], "<unknown>")
            }),
        ],
        "secrets" => &[
            ("Type", S, 0, |secret, _| secret["type"].clone()),
            ("Data", S, 0, |secret, _| json!(count(&secret["data"]))),
            AGE,
        ],
        "configmaps" => &[("Data", S, 0, |map, _| json!(count(&map["data"]) + count(&map["binaryData"]))), AGE],
        "serviceaccounts" => &[("Secrets", S, 0, |account, _| json!(count(&account["secrets"]))), AGE],
        "resourcequotas" => &[
            ("Request", S, 0, |quota, _| json!(amounts(quota, false))),
            ("Limit", S, 0, |quota, _| json!(amounts(quota, true))),
            AGE,
        ],
        "persistentvolumes" => &[
            ("Capacity", S, 0, |volume, _| volume["spec"]["capacity"]["storage"].clone()),
            ("Access Modes", S, 0, |volume, _| json!(modes(&volume["spec"]["accessModes"]))),
            ("Reclaim Policy", S, 0, |volume, _| volume["spec"]["persistentVolumeReclaimPolicy"].clone()),
            ("Status", S, 0, phase),
            ("Claim", S, 0, |volume, _| {
                let claim = &volume["spec"]["claimRef"];
                json!(match claim {
                    Value::Null => String::new(),
                    claim => format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])),
                })
            }),
            ("StorageClass", S, 0, |volume, _| json!(text(&volume["spec"]["storageClassName"]))),
            ("VolumeAttributesClass", S, 0, |volume, _| {
                text_or(&volume["spec"]["volumeAttributesClassName"], "<unset>")
            }),
            ("Reason", S, 0, |volume, _| json!(text(&volume["status"]["reason"]))),
            AGE,
            ("VolumeMode", S, WIDE, |volume, _| text_or(&volume["spec"]["volumeMode"], "<unset>")),
        ],
        "persistentvolumeclaims" => &[
            ("Status", S, 0, phase),
            ("Volume", S, 0, |claim, _| json!(text(&claim["spec"]["volumeName"]))),
            ("Capacity", S, 0, |claim, _| json!(text(&claim["status"]["capacity"]["storage"]))),
            ("Access Modes", S, 0, |claim, _| json!(modes(&claim["status"]["accessModes"]))),
            ("StorageClass", S, 0, |claim, _| json!(text(&claim["spec"]["storageClassName"]))),
            ("VolumeAttributesClass", S, 0, |claim, _| text_or(&claim["spec"]["volumeAttributesClassName"], "<unset>")),
            AGE,
            ("VolumeMode", S, WIDE, |claim, _| text_or(&claim["spec"]["volumeMode"], "<unset>")),
        ],
        "storageclasses.storage.k8s.io" => {
            return vec![
                ("Name", S, 0, |class, _| {
                    let mark = &class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"];
                    let mark = if mark == "true" { " (default)" } else { "" };
                    json!(format!("{}{mark}", meta::name(class)))
                }),
                ("Provisioner", S, 0, |class, _| class["provisioner"].clone()),
                ("ReclaimPolicy", S, 0, |class, _| text_or(&class["reclaimPolicy"], "Delete")),
                ("VolumeBindingMode", S, 0, |class, _| text_or(&class["volumeBindingMode"], "Immediate")),
                ("AllowVolumeExpansion", S, 0, |class, _| json!(class["allowVolumeExpansion"] == true)),
                AGE,
            ];
        }
        "priorityclasses.scheduling.k8s.io" => &[
            ("Value", I, 0, |class, _| json!(number(&class["value"]))),
            ("Global-Default", "boolean", 0, |class, _| json!(class["globalDefault"] == true)),
            AGE,
            ("PreemptionPolicy", S, 0, |class, _| json!(text(&class["preemptionPolicy"]))),
        ],
        "runtimeclasses.node.k8s.io" => &[("Handler", S, 0, |class, _| class["handler"].clone()), AGE],
        "leases.coordination.k8s.io" => {
            &[("Holder", S, 0, |lease, _| json!(text(&lease["spec"]["holderIdentity"]))), AGE]
        }
        "clusterrolebindings.rbac.authorization.k8s.io" | "rolebindings.rbac.authorization.k8s.io" => &[
            ("Role", S, 0, |binding, _| {
                json!(format!("{}/{}", text(&binding["roleRef"]["kind"]), text(&binding["roleRef"]["name"])))
            }),
            AGE,
            ("Users", S, WIDE, |binding, _| subjects(binding, "User")),
            ("Groups", S, WIDE, |binding, _| subjects(binding, "Group")),
            ("ServiceAccounts", S, WIDE, |binding, _| subjects(binding, "ServiceAccount")),
        ],
        "mutatingwebhookconfigurations.admissionregistration.k8s.io"
        | "validatingwebhookconfigurations.admissionregistration.k8s.io" => {
            &[("Webhooks", I, 0, |object, _| json!(count(&object["webhooks"]))), AGE]
        }
        "validatingadmissionpolicies.admissionregistration.k8s.io" => &[
            ("Validations", I, 0, |policy, _| json!(count(&policy["spec"]["validations"]))),
            ("ParamKind", S, 0, |policy, _| {
                let kind = &policy["spec"]["paramKind"];
                json!(match kind {
                    Value::Null => "<unset>".into(),
                    kind => format!("{}/{}", text(&kind["apiVersion"]), text(&kind["kind"])),
                })
            }),
            AGE,
        ],
        "validatingadmissionpolicybindings.admissionregistration.k8s.io" => &[
            ("PolicyName", S, 0, |binding, _| binding["spec"]["policyName"].clone()),
            ("ParamRef", S, 0, |binding, _| {
                let param = &binding["spec"]["paramRef"];
                json!(match (text(&param["namespace"]), text(&param["name"])) {
                    (_, "") if param["selector"].is_object() => selector(&param["selector"]),
                    (_, "") => "<unset>".into(),
                    ("", name) => format!("*/{name}"),
                    (namespace, name) => format!("{namespace}/{name}"),
                })
            }),
            AGE,
        ],
        "apiservices.apiregistration.k8s.io" => &[
            ("Service", S, 0, |object, _| {
                let service = &object["spec"]["service"];
                json!(match service {
                    Value::Null => "Local".into(),
                    service => format!("{}/{}", text(&service["namespace"]), text(&service["name"])),
                })
            }),
            ("Available", S, 0, |object, _| {
                json!(match condition(object, "Available") {
                    Some(found) if found["status"] == "True" => "True".into(),
                    Some(found) => format!("{} ({})", text(&found["status"]), text(&found["reason"])),
                    None => "Unknown".into(),
                })
            }),
            AGE,
        ],
        "events" => {
            return vec![
                ("Last Seen", S, 0, |event, now| {
                    let series = &event["series"]["lastObservedTime"];
                    let times = [series, &event["lastTimestamp"], &event["firstTimestamp"], &event["eventTime"]];
                    since(times.into_iter().find(|at| at.is_string()).unwrap_or(&Value::Null), now)
                }),
                ("Type", S, 0, |event, _| event["type"].clone()),
                ("Reason", S, 0, |event, _| event["reason"].clone()),
                ("Object", S, 0, |event, _| {
                    let (kind, name) = (&event["involvedObject"]["kind"], text(&event["involvedObject"]["name"]));
                    let slash = if name.is_empty() { "" } else { "/" };
                    json!(format!("{}{slash}{name}", text(kind).to_lowercase()))
                }),
                ("Subobject", S, WIDE, |event, _| json!(text(&event["involvedObject"]["fieldPath"]))),
                ("Source", S, WIDE, |event, _| {
                    let first =
                        |a: &Value, b: &Value| if text(a).is_empty() { text(b).to_owned() } else { text(a).to_owned() };
                    let component = first(&event["source"]["component"], &event["reportingComponent"]);
                    let instance = first(&event["source"]["host"], &event["reportingInstance"]);
                    json!(if instance.is_empty() { component } else { format!("{component}, {instance}") })
                }),
                ("Message", S, 0, |event, _| json!(text(&event["message"]).trim())),
                ("First Seen", S, WIDE, |event, now| {
                    let times = [&event["firstTimestamp"], &event["eventTime"]];
                    since(times.into_iter().find(|at| at.is_string()).unwrap_or(&Value::Null), now)
                }),
                ("Count", S, WIDE, |event, _| {
                    let times = event["series"]["count"].as_i64().or_else(|| event["count"].as_i64());
                    json!(times.filter(|times| *times > 0).unwrap_or(1))
                }),
                ("Name", S, WIDE, |event, _| json!(meta::name(event))),
            ];
        }
        // Kinds that Kubernetes has no columns of its own for.
        _ => &[("Created At", "date", 0, |object, _| json!(meta::creation_timestamp(object)))],
    };
    let mut columns = vec![*name];
    columns.extend_from_slice(rest);
    columns
}

const TEMPLATE_NAMES: Column =
    ("Containers", S, WIDE, |object, _| containers(&object["spec"]["template"]["spec"], "name"));
const TEMPLATE_IMAGES: Column =
    ("Images", S, WIDE, |object, _| containers(&object["spec"]["template"]["spec"], "image"));

fn replicas(name: &Column, selector: Column) -> Vec<Column> {
    vec![
        *name,
        ("Desired", I, 0, |object, _| json!(number(&object["spec"]["replicas"]))),
        ("Current", I, 0, |object, _| json!(number(&object["status"]["replicas"]))),
        ("Ready", I, 0, |object, _| json!(number(&object["status"]["readyReplicas"]))),
        AGE,
        TEMPLATE_NAMES,
        TEMPLATE_IMAGES,
        selector,
    ]
}

fn ready_of_wanted(object: &Value, _: Timestamp) -> Value {
    json!(format!("{}/{}", number(&object["status"]["readyReplicas"]), number(&object["spec"]["replicas"])))
}

fn phase(object: &Value, _: Timestamp) -> Value {
    if meta::deletion_timestamp(object).is_some() { json!("Terminating") } else { object["status"]["phase"].clone() }
}

fn int_or_string(value: &Value, absent: &str) -> Value {
    match value {
        Value::Null => json!(absent),
        Value::String(_) => value.clone(),
        other => json!(other.to_string()),
    }
}

fn job_status(job: &Value) -> &'static str {
    let ended = [("Complete", "Complete"), ("Failed", "Failed")];
    let said = ended.into_iter().find(|(kind, _)| holds(job, kind));
    let going = || {
        let states = [
            ("Suspended", "Suspended"),
            ("FailureTarget", "FailureTarget"),
            ("SuccessCriteriaMet", "SuccessCriteriaMet"),
        ];
        states.into_iter().find(|(kind, _)| holds(job, kind)).map_or("Running", |(_, said)| said)
    };
    match said {
        Some((_, said)) => said,
        None if meta::deletion_timestamp(job).is_some() => "Terminating",
        None => going(),
    }
}

fn metrics(scaler: &Value) -> String {
    let now = &scaler["status"]["currentMetrics"];
    let amount = |value: &Value, absent: &str| match value {
        Value::Null => absent.to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let percent = |value: &Value, absent: &str| value.as_i64().map_or_else(|| absent.to_owned(), |n| format!("{n}%"));
    let mut said = Vec::new();
    for (index, metric) in list(&scaler["spec"]["metrics"]).enumerate() {
        let (field, named) = match text(&metric["type"]) {
            "Resource" => ("resource", true),
            "ContainerResource" => ("containerResource", true),
            "Pods" => ("pods", false),
            "Object" => ("object", false),
            "External" => ("external", false),
            _ => {
                said.push("<unknown type>".to_owned());
                continue;
            }
        };
        let (target, current) = (&metric[field]["target"], &now[index][field]["current"]);
        let average = target["averageValue"].is_string();
        let shown = if named && !average {
            format!(
                "{}/{}",
                percent(&current["averageUtilization"], "<unknown>"),
                percent(&target["averageUtilization"], "<auto>")
            )
        } else if average {
            let mark = if matches!(field, "object" | "external") { " (avg)" } else { "" };
            format!(
                "{}/{}{mark}",
                amount(&current["averageValue"], "<unknown>"),
                amount(&target["averageValue"], "<unknown>")
            )
        } else {
            format!("{}/{}", amount(&current["value"], "<unknown>"), amount(&target["value"], "<unknown>"))
        };
        said.push(if named { format!("{}: {shown}", text(&metric[field]["name"])) } else { shown });
    }
    match said.len() {
        0 => "<none>".into(),
        1..=2 => said.join(", "),
        all => format!("{} + {} more...", said[..2].join(", "), all - 2),
    }
}

fn addresses(object: &Value) -> Vec<&str> {
    let ingress = list(&object["status"]["loadBalancer"]["ingress"]);
    let mut found: Vec<&str> =
        ingress.filter_map(|one| one["ip"].as_str().or_else(|| one["hostname"].as_str())).collect();
    found.sort_unstable();
    found.dedup();
    found
}

fn external(service: &Value) -> String {
    let spec = &service["spec"];
    let by_hand = || list(&spec["externalIPs"]).map(text);
    match text(&spec["type"]) {
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        "LoadBalancer" => {
            let all: Vec<_> = addresses(service).into_iter().chain(by_hand()).collect();
            if all.is_empty() { "<pending>".into() } else { all.join(",") }
        }
        "ClusterIP" | "NodePort" => {
            let all: Vec<_> = by_hand().collect();
            if all.is_empty() { "<none>".into() } else { all.join(",") }
        }
        _ => "<unknown>".into(),
    }
}

fn endpoints(object: &Value) -> String {
    if count(&object["subsets"]) == 0 {
        return "<none>".into();
    }
    let mut all = Vec::new();
    for subset in list(&object["subsets"]) {
        let ips = || list(&subset["addresses"]).map(|address| text(&address["ip"]));
        if count(&subset["ports"]) == 0 {
            all.extend(ips().map(str::to_owned));
        }
        for port in list(&subset["ports"]) {
            let port = number(&port["port"]);
            all.extend(
                ips().map(|ip| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }),
            );
        }
    }
    if all.is_empty() { String::new() } else { some_of(&all) }
}

fn address(node: &Value, kind: &str) -> Value {
    let found = list(&node["status"]["addresses"]).find(|address| address["type"] == kind);
    found.map_or(json!("<none>"), |found| found["address"].clone())
}

fn modes(modes: &Value) -> String {
    let known =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| list(modes).any(|found| found == mode);
    known.into_iter().filter(|(mode, _)| has(mode)).map(|(_, short)| short).collect::<Vec<_>>().join(",")
}

fn amounts(quota: &Value, limits: bool) -> String {
    let (hard, used) = (&quota["status"]["hard"], &quota["status"]["used"]);
    let hard = hard.as_object().into_iter().flatten();
    let wanted = hard.filter(|(name, _)| name.starts_with("limits.") == limits);
    let said = wanted.map(|(name, most)| format!("{name}: {}/{}", used[name].as_str().unwrap_or("0"), text(most)));
    said.collect::<Vec<_>>().join(", ")
}

fn subjects(binding: &Value, kind: &str) -> Value {
    let of_kind = list(&binding["subjects"]).filter(|subject| subject["kind"] == kind);
    let names: Vec<_> = of_kind
        .map(|subject| match kind {
            "ServiceAccount" => format!("{}/{}", text(&subject["namespace"]), text(&subject["name"])),
            _ => text(&subject["name"]).to_owned(),
        })
        .collect();
    json!(names.join(", "))
}

/// A pod in the words that its users know.
struct Pod {
    ready: String,
    status: String,
    restarts: i64,
    restarted: Option<Timestamp>,
}

impl Pod {
    fn of(pod: &Value) -> Self {
        let (spec, state) = (&pod["spec"], &pod["status"]);
        let phase = text(&state["phase"]);
        let mut status = if text(&state["reason"]).is_empty() { phase } else { text(&state["reason"]) }.to_owned();
        if condition(pod, "PodScheduled").is_some_and(|found| found["reason"] == "SchedulingGated") {
            status = "SchedulingGated".into();
        }
        let sidecar = |name: &Value| {
            list(&spec["initContainers"]).any(|one| one["name"] == *name && one["restartPolicy"] == "Always")
        };
        let sidecars = list(&spec["initContainers"]).filter(|one| one["restartPolicy"] == "Always").count();
        let total = list(&spec["containers"]).len() + sidecars;
        let (mut ready, mut restarts, mut restarted) = (0, 0, None);
        let (mut of_sidecars, mut sidecar_at) = (0, None);
        let count_restarts = |container: &Value, times: &mut i64, last: &mut Option<Timestamp>| {
            *times += number(&container["restartCount"]);
            let at = container["lastState"]["terminated"]["finishedAt"].as_str().and_then(|at| at.parse().ok());
            *last = (*last).max(at);
        };
        let mut initializing = false;
        for (index, container) in list(&state["initContainerStatuses"]).enumerate() {
            count_restarts(container, &mut restarts, &mut restarted);
            let beside = sidecar(&container["name"]);
            if beside {
                count_restarts(container, &mut of_sidecars, &mut sidecar_at);
            }
            let (terminated, waiting) =
                (&container["state"]["terminated"], text(&container["state"]["waiting"]["reason"]));
            if terminated["exitCode"] == 0 {
                continue;
            }
            if beside && container["started"] == true {
                ready += usize::from(container["ready"] == true);
                continue;
            }
            status = if terminated.is_object() {
                format!("Init:{}", ended(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", list(&spec["initContainers"]).len())
            };
            initializing = true;
            break;
        }
        if !initializing || holds(pod, "Initialized") {
            (restarts, restarted) = (of_sidecars, sidecar_at);
            let mut running = false;
            for container in list(&state["containerStatuses"]).rev() {
                count_restarts(container, &mut restarts, &mut restarted);
                let (terminated, waiting) =
                    (&container["state"]["terminated"], text(&container["state"]["waiting"]["reason"]));
                if !waiting.is_empty() {
                    status = waiting.to_owned();
                } else if terminated.is_object() {
                    status = ended(terminated);
                } else if container["ready"] == true && container["state"]["running"].is_object() {
                    running = true;
                    ready += 1;
                }
            }
            if status == "Completed" && running {
                status = if holds(pod, "Ready") { "Running" } else { "NotReady" }.into();
            }
        }
        if meta::deletion_timestamp(pod).is_some() {
            if state["reason"] == "NodeLost" {
                status = "Unknown".into();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                status = "Terminating".into();
            }
        }
        Self { ready: format!("{ready}/{total}"), status, restarts, restarted }
    }
}

/// How a container ended.
fn ended(terminated: &Value) -> String {
    match (text(&terminated["reason"]), number(&terminated["signal"])) {
        ("", 0) => format!("ExitCode:{}", number(&terminated["exitCode"])),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_said_to_be_what_they_are() {
        let running = json!({"name": "c", "ready": true, "state": {"running": {}}, "restartCount": 0});
        let crashed = json!({"name": "c", "ready": false, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"finishedAt": "2001-09-09T01:45:40Z"}}, "restartCount": 3});
        let done =
            json!({"name": "c", "ready": false, "state": {"terminated": {"reason": "Completed", "exitCode": 0}}});
        let failed = json!({"name": "c", "state": {"terminated": {"exitCode": 2}}});
        let side = json!({"name": "side", "started": true, "ready": true, "state": {"running": {}}});
        let spec = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "side", "restartPolicy": "Always"}, {"name": "init"}]});
        let plain = json!({"containers": [{"name": "c"}]});
        let cases = [
            (&plain, json!({"phase": "Pending"}), "0/1 Pending 0"),
            (&plain, json!({"phase": "Running", "containerStatuses": [running]}), "1/1 Running 0"),
            (&plain, json!({"phase": "Running", "containerStatuses": [crashed]}), "0/1 CrashLoopBackOff 3"),
            (&plain, json!({"phase": "Succeeded", "containerStatuses": [done]}), "0/1 Completed 0"),
            (&plain, json!({"phase": "Failed", "containerStatuses": [failed]}), "0/1 ExitCode:2 0"),
            (&plain, json!({"phase": "Failed", "reason": "Evicted"}), "0/1 Evicted 0"),
            (
                &spec,
                json!({"phase": "Pending", "initContainerStatuses": [side, {"name": "init", "state": {"running": {}}}]}),
                "1/2 Init:1/2 0",
            ),
            (&spec, json!({"phase": "Pending", "initContainerStatuses": [side, failed]}), "1/2 Init:ExitCode:2 0"),
            (
                &spec,
                json!({"phase": "Running", "initContainerStatuses": [side, {"name": "init", "state": {"terminated": {"exitCode": 0}}}],
                "containerStatuses": [running]}),
                "2/2 Running 0",
            ),
        ];
        for (spec, status, said) in cases {
            let mut pod = json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
            let Pod { ready, status, restarts, .. } = Pod::of(&pod);
            assert_eq!(format!("{ready} {status} {restarts}"), said);
            pod["metadata"]["deletionTimestamp"] = json!("2001-09-09T01:45:40Z");
            let ended = said.contains("Completed")
                || said.contains("ExitCode:2 0") && !said.contains("Init")
                || said.contains("Evicted");
            assert_eq!(Pod::of(&pod).status == "Terminating", !ended, "{said}");
        }
    }

    #[test]
    fn services_and_endpoints() {
        let service = |kind: &str, more: Value| json!({"spec": {"type": kind, "externalName": "x.y", "externalIPs": more}, "status": {}});
        assert_eq!(external(&service("LoadBalancer", json!([]))), "<pending>");
        assert_eq!(external(&service("ClusterIP", json!(["1.2.3.4"]))), "1.2.3.4");
        assert_eq!(external(&service("NodePort", Value::Null)), "<none>");
        assert_eq!(external(&service("ExternalName", Value::Null)), "x.y");
        let four: Vec<_> = (1..=4).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
        let many = json!({"subsets": [{"addresses": four, "ports": [{"port": 80}]}]});
        assert_eq!(endpoints(&many), "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 1 more...");
        assert_eq!(endpoints(&json!({})), "<none>");
    }

    #[test]
    fn scalers_say_what_they_aim_at() {
        let scaler = json!({"spec": {"metrics": [
            {"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}},
            {"type": "Pods", "pods": {"target": {"averageValue": "10"}}},
            {"type": "External", "external": {"target": {"value": "5"}}}]},
            "status": {"currentMetrics": [{"resource": {"current": {"averageUtilization": 12}}}]}});
        assert_eq!(metrics(&scaler), "cpu: 12%/80%, <unknown>/10 + 1 more...");
    }
}
