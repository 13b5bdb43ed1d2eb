//! Client libraries against a lab cluster: what kube-rs' documented examples do (controller, reflector, CRD apply, exec,
//! port-forward, watcher with streaming lists), and the Python client's list, watch and patch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, AttachParams, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams, WatchEvent, WatchParams,
};
use kube::core::ObjectMeta;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use stolos_lab::{Lab, LabCluster, LabConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[path = "../../../tests/programs.rs"]
mod programs;

const PATIENCE: Duration = Duration::from_secs(30);

async fn lab(state: &tempfile::TempDir) -> Lab {
    let mut config = LabConfig::new("clients", state.path());
    config.clusters = vec![LabCluster {
        name: "c1".into(),
        context: "context-c1".into(),
        network: "east".into(),
        region: None,
        zone: None,
    }];
    Lab::start(config).await.unwrap()
}

async fn bounded<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("never: {what}"))
}

fn configmap(name: &str, data: &[(&str, &str)]) -> ConfigMap {
    let data = data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<BTreeMap<_, _>>();
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
        data: Some(data),
        ..Default::default()
    }
}

/// `examples/crd_apply.rs`, `examples/configmapgen_controller.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_of_a_custom_resource() {
    let state = tempfile::tempdir().unwrap();
    let lab = lab(&state).await;
    let client = lab.client("c1").await.unwrap();
    let ssa = PatchParams::apply("crd_apply_example").force();

    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "configmapgenerators.nullable.se"},
        "spec": {"group": "nullable.se", "scope": "Namespaced",
            "names": {"kind": "ConfigMapGenerator", "plural": "configmapgenerators", "singular": "configmapgenerator",
                "shortNames": ["cmg"]},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "required": ["spec"], "properties": {
                    "spec": {"type": "object", "required": ["content"], "properties": {"content": {"type": "string"}}},
                    "status": {"type": "object", "properties": {"made": {"type": "boolean"}}}}}}}]},
    });
    crds.patch("configmapgenerators.nullable.se", &ssa, &Patch::Apply(&crd)).await.unwrap();
    let established = await_condition(crds, "configmapgenerators.nullable.se", conditions::is_crd_established());
    bounded("the definition is established", established).await.unwrap();

    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("nullable.se", "v1", "ConfigMapGenerator"));
    let generators: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &resource);
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());

    struct Context {
        client: Client,
        resource: ApiResource,
        recorder: Recorder,
    }
    async fn reconcile(generator: Arc<DynamicObject>, context: Arc<Context>) -> Result<Action, kube::Error> {
        let namespace = generator.namespace().unwrap();
        let mut map =
            configmap(&generator.name_any(), &[("content", generator.data["spec"]["content"].as_str().unwrap())]);
        map.metadata.owner_references = generator.controller_owner_ref(&context.resource).map(|owner| vec![owner]);
        let maps: Api<ConfigMap> = Api::namespaced(context.client.clone(), &namespace);
        let mine = PatchParams::apply("configmapgenerator.kube-rt.nullable.se").force();
        maps.patch(&generator.name_any(), &mine, &Patch::Apply(&map)).await?;
        let generators: Api<DynamicObject> =
            Api::namespaced_with(context.client.clone(), &namespace, &context.resource);
        let status = json!({"apiVersion": "nullable.se/v1", "kind": "ConfigMapGenerator", "status": {"made": true}});
        generators.patch_status(&generator.name_any(), &mine, &Patch::Apply(status)).await?;
        let event = Event {
            type_: EventType::Normal,
            reason: "Made".into(),
            note: Some("a map".into()),
            action: "Making".into(),
            secondary: None,
        };
        context.recorder.publish(&event, &generator.object_ref(&context.resource)).await?;
        Ok(Action::requeue(Duration::from_secs(300)))
    }
    let context = Context {
        client: client.clone(),
        resource: resource.clone(),
        recorder: Recorder::new(client.clone(), Reporter::from("generator")),
    };
    let controller = Controller::new_with(generators.clone(), watcher::Config::default(), resource.clone())
        .owns(maps.clone(), watcher::Config::default())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_secs(1)), Arc::new(context))
        .for_each(|_| async {});
    let running = tokio::spawn(controller);

    let example = DynamicObject::new("timmy", &resource).data(json!({"spec": {"content": "foo"}}));
    generators.create(&PostParams::default(), &example).await.unwrap();
    let has = |text: &'static str| {
        move |map: Option<&ConfigMap>| map.and_then(|m| m.data.as_ref()).is_some_and(|data| data["content"] == text)
    };
    bounded("the map is made", await_condition(maps.clone(), "timmy", has("foo"))).await.unwrap();
    // What is owned is watched: spoiled, it is made right again.
    let spoiled = Patch::Merge(json!({"data": {"content": "spoiled"}}));
    maps.patch("timmy", &PatchParams::default(), &spoiled).await.unwrap();
    let wanted = Patch::Merge(json!({"spec": {"content": "bar"}}));
    generators.patch("timmy", &PatchParams::default(), &wanted).await.unwrap();
    bounded("the map follows", await_condition(maps.clone(), "timmy", has("bar"))).await.unwrap();
    assert_eq!(generators.get_status("timmy").await.unwrap().data["status"]["made"], true);
    let events: Api<k8s_openapi::api::events::v1::Event> = Api::default_namespaced(client.clone());
    let events = events.list(&ListParams::default()).await.unwrap();
    assert!(events.iter().any(|e| e.reason.as_deref() == Some("Made")), "the recorder's event is kept");

    // The owner goes, and the map with it.
    generators.delete("timmy", &DeleteParams::default()).await.unwrap();
    let gone = await_condition(maps, "timmy", |map: Option<&ConfigMap>| map.is_none());
    bounded("the map is collected", gone).await.unwrap();
    running.abort();
    lab.stop().await;
}

/// `examples/configmap_reflector.rs`, `examples/pod_watcher.rs` with `streaming_lists`, `Api::watch`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reflectors_and_watchers() {
    let state = tempfile::tempdir().unwrap();
    let lab = lab(&state).await;
    let client = lab.client("c1").await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    for number in 0..5 {
        maps.create(&PostParams::default(), &configmap(&format!("m{number}"), &[("n", "1")])).await.unwrap();
    }

    for config in [watcher::Config::default().page_size(2), watcher::Config::default().streaming_lists()] {
        let (reader, writer) = reflector::store();
        let stream = watcher(maps.clone(), config).default_backoff().reflect(writer).applied_objects();
        let reflecting = tokio::spawn(stream.for_each(|_| async {}));
        bounded("the store is ready", reader.wait_until_ready()).await.unwrap();
        assert!((0..5).all(|n| reader.find(|map| map.name_any() == format!("m{n}")).is_some()));
        let patch = Patch::Merge(json!({"data": {"n": "2"}}));
        maps.patch("m3", &PatchParams::default(), &patch).await.unwrap();
        bounded("the store follows", async {
            let new = |map: &ConfigMap| map.name_any() == "m3" && map.data.as_ref().unwrap()["n"] == "2";
            while reader.find(new).is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        maps.patch("m3", &PatchParams::default(), &Patch::Merge(json!({"data": {"n": "1"}}))).await.unwrap();
        reflecting.abort();
    }

    // By hand, from a version on, with a selector.
    let from = maps.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    maps.delete("m0", &DeleteParams::default()).await.unwrap();
    let params = WatchParams::default().fields("metadata.name=m0").timeout(10);
    let mut events = maps.watch(&params, &from).await.unwrap().boxed();
    let first = bounded("a first event", events.try_next()).await.unwrap();
    assert!(matches!(first, Some(WatchEvent::Deleted(map)) if map.name_any() == "m0"));
    lab.stop().await;
}

/// `examples/pod_exec.rs`, `examples/pod_portforward.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_and_portforward() {
    let state = tempfile::tempdir().unwrap();
    let lab = lab(&state).await;
    let client = lab.client("c1").await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client);
    let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "example"}, "spec": {"containers": [
        {"name": "web", "image": "stefanprodan/podinfo", "readinessProbe": {"httpGet": {"path": "/healthz", "port": 9898}}}]}}))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let ready = await_condition(pods.clone(), "example", |pod: Option<&Pod>| {
        let conditions = pod.and_then(|p| p.status.as_ref()?.conditions.clone()).unwrap_or_default();
        conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
    });
    bounded("the pod is ready", ready).await.unwrap();

    let params = AttachParams::default().stdin(true).stderr(false);
    let mut shell = pods.exec("example", ["sh"], &params).await.unwrap();
    let (mut stdin, mut stdout) = (shell.stdin().unwrap(), shell.stdout().unwrap());
    stdin.write_all(b"echo test string 1\n").await.unwrap();
    let mut echoed = [0; 14];
    bounded("what was asked for comes back", stdout.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"test string 1\n");
    let status = shell.take_status().unwrap();
    stdin.write_all(b"exit 0\n").await.unwrap();
    let status = bounded("a status", status).await.unwrap();
    assert_eq!(status.status.as_deref(), Some("Success"));
    // The server has hung up: that the client still wants to close its input is no failure.
    let _ = bounded("the shell has ended", shell.join()).await;

    let mut forwarded = pods.portforward("example", &[9898]).await.unwrap();
    let mut stream = forwarded.take_stream(9898).unwrap();
    stream.write_all(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    bounded("an answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"version\""), "{answer}");
    drop(stream);
    let _ = bounded("the forwarder ends", forwarded.join()).await;
    lab.stop().await;
}

/// The Python `kubernetes` client: list, watch, patch, create, delete, and a custom resource. Its program is found by
/// `STOLOS_PYTHON` (see `.ci/programs`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_python_client() {
    let Some(python) = programs::program("STOLOS_PYTHON") else { return };
    let state = tempfile::tempdir().unwrap();
    let lab = lab(&state).await;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client.py");
    let mut command = tokio::process::Command::new(python);
    command.arg(script).env("KUBECONFIG", lab.kubeconfig()).env("HOME", state.path()).kill_on_drop(true);
    let output = tokio::time::timeout(2 * PATIENCE, command.output()).await.expect("the script ends").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().last(), Some("all good"));
    lab.stop().await;
}
