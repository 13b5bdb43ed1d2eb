//! What happens when a cluster is lost, and what never happens: all of it decisions, none of it knows a clock or a socket.
//!
//! [`health`] says when a member's word about itself is believed, [`taint`] what a member that is not ready is tainted with,
//! [`tainting`] with what else by people's policies,
//! [`task`] which copies leave a tainted cluster and when one that leaves has left (Karmada v1.18.2's taint manager and
//! graceful eviction), [`application`] which ones leave a cluster that is well because they are not, [`state`] what the
//! next copy gets from them, [`rate`] who leaves next and when. [`guard`] stands before every write that makes something smaller:
//! good replicas are taken away only where as many as [`floor`] says stay good without them. That is more than Karmada
//! promises, which deletes the old copy when its time is over.

pub mod application;
pub mod floor;
pub mod guard;
pub mod health;
pub mod rate;
pub mod state;
pub mod taint;
pub mod tainting;
pub mod task;

use std::time::Duration;

use crate::model::PurgeMode;

/// How patient a hub is with its members. The names are those of Karmada's flags.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How often a member is asked how it is (`--cluster-status-update-frequency`).
    pub status_update_frequency: Duration,
    /// How long a ready member must have said that it is not (`--cluster-failure-threshold`).
    pub failure_threshold: Duration,
    /// How long one that was not ready must have said that it is (`--cluster-success-threshold`).
    pub success_threshold: Duration,
    /// How long the agent of a member may say nothing (`--cluster-monitor-grace-period`).
    pub monitor_grace_period: Duration,
    /// How long a member may not be ready until workloads leave it (`--failover-eviction-timeout`, v1.2's flag).
    pub failover_eviction_timeout: Duration,
    /// Whether workloads leave clusters at all (`--enable-no-execute-taint-eviction`; on here, off in Karmada).
    pub evicts: bool,
    /// How the old copy goes where the policy does not say it (`--no-execute-taint-eviction-purge-mode`).
    pub purge_mode: PurgeMode,
    /// How many workloads leave in a second (`--resource-eviction-rate`).
    pub eviction_rate: f64,
    /// How many while many clusters are lost at once (`--secondary-resource-eviction-rate`).
    pub secondary_eviction_rate: f64,
    /// More than this part of the clusters is lost then (`--unhealthy-cluster-threshold`).
    pub unhealthy_cluster_threshold: f64,
    /// In a hub of no more clusters none leaves then (`--large-cluster-num-threshold`; 0 here, as Karmada v1.18.2 stops for
    /// nobody; 10 in its proposal).
    pub large_cluster_num_threshold: u32,
    /// How long a copy that is to leave waits for all others to be well (`--graceful-eviction-timeout`).
    pub graceful_eviction_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            status_update_frequency: Duration::from_secs(10),
            failure_threshold: Duration::from_secs(30),
            success_threshold: Duration::from_secs(30),
            monitor_grace_period: Duration::from_secs(40),
            failover_eviction_timeout: Duration::from_secs(300),
            evicts: true,
            purge_mode: PurgeMode::Gracefully,
            eviction_rate: 0.5,
            secondary_eviction_rate: 0.1,
            unhealthy_cluster_threshold: 0.55,
            large_cluster_num_threshold: 0,
            graceful_eviction_timeout: Duration::from_secs(600),
        }
    }
}

#[cfg(test)]
mod sweep;
#[cfg(test)]
mod tests;
