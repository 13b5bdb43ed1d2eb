//! The way in without a client between: the same objects, rules and words.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use stolos_apiserver::Server;
use stolos_apiserver::near::{Follow, Kind, News, Seen, Stored};

use crate::{https, server};

const DEPLOYMENTS: Kind<'static> = Kind { api_version: "apps/v1", plural: "deployments" };

fn deployment(name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}}})
}

fn read(stored: &Stored) -> Value {
    let object: Value = serde_json::from_slice(&stored.json).unwrap();
    assert_eq!(object["metadata"]["resourceVersion"], stored.revision.to_string());
    assert_eq!(
        (object["metadata"]["namespace"].as_str().unwrap_or_default(), &object["metadata"]["name"]),
        (stored.namespace.as_str(), &json!(stored.name))
    );
    object
}

/// An object without what is of its own at each making.
fn timeless(mut object: Value) -> Value {
    for field in ["uid", "resourceVersion", "creationTimestamp", "name"] {
        object["metadata"][field] = Value::Null;
    }
    for entry in object["metadata"]["managedFields"].as_array_mut().unwrap() {
        entry["time"] = Value::Null;
    }
    object
}

async fn news(follow: &mut Follow) -> News {
    tokio::time::timeout(Duration::from_secs(10), follow.next()).await.unwrap().unwrap()
}

async fn changed(follow: &mut Follow) -> Vec<Seen> {
    match news(follow).await {
        News::Changed(changes) => changes,
        News::All(all, _) => panic!("{all:?}"),
    }
}

async fn stored(server: &Server, name: &str) -> Value {
    let path = format!("/apis/apps/v1/namespaces/default/deployments/{name}");
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    https(server).await.request::<Value>(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_here_is_what_a_client_would_have_written() {
    let server = server().await;
    let near = server.near();
    let api: Api<Deployment> = Api::namespaced(https(&server).await, "default");
    let (params, patching) =
        (PostParams { field_manager: Some("me".into()), ..PostParams::default() }, PatchParams::apply("me"));

    let here = read(&near.create(DEPLOYMENTS, deployment("here"), "me").await.unwrap());
    let there: Deployment = serde_json::from_value(deployment("here")).unwrap();
    let there =
        Deployment { metadata: kube::api::ObjectMeta { name: Some("there".into()), ..there.metadata }, ..there };
    api.create(&params, &there).await.unwrap();
    assert_eq!(timeless(here), timeless(stored(&server, "there").await));

    // With its status it is what two requests of a client make of it.
    let status = json!({"status": {"observedGeneration": 1, "replicas": 2}});
    let mut whole = deployment("here");
    whole["metadata"]["name"] = json!("whole");
    whole["status"] = status["status"].clone();
    let whole = read(&near.create(DEPLOYMENTS, whole, "me").await.unwrap());
    assert_eq!(whole["status"]["replicas"], 2);
    let twice = Deployment {
        metadata: kube::api::ObjectMeta { name: Some("whole".into()), ..there.metadata.clone() },
        ..there
    };
    near.delete(DEPLOYMENTS, ("default", "whole"), None).await.unwrap();
    api.create(&params, &twice).await.unwrap();
    let as_me = PatchParams { field_manager: Some("me".into()), ..PatchParams::default() };
    api.patch_status("whole", &as_me, &Patch::Merge(&status)).await.unwrap();
    assert_eq!(timeless(whole), timeless(stored(&server, "whole").await));

    let patch = json!({"spec": {"replicas": 3}, "status": {"replicas": 9}});
    near.merge(DEPLOYMENTS, ("default", "here", ""), &patch, "other").await.unwrap();
    let status = json!({"spec": {"replicas": 9}, "status": {"readyReplicas": 2, "replicas": 2}});
    let here = read(&near.merge(DEPLOYMENTS, ("default", "here", "status"), &status, "other").await.unwrap());
    assert_eq!((&here["spec"]["replicas"], &here["status"]["readyReplicas"]), (&json!(3), &json!(2)));
    let as_other = PatchParams { field_manager: Some("other".into()), ..PatchParams::default() };
    api.patch("there", &as_other, &Patch::Merge(&patch)).await.unwrap();
    api.patch_status("there", &as_other, &Patch::Merge(&status)).await.unwrap();
    assert_eq!(timeless(here.clone()), timeless(stored(&server, "there").await));

    // What somebody applies is his, as ever.
    let applied = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"replicas": 4}});
    let refused = api.patch("here", &patching, &Patch::Apply(&applied)).await.unwrap_err().to_string();
    assert!(refused.contains("conflict with \"other\" using apps/v1: .spec.replicas"), "{refused}");

    let mut late = here.clone();
    late["spec"]["replicas"] = json!(5);
    let made = near.replace(DEPLOYMENTS, &late, "me").await.unwrap();
    assert_eq!(read(&made)["spec"]["replicas"], 5);
    for (refused, code, reason) in [
        (near.replace(DEPLOYMENTS, &late, "me").await, 409, "Conflict"),
        (near.create(DEPLOYMENTS, deployment("here"), "me").await, 409, "AlreadyExists"),
        (
            near.create(DEPLOYMENTS, json!({"metadata": {"name": "x", "namespace": "default"}}), "me").await,
            422,
            "Invalid",
        ),
        (near.merge(DEPLOYMENTS, ("default", "nobody", ""), &patch, "me").await, 404, "NotFound"),
        (near.merge(DEPLOYMENTS, ("default", "here", "nothing"), &patch, "me").await, 404, "NotFound"),
        (near.create(Kind { plural: "things", ..DEPLOYMENTS }, deployment("x"), "me").await, 404, "NotFound"),
    ] {
        let status = refused.unwrap_err();
        assert_eq!((status.code, status.reason.as_str()), (code, reason), "{status}");
    }
    let other = near.delete(DEPLOYMENTS, ("default", "here"), Some("another")).await.unwrap_err();
    assert_eq!(other.code, 409);
    near.delete(DEPLOYMENTS, ("default", "here"), here["metadata"]["uid"].as_str()).await.unwrap();
    assert_eq!(near.delete(DEPLOYMENTS, ("default", "here"), None).await.unwrap_err().code, 404);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_sees_all_and_then_each_change() {
    let server = stolos_apiserver::Builder::new().window(8, 1 << 20).start().await.unwrap();
    let near = server.near();
    near.create(DEPLOYMENTS, deployment("a"), "me").await.unwrap();
    let mut follow = near.follow(DEPLOYMENTS);
    let News::All(all, revision) = news(&mut follow).await else { panic!("all are told first") };
    // A server that begins has other things to write, too.
    assert!(revision >= all[0].revision);
    assert_eq!(all.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["a"]);

    let made = near.create(DEPLOYMENTS, deployment("b"), "me").await.unwrap();
    let seen = changed(&mut follow).await;
    assert_eq!((seen.len(), seen[0].gone, seen[0].object.revision), (1, false, made.revision));
    assert_eq!(read(&seen[0].object), read(&made));
    near.delete(DEPLOYMENTS, ("default", "a"), None).await.unwrap();
    let seen = changed(&mut follow).await;
    assert_eq!((seen.len(), seen[0].gone, seen[0].object.name.as_str()), (1, true, "a"));
    assert!(seen[0].object.revision > made.revision);

    // Who falls behind is told all again.
    for n in 0..20 {
        near.create(DEPLOYMENTS, deployment(&format!("n{n}")), "me").await.unwrap();
    }
    let News::All(all, revision) = news(&mut follow).await else { panic!("too much has happened") };
    assert_eq!(all.len(), 21);
    assert!(all.iter().all(|it| it.revision <= revision));

    let mut nothing = near.follow(Kind { plural: "things", ..DEPLOYMENTS });
    assert_eq!(nothing.next().await.unwrap_err().code, 404);
    server.stop().await;
}
