//! Karmada's tutorial (LearnK8s, “Scaling Kubernetes to multiple clusters and regions”), to its end: its files as they are
//! and plain kubectl, three clusters that dial out, a mesh over them, and requests that every region answers.

use std::collections::{BTreeMap, BTreeSet};

use crate::hub::{Hub, MEMBERS, PATIENCE};
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
        let said = hub.world.good(&["hub", "token", "create", "--data", "hub"]).await.out;
        let words: Vec<&str> = said.split_whitespace().collect();
        agents.push(hub.agent(member, &[&words[5..], &["--region", region]].concat(), words[4]).await);
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
