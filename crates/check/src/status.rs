//! What is there, as read from the clusters. Nothing here is assumed: what could not be read says so.

pub(crate) mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use futures::future::join_all;
use serde::Serialize;
use serde_json::Value;
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::{istio, meta};
use stolos_pki::Certificate;
use stolos_spec::{Api, Mesh};

use crate::exec;
use crate::verify::gateway_addresses;

/// A cluster that has not answered by then is reported as unreachable.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a member may take to answer through its tunnel.
const THROUGH: Duration = Duration::from_secs(3);

/// The state of a mesh. Fields are only ever added.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// `stolos.dev/v1alpha1`.
    pub api_version: &'static str,
    /// `StatusReport`.
    pub kind: &'static str,
    /// The mesh's name.
    pub mesh: String,
    /// In the order of the mesh file.
    pub clusters: Vec<ClusterStatus>,
    /// Services that exist in the mesh, by `namespace/name`, without those of Kubernetes and Istio themselves.
    pub services: Vec<ServiceStatus>,
}

/// One cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStatus {
    /// Its name in the mesh.
    pub name: String,
    /// Its network, by the mesh file.
    pub network: String,
    /// The cluster whose control plane it uses, if it has none of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub primary: Option<String>,
    /// The network its label says, if another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labelled_network: Option<String>,
    /// Since when it is drained, if it is: the others do not send to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drained: Option<String>,
    /// Its region, by the mesh file.
    pub region: Option<String>,
    /// Its API server.
    pub server: String,
    /// Its Kubernetes version; null when it did not answer.
    pub version: Option<String>,
    /// Why it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// How the others reach it through the hub, where they do: see [`through_hub`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelStatus>,
    /// Its control plane; null where there is none.
    pub control_plane: Option<ControlPlaneStatus>,
    /// Its east-west gateways.
    pub gateways: Vec<GatewayStatus>,
    /// Certificates and tokens, soonest expiry first.
    pub certificates: Vec<CertificateStatus>,
    /// The other clusters, as its control plane knows them.
    pub peers: Vec<PeerStatus>,
    /// What its control plane does not act on, in its own words. Null where it was not asked or did not answer.
    pub not_supported: Option<Vec<String>>,
    /// When this was read, RFC 3339.
    pub measured_at: String,
    /// How long ago that was when the report was made.
    pub age_ms: u64,
}

/// A cluster that the others read through a hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelStatus {
    /// The hub's API.
    pub hub: String,
    /// What the cluster is called there.
    pub member: Option<String>,
    /// Why the hub does not reach it now, in its own words, with since when; null where it does.
    pub cut: Option<String>,
}

/// A control plane.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlaneStatus {
    /// Its image.
    pub image: String,
    /// Its revision.
    pub revision: String,
    /// Replicas that are ready.
    pub ready: u64,
    /// Replicas asked for.
    pub replicas: u64,
}

/// An east-west gateway.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayStatus {
    /// `namespace/name` of its Service.
    pub service: String,
    /// The network it leads into.
    pub network: String,
    /// Its addresses; empty while the load balancer has none.
    pub addresses: Vec<String>,
    /// Pods behind it that are ready.
    pub ready: u64,
}

/// Something that expires.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// What it is: `root`, `intermediate`, `token for <cluster>`.
    pub what: String,
    /// SHA-256 of a certificate, in hex; null for tokens.
    pub fingerprint: Option<String>,
    /// Its serial number; null for tokens.
    pub serial: Option<String>,
    /// Who issued it; null for tokens.
    pub issuer: Option<String>,
    /// When it begins, RFC 3339; null where that is not said.
    pub not_before: Option<String>,
    /// When it ends, RFC 3339; null when it never does.
    pub not_after: Option<String>,
    /// Days left, rounded down; negative when it is over.
    pub days_left: Option<i64>,
}

/// Another cluster, as one cluster's control plane knows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Its name.
    pub cluster: String,
    /// Whether the mesh file says it should be there.
    pub expected: bool,
    /// Whether a credential for it is there.
    pub credential: bool,
    /// What the control plane says of its connection: `synced`, `syncing`, `timeout` or `closed`, as Istio's
    /// `clusterz`. Null where it was not asked or does not know the cluster.
    pub sync: Option<String>,
}

/// A service of the mesh.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Ready endpoints per cluster that has the Service.
    pub endpoints: BTreeMap<String, usize>,
}

/// Reads the state of `mesh` from `clusters`, all side by side. A cluster that does not answer is part of the report.
pub async fn status(mesh: &Mesh, clusters: &[Cluster]) -> StatusReport {
    let looked = join_all(clusters.iter().map(|cluster| async move {
        let seen = tokio::time::timeout(PATIENCE, Seen::read(cluster)).await;
        let seen = match seen {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(error)) => Err(stolos_serve::because(&error)),
            Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
        };
        (cluster, seen, SystemTime::now())
    }))
    .await;
    let made = SystemTime::now();
    let mut services: BTreeMap<(String, String), BTreeMap<String, usize>> = BTreeMap::new();
    for (cluster, seen, _) in &looked {
        for ((namespace, name), ready) in seen.iter().flat_map(Seen::services) {
            services.entry((namespace, name)).or_default().insert(cluster.name.clone(), ready);
        }
    }
    let clusters = mesh.clusters.iter().filter_map(|wanted| {
        let (cluster, seen, at) = looked.iter().find(|(c, ..)| c.name == wanted.name.as_str())?;
        Some(cluster_status(mesh, wanted, cluster, seen.as_ref(), *at, made))
    });
    StatusReport {
        api_version: "stolos.dev/v1alpha1",
        kind: "StatusReport",
        mesh: mesh.name.to_string(),
        clusters: clusters.collect(),
        services: services
            .into_iter()
            .map(|((namespace, name), endpoints)| ServiceStatus { namespace, name, endpoints })
            .collect(),
    }
}

/// Asks the hub whether it reaches those clusters of the mesh that are read through it, now, and adds the answers to
/// the report. `hub` is what is known of it: a connection, or why there is none.
pub async fn through_hub(report: &mut StatusReport, mesh: &Mesh, clusters: &[Cluster], hub: Result<&Cluster, &str>) {
    let asked = mesh.clusters.iter().filter(|cluster| cluster.api == Some(Api::Tunnel)).map(|wanted| async move {
        let hub = match hub {
            Ok(hub) => hub,
            Err(why) => {
                let cut = Some(format!("the hub cannot be asked: {why}"));
                return (wanted.name.as_str(), TunnelStatus { hub: String::new(), member: None, cut });
            }
        };
        let own = clusters.iter().find(|cluster| cluster.name == wanted.name.as_str());
        let asking = tokio::time::timeout(PATIENCE, tunnel(hub, own, wanted.name.as_str()));
        let (member, cut) = match asking.await {
            Ok(Ok((member, cut))) => (Some(member), cut),
            Ok(Err(why)) => (None, Some(why)),
            Err(_) => (None, Some(format!("the hub has not answered in {} s", PATIENCE.as_secs()))),
        };
        (wanted.name.as_str(), TunnelStatus { hub: hub.server.clone(), member, cut })
    });
    for (name, tunnel) in join_all(asked).await {
        if let Some(cluster) = report.clusters.iter_mut().find(|cluster| cluster.name == name) {
            cluster.tunnel = Some(tunnel);
        }
    }
}

/// What a cluster is called in the hub, and why that does not reach it, if it does not.
async fn tunnel(hub: &Cluster, own: Option<&Cluster>, name: &str) -> Result<(String, Option<String>), String> {
    let members = Resource {
        api_version: "cluster.karmada.io/v1alpha1".to_owned(),
        kind: "Cluster".to_owned(),
        plural: "clusters".to_owned(),
        namespaced: false,
    };
    let because = |error: stolos_cluster::Error| format!("the hub cannot be asked: {}", stolos_serve::because(&error));
    let members = objects::list(&hub.client, &members, None, None).await.map_err(because)?;
    let uid = async {
        let namespaces = Resource::named("v1", "Namespace").ok()?;
        let system = objects::get(&own?.client, &namespaces, None, "kube-system").await.ok()??;
        Some(meta::uid(&system).to_owned()).filter(|uid| !uid.is_empty())
    };
    let uid = uid.await;
    let same = members.iter().find(|member| uid.is_some() && member["spec"]["id"].as_str() == uid.as_deref());
    let member = same.or_else(|| members.iter().find(|member| meta::name(member) == name));
    let Some(member) = member else { return Err("it is not a member of the hub".to_owned()) };
    let conditions = member["status"]["conditions"].as_array().into_iter().flatten();
    let without = conditions.into_iter().find(|c| c["type"] == "AgentConnected" && c["status"] == "False");
    let (since, member) = (without.and_then(|c| c["lastTransitionTime"].as_str()), meta::name(member));
    // The hub waits for it to come back before it gives up on a request: what it knows already is said at once.
    if let Some(since) = since {
        return Ok((member.to_owned(), Some(format!("no agent of {member} is connected since {since}"))));
    }
    let path = format!("/apis/cluster.karmada.io/v1alpha1/clusters/{member}/proxy/version");
    let request = http::Request::get(path).body(vec![]).map_err(|error| error.to_string())?;
    let cut = match tokio::time::timeout(THROUGH, hub.client.request::<Value>(request)).await {
        Ok(Ok(_)) => None,
        Ok(Err(kube::Error::Api(status))) => Some(status.message.clone()),
        Ok(Err(error)) => Some(stolos_serve::because(&error)),
        Err(_) => Some(format!("no answer through the tunnel of {member} in {} s", THROUGH.as_secs())),
    };
    Ok((member.to_owned(), cut))
}

/// What was read of one cluster.
struct Seen {
    version: String,
    network: Option<String>,
    /// Since when it is drained.
    drained: Option<String>,
    deployments: Vec<Value>,
    secrets: Vec<Value>,
    services: Vec<Value>,
    slices: Vec<Value>,
    /// `clusterz` of the control plane.
    clusterz: Option<Value>,
    /// What the control plane does not act on.
    unsupported: Option<Value>,
}

impl Seen {
    async fn read(cluster: &Cluster) -> Result<Self, stolos_cluster::Error> {
        let client = &cluster.client;
        let list = |api_version: &'static str, kind: &'static str, namespace: Option<&'static str>| async move {
            objects::list(client, &Resource::named(api_version, kind)?, namespace, None).await
        };
        let namespace = async {
            let namespaces = Resource::named("v1", "Namespace")?;
            objects::get(client, &namespaces, None, istio::SYSTEM_NAMESPACE).await
        };
        let version = async {
            client.apiserver_version().await.map_err(|source| stolos_cluster::Error::Request {
                what: "ask for the version".to_owned(),
                source: Box::new(source),
            })
        };
        let system = Some(istio::SYSTEM_NAMESPACE);
        let (version, namespace, deployments, secrets, services, slices, pods) = futures::try_join!(
            version,
            namespace,
            list("apps/v1", "Deployment", system),
            list("v1", "Secret", system),
            list("v1", "Service", None),
            list("discovery.k8s.io/v1", "EndpointSlice", None),
            list("v1", "Pod", system),
        )?;
        let istiod = pods.iter().find(|p| meta::label(p, istio::APP_LABEL) == Some(istio::ISTIOD)).map(meta::name);
        let (clusterz, unsupported) = match istiod {
            Some(pod) => futures::join!(page(client, pod, "clusterz"), page(client, pod, "unsupported")),
            None => (None, None),
        };
        Ok(Self {
            version: version.git_version,
            network: namespace.as_ref().and_then(|n| meta::label(n, istio::NETWORK_LABEL)).map(ToOwned::to_owned),
            drained: namespace
                .as_ref()
                .and_then(|n| meta::annotation(n, istio::DRAINED_ANNOTATION))
                .map(ToOwned::to_owned),
            deployments,
            secrets,
            services,
            slices,
            clusterz,
            unsupported,
        })
    }

    /// Ready endpoints of every service that is the users' own.
    fn services(&self) -> Vec<((String, String), usize)> {
        let system = ["kube-system", "kube-public", "kube-node-lease", istio::SYSTEM_NAMESPACE];
        self.services
            .iter()
            .map(|s| (meta::namespace(s).to_owned(), meta::name(s).to_owned()))
            .filter(|(namespace, name)| {
                !system.contains(&namespace.as_str())
                    && (namespace.as_str(), name.as_str()) != ("default", "kubernetes")
            })
            .map(|(namespace, name)| {
                let ready = self.ready(&namespace, &name);
                ((namespace, name), ready)
            })
            .collect()
    }

    fn ready(&self, namespace: &str, service: &str) -> usize {
        ready(&self.slices, namespace, service)
    }
}

/// How many addresses of a service are ready, among these EndpointSlices.
fn ready(slices: &[Value], namespace: &str, service: &str) -> usize {
    let of_service =
        |s: &&Value| meta::namespace(s) == namespace && meta::label(s, istio::SERVICE_NAME_LABEL) == Some(service);
    let addresses: BTreeSet<&str> = slices
        .iter()
        .filter(of_service)
        .flat_map(|s| s.get("endpoints").and_then(Value::as_array).into_iter().flatten())
        .filter(|e| e.pointer("/conditions/ready").and_then(Value::as_bool).unwrap_or(true))
        .flat_map(|e| e.get("addresses").and_then(Value::as_array).into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    addresses.len()
}

fn cluster_status(
    mesh: &Mesh,
    wanted: &stolos_spec::Cluster,
    cluster: &Cluster,
    seen: Result<&Seen, &String>,
    at: SystemTime,
    made: SystemTime,
) -> ClusterStatus {
    let read = seen.ok();
    let peers = read.map(|s| peers(mesh, wanted, s)).unwrap_or_default();
    ClusterStatus {
        name: wanted.name.to_string(),
        network: wanted.network.to_string(),
        primary: wanted.primary().map(ToString::to_string),
        drained: read.and_then(|s| s.drained.clone()),
        labelled_network: read.and_then(|s| s.network.clone()).filter(|n| n != wanted.network.as_str()),
        region: wanted.region.clone(),
        server: cluster.server.clone(),
        version: read.map(|s| s.version.clone()),
        unreachable: seen.err().cloned(),
        tunnel: None,
        control_plane: read.and_then(control_plane),
        gateways: read.map(|seen| gateways(wanted, seen)).unwrap_or_default(),
        certificates: read.map(|s| certificates(s, made)).unwrap_or_default(),
        peers,
        not_supported: read.and_then(|s| s.unsupported.as_ref()).map(not_supported),
        measured_at: rfc3339(at),
        age_ms: made.duration_since(at).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// A debug page of the control plane, asked for from inside its own pod: it answers nobody else.
pub(crate) async fn page(client: &kube::Client, pod: &str, name: &str) -> Option<Value> {
    let url = format!("http://localhost:{}/debug/{name}", istio::DEBUG_PORT);
    let command = ["curl", "-sS", "-m", "3", &url];
    let patience = Duration::from_secs(5);
    match exec::output(client, istio::SYSTEM_NAMESPACE, pod, "discovery", &command, patience).await {
        Ok(text) => serde_json::from_str(&text).ok(),
        Err(error) => {
            tracing::debug!(pod, name, %error, "the control plane did not answer");
            None
        }
    }
}

fn control_plane(seen: &Seen) -> Option<ControlPlaneStatus> {
    let istiod = seen.deployments.iter().find(|d| meta::label(d, istio::APP_LABEL) == Some(istio::ISTIOD))?;
    let number = |pointer: &str| istiod.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    Some(ControlPlaneStatus {
        image: istiod
            .pointer("/spec/template/spec/containers/0/image")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        revision: meta::label(istiod, istio::REVISION_LABEL).unwrap_or(istio::DEFAULT_REVISION).to_owned(),
        ready: number("/status/readyReplicas"),
        replicas: number("/spec/replicas"),
    })
}

fn gateways(wanted: &stolos_spec::Cluster, seen: &Seen) -> Vec<GatewayStatus> {
    let by_hand = wanted.gateway_by_hand().map(|gateway| GatewayStatus {
        service: format!("{}/{}", istio::SYSTEM_NAMESPACE, istio::EAST_WEST_GATEWAY),
        network: wanted.network.to_string(),
        addresses: gateway.addresses.iter().map(|address| format!("{address}:{}", gateway.port)).collect(),
        ready: seen.ready(istio::SYSTEM_NAMESPACE, istio::EAST_WEST_GATEWAY) as u64,
    });
    let labelled = seen.services.iter().filter_map(|s| Some((s, meta::label(s, istio::NETWORK_LABEL)?)));
    labelled
        .map(|(service, network)| GatewayStatus {
            service: format!("{}/{}", meta::namespace(service), meta::name(service)),
            network: network.to_owned(),
            addresses: gateway_addresses(service),
            ready: seen.ready(meta::namespace(service), meta::name(service)) as u64,
        })
        .chain(by_hand)
        .collect()
}

fn certificates(seen: &Seen, now: SystemTime) -> Vec<CertificateStatus> {
    let mut found = Vec::new();
    for secret in &seen.secrets {
        if meta::name(secret) == istio::CACERTS_SECRET {
            for (what, key) in [("intermediate", istio::CA_CERT_KEY), ("root", istio::ROOT_CERT_KEY)] {
                let pem = decoded(secret, key).unwrap_or_default();
                for certificate in Certificate::all_from_pem(&pem).unwrap_or_default() {
                    found.push(CertificateStatus {
                        what: what.to_owned(),
                        fingerprint: Some(certificate.fingerprint()),
                        serial: Some(certificate.serial().to_owned()),
                        issuer: Some(certificate.issuer().to_owned()),
                        not_before: Some(rfc3339(certificate.not_before())),
                        not_after: Some(rfc3339(certificate.not_after())),
                        days_left: Some(days_between(now, certificate.not_after())),
                    });
                }
            }
        }
        if meta::label(secret, istio::MULTI_CLUSTER_LABEL) == Some(istio::TRUE) {
            for cluster in keys(secret) {
                let end = decoded(secret, &cluster).as_deref().and_then(token_end);
                found.push(CertificateStatus {
                    what: format!("token for {cluster}"),
                    fingerprint: None,
                    serial: None,
                    issuer: None,
                    not_before: None,
                    not_after: end.map(rfc3339),
                    days_left: end.map(|end| days_between(now, end)),
                });
            }
        }
    }
    found.sort_by(|a, b| (a.days_left.unwrap_or(i64::MAX), &a.what).cmp(&(b.days_left.unwrap_or(i64::MAX), &b.what)));
    found
}

/// Something that expires, and where.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Expiry {
    /// The cluster, or `state folder`.
    pub cluster: String,
    /// What it is.
    #[serde(flatten)]
    pub certificate: CertificateStatus,
}

/// All that expires in a mesh as one list, soonest first; `root` is the state folder's, by fingerprint and end.
#[must_use]
pub fn expiries(report: &StatusReport, root: Option<(String, SystemTime)>) -> Vec<Expiry> {
    let clusters = report.clusters.iter().flat_map(|cluster| {
        let of = |certificate: &CertificateStatus| Expiry {
            cluster: cluster.name.clone(),
            certificate: certificate.clone(),
        };
        cluster.certificates.iter().map(of)
    });
    let own = root.map(|(fingerprint, end)| Expiry {
        cluster: "state folder".to_owned(),
        certificate: CertificateStatus {
            what: "root".to_owned(),
            fingerprint: Some(fingerprint),
            serial: None,
            issuer: None,
            not_before: None,
            not_after: Some(rfc3339(end)),
            days_left: Some(days_between(SystemTime::now(), end)),
        },
    });
    let mut all: Vec<_> = own.into_iter().chain(clusters).collect();
    // What never ends comes last. RFC 3339 in UTC sorts as time does.
    let key = |e: &Expiry| (e.certificate.not_after.is_none(), e.certificate.not_after.clone(), e.cluster.clone());
    all.sort_by(|a, b| (key(a), &a.certificate.what).cmp(&(key(b), &b.certificate.what)));
    all
}

fn peers(mesh: &Mesh, of: &stolos_spec::Cluster, seen: &Seen) -> Vec<PeerStatus> {
    let held: BTreeSet<String> = seen
        .secrets
        .iter()
        .filter(|s| meta::label(s, istio::MULTI_CLUSTER_LABEL) == Some(istio::TRUE))
        .flat_map(keys)
        .collect();
    let expected: BTreeSet<String> = mesh
        .clusters
        .iter()
        .filter(|c| c.name != of.name && of.primary().is_none())
        .map(|c| c.name.to_string())
        .collect();
    let sync = |cluster: &str| {
        let clusters = seen.clusterz.as_ref()?.as_array()?;
        let known = clusters.iter().find(|c| c["id"] == cluster)?;
        known["syncStatus"].as_str().map(ToOwned::to_owned)
    };
    expected
        .union(&held)
        .map(|cluster| PeerStatus {
            cluster: cluster.clone(),
            expected: expected.contains(cluster),
            credential: held.contains(cluster),
            sync: sync(cluster),
        })
        .collect()
}

fn not_supported(page: &Value) -> Vec<String> {
    let objects = page["objects"].as_array().into_iter().flatten().map(|finding| {
        let text = |key: &str| finding[key].as_str().unwrap_or_default();
        format!("{} {}/{}: {}", text("kind"), text("namespace"), text("name"), text("message"))
    });
    let unread = page["meshConfig"].as_array().into_iter().flatten().filter_map(Value::as_str);
    objects.chain(unread.map(|key| format!("mesh configuration: `{key}` is not acted on"))).collect()
}

fn keys(secret: &Value) -> Vec<String> {
    secret.get("data").and_then(Value::as_object).map(|d| d.keys().cloned().collect()).unwrap_or_default()
}

fn decoded(secret: &Value, key: &str) -> Option<String> {
    let encoded = secret.get("data")?.get(key)?.as_str()?;
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(encoded).ok()?).ok()
}

/// When the bearer token in a kubeconfig ends, by its own `exp` claim (RFC 7519, 4.1.4).
fn token_end(kubeconfig: &str) -> Option<SystemTime> {
    let token =
        kubeconfig.split(['"', '\'', ' ', '\n', ',']).find(|w| w.starts_with("eyJ") && w.matches('.').count() == 2)?;
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    Some(UNIX_EPOCH + Duration::from_secs(claims.get("exp")?.as_u64()?))
}

fn days_between(now: SystemTime, end: SystemTime) -> i64 {
    const DAY: u64 = 24 * 3600;
    let days = |d: Duration| i64::try_from(d.as_secs() / DAY).unwrap_or(i64::MAX);
    end.duration_since(now).map_or_else(|e| -days(e.duration()) - 1, days)
}

fn rfc3339(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at)
        .map_or_else(|_| "unknown".to_owned(), |t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}
