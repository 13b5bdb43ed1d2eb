//! Figures, under the names that Istio's dashboards know.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use stolos_serve::exposition::Exposition;
use stolos_xds::message;
use stolos_xds::server::Totals;

use crate::state::State;

/// The bounds of what is counted of delays, in seconds: Istio's, and below them those that ours are in.
const DELAYS: [&str; 13] = ["0.005", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1", "3", "5", "10", "20", "30"];

/// What has been counted since the start.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pushes: AtomicU64,
    push_micros: AtomicU64,
    settled: AtomicU64,
    delays: [AtomicU64; DELAYS.len() + 1],
    delay_micros: AtomicU64,
    csrs: AtomicU64,
    issued: AtomicU64,
    injections: AtomicU64,
    injected: AtomicU64,
    refusals: Mutex<BTreeMap<String, u64>>,
}

impl Metrics {
    /// A picture has gone out to this many proxies, in this time.
    pub(crate) fn pushed(&self, proxies: usize, took: Duration) {
        if proxies > 0 {
            self.pushes.fetch_add(1, Relaxed);
            self.push_micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
        }
    }

    /// A proxy has all of a picture; so long was it behind, if it was.
    pub(crate) fn settled(&self, delay: Option<Duration>) {
        self.settled.fetch_add(1, Relaxed);
        let Some(delay) = delay else { return };
        let seconds = delay.as_secs_f64();
        let within = |bound: &&str| bound.parse::<f64>().is_ok_and(|bound| seconds <= bound);
        let bucket = DELAYS.iter().position(within).unwrap_or(DELAYS.len());
        self.delays[bucket].fetch_add(1, Relaxed);
        self.delay_micros.fetch_add(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    /// A proxy has refused resources of this type.
    pub(crate) fn refused(&self, type_url: &str) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(short(type_url).to_owned()).or_default() += 1;
    }

    /// A certificate was asked for.
    pub(crate) fn csr(&self) {
        self.csrs.fetch_add(1, Relaxed);
    }

    /// A certificate was issued.
    pub(crate) fn issued(&self) {
        self.issued.fetch_add(1, Relaxed);
    }

    /// A pod was shown to the injector; was something added?
    pub(crate) fn injection(&self, done: bool) {
        self.injections.fetch_add(1, Relaxed);
        self.injected.fetch_add(done.into(), Relaxed);
    }

    /// Everything, as Prometheus reads it.
    #[must_use]
    pub(crate) fn text(&self, state: &State, proxies: usize, totals: &BTreeMap<std::sync::Arc<str>, Totals>) -> String {
        let mut text = Exposition::default();
        let report = state.reports.borrow().clone();
        let world = state.worlds.borrow().clone();
        let remote = report.clusters.iter().filter(|cluster| !cluster.secret.is_empty()).count();

        text.family("pilot_info", "gauge", "Version of the control plane.");
        text.sample("pilot_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        text.family("istiod_managed_clusters", "gauge", "Clusters that are watched.");
        text.sample("istiod_managed_clusters", &[("cluster_type", "local")], 1);
        text.sample("istiod_managed_clusters", &[("cluster_type", "remote")], remote as u64);
        text.family("istiod_remote_cluster_sync_status", "gauge", "Whether a cluster is in this state.");
        for cluster in &report.clusters {
            let kind = if cluster.secret.is_empty() { "local" } else { "remote" };
            for status in ["synced", "syncing", "timeout", "closed"] {
                let labels = [("cluster", cluster.id.as_str()), ("cluster_type", kind), ("status", status)];
                text.sample("istiod_remote_cluster_sync_status", &labels, u64::from(cluster.status == status));
            }
        }
        text.single(
            "remote_cluster_sync_timeouts_total",
            "counter",
            "Remote clusters given up at start.",
            report.timeouts,
        );
        text.single(
            "remote_cluster_secret_events_total",
            "counter",
            "Changes by remote secrets.",
            report.secret_events,
        );
        text.single("pilot_services", "gauge", "Services known.", world.services.by_host.len() as u64);
        text.single("pilot_xds", "gauge", "Proxies connected.", proxies as u64);
        text.family("pilot_xds_pushes", "counter", "Responses sent to proxies.");
        for (type_url, totals) in totals {
            text.sample("pilot_xds_pushes", &[("type", short(type_url))], totals.responses);
        }
        text.family("pilot_total_xds_rejects", "counter", "Responses that proxies refused.");
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for kind in ["cds", "eds", "lds", "rds", "sds", "nds"] {
            let count = refusals.get(kind).copied().unwrap_or_default();
            text.sample("pilot_total_xds_rejects", &[("type", kind)], count);
        }
        text.single("stolos_pushes_total", "counter", "Pictures that went out.", self.pushes.load(Relaxed));
        text.single(
            "stolos_push_microseconds_total",
            "counter",
            "Time spent on translating them.",
            self.push_micros.load(Relaxed),
        );
        text.single(
            "stolos_settled_total",
            "counter",
            "Pictures that proxies have all of.",
            self.settled.load(Relaxed),
        );
        text.family(
            "pilot_proxy_convergence_time",
            "histogram",
            "Seconds from the first change that a proxy had not to its acknowledgement of all of them.",
        );
        let mut sum = 0;
        for (bound, count) in DELAYS.iter().chain(&["+Inf"]).zip(&self.delays) {
            sum += count.load(Relaxed);
            text.sample("pilot_proxy_convergence_time_bucket", &[("le", bound)], sum);
        }
        text.sample("pilot_proxy_convergence_time_count", &[], sum);
        let seconds = self.delay_micros.load(Relaxed) as f64 / 1e6;
        text.sample("pilot_proxy_convergence_time_sum", &[], seconds);
        text.single("stolos_world_version", "gauge", "The picture now.", world.version);
        text.single(
            "stolos_unsupported_objects",
            "gauge",
            "Objects not fully acted on.",
            world.policies.findings.len() as u64,
        );
        text.single("citadel_server_csr_count", "counter", "Certificates asked for.", self.csrs.load(Relaxed));
        text.single(
            "citadel_server_success_cert_issuance_count",
            "counter",
            "Certificates issued.",
            self.issued.load(Relaxed),
        );
        text.single(
            "sidecar_injection_requests_total",
            "counter",
            "Pods shown to the injector.",
            self.injections.load(Relaxed),
        );
        text.single("sidecar_injection_success_total", "counter", "Pods injected.", self.injected.load(Relaxed));
        text.text()
    }
}

/// `cds`, `eds`, … for a type URL.
#[must_use]
pub(crate) fn short(type_url: &str) -> &str {
    match type_url {
        message::CLUSTER => "cds",
        message::ENDPOINT => "eds",
        message::LISTENER => "lds",
        message::ROUTE => "rds",
        message::SECRET => "sds",
        message::NAME_TABLE => "nds",
        other => other,
    }
}
