//! Reading an archive back. Whoever made it may have made it with bad intent: it is read into memory, within limits, and
//! nothing of it becomes a path.

use std::collections::BTreeMap;
use std::io::Read;
use std::time::SystemTime;

use flate2::read::GzDecoder;
use serde_json::Value;
use stolos_spec::{Mesh, SourceText, Told};

use super::{BundleError, Manifest, ManifestCluster};
use crate::diagnose::snapshot::{Datum, Seen, Snapshot, instant};

/// The most that an archive may hold.
const MOST: u64 = 2 << 30;
/// The most files.
const MOST_FILES: usize = 200_000;

/// An archive that was read.
pub struct Bundle {
    /// What it says of itself.
    pub manifest: Manifest,
    /// Its mesh.
    pub mesh: Mesh,
    /// Its clusters.
    pub clusters: Vec<BundledCluster>,
}

/// A cluster of an archive.
pub struct BundledCluster {
    /// What the mesh file says of it.
    pub said: ManifestCluster,
    /// What was read of it; none where it could not be.
    pub seen: Option<Seen>,
    /// Every object, also of kinds of which not all are there.
    pub objects: Vec<Value>,
    /// Kinds of which not all are there.
    cut: BTreeMap<String, String>,
}

impl Bundle {
    /// Reads an archive.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is too large, or is not one of these.
    pub fn open(from: impl Read) -> Result<Self, BundleError> {
        let files = files(from)?;
        let file = |path: &str| files.get(path).map(String::as_str);
        let foreign = |why: String| BundleError::Foreign(why);
        let manifest = file("manifest.json").ok_or_else(|| foreign("it has no manifest.json".to_owned()))?;
        let manifest: Manifest =
            serde_json::from_str(manifest).map_err(|e| foreign(format!("its manifest.json: {e}")))?;
        if manifest.kind != "Bundle" || manifest.api_version != "stolos.dev/v1alpha1" {
            return Err(foreign(format!("it is a {} of {}", manifest.kind, manifest.api_version)));
        }
        let mesh = mesh(&manifest, &files)?;
        let clusters = manifest.clusters.iter().map(|said| cluster(said, &manifest, &files)).collect();
        Ok(Self { manifest, mesh, clusters })
    }

    /// What the causes of `check` are judged by, as of when it was read.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let clusters = self.clusters.iter().map(|cluster| {
            let sight = match &cluster.seen {
                Some(seen) => {
                    let mut seen = seen.clone();
                    for (kind, why) in &cluster.cut {
                        seen.objects.insert(kind.clone(), Datum::Unread { why: why.clone() });
                    }
                    Datum::Read { value: seen, at: at(cluster.said.read_at.as_deref()) }
                }
                None => {
                    let why = cluster.said.unreachable.clone();
                    Datum::Unread { why: why.unwrap_or_else(|| "nothing of it is in the archive".to_owned()) }
                }
            };
            (cluster.said.name.clone(), sight)
        });
        Snapshot { clusters: clusters.collect(), now: at(Some(&self.manifest.made_at)) }
    }
}

fn at(text: Option<&str>) -> SystemTime {
    text.and_then(instant).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Every file, without the folder that all are in.
fn files(from: impl Read) -> Result<BTreeMap<String, String>, BundleError> {
    let mut files = BTreeMap::new();
    // One byte more than may be there tells.
    let limited = GzDecoder::new(from).take(MOST + 1);
    let mut archive = tar::Archive::new(limited);
    let mut total = 0;
    for entry in archive.entries().map_err(BundleError::Read)? {
        let mut entry = entry.map_err(BundleError::Read)?;
        total += entry.size();
        if total > MOST || files.len() >= MOST_FILES {
            return Err(BundleError::TooLarge(MOST));
        }
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = entry.path().map_err(BundleError::Read)?.to_string_lossy().into_owned();
        let Some((_, path)) = path.trim_start_matches("./").split_once('/') else { continue };
        let path = path.to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).map_err(BundleError::Read)?;
        files.insert(path, text);
    }
    Ok(files)
}

/// The mesh of the files that were given; where those do not read any more (a secret stood in the way), of the one that
/// was written.
fn mesh(manifest: &Manifest, files: &BTreeMap<String, String>) -> Result<Mesh, BundleError> {
    let base = manifest.told.base.as_ref();
    let given = files.iter().filter(|(path, _)| path.starts_with("mesh/"));
    let (bases, sources): (Vec<_>, Vec<_>) = given.partition(|(path, _)| base == Some(*path));
    let source = |(path, text): (&String, &String)| SourceText::new(path.as_str(), text.clone());
    let sources: Vec<_> = sources.into_iter().map(source).collect();
    let told = &manifest.told;
    let told = Told { name: told.name.clone(), primary: told.primary.clone(), remotes: told.remotes.clone() };
    let base = bases.into_iter().map(source).next();
    if !sources.is_empty()
        && let Ok(reading) = stolos_spec::read_all(&sources, base.as_ref(), &told)
    {
        return Ok(reading.mesh);
    }
    let text = files.get("mesh.yaml").ok_or_else(|| BundleError::Mesh("there is none".to_owned()))?;
    let reading = stolos_spec::read_all(&[SourceText::new("mesh.yaml", text.clone())], None, &Told::default());
    reading.map(|r| r.mesh).map_err(|problems| BundleError::Mesh(problems.to_string()))
}

fn cluster(said: &ManifestCluster, manifest: &Manifest, files: &BTreeMap<String, String>) -> BundledCluster {
    let own = |cluster: &Option<String>| cluster.as_deref() == Some(said.name.as_str());
    let (mut kinds, mut objects, mut cut) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
    for file in manifest.files.iter().filter(|file| own(&file.cluster)) {
        let (Some(kind), Some(text)) = (&file.objects, files.get(&file.path)) else { continue };
        let read = match serde_json::from_str::<Value>(text) {
            Ok(mut list) => {
                let items = list["items"].as_array_mut().map(std::mem::take).unwrap_or_default();
                objects.extend(items.iter().cloned());
                if let Some(all) = file.cut_from {
                    cut.insert(kind.clone(), format!("only {} of {all} are in the archive", items.len()));
                }
                Datum::Read { value: items, at: at(file.at.as_deref()) }
            }
            Err(error) => Datum::Unread { why: format!("{} in the archive: {error}", file.path) },
        };
        kinds.insert(kind.clone(), read);
    }
    for gap in manifest.missing.iter().filter(|gap| own(&gap.cluster)) {
        if let Some(kind) = &gap.objects {
            kinds.insert(kind.clone(), Datum::Unread { why: gap.why.clone() });
        }
    }
    let probes = files.get(&format!("clusters/{}/probes.json", said.name));
    let seen = probes.and_then(|text| serde_json::from_str::<Seen>(text).ok()).map(|mut seen| {
        seen.objects = kinds;
        seen
    });
    BundledCluster { said: said.clone(), seen, objects, cut }
}
