//! AuthorizationPolicies as Envoy's RBAC filters (Istio 1.30, `pilot/pkg/security/authz`).

use std::collections::BTreeMap;

use stolos_xds::envoy::config::core::v3::CidrRange;
use stolos_xds::envoy::config::listener::v3::Filter;
use stolos_xds::envoy::config::rbac::v3::{self as rbac, Permission, Principal, permission, principal};
use stolos_xds::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use stolos_xds::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use stolos_xds::envoy::extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter};
use stolos_xds::envoy::extensions::filters::network::rbac::v3 as network_rbac;
use stolos_xds::envoy::r#type::matcher::v3::{
    PathMatcher, RegexMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern,
};
use stolos_xds::pack;

use super::parts::filter;
use crate::model::{ProxyInfo, Settings, World};
use crate::policy::authorization::{Action, Attribute, Authorization, Condition, Rule, block};

/// Who may do what to one workload: first what is denied, then what is allowed.
pub(super) struct Access<'a> {
    settings: &'a Settings,
    policies: Vec<&'a Authorization>,
    /// A security object that cannot be obeyed: nobody may do anything.
    closed: bool,
    /// Connections come with PROXY headers, and the address of the socket is not the client's.
    proxied: bool,
}

impl<'a> Access<'a> {
    pub(super) fn of(world: &'a World, proxy: &ProxyInfo) -> Self {
        let (root, namespace, labels) = (&world.settings.root_namespace, &proxy.namespace, &proxy.labels);
        Self {
            settings: &world.settings,
            policies: world.policies.authorizations(root, namespace, labels),
            closed: world.policies.is_closed(root, namespace, labels),
            proxied: proxy.proxy_protocol,
        }
    }

    /// For requests.
    pub(super) fn http(&self) -> Vec<HttpFilter> {
        let filter = |rules| HttpFilter {
            name: "envoy.filters.http.rbac".to_owned(),
            config_type: Some(http_filter::ConfigType::TypedConfig(pack(&http_rbac::Rbac {
                rules: Some(rules),
                ..Default::default()
            }))),
            ..Default::default()
        };
        self.rules(false).into_iter().map(filter).collect()
    }

    /// For connections as a whole.
    pub(super) fn network(&self) -> Vec<Filter> {
        let config = |rules| {
            pack(&network_rbac::Rbac { rules: Some(rules), stat_prefix: "tcp.".to_owned(), ..Default::default() })
        };
        self.rules(true).into_iter().map(|rules| filter("envoy.filters.network.rbac", config(rules))).collect()
    }

    fn rules(&self, tcp: bool) -> Vec<rbac::Rbac> {
        if self.closed {
            return vec![rbac::Rbac { action: rbac::rbac::Action::Allow.into(), ..Default::default() }];
        }
        let of = |action: Action| {
            let mut of_action = self.policies.iter().filter(|policy| policy.action == action).peekable();
            of_action.peek()?;
            let mut policies = BTreeMap::new();
            for policy in of_action {
                for (at, rule) in policy.rules.iter().enumerate() {
                    let name = format!("ns[{}]-policy[{}]-rule[{at}]", policy.namespace, policy.name);
                    policies.extend(self.rule(rule, tcp, action).map(|policy| (name, policy)));
                }
            }
            let action = match action {
                Action::Allow => rbac::rbac::Action::Allow,
                Action::Deny => rbac::rbac::Action::Deny,
            };
            // Allowing by no policy at all allows nothing, which is what a policy without rules means.
            Some(rbac::Rbac { action: action.into(), policies, ..Default::default() })
        };
        [of(Action::Deny), of(Action::Allow)].into_iter().flatten().collect()
    }

    /// None when it can match nothing.
    ///
    /// Of a connection that is not looked into there is no request: a rule that allows some requests then allows
    /// nothing, and one that denies some denies everything else it says (Istio's way: rather too little than too much).
    fn rule(&self, rule: &Rule, tcp: bool, action: Action) -> Option<rbac::Policy> {
        let all = [Vec::new()];
        let (sources, operations): (Vec<_>, Vec<_>) = rule.when.iter().partition(|when| when.of.is_of_source());
        let mut policy = rbac::Policy::default();
        let conditions = |own: &[Condition], when: &[&Condition]| -> Option<Vec<Condition>> {
            let mut kept = Vec::new();
            for condition in own.iter().chain(when.iter().copied()) {
                match (tcp && condition.of.is_of_requests(), action) {
                    (false, _) => kept.push(condition.clone()),
                    (true, Action::Deny) => {}
                    (true, Action::Allow) => return None,
                }
            }
            Some(kept)
        };
        let from = if rule.from.is_empty() { &all[..] } else { &rule.from };
        let to = if rule.to.is_empty() { &all[..] } else { &rule.to };
        for own in from {
            let kept = conditions(own, &sources)?;
            let ids = kept.iter().flat_map(|condition| self.principals(condition)).collect::<Vec<_>>();
            policy.principals.push(Principal { identifier: Some(all_of_principals(ids)) });
        }
        for own in to {
            let kept = conditions(own, &operations)?;
            let rules = kept.iter().flat_map(|condition| self.permissions(condition)).collect::<Vec<_>>();
            policy.permissions.push(Permission { rule: Some(all_of_permissions(rules)) });
        }
        Some(policy)
    }

    fn principals(&self, condition: &Condition) -> Vec<Principal> {
        let any_of = |values: &[String]| {
            let ids = values.iter().flat_map(|value| self.principal(&condition.of, value));
            let ids = ids.map(|identifier| Principal { identifier: Some(identifier) }).collect();
            Principal { identifier: Some(principal::Identifier::OrIds(principal::Set { ids })) }
        };
        let mut both = Vec::new();
        if !condition.values.is_empty() {
            both.push(any_of(&condition.values));
        }
        if !condition.not_values.is_empty() {
            let none = principal::Identifier::NotId(Box::new(any_of(&condition.not_values)));
            both.push(Principal { identifier: Some(none) });
        }
        both
    }

    fn principal(&self, of: &Attribute, value: &str) -> Vec<principal::Identifier> {
        let named = |name: StringMatcher| {
            principal::Identifier::Authenticated(principal::Authenticated { principal_name: Some(name) })
        };
        match of {
            Attribute::Principal => {
                self.in_every_domain(value).iter().map(|value| named(text(value, "spiffe://"))).collect()
            }
            Attribute::Namespace => {
                let pattern = escape(value);
                vec![named(matcher(MatchPattern::SafeRegex(expression(format!(".*/ns/{pattern}/.*")))))]
            }
            Attribute::ServiceAccount => {
                let (namespace, account) = value.split_once('/').unwrap_or(("", value));
                let (namespace, account) = (escape(namespace), escape(account));
                let pattern = format!("spiffe://[^/]+/ns/{namespace}/sa/{account}");
                vec![named(matcher(MatchPattern::SafeRegex(expression(pattern))))]
            }
            Attribute::Ip => cidr(value)
                .map(|range| {
                    #[expect(deprecated, reason = "the one that honours the PROXY protocol, and only that")]
                    if self.proxied {
                        principal::Identifier::SourceIp(range)
                    } else {
                        principal::Identifier::DirectRemoteIp(range)
                    }
                })
                .into_iter()
                .collect(),
            Attribute::Header(name) => vec![principal::Identifier::Header(header(name, value, false))],
            _ => Vec::new(),
        }
    }

    /// An identity under every name of the mesh's trust domain, where it is of one of them.
    fn in_every_domain(&self, value: &str) -> Vec<String> {
        let Some((domain, rest)) = value.split_once('/') else { return vec![value.to_owned()] };
        let own: Vec<_> = self.settings.trust_domains().collect();
        // Istio takes `cluster.local` for the mesh's own, whatever that is called.
        if !(own.contains(&domain) || domain == stolos_k8s::istio::DEFAULT_DOMAIN) {
            return vec![value.to_owned()];
        }
        own.into_iter().map(|domain| format!("{domain}/{rest}")).collect()
    }

    fn permissions(&self, condition: &Condition) -> Vec<Permission> {
        let any_of = |values: &[String]| {
            let rules = values.iter().filter_map(|value| permission(&condition.of, value));
            let rules = rules.map(|rule| Permission { rule: Some(rule) }).collect();
            Permission { rule: Some(permission::Rule::OrRules(permission::Set { rules })) }
        };
        let mut both = Vec::new();
        if !condition.values.is_empty() {
            both.push(any_of(&condition.values));
        }
        if !condition.not_values.is_empty() {
            let none = permission::Rule::NotRule(Box::new(any_of(&condition.not_values)));
            both.push(Permission { rule: Some(none) });
        }
        both
    }
}

fn permission(of: &Attribute, value: &str) -> Option<permission::Rule> {
    Some(match of {
        Attribute::Host => permission::Rule::Header(header(":authority", value, true)),
        Attribute::Method => permission::Rule::Header(header(":method", value, false)),
        Attribute::Path => {
            permission::Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(text(value, ""))) })
        }
        Attribute::Port => permission::Rule::DestinationPort(value.parse().ok()?),
        Attribute::DestinationIp => permission::Rule::DestinationIp(cidr(value)?),
        Attribute::Sni => permission::Rule::RequestedServerName(text(value, "")),
        _ => return None,
    })
}

fn all_of_principals(ids: Vec<Principal>) -> principal::Identifier {
    if ids.is_empty() {
        principal::Identifier::Any(true)
    } else {
        principal::Identifier::AndIds(principal::Set { ids })
    }
}

fn all_of_permissions(rules: Vec<Permission>) -> permission::Rule {
    if rules.is_empty() { permission::Rule::Any(true) } else { permission::Rule::AndRules(permission::Set { rules }) }
}

fn matcher(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

fn expression(regex: String) -> RegexMatcher {
    RegexMatcher { regex, ..Default::default() }
}

/// `*` at either end stands for anything; alone, for anything that is there.
fn text(value: &str, before: &str) -> StringMatcher {
    let pattern = match (value.strip_prefix('*'), value.strip_suffix('*')) {
        _ if value == "*" => MatchPattern::SafeRegex(expression(".+".to_owned())),
        (Some(end), _) if before.is_empty() => MatchPattern::Suffix(end.to_owned()),
        (Some(end), _) => MatchPattern::SafeRegex(expression(format!("{before}.*{}", escape(end)))),
        (None, Some(start)) => MatchPattern::Prefix(format!("{before}{start}")),
        (None, None) => MatchPattern::Exact(format!("{before}{value}")),
    };
    matcher(pattern)
}

fn header(name: &str, value: &str, ignore_case: bool) -> HeaderMatcher {
    let specifier = if value == "*" {
        HeaderMatchSpecifier::PresentMatch(true)
    } else {
        HeaderMatchSpecifier::StringMatch(StringMatcher { ignore_case, ..text(value, "") })
    };
    HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(specifier), ..Default::default() }
}

fn cidr(value: &str) -> Option<CidrRange> {
    let (address, length) = block(value)?;
    Some(CidrRange { address_prefix: address.to_string(), prefix_len: Some(length) })
}

/// A text as a pattern, in which `*` stands for anything.
fn escape(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '*' => pattern += ".*",
            '.' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '^' | '$' | '|' | '\\' => {
                pattern.push('\\');
                pattern.push(c);
            }
            c => pattern.push(c),
        }
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Object, Policies};
    use crate::translate::fixture;
    use serde_json::{Value, json};

    fn text_of(matcher: &StringMatcher) -> String {
        let text = match matcher.match_pattern.as_ref().unwrap() {
            MatchPattern::Exact(text) => text.clone(),
            MatchPattern::Prefix(text) => format!("{text}…"),
            MatchPattern::Suffix(text) => format!("…{text}"),
            MatchPattern::SafeRegex(regex) => format!("~{}", regex.regex),
            other => format!("{other:?}"),
        };
        if matcher.ignore_case { format!("{text} (any case)") } else { text }
    }

    fn header_of(header: &HeaderMatcher) -> String {
        match header.header_match_specifier.as_ref().unwrap() {
            HeaderMatchSpecifier::PresentMatch(true) => format!("{} is there", header.name),
            HeaderMatchSpecifier::StringMatch(matcher) => format!("{} {}", header.name, text_of(matcher)),
            other => format!("{other:?}"),
        }
    }

    fn range_of(range: &CidrRange) -> String {
        format!("{}/{}", range.address_prefix, range.prefix_len.unwrap())
    }

    fn joined(all: Vec<String>, by: &str) -> String {
        if all.len() == 1 { all[0].clone() } else { format!("({})", all.join(by)) }
    }

    fn who(principal: &Principal) -> String {
        use principal::Identifier;
        match principal.identifier.as_ref().unwrap() {
            Identifier::Any(true) => "anybody".to_owned(),
            Identifier::AndIds(set) => joined(set.ids.iter().map(who).collect(), " and "),
            Identifier::OrIds(set) => joined(set.ids.iter().map(who).collect(), " or "),
            Identifier::NotId(id) => format!("not {}", who(id)),
            Identifier::Authenticated(named) => text_of(named.principal_name.as_ref().unwrap()),
            Identifier::DirectRemoteIp(range) => format!("from {}", range_of(range)),
            Identifier::Header(header) => header_of(header),
            other => format!("{other:?}"),
        }
    }

    fn what(permission: &Permission) -> String {
        use permission::Rule;
        match permission.rule.as_ref().unwrap() {
            Rule::Any(true) => "anything".to_owned(),
            Rule::AndRules(set) => joined(set.rules.iter().map(what).collect(), " and "),
            Rule::OrRules(set) => joined(set.rules.iter().map(what).collect(), " or "),
            Rule::NotRule(rule) => format!("not {}", what(rule)),
            Rule::Header(header) => header_of(header),
            Rule::UrlPath(path) => {
                let Some(path_matcher::Rule::Path(path)) = &path.rule else { panic!("{path:?}") };
                format!("path {}", text_of(path))
            }
            Rule::DestinationPort(port) => format!("port {port}"),
            Rule::DestinationIp(range) => format!("to {}", range_of(range)),
            Rule::RequestedServerName(name) => format!("SNI {}", text_of(name)),
            other => format!("{other:?}"),
        }
    }

    /// The filters of a workload `app=web` of namespace `shop`, a line per policy.
    fn lines(policies: Vec<(&str, &str, Value)>, tcp: bool) -> String {
        let mut world = fixture::world();
        let object = |(at, (namespace, name, spec)): (usize, (&str, &str, Value))| Object {
            kind: "AuthorizationPolicy".into(),
            namespace: namespace.into(),
            name: name.into(),
            uid: String::new(),
            generation: 1,
            created: i64::try_from(at).unwrap(),
            spec,
        };
        let policies = Policies::read(policies.into_iter().enumerate().map(object), "cluster.local");
        assert_eq!(policies.findings, []);
        fixture::set_policies(&mut world, policies);
        let proxy = fixture::proxy("c1");
        let access = Access::of(&world, &proxy);
        let mut lines = Vec::new();
        for rules in access.rules(tcp) {
            let action = if rules.action == 0 { "allow" } else { "deny" };
            if rules.policies.is_empty() {
                lines.push(format!("{action} nothing"));
            }
            for (name, policy) in &rules.policies {
                let who = joined(policy.principals.iter().map(who).collect(), " | ");
                let what = joined(policy.permissions.iter().map(what).collect(), " | ");
                lines.push(format!("{action} {who}: {what}  # {name}"));
            }
        }
        lines.join("\n")
    }

    fn everything() -> Vec<(&'static str, &'static str, Value)> {
        vec![
            (
                "shop",
                "allow",
                json!({"selector": {"matchLabels": {"app": "web"}}, "rules": [
                    {"from": [
                        {"source": {"principals": ["cluster.local/ns/sample/sa/sleep", "*/sa/admin", "other.org/*"], "notNamespaces": ["dev*"]}},
                        {"source": {"ipBlocks": ["10.1.0.0/16", "192.0.2.1"], "serviceAccounts": ["web", "shop-2/web"]}}],
                     "to": [
                        {"operation": {"methods": ["GET", "*"], "paths": ["/a", "/b/*", "*.html"], "notPaths": ["/b/secret"]}},
                        {"operation": {"hosts": ["*.Example.com"], "ports": ["8080"]}}],
                     "when": [
                        {"key": "request.headers[X-Team]", "values": ["blue*"], "notValues": ["blueish"]},
                        {"key": "destination.ip", "values": ["10.0.0.0/8"]},
                        {"key": "connection.sni", "notValues": ["*.local"]}]},
                    {"from": [{"source": {"namespaces": ["sample"]}}]}]}),
            ),
            (
                "istio-system",
                "deny",
                json!({"action": "DENY", "rules": [
                    {"from": [{"source": {"notPrincipals": ["*"]}}]},
                    {"to": [{"operation": {"paths": ["/admin*"], "ports": ["8080"]}}]}]}),
            ),
            ("shop", "others", json!({"selector": {"matchLabels": {"app": "other"}}})),
            ("elsewhere", "nothing", json!({})),
        ]
    }

    #[test]
    fn requests_are_denied_first_and_then_allowed() {
        insta::assert_snapshot!(lines(everything(), false), @r"
        deny not ~.+: anything  # ns[istio-system]-policy[deny]-rule[0]
        deny anybody: (port 8080 and path /admin…)  # ns[istio-system]-policy[deny]-rule[1]
        allow (((spiffe://cluster.local/ns/sample/sa/sleep or ~spiffe://.*/sa/admin or spiffe://other.org/…) and not ~.*/ns/dev.*/.* and x-team blue… and not x-team blueish) | ((~spiffe://[^/]+/ns/shop/sa/web or ~spiffe://[^/]+/ns/shop-2/sa/web) and (from 10.1.0.0/16 or from 192.0.2.1/32) and x-team blue… and not x-team blueish)): (((:method GET or :method is there) and (path /a or path /b/… or path ….html) and not path /b/secret and to 10.0.0.0/8 and not SNI ….local) | (:authority ….Example.com (any case) and port 8080 and to 10.0.0.0/8 and not SNI ….local))  # ns[shop]-policy[allow]-rule[0]
        allow ~.*/ns/sample/.*: anything  # ns[shop]-policy[allow]-rule[1]
        ");
    }

    #[test]
    fn of_connections_too_little_is_allowed_and_too_much_denied() {
        insta::assert_snapshot!(lines(everything(), true), @r"
        deny not ~.+: anything  # ns[istio-system]-policy[deny]-rule[0]
        deny anybody: port 8080  # ns[istio-system]-policy[deny]-rule[1]
        allow ~.*/ns/sample/.*: anything  # ns[shop]-policy[allow]-rule[1]
        ");
    }

    #[test]
    fn an_empty_policy_allows_nothing_and_an_empty_rule_everything() {
        let cases = [
            ("no policy", vec![], ""),
            ("an empty spec", vec![("shop", "a", json!({}))], "allow nothing"),
            (
                "an empty rule",
                vec![("shop", "a", json!({"rules": [{}]}))],
                "allow anybody: anything  # ns[shop]-policy[a]-rule[0]",
            ),
            ("denying without rules", vec![("shop", "a", json!({"action": "DENY"}))], "deny nothing"),
            (
                "denying everything",
                vec![("istio-system", "a", json!({"action": "DENY", "rules": [{}]}))],
                "deny anybody: anything  # ns[istio-system]-policy[a]-rule[0]",
            ),
            (
                "one that allows beside one that allows nothing",
                vec![
                    ("istio-system", "a", json!({})),
                    ("shop", "b", json!({"rules": [{"to": [{"operation": {"ports": ["8080"]}}]}]})),
                ],
                "allow anybody: port 8080  # ns[shop]-policy[b]-rule[0]",
            ),
        ];
        for (what, policies, expected) in cases {
            for tcp in [false, true] {
                assert_eq!(lines(policies.clone(), tcp), expected, "{what}");
            }
        }
    }
}
