//! Listeners: which connections there are, and what becomes of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use stolos_xds::envoy::config::accesslog::v3 as accesslog;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::listener::v3 as listener;
use stolos_xds::envoy::extensions::access_loggers::file::v3 as file_log;
use stolos_xds::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use stolos_xds::envoy::extensions::filters::listener::proxy_protocol::v3 as proxy_protocol;
use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use stolos_xds::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use stolos_xds::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
use stolos_xds::message;

use super::tls::downstream;
use super::{Refused, Result, duration, open, rbac, refuse, routes, type_of};
use crate::config::{Action, Chain, ForwardCert, Http, Inspect, Listener, Origin, Routes, Side, Tcp};
use crate::log;
use crate::matching::{Criteria, Range, Table};

/// How many requests of a client's HTTP/2 connection are served at once, unless fewer are asked for; more wait on the
/// client's side.
const MOST_STREAMS: u32 = 1024;
/// The most that the headers of a request may take, in KiB: Envoy's default.
const LARGEST_HEAD_KB: u32 = 60;

/// Gives the route table of a name; the same one every time.
pub(crate) type RoutesByName<'a> = &'a mut dyn FnMut(&str) -> Arc<Routes>;

/// A listener, the names of the route configurations it needs, and what it closes for want of understanding.
pub(crate) struct Listening {
    pub(crate) listener: Listener,
    pub(crate) routes: BTreeSet<String>,
    pub(crate) closed: Vec<String>,
}

/// Compiles a listener.
pub(crate) fn listener(message: &listener::Listener, routes: RoutesByName<'_>) -> Result<Listening> {
    let (host, port) = message
        .address
        .as_ref()
        .and_then(message::socket)
        .ok_or_else(|| Refused::new("the address is not an IP address with a port"))?;
    let address: IpAddr = host.parse().map_err(|_| Refused::new(format!("`{host}` is not an IP address")))?;
    if !message.additional_addresses.is_empty() {
        return refuse("additional_addresses are not supported");
    }
    if message.udp_listener_config.is_some() || message.api_listener.is_some() || message.listener_specifier.is_some() {
        return refuse("only TCP listeners are supported");
    }
    if message.filter_chain_matcher.is_some() || message.fcds_config.is_some() {
        return refuse("filter_chain_matcher and fcds_config are not supported");
    }
    let mut out = Listener {
        name: message.name.clone(),
        address: (!address.is_unspecified()).then_some(address),
        port,
        bind: message.bind_to_port.unwrap_or(true),
        use_original_dst: message.use_original_dst.unwrap_or(false),
        origin: Origin::Here,
        inspect_tls: Inspect::Nothing,
        inspect_http: Inspect::Nothing,
        patience: Duration::from_secs(5),
        lenient: message.continue_on_listener_filters_timeout,
        chains: Table::new(None),
        log: access_logs(&message.access_log)?,
    };
    // Every wait is bounded: where Envoy would wait for ever (0), five seconds must do.
    match duration(message.listener_filters_timeout.as_ref())? {
        Some(patience) if !patience.is_zero() => out.patience = patience.min(Duration::from_secs(60)),
        _ => {}
    }
    for filter in &message.listener_filters {
        listener_filter(&mut out, filter).map_err(|e| e.within(&filter.name))?;
    }
    let outbound = core::TrafficDirection::try_from(message.traffic_direction) != Ok(core::TrafficDirection::Inbound);
    let side = if outbound { Side::Outbound } else { Side::Inbound };
    let mut needed = Needed { side, routes, names: BTreeSet::new(), closed: Vec::new() };
    let default = match &message.default_filter_chain {
        Some(chain) => Some(Arc::new(filter_chain(chain, &mut needed).map_err(|e| e.within("default chain"))?)),
        None => None,
    };
    let mut table = Table::new(default);
    for chain in &message.filter_chains {
        let place = format!("chain `{}`", chain.name);
        let criteria = criteria(chain.filter_chain_match.as_ref()).map_err(|e| e.within(&place))?;
        // As Envoy does: what chains tell apart is inspected, asked for or not.
        let plain = criteria.transport == "raw_buffer";
        let sensitive =
            !criteria.server_names.is_empty() || !criteria.protocols.is_empty() || criteria.transport == "tls";
        if sensitive && !plain && out.inspect_tls == Inspect::Nothing {
            out.inspect_tls = Inspect::Except(Vec::new());
        }
        let compiled = Arc::new(filter_chain(chain, &mut needed).map_err(|e| e.within(&place))?);
        table
            .add(&criteria, &compiled)
            .map_err(|_| Refused::new("matches the same as another chain").within(&place))?;
    }
    out.chains = table;
    let Needed { names, closed, .. } = needed;
    Ok(Listening { listener: out, routes: names, closed })
}

fn listener_filter(out: &mut Listener, filter: &listener::ListenerFilter) -> Result<()> {
    let except = match &filter.filter_disabled {
        Some(predicate) => ports(predicate)?,
        None => Vec::new(),
    };
    let Some(listener::listener_filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
        match filter.name.as_str() {
            "envoy.filters.listener.tls_inspector" => out.inspect_tls = Inspect::Except(except),
            "envoy.filters.listener.http_inspector" => out.inspect_http = Inspect::Except(except),
            "envoy.filters.listener.original_dst" => out.origin = Origin::Kernel,
            _ => return refuse("this listener filter is not supported"),
        }
        return Ok(());
    };
    match type_of(any) {
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => out.inspect_tls = Inspect::Except(except),
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
            out.inspect_http = Inspect::Except(except);
        }
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => out.origin = Origin::Kernel,
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
            let config: proxy_protocol::ProxyProtocol = open(any)?;
            out.origin = Origin::Header { optional: config.allow_requests_without_proxy_protocol };
        }
        other => return refuse(format!("listener filter `{other}` is not supported")),
    }
    Ok(())
}

/// The destination ports a predicate is true for.
fn ports(predicate: &listener::ListenerFilterChainMatchPredicate) -> Result<Vec<std::ops::Range<u16>>> {
    use listener::listener_filter_chain_match_predicate::Rule;
    match &predicate.rule {
        Some(Rule::DestinationPortRange(range)) => {
            let port = |number: i32| u16::try_from(number.clamp(0, 65_535)).unwrap_or_default();
            Ok(std::iter::once(port(range.start)..port(range.end)).collect())
        }
        Some(Rule::OrMatch(set)) => Ok(set.rules.iter().map(ports).collect::<Result<Vec<_>>>()?.concat()),
        _ => refuse("filter_disabled can name destination ports only"),
    }
}

fn criteria(message: Option<&listener::FilterChainMatch>) -> Result<Criteria> {
    let Some(message) = message else { return Ok(Criteria::default()) };
    let unsupported = !message.address_suffix.is_empty()
        || message.suffix_len.is_some()
        || !message.direct_source_prefix_ranges.is_empty()
        || message.source_type != 0
        || !message.source_prefix_ranges.is_empty()
        || !message.source_ports.is_empty();
    if unsupported {
        return refuse(
            "only destination port, prefix ranges, server names, transport and application protocols can be matched",
        );
    }
    let range = |range: &core::CidrRange| {
        let text = &range.address_prefix;
        let bad = || Refused::new(format!("`{text}` is not an address range"));
        let address: IpAddr = text.parse().map_err(|_| bad())?;
        // Envoy's default length is 0.
        let bits = u8::try_from(range.prefix_len.unwrap_or(0)).map_err(|_| bad())?;
        Range::new(address, bits).ok_or_else(bad)
    };
    let port = message.destination_port.map(u16::try_from).transpose();
    Ok(Criteria {
        port: port.map_err(|_| Refused::new("destination_port is not a port"))?,
        ranges: message.prefix_ranges.iter().map(range).collect::<Result<_>>()?,
        server_names: message.server_names.clone(),
        transport: message.transport_protocol.clone(),
        protocols: message.application_protocols.clone(),
    })
}

struct Needed<'a> {
    side: Side,
    routes: RoutesByName<'a>,
    names: BTreeSet<String>,
    closed: Vec<String>,
}

/// Network filters that neither pass nor stop anything.
const HARMLESS_NETWORK: [&str; 4] = [
    "istio.stats",
    "istio.metadata_exchange",
    "envoy.filters.network.metadata_exchange",
    "envoy.filters.network.sni_cluster",
];
/// HTTP filters that neither pass nor stop anything, or do what this proxy does by itself.
const HARMLESS_HTTP: [&str; 6] = [
    "istio.stats",
    "istio.alpn",
    "istio.metadata_exchange",
    "envoy.filters.http.grpc_stats",
    "envoy.filters.http.cors",
    "envoy.filters.http.fault",
];

fn filter_chain(message: &listener::FilterChain, needed: &mut Needed<'_>) -> Result<Chain> {
    let tls = match &message.transport_socket {
        Some(socket) => downstream(socket).map_err(|e| e.within("transport_socket"))?.map(Arc::new),
        None => None,
    };
    let chain = |access, action| Chain { name: message.name.clone(), tls, access, action };
    let mut access = Vec::new();
    for filter in &message.filters {
        let Some(listener::filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
            return refuse(format!("filter `{}` has no typed_config", filter.name));
        };
        match type_of(any) {
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
                return Ok(chain(access, Action::Tcp(Arc::new(tcp(&open(any)?, needed.side)?))));
            }
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
                return Ok(chain(access, http(&open(any)?, &message.name, needed)?));
            }
            "envoy.extensions.filters.network.rbac.v3.RBAC" => {
                let config: network_rbac::Rbac = open(any)?;
                match rbac::rules(config.rules.as_ref(), config.matcher.is_some()) {
                    Ok(rules) => access.extend(rules),
                    Err(why) => return Ok(chain(Vec::new(), close(&message.name, &why.to_string(), needed))),
                }
            }
            _ if HARMLESS_NETWORK.contains(&filter.name.as_str()) => {}
            other => {
                let why = format!("network filter `{}` ({other}) is not supported", filter.name);
                return Ok(chain(Vec::new(), close(&message.name, &why, needed)));
            }
        }
    }
    Ok(chain(Vec::new(), Action::Close("the chain has no filter that would pass anything".into())))
}

fn close(chain: &str, why: &str, needed: &mut Needed<'_>) -> Action {
    needed.closed.push(format!("chain `{chain}` passes nothing: {why}"));
    Action::Close(why.to_owned())
}

fn tcp(message: &tcp_proxy::TcpProxy, side: Side) -> Result<Tcp> {
    use tcp_proxy::tcp_proxy::ClusterSpecifier;
    if message.tunneling_config.is_some() {
        return refuse("tunneling_config is not supported");
    }
    let clusters = match &message.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![(name.clone(), 1)],
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            weighted.clusters.iter().map(|c| (c.name.clone(), c.weight)).collect()
        }
        None => return refuse("tcp_proxy names no cluster"),
    };
    let idle = duration(message.idle_timeout.as_ref())?.unwrap_or(Duration::from_secs(3600));
    let log = access_logs(&message.access_log)?;
    Ok(Tcp {
        side,
        clusters,
        local_logged: log::show(&log, &log::Operator::UpstreamLocalAddress),
        log,
        // Zero switches the limit off in Envoy; a day is as good and bounded.
        idle: if idle.is_zero() { Duration::from_secs(86_400) } else { idle },
        attempts: message.max_connect_attempts.map(|most| most.clamp(1, 10)),
    })
}

fn http(message: &hcm::HttpConnectionManager, chain: &str, needed: &mut Needed<'_>) -> Result<Action> {
    use hcm::http_connection_manager::{ForwardClientCertDetails, RouteSpecifier};
    let unsupported = message.local_reply_config.is_some()
        || message.forward_client_cert_matcher.is_some()
        || message.strip_port_mode.is_some()
        || message.strip_matching_host_port
        || !message.original_ip_detection_extensions.is_empty()
        || !message.early_header_mutation_extensions.is_empty();
    if unsupported {
        return refuse(
            "local_reply_config, forward_client_cert_matcher, port stripping, original_ip_detection_extensions and \
             early_header_mutation_extensions are not supported",
        );
    }
    let mut access = Vec::new();
    for filter in &message.http_filters {
        if filter.disabled {
            continue;
        }
        let any = match &filter.config_type {
            Some(hcm::http_filter::ConfigType::TypedConfig(any)) => any,
            _ if filter.name == "envoy.filters.http.router" => continue,
            _ => return refuse(format!("HTTP filter `{}` has no typed_config", filter.name)),
        };
        match type_of(any) {
            "envoy.extensions.filters.http.router.v3.Router" => {}
            "envoy.extensions.filters.http.rbac.v3.RBAC" => {
                let config: http_rbac::Rbac = open(any)?;
                match rbac::rules(config.rules.as_ref(), config.matcher.is_some()) {
                    Ok(rules) => access.extend(rules),
                    Err(why) => return Ok(close(chain, &why.to_string(), needed)),
                }
            }
            _ if filter.is_optional || HARMLESS_HTTP.contains(&filter.name.as_str()) => {}
            other => {
                let why = format!("HTTP filter `{}` ({other}) is not supported", filter.name);
                return Ok(close(chain, &why, needed));
            }
        }
    }
    let routes = match &message.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => {
            needed.names.insert(rds.route_config_name.clone());
            (needed.routes)(&rds.route_config_name)
        }
        Some(RouteSpecifier::RouteConfig(inline)) => {
            let table = routes(inline).map_err(|e| e.within(&format!("routes `{}`", inline.name)))?;
            let table = ArcSwapOption::from_pointee(table);
            Arc::new(Routes { table })
        }
        _ => return refuse("scoped routes are not supported"),
    };
    let forward_cert = match ForwardClientCertDetails::try_from(message.forward_client_cert_details) {
        Ok(ForwardClientCertDetails::ForwardOnly) => ForwardCert::Forward,
        Ok(ForwardClientCertDetails::AppendForward) => ForwardCert::Append,
        Ok(ForwardClientCertDetails::SanitizeSet) => ForwardCert::Set,
        Ok(ForwardClientCertDetails::AlwaysForwardOnly) => ForwardCert::Always,
        _ => ForwardCert::Sanitize,
    };
    let streams = message.http2_protocol_options.as_ref().and_then(|options| options.max_concurrent_streams);
    let upgrades = message.upgrade_configs.iter().filter(|u| u.enabled != Some(false));
    let log = access_logs(&message.access_log)?;
    Ok(Action::Http(Arc::new(Http {
        side: needed.side,
        routes,
        forward_cert,
        logged: log::headers(&log),
        log,
        upgrades: upgrades.map(|u| u.upgrade_type.to_ascii_lowercase()).collect(),
        request_id: message.generate_request_id.unwrap_or(true),
        normalize: message.normalize_path.unwrap_or(false),
        merge_slashes: message.merge_slashes,
        edge: message.use_remote_address.unwrap_or(false),
        access,
        idle: duration(message.stream_idle_timeout.as_ref())?.unwrap_or(Duration::from_secs(300)),
        streams: streams.unwrap_or(MOST_STREAMS).clamp(1, MOST_STREAMS),
        largest_head: message.max_request_headers_kb.unwrap_or(LARGEST_HEAD_KB).clamp(1, 8 * 1024) * 1024,
    })))
}

fn access_logs(messages: &[accesslog::AccessLog]) -> Result<Vec<Arc<log::Log>>> {
    use accesslog::access_log_filter::FilterSpecifier;
    messages
        .iter()
        .map(|message| {
            let Some(accesslog::access_log::ConfigType::TypedConfig(any)) = &message.config_type else {
                return refuse("an access log has no typed_config");
            };
            let file: file_log::FileAccessLog = open(any).map_err(|e| e.within("access log"))?;
            if !matches!(file.path.as_str(), "/dev/stdout" | "/dev/stderr") {
                return refuse(format!("access logs go to /dev/stdout, not to `{}`", file.path));
            }
            let only_flags = match message.filter.as_ref().and_then(|filter| filter.filter_specifier.as_ref()) {
                None => None,
                Some(FilterSpecifier::ResponseFlagFilter(filter)) => Some(filter.flags.clone()),
                Some(_) => return refuse("access logs can be filtered by response flag only"),
            };
            Ok(Arc::new(log::Log { format: log_format(&file)?, only_flags }))
        })
        .collect()
}

fn log_format(file: &file_log::FileAccessLog) -> Result<log::Format> {
    use core::data_source::Specifier;
    use core::substitution_format_string::Format;
    use file_log::file_access_log::AccessLogFormat;
    let text = |text: &str| log::parts(text).map(log::Format::Text);
    let format = match &file.access_log_format {
        None => text(log::DEFAULT),
        Some(AccessLogFormat::Format(format)) => text(format),
        Some(AccessLogFormat::JsonFormat(json) | AccessLogFormat::TypedJsonFormat(json)) => {
            log::json(json).map(log::Format::Json)
        }
        Some(AccessLogFormat::LogFormat(format)) => match &format.format {
            Some(Format::TextFormat(format)) => text(format),
            Some(Format::JsonFormat(json)) => log::json(json).map(log::Format::Json),
            Some(Format::TextFormatSource(source)) => match &source.specifier {
                Some(Specifier::InlineString(format)) => text(format),
                _ => return refuse("text_format_source must be inline_string"),
            },
            None => text(log::DEFAULT),
        },
    };
    format.map_err(|unknown| Refused::new(unknown.to_string()))
}
