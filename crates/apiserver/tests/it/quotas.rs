//! ResourceQuotas and LimitRanges: what a namespace may have.

use k8s_openapi::api::core::v1::{ConfigMap, LimitRange, Pod, ResourceQuota};
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};
use stolos_apiserver::Server;

use crate::{eventually, server};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str, resources: Value) -> Pod {
    of(
        json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}}),
    )
}

async fn quota(server: &Server, hard: Value) -> Api<ResourceQuota> {
    let quotas: Api<ResourceQuota> = Api::default_namespaced(server.client());
    let made = of(json!({"metadata": {"name": "q"}, "spec": {"hard": hard}}));
    quotas.create(&PostParams::default(), &made).await.unwrap();
    let counted = quotas.clone();
    eventually("the quota has been counted", async || {
        counted.get("q").await.unwrap().status.and_then(|status| status.used).is_some_and(|used| !used.is_empty())
    })
    .await;
    quotas
}

async fn used(quotas: &Api<ResourceQuota>) -> String {
    let used = quotas.get("q").await.unwrap().status.and_then(|status| status.used).unwrap_or_default();
    used.iter().map(|(name, amount)| format!("{name}={}", amount.0)).collect::<Vec<_>>().join(" ")
}

fn words<T: std::fmt::Debug>(result: kube::Result<T>) -> String {
    match result {
        Err(kube::Error::Api(status)) => format!("{} {}", status.code, status.message),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn a_namespace_has_no_more_than_its_quota() {
    let server = server().await;
    let quotas = quota(&server, json!({"pods": "2", "requests.cpu": "1", "count/configmaps": "3"})).await;
    assert_eq!(used(&quotas).await, "count/configmaps=1 pods=0 requests.cpu=0", "the root certificate is there");
    let pods: Api<Pod> = Api::default_namespaced(server.client());
    let post = PostParams::default();
    let half = json!({"requests": {"cpu": "500m"}});
    let silent = words(pods.create(&post, &pod("silent", json!({}))).await);
    assert_eq!(silent, "403 pods \"silent\" is forbidden: failed quota: q: must specify requests.cpu for: c");
    pods.create(&post, &pod("a", half.clone())).await.unwrap();
    assert_eq!(used(&quotas).await, "count/configmaps=1 pods=1 requests.cpu=500m", "as soon as it is there");
    let large = words(pods.create(&post, &pod("large", json!({"requests": {"cpu": "600m"}}))).await);
    assert_eq!(
        large,
        "403 pods \"large\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=500m, \
         limited: requests.cpu=1"
    );
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    pods.create(&dry, &pod("b", half.clone())).await.unwrap();
    assert_eq!(used(&quotas).await, "count/configmaps=1 pods=1 requests.cpu=500m", "a dry run takes nothing");
    // Of many at once exactly as many get through as there is room for.
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client());
    let all = (0..6).map(|n| {
        let map: ConfigMap = of(json!({"metadata": {"name": format!("m{n}")}}));
        let (maps, post) = (maps.clone(), post.clone());
        async move { maps.create(&post, &map).await.is_ok() }
    });
    let made = futures::future::join_all(all).await;
    assert_eq!(made.iter().filter(|made| **made).count(), 2);
    pods.delete("a", &Default::default()).await.unwrap();
    eventually("what has gone is free again", async || {
        used(&quotas).await == "count/configmaps=3 pods=0 requests.cpu=0"
    })
    .await;
    // What was charged and then refused for another reason is given back.
    let _ = pods.create(&post, &pod("x", half.clone())).await.unwrap();
    assert_eq!(words(pods.create(&post, &pod("x", half)).await).split(' ').next(), Some("409"));
    eventually("a refused write takes nothing", async || {
        used(&quotas).await == "count/configmaps=3 pods=1 requests.cpu=500m"
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn limits_are_filled_in_and_kept() {
    let server = server().await;
    let ranges: Api<LimitRange> = Api::default_namespaced(server.client());
    let range = of(json!({"metadata": {"name": "r"}, "spec": {"limits": [
        {"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m"}, "max": {"cpu": "1"}}]}}));
    ranges.create(&PostParams::default(), &range).await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(server.client());
    let made = pods.create(&PostParams::default(), &pod("a", json!({}))).await.unwrap();
    let spec = serde_json::to_value(made.spec).unwrap();
    assert_eq!(spec["containers"][0]["resources"], json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}));
    assert_eq!(serde_json::to_value(made.status).unwrap()["qosClass"], "Burstable");
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2), "for nodes in trouble");
    let large = words(pods.create(&PostParams::default(), &pod("b", json!({"limits": {"cpu": "2"}}))).await);
    assert_eq!(large, "403 pods \"b\" is forbidden: maximum cpu usage per Container is 1, but limit is 2");
    server.stop().await;
}
