//! The public face: from a few choices to a running server and a client.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use stolos_serve::listen::{self, Peer};
use stolos_serve::{Listener, Stop};

use crate::api::{Api, Settings};
use crate::auth::{self, Caller, Keys, User};
use crate::controllers;
use crate::defaults::{self, Addresses};
use crate::extension::{Extension, Place};
use crate::keys;
use crate::keys::Credentials;
use crate::near::Near;
use crate::registry::Registry;
use crate::route::{self, Body, BoxError};
use crate::rules;
use crate::runtime::{PodRuntime, ServiceResolver};
use crate::state::{Expect, State, Write};
use crate::store::{self, Key, Log, Memory, Store};
use crate::watch::Window;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be made.
    #[error("cannot make the folder {}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Storage cannot be opened.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Keys or certificates cannot be made or read.
    #[error(transparent)]
    Keys(#[from] keys::Error),
    /// No address to listen on.
    #[error("cannot listen: {0}")]
    Listen(#[source] io::Error),
    /// A choice that cannot be.
    #[error("{0}")]
    Choice(String),
    /// The first objects could not be written.
    #[error("cannot write the first objects: {0}")]
    Bootstrap(String),
}

/// What a server will be.
#[must_use = "a builder does nothing until `start`"]
pub struct Builder {
    data_dir: Option<PathBuf>,
    store: Option<Box<dyn Store>>,
    listener: Option<Listener>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    service_cidr: String,
    window: Window,
    settings: Settings,
    runtime: Option<Arc<dyn PodRuntime>>,
    resolver: Option<Arc<dyn ServiceResolver>>,
    controllers: bool,
    stop: Stop,
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Builder {
    /// A server that keeps everything in memory and listens on a free port of 127.0.0.1.
    pub fn new() -> Self {
        let cluster_domain = "cluster.local".to_owned();
        let issuer = format!("https://kubernetes.default.svc.{cluster_domain}");
        Self {
            data_dir: None,
            store: None,
            listener: None,
            names: Vec::new(),
            addresses: Vec::new(),
            service_cidr: "10.96.0.0/16".into(),
            window: Window { events: 4096, bytes: 4 << 20 },
            settings: Settings {
                allow_loopback_endpoints: false,
                version_suffix: "clean".into(),
                bookmark_every: Duration::from_secs(60),
                reading: 400,
                writing: 200,
                cluster_domain,
                audiences: vec![issuer.clone()],
                issuer,
            },
            runtime: None,
            resolver: None,
            controllers: true,
            stop: Stop::new(),
        }
    }

    /// Keeps objects, authority and keys in this folder, and takes up what is there.
    pub fn data_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.data_dir = Some(path.as_ref().to_owned());
        self
    }

    /// Keeps objects in a store of the embedder's own; keys stay in the data folder.
    pub fn store(mut self, store: Box<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Serves on this socket, behind its door. Its address is in the certificate and the kubeconfig.
    pub fn listener(mut self, listener: Listener) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Another address clients may use: goes into the certificate.
    pub fn address(mut self, address: IpAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// Another name clients may use: goes into the certificate.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// The network of ClusterIPs, `10.96.0.0/16` if not said.
    pub fn service_cidr(mut self, cidr: impl Into<String>) -> Self {
        self.service_cidr = cidr.into();
        self
    }

    /// Lets endpoints have loopback addresses, which Kubernetes refuses.
    pub fn allow_loopback_endpoints(mut self, allow: bool) -> Self {
        self.settings.allow_loopback_endpoints = allow;
        self
    }

    /// `gitTreeState` of `/version`, such as `stolos-lab`.
    pub fn version_suffix(mut self, suffix: impl Into<String>) -> Self {
        self.settings.version_suffix = suffix.into();
        self
    }

    /// Whether the server's own controllers run: collection of garbage, ends of namespaces and of old events, tokens and
    /// accounts. Without them what is kept stays as it is until somebody changes it.
    pub fn controllers(mut self, run: bool) -> Self {
        self.controllers = run;
        self
    }

    /// How often a watch that asked for bookmarks gets one.
    pub fn bookmark_every(mut self, interval: Duration) -> Self {
        self.settings.bookmark_every = interval;
        self
    }

    /// How much of the past each resource keeps for watches: events, and bytes as they are in memory. All resources
    /// together keep at most three times as many bytes.
    pub fn window(mut self, events: usize, bytes: usize) -> Self {
        self.window = Window { events: events.max(1), bytes };
        self
    }

    /// Requests that may be under way at once: those that only read, and half as many that write. More are answered
    /// 429. Watches and streams do not count.
    pub fn in_flight(mut self, requests: usize) -> Self {
        self.settings.reading = requests;
        self.settings.writing = requests.div_ceil(2);
        self
    }

    /// Who runs pods: logs, exec, attach and port-forward go there. See also [`Server::set_pod_runtime`].
    pub fn pod_runtime(mut self, runtime: Arc<dyn PodRuntime>) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Who knows the way to Services, for webhooks. See also [`Server::set_service_resolver`].
    pub fn service_resolver(mut self, resolver: Arc<dyn ServiceResolver>) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Stops when this is asked.
    pub fn stop(mut self, stop: &Stop) -> Self {
        self.stop = stop.child();
        self
    }

    /// Starts the server.
    ///
    /// # Flow
    ///
    /// 1. Open storage and load what is there; beside that make or read keys.
    /// 2. Write the first objects, those that are not there yet, in one durable step.
    /// 3. Listen, and start the controllers.
    ///
    /// # Errors
    ///
    /// When any of it fails; nothing is left running then.
    pub async fn start(self) -> Result<Server, StartError> {
        let store: Box<dyn Store> = match (self.store, &self.data_dir) {
            (Some(store), _) => store,
            (None, Some(dir)) => {
                make_folder(dir)?;
                Box::new(Log::open(dir)?)
            }
            (None, None) => Box::new(Memory),
        };
        let listener = match self.listener {
            Some(listener) => listener,
            None => {
                let socket = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
                Listener::from(socket.map_err(StartError::Listen)?)
            }
        };
        let address = listener.local_addr().map_err(StartError::Listen)?;
        let first = Addresses::new(&self.service_cidr, std::iter::empty()).map_err(StartError::Choice)?.first();

        let domain = &self.settings.cluster_domain;
        let mut names = self.names;
        names.extend(["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned));
        names.push(format!("kubernetes.default.svc.{domain}"));
        let mut addresses = self.addresses;
        addresses.extend([address.ip(), IpAddr::V4(first)]);
        addresses.sort_unstable();
        addresses.dedup();
        // The first random number of a process takes as long as everything else here (AWS-LC gathers entropy from the
        // processor's jitter then), and to read many objects takes a while: side by side.
        let dir = self.data_dir.clone();
        let keys = tokio::task::spawn_blocking(move || Keys::load(dir.as_deref(), &names, &addresses));
        let state = State::open(store, self.window);
        let keys = keys.await.map_err(|error| keys::Error::Unusable { what: "keys", why: error.to_string() })?;
        let (state, keys) = (state?, keys?);
        let services = state.cache("services").list("");
        let services = services.iter().map(|object| &*object.value);
        let service_ips = Addresses::new(&self.service_cidr, services).map_err(StartError::Choice)?;

        let stop = self.stop;
        let api = Api::new(state, keys, self.settings, service_ips, stop.clone());
        if let Some(runtime) = self.runtime {
            api.set_runtime(runtime);
        }
        if let Some(resolver) = self.resolver {
            api.set_resolver(resolver);
        }
        bootstrap(&api, address).await?;

        let tls = Arc::clone(&api.keys.tls);
        let settings = listen::Settings {
            tls: Some(Arc::new(move || Arc::clone(&tls))),
            grace: Duration::from_secs(2),
            ..listen::Settings::default()
        };
        let for_connections = Arc::clone(&api);
        let serving = tokio::spawn(listen::http(listener, settings, stop.clone(), move |peer: Peer| {
            let (api, caller) = (Arc::clone(&for_connections), Arc::new(Caller::outside(&peer)));
            hyper::service::service_fn(move |request| route::handle(Arc::clone(&api), Arc::clone(&caller), request))
        }));
        let controlling = self.controllers.then(|| tokio::spawn(controllers::run(Arc::clone(&api))));
        let gathering = tokio::spawn(auth::aggregate::run(Arc::clone(&api)));
        let forgetting = tokio::spawn(forget(Arc::clone(&api)));
        let tasks = [serving, gathering, forgetting].into_iter().chain(controlling).collect();
        Ok(Server { api, address, stop, tasks })
    }
}

/// How often is looked for trees that nobody has looked into: they are many times as large as their text, and thousands come
/// at once.
const TREES: Duration = Duration::from_secs(1);

/// Lets old events and unused trees go, also of resources that nobody changes any more.
async fn forget(api: Arc<Api>) {
    let mut tick = tokio::time::interval(TREES);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = api.stop.asked() => return,
            _ = tick.tick() => api.state.forget(),
        }
    }
}

fn make_folder(dir: &Path) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| StartError::Folder { path: dir.to_owned(), source })
}

/// Writes what every cluster has from the start, as far as it is not there.
async fn bootstrap(api: &Arc<Api>, address: SocketAddr) -> Result<(), StartError> {
    let table = Registry::new([]).table();
    let mut wanted: Vec<(&str, Value)> = Vec::new();
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        wanted.push(("namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})));
        wanted.extend(controllers::namespace_content(api, name));
    }
    wanted.extend(auth::bootstrap());
    // By this, who serves a part of the API beside this server knows its callers (Kubernetes 1.34, `genericapiserver`'s
    // delegated authentication).
    wanted.push((
        "configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
            "data": {"client-ca-file": api.keys.ca}}),
    ));
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let (ip, port) = (address.ip().to_string(), address.port());
    let service_ip = api.addresses.first().to_string();
    wanted.push((
        "services",
        json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
            "spec": {"type": "ClusterIP", "clusterIP": service_ip, "clusterIPs": [service_ip],
                "ports": [{"name": "https", "port": 443, "targetPort": port, "protocol": "TCP"}]}}),
    ));
    let endpoints = [
        (
            "endpoints",
            json!({"apiVersion": "v1", "kind": "Endpoints",
                "metadata": {"name": "kubernetes", "namespace": "default",
                    "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
                "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}]}),
        ),
        (
            "endpointslices.discovery.k8s.io",
            json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": "kubernetes", "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "kubernetes"}},
                "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
                "endpoints": [{"addresses": [ip], "conditions": {"ready": true}}],
                "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}),
        ),
    ];
    let now = api.now();
    let mut writes = Vec::new();
    let place = |object: &Value| {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        (text("namespace"), text("name"))
    };
    for (resource, mut object) in wanted.into_iter().chain(endpoints) {
        let (namespace, name) = place(&object);
        let key = Key { resource: resource.into(), namespace, name };
        let old = api.state.newest(&key);
        // The server's own address is the one thing that may be new at a restart.
        let follows = key.name == "kubernetes" && key.namespace == "default";
        let Some(known) = table.find_stored(resource) else { continue };
        let expect = match old {
            Some(old) if follows => {
                let mut new = old.value.clone();
                for field in ["subsets", "endpoints", "ports", "addressType"] {
                    if let Some(value) = object.get(field) {
                        new[field] = value.clone();
                    }
                }
                if resource == "services" {
                    new["spec"]["ports"] = object["spec"]["ports"].clone();
                }
                if rules::same(&old.value, &new) {
                    continue;
                }
                object = new;
                Expect::Revision(old.revision)
            }
            Some(old) => match auth::reconcile(resource, &old.value, &object) {
                Some(new) => {
                    object = new;
                    Expect::Revision(old.revision)
                }
                None => continue,
            },
            None => {
                object["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
                object["metadata"]["creationTimestamp"] = json!(now);
                defaults::fill(known, &mut object);
                Expect::Absent
            }
        };
        writes.push(Write { key, expect, value: Some(object) });
    }
    api.state.commit_all(writes).await.map_err(|error| StartError::Bootstrap(error.to_string()))?;
    Ok(())
}

/// A running API server. Dropping it stops it; [`stop`](Server::stop) also waits.
pub struct Server {
    api: Arc<Api>,
    address: SocketAddr,
    stop: Stop,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Server {
    /// What the server will be.
    pub fn builder() -> Builder {
        Builder::new()
    }

    pub(crate) fn api(&self) -> Arc<Api> {
        Arc::clone(&self.api)
    }

    /// A client inside the process, without a socket, with all rights.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client_as(User::internal())
    }

    /// A client inside the process on behalf of `user`.
    #[must_use]
    pub fn client_as(&self, user: User) -> kube::Client {
        let caller = Arc::new(Caller::Inside(user));
        kube::Client::new(Inside { api: Arc::clone(&self.api), caller }, "default")
    }

    /// The objects, without a client between, with all rights.
    #[must_use]
    pub fn near(&self) -> Near {
        Near::new(Arc::clone(&self.api))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, `https://127.16.0.1:6443`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Its authority's certificate, in PEM.
    #[must_use]
    pub fn ca(&self) -> &str {
        &self.api.keys.ca
    }

    /// A client certificate of group `system:masters`.
    #[must_use]
    pub fn admin(&self) -> &Credentials {
        &self.api.keys.admin
    }

    /// A new client certificate for `user`, in `group`.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn client_certificate(&self, user: &str, group: Option<&str>) -> Result<Credentials, keys::Error> {
        self.api.keys.client(user, group)
    }

    /// A kubeconfig for kubectl with one context, in JSON (which is YAML), with all rights: keep it at mode 0600.
    #[must_use]
    pub fn kubeconfig(&self, context: &str) -> Value {
        use base64::Engine as _;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let admin = self.admin();
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": context, "preferences": {},
            "clusters": [{"name": context, "cluster": {"server": self.url(),
                "certificate-authority-data": encode(self.ca())}}],
            "users": [{"name": context, "user": {"client-certificate-data": encode(&admin.certificate),
                "client-key-data": encode(&admin.key)}}],
            "contexts": [{"name": context, "context": {"cluster": context, "user": context}}],
        })
    }

    /// From now on pods are run by `runtime`.
    pub fn set_pod_runtime(&self, runtime: Arc<dyn PodRuntime>) {
        self.api.set_runtime(runtime);
    }

    /// From now on Services are reached through `resolver`.
    pub fn set_service_resolver(&self, resolver: Arc<dyn ServiceResolver>) {
        self.api.set_resolver(resolver);
    }

    /// From now on what is below `place` is served by `extension`.
    pub fn extend(&self, place: Place, extension: Arc<dyn Extension>) {
        self.api.extend(place, extension);
    }

    /// Whether storage still takes writes.
    #[must_use]
    pub fn is_well(&self) -> bool {
        self.api.state.is_well()
    }

    /// Stops: no new requests, open ones finish, storage closes.
    pub async fn stop(mut self) {
        self.stop.ask();
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
        self.api.streams.ended().await;
        self.api.written().await;
        self.api.state.close().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.ask();
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The way in without a socket.
#[derive(Clone)]
struct Inside {
    api: Arc<Api>,
    caller: Arc<Caller>,
}

impl tower::Service<Request<kube::client::Body>> for Inside {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let (api, caller) = (Arc::clone(&self.api), Arc::clone(&self.caller));
        Box::pin(async move {
            if request.headers().contains_key(http::header::UPGRADE) {
                return upgraded(api, caller, request).await;
            }
            let Ok(response) = route::handle(api, caller, request).await;
            Ok(response)
        })
    }
}

/// An upgrade needs a connection: one inside the process.
async fn upgraded(
    api: Arc<Api>,
    caller: Arc<Caller>,
    mut request: Request<kube::client::Body>,
) -> Result<Response<Body>, BoxError> {
    use http_body_util::BodyExt as _;
    let (near, far) = tokio::io::duplex(64 << 10);
    let service =
        hyper::service::service_fn(move |request| route::handle(Arc::clone(&api), Arc::clone(&caller), request));
    let server =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades();
    tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::debug!(%error, "connection inside the process ended");
        }
    });
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection inside the process ended");
        }
    });
    if !request.headers().contains_key(http::header::HOST) {
        request.headers_mut().insert(http::header::HOST, http::HeaderValue::from_static("kubernetes"));
    }
    let response = sender.send_request(request).await?;
    Ok(response.map(|body| body.map_err(|error| -> BoxError { error.into() }).boxed_unsync()))
}
