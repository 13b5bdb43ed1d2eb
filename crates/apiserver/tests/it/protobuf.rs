//! Requests and answers in Kubernetes' protobuf.

use futures::StreamExt as _;
use http_body_util::{BodyExt as _, BodyStream};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use stolos_apiserver::protobuf::{MEDIA, decode, encode};

use crate::server;

fn request(method: &str, path: &str, body: Option<&Value>) -> http::Request<Vec<u8>> {
    let request = http::Request::builder().method(method).uri(path).header("accept", MEDIA);
    let body = body.map(|body| encode(body).unwrap());
    request.header("content-type", MEDIA).body(body.unwrap_or_default()).unwrap()
}

async fn send(client: &Client, request: http::Request<Vec<u8>>) -> (u16, String, Vec<u8>) {
    let response = client.send(request.map(Into::into)).await.unwrap();
    let media = response.headers()["content-type"].to_str().unwrap().to_owned();
    let code = response.status().as_u16();
    (code, media, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test]
async fn objects_travel_in_protobuf_both_ways() {
    let server = server().await;
    let client = server.client();
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "labels": {"a": "b"}},
        "data": {"k": "AAEC/w=="}, "immutable": false});
    let (code, media, body) = send(&client, request("POST", "/api/v1/namespaces/default/secrets", Some(&secret))).await;
    assert_eq!((code, media.as_str()), (201, MEDIA));
    let made = decode(&body).unwrap();
    assert_eq!((&made["data"], &made["immutable"], &made["type"]), (&secret["data"], &json!(false), &json!("Opaque")));
    let stored = Api::<Secret>::namespaced(client.clone(), "default").get("s").await.unwrap();
    assert_eq!(stored.data.unwrap()["k"].0, [0, 1, 2, 255]);
    let (code, _, body) = send(&client, request("GET", "/api/v1/namespaces/default/secrets", None)).await;
    let list = decode(&body).unwrap();
    assert_eq!((code, &list["kind"], &list["items"][0]["metadata"]["name"]), (200, &json!("SecretList"), &json!("s")));
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": "another"}});
    let path = "/api/v1/namespaces/default/secrets/s";
    let (code, _, body) = send(&client, request("DELETE", path, Some(&options))).await;
    assert_eq!((code, decode(&body).unwrap()["reason"].clone()), (409, json!("Conflict")), "refusals as well");
    assert_eq!(send(&client, request("DELETE", path, None)).await.0, 200);
}

#[tokio::test]
async fn a_watch_in_protobuf_is_frames_with_their_length() {
    let server = server().await;
    let client = server.client();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    for name in ["a", "b"] {
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": "v"}})).unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    let path = "/api/v1/namespaces/default/configmaps?watch=1&timeoutSeconds=1&fieldSelector=metadata.name%21%3Dkube-root-ca.crt";
    let response = client.send(request("GET", path, None).map(Into::into)).await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/vnd.kubernetes.protobuf;stream=watch");
    let mut bytes = Vec::new();
    let mut frames = BodyStream::new(response.into_body());
    while let Some(frame) = frames.next().await {
        bytes.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    let mut names = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_be_bytes(bytes[..4].try_into().unwrap()) as usize;
        let frame: Vec<u8> = bytes.drain(..4 + length).skip(4).collect();
        // `type` of five letters, then `object` with `raw` in it.
        assert_eq!(&frame[..7], b"\x0a\x05ADDED");
        let start = frame.windows(4).position(|window| window == b"k8s\0").unwrap();
        names.push(decode(&frame[start..]).unwrap()["metadata"]["name"].clone());
    }
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test]
async fn what_has_no_protobuf_form_is_refused() {
    let server = server().await;
    let client = server.client();
    let thing = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let (code, ..) = send(&client, request("POST", "/apis/apps/v1/namespaces/default/deployments", Some(&thing))).await;
    assert_eq!(code, 400, "a kind that is not that path's");
    let mut cut = encode(&thing).unwrap();
    cut.pop();
    let mut broken = request("POST", "/api/v1/namespaces/default/configmaps", None);
    *broken.body_mut() = cut;
    assert_eq!(send(&client, broken).await.0, 400);
    let mut table = request("GET", "/api/v1/namespaces/default/configmaps", None);
    table.headers_mut().insert("accept", format!("{MEDIA};as=Table;v=v1;g=meta.k8s.io").parse().unwrap());
    assert_eq!(send(&client, table).await.0, 406);
}
