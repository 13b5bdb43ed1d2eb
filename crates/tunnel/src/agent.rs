//! The member's end: dials the relay, serves the streams that it asks for, and dials again.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use stolos_serve::{Net, Stop, because, net};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

use crate::{CONNECTION_WINDOW, FRAME, HANDSHAKE, PING, PONG, PROTOCOL, STREAM_WINDOW, WHY};

/// The pause after the first failure; it doubles with each.
const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause, to which a part by chance is added so that agents do not all come at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);
/// How long a connection that no stream was asked of must have lived for the next pause to be the shortest again.
const SETTLED: Duration = Duration::from_secs(10);
/// How long connecting to a target may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long open streams may go on after the agent was stopped.
const GRACE: Duration = Duration::from_secs(5);
/// Bytes copied at once in each direction of a stream.
const COPY: usize = 32 << 10;

/// What an agent needs to know.
#[derive(Clone)]
pub struct Config {
    /// Where its sockets come from.
    pub net: Arc<dyn Net>,
    /// The relay's host, a name or an address: looked up before every connection.
    pub host: String,
    /// The relay's port.
    pub port: u16,
    /// The name that the relay's certificate must be for.
    pub name: ServerName<'static>,
    /// TLS with the agent's certificate, asked for before every connection so that a renewed one is used.
    pub tls: Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>,
    /// Where streams may lead, by name. A relay reaches nothing else.
    pub targets: BTreeMap<String, Target>,
    /// How many streams may be open at once on a connection.
    pub streams: u32,
}

/// Where streams of one name lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A name or an address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl Target {
    /// The host and port of a URL of http or https.
    #[must_use]
    pub fn of_url(url: &str) -> Option<Self> {
        let uri: http::Uri = url.parse().ok()?;
        let default = match uri.scheme_str()? {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        Some(Self { host: host.to_owned(), port: uri.port_u16().unwrap_or(default) })
    }
}

/// What an agent has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// The relay is reached.
    Connected,
    /// It is not, or not any more; the next try is after the pause.
    Lost {
        /// Why, in words.
        why: String,
        /// How long until the next try.
        pause: Duration,
    },
}

/// Keeps one connection to the relay until `stop`; then open streams have five seconds to end.
pub async fn run(config: Config, stop: Stop, news: impl Fn(News) + Send) {
    let mut pause = SHORTEST_PAUSE;
    while !stop.is_asked() {
        let began = Instant::now();
        // Whether the relay asked for something: then it works, however soon the connection was lost.
        let used = Arc::new(AtomicBool::new(false));
        let why = tokio::select! {
            dialled = dial(&config) => match dialled {
                Ok(stream) => {
                    news(News::Connected);
                    serve(&config, stream, &used, &stop).await
                }
                Err(why) => why.to_string(),
            },
            () = stop.asked() => return,
        };
        if stop.is_asked() {
            return;
        }
        if used.load(Ordering::Relaxed) || began.elapsed() >= SETTLED {
            pause = SHORTEST_PAUSE;
        }
        let chance = pause.mul_f64(rand::random_range(0.0..0.5));
        news(News::Lost { why, pause: pause + chance });
        tokio::select! {
            () = tokio::time::sleep(pause + chance) => {}
            () = stop.asked() => return,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

async fn dial(config: &Config) -> io::Result<TlsStream<stolos_serve::Stream>> {
    let dialling = async {
        let stream = net::reach(&*config.net, &config.host, config.port).await?;
        let stream = TlsConnector::from((config.tls)()).connect(config.name.clone(), stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(PROTOCOL) {
            return Err(io::Error::other("the other end speaks another protocol, or another version of it"));
        }
        Ok(stream)
    };
    tokio::time::timeout(HANDSHAKE, dialling).await.unwrap_or_else(|_| Err(late("no connection", HANDSHAKE)))
}

fn late(what: &str, after: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("{what} in {} s", after.as_secs()))
}

/// Serves streams on a connection until it ends, and says why it did.
async fn serve(
    config: &Config,
    stream: TlsStream<stolos_serve::Stream>,
    used: &Arc<AtomicBool>,
    stop: &Stop,
) -> String {
    let tasks = TaskTracker::new();
    let cut = Stop::new();
    let service = {
        let (config, tasks, cut, used) = (config.clone(), tasks.clone(), cut.clone(), Arc::clone(used));
        service_fn(move |request| {
            used.store(true, Ordering::Relaxed);
            let (config, tasks, cut) = (config.clone(), tasks.clone(), cut.child());
            async move { Ok::<_, Infallible>(answer(&config, request, &tasks, cut).await) }
        })
    };
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(config.streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = stop.asked() => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, serving.as_mut()).await.unwrap_or(Ok(()))
        }
    };
    // The streams were this connection's: their ends in the cluster are closed with it.
    cut.ask();
    tasks.close();
    tasks.wait().await;
    match ended {
        Ok(()) => "the relay closed the connection".to_owned(),
        Err(error) => because(&error),
    }
}

async fn answer(config: &Config, request: Request<Incoming>, tasks: &TaskTracker, cut: Stop) -> Response<Empty<Bytes>> {
    if request.method() != Method::CONNECT {
        return refused(StatusCode::METHOD_NOT_ALLOWED, "only CONNECT is served");
    }
    let name = request.uri().host().unwrap_or_default();
    let Some(target) = config.targets.get(name).cloned() else {
        return refused(StatusCode::NOT_FOUND, &format!("the agent offers no `{name}`"));
    };
    let reached = tokio::time::timeout(CONNECT, net::reach(&*config.net, &target.host, target.port)).await;
    let mut there = match reached.unwrap_or_else(|_| Err(late("no connection", CONNECT))) {
        Ok(there) => there,
        Err(error) => {
            return refused(StatusCode::BAD_GATEWAY, &format!("{}:{}: {error}", target.host, target.port));
        }
    };
    tasks.spawn(async move {
        let copying = async {
            let mut here = TokioIo::new(hyper::upgrade::on(request).await.map_err(io::Error::other)?);
            tokio::io::copy_bidirectional_with_sizes(&mut here, &mut there, COPY, COPY).await
        };
        tokio::select! {
            ended = copying => if let Err(error) = ended {
                tracing::debug!(%error, "a stream ended");
            },
            () = cut.asked() => {}
        }
    });
    Response::new(Empty::new())
}

fn refused(status: StatusCode, why: &str) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    let visible: String = why.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
    if let Ok(value) = visible.parse() {
        response.headers_mut().insert(WHY, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_where_a_url_leads() {
        for (url, expected) in [
            ("https://api.example.com", Some(("api.example.com", 443))),
            ("https://[::1]:6443/prefix", Some(("::1", 6443))),
            ("http://127.0.0.1", Some(("127.0.0.1", 80))),
            ("ftp://example.com", None),
            ("api.example.com:443", None),
            ("", None),
        ] {
            let expected = expected.map(|(host, port): (&str, u16)| Target { host: host.to_owned(), port });
            assert_eq!(Target::of_url(url), expected, "{url}");
        }
    }
}
