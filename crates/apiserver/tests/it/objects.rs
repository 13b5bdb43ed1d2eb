//! Objects: create, read, update, patch, delete, list, watch.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{code, https, server};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn config(name: &str) -> ConfigMap {
    of(json!({"metadata": {"name": name}, "data": {"a": "1"}}))
}

#[tokio::test]
async fn an_object_lives_over_https() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(https(&server).await, "default");
    let made = maps.create(&PostParams::default(), &config("a")).await.unwrap();
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    assert_eq!(code(maps.create(&PostParams::default(), &config("a")).await), 409);

    let mut changed = made.clone();
    changed.data.as_mut().unwrap().insert("b".into(), "2".into());
    let changed = maps.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(changed.resource_version(), made.resource_version());
    assert_eq!(code(maps.replace("a", &PostParams::default(), &made).await), 409, "made is an old revision");

    let patch = Patch::Merge(json!({"data": {"a": null, "c": "3"}}));
    let patched = maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(patched.data.clone().unwrap().keys().collect::<Vec<_>>(), ["b", "c"]);
    let again = maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(again.resource_version(), patched.resource_version(), "a write that changes nothing is none");

    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(maps.get("a").await), 404);
    server.stop().await;
}

#[tokio::test]
async fn names_are_generated_and_checked() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let generated: ConfigMap = of(json!({"metadata": {"generateName": "a-"}}));
    let params = PostParams::default();
    let names = futures::future::join_all((0..20).map(|_| maps.create(&params, &generated)));
    let names: std::collections::HashSet<_> = names.await.into_iter().map(|made| made.unwrap().name_any()).collect();
    assert_eq!(names.len(), 20);
    assert!(names.iter().all(|name| name.starts_with("a-") && name.len() == 7));
    assert_eq!(code(maps.create(&PostParams::default(), &config("Not_A_Name")).await), 422);
    let nowhere: Api<ConfigMap> = Api::namespaced(server.client(), "nowhere");
    assert_eq!(code(nowhere.create(&PostParams::default(), &config("a")).await), 404);
    let dry = PostParams { dry_run: true, ..Default::default() };
    maps.create(&dry, &config("dry")).await.unwrap();
    assert_eq!(code(maps.get("dry").await), 404);
}

#[tokio::test]
async fn watches_begin_where_lists_end() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(https(&server).await, "default");
    maps.create(&PostParams::default(), &config("before")).await.unwrap();
    let list = maps.list(&ListParams::default()).await.unwrap();
    let from = list.metadata.resource_version.unwrap();
    let mut events = maps.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    maps.create(&PostParams::default(), &config("a")).await.unwrap();
    let patch = Patch::Merge(json!({"data": {"a": "2"}}));
    maps.patch("a", &PatchParams::default(), &patch).await.unwrap();
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.push(match events.try_next().await.unwrap().unwrap() {
            WatchEvent::Added(o) => format!("added {}", o.name_any()),
            WatchEvent::Modified(o) => format!("modified {}", o.name_any()),
            WatchEvent::Deleted(o) => format!("deleted {}", o.name_any()),
            other => format!("{other:?}"),
        });
    }
    assert_eq!(seen, ["added a", "modified a", "deleted a"]);
}

#[tokio::test]
async fn a_revision_that_left_the_window_is_gone() {
    let server = stolos_apiserver::Builder::new().window(5, 1 << 20).start().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let first = maps.create(&PostParams::default(), &config("first")).await.unwrap();
    for n in 0..10 {
        maps.create(&PostParams::default(), &config(&format!("a{n}"))).await.unwrap();
    }
    let from = first.resource_version().unwrap();
    let mut events = maps.watch(&WatchParams::default(), &from).await.unwrap().boxed();
    match events.try_next().await {
        Ok(Some(WatchEvent::Error(status))) => assert_eq!(status.code, 410),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn pages_are_of_one_moment() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "kube-public");
    for n in 0..5 {
        maps.create(&PostParams::default(), &config(&format!("a{n}"))).await.unwrap();
    }
    let first = maps.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.items.len(), 2);
    maps.delete("a3", &DeleteParams::default()).await.unwrap();
    let token = first.metadata.continue_.unwrap();
    let rest = maps.list(&ListParams::default().continue_token(&token)).await.unwrap();
    let names: Vec<_> = rest.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["a2", "a3", "a4", "kube-root-ca.crt"], "a3 was there when the list began");
}

#[tokio::test]
async fn selectors_choose() {
    let server = server().await;
    let client = server.client();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    let secret = |name: &str, kind: &str, label: &str| -> Secret {
        of(json!({"metadata": {"name": name, "labels": {"app": label}}, "type": kind, "stringData": {"k": "v"}}))
    };
    secrets.create(&PostParams::default(), &secret("a", "Opaque", "x")).await.unwrap();
    secrets.create(&PostParams::default(), &secret("b", "example.com/b", "y")).await.unwrap();
    let names = async |params: ListParams| -> Vec<String> {
        secrets.list(&params).await.unwrap().items.iter().map(ResourceExt::name_any).collect()
    };
    assert_eq!(names(ListParams::default().labels("app in (x,z)")).await, ["a"]);
    assert_eq!(names(ListParams::default().fields("type=example.com/b")).await, ["b"]);
    assert_eq!(names(ListParams::default().fields("metadata.name!=a")).await, ["b"]);
    assert_eq!(code(secrets.list(&ListParams::default().fields("spec.nothing=a")).await), 400);
    assert_eq!(secrets.get("a").await.unwrap().data.unwrap()["k"].0, b"v");
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let server = server().await;
    let deployments: Api<Deployment> = Api::namespaced(server.client(), "default");
    let wanted: Deployment = of(json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}},
        "status": {"replicas": 7}}));
    let made = deployments.create(&PostParams::default(), &wanted).await.unwrap();
    assert_eq!(made.spec.replicas, Some(1));
    assert_eq!(made.status.clone().unwrap_or_default().replicas, None);
    assert_eq!(made.metadata.generation, Some(1));
    let status = Patch::Merge(json!({"status": {"replicas": 3}, "spec": {"replicas": 9}}));
    let made = deployments.patch_status("web", &PatchParams::default(), &status).await.unwrap();
    assert_eq!((made.spec.replicas, made.status.unwrap().replicas), (Some(1), Some(3)));
    assert_eq!(made.metadata.generation, Some(1));
    let scale = Patch::Merge(json!({"spec": {"replicas": 5}}));
    let scaled = deployments.patch_scale("web", &PatchParams::default(), &scale).await.unwrap();
    assert_eq!(scaled.spec.unwrap().replicas, Some(5));
    assert_eq!(scaled.status.unwrap().selector.as_deref(), Some("app=web"));
    assert_eq!(deployments.get("web").await.unwrap().metadata.generation, Some(2));
    let mut wrong = wanted.clone();
    wrong.metadata.name = Some("wrong".into());
    wrong.spec.selector.match_labels.as_mut().unwrap().insert("b".into(), "c".into());
    assert_eq!(code(deployments.create(&PostParams::default(), &wrong).await), 422);
}

#[tokio::test]
async fn finalizers_and_preconditions_hold_a_deletion_up() {
    let server = server().await;
    let maps: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let held: ConfigMap = of(json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}));
    let made = maps.create(&PostParams::default(), &held).await.unwrap();
    let wrong = DeleteParams {
        preconditions: Some(kube::api::Preconditions { uid: Some("other".into()), resource_version: None }),
        ..Default::default()
    };
    assert_eq!(code(maps.delete("held", &wrong).await.map(|_| ())), 409);
    maps.delete("held", &DeleteParams::default()).await.unwrap();
    assert!(maps.get("held").await.unwrap().metadata.deletion_timestamp.is_some());
    let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let last = maps.patch("held", &PatchParams::default(), &free).await.unwrap();
    assert_eq!(last.metadata.uid, made.metadata.uid);
    assert_eq!(code(maps.get("held").await), 404);
}

#[tokio::test]
async fn services_get_addresses() {
    let server = stolos_apiserver::Builder::new().service_cidr("10.7.0.0/24").start().await.unwrap();
    let services: Api<Service> = Api::namespaced(server.client(), "default");
    let kubernetes = services.get("kubernetes").await.unwrap();
    assert_eq!(kubernetes.spec.unwrap().cluster_ip.as_deref(), Some("10.7.0.1"));
    let web: Service = of(json!({"metadata": {"name": "web"}, "spec": {"ports": [{"port": 80}]}}));
    let web = services.create(&PostParams::default(), &web).await.unwrap().spec.unwrap();
    assert!(web.cluster_ip.unwrap().starts_with("10.7.0."));
    assert_eq!(web.ports.unwrap()[0].protocol.as_deref(), Some("TCP"));
    let taken: Service =
        of(json!({"metadata": {"name": "b"}, "spec": {"clusterIP": "10.7.0.1", "ports": [{"port": 80}]}}));
    assert_eq!(code(services.create(&PostParams::default(), &taken).await), 422);
}

#[tokio::test]
async fn a_label_that_is_no_text_is_a_bad_request() {
    let server = server().await;
    let secret = json!({"metadata": {"name": "a", "labels": {"istio/multiCluster": true}}});
    let request = http::Request::post("/api/v1/namespaces/default/secrets").header("content-type", "application/json");
    let refused = server.client().request::<Value>(request.body(secret.to_string().into_bytes()).unwrap()).await;
    match refused {
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 400);
            assert!(status.message.contains("cannot unmarshal bool"), "{}", status.message);
        }
        other => panic!("{other:?}"),
    }
    let pod =
        json!({"metadata": {"name": "a"}, "spec": {"nodeName": false, "containers": [{"name": "c", "image": "i"}]}});
    let request = http::Request::post("/api/v1/namespaces/default/pods").header("content-type", "application/json");
    let refused = server.client().request::<Value>(request.body(pod.to_string().into_bytes()).unwrap()).await;
    assert_eq!(code(refused), 400);
}

#[tokio::test]
async fn reflectors_of_both_kinds_stay_true() {
    use kube::runtime::{WatchStreamExt, reflector, watcher};
    let server =
        stolos_apiserver::Builder::new().bookmark_every(std::time::Duration::from_millis(20)).start().await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(https(&server).await, "kube-public");
    for n in 0..3 {
        maps.create(&PostParams::default(), &config(&format!("a{n}"))).await.unwrap();
    }
    for settings in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let (reader, writer) = reflector::store();
        let stream = reflector(writer, watcher(maps.clone(), settings)).applied_objects();
        let task = tokio::spawn(stream.for_each(|event| async { drop(event.unwrap()) }));
        reader.wait_until_ready().await.unwrap();
        assert_eq!(reader.len(), 4);
        maps.create(&PostParams::default(), &config("late")).await.unwrap();
        crate::eventually("it is seen", async || reader.len() == 5).await;
        maps.delete("late", &DeleteParams::default()).await.unwrap();
        crate::eventually("it is seen to go", async || reader.len() == 4).await;
        task.abort();
    }
}

#[tokio::test]
async fn events_are_seen_in_both_groups() {
    use k8s_openapi::api::{core::v1::Event as CoreEvent, events::v1::Event};
    let server = server().await;
    let (new, old): (Api<Event>, Api<CoreEvent>) =
        (Api::namespaced(server.client(), "default"), Api::namespaced(server.client(), "default"));
    let event: Event = of(
        json!({"metadata": {"name": "e"}, "reason": "Tested", "note": "it happened", "type": "Normal",
        "action": "Test", "regarding": {"kind": "Pod", "name": "p"}, "reportingController": "test", "eventTime": null}),
    );
    new.create(&PostParams::default(), &event).await.unwrap();
    let found = old.list(&ListParams::default().fields("involvedObject.name=p")).await.unwrap();
    assert_eq!(found.items[0].message.as_deref(), Some("it happened"));
    let patched = new.patch("e", &PatchParams::default(), &Patch::Merge(json!({"note": "again"}))).await.unwrap();
    assert_eq!(patched.note.as_deref(), Some("again"));
    assert_eq!(old.get("e").await.unwrap().message.as_deref(), Some("again"));
}
