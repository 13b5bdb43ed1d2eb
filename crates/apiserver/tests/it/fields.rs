//! What becomes of fields that a kind does not have, or that come twice, in every write and in Kubernetes' words.

use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::server;

/// Sends a request and returns code, warnings and body of the answer.
pub(crate) async fn say(
    client: &kube::Client,
    (method, path): (&str, &str),
    media: &str,
    body: impl Into<Vec<u8>>,
) -> (u16, Vec<String>, Value) {
    let request = http::Request::builder().method(method).uri(path).header("content-type", media);
    let response = client.send(request.body(body.into().into()).unwrap()).await.unwrap();
    let warnings = response.headers().get_all("warning").iter().map(|v| v.to_str().unwrap().to_owned()).collect();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (code, warnings, serde_json::from_slice(&body).unwrap())
}

fn deployment() -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 0, "foo": 1,
        "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i", "imag": "x"}]}}}})
}

const JSON: &str = "application/json";

#[tokio::test]
async fn fields_nobody_knows_are_refused_warned_of_or_dropped() {
    let server = server().await;
    let client = server.client();
    let all = "/apis/apps/v1/namespaces/default/deployments";
    let unknown = "unknown field \"spec.foo\", unknown field \"spec.template.spec.containers[0].imag\"";
    let body = deployment().to_string();

    let (code, _, status) = say(&client, ("POST", &format!("{all}?fieldValidation=Strict")), JSON, body.clone()).await;
    let refused =
        format!("Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: {unknown}");
    assert_eq!((code, &status["message"]), (400, &json!(refused)));
    let (code, _, status) = say(&client, ("POST", &format!("{all}?fieldValidation=Loud")), JSON, body.clone()).await;
    let loud = "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Loud\": supported values: \
                \"Ignore\", \"Strict\", \"Warn\"";
    assert_eq!((code, &status["message"]), (422, &json!(loud)));
    let (code, warnings, made) = say(&client, ("POST", all), JSON, body.clone()).await;
    let said =
        [r#"299 - "unknown field \"spec.foo\"""#, r#"299 - "unknown field \"spec.template.spec.containers[0].imag\"""#];
    assert_eq!((code, &made["spec"]["foo"]), (201, &Value::Null));
    assert_eq!(warnings, said);

    let one = format!("{all}/a");
    let (code, warnings, _) = say(&client, ("PUT", &format!("{one}?fieldValidation=Ignore")), JSON, body.clone()).await;
    assert_eq!((code, warnings.len()), (200, 0));
    let (code, warnings, _) = say(&client, ("PUT", &one), JSON, body.clone()).await;
    assert_eq!((code, warnings.len()), (200, 2));
    let (code, ..) = say(&client, ("PUT", &format!("{one}?fieldValidation=Strict")), JSON, body).await;
    assert_eq!(code, 400);

    for media in ["application/merge-patch+json", "application/strategic-merge-patch+json"] {
        let patch = r#"{"spec": {"replcas": 2, "paused": true, "paused": false}}"#;
        let (code, warnings, _) = say(&client, ("PATCH", &one), media, patch).await;
        let said = [r#"299 - "duplicate field \"spec.paused\"""#, r#"299 - "unknown field \"spec.replcas\"""#];
        assert_eq!((code, warnings.as_slice()), (200, said.map(str::to_owned).as_slice()), "{media}");
        let (code, _, status) = say(&client, ("PATCH", &format!("{one}?fieldValidation=Strict")), media, patch).await;
        let message = status["message"].as_str().unwrap();
        let end = "strict decoding error: duplicate field \"spec.paused\", unknown field \"spec.replcas\"";
        assert_eq!(code, 422, "{message}");
        assert!(message.starts_with(" \"\" is invalid: patch: Invalid value: ") && message.ends_with(end), "{message}");
    }
    let apply = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"foo": 1}});
    let path = format!("{one}?fieldManager=me");
    let (code, _, status) = say(&client, ("PATCH", &path), "application/apply-patch+yaml", apply.to_string()).await;
    let message = "failed to create typed patch object (default/a; apps/v1, Kind=Deployment): .spec.foo: field not \
                   declared in schema";
    assert_eq!((code, &status["message"]), (500, &json!(message)));
}

#[tokio::test]
async fn custom_resources_are_as_strict() {
    let server = server().await;
    let client = server.client();
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "size": {"type": "integer"}}}}}}}]}});
    let crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?fieldValidation=Strict";
    let (code, _, made) = say(&client, ("POST", crds), JSON, crd.to_string()).await;
    assert_eq!(code, 201, "{made}");
    let all = "/apis/example.com/v1/namespaces/default/widgets";
    let widget = r#"{"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a", "nam": 1},
        "spec": {"size": 1, "size": 2, "sise": 3}}"#;
    let doubts = ["duplicate field \"spec.size\"", "unknown field \"metadata.nam\"", "unknown field \"spec.sise\""];
    let (code, _, status) = say(&client, ("POST", &format!("{all}?fieldValidation=Strict")), JSON, widget).await;
    let refused =
        format!("Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: {}", doubts.join(", "));
    assert_eq!((code, &status["message"]), (400, &json!(refused)));
    let (code, warnings, made) = say(&client, ("POST", all), JSON, widget).await;
    assert_eq!((code, warnings.len(), &made["spec"]), (201, 3, &json!({"size": 2})));
}

#[tokio::test]
async fn what_is_wrong_is_said_as_kubernetes_says_it() {
    let server = server().await;
    let client = server.client();
    let case = async |path: &str, object: Value| {
        let (_, _, status) = say(&client, ("POST", path), JSON, object.to_string()).await;
        status["message"].as_str().unwrap_or("it is accepted").to_owned()
    };
    let core = |plural: &str| format!("/api/v1/namespaces/default/{plural}");
    let mut said = Vec::new();
    let mut wrong = deployment();
    wrong["spec"]["replicas"] = json!("three");
    said.push(case("/apis/apps/v1/namespaces/default/deployments", wrong).await);
    let bare = json!({"metadata": {"name": "x"}, "spec": {"template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    said.push(case("/apis/apps/v1/namespaces/default/deployments", bare).await);
    said.push(
        case("/apis/apps/v1/namespaces/default/deployments", json!({"metadata": {"name": "x"}, "spec": {}})).await,
    );
    said.push(case(&core("pods"), json!({"metadata": {"name": "Bad_Name"}, "spec": {"containers": []}})).await);
    said.push(
        case(
            &core("pods"),
            json!({"metadata": {"name": "p"}, "spec": {"restartPolicy": "Maybe", "containers": [
        {"name": "c", "image": "i", "imagePullPolicy": "Often", "ports": [{"containerPort": 0}],
         "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}}),
        )
        .await,
    );
    said.push(case(&core("services"), json!({"metadata": {"name": "s"}, "spec": {"ports": []}})).await);
    said.push(
        case(&core("services"), json!({"metadata": {"name": "s"}, "spec": {"type": "Odd", "ports": [{"port": 0}]}}))
            .await,
    );
    said.push(case(&core("configmaps"), json!({"metadata": {"name": "c"}, "data": {"a b": "1"}})).await);
    said.push(
        case(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            json!({"metadata": {"name": "r"}, "rules": [{"verbs": []}]}),
        )
        .await,
    );
    said.push(
        case("/apis/networking.k8s.io/v1/namespaces/default/ingresses", json!({"metadata": {"name": "i"}, "spec": {}}))
            .await,
    );
    insta::assert_snapshot!(said.join("\n"), @r#"
    Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32
    Deployment.apps "x" is invalid: [spec.selector: Required value, spec.template.metadata.labels: Invalid value: {"a":"b"}: `selector` does not match template `labels`]
    Deployment.apps "x" is invalid: [spec.selector: Required value, spec.template.metadata.labels: Invalid value: null: `selector` does not match template `labels`, spec.template.spec.containers: Required value]
    Pod "Bad_Name" is invalid: [metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*'), spec.containers: Required value]
    Pod "p" is invalid: [spec.containers[0].imagePullPolicy: Unsupported value: "Often": supported values: "Always", "IfNotPresent", "Never", spec.containers[0].ports[0].containerPort: Required value, spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1, spec.restartPolicy: Unsupported value: "Maybe": supported values: "Always", "OnFailure", "Never"]
    Service "s" is invalid: spec.ports: Required value
    Service "s" is invalid: [spec.type: Unsupported value: "Odd": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort", spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive, spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive]
    ConfigMap "c" is invalid: data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')
    ClusterRole.rbac.authorization.k8s.io "r" is invalid: [rules[0].verbs: Required value: verbs must contain at least one value, rules[0].apiGroups: Required value: resource rules must supply at least one api group, rules[0].resources: Required value: resource rules must supply at least one resource]
    Ingress.networking.k8s.io "i" is invalid: spec: Invalid value: []: either `defaultBackend` or `rules` must be specified
    "#);
}
