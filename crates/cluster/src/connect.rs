use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::{Body, ConfigExt};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use stolos_serve::{Container, HostNet, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::ServiceBuilder;

use crate::{Error, Kubeconfig};

/// Where a pod finds its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// An API server that says nothing for so long is asked whether it is there, so often, at most so many times: a session or
/// a watch on a connection of its own (HTTP/1.1 has no pings) must not hang where a machine has gone without a word. What
/// waits for a slow reader goes on: that one answers.
const SILENCE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// A stream of bytes, whatever carries it.
pub type Carried = Pin<Box<dyn Duplex>>;

/// What can be read and written.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}

impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A way to one API server that leads over something else than sockets of ours.
pub trait Way: Send + Sync + 'static {
    /// A new stream to it.
    fn open(&self) -> BoxFuture<'_, io::Result<Carried>>;
}

/// A cluster, connected. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// Its name in the mesh.
    pub name: String,
    /// The kubeconfig context it is reached by.
    pub context: String,
    /// Its API server's URL, as in the kubeconfig.
    pub server: String,
    /// The certificates (DER) that the API server's own must lead to; empty means the system's.
    pub authorities: Vec<Vec<u8>>,
    /// The client.
    pub client: kube::Client,
    /// The kubeconfig files that the context is in, for programs that are to reach the same cluster.
    pub kubeconfigs: Vec<std::path::PathBuf>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("name", &self.name).field("server", &self.server).finish_non_exhaustive()
    }
}

/// Makes a client for the cluster behind `context`, over the machine's own network. Nothing is sent yet.
///
/// # Errors
///
/// When there is no such context, or it makes no usable client.
pub async fn connect(kubeconfig: &Kubeconfig, context: &str, name: &str) -> Result<Cluster, Error> {
    let config = kubeconfig.context(context).await?;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    let authorities = config.root_cert.clone().unwrap_or_default();
    let client = client(config, Arc::new(HostNet::default()))?;
    let kubeconfigs = kubeconfig.files().iter().map(|file| std::path::absolute(file).unwrap_or_else(|_| file.clone()));
    let (name, context) = (name.to_owned(), context.to_owned());
    Ok(Cluster { name, context, server, authorities, client, kubeconfigs: kubeconfigs.collect() })
}

/// A client whose every socket comes from `net`. Nothing is sent yet.
///
/// Where the API server speaks HTTP/2, everything but upgrades shares one connection: a control plane watches some
/// twenty kinds of every cluster, and each of them on a connection of its own would cost both sides a TLS handshake and
/// its buffers.
///
/// # Errors
///
/// When the configuration's TLS or authentication cannot be used.
pub fn client(config: kube::Config, net: Arc<dyn Net>) -> Result<kube::Client, Error> {
    made(&config, Reach::Net(net))
}

/// A client whose every connection goes over `way`; the URL says what the server is called, not where it is. Nothing is
/// sent yet.
///
/// # Errors
///
/// As [`client`].
pub fn client_over(config: &kube::Config, way: Arc<dyn Way>) -> Result<kube::Client, Error> {
    made(config, Reach::Way(way))
}

fn made(config: &kube::Config, reach: Reach) -> Result<kube::Client, Error> {
    let failed =
        |source: kube::Error| Error::Client { server: config.cluster_url.to_string(), source: Box::new(source) };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tls = config.rustls_client_config().map_err(failed)?;
    let transport = Transport::new(&tls, config.tls_server_name.as_deref(), &reach);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(failed)?)
        .layer(config.extra_headers_layer().map_err(failed)?)
        .map_err(tower::BoxError::from)
        .service(transport);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

/// The configuration of a pod's own service account. The token and authority files are read again as they change.
///
/// # Errors
///
/// When the container has no service account or does not know its API server.
pub fn in_cluster(container: &Container) -> Result<kube::Config, Error> {
    let host = container.var("KUBERNETES_SERVICE_HOST").ok_or_else(|| missing("KUBERNETES_SERVICE_HOST"))?;
    let port = container.var("KUBERNETES_SERVICE_PORT").ok_or_else(|| missing("KUBERNETES_SERVICE_PORT"))?;
    let url: Uri =
        format!("https://{host}:{port}").parse().map_err(|e: http::uri::InvalidUri| Error::InCluster(e.to_string()))?;
    let mut config = kube::Config::new(url);
    let authority = container.path(format!("{ACCOUNT}/ca.crt"));
    if !authority.exists() {
        return Err(missing(&authority.display().to_string()));
    }
    config.root_cert_file = Some(authority);
    config.auth_info.token_file = Some(container.path(format!("{ACCOUNT}/token")).display().to_string());
    if let Ok(namespace) = std::fs::read_to_string(container.path(format!("{ACCOUNT}/namespace"))) {
        config.default_namespace = namespace.trim().to_owned();
    }
    Ok(config)
}

fn missing(what: &str) -> Error {
    Error::InCluster(format!("{what} is missing"))
}

/// HTTP/2 for everything but upgrades, which it cannot carry to a Kubernetes API server; those go over HTTP/1.1.
#[derive(Clone)]
struct Transport {
    shared: Client<Dialer, Body>,
    upgrading: Client<Dialer, Body>,
    first: Arc<First>,
}

/// The first request of a client makes the connection that the others share. Were they sent beside it, each would dial.
#[derive(Default)]
struct First {
    turn: tokio::sync::Mutex<()>,
    over: AtomicBool,
}

/// A client of the server that `reach` leads to, which speaks one of `protocols`.
pub(crate) fn speaking<B>(
    protocols: &[&[u8]],
    tls: &ClientConfig,
    server_name: Option<&str>,
    reach: &Reach,
) -> Client<Dialer, B>
where
    B: http_body::Body + Send,
    B::Data: Send,
{
    let mut tls = tls.clone();
    tls.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let server_name = server_name.map(Arc::from);
    let dialer = Dialer { reach: reach.clone(), tls: Arc::new(tls), server_name };
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        // As client-go's ReadIdleTimeout and PingTimeout: a watch must not hang on a connection that is dead.
        .http2_keep_alive_interval(Duration::from_secs(30))
        .http2_keep_alive_timeout(Duration::from_secs(15))
        .http2_adaptive_window(true);
    builder.build(dialer)
}

impl Transport {
    fn new(tls: &ClientConfig, server_name: Option<&str>, reach: &Reach) -> Self {
        Self {
            shared: speaking(&[b"h2", b"http/1.1"], tls, server_name, reach),
            upgrading: speaking(&[b"http/1.1"], tls, server_name, reach),
            first: Arc::default(),
        }
    }
}

impl tower::Service<Request<Body>> for Transport {
    type Response = Response<Incoming>;
    type Error = hyper_util::client::legacy::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        if request.headers().contains_key(http::header::UPGRADE) {
            return Box::pin(self.upgrading.request(request));
        }
        let (shared, first) = (self.shared.clone(), Arc::clone(&self.first));
        Box::pin(async move {
            if !first.over.load(Ordering::Acquire) {
                let turn = first.turn.lock().await;
                if !first.over.load(Ordering::Acquire) {
                    let answer = shared.request(request).await;
                    first.over.store(true, Ordering::Release);
                    return answer;
                }
                drop(turn);
            }
            shared.request(request).await
        })
    }
}

/// Where connections come from.
#[derive(Clone)]
pub enum Reach {
    /// Sockets.
    Net(Arc<dyn Net>),
    /// Something else.
    Way(Arc<dyn Way>),
}

/// A connector that takes its connections from a [`Net`] or a [`Way`].
#[derive(Clone)]
pub(crate) struct Dialer {
    reach: Reach,
    tls: Arc<ClientConfig>,
    /// The name to ask for and to verify, where it is not the URL's.
    server_name: Option<Arc<str>>,
}

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<Dialled>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            tokio::time::timeout(CONNECT, dialer.dial(&to)).await.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection in {} s", CONNECT.as_secs())))
            })
        })
    }
}

impl Dialer {
    async fn dial(&self, to: &Uri) -> io::Result<TokioIo<Dialled>> {
        let host = to.host().ok_or_else(|| io::Error::other("the URL has no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let plain = to.scheme_str() == Some("http");
        let port = to.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let name = self.server_name.as_deref().unwrap_or(host).to_owned();
        let name = || ServerName::try_from(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error));
        let tls = TlsConnector::from(Arc::clone(&self.tls));
        Ok(TokioIo::new(match &self.reach {
            Reach::Net(net) => {
                let stream = stolos_serve::net::reach(&**net, host, port).await?;
                let (silence, interval, unanswered) = SILENCE;
                stream.ask_whether_alive(silence, interval, unanswered);
                if plain { Dialled::Plain(stream) } else { Dialled::Tls(Box::new(tls.connect(name()?, stream).await?)) }
            }
            Reach::Way(way) => {
                let stream = way.open().await?;
                if plain {
                    Dialled::Carried(stream)
                } else {
                    Dialled::CarriedTls(Box::new(tls.connect(name()?, stream).await?))
                }
            }
        }))
    }
}

/// A stream, as hyper wants a connection to be.
pub(crate) enum Dialled {
    Plain(Stream),
    Tls(Box<TlsStream<Stream>>),
    Carried(Carried),
    CarriedTls(Box<TlsStream<Carried>>),
}

/// Calls a method of [`AsyncRead`] or [`AsyncWrite`] on whichever stream it is.
macro_rules! pass {
    ($self:ident, $method:ident $(, $argument:expr)*) => {
        match $self.get_mut() {
            Dialled::Plain(stream) => Pin::new(stream).$method($($argument),*),
            Dialled::Tls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
            Dialled::Carried(stream) => stream.as_mut().$method($($argument),*),
            Dialled::CarriedTls(stream) => Pin::new(stream.as_mut()).$method($($argument),*),
        }
    };
}

impl Connection for Dialled {
    fn connected(&self) -> Connected {
        let protocol = match self {
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::CarriedTls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::Plain(_) | Self::Carried(_) => None,
        };
        if protocol == Some(b"h2") { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

// hyper asks for `Connection` on the wrapper it polls, so the stream is passed through by hand.
impl AsyncRead for Dialled {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        pass!(self, poll_read, cx, buf)
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        pass!(self, poll_write, cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        pass!(self, poll_write_vectored, cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Carried(stream) => stream.is_write_vectored(),
            Self::CarriedTls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pass!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pass!(self, poll_shutdown, cx)
    }
}
