//! The registry listing: which services the mesh has, where their endpoints are, and what of that every control plane
//! has in its registry.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use futures::future::join_all;
use serde::Serialize;
use serde_json::Value;
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::{istio, meta};
use stolos_spec::Mesh;

use super::{PATIENCE, page, rfc3339};

/// The services of a mesh. Fields are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicesReport {
    /// `stolos.dev/v1alpha1`.
    pub api_version: &'static str,
    /// `ServicesReport`.
    pub kind: &'static str,
    /// The mesh's name.
    pub mesh: String,
    /// The clusters, in the order of the mesh file.
    pub clusters: Vec<Asked>,
    /// By host, without those of Kubernetes and Istio themselves.
    pub services: Vec<Registered>,
    /// When this was read, RFC 3339.
    pub measured_at: String,
}

/// A cluster that was asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Asked {
    /// Its name in the mesh.
    pub name: String,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// Whether its control plane showed its registry. Where it did not, nothing is known of what proxies are told.
    pub registry: bool,
}

/// A service.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    /// Its host name.
    pub host: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its ports, those of the first cluster that has it.
    pub ports: Vec<ServicePort>,
    /// Ready endpoints per cluster that has the Service, by the clusters' own EndpointSlices.
    pub endpoints: BTreeMap<String, usize>,
    /// By control plane, the healthy endpoints per cluster that its registry has.
    pub registries: BTreeMap<String, BTreeMap<String, usize>>,
}

impl Registered {
    /// The control planes of these clusters that have other endpoints than there are.
    #[must_use]
    pub fn behind<'a>(&'a self, clusters: &'a [Asked]) -> Vec<&'a str> {
        let there = |of: &BTreeMap<String, usize>| -> BTreeMap<String, usize> {
            of.iter().filter(|(_, count)| **count > 0).map(|(cluster, count)| (cluster.clone(), *count)).collect()
        };
        let is = there(&self.endpoints);
        let asked = clusters.iter().filter(|cluster| cluster.registry);
        let differs = |cluster: &&Asked| self.registries.get(&cluster.name).map(there).unwrap_or_default() != is;
        asked.filter(differs).map(|cluster| cluster.name.as_str()).collect()
    }
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// Its name; the empty name is one.
    pub name: String,
    /// Its number.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
}

/// Endpoints by cluster, by host.
type Shards = BTreeMap<String, BTreeMap<String, usize>>;

/// What was read of one cluster.
struct Seen {
    services: Vec<Value>,
    slices: Vec<Value>,
    registry: Option<Shards>,
}

/// Reads the services of `mesh` from `clusters`, all side by side.
pub async fn services(mesh: &Mesh, clusters: &[Cluster]) -> ServicesReport {
    let looked = join_all(clusters.iter().map(|cluster| async move {
        let seen = match tokio::time::timeout(PATIENCE, read(cluster)).await {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(error)) => Err(stolos_serve::because(&error)),
            Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
        };
        (cluster.name.as_str(), seen)
    }))
    .await;
    let of = |name: &str| looked.iter().find(|(cluster, _)| *cluster == name).map(|(_, seen)| seen);
    let seen: Vec<(&str, &Seen)> = mesh
        .clusters
        .iter()
        .filter_map(|cluster| Some((cluster.name.as_str(), of(cluster.name.as_str())?.as_ref().ok()?)))
        .collect();
    let asked = mesh.clusters.iter().filter_map(|cluster| {
        let seen = of(cluster.name.as_str())?;
        Some(Asked {
            name: cluster.name.to_string(),
            unreachable: seen.as_ref().err().cloned(),
            registry: seen.as_ref().is_ok_and(|seen| seen.registry.is_some()),
        })
    });
    ServicesReport {
        api_version: "stolos.dev/v1alpha1",
        kind: "ServicesReport",
        mesh: mesh.name.to_string(),
        clusters: asked.collect(),
        services: merged(&seen),
        measured_at: rfc3339(SystemTime::now()),
    }
}

async fn read(cluster: &Cluster) -> Result<Seen, stolos_cluster::Error> {
    let client = &cluster.client;
    let list = |api_version: &'static str, kind: &'static str, namespace: Option<&'static str>| async move {
        objects::list(client, &Resource::named(api_version, kind)?, namespace, None).await
    };
    let (services, slices, pods) = futures::try_join!(
        list("v1", "Service", None),
        list("discovery.k8s.io/v1", "EndpointSlice", None),
        list("v1", "Pod", Some(istio::SYSTEM_NAMESPACE)),
    )?;
    let istiod = pods.iter().find(|p| meta::label(p, istio::APP_LABEL) == Some(istio::ISTIOD)).map(meta::name);
    let registry = match istiod {
        Some(pod) => page(client, pod, "endpointShardz").await.as_ref().and_then(shards),
        None => None,
    };
    Ok(Seen { services, slices, registry })
}

/// A control plane's own page, as Istio's: host, namespace, `Shards`, registry and cluster, endpoints by port.
fn shards(page: &Value) -> Option<Shards> {
    let of_host = |of_namespaces: &Value| -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for of_namespace in of_namespaces.as_object().into_iter().flatten().map(|(_, of)| of) {
            for (shard, endpoints) in of_namespace["Shards"].as_object().into_iter().flatten() {
                // `Kubernetes/cluster-east-1`.
                let cluster = shard.split_once('/').map_or(shard.as_str(), |(_, cluster)| cluster);
                let healthy = |endpoint: &&Value| match &endpoint["HealthStatus"] {
                    Value::String(status) => status == "Healthy",
                    // Istio's numbers: 1 is healthy, and older versions have none.
                    Value::Number(status) => status.as_u64() == Some(1),
                    _ => true,
                };
                let endpoints = endpoints.as_array().into_iter().flatten().filter(healthy);
                let addresses: BTreeSet<&str> = endpoints
                    .flat_map(|e| {
                        let several = e["Addresses"].as_array().into_iter().flatten();
                        several.chain(std::iter::once(&e["Address"])).filter_map(Value::as_str)
                    })
                    .collect();
                *counts.entry(cluster.to_owned()).or_default() += addresses.len();
            }
        }
        counts
    };
    Some(page.as_object()?.iter().map(|(host, of)| (host.clone(), of_host(of))).collect())
}

fn merged(seen: &[(&str, &Seen)]) -> Vec<Registered> {
    let mut by_host = BTreeMap::<String, Registered>::new();
    for (cluster, seen) in seen {
        for service in seen.services.iter().filter(|service| is_of_users(service)) {
            let (namespace, name) = (meta::namespace(service), meta::name(service));
            let host = istio::host(name, namespace, istio::DEFAULT_DOMAIN);
            let entry = by_host.entry(host.clone()).or_insert_with(|| Registered {
                host,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                ports: ports(service),
                endpoints: BTreeMap::new(),
                registries: BTreeMap::new(),
            });
            entry.endpoints.insert((*cluster).to_owned(), super::ready(&seen.slices, namespace, name));
        }
    }
    for (host, service) in &mut by_host {
        let registries = seen.iter().filter_map(|(cluster, seen)| {
            let has = seen.registry.as_ref()?.get(host).cloned().unwrap_or_default();
            Some(((*cluster).to_owned(), has))
        });
        service.registries = registries.collect();
    }
    by_host.into_values().collect()
}

fn is_of_users(service: &Value) -> bool {
    let system = ["kube-system", "kube-public", "kube-node-lease", istio::SYSTEM_NAMESPACE];
    let (namespace, name) = (meta::namespace(service), meta::name(service));
    !system.contains(&namespace) && (namespace, name) != ("default", "kubernetes")
}

fn ports(service: &Value) -> Vec<ServicePort> {
    let all = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let port = |port: &Value| {
        Some(ServicePort {
            name: port["name"].as_str().unwrap_or_default().to_owned(),
            port: port["port"].as_u64().and_then(|number| u16::try_from(number).ok())?,
            protocol: port["protocol"].as_str().unwrap_or("TCP").to_owned(),
        })
    };
    all.filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn registries_are_read_as_this_control_plane_and_istiod_show_them() {
        let page = json!({
            "details.bookinfo.svc.cluster.local": {"bookinfo": {"Shards": {
                "Kubernetes/east": [],
                "Kubernetes/west": [
                    {"Addresses": ["10.0.0.1"], "EndpointPort": 9080, "HealthStatus": "Healthy"},
                    {"Addresses": ["10.0.0.1"], "EndpointPort": 9081, "HealthStatus": 1},
                    {"Addresses": ["10.0.0.2"], "HealthStatus": "Unhealthy"},
                    {"Address": "10.0.0.3"},
                ]}}},
        });
        let found = shards(&page).unwrap();
        assert_eq!(
            found["details.bookinfo.svc.cluster.local"],
            [("east".to_owned(), 0), ("west".to_owned(), 2)].into()
        );
        assert_eq!(shards(&json!("curl: not found")), None);
    }

    #[test]
    fn a_control_plane_that_lacks_endpoints_is_named() {
        let asked = |name: &str, registry| Asked { name: name.into(), unreachable: None, registry };
        let clusters = [asked("east", true), asked("west", true), asked("north", false)];
        let counts = |list: &[(&str, usize)]| -> BTreeMap<String, usize> {
            list.iter().map(|(cluster, count)| ((*cluster).to_owned(), *count)).collect()
        };
        let service = Registered {
            host: "a.b.svc.cluster.local".into(),
            namespace: "b".into(),
            name: "a".into(),
            ports: vec![],
            endpoints: counts(&[("east", 0), ("west", 2)]),
            registries: [("east".to_owned(), counts(&[("west", 2)])), ("west".to_owned(), counts(&[("west", 1)]))]
                .into(),
        };
        assert_eq!(
            service.behind(&clusters),
            ["west"],
            "no endpoints and none known are the same; who was not asked is not behind"
        );
    }
}
