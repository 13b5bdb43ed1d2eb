use serde_json::{Value, json};

use super::*;

fn customization(name: &str, api_version: &str, kind: &str, rules: Value) -> Customization {
    let object = json!({"apiVersion": "config.karmada.io/v1alpha1", "kind": "ResourceInterpreterCustomization",
        "metadata": {"name": name},
        "spec": {"target": {"apiVersion": api_version, "kind": kind}, "customizations": rules}});
    let (read, unknown) = read(&object).unwrap();
    assert_eq!(unknown, []);
    read
}

/// A kind that has its replicas at `spec.size` and says how many are ready.
fn cache() -> Customization {
    customization(
        "cache",
        "shop.example/v1",
        "Cache",
        json!({
            "replicaResource": {"luaScript": "function GetReplicas(desiredObj)
                requirement = {}
                requirement.nodeClaim = {}
                requirement.resourceRequest = {memory = desiredObj.spec.memory}
                return desiredObj.spec.size, requirement
            end"},
            "replicaRevision": {"luaScript": "function ReviseReplica(desiredObj, desiredReplica)
                desiredObj.spec.size = desiredReplica
                return desiredObj
            end"},
            "retention": {"luaScript": "function Retain(desiredObj, observedObj)
                desiredObj.spec.password = observedObj.spec.password
                return desiredObj
            end"},
            "statusReflection": {"luaScript": "function ReflectStatus (observedObj)
                return {ready = observedObj.status.ready}
            end"},
            "statusAggregation": {"luaScript": "function AggregateStatus(desiredObj, statusItems)
                if desiredObj.status == nil then desiredObj.status = {} end
                local ready = 0
                for i = 1, #statusItems do ready = ready + statusItems[i].status.ready end
                desiredObj.status.ready = ready
                return desiredObj
            end"},
            "healthInterpretation": {"luaScript": "function InterpretHealth(observedObj)
                return observedObj.status.ready == observedObj.spec.size
            end"},
            "dependencyInterpretation": {"luaScript": "function GetDependencies(desiredObj)
                local dependencies = {}
                dependencies[1] = {apiVersion = 'v1', kind = 'Secret', name = desiredObj.spec.secret,
                  namespace = desiredObj.metadata.namespace}
                dependencies[2] = {apiVersion = 'v1', kind = 'Secret', name = 'x', namespace = 'elsewhere'}
                dependencies[3] = {apiVersion = 'v1', kind = 'ConfigMap', namespace = desiredObj.metadata.namespace,
                  labelSelector = {matchLabels = {cache = desiredObj.metadata.name}}}
                return dependencies
            end"},
        }),
    )
}

fn template() -> Value {
    json!({"apiVersion": "shop.example/v1", "kind": "Cache",
        "metadata": {"name": "fast", "namespace": "shop", "labels": {}, "generation": 4},
        "spec": {"size": 5, "memory": "64Mi", "secret": "key", "zones": [], "extra": {}}})
}

#[test]
fn a_kind_is_what_its_scripts_say() {
    let known = Interpreters::new(&[cache()]);
    let template = template();
    assert!(Operation::ALL.iter().filter(|operation| known.has(&template, **operation)).count() == 7);
    let needs = known.replicas(&template).unwrap().unwrap();
    assert_eq!(needs.count, 5);
    let requirements = serde_json::to_value(needs.requirements).unwrap();
    assert_eq!(requirements, json!({"resourceRequest": {"memory": "64Mi"}}));
    assert_eq!(known.components(&template), Ok(None));

    let mut share = template.clone();
    known.revise(&mut share, 2).unwrap();
    let mut wanted = template.clone();
    wanted["spec"]["size"] = json!(2);
    assert_eq!(share, wanted);

    let observed = json!({"apiVersion": "shop.example/v1", "kind": "Cache",
        "metadata": {"name": "fast", "namespace": "shop", "resourceVersion": "7", "finalizers": ["theirs"], "labels": {"mine": "1"}},
        "spec": {"size": 9, "password": "abc"}, "status": {"ready": 2, "noise": 1}});
    let merged = known.merge(&share, &observed).unwrap();
    assert_eq!(
        merged["spec"],
        json!({"size": 2, "memory": "64Mi", "secret": "key", "zones": [], "extra": {}, "password": "abc"})
    );
    assert_eq!(merged["metadata"]["resourceVersion"], "7");
    assert_eq!(merged["metadata"]["finalizers"], json!(["theirs"]));

    assert_eq!(known.reflect(&observed), Ok(Some(json!({"ready": 2}))));
    assert_eq!(known.health(&observed), Ok(Health::Unhealthy));
    let item = |cluster: &str, status: Option<Value>| AggregatedStatusItem {
        cluster_name: cluster.to_owned(),
        status,
        applied: true,
        applied_message: String::new(),
        health: None,
    };
    let items = [item("eu", Some(json!({"ready": 2}))), item("us", None), item("ap", Some(json!({"ready": 3})))];
    assert_eq!(known.aggregate(&template, &items), Ok(Some(json!({"ready": 5}))));
    let needed = serde_json::to_value(known.dependencies(&template).unwrap()).unwrap();
    assert_eq!(
        needed,
        json!([{"apiVersion": "v1", "kind": "ConfigMap", "namespace": "shop", "labelSelector": {"matchLabels": {"cache": "fast"}}},
            {"apiVersion": "v1", "kind": "Secret", "namespace": "shop", "name": "key"}])
    );
}

#[test]
fn the_first_who_knows_answers() {
    let says = |name: &str, count: u32, kind: (&str, &str)| {
        let script = format!("function GetReplicas() return {count} end");
        let depends = format!(
            "function GetDependencies(o) return {{{{apiVersion = 'v1', kind = 'Secret', name = '{name}', namespace = o.metadata.namespace}}}} end"
        );
        let rules =
            json!({"replicaResource": {"luaScript": script}, "dependencyInterpretation": {"luaScript": depends}});
        customization(name, kind.0, kind.1, rules)
    };
    let count = |known: &Interpreters, object: &Value| known.replicas(object).unwrap().map(|needs| needs.count);
    let clone = json!({"apiVersion": "apps.kruise.io/v1alpha1", "kind": "CloneSet", "metadata": {"name": "c", "namespace": "shop"},
        "spec": {"replicas": 3, "template": {"spec": {"serviceAccountName": "robot"}}}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 4}});
    let other = json!({"apiVersion": "shop.example/v1", "kind": "Other", "spec": {"replicas": 4}});

    let known = Interpreters::well_known();
    assert_eq!([count(&known, &clone), count(&known, &deployment), count(&known, &other)], [Some(3), Some(4), None]);
    let (of_clone, of_deployment) = (("apps.kruise.io/v1alpha1", "CloneSet"), ("apps/v1", "Deployment"));
    let known = Interpreters::new(&[says("b", 8, of_clone), says("a", 7, of_clone), says("c", 9, of_deployment)]);
    assert_eq!([count(&known, &clone), count(&known, &deployment)], [Some(7), Some(9)]);
    // Dependencies are from all customizations, and then not from what comes with the hub.
    let names: Vec<String> = known.dependencies(&clone).unwrap().into_iter().map(|needed| needed.name).collect();
    assert_eq!(names, ["a", "b"]);
    // What they say nothing of is known as before.
    assert_eq!(known.health(&deployment), Ok(Health::Unhealthy));
    let mut share = clone.clone();
    known.revise(&mut share, 1).unwrap();
    assert_eq!(share["spec"]["replicas"], 1);
    // Another version is another kind.
    let newer = json!({"apiVersion": "apps.kruise.io/v1beta1", "kind": "CloneSet", "spec": {"replicas": 3}});
    assert_eq!(count(&known, &newer), None);
}

#[test]
fn answers_of_another_kind_are_refused() {
    let object = json!({"apiVersion": "a/v1", "kind": "A", "metadata": {"name": "x", "namespace": "shop"}});
    let ask = |field: &str, script: &str, ask: &dyn Fn(&Interpreters) -> Option<ScriptError>| {
        let known = Interpreters::new(&[customization("a", "a/v1", "A", json!({field: {"luaScript": script}}))]);
        ask(&known).map_or_else(|| "no trouble".to_owned(), |error| error.to_string())
    };
    let replicas = |known: &Interpreters| known.replicas(&object).err();
    let dependencies = |known: &Interpreters| known.dependencies(&object).err();
    let lines = [
        ask("replicaResource", "function GetReplicas() return 'three' end", &replicas),
        ask("replicaResource", "function GetReplicas() return 3, 'much' end", &replicas),
        ask("replicaResource", "function GetReplicas() return 3, {nodeClaim = 'x'} end", &replicas),
        ask("replicaResource", "function GetReplicas() return 3, {unknown = 'x'} end", &replicas),
        ask("replicaResource", "function ReviseReplica() return 3 end", &replicas),
        ask("replicaRevision", "function ReviseReplica() end", &|known| known.revise(&mut object.clone(), 1).err()),
        ask("retention", "function Retain(d) return 1 end", &|known| known.merge(&object, &object).err()),
        ask("statusReflection", "function ReflectStatus() return nil end", &|known| known.reflect(&object).err()),
        ask("healthInterpretation", "function InterpretHealth() end", &|known| known.health(&object).err()),
        ask("statusAggregation", "function AggregateStatus(o, i) return i.x.y end", &|known| {
            known.aggregate(&object, &[]).err()
        }),
        ask("componentResource", "function GetComponents() return {name = 'x'} end", &|known| {
            known.components(&object).err()
        }),
        ask("componentResource", "function GetComponents() return {{replicas = 1}} end", &|known| {
            known.components(&object).err()
        }),
        ask("dependencyInterpretation", "function GetDependencies() return {{kind = 'Secret'}} end", &dependencies),
        ask(
            "dependencyInterpretation",
            "function GetDependencies() return {{apiVersion = 'v1', kind = 'Secret'}} end",
            &dependencies,
        ),
        ask("dependencyInterpretation", "function GetDependencies() return {} end", &dependencies),
    ];
    insta::assert_snapshot!(lines.join("\n"), @r#"
    result type string is not number
    expect the returned requires type is table but got string
    the returned requires cannot be read: nodeClaim: invalid type: string "x", expected struct NodeClaim
    no trouble
    not found function GetReplicas
    expect the returned requires type is table but got nil
    expect the returned requires type is table but got number
    expect the returned status type is table but got nil
    result type nil is not bool
    luaScript:1: attempt to index nil with 'y'
    expect the returned components type is a list but got an object
    the returned component cannot be read: the object: missing field `name`
    the returned dependency cannot be read: the object: missing field `apiVersion`
    dependencies[0]: dependency can not leave name and labelSelector all empty
    no trouble
    "#);
}

#[test]
fn every_script_that_comes_with_the_hub_can_be_read() {
    assert_eq!(well_known().count(), WELL_KNOWN.iter().map(|(_, more)| 1 + more.len()).sum::<usize>());
    let kinds: std::collections::BTreeSet<_> = well_known().map(|one| format!("{:?}", one.spec.target)).collect();
    assert_eq!(kinds.len(), well_known().count(), "each kind once");
    for customization in well_known() {
        for operation in Operation::ALL {
            if let Some(text) = operation.script(&customization.spec.customizations) {
                assert_eq!(script::check(text), Ok(()), "{} {}", customization.metadata.name, operation.name());
            }
        }
    }
}

#[test]
fn a_clone_set_is_like_a_deployment() {
    let known = Interpreters::well_known();
    let template = json!({"apiVersion": "apps.kruise.io/v1alpha1", "kind": "CloneSet",
        "metadata": {"name": "web", "namespace": "shop", "generation": 3, "labels": {"resourcetemplate.karmada.io/retain-replicas": "true"}},
        "spec": {"replicas": 4, "template": {"spec": {"containers": [{"name": "a", "image": "i",
            "resources": {"requests": {"cpu": "100m"}}}], "volumes": [{"name": "c", "configMap": {"name": "cfg"}}]}}}});
    let needs = known.replicas(&template).unwrap().unwrap();
    assert_eq!((needs.count, needs.requirements.unwrap().resource_request["cpu"].clone()), (4, json!("100m")));
    let names: Vec<String> = known.dependencies(&template).unwrap().into_iter().map(|needed| needed.name).collect();
    assert_eq!(names, ["cfg"]);
    let member = |ready: i64| {
        let mut member = template.clone();
        member["metadata"]["generation"] = json!(1);
        member["metadata"]["annotations"] = json!({"resourcetemplate.karmada.io/generation": "3"});
        member["spec"]["replicas"] = json!(2);
        member["status"] = json!({"replicas": 2, "readyReplicas": ready, "updatedReplicas": 2, "availableReplicas": ready,
            "observedGeneration": 1, "collisionCount": 9, "updateRevision": "r1"});
        member
    };
    assert_eq!(known.health(&member(1)), Ok(Health::Unhealthy));
    assert_eq!(known.health(&member(2)), Ok(Health::Healthy));
    let item = |cluster: &str, ready: i64| AggregatedStatusItem {
        cluster_name: cluster.to_owned(),
        status: known.reflect(&member(ready)).unwrap(),
        applied: true,
        applied_message: String::new(),
        health: None,
    };
    let status = known.aggregate(&template, &[item("ap", 2), item("eu", 1)]).unwrap().unwrap();
    assert_eq!(
        status,
        json!({"replicas": 4, "readyReplicas": 3, "updatedReplicas": 4, "availableReplicas": 3, "updatedReadyReplicas": 0,
            "expectedUpdatedReplicas": 0, "observedGeneration": 3, "updateRevision": "r1"})
    );
    let mut wanted = template.clone();
    wanted["spec"]["replicas"] = json!(9);
    assert_eq!(known.merge(&wanted, &member(2)).unwrap()["spec"]["replicas"], 2);
}

#[test]
fn a_flink_deployment_has_two_components() {
    let template = json!({"apiVersion": "flink.apache.org/v1beta1", "kind": "FlinkDeployment", "metadata": {"name": "f", "namespace": "shop"},
        "spec": {"flinkConfiguration": {"taskmanager.numberOfTaskSlots": "2"}, "job": {"parallelism": 5},
            "jobManager": {"resource": {"cpu": 1, "memory": "2048m"}},
            "taskManager": {"resource": {"cpu": 0.5, "memory": "1g"},
                "podTemplate": {"spec": {"nodeSelector": {"disk": "ssd"}, "containers": [{"name": "main"}]}}}}});
    let known = Interpreters::well_known();
    let components = known.components(&template).unwrap().unwrap();
    assert_eq!(
        serde_json::to_value(components).unwrap(),
        json!([{"name": "jobmanager", "replicas": 1, "replicaRequirements": {"resourceRequest": {"cpu": "1", "memory": "2048Mi"}}},
            {"name": "taskmanager", "replicas": 3, "replicaRequirements": {"nodeClaim": {"nodeSelector": {"disk": "ssd"}},
                "resourceRequest": {"cpu": "0.5", "memory": "1Gi"}}}])
    );
    let mut member = template.clone();
    for (state, health) in [("RUNNING", Health::Healthy), ("FAILED", Health::Unhealthy), ("CREATED", Health::Unhealthy)]
    {
        member["status"] = json!({"jobStatus": {"state": state}, "jobManagerDeploymentStatus": "DEPLOYING"});
        assert_eq!(known.health(&member), Ok(health), "{state}");
    }
}

#[test]
fn other_well_known_kinds_say_what_they_are() {
    let known = Interpreters::well_known();
    let names = |template: &Value| -> Vec<String> {
        let needed = known.dependencies(template).unwrap();
        needed.into_iter().map(|one| format!("{}/{}", one.kind, one.name)).collect()
    };
    let set = json!({"apiVersion": "apps.kruise.io/v1beta1", "kind": "StatefulSet", "metadata": {"name": "s", "namespace": "shop", "generation": 2},
        "spec": {"replicas": 3, "volumeClaimTemplates": [{"metadata": {"name": "data"}}], "template": {"spec": {"containers": [{"name": "a"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "o", "persistentVolumeClaim": {"claimName": "other"}}]}}},
        "status": {"observedGeneration": 2, "updatedReplicas": 3, "availableReplicas": 3, "currentReplicas": 3}});
    assert_eq!(known.replicas(&set).unwrap().unwrap().count, 3);
    assert_eq!(names(&set), ["PersistentVolumeClaim/other"]);
    assert_eq!(known.health(&set), Ok(Health::Healthy));

    let mut workflow = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "w", "namespace": "shop"},
        "spec": {"parallelism": 6, "nodeSelector": {"disk": "ssd"}, "serviceAccountName": "runner", "executor": {"serviceAccountName": "exec"},
            "volumes": [{"name": "c", "configMap": {"name": "cfg"}}]}});
    let needs = known.replicas(&workflow).unwrap().unwrap();
    assert_eq!(
        (needs.count, needs.requirements.unwrap().node_claim.unwrap().node_selector["disk"].as_str()),
        (6, "ssd")
    );
    assert_eq!(names(&workflow), ["ConfigMap/cfg", "ServiceAccount/exec", "ServiceAccount/runner"]);
    known.revise(&mut workflow, 2).unwrap();
    assert_eq!(workflow["spec"]["parallelism"], 2);
    for (phase, health) in [("Running", Health::Healthy), ("Error", Health::Unhealthy), ("", Health::Unhealthy)] {
        workflow["status"] = json!({"phase": phase});
        assert_eq!(known.health(&workflow), Ok(health), "{phase}");
    }
    let mut observed = workflow.clone();
    observed["spec"]["suspend"] = json!(true);
    assert_eq!(known.merge(&workflow, &observed).unwrap()["spec"]["suspend"], true);

    let mut job = json!({"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": {"name": "j", "namespace": "shop"},
        "spec": {"tasks": [{"name": "ps", "replicas": 1, "template": {"spec": {"containers": [{"name": "a"}]}}},
            {"replicas": 4, "template": {"spec": {"serviceAccountName": "runner", "containers": [{"name": "a", "resources": {"requests": {"cpu": "2"}}}]}}}]}});
    assert_eq!(
        serde_json::to_value(known.components(&job).unwrap()).unwrap(),
        json!([{"name": "ps", "replicas": 1}, {"name": "task-2", "replicas": 4, "replicaRequirements": {"resourceRequest": {"cpu": "2"}}}])
    );
    assert_eq!(names(&job), ["ServiceAccount/runner"]);
    assert_eq!(known.health(&job), Ok(Health::Unhealthy));
    job["status"] = json!({"state": {"phase": "Running"}});
    assert_eq!(known.health(&job), Ok(Health::Healthy));
}

/// An object of a kind with a status, and whether it is well.
#[test]
fn kinds_of_others_say_how_they_are() {
    let known = Interpreters::well_known();
    let ready = |status: &str| json!({"observedGeneration": 2, "conditions": [{"type": "Ready", "status": status}]});
    let running = |kinds: &[(&str, &str)]| {
        let all: Vec<Value> = kinds.iter().map(|(kind, status)| json!({"type": kind, "status": status})).collect();
        json!({"conditions": all})
    };
    const SOURCES: &str = "source.toolkit.fluxcd.io/v1";
    for (api_version, kind, status, well) in [
        ("helm.toolkit.fluxcd.io/v2", "HelmRelease", ready("True"), true),
        ("helm.toolkit.fluxcd.io/v2beta1", "HelmRelease", ready("False"), false),
        ("kustomize.toolkit.fluxcd.io/v1", "Kustomization", ready("Unknown"), false),
        (
            "kustomize.toolkit.fluxcd.io/v1",
            "Kustomization",
            json!({"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "True"}]}),
            false,
        ),
        (SOURCES, "GitRepository", ready("True"), true),
        (SOURCES, "OCIRepository", json!({"observedGeneration": 2}), false),
        ("kyverno.io/v1", "ClusterPolicy", json!({"ready": true}), true),
        (
            "kyverno.io/v1",
            "Policy",
            json!({"ready": true, "conditions": [{"type": "Ready", "status": "False"}]}),
            false,
        ),
        (
            "apps.kruise.io/v1alpha1",
            "DaemonSet",
            json!({"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3}),
            true,
        ),
        (
            "apps.kruise.io/v1alpha1",
            "DaemonSet",
            json!({"observedGeneration": 2, "desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 2}),
            false,
        ),
        ("apps.kruise.io/v1alpha1", "BroadcastJob", json!({"phase": "running", "active": 1}), true),
        ("apps.kruise.io/v1alpha1", "BroadcastJob", json!({"phase": "running", "failed": 1}), false),
        (
            "apps.kruise.io/v1alpha1",
            "SidecarSet",
            json!({"observedGeneration": 2, "matchedPods": 2, "updatedPods": 2}),
            true,
        ),
        (
            "apps.kruise.io/v1alpha1",
            "SidecarSet",
            json!({"observedGeneration": 2, "matchedPods": 2, "updatedPods": 1}),
            false,
        ),
        ("ray.io/v1", "RayCluster", json!({"state": "ready"}), true),
        ("ray.io/v1", "RayCluster", json!({"state": "failed"}), false),
        ("sparkoperator.k8s.io/v1beta2", "SparkApplication", json!({"applicationState": {"state": "RUNNING"}}), true),
        ("sparkoperator.k8s.io/v1beta2", "SparkApplication", json!({"applicationState": {"state": "FAILED"}}), false),
        ("kubeflow.org/v1", "PyTorchJob", running(&[("Created", "True"), ("Running", "True")]), true),
        ("kubeflow.org/v1", "TFJob", running(&[("Running", "False"), ("Failed", "True")]), false),
        ("kubeflow.org/v2beta1", "MPIJob", json!({}), false),
    ] {
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "namespace": "shop", "generation": 2},
            "spec": {}, "status": status});
        let wanted = if well { Health::Healthy } else { Health::Unhealthy };
        assert_eq!(known.health(&object), Ok(wanted), "{object}");
    }
    let oci =
        json!({"apiVersion": SOURCES, "kind": "HelmRepository", "metadata": {"name": "x"}, "spec": {"type": "oci"}});
    assert_eq!(known.health(&oci), Ok(Health::Healthy));
}

#[test]
fn kinds_of_others_say_what_they_need_and_what_their_members_say() {
    let known = Interpreters::well_known();
    let object = |api_version: &str, kind: &str, spec: Value| json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "namespace": "shop", "generation": 2}, "spec": spec});
    let names = |template: &Value| -> String {
        let needed = known.dependencies(template).unwrap();
        needed.into_iter().map(|one| format!("{}/{}", one.kind, one.name)).collect::<Vec<_>>().join(" ")
    };
    let needs = |name: &str| json!({"spec": {"serviceAccountName": name, "containers": [{"name": "a", "resources": {"requests": {"cpu": "2"}}}]}});
    let components = |template: &Value| serde_json::to_value(known.components(template).unwrap()).unwrap();

    let release = object(
        "helm.toolkit.fluxcd.io/v2",
        "HelmRelease",
        json!({"serviceAccountName": "deployer", "suspend": false,
        "valuesFrom": [{"kind": "ConfigMap", "name": "values"}, {"kind": "Secret", "name": "values"}],
        "kubeConfig": {"secretRef": {"name": "far"}}, "chart": {"spec": {"verify": {"secretRef": {"name": "keys"}}}}}),
    );
    assert_eq!(names(&release), "ConfigMap/values Secret/far Secret/keys Secret/values ServiceAccount/deployer");
    let kustomization = object(
        "kustomize.toolkit.fluxcd.io/v1",
        "Kustomization",
        json!({"decryption": {"secretRef": {"name": "age"}},
        "postBuild": {"substituteFrom": [{"kind": "ConfigMap", "name": "vars"}]}}),
    );
    assert_eq!(names(&kustomization), "ConfigMap/vars Secret/age");
    let repository = object(
        "source.toolkit.fluxcd.io/v1",
        "GitRepository",
        json!({"secretRef": {"name": "key"}, "verify": {"secretRef": {"name": "pgp"}}}),
    );
    assert_eq!(names(&repository), "Secret/key Secret/pgp");
    // A chart's name in a HelmChart is a text.
    let chart = object("source.toolkit.fluxcd.io/v1", "HelmChart", json!({"chart": "web"}));
    assert_eq!(names(&chart), "");
    let mut observed = release.clone();
    observed["spec"]["suspend"] = json!(true);
    assert_eq!(known.merge(&release, &observed).unwrap()["spec"]["suspend"], true);

    // As bad as the worst of them, with what each says.
    let item = |cluster: &str, status: Value| AggregatedStatusItem {
        cluster_name: cluster.to_owned(),
        status: Some(status),
        applied: true,
        applied_message: String::new(),
        health: None,
    };
    let said = |ready: &str, reason: &str, stalled: &str| {
        json!({"conditions": [{"type": "Ready", "status": ready, "reason": reason, "message": "it is"},
            {"type": "Stalled", "status": stalled, "reason": "R"}], "ready": ready == "True"})
    };
    let items = [
        item("ap", said("True", "Fine", "False")),
        item("eu", said("False", "Broken", "True")),
        item("us", said("True", "Fine", "False")),
    ];
    let status = known.aggregate(&release, &items).unwrap().unwrap();
    assert_eq!(
        status,
        json!({"conditions": [{"type": "Ready", "status": "False", "reason": "Broken", "message": "ap: it is; eu: it is; us: it is"},
            {"type": "Stalled", "status": "True", "reason": "R", "message": "ap: ; eu: ; us: "}]})
    );
    let policy = object("kyverno.io/v1", "ClusterPolicy", json!({}));
    assert_eq!(known.aggregate(&policy, &items).unwrap().unwrap()["ready"], false);
    assert_eq!(known.aggregate(&policy, &items[..1]).unwrap().unwrap()["ready"], true);
    let daemons = object("apps.kruise.io/v1alpha1", "DaemonSet", json!({"template": needs("d")}));
    let two = [item("ap", json!({"numberReady": 2, "daemonSetHash": "h"})), item("eu", json!({"numberReady": 3}))];
    let status = known.aggregate(&daemons, &two).unwrap().unwrap();
    assert_eq!(
        (&status["numberReady"], &status["numberAvailable"], &status["daemonSetHash"]),
        (&json!(5), &json!(0), &json!("h"))
    );
    assert_eq!(names(&daemons), "ServiceAccount/d");

    let ray = object(
        "ray.io/v1",
        "RayCluster",
        json!({"headGroupSpec": {"template": needs("head")},
        "workerGroupSpecs": [{"groupName": "gpu", "replicas": 2, "numOfHosts": 2, "template": needs("worker")}, {"minReplicas": 1}]}),
    );
    assert_eq!(
        components(&ray),
        json!([{"name": "ray-head", "replicas": 1, "replicaRequirements": {"resourceRequest": {"cpu": "2"}}},
            {"name": "gpu", "replicas": 4, "replicaRequirements": {"resourceRequest": {"cpu": "2"}}}, {"name": "ray-worker-2", "replicas": 1}])
    );
    assert_eq!(names(&ray), "ServiceAccount/head ServiceAccount/worker");
    let spark = object(
        "sparkoperator.k8s.io/v1beta2",
        "SparkApplication",
        json!({"imagePullSecrets": ["pull"],
        "volumes": [{"name": "c", "configMap": {"name": "cfg"}}],
        "driver": {"cores": 1, "memory": "512m", "serviceAccount": "spark", "nodeSelector": {"disk": "ssd"}},
        "executor": {"instances": 3, "coreRequest": "500m", "memory": "2g", "secrets": [{"name": "creds", "path": "/c", "secretType": "Generic"}]}}),
    );
    assert_eq!(
        components(&spark),
        json!([{"name": "driver", "replicas": 1, "replicaRequirements": {"nodeClaim": {"nodeSelector": {"disk": "ssd"}},
                "resourceRequest": {"cpu": "1", "memory": "512Mi"}}},
            {"name": "executor", "replicas": 3, "replicaRequirements": {"resourceRequest": {"cpu": "500m", "memory": "2Gi"}}}])
    );
    assert_eq!(names(&spark), "ConfigMap/cfg Secret/creds Secret/pull ServiceAccount/spark");
    for (api_version, kind, field) in [
        ("kubeflow.org/v1", "PyTorchJob", "pytorchReplicaSpecs"),
        ("kubeflow.org/v1", "TFJob", "tfReplicaSpecs"),
        ("kubeflow.org/v2beta1", "MPIJob", "mpiReplicaSpecs"),
    ] {
        let job = object(
            api_version,
            kind,
            json!({field: {"Worker": {"replicas": 3, "template": needs("w")}, "Master": {"template": needs("m")}}}),
        );
        assert_eq!(
            components(&job),
            json!([{"name": "master", "replicas": 1, "replicaRequirements": {"resourceRequest": {"cpu": "2"}}},
                {"name": "worker", "replicas": 3, "replicaRequirements": {"resourceRequest": {"cpu": "2"}}}]),
            "{kind}"
        );
        assert_eq!(names(&job), "ServiceAccount/m ServiceAccount/w");
    }
}
