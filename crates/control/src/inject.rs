//! The sidecar injector: completes pods as they are created (Istio 1.30, section 18).
//!
//! [`inject`] is pure: a pod, its namespace and the values in, the completed pod out, or nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State as Extract};
use axum::{Json, Router, routing::post};
use base64::Engine as _;
use serde_json::{Map, Value, json};
use stolos_k8s::istio;
use tokio::sync::watch;

use crate::Config;
use crate::metrics::Metrics;
use crate::state::State;

/// What is the same for all pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Values {
    /// The proxy's image.
    pub image: String,
    /// The control plane's namespace.
    pub namespace: String,
    /// Its Service's name.
    pub istiod: String,
    /// Its revision.
    pub revision: String,
    /// The cluster's ID.
    pub cluster: String,
    /// Its network.
    pub network: String,
    /// The mesh.
    pub mesh: String,
    /// The trust domain.
    pub trust_domain: String,
    /// The DNS suffix.
    pub domain: String,
    /// What every proxy's environment says, from the mesh's `defaultConfig.proxyMetadata`.
    pub proxy_metadata: BTreeMap<String, String>,
    /// The network was given by the webhook's URL: it becomes a label, too.
    pub network_from_path: bool,
}

impl Values {
    /// From the environment, then the ConfigMap's `values`.
    #[must_use]
    pub fn read(config: &Config, data: &BTreeMap<String, String>, trust_domain: &str, own_network: &str) -> Self {
        let values: Value =
            data.get(istio::VALUES_KEY).and_then(|text| serde_saphyr::from_str(text).ok()).unwrap_or_default();
        let mesh_config: Value =
            data.get(istio::MESH_KEY).and_then(|text| serde_saphyr::from_str(text).ok()).unwrap_or_default();
        let text = |path: &str| values.pointer(path).and_then(Value::as_str).filter(|text| !text.is_empty());
        let hub = text("/global/hub").unwrap_or("stolos");
        let tag = text("/global/tag").unwrap_or(env!("CARGO_PKG_VERSION"));
        let image = text("/global/proxy/image").unwrap_or("proxy");
        let network = text("/global/network").or(config.network.as_deref()).unwrap_or(own_network);
        let mesh = if config.mesh.is_empty() { text("/global/meshID").unwrap_or_default() } else { &config.mesh };
        Self {
            image: if image.contains('/') { image.to_owned() } else { format!("{hub}/{image}:{tag}") },
            namespace: config.namespace.clone(),
            istiod: istio::with_revision(istio::ISTIOD, &config.revision),
            revision: config.revision.clone(),
            cluster: config.cluster.clone(),
            network: network.to_owned(),
            mesh: mesh.to_owned(),
            trust_domain: trust_domain.to_owned(),
            domain: text("/global/proxy/clusterDomain").unwrap_or(istio::DEFAULT_DOMAIN).to_owned(),
            proxy_metadata: metadata(mesh_config.pointer("/defaultConfig/proxyMetadata")),
            network_from_path: false,
        }
    }

    /// With what the webhook's URL says: `/inject/cluster/<id>/net/<network>`.
    fn with_path(mut self, path: &str) -> Self {
        let parts: Vec<_> = path.split('/').filter(|part| !part.is_empty()).collect();
        for pair in parts.chunks_exact(2) {
            let value = pair[1].replace("--slash--", "/");
            match pair[0] {
                "cluster" => self.cluster = value,
                "net" => (self.network, self.network_from_path) = (value, true),
                _ => {}
            }
        }
        self
    }
}

/// Names and texts of a `proxyMetadata`.
fn metadata(given: Option<&Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    given.and_then(Value::as_object).into_iter().flatten().map(|(name, value)| (name.clone(), text(value))).collect()
}

/// The webhook.
pub(crate) fn webhook(config: Config, state: State, metrics: Arc<Metrics>) -> Router {
    let (values, worlds) = (state.values.clone(), state.worlds.clone());
    let shared = Arc::new(Webhook { config, values, worlds, metrics });
    let whole = |Extract(webhook): Extract<Arc<Webhook>>, Json(review): Json<Value>| async move {
        Json(webhook.review(&review, ""))
    };
    let with_path = |Extract(webhook): Extract<Arc<Webhook>>, Path(path): Path<String>, Json(review): Json<Value>| async move {
        Json(webhook.review(&review, &path))
    };
    Router::new()
        .route("/inject", post(whole))
        .route("/inject/{*path}", post(with_path))
        .layer(axum::extract::DefaultBodyLimit::max(8 << 20))
        .with_state(shared)
}

struct Webhook {
    config: Config,
    values: watch::Receiver<Arc<BTreeMap<String, String>>>,
    worlds: watch::Receiver<Arc<crate::model::World>>,
    metrics: Arc<Metrics>,
}

impl Webhook {
    fn review(&self, review: &Value, path: &str) -> Value {
        let (trust_domain, network) = {
            let world = self.worlds.borrow();
            let network = world.cluster(&self.config.cluster).map(|cluster| cluster.network.to_string());
            (world.settings.trust_domain.clone(), network.unwrap_or_default())
        };
        let values = Values::read(&self.config, &self.values.borrow(), &trust_domain, &network).with_path(path);
        let answer = answer(review, &values);
        self.metrics.injection(answer.pointer("/response/patch").is_some());
        answer
    }
}

/// The AdmissionReview that answers one.
#[must_use]
pub fn answer(review: &Value, values: &Values) -> Value {
    let empty = Value::Null;
    let request = review.get("request").unwrap_or(&empty);
    let namespace = request.get("namespace").and_then(Value::as_str).unwrap_or_default();
    let mut response = json!({"uid": request.get("uid").cloned().unwrap_or_default(), "allowed": true});
    let pod = request.get("object").unwrap_or(&empty);
    if let Some(injected) = inject(pod, namespace, values) {
        let patch = json_patch::diff(pod, &injected);
        let patch = serde_json::to_vec(&patch).unwrap_or_default();
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(base64::engine::general_purpose::STANDARD.encode(patch));
    }
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
}

/// The pod with a proxy, or `None` when it is not to have one.
#[must_use]
pub fn inject(pod: &Value, namespace: &str, values: &Values) -> Option<Value> {
    if !is_wanted(pod, namespace) {
        return None;
    }
    let templates = annotation(pod, istio::TEMPLATES_ANNOTATION).unwrap_or(istio::SIDECAR_TEMPLATE);
    let gateway = templates.split(',').any(|template| template.trim() == istio::GATEWAY_TEMPLATE);
    let mut out = pod.clone();
    let own = pod
        .pointer("/spec/containers")
        .and_then(Value::as_array)
        .and_then(|all| all.iter().find(|container| container["name"] == istio::PROXY_CONTAINER));
    let container = container(pod, namespace, values, gateway, own);

    let spec = object_at(&mut out, "spec");
    let containers = array_at(spec, "containers");
    match containers.iter_mut().find(|have| have["name"] == istio::PROXY_CONTAINER) {
        Some(have) => *have = container,
        None => containers.push(container),
    }
    let volumes = array_at(spec, "volumes");
    let mut added = Vec::new();
    for volume in volumes_of() {
        if volumes.iter().all(|have| have["name"] != volume["name"]) {
            added.push(volume["name"].clone());
            volumes.push(volume);
        }
    }
    if gateway {
        // As in Istio: a gateway may bind any port its user asks for.
        spec.entry("securityContext").or_insert_with(|| json!({}));
    }

    let (name, revision) = canonical(pod);
    let metadata = object_at(&mut out, "metadata");
    let labels = object_at_map(metadata, "labels");
    let mut label = |key: &str, value: &str| {
        labels.entry(key).or_insert_with(|| json!(value));
    };
    if !gateway {
        label(istio::TLS_MODE_LABEL, istio::TLS_MODE_ISTIO);
    }
    label(istio::CANONICAL_NAME_LABEL, &name);
    label(istio::CANONICAL_REVISION_LABEL, &revision);
    if values.network_from_path {
        label(istio::NETWORK_LABEL, &values.network);
    }
    let annotations = object_at_map(metadata, "annotations");
    annotations.insert(istio::REVISION_ANNOTATION.to_owned(), json!(values.revision));
    let status = json!({"initContainers": null, "containers": [istio::PROXY_CONTAINER], "volumes": added,
        "imagePullSecrets": null, "revision": values.revision});
    annotations.insert(istio::STATUS_ANNOTATION.to_owned(), json!(status.to_string()));
    Some(out)
}

/// Whether a pod that the webhook was asked about gets a proxy: which selector led here is the API server's business.
fn is_wanted(pod: &Value, namespace: &str) -> bool {
    if pod.get("spec").is_none() || istio::NEVER_INJECTED_NAMESPACES.contains(&namespace) {
        return false;
    }
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return false;
    }
    if annotation(pod, istio::STATUS_ANNOTATION).is_some() {
        // Once is enough: the webhook may be called again.
        return false;
    }
    let label = pod.get("metadata").and_then(|m| m.get("labels")).and_then(|l| l.get(istio::INJECT_LABEL));
    let said = label.and_then(Value::as_str).or_else(|| annotation(pod, istio::INJECT_LABEL));
    said != Some("false")
}

fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

fn label<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.get("metadata")?.get("labels")?.get(name)?.as_str()
}

/// The workload: kind, API version and name of what the pod was made by.
fn workload(pod: &Value) -> (String, String, String) {
    let owners = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let owner = owners.into_iter().flatten().find(|owner| owner["controller"] == true);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match owner {
        Some(owner) if owner["kind"] == "ReplicaSet" => {
            let name = text(&owner["name"]);
            let hash = label(pod, "pod-template-hash").map(|hash| format!("-{hash}"));
            match hash.and_then(|hash| name.strip_suffix(&hash).map(str::to_owned)) {
                Some(deployment) => ("deployments".to_owned(), "apps/v1".to_owned(), deployment),
                None => ("replicasets".to_owned(), "apps/v1".to_owned(), name),
            }
        }
        Some(owner) => {
            (format!("{}s", text(&owner["kind"]).to_lowercase()), text(&owner["apiVersion"]), text(&owner["name"]))
        }
        None => {
            let name = pod.pointer("/metadata/name").or_else(|| pod.pointer("/metadata/generateName"));
            let name = name.and_then(Value::as_str).unwrap_or_default().trim_end_matches('-');
            ("pods".to_owned(), "v1".to_owned(), name.to_owned())
        }
    }
}

fn canonical(pod: &Value) -> (String, String) {
    let first = |names: &[&str]| names.iter().find_map(|name| label(pod, name)).map(str::to_owned);
    let name = first(&[istio::CANONICAL_NAME_LABEL, "app.kubernetes.io/name", istio::APP_LABEL]);
    let revision = first(&[istio::CANONICAL_REVISION_LABEL, "app.kubernetes.io/version", istio::VERSION_LABEL]);
    (name.unwrap_or_else(|| workload(pod).2), revision.unwrap_or_else(|| "latest".to_owned()))
}

fn container(pod: &Value, namespace: &str, values: &Values, gateway: bool, own: Option<&Value>) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}});
    let plain = |name: &str, value: &str| json!({"name": name, "value": value});
    let (kind, api_version, name) = workload(pod);
    let all = pod.pointer("/spec/containers").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let applications = all.iter().filter(|container| container["name"] != istio::PROXY_CONTAINER);
    let ports: Vec<_> = applications.clone().flat_map(|c| c["ports"].as_array().into_iter().flatten()).collect();
    let names: Vec<_> = applications.filter_map(|container| container["name"].as_str()).collect();
    let discovery = format!("{}.{}.svc:{}", values.istiod, values.namespace, istio::XDS_PORT);
    let owner = format!("kubernetes://apis/{api_version}/namespaces/{namespace}/{kind}/{name}");
    let mut config = json!({"discoveryAddress": discovery, "meshId": values.mesh});
    let own_config = own_config(pod);
    for (key, value) in own_config.iter().filter(|(key, _)| *key != "proxyMetadata") {
        config[key] = value.clone();
    }
    let mut env = vec![
        plain("PILOT_CERT_PROVIDER", "istiod"),
        plain("CA_ADDR", &discovery),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("HOST_IP", "status.hostIP"),
        plain("TRUST_DOMAIN", &values.trust_domain),
        plain("PROXY_CONFIG", &config.to_string()),
        plain("ISTIO_META_CLUSTER_ID", &values.cluster),
        plain("ISTIO_META_NETWORK", &values.network),
        field("ISTIO_META_NODE_NAME", "spec.nodeName"),
        plain("ISTIO_META_MESH_ID", &values.mesh),
        plain("ISTIO_META_WORKLOAD_NAME", &name),
        plain("ISTIO_META_OWNER", &owner),
        plain("ISTIO_META_POD_PORTS", &json!(ports).to_string()),
        plain("ISTIO_META_APP_CONTAINERS", &names.join(",")),
        plain("ISTIO_META_INTERCEPTION_MODE", if gateway { "NONE" } else { "REDIRECT" }),
        // Services that exist only in another cluster have names in the mesh alone. Istio's own default is off.
        plain("ISTIO_META_DNS_CAPTURE", if gateway { "false" } else { "true" }),
    ];
    if let Some(proxy) = annotation(pod, istio::PROXY_ANNOTATION) {
        env.push(plain(istio::PROXY_ENV, proxy));
    }
    // The pod's own word goes before the mesh's.
    let own_metadata = metadata(own_config.get("proxyMetadata"));
    for (name, text) in values.proxy_metadata.iter().chain(&own_metadata) {
        env.retain(|have| have["name"] != name.as_str());
        env.push(plain(name, text));
    }
    let kind = if gateway { "router" } else { "sidecar" };
    let domain = format!("$(POD_NAMESPACE).svc.{}", values.domain);
    let mut container = json!({
        "name": istio::PROXY_CONTAINER,
        "image": values.image,
        "args": ["proxy", kind, "--domain", domain],
        "env": env,
        "ports": [{"name": "http-envoy-prom", "containerPort": istio::PROXY_METRICS_PORT, "protocol": "TCP"}],
        "readinessProbe": {
            "httpGet": {"path": istio::HEALTH_PATH, "port": istio::HEALTH_PORT},
            "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 4,
        },
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "privileged": false,
            "readOnlyRootFilesystem": true, "runAsGroup": istio::PROXY_UID, "runAsNonRoot": true,
            "runAsUser": istio::PROXY_UID,
        },
        "volumeMounts": [
            {"name": "workload-socket", "mountPath": "/var/run/secrets/workload-spiffe-uds"},
            {"name": istio::ROOT_VOLUME, "mountPath": istio::ROOT_MOUNT},
            {"name": istio::TOKEN_VOLUME, "mountPath": istio::TOKEN_MOUNT},
            {"name": "istio-data", "mountPath": "/var/lib/istio/data"},
            {"name": "istio-envoy", "mountPath": "/etc/istio/proxy"},
            {"name": istio::POD_INFO_VOLUME, "mountPath": istio::POD_INFO_MOUNT},
        ],
    });
    let Some(own) = own.and_then(Value::as_object) else { return container };
    // What the user wrote stays; lists are united by name or path.
    let Some(fields) = container.as_object_mut() else { return container };
    for (field, value) in own {
        match (field.as_str(), value) {
            ("image", image) if image == istio::AUTO_IMAGE => {}
            ("env" | "ports" | "volumeMounts", Value::Array(own)) => {
                let key = match field.as_str() {
                    "ports" => "containerPort",
                    "volumeMounts" => "mountPath",
                    _ => "name",
                };
                let list = array_at(fields, field);
                list.retain(|have| own.iter().all(|own| own[key] != have[key]));
                list.extend(own.iter().cloned());
            }
            _ => _ = fields.insert(field.clone(), value.clone()),
        }
    }
    container
}

/// What a pod's annotation says of its proxy, over the mesh's configuration; what is not YAML says nothing.
fn own_config(pod: &Value) -> Map<String, Value> {
    let text = annotation(pod, istio::PROXY_CONFIG_ANNOTATION).unwrap_or_default();
    match serde_saphyr::from_str(text) {
        Ok(Value::Object(config)) => config,
        _ => Map::new(),
    }
}

fn volumes_of() -> Vec<Value> {
    let item = |path: &str, field: &str| json!({"path": path, "fieldRef": {"apiVersion": "v1", "fieldPath": field}});
    vec![
        json!({"name": "workload-socket", "emptyDir": {}}),
        json!({"name": "istio-envoy", "emptyDir": {"medium": "Memory"}}),
        json!({"name": "istio-data", "emptyDir": {}}),
        json!({"name": istio::POD_INFO_VOLUME, "downwardAPI": {"items": [
            item("labels", "metadata.labels"), item("annotations", "metadata.annotations")]}}),
        json!({"name": istio::TOKEN_VOLUME, "projected": {"sources": [{"serviceAccountToken": {
            "audience": istio::TOKEN_AUDIENCE, "expirationSeconds": istio::TOKEN_EXPIRATION_SECONDS,
            "path": "istio-token"}}]}}),
        json!({"name": istio::ROOT_VOLUME, "configMap": {"name": istio::ROOT_CONFIG_MAP}}),
    ]
}

fn object_at<'a>(value: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => object_at_map(map, field),
        // It was made one above.
        _ => unreachable!("an object"),
    }
}

fn object_at_map<'a>(map: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let value = map.entry(field).or_insert_with(|| json!({}));
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("an object"),
    }
}

fn array_at<'a>(map: &'a mut Map<String, Value>, field: &str) -> &'a mut Vec<Value> {
    let value = map.entry(field).or_insert_with(|| json!([]));
    if !value.is_array() {
        *value = json!([]);
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("a list"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        let config = Config { cluster: "east".into(), mesh: "mymesh".into(), ..Config::default() };
        let values =
            json!({"global": {"hub": "stolos", "tag": "1.2.3", "network": "net1", "proxy": {"image": "proxy"}}});
        let data = [("values".to_owned(), values.to_string())];
        Values::read(&config, &data.into(), "cluster.local", "")
    }

    fn pod() -> Value {
        json!({"metadata": {"generateName": "web-abc-", "labels": {"app": "web", "version": "v1", "pod-template-hash": "abc"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-abc", "controller": true}]},
            "spec": {"serviceAccountName": "web", "containers": [
                {"name": "web", "image": "web", "ports": [{"containerPort": 8080, "name": "http"}]}]}})
    }

    fn patch(pod: &Value, values: &Values) -> Vec<Value> {
        let review = json!({"request": {"uid": "u1", "namespace": "shop", "object": pod}});
        let answer = answer(&review, values);
        assert_eq!(answer["response"]["uid"], "u1");
        let patch =
            base64::engine::general_purpose::STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        let mut patched = pod.clone();
        let operations: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        json_patch::patch(&mut patched, &operations).unwrap();
        assert_eq!(patched, inject(pod, "shop", values).unwrap(), "the patch makes the pod");
        serde_json::from_slice(&patch).unwrap()
    }

    #[test]
    fn a_pod_gets_a_sidecar() {
        let lines: Vec<_> = patch(&pod(), &values()).iter().map(ToString::to_string).collect();
        insta::assert_snapshot!(lines.join("\n"));
    }

    #[test]
    fn a_gateway_is_completed_and_keeps_what_its_user_wrote() {
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({"inject.istio.io/templates": "gateway"});
        pod["spec"]["containers"] = json!([{"name": "istio-proxy", "image": "auto",
            "env": [{"name": "ISTIO_META_REQUESTED_NETWORK_VIEW", "value": "net1"}, {"name": "ISTIO_META_NETWORK", "value": "own"}],
            "ports": [{"containerPort": 15443, "name": "tls"}]}]);
        let injected = inject(&pod, "istio-system", &values()).unwrap();
        let containers = injected["spec"]["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 1);
        let proxy = &containers[0];
        assert_eq!(proxy["image"], "stolos/proxy:1.2.3");
        assert_eq!(proxy["args"][1], "router");
        let env = |name: &str| {
            let all: Vec<_> = proxy["env"].as_array().unwrap().iter().filter(|e| e["name"] == name).collect();
            assert_eq!(all.len(), 1, "{name}");
            all[0]["value"].as_str().unwrap().to_owned()
        };
        assert_eq!(env("ISTIO_META_REQUESTED_NETWORK_VIEW"), "net1");
        assert_eq!(env("ISTIO_META_NETWORK"), "own");
        assert_eq!(env("ISTIO_META_CLUSTER_ID"), "east");
        assert!(proxy["ports"].as_array().unwrap().iter().any(|port| port["containerPort"] == 15443));
        assert_eq!(injected["metadata"]["labels"].get("security.istio.io/tlsMode"), None);
    }

    #[test]
    fn a_pod_says_which_proxy_it_wants_and_how() {
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({"stolos.dev/proxy": "envoy",
            "proxy.istio.io/config": "concurrency: 2\nproxyMetadata: {ISTIO_DELTA_XDS: \"false\", CA_ADDR: ca.example.com:443}\n"});
        let injected = inject(&pod, "shop", &values()).unwrap();
        let containers = injected["spec"]["containers"].as_array().unwrap();
        let proxy = containers.iter().find(|container| container["name"] == "istio-proxy").unwrap();
        let env = |name: &str| {
            let all: Vec<_> = proxy["env"].as_array().unwrap().iter().filter(|e| e["name"] == name).collect();
            assert_eq!(all.len(), 1, "{name}");
            all[0]["value"].as_str().unwrap().to_owned()
        };
        assert_eq!((env("STOLOS_PROXY"), env("ISTIO_DELTA_XDS")), ("envoy".to_owned(), "false".to_owned()));
        assert_eq!(env("CA_ADDR"), "ca.example.com:443", "the pod's own word goes before the mesh's");
        let config: Value = serde_json::from_str(&env("PROXY_CONFIG")).unwrap();
        assert_eq!((&config["concurrency"], &config["meshId"]), (&json!(2), &json!("mymesh")));
        pod["metadata"]["annotations"]["proxy.istio.io/config"] = json!("[no: mapping");
        assert!(inject(&pod, "shop", &values()).is_some(), "what cannot be read says nothing");
    }

    #[test]
    fn the_mesh_may_say_something_to_all_its_proxies() {
        let mesh = "defaultConfig: {proxyMetadata: {ISTIO_META_DNS_CAPTURE: \"false\", A: 1, B: mesh}}";
        let data = [(istio::MESH_KEY.to_owned(), mesh.to_owned())].into();
        let values = Values::read(&Config::default(), &data, "cluster.local", "");
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({"proxy.istio.io/config": "proxyMetadata: {B: pod}"});
        let injected = inject(&pod, "shop", &values).unwrap();
        let containers = injected["spec"]["containers"].as_array().unwrap();
        let proxy = containers.iter().find(|container| container["name"] == "istio-proxy").unwrap();
        let env = |name: &str| {
            let all: Vec<_> = proxy["env"].as_array().unwrap().iter().filter(|e| e["name"] == name).collect();
            assert_eq!(all.len(), 1, "{name}");
            all[0]["value"].as_str().unwrap().to_owned()
        };
        assert_eq!(["ISTIO_META_DNS_CAPTURE", "A", "B"].map(env), ["false", "1", "pod"]);
    }

    #[test]
    fn who_is_not_injected() {
        let with = |path: &str, value: Value| {
            let mut pod = pod();
            let (parent, field) = path.rsplit_once('/').unwrap();
            match parent {
                "labels" => pod["metadata"]["labels"][istio::INJECT_LABEL] = value,
                "annotations" => pod["metadata"]["annotations"] = json!({field: value}),
                _ => pod["spec"][field] = value,
            }
            pod
        };
        let values = values();
        assert!(inject(&pod(), "shop", &values).is_some());
        assert!(inject(&pod(), "kube-system", &values).is_none());
        assert!(inject(&with("spec/hostNetwork", json!(true)), "shop", &values).is_none());
        assert!(inject(&with("labels/inject", json!("false")), "shop", &values).is_none());
        assert!(inject(&with("annotations/sidecar.istio.io~1inject", json!("x")), "shop", &values).is_some());
        let mut both = pod();
        both["metadata"]["annotations"] = json!({"sidecar.istio.io/inject": "false"});
        assert!(inject(&both, "shop", &values).is_none());
        both["metadata"]["labels"]["sidecar.istio.io/inject"] = json!("true");
        assert!(inject(&both, "shop", &values).is_some(), "the label beats the annotation");
        let injected = inject(&pod(), "shop", &values).unwrap();
        assert!(inject(&injected, "shop", &values).is_none(), "not twice");
        assert!(inject(&Value::Null, "shop", &values).is_none());
    }

    #[test]
    fn the_path_names_cluster_and_network() {
        let values = values().with_path("cluster/west/net/net--slash--2");
        assert_eq!((&*values.cluster, &*values.network), ("west", "net/2"));
        let injected = inject(&pod(), "shop", &values).unwrap();
        assert_eq!(injected["metadata"]["labels"]["topology.istio.io/network"], "net/2");
    }
}
