//! What a hub serves itself where the API is somebody else's: that API server asks here before it writes Karmada's kinds
//! ([`crate::admit::review`]), and people reach members here ([`crate::proxy`]), as they do below a hub's own API.
//!
//! Karmada serves `clusters` and `clusters/proxy` by an API server of its own, which the other one passes requests on to
//! (an APIService). On an API that is somebody else's Clusters are a CustomResourceDefinition, and one API server cannot
//! serve a group and version in both ways: so members have an address of their own, which a ConfigMap tells
//! ([`notice`]).
//!
//! # Flow
//!
//! 1. Of several hubs each listens. One that stands by carries a connection to the one that leads, untouched: what members
//!    that dial out are reached by is there alone. Where that one cannot be reached, it answers what it can itself.
//! 2. `POST /review` is answered by what decides in a hub of its own, too. Nobody is asked who they are: it says what any
//!    reader of the policies could say.
//! 3. `…/clusters/<name>/proxy/<path>`: who asks is what that API server says of their token, or their certificate
//!    ([`caller`]); whether they may is asked of it, too. From there on it is as below a hub's own API.

mod address;
mod caller;
mod notice;
mod review;
mod shown;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use percent_encoding::percent_decode_str;
use rustls::ServerConfig;
use stolos_k8s::Status;
use stolos_pki::Authority;
use stolos_serve::listen::{self, Aside, Peer};
use stolos_serve::{Listener, Stop, Stream, because};
use tokio::sync::{Semaphore, watch};

use crate::control::{Review, Running};
use crate::gate::authority;
use crate::install::{self, NAMESPACE};
use crate::proxy::{Audit, Body, Call, Limits, Proxy};
use crate::{Error, told};
pub use address::{Address, Service};
use caller::Callers;
use notice::NOTICE;
pub use notice::{Notice, notice};
use review::REVIEWS;
use shown::SHOWN;

/// After so long that is tried again where it failed.
const AGAIN: Duration = Duration::from_secs(60);
/// How long it may take to find the hub that leads, and to connect to it.
const REACHED: Duration = Duration::from_secs(2);
/// What is below this leads into members.
const MEMBERS: &str = "/apis/cluster.karmada.io/v1alpha1/clusters/";

/// What this hub does among several.
#[derive(Clone)]
enum Part {
    /// Nobody is known to lead.
    Waits,
    Leads(Arc<Leading>),
    StandsBy {
        leader: String,
    },
}

struct Leading {
    review: Review,
    proxy: Proxy,
}

/// What a hub serves on somebody else's API.
pub struct Front {
    client: kube::Client,
    authority: Authority,
    names: Vec<String>,
    service: Option<Service>,
    /// `host:port`, as it is told to people.
    address: String,
    /// `host:port`, as other hubs dial it.
    peer: String,
    identity: String,
    audit: Audit,
    callers: Callers,
    reviews: Semaphore,
    part: watch::Sender<Part>,
    shown: Mutex<Option<Arc<ServerConfig>>>,
    /// Where who leads was, and when that was read.
    leader: Mutex<Option<(Instant, String, String)>>,
}

impl Front {
    /// Begins to serve, until `stop`. What becomes of it is for whoever awaits the future that is returned.
    ///
    /// # Errors
    ///
    /// When the API refuses or does not answer, or its authority cannot be used.
    pub async fn open(
        client: &kube::Client,
        address: Address,
        audit: Audit,
        stop: &Stop,
    ) -> Result<(Arc<Self>, BoxFuture<'static, ()>), Error> {
        let Address { listener, names, service, peer, identity } = address;
        install::namespaces(client).await?;
        let authority = authority::of(client).await?;
        let bound = listener.local_addr().map_err(|error| Error::Front(error.to_string()))?;
        let name = names.first().cloned().unwrap_or_else(|| "localhost".to_owned());
        let peer = peer.or(Some(bound.ip()).filter(|ip| !ip.is_unspecified())).map(|ip| ip.to_string());
        let front = Arc::new(Self {
            client: client.clone(),
            authority,
            address: told::place(&name, bound.port()),
            peer: told::place(&peer.unwrap_or(name), bound.port()),
            names,
            service,
            identity,
            audit,
            callers: Callers::new(client.clone()),
            reviews: Semaphore::new(REVIEWS),
            part: watch::Sender::new(Part::Waits),
            shown: Mutex::new(None),
            leader: Mutex::new(None),
        });
        front.show().await?;
        let serving = Arc::clone(&front).serve(listener, stop.clone()).boxed();
        Ok((front, serving))
    }

    /// `host:port`, as it is told to people.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// This hub leads from now on: members are reached here.
    pub(crate) async fn leads(&self, running: &Running) {
        let proxy = running.proxy(Limits::default(), self.audit.clone());
        self.part.send_replace(Part::Leads(Arc::new(Leading { review: running.review(), proxy })));
        if let Err(error) = self.tell().await {
            tracing::warn!(
                error = because(&error),
                "where members are reached could not be said in {NAMESPACE}/{NOTICE}"
            );
        }
    }

    /// Another one leads.
    pub(crate) fn stands_by(&self, leader: &str) {
        self.part.send_if_modified(|part| {
            let same = matches!(part, Part::StandsBy { leader: known } if known == leader);
            if !same {
                *part = Part::StandsBy { leader: leader.to_owned() };
            }
            !same
        });
    }

    /// This hub leads no longer, or nobody knows who does.
    pub(crate) fn waits(&self) {
        self.part.send_if_modified(|part| !matches!(std::mem::replace(part, Part::Waits), Part::Waits));
    }

    async fn serve(self: Arc<Self>, listener: Listener, stop: Stop) {
        let tls = {
            let front = Arc::clone(&self);
            let first = front.shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let Some(first) = first else { return };
            Arc::new(move || {
                let shown = front.shown.lock().unwrap_or_else(PoisonError::into_inner);
                shown.clone().unwrap_or_else(|| Arc::clone(&first))
            })
        };
        let settings = listen::Settings { tls: Some(tls), aside: Some(self.clone()), ..listen::Settings::default() };
        let front = Arc::clone(&self);
        let serving = listen::http(listener, settings, stop.clone(), move |peer: Peer| {
            let (front, peer) = (Arc::clone(&front), Arc::new(peer));
            service_fn(move |request| {
                let (front, peer) = (Arc::clone(&front), Arc::clone(&peer));
                async move { Ok::<_, Infallible>(front.answer(request, &peer).await) }
            })
        });
        let renewing = async {
            let mut pause = SHOWN;
            loop {
                tokio::time::sleep(pause).await;
                pause = SHOWN;
                if let Err(error) = self.show().await {
                    tracing::warn!(error = because(&error), "the hub goes on with the certificate that it has");
                    pause = AGAIN;
                }
            }
        };
        tokio::select! {
            () = serving => {}
            () = renewing => {}
        }
    }

    async fn answer(&self, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        let path = request.uri().path().to_owned();
        if path == "/review" && request.method() == Method::POST {
            return self.review(request).await;
        }
        if matches!(path.as_str(), "/healthz" | "/readyz" | "/livez") {
            return plain(StatusCode::OK, "text/plain", "ok".into());
        }
        let Some((member, base, rest)) = member(&path) else { return said(&Status::no_such_path()) };
        let leading = match &*self.part.borrow() {
            Part::Leads(leading) => Ok(Arc::clone(leading)),
            Part::StandsBy { leader } => {
                Err(format!("this hub stands by, and {leader}, which leads, is not reached from here"))
            }
            Part::Waits => Err("no hub leads just now".to_owned()),
        };
        let leading = match leading {
            Ok(leading) => leading,
            Err(why) => return said(&Status::unavailable(why)),
        };
        let (caller, by) = match self.callers.of(peer, request.headers()).await {
            Ok(callers) => callers,
            Err(status) => return said(&status),
        };
        let (base, rest) = (base.to_owned(), rest.to_owned());
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        let call = Call { caller: caller.clone(), by, member: member.clone(), base, rest, request };
        let may =
            |verb| async move { self.callers.may(&caller, verb, &member).await.map_err(|no| Box::new(said(&no))) };
        leading.proxy.answer(call, may).await
    }
}

impl Aside for Front {
    /// Carries a connection to the hub that leads, for as long as it does.
    fn take(&self, mut stream: Stream) -> BoxFuture<'_, Option<Stream>> {
        Box::pin(async move {
            let mut part = self.part.subscribe();
            let Part::StandsBy { leader } = part.borrow_and_update().clone() else { return Some(stream) };
            let Some(place) = self.place_of(&leader).await else { return Some(stream) };
            let dialled = tokio::time::timeout(REACHED, tokio::net::TcpStream::connect(&place)).await;
            let Ok(Ok(mut there)) = dialled else {
                tracing::debug!(leader, place, "the hub that leads is not reached");
                return Some(stream);
            };
            let _ = there.set_nodelay(true);
            tokio::select! {
                ended = tokio::io::copy_bidirectional(&mut stream, &mut there) => if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to the hub that leads broke");
                },
                _ = part.changed() => {}
            }
            None
        })
    }
}

/// The member, the path up to and with `proxy`, and the rest, of a path that leads into a member.
fn member(path: &str) -> Option<(String, &str, &str)> {
    let (name, below) = path.strip_prefix(MEMBERS)?.split_once('/')?;
    let rest = below.strip_prefix("proxy")?;
    if name.is_empty() || !(rest.is_empty() || rest.starts_with('/')) {
        return None;
    }
    let name = percent_decode_str(name).decode_utf8().ok()?.into_owned();
    Some((name, &path[..path.len() - rest.len()], rest))
}

fn plain(code: StatusCode, media: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Full::from(text).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(media));
    response
}

fn said(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    plain(code, "application/json", status.to_value().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_into_a_member_is_found_as_it_came() {
        for (path, expected) in [
            ("eu/proxy", Some(("eu", "eu/proxy", ""))),
            ("eu/proxy/api/v1/pods%2Fa", Some(("eu", "eu/proxy", "/api/v1/pods%2Fa"))),
            ("e%75/proxy/version", Some(("eu", "e%75/proxy", "/version"))),
            ("eu/proxying", None),
            ("eu", None),
            ("/proxy/api", None),
        ] {
            let path = format!("{MEMBERS}{path}");
            let found = member(&path);
            let found = found.map(|(name, base, rest)| (name, base.strip_prefix(MEMBERS).unwrap(), rest));
            assert_eq!(found, expected.map(|(name, base, rest)| (name.to_owned(), base, rest)), "{path}");
        }
        assert!(member("/apis/cluster.karmada.io/v1alpha1/clusters").is_none());
    }
}
