//! The taints that people's policies put on members (ClusterTaintPolicy, Karmada v1.18.2's cluster taint policy controller).

use jiff::Timestamp;

use crate::model::{Cluster, ClusterTaintPolicy, Condition, FieldOperator, MatchCondition, PolicyTaint, Taint};
use crate::place::affinity;

/// The taints that a member is to have by all policies, where it is to have `taints` without them: first what is added, then
/// what is taken away, policy by policy as they were made. A taint that is there already stays as it is, with its time.
#[must_use]
pub fn by_policies(
    cluster: &Cluster,
    mut taints: Vec<Taint>,
    policies: &[ClusterTaintPolicy],
    now: Timestamp,
) -> Vec<Taint> {
    let mut policies: Vec<&ClusterTaintPolicy> = policies.iter().collect();
    policies.sort_by_key(|policy| (policy.metadata.creation_timestamp, &policy.metadata.name));
    let is = |wanted: &PolicyTaint, taint: &Taint| wanted.key == taint.key && wanted.effect == taint.effect;
    for policy in policies {
        let spec = &policy.spec;
        if !spec.target_clusters.as_ref().is_none_or(|target| affinity::matches(target, cluster)) {
            continue;
        }
        if hold(&spec.add_on_conditions, &cluster.status.conditions) {
            for wanted in &spec.taints {
                if taints.iter().any(|taint| is(wanted, taint)) {
                    continue;
                }
                // The hub's own reasons for it may be over: then it is the policy's, since when it was the hub's.
                let known = cluster.spec.taints.iter().find(|taint| is(wanted, taint)).cloned();
                taints.push(known.unwrap_or_else(|| Taint {
                    key: wanted.key.clone(),
                    value: wanted.value.clone(),
                    effect: wanted.effect,
                    time_added: Some(now),
                }));
            }
        }
        if hold(&spec.remove_on_conditions, &cluster.status.conditions) {
            taints.retain(|taint| !spec.taints.iter().any(|wanted| is(wanted, taint)));
        }
    }
    taints
}

/// Whether all conditions are as they are asked for. A condition that is not there is nothing, not even something else, and
/// nothing asked for never holds.
fn hold(asked: &[MatchCondition], conditions: &[Condition]) -> bool {
    let holds = |asked: &MatchCondition| {
        let found = conditions.iter().find(|condition| condition.type_ == asked.condition_type);
        found.is_some_and(|found| asked.status_values.contains(&found.status) == (asked.operator == FieldOperator::In))
    };
    !asked.is_empty() && asked.iter().all(holds)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::model::read;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn cluster(conditions: &[(&str, &str)], taints: &Value) -> Cluster {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(kind, status)| json!({"type": kind, "status": status, "reason": "", "message": ""}))
            .collect();
        read(&json!({"metadata": {"name": "eu"}, "spec": {"region": "west", "taints": taints},
            "status": {"conditions": conditions}}))
        .unwrap()
        .0
    }

    fn policy(name: &str, made: i64, spec: &Value) -> ClusterTaintPolicy {
        let mut policy: ClusterTaintPolicy = read(&json!({"metadata": {"name": name}, "spec": spec})).unwrap().0;
        policy.metadata.creation_timestamp = Some(at(made));
        policy
    }

    fn when(kind: &str, operator: &str, values: &[&str]) -> Value {
        json!([{"conditionType": kind, "operator": operator, "statusValues": values}])
    }

    fn shown(taints: &[Taint]) -> String {
        let each = taints.iter().map(|taint| {
            let since = taint.time_added.map_or(-1, |added| added.as_second() - 1_700_000_000);
            format!("{}={}:{:?} {since}", taint.key, taint.value, taint.effect)
        });
        each.collect::<Vec<_>>().join(", ")
    }

    /// What a cluster's conditions are, and what its taints become at 50 s.
    #[test]
    fn conditions_add_taints_and_take_them_away() {
        let policy = policy(
            "not-ready",
            0,
            &json!({"addOnConditions": when("Ready", "NotIn", &["True"]),
                "removeOnConditions": when("Ready", "In", &["True"]),
                "taints": [{"key": "down", "effect": "NoExecute", "value": "yes"}]}),
        );
        let since = json!([{"key": "down", "effect": "NoExecute", "timeAdded": at(7)}]);
        for (conditions, before, expected) in [
            (&[("Ready", "False")][..], json!([]), "down=yes:NoExecute 50"),
            (&[("Ready", "Unknown")], json!([]), "down=yes:NoExecute 50"),
            (&[("Ready", "False")], since.clone(), "down=:NoExecute 7"),
            (&[("Ready", "True")], since.clone(), ""),
            // Nobody has said anything yet.
            (&[], json!([]), ""),
            (&[], since.clone(), "down=:NoExecute 7"),
            (&[("Ready", "True")], json!([{"key": "down", "effect": "NoSchedule"}]), "down=:NoSchedule -1"),
        ] {
            let cluster = cluster(conditions, &before);
            let taints = by_policies(&cluster, cluster.spec.taints.clone(), std::slice::from_ref(&policy), at(50));
            assert_eq!(shown(&taints), expected, "{conditions:?} {before}");
        }
    }

    #[test]
    fn all_conditions_must_hold_and_only_meant_clusters_are_tainted() {
        let taints = json!([{"key": "k", "effect": "NoSchedule"}]);
        let both = json!([when("Ready", "In", &["False"])[0], when("AgentConnected", "In", &["False", "Unknown"])[0]]);
        let after = |conditions: &[(&str, &str)], spec: Value| {
            let cluster = cluster(conditions, &json!([]));
            shown(&by_policies(&cluster, Vec::new(), &[policy("p", 0, &spec)], at(50)))
        };
        let spec = |target: Value| {
            let mut spec = json!({"addOnConditions": both, "taints": taints});
            if !target.is_null() {
                spec["targetClusters"] = target;
            }
            spec
        };
        let (down, half) = ([("Ready", "False"), ("AgentConnected", "Unknown")], [("Ready", "False")]);
        assert_eq!(after(&down, spec(Value::Null)), "k=:NoSchedule 50");
        assert_eq!(after(&half, spec(Value::Null)), "");
        assert_eq!(after(&down, spec(json!({"clusterNames": ["eu"]}))), "k=:NoSchedule 50");
        assert_eq!(after(&down, spec(json!({"exclude": ["eu"]}))), "");
        assert_eq!(after(&down, json!({"taints": taints})), "");
    }

    #[test]
    fn policies_follow_each_other_as_they_were_made() {
        let taints = json!([{"key": "k", "effect": "NoSchedule"}]);
        let always = when("Ready", "In", &["True", "False"]);
        let adds = |made| policy("adds", made, &json!({"addOnConditions": always, "taints": taints}));
        let takes = |made| policy("takes", made, &json!({"removeOnConditions": always, "taints": taints}));
        let cluster = cluster(&[("Ready", "True")], &json!([]));
        let after = |policies: &[ClusterTaintPolicy]| shown(&by_policies(&cluster, Vec::new(), policies, at(50)));
        assert_eq!(after(&[takes(2), adds(1)]), "");
        assert_eq!(after(&[takes(1), adds(2)]), "k=:NoSchedule 50");
        // A taint that was the hub's own keeps its time.
        let own = json!([{"key": "cluster.karmada.io/not-ready", "effect": "NoExecute", "timeAdded": at(3)}]);
        let was = super::tests::cluster(&[("Ready", "False")], &own);
        let same = policy(
            "same",
            0,
            &json!({"addOnConditions": when("Ready", "In", &["False"]),
            "taints": [{"key": "cluster.karmada.io/not-ready", "effect": "NoExecute"}]}),
        );
        assert_eq!(shown(&by_policies(&was, Vec::new(), &[same], at(50))), "cluster.karmada.io/not-ready=:NoExecute 3");
    }
}
