//! From what was read to an archive: secrets out, sizes bounded, one file after the other.

use std::io::Write;
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use stolos_k8s::meta;
use stolos_spec::Mesh;

use super::gather::Gathered;
use super::redact::Redactor;
use super::{BundleError, Manifest, ManifestCluster, ManifestFile, ManifestTold, Missing};
use crate::diagnose::rfc3339;
use crate::diagnose::snapshot::{Datum, Seen};

/// Kinds of which a cluster may have very many: they come last, so that they are what is cut.
const MANY: [&str; 5] = ["Pod", "EndpointSlice", "Endpoints", "ReplicaSet", "Event"];

/// A text that somebody else made: a plan, a report.
pub struct Extra {
    /// Where it goes.
    pub path: String,
    /// What it is.
    pub what: String,
    /// It, or why it could not be had.
    pub body: Result<String, String>,
}

/// All that goes into an archive.
pub struct Contents<'a> {
    /// The mesh.
    pub mesh: &'a Mesh,
    /// The mesh's files as they were given: name and text.
    pub inputs: Vec<(String, String)>,
    /// What was said beside them.
    pub told: ManifestTold,
    /// What was read.
    pub gathered: Gathered,
    /// What others made.
    pub extras: Vec<Extra>,
    /// What makes it: `stolos 0.1.0`.
    pub made_by: String,
    /// The folder that the archive unpacks to.
    pub folder: String,
    /// The most objects of one cluster.
    pub most_objects: usize,
    /// The most bytes of one cluster's objects.
    pub most_bytes: usize,
}

struct Packing {
    redactor: Redactor,
    files: Vec<(ManifestFile, String)>,
    missing: Vec<Missing>,
}

/// Takes the secrets out and writes the archive.
///
/// # Errors
///
/// When it cannot be written.
pub fn write(contents: Contents<'_>, to: impl Write) -> Result<Manifest, BundleError> {
    let mut packing = Packing { redactor: Redactor::default(), files: Vec::new(), missing: Vec::new() };
    let Gathered { snapshot, report, pages } = contents.gathered;
    packing.redactor.publish(names(contents.mesh, &snapshot.clusters));
    for (name, text) in &contents.inputs {
        let clean = packing.redactor.text(text);
        packing.put(&format!("mesh/{name}"), "a file of the mesh", None, None, clean);
    }
    let written = packing.redactor.text(&stolos_spec::mesh_yaml(contents.mesh));
    packing.put("mesh.yaml", "the mesh, as Stolos understands it", None, None, written);
    packing.json("check.json", "what `stolos check` says", None, Some(snapshot.now), &report);
    for Extra { path, what, body } in contents.extras {
        packing.text(&path, &what, None, None, body);
    }
    let mut clusters = Vec::new();
    for wanted in &contents.mesh.clusters {
        let name = wanted.name.as_str();
        let sight = snapshot.clusters.get(name);
        let mut said = ManifestCluster {
            name: name.to_owned(),
            context: wanted.context.clone(),
            network: wanted.network.to_string(),
            region: wanted.region.clone(),
            zone: wanted.zone.clone(),
            ..ManifestCluster::default()
        };
        match sight {
            Some(Datum::Read { value, at }) => {
                said.version = Some(value.version.clone());
                said.server = packing.redactor.text(&value.server);
                said.read_at = Some(rfc3339(*at));
                packing.cluster(name, value, contents.most_objects, contents.most_bytes);
            }
            other => {
                let why = other.and_then(Datum::why).unwrap_or("nobody looked");
                said.unreachable = Some(packing.redactor.text(why));
                packing.missing("everything", name, why, None);
            }
        }
        clusters.push(said);
        for page in pages.iter().filter(|page| page.cluster == name) {
            let path = format!("clusters/{name}/{}", page.path);
            packing.text(&path, &page.what, Some(name), Some(page.at), page.body.clone());
        }
    }
    let Packing { redactor, mut files, mut missing } = packing;
    // Only now is known all that must go.
    let sweep = redactor.sweep();
    for (file, text) in &mut files {
        *text = sweep.clean(text);
        file.bytes = text.len();
    }
    for gap in &mut missing {
        gap.why = sweep.clean(&gap.why);
    }
    let made_at = SystemTime::now();
    let manifest = Manifest {
        api_version: "stolos.dev/v1alpha1".to_owned(),
        kind: "Bundle".to_owned(),
        mesh: contents.mesh.name.to_string(),
        made_at: rfc3339(made_at),
        made_by: contents.made_by,
        clusters,
        files: files.iter().map(|(file, _)| file.clone()).collect(),
        missing,
        redacted: redactor.counts().into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect(),
        told: contents.told,
    };
    let whole = serde_json::to_string_pretty(&manifest).map_err(|e| BundleError::Write(e.into()))?;
    let first = [("manifest.json", sweep.clean(&whole)), ("README.txt", README.to_owned())];
    let all = first.iter().map(|(path, text)| (*path, text.as_str()));
    let all = all.chain(files.iter().map(|(file, text)| (file.path.as_str(), text.as_str())));
    archive(&contents.folder, made_at, all, to).map_err(BundleError::Write)?;
    Ok(manifest)
}

fn archive<'a>(
    folder: &str,
    at: SystemTime,
    files: impl Iterator<Item = (&'a str, &'a str)>,
    to: impl Write,
) -> std::io::Result<()> {
    let mut tar = tar::Builder::new(GzEncoder::new(to, Compression::default()));
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(seconds);
        tar.append_data(&mut header, format!("{folder}/{path}"), text.as_bytes())?;
    }
    tar.into_inner()?.finish()?.flush()
}

impl Packing {
    fn put(&mut self, path: &str, what: &str, cluster: Option<&str>, at: Option<SystemTime>, text: String) {
        let file = ManifestFile {
            path: safe(path),
            what: what.to_owned(),
            cluster: cluster.map(str::to_owned),
            at: at.map(rfc3339),
            ..ManifestFile::default()
        };
        self.files.push((file, text));
    }

    fn missing(&mut self, what: &str, cluster: &str, why: &str, objects: Option<&str>) {
        let why = self.redactor.text(why);
        let (what, cluster) = (what.to_owned(), Some(cluster.to_owned()).filter(|c| !c.is_empty()));
        self.missing.push(Missing { what, cluster, why, objects: objects.map(str::to_owned) });
    }

    /// A document of our own.
    fn json(
        &mut self,
        path: &str,
        what: &str,
        cluster: Option<&str>,
        at: Option<SystemTime>,
        value: &impl serde::Serialize,
    ) {
        let mut value = serde_json::to_value(value).unwrap_or_default();
        self.redactor.texts(&mut value);
        self.put(path, what, cluster, at, pretty(&value));
    }

    /// A page as it was served, JSON or not.
    fn text(
        &mut self,
        path: &str,
        what: &str,
        cluster: Option<&str>,
        at: Option<SystemTime>,
        body: Result<String, String>,
    ) {
        match body {
            Ok(body) => {
                let clean = match serde_json::from_str::<Value>(&body) {
                    Ok(mut value) => {
                        self.redactor.value(&mut value);
                        pretty(&value)
                    }
                    Err(_) => self.redactor.text(&body),
                };
                self.put(path, what, cluster, at, clean);
            }
            Err(why) => self.missing(what, cluster.unwrap_or_default(), &why, None),
        }
    }

    fn cluster(&mut self, name: &str, seen: &Seen, most_objects: usize, most_bytes: usize) {
        let probes = "what was tried: control planes' pages, gateways and credentials";
        let mut tried = serde_json::to_value(seen).unwrap_or_default();
        // Pages of control planes are others' JSON; all else is ours.
        if let Some(pages) = tried.get_mut("istiods") {
            self.redactor.value(pages);
        }
        self.redactor.texts(&mut tried);
        self.put(&format!("clusters/{name}/probes.json"), probes, Some(name), None, pretty(&tried));
        let (mut objects, mut bytes) = (0, 0);
        let mut kinds: Vec<_> = seen.objects.iter().collect();
        kinds.sort_by_key(|(kind, _)| MANY.iter().position(|many| many == kind).map_or(0, |at| at + 1));
        for (kind, read) in kinds {
            let (items, at) = match read {
                Datum::Read { value, at } => (value, *at),
                Datum::Unread { why } => {
                    self.missing(&format!("objects of kind {kind}"), name, why, Some(kind));
                    continue;
                }
            };
            let mut kept = Vec::new();
            for item in items {
                let mut item = item.clone();
                self.redactor.object(&mut item);
                let size = item.to_string().len();
                if objects + 1 > most_objects || bytes + size > most_bytes {
                    break;
                }
                (objects, bytes) = (objects + 1, bytes + size);
                kept.push(item);
            }
            let cut = (kept.len() < items.len()).then_some(items.len());
            if let Some(all) = cut {
                let why = format!("only {} of {all} are here: the bundle of one cluster was full", kept.len());
                self.missing(&format!("objects of kind {kind}"), name, &why, None);
            }
            let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": kept});
            let path = format!("clusters/{name}/objects/{}.json", kind.replace('/', "."));
            self.put(&path, &format!("objects of kind {kind}"), Some(name), Some(at), pretty(&list));
            if let Some((file, _)) = self.files.last_mut() {
                file.objects = Some(kind.clone());
                file.cut_from = cut;
            }
        }
    }
}

/// A path that stays below the archive's folder, whatever a cluster calls its pods.
fn safe(path: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let part = |part: &str| match part.trim_matches('.') {
        "" => "_".to_owned(),
        _ => part.chars().map(plain).collect::<String>(),
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// What things are called: no secret, also where a Secret repeats it.
fn names<'a>(
    mesh: &'a Mesh,
    clusters: &'a std::collections::BTreeMap<String, Datum<Seen>>,
) -> impl Iterator<Item = String> + 'a {
    let members = mesh.clusters.iter().flat_map(|c| {
        let texts = [Some(c.name.to_string()), Some(c.context.clone()), Some(c.network.to_string())];
        texts.into_iter().chain([c.region.clone(), c.zone.clone()]).flatten()
    });
    let seen = clusters.values().filter_map(Datum::value).flat_map(|seen| {
        let objects = seen.objects.values().filter_map(Datum::value).flatten();
        let named = objects.flat_map(|object| {
            [meta::name(object), meta::namespace(object), object["kind"].as_str().unwrap_or_default()]
                .map(str::to_owned)
        });
        named.chain([seen.server.clone(), seen.version.clone(), seen.uid.clone()])
    });
    members.chain(seen).chain([mesh.name.to_string(), "cluster.local".to_owned()]).filter(|name| !name.is_empty())
}

const README: &str = "\
What stolos bundle found in the clusters of a mesh.

manifest.json   what is here, when it was read, and what could not be had, with the reason
check.json      what `stolos check` says of it
plan.json       what `stolos apply` would change
mesh.yaml, mesh/  the mesh, and its files as they were given
clusters/       one folder per cluster: objects, pages of control planes and proxies, logs

Secrets were taken out before anything was written. `redacted-<type>-<length>-<fingerprint>` stands where one was; equal
ones have equal fingerprints, which mean nothing outside of this archive. Of a private key its public half is here, of a
token its claims without the signature. Public certificates are here as they are. Names, addresses and labels are too:
look through it before you give it away.

`stolos check --from ARCHIVE` looks for causes in it.
";
