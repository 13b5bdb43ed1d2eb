//! From xDS messages to what the proxy does. Pure.
//!
//! Nothing is skipped silently: what cannot be obeyed is refused with a text that names it (the control plane sees it
//! as a NACK), and a chain that asks for a policy this proxy does not know passes nothing at all.
#![expect(deprecated, reason = "what Istio still writes is still read")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderName, HeaderValue, StatusCode};
use prost_types::value::Kind as ValueKind;
use regex::Regex;
use rustls_pki_types::ServerName;
use stolos_pki::tls::Peers;
use stolos_xds::envoy::config::accesslog::v3 as accesslog;
use stolos_xds::envoy::config::cluster::v3 as cluster;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::endpoint::v3 as endpoint;
use stolos_xds::envoy::config::listener::v3 as listener;
use stolos_xds::envoy::config::rbac::v3 as rbac;
use stolos_xds::envoy::config::route::v3 as xroute;
use stolos_xds::envoy::extensions::access_loggers::file::v3 as file_log;
use stolos_xds::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use stolos_xds::envoy::extensions::filters::listener::proxy_protocol::v3 as proxy_protocol;
use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use stolos_xds::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use stolos_xds::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
use stolos_xds::envoy::extensions::transport_sockets::tls::v3 as tls;
use stolos_xds::envoy::extensions::upstreams::http::v3 as upstream_http;
use stolos_xds::envoy::r#type::matcher::v3 as matcher;
use stolos_xds::{Any, message, unpack};

use crate::balance::{Endpoints, Listed, Policy};
use crate::config::{
    Action, Chain, Cluster, ForwardCert, Host, Http, Inspect, Kind, Listener, Origin, Protocol, Routes, Service, Side,
    Tcp, Transport,
};
use crate::matching::{Criteria, Range, Table};
use crate::tls::{Clients, Downstream, Upstream};
use crate::{log, metrics, outlier, route};

/// The secret that is the workload's own certificate.
const OWN_SECRET: &str = "default";
/// The secret that is the mesh's trust bundle.
const ROOTS_SECRET: &str = "ROOTCA";

/// Why a resource is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refused(String);

impl Refused {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    fn within(self, place: &str) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

type Result<T> = std::result::Result<T, Refused>;

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Refused::new(text))
}

fn open<M: prost::Name + Default>(any: &Any) -> Result<M> {
    unpack(any).map_err(|error| Refused::new(error.to_string()))
}

fn duration(value: Option<&prost_types::Duration>) -> Result<Option<Duration>> {
    let convert = |value: &prost_types::Duration| Duration::try_from(*value);
    value.map(convert).transpose().map_err(|_| Refused::new("a duration is negative"))
}

fn type_of(any: &Any) -> &str {
    any.type_url.rsplit('/').next().unwrap_or_default()
}

// ---- Listeners -------------------------------------------------------------------------------------------------

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
    let chain = |action| Chain { name: message.name.clone(), tls, action };
    let mut denied = false;
    for filter in &message.filters {
        let Some(listener::filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
            return refuse(format!("filter `{}` has no typed_config", filter.name));
        };
        match type_of(any) {
            "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
                let action = if denied {
                    Action::Close("policy denies everything".into())
                } else {
                    Action::Tcp(Arc::new(tcp(&open(any)?, needed.side)?))
                };
                return Ok(chain(action));
            }
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
                return Ok(chain(http(&open(any)?, denied, &message.name, needed)?));
            }
            "envoy.extensions.filters.network.rbac.v3.RBAC" => {
                let config: network_rbac::Rbac = open(any)?;
                match verdict(config.rules.as_ref(), config.matcher.is_some()) {
                    Some(deny) => denied |= deny,
                    None => return Ok(chain(close(&message.name, "RBAC rules are not supported", needed))),
                }
            }
            _ if HARMLESS_NETWORK.contains(&filter.name.as_str()) => {}
            other => {
                let why = format!("network filter `{}` ({other}) is not supported", filter.name);
                return Ok(chain(close(&message.name, &why, needed)));
            }
        }
    }
    Ok(chain(Action::Close("the chain has no filter that would pass anything".into())))
}

fn close(chain: &str, why: &str, needed: &mut Needed<'_>) -> Action {
    needed.closed.push(format!("chain `{chain}` passes nothing: {why}"));
    Action::Close(why.to_owned())
}

/// Whether rules deny everything (`Some(true)`) or nothing (`Some(false)`); `None` when it takes more to say.
fn verdict(rules: Option<&rbac::Rbac>, matcher: bool) -> Option<bool> {
    if matcher {
        return None;
    }
    let Some(rules) = rules else { return Some(false) };
    let action = rbac::rbac::Action::try_from(rules.action).ok()?;
    match action {
        rbac::rbac::Action::Allow if rules.policies.is_empty() => Some(true),
        rbac::rbac::Action::Deny if rules.policies.is_empty() => Some(false),
        rbac::rbac::Action::Log => Some(false),
        _ => None,
    }
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
    Ok(Tcp {
        side,
        clusters,
        log: access_logs(&message.access_log)?,
        // Zero switches the limit off in Envoy; a day is as good and bounded.
        idle: if idle.is_zero() { Duration::from_secs(86_400) } else { idle },
        attempts: message.max_connect_attempts.map(|most| most.clamp(1, 10)),
    })
}

fn http(message: &hcm::HttpConnectionManager, denied: bool, chain: &str, needed: &mut Needed<'_>) -> Result<Action> {
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
    let mut denied = denied;
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
                match verdict(config.rules.as_ref(), config.matcher.is_some()) {
                    Some(deny) => denied |= deny,
                    None => return Ok(close(chain, "RBAC rules are not supported", needed)),
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
        denied,
        idle: duration(message.stream_idle_timeout.as_ref())?.unwrap_or(Duration::from_secs(300)),
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

// ---- TLS -------------------------------------------------------------------------------------------------------

fn downstream(socket: &core::TransportSocket) -> Result<Option<Downstream>> {
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return if socket.name.contains("raw_buffer") { Ok(None) } else { refuse("no typed_config") };
    };
    if type_of(any) == "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" {
        return Ok(None);
    }
    let context: tls::DownstreamTlsContext = open(any)?;
    let common = context.common_tls_context.unwrap_or_default();
    if !own_certificate(&common)? {
        return refuse("a server needs a certificate: SDS secret `default`");
    }
    let peers = peers(&common)?;
    let clients = match (context.require_client_certificate.unwrap_or(false), &peers) {
        (true, None) => return refuse("client certificates are required, but nothing says whom to trust"),
        (true, Some(_)) => Clients::Must,
        (false, Some(_)) => Clients::May,
        (false, None) => Clients::Unasked,
    };
    Ok(Some(Downstream::new(peers.unwrap_or(Peers::Any), clients, common.alpn_protocols)))
}

fn transport(socket: Option<&core::TransportSocket>, cluster: &str) -> Result<Transport> {
    let Some(socket) = socket else { return Ok(Transport::Plain) };
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return if socket.name.contains("raw_buffer") { Ok(Transport::Plain) } else { refuse("no typed_config") };
    };
    if type_of(any) == "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" {
        return Ok(Transport::Plain);
    }
    let context: tls::UpstreamTlsContext = open(any)?;
    let common = context.common_tls_context.unwrap_or_default();
    let own = own_certificate(&common)?;
    let Some(peers) = peers(&common)? else {
        return refuse("nothing says whom to trust: validation context with SDS secret `ROOTCA`");
    };
    let sni = if context.sni.is_empty() { "unnamed.invalid".to_owned() } else { context.sni };
    let sni = ServerName::try_from(sni).map_err(|_| Refused::new(format!("the SNI of `{cluster}` is not a name")))?;
    Ok(Transport::Tls(Arc::new(Upstream::new(sni, peers, common.alpn_protocols, own))))
}

/// Whether the workload's certificate is shown.
fn own_certificate(common: &tls::CommonTlsContext) -> Result<bool> {
    if let Some(params) = &common.tls_params {
        // 1.2 to 1.3 is what is spoken; a lower minimum is raised, a narrower range cannot be kept.
        let (least, most) = (params.tls_minimum_protocol_version, params.tls_maximum_protocol_version);
        if least > 3 || !matches!(most, 0 | 4) {
            return refuse("TLS versions must be 1.2 to 1.3");
        }
    }
    if !common.tls_certificates.is_empty() {
        return refuse("certificates come by SDS (`default`), not inline");
    }
    match common.tls_certificate_sds_secret_configs.as_slice() {
        [] => Ok(false),
        [one] if one.name == OWN_SECRET => Ok(true),
        [one, ..] => refuse(format!("SDS secret `{}` is not supported, only `{OWN_SECRET}`", one.name)),
    }
}

/// Who is accepted; `None` when nobody is checked.
fn peers(common: &tls::CommonTlsContext) -> Result<Option<Peers>> {
    use tls::common_tls_context::ValidationContextType;
    let roots = |secret: Option<&tls::SdsSecretConfig>| match secret {
        Some(secret) if secret.name == ROOTS_SECRET => Ok(()),
        Some(secret) => refuse(format!("SDS secret `{}` is not supported, only `{ROOTS_SECRET}`", secret.name)),
        None => refuse(format!("the trust bundle must be SDS secret `{ROOTS_SECRET}`")),
    };
    let context = match &common.validation_context_type {
        None => return Ok(None),
        Some(ValidationContextType::ValidationContextSdsSecretConfig(secret)) => {
            roots(Some(secret))?;
            return Ok(Some(Peers::Any));
        }
        Some(ValidationContextType::CombinedValidationContext(combined)) => {
            roots(combined.validation_context_sds_secret_config.as_ref())?;
            combined.default_validation_context.clone().unwrap_or_default()
        }
        Some(_) => return refuse(format!("the trust bundle must be SDS secret `{ROOTS_SECRET}`")),
    };
    if !context.verify_certificate_hash.is_empty()
        || !context.verify_certificate_spki.is_empty()
        || context.crl.is_some()
    {
        return refuse("certificate hashes and revocation lists are not supported");
    }
    let typed = context.match_typed_subject_alt_names.iter().map(|typed| {
        use tls::subject_alt_name_matcher::SanType;
        if SanType::try_from(typed.san_type) != Ok(SanType::Uri) {
            return refuse("only URI SANs can be matched");
        }
        typed.matcher.as_ref().ok_or_else(|| Refused::new("a SAN matcher is empty"))
    });
    let matchers: Vec<&matcher::StringMatcher> =
        typed.chain(context.match_subject_alt_names.iter().map(Ok)).collect::<Result<_>>()?;
    let (mut exact, mut domains) = (BTreeSet::new(), BTreeSet::new());
    for matcher in matchers {
        use matcher::string_matcher::MatchPattern;
        match &matcher.match_pattern {
            Some(MatchPattern::Exact(uri)) if !matcher.ignore_case => drop(exact.insert(uri.clone())),
            Some(MatchPattern::Prefix(prefix)) if !matcher.ignore_case => {
                let domain = prefix.strip_prefix("spiffe://").and_then(|rest| rest.strip_suffix('/'));
                let domain = domain.filter(|domain| !domain.is_empty() && !domain.contains('/'));
                let Some(domain) = domain else {
                    return refuse(format!("SAN prefix `{prefix}` is not a trust domain (`spiffe://…/`)"));
                };
                domains.insert(domain.to_owned());
            }
            _ => return refuse("a SAN matcher is neither exact nor a trust domain prefix"),
        }
    }
    match (exact.is_empty(), domains.is_empty()) {
        (true, true) => Ok(Some(Peers::Any)),
        (false, true) => Ok(Some(Peers::Exactly(exact))),
        (true, false) => Ok(Some(Peers::TrustDomains(domains))),
        (false, false) => refuse("exact SANs and trust domain prefixes cannot be mixed"),
    }
}

// ---- Clusters --------------------------------------------------------------------------------------------------

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

// ---- Routes ----------------------------------------------------------------------------------------------------

/// Compiles a route configuration.
pub(crate) fn routes(message: &xroute::RouteConfiguration) -> Result<route::Table> {
    if message.vhds.is_some() || !message.request_mirror_policies.is_empty() {
        return refuse("vhds and request mirroring are not supported");
    }
    let mut table = route::Table {
        ignore_port: message.ignore_port_in_host_matching,
        headers: changes(
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
        )?,
        ..route::Table::default()
    };
    for (at, host) in message.virtual_hosts.iter().enumerate() {
        let place = format!("virtual host `{}`", host.name);
        for domain in &host.domains {
            let lower = domain.to_ascii_lowercase();
            let twice = match (lower.as_str(), lower.strip_prefix('*'), lower.strip_suffix('*')) {
                ("*", ..) => table.any.replace(at).is_some(),
                (_, Some(suffix), _) => push(&mut table.suffixes, suffix, at),
                (_, _, Some(prefix)) => push(&mut table.prefixes, prefix, at),
                _ => table.exact.insert(lower.clone(), at).is_some(),
            };
            if twice {
                return Err(Refused::new(format!("domain `{domain}` is there twice")).within(&place));
            }
        }
        table.hosts.push(virtual_host(host).map_err(|e| e.within(&place))?);
    }
    for list in [&mut table.suffixes, &mut table.prefixes] {
        list.sort_by_key(|(part, _)| std::cmp::Reverse(part.len()));
    }
    Ok(table)
}

fn push(list: &mut Vec<(String, usize)>, part: &str, at: usize) -> bool {
    let twice = list.iter().any(|(known, _)| known == part);
    list.push((part.to_owned(), at));
    twice
}

fn virtual_host(message: &xroute::VirtualHost) -> Result<route::Host> {
    if message.matcher.is_some() || message.cors.is_some() || message.hedge_policy.is_some() || message.require_tls != 0
    {
        return refuse("matcher, cors, hedge_policy and require_tls are not supported");
    }
    if !message.rate_limits.is_empty() || !message.request_mirror_policies.is_empty() {
        return refuse("rate limits and request mirroring are not supported");
    }
    let retry = message.retry_policy.as_ref();
    let route = |one: &xroute::Route| one_route(one, retry).map_err(|e| e.within(&format!("route `{}`", one.name)));
    Ok(route::Host {
        name: message.name.clone(),
        routes: message.routes.iter().map(route).collect::<Result<_>>()?,
        headers: changes(
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
        )?,
        attempt_count: message.include_request_attempt_count,
    })
}

fn one_route(message: &xroute::Route, retry: Option<&xroute::RetryPolicy>) -> Result<route::Route> {
    use xroute::route::Action as Wanted;
    use xroute::route_match::PathSpecifier;
    let matching = message.r#match.as_ref().ok_or_else(|| Refused::new("no match"))?;
    if !matching.cookies.is_empty() || !matching.dynamic_metadata.is_empty() || !matching.filter_state.is_empty() {
        return refuse("cookies, dynamic_metadata and filter_state cannot be matched");
    }
    if matching.runtime_fraction.is_some() || matching.tls_context.is_some() {
        return refuse("runtime_fraction and tls_context cannot be matched");
    }
    if !message.typed_per_filter_config.is_empty() {
        return refuse("typed_per_filter_config is not supported");
    }
    let path = match matching.path_specifier.as_ref().ok_or_else(|| Refused::new("no path to match"))? {
        PathSpecifier::Prefix(prefix) => route::Path::Prefix(prefix.clone()),
        PathSpecifier::Path(path) => route::Path::Exact(path.clone()),
        PathSpecifier::PathSeparatedPrefix(prefix) => route::Path::Segment(prefix.clone()),
        PathSpecifier::SafeRegex(pattern) => route::Path::Regex(whole(&pattern.regex)?),
        PathSpecifier::ConnectMatcher(_) | PathSpecifier::PathMatchPolicy(_) => {
            return refuse("CONNECT and path policies cannot be matched");
        }
    };
    let action = match message.action.as_ref().ok_or_else(|| Refused::new("no action"))? {
        Wanted::Route(forward) => route::Action::Forward(Box::new(self::forward(forward, retry)?)),
        Wanted::DirectResponse(direct) => direct_response(direct)?,
        Wanted::Redirect(redirect) => route::Action::Redirect(self::redirect(redirect)?),
        Wanted::FilterAction(_) | Wanted::NonForwardingAction(_) => return refuse("this action is not supported"),
    };
    Ok(route::Route {
        name: message.name.clone(),
        path,
        case_sensitive: matching.case_sensitive.unwrap_or(true),
        headers: matching.headers.iter().map(header_match).collect::<Result<_>>()?,
        query: matching.query_parameters.iter().map(query_match).collect::<Result<_>>()?,
        grpc: matching.grpc.is_some(),
        action,
        changes: changes(
            &message.request_headers_to_add,
            &message.request_headers_to_remove,
            &message.response_headers_to_add,
            &message.response_headers_to_remove,
        )?,
    })
}

/// A pattern that must fit the whole text, as Envoy's do.
fn whole(pattern: &str) -> Result<Regex> {
    Regex::new(&format!("^(?:{pattern})$")).map_err(|error| Refused::new(format!("pattern `{pattern}`: {error}")))
}

fn forward(message: &xroute::RouteAction, inherited: Option<&xroute::RetryPolicy>) -> Result<route::Forward> {
    use xroute::route_action::{ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier};
    if !message.request_mirror_policies.is_empty() || !message.hash_policy.is_empty() || message.cors.is_some() {
        return refuse("request mirroring, hash policies and cors are not supported");
    }
    if message.hedge_policy.is_some() || !message.rate_limits.is_empty() || message.internal_redirect_policy.is_some() {
        return refuse("hedging, rate limits and internal redirects are not supported");
    }
    let clusters = match message.cluster_specifier.as_ref() {
        Some(ClusterSpecifier::Cluster(name)) => vec![(name.clone(), 1)],
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            if weighted
                .clusters
                .iter()
                .any(|one| !one.request_headers_to_add.is_empty() || !one.cluster_header.is_empty())
            {
                return refuse("header changes per weighted cluster are not supported");
            }
            weighted.clusters.iter().map(|one| (one.name.clone(), one.weight.unwrap_or(0))).collect()
        }
        _ => return refuse("a route must name clusters"),
    };
    let host_rewrite = match &message.host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            Some(HeaderValue::from_str(host).map_err(|_| Refused::new("host_rewrite_literal is not a host"))?)
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(false)) => None,
        Some(_) => return refuse("hosts can be rewritten literally only"),
    };
    let regex_rewrite = match &message.regex_rewrite {
        Some(rewrite) => {
            let pattern = rewrite.pattern.as_ref().map(|p| p.regex.as_str()).unwrap_or_default();
            let pattern = Regex::new(pattern).map_err(|e| Refused::new(format!("pattern `{pattern}`: {e}")))?;
            // Groups are `\1` there and `${1}` here.
            let groups = Regex::new(r"\\(\d)").map_err(|e| Refused::new(e.to_string()))?;
            let substitution = rewrite.substitution.replace('$', "$$");
            Some((pattern, groups.replace_all(&substitution, "$${${1}}").into_owned()))
        }
        None => None,
    };
    let timeout = match &message.timeout {
        None => Some(Duration::from_secs(15)),
        Some(timeout) => duration(Some(timeout))?.filter(|timeout| !timeout.is_zero()),
    };
    let upgrades = message.upgrade_configs.iter().filter(|upgrade| upgrade.enabled != Some(false));
    Ok(route::Forward {
        clusters,
        timeout,
        retry: message.retry_policy.as_ref().or(inherited).map(retry).transpose()?.unwrap_or_default(),
        prefix_rewrite: Some(message.prefix_rewrite.clone()).filter(|prefix| !prefix.is_empty()),
        regex_rewrite,
        host_rewrite,
        no_cluster: match ClusterNotFoundResponseCode::try_from(message.cluster_not_found_response_code) {
            Ok(ClusterNotFoundResponseCode::NotFound) => StatusCode::NOT_FOUND,
            Ok(ClusterNotFoundResponseCode::InternalServerError) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        },
        upgrades: upgrades.map(|upgrade| upgrade.upgrade_type.to_ascii_lowercase()).collect(),
    })
}

fn retry(message: &xroute::RetryPolicy) -> Result<route::Retry> {
    let mut out = route::Retry {
        most: message.num_retries.unwrap_or(1),
        per_try: duration(message.per_try_timeout.as_ref())?.filter(|limit| !limit.is_zero()),
        other_host: !message.retry_host_predicate.is_empty(),
        back_off: (Duration::from_millis(25), Duration::from_millis(250)),
        ..route::Retry::default()
    };
    if let Some(back_off) = &message.retry_back_off {
        let base = duration(back_off.base_interval.as_ref())?.unwrap_or(out.back_off.0);
        out.back_off = (base, duration(back_off.max_interval.as_ref())?.unwrap_or(base * 10));
    }
    let codes = || message.retriable_status_codes.iter().filter_map(|code| u16::try_from(*code).ok());
    for condition in message.retry_on.split(',').map(str::trim).filter(|condition| !condition.is_empty()) {
        match condition {
            "connect-failure" => out.connect_failure = true,
            "reset-before-request" => out.reset_before_request = true,
            "reset" => out.reset = true,
            "refused-stream" => out.refused_stream = true,
            "gateway-error" => out.gateway_error = true,
            "5xx" => out.any_5xx = true,
            "retriable-4xx" => out.statuses.push(409),
            "retriable-status-codes" => out.statuses.extend(codes()),
            "cancelled" => out.grpc.push(1),
            "deadline-exceeded" => out.grpc.push(4),
            "resource-exhausted" => out.grpc.push(8),
            "internal" => out.grpc.push(13),
            "unavailable" => out.grpc.push(14),
            "envoy-ratelimited" | "http3-post-connect-failure" => {}
            other => return refuse(format!("retry condition `{other}` is not supported")),
        }
    }
    Ok(out)
}

fn direct_response(message: &xroute::DirectResponseAction) -> Result<route::Action> {
    use core::data_source::Specifier;
    let code = u16::try_from(message.status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = code.ok_or_else(|| Refused::new(format!("{} is not a status", message.status)))?;
    let body = match message.body.as_ref().and_then(|body| body.specifier.as_ref()) {
        None => bytes::Bytes::new(),
        Some(Specifier::InlineString(text)) => text.clone().into(),
        Some(Specifier::InlineBytes(bytes)) => bytes.clone().into(),
        Some(_) => return refuse("the body of a direct response must be inline"),
    };
    Ok(route::Action::Respond { status, body })
}

fn redirect(message: &xroute::RedirectAction) -> Result<route::Redirect> {
    use xroute::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let (mut path, mut prefix) = (None, None);
    match &message.path_rewrite_specifier {
        None => {}
        Some(PathRewriteSpecifier::PathRedirect(text)) => path = Some(text.clone()),
        Some(PathRewriteSpecifier::PrefixRewrite(text)) => prefix = Some(text.clone()),
        Some(_) => return refuse("redirects by pattern are not supported"),
    }
    let https = match &message.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => false,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => true,
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => scheme == "https",
    };
    Ok(route::Redirect {
        status: match RedirectResponseCode::try_from(message.response_code) {
            Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
            Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
            Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
            Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
            _ => StatusCode::MOVED_PERMANENTLY,
        },
        https,
        host: Some(message.host_redirect.clone()).filter(|host| !host.is_empty()),
        port: u16::try_from(message.port_redirect).ok().filter(|port| *port > 0),
        path,
        prefix,
        strip_query: message.strip_query,
    })
}

fn header_match(message: &xroute::HeaderMatcher) -> Result<route::HeaderMatch> {
    use route::{HeaderKey, HeaderWanted, Text};
    use xroute::header_matcher::HeaderMatchSpecifier as Wanted;
    let name = match message.name.to_ascii_lowercase().as_str() {
        ":method" => HeaderKey::Method,
        ":path" => HeaderKey::Path,
        ":authority" | "host" => HeaderKey::Authority,
        ":scheme" => HeaderKey::Scheme,
        name => HeaderKey::Named(header_name(name)?),
    };
    let wanted = match &message.header_match_specifier {
        None => HeaderWanted::Present(true),
        Some(Wanted::PresentMatch(present)) => HeaderWanted::Present(*present),
        Some(Wanted::RangeMatch(range)) => HeaderWanted::Range(range.start, range.end),
        Some(Wanted::StringMatch(matcher)) => HeaderWanted::Text(text(matcher)?),
        Some(Wanted::ExactMatch(t)) => HeaderWanted::Text(Text::Exact(t.clone(), false)),
        Some(Wanted::PrefixMatch(t)) => HeaderWanted::Text(Text::Prefix(t.clone(), false)),
        Some(Wanted::SuffixMatch(t)) => HeaderWanted::Text(Text::Suffix(t.clone(), false)),
        Some(Wanted::ContainsMatch(t)) => HeaderWanted::Text(Text::Contains(t.clone(), false)),
        Some(Wanted::SafeRegexMatch(pattern)) => HeaderWanted::Text(Text::Regex(whole(&pattern.regex)?)),
    };
    Ok(route::HeaderMatch {
        name,
        wanted,
        invert: message.invert_match,
        missing_is_empty: message.treat_missing_header_as_empty,
    })
}

fn text(message: &matcher::StringMatcher) -> Result<route::Text> {
    use matcher::string_matcher::MatchPattern;
    let ignore = message.ignore_case;
    Ok(match &message.match_pattern {
        Some(MatchPattern::Exact(text)) => route::Text::Exact(text.clone(), ignore),
        Some(MatchPattern::Prefix(text)) => route::Text::Prefix(text.clone(), ignore),
        Some(MatchPattern::Suffix(text)) => route::Text::Suffix(text.clone(), ignore),
        Some(MatchPattern::Contains(text)) => route::Text::Contains(text.clone(), ignore),
        Some(MatchPattern::SafeRegex(pattern)) => route::Text::Regex(whole(&pattern.regex)?),
        _ => return refuse("a string matcher is empty or custom"),
    })
}

fn query_match(message: &xroute::QueryParameterMatcher) -> Result<(String, Option<route::Text>)> {
    use xroute::query_parameter_matcher::QueryParameterMatchSpecifier as Wanted;
    let wanted = match &message.query_parameter_match_specifier {
        None | Some(Wanted::PresentMatch(true)) => None,
        Some(Wanted::StringMatch(matcher)) => Some(text(matcher)?),
        Some(Wanted::PresentMatch(false)) => return refuse("absent query parameters cannot be matched"),
    };
    Ok((message.name.clone(), wanted))
}

fn header_name(name: &str) -> Result<HeaderName> {
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| Refused::new(format!("`{name}` is not a header name")))
}

fn changes(
    request_add: &[core::HeaderValueOption],
    request_remove: &[String],
    response_add: &[core::HeaderValueOption],
    response_remove: &[String],
) -> Result<route::HeaderChanges> {
    let removed = |names: &[String]| names.iter().map(|name| header_name(name)).collect::<Result<Vec<_>>>();
    let added = |options: &[core::HeaderValueOption]| options.iter().map(added).collect::<Result<Vec<_>>>();
    Ok(route::HeaderChanges {
        request_add: added(request_add)?,
        request_remove: removed(request_remove)?,
        response_add: added(response_add)?,
        response_remove: removed(response_remove)?,
    })
}

fn added(option: &core::HeaderValueOption) -> Result<(HeaderName, HeaderValue, route::Add)> {
    use core::header_value_option::HeaderAppendAction;
    let header = option.header.clone().unwrap_or_default();
    if header.value.replace("%%", "").contains('%') {
        return refuse(format!("header `{}`: operators in header values are not supported", header.key));
    }
    let value = HeaderValue::from_str(&header.value.replace("%%", "%"));
    let value = value.map_err(|_| Refused::new(format!("header `{}` has a bad value", header.key)))?;
    let append = option.append;
    let how = match (append, HeaderAppendAction::try_from(option.append_action)) {
        (Some(false), _) | (_, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => route::Add::Overwrite,
        (_, Ok(HeaderAppendAction::AddIfAbsent)) => route::Add::IfAbsent,
        (_, Ok(HeaderAppendAction::OverwriteIfExists)) => route::Add::OverwriteIfPresent,
        _ => route::Add::Append,
    };
    Ok((header_name(&header.key)?, value, how))
}
