//! How members are, in a line each.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use stolos_cluster::objects;
use stolos_k8s::meta;

use super::is_pull;
use crate::kinds::clusters;
use crate::{Error, label};

/// How a member is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// The member.
    pub name: String,
    /// `Push` or `Pull`.
    pub mode: String,
    /// Its version.
    pub version: String,
    /// Whether it is ready: `True`, `False`, `Unknown`.
    pub ready: String,
    /// Since when that is so.
    pub since: Option<String>,
    /// Why it is not.
    pub message: String,
    /// Of a member whose agents dial: how many are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agents: Option<usize>,
    /// Since when there are any, or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agents_since: Option<String>,
    /// The keys of its taints with their effects.
    pub taints: Vec<String>,
}

impl Standing {
    /// Of a Cluster.
    #[must_use]
    pub fn of(cluster: &Value) -> Self {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let find = |kind: &str| {
            let mut conditions = cluster["status"]["conditions"].as_array().into_iter().flatten();
            conditions.find(|condition| condition["type"] == kind)
        };
        let ready = find("Ready");
        let agents = find(label::AGENTS).filter(|_| is_pull(cluster));
        let count = |condition: &Value| match (condition["status"] == "True", text(&condition["message"])) {
            (false, _) => 0,
            (true, message) => message.split(' ').next().and_then(|count| count.parse().ok()).unwrap_or(1),
        };
        let taints = cluster["spec"]["taints"].as_array().into_iter().flatten();
        Self {
            name: meta::name(cluster).to_owned(),
            mode: text(&cluster["spec"]["syncMode"]),
            version: text(&cluster["status"]["kubernetesVersion"]),
            ready: ready.map_or_else(|| "Unknown".to_owned(), |ready| text(&ready["status"])),
            since: ready.map(|ready| text(&ready["lastTransitionTime"])),
            message: ready.filter(|c| c["status"] != "True").map(|c| text(&c["message"])).unwrap_or_default(),
            agents: agents.map(count),
            agents_since: agents.map(|agents| text(&agents["lastTransitionTime"])),
            taints: taints.map(|taint| format!("{}:{}", text(&taint["key"]), text(&taint["effect"]))).collect(),
        }
    }

    /// Whether all is as it should be: ready, and with an agent if it is one that has agents.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.ready == "True" && self.agents != Some(0)
    }

    /// For how long it has been ready, or not.
    #[must_use]
    pub fn age(&self, now: Timestamp) -> Option<Duration> {
        age(self.since.as_deref(), now)
    }

    /// For how long there have been agents, or none.
    #[must_use]
    pub fn agents_age(&self, now: Timestamp) -> Option<Duration> {
        age(self.agents_since.as_deref(), now)
    }
}

/// How all members of a hub are, and when that was asked.
///
/// # Errors
///
/// When the hub cannot be asked.
pub async fn standings(hub: &kube::Client) -> Result<(Vec<Standing>, Timestamp), Error> {
    let mut all: Vec<_> = objects::list(hub, &clusters(), None, None).await?.iter().map(Standing::of).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok((all, Timestamp::now()))
}

fn age(since: Option<&str>, now: Timestamp) -> Option<Duration> {
    let since: Timestamp = since?.parse().ok()?;
    Some(Duration::try_from(now.duration_since(since)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cut_tunnel_shows_before_readiness_does() {
        let cluster = |mode: &str, conditions: Value| {
            json!({"metadata": {"name": "eu"}, "spec": {"syncMode": mode, "taints": [{"key": "k", "effect": "NoSchedule"}]},
                "status": {"kubernetesVersion": "v1.34.0", "conditions": conditions}})
        };
        let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let agents = |status: &str, message: &str| {
            json!({"type": "AgentConnected", "status": status, "message": message,
                "lastTransitionTime": "2026-01-01T00:00:50Z"})
        };
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let cut = Standing::of(&cluster("Pull", json!([ready, agents("False", "no agent is connected")])));
        assert_eq!((cut.is_well(), cut.agents, cut.agents_age(now)), (false, Some(0), Some(Duration::from_secs(10))));
        assert_eq!((cut.age(now), cut.ready.as_str()), (Some(Duration::from_secs(60)), "True"));
        assert_eq!(cut.taints, ["k:NoSchedule"]);
        let two = Standing::of(&cluster("Pull", json!([ready, agents("True", "2 agents are connected")])));
        assert_eq!((two.is_well(), two.agents), (true, Some(2)));
        let push = Standing::of(&cluster("Push", json!([ready, agents("False", "left over")])));
        assert_eq!((push.is_well(), push.agents), (true, None));
        let fresh = Standing::of(&cluster("Push", json!([])));
        assert_eq!((fresh.is_well(), fresh.ready.as_str(), fresh.age(now)), (false, "Unknown", None));
    }
}
