//! What a hub counts, as Prometheus reads it, and whether it is well.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Router, routing::get};
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use stolos_k8s::meta;
use stolos_serve::exposition::{self, Exposition};
use stolos_serve::listen::{self, Settings};
use stolos_serve::{Listener, Stop};

use super::clusters::{condition, is_ready};
use super::{Hub, Queues, Running};
use crate::queue::Figures;

/// A queue that has not moved for so long hangs: it looks up at least every half minute.
const STUCK: Duration = Duration::from_secs(300);

/// The pages of a hub: of one that acts, or of one of several.
#[derive(Default)]
pub struct Pages {
    acting: Mutex<Option<Arc<Hub>>>,
    stands_by: Mutex<bool>,
}

impl Pages {
    /// This hub acts from now on.
    pub fn acts(&self, running: &Running) {
        *self.stands_by() = false;
        *self.acting() = Some(Arc::clone(&running.hub));
    }

    /// It acts no longer, or not yet; `is_known` says whether another one does.
    pub fn stands(&self, is_known: bool) {
        *self.acting() = None;
        *self.stands_by() = is_known;
    }

    fn acting(&self) -> std::sync::MutexGuard<'_, Option<Arc<Hub>>> {
        self.acting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stands_by(&self) -> std::sync::MutexGuard<'_, bool> {
        self.stands_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hub(&self) -> Option<Arc<Hub>> {
        self.acting().clone()
    }

    fn text(&self) -> String {
        let hub = self.hub();
        let mut page = Exposition::default();
        page.single("stolos_hub_leader", "gauge", "Whether this hub acts.", u8::from(hub.is_some()));
        if let Some(hub) = hub {
            write(&mut page, &hub);
        }
        page.text()
    }

    /// Serves `/metrics`, `/healthz` and `/readyz` until `stop`.
    pub async fn serve(self: Arc<Self>, listener: Listener, stop: Stop) {
        let pages = Router::new()
            .route("/metrics", get(text))
            .route("/healthz", get(health))
            .route("/readyz", get(ready))
            .with_state(self);
        listen::http(listener, Settings::default(), stop, move |_| TowerToHyperService::new(pages.clone())).await;
    }
}

async fn text(State(pages): State<Arc<Pages>>) -> ([(&'static str, &'static str); 1], String) {
    ([("content-type", exposition::MEDIA_TYPE)], pages.text())
}

async fn health(State(pages): State<Arc<Pages>>) -> (StatusCode, String) {
    let stuck = pages.hub().and_then(|hub| hub.queue_figures().into_iter().find(|queue| queue.silent > STUCK));
    match stuck {
        Some(queue) => (StatusCode::SERVICE_UNAVAILABLE, format!("the queue {} does not move\n", queue.name)),
        None => (StatusCode::OK, "ok\n".to_owned()),
    }
}

async fn ready(State(pages): State<Arc<Pages>>) -> (StatusCode, &'static str) {
    match pages.hub().is_some() || *pages.stands_by() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "has not looked at everything yet\n"),
    }
}

impl Hub {
    fn queue_figures(&self) -> Vec<Figures> {
        let queues = &*self.queues;
        let Queues {
            clusters,
            namespaces,
            policies,
            templates,
            schedule,
            bind,
            evict,
            works,
            depend,
            aggregate,
            impersonate,
            rebalance,
            kinds: _,
            needing: _,
        } = queues;
        vec![
            clusters.figures(),
            namespaces.figures(),
            policies.figures(),
            templates.figures(),
            schedule.figures(),
            bind.figures(),
            evict.figures(),
            depend.figures(),
            works.figures(),
            aggregate.figures(),
            impersonate.figures(),
            rebalance.figures(),
        ]
    }
}

/// How many of each, by two words.
type Counts<'a> = BTreeMap<(&'a str, &'a str), usize>;

fn write(page: &mut Exposition, hub: &Hub) {
    let queues: Vec<Figures> = hub.queue_figures();
    page.family("stolos_hub_queue_length", "gauge", "Things that are to be looked at.");
    for queue in &queues {
        for (when, length) in [("now", queue.waiting), ("later", queue.later), ("under_way", queue.under_way)] {
            page.sample("stolos_hub_queue_length", &[("queue", queue.name), ("when", when)], length);
        }
    }
    page.family("stolos_hub_looks_total", "counter", "Looks at things, by how they ended.");
    for queue in &queues {
        for (result, count) in [("done", queue.done), ("failed", queue.failed)] {
            page.sample("stolos_hub_looks_total", &[("queue", queue.name), ("result", result)], count);
        }
    }
    let bindings = [hub.own.bindings.glance(), hub.own.cluster_bindings.glance()].concat();
    let mut counts: BTreeMap<&str, usize> = ["scheduled", "unscheduled", "applied"].map(|state| (state, 0)).into();
    for binding in &bindings {
        let is = |kind: &str| condition(&binding["status"], kind).is_some_and(|found| found["status"] == "True");
        // What others need has no schedule of its own.
        let placed = is("Scheduled") || binding["spec"]["placement"].is_null();
        *counts.entry(if placed { "scheduled" } else { "unscheduled" }).or_default() += 1;
        *counts.entry("applied").or_default() += usize::from(is("FullyApplied"));
    }
    page.family(
        "stolos_hub_bindings",
        "gauge",
        "Bindings: with a place, without one, and applied in all their places.",
    );
    for (state, count) in counts {
        page.sample("stolos_hub_bindings", &[("state", state)], count);
    }
    let help = "Templates that no policy selects.";
    page.single("stolos_hub_unmatched_templates", "gauge", help, hub.waiting().len());
    works(page, &hub.own.works.glance());
    members(page, &hub.own.clusters.list());
}

fn works(page: &mut Exposition, works: &[Arc<Value>]) {
    let mut counts = Counts::new();
    for work in works {
        let Some(cluster) = meta::namespace(work).strip_prefix("karmada-es-") else { continue };
        let state = match condition(&work["status"], "Applied").map(|applied| applied["status"] == "True") {
            _ if work["spec"]["suspendDispatching"] == true => "suspended",
            Some(true) => "applied",
            Some(false) => "failed",
            None => "pending",
        };
        *counts.entry((cluster, state)).or_default() += 1;
    }
    page.family("stolos_hub_works", "gauge", "Works of a member, by what came of them.");
    for ((cluster, state), count) in counts {
        page.sample("stolos_hub_works", &[("cluster", cluster), ("state", state)], count);
    }
}

fn members(page: &mut Exposition, clusters: &[Arc<Value>]) {
    page.family("stolos_hub_member_ready", "gauge", "Whether a member is ready.");
    for cluster in clusters {
        let mode = cluster["spec"]["syncMode"].as_str().unwrap_or_default();
        let labels = [("cluster", meta::name(cluster)), ("mode", mode)];
        page.sample("stolos_hub_member_ready", &labels, u8::from(is_ready(cluster)));
    }
    page.family("stolos_hub_member_taints", "gauge", "Taints of a member.");
    for cluster in clusters {
        let taints = cluster["spec"]["taints"].as_array().map_or(0, Vec::len);
        page.sample("stolos_hub_member_taints", &[("cluster", meta::name(cluster))], taints);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn works_and_members_are_counted_by_what_came_of_them() {
        let work = |cluster: &str, status: Value, suspended: bool| {
            Arc::new(json!({"metadata": {"namespace": format!("karmada-es-{cluster}"), "name": "w"},
                "spec": {"suspendDispatching": suspended}, "status": {"conditions": [{"type": "Applied", "status": status}]}}))
        };
        let (yes, no) = (json!("True"), json!("False"));
        let all = [
            work("eu", yes.clone(), false),
            work("eu", yes.clone(), false),
            work("ap", no, false),
            work("ap", yes, true),
        ];
        let cluster = |name: &str, ready: &str, taints: Value| {
            Arc::new(json!({"metadata": {"name": name}, "spec": {"syncMode": "Push", "taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
        };
        let mut page = Exposition::default();
        works(&mut page, &all);
        members(&mut page, &[cluster("eu", "True", json!(null)), cluster("ap", "False", json!([{"key": "a"}]))]);
        insta::assert_snapshot!(page.text(), @r#"
        # HELP stolos_hub_works Works of a member, by what came of them.
        # TYPE stolos_hub_works gauge
        stolos_hub_works{cluster="ap",state="failed"} 1
        stolos_hub_works{cluster="ap",state="suspended"} 1
        stolos_hub_works{cluster="eu",state="applied"} 2
        # HELP stolos_hub_member_ready Whether a member is ready.
        # TYPE stolos_hub_member_ready gauge
        stolos_hub_member_ready{cluster="eu",mode="Push"} 1
        stolos_hub_member_ready{cluster="ap",mode="Push"} 0
        # HELP stolos_hub_member_taints Taints of a member.
        # TYPE stolos_hub_member_taints gauge
        stolos_hub_member_taints{cluster="eu"} 0
        stolos_hub_member_taints{cluster="ap"} 1
        "#);
        // Nobody acts yet: that is said, and it is not ready.
        insta::assert_snapshot!(Pages::default().text(), @r"
        # HELP stolos_hub_leader Whether this hub acts.
        # TYPE stolos_hub_leader gauge
        stolos_hub_leader 0
        ");
    }
}
