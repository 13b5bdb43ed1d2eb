use serde_json::{Value, json};

use super::*;
use crate::model::{OverridePolicy, read};

fn policy(namespace: &str, spec: Value) -> Value {
    let mut policy = json!({"metadata": {"name": "p"}, "spec": spec});
    if !namespace.is_empty() {
        policy["metadata"]["namespace"] = namespace.into();
    }
    if policy["spec"].get("resourceSelectors").is_none() {
        policy["spec"]["resourceSelectors"] = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}]);
    }
    policy
}

fn shown(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_left_open_is_filled_in() {
    let mut written = policy(
        "shop",
        json!({
        "resourceSelectors": [{"apiVersion": "apps/v1", "kind": "Deployment"},
            {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceImport", "namespace": "shop"}],
        "failover": {"application": {}},
        "placement": {"spreadConstraints": [{"maxGroups": 2}, {"spreadByField": "region", "minGroups": 2}],
            "replicaScheduling": {"replicaSchedulingType": "Divided"}}}),
    );
    default(&mut written, "6f0c");
    assert_eq!(
        written,
        json!({"metadata": {"name": "p", "namespace": "shop",
            "labels": {"propagationpolicy.karmada.io/permanent-id": "6f0c"},
            "finalizers": ["karmada.io/propagation-policy-controller"]},
        "spec": {
            "resourceSelectors": [{"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop"},
                {"apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceImport", "namespace": "shop"}],
            "priority": 0, "preemption": "Never", "conflictResolution": "Abort", "schedulerName": "default-scheduler",
            "propagateDeps": true,
            "failover": {"application": {"purgeMode": "Gracefully", "gracePeriodSeconds": 600}},
            "placement": {"spreadConstraints": [{"spreadByField": "cluster", "minGroups": 1, "maxGroups": 2},
                {"spreadByField": "region", "minGroups": 2}],
                "replicaScheduling": {"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Weighted"}}}})
    );
    // Filling in again changes nothing, and the id is for ever.
    let before = written.clone();
    default(&mut written, "other");
    assert_eq!(written, before);
    assert_eq!(problems(&read(&written).unwrap().0), []);
    // A cluster-wide policy is for all namespaces.
    let mut wide = policy("", json!({}));
    default(&mut wide, "7");
    assert_eq!(wide["metadata"]["labels"], json!({"clusterpropagationpolicy.karmada.io/permanent-id": "7"}));
    assert_eq!(wide["spec"]["resourceSelectors"][0].get("namespace"), None);
    let mut overriding = policy("shop", json!({}));
    default_override(&mut overriding);
    assert_eq!(overriding["spec"]["resourceSelectors"][0]["namespace"], "shop");
}

#[test]
fn policies_that_make_no_sense_are_refused() {
    let divided = |rest: Value| {
        let mut scheduling = json!({"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Weighted"});
        scheduling["weightPreference"] = rest;
        scheduling
    };
    let refused: Vec<String> = [
        json!({"resourceSelectors": []}),
        json!({"resourceSelectors": [{"apiVersion": "", "kind": "Deployment", "namespace": "other"}]}),
        json!({"resourceSelectors": [{"apiVersion": "v1", "kind": "Service",
            "labelSelector": {"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["x"]}]}}],
            "preemption": "Always"}),
        json!({"schedulePriority": {"priorityClassSource": "PodPriorityClass", "priorityClassName": ""}}),
        json!({"suspension": {"dispatching": true, "dispatchingOnClusters": {"clusterNames": ["eu"]}}}),
        json!({"failover": {"application": {"purgeMode": "Directly", "gracePeriodSeconds": 5}}}),
        json!({"propagateDeps": true, "failover": {"application": {"gracePeriodSeconds": 0}}}),
        json!({"placement": {"clusterAffinity": {"fieldSelector": {"matchExpressions": [{"key": "planet", "operator": "In"}]}},
            "clusterAffinities": [{"affinityName": "a"}, {"affinityName": "a",
                "overflowAffinities": [{"affinityName": "", "clusterNames": ["x"]}]}]}}),
        json!({"placement": {"clusterTolerations": [{"key": "a", "operator": "Gt", "value": "1"},
            {"key": "a", "operator": "Exists", "value": "1"}, {"value": "x"},
            {"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 5}]}}),
        json!({"placement": {"spreadConstraints": [{"spreadByField": "region", "spreadByLabel": "x", "minGroups": 3, "maxGroups": 2},
            {"spreadByField": "region", "minGroups": -1}]}}),
        json!({"placement": {"replicaScheduling": divided(json!({"staticWeightList": [
            {"targetCluster": {"clusterNames": ["eu"]}, "weight": 0}]}))}}),
    ]
    .into_iter()
    .map(|spec| {
        let problems = problems(&read(&policy("shop", spec.clone())).unwrap().0);
        assert!(!problems.is_empty(), "{spec}");
        shown(&problems)
    })
    .collect();
    insta::assert_snapshot!(refused.join("\n"), @r#"
        spec.resourceSelectors: is empty; say which templates: apiVersion, kind, and a name or labels
        spec.resourceSelectors[0].apiVersion: is empty; write one, as apps/v1
        spec.resourceSelectors[0].namespace: is other, and the policy is of namespace shop; take it out, write the policy in other, or use a cluster-wide one
        spec.resourceSelectors[0].name: is empty, and preemption is Always; name the template, or write preemption: Never
        spec.resourceSelectors[0].labelSelector.matchExpressions[0].values: is empty, and the operator compares with it; write what the label may be
        spec.resourceSelectors[0].labelSelector.matchExpressions[1].values: is for In and NotIn only; take it out
        spec.schedulePriority.priorityClassSource: is "PodPriorityClass"; write KubePriorityClass
        spec.schedulePriority.priorityClassName: is empty; name a PriorityClass of the hub
        spec.suspension: has both dispatching and dispatchingOnClusters; keep one: all clusters, or those that are named
        spec.propagateDeps: is false, and failover.application is given; write propagateDeps: true
        spec.failover.application.gracePeriodSeconds: is for purgeMode: Gracefully only; take one of the two out
        spec.failover.application.gracePeriodSeconds: is not greater than 0; write seconds, or take it out for 600
        spec.placement.clusterAffinities: stands beside clusterAffinity; keep one of the two
        spec.placement.clusterAffinity.fieldSelector.matchExpressions[0].key: is "planet"; write provider, region or zone
        spec.placement.clusterAffinity.fieldSelector.matchExpressions[0].values: is empty; write what the field may be
        spec.placement.clusterAffinities[1].affinityName: is a for the second time; give each group its own name
        spec.placement.clusterAffinities[1].overflowAffinities[0].affinityName: is empty; give each group a name
        spec.placement.clusterAffinities[1].overflowAffinities: is for divisions that look at room; write replicaSchedulingType: Divided with dynamicWeight: AvailableReplicas or Aggregated
        spec.placement.clusterTolerations[0].operator: is Gt; write Exists or Equal
        spec.placement.clusterTolerations[1].value: is for operator Equal only; take it out
        spec.placement.clusterTolerations[2].key: is empty; write a taint's key, or operator: Exists for all
        spec.placement.clusterTolerations[3].tolerationSeconds: is for effect NoExecute only; take one of the two out
        spec.placement.spreadConstraints[0]: has both spreadByField and spreadByLabel; keep spreadByField
        spec.placement.spreadConstraints[0].maxGroups: is 2, and minGroups is 3; write as many or more
        spec.placement.spreadConstraints[1].minGroups: is -1; write a number from 1
        spec.placement.spreadConstraints[1].spreadByField: is region for the second time; one constraint for each field
        spec.placement.spreadConstraints: counts something, but no clusters; add spreadByField: cluster with minGroups and maxGroups
        spec.placement.replicaScheduling.weightPreference.staticWeightList[0].weight: is 0; write 1 or more; a cluster that no rule means gets nothing
        "#);
    // What is right is not refused.
    let right = json!({"preemption": "Always", "placement": {
        "clusterAffinities": [{"affinityName": "a", "overflowAffinities": [{"affinityName": "b"}]}],
        "clusterTolerations": [{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": 5}],
        "spreadConstraints": [{"spreadByField": "cluster", "minGroups": 1, "maxGroups": 2}],
        "replicaScheduling": divided(json!({"dynamicWeight": "AvailableReplicas"}))}});
    let right = read::<PropagationPolicy>(&policy("shop", right)).unwrap().0;
    assert_eq!((problems(&right), warnings(&right, Algorithm::V1_2)), (vec![], vec![]));
}

#[test]
fn what_does_nothing_is_warned_about() {
    let warned: Vec<String> = [
        json!({"association": true, "schedulerName": "mine", "schedulePriority": {"priorityClassSource": "KubePriorityClass",
            "priorityClassName": "high"}, "failover": {"application": {}},
            "resourceSelectors": [{"apiVersion": "v1", "kind": "Service", "name": "a", "labelSelector": {}}]}),
        json!({"placement": {"workloadAffinity": {}, "spreadConstraints": [{"spreadByField": "cluster"}, {"spreadByField": "zone"},
            {"spreadByLabel": "rack"}], "replicaScheduling": {"weightPreference": {"dynamicWeight": "AvailableReplicas"}}}}),
        json!({"placement": {"spreadConstraints": [{"spreadByField": "cluster"}],
            "replicaScheduling": {"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Weighted"}}}),
        json!({"placement": {"replicaScheduling": {"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Aggregated",
            "weightPreference": {}}}}),
        json!({"placement": {"replicaScheduling": {"replicaSchedulingType": "Divided", "weightPreference": {
            "dynamicWeight": "AvailableReplicas", "staticWeightList": [{"targetCluster": {}, "weight": 1}]}}}}),
        json!({"placement": {"clusterTolerations": [{"key": "slow", "operator": "Exists", "effect": "PreferNoSchedule"}],
            "replicaScheduling": {"replicaDivisionPreference": "Aggregated"}}}),
    ]
    .into_iter()
    .map(|spec| shown(&warnings(&read(&policy("shop", spec)).unwrap().0, Algorithm::Newest)))
    .collect();
    insta::assert_snapshot!(warned.join("\n"), @"
        spec.resourceSelectors[0].labelSelector: is not looked at beside a name; take one of the two out
        spec.association: is the old name of propagateDeps; write propagateDeps: true
        spec.schedulerName: is not the hub's; somebody else has to schedule; default-scheduler is the hub's
        spec.placement.workloadAffinity: the hub takes it and does not act on it yet
        spec.placement.replicaScheduling.weightPreference: is not looked at: every cluster gets all replicas; write replicaSchedulingType: Divided
        spec.placement.spreadConstraints[0].maxGroups: is 0, which chooses nothing; write how many at most
        spec.placement.spreadConstraints[1]: is not counted; regions and clusters are counted; here only clusters that have none are left out
        spec.placement.spreadConstraints[2].spreadByLabel: nothing is spread by labels; write spreadByField
        spec.placement.spreadConstraints[0]: is not looked at: static weights are for all candidates; use dynamicWeight, or take it out
        spec.placement.replicaScheduling.weightPreference: is not looked at with Aggregated; write replicaDivisionPreference: Weighted
        spec.placement.replicaScheduling.weightPreference.staticWeightList: is not looked at beside dynamicWeight; take one of the two out
        spec.placement.clusterTolerations[0]: tolerates nothing: no taint PreferNoSchedule keeps anything away; take it out
        spec.placement.replicaScheduling.replicaDivisionPreference: is not looked at: every cluster gets all replicas; write replicaSchedulingType: Divided
        ");
}

#[test]
fn what_v1_2_does_not_know_is_warned_about_where_it_decides() {
    let ranked = read::<PropagationPolicy>(&policy("shop", json!({"priority": 5}))).unwrap().0;
    assert_eq!(warnings(&ranked, Algorithm::Newest), []);
    insta::assert_snapshot!(shown(&warnings(&ranked, Algorithm::V1_2)), @"spec.priority: is not looked at: v1.2, by which this hub decides, takes the first name; give it a name that comes earlier; with preemption: Always it counts");
}

#[test]
fn overrides_that_cannot_be_made_are_refused() {
    let spec = json!({
        "resourceSelectors": [{"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "other"}],
        "targetCluster": {"fieldSelector": {"matchExpressions": [{"key": "region", "operator": "In"}]}},
        "overrideRules": [{"overriders": {
            "imageOverrider": [{"component": "Tag", "operator": "add", "predicate": {"path": "spec"}}],
            "argsOverrider": [{"containerName": "", "operator": "replace"}],
            "fieldOverrider": [{"fieldPath": "data", "json": [{"subPath": "a", "operator": "add"}],
                "yaml": [{"subPath": "/a", "operator": "remove"}]}],
            "plaintext": [{"path": "spec/replicas", "operator": "remove"}]}}]});
    let (policy, unknown) = read::<OverridePolicy>(&policy("shop", spec)).unwrap();
    assert_eq!(unknown, []);
    insta::assert_snapshot!(shown(&override_problems(&policy)), @"
        spec.resourceSelectors[0].namespace: is other, and the policy is of namespace shop; take it out, write the policy in other, or use a cluster-wide one
        spec.overrideRules: stands beside the old targetCluster and overriders; move them into a rule of their own
        spec.overrideRules[0].overriders.imageOverrider[0].value: is empty; write with what, or operator: remove
        spec.overrideRules[0].overriders.imageOverrider[0].predicate.path: does not begin with /; write a JSON pointer to the image
        spec.overrideRules[0].overriders.argsOverrider[0].containerName: is empty; name the container
        spec.overrideRules[0].overriders.argsOverrider[0].operator: is replace; write add or remove
        spec.overrideRules[0].overriders.fieldOverrider[0].fieldPath: does not begin with /; write a JSON pointer, as /spec/replicas
        spec.overrideRules[0].overriders.fieldOverrider[0]: has not one of json and yaml; write what the text is: json or yaml
        spec.overrideRules[0].overriders.fieldOverrider[0].json[0].subPath: does not begin with /; write a JSON pointer, as /spec/replicas
        spec.overrideRules[0].overriders.plaintext[0].path: does not begin with /; write a JSON pointer, as /spec/replicas
        spec.targetCluster.fieldSelector.matchExpressions[0].values: is empty; write what the field may be
        ");
}

#[test]
fn what_of_an_override_does_nothing_is_warned_about() {
    let overriders = json!({
        "imageOverrider": [{"component": "Tag", "operator": "replace", "value": "not a tag"},
            {"component": "Tag", "operator": "replace", "value": "v2"},
            {"component": "Registry", "operator": "remove", "value": "docker.io"}],
        "argsOverrider": [{"containerName": "web", "operator": "add"}],
        "labelsOverrider": [{"operator": "add"}],
        "fieldOverrider": [{"fieldPath": "/data/a", "yaml": [{"subPath": "/b", "operator": "remove", "value": "c"}]}],
        "plaintext": [{"path": "/spec/replicas", "operator": "remove", "value": 3}]});
    let both = json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "labelSelector": {}}]);
    let warned: Vec<String> = [
        json!({"resourceSelectors": both, "overrideRules": [{"overriders": {}}, {"overriders": overriders}]}),
        json!({}),
        json!({"targetCluster": {"clusterNames": ["eu"]}}),
    ]
    .into_iter()
    .map(|spec| {
        let read = read::<OverridePolicy>(&policy("shop", spec)).unwrap().0;
        assert_eq!(override_problems(&read), []);
        shown(&override_warnings(&read))
    })
    .collect();
    insta::assert_snapshot!(warned.join("\n"), @"
        spec.resourceSelectors[0].labelSelector: is not looked at beside a name; take one of the two out
        spec.overrideRules[0].overriders: is empty: nothing is changed; write one, as plaintext
        spec.overrideRules[1].overriders.imageOverrider[0].value: is neither a tag nor a digest: the image stays as it is; write one, as v2
        spec.overrideRules[1].overriders.imageOverrider[2].value: is not looked at with operator: remove; take one of the two out
        spec.overrideRules[1].overriders.argsOverrider[0].value: is empty: nothing is changed; write which words
        spec.overrideRules[1].overriders.labelsOverrider[0].value: is empty: nothing is changed; write which keys
        spec.overrideRules[1].overriders.fieldOverrider[0].yaml[0].value: is not looked at with operator: remove; take one of the two out
        spec.overrideRules[1].overriders.plaintext[0].value: is not looked at with operator: remove; take one of the two out
        spec.overrideRules: is empty: nothing is changed; say for which clusters, and what
        spec.overriders: is empty: nothing is changed; write one, as plaintext
        ");
}
