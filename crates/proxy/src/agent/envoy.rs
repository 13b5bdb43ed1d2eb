//! An Envoy with this agent: started, fed, watched, drained.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use stolos_serve::{Container, Program, Stop};
use stolos_xds::message::string;
use tokio::sync::watch;

use super::bootstrap::{ADMIN_PORT, Bootstrap, HEALTH_PORT, METRICS_PORT, SDS_SOCKET, XDS_SOCKET};
use super::sockets::{self, Ports, Relay, Secrets};
use super::{Settings, Unusable, identify};

/// Where Envoy's files are; the name of its bootstrap is Istio's.
const FOLDER: &str = "/etc/istio/proxy";
const FILE: &str = "envoy-rev.json";
/// The program.
const PROGRAM: &str = "envoy";
/// How long Envoy may take to end once it is asked to.
const END: Duration = Duration::from_secs(2);
/// How long one of its pages may take.
const PAGE: Duration = Duration::from_secs(2);
/// How often it is asked whether connections are left.
const LOOK: Duration = Duration::from_millis(100);
/// The largest page read.
const PAGE_LIMIT: usize = 4 << 20;

/// Runs Envoy until `stop`, then drains it: for at most `grace`, and no longer than connections are open.
///
/// # Flow
///
/// 1. A certificate is asked for; secrets and discovery are served on unix sockets beside the bootstrap.
/// 2. Envoy starts. It is ready (port 15021) when it has its configuration and its certificate.
/// 3. On `stop` its listeners drain and its readiness goes; it ends when nobody is connected, or by force.
///
/// # Errors
///
/// When the container does not say what a proxy must know, when there is no Envoy, or when it ends by itself: whoever
/// runs the container starts it again.
pub(crate) async fn run(container: Container, grace: Duration, stop: Stop) -> Result<(), Unusable> {
    let programs = container.programs.clone();
    let programs = programs.ok_or_else(|| Unusable::Program("this container can run no other programs".into()))?;
    let settings = Arc::new(Settings::read(&container)?);
    let failed = |error: io::Error| Unusable::Program(error.to_string());

    let ends = Stop::new();
    let _ends = crate::AskOnDrop(vec![ends.clone()]);
    let (identity, _failure, tasks) = identify(&container, &settings, &ends);

    let folder = container.path(FOLDER);
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let (xds, sds) =
        (sockets::listen(&folder, XDS_SOCKET).map_err(failed)?, sockets::listen(&folder, SDS_SOCKET).map_err(failed)?);
    let ports = Arc::new(Ports::new(Arc::clone(&programs), [ADMIN_PORT, HEALTH_PORT, METRICS_PORT]));
    ports.open(BTreeSet::new()).await;
    let names = settings.wants_names.then(|| {
        let (names, table) = watch::channel(Arc::default());
        let (net, namespace) = (Arc::clone(&container.net), settings.identity.namespace.to_string());
        tasks.spawn(crate::dns::run(net, namespace, table, ends.clone()));
        names
    });
    let relay =
        Relay { container: container.clone(), settings: Arc::clone(&settings), ports, names, stop: ends.clone() };
    tasks.spawn(sockets::discovery(xds, relay, ends.clone()));
    tasks.spawn(sockets::secrets(sds, Secrets { identity, stop: ends.clone() }, ends.clone()));

    tasks.close();
    write_bootstrap(&container, &settings, &folder, programs.address()).map_err(failed)?;
    let arguments = arguments(&container, grace);
    let mut envoy = programs.start(PROGRAM, &arguments, &folder, container.output.clone()).map_err(failed)?;
    let result = tokio::select! {
        ended = envoy.ended() => {
            let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            Err(Unusable::Ended(how))
        }
        () = stop.asked() => {
            drain(&container, &mut envoy, grace).await;
            Ok(())
        }
    };
    ends.ask();
    if tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await.is_err() {
        tracing::warn!("the agent did not end in time");
    }
    result
}

fn write_bootstrap(container: &Container, settings: &Settings, folder: &Path, listen: IpAddr) -> io::Result<()> {
    let mut node = settings.node(container);
    // Alone in its network, it listens everywhere and connects from wherever the system chooses.
    let shares = !listen.is_unspecified();
    if shares {
        // Where the control plane's listeners are to be opened.
        let metadata = node.metadata.get_or_insert_default();
        metadata.fields.insert("STOLOS_BIND".into(), string(listen.to_string()));
    }
    let source = settings.addresses().first().filter(|_| shares).map(String::as_str);
    let delta =
        !container.var("ISTIO_DELTA_XDS").is_some_and(|value| value.eq_ignore_ascii_case("false") || value == "0");
    let bootstrap = Bootstrap { node: &node, listen, source, delta };
    std::fs::write(folder.join(FILE), bootstrap.json().to_string())
}

/// As Istio's agent starts Envoy; the number of threads is `concurrency` of the proxy's configuration, or one.
fn arguments(container: &Container, grace: Duration) -> Vec<String> {
    let config: serde_json::Value =
        serde_json::from_str(container.var("PROXY_CONFIG").unwrap_or("{}")).unwrap_or_default();
    let threads = config.get("concurrency").and_then(serde_json::Value::as_u64).unwrap_or(1).max(1);
    let drain = grace.as_secs().max(1);
    let words = format!(
        "-c {FILE} --disable-hot-restart --drain-time-s {drain} --drain-strategy immediate --local-address-ip-version v4 \
         --file-flush-interval-msec 50 --concurrency {threads} -l"
    );
    let level = container.var("STOLOS_ENVOY_LOG").unwrap_or("warning");
    words.split_whitespace().chain([level]).map(str::to_owned).collect()
}

/// Lets open connections finish.
async fn drain(container: &Container, envoy: &mut Program, grace: Duration) {
    let until = Instant::now() + grace;
    for page in ["/healthcheck/fail", "/drain_listeners?graceful"] {
        if let Err(error) = page_of(container, http::Method::POST, page).await {
            tracing::debug!(page, %error, "Envoy does not drain");
        }
    }
    while Instant::now() < until {
        match page_of(container, http::Method::GET, "/stats?filter=downstream_cx_active").await {
            Ok(text) if connections(&text) > 0 => {}
            _ => break,
        }
        tokio::select! {
            _ = envoy.ended() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
    envoy.terminate();
    if tokio::time::timeout(END, envoy.ended()).await.is_err() {
        tracing::warn!("Envoy did not end within {END:?}, killing it");
    }
}

/// How many connections are open to others than Envoy's own pages.
fn connections(stats: &str) -> u64 {
    let line = |line: &str| -> Option<u64> {
        let (name, value) = line.split_once(": ")?;
        let listener = name.strip_prefix("listener.")?.strip_suffix(".downstream_cx_active")?;
        let own = [format!("_{HEALTH_PORT}"), format!("_{METRICS_PORT}"), "admin".to_owned()];
        // A worker counts its share once more.
        let again = listener.contains(".worker_");
        (!again && !own.iter().any(|own| listener.ends_with(own))).then(|| value.trim().parse().ok())?
    };
    stats.lines().filter_map(line).sum()
}

/// One of Envoy's pages.
async fn page_of(container: &Container, method: http::Method, page: &str) -> io::Result<String> {
    let asking = async {
        let at = (Ipv4Addr::LOCALHOST, ADMIN_PORT).into();
        let stream = container.net.dial(at).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let request = http::Request::builder().method(method).uri(page).header("host", "localhost");
        let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
        let answering = async {
            let response = sender.send_request(request).await.map_err(io::Error::other)?;
            let body = Limited::new(response.into_body(), PAGE_LIMIT).collect().await.map_err(io::Error::other)?;
            Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
        };
        let mut answering = std::pin::pin!(answering);
        tokio::select! {
            answer = &mut answering => answer,
            _ = connection => answering.await,
        }
    };
    tokio::time::timeout(PAGE, asking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests;
