//! Sends the requests and collects what was seen.

mod gateways;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, LogParams, PostParams, Preconditions};
use rand::RngExt as _;
use serde_json::Value;
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::istio;
use stolos_pki::{Roots, SpiffeId};
use stolos_serve::Stop;
use stolos_spec::Mesh;

use crate::exec::{self, Failed};
use crate::judge::{Expected, ExpectedCluster, Request, View, is_complete, pairs, requests_per_caller};
use crate::probe::{self, CLIENT, OUTSIDER, PORT, SERVER, Workload};
use crate::refuse::{foreign_root, plaintext};
use crate::{Error, Refusal, Verdict, VerifyReport};

/// How a run is done.
#[derive(Clone, Debug)]
pub struct Options {
    /// Leave what was brought along.
    pub keep: bool,
    /// How long the probe may take to become ready.
    pub ready: Duration,
    /// How long a path may take to come up before what is missing counts as missing.
    pub settle: Duration,
    /// Requests per caller, instead of the number that makes luck negligible; with fewer, more are sent (up to that
    /// number) before a cluster counts as silent.
    pub requests: Option<usize>,
    /// What is brought along.
    pub workload: Workload,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            keep: false,
            ready: Duration::from_secs(60),
            settle: Duration::from_secs(10),
            requests: None,
            workload: Workload::default(),
        }
    }
}

/// What is going on, for people who wait.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// The probe is being installed.
    Installing {
        /// In how many clusters.
        clusters: usize,
    },
    /// The probe is ready in a cluster.
    Ready {
        /// The cluster.
        cluster: String,
    },
    /// A caller has seen an answer from every cluster and nothing fail, or has waited long enough for it.
    Settled {
        /// The caller's cluster.
        cluster: String,
    },
    /// A caller has sent all its requests.
    Asked {
        /// The caller's cluster.
        cluster: String,
        /// How many.
        requests: usize,
    },
    /// What was brought along is being removed.
    Cleaning,
}

/// Proves every ordered pair of clusters of `mesh`, and what must be refused.
///
/// # Flow
///
/// 1. A namespace `stolos-verify-<random>` in every cluster, with a server, a client, and a client outside the mesh.
/// 2. When they are ready: each client sends a few requests at a time until every cluster has answered it once and
///    none of the last few failed, or [`Options::settle`] is over. A path that is still being built, or rebuilt, is not
///    held against the mesh.
/// 3. Each client's proxy is asked which endpoints it has of the shared service: its own view decides, as far as it can
///    be read, and requests confirm it.
/// 4. Each client sends the requests that count; its proxy's access log says, by request id, whom it dialled and who
///    was there.
/// 5. What must be refused is tried.
/// 6. The namespaces are removed, also when a step failed or `stop` was given.
///
/// # Errors
///
/// When something could not be asked at all. What is merely wrong with the mesh is in the report.
pub async fn verify(
    mesh: &Mesh,
    clusters: &[Cluster],
    options: &Options,
    stop: &Stop,
    news: &(dyn Fn(News) + Sync),
) -> Result<VerifyReport, Error> {
    let started = Instant::now();
    let started_at = jiff::Timestamp::now();
    let namespace = options.workload.namespace.clone().unwrap_or_else(|| format!("stolos-verify-{}", random(8)));
    let run = Run { mesh, clusters, options, namespace, made: Mutex::default(), news };
    let outcome = tokio::select! {
        outcome = run.observe() => outcome,
        () = stop.asked() => Err(Error::Interrupted),
    };
    if !options.keep {
        news(News::Cleaning);
        run.clean().await;
    }
    let (pairs, refusals) = outcome?;
    let good = pairs.iter().all(|p| p.verdict == Verdict::Pass) && refusals.iter().all(|r| r.verdict != Verdict::Fail);
    Ok(VerifyReport {
        api_version: "stolos.dev/v1alpha1",
        kind: "VerifyReport",
        mesh: mesh.name.to_string(),
        verdict: if good { Verdict::Pass } else { Verdict::Fail },
        pairs,
        refusals,
        started_at: started_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        duration_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Removes what killed runs of `verify` have left in `clusters`; how many namespaces that were.
///
/// # Errors
///
/// When a cluster cannot be asked.
pub async fn sweep(mesh: &Mesh, clusters: &[Cluster]) -> Result<usize, Error> {
    let namespaces = Resource::named("v1", "Namespace").map_err(|e| failed("-", e))?;
    let mut swept = 0;
    for cluster in clusters {
        let labels = format!("{}=true,{}={}", probe::LABEL, istio::MESH_LABEL, mesh.name);
        let left = objects::list(&cluster.client, &namespaces, None, Some(&labels))
            .await
            .map_err(|e| failed(&cluster.name, e))?;
        for namespace in &left {
            let (name, uid) = (stolos_k8s::meta::name(namespace), stolos_k8s::meta::uid(namespace));
            swept += usize::from(
                objects::delete(&cluster.client, &namespaces, None, name, Some(uid))
                    .await
                    .map_err(|e| failed(&cluster.name, e))?,
            );
        }
    }
    Ok(swept)
}

struct Run<'a> {
    mesh: &'a Mesh,
    clusters: &'a [Cluster],
    options: &'a Options,
    namespace: String,
    /// By cluster, the UID of the namespace that this run made there: what it may remove again.
    made: Mutex<BTreeMap<String, String>>,
    news: &'a (dyn Fn(News) + Sync),
}

/// The pods of one cluster that take part.
struct Probe<'a> {
    cluster: &'a Cluster,
    client: String,
    outsider: String,
    /// Name and address of the servers.
    servers: BTreeMap<String, String>,
}

impl Expected {
    /// The cluster of a probe.
    fn of(&self, probe: &Probe<'_>) -> Option<&ExpectedCluster> {
        self.clusters.iter().find(|cluster| cluster.name == probe.cluster.name)
    }
}

impl Run<'_> {
    async fn observe(&self) -> Result<(Vec<crate::Pair>, Vec<Refusal>), Error> {
        (self.news)(News::Installing { clusters: self.clusters.len() });
        all(self.clusters.iter().map(|c| self.install(c))).await?;
        let probes = all(self.clusters.iter().map(|c| self.ready(c))).await?;
        let expected = self.expected(&probes).await?;

        let callers = all(probes.iter().map(|p| self.call(p, &probes, &expected))).await?;
        let mut lines = Vec::new();
        for (probe, (requests, view)) in probes.iter().zip(&callers) {
            if let Some(from) = expected.of(probe) {
                lines.extend(pairs(from, &expected, requests, view));
            }
        }
        Ok((lines, self.refusals(&probes, &expected).await?))
    }

    async fn install(&self, cluster: &Cluster) -> Result<(), Error> {
        self.make_namespace(cluster).await?;
        let is_remote = self.mesh.clusters.iter().any(|c| c.name.as_str() == cluster.name && c.primary().is_some());
        for object in probe::objects(&self.namespace, &self.options.workload) {
            // A remote's primary reads Istio's kinds in its own cluster alone (contract E.19), and the remote of a small
            // engine does not have them.
            if is_remote && object["apiVersion"].as_str().is_some_and(|version| version.contains(".istio.io/")) {
                continue;
            }
            let write = async {
                objects::apply(&cluster.client, &Resource::of(&object)?, &object, "stolos-verify", true).await
            };
            write.await.map_err(|e| failed(&cluster.name, e))?;
        }
        Ok(())
    }

    /// Makes the namespace, and never takes one that is there.
    async fn make_namespace(&self, cluster: &Cluster) -> Result<(), Error> {
        let revision = self.mesh.control_plane.revision.as_deref();
        let wanted = probe::namespace(&self.namespace, self.mesh.name.as_str(), revision, &self.options.workload);
        let wanted: Namespace = serde_json::from_value(wanted)
            .map_err(|e| Error::Client { cluster: cluster.name.clone(), why: format!("its namespace: {e}") })?;
        let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
        let by = PostParams { field_manager: Some("stolos-verify".to_owned()), ..PostParams::default() };
        match namespaces.create(&by, &wanted).await {
            Ok(made) => {
                let uid = made.metadata.uid.unwrap_or_default();
                self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(cluster.name.clone(), uid);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                Err(Error::NamespaceExists { cluster: cluster.name.clone(), namespace: self.namespace.clone() })
            }
            Err(error) => Err(asked(&cluster.name, &format!("create namespace {}", self.namespace), error)),
        }
    }

    /// Waits until server and clients are ready.
    async fn ready<'c>(&self, cluster: &'c Cluster) -> Result<Probe<'c>, Error> {
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &self.namespace);
        let began = Instant::now();
        loop {
            let found = pods.list(&ListParams::default()).await.map_err(|e| asked(&cluster.name, "list pods", e))?;
            let ready = |app: &str| -> Vec<&Pod> {
                let labelled =
                    |p: &&Pod| p.metadata.labels.as_ref().and_then(|l| l.get("app")).is_some_and(|a| a == app);
                found.items.iter().filter(labelled).filter(|p| is_ready(p)).collect()
            };
            let (server, client, outsider) = (ready(SERVER), ready(CLIENT), ready(OUTSIDER));
            if let ([server, ..], [client, ..], [outsider, ..]) = (&server[..], &client[..], &outsider[..]) {
                (self.news)(News::Ready { cluster: cluster.name.clone() });
                let name = |p: &Pod| p.metadata.name.clone().unwrap_or_default();
                let address = |p: &Pod| p.status.as_ref().and_then(|s| s.pod_ip.clone()).unwrap_or_default();
                return Ok(Probe {
                    cluster,
                    client: name(client),
                    outsider: name(outsider),
                    servers: BTreeMap::from([(name(server), address(server))]),
                });
            }
            if began.elapsed() > self.options.ready {
                let why = found.items.iter().filter(|p| !is_ready(p)).map(describe).collect::<Vec<_>>().join("; ");
                let why = if why.is_empty() { "its pods have not been created".to_owned() } else { why };
                return Err(Error::ProbeNotReady { cluster: cluster.name.clone(), after: self.options.ready, why });
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// How it should be: who is on which network, behind which gateways.
    async fn expected(&self, probes: &[Probe<'_>]) -> Result<Expected, Error> {
        let mut gateways: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        let mut own: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        if self.mesh.needs_gateways() {
            let asking = self.clusters.iter().map(|cluster| gateways::addresses(cluster, self.by_hand(&cluster.name)));
            for (cluster, addresses) in self.clusters.iter().zip(all(asking).await?) {
                let Some(member) = self.mesh.clusters.iter().find(|c| c.name.as_str() == cluster.name) else {
                    continue;
                };
                gateways.entry(member.network.as_str()).or_default().extend(addresses.iter().cloned());
                own.insert(member.name.as_str(), addresses);
            }
        }
        let clusters = self.mesh.clusters.iter().filter_map(|c| {
            let probe = probes.iter().find(|p| p.cluster.name == c.name.as_str())?;
            Some(ExpectedCluster {
                name: c.name.to_string(),
                network: c.network.to_string(),
                servers: probe.servers.values().map(|ip| format!("{ip}:{PORT}")).collect(),
                gateways: gateways.get(c.network.as_str()).cloned().unwrap_or_default(),
                own_gateways: own.get(c.name.as_str()).cloned().unwrap_or_default(),
            })
        });
        let identity = SpiffeId::new(&self.mesh.trust.domain, &self.namespace, SERVER).to_string();
        Ok(Expected { clusters: clusters.collect(), identity })
    }

    /// One caller's requests, and what its proxy says before them.
    async fn call(
        &self,
        from: &Probe<'_>,
        probes: &[Probe<'_>],
        expected: &Expected,
    ) -> Result<(Vec<Request>, View), Error> {
        let cluster_of = |instance: &String| {
            probes.iter().find(|p| p.servers.contains_key(instance)).map(|p| p.cluster.name.clone())
        };
        let everybody: BTreeSet<String> = expected.clusters.iter().map(|c| c.name.clone()).collect();
        let mut missing = everybody.clone();
        let mut failing = false;
        let began = Instant::now();
        let warm = format!("warm-{}", random(8));
        // Failing: an endpoint or a gateway that is just being replaced answers some of the requests and not the others.
        while (failing || !missing.is_empty()) && began.elapsed() < self.options.settle {
            let some = probes.len() * 4;
            let seen =
                probe::answers(&self.exec(from, &from.client, &probe::script(&self.namespace, &warm, some)).await?);
            failing = seen.iter().any(|answer| !(200..300).contains(&answer.status));
            for by in seen.iter().filter_map(|a| a.instance.as_ref()).filter_map(&cluster_of) {
                missing.remove(&by);
            }
            if failing || !missing.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let view = loop {
            let view = view::of(from.cluster, &self.namespace, &from.client).await;
            let complete = expected.of(from).is_none_or(|from| is_complete(from, expected, &view));
            if complete || began.elapsed() >= self.options.settle {
                break view;
            }
            tokio::time::sleep(view::AGAIN).await;
        };
        (self.news)(News::Settled { cluster: from.cluster.name.clone() });

        let enough = requests_per_caller(probes.len());
        let count = self.options.requests.unwrap_or(enough);
        let mut missing = everybody;
        let mut requests = Vec::new();
        // Who balances the load chooses by chance: with few requests, more are sent before anybody is called silent.
        while requests.len() < count || (!missing.is_empty() && requests.len() < enough) {
            let more = if requests.is_empty() { count } else { count.min(enough - requests.len()) };
            requests.extend(self.round(from, more, &cluster_of).await?);
            for by in requests.iter().filter_map(|request| request.answered_by.as_ref()) {
                missing.remove(by);
            }
        }
        (self.news)(News::Asked { cluster: from.cluster.name.clone(), requests: requests.len() });
        Ok((requests, view))
    }

    /// `count` requests of one caller, as its client and its proxy saw them.
    async fn round(
        &self,
        from: &Probe<'_>,
        count: usize,
        cluster_of: impl Fn(&String) -> Option<String>,
    ) -> Result<Vec<Request>, Error> {
        let run = format!("verify-{}", random(12));
        let output = self.exec(from, &from.client, &probe::script(&self.namespace, &run, count)).await?;
        let answers = probe::answers(&output);
        if answers.len() != count {
            let why = format!("{} of {count} requests were made: {}", answers.len(), last_line(&output));
            return Err(Error::Client { cluster: from.cluster.name.clone(), why });
        }
        let mut log = self.access_log(from, &run, count).await?;
        Ok(answers
            .into_iter()
            .enumerate()
            .map(|(n, answer)| {
                let line = log.remove(&format!("{run}-{}", n + 1)).unwrap_or_default();
                let text = |key: &str| {
                    line.get(key).and_then(Value::as_str).filter(|t| !t.is_empty() && *t != "-").map(ToOwned::to_owned)
                };
                Request {
                    status: answer.status,
                    answered_by: answer.instance.as_ref().and_then(&cluster_of),
                    millis: answer.millis,
                    identity: text("upstream_peer_uri_san"),
                    dialled: text("upstream_host"),
                    trouble: text("upstream_transport_failure_reason").or_else(|| text("response_flags")),
                }
            })
            .collect())
    }

    /// The lines of the client's proxy about this run, by request id. Waits a moment for the last ones.
    async fn access_log(&self, from: &Probe<'_>, run: &str, count: usize) -> Result<BTreeMap<String, Value>, Error> {
        let pods: Api<Pod> = Api::namespaced(from.cluster.client.clone(), &self.namespace);
        let params = LogParams { container: Some(istio::PROXY_CONTAINER.to_owned()), ..LogParams::default() };
        let began = Instant::now();
        loop {
            let text = pods
                .logs(&from.client, &params)
                .await
                .map_err(|e| asked(&from.cluster.name, "read the proxy's log", e))?;
            let lines: BTreeMap<String, Value> = text
                .lines()
                .filter(|line| line.contains(run))
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .filter_map(|line| Some((line.get("request_id")?.as_str()?.to_owned(), line)))
                .collect();
            if lines.len() >= count || began.elapsed() > Duration::from_secs(2) {
                return Ok(lines);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn refusals(&self, probes: &[Probe<'_>], expected: &Expected) -> Result<Vec<Refusal>, Error> {
        let sni = istio::sni(PORT, "", &istio::host(SERVER, &self.namespace, istio::DEFAULT_DOMAIN));
        let per_cluster = expected.clusters.iter().zip(probes).map(|(cluster, probe)| {
            let sni = &sni;
            async move {
                let mut refusals = Vec::new();
                if let Some(gateway) = self.own_gateway(probe.cluster, cluster).await? {
                    refusals.push(plaintext(&cluster.name, &gateway).await);
                    let roots = self.roots(probe.cluster).await?;
                    refusals.push(foreign_root(&cluster.name, &gateway, sni, &expected.identity, &roots).await);
                }
                refusals.push(self.plaintext_to_pod(probe).await?);
                for other in expected.clusters.iter().filter(|o| o.network != cluster.network) {
                    refusals.push(self.across(probe, other).await?);
                }
                Ok::<_, Error>(refusals)
            }
        });
        Ok(all(per_cluster).await?.concat())
    }

    /// The gateway of the cluster itself, so that every one is tried.
    async fn own_gateway(&self, cluster: &Cluster, expected: &ExpectedCluster) -> Result<Option<String>, Error> {
        if expected.gateways.is_empty() {
            return Ok(None);
        }
        Ok(gateways::addresses(cluster, self.by_hand(&cluster.name)).await?.pop_first())
    }

    /// What the mesh file says of how a cluster's gateway is reached.
    fn by_hand(&self, cluster: &str) -> Option<&stolos_spec::ClusterGateway> {
        self.mesh.clusters.iter().find(|member| member.name.as_str() == cluster)?.gateway_by_hand()
    }

    async fn roots(&self, cluster: &Cluster) -> Result<Roots, Error> {
        let maps = Resource::named("v1", "ConfigMap").map_err(|e| failed("-", e))?;
        let map = objects::get(&cluster.client, &maps, Some(&self.namespace), istio::ROOT_CONFIG_MAP)
            .await
            .map_err(|e| failed(&cluster.name, e))?;
        let pem =
            map.as_ref().and_then(|m| m.pointer("/data/root-cert.pem")).and_then(Value::as_str).unwrap_or_default();
        Roots::from_pem(pem).map_err(|e| Error::Client { cluster: cluster.name.clone(), why: e.to_string() })
    }

    /// A client without a proxy speaks plain HTTP to a server of its own cluster.
    async fn plaintext_to_pod(&self, probe: &Probe<'_>) -> Result<Refusal, Error> {
        let server = probe.servers.values().next().cloned().unwrap_or_default();
        let (status, saw) = self.outsider(probe, &server).await?;
        let strict = self.mesh.mtls == stolos_spec::Mtls::Strict;
        Ok(Refusal {
            what: "plaintext to a pod".into(),
            cluster: probe.cluster.name.clone(),
            verdict: match (status, strict) {
                (0, _) => Verdict::Pass,
                (_, true) => Verdict::Fail,
                (_, false) => Verdict::Permissive,
            },
            saw,
        })
    }

    /// A client without a proxy dials a pod of another network.
    async fn across(&self, probe: &Probe<'_>, other: &ExpectedCluster) -> Result<Refusal, Error> {
        let server = other.servers.iter().next().cloned().unwrap_or_default();
        let address = server.rsplit_once(':').map_or(server.as_str(), |(ip, _)| ip);
        let (status, saw) = self.outsider(probe, address).await?;
        Ok(Refusal {
            what: format!("pod of {} dialled from {}", other.name, probe.cluster.name),
            cluster: probe.cluster.name.clone(),
            verdict: if status == 0 { Verdict::Pass } else { Verdict::Fail },
            saw,
        })
    }

    async fn outsider(&self, probe: &Probe<'_>, address: &str) -> Result<(u16, String), Error> {
        let script = format!(
            "curl -sS -m 2 --connect-timeout 1 -w '\\n{}%{{http_code}} %{{time_total}}\\n' http://{address}:{PORT}/hello 2>&1",
            probe::END
        );
        let output = self.exec(probe, &probe.outsider, &script).await?;
        let status = probe::answers(&output).first().map_or(0, |a| a.status);
        let words =
            output.lines().find(|l| !l.is_empty() && !l.starts_with(probe::END)).unwrap_or("nothing").to_owned();
        Ok((status, format!("{address}:{PORT}: {words}")))
    }

    /// Runs a script in a client pod and returns what it printed.
    async fn exec(&self, probe: &Probe<'_>, pod: &str, script: &str) -> Result<String, Error> {
        let cluster = &probe.cluster.name;
        // Every curl of a script is bounded by itself; this bounds a client that hangs altogether.
        let patience = Duration::from_secs(120);
        let command = ["sh", "-c", script];
        exec::output(&probe.cluster.client, &self.namespace, pod, "curl", &command, patience).await.map_err(|failed| {
            let cluster = cluster.clone();
            match failed {
                Failed::Start(source) => Error::Exec { cluster, source },
                other => Error::Client { cluster, why: other.to_string() },
            }
        })
    }

    /// Removes the namespaces that were made and waits, briefly, until they are gone.
    async fn clean(&self) {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let made = self.clusters.iter().filter_map(|cluster| Some((cluster, made.get(&cluster.name)?.clone())));
        join_all(made.map(|(cluster, uid)| async move {
            let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
            let only = Preconditions { uid: Some(uid), ..Preconditions::default() };
            let how = DeleteParams::background().preconditions(only);
            let gone = async {
                loop {
                    match namespaces.delete(&self.namespace, &how).await {
                        // Gone, or somebody else's by now.
                        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
                        Err(error) => tracing::debug!(cluster = cluster.name, %error, "could not remove the probe yet"),
                        Ok(_) => {}
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            };
            if tokio::time::timeout(Duration::from_secs(15), gone).await.is_err() {
                tracing::warn!(
                    cluster = cluster.name,
                    namespace = self.namespace,
                    "the probe's namespace is still there"
                );
            }
        }))
        .await;
    }
}

/// All of them side by side; the first failure ends them.
async fn all<T, E>(futures: impl IntoIterator<Item = impl Future<Output = Result<T, E>>>) -> Result<Vec<T>, E> {
    futures::future::try_join_all(futures).await
}

/// The Services through which other networks are meant to come in: those that Stolos made; in a mesh that somebody else
/// built, every one that a control plane takes for a gateway. Any other hop is a surprise, and shown.
async fn planned_gateways(cluster: &Cluster) -> Result<Vec<Value>, Error> {
    let services = Resource::named("v1", "Service").map_err(|e| failed(&cluster.name, e))?;
    let labelled = objects::list(&cluster.client, &services, None, Some(istio::NETWORK_LABEL))
        .await
        .map_err(|e| failed(&cluster.name, e))?;
    let (ours, theirs): (Vec<_>, Vec<_>) =
        labelled.into_iter().partition(|s| stolos_k8s::meta::label(s, istio::MANAGED_BY_LABEL) == Some(istio::STOLOS));
    Ok(if ours.is_empty() { theirs } else { ours })
}

/// `address:port` of a gateway's Service, as a control plane reads it (contract B.3).
pub(crate) fn gateway_addresses(service: &Value) -> Vec<String> {
    let port = stolos_k8s::meta::label(service, istio::GATEWAY_PORT_LABEL)
        .and_then(|p| p.parse().ok())
        .unwrap_or(istio::CROSS_NETWORK_PORT);
    let ingress =
        service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array).cloned().unwrap_or_default();
    let balanced = ingress
        .iter()
        .filter_map(|i| i.get("ip").or_else(|| i.get("hostname")).and_then(Value::as_str).map(ToOwned::to_owned));
    let external = service.pointer("/spec/externalIPs").and_then(Value::as_array).cloned().unwrap_or_default();
    let external = external.iter().filter_map(|ip| ip.as_str().map(ToOwned::to_owned)).collect::<Vec<_>>();
    balanced.chain(external).map(|address| format!("{address}:{port}")).collect()
}

fn is_ready(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod
            .status
            .as_ref()
            .and_then(|s| s.conditions.as_ref())
            .is_some_and(|conditions| conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn describe(pod: &Pod) -> String {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref();
    let waiting = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten().find_map(|c| {
        let waiting = c.state.as_ref()?.waiting.as_ref()?;
        Some(format!("{} is {}", c.name, waiting.reason.as_deref().unwrap_or("waiting")))
    });
    let phase = || status.and_then(|s| s.phase.clone()).unwrap_or_else(|| "Pending".to_owned());
    format!("pod {name}: {}", waiting.unwrap_or_else(phase))
}

fn last_line(text: &str) -> &str {
    text.lines().rev().find(|l| !l.is_empty()).unwrap_or("it printed nothing")
}

fn random(length: usize) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..length).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect()
}

fn failed(cluster: &str, source: stolos_cluster::Error) -> Error {
    Error::Cluster { cluster: cluster.to_owned(), source }
}

fn asked(cluster: &str, what: &str, source: kube::Error) -> Error {
    failed(cluster, stolos_cluster::Error::Request { what: what.to_owned(), source: Box::new(source) })
}
