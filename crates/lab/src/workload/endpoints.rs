//! EndpointSlices, Endpoints and the pods' directory: which pods are behind which Service.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::{Trouble, condition, each, gone, is_code, owned_by, short_hash};
use crate::cluster::Shared;
use crate::directory::numeric;

const SERVICE: &str = "kubernetes.io/service-name";
const MANAGED: (&str, &str) = ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io");

pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let mut pods: HashMap<String, Vec<Arc<Pod>>> = HashMap::new();
    for pod in shared.caches.pods.list() {
        pods.entry(pod.namespace().unwrap_or_default()).or_default().push(pod);
    }
    let mut slices: HashMap<(String, String), Vec<Arc<EndpointSlice>>> = HashMap::new();
    for slice in shared.caches.slices.list() {
        if slice.labels().get(MANAGED.0).is_some_and(|by| by == MANAGED.1)
            && let Some(service) = slice.labels().get(SERVICE)
        {
            slices.entry((slice.namespace().unwrap_or_default(), service.clone())).or_default().push(slice);
        }
    }
    let mut work = Vec::new();
    for service in shared.caches.services.list() {
        if service.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let key = (service.namespace().unwrap_or_default(), service.name_any());
        let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty()) else {
            continue;
        };
        let selected = pods.get(&key.0).into_iter().flatten();
        let selected = selected.filter(|pod| selector.iter().all(|(k, v)| pod.labels().get(k) == Some(v)));
        let groups = group(&service, selected.map(AsRef::as_ref), shared.zone.as_deref());
        let existing = slices.remove(&key).unwrap_or_default();
        work.push(carry_out(&shared, service, groups, existing));
    }
    each(work.into_iter()).await
}

/// Pods that have the same numbers behind the Service's target ports.
type Groups = BTreeMap<Vec<Port>, Vec<Value>>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Port {
    name: String,
    number: u16,
    protocol: String,
    app_protocol: Option<String>,
}

impl Port {
    fn value(&self) -> Value {
        let mut value = json!({"name": self.name, "port": self.number, "protocol": self.protocol});
        if let Some(protocol) = &self.app_protocol {
            value["appProtocol"] = json!(protocol);
        }
        value
    }
}

fn group<'a>(service: &Service, pods: impl Iterator<Item = &'a Pod>, zone: Option<&str>) -> Groups {
    let mut groups = Groups::new();
    let spec = service.spec.clone().unwrap_or_default();
    let tolerant = spec.publish_not_ready_addresses == Some(true);
    for pod in pods {
        let Some(address) = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()) else { continue };
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("");
        if matches!(phase, "Succeeded" | "Failed") {
            continue;
        }
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let serving = condition(pod, "Ready");
        let pod_spec = pod.spec.clone().unwrap_or_default();
        let mut endpoint = json!({
            "addresses": [address],
            "conditions": {
                "ready": tolerant || serving && !terminating, "serving": tolerant || serving, "terminating": terminating,
            },
            "nodeName": pod_spec.node_name,
            "targetRef": {"kind": "Pod", "namespace": pod.namespace(), "name": pod.name_any(), "uid": pod.uid()},
        });
        if let Some(zone) = zone {
            endpoint["zone"] = json!(zone);
        }
        if let Some(hostname) =
            pod_spec.hostname.as_ref().filter(|_| pod_spec.subdomain.as_deref() == Some(&service.name_any()))
        {
            endpoint["hostname"] = json!(hostname);
        }
        groups.entry(ports(service, pod)).or_default().push(endpoint);
    }
    for endpoints in groups.values_mut() {
        endpoints.sort_by(|a, b| a["addresses"][0].as_str().cmp(&b["addresses"][0].as_str()));
    }
    if groups.is_empty() {
        groups.insert(Vec::new(), Vec::new());
    }
    groups
}

fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let containers = pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let named: HashMap<_, _> = containers
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| Some((p.name.as_deref()?, p.container_port as u16)))
        .collect();
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    let ports = ports.filter_map(|port| {
        let number = match &port.target_port {
            None => port.port as u16,
            Some(target) => match numeric(target) {
                Some(0) => port.port as u16,
                Some(number) => number,
                None => match target {
                    k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(name) => {
                        *named.get(name.as_str())?
                    }
                    k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(_) => return None,
                },
            },
        };
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            number,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            app_protocol: port.app_protocol.clone(),
        })
    });
    let mut ports: Vec<_> = ports.collect();
    ports.sort();
    ports
}

async fn carry_out(
    shared: &Shared,
    service: Arc<Service>,
    groups: Groups,
    existing: Vec<Arc<EndpointSlice>>,
) -> Result<(), Trouble> {
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let api: Api<EndpointSlice> = Api::namespaced(shared.client.clone(), &namespace);
    let mut kept = BTreeSet::new();
    for (ports, endpoints) in &groups {
        let ports: Vec<_> = ports.iter().map(Port::value).collect();
        let slice = format!("{name}-{}", short_hash(&json!([service.uid(), ports]), 5));
        let wanted = json!({"endpoints": endpoints, "ports": ports});
        kept.insert(slice.clone());
        match existing.iter().find(|known| known.name_any() == slice) {
            Some(known) => {
                let known = serde_json::to_value(known.as_ref()).unwrap_or_default();
                let list = |value: &Value, field: &str| value[field].as_array().cloned().unwrap_or_default();
                if ["endpoints", "ports"].iter().all(|f| list(&known, f) == list(&wanted, f)) {
                    continue;
                }
                match api.patch(&slice, &PatchParams::default(), &Patch::Merge(wanted)).await {
                    Ok(slice) => shared.caches.slices.wrote(slice),
                    Err(error) if is_code(&error, 404) => return Err(error.into()),
                    Err(error) => return Err(error.into()),
                }
            }
            None => {
                let mut labels = service.labels().clone();
                labels.insert(SERVICE.to_owned(), name.clone());
                labels.insert(MANAGED.0.to_owned(), MANAGED.1.to_owned());
                if service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()) == Some("None") {
                    labels.insert("service.kubernetes.io/headless".to_owned(), String::new());
                }
                let mut value = wanted;
                value["addressType"] = json!("IPv4");
                value["metadata"] = json!({
                    "name": slice, "namespace": namespace, "labels": labels,
                    "ownerReferences": [owned_by("v1", "Service", service.as_ref())],
                });
                let object: EndpointSlice = serde_json::from_value(value)?;
                match api.create(&PostParams::default(), &object).await {
                    Ok(slice) => shared.caches.slices.wrote(slice),
                    Err(error) if is_code(&error, 409) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    for stale in existing.iter().filter(|slice| !kept.contains(&slice.name_any())) {
        gone(api.delete(&stale.name_any(), &DeleteParams::default()).await)?;
    }
    legacy(shared, &service, &groups).await
}

/// The old Endpoints object, for those who still read it.
async fn legacy(shared: &Shared, service: &Service, groups: &Groups) -> Result<(), Trouble> {
    let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
    let subsets = groups.iter().filter(|(_, endpoints)| !endpoints.is_empty()).map(|(ports, endpoints)| {
        let entry = |endpoint: &Value| {
            let mut entry = json!({
                "ip": endpoint["addresses"][0], "nodeName": endpoint["nodeName"], "targetRef": endpoint["targetRef"],
            });
            if !endpoint["hostname"].is_null() {
                entry["hostname"] = endpoint["hostname"].clone();
            }
            entry
        };
        let ports: Vec<_> = ports.iter().map(Port::value).collect();
        let is_ready = |endpoint: &&Value| endpoint["conditions"]["ready"] == true;
        let ready: Vec<_> = endpoints.iter().filter(is_ready).map(entry).collect();
        let not_ready: Vec<_> = endpoints.iter().filter(|e| !is_ready(e)).map(entry).collect();
        let mut subset = json!({"ports": ports});
        if !ready.is_empty() {
            subset["addresses"] = json!(ready);
        }
        if !not_ready.is_empty() {
            subset["notReadyAddresses"] = json!(not_ready);
        }
        subset
    });
    let subsets: Vec<Value> = subsets.collect();
    let known = shared.caches.endpoints.get(&namespace, &name);
    let api: Api<Endpoints> = Api::namespaced(shared.client.clone(), &namespace);
    match known {
        Some(known) => {
            let old = serde_json::to_value(&known.subsets).unwrap_or_default();
            if old.as_array().cloned().unwrap_or_default() == subsets {
                return Ok(());
            }
            let patch = Patch::Merge(json!({"subsets": subsets}));
            shared.caches.endpoints.wrote(api.patch(&name, &PatchParams::default(), &patch).await?);
        }
        None => {
            let mut labels = service.labels().clone();
            labels.insert("endpoints.kubernetes.io/managed-by".to_owned(), "endpoint-controller".to_owned());
            let object: Endpoints = serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": namespace, "labels": labels,
                    "ownerReferences": [owned_by("v1", "Service", service)]},
                "subsets": subsets,
            }))?;
            match api.create(&PostParams::default(), &object).await {
                Ok(object) => shared.caches.endpoints.wrote(object),
                Err(error) if is_code(&error, 409) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}
