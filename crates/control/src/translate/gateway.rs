//! Gateways between networks: mTLS is passed through by its server name (Istio 1.30, section 9).

use std::collections::BTreeMap;

use stolos_k8s::istio;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::listener::v3 as envoy;
use stolos_xds::message;

use super::listeners::{tls_inspector, visible};
use super::parts::tcp_proxy;
use crate::model::{Port, Protocol, ProxyInfo, Service, World, host_matches, selects};
use crate::policy::DestinationRule;

/// One thing a gateway passes on to.
#[derive(Clone, Debug)]
pub struct Passed<'a> {
    /// The service.
    pub service: &'a Service,
    /// Its port.
    pub port: &'a Port,
    /// A subset, or the empty name.
    pub subset: String,
    /// What applies to the host.
    pub rule: Option<std::sync::Arc<DestinationRule>>,
}

impl Passed<'_> {
    /// The server name that asks for it; also the cluster's name.
    #[must_use]
    pub fn sni(&self) -> String {
        istio::sni(self.port.number, &self.subset, &self.service.host)
    }
}

/// What a gateway passes on to, by the port it listens on.
#[must_use]
pub fn passed<'a>(world: &'a World, proxy: &'a ProxyInfo) -> BTreeMap<u16, Vec<Passed<'a>>> {
    let mut by_port = BTreeMap::<u16, Vec<String>>::new();
    for gateway in world.policies.gateways.iter().filter(|gateway| selects(&gateway.selector, &proxy.labels)) {
        for (port, hosts) in &gateway.passthrough {
            by_port.entry(*port).or_default().extend(hosts.iter().cloned());
        }
    }
    if by_port.is_empty() {
        return BTreeMap::new();
    }
    let root = &world.settings.root_namespace;
    let mut passed = BTreeMap::<u16, Vec<Passed<'a>>>::new();
    for service in visible(world, proxy) {
        let listening: Vec<_> = by_port
            .iter()
            .filter(|(_, hosts)| hosts.iter().any(|pattern| host_matches(pattern, &service.host)))
            .map(|(port, _)| *port)
            .collect();
        if listening.is_empty() {
            continue;
        }
        let rule = world
            .policies
            .destination(root, &proxy.namespace, &proxy.labels, &service.host, &service.namespace)
            .map(std::sync::Arc::new);
        let subsets = rule.iter().flat_map(|rule| rule.subsets.iter().map(|subset| subset.name.clone()));
        let subsets: Vec<_> = std::iter::once(String::new()).chain(subsets).collect();
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            for subset in &subsets {
                for number in &listening {
                    passed.entry(*number).or_default().push(Passed {
                        service,
                        port,
                        subset: subset.clone(),
                        rule: rule.clone(),
                    });
                }
            }
        }
    }
    passed
}

/// The listeners of a gateway: one chain per server name, and nothing for any other.
#[must_use]
pub fn listeners(world: &World, proxy: &ProxyInfo) -> Vec<envoy::Listener> {
    let chain = |passed: &Passed| {
        let name = passed.sni();
        envoy::FilterChain {
            name: name.clone(),
            filter_chain_match: Some(envoy::FilterChainMatch {
                server_names: vec![name.clone()],
                application_protocols: istio::ALPN.iter().map(|p| (*p).to_owned()).collect(),
                ..Default::default()
            }),
            filters: vec![tcp_proxy(&name, &name, &world.settings)],
            ..Default::default()
        }
    };
    let listener = |(port, passed): (u16, Vec<Passed>)| envoy::Listener {
        name: format!("0.0.0.0_{port}"),
        address: Some(message::address(proxy.listens_at().to_string(), port)),
        listener_filters: vec![tls_inspector()],
        filter_chains: passed.iter().map(chain).collect(),
        traffic_direction: core::TrafficDirection::Outbound.into(),
        ..Default::default()
    };
    passed(world, proxy).into_iter().map(listener).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ProxyKind;
    use crate::policy::{GatewayConfig, Policies, Subset};

    use crate::translate::fixture;

    #[test]
    fn one_chain_per_server_name() {
        let mut world = fixture::world();
        let gateway = |hosts: &str| GatewayConfig {
            namespace: "istio-system".into(),
            name: "cross-network-gateway".into(),
            selector: [("istio".to_owned(), "eastwestgateway".to_owned())].into(),
            passthrough: vec![(15443, vec![hosts.to_owned()])],
            http: Vec::new(),
            tls: vec![],
        };
        let rule = DestinationRule {
            namespace: fixture::NAMESPACE.into(),
            name: "web".into(),
            host: fixture::HOST.into(),
            policy: None,
            subsets: vec![Subset { name: "v1".into(), labels: Default::default(), policy: None }],
            export_to: Default::default(),
            workloads: Default::default(),
        };
        let policies = Policies { gateways: vec![gateway("*.local")], destinations: vec![rule], ..Policies::default() };
        fixture::set_policies(&mut world, policies.clone());
        let mut proxy = ProxyInfo { kind: ProxyKind::Router, ..fixture::proxy("c1") };
        assert!(listeners(&world, &proxy).is_empty(), "the gateway's selector does not select it");

        proxy.labels.insert("istio".into(), "eastwestgateway".into());
        let built = listeners(&world, &proxy);
        assert_eq!(built.len(), 1);
        let names: Vec<_> = built[0]
            .filter_chains
            .iter()
            .flat_map(|chain| chain.filter_chain_match.as_ref().unwrap().server_names.clone())
            .collect();
        assert_eq!(
            names,
            ["outbound_.8080_._.web.shop.svc.cluster.local", "outbound_.8080_.v1_.web.shop.svc.cluster.local"]
        );

        fixture::set_policies(&mut world, Policies { gateways: vec![gateway("*.example.com")], ..policies });
        assert!(listeners(&world, &proxy).is_empty(), "no host matches");
    }
}
