//! Addresses for Services of type LoadBalancer.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use super::{Trouble, is_code};
use crate::address::{Role, Subnet};
use crate::cluster::Shared;
use crate::loadbalancer::Front;

/// # Flow
///
/// 1. Services that have an address keep it; it is part of their status, so it survives a restart.
/// 2. Those without get the lowest free one; those that want none any more lose theirs.
/// 3. The data plane listens for exactly these.
pub(super) async fn reconcile(shared: Arc<Shared>) -> Result<(), Trouble> {
    let services = shared.caches.services.list();
    let wants = |service: &Service| {
        service.metadata.deletion_timestamp.is_none()
            && service.spec.as_ref().and_then(|s| s.type_.as_deref()) == Some("LoadBalancer")
    };
    let mut taken: BTreeSet<Ipv4Addr> =
        services.iter().filter(|s| wants(s)).filter_map(|s| address(s, shared.subnet)).collect();
    let mut fronts = Vec::new();
    for service in &services {
        let api: Api<Service> = Api::namespaced(shared.client.clone(), &service.namespace().unwrap_or_default());
        let given = address(service, shared.subnet);
        if !wants(service) {
            if given.is_some() && service.metadata.deletion_timestamp.is_none() {
                let patch = json!({"status": {"loadBalancer": {"ingress": null}}});
                write(&shared, &api, service, patch).await?;
            }
            continue;
        }
        let address = match given {
            Some(address) => address,
            None => {
                let free = (0..Subnet::LOAD_BALANCERS).filter_map(|i| shared.subnet.load_balancer(i));
                let Some(address) = free.into_iter().find(|a| !taken.contains(a)) else {
                    shared.events.warning(service.as_ref(), "NoAddress", "every load-balancer address is taken".into());
                    continue;
                };
                taken.insert(address);
                let patch = json!({"status": {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"}]}}});
                write(&shared, &api, service, patch).await?;
                note_low_ports(&shared, service, address);
                address
            }
        };
        let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
        for port in ports.filter(|p| p.protocol.as_deref().unwrap_or("TCP") == "TCP") {
            fronts.push(Front {
                address,
                port: port.port as u16,
                namespace: service.namespace().unwrap_or_default(),
                service: service.name_any(),
            });
        }
    }
    shared.balancer.set(fronts).await;
    Ok(())
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
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()?;
    let address = ingress.ip.as_deref()?.parse().ok()?;
    (Subnet::locate(address) == Some((subnet, Role::LoadBalancer))).then_some(address)
}
