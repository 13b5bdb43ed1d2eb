use serde_json::{Value, json};

use super::*;

fn policy(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "policy.karmada.io/v1alpha1", "kind": kind, "metadata": {"name": "p", "namespace": "shop"}, "spec": spec})
}

fn interpreter(name: &str, rules: Value) -> Value {
    json!({"apiVersion": "config.karmada.io/v1alpha1", "kind": "ResourceInterpreterCustomization", "metadata": {"name": name},
        "spec": {"target": {"apiVersion": "shop.example/v1", "kind": "Cache"}, "customizations": rules}})
}

fn written(object: Value) -> Value {
    json!({"uid": "7", "operation": "CREATE", "object": object})
}

fn rule(function: &str) -> Value {
    json!({"luaScript": format!("function {function}() return 1 end")})
}

/// What is said, each on a line of its own.
fn said(request: &Value, known: &Others) -> String {
    let Verdict { refused, warnings } = judge(request, known);
    let warned = warnings.iter().map(|warning| format!("warning: {warning}"));
    let said: Vec<_> = refused.map(|why| format!("refused: {why}")).into_iter().chain(warned).collect();
    if said.is_empty() { "taken".to_owned() } else { said.join("\n") }
}

#[test]
fn what_karmadas_webhooks_refuse_is_refused() {
    let selectors = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}]);
    let known: Customization = read(&interpreter(
        "cache",
        json!({"replicaResource": rule("GetReplicas"), "dependencyInterpretation": rule("GetDependencies")}),
    ))
    .unwrap()
    .0;
    let down = |name: &str, taints: Value| {
        let mut policy = policy(
            "ClusterTaintPolicy",
            json!({"taints": taints,
            "addOnConditions": [{"conditionType": "Ready", "operator": "NotIn", "statusValues": ["True"]}]}),
        );
        policy["metadata"] = json!({"name": name});
        policy
    };
    let taints = json!([{"key": "down", "effect": "NoExecute"}]);
    let known = Others {
        customizations: vec![known],
        taint_policies: vec![read(&down("not-ready", taints.clone())).unwrap().0],
        algorithm: Algorithm::Newest,
    };
    let lines: Vec<String> = [
        policy("PropagationPolicy", json!({"resourceSelectors": selectors, "placement": {"spreadConstraints": [{"maxGroups": 2}]}})),
        policy("PropagationPolicy", json!({"resourceSelectors": [], "preemption": "Always", "placement": {"clusterAffinity": {}, "clusterAffinities": [{"affinityName": "a"}]}})),
        policy("ClusterPropagationPolicy", json!({"resourceSelectors": selectors, "schedulerName": "mine", "placement": {"workloadAffinity": {}}})),
        policy("PropagationPolicy", json!({"resourceSelectors": "all"})),
        policy("OverridePolicy", json!({"overrideRules": [{"overriders": {"plaintext": [{"path": "spec", "operator": "remove"}]}}]})),
        policy("ClusterOverridePolicy", json!({"overrideRules": [{"overriders": {"plaintext": [{"path": "/spec", "operator": "remove"}]}}]})),
        interpreter("cache", json!({"replicaResource": rule("GetReplicas"), "replicaRevision": rule("ReviseReplica")})),
        interpreter("other", json!({"replicaResource": rule("GetReplicas")})),
        interpreter("other", json!({"dependencyInterpretation": rule("GetDependencies")})),
        interpreter("other", json!({"retention": {"luaScript": "function Retain("}})),
        interpreter("other", json!({"healthInterpretation": rule("Health")})),
        interpreter("other", json!({"componentResource": rule("GetComponents")})),
        interpreter("cache", json!({"componentResource": rule("GetComponents"), "replicaResource": rule("GetReplicas")})),
        interpreter("other", json!({})),
        down("not-ready", taints.clone()),
        down("again", taints),
        down("twice", json!([{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule", "value": "b"}])),
        down("own", json!([{"key": "cluster.karmada.io/not-ready", "effect": "NoExecute"}])),
        policy("ClusterTaintPolicy", json!({"taints": [{"key": "a", "effect": "NoSchedule"}]})),
        policy("ClusterTaintPolicy", json!({"taints": [], "targetClusters": {"fieldSelector": {"matchExpressions": [{"key": "planet", "operator": "In"}]}},
            "removeOnConditions": [{"conditionType": "Ready", "operator": "In", "statusValues": ["Yes"]}]})),
    ]
    .into_iter()
    .enumerate()
    .map(|(at, object)| format!("{at} {}", said(&written(object), &known)))
    .collect();
    insta::assert_snapshot!(lines.join("\n"), @r#"
    0 taken
    1 refused: spec.resourceSelectors: is empty; say which templates: apiVersion, kind, and a name or labels
    spec.placement.clusterAffinities: stands beside clusterAffinity; keep one of the two
    2 warning: spec.schedulerName: is not the hub's; somebody else has to schedule; default-scheduler is the hub's
    warning: spec.placement.workloadAffinity: the hub takes it and does not act on it yet
    3 refused: spec.resourceSelectors: invalid type: string "all", expected a sequence
    4 refused: spec.overrideRules[0].overriders.plaintext[0].path: does not begin with /; write a JSON pointer, as /spec/replicas
    5 taken
    6 taken
    7 refused: conflicting with InterpreterOperation(InterpretReplica) of existing ResourceInterpreterCustomization(cache)
    8 taken
    9 refused: InterpreterOperation(Retain) Lua script error: the script cannot be read: luaScript:1: Expected identifier when parsing variable name, got <eof>
    10 warning: spec.customizations.healthInterpretation.luaScript: has no function InterpretHealth; write one
    11 taken
    12 warning: spec.customizations.replicaResource: is not looked at beside componentResource; take one of the two out
    13 warning: spec.customizations: has no script, and so says nothing of shop.example/v1 Cache
    14 taken
    15 refused: spec.taints[0]: is down:NoExecute, which the policy not-ready has already; each taint is one policy's: take another key
    16 refused: spec.taints[1]: is a:NoSchedule for the second time; take one of the two out
    17 warning: spec.taints[0].key: is a taint of the hub's own, which comes and goes by itself; take another key
    18 warning: spec: has neither addOnConditions nor removeOnConditions; say when its taints are added or taken away
    19 refused: spec.targetClusters.fieldSelector.matchExpressions[0].key: is "planet"; write provider, region or zone
    spec.targetClusters.fieldSelector.matchExpressions[0].values: is empty; write what the field may be
    spec.taints: is empty; say which taints: key and effect
    spec.removeOnConditions[0].statusValues: has "Yes"; write True, False or Unknown
    "#);
}

#[test]
fn what_was_there_before_can_go_and_what_is_protected_cannot() {
    let bad = policy("PropagationPolicy", json!({"resourceSelectors": []}));
    let mut marked = bad.clone();
    marked["metadata"]["finalizers"] = json!(["x"]);
    let mut going = policy("PropagationPolicy", json!({"resourceSelectors": [], "priority": 1}));
    let mut update = json!({"uid": "7", "operation": "UPDATE", "oldObject": bad, "object": marked});
    assert_eq!(judge(&update, &Others::default()), Verdict::default());
    update["object"] = going.clone();
    assert!(judge(&update, &Others::default()).refused.is_some());
    going["metadata"]["deletionTimestamp"] = json!("2026-01-02T03:04:05Z");
    update["object"] = going;
    assert_eq!(judge(&update, &Others::default()), Verdict::default());

    let delete = |value: &str| {
        let labels = json!({"resourcetemplate.karmada.io/deletion-protected": value});
        json!({"request": {"uid": "7", "operation": "DELETE", "oldObject": {"metadata": {"labels": labels}}}})
    };
    assert_eq!(review(&delete("Never"), &Others::default())["response"], json!({"uid": "7", "allowed": true}));
    insta::assert_snapshot!(review(&delete("Always"), &Others::default())["response"], @r#"{"allowed":false,"status":{"code":403,"message":"This resource is protected, please make sure to remove the label: resourcetemplate.karmada.io/deletion-protected","reason":"Forbidden"},"uid":"7"}"#);
}
