//! What one proxy is sent, and when. No I/O, no clock.
//!
//! # Order
//!
//! 1. Per type at most one response is unanswered.
//! 2. What is new or changed goes out in the order of [`ORDER`]: a listener never arrives before the clusters its
//!    routes name. Listeners and routes wait until clusters and endpoints under way are answered.
//! 3. A cluster that was sent makes its endpoints be sent again, because a proxy warms the cluster anew.
//! 4. What is gone goes last: clusters and endpoints are removed when nothing else is under way.
//! 5. Many endpoints go out in portions; listeners and routes wait for the last of them.
//! 6. A name that is asked for and does not exist is answered as removed, at once, so that nobody waits for it.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;

use super::changes::Changes;
use super::request::Names;
use crate::envoy::config::endpoint::v3::ClusterLoadAssignment;
use crate::message::{CLUSTER, ENDPOINT, LISTENER, ORDER, ROUTE, SECRET};
use crate::version::{Resource, Resources, Snapshot};

/// More types than any proxy has; what is asked beyond is not heard.
const MOST_TYPES: usize = 64;

/// The most bytes of endpoints in one response; the others follow when it is answered. Thousands of services are
/// megabytes of endpoints, and they come to a thousand proxies at once when a control plane starts. (Only endpoints: a
/// proxy takes clusters and listeners to be all there are; and only where not all must be named.)
const PORTION: usize = 256 << 10;

/// The protocol's variant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Mode {
    /// Changes only.
    Delta,
    /// The state of the world.
    Whole,
}

/// A request, of either variant.
#[derive(Debug, Default)]
pub(super) struct Ask {
    pub(super) type_url: String,
    /// In [`Mode::Whole`] the full set of names.
    pub(super) subscribe: Names,
    pub(super) unsubscribe: Vec<String>,
    /// What the proxy has from an earlier stream, name to version.
    pub(super) initial: BTreeMap<String, String>,
    pub(super) nonce: String,
    pub(super) refusal: Option<String>,
}

/// A response, of either variant.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) type_url: Arc<str>,
    pub(super) version: Arc<str>,
    pub(super) nonce: String,
    pub(super) resources: Vec<Arc<Resource>>,
    pub(super) removed: Vec<Arc<str>>,
}

/// What a request said about earlier responses.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// Nothing, or something about a response that is long superseded.
    Nothing,
    Taken {
        type_url: Arc<str>,
        version: Arc<str>,
    },
    Refused {
        type_url: Arc<str>,
        version: Arc<str>,
        message: String,
    },
}

/// One proxy's stream.
pub(super) struct Session {
    mode: Mode,
    connection: u64,
    changes: Arc<Changes>,
    snapshot: Arc<Snapshot>,
    types: BTreeMap<Arc<str>, Subscription>,
    /// The types asked for, in the order in which they are sent.
    order: Vec<Arc<str>>,
    nonces: u64,
    /// Whether there may be something to send.
    stirred: bool,
    settled: Option<Arc<str>>,
}

/// What a proxy wants and has of one type.
#[derive(Default)]
struct Subscription {
    wildcard: bool,
    /// Every name, unless there is a `base`.
    entries: BTreeMap<Arc<str>, Entry>,
    /// What stands for all entries where the proxy has just what there is, as most have most of the time: so what a
    /// thousand proxies have is kept once.
    base: Option<Base>,
    /// The number and a hash of the names that were asked for last in the state of the world: every acknowledgement
    /// repeats them all.
    asked: Option<(usize, u64)>,
    /// Nonce and snapshot version of the unanswered response.
    under_way: Option<(String, Arc<str>)>,
    /// The nonce of the last response on this stream, if there was one.
    last: Option<String>,
    /// The resources that the entries are known to agree with: as sent, if not yet as taken.
    agreed: Option<Arc<Resources>>,
}

/// Resources that a proxy has all of, and has asked for each by name or none.
struct Base {
    resources: Arc<Resources>,
    named: bool,
}

/// One name.
#[derive(Default)]
struct Entry {
    /// Asked for by name, not only by wildcard.
    named: bool,
    held: Held,
}

#[derive(Default, PartialEq)]
enum Held {
    /// To be sent, whatever the proxy has.
    #[default]
    Unsent,
    /// The proxy knows that it does not exist.
    Absent,
    At(Arc<str>),
}

impl Answer {
    /// How much it is.
    pub(super) fn bytes(&self) -> usize {
        self.resources.iter().map(|resource| resource.body.value.len()).sum()
    }
}

impl Session {
    pub(super) fn new(mode: Mode, connection: u64, changes: Arc<Changes>) -> Self {
        Self {
            mode,
            connection,
            changes,
            snapshot: Arc::default(),
            types: BTreeMap::new(),
            order: Vec::new(),
            nonces: 0,
            stirred: false,
            settled: None,
        }
    }

    /// From now on the proxy should have this.
    pub(super) fn snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = snapshot;
        self.stirred = true;
    }

    /// Whether [`answer`](Self::answer) is worth asking.
    pub(super) fn is_stirred(&self) -> bool {
        self.stirred
    }

    /// Whether a type is subscribed to by wildcard, and how many names the proxy wants or has.
    pub(super) fn subscription(&self, type_url: &str) -> Option<(bool, usize)> {
        let count = |state: &Subscription| match &state.base {
            Some(base) => base.resources.len(),
            None => state.entries.len(),
        };
        self.types.get(type_url).map(|state| (state.wildcard, count(state)))
    }

    /// Takes a request.
    pub(super) fn request(&mut self, ask: Ask) -> Heard {
        let known = self.types.contains_key(ask.type_url.as_str());
        if !known && (ask.type_url.is_empty() || self.types.len() >= MOST_TYPES) {
            return Heard::Nothing;
        }
        let type_url: Arc<str> = match self.types.get_key_value(ask.type_url.as_str()) {
            Some((type_url, _)) => Arc::clone(type_url),
            None => ask.type_url.as_str().into(),
        };
        if !known {
            self.order.push(Arc::clone(&type_url));
            let place = |url: &Arc<str>| ORDER.iter().position(|of| *of == url.as_ref()).unwrap_or(ORDER.len());
            self.order.sort_by(|a, b| (place(a), a).cmp(&(place(b), b)));
        }
        let state = self.types.entry(Arc::clone(&type_url)).or_default();
        let mut heard = Heard::Nothing;
        if !ask.nonce.is_empty() {
            match state.under_way.take() {
                Some((nonce, version)) if nonce == ask.nonce => {
                    heard = match ask.refusal {
                        Some(message) => Heard::Refused { type_url: Arc::clone(&type_url), version, message },
                        None => Heard::Taken { type_url: Arc::clone(&type_url), version },
                    };
                    self.stirred = true;
                    state.collapse();
                }
                other => {
                    state.under_way = other;
                    // The state of the world is about the latest response or about nothing. Such a request names
                    // other resources under the nonce that it has acknowledged before; after a reconnect the nonce is
                    // one of the stream before, and the request the first of this one.
                    if self.mode == Mode::Whole && known && state.last.as_ref() != Some(&ask.nonce) {
                        return Heard::Nothing;
                    }
                }
            }
        }
        // The snapshot's own text of a name is shared by all proxies that ask for it, and compared by its address.
        let resources = self.snapshot.get(&type_url);
        let shared = |name: &str| match resources.and_then(|resources| resources.get(name)) {
            Some(resource) => Arc::clone(&resource.name),
            None => name.into(),
        };
        match self.mode {
            Mode::Delta => {
                let names = ask.subscribe.iter().map(shared);
                state.change(&type_url, known, names, &ask.unsubscribe, ask.initial.into_iter());
            }
            Mode::Whole => {
                let names = Some(ask.subscribe.fingerprint());
                if std::mem::replace(&mut state.asked, names) != names {
                    state.replace(&type_url, known, ask.subscribe.iter().map(shared));
                }
            }
        }
        if state.agreed.is_none() {
            self.stirred = true;
            // Whoever asks for more is settled anew when it has it.
            self.settled = None;
        }
        heard
    }

    /// The next response to send, if there is one now.
    pub(super) fn answer(&mut self) -> Option<Answer> {
        let order = std::mem::take(&mut self.order);
        let answer = self.next_of(&order);
        self.order = order;
        self.stirred = answer.is_some();
        answer
    }

    fn next_of(&mut self, order: &[Arc<str>]) -> Option<Answer> {
        for url in order {
            if self.may_send(url)
                && let Some(answer) = self.difference(url, &removals_of(self.mode, url))
            {
                return Some(answer);
            }
        }
        if self.types.values().all(|state| state.under_way.is_none()) {
            for url in order.iter().filter(|url| matches!(url.as_ref(), CLUSTER | ENDPOINT)) {
                if let Some(answer) = self.difference(url, &Removals::Now) {
                    return Some(answer);
                }
            }
        }
        None
    }

    /// The version of the snapshot that the proxy has all of; once per version and set of subscriptions.
    pub(super) fn settled(&mut self) -> Option<Arc<str>> {
        let settled = !self.stirred && self.types.values().all(|state| state.under_way.is_none());
        if !settled || self.settled.as_ref() == Some(&self.snapshot.version) {
            return None;
        }
        self.settled = Some(Arc::clone(&self.snapshot.version));
        self.settled.clone()
    }

    fn may_send(&self, url: &str) -> bool {
        let under_way = |url: &str| self.types.get(url).is_some_and(|state| state.under_way.is_some());
        !under_way(url) && !(matches!(url, LISTENER | ROUTE) && (under_way(CLUSTER) || under_way(ENDPOINT)))
    }

    /// What is to be sent of one type, taken as sent.
    fn difference(&mut self, url: &Arc<str>, removals: &Removals) -> Option<Answer> {
        let nothing = Arc::default();
        let resources = self.snapshot.get(url).unwrap_or(&nothing);
        let state = self.types.get_mut(url)?;
        let mut found = match &state.agreed {
            Some(agreed) if Arc::ptr_eq(agreed, resources) => return None,
            Some(agreed) => state.compare_some(&self.changes.between(agreed, resources), resources, removals),
            None => {
                state.expand();
                state.compare(resources, removals)
            }
        };
        if self.mode == Mode::Delta && url.as_ref() == ENDPOINT {
            found.keep_portion();
        }
        let first = state.last.is_none() && state.wildcard;
        // Endpoints that a proxy waits for and that there are none of (any more): it is told that they are none, as
        // Istio does. Envoy acknowledges no clusters while one of them waits, and would wait for ever.
        let none: Vec<Arc<Resource>> = match self.mode {
            Mode::Whole if url.as_ref() == ENDPOINT && !state.wildcard => {
                found.missing.iter().map(no_endpoints).collect()
            }
            _ => Vec::new(),
        };
        let is_silent = found.changed.is_empty() && none.is_empty();
        if self.mode == Mode::Whole && !state.wildcard && !replaces(url) && is_silent {
            // There is no way to say that a route is gone or never was.
            state.take_as_sent(&found, resources);
            state.agreed = Some(Arc::clone(resources));
            return None;
        }
        // Whatever is sent now is all there is, or else the next comparison is of everything.
        let agreed = (!found.postponed && !found.portion).then(|| Arc::clone(resources));
        if found.is_empty() && !first {
            state.agreed = agreed.or(state.agreed.take());
            state.collapse();
            return None;
        }
        state.agreed = agreed;
        self.nonces += 1;
        let nonce = format!("{}-{}", self.connection, self.nonces);
        state.take_as_sent(&found, resources);
        state.under_way = Some((nonce.clone(), Arc::clone(&self.snapshot.version)));
        state.last = Some(nonce.clone());
        let sent = match self.mode {
            Mode::Delta => found.changed.clone(),
            // Clusters and listeners that are not named in a state of the world are gone.
            Mode::Whole if state.wildcard => resources.iter().cloned().collect(),
            Mode::Whole if replaces(url) => {
                state.names().iter().filter_map(|name| resources.get(name)).cloned().collect()
            }
            Mode::Whole => found.changed.iter().cloned().chain(none).collect(),
        };
        if url.as_ref() == CLUSTER
            && let Some(endpoints) = self.types.get_mut(ENDPOINT)
        {
            endpoints.send_again(&found.changed);
        }
        Some(Answer {
            type_url: Arc::clone(url),
            version: Arc::clone(&self.snapshot.version),
            nonce,
            resources: sent,
            removed: found.removed.into_iter().chain(found.missing).collect(),
        })
    }
}

/// The endpoints of a cluster that has none.
fn no_endpoints(cluster: &Arc<str>) -> Arc<Resource> {
    let none = ClusterLoadAssignment { cluster_name: cluster.to_string(), ..ClusterLoadAssignment::default() };
    Arc::new(Resource::of(&none))
}

/// Whether to send removals.
#[derive(PartialEq)]
enum Removals {
    Now,
    /// When nothing refers to them any more.
    Later,
}

fn removals_of(mode: Mode, url: &str) -> Removals {
    // The state of the world has no way to postpone.
    if mode == Mode::Delta && matches!(url, CLUSTER | ENDPOINT) { Removals::Later } else { Removals::Now }
}

/// How a subscription differs from what there is.
#[derive(Default)]
struct Difference {
    changed: Vec<Arc<Resource>>,
    /// What the proxy has and what is no longer.
    removed: Vec<Arc<str>>,
    /// What the proxy asked for and what is not.
    missing: Vec<Arc<str>>,
    postponed: bool,
    /// There is more, for later.
    portion: bool,
}

impl Difference {
    /// Leaves what is not too much at once.
    fn keep_portion(&mut self) {
        let mut bytes = 0;
        let fits = |resource: &&Arc<Resource>| {
            bytes += resource.body.value.len();
            bytes <= PORTION
        };
        let count = self.changed.iter().take_while(fits).count().max(1);
        if count < self.changed.len() {
            self.changed.truncate(count);
            // With the last portion.
            self.removed.clear();
            self.missing.clear();
            self.portion = true;
        }
    }

    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty() && self.missing.is_empty()
    }
}

impl Subscription {
    /// Takes a delta request's names.
    fn change(
        &mut self,
        type_url: &str,
        known: bool,
        subscribe: impl ExactSizeIterator<Item = Arc<str>>,
        unsubscribe: &[String],
        initial: impl Iterator<Item = (String, String)>,
    ) {
        if !known && subscribe.len() == 0 && has_wildcard(type_url) {
            self.wildcard = true;
        }
        let stirred = !known || subscribe.len() > 0 || !unsubscribe.is_empty();
        if stirred {
            self.expand();
        }
        for name in subscribe {
            if &*name == "*" {
                self.wildcard = true;
                continue;
            }
            // Asking again for a name asks for it to be sent again.
            self.entries.insert(name, Entry { named: true, held: Held::Unsent });
        }
        for name in unsubscribe {
            if name == "*" {
                self.wildcard = false;
                self.entries.retain(|_, entry| entry.named);
            } else {
                // If a wildcard still wants it, it is sent again, because the proxy may have dropped it.
                self.entries.remove(name.as_str());
            }
        }
        if !known {
            for (name, version) in initial {
                let held = Held::At(version.into());
                if let Some(entry) = self.entries.get_mut(name.as_str()) {
                    entry.held = held;
                } else if self.wildcard {
                    self.entries.insert(name.into(), Entry { named: false, held });
                }
            }
        }
        if stirred {
            self.agreed = None;
        }
    }

    /// Takes a state-of-the-world request's names: the full set.
    fn replace(&mut self, type_url: &str, known: bool, names: impl Iterator<Item = Arc<str>>) {
        self.expand();
        let names: std::collections::BTreeSet<Arc<str>> = names.collect();
        if names.contains("*") || (names.is_empty() && has_wildcard(type_url) && (!known || self.wildcard)) {
            self.wildcard = true;
        } else if self.wildcard {
            self.wildcard = false;
        }
        let (wildcard, before) = (self.wildcard, self.entries.len());
        self.entries.retain(|name, _| wildcard || names.contains(name));
        let mut stirred = !known || self.entries.len() != before;
        for name in names.into_iter().filter(|name| &**name != "*") {
            self.entries
                .entry(name)
                .or_insert_with(|| {
                    stirred = true;
                    Entry::default()
                })
                .named = true;
        }
        if stirred {
            self.agreed = None;
        }
    }

    /// Walks what the proxy has and what there is side by side, in the order of names.
    fn compare(&self, resources: &Resources, removals: &Removals) -> Difference {
        let mut found = Difference::default();
        let (mut have, mut want) = (self.entries.iter().peekable(), resources.iter().peekable());
        while let Some(side) = next_side(&mut have, &mut want) {
            self.judge(side, removals, &mut found);
        }
        found
    }

    /// The same for a few names, when the others are known to agree.
    fn compare_some(&self, names: &[Arc<str>], resources: &Resources, removals: &Removals) -> Difference {
        let mut found = Difference::default();
        if let Some(base) = &self.base {
            for name in names {
                match (base.resources.get(name), resources.get(name)) {
                    (Some(had), Some(resource)) if same(&had.version, &resource.version) => {}
                    (Some(_), Some(resource)) => found.changed.push(Arc::clone(resource)),
                    (None, Some(resource)) if self.wildcard => found.changed.push(Arc::clone(resource)),
                    (Some(_), None) if *removals == Removals::Now => found.removed.push(Arc::clone(name)),
                    (Some(_), None) => found.postponed = true,
                    (None, _) => {}
                }
            }
            return found;
        }
        for name in names {
            let side = match (self.entries.get_key_value(name), resources.get(name)) {
                (Some(entry), Some(resource)) => Side::Both(entry, resource),
                (Some(entry), None) => Side::Have(entry),
                (None, Some(resource)) => Side::Want(resource),
                (None, None) => continue,
            };
            self.judge(side, removals, &mut found);
        }
        found
    }

    fn judge(&self, side: Side<Had<'_>, &Arc<Resource>>, removals: &Removals, found: &mut Difference) {
        match side {
            Side::Both((_, entry), resource) => {
                if !matches!(&entry.held, Held::At(version) if same(version, &resource.version)) {
                    found.changed.push(Arc::clone(resource));
                }
            }
            Side::Want(resource) if self.wildcard => found.changed.push(Arc::clone(resource)),
            Side::Want(_) => {}
            Side::Have((name, entry)) => match &entry.held {
                Held::Absent => {}
                Held::Unsent => found.missing.push(Arc::clone(name)),
                Held::At(_) if *removals == Removals::Now => found.removed.push(Arc::clone(name)),
                Held::At(_) => found.postponed = true,
            },
        }
    }

    /// The names of all entries.
    fn names(&self) -> Vec<Arc<str>> {
        let base = self.base.iter().flat_map(|base| base.resources.iter().map(|resource| &resource.name));
        base.chain(self.entries.keys()).cloned().collect()
    }

    /// The entries one by one, to change some of them.
    fn expand(&mut self) {
        let Some(base) = self.base.take() else { return };
        let entry = |resource: &Arc<Resource>| {
            let held = Held::At(Arc::clone(&resource.version));
            (Arc::clone(&resource.name), Entry { named: base.named, held })
        };
        self.entries = base.resources.iter().map(entry).collect();
    }

    /// The opposite, if it can be.
    fn collapse(&mut self) {
        let Some(agreed) = self.agreed.as_ref().filter(|agreed| agreed.len() == self.entries.len()) else { return };
        let Some(named) = self.entries.values().next().map(|entry| entry.named) else { return };
        let fits = |((name, entry), resource): ((&Arc<str>, &Entry), &Arc<Resource>)| {
            entry.named == named
                && same(name, &resource.name)
                && matches!(&entry.held, Held::At(version) if same(version, &resource.version))
        };
        if self.entries.iter().zip(agreed.iter()).all(fits) {
            self.base = Some(Base { resources: Arc::clone(agreed), named });
            self.entries = BTreeMap::new();
        }
    }

    fn take_as_sent(&mut self, found: &Difference, resources: &Arc<Resources>) {
        if let Some(base) = &mut self.base {
            let is_there = |resource: &Arc<Resource>| base.resources.get(&resource.name).is_some();
            // Others of the same names: then all of it is what there is now.
            if found.removed.is_empty()
                && found.missing.is_empty()
                && !found.postponed
                && !found.portion
                && resources.len() == base.resources.len()
                && found.changed.iter().all(is_there)
            {
                base.resources = Arc::clone(resources);
                return;
            }
            self.expand();
        }
        for resource in &found.changed {
            let held = Held::At(Arc::clone(&resource.version));
            match self.entries.get_mut(&resource.name) {
                Some(entry) => entry.held = held,
                None => {
                    self.entries.insert(Arc::clone(&resource.name), Entry { named: false, held });
                }
            }
        }
        for name in found.removed.iter().chain(&found.missing) {
            match self.entries.get_mut(name) {
                Some(entry) if entry.named => entry.held = Held::Absent,
                _ => {
                    self.entries.remove(name);
                }
            }
        }
    }

    fn send_again(&mut self, resources: &[Arc<Resource>]) {
        if resources.is_empty() {
            return;
        }
        self.expand();
        for resource in resources {
            if let Some(entry) = self.entries.get_mut(&resource.name)
                && entry.held != Held::Absent
            {
                entry.held = Held::Unsent;
                self.agreed = None;
            }
        }
    }
}

enum Side<H, W> {
    Have(H),
    Want(W),
    Both(H, W),
}

type Had<'a> = (&'a Arc<str>, &'a Entry);

fn next_side<'a>(
    have: &mut Peekable<impl Iterator<Item = Had<'a>>>,
    want: &mut Peekable<impl Iterator<Item = &'a Arc<Resource>>>,
) -> Option<Side<Had<'a>, &'a Arc<Resource>>> {
    let order = match (have.peek(), want.peek()) {
        (None, None) => return None,
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some((name, _)), Some(resource)) if Arc::ptr_eq(name, &resource.name) => Ordering::Equal,
        (Some((name, _)), Some(resource)) => (**name).cmp(&resource.name),
    };
    match order {
        Ordering::Less => have.next().map(Side::Have),
        Ordering::Greater => want.next().map(Side::Want),
        Ordering::Equal => Some(Side::Both(have.next()?, want.next()?)),
    }
}

fn same(a: &Arc<str>, b: &Arc<str>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

/// Whether, in a state of the world, what is not named is gone.
fn replaces(type_url: &str) -> bool {
    matches!(type_url, CLUSTER | LISTENER)
}

/// Whether a first request without names asks for everything. Endpoints, routes and secrets are always named.
fn has_wildcard(type_url: &str) -> bool {
    !matches!(type_url, ENDPOINT | ROUTE | SECRET)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost_types::Any;

    fn resources(of: &[(&str, u8)]) -> Resources {
        of.iter()
            .map(|(name, content)| Resource::new(*name, Any { type_url: "t".into(), value: vec![*content] }))
            .collect()
    }

    fn snapshot(version: &str, types: &[(&str, &[(&str, u8)])]) -> Arc<Snapshot> {
        let with = |snapshot: Snapshot, (url, of): &(&str, &[(&str, u8)])| snapshot.with(*url, resources(of));
        Arc::new(types.iter().fold(Snapshot::new(version), with))
    }

    fn ask(type_url: &str, subscribe: &[&str]) -> Ask {
        let subscribe = subscribe.iter().collect();
        Ask { type_url: type_url.into(), subscribe, ..Ask::default() }
    }

    fn ack(answer: &Answer) -> Ask {
        Ask { type_url: answer.type_url.to_string(), nonce: answer.nonce.clone(), ..Ask::default() }
    }

    /// Everything that goes out until nothing does, each response acknowledged at once.
    fn drain(session: &mut Session) -> Vec<String> {
        let mut sent = Vec::new();
        while let Some(answer) = session.answer() {
            sent.push(show(&answer));
            let state = &session.types[&answer.type_url];
            let whole = session.mode == Mode::Whole && !state.wildcard;
            let subscribe = if whole { state.names().iter().collect() } else { Names::default() };
            session.request(Ask { subscribe, ..ack(&answer) });
        }
        sent
    }

    fn show(answer: &Answer) -> String {
        let kind = match &*answer.type_url {
            CLUSTER => "CDS",
            ENDPOINT => "EDS",
            LISTENER => "LDS",
            ROUTE => "RDS",
            other => other,
        };
        let names = answer.resources.iter().map(|resource| format!("+{}", resource.name));
        let gone = answer.removed.iter().map(|name| format!("-{name}"));
        std::iter::once(kind.to_owned()).chain(names).chain(gone).collect::<Vec<_>>().join(" ")
    }

    /// A proxy that has everything of this snapshot.
    fn settled(mode: Mode, first: Arc<Snapshot>, endpoints: &[&str], routes: &[&str]) -> Session {
        let mut session = Session::new(mode, 1, Arc::default());
        session.snapshot(first);
        session.request(ask(CLUSTER, &[]));
        session.request(ask(ENDPOINT, endpoints));
        session.request(ask(LISTENER, &[]));
        session.request(ask(ROUTE, routes));
        drain(&mut session);
        session
    }

    #[test]
    fn a_new_proxy_gets_everything_in_order() {
        let mut session = Session::new(Mode::Delta, 1, Arc::default());
        session.snapshot(snapshot(
            "1",
            &[
                (CLUSTER, &[("a", 1), ("b", 1)]),
                (ENDPOINT, &[("a", 1), ("b", 1), ("unasked", 1)]),
                (LISTENER, &[("l", 1)]),
                (ROUTE, &[("80", 1)]),
            ],
        ));
        for request in [ask(ROUTE, &["80"]), ask(LISTENER, &[]), ask(ENDPOINT, &["a", "b"]), ask(CLUSTER, &[])] {
            session.request(request);
        }
        assert_eq!(drain(&mut session), ["CDS +a +b", "EDS +a +b", "LDS +l", "RDS +80"]);
        assert_eq!(session.settled().as_deref(), Some("1"));
        assert_eq!(session.settled(), None, "once per version");
    }

    #[test]
    fn only_what_changed_goes_out_and_what_is_gone_goes_last() {
        let first = snapshot(
            "1",
            &[(CLUSTER, &[("a", 1), ("b", 1)]), (ENDPOINT, &[("a", 1), ("b", 1)]), (LISTENER, &[("l", 1)])],
        );
        let mut session = settled(Mode::Delta, first, &["a", "b"], &[]);
        session.snapshot(snapshot(
            "2",
            &[(CLUSTER, &[("a", 1), ("c", 1)]), (ENDPOINT, &[("a", 2), ("c", 1)]), (LISTENER, &[("l", 2)])],
        ));
        assert_eq!(drain(&mut session), ["CDS +c", "EDS +a", "LDS +l", "CDS -b", "EDS -b"]);
        session.snapshot(snapshot(
            "3",
            &[(CLUSTER, &[("a", 1), ("c", 1)]), (ENDPOINT, &[("a", 2), ("c", 1)]), (LISTENER, &[("l", 2)])],
        ));
        assert_eq!(drain(&mut session), [""; 0], "an equal snapshot sends nothing");
        assert_eq!(session.settled().as_deref(), Some("3"));
    }

    #[test]
    fn a_changed_cluster_brings_its_endpoints_again() {
        let endpoints: (&str, &[(&str, u8)]) = (ENDPOINT, &[("a", 1), ("b", 1)]);
        let first = snapshot("1", &[(CLUSTER, &[("a", 1), ("b", 1)]), endpoints]);
        for mode in [Mode::Delta, Mode::Whole] {
            let mut session = settled(mode, Arc::clone(&first), &["a", "b"], &[]);
            session.snapshot(snapshot("2", &[(CLUSTER, &[("a", 2), ("b", 1)]), endpoints]));
            let clusters = if mode == Mode::Delta { "CDS +a" } else { "CDS +a +b" };
            assert_eq!(drain(&mut session), [clusters, "EDS +a"]);
        }
    }

    /// A cluster came and went while its proxy was busy with it: in the state of the world it is told of no endpoints,
    /// once, so that it stops waiting.
    #[test]
    fn a_proxy_does_not_wait_for_endpoints_of_what_is_gone() {
        let mut session =
            settled(Mode::Whole, snapshot("1", &[(CLUSTER, &[("a", 1)]), (ENDPOINT, &[("a", 1)])]), &["a"], &[]);
        session.request(Ask { nonce: session.types[ENDPOINT].last.clone().unwrap(), ..ask(ENDPOINT, &["a", "gone"]) });
        let answer = session.answer().expect("an answer");
        let [told] = &answer.resources[..] else { panic!("one resource: {}", show(&answer)) };
        assert_eq!(told.message::<ClusterLoadAssignment>().unwrap().endpoints, []);
        assert_eq!(&*told.name, "gone");
        session.request(Ask { subscribe: Names::from_iter(["a", "gone"]), ..ack(&answer) });
        assert!(session.answer().is_none(), "once is enough");
    }

    #[test]
    fn many_endpoints_come_in_portions_and_routes_after_the_last() {
        let large = |name: &str| Resource::new(name, Any { type_url: "t".into(), value: vec![7; PORTION / 2] });
        let endpoints: Resources = ["a", "b", "c", "d", "e"].map(large).into_iter().collect();
        let now = Snapshot::new("1").with(ENDPOINT, endpoints).with(LISTENER, resources(&[("l", 1)]));
        let mut session = Session::new(Mode::Delta, 1, Arc::default());
        session.snapshot(Arc::new(now));
        session.request(ask(LISTENER, &[]));
        session.request(ask(ENDPOINT, &["a", "b", "c", "d", "e", "nowhere"]));
        assert_eq!(drain(&mut session), ["EDS +a +b", "EDS +c +d", "EDS +e -nowhere", "LDS +l"]);
        assert_eq!(session.settled().as_deref(), Some("1"));
    }

    #[test]
    fn a_slow_proxy_gets_only_the_latest() {
        let mut session = settled(Mode::Delta, snapshot("1", &[(CLUSTER, &[("a", 1)])]), &[], &[]);
        session.snapshot(snapshot("2", &[(CLUSTER, &[("a", 2)])]));
        let slow = session.answer().expect("the change goes out");
        for content in 3..50 {
            session.snapshot(snapshot(&content.to_string(), &[(CLUSTER, &[("a", content), ("b", content)])]));
            assert!(session.answer().is_none(), "one response at a time");
        }
        session.request(ack(&slow));
        let next = session.answer().expect("the rest goes out");
        assert_eq!((show(&next).as_str(), &*next.version), ("CDS +a +b", "49"));
    }

    #[test]
    fn listeners_wait_for_clusters_under_way() {
        let mut session = settled(Mode::Delta, snapshot("1", &[]), &[], &[]);
        session.snapshot(snapshot("2", &[(CLUSTER, &[("a", 1)]), (LISTENER, &[("l", 1)])]));
        let clusters = session.answer().expect("clusters go first");
        assert!(session.answer().is_none());
        session.request(ack(&clusters));
        assert_eq!(drain(&mut session), ["LDS +l"]);
    }

    #[test]
    fn a_refused_resource_is_not_sent_again_until_it_changes() {
        let mut session = settled(Mode::Delta, snapshot("1", &[(LISTENER, &[("l", 1)])]), &[], &[]);
        session.snapshot(snapshot("2", &[(LISTENER, &[("l", 2)])]));
        let answer = session.answer().expect("it goes out");
        let heard = session.request(Ask { refusal: Some("no".into()), ..ack(&answer) });
        assert_eq!(heard, Heard::Refused { type_url: LISTENER.into(), version: "2".into(), message: "no".into() });
        assert_eq!(drain(&mut session), [""; 0]);
        session.snapshot(snapshot("3", &[(LISTENER, &[("l", 1)])]));
        assert_eq!(drain(&mut session), ["LDS +l"]);
    }

    #[test]
    fn a_resumed_stream_sends_only_what_differs() {
        let mut session = Session::new(Mode::Delta, 2, Arc::default());
        let now = snapshot("9", &[(CLUSTER, &[("a", 1), ("b", 2)]), (ENDPOINT, &[("a", 1)])]);
        let version = |name: &str| now.resource(CLUSTER, name).unwrap().version.to_string();
        session.snapshot(Arc::clone(&now));
        let initial = [("a".into(), version("a")), ("b".into(), "old".into()), ("gone".into(), "x".into())].into();
        session.request(Ask { initial, nonce: "1-7".into(), ..ask(CLUSTER, &[]) });
        let initial = [("a".into(), now.resource(ENDPOINT, "a").unwrap().version.to_string())].into();
        session.request(Ask { initial, ..ask(ENDPOINT, &["a"]) });
        assert_eq!(drain(&mut session), ["CDS +b", "CDS -gone"]);
    }

    #[test]
    fn subscriptions_come_and_go() {
        let now = snapshot("1", &[(ENDPOINT, &[("a", 1), ("b", 1)])]);
        let mut session = settled(Mode::Delta, now, &["a"], &[]);
        session.request(ask(ENDPOINT, &["b", "nowhere"]));
        assert_eq!(drain(&mut session), ["EDS +b -nowhere"]);
        session.request(ask(ENDPOINT, &["a"]));
        assert_eq!(drain(&mut session), ["EDS +a"], "asked again is sent again");
        session.request(Ask { unsubscribe: vec!["a".into()], ..ask(ENDPOINT, &[]) });
        session.snapshot(snapshot("2", &[(ENDPOINT, &[("a", 2), ("b", 1), ("nowhere", 1)])]));
        assert_eq!(drain(&mut session), ["EDS +nowhere"], "what was missing appears, what was dropped does not");
    }

    #[test]
    fn the_state_of_the_world_names_everything() {
        let mut session = Session::new(Mode::Whole, 1, Arc::default());
        session.snapshot(snapshot("1", &[(CLUSTER, &[("a", 1), ("b", 1)]), (ENDPOINT, &[("a", 1), ("b", 1)])]));
        session.request(ask(CLUSTER, &[]));
        let clusters = session.answer().unwrap();
        assert_eq!(show(&clusters), "CDS +a +b");
        session.request(ack(&clusters));
        session.request(ask(ENDPOINT, &["a", "b"]));
        let endpoints = session.answer().unwrap();
        assert_eq!(show(&endpoints), "EDS +a +b");
        session.request(Ask { subscribe: Names::from_iter(["a", "b"]), ..ack(&endpoints) });
        assert!(session.answer().is_none());
        session.snapshot(snapshot("2", &[(CLUSTER, &[("a", 1)]), (ENDPOINT, &[("a", 2), ("b", 1)])]));
        let clusters = session.answer().unwrap();
        assert_eq!(show(&clusters), "CDS +a -b");
        let endpoints = session.answer().unwrap();
        assert_eq!(show(&endpoints), "EDS +a");
        let stale = Ask { subscribe: Names::default(), nonce: "1-0".into(), ..ask(ENDPOINT, &[]) };
        assert_eq!(session.request(stale), Heard::Nothing);
        assert_eq!(session.subscription(ENDPOINT), Some((false, 2)), "a stale request changes nothing");
    }
}
