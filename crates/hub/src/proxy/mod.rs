//! Members' API servers behind the hub's: `…/clusters/<name>/proxy/<path>` (Karmada v1.18.2, subresource
//! `clusters/proxy`), for members that the hub dials and for those whose agents dial it.
//!
//! # Flow
//!
//! 1. The hub's API server knows the caller. May they do this verb ([`verb`]) to `clusters/proxy` of this member?
//! 2. A place, and the caller's rate ([`limits`]).
//! 3. On to the member in the caller's name: by impersonation, so that the member's own roles say what they may there.
//!    Who is `system:masters` in the hub asks in the hub's own name and may what the hub may; that group is nobody's
//!    beyond the hub. How the caller showed who they are stays in the hub ([`headers`]).
//! 4. The answer as it comes, streamed; upgrades are carried until one side ends.
//! 5. A line of the audit log ([`audit`]).

mod audit;
mod headers;
mod limits;
mod verb;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use stolos_cluster::{Passage, Unpassed};
use stolos_k8s::Status;
use stolos_k8s::status::Details;

use crate::control::Hub;
use crate::member::{self, CREDENTIALS};
use crate::name;
use audit::{Entry, Name, Record, Stage};
use limits::{Gauge, Place};

pub use audit::{Audit, Log};
pub use limits::Limits;

/// Bodies, in both directions.
pub type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// The group whose members an API server asks nothing.
const MASTERS: &str = "system:masters";
/// How long an answer may take to begin: what an API server gives its requests (60 s), and a little.
const ANSWER: Duration = Duration::from_secs(75);
/// For so long an agent that was there a moment ago is waited for.
const BLINK: Duration = Duration::from_secs(3);
/// How long an answer may take to begin of a member whose agent is not there just now.
const ANSWER_AFTER_BLINK: Duration = Duration::from_secs(5);
/// Refusals of one caller that are written: so many at once, then one a second. The others are counted, so that nobody
/// who may do nothing fills the log until older lines go.
const REFUSALS: Limits = Limits { open: usize::MAX, member: usize::MAX, rate: 1.0, burst: 60.0 };
/// Bytes copied at once in each direction of a session.
const COPY: usize = 32 << 10;

/// Who asks, as the hub's API server knows them.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Their name.
    pub name: String,
    /// Their groups.
    pub groups: Vec<String>,
}

/// What is asked.
pub struct Call {
    /// Who asks.
    pub caller: Caller,
    /// The name of who that really is, where they act for somebody else.
    pub by: Option<String>,
    /// The member.
    pub member: String,
    /// The path up to and with `proxy`.
    pub base: String,
    /// The path in the member, as it came: empty, or with a slash first.
    pub rest: String,
    /// The request; its URI counts for its query alone.
    pub request: Request<Body>,
}

/// Passes requests on to members.
pub struct Proxy {
    hub: Arc<Hub>,
    gauge: Arc<Gauge>,
    /// Of whom how many refusals are written.
    refusals: Arc<Gauge>,
    audit: Audit,
    ways: Mutex<HashMap<(String, Name), Way>>,
    /// Since when members have not been reached, of those whose agents do not tell it.
    away: Mutex<HashMap<String, Timestamp>>,
}

/// A passage, and what it was made of.
struct Way {
    made_of: [Value; 3],
    passage: Arc<Passage>,
}

impl Proxy {
    pub(crate) fn new(hub: Arc<Hub>, limits: Limits, audit: Audit) -> Self {
        Self {
            hub,
            gauge: Gauge::new(limits),
            refusals: Gauge::new(REFUSALS),
            audit,
            ways: Mutex::default(),
            away: Mutex::default(),
        }
    }

    /// Answers. `allowed` says whether the caller may do this verb to `clusters/proxy` of the member.
    pub async fn answer<F>(&self, call: Call, allowed: impl FnOnce(&'static str) -> F) -> Response<Body>
    where
        F: Future<Output = Result<(), Box<Response<Body>>>>,
    {
        let Call { caller, by, member, base, rest, request } = call;
        let upgrade = headers::upgrade(request.headers());
        let query = request.uri().query().unwrap_or_default().to_owned();
        let verb = verb::of(request.method(), &rest, &query, upgrade.is_some());
        let master = caller.groups.iter().any(|group| group == MASTERS);
        let name = if master { Name::Hub } else { Name::Caller };
        let mut record = self.audit.begin(Entry {
            time: audit::now(),
            stage: Stage::Begun,
            user: caller.name.clone(),
            groups: caller.groups.clone(),
            impersonated_by: by,
            member: member.clone(),
            name,
            verb: verb.unwrap_or("unknown"),
            path: if rest.is_empty() { "/".to_owned() } else { rest.clone() },
            code: None,
            duration_ms: None,
        });
        let Some(verb) = verb else {
            let method = request.method().as_str().to_lowercase();
            let resource = stolos_k8s::status::Resource::new("cluster.karmada.io", "clusters");
            return self.refused(record, Status::method_not_allowed(resource, &method));
        };
        if let Err(refusal) = allowed(verb).await {
            self.settle(record, refusal.status().as_u16());
            return *refusal;
        }
        if verb::leads_upwards(&rest) {
            return self.refused(record, Status::bad_request("a path in a member may not have `.` or `..` in it"));
        }
        if headers::size(request.headers()) > headers::LARGEST {
            let why = format!("the headers have more than {} bytes", headers::LARGEST);
            return self.refused(record, Status::plain(431, "BadRequest", why));
        }
        let place = match self.gauge.enter(&caller.name, &member, Instant::now()) {
            Ok(place) => place,
            Err(limits::TooMany { why, seconds }) => {
                return self.refused(record, Status::too_many_requests(why, seconds));
            }
        };
        if !master {
            self.hub.admit(&member, &caller).await;
        }
        let passage = match self.way(&member, name) {
            Ok(passage) => passage,
            Err(status) => return self.refused(record, *status),
        };
        let (mut head, body) = request.into_parts();
        let on_upgrade = head.extensions.remove::<OnUpgrade>();
        let caller = (!master).then_some(&caller);
        let Some(sent) = headers::to_member(&head.headers, upgrade.as_ref(), caller) else {
            return self
                .refused(record, Status::bad_request("the caller's name or groups cannot be told to the member"));
        };
        head.headers = sent;
        let path = if rest.is_empty() { "/" } else { rest.as_str() };
        let Ok(uri) = (if query.is_empty() { path.parse() } else { format!("{path}?{query}").parse() }) else {
            return self.refused(record, Status::bad_request("this is no path"));
        };
        head.uri = uri;
        let goes_on = verb::goes_on(verb, &rest, &query, upgrade.is_some());
        // What is not there yet may be followed: such an answer begins with the first line.
        let patience = if goes_on && verb == "get" { None } else { Some(ANSWER) };
        // A connection that was kept may have died since: what only reads is asked again, once. A session does more, and
        // is asked for by GET, too.
        let again = matches!(verb, "get" | "list" | "watch") && http_body::Body::is_end_stream(&body);
        let mut answer = match self.pass(&passage, head, body, &member, patience, again).await {
            Ok(answer) => answer,
            Err(status) => return failed(record, &status),
        };
        let status = answer.status();
        record.answered(status.as_u16());
        if goes_on && (status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS) {
            record.goes_on();
        }
        let sent = headers::to_caller(status, answer.headers(), &base);
        let mut response = if status == StatusCode::SWITCHING_PROTOCOLS {
            let Some(here) = on_upgrade else {
                return failed(record, &Status::bad_request("this connection cannot be upgraded"));
            };
            let there = hyper::upgrade::on(&mut answer);
            self.carry(here, there, (place, record));
            Response::new(empty())
        } else {
            Response::new(Guarded { body: answer.into_body(), _until: (place, record) }.boxed_unsync())
        };
        *response.status_mut() = status;
        *response.headers_mut() = sent;
        response
    }

    /// The passage to a member in this name.
    fn way(&self, member: &str, name: Name) -> Result<Arc<Passage>, Box<Status>> {
        let resource = stolos_k8s::status::Resource::new("cluster.karmada.io", "clusters");
        let cluster = self.hub.cluster_object(member).ok_or_else(|| Box::new(Status::not_found(resource, member)))?;
        let no =
            |why: String| Box::new(away(member, format!("the hub cannot use its credential of {member:?}: {why}")));
        let again = format!("joining again (`stolos hub join {member}`, `stolos agent {member}`) brings it");
        let secret = self.hub.secret(CREDENTIALS, member);
        let secret = secret.ok_or_else(|| no(format!("there is none; {again}")))?;
        let by = match name {
            Name::Hub => Arc::clone(&secret),
            Name::Caller => self
                .hub
                .secret(CREDENTIALS, &name::impersonator(member))
                .ok_or_else(|| no(format!("there is none by which others' requests are passed on; {again}")))?,
        };
        let made_of = [cluster["spec"].clone(), secret["data"].clone(), by["data"].clone()];
        let mut ways = self.ways.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (member.to_owned(), name);
        if let Some(way) = ways.get(&key).filter(|way| way.made_of == made_of) {
            return Ok(Arc::clone(&way.passage));
        }
        let made = member::passage(&cluster, &secret, &by, self.hub.ways()).map_err(|error| no(error.to_string()))?;
        let passage = Arc::new(made);
        ways.retain(|(known, _), _| self.hub.cluster_object(known).is_some());
        ways.insert(key, Way { made_of, passage: Arc::clone(&passage) });
        Ok(passage)
    }

    /// Sends a request to the member, and returns its answer as it begins.
    async fn pass(
        &self,
        passage: &Passage,
        head: http::request::Parts,
        body: Body,
        member: &str,
        patience: Option<Duration>,
        again: bool,
    ) -> Result<Response<Incoming>, Status> {
        if let Some(absent) = self.absent(member, BLINK) {
            return Err(absent);
        }
        let patience = if self.absent(member, Duration::ZERO).is_some() { Some(ANSWER_AFTER_BLINK) } else { patience };
        let second = again.then(|| {
            let mut second = Request::new(empty());
            *second.method_mut() = head.method.clone();
            *second.uri_mut() = head.uri.clone();
            *second.headers_mut() = head.headers.clone();
            second
        });
        let asking = async {
            match (passage.send(Request::from_parts(head, body)).await, second) {
                (Err(Unpassed::Broken(_)), Some(second)) => passage.send(second).await,
                (answer, _) => answer,
            }
        };
        let answer = match patience {
            Some(patience) => tokio::time::timeout(patience, asking).await,
            None => Ok(asking.await),
        };
        match answer {
            Ok(Ok(answer)) => {
                self.away().remove(member);
                Ok(answer)
            }
            Ok(Err(Unpassed::NotReached(why))) => {
                if let Some(absent) = self.absent(member, Duration::ZERO) {
                    return Err(absent);
                }
                let since = *self.away().entry(member.to_owned()).or_insert_with(Timestamp::now);
                Err(away(member, format!("cluster {member:?} has not been reached since {}: {why}", seconds(since))))
            }
            Ok(Err(Unpassed::Broken(why))) => Err(Status {
                details: Some(about(member)),
                ..Status::plain(
                    502,
                    "InternalError",
                    format!(
                        "the connection to cluster {member:?} broke, so that nobody knows what became of the request: {why}"
                    ),
                )
            }),
            Err(_) => Err(self.absent(member, Duration::ZERO).unwrap_or_else(|| Status {
                details: Some(about(member)),
                ..Status::timeout(format!("cluster {member:?} has not answered in time"), 1)
            })),
        }
    }

    /// That no agent of a member is there, of one that has agents; one that has gone less than `blink` ago may come back.
    fn absent(&self, member: &str, blink: Duration) -> Option<Status> {
        let relay = self.hub.ways().relay.as_ref()?;
        if !self.hub.cluster_object(member).is_some_and(|cluster| member::is_pull(&cluster)) {
            return None;
        }
        let since = match relay.member(member) {
            Some(known) if !known.connections.is_empty() => return None,
            Some(known) => {
                let lost = known.lost.unwrap_or_default();
                if lost < blink {
                    return None;
                }
                let since = Timestamp::now() - SignedDuration::try_from(lost).unwrap_or(SignedDuration::ZERO);
                format!("{} ({} s)", seconds(since), lost.as_secs())
            }
            None => "the hub is up".to_owned(),
        };
        Some(away(member, format!("no agent of cluster {member:?} has been connected since {since}")))
    }

    /// The answer to what no member was asked.
    fn refused(&self, record: Record, status: Status) -> Response<Body> {
        self.settle(record, status.code);
        answer(&status)
    }

    /// Ends the record of what no member was asked.
    fn settle(&self, mut record: Record, code: u16) {
        record.answered(code);
        let written = record.user().is_some_and(|user| self.refusals.enter(user, "", Instant::now()).is_ok());
        if !written {
            record.count();
        }
    }

    fn away(&self) -> std::sync::MutexGuard<'_, HashMap<String, Timestamp>> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries bytes between two upgraded connections until either ends, or the hub.
    fn carry(&self, here: OnUpgrade, there: OnUpgrade, until: (Place, Record)) {
        let stop = self.hub.stop();
        self.hub.tasks().spawn(async move {
            let carrying = async {
                let (here, there) = tokio::try_join!(here, there).map_err(std::io::Error::other)?;
                let (mut here, mut there) = (TokioIo::new(here), TokioIo::new(there));
                tokio::io::copy_bidirectional_with_sizes(&mut here, &mut there, COPY, COPY).await
            };
            tokio::select! {
                ended = carrying => if let Err(error) = ended {
                    tracing::debug!(%error, "a session ended");
                },
                () = stop.asked() => {}
            }
            drop(until);
        });
    }
}

/// 503: the member is not there now.
fn away(member: &str, why: String) -> Status {
    Status { details: Some(about(member)), ..Status::unavailable(why) }
}

fn about(member: &str) -> Details {
    Details {
        name: member.to_owned(),
        group: "cluster.karmada.io".to_owned(),
        kind: "clusters".to_owned(),
        ..Details::default()
    }
}

fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The answer to what a member was asked, and has not answered.
fn failed(mut record: Record, status: &Status) -> Response<Body> {
    record.answered(status.code);
    answer(status)
}

/// The answer that says why there is no other.
fn answer(status: &Status) -> Response<Body> {
    let text = serde_json::to_vec(&status.to_value()).unwrap_or_default();
    let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Not with 503: Kubernetes' clients would ask ten times more before they say that the member is away.
    let later = status.details.as_ref().and_then(|details| details.retry_after_seconds);
    if let Some(later) = later.filter(|_| status.code == 429) {
        response.headers_mut().insert(header::RETRY_AFTER, later.into());
    }
    response
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// An answer's body, with what is to go when it does.
struct Guarded<T> {
    body: Incoming,
    _until: T,
}

impl<T: Unpin> http_body::Body for Guarded<T> {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
