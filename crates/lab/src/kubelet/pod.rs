//! One pod's life.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use stolos_serve::meter::Meter;
use stolos_serve::{Output, Stop};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::env::{About, environment, expand};
use super::log::Log;
use super::volumes::{self, Volumes};
use super::{Kubelet, probe, program};
use crate::catalogue::Launch;
use crate::console::Console;
use crate::podnet::{PodNet, PodSockets};
use crate::userland::Process;

/// Exit code of a process that was killed (128 + SIGKILL).
const KILLED: i32 = 137;
/// The name of the container that redirected connections go through.
pub(crate) const SIDECAR: &str = "istio-proxy";
/// From the news that a pod is to go until it is asked to end.
const GOING: Duration = Duration::from_millis(100);
/// How long applications wait for their sidecar before they start without it.
const SIDECAR_FIRST: Duration = Duration::from_secs(2);

/// A pod that this kubelet runs.
pub(crate) struct PodRun {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) sockets: Arc<PodSockets>,
    folder: PathBuf,
    containers: Mutex<BTreeMap<String, View>>,
    /// The pod as the API server has it; `None` when it is gone from there.
    latest: watch::Sender<Option<Arc<Pod>>>,
    dirty: Notify,
    /// Counts changes of containers, for those who wait for one.
    changes: watch::Sender<u64>,
    /// Counts the times all containers were killed by a fault.
    kills: watch::Sender<u64>,
}

/// What others may know of a container.
#[derive(Clone)]
struct View {
    init: bool,
    state: State,
    last: Option<State>,
    restarts: u32,
    ready: bool,
    started: bool,
    image_id: String,
    log: Arc<Log>,
    console: Option<Arc<Console>>,
    previous: Option<Arc<Log>>,
    /// How long its tasks ran, over all its lives; `None` where that is not counted.
    meter: Option<Arc<Meter>>,
    world: Option<Inside>,
}

/// What a process inside a container sees.
#[derive(Clone)]
struct Inside {
    net: Arc<PodNet>,
    root: PathBuf,
    env: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waiting { reason: &'static str, message: String },
    Running { since: Timestamp },
    Ended { code: i32, reason: &'static str, message: String, since: Timestamp, until: Timestamp },
}

impl PodRun {
    pub(crate) fn new(pod: &Arc<Pod>, sockets: Arc<PodSockets>, folder: PathBuf) -> Arc<Self> {
        let spec = pod.spec.clone().unwrap_or_default();
        let before = pod.status.clone().unwrap_or_default();
        let mut containers = BTreeMap::new();
        let all = spec.init_containers.iter().flatten().map(|c| (c, true));
        for (container, init) in all.chain(spec.containers.iter().map(|c| (c, false))) {
            let known = before.container_statuses.iter().chain(&before.init_container_statuses).flatten();
            let known = known.into_iter().find(|s| s.name == container.name);
            // What ran before this kubelet did was lost with it: that counts as a restart.
            let ran = known.and_then(|s| s.state.as_ref());
            let ran = ran.is_some_and(|s| s.running.is_some() || !init && s.terminated.is_some());
            let view = View {
                init,
                state: State::Waiting {
                    reason: if init { "PodInitializing" } else { "ContainerCreating" },
                    message: String::new(),
                },
                last: None,
                restarts: known.map_or(0, |s| s.restart_count as u32) + u32::from(ran),
                ready: false,
                started: false,
                image_id: String::new(),
                log: Log::new(),
                console: None,
                previous: None,
                meter: None,
                world: None,
            };
            containers.insert(container.name.clone(), view);
        }
        Arc::new(Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            sockets,
            folder,
            containers: Mutex::new(containers),
            latest: watch::Sender::new(Some(Arc::clone(pod))),
            dirty: Notify::new(),
            changes: watch::Sender::new(0),
            kills: watch::Sender::new(0),
        })
    }

    /// Takes what the API server says now.
    pub(crate) fn update(&self, pod: Option<&Arc<Pod>>) {
        self.latest.send_if_modified(|known| {
            let revision = |pod: Option<&Arc<Pod>>| pod.and_then(|p| p.metadata.resource_version.clone());
            let news = revision(known.as_ref()) != revision(pod);
            if news {
                *known = pod.cloned();
            }
            news
        });
    }

    /// Kills every container, as a crash would.
    pub(crate) fn kill(&self) {
        self.kills.send_modify(|count| *count += 1);
    }

    /// A process inside a running container.
    pub(crate) fn process(&self, container: &str) -> Option<Process> {
        let containers = self.containers();
        let view = containers.get(container)?;
        if !matches!(view.state, State::Running { .. }) {
            return None;
        }
        let inside = view.world.clone()?;
        Some(probe::quiet(Process {
            net: inside.net,
            root: inside.root,
            directory: "/".into(),
            env: inside.env,
            hostname: self.name.clone(),
            stdin: crate::userland::Source::empty(),
            stdout: crate::userland::Sink::null(),
            stderr: crate::userland::Sink::null(),
            interrupt: None,
            screen: None,
        }))
    }

    /// What the container's main process reads and shows.
    pub(crate) fn console(&self, container: &str) -> Option<Arc<Console>> {
        self.containers().get(container)?.console.clone()
    }

    /// How long the tasks of each running container that is metered have run.
    pub(super) fn usage(&self) -> Vec<(String, Duration)> {
        let running = |view: &View| matches!(view.state, State::Running { .. });
        let containers = self.containers();
        let metered = containers.iter().filter(|(_, view)| running(view));
        metered.filter_map(|(name, view)| Some((name.clone(), view.meter.as_ref()?.total()))).collect()
    }

    /// A container's log, this life's or the last one's; the error is what to tell whoever asked.
    pub(crate) fn log(&self, container: &str, previous: bool) -> Result<Arc<Log>, String> {
        let containers = self.containers();
        let view = containers
            .get(container)
            .ok_or_else(|| format!("container {container} is not valid for pod {}", self.name))?;
        if previous {
            return view.previous.clone().ok_or_else(|| {
                format!("previous terminated container \"{container}\" in pod \"{}\" not found", self.name)
            });
        }
        match &view.state {
            State::Waiting { reason, message } if view.restarts == 0 && view.last.is_none() => {
                let more = if message.is_empty() { String::new() } else { format!(" ({message})") };
                Err(format!("container \"{container}\" in pod \"{}\" is waiting to start: {reason}{more}", self.name))
            }
            _ => Ok(Arc::clone(&view.log)),
        }
    }

    fn containers(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, View>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, container: &str, change: impl FnOnce(&mut View)) {
        if let Some(view) = self.containers().get_mut(container) {
            change(view);
        }
        self.changes.send_modify(|count| *count += 1);
        self.dirty.notify_one();
    }

    fn is(&self, container: &str, question: impl FnOnce(&View) -> bool) -> bool {
        self.containers().get(container).is_some_and(question)
    }
}

/// Runs the pod until it is gone from the API server, or the cluster stops.
///
/// # Flow
///
/// 1. Volumes, init containers one after another, then all containers, the sidecar first.
/// 2. When deletion is asked for: stop everything, wait for the grace period, kill what is left.
/// 3. Tell the API server that nothing runs any more, which removes the pod.
pub(crate) async fn run(kubelet: Arc<Kubelet>, run: Arc<PodRun>, pod: Arc<Pod>) {
    let shared = Arc::clone(&kubelet.shared);
    let stop = shared.stop.child();
    let writer =
        AbortOnDropHandle::new(tokio::spawn(write_status(Arc::clone(&kubelet), Arc::clone(&run), Arc::clone(&pod))));
    let finished = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
    let soft = Stop::new();
    let mut life = Life {
        kubelet: Arc::clone(&kubelet),
        run: Arc::clone(&run),
        pod: Arc::clone(&pod),
        soft: soft.clone(),
        tasks: JoinSet::new(),
    };
    let mut latest = run.latest.subscribe();
    let deleted = async {
        loop {
            match latest.borrow_and_update().as_ref() {
                None => return Some(Duration::ZERO),
                Some(pod) if pod.metadata.deletion_timestamp.is_some() => {
                    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30).max(0);
                    return Some(Duration::from_secs(grace as u64));
                }
                Some(_) => {}
            }
            if latest.changed().await.is_err() {
                return None;
            }
        }
    };
    let grace = {
        let living = async {
            if !finished {
                life.live().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            grace = deleted => grace,
            () = living => None,
            () = stop.asked() => None,
        }
    };
    let mut writer = Some(writer);
    if grace.is_none() {
        // The cluster stops, and the pod is to come back with it: its status stays as it was.
        writer = None;
    }
    if let Some(grace) = grace {
        let running = |view: &View| matches!(view.state, State::Running { .. });
        for (name, _) in run.containers().iter().filter(|(_, view)| running(view)) {
            shared.events.normal(pod.as_ref(), "Killing", format!("Stopping container {name}"));
        }
        // A moment in which everybody learns that the pod is going, before it stops listening: what people write
        // `preStop: sleep` for, which is as long as they say.
        tokio::select! {
            () = tokio::time::sleep(grace.min(GOING.max(pre_stop(&pod)))) => {}
            () = stop.asked() => {}
        }
    }
    if !shared.killed.load(std::sync::atomic::Ordering::Acquire) {
        soft.ask();
    }
    // A cluster that stops gives its pods a moment, not their full grace; one that is killed gives them none.
    let killed = shared.killed.load(std::sync::atomic::Ordering::Acquire);
    let patience = grace.unwrap_or(if killed { Duration::ZERO } else { Duration::from_millis(500) });
    let ending = async { while life.tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(patience, ending).await;
    life.tasks.shutdown().await;
    if grace.is_some() {
        drop(writer.take());
        finish(&kubelet, &run).await;
        let folder = run.folder.clone();
        let _ = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(folder)).await;
    }
    run.sockets.close();
    kubelet.forget(&run);
}

/// How long the pod's containers sleep before they are asked to end (`lifecycle.preStop.sleep`, KEP-3960): here the whole
/// pod for as long as the one that sleeps longest.
fn pre_stop(pod: &Pod) -> Duration {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let sleeps = containers.filter_map(|container| container.lifecycle.as_ref()?.pre_stop.as_ref()?.sleep.as_ref());
    let seconds = sleeps.map(|sleep| u64::try_from(sleep.seconds).unwrap_or_default()).max();
    Duration::from_secs(seconds.unwrap_or_default())
}

/// The last words: every container has ended, and the pod may go.
async fn finish(kubelet: &Kubelet, run: &PodRun) {
    let shared = &kubelet.shared;
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &run.namespace);
    let mut delay = Duration::from_millis(50);
    loop {
        if run.latest.borrow().is_none() {
            return;
        }
        let mut params = DeleteParams::default().grace_period(0);
        params.preconditions = Some(Preconditions { uid: Some(run.uid.clone()), resource_version: None });
        match api.delete(&run.name, &params).await {
            Ok(_) => return,
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
            Err(error) => tracing::debug!(pod = %run.name, %error, "cannot remove the pod, trying again"),
        }
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = shared.stop.asked() => return,
        }
        delay = (delay * 2).min(Duration::from_secs(5));
    }
}

struct Life {
    kubelet: Arc<Kubelet>,
    run: Arc<PodRun>,
    pod: Arc<Pod>,
    soft: Stop,
    tasks: JoinSet<()>,
}

impl Life {
    async fn live(&mut self) {
        let (kubelet, run, pod) = (Arc::clone(&self.kubelet), Arc::clone(&self.run), Arc::clone(&self.pod));
        let volumes = self.volumes().await;
        if Volumes::can_change(&pod) || volumes.1.is_some() {
            self.tasks.spawn(keep_fresh(Arc::clone(&kubelet), Arc::clone(&run), volumes, self.soft.clone()));
        }
        let spec = pod.spec.clone().unwrap_or_default();
        for container in spec.init_containers.into_iter().flatten() {
            let beside = container.restart_policy.as_deref() == Some("Always");
            let name = container.name.clone();
            let life = self.container(container);
            if beside {
                self.tasks.spawn(life);
                wait_until(&run, &name, |view| view.started).await;
            } else {
                // Boxed: its state would make every pod's future large for the few that have one.
                Box::pin(life).await;
                if !run.is(&name, |view| matches!(view.state, State::Ended { code: 0, .. })) {
                    return;
                }
            }
        }
        let (sidecars, rest): (Vec<_>, Vec<_>) = spec.containers.into_iter().partition(|c| c.name == SIDECAR);
        let waits = !sidecars.is_empty() && !rest.is_empty();
        for container in sidecars {
            let life = self.container(container);
            self.tasks.spawn(life);
        }
        if waits {
            let ready = wait_until(&run, SIDECAR, |view| view.ready);
            let _ = tokio::time::timeout(SIDECAR_FIRST, ready).await;
        }
        for container in rest {
            let life = self.container(container);
            self.tasks.spawn(life);
        }
    }

    /// Writes the volumes, waiting for what is missing.
    async fn volumes(&self) -> (Volumes, Option<std::time::Instant>) {
        let shared = &self.kubelet.shared;
        let poke = Arc::new(Notify::new());
        shared.caches.secrets.subscribe(&poke);
        shared.caches.configmaps.subscribe(&poke);
        let mut volumes = Volumes::default();
        let renew = loop {
            let about = about(&self.kubelet, &self.run, &self.pod);
            match volumes.write(shared, &about, &self.run.folder).await {
                Ok(renew) => break renew,
                Err(problem) => {
                    shared.events.warning(
                        self.pod.as_ref(),
                        "FailedMount",
                        format!("MountVolume.SetUp failed: {problem}"),
                    );
                }
            }
            // What is missing may come; what failed for another reason is tried again all the same.
            let _ = tokio::time::timeout(Duration::from_secs(2), poke.notified()).await;
        };
        shared.caches.secrets.unsubscribe(&poke);
        shared.caches.configmaps.unsubscribe(&poke);
        (volumes, renew)
    }

    fn container(&self, container: Container) -> impl Future<Output = ()> + Send + 'static {
        let (kubelet, run, pod) = (Arc::clone(&self.kubelet), Arc::clone(&self.run), Arc::clone(&self.pod));
        let soft = self.soft.clone();
        let init = run.is(&container.name, |view| view.init);
        let policy =
            match (container.restart_policy.as_deref(), pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref())) {
                (Some("Always"), _) => Policy::Always,
                (_, Some("Never")) => Policy::Never,
                (_, Some("OnFailure")) => Policy::OnFailure,
                _ if init => Policy::OnFailure,
                _ => Policy::Always,
            };
        async move { container_life(kubelet, run, pod, container, policy, soft).await }
    }
}

fn about<'a>(kubelet: &Kubelet, run: &PodRun, pod: &'a Pod) -> About<'a> {
    About { pod, ip: run.sockets.address().to_string(), host_ip: kubelet.shared.subnet.node(0).to_string() }
}

/// Waits until the answer about a container is yes.
async fn wait_until(run: &PodRun, container: &str, question: impl Fn(&View) -> bool) {
    let mut changes = run.changes.subscribe();
    loop {
        changes.mark_unchanged();
        if run.is(container, &question) || changes.changed().await.is_err() {
            return;
        }
    }
}

/// Writes changed Secrets, ConfigMaps, labels and tokens into the pod's volumes.
async fn keep_fresh(
    kubelet: Arc<Kubelet>,
    run: Arc<PodRun>,
    (mut volumes, mut renew): (Volumes, Option<std::time::Instant>),
    soft: Stop,
) {
    let shared = &kubelet.shared;
    let poke = Arc::new(Notify::new());
    shared.caches.secrets.subscribe(&poke);
    shared.caches.configmaps.subscribe(&poke);
    let mut latest = run.latest.subscribe();
    loop {
        let renewal = async {
            match renew {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = poke.notified() => {}
            () = renewal => {}
            changed = latest.changed() => if changed.is_err() { break },
            () = soft.asked() => break,
        }
        let Some(pod) = latest.borrow_and_update().clone() else { break };
        let about = about(&kubelet, &run, &pod);
        match volumes.write(shared, &about, &run.folder).await {
            Ok(next) => renew = next,
            Err(problem) => {
                tracing::debug!(pod = %run.name, problem, "volumes stay as they are");
                renew = Some(std::time::Instant::now() + Duration::from_secs(5));
            }
        }
    }
    shared.caches.secrets.unsubscribe(&poke);
    shared.caches.configmaps.unsubscribe(&poke);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Always,
    OnFailure,
    Never,
}

/// Starts a container, and again and again as its policy says.
async fn container_life(
    kubelet: Arc<Kubelet>,
    run: Arc<PodRun>,
    pod: Arc<Pod>,
    container: Container,
    policy: Policy,
    soft: Stop,
) {
    const FIRST: Duration = Duration::from_secs(10);
    const LAST: Duration = Duration::from_secs(300);
    /// After so long alive a container is forgiven.
    const FORGIVEN: Duration = Duration::from_secs(600);
    let name = container.name.as_str();
    let shared = &kubelet.shared;
    // The first restart is at once, as Kubernetes' is; the ones after it wait.
    let mut backoff: Option<Duration> = None;
    loop {
        let reference = container.image.clone().unwrap_or_default();
        let Some(image) = shared.catalogue.find(&reference).cloned() else {
            let message = format!(
                "image \"{reference}\" is not in this lab's catalogue of built-in workloads, which has: {}",
                shared.catalogue.list()
            );
            shared.events.warning(pod.as_ref(), "Failed", format!("Failed to pull image \"{reference}\": {message}"));
            run.change(name, |view| view.state = State::Waiting { reason: "ErrImagePull", message });
            return soft.asked().await;
        };
        let env = match environment(shared, &about(&kubelet, &run, &pod), &container) {
            Ok(env) => env,
            Err(message) => {
                shared.events.warning(pod.as_ref(), "Failed", format!("Error: {message}"));
                run.change(name, |view| view.state = State::Waiting { reason: "CreateContainerConfigError", message });
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(500)) => continue,
                    () = soft.asked() => return,
                }
            }
        };
        let digest = shared.digest.get().await;
        let began = tokio::time::Instant::now();
        let code = match prepare(&kubelet, &run, &pod, &container, env) {
            Ok(launch) => {
                run.change(name, |view| view.image_id = format!("stolos-builtin://{}@sha256:{digest}", image.name));
                // In the kubelet's words: an image of the catalogue is always there.
                let present = format!("Container image {reference:?} already present on machine");
                for (reason, message) in [
                    ("Pulled", present),
                    ("Created", format!("Created container: {name}")),
                    ("Started", format!("Started container {name}")),
                ] {
                    shared.events.normal(pod.as_ref(), reason, message);
                }
                let mut process = image.run(launch.0);
                if image.is_metered() {
                    let mut meter = Arc::default();
                    run.change(name, |view| meter = Arc::clone(view.meter.get_or_insert_default()));
                    process = Box::pin(meter.count(process));
                }
                incarnation(&kubelet, &run, &pod, &container, process, &launch.1, &soft).await
            }
            Err(error) => {
                let message = format!("cannot make the container's files: {error}");
                run.change(name, |view| view.state = State::Waiting { reason: "CreateContainerError", message });
                1
            }
        };
        if soft.is_asked() || policy == Policy::Never || policy == Policy::OnFailure && code == 0 {
            return;
        }
        if began.elapsed() > FORGIVEN {
            backoff = None;
        }
        if let Some(wait) = backoff {
            let message = format!("back-off {}s restarting failed container={name} pod={}", wait.as_secs(), run.name);
            shared.events.warning(pod.as_ref(), "BackOff", message.clone());
            run.change(name, |view| {
                let ended = std::mem::replace(&mut view.state, State::Waiting { reason: "CrashLoopBackOff", message });
                view.last = Some(ended);
            });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = soft.asked() => return,
            }
        }
        backoff = Some(backoff.map_or(FIRST, |b| (b * 2).min(LAST)));
        run.change(name, |view| {
            view.restarts += 1;
            if matches!(view.state, State::Ended { .. }) {
                view.last = Some(view.state.clone());
            }
            view.previous = Some(std::mem::replace(&mut view.log, Log::new()));
        });
    }
}

/// Everything a process needs, and the signal that ends it.
fn prepare(
    kubelet: &Kubelet,
    run: &PodRun,
    pod: &Pod,
    container: &Container,
    mut env: BTreeMap<String, String>,
) -> std::io::Result<(Launch, Stop)> {
    let root = volumes::root(pod, container, &run.folder)?;
    let sidecar = container.name == SIDECAR;
    let net = if sidecar { run.sockets.proxy() } else { run.sockets.application() };
    if sidecar && run.sockets.is_redirected() {
        env.insert("ISTIO_META_STOLOS_REDIRECT".to_owned(), "proxy-protocol".to_owned());
    }
    if sidecar && run.sockets.is_foreign() {
        env.insert(program::PROXY_ENV.to_owned(), program::ENVOY.to_owned());
    }
    let words = |list: &Option<Vec<String>>| list.iter().flatten().map(|w| expand(w, &env)).collect::<Vec<_>>();
    let (command, args) = (words(&container.command), words(&container.args));
    let asks = |field: Option<bool>| field == Some(true);
    let console = Console::new(asks(container.stdin), asks(container.stdin_once), asks(container.tty));
    let log = {
        let mut containers = run.containers();
        let Some(view) = containers.get_mut(&container.name) else {
            return Err(std::io::ErrorKind::NotFound.into());
        };
        view.world = Some(Inside { net: Arc::clone(&net), root: root.clone(), env: env.clone() });
        view.console = Some(Arc::clone(&console));
        Arc::clone(&view.log)
    };
    let stop = Stop::new();
    let programs = if sidecar { program::Children::of(kubelet, run) } else { None };
    let output = Output::new(move |line| log.push(line));
    let container = stolos_serve::Container { net, root, env, args, output, programs };
    Ok((Launch { container, command, console, hostname: run.name.clone(), stop: stop.clone() }, stop))
}

/// One life of a container, from start to exit code.
async fn incarnation(
    kubelet: &Arc<Kubelet>,
    run: &Arc<PodRun>,
    pod: &Arc<Pod>,
    container: &Container,
    process: futures::future::BoxFuture<'static, i32>,
    stop: &Stop,
    soft: &Stop,
) -> i32 {
    // However this life ends, even by being dropped: whatever the process left running ends with it.
    let _ends = AskOnDrop(stop.clone());
    let name = container.name.as_str();
    let since = Timestamp::now();
    let has = |probe: &Option<Probe>| probe.is_some();
    let starts_later = has(&container.startup_probe);
    run.change(name, |view| {
        view.state = State::Running { since };
        view.started = !starts_later;
        view.ready = !starts_later && !has(&container.readiness_probe);
    });
    let mut process = AbortOnDropHandle::new(tokio::spawn(process));
    let mut kills = run.kills.subscribe();
    kills.mark_unchanged();
    let watching = probes(kubelet, run, pod, container);
    let ended = |joined: Result<i32, tokio::task::JoinError>| match joined {
        Ok(0) => (0, "Completed", String::new()),
        Ok(code) => (code, "Error", String::new()),
        Err(error) => (139, "Error", format!("the built-in workload panicked: {error}")),
    };
    let (code, reason, message) = tokio::select! {
        joined = &mut process => ended(joined),
        _ = kills.changed() => {
            process.abort();
            let _ = (&mut process).await;
            (KILLED, "Error", "killed by a fault".to_owned())
        }
        message = watching => {
            shared_event(kubelet, pod, "Killing", format!("Container {name} failed liveness probe, will be restarted"));
            stop.ask();
            let grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30).max(0);
            match tokio::time::timeout(Duration::from_secs(grace as u64), &mut process).await {
                Ok(joined) => ended(joined),
                Err(_) => {
                    process.abort();
                    (KILLED, "Error", message)
                }
            }
        }
        () = soft.asked() => {
            stop.ask();
            ended((&mut process).await)
        }
    };
    run.change(name, |view| {
        view.log.end();
        view.state = State::Ended { code, reason, message, since, until: Timestamp::now() };
        view.ready = false;
        view.started = false;
        view.world = None;
        view.console = None;
    });
    code
}

/// Asks when it is dropped.
pub(crate) struct AskOnDrop(pub(crate) Stop);

impl Drop for AskOnDrop {
    fn drop(&mut self) {
        self.0.ask();
    }
}

fn shared_event(kubelet: &Kubelet, pod: &Pod, reason: &'static str, message: String) {
    kubelet.shared.events.warning(pod, reason, message);
}

/// Watches a running container; ends only when it must be restarted, with the reason.
async fn probes(kubelet: &Arc<Kubelet>, run: &Arc<PodRun>, pod: &Arc<Pod>, container: &Container) -> String {
    let shared = &kubelet.shared;
    let name = container.name.as_str();
    if let Some(startup) = &container.startup_probe {
        let timing = probe::timing(startup);
        let deadline = tokio::time::Instant::now() + timing.delay + timing.period * timing.failures;
        let mut wait = EAGER;
        loop {
            match probe::attempt(shared, run, container, startup).await {
                Ok(()) => break,
                Err(problem) if tokio::time::Instant::now() >= deadline => {
                    shared.events.warning(pod.as_ref(), "Unhealthy", format!("Startup probe failed: {problem}"));
                    return problem;
                }
                Err(_) => {}
            }
            tokio::time::sleep(wait).await;
            wait = eager(wait).min(timing.period);
        }
        run.change(name, |view| {
            view.started = true;
            view.ready = container.readiness_probe.is_none();
        });
    }
    let readiness = async {
        let Some(ready) = &container.readiness_probe else { return std::future::pending().await };
        let timing = probe::timing(ready);
        let (mut good, mut bad, mut once) = (0, 0, false);
        let mut wait = EAGER;
        loop {
            match probe::attempt(shared, run, container, ready).await {
                Ok(()) => {
                    (good, bad) = (good + 1, 0);
                    if good >= timing.successes && !run.is(name, |view| view.ready) {
                        once = true;
                        run.change(name, |view| view.ready = true);
                    }
                }
                Err(problem) => {
                    (good, bad) = (0, bad + 1);
                    if bad >= timing.failures && run.is(name, |view| view.ready) {
                        run.change(name, |view| view.ready = false);
                    }
                    if once || bad == timing.failures {
                        shared.events.warning(pod.as_ref(), "Unhealthy", format!("Readiness probe failed: {problem}"));
                    }
                }
            }
            // Until it was ready once it is asked more often than its period: a lab starts in well under a second.
            wait = if once { timing.period } else { eager(wait).min(timing.period) };
            tokio::time::sleep(wait).await;
        }
    };
    let liveness = async {
        let Some(alive) = &container.liveness_probe else { return std::future::pending().await };
        let timing = probe::timing(alive);
        tokio::time::sleep(timing.delay).await;
        let mut bad = 0;
        loop {
            match probe::attempt(shared, run, container, alive).await {
                Ok(()) => bad = 0,
                Err(problem) => {
                    bad += 1;
                    shared.events.warning(pod.as_ref(), "Unhealthy", format!("Liveness probe failed: {problem}"));
                    if bad >= timing.failures {
                        return problem;
                    }
                }
            }
            tokio::time::sleep(timing.period).await;
        }
    };
    tokio::select! {
        never = readiness => never,
        problem = liveness => problem,
    }
}

const EAGER: Duration = Duration::from_millis(10);

/// The next pause while something is not ready yet: at most a fifth of what has passed, so little is waited in vain.
fn eager(wait: Duration) -> Duration {
    wait * 5 / 4
}

/// Keeps the pod's status in the API server as it is here.
async fn write_status(kubelet: Arc<Kubelet>, run: Arc<PodRun>, pod: Arc<Pod>) {
    let shared = &kubelet.shared;
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &run.namespace);
    let started = pod.status.as_ref().and_then(|s| s.start_time.clone()).map_or_else(Timestamp::now, |t| t.0);
    let mut transitions: BTreeMap<&'static str, (bool, Timestamp)> = BTreeMap::new();
    let mut written = Value::Null;
    loop {
        let status = status(&kubelet, &run, &pod, started, &mut transitions);
        if status != written {
            // The UID in the patch: a pod of the same name that came later is not ours to describe.
            let patch = json!({"metadata": {"uid": run.uid}, "status": status});
            match api.patch_status(&run.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(pod) => {
                    shared.caches.pods.wrote(pod);
                    written = status;
                }
                Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409 | 422) => {
                    tracing::debug!(pod = %run.name, %answer, "status not written");
                    written = status;
                }
                Err(error) => {
                    tracing::debug!(pod = %run.name, %error, "status not written, trying again");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            }
        }
        run.dirty.notified().await;
        // Changes come in bursts: one write for what happens together.
        tokio::task::yield_now().await;
    }
}

fn status(
    kubelet: &Kubelet,
    run: &PodRun,
    pod: &Pod,
    started: Timestamp,
    transitions: &mut BTreeMap<&'static str, (bool, Timestamp)>,
) -> Value {
    let containers = run.containers();
    let spec = pod.spec.clone().unwrap_or_default();
    let views = |of: &[Container]| -> Vec<(Container, View)> {
        of.iter().filter_map(|c| Some((c.clone(), containers.get(&c.name)?.clone()))).collect()
    };
    let init = views(spec.init_containers.as_deref().unwrap_or_default());
    let main = views(&spec.containers);
    drop(containers);
    let beside = |c: &Container| c.restart_policy.as_deref() == Some("Always");
    let initialized = init.iter().all(|(c, view)| match &view.state {
        State::Ended { code, .. } => *code == 0,
        State::Running { .. } => beside(c) && view.started,
        State::Waiting { .. } => false,
    });
    let all_ready = main.iter().all(|(_, view)| view.ready) && init.iter().all(|(c, view)| !beside(c) || view.ready);
    let never = |code: i32| match spec.restart_policy.as_deref() {
        Some("Never") => true,
        Some("OnFailure") => code == 0,
        _ => false,
    };
    let done = |view: &View| matches!(&view.state, State::Ended { code, .. } if never(*code));
    let failed_init =
        init.iter().any(|(_, v)| matches!(&v.state, State::Ended { code, .. } if *code != 0 && never(*code)));
    let ended_all = !main.is_empty() && main.iter().all(|(_, view)| done(view));
    let any_failed = main.iter().any(|(_, v)| matches!(&v.state, State::Ended { code, .. } if *code != 0));
    let has_started = main.iter().any(|(_, v)| !matches!(v.state, State::Waiting { .. }) || v.last.is_some());
    let phase = match () {
        () if failed_init => "Failed",
        () if ended_all && any_failed => "Failed",
        () if ended_all => "Succeeded",
        () if initialized && has_started => "Running",
        () => "Pending",
    };
    let gates = spec.readiness_gates.iter().flatten().all(|gate| crate::workload::condition(pod, &gate.condition_type));
    let now = Timestamp::now();
    let finished = ended_all && !any_failed;
    let mut condition = |kind: &'static str, holds: bool, reason: &str| {
        let entry = transitions.entry(kind).or_insert((holds, now));
        if entry.0 != holds {
            *entry = (holds, now);
        }
        let mut value = json!({
            "type": kind, "status": if holds { "True" } else { "False" }, "lastTransitionTime": time(entry.1),
        });
        if !holds {
            value["reason"] = json!(if finished { "PodCompleted" } else { reason });
        }
        value
    };
    let conditions = [
        condition("PodReadyToStartContainers", true, ""),
        condition("Initialized", initialized, "ContainersNotInitialized"),
        condition("Ready", all_ready && gates && phase == "Running", "ContainersNotReady"),
        condition("ContainersReady", all_ready && phase == "Running", "ContainersNotReady"),
        condition("PodScheduled", true, ""),
    ];
    let ip = run.sockets.address();
    let host = kubelet.shared.subnet.node(0);
    let mut status = json!({
        "phase": phase,
        "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": host, "hostIPs": [{"ip": host}],
        "startTime": time(started), "qosClass": quality(&spec),
        "observedGeneration": pod.metadata.generation,
        "conditions": conditions,
        "containerStatuses": main.iter().map(|(c, v)| container_status(run, c, v)).collect::<Vec<_>>(),
    });
    if !init.is_empty() {
        status["initContainerStatuses"] =
            init.iter().map(|(c, v)| container_status(run, c, v)).collect::<Vec<_>>().into();
    }
    status
}

/// The quality of service class (core/v1/helper/qos): what limits memory and CPU everywhere is `Guaranteed`.
fn quality(spec: &k8s_openapi::api::core::v1::PodSpec) -> &'static str {
    let all = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let amount = |list: &Option<BTreeMap<String, _>>, name: &str| {
        let found: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> = list.as_ref()?.get(name);
        found.map(|q| q.0.clone()).filter(|q| q != "0")
    };
    let asks = |c: &Container| {
        let resources = c.resources.clone().unwrap_or_default();
        ["cpu", "memory"].iter().any(|n| amount(&resources.requests, n).or(amount(&resources.limits, n)).is_some())
    };
    let bounded = |c: &Container| {
        let resources = c.resources.clone().unwrap_or_default();
        ["cpu", "memory"].iter().all(|n| {
            let limit = amount(&resources.limits, n);
            limit.is_some() && amount(&resources.requests, n).is_none_or(|request| Some(request) == limit)
        })
    };
    if !all().any(asks) {
        "BestEffort"
    } else if all().all(bounded) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn container_status(run: &PodRun, container: &Container, view: &View) -> Value {
    let id = format!("stolos-lab://{}/{}/{}", run.uid, container.name, view.restarts);
    let state = |state: &State| match state {
        State::Waiting { reason, message } if message.is_empty() => json!({"waiting": {"reason": reason}}),
        State::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
        State::Running { since } => json!({"running": {"startedAt": time(*since)}}),
        State::Ended { code, reason, message, since, until } => {
            let mut ended = json!({"exitCode": code, "reason": reason, "startedAt": time(*since),
                "finishedAt": time(*until), "containerID": id});
            if !message.is_empty() {
                ended["message"] = json!(message);
            }
            json!({"terminated": ended})
        }
    };
    let done_well = view.init && matches!(view.state, State::Ended { code: 0, .. });
    let mut status = json!({
        "name": container.name,
        "image": container.image,
        "imageID": view.image_id,
        "containerID": if view.image_id.is_empty() { String::new() } else { id.clone() },
        "ready": view.ready || done_well,
        "started": view.started,
        "restartCount": view.restarts,
        "state": state(&view.state),
    });
    if let Some(last) = &view.last {
        status["lastState"] = state(last);
    }
    status
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
