//! Resources and what they are at one moment.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use prost_types::Any;
use sha2::{Digest, Sha256};

use crate::message::{self, Named};

/// One resource: a name, its content, and the version that stands for this content.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// What it is subscribed by.
    pub name: Arc<str>,
    /// Equal for equal content, across processes and restarts.
    pub version: Arc<str>,
    /// The content.
    pub body: Any,
}

impl Resource {
    /// The resource that a message is.
    pub fn of<M: Named>(message: &M) -> Self {
        Self::new(message.resource_name(), message::pack(message))
    }

    /// A resource whose version is a hash of its content.
    pub fn new(name: impl Into<Arc<str>>, body: Any) -> Self {
        let hash = Sha256::digest(&body.value);
        let mut version = String::with_capacity(24);
        for byte in &hash[..12] {
            let _ = write!(version, "{byte:02x}");
        }
        Self { name: name.into(), version: version.into(), body }
    }

    /// Its message.
    ///
    /// # Errors
    ///
    /// [`Mismatch`](crate::Mismatch), when it is no `M`.
    pub fn message<M: Named>(&self) -> Result<M, crate::Mismatch> {
        message::unpack(&self.body)
    }
}

/// All resources of one type, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources(BTreeMap<Arc<str>, Arc<Resource>>);

impl Resources {
    /// The resources that `messages` are.
    pub fn of<'a, M: Named + 'a>(messages: impl IntoIterator<Item = &'a M>) -> Self {
        messages.into_iter().map(Resource::of).collect()
    }

    /// The resource of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.0.get(name)
    }

    /// Adds a resource, or replaces the one of its name.
    pub fn insert(&mut self, resource: impl Into<Arc<Resource>>) {
        let resource = resource.into();
        self.0.insert(Arc::clone(&resource.name), resource);
    }

    /// Takes out the resource of this name.
    pub fn remove(&mut self, name: &str) -> Option<Arc<Resource>> {
        self.0.remove(name)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Resource>> {
        self.0.values()
    }

    /// The names that are in one of the two and not, or not the same, in the other.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Arc<str>> {
        let (mut ours, mut theirs) = (self.0.values().peekable(), other.0.values().peekable());
        let mut names = Vec::new();
        loop {
            let order = match (ours.peek(), theirs.peek()) {
                (None, None) => return names,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                // The usual case, and why two states of thousands are compared in microseconds.
                (Some(our), Some(their)) if Arc::ptr_eq(our, their) => {
                    ours.next();
                    theirs.next();
                    continue;
                }
                (Some(our), Some(their)) => our.name.cmp(&their.name),
            };
            let (our, their) =
                (if order.is_le() { ours.next() } else { None }, if order.is_ge() { theirs.next() } else { None });
            match (our, their) {
                (Some(our), Some(their)) if our.version == their.version => {}
                (_, Some(resource)) | (Some(resource), None) => names.push(Arc::clone(&resource.name)),
                (None, None) => {}
            }
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Resource> for Resources {
    fn from_iter<T: IntoIterator<Item = Resource>>(resources: T) -> Self {
        resources.into_iter().map(Arc::new).collect()
    }
}

impl FromIterator<Arc<Resource>> for Resources {
    fn from_iter<T: IntoIterator<Item = Arc<Resource>>>(resources: T) -> Self {
        Self(resources.into_iter().map(|resource| (Arc::clone(&resource.name), resource)).collect())
    }
}

/// Everything meant for one proxy (or held by one) at one moment, by type URL.
///
/// A type whose `Arc` is the one of the snapshot before costs nothing to compare, and so does a resource: whoever
/// builds snapshots keeps what has not changed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The moment: whatever the builder counts or names its states by.
    pub version: Arc<str>,
    types: BTreeMap<Arc<str>, Arc<Resources>>,
}

impl Snapshot {
    /// An empty snapshot.
    pub fn new(version: impl Into<Arc<str>>) -> Self {
        Self { version: version.into(), types: BTreeMap::new() }
    }

    /// With these resources of one type.
    #[must_use]
    pub fn with(mut self, type_url: impl Into<Arc<str>>, resources: impl Into<Arc<Resources>>) -> Self {
        self.set(type_url, resources);
        self
    }

    /// Sets the resources of one type.
    pub fn set(&mut self, type_url: impl Into<Arc<str>>, resources: impl Into<Arc<Resources>>) {
        self.types.insert(type_url.into(), resources.into());
    }

    /// The resources of one type; on a proxy's side `None` until the first answer of the type.
    #[must_use]
    pub fn get(&self, type_url: &str) -> Option<&Arc<Resources>> {
        self.types.get(type_url)
    }

    /// One resource.
    #[must_use]
    pub fn resource(&self, type_url: &str, name: &str) -> Option<&Arc<Resource>> {
        self.get(type_url)?.get(name)
    }

    /// What has changed since an earlier snapshot, in the order in which it may be acted on without a reference to
    /// what is not there yet. A type that is there for the first time is among them, even if it is empty.
    #[must_use]
    pub fn changes_since(&self, before: &Self) -> Vec<Change> {
        let nothing = Arc::default();
        let known = message::ORDER.iter().filter_map(|of| self.types.get_key_value(*of));
        let other = self.types.iter().filter(|(of, _)| !message::ORDER.contains(&of.as_ref()));
        let change = |(type_url, now): (&Arc<str>, &Arc<Resources>)| {
            let first = !before.types.contains_key(type_url);
            let then = before.types.get(type_url).unwrap_or(&nothing);
            if Arc::ptr_eq(then, now) {
                return None;
            }
            let (mut changed, mut removed) = (Vec::new(), Vec::new());
            for name in then.differences(now) {
                match now.get(&name) {
                    Some(resource) => changed.push(Arc::clone(resource)),
                    None => removed.push(name),
                }
            }
            let is_change = first || !changed.is_empty() || !removed.is_empty();
            is_change.then(|| Change { type_url: Arc::clone(type_url), changed, removed })
        };
        known.chain(other).filter_map(change).collect()
    }

    /// Every type with its resources.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Resources>)> {
        self.types.iter()
    }
}

/// What has changed of one type.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The type.
    pub type_url: Arc<str>,
    /// What is new or another than before.
    pub changed: Vec<Arc<Resource>>,
    /// What is gone.
    pub removed: Vec<Arc<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::config::cluster::v3::Cluster;

    #[test]
    fn differences_are_what_came_went_and_changed() {
        let resources = |of: &[(&str, u8)]| -> Resources {
            of.iter().map(|(name, of)| Resource::new(*name, Any { value: vec![*of], ..Any::default() })).collect()
        };
        let before = resources(&[("a", 1), ("b", 1), ("c", 1)]);
        let mut after = before.clone();
        assert_eq!(before.differences(&after), [] as [Arc<str>; 0]);
        after.remove("a");
        after.insert(Resource::new("b", Any { value: vec![2], ..Any::default() }));
        after.insert(Resource::new("d", Any::default()));
        assert_eq!(before.differences(&after), ["a", "b", "d"].map(Arc::from));
        assert_eq!(before.differences(&resources(&[("a", 1), ("b", 1), ("c", 1)])), [] as [Arc<str>; 0]);
        assert_eq!(Resources::default().differences(&before).len(), 3);
    }

    #[test]
    fn changes_come_in_the_order_to_act_in() {
        let resources =
            |names: &[&str]| -> Resources { names.iter().map(|name| Resource::new(*name, Any::default())).collect() };
        let before = Snapshot::new("1").with(message::CLUSTER, resources(&["a", "b"]));
        let after = before.clone().with(message::LISTENER, resources(&[]));
        let after = after.with(message::ENDPOINT, resources(&["a"])).with(message::CLUSTER, resources(&["b"]));
        let shown: Vec<_> = after
            .changes_since(&before)
            .iter()
            .map(|change| {
                let kind = change.type_url.rsplit_once('.').unwrap().1;
                format!("{kind} {} {:?}", change.changed.len(), change.removed)
            })
            .collect();
        assert_eq!(shown, ["Cluster 0 [\"a\"]", "ClusterLoadAssignment 1 []", "Listener 0 []"]);
        assert_eq!(after.changes_since(&after.clone()), []);
    }

    #[test]
    fn equal_content_has_an_equal_version() {
        let cluster = |name: &str, alt: &str| {
            Resource::of(&Cluster { name: name.into(), alt_stat_name: alt.into(), ..Cluster::default() })
        };
        assert_eq!(cluster("a", "x"), cluster("a", "x"));
        assert_ne!(cluster("a", "x").version, cluster("a", "y").version);
        assert_eq!(cluster("a", "x").message::<Cluster>().unwrap().alt_stat_name, "x");
    }
}
