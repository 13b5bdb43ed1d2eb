use serde_json::json;

use super::*;

/// The reference system's second policy, and every field a policy may have.
#[test]
fn policies_are_read_and_written_as_karmada_does() {
    let policies = [
        json!({
            "apiVersion": "policy.karmada.io/v1alpha1", "kind": "PropagationPolicy",
            "metadata": {"name": "hello-propagation", "managedFields": [{"manager": "kubectl"}]},
            "spec": {
                "resourceSelectors": [
                    {"apiVersion": "apps/v1", "kind": "Deployment", "name": "hello"},
                    {"apiVersion": "v1", "kind": "Service", "name": "hello"}],
                "placement": {
                    "clusterAffinity": {"clusterNames": ["eu", "ap", "us"]},
                    "replicaScheduling": {
                        "replicaDivisionPreference": "Weighted", "replicaSchedulingType": "Divided",
                        "weightPreference": {"staticWeightList": [
                            {"targetCluster": {"clusterNames": ["us"]}, "weight": 2},
                            {"targetCluster": {"clusterNames": ["ap", "eu"]}, "weight": 1}]}}}}}),
        json!({
            "apiVersion": "policy.karmada.io/v1alpha1", "kind": "ClusterPropagationPolicy",
            "metadata": {"name": "all", "labels": {"a": "b"}},
            "spec": {
                "resourceSelectors": [{"apiVersion": "v1", "kind": "ConfigMap", "namespace": "shop",
                    "labelSelector": {"matchLabels": {"tier": "web"},
                        "matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["dev"]}]}}],
                "association": true, "propagateDeps": true, "priority": 5, "preemption": "Always",
                "dependentOverrides": ["o"], "schedulerName": "default-scheduler",
                "conflictResolution": "Overwrite", "activationPreference": "Lazy",
                "suspension": {"dispatchingOnClusters": {"clusterNames": ["eu"]}},
                "preserveResourcesOnDeletion": true,
                "schedulePriority": {"priorityClassSource": "KubePriorityClass", "priorityClassName": "high"},
                "failover": {
                    "application": {
                        "decisionConditions": {"tolerationSeconds": 120}, "purgeMode": "Gracefully",
                        "gracePeriodSeconds": 600,
                        "statePreservation": {"rules": [{"aliasLabelName": "a", "jsonPath": "{.b}"}]}},
                    "cluster": {"purgeMode": "Directly"}},
                "placement": {
                    "clusterAffinities": [
                        {"affinityName": "near", "clusterNames": ["eu"],
                         "overflowAffinities": [{"affinityName": "cloud", "exclude": ["ap"]}]},
                        {"affinityName": "far", "labelSelector": {"matchLabels": {"far": "yes"}},
                         "fieldSelector": {"matchExpressions": [
                            {"key": "region", "operator": "In", "values": ["us"]}]}}],
                    "clusterTolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute",
                        "tolerationSeconds": 30}],
                    "spreadConstraints": [
                        {"spreadByField": "cluster", "maxGroups": 3, "minGroups": 2},
                        {"spreadByField": "region", "maxGroups": 2, "minGroups": 1}],
                    "replicaScheduling": {"replicaSchedulingType": "Divided",
                        "replicaDivisionPreference": "Weighted",
                        "weightPreference": {"dynamicWeight": "AvailableReplicas"}},
                    "workloadAffinity": {"affinity": {"groupByLabelKey": "app"},
                        "antiAffinity": {"groupByLabelKey": "rack"}}}}}),
    ];
    for written in policies {
        let (policy, unknown) = read::<PropagationPolicy>(&written).unwrap();
        assert_eq!(unknown, []);
        assert_eq!(serde_json::to_value(&policy).unwrap(), written);
    }
}

#[test]
fn unknown_fields_are_named() {
    let (policy, unknown) = read::<PropagationPolicy>(&json!({
        "apiVersion": "policy.karmada.io/v1alpha1", "kind": "PropagationPolicy", "metadata": {"name": "p"},
        "spec": {
            "resourceSelectors": [{"apiVersion": "v1", "kind": "Service", "nameSpace": "shop", "labelSelector": null}],
            "prio": 3,
            "placement": {
                "clusterAffinities": [{"affinityName": "a", "clusterName": ["eu"]}],
                "replicaScheduling": {"replicaSchedulingType": "Duplicated", "mode": "x"}}},
        "status": {"phase": "Bound"}}))
    .unwrap();
    assert_eq!(policy.spec.resource_selectors[0].kind, "Service");
    insta::assert_snapshot!(unknown.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"), @"
    spec.placement.clusterAffinities[0].clusterName: the hub knows no such field; did you mean clusterNames?
    spec.placement.replicaScheduling.mode: the hub knows no such field; known here: replicaSchedulingType, replicaDivisionPreference, weightPreference
    spec.prio: the hub knows no such field; known here: resourceSelectors, association, propagateDeps, placement, priority, preemption, dependentOverrides, schedulerName, failover, conflictResolution, activationPreference, suspension, preserveResourcesOnDeletion, schedulePriority
    spec.resourceSelectors[0].nameSpace: the hub knows no such field; did you mean namespace?
    status.phase: the hub knows no such field; take it out
    ");
}

#[test]
fn what_is_not_of_its_kind_is_refused_where_it_stands() {
    let of = |spec: Value| {
        let object = json!({"kind": "PropagationPolicy", "metadata": {"name": "p"}, "spec": spec});
        read::<PropagationPolicy>(&object).unwrap_err().to_string()
    };
    let refused = [
        of(json!({"placement": {}})),
        of(json!({"resourceSelectors": [{"apiVersion": "v1"}]})),
        of(json!({"resourceSelectors": [], "placement": {"replicaScheduling": {"replicaSchedulingType": "Split"}}})),
        of(json!({"resourceSelectors": [], "placement": {"clusterAffinity": {"clusterNames": "eu"}}})),
        of(json!({"resourceSelectors": [], "placement": {"spreadConstraints": [{"spreadByField": "planet"}]}})),
        of(json!({"resourceSelectors": [], "priority": "high"})),
    ];
    insta::assert_snapshot!(refused.join("\n"), @r#"
    spec: missing field `resourceSelectors`
    spec.resourceSelectors[0]: missing field `kind`
    spec.placement.replicaScheduling.replicaSchedulingType: unknown variant `Split`, expected `Duplicated` or `Divided`
    spec.placement.clusterAffinity.clusterNames: invalid type: string "eu", expected a sequence
    spec.placement.spreadConstraints[0].spreadByField: unknown variant `planet`, expected one of `cluster`, `region`, `zone`, `provider`
    spec.priority: invalid type: string "high", expected i64
    "#);
}

#[test]
fn bindings_works_clusters_and_overrides_are_read_and_written() {
    let binding = json!({
        "apiVersion": "work.karmada.io/v1alpha2", "kind": "ResourceBinding",
        "metadata": {"name": "web-deployment", "namespace": "shop", "generation": 3,
            "finalizers": ["karmada.io/binding-controller"]},
        "spec": {
            "resource": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "web",
                "uid": "1", "resourceVersion": "42"},
            "replicas": 7, "replicaRequirements": {"resourceRequest": {"cpu": "100m"}},
            "conflictResolution": "Overwrite", "placement": {"clusterAffinity": {"clusterNames": ["c1"]}},
            "clusters": [{"name": "c1", "replicas": 7}, {"name": "c2"}],
            "gracefulEvictionTasks": [{"fromCluster": "c3", "reason": "TaintUntolerated", "producer": "TaintManager",
                "creationTimestamp": "2026-01-02T03:04:05Z"}],
            "requiredBy": [{"namespace": "shop", "name": "api-deployment", "clusters": [{"name": "c1"}]}]},
        "status": {"schedulerObservedGeneration": 3, "schedulerObservingAffinityName": "near",
            "lastScheduledTime": "2026-01-02T03:04:05Z",
            "conditions": [{"type": "Scheduled", "status": "True", "reason": "Success", "message": "m",
                "lastTransitionTime": "2026-01-02T03:04:05Z"}],
            "aggregatedStatus": [{"clusterName": "c1", "status": {"replicas": 7}, "applied": true,
                "health": "Healthy"}]}});
    let (read_back, unknown) = read::<Binding>(&binding).unwrap();
    assert_eq!((serde_json::to_value(&read_back).unwrap(), unknown), (binding, vec![]));

    let work = json!({
        "apiVersion": "work.karmada.io/v1alpha1", "kind": "Work",
        "metadata": {"name": "web-1", "namespace": "karmada-es-c1"},
        "spec": {"workload": {"manifests": [{"kind": "Deployment", "spec": {"any": [1, {"thing": "goes"}]}}]},
            "suspendDispatching": true},
        "status": {"manifestStatuses": [{"identifier": {"ordinal": 0, "group": "apps", "version": "v1",
            "kind": "Deployment", "resource": "deployments", "namespace": "shop", "name": "web"},
            "status": {"replicas": 1}, "health": "Unknown"}]}});
    let (read_back, unknown) = read::<Work>(&work).unwrap();
    assert_eq!((serde_json::to_value(&read_back).unwrap(), unknown), (work, vec![]));

    let cluster = json!({
        "apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster", "metadata": {"name": "c1"},
        "spec": {"syncMode": "Pull", "apiEndpoint": "https://c1:6443", "provider": "p", "region": "r",
            "insecureSkipTLSVerification": true, "proxyURL": "http://p", "zones": ["a", "b"],
            "taints": [{"key": "cluster.karmada.io/not-ready", "effect": "NoSchedule"}],
            "resourceModels": [{"grade": 0, "ranges": [{"name": "cpu", "min": "0", "max": "1"}]}]},
        "status": {"kubernetesVersion": "v1.33.0",
            "apiEnablements": [{"groupVersion": "apps/v1", "resources": [{"name": "deployments", "kind": "Deployment"}]}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "ClusterReady", "message": ""}],
            "nodeSummary": {"totalNum": 3, "readyNum": 2},
            "resourceSummary": {"allocatable": {"cpu": "4", "pods": 110}, "allocatableModelings": [{"grade": 0, "count": 2}]}}});
    let (read_back, unknown) = read::<Cluster>(&cluster).unwrap();
    assert!(read_back.status.ready() && read_back.status.serves("apps/v1", "Deployment"));
    assert!(!read_back.status.serves("apps/v1", "StatefulSet"));
    assert_eq!((serde_json::to_value(&read_back).unwrap(), unknown), (cluster, vec![]));

    let overriding = json!({
        "apiVersion": "policy.karmada.io/v1alpha1", "kind": "OverridePolicy",
        "metadata": {"name": "o", "namespace": "shop"},
        "spec": {"overrideRules": [{"targetCluster": {"clusterNames": ["c3"]}, "overriders": {
            "imageOverrider": [{"predicate": {"path": "/spec/image"}, "component": "Registry", "operator": "replace",
                "value": "mirror.example"}],
            "commandOverrider": [{"containerName": "c", "operator": "add", "value": ["-v"]}],
            "argsOverrider": [{"containerName": "c", "operator": "remove", "value": ["-v"]}],
            "labelsOverrider": [{"operator": "add", "value": {"a": "b"}}],
            "annotationsOverrider": [{"operator": "replace", "value": {"a": "b"}}],
            "fieldOverrider": [{"fieldPath": "/data/x", "json": [{"subPath": "/a", "operator": "add", "value": [1]}]}],
            "plaintext": [{"path": "/spec/replicas", "operator": "replace", "value": 3}]}}]}});
    let (read_back, unknown) = read::<OverridePolicy>(&overriding).unwrap();
    assert_eq!((serde_json::to_value(&read_back).unwrap(), unknown), (overriding, vec![]));
}

#[test]
fn labels_are_chosen_as_kubernetes_does() {
    let labels: BTreeMap<String, String> = [("env", "prod"), ("tier", "web")].map(|(k, v)| (k.into(), v.into())).into();
    for (selector, chosen) in [
        (json!({}), true),
        (json!({"matchLabels": {"env": "prod"}}), true),
        (json!({"matchLabels": {"env": "prod", "zone": "a"}}), false),
        (json!({"matchExpressions": [{"key": "env", "operator": "In", "values": ["dev", "prod"]}]}), true),
        (json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}), false),
        (json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}), true),
        (json!({"matchExpressions": [{"key": "env", "operator": "NotIn", "values": ["prod"]}]}), false),
        (json!({"matchExpressions": [{"key": "env", "operator": "Exists"}]}), true),
        (json!({"matchExpressions": [{"key": "env", "operator": "DoesNotExist"}]}), false),
    ] {
        let read: LabelSelector = serde_json::from_value(selector.clone()).unwrap();
        assert_eq!(read.matches(&labels), chosen, "{selector}");
        // The cluster's own selectors agree.
        assert_eq!(stolos_k8s::LabelSelector::from_value(&selector).unwrap().matches(&labels), chosen, "{selector}");
    }
}
