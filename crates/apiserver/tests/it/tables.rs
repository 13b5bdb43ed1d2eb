//! What `kubectl get` prints, and `kubectl get -w`.

use futures::TryStreamExt as _;
use serde_json::{Value, json};

use crate::fields::say;
use crate::server;

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

async fn table(client: &kube::Client, path: &str) -> Value {
    let request = http::Request::get(path).header("accept", TABLE).body(Vec::new()).unwrap();
    client.request(request).await.unwrap()
}

#[tokio::test]
async fn rows_carry_what_is_asked_for_and_follow_changes() {
    let server = server().await;
    let client = server.client();
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        "additionalPrinterColumns": [
            {"name": "Size", "type": "integer", "jsonPath": ".spec.size"},
            {"name": "Tags", "type": "string", "jsonPath": ".spec.tags", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]}]}});
    let json = "application/json";
    let (code, ..) =
        say(&client, ("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"), json, crd.to_string()).await;
    assert_eq!(code, 201);
    let all = "/apis/example.com/v1/namespaces/default/widgets";
    let widget = |size: i64| {
        json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a", "labels": {"on": "yes"}},
            "spec": {"size": size, "tags": ["x"]}})
        .to_string()
    };
    say(&client, ("POST", all), json, widget(1)).await;

    let shown = table(&client, all).await;
    let heads: Vec<_> = shown["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| (&c["name"], &c["type"], &c["priority"]))
        .collect();
    assert_eq!(
        json!(heads),
        json!([["Name", "string", 0], ["Size", "integer", 0], ["Tags", "string", 1], ["Age", "date", 0]])
    );
    let row = &shown["rows"][0];
    assert_eq!(row["cells"].as_array().unwrap()[..3], [json!("a"), json!(1), json!("[\"x\"]")]);
    assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
    let whole = table(&client, &format!("{all}?includeObject=Object")).await;
    assert_eq!(whole["rows"][0]["object"]["spec"]["size"], 1);
    assert_eq!(table(&client, &format!("{all}?includeObject=None")).await["rows"][0]["object"], Value::Null);

    let from = shown["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("{all}?watch=true&resourceVersion={from}&labelSelector=on%3Dyes&timeoutSeconds=20");
    let request = http::Request::get(path).header("accept", TABLE).body(Vec::new()).unwrap();
    let merge = "application/merge-patch+json";
    say(&client, ("PATCH", &format!("{all}/a")), merge, r#"{"spec": {"size": 2}}"#).await;
    say(&client, ("PATCH", &format!("{all}/a")), merge, r#"{"metadata": {"labels": null}}"#).await;
    say(&client, ("PATCH", &format!("{all}/a")), merge, r#"{"metadata": {"labels": {"on": "yes"}}}"#).await;
    say(&client, ("DELETE", &format!("{all}/a")), json, "").await;
    let mut lines = client.request_stream(request.map(Into::into)).await.map(|lines| {
        use futures::AsyncBufReadExt as _;
        lines.lines()
    });
    let lines = lines.as_mut().unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let event: Value = serde_json::from_str(&lines.try_next().await.unwrap().unwrap()).unwrap();
        assert_eq!(event["object"]["kind"], "Table");
        let row = &event["object"]["rows"][0];
        seen.push(format!("{} {} {}", event["type"].as_str().unwrap(), row["cells"][0], row["cells"][1]));
    }
    assert_eq!(seen, ["MODIFIED \"a\" 2", "DELETED \"a\" 2", "ADDED \"a\" 2", "DELETED \"a\" 2"]);
}
