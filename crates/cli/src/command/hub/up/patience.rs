//! How patient a hub is with its members: Karmada's flags.

use std::time::Duration;

use clap::Args;
use stolos_hub::evict;
use stolos_hub::model::PurgeMode;

/// How patient a hub is with its members: Karmada's flags.
#[derive(Args, Clone, Debug)]
pub(crate) struct PatienceArgs {
    /// How often a member is asked how it is
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    cluster_status_update_frequency: Duration,

    /// How long a member must have been unwell until it counts as not ready
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    cluster_failure_threshold: Duration,

    /// How long it must have been well until it counts as ready again
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    cluster_success_threshold: Duration,

    /// How long the agent of a member may be silent
    #[arg(long, value_name = "TIME", default_value = "40s", value_parser = time)]
    cluster_monitor_grace_period: Duration,

    /// How long a member may not be ready until its workloads leave it, if their policy does not tolerate it longer
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    failover_eviction_timeout: Duration,

    /// Whether workloads leave clusters with a `NoExecute` taint at all (Karmada: false)
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    enable_no_execute_taint_eviction: bool,

    /// How the old copy goes where the policy does not say it
    #[arg(long, value_name = "MODE", default_value = "Gracefully", value_parser = ["Gracefully", "Directly"])]
    no_execute_taint_eviction_purge_mode: String,

    /// How many workloads leave their clusters in a second
    #[arg(long, value_name = "NUMBER", default_value_t = 0.5, value_parser = rate)]
    resource_eviction_rate: f64,

    /// How many while more clusters are lost than `--unhealthy-cluster-threshold` says
    #[arg(long, value_name = "NUMBER", default_value_t = 0.1, value_parser = rate)]
    secondary_resource_eviction_rate: f64,

    /// The part of the clusters from which on workloads leave theirs more slowly
    #[arg(long, value_name = "PART", default_value_t = 0.55, value_parser = part)]
    unhealthy_cluster_threshold: f64,

    /// In a hub of no more clusters than this none leaves then
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    large_cluster_num_threshold: u32,

    /// How long a copy that is to leave a cluster waits for all others to be well; it goes later where too few are ready
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    graceful_eviction_timeout: Duration,
}

impl PatienceArgs {
    pub(super) fn settings(&self) -> evict::Settings {
        evict::Settings {
            status_update_frequency: self.cluster_status_update_frequency,
            failure_threshold: self.cluster_failure_threshold,
            success_threshold: self.cluster_success_threshold,
            monitor_grace_period: self.cluster_monitor_grace_period,
            failover_eviction_timeout: self.failover_eviction_timeout,
            evicts: self.enable_no_execute_taint_eviction,
            purge_mode: match self.no_execute_taint_eviction_purge_mode.as_str() {
                "Directly" => PurgeMode::Directly,
                _ => PurgeMode::Gracefully,
            },
            eviction_rate: self.resource_eviction_rate,
            secondary_eviction_rate: self.secondary_resource_eviction_rate,
            unhealthy_cluster_threshold: self.unhealthy_cluster_threshold,
            large_cluster_num_threshold: self.large_cluster_num_threshold,
            graceful_eviction_timeout: self.graceful_eviction_timeout,
        }
    }
}

/// A time, as Karmada's flags have it.
fn time(text: &str) -> Result<Duration, String> {
    let parse = || {
        let mut rest = text;
        let mut all = Duration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
            let (number, more) = rest.split_at(digits);
            let number: u64 = number.parse().ok()?;
            let unit = more.find(|c: char| c.is_ascii_digit()).unwrap_or(more.len());
            let (unit, more) = more.split_at(unit);
            all = all.checked_add(match unit {
                "ms" => Duration::from_millis(number),
                "s" => Duration::from_secs(number),
                "m" => Duration::from_secs(number.checked_mul(60)?),
                "h" => Duration::from_secs(number.checked_mul(3600)?),
                _ => return None,
            })?;
            rest = more;
        }
        Some(all).filter(|all| !all.is_zero() && *all <= Duration::from_secs(86_400 * 30))
    };
    parse().ok_or_else(|| "write a time, as `30s`, `500ms` or `1m30s`".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate: f64 = text.parse().map_err(|_| "write a number, as `0.5`".to_owned())?;
    if rate.is_finite() && (0.0..=10_000.0).contains(&rate) { Ok(rate) } else { Err("write 0 to 10000".to_owned()) }
}

fn part(text: &str) -> Result<f64, String> {
    let part: f64 = text.parse().map_err(|_| "write a number, as `0.55`".to_owned())?;
    if (0.0..=1.0).contains(&part) { Ok(part) } else { Err("write 0 to 1".to_owned()) }
}
