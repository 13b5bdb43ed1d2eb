//! Gateways for what comes from outside the mesh: Gateway servers of HTTP, and the VirtualServices bound to them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::listener::v3 as envoy;
use stolos_xds::envoy::config::route::v3 as route;
use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    Rds, http_connection_manager::RouteSpecifier,
};
use stolos_xds::message;

use super::authorization::Access;
use super::listeners::{any_path, destination_port, ruled};
use super::parts::{ads, http_filter, http_manager};
use crate::model::{Port, Protocol, ProxyInfo, Service, Target, World, exported, selects};
use crate::policy::ingress::HttpServer;
use crate::policy::{GatewayConfig, VirtualService};

/// A server, and the Gateway it is of.
type Served<'a> = (&'a GatewayConfig, &'a HttpServer);

/// The servers of a gateway's pods, by the port the pods listen on: that which the gateway's own Services lead the
/// server's port to, or, where none does, the server's itself (Istio 1.30, `resolvePorts`).
fn servers<'a>(world: &'a World, proxy: &ProxyInfo) -> BTreeMap<u16, Vec<Served<'a>>> {
    let mut by_port = BTreeMap::<u16, Vec<Served<'a>>>::new();
    for gateway in world.policies.gateways.iter().filter(|gateway| selects(&gateway.selector, &proxy.labels)) {
        for server in &gateway.http {
            for port in targets(world, proxy, server.port) {
                by_port.entry(port).or_default().push((gateway, server));
            }
        }
    }
    by_port
}

/// Where the Services of a gateway lead this port.
fn targets(world: &World, proxy: &ProxyInfo, port: u16) -> BTreeSet<u16> {
    let cluster = world.cluster(&proxy.cluster);
    let services = cluster.iter().flat_map(|cluster| cluster.services.values());
    let own = services.filter(|service| {
        service.namespace == proxy.namespace
            && !service.selector.is_empty()
            && selects(&service.selector, &proxy.labels)
    });
    let pod = cluster.and_then(|cluster| cluster.pods.get(&(proxy.namespace.clone(), proxy.name.clone())));
    let target = |port: &Port| match &port.target {
        Target::Number(number) => Some(*number),
        Target::Named(name) => pod?.ports.get(name).copied(),
    };
    let found: BTreeSet<_> = own
        .flat_map(|service| &service.ports)
        .filter(|own| own.number == port && own.protocol != Protocol::Udp)
        .filter_map(target)
        .collect();
    if found.is_empty() { [port].into() } else { found }
}

/// The VirtualServices that a proxy sees and that name this gateway, oldest first.
fn bound<'a>(
    world: &'a World,
    proxy: &'a ProxyInfo,
    gateway: &GatewayConfig,
) -> impl Iterator<Item = &'a VirtualService> {
    let id = gateway.id();
    world.policies.virtual_services.iter().filter(move |rules| {
        exported(&rules.export_to, &rules.namespace, &proxy.namespace) && rules.gateways.contains(&id)
    })
}

/// One listener per port.
#[must_use]
pub fn listeners(world: &World, proxy: &ProxyInfo) -> Vec<envoy::Listener> {
    let access = Access::of(world, proxy);
    let listener = |port: u16| {
        let mut manager = http_manager(&format!("outbound_0.0.0.0_{port}"), &world.settings);
        manager.http_filters.splice(0..0, access.http());
        let rds = Rds { config_source: Some(ads()), route_config_name: routes_name(port) };
        manager.route_specifier = Some(RouteSpecifier::Rds(rds));
        // What comes from outside is not believed about where it came from.
        manager.use_remote_address = Some(true);
        envoy::Listener {
            name: format!("0.0.0.0_{port}"),
            address: Some(message::address(proxy.listens_at().to_string(), port)),
            filter_chains: vec![envoy::FilterChain { filters: vec![http_filter(&manager)], ..Default::default() }],
            traffic_direction: core::TrafficDirection::Outbound.into(),
            ..Default::default()
        }
    };
    servers(world, proxy).into_keys().map(listener).collect()
}

fn routes_name(port: u16) -> String {
    format!("http.{port}")
}

/// The route configurations that the listeners name.
#[must_use]
pub fn routes(world: &World, proxy: &ProxyInfo) -> Vec<route::RouteConfiguration> {
    servers(world, proxy).into_iter().map(|(port, servers)| configuration(world, proxy, port, &servers)).collect()
}

fn configuration(world: &World, proxy: &ProxyInfo, port: u16, servers: &[Served]) -> route::RouteConfiguration {
    let mut by_domain = BTreeMap::<&str, Vec<route::Route>>::new();
    let mut seen = BTreeSet::new();
    for (gateway, server) in servers {
        for rules in bound(world, proxy, gateway).filter(|rules| !rules.http.is_empty()) {
            let hosts = rules.outer_hosts.iter();
            for domain in hosts.flat_map(|host| server.domains(&rules.namespace, host)) {
                // Two servers of a port may have the same host.
                if seen.insert((domain, &rules.namespace, &rules.name)) {
                    let routes = rules.http.iter().flat_map(|rule| ruled(world, rule, &gateway.id(), server.port));
                    by_domain.entry(domain).or_default().extend(routes);
                }
            }
        }
    }
    let host = |(domain, mut routes): (&str, Vec<route::Route>)| {
        // Rules of several VirtualServices are one list; what takes everything must not hide what comes after it.
        routes.sort_by_key(takes_everything);
        virtual_host(&format!("{domain}:{port}"), domain, routes)
    };
    let mut virtual_hosts: Vec<_> = by_domain.into_iter().map(host).collect();
    if virtual_hosts.is_empty() {
        let response = route::DirectResponseAction { status: 404, ..Default::default() };
        let nothing = route::Route {
            name: "blackhole".to_owned(),
            r#match: Some(any_path()),
            action: Some(route::route::Action::DirectResponse(response)),
            ..Default::default()
        };
        virtual_hosts.push(virtual_host(&format!("blackhole:{port}"), "*", vec![nothing]));
    }
    route::RouteConfiguration {
        name: routes_name(port),
        virtual_hosts,
        validate_clusters: Some(false),
        ignore_port_in_host_matching: true,
        max_direct_response_body_size_bytes: Some(1 << 20),
        ..Default::default()
    }
}

fn virtual_host(name: &str, domain: &str, routes: Vec<route::Route>) -> route::VirtualHost {
    route::VirtualHost {
        name: name.to_owned(),
        domains: vec![domain.to_owned()],
        routes,
        include_request_attempt_count: true,
        ..Default::default()
    }
}

/// Whether a route is for every path, whatever its headers but the method's: those are how retries are told apart.
fn takes_everything(one: &route::Route) -> bool {
    use route::route_match::PathSpecifier;
    let Some(matching) = &one.r#match else { return false };
    let any = matches!(&matching.path_specifier, Some(PathSpecifier::Prefix(prefix)) if prefix == "/");
    any && matching.headers.iter().all(|header| header.name == ":method" && header.invert_match)
}

/// Something that a gateway sends to.
#[derive(Clone, Debug)]
pub(crate) struct Sent<'a> {
    /// The service.
    pub(crate) service: &'a Arc<Service>,
    /// Its port.
    pub(crate) port: &'a Port,
    /// A subset, or the empty name.
    pub(crate) subset: String,
}

/// All that a gateway's routes lead to, each once.
pub(crate) fn sent<'a>(world: &'a World, proxy: &'a ProxyInfo) -> Vec<Sent<'a>> {
    let mut seen = BTreeSet::new();
    let mut sent = Vec::new();
    for (gateway, server) in servers(world, proxy).into_values().flatten() {
        for to in bound(world, proxy, gateway).flat_map(|rules| &rules.http).flat_map(|rule| &rule.to) {
            let Some(service) = world.services.by_host.get(to.host.as_str()) else { continue };
            let port = service.port(destination_port(world, to, server.port));
            let Some(port) = port.filter(|_| service.is_visible_in(&proxy.namespace)) else { continue };
            if seen.insert((&service.host, port.number, &to.subset)) {
                sent.push(Sent { service, port, subset: to.subset.clone() });
            }
        }
    }
    sent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ProxyKind;
    use crate::policy::{Object, Policies};
    use crate::translate::fixture;
    use serde_json::{Value, json};

    fn object(kind: &str, namespace: &str, name: &str, created: i64, spec: Value) -> Object {
        Object {
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
            uid: String::new(),
            generation: 1,
            created,
            spec,
        }
    }

    fn ingress() -> ProxyInfo {
        let labels = [("istio".to_owned(), "ingressgateway".to_owned())].into();
        ProxyInfo {
            kind: ProxyKind::Router,
            namespace: "istio-system".into(),
            name: "istio-ingressgateway-1".into(),
            labels,
            ..fixture::proxy("c1")
        }
    }

    fn gateway(name: &str, hosts: &[&str], port: u16) -> Object {
        let server = json!({"port": {"number": port, "name": "http", "protocol": "HTTP"}, "hosts": hosts});
        let spec = json!({"selector": {"istio": "ingressgateway"}, "servers": [server]});
        object("Gateway", fixture::NAMESPACE, name, 1, spec)
    }

    /// Port, domain, and each route with where it leads.
    fn lines(world: &World) -> String {
        let mut lines = Vec::new();
        for configuration in routes(world, &ingress()) {
            for host in &configuration.virtual_hosts {
                for one in &host.routes {
                    let matching = one.r#match.as_ref().unwrap();
                    let path = match matching.path_specifier.as_ref().unwrap() {
                        route::route_match::PathSpecifier::Prefix(path) => format!("{path}*"),
                        route::route_match::PathSpecifier::Path(path) => path.clone(),
                        route::route_match::PathSpecifier::SafeRegex(regex) => format!("~{}", regex.regex),
                        other => format!("{other:?}"),
                    };
                    let to = match one.action.as_ref().unwrap() {
                        route::route::Action::Route(action) => match action.cluster_specifier.as_ref().unwrap() {
                            route::route_action::ClusterSpecifier::Cluster(name) => name.clone(),
                            route::route_action::ClusterSpecifier::WeightedClusters(several) => {
                                let one = |c: &route::weighted_cluster::ClusterWeight| {
                                    format!("{}%{}", c.weight.unwrap(), c.name)
                                };
                                several.clusters.iter().map(one).collect::<Vec<_>>().join(" + ")
                            }
                            other => format!("{other:?}"),
                        },
                        route::route::Action::DirectResponse(response) => format!("answer {}", response.status),
                        other => format!("{other:?}"),
                    };
                    let line = format!("{} {} {path} -> {to}", configuration.name, host.domains.join(","));
                    // A path that is retried in two ways is one for a reader.
                    if lines.last() != Some(&line) {
                        lines.push(line);
                    }
                }
            }
        }
        lines.join("\n")
    }

    #[test]
    fn requests_from_outside_go_where_the_bound_rules_say() {
        let mut world = fixture::world();
        let shop = json!({"hosts": ["*"], "gateways": ["shop-gateway"], "http": [{
            "match": [{"uri": {"exact": "/cart"}}, {"uri": {"prefix": "/static"}}, {"uri": {"regex": "/item/[0-9]+"}},
                {"uri": {"prefix": "/mesh-only"}, "gateways": ["mesh"]}],
            "route": [{"destination": {"host": "web", "port": {"number": 8080}}}]}]});
        let rest = json!({"hosts": ["*"], "gateways": ["shop/shop-gateway"], "http": [
            {"match": [{"uri": {"prefix": "/beta"}}], "route": [
                {"destination": {"host": "web", "subset": "v1"}, "weight": 90},
                {"destination": {"host": "web", "subset": "v2"}, "weight": 10}]}]});
        let all = json!({"hosts": ["*"], "gateways": ["shop-gateway"], "http": [
            {"route": [{"destination": {"host": "web.shop.svc.cluster.local"}}]}]});
        let named = json!({"hosts": ["a.example.com"], "gateways": ["shop-gateway", "mesh"], "http": [
            {"route": [{"destination": {"host": "web"}}]}]});
        let elsewhere = json!({"hosts": ["*"], "gateways": ["other-gateway"], "http": [
            {"route": [{"destination": {"host": "web"}}]}]});
        let rules = |name: &str, created, spec| object("VirtualService", fixture::NAMESPACE, name, created, spec);
        let policies = Policies::read(
            [
                gateway("shop-gateway", &["*"], 80),
                gateway("closed", &["infra/*"], 81),
                rules("all", 1, all),
                rules("shop", 2, shop),
                rules("rest", 3, rest),
                rules("named", 4, named),
                rules("elsewhere", 5, elsewhere),
            ],
            "cluster.local",
        );
        fixture::set_policies(&mut world, policies);
        insta::assert_snapshot!(lines(&world), @r"
        http.80 * /cart -> outbound|8080||web.shop.svc.cluster.local
        http.80 * /static* -> outbound|8080||web.shop.svc.cluster.local
        http.80 * ~/item/[0-9]+ -> outbound|8080||web.shop.svc.cluster.local
        http.80 * /beta* -> 90%outbound|8080|v1|web.shop.svc.cluster.local + 10%outbound|8080|v2|web.shop.svc.cluster.local
        http.80 * /* -> outbound|8080||web.shop.svc.cluster.local
        http.80 a.example.com /* -> outbound|8080||web.shop.svc.cluster.local
        http.81 * /* -> answer 404
        ");
        let sent: Vec<_> = sent(&world, &ingress()).iter().map(|s| format!("{} {}", s.port.number, s.subset)).collect();
        assert_eq!(sent, ["8080 ", "8080 v1", "8080 v2"]);
        let names: Vec<_> = listeners(&world, &ingress()).iter().map(|listener| listener.name.clone()).collect();
        assert_eq!(names, ["0.0.0.0_80", "0.0.0.0_81"]);
        let other = ProxyInfo { labels: Default::default(), ..ingress() };
        assert!(listeners(&world, &other).is_empty(), "another gateway's pods");
    }

    #[test]
    fn pods_listen_where_their_service_leads_the_port() {
        let mut world = fixture::world();
        fixture::set_policies(&mut world, Policies::read([gateway("shop-gateway", &["*"], 80)], "cluster.local"));
        fixture::change(&mut world, "c1", |view| {
            let host: Arc<str> = "istio-ingressgateway.istio-system.svc.cluster.local".into();
            let mut service = Service::clone(&view.services[fixture::HOST]);
            service.name = "istio-ingressgateway".into();
            service.namespace = "istio-system".into();
            service.host = Arc::clone(&host);
            service.selector = ingress().labels;
            service.ports[0].number = 80;
            Arc::make_mut(&mut view.services).insert(host, Arc::new(service));
        });
        let built = listeners(&world, &ingress());
        assert_eq!(built.iter().map(|listener| &*listener.name).collect::<Vec<_>>(), ["0.0.0.0_8080"]);
        insta::assert_snapshot!(lines(&world), @"http.8080 * /* -> answer 404");
    }
}
