use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use stolos_serve::{Listener, Stop, because};
use tokio::sync::{Notify, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use crate::stream::{Cuttable, Stream, Traffic};
use crate::{CONNECTION_WINDOW, FRAME, HANDSHAKE, PING, PONG, PROTOCOL, STREAM_WINDOW, WHY};

/// How long an agent may take to answer before another of the same member is asked, if there is one: one that has fallen
/// silent is known as such only after [`DEAD_AFTER`](crate::DEAD_AFTER).
const HEDGE: Duration = Duration::from_secs(1);

/// Names the member that a verified certificate (leaf first) stands for, or says why it stands for none.
pub type Who = dyn Fn(&[CertificateDer<'_>]) -> Result<String, String> + Send + Sync;

/// Serves a connection that speaks something else than the tunnel's protocol, as its TLS (ALPN) says.
pub type Others = dyn Fn(TlsStream<stolos_serve::Stream>, SocketAddr) -> BoxFuture<'static, ()> + Send + Sync;

/// What a relay allows.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Streams at once on a connection.
    pub streams: usize,
    /// Connections at once of one member; when another comes, the oldest is closed.
    pub connections: usize,
    /// Connections at once of whom nobody knows yet.
    pub strangers: usize,
    /// Connections at once that are with [`Others`]; one more is closed.
    pub others: usize,
    /// How long a stream may wait: for an agent to come back, for a place, and for the agent's answer.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { streams: 1024, connections: 4, strangers: 256, others: 64, patience: Duration::from_secs(10) }
    }
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No agent of the member is connected.
    #[error("no agent of `{member}` is connected{}", last_seen(*.lost))]
    Absent {
        /// The member.
        member: String,
        /// For how long, if one ever was.
        lost: Option<Duration>,
    },
    /// All places are taken.
    #[error("`{member}` has {streams} streams open on each of its connections, which is all it may have")]
    Full {
        /// The member.
        member: String,
        /// Places on a connection.
        streams: usize,
    },
    /// The agent answered that it will not.
    #[error("the agent of `{member}` could not open `{target}`: {why}")]
    Refused {
        /// The member.
        member: String,
        /// The target's name.
        target: String,
        /// Its words.
        why: String,
    },
    /// The connection broke, or nothing came back in time.
    #[error("the tunnel of `{member}` broke: {why}")]
    Broken {
        /// The member.
        member: String,
        /// What was seen.
        why: String,
    },
}

fn last_seen(lost: Option<Duration>) -> String {
    lost.map_or_else(|| ", and none ever was".to_owned(), |lost| format!(" since {:.1} s", lost.as_secs_f64()))
}

/// A member, as its relay sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its connections: where they come from and how long they have been there, the oldest first.
    pub connections: Vec<(SocketAddr, Duration)>,
    /// For how long there has been none.
    pub lost: Option<Duration>,
    /// Streams open now.
    pub open: u64,
    /// Streams opened in all.
    pub opened: u64,
    /// Bytes sent to it.
    pub sent: u64,
    /// Bytes received from it.
    pub received: u64,
}

/// The end that agents dial: knows them by their certificates, and opens streams to their clusters.
pub struct Relay {
    limits: Limits,
    /// Turns with [`Others`].
    turns: Semaphore,
    members: Mutex<BTreeMap<String, Known>>,
    changed: Notify,
    numbers: AtomicU64,
}

#[derive(Default)]
struct Known {
    links: Vec<Arc<Link>>,
    lost: Option<Instant>,
    traffic: Arc<Traffic>,
}

impl Known {
    fn seen(&self, name: &str) -> Member {
        Member {
            name: name.to_owned(),
            connections: self.links.iter().map(|link| (link.from, link.since.elapsed())).collect(),
            lost: self.lost.map(|lost| lost.elapsed()),
            open: self.traffic.open.load(Ordering::Relaxed),
            opened: self.traffic.opened.load(Ordering::Relaxed),
            sent: self.traffic.sent.load(Ordering::Relaxed),
            received: self.traffic.received.load(Ordering::Relaxed),
        }
    }
}

/// One connection of an agent.
struct Link {
    number: u64,
    from: SocketAddr,
    since: Instant,
    send: SendRequest<Empty<Bytes>>,
    places: Arc<Semaphore>,
    broken: AtomicBool,
    close: Stop,
}

impl Relay {
    /// A relay that nobody has dialled yet.
    #[must_use]
    pub fn new(limits: Limits) -> Arc<Self> {
        let turns = Semaphore::new(limits.others);
        Arc::new(Self { limits, turns, members: Mutex::default(), changed: Notify::new(), numbers: AtomicU64::new(0) })
    }

    /// Takes agents in on `listener` until `stop`.
    ///
    /// `tls` must ask for client certificates and verify those that come. Where `others` serves other protocols on the same
    /// port, it may let clients without one in: no agent gets past `who` without a certificate.
    pub async fn serve(
        self: Arc<Self>,
        listener: Listener,
        tls: Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>,
        who: Arc<Who>,
        others: Option<Arc<Others>>,
        stop: Stop,
    ) {
        let tasks = TaskTracker::new();
        let strangers = Arc::new(Semaphore::new(self.limits.strangers));
        loop {
            // Who comes when there are too many waits in the kernel's queue, which is limited, too.
            let accepting = async {
                let place = Arc::clone(&strangers).acquire_owned().await;
                listener.accept().await.map(|(stream, from)| (stream, from, place))
            };
            let (stream, from, place) = tokio::select! {
                accepted = accepting => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::error!(%error, "cannot accept any more");
                        break;
                    }
                },
                () = stop.asked() => break,
            };
            let (relay, tls, stop) = (Arc::clone(&self), tls(), stop.child());
            let (who, others) = (Arc::clone(&who), others.clone());
            tasks.spawn(async move {
                tokio::select! {
                    ended = relay.take_in(stream, from, tls, &*who, others.as_deref(), place) => if let Err(why) = ended {
                        tracing::info!(%from, why, "an agent was not let in, or left");
                    },
                    () = stop.asked() => {}
                }
            });
        }
        tasks.close();
        tasks.wait().await;
    }

    /// One agent's connection, from its handshake to its end.
    async fn take_in(
        &self,
        stream: stolos_serve::Stream,
        from: SocketAddr,
        tls: Arc<ServerConfig>,
        who: &Who,
        others: Option<&Others>,
        place: impl Send,
    ) -> Result<(), String> {
        let accepted = tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(stream)).await;
        let stream = accepted.map_err(|_| "its handshake took too long".to_owned())?.map_err(|e| e.to_string())?;
        let session = stream.get_ref().1;
        if session.alpn_protocol() != Some(PROTOCOL) {
            let others = others.ok_or("it speaks another protocol")?;
            // Who asks for something must not keep agents out that want in.
            let _turn = self.turns.try_acquire().map_err(|_| "too many ask at once".to_owned())?;
            drop(place);
            others(stream, from).await;
            return Ok(());
        }
        let shown: Vec<_> =
            session.peer_certificates().unwrap_or_default().iter().map(|c| c.clone().into_owned()).collect();
        let member = who(&shown)?;
        let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .keep_alive_while_idle(true);
        let close = Stop::new();
        let stream = TokioIo::new(Cuttable::new(stream, &close));
        let shaking = tokio::time::timeout(HANDSHAKE, builder.handshake(stream)).await;
        let shaken = shaking.map_err(|_| "it did not begin to serve".to_owned())?;
        let (send, connection) = shaken.map_err(|error| because(&error))?;
        let link = Arc::new(Link {
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            from,
            since: Instant::now(),
            send,
            places: Arc::new(Semaphore::new(self.limits.streams)),
            broken: AtomicBool::new(false),
            close,
        });
        drop(place);
        let _listed = Listed::enter(self, &member, Arc::clone(&link));
        // Whoever was forgotten since was not in the list then.
        who(&shown)?;
        tracing::info!(member, %from, "an agent is connected");
        // Also when the relay itself is stopped: then this future is dropped.
        let _closed = Closing(&link.close);
        tokio::select! {
            ended = connection => ended.map_err(|error| format!("{member}: {}", because(&error))),
            () = link.close.asked() => Ok(()),
        }
    }

    fn members(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a stream to what the agents of `member` call `target`.
    ///
    /// When no agent is there, it waits for one to come (back); when a connection turns out to be dead, it tries another:
    /// nothing was sent yet, so nothing is sent twice.
    ///
    /// # Errors
    ///
    /// When there is none after [`Limits::patience`], or the agent cannot reach the target.
    pub async fn open(&self, member: &str, target: &str) -> Result<Stream, Error> {
        let began = Instant::now();
        let mut last = None;
        let mut slow = Vec::new();
        let opening = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let (link, traffic, others) = match self.choose(member, &slow) {
                    Ok(chosen) => chosen,
                    Err(error) => {
                        last.get_or_insert(error);
                        // A place that becomes free tells nobody.
                        let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
                        continue;
                    }
                };
                let Ok(place) = Arc::clone(&link.places).try_acquire_owned() else { continue };
                let asking = ask(&link, member, target);
                let asked = if others {
                    match tokio::time::timeout(HEDGE, asking).await {
                        Ok(asked) => asked,
                        Err(_) => {
                            slow.push(link.number);
                            continue;
                        }
                    }
                } else {
                    asking.await
                };
                match asked {
                    Ok(upgraded) => return Ok(Stream::new(upgraded, traffic, place)),
                    Err(refused @ Error::Refused { .. }) => return Err(refused),
                    Err(error) => {
                        link.broken.store(true, Ordering::Relaxed);
                        link.close.ask();
                        last = Some(error);
                    }
                }
            }
        };
        match tokio::time::timeout(self.limits.patience, opening).await {
            Ok(answer) => answer,
            Err(_) => Err(last.unwrap_or_else(|| Error::Broken {
                member: member.to_owned(),
                why: format!("no answer in {:.1} s", began.elapsed().as_secs_f64()),
            })),
        }
    }

    /// The connection with the most free places, of those that are not slow; and whether there is another such.
    fn choose(&self, member: &str, slow: &[u64]) -> Result<(Arc<Link>, Arc<Traffic>, bool), Error> {
        let members = self.members();
        let known = members.get(member);
        let links = known.map_or(&[][..], |known| &known.links);
        let usable = links.iter().filter(|link| !link.broken.load(Ordering::Relaxed) && !link.send.is_closed());
        let best = usable.max_by_key(|link| {
            let free = link.places.available_permits();
            (free > 0, !slow.contains(&link.number), free)
        });
        if let (Some(known), Some(link)) = (known, best) {
            if link.places.available_permits() == 0 {
                return Err(Error::Full { member: member.to_owned(), streams: self.limits.streams });
            }
            let others = links.iter().any(|other| other.number != link.number && !slow.contains(&other.number));
            return Ok((Arc::clone(link), Arc::clone(&known.traffic), others));
        }
        let lost = known.and_then(|known| known.lost).map(|lost| lost.elapsed());
        Err(Error::Absent { member: member.to_owned(), lost })
    }

    /// Who is, or was, connected.
    #[must_use]
    pub fn status(&self) -> Vec<Member> {
        self.members().iter().map(|(name, known)| known.seen(name)).collect()
    }

    /// A member, if one of its agents is connected or was.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<Member> {
        self.members().get(name).map(|known| known.seen(name))
    }

    /// Closes the connections of a member, and forgets it. Its agents may come again: who must not is for `who` to say.
    pub fn forget(&self, member: &str) {
        if let Some(known) = self.members().remove(member) {
            known.links.iter().for_each(|link| link.close.ask());
        }
    }
}

/// Asks for one stream.
async fn ask(link: &Link, member: &str, target: &str) -> Result<hyper::upgrade::Upgraded, Error> {
    let broken = |why: String| Error::Broken { member: member.to_owned(), why };
    let refused =
        |why: &str| Error::Refused { member: member.to_owned(), target: target.to_owned(), why: why.to_owned() };
    let request = Request::connect(target).body(Empty::new()).map_err(|_| refused("this is no name of a target"))?;
    let mut send = link.send.clone();
    send.ready().await.map_err(|error| broken(because(&error)))?;
    let response = send.send_request(request).await.map_err(|error| broken(because(&error)))?;
    if response.status() != StatusCode::OK {
        let why = response.headers().get(WHY).and_then(|why| why.to_str().ok());
        return Err(refused(why.unwrap_or(response.status().as_str())));
    }
    hyper::upgrade::on(response).await.map_err(|error| broken(because(&error)))
}

/// Closes a connection when it goes.
struct Closing<'a>(&'a Stop);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.ask();
    }
}

/// A connection in the list of its member, for as long as this lives.
struct Listed<'a> {
    relay: &'a Relay,
    member: String,
    number: u64,
}

impl<'a> Listed<'a> {
    fn enter(relay: &'a Relay, member: &str, link: Arc<Link>) -> Self {
        let listed = Self { relay, member: member.to_owned(), number: link.number };
        let mut members = relay.members();
        let known = members.entry(member.to_owned()).or_default();
        known.lost = None;
        known.links.push(link);
        if known.links.len() > relay.limits.connections {
            // Who dials anew has most likely lost the old one without the relay knowing it yet.
            known.links[0].close.ask();
        }
        drop(members);
        relay.changed.notify_waiters();
        listed
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        if let Some(known) = self.relay.members().get_mut(&self.member) {
            known.links.retain(|link| link.number != self.number);
            if known.links.is_empty() {
                known.lost = Some(Instant::now());
            }
        }
        self.relay.changed.notify_waiters();
    }
}
