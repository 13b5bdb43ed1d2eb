//! Looking: reads every cluster, all side by side, and tries what can be tried without changing anything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use futures::future::{join, join_all};
use futures::stream::{self, StreamExt as _};
use kube::client::Body;
use serde_json::{Value, json};
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::{istio, meta};
use stolos_serve::because;
use stolos_spec::{Mesh, Role};

use super::snapshot::{
    Clock, CredentialProbe, Datum, From, GatewayProbe, Istiod, KUBERNETES_GATEWAYS, LABELLED_SECRETS, LISTED,
    PathProbe, Seen, Snapshot, is_over, is_ready, proxy,
};
use super::try_out;
use crate::status::page;
use crate::verify::gateway_addresses;

/// A cluster whose objects have not been read by then counts as unreachable.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many questions one cluster is asked at a time.
const AT_ONCE: usize = 32;
/// How many addresses one cluster dials at a time.
const DIALS_AT_ONCE: usize = 8;

/// A kind to list: `apiVersion`, `kind`, whether only in the control plane's namespace.
pub(crate) type Listed = (&'static str, &'static str, bool);

/// Looks at every cluster of `mesh`, at the objects that causes are judged by and at those of the kinds `beside`. One that
/// does not answer is unread, and so is whatever else could not be read.
pub(crate) async fn look(mesh: &Mesh, clusters: &[Cluster], before: bool, beside: &[Listed]) -> Snapshot {
    let read = clusters.iter().map(|cluster| async move {
        let seen = match tokio::time::timeout(PATIENCE, objects_of(cluster, beside)).await {
            Ok(seen) => seen,
            Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
        };
        (cluster.name.clone(), Datum::of(seen))
    });
    let mut snapshot = Snapshot { now: SystemTime::now(), clusters: join_all(read).await.into_iter().collect() };
    if !before {
        let tried = join_all(clusters.iter().map(|cluster| tries(mesh, cluster, &snapshot))).await;
        for (cluster, tried) in clusters.iter().zip(tried) {
            if let (Some(Datum::Read { value, .. }), Some(tried)) = (snapshot.clusters.get_mut(&cluster.name), tried) {
                tried.into_seen(value);
            }
        }
    }
    snapshot.now = SystemTime::now();
    snapshot
}

/// One list to ask a cluster for.
struct Question {
    /// Under which name the answer is kept.
    key: String,
    resource: Result<Resource, String>,
    namespace: Option<&'static str>,
    labels: Option<&'static str>,
}

async fn objects_of(cluster: &Cluster, beside: &[Listed]) -> Result<Seen, String> {
    let (version, clock) = version(cluster).await?;
    let text = |key: &str| version[key].as_str().unwrap_or_default().to_owned();
    let mut questions = Vec::new();
    for (api_version, kind, inside) in LISTED.iter().chain(beside).copied() {
        let resource = match kind {
            "Gateway" | "ServiceCIDR" => Ok(Resource {
                api_version: api_version.to_owned(),
                kind: kind.to_owned(),
                plural: format!("{}s", kind.to_lowercase()),
                namespaced: kind == "Gateway",
            }),
            _ => Resource::named(api_version, kind).map_err(|e| e.to_string()),
        };
        let key = if kind == "Gateway" { KUBERNETES_GATEWAYS } else { kind };
        questions.push(Question {
            key: key.to_owned(),
            resource,
            namespace: inside.then_some(istio::SYSTEM_NAMESPACE),
            labels: None,
        });
    }
    let secrets = Resource::named("v1", "Secret").map_err(|e| e.to_string());
    questions.push(Question {
        key: LABELLED_SECRETS.to_owned(),
        resource: secrets,
        namespace: None,
        labels: Some(istio::MULTI_CLUSTER_LABEL),
    });
    for kind in istio::KINDS {
        let resource = Resource {
            api_version: kind.api_version(),
            kind: kind.kind.to_owned(),
            plural: kind.plural.to_owned(),
            namespaced: true,
        };
        questions.push(Question { key: kind.kind.to_owned(), resource: Ok(resource), namespace: None, labels: None });
    }
    let ask = |Question { key, resource, namespace, labels }: Question| async move {
        let listed = match resource {
            Ok(resource) => objects::list(&cluster.client, &resource, namespace, labels).await.map_err(|e| because(&e)),
            Err(why) => Err(why),
        };
        (key, Datum::of(listed))
    };
    let answers: BTreeMap<_, _> =
        stream::iter(questions.into_iter().map(ask)).buffer_unordered(AT_ONCE).collect().await;
    let mut seen = Seen {
        context: cluster.context.clone(),
        server: cluster.server.clone(),
        version: text("gitVersion"),
        is_lab: version["gitTreeState"] == "stolos-lab",
        clock,
        objects: answers,
        ..Seen::default()
    };
    let system = seen.all("Namespace").iter().find(|n| meta::name(n) == "kube-system");
    seen.uid = system.map(|n| meta::uid(n).to_owned()).unwrap_or_default();
    Ok(seen)
}

/// `/version`, and both clocks in the middle of that exchange.
async fn version(cluster: &Cluster) -> Result<(Value, Option<Clock>), String> {
    // The first request pays for the connection; the second is short, so that its middle is a moment.
    let get = || async {
        let request = http::Request::get("/version").body(Body::empty()).map_err(|e| e.to_string())?;
        let sent = SystemTime::now();
        let answer = cluster.client.send(request).await.map_err(|e| because(&e))?;
        let took = sent.elapsed().unwrap_or_default();
        let date = answer.headers().get(http::header::DATE).and_then(|d| d.to_str().ok()).and_then(http_date);
        Ok::<_, String>((answer, date.map(|api| Clock { api, local: sent + took / 2 })))
    };
    let (_, _) = get().await?;
    let (answer, clock) = get().await?;
    let status = answer.status();
    let body = answer.into_body().collect_bytes().await.map_err(|e| because(&e))?;
    if !status.is_success() {
        return Err(format!("the API server says {status}"));
    }
    Ok((serde_json::from_slice(&body).map_err(|e| e.to_string())?, clock))
}

/// RFC 9110, 5.6.7: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<SystemTime> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| zoned.timestamp().into())
}

/// What was tried in one cluster.
struct Tried {
    istiods: Vec<Istiod>,
    gateways: Vec<GatewayProbe>,
    paths: Vec<PathProbe>,
    credentials: Vec<CredentialProbe>,
    names: BTreeMap<String, Datum<Vec<IpAddr>>>,
    injection: Option<Datum<Result<(), String>>>,
}

impl Tried {
    fn into_seen(self, seen: &mut Seen) {
        seen.istiods = self.istiods;
        seen.gateways = self.gateways;
        seen.paths = self.paths;
        seen.credentials = self.credentials;
        seen.names = self.names;
        seen.injection = self.injection;
    }
}

async fn tries(mesh: &Mesh, cluster: &Cluster, snapshot: &Snapshot) -> Option<Tried> {
    let seen = snapshot.clusters.get(&cluster.name)?.value()?;
    let member = mesh.clusters.iter().find(|c| c.name.as_str() == cluster.name)?;
    let inside = seen.all("Pod").iter().filter(|p| is_istiod(p) && is_ready(p)).map(meta::name).next();
    let (istiods, (gateways, (paths, (credentials, (names, injection))))) = join(
        istiods(cluster, seen),
        join(
            gateways(mesh, member, cluster, inside, snapshot),
            join(
                paths(mesh, member, cluster, inside, snapshot),
                join(credentials(cluster, seen, inside), join(names(seen), injection(member, cluster, seen))),
            ),
        ),
    )
    .await;
    Some(Tried { istiods, gateways, paths, credentials, names, injection })
}

fn is_istiod(pod: &Value) -> bool {
    meta::namespace(pod) == istio::SYSTEM_NAMESPACE && meta::label(pod, istio::APP_LABEL) == Some(istio::ISTIOD)
}

async fn istiods(cluster: &Cluster, seen: &Seen) -> Vec<Istiod> {
    let running = seen.all("Pod").iter().filter(|p| is_istiod(p) && !is_over(p) && is_ready(p)).map(meta::name);
    join_all(running.map(|pod| async move {
        let ask = |name: &'static str| async move {
            match page(&cluster.client, pod, name).await {
                Some(value) => Datum::now(value),
                None => try_out::page(&cluster.client, pod, name).await,
            }
        };
        let (clusterz, shards) = join(ask("clusterz"), ask("endpointShardz")).await;
        Istiod { pod: pod.to_owned(), clusterz, shards }
    }))
    .await
}

/// Dials the gateways of other networks: from a pod of this cluster, and from here with a proxy's handshake.
async fn gateways(
    mesh: &Mesh,
    member: &stolos_spec::Cluster,
    cluster: &Cluster,
    inside: Option<&str>,
    snapshot: &Snapshot,
) -> Vec<GatewayProbe> {
    let mut dials = Vec::new();
    for peer in mesh.clusters.iter().filter(|peer| peer.name != member.name) {
        let Some(theirs) = snapshot.clusters.get(peer.name.as_str()).and_then(Datum::value) else { continue };
        for (service, network) in theirs.gateway_services() {
            let remote = matches!(&member.role, Role::Remote { primary } if *primary == peer.name);
            if network == member.network.as_str() && !remote {
                continue;
            }
            let mut ports = vec![];
            if network != member.network.as_str() {
                ports.push(None);
            }
            if remote {
                ports.extend([Some(istio::XDS_PORT), Some(istio::WEBHOOK_PORT)]);
            }
            let asked = asked_for(theirs);
            for address in gateway_addresses(service) {
                let Some((host, own)) = address.rsplit_once(':') else { continue };
                for port in &ports {
                    let port = port.or(own.parse().ok()).unwrap_or(istio::CROSS_NETWORK_PORT);
                    dials.push((
                        peer.name.to_string(),
                        super::snapshot::path(service),
                        host.to_owned(),
                        port,
                        asked.clone(),
                    ));
                }
            }
        }
    }
    let dial = |(peer, service, address, port, asked): (String, String, String, u16, Vec<String>)| async move {
        let one = |from, touch, handshake| GatewayProbe {
            cluster: peer.clone(),
            service: service.clone(),
            address: address.clone(),
            port,
            from,
            touch,
            handshake,
        };
        let mut probes = Vec::new();
        if let Some(pod) = inside {
            let touch =
                try_out::touch_from(&cluster.client, pod, &format!("https://{}/", host_port(&address, port))).await;
            probes.push(one(From::Inside(pod.to_owned()), touch, None));
        }
        let names = match port {
            istio::XDS_PORT | istio::WEBHOOK_PORT => vec![format!("{}.{}.svc", istio::ISTIOD, istio::SYSTEM_NAMESPACE)],
            _ => asked,
        };
        let mut names = names.into_iter();
        let (mut touch, mut handshake) = try_out::handshake(&address, port, names.next()).await;
        // The first that is answered shows that the way is open.
        while let (true, Some(next)) = (handshake.as_ref().is_some_and(|h| h.chain.is_err()), names.next()) {
            let again = try_out::handshake(&address, port, Some(next)).await;
            if again.1.as_ref().is_some_and(|h| h.chain.is_ok()) {
                (touch, handshake) = again;
            }
        }
        probes.push(one(From::Here, Datum::now(touch), handshake));
        probes
    };
    let probes: Vec<_> = stream::iter(dials.into_iter().map(dial)).buffered(DIALS_AT_ONCE).collect().await;
    probes.into_iter().flatten().collect()
}

fn host_port(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// The names by which a proxy asks a gateway for services that have an instance with a proxy in `seen`; a few, since one
/// that does not answer may be the fault of its workload.
fn asked_for(seen: &Seen) -> Vec<String> {
    const SOME: usize = 3;
    let name = |service: &Value| {
        if super::scene::is_system(meta::namespace(service)) || service["spec"]["type"] == "ExternalName" {
            return None;
        }
        let pods = seen.pods_of(service);
        let pod = pods.into_iter().find(|p| {
            is_ready(p) && proxy(p).is_some() && meta::label(p, istio::TLS_MODE_LABEL) == Some(istio::TLS_MODE_ISTIO)
        })?;
        let tcp = |port: &&Value| port["protocol"].as_str().is_none_or(|p| p == "TCP");
        let port = service["spec"]["ports"].as_array()?.iter().find(tcp)?;
        // A lab redirects the ports that containers declare; in a real pod the sidecar takes them all.
        let target = if port["targetPort"].is_null() { &port["port"] } else { &port["targetPort"] };
        let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
        let mut declared = containers.flat_map(|c| c["ports"].as_array().into_iter().flatten());
        if seen.is_lab && !declared.any(|d| d["containerPort"] == *target || d["name"] == *target) {
            return None;
        }
        let (name, namespace) = (meta::name(service), meta::namespace(service));
        Some(format!("outbound_.{}_._.{name}.{namespace}.svc.{}", port["port"].as_u64()?, istio::DEFAULT_DOMAIN))
    };
    seen.all("Service").iter().filter_map(name).take(SOME).collect()
}

/// Dials the control planes' pods of the other clusters on the same network: they have no proxy in between.
async fn paths(
    mesh: &Mesh,
    member: &stolos_spec::Cluster,
    cluster: &Cluster,
    inside: Option<&str>,
    snapshot: &Snapshot,
) -> Vec<PathProbe> {
    let Some(from) = inside else { return vec![] };
    let peers = mesh.clusters.iter().filter(|peer| peer.name != member.name && peer.network == member.network);
    let targets = peers.filter_map(|peer| {
        let theirs = snapshot.clusters.get(peer.name.as_str())?.value()?;
        let pod = theirs.all("Pod").iter().find(|p| is_istiod(p) && is_ready(p))?;
        Some((peer.name.to_string(), meta::name(pod), pod["status"]["podIP"].as_str()?))
    });
    let dial = |(peer, pod, address): (String, &str, &str)| {
        let (pod, address) = (pod.to_owned(), address.to_owned());
        async move {
            // Metrics are some kilobytes: enough for a path that loses large packets to show.
            let url = format!("http://{}/metrics", host_port(&address, istio::MONITORING_PORT));
            let touch = try_out::touch_from(&cluster.client, from, &url).await;
            PathProbe { cluster: peer, pod, address, from: from.to_owned(), touch }
        }
    };
    stream::iter(targets.map(dial).collect::<Vec<_>>()).buffered(DIALS_AT_ONCE).collect().await
}

/// Tries the credentials in this cluster's remote secrets.
async fn credentials(cluster: &Cluster, seen: &Seen, inside: Option<&str>) -> Vec<CredentialProbe> {
    let engine = super::scene::engine(seen);
    let secrets = seen.all("Secret").iter().filter(|s| meta::label(s, istio::MULTI_CLUSTER_LABEL) == Some(istio::TRUE));
    let keys = secrets.flat_map(|secret| {
        let kubeconfigs = istio::parse_remote_secret(secret).unwrap_or_default();
        kubeconfigs.into_iter().map(move |(key, text)| (super::snapshot::path(secret), key, text))
    });
    let attempt = |(secret, key, text): (String, String, String)| async move {
        let server = super::kubeconfig::read(&text).map(|k| k.server).unwrap_or_default();
        let dialled = async {
            let pod = inside.filter(|_| server.starts_with("https://"))?;
            Some(try_out::touch_from(&cluster.client, pod, &format!("{}/version", server.trim_end_matches('/'))).await)
        };
        let (inside, answer) = join(dialled, try_out::credential(&text, engine)).await;
        CredentialProbe { secret, key, server, inside, answer }
    };
    stream::iter(keys.map(attempt).collect::<Vec<_>>()).buffered(DIALS_AT_ONCE).collect().await
}

/// Names of load balancers, resolved.
async fn names(seen: &Seen) -> BTreeMap<String, Datum<Vec<IpAddr>>> {
    let entries = seen
        .gateway_services()
        .flat_map(|(s, _)| s["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten());
    let hostnames: BTreeSet<String> = entries
        .filter(|i| i["ip"].as_str().is_none())
        .filter_map(|i| Some(i["hostname"].as_str()?.to_owned()))
        .collect();
    join_all(hostnames.into_iter().map(|name| async move {
        let found = try_out::resolve(&name).await;
        (name, found)
    }))
    .await
    .into_iter()
    .collect()
}

/// Asks for a pod with a sidecar without making it, in a cluster whose control plane is elsewhere.
async fn injection(member: &stolos_spec::Cluster, cluster: &Cluster, seen: &Seen) -> Option<Datum<Result<(), String>>> {
    if matches!(member.role, Role::Primary) {
        return None;
    }
    let asks = |n: &&Value| {
        meta::label(n, istio::INJECTION_LABEL) == Some(istio::INJECTION_ENABLED)
            || meta::label(n, istio::REVISION_LABEL).is_some()
    };
    let namespace = seen.all("Namespace").iter().find(asks).map(meta::name)?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stolos-check", "namespace": namespace},
        "spec": {"containers": [{"name": "none", "image": "registry.k8s.io/pause:3.10"}]}});
    let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(cluster.client.clone(), namespace);
    let parsed = serde_json::from_value(pod).map_err(|e| e.to_string());
    let params = kube::api::PostParams { dry_run: true, field_manager: None };
    Some(match parsed {
        Err(why) => Datum::Unread { why },
        Ok(pod) => match tokio::time::timeout(Duration::from_secs(15), pods.create(&params, &pod)).await {
            Err(_) => Datum::now(Err("no answer in 15 s".to_owned())),
            Ok(Err(error)) if crate::diagnose::is_forbidden(&error) => Datum::Unread { why: because(&error) },
            Ok(Err(error)) => Datum::now(Err(because(&error))),
            Ok(Ok(made)) => {
                let value = serde_json::to_value(made).unwrap_or_default();
                Datum::now(if proxy(&value).is_some() {
                    Ok(())
                } else {
                    Err("the pod came back without a sidecar".to_owned())
                })
            }
        },
    })
}
