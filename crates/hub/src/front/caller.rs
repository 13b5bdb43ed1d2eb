//! Who asks, and whether they may: by what the API server says, which is somebody else's (Kubernetes 1.34, delegated
//! authentication and authorization).
//!
//! A token is given to a TokenReview; a certificate has led to the authority of that API server's clients, and says name
//! and groups (CN and O). Whom they want to be (`Impersonate-User`, `Impersonate-Group`) and what they may is asked by
//! SubjectAccessReviews. What was allowed is remembered for ten seconds, as API servers do; what was not is asked anew.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, header};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use stolos_k8s::Status;
use stolos_k8s::status::Resource;
use stolos_serve::because;
use stolos_serve::listen::Peer;
use tokio::sync::Semaphore;

use crate::proxy::Caller;

/// How long an answer is believed.
const REMEMBERED: Duration = Duration::from_secs(10);
/// How many questions are asked at once.
const AT_ONCE: usize = 64;
/// How many answers are remembered at most.
const MOST: usize = 4096;
/// How long the API server may take.
const ANSWER: Duration = Duration::from_secs(10);
const EVERYBODY: &str = "system:authenticated";

/// Finds out who asks, and what they may.
pub(super) struct Callers {
    client: kube::Client,
    /// Turns to ask: whoever knows nobody here must not keep the API server busy.
    turns: Semaphore,
    known: Recent<String, Caller>,
    allowed: Recent<(String, Vec<String>, Right), ()>,
}

/// What is to be allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Right {
    verb: String,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    namespace: String,
    name: String,
}

impl Callers {
    pub(super) fn new(client: kube::Client) -> Self {
        Self { client, turns: Semaphore::new(AT_ONCE), known: Recent::default(), allowed: Recent::default() }
    }

    /// Who asks, and the name of who that really is, where they act for somebody else.
    pub(super) async fn of(&self, peer: &Peer, headers: &HeaderMap) -> Result<(Caller, Option<String>), Status> {
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = match authorization.and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) => self.by_token(token.trim()).await?,
            None => peer.certificates.first().and_then(named).ok_or_else(Status::unauthorized)?,
        };
        let Some((wanted, needs)) = impersonated(headers).map_err(|status| *status)? else { return Ok((shown, None)) };
        for right in needs {
            self.allow(&shown, &right).await?;
        }
        Ok((wanted, Some(shown.name)))
    }

    /// Whether they may do this to `clusters/proxy` of a member.
    pub(super) async fn may(&self, caller: &Caller, verb: &str, member: &str) -> Result<(), Status> {
        let right = Right {
            verb: verb.to_owned(),
            group: "cluster.karmada.io",
            resource: "clusters",
            subresource: "proxy",
            namespace: String::new(),
            name: member.to_owned(),
        };
        self.allow(caller, &right).await
    }

    async fn by_token(&self, token: &str) -> Result<Caller, Status> {
        let key = token.to_owned();
        if let Some(known) = self.known.get(&key) {
            return Ok(known);
        }
        let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
        let answer = self.ask("/apis/authentication.k8s.io/v1/tokenreviews", &review).await?;
        let status = &answer["status"];
        if status["authenticated"] != true {
            return Err(Status::unauthorized());
        }
        let caller = Caller { name: text(&status["user"]["username"]), groups: texts(&status["user"]["groups"]) };
        self.known.put(key, caller.clone());
        Ok(caller)
    }

    async fn allow(&self, caller: &Caller, right: &Right) -> Result<(), Status> {
        let key = (caller.name.clone(), caller.groups.clone(), right.clone());
        if self.allowed.get(&key).is_some() {
            return Ok(());
        }
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": caller.name, "groups": caller.groups,
            "resourceAttributes": {"verb": right.verb, "group": right.group, "resource": right.resource,
                "subresource": right.subresource, "namespace": right.namespace, "name": right.name}}});
        let answer = self.ask("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await?;
        if answer["status"]["allowed"] == true {
            self.allowed.put(key, ());
            return Ok(());
        }
        let sub = Some(right.subresource).filter(|sub| !sub.is_empty());
        let resource = Resource::new(right.group, right.resource);
        Err(Status::forbidden_to(&caller.name, &right.verb, resource, sub, Some(&right.namespace), &right.name))
    }

    async fn ask(&self, path: &str, review: &Value) -> Result<Value, Status> {
        let failed = |why: String| {
            tracing::warn!(why, path, "the API server cannot be asked who somebody is or what they may");
            Status::unavailable("the API server cannot be asked who you are and what you may")
        };
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        let request = request.body(review.to_string().into_bytes()).map_err(|error| failed(error.to_string()))?;
        let asking = async {
            let _turn = self.turns.acquire().await;
            self.client.request::<Value>(request).await
        };
        let answer = tokio::time::timeout(ANSWER, asking).await;
        answer.map_err(|_| failed("no answer in time".to_owned()))?.map_err(|error| failed(because(&error)))
    }
}

/// Whom a certificate names, whose chain TLS has verified.
fn named(certificate: &CertificateDer<'static>) -> Option<Caller> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().filter_map(|name| name.as_str().ok()).last()?.to_owned();
    let groups = subject.iter_organization().filter_map(|name| name.as_str().ok()).map(str::to_owned);
    Some(Caller { name, groups: groups.chain([EVERYBODY.to_owned()]).collect() })
}

/// Who is acted for, as the `Impersonate-*` headers say, and what it takes; nothing where nobody is.
fn impersonated(headers: &HeaderMap) -> Result<Option<(Caller, Vec<Right>)>, Box<Status>> {
    if !headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
        return Ok(None);
    }
    if let Some(other) = headers
        .keys()
        .map(http::HeaderName::as_str)
        .find(|name| name.starts_with("impersonate-") && !matches!(*name, "impersonate-user" | "impersonate-group"))
    {
        return Err(Box::new(Status::bad_request(format!("the hub acts for users and groups, not for {other}"))));
    }
    let value = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let name = headers.get("impersonate-user").map(value).filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| Box::new(Status::bad_request("groups without a user are nobody to act for")))?;
    let mut groups: Vec<String> = headers.get_all("impersonate-group").iter().map(value).collect();
    let right = |resource, namespace: &str, name: &str| Right {
        verb: "impersonate".to_owned(),
        group: "",
        resource,
        subresource: "",
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let mut needs: Vec<_> = groups.iter().map(|group| right("groups", "", group)).collect();
    match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
        Some((namespace, account)) => {
            needs.push(right("serviceaccounts", namespace, account));
            if groups.is_empty() {
                groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            }
        }
        None => needs.push(right("users", "", &name)),
    }
    if name != "system:anonymous" && !groups.iter().any(|group| group == EVERYBODY) {
        groups.push(EVERYBODY.to_owned());
    }
    Ok(Some((Caller { name, groups }, needs)))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

/// What was answered a moment ago.
struct Recent<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(key).filter(|(when, _)| when.elapsed() < REMEMBERED).map(|(_, value)| value.clone())
    }

    fn put(&self, key: K, value: V) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (when, _)| when.elapsed() < REMEMBERED);
        }
        // Still full: whoever comes is asked about each time.
        if known.len() < MOST {
            known.insert(key, (Instant::now(), value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs =
            pairs.iter().map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()));
        pairs.collect()
    }

    #[test]
    fn acting_for_somebody_takes_a_right_for_each_part() {
        let told = |pairs: &[(&str, &str)]| match impersonated(&headers(pairs)) {
            Ok(None) => "nobody".to_owned(),
            Ok(Some((caller, needs))) => {
                let needs = needs.iter().map(|need| format!("{} {}/{}", need.resource, need.namespace, need.name));
                format!("{} {:?} needs {}", caller.name, caller.groups, needs.collect::<Vec<_>>().join(", "))
            }
            Err(status) => format!("{}: {}", status.code, status.message),
        };
        let cases = [
            told(&[("accept", "*/*")]),
            told(&[("impersonate-user", "jane")]),
            told(&[("impersonate-user", "jane"), ("impersonate-group", "dev"), ("impersonate-group", "ops")]),
            told(&[("impersonate-user", "system:serviceaccount:ci:bot")]),
            told(&[("impersonate-group", "dev")]),
            told(&[("impersonate-user", "jane"), ("impersonate-uid", "1")]),
        ];
        insta::assert_snapshot!(cases.join("\n"), @r#"
        nobody
        jane ["system:authenticated"] needs users /jane
        jane ["dev", "ops", "system:authenticated"] needs groups /dev, groups /ops, users /jane
        system:serviceaccount:ci:bot ["system:serviceaccounts", "system:serviceaccounts:ci", "system:authenticated"] needs serviceaccounts ci/bot
        400: groups without a user are nobody to act for
        400: the hub acts for users and groups, not for impersonate-uid
        "#);
    }
}
