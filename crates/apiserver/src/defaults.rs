//! What built-in kinds are filled in with, as Kubernetes does, because clients rely on it.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::api::Api;
use crate::failure::{Cause, Failure, Result};
use crate::registry::Resource;

/// Whether a status given at creation is kept: for kinds whose controllers create them whole.
#[must_use]
pub(crate) fn keeps_status_at_creation(resource: &Resource) -> bool {
    matches!(&*resource.storage, "nodes" | "apiservices.apiregistration.k8s.io")
}

/// Fills in the defaults of a built-in kind.
pub(crate) fn fill(resource: &Resource, object: &mut Value) {
    match &*resource.storage {
        "pods" => {
            pod_spec(&mut object["spec"]);
            if object["status"].is_null() {
                object["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"});
            }
            default(&mut object["spec"], "enableServiceLinks", json!(true));
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
            template(&mut object["spec"]);
            default(object, "status", json!({"replicas": 0}));
        }
        "statefulsets.apps" => {
            let spec = &mut object["spec"];
            default(spec, "replicas", json!(1));
            default(spec, "revisionHistoryLimit", json!(10));
            default(spec, "podManagementPolicy", json!("OrderedReady"));
            default(spec, "updateStrategy", json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
            template(spec);
            default(object, "status", json!({"replicas": 0, "availableReplicas": 0}));
        }
        "daemonsets.apps" => {
            let spec = &mut object["spec"];
            default(spec, "revisionHistoryLimit", json!(10));
            let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}});
            default(spec, "updateStrategy", rolling);
            template(spec);
            let none = json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0});
            default(object, "status", none);
        }
        "jobs.batch" => {
            let spec = &mut object["spec"];
            for (field, value) in [
                ("parallelism", json!(1)),
                ("completions", json!(1)),
                ("backoffLimit", json!(6)),
                ("completionMode", json!("NonIndexed")),
                ("suspend", json!(false)),
            ] {
                default(spec, field, value);
            }
            template(spec);
            status(object);
        }
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

fn template(spec: &mut Value) {
    if spec["template"].is_object() {
        pod_spec(&mut spec["template"]["spec"]);
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
    for field in ["initContainers", "containers"] {
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
    if matches!(kind.as_str(), "LoadBalancer" | "NodePort") {
        default(spec, "externalTrafficPolicy", json!("Cluster"));
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
    // Served from the moment it is stored, so it is established with the very first write.
    let names = object["spec"]["names"].clone();
    let stored: Vec<Value> = object["spec"]["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|version| version["storage"] == true)
        .map(|version| version["name"].clone())
        .collect();
    let at = object["metadata"]["creationTimestamp"].clone();
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": at});
    default(object, "status", json!({}));
    object["status"]["acceptedNames"] = names;
    let known: Vec<Value> = object["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
    let mut versions = known.clone();
    versions.extend(stored.into_iter().filter(|version| !known.contains(version)));
    object["status"]["storedVersions"] = Value::Array(versions);
    if object["status"]["conditions"].as_array().is_none_or(Vec::is_empty) {
        object["status"]["conditions"] = json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]);
    }
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

/// The ClusterIPs of one server.
#[derive(Debug)]
pub(crate) struct Addresses {
    base: u32,
    size: u32,
    used: Mutex<HashSet<u32>>,
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
        let ips = services.filter_map(|service| service["spec"]["clusterIP"].as_str()?.parse::<Ipv4Addr>().ok());
        let used: HashSet<u32> = ips.map(u32::from).chain([base, base + 1, base + size - 1]).collect();
        Ok(Self { base, size, used: Mutex::new(used) })
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

    fn give_back(&self, ip: &str) {
        if let Ok(ip) = ip.parse::<Ipv4Addr>() {
            self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&u32::from(ip));
        }
    }
}

/// Gives a Service its ClusterIP, and takes back the one it no longer wants. Returns what was newly taken.
///
/// # Errors
///
/// When the wanted address is not to be had.
pub(crate) fn allocate(
    api: &Api,
    resource: &Resource,
    before: Option<&Value>,
    object: &mut Value,
    dry_run: bool,
) -> Result<Option<String>> {
    if &*resource.storage != "services" {
        return Ok(None);
    }
    let old = before.and_then(|old| old["spec"]["clusterIP"].as_str()).unwrap_or_default().to_owned();
    let spec = &mut object["spec"];
    if spec["type"] == "ExternalName" {
        if let Some(map) = spec.as_object_mut() {
            map.remove("clusterIP");
            map.remove("clusterIPs");
        }
        return Ok(None);
    }
    let first = spec["clusterIPs"][0].as_str().unwrap_or_default();
    let wanted = spec["clusterIP"].as_str().filter(|ip| !ip.is_empty()).unwrap_or(first).to_owned();
    let ip = match wanted.as_str() {
        "" if !old.is_empty() => old.clone(),
        "None" => "None".into(),
        same if !same.is_empty() && same == old => old.clone(),
        wanted => {
            let wanted: Option<Ipv4Addr> = wanted.parse().ok();
            let taken = api.addresses.take(wanted).map_err(|why| {
                let cause = Cause::invalid("spec.clusterIPs", &json!([wanted]), why);
                Failure::invalid("Service", "", object["metadata"]["name"].as_str().unwrap_or_default(), &[cause])
            })?;
            taken.to_string()
        }
    };
    object["spec"]["clusterIP"] = json!(ip);
    object["spec"]["clusterIPs"] = json!([ip]);
    let taken = (ip != old && ip != "None").then_some(ip);
    if dry_run {
        release(api, taken.as_deref());
        return Ok(None);
    }
    Ok(taken)
}

/// Gives back an address that was taken for a write that did not happen, or of a Service that is gone.
pub(crate) fn release(api: &Api, ip: Option<&str>) {
    if let Some(ip) = ip {
        api.addresses.give_back(ip);
    }
}

/// The address of a Service that is gone becomes free.
pub(crate) fn forget(api: &Arc<Api>, service: &Value) {
    release(api, service["spec"]["clusterIP"].as_str());
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
}
