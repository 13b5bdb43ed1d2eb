//! Clusters that do not exist: what the control plane would have read of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;
use stolos_control::model::{Labels, PodFacts};
use stolos_control::registry::{self, Change, Key, NodeFacts, ServiceFacts, SliceEndpoint, SliceFacts};
use stolos_k8s::istio;

/// How large everything is.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Fleet {
    /// Clusters; the first is the control plane's own.
    pub(crate) clusters: usize,
    /// Networks, to which clusters belong in turn.
    pub(crate) networks: usize,
    /// Services, the same names everywhere.
    pub(crate) services: usize,
    /// Their namespaces.
    pub(crate) namespaces: usize,
    /// In how many of the clusters a service runs; the own one is always among them.
    pub(crate) clusters_of_service: usize,
    /// Its endpoints in each of these.
    pub(crate) endpoints: usize,
}

impl Default for Fleet {
    fn default() -> Self {
        Self { clusters: 100, networks: 10, services: 1000, namespaces: 20, clusters_of_service: 10, endpoints: 5 }
    }
}

/// Whom a service is exported to.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Seen {
    /// Every namespace: what Istio does unless it is told otherwise.
    ByAll,
    /// Its own (`networking.istio.io/exportTo: .`): one service in ten.
    ByFew,
}

/// Everything of one cluster.
pub(crate) struct Contents {
    pub(crate) namespaces: BTreeMap<Key, Labels>,
    pub(crate) nodes: BTreeMap<Key, NodeFacts>,
    pub(crate) services: BTreeMap<Key, ServiceFacts>,
    pub(crate) slices: BTreeMap<Key, SliceFacts>,
    pub(crate) pods: BTreeMap<Key, PodFacts>,
}

impl Fleet {
    /// The name of a cluster.
    pub(crate) fn cluster(&self, cluster: usize) -> Arc<str> {
        format!("cluster-{cluster:03}").into()
    }

    /// The network of a cluster.
    pub(crate) fn network(&self, cluster: usize) -> String {
        format!("net-{}", cluster % self.networks)
    }

    /// The namespace of a service.
    pub(crate) fn namespace(&self, service: usize) -> String {
        format!("team-{:02}", service % self.namespaces)
    }

    /// The name of a service.
    pub(crate) fn service(&self, service: usize) -> String {
        format!("service-{service:04}")
    }

    /// Whom a service is exported to.
    pub(crate) fn seen(&self, service: usize) -> Seen {
        if service % 10 == 9 { Seen::ByFew } else { Seen::ByAll }
    }

    /// The clusters that a service runs in.
    pub(crate) fn clusters_of(&self, service: usize) -> Vec<usize> {
        let apart = (self.clusters / self.clusters_of_service.max(1)).max(1);
        (0..self.clusters).filter(|cluster| *cluster == 0 || (cluster + service).is_multiple_of(apart)).collect()
    }

    /// A pod of a service.
    pub(crate) fn pod(&self, service: usize, cluster: usize, at: usize) -> String {
        format!("{}-7d4b9c6f5-{cluster:02x}{at:02x}", self.service(service))
    }

    fn address(&self, service: usize, cluster: usize, at: usize) -> IpAddr {
        let n = (service * self.endpoints + at) as u32;
        IpAddr::V4(Ipv4Addr::from((10 << 24) | ((cluster as u32 & 0xff) << 16) | (n & 0xffff)))
    }

    /// The slice of a service in a cluster, with `left_out` of its endpoints missing.
    pub(crate) fn slice(&self, service: usize, cluster: usize, left_out: usize) -> (Key, SliceFacts) {
        let namespace = self.namespace(service);
        let endpoint = |at: usize| SliceEndpoint {
            addresses: vec![self.address(service, cluster, at)],
            pod: Some((namespace.clone(), self.pod(service, cluster, at))),
            node: Some(node(service + at)),
            conditions: (Some(true), Some(true), Some(false)),
        };
        let facts = SliceFacts {
            service: self.service(service),
            ports: vec![("http".to_owned(), 8080)],
            endpoints: (0..self.endpoints - left_out.min(self.endpoints)).map(endpoint).collect(),
        };
        ((namespace.clone(), format!("{}-abcde", self.service(service))), facts)
    }

    /// Everything of one cluster.
    pub(crate) fn contents(&self, cluster: usize) -> Result<Contents> {
        let everywhere = |name: String| (String::new(), name);
        let system = (istio::NETWORK_LABEL.to_owned(), self.network(cluster));
        let mut namespaces = BTreeMap::from([(everywhere(istio::SYSTEM_NAMESPACE.to_owned()), [system].into())]);
        namespaces.extend((0..self.namespaces).map(|n| (everywhere(self.namespace(n)), Labels::new())));
        let zone = |n: usize| {
            let zone = format!("region-{}-{}", cluster % 5, (b'a' + (n % 3) as u8) as char);
            let region = format!("region-{}", cluster % 5);
            [(istio::REGION_LABEL.to_owned(), region), (istio::ZONE_LABEL.to_owned(), zone)].into()
        };
        let nodes = (0..NODES).map(|n| (everywhere(node(n)), NodeFacts { labels: zone(n), external: None })).collect();
        let mut contents =
            Contents { namespaces, nodes, services: BTreeMap::new(), slices: BTreeMap::new(), pods: BTreeMap::new() };
        for service in (0..self.services).filter(|service| self.clusters_of(*service).contains(&cluster)) {
            let namespace = self.namespace(service);
            let (key, facts) = self.service_facts(service, cluster)?;
            contents.services.insert(key, facts);
            contents.slices.extend([self.slice(service, cluster, 0)]);
            for at in 0..self.endpoints {
                let name = self.pod(service, cluster, at);
                contents.pods.insert((namespace.clone(), name), self.pod_facts(service, cluster, at));
            }
        }
        contents.services.extend([gateway(self, cluster)?]);
        Ok(contents)
    }

    fn service_facts(&self, service: usize, cluster: usize) -> Result<(Key, ServiceFacts)> {
        let (name, namespace) = (self.service(service), self.namespace(service));
        let vip = Ipv4Addr::from((172 << 24) | (16 << 16) | ((cluster as u32 & 15) << 16) | service as u32);
        let annotations = match self.seen(service) {
            Seen::ByAll => json!({}),
            Seen::ByFew => json!({istio::EXPORT_TO_ANNOTATION: "."}),
        };
        let port = [80, 8080, 9090][service % 3];
        let object = json!({
            "metadata": {"name": name, "namespace": namespace, "annotations": annotations,
                "labels": {"app": name, "team": namespace}, "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"clusterIP": vip.to_string(), "clusterIPs": [vip.to_string()], "selector": {"app": name},
                "ports": [{"name": "http", "port": port, "targetPort": 8080}]},
        });
        registry::service(serde_json::from_value(object)?, "cluster.local").context("no Service")
    }

    fn pod_facts(&self, service: usize, cluster: usize, at: usize) -> PodFacts {
        let (name, namespace) = (self.service(service), self.namespace(service));
        let labels = [
            (istio::APP_LABEL, name.as_str()),
            ("team", &namespace),
            (istio::VERSION_LABEL, "v1"),
            ("pod-template-hash", "7d4b9c6f5"),
            (istio::CANONICAL_NAME_LABEL, &name),
            (istio::CANONICAL_REVISION_LABEL, "v1"),
            (istio::TLS_MODE_LABEL, istio::TLS_MODE_ISTIO),
        ];
        PodFacts {
            namespace: namespace.clone(),
            name: self.pod(service, cluster, at),
            addresses: vec![self.address(service, cluster, at)],
            labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            account: name.clone(),
            node: node(service + at),
            workload: name.clone(),
            ..PodFacts::default()
        }
    }

    /// The change number `n` to services seen so: the service's cluster, and its slice with an endpoint more or fewer.
    pub(crate) fn change(&self, n: usize, of: Seen) -> (usize, Change<SliceFacts>) {
        let services: Vec<_> = (0..self.services).filter(|service| self.seen(*service) == of).collect();
        // Pairs: one goes, and the next time it is there again.
        let (pair, gone) = (n / 2, n.is_multiple_of(2));
        let service = services[(pair * 7919) % services.len()];
        let clusters = self.clusters_of(service);
        let cluster = clusters[(pair * 31) % clusters.len()];
        let (key, slice) = self.slice(service, cluster, usize::from(gone));
        (cluster, Change::Set(key, slice))
    }
}

const NODES: usize = 30;

fn node(n: usize) -> String {
    format!("node-{:02}", n % NODES)
}

fn gateway(fleet: &Fleet, cluster: usize) -> Result<(Key, ServiceFacts)> {
    let address = Ipv4Addr::from((192 << 24) | (168 << 16) | (cluster as u32 + 1));
    let object = json!({
        "metadata": {"name": "istio-eastwestgateway", "namespace": istio::SYSTEM_NAMESPACE,
            "labels": {istio::NETWORK_LABEL: fleet.network(cluster)}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "LoadBalancer", "clusterIP": "172.31.0.1", "ports": [{"name": "tls", "port": istio::CROSS_NETWORK_PORT}]},
        "status": {"loadBalancer": {"ingress": [{"ip": address.to_string()}]}},
    });
    registry::service(serde_json::from_value(object)?, "cluster.local").context("no Service")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_is_as_large_as_it_says() -> Result<()> {
        let fleet = Fleet { clusters: 20, services: 40, clusters_of_service: 5, ..Fleet::default() };
        let mut pods = 0;
        for cluster in 0..fleet.clusters {
            pods += fleet.contents(cluster)?.pods.len();
        }
        let places: Vec<_> = (0..40).map(|service| fleet.clusters_of(service).len()).collect();
        assert!(places.iter().all(|count| (5..=6).contains(count)), "the own one is one more, or among them");
        assert_eq!(pods, places.iter().sum::<usize>() * fleet.endpoints);
        let (_, first) = fleet.change(0, Seen::ByFew);
        let (_, second) = fleet.change(1, Seen::ByFew);
        let (Change::Set(key, fewer), Change::Set(again, full)) = (first, second) else { panic!("two changes") };
        assert_eq!((key, fewer.endpoints.len() + 1), (again, full.endpoints.len()));
        Ok(())
    }
}
