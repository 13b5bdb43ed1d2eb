//! What built-in kinds are filled in with, as Kubernetes does, because clients rely on it.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::Mutex;

use base64::Engine as _;
use serde_json::{Value, json};
use stolos_k8s::quantity::Quantity;

use crate::api::Api;
use crate::failure::{Cause, Failure, Result};
use crate::registry::Resource;

/// Whether a status given at creation is kept: for kinds whose controllers create them whole.
#[must_use]
pub(crate) fn keeps_status_at_creation(resource: &Resource) -> bool {
    matches!(&*resource.storage, "nodes" | "apiservices.apiregistration.k8s.io")
}

/// The selector by which a new Job finds its pods, and the labels that go with it, unless `manualSelector` says that the
/// user has written both (batch/job strategy, `generateSelector`). The Job must have its UID.
pub(crate) fn job_selector(job: &mut Value) {
    if job["spec"]["manualSelector"] == json!(true) {
        return;
    }
    let (name, uid) = (job["metadata"]["name"].clone(), job["metadata"]["uid"].clone());
    job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] = uid.clone();
    let labels = &mut job["spec"]["template"]["metadata"]["labels"];
    for (label, value) in [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ] {
        // A name that is generated is not known yet.
        if !value.is_null() {
            labels[label] = value.clone();
        }
    }
}

/// Fills in the defaults of a built-in kind.
pub(crate) fn fill(resource: &Resource, object: &mut Value) {
    match &*resource.storage {
        "pods" => {
            pod_spec(&mut object["spec"]);
            default(&mut object["spec"], "enableServiceLinks", json!(true));
            for list in ["/initContainers", "/containers"] {
                items(&mut object["spec"], list).for_each(requests_from_limits);
            }
            status(object);
            default(&mut object["status"], "phase", json!("Pending"));
            object["status"]["qosClass"] = json!(qos_class(&object["spec"]));
        }
        "deployments.apps" => {
            let spec = &mut object["spec"];
            default(spec, "replicas", json!(1));
            default(spec, "revisionHistoryLimit", json!(10));
            default(spec, "progressDeadlineSeconds", json!(600));
            default(spec, "strategy", json!({}));
            default(&mut spec["strategy"], "type", json!("RollingUpdate"));
            if spec["strategy"]["type"] == "RollingUpdate" {
                default(&mut spec["strategy"], "rollingUpdate", json!({}));
                default(&mut spec["strategy"]["rollingUpdate"], "maxSurge", json!("25%"));
                default(&mut spec["strategy"]["rollingUpdate"], "maxUnavailable", json!("25%"));
            }
            template(spec);
            status(object);
        }
        "replicasets.apps" => {
            default(&mut object["spec"], "replicas", json!(1));
            template(&mut object["spec"]);
            default(object, "status", json!({"replicas": 0}));
        }
        "replicationcontrollers" => {
            default(&mut object["spec"], "replicas", json!(1));
            if object["spec"]["template"].is_object() {
                template(&mut object["spec"]);
                let labels = object["spec"]["template"]["metadata"]["labels"].clone();
                if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
                    default(&mut object["spec"], "selector", labels.clone());
                    default(&mut object["metadata"], "labels", labels);
                }
            }
            default(object, "status", json!({"replicas": 0}));
        }
        "statefulsets.apps" => {
            let spec = &mut object["spec"];
            default(spec, "replicas", json!(1));
            default(spec, "revisionHistoryLimit", json!(10));
            default(spec, "podManagementPolicy", json!("OrderedReady"));
            default(spec, "updateStrategy", json!({}));
            default(&mut spec["updateStrategy"], "type", json!("RollingUpdate"));
            if spec["updateStrategy"]["type"] == "RollingUpdate" {
                default(&mut spec["updateStrategy"], "rollingUpdate", json!({}));
                default(&mut spec["updateStrategy"]["rollingUpdate"], "partition", json!(0));
            }
            default(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
            for field in ["whenDeleted", "whenScaled"] {
                default(&mut spec["persistentVolumeClaimRetentionPolicy"], field, json!("Retain"));
            }
            for claim in items(spec, "/volumeClaimTemplates") {
                default(claim, "apiVersion", json!("v1"));
                default(claim, "kind", json!("PersistentVolumeClaim"));
                default(&mut claim["spec"], "volumeMode", json!("Filesystem"));
                default(claim, "status", json!({"phase": "Pending"}));
            }
            template(spec);
            default(object, "status", json!({"replicas": 0, "availableReplicas": 0}));
        }
        "daemonsets.apps" => {
            let spec = &mut object["spec"];
            default(spec, "revisionHistoryLimit", json!(10));
            default(spec, "updateStrategy", json!({}));
            default(&mut spec["updateStrategy"], "type", json!("RollingUpdate"));
            if spec["updateStrategy"]["type"] == "RollingUpdate" {
                default(&mut spec["updateStrategy"], "rollingUpdate", json!({}));
                default(&mut spec["updateStrategy"]["rollingUpdate"], "maxSurge", json!(0));
                default(&mut spec["updateStrategy"]["rollingUpdate"], "maxUnavailable", json!(1));
            }
            template(spec);
            let none = json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0});
            default(object, "status", none);
        }
        "jobs.batch" => {
            let spec = &mut object["spec"];
            // Without either one pod is to succeed; with parallelism alone it is for the pods to say when it is enough.
            if spec["completions"].is_null() && spec["parallelism"].is_null() {
                default(spec, "completions", json!(1));
            }
            for (field, value) in [
                ("parallelism", json!(1)),
                ("backoffLimit", json!(6)),
                ("completionMode", json!("NonIndexed")),
                ("suspend", json!(false)),
                ("podReplacementPolicy", json!("TerminatingOrFailed")),
            ] {
                default(spec, field, value);
            }
            template(spec);
            drop_nulls(spec);
            status(object);
        }
        "cronjobs.batch" => {
            let spec = &mut object["spec"];
            for (field, value) in [
                ("concurrencyPolicy", json!("Allow")),
                ("suspend", json!(false)),
                ("successfulJobsHistoryLimit", json!(3)),
                ("failedJobsHistoryLimit", json!(1)),
            ] {
                default(spec, field, value);
            }
            template(&mut spec["jobTemplate"]["spec"]);
            status(object);
        }
        "podtemplates" => template(object),
        "horizontalpodautoscalers.autoscaling" => {
            let spec = &mut object["spec"];
            default(spec, "minReplicas", json!(1));
            default(
                spec,
                "metrics",
                json!([{"type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
            );
            default(object, "status", json!({"desiredReplicas": 0}));
        }
        "persistentvolumeclaims" => {
            default(&mut object["spec"], "volumeMode", json!("Filesystem"));
            requests_from_limits(&mut object["spec"]);
            status(object);
            default(&mut object["status"], "phase", json!("Pending"));
        }
        "persistentvolumes" => {
            let spec = &mut object["spec"];
            default(spec, "persistentVolumeReclaimPolicy", json!("Retain"));
            default(spec, "volumeMode", json!("Filesystem"));
            if spec.get("hostPath").is_some_and(Value::is_object) {
                default(&mut spec["hostPath"], "type", json!(""));
            }
            status(object);
            default(&mut object["status"], "phase", json!("Pending"));
        }
        "storageclasses.storage.k8s.io" => {
            default(object, "reclaimPolicy", json!("Delete"));
            default(object, "volumeBindingMode", json!("Immediate"));
        }
        "priorityclasses.scheduling.k8s.io" => default(object, "preemptionPolicy", json!("PreemptLowerPriority")),
        "ingressclasses.networking.k8s.io" if object.pointer("/spec/parameters").is_some_and(Value::is_object) => {
            default(&mut object["spec"]["parameters"], "scope", json!("Cluster"));
        }
        "ingresses.networking.k8s.io" => default(object, "status", json!({"loadBalancer": {}})),
        "networkpolicies.networking.k8s.io" => {
            let spec = &mut object["spec"];
            default(spec, "podSelector", json!({}));
            let egress = spec["egress"].as_array().is_some_and(|rules| !rules.is_empty());
            default(spec, "policyTypes", if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) });
            for rules in ["/ingress", "/egress"] {
                for rule in items(spec, rules) {
                    items(rule, "/ports").for_each(|port| default(port, "protocol", json!("TCP")));
                }
            }
            drop_nulls(spec);
        }
        "limitranges" => items(object, "/spec/limits").for_each(limits),
        "services" => {
            service(&mut object["spec"]);
            default(object, "status", json!({"loadBalancer": {}}));
        }
        "secrets" => secret(object),
        "namespaces" => {
            default(object, "spec", json!({}));
            default(&mut object["spec"], "finalizers", json!(["kubernetes"]));
            default(object, "status", json!({}));
            default(&mut object["status"], "phase", json!("Active"));
            let name = object["metadata"]["name"].clone();
            if !object["metadata"]["labels"].is_object() {
                object["metadata"]["labels"] = json!({});
            }
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
        "customresourcedefinitions.apiextensions.k8s.io" => crd(object),
        "mutatingwebhookconfigurations.admissionregistration.k8s.io" => {
            webhooks(object);
            for webhook in items(object, "/webhooks") {
                default(webhook, "reinvocationPolicy", json!("Never"));
            }
        }
        "validatingwebhookconfigurations.admissionregistration.k8s.io" => webhooks(object),
        "endpointslices.discovery.k8s.io" => {
            for port in items(object, "/ports") {
                default(port, "protocol", json!("TCP"));
                default(port, "name", json!(""));
            }
        }
        "endpoints" => {
            for subset in items(object, "/subsets") {
                for port in items(subset, "/ports") {
                    default(port, "protocol", json!("TCP"));
                }
            }
        }
        "clusterrolebindings.rbac.authorization.k8s.io" | "rolebindings.rbac.authorization.k8s.io" => {
            default(&mut object["roleRef"], "apiGroup", json!("rbac.authorization.k8s.io"));
            for subject in items(object, "/subjects") {
                if subject["kind"] != "ServiceAccount" {
                    default(subject, "apiGroup", json!("rbac.authorization.k8s.io"));
                }
            }
        }
        _ => {}
    }
}

/// The entries of a list, if it is there. Unlike indexing this leaves no trace where it is not.
pub(crate) fn items<'a>(object: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> {
    object.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
}

fn default(object: &mut Value, field: &str, value: Value) {
    if object.is_null() {
        *object = json!({});
    }
    if let Some(map) = object.as_object_mut()
        && map.get(field).is_none_or(Value::is_null)
    {
        map.insert(field.to_owned(), value);
    }
}

fn status(object: &mut Value) {
    default(object, "status", json!({}));
}

/// A pod template is part of what has one, even if nothing of it is written: what it lacks is for validation to say.
fn template(of: &mut Value) {
    pod_spec(&mut of["template"]["spec"]);
}

/// Where only a limit is set, as much is requested (`SetDefaults_Pod`).
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container.pointer("/resources/limits").and_then(Value::as_object).cloned() else { return };
    for (name, amount) in limits {
        default(&mut container["resources"], "requests", json!({}));
        default(&mut container["resources"]["requests"], &name, amount);
    }
}

/// The defaults of one entry of a LimitRange: limits from the most, requests from limits and from the least.
fn limits(entry: &mut Value) {
    if entry["type"] != "Container" {
        drop_nulls(entry);
        return;
    }
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
        let Some(amounts) = entry.get(from).and_then(Value::as_object).cloned() else { continue };
        for (name, amount) in amounts {
            default(&mut entry[to], &name, amount);
        }
    }
}

/// How a pod's resources are held (the QoS class of its `cpu` and `memory`).
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let amount = |value: &Value| value.as_str().and_then(|text| Quantity::parse(text).ok()).map_or(0, |q| q.nano());
    let (mut any, mut all) = (false, true);
    let containers = ["containers", "initContainers"].into_iter().filter_map(|list| spec.get(list)?.as_array());
    for container in containers.flatten() {
        let resources = container.get("resources").unwrap_or(&Value::Null);
        for name in ["cpu", "memory"] {
            let (limit, request) = (amount(&resources["limits"][name]), amount(&resources["requests"][name]));
            any |= limit > 0 || request > 0;
            all &= limit > 0 && limit == request;
        }
    }
    match (any, all) {
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
        (false, _) => "BestEffort",
    }
}

fn pod_spec(spec: &mut Value) {
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "dnsPolicy", json!("ClusterFirst"));
    default(spec, "schedulerName", json!("default-scheduler"));
    default(spec, "securityContext", json!({}));
    if let Some(account) = spec["serviceAccountName"].as_str().map(str::to_owned) {
        spec["serviceAccount"] = json!(account);
    }
    let host_network = spec.get("hostNetwork") == Some(&json!(true));
    for field in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(spec, &format!("/{field}")) {
            let image = container["image"].as_str().unwrap_or_default();
            let tag = image.rsplit('/').next().unwrap_or_default();
            let latest = !image.contains('@') && (!tag.contains(':') || tag.ends_with(":latest"));
            default(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
            default(container, "terminationMessagePath", json!("/dev/termination-log"));
            default(container, "terminationMessagePolicy", json!("File"));
            default(container, "resources", json!({}));
            for port in items(container, "/ports") {
                default(port, "protocol", json!("TCP"));
                if host_network {
                    let number = port["containerPort"].clone();
                    default(port, "hostPort", number);
                }
            }
            for hook in ["/lifecycle/postStart", "/lifecycle/preStop"] {
                if let Some(get) = container.pointer_mut(hook).and_then(|hook| hook.get_mut("httpGet")) {
                    default(get, "scheme", json!("HTTP"));
                    default(get, "path", json!("/"));
                }
            }
            for variable in items(container, "/env") {
                if variable["valueFrom"]["fieldRef"].is_object() {
                    default(&mut variable["valueFrom"]["fieldRef"], "apiVersion", json!("v1"));
                }
            }
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                if container[probe].is_object() {
                    let probe = &mut container[probe];
                    for (field, value) in
                        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
                    {
                        default(probe, field, json!(value));
                    }
                    if probe["httpGet"].is_object() {
                        default(&mut probe["httpGet"], "scheme", json!("HTTP"));
                        default(&mut probe["httpGet"], "path", json!("/"));
                    }
                    if probe["grpc"].is_object() {
                        default(&mut probe["grpc"], "service", json!(""));
                    }
                } else if let Some(map) = container.as_object_mut() {
                    map.remove(probe);
                }
            }
        }
        if spec[field].is_null()
            && let Some(map) = spec.as_object_mut()
        {
            map.remove(field);
        }
    }
    for volume in items(spec, "/volumes") {
        if volume.as_object().is_some_and(|volume| volume.keys().all(|field| field == "name")) {
            volume["emptyDir"] = json!({});
        }
        if volume.get("hostPath").is_some_and(Value::is_object) {
            default(&mut volume["hostPath"], "type", json!(""));
        }
        if let Some(claim) = volume.pointer_mut("/ephemeral/volumeClaimTemplate/spec") {
            default(claim, "volumeMode", json!("Filesystem"));
        }
        for source in ["secret", "configMap", "downwardAPI", "projected"] {
            if volume[source].is_object() {
                default(&mut volume[source], "defaultMode", json!(420));
            } else if let Some(map) = volume.as_object_mut() {
                map.remove(source);
            }
        }
        for source in items(volume, "/projected/sources") {
            if source["serviceAccountToken"].is_object() {
                default(&mut source["serviceAccountToken"], "expirationSeconds", json!(3600));
            }
            for item in items(source, "/downwardAPI/items") {
                if item["fieldRef"].is_object() {
                    default(&mut item["fieldRef"], "apiVersion", json!("v1"));
                }
            }
            drop_nulls(source);
        }
        for item in items(volume, "/downwardAPI/items") {
            if item["fieldRef"].is_object() {
                default(&mut item["fieldRef"], "apiVersion", json!("v1"));
            }
        }
        drop_nulls(volume);
    }
    drop_nulls(spec);
}

/// Looking into a field that is not there puts a null in its place: take those away again.
fn drop_nulls(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.retain(|_, value| !value.is_null());
        for value in map.values_mut() {
            match value {
                Value::Object(_) => drop_nulls(value),
                Value::Array(items) => items.iter_mut().for_each(drop_nulls),
                _ => {}
            }
        }
    }
}

fn service(spec: &mut Value) {
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    for port in items(spec, "/ports") {
        default(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        if port["targetPort"] == json!("") || port["targetPort"] == json!(0) {
            port["targetPort"] = Value::Null;
        }
        if kind != "ExternalName" {
            default(port, "targetPort", number);
        }
        drop_nulls(port);
    }
    if kind != "ExternalName" {
        default(spec, "internalTrafficPolicy", json!("Cluster"));
        default(spec, "ipFamilies", json!(["IPv4"]));
        default(spec, "ipFamilyPolicy", json!("SingleStack"));
    }
    if spec["sessionAffinity"] == "ClientIP" {
        default(spec, "sessionAffinityConfig", json!({}));
        default(&mut spec["sessionAffinityConfig"], "clientIP", json!({}));
        default(&mut spec["sessionAffinityConfig"]["clientIP"], "timeoutSeconds", json!(10_800));
    } else if let Some(spec) = spec.as_object_mut() {
        spec.remove("sessionAffinityConfig");
    }
    let by_hand = spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty());
    if matches!(kind.as_str(), "LoadBalancer" | "NodePort") || (kind == "ClusterIP" && by_hand) {
        default(spec, "externalTrafficPolicy", json!("Cluster"));
    } else if let Some(spec) = spec.as_object_mut() {
        // What only those types have goes with them.
        for field in ["externalTrafficPolicy", "healthCheckNodePort"] {
            spec.remove(field);
        }
    }
    if kind != "LoadBalancer"
        && let Some(spec) = spec.as_object_mut()
    {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            spec.remove(field);
        }
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    drop_nulls(spec);
}

fn secret(object: &mut Value) {
    default(object, "type", json!("Opaque"));
    let Some(map) = object.as_object_mut() else { return };
    if let Some(Value::Object(plain)) = map.remove("stringData") {
        let data = map.entry("data").or_insert_with(|| json!({}));
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            data[key] = json!(base64::engine::general_purpose::STANDARD.encode(text));
        }
    }
}

fn webhooks(object: &mut Value) {
    for webhook in items(object, "/webhooks") {
        default(webhook, "failurePolicy", json!("Fail"));
        default(webhook, "matchPolicy", json!("Equivalent"));
        default(webhook, "timeoutSeconds", json!(10));
        default(webhook, "namespaceSelector", json!({}));
        default(webhook, "objectSelector", json!({}));
        if webhook["clientConfig"]["service"].is_object() {
            default(&mut webhook["clientConfig"]["service"], "port", json!(443));
        }
        for rule in items(webhook, "/rules") {
            default(rule, "scope", json!("*"));
        }
        drop_nulls(webhook);
    }
    if let Some(map) = object.as_object_mut()
        && map.get("webhooks").is_some_and(Value::is_null)
    {
        map.remove("webhooks");
    }
}

fn crd(object: &mut Value) {
    let names = &mut object["spec"]["names"];
    let kind = names["kind"].as_str().unwrap_or_default().to_owned();
    default(names, "singular", json!(kind.to_lowercase()));
    default(names, "listKind", json!(format!("{kind}List")));
    default(&mut object["spec"], "conversion", json!({"strategy": "None"}));
    let stored: Vec<Value> = object["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|version| version["storage"] == true)
        .map(|version| version["name"].clone())
        .collect();
    default(object, "status", json!({}));
    let known: Vec<Value> = object["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    let mut versions = known.clone();
    versions.extend(stored.into_iter().filter(|version| !known.contains(version)));
    object["status"]["storedVersions"] = Value::Array(versions);
    let finalizer = json!("customresourcecleanup.apiextensions.k8s.io");
    if object["metadata"]["deletionTimestamp"].is_null() {
        default(&mut object["metadata"], "finalizers", json!([]));
        if let Some(list) = object["metadata"]["finalizers"].as_array_mut()
            && !list.contains(&finalizer)
        {
            list.push(finalizer);
        }
    }
    if let Some(map) = object["metadata"].as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
}

/// Ports that nodes lend to Services, Kubernetes' default range.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// The ClusterIPs and node ports of one server.
#[derive(Debug)]
pub(crate) struct Addresses {
    base: u32,
    size: u32,
    used: Mutex<HashSet<u32>>,
    /// A port is one Service's, whatever the protocol; a Service may use it once for each.
    ports: Mutex<HashSet<u16>>,
}

/// What a write took of the server's addresses.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    ip: Option<Ipv4Addr>,
    ports: Vec<u16>,
}

impl Addresses {
    /// The addresses of a network such as `10.96.0.0/16`, with those already in use.
    ///
    /// # Errors
    ///
    /// When that is not an IPv4 network with room for services.
    pub(crate) fn new<'a>(cidr: &str, services: impl Iterator<Item = &'a Value>) -> Result<Self, String> {
        let parse = || {
            let (base, bits) = cidr.split_once('/')?;
            let (base, bits): (Ipv4Addr, u32) = (base.parse().ok()?, bits.parse().ok()?);
            (8..=28).contains(&bits).then(|| (u32::from(base) & (u32::MAX << (32 - bits)), 1_u32 << (32 - bits)))
        };
        let (base, size) = parse().ok_or_else(|| format!("`{cidr}` is not an IPv4 network between /8 and /28"))?;
        let mut used = HashSet::from([base, base + 1, base + size - 1]);
        let mut ports = HashSet::new();
        for service in services {
            used.extend(ip_of(service).map(u32::from));
            ports.extend(node_ports(service));
        }
        Ok(Self { base, size, used: Mutex::new(used), ports: Mutex::new(ports) })
    }

    /// The first address: that of `kubernetes.default`.
    #[must_use]
    pub(crate) fn first(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    fn take(&self, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, &'static str> {
        let mut used = self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let found = match wanted.map(u32::from) {
            Some(wanted) if wanted.wrapping_sub(self.base) >= self.size => {
                return Err("the provided IP is not in the valid range of service addresses");
            }
            Some(wanted) => wanted,
            None => {
                // The lower 256 are left for addresses chosen by hand.
                let low = self.base + 256.min(self.size / 2);
                let free = (low..self.base + self.size - 1).chain(self.base + 2..low);
                let start = rand::random_range(0..64);
                let mut free = free.filter(|ip| !used.contains(ip));
                free.nth(start)
                    .or_else(|| (self.base + 2..self.base + self.size - 1).find(|ip| !used.contains(ip)))
                    .ok_or("the service network is used up")?
            }
        };
        if used.insert(found) { Ok(Ipv4Addr::from(found)) } else { Err("provided IP is already allocated") }
    }

    fn take_port(&self, wanted: Option<u16>) -> Result<u16, &'static str> {
        let mut ports = self.ports.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let found = match wanted {
            Some(wanted) if !NODE_PORTS.contains(&wanted) => {
                return Err("provided port is not in the valid range. The range of valid ports is 30000-32767");
            }
            Some(wanted) => wanted,
            None => {
                // The lower 86 are left for ports chosen by hand (KEP-3682).
                let start = rand::random_range(NODE_PORTS.start() + 86..=*NODE_PORTS.end());
                let mut all = (start..=*NODE_PORTS.end()).chain(*NODE_PORTS.start()..start);
                all.find(|port| !ports.contains(port)).ok_or("the range of node ports is used up")?
            }
        };
        if ports.insert(found) { Ok(found) } else { Err("provided port is already allocated") }
    }

    fn give_back(&self, taken: &Taken) {
        if let Some(ip) = taken.ip {
            self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&u32::from(ip));
        }
        let mut ports = self.ports.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for port in &taken.ports {
            ports.remove(port);
        }
    }
}

fn ip_of(service: &Value) -> Option<Ipv4Addr> {
    service["spec"]["clusterIP"].as_str()?.parse().ok()
}

/// All ports of nodes that a Service has.
fn node_ports(service: &Value) -> impl Iterator<Item = u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten().map(|port| &port["nodePort"]);
    let all = ports.chain([&service["spec"]["healthCheckNodePort"]]);
    all.filter_map(|port| u16::try_from(port.as_u64()?).ok()).filter(|port| *port != 0)
}

/// Gives a Service its ClusterIP and node ports. Returns what was newly taken.
///
/// # Errors
///
/// When what it wants is not to be had.
pub(crate) fn allocate(
    api: &Api,
    resource: &Resource,
    before: Option<&Value>,
    object: &mut Value,
    dry_run: bool,
) -> Result<Taken> {
    let mut taken = Taken::default();
    if &*resource.storage != "services" {
        return Ok(taken);
    }
    let given = allocate_ip(&api.addresses, before, object, &mut taken)
        .and_then(|()| allocate_ports(&api.addresses, before, object, &mut taken));
    if dry_run || given.is_err() {
        release(api, &taken);
        taken = Taken::default();
    }
    match given {
        Ok(()) => Ok(taken),
        Err(cause) => {
            Err(Failure::invalid("Service", "", object["metadata"]["name"].as_str().unwrap_or_default(), &[cause]))
        }
    }
}

fn allocate_ip(
    addresses: &Addresses,
    before: Option<&Value>,
    object: &mut Value,
    taken: &mut Taken,
) -> Result<(), Cause> {
    let old = before.and_then(|old| old["spec"]["clusterIP"].as_str()).unwrap_or_default();
    let spec = &mut object["spec"];
    if spec["type"] == "ExternalName" {
        if let Some(map) = spec.as_object_mut() {
            map.remove("clusterIP");
            map.remove("clusterIPs");
        }
        return Ok(());
    }
    let first = spec["clusterIPs"][0].as_str().unwrap_or_default();
    let wanted = spec["clusterIP"].as_str().filter(|ip| !ip.is_empty()).unwrap_or(first).to_owned();
    let ip = match wanted.as_str() {
        "" if !old.is_empty() => old.to_owned(),
        "None" => "None".into(),
        same if !same.is_empty() && same == old => old.to_owned(),
        wanted => {
            let wanted: Option<Ipv4Addr> = wanted.parse().ok();
            let ip = addresses.take(wanted);
            let ip = ip.map_err(|why| {
                let why =
                    format!("failed to allocate IP {}: {why}", wanted.map_or_else(String::new, |ip| ip.to_string()));
                Cause::invalid("spec.clusterIPs", &json!([wanted]), &why)
            })?;
            taken.ip = Some(ip);
            ip.to_string()
        }
    };
    spec["clusterIP"] = json!(ip);
    spec["clusterIPs"] = json!([ip]);
    Ok(())
}

/// Ports of nodes: kept where the Service had them, new where it has none and needs some.
fn allocate_ports(
    addresses: &Addresses,
    before: Option<&Value>,
    object: &mut Value,
    taken: &mut Taken,
) -> Result<(), Cause> {
    let spec = &mut object["spec"];
    let balanced = spec["type"] == "LoadBalancer";
    let wanted = spec["type"] == "NodePort" || (balanced && spec["allocateLoadBalancerNodePorts"] != json!(false));
    let mut held: HashSet<u16> = before.map(|old| node_ports(old).collect()).unwrap_or_default();
    let mut take = |asked: Option<u16>| -> Result<u16, &'static str> {
        if let Some(asked) = asked.filter(|asked| held.contains(asked)) {
            return Ok(asked);
        }
        let port = addresses.take_port(asked)?;
        held.insert(port);
        taken.ports.push(port);
        Ok(port)
    };
    let known = before.and_then(|old| old["spec"]["ports"].as_array()).map(Vec::as_slice).unwrap_or_default();
    let local = balanced && spec["externalTrafficPolicy"] == "Local";
    for (index, port) in items(spec, "/ports").enumerate() {
        let asked = port["nodePort"].as_u64().and_then(|asked| u16::try_from(asked).ok()).filter(|asked| *asked != 0);
        if asked.is_none() && !wanted {
            drop_nulls(port);
            continue;
        }
        // A client that does not know of it does not give it up: the same port keeps what it had.
        let same = |old: &&Value| old["port"] == port["port"] && old["protocol"] == port["protocol"];
        let had = known.iter().find(same).and_then(|old| u16::try_from(old["nodePort"].as_u64()?).ok());
        let number = take(asked.or(had.filter(|had| *had != 0)))
            .map_err(|why| Cause::invalid(format!("spec.ports[{index}].nodePort"), &json!(asked), why))?;
        port["nodePort"] = json!(number);
    }
    if local {
        let asked = spec["healthCheckNodePort"].as_u64().and_then(|asked| u16::try_from(asked).ok());
        let had = before.and_then(|old| u16::try_from(old["spec"]["healthCheckNodePort"].as_u64()?).ok());
        let number = take(asked.filter(|asked| *asked != 0).or(had))
            .map_err(|why| Cause::invalid("spec.healthCheckNodePort", &json!(asked), why))?;
        spec["healthCheckNodePort"] = json!(number);
    }
    drop_nulls(spec);
    Ok(())
}

/// Gives back what was taken for a write that did not happen.
pub(crate) fn release(api: &Api, taken: &Taken) {
    api.addresses.give_back(taken);
}

/// What a Service had and no longer has becomes free: all of it, when the Service is gone.
pub(crate) fn forget(api: &Api, before: &Value, now: Option<&Value>) {
    let kept: HashSet<u16> = now.map(|now| node_ports(now).collect()).unwrap_or_default();
    let ip = ip_of(before).filter(|ip| now.and_then(ip_of) != Some(*ip));
    let ports = node_ports(before).filter(|port| !kept.contains(port)).collect();
    api.addresses.give_back(&Taken { ip, ports });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once() {
        let service = json!({"spec": {"clusterIP": "10.96.0.10"}});
        let addresses = Addresses::new("10.96.0.0/28", [&service].into_iter()).unwrap();
        assert_eq!(addresses.first(), Ipv4Addr::new(10, 96, 0, 1));
        assert!(addresses.take(Some(Ipv4Addr::new(10, 96, 0, 10))).is_err());
        assert!(addresses.take(Some(Ipv4Addr::new(10, 97, 0, 10))).is_err());
        let taken: HashSet<_> = std::iter::from_fn(|| addresses.take(None).ok()).collect();
        assert_eq!(taken.len(), 12, "all of .2 to .14 but .10");
        assert!(Addresses::new("nonsense", std::iter::empty()).is_err());
    }

    #[test]
    fn ports_of_nodes_are_kept_and_given_back() {
        let addresses = Addresses::new("10.96.0.0/24", std::iter::empty()).unwrap();
        let mut service = json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30_080},
            {"port": 81, "protocol": "TCP"}]}});
        let mut taken = Taken::default();
        allocate_ports(&addresses, None, &mut service, &mut taken).unwrap();
        let second = service["spec"]["ports"][1]["nodePort"].as_u64().unwrap();
        assert_eq!((service["spec"]["ports"][0]["nodePort"].as_u64(), taken.ports.len()), (Some(30_080), 2));
        assert!(NODE_PORTS.contains(&u16::try_from(second).unwrap()));
        // Written again by somebody who knows nothing of ports of nodes.
        let mut again = json!({"spec": {"type": "NodePort", "ports": [{"port": 81, "protocol": "TCP"}]}});
        let mut more = Taken::default();
        allocate_ports(&addresses, Some(&service), &mut again, &mut more).unwrap();
        assert_eq!((again["spec"]["ports"][0]["nodePort"].as_u64(), more.ports.len()), (Some(second), 0));
        let mut other = json!({"spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": 30_080}]}});
        let cause = allocate_ports(&addresses, None, &mut other, &mut more).unwrap_err();
        assert_eq!(cause.message, "Invalid value: 30080: provided port is already allocated");
        addresses.give_back(&taken);
        allocate_ports(&addresses, None, &mut other, &mut more).unwrap();
        other["spec"]["ports"][0]["nodePort"] = json!(80);
        assert!(allocate_ports(&addresses, None, &mut other, &mut more).is_err());
    }

    #[test]
    fn classes_of_service() {
        let table = crate::registry::Registry::new([]).table();
        let pods = table.find("", "v1", "pods").unwrap();
        let cases = [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}}),
                "Guaranteed",
            ),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}), "Burstable"),
            (json!({"limits": {"example.com/gpu": "1"}}), "BestEffort"),
        ];
        for (resources, class) in cases {
            let mut pod = json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}});
            fill(pods, &mut pod);
            assert_eq!(pod["status"]["qosClass"], class, "{resources}");
        }
    }

    #[test]
    fn defaults_are_filled_in_once() {
        let table = crate::registry::Registry::new([]).table();
        let deployments = table.find("apps", "v1", "deployments").unwrap();
        let mut object = json!({"metadata": {"name": "a"}, "spec": {"selector": {}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "x:1", "ports": [{"containerPort": 80}]}]}}}});
        fill(deployments, &mut object);
        let once = object.clone();
        fill(deployments, &mut object);
        assert_eq!(once, object);
        assert_eq!(object["spec"]["replicas"], 1);
        assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"], "IfNotPresent");
        assert!(!object["spec"]["template"]["spec"].as_object().unwrap().values().any(Value::is_null));
    }

    #[test]
    fn whatever_is_filled_in_stays_and_has_its_type() {
        use stolos_k8s::schema::builtin;
        let table = crate::registry::Registry::new([]).table();
        for resource in table.stored() {
            for spec in [json!({}), json!({"template": {"spec": {"containers": [{}]}}, "ports": [{}], "limits": [{}]})]
            {
                let metadata = json!({"name": "a", "creationTimestamp": "2001-09-09T01:45:40Z"});
                let mut object = json!({"metadata": metadata, "spec": spec});
                let definition = builtin::types().of_kind(&resource.group, &resource.version, &resource.kind).unwrap();
                builtin::read(definition, &mut object).unwrap();
                fill(&resource, &mut object);
                let once = object.clone();
                fill(&resource, &mut object);
                assert_eq!(once, object, "{}", resource.storage);
                let unknown = builtin::read(definition, &mut object);
                assert_eq!(unknown.as_deref(), Ok(&[][..]), "{}: {object}", resource.storage);
                assert_eq!(once, object, "{}", resource.storage);
            }
        }
    }
}
