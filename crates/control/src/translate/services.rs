//! Services of all clusters, merged: the same host name is the same service (namespace sameness).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{ClusterView, Service, Services};

/// Merges the services of `clusters`, which come in registry order.
///
/// The first cluster that has a host decides everything about it but for two fields: each cluster contributes its own
/// addresses, and identities are united. A port that only a later cluster has is not seen.
///
/// What did not change since `before` is the same `Arc` again.
#[must_use]
pub fn merge(clusters: &[Arc<ClusterView>], before: &Services) -> Services {
    let mut merged: BTreeMap<Arc<str>, Service> = BTreeMap::new();
    for cluster in clusters {
        for (host, service) in cluster.services.iter() {
            let accounts = cluster.accounts.get(host).into_iter().flatten().cloned();
            let have = merged.entry(Arc::clone(host)).or_insert_with(|| {
                let mut first = Service::clone(service);
                first.vips.clear();
                first
            });
            have.vips.extend(service.vips.iter().map(|(id, vips)| (Arc::clone(id), vips.clone())));
            have.accounts.extend(service.accounts.iter().cloned().chain(accounts));
        }
    }
    let reuse = |(host, service): (Arc<str>, Service)| {
        let same = before.by_host.get(&host).filter(|have| ***have == service).cloned();
        (host, same.unwrap_or_else(|| Arc::new(service)))
    };
    let by_host: BTreeMap<_, _> = merged.into_iter().map(reuse).collect();
    let mut in_order: Vec<_> = by_host.values().cloned().collect();
    in_order.sort_by(|a, b| (a.created, &a.name, &a.namespace).cmp(&(b.created, &b.name, &b.namespace)));
    Services { by_host, in_order }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Port, Protocol, Target, World};
    use crate::translate::fixture;

    #[test]
    fn the_first_cluster_decides_but_for_addresses_and_identities() {
        let mut world = fixture::world();
        let port = |number, name: &str| Port {
            name: name.into(),
            number,
            protocol: Protocol::Http,
            target: Target::Number(number),
        };
        fixture::change_service(&mut world, "c1", |service| {
            service.ports = vec![port(8080, "http")];
            service.vip = Some("10.96.0.1".parse().unwrap());
            service.vips = [("c1".into(), vec!["10.96.0.1".parse().unwrap()])].into();
        });
        fixture::change_service(&mut world, "c2", |service| {
            service.ports = vec![port(8080, "other"), port(9090, "more")];
            service.vip = Some("10.97.0.1".parse().unwrap());
            service.vips = [("c2".into(), vec!["10.97.0.1".parse().unwrap()])].into();
            service.accounts = ["spiffe://cluster.local/ns/shop/sa/by-hand".to_owned()].into();
        });
        fixture::change_service(&mut world, "c3", |service| service.vips.clear());
        let service = &world.services.by_host[fixture::HOST];
        assert_eq!(service.ports, [port(8080, "http")]);
        let vip = |cluster: &str| service.vips_for(cluster).map(|a| a.to_string()).collect::<Vec<_>>();
        assert_eq!(vip("c1"), ["10.96.0.1"]);
        assert_eq!(vip("c2"), ["10.97.0.1"]);
        assert_eq!(vip("c3"), ["10.96.0.1"], "a cluster without an address of its own uses the first one's");
        let accounts: Vec<_> = service.accounts.iter().map(|a| a.rsplit_once('/').unwrap().1).collect();
        assert_eq!(accounts, ["by-hand", "web-c1", "web-c2", "web-c3"]);
    }

    #[test]
    fn what_is_the_same_stays_the_same_arc() {
        let world = fixture::world();
        let again = World::compose(&world, world.settings.clone(), world.clusters.clone(), world.policies.clone());
        assert!(Arc::ptr_eq(&world.services, &again.services));
        assert!(Arc::ptr_eq(&world.gateways, &again.gateways));
        assert!(again.version > world.version);
    }
}
