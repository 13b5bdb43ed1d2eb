//! A kind that the hub knows nothing of, told to it in Lua: divided, retained, healthy or not, with what it needs; and a
//! script that never ends.

use std::time::Duration;

use crate::hub::Hub;
use crate::world::{eventually, text};

const PATIENCE: Duration = Duration::from_secs(90);

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: caches.shop.example}
spec:
  group: shop.example
  scope: Namespaced
  names: {kind: Cache, listKind: CacheList, plural: caches, singular: cache}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              size: {type: integer}
              secret: {type: string}
              password: {type: string}
              zones: {type: array, items: {type: string}}
              more: {type: object, additionalProperties: {type: string}}
          status: {type: object, properties: {ready: {type: integer}}}
";

const CACHE: &str = "
apiVersion: shop.example/v1
kind: Cache
metadata: {name: fast}
spec: {size: 5, secret: key, zones: [], more: {}}
";

const POLICY: &str = "
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {key: k}
---
apiVersion: policy.karmada.io/v1alpha1
kind: PropagationPolicy
metadata: {name: fast}
spec:
  propagateDeps: true
  resourceSelectors: [{apiVersion: shop.example/v1, kind: Cache, name: fast}]
  placement:
    clusterAffinity: {clusterNames: [eu, ap]}
    replicaScheduling:
      replicaSchedulingType: Divided
      replicaDivisionPreference: Weighted
      weightPreference:
        staticWeightList:
        - {targetCluster: {clusterNames: [eu]}, weight: 3}
        - {targetCluster: {clusterNames: [ap]}, weight: 2}
";

/// What the hub is told of a Cache, with this for its health and its replicas.
fn customization(healthy: &str, replicas: &str) -> String {
    format!(
        "
apiVersion: config.karmada.io/v1alpha1
kind: ResourceInterpreterCustomization
metadata: {{name: cache}}
spec:
  target: {{apiVersion: shop.example/v1, kind: Cache}}
  customizations:
    replicaResource:
      luaScript: |
        function GetReplicas(desiredObj)
          return {replicas}
        end
    replicaRevision:
      luaScript: |
        function ReviseReplica(desiredObj, desiredReplica)
          desiredObj.spec.size = desiredReplica
          return desiredObj
        end
    retention:
      luaScript: |
        function Retain(desiredObj, observedObj)
          desiredObj.spec.password = observedObj.spec.password
          return desiredObj
        end
    statusAggregation:
      luaScript: |
        function AggregateStatus(desiredObj, statusItems)
          local ready = 0
          for i = 1, #statusItems do
            ready = ready + (statusItems[i].status.ready or 0)
          end
          desiredObj.status = {{ready = ready}}
          return desiredObj
        end
    healthInterpretation:
      luaScript: |
        function InterpretHealth(observedObj)
          {healthy}
        end
    dependencyInterpretation:
      luaScript: |
        function GetDependencies(desiredObj)
          return {{{{apiVersion = 'v1', kind = 'Secret', name = desiredObj.spec.secret,
            namespace = desiredObj.metadata.namespace}}}}
        end
"
    )
}

const HEALTHY: &str = "return observedObj.status ~= nil and observedObj.status.ready == observedObj.spec.size";

impl Hub {
    /// Waits until kubectl prints this of the hub.
    async fn shows(&self, object: &[&str], path: &str, wanted: &str) {
        let path = format!("jsonpath={path}");
        let args = [&["get"], object, &["-o", &path]].concat();
        eventually(wanted, PATIENCE, async || {
            let run = self.kubectl(&args).await;
            if run.code == Some(0) && run.out == wanted { Ok(()) } else { Err(format!("{}{}", run.out, run.err)) }
        })
        .await;
    }

    /// Waits until an event in a namespace has this reason, and says this.
    async fn tells(&self, namespace: &str, reason: &str, message: &str) {
        let reason = format!("reason={reason}");
        eventually(message, PATIENCE, async || {
            let events = self.kubectl(&["get", "events", "-n", namespace, "--field-selector", &reason]).await.out;
            if events.contains(message) { Ok(()) } else { Err(format!("no `{message}` in:\n{events}")) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_of_others_is_told_in_lua() {
    let Some(hub) = Hub::start().await else { return };
    let definition = hub.world.write("caches.yaml", DEFINITION);
    for member in ["eu", "ap"] {
        hub.world.good(&["hub", "join", member, "--data", "hub"]).await;
        hub.in_member(member, &["apply", "-f", text(&definition)]).await.ends_with(0);
    }
    // One that is not known to have the kind gets none, and later none of what runs elsewhere.
    let has = "{.items[*].status.apiEnablements[?(@.groupVersion=='shop.example/v1')].groupVersion}";
    hub.shows(&["clusters"], has, "shop.example/v1 shop.example/v1").await;
    hub.apply("caches.yaml", DEFINITION).await;
    hub.kubectl(&["wait", "--for=condition=Established", "crd/caches.shop.example"]).await.ends_with(0);
    hub.apply("customization.yaml", &customization(HEALTHY, "desiredObj.spec.size")).await;
    let columns = hub.kubectl(&["get", "ric", "cache"]).await.ends_with(0).out;
    let words: Vec<_> = columns.split_whitespace().take(8).collect();
    assert_eq!(words[..4], ["NAME", "TARGET-API-VERSION", "TARGET-KIND", "AGE"], "{columns}");
    assert_eq!(words[4..7], ["cache", "shop.example/v1", "Cache"], "{columns}");
    hub.apply("cache.yaml", CACHE).await;
    hub.apply("policy.yaml", POLICY).await;

    // Five, by three to two, with their empty fields as they were; and what they need.
    for (member, size) in [("eu", "3"), ("ap", "2")] {
        hub.prints(member, &["cache", "fast"], ".spec.size", size).await;
        hub.prints(member, &["cache", "fast"], ".spec['zones','more']", "[] {}").await;
        hub.prints(member, &["secret", "key"], ".data.key", "aw==").await;
    }
    // What members say comes together, and tells whether they are well.
    let binding = ["rb", "fast-cache"];
    let health = "{.status.aggregatedStatus[*].health}";
    for (member, ready) in [("eu", 3), ("ap", 1)] {
        let status = format!("{{\"status\": {{\"ready\": {ready}}}}}");
        let patch = ["patch", "cache", "fast", "--subresource=status", "--type=merge", "-p", &status];
        hub.in_member(member, &patch).await.ends_with(0);
    }
    hub.shows(&["cache", "fast"], "{.status.ready}", "4").await;
    hub.shows(&binding, health, "Unhealthy Healthy").await;
    // What a member decides stays when the hub writes again.
    let patch = ["patch", "cache", "fast", "--type=merge", "-p", r#"{"spec": {"password": "eu's own"}}"#];
    hub.in_member("eu", &patch).await.ends_with(0);
    hub.kubectl(&["patch", "cache", "fast", "--type=merge", "-p", r#"{"spec": {"size": 10}}"#]).await.ends_with(0);
    hub.prints("eu", &["cache", "fast"], ".spec.size", "6").await;
    hub.prints("eu", &["cache", "fast"], ".spec.password", "eu's own").await;

    // A script that does not end does not hold up the hub, and is told; so is one that fails.
    hub.apply("customization.yaml", &customization("while true do end", "desiredObj.spec.size")).await;
    hub.tells("karmada-es-eu", "InterpretHealthFailed", "the script does not end within 1 s of processor time").await;
    hub.shows(&binding, health, "Unknown Unknown").await;
    hub.apply("customization.yaml", &customization("return true", "desiredObj.spec.replicas")).await;
    hub.tells("default", "GetReplicasFailed", "result type nil is not number").await;
    hub.shows(&binding, health, "Healthy Healthy").await;
    hub.shows(&binding, "{.spec.replicas}", "10").await;
    // And the same file, tried without a hub.
    hub.world.write("right.yaml", &customization(HEALTHY, "desiredObj.spec.size"));
    let tried = ["hub", "interpret", "-f", "right.yaml", "--operation", "InterpretReplica", "--desired", "cache.yaml"];
    assert_eq!(hub.world.good(&tried).await.out, "---\n# [1/2] replica:\n5\n---\n# [2/2] requires:\nnull\n");
}
