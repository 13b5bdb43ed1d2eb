//! Reading all that goes into an archive. Every question has a time, every answer a size.

use std::time::{Duration, SystemTime};

use futures::future::join_all;
use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, LogParams};
use serde_json::Value;
use stolos_cluster::{Cluster, forward};
use stolos_k8s::{istio, meta};
use stolos_serve::Stop;
use stolos_spec::Mesh;

use crate::diagnose::scene::{Engine, engine};
use crate::diagnose::snapshot::{Datum, Seen, Snapshot, is_over, is_ready, proxy};
use crate::diagnose::{CheckOptions, CheckReport, observed};
use stolos_serve::because;

/// How long the pages of one cluster may take together.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a log may take.
const LOG_PATIENCE: Duration = Duration::from_secs(10);
/// How many questions one cluster is asked at a time.
const AT_ONCE: usize = 6;
/// The largest page that is kept; what is beyond is cut off.
const LARGEST: usize = 8 << 20;

/// Objects that a person wants to see beside those that the causes are judged by: `apiVersion`, `kind`, whether only in
/// the control plane's namespace.
pub(crate) const BESIDE: [(&str, &str, bool); 10] = [
    ("v1", "ServiceAccount", true),
    ("apps/v1", "ReplicaSet", true),
    ("apps/v1", "StatefulSet", false),
    ("autoscaling/v2", "HorizontalPodAutoscaler", true),
    ("rbac.authorization.k8s.io/v1", "Role", true),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", true),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", false),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", false),
    ("v1", "Endpoints", true),
    ("v1", "Event", false),
];

/// How much is read.
#[derive(Clone, Copy, Debug)]
pub struct GatherOptions {
    /// Of so many proxies per cluster, gateways first.
    pub proxies: usize,
    /// So many lines of each log; none with 0.
    pub log_lines: usize,
}

/// What goes on.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// The objects of all clusters are read.
    Looked,
    /// A cluster's pages are read: so many, and so many were not to be had.
    Asked(&'a str, usize, usize),
}

/// A page of a control plane or a proxy, or a log.
#[derive(Clone, Debug)]
pub struct Page {
    /// The cluster.
    pub cluster: String,
    /// What it is: `syncz of control plane istiod-1`.
    pub what: String,
    /// Where it goes below the cluster's folder.
    pub path: String,
    /// When it was read.
    pub at: SystemTime,
    /// What it says, or why it could not be had.
    pub body: Result<String, String>,
}

/// All that was read.
pub struct Gathered {
    /// What the causes are judged by.
    pub snapshot: Snapshot,
    /// What they say.
    pub report: CheckReport,
    /// Pages and logs.
    pub pages: Vec<Page>,
}

impl Gathered {
    /// Says of a cluster why nobody could look.
    pub fn absent(&mut self, cluster: &str, why: &str) {
        self.snapshot.clusters.insert(cluster.to_owned(), Datum::Unread { why: why.to_owned() });
        for checked in self.report.clusters.iter_mut().filter(|c| c.name == cluster) {
            checked.unreachable = Some(why.to_owned());
        }
    }
}

/// Reads everything, all clusters side by side.
///
/// # Errors
///
/// [`Interrupted`](crate::Error::Interrupted). What does not answer is part of what is gathered.
pub async fn gather(
    mesh: &Mesh,
    clusters: &[Cluster],
    checks: &CheckOptions,
    options: GatherOptions,
    hear: &(dyn Fn(News<'_>) + Sync),
    stop: &Stop,
) -> Result<Gathered, crate::Error> {
    let (snapshot, report) = observed(mesh, clusters, checks, &BESIDE, stop).await?;
    hear(News::Looked);
    let asking = join_all(clusters.iter().map(|cluster| {
        let seen = snapshot.clusters.get(&cluster.name).and_then(Datum::value);
        async move {
            let Some(seen) = seen else { return Vec::new() };
            let pages = pages(cluster, seen, options).await;
            let missing = pages.iter().filter(|page| page.body.is_err()).count();
            hear(News::Asked(&cluster.name, pages.len() - missing, missing));
            pages
        }
    }));
    let pages = tokio::select! {
        pages = asking => pages.into_iter().flatten().collect(),
        () = stop.asked() => return Err(crate::Error::Interrupted),
    };
    Ok(Gathered { snapshot, report, pages })
}

/// When something was answered, and with what.
type Answer = (SystemTime, Result<String, String>);

/// One thing to ask of a pod.
struct Question {
    namespace: String,
    pod: String,
    what: String,
    path: String,
    of: Of,
}

enum Of {
    Page { port: u16, page: &'static str },
    Log { container: &'static str, lines: i64, previous: bool },
}

async fn pages(cluster: &Cluster, seen: &Seen, options: GatherOptions) -> Vec<Page> {
    let questions = questions(seen, options);
    let ask = |(index, question): (usize, &Question)| {
        let Question { namespace, pod, of, .. } = question;
        let (namespace, pod) = (namespace.clone(), pod.clone());
        let of = match of {
            Of::Page { port, page } => Ok((*port, *page)),
            Of::Log { container, lines, previous } => Err((*container, *lines, *previous)),
        };
        async move {
            let body = match of {
                Ok((port, page)) => {
                    forward::page(&cluster.client, &namespace, &pod, port, page).await.map_err(|e| because(&e))
                }
                Err((container, lines, previous)) => {
                    log(&cluster.client, &namespace, &pod, container, lines, previous).await
                }
            };
            (index, SystemTime::now(), body)
        }
    };
    let indexed: Vec<_> = questions.iter().enumerate().collect();
    let answers = stream::iter(indexed.into_iter().map(ask)).buffer_unordered(AT_ONCE);
    let answers: Vec<_> = answers.take_until(tokio::time::sleep(PATIENCE)).collect().await;
    let late = || (SystemTime::now(), Err(format!("the {} s for one cluster were over", PATIENCE.as_secs())));
    let mut answered: Vec<_> = questions.iter().map(|_| None).collect();
    for (index, at, body) in answers {
        if let Some(slot) = answered.get_mut(index) {
            *slot = Some((at, body));
        }
    }
    let page = |(question, answer): (Question, Option<Answer>)| {
        let (at, body) = answer.unwrap_or_else(late);
        let Question { what, path, .. } = question;
        Page { cluster: cluster.name.clone(), what, path, at, body: body.map(cut) }
    };
    questions.into_iter().zip(answered).map(page).collect()
}

fn questions(seen: &Seen, options: GatherOptions) -> Vec<Question> {
    let small = engine(seen) == Engine::Stolos;
    let mut questions = Vec::new();
    let lines = i64::try_from(options.log_lines).unwrap_or(i64::MAX);
    let logs = |pod: &Value, folder: &str, container: &'static str, questions: &mut Vec<Question>| {
        let restarts = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        let restarted = restarts.filter(|c| c["name"] == container).any(|c| c["restartCount"].as_u64() > Some(0));
        for previous in [false, true] {
            if lines == 0 || (previous && !restarted) {
                continue;
            }
            let (name, before) = (meta::name(pod), if previous { "previous " } else { "" });
            questions.push(Question {
                namespace: meta::namespace(pod).to_owned(),
                pod: name.to_owned(),
                what: format!("{before}log of {container} in pod {}/{name}", meta::namespace(pod)),
                path: format!("{folder}/{container}{}.log", if previous { ".previous" } else { "" }),
                of: Of::Log { container, lines, previous },
            });
        }
    };
    let pages = |pod: &Value, folder: &str, port, pages: &[&'static str], questions: &mut Vec<Question>| {
        for page in pages {
            let name = page.rsplit('/').next().unwrap_or(page);
            // Figures and lists are text; all else is JSON.
            let ending = if matches!(name, "stats" | "prometheus" | "metrics") { "txt" } else { "json" };
            let name = if name == "prometheus" { "stats" } else { name.split('?').next().unwrap_or(name) };
            questions.push(Question {
                namespace: meta::namespace(pod).to_owned(),
                pod: meta::name(pod).to_owned(),
                what: format!("{page} of pod {}/{}", meta::namespace(pod), meta::name(pod)),
                path: format!("{folder}/{name}.{ending}"),
                of: Of::Page { port, page },
            });
        }
    };
    let running = || seen.all("Pod").iter().filter(|p| !is_over(p));
    let is_istiod = |pod: &&Value| {
        meta::namespace(pod) == istio::SYSTEM_NAMESPACE && meta::label(pod, istio::APP_LABEL) == Some(istio::ISTIOD)
    };
    for pod in running().filter(is_istiod) {
        let folder = format!("control-planes/{}", meta::name(pod));
        logs(pod, &folder, "discovery", &mut questions);
        if is_ready(pod) {
            const SMALL: [&str; 4] = ["/debug/syncz", "/debug/registryz", "/debug/networkz", "/debug/unsupported"];
            const ISTIO: [&str; 5] =
                ["/debug/syncz", "/debug/registryz", "/debug/networkz", "/debug/configz", "/debug/mesh"];
            let names: &[&str] = if small { &SMALL } else { &ISTIO };
            pages(pod, &folder, istio::DEBUG_PORT, names, &mut questions);
            pages(pod, &folder, istio::MONITORING_PORT, &["/metrics"], &mut questions);
        }
    }
    // Gateways first: a proxy without an application is one.
    let mut proxies: Vec<_> = running().filter(|p| is_ready(p) && proxy(p).is_some()).collect();
    let applications = |pod: &&Value| pod["spec"]["containers"].as_array().is_some_and(|all| all.len() > 1);
    proxies.sort_by_key(|pod| (applications(pod), meta::namespace(pod).to_owned(), meta::name(pod).to_owned()));
    for pod in proxies.into_iter().take(options.proxies) {
        let folder = format!("proxies/{}/{}", meta::namespace(pod), meta::name(pod));
        const SMALL: [&str; 2] = ["/config_dump", "/stats/prometheus"];
        const ENVOY: [&str; 5] =
            ["/config_dump", "/certs", "/clusters?format=json", "/server_info", "/stats/prometheus"];
        let envoy = !small || meta::annotation(pod, "stolos.dev/proxy") == Some("envoy");
        let names: &[&str] = if envoy { &ENVOY } else { &SMALL };
        pages(pod, &folder, istio::ADMIN_PORT, names, &mut questions);
        logs(pod, &folder, istio::PROXY_CONTAINER, &mut questions);
    }
    questions
}

async fn log(
    client: &kube::Client,
    namespace: &str,
    pod: &str,
    container: &str,
    lines: i64,
    previous: bool,
) -> Result<String, String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = LogParams {
        container: Some(container.to_owned()),
        tail_lines: Some(lines),
        limit_bytes: i64::try_from(LARGEST).ok(),
        timestamps: true,
        previous,
        ..LogParams::default()
    };
    match tokio::time::timeout(LOG_PATIENCE, pods.logs(pod, &params)).await {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(because(&error)),
        Err(_) => Err(format!("no answer in {} s", LOG_PATIENCE.as_secs())),
    }
}

fn cut(mut text: String) -> String {
    if text.len() > LARGEST {
        let end = (0..=LARGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
        text.truncate(end);
        text.push_str("\n[cut off here: it is larger than 8 MiB]\n");
    }
    text
}
