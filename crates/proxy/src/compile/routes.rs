//! Route tables: which requests go where, and what is changed on the way.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use regex::Regex;
use stolos_xds::envoy::config::core::v3 as core;
use stolos_xds::envoy::config::route::v3 as xroute;
use stolos_xds::envoy::r#type::matcher::v3 as matcher;

use super::{Refused, Result, duration, refuse};
use crate::route;

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
        name: message.name.as_str().into(),
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
        name: message.name.as_str().into(),
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

pub(super) fn header_match(message: &xroute::HeaderMatcher) -> Result<route::HeaderMatch> {
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

pub(super) fn text(message: &matcher::StringMatcher) -> Result<route::Text> {
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
