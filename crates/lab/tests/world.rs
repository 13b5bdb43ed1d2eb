//! Whole labs: pods that answer, services by name, faults, restarts.

use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::api::{Api, AttachParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use stolos_lab::{Fault, Lab, LabCluster, LabConfig};
use tokio::io::AsyncReadExt;

fn cluster(name: &str, network: &str) -> LabCluster {
    LabCluster {
        name: name.into(),
        context: format!("context-{name}"),
        network: network.into(),
        region: Some(format!("region-{network}")),
        zone: None,
    }
}

fn config(state: &Path, clusters: &[(&str, &str)]) -> LabConfig {
    let mut config = LabConfig::new("test", state);
    config.clusters = clusters.iter().map(|(name, network)| cluster(name, network)).collect();
    config
}

async fn create<K>(client: &Client, value: Value) -> K
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned,
{
    let object: K = serde_json::from_value(value).unwrap();
    let api: Api<K> = Api::namespaced(client.clone(), "default");
    api.create(&PostParams::default(), &object).await.unwrap()
}

fn deployment(name: &str, image: &str, replicas: i32, container: Value) -> Value {
    let mut one = json!({"name": name, "image": image});
    for (field, value) in container.as_object().unwrap() {
        one[field] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}},
            "spec": {"containers": [one], "terminationGracePeriodSeconds": 1}}}})
}

fn service(name: &str, port: u16, target: u16, kind: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": kind, "selector": {"app": name},
        "ports": [{"name": "http", "port": port, "targetPort": target}]}})
}

/// Asks again and again until the answer is there.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn pods(client: &Client, app: &str) -> Vec<Pod> {
    let api: Api<Pod> = Api::namespaced(client.clone(), "default");
    api.list(&ListParams::default().labels(&format!("app={app}"))).await.unwrap().items
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

async fn ready(client: &Client, app: &str, count: usize) -> Vec<Pod> {
    until(&format!("{count} ready pods of {app}"), || async {
        let pods = pods(client, app).await;
        (pods.len() == count && pods.iter().all(is_ready)).then_some(pods)
    })
    .await
}

/// What a command in a pod writes, and its exit code as the API server tells it.
async fn exec(client: &Client, pod: &str, command: &[&str]) -> (String, String, i32) {
    let api: Api<Pod> = Api::namespaced(client.clone(), "default");
    let params = AttachParams::default().stdout(true).stderr(true).stdin(false);
    let mut process = api.exec(pod, command.to_vec(), &params).await.unwrap();
    let (mut out, mut err) = (process.stdout().unwrap(), process.stderr().unwrap());
    let status = process.take_status().unwrap();
    let (mut written, mut complaint) = (String::new(), String::new());
    let both = async { tokio::join!(out.read_to_string(&mut written), err.read_to_string(&mut complaint)) };
    let _ = tokio::time::timeout(Duration::from_secs(30), both).await.expect("a command ends");
    let status = status.await.unwrap();
    let code =
        status.details.iter().flat_map(|d| d.causes.iter().flatten()).find(|c| c.reason.as_deref() == Some("ExitCode"));
    let code = code.map_or(if status.status.as_deref() == Some("Success") { 0 } else { -1 }, |c| {
        c.message.as_ref().unwrap().parse().unwrap()
    });
    (written, complaint, code)
}

async fn shell(client: &Client, pod: &str, text: &str) -> String {
    exec(client, pod, &["sh", "-c", text]).await.0
}

fn sleeper() -> Value {
    deployment("sleep", "curlimages/curl", 1, json!({"command": ["/bin/sleep", "3650d"]}))
}

async fn host_get(address: String, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_answer_by_name_and_roll() {
    let state = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(state.path(), &[("c1", "east")])).await.unwrap();
    let client = lab.client("c1").await.unwrap();
    create::<Service>(&client, service("hello", 80, 5000, "LoadBalancer")).await;
    let image = "docker.io/istio/examples-helloworld-v1:1.0";
    let careful = json!({"readinessProbe": {"httpGet": {"path": "/health", "port": 5000}, "periodSeconds": 5},
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}});
    create::<Deployment>(&client, deployment("hello", image, 2, careful)).await;
    create::<Deployment>(&client, sleeper()).await;
    let servers = ready(&client, "hello", 2).await;
    let sleep = ready(&client, "sleep", 1).await[0].name_any();

    // A ready pod is known everywhere a moment later.
    let text = "for i in $(seq 20); do curl -s hello/hello; done | sort | uniq | wc -l";
    until("both pods answer", || async { (shell(&client, &sleep, text).await.trim() == "2").then_some(()) }).await;

    // By name, by its short forms, by the shell, from the client pod.
    for host in ["hello", "hello.default", "hello.default.svc", "hello.default.svc.cluster.local"] {
        let (out, err, code) = exec(&client, &sleep, &["curl", "-sS", &format!("{host}/hello")]).await;
        assert!(code == 0 && out.starts_with("Hello version: v1, instance: hello-"), "{host}: {out}{err}");
    }
    let (_, err, code) = exec(&client, &sleep, &["nothing-like-this"]).await;
    assert!(code == 127 && err.contains("executable file not found in $PATH"), "{err}");
    assert_eq!(exec(&client, &sleep, &["sh", "-c", "exit 7"]).await.2, 7);

    // The first log line says what it is.
    let api: Api<Pod> = Api::namespaced(client.clone(), "default");
    let log = api.logs(&servers[0].name_any(), &LogParams::default()).await.unwrap();
    assert!(log.starts_with("built-in stand-in for istio/examples-helloworld-v1"), "{log}");
    let image_id = &servers[0].status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0].image_id;
    assert!(image_id.starts_with("stolos-builtin://helloworld@sha256:"), "{image_id}");

    // From the host: the load balancer, at the moved port; not the pod.
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let ip = until("an address", || async {
        let ingress = services.get("hello").await.unwrap().status?.load_balancer?.ingress?;
        ingress.first()?.ip.clone()
    })
    .await;
    let answer = until("an answer", || host_get(format!("{ip}:20080"), "/hello")).await;
    assert!(answer.contains("Hello version: v1"), "{answer}");
    let pod_ip = servers[0].status.as_ref().unwrap().pod_ip.clone().unwrap();
    assert!(host_get(format!("{pod_ip}:5000"), "/hello").await.is_none_or(|a| a.is_empty()));
    assert!(lab.status().await.refusals.iter().any(|r| r.from == "host" && r.to == "c1"));

    // A roll without a failed request, of pods that wait until nobody asks them any more.
    let asking = {
        let (client, sleep) = (client.clone(), sleep.clone());
        let text = "i=0; while [ $i -lt 100 ]; do curl -sf -o /dev/null hello/hello || echo failed; i=$((i+1)); sleep 0.005; done";
        tokio::spawn(async move { shell(&client, &sleep, text).await })
    };
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), "default");
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "hello", "image": "istio/examples-helloworld-v2"}]}}}});
    deployments.patch("hello", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
    until("the roll", || async {
        let status = deployments.get("hello").await.unwrap();
        let (generation, status) = (status.metadata.generation, status.status?);
        let done = status.conditions?.iter().any(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"));
        (status.observed_generation == generation
            && done
            && status.updated_replicas == Some(2)
            && status.replicas == Some(2))
        .then_some(())
    })
    .await;
    assert_eq!(asking.await.unwrap(), "");
    assert!(shell(&client, &sleep, "curl -s hello/hello").await.starts_with("Hello version: v2"));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_environment_and_unknown_images() {
    let state = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(state.path(), &[("c1", "east")])).await.unwrap();
    let client = lab.client("c1").await.unwrap();
    create::<ConfigMap>(&client, json!({"metadata": {"name": "config"}, "data": {"a.txt": "one", "REGION": "eu"}}))
        .await;
    let container = json!({
        "command": ["sleep", "infinity"],
        "env": [
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "REGION", "valueFrom": {"configMapKeyRef": {"name": "config", "key": "REGION"}}},
            {"name": "GREETING", "value": "hello $(REGION)"},
        ],
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/config"},
            {"name": "late", "mountPath": "/etc/late"},
            {"name": "about", "mountPath": "/etc/about"},
        ],
    });
    let mut pod = deployment("files", "busybox:1", 1, container);
    pod["spec"]["template"]["spec"]["volumes"] = json!([
        {"name": "config", "configMap": {"name": "config"}},
        {"name": "late", "secret": {"secretName": "late"}},
        {"name": "about", "projected": {"sources": [
            {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"configMap": {"name": "not-there", "optional": true}},
            {"serviceAccountToken": {"path": "token", "audience": "istio-ca", "expirationSeconds": 3600}},
        ]}},
    ]);
    create::<Deployment>(&client, pod).await;
    create::<Deployment>(&client, deployment("odd", "example.com/odd:1", 1, json!({}))).await;

    // Waits for its Secret, and says so.
    until("a waiting pod", || async {
        pods(&client, "files").await.into_iter().find(|p| p.spec.as_ref().unwrap().node_name.is_some())
    })
    .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!is_ready(&pods(&client, "files").await[0]));
    create::<Secret>(&client, json!({"metadata": {"name": "late"}, "stringData": {"key": "s3cret"}})).await;
    let name = ready(&client, "files", 1).await[0].name_any();
    let text = "cat /etc/config/a.txt /etc/late/key; echo; grep -c app= /etc/about/labels; cut -d. -f1 /etc/about/token | wc -c; echo $POD $REGION $GREETING";
    let out = shell(&client, &name, text).await;
    let lines: Vec<_> = out.lines().collect();
    assert_eq!((lines[0], lines[1]), ("ones3cret", "1"));
    assert!(lines[2].trim().parse::<usize>().unwrap() > 10, "a token is there");
    assert_eq!(lines[3], format!("{name} eu hello eu"));

    // Files follow their objects.
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    maps.patch("config", &PatchParams::default(), &Patch::Merge(json!({"data": {"a.txt": "two"}}))).await.unwrap();
    until("a fresh file", || async { (shell(&client, &name, "cat /etc/config/a.txt").await == "two").then_some(()) })
        .await;

    // The API server answers the pod's own token, over TLS, at the address every pod is given.
    let text = "curl -sS --cacert /var/run/secrets/kubernetes.io/serviceaccount/ca.crt -o /dev/null -w '%{http_code}' \
        -H \"Authorization: Bearer $(cat /var/run/secrets/kubernetes.io/serviceaccount/token)\" \
        https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/version";
    assert_eq!(shell(&client, &name, text).await, "200");

    let waiting = until("an image error", || async {
        let status = pods(&client, "odd").await.pop()?.status?;
        status
            .container_statuses?
            .first()?
            .state
            .clone()?
            .waiting
            .filter(|w| w.reason.as_deref() == Some("ErrImagePull"))
    })
    .await;
    let message = waiting.message.unwrap();
    assert!(message.contains("example.com/odd:1") && message.contains("stefanprodan/podinfo"), "{message}");
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn networks_part_and_meet_again() {
    let state = tempfile::tempdir().unwrap();
    let lab = Lab::start(config(state.path(), &[("e1", "east"), ("e2", "east"), ("w1", "west")])).await.unwrap();
    let (e1, e2, w1) =
        (lab.client("e1").await.unwrap(), lab.client("e2").await.unwrap(), lab.client("w1").await.unwrap());
    for client in [&e2, &w1] {
        create::<Deployment>(client, deployment("hello", "istio/examples-helloworld-v1", 1, json!({}))).await;
        create::<Service>(client, service("hello", 5000, 5000, "LoadBalancer")).await;
    }
    create::<Deployment>(&e1, sleeper()).await;
    let ip = |pods: Vec<Pod>| pods[0].status.as_ref().unwrap().pod_ip.clone().unwrap();
    let (near, far) = (ip(ready(&e2, "hello", 1).await), ip(ready(&w1, "hello", 1).await));
    let sleep = ready(&e1, "sleep", 1).await[0].name_any();
    let balancer = until("an address", || async {
        let services: Api<Service> = Api::namespaced(w1.clone(), "default");
        services.get("hello").await.unwrap().status?.load_balancer?.ingress?.first()?.ip.clone()
    })
    .await;
    let get_within = |host: String, seconds: &'static str| {
        let (client, sleep) = (e1.clone(), sleep.clone());
        async move {
            exec(&client, &sleep, &["curl", "-s", "-m", seconds, "-o", "/dev/null", &format!("{host}:5000/hello")])
                .await
                .2
        }
    };
    let get = |host: String| get_within(host, "10");
    assert_eq!(get(near.clone()).await, 0, "the same network");
    assert_eq!(get(far.clone()).await, 7, "another network: no route");
    until("the balancer", || async { (get(balancer.clone()).await == 0).then_some(()) }).await;

    lab.fault(&Fault::Partition { what: "west".into() }).await.unwrap();
    assert_eq!(get_within(balancer.clone(), "0.5").await, 28, "a partition is silence");
    assert_eq!(get(near.clone()).await, 0);
    assert!(lab.status().await.clusters.iter().any(|c| c.cluster.name == "w1" && c.cut_off));
    lab.fault(&Fault::Heal { what: None }).await.unwrap();
    assert_eq!(get(balancer.clone()).await, 0);
    let unknown = lab.fault(&Fault::Partition { what: "north".into() }).await.unwrap_err().to_string();
    assert!(
        unknown.contains("no cluster or network `north`") && unknown.contains("e1, e2, east, w1, west"),
        "{unknown}"
    );

    // A killed pod comes back under its own name and address.
    let name = pods(&w1, "hello").await[0].name_any();
    lab.fault(&Fault::KillPod { cluster: "w1".into(), namespace: "default".into(), pod: name.clone() }).await.unwrap();
    until("a restart", || async {
        let pod = pods(&w1, "hello").await.into_iter().find(|p| p.name_any() == name)?;
        let restarts = pod.status.as_ref()?.container_statuses.as_ref()?[0].restart_count;
        (restarts == 1 && is_ready(&pod)).then_some(())
    })
    .await;
    until("an answer after the restart", || async { (get(balancer.clone()).await == 0).then_some(()) }).await;

    // A killed cluster is gone, and comes back with what it had.
    lab.fault(&Fault::KillCluster { cluster: "w1".into() }).await.unwrap();
    assert_ne!(get_within(balancer.clone(), "0.5").await, 0);
    lab.fault(&Fault::Start { cluster: "w1".into() }).await.unwrap();
    until("the cluster is back", || async { (get(balancer.clone()).await == 0).then_some(()) }).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_lab_comes_back_where_it_was() {
    let state = tempfile::tempdir().unwrap();
    let clusters = [("c1", "east"), ("c2", "east")];
    let lab = Lab::start(config(state.path(), &clusters)).await.unwrap();
    let client = lab.client("c1").await.unwrap();
    create::<Deployment>(&client, deployment("hello", "istio/examples-helloworld-v1", 1, json!({}))).await;
    let before = ready(&client, "hello", 1).await;
    let kubeconfig = std::fs::read_to_string(lab.kubeconfig()).unwrap();
    let servers: Vec<_> = lab.status().await.clusters.into_iter().map(|c| c.server).collect();

    // The outside: through the file, the socket and TLS.
    let options = kube::config::KubeConfigOptions { context: Some("context-c1".into()), ..Default::default() };
    let parsed = kube::config::Kubeconfig::from_yaml(&kubeconfig).unwrap();
    let outside = kube::Config::from_custom_kubeconfig(parsed, &options).await.unwrap();
    let outside = Client::try_from(outside).unwrap();
    let version = outside.apiserver_version().await.unwrap();
    assert!(version.git_version.ends_with("+stolos") && version.git_tree_state == "stolos-lab", "{version:?}");
    assert_eq!(pods(&outside, "hello").await.len(), 1);
    let again = Lab::start(config(state.path(), &clusters)).await.err().unwrap().to_string();
    assert!(again.contains("is running already"), "{again}");
    let told = stolos_lab::socket::status(state.path()).await.unwrap();
    assert_eq!(told["clusters"][0]["name"], "c1");
    stolos_lab::socket::down(state.path()).await.unwrap();
    lab.asked_down().await;
    lab.stop().await;
    assert!(stolos_lab::socket::status(state.path()).await.is_err());

    // While it was down, another lab may have found its addresses free: that one ends, and gives them back.
    let ours = state.path().canonicalize().unwrap().display().to_string();
    let lab = until("the addresses are free", || async {
        match Lab::start(config(state.path(), &[])).await {
            Err(stolos_lab::Error::AddressesHeld { holder, .. }) if !holder.contains(&ours) => None,
            started => Some(started.unwrap()),
        }
    })
    .await;
    assert_eq!(lab.status().await.clusters.into_iter().map(|c| c.server).collect::<Vec<_>>(), servers);
    assert_eq!(std::fs::read_to_string(lab.kubeconfig()).unwrap(), kubeconfig, "kubeconfigs stay good");
    let client = lab.client("c1").await.unwrap();
    let after = until("the pod runs again", || async {
        let pods = pods(&client, "hello").await;
        let restarts = pods.first()?.status.as_ref()?.container_statuses.as_ref()?[0].restart_count;
        (pods.len() == 1 && is_ready(&pods[0]) && restarts == 1).then_some(pods)
    })
    .await;
    let ip = |pods: &[Pod]| pods[0].status.as_ref().unwrap().pod_ip.clone();
    assert_eq!((after[0].uid(), ip(&after)), (before[0].uid(), ip(&before)));
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_api_server_is_slow_from_outside_alone() {
    let state = tempfile::tempdir().unwrap();
    let mut slow = config(state.path(), &[("c1", "net")]);
    slow.api_delay = Duration::from_millis(60);
    let lab = Lab::start(slow).await.unwrap();
    let parsed = kube::config::Kubeconfig::read_from(lab.kubeconfig()).unwrap();
    let outside = kube::Config::from_custom_kubeconfig(parsed, &Default::default()).await.unwrap();
    let outside = Client::try_from(outside).unwrap();
    outside.apiserver_version().await.unwrap();
    let start = Instant::now();
    outside.apiserver_version().await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(60));
    let inside = lab.client("c1").await.unwrap();
    create::<Deployment>(&inside, deployment("hello", "istio/examples-helloworld-v2", 1, json!({}))).await;
    ready(&inside, "hello", 1).await;
    lab.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_labs_side_by_side_do_not_meet() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = Instant::now();
    let labs = tokio::join!(
        Lab::start(config(one.path(), &[("c1", "net"), ("c2", "net"), ("c3", "other")])),
        Lab::start(config(two.path(), &[("c1", "net")]))
    );
    let (one, two) = (labs.0.unwrap(), labs.1.unwrap());
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    let (c1, other) = (one.client("c1").await.unwrap(), two.client("c1").await.unwrap());
    create::<Deployment>(&c1, sleeper()).await;
    create::<Deployment>(&other, deployment("hello", "istio/examples-helloworld-v1", 1, json!({}))).await;
    let ip = ready(&other, "hello", 1).await[0].status.as_ref().unwrap().pod_ip.clone().unwrap();
    let sleep = ready(&c1, "sleep", 1).await[0].name_any();
    let code = exec(&c1, &sleep, &["curl", "-s", "-m", "1", &format!("{ip}:5000/hello")]).await.2;
    assert_eq!(code, 7, "a pod of another lab is nobody");
    tokio::join!(one.stop(), two.stop());
}
