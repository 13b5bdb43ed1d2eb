use serde_json::{Value, json};

use super::*;
use crate::model::{AggregatedStatusItem, Health};

fn object(kind: &str, rest: Value) -> Value {
    let group = match kind {
        "Deployment" | "StatefulSet" | "ReplicaSet" | "DaemonSet" => "apps/v1",
        "Job" | "CronJob" => "batch/v1",
        "Ingress" => "networking.k8s.io/v1",
        "PodDisruptionBudget" => "policy/v1",
        "HorizontalPodAutoscaler" => "autoscaling/v2",
        "ServiceImport" => "multicluster.x-k8s.io/v1alpha1",
        "Rollout" => "example.com/v1",
        _ => "v1",
    };
    let mut object = json!({"apiVersion": group, "kind": kind, "metadata": {"name": "web", "namespace": "shop"}});
    merge_into(&mut object, rest);
    object
}

fn merge_into(object: &mut Value, rest: Value) {
    *object = stolos_k8s::patch::merge(object, &rest);
}

#[test]
fn replicas_and_what_one_needs_are_found() {
    let template = json!({"spec": {"priorityClassName": "high", "nodeSelector": {"disk": "ssd"},
        "containers": [{"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}},
            {"resources": {"requests": {"cpu": "0.2"}}}],
        "initContainers": [{"resources": {"requests": {"memory": "1Gi"}}},
            {"restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}}],
        "overhead": {"cpu": "10m"}}});
    let found = replicas(&object("Deployment", json!({"spec": {"replicas": 3, "template": template}}))).unwrap();
    let needs = json!({"nodeClaim": {"nodeSelector": {"disk": "ssd"}}, "priorityClassName": "high",
        "resourceRequest": {"cpu": "360m", "memory": "1Gi"}});
    assert_eq!((found.count, serde_json::to_value(&found.requirements).unwrap()), (3, needs));
    for (kind, spec, count) in [
        ("Deployment", json!({"replicas": 4}), Some(4)),
        ("Deployment", json!({}), Some(0)),
        ("StatefulSet", json!({"replicas": 2}), Some(2)),
        ("ReplicaSet", json!({"replicas": 2}), Some(2)),
        ("Job", json!({"parallelism": 4, "completions": 3}), Some(3)),
        ("Job", json!({"parallelism": 4}), Some(4)),
        ("Pod", json!({"containers": []}), Some(1)),
        ("DaemonSet", json!({}), None),
        ("ConfigMap", json!({}), None),
        ("Rollout", json!({"replicas": 2}), None),
    ] {
        let found = replicas(&object(kind, json!({ "spec": spec })));
        assert_eq!(found.as_ref().map(|found| found.count), count, "{kind}");
        assert!(found.is_none_or(|found| found.requirements.is_none()), "{kind}");
    }
}

#[test]
fn a_members_share_is_written_where_the_field_is() {
    for (kind, spec, written) in [
        ("Deployment", json!({"replicas": 9}), json!({"replicas": 2})),
        ("Deployment", json!({}), json!({})),
        ("Job", json!({"parallelism": 9, "completions": 9}), json!({"parallelism": 2, "completions": 9})),
        ("Rollout", json!({"replicas": 9}), json!({"replicas": 9})),
    ] {
        let mut manifest = object(kind, json!({ "spec": spec }));
        revise(&mut manifest, 2);
        assert_eq!(manifest["spec"], written, "{kind}");
    }
    let job = object("Job", json!({"spec": {"completions": 8}}));
    assert_eq!(completions(&job, &["b", "a", "c"]), Some(vec![3, 3, 2]));
    assert_eq!(completions(&object("Job", json!({})), &["a"]), None);
}

#[test]
fn health_is_what_the_kind_says() {
    let counted = |replicas, updated, available, seen| {
        json!({"metadata": {"generation": 2}, "spec": {"replicas": replicas},
            "status": {"updatedReplicas": updated, "availableReplicas": available, "observedGeneration": seen}})
    };
    let daemons = |desired, updated, available| {
        json!({"metadata": {"generation": 1}, "status": {"desiredNumberScheduled": desired,
            "updatedNumberScheduled": updated, "numberAvailable": available, "observedGeneration": 1}})
    };
    let pod = |phase, ready| json!({"status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]}});
    for (kind, rest, well) in [
        ("Deployment", counted(2, 2, 2, 2), true),
        ("Deployment", counted(2, 1, 1, 2), false),
        ("Deployment", counted(2, 2, 1, 2), false),
        ("Deployment", counted(2, 2, 2, 1), false),
        ("StatefulSet", counted(2, 2, 2, 2), true),
        ("ReplicaSet", counted(2, 0, 2, 2), true),
        ("ReplicaSet", counted(2, 0, 1, 2), false),
        ("DaemonSet", daemons(3, 3, 3), true),
        ("DaemonSet", daemons(3, 3, 2), false),
        ("Pod", pod("Running", "True"), true),
        ("Pod", pod("Running", "False"), false),
        ("Pod", pod("Succeeded", "False"), true),
        ("Pod", json!({}), false),
        ("Service", json!({"spec": {"type": "ClusterIP"}}), true),
        ("Service", json!({"spec": {"type": "LoadBalancer"}}), false),
        (
            "Service",
            json!({"spec": {"type": "LoadBalancer"}, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}}),
            true,
        ),
        ("Ingress", json!({}), false),
        ("PersistentVolumeClaim", json!({"status": {"phase": "Bound"}}), true),
        ("PersistentVolumeClaim", json!({"status": {"phase": "Pending"}}), false),
        ("PodDisruptionBudget", json!({"status": {"currentHealthy": 1, "desiredHealthy": 2}}), false),
        ("Job", json!({"status": {"failed": 3}}), true),
        ("Rollout", json!({}), true),
    ] {
        let expected = if well { Health::Healthy } else { Health::Unhealthy };
        assert_eq!(health(&object(kind, rest.clone())), expected, "{kind} {rest}");
    }
}

#[test]
fn the_status_that_is_kept_is_the_kinds() {
    let deployment = object(
        "Deployment",
        json!({
        "metadata": {"generation": 4, "annotations": {"resourcetemplate.karmada.io/generation": "7"}},
        "status": {"replicas": 2, "readyReplicas": 1, "observedGeneration": 4, "conditions": [{"type": "Available"}]}}),
    );
    assert_eq!(
        reflect(&deployment),
        Some(json!({"replicas": 2, "readyReplicas": 1, "observedGeneration": 4, "generation": 4,
            "resourceTemplateGeneration": 7}))
    );
    let service = object("Service", json!({"status": {"loadBalancer": {"ingress": []}, "conditions": []}}));
    assert_eq!(reflect(&service), Some(json!({"loadBalancer": {"ingress": []}})));
    assert_eq!(reflect(&object("Rollout", json!({"status": {"any": "thing"}}))), Some(json!({"any": "thing"})));
    assert_eq!(reflect(&object("Deployment", json!({}))), None);
}

fn items(said: Value) -> Vec<AggregatedStatusItem> {
    let said = said.as_object().unwrap().clone();
    let item = |(cluster, status): (String, Value)| AggregatedStatusItem {
        cluster_name: cluster,
        status: (!status.is_null()).then_some(status),
        applied: true,
        ..AggregatedStatusItem::default()
    };
    said.into_iter().map(item).collect()
}

#[test]
fn what_members_say_becomes_the_templates_status() {
    let ended = |kind: &str, at: &str| {
        json!({"succeeded": 1, "startTime": "2026-01-01T00:00:00Z", "completionTime": at,
            "conditions": [{"type": kind, "status": "True", "lastTransitionTime": at}]})
    };
    let (early, late) = ("2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z");
    let condition = |kind: &str, reason: &str, message: &str, at: &str| {
        json!([{"type": kind, "status": "True", "reason": reason, "message": message, "lastProbeTime": at,
            "lastTransitionTime": at}])
    };
    let balanced = json!({"spec": {"type": "LoadBalancer"}});
    let cases = [
        // Counters are added; what was counted before and is no more goes.
        (
            "Deployment",
            json!({"metadata": {"generation": 3}, "status": {"unavailableReplicas": 4, "conditions": []}}),
            json!({"a": {"replicas": 2, "readyReplicas": 1}, "b": {"replicas": 3}, "c": null}),
            json!({"replicas": 5, "readyReplicas": 1, "conditions": []}),
        ),
        // The newest is observed when every member has observed it.
        (
            "Deployment",
            json!({"metadata": {"generation": 3}, "status": {"observedGeneration": 2}}),
            json!({"a": {"replicas": 1, "generation": 9, "observedGeneration": 9, "resourceTemplateGeneration": 3}}),
            json!({"replicas": 1, "observedGeneration": 3}),
        ),
        (
            "Deployment",
            json!({"metadata": {"generation": 3}, "status": {"observedGeneration": 2}}),
            json!({"a": {"replicas": 1, "generation": 9, "observedGeneration": 8, "resourceTemplateGeneration": 3}}),
            json!({"replicas": 1, "observedGeneration": 2}),
        ),
        ("DaemonSet", json!({}), json!({"a": {"numberReady": 1}, "b": {"numberReady": 2}}), json!({"numberReady": 3})),
        (
            "Service",
            balanced,
            json!({"b": {"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"ip": "1.1.1.1"}]}},
            "a": {"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"hostname": "x"}]}}}),
            json!({"loadBalancer": {"ingress": [{"hostname": "x"}, {"ip": "1.1.1.1"}, {"ip": "2.2.2.2"}]}}),
        ),
        ("Service", json!({}), json!({"a": {"loadBalancer": {}}}), Value::Null),
        (
            "Job",
            json!({}),
            json!({"a": ended("Complete", early), "b": ended("Complete", late)}),
            json!({"succeeded": 2, "startTime": "2026-01-01T00:00:00Z", "completionTime": late,
                "conditions": condition("Complete", "Completed", "Job completed", late)}),
        ),
        (
            "Job",
            json!({}),
            json!({"a": ended("Complete", early), "b": {"active": 1}}),
            json!({"succeeded": 1, "active": 1, "startTime": "2026-01-01T00:00:00Z"}),
        ),
        (
            "Job",
            json!({}),
            json!({"a": ended("Complete", early), "b": ended("Failed", late)}),
            json!({"succeeded": 2, "startTime": "2026-01-01T00:00:00Z",
                "conditions": condition("Failed", "JobFailed", "Job executed failed in member clusters b", late)}),
        ),
        (
            "Job",
            json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}),
            json!({"a": {}}),
            Value::Null,
        ),
        (
            "CronJob",
            json!({}),
            json!({"a": {"active": [{"name": "x"}], "lastScheduleTime": early}, "b": {"lastScheduleTime": late}}),
            json!({"active": [{"name": "x"}], "lastScheduleTime": late}),
        ),
        (
            "Pod",
            json!({}),
            json!({"a": {"phase": "Running", "containerStatuses": [{"name": "c"}]}, "b": {"phase": "Succeeded"}}),
            json!({"phase": "Running", "containerStatuses": [{"name": "c"}]}),
        ),
        ("Pod", json!({}), json!({"a": {"phase": "Running"}, "b": null}), json!({"phase": "Pending"})),
        (
            "PersistentVolume",
            json!({}),
            json!({"a": {"phase": "Released"}, "b": {"phase": "Available"}}),
            json!({"phase": "Available"}),
        ),
        (
            "PersistentVolumeClaim",
            json!({}),
            json!({"a": {"phase": "Bound"}, "b": {"phase": "Pending"}}),
            json!({"phase": "Pending"}),
        ),
        (
            "PersistentVolumeClaim",
            json!({}),
            json!({"a": {"phase": "Lost"}, "b": {"phase": "Pending"}}),
            json!({"phase": "Lost"}),
        ),
        ("PersistentVolumeClaim", json!({}), json!({"a": {"phase": "Bound"}}), json!({"phase": "Bound"})),
        (
            "PodDisruptionBudget",
            json!({}),
            json!({"a": {"expectedPods": 2, "disruptedPods": {"p": early}}, "b": {"expectedPods": 1}}),
            json!({"expectedPods": 3, "disruptedPods": {"a/p": early}}),
        ),
        (
            "HorizontalPodAutoscaler",
            json!({}),
            json!({"a": {"currentReplicas": 2}, "b": {"currentReplicas": 1}}),
            json!({"currentReplicas": 3}),
        ),
        ("ConfigMap", json!({}), json!({}), Value::Null),
    ];
    for (kind, rest, said, expected) in cases {
        let status = aggregate(&object(kind, rest.clone()), &items(said.clone()));
        assert_eq!(status.unwrap_or_default(), expected, "{kind} {rest} {said}");
    }
}

#[test]
fn a_manifest_has_nothing_that_an_api_server_wrote() {
    let written = json!({"metadata": {"uid": "1", "resourceVersion": "2", "generation": 3, "managedFields": [],
        "creationTimestamp": "t", "ownerReferences": [], "finalizers": ["f"], "selfLink": "/x", "labels": {"a": "b"}},
        "status": {"replicas": 1}});
    let cases = [
        (
            "Deployment",
            json!({"metadata": {"annotations": {"deployment.kubernetes.io/revision": "1", "mine": "x"}}}),
            json!({"metadata": {"annotations": {"mine": "x"}}}),
        ),
        (
            "Service",
            json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": []}}),
            json!({"spec": {"ports": []}}),
        ),
        (
            "Service",
            json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}),
            json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}),
        ),
        (
            "Job",
            json!({"spec": {"ttlSecondsAfterFinished": 5, "selector": {"matchLabels": {"controller-uid": "u"}},
            "template": {"metadata": {"labels": {"job-name": "n", "batch.kubernetes.io/controller-uid": "u", "a": "b"}}}}}),
            json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}),
        ),
        (
            "Job",
            json!({"spec": {"manualSelector": true, "selector": {"matchLabels": {"job-name": "n"}}}}),
            json!({"spec": {"manualSelector": true, "selector": {"matchLabels": {"job-name": "n"}}}}),
        ),
        (
            "ServiceAccount",
            json!({"secrets": [{"name": "web-token-x"}, {"name": "mine"}]}),
            json!({"secrets": [{"name": "mine"}]}),
        ),
        (
            "Secret",
            json!({"type": "kubernetes.io/service-account-token", "data": {"token": "x"},
            "metadata": {"annotations": {"kubernetes.io/service-account.uid": "u"}}}),
            json!({"type": "kubernetes.io/service-account-token"}),
        ),
        ("Secret", json!({"type": "Opaque", "data": {"k": "x"}}), json!({"type": "Opaque", "data": {"k": "x"}})),
    ];
    for (kind, rest, expected) in cases {
        let mut template = object(kind, written.clone());
        merge_into(&mut template, rest);
        let mut wanted = object(kind, json!({"metadata": {"labels": {"a": "b"}}}));
        merge_into(&mut wanted, expected);
        assert_eq!(manifest(&template), wanted, "{kind}");
    }
}

#[test]
fn a_member_keeps_what_is_its_own() {
    let cases = [
        (
            "Deployment",
            json!({"spec": {"replicas": 3}}),
            json!({"spec": {"replicas": 9}}),
            json!({"spec": {"replicas": 3}}),
        ),
        (
            "Deployment",
            json!({"metadata": {"labels": {"resourcetemplate.karmada.io/retain-replicas": "true"}}, "spec": {"replicas": 3}}),
            json!({"spec": {"replicas": 9}}),
            json!({"metadata": {"labels": {"resourcetemplate.karmada.io/retain-replicas": "true"}}, "spec": {"replicas": 9}}),
        ),
        (
            "Service",
            json!({"spec": {"ports": [{"port": 80}, {"name": "x", "port": 81}]}}),
            json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "healthCheckNodePort": 30000,
                "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30001}, {"name": "y", "port": 81, "nodePort": 30002}]}}),
            json!({"spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "healthCheckNodePort": 30000,
                "ports": [{"port": 80, "nodePort": 30001}, {"name": "x", "port": 81}]}}),
        ),
        (
            "Service",
            json!({"spec": {"clusterIP": "None"}}),
            json!({"spec": {"clusterIP": "10.0.0.1"}}),
            json!({"spec": {"clusterIP": "None"}}),
        ),
        (
            "Pod",
            json!({"spec": {"containers": [{"name": "c", "image": "new"}]}}),
            json!({"spec": {"nodeName": "n", "volumes": [{"name": "t"}], "containers": [{"name": "c", "image": "old", "volumeMounts": [{"name": "t"}]}]}}),
            json!({"spec": {"nodeName": "n", "volumes": [{"name": "t"}], "containers": [{"name": "c", "image": "new", "volumeMounts": [{"name": "t"}]}]}}),
        ),
        (
            "Job",
            json!({"spec": {"template": {}}}),
            json!({"spec": {"selector": {"matchLabels": {"u": "1"}}, "template": {"metadata": {"labels": {"u": "1"}}}}}),
            json!({"spec": {"selector": {"matchLabels": {"u": "1"}}, "template": {"metadata": {"labels": {"u": "1"}}}}}),
        ),
        (
            "PersistentVolumeClaim",
            json!({"spec": {}}),
            json!({"spec": {"volumeName": "v"}}),
            json!({"spec": {"volumeName": "v"}}),
        ),
        (
            "PersistentVolume",
            json!({"spec": {}}),
            json!({"spec": {"claimRef": {"name": "c"}}}),
            json!({"spec": {"claimRef": {"name": "c"}}}),
        ),
        (
            "ServiceAccount",
            json!({"secrets": [{"name": "a"}]}),
            json!({"secrets": [{"name": "b"}, {"name": "a"}]}),
            json!({"secrets": [{"name": "a"}, {"name": "b"}]}),
        ),
        (
            "Secret",
            json!({"type": "kubernetes.io/service-account-token"}),
            json!({"data": {"token": "x"}}),
            json!({"type": "kubernetes.io/service-account-token", "data": {"token": "x"}}),
        ),
    ];
    for (kind, wanted, observed, expected) in cases {
        let mut kept = object(kind, wanted);
        retain(&mut kept, &object(kind, observed));
        assert_eq!(kept, object(kind, expected), "{kind}");
    }
}

#[test]
fn labels_of_others_stay_and_the_hubs_old_ones_go() {
    let observed = object(
        "ConfigMap",
        json!({"metadata": {"resourceVersion": "7", "finalizers": ["f"],
        "labels": {"theirs": "1", "old": "1", "new": "0"},
        "annotations": {"theirs": "1", "resourcetemplate.karmada.io/managed-labels": "new,old",
            "resourcetemplate.karmada.io/managed-annotations": "gone,resourcetemplate.karmada.io/managed-labels", "gone": "1"}}}),
    );
    let wanted = object(
        "ConfigMap",
        json!({"metadata": {"labels": {"new": "1"},
        "annotations": {"resourcetemplate.karmada.io/managed-labels": "new"}}}),
    );
    let expected = object(
        "ConfigMap",
        json!({"metadata": {"resourceVersion": "7", "finalizers": ["f"],
        "labels": {"theirs": "1", "new": "1"},
        "annotations": {"theirs": "1", "resourcetemplate.karmada.io/managed-labels": "new",
            "resourcetemplate.karmada.io/managed-annotations": "gone,resourcetemplate.karmada.io/managed-labels"}}}),
    );
    assert_eq!(merge(&wanted, &observed), expected);
}

#[test]
fn what_a_workload_needs_is_found() {
    let spec = json!({"serviceAccountName": "runner", "imagePullSecrets": [{"name": "pull"}],
        "initContainers": [{"envFrom": [{"configMapRef": {"name": "first"}}]}],
        "containers": [{"envFrom": [{"secretRef": {"name": "token"}}], "env": [
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings"}}},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "token"}}}, {"name": "C", "value": "x"}]}],
        "volumes": [{"configMap": {"name": "files"}}, {"secret": {"secretName": "keys"}}, {"emptyDir": {}},
            {"persistentVolumeClaim": {"claimName": "data"}}, {"persistentVolumeClaim": {"claimName": "own"}},
            {"projected": {"sources": [{"configMap": {"name": "part"}}, {"secret": {"name": "part"}}]}}]});
    let needs = |template: &Value| -> String {
        let needed = dependencies(template);
        assert!(needed.iter().all(|needed| needed.namespace == "shop"));
        needed.iter().map(|needed| format!("{} {}", needed.kind, needed.name)).collect::<Vec<_>>().join(", ")
    };
    let all = "ConfigMap files, ConfigMap first, ConfigMap part, ConfigMap settings, PersistentVolumeClaim data, \
        PersistentVolumeClaim own, Secret keys, Secret part, Secret pull, Secret token, ServiceAccount runner";
    let template = json!({ "template": {"spec": spec} });
    assert_eq!(needs(&object("Deployment", json!({ "spec": template }))), all);
    assert_eq!(needs(&object("CronJob", json!({"spec": {"jobTemplate": {"spec": template}}}))), all);
    assert_eq!(needs(&object("Pod", json!({ "spec": spec }))), all);
    let claims = json!([{"metadata": {"name": "own"}}]);
    let set = object("StatefulSet", json!({"spec": {"template": {"spec": spec}, "volumeClaimTemplates": claims}}));
    assert_eq!(needs(&set), all.replace("PersistentVolumeClaim own, ", ""));
    assert_eq!(
        needs(&object("Deployment", json!({"spec": {"template": {"spec": {"serviceAccountName": "default"}}}}))),
        ""
    );
    assert_eq!(needs(&object("Ingress", json!({"spec": {"tls": [{"secretName": "cert"}]}}))), "Secret cert");
    assert_eq!(needs(&object("ServiceImport", json!({}))), "Service derived-web, EndpointSlice ");
}
