//! Service account tokens: made, checked, and dead with what they are bound to.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use http::Response;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde_json::{Value, json};
use sha2::Digest as _;
use stolos_k8s::meta;

use super::User;
use crate::api::Api;
use crate::failure::{Failure, Result};
use crate::route::{self, Ask, Body};

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
    if let Some((name, uid)) = &claim.node {
        kubernetes["node"] = json!({"name": name, "uid": uid});
    }
    if let Some((kind, name, uid)) = claim.bound {
        kubernetes[kind] = json!({"name": name, "uid": uid});
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
            Some("Node") => ("node", "nodes"),
            other => return Err(Failure::bad_request(format!("cannot bind token for kind {other:?}"))),
        };
        let bound_name = bound["name"].as_str().unwrap_or_default();
        let scope = if kind == "node" { "" } else { namespace.as_str() };
        let found = api.state.get(resource, scope, bound_name);
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

/// How far the clocks of two machines may be apart, in seconds.
const LEEWAY: i64 = 10;

/// What a token says that this server has signed.
#[derive(Debug)]
struct Claims {
    namespace: String,
    account: String,
    uid: String,
    id: Option<String>,
    /// Name and UID of what it is bound to.
    pod: Option<(String, String)>,
    secret: Option<(String, String)>,
    node: Option<String>,
    audiences: Vec<String>,
    from: Option<i64>,
    until: Option<i64>,
}

impl Claims {
    fn read(claims: &Value) -> Self {
        let kubernetes = &claims["kubernetes.io"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let bound = |kind: &str| {
            let bound = &kubernetes[kind];
            bound.is_object().then(|| (text(&bound["name"]), text(&bound["uid"])))
        };
        // RFC 7519: seconds, whole or not.
        let seconds = |value: &Value| value.as_f64().map(|seconds| seconds as i64);
        Self {
            namespace: text(&kubernetes["namespace"]),
            account: text(&kubernetes["serviceaccount"]["name"]),
            uid: text(&kubernetes["serviceaccount"]["uid"]),
            id: claims["jti"].as_str().map(str::to_owned),
            pod: bound("pod"),
            secret: bound("secret"),
            node: kubernetes["node"]["name"].as_str().map(str::to_owned),
            audiences: match &claims["aud"] {
                Value::String(one) => vec![one.clone()],
                many => many.as_array().into_iter().flatten().map(text).collect(),
            },
            from: seconds(&claims["nbf"]),
            until: seconds(&claims["exp"]),
        }
    }
}

/// As many tokens are remembered; where there are more, remembering begins anew.
const MOST_KNOWN: usize = 1024;

/// Tokens whose signatures were found good, by the hash of the token: to check one takes longer than to answer most
/// requests. That what a token is bound to is alive, and its time not over, is looked at every time.
#[derive(Debug, Default)]
pub(crate) struct Known(Mutex<HashMap<[u8; 32], Arc<Claims>>>);

impl Known {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Arc<Claims>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn get(&self, token: &[u8; 32]) -> Option<Arc<Claims>> {
        self.lock().get(token).cloned()
    }

    fn remember(&self, token: [u8; 32], claims: &Arc<Claims>) {
        let mut known = self.lock();
        if known.len() >= MOST_KNOWN {
            known.clear();
        }
        known.insert(token, Arc::clone(claims));
    }
}

/// What a token says, if we have signed it.
fn signed(api: &Api, token: &str) -> Result<Arc<Claims>, String> {
    let hash: [u8; 32] = sha2::Sha256::digest(token).into();
    if let Some(claims) = api.tokens.get(&hash) {
        return Ok(claims);
    }
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_required_spec_claims(&["iss", "sub", "aud"]);
    validation.set_issuer(&[&api.settings.issuer]);
    // Who accepts it differs from call to call.
    validation.validate_aud = false;
    validation.validate_nbf = true;
    validation.leeway = LEEWAY.unsigned_abs();
    let decoded = jsonwebtoken::decode::<Value>(token, &api.keys.token_decoding, &validation);
    let claims = Arc::new(Claims::read(&decoded.map_err(|error| error.to_string())?.claims));
    api.tokens.remember(hash, &claims);
    Ok(claims)
}

/// The user a token stands for and the audiences it shares with `accepted`.
pub(super) fn check_token(api: &Api, token: &str, accepted: &[String]) -> Result<(User, Vec<String>), String> {
    let claims = signed(api, token)?;
    let now = jiff::Timestamp::now().as_second();
    if claims.until.is_some_and(|until| until < now - LEEWAY) {
        return Err("ExpiredSignature".into());
    }
    if claims.from.is_some_and(|from| from > now + LEEWAY) {
        return Err("ImmatureSignature".into());
    }
    let shared: Vec<String> = claims.audiences.iter().filter(|audience| accepted.contains(audience)).cloned().collect();
    if shared.is_empty() {
        return Err("InvalidAudience".into());
    }
    let Claims { namespace, account, uid, .. } = &*claims;
    let is_alive = |resource: &str, name: &str, uid: &str| {
        api.state.get(resource, namespace, name).filter(|object| meta::uid(&object.value) == uid)
    };
    is_alive("serviceaccounts", account, uid).ok_or("the service account is gone")?;
    let mut extra = BTreeMap::new();
    if let Some(id) = &claims.id {
        extra.insert("authentication.kubernetes.io/credential-id".into(), vec![format!("JTI={id}")]);
    }
    if let Some((name, uid)) = &claims.pod {
        let pod = is_alive("pods", name, uid).filter(|pod| !over_for_good(&pod.value));
        pod.ok_or("the pod it is bound to is gone")?;
        extra.insert("authentication.kubernetes.io/pod-name".into(), vec![name.clone()]);
        extra.insert("authentication.kubernetes.io/pod-uid".into(), vec![uid.clone()]);
    }
    if let Some((name, uid)) = &claims.secret {
        let secret = is_alive("secrets", name, uid).ok_or("the secret it is bound to is gone")?;
        if claims.until.is_none() {
            use base64::Engine as _;
            let data = secret.value["data"]["token"].as_str().unwrap_or_default();
            let kept = base64::engine::general_purpose::STANDARD.decode(data).unwrap_or_default();
            if kept != token.as_bytes() {
                return Err("the Secret holds another token".into());
            }
        }
    }
    if let Some(node) = &claims.node {
        extra.insert("authentication.kubernetes.io/node-name".into(), vec![node.clone()]);
    }
    let groups = vec![
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".into(),
    ];
    let user = User { name: format!("system:serviceaccount:{namespace}:{account}"), uid: uid.clone(), groups, extra };
    Ok((user, shared))
}

/// Whether a pod has been going for longer than a minute past its time: its tokens end then.
fn over_for_good(pod: &Value) -> bool {
    let at = meta::deletion_timestamp(pod).and_then(|at| at.parse::<jiff::Timestamp>().ok());
    at.is_some_and(|at| jiff::Timestamp::now() > at + jiff::SignedDuration::from_secs(60))
}

/// What [`crate::fuzz::token`] promises.
///
/// # Panics
///
/// As said there.
pub(crate) fn fuzz(api: &Api, bytes: &[u8]) -> bool {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    let accepted = &api.settings.audiences;
    let raw = String::from_utf8_lossy(bytes);
    assert!(check_token(api, &raw, accepted).is_err(), "a token nobody gave out is believed: {raw}");

    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let (header, claims) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let account = api.state.get("serviceaccounts", "default", "a");
    let uid = account.as_ref().map(|account| meta::uid(&account.value)).unwrap_or_default();
    let claims = String::from_utf8_lossy(claims).replace("$UID", uid);
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(&claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &api.keys.token_encoding, Algorithm::ES256);
    let Ok(signature) = signature else { return false };
    let Ok((user, shared)) = check_token(api, &format!("{message}.{signature}"), accepted) else { return false };
    // Two fields of one name are one or the other; what is believed must be one of them, and alive.
    let header: Value = serde_json::from_slice(header).unwrap_or_default();
    assert_eq!(header["alg"], "ES256", "another algorithm is believed");
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:serviceaccount:default:a", uid));
    assert!(!uid.is_empty() && !shared.is_empty() && shared.iter().all(|audience| accepted.contains(audience)));
    true
}
