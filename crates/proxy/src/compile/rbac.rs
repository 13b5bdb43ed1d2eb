//! RBAC filters: who may do what.

use std::net::IpAddr;

use stolos_xds::envoy::config::core::v3::CidrRange;
use stolos_xds::envoy::config::rbac::v3::{self as xrbac, permission, principal};
use stolos_xds::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};

use super::routes::{header_match, text};
use super::{Refused, Result, refuse};
use crate::matching::Range;
use crate::rbac::{Condition, Policy, Rules};

/// Compiles the rules of a filter; none where it enforces nothing.
///
/// What cannot be obeyed is an error, and the caller closes what the filter stands before.
pub(super) fn rules(message: Option<&xrbac::Rbac>, matcher: bool) -> Result<Option<Rules>> {
    if matcher {
        return refuse("RBAC by matcher is not supported");
    }
    let Some(message) = message else { return Ok(None) };
    let deny = match xrbac::rbac::Action::try_from(message.action) {
        Ok(xrbac::rbac::Action::Allow) => false,
        Ok(xrbac::rbac::Action::Deny) => true,
        // It says what happens, and stops nobody.
        Ok(xrbac::rbac::Action::Log) => return Ok(None),
        Err(_) => return refuse("this RBAC action is not supported"),
    };
    let policy = |(name, policy): (&String, &xrbac::Policy)| {
        if policy.condition.is_some() || policy.checked_condition.is_some() {
            return refuse(format!("policy `{name}` has a condition of CEL"));
        }
        let named = |error: Refused| error.within(&format!("policy `{name}`"));
        Ok(Policy {
            name: name.clone(),
            permissions: policy.permissions.iter().map(permission).collect::<Result<_>>().map_err(named)?,
            principals: policy.principals.iter().map(principal).collect::<Result<_>>().map_err(named)?,
        })
    };
    Ok(Some(Rules { deny, policies: message.policies.iter().map(policy).collect::<Result<_>>()? }))
}

fn permission(message: &xrbac::Permission) -> Result<Condition> {
    use permission::Rule;
    Ok(match message.rule.as_ref() {
        Some(Rule::AndRules(set)) => Condition::All(set.rules.iter().map(permission).collect::<Result<_>>()?),
        Some(Rule::OrRules(set)) => Condition::Any(set.rules.iter().map(permission).collect::<Result<_>>()?),
        Some(Rule::NotRule(rule)) => Condition::Not(Box::new(permission(rule)?)),
        Some(Rule::Any(any)) => Condition::Always(*any),
        Some(Rule::Header(header)) => Condition::Header(header_match(header)?),
        Some(Rule::UrlPath(path)) => self::path(path)?,
        Some(Rule::DestinationIp(range)) => Condition::Destination(self::range(range)?),
        Some(Rule::DestinationPort(port)) => Condition::Ports(*port..port.saturating_add(1)),
        Some(Rule::DestinationPortRange(ports)) => {
            let number = |number: i32| u32::try_from(number.max(0)).unwrap_or_default();
            Condition::Ports(number(ports.start)..number(ports.end))
        }
        Some(Rule::RequestedServerName(name)) => Condition::ServerName(text(name)?),
        _ => return refuse("this permission is not supported"),
    })
}

fn principal(message: &xrbac::Principal) -> Result<Condition> {
    use principal::Identifier;
    Ok(match message.identifier.as_ref() {
        Some(Identifier::AndIds(set)) => Condition::All(set.ids.iter().map(principal).collect::<Result<_>>()?),
        Some(Identifier::OrIds(set)) => Condition::Any(set.ids.iter().map(principal).collect::<Result<_>>()?),
        Some(Identifier::NotId(id)) => Condition::Not(Box::new(principal(id)?)),
        Some(Identifier::Any(any)) => Condition::Always(*any),
        Some(Identifier::Authenticated(who)) => Condition::Peer(who.principal_name.as_ref().map(text).transpose()?),
        // Where the client's address comes by the PROXY protocol, it is the only one that is known here.
        Some(Identifier::SourceIp(range) | Identifier::DirectRemoteIp(range)) => Condition::Source(self::range(range)?),
        Some(Identifier::Header(header)) => Condition::Header(header_match(header)?),
        Some(Identifier::UrlPath(path)) => self::path(path)?,
        _ => return refuse("this principal is not supported"),
    })
}

fn path(message: &PathMatcher) -> Result<Condition> {
    match &message.rule {
        Some(path_matcher::Rule::Path(path)) => Ok(Condition::Path(text(path)?)),
        None => refuse("a path matcher is empty"),
    }
}

fn range(message: &CidrRange) -> Result<Range> {
    let bad = || Refused::new(format!("`{}` is not an address range", message.address_prefix));
    let address: IpAddr = message.address_prefix.parse().map_err(|_| bad())?;
    // Envoy's default length is 0.
    let bits = u8::try_from(message.prefix_len.unwrap_or(0)).map_err(|_| bad())?;
    Range::new(address, bits).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_an_error_and_never_nothing() {
        let of = |action, permission: Option<permission::Rule>, principal: Option<principal::Identifier>| {
            let policy = xrbac::Policy {
                permissions: vec![xrbac::Permission { rule: permission }],
                principals: vec![xrbac::Principal { identifier: principal }],
                ..Default::default()
            };
            xrbac::Rbac { action, policies: [("one".to_owned(), policy)].into(), ..Default::default() }
        };
        let (any, anybody) = (Some(permission::Rule::Any(true)), Some(principal::Identifier::Any(true)));
        let compiled =
            |message: &xrbac::Rbac| rules(Some(message), false).map(|rules| rules.map(|r| (r.deny, r.policies.len())));
        assert_eq!(compiled(&of(0, any.clone(), anybody.clone())), Ok(Some((false, 1))));
        assert_eq!(compiled(&of(1, any.clone(), anybody.clone())), Ok(Some((true, 1))));
        assert_eq!(compiled(&of(2, any.clone(), anybody.clone())), Ok(None), "logging stops nobody");
        assert!(rules(None, false).unwrap().is_none());
        let range = CidrRange { address_prefix: "10.0.0.0".to_owned(), prefix_len: Some(33) };
        let bad = [
            of(0, None, anybody.clone()),
            of(0, any.clone(), None),
            of(0, any.clone(), Some(principal::Identifier::RemoteIp(range.clone()))),
            of(0, any.clone(), Some(principal::Identifier::DirectRemoteIp(range))),
            of(0, Some(permission::Rule::UriTemplate(Default::default())), anybody.clone()),
            of(7, any.clone(), anybody.clone()),
        ];
        for message in &bad {
            assert!(compiled(message).is_err(), "{message:?}");
        }
        assert!(rules(Some(&of(0, any, anybody)), true).is_err());
    }
}
