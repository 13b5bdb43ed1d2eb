//! What a server does not take.

use k8s_openapi::api::core::v1::{ConfigMap, Endpoints};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::json;
use stolos_apiserver::Builder;

use crate::{code, https, server};

#[tokio::test]
async fn bodies_are_bounded() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(https(&server).await, "default");
    let big = |size: usize| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"generateName": "a-"}, "data": {"a": "x".repeat(size)}})).unwrap()
    };
    maps.create(&PostParams::default(), &big(1 << 20)).await.unwrap();
    // It arrives, but is more than a ConfigMap may hold.
    assert_eq!(code(maps.create(&PostParams::default(), &big(2 << 20)).await), 422);
    assert_eq!(code(maps.create(&PostParams::default(), &big(4 << 20)).await), 413);
}

#[tokio::test]
async fn requests_at_once_are_bounded() {
    let server = Builder::new().in_flight(0).start().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    assert_eq!(code(maps.list(&ListParams::default()).await), 429);
}

#[tokio::test]
async fn endpoints_are_not_on_loopback_unless_that_is_allowed() {
    for allowed in [false, true] {
        let server = Builder::new().allow_loopback_endpoints(allowed).start().await.unwrap();
        let endpoints: Api<Endpoints> = Api::namespaced(server.client(), "default");
        let wanted = json!({"metadata": {"name": "a"}, "subsets": [{"addresses": [{"ip": "127.16.1.1"}], "ports": [{"port": 1}]}]});
        let made = endpoints.create(&PostParams::default(), &serde_json::from_value(wanted).unwrap()).await;
        assert_eq!(made.is_ok(), allowed, "{made:?}");
    }
}

#[tokio::test]
async fn a_body_that_is_no_json_is_refused_kindly() {
    let server = server().await;
    for (media, body, expected) in [
        ("application/json", &b"{"[..], 400),
        ("application/json", b"[]", 400),
        ("application/json", b"", 400),
        ("application/yaml", b"a: b", 415),
        ("application/vnd.kubernetes.protobuf", b"k8s\0", 400),
    ] {
        let request = http::Request::post("/api/v1/namespaces/default/configmaps").header("content-type", media);
        let refused = server.client().request::<ConfigMap>(request.body(body.to_vec()).unwrap()).await;
        assert_eq!(code(refused), expected, "{media} {body:?}");
    }
}
