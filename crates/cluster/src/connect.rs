use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::ConfigExt;
use stolos_serve::{Container, HostNet, Net, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::ServiceBuilder;

use crate::{Error, Kubeconfig};

/// Where a pod finds its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

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
    Ok(Cluster { name: name.to_owned(), context: context.to_owned(), server, authorities, client })
}

/// A client whose every socket comes from `net`. Nothing is sent yet.
///
/// # Errors
///
/// When the configuration's TLS or authentication cannot be used.
pub fn client(config: kube::Config, net: Arc<dyn Net>) -> Result<kube::Client, Error> {
    let failed =
        |source: kube::Error| Error::Client { server: config.cluster_url.to_string(), source: Box::new(source) };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let https = config.rustls_https_connector_with_connector(Dialer(net)).map_err(failed)?;
    let transport = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(60))
        .build(https);
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

/// A connector that takes its sockets from a [`Net`].
#[derive(Clone)]
struct Dialer(Arc<dyn Net>);

impl tower::Service<Uri> for Dialer {
    type Response = TokioIo<Dialled>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let net = Arc::clone(&self.0);
        Box::pin(async move {
            let dialling = async {
                let host = to.host().ok_or_else(|| io::Error::other("the URL has no host"))?;
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let port = to.port_u16().unwrap_or(if to.scheme_str() == Some("http") { 80 } else { 443 });
                let mut last = io::Error::new(io::ErrorKind::NotFound, format!("no address for `{host}`"));
                for address in net.resolve(host).await? {
                    match net.dial(SocketAddr::new(address, port)).await {
                        Ok(stream) => return Ok(TokioIo::new(Dialled(stream))),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            };
            tokio::time::timeout(CONNECT, dialling).await.unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection in {} s", CONNECT.as_secs())))
            })
        })
    }
}

/// A stream, as hyper wants a connection to be.
struct Dialled(Stream);

impl Connection for Dialled {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

// hyper asks for `Connection` on the wrapper it polls, so the stream is passed through by hand.
impl AsyncRead for Dialled {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
