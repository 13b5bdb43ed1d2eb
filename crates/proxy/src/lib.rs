//! Carries connections between workloads, with identity and policy: the sidecar and the east-west gateway in one.
//!
//! The proxy is configured by xDS alone, in Envoy's messages. The [`agent`] (the part that has a key, a certificate and
//! a stream to the control plane) hands resources to the [`Store`], which compiles them into an immutable snapshot;
//! connections read the snapshot. It never looks at Kubernetes and has no policy of its own: time limits, retries,
//! ejection and access logs are what the resources say.
//!
//! The story of a connection is `listener` (where did it mean to go, which chain takes it, who is it), then either
//! `http` (requests, one by one) or `tcp` (the connection as a whole), then `pool` and `copy`. What is decided on the
//! way is pure: `matching`, `route`, `balance`, `outlier`, `inspect`. Start at [`run`], then read `listener`.

mod admin;
pub mod agent;
mod balance;
mod compile;
mod config;
mod copy;
pub mod dns;
mod follow;
#[doc(hidden)]
pub mod fuzz;
mod http;
mod inspect;
mod listener;
mod log;
mod matching;
mod metrics;
mod outlier;
mod pool;
mod rbac;
mod route;
mod state;
mod tcp;
mod tls;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use stolos_serve::{Container, Stop};

pub use state::{Store, check};

/// How long open connections may go on after the proxy was asked to stop, when nothing else is said.
const GRACE: Duration = Duration::from_secs(5);

/// How many threads the process of a proxy should have: the `concurrency` of its configuration (`PROXY_CONFIG`; 0 is
/// one per core, as in Istio's `ProxyConfig`). Unsaid, a gateway has one per core, and a sidecar two: it is one of two
/// in its pod, and one of many on its node.
#[must_use]
pub fn threads(kind: &str, config: &str) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let config: serde_json::Value = serde_json::from_str(config).unwrap_or_default();
    match config.get("concurrency").and_then(serde_json::Value::as_u64).map(usize::try_from) {
        Some(Ok(said)) if said > 0 => said.min(cores.max(64)),
        Some(_) => cores,
        None if kind == "sidecar" => cores.min(2),
        None => cores,
    }
}

/// Runs a proxy (`proxy sidecar` or `proxy router`) with its agent until `stop`, then drains: this one, or an Envoy
/// where the environment says `STOLOS_PROXY=envoy`.
///
/// # Errors
///
/// When the container does not say what a proxy must know. Whatever may yet come right is waited for instead.
pub async fn run(container: Container, stop: Stop) -> Result<(), agent::Unusable> {
    if container.var("STOLOS_PROXY").is_some_and(|proxy| proxy == "envoy") {
        let grace = grace(&container);
        return agent::envoy::run(container, grace, stop).await;
    }
    let agent_stop = Stop::new();
    let _agent_ends = AskOnDrop(vec![agent_stop.clone()]);
    let judge: agent::Check = Arc::new(|type_url, resource| check(type_url, &resource.body));
    let agent = agent::start(&container, judge, agent_stop.clone())?;
    let (proxy, store) = Proxy::of(&container, follow::workload(agent.node()));
    let _ = proxy.shared.agent.set(agent.clone());
    tokio::select! {
        () = proxy.run(stop) => {}
        () = follow::follow(&agent, store) => {}
    }
    agent_stop.ask();
    if tokio::time::timeout(Duration::from_secs(2), agent.ended()).await.is_err() {
        tracing::warn!("the agent did not end in time");
    }
    Ok(())
}

/// The data plane: sockets, connections, ready and metrics ports. It does what its [`Store`] says.
///
/// # Flow
///
/// 1. Listeners are opened, changed and closed as the store publishes them.
/// 2. On `stop` nothing new is accepted; requests that are under way finish, idle connections close.
/// 3. After the grace (`TERMINATION_DRAIN_DURATION_SECONDS`, 5 s) what is left is cut off.
pub struct Proxy {
    shared: Arc<state::Shared>,
    grace: Duration,
}

impl Proxy {
    /// A data plane for the workload `container` belongs to, and the store that drives it.
    #[must_use]
    pub fn new(container: &Container) -> (Self, Store) {
        let text = |name: &str| Arc::from(container.var(name).unwrap_or_default());
        let workload = metrics::Workload {
            name: text("ISTIO_META_WORKLOAD_NAME"),
            namespace: text("POD_NAMESPACE"),
            cluster: text("ISTIO_META_CLUSTER_ID"),
            ..metrics::Workload::default()
        };
        Self::of(container, workload)
    }

    fn of(container: &Container, workload: metrics::Workload) -> (Self, Store) {
        let (store, shared) = Store::new(container, workload);
        (Self { shared, grace: grace(container) }, store)
    }

    /// Runs until `stop`, then drains. Dropped before, it cuts everything off.
    pub async fn run(self, stop: Stop) {
        let Self { shared, grace } = self;
        // Whoever gives up on this future does not leave sockets behind.
        let _all_ends = AskOnDrop(vec![shared.draining.clone(), shared.cut.clone()]);
        let admin = tokio::spawn(admin::run(Arc::clone(&shared), shared.cut.child()));
        tokio::select! {
            () = listener::run(Arc::clone(&shared), stop) => {}
            () = close_old(&shared) => {}
        }

        shared.draining.ask();
        shared.tasks.close();
        // Idle upstream connections would otherwise be waited for.
        let config = shared.config.load_full();
        config.clusters.values().flat_map(|cluster| cluster.hosts()).for_each(|host| host.retire());
        if tokio::time::timeout(grace, shared.tasks.wait()).await.is_err() {
            tracing::warn!("connections still open after {grace:?}, closing them now");
        }
        shared.cut.ask();
        let _ = tokio::time::timeout(Duration::from_secs(1), shared.tasks.wait()).await;
        let _ = tokio::time::timeout(Duration::from_secs(1), admin).await;
    }
}

/// How long open connections may go on.
fn grace(container: &Container) -> Duration {
    let seconds = container.var("TERMINATION_DRAIN_DURATION_SECONDS").and_then(|seconds| seconds.parse().ok());
    seconds.map_or(GRACE, Duration::from_secs)
}

/// Asks parts to end when it goes out of scope.
struct AskOnDrop(Vec<Stop>);

impl Drop for AskOnDrop {
    fn drop(&mut self) {
        self.0.iter().for_each(Stop::ask);
    }
}

/// Closes upstream connections nobody has used for a while.
async fn close_old(shared: &state::Shared) {
    loop {
        tokio::time::sleep(pool::IDLE / 2).await;
        let now = Instant::now();
        let config = shared.config.load_full();
        config.clusters.values().flat_map(|cluster| cluster.hosts()).for_each(|host| pool::close_old(&host, now));
    }
}
