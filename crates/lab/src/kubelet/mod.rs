//! The kubelet: runs the pods of its node inside this process, and answers for them.

mod attach;
mod env;
mod log;
pub(crate) mod pod;
mod probe;
mod program;
mod usage;
mod volumes;

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use stolos_apiserver::runtime::{
    Connection, ContainerRef, Exit, LogOptions, Measured, PodRuntime, RuntimeError, ServiceResolver, Size, Streams,
};
use tokio::sync::{Notify, mpsc};
use tokio_util::task::TaskTracker;

use crate::address::{Role, Subnet};
use crate::cluster::Shared;
use crate::podnet::PodSockets;
use crate::userland::{self, Screen, Sink, Source};
use pod::PodRun;

/// Runs the pods of one cluster's node.
pub(crate) struct Kubelet {
    pub(crate) shared: Arc<Shared>,
    pods: Mutex<HashMap<String, Arc<PodRun>>>,
    addresses: Mutex<Pool>,
    poke: Arc<Notify>,
    tasks: TaskTracker,
    samples: usage::Samples,
    began: std::time::Instant,
    /// What the process had used before this cluster began.
    used_before: Duration,
}

/// The pod addresses that are in use.
#[derive(Default)]
struct Pool {
    taken: BTreeSet<Ipv4Addr>,
    next: u16,
}

impl Pool {
    /// The wanted address if it is free, else the next one in turn: an address rests before it is used again.
    fn take(&mut self, subnet: Subnet, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let usable = wanted.filter(|ip| Subnet::locate(*ip) == Some((subnet, Role::Pod)) && !self.taken.contains(ip));
        let found = usable.or_else(|| {
            (0..Subnet::PODS).find_map(|_| {
                let candidate = subnet.pod(self.next % Subnet::PODS);
                self.next = (self.next + 1) % Subnet::PODS;
                candidate.filter(|ip| !self.taken.contains(ip))
            })
        })?;
        self.taken.insert(found);
        Some(found)
    }
}

impl Kubelet {
    pub(crate) fn new(shared: &Arc<Shared>, tasks: &TaskTracker) -> Arc<Self> {
        let poke = Arc::new(Notify::new());
        shared.caches.pods.subscribe(&poke);
        Arc::new(Self {
            shared: Arc::clone(shared),
            pods: Mutex::default(),
            addresses: Mutex::default(),
            poke,
            tasks: tasks.clone(),
            samples: usage::Samples::default(),
            began: std::time::Instant::now(),
            used_before: usage::process().unwrap_or_default(),
        })
    }

    /// Starts what is placed on the node and tells running pods what became of them.
    pub(crate) async fn run(self: Arc<Self>) {
        self.sweep();
        self.poke.notify_one();
        loop {
            tokio::select! {
                () = self.poke.notified() => {}
                () = self.shared.stop.asked() => return,
            }
            self.look();
        }
    }

    /// Removes the folders of pods that went while nobody looked.
    fn sweep(&self) {
        let known: BTreeSet<_> = self.shared.caches.pods.list().iter().filter_map(|pod| pod.uid()).collect();
        let folders = std::fs::read_dir(self.shared.folder.join("pods")).into_iter().flatten().flatten();
        for folder in folders.filter(|f| !known.contains(f.file_name().to_string_lossy().as_ref())) {
            let _ = std::fs::remove_dir_all(folder.path());
        }
    }

    fn look(self: &Arc<Self>) {
        let listed = self.shared.caches.pods.list();
        let mut here: HashMap<String, Arc<Pod>> = HashMap::new();
        for pod in listed {
            let node = pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
            if node == Some(self.shared.node.as_str()) {
                here.insert(pod.uid().unwrap_or_default(), pod);
            }
        }
        let mut pods = self.pods();
        for (uid, run) in pods.iter() {
            run.update(here.remove(uid).as_ref());
        }
        // Those that were running kept their addresses: give them back before new ones are given out.
        let mut fresh: Vec<_> = here.into_values().collect();
        fresh.sort_by_key(|pod| {
            (pod.status.as_ref().is_none_or(|s| s.pod_ip.is_none()), pod.creation_timestamp().map(|t| t.0))
        });
        for pod in fresh {
            if let Some(run) = self.admit(&pod) {
                pods.insert(run.uid.clone(), Arc::clone(&run));
                self.tasks.spawn(pod::run(Arc::clone(self), run, pod));
            }
        }
    }

    fn admit(&self, pod: &Arc<Pod>) -> Option<Arc<PodRun>> {
        let wanted = pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()).and_then(|ip| ip.parse().ok());
        let taken = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).take(self.shared.subnet, wanted);
        let Some(address) = taken else {
            self.shared.events.warning(pod.as_ref(), "OutOfpods", "no pod address is free".to_owned());
            return None;
        };
        let spec = pod.spec.as_ref();
        let redirect = program::proxy(pod).is_some_and(|(_, is_sidecar)| is_sidecar);
        let hostname = spec.and_then(|s| s.hostname.clone()).unwrap_or_else(|| pod.name_any());
        let namespace = pod.namespace().unwrap_or_default();
        let stop = self.shared.stop.child();
        let (world, directories) = (&self.shared.world, &self.shared.directories);
        let sockets = PodSockets::new(world, directories, (&namespace, &hostname), address, redirect, stop);
        if program::runs_envoy(pod, address, self.shared.catalogue.envoy()) {
            sockets.run_foreign();
        }
        let folder = self.shared.folder.join("pods").join(pod.uid().unwrap_or_default());
        Some(PodRun::new(pod, sockets, folder))
    }

    /// The pod is gone and its address free.
    fn forget(&self, run: &PodRun) {
        self.pods().remove(&run.uid);
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.taken.remove(&run.sockets.address());
        drop(addresses);
        self.poke.notify_one();
    }

    fn pods(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<PodRun>>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<PodRun>> {
        self.pods().values().find(|run| run.namespace == namespace && run.name == name).cloned()
    }

    pub(crate) fn count(&self) -> usize {
        self.pods().len()
    }

    fn container(&self, wanted: &ContainerRef) -> Result<Arc<PodRun>, RuntimeError> {
        let missing = || RuntimeError::NotFound(format!("pod \"{}\" does not run here", wanted.pod));
        let run = self.find(&wanted.namespace, &wanted.pod).ok_or_else(missing)?;
        if !wanted.uid.is_empty() && wanted.uid != run.uid {
            return Err(missing());
        }
        Ok(run)
    }
}

/// The kubelet as the API server knows it.
pub(crate) struct Door(pub(crate) Arc<Kubelet>);

impl PodRuntime for Door {
    fn logs(
        &self,
        container: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Bytes>, RuntimeError>> {
        Box::pin(async move {
            let run = self.0.container(&container)?;
            let log = run.log(&container.container, options.previous).map_err(RuntimeError::BadRequest)?;
            let (lines, _, _) = log.read(0);
            let oldest = options
                .since
                .and_then(|since| jiff::Timestamp::now().checked_sub(jiff::SignedDuration::try_from(since).ok()?).ok());
            let skipped_by_age = oldest.map_or(0, |oldest| lines.iter().take_while(|line| line.at < oldest).count());
            let skipped = options.tail_lines.map_or(0, |tail| lines.len().saturating_sub(tail)).max(skipped_by_age);
            let (_, end, _) = log.read(0);
            let first = end.saturating_sub(lines.len() as u64) + skipped as u64;
            let head = log.watch();
            let left = options.limit_bytes.unwrap_or(usize::MAX);
            let state = (log, head, first, left, false);
            let stream =
                futures::stream::unfold(state, move |(log, mut head, mut next, mut left, mut over)| async move {
                    loop {
                        if over || left == 0 {
                            return None;
                        }
                        head.mark_unchanged();
                        let (lines, after, ended) = log.read(next);
                        next = after;
                        over = ended || !options.follow;
                        if lines.is_empty() {
                            if !over && head.changed().await.is_err() {
                                return None;
                            }
                            continue;
                        }
                        let mut text = Vec::new();
                        for line in lines {
                            if options.timestamps {
                                text.extend(format!("{:.9} ", line.at).into_bytes());
                            }
                            text.extend(line.text.as_bytes());
                            text.push(b'\n');
                        }
                        text.truncate(left);
                        left -= text.len();
                        return Some((Bytes::from(text), (log, head, next, left, over)));
                    }
                });
            Ok(stream.boxed())
        })
    }

    fn exec(
        &self,
        container: ContainerRef,
        command: Vec<String>,
        streams: Streams,
    ) -> BoxFuture<'_, Result<Exit, RuntimeError>> {
        Box::pin(async move {
            let run = self.0.container(&container)?;
            let mut process = run
                .process(&container.container)
                .ok_or_else(|| RuntimeError::BadRequest(format!("container {} is not running", container.container)))?;
            let mut keeping: BoxFuture<'static, ()> = Box::pin(std::future::pending());
            match (streams.tty, streams.stdin, streams.stdout) {
                (true, Some(stdin), Some(stdout)) => {
                    let screen = Screen::default();
                    let (terminal, work) = userland::open_terminal(stdin, stdout, screen.clone());
                    keeping = Box::pin(async move { tokio::join!(work, resized(streams.resize, screen)).0 });
                    process.stdin = terminal.stdin;
                    process.stdout = terminal.stdout.clone();
                    process.stderr = terminal.stdout;
                    process.interrupt = Some(terminal.interrupt);
                    process.screen = Some(terminal.screen);
                }
                (_, stdin, stdout) => {
                    process.stdin = stdin.map_or_else(Source::empty, Source::new);
                    process.stdout = stdout.map_or_else(Sink::null, Sink::new);
                    process.stderr = match streams.stderr {
                        Some(stderr) => Sink::new(stderr),
                        None if streams.tty => process.stdout.clone(),
                        None => Sink::null(),
                    };
                }
            }
            let program = command.first().cloned().unwrap_or_default();
            if !userland::knows(&program) {
                let text = format!(
                    "OCI runtime exec failed: exec failed: unable to start container process: exec: \"{program}\": \
                     executable file not found in $PATH\n"
                );
                let _ = process.stderr.write(text.as_bytes()).await;
                return Ok(Exit { code: userland::NOT_FOUND });
            }
            let interrupted = userland::interrupted(&command, process.interrupt.clone());
            let code = tokio::select! {
                code = userland::run(command, process) => code,
                code = interrupted => code,
                () = keeping => 129,
            };
            Ok(Exit { code })
        })
    }

    fn attach(&self, container: ContainerRef, streams: Streams) -> BoxFuture<'_, Result<Exit, RuntimeError>> {
        Box::pin(async move {
            let run = self.0.container(&container)?;
            let log = run.log(&container.container, false).map_err(RuntimeError::BadRequest)?;
            let console = run
                .console(&container.container)
                .ok_or_else(|| RuntimeError::BadRequest(format!("container {} is not running", container.container)))?;
            attach::run(&console, &log, streams).await;
            // Whoever attached learns from the pod's status how its process ended.
            Ok(Exit { code: 0 })
        })
    }

    fn usage(&self) -> Option<Measured> {
        usage::measure(&self.0)
    }

    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        pod: &'a str,
        port: u16,
    ) -> BoxFuture<'a, std::io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, format!("pod {pod} does not run here"));
            let run = self.0.find(namespace, pod).ok_or_else(missing)?;
            let shared = &self.0.shared;
            let stream = shared.world.dial(shared.subnet.node(0), run.sockets.socket(port)).await?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

/// Keeps a screen as large as its client says. Never ends.
async fn resized(mut sizes: mpsc::Receiver<Size>, screen: Screen) {
    while let Some(Size { width, height }) = sizes.recv().await {
        screen.resize(width, height);
    }
    std::future::pending().await
}

/// The way from the API server to a Service, for webhooks.
pub(crate) struct Resolver(pub(crate) Arc<Shared>);

impl ServiceResolver for Resolver {
    fn dial<'a>(
        &'a self,
        namespace: &'a str,
        service: &'a str,
        port: u16,
    ) -> BoxFuture<'a, std::io::Result<stolos_serve::Stream>> {
        Box::pin(async move {
            let directory = self.0.directories.now();
            let pick = |count| rand::random_range(0..count);
            let endpoint = directory.endpoint(namespace, service, port, pick).ok_or_else(|| {
                let text = format!("no endpoints available for service \"{service}\" in namespace \"{namespace}\"");
                std::io::Error::new(std::io::ErrorKind::ConnectionRefused, text)
            })?;
            self.0.world.dial(*self.0.subnet.api_server().ip(), endpoint).await
        })
    }

    fn dial_host<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, std::io::Result<stolos_serve::Stream>> {
        Box::pin(async move {
            // Addresses of the lab only: another cluster's load balancer, as a remote's injection URL names it.
            let ip: Ipv4Addr = host.parse().map_err(|_| {
                std::io::Error::new(std::io::ErrorKind::NotFound, format!("no address for `{host}` in this lab"))
            })?;
            let to = match SocketAddr::from((ip, port)) {
                SocketAddr::V4(to) => to,
                SocketAddr::V6(_) => return Err(std::io::ErrorKind::Unsupported.into()),
            };
            let dialling = self.0.world.dial(*self.0.subnet.api_server().ip(), to);
            tokio::time::timeout(Duration::from_secs(30), dialling).await?
        })
    }
}
