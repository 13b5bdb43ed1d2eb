//! OpenAPI as kubectl and client libraries read it.

use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::{eventually, server};

struct Said {
    code: u16,
    headers: http::HeaderMap,
    body: Vec<u8>,
}

impl Said {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn get(client: &kube::Client, path: &str, headers: &[(&str, &str)]) -> Said {
    let mut request = http::Request::get(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = client.send(request.body(Vec::new().into()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes().to_vec();
    Said { code: parts.status.as_u16(), headers: parts.headers, body }
}

fn references<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            into.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|below| references(below, into));
        }
        Value::Array(list) => list.iter().for_each(|below| references(below, into)),
        _ => {}
    }
}

fn crd(description: &str) -> Value {
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "description": description, "properties": {"spec": {
            "type": "object", "properties": {"size": {"type": "integer", "nullable": true}}}}}}}]}})
}

#[tokio::test]
async fn every_group_is_described_and_remembered_by_hash() {
    let server = server().await;
    let client = server.client();
    let index = get(&client, "/openapi/v3", &[]).await.json();
    let paths = index["paths"].as_object().unwrap();
    assert!(paths.len() > 15, "{paths:?}");
    for (path, entry) in paths {
        let url = entry["serverRelativeURL"].as_str().unwrap();
        let said = get(&client, url, &[("accept", "application/json")]).await;
        assert_eq!((said.code, said.header("cache-control")), (200, "public, immutable"), "{path}");
        let tag = said.header("etag").to_owned();
        assert!(url.ends_with(&format!("?hash={}", tag.trim_matches('"'))), "{url} {tag}");
        let document = said.json();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut named = Vec::new();
        references(&document, &mut named);
        for name in named {
            let name = name.strip_prefix("#/components/schemas/").unwrap();
            assert!(schemas.contains_key(name), "{path}: {name}");
        }
        let group = format!("/{path}");
        let listed: Value = get(&client, &group, &[]).await.json();
        for resource in listed["resources"].as_array().unwrap() {
            let (name, namespaced) = (resource["name"].as_str().unwrap(), resource["namespaced"] == true);
            let scope = if namespaced { "/namespaces/{namespace}" } else { "" };
            let (plural, sub) = name.split_once('/').unwrap_or((name, ""));
            let one = if sub.is_empty() {
                format!("{group}{scope}/{plural}/{{name}}")
            } else {
                format!("{group}{scope}/{plural}/{{name}}/{sub}")
            };
            if sub == "proxy" || !resource["verbs"].as_array().unwrap().contains(&json!("patch")) {
                continue;
            }
            let patch = &document["paths"][&one]["patch"];
            assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], resource["kind"], "{one}");
            let parameters: Vec<_> = patch["parameters"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
            assert_eq!(parameters, ["dryRun", "fieldManager", "fieldValidation", "force"]);
        }
        let known = get(&client, url, &[("if-none-match", &tag)]).await;
        assert_eq!((known.code, known.body.len()), (304, 0));
    }
    let moved = get(&client, "/openapi/v3/apis/apps/v1?hash=OLD", &[]).await;
    assert_eq!(
        (moved.code, moved.header("location")),
        (301, paths["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap())
    );
    assert_eq!(get(&client, "/openapi/v3/apis/none/v1", &[]).await.code, 404);
    let protobuf = [("accept", "application/com.github.proto-openapi.spec.v3@v1.0+protobuf")];
    assert_eq!(get(&client, "/openapi/v3/apis/apps/v1", &protobuf).await.code, 406);
}

#[tokio::test]
async fn definitions_of_custom_resources_are_published_while_they_live() {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
    let server = server().await;
    let client = server.client();
    let url = async || {
        let index = get(&client, "/openapi/v3", &[]).await.json();
        index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().map(str::to_owned)
    };
    assert_eq!(url().await, None);
    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    crds.create(&PostParams::default(), &serde_json::from_value(crd("First.")).unwrap()).await.unwrap();
    let first = url().await.unwrap();
    let document = get(&client, &first, &[]).await.json();
    let widget = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(widget["description"], "First.");
    assert_eq!(
        widget["x-kubernetes-group-version-kind"],
        json!([{"group": "example.com", "version": "v1", "kind": "Widget"}])
    );
    assert_eq!(widget["properties"]["spec"]["properties"]["size"]["nullable"], true);
    let list = &document["components"]["schemas"]["com.example.v1.WidgetList"]["properties"]["items"];
    assert_eq!(list["items"]["allOf"][0]["$ref"], "#/components/schemas/com.example.v1.Widget");
    let old = get(&client, "/openapi/v2", &[]).await.json();
    assert_eq!(old["definitions"]["com.example.v1.Widget"]["properties"]["spec"]["properties"]["size"], json!({}));

    let patch = crd("Second.");
    crds.patch("widgets.example.com", &PatchParams::apply("test").force(), &Patch::Apply(&patch)).await.unwrap();
    let second = url().await.unwrap();
    assert_ne!(first, second);
    let said = get(&client, &second, &[]).await.json();
    assert_eq!(said["components"]["schemas"]["com.example.v1.Widget"]["description"], "Second.");
    crds.delete("widgets.example.com", &DeleteParams::default()).await.unwrap();
    eventually("it is gone", async || url().await.is_none()).await;
}

/// The fields of a protobuf message: number and content; numbers are skipped.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut number, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            number |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return number;
            }
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        match key & 7 {
            0 => drop(varint(&mut bytes)),
            1 => bytes = &bytes[8..],
            2 => {
                let length = usize::try_from(varint(&mut bytes)).unwrap();
                let (content, rest) = bytes.split_at(length);
                found.push((key >> 3, content));
                bytes = rest;
            }
            other => panic!("wire type {other}"),
        }
    }
    found
}

#[tokio::test]
async fn old_clients_read_the_same_as_one_document() {
    let server = server().await;
    let client = server.client();
    let said = get(&client, "/openapi/v2", &[("accept", "application/json")]).await;
    let document = said.json();
    let definitions = document["definitions"].as_object().unwrap();
    let mut named = Vec::new();
    references(&document, &mut named);
    for name in named {
        assert!(definitions.contains_key(name.strip_prefix("#/definitions/").unwrap()), "{name}");
    }
    let pod = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"];
    assert_eq!(pod["containers"]["x-kubernetes-patch-merge-key"], "name");
    assert_eq!(pod["containers"]["x-kubernetes-patch-strategy"], "merge");
    let container = &definitions["io.k8s.api.core.v1.Container"]["properties"];
    assert_eq!(container["ports"]["x-kubernetes-list-map-keys"], json!(["containerPort", "protocol"]));
    assert!(!document.to_string().contains("\"default\":{}"));
    let known = get(&client, "/openapi/v2", &[("if-none-match", said.header("etag"))]).await;
    assert_eq!(known.code, 304);

    let accept = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let said = get(&client, "/openapi/v2", &[("accept", accept)]).await;
    assert_eq!(
        (said.code, said.header("content-type")),
        (200, "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
    );
    let whole = fields(&said.body);
    assert_eq!(whole.iter().map(|(field, _)| *field).collect::<Vec<_>>(), [1, 2, 8, 9]);
    let names = |message: &[u8]| {
        let entries = fields(message);
        entries
            .iter()
            .map(|(_, entry)| String::from_utf8(fields(entry)[0].1.to_vec()).unwrap())
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(whole[3].1), definitions.keys().cloned().collect());
    assert_eq!(names(whole[2].1), document["paths"].as_object().unwrap().keys().cloned().collect());
    assert_eq!(get(&client, "/openapi/v2", &[("accept", "text/html")]).await.code, 406);
}

#[tokio::test]
async fn discovery_is_remembered_by_hash() {
    let server = server().await;
    let client = server.client();
    for (path, version) in [("/apis", "v2"), ("/api", "v2"), ("/apis", "v2beta1")] {
        let accept = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        let said = get(&client, path, &[("accept", &accept)]).await;
        assert_eq!(said.header("content-type"), accept);
        assert_eq!(said.json()["apiVersion"], format!("apidiscovery.k8s.io/{version}"));
        let known = get(&client, path, &[("accept", &accept), ("if-none-match", said.header("etag"))]).await;
        assert_eq!(known.code, 304);
    }
}
