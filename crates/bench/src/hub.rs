//! The hub: how fast it decides, how fast what it decided is in the members, and what that costs.
//!
//! The hub is the release binary with its store on disk. Members are API servers alone, each a process: what kubelets would
//! do with the pods is not what is measured.

mod fleet;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use futures::{Stream, pin_mut};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};
use stolos_hub::model::{Binding, Cluster};
use stolos_hub::place::{self, Outcome, place};
use tokio::task::JoinSet;

use crate::apiserver::CONTEXT;
use crate::table::row;
use fleet::{Hub, Member};

/// Runs of what takes minutes.
const LONG_RUNS: usize = 3;
/// Requests under way while objects are made.
const AT_ONCE: usize = 32;
/// Members that are started, or join, at once.
const STARTING: usize = 8;
/// What is measured here takes seconds, on a busy machine a minute.
const PATIENCE: Duration = Duration::from_secs(600);
/// Members of the distribution.
const MEMBERS: usize = 100;
/// Deployments made one after the other, and how many in a second.
const DISTRIBUTED: usize = 400;
const RATE: u32 = 20;
/// Members that each of them goes to.
const COPIES: usize = 3;
/// Where the objects are.
const NAMESPACE: &str = "default";

/// `bench hub`
pub(crate) fn hub(stolos: &Path, out: &mut impl Write) -> Result<()> {
    on_two_threads(cold(stolos, out))
}

/// `bench distribution`
pub(crate) fn distributions(stolos: &Path, out: &mut impl Write) -> Result<()> {
    on_two_threads(async {
        for pull in [false, true] {
            distribution(stolos, pull, out).await?;
        }
        Ok(())
    })
}

fn on_two_threads(bench: impl Future<Output = Result<()>>) -> Result<()> {
    crate::process::raise_open_files();
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(bench)
}

/// Deployments of the cold run: as in Karmada's own measurement, or fewer for whoever looks at one change after the other.
fn deployments() -> usize {
    std::env::var("STOLOS_BENCH_DEPLOYMENTS").ok().and_then(|count| count.parse().ok()).unwrap_or(5_000)
}

/// Members of the distribution.
fn members() -> usize {
    std::env::var("STOLOS_BENCH_MEMBERS").ok().and_then(|count| count.parse().ok()).unwrap_or(MEMBERS)
}

/// How often what takes minutes is run.
fn runs() -> usize {
    std::env::var("STOLOS_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(LONG_RUNS)
}

/// `bench decisions`: in memory, by one thread: a binding of 50 replicas over a hundred clusters.
pub(crate) fn decisions(out: &mut impl Write) -> Result<()> {
    let clusters: Vec<Cluster> = (0..MEMBERS).map(candidate).collect::<Result<_>>()?;
    let weights: Vec<Value> = (0..MEMBERS)
        .map(|n| json!({"targetCluster": {"clusterNames": [format!("m{n}")]}, "weight": n % 5 + 1}))
        .collect();
    let kinds = [
        ("to all", json!({"replicaSchedulingType": "Duplicated"}), json!([])),
        (
            "static weights",
            json!({"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Weighted",
                "weightPreference": {"staticWeightList": weights}}),
            json!([]),
        ),
        (
            "by what is free, 2 to 3 of 5 regions",
            json!({"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Weighted",
                "weightPreference": {"dynamicWeight": "AvailableReplicas"}}),
            json!([{"spreadByField": "region", "minGroups": 2, "maxGroups": 3},
                {"spreadByField": "cluster", "minGroups": 4, "maxGroups": 10}]),
        ),
    ];
    for (what, scheduling, constraints) in kinds {
        let mut rates = Vec::new();
        for _ in 0..crate::table::RUNS {
            let (began, mut done) = (Instant::now(), 0_u32);
            while began.elapsed() < Duration::from_secs(1) {
                let binding = binding(done, &scheduling, &constraints)?;
                let room = |cluster: &Cluster| stolos_hub::estimate::available(cluster, None);
                let decision = place(&binding, &clusters, &room, place::Settings::default());
                ensure!(matches!(decision.outcome, Outcome::Placed { .. }), "{what}: {:?}", decision.outcome);
                done += 1;
            }
            rates.push(f64::from(done) / began.elapsed().as_secs_f64());
        }
        row(out, &format!("hub: decisions/s in memory, 100 clusters, {what}"), rates)?;
    }
    Ok(())
}

fn candidate(n: usize) -> Result<Cluster> {
    let served = json!([{"groupVersion": "apps/v1", "resources": [{"name": "deployments", "kind": "Deployment"}]}]);
    let cluster = json!({"metadata": {"name": format!("m{n}")}, "spec": {"region": format!("r{}", n % 5)},
        "status": {"apiEnablements": served, "resourceSummary": {
            "allocatable": {"cpu": "64", "pods": (110 * (n % 7 + 1)).to_string()}, "allocated": {"cpu": "1", "pods": "7"}}}});
    Ok(serde_json::from_value(cluster)?)
}

fn binding(n: u32, scheduling: &Value, constraints: &Value) -> Result<Binding> {
    let binding = json!({"metadata": {"name": format!("app-{n}-deployment"), "namespace": NAMESPACE},
        "spec": {"resource": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": NAMESPACE,
                "name": format!("app-{n}"), "uid": format!("00000000-0000-0000-0000-{n:012}")},
            "replicas": 50,
            "placement": {"replicaScheduling": scheduling, "spreadConstraints": constraints}}});
    Ok(serde_json::from_value(binding)?)
}

/// 5,000 Deployments, each with a policy of its own, into a hub that has nothing yet; and the same 5,000 when one policy comes
/// for all of them.
async fn cold(stolos: &Path, out: &mut impl Write) -> Result<()> {
    let mut each = Vec::new();
    let mut all = Vec::new();
    for _ in 0..runs() {
        each.push(fill(stolos, false).await?);
        all.push(fill(stolos, true).await?);
    }
    for (runs, what) in [(&each, "a policy for each"), (&all, "one policy for all, made last")] {
        let count = deployments();
        let what = format!("hub: {count} Deployments over 3 members, {what}");
        row(out, &format!("{what}: all made, s"), runs.iter().map(|r| r.made))?;
        row(out, &format!("{what}: all scheduled, s"), runs.iter().map(|r| r.scheduled))?;
        row(out, &format!("{what}: all in the members, s"), runs.iter().map(|r| r.arrived))?;
        row(out, &format!("{what}: all known to be applied, s"), runs.iter().map(|r| r.applied))?;
        row(out, &format!("{what}: bindings/s"), runs.iter().map(|r| count as f64 / (r.scheduled - r.since)))?;
        row(out, &format!("{what}: most memory resident, MiB"), runs.iter().map(|r| r.memory))?;
        row(out, &format!("{what}: CPU-seconds of the hub"), runs.iter().map(|r| r.processor))?;
    }
    Ok(())
}

/// What one run took: seconds since the first object was made.
struct Filled {
    made: f64,
    /// When the hub had what it needs to schedule.
    since: f64,
    scheduled: f64,
    arrived: f64,
    applied: f64,
    memory: f64,
    processor: f64,
}

async fn fill(stolos: &Path, one_for_all: bool) -> Result<Filled> {
    let count = deployments();
    let hub = Hub::up(stolos).await?;
    let members: Vec<Member> = stream::iter(1..=3).then(Member::start).try_collect().await?;
    for member in &members {
        hub.join(&member.name, CONTEXT, &member.kubeconfig)?;
    }
    let mut waits = JoinSet::new();
    let condition = |name: &'static str| {
        move |object: &DynamicObject| {
            let conditions = object.data["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|c| c["type"] == name && c["status"] == "True")
        }
    };
    let began = Instant::now();
    let bindings = |client: &Client| api(client, "work.karmada.io", "v1alpha2", "ResourceBinding");
    let scheduled = waits_for(&mut waits, bindings(&hub.client), condition("Scheduled"));
    let applied = waits_for(&mut waits, bindings(&hub.client), condition("FullyApplied"));
    let deployments = |client: &Client| api(client, "apps", "v1", "Deployment");
    let arrived: Vec<_> =
        members.iter().map(|member| waits_for(&mut waits, deployments(&member.client), |_| true)).collect();

    let names: Vec<String> = (0..count).map(|n| format!("app-{n}")).collect();
    let deployments: Vec<Value> = names.iter().map(|name| deployment(name, 3)).collect();
    let (policies, last) = match one_for_all {
        false => (names.iter().map(|name| policy(name, Some(name), weights())).collect(), None),
        true => (vec![], Some(policy("all", None, weights()))),
    };
    // As people write them: the policy and what it is for, one after the other.
    make_all(&hub.client, policies.into_iter().chain(deployments).collect()).await?;
    let mut since = 0.0;
    if let Some(policy) = last {
        // The hub has seen all of them, and found no policy.
        tokio::time::sleep(Duration::from_secs(3)).await;
        since = began.elapsed().as_secs_f64();
        make(&hub.client, &policy).await?;
    }
    let made = began.elapsed().as_secs_f64();
    let patience = tokio::time::Instant::now() + PATIENCE;
    let until = async |seen: &Seen| -> Result<f64> {
        let at = seen.all(count, patience).await?;
        Ok(at.duration_since(began).as_secs_f64())
    };
    let mut last = 0.0_f64;
    for member in &arrived {
        last = last.max(until(member).await?);
    }
    let filled = Filled {
        made,
        since,
        scheduled: until(&scheduled).await?,
        arrived: last,
        applied: until(&applied).await?,
        memory: hub.most_memory(),
        processor: crate::process::cpu(hub.process)?,
    };
    waits.shutdown().await;
    Ok(filled)
}

/// How long a Deployment takes from the hub's answer to whoever made it until each of its members has it.
async fn distribution(stolos: &Path, pull: bool, out: &mut impl Write) -> Result<()> {
    let hub = Hub::up(stolos).await?;
    let members: Vec<Member> = stream::iter(1..=members()).map(Member::start).buffered(STARTING).try_collect().await?;
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let agents = match pull {
        true => hub.let_in(&members).await?,
        false => {
            members.iter().try_for_each(|member| hub.join(&member.name, CONTEXT, &member.kubeconfig))?;
            vec![]
        }
    };
    hub.all_ready(names.len()).await?;
    let mut waits = JoinSet::new();
    let seen: HashMap<&str, Seen> = members
        .iter()
        .map(|member| {
            let deployments = api(&member.client, "apps", "v1", "Deployment");
            (member.name.as_str(), waits_for(&mut waits, deployments, |_| true))
        })
        .collect();
    let before = crate::process::cpu(hub.process)?;
    let mut begun = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / RATE);
    for n in 0..DISTRIBUTED {
        tick.tick().await;
        let name = format!("app-{n}");
        let to: Vec<&str> = (0..COPIES).map(|copy| names[(n * COPIES + copy) % names.len()]).collect();
        let placement = json!({"clusterAffinity": {"clusterNames": to}});
        make(&hub.client, &policy(&name, Some(&name), placement)).await?;
        let at = Instant::now();
        make(&hub.client, &deployment(&name, 1)).await?;
        begun.push((name, to, at));
    }
    let patience = tokio::time::Instant::now() + PATIENCE;
    let mut took = Vec::new();
    for (name, to, at) in &begun {
        for member in to {
            let there = seen[member].one(name, patience).await.with_context(|| format!("{name} is not in {member}"))?;
            took.push(there.saturating_duration_since(*at).as_secs_f64() * 1e3);
        }
    }
    let busy = crate::process::cpu(hub.process)? - before;
    waits.shutdown().await;
    drop(agents);
    took.sort_by(f64::total_cmp);
    let mode = if pull { "pull" } else { "push" };
    let what =
        format!("hub: made to seen in a member, {} members, {mode}, {RATE}/s, {COPIES} copies each", members.len());
    for (name, share) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("most", 1.0)] {
        let at = ((took.len() as f64 * share) as usize).min(took.len() - 1);
        row(out, &format!("{what}: {name}, ms"), [took[at]])?;
    }
    row(out, &format!("{what}: CPU-seconds of the hub"), [busy])?;
    row(out, &format!("{what}: memory of the hub, MiB"), [hub.most_memory()])
}

fn weights() -> Value {
    let rule = |n: usize| json!({"targetCluster": {"clusterNames": [format!("m{n}")]}, "weight": 1});
    json!({"replicaScheduling": {"replicaSchedulingType": "Divided", "replicaDivisionPreference": "Weighted",
        "weightPreference": {"staticWeightList": [rule(1), rule(2), rule(3)]}}})
}

fn deployment(name: &str, replicas: usize) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "web", "image": "example.test/web:1",
                "env": [{"name": "GREETING", "value": "hello"}], "ports": [{"containerPort": 8080}],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]}}}})
}

/// A policy for one Deployment or for all.
fn policy(name: &str, of: Option<&str>, placement: Value) -> Value {
    let mut selector = json!({"apiVersion": "apps/v1", "kind": "Deployment"});
    if let Some(of) = of {
        selector["name"] = json!(of);
    }
    json!({"apiVersion": "policy.karmada.io/v1alpha1", "kind": "PropagationPolicy",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"resourceSelectors": [selector], "placement": placement}})
}

fn api(client: &Client, group: &str, version: &str, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    Api::namespaced_with(client.clone(), NAMESPACE, &resource)
}

async fn make(client: &Client, object: &Value) -> Result<()> {
    let kinds = if object["kind"] == "Deployment" { "deployments" } else { "propagationpolicies" };
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let path = format!("/apis/{version}/namespaces/{NAMESPACE}/{kinds}");
    let request = http::Request::post(path).header("content-type", "application/json");
    client.request::<Value>(request.body(object.to_string().into_bytes())?).await?;
    Ok(())
}

async fn make_all(client: &Client, objects: Vec<Value>) -> Result<()> {
    stream::iter(objects).map(Ok).try_for_each_concurrent(AT_ONCE, async |object| make(client, &object).await).await
}

/// Objects that were as they are to be, each with the time when that was seen first.
#[derive(Clone)]
struct Seen(Arc<(Mutex<HashMap<String, Instant>>, tokio::sync::Notify)>);

impl Seen {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Instant>> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the last of so many was seen.
    async fn all(&self, count: usize, patience: tokio::time::Instant) -> Result<Instant> {
        let found = || {
            let seen = self.lock();
            (seen.len() >= count).then(|| seen.values().max().copied()).flatten()
        };
        self.until(found, patience)
            .await
            .with_context(|| format!("{} of {count} after {PATIENCE:?}", self.lock().len()))
    }

    async fn one(&self, name: &str, patience: tokio::time::Instant) -> Result<Instant> {
        self.until(|| self.lock().get(name).copied(), patience).await
    }

    async fn until(&self, found: impl Fn() -> Option<Instant>, patience: tokio::time::Instant) -> Result<Instant> {
        let wait = async {
            loop {
                let changed = self.0.1.notified();
                if let Some(at) = found() {
                    return at;
                }
                changed.await;
            }
        };
        Ok(tokio::time::timeout_at(patience, wait).await?)
    }
}

/// Watches for objects that `are` as they are to be.
fn waits_for(
    waits: &mut JoinSet<()>,
    api: Api<DynamicObject>,
    are: impl Fn(&DynamicObject) -> bool + Send + 'static,
) -> Seen {
    let seen = Seen(Arc::new((Mutex::default(), tokio::sync::Notify::new())));
    let told = seen.clone();
    waits.spawn(async move { watch(watcher::watcher(api, watcher::Config::default()), are, &told).await });
    seen
}

async fn watch(
    events: impl Stream<Item = Result<Event<DynamicObject>, watcher::Error>>,
    are: impl Fn(&DynamicObject) -> bool,
    seen: &Seen,
) {
    pin_mut!(events);
    while let Some(event) = events.next().await {
        if let Ok(Event::Apply(object) | Event::InitApply(object)) = event
            && are(&object)
        {
            let name = object.metadata.name.unwrap_or_default();
            seen.lock().entry(name).or_insert_with(Instant::now);
            seen.0.1.notify_waiters();
        }
    }
}
