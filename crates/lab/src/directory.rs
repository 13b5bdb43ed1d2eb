//! The services of one cluster as its pods see them: names, virtual addresses and the pods behind them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

/// The domain of every lab cluster's names.
pub(crate) const CLUSTER_DOMAIN: &str = "cluster.local";

/// A cluster's services at one moment.
#[derive(Debug, Default)]
pub struct Directory {
    services: HashMap<(String, String), Entry>,
    by_address: HashMap<Ipv4Addr, (String, String)>,
}

/// The current [`Directory`] of a cluster: one writer, many readers.
#[derive(Clone, Debug, Default)]
pub struct Directories(Arc<RwLock<Arc<Directory>>>);

impl Directories {
    /// The directory as it is now.
    #[must_use]
    pub fn now(&self) -> Arc<Directory> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a newer directory in place.
    pub fn put(&self, directory: Directory) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(directory);
    }
}

#[derive(Debug, Default)]
struct Entry {
    cluster_ip: Option<Ipv4Addr>,
    external: Option<String>,
    /// (name, number), as the Service has them.
    ports: Vec<(String, u16)>,
    endpoints: Vec<Endpoint>,
    publish_not_ready: bool,
}

#[derive(Clone, Debug)]
struct Endpoint {
    address: Ipv4Addr,
    hostname: Option<String>,
    ready: bool,
    ports: Arc<BTreeMap<String, u16>>,
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These addresses.
    Addresses(Vec<IpAddr>),
    /// Another name.
    Alias(String),
    /// A service that has no address now.
    Nobody,
}

/// Where a connection to a virtual address goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Not a virtual address of this cluster.
    Direct,
    /// To this endpoint.
    To(SocketAddrV4),
    /// To nobody: no such port, or no ready endpoint.
    Nobody,
}

impl Directory {
    /// The directory that these objects describe.
    #[must_use]
    pub fn new<'a>(
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut directory = Self::default();
        for service in services {
            let key = (service.namespace().unwrap_or_default(), service.name_any());
            let Some(spec) = &service.spec else { continue };
            let cluster_ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
            if let Some(ip) = cluster_ip {
                directory.by_address.insert(ip, key.clone());
            }
            let ports = spec.ports.iter().flatten();
            let ports = ports.filter(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP");
            let ports = ports.map(|p| (p.name.clone().unwrap_or_default(), p.port as u16)).collect();
            let external =
                (spec.type_.as_deref() == Some("ExternalName")).then(|| spec.external_name.clone()).flatten();
            let publish_not_ready = spec.publish_not_ready_addresses == Some(true);
            directory
                .services
                .insert(key, Entry { cluster_ip, external, ports, endpoints: Vec::new(), publish_not_ready });
        }
        for slice in slices {
            let Some(service) = slice.labels().get("kubernetes.io/service-name") else { continue };
            let key = (slice.namespace().unwrap_or_default(), service.clone());
            let Some(entry) = directory.services.get_mut(&key) else { continue };
            let ports = slice.ports.iter().flatten();
            let ports = ports.filter_map(|p| Some((p.name.clone().unwrap_or_default(), p.port? as u16)));
            let ports: Arc<BTreeMap<_, _>> = Arc::new(ports.collect());
            for endpoint in slice.endpoints.iter().flatten() {
                let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
                let addresses = endpoint.addresses.iter().filter_map(|a| a.parse().ok());
                entry.endpoints.extend(addresses.map(|address| Endpoint {
                    address,
                    hostname: endpoint.hostname.clone(),
                    ready,
                    ports: Arc::clone(&ports),
                }));
            }
        }
        directory
    }

    /// What `host` stands for, asked by a pod of `namespace`; `None` when the cluster knows no such name.
    #[must_use]
    pub fn resolve(&self, host: &str, namespace: &str) -> Option<Answer> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let host = host.strip_suffix(CLUSTER_DOMAIN).and_then(|h| h.strip_suffix('.')).unwrap_or(&host);
        let host = host.strip_suffix(".svc").unwrap_or(host);
        let parts: Vec<&str> = host.split('.').collect();
        let entry = |name: &str, ns: &str| self.services.get(&(ns.to_owned(), name.to_owned()));
        let (pod, entry) = match parts[..] {
            [name] => (None, entry(name, namespace)?),
            [name, ns] => match entry(name, ns) {
                Some(found) => (None, found),
                None => (Some(name), entry(ns, namespace)?),
            },
            [pod, name, ns] => (Some(pod), entry(name, ns)?),
            _ => return None,
        };
        entry.answer(pod)
    }

    /// Where a connection to `to` goes; `pick` chooses one of that many ready endpoints.
    #[must_use]
    pub fn route(&self, to: SocketAddrV4, pick: impl FnOnce(usize) -> usize) -> Route {
        let Some((namespace, name)) = self.by_address.get(to.ip()) else { return Route::Direct };
        self.endpoint(namespace, name, to.port(), pick).map_or(Route::Nobody, Route::To)
    }

    /// A ready endpoint of a Service's port.
    #[must_use]
    pub fn endpoint(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
        pick: impl FnOnce(usize) -> usize,
    ) -> Option<SocketAddrV4> {
        let entry = self.services.get(&(namespace.to_owned(), name.to_owned()))?;
        let (port_name, _) = entry.ports.iter().find(|(_, number)| *number == port)?;
        let ready = || {
            let usable = entry.endpoints.iter().filter(|e| e.ready || entry.publish_not_ready);
            usable.filter_map(|e| Some(SocketAddrV4::new(e.address, *e.ports.get(port_name)?)))
        };
        let count = ready().count();
        if count == 0 { None } else { ready().nth(pick(count) % count) }
    }
}

impl Entry {
    fn answer(&self, pod: Option<&str>) -> Option<Answer> {
        if let Some(name) = &self.external {
            return Some(Answer::Alias(name.clone()));
        }
        if let (Some(ip), None) = (self.cluster_ip, pod) {
            return Some(Answer::Addresses(vec![ip.into()]));
        }
        let usable = self.endpoints.iter().filter(|e| e.ready || self.publish_not_ready);
        let named = usable.filter(|e| pod.is_none() || e.hostname.as_deref() == pod);
        let mut addresses: Vec<IpAddr> = named.map(|e| e.address.into()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        match (addresses.is_empty(), pod) {
            (false, _) => Some(Answer::Addresses(addresses)),
            (true, None) => Some(Answer::Nobody),
            (true, Some(_)) => None,
        }
    }
}

/// The number behind a Service's target port, where it is a number.
pub(crate) fn numeric(port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(text) => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn directory() -> Directory {
        let services: Vec<Service> = serde_json::from_value(json!([
            {"metadata": {"name": "web", "namespace": "shop"},
             "spec": {"clusterIP": "10.1.0.7", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}},
            {"metadata": {"name": "db", "namespace": "shop"}, "spec": {"clusterIP": "None", "ports": [{"port": 5432}]}},
            {"metadata": {"name": "far", "namespace": "shop"}, "spec": {"type": "ExternalName", "externalName": "web.shop.svc"}},
        ]))
        .unwrap();
        let slices: Vec<EndpointSlice> = serde_json::from_value(json!([
            {"metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
             "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
             "endpoints": [{"addresses": ["127.9.2.1"], "conditions": {"ready": true}},
                           {"addresses": ["127.9.2.2"], "conditions": {"ready": false}}]},
            {"metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
             "addressType": "IPv4", "ports": [{"name": "", "port": 5432}],
             "endpoints": [{"addresses": ["127.9.2.4"], "hostname": "db-1"}, {"addresses": ["127.9.2.3"], "hostname": "db-0"}]},
        ]))
        .unwrap();
        Directory::new(&services, &slices)
    }

    #[test]
    fn names() {
        let directory = directory();
        let ip = |text: &str| Some(Answer::Addresses(text.split(' ').map(|ip| ip.parse().unwrap()).collect()));
        let table = [
            ("web", "shop", ip("10.1.0.7")),
            ("web", "other", None),
            ("web.shop", "other", ip("10.1.0.7")),
            ("web.shop.svc", "other", ip("10.1.0.7")),
            ("WEB.shop.svc.cluster.local.", "other", ip("10.1.0.7")),
            ("web.shop.svc.example.com", "other", None),
            ("db.shop", "other", ip("127.9.2.3 127.9.2.4")),
            ("db-1.db.shop.svc", "other", ip("127.9.2.4")),
            ("db-1.db", "shop", ip("127.9.2.4")),
            ("db-7.db.shop.svc", "other", None),
            ("far", "shop", Some(Answer::Alias("web.shop.svc".into()))),
            ("example.com", "shop", None),
        ];
        for (host, namespace, expected) in table {
            assert_eq!(directory.resolve(host, namespace), expected, "{host} from {namespace}");
        }
    }

    #[test]
    fn virtual_addresses() {
        let directory = directory();
        let table = [
            ("10.1.0.7:80", Route::To("127.9.2.1:8080".parse().unwrap())),
            ("10.1.0.7:53", Route::Nobody),
            ("10.1.0.7:81", Route::Nobody),
            ("127.9.2.1:80", Route::Direct),
        ];
        for (to, expected) in table {
            assert_eq!(directory.route(to.parse().unwrap(), |_| 3), expected, "{to}");
        }
    }
}
