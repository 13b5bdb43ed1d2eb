//! What is known of every connected proxy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::Proxy;
use super::session::{Answer, Session};

/// One connected proxy.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The stream's number.
    pub connection: u64,
    /// The proxy's node id.
    pub node: String,
    /// Since when.
    pub connected_at: SystemTime,
    /// The latest snapshot version that the proxy has all of.
    pub settled: Option<Arc<str>>,
    /// By type URL.
    pub types: BTreeMap<Arc<str>, TypeStatus>,
}

/// What a proxy has of one type.
#[derive(Clone, Debug, Default)]
pub struct TypeStatus {
    /// Whether it asked for everything there is.
    pub wildcard: bool,
    /// How many resources it wants or has.
    pub names: usize,
    /// The snapshot version of the last response.
    pub sent: Option<Arc<str>>,
    /// The snapshot version of the last response that it has taken.
    pub taken: Option<Arc<str>>,
    /// Whether a response is unanswered.
    pub under_way: bool,
    /// How many responses it has refused on this stream.
    pub refusals: u64,
    /// The last refusal; stays until a later response is taken.
    pub refused: Option<Nack>,
}

impl TypeStatus {
    /// `SYNCED`, `STALE` (an answer is outstanding), `ERROR` (refused) or `NOT SENT`, as Istio says it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match (&self.refused, self.under_way, &self.sent) {
            (Some(_), _, _) => "ERROR",
            (None, true, _) => "STALE",
            (None, false, Some(_)) => "SYNCED",
            (None, false, None) => "NOT SENT",
        }
    }
}

/// A refusal.
#[derive(Clone, Debug)]
pub struct Nack {
    /// Of this type.
    pub type_url: Arc<str>,
    /// Of this snapshot version.
    pub version: Arc<str>,
    /// In the proxy's words.
    pub message: String,
    /// When it came.
    pub at: SystemTime,
}

impl Nack {
    pub(super) fn new(type_url: Arc<str>, version: Arc<str>, message: String) -> Self {
        Self { type_url, version, message, at: SystemTime::now() }
    }
}

/// Counts of one type, over all proxies, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Responses sent.
    pub responses: u64,
    /// Resources in them.
    pub resources: u64,
    /// Responses taken.
    pub taken: u64,
    /// Responses refused.
    pub refused: u64,
}

/// The book of all connections.
#[derive(Default)]
pub(super) struct Register {
    connections: Mutex<BTreeMap<u64, Arc<Mutex<Connection>>>>,
    totals: Mutex<BTreeMap<Arc<str>, Totals>>,
}

impl Register {
    pub(super) fn connections(&self) -> Vec<Connection> {
        let all: Vec<_> = lock(&self.connections).values().cloned().collect();
        all.iter().map(|connection| lock(connection).clone()).collect()
    }

    pub(super) fn totals(&self) -> BTreeMap<Arc<str>, Totals> {
        lock(&self.totals).clone()
    }

    /// A page for this proxy, torn out when the [`Book`] is dropped.
    pub(super) fn enter(&self, proxy: &Proxy) -> Book<'_> {
        let page = Arc::new(Mutex::new(Connection {
            connection: proxy.connection,
            node: proxy.node.id.clone(),
            connected_at: SystemTime::now(),
            settled: None,
            types: BTreeMap::new(),
        }));
        lock(&self.connections).insert(proxy.connection, Arc::clone(&page));
        Book { register: self, connection: proxy.connection, page }
    }
}

/// One connection's page.
pub(super) struct Book<'a> {
    register: &'a Register,
    connection: u64,
    page: Arc<Mutex<Connection>>,
}

impl Book<'_> {
    pub(super) fn subscribed(&self, session: &Session, type_url: &str) {
        if let Some((wildcard, names)) = session.subscription(type_url) {
            self.note(type_url, |status| (status.wildcard, status.names) = (wildcard, names));
        }
    }

    pub(super) fn sent(&self, answer: &Answer) {
        self.note(&answer.type_url, |status| {
            status.sent = Some(Arc::clone(&answer.version));
            status.under_way = true;
        });
        self.count(&answer.type_url, |totals| {
            totals.responses += 1;
            totals.resources += answer.resources.len() as u64;
        });
    }

    pub(super) fn taken(&self, type_url: &str, version: Arc<str>) {
        self.note(type_url, |status| {
            status.taken = Some(version);
            status.under_way = false;
            status.refused = None;
        });
        self.count(type_url, |totals| totals.taken += 1);
    }

    pub(super) fn refused(&self, nack: &Nack) {
        self.note(&nack.type_url, |status| {
            status.under_way = false;
            status.refusals += 1;
            status.refused = Some(nack.clone());
        });
        self.count(&nack.type_url, |totals| totals.refused += 1);
    }

    pub(super) fn settled(&self, version: &Arc<str>) {
        lock(&self.page).settled = Some(Arc::clone(version));
    }

    fn note(&self, type_url: &str, change: impl FnOnce(&mut TypeStatus)) {
        let mut page = lock(&self.page);
        match page.types.get_mut(type_url) {
            Some(status) => change(status),
            None => change(page.types.entry(type_url.into()).or_default()),
        }
    }

    fn count(&self, type_url: &str, change: impl FnOnce(&mut Totals)) {
        let mut totals = lock(&self.register.totals);
        match totals.get_mut(type_url) {
            Some(of_type) => change(of_type),
            None => change(totals.entry(type_url.into()).or_default()),
        }
    }
}

impl Drop for Book<'_> {
    fn drop(&mut self) {
        lock(&self.register.connections).remove(&self.connection);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these; if it did, the figures are still worth showing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
