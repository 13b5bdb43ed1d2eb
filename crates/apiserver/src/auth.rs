//! Who somebody is and what they may do: client certificates, service account tokens, impersonation, roles, reviews.

use std::collections::BTreeMap;

use http::{HeaderMap, header};
use stolos_serve::listen::Peer;

mod access;
pub(crate) mod aggregate;
mod defaults;
mod reviews;
mod tokens;

pub(crate) use access::{Grants, authorize, authorize_path, check_escalation};
pub(crate) use defaults::{bootstrap, reconcile};
pub(crate) use reviews::{review, user_info};
pub(crate) use tokens::{Known as KnownTokens, fuzz as fuzz_token, secret_token, token_request};

pub(crate) use crate::keys::Keys;

use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::route::Target;

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
    /// Over a connection, by whoever its client certificate names: nobody at 401, when it could not be read.
    Outside(Option<User>),
}

impl Caller {
    /// Whoever is at the other end of a connection. The TLS handshake has verified the chain; here it is only read.
    #[must_use]
    pub(crate) fn outside(peer: &Peer) -> Self {
        let Some(leaf) = peer.certificates.first() else { return Self::Outside(Some(User::anonymous())) };
        let read = || {
            let (_, leaf) = x509_parser::parse_x509_certificate(leaf).ok()?;
            let subject = leaf.subject();
            let names = subject.iter_common_name().filter_map(|name| name.as_str().ok());
            let name = names.last()?.to_owned();
            let organizations = subject.iter_organization().filter_map(|name| name.as_str().ok());
            let mut groups: Vec<String> = organizations.map(str::to_owned).collect();
            groups.push("system:authenticated".into());
            Some(User { name, groups, ..User::default() })
        };
        Self::Outside(read())
    }
}

/// Finds out who sends a request.
///
/// # Errors
///
/// 401 when a token or certificate is shown that is not good.
pub(crate) fn authenticate(api: &Api, caller: &Caller, headers: &HeaderMap) -> Result<User> {
    Ok(acting(api, caller, headers)?.0)
}

/// The same, and who it really is where they act for somebody else.
pub(crate) fn acting(api: &Api, caller: &Caller, headers: &HeaderMap) -> Result<(User, Option<User>)> {
    let user = match caller {
        Caller::Inside(user) => user.clone(),
        Caller::Outside(shown) => from_outside(api, shown.as_ref(), headers)?,
    };
    Ok(match impersonated(api, &user, headers)? {
        Some(other) => (other, Some(user)),
        None => (user, None),
    })
}

fn from_outside(api: &Api, shown: Option<&User>, headers: &HeaderMap) -> Result<User> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some(token) = authorization.and_then(|value| value.strip_prefix("Bearer ")) {
        let (user, _) = tokens::check_token(api, token.trim(), &api.settings.audiences).map_err(|why| {
            tracing::debug!(why, "token refused");
            Failure::unauthorized()
        })?;
        return Ok(user);
    }
    shown.cloned().ok_or_else(Failure::unauthorized)
}

/// Who is acted for, as the `Impersonate-*` headers say; each of them needs a permission of its own.
fn impersonated(api: &Api, user: &User, headers: &HeaderMap) -> Result<Option<User>> {
    let Some(wanted) = Impersonated::read(headers)? else { return Ok(None) };
    for (group, plural, sub, namespace, name) in wanted.needs() {
        let target = Target {
            group: group.into(),
            version: "v1".into(),
            plural: plural.into(),
            sub: sub.into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        authorize(api, user, "impersonate", &target)?;
    }
    Ok(Some(wanted.user()))
}

/// What the `Impersonate-*` headers say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Impersonated {
    name: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

impl Impersonated {
    fn read(headers: &HeaderMap) -> Result<Option<Self>> {
        if !headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
            return Ok(None);
        }
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let one = |name: &str| headers.get(name).map(text).unwrap_or_default();
        let mut wanted = Self {
            name: one("impersonate-user"),
            groups: headers.get_all("impersonate-group").iter().map(text).collect(),
            uid: one("impersonate-uid"),
            extra: BTreeMap::new(),
        };
        for (name, value) in headers {
            if let Some(key) = name.as_str().strip_prefix("impersonate-extra-") {
                wanted.extra.entry(crate::route::decode(key)).or_default().push(text(value));
            }
        }
        if wanted == Self::default() {
            return Ok(None);
        }
        if wanted.name.is_empty() {
            return Err(Failure::bad_request("groups, a UID or extras cannot be impersonated without a user"));
        }
        Ok(Some(wanted))
    }

    fn account(&self) -> Option<(&str, &str)> {
        self.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
    }

    /// Group, resource, subresource, namespace and name of what must be allowed to `impersonate`.
    fn needs(&self) -> Vec<(&str, &str, &str, &str, &str)> {
        const AUTHENTICATION: &str = "authentication.k8s.io";
        let mut needs = vec![match self.account() {
            Some((namespace, account)) => ("", "serviceaccounts", "", namespace, account),
            None => ("", "users", "", "", self.name.as_str()),
        }];
        needs.extend(self.groups.iter().map(|group| ("", "groups", "", "", group.as_str())));
        if !self.uid.is_empty() {
            needs.push((AUTHENTICATION, "uids", "", "", &self.uid));
        }
        for (key, values) in &self.extra {
            needs.extend(values.iter().map(|value| (AUTHENTICATION, "userextras", key.as_str(), "", value.as_str())));
        }
        needs
    }

    fn user(mut self) -> User {
        if self.groups.is_empty()
            && let Some((namespace, _)) = self.account()
        {
            self.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
        }
        let everyone = ["system:authenticated", "system:unauthenticated"];
        if !self.groups.iter().any(|group| everyone.contains(&group.as_str())) {
            let anonymous = self.name == "system:anonymous";
            self.groups.push(everyone[usize::from(anonymous)].into());
        }
        User { name: self.name, uid: self.uid, groups: self.groups, extra: self.extra }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_an_impersonation_is_asked_for() {
        let headers = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            pairs.iter().map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap())).collect()
        };
        assert_eq!(Impersonated::read(&headers(&[("accept", "x")])).unwrap(), None);
        assert_eq!(Impersonated::read(&headers(&[("impersonate-uid", "1")])).unwrap_err().code, 400);
        let wanted = headers(&[
            ("impersonate-user", "jane"),
            ("impersonate-group", "a"),
            ("impersonate-uid", "7"),
            ("impersonate-extra-acme.com%2fproject", "p"),
        ]);
        let wanted = Impersonated::read(&wanted).unwrap().unwrap();
        assert_eq!(
            wanted.needs(),
            [
                ("", "users", "", "", "jane"),
                ("", "groups", "", "", "a"),
                ("authentication.k8s.io", "uids", "", "", "7"),
                ("authentication.k8s.io", "userextras", "acme.com/project", "", "p"),
            ]
        );
        let user = wanted.user();
        assert_eq!((user.groups, user.uid), (vec!["a".into(), "system:authenticated".into()], "7".into()));
        let account = headers(&[("impersonate-user", "system:serviceaccount:ns:sa")]);
        let account = Impersonated::read(&account).unwrap().unwrap();
        assert_eq!(account.needs(), [("", "serviceaccounts", "", "ns", "sa")]);
        let groups = ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"];
        assert_eq!(account.user().groups, groups);
    }
}
