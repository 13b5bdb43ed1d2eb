//! One way to serve HTTP: accept, handshake, serve, drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use crate::{Listener, Stop, Stream};

/// What a server knows of the connection a request came in on.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The other end's address.
    pub address: SocketAddr,
    /// The client's certificates, leaf first, as verified by the TLS configuration; empty when it showed none.
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// How [`http`] treats its connections.
#[derive(Clone)]
pub struct Settings {
    /// TLS, if the server speaks it. An `Arc` behind a function, so that certificates can be renewed under way.
    pub tls: Option<Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>>,
    /// How long a client may take for its handshake.
    pub handshake: Duration,
    /// How long open requests may go on after [`Stop`].
    pub grace: Duration,
    /// Who takes connections elsewhere, if anybody does.
    pub aside: Option<Arc<dyn Aside>>,
}

/// Takes connections elsewhere, before anything of them is read.
pub trait Aside: Send + Sync + 'static {
    /// The connection, if it is to be served here after all; nothing, when it was taken elsewhere and has ended.
    fn take(&self, stream: Stream) -> BoxFuture<'_, Option<Stream>>;
}

impl Default for Settings {
    fn default() -> Self {
        Self { tls: None, handshake: Duration::from_secs(10), grace: Duration::from_secs(5), aside: None }
    }
}

/// Serves HTTP/1.1 (with upgrades) and HTTP/2 on `listener` until `stop`, then drains.
///
/// `service` is asked once per connection, with what is known of its [`Peer`], for the service of that connection.
///
/// # Flow
///
/// 1. Accept, TLS handshake if configured (bounded by [`Settings::handshake`]).
/// 2. Serve; a connection that fails is logged at debug and concerns nobody else.
/// 3. On `stop`: no new connections, running requests finish, idle connections close.
/// 4. After [`Settings::grace`] what is left is cut off.
pub async fn http<S, F, B>(listener: Listener, settings: Settings, stop: Stop, service: F)
where
    F: Fn(Peer) -> S + Send + Sync + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let tasks = TaskTracker::new();
    let cut = Stop::new();
    let service = Arc::new(service);
    loop {
        let (stream, address) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::error!(%error, "cannot accept any more");
                    break;
                }
            },
            () = stop.asked() => break,
        };
        // Signals of its own: looked at whenever something happens here, one shared by all is what all wait for.
        let (settings, service, stop, cut) = (settings.clone(), Arc::clone(&service), stop.child(), cut.child());
        tasks.spawn(crate::meter::inherit(async move {
            let served = async {
                let stream = match &settings.aside {
                    Some(aside) => match aside.take(stream).await {
                        Some(stream) => stream,
                        None => return,
                    },
                    None => stream,
                };
                let Some(tls) = &settings.tls else {
                    let peer = Peer { address, certificates: Arc::from([]) };
                    return connection(stream, service(peer), stop).await;
                };
                let handshake = TlsAcceptor::from(tls()).accept(stream);
                let tls = match tokio::time::timeout(settings.handshake, handshake).await {
                    Ok(Ok(tls)) => tls,
                    Ok(Err(error)) => return tracing::debug!(%address, %error, "TLS handshake failed"),
                    Err(_) => return tracing::debug!(%address, "TLS handshake took too long"),
                };
                let certificates = tls.get_ref().1.peer_certificates().unwrap_or_default();
                let certificates = certificates.iter().map(|c| c.clone().into_owned()).collect();
                connection(tls, service(Peer { address, certificates }), stop).await;
            };
            tokio::select! {
                () = served => {}
                () = cut.asked() => {}
            }
        }));
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(settings.grace, tasks.wait()).await.is_err() {
        tracing::debug!("connections still open after {:?}, closing them now", settings.grace);
        cut.ask();
        tasks.wait().await;
    }
}

async fn connection<I, S, B>(io: I, service: S, stop: Stop)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(30));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(1024)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .adaptive_window(true);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(io), service);
    tokio::pin!(serving);
    let result = tokio::select! {
        result = serving.as_mut() => result,
        () = stop.asked() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}
