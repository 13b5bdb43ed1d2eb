//! Towards the host: choose one, send, and once more where that does no harm.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Request, Response, Uri, Version};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::body::RequestBody;
use super::exchange::Exchange;
use super::headers::{self, Local};
use super::request::scheme;
use crate::balance;
use crate::config::{Cluster, Host, Protocol, Side};
use crate::outlier::Outcome;
use crate::pool::{self, Busy, GivenUp, Leased, Sender};
use crate::route::{self, Failure, Forward};
use crate::state::Shared;
use crate::tls::Use;

/// Sends the request to a host of the route's cluster, and to another while the policy allows it.
pub(super) async fn send(
    exchange: &mut Box<Exchange>,
    forward: &Forward,
    host: &route::Host,
    parts: &Parts,
) -> Result<Response<Incoming>, Local> {
    let connection = Arc::clone(&exchange.connection);
    let shared = &connection.shared;
    let name = match forward.clusters.as_slice() {
        [(only, _)] => only,
        several => match balance::weighted(several.iter().map(|(_, weight)| *weight), rand::random()) {
            Some(at) => &several[at].0,
            None => return Err(Local { status: forward.no_cluster, ..headers::NO_CLUSTER }),
        },
    };
    let Some(cluster) = shared.cluster(name).await else {
        exchange.no_cluster.clone_from(name);
        return Err(Local { status: forward.no_cluster, ..headers::NO_CLUSTER });
    };
    exchange.cluster = Some(Arc::clone(&cluster));
    let upgrade = parts.headers.contains_key(header::UPGRADE);
    let usage = match cluster.protocol {
        Protocol::Http1 => Use::Http1,
        Protocol::Http2 => Use::Http2,
        Protocol::Same if parts.version == Version::HTTP_2 => Use::Http2,
        Protocol::Same => Use::Http1,
    };
    if usage == Use::Http2 && upgrade {
        // Only an extended CONNECT (RFC 8441) could carry it; Envoy refuses it too unless that is allowed.
        return Err(headers::NO_UPGRADE);
    }
    let policy = &forward.retry;
    let deadline = forward.timeout.map(|timeout| Instant::from_std(exchange.began) + timeout);
    let mut tried: Vec<Arc<Host>> = Vec::new();
    loop {
        let avoid: &[Arc<Host>] = if policy.other_host { &tried } else { &[] };
        let Some(target) = cluster.pick(Some(connection.arrived.destination), shared.now(), avoid) else {
            return Err(headers::NO_HOST);
        };
        exchange.attempts += 1;
        exchange.host = Some(Arc::clone(&target));
        exchange.about = None;
        exchange.busy = Some(Busy::with(&target));
        let last = exchange.attempts > policy.most;
        // Where nothing else bounds the wait, a silent host does.
        let silence = if connection.http.idle.is_zero() { Duration::from_secs(3600) } else { connection.http.idle };
        let now = Instant::now();
        let per_try = policy.per_try.map(|limit| now + limit);
        let limit = [per_try, deadline].into_iter().flatten().fold(now + silence, Instant::min);
        let attempt = Attempt { shared, cluster: &cluster, host: &target, usage, attempt_count: host.attempt_count };
        // Where silence may be answered with another host, it is looked into.
        let watch = !last && policy.after_failure(Failure::Reset, &parts.method) && repeatable(exchange);
        let failed = tokio::select! {
            biased;
            result = attempt.run(exchange, parts) => result,
            why = pool::given_up(shared, &cluster, &target, usage, limit, watch) => Err(match why {
                GivenUp::Late => Failed::plain(Failure::Timeout),
                GivenUp::Dead => Failed { why: "the host no longer answers".into(), ..Failed::plain(Failure::Reset) },
            }),
        };
        let failed = match failed {
            Ok(response) => {
                target.alive_at.store(shared.now(), std::sync::atomic::Ordering::Relaxed);
                cluster.note(&target, Outcome::of_status(response.status().as_u16()), shared.now());
                let again = !last && policy.after_response(response.status(), response.headers());
                if !again || !repeatable(exchange) {
                    return Ok(response);
                }
                // The connection goes with the response nobody reads.
                exchange.leased = None;
                None
            }
            Err(failed) => {
                exchange.failure.clone_from(&failed.why);
                exchange.leased = None;
                if failed.failure != Failure::NotSent {
                    cluster.note(&target, Outcome::GatewayError, shared.now());
                }
                Some(failed)
            }
        };
        exchange.busy = None;
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if let Some(failed) = &failed
            && (last || late || !policy.after_failure(failed.failure, &parts.method) || !repeatable(exchange))
        {
            return Err(failed.local());
        }
        shared.metrics.retries.inc();
        tried.push(target);
        let (base, most) = policy.back_off;
        let most = base.saturating_mul(1 << exchange.attempts.min(10)).min(most);
        tokio::time::sleep(most.mul_f64(rand::random::<f64>() / 2.0)).await;
    }
}

/// Whether all of the request that was read is still there.
fn repeatable(exchange: &Exchange) -> bool {
    exchange.tee.as_ref().is_none_or(|tee| tee.is_whole())
}

/// An attempt without a response.
struct Failed {
    failure: Failure,
    why: String,
    overflow: bool,
}

impl Failed {
    fn plain(failure: Failure) -> Self {
        Self { failure, why: String::new(), overflow: false }
    }

    fn local(&self) -> Local {
        match self.failure {
            _ if self.overflow => headers::OVERFLOW,
            Failure::Connect => headers::NO_CONNECTION,
            Failure::Timeout => headers::TIMEOUT,
            Failure::NotSent | Failure::Reset | Failure::Refused => headers::RESET,
        }
    }
}

struct Attempt<'a> {
    shared: &'a Arc<Shared>,
    cluster: &'a Arc<Cluster>,
    host: &'a Arc<Host>,
    usage: Use,
    attempt_count: bool,
}

impl Attempt<'_> {
    async fn run(&self, exchange: &mut Exchange, parts: &Parts) -> Result<Response<Incoming>, Failed> {
        // A kept connection may be closing just now. What never left is sent on the next one; each is tried once.
        const STALE: usize = 8;
        let mut failed = Failed::plain(Failure::NotSent);
        for _ in 0..STALE {
            let leased =
                pool::lease(self.shared, self.cluster, self.host, self.usage).await.map_err(|error| Failed {
                    failure: Failure::Connect,
                    overflow: matches!(error, pool::Error::Overflow),
                    why: error.to_string(),
                })?;
            let reused = leased.reused;
            exchange.about = Some(leased.about.clone());
            failed = match self.on(leased, exchange, parts).await {
                Ok(response) => return Ok(response),
                Err(failed) => failed,
            };
            if failed.failure != Failure::NotSent {
                break;
            }
            if !reused {
                // It took the connection and closed it at once.
                self.cluster.note(self.host, Outcome::GatewayError, self.shared.now());
                break;
            }
        }
        Err(failed)
    }

    async fn on(
        &self,
        mut leased: Leased,
        exchange: &mut Exchange,
        parts: &Parts,
    ) -> Result<Response<Incoming>, Failed> {
        let body = match &exchange.tee {
            None => RequestBody::empty(),
            Some(tee) => tee.read().ok_or_else(|| Failed::plain(Failure::Reset))?,
        };
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.headers_mut() = parts.headers.clone();
        let connection = &exchange.connection;
        if let Some(said) =
            connection.shared.said.as_ref().filter(|_| connection.http.side == Side::Outbound && self.host.is_in_mesh())
        {
            request.headers_mut().insert(&headers::PEER, said.clone());
        }
        if self.attempt_count {
            request.headers_mut().insert(&headers::ATTEMPT_COUNT, HeaderValue::from(exchange.attempts));
        }
        let result = match &mut leased.sender {
            Sender::Http1(sender) => {
                *request.uri_mut() = parts.uri.clone();
                sender.try_send_request(request).await.map_err(|mut e| (e.take_message().is_some(), e.into_error()))
            }
            Sender::Http2(sender) => {
                let host = request.headers_mut().remove(header::HOST);
                let authority = host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(&exchange.authority);
                let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
                let scheme = scheme(&exchange.connection);
                let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build();
                *request.uri_mut() = uri.map_err(|_| Failed::plain(Failure::Reset))?;
                *request.version_mut() = Version::HTTP_2;
                sender.try_send_request(request).await.map_err(|mut e| (e.take_message().is_some(), e.into_error()))
            }
        };
        match result {
            Ok(response) => {
                exchange.leased = Some(leased);
                Ok(response)
            }
            Err((unsent, error)) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                let failure = match unsent {
                    true => Failure::NotSent,
                    false if never_looked_at(&error) => Failure::Refused,
                    false => Failure::Reset,
                };
                Err(Failed { failure, why: format!("{error}: {cause}"), overflow: false })
            }
        }
    }
}

/// Whether the host said that it has not acted on a request: it refused the stream, or went away in order before it
/// came to it (RFC 9113, sections 8.7 and 6.8). Any request may be sent again then, a gRPC call too.
fn never_looked_at(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let in_order = error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
            return in_order || error.reason() == Some(h2::Reason::REFUSED_STREAM);
        }
        cause = error.source();
    }
    false
}
