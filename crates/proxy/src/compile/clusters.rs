//! Clusters and their endpoints: whom to reach, and how.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use prost_types::value::Kind as ValueKind;
use stolos_xds::envoy::config::cluster::v3 as cluster;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::endpoint::v3 as endpoint;
use stolos_xds::envoy::extensions::upstreams::http::v3 as upstream_http;
use stolos_xds::message;

use super::tls::transport;
use super::{Refused, Result, duration, open, refuse};
use crate::balance::{Endpoints, Listed, Policy};
use crate::config::{Cluster, Host, Kind, Protocol, Service, Transport};
use crate::{metrics, outlier};

/// Compiles a cluster. Its endpoints are set when they are in the message; those of EDS and DNS come later.
pub(crate) fn cluster(message: &cluster::Cluster) -> Result<Cluster> {
    use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy};
    let kind = match &message.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(kind)) => DiscoveryType::try_from(*kind).ok(),
        Some(ClusterDiscoveryType::ClusterType(_)) => return refuse("custom cluster types are not supported"),
        None => Some(DiscoveryType::Static),
    };
    let kind = match kind {
        Some(DiscoveryType::Static) => Kind::Static,
        Some(DiscoveryType::Eds) => {
            let name = message.eds_cluster_config.as_ref().map(|eds| eds.service_name.clone()).unwrap_or_default();
            Kind::Eds(if name.is_empty() { message.name.clone() } else { name })
        }
        Some(DiscoveryType::OriginalDst) => Kind::OriginalDst,
        Some(DiscoveryType::StrictDns | DiscoveryType::LogicalDns) => {
            Kind::Dns(names(message.load_assignment.as_ref())?)
        }
        None => return refuse("unknown discovery type"),
    };
    let policy = match LbPolicy::try_from(message.lb_policy) {
        Ok(LbPolicy::RoundRobin) => Policy::RoundRobin,
        Ok(LbPolicy::LeastRequest) => Policy::LeastRequest,
        Ok(LbPolicy::Random) => Policy::Random,
        Ok(LbPolicy::ClusterProvided) if kind == Kind::OriginalDst => Policy::RoundRobin,
        other => return refuse(format!("load balancing policy {other:?} is not supported")),
    };
    if message.lb_subset_config.is_some()
        || message.load_balancing_policy.is_some()
        || message.transport_socket_matcher.is_some()
    {
        return refuse("lb_subset_config, load_balancing_policy and transport_socket_matcher are not supported");
    }
    // `upstream_bind_config` is not looked at: every connection leaves from the workload's own address.
    if message.upstream_config.is_some() {
        return refuse("upstream_config is not supported");
    }
    if !message.health_checks.is_empty() || !message.filters.is_empty() {
        return refuse("active health checks and upstream filters are not supported");
    }
    let within = |place: &'static str| move |e: Refused| e.within(place);
    let transport_matches = message.transport_socket_matches.iter().map(|one| {
        let wanted = one.r#match.as_ref().map(strings).unwrap_or_default();
        Ok((wanted, transport(one.transport_socket.as_ref(), &message.name)?))
    });
    let lb = message.common_lb_config.clone().unwrap_or_default();
    let by_locality = matches!(
        lb.locality_config_specifier,
        Some(cluster::cluster::common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(_))
    );
    // A percentage between 0 and 100 fits.
    let panic_percent = lb.healthy_panic_threshold.map_or(50, |percent| percent.value.clamp(0.0, 100.0) as u32);
    let most = message
        .circuit_breakers
        .as_ref()
        .and_then(|breakers| breakers.thresholds.iter().find(|t| t.priority == 0).and_then(|t| t.max_connections));
    let out = Cluster {
        name: message.name.clone(),
        kind,
        connect_timeout: duration(message.connect_timeout.as_ref())?.unwrap_or(Duration::from_secs(5)),
        policy,
        panic_percent,
        by_locality,
        outlier: message.outlier_detection.as_ref().map(outlier).transpose()?,
        protocol: protocol(message)?,
        transport_matches: transport_matches.collect::<Result<_>>().map_err(within("transport_socket_matches"))?,
        transport: transport(message.transport_socket.as_ref(), &message.name).map_err(within("transport_socket"))?,
        // Envoy's default is 1024 connections.
        max_connections: most.unwrap_or(1024),
        requests_per_connection: requests_per_connection(message)?,
        service: service(message),
        endpoints: ArcSwapOption::empty(),
        arrived: tokio::sync::Notify::new(),
        ejected_until: Default::default(),
        connections: Default::default(),
        resolved_at: Default::default(),
        original: Default::default(),
    };
    if out.kind == Kind::Static {
        let empty = endpoint::ClusterLoadAssignment::default();
        let listed = endpoints(message.load_assignment.as_ref().unwrap_or(&empty), &out, &HashMap::new())?;
        out.endpoints.store(Some(Arc::new(listed)));
    }
    Ok(out)
}

fn outlier(message: &cluster::OutlierDetection) -> Result<outlier::Settings> {
    let when = |count: Option<u32>, default: u32, enforced: Option<u32>, enforced_default: u32| {
        if enforced.unwrap_or(enforced_default) == 0 { 0 } else { count.unwrap_or(default) }
    };
    let base = duration(message.base_ejection_time.as_ref())?.unwrap_or(Duration::from_secs(30));
    Ok(outlier::Settings {
        consecutive_5xx: when(message.consecutive_5xx, 5, message.enforcing_consecutive_5xx, 100),
        consecutive_gateway: when(
            message.consecutive_gateway_failure,
            5,
            message.enforcing_consecutive_gateway_failure,
            0,
        ),
        base,
        most: duration(message.max_ejection_time.as_ref())?.unwrap_or(Duration::from_secs(300).max(base)),
        max_percent: message.max_ejection_percent.unwrap_or(10).min(100),
        always_one: message.always_eject_one_host.unwrap_or(false),
    })
}

fn requests_per_connection(message: &cluster::Cluster) -> Result<Option<u32>> {
    let named = message.typed_extension_protocol_options.get(HTTP_OPTIONS);
    let Some(any) = named else { return Ok(None) };
    let options: upstream_http::HttpProtocolOptions = open(any)?;
    let most = options.common_http_protocol_options.and_then(|common| common.max_requests_per_connection);
    Ok(most.filter(|most| *most > 0))
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn protocol(message: &cluster::Cluster) -> Result<Protocol> {
    use upstream_http::http_protocol_options::UpstreamProtocolOptions;
    use upstream_http::http_protocol_options::explicit_http_config::ProtocolConfig;
    let old = message.http2_protocol_options.is_some();
    let Some(any) = message.typed_extension_protocol_options.get(HTTP_OPTIONS) else {
        return Ok(if old { Protocol::Http2 } else { Protocol::Http1 });
    };
    let options: upstream_http::HttpProtocolOptions = open(any)?;
    Ok(match options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(_)) => Protocol::Http2,
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => return refuse("HTTP/3 is not supported"),
            _ => Protocol::Http1,
        },
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => Protocol::Same,
        _ => Protocol::Http1,
    })
}

fn service(message: &cluster::Cluster) -> Service {
    let istio = message.metadata.as_ref().and_then(|metadata| metadata.filter_metadata.get("istio"));
    let first = istio.and_then(|istio| message::at(istio, &["services"])).and_then(|services| match &services.kind {
        Some(ValueKind::ListValue(list)) => list.values.first()?.kind.as_ref(),
        _ => None,
    });
    let Some(ValueKind::StructValue(first)) = first else {
        // `outbound|5000||helloworld.sample.svc.cluster.local` says most of it.
        let host = message.name.rsplit('|').next().unwrap_or_default();
        let mut parts = host.split('.');
        let (name, namespace) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let known = message.name.contains('|') && !host.is_empty();
        return if known {
            Service { host: host.into(), name: name.into(), namespace: namespace.into() }
        } else {
            Service { host: message.name.as_str().into(), name: message.name.as_str().into(), ..Service::default() }
        };
    };
    let text = |key| message::text_at(first, &[key]).unwrap_or_default().into();
    Service { host: text("host"), name: text("name"), namespace: text("namespace") }
}

fn names(assignment: Option<&endpoint::ClusterLoadAssignment>) -> Result<Vec<(String, u16, u32)>> {
    let mut names = Vec::new();
    for locality in assignment.iter().flat_map(|assignment| &assignment.endpoints) {
        for one in &locality.lb_endpoints {
            let Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(at)) = &one.host_identifier else {
                return refuse("an endpoint is not given by address");
            };
            let (host, port) = at
                .address
                .as_ref()
                .and_then(message::socket)
                .ok_or_else(|| Refused::new("an endpoint has no address with a port"))?;
            names.push((host.to_owned(), port, one.load_balancing_weight.unwrap_or(1)));
        }
    }
    Ok(names)
}

/// Compiles endpoints for `cluster`. Hosts in `known` are taken over, with their connections and records.
pub(crate) fn endpoints(
    message: &endpoint::ClusterLoadAssignment,
    cluster: &Cluster,
    known: &HashMap<SocketAddr, Arc<Host>>,
) -> Result<Endpoints<Host>> {
    let mut listed = Vec::new();
    for locality in &message.endpoints {
        let sum: u64 = locality.lb_endpoints.iter().map(|one| u64::from(one.load_balancing_weight.unwrap_or(1))).sum();
        for one in &locality.lb_endpoints {
            let Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(at)) = &one.host_identifier else {
                return refuse("an endpoint is not given by address");
            };
            let (host, port) = at
                .address
                .as_ref()
                .and_then(message::socket)
                .ok_or_else(|| Refused::new("an endpoint has no address with a port"))?;
            let ip: IpAddr = host.parse().map_err(|_| Refused::new(format!("`{host}` is not an IP address")))?;
            let own = one.load_balancing_weight.unwrap_or(1).max(1);
            let weight = match (cluster.by_locality, locality.load_balancing_weight) {
                (true, Some(group)) => {
                    // The group's weight, divided by the share of this endpoint in it; scaled to keep precision.
                    let share = u64::from(group) * 1000 * u64::from(own) / sum.max(1);
                    u32::try_from(share.max(1)).unwrap_or(u32::MAX)
                }
                // A group without a weight gets nothing where groups are weighed.
                (true, None) => continue,
                (false, _) => own,
            };
            use core::HealthStatus::{Draining, Timeout, Unhealthy};
            let status = core::HealthStatus::try_from(one.health_status).unwrap_or(core::HealthStatus::Unknown);
            let host = host_of(SocketAddr::new(ip, port), one.metadata.as_ref(), cluster, known);
            listed.push(Listed {
                host,
                weight,
                healthy: !matches!(status, Unhealthy | Draining | Timeout),
                priority: locality.priority,
            });
        }
    }
    Ok(Endpoints::new(listed, cluster.panic_percent))
}

/// Whether endpoints can be used, whatever the cluster.
pub(crate) fn check_endpoints(message: &endpoint::ClusterLoadAssignment) -> Result<()> {
    for (host, _, _) in names(Some(message))? {
        host.parse::<IpAddr>().map_err(|_| Refused::new(format!("`{host}` is not an IP address")))?;
    }
    Ok(())
}

fn host_of(
    address: SocketAddr,
    metadata: Option<&core::Metadata>,
    cluster: &Cluster,
    known: &HashMap<SocketAddr, Arc<Host>>,
) -> Arc<Host> {
    let of = |key: &str| metadata.and_then(|metadata| metadata.filter_metadata.get(key));
    let (transport, transport_match) =
        cluster.transport_for(&of("envoy.transport_socket_match").map(strings).unwrap_or_default());
    let istio = of("istio").and_then(|istio| message::text_at(istio, &["workload"]));
    let workload = istio.map(metrics::Workload::of_endpoint).unwrap_or_default();
    let old = known.get(&address);
    let same_transport = |old: &Host| match (&old.transport, &transport) {
        (Transport::Plain, Transport::Plain) => true,
        (Transport::Tls(a), Transport::Tls(b)) => Arc::ptr_eq(a, b),
        _ => false,
    };
    if let Some(old) = old
        && old.transport_match == transport_match
        && old.workload == workload
        && same_transport(old)
    {
        return Arc::clone(old);
    }
    let health = old.map(|old| Arc::clone(&old.health)).unwrap_or_default();
    Arc::new(Host { transport_match, workload, health, ..Host::new(address, transport) })
}

/// The texts (and booleans, as text) of a structure.
fn strings(structure: &prost_types::Struct) -> BTreeMap<String, String> {
    let text = |(key, value): (&String, &prost_types::Value)| match &value.kind {
        Some(ValueKind::StringValue(text)) => Some((key.clone(), text.clone())),
        Some(ValueKind::BoolValue(yes)) => Some((key.clone(), yes.to_string())),
        _ => None,
    };
    structure.fields.iter().filter_map(text).collect()
}
