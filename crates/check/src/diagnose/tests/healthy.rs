//! Healthy meshes, as snapshots.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use stolos_k8s::istio;
use stolos_pki::{Authority, CaCerts, Certificate, SpiffeId, WorkloadRequest};
use stolos_spec::{Mesh, SourceText};

use super::super::snapshot::*;
use super::super::{CheckOptions, CheckReport, judge};

pub(super) const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a healthy mesh may look like.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    /// Each cluster's network.
    pub(super) networks: Vec<usize>,
    /// Lab clusters, or real ones.
    pub(super) lab: bool,
    pub(super) version: &'static str,
    /// `cacerts` as kubernetes.io/tls.
    pub(super) tls_form: bool,
    pub(super) hostnames: bool,
    pub(super) external_ips: bool,
    pub(super) node_port: bool,
    /// Trust domains of their own, all aliases of each other.
    pub(super) aliases: bool,
    /// Namespaces labelled with a revision instead of `istio-injection`.
    pub(super) revision: bool,
    /// A second root that everybody trusts.
    pub(super) two_roots: bool,
    /// The last cluster is a remote of the first.
    pub(super) remote: bool,
    pub(super) private_gateways: bool,
    /// Each cluster also has a service of its own.
    pub(super) local_services: bool,
    pub(super) services: usize,
}

impl Default for Shape {
    /// Two on one network and one on another, of real Istio.
    fn default() -> Self {
        Self {
            networks: vec![0, 0, 1],
            lab: false,
            version: "1.28.0",
            tls_form: false,
            hostnames: false,
            external_ips: false,
            node_port: false,
            aliases: false,
            revision: false,
            two_roots: false,
            remote: false,
            private_gateways: false,
            local_services: false,
            services: 2,
        }
    }
}

impl Shape {
    fn is_remote(&self, index: usize) -> bool {
        self.remote && index > 0 && index + 1 == self.networks.len()
    }

    fn has_gateways(&self) -> bool {
        self.networks.iter().any(|n| *n != self.networks[0])
    }

    fn domain(&self, index: usize) -> String {
        if self.aliases && !self.remote { format!("td{index}.example") } else { "cluster.local".to_owned() }
    }
}

/// A mesh and what is seen of it.
pub(super) struct World {
    pub(super) mesh: Mesh,
    pub(super) snapshot: Snapshot,
    pub(super) now: SystemTime,
}

/// A cluster's intermediate, and the chain of one of its workloads.
type Issued = (CaCerts, Vec<Vec<u8>>);

/// What is the same for every test: keys take their time.
struct Keys {
    now: SystemTime,
    root: Authority,
    second: Authority,
    intermediates: Mutex<BTreeMap<String, Issued>>,
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| {
        let now = SystemTime::now();
        Keys {
            now,
            root: Authority::new_root("mesh", 10 * YEAR, now).unwrap(),
            second: Authority::new_root("mesh", 10 * YEAR, now).unwrap(),
            intermediates: Mutex::default(),
        }
    })
}

/// Made once for each cluster and trust domain.
fn intermediate(cluster: &str, domain: &str) -> Issued {
    let keys = keys();
    let mut made = keys.intermediates.lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{cluster} {domain}");
    made.entry(key)
        .or_insert_with(|| {
            let certs = keys.root.issue_intermediate(cluster, "mesh", domain, 2 * YEAR, keys.now).unwrap();
            let id = SpiffeId::new(domain, "shop", "web");
            let request = WorkloadRequest::new(&id).unwrap();
            let signer = certs.authority(keys.now).unwrap();
            let chain = signer.sign_workload(&request.csr_pem, &id, Duration::ZERO, keys.now).unwrap();
            let chain = Certificate::all_from_pem(&chain.concat()).unwrap();
            (certs, chain.iter().map(|c| c.der().to_vec()).collect())
        })
        .clone()
}

pub(super) fn secret(name: &str, labels: Value, data: &[(&str, &str)]) -> Value {
    let data: BTreeMap<_, _> = data.iter().map(|(k, v)| (*k, BASE64_STANDARD.encode(v))).collect();
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "istio-system", "labels": labels}, "data": data})
}

pub(super) fn token(ends: SystemTime) -> String {
    let ends = ends.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let part = |v: Value| BASE64_URL_SAFE_NO_PAD.encode(v.to_string());
    format!("{}.{}.c2ln", part(json!({"alg": "RS256"})), part(json!({"iat": 1, "exp": ends})))
}

pub(super) fn kubeconfig(cluster: &str, server: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: {cluster}, cluster: {{server: '{server}'}}}}]\ncontexts: [{{name: {cluster}, \
         context: {{cluster: {cluster}, user: {cluster}}}}}]\ncurrent-context: {cluster}\nusers: [{{name: {cluster}, user: {user}}}]\n"
    )
}

pub(super) fn pod(namespace: &str, name: &str, ip: &str, labels: Value, containers: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels, "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": {"nodeName": "n1", "containers": containers},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]}})
}

impl World {
    pub(super) fn new(shape: Shape) -> Self {
        let now = keys().now;
        let clusters: Vec<Value> = shape
            .networks
            .iter()
            .enumerate()
            .map(|(i, network)| {
                let mut cluster =
                    json!({"name": format!("c{}", i + 1), "context": format!("ctx-c{}", i + 1), "network": format!("net{network}")});
                if shape.is_remote(i) {
                    cluster["controlPlane"] = json!({"primary": "c1"});
                }
                cluster
            })
            .collect();
        let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mesh"},
            "spec": {"trust": {"organization": "mesh"}, "clusters": clusters}});
        let mesh = stolos_spec::read(&SourceText::new("mesh.yaml", document.to_string()), None).unwrap().mesh;
        let clusters = (0..shape.networks.len())
            .map(|i| (format!("c{}", i + 1), Datum::Read { value: cluster(&shape, i, now), at: now }))
            .collect();
        Self { mesh, snapshot: Snapshot { now, clusters }, now }
    }

    pub(super) fn report(&self, options: &CheckOptions) -> CheckReport {
        judge(&self.mesh, &self.snapshot, options)
    }

    pub(super) fn seen(&mut self, cluster: &str) -> &mut Seen {
        match self.snapshot.clusters.get_mut(cluster) {
            Some(Datum::Read { value, .. }) => value,
            _ => panic!("{cluster} was not read"),
        }
    }

    pub(super) fn list(&mut self, cluster: &str, kind: &str) -> &mut Vec<Value> {
        match self.seen(cluster).objects.get_mut(kind) {
            Some(Datum::Read { value, .. }) => value,
            _ => panic!("no {kind} in {cluster}"),
        }
    }

    pub(super) fn object(&mut self, cluster: &str, kind: &str, name: &str) -> &mut Value {
        let list = self.list(cluster, kind);
        let names: Vec<String> = list.iter().map(|o| o["metadata"]["name"].to_string()).collect();
        list.iter_mut()
            .find(|o| o["metadata"]["name"] == name)
            .unwrap_or_else(|| panic!("no {kind} {name} in {cluster}: {names:?}"))
    }

    pub(super) fn remove(&mut self, cluster: &str, kind: &str, name: &str) -> Value {
        let list = self.list(cluster, kind);
        let at = list.iter().position(|o| o["metadata"]["name"] == name).unwrap_or_else(|| panic!("no {kind} {name}"));
        list.remove(at)
    }

    pub(super) fn cacerts(&mut self, cluster: &str, certs: &CaCerts) {
        let data = json!({"ca-cert.pem": BASE64_STANDARD.encode(&certs.ca_cert),
            "ca-key.pem": BASE64_STANDARD.encode(certs.ca_key.expose()),
            "cert-chain.pem": BASE64_STANDARD.encode(&certs.cert_chain),
            "root-cert.pem": BASE64_STANDARD.encode(&certs.root_cert)});
        self.object(cluster, "Secret", "cacerts")["data"] = data;
    }

    pub(super) fn root() -> &'static Authority {
        &keys().root
    }
}

#[expect(clippy::too_many_lines, reason = "one cluster, object by object")]
fn cluster(shape: &Shape, index: usize, now: SystemTime) -> Seen {
    let name = format!("c{}", index + 1);
    let (network, remote) = (format!("net{}", shape.networks[index]), shape.is_remote(index));
    let address = |host: usize| {
        if shape.lab { format!("127.{}.1.{host}", 16 + index) } else { format!("10.{}.1.{host}", index + 1) }
    };
    let domain = shape.domain(index);
    let signer = if remote { 0 } else { index };
    let (certs, _) = intermediate(&format!("c{}", signer + 1), &shape.domain(signer));
    let mut roots = certs.root_cert.clone();
    if shape.two_roots {
        roots += keys().second.certificate().pem().as_str();
    }
    let (hub, tag) = if shape.lab { ("stolos", "0.1.0") } else { ("docker.io/istio", shape.version) };
    let (control, proxy_image) = if shape.lab { ("control", "proxy") } else { ("pilot", "proxyv2") };
    let asks = if shape.revision { json!({"istio.io/rev": "default"}) } else { json!({"istio-injection": "enabled"}) };
    let namespace = |name: &str, labels: Value, annotations: Value| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels, "annotations": annotations,
            "creationTimestamp": "2026-01-01T00:00:00Z", "uid": format!("uid-{name}-{index}")}})
    };
    let attached = if remote { json!({"topology.istio.io/controlPlaneClusters": "c1"}) } else { json!({}) };
    let mut objects: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut put = |kind: &str, object: Value| objects.entry(kind.to_owned()).or_default().push(object);
    put("Namespace", namespace("kube-system", json!({}), json!({})));
    put("Namespace", namespace("istio-system", json!({"topology.istio.io/network": network}), attached));
    put("Namespace", namespace("shop", asks, json!({})));
    put("Namespace", namespace("tools", json!({}), json!({})));
    for (node, zone) in [("n1", "a"), ("n2", "b")] {
        put(
            "Node",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": {"topology.kubernetes.io/zone": zone}},
            "spec": {"podCIDRs": [if shape.lab { format!("127.{}.0.0/16", 16 + index) } else { format!("10.{}.0.0/16", index + 1) }]}}),
        );
    }
    // Every cluster's own Services may be on the same range.
    put(
        "ServiceCIDR",
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["172.30.0.0/16"]}}),
    );
    let renewed = jiff::Timestamp::try_from(now).unwrap().to_string();
    put("Lease", json!({"metadata": {"name": "n1", "namespace": "kube-node-lease"}, "spec": {"renewTime": renewed}}));

    // Trust.
    put(
        "ConfigMap",
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio-ca-root-cert", "namespace": "istio-system"},
        "data": {"root-cert.pem": roots}}),
    );
    if !remote {
        let data: Vec<(&str, &str)> = if shape.tls_form {
            vec![("tls.crt", &certs.ca_cert), ("tls.key", certs.ca_key.expose()), ("ca.crt", &roots)]
        } else {
            vec![
                ("ca-cert.pem", &certs.ca_cert),
                ("ca-key.pem", certs.ca_key.expose()),
                ("cert-chain.pem", &certs.cert_chain),
                ("root-cert.pem", &roots),
            ]
        };
        put("Secret", secret("cacerts", json!({}), &data));
    }

    // The control plane, or the way to it.
    let values = json!({"global": {"meshID": "mesh", "network": network, "multiCluster": {"clusterName": name}, "proxy": {"clusterDomain": "cluster.local"}}});
    let mut config =
        json!({"trustDomain": domain, "defaultConfig": {"meshId": "mesh"}, "rootNamespace": "istio-system"});
    if shape.aliases && !shape.remote {
        config["trustDomainAliases"] = (0..shape.networks.len()).map(|i| shape.domain(i)).collect();
    }
    let map = |name: &str, key: &str, value: &Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "istio-system"}, "data": {key: value.to_string()}})
    };
    put("ConfigMap", map("istio", "mesh", &config));
    put("ConfigMap", map("istio-sidecar-injector", "values", &values));
    let service = |namespace: &str, name: &str, spec: Value| {
        json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": namespace, "labels": {}, "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec})
    };
    let slice = |namespace: &str, name: &str, addresses: &[String]| {
        json!({"metadata": {"name": format!("{name}-1"), "namespace": namespace,
        "labels": {"kubernetes.io/service-name": name}}, "endpoints": addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect::<Vec<_>>()})
    };
    let ports =
        json!([{"name": "https-dns", "port": 15012}, {"name": "https-webhook", "port": 443, "targetPort": 15017}]);
    put(
        "Service",
        service(
            "istio-system",
            "istiod",
            if remote { json!({"ports": ports}) } else { json!({"selector": {"app": "istiod"}, "ports": ports}) },
        ),
    );
    put(
        "EndpointSlice",
        slice("istio-system", "istiod", &[if remote { "203.0.113.1".to_owned() } else { address(10) }]),
    );
    let env = |all: &[(&str, &str)]| all.iter().map(|(n, v)| json!({"name": n, "value": v})).collect::<Vec<_>>();
    if !remote {
        let external = if shape.remote && index == 0 { "true" } else { "false" };
        let container = json!({"name": "discovery", "image": format!("{hub}/{control}:{tag}"), "env": env(&[("CLUSTER_ID", &name), ("EXTERNAL_ISTIOD", external)])});
        put(
            "Deployment",
            json!({"metadata": {"name": "istiod", "namespace": "istio-system", "labels": {"app": "istiod", "istio.io/rev": "default"}},
            "spec": {"template": {"spec": {"containers": [container]}}}}),
        );
        put("Pod", pod("istio-system", "istiod-1", &address(10), json!({"app": "istiod"}), json!([container])));
        for crd in istio::crds() {
            let mut crd = crd;
            crd["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
            put("CustomResourceDefinition", crd);
        }
    }
    let bundle = BASE64_STANDARD.encode(&roots);
    let hook = |name: &str, key: &str, value: &str, path: &str| {
        let expression = json!([{"key": key, "operator": "In", "values": [value]}]);
        let not = json!({"key": "istio-injection", "operator": "DoesNotExist"});
        let all = if key == "istio-injection" { expression } else { json!([expression[0], not]) };
        json!({"name": format!("{name}.sidecar-injector.istio.io"), "failurePolicy": "Fail", "namespaceSelector": {"matchExpressions": all},
            "clientConfig": {"caBundle": bundle, "service": {"name": "istiod", "namespace": "istio-system", "path": path}}})
    };
    put(
        "MutatingWebhookConfiguration",
        json!({"metadata": {"name": "istio-sidecar-injector", "labels": {"app": "sidecar-injector", "istio.io/rev": "default"}},
        "webhooks": [hook("namespace", "istio-injection", "enabled", "/inject"), hook("rev.namespace", "istio.io/rev", "default", "/inject")]}),
    );
    if !shape.lab && !remote {
        put(
            "ValidatingWebhookConfiguration",
            json!({"metadata": {"name": "istio-validator"}, "webhooks": [{"name": "validation.istio.io", "failurePolicy": "Fail",
            "rules": [{"apiGroups": ["networking.istio.io"]}], "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system"}}}]}),
        );
    }

    // Gateways.
    let proxy = |extra: &[(&str, &str)]| {
        let mut all = vec![
            ("ISTIO_META_CLUSTER_ID", name.as_str()),
            ("ISTIO_META_NETWORK", network.as_str()),
            ("ISTIO_META_DNS_CAPTURE", "true"),
        ];
        all.extend(extra);
        json!({"name": "istio-proxy", "image": format!("{hub}/{proxy_image}:{tag}"), "env": env(&all)})
    };
    let labels =
        json!({"app": "istio-eastwestgateway", "istio": "eastwestgateway", "topology.istio.io/network": network});
    if shape.has_gateways() || (shape.remote && index == 0) {
        let mut gateway = service(
            "istio-system",
            "istio-eastwestgateway",
            json!({"type": "LoadBalancer", "selector": {"istio": "eastwestgateway"},
            "ports": [{"name": "status-port", "port": 15021}, {"name": "tls", "port": 15443}]}),
        );
        gateway["metadata"]["labels"] = labels.clone();
        let host = gateway_address(shape, index);
        gateway["status"]["loadBalancer"]["ingress"] =
            if shape.hostnames { json!([{"hostname": host}]) } else { json!([{"ip": host}]) };
        if shape.external_ips {
            gateway["spec"]["externalIPs"] = json!([host]);
            gateway["status"] = json!({});
        } else if shape.node_port {
            gateway["spec"]["type"] = "NodePort".into();
            gateway["metadata"]["annotations"] = json!({"traffic.istio.io/nodeSelector": "{}"});
            gateway["status"] = json!({});
        }
        put("Service", gateway);
        for (n, node) in [("1", "n1"), ("2", "n2")] {
            let mut gateway = pod(
                "istio-system",
                &format!("istio-eastwestgateway-{n}"),
                &address(20 + n.len() * 3 + usize::from(n == "2")),
                labels.clone(),
                json!([proxy(&[])]),
            );
            gateway["spec"]["nodeName"] = node.into();
            put("Pod", gateway);
        }
        put(
            "PodDisruptionBudget",
            json!({"metadata": {"name": "gateway", "namespace": "istio-system"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"istio": "eastwestgateway"}}}}),
        );
        if !remote {
            put(
                "Gateway",
                json!({"metadata": {"name": "cross-network-gateway", "namespace": "istio-system"}, "spec": {"selector": {"istio": "eastwestgateway"},
                "servers": [{"port": {"number": 15443, "name": "tls", "protocol": "TLS"}, "tls": {"mode": "AUTO_PASSTHROUGH"}, "hosts": ["*.local"]}]}}),
            );
        }
    }

    // Workloads.
    for s in 0..shape.services {
        let (service_name, ip) = (format!("web{s}"), address(40 + s));
        put(
            "Service",
            service(
                "shop",
                &service_name,
                json!({"selector": {"app": service_name}, "clusterIP": format!("172.30.0.{}", s + 1), "ports": [{"name": "http", "port": 80}]}),
            ),
        );
        put("EndpointSlice", slice("shop", &service_name, std::slice::from_ref(&ip)));
        let mut workload = pod(
            "shop",
            &format!("{service_name}-1"),
            &ip,
            json!({"app": service_name, "security.istio.io/tlsMode": "istio"}),
            json!([{"name": "app", "image": "app:1"}, proxy(&[])]),
        );
        workload["metadata"]["annotations"] = json!({"istio.io/rev": "default", "sidecar.istio.io/status": "{}"});
        put("Pod", workload);
    }
    if shape.local_services {
        put(
            "Service",
            service("tools", &format!("own-{index}"), json!({"selector": {"app": "own"}, "ports": [{"port": 9000}]})),
        );
        put(
            "Pod",
            pod("tools", "own-1", &address(90), json!({"app": "own"}), json!([{"name": "app", "image": "own:1"}])),
        );
    }

    // The others.
    let others = || (0..shape.networks.len()).filter(move |i| *i != index);
    let mut seen = Seen {
        context: format!("ctx-{name}"),
        server: server(shape, index),
        version: if shape.lab { "v1.34.0+stolos".to_owned() } else { "v1.34.2".to_owned() },
        is_lab: shape.lab,
        uid: format!("uid-kube-system-{index}"),
        clock: Some(Clock { api: now, local: now }),
        ..Seen::default()
    };
    for other in others() {
        let peer = format!("c{}", other + 1);
        if !remote {
            let config = kubeconfig(&peer, &server(shape, other), &format!("{{token: {}}}", token(now + YEAR / 4)));
            let labels = json!({"istio/multiCluster": "true", "app.kubernetes.io/managed-by": "stolos", "stolos.dev/mesh": "mesh"});
            let remote_secret = secret(&format!("istio-remote-secret-{peer}"), labels, &[(&peer, &config)]);
            put("Secret", remote_secret.clone());
            put(LABELLED_SECRETS, remote_secret);
            seen.credentials.push(CredentialProbe {
                secret: format!("istio-system/istio-remote-secret-{peer}"),
                key: peer.clone(),
                server: server(shape, other),
                inside: Some(Datum::now(Touch::Reached)),
                answer: Datum::now(CredentialAnswer::Accepted { missing: vec![], anything: false, uid: None }),
            });
            if shape.networks[other] == shape.networks[index] {
                seen.paths.push(PathProbe {
                    cluster: peer.clone(),
                    pod: "istiod-1".to_owned(),
                    address: "10.0.0.1".to_owned(),
                    from: "istiod-1".to_owned(),
                    touch: Datum::now(Touch::Reached),
                });
            }
        }
        let reaches_control = remote && other == 0;
        if (shape.networks[other] != shape.networks[index] && shape.has_gateways()) || reaches_control {
            let (_, chain) = intermediate(
                &format!("c{}", if shape.is_remote(other) { 1 } else { other + 1 }),
                &shape.domain(if shape.is_remote(other) { 0 } else { other }),
            );
            let probe = |from, port, handshake| GatewayProbe {
                cluster: peer.clone(),
                service: "istio-system/istio-eastwestgateway".to_owned(),
                address: gateway_address(shape, other),
                port,
                from,
                touch: Datum::now(Touch::Reached),
                handshake,
            };
            let inside = || From::Inside("istiod-1".to_owned());
            if !shape.node_port || shape.external_ips {
                if shape.networks[other] != shape.networks[index] {
                    seen.gateways.push(probe(inside(), 15443, None));
                    let sni = "outbound_.80_._.web0.shop.svc.cluster.local".to_owned();
                    seen.gateways.push(probe(From::Here, 15443, Some(Handshake { sni, chain: Ok(chain) })));
                }
                if reaches_control {
                    let sni = "istiod.istio-system.svc".to_owned();
                    let shown = Handshake {
                        sni,
                        chain: Ok(vec![intermediate("c1", &shape.domain(0)).0]).map(|c| {
                            c.iter().map(|c| Certificate::from_pem(&c.ca_cert).unwrap().der().to_vec()).collect()
                        }),
                    };
                    seen.gateways.push(probe(inside(), 15012, None));
                    seen.gateways.push(probe(From::Here, 15012, Some(shown)));
                }
            }
        }
    }
    if shape.hostnames && shape.has_gateways() {
        seen.names.insert(gateway_address(shape, index), Datum::now(vec![[203, 0, 113, 7].into()]));
    }
    if remote {
        seen.injection = Some(Datum::now(Ok(())));
    } else {
        let all = (0..shape.networks.len()).map(|i| json!({"id": format!("c{}", i + 1), "syncStatus": "synced"}));
        seen.istiods.push(Istiod {
            pod: "istiod-1".to_owned(),
            clusterz: Datum::now(all.collect()),
            shards: Datum::now(json!({})),
        });
    }
    for (_, kind, _) in LISTED {
        let key = if kind == "Gateway" { KUBERNETES_GATEWAYS } else { kind };
        seen.objects.insert(key.to_owned(), Datum::Read { value: objects.remove(key).unwrap_or_default(), at: now });
    }
    for kind in istio::KINDS.iter().map(|k| k.kind).chain([LABELLED_SECRETS]) {
        seen.objects.insert(kind.to_owned(), Datum::Read { value: objects.remove(kind).unwrap_or_default(), at: now });
    }
    assert!(objects.is_empty(), "{:?}", objects.keys());
    seen
}

fn server(shape: &Shape, index: usize) -> String {
    if shape.lab {
        format!("https://127.{}.0.1:6443", 16 + index)
    } else {
        format!("https://198.51.100.{}:6443", index + 1)
    }
}

fn gateway_address(shape: &Shape, index: usize) -> String {
    match () {
        () if shape.lab => format!("127.{}.0.16", 16 + index),
        () if shape.hostnames => format!("gw{index}.elb.example.com"),
        () if shape.private_gateways => format!("10.200.0.{}", index + 1),
        () => format!("203.0.113.{}", index + 1),
    }
}
