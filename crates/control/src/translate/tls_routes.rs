//! What a gateway passes on by server name as VirtualServices say, without ending TLS: for a mesh, its own control
//! plane, which other clusters reach in this way (contract B.7; Istio 1.30).

use std::sync::Arc;

use stolos_k8s::istio::{self, Direction};
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::listener::v3 as envoy;
use stolos_xds::message;

use super::listeners::tls_inspector;
use super::parts::tcp_proxy;
use crate::model::{Port, ProxyInfo, Service, World, selects};
use crate::policy::DestinationRule;

/// Connections to some server names at one port, and whereto they go.
#[derive(Clone, Debug)]
pub struct Routed<'a> {
    /// Where the gateway listens.
    pub at: u16,
    /// The server names; `*` is any.
    pub names: Vec<&'a str>,
    /// The service.
    pub service: &'a Arc<Service>,
    /// Its port.
    pub port: &'a Port,
    /// A subset, or the empty name.
    pub subset: &'a str,
    /// What applies to the host.
    pub rule: Option<Arc<DestinationRule>>,
}

impl Routed<'_> {
    /// The cluster it goes to.
    #[must_use]
    pub fn cluster(&self) -> String {
        istio::cluster_name(Direction::Outbound, self.port.number, self.subset, &self.service.host)
    }
}

/// What a gateway passes on in this way. Of two rules for the same names at one port the older one's counts.
#[must_use]
pub fn routed<'a>(world: &'a World, proxy: &'a ProxyInfo) -> Vec<Routed<'a>> {
    let (policies, root) = (&world.policies, &world.settings.root_namespace);
    let mut found = Vec::<Routed<'a>>::new();
    for gateway in policies.gateways.iter().filter(|gateway| selects(&gateway.selector, &proxy.labels)) {
        let name = format!("{}/{}", gateway.namespace, gateway.name);
        let routes = || policies.tls_routes.iter().filter(|routes| routes.gateways.contains(&name));
        for server in &gateway.tls {
            for rule in routes().flat_map(|routes| &routes.rules) {
                let taken = |name: &&str| found.iter().any(|have| have.at == server.port && have.names.contains(name));
                let names = rule.matches.iter().flat_map(|one| one.at(server));
                let names: Vec<_> = names.filter(|name| !taken(name)).collect();
                let Some(service) = world.services.by_host.get(rule.host.as_str()) else { continue };
                let port = match (rule.port, service.ports.as_slice()) {
                    (Some(number), _) => service.port(number),
                    (None, [only]) => Some(only),
                    (None, _) => None,
                };
                let Some(port) = port.filter(|_| !names.is_empty()) else { continue };
                let applies =
                    policies.destination(root, &proxy.namespace, &proxy.labels, &service.host, &service.namespace);
                let rule_of_host = applies.map(Arc::new);
                found.push(Routed { at: server.port, names, service, port, subset: &rule.subset, rule: rule_of_host });
            }
        }
    }
    found
}

/// Adds the chains to the gateway's listeners: to the one of the same port, if there is one.
pub fn add(listeners: &mut Vec<envoy::Listener>, world: &World, proxy: &ProxyInfo) {
    for routed in routed(world, proxy) {
        let cluster = routed.cluster();
        let any = routed.names.contains(&"*");
        let names = if any { Vec::new() } else { routed.names.iter().map(|name| (*name).to_owned()).collect() };
        let chain = envoy::FilterChain {
            name: format!("{}_{cluster}", routed.at),
            filter_chain_match: Some(envoy::FilterChainMatch {
                server_names: names,
                transport_protocol: "tls".to_owned(),
                ..Default::default()
            }),
            filters: vec![tcp_proxy(&cluster, &cluster, &world.settings)],
            ..Default::default()
        };
        let name = format!("0.0.0.0_{}", routed.at);
        match listeners.iter_mut().find(|listener| listener.name == name) {
            Some(listener) => listener.filter_chains.push(chain),
            None => listeners.push(envoy::Listener {
                name,
                address: Some(message::address(proxy.listens_at().to_string(), routed.at)),
                listener_filters: vec![tls_inspector()],
                filter_chains: vec![chain],
                traffic_direction: core::TrafficDirection::Outbound.into(),
                ..Default::default()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::ProxyKind;
    use crate::policy::{Object, Policies};
    use crate::translate::{fixture, gateway};

    fn object(kind: &str, name: &str, spec: serde_json::Value) -> Object {
        let (kind, name) = (kind.to_owned(), name.to_owned());
        Object { kind, namespace: "istio-system".into(), uid: name.clone(), name, generation: 1, created: 1, spec }
    }

    /// The objects that expose a control plane, as Istio's samples have them; the port of the service is another than
    /// the gateway's (E.12).
    #[test]
    fn a_gateway_passes_tls_on_by_port_and_name() {
        let (selector, host) = (json!({"istio": "eastwestgateway"}), fixture::HOST);
        let server = |port: u16| json!({"port": {"number": port, "name": "t", "protocol": "tls"}, "hosts": ["*"], "tls": {"mode": "PASSTHROUGH"}});
        let rule = |port: u16, sni: &str| {
            json!({"match": [{"port": port, "sniHosts": [sni]}],
            "route": [{"destination": {"host": host, "port": {"number": 8080}}}]})
        };
        let policies = Policies::read(
            [
                object(
                    "Gateway",
                    "istiod-gateway",
                    json!({"selector": selector, "servers": [server(15012), server(15017)]}),
                ),
                object(
                    "VirtualService",
                    "istiod-vs",
                    json!({"hosts": ["*"], "gateways": ["istiod-gateway"],
                        "tls": [rule(15012, "*"), rule(15012, "*"), rule(15017, "web.shop.svc")]}),
                ),
                object(
                    "VirtualService",
                    "other",
                    json!({"hosts": ["*"], "gateways": ["another"], "tls": [rule(15012, "x")]}),
                ),
                object(
                    "Gateway",
                    "cross-network-gateway",
                    json!({"selector": selector, "servers": [{"port": {"number": 15443, "protocol": "TLS"},
                        "hosts": ["*.local"], "tls": {"mode": "AUTO_PASSTHROUGH"}}]}),
                ),
            ],
            "cluster.local",
        );
        assert_eq!(policies.findings, []);
        let mut world = fixture::world();
        fixture::set_policies(&mut world, policies);
        let mut proxy = ProxyInfo { kind: ProxyKind::Router, ..fixture::proxy("c1") };
        proxy.labels.insert("istio".into(), "eastwestgateway".into());
        let mut listeners = gateway::listeners(&world, &proxy);
        add(&mut listeners, &world, &proxy);
        let text = |listener: &envoy::Listener| {
            let chains = listener.filter_chains.iter().map(|chain| {
                let criteria = chain.filter_chain_match.as_ref().unwrap();
                format!("{} {:?} {}", chain.name, criteria.server_names, criteria.transport_protocol)
            });
            format!("{}: {}", listener.name, chains.collect::<Vec<_>>().join("; "))
        };
        let text: Vec<_> = listeners.iter().map(text).collect();
        insta::assert_snapshot!(text.join("\n"), @r#"
        0.0.0.0_15443: outbound_.8080_._.web.shop.svc.cluster.local ["outbound_.8080_._.web.shop.svc.cluster.local"] 
        0.0.0.0_15012: 15012_outbound|8080||web.shop.svc.cluster.local [] tls
        0.0.0.0_15017: 15017_outbound|8080||web.shop.svc.cluster.local ["web.shop.svc"] tls
        "#);
    }
}
