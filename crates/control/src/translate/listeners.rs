//! Listeners and routes for what a workload sends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use stolos_k8s::istio;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::listener::v3 as envoy;
use stolos_xds::envoy::config::route::v3 as route;
use stolos_xds::envoy::extensions::filters::listener::{
    http_inspector::v3::HttpInspector, original_dst::v3::OriginalDst, proxy_protocol::v3::ProxyProtocol,
    tls_inspector::v3::TlsInspector,
};
use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3::{
    Rds, http_connection_manager::RouteSpecifier,
};
use stolos_xds::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher, string_matcher::MatchPattern};
use stolos_xds::{Any, message, pack};

use super::clusters::{self, BLACK_HOLE, PASSTHROUGH};
use super::endpoints::Style;
use super::parts::{ads, duration, http_filter, http_manager, listener_filter, tcp_proxy};
use crate::model::{Health, Port, Protocol, ProxyInfo, Resolution, Service, World};
use crate::policy::{Destination, HttpMatch, HttpRule, MESH, TextMatch};

/// The application protocols by which the HTTP inspector names plain HTTP.
pub(super) const PLAIN_HTTP: [&str; 2] = ["http/1.1", "h2c"];

/// The listeners for what the workload sends, one per service port or address and port; [`virtual_outbound`] hands
/// connections to them.
#[must_use]
pub fn outbound(world: &World, proxy: &ProxyInfo) -> Vec<envoy::Listener> {
    let mut listeners = Vec::new();
    // Of two services that want the same listener, the first in order gets it.
    let mut taken = BTreeSet::new();
    for service in visible(world, proxy) {
        for port in &service.ports {
            if port.protocol == Protocol::Udp {
                continue;
            }
            let mut places = places(world, proxy, service, port);
            places.retain(|address| taken.insert((*address, port.number)));
            if !places.is_empty() {
                listeners.extend(of_port(world, service, port, &places));
            }
        }
    }
    listeners
}

/// The services a proxy may send to.
pub(crate) fn visible<'a>(world: &'a World, proxy: &'a ProxyInfo) -> impl Iterator<Item = &'a Arc<Service>> {
    let visible = |service: &&Arc<Service>| {
        service.is_visible_in(&proxy.namespace) && !matches!(service.resolution, Resolution::Alias(_))
    };
    world.services.in_order.iter().filter(visible)
}

const ANY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

/// The addresses that a service port is listened for at.
fn places(world: &World, proxy: &ProxyInfo, service: &Service, port: &Port) -> Vec<IpAddr> {
    if port.protocol.is_http() {
        return vec![ANY];
    }
    if service.resolution == Resolution::Passthrough {
        // One per pod; not for the proxy's own.
        return world
            .endpoints(&service.host)
            .filter(|endpoint| endpoint.port_name == port.name && endpoint.health != Health::Terminating)
            .filter_map(|endpoint| endpoint.address)
            .filter(|address| Some(*address) != proxy.address)
            .collect();
    }
    let addresses: Vec<_> = service.vips_for(&proxy.cluster).collect();
    if addresses.is_empty() { vec![ANY] } else { addresses }
}

/// The listeners of one service port, at these addresses.
fn of_port(world: &World, service: &Service, port: &Port, places: &[IpAddr]) -> Vec<envoy::Listener> {
    if port.protocol.is_http() {
        let filters = vec![http_filter_for(world, &port.number.to_string())];
        let chain = envoy::FilterChain { filters, ..Default::default() };
        return places
            .iter()
            .map(|at| listener(world, *at, port.number, Chains { first: chain.clone(), rest: None }))
            .collect();
    }
    let cluster = clusters::name(Style::Client, port.number, "", &service.host);
    let bytes =
        envoy::FilterChain { filters: vec![tcp_proxy(&cluster, &cluster, &world.settings)], ..Default::default() };
    let chains = if port.protocol == Protocol::Auto {
        let name = format!("{}:{}", service.host, port.number);
        let http = envoy::FilterChain {
            filter_chain_match: Some(envoy::FilterChainMatch {
                transport_protocol: "raw_buffer".to_owned(),
                application_protocols: PLAIN_HTTP.map(str::to_owned).to_vec(),
                ..Default::default()
            }),
            filters: vec![http_filter_for(world, &name)],
            ..Default::default()
        };
        Chains { first: http, rest: Some(bytes) }
    } else {
        Chains { first: bytes, rest: None }
    };
    places.iter().map(|at| listener(world, *at, port.number, chains.clone())).collect()
}

/// What becomes of a listener's connections.
#[derive(Clone)]
struct Chains {
    /// All of them, or those that are plain HTTP.
    first: envoy::FilterChain,
    /// Everything else, and who says nothing; given where first bytes decide. As the default chain: Envoy does not look
    /// again at a chain without conditions once another one's transport protocol has fitted.
    rest: Option<envoy::FilterChain>,
}

fn http_filter_for(world: &World, routes: &str) -> envoy::Filter {
    let mut manager = http_manager(&format!("outbound_{routes}"), &world.settings);
    let rds = Rds { config_source: Some(ads()), route_config_name: routes.to_owned() };
    manager.route_specifier = Some(RouteSpecifier::Rds(rds));
    http_filter(&manager)
}

fn listener(world: &World, address: IpAddr, port: u16, chains: Chains) -> envoy::Listener {
    let listener = envoy::Listener {
        name: format!("{address}_{port}"),
        address: Some(message::address(address.to_string(), port)),
        bind_to_port: Some(false),
        traffic_direction: core::TrafficDirection::Outbound.into(),
        ..Default::default()
    };
    if chains.rest.is_none() {
        return envoy::Listener { filter_chains: vec![chains.first], ..listener };
    }
    envoy::Listener {
        filter_chains: vec![chains.first],
        default_filter_chain: chains.rest,
        listener_filters: vec![tls_inspector(), http_inspector()],
        listener_filters_timeout: Some(duration(world.settings.detection)),
        continue_on_listener_filters_timeout: true,
        ..listener
    }
}

/// The listener that everything the workload sends comes to first.
#[must_use]
pub fn virtual_outbound(world: &World, proxy: &ProxyInfo) -> envoy::Listener {
    let chain = |name: &str, cluster: &str, matching| envoy::FilterChain {
        name: name.to_owned(),
        filter_chain_match: matching,
        filters: vec![tcp_proxy(cluster, cluster, &world.settings)],
        ..Default::default()
    };
    let own_port =
        envoy::FilterChainMatch { destination_port: Some(istio::OUTBOUND_PORT.into()), ..Default::default() };
    let rest = if world.settings.allow_any { PASSTHROUGH } else { BLACK_HOLE };
    envoy::Listener {
        name: "virtualOutbound".to_owned(),
        address: Some(message::address(proxy.listens_at().to_string(), istio::OUTBOUND_PORT)),
        use_original_dst: Some(true),
        listener_filters: vec![original_destination(proxy)],
        filter_chains: vec![
            // Whoever dials this port itself would go in circles.
            chain("virtualOutbound-blackhole", BLACK_HOLE, Some(own_port)),
            chain("virtualOutbound-catchall-tcp", rest, None),
        ],
        traffic_direction: core::TrafficDirection::Outbound.into(),
        ..Default::default()
    }
}

/// How the address that the client dialled is found out.
pub(super) fn original_destination(proxy: &ProxyInfo) -> envoy::ListenerFilter {
    if proxy.proxy_protocol {
        listener_filter("envoy.filters.listener.proxy_protocol", pack(&ProxyProtocol::default()))
    } else {
        listener_filter("envoy.filters.listener.original_dst", pack(&OriginalDst::default()))
    }
}

pub(super) fn tls_inspector() -> envoy::ListenerFilter {
    listener_filter("envoy.filters.listener.tls_inspector", pack(&TlsInspector::default()))
}

pub(super) fn http_inspector() -> envoy::ListenerFilter {
    listener_filter("envoy.filters.listener.http_inspector", pack(&HttpInspector::default()))
}

/// The route configurations that the outbound listeners name.
#[must_use]
pub fn routes(world: &World, proxy: &ProxyInfo) -> Vec<route::RouteConfiguration> {
    let aliases = aliases(world);
    let mut by_port = BTreeMap::<u16, Vec<(&Service, &Port)>>::new();
    let mut single = Vec::new();
    for service in visible(world, proxy) {
        for port in &service.ports {
            if port.protocol.is_http() {
                by_port.entry(port.number).or_default().push((service, port));
            } else if port.protocol == Protocol::Auto {
                let hosts = vec![virtual_host(proxy, service, port, &mut BTreeSet::new(), world, &aliases)];
                single.push(configuration(&format!("{}:{}", service.host, port.number), hosts, world));
            }
        }
    }
    let shared = by_port.into_iter().map(|(number, services)| {
        let mut domains = BTreeSet::new();
        let hosts = services
            .iter()
            .map(|(service, port)| virtual_host(proxy, service, port, &mut domains, world, &aliases))
            .collect();
        configuration(&number.to_string(), hosts, world)
    });
    shared.chain(single).collect()
}

/// Other names of hosts.
type Aliases<'a> = BTreeMap<&'a str, Vec<&'a str>>;

/// The other names of every host, followed to the service that is meant; loops lead nowhere.
fn aliases(world: &World) -> Aliases<'_> {
    let target = |service: &'_ Service| match &service.resolution {
        Resolution::Alias(of) => world.services.by_host.get_key_value(of.as_str()),
        _ => None,
    };
    let mut aliases = Aliases::new();
    for service in &world.services.in_order {
        let (mut next, mut steps) = (target(service), 0);
        while let Some((host, found)) = next {
            match target(found) {
                Some(_) if steps > 16 => break,
                None if matches!(found.resolution, Resolution::Alias(_)) => break,
                None => {
                    aliases.entry(&**host).or_default().push(&*service.host);
                    break;
                }
                further => (next, steps) = (further, steps + 1),
            }
        }
    }
    aliases
}

fn configuration(name: &str, hosts: Vec<route::VirtualHost>, world: &World) -> route::RouteConfiguration {
    let mut virtual_hosts: Vec<_> = hosts.into_iter().filter(|host| !host.domains.is_empty()).collect();
    virtual_hosts.push(catch_all(world));
    route::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts,
        validate_clusters: Some(false),
        ignore_port_in_host_matching: true,
        max_direct_response_body_size_bytes: Some(1 << 20),
        ..Default::default()
    }
}

/// What happens to hosts that nobody has heard of.
fn catch_all(world: &World) -> route::VirtualHost {
    let (name, action) = if world.settings.allow_any {
        let action = route::RouteAction { timeout: Some(duration(Duration::ZERO)), ..to_cluster(PASSTHROUGH) };
        ("allow_any", route::route::Action::Route(action))
    } else {
        let response = route::DirectResponseAction { status: 502, ..Default::default() };
        ("block_all", route::route::Action::DirectResponse(response))
    };
    route::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route::Route {
            name: name.to_owned(),
            r#match: Some(any_path()),
            action: Some(action),
            ..Default::default()
        }],
        include_request_attempt_count: true,
        ..Default::default()
    }
}

fn virtual_host(
    proxy: &ProxyInfo,
    service: &Service,
    port: &Port,
    taken: &mut BTreeSet<String>,
    world: &World,
    aliases: &Aliases,
) -> route::VirtualHost {
    let routes = match world.policies.virtual_service(&proxy.namespace, &service.host) {
        // No rule about HTTP: as if it were not there.
        Some(rules) if !rules.http.is_empty() => {
            rules.http.iter().flat_map(|rule| ruled(world, rule, MESH, port.number)).collect()
        }
        _ => {
            let cluster = clusters::name(Style::Client, port.number, "", &service.host);
            default_routes("default", any_path(), to_cluster(&cluster))
        }
    };
    // A name that two services could have (an alias, an address used twice) belongs to the first.
    let domains = domains(proxy, service, world, aliases).into_iter().filter(|domain| taken.insert(domain.clone()));
    route::VirtualHost {
        name: format!("{}:{}", service.host, port.number),
        domains: domains.collect(),
        routes,
        include_request_attempt_count: true,
        ..Default::default()
    }
}

/// To where an action leads, with the retries of decision 6. What is safe to repeat is also repeated when the
/// connection broke before the first byte of a response.
fn default_routes(name: &str, matching: route::RouteMatch, action: route::RouteAction) -> Vec<route::Route> {
    let to = |retry_on: &str, headers: Vec<route::HeaderMatcher>| {
        let mut matching = matching.clone();
        matching.headers.extend(headers);
        let policy = Some(retry(retry_on));
        // No limit, as in Istio, unless somebody set one.
        let timeout = action.timeout.or(Some(duration(Duration::ZERO)));
        let action = route::RouteAction { timeout, retry_policy: policy, ..action.clone() };
        one_route(name, matching, route::route::Action::Route(action))
    };
    vec![to(RETRY_ALWAYS, vec![idempotent(true)]), to(RETRY_IDEMPOTENT, Vec::new())]
}

fn one_route(name: &str, matching: route::RouteMatch, action: route::route::Action) -> route::Route {
    route::Route { name: name.to_owned(), r#match: Some(matching), action: Some(action), ..Default::default() }
}

/// The port of a service that a destination means, where requests come to `port`.
pub(super) fn destination_port(world: &World, to: &Destination, port: u16) -> u16 {
    let service = world.services.by_host.get(to.host.as_str());
    let only = service.filter(|service| service.ports.len() == 1).map(|service| service.ports[0].number);
    to.port.or(only).unwrap_or(port)
}

/// The routes of one rule of a VirtualService, for what comes by `gateway` (`mesh`: from workloads) to a port (Istio
/// 1.30, section 13).
pub(super) fn ruled(world: &World, rule: &HttpRule, gateway: &str, port: u16) -> Vec<route::Route> {
    use route::route_action::{ClusterSpecifier, HostRewriteSpecifier};
    let mut action = route::RouteAction { timeout: rule.timeout.map(duration), ..Default::default() };
    let name =
        |to: &Destination| clusters::name(Style::Client, destination_port(world, to, port), &to.subset, &to.host);
    let weighted: Vec<_> = rule.to.iter().filter(|to| to.weight > 0).collect();
    action.cluster_specifier = match (&rule.to[..], &weighted[..]) {
        ([], _) => None,
        ([one], _) => Some(ClusterSpecifier::Cluster(name(one))),
        (_, [one]) => Some(ClusterSpecifier::Cluster(name(one))),
        ([first, ..], []) => Some(ClusterSpecifier::Cluster(name(first))),
        (_, several) => {
            let clusters = several.iter().map(|to| route::weighted_cluster::ClusterWeight {
                name: name(to),
                weight: Some(to.weight),
                ..Default::default()
            });
            Some(ClusterSpecifier::WeightedClusters(route::WeightedCluster {
                clusters: clusters.collect(),
                ..Default::default()
            }))
        }
    };
    action.host_rewrite_specifier = rule.rewrite_host.clone().map(HostRewriteSpecifier::HostRewriteLiteral);
    let label = if rule.name.is_empty() { "default" } else { &rule.name };
    let all = [HttpMatch::default()];
    let matches = if rule.matches.is_empty() { &all[..] } else { &rule.matches };
    let mut routes = Vec::new();
    for wanted in matches.iter().filter(|matching| matching.applies(gateway, port)) {
        let matching = matching(wanted);
        if let Some((status, body)) = &rule.respond {
            let specifier = Some(core::data_source::Specifier::InlineString(body.clone()));
            let body = (!body.is_empty()).then_some(core::DataSource { specifier, ..Default::default() });
            let response = route::DirectResponseAction { status: (*status).into(), body, ..Default::default() };
            routes.push(one_route(label, matching, route::route::Action::DirectResponse(response)));
            continue;
        }
        let mut action = action.clone();
        // The part that a pattern matched has no fixed length: it is not replaced.
        if !matches!(wanted.uri, Some(TextMatch::Regex(_))) {
            action.prefix_rewrite = rule.rewrite_path.clone().unwrap_or_default();
        }
        match &rule.retries {
            None => routes.extend(default_routes(label, matching, action)),
            Some(retries) => {
                let timeout = action.timeout.or(Some(duration(Duration::ZERO)));
                let on = if retries.on.is_empty() { RETRY_ALWAYS.to_owned() } else { retries.on.join(",") };
                let policy = (retries.attempts > 0).then(|| route::RetryPolicy {
                    num_retries: Some(retries.attempts),
                    per_try_timeout: retries.per_try.map(duration),
                    retriable_status_codes: retries.statuses.clone(),
                    ..retry(&on)
                });
                let action = route::RouteAction { timeout, retry_policy: policy, ..action };
                routes.push(one_route(label, matching, route::route::Action::Route(action)));
            }
        }
    }
    routes
}

fn matching(wanted: &HttpMatch) -> route::RouteMatch {
    use route::header_matcher::HeaderMatchSpecifier;
    use route::route_match::PathSpecifier;
    let regex = |regex: &String| RegexMatcher { regex: regex.clone(), ..Default::default() };
    let path = match &wanted.uri {
        None | Some(TextMatch::Present) => PathSpecifier::Prefix("/".to_owned()),
        Some(TextMatch::Exact(path)) => PathSpecifier::Path(path.clone()),
        Some(TextMatch::Prefix(path)) => PathSpecifier::Prefix(path.clone()),
        Some(TextMatch::Regex(path)) => PathSpecifier::SafeRegex(regex(path)),
    };
    let headers = wanted.headers.iter().map(|(name, how)| {
        let pattern = |pattern| {
            HeaderMatchSpecifier::StringMatch(StringMatcher { match_pattern: Some(pattern), ..Default::default() })
        };
        let specifier = match how {
            TextMatch::Present => HeaderMatchSpecifier::PresentMatch(true),
            TextMatch::Exact(text) => pattern(MatchPattern::Exact(text.clone())),
            TextMatch::Prefix(text) => pattern(MatchPattern::Prefix(text.clone())),
            TextMatch::Regex(text) => pattern(MatchPattern::SafeRegex(regex(text))),
        };
        route::HeaderMatcher { name: name.clone(), header_match_specifier: Some(specifier), ..Default::default() }
    });
    route::RouteMatch {
        path_specifier: Some(path),
        case_sensitive: wanted.ignore_case.then_some(false),
        headers: headers.collect(),
        ..Default::default()
    }
}

/// When any request is sent again: it was never received.
const RETRY_ALWAYS: &str = "connect-failure,refused-stream,reset-before-request";
/// When an idempotent one is: also when nothing came back.
const RETRY_IDEMPOTENT: &str = "connect-failure,refused-stream,reset-before-request,reset,unavailable,cancelled";

/// Matches methods that may be repeated; inverted, those that may not.
fn idempotent(invert_match: bool) -> route::HeaderMatcher {
    let methods = RegexMatcher { regex: "GET|HEAD|OPTIONS|TRACE|PUT|DELETE".to_owned(), ..Default::default() };
    let matcher = StringMatcher { match_pattern: Some(MatchPattern::SafeRegex(methods)), ..Default::default() };
    route::HeaderMatcher {
        name: ":method".to_owned(),
        invert_match,
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(matcher)),
        ..Default::default()
    }
}

fn retry(retry_on: &str) -> route::RetryPolicy {
    use route::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate::ConfigType};
    let url = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
    route::RetryPolicy {
        retry_on: retry_on.to_owned(),
        num_retries: Some(2),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(ConfigType::TypedConfig(Any { type_url: url.to_owned(), value: Vec::new() })),
        }],
        host_selection_retry_max_attempts: 5,
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(duration(Duration::from_millis(5))),
            max_interval: Some(duration(Duration::from_millis(50))),
        }),
        ..Default::default()
    }
}

pub(super) fn to_cluster(cluster: &str) -> route::RouteAction {
    let specifier = route::route_action::ClusterSpecifier::Cluster(cluster.to_owned());
    route::RouteAction { cluster_specifier: Some(specifier), ..Default::default() }
}

pub(super) fn any_path() -> route::RouteMatch {
    let prefix = route::route_match::PathSpecifier::Prefix("/".to_owned());
    route::RouteMatch { path_specifier: Some(prefix), ..Default::default() }
}

/// The names a request may call a service by.
fn domains(proxy: &ProxyInfo, service: &Service, world: &World, aliases: &Aliases) -> Vec<String> {
    let (name, namespace, suffix) = (&service.name, &service.namespace, &world.settings.domain);
    let mut domains = vec![service.host.to_string(), format!("{}.", service.host)];
    let mut short = Vec::new();
    if *namespace == proxy.namespace {
        short.push(name.clone());
    }
    short.extend([format!("{name}.{namespace}"), format!("{name}.{namespace}.svc")]);
    if *service.host == format!("{name}.{namespace}.svc.{suffix}") {
        domains.extend(short);
    }
    if service.resolution == Resolution::Passthrough {
        domains = domains.into_iter().flat_map(|domain| [format!("*.{domain}"), domain]).collect();
    } else {
        domains.extend(service.vips_for(&proxy.cluster).map(|address| address.to_string()));
    }
    domains.extend(aliases.get(&*service.host).into_iter().flatten().map(ToString::to_string));
    domains
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Object, Policies};
    use crate::translate::fixture;
    use serde_json::json;

    /// The routes to the service, one line each.
    fn lines(world: &World) -> Vec<String> {
        let all = routes(world, &fixture::proxy("c1"));
        let host = &all.iter().find(|routes| routes.name == "8080").unwrap().virtual_hosts[0];
        let line = |route: &route::Route| {
            let matching = route.r#match.as_ref().unwrap();
            let path = match matching.path_specifier.as_ref().unwrap() {
                route::route_match::PathSpecifier::Prefix(path) => format!("{path}*"),
                route::route_match::PathSpecifier::Path(path) => path.clone(),
                other => format!("{other:?}"),
            };
            let headers: Vec<_> = matching
                .headers
                .iter()
                .map(|header| format!("{}{}", if header.invert_match { "!" } else { "" }, header.name))
                .collect();
            let action = match route.action.as_ref().unwrap() {
                route::route::Action::Route(action) => {
                    let to = match action.cluster_specifier.as_ref().unwrap() {
                        route::route_action::ClusterSpecifier::Cluster(name) => name.clone(),
                        route::route_action::ClusterSpecifier::WeightedClusters(several) => {
                            let one = |c: &route::weighted_cluster::ClusterWeight| {
                                format!("{}%{}", c.weight.unwrap(), c.name)
                            };
                            several.clusters.iter().map(one).collect::<Vec<_>>().join(" + ")
                        }
                        other => format!("{other:?}"),
                    };
                    let retry = action.retry_policy.as_ref();
                    let retry =
                        retry.map_or("never".to_owned(), |r| format!("{}x {}", r.num_retries.unwrap(), r.retry_on));
                    let seconds = action.timeout.as_ref().unwrap().seconds;
                    format!("{to} within {seconds} s, again {retry}{}", action.prefix_rewrite)
                }
                route::route::Action::DirectResponse(response) => format!("answer {}", response.status),
                other => format!("{other:?}"),
            };
            format!("{} {path} [{}] -> {action}", route.name, headers.join(","))
        };
        host.routes.iter().map(line).collect()
    }

    #[test]
    fn requests_go_where_rules_say() {
        let mut world = fixture::world();
        insta::assert_snapshot!(lines(&world).join("\n"), @r"
        default /* [!:method] -> outbound|8080||web.shop.svc.cluster.local within 0 s, again 2x connect-failure,refused-stream,reset-before-request
        default /* [] -> outbound|8080||web.shop.svc.cluster.local within 0 s, again 2x connect-failure,refused-stream,reset-before-request,reset,unavailable,cancelled
        ");
        let spec = json!({"hosts": ["web"], "http": [
            {"name": "health", "match": [{"uri": {"exact": "/health"}}], "directResponse": {"status": 200}},
            {"name": "canary", "match": [{"headers": {"x-canary": {"exact": "yes"}}, "uri": {"prefix": "/api"}}, {"port": 9999}],
                "route": [{"destination": {"host": "web", "subset": "v2"}}], "timeout": "3s", "retries": {"attempts": 0}},
            {"route": [{"destination": {"host": "web", "subset": "v1"}, "weight": 90},
                {"destination": {"host": "web.shop.svc.cluster.local", "subset": "v2"}, "weight": 10},
                {"destination": {"host": "other.ns.svc.cluster.local", "port": {"number": 7}}, "weight": 0}],
                "retries": {"attempts": 5, "retryOn": "5xx,429"}}]});
        let object = Object {
            kind: "VirtualService".into(),
            namespace: fixture::NAMESPACE.into(),
            name: "web".into(),
            uid: String::new(),
            generation: 1,
            created: 1,
            spec,
        };
        let policies = Policies::read([object], "cluster.local");
        assert_eq!(policies.findings, []);
        fixture::set_policies(&mut world, policies);
        insta::assert_snapshot!(lines(&world).join("\n"), @r"
        health /health [] -> answer 200
        canary /api* [x-canary] -> outbound|8080|v2|web.shop.svc.cluster.local within 3 s, again never
        default /* [] -> 90%outbound|8080|v1|web.shop.svc.cluster.local + 10%outbound|8080|v2|web.shop.svc.cluster.local within 0 s, again 5x 5xx,retriable-status-codes
        ");
    }

    /// What a chain does, and with what.
    fn kind(chain: &envoy::FilterChain) -> String {
        let matching = chain.filter_chain_match.as_ref().map_or(String::new(), |matching| {
            format!("{} [{}] ", matching.transport_protocol, matching.application_protocols.join(","))
        });
        let name = chain.filters[0].name.trim_start_matches("envoy.filters.network.");
        format!("{matching}{name}")
    }

    #[test]
    fn a_ports_protocol_decides_listener_cluster_and_application_protocols() {
        let mut lines = Vec::new();
        for protocol in [Protocol::Http, Protocol::Http2, Protocol::Tcp, Protocol::Tls, Protocol::Auto] {
            let mut world = fixture::world();
            for cluster in ["c1", "c2", "c3"] {
                fixture::change_service(&mut world, cluster, |service| service.ports[0].protocol = protocol);
            }
            let proxy = fixture::proxy("c1");
            let all = outbound(&world, &proxy);
            assert_eq!(all.len(), 1);
            let chains: Vec<_> = all[0].filter_chains.iter().map(kind).collect();
            let rest = all[0].default_filter_chain.as_ref().map(|chain| format!(", else {}", kind(chain)));
            let looks: Vec<_> =
                all[0].listener_filters.iter().map(|f| f.name.trim_start_matches("envoy.filters.listener.")).collect();
            let wait = all[0].listener_filters_timeout.as_ref().map(|wait| format!(" for {} s", wait.seconds));
            let service = &world.services.in_order[0];
            let cluster =
                clusters::outbound(&world, &proxy, service, &service.ports[0], "", Style::Client, None).unwrap();
            let speaks = speaks(&cluster);
            let alpn = alpn(&cluster);
            lines.push(format!(
                "{protocol:?}: {} -> {}{}; looks at {looks:?}{}; hosts speak {speaks}; ALPN {alpn}",
                all[0].name,
                chains.join(", "),
                rest.unwrap_or_default(),
                wait.unwrap_or_default(),
            ));
        }
        insta::assert_snapshot!(lines.join("\n"), @r#"
        Http: 0.0.0.0_8080 -> http_connection_manager; looks at []; hosts speak HTTP/1.1; ALPN istio-peer-exchange,istio
        Http2: 0.0.0.0_8080 -> http_connection_manager; looks at []; hosts speak HTTP/2; ALPN istio-peer-exchange,istio,h2
        Tcp: 10.101.0.1_8080 -> tcp_proxy; looks at []; hosts speak -; ALPN istio-peer-exchange,istio
        Tls: 10.101.0.1_8080 -> tcp_proxy; looks at []; hosts speak -; ALPN istio-peer-exchange,istio
        Auto: 10.101.0.1_8080 -> raw_buffer [http/1.1,h2c] http_connection_manager, else tcp_proxy; looks at ["tls_inspector", "http_inspector"] for 5 s; hosts speak what the client speaks; ALPN istio-peer-exchange,istio
        "#);
    }

    fn speaks(cluster: &stolos_xds::envoy::config::cluster::v3::Cluster) -> &'static str {
        use stolos_xds::envoy::extensions::upstreams::http::v3::http_protocol_options::{
            UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
        };
        let options = cluster.typed_extension_protocol_options.values().next();
        let options = options.map(|any| {
            let options: stolos_xds::envoy::extensions::upstreams::http::v3::HttpProtocolOptions =
                stolos_xds::unpack(any).unwrap();
            options.upstream_protocol_options.unwrap()
        });
        match options {
            None => "-",
            Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => "what the client speaks",
            Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => "HTTP/2",
                Some(ProtocolConfig::HttpProtocolOptions(_)) => "HTTP/1.1",
                _ => "?",
            },
            Some(_) => "?",
        }
    }

    fn alpn(cluster: &stolos_xds::envoy::config::cluster::v3::Cluster) -> String {
        use stolos_xds::envoy::extensions::transport_sockets::tls::v3::UpstreamTlsContext;
        let socket = cluster.transport_socket_matches[0].transport_socket.as_ref().unwrap();
        let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else { panic!() };
        let context: UpstreamTlsContext = stolos_xds::unpack(any).unwrap();
        context.common_tls_context.unwrap().alpn_protocols.join(",")
    }
}
