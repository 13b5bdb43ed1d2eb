use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use serde_json::Value;

use crate::ObjectKey;
use crate::rotation::Rotation;

/// What was seen of the world, all at about one time.
#[derive(Clone, Debug)]
pub struct Observed {
    /// When.
    pub now: SystemTime,
    /// By cluster name: every cluster of the mesh, and every former one that some cluster still remembers.
    pub clusters: BTreeMap<String, Sight>,
    /// The hub through which clusters are reached, or were: the mesh file's, or the one that some cluster still remembers.
    pub hub: Option<Sight>,
    /// What the state folder holds.
    pub state: StateFacts,
    /// The charts in the folder that the mesh file names, if it names one.
    pub charts: Vec<LocalChart>,
}

/// A chart in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalChart {
    /// Its name, such as `istiod`.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it is, for `helm`: a folder or an archive.
    pub path: String,
}

impl Observed {
    /// The clusters that answered.
    pub fn seen(&self) -> impl Iterator<Item = (&str, &ClusterState)> {
        self.clusters.iter().filter_map(|(name, sight)| match sight {
            Sight::Seen(state) => Some((name.as_str(), state)),
            Sight::Unreachable { .. } => None,
        })
    }

    /// The cluster called `name`, if it answered.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<&ClusterState> {
        self.clusters.get(name)?.state()
    }
}

/// Whether a cluster could be looked at.
#[derive(Clone, Debug)]
pub enum Sight {
    /// It answered.
    Seen(ClusterState),
    /// It did not.
    Unreachable {
        /// Its API server's address, as far as it is known.
        server: Option<String>,
        /// What went wrong.
        why: String,
    },
}

impl Sight {
    /// What was seen, if it answered.
    #[must_use]
    pub fn state(&self) -> Option<&ClusterState> {
        match self {
            Self::Seen(state) => Some(state),
            Self::Unreachable { .. } => None,
        }
    }
}

/// What was seen of one cluster.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// The URL of its API server, as the kubeconfig says.
    pub server: String,
    /// The certificate authority of that URL, as PEM; empty where the system's own are trusted.
    pub authority: String,
    /// `/version`'s `gitVersion`.
    pub version: String,
    /// Whether it is a lab cluster (`/version`'s `gitTreeState` is `stolos-lab`).
    pub is_lab: bool,
    /// The UID of namespace `kube-system`: what the cluster is, whatever it is called.
    pub uid: String,
    /// What matters to a mesh.
    pub objects: Objects,
    /// What could not be read.
    pub unreadable: Vec<Unreadable>,
}

/// Something that could not be read in a cluster that answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// What, such as `Secrets in istio-system`.
    pub what: String,
    /// Why, as the API server said it.
    pub why: String,
}

/// Live objects.
#[derive(Clone, Default, PartialEq)]
pub struct Objects(BTreeMap<ObjectKey, Value>);

impl Objects {
    /// Adds `object`, or replaces the one of its key.
    pub fn put(&mut self, object: Value) {
        self.0.insert(ObjectKey::of(&object), object);
    }

    /// Takes the object at `key` away.
    pub fn remove(&mut self, key: &ObjectKey) -> Option<Value> {
        self.0.remove(key)
    }

    /// The object at `key`.
    #[must_use]
    pub fn get(&self, key: &ObjectKey) -> Option<&Value> {
        self.0.get(key)
    }

    /// All, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectKey, &Value)> {
        self.0.iter()
    }

    /// Those of one kind, whatever their version and namespace.
    pub fn kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a ObjectKey, &'a Value)> {
        self.0.iter().filter(move |(key, _)| key.kind == kind)
    }
}

impl Extend<Value> for Objects {
    fn extend<T: IntoIterator<Item = Value>>(&mut self, objects: T) {
        objects.into_iter().for_each(|object| self.put(object));
    }
}

/// Names only: among the objects are Secrets.
impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys().map(ToString::to_string)).finish()
    }
}

/// What the state folder holds.
#[derive(Clone, Debug, Default)]
pub struct StateFacts {
    /// Where it is, for messages.
    pub folder: String,
    /// The root, if there is one.
    pub root: Option<RootFacts>,
    /// Why the root that the mesh file names cannot be used, if it cannot.
    pub root_refused: Option<String>,
    /// The replacement of the root that is under way, if one is. `root` is then the one that signs now.
    pub rotation: Option<Rotation>,
}

/// The root certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootFacts {
    /// SHA-256 of its DER, in hex.
    pub fingerprint: String,
    /// When it ends.
    pub not_after: SystemTime,
    /// Whether its key can be used: there, and its passphrase given.
    pub key: Result<(), String>,
}
