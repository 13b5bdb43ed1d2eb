//! Who somebody is and what they may do: client certificates, service account tokens, roles and reviews.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, Response, header};
use jsonwebtoken::{Algorithm, Header, Validation};
use serde_json::{Value, json};
use stolos_k8s::meta;
use stolos_serve::listen::Peer;

pub(crate) use crate::keys::Keys;

use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::registry::Resource;
use crate::route::{self, Ask, Body, Target};

/// Who sends a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The UID, for service accounts.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// Anything else that is known, such as the pod a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The server itself.
    #[must_use]
    pub(crate) fn internal() -> Self {
        Self { name: "system:apiserver".into(), groups: vec!["system:masters".into()], ..Self::default() }
    }

    fn anonymous() -> Self {
        Self { name: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()], ..Self::default() }
    }

    fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
    }
}

/// Where a request comes from.
#[derive(Debug, Clone)]
pub(crate) enum Caller {
    /// From inside the process, on behalf of somebody.
    Inside(User),
    /// Over a connection.
    Outside(Peer),
}

/// Finds out who sends a request.
///
/// # Errors
///
/// 401 when a token or certificate is shown that is not good.
pub(crate) fn authenticate(api: &Api, caller: &Caller, headers: &HeaderMap) -> Result<User> {
    let user = match caller {
        Caller::Inside(user) => user.clone(),
        Caller::Outside(peer) => from_outside(api, peer, headers)?,
    };
    impersonate(api, user, headers)
}

fn from_outside(api: &Api, peer: &Peer, headers: &HeaderMap) -> Result<User> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(token) = authorization.and_then(|value| value.strip_prefix("Bearer ")) {
        let (user, _) = check_token(api, token.trim(), &api.settings.audiences).map_err(|why| {
            tracing::debug!(why, "token refused");
            Failure::unauthorized()
        })?;
        return Ok(user);
    }
    let Some(leaf) = peer.certificates.first() else { return Ok(User::anonymous()) };
    // The TLS handshake has verified the chain; here it is only read.
    let (_, leaf) = x509_parser::parse_x509_certificate(leaf).map_err(|_| Failure::unauthorized())?;
    let subject = leaf.subject();
    let names = subject.iter_common_name().filter_map(|name| name.as_str().ok());
    let name = names.last().ok_or_else(Failure::unauthorized)?.to_owned();
    let organizations = subject.iter_organization().filter_map(|name| name.as_str().ok());
    let mut groups: Vec<String> = organizations.map(str::to_owned).collect();
    groups.push("system:authenticated".into());
    Ok(User { name, groups, ..User::default() })
}

fn impersonate(api: &Api, user: User, headers: &HeaderMap) -> Result<User> {
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    let Some(name) = headers.get("impersonate-user").map(text) else { return Ok(user) };
    let mut groups: Vec<String> = headers.get_all("impersonate-group").iter().map(text).collect();
    let ask = |plural: &str, name: &str| {
        let target = Target { plural: plural.into(), name: name.into(), version: "v1".into(), ..Target::default() };
        authorize(api, &user, "impersonate", &target)
    };
    match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, account)) => {
            let target = Target {
                plural: "serviceaccounts".into(),
                namespace: namespace.into(),
                name: account.into(),
                version: "v1".into(),
                ..Target::default()
            };
            authorize(api, &user, "impersonate", &target)?;
            groups.push("system:serviceaccounts".into());
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
        None => ask("users", &name)?,
    }
    for group in headers.get_all("impersonate-group").iter().map(text) {
        ask("groups", &group)?;
    }
    let everyone = if name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !groups.iter().any(|group| group == everyone) {
        groups.push(everyone.into());
    }
    Ok(User { name, groups, ..User::default() })
}

// Tokens.

/// What a token is for.
struct Claim<'a> {
    namespace: &'a str,
    account: &'a str,
    account_uid: &'a str,
    audiences: Vec<String>,
    bound: Option<(&'a str, &'a str, &'a str)>,
    secret: Option<(&'a str, &'a str)>,
    seconds: Option<i64>,
    node: Option<(String, String)>,
}

fn sign(api: &Api, claim: &Claim<'_>) -> Result<(String, Option<i64>)> {
    let now = jiff::Timestamp::now().as_second();
    let until = claim.seconds.map(|seconds| now + seconds);
    let mut kubernetes = json!({
        "namespace": claim.namespace,
        "serviceaccount": {"name": claim.account, "uid": claim.account_uid},
    });
    if let Some((kind, name, uid)) = claim.bound {
        kubernetes[kind] = json!({"name": name, "uid": uid});
    }
    if let Some((name, uid)) = &claim.node {
        kubernetes["node"] = json!({"name": name, "uid": uid});
    }
    if let Some((name, uid)) = claim.secret {
        kubernetes["secret"] = json!({"name": name, "uid": uid});
    }
    let mut claims = json!({
        "iss": api.settings.issuer,
        "sub": format!("system:serviceaccount:{}:{}", claim.namespace, claim.account),
        "aud": claim.audiences,
        "iat": now,
        "nbf": now,
        "jti": uuid::Uuid::new_v4().to_string(),
        "kubernetes.io": kubernetes,
    });
    if let Some(until) = until {
        claims["exp"] = json!(until);
    }
    let mut header = Header::new(Algorithm::ES256);
    header.kid = Some(api.keys.token_key_id.clone());
    let token = jsonwebtoken::encode(&header, &claims, &api.keys.token_encoding).map_err(Failure::internal)?;
    Ok((token, until))
}

/// The token for a Secret of type `kubernetes.io/service-account-token`: it lives as long as the Secret.
///
/// # Errors
///
/// When it cannot be signed.
pub(crate) fn secret_token(api: &Api, account: &Value, secret: &Value) -> Result<String> {
    let claim = Claim {
        namespace: meta::namespace(account),
        account: meta::name(account),
        account_uid: meta::uid(account),
        audiences: api.settings.audiences.clone(),
        bound: None,
        secret: Some((meta::name(secret), meta::uid(secret))),
        seconds: None,
        node: None,
    };
    Ok(sign(api, &claim)?.0)
}

/// Answers `serviceaccounts/token`.
///
/// # Errors
///
/// When the account or the object to bind to is not there.
pub(crate) fn token_request(api: &Arc<Api>, ask: &Ask, request: Value) -> Result<Response<Body>> {
    let (namespace, name) = (&ask.target.namespace, &ask.target.name);
    let account = api.state.get("serviceaccounts", namespace, name);
    let account = account.ok_or_else(|| Failure::not_found("serviceaccounts", name))?;
    let spec = &request["spec"];
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let mut audiences = texts(&spec["audiences"]);
    if audiences.is_empty() {
        audiences.clone_from(&api.settings.audiences);
    }
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(3600);
    if !(600..=1 << 32).contains(&seconds) {
        let cause = crate::failure::Cause::invalid(
            "spec.expirationSeconds",
            &json!(seconds),
            "may not specify a duration less than 10 minutes",
        );
        return Err(Failure::invalid("TokenRequest", "authentication.k8s.io", "", &[cause]));
    }
    let bound = &spec["boundObjectRef"];
    let mut node = None;
    let bound_to = if bound.is_object() {
        let (kind, resource) = match bound["kind"].as_str() {
            Some("Pod") => ("pod", "pods"),
            Some("Secret") => ("secret", "secrets"),
            other => return Err(Failure::bad_request(format!("cannot bind token for kind {other:?}"))),
        };
        let bound_name = bound["name"].as_str().unwrap_or_default();
        let found = api.state.get(resource, namespace, bound_name);
        let found = found.ok_or_else(|| Failure::not_found(resource, bound_name))?;
        let wanted = bound["uid"].as_str().unwrap_or_default();
        if !wanted.is_empty() && wanted != meta::uid(&found.value) {
            let why = format!("the UID in the bound object reference ({wanted}) does not match the UID in record");
            return Err(Failure::conflict(resource, bound_name, &why));
        }
        if kind == "pod" && found.value["spec"]["serviceAccountName"] != name.as_str() {
            return Err(Failure::bad_request(format!("cannot bind token: pod {bound_name:?} runs as another account")));
        }
        if let Some(host) = found.value["spec"]["nodeName"].as_str()
            && let Some(host) = api.state.get("nodes", "", host)
        {
            node = Some((meta::name(&host.value).to_owned(), meta::uid(&host.value).to_owned()));
        }
        Some((kind, bound_name.to_owned(), meta::uid(&found.value).to_owned()))
    } else {
        None
    };
    let claim = Claim {
        namespace,
        account: name,
        account_uid: meta::uid(&account.value),
        audiences: audiences.clone(),
        bound: bound_to.as_ref().map(|(kind, name, uid)| (*kind, name.as_str(), uid.as_str())),
        secret: None,
        seconds: Some(seconds),
        node,
    };
    let (token, until) = sign(api, &claim)?;
    let until = jiff::Timestamp::from_second(until.unwrap_or_default()).unwrap_or_default();
    let mut answer = request;
    answer["kind"] = json!("TokenRequest");
    answer["apiVersion"] = json!("authentication.k8s.io/v1");
    answer["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": api.now()});
    answer["spec"]["audiences"] = json!(audiences);
    answer["spec"]["expirationSeconds"] = json!(seconds);
    answer["status"] = json!({"token": token, "expirationTimestamp": crate::verb::seconds(until)});
    Ok(route::json_value(201, &answer))
}

/// The user a token stands for and the audiences it shares with `accepted`.
fn check_token(api: &Api, token: &str, accepted: &[String]) -> Result<(User, Vec<String>), String> {
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_required_spec_claims(&["iss", "sub", "aud"]);
    validation.set_issuer(&[&api.settings.issuer]);
    validation.set_audience(accepted);
    validation.validate_nbf = true;
    validation.leeway = 10;
    let decoded = jsonwebtoken::decode::<Value>(token, &api.keys.token_decoding, &validation);
    let claims = decoded.map_err(|error| error.to_string())?.claims;
    let kubernetes = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = text(&kubernetes["namespace"]);
    let (account, uid) = (text(&kubernetes["serviceaccount"]["name"]), text(&kubernetes["serviceaccount"]["uid"]));
    let is_alive = |resource: &str, name: &str, uid: &str| {
        api.state.get(resource, &namespace, name).filter(|object| meta::uid(&object.value) == uid)
    };
    is_alive("serviceaccounts", &account, &uid).ok_or("the service account is gone")?;
    let mut extra = BTreeMap::new();
    if let Some(id) = claims["jti"].as_str() {
        extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={id}")]);
    }
    for (claim, resource, label) in [("pod", "pods", "pod"), ("secret", "secrets", "")] {
        let bound = &kubernetes[claim];
        if !bound.is_object() {
            continue;
        }
        let (name, uid) = (text(&bound["name"]), text(&bound["uid"]));
        let object = is_alive(resource, &name, &uid).ok_or_else(|| format!("the {claim} it is bound to is gone"))?;
        if claim == "pod" && over_for_good(&object.value) {
            return Err("the pod it is bound to is gone".into());
        }
        if claim == "secret" && claims["exp"].is_null() {
            use base64::Engine as _;
            let data = object.value["data"]["token"].as_str().unwrap_or_default();
            let kept = base64::engine::general_purpose::STANDARD.decode(data).unwrap_or_default();
            if kept != token.as_bytes() {
                return Err("the Secret holds another token".into());
            }
        }
        if !label.is_empty() {
            extra.insert(format!("authentication.kubernetes.io/{label}-name"), vec![name]);
            extra.insert(format!("authentication.kubernetes.io/{label}-uid"), vec![uid]);
        }
    }
    if let Some(node) = kubernetes["node"]["name"].as_str() {
        extra.insert("authentication.kubernetes.io/node-name".into(), vec![node.to_owned()]);
    }
    let audiences = match &claims["aud"] {
        Value::String(one) => vec![one.clone()],
        many => many.as_array().into_iter().flatten().map(text).collect(),
    };
    let shared = audiences.into_iter().filter(|audience| accepted.contains(audience)).collect();
    let groups = vec![
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".into(),
    ];
    let user = User { name: format!("system:serviceaccount:{namespace}:{account}"), uid, groups, extra };
    Ok((user, shared))
}

/// Whether a pod has been going for longer than a minute past its time: its tokens end then.
fn over_for_good(pod: &Value) -> bool {
    let at = meta::deletion_timestamp(pod).and_then(|at| at.parse::<jiff::Timestamp>().ok());
    at.is_some_and(|at| jiff::Timestamp::now() > at + jiff::SignedDuration::from_secs(60))
}

// Permissions.

/// May `user` do `verb` to `target`?
///
/// # Errors
///
/// 403 if not.
pub(crate) fn authorize(api: &Api, user: &User, verb: &str, target: &Target) -> Result<()> {
    if user.is_master() || may(api, user, &Attributes::of(verb, target)) {
        return Ok(());
    }
    let resource =
        if target.sub.is_empty() { target.plural.clone() } else { format!("{}/{}", target.plural, target.sub) };
    let full = stolos_k8s::kind::group_resource(&target.group, &target.plural);
    let scope = if target.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", target.namespace)
    };
    let why =
        format!("User {:?} cannot {verb} resource {resource:?} in API group {:?} {scope}", user.name, target.group);
    Err(Failure::forbidden(&full, &target.name, &why))
}

/// May `user` do `verb` to a path that is no resource?
///
/// # Errors
///
/// 403 if not.
pub(crate) fn authorize_path(api: &Api, user: &User, verb: &str, path: &str) -> Result<()> {
    let attributes = Attributes { verb, path, ..Attributes::default() };
    if user.is_master() || may(api, user, &attributes) {
        return Ok(());
    }
    let message = format!("forbidden: User {:?} cannot {verb} path {path:?}", user.name);
    Err(Failure::other(403, "Forbidden", message).with_details(json!({})))
}

#[derive(Debug, Default, Clone, Copy)]
struct Attributes<'a> {
    verb: &'a str,
    group: &'a str,
    resource: &'a str,
    sub: &'a str,
    name: &'a str,
    namespace: &'a str,
    path: &'a str,
}

impl<'a> Attributes<'a> {
    fn of(verb: &'a str, target: &'a Target) -> Self {
        Self {
            verb,
            group: &target.group,
            resource: &target.plural,
            sub: &target.sub,
            name: &target.name,
            namespace: &target.namespace,
            path: "",
        }
    }
}

fn may(api: &Api, user: &User, wanted: &Attributes<'_>) -> bool {
    let mut found = false;
    for_each_rule(api, user, wanted.namespace, |rule| {
        found = found || covers(rule, wanted);
    });
    found
}

/// Every rule that holds for `user` in `namespace`.
fn for_each_rule(api: &Api, user: &User, namespace: &str, mut each: impl FnMut(&Value)) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let mut visit = |binding: &Value, namespace: &str| {
        if !binding["subjects"].as_array().into_iter().flatten().any(|subject| is_subject(subject, user, namespace)) {
            return;
        }
        let name = binding["roleRef"]["name"].as_str().unwrap_or_default();
        let role = match binding["roleRef"]["kind"].as_str() {
            Some("ClusterRole") => api.state.get(&format!("clusterroles.{GROUP}"), "", name),
            Some("Role") => api.state.get(&format!("roles.{GROUP}"), namespace, name),
            _ => None,
        };
        for rule in role.iter().flat_map(|role| role.value["rules"].as_array().into_iter().flatten()) {
            each(rule);
        }
    };
    for binding in api.state.cache(&format!("clusterrolebindings.{GROUP}")).list("") {
        visit(&binding.value, "");
    }
    if !namespace.is_empty() {
        for binding in api.state.cache(&format!("rolebindings.{GROUP}")).list(namespace) {
            visit(&binding.value, namespace);
        }
    }
}

fn is_subject(subject: &Value, user: &User, namespace: &str) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => user.name == name,
        Some("Group") => user.groups.iter().any(|group| group == name),
        Some("ServiceAccount") => {
            let namespace = subject["namespace"].as_str().unwrap_or(namespace);
            user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
                == Some((namespace, name))
        }
        _ => false,
    }
}

fn holds(list: &Value, wanted: impl Fn(&str) -> bool) -> bool {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).any(wanted)
}

fn covers(rule: &Value, wanted: &Attributes<'_>) -> bool {
    if !holds(&rule["verbs"], |verb| verb == "*" || verb == wanted.verb) {
        return false;
    }
    if !wanted.path.is_empty() {
        return holds(&rule["nonResourceURLs"], |url| {
            url == "*"
                || url == wanted.path
                || url.strip_suffix('*').is_some_and(|start| wanted.path.starts_with(start))
        });
    }
    let resource = |listed: &str| match (listed.split_once('/'), wanted.sub) {
        _ if listed == "*" => true,
        (None, "") => listed == wanted.resource,
        (Some((resource, sub)), wanted_sub) if !wanted_sub.is_empty() => {
            (resource == "*" || resource == wanted.resource) && sub == wanted_sub
        }
        _ => false,
    };
    let names = rule["resourceNames"].as_array().map(Vec::as_slice).unwrap_or_default();
    holds(&rule["apiGroups"], |group| group == "*" || group == wanted.group)
        && holds(&rule["resources"], resource)
        && (names.is_empty() || names.iter().any(|name| name == wanted.name))
}

/// Nobody gives away by a role or binding what they do not have, unless they may `escalate` or `bind`.
///
/// # Errors
///
/// 403 when they would.
pub(crate) fn check_escalation(api: &Api, resource: &Resource, user: &User, object: &Value) -> Result<()> {
    if resource.group != "rbac.authorization.k8s.io" || user.is_master() {
        return Ok(());
    }
    let namespace = meta::namespace(object);
    let target = |plural: &str, name: &str, namespace: &str| Target {
        group: resource.group.clone(),
        version: "v1".into(),
        plural: plural.into(),
        name: name.into(),
        namespace: namespace.into(),
        sub: String::new(),
    };
    let (rules, allowed) = match resource.plural.as_str() {
        "roles" | "clusterroles" => {
            let target = target(&resource.plural, meta::name(object), namespace);
            (object["rules"].clone(), authorize(api, user, "escalate", &target).is_ok())
        }
        _ => {
            let (kind, name) = (&object["roleRef"]["kind"], object["roleRef"]["name"].as_str().unwrap_or_default());
            let (plural, scope) = if kind == "Role" { ("roles", namespace) } else { ("clusterroles", "") };
            let role = api.state.get(&format!("{plural}.{}", resource.group), scope, name);
            let rules = role.map(|role| role.value["rules"].clone()).unwrap_or_default();
            (rules, authorize(api, user, "bind", &target(plural, name, namespace)).is_ok())
        }
    };
    if allowed {
        return Ok(());
    }
    let mut own = Vec::new();
    for_each_rule(api, user, namespace, |rule| own.push(rule.clone()));
    let missing = atoms(&rules).into_iter().find(|atom| !own.iter().any(|rule| covers(rule, &atom.attributes())));
    match missing {
        None => Ok(()),
        Some(missing) => {
            let why = format!(
                "user {:?} (groups={:?}) is attempting to grant RBAC permissions not currently held: {missing:?}",
                user.name, user.groups
            );
            Err(Failure::forbidden(&resource.storage, meta::name(object), &why))
        }
    }
}

/// One verb on one resource, as roles are made of.
#[derive(Debug)]
struct Atom {
    verb: String,
    group: String,
    resource: String,
    sub: String,
    name: String,
    path: String,
}

impl Atom {
    fn attributes(&self) -> Attributes<'_> {
        Attributes {
            verb: &self.verb,
            group: &self.group,
            resource: &self.resource,
            sub: &self.sub,
            name: &self.name,
            namespace: "",
            path: &self.path,
        }
    }
}

fn atoms(rules: &Value) -> Vec<Atom> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let mut atoms = Vec::new();
    for rule in rules.as_array().into_iter().flatten() {
        let mut names = texts(&rule["resourceNames"]);
        if names.is_empty() {
            names.push(String::new());
        }
        for verb in texts(&rule["verbs"]) {
            for path in texts(&rule["nonResourceURLs"]) {
                let none = String::new;
                atoms.push(Atom {
                    verb: verb.clone(),
                    group: none(),
                    resource: none(),
                    sub: none(),
                    name: none(),
                    path,
                });
            }
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for name in &names {
                        let (resource, sub) = resource.split_once('/').unwrap_or((&resource, ""));
                        atoms.push(Atom {
                            verb: verb.clone(),
                            group: group.clone(),
                            resource: resource.into(),
                            sub: sub.into(),
                            name: name.clone(),
                            path: String::new(),
                        });
                    }
                }
            }
        }
    }
    atoms
}

// Reviews.

/// Answers a review: an object that is only asked, never kept.
///
/// # Errors
///
/// When the kind of review is unknown.
pub(crate) fn review(api: &Arc<Api>, ask: &Ask, request: &Value) -> Result<Response<Body>> {
    let mut answer = request.clone();
    let spec = &request["spec"];
    answer["status"] = match ask.resource.kind.as_str() {
        "TokenReview" => {
            let texts = spec["audiences"].as_array().into_iter().flatten();
            let mut wanted: Vec<String> = texts.filter_map(|v| v.as_str().map(str::to_owned)).collect();
            if wanted.is_empty() {
                wanted.clone_from(&api.settings.audiences);
            }
            match check_token(api, spec["token"].as_str().unwrap_or_default(), &wanted) {
                Ok((user, audiences)) => {
                    json!({"authenticated": true, "user": user_info(&user), "audiences": audiences})
                }
                Err(why) => json!({"authenticated": false, "user": {}, "error": why}),
            }
        }
        "SelfSubjectReview" => json!({"userInfo": user_info(&ask.user)}),
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let texts = spec["groups"].as_array().into_iter().flatten();
            let user = User {
                name: spec["user"].as_str().unwrap_or_default().into(),
                groups: texts.filter_map(|v| v.as_str().map(str::to_owned)).collect(),
                ..User::default()
            };
            access(api, &user, spec)
        }
        "SelfSubjectAccessReview" => access(api, &ask.user, spec),
        "SelfSubjectRulesReview" => {
            let namespace = spec["namespace"].as_str().unwrap_or_default();
            let (mut resources, mut paths) = (Vec::new(), Vec::new());
            if ask.user.is_master() {
                resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
                paths.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
            }
            for_each_rule(api, &ask.user, namespace, |rule| {
                if rule["nonResourceURLs"].is_array() { paths.push(rule.clone()) } else { resources.push(rule.clone()) }
            });
            json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
        }
        _ => return Err(Failure::no_such_path()),
    };
    answer["kind"] = json!(ask.resource.kind);
    answer["apiVersion"] = json!(ask.resource.api_version());
    if !answer["metadata"].is_object() {
        answer["metadata"] = json!({});
    }
    answer["metadata"]["creationTimestamp"] = Value::Null;
    Ok(route::json_value(201, &answer))
}

fn access(api: &Api, user: &User, spec: &Value) -> Value {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let attributes = &spec["resourceAttributes"];
    let allowed = if attributes.is_object() {
        let target = Target {
            group: text(&attributes["group"]),
            version: text(&attributes["version"]),
            namespace: text(&attributes["namespace"]),
            plural: text(&attributes["resource"]),
            name: text(&attributes["name"]),
            sub: text(&attributes["subresource"]),
        };
        authorize(api, user, &text(&attributes["verb"]), &target).is_ok()
    } else {
        let path = &spec["nonResourceAttributes"];
        authorize_path(api, user, &text(&path["verb"]), &text(&path["path"])).is_ok()
    };
    json!({"allowed": allowed})
}

/// `UserInfo`, as reviews and webhooks show it.
#[must_use]
pub(crate) fn user_info(user: &User) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// The roles and bindings every cluster starts with.
#[must_use]
pub(crate) fn bootstrap() -> Vec<(&'static str, Value)> {
    const ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
    const BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
    let read = ["get", "list", "watch"];
    let write = ["create", "delete", "deletecollection", "patch", "update"];
    let all: Vec<&str> = read.iter().chain(&write).copied().collect();
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let paths = |urls: &[&str]| json!({"nonResourceURLs": urls, "verbs": ["get"]});
    let core = [
        "configmaps",
        "endpoints",
        "events",
        "persistentvolumeclaims",
        "pods",
        "pods/log",
        "pods/status",
        "replicationcontrollers",
        "serviceaccounts",
        "services",
        "services/status",
        "limitranges",
        "resourcequotas",
    ];
    let apps = [
        "controllerrevisions",
        "daemonsets",
        "deployments",
        "deployments/scale",
        "replicasets",
        "replicasets/scale",
        "statefulsets",
        "statefulsets/scale",
    ];
    let view = vec![
        rule(&[""], &core, &read),
        rule(&[""], &["namespaces"], &read),
        rule(&["apps"], &apps, &read),
        rule(&["batch"], &["cronjobs", "jobs"], &read),
        rule(&["autoscaling"], &["horizontalpodautoscalers"], &read),
        rule(&["policy"], &["poddisruptionbudgets"], &read),
        rule(&["networking.k8s.io"], &["ingresses", "networkpolicies"], &read),
        rule(&["discovery.k8s.io"], &["endpointslices"], &read),
    ];
    let edit: Vec<Value> = view
        .iter()
        .cloned()
        .chain([
            rule(&[""], &core, &write),
            rule(&[""], &["secrets"], &all),
            rule(&[""], &["pods/attach", "pods/exec", "pods/portforward", "pods/eviction"], &["create", "get"]),
            rule(&[""], &["serviceaccounts/token"], &["create"]),
            rule(&["apps"], &apps, &write),
            rule(&["batch"], &["cronjobs", "jobs"], &write),
            rule(&["autoscaling"], &["horizontalpodautoscalers"], &write),
            rule(&["policy"], &["poddisruptionbudgets"], &write),
            rule(&["networking.k8s.io"], &["ingresses", "networkpolicies"], &write),
            rule(&["coordination.k8s.io"], &["leases"], &all),
        ])
        .collect();
    let admin: Vec<Value> = edit
        .iter()
        .cloned()
        .chain([
            rule(&["rbac.authorization.k8s.io"], &["roles", "rolebindings"], &all),
            rule(&["authorization.k8s.io"], &["localsubjectaccessreviews"], &["create"]),
        ])
        .collect();
    let info = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let discovery = ["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"];
    let issuer = ["/.well-known/openid-configuration", "/openid/v1/jwks", "/.well-known/openid-configuration/"];
    let discovery: Vec<&str> = info.iter().chain(&discovery).copied().collect();
    let roles = [
        ("cluster-admin", vec![rule(&["*"], &["*"], &["*"]), json!({"nonResourceURLs": ["*"], "verbs": ["*"]})]),
        ("admin", admin),
        ("edit", edit),
        ("view", view),
        ("system:discovery", vec![paths(&discovery)]),
        ("system:public-info-viewer", vec![paths(&info)]),
        ("system:service-account-issuer-discovery", vec![paths(&issuer)]),
        (
            "system:basic-user",
            vec![
                rule(&["authorization.k8s.io"], &["selfsubjectaccessreviews", "selfsubjectrulesreviews"], &["create"]),
                rule(&["authentication.k8s.io"], &["selfsubjectreviews"], &["create"]),
            ],
        ),
        (
            "system:auth-delegator",
            vec![
                rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
                rule(&["authorization.k8s.io"], &["subjectaccessreviews"], &["create"]),
            ],
        ),
    ];
    let labels = json!({"kubernetes.io/bootstrapping": "rbac-defaults"});
    let mut made: Vec<(&'static str, Value)> = roles
        .into_iter()
        .map(|(name, rules)| {
            let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": name, "labels": labels}, "rules": rules});
            (ROLES, role)
        })
        .collect();
    let bindings: [(&str, &[&str]); 5] = [
        ("cluster-admin", &["system:masters"]),
        ("system:discovery", &["system:authenticated"]),
        ("system:basic-user", &["system:authenticated"]),
        ("system:public-info-viewer", &["system:authenticated", "system:unauthenticated"]),
        ("system:service-account-issuer-discovery", &["system:serviceaccounts"]),
    ];
    made.extend(bindings.into_iter().map(|(name, groups)| {
        let subject = |group: &&str| json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": group});
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name, "labels": labels},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": groups.iter().map(subject).collect::<Vec<_>>()});
        (BINDINGS, binding)
    }));
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_cover_what_they_say() {
        let rule = json!({"apiGroups": [""], "resources": ["pods", "pods/log", "*/status"], "verbs": ["get", "list"]});
        let named = json!({"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"], "resourceNames": ["a"]});
        let wanted = |verb, resource, sub, name| Attributes { verb, resource, sub, name, ..Attributes::default() };
        let cases = [
            (&rule, wanted("get", "pods", "", ""), true),
            (&rule, wanted("get", "pods", "log", ""), true),
            (&rule, wanted("get", "pods", "exec", ""), false),
            (&rule, wanted("get", "nodes", "status", ""), true),
            (&rule, wanted("create", "pods", "", ""), false),
            (&named, wanted("create", "pods", "", "a"), true),
            (&named, wanted("list", "pods", "", ""), false),
        ];
        for (rule, attributes, expected) in cases {
            assert_eq!(covers(rule, &attributes), expected, "{attributes:?}");
        }
        let path = |path| Attributes { verb: "get", path, ..Attributes::default() };
        let urls = json!({"nonResourceURLs": ["/apis/*", "/version"], "verbs": ["get"]});
        assert!(covers(&urls, &path("/apis/apps/v1")));
        assert!(!covers(&urls, &path("/versions")));
    }
}
