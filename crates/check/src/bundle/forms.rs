//! Secrets that are known by their form: keys, tokens, passwords in the middle of a text.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use regex::{Captures, Regex};
use serde_json::Value;

use super::redact::{DEEPEST, Kind, MARK, Redactor, is_mark};

/// Longer texts are not read as YAML.
const LONGEST_YAML: usize = 1 << 20;

fn pattern(text: &str) -> Option<Regex> {
    Regex::new(text).ok()
}

static PRIVATE_KEY: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)"));
static BLOCK: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"(?s)-----BEGIN ([A-Z0-9 ]+)-----.*?-----END [A-Z0-9 ]+-----"));
static JWT: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"eyJ[A-Za-z0-9_-]{8,}=*\.eyJ[A-Za-z0-9_-]{8,}=*\.[A-Za-z0-9_-]{8,}"));
static URL_USER: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"([A-Za-z][A-Za-z0-9+.-]*://)([^/\s:@,\x22']*):([^/\s@\x22']+)@"));
static BEARER: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"(?i)\b(bearer|basic)(\s+)([A-Za-z0-9._~+/=-]{8,})"));
/// Tokens that their makers gave a name to be found by.
static NAMED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    pattern(concat!(
        r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|(?:AKIA|ASIA)[0-9A-Z]{16}",
        r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|hv[sbr]\.[A-Za-z0-9_-]{16,}|AIza[0-9A-Za-z_-]{30,}|sk-[A-Za-z0-9_-]{20,})\b"
    ))
});
static ASSIGNED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    pattern(r#"(\\?["']?([A-Za-z0-9_.-]{2,64})\\?["']?[ \t]*[:=][ \t]*)(\\?"[^"\n]*"|'[^'\n]*'|[^\s"',;}\]]+)"#)
});
static FLAG: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r#"((--[A-Za-z0-9_.-]{2,64})[ \t]+)(\\?"[^"\n]*"|'[^'\n]*'|[^\s"',;}\]-][^\s"',;}\]]*)"#));
static BASE64: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"[A-Za-z0-9+/_-]{24,}={0,2}"));

/// Whether a field or variable of this name holds a credential itself, and not where one is or how long it holds.
pub(super) fn is_credential(name: &str) -> bool {
    const ABOUT: [&str; 32] = [
        "name",
        "names",
        "namespace",
        "namespaces",
        "ref",
        "refs",
        "path",
        "paths",
        "file",
        "files",
        "seconds",
        "audience",
        "audiences",
        "policy",
        "type",
        "version",
        "provider",
        "mode",
        "url",
        "uri",
        "issuer",
        "lookup",
        "location",
        "format",
        "hash",
        "expiry",
        "expires",
        "enabled",
        "ttl",
        "duration",
        "selector",
        "resources",
    ];
    const CONTAINS: [&str; 13] = [
        "password",
        "passwd",
        "passphrase",
        "secret",
        "apikey",
        "privatekey",
        "accesskey",
        "clientkey",
        "credential",
        "signingkey",
        "encryptionkey",
        "masterkey",
        "keydata",
    ];
    const ENDS: [&str; 8] = ["token", "tokens", "pwd", "pass", "bearer", "authorization", "cookie", "jwt"];
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    if plain == "auth" {
        return true;
    }
    // `secret: name` of a volume and the like are objects, and `automountServiceAccountToken` is neither text nor number.
    if ABOUT.iter().any(|end| plain.ends_with(end)) {
        return false;
    }
    CONTAINS.iter().any(|word| plain.contains(word)) || ENDS.iter().any(|end| plain.ends_with(end))
}

/// Whether everything below a field of this name is a credential: Envoy's `private_key: {inline_string: …}`.
pub(super) fn holds_credentials(name: &str) -> bool {
    const BELOW: [&str; 9] = [
        "privatekey",
        "password",
        "passphrase",
        "sessionticketkeys",
        "genericsecret",
        "clientsecret",
        "tokensecret",
        "hmacsecret",
        "privatekeyprovider",
    ];
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    BELOW.contains(&plain.as_str())
}

/// Whether a text is PEM of what everybody may see, and nothing else.
pub(super) fn is_public_pem(text: &str) -> bool {
    const PUBLIC: [&str; 6] =
        ["CERTIFICATE", "TRUSTED CERTIFICATE", "X509 CERTIFICATE", "X509 CRL", "PUBLIC KEY", "CERTIFICATE REQUEST"];
    let Some(block) = BLOCK.as_ref() else { return false };
    let mut found = block.captures_iter(text).peekable();
    found.peek().is_some()
        && found.all(|b| b.get(1).is_some_and(|label| PUBLIC.contains(&label.as_str())))
        && block.replace_all(text, "").trim().is_empty()
}

/// The blocks of a PEM file, whatever stands between them.
pub(super) fn pem_blocks(text: &str) -> Option<Vec<&str>> {
    let found: Vec<_> = BLOCK.as_ref()?.find_iter(text).map(|m| m.as_str()).collect();
    (!found.is_empty()).then_some(found)
}

/// Text that is in base64, in either alphabet.
pub(super) fn decoded(text: &str) -> Option<String> {
    let text = text.trim();
    if text.len() < 12 {
        return None;
    }
    let bytes = STANDARD
        .decode(text)
        .or_else(|_| STANDARD_NO_PAD.decode(text))
        .or_else(|_| URL_SAFE.decode(text))
        .or_else(|_| URL_SAFE_NO_PAD.decode(text))
        .ok()?;
    String::from_utf8(bytes).ok()
}

/// A text as it stands in a URL.
pub(super) fn percent(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

impl Redactor {
    pub(super) fn text_at(&mut self, text: &str, depth: usize) -> String {
        if text.len() < 6 || depth > DEEPEST || is_mark(text) || is_public_pem(text.trim()) {
            return text.to_owned();
        }
        let document = self.structured(text, depth);
        let parsed = document.is_some();
        let text = document.unwrap_or_else(|| text.to_owned());
        // Most texts are short and plain; a pattern is only asked about what can have it.
        let mut text = text;
        if text.contains("PRIVATE KEY") {
            text = replaced(&PRIVATE_KEY, &text, |found| self.private_key(&found[0]));
        }
        if text.contains("eyJ") {
            text = replaced(&JWT, &text, |found| match self.jwt(&found[0]) {
                Some(token) => token,
                None => self.mark(Kind::Token, &found[0]),
            });
        }
        if text.contains('@') && text.contains("://") {
            text = replaced(&URL_USER, &text, |found| {
                format!("{}{}:{}@", &found[1], &found[2], self.mark(Kind::Password, &found[3]))
            });
        }
        if ["earer", "asic", "EARER", "ASIC"].iter().any(|word| text.contains(word)) {
            text = replaced(&BEARER, &text, |found| {
                let kept = found[3].split('.').count() == 3 && found[3].contains(MARK);
                let shown = if kept { found[3].to_owned() } else { self.mark(Kind::Token, &found[3]) };
                format!("{}{}{shown}", &found[1], &found[2])
            });
        }
        if text.len() >= 16 {
            text = replaced(&NAMED, &text, |found| self.mark(Kind::Token, &found[0]));
        }
        if text.contains([':', '=']) || text.contains("--") {
            text = self.assigned(&text, depth, !parsed);
        }
        if text.len() < 24 {
            return text;
        }
        replaced(&BASE64, &text, |found| {
            let whole = &found[0];
            let Some(inner) = decoded(whole).filter(|inner| inner.len() >= 12) else { return whole.to_owned() };
            let clean = self.text_at(&inner, depth + 1);
            if clean == inner { whole.to_owned() } else { STANDARD.encode(clean) }
        })
    }

    /// A document inside a text: if there is something in it that must go, it is written anew. `None` where there is none.
    fn structured(&mut self, text: &str, depth: usize) -> Option<String> {
        let trimmed = text.trim_start();
        if trimmed.starts_with(['{', '['])
            && let Ok(document) = serde_json::from_str::<Value>(trimmed)
        {
            let clean = self.document(&document, depth);
            return Some(if clean == document { text.to_owned() } else { clean.to_string() });
        }
        let shaped = text.trim_end().contains('\n') || text.contains('{');
        if !shaped || !text.contains(':') || text.len() > LONGEST_YAML {
            return None;
        }
        let document: Value = serde_saphyr::from_str(text).ok().filter(|d: &Value| d.is_object() || d.is_array())?;
        let clean = self.document(&document, depth);
        if clean == document {
            return Some(text.to_owned());
        }
        serde_saphyr::to_string(&clean).ok()
    }

    fn document(&mut self, document: &Value, depth: usize) -> Value {
        let mut clean = document.clone();
        match clean["kind"].is_string() && clean["metadata"].is_object() {
            true => self.object(&mut clean),
            false => self.walk(&mut clean, "", false, depth + 1),
        }
        clean
    }

    /// `password: x`, `--token=x`, `"client_secret": "x"` in a text of whatever form.
    ///
    /// Of a document that could be read the fields are done; its `blocks` are not looked at again.
    fn assigned(&mut self, text: &str, depth: usize, blocks: bool) -> String {
        let mut block: Option<usize> = None;
        let mut lines = Vec::new();
        for line in text.split('\n') {
            let indent = line.len() - line.trim_start().len();
            // The lines of a block scalar below a key of that kind.
            if let Some(from) = block {
                if line.trim().is_empty() || indent > from {
                    let mark = self.mark(Kind::Credential, line.trim());
                    lines.push(format!("{}{mark}", " ".repeat(indent)));
                    continue;
                }
                block = None;
            }
            let mut opens = false;
            let line = self.line(line, depth, &mut opens);
            let new = match line.contains("--") {
                true => replaced(&FLAG, &line, |found| self.assignment(found, depth, &mut opens)),
                false => line,
            };
            if opens && blocks {
                block = Some(indent);
            }
            lines.push(new);
        }
        lines.join("\n")
    }

    fn line(&mut self, line: &str, depth: usize, opens: &mut bool) -> String {
        if !line.contains([':', '=']) {
            return line.to_owned();
        }
        replaced(&ASSIGNED, line, |found| match is_credential(&found[2]) {
            true => self.assignment(found, depth, opens),
            // `url=https://x?token=y`: what is assigned may assign.
            false => format!("{}{}", &found[1], self.line(&found[3], depth, opens)),
        })
    }

    /// What stands for `name: value`, by its name.
    fn assignment(&mut self, found: &Captures<'_>, depth: usize, opens: &mut bool) -> String {
        let (before, name, value) = (&found[1], &found[2], &found[3]);
        if !is_credential(name) {
            return found[0].to_owned();
        }
        if matches!(value, "|" | ">" | "|-" | ">-" | "|+" | ">+") {
            *opens = true;
            return found[0].to_owned();
        }
        let inner = value.trim_matches(['"', '\'', '\\']);
        let nothing = matches!(inner, "" | "null" | "true" | "false" | "~") || inner.starts_with(['{', '[']);
        let scheme = ["bearer", "basic"].contains(&inner.to_lowercase().as_str());
        if nothing || scheme || inner.contains(MARK) || inner.starts_with("-----") {
            return found[0].to_owned();
        }
        let mark = self.credential(name, inner, depth);
        format!("{before}{}", value.replace(inner, &mark))
    }
}

fn replaced(pattern: &LazyLock<Option<Regex>>, text: &str, mut with: impl FnMut(&Captures<'_>) -> String) -> String {
    match pattern.as_ref() {
        Some(pattern) => pattern.replace_all(text, |found: &Captures<'_>| with(found)).into_owned(),
        None => String::new(),
    }
}
