//! What pods have and how many there are: volume claims (what a pod wrote is there when it comes again, also in a lab that
//! was stopped, and gone with its claim), and autoscalers that act on what is measured.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Event, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use stolos_lab::{Lab, LabConfig};

async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(180);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn lines(path: &Path, count: usize) {
    let written = async || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        (text == "here\n".repeat(count)).then_some(())
    };
    until(&format!("{count} lines in {}", path.display()), written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_wrote_stays_with_its_claim() {
    let state = tempfile::tempdir().unwrap();
    let lab = Lab::start(LabConfig::with_counts(state.path(), 1, 1)).await.unwrap();
    let client = lab.client("cluster-1").await.unwrap();
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let set = json!({"metadata": {"name": "db"}, "spec": {"serviceName": "db", "replicas": 1,
        "selector": {"matchLabels": {"app": "db"}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "c", "image": "busybox", "command": ["sh", "-c", "cat /sub/first || echo one > /sub/first; echo here >> /data/log; sleep infinity"],
                "volumeMounts": [{"name": "data", "mountPath": "/data"},
                    {"name": "data", "mountPath": "/sub", "subPath": "deep/below"}]}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}]}});
    let classes: Api<k8s_openapi::api::storage::v1::StorageClass> = Api::all(client.clone());
    until("the default class", async || classes.get_opt("standard").await.ok().flatten()).await;
    sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    let bound = async || {
        let claim = claims.get_opt("data-db-0").await.unwrap()?;
        let phase = claim.status.as_ref().and_then(|status| status.phase.clone());
        (phase.as_deref() == Some("Bound")).then_some(claim)
    };
    let claim = until("the claim is bound", bound).await;
    let spec = claim.spec.unwrap();
    assert_eq!(spec.storage_class_name.as_deref(), Some("standard"));
    assert_eq!(claim.status.unwrap().capacity.unwrap()["storage"].0, "1Gi");
    assert_eq!(claim.metadata.labels.unwrap()["app"], "db");
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let volume = volumes.get(spec.volume_name.as_deref().unwrap()).await.unwrap();
    assert_eq!(volume.status.unwrap().phase.as_deref(), Some("Bound"));
    let folder = PathBuf::from(volume.spec.unwrap().host_path.unwrap().path);
    lines(&folder.join("log"), 1).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    pods.delete("db-0", &DeleteParams::default()).await.unwrap();
    lines(&folder.join("log"), 2).await;
    assert_eq!(std::fs::read_to_string(folder.join("deep/below/first")).unwrap(), "one\n");
    let said = async || pods.logs("db-0", &Default::default()).await.ok().filter(|said| said == "one\n");
    until("it finds what it wrote", said).await;
    lab.stop().await;

    let lab = Lab::start(LabConfig::with_counts(state.path(), 1, 1)).await.unwrap();
    lines(&folder.join("log"), 3).await;
    let client = lab.client("cluster-1").await.unwrap();
    // A pod of a claim that is not there waits for it, and says so.
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let lonely = json!({"metadata": {"name": "lonely"}, "spec": {"terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "infinity"]}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "nothing"}}]}});
    pods.create(&PostParams::default(), &serde_json::from_value(lonely).unwrap()).await.unwrap();
    let told = async || {
        let conditions = pods.get("lonely").await.unwrap().status?.conditions?;
        conditions.into_iter().find(|condition| condition.type_ == "PodScheduled")?.message
    };
    let told = until("why it waits", told).await;
    assert_eq!(told, "0/1 nodes are available: persistentvolumeclaim \"nothing\" not found.");

    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), "default");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    sets.delete("db", &DeleteParams::default()).await.unwrap();
    until("the set's pod is gone", async || pods.get_opt("db-0").await.unwrap().is_none().then_some(())).await;
    assert!(folder.exists(), "the claim outlives its set");
    claims.delete("data-db-0", &DeleteParams::default()).await.unwrap();
    let empty = async || volumes.list(&Default::default()).await.unwrap().items.is_empty().then_some(());
    until("the volume is gone with its claim", empty).await;
    until("its folder is gone", async || (!folder.exists()).then_some(())).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_waits_for_its_volume_and_for_its_class() {
    let state = tempfile::tempdir().unwrap();
    let lab = Lab::start(LabConfig::with_counts(state.path(), 1, 1)).await.unwrap();
    let client = lab.client("cluster-1").await.unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let phase = async |name: &str, wanted: &str| {
        let claim = claims.get(name).await.unwrap();
        (claim.status?.phase? == wanted).then_some(claim.spec?.volume_name.unwrap_or_default())
    };
    for (name, class) in [("by-hand", ""), ("of-a-class", "late")] {
        let claim = json!({"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": class, "resources": {"requests": {"storage": "1Gi"}}}});
        claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
    }
    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let why = async || {
        let told = events.list(&ListParams::default()).await.unwrap().items;
        let mut told: Vec<_> = told.into_iter().map(|event| (event.reason.unwrap_or_default(), event.count)).collect();
        told.sort();
        (told.len() == 2).then_some(told)
    };
    let told = until("why they wait", why).await;
    assert_eq!(told, [("FailedBinding".to_owned(), Some(1)), ("ProvisioningFailed".to_owned(), Some(1))]);

    for (name, size) in [("small", "1Mi"), ("large", "2Gi")] {
        let volume = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": size},
            "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/nowhere"}}});
        volumes.create(&PostParams::default(), &serde_json::from_value(volume).unwrap()).await.unwrap();
    }
    assert_eq!(until("the claim has its volume", async || phase("by-hand", "Bound").await).await, "large");
    let is = async |name: &str, wanted: &str| {
        let phase = volumes.get(name).await.unwrap().status.unwrap_or_default().phase;
        (phase.as_deref() == Some(wanted)).then_some(())
    };
    until("nobody wants the small one", async || is("small", "Available").await).await;
    let classes: Api<k8s_openapi::api::storage::v1::StorageClass> = Api::all(client.clone());
    let class = json!({"metadata": {"name": "late"}, "provisioner": "stolos.dev/folder"});
    classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    until("the claim has a volume of its class", async || phase("of-a-class", "Bound").await).await;
    claims.delete("by-hand", &DeleteParams::default()).await.unwrap();
    until("what was made by hand is kept", async || is("large", "Released").await).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn there_are_as_many_pods_as_what_is_measured_asks_for() {
    let state = tempfile::tempdir().unwrap();
    let lab = Lab::start(LabConfig::with_counts(state.path(), 1, 1)).await.unwrap();
    let client = lab.client("cluster-1").await.unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), "default");
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteMany"],
        "storageClassName": "standard", "resources": {"requests": {"storage": "1Gi"}}}});
    claims.create(&PostParams::default(), &serde_json::from_value(claim).unwrap()).await.unwrap();
    // Busy until a file in their volume says that it is enough.
    let busy = "while [ ! -e /data/enough ]; do sleep 0.01; done; sleep infinity";
    let deployment = json!({"metadata": {"name": "busy"}, "spec": {"replicas": 1,
        "selector": {"matchLabels": {"app": "busy"}},
        "template": {"metadata": {"labels": {"app": "busy"}}, "spec": {"terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "busybox", "command": ["sh", "-c", busy],
                "resources": {"requests": {"cpu": "1m"}}, "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}}}});
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment).unwrap()).await.unwrap();
    let scalers: Api<HorizontalPodAutoscaler> = Api::namespaced(client.clone(), "default");
    let scaler = json!({"metadata": {"name": "busy"}, "spec": {"minReplicas": 1, "maxReplicas": 3,
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "busy"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu",
            "target": {"type": "Utilization", "averageUtilization": 50}}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}}}});
    scalers.create(&PostParams::default(), &serde_json::from_value(scaler).unwrap()).await.unwrap();

    let ready = async |count: i32| {
        let status = deployments.get("busy").await.unwrap().status.unwrap_or_default();
        (status.replicas == Some(count) && status.ready_replicas == Some(count)).then_some(())
    };
    let says = async |current: i32, wanted: i32, limited: &str| {
        let status = serde_json::to_value(scalers.get("busy").await.unwrap().status).unwrap();
        let limit = status["conditions"].as_array()?.iter().find(|one| one["type"] == "ScalingLimited")?;
        let seen = (&status["currentReplicas"], &status["desiredReplicas"], &limit["reason"]);
        (seen == (&json!(current), &json!(wanted), &json!(limited))).then_some(status)
    };
    until("there are three", async || ready(3).await).await;
    // Three times so many are wanted again, and there may be no more.
    let status = until("it says so", async || says(3, 3, "TooManyReplicas").await).await;
    let current = &status["currentMetrics"][0]["resource"]["current"];
    assert!(current["averageUtilization"].as_i64().unwrap() > 50, "{status}");
    assert!(status["lastScaleTime"].is_string(), "{status}");
    let volume = claims.get("data").await.unwrap().spec.unwrap().volume_name.unwrap();
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let folder = volumes.get(&volume).await.unwrap().spec.unwrap().host_path.unwrap().path;
    std::fs::write(Path::new(&folder).join("enough"), "").unwrap();
    until("there is one", async || ready(1).await).await;
    let events: Api<Event> = Api::namespaced(client.clone(), "default");
    let told = async || {
        let told = events.list(&ListParams::default().fields("reason=SuccessfulRescale")).await.unwrap().items;
        let told: Vec<Value> = told.into_iter().map(|event| json!(event.message)).collect();
        told.iter().any(|one| one.as_str().is_some_and(|one| one.starts_with("New size: 1;"))).then_some(told)
    };
    let mut told = until("both are told", told).await;
    // What they used before they heard that it is enough may ask for two for one round more.
    told.retain(|one| one.as_str().is_some_and(|one| !one.starts_with("New size: 2;")));
    told.sort_by_key(ToString::to_string);
    assert_eq!(
        told,
        [
            "New size: 1; reason: All metrics below target",
            "New size: 3; reason: cpu resource utilization (percentage of request) above target"
        ]
    );
    lab.stop().await;
}
