//! One API server: its state, and what every part of it needs.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use stolos_serve::Stop;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::auth::Keys;
use crate::defaults::Addresses;
use crate::failure::{Failure, Result};
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
    /// Requests at once.
    pub(crate) in_flight: usize,
    /// The cluster's domain.
    pub(crate) cluster_domain: String,
    /// The issuer of tokens.
    pub(crate) issuer: String,
    /// Audiences of tokens that name none.
    pub(crate) audiences: Vec<String>,
}

/// Counters for `/metrics`.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// Requests so far.
    pub(crate) requests: AtomicU64,
    /// Requests refused because too many were under way.
    pub(crate) refused: AtomicU64,
}

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
    runtime: RwLock<Option<Arc<dyn PodRuntime>>>,
    resolver: RwLock<Option<Arc<dyn ServiceResolver>>>,
    slots: Semaphore,
    /// Connections that were upgraded.
    pub(crate) streams: Running,
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
        let slots = Semaphore::new(settings.in_flight);
        Arc::new(Self {
            state,
            registry,
            keys,
            settings,
            addresses,
            stop,
            metrics: Metrics::default(),
            runtime: RwLock::new(None),
            resolver: RwLock::new(None),
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
    /// When there are too many.
    pub(crate) fn slot(&self) -> Result<SemaphorePermit<'_>> {
        self.slots.try_acquire().map_err(|_| {
            self.metrics.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Failure::too_many_requests("The server is handling too many requests, please try again later.")
        })
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
        *self.runtime.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(runtime);
    }

    /// From now on Services are reached through `resolver`.
    pub(crate) fn set_resolver(&self, resolver: Arc<dyn ServiceResolver>) {
        *self.resolver.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(resolver);
    }
}
