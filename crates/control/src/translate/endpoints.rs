//! Which endpoints a proxy gets for a cluster name: the ones it can reach, and gateways for the others.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use stolos_k8s::istio;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::endpoint::v3 as envoy;
use stolos_xds::message::{string, structure};

use super::locality;
use crate::model::{Endpoint, Gateway, Health, Labels, Locality, Port, ProxyInfo, Service, World};
use crate::policy::{DestinationRule, Mtls, TlsMode};

/// What a client asks endpoints of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `outbound|port|subset|host`.
    Client,
    /// `outbound_.port_.subset_.host`: behind a gateway that passes mTLS through.
    Passthrough,
}

/// The endpoints of one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The place.
    pub locality: Locality,
    /// Its endpoints.
    pub endpoints: Vec<Chosen>,
    /// Their sum; none when the group is empty.
    pub weight: Option<u32>,
    /// 0 is used first.
    pub priority: u32,
}

/// An endpoint as a proxy gets it.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Where to dial.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Its share.
    pub weight: u32,
    /// Whether to speak mTLS.
    pub tls: bool,
    /// How it is; `None` for a gateway.
    pub health: Option<Health>,
    /// `name;namespace;canonicalName;canonicalRevision;cluster`; `None` for a gateway.
    pub workload: Option<String>,
    /// What failover goes by.
    pub labels: Arc<Labels>,
}

/// The endpoints of a service port for `proxy`, in groups by place, with weights and priorities.
///
/// # Flow (Istio 1.30, section 6)
///
/// 1. Leave out what the proxy may not or cannot use.
/// 2. Group by locality.
/// 3. Replace what is on another network by that network's gateways, scaling all weights so that shares divide.
/// 4. Locality preferences.
#[must_use]
pub fn select(
    world: &World,
    proxy: &ProxyInfo,
    service: &Service,
    port: &Port,
    subset: &str,
    style: Style,
    rule: Option<&DestinationRule>,
) -> Vec<Group> {
    let mut groups = BTreeMap::<String, (Locality, Vec<(&Endpoint, bool)>)>::new();
    for endpoint in usable(world, proxy, service, port, subset, rule) {
        let tls = takes_mtls(world, endpoint, rule.and_then(|rule| rule.endpoint_tls(port.number, subset)));
        if style == Style::Passthrough && !tls {
            continue;
        }
        let group = groups.entry(endpoint.locality.to_string());
        group.or_insert_with(|| (endpoint.locality.clone(), Vec::new())).1.push((endpoint, tls));
    }
    let mut groups: Vec<_> =
        groups.into_values().map(|(locality, endpoints)| reach(world, proxy, locality, &endpoints)).collect();
    let policy = rule.map(|rule| rule.effective(port.number, subset)).unwrap_or_default();
    locality::prefer(&mut groups, world, proxy, service, &policy);
    groups
}

/// Step A.
fn usable<'a>(
    world: &'a World,
    proxy: &'a ProxyInfo,
    service: &'a Service,
    port: &'a Port,
    subset: &str,
    rule: Option<&'a DestinationRule>,
) -> impl Iterator<Item = &'a Endpoint> {
    let known_subset = subset.is_empty() || rule.is_some_and(|rule| rule.subset(subset).is_some());
    let labels = rule.and_then(|rule| rule.subset(subset)).map(|subset| &subset.labels);
    let local = world.settings.is_cluster_local(&service.host);
    let send_unhealthy = service.distribution.is_some();
    world.endpoints(&service.host).filter(move |endpoint| {
        known_subset
            && endpoint.port_name == port.name
            && labels.is_none_or(|labels| crate::model::selects(labels, &endpoint.labels))
            && !(service.node_local && endpoint.node != proxy.node)
            && (proxy.view.is_empty() || endpoint.network.is_empty() || proxy.view.contains(&*endpoint.network))
            && !(local && endpoint.cluster != proxy.cluster)
            && match endpoint.health {
                Health::Healthy => true,
                Health::Unhealthy => send_unhealthy,
                Health::Draining => service.keeps_draining(),
                Health::Terminating => false,
            }
    })
}

/// Whether mTLS may be spoken to an endpoint.
fn takes_mtls(world: &World, endpoint: &Endpoint, by_rule: Option<TlsMode>) -> bool {
    match by_rule {
        Some(mode) => mode == TlsMode::IstioMutual,
        None if !endpoint.tls || !world.settings.auto_mtls => false,
        None => {
            let (root, namespace) = (&world.settings.root_namespace, &endpoint.namespace);
            world.policies.mtls(root, namespace, &endpoint.labels, endpoint.port) != Mtls::Disable
        }
    }
}

/// Step C: the endpoints of one place, as the proxy reaches them.
fn reach(world: &World, proxy: &ProxyInfo, locality: Locality, endpoints: &[(&Endpoint, bool)]) -> Group {
    let mut chosen = Vec::with_capacity(endpoints.len());
    let multi_network = !world.gateways.all().is_empty();
    let scale = world.gateways.scale();
    let mut shares = BTreeMap::<&Gateway, u64>::new();
    for (endpoint, tls) in endpoints {
        let weight = if multi_network { scaled(endpoint.weight, scale) } else { endpoint.weight.max(1) };
        let gateways =
            if multi_network { world.gateways.of(&endpoint.network, &endpoint.cluster) } else { Default::default() };
        // Without a network of its own a proxy cannot know what it shares: everything that has gateways goes by them.
        let force = proxy.network.is_empty() && !endpoint.network.is_empty() && !gateways.is_empty();
        let same = proxy.network == endpoint.network || proxy.network.is_empty() || endpoint.network.is_empty();
        if !force && (same || gateways.is_empty()) {
            let Some(address) = endpoint.address else { continue };
            chosen.push(direct(endpoint, address, weight, *tls));
        } else if *tls {
            for gateway in gateways {
                *shares.entry(gateway).or_default() += u64::from(weight) / gateways.len() as u64;
            }
        }
        // A plaintext endpoint cannot be reached through a gateway: it is left out.
    }
    for (gateway, share) in shares {
        chosen.push(Chosen {
            address: gateway.address,
            port: gateway.port,
            weight: u32::try_from(share.max(1)).unwrap_or(u32::MAX),
            tls: true,
            health: None,
            workload: None,
            labels: Arc::new(Labels::from([
                (istio::CLUSTER_LABEL.to_owned(), gateway.cluster.to_string()),
                (istio::NETWORK_LABEL.to_owned(), gateway.network.to_string()),
            ])),
        });
    }
    let weight = total(&chosen);
    Group { locality, endpoints: chosen, weight, priority: 0 }
}

/// The sum of weights; none of none.
pub(super) fn total(endpoints: &[Chosen]) -> Option<u32> {
    let sum = endpoints.iter().fold(0u32, |sum, endpoint| sum.saturating_add(endpoint.weight));
    (!endpoints.is_empty()).then_some(sum)
}

fn scaled(weight: u32, scale: u64) -> u32 {
    u32::try_from(u64::from(weight.max(1)).saturating_mul(scale)).unwrap_or(u32::MAX)
}

fn direct(endpoint: &Endpoint, address: IpAddr, weight: u32, tls: bool) -> Chosen {
    let label = |name: &str| endpoint.labels.get(name).map(String::as_str);
    let name = label(istio::CANONICAL_NAME_LABEL)
        .or_else(|| label("app.kubernetes.io/name"))
        .or_else(|| label(istio::APP_LABEL))
        .unwrap_or(&endpoint.workload);
    let revision = label(istio::CANONICAL_REVISION_LABEL)
        .or_else(|| label("app.kubernetes.io/version"))
        .or_else(|| label(istio::VERSION_LABEL))
        .filter(|revision| *revision != "latest")
        .unwrap_or_default();
    let workload = format!("{};{};{name};{revision};{}", endpoint.workload, endpoint.namespace, endpoint.cluster);
    Chosen {
        address,
        port: endpoint.port,
        weight,
        tls,
        health: Some(endpoint.health),
        workload: Some(workload),
        labels: Arc::clone(&endpoint.labels),
    }
}

/// The message for a cluster of this name.
#[must_use]
pub fn assignment(name: &str, groups: Vec<Group>) -> envoy::ClusterLoadAssignment {
    let endpoints = groups.into_iter().map(|group| envoy::LocalityLbEndpoints {
        locality: (!group.locality.is_empty()).then_some(core::Locality {
            region: group.locality.region,
            zone: group.locality.zone,
            sub_zone: group.locality.subzone,
        }),
        load_balancing_weight: group.weight,
        priority: group.priority,
        lb_endpoints: group.endpoints.iter().map(endpoint).collect(),
        ..Default::default()
    });
    envoy::ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints: endpoints.collect(), ..Default::default() }
}

fn endpoint(chosen: &Chosen) -> envoy::LbEndpoint {
    let mut metadata = core::Metadata::default();
    if chosen.tls {
        let tls = structure([("tlsMode", string(istio::TLS_MODE_ISTIO))]);
        metadata.filter_metadata.insert("envoy.transport_socket_match".to_owned(), tls);
    }
    if let Some(workload) = &chosen.workload {
        metadata.filter_metadata.insert("istio".to_owned(), structure([("workload", string(workload))]));
    }
    let health = match chosen.health {
        None => core::HealthStatus::Unknown,
        Some(Health::Healthy) => core::HealthStatus::Healthy,
        Some(Health::Draining) => core::HealthStatus::Draining,
        Some(Health::Unhealthy | Health::Terminating) => core::HealthStatus::Unhealthy,
    };
    let address = stolos_xds::message::address(chosen.address.to_string(), chosen.port);
    envoy::LbEndpoint {
        health_status: health.into(),
        metadata: (!metadata.filter_metadata.is_empty()).then_some(metadata),
        load_balancing_weight: Some(chosen.weight),
        host_identifier: Some(envoy::lb_endpoint::HostIdentifier::Endpoint(envoy::Endpoint {
            address: Some(address),
            ..Default::default()
        })),
    }
}

#[cfg(test)]
mod tests;
