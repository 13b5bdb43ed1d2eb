//! TLS, towards clients and towards hosts: whose certificates, whom to trust.

use std::collections::BTreeSet;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use stolos_pki::tls::Peers;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::extensions::transport_sockets::tls::v3 as tls;
use stolos_xds::envoy::r#type::matcher::v3 as matcher;

use super::{Refused, Result, open, refuse, type_of};
use crate::config::Transport;
use crate::tls::{Clients, Downstream, Upstream};

/// The secret that is the workload's own certificate.
const OWN_SECRET: &str = "default";
/// The secret that is the mesh's trust bundle.
const ROOTS_SECRET: &str = "ROOTCA";

pub(super) fn downstream(socket: &core::TransportSocket) -> Result<Option<Downstream>> {
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

pub(super) fn transport(socket: Option<&core::TransportSocket>, cluster: &str) -> Result<Transport> {
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
