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

/// The most resources of one block.
const BLOCK: usize = 64;

/// All resources of one type, by name.
///
/// They are kept in blocks, in the order of names. A clone shares them all, and what is changed in it is one block: so a
/// thousand proxies have states of a thousand resources that differ in one, and two states are compared block by block.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// None of them is empty.
    blocks: Vec<Arc<Vec<Arc<Resource>>>>,
    len: usize,
}

impl PartialEq for Resources {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len
            && (self.is_same(other) || self.iter().zip(other.iter()).all(|(a, b)| Arc::ptr_eq(a, b) || a == b))
    }
}

impl Resources {
    /// The resources that `messages` are.
    pub fn of<'a, M: Named + 'a>(messages: impl IntoIterator<Item = &'a M>) -> Self {
        messages.into_iter().map(Resource::of).collect()
    }

    /// Whether all blocks are shared, so that nothing need be compared.
    fn is_same(&self, other: &Self) -> bool {
        self.blocks.len() == other.blocks.len() && self.blocks.iter().zip(&other.blocks).all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// The block in which a name is, or would be.
    fn block(&self, name: &str) -> Option<usize> {
        let after = self.blocks.partition_point(|block| block.first().is_some_and(|first| *first.name <= *name));
        (!self.blocks.is_empty()).then(|| after.saturating_sub(1))
    }

    /// The resource of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        let block = &self.blocks[self.block(name)?];
        block.binary_search_by(|resource| (*resource.name).cmp(name)).ok().map(|at| &block[at])
    }

    /// Adds a resource, or replaces the one of its name.
    pub fn insert(&mut self, resource: impl Into<Arc<Resource>>) {
        let resource = resource.into();
        let Some(at) = self.block(&resource.name) else {
            self.blocks.push(Arc::new(vec![resource]));
            self.len = 1;
            return;
        };
        let block = Arc::make_mut(&mut self.blocks[at]);
        match block.binary_search_by(|have| have.name.cmp(&resource.name)) {
            Ok(place) => block[place] = resource,
            Err(place) => {
                block.insert(place, resource);
                self.len += 1;
                if block.len() > BLOCK {
                    let rest = block.split_off(BLOCK / 2);
                    self.blocks.insert(at + 1, Arc::new(rest));
                }
            }
        }
    }

    /// Takes out the resource of this name.
    pub fn remove(&mut self, name: &str) -> Option<Arc<Resource>> {
        let at = self.block(name)?;
        let place = self.blocks[at].binary_search_by(|have| (*have.name).cmp(name)).ok()?;
        let block = Arc::make_mut(&mut self.blocks[at]);
        let removed = block.remove(place);
        if block.is_empty() {
            self.blocks.remove(at);
        }
        self.len -= 1;
        Some(removed)
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<Resource>> {
        Iter { blocks: self.blocks.iter(), block: [].iter(), left: self.len }
    }

    /// The names that are in one of the two and not, or not the same, in the other.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<Arc<str>> {
        let (mut ours, mut theirs) = (Cursor::new(self), Cursor::new(other));
        let mut names = Vec::new();
        loop {
            // The usual case, and why two states of thousands are compared in microseconds.
            if ours.skip_shared(&mut theirs) {
                continue;
            }
            let order = match (ours.peek(), theirs.peek()) {
                (None, None) => return names,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
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
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl FromIterator<Resource> for Resources {
    fn from_iter<T: IntoIterator<Item = Resource>>(resources: T) -> Self {
        resources.into_iter().map(Arc::new).collect()
    }
}

impl FromIterator<Arc<Resource>> for Resources {
    /// Of two with one name the later one counts.
    fn from_iter<T: IntoIterator<Item = Arc<Resource>>>(resources: T) -> Self {
        let mut all: Vec<_> = resources.into_iter().collect();
        // Stable, and then from the end: the last of a name comes first.
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all.reverse();
        all.dedup_by(|a, b| a.name == b.name);
        all.reverse();
        let len = all.len();
        let mut all = all.into_iter().peekable();
        let mut blocks = Vec::with_capacity(len.div_ceil(BLOCK / 2));
        while all.peek().is_some() {
            // With room for more.
            blocks.push(Arc::new(all.by_ref().take(BLOCK / 2).collect()));
        }
        Self { blocks, len }
    }
}

struct Iter<'a> {
    blocks: std::slice::Iter<'a, Arc<Vec<Arc<Resource>>>>,
    block: std::slice::Iter<'a, Arc<Resource>>,
    left: usize,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<Resource>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(resource) = self.block.next() {
                self.left -= 1;
                return Some(resource);
            }
            self.block = self.blocks.next()?.iter();
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Iter<'_> {}

/// A place among resources.
struct Cursor<'a> {
    blocks: &'a [Arc<Vec<Arc<Resource>>>],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn new(resources: &'a Resources) -> Self {
        Self { blocks: &resources.blocks, at: 0 }
    }

    fn peek(&self) -> Option<&'a Arc<Resource>> {
        self.blocks.first()?.get(self.at)
    }

    fn next(&mut self) -> Option<&'a Arc<Resource>> {
        let next = self.peek()?;
        self.at += 1;
        if self.blocks.first().is_some_and(|block| block.len() == self.at) {
            (self.blocks, self.at) = (&self.blocks[1..], 0);
        }
        Some(next)
    }

    /// Goes past a block that both are at the start of.
    fn skip_shared(&mut self, other: &mut Self) -> bool {
        let shared = self.at == 0
            && other.at == 0
            && matches!((self.blocks.first(), other.blocks.first()), (Some(a), Some(b)) if Arc::ptr_eq(a, b));
        if shared {
            (self.blocks, other.blocks) = (&self.blocks[1..], &other.blocks[1..]);
        }
        shared
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

    /// The same at another moment, with other resources of some types.
    #[must_use]
    pub fn at<'a>(
        &self,
        version: impl Into<Arc<str>>,
        types: impl IntoIterator<Item = (&'a str, &'a Arc<Resources>)>,
    ) -> Self {
        let mut now = Self { version: version.into(), types: self.types.clone() };
        for (type_url, resources) in types {
            match now.types.get_mut(type_url) {
                Some(have) => *have = Arc::clone(resources),
                None => now.set(type_url, Arc::clone(resources)),
            }
        }
        now
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

    proptest::proptest! {
        /// However resources came to be in blocks, they are a map by name, and differ as maps do.
        #[test]
        fn blocks_are_a_map(
            first in proptest::collection::vec((0..300_u16, 0..3_u8), 0..300),
            steps in proptest::collection::vec((0..300_u16, proptest::option::of(0..3_u8)), 0..200),
        ) {
            let make = |name: u16, of: u8| Arc::new(Resource::new(format!("{name:04}"), Any { value: vec![of], ..Any::default() }));
            let mut model: BTreeMap<u16, u8> = first.iter().copied().collect();
            let mut resources: Resources = first.iter().map(|(name, of)| make(*name, *of)).collect();
            let (model_before, before) = (model.clone(), resources.clone());
            for (name, content) in steps {
                match content {
                    Some(of) => {
                        model.insert(name, of);
                        resources.insert(make(name, of));
                    }
                    None => proptest::prop_assert_eq!(
                        resources.remove(&format!("{name:04}")).is_some(), model.remove(&name).is_some()
                    ),
                }
            }
            let expected: Vec<_> = model.iter().map(|(name, of)| make(*name, *of)).collect();
            proptest::prop_assert_eq!(resources.iter().cloned().collect::<Vec<_>>(), expected);
            proptest::prop_assert_eq!((resources.len(), resources.iter().len()), (model.len(), model.len()));
            for name in 0..300 {
                let found = resources.get(&format!("{name:04}")).map(|resource| resource.body.value[0]);
                proptest::prop_assert_eq!(found, model.get(&name).copied());
            }
            let differs = |name: &u16| model.get(name) != model_before.get(name);
            let expected: Vec<_> = (0..300).filter(differs).map(|name| Arc::from(format!("{name:04}"))).collect();
            proptest::prop_assert_eq!(before.differences(&resources), expected.clone());
            proptest::prop_assert_eq!(resources.differences(&before), expected);
            proptest::prop_assert_eq!(resources == before, model == model_before);
        }
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
