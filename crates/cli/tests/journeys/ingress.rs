//! What comes from outside the mesh: an ingress gateway in front of services of two clusters on two networks, with our
//! proxy and with Envoy, and the book shop whose details run in the other cluster.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use serde_json::{Value, json};
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::world::{World, eventually, say, text};

/// Clusters `a` and `b` on networks of their own, as many as asked for.
fn mesh(name: &str, clusters: usize, samples: &str) -> String {
    let head = format!(
        "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: {name}}}\nspec:\n\
         \x20 controlPlane: {{gateways: {{ingress: true}}}}\n  samples: [{samples}]\n  clusters:\n"
    );
    let line = |(cluster, network): &(&str, &str)| {
        format!("  - {{name: {cluster}, context: {name}-{cluster}, network: {network}, region: {network}}}\n")
    };
    [("a", "east"), ("b", "west")].iter().take(clusters).map(line).fold(head, |text, line| text + &line)
}

/// The address of a cluster's ingress gateway: port 80, which a lab binds at 20080.
async fn address(cluster: &Cluster) -> SocketAddr {
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "istio-system");
    let service = services.get("istio-ingressgateway").await.unwrap();
    let balancer = service.status.unwrap().load_balancer.unwrap().ingress.unwrap();
    SocketAddr::new(balancer[0].ip.as_ref().unwrap().parse().unwrap(), 20080)
}

/// An answer from outside.
#[derive(Debug)]
struct Answer {
    status: u16,
    body: String,
}

/// One request of HTTP/1.1, as somebody outside of all clusters sends it.
async fn ask(at: SocketAddr, request: &str) -> Result<Answer, String> {
    let asking = async {
        let mut stream = TcpStream::connect(at).await.map_err(|error| error.to_string())?;
        let (line, headers) = request.split_once('\n').unwrap_or((request, ""));
        let (method, path) = line.split_once(' ').unwrap_or(("GET", line));
        let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !headers.contains("host:") {
            head += "host: shop.example.com\r\n";
        }
        for header in headers.lines() {
            head += &format!("{header}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).await.map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.map_err(|error| error.to_string())?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| format!("no answer: {answer:?}"))?;
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or("no status")?;
        Ok(Answer { status, body: body.to_owned() })
    };
    tokio::time::timeout(Duration::from_secs(20), asking).await.unwrap_or_else(|_| Err("no answer in time".into()))
}

async fn write(cluster: &Cluster, object: &Value) {
    objects::apply(&cluster.client, &Resource::of(object).unwrap(), object, "journey", true).await.unwrap();
}

fn networking(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": "sample"}, "spec": spec})
}

/// The rules that HelloWorld is shown to the outside by, in the cluster of this gateway.
fn shown() -> [Value; 3] {
    let host = "helloworld.sample.svc.cluster.local";
    let to = |subset: &str| json!({"destination": {"host": host, "subset": subset, "port": {"number": 5000}}});
    let gateway = json!({"selector": {"istio": "ingressgateway"}, "servers": [
        {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*.example.com"]}]});
    let mut share = [to("v1"), to("v2")];
    (share[0]["weight"], share[1]["weight"]) = (50.into(), 50.into());
    let rules = json!({"hosts": ["shop.example.com"], "gateways": ["hello"], "http": [
        {"match": [{"uri": {"exact": "/first"}}], "rewrite": {"uri": "/hello"}, "route": [to("v1")]},
        {"match": [{"uri": {"prefix": "/second/"}}], "rewrite": {"uri": "/"}, "route": [to("v2")]},
        {"match": [{"uri": {"regex": "/(a|b)[0-9]+"}}], "directResponse": {"status": 418}},
        {"match": [{"uri": {"exact": "/hello"}, "headers": {"x-version": {"exact": "v2"}}}], "route": [to("v2")]},
        {"match": [{"uri": {"exact": "/hello"}, "method": {"exact": "POST"}}], "directResponse": {"status": 405}},
        {"match": [{"uri": {"exact": "/shared"}}], "rewrite": {"uri": "/hello"}, "route": share},
        {"match": [{"uri": {"exact": "/near"}}], "rewrite": {"uri": "/hello"}, "timeout": "10s",
            "retries": {"attempts": 3, "retryOn": "connect-failure,reset,503"}, "route": [{"destination": {"host": host}}]},
    ]});
    let parts = json!({"host": host,
        "trafficPolicy": {
            "outlierDetection": {"consecutive5xxErrors": 1, "interval": "1s", "baseEjectionTime": "5s", "maxEjectionPercent": 100},
            "loadBalancer": {"localityLbSetting": {"enabled": true, "failover": [{"from": "east", "to": "west"}]}},
        },
        "subsets": [{"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}}]});
    [
        networking("Gateway", "hello", gateway),
        networking("VirtualService", "hello", rules),
        networking("DestinationRule", "hello", parts),
    ]
}

async fn serves(name: &str, envoy: Option<PathBuf>) {
    let mut world = World::new();
    let file = world.write("mesh.yaml", &mesh(name, 2, "helloworld, sleep"));
    let flags: Vec<String> = match &envoy {
        Some(envoy) => ["--envoy", text(envoy), "--envoy-for", "gateways"].map(str::to_owned).into(),
        None => Vec::new(),
    };
    world.up_with(&file, &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    world.good(&["plan", "-f", text(&file)]).await;
    let clusters = world.clusters(&[&format!("{name}-a"), &format!("{name}-b")]).await;
    let at = address(&clusters[0]).await;
    for object in shown() {
        // A subset is served in whichever cluster it runs: both sides of a network border must know it.
        for cluster in &clusters {
            write(cluster, &object).await;
        }
    }

    let answers = |request: &'static str, status: u16, says: &'static str| async move {
        eventually(request, Duration::from_secs(30), || async {
            let answer = ask(at, request).await?;
            let is_so = answer.status == status && answer.body.contains(says);
            if is_so { Ok(()) } else { Err(format!("{answer:?}")) }
        })
        .await;
    };
    answers("GET /first", 200, "version: v1").await;
    for (request, status, says) in [
        // v2 runs in the other cluster, on the other network.
        ("GET /second/hello", 200, "version: v2"),
        ("GET /hello\nx-version: v2", 200, "version: v2"),
        ("GET /hello", 404, ""),
        ("POST /hello\ncontent-length: 0", 405, ""),
        ("GET /a17", 418, ""),
        ("GET /c17", 404, ""),
        ("GET /first\nhost: shop.example.com:20080", 200, "version: v1"),
        ("GET /first\nhost: shop.example.org", 404, ""),
    ] {
        answers(request, status, says).await;
    }
    let mut shares = BTreeMap::<&str, usize>::new();
    for _ in 0..60 {
        let answer = ask(at, "GET /shared").await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        *shares.entry(if answer.body.contains("version: v1") { "v1" } else { "v2" }).or_default() += 1;
    }
    // Of 60 at one half each, fewer than 5 come once in 10^10 runs.
    assert!(shares.values().all(|count| *count >= 5) && shares.len() == 2, "{shares:?}");

    // Near by as long as there is anybody; then the other cluster.
    for _ in 0..20 {
        let answer = ask(at, "GET /near").await.unwrap();
        assert!(answer.status == 200 && answer.body.contains("version: v1"), "{answer:?}");
    }
    // Policies of the gateway's own pods are obeyed by the gateway.
    let denied = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "first", "namespace": "istio-system"},
        "spec": {"selector": {"matchLabels": {"istio": "ingressgateway"}}, "action": "DENY",
            "rules": [{"to": [{"operation": {"paths": ["/first"], "hosts": ["shop.example.com*"]}}]}]}});
    write(&clusters[0], &denied).await;
    answers("GET /first", 403, "RBAC: access denied").await;
    answers("GET /near", 200, "version: v1").await;

    let gone = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "helloworld-v1", "namespace": "sample"}, "spec": {"replicas": 0}});
    write(&clusters[0], &gone).await;
    answers("GET /near", 200, "version: v2").await;
    say(&format!("{name}: shares {shares:?}, then the other cluster"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_from_outside_reach_both_clusters() {
    serves("outer", None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_from_outside_reach_both_clusters_through_envoy() {
    let Some(envoy) = crate::programs::program("STOLOS_ENVOY") else { return };
    serves("outer-envoy", Some(envoy)).await;
}

/// A part of Istio's book shop: its Service, and the pods behind it where there are to be some.
fn book(name: &str, version: Option<&str>) -> Vec<Value> {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "bookinfo", "labels": {"app": name}},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 9080}]}});
    let pods = version.map(|version| {
        let labels = json!({"app": name, "version": version});
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": format!("{name}-{version}"), "namespace": "bookinfo"},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": {
                "terminationGracePeriodSeconds": 1, "containers": [{"name": name,
                    "image": format!("docker.io/istio/examples-bookinfo-{name}-{version}:1.20.3"), "ports": [{"containerPort": 9080}]}]}}}})
    });
    std::iter::once(service).chain(pods).collect()
}

/// Istio's samples/bookinfo/networking/bookinfo-gateway.yaml.
fn book_gateway() -> [Value; 2] {
    let (exact, prefix) = (|path: &str| json!({"uri": {"exact": path}}), |path: &str| json!({"uri": {"prefix": path}}));
    let object = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name, "namespace": "bookinfo"}, "spec": spec});
    [
        object(
            "Gateway",
            "bookinfo-gateway",
            json!({"selector": {"istio": "ingressgateway"}, "servers": [
            {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]}),
        ),
        object(
            "VirtualService",
            "bookinfo",
            json!({"hosts": ["*"], "gateways": ["bookinfo-gateway"], "http": [{
            "match": [exact("/productpage"), prefix("/static"), exact("/login"), exact("/logout"), prefix("/api/v1/products")],
            "route": [{"destination": {"host": "productpage", "port": {"number": 9080}}}]}]}),
        ),
    ]
}

/// What the registry listing says of `details`.
async fn details(world: &World, file: &Path) -> Value {
    let report = world.good(&["status", "-f", text(file), "--services", "-o", "json"]).await.document();
    let all = report["services"].as_array().unwrap();
    let found = all.iter().find(|service| service["host"] == "details.bookinfo.svc.cluster.local");
    found.unwrap_or_else(|| panic!("no details: {report:#}")).clone()
}

/// The shop's front is in one cluster and says that it cannot fetch a book's details: nobody serves them. A cluster
/// that does joins, and the page has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bookinfo_gets_its_details_from_the_cluster_that_joins() {
    let mut world = World::new();
    let everyone = world.write("lab.yaml", &mesh("books", 2, ""));
    let file = world.write("mesh.yaml", &mesh("books", 1, ""));
    world.up(&everyone).await;
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    let clusters = world.clusters(&["books-a", "books-b"]).await;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "bookinfo", "labels": {"istio-injection": "enabled"}}});
    write(&clusters[0], &namespace).await;
    // The Service is there without pods: it is the name by which the page asks.
    let parts = [("details", None), ("ratings", Some("v1")), ("reviews", Some("v3")), ("productpage", Some("v1"))];
    for object in parts.into_iter().flat_map(|(name, version)| book(name, version)).chain(book_gateway()) {
        write(&clusters[0], &object).await;
    }
    let at = address(&clusters[0]).await;
    let page = |says: &'static str, within: u64| async move {
        eventually(says, Duration::from_secs(within), || async {
            let answer = ask(at, "GET /productpage").await?;
            let is_so = answer.status == 200 && answer.body.contains(says);
            if is_so { Ok(answer) } else { Err(format!("{answer:?}")) }
        })
        .await
    };
    let without = page("Error fetching product details", 60).await;
    assert!(!without.body.contains("publisher"), "{without:?}");
    for (path, status) in [("/api/v1/products/0/reviews", 200), ("/productpage/x", 404), ("/details/0", 404)] {
        let answer = ask(at, &format!("GET {path}")).await.unwrap();
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    let before = details(&world, &file).await;
    assert_eq!((&before["endpoints"], &before["ports"][0]["port"]), (&json!({"a": 0}), &json!(9080)), "{before:#}");

    // The other cluster joins; details run there.
    world.write("mesh.yaml", &mesh("books", 2, ""));
    world.good(&["apply", "-f", text(&file), "--yes"]).await;
    write(&clusters[1], &namespace).await;
    for object in book("details", Some("v1")) {
        write(&clusters[1], &object).await;
    }
    eventually("details run", Duration::from_secs(60), || async {
        let ready = crate::setup_mesh::ready_pods(&clusters[1].client, "bookinfo", "details").await;
        if ready.is_empty() { Err("no pod is ready") } else { Ok(()) }
    })
    .await;
    let shown = page("publisher", 5).await;
    assert!(shown.body.contains("William Shakespeare") && !shown.body.contains("Error fetching"), "{shown:?}");

    let now = details(&world, &file).await;
    assert_eq!(now["endpoints"], json!({"a": 0, "b": 1}), "{now:#}");
    // Both control planes have it, so that whoever asks in either cluster is sent there.
    for registry in ["a", "b"] {
        assert_eq!(now["registries"][registry]["b"], 1, "{now:#}");
    }
    let table = world.good(&["status", "-f", text(&file), "--services"]).await.out;
    let line = table.lines().find(|line| line.starts_with("details.bookinfo")).unwrap_or_else(|| panic!("{table}"));
    assert_eq!(
        line.split_whitespace().collect::<Vec<_>>(),
        ["details.bookinfo.svc.cluster.local", "9080", "0", "1", "same"]
    );
    say(&table);
}
