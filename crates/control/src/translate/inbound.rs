//! The listener for what a workload receives: which connections are taken, in which form, and where they go.

use std::collections::BTreeMap;
use std::time::Duration;

use stolos_k8s::istio::{self, Direction};
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::listener::v3 as envoy;
use stolos_xds::envoy::config::route::v3 as route;
use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, RouteSpecifier, ServerHeaderTransformation, SetCurrentClientCertDetails,
};
use stolos_xds::message;

use super::authorization::Access;
use super::clusters::{self, BLACK_HOLE, INBOUND_PASSTHROUGH};
use super::listeners::{PLAIN_HTTP, any_path, http_inspector, original_destination, tls_inspector, to_cluster};
use super::parts::{duration, http_filter, http_manager, tcp_proxy};
use super::tls;
use crate::model::{PodFacts, Protocol, ProxyInfo, Service, Target, World};
use crate::policy::Mtls;

/// The application protocols of HTTP inside mTLS.
const ISTIO_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
/// The application protocols of bytes inside mTLS.
const ISTIO_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];

/// A port of the workload that some service leads to.
#[derive(Clone, Debug)]
pub struct Served<'a> {
    /// The workload's port.
    pub target: u16,
    /// The service's.
    pub port: u16,
    /// What it speaks: as the oldest service says.
    pub protocol: Protocol,
    /// The services, the oldest first.
    pub services: Vec<&'a Service>,
}

/// The workload's ports, by the services of its own cluster that select it.
#[must_use]
pub fn served<'a>(world: &'a World, proxy: &ProxyInfo) -> Vec<Served<'a>> {
    let Some(cluster) = world.cluster(&proxy.cluster) else { return Vec::new() };
    let pod = cluster.pods.get(&(proxy.namespace.clone(), proxy.name.clone()));
    let labels = pod.map_or(&proxy.labels, |pod| &pod.labels);
    let mut own: Vec<&Service> = cluster
        .services
        .values()
        .map(AsRef::as_ref)
        .filter(|service| service.namespace == proxy.namespace && !service.selector.is_empty())
        .filter(|service| crate::model::selects(&service.selector, labels))
        .collect();
    own.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
    let mut by_target = BTreeMap::<u16, Served<'a>>::new();
    for service in own {
        for port in service.ports.iter().filter(|port| port.protocol != Protocol::Udp) {
            let Some(target) = target(&port.target, pod.map(AsRef::as_ref)) else { continue };
            let served = by_target.entry(target).or_insert_with(|| Served {
                target,
                port: port.number,
                protocol: port.protocol,
                services: Vec::new(),
            });
            if served.services.iter().all(|have| have.host != service.host) {
                served.services.push(service);
            }
        }
    }
    by_target.into_values().collect()
}

fn target(target: &Target, pod: Option<&PodFacts>) -> Option<u16> {
    match target {
        Target::Number(number) => Some(*number),
        Target::Named(name) => pod?.ports.get(name).copied(),
    }
}

/// `virtualInbound`.
#[must_use]
pub fn listener(world: &World, proxy: &ProxyInfo) -> envoy::Listener {
    let served = served(world, proxy);
    let (root, labels) = (&world.settings.root_namespace, &proxy.labels);
    let mut chains = vec![chain(
        "virtualInbound-blackhole",
        Matching { port: Some(istio::INBOUND_PORT), ..Matching::default() },
        vec![tcp_proxy(BLACK_HOLE, BLACK_HOLE, &world.settings)],
        None,
    )];
    if world.policies.is_closed(root, &proxy.namespace, labels) {
        // A security object that cannot be obeyed: nobody comes in.
        let filters = vec![tcp_proxy(BLACK_HOLE, "closed", &world.settings)];
        chains.push(chain("virtualInbound-closed", Matching::default(), filters, None));
    } else {
        let namespace = &proxy.namespace;
        let rest = world.policies.mtls(root, namespace, labels, 0);
        let access = Access::of(world, proxy);
        chains.extend(chains_of(world, &access, None, Protocol::Auto, rest));
        for served in &served {
            let mode = world.policies.mtls(root, namespace, labels, served.target);
            chains.extend(chains_of(world, &access, Some(served), served.protocol, mode));
        }
    }
    let mut http = http_inspector();
    // Where the protocol is declared, waiting for the client to speak would stall servers that speak first.
    http.filter_disabled = except(served.iter().filter(|s| s.protocol != Protocol::Auto).map(|s| s.target));
    envoy::Listener {
        name: "virtualInbound".to_owned(),
        address: Some(message::address(proxy.listens_at().to_string(), istio::INBOUND_PORT)),
        use_original_dst: Some(false),
        listener_filters: vec![original_destination(proxy), tls_inspector(), http],
        listener_filters_timeout: Some(duration(world.settings.detection)),
        continue_on_listener_filters_timeout: true,
        filter_chains: chains,
        traffic_direction: core::TrafficDirection::Inbound.into(),
        ..Default::default()
    }
}

fn except(ports: impl Iterator<Item = u16>) -> Option<envoy::ListenerFilterChainMatchPredicate> {
    use envoy::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let one = |port: u16| envoy::ListenerFilterChainMatchPredicate {
        rule: Some(Rule::DestinationPortRange(stolos_xds::envoy::r#type::v3::Int32Range {
            start: port.into(),
            end: i32::from(port) + 1,
        })),
    };
    let mut rules: Vec<_> = ports.map(one).collect();
    match rules.len() {
        0 | 1 => rules.pop(),
        _ => Some(envoy::ListenerFilterChainMatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules })) }),
    }
}

/// What a connection must be for a chain.
#[derive(Clone, Copy, Debug, Default)]
struct Matching {
    port: Option<u16>,
    transport: &'static str,
    protocols: &'static [&'static str],
}

/// What a chain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    HttpMutual,
    TcpMutual,
    HttpPlain,
    TcpPlain,
    /// TLS of the application's own: bytes.
    TcpForeign,
}

/// The chains of one port by mode, in the order in which they are written (Istio 1.30, section 10.3).
fn matrix(mode: Mtls, protocol: Protocol) -> &'static [(&'static str, &'static [&'static str], Does)] {
    const TLS: &str = "tls";
    const RAW: &str = "raw_buffer";
    const ANY: &[&str] = &[];
    const I_BOTH: &[&str] = &["istio-http/1.0", "istio-http/1.1", "istio-h2", "istio-peer-exchange", "istio"];
    let auto = protocol == Protocol::Auto;
    match (mode, protocol.is_http()) {
        (Mtls::Strict, _) if auto => &[(TLS, &ISTIO_HTTP, Does::HttpMutual), (TLS, ANY, Does::TcpMutual)],
        (Mtls::Strict, true) => &[(TLS, ANY, Does::HttpMutual)],
        (Mtls::Strict, false) => &[(TLS, ANY, Does::TcpMutual)],
        (Mtls::Permissive, _) if auto => &[
            (TLS, &ISTIO_HTTP, Does::HttpMutual),
            (RAW, &PLAIN_HTTP, Does::HttpPlain),
            (TLS, &ISTIO_TCP, Does::TcpMutual),
            (RAW, ANY, Does::TcpPlain),
            (TLS, ANY, Does::TcpForeign),
        ],
        (Mtls::Permissive, true) => &[(TLS, I_BOTH, Does::HttpMutual), (RAW, ANY, Does::HttpPlain)],
        (Mtls::Permissive, false) => {
            &[(TLS, I_BOTH, Does::TcpMutual), (TLS, ANY, Does::TcpForeign), (RAW, ANY, Does::TcpPlain)]
        }
        (Mtls::Disable, _) if auto => &[(RAW, &PLAIN_HTTP, Does::HttpPlain), (RAW, ANY, Does::TcpPlain)],
        (Mtls::Disable, true) => &[(RAW, ANY, Does::HttpPlain)],
        (Mtls::Disable, false) => &[(RAW, ANY, Does::TcpPlain)],
    }
}

fn chains_of(
    world: &World,
    access: &Access,
    served: Option<&Served>,
    protocol: Protocol,
    mode: Mtls,
) -> Vec<envoy::FilterChain> {
    let of = |(transport, protocols, does): &(&'static str, &'static [&'static str], Does)| {
        let matching = Matching { port: served.map(|s| s.target), transport, protocols };
        let http = matches!(does, Does::HttpMutual | Does::HttpPlain);
        let mutual = matches!(does, Does::HttpMutual | Does::TcpMutual);
        let name = match served {
            Some(served) => format!("0.0.0.0_{}", served.target),
            None if http => "virtualInbound-catchall-http".to_owned(),
            None => "virtualInbound".to_owned(),
        };
        let cluster = match served {
            Some(served) => istio::cluster_name(Direction::Inbound, served.target, "", ""),
            None => INBOUND_PASSTHROUGH.to_owned(),
        };
        let filters = if http {
            vec![http_filter_for(world, served.map_or(0, |served| served.port), &cluster, mutual, access)]
        } else {
            access.network().into_iter().chain([tcp_proxy(&cluster, &cluster, &world.settings)]).collect()
        };
        chain(&name, matching, filters, mutual.then(|| tls::downstream(&world.settings, http)))
    };
    matrix(mode, protocol).iter().map(of).collect()
}

fn chain(
    name: &str,
    matching: Matching,
    filters: Vec<envoy::Filter>,
    transport_socket: Option<core::TransportSocket>,
) -> envoy::FilterChain {
    let any = matching.port.is_none() && matching.transport.is_empty() && matching.protocols.is_empty();
    let matching = envoy::FilterChainMatch {
        destination_port: matching.port.map(u32::from),
        transport_protocol: matching.transport.to_owned(),
        application_protocols: matching.protocols.iter().map(|p| (*p).to_owned()).collect(),
        ..Default::default()
    };
    envoy::FilterChain {
        name: name.to_owned(),
        filter_chain_match: (!any).then_some(matching),
        filters,
        transport_socket,
        ..Default::default()
    }
}

fn http_filter_for(world: &World, port: u16, cluster: &str, mutual: bool, access: &Access) -> envoy::Filter {
    let mut manager = http_manager(&format!("inbound_0.0.0.0_{port}"), &world.settings);
    manager.http_filters.splice(0..0, access.http());
    manager.server_header_transformation = ServerHeaderTransformation::PassThrough.into();
    // What a plaintext client says about certificates is not passed on.
    let details = if mutual { ForwardClientCertDetails::AppendForward } else { ForwardClientCertDetails::Sanitize };
    manager.forward_client_cert_details = details.into();
    if mutual {
        manager.set_current_client_cert_details =
            Some(SetCurrentClientCertDetails { subject: Some(true), dns: true, uri: true, ..Default::default() });
    }
    let action = route::RouteAction {
        timeout: Some(duration(Duration::ZERO)),
        retry_policy: Some(route::RetryPolicy {
            retry_on: "reset-before-request".to_owned(),
            num_retries: Some(2),
            ..Default::default()
        }),
        ..to_cluster(cluster)
    };
    let routes = route::RouteConfiguration {
        name: if port == 0 { INBOUND_PASSTHROUGH.to_owned() } else { format!("inbound|{port}||") },
        virtual_hosts: vec![route::VirtualHost {
            name: format!("inbound|http|{port}"),
            domains: vec!["*".to_owned()],
            routes: vec![route::Route {
                name: "default".to_owned(),
                r#match: Some(any_path()),
                action: Some(route::route::Action::Route(action)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        validate_clusters: Some(false),
        ..Default::default()
    };
    manager.route_specifier = Some(RouteSpecifier::RouteConfig(routes));
    http_filter(&manager)
}

/// The clusters that the inbound listener names.
#[must_use]
pub fn clusters(world: &World, proxy: &ProxyInfo) -> Vec<stolos_xds::envoy::config::cluster::v3::Cluster> {
    let of = |served: &Served| clusters::inbound(proxy, served.target, served.protocol, &served.services);
    served(world, proxy).iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Labels;
    use crate::policy::{Applies, PeerAuthentication, Policies};
    use crate::translate::fixture;

    /// The chains of one port, as one line each.
    fn rows(mode: Mtls, protocol: Protocol) -> String {
        let mut world = fixture::world();
        fixture::change_service(&mut world, "c1", |service| service.ports[0].protocol = protocol);
        let applies = Applies { namespace: "istio-system".into(), selector: Labels::new(), any: false };
        let peer = PeerAuthentication { applies, mode: Some(mode), ports: BTreeMap::new() };
        fixture::set_policies(&mut world, Policies { peers: vec![peer], ..Policies::default() });
        let listener = listener(&world, &fixture::proxy("c1"));
        let of_port = listener.filter_chains.iter().filter(|chain| chain.name == "0.0.0.0_8080");
        let lines = of_port.map(|chain| {
            let matching = chain.filter_chain_match.as_ref().unwrap();
            assert_eq!(matching.destination_port, Some(8080));
            let protocols = matching.application_protocols.join(",");
            let http = chain.filters[0].name.ends_with("http_connection_manager");
            let kind = if http { "HTTP" } else { "TCP" };
            let tls = if chain.transport_socket.is_some() { "mTLS" } else { "as is" };
            format!("{mode:?} {protocol:?}: {} [{protocols}] -> {kind} {tls}", matching.transport_protocol)
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_matrix_of_modes_and_protocols() {
        let mut all = Vec::new();
        for mode in [Mtls::Strict, Mtls::Permissive, Mtls::Disable] {
            for protocol in [Protocol::Http, Protocol::Tcp, Protocol::Auto] {
                all.push(rows(mode, protocol));
            }
        }
        insta::assert_snapshot!(all.join("\n"), @r"
        Strict Http: tls [] -> HTTP mTLS
        Strict Tcp: tls [] -> TCP mTLS
        Strict Auto: tls [istio-http/1.0,istio-http/1.1,istio-h2] -> HTTP mTLS
        Strict Auto: tls [] -> TCP mTLS
        Permissive Http: tls [istio-http/1.0,istio-http/1.1,istio-h2,istio-peer-exchange,istio] -> HTTP mTLS
        Permissive Http: raw_buffer [] -> HTTP as is
        Permissive Tcp: tls [istio-http/1.0,istio-http/1.1,istio-h2,istio-peer-exchange,istio] -> TCP mTLS
        Permissive Tcp: tls [] -> TCP as is
        Permissive Tcp: raw_buffer [] -> TCP as is
        Permissive Auto: tls [istio-http/1.0,istio-http/1.1,istio-h2] -> HTTP mTLS
        Permissive Auto: raw_buffer [http/1.1,h2c] -> HTTP as is
        Permissive Auto: tls [istio-peer-exchange,istio] -> TCP mTLS
        Permissive Auto: raw_buffer [] -> TCP as is
        Permissive Auto: tls [] -> TCP as is
        Disable Http: raw_buffer [] -> HTTP as is
        Disable Tcp: raw_buffer [] -> TCP as is
        Disable Auto: raw_buffer [http/1.1,h2c] -> HTTP as is
        Disable Auto: raw_buffer [] -> TCP as is
        ");
    }

    #[test]
    fn a_workload_whose_policy_cannot_be_obeyed_is_closed() {
        let mut world = fixture::world();
        let selector = Labels::from([("app".to_owned(), "web".to_owned())]);
        let closed = vec![Applies { namespace: fixture::NAMESPACE.into(), selector, any: false }];
        fixture::set_policies(&mut world, Policies { closed, ..Policies::default() });
        let names = |cluster: &str, app: &str| {
            let mut proxy = fixture::proxy(cluster);
            proxy.labels.insert("app".into(), app.into());
            let listener = listener(&world, &proxy);
            listener.filter_chains.iter().map(|chain| chain.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names("c1", "web"), ["virtualInbound-blackhole", "virtualInbound-closed"]);
        assert!(names("c1", "other").len() > 2);
    }

    #[test]
    fn a_proxy_of_an_unknown_cluster_serves_nothing() {
        let world = fixture::world();
        let proxy = ProxyInfo { cluster: "unheard-of".into(), ..fixture::proxy("c1") };
        assert!(served(&world, &proxy).is_empty());
        assert_eq!(served(&world, &fixture::proxy("c1")).len(), 1);
    }
}
