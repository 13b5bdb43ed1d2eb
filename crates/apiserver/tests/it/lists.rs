//! What lists and watches say of revisions.

use futures::StreamExt as _;
use http_body_util::{BodyExt as _, BodyStream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::server;

const MAPS: &str = "/api/v1/namespaces/kube-public/configmaps";

async fn get(client: &Client, query: &str) -> (u16, Value) {
    let request = http::Request::get(format!("{MAPS}?{query}")).body(Vec::new().into()).unwrap();
    let response = client.send(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body))))
}

/// The events of a watch until `enough` are there or it ends.
async fn watch(client: &Client, query: &str, enough: usize) -> Vec<Value> {
    let request = http::Request::get(format!("{MAPS}?watch=1&{query}")).body(Vec::new().into()).unwrap();
    let mut body = BodyStream::new(client.send(request).await.unwrap().into_body());
    let mut text = Vec::new();
    let lines = |text: &[u8]| text.iter().filter(|byte| **byte == b'\n').count();
    while lines(&text) < enough {
        let Some(frame) = body.next().await else { break };
        text.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn seen(events: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    events
        .iter()
        .map(|event| format!("{} {}", text(&event["type"]), text(&event["object"]["metadata"]["name"])))
        .collect()
}

async fn maps(client: &Client, names: &[&str]) -> Vec<u64> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-public");
    let mut revisions = Vec::new();
    for name in names {
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        let made = maps.create(&PostParams::default(), &map).await.unwrap();
        revisions.push(made.metadata.resource_version.unwrap().parse().unwrap());
    }
    revisions
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_in_kubernetes_words() {
    let client = server().await.client();
    let cases = [
        ("resourceVersionMatch=Exact", "resourceVersionMatch is forbidden unless resourceVersion is provided"),
        ("resourceVersionMatch=Exact&resourceVersion=0", "is forbidden for resourceVersion \"0\""),
        ("resourceVersionMatch=Newest&resourceVersion=1", "supported values: \"Exact\", \"NotOlderThan\", \"\""),
        ("sendInitialEvents=true", "sendInitialEvents is forbidden for list"),
        ("resourceVersion=old", "Invalid value: \"old\""),
        ("watch=1&sendInitialEvents=true", "requires setting resourceVersionMatch to NotOlderThan"),
        ("watch=1&resourceVersionMatch=NotOlderThan", "is forbidden for watch unless sendInitialEvents is provided"),
    ];
    for (query, expected) in cases {
        let (code, status) = get(&client, query).await;
        assert_eq!((code, &status["reason"]), (422, &json!("Invalid")), "{query}: {status}");
        let message = status["message"].as_str().unwrap();
        assert!(
            message.starts_with("ListOptions.meta.k8s.io \"\" is invalid: ") && message.contains(expected),
            "{message}"
        );
    }
    let (_, first) = get(&client, "limit=1").await;
    let token = first["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
    assert_eq!(token, "", "one is all there is");
    assert_eq!(get(&client, "continue=nonsense").await.0, 400);
    assert_eq!(get(&client, "limit=many").await.0, 400);
}

#[tokio::test]
async fn a_list_is_as_old_as_it_is_asked_to_be() {
    let server = server().await;
    let client = server.client();
    let revisions = maps(&client, &["a", "b", "c"]).await;
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).filter(|n| n.len() == 1).collect()
    };
    let exactly = format!("resourceVersion={}&resourceVersionMatch=Exact", revisions[1]);
    let (_, list) = get(&client, &exactly).await;
    assert_eq!(
        (names(&list), &list["metadata"]["resourceVersion"]),
        (vec!["a".into(), "b".into()], &json!(revisions[1].to_string()))
    );
    let (_, list) = get(&client, &format!("resourceVersion={}&resourceVersionMatch=NotOlderThan", revisions[1])).await;
    assert_eq!(names(&list), ["a", "b", "c"]);
    let (_, list) = get(&client, &format!("resourceVersion={}&limit=100", revisions[0])).await;
    assert_eq!(names(&list), ["a"], "with a limit and no word for it, a revision is that one");
    let (_, list) = get(&client, "resourceVersion=0").await;
    assert_eq!(names(&list), ["a", "b", "c"]);
    let (code, status) = get(&client, "resourceVersion=99999999").await;
    assert_eq!((code, &status["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
}

#[tokio::test]
async fn a_long_list_comes_in_pieces_and_says_its_length() {
    let server = server().await;
    let client = server.client();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-public");
    for n in 0..60 {
        let map = json!({"metadata": {"name": format!("m{n:02}")}, "data": {"text": "x".repeat(4000)}});
        maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    }
    for query in ["", "limit=50"] {
        let request = http::Request::get(format!("{MAPS}?{query}")).body(Vec::new().into()).unwrap();
        let body = client.send(request).await.unwrap().into_body();
        let said = http_body::Body::size_hint(&body).exact().unwrap();
        let mut body = BodyStream::new(body);
        let (mut text, mut pieces) = (Vec::new(), 0);
        while let Some(frame) = body.next().await {
            text.extend_from_slice(&frame.unwrap().into_data().unwrap());
            pieces += 1;
        }
        assert_eq!((text.len() as u64, pieces > 2), (said, true), "{query}");
        let list: Value = serde_json::from_slice(&text).unwrap();
        let items = list["items"].as_array().unwrap();
        let expected: Vec<String> = std::iter::once("kube-root-ca.crt".to_owned())
            .chain((0..60).map(|n| format!("m{n:02}")))
            .take(if query.is_empty() { 61 } else { 50 })
            .collect();
        assert_eq!(items.iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect::<Vec<_>>(), expected);
        assert_eq!(list["metadata"]["remainingItemCount"].as_u64(), (!query.is_empty()).then_some(11));
    }
}

#[tokio::test]
async fn pages_say_how_many_are_left_and_what_to_do_when_they_are_gone() {
    let server = stolos_apiserver::Builder::new().window(5, 1 << 20).start().await.unwrap();
    let client = server.client();
    maps(&client, &["a", "b", "c", "d"]).await;
    let (_, first) = get(&client, "limit=2").await;
    assert_eq!(first["metadata"]["remainingItemCount"], 3, "{first}");
    let (_, chosen) = get(&client, "limit=2&fieldSelector=metadata.name%21%3Dd").await;
    assert!(chosen["metadata"]["remainingItemCount"].is_null() && chosen["metadata"]["continue"].is_string());
    let token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    assert_eq!(get(&client, &format!("limit=2&continue={token}&resourceVersion=1")).await.0, 400);
    let deleting: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-public");
    deleting.delete("c", &DeleteParams::default()).await.unwrap();
    let (_, second) = get(&client, &format!("limit=9&continue={token}")).await;
    assert_eq!(second["items"][0]["metadata"]["name"], "c", "as it was at the first page");
    maps(&client, &["e", "f", "g", "h", "i"]).await;
    let (code, status) = get(&client, &format!("limit=2&continue={token}")).await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
    let token = status["metadata"]["continue"].as_str().unwrap();
    let (code, rest) = get(&client, &format!("limit=2&continue={token}")).await;
    assert_eq!((code, &rest["items"][0]["metadata"]["name"]), (200, &json!("d")), "from the same place, as it is now");
}

#[tokio::test]
async fn a_streamed_list_ends_with_a_bookmark() {
    let server = server().await;
    let client = server.client();
    maps(&client, &["a", "b"]).await;
    let only = "fieldSelector=metadata.name%21%3Dkube-root-ca.crt";
    let wanted = format!("{only}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true");
    let events = watch(&client, &wanted, 3).await;
    assert_eq!(seen(&events), ["ADDED a", "ADDED b", "BOOKMARK "]);
    let end = &events[2]["object"];
    assert_eq!(end["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!((&end["kind"], &end["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    let revision = end["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    maps(&client, &["c"]).await;
    assert_eq!(seen(&watch(&client, &format!("{only}&resourceVersion={revision}"), 1).await), ["ADDED c"]);
    let none = format!("{only}&sendInitialEvents=false&resourceVersionMatch=NotOlderThan&timeoutSeconds=1");
    assert_eq!(seen(&watch(&client, &none, 9).await), [""; 0], "none wanted, none sent, and it ends in time");
    let old = format!("{only}&resourceVersion=0&timeoutSeconds=1");
    assert_eq!(seen(&watch(&client, &old, 9).await), ["ADDED a", "ADDED b", "ADDED c"]);
    let future = watch(&client, "resourceVersion=99999999", 1).await;
    assert_eq!((&future[0]["type"], &future[0]["object"]["code"]), (&json!("ERROR"), &json!(410)));
}
