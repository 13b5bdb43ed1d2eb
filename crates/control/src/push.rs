//! Do: keeps every connected proxy at the latest picture.
//!
//! 1. Proxies that would be sent the same are a group ([`groups`]), and what groups have in common is made once for all
//!    of them ([`shared`]): an endpoint's change is translated once per network.
//! 2. What comes in to a workload is its own ([`picture`]).
//! 3. Whom a change does not concern is not even woken. Who has not answered yet skips what is between ([`stolos_xds`]).
//! 4. How far everybody is: [`progress`].

mod describe;
mod groups;
mod picture;
mod progress;
mod shared;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use stolos_serve::Stop;
use stolos_xds::Snapshot;
use stolos_xds::server::{Nack, Proxy, Source};
use tokio::sync::{Semaphore, watch};

use crate::metrics::Metrics;
use crate::model::{ProxyInfo, World};
use crate::sign::Authenticator;
use crate::state::State;
use describe::{describe, refreshed};
use groups::Groups;
use picture::{Built, build};
pub use progress::Done;
use progress::Progress;

/// How long a proxy that connects early is held until there is something to send.
const PATIENCE: Duration = Duration::from_secs(20);

/// What proxies are sent.
pub(crate) struct Pusher {
    state: State,
    authenticator: Arc<Authenticator>,
    metrics: Arc<Metrics>,
    proxies: Mutex<BTreeMap<u64, Connected>>,
    groups: Mutex<Groups>,
    /// Who is taken in; one at a time, because each needs the groups: a thousand that come at once would be waited for
    /// on hundreds of threads.
    entering: Semaphore,
    progress: Progress,
    /// Itself, for work on other threads.
    this: Weak<Self>,
}

/// What has been made of a picture and is to be sent.
struct Push {
    /// The connections that it concerns.
    concerned: Vec<u64>,
    started: Instant,
}

struct Connected {
    info: Arc<ProxyInfo>,
    since: SystemTime,
    built: Built,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

/// A proxy, for the debug pages.
#[derive(Clone)]
pub(crate) struct Shown {
    /// Who it is.
    pub(crate) info: Arc<ProxyInfo>,
    /// Since when it is connected.
    pub(crate) since: SystemTime,
    /// What it should have.
    pub(crate) snapshot: Arc<Snapshot>,
}

impl Pusher {
    /// One that sends what `state` says to whom `authenticator` lets in.
    #[must_use]
    pub(crate) fn new(state: State, authenticator: Arc<Authenticator>, metrics: Arc<Metrics>) -> Arc<Self> {
        let (proxies, groups) = (Mutex::default(), Mutex::default());
        Arc::new_cyclic(|this| Self {
            state,
            authenticator,
            metrics,
            proxies,
            groups,
            entering: Semaphore::new(1),
            progress: Progress::new(),
            this: this.clone(),
        })
    }

    /// Sends every new picture to every proxy, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: Stop) {
        let mut worlds = self.state.worlds.clone();
        loop {
            tokio::select! {
                () = stop.asked() => return,
                changed = worlds.changed() => if changed.is_err() { return },
            }
            worlds.mark_unchanged();
            let pusher = Arc::clone(&self);
            // Translating many proxies takes a while: not on a thread that others wait for.
            match tokio::task::spawn_blocking(move || pusher.push()).await {
                Ok(push) => self.send(&push),
                Err(_) => tracing::error!("translating failed; proxies keep what they have"),
            }
        }
    }

    /// Makes what everybody is to have of the latest picture.
    fn push(&self) -> Push {
        let started = Instant::now();
        let mut groups = lock(&self.groups);
        // The latest, read under the lock: pictures are never gone back from.
        let world = &Arc::clone(&self.state.worlds.borrow());
        let same_pods = same_pods(groups.world(), world);
        groups.begin(world);
        let version: Arc<str> = world.version.to_string().into();
        let mut proxies = lock(&self.proxies);
        // A proxy that is gone has dropped its end.
        proxies.retain(|connection, proxy| {
            let stays = !proxy.snapshots.is_closed();
            if !stays {
                self.progress.gone(*connection);
            }
            stays
        });
        let mut concerned = Vec::new();
        for (connection, proxy) in proxies.iter_mut() {
            if !same_pods {
                let info = refreshed(&proxy.info, world);
                if *info != *proxy.info {
                    proxy.info = info;
                }
            }
            let follow = same_pods && groups.only_endpoints;
            let followed = if follow { proxy.built.follow(&proxy.info, &groups, &version) } else { None };
            let built = followed.unwrap_or_else(|| build(&proxy.info, &mut groups, Some(&proxy.built)));
            // Whom nothing of it concerns is not woken.
            if !Arc::ptr_eq(&built.snapshot, &proxy.built.snapshot) {
                concerned.push(*connection);
            }
            proxy.built = built;
        }
        groups.end();
        let since = world.since.unwrap_or(started);
        let built = |connection: &u64| proxies.get(connection);
        let versions = concerned
            .iter()
            .filter_map(|connection| Some((*connection, Arc::clone(&built(connection)?.built.snapshot.version))));
        self.progress.sending(world.version, since, versions);
        Push { concerned, started }
    }

    /// Wakes whom it concerns. From a thread of the runtime: a wake-up from any other is a system call for each proxy.
    fn send(&self, push: &Push) {
        let proxies = lock(&self.proxies);
        for proxy in push.concerned.iter().filter_map(|connection| proxies.get(connection)) {
            proxy.snapshots.send_replace(Arc::clone(&proxy.built.snapshot));
        }
        self.metrics.pushed(push.concerned.len(), push.started.elapsed());
    }

    /// Takes in a proxy.
    fn enter(&self, connection: u64, info: Arc<ProxyInfo>) -> watch::Receiver<Arc<Snapshot>> {
        let mut groups = lock(&self.groups);
        if groups.world().version == 0 {
            groups.begin(&Arc::clone(&self.state.worlds.borrow()));
            groups.end();
        }
        // The picture of the last push, so that whatever is newer is pushed to everybody alike: the proxy is among
        // them by then.
        let info = refreshed(&info, groups.world());
        let built = build(&info, &mut groups, None);
        let (snapshots, receiver) = watch::channel(Arc::clone(&built.snapshot));
        self.progress.sending(0, Instant::now(), [(connection, Arc::clone(&built.snapshot.version))]);
        lock(&self.proxies).insert(connection, Connected { info, since: SystemTime::now(), built, snapshots });
        drop(groups);
        receiver
    }

    /// How far the proxies are.
    #[must_use]
    pub(crate) fn done(&self) -> watch::Receiver<Done> {
        self.progress.done()
    }

    /// The connected proxies, by connection.
    #[must_use]
    pub(crate) fn connected(&self) -> BTreeMap<u64, Shown> {
        let show = |(connection, proxy): (&u64, &Connected)| {
            let snapshot = Arc::clone(&proxy.snapshots.borrow());
            (*connection, Shown { info: Arc::clone(&proxy.info), since: proxy.since, snapshot })
        };
        lock(&self.proxies).iter().filter(|(_, proxy)| !proxy.snapshots.is_closed()).map(show).collect()
    }
}

impl Source for Pusher {
    fn connect<'a>(&'a self, proxy: &'a Proxy) -> BoxFuture<'a, Result<watch::Receiver<Arc<Snapshot>>, tonic::Status>> {
        Box::pin(async move {
            let info = describe(proxy)?;
            let identity = self.authenticator.authenticate(&proxy.metadata).await?;
            if identity.namespace != info.namespace {
                let text = format!(
                    "a proxy of namespace {} cannot speak for namespace {}",
                    identity.namespace, info.namespace
                );
                return Err(tonic::Status::permission_denied(text));
            }
            if !info.account.is_empty() && identity.account != info.account {
                let text = format!("the token is of service account {}, not of {}", identity.account, info.account);
                return Err(tonic::Status::permission_denied(text));
            }
            let info = ProxyInfo { account: identity.account, ..info };
            if tokio::time::timeout(PATIENCE, self.state.ready()).await.is_err() {
                return Err(tonic::Status::unavailable("the control plane has not read its clusters yet"));
            }
            // The first of a group takes a while: not on a thread that others wait for.
            let (pusher, connection) = (self.this.upgrade(), proxy.connection);
            let pusher = pusher.ok_or_else(|| tonic::Status::unavailable("shutting down"))?;
            let _turn = self.entering.acquire().await.map_err(|_| tonic::Status::unavailable("shutting down"))?;
            let entered = tokio::task::spawn_blocking(move || pusher.enter(connection, Arc::new(info)));
            entered.await.map_err(|_| tonic::Status::internal("translating failed"))
        })
    }

    fn settled(&self, proxy: &Proxy, version: &Arc<str>) {
        self.metrics.settled(self.progress.settled(proxy.connection, version));
        tracing::debug!(node = proxy.node.id, %version, "proxy has everything");
    }

    fn refused(&self, proxy: &Proxy, nack: &Nack) {
        self.metrics.refused(&nack.type_url);
        tracing::warn!(node = proxy.node.id, type_url = &*nack.type_url, message = nack.message, "proxy refused");
    }
}

/// Whether all clusters say the same of their pods: then proxies are who they were.
fn same_pods(before: &World, now: &World) -> bool {
    before.clusters.len() == now.clusters.len()
        && before.clusters.iter().zip(&now.clusters).all(|(a, b)| a.id == b.id && Arc::ptr_eq(&a.pods, &b.pods))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in the middle leaves a state that the next picture replaces.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
