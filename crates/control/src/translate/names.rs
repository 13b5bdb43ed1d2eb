//! The table of names a proxy answers DNS questions from (Istio 1.30, section 16).

use std::collections::BTreeMap;

use stolos_xds::istio::networking::nds::v1::{NameTable, name_table::NameInfo};

use super::listeners::visible;
use crate::model::{Endpoint, Health, ProxyInfo, Resolution, World};

/// The names that a proxy's workload can resolve: services of every cluster, and single pods of its own network.
#[must_use]
pub fn table(world: &World, proxy: &ProxyInfo) -> NameTable {
    let mut table = BTreeMap::new();
    for service in visible(world, proxy) {
        let ips: Vec<String> = if service.resolution == Resolution::Passthrough {
            let mut pods = Vec::new();
            for endpoint in world.endpoints(&service.host) {
                let ready = service.publish_not_ready || endpoint.health == Health::Healthy;
                if let (Some(address), true) = (endpoint.address, ready && is_near(proxy, endpoint)) {
                    pods.push(address.to_string());
                    let domain = service.host.split_once('.').map_or("", |(_, domain)| domain);
                    if let Some((host, subdomain)) = &endpoint.hostname {
                        let name = format!("{host}.{subdomain}.{domain}");
                        let info = NameInfo {
                            ips: vec![address.to_string()],
                            registry: "Kubernetes".to_owned(),
                            namespace: service.namespace.clone(),
                            shortname: format!("{host}.{subdomain}"),
                            ..Default::default()
                        };
                        // The pod of the own cluster, if there is one of the same name.
                        if endpoint.cluster == proxy.cluster {
                            table.insert(name, info);
                        } else {
                            table.entry(name).or_insert(info);
                        }
                    }
                }
            }
            pods.dedup();
            pods
        } else {
            service.vips_for(&proxy.cluster).map(|address| address.to_string()).collect()
        };
        if ips.is_empty() {
            continue;
        }
        let info = NameInfo {
            ips,
            registry: "Kubernetes".to_owned(),
            shortname: service.name.clone(),
            namespace: service.namespace.clone(),
            ..Default::default()
        };
        table.insert(service.host.to_string(), info);
    }
    NameTable { table }
}

fn is_near(proxy: &ProxyInfo, endpoint: &Endpoint) -> bool {
    proxy.network == endpoint.network || proxy.network.is_empty() || endpoint.network.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::fixture;

    #[test]
    fn services_resolve_to_the_own_clusters_address_and_headless_ones_to_near_pods() {
        let mut world = fixture::world();
        let ips =
            |world: &World, cluster: &str| table(world, &fixture::proxy(cluster)).table[fixture::HOST].ips.clone();
        assert_eq!(ips(&world, "c1"), ["10.101.0.1"]);
        assert_eq!(ips(&world, "c3"), ["10.103.0.1"]);
        fixture::change_service(&mut world, "c1", |service| {
            service.resolution = Resolution::Passthrough;
            service.vips.clear();
            service.vip = None;
        });
        assert_eq!(ips(&world, "c1"), ["10.1.0.1", "10.1.0.2", "10.2.0.1"]);
        assert_eq!(ips(&world, "c3"), ["10.3.0.1", "10.3.0.2", "10.3.0.3"]);
    }
}
