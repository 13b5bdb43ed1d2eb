//! A hub loses a member: what it had is elsewhere before anything of it goes, the member comes back and nothing thrashes, and
//! one that never comes back leaves.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::hub::{Hub, MEMBERS, PATIENCE};
use crate::world::eventually;

/// Karmada's patience is minutes.
const QUICK: [&str; 12] = [
    "--cluster-status-update-frequency",
    "500ms",
    "--cluster-failure-threshold",
    "1s",
    "--cluster-success-threshold",
    "1s",
    "--failover-eviction-timeout",
    "2s",
    "--resource-eviction-rate",
    "20",
    "--graceful-eviction-timeout",
    "5m",
];
const ALL: i64 = 10;

/// Where ten replicas of `hello` go: to these.
fn policy(members: &str, more: &str) -> String {
    format!(
        "apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {{name: hello-propagation{more}}}\nspec:\n  \
         resourceSelectors:\n  - {{apiVersion: apps/v1, kind: Deployment, name: hello}}\n  \
         - {{apiVersion: v1, kind: Service, name: hello}}\n  placement:\n    \
         clusterAffinity: {{clusterNames: [{members}]}}\n    \
         replicaScheduling: {{replicaSchedulingType: Divided, replicaDivisionPreference: Weighted}}\n"
    )
}

impl Hub {
    /// Waits until the ready replicas of `hello` are in these members alone, and looks all the time whether there are at
    /// least so many.
    async fn moves_to(&self, members: &[&str], least: i64) -> BTreeMap<&'static str, i64> {
        eventually("the move", PATIENCE, async || {
            let found = self.replicas_not_below("hello", least).await;
            let ready: i64 = found.values().map(|(_, ready)| ready).sum();
            let there = found.keys().copied().eq(members.iter().copied());
            match there && ready == ALL && found.values().all(|(wanted, ready)| wanted == ready) {
                true => Ok(found.into_iter().map(|(member, (wanted, _))| (member, wanted)).collect()),
                false => Err(format!("{found:?}")),
            }
        })
        .await
    }

    /// The binding of `hello`.
    async fn binding(&self) -> Value {
        self.kubectl(&["get", "rb", "hello-deployment", "-o", "json"]).await.ends_with(0).document()
    }

    /// Waits until a member is ready, or is not, and has these taints.
    async fn is(&self, member: &str, ready: &str, taints: &[&str]) {
        eventually(member, PATIENCE, async || {
            let cluster = self.kubectl(&["get", "cluster", member, "-o", "json"]).await.document();
            let conditions = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let said = conditions.iter().find(|condition| condition["type"] == "Ready").map(|c| c["status"].clone());
            let found = cluster["spec"]["taints"].as_array().cloned().unwrap_or_default();
            let found: Vec<String> =
                found.iter().map(|taint| format!("{}:{}", taint["key"], taint["effect"]).replace('"', "")).collect();
            match said.as_ref().and_then(Value::as_str) == Some(ready) && found == taints {
                true => Ok(()),
                false => Err(format!("{said:?} {found:?}")),
            }
        })
        .await;
    }

    async fn fault(&self, fault: &str, member: &str) {
        self.world.good(&["lab", "fault", fault, member, "-f", "policy-1-even.yaml"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_member_loses_nothing() {
    let Some(mut hub) = Hub::start_with(&QUICK).await else { return };
    for member in MEMBERS {
        hub.world.good(&["hub", "join", member, "--data", "hub"]).await;
    }
    hub.apply("policy.yaml", &policy("eu, ap, us", "")).await;
    hub.kubectl(&["apply", "-f", "hello.yaml"]).await.ends_with(0);
    hub.kubectl(&["scale", "deployment", "hello", "--replicas=10"]).await.ends_with(0);
    let before = hub.divided(ALL).await;

    // Lost: condition, taints, then its part is elsewhere; what the others have never becomes less.
    let others: i64 = before.iter().filter(|(member, _)| **member != "eu").map(|(_, count)| count).sum();
    hub.fault("kill", "eu").await;
    hub.is("eu", "False", &["cluster.karmada.io/not-ready:NoSchedule", "cluster.karmada.io/not-ready:NoExecute"]).await;
    hub.says("Deployment", "hello", "EvictWorkloadFromClusterSucceed", "Evict from cluster eu succeed.").await;
    let without = hub.moves_to(&["ap", "us"], others).await;
    let binding = hub.binding().await;
    let task = &binding["spec"]["gracefulEvictionTasks"][0];
    assert_eq!((&task["fromCluster"], &task["producer"]), (&"eu".into(), &"TaintManager".into()), "{binding}");
    assert_eq!(task["replicas"], before["eu"]);
    // What it had is kept for it until somebody can see that it is too much.
    let works = hub.kubectl(&["get", "works", "-n", "karmada-es-eu", "-o", "json"]).await.ends_with(0).out;
    assert!(works.contains("Deployment"), "{works}");

    // Back: what is too much goes there, and nothing else moves.
    hub.fault("start", "eu").await;
    hub.is("eu", "True", &[]).await;
    let settled = hub.moves_to(&["ap", "us"], ALL).await;
    assert_eq!(settled, without);
    eventually("no eviction task", PATIENCE, async || {
        let tasks = hub.binding().await["spec"]["gracefulEvictionTasks"].clone();
        if tasks.is_null() { Ok(()) } else { Err(tasks.to_string()) }
    })
    .await;

    // An edit moves what runs: all ten stay ready all the time, and a Service stays with the pods that it is for.
    hub.apply("policy.yaml", &policy("eu, us", "")).await;
    hub.moves_to(&["eu", "us"], ALL).await;
    eventually("no Service in ap", PATIENCE, async || {
        let run = hub.in_member("ap", &["get", "service", "hello"]).await;
        if run.err.contains("NotFound") { Ok(()) } else { Err(run.out) }
    })
    .await;
    // With a floor fewer will do, and no fewer than that.
    hub.apply("policy.yaml", &policy("ap, us", ", annotations: {stolos.dev/min-available: \"80%\"}")).await;
    let last = hub.moves_to(&["ap", "us"], 8).await;

    // Lost for ever: moved, then it leaves with a word about what it had.
    hub.fault("kill", "us").await;
    hub.apply("policy.yaml", &policy("eu, ap, us", "")).await;
    hub.moves_to(&["ap", "eu"], last["ap"]).await;
    let left = hub.world.run(&["hub", "unjoin", "us", "--data", "hub"]).await.ends_with(2);
    assert!(
        left.out.contains("apps/v1 Deployment default/hello") && left.out.contains("account in us"),
        "{}",
        left.out
    );
    hub.moves_to(&["ap", "eu"], ALL).await;
    let tasks = hub.binding().await["spec"]["gracefulEvictionTasks"].clone();
    assert!(tasks.is_null(), "{tasks}");
    hub.process.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_the_hub_cannot_ask_is_not_ready_and_can_leave() {
    let Some(hub) = Hub::start_with(&QUICK).await else { return };
    hub.world.good(&["hub", "join", "eu", "--data", "hub"]).await;
    // A way that the hub has not is not left out without a word.
    let proxied = |url: Value| serde_json::json!({"spec": {"proxyURL": url}}).to_string();
    let by = proxied("http://proxy.example:3128".into());
    hub.kubectl(&["patch", "cluster", "eu", "--type=merge", "-p", &by]).await.ends_with(0);
    hub.is("eu", "False", &["cluster.karmada.io/not-ready:NoSchedule", "cluster.karmada.io/not-ready:NoExecute"]).await;
    let why = ["get", "cluster", "eu", "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].message}"];
    let why = hub.kubectl(&why).await.ends_with(0).out;
    assert!(why.contains("could not take spec.proxyURL of eu"), "{why}");
    hub.kubectl(&["patch", "cluster", "eu", "--type=merge", "-p", &proxied(Value::Null)]).await.ends_with(0);
    hub.is("eu", "True", &[]).await;

    hub.kubectl(&["delete", "secret", "eu", "-n", "karmada-cluster"]).await.ends_with(0);
    hub.is("eu", "False", &["cluster.karmada.io/not-ready:NoSchedule", "cluster.karmada.io/not-ready:NoExecute"]).await;
    let cluster = hub.kubectl(&["get", "cluster", "eu", "-o", "json"]).await.document();
    let ready = cluster["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    assert_eq!(ready["reason"], "StatusCollectionFailed");
    assert_eq!(ready["message"], "the hub has no credential of it");
    let left = hub.world.run(&["hub", "unjoin", "eu", "--data", "hub"]).await;
    assert!(matches!(left.code, Some(0 | 2)), "{}{}", left.out, left.err);
    let clusters = hub.kubectl(&["get", "clusters"]).await;
    assert!(clusters.err.contains("No resources found"), "{}", clusters.out);
}

/// A member that nothing keeps but what fits nowhere else is not waited for, and leaves when that has gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fits_nowhere_else_keeps_its_member() {
    let Some(mut hub) = Hub::start_with(&QUICK).await else { return };
    hub.world.good(&["hub", "join", "eu", "--data", "hub"]).await;
    hub.apply("policy.yaml", &policy("eu", "")).await;
    hub.kubectl(&["apply", "-f", "hello.yaml"]).await.ends_with(0);
    hub.kubectl(&["scale", "deployment", "hello", "--replicas=10"]).await.ends_with(0);
    hub.moves_to(&["eu"], 0).await;
    let began = std::time::Instant::now();
    let kept = hub.world.run(&["hub", "unjoin", "eu", "--data", "hub"]).await.ends_with(1);
    assert!(kept.err.contains("Deployment default/hello has nowhere else to go"), "{}", kept.err);
    assert!(began.elapsed() < std::time::Duration::from_secs(60), "it took {:?}", began.elapsed());
    hub.moves_to(&["eu"], ALL).await;
    hub.kubectl(&["delete", "deployment", "hello"]).await.ends_with(0);
    eventually("eu has left", PATIENCE, async || {
        let clusters = hub.kubectl(&["get", "clusters"]).await;
        if clusters.err.contains("No resources found") { Ok(()) } else { Err(clusters.out) }
    })
    .await;
    hub.process.kill().await.unwrap();
}
