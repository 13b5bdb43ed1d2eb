//! The embeddable API server as a process of its own, with durable storage on a disk, and its client beside it on the
//! same cores.

mod server;
mod wire;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

pub(crate) use server::{CONTEXT, Server, serve};

use crate::process::{cpu, memory};
use crate::table::{RUNS, row};
use wire::{Answer, Client};

/// Objects that are made for everything that is measured with some.
const OBJECTS: usize = 10_000;
/// Objects of the namespace that is listed; one is there from the start, the authority's certificate.
const LISTED: usize = 6_000;
const OURS: usize = LISTED - 1;
/// Connections that ask at once.
const AT_ONCE: usize = 32;
/// How long each rate is measured.
const WINDOW: Duration = Duration::from_secs(1);
const WATCHERS: usize = 1_000;

/// What was measured, in the order in which it is printed.
#[derive(Default)]
struct Figures(Vec<(String, Vec<f64>)>);

impl Figures {
    fn add(&mut self, what: impl Into<String>, value: f64) {
        let what = what.into();
        match self.0.iter_mut().find(|(known, _)| *known == what) {
            Some((_, values)) => values.push(value),
            None => self.0.push((what, vec![value])),
        }
    }
}

/// Measures everything, each run on a new folder.
pub(crate) fn apiserver(out: &mut impl Write) -> Result<()> {
    server::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The first random number of a process takes AWS-LC as long as a server takes to start.
    rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut [0; 32]).ok().context("no randomness")?;
    let mut figures = Figures::default();
    // Fewer runs for whoever looks at one change after the other.
    let runs = std::env::var("STOLOS_BENCH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(RUNS);
    for _ in 0..runs {
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(run(&mut figures)))?;
    }
    for (what, values) in figures.0 {
        row(out, &format!("API server: {what}"), values)?;
    }
    Ok(())
}

async fn run(figures: &mut Figures) -> Result<()> {
    let home = tempfile::tempdir()?;
    let (p50, p99) = sync_latency(home.path())?;
    figures.add("the disk: fdatasync of 4 KiB appended, p50, ms", p50);
    figures.add("the disk: fdatasync of 4 KiB appended, p99, ms", p99);
    let dir = home.path().join("data");
    let (server, took) = Server::start(&dir).await?;
    figures.add("exec to `/readyz` 200, new folder, ms", took * 1e3);
    let resident = memory(server.process())?;
    figures.add("memory when ready, MiB resident", resident.0);
    figures.add("memory when ready, MiB anonymous", resident.1);

    let worker = server.workload().await?;
    let made = measure(&worker, &server, AT_ONCE, Until::Count(OBJECTS), |n| {
        let namespace = if n < OURS { "bench" } else { "default" };
        worker.request("POST", &path(namespace, ""), "application/json", config_map(n).as_bytes())
    });
    let made = made.await?;
    figures.add(format!("durable creates of 1 KB, {AT_ONCE} at once, per s"), made.rate);
    figures.add("… processor time of the server per create, µs", made.cost);
    let resident = memory(server.process())?;
    figures.add(format!("memory after {OBJECTS} creates, MiB resident"), resident.0);
    figures.add(format!("memory after {OBJECTS} creates, MiB anonymous"), resident.1);

    for (who, client) in
        [("service account's token and RBAC", &worker), ("client certificate of an admin", &server.admin)]
    {
        let got = measure(client, &server, AT_ONCE, Until::Time(WINDOW), |n| {
            client.request("GET", &path("bench", &name(n * 7 % OURS)), "", b"")
        });
        let got = got.await?;
        figures.add(format!("GET of 1 KB, {who}, {AT_ONCE} connections, per s"), got.rate);
        figures.add(format!("… processor time of the server per GET, {who}, µs"), got.cost);
    }
    let got = multiplexed(&worker, &server).await?;
    figures.add("GET of 1 KB, token, HTTP/2, 4 connections of 16 streams, per s", got.rate);
    figures.add("… processor time of the server per GET, HTTP/2, µs", got.cost);

    let listed =
        measure(&worker, &server, 4, Until::Time(WINDOW), |_| worker.request("GET", &path("bench", ""), "", b""));
    let listed = listed.await?;
    figures.add(format!("list of {LISTED} objects, whole, 4 at once, per s"), listed.rate);
    figures.add("… MB per list", listed.bytes / 1e6);
    figures.add("… processor time of the server per list, ms", listed.cost / 1e3);
    figures
        .add(format!("list of {LISTED} objects in pages of 500, 4 at once, whole lists per s"), pages(&worker).await?);

    let applied = measure(&worker, &server, AT_ONCE, Until::Time(WINDOW), |n| {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name(n % OURS)},
            "data": {"applied": n.to_string()}});
        let path = format!("{}?fieldManager=bench&force=true", path("bench", &name(n % OURS)));
        worker.request("PATCH", &path, "application/apply-patch+yaml", object.to_string().as_bytes())
    });
    let applied = applied.await?;
    figures.add(format!("server-side apply, {AT_ONCE} at once, per s"), applied.rate);
    figures.add("… processor time of the server per apply, µs", applied.cost);
    let patched = measure(&worker, &server, AT_ONCE, Until::Time(WINDOW), |n| {
        let patch = json!({"data": {"patched": n.to_string()}}).to_string();
        let path = path("bench", &name(n % OURS));
        worker.request("PATCH", &path, "application/merge-patch+json", patch.as_bytes())
    });
    let patched = patched.await?;
    figures.add(format!("merge patch, {AT_ONCE} at once, per s"), patched.rate);
    figures.add("… processor time of the server per patch, µs", patched.cost);

    let late = watch_latency(&worker).await?;
    figures.add("watch: from a write's answer to its event, p50, ms", late.0);
    figures.add("watch: from a write's answer to its event, p99, ms", late.1);
    figures.add("watch: from sending a write to its event, p50, ms", late.2);
    let before = memory(server.process())?;
    let fan = fan_out(&worker, &server).await?;
    figures.add(
        format!("one write to {WATCHERS} watchers, each on a connection of its own: last event, p50, ms"),
        fan.last,
    );
    figures.add(format!("50 writes to {WATCHERS} watchers: events per s"), fan.rate);
    figures.add("… processor time of the server per event, µs", fan.cost);
    figures.add("… memory per watcher and connection, KiB", (fan.memory - before.1) * 1024.0 / WATCHERS as f64);

    server.kill()?;
    let (server, took) = Server::start(&dir).await?;
    figures.add(format!("exec to `/readyz` 200, {OBJECTS} objects, ms"), took * 1e3);
    let resident = memory(server.process())?;
    figures.add(format!("memory when ready with {OBJECTS} objects, MiB resident"), resident.0);
    figures.add(format!("memory when ready with {OBJECTS} objects, MiB anonymous"), resident.1);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (before, began) = (cpu(server.process())?, Instant::now());
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = cpu(server.process())? - before;
    figures.add("idle: processor time, % of a core", used / began.elapsed().as_secs_f64() * 100.0);
    server.kill()
}

fn path(namespace: &str, name: &str) -> String {
    let separator = if name.is_empty() { "" } else { "/" };
    format!("/api/v1/namespaces/{namespace}/configmaps{separator}{name}")
}

fn name(n: usize) -> String {
    format!("object-{n:05}")
}

/// About 1 KB of JSON.
fn config_map(n: usize) -> String {
    let data: BTreeMap<String, String> = (0..8).map(|key| (format!("key-{key}"), "v".repeat(100))).collect();
    let labels = json!({"app": "bench", "shard": (n % 16).to_string()});
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name(n), "labels": labels}, "data": data});
    object.to_string()
}

/// How long something is done.
#[derive(Clone, Copy)]
enum Until {
    Time(Duration),
    Count(usize),
}

/// What was done in a while.
struct Done {
    /// Per second.
    rate: f64,
    /// Microseconds of the server's processor time each.
    cost: f64,
    /// Of each answer's body.
    bytes: f64,
}

impl Done {
    fn of(count: usize, bytes: usize, began: Instant, used: f64) -> Self {
        Self {
            rate: count as f64 / began.elapsed().as_secs_f64(),
            cost: used * 1e6 / count.max(1) as f64,
            bytes: bytes as f64 / count.max(1) as f64,
        }
    }
}

/// Asks over so many connections at once, each asking again when it has its answer.
async fn measure(
    client: &Client,
    server: &Server,
    connections: usize,
    until: Until,
    request: impl Fn(usize) -> Vec<u8>,
) -> Result<Done> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(client.connect().await?);
    }
    let (before, began) = (cpu(server.process())?, Instant::now());
    let next = RefCell::new((0_usize, 0_usize));
    let take = || {
        let mut next = next.borrow_mut();
        let go_on = match until {
            Until::Time(time) => began.elapsed() < time,
            Until::Count(count) => next.0 < count,
        };
        go_on.then(|| {
            next.0 += 1;
            next.0 - 1
        })
    };
    let asking = open.into_iter().map(|mut connection| {
        let (take, request, next) = (&take, &request, &next);
        async move {
            while let Some(n) = take() {
                let answer = connection.call(&request(n)).await?;
                good(&answer)?;
                next.borrow_mut().1 += answer.length;
            }
            anyhow::Ok(())
        }
    });
    futures::future::try_join_all(asking).await?;
    let (count, bytes) = *next.borrow();
    Ok(Done::of(count, bytes, began, cpu(server.process())? - before))
}

fn good(answer: &Answer) -> Result<()> {
    ensure!(answer.status / 100 == 2, "answered {}: {}", answer.status, String::from_utf8_lossy(&answer.begin));
    Ok(())
}

/// GETs as Go's clients send them: many streams on few connections.
async fn multiplexed(client: &Client, server: &Server) -> Result<Done> {
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(client.multiplex().await?);
    }
    let heads: Vec<_> = (0..97).map(|n| client.head(&path("bench", &name(n * 7)))).collect::<Result<_>>()?;
    let (before, began) = (cpu(server.process())?, Instant::now());
    let asking = open.iter().flat_map(|sender| std::iter::repeat_n(sender, 16)).enumerate().map(|(start, sender)| {
        let (heads, mut sender) = (&heads, sender.clone());
        async move {
            let mut count = 0;
            while began.elapsed() < WINDOW {
                sender = sender.ready().await?;
                let (answer, _) = sender.send_request(heads[(start + count) % heads.len()].clone(), true)?;
                let answer = answer.await?;
                ensure!(answer.status() == 200, "answered {}", answer.status());
                let mut body = answer.into_body();
                while let Some(data) = body.data().await {
                    body.flow_control().release_capacity(data?.len())?;
                }
                count += 1;
            }
            Ok(count)
        }
    });
    let count: usize = futures::future::try_join_all(asking).await?.iter().sum();
    Ok(Done::of(count, 0, began, cpu(server.process())? - before))
}

/// Whole lists per second, read page by page as client-go's pager does.
async fn pages(client: &Client) -> Result<f64> {
    let began = Instant::now();
    let reading = (0..4).map(|_| async {
        let mut connection = client.connect().await?;
        let mut lists = 0.0;
        while began.elapsed() < WINDOW {
            let mut more = String::new();
            for page in 0.. {
                let from = if more.is_empty() { String::new() } else { format!("&continue={more}") };
                let path = format!("{}?limit=500{from}", path("bench", ""));
                let answer = connection.call(&client.request("GET", &path, "", b"")).await?;
                good(&answer)?;
                let head = String::from_utf8_lossy(&answer.begin);
                more = between(&head, "\"continue\":\"", "\"").unwrap_or_default().to_owned();
                if more.is_empty() {
                    ensure!(page == LISTED.div_ceil(500) - 1, "the list ended at page {page}");
                    break;
                }
            }
            lists += 1.0;
        }
        anyhow::Ok(lists)
    });
    let lists: f64 = futures::future::try_join_all(reading).await?.iter().sum();
    Ok(lists / began.elapsed().as_secs_f64())
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    Some(&rest[..rest.find(after)?])
}

fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// From a write's answer to its event (p50, p99), and from its sending (p50), in milliseconds. One write after the other.
async fn watch_latency(client: &Client) -> Result<(f64, f64, f64)> {
    const WRITES: usize = 400;
    let watch = client.request("GET", &watch_path("bench"), "", b"");
    let mut lines = client.connect().await?.watch(&watch).await?;
    let seen = Rc::new(RefCell::new(BTreeMap::<String, Instant>::new()));
    let follower = Rc::clone(&seen);
    let following = tokio::task::spawn_local(async move {
        let mut line = Vec::new();
        let mut found = |piece: &[u8]| {
            line.extend_from_slice(piece);
            while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
                let text = String::from_utf8_lossy(&line[..end]);
                if let Some(revision) = between(&text, "\"resourceVersion\":\"", "\"") {
                    follower.borrow_mut().insert(revision.to_owned(), Instant::now());
                }
                line.drain(..=end);
            }
        };
        while lines.pieces(&mut found).await.is_ok() {}
    });
    let mut connection = client.connect().await?;
    let mut written = Vec::new();
    for n in 0..WRITES {
        let patch = json!({"data": {"watched": format!("{n}")}}).to_string();
        let path = path("bench", &name(n));
        let request = client.request("PATCH", &path, "application/merge-patch+json", patch.as_bytes());
        let sent = Instant::now();
        let answer = connection.call(&request).await?;
        let answered = Instant::now();
        good(&answer)?;
        let text = String::from_utf8_lossy(&answer.begin);
        let revision = between(&text, "\"resourceVersion\":\"", "\"").context("no revision")?.to_owned();
        written.push((revision, sent, answered));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let patience = Instant::now();
    while seen.borrow().len() < WRITES && patience.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    following.abort();
    let seen = seen.borrow();
    let mut after = Vec::new();
    let mut whole = Vec::new();
    for (revision, sent, answered) in written {
        let event = seen.get(&revision).context("an event is missing")?;
        after.push(event.saturating_duration_since(answered).as_secs_f64() * 1e3);
        whole.push(event.duration_since(sent).as_secs_f64() * 1e3);
    }
    after.sort_by(f64::total_cmp);
    whole.sort_by(f64::total_cmp);
    Ok((percentile(&after, 0.5), percentile(&after, 0.99), percentile(&whole, 0.5)))
}

/// Only what comes from now on.
fn watch_path(namespace: &str) -> String {
    format!("{}?watch=1&sendInitialEvents=false&resourceVersionMatch=NotOlderThan", path(namespace, ""))
}

struct Fan {
    last: f64,
    rate: f64,
    cost: f64,
    memory: f64,
}

/// One write to many watchers.
async fn fan_out(client: &Client, server: &Server) -> Result<Fan> {
    const ROUNDS: usize = 20;
    const BURST: usize = 50;
    let watch = client.request("GET", &watch_path("bench"), "", b"");
    let events = Rc::new(std::cell::Cell::new(0_usize));
    let changed = Rc::new(tokio::sync::Notify::new());
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS {
        let mut lines = client.connect().await?.watch(&watch).await?;
        let (events, changed) = (Rc::clone(&events), Rc::clone(&changed));
        watchers.spawn_local(async move {
            let count = |piece: &[u8]| {
                let ends = piece.iter().filter(|byte| **byte == b'\n').count();
                events.set(events.get() + ends);
                if ends > 0 && events.get().is_multiple_of(WATCHERS) {
                    changed.notify_one();
                }
            };
            while lines.pieces(count).await.is_ok() {}
        });
    }
    let all = async |count: usize| -> Result<()> {
        let seen = async {
            while events.get() < count * WATCHERS {
                let _ = tokio::time::timeout(Duration::from_millis(20), changed.notified()).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), seen).await.context("events are missing")
    };
    let write = |n: usize| {
        let patch = json!({"data": {"fanned": n.to_string()}}).to_string();
        client.request("PATCH", &path("bench", &name(n)), "application/merge-patch+json", patch.as_bytes())
    };
    let mut connection = client.connect().await?;
    let mut last = Vec::new();
    for n in 0..ROUNDS {
        let began = Instant::now();
        good(&connection.call(&write(n)).await?)?;
        all(n + 1).await?;
        last.push(began.elapsed().as_secs_f64() * 1e3);
    }
    let memory = memory(server.process())?.1;
    last.sort_by(f64::total_cmp);
    let (before, began) = (cpu(server.process())?, Instant::now());
    for n in 0..BURST {
        good(&connection.call(&write(ROUNDS + n)).await?)?;
    }
    all(ROUNDS + BURST).await?;
    let done = Done::of(BURST * WATCHERS, 0, began, cpu(server.process())? - before);
    Ok(Fan { last: percentile(&last, 0.5), rate: done.rate, cost: done.cost, memory })
}

/// How long the disk takes to keep 4 KiB: p50 and p99 in milliseconds.
fn sync_latency(dir: &Path) -> Result<(f64, f64)> {
    let mut file = std::fs::File::create(dir.join("sync"))?;
    let mut took = Vec::new();
    for _ in 0..200 {
        file.write_all(&[7; 4096])?;
        let began = Instant::now();
        file.sync_data()?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
    }
    took.sort_by(f64::total_cmp);
    Ok((percentile(&took, 0.5), percentile(&took, 0.99)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_of_about_a_kilobyte() {
        assert!((1000..1200).contains(&config_map(7).len()), "{}", config_map(7).len());
    }

    #[test]
    fn what_is_between_and_how_far() {
        assert_eq!(between(r#"{"a":"b","c":"d"}"#, "\"c\":\"", "\""), Some("d"));
        assert_eq!(between("abc", "x", "y"), None);
        let sorted: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!((percentile(&sorted, 0.5), percentile(&sorted, 0.99), percentile(&sorted, 1.0)), (50.0, 99.0, 99.0));
    }
}
