//! Whether agents are there, of members whose agents dial the hub: said in the Cluster, as soon as it is seen.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use stolos_k8s::meta;
use stolos_tunnel::Member;

use super::Hub;
use super::clusters::{condition, set_condition};
use crate::{label, member};

/// How often it is looked.
const LOOKED: Duration = Duration::from_secs(1);
/// Agents that were there before the hub was have so long to come again.
const COMING: Duration = Duration::from_secs(5);

/// Looks, until the hub stops.
pub(super) async fn follow(hub: Arc<Hub>) {
    let began = tokio::time::Instant::now();
    let mut tick = tokio::time::interval(LOOKED);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = hub.stop.asked() => return,
        }
        let Some(relay) = &hub.ways.relay else { return };
        for cluster in hub.own.clusters.list() {
            let name = meta::name(&cluster);
            if !member::is_pull(&cluster) || meta::deletion_timestamp(&cluster).is_some() {
                continue;
            }
            let known = relay.member(name);
            if known.is_none() && began.elapsed() < COMING {
                continue;
            }
            let Some(status) = said(&cluster["status"], known.as_ref(), Timestamp::now()) else { continue };
            // Who else has just written it writes no condition of ours; the next look is soon.
            if let Err(error) = hub.put_status(&hub.own.clusters, &cluster, &status).await {
                tracing::debug!(name, %error, "cannot say whether agents are there");
            }
        }
    }
}

/// The status with the condition as it should be, if it is not so.
fn said(status: &Value, known: Option<&Member>, now: Timestamp) -> Option<Value> {
    let agents = known.map_or(0, |known| known.connections.len());
    let (value, reason, message) = match agents {
        0 => ("False", "NoAgent", "no agent is connected".to_owned()),
        1 => ("True", "Connected", "1 agent is connected".to_owned()),
        some => ("True", "Connected", format!("{some} agents are connected")),
    };
    let before = condition(status, label::AGENTS);
    if before.is_some_and(|c| c["status"] == value && c["reason"] == reason && c["message"] == message) {
        return None;
    }
    let turned = before.is_none_or(|c| c["status"] != value);
    let mut after = status.clone();
    set_condition(&mut after, label::AGENTS, value, reason, &message);
    let lost = known.and_then(|known| known.lost).filter(|_| agents == 0);
    if let (true, Some(lost)) = (turned, lost.and_then(|lost| SignedDuration::try_from(lost).ok())) {
        let since = (now - lost).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let conditions = after["conditions"].as_array_mut().into_iter().flatten();
        conditions.filter(|c| c["type"] == label::AGENTS).for_each(|c| c["lastTransitionTime"] = since.as_str().into());
    }
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_said_once_with_the_time_it_was() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let member = |agents: u64, lost: Option<u64>| Member {
            name: "eu".into(),
            connections: (0..agents).map(|_| (([127, 0, 0, 1], 1).into(), Duration::ZERO)).collect(),
            lost: lost.map(Duration::from_secs),
            open: 0,
            opened: 0,
            sent: 0,
            received: 0,
        };
        let here = said(&Value::Null, Some(&member(1, None)), now).unwrap();
        let shown = |status: &Value| {
            let c = &status["conditions"][0];
            format!("{} {} {}: {}", c["type"], c["status"], c["reason"], c["message"]).replace('"', "")
        };
        assert_eq!(shown(&here), "AgentConnected True Connected: 1 agent is connected");
        assert!(said(&here, Some(&member(1, None)), now).is_none());
        let two = said(&here, Some(&member(2, None)), now).unwrap();
        assert_eq!(two["conditions"][0]["message"], "2 agents are connected");
        assert_eq!(two["conditions"][0]["lastTransitionTime"], here["conditions"][0]["lastTransitionTime"]);
        let cut = said(&two, Some(&member(0, Some(12))), now).unwrap();
        assert_eq!(shown(&cut), "AgentConnected False NoAgent: no agent is connected");
        assert_eq!(cut["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:48Z");
        assert!(said(&cut, None, now).is_none());
    }
}
