//! Server-side apply: owners, conflicts, and writes that change nothing.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{code, https, server};

fn map(data: Value) -> Patch<Value> {
    Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data}))
}

#[tokio::test]
async fn fields_have_owners() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(https(&server).await, "default");
    let (one, two) = (PatchParams::apply("one"), PatchParams::apply("two"));
    let made = maps.patch("a", &one, &map(json!({"x": "1", "y": "1"}))).await.unwrap();
    assert_eq!(made.managed_fields()[0].manager.as_deref(), Some("one"));
    let again = maps.patch("a", &one, &map(json!({"x": "1", "y": "1"}))).await.unwrap();
    assert_eq!(again.resource_version(), made.resource_version(), "nothing changed, nothing written");

    let refused = maps.patch("a", &two, &map(json!({"x": "2"}))).await;
    match refused {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
            assert!(status.message.contains("one") && status.message.contains(".data.x"), "{}", status.message);
        }
        other => panic!("{other:?}"),
    }
    let forced = maps.patch("a", &two.clone().force(), &map(json!({"x": "2"}))).await.unwrap();
    assert_eq!(forced.data.as_ref().unwrap()["x"], "2");
    let less = maps.patch("a", &one, &map(json!({"y": "1"}))).await.unwrap();
    assert_eq!(less.data.unwrap()["x"], "2", "it belongs to two now");
    let gone = maps.patch("a", &two, &map(json!({}))).await.unwrap();
    assert_eq!(gone.data.unwrap().keys().collect::<Vec<_>>(), ["y"], "its owner wants it no more");
    let anonymous = PatchParams::default();
    assert!(maps.patch("a", &anonymous, &map(json!({}))).await.is_err(), "a manager is needed");
}

#[tokio::test]
async fn what_the_server_fills_in_is_no_change() {
    let server = server().await;
    let client = server.client();
    let params = PatchParams::apply("stolos").force();
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let deployment = Patch::Apply(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
            "containers": [{"name": "c", "image": "i:1", "ports": [{"containerPort": 80}],
                "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x"}}]}}}}));
    let made = deployments.patch("d", &params, &deployment).await.unwrap();
    let again = deployments.patch("d", &params, &deployment).await.unwrap();
    assert_eq!(made.resource_version(), again.resource_version());
    assert_eq!(made.metadata.generation, Some(1));

    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let service = Patch::Apply(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "http", "port": 80}], "selector": {"a": "b"}}}));
    let made = services.patch("s", &params, &service).await.unwrap();
    let status = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": [{"ip": "10.0.0.1"}]}}}));
    let lb = services.patch_status("s", &PatchParams::default(), &status).await.unwrap();
    assert_ne!(made.resource_version(), lb.resource_version());
    let again = services.patch("s", &params, &service).await.unwrap();
    assert_eq!(lb.resource_version(), again.resource_version());

    let strategic = Patch::Strategic(json!({"spec": {"template": {"spec": {"containers": [
        {"name": "c", "image": "i:2"}]}}}}));
    let patched = deployments.patch("d", &PatchParams::default(), &strategic).await.unwrap();
    let container = &patched.spec.template.spec.as_ref().unwrap().containers[0];
    assert_eq!((container.image.as_deref(), container.ports.as_ref().unwrap().len()), (Some("i:2"), 1));
    assert_eq!(patched.metadata.generation, Some(2));
    let wrong = Patch::Json::<()>(serde_json::from_value(json!([{"op": "remove", "path": "/spec/nothing"}])).unwrap());
    assert_eq!(code(deployments.patch("d", &PatchParams::default(), &wrong).await), 422);
}

#[tokio::test]
async fn a_second_apply_of_anything_writes_nothing() {
    let server = server().await;
    let client = https(&server).await;
    let params = PatchParams::apply("stolos").force();
    let labels = json!({"app.kubernetes.io/managed-by": "stolos"});
    let meta = |name: &str| json!({"name": name, "namespace": "default", "labels": labels});
    let rbac = "rbac.authorization.k8s.io";
    let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"serviceAccountName": "a", "containers": [{
        "name": "c", "image": "i", "args": ["x"], "resources": {"requests": {"cpu": "10m", "memory": 1000}},
        "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "V", "value": "1"}],
        "ports": [{"containerPort": 1}, {"containerPort": 1, "protocol": "UDP"}],
        "livenessProbe": {"tcpSocket": {"port": 1}}, "startupProbe": {"exec": {"command": ["true"]}},
        "volumeMounts": [{"name": "t", "mountPath": "/t"}]}],
        "volumes": [{"name": "t", "projected": {"sources": [
            {"serviceAccountToken": {"audience": "istio-ca", "path": "istio-token"}},
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}},
            {"name": "c", "configMap": {"name": "c"}}, {"name": "d", "downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}});
    let selector = json!({"matchLabels": {"app": "a"}});
    let mut wanted = stolos_k8s::istio::crds();
    let things = json!([
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "labels": {"topology.istio.io/network": "a"}}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("a")},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("a"), "data": {"mesh": "x: y\n"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta("a"), "type": "Opaque", "stringData": {"k": "v"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": meta("t"), "type": "kubernetes.io/service-account-token"},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta("a"), "spec": {"type": "LoadBalancer",
            "selector": {"app": "a"}, "ports": [{"name": "tls", "port": 15443, "targetPort": 15443},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"}]}},
        {"apiVersion": "v1", "kind": "Service", "metadata": meta("h"), "spec": {"clusterIP": "None", "selector": {"app": "a"}}},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta("a"), "spec": {"replicas": 2, "selector": selector, "template": template}},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": meta("a"), "spec": {"serviceName": "a", "selector": selector, "template": template}},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta("a"), "spec": {"selector": selector, "template": template}},
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": meta("a"), "spec": {"minAvailable": 1, "selector": selector}},
        {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta("a"), "spec": {"holderIdentity": "me", "leaseDurationSeconds": 15}},
        {"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRole", "metadata": {"name": "a"}, "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}]},
        {"apiVersion": format!("{rbac}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "a"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "a"},
            "subjects": [{"kind": "ServiceAccount", "name": "a", "namespace": "default"}]},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta("a"), "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}], "ports": [{"name": "p", "port": 1}]},
        {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "metadata": {"name": "a"},
            "webhooks": [{"name": "namespace.sidecar-injector.istio.io", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {"name": "istiod", "namespace": "nowhere", "path": "/inject"}},
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
                "namespaceSelector": {"matchLabels": {"istio-injection": "enabled"}}, "failurePolicy": "Fail"}]},
        {"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": meta("a"), "spec": {"mtls": {"mode": "STRICT"}}},
        {"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": meta("a"), "spec": {"selector": {"istio": "eastwestgateway"},
            "servers": [{"port": {"number": 15443, "name": "tls", "protocol": "TLS"}, "tls": {"mode": "AUTO_PASSTHROUGH"}, "hosts": ["*.local"]}]}},
    ]);
    wanted.extend(things.as_array().unwrap().iter().cloned());
    wanted.iter_mut().filter(|object| object["metadata"]["name"] == "t").for_each(|object| {
        object["metadata"]["annotations"] = json!({"kubernetes.io/service-account.name": "a"});
    });
    let apply = async |object: &Value| -> kube::api::DynamicObject {
        let types: kube::core::TypeMeta = serde_json::from_value(object.clone()).unwrap();
        let resource = kube::discovery::ApiResource::from_gvk(&types.clone().try_into().unwrap());
        let api: Api<kube::api::DynamicObject> = match object["metadata"]["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
            None => Api::all_with(client.clone(), &resource),
        };
        let name = object["metadata"]["name"].as_str().unwrap();
        let made = api.patch(name, &params, &Patch::Apply(object)).await;
        made.unwrap_or_else(|error| panic!("{} {name}: {error}", types.kind))
    };
    for object in &wanted {
        apply(object).await;
    }
    // Controllers have their say.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let mut first = Vec::new();
    for object in &wanted {
        first.push(apply(object).await);
    }
    for (object, first) in wanted.iter().zip(first) {
        let second = apply(object).await;
        let changed = format!("{} {}", object["kind"], object["metadata"]["name"]);
        assert_eq!(first.resource_version(), second.resource_version(), "{changed} was written again");
        assert_eq!(first, second);
    }
}

fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Scale is written through its subresource, and the books say so, however it is written.
#[tokio::test]
async fn scale_has_its_own_managers() {
    let server = server().await;
    let client = https(&server).await;
    let api: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}}});
    let mut wish = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec});
    wish["spec"]["replicas"] = json!(1);
    api.patch("d", &PatchParams::apply("me"), &Patch::Apply(&wish)).await.unwrap();
    let scale = |replicas: i32| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d"}, "spec": {"replicas": replicas}});
    let (code, said) = refusal(api.patch_scale("d", &PatchParams::apply("hpa"), &Patch::Apply(scale(3))).await);
    assert_eq!((code, said.as_str()), (409, "Apply failed with 1 conflict: conflict with \"me\": .spec.replicas"));
    let made = api.patch_scale("d", &PatchParams::apply("hpa").force(), &Patch::Apply(scale(3))).await.unwrap();
    assert_eq!(made.spec.unwrap().replicas, Some(3));
    let books = |object: &Deployment| -> Vec<String> {
        let said = object.managed_fields().iter().map(|m| {
            let sub = m.subresource.as_deref().unwrap_or("-");
            format!("{} {} {sub}", m.manager.as_deref().unwrap(), m.operation.as_deref().unwrap())
        });
        said.collect()
    };
    // Of one second by name, else by time.
    let mut both = books(&api.get("d").await.unwrap());
    both.sort();
    assert_eq!(both, ["hpa Apply scale", "me Apply -"]);
    let patch = PatchParams { field_manager: Some("kubectl-scale".into()), ..Default::default() };
    api.patch_scale("d", &patch, &Patch::Merge(json!({"spec": {"replicas": 5}}))).await.unwrap();
    let scaled = api.get("d").await.unwrap();
    assert_eq!(books(&scaled), ["me Apply -", "kubectl-scale Update scale"]);
    assert_eq!((scaled.spec.replicas, scaled.metadata.generation), (Some(5), Some(3)));
    let (code, _) = refusal(api.patch_scale("d", &patch, &Patch::Merge(json!({"spec": {"replicas": -1}}))).await);
    assert_eq!(code, 422);
    // Who still applies the count is told who has it now.
    let (_, said) = refusal(api.patch("d", &PatchParams::apply("me"), &Patch::Apply(&wish)).await);
    assert!(
        said.ends_with("conflict with \"kubectl-scale\" with subresource \"scale\" using apps/v1: .spec.replicas"),
        "{said}"
    );
    // The status has its managers too.
    let status =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "status": {"replicas": 5}});
    let made = api.patch_status("d", &PatchParams::apply("controller"), &Patch::Apply(&status)).await.unwrap();
    assert!(books(&made).contains(&"controller Apply status".to_owned()));
}

#[tokio::test]
async fn what_cannot_be_applied_is_told_why() {
    let server = server().await;
    let client = https(&server).await;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let params = PatchParams::apply("me");
    let with = |metadata: Value| Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}));
    let (code, said) = refusal(api.patch("a", &params, &with(json!({"name": "a", "uid": "x"}))).await);
    assert_eq!(code, 409, "{said}");
    let made = api.patch("a", &params, &with(json!({"name": "a"}))).await.unwrap();
    let (code, said) = refusal(api.patch("a", &params, &with(json!({"name": "a", "resourceVersion": "1"}))).await);
    assert_eq!(code, 409);
    assert!(said.contains("the object has been modified"), "{said}");
    let now = json!({"name": "a", "resourceVersion": made.resource_version(), "labels": {"a": "b"}});
    api.patch("a", &params, &with(now)).await.unwrap();
    let books = json!([{"manager": "x", "operation": "Apply"}]);
    let (code, said) = refusal(api.patch("a", &params, &with(json!({"name": "a", "managedFields": books}))).await);
    assert_eq!((code, said.as_str()), (400, "metadata.managedFields must be nil"));
    let long = format!("/api/v1/namespaces/default/configmaps/a?fieldManager={}", "x".repeat(129));
    let long = http::Request::patch(long).header("content-type", "application/apply-patch+yaml");
    assert_eq!(refusal(client.request::<Value>(long.body(b"{}".to_vec()).unwrap()).await).0, 422);
    let forced = PatchParams { force: true, ..Default::default() };
    let request = kube::api::Request::new("/api/v1/namespaces/default/configmaps")
        .patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {}})))
        .unwrap();
    let (mut parts, body) = request.into_parts();
    parts.uri = format!("{}?force={}", parts.uri.path(), forced.force).parse().unwrap();
    let (code, said) = refusal(client.request::<Value>(http::Request::from_parts(parts, body)).await);
    let expected =
        "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch";
    assert_eq!((code, said.as_str()), (422, expected));
    let wrong = Patch::Merge(
        json!({"metadata": {"managedFields": [{"manager": "x", "operation": "Steal", "fieldsType": "V2"}]}}),
    );
    let (code, said) = refusal(api.patch("a", &PatchParams::default(), &wrong).await);
    assert_eq!(code, 422);
    assert!(
        said.contains("metadata.managedFields[0].operation: Invalid value: \"Steal\": must be `Apply` or `Update`"),
        "{said}"
    );

    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let twice = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "1"}, {"name": "c", "image": "2"}]}}}});
    let (code, said) = refusal(deployments.patch("d", &params, &Patch::Apply(twice)).await);
    assert_eq!(code, 500);
    let expected = "failed to create typed patch object (default/d; apps/v1, Kind=Deployment): \
                    .spec.template.spec.containers: duplicate entries for key [name=\"c\"]";
    assert_eq!(said, expected);

    // YAML, as its media type says, and everybody forgotten.
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: why}\ndata:\n  x: |\n    1\n";
    let request = http::Request::patch("/api/v1/namespaces/default/configmaps/why?fieldManager=me")
        .header("content-type", "application/apply-patch+yaml")
        .body(yaml.as_bytes().to_vec())
        .unwrap();
    let made: ConfigMap = client.request(request).await.unwrap();
    assert_eq!(made.data.unwrap()["x"], "1\n");
    let clear = Patch::Merge(json!({"metadata": {"managedFields": [{}]}}));
    assert!(api.patch("why", &PatchParams::default(), &clear).await.unwrap().managed_fields().is_empty());
}
