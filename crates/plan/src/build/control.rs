//! The small engine's control plane, one in each cluster: Istio's names and ports, with rules no wider than it needs.

use std::path::Path;

use serde_json::{Map, Value, json};
use stolos_spec::{Cluster, Mesh, Mtls};

use super::{Remembered, Scene, Sketch, addresses, id};
use crate::object::{MEMBERSHIP, SYSTEM_NAMESPACE, mesh_of, ours};
use crate::{ClusterState, Condition, ObjectKey, VERSION};

/// Deployment, Service and service account.
pub(super) const ISTIOD: &str = "istiod";
/// The MutatingWebhookConfiguration, and the ConfigMap of its values.
pub(super) const INJECTOR: &str = "istio-sidecar-injector";
const ROLE: &str = "istiod-clusterrole-istio-system";

pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    unused_values(scene.mesh, sketch);
    for (cluster, state) in scene.live.iter().filter(|(cluster, _)| cluster.primary().is_none()) {
        let name = cluster.name.as_str();
        let here = |what: &str| id("control", name, what);
        let namespace = || vec![id("trust", name, "namespace")];
        let label = |objects: Vec<Value>| -> Vec<Value> {
            objects.into_iter().map(|object| ours(scene.mesh_name(), object)).collect()
        };

        definitions(scene, sketch, name, state);
        sketch.write(name, state, here("access"), namespace(), label(access()));
        sketch.write(name, state, here("config"), namespace(), label(config(scene.mesh, cluster)));

        let before = ["crds-served", "access", "config"].map(here).into_iter();
        let before = before.chain([id("trust", name, "cacerts")]).collect();
        sketch.write(name, state, here("istiod"), before, label(istiod(scene.mesh, cluster)));
        sketch.write(name, state, here("injector"), vec![here("istiod")], label(vec![injector("/inject")]));
        let strict = ours(scene.mesh_name(), mtls(scene.mesh));
        let before = vec![id("trust", name, "namespace"), here("crds-served")];
        sketch.write(name, state, here("mtls"), before, vec![strict]);
        let until = vec![
            Condition::Available { namespace: SYSTEM_NAMESPACE.to_owned(), deployment: ISTIOD.to_owned() },
            Condition::Trusted { webhook: INJECTOR.to_owned() },
            Condition::RootPublished { namespace: SYSTEM_NAMESPACE.to_owned() },
        ];
        sketch.wait(name, state, here("ready"), ["istiod", "injector"].map(here).to_vec(), until);
        membership(scene, sketch, name, state);
    }
}

/// Istio's kinds. Those that somebody else brought are taken as they are.
fn definitions(scene: &Scene<'_>, sketch: &mut Sketch, cluster: &str, state: &ClusterState) {
    let (mut wanted, mut until) = (Vec::new(), Vec::new());
    for crd in stolos_k8s::istio::crds() {
        let key = ObjectKey::of(&crd);
        let foreign = state.objects.get(&key).is_some_and(|live| mesh_of(live).is_none());
        until.push(Condition::Established { crd: key.name.clone() });
        if foreign {
            sketch.note(Some(cluster), format!("{} was there before and is used as it is", key.name));
        } else {
            wanted.push(ours(scene.mesh_name(), crd));
        }
    }
    sketch.write(cluster, state, id("control", cluster, "crds"), vec![], wanted);
    sketch.wait(cluster, state, id("control", cluster, "crds-served"), vec![id("control", cluster, "crds")], until);
}

/// What the control plane may do: read what it translates, sign for who shows a token, publish the root, take its own
/// webhook's CA, and say what it did. Secrets it reads in its own namespace only.
fn access() -> Vec<Value> {
    let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
    let named = |mut rule: Value, names: &[&str]| {
        rule["resourceNames"] = json!(names);
        rule
    };
    const READ: &[&str] = &["get", "list", "watch"];
    const KINDS: &[&str] = &["networking.istio.io", "security.istio.io", "telemetry.istio.io", "extensions.istio.io"];
    let cluster_wide = json!([
        rule(&[""], &["namespaces", "services", "pods", "nodes"], READ),
        rule(&["discovery.k8s.io"], &["endpointslices"], READ),
        rule(KINDS, &["*"], READ),
        rule(KINDS, &["*/status"], &["get", "patch", "update"]),
        rule(&["authentication.k8s.io"], &["tokenreviews"], &["create"]),
        // The root is published in every namespace, and put back where others change it. RBAC cannot name what does
        // not exist yet, and not every API server takes a watch by name for a watch of that name, so only changing is
        // bound to the name.
        rule(&[""], &["configmaps"], &["create", "get", "list", "watch"]),
        named(rule(&[""], &["configmaps"], &["update", "patch"]), &["istio-ca-root-cert"]),
        rule(&["admissionregistration.k8s.io"], &["mutatingwebhookconfigurations"], READ),
        named(
            rule(&["admissionregistration.k8s.io"], &["mutatingwebhookconfigurations"], &["update", "patch"]),
            &[INJECTOR]
        ),
        rule(&[""], &["events"], &["create", "patch"]),
    ]);
    let in_own_namespace = json!([rule(&[""], &["secrets"], READ)]);
    let labels = json!({"app": ISTIOD});
    let subject = json!([{"kind": "ServiceAccount", "name": ISTIOD, "namespace": SYSTEM_NAMESPACE}]);
    let role = |kind: &str, name: &str| json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name});
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": ISTIOD, "namespace": SYSTEM_NAMESPACE, "labels": labels}}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": ROLE, "labels": labels}, "rules": cluster_wide}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": ROLE, "labels": labels}, "roleRef": role("ClusterRole", ROLE), "subjects": subject}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": ISTIOD, "namespace": SYSTEM_NAMESPACE, "labels": labels}, "rules": in_own_namespace}),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": ISTIOD, "namespace": SYSTEM_NAMESPACE, "labels": labels},
            "roleRef": role("Role", ISTIOD), "subjects": subject}),
    ]
}

fn config(mesh: &Mesh, cluster: &Cluster) -> Vec<Value> {
    let values = json!({
        "global": {
            "hub": "stolos",
            "tag": VERSION,
            "istioNamespace": SYSTEM_NAMESPACE,
            "meshID": mesh.name.as_str(),
            "multiCluster": {"clusterName": cluster.name.as_str()},
            "network": cluster.network.as_str(),
            "proxy": {"image": "proxy", "clusterDomain": "cluster.local"},
        },
        "revision": "default",
        "sidecarInjectorWebhook": {"enableNamespacesByDefault": false},
    });
    // The strings come from a mesh file whose names are DNS labels; the domain is quoted because it need not be.
    let settings = format!(
        "accessLogEncoding: JSON\naccessLogFile: /dev/stdout\ndefaultConfig:\n  discoveryAddress: \
         istiod.{SYSTEM_NAMESPACE}.svc:15012\n  meshId: {}\nrootNamespace: {SYSTEM_NAMESPACE}\ntrustDomain: {}\n",
        mesh.name,
        Value::from(mesh.trust.domain.as_str())
    );
    let config_map = |name: &str, key: &str, text: String| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE, "labels": {"istio.io/rev": "default"}}, "data": {key: text}})
    };
    let mut settings = config_map("istio", "mesh", settings);
    if let Some(networks) = addresses::mesh_networks(mesh) {
        settings["data"]["meshNetworks"] = format!("{:#}", json!({"networks": networks})).into();
    }
    vec![settings, config_map(INJECTOR, "values", format!("{values:#}"))]
}

fn istiod(mesh: &Mesh, cluster: &Cluster) -> Vec<Value> {
    let field = |path: &str| json!({"fieldRef": {"apiVersion": "v1", "fieldPath": path}});
    let plain = |name: &str, value: &str| json!({"name": name, "value": value});
    let port = |name: &str, number: u16| json!({"name": name, "containerPort": number, "protocol": "TCP"});
    let labels = json!({"app": ISTIOD, "istio": "pilot", "istio.io/rev": "default"});
    let pod_labels = json!({"app": ISTIOD, "istio": "pilot", "istio.io/rev": "default",
        "sidecar.istio.io/inject": "false"});
    let mut container = json!({
        "name": "discovery",
        "image": format!("stolos/control:{VERSION}"),
        "imagePullPolicy": "IfNotPresent",
        "args": ["discovery"],
        "env": [
            plain("CLUSTER_ID", cluster.name.as_str()),
            plain("MESH_ID", mesh.name.as_str()),
            plain("TRUST_DOMAIN", &mesh.trust.domain),
            plain("REVISION", "default"),
            {"name": "POD_NAME", "valueFrom": field("metadata.name")},
            {"name": "POD_NAMESPACE", "valueFrom": field("metadata.namespace")},
            {"name": "SERVICE_ACCOUNT", "valueFrom": field("spec.serviceAccountName")},
        ],
        "ports": [port("https-dns", 15012), port("https-webhook", 15017), port("http-monitoring", 15014),
            port("http-debug", 8080)],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1,
            "timeoutSeconds": 5},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": true, "runAsNonRoot": true, "runAsUser": 1337, "runAsGroup": 1337},
        "volumeMounts": [{"name": "cacerts", "mountPath": "/etc/cacerts", "readOnly": true}],
    });
    if mesh.serves_remotes(&cluster.name)
        && let Some(env) = container["env"].as_array_mut()
    {
        // It publishes the root in remotes that name it, and patches their webhooks (B.7, E.13).
        env.push(plain("EXTERNAL_ISTIOD", "true"));
    }
    let service_port = |name: &str, port: u16, target: u16| json!({"name": name, "port": port, "targetPort": target, "protocol": "TCP"});
    vec![
        json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": ISTIOD, "namespace": SYSTEM_NAMESPACE, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": ISTIOD, "istio.io/rev": "default"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {"metadata": {"labels": pod_labels}, "spec": {
                "serviceAccountName": ISTIOD,
                "containers": [container],
                "volumes": [{"name": "cacerts", "secret": {"secretName": "cacerts", "optional": true}}],
            }},
        }}),
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": ISTIOD, "namespace": SYSTEM_NAMESPACE, "labels": labels},
            "spec": {"selector": {"app": ISTIOD, "istio": "pilot"}, "ports": [
                service_port("https-dns", 15012, 15012), service_port("https-webhook", 443, 15017),
                service_port("http-monitoring", 15014, 15014)]}}),
    ]
}

/// Istio's four webhooks, told apart by who asks for a sidecar: the namespace or the pod, by revision or by default.
/// The CA is the control plane's to fill in.
pub(super) fn injector(path: &str) -> Value {
    let expression = |key: &str, operator: &str, values: &[&str]| {
        if values.is_empty() {
            json!({"key": key, "operator": operator})
        } else {
            json!({"key": key, "operator": operator, "values": values})
        }
    };
    const NAMESPACE: &str = "istio-injection";
    const POD: &str = "sidecar.istio.io/inject";
    const REVISION: &str = "istio.io/rev";
    let absent = |key: &str| expression(key, "DoesNotExist", &[]);
    let not_refused = || expression(POD, "NotIn", &["false"]);
    let default_revision = || expression(REVISION, "In", &["default"]);
    let webhook = |name: &str, namespaces: Vec<Value>, pods: Vec<Value>| {
        json!({
            "name": format!("{name}sidecar-injector.istio.io"),
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"service": {"name": ISTIOD, "namespace": SYSTEM_NAMESPACE, "path": path, "port": 443}},
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "sideEffects": "None",
            "timeoutSeconds": 10,
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "namespaceSelector": {"matchExpressions": namespaces},
            "objectSelector": {"matchExpressions": pods},
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": INJECTOR, "labels": {"app": "sidecar-injector", "istio.io/rev": "default"}},
        "webhooks": [
            webhook("rev.namespace.", vec![default_revision(), absent(NAMESPACE)], vec![not_refused()]),
            webhook("rev.object.", vec![absent(REVISION), absent(NAMESPACE)], vec![not_refused(), default_revision()]),
            webhook("namespace.", vec![expression(NAMESPACE, "In", &["enabled"])], vec![not_refused()]),
            webhook("object.", vec![absent(NAMESPACE), absent(REVISION)],
                vec![expression(POD, "In", &["true"]), absent(REVISION)]),
        ],
    })
}

pub(super) fn mtls(mesh: &Mesh) -> Value {
    let mode = match mesh.mtls {
        Mtls::Strict => "STRICT",
        Mtls::Permissive => "PERMISSIVE",
    };
    json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": SYSTEM_NAMESPACE, "labels": {}}, "spec": {"mtls": {"mode": mode}}})
}

/// Remembers who is in the mesh. A cluster that left is forgotten only after its traces are gone, so that a run that
/// was cut short, or could not reach it, finds it again.
pub(super) fn membership(scene: &Scene<'_>, sketch: &mut Sketch, name: &str, state: &ClusterState) {
    let mut members: Vec<Remembered> = scene.mesh.clusters.iter().filter_map(|c| member(scene, c, state)).collect();
    let mut after = vec![id("trust", name, "namespace")];
    for (former, record) in &scene.former {
        match scene.departed(former) {
            _ if scene.renamed(former).is_some() => {}
            Ok(_) => after.push(id("leftovers", former, "gone")),
            Err(_) => members.push(record.clone()),
        }
        after.push(id("leftovers", name, &format!("forget-{former}")));
        after.push(id("leftovers", name, &format!("revoke-{former}")));
    }
    let text = serde_json::to_string_pretty(&members).unwrap_or_default();
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": MEMBERSHIP, "namespace": SYSTEM_NAMESPACE, "labels": {}},
        "data": {"mesh": scene.mesh_name(), "members": text}});
    let (hub, forgotten) = super::hub::memory(scene, state);
    if let Some(hub) = hub {
        object["data"]["hub"] = serde_json::to_string_pretty(&hub).unwrap_or_default().into();
    }
    after.extend(forgotten);
    sketch.write(name, state, id("control", name, "membership"), after, vec![ours(scene.mesh_name(), object)]);
}

/// One that cannot be reached now stays as it was remembered.
fn member(scene: &Scene<'_>, cluster: &Cluster, here: &ClusterState) -> Option<Remembered> {
    let Some(state) = scene.observed.cluster(cluster.name.as_str()) else {
        let known = super::remembered(scene.mesh_name(), here);
        return known.into_iter().find(|m| m.name == cluster.name.as_str());
    };
    Some(Remembered {
        name: cluster.name.to_string(),
        context: cluster.context.clone(),
        kubeconfig: cluster.kubeconfig.as_deref().map(Path::display).map(|p| p.to_string()),
        server: state.server.clone(),
        uid: state.uid.clone(),
        network: cluster.network.to_string(),
    })
}

/// Decision 18: every key of the values that the small engine does not act on is named.
fn unused_values(mesh: &Mesh, sketch: &mut Sketch) {
    // What these ask for is so in every mesh that Stolos builds.
    const OBEYED: &[&str] = &["security.selfSigned", "global.mtls.enabled", "global.controlPlaneSecurityEnabled"];
    const COMPUTED: &[&str] = &["global.meshID", "global.multiCluster.clusterName", "global.network"];
    let mut unused = Vec::new();
    if let Some(values) = mesh.control_plane.values.as_object() {
        leaves(values, "", &mut unused);
    }
    unused.retain(|path| ![OBEYED, COMPUTED].concat().contains(&path.as_str()));
    if !unused.is_empty() {
        sketch.note(None, format!("the small engine does not act on these values: {}", unused.join(", ")));
    }
}

pub(super) fn leaves(fields: &Map<String, Value>, path: &str, found: &mut Vec<String>) {
    for (field, value) in fields {
        let path = if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
        match value.as_object() {
            Some(below) if !below.is_empty() => leaves(below, &path, found),
            _ => found.push(path),
        }
    }
}
