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
