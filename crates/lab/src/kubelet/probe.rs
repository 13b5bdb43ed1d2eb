//! Probes: is it alive, is it ready. They go to the application's own address, past a sidecar.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::PodRun;
use crate::cluster::Shared;
use crate::directory::numeric;
use crate::grpc_health;
use crate::userland::{self, Process, Sink, Source};

/// How a probe is timed.
pub(crate) struct Timing {
    pub(crate) delay: Duration,
    pub(crate) period: Duration,
    pub(crate) failures: u32,
    pub(crate) successes: u32,
}

pub(crate) fn timing(probe: &Probe) -> Timing {
    let seconds = |value: Option<i32>, default: i32| Duration::from_secs(value.unwrap_or(default).max(0) as u64);
    let count = |value: Option<i32>, default: i32| value.unwrap_or(default).max(1) as u32;
    Timing {
        delay: seconds(probe.initial_delay_seconds, 0),
        period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
        failures: count(probe.failure_threshold, 3),
        successes: count(probe.success_threshold, 1),
    }
}

/// One attempt, bounded by the probe's own timeout.
pub(crate) async fn attempt(
    shared: &Arc<Shared>,
    run: &Arc<PodRun>,
    container: &Container,
    probe: &Probe,
) -> Result<(), String> {
    let limit = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1) as u64);
    match tokio::time::timeout(limit, once(shared, run, container, probe)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

async fn once(shared: &Arc<Shared>, run: &Arc<PodRun>, container: &Container, probe: &Probe) -> Result<(), String> {
    let dial = |port: u16| async move {
        let to = run.sockets.socket(port);
        shared.world.dial(shared.subnet.node(0), to).await.map_err(|e| e.to_string())
    };
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        let process = run.process(&container.name).ok_or("the container is not running")?;
        let code = userland::run(command, process).await;
        return if code == 0 { Ok(()) } else { Err(format!("exit code {code}")) };
    }
    if let Some(socket) = &probe.tcp_socket {
        let port = port(container, &socket.port)?;
        return dial(port).await.map(drop);
    }
    if let Some(grpc) = &probe.grpc {
        let port = u16::try_from(grpc.port).map_err(|_| "bad port")?;
        let authority = format!("{}:{port}", run.sockets.address());
        let service = grpc.service.as_deref().unwrap_or_default();
        return grpc_health::check(dial(port).await?, &authority, service).await;
    }
    let Some(get) = &probe.http_get else { return Ok(()) };
    let port = port(container, &get.port)?;
    let mut path = get.path.clone().unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    if get.scheme.as_deref() == Some("HTTPS") {
        // The kubelet does not verify either; curl knows how to not care.
        let process = run.process(&container.name).ok_or("the container is not running")?;
        let url = format!("https://{}:{port}{path}", run.sockets.address());
        let words = ["curl", "-sfk", "-o", "/dev/null", &url].map(str::to_owned).to_vec();
        let code = userland::run(words, process).await;
        return if code == 0 { Ok(()) } else { Err(format!("HTTPS probe failed with curl's code {code}")) };
    }
    let stream = dial(port).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let mut request = http::Request::get(&path).header("user-agent", "kube-probe/1.34").header("accept", "*/*");
    let mut named = false;
    for header in get.http_headers.iter().flatten() {
        named |= header.name.eq_ignore_ascii_case("host");
        request = request.header(&header.name, &header.value);
    }
    if !named {
        request = request.header("host", format!("{}:{port}", run.sockets.address()));
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|e| e.to_string())?;
    let asking = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let status = response.status();
        // The connection is given up; a small body is read so that nobody sees a reset.
        let _ = Limited::new(response.into_body(), 16 * 1024).collect().await;
        Ok::<_, String>(status)
    };
    let mut asking = std::pin::pin!(asking);
    let status = tokio::select! {
        status = &mut asking => status?,
        _ = connection => asking.await?,
    };
    if (200..400).contains(&status.as_u16()) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    }
}

fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    if let Some(number) = numeric(port) {
        return Ok(number);
    }
    let IntOrString::String(name) = port else { return Err("bad port".to_owned()) };
    let mut ports = container.ports.iter().flatten();
    let found = ports.find(|p| p.name.as_ref() == Some(name));
    found.map(|p| p.container_port as u16).ok_or_else(|| format!("the container has no port {name}"))
}

/// The process an exec probe or an exec runs as.
pub(crate) fn quiet(mut process: Process) -> Process {
    process.stdin = Source::empty();
    process.stdout = Sink::null();
    process.stderr = Sink::null();
    process
}
