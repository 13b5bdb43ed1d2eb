//! A workload is not well in a cluster that is: it moves to where it is, keeps what it has of ready replicas, and does not
//! bounce between clusters where it can run nowhere.

use serde_json::Value;

use crate::hub::{Hub, PATIENCE};
use crate::world::{eventually, text};

/// So many replicas.
const ALL: i64 = 2;
/// A node that no lab has.
const ELSEWHERE: &str = "nodeSelector: {disk: elsewhere}";

/// A Deployment with something more in its pods.
fn web(pod: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web}}\nspec:\n  replicas: {ALL}\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 0\n      {pod}\n      \
         containers:\n      - {{name: main, image: stefanprodan/podinfo}}\n"
    )
}

/// It goes to one of these, and leaves it after ten seconds without being well.
fn policy(to: &str, application: &str) -> String {
    format!(
        "apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {{name: web}}\nspec:\n  \
         propagateDeps: true\n  resourceSelectors: [{{apiVersion: apps/v1, kind: Deployment, name: web}}]\n  \
         placement:\n    clusterAffinity: {{clusterNames: {to}}}\n    \
         spreadConstraints: [{{spreadByField: cluster, minGroups: 1, maxGroups: 1}}]\n  \
         failover:\n    application:\n      decisionConditions: {{tolerationSeconds: 10}}\n{application}"
    )
}

/// No node of a cluster is right for it.
fn broken_in(cluster: &str) -> String {
    format!(
        "apiVersion: policy.karmada.io/v1alpha1\nkind: OverridePolicy\nmetadata: {{name: web}}\nspec:\n  \
         resourceSelectors: [{{apiVersion: apps/v1, kind: Deployment, name: web}}]\n  overrideRules:\n  \
         - targetCluster: {{clusterNames: [{cluster}]}}\n    overriders:\n      \
         plaintext: [{{path: /spec/template/spec/nodeSelector, operator: replace, value: {{disk: nowhere}}}}]\n"
    )
}

impl Hub {
    /// Two members, and `web` in one of them: that one, and the other.
    async fn with_web(application: &str) -> Option<(Self, [&'static str; 2])> {
        let hub = Self::start_with(&["--resource-eviction-rate", "20"]).await?;
        for member in ["eu", "ap"] {
            hub.world.good(&["hub", "join", member, "--data", "hub"]).await;
        }
        // What takes its time to begin with is not to move.
        let whole = policy("[eu, ap]", application);
        hub.apply("policy.yaml", whole.split_once("  failover:").unwrap().0).await;
        hub.apply("web.yaml", &web("nodeSelector: {}")).await;
        let first = eventually("web somewhere", PATIENCE, async || {
            let found = hub.replicas("web").await;
            match found.iter().next() {
                Some((member, (ALL, ALL))) if found.len() == 1 => Ok(*member),
                _ => Err(format!("{found:?}")),
            }
        })
        .await;
        eventually("the hub knows that it is well", PATIENCE, async || {
            let health = hub.binding_of_web().await["status"]["aggregatedStatus"][0]["health"].clone();
            if health == "Healthy" { Ok(()) } else { Err(health.to_string()) }
        })
        .await;
        let policy = hub.world.write("policy.yaml", &whole);
        let said = hub.kubectl(&["apply", "-f", text(&policy)]).await.ends_with(0);
        assert!(!said.err.contains("Warning"), "{}", said.err);
        let other = if first == "eu" { "ap" } else { "eu" };
        Some((hub, [first, other]))
    }

    /// Waits until all of `web` is in one member and ready, and looks all the time whether as many are ready as there were.
    async fn web_moves_to(&self, member: &'static str) {
        eventually(&format!("web in {member}"), PATIENCE, async || {
            let found = self.replicas_not_below("web", ALL).await;
            let there = found.iter().map(|(member, count)| (*member, *count)).eq([(member, (ALL, ALL))]);
            if there { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    }

    /// How often `web` has been evicted from each cluster.
    async fn evictions(&self) -> Vec<(String, i64)> {
        let of = "involvedObject.kind=Deployment,involvedObject.name=web,reason=EvictWorkloadFromClusterSucceed";
        let events = self.kubectl(&["get", "events", "--field-selector", of, "-o", "json"]).await.document();
        let mut found: Vec<(String, i64)> = (events["items"].as_array().into_iter().flatten())
            .filter_map(|event| {
                let message = event["message"].as_str()?.strip_prefix("Evict from cluster ")?;
                Some((message.trim_end_matches(" succeed.").to_owned(), event["count"].as_i64().unwrap_or(1)))
            })
            .collect();
        found.sort();
        found
    }

    async fn binding_of_web(&self) -> Value {
        self.kubectl(&["get", "rb", "web-deployment", "-o", "json"]).await.ends_with(0).document()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_well_moves_once() {
    let application = "      purgeMode: Gracefully\n      gracePeriodSeconds: 600\n";
    let Some((mut hub, [first, other])) = Hub::with_web(application).await else { return };

    // Its new pods find no node there. The old ones are ready all the time, until the others are.
    hub.apply("broken.yaml", &broken_in(first)).await;
    hub.says("Deployment", "web", "EvictWorkloadFromClusterSucceed", &format!("Evict from cluster {first} succeed."))
        .await;
    hub.web_moves_to(other).await;
    let failed = hub.binding_of_web().await["metadata"]["annotations"]["stolos.dev/failed-in"].clone();
    assert!(failed.as_str().is_some_and(|failed| failed.contains(first)), "{failed}");
    let why = hub.world.good(&["why", "deployment/web", "--data", "hub"]).await.out;
    assert!(why.contains(&format!("{first}  left out: the workload failed there at ")), "{why}");

    // Broken for every cluster. What would go to the first one is what has failed there.
    hub.apply("web.yaml", &web(ELSEWHERE)).await;
    let stays = format!("It is unhealthy in cluster {other} and stays there: nothing would take its place");
    hub.says("Deployment", "web", "EvictWorkloadFromClusterFailed", &stays).await;
    assert_eq!(hub.evictions().await, [(first.to_owned(), 1)]);
    // Without the override it is something else: it goes back once, and then stays where it came to.
    hub.kubectl(&["delete", "op", "web"]).await.ends_with(0);
    hub.says("Deployment", "web", "EvictWorkloadFromClusterFailed", &format!("It is unhealthy in cluster {first}"))
        .await;
    let task = hub.binding_of_web().await["spec"]["gracefulEvictionTasks"][0].clone();
    assert_eq!((&task["reason"], &task["gracePeriodSeconds"]), (&"ApplicationFailure".into(), &600.into()), "{task}");
    assert_eq!(task["producer"], "resource-binding-application-failover-controller");
    assert_eq!(task["clustersBeforeFailover"], serde_json::json!([other]));
    let mut once = [(first.to_owned(), 1), (other.to_owned(), 1)];
    once.sort();
    assert_eq!(hub.evictions().await, once);
    let why = hub.world.good(&["why", "deployment/web", "--data", "hub"]).await.out;
    let stays =
        format!("{first} is unhealthy and is not left: nothing would take its place: 0/2 clusters are available");
    assert!(why.contains(&stays), "{why}");
    // What was ready is kept.
    let kept = hub.replicas("web").await;
    assert_eq!(kept[other].1, ALL, "{kept:?}");

    // Mended, it is where it is, and nowhere else.
    hub.apply("web.yaml", &web("nodeSelector: {}")).await;
    hub.web_moves_to(first).await;
    assert_eq!(hub.evictions().await, once);
    hub.process.kill().await.unwrap();
}

/// With `Directly` the old copy goes first, and what it said last is a label of the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_not_run_twice_hands_over_what_it_knew() {
    let application = "      purgeMode: Directly\n      statePreservation:\n        rules:\n        \
                       - {aliasLabelName: example.com/generation, jsonPath: \"{.observedGeneration}\"}\n";
    let Some((mut hub, [first, other])) = Hub::with_web(application).await else { return };
    hub.apply("broken.yaml", &broken_in(first)).await;
    eventually(&format!("web in {other} alone"), PATIENCE, async || {
        let found = hub.replicas("web").await;
        let both = found.values().filter(|(_, ready)| *ready > 0).count();
        assert!(both < 2, "it runs twice: {found:?}");
        let there = found.iter().map(|(member, count)| (*member, *count)).eq([(other, (ALL, ALL))]);
        if there { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let label = |object: Value| object["metadata"]["labels"]["example.com/generation"].clone();
    let copy = hub.in_member(other, &["get", "deployment", "web", "-o", "json"]).await.ends_with(0).document();
    let kept = label(copy);
    assert!(kept.as_str().is_some_and(|kept| kept.parse::<u32>().is_ok()), "{kept}");
    // It keeps that when the task is over, and the template does not get it.
    eventually("no task", PATIENCE, async || {
        let tasks = hub.binding_of_web().await["spec"]["gracefulEvictionTasks"].clone();
        if tasks.is_null() { Ok(()) } else { Err(tasks.to_string()) }
    })
    .await;
    hub.kubectl(&["annotate", "deployment", "web", "seen=yes"]).await.ends_with(0);
    eventually("the annotation in the member", PATIENCE, async || {
        let copy = hub.in_member(other, &["get", "deployment", "web", "-o", "json"]).await.document();
        if copy["metadata"]["annotations"]["seen"] != "yes" {
            return Err(copy["metadata"].to_string());
        }
        assert_eq!(label(copy), kept);
        Ok(())
    })
    .await;
    let template = hub.kubectl(&["get", "deployment", "web", "-o", "json"]).await.document();
    assert_eq!(label(template), Value::Null);
    hub.process.kill().await.unwrap();
}

/// What must not run twice leaves a cleared member before anything of it begins elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cleared_member_is_left_first_where_the_policy_says_so() {
    let directly = "      purgeMode: Gracefully\n    cluster: {purgeMode: Directly}\n";
    let Some((mut hub, [first, other])) = Hub::with_web(directly).await else { return };
    let taint = r#"{"spec":{"taints":[{"key":"maintenance","effect":"NoExecute"}]}}"#;
    hub.kubectl(&["patch", "cluster", first, "--type=merge", "-p", taint]).await.ends_with(0);
    eventually(&format!("web in {other} alone"), PATIENCE, async || {
        let found = hub.replicas("web").await;
        let both = found.values().filter(|(_, ready)| *ready > 0).count();
        assert!(both < 2, "it runs twice: {found:?}");
        let there = found.iter().map(|(member, count)| (*member, *count)).eq([(other, (ALL, ALL))]);
        if there { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    hub.process.kill().await.unwrap();
}

/// A taint that somebody writes by hand is tolerated for as long as the policy says, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taint_is_tolerated_for_its_time() {
    const SECONDS: u64 = 6;
    let Some((mut hub, [first, other])) = Hub::with_web("      purgeMode: Gracefully\n").await else { return };
    let spread = "    spreadConstraints:";
    let tolerant = format!(
        "    clusterTolerations: [{{key: maintenance, operator: Exists, effect: NoExecute, tolerationSeconds: {SECONDS}}}]\n{spread}"
    );
    hub.apply("policy.yaml", &policy("[eu, ap]", "      purgeMode: Gracefully\n").replacen(spread, &tolerant, 1)).await;
    eventually("the binding has it", PATIENCE, async || {
        let placement = hub.binding_of_web().await["spec"]["placement"].clone();
        if placement["clusterTolerations"].is_array() { Ok(()) } else { Err(placement.to_string()) }
    })
    .await;
    let tainted = std::time::Instant::now();
    let taint = r#"{"spec":{"taints":[{"key":"maintenance","effect":"NoExecute"}]}}"#;
    hub.kubectl(&["patch", "cluster", first, "--type=merge", "-p", taint]).await.ends_with(0);
    hub.says("Deployment", "web", "EvictWorkloadFromClusterSucceed", &format!("Evict from cluster {first} succeed."))
        .await;
    let stayed = tainted.elapsed();
    assert!(stayed >= std::time::Duration::from_secs(SECONDS - 1), "it stayed for {stayed:?}");
    hub.web_moves_to(other).await;
    hub.process.kill().await.unwrap();
}

/// With `purgeMode: Never` the old copy stays beside the new one, until somebody lets it go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_never_purged_stays_until_somebody_says_so() {
    let Some((mut hub, [first, other])) = Hub::with_web("      purgeMode: Never\n").await else { return };
    hub.apply("broken.yaml", &broken_in(first)).await;
    let both = || [(first, (ALL, ALL)), (other, (ALL, ALL))].into_iter().collect();
    eventually("web in both", PATIENCE, async || {
        let found = hub.replicas("web").await;
        if found == both() { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    // What would let a copy of another mode go is known by then.
    eventually("the hub knows that the new one is well", PATIENCE, async || {
        let binding = hub.binding_of_web().await;
        let items = binding["status"]["aggregatedStatus"].as_array().cloned().unwrap_or_default();
        match items.iter().any(|item| item["clusterName"] == other && item["health"] == "Healthy") {
            true => Ok(()),
            false => Err(binding["status"].to_string()),
        }
    })
    .await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(hub.replicas("web").await, both());
    let binding = hub.binding_of_web().await;
    assert_eq!(binding["spec"]["clusters"], serde_json::json!([{"name": other, "replicas": ALL}]));
    let task = &binding["spec"]["gracefulEvictionTasks"][0];
    assert_eq!((&task["fromCluster"], &task["suppressDeletion"]), (&first.into(), &true.into()), "{task}");

    let go = r#"[{"op":"replace","path":"/spec/gracefulEvictionTasks/0/suppressDeletion","value":false}]"#;
    hub.kubectl(&["patch", "rb", "web-deployment", "--type=json", "-p", go]).await.ends_with(0);
    hub.web_moves_to(other).await;
    hub.process.kill().await.unwrap();
}

/// What a network's watchman might write: without it workloads leave.
fn no_network(name: &str) -> String {
    format!(
        "apiVersion: policy.karmada.io/v1alpha1\nkind: ClusterTaintPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         addOnConditions: [{{conditionType: NetworkAvailable, operator: In, statusValues: [\"False\"]}}]\n  \
         removeOnConditions: [{{conditionType: NetworkAvailable, operator: In, statusValues: [\"True\"]}}]\n  \
         taints: [{{key: example.com/no-network, effect: NoExecute}}]\n"
    )
}

impl Hub {
    /// Writes a condition of a member.
    async fn network_is(&self, member: &str, status: &str) {
        let cluster = self.kubectl(&["get", "cluster", member, "-o", "json"]).await.ends_with(0).document();
        let mut conditions = cluster["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "NetworkAvailable");
        conditions.push(serde_json::json!({"type": "NetworkAvailable", "status": status, "reason": "Measured",
            "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}));
        let patch = serde_json::json!({"status": {"conditions": conditions}}).to_string();
        let args = ["patch", "cluster", member, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubectl(&args).await.ends_with(0);
    }

    /// Waits until a member has this many taints.
    async fn has_taints(&self, member: &str, count: usize) {
        eventually(&format!("{count} taints of {member}"), PATIENCE, async || {
            let cluster = self.kubectl(&["get", "cluster", member, "-o", "json"]).await.document();
            let taints = cluster["spec"]["taints"].as_array().cloned().unwrap_or_default();
            if taints.len() == count { Ok(()) } else { Err(format!("{taints:?}")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taint_policy_clears_a_member_by_its_conditions() {
    let Some((mut hub, [first, other])) = Hub::with_web("      purgeMode: Gracefully\n").await else { return };
    hub.apply("taints.yaml", &no_network("no-network")).await;
    let again = hub.world.write("again.yaml", &no_network("again"));
    let again = hub.kubectl(&["apply", "-f", text(&again)]).await.ends_with(1);
    assert!(again.err.contains("which the policy no-network has already"), "{}", again.err);
    let listed = hub.kubectl(&["get", "clustertaintpolicies"]).await.ends_with(0).out;
    assert!(listed.starts_with("NAME         AGE"), "{listed}");

    hub.network_is(first, "False").await;
    hub.says("Cluster", first, "TaintClusterSucceed", "example.com/no-network:NoExecute").await;
    hub.web_moves_to(other).await;
    assert_eq!(hub.evictions().await, [(first.to_owned(), 1)]);
    // The end of a policy takes nothing away; its condition does.
    hub.kubectl(&["delete", "clustertaintpolicy", "no-network"]).await.ends_with(0);
    hub.has_taints(first, 1).await;
    hub.apply("taints.yaml", &no_network("no-network")).await;
    hub.network_is(first, "True").await;
    hub.has_taints(first, 0).await;
    hub.web_moves_to(other).await;
    hub.process.kill().await.unwrap();
}
