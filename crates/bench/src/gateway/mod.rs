//! The east-west gateway beside Envoy and HAProxy: TLS passed through by its server name, on one core.

mod handshakes;
mod serve;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Not as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::load::{self, Backends, Clock, Exchange, Measured};
use crate::peer::{self, Server};
use crate::process;
use crate::table::{self, RUNS};
use handshakes::Ends;

pub(crate) use serve::{gateway as serve_gateway, relay as serve_relay};

/// The service that is called through the gateway.
const SERVER_NAME: &str = "outbound_.5000_._.helloworld.sample.svc.cluster.local";
/// Istio's access log, field by field.
const ACCESS_LOG: &str = include_str!("../../peers/gateway/access-log.json");
/// How long one measurement counts.
const LENGTH: Duration = Duration::from_millis(1000);
/// Connections that are held open without use.
const IDLE: usize = 1000;
/// Requests a second at which latency is measured: few enough for everybody.
const PACE: u32 = 8_000;

/// One server, and what was measured of it.
struct Candidate {
    name: &'static str,
    server: Server,
    target: SocketAddr,
    connections: Vec<Measured>,
    handshakes: Vec<Measured>,
    requests: Vec<Measured>,
    paced: Vec<Measured>,
    bulk: Vec<Measured>,
    memory: (f64, f64),
}

/// What a candidate is measured in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Everything.
    Gateway,
    /// Connections only: it writes an access log.
    Logging,
    /// Bulk only.
    Relay,
}

/// Runs the section, in a thread of its own: it stays on one core, other sections need not.
pub(crate) fn gateway(out: &mut (impl Write + Send)) -> Result<()> {
    std::thread::scope(|scope| scope.spawn(|| measure(out)).join().ok().context("the section panicked")?)
}

fn measure(out: &mut impl Write) -> Result<()> {
    process::raise_open_files();
    process::stay_on(peer::LOAD_CORE)?;
    let folder = tempfile::tempdir()?;
    let backends = Backends::new(4)?;
    let ends = Ends::new()?;
    let hello = ends.hello()?;
    let mut candidates = start(folder.path(), &backends, out)?;
    for (_, candidate) in candidates.iter_mut().filter(|(role, _)| *role == Role::Gateway && wanted("idle")) {
        candidate.memory = idle(&backends, candidate, &hello)?;
    }
    for _ in 0..RUNS {
        for (role, candidate) in &mut candidates {
            run(*role, candidate, &backends, &ends, &hello)
                .with_context(|| format!("{} failed under load", candidate.name))?;
        }
    }
    print(&candidates, out)
}

fn start(folder: &Path, backends: &Backends, out: &mut impl Write) -> Result<Vec<(Role, Candidate)>> {
    let itself = std::env::current_exe()?;
    let addresses: Vec<String> = backends.addresses()?.iter().map(SocketAddr::to_string).collect();
    let mut candidates = Vec::new();
    let mut add = |role, name, program: &Path, port: u16, arguments: &[&str]| -> Result<()> {
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Server::start(program, arguments)?;
        server.listening(target).with_context(|| format!("{name} did not start"))?;
        let none = Vec::new;
        let (connections, handshakes, requests, paced, bulk) = (none(), none(), none(), none(), none());
        let memory = (0.0, 0.0);
        let candidate = Candidate { name, server, target, connections, handshakes, requests, paced, bulk, memory };
        candidates.push((role, candidate));
        Ok(())
    };
    let ours = |what: &str, port: u16, log: bool| {
        let words = [what.to_owned(), port.to_string()].into_iter().chain(addresses.iter().cloned());
        words.chain(log.then(|| "log".to_owned())).collect::<Vec<_>>()
    };
    for (role, name, what) in [
        (Role::Gateway, "stolos", "serve-gateway"),
        (Role::Logging, "stolos, access log", "serve-gateway"),
        (Role::Relay, "raw splice", "serve-relay"),
    ] {
        let port = peer::free_port()?;
        let words = ours(what, port, role == Role::Logging);
        add(role, name, &itself, port, &words.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    let values = |port: u16, log: &str| {
        [
            ("LISTEN_PORT", port.to_string()),
            ("BACKEND_PORT", backends.port.to_string()),
            ("SERVER_NAME", SERVER_NAME.to_owned()),
            ("ACCESS_LOG", log.to_owned()),
        ]
    };
    if let Some(envoy) = peer::envoy() {
        writeln!(out, "<!-- {} -->", peer::version(&envoy, "--version"))?;
        let typed = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
        let log = format!(
            r#"[{{"name": "envoy.access_loggers.file", "typed_config": {{"@type": "{typed}", "path": "/dev/stdout", "log_format": {{"json_format": {}}}}}}}]"#,
            ACCESS_LOG.trim()
        );
        for (role, name, log) in [(Role::Gateway, "Envoy", "[]"), (Role::Logging, "Envoy, access log", &log)] {
            let (port, file) = (peer::free_port()?, folder.join(format!("{name}.yaml").replace(", ", "-")));
            peer::configure(&file, include_str!("../../peers/gateway/envoy.yaml"), &values(port, log))?;
            let file = file.display().to_string();
            let arguments = ["-c", &file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"];
            add(role, name, &envoy, port, &arguments)?;
        }
    } else {
        writeln!(out, "<!-- Envoy is not installed (`$STOLOS_ENVOY`, `PATH`): left out -->")?;
    }
    if let Some(haproxy) = peer::in_path("haproxy") {
        writeln!(out, "<!-- {} -->", peer::version(&haproxy, "-v"))?;
        for (role, name, template) in [
            (Role::Gateway, "HAProxy", include_str!("../../peers/gateway/haproxy.cfg")),
            (Role::Logging, "HAProxy, access log", include_str!("../../peers/gateway/haproxy-log.cfg")),
        ] {
            let (port, file) = (peer::free_port()?, folder.join(format!("{name}.cfg").replace(", ", "-")));
            peer::configure(&file, template, &values(port, ""))?;
            add(role, name, &haproxy, port, &["-db", "-f", &file.display().to_string()])?;
        }
    } else {
        writeln!(out, "<!-- HAProxy is not installed (`PATH`): left out -->")?;
    }
    Ok(candidates)
}

/// MiB resident (of them not file-backed) that the connections add, each of which has carried a request; and at rest.
fn idle(backends: &Backends, candidate: &Candidate, hello: &[u8]) -> Result<(f64, f64)> {
    let process = candidate.server.process();
    let (before, ..) = process::memory(process)?;
    let mut exchange = Exchange::open(backends, candidate.target, hello, IDLE)?;
    exchange.once()?;
    let (after, ..) = process::memory(process)?;
    Ok((before, after))
}

/// Whether a kind of load is measured: all are, unless `$STOLOS_BENCH_ONLY` names some (for who tunes one of them).
fn wanted(kind: &str) -> bool {
    std::env::var("STOLOS_BENCH_ONLY").is_ok_and(|only| only.split(',').all(|named| named != kind)).not()
}

fn run(role: Role, candidate: &mut Candidate, backends: &Backends, ends: &Ends, hello: &[u8]) -> Result<()> {
    let Candidate { server, target, connections, handshakes, requests, paced, bulk, .. } = candidate;
    let cpu = || server.busy();
    let clock = || Clock::new(LENGTH, &cpu);
    if role != Role::Relay && wanted("connections") {
        connections.push(load::connections(backends, *target, hello, 64, clock())?);
    }
    if role == Role::Gateway && wanted("handshakes") {
        handshakes.push(ends.connections(backends.listeners()?, *target, 8, clock())?);
    }
    if role == Role::Gateway && wanted("requests") {
        requests.push(Exchange::open(backends, *target, hello, 64)?.saturate(clock())?);
    }
    if role == Role::Gateway && wanted("paced") {
        paced.push(Exchange::open(backends, *target, hello, 16)?.paced(PACE, clock())?);
    }
    if role != Role::Logging && wanted("bulk") {
        bulk.push(load::bulk(backends, *target, hello, 4, clock())?);
    }
    Ok(())
}

/// A row of the table, and how it is worked out.
type Figure = (&'static str, fn(&Measured) -> f64);

/// A kind of load, as the table has it.
struct Kind {
    name: &'static str,
    of: fn(&Candidate) -> &[Measured],
    figures: &'static [Figure],
    /// What the ratio to peers is made of.
    ratio: fn(&Measured) -> f64,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "new connections without crypto",
        of: |candidate| &candidate.connections,
        figures: &[
            ("per second", Measured::per_second),
            ("share of the core", Measured::busy),
            ("µs of CPU each", Measured::micros),
        ],
        ratio: Measured::per_cpu_second,
    },
    Kind {
        name: "new mTLS connections",
        of: |candidate| &candidate.handshakes,
        figures: &[("µs of CPU each", Measured::micros), ("share of the core", Measured::busy)],
        ratio: Measured::per_cpu_second,
    },
    Kind {
        name: "small requests, 64 connections",
        of: |candidate| &candidate.requests,
        figures: &[
            ("per second", Measured::per_second),
            ("share of the core", Measured::busy),
            ("µs of CPU each", Measured::micros),
        ],
        ratio: Measured::per_cpu_second,
    },
    Kind {
        name: "small requests, 8,000 a second over 16 connections",
        of: |candidate| &candidate.paced,
        figures: &[
            ("p50, ms", |measured| measured.millis(0.5)),
            ("p99, ms", |measured| measured.millis(0.99)),
            ("µs of CPU each", Measured::micros),
        ],
        ratio: Measured::per_cpu_second,
    },
    Kind {
        name: "bulk, 4 connections",
        of: |candidate| &candidate.bulk,
        figures: &[
            ("GB/s", |measured| measured.per_second() / 1e9),
            ("share of the core", Measured::busy),
            ("GB per CPU-second", |measured| measured.per_cpu_second() / 1e9),
        ],
        ratio: Measured::per_second,
    },
];

fn print(candidates: &[(Role, Candidate)], out: &mut impl Write) -> Result<()> {
    for kind in KINDS {
        for (_, candidate) in candidates {
            let measured = (kind.of)(candidate);
            for (unit, figure) in kind.figures {
                let what = format!("gateway: {}: {}, {unit}", kind.name, candidate.name);
                table::row(out, &what, measured.iter().map(figure))?;
            }
        }
        let of = |name: &str| -> Vec<f64> {
            let found = candidates.iter().find(|(_, candidate)| candidate.name == name);
            found.map(|(_, candidate)| (kind.of)(candidate).iter().map(kind.ratio).collect()).unwrap_or_default()
        };
        for (ours, theirs) in [
            ("stolos", "Envoy"),
            ("stolos", "HAProxy"),
            ("stolos", "raw splice"),
            ("stolos, access log", "Envoy, access log"),
            ("stolos, access log", "HAProxy, access log"),
        ] {
            let what = format!("gateway: {}: {ours} to {theirs}", kind.name);
            table::ratio(out, &what, &of(ours), &of(theirs))?;
        }
    }
    for (_, candidate) in candidates.iter().filter(|(role, _)| *role == Role::Gateway && wanted("idle")) {
        let (before, after) = candidate.memory;
        let name = candidate.name;
        table::row(out, &format!("gateway: memory at rest: {name}, MiB"), [before])?;
        table::row(
            out,
            &format!("gateway: 1,000 idle connections: {name}, KiB each"),
            [(after - before) * 1024.0 / IDLE as f64],
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_told_everything_and_the_hello_names_the_service() {
        let values = ["LISTEN_PORT", "BACKEND_PORT", "SERVER_NAME", "ACCESS_LOG"].map(|name| (name, "1".to_owned()));
        let folder = tempfile::tempdir().unwrap();
        for template in [
            include_str!("../../peers/gateway/envoy.yaml"),
            include_str!("../../peers/gateway/haproxy.cfg"),
            include_str!("../../peers/gateway/haproxy-log.cfg"),
        ] {
            let file = folder.path().join("configuration");
            peer::configure(&file, template, &values).unwrap();
            let text = std::fs::read_to_string(file).unwrap();
            assert!(values.iter().all(|(name, _)| !text.contains(name)), "{text}");
        }
        let hello = Ends::new().unwrap().hello().unwrap();
        assert_eq!(hello[0], 22, "a handshake record");
        assert!(hello.windows(SERVER_NAME.len()).any(|part| part == SERVER_NAME.as_bytes()));
    }
}
