//! Helm's releases: what is to be installed, and what is, as Helm itself remembers it.
//!
//! Helm keeps every release in a Secret of its namespace, `sh.helm.release.v1.<name>.v<revision>`, whose one value is
//! JSON, compressed and twice in base64 (once by Helm, once by Kubernetes). Reading it needs no program.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read as _;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::read::GzDecoder;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::{MANAGED_BY_LABEL, MANAGER, MESH_LABEL, mesh_of};
use crate::{FieldDiff, ObjectKey, Objects};

/// `type` of the Secrets that Helm keeps releases in.
pub const RELEASE_SECRET: &str = "helm.sh/release.v1";

/// No release is larger than this when it is unpacked: a Secret holds at most 1 MiB, and JSON does not compress better.
const LARGEST: u64 = 64 << 20;

/// A release as it is to be.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The chart.
    pub chart: Chart,
    /// The values it is given, whole.
    pub values: Value,
    /// The mesh it belongs to.
    pub mesh: String,
    /// Whether the last operation on it was cut short, so that Helm would refuse another until it is forgotten.
    pub stuck: bool,
}

/// A chart, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Chart {
    /// What `helm` takes for it: its name in a repository, an OCI reference, or a path.
    pub reference: String,
    /// The repository.
    pub repository: Option<String>,
    /// The version as `helm --version` takes it; `None` where the path decides it.
    pub version: Option<String>,
}

impl Release {
    /// What `helm` is called with, after its own name; `values` is the file with the values.
    #[must_use]
    pub fn arguments(&self, context: &str, values: &str, seconds: u64) -> Vec<String> {
        let mut arguments: Vec<String> =
            ["upgrade", "--install", &self.name, &self.chart.reference].map(String::from).into();
        let mut option = |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
        if let Some(repository) = &self.chart.repository {
            option("--repo", repository);
        }
        if let Some(version) = &self.chart.version {
            option("--version", version);
        }
        option("--namespace", &self.namespace);
        option("--labels", &format!("{MANAGED_BY_LABEL}={MANAGER},{MESH_LABEL}={}", self.mesh));
        option("--description", &format!("by stolos, for mesh {}", self.mesh));
        option("--history-max", "5");
        option("--timeout", &format!("{seconds}s"));
        option("--kube-context", context);
        option("--values", values);
        arguments
    }

    /// The whole command in one line, as a plan shows it.
    #[must_use]
    pub fn command(&self, context: &str) -> String {
        shell("helm", &self.arguments(context, "VALUES", 120))
    }
}

/// A release that goes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Uninstall {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

impl Uninstall {
    /// What `helm` is called with, after its own name.
    #[must_use]
    pub fn arguments(&self, context: &str, seconds: u64) -> Vec<String> {
        let seconds = format!("{seconds}s");
        ["uninstall", &self.name, "--namespace", &self.namespace, "--timeout", &seconds]
            .into_iter()
            .chain(["--kube-context", context])
            .map(str::to_owned)
            .collect()
    }

    /// The whole command in one line, as a plan shows it.
    #[must_use]
    pub fn command(&self, context: &str) -> String {
        shell("helm", &self.arguments(context, 120))
    }
}

/// A release that goes back to what it was.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rollback {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What Helm calls a revision: how often it had been installed or upgraded then.
    pub revision: u64,
}

impl Rollback {
    /// What `helm` is called with, after its own name.
    #[must_use]
    pub fn arguments(&self, context: &str, seconds: u64) -> Vec<String> {
        let (revision, seconds) = (self.revision.to_string(), format!("{seconds}s"));
        ["rollback", &self.name, &revision, "--namespace", &self.namespace, "--history-max", "5", "--timeout", &seconds]
            .into_iter()
            .chain(["--kube-context", context])
            .map(str::to_owned)
            .collect()
    }

    /// The whole command in one line, as a plan shows it.
    #[must_use]
    pub fn command(&self, context: &str) -> String {
        shell("helm", &self.arguments(context, 120))
    }
}

/// A command as a shell would take it.
pub(crate) fn shell(program: &str, arguments: &[String]) -> String {
    arguments.iter().fold(program.to_owned(), |line, argument| format!("{line} {}", quoted(argument)))
}

/// A word as a POSIX shell reads it: in quotes only where it must be.
#[must_use]
pub fn quoted(word: &str) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,~@%+".contains(c);
    // `~1.28.0` is a range of versions, `~me` a home.
    let home = word.strip_prefix('~').is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    if !word.is_empty() && word.chars().all(plain) && !home {
        Cow::Borrowed(word)
    } else {
        Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
    }
}

/// Whether a release of this status, as its Secret's label `status` has it, has an operation that was begun and not ended.
#[must_use]
pub fn is_pending(status: &str) -> bool {
    status.starts_with("pending") || status == "uninstalling"
}

/// A release as Helm remembers it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Deployed {
    pub(crate) name: String,
    pub(crate) namespace: String,
    /// How often it was installed or upgraded.
    pub(crate) revision: u64,
    /// `deployed`, `failed`, `pending-install`, `pending-upgrade`, `pending-rollback`, `uninstalling`, …
    pub(crate) status: String,
    /// The chart's name and version; `None` where the release cannot be read.
    pub(crate) chart: Option<(String, String)>,
    /// The values that were given to it.
    pub(crate) values: Value,
    /// The mesh that Stolos installed it for.
    pub(crate) mesh: Option<String>,
}

impl Deployed {
    /// Whether an operation on it was begun and not ended.
    pub(crate) fn is_pending(&self) -> bool {
        is_pending(&self.status)
    }

    /// Chart and version for people.
    pub(crate) fn chart_text(&self) -> String {
        match &self.chart {
            Some((name, version)) => format!("{name} {version}"),
            None => "an unreadable chart".to_owned(),
        }
    }
}

/// What of a stored release matters here; the chart's own files are passed over.
#[derive(Deserialize)]
struct Stored {
    info: StoredInfo,
    chart: StoredChart,
    #[serde(default)]
    config: Value,
}

#[derive(Deserialize)]
struct StoredInfo {
    status: String,
}

#[derive(Deserialize)]
struct StoredChart {
    metadata: StoredMetadata,
}

#[derive(Deserialize)]
struct StoredMetadata {
    name: String,
    version: String,
}

/// The newest revision of every release, by namespace and name.
pub(crate) fn deployed(objects: &Objects) -> BTreeMap<(String, String), Deployed> {
    let mut newest: BTreeMap<(String, String), (u64, &ObjectKey, &Value)> = BTreeMap::new();
    for (key, secret) in objects.kind("Secret").filter(|(_, secret)| secret["type"] == RELEASE_SECRET) {
        let Some((name, revision)) = named(&key.name) else { continue };
        let place = (key.namespace.clone().unwrap_or_default(), name.to_owned());
        if newest.get(&place).is_none_or(|(known, ..)| *known < revision) {
            newest.insert(place, (revision, key, secret));
        }
    }
    newest.into_iter().map(|(place, (revision, _, secret))| (place.clone(), read(place, revision, secret))).collect()
}

/// All revisions of the release called `name` that Helm still remembers, the newest first.
pub(crate) fn history(objects: &Objects, namespace: &str, name: &str) -> Vec<Deployed> {
    let secrets = objects
        .kind("Secret")
        .filter(|(key, secret)| secret["type"] == RELEASE_SECRET && key.namespace.as_deref() == Some(namespace));
    let mut found: Vec<Deployed> = secrets
        .filter_map(|(key, secret)| {
            let (release, revision) = named(&key.name).filter(|(release, _)| *release == name)?;
            Some(read((namespace.to_owned(), release.to_owned()), revision, secret))
        })
        .collect();
    found.sort_by_key(|release| std::cmp::Reverse(release.revision));
    found
}

/// `sh.helm.release.v1.<name>.v<revision>`; a name may have dots in it.
fn named(secret: &str) -> Option<(&str, u64)> {
    let (name, revision) = secret.strip_prefix("sh.helm.release.v1.")?.rsplit_once(".v")?;
    Some((name, revision.parse().ok()?))
}

fn read((namespace, name): (String, String), revision: u64, secret: &Value) -> Deployed {
    let mesh = mesh_of(secret).map(str::to_owned);
    let label = secret["metadata"]["labels"]["status"].as_str().unwrap_or("unknown");
    match stored(secret) {
        Some(stored) => Deployed {
            name,
            namespace,
            revision,
            status: stored.info.status,
            chart: Some((stored.chart.metadata.name, stored.chart.metadata.version)),
            values: stored.config,
            mesh,
        },
        None => {
            Deployed { name, namespace, revision, status: label.to_owned(), chart: None, values: Value::Null, mesh }
        }
    }
}

fn stored(secret: &Value) -> Option<Stored> {
    let helms = BASE64_STANDARD.decode(secret["data"]["release"].as_str()?).ok()?;
    let packed = BASE64_STANDARD.decode(helms.trim_ascii()).ok()?;
    // Helm of long ago did not compress.
    let text = match packed.starts_with(&[0x1f, 0x8b, 0x08]) {
        false => packed,
        true => {
            let mut text = Vec::new();
            GzDecoder::new(packed.as_slice()).take(LARGEST).read_to_end(&mut text).ok()?;
            text
        }
    };
    serde_json::from_slice(&text).ok()
}

/// How the values of a release differ from those wanted, field by field. What may be secret is not shown.
pub(crate) fn value_differences(wanted: &Value, live: &Value) -> Vec<FieldDiff> {
    let mut found = Vec::new();
    compare(wanted, live, "values", &mut found);
    found
}

fn compare(wanted: &Value, live: &Value, path: &str, found: &mut Vec<FieldDiff>) {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => {
            for (key, value) in wanted {
                compare(value, live.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"), found);
            }
            for (key, value) in live.iter().filter(|(key, _)| !wanted.contains_key(*key)) {
                compare(&Value::Null, value, &format!("{path}.{key}"), found);
            }
        }
        // An empty map and none are the same to Helm.
        (Value::Object(map), Value::Null) | (Value::Null, Value::Object(map)) if map.is_empty() => {}
        // Helm reads numbers through Go's float64.
        (Value::Number(wanted), Value::Number(live)) if wanted.as_f64() == live.as_f64() => {}
        (wanted, live) if wanted == live => {}
        (wanted, live) => {
            let side = |value: &Value| match value {
                Value::Null => None,
                _ if is_secret(path, value) => Some("(secret)".to_owned()),
                Value::String(text) => Some(text.clone()),
                value => Some(value.to_string()),
            };
            found.push(FieldDiff { path: path.to_owned(), from: side(live), to: side(wanted) });
        }
    }
}

/// Values as people may see them: what may be secret is not in them.
pub(crate) fn hidden(values: &Value) -> Value {
    fn hide(value: &mut Value, path: &str) {
        match value {
            Value::Object(map) => map.iter_mut().for_each(|(key, value)| hide(value, key)),
            value if is_secret(path, value) => *value = "(secret)".into(),
            _ => {}
        }
    }
    let mut shown = values.clone();
    hide(&mut shown, "");
    shown
}

fn is_secret(path: &str, value: &Value) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path).to_ascii_lowercase();
    let word = ["password", "token", "secret", "credential", "privatekey"].iter().any(|word| last.contains(word));
    (word && value.is_string()) || value.to_string().contains("PRIVATE KEY")
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use serde_json::json;

    use super::*;

    /// The Secret that Helm keeps of a release.
    pub(crate) fn secret(release: &Release, revision: u64, status: &str, version: &str) -> Value {
        let chart = release.chart.reference.rsplit('/').next().unwrap_or_default();
        let stored = json!({"name": release.name, "namespace": release.namespace, "version": revision,
            "info": {"status": status}, "config": release.values,
            "chart": {"metadata": {"name": chart, "version": version}, "templates": [{"data": "eA=="}]}, "manifest": ""});
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(stored.to_string().as_bytes()).unwrap();
        let text = BASE64_STANDARD.encode(BASE64_STANDARD.encode(gzip.finish().unwrap()));
        json!({"apiVersion": "v1", "kind": "Secret", "type": RELEASE_SECRET,
            "metadata": {"name": format!("sh.helm.release.v1.{}.v{revision}", release.name),
                "namespace": release.namespace, "uid": format!("{}-{revision}", release.name),
                "labels": {"name": release.name, "owner": "helm", "status": status, "version": revision.to_string(),
                    MANAGED_BY_LABEL: MANAGER, MESH_LABEL: release.mesh}},
            "data": {"release": text}})
    }

    fn release(name: &str, values: Value) -> Release {
        let chart = Chart { reference: "istiod".into(), repository: None, version: None };
        Release { name: name.into(), namespace: "istio-system".into(), chart, values, mesh: "m".into(), stuck: false }
    }

    #[test]
    fn the_newest_revision_is_what_counts() {
        let mut objects = Objects::default();
        for (revision, status) in [(9, "superseded"), (10, "deployed"), (2, "failed")] {
            objects.put(secret(&release("istiod", json!({"a": revision})), revision, status, "1.28.0"));
        }
        objects.put(secret(&release("a.v1.b", Value::Null), 1, "pending-install", "1.28.0"));
        let found = deployed(&objects);
        let istiod = &found[&("istio-system".to_owned(), "istiod".to_owned())];
        assert_eq!((istiod.revision, istiod.status.as_str(), &istiod.values), (10, "deployed", &json!({"a": 10})));
        assert_eq!((istiod.chart_text().as_str(), istiod.mesh.as_deref()), ("istiod 1.28.0", Some("m")));
        assert!(found[&("istio-system".to_owned(), "a.v1.b".to_owned())].is_pending());
    }

    #[test]
    fn what_cannot_be_read_is_still_there() {
        for data in [json!({}), json!({"release": "####"}), json!({"release": "bm90IGhlbG0="})] {
            let mut secret = secret(&release("istiod", Value::Null), 1, "deployed", "1");
            secret["data"] = data;
            let mut objects = Objects::default();
            objects.put(secret);
            let found = deployed(&objects).into_values().next().unwrap();
            assert_eq!((found.chart, found.status.as_str()), (None, "deployed"));
        }
    }

    #[test]
    fn values_differ_by_what_they_mean() {
        let lines = |wanted, live| {
            let side = |side: Option<String>| side.unwrap_or_else(|| "-".into());
            let found = value_differences(&wanted, &live).into_iter();
            found.map(|f| format!("{} {} {}", f.path, side(f.from), side(f.to))).collect::<Vec<_>>()
        };
        assert_eq!(lines(json!({"a": 1, "b": {}}), json!({"a": 1.0})), Vec::<String>::new());
        assert_eq!(lines(json!({}), Value::Null), Vec::<String>::new());
        assert_eq!(
            lines(json!({"a": {"b": "x"}, "n": [1]}), json!({"a": {"b": "y", "c": true}, "n": [1, 2]})),
            ["values.a.b y x", "values.a.c true -", "values.n [1,2] [1]"]
        );
        assert_eq!(
            lines(json!({"apiToken": "new"}), json!({"apiToken": "old"})),
            ["values.apiToken (secret) (secret)"]
        );
    }

    #[test]
    fn the_command_can_be_read_and_copied() {
        let mut release = release("istiod", json!({}));
        release.chart.repository = Some("https://charts.example.com".into());
        release.chart.version = Some("1.28.0".into());
        insta::assert_snapshot!(release.command("arn:aws:eks/a b"), @"helm upgrade --install istiod istiod --repo https://charts.example.com --version 1.28.0 --namespace istio-system --labels app.kubernetes.io/managed-by=stolos,stolos.dev/mesh=m --description 'by stolos, for mesh m' --history-max 5 --timeout 120s --kube-context 'arn:aws:eks/a b' --values VALUES");
        let uninstall = Uninstall { name: "istiod".into(), namespace: "istio-system".into() };
        insta::assert_snapshot!(uninstall.command("a"), @"helm uninstall istiod --namespace istio-system --timeout 120s --kube-context a");
    }
}
