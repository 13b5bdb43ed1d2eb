//! What an Envoy asks its agent for, on unix sockets: keys and certificates, and the way to the control plane.
//!
//! Discovery is relayed message by message: what Envoy acknowledges and refuses is what the control plane hears, as if
//! there were nobody in between. The agent adds the token, reads along where Envoy is going to listen, and asks on the
//! same stream for the table of names, which Envoy has no use for and the workload has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt};
use stolos_pki::Error;
use stolos_serve::because;
use stolos_serve::{Container, Programs, Stop};
use stolos_xds::envoy::config::core::v3::{DataSource, data_source::Specifier};
use stolos_xds::envoy::config::listener::v3::Listener;
use stolos_xds::envoy::extensions::transport_sockets::tls::v3 as tls;
use stolos_xds::envoy::service::discovery::v3 as discovery;
use stolos_xds::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use stolos_xds::message::{self, LISTENER, NAME_TABLE, SECRET};
use stolos_xds::{Any, Resource, Resources, Snapshot, pack, unpack};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tonic::{Request, Response, Status, Streaming};

use super::{Identity, Settings, credentials_of_call, target};
use discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use discovery::aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer};

/// The largest messages passed on, in each direction.
const ANSWER_LIMIT: usize = 256 << 20;
const REQUEST_LIMIT: usize = 32 << 20;
/// The names of Istio's secrets: the workload's certificate, and whom it trusts.
const CERTIFICATE: &str = "default";
const ROOTS: &str = "ROOTCA";

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Listens at `folder/name`, for this user alone. Bound by way of the open folder, so that its path may be of any
/// length: a socket's own address holds 107 bytes.
pub(super) fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let say = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen at {}/{name}: {error}", folder.display()))
    };
    let open = File::open(folder).map_err(say)?;
    let short = format!("/proc/self/fd/{}/{name}", open.as_raw_fd());
    // A life before this one has left it behind.
    let _ = std::fs::remove_file(&short);
    let listener = UnixListener::bind(&short).map_err(say)?;
    std::fs::set_permissions(&short, std::fs::Permissions::from_mode(0o600)).map_err(say)?;
    Ok(listener)
}

fn incoming(listener: UnixListener) -> impl Stream<Item = io::Result<tokio::net::UnixStream>> {
    futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    })
}

/// Serves secrets until `stop`.
pub(super) async fn secrets(listener: UnixListener, secrets: Secrets, stop: Stop) {
    let asked = stop.clone();
    let server = tonic::transport::Server::builder().add_service(SecretDiscoveryServiceServer::new(secrets));
    let serving = server.serve_with_incoming_shutdown(incoming(listener), async move { asked.asked().await });
    if let Err(error) = serving.await {
        tracing::error!(error = %because(&error), "the socket for secrets has ended");
    }
}

/// Relays discovery until `stop`.
pub(super) async fn discovery(listener: UnixListener, relay: Relay, stop: Stop) {
    let service = AggregatedDiscoveryServiceServer::new(relay).max_decoding_message_size(REQUEST_LIMIT);
    let asked = stop.clone();
    let server = tonic::transport::Server::builder().http2_adaptive_window(Some(true)).add_service(service);
    let serving = server.serve_with_incoming_shutdown(incoming(listener), async move { asked.asked().await });
    if let Err(error) = serving.await {
        tracing::error!(error = %because(&error), "the socket for discovery has ended");
    }
}

/// The workload's identity, as Envoy asks for it.
#[derive(Clone)]
pub(super) struct Secrets {
    pub(super) identity: watch::Receiver<Option<Arc<Identity>>>,
    pub(super) stop: Stop,
}

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type DeltaSecretsStream = Answers<discovery::DeltaDiscoveryResponse>;
    type StreamSecretsStream = Answers<discovery::DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("secrets are few: ask for their state"))
    }

    /// # Flow
    ///
    /// 1. Names are asked for; what there is of them is sent, at once or when there is an identity.
    /// 2. A renewed certificate is sent without being asked for.
    async fn stream_secrets(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let (answers, receiver) = mpsc::channel(2);
        let (mut asked, mut identity, stop) = (request.into_inner(), self.identity.clone(), self.stop.clone());
        identity.mark_changed();
        tokio::spawn(async move {
            let (mut names, mut nonce) = (BTreeSet::new(), 0_u64);
            loop {
                let wants = tokio::select! {
                    asked = asked.message() => {
                        let Ok(Some(asked)) = asked else { return };
                        if let Some(error) = &asked.error_detail {
                            tracing::warn!(message = error.message, "Envoy refuses a secret");
                        }
                        let wanted: BTreeSet<String> = asked.resource_names.into_iter().collect();
                        // What is known is only acknowledged.
                        let new = wanted != names;
                        names = wanted;
                        new
                    }
                    changed = identity.changed() => {
                        if changed.is_err() { return }
                        !names.is_empty()
                    }
                    () = stop.asked() => return,
                };
                let now = identity.borrow_and_update().clone();
                let (true, Some(now)) = (wants, now) else { continue };
                nonce += 1;
                let answer =
                    names.iter().filter_map(|name| secret(name, &now).transpose()).collect::<Result<Vec<_>, _>>();
                let answer = answer.map_err(|error| Status::internal(error.to_string())).map(|resources| {
                    discovery::DiscoveryResponse {
                        version_info: now.credentials.leaf().serial().to_string(),
                        resources,
                        type_url: SECRET.to_owned(),
                        nonce: nonce.to_string(),
                        ..Default::default()
                    }
                });
                if answers.send(answer).await.is_err() {
                    return;
                }
            }
        });
        let answers = futures::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|answer| (answer, receiver))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_secrets(
        &self,
        _: Request<discovery::DiscoveryRequest>,
    ) -> Result<Response<discovery::DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets change: follow them on a stream"))
    }
}

/// The secret of this name; nobody else's is known.
fn secret(name: &str, identity: &Identity) -> Result<Option<Any>, Error> {
    let inline = |text: String| {
        Some(DataSource { specifier: Some(Specifier::InlineBytes(text.into_bytes())), ..Default::default() })
    };
    let r#type = match name {
        CERTIFICATE => tls::secret::Type::TlsCertificate(tls::TlsCertificate {
            certificate_chain: inline(identity.credentials.chain_pem()),
            private_key: inline(identity.credentials.key_pem()?.expose().to_owned()),
            ..Default::default()
        }),
        ROOTS => tls::secret::Type::ValidationContext(tls::CertificateValidationContext {
            trusted_ca: inline(identity.roots.certificates().iter().map(stolos_pki::Certificate::pem).collect()),
            ..Default::default()
        }),
        _ => return Ok(None),
    };
    Ok(Some(pack(&tls::Secret { name: name.to_owned(), r#type: Some(r#type) })))
}

/// The way to the control plane.
#[derive(Clone)]
pub(super) struct Relay {
    pub(super) container: Container,
    pub(super) settings: Arc<Settings>,
    pub(super) ports: Arc<Ports>,
    /// Where the table of names goes, if anybody wants it.
    pub(super) names: Option<watch::Sender<Arc<Snapshot>>>,
    pub(super) stop: Stop,
}

impl Relay {
    /// A connection of its own for each of Envoy's streams, and who calls on it.
    async fn call<T>(
        &self,
        body: T,
    ) -> Result<(AggregatedDiscoveryServiceClient<tonic::transport::Channel>, Request<T>), Status> {
        let unavailable = |why: String| {
            tracing::warn!(why, "no way to the control plane");
            Status::unavailable(why)
        };
        let metadata = credentials_of_call(&self.container, &self.settings).await;
        let metadata = metadata.map_err(|error| unavailable(error.to_string()))?;
        let channel = target(&self.container, &self.settings.discovery).connect().await;
        let channel = channel.map_err(|error| unavailable(because(&error)))?;
        let client = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(ANSWER_LIMIT)
            .max_encoding_message_size(REQUEST_LIMIT);
        let mut call = Request::new(body);
        *call.metadata_mut() = metadata;
        Ok((client, call))
    }

    /// What Envoy asks, and after its first word (which says who it is) what the agent asks beside it.
    fn forth<A: Answer>(
        &self,
        envoy: Streaming<A::Ask>,
    ) -> (mpsc::Sender<A::Ask>, impl Stream<Item = A::Ask> + use<A>) {
        let (taken, own) = mpsc::channel(4);
        let first = self.names.as_ref().map(|_| A::ask_for_names());
        let asked = futures::stream::unfold(
            (envoy, own, first, false),
            |(mut envoy, mut own, mut first, mut known)| async move {
                if known && let Some(first) = first.take() {
                    return Some((first, (envoy, own, None, known)));
                }
                let next = tokio::select! {
                    asked = envoy.message() => asked.ok().flatten()?,
                    Some(asked) = own.recv() => asked,
                };
                known = true;
                Some((next, (envoy, own, first, known)))
            },
        );
        (taken, asked)
    }

    /// What comes back, read along and handed on until the agent stops.
    fn back<A: Answer>(&self, answers: Streaming<A>, taken: mpsc::Sender<A::Ask>) -> Answers<A> {
        let (relay, stop) = (self.clone(), self.stop.clone());
        let through = answers.filter_map(move |answer| {
            let (relay, taken) = (relay.clone(), taken.clone());
            async move {
                let Ok(answer) = answer else { return Some(answer) };
                if answer.type_url() == NAME_TABLE
                    && let Some(names) = &relay.names
                {
                    if let Some(table) = answer.table() {
                        let table = Resources::from_iter([Arc::new(Resource::new("name-table", table.clone()))]);
                        names.send_replace(Arc::new(Snapshot::new(answer.version()).with(NAME_TABLE, table)));
                    }
                    // The stream is at its end otherwise, and the next one begins anew.
                    let _ = taken.send(answer.taken()).await;
                    return None;
                }
                if answer.type_url() == LISTENER {
                    let ports = answer.ports(&relay.ports);
                    relay.ports.open(ports).await;
                }
                Some(Ok(answer))
            }
        });
        Box::pin(through.take_until(async move { stop.asked().await }))
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Relay {
    type StreamAggregatedResourcesStream = Answers<discovery::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<discovery::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (taken, asked) = self.forth::<discovery::DiscoveryResponse>(request.into_inner());
        let (mut client, call) = self.call(asked).await?;
        let answers = client.stream_aggregated_resources(call).await?.into_inner();
        Ok(Response::new(self.back(answers, taken)))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (taken, asked) = self.forth::<discovery::DeltaDiscoveryResponse>(request.into_inner());
        let (mut client, call) = self.call(asked).await?;
        let answers = client.delta_aggregated_resources(call).await?.into_inner();
        Ok(Response::new(self.back(answers, taken)))
    }
}

/// An answer of either variant of the protocol.
trait Answer: Send + 'static {
    /// The requests of that variant.
    type Ask: Send + 'static;

    /// Asks for the table of names.
    fn ask_for_names() -> Self::Ask;
    /// Acknowledges this.
    fn taken(&self) -> Self::Ask;
    /// What it is about.
    fn type_url(&self) -> &str;
    /// Its version.
    fn version(&self) -> String;
    /// The table of names in it.
    fn table(&self) -> Option<&Any>;
    /// Where Envoy listens after it.
    fn ports(&self, ports: &Ports) -> BTreeSet<u16>;
}

impl Answer for discovery::DiscoveryResponse {
    type Ask = discovery::DiscoveryRequest;

    fn ask_for_names() -> Self::Ask {
        Self::Ask { type_url: NAME_TABLE.to_owned(), ..Default::default() }
    }
    fn taken(&self) -> Self::Ask {
        Self::Ask {
            type_url: self.type_url.clone(),
            version_info: self.version_info.clone(),
            response_nonce: self.nonce.clone(),
            ..Default::default()
        }
    }
    fn type_url(&self) -> &str {
        &self.type_url
    }
    fn version(&self) -> String {
        self.version_info.clone()
    }
    fn table(&self) -> Option<&Any> {
        self.resources.first()
    }
    fn ports(&self, ports: &Ports) -> BTreeSet<u16> {
        ports.all(&self.resources)
    }
}

impl Answer for discovery::DeltaDiscoveryResponse {
    type Ask = discovery::DeltaDiscoveryRequest;

    fn ask_for_names() -> Self::Ask {
        Self::Ask { type_url: NAME_TABLE.to_owned(), ..Default::default() }
    }
    fn taken(&self) -> Self::Ask {
        Self::Ask { type_url: self.type_url.clone(), response_nonce: self.nonce.clone(), ..Default::default() }
    }
    fn type_url(&self) -> &str {
        &self.type_url
    }
    fn version(&self) -> String {
        self.system_version_info.clone()
    }
    fn table(&self) -> Option<&Any> {
        self.resources.first()?.resource.as_ref()
    }
    fn ports(&self, ports: &Ports) -> BTreeSet<u16> {
        ports.changed(&self.resources, &self.removed_resources)
    }
}

/// The ports that Envoy listens on, by listener.
pub(super) struct Ports {
    programs: Arc<dyn Programs>,
    fixed: BTreeSet<u16>,
    by_listener: Mutex<BTreeMap<String, u16>>,
}

impl Ports {
    /// Those of the bootstrap, before anything is heard.
    pub(super) fn new(programs: Arc<dyn Programs>, fixed: impl IntoIterator<Item = u16>) -> Self {
        Self { programs, fixed: fixed.into_iter().collect(), by_listener: Mutex::default() }
    }

    /// Opens these beside the fixed ones.
    pub(super) async fn open(&self, ports: BTreeSet<u16>) {
        let all = ports.into_iter().chain(self.fixed.iter().copied()).collect();
        if let Err(error) = self.programs.listens(all).await {
            tracing::warn!(%error, "a port of Envoy's cannot be reached from outside");
        }
    }

    fn all(&self, resources: &[Any]) -> BTreeSet<u16> {
        let mut by_listener = self.by_listener();
        by_listener.clear();
        by_listener.extend(resources.iter().filter_map(bound));
        by_listener.values().copied().collect()
    }

    fn changed(&self, resources: &[discovery::Resource], removed: &[String]) -> BTreeSet<u16> {
        let mut by_listener = self.by_listener();
        removed.iter().for_each(|name| _ = by_listener.remove(name));
        for resource in resources {
            match resource.resource.as_ref().and_then(bound) {
                Some((name, port)) => _ = by_listener.insert(name, port),
                None => _ = by_listener.remove(&resource.name),
            }
        }
        by_listener.values().copied().collect()
    }

    fn by_listener(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u16>> {
        self.by_listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listener that opens a socket, and its port. Those that redirected connections come to are not opened to others.
fn bound(resource: &Any) -> Option<(String, u16)> {
    let listener: Listener = unpack(resource).ok()?;
    if listener.bind_to_port == Some(false) || ["virtualOutbound", "virtualInbound"].contains(&listener.name.as_str()) {
        return None;
    }
    let (_, port) = message::socket(listener.address.as_ref()?)?;
    Some((listener.name.clone(), port))
}
