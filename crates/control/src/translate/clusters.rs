//! Clusters: whom a proxy can send to, and how.

use std::time::Duration;

use stolos_k8s::istio::{self, Direction};
use stolos_xds::envoy::config::cluster::v3 as envoy;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::extensions::upstreams::http::v3 as http;
use stolos_xds::envoy::r#type::v3::Percent;
use stolos_xds::message::{list, object, string, structure};
use stolos_xds::pack;

use super::endpoints::Style;
use super::parts::{ads, duration};
use super::tls;
use crate::model::{Health, Port, Protocol, ProxyInfo, ProxyKind, Resolution, Service, World};
use crate::policy::{Balance, DestinationRule, Mtls, Outlier, PortPolicy, TlsMode};

/// How long a connection may take to be made, unless a DestinationRule says otherwise (decision 6; Istio: 10 s).
pub const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Failures in a row after which an endpoint is left out (decision 6; Istio: never).
const EJECT_AFTER: u32 = 3;

/// Where connections to unknown destinations end.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// Where unknown destinations are let through.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// Where undeclared ports of the workload are reached.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// The name of a cluster, or of the server name for it.
#[must_use]
pub fn name(style: Style, port: u16, subset: &str, host: &str) -> String {
    match style {
        Style::Client => istio::cluster_name(Direction::Outbound, port, subset, host),
        Style::Passthrough => istio::sni(port, subset, host),
    }
}

/// The cluster of a service port, or of a subset of it.
#[must_use]
pub fn outbound(
    world: &World,
    proxy: &ProxyInfo,
    service: &Service,
    port: &Port,
    subset: &str,
    style: Style,
    rule: Option<&DestinationRule>,
) -> Option<envoy::Cluster> {
    use envoy::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
    if port.protocol == Protocol::Udp || matches!(service.resolution, Resolution::Alias(_)) {
        return None;
    }
    let policy = rule.map(|rule| rule.effective(port.number, subset)).unwrap_or_default();
    let name = name(style, port.number, subset, &service.host);
    let original = service.resolution == Resolution::Passthrough && proxy.kind == ProxyKind::Sidecar;
    let mut cluster = envoy::Cluster {
        connect_timeout: Some(duration(policy.connect_timeout.unwrap_or(CONNECT_TIMEOUT))),
        circuit_breakers: Some(limits(&policy)),
        outlier_detection: Some(outlier(policy.outlier.as_ref())),
        metadata: Some(metadata(service, port, subset)),
        ..named(&name)
    };
    if original {
        cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into()));
        cluster.lb_policy = LbPolicy::ClusterProvided.into();
        // There is nothing to choose from.
        cluster.outlier_detection = None;
    } else {
        cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()));
        cluster.eds_cluster_config =
            Some(envoy::cluster::EdsClusterConfig { eds_config: Some(ads()), service_name: name.clone() });
        cluster.lb_policy = match policy.balance.unwrap_or(Balance::LeastRequest) {
            Balance::LeastRequest => LbPolicy::LeastRequest,
            Balance::Random => LbPolicy::Random,
            Balance::RoundRobin => LbPolicy::RoundRobin,
        }
        .into();
        cluster.common_lb_config = Some(balancing(world, &policy));
    }
    if style == Style::Client {
        cluster.typed_extension_protocol_options = protocol(port.protocol, policy.limits.per_connection);
        secure(&mut cluster, world, proxy, service, port, subset, &policy, original);
    }
    Some(cluster)
}

/// TLS towards the service (Istio 1.30, section 11).
#[allow(clippy::too_many_arguments)]
fn secure(
    cluster: &mut envoy::Cluster,
    world: &World,
    proxy: &ProxyInfo,
    service: &Service,
    port: &Port,
    subset: &str,
    policy: &PortPolicy,
    original: bool,
) {
    let mutual = |sni: Option<&String>, names: &[String]| {
        let sni = sni.cloned().unwrap_or_else(|| istio::sni(port.number, subset, &service.host));
        let identities = if names.is_empty() { identities(world, service) } else { names.iter().cloned().collect() };
        tls::upstream(&sni, &identities, port.protocol == Protocol::Http2)
    };
    match &policy.tls {
        Some(own) => match own.mode {
            TlsMode::Disable => {}
            TlsMode::IstioMutual => cluster.transport_socket = Some(mutual(own.sni.as_ref(), &own.names)),
            // Nothing goes out in a way that was not asked for.
            TlsMode::Unsupported => {
                use envoy::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
                cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
                cluster.lb_policy = LbPolicy::RoundRobin.into();
                cluster.eds_cluster_config = None;
            }
        },
        None => {
            let root = &world.settings.root_namespace;
            let off = !world.settings.auto_mtls
                || world.policies.mtls_of_namespace(root, &service.namespace) == Mtls::Disable
                || (proxy.account.is_empty() && proxy.kind == ProxyKind::Router);
            if off {
                return;
            }
            if original {
                // Wherever the client dials: mTLS only when everybody there takes it.
                let mut endpoints = world
                    .endpoints(&service.host)
                    .filter(|e| e.health != Health::Terminating && e.port_name == port.name)
                    .peekable();
                if endpoints.peek().is_some() && endpoints.all(|endpoint| endpoint.tls) {
                    cluster.transport_socket = Some(mutual(None, &[]));
                }
            } else {
                cluster.transport_socket_matches = tls::automatic(mutual(None, &[]));
            }
        }
    }
}

/// Every identity behind a service, in every cluster and under every name of the trust domain.
fn identities(world: &World, service: &Service) -> std::collections::BTreeSet<String> {
    let own = format!("spiffe://{}/", world.settings.trust_domain);
    let mut all = service.accounts.clone();
    for account in &service.accounts {
        if let Some(rest) = account.strip_prefix(&own) {
            let aliases = world.settings.trust_domain_aliases.iter();
            all.extend(aliases.map(|alias| format!("spiffe://{alias}/{rest}")));
        }
    }
    all
}

/// The cluster of a port of the workload beside the proxy.
#[must_use]
pub fn inbound(proxy: &ProxyInfo, port: u16, protocol: Protocol, services: &[&Service]) -> envoy::Cluster {
    let metadata = structure([("services", list(services.iter().map(|service| service_value(service))))]);
    let metadata = core::Metadata { filter_metadata: [("istio".to_owned(), metadata)].into(), ..Default::default() };
    envoy::Cluster {
        upstream_bind_config: bind(proxy),
        typed_extension_protocol_options: self::protocol(protocol, None),
        metadata: Some(metadata),
        ..original_destination(&istio::cluster_name(Direction::Inbound, port, "", ""))
    }
}

/// The clusters that every sidecar has.
#[must_use]
pub fn fixed(proxy: &ProxyInfo) -> Vec<envoy::Cluster> {
    let auto = || protocol(Protocol::Auto, None);
    vec![
        black_hole(),
        envoy::Cluster { typed_extension_protocol_options: auto(), ..original_destination(PASSTHROUGH) },
        envoy::Cluster {
            typed_extension_protocol_options: auto(),
            upstream_bind_config: bind(proxy),
            ..original_destination(INBOUND_PASSTHROUGH)
        },
    ]
}

/// A cluster without endpoints.
#[must_use]
pub fn black_hole() -> envoy::Cluster {
    use envoy::cluster::{ClusterDiscoveryType, DiscoveryType};
    envoy::Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        connect_timeout: Some(duration(CONNECT_TIMEOUT)),
        ..named(BLACK_HOLE)
    }
}

fn original_destination(name: &str) -> envoy::Cluster {
    use envoy::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
    envoy::Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
        lb_policy: LbPolicy::ClusterProvided.into(),
        // Connections to the workload itself and to the outside are not the mesh's to give up early.
        connect_timeout: Some(duration(Duration::from_secs(10))),
        circuit_breakers: Some(limits(&PortPolicy::default())),
        ..named(name)
    }
}

fn named(name: &str) -> envoy::Cluster {
    envoy::Cluster { name: name.to_owned(), ..Default::default() }
}

/// Where connections to the workload come from: where packets are redirected, an address that is exempt from it.
fn bind(proxy: &ProxyInfo) -> Option<core::BindConfig> {
    let address = match proxy.bind.or(proxy.address) {
        Some(address) if proxy.proxy_protocol => address.to_string(),
        Some(std::net::IpAddr::V6(_)) => "::6".to_owned(),
        _ => "127.0.0.6".to_owned(),
    };
    let port = core::socket_address::PortSpecifier::PortValue(0);
    let source = core::SocketAddress { address, port_specifier: Some(port), ..Default::default() };
    Some(core::BindConfig { source_address: Some(source), ..Default::default() })
}

fn metadata(service: &Service, port: &Port, subset: &str) -> core::Metadata {
    use stolos_xds::prost_types::{Value, value::Kind};
    let number = Value { kind: Some(Kind::NumberValue(port.number.into())) };
    let mut fields = vec![("services", list([service_value(service)])), ("default_original_port", number)];
    if !subset.is_empty() {
        fields.push(("subset", string(subset)));
    }
    core::Metadata { filter_metadata: [("istio".to_owned(), structure(fields))].into(), ..Default::default() }
}

fn service_value(service: &Service) -> stolos_xds::prost_types::Value {
    object([
        ("host", string(&*service.host)),
        ("name", string(&service.name)),
        ("namespace", string(&service.namespace)),
    ])
}

fn limits(policy: &PortPolicy) -> envoy::CircuitBreakers {
    let limits = &policy.limits;
    envoy::CircuitBreakers {
        thresholds: vec![envoy::circuit_breakers::Thresholds {
            max_connections: Some(limits.connections.unwrap_or(u32::MAX)),
            max_pending_requests: Some(limits.pending.unwrap_or(u32::MAX)),
            max_requests: Some(limits.requests.unwrap_or(u32::MAX)),
            max_retries: Some(limits.retries.unwrap_or(u32::MAX)),
            track_remaining: true,
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Without a DestinationRule's own: an endpoint that fails [`EJECT_AFTER`] times in a row is left out for a while, as
/// long as another one is left (decision 6). Answers of the application's own, such as 500, do not count.
fn outlier(own: Option<&Outlier>) -> envoy::OutlierDetection {
    let enforcing = |value: Option<u32>| Some(if value.unwrap_or_default() > 0 { 100 } else { 0 });
    let Some(own) = own else {
        return envoy::OutlierDetection {
            consecutive_gateway_failure: Some(EJECT_AFTER),
            enforcing_consecutive_gateway_failure: Some(100),
            enforcing_consecutive_5xx: Some(0),
            enforcing_success_rate: Some(0),
            interval: Some(duration(Duration::from_secs(1))),
            base_ejection_time: Some(duration(Duration::from_secs(5))),
            max_ejection_time: Some(duration(Duration::from_secs(30))),
            max_ejection_percent: Some(99),
            ..Default::default()
        };
    };
    // Istio's default when only the section is there: Envoy's five.
    let errors = own.consecutive_5xx.or(if own.consecutive_gateway.is_none() { Some(5) } else { None });
    envoy::OutlierDetection {
        consecutive_5xx: errors.filter(|count| *count > 0),
        enforcing_consecutive_5xx: enforcing(errors),
        consecutive_gateway_failure: own.consecutive_gateway.filter(|count| *count > 0),
        enforcing_consecutive_gateway_failure: enforcing(own.consecutive_gateway),
        split_external_local_origin_errors: own.split,
        consecutive_local_origin_failure: own.consecutive_local.filter(|count| *count > 0),
        enforcing_consecutive_local_origin_failure: own.split.then(|| enforcing(own.consecutive_local)).flatten(),
        enforcing_success_rate: Some(0),
        interval: own.interval.map(duration),
        base_ejection_time: own.base.map(duration),
        max_ejection_percent: own.max_percent,
        ..Default::default()
    }
}

fn balancing(world: &World, policy: &PortPolicy) -> envoy::cluster::CommonLbConfig {
    use envoy::cluster::common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig};
    let threshold = policy.outlier.as_ref().map_or(0, |outlier| outlier.min_health.unwrap_or_default());
    let setting = policy.locality.as_ref().or(world.settings.locality.as_ref()).filter(|setting| !setting.disabled);
    let weighted = setting.is_some_and(|setting| {
        !setting.distribute.is_empty() || !setting.failover.is_empty() || !setting.failover_priority.is_empty()
    });
    envoy::cluster::CommonLbConfig {
        healthy_panic_threshold: Some(Percent { value: threshold.into() }),
        locality_config_specifier: weighted
            .then(|| LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig::default())),
        ..Default::default()
    }
}

fn protocol(protocol: Protocol, per_connection: Option<u32>) -> std::collections::BTreeMap<String, stolos_xds::Any> {
    use http::http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig, explicit_http_config::ProtocolConfig,
    };
    let options = match protocol {
        Protocol::Http2 => UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::Http2ProtocolOptions(Default::default())),
        }),
        Protocol::Http => UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(ProtocolConfig::HttpProtocolOptions(Default::default())),
        }),
        Protocol::Auto => UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
            http_protocol_options: Some(Default::default()),
            http2_protocol_options: Some(Default::default()),
            ..Default::default()
        }),
        Protocol::Tcp | Protocol::Tls | Protocol::Udp => return Default::default(),
    };
    // 0 is no limit, as in a DestinationRule.
    let common = per_connection
        .filter(|most| *most > 0)
        .map(|most| core::HttpProtocolOptions { max_requests_per_connection: Some(most), ..Default::default() });
    let options = http::HttpProtocolOptions {
        upstream_protocol_options: Some(options),
        common_http_protocol_options: common,
        ..Default::default()
    };
    [("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(), pack(&options))].into()
}
