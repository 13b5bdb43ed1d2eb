//! One API server: its state, and what every part of it needs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use stolos_serve::Stop;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::auth::{Grants, Keys, KnownTokens};
use crate::defaults::Addresses;
use crate::extension::{Extension, Place};
use crate::failure::{Failure, Result};
use crate::metrics::Metrics;
use crate::naming;
use crate::registry::{CRDS, Registry};
use crate::runtime::{PodRuntime, ServiceResolver};
use crate::state::State;
use crate::stream::Running;

/// What an embedder may choose.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Whether endpoints may have loopback addresses.
    pub(crate) allow_loopback_endpoints: bool,
    /// `gitTreeState` of `/version`.
    pub(crate) version_suffix: String,
    /// How often a watch says where it is.
    pub(crate) bookmark_every: Duration,
    /// Requests at once that only read.
    pub(crate) reading: usize,
    /// Requests at once that write.
    pub(crate) writing: usize,
    /// The cluster's domain.
    pub(crate) cluster_domain: String,
    /// The issuer of tokens.
    pub(crate) issuer: String,
    /// Audiences of tokens that name none.
    pub(crate) audiences: Vec<String>,
}

/// Watches at once: each costs a task and some kilobytes for as long as it goes on.
const WATCHES: usize = 20_000;

/// What a request takes a place among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Among {
    /// Those that only read.
    Reading,
    /// Those that write.
    Writing,
    /// Those that go on.
    Watching,
}

/// Parts of resources that the embedder serves.
pub(crate) type Extensions = Arc<Vec<(Place, Arc<dyn Extension>)>>;

/// One API server.
pub(crate) struct Api {
    /// All objects.
    pub(crate) state: Arc<State>,
    /// All resources.
    pub(crate) registry: Arc<Registry>,
    /// Keys and certificates.
    pub(crate) keys: Keys,
    /// The embedder's choices.
    pub(crate) settings: Settings,
    /// ClusterIPs in use.
    pub(crate) addresses: Addresses,
    /// Asked when the server stops.
    pub(crate) stop: Stop,
    /// Counters.
    pub(crate) metrics: Metrics,
    /// Names that definitions under way have been given.
    pub(crate) naming: naming::Claims,
    /// How many writes have been charged to a quota and are not stored yet.
    pub(crate) charging: Arc<AtomicUsize>,
    /// Tokens that were checked.
    pub(crate) tokens: KnownTokens,
    /// Roles that were looked for.
    pub(crate) grants: Grants,
    runtime: RwLock<Option<Arc<dyn PodRuntime>>>,
    resolver: RwLock<Option<Arc<dyn ServiceResolver>>>,
    extensions: RwLock<Extensions>,
    /// Connections that were upgraded.
    pub(crate) streams: Running,
    slots: [Arc<Semaphore>; 3],
}

impl Api {
    /// Puts the parts together.
    #[must_use]
    pub(crate) fn new(
        state: Arc<State>,
        keys: Keys,
        settings: Settings,
        addresses: Addresses,
        stop: Stop,
    ) -> Arc<Self> {
        let registry = Arc::new(Registry::new([]));
        // What is served is what is stored.
        let served = Arc::clone(&registry);
        state.follow(CRDS, move |state| {
            let crds = state.cache(CRDS).list("");
            served.replace(crds.iter().map(|object| &*object.value));
        });
        let slots = [settings.reading, settings.writing, WATCHES].map(|places| Arc::new(Semaphore::new(places)));
        Arc::new(Self {
            state,
            registry,
            keys,
            settings,
            addresses,
            stop,
            metrics: Metrics::default(),
            naming: naming::Claims::default(),
            charging: Arc::default(),
            tokens: KnownTokens::default(),
            grants: Grants::default(),
            runtime: RwLock::new(None),
            resolver: RwLock::new(None),
            extensions: RwLock::default(),
            slots,
            streams: Running::default(),
        })
    }

    /// The time, as objects carry it.
    #[must_use]
    pub(crate) fn now(&self) -> String {
        crate::verb::seconds(jiff::Timestamp::now())
    }

    /// The time in so many seconds.
    #[must_use]
    pub(crate) fn now_plus(&self, seconds: i64) -> jiff::Timestamp {
        jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds)
    }

    /// A place among the requests under way.
    ///
    /// # Errors
    ///
    /// 429 when there are too many: to refuse costs less than to grow.
    pub(crate) fn slot(&self, among: Among) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.slots[among as usize]).try_acquire_owned().map_err(|_| {
            if let Some(refused) = self.metrics.refused.get(among as usize) {
                refused.fetch_add(1, Ordering::Relaxed);
            }
            Failure::too_many_requests("too many requests, please try again later")
        })
    }

    /// Requests under way: reading, writing.
    #[must_use]
    pub(crate) fn under_way(&self) -> [usize; 2] {
        let Settings { reading, writing, .. } = self.settings;
        [reading - self.slots[0].available_permits(), writing - self.slots[1].available_permits()]
    }

    /// Watches under way.
    #[must_use]
    pub(crate) fn watches_under_way(&self) -> usize {
        WATCHES - self.slots[2].available_permits()
    }

    /// Waits until what writes has finished, for a while.
    pub(crate) async fn written(&self) {
        let all = u32::try_from(self.settings.writing).unwrap_or(u32::MAX);
        let waiting = self.slots[Among::Writing as usize].acquire_many(all);
        if tokio::time::timeout(Duration::from_secs(5), waiting).await.is_err() {
            tracing::warn!("requests that write have not finished in time");
        }
    }

    /// Who runs pods, if anybody does.
    #[must_use]
    pub(crate) fn runtime(&self) -> Option<Arc<dyn PodRuntime>> {
        self.runtime.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Who knows the way to Services, if anybody does.
    #[must_use]
    pub(crate) fn resolver(&self) -> Option<Arc<dyn ServiceResolver>> {
        self.resolver.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// From now on pods are run by `runtime`.
    pub(crate) fn set_runtime(&self, runtime: Arc<dyn PodRuntime>) {
        self.registry.measure(runtime.usage().is_some());
        *self.runtime.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(runtime);
    }

    /// From now on Services are reached through `resolver`.
    pub(crate) fn set_resolver(&self, resolver: Arc<dyn ServiceResolver>) {
        *self.resolver.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(resolver);
    }

    /// What the embedder serves.
    #[must_use]
    pub(crate) fn extensions(&self) -> Extensions {
        Arc::clone(&self.extensions.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// From now on what is below `place` is served by `extension`.
    pub(crate) fn extend(&self, place: Place, extension: Arc<dyn Extension>) {
        let mut extensions = self.extensions.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let others = extensions.iter().filter(|(known, _)| *known != place).cloned();
        let all = others.chain([(place.clone(), extension)]).collect();
        *extensions = Arc::new(all);
    }
}
