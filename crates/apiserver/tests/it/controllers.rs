//! What happens by itself: namespaces, accounts, garbage collection, definitions.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::{code, eventually, https, server};

fn of<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str) -> Pod {
    of(json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}))
}

#[tokio::test]
async fn a_namespace_begins_with_an_account_and_ends_with_all_it_holds() {
    let server = server().await;
    let client = server.client();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &of(json!({"metadata": {"name": "a"}}))).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), "a");
    let made = pods.create(&PostParams::default(), &pod("p")).await.unwrap().spec.unwrap();
    assert_eq!(made.service_account_name.as_deref(), Some("default"));
    let mounts = made.containers[0].volume_mounts.clone().unwrap();
    assert_eq!(mounts[0].mount_path, "/var/run/secrets/kubernetes.io/serviceaccount");
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "a");
    eventually("the bundle is there", async || maps.get("kube-root-ca.crt").await.is_ok()).await;
    maps.delete("kube-root-ca.crt", &DeleteParams::default()).await.unwrap();
    eventually("the bundle is back", async || maps.get("kube-root-ca.crt").await.is_ok()).await;

    namespaces.delete("a", &DeleteParams::default()).await.unwrap();
    let refused = maps.create(&PostParams::default(), &of(json!({"metadata": {"name": "late"}}))).await;
    assert!(matches!(code(refused), 403 | 404));
    eventually("the namespace is gone", async || namespaces.get_opt("a").await.unwrap().is_none()).await;
    assert!(pods.list(&Default::default()).await.unwrap().items.is_empty());
    assert_eq!(code(namespaces.delete("default", &DeleteParams::default()).await.map(|_| ())), 403);
    server.stop().await;
}

#[tokio::test]
async fn dependents_follow_their_owners() {
    let server = server().await;
    let client = https(&server).await;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let spec = json!({"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}}});
    let owner = |kind: &str, api: &str, name: &str, uid: &str| json!([{"apiVersion": api, "kind": kind, "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true}]);
    for (policy, left) in [
        (Some(PropagationPolicy::Background), false),
        (Some(PropagationPolicy::Foreground), false),
        (Some(PropagationPolicy::Orphan), true),
        (None, false),
    ] {
        let made: Deployment = of(json!({"metadata": {"name": "d"}, "spec": spec}));
        let made = deployments.create(&PostParams::default(), &made).await.unwrap();
        let owners = owner("Deployment", "apps/v1", "d", &made.uid().unwrap());
        let set: ReplicaSet = of(json!({"metadata": {"name": "s", "ownerReferences": owners}, "spec": spec}));
        let set = sets.create(&PostParams::default(), &set).await.unwrap();
        let mut owned = pod("p");
        owned.metadata.owner_references = of(owner("ReplicaSet", "apps/v1", "s", &set.uid().unwrap()));
        pods.create(&PostParams::default(), &owned).await.unwrap();
        let params = DeleteParams { propagation_policy: policy.clone(), ..Default::default() };
        deployments.delete("d", &params).await.unwrap();
        eventually(&format!("the owner is gone with {policy:?}"), async || {
            deployments.get_opt("d").await.unwrap().is_none()
        })
        .await;
        if left {
            let set = sets.get("s").await.unwrap();
            assert!(set.owner_references().is_empty(), "{policy:?}");
            sets.delete("s", &DeleteParams::default()).await.unwrap();
        }
        eventually("dependents are gone", async || {
            sets.get_opt("s").await.unwrap().is_none() && pods.get_opt("p").await.unwrap().is_none()
        })
        .await;
    }
    let mut lost = pod("lost");
    lost.metadata.owner_references = of(owner("ReplicaSet", "apps/v1", "s", "no-such-uid"));
    pods.create(&PostParams::default(), &lost).await.unwrap();
    eventually("one whose owner never was goes too", async || pods.get_opt("lost").await.unwrap().is_none()).await;
}

#[tokio::test]
async fn a_running_pod_goes_gracefully() {
    let server = server().await;
    let pods: Api<Pod> = Api::namespaced(server.client(), "default");
    let mut running = pod("p");
    running.spec.as_mut().unwrap().node_name = Some("node".into());
    pods.create(&PostParams::default(), &running).await.unwrap();
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    let going = pods.get("p").await.unwrap();
    assert_eq!(going.metadata.deletion_grace_period_seconds, Some(30));
    pods.delete("p", &DeleteParams { grace_period_seconds: Some(0), ..Default::default() }).await.unwrap();
    assert!(pods.get_opt("p").await.unwrap().is_none());
}

#[tokio::test]
async fn a_secret_becomes_a_token_and_dies_with_its_account() {
    let server = server().await;
    let client = server.client();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
    accounts.create(&PostParams::default(), &of(json!({"metadata": {"name": "reader"}}))).await.unwrap();
    let secret: Secret =
        of(json!({"metadata": {"name": "t", "annotations": {"kubernetes.io/service-account.name": "reader"}},
        "type": "kubernetes.io/service-account-token"}));
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    eventually("the token is there", async || {
        secrets.get("t").await.unwrap().data.is_some_and(|d| d.contains_key("token"))
    })
    .await;
    let data = secrets.get("t").await.unwrap().data.unwrap();
    assert_eq!(data["namespace"].0, b"default");
    assert_eq!(data["ca.crt"].0, server.ca().as_bytes());
    accounts.delete("reader", &DeleteParams::default()).await.unwrap();
    eventually("the token is gone", async || secrets.get_opt("t").await.unwrap().is_none()).await;
}

fn definition() -> CustomResourceDefinition {
    let version = |name: &str, storage: bool| {
        json!({"name": name, "served": true, "storage": storage, "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                "spec": {"type": "object", "required": ["size"], "properties": {
                    "size": {"type": "integer", "minimum": 1},
                    "color": {"type": "string", "default": "red", "enum": ["red", "blue"]}}},
                "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}},
            "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]})
    };
    of(json!({"metadata": {"name": "things.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "singular": "thing", "kind": "Thing", "shortNames": ["th"]},
        "versions": [version("v1alpha1", false), version("v1", true)]}}))
}

fn things(client: kube::Client, version: &str) -> Api<DynamicObject> {
    let gvk = kube::core::GroupVersionKind::gvk("example.com", version, "Thing");
    Api::namespaced_with(client, "default", &ApiResource::from_gvk_with_plural(&gvk, "things"))
}

#[tokio::test]
async fn a_definition_is_served_at_once_in_all_its_versions() {
    let server = server().await;
    let client = https(&server).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let made = definitions.create(&PostParams::default(), &definition()).await.unwrap();
    let conditions = made.status.unwrap().conditions.unwrap();
    assert!(conditions.iter().any(|c| c.type_ == "Established" && c.status == "True"));

    let (old, new) = (things(client.clone(), "v1alpha1"), things(client.clone(), "v1"));
    let thing: DynamicObject = of(json!({"apiVersion": "example.com/v1alpha1", "kind": "Thing",
        "metadata": {"name": "a"}, "spec": {"size": 3, "unknown": true}, "status": {"x": 1}}));
    let made = old.create(&PostParams::default(), &thing).await.unwrap();
    assert_eq!(made.types.unwrap().api_version, "example.com/v1alpha1");
    let read = new.get("a").await.unwrap();
    assert_eq!(read.types.unwrap().api_version, "example.com/v1");
    assert_eq!(read.data["spec"], json!({"size": 3, "color": "red"}), "defaulted and pruned");
    assert!(read.data.get("status").is_none());
    assert_eq!(read.metadata.generation, Some(1));
    let status = Patch::Merge(json!({"status": {"x": 2}}));
    let made = new.patch_status("a", &PatchParams::default(), &status).await.unwrap();
    assert_eq!((made.data["status"]["x"].as_i64(), made.metadata.generation), (Some(2), Some(1)));
    for wrong in [json!({"size": 0}), json!({}), json!({"size": "many"}), json!({"size": 1, "color": "green"})] {
        let thing: DynamicObject = of(json!({"apiVersion": "example.com/v1", "kind": "Thing",
            "metadata": {"name": "wrong"}, "spec": wrong}));
        assert_eq!(code(new.create(&PostParams::default(), &thing).await), 422, "{thing:?}");
    }
    definitions.delete("things.example.com", &DeleteParams::default()).await.unwrap();
    eventually("the definition is gone", async || definitions.get_opt("things.example.com").await.unwrap().is_none())
        .await;
    assert_eq!(code(new.get("a").await), 404);
}

/// Who asks for a definition may be gone before the answer, and many may ask at once: what is stored is served.
#[tokio::test(flavor = "multi_thread")]
async fn a_definition_is_served_although_its_maker_is_gone() {
    let server = server().await;
    let definition = |n: usize| {
        let mut definition = serde_json::to_value(definition()).unwrap();
        let kind = format!("Made{n}");
        let plural = format!("{}s", kind.to_lowercase());
        definition["spec"]["names"] = serde_json::json!({"kind": kind, "plural": plural});
        definition["metadata"]["name"] = format!("{plural}.{}", definition["spec"]["group"].as_str().unwrap()).into();
        serde_json::from_value::<CustomResourceDefinition>(definition).unwrap()
    };
    let made = (0..40).map(|n| {
        let (server, definition) = (&server, definition(n));
        async move {
            // A connection of its own, which ends with its request, sooner or later.
            let definitions: Api<CustomResourceDefinition> = Api::all(https(server).await);
            let patience = std::time::Duration::from_millis(n as u64);
            let _ = tokio::time::timeout(patience, definitions.create(&PostParams::default(), &definition)).await;
        }
    });
    futures::future::join_all(made).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(server.client());
    // Nothing is under way any more once this one is there, for writes are in order.
    definitions.create(&PostParams::default(), &definition(99)).await.unwrap();
    let stored = definitions.list(&Default::default()).await.unwrap().items;
    assert!(!stored.is_empty());
    for definition in stored {
        let spec = &definition.spec;
        let kind = kube::core::GroupVersionKind::gvk(&spec.group, &spec.versions[0].name, &spec.names.kind);
        let resource = kube::core::ApiResource::from_gvk_with_plural(&kind, &spec.names.plural);
        let objects: Api<kube::core::DynamicObject> = Api::all_with(server.client(), &resource);
        assert!(objects.list(&Default::default()).await.is_ok(), "{} is stored and not served", spec.names.kind);
    }
}

/// <https://kubernetes.io/docs/concepts/architecture/garbage-collection/>: who has another owner stays, owners in other
/// namespaces are absent, and an object without a namespace cannot be owned by one with.
#[tokio::test]
async fn owners_count_only_where_they_can_be() {
    let server = server().await;
    let client = server.client();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let system: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let make = async |api: &Api<ConfigMap>, name: &str, owners: Value| {
        let map: ConfigMap = of(json!({"metadata": {"name": name, "ownerReferences": owners}}));
        api.create(&PostParams::default(), &map).await.unwrap().uid().unwrap()
    };
    let owner = |name: &str, uid: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": uid, "blockOwnerDeletion": true});
    let (one, two) = (make(&maps, "one", json!([])).await, make(&maps, "two", json!([])).await);
    make(&maps, "both", json!([owner("one", &one), owner("two", &two)])).await;
    make(&maps, "first", json!([owner("one", &one)])).await;
    let foreground = DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..Default::default() };
    maps.delete("one", &foreground).await.unwrap();
    eventually("the owner is gone", async || maps.get_opt("one").await.unwrap().is_none()).await;
    assert!(maps.get_opt("first").await.unwrap().is_none(), "gone before its owner");
    assert_eq!(maps.get("both").await.unwrap().owner_references().len(), 1, "has another to live for");
    maps.delete("two", &DeleteParams::default()).await.unwrap();
    eventually("the last owner takes it along", async || maps.get_opt("both").await.unwrap().is_none()).await;

    let here = make(&maps, "here", json!([])).await;
    make(&system, "there", json!([owner("here", &here)])).await;
    eventually("an owner elsewhere is none", async || system.get_opt("there").await.unwrap().is_none()).await;
    let global: Namespace = of(json!({"metadata": {"name": "global", "ownerReferences": [owner("here", &here)]}}));
    namespaces.create(&PostParams::default(), &global).await.unwrap();
    maps.delete("here", &DeleteParams::default()).await.unwrap();
    make(&system, "later", json!([owner("nobody", "no-such-uid")])).await;
    eventually("the collector has been here", async || system.get_opt("later").await.unwrap().is_none()).await;
    assert!(namespaces.get("global").await.unwrap().metadata.deletion_timestamp.is_none());
    let global = namespaces.get("global").await.unwrap().uid().unwrap();
    let owner = json!([{"apiVersion": "v1", "kind": "Namespace", "name": "global", "uid": global}]);
    make(&maps, "of-global", owner).await;
    namespaces.delete("global", &DeleteParams::default()).await.unwrap();
    eventually("an owner without a namespace owns everywhere", async || {
        maps.get_opt("of-global").await.unwrap().is_none()
    })
    .await;
}

#[tokio::test]
async fn deletion_is_as_it_was_asked_for() {
    let server = server().await;
    let client = https(&server).await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let made = maps
        .create(&PostParams::default(), &of(json!({"metadata": {"name": "a", "finalizers": ["x.io/b", "x.io/a"]}})))
        .await
        .unwrap();
    let with = |uid: &str, version: &str| DeleteParams {
        preconditions: Some(kube::api::Preconditions { uid: Some(uid.into()), resource_version: Some(version.into()) }),
        ..Default::default()
    };
    let version = made.resource_version().unwrap();
    for (uid, version) in [("other", version.as_str()), (made.uid().unwrap().as_str(), "1")] {
        assert_eq!(code(maps.delete("a", &with(uid, version)).await.map(|_| ())), 409);
    }
    maps.delete("a", &with(&made.uid().unwrap(), &version)).await.unwrap();
    let going = maps.get("a").await.unwrap();
    assert!(going.metadata.deletion_timestamp.is_some());
    assert_eq!(going.metadata.generation, None, "config maps have none");
    let patch = |list: Value| Patch::Merge(json!({"metadata": {"finalizers": list}}));
    let added = maps.patch("a", &PatchParams::default(), &patch(json!(["x.io/a", "x.io/new"]))).await;
    assert_eq!(code(added), 422, "nobody new");
    maps.patch("a", &PatchParams::default(), &patch(json!(["x.io/a"]))).await.unwrap();
    assert!(maps.get_opt("a").await.unwrap().is_some());
    maps.patch("a", &PatchParams::default(), &patch(json!([]))).await.unwrap();
    assert!(maps.get_opt("a").await.unwrap().is_none());

    // Of jobs, what they made is left behind unless somebody says otherwise.
    let jobs: Api<k8s_openapi::api::batch::v1::Job> = Api::namespaced(client.clone(), "default");
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let spec = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}});
    let job = jobs.create(&PostParams::default(), &of(json!({"metadata": {"name": "j"}, "spec": spec}))).await.unwrap();
    let mut child = pod("child");
    child.metadata.owner_references =
        of(json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": job.uid().unwrap()}]));
    pods.create(&PostParams::default(), &child).await.unwrap();
    jobs.delete("j", &DeleteParams::default()).await.unwrap();
    eventually("the job is gone", async || jobs.get_opt("j").await.unwrap().is_none()).await;
    assert!(pods.get("child").await.unwrap().owner_references().is_empty());
    let both = http::Request::delete("/api/v1/namespaces/default/pods/child")
        .header("content-type", "application/json")
        .body(br#"{"orphanDependents": true, "propagationPolicy": "Background"}"#.to_vec())
        .unwrap();
    assert_eq!(code(client.request::<Value>(both).await), 422);

    for name in ["x", "y", "z"] {
        let labels = json!({"set": if name == "z" { "no" } else { "yes" }});
        maps.create(&PostParams::default(), &of(json!({"metadata": {"name": name, "labels": labels}}))).await.unwrap();
    }
    let chosen = kube::api::ListParams::default().labels("set=yes");
    maps.delete_collection(&DeleteParams::default().dry_run(), &chosen).await.unwrap();
    assert!(maps.get_opt("x").await.unwrap().is_some(), "a dry run");
    maps.delete_collection(&DeleteParams::default(), &chosen).await.unwrap();
    let left: Vec<_> = maps.list(&Default::default()).await.unwrap().iter().map(|map| map.name_any()).collect();
    assert_eq!(left, ["kube-root-ca.crt", "z"]);
}

#[tokio::test]
async fn a_namespace_says_what_keeps_it() {
    let server = server().await;
    let client = server.client();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let made = json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes", "x.io/mine"]}});
    namespaces.create(&PostParams::default(), &of(made)).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "a");
    maps.create(&PostParams::default(), &of(json!({"metadata": {"name": "kept", "finalizers": ["x.io/keep"]}})))
        .await
        .unwrap();
    namespaces.delete("a", &DeleteParams::default()).await.unwrap();
    match maps.create(&PostParams::default(), &of(json!({"metadata": {"name": "late"}}))).await {
        Err(kube::Error::Api(status)) => {
            let said = "configmaps \"late\" is forbidden: unable to create new content in namespace a because it is being terminated";
            assert_eq!((status.code, status.message.as_str()), (403, said));
            let cause = &status.details.as_ref().unwrap().causes[0];
            assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("NamespaceTerminating", "metadata.namespace"));
        }
        other => panic!("{other:?}"),
    }
    let condition = async |kind: &str| {
        let status = namespaces.get("a").await.unwrap().status.unwrap();
        assert_eq!(status.phase.as_deref(), Some("Terminating"));
        let found = status.conditions.unwrap_or_default().into_iter().find(|c| c.type_ == kind);
        found.map(|c| (c.status, c.message.unwrap_or_default()))
    };
    eventually("it says what is left", async || {
        condition("NamespaceContentRemaining").await
            == Some(("True".into(), "Some resources are remaining: configmaps. has 1 resource instances".into()))
    })
    .await;
    let waits = condition("NamespaceFinalizersRemaining").await.unwrap();
    let said = "Some content in the namespace has finalizers remaining: x.io/keep in 1 resource instances";
    assert_eq!(waits, ("True".into(), said.into()));
    assert_eq!(condition("NamespaceDeletionContentFailure").await.unwrap().0, "False");
    let none = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("kept", &PatchParams::default(), &none).await.unwrap();
    eventually("only somebody else's finalizer is left", async || {
        let spec = namespaces.get("a").await.unwrap().spec.unwrap();
        spec.finalizers == Some(vec!["x.io/mine".into()])
    })
    .await;
    let mut last = serde_json::to_value(namespaces.get("a").await.unwrap()).unwrap();
    last["spec"]["finalizers"] = json!([]);
    let finalize = http::Request::put("/api/v1/namespaces/a/finalize")
        .header("content-type", "application/json")
        .body(last.to_string().into_bytes())
        .unwrap();
    client.request::<Value>(finalize).await.unwrap();
    eventually("the namespace is gone", async || namespaces.get_opt("a").await.unwrap().is_none()).await;
}
