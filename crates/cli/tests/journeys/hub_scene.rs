//! Karmada's tutorial (LearnK8s, “Scaling Kubernetes to multiple clusters and regions”), to its end: its files as they are
//! and plain kubectl, three clusters that dial out, a mesh over them, and requests that every region answers.

use std::collections::{BTreeMap, BTreeSet};

use crate::hub::{Hub, Invitation, MEMBERS, PATIENCE};
use crate::world::eventually;

/// What the tutorial's `hello` lacks for its last command to find anything: a region in its environment, another one in
/// each cluster.
const REGIONS: &str = "
apiVersion: policy.karmada.io/v1alpha1
kind: OverridePolicy
metadata: {name: regions}
spec:
  resourceSelectors: [{apiVersion: apps/v1, kind: Deployment, name: hello}]
  overrideRules:
  - targetCluster: {clusterNames: [eu]}
    overriders:
      plaintext:
      - {path: /spec/template/spec/containers/0/env, operator: add, value: [{name: REGION, value: eu-west}]}
  - targetCluster: {clusterNames: [ap]}
    overriders:
      plaintext:
      - {path: /spec/template/spec/containers/0/env, operator: add, value: [{name: REGION, value: ap-south}]}
  - targetCluster: {clusterNames: [us]}
    overriders:
      plaintext:
      - {path: /spec/template/spec/containers/0/env, operator: add, value: [{name: REGION, value: us-west}]}
";

impl Hub {
    /// Waits until every member has the Service `hello`.
    async fn hello_everywhere(&self) {
        for member in MEMBERS {
            eventually("the Service", PATIENCE, async || {
                let run = self.in_member(member, &["get", "service", "hello"]).await;
                if run.code == Some(0) { Ok(()) } else { Err(run.err) }
            })
            .await;
        }
    }

    /// Which regions answer ten requests from a member, how often each. Every request is answered.
    async fn regions(&self, member: &str) -> Result<BTreeMap<String, usize>, String> {
        const TEN: &str = "for i in $(seq 10); do curl -sS -m 10 hello:5000 | grep REGION; done";
        let run = self.in_member(member, &["exec", "deploy/sleep", "-c", "sleep", "--", "sh", "-c", TEN]).await;
        let mut regions = BTreeMap::new();
        for line in run.out.lines() {
            let region = line.split('"').nth(3).filter(|region| !region.is_empty());
            *regions.entry(region.ok_or_else(|| format!("{line}: no region"))?.to_owned()).or_default() += 1;
        }
        match regions.values().sum::<usize>() {
            10 => Ok(regions),
            _ => Err(format!("{regions:?} {}", run.err)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_one_deployment_to_answers_of_every_region() {
    let Some(mut hub) = Hub::start().await else { return };
    let mut agents = Vec::new();
    for (member, region) in [("eu", "eu-west"), ("ap", "ap-south"), ("us", "us-west")] {
        let said = hub.world.good(&["hub", "token", "create", member, "--data", "hub"]).await.out;
        let invited = Invitation::of(&said);
        agents.push(hub.agent(member, &invited.flags(&["--region", region]), &invited.address).await);
    }
    eventually("three members that dialled", PATIENCE, async || {
        let clusters = hub.kubectl(&["get", "clusters"]).await.out;
        match clusters.lines().filter(|line| line.contains("Pull") && line.contains("True")).count() {
            3 => Ok(()),
            _ => Err(clusters),
        }
    })
    .await;

    hub.kubectl(&["apply", "-f", "hello.yaml"]).await.ends_with(0);
    hub.says("Deployment", "hello", "ApplyPolicyFailed", "No policy match for resource").await;
    let described = hub.kubectl(&["describe", "deployment", "hello"]).await.ends_with(0).out;
    assert!(described.contains("No policy match for resource"), "{described}");

    hub.kubectl(&["apply", "-f", "policy-1-even.yaml"]).await.ends_with(0);
    hub.runs("hello", &[("eu", 1), ("ap", 1), ("us", 1)]).await;
    hub.hello_everywhere().await;
    hub.kubectl(&["scale", "deployment/hello", "--replicas=10"]).await.ends_with(0);
    let mut shares: Vec<_> = hub.divided(10).await.into_values().collect();
    shares.sort_unstable();
    assert_eq!(shares, [3, 3, 4]);
    hub.kubectl(&["apply", "-f", "policy-2-weighted.yaml"]).await.ends_with(0);
    hub.runs("hello", &[("eu", 4), ("ap", 2), ("us", 4)]).await;

    // The caller comes along; one of it in each region.
    hub.kubectl(&["apply", "-f", "sleep.yaml", "-f", "policy-3-with-sleep.yaml"]).await.ends_with(0);
    hub.kubectl(&["scale", "deployment/sleep", "--replicas=3"]).await.ends_with(0);
    hub.runs("sleep", &[("eu", 1), ("ap", 1), ("us", 1)]).await;
    hub.runs("hello", &[("eu", 2), ("ap", 4), ("us", 4)]).await;

    // Without a mesh each cluster answers for itself: the name `hello` is its own Service.
    hub.apply("regions.yaml", REGIONS).await;
    let ten = |regions: &[(&str, usize)]| -> BTreeMap<String, usize> {
        regions.iter().map(|(region, count)| ((*region).to_owned(), *count)).collect()
    };
    for (member, region) in [("eu", "eu-west"), ("us", "us-west")] {
        let own = ten(&[(region, 10)]);
        eventually("a region for itself", PATIENCE, async || {
            let regions = hub.regions(member).await?;
            if regions == own { Ok(()) } else { Err(format!("{member} is answered by {regions:?}")) }
        })
        .await;
    }

    // A mesh over the same three clusters, from the same file.
    hub.world.good(&["apply", "-f", "policy-3-with-sleep.yaml", "--yes"]).await;
    for member in MEMBERS {
        hub.in_member(member, &["label", "namespace", "default", "istio-injection=enabled"]).await.ends_with(0);
    }
    hub.kubectl(&["rollout", "restart", "deployment/hello", "deployment/sleep"]).await.ends_with(0);
    let everywhere: BTreeSet<&str> = ["ap-south", "eu-west", "us-west"].into();
    for member in MEMBERS {
        eventually("answers of every region", PATIENCE, async || {
            let regions = hub.regions(member).await?;
            if regions.keys().map(String::as_str).eq(everywhere.iter().copied()) {
                return Ok(());
            }
            Err(format!("{member} is answered by {regions:?}"))
        })
        .await;
    }
    hub.runs("hello", &[("eu", 2), ("ap", 4), ("us", 4)]).await;
    hub.world.good(&["hub", "down", "--data", "hub"]).await;
    assert!(hub.process.wait().await.unwrap().success());
}

/// Why a workload is where it is, and what a loss would do, by what three members really are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_it_is_there_and_what_a_loss_would_do() {
    let Some(hub) = Hub::start().await else { return };
    for (member, region) in [("eu", "eu-west"), ("ap", "ap-south"), ("us", "us-west")] {
        hub.world.good(&["hub", "join", member, "--data", "hub", "--region", region]).await;
    }
    let why = async |object: &str| hub.world.good(&["why", object, "--data", "hub"]).await.out;
    hub.kubectl(&["apply", "-f", "hello.yaml"]).await.ends_with(0);
    let said = why("deployment/hello").await;
    assert!(said.contains("policy: none selects it"), "{said}");
    assert!(said.contains("a PropagationPolicy whose resourceSelectors mean this Deployment"), "{said}");

    hub.kubectl(&["scale", "deployment/hello", "--replicas=10"]).await.ends_with(0);
    hub.kubectl(&["apply", "-f", "policy-2-weighted.yaml"]).await.ends_with(0);
    hub.runs("hello", &[("eu", 4), ("ap", 2), ("us", 4)]).await;
    let said = why("deploy/hello").await;
    for line in [
        "Deployment default/hello: 10 replicas, divided by weights of the policy",
        "policy: PropagationPolicy default/hello-propagation, which selects it by name, and has it already",
        "  ap  2 replicas, weight 1",
        "  eu  4 replicas, weight 2",
        "  us  4 replicas, weight 2",
    ] {
        assert!(said.contains(line), "`{line}` is not in\n{said}");
    }
    let why_json = hub.world.good(&["why", "deploy/hello", "--data", "hub", "-o", "json"]).await.document();
    assert_eq!(why_json["decision"]["outcome"]["placed"]["clusters"][1]["replicas"], 4, "{why_json:#}");
    assert!(why("service/hello").await.contains("Service default/hello: not divided"));

    // A cluster that may not have it is named with the reason; what is there already stays.
    let taint = r#"{"spec":{"taints":[{"key":"maintenance","effect":"NoSchedule"}]}}"#;
    hub.kubectl(&["patch", "cluster", "us", "--type=merge", "-p", taint]).await.ends_with(0);
    hub.kubectl(&["create", "configmap", "late"]).await.ends_with(0);
    let policy = "apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {name: late}\nspec:\n  \
                  resourceSelectors: [{apiVersion: v1, kind: ConfigMap, name: late}]\n  placement: {}\n";
    hub.apply("late.yaml", policy).await;
    let said = why("cm/late").await;
    assert!(said.contains("us  left out: its taint maintenance:NoSchedule is not tolerated"), "{said}");
    assert!(said.contains("for us: taking the taint maintenance:NoSchedule from us"), "{said}");
    hub.kubectl(&["patch", "cluster", "us", "--type=merge", "-p", r#"{"spec":{"taints":null}}"#]).await.ends_with(0);

    // Where the policy gives no weights all are alike, and that is said.
    let alike = "apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {name: hello-propagation}\nspec:\n  \
                 resourceSelectors: [{apiVersion: apps/v1, kind: Deployment, name: hello}]\n  placement:\n    \
                 replicaScheduling: {replicaSchedulingType: Divided, replicaDivisionPreference: Weighted}\n";
    hub.apply("alike.yaml", alike).await;
    hub.kubectl(&["scale", "deployment/hello", "--replicas=9"]).await.ends_with(0);
    hub.runs("hello", &[("eu", 3), ("ap", 3), ("us", 3)]).await;
    let said = why("deploy/hello").await;
    assert!(said.contains("the policy gives none of them a weight, so all are alike"), "{said}");
    assert!(!said.contains("weight 0"), "{said}");

    // A loss that is only thought of: the numbers are there, and nothing has moved.
    for lost in ["eu", "eu-west"] {
        let loss = hub.world.good(&["hub", "simulate", "--lose", lost, "--data", "hub", "-o", "json"]).await.document();
        assert_eq!(loss["lost"], serde_json::json!(["eu"]), "{loss:#}");
        let moved = loss["workloads"].as_array().unwrap();
        let hello = moved.iter().find(|moved| moved["template"] == "Deployment default/hello").unwrap();
        let after = hello["after"].as_array().unwrap();
        assert_eq!(after.iter().filter_map(|cluster| cluster["replicas"].as_i64()).sum::<i64>(), 9, "{loss:#}");
        assert!(after.iter().all(|cluster| cluster["name"] != "eu"), "{loss:#}");
        assert_eq!(hello["pending"], 0, "{loss:#}");
        // How full those that are left would be.
        let left = loss["clusters"].as_array().unwrap();
        assert_eq!(left.iter().map(|load| &load["cluster"]).collect::<Vec<_>>(), ["ap", "us"], "{loss:#}");
        for load in left {
            let (room, then) = (load["roomBefore"].as_i64().unwrap(), load["roomAfter"].as_i64().unwrap());
            assert_eq!(room - then, load["after"].as_i64().unwrap() - load["before"].as_i64().unwrap(), "{loss:#}");
        }
    }
    let said = hub.world.good(&["hub", "simulate", "--lose", "eu", "--data", "hub"]).await.out;
    assert!(said.contains("Deployment default/hello"), "{said}");
    let nobody = hub.world.run(&["hub", "simulate", "--lose", "mars", "--data", "hub"]).await.ends_with(1);
    assert!(nobody.err.contains("the hub has no member and no region called mars"), "{}", nobody.err);
    hub.runs("hello", &[("eu", 3), ("ap", 3), ("us", 3)]).await;
}

/// A callee in one region, a caller in another: in a mesh the caller finds it, since its Service comes along.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_mesh_a_callees_name_is_known_wherever_it_may_be_called() {
    let Some(hub) = Hub::start().await else { return };
    for member in MEMBERS {
        hub.world.good(&["hub", "join", member, "--data", "hub"]).await;
    }
    let only = |name: &str, to: &str| {
        format!(
            "apiVersion: policy.karmada.io/v1alpha1\nkind: PropagationPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
             resourceSelectors: [{{apiVersion: apps/v1, kind: Deployment, name: {name}}}]\n  \
             placement: {{clusterAffinity: {{clusterNames: [{to}]}}}}\n"
        )
    };
    hub.apply("regions.yaml", REGIONS).await;
    hub.kubectl(&["apply", "-f", "hello.yaml", "-f", "sleep.yaml"]).await.ends_with(0);
    hub.apply("hello-policy.yaml", &only("hello", "eu")).await;
    hub.apply("sleep-policy.yaml", &only("sleep", "us")).await;
    hub.runs("hello", &[("eu", 3)]).await;
    hub.runs("sleep", &[("us", 1)]).await;
    // Nobody's policy selects the Service: without a mesh it stays on the hub, and nobody knows the name.
    let unknown = hub.regions("us").await.unwrap_err();
    assert!(unknown.contains("Could not resolve host"), "{unknown}");

    hub.world.good(&["apply", "-f", "policy-1-even.yaml", "--yes"]).await;
    hub.hello_everywhere().await;
    let why = hub.world.good(&["why", "service/hello", "--data", "hub"]).await.out;
    assert!(why.contains("where hello-deployment goes, which needs it: ap, eu, us"), "{why}");
    for member in MEMBERS {
        hub.in_member(member, &["label", "namespace", "default", "istio-injection=enabled"]).await.ends_with(0);
    }
    hub.kubectl(&["rollout", "restart", "deployment/hello", "deployment/sleep"]).await.ends_with(0);
    eventually("eu answers us", PATIENCE, async || {
        let regions = hub.regions("us").await?;
        if regions.keys().eq(["eu-west"]) { Ok(()) } else { Err(format!("{regions:?}")) }
    })
    .await;

    // What the mesh is, and how far its clusters are from each other, is told as scores.
    let report = hub.world.good(&["verify", "-f", "policy-1-even.yaml", "-o", "json"]).await.out;
    hub.world.write("report.json", &report);
    let told = hub.world.good(&["hub", "measured", "report.json", "--data", "hub"]).await;
    assert!(
        told.out.contains("eu: ap ") && told.err.contains("the distances of 3 members"),
        "{} {}",
        told.out,
        told.err
    );
    let why = hub.world.good(&["why", "deploy/hello", "--data", "hub", "-o", "json"]).await.document();
    let clusters = why["decision"]["attempts"][0]["clusters"].as_array().unwrap();
    let eu = clusters.iter().find(|verdict| verdict["cluster"] == "eu").unwrap();
    assert_eq!(eu["mesh"]["gateway"], true, "{eu:#}");
    assert!(eu["mesh"]["latencyMs"].as_u64().is_some() && eu["score"].as_i64() > Some(100), "{eu:#}");
    let said = hub.world.good(&["why", "deploy/hello", "--data", "hub"]).await.out;
    assert!(said.contains("it is there already; in mesh ") && said.contains("its gateway is ready"), "{said}");

    // It may stay at home if it says so; and without the mesh it goes nowhere.
    let home = "hub.stolos.dev/everywhere=false";
    hub.kubectl(&["annotate", "service", "hello", home]).await.ends_with(0);
    eventually("the Service stays on the hub", PATIENCE, async || {
        let left = hub.in_member("us", &["get", "service", "hello"]).await;
        if left.err.contains("NotFound") { Ok(()) } else { Err(left.out) }
    })
    .await;
}
