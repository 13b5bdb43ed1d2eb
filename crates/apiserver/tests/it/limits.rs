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

async fn raw(client: &kube::Client, method: &str, path: &str, body: &str) -> (u16, http::HeaderMap, String) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = client.send(request.body(body.as_bytes().to_vec().into()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    (parts.status.as_u16(), parts.headers, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn who_comes_too_much_is_told_when_to_come_again() {
    let server = Builder::new().in_flight(0).start().await.unwrap();
    // A client over HTTPS would do as it is told, and come again.
    let client = server.client();
    let maps = "/api/v1/namespaces/default/configmaps";
    for (method, body) in [("GET", ""), ("POST", r#"{"metadata": {"name": "a"}}"#), ("DELETE", "")] {
        let (code, headers, body) = raw(&client, method, maps, body).await;
        assert_eq!((code, &headers["retry-after"]), (429, &http::HeaderValue::from_static("1")), "{method} {body}");
        assert!(body.contains("\"TooManyRequests\"") && body.contains("\"retryAfterSeconds\":1"), "{body}");
    }
    // Watches do not count among them, and health can always be asked.
    assert_eq!(raw(&client, "GET", &format!("{maps}?watch=1&timeoutSeconds=1"), "").await.0, 200);
    assert_eq!(raw(&client, "GET", "/readyz", "").await.0, 200);
    let (_, _, metrics) = raw(&client, "GET", "/metrics", "").await;
    assert!(metrics.contains("apiserver_dropped_requests_total{request_kind=\"mutating\"} 2"), "{metrics}");
}

#[tokio::test]
async fn health_is_told_apart_and_together() {
    let server = server().await;
    let client = server.client();
    let cases = [
        ("/healthz", 200, "ok"),
        ("/livez/etcd", 200, "ok"),
        ("/readyz?verbose", 200, "[+]ping ok\n[+]log ok\n[+]etcd ok\n[+]shutdown ok\nreadyz check passed\n"),
        ("/livez?verbose&exclude=etcd", 200, "[+]ping ok\n[+]log ok\n[+]etcd excluded: ok\nlivez check passed\n"),
    ];
    for (path, code, text) in cases {
        let (found, headers, body) = raw(&client, "GET", path, "").await;
        assert_eq!((found, body.as_str()), (code, text), "{path}");
        assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    }
    assert_eq!(raw(&client, "GET", "/livez/nothing", "").await.0, 404);
}

#[tokio::test]
async fn requests_are_counted_by_what_they_were() {
    let server = server().await;
    let client = server.client();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "a"}})).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    assert_eq!(code(maps.create(&PostParams::default(), &map).await), 409);
    assert_eq!(code(maps.get("none").await), 404);
    let (_, headers, text) = raw(&client, "GET", "/metrics", "").await;
    assert_eq!(headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let labels = r#"group="",resource="configmaps",scope="namespace",subresource="",verb="POST",version="v1""#;
    for line in [
        format!("apiserver_request_total{{code=\"201\",{labels}}} 1"),
        format!("apiserver_request_total{{code=\"409\",{labels}}} 1"),
        format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
        format!("apiserver_request_duration_seconds_count{{{labels}}} 2"),
        "apiserver_storage_objects{resource=\"configmaps\"} 6".into(),
        "apiserver_current_inflight_requests{request_kind=\"mutating\"} 0".into(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert_eq!(raw(&client, "GET", "/version?timeout=nonsense", "").await.0, 200);
    assert_eq!(raw(&client, "GET", "/api/v1/nodes?timeout=nonsense", "").await.0, 400);
    assert_eq!(raw(&client, "GET", "/api/v1/nodes?timeout=32s", "").await.0, 200);
}
