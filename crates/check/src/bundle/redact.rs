//! Takes secrets out of what is written down for other eyes. Pure, but for the salt.
//!
//! What is taken out leaves a mark with its type, its length and a fingerprint that is salted anew for every bundle:
//! equal secrets have equal marks, and nobody can try guesses against them, since the salt is written nowhere.
//!
//! Three nets, one behind the other:
//!
//! 1. By place ([`Redactor::object`]): data of Secrets, environment and arguments of applications, credentials of
//!    kubeconfigs, fields that are called like credentials.
//! 2. By form (`forms`): private keys, tokens, passwords in URLs, also inside base64, JSON and YAML.
//! 3. By memory ([`Redactor::sweep`]): what was taken out anywhere is looked for everywhere, raw and in base64.
//!
//! Public certificates stay: the causes of `check` are judged by them.

use std::collections::{BTreeMap, BTreeSet};

use aho_corasick::{AhoCorasick, MatchKind};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use stolos_k8s::istio;
use stolos_pki::PrivateKey;

use super::forms;

/// The annotation in which `kubectl apply` keeps the object as it was given.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// How every mark begins.
pub(crate) const MARK: &str = "redacted-";
/// Shorter secrets are taken out where they stand, and not looked for elsewhere.
const REMEMBERED_FROM: usize = 8;
/// So deep is looked into text inside of text.
pub(super) const DEEPEST: usize = 4;

/// What was taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    PrivateKey,
    Token,
    Password,
    /// A value of a Secret of which nothing else is known.
    SecretValue,
    /// What is in the field of a credential.
    Credential,
    /// A variable or an argument of an application.
    Argument,
    /// A release of Helm, with all its values.
    Release,
    Binary,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::PrivateKey => "private-key",
            Self::Token => "token",
            Self::Password => "password",
            Self::SecretValue => "secret-value",
            Self::Credential => "credential",
            Self::Argument => "argument",
            Self::Release => "helm-release",
            Self::Binary => "binary",
        }
    }
}

/// Takes secrets out, and remembers which.
pub struct Redactor {
    salt: [u8; 32],
    /// How much was taken out, by type.
    counts: BTreeMap<Kind, usize>,
    /// What was taken out, with its mark.
    known: BTreeMap<String, String>,
    /// Names of things, which stand everywhere: they are no secrets, also where a Secret holds one.
    public: BTreeSet<String>,
}

impl Default for Redactor {
    fn default() -> Self {
        Self { salt: rand::random(), counts: BTreeMap::new(), known: BTreeMap::new(), public: BTreeSet::new() }
    }
}

impl Redactor {
    /// Names that are no secrets wherever they stand.
    pub(super) fn publish(&mut self, names: impl IntoIterator<Item = String>) {
        self.public.extend(names);
    }

    /// How much was taken out, by type.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, usize> {
        self.counts.iter().map(|(kind, count)| (kind.word(), *count)).collect()
    }

    /// What stands for a secret, which is looked for everywhere else from now on.
    pub(super) fn mark(&mut self, kind: Kind, secret: &str) -> String {
        let mark = self.mark_here(kind, secret);
        // Plain words are no keys and stand in many places; a password is taken out whatever it is.
        let plain = |b: u8| b.is_ascii_lowercase() || b".-/: ".contains(&b);
        if kind == Kind::Password || secret.trim().len() >= 20 || !secret.trim().bytes().all(plain) {
            self.remember(secret, &mark);
        }
        mark
    }

    /// What stands for a value that need not be a secret.
    pub(super) fn mark_here(&mut self, kind: Kind, value: &str) -> String {
        if value.is_empty() || is_mark(value) {
            return value.to_owned();
        }
        *self.counts.entry(kind).or_default() += 1;
        self.stamp(kind, value)
    }

    fn stamp(&self, kind: Kind, value: &str) -> String {
        let digest = Sha256::new().chain_update(self.salt).chain_update(value.trim()).finalize();
        let print: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        format!("{MARK}{}-{}-{print}", kind.word(), value.len())
    }

    fn remember(&mut self, secret: &str, mark: &str) {
        let secret = secret.trim();
        if secret == mark || secret.len() < REMEMBERED_FROM || self.public.contains(secret) || is_mark(secret) {
            return;
        }
        self.known.insert(secret.to_owned(), mark.to_owned());
        // A key that is cut into lines elsewhere is found by any of them.
        if secret.contains('\n') {
            for line in secret.lines().map(str::trim).filter(|l| l.len() >= 2 * REMEMBERED_FROM && !l.contains("-----"))
            {
                if !self.public.contains(line) {
                    self.known.insert(line.to_owned(), mark.to_owned());
                }
            }
        }
    }

    /// An object of Kubernetes.
    pub fn object(&mut self, object: &mut Value) {
        if let Some(fields) = object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut) {
            // They name fields, and may hold values of lists; who wrote when is enough.
            fields.iter_mut().filter_map(Value::as_object_mut).for_each(|field| drop(field.remove("fieldsV1")));
        }
        match object["kind"].as_str() {
            Some("Secret") => self.secret(object),
            Some("CustomResourceDefinition") => slim(object),
            Some("ConfigMap") => {
                if let Some(data) = object.get_mut("binaryData").and_then(Value::as_object_mut) {
                    data.values_mut().for_each(|value| self.encoded(value, Kind::Binary));
                }
            }
            _ => {}
        }
        // A Secret's data is done: what is public of it is not to be looked at again.
        let done = if object["kind"] == "Secret" { object.get_mut("data").map(Value::take) } else { None };
        self.value(object);
        if let (Some(done), Some(data)) = (done, object.get_mut("data")) {
            *data = done;
        }
    }

    /// Any JSON.
    pub(super) fn value(&mut self, value: &mut Value) {
        self.walk(value, "", false, 0);
    }

    /// JSON of our own making, in which names of fields say nothing.
    pub(super) fn texts(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text_at(text, 0),
            Value::Array(items) => items.iter_mut().for_each(|item| self.texts(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.texts(field)),
            _ => {}
        }
    }

    pub(super) fn walk(&mut self, value: &mut Value, key: &str, inside: bool, depth: usize) {
        match value {
            Value::String(text) => {
                let new = if inside || forms::is_credential(key) {
                    self.credential(key, text, depth)
                } else {
                    self.text_at(text, depth)
                };
                *text = new;
            }
            Value::Number(number) if inside || forms::is_credential(key) => {
                let number = number.to_string();
                *value = self.mark_here(Kind::Credential, &number).into();
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.walk(item, key, inside, depth)),
            Value::Object(fields) => self.fields(fields, inside, depth),
            _ => {}
        }
    }

    fn fields(&mut self, fields: &mut Map<String, Value>, inside: bool, depth: usize) {
        // Variables, headers, parameters: a name, and beside it what it stands for.
        let named = ["name", "key", "header"].iter().find_map(|name| fields.get(*name)?.as_str());
        let credential = named.is_some_and(forms::is_credential);
        for (key, value) in fields.iter_mut() {
            match key.as_str() {
                "containers" | "initContainers" | "ephemeralContainers" if value.is_array() => {
                    for container in value.as_array_mut().into_iter().flatten() {
                        if !container["name"].as_str().is_some_and(is_of_the_mesh) {
                            self.application(container);
                        }
                        self.walk(container, "", inside, depth);
                    }
                }
                LAST_APPLIED => {
                    let text = value.as_str().unwrap_or_default();
                    *value = match serde_json::from_str::<Value>(text) {
                        Ok(mut object) => {
                            self.object(&mut object);
                            object.to_string().into()
                        }
                        Err(_) => self.mark(Kind::Credential, text).into(),
                    };
                }
                "value" if credential => self.walk(value, key, true, depth),
                _ => self.walk(value, key, inside || forms::holds_credentials(key), depth),
            }
        }
    }

    /// An application's own business: what it is told stays out, since nothing of it says how the mesh does.
    fn application(&mut self, container: &mut Value) {
        for variable in list(container, "env") {
            let credential = variable["name"].as_str().is_some_and(forms::is_credential);
            if let Some(value) = variable.get_mut("value").filter(|value| value.is_string()) {
                let text = value.as_str().unwrap_or_default().to_owned();
                // What a text is by its form is worth remembering; any other value is only taken out here.
                let known = self.text_at(&text, 0) != text;
                let mark = if credential || known {
                    self.mark(Kind::Credential, &text)
                } else {
                    self.mark_here(Kind::Argument, &text)
                };
                *value = mark.into();
            }
        }
        for arguments in ["command", "args"] {
            for argument in list(container, arguments) {
                let text = argument.as_str().unwrap_or_default().to_owned();
                let _ = self.text_at(&text, 0);
                *argument = self.mark_here(Kind::Argument, &text).into();
            }
        }
        for handler in
            ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/preStop", "/lifecycle/postStart"]
        {
            if let Some(handler) = container.pointer_mut(handler) {
                self.handler(handler);
            }
        }
    }

    fn handler(&mut self, handler: &mut Value) {
        if let Some(exec) = handler.get_mut("exec") {
            for word in list(exec, "command") {
                *word = self.mark_here(Kind::Argument, word.as_str().unwrap_or_default()).into();
            }
        }
        if let Some(get) = handler.get_mut("httpGet") {
            for header in list(get, "httpHeaders") {
                if let Some(value) = header.get_mut("value") {
                    *value = self.mark(Kind::Credential, value.as_str().unwrap_or_default()).into();
                }
            }
        }
    }

    /// What stands in the field of a credential.
    pub(super) fn credential(&mut self, key: &str, text: &str, depth: usize) -> String {
        let trimmed = text.trim();
        if trimmed.is_empty() || is_mark(trimmed) || forms::is_public_pem(trimmed) {
            return text.to_owned();
        }
        if let Some(token) = self.jwt(trimmed) {
            return token;
        }
        if trimmed.contains("PRIVATE KEY") {
            return self.text_at(text, depth);
        }
        // A key in base64 stays a key in base64.
        if let Some(inner) = forms::decoded(trimmed)
            && inner.contains("PRIVATE KEY")
        {
            self.remember(trimmed, MARK);
            let inner = self.text_at(&inner, depth + 1);
            return STANDARD.encode(inner);
        }
        let lower = key.to_lowercase();
        let kind = match () {
            () if lower.contains("pass") => Kind::Password,
            () if lower.contains("token") => Kind::Token,
            () if lower.contains("key") => Kind::PrivateKey,
            () => Kind::Credential,
        };
        self.mark(kind, text)
    }

    fn secret(&mut self, object: &mut Value) {
        let of_type = object["type"].as_str().unwrap_or_default().to_owned();
        if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut) {
            for (key, value) in data.iter_mut() {
                let Some(text) = value.as_str() else {
                    *value = Value::Null;
                    continue;
                };
                let encoded: String = text.split_whitespace().collect();
                let new = match STANDARD.decode(&encoded) {
                    Ok(bytes) => match String::from_utf8(bytes) {
                        Ok(text) => self.secret_value(&of_type, key, &text),
                        Err(_) => self.mark(Kind::Binary, &encoded),
                    },
                    Err(_) => self.mark(Kind::SecretValue, text),
                };
                *value = STANDARD.encode(new).into();
            }
        }
        if let Some(data) = object.get_mut("stringData").and_then(Value::as_object_mut) {
            for (key, value) in data.iter_mut() {
                *value = self.secret_value(&of_type, key, value.as_str().unwrap_or_default()).into();
            }
        }
    }

    /// One value of a Secret, in clear.
    fn secret_value(&mut self, of_type: &str, key: &str, text: &str) -> String {
        let trimmed = text.trim();
        if trimmed.is_empty() || is_mark(trimmed) || forms::is_public_pem(trimmed) {
            return text.to_owned();
        }
        if of_type == "helm.sh/release.v1" {
            return self.mark(Kind::Release, text);
        }
        if let Some(kubeconfig) = self.kubeconfig(text) {
            return kubeconfig;
        }
        if let Some(token) = self.jwt(trimmed) {
            return token;
        }
        if let Some(blocks) = forms::pem_blocks(trimmed) {
            // Certificates with their key in one file: the certificates are public. What stands between is not looked at.
            return blocks
                .iter()
                .map(|block| match forms::is_public_pem(block) {
                    true => format!("{block}\n"),
                    false => format!("{}\n", self.private_key(block)),
                })
                .collect();
        }
        let lower = key.to_lowercase();
        let kind = match () {
            () if lower.contains("key") && text.contains("-----") => Kind::PrivateKey,
            () if lower.contains("token") => Kind::Token,
            () if lower.contains("pass") => Kind::Password,
            () => Kind::SecretValue,
        };
        // What is inside of it is a secret by itself: passwords of a registry, tokens in a file of settings.
        let _ = self.text_at(text, 1);
        if let Ok(inner) = serde_json::from_str::<Value>(trimmed) {
            self.leaves(&inner);
        }
        self.mark(kind, text)
    }

    /// Remembers every text in a document that is a secret as a whole.
    fn leaves(&mut self, value: &Value) {
        match value {
            Value::String(text) => {
                let mark = self.stamp(Kind::SecretValue, text);
                self.remember(text, &mark);
                // `auth` of a registry: a user and a password.
                if let Some(inner) = forms::decoded(text) {
                    inner.split(':').skip(1).for_each(|part| self.remember(part, &mark));
                    self.remember(&inner, &mark);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.leaves(item)),
            Value::Object(fields) => fields.values().for_each(|field| self.leaves(field)),
            _ => {}
        }
    }

    /// A base64 value that may be a public certificate.
    fn encoded(&mut self, value: &mut Value, kind: Kind) {
        let text = value.as_str().unwrap_or_default().to_owned();
        if !forms::decoded(&text).is_some_and(|inner| forms::is_public_pem(inner.trim())) {
            *value = STANDARD.encode(self.mark(kind, &text)).into();
        }
    }

    /// A kubeconfig: where it leads stays, by what it is let in goes. `None` where the text is none.
    fn kubeconfig(&mut self, text: &str) -> Option<String> {
        let mut file: Value = serde_saphyr::from_str(text).ok()?;
        if !file["clusters"].is_array() || !file["users"].is_array() {
            return None;
        }
        for cluster in list(&mut file, "clusters") {
            for (key, value) in fields(cluster, "cluster") {
                match key.as_str() {
                    "certificate-authority-data" => {
                        let text = value.as_str().unwrap_or_default();
                        if !forms::decoded(text).is_some_and(|pem| forms::is_public_pem(pem.trim())) {
                            *value = self.mark(Kind::Credential, text).into();
                        }
                    }
                    "server"
                    | "tls-server-name"
                    | "insecure-skip-tls-verify"
                    | "proxy-url"
                    | "certificate-authority" => {
                        self.walk(value, "", false, 0);
                    }
                    _ => self.walk(value, "", true, 0),
                }
            }
        }
        for user in list(&mut file, "users") {
            for (key, value) in fields(user, "user") {
                match key.as_str() {
                    "client-certificate-data" => {
                        let text = value.as_str().unwrap_or_default();
                        if !forms::decoded(text).is_some_and(|pem| forms::is_public_pem(pem.trim())) {
                            *value = self.mark(Kind::Credential, text).into();
                        }
                    }
                    "client-certificate" | "client-key" | "tokenFile" => self.walk(value, "", false, 0),
                    "exec" | "auth-provider" => {
                        for (key, value) in value.as_object_mut().into_iter().flatten() {
                            let says_how = matches!(
                                key.as_str(),
                                "command" | "apiVersion" | "name" | "interactiveMode" | "provideClusterInfo"
                            );
                            self.walk(value, key, !says_how, 0);
                        }
                    }
                    other => self.walk(value, other, true, 0),
                }
            }
        }
        for (key, value) in file.as_object_mut()? {
            if !matches!(key.as_str(), "clusters" | "users" | "apiVersion" | "kind" | "current-context") {
                self.walk(value, key, key != "contexts", 0);
            }
        }
        serde_saphyr::to_string(&file).ok()
    }

    /// A private key, by its public half where that can be told: it fits the same certificates.
    pub(super) fn private_key(&mut self, pem: &str) -> String {
        let public = PrivateKey::from_pem(pem).ok().map(|key| key.public_der());
        // A key holds its public half as well (RFC 5958): lines of that stand in certificates, and are no secret.
        if let Some(public) = &public {
            let is_public = |line: &&str| {
                let bytes = STANDARD_NO_PAD.decode(line.trim_end_matches('=')).unwrap_or_default();
                !bytes.is_empty() && public.windows(bytes.len()).any(|part| part == bytes)
            };
            self.public.extend(pem.lines().map(str::trim).filter(is_public).map(str::to_owned));
        }
        let mark = match pem.contains("ENCRYPTED") {
            true => format!("{}-encrypted", self.mark_here(Kind::PrivateKey, pem)),
            false => self.mark_here(Kind::PrivateKey, pem),
        };
        self.remember(pem, &mark);
        let Some(public) = public else { return mark };
        let body = STANDARD.encode(public);
        let lines: Vec<_> = body.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----", lines.join("\n"))
    }

    /// A JSON web token without its signature, and with the claims that say whose it is and how long it holds (RFC 7519,
    /// section 4.1): it lets nobody in. `None` where the text is none.
    pub(super) fn jwt(&mut self, token: &str) -> Option<String> {
        const HEAD: [&str; 3] = ["alg", "kid", "typ"];
        const CLAIMS: [&str; 7] = ["iss", "sub", "aud", "exp", "nbf", "iat", "kubernetes.io"];
        let [head, claims, signature] = token.split('.').collect::<Vec<_>>()[..] else { return None };
        if signature.starts_with(MARK) {
            return Some(token.to_owned());
        }
        let part = |text: &str| -> Option<Value> {
            let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
            serde_json::from_slice::<Value>(&bytes).ok().filter(Value::is_object)
        };
        let (head, claims) = (part(head)?, part(claims)?);
        let only = |of: &Value, names: &[&str]| -> String {
            let kept = names.iter().filter_map(|name| Some(((*name).to_owned(), of.get(*name)?.clone())));
            URL_SAFE_NO_PAD.encode(json!(kept.collect::<Map<_, _>>()).to_string())
        };
        let mark = self.mark_here(Kind::Token, token);
        let shown = format!("{}.{}.{mark}", only(&head, &HEAD), only(&claims, &CLAIMS));
        self.remember(token, &mark);
        self.remember(signature, &mark);
        Some(shown)
    }

    /// Any text.
    pub(super) fn text(&mut self, text: &str) -> String {
        self.text_at(text, 0)
    }

    /// Takes out, wherever it stands, what was taken out elsewhere.
    pub(super) fn sweep(&self) -> Sweep {
        let mut words: BTreeMap<String, String> = BTreeMap::new();
        for (secret, mark) in &self.known {
            words.insert(secret.clone(), mark.clone());
            let json = Value::from(secret.as_str()).to_string();
            words.insert(json.trim_matches('"').to_owned(), mark.clone());
            words.insert(forms::percent(secret), mark.clone());
            for at in 0..3_usize {
                // In base64 a text looks in three ways, by where it begins; what its neighbours change is left away.
                let padded = [&b"\0\0\0"[..at], secret.as_bytes()].concat();
                let whole = STANDARD_NO_PAD.encode(&padded);
                let from = [0, 2, 3][at];
                let until = whole.len() - usize::from(!padded.len().is_multiple_of(3));
                let core = whole.get(from..until).unwrap_or_default();
                if core.len() >= 10 {
                    words.insert(core.to_owned(), mark.clone());
                    words.insert(core.replace('+', "-").replace('/', "_"), mark.clone());
                }
            }
        }
        words.retain(|word, _| !self.public.contains(word));
        let (words, marks): (Vec<_>, Vec<_>) = words.into_iter().unzip();
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&words);
        Sweep { finder: finder.ok(), marks }
    }
}

/// What was taken out anywhere, to be found everywhere.
pub(super) struct Sweep {
    /// None only where a machine cannot hold it; then nothing is let through.
    finder: Option<AhoCorasick>,
    marks: Vec<String>,
}

impl Sweep {
    pub(super) fn clean(&self, text: &str) -> String {
        match &self.finder {
            Some(finder) => finder.replace_all(text, &self.marks),
            None => format!("{MARK}everything"),
        }
    }
}

pub(super) fn is_mark(text: &str) -> bool {
    text.starts_with(MARK) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn list<'a>(of: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    of.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

fn fields<'a>(of: &'a mut Value, field: &str) -> impl Iterator<Item = (&'a String, &'a mut Value)> {
    of.get_mut(field).and_then(Value::as_object_mut).into_iter().flatten()
}

/// Containers whose environment says how the mesh does.
fn is_of_the_mesh(container: &str) -> bool {
    [istio::PROXY_CONTAINER, "istio-init", "istio-validation", "discovery"].contains(&container)
}

/// Definitions of strangers without their schemas, which are large and say nothing of a mesh.
fn slim(definition: &mut Value) {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    if ["istio.io", "gateway.networking.k8s.io", "stolos.dev"].iter().any(|ours| group.ends_with(ours)) {
        return;
    }
    let Some(spec) = definition.get_mut("spec") else { return };
    for version in list(spec, "versions") {
        if let Some(schema) = version.get_mut("schema") {
            *schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        }
    }
}
