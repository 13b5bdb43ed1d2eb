//! A control plane over two real API servers: what it reads, sends, signs, injects and publishes while they change.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use stolos_apiserver::runtime::ServiceResolver;
use stolos_apiserver::{Builder, Server, User};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::istio;
use stolos_pki::{Authority, Certificate, Credentials, Roots, SpiffeId, WorkloadRequest};
use stolos_serve::{Container, HostNet, Listener, Net, Output, Stop, Stream};
use stolos_xds::client::{Client, Handle, Target};
use stolos_xds::envoy::config::core::v3::Node;
use stolos_xds::envoy::config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier};
use stolos_xds::istio::v1::auth::IstioCertificateRequest;
use stolos_xds::istio::v1::auth::istio_certificate_service_client::IstioCertificateServiceClient;
use stolos_xds::message::{self, string, structure};
use tonic::metadata::MetadataMap;

const PATIENCE: Duration = Duration::from_secs(15);
const HOST: &str = "web.shop.svc.cluster.local";

/// The host's network, in which the control plane has its name and an address of its own.
struct TestNet(HostNet);

impl TestNet {
    /// Ports are fixed, so every test has an address of its own.
    fn new() -> Arc<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let pid = std::process::id();
        let [.., high, low] = pid.to_be_bytes();
        let address = Ipv4Addr::new(127, 200 + NEXT.fetch_add(1, Ordering::Relaxed) % 50, high, low.max(1));
        Arc::new(Self(HostNet::new(address.into())))
    }
}

impl Net for TestNet {
    fn address(&self) -> IpAddr {
        self.0.address()
    }

    fn dial(&self, to: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        self.0.dial(to)
    }

    fn bind(&self, port: u16) -> BoxFuture<'_, io::Result<Listener>> {
        self.0.bind(port)
    }

    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        if host.starts_with("istiod.") {
            return Box::pin(async { Ok(vec![self.address()]) });
        }
        self.0.resolve(host)
    }
}

/// Leads the API server to the webhook.
struct Resolver(Arc<TestNet>);

impl ServiceResolver for Resolver {
    fn dial<'a>(&'a self, namespace: &'a str, service: &'a str, port: u16) -> BoxFuture<'a, io::Result<Stream>> {
        assert_eq!((namespace, service, port), ("istio-system", "istiod", 443));
        let to = SocketAddr::new(self.0.address(), istio::WEBHOOK_PORT);
        Box::pin(async move { self.0.dial(to).await })
    }
}

/// A control plane of `east`, and the API servers of `east` and `west`.
struct World {
    east: Server,
    west: Server,
    net: Arc<TestNet>,
    root: Authority,
    stop: Stop,
    control: tokio::task::JoinHandle<Result<(), stolos_control::Error>>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let (east, west) = (Builder::new().start().await.unwrap(), Builder::new().start().await.unwrap());
        for crd in istio::crds() {
            apply(&east, crd).await;
        }
        for server in [&east, &west] {
            let labels = json!({istio::NETWORK_LABEL: "net1"});
            apply(server, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system", "labels": labels}})).await;
            let labels = json!({istio::INJECTION_LABEL: "enabled"});
            apply(
                server,
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels}}),
            )
            .await;
            apply(
                server,
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "shop"}}),
            )
            .await;
            apply(
                server,
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}),
            )
            .await;
        }
        pods(&east, &["10.1.0.1"]).await;
        pods(&west, &["10.2.0.1"]).await;

        let net = TestNet::new();
        east.set_service_resolver(Arc::new(Resolver(net.clone())));
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let day = Duration::from_secs(24 * 3600);
        let root = Authority::new_root("mesh.example.com", day * 365, now).unwrap();
        cacerts(folder.path(), &root);
        let stop = Stop::new();
        let env = [("CLUSTER_ID", "east"), ("MESH_ID", "mesh"), ("POD_NAME", "istiod-1")];
        let container = Container {
            net: net.clone(),
            root: folder.path().to_owned(),
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            args: vec!["discovery".to_owned()],
            output: Output::discard(),
            programs: None,
        };
        let control = tokio::spawn(stolos_control::run_with(container, least(&east).await, stop.clone()));
        let world = Self { east, west, net, root, stop, control, _folder: folder };
        until("ready", || async { (world.page("/ready").await == "ready\n").then_some(()) }).await;
        world
    }

    async fn end(self) {
        self.stop.ask();
        tokio::time::timeout(PATIENCE, self.control).await.unwrap().unwrap().unwrap();
        self.east.stop().await;
        self.west.stop().await;
    }

    /// A page of the control plane.
    async fn page(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let Ok(mut stream) = self.net.dial((self.net.address(), istio::DEBUG_PORT).into()).await else {
            return String::new();
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.page(path).await).unwrap_or_default()
    }

    /// The metadata of somebody with a token.
    async fn metadata(&self, audience: &str) -> MetadataMap {
        let accounts = Api::<ServiceAccount>::namespaced(self.east.client(), "shop");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.to_owned()]),
                expiration_seconds: Some(3600),
                ..Default::default()
            }),
            ..Default::default()
        };
        let token = accounts.create_token_request("web", &PostParams::default(), &request).await.unwrap();
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", format!("Bearer {}", token.status.unwrap().token.unwrap()).parse().unwrap());
        metadata.insert("clusterid", "east".parse().unwrap());
        metadata
    }

    fn target(&self) -> Target {
        let roots = Roots::from_pem(self.root.roots_pem()).unwrap();
        let tls = stolos_pki::tls::client_by_name(None, &roots, &[b"h2"]).unwrap();
        Target {
            net: self.net.clone(),
            host: "istiod.istio-system.svc".to_owned(),
            port: istio::XDS_PORT,
            tls: Some(Arc::new(move || Ok(tls.clone()))),
            timeout: Duration::from_secs(5),
        }
    }

    /// A sidecar of pod `web-0` in `shop`.
    async fn sidecar(&self) -> Handle {
        let metadata = self.metadata(istio::TOKEN_AUDIENCE).await;
        let node = Node {
            id: "sidecar~10.1.0.1~web-0.shop~shop.svc.cluster.local".to_owned(),
            metadata: Some(structure([
                ("CLUSTER_ID", string("east")),
                ("NETWORK", string("net1")),
                ("NAMESPACE", string("shop")),
                ("SERVICE_ACCOUNT", string("web")),
            ])),
            ..Node::default()
        };
        let client = Client {
            metadata: Arc::new(move || {
                let metadata = metadata.clone();
                Box::pin(async move { Ok(metadata) })
            }),
            ..Client::new(self.target(), node)
        };
        client.start(self.stop.child())
    }
}

/// A client with the rights that the mesh's plan gives a control plane, and no others.
async fn least(server: &Server) -> kube::Client {
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    const READ: &[&str] = &["get", "list", "watch"];
    let mut rules = vec![
        rule("", &["namespaces", "services", "pods", "nodes"], READ),
        rule("discovery.k8s.io", &["endpointslices"], READ),
        rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
        rule("", &["configmaps"], &["create", "get", "list", "watch"]),
        rule("admissionregistration.k8s.io", &["mutatingwebhookconfigurations"], READ),
        rule("", &["events"], &["create", "patch"]),
    ];
    for group in ["networking.istio.io", "security.istio.io", "telemetry.istio.io"] {
        rules.push(rule(group, &["*"], READ));
        rules.push(rule(group, &["*/status"], &["get", "patch", "update"]));
    }
    for (group, resource, name) in [
        ("", "configmaps", "istio-ca-root-cert"),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations", "istio-sidecar-injector"),
    ] {
        let mut rule = rule(group, &[resource], &["update", "patch"]);
        rule["resourceNames"] = json!([name]);
        rules.push(rule);
    }
    let name = "istiod";
    let (group, version) = ("rbac.authorization.k8s.io", "rbac.authorization.k8s.io/v1");
    let subjects = json!([{"kind": "ServiceAccount", "name": name, "namespace": "istio-system"}]);
    let role = |kind: &str| json!({"apiGroup": group, "kind": kind, "name": name});
    let here = json!({"name": name, "namespace": "istio-system"});
    let secrets = [rule("", &["secrets"], READ)];
    for object in [
        json!({"apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}),
        json!({"apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": name}, "roleRef": role("ClusterRole"), "subjects": subjects}),
        json!({"apiVersion": version, "kind": "Role", "metadata": here, "rules": secrets}),
        json!({"apiVersion": version, "kind": "RoleBinding", "metadata": here, "roleRef": role("Role"), "subjects": subjects}),
    ] {
        apply(server, object).await;
    }
    let groups = ["system:serviceaccounts", "system:serviceaccounts:istio-system", "system:authenticated"];
    server.client_as(User {
        name: "system:serviceaccount:istio-system:istiod".to_owned(),
        uid: String::new(),
        groups: groups.map(str::to_owned).to_vec(),
        extra: BTreeMap::new(),
    })
}

async fn apply(server: &Server, object: Value) {
    let resource = Resource::of(&object).unwrap();
    let client = server.client();
    // A kind that a definition has just brought may not be served yet.
    until("applied", || async { objects::apply(&client, &resource, &object, "test", true).await.ok() }).await;
}

/// Makes the Service's pods be at these addresses.
async fn pods(server: &Server, addresses: &[&str]) {
    for (at, address) in addresses.iter().enumerate() {
        let name = format!("web-{at}");
        let labels = json!({"app": "web", istio::TLS_MODE_LABEL: "istio", istio::INJECT_LABEL: "false"});
        apply(
            server,
            json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"serviceAccountName": "web", "nodeName": "n1", "containers": [{"name": "web", "image": "web"}]}}),
        )
        .await;
        let api = Api::<Pod>::namespaced(server.client(), "shop");
        let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }
    slice(server, addresses).await;
}

async fn slice(server: &Server, addresses: &[&str]) {
    let endpoints: Vec<_> = addresses
        .iter()
        .enumerate()
        .map(|(at, address)| {
            json!({"addresses": [address], "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "name": format!("web-{at}"), "namespace": "shop"}})
        })
        .collect();
    apply(
        server,
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {istio::SERVICE_NAME_LABEL: "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints}),
    )
    .await;
}

fn cacerts(folder: &Path, root: &Authority) {
    let day = Duration::from_secs(24 * 3600);
    let made =
        root.issue_intermediate("east", "mesh.example.com", "cluster.local", day * 90, SystemTime::now()).unwrap();
    let folder = folder.join("etc/cacerts");
    std::fs::create_dir_all(&folder).unwrap();
    let files = [
        (istio::CA_CERT_KEY, made.ca_cert.as_str()),
        (istio::CA_KEY_KEY, made.ca_key.expose()),
        (istio::CERT_CHAIN_KEY, &made.cert_chain),
        (istio::ROOT_CERT_KEY, &made.root_cert),
    ];
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
}

/// Asks again and again until there is an answer.
async fn until<T, F: Future<Output = Option<T>>>(what: &str, ask: impl Fn() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Where the proxy would send requests for the service.
fn endpoints(proxy: &Handle) -> Vec<String> {
    let snapshot = proxy.snapshots().borrow().clone();
    let Some(resource) = snapshot.resource(message::ENDPOINT, &format!("outbound|80||{HOST}")) else {
        return Vec::new();
    };
    let assignment: ClusterLoadAssignment = resource.message().unwrap();
    let mut found: Vec<_> = assignment
        .endpoints
        .iter()
        .flat_map(|group| &group.lb_endpoints)
        .filter_map(|endpoint| match &endpoint.host_identifier {
            Some(HostIdentifier::Endpoint(endpoint)) => {
                message::socket(endpoint.address.as_ref()?).map(|(host, port)| format!("{host}:{port}"))
            }
            _ => None,
        })
        .collect();
    found.sort();
    found
}

async fn reaches(proxy: &Handle, expected: &[&str]) {
    until(&format!("endpoints are {expected:?}"), || async { (endpoints(proxy) == expected).then_some(()) }).await;
}

fn remote_secret(name: &str, clusters: &[(&str, &Server)]) -> Value {
    let data: BTreeMap<_, _> =
        clusters.iter().map(|(id, server)| ((*id).to_owned(), server.kubeconfig(id).to_string())).collect();
    json!({"apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": name, "namespace": "istio-system", "labels": {istio::MULTI_CLUSTER_LABEL: "true"}},
        "stringData": data})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_follow_clusters_and_pods() {
    let world = World::start().await;
    let proxy = world.sidecar().await;
    reaches(&proxy, &["10.1.0.1:8080"]).await;

    // A cluster joins …
    apply(&world.east, remote_secret("istio-remote-secret-west", &[("west", &world.west)])).await;
    reaches(&proxy, &["10.1.0.1:8080", "10.2.0.1:8080"]).await;
    // Its endpoints may be sent a moment before the last of its kinds has been listed.
    let clusters = until("west is synced", || async {
        let clusters = world.json("/debug/clusterz").await;
        (clusters[1]["syncStatus"] == "synced").then_some(clusters)
    })
    .await;
    assert_eq!(clusters[1]["id"], "west");
    assert_eq!(clusters[1]["secretName"], "istio-system/istio-remote-secret-west");

    // … its pods come and go …
    pods(&world.west, &["10.2.0.1", "10.2.0.2"]).await;
    reaches(&proxy, &["10.1.0.1:8080", "10.2.0.1:8080", "10.2.0.2:8080"]).await;
    slice(&world.west, &["10.2.0.1"]).await;
    reaches(&proxy, &["10.1.0.1:8080", "10.2.0.1:8080"]).await;

    // … its credentials change without a blink …
    let mut blinked = proxy.snapshots();
    let watching = tokio::spawn({
        let proxy = proxy.clone();
        async move {
            while blinked.changed().await.is_ok() {
                assert_eq!(endpoints(&proxy).len(), 2, "endpoints blinked");
            }
        }
    });
    let mut other = remote_secret("istio-remote-secret-west", &[("west", &world.west)]);
    let changed =
        other["stringData"]["west"].as_str().unwrap().replace("\"preferences\":{}", "\"preferences\":{\"a\":1}");
    other["stringData"]["west"] = json!(changed);
    apply(&world.east, other).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!watching.is_finished());
    watching.abort();

    // … a dead one beside it harms nobody …
    let mut dead = remote_secret("dead", &[("dead", &world.west)]);
    let config = dead["stringData"]["dead"].as_str().unwrap().replace(&world.west.url(), "https://127.0.0.1:1");
    dead["stringData"] = json!({"dead": config, "refused": "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'https://x'}}]\ncontexts: [{name: c, context: {cluster: c, user: c}}]\nusers: [{name: c, user: {exec: {command: aws, apiVersion: client.authentication.k8s.io/v1}}}]\ncurrent-context: c\n"});
    apply(&world.east, dead).await;
    let state = |id: &'static str| {
        let world = &world;
        move || async move {
            let clusters = world.json("/debug/clusterz").await;
            let cluster = clusters.as_array()?.iter().find(|cluster| cluster["id"] == id)?;
            cluster["error"]
                .as_str()
                .map(|error| (cluster["syncStatus"].as_str().unwrap().to_owned(), error.to_owned()))
        }
    };
    assert_eq!(until("dead is noticed", state("dead")).await.0, "syncing");
    let (status, error) = until("the exec kubeconfig is refused", state("refused")).await;
    assert_eq!(status, "closed");
    assert!(error.contains("exec"), "{error}");
    assert_eq!(endpoints(&proxy), ["10.1.0.1:8080", "10.2.0.1:8080"]);

    // … and it leaves.
    let secrets = Api::<k8s_openapi::api::core::v1::Secret>::namespaced(world.east.client(), "istio-system");
    secrets.delete("istio-remote-secret-west", &DeleteParams::default()).await.unwrap();
    reaches(&proxy, &["10.1.0.1:8080"]).await;

    // A gateway of another network takes the place of its pods.
    let network = json!({"metadata": {"labels": {istio::NETWORK_LABEL: "net2"}}});
    let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(world.west.client());
    namespaces.patch("istio-system", &PatchParams::default(), &Patch::Merge(&network)).await.unwrap();
    apply(
        &world.west,
        json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "gw", "namespace": "istio-system", "labels": {istio::NETWORK_LABEL: "net2"}},
        "spec": {"type": "LoadBalancer", "ports": [{"name": "tls", "port": 15443}]}}),
    )
    .await;
    let services = Api::<Service>::namespaced(world.west.client(), "istio-system");
    let address = json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}});
    services.patch_status("gw", &PatchParams::default(), &Patch::Merge(&address)).await.unwrap();
    apply(&world.east, remote_secret("istio-remote-secret-west", &[("west", &world.west)])).await;
    reaches(&proxy, &["10.1.0.1:8080", "192.0.2.7:15443"]).await;
    assert_eq!(world.json("/debug/networkz").await[0]["network"], "net2");

    let sync = until("everything is acknowledged", || async {
        let sync = world.json("/debug/syncz").await;
        (sync[0]["settled"] == sync[0]["snapshot"]).then_some(sync)
    })
    .await;
    assert_eq!(sync[0]["proxy"], "web-0.shop");
    assert_eq!(sync[0]["endpoint_status"], "SYNCED");
    let metrics = world.page("/metrics").await;
    assert!(metrics.contains("istiod_managed_clusters{cluster_type=\"remote\"} 3"), "{metrics}");
    assert!(metrics.contains("pilot_total_xds_rejects{type=\"cds\"} 0"));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identities_are_what_the_token_says() {
    let world = World::start().await;
    let ask = |metadata: MetadataMap| {
        let target = world.target();
        async move {
            // The request asks for more than its token is good for.
            let request = WorkloadRequest::new(&SpiffeId::new("cluster.local", "istio-system", "istiod")).unwrap();
            let channel = target.connect().await.unwrap();
            let body =
                IstioCertificateRequest { csr: request.csr_pem.clone(), validity_duration: 3600, metadata: None };
            let mut asking = tonic::Request::new(body);
            *asking.metadata_mut() = metadata;
            let answer = IstioCertificateServiceClient::new(channel).create_certificate(asking).await;
            answer.map(|answer| (answer.into_inner().cert_chain, request))
        }
    };
    let (chain, request) = ask(world.metadata(istio::TOKEN_AUDIENCE).await).await.unwrap();
    let leaf = Certificate::from_pem(&chain[0]).unwrap();
    assert_eq!(leaf.uris(), ["spiffe://cluster.local/ns/shop/sa/web"]);
    assert_eq!(chain.last().unwrap(), world.root.roots_pem());
    Credentials::from_pem(&chain[..chain.len() - 1].concat(), request.key.to_pem().expose()).unwrap();

    let refused = |metadata| async { ask(metadata).await.map(|_| ()).unwrap_err().code() };
    assert_eq!(refused(MetadataMap::new()).await, tonic::Code::Unauthenticated);
    let elsewhere = world.metadata("https://kubernetes.default.svc").await;
    assert_eq!(refused(elsewhere).await, tonic::Code::Unauthenticated, "a token for another audience");
    let mut nonsense = MetadataMap::new();
    nonsense.insert("authorization", "Bearer x.y.z".parse().unwrap());
    assert_eq!(refused(nonsense).await, tonic::Code::Unauthenticated);
    let mut foreign = world.metadata(istio::TOKEN_AUDIENCE).await;
    foreign.insert("clusterid", "west".parse().unwrap());
    assert_eq!(refused(foreign).await, tonic::Code::Unauthenticated, "another cluster's");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_injected_and_roots_published() {
    let world = World::start().await;
    let maps = Api::<ConfigMap>::namespaced(world.east.client(), "shop");
    let published = || async {
        let map = maps.get_opt(istio::ROOT_CONFIG_MAP).await.unwrap()?;
        (map.data?.get(istio::ROOT_CERT_KEY)? == world.root.roots_pem()).then_some(())
    };
    until("the root is published", published).await;
    let vandal = json!({"data": {istio::ROOT_CERT_KEY: "nonsense"}});
    maps.patch(istio::ROOT_CONFIG_MAP, &PatchParams::default(), &Patch::Merge(&vandal)).await.unwrap();
    until("the root is put back", published).await;
    maps.delete(istio::ROOT_CONFIG_MAP, &DeleteParams::default()).await.unwrap();
    until("the root is published again", published).await;
    apply(&world.east, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "late"}})).await;
    let late = Api::<ConfigMap>::namespaced(world.east.client(), "late");
    until("a new namespace has it", || async { late.get_opt(istio::ROOT_CONFIG_MAP).await.unwrap() }).await;
    let public = Api::<ConfigMap>::namespaced(world.east.client(), "kube-public");
    assert!(public.get_opt(istio::ROOT_CONFIG_MAP).await.unwrap().is_none());

    let values = json!({"global": {"hub": "stolos", "tag": "1", "network": "net1"}});
    apply(&world.east, json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "istio-sidecar-injector", "namespace": "istio-system"}, "data": {"values": values.to_string()}})).await;
    apply(&world.east, json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "istio-sidecar-injector"}, "webhooks": [{"name": "namespace.sidecar-injector.istio.io",
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
            "clientConfig": {"service": {"name": "istiod", "namespace": "istio-system", "path": "/inject", "port": 443}},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            "namespaceSelector": {"matchLabels": {"istio-injection": "enabled"}}}]})).await;
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "app", "namespace": "shop", "labels": {"app": "app"}},
        "spec": {"containers": [{"name": "app", "image": "app"}]}}))
        .unwrap();
    let pods = Api::<Pod>::namespaced(world.east.client(), "shop");
    // Until the webhook's CA is there, it fails.
    let made = until("the webhook is trusted", || async { pods.create(&PostParams::default(), &pod).await.ok() }).await;
    let containers: Vec<_> = made.spec.unwrap().containers.into_iter().map(|c| (c.name, c.image.unwrap())).collect();
    let expected = [("app", "app"), ("istio-proxy", "stolos/proxy:1")];
    assert_eq!(containers, expected.map(|(name, image)| (name.to_owned(), image.to_owned())));
    assert_eq!(made.metadata.labels.unwrap()[istio::TLS_MODE_LABEL], "istio");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_obeyed_is_said_and_closes() {
    let world = World::start().await;
    let proxy = world.sidecar().await;
    let chains = || {
        let snapshot = proxy.snapshots().borrow().clone();
        let listener = snapshot.resource(message::LISTENER, "virtualInbound")?.clone();
        let listener: stolos_xds::envoy::config::listener::v3::Listener = listener.message().unwrap();
        Some(listener.filter_chains.iter().map(|chain| chain.name.clone()).collect::<Vec<_>>())
    };
    until("open", || async { chains().filter(|names| names.contains(&"0.0.0.0_8080".to_owned())) }).await;
    apply(
        &world.east,
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "rules", "namespace": "shop"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
            "rules": [{"from": [{"source": {"requestPrincipals": ["*"]}}]}]}}),
    )
    .await;
    until("closed", || async {
        chains().filter(|names| names == &["virtualInbound-blackhole", "virtualInbound-closed"])
    })
    .await;

    let gvk = GroupVersionKind::gvk("security.istio.io", "v1", "AuthorizationPolicy");
    let resource = ApiResource::from_gvk_with_plural(&gvk, "authorizationpolicies");
    let policies = Api::<DynamicObject>::namespaced_with(world.east.client(), "shop", &resource);
    let condition = until("the condition is there", || async {
        policies.get("rules").await.unwrap().data.pointer("/status/conditions/0").cloned()
    })
    .await;
    assert_eq!((&condition["type"], &condition["status"]), (&json!("Reconciled"), &json!("False")));
    assert_eq!(condition["reason"], "NotSupported");
    let events = Api::<Event>::namespaced(world.east.client(), "shop");
    let event = until("the event is there", || async {
        let all = events.list(&Default::default()).await.unwrap();
        all.into_iter().find(|event| event.involved_object.name.as_deref() == Some("rules"))
    })
    .await;
    assert_eq!(event.type_.as_deref(), Some("Warning"));

    let mild = json!({"spec": {"action": "AUDIT"}});
    policies.patch("rules", &PatchParams::default(), &Patch::Merge(&mild)).await.unwrap();
    until("open again", || async { chains().filter(|names| names.len() > 2) }).await;
    policies.delete("rules", &DeleteParams::default()).await.unwrap();
    until("open again", || async { chains().filter(|names| names.len() > 2) }).await;
    world.end().await;
}

/// The time from a change to the proxy's having it; printed, and bounded generously.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_arrives_soon() {
    let world = World::start().await;
    let proxy = world.sidecar().await;
    pods(&world.east, &["10.1.0.1", "10.1.0.2"]).await;
    reaches(&proxy, &["10.1.0.1:8080", "10.1.0.2:8080"]).await;
    let slices = Api::<EndpointSlice>::namespaced(world.east.client(), "shop");
    let mut times = Vec::new();
    for round in 0..20 {
        let ready = round % 2 == 1;
        let patch = json!([{"op": "replace", "path": "/endpoints/1/conditions/ready", "value": ready}]);
        let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
        let mut changes = proxy.snapshots();
        changes.mark_unchanged();
        let begun = Instant::now();
        slices.patch("web-1", &PatchParams::default(), &Patch::Json::<()>(patch)).await.unwrap();
        while endpoints(&proxy).len() != if ready { 2 } else { 1 } {
            tokio::time::timeout(PATIENCE, changes.changed()).await.unwrap().unwrap();
        }
        times.push(begun.elapsed());
    }
    times.sort();
    assert!(times[times.len() / 2] < Duration::from_secs(2), "{times:?}");
    if let Some(path) = std::env::var_os("STOLOS_TIMES") {
        std::fs::write(path, format!("{times:?}\n")).unwrap();
    }
    world.end().await;
}

/// Services of every shape, some policy, and a gateway.
async fn shapes(world: &World) {
    let east = &world.east;
    let port = |name: &str, number: u16| json!({"name": name, "port": number, "targetPort": number});
    let many: [(&str, Value); 9] = [
        ("http", json!({"ports": [port("http", 8000), port("http-more", 8001)]})),
        ("same-port", json!({"ports": [port("http", 8000)]})),
        ("grpc", json!({"ports": [port("grpc", 9000)]})),
        ("tcp", json!({"ports": [port("tcp", 3000), port("tls", 3001), port("mysql", 3306)]})),
        ("auto", json!({"ports": [port("web", 8000), port("other", 7000)]})),
        ("udp", json!({"ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, port("dns-tcp", 53)]})),
        ("headless", json!({"clusterIP": "None", "ports": [port("http", 80), port("tcp", 6000), port("auto", 6001)]})),
        ("outside", json!({"type": "ExternalName", "externalName": "http.shop.svc.cluster.local"})),
        ("empty", json!({"ports": [port("http", 80)], "selector": {"app": "nobody"}})),
    ];
    for (name, mut spec) in many {
        if spec.get("type").is_none() && spec.get("selector").is_none() {
            spec["selector"] = json!({"app": "web"});
        }
        apply(east, json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})).await;
    }
    apply(east, json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "headless-1", "namespace": "shop", "labels": {istio::SERVICE_NAME_LABEL: "headless"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 80}, {"name": "tcp", "port": 6000}, {"name": "auto", "port": 6001}],
        "endpoints": [{"addresses": ["10.1.0.9"], "conditions": {"ready": true}}]})).await;
    apply(east, json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"host": "web", "trafficPolicy": {"outlierDetection": {"consecutive5xxErrors": 2, "interval": "1s"},
            "loadBalancer": {"simple": "ROUND_ROBIN", "localityLbSetting": {"failover": [{"from": "r1", "to": "r2"}]}},
            "connectionPool": {"tcp": {"connectTimeout": "2s"}}},
            "subsets": [{"name": "v1", "labels": {"app": "web"}}]}})).await;
    apply(east, json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": {"name": "cross-network-gateway", "namespace": "istio-system"},
        "spec": {"selector": {"istio": "eastwestgateway"}, "servers": [{"port": {"number": 15443, "name": "tls", "protocol": "TLS"},
            "tls": {"mode": "AUTO_PASSTHROUGH"}, "hosts": ["*.local"]}]}})).await;
    for (name, mode) in [("http", "STRICT"), ("tcp", "DISABLE"), ("auto", "PERMISSIVE")] {
        apply(east, json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"selector": {"matchLabels": {"app": name}}, "mtls": {"mode": mode}}})).await;
    }
}

/// Whatever a Service looks like, it is sent, and nothing that should not be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_shape_of_service_is_sent() {
    let world = World::start().await;
    shapes(&world).await;
    let proxy = world.sidecar().await;
    let names = |type_url: &'static str| {
        let snapshot = proxy.snapshots().borrow().clone();
        let names = snapshot.get(type_url).map(|all| all.iter().map(|r| r.name.to_string()).collect::<Vec<_>>());
        names.unwrap_or_default()
    };
    // Kinds are watched one by one and may come in any order: wait for as many as there will be.
    let all = [(message::CLUSTER, 32), (message::ROUTE, 7)];
    until("all are there", || async { all.iter().all(|(of, count)| names(of).len() >= *count).then_some(()) }).await;
    // What listens at pods' addresses comes with their endpoints.
    let listens = |at| names(message::LISTENER).iter().any(|name| name == at);
    until("those of pods", || async { ["10.1.0.9_6000", "10.1.0.9_6001"].into_iter().all(listens).then_some(()) })
        .await;
    let routes = names(message::ROUTE);
    let clusters = names(message::CLUSTER);
    insta::assert_snapshot!(routes.join("\n"), @r"
    80
    8000
    8001
    9000
    auto.shop.svc.cluster.local:7000
    auto.shop.svc.cluster.local:8000
    headless.shop.svc.cluster.local:6001
    ");
    insta::assert_snapshot!(clusters.join("\n"), @r"
    BlackHoleCluster
    InboundPassthroughCluster
    PassthroughCluster
    inbound|3000||
    inbound|3001||
    inbound|3306||
    inbound|53||
    inbound|6000||
    inbound|6001||
    inbound|7000||
    inbound|8000||
    inbound|8001||
    inbound|8080||
    inbound|80||
    inbound|9000||
    outbound|3000||tcp.shop.svc.cluster.local
    outbound|3001||tcp.shop.svc.cluster.local
    outbound|3306||tcp.shop.svc.cluster.local
    outbound|443||kubernetes.default.svc.cluster.local
    outbound|53||udp.shop.svc.cluster.local
    outbound|6000||headless.shop.svc.cluster.local
    outbound|6001||headless.shop.svc.cluster.local
    outbound|7000||auto.shop.svc.cluster.local
    outbound|8000||auto.shop.svc.cluster.local
    outbound|8000||http.shop.svc.cluster.local
    outbound|8000||same-port.shop.svc.cluster.local
    outbound|8001||http.shop.svc.cluster.local
    outbound|80|v1|web.shop.svc.cluster.local
    outbound|80||empty.shop.svc.cluster.local
    outbound|80||headless.shop.svc.cluster.local
    outbound|80||web.shop.svc.cluster.local
    outbound|9000||grpc.shop.svc.cluster.local
    ");
    let listeners: Vec<_> = names(message::LISTENER).into_iter().filter(|n| !n.starts_with("10.96.")).collect();
    insta::assert_snapshot!(listeners.join("\n"), @r"
    0.0.0.0_80
    0.0.0.0_8000
    0.0.0.0_8001
    0.0.0.0_9000
    10.1.0.9_6000
    10.1.0.9_6001
    virtualInbound
    virtualOutbound
    ");
    world.end().await;
}
