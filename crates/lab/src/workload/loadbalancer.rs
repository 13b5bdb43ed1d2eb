//! Addresses for Services of type LoadBalancer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Service};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::{Trouble, is_code};
use crate::address::{Role, Subnet};
use crate::cluster::Shared;
use crate::loadbalancer::Front;

/// The class of load balancers that show a name instead of an address, as AWS's do.
const BY_NAME: &str = "stolos.dev/hostname";
/// Where such a one remembers its address. Another one written there by hand is taken: the name then leads there.
const ADDRESS: &str = "stolos.dev/load-balancer-address";

/// # Flow
///
/// 1. Services that have an address keep it; it is part of their status (or, behind a name, an annotation), so it
///    survives a restart.
/// 2. Those without get the lowest free one; those that want none any more lose theirs.
/// 3. The data plane listens for exactly these, for `externalIPs` of the cluster's own range, and on the node for node
///    ports.
pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let services = shared.caches.services.list();
    let wants = |service: &Service| {
        service.metadata.deletion_timestamp.is_none()
            && service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("LoadBalancer")
    };
    let mut taken: BTreeSet<Ipv4Addr> =
        services.iter().filter(|s| wants(s)).filter_map(|s| address(s, shared.subnet)).collect();
    taken.extend(services.iter().flat_map(|service| external(service, shared.subnet)));
    let (mut fronts, mut names) = (Vec::new(), BTreeMap::new());
    for service in &services {
        let api: Api<Service> = Api::namespaced(shared.client.clone(), &service.namespace().unwrap_or_default());
        let given = address(service, shared.subnet);
        let mut at: Vec<Ipv4Addr> = external(service, shared.subnet).collect();
        if wants(service) {
            let address = match given {
                Some(address) => address,
                None => {
                    let free = (0..Subnet::LOAD_BALANCERS).filter_map(|i| shared.subnet.load_balancer(i));
                    let Some(address) = free.into_iter().find(|a| !taken.contains(a)) else {
                        let text = "every load-balancer address is taken".into();
                        shared.events.warning(service.as_ref(), "NoAddress", text);
                        continue;
                    };
                    taken.insert(address);
                    note_low_ports(&shared, service, address);
                    address
                }
            };
            let name = is_by_name(service).then(|| name(&shared, service));
            let shown = match &name {
                Some(name) => json!([{"hostname": name}]),
                None => json!([{"ip": address, "ipMode": "VIP"}]),
            };
            if name.is_some() && given.is_none() {
                let patch = json!({"metadata": {"annotations": {ADDRESS: address}}});
                match api.patch(&service.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
                    Ok(service) => shared.caches.services.wrote(service),
                    Err(error) if is_code(&error, 404) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            let is_shown = |entry: &LoadBalancerIngress| entry.hostname == name && entry.ip.is_some() != name.is_some();
            if given.is_none() || !ingress(service).is_some_and(is_shown) {
                write(&shared, &api, service, json!({"status": {"loadBalancer": {"ingress": shown}}})).await?;
            }
            names.extend(name.map(|name| (name, address)));
            at.push(address);
        } else if ingress(service).is_some_and(is_ours) && service.metadata.deletion_timestamp.is_none() {
            write(&shared, &api, service, json!({"status": {"loadBalancer": {"ingress": null}}})).await?;
        }
        let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
        for port in ports.filter(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP") {
            let front = |address: Ipv4Addr, number: i32| Front {
                address,
                port: number as u16,
                to: port.port as u16,
                namespace: service.namespace().unwrap_or_default(),
                service: service.name_any(),
            };
            fronts.extend(at.iter().map(|address| front(*address, port.port)));
            fronts.extend(port.node_port.map(|number| front(shared.subnet.node_outside(), number)));
        }
    }
    shared.balancer.name(&shared.name, names);
    shared.balancer.set(fronts).await;
    Ok(())
}

fn is_by_name(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.load_balancer_class.as_deref()) == Some(BY_NAME)
}

/// A name that no DNS outside of the lab has (RFC 6761).
fn name(shared: &Shared, service: &Service) -> String {
    format!("{}.{}.{}.lb.test", service.name_any(), service.namespace().unwrap_or_default(), shared.name)
}

/// The addresses of the cluster's own range that a Service is given by hand.
fn external(service: &Service, subnet: Subnet) -> impl Iterator<Item = Ipv4Addr> {
    let given = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
    given.filter_map(|ip| ip.parse().ok()).filter(move |ip| Subnet::locate(*ip) == Some((subnet, Role::LoadBalancer)))
}

/// Whether an entry was written here.
fn is_ours(entry: &LoadBalancerIngress) -> bool {
    let address = entry.ip.as_deref().and_then(|ip| ip.parse().ok());
    address.is_some_and(|ip: Ipv4Addr| matches!(Subnet::locate(ip), Some((_, Role::LoadBalancer))))
        || entry.hostname.as_deref().is_some_and(|name| name.ends_with(".lb.test"))
}

fn ingress(service: &Service) -> Option<&LoadBalancerIngress> {
    service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()
}

async fn write(
    shared: &Shared,
    api: &Api<Service>,
    service: &Service,
    patch: serde_json::Value,
) -> Result<(), Trouble> {
    match api.patch_status(&service.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(service) => {
            shared.caches.services.wrote(service);
            Ok(())
        }
        Err(error) if is_code(&error, 404) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn note_low_ports(shared: &Shared, service: &Service, address: Ipv4Addr) {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten()).map(|p| p.port as u16);
    for port in ports.filter(|p| *p < 1024) {
        let socket = crate::address::socket_port(port);
        let text = format!("port {port} is at {address}:{socket} on this machine: the lab binds no port below 1024");
        shared.events.normal(service, "PortMoved", text);
    }
}

/// The load-balancer address a Service has, if it is one of this cluster's.
fn address(service: &Service, subnet: Subnet) -> Option<Ipv4Addr> {
    let text = if is_by_name(service) {
        service.metadata.annotations.as_ref()?.get(ADDRESS)?
    } else {
        ingress(service)?.ip.as_deref()?
    };
    let address = text.parse().ok()?;
    (Subnet::locate(address) == Some((subnet, Role::LoadBalancer))).then_some(address)
}
