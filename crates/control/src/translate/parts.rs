//! Small pieces that Envoy's messages are made of.

use std::time::Duration;

use stolos_xds::Any;
use stolos_xds::envoy::config::accesslog::v3 as accesslog;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::listener::v3 as listener;
use stolos_xds::envoy::extensions::access_loggers::file::v3 as file;
use stolos_xds::envoy::extensions::filters::http::router::v3::Router;
use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use stolos_xds::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use stolos_xds::message::{string, structure};
use stolos_xds::pack;

use crate::model::Settings;

/// A protobuf duration.
pub(super) fn duration(duration: Duration) -> stolos_xds::prost_types::Duration {
    stolos_xds::prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// "Over this same stream."
pub(super) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        initial_fetch_timeout: Some(duration(Duration::ZERO)),
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(Default::default())),
        ..Default::default()
    }
}

/// "From the agent's socket", where keys and certificates come from.
pub(super) fn sds() -> core::ConfigSource {
    let grpc = core::grpc_service::EnvoyGrpc { cluster_name: "sds-grpc".to_owned(), ..Default::default() };
    let service = core::GrpcService {
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)),
        ..Default::default()
    };
    let api = core::ApiConfigSource {
        api_type: core::api_config_source::ApiType::Grpc.into(),
        transport_api_version: core::ApiVersion::V3.into(),
        grpc_services: vec![service],
        set_node_on_first_message_only: true,
        ..Default::default()
    };
    core::ConfigSource {
        initial_fetch_timeout: Some(duration(Duration::ZERO)),
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::ApiConfigSource(api)),
        ..Default::default()
    }
}

/// A transport socket of this configuration.
pub(super) fn transport(name: &str, config: Any) -> core::TransportSocket {
    core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

/// A network filter of this configuration.
pub(super) fn filter(name: &str, config: Any) -> listener::Filter {
    listener::Filter { name: name.to_owned(), config_type: Some(listener::filter::ConfigType::TypedConfig(config)) }
}

/// A listener filter of this configuration.
pub(super) fn listener_filter(name: &str, config: Any) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// Bytes to a cluster.
pub(super) fn tcp_proxy(cluster: &str, stat_prefix: &str, settings: &Settings) -> listener::Filter {
    let proxy = tcp::TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        access_log: access_log(settings),
        cluster_specifier: Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    filter("envoy.filters.network.tcp_proxy", pack(&proxy))
}

/// What all HTTP connection managers have in common.
pub(super) fn http_manager(stat_prefix: &str, settings: &Settings) -> hcm::HttpConnectionManager {
    let router = hcm::HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pack(&Router::default()))),
        ..Default::default()
    };
    let websocket =
        hcm::http_connection_manager::UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() };
    hcm::HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        http_filters: vec![router],
        upgrade_configs: vec![websocket],
        use_remote_address: Some(false),
        generate_request_id: Some(true),
        preserve_external_request_id: true,
        normalize_path: Some(true),
        stream_idle_timeout: Some(duration(Duration::ZERO)),
        access_log: access_log(settings),
        ..Default::default()
    }
}

/// An HTTP connection manager as a filter.
pub(super) fn http_filter(manager: &hcm::HttpConnectionManager) -> listener::Filter {
    filter("envoy.filters.network.http_connection_manager", pack(manager))
}

/// The access log: Istio's JSON keys, and the identities that were verified.
fn access_log(settings: &Settings) -> Vec<accesslog::AccessLog> {
    if settings.access_log.is_empty() {
        return Vec::new();
    }
    let format = ACCESS_LOG.iter().map(|(key, value)| (*key, string(*value)));
    let format = core::SubstitutionFormatString {
        format: Some(core::substitution_format_string::Format::JsonFormat(structure(format))),
        ..Default::default()
    };
    let log = file::FileAccessLog {
        path: settings.access_log.clone(),
        access_log_format: Some(file::file_access_log::AccessLogFormat::LogFormat(format)),
    };
    vec![accesslog::AccessLog {
        name: "envoy.access_loggers.file".to_owned(),
        config_type: Some(accesslog::access_log::ConfigType::TypedConfig(pack(&log))),
        ..Default::default()
    }]
}

const ACCESS_LOG: &[(&str, &str)] = &[
    ("authority", "%REQ(:AUTHORITY)%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_peer_uri_san", "%DOWNSTREAM_PEER_URI_SAN%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("duration", "%DURATION%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("route_name", "%ROUTE_NAME%"),
    ("start_time", "%START_TIME%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("upstream_peer_uri_san", "%UPSTREAM_PEER_URI_SAN%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
];
