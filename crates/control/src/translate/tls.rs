//! TLS between proxies, as sockets of Envoy's.

use std::collections::BTreeSet;

use stolos_k8s::istio;
use stolos_xds::envoy::config::cluster::v3::cluster::TransportSocketMatch;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use stolos_xds::envoy::extensions::transport_sockets::tls::v3 as tls;
use stolos_xds::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use stolos_xds::message::{string, structure};
use stolos_xds::pack;

use super::parts::{sds, transport};
use crate::model::Settings;

/// mTLS towards a service: our certificate, its SNI, and exactly these identities; an empty set accepts any.
pub(super) fn upstream(sni: &str, identities: &BTreeSet<String>, h2: bool) -> core::TransportSocket {
    let names = identities.iter().map(|uri| uri_matcher(MatchPattern::Exact(uri.clone())));
    let mut alpn = vec!["istio-peer-exchange".to_owned(), "istio".to_owned()];
    if h2 {
        alpn.push("h2".to_owned());
    }
    let context = tls::UpstreamTlsContext {
        common_tls_context: Some(common(names.collect(), alpn)),
        sni: sni.to_owned(),
        ..Default::default()
    };
    transport("envoy.transport_sockets.tls", pack(&context))
}

/// mTLS for a workload: any identity of the mesh's trust domains.
pub(super) fn downstream(settings: &Settings, http: bool) -> core::TransportSocket {
    let names = settings.trust_domains().map(|domain| uri_matcher(MatchPattern::Prefix(format!("spiffe://{domain}/"))));
    let alpn: &[&str] = if http { &["h2", "http/1.1"] } else { &["istio-peer-exchange", "h2", "http/1.1"] };
    let alpn = alpn.iter().map(|protocol| (*protocol).to_owned()).collect();
    let context = tls::DownstreamTlsContext {
        common_tls_context: Some(common(names.collect(), alpn)),
        require_client_certificate: Some(true),
        ..Default::default()
    };
    transport("envoy.transport_sockets.tls", pack(&context))
}

/// mTLS to the endpoints that take it, plaintext to the others.
pub(super) fn automatic(mutual: core::TransportSocket) -> Vec<TransportSocketMatch> {
    let matching = structure([("tlsMode", string(istio::TLS_MODE_ISTIO))]);
    let always = structure::<&str>([]);
    let plain = transport("envoy.transport_sockets.raw_buffer", pack(&RawBuffer::default()));
    vec![
        TransportSocketMatch {
            name: "tlsMode-istio".to_owned(),
            r#match: Some(matching),
            transport_socket: Some(mutual),
        },
        TransportSocketMatch {
            name: "tlsMode-disabled".to_owned(),
            r#match: Some(always),
            transport_socket: Some(plain),
        },
    ]
}

fn common(names: Vec<tls::SubjectAltNameMatcher>, alpn: Vec<String>) -> tls::CommonTlsContext {
    use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    use tls::tls_parameters::TlsProtocol;
    let secret = |name: &str| tls::SdsSecretConfig { name: name.to_owned(), sds_config: Some(sds()) };
    let validation = tls::CertificateValidationContext { match_typed_subject_alt_names: names, ..Default::default() };
    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(validation),
        validation_context_sds_secret_config: Some(secret("ROOTCA")),
        ..Default::default()
    };
    tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv12.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret("default")],
        alpn_protocols: alpn,
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(combined)),
        ..Default::default()
    }
}

fn uri_matcher(pattern: MatchPattern) -> tls::SubjectAltNameMatcher {
    tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..Default::default() }),
        ..Default::default()
    }
}
