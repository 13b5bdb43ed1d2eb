//! ResourceQuotas: how much of what a namespace may have, and has.
//!
//! A write is charged before it is stored ([`charge`]): `status.used` of every quota that covers the object is raised, or
//! the write is refused in Kubernetes' words. What went, or was charged and then not stored, is counted anew by
//! [`count`], which the controllers call whenever something of a namespace with quotas has changed. The evaluators are
//! Kubernetes' (1.34, `pkg/quota/v1/evaluator/core`): pods with what they request, services by type, claims by class,
//! and any resource by `count/<resource>.<group>`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use stolos_k8s::meta;
use stolos_k8s::quantity::Quantity;

use crate::admit::Operation;
use crate::api::Api;
use crate::defaults;
use crate::failure::{Failure, Result};
use crate::registry::Resource;
use crate::verb::{self, How};

/// The storage of quotas.
pub(crate) const QUOTAS: &str = "resourcequotas";

/// Amounts by what they are amounts of.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// Reads `{"cpu": "1"}`.
pub(crate) fn amounts(value: &Value) -> Amounts {
    let read = |(name, amount): (&String, &Value)| {
        let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
        Some((name.clone(), Quantity::parse(&text).ok()?))
    };
    value.as_object().into_iter().flatten().filter_map(read).collect()
}

fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = to.get(name).map_or(*amount, |known| known.plus(*amount));
        to.insert(name.clone(), sum);
    }
}

fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        if to.get(name).is_none_or(|known| known.nano() < amount.nano()) {
            to.insert(name.clone(), *amount);
        }
    }
}

/// What a pod asks for, `requests` or `limits`: its containers together, or the largest moment of its beginning
/// (init containers one after another, those that stay beside the rest, KEP-753), or what the pod says as a whole
/// (KEP-2837).
pub(crate) fn of_pod(spec: &Value, which: &str) -> Amounts {
    let each = |list: &str| spec[list].as_array().cloned().unwrap_or_default();
    let mut all = Amounts::new();
    for container in each("containers") {
        add(&mut all, &amounts(&container["resources"][which]));
    }
    let (mut staying, mut beginning) = (Amounts::new(), Amounts::new());
    for container in each("initContainers") {
        let own = amounts(&container["resources"][which]);
        if container["restartPolicy"] == "Always" {
            add(&mut all, &own);
            add(&mut staying, &own);
            raise(&mut beginning, &staying);
        } else {
            let mut moment = own;
            add(&mut moment, &staying);
            raise(&mut beginning, &moment);
        }
    }
    raise(&mut all, &beginning);
    for (name, amount) in amounts(&spec["resources"][which]) {
        all.insert(name, amount);
    }
    all
}

/// Names of resources that are no extended ones (Kubernetes' `IsNativeResource`).
fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn of_compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut all = Amounts::new();
    for (name, amount) in requests {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                all.insert(name.clone(), *amount);
                all.insert(format!("requests.{name}"), *amount);
            }
            huge if huge.starts_with("hugepages-") => {
                all.insert(name.clone(), *amount);
                all.insert(format!("requests.{name}"), *amount);
            }
            extended if !is_native(extended) => {
                all.insert(format!("requests.{name}"), *amount);
            }
            _ => {}
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(amount) = limits.get(name) {
            all.insert(format!("limits.{name}"), *amount);
        }
    }
    all
}

/// Whether a pod still holds what it asked for.
fn is_alive(pod: &Value, now: jiff::Timestamp) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return false;
    }
    let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_i64().map(jiff::SignedDuration::from_secs);
    let gone = meta::deletion_timestamp(pod).and_then(|at| at.parse::<jiff::Timestamp>().ok()).zip(grace);
    gone.is_none_or(|(at, grace)| now <= at + grace)
}

/// What an object of a stored resource takes.
fn usage(storage: &str, object: &Value, now: jiff::Timestamp) -> Amounts {
    let one = Quantity::of(1);
    let mut all = Amounts::from([(format!("count/{storage}"), one)]);
    match storage {
        "pods" if is_alive(object, now) => {
            all.insert("pods".into(), one);
            let spec = &object["spec"];
            add(&mut all, &of_compute(&of_pod(spec, "requests"), &of_pod(spec, "limits")));
        }
        "services" => {
            all.insert("services".into(), one);
            let spec = &object["spec"];
            let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
            let balanced = spec["type"] == "LoadBalancer";
            let lent = match spec["type"].as_str() {
                Some("NodePort") => ports.len(),
                Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => {
                    ports.iter().filter(|port| port["nodePort"].as_u64().is_some_and(|port| port > 0)).count()
                }
                Some("LoadBalancer") => ports.len(),
                _ => 0,
            };
            all.insert("services.loadbalancers".into(), Quantity::of(u32::from(balanced)));
            all.insert("services.nodeports".into(), Quantity::of(u32::try_from(lent).unwrap_or(u32::MAX)));
        }
        "persistentvolumeclaims" => {
            all.insert(storage.into(), one);
            let class = object["spec"]["storageClassName"].as_str().unwrap_or_default();
            let of_class = |what: &str| format!("{class}.storageclass.storage.k8s.io/{what}");
            let room = amounts(&object["spec"]["resources"]["requests"]).get("storage").copied();
            if !class.is_empty() {
                all.insert(of_class(storage), one);
            }
            if let Some(room) = room {
                all.insert("requests.storage".into(), room);
                if !class.is_empty() {
                    all.insert(of_class("requests.storage"), room);
                }
            }
        }
        "configmaps" | "secrets" | "resourcequotas" | "replicationcontrollers" => {
            all.insert(storage.into(), one);
        }
        _ => {}
    }
    all
}

/// The stored resource whose objects take of `name`; none for what is not known.
fn taken_by(name: &str) -> Option<&str> {
    if let Some(counted) = name.strip_prefix("count/") {
        return Some(counted);
    }
    if name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/") {
        return Some("persistentvolumeclaims");
    }
    match name {
        "services" | "services.loadbalancers" | "services.nodeports" => Some("services"),
        "persistentvolumeclaims" | "configmaps" | "secrets" | "resourcequotas" | "replicationcontrollers" => Some(name),
        "pods" | "cpu" | "memory" | "ephemeral-storage" => Some("pods"),
        _ if ["requests.", "limits.", "hugepages-"].iter().any(|start| name.starts_with(start)) => Some("pods"),
        _ => None,
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether a pod asks for company in other namespaces.
fn looks_abroad(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let rules = &pod["spec"]["affinity"][kind];
        let required = rules["requiredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten();
        let preferred = rules["preferredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten();
        let mut terms = required.chain(preferred.map(|term| &term["podAffinityTerm"]));
        terms.any(|term| !texts(&term["namespaces"]).is_empty() || term["namespaceSelector"].is_object())
    })
}

/// Whether a quota's scopes cover an object. Only pods have any.
fn in_scope(quota: &Value, storage: &str, object: &Value) -> bool {
    let spec = &quota["spec"];
    let short = texts(&spec["scopes"]).into_iter().map(|scope| json!({"scopeName": scope, "operator": "Exists"}));
    let long = spec["scopeSelector"]["matchExpressions"].as_array().cloned().unwrap_or_default();
    short.chain(long).all(|rule| {
        if storage != "pods" {
            return false;
        }
        let deadline = object["spec"]["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
        let best_effort = || defaults::qos_class(&object["spec"]) == "BestEffort";
        let class = object["spec"]["priorityClassName"].as_str().filter(|class| !class.is_empty());
        match rule["scopeName"].as_str().unwrap_or_default() {
            "Terminating" => deadline,
            "NotTerminating" => !deadline,
            "BestEffort" => best_effort(),
            "NotBestEffort" => !best_effort(),
            "PriorityClass" => match rule["operator"].as_str() {
                Some("In") => class.is_some_and(|class| texts(&rule["values"]).contains(&class)),
                Some("NotIn") => class.is_none_or(|class| !texts(&rule["values"]).contains(&class)),
                Some("DoesNotExist") => class.is_none(),
                _ => class.is_some(),
            },
            "CrossNamespacePodAffinity" => looks_abroad(object),
            _ => false,
        }
    })
}

/// Which of the quota's resources an object of this storage could take of.
fn covered<'a>(hard: &'a Amounts, storage: &'a str) -> impl Iterator<Item = &'a str> {
    hard.keys().map(String::as_str).filter(move |name| taken_by(name) == Some(storage))
}

/// What every container must ask for when these are limited: Kubernetes' list, which it regrets.
const ASKED_FOR: [&str; 6] = ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];

/// Says which limited resources which containers do not ask for.
fn unasked(hard: &Amounts, pod: &Value) -> Option<String> {
    if pod["spec"]["resources"].as_object().is_some_and(|own| !own.is_empty()) {
        return None;
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in ["containers", "initContainers"].iter().filter_map(|list| pod["spec"][list].as_array()).flatten() {
        let resources = &container["resources"];
        let asked = of_compute(&amounts(&resources["requests"]), &amounts(&resources["limits"]));
        for name in ASKED_FOR.iter().filter(|name| hard.contains_key(**name) && !asked.contains_key(**name)) {
            missing.entry(name).or_default().insert(container["name"].as_str().unwrap_or_default());
        }
    }
    let said = missing.iter().map(|(name, containers)| {
        let containers: Vec<&str> = containers.iter().copied().collect();
        format!("{name} for: {}", containers.join(","))
    });
    let said: Vec<String> = said.collect();
    (!said.is_empty()).then(|| format!("must specify {}", said.join("; ")))
}

fn shown(all: &Amounts, of: &[&str]) -> String {
    let one = |name: &&str| format!("{name}={}", all.get(*name).copied().unwrap_or(Quantity::of(0)));
    of.iter().map(one).collect::<Vec<_>>().join(",")
}

/// `status.used` of a quota when `delta` is taken; why it cannot be.
fn used_with(quota: &Value, delta: &Amounts) -> std::result::Result<Amounts, String> {
    let (hard, mut used) = (amounts(&quota["status"]["hard"]), amounts(&quota["status"]["used"]));
    let requested: Amounts =
        delta.iter().filter(|(name, _)| hard.contains_key(*name)).map(|(n, a)| (n.clone(), *a)).collect();
    let before = used.clone();
    add(&mut used, &requested);
    let exceeded: Vec<&str> = requested
        .keys()
        .filter(|name| used.get(*name).zip(hard.get(*name)).is_some_and(|(used, hard)| used.nano() > hard.nano()))
        .map(String::as_str)
        .collect();
    if exceeded.is_empty() {
        return Ok(used);
    }
    Err(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        meta::name(quota),
        shown(&requested, &exceeded),
        shown(&before, &exceeded),
        shown(&hard, &exceeded)
    ))
}

fn written(all: &Amounts) -> Value {
    all.iter().map(|(name, amount)| (name.clone(), json!(amount.to_string()))).collect::<serde_json::Map<_, _>>().into()
}

/// A write that has been charged and is not stored yet: until then nothing is counted anew.
#[derive(Debug)]
pub(crate) struct Charged(Arc<AtomicUsize>);

impl Charged {
    fn new(charging: &Arc<AtomicUsize>) -> Self {
        charging.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(charging))
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether a write can change what is used.
fn counts(storage: &str, operation: Operation, sub: &str, before: Option<&Value>, object: &Value) -> bool {
    match (operation, sub) {
        (Operation::Create, "") => true,
        (Operation::Update, "") if storage == "pods" => {
            let deadline = |pod: &Value| pod["spec"]["activeDeadlineSeconds"].is_null();
            before.is_some_and(|before| deadline(before) != deadline(object))
        }
        (Operation::Update, "") => matches!(storage, "services" | "persistentvolumeclaims"),
        (Operation::Update, "resize") => storage == "pods",
        _ => false,
    }
}

/// Charges a write to the quotas of its namespace.
///
/// # Errors
///
/// When one of them is exceeded, or the object does not say what is limited.
pub(crate) async fn charge(
    api: &Arc<Api>,
    resource: &Arc<Resource>,
    (operation, sub): (Operation, &str),
    before: Option<&Value>,
    object: &Value,
    how: &How,
) -> Result<Option<Charged>> {
    let (storage, namespace) = (&*resource.storage, meta::namespace(object));
    let cache = api.state.cache(QUOTAS);
    if cache.is_empty() || namespace.is_empty() || !counts(storage, operation, sub, before, object) {
        return Ok(None);
    }
    let quotas = cache.list(namespace);
    if quotas.is_empty() {
        return Ok(None);
    }
    let refused = |why: &str| Failure::forbidden(storage, meta::name(object), why);
    let now = jiff::Timestamp::now();
    let wanted = usage(storage, object, now);
    let charged = Charged::new(&api.charging);
    let table = api.registry.table();
    let quotas_resource = table.find("", "v1", QUOTAS).ok_or_else(|| Failure::internal("quotas are not served"))?;
    for quota in quotas {
        let hard = amounts(&quota.value["status"]["hard"]);
        if covered(&hard, storage).next().is_none() || !in_scope(&quota.value, storage, object) {
            continue;
        }
        if storage == "pods"
            && let Some(why) = unasked(&hard, object)
        {
            return Err(refused(&format!("failed quota: {}: {why}", meta::name(&quota.value))));
        }
        let mut delta = wanted.clone();
        if let Some(before) = before.filter(|before| in_scope(&quota.value, storage, before)) {
            let had = usage(storage, before, now);
            for (name, amount) in &mut delta {
                *amount = amount.less(had.get(name).copied().unwrap_or(Quantity::of(0)));
            }
        }
        delta.retain(|name, amount| amount.nano() > 0 && hard.contains_key(name));
        if delta.is_empty() {
            continue;
        }
        if how.dry_run {
            used_with(&quota.value, &delta).map_err(|why| refused(&why))?;
            continue;
        }
        let place = ("", namespace, meta::name(&quota.value));
        let internal = How::internal();
        let raising = verb::change(api, quotas_resource, (place.1, place.2, "status"), &internal, |quota| {
            let mut new = quota.clone();
            new["status"]["used"] = written(&used_with(quota, &delta).map_err(|why| refused(&why))?);
            Ok(new)
        });
        // A quota's own change may be charged in turn, but never to itself.
        match Box::pin(raising).await {
            // It has just been deleted.
            Err(failure) if failure.code == 404 => {}
            other => drop(other?),
        }
    }
    Ok(Some(charged))
}

/// What a quota's status should be.
fn counted(api: &Api, quota: &Value, now: jiff::Timestamp) -> Value {
    let hard = amounts(&quota["spec"]["hard"]);
    let mut used = Amounts::new();
    let storages: BTreeSet<&str> = hard.keys().filter_map(|name| taken_by(name)).collect();
    let table = api.registry.table();
    for storage in storages {
        // Of what is not served nothing is known, and nothing is said.
        if table.find_stored(storage).is_none() {
            continue;
        }
        let mut all: Amounts = covered(&hard, storage).map(|name| (name.to_owned(), Quantity::of(0))).collect();
        for object in api.state.cache(storage).list(meta::namespace(quota)) {
            if in_scope(quota, storage, &object.value) {
                let mut own = usage(storage, &object.value, now);
                own.retain(|name, _| hard.contains_key(name));
                add(&mut all, &own);
            }
        }
        add(&mut used, &all);
    }
    json!({"hard": written(&hard), "used": written(&used)})
}

/// Counts anew what a namespace uses.
///
/// # Errors
///
/// When something has been charged and is not stored yet, or storage fails: to be tried again.
pub(crate) async fn count(api: &Arc<Api>, namespace: &str) -> Result<()> {
    let quotas = api.state.cache(QUOTAS).list(namespace);
    let resource = api.registry.table().find("", "v1", QUOTAS).cloned();
    let resource = resource.ok_or_else(|| Failure::internal("quotas are not served"))?;
    for quota in quotas {
        let place = (namespace, meta::name(&quota.value), "status");
        let internal = How::internal();
        let changed = verb::change(api, &resource, place, &internal, |quota| {
            if api.charging.load(Ordering::Acquire) > 0 {
                return Err(Failure::too_many_requests("something is being charged"));
            }
            let mut new = quota.clone();
            new["status"] = counted(api, quota, jiff::Timestamp::now());
            Ok(new)
        });
        match changed.await {
            Err(failure) if failure.code == 404 => {}
            other => drop(other?),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> jiff::Timestamp {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    fn told(all: &Amounts) -> String {
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        shown(all, &names)
    }

    #[test]
    fn what_objects_take() {
        let container = |cpu: &str, memory: &str| {
            json!({"name": "c", "resources":
            {"requests": {"cpu": cpu, "memory": memory, "x.io/gpu": "1"}, "limits": {"cpu": "1"}}})
        };
        let init =
            |policy: Value| json!({"name": "i", "restartPolicy": policy, "resources": {"requests": {"cpu": "300m"}}});
        let pod = json!({"spec": {"containers": [container("100m", "1Gi"), container("100m", "512Mi")],
            "initContainers": [init(json!(null))]}});
        let beside =
            json!({"spec": {"containers": [container("100m", "1Gi")], "initContainers": [init(json!("Always"))]}});
        let mut over = pod.clone();
        over["status"] = json!({"phase": "Succeeded"});
        let service =
            |kind: &str| json!({"spec": {"type": kind, "ports": [{"port": 1}, {"port": 2, "nodePort": 30000}]}});
        let mut own = service("LoadBalancer");
        own["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        let claim = json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "1Gi"}}}});
        let rows = [
            ("pods", pod),
            ("pods", beside),
            ("pods", over),
            ("services", service("ClusterIP")),
            ("services", service("NodePort")),
            ("services", service("LoadBalancer")),
            ("services", own),
            ("persistentvolumeclaims", claim),
            ("secrets", json!({})),
            ("deployments.apps", json!({})),
        ];
        let said: Vec<String> = rows.iter().map(|(storage, object)| told(&usage(storage, object, now()))).collect();
        insta::assert_snapshot!(said.join("\n"), @r"
        count/pods=1,cpu=300m,limits.cpu=2,memory=1536Mi,pods=1,requests.cpu=300m,requests.memory=1536Mi,requests.x.io/gpu=2
        count/pods=1,cpu=400m,limits.cpu=1,memory=1Gi,pods=1,requests.cpu=400m,requests.memory=1Gi,requests.x.io/gpu=1
        count/pods=1
        count/services=1,services=1,services.loadbalancers=0,services.nodeports=0
        count/services=1,services=1,services.loadbalancers=0,services.nodeports=2
        count/services=1,services=1,services.loadbalancers=1,services.nodeports=2
        count/services=1,services=1,services.loadbalancers=1,services.nodeports=1
        count/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/persistentvolumeclaims=1,fast.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi
        count/secrets=1,secrets=1
        count/deployments.apps=1
        ");
    }

    #[test]
    fn what_is_exceeded_or_not_said_is_told_in_kubernetes_words() {
        let quota = json!({"metadata": {"name": "q"}, "status": {"hard": {"pods": "2", "requests.cpu": "1"},
            "used": {"pods": "2", "requests.cpu": "500m"}}});
        let delta = |text: Value| used_with(&quota, &amounts(&text)).map(|used| told(&used));
        assert_eq!(delta(json!({"requests.cpu": "500m", "memory": "1"})).unwrap(), "pods=2,requests.cpu=1");
        let why = delta(json!({"pods": "1", "requests.cpu": "600m"})).unwrap_err();
        let words = "exceeded quota: q, requested: pods=1,requests.cpu=600m, used: pods=2,requests.cpu=500m, limited: pods=2,requests.cpu=1";
        assert_eq!(why, words);
        let pod =
            json!({"spec": {"containers": [{"name": "b"}, {"name": "a", "resources": {"limits": {"cpu": "1"}}}]}});
        let hard = amounts(&json!({"limits.cpu": "1", "requests.cpu": "1", "pods": "1"}));
        assert_eq!(unasked(&hard, &pod).unwrap(), "must specify limits.cpu for: b; requests.cpu for: a,b");
        assert_eq!(unasked(&amounts(&json!({"pods": "1"})), &pod), None);
    }

    #[test]
    fn scopes_choose_pods() {
        let pod = |spec: Value| json!({"spec": spec});
        let plain = pod(json!({"containers": [{"name": "c"}]}));
        let bound = pod(json!({"activeDeadlineSeconds": 5, "priorityClassName": "high",
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}));
        let abroad = pod(json!({"containers": [], "affinity": {"podAffinity":
            {"requiredDuringSchedulingIgnoredDuringExecution": [{"namespaces": ["b"]}]}}}));
        let rule = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions":
            [{"scopeName": "PriorityClass", "operator": operator, "values": values}]}})
        };
        let rows = [
            (json!({"scopes": ["Terminating"]}), [false, true, false]),
            (json!({"scopes": ["NotTerminating"]}), [true, false, true]),
            (json!({"scopes": ["BestEffort"]}), [true, false, true]),
            (json!({"scopes": ["NotBestEffort", "Terminating"]}), [false, true, false]),
            (json!({"scopes": ["CrossNamespacePodAffinity"]}), [false, false, true]),
            (rule("In", json!(["high"])), [false, true, false]),
            (rule("NotIn", json!(["high"])), [true, false, true]),
            (rule("DoesNotExist", json!(null)), [true, false, true]),
            (json!({}), [true, true, true]),
        ];
        for (spec, expected) in rows {
            let quota = json!({"spec": spec});
            let found = [&plain, &bound, &abroad].map(|pod| in_scope(&quota, "pods", pod));
            assert_eq!(found, expected, "{spec}");
            assert_eq!(in_scope(&quota, "secrets", &json!({})), spec == json!({}), "only pods have scopes: {spec}");
        }
    }

    #[test]
    fn every_name_is_taken_by_one_resource() {
        let rows = [
            ("pods", "pods"),
            ("limits.cpu", "pods"),
            ("requests.storage", "persistentvolumeclaims"),
            ("a.storageclass.storage.k8s.io/requests.storage", "persistentvolumeclaims"),
            ("count/pods", "pods"),
            ("count/widgets.example.com", "widgets.example.com"),
            ("services.nodeports", "services"),
            ("requests.x.io/gpu", "pods"),
            ("hugepages-2Mi", "pods"),
        ];
        for (name, storage) in rows {
            assert_eq!(taken_by(name), Some(storage), "{name}");
        }
        assert_eq!(taken_by("nonsense"), None);
    }
}
