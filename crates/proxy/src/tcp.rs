//! Connections as a whole: choose a cluster and a host, connect, carry the bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::config::{Cluster, Host, Side, Tcp};
use crate::copy::{self, Traffic};
use crate::listener::{Arrived, Client};
use crate::metrics::{Connections, Facts, Timestamp, Workload};
use crate::outlier::Outcome;
use crate::pool::{self, Busy, Connected, Wire};
use crate::state::Shared;
use crate::tls::Use;
use crate::{balance, log};

/// How many hosts are asked for a connection when nothing is said of it. Envoy asks one; but nothing has been sent yet,
/// so asking another one can do no harm, and behind a gateway it is the difference between a dead pod and a failure.
const ELSEWHERE: u32 = 3;

/// What is told of a connection when it has ended.
#[derive(Default)]
struct Told<'a> {
    cluster: &'a str,
    host: Arc<str>,
    local: Option<std::net::SocketAddr>,
    peer: Option<Arc<str>>,
    flags: &'static str,
    failure: String,
    attempts: u32,
}

/// Serves one connection to its end.
pub(crate) async fn serve(shared: &Arc<Shared>, tcp: &Tcp, arrived: Arrived, client: Client) {
    let (start, began) = (Timestamp::now(), Instant::now());
    let (traffic, mut told) = (Traffic::default(), Told::default());
    match Box::pin(upstream(shared, tcp, &arrived, &mut told)).await {
        Some((cluster, host, connected)) => {
            let _busy = Busy::with(&host);
            told.local = if tcp.local_logged { connected.wire.local() } else { None };
            told.peer = connected.peer.clone();
            let own;
            let series = match tcp.side {
                Side::Outbound => outbound(shared, &cluster, &host, told.peer.as_deref()),
                Side::Inbound => {
                    own = inbound(shared, &arrived, &cluster);
                    &own
                }
            };
            series.opened.inc();
            carry(shared, tcp, client, connected, &traffic, &mut told).await;
            series.closed.inc();
            series.received.inc_by(traffic.up.load(Ordering::Relaxed));
            series.sent.inc_by(traffic.down.load(Ordering::Relaxed));
        }
        None => drop(client),
    }
    let entry = log::Entry {
        start,
        duration: began.elapsed(),
        flags: told.flags,
        failure: &told.failure,
        received: traffic.up.load(Ordering::Relaxed),
        sent: traffic.down.load(Ordering::Relaxed),
        upstream_host: &told.host,
        upstream_cluster: told.cluster,
        upstream_local: told.local,
        upstream_uri: told.peer.as_deref().unwrap_or_default(),
        attempts: told.attempts,
        ..arrived.entry()
    };
    log::write(&tcp.log, &shared.output, &entry);
}

/// A connection to a host of one of the clusters; another host is tried where one is dead.
async fn upstream<'a>(
    shared: &Arc<Shared>,
    tcp: &'a Tcp,
    arrived: &Arrived,
    told: &mut Told<'a>,
) -> Option<(Arc<Cluster>, Arc<Host>, Connected)> {
    let chosen = match tcp.clusters.as_slice() {
        [(only, _)] => only,
        several => &several[balance::weighted(several.iter().map(|(_, weight)| *weight), rand::random())?].0,
    };
    told.cluster = chosen;
    let Some(cluster) = shared.cluster(chosen).await else {
        told.flags = "NC";
        return None;
    };
    let mut tried = Vec::new();
    loop {
        let Some(host) = cluster.pick(Some(arrived.destination), shared.now(), &tried) else {
            told.flags = "UH";
            return None;
        };
        if tcp.attempts.is_none() && tried.iter().any(|known| Arc::ptr_eq(known, &host)) {
            // Everybody has been asked.
            return None;
        }
        told.host = Arc::clone(&host.text);
        told.attempts += 1;
        match pool::connect(shared, &cluster, &host, Use::Tcp).await {
            Ok(connected) => {
                cluster.note(&host, Outcome::Good, shared.now());
                told.flags = "";
                return Some((cluster, host, connected));
            }
            Err(error) => {
                tracing::debug!(cluster = cluster.name, host = %host.address, %error, "no upstream connection");
                told.failure = error.to_string();
                told.flags = if matches!(error, pool::Error::Overflow) { "UO" } else { "UF" };
                cluster.note(&host, Outcome::GatewayError, shared.now());
                tried.push(host);
                if told.attempts >= tcp.attempts.unwrap_or(ELSEWHERE) {
                    return None;
                }
            }
        }
    }
}

async fn carry(
    shared: &Shared,
    tcp: &Tcp,
    client: Client,
    connected: Connected,
    traffic: &Traffic,
    told: &mut Told<'_>,
) {
    let Connected { wire, permit: _permit, .. } = connected;
    let carrying = async {
        match (client, wire) {
            (Client::Plain(rewound), Wire::Plain(server)) => {
                let (head, client) = rewound.into_parts();
                copy::plain(client, head, server, traffic, tcp.idle).await
            }
            (Client::Plain(client), wire) => Box::pin(copy::any(client, wire, traffic, tcp.idle)).await,
            (Client::Tls(client), wire) => Box::pin(copy::any(client, wire, traffic, tcp.idle)).await,
        }
    };
    let ended = tokio::select! {
        ended = carrying => ended,
        () = shared.cut.asked() => Err(std::io::Error::other("drained")),
    };
    if let Err(error) = ended {
        told.flags = match error.kind() {
            std::io::ErrorKind::TimedOut => "SI",
            _ => "UC",
        };
        told.failure = error.to_string();
    }
}

/// The counters of connections to `host`, looked up once.
fn outbound<'a>(shared: &Shared, cluster: &Cluster, host: &'a Host, peer: Option<&str>) -> &'a Connections {
    host.tcp_series.get_or_init(|| {
        let identity = shared.identity.load();
        shared.metrics.connections(&Facts {
            reporter: "source",
            source: &shared.local,
            source_principal: identity.as_ref().map(|identity| &*identity.uri).unwrap_or_default(),
            destination: &host.workload,
            destination_principal: peer.unwrap_or_default(),
            service: &cluster.service,
            protocol: "tcp",
            code: None,
            grpc_status: None,
            flags: "",
            security: "unknown",
        })
    })
}

/// The counters of connections to the workload itself.
fn inbound(shared: &Shared, arrived: &Arrived, cluster: &Cluster) -> Connections {
    let identity = shared.identity.load();
    let client = arrived.peer.as_ref().map(|peer| &*peer.uri);
    shared.metrics.connections(&Facts {
        reporter: "destination",
        source: &Workload::default(),
        source_principal: client.unwrap_or_default(),
        destination: &shared.local,
        destination_principal: identity.as_ref().map(|identity| &*identity.uri).unwrap_or_default(),
        service: &cluster.service,
        protocol: "tcp",
        code: None,
        grpc_status: None,
        flags: "",
        security: if client.is_some() { "mutual_tls" } else { "none" },
    })
}
