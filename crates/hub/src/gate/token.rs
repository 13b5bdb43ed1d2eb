//! One-time tokens, in the form and the place that kubeadm and Karmada keep theirs: `<id>.<secret>`, a Secret of type
//! `bootstrap.kubernetes.io/token` in `kube-system`.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use rand::RngExt as _;
use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;

use crate::{Error, MANAGER, label};

const NAMESPACE: &str = "kube-system";
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// Makes a token that lets one agent of `member` in, once, within `life`.
///
/// # Errors
///
/// When the hub's API refuses or does not answer.
pub async fn create(hub: &kube::Client, life: Duration, member: &str) -> Result<stolos_pki::Secret, Error> {
    let (id, secret) = (random(6), random(16));
    let expiration = Timestamp::now() + jiff::SignedDuration::try_from(life).unwrap_or(jiff::SignedDuration::ZERO);
    let data = |text: &str| BASE64_STANDARD.encode(text);
    let object = json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
    "metadata": {"name": kept_as(&id), "namespace": NAMESPACE, "annotations": {label::TOKEN_MEMBER: member}},
    "data": {
        "token-id": data(&id), "token-secret": data(&secret),
        "expiration": data(&format!("{:.0}", expiration)),
        "description": data("lets one agent of a member into the hub, once"),
        "usage-bootstrap-authentication": data("true"),
    }});
    objects::create(hub, &Resource::named("v1", "Secret")?, &object, MANAGER).await?;
    Ok(stolos_pki::Secret::new(format!("{id}.{secret}")))
}

/// Deletes the tokens that were made for agents of a member and not used.
///
/// # Errors
///
/// When the hub's API refuses or does not answer.
pub(crate) async fn forget(hub: &kube::Client, member: &str) -> Result<(), Error> {
    let secrets = Resource::named("v1", "Secret")?;
    for secret in objects::list(hub, &secrets, Some(NAMESPACE), None).await? {
        if meta::annotation(&secret, label::TOKEN_MEMBER) == Some(member) {
            objects::delete(hub, &secrets, Some(NAMESPACE), meta::name(&secret), Some(meta::uid(&secret))).await?;
        }
    }
    Ok(())
}

/// A token that lets an agent of one member in.
pub(super) struct Good {
    id: String,
    uid: String,
}

fn unknown() -> Error {
    Error::Token("the hub does not know this token; it was used already, or is over".to_owned())
}

/// Whether a token lets an agent of the member called `name` in. It is as good as before.
///
/// # Errors
///
/// [`Error::Token`] when it is none, over, or for another; the words do not say which, but for what its own holder knows.
pub(super) async fn check(hub: &kube::Client, token: &str, name: &str) -> Result<Good, Error> {
    let (id, secret) = split(token)?;
    let secrets = Resource::named("v1", "Secret")?;
    let found = objects::get(hub, &secrets, Some(NAMESPACE), &kept_as(id)).await?.ok_or_else(unknown)?;
    if !lets_in(&found, secret, Timestamp::now()) {
        return Err(unknown());
    }
    // A token of kubeadm's or Karmada's kind that somebody else made is for nobody here.
    if meta::annotation(&found, label::TOKEN_MEMBER) != Some(name) {
        return Err(Error::Token(format!("this token was not made for an agent of `{name}`")));
    }
    Ok(Good { id: id.to_owned(), uid: meta::uid(&found).to_owned() })
}

impl Good {
    /// Uses it up: it lets nobody in again, also when what comes after this fails.
    pub(super) async fn redeem(self, hub: &kube::Client) -> Result<(), Error> {
        let secrets = Resource::named("v1", "Secret")?;
        // Of two that use it at once, one deletes it.
        match objects::delete(hub, &secrets, Some(NAMESPACE), &kept_as(&self.id), Some(&self.uid)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(unknown()),
            Err(error) if error.is_conflict() => Err(unknown()),
            Err(error) => Err(error.into()),
        }
    }
}

fn split(token: &str) -> Result<(&str, &str), Error> {
    let good = |text: &str, length: usize| text.len() == length && text.bytes().all(|byte| ALPHABET.contains(&byte));
    match token.split_once('.') {
        Some((id, secret)) if good(id, 6) && good(secret, 16) => Ok((id, secret)),
        _ => Err(Error::Token("this is no token: it has the form abcdef.0123456789abcdef".to_owned())),
    }
}

fn lets_in(found: &Value, secret: &str, now: Timestamp) -> bool {
    let data = |key: &str| {
        let bytes = BASE64_STANDARD.decode(found["data"][key].as_str().unwrap_or_default()).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    };
    let kept = data("token-secret");
    // As long for every wrong one: nothing is told by the time it takes.
    let same = kept.len() == secret.len() && kept.bytes().zip(secret.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0;
    let over = match data("expiration") {
        text if text.is_empty() => false,
        text => text.parse::<Timestamp>().map_or(true, |expiration| expiration <= now),
    };
    let is_token = found["type"] == "bootstrap.kubernetes.io/token";
    same && !over && is_token && data("usage-bootstrap-authentication") == "true"
}

fn kept_as(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

fn random(length: usize) -> String {
    let mut random = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_lets_in_until_it_is_over() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let kept = |expiration: &str, usage: &str| {
            let data = |text: &str| BASE64_STANDARD.encode(text);
            json!({"type": "bootstrap.kubernetes.io/token", "data": {"token-secret": data("0123456789abcdef"),
                "expiration": data(expiration), "usage-bootstrap-authentication": data(usage)}})
        };
        for (what, kept, secret, lets) in [
            ("good", kept("2026-01-01T00:00:01Z", "true"), "0123456789abcdef", true),
            ("for ever", kept("", "true"), "0123456789abcdef", true),
            ("another secret", kept("", "true"), "0123456789abcdeg", false),
            ("a part of it", kept("", "true"), "0123456789abcde", false),
            ("nothing", kept("", "true"), "", false),
            ("over", kept("2026-01-01T00:00:00Z", "true"), "0123456789abcdef", false),
            ("a time that is none", kept("tomorrow", "true"), "0123456789abcdef", false),
            ("for something else", kept("", "false"), "0123456789abcdef", false),
            ("an empty Secret", json!({}), "", false),
        ] {
            assert_eq!(lets_in(&kept, secret, now), lets, "{what}");
        }
    }

    #[test]
    fn what_is_no_token_is_not_looked_up() {
        assert!(split(&format!("{}.{}", random(6), random(16))).is_ok());
        for text in
            ["", "abcdef", "abcdef.", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde/", "../../.0123456789abcdef"]
        {
            assert!(split(text).is_err(), "{text}");
        }
    }
}
