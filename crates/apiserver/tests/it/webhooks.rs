//! Admission webhooks, called over HTTPS.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use stolos_apiserver::runtime::ServiceResolver;
use stolos_serve::listen::{self, Settings};
use stolos_serve::{Listener, Stop};

use crate::{code, server};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Leads every Service to one address.
struct To(std::net::SocketAddr);

impl ServiceResolver for To {
    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        service: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<stolos_serve::Stream>> {
        Box::pin(async move {
            if (namespace, service, port) != ("hooks", "hook", 443) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Ok(tokio::net::TcpStream::connect(self.0).await?.into())
        })
    }
}

struct Hook {
    address: std::net::SocketAddr,
    bundle: String,
    calls: Arc<AtomicUsize>,
    stop: Stop,
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.stop.ask();
    }
}

/// A webhook that answers with `answer(request)`.
async fn hook(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Hook {
    let pair = rcgen::generate_simple_self_signed(vec!["hook.hooks.svc".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![pair.cert.der().clone()], key)
        .unwrap();
    let tls = Arc::new(tls);
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (stop, calls, answer) = (Stop::new(), Arc::new(AtomicUsize::new(0)), Arc::new(answer));
    let settings = Settings { tls: Some(Arc::new(move || Arc::clone(&tls))), ..Settings::default() };
    let counted = Arc::clone(&calls);
    tokio::spawn(listen::http(Listener::from(socket), settings, stop.clone(), move |_| {
        let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
            let (answer, counted) = (Arc::clone(&answer), Arc::clone(&counted));
            async move {
                counted.fetch_add(1, Ordering::SeqCst);
                let body = request.into_body().collect().await?.to_bytes();
                let review: Value = serde_json::from_slice(&body).unwrap();
                let mut response = answer(&review["request"]);
                response["uid"] = review["request"]["uid"].clone();
                let answer =
                    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
                Ok::<_, hyper::Error>(http::Response::new(Full::new(Bytes::from(answer.to_string()))))
            }
        })
    }));
    Hook { address, bundle: STANDARD.encode(pair.cert.pem()), calls, stop }
}

fn webhook(bundle: &str, more: Value) -> Value {
    let mut webhook = json!({"name": "a.hooks.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": {"service": {"namespace": "hooks", "name": "hook", "path": "/inject"}, "caBundle": bundle},
        "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
    for (key, value) in more.as_object().unwrap() {
        webhook[key] = value.clone();
    }
    webhook
}

fn pod(name: &str) -> Pod {
    of(json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}))
}

#[tokio::test]
async fn a_webhook_adds_a_sidecar_where_a_namespace_asks_for_it() {
    let server = server().await;
    let hook = hook(|request| {
        assert_eq!((request["operation"].as_str(), request["namespace"].as_str()), (Some("CREATE"), Some("mesh")));
        assert_eq!(request["userInfo"]["groups"][0], "system:masters");
        let patch = json!([
            {"op": "add", "path": "/spec/containers/-", "value": {"name": "istio-proxy", "image": "p:1"}},
            {"op": "add", "path": "/metadata/labels", "value": {"injected": "true"}}]);
        json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())})
    })
    .await;
    server.set_service_resolver(Arc::new(To(hook.address)));
    let client = server.client();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let labels = json!({"istio-injection": "enabled"});
    namespaces
        .create(&PostParams::default(), &of(json!({"metadata": {"name": "mesh", "labels": labels}})))
        .await
        .unwrap();
    let hooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let selector = json!({"namespaceSelector": {"matchLabels": labels}});
    let config = json!({"metadata": {"name": "h"}, "webhooks": [webhook(&hook.bundle, selector)]});
    hooks.create(&PostParams::default(), &of(config)).await.unwrap();

    let outside: Api<Pod> = Api::namespaced(client.clone(), "default");
    assert_eq!(outside.create(&PostParams::default(), &pod("p")).await.unwrap().spec.unwrap().containers.len(), 1);
    assert_eq!(hook.calls.load(Ordering::SeqCst), 0);
    let inside: Api<Pod> = Api::namespaced(client.clone(), "mesh");
    let made = inside.create(&PostParams::default(), &pod("p")).await.unwrap();
    let containers = made.spec.unwrap().containers;
    assert_eq!(containers.len(), 2);
    assert_eq!(containers[1].image_pull_policy.as_deref(), Some("IfNotPresent"), "defaulted after the patch");
    let mounts = containers[1].volume_mounts.as_ref().unwrap();
    assert!(mounts[0].name.starts_with("kube-api-access-"), "the sidecar has the account's token as well");

    // A bundle that the webhook's certificate is not of.
    let other = rcgen::generate_simple_self_signed(vec!["hook.hooks.svc".to_owned()]).unwrap();
    let bundle = Patch::Json::<()>(of(json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle",
        "value": STANDARD.encode(other.cert.pem())}])));
    hooks.patch("h", &PatchParams::default(), &bundle).await.unwrap();
    assert_eq!(code(inside.create(&PostParams::default(), &pod("q")).await), 500);
    let ignore =
        Patch::Json::<()>(of(json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}])));
    hooks.patch("h", &PatchParams::default(), &ignore).await.unwrap();
    assert_eq!(inside.create(&PostParams::default(), &pod("q")).await.unwrap().spec.unwrap().containers.len(), 1);
}

#[tokio::test]
async fn a_webhook_refuses() {
    let server = server().await;
    let hook = hook(|request| {
        let bad = request["object"]["data"]["bad"].is_string();
        json!({"allowed": !bad, "status": {"message": "it is bad", "code": 403}})
    })
    .await;
    server.set_service_resolver(Arc::new(To(hook.address)));
    let client = server.client();
    let hooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let rules = json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["configmaps"]}],
        "objectSelector": {"matchExpressions": [{"key": "free", "operator": "DoesNotExist"}]}});
    let config = json!({"metadata": {"name": "h"}, "webhooks": [webhook(&hook.bundle, rules)]});
    hooks.create(&PostParams::default(), &of(config)).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    let map = |name: &str, data: Value, labels: Value| -> ConfigMap {
        of(json!({"metadata": {"name": name, "labels": labels}, "data": data}))
    };
    maps.create(&PostParams::default(), &map("good", json!({}), json!({}))).await.unwrap();
    match maps.create(&PostParams::default(), &map("bad", json!({"bad": ""}), json!({}))).await {
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 403);
            assert_eq!(status.message, "admission webhook \"a.hooks.example.com\" denied the request: it is bad");
        }
        other => panic!("{other:?}"),
    }
    maps.create(&PostParams::default(), &map("free", json!({"bad": ""}), json!({"free": ""}))).await.unwrap();
}

/// What a webhook is told, and which requests it is asked about.
#[tokio::test]
async fn a_webhook_is_asked_about_what_its_rules_and_conditions_name() {
    let server = server().await;
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let hook = hook(move |request| {
        let said = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        heard.lock().unwrap().push(format!(
            "{} {}/{} of {} by {}",
            said(&request["operation"]),
            said(&request["resource"]["version"]),
            said(&request["name"]),
            said(&request["requestResource"]["group"]),
            said(&request["options"]["fieldManager"])
        ));
        json!({"allowed": true, "warnings": ["look out"], "auditAnnotations": {"a": "b"}})
    })
    .await;
    server.set_service_resolver(Arc::new(To(hook.address)));
    let client = crate::https(&server).await;
    let hooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let more = json!({"rules": [{"operations": ["CREATE", "UPDATE", "DELETE"], "apiGroups": ["", "events.k8s.io"],
            "apiVersions": ["v1"], "resources": ["configmaps", "events"]}], "matchPolicy": "Exact",
        "matchConditions": [{"name": "named", "expression": "request.name.startsWith('a')"},
            {"name": "not-system", "expression": "!('system:nodes' in request.userInfo.groups)"},
            {"name": "not-skipped", "expression": "(object == null ? oldObject : object).?data.skip.orValue('no') == 'no'"}]});
    let config = json!({"metadata": {"name": "h"}, "webhooks": [webhook(&hook.bundle, more)]});
    hooks.create(&PostParams::default(), &of(config)).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let params = PostParams { field_manager: Some("me".into()), ..Default::default() };
    maps.create(&params, &of(json!({"metadata": {"name": "a1"}}))).await.unwrap();
    maps.create(&params, &of(json!({"metadata": {"name": "b1"}}))).await.unwrap();
    maps.create(&params, &of(json!({"metadata": {"name": "a2"}, "data": {"skip": "yes"}}))).await.unwrap();
    maps.delete("a1", &Default::default()).await.unwrap();
    maps.delete("a2", &Default::default()).await.unwrap();
    let said = std::mem::take(&mut *told.lock().unwrap());
    assert_eq!(said, ["CREATE v1/a1 of  by me", "DELETE v1/a1 of  by "]);

    // A condition that cannot be evaluated: failurePolicy decides.
    let set = |path: &'static str, value: Value| {
        let hooks = hooks.clone();
        async move {
            let patch = json!([{"op": "replace", "path": format!("/webhooks/0/{path}"), "value": value}]);
            hooks.patch("h", &PatchParams::default(), &Patch::Json::<()>(of(patch))).await
        }
    };
    set("matchConditions", json!([{"name": "fails", "expression": "object.data.x == 'y'"}])).await.unwrap();
    let message = |result: kube::Result<ConfigMap>| match result {
        Err(kube::Error::Api(status)) => (status.code, status.message.clone()),
        other => panic!("{other:?}"),
    };
    let (code, said) = message(maps.create(&params, &of(json!({"metadata": {"name": "c"}}))).await);
    assert_eq!(code, 403);
    assert!(said.contains("resulted in error: no such key: data"), "{said}");
    set("failurePolicy", json!("Ignore")).await.unwrap();
    maps.create(&params, &of(json!({"metadata": {"name": "c"}}))).await.unwrap();
    match set("matchConditions", json!([{"name": "wrong", "expression": "objet.x == 1"}])).await {
        Err(kube::Error::Api(status)) => assert_eq!(
            status.message,
            "ValidatingWebhookConfiguration.admissionregistration.k8s.io \"h\" is invalid: \
             webhooks[0].matchConditions[0].expression: Invalid value: \"objet.x == 1\": compilation failed: undeclared \
             reference to 'objet' (in container '')"
        ),
        other => panic!("{other:?}"),
    }
    assert!(told.lock().unwrap().is_empty());
}

/// `matchPolicy: Equivalent`: who knows one version is asked about all, in the version it knows.
#[tokio::test]
async fn a_webhook_is_asked_about_other_versions_in_its_own() {
    let server = server().await;
    let hook = hook(|request| {
        assert_eq!(request["object"]["apiVersion"], "events.k8s.io/v1");
        assert_eq!((&request["kind"]["group"], &request["requestKind"]["group"]), (&json!("events.k8s.io"), &json!("")));
        let patch = json!([{"op": "add", "path": "/note", "value": format!("{}!", request["object"]["note"].as_str().unwrap())}]);
        json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string())})
    })
    .await;
    server.set_service_resolver(Arc::new(To(hook.address)));
    let client = server.client();
    let hooks: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let rules = json!({"rules": [{"operations": ["CREATE"], "apiGroups": ["events.k8s.io"], "apiVersions": ["v1"], "resources": ["events"]}]});
    let config = json!({"metadata": {"name": "h"}, "webhooks": [webhook(&hook.bundle, rules)]});
    hooks.create(&PostParams::default(), &of(config)).await.unwrap();
    let events: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(client, "default");
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "message": "hey"});
    let made = events.create(&PostParams::default(), &of(event)).await.unwrap();
    assert_eq!(made.message.as_deref(), Some("hey!"));
    assert_eq!(hook.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn failures_of_a_webhook_are_told_in_kubernetes_words() {
    let server = server().await;
    let hook = hook(|_| json!({"allowed": true})).await;
    let client = server.client();
    let hooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let rules = json!({"rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
        "clientConfig": {"service": {"namespace": "hooks", "name": "gone", "path": "/x"}, "caBundle": hook.bundle}, "timeoutSeconds": 3,
        "sideEffects": "NoneOnDryRun"});
    let config = json!({"metadata": {"name": "h"}, "webhooks": [webhook(&hook.bundle, rules)]});
    hooks.create(&PostParams::default(), &of(config)).await.unwrap();
    server.set_service_resolver(Arc::new(To(hook.address)));
    let maps: Api<ConfigMap> = Api::namespaced(client, "default");
    match maps.create(&PostParams::default(), &of(json!({"metadata": {"name": "c"}}))).await {
        Err(kube::Error::Api(status)) => {
            assert_eq!((status.code, status.reason.as_str()), (500, "InternalError"));
            let said = "Internal error occurred: failed calling webhook \"a.hooks.example.com\": failed to call webhook: \
                        Post \"https://gone.hooks.svc:443/x?timeout=3s\": dial tcp: connection refused";
            assert_eq!(status.message, said);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_carried_through_without_its_client() {
    let server = server().await;
    let hook = hook(|_| {
        tokio::task::block_in_place(|| std::thread::sleep(std::time::Duration::from_secs(3)));
        json!({"allowed": true})
    })
    .await;
    server.set_service_resolver(Arc::new(To(hook.address)));
    let client = crate::https(&server).await;
    let hooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let config = json!({"metadata": {"name": "h"}, "webhooks": [webhook(&hook.bundle, json!({}))]});
    hooks.create(&PostParams::default(), &of(config)).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let soon = std::time::Duration::from_secs(1);
    assert!(tokio::time::timeout(soon, pods.create(&PostParams::default(), &pod("left"))).await.is_err());
    let body = serde_json::to_vec(&pod("late")).unwrap();
    let late =
        http::Request::post("/api/v1/namespaces/default/pods?timeout=1s").header("content-type", "application/json");
    // A client over HTTPS would try again at this answer.
    assert_eq!(code(server.client().request::<Pod>(late.body(body).unwrap()).await), 504);
    for name in ["left", "late"] {
        crate::eventually(name, || async { pods.get_opt(name).await.unwrap().is_some() }).await;
    }
}

#[tokio::test]
async fn a_dry_run_is_admitted_like_a_write_and_leaves_nothing() {
    let server = server().await;
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    let hook = hook(move |request| {
        let operation = request["operation"].as_str().unwrap_or_default();
        told.lock().unwrap().push(format!("{operation} {}", request["dryRun"]));
        json!({"allowed": request["object"]["metadata"]["name"] != "refused"})
    })
    .await;
    server.set_service_resolver(Arc::new(To(hook.address)));
    let client = server.client();
    let hooks: Api<ValidatingWebhookConfiguration> = Api::all(client.clone());
    let all = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["services", "configmaps"]}]);
    let config =
        |name: &str, more: Value| json!({"metadata": {"name": name}, "webhooks": [webhook(&hook.bundle, more)]});
    hooks.create(&PostParams::default(), &of(config("h", json!({"rules": all})))).await.unwrap();
    let send = |method: &'static str, path: &str, media: &'static str, body: Value| {
        let request = http::Request::builder().method(method).uri(path).header("content-type", media);
        let request = request.body(body.to_string().into_bytes()).unwrap();
        let client = client.clone();
        async move { client.request::<Value>(request).await }
    };
    const JSON: &str = "application/json";
    let maps = "/api/v1/namespaces/default/configmaps";
    let map =
        |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}});
    let revision =
        || async { send("GET", maps, JSON, json!("")).await.unwrap()["metadata"]["resourceVersion"].clone() };
    send("POST", maps, JSON, map("a")).await.unwrap();
    seen.lock().unwrap().clear();

    let before = revision().await;
    let made = send("POST", &format!("{maps}?dryRun=All"), JSON, map("b")).await.unwrap();
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["resourceVersion"].is_null(), "{made}");
    assert_eq!(code(send("POST", &format!("{maps}?dryRun=All"), JSON, map("a")).await), 409);
    assert_eq!(
        code(send("POST", &format!("{maps}?dryRun=All"), JSON, map("refused")).await),
        400,
        "admission is asked"
    );
    let one = format!("{maps}/a");
    let mut new = map("a");
    new["data"]["a"] = json!("2");
    let replaced = send("PUT", &format!("{one}?dryRun=All"), JSON, new).await.unwrap();
    assert_eq!(replaced["data"]["a"], "2");
    let merge = "application/merge-patch+json";
    let patched = send("PATCH", &format!("{one}?dryRun=All"), merge, json!({"data": {"a": "3"}})).await.unwrap();
    assert_eq!(patched["data"]["a"], "3");
    let apply = "application/apply-patch+yaml";
    let applied = send("PATCH", &format!("{maps}/c?dryRun=All&fieldManager=m"), apply, map("c")).await.unwrap();
    assert_eq!(applied["metadata"]["name"], "c");
    send("DELETE", &format!("{one}?dryRun=All"), JSON, json!({})).await.unwrap();
    // kubectl says it in the body.
    send("DELETE", &one, JSON, json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"]})).await.unwrap();
    send("DELETE", &format!("{maps}?dryRun=All"), JSON, json!({})).await.unwrap();
    assert_eq!(revision().await, before, "nothing was written");
    let seen_so_far = std::mem::take(&mut *seen.lock().unwrap());
    assert!(seen_so_far.len() >= 8 && seen_so_far.iter().all(|call| call.ends_with(" true")), "{seen_so_far:?}");

    let service =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let services = "/api/v1/namespaces/default/services";
    for _ in 0..3 {
        send("POST", &format!("{services}?dryRun=All"), JSON, service.clone()).await.unwrap();
    }
    let path = format!("{maps}?dryRun=Some");
    assert_eq!(code(send("POST", &path, JSON, map("d")).await), 422);
    let wrong = json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["Perhaps"]});
    assert_eq!(code(send("DELETE", &one, JSON, wrong).await), 422, "rather nothing than what was not meant");

    // A webhook that does more than look may not be asked.
    let acts = json!({"rules": all, "sideEffects": "NoneOnDryRun"});
    hooks.create(&PostParams::default(), &of(config("i", acts))).await.unwrap();
    assert!(send("POST", &format!("{maps}?dryRun=All"), JSON, map("e")).await.is_ok());
}

#[tokio::test]
async fn subresources_run_dry_as_well() {
    let server = server().await;
    let client = server.client();
    let send = |method: &'static str, path: &str, body: Value| {
        let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        let request = request.body(body.to_string().into_bytes()).unwrap();
        let client = client.clone();
        async move { client.request::<Value>(request).await.unwrap() }
    };
    let labels = json!({"app": "a"});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "a"}, "spec": {"replicas": 1, "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}});
    send("POST", deployments, deployment).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    pods.create(&PostParams::default(), &pod("p")).await.unwrap();
    let scale = send(
        "PUT",
        &format!("{deployments}/a/scale?dryRun=All"),
        json!({"metadata": {"name": "a"}, "spec": {"replicas": 5}}),
    );
    assert_eq!(scale.await["spec"]["replicas"], 5);
    let status = json!({"metadata": {"name": "p"}, "status": {"phase": "Running"}});
    send("PUT", "/api/v1/namespaces/default/pods/p/status?dryRun=All", status).await;
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    send("POST", "/api/v1/namespaces/default/pods/p/binding?dryRun=All", binding).await;
    let eviction = json!({"metadata": {"name": "p"}, "deleteOptions": {"dryRun": ["All"]}});
    send("POST", "/api/v1/namespaces/default/pods/p/eviction", eviction).await;
    let deployment = send("GET", &format!("{deployments}/a"), json!("")).await;
    assert_eq!(deployment["spec"]["replicas"], 1);
    let pod = pods.get("p").await.unwrap();
    assert_eq!((pod.spec.unwrap().node_name, pod.status.unwrap().phase), (None, Some("Pending".into())));
}
