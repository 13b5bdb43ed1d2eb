//! CustomResourceDefinitions and what they make of objects.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use serde_json::{Value, json};
use stolos_apiserver::Server;

use crate::{eventually, server};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn crd(versions: Value) -> CustomResourceDefinition {
    of(json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "shortNames": ["wi"]}, "versions": versions}}))
}

fn widgets(server: &Server, version: &str) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "example.com".into(),
        version: version.into(),
        api_version: format!("example.com/{version}"),
        kind: "Widget".into(),
        plural: "widgets".into(),
    };
    Api::namespaced_with(server.client(), "default", &resource)
}

fn widget(name: &str, spec: Value) -> DynamicObject {
    of(json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}))
}

async fn serve(server: &Server, versions: Value) {
    let definitions: Api<CustomResourceDefinition> = Api::all(server.client());
    definitions.create(&PostParams::default(), &crd(versions)).await.unwrap();
    eventually("the definition is served", async || {
        let found = definitions.get("widgets.example.com").await.unwrap();
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == "Established" && c.status == "True")
    })
    .await;
}

fn refusal<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn rules_in_cel_hold_for_every_write() {
    let server = server().await;
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "replicas": {"type": "integer", "default": 1}, "most": {"type": "integer"},
            "class": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "class is immutable"}]}},
        "x-kubernetes-validations": [{"rule": "!has(self.most) || self.replicas <= self.most", "fieldPath": ".replicas",
            "messageExpression": "'at most ' + string(self.most)", "reason": "FieldValueForbidden"}]}}});
    serve(&server, json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]))
        .await;
    let api = widgets(&server, "v1");
    api.create(&PostParams::default(), &widget("a", json!({"most": 2, "class": "x"}))).await.unwrap();
    let wrong = api.create(&PostParams::default(), &widget("b", json!({"most": 0}))).await;
    let at_most = "Widget.example.com \"b\" is invalid: spec.replicas: Forbidden: at most 0";
    assert_eq!(refusal(wrong), (422, at_most.into()), "the default counts");
    let patch = |patch: Value| {
        let api = api.clone();
        async move { api.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await }
    };
    let (code, message) = refusal(patch(json!({"spec": {"class": "y"}})).await);
    assert_eq!(code, 422);
    assert!(message.ends_with("spec.class: Invalid value: \"string\": class is immutable"), "{message}");
    patch(json!({"spec": {"replicas": 2}})).await.unwrap();
    let applied = Patch::Apply(widget("a", json!({"most": 1, "class": "x"})));
    let (code, _) = refusal(api.patch("a", &PatchParams::apply("me").force(), &applied).await);
    assert_eq!(code, 422, "of a server-side apply as well");
    // Types come first; rules are not asked about what has none.
    let (_, message) = refusal(patch(json!({"spec": {"replicas": "two"}})).await);
    assert!(message.contains("some validation rules were not checked because the object was invalid"), "{message}");

    let definitions: Api<CustomResourceDefinition> = Api::all(server.client());
    let wrong = json!([{"op": "add", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/x-kubernetes-validations/-",
        "value": {"rule": "self.nothing > 1"}}]);
    let refused =
        definitions.patch("widgets.example.com", &PatchParams::default(), &Patch::Json::<()>(of(wrong))).await;
    let (code, message) = refusal(refused);
    assert_eq!(code, 422);
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[1].rule: Invalid value: \
              \"self.nothing > 1\": compilation failed: undefined field 'nothing'";
    assert!(message.contains(at), "{message}");
    server.stop().await;
}

#[tokio::test]
async fn a_definition_waits_for_names_that_another_has() {
    let server = server().await;
    let definitions: Api<CustomResourceDefinition> = Api::all(server.client());
    let versions =
        json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]);
    definitions.create(&PostParams::default(), &crd(versions.clone())).await.unwrap();
    let second = of(json!({"metadata": {"name": "widgetz.example.com"}, "spec": {"group": "example.com",
        "scope": "Namespaced", "names": {"plural": "widgetz", "singular": "widgetz", "kind": "Widget",
        "listKind": "WidgetzList", "shortNames": ["wi"]}, "versions": versions}}));
    let made = definitions.create(&PostParams::default(), &second).await.unwrap();
    let told = |crd: &CustomResourceDefinition| {
        let conditions = crd.status.clone().and_then(|status| status.conditions).unwrap_or_default();
        let of = |c: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionCondition| {
            format!("{}={} {}", c.type_, c.status, c.reason.clone().unwrap_or_default())
        };
        conditions.iter().map(of).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(told(&made), "NamesAccepted=False KindConflict, Established=False NotAccepted");
    let list = |plural: &str| {
        let path = format!("/apis/example.com/v1/{plural}");
        let client = server.client();
        async move { client.request::<Value>(http::Request::get(path).body(Vec::new()).unwrap()).await }
    };
    assert_eq!(refusal(list("widgetz").await).0, 404, "what is not established is not served");
    list("widgets").await.unwrap();
    definitions.delete("widgets.example.com", &Default::default()).await.unwrap();
    eventually("the names are free and the second is served", async || list("widgetz").await.is_ok()).await;
    let after = definitions.get("widgetz.example.com").await.unwrap();
    assert_eq!(told(&after), "NamesAccepted=True NoConflicts, Established=True InitialNamesAccepted");
    server.stop().await;
}
