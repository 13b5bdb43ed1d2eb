//! What agents are answered at the door.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::FutureExt as _;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls_pki_types::CertificateDer;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stolos_cluster::objects;
use stolos_k8s::meta;
use stolos_pki::tls::{ClientAuth, Peers, peer_uri};
use stolos_pki::{Authority, Credentials, Roots};
use stolos_serve::Stop;
use stolos_tunnel::{Others, PROTOCOL, Relay, Who};
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::guest::{self, Known};
use super::{CERTIFICATE, Certified, LARGEST, Question, Registration, Renewal, TRUST_DOMAIN, token};
use crate::{Error, kinds, member};

/// How long the door's own certificate is used before it is made anew; it is good for twice as long.
const RENEWED: Duration = Duration::from_secs(86_400);
/// How long one that asks for a certificate may take for everything.
const ASKING: Duration = Duration::from_secs(30);
/// How long the hub may take to see a member that was let in.
const SEEN: Duration = Duration::from_secs(10);

/// Serves agents, in a task of `tasks`, until `stop`.
pub(super) fn begin(
    client: kube::Client,
    door: crate::control::Door,
    authority: Arc<Authority>,
    (relay, known): (&Arc<Relay>, Known),
    tasks: &TaskTracker,
    stop: &Stop,
) -> Result<(), Error> {
    let now = SystemTime::now();
    let made = Mutex::new((now, face(&authority, &door.names, now)?));
    let face = Face { authority: Arc::clone(&authority), names: door.names, made };
    let tls = Arc::new(move || face.current());
    let of_relay = Arc::clone(&known);
    let who: Arc<Who> = Arc::new(move |certificates: &[CertificateDer<'_>]| guest::admitted(&of_relay, certificates));
    let desk = Arc::new(Desk { client, authority, known });
    let others: Arc<Others> = Arc::new(move |stream, from| attend(Arc::clone(&desk), stream, from).boxed());
    tasks.spawn(Arc::clone(relay).serve(door.listener, tls, who, Some(others), stop.child()));
    Ok(())
}

/// What the door shows of itself.
struct Face {
    authority: Arc<Authority>,
    names: Vec<String>,
    made: Mutex<(SystemTime, Arc<ServerConfig>)>,
}

impl Face {
    fn current(&self) -> Arc<ServerConfig> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        if now.duration_since(made.0).is_ok_and(|age| age >= RENEWED) {
            match face(&self.authority, &self.names, now) {
                Ok(fresh) => *made = (now, fresh),
                Err(error) => tracing::warn!(%error, "the door keeps its old certificate"),
            }
        }
        Arc::clone(&made.1)
    }
}

fn face(authority: &Authority, names: &[String], now: SystemTime) -> Result<Arc<ServerConfig>, Error> {
    let failed = |error: stolos_pki::Error| Error::Agents(format!("could not make the door's certificate: {error}"));
    let addresses: Vec<IpAddr> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let names: Vec<String> = names.iter().filter(|name| name.parse::<IpAddr>().is_err()).cloned().collect();
    let own = authority.sign_server(&names, &addresses, None, RENEWED * 2, now).map_err(failed)?;
    // With the authority itself, which an agent that has only its fingerprint looks for.
    let chain = own.chain_pem() + authority.roots_pem();
    let own = Credentials::from_pem(&chain, own.key_pem().map_err(failed)?.expose()).map_err(failed)?;
    let roots = Roots::from_pem(authority.roots_pem()).map_err(failed)?;
    let clients = ClientAuth::Optional(roots, Peers::TrustDomains([TRUST_DOMAIN.to_owned()].into()));
    stolos_pki::tls::server(&own, clients, &[PROTOCOL, b"http/1.1"]).map_err(failed)
}

/// Who hands out certificates.
struct Desk {
    client: kube::Client,
    authority: Arc<Authority>,
    known: Known,
}

/// One connection of an agent that asks for something.
async fn attend(desk: Arc<Desk>, stream: TlsStream<stolos_serve::Stream>, from: SocketAddr) {
    let shown = peer_uri(stream.get_ref().1.peer_certificates().unwrap_or_default());
    let service = service_fn(move |request| {
        let (desk, shown) = (Arc::clone(&desk), shown.clone());
        async move { Ok::<_, Infallible>(desk.answer(request, shown).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).keep_alive(false);
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(ASKING, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%from, %error, "an agent's request broke off"),
        Err(_) => tracing::debug!(%from, "an agent's request took too long"),
    }
}

impl Desk {
    /// Answers one whose certificate, if any, is for `shown`.
    async fn answer(&self, request: Request<Incoming>, shown: Option<String>) -> Response<Full<Bytes>> {
        let text = |certified: &Certified| serde_json::to_string(certified).unwrap_or_default();
        let answer = match (request.method(), request.uri().path()) {
            (&Method::POST, "/ask") => self.asked(request).await.map(|()| "{}".to_owned()),
            (&Method::POST, "/register") => self.register(request).await.as_ref().map(text).map_err(Clone::clone),
            (&Method::POST, "/renew") => self.renew(request, shown).await.as_ref().map(text).map_err(Clone::clone),
            _ => Err((StatusCode::NOT_FOUND, "POST /ask, /register or /renew".to_owned())),
        };
        let (status, body) = match answer {
            Ok(body) => (StatusCode::OK, body),
            Err((status, why)) => (status, why),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }

    async fn asked(&self, request: Request<Incoming>) -> Result<(), (StatusCode, String)> {
        let asked: Question = read(request).await?;
        // Who has no token for it learns nothing about the name.
        token::check(&self.client, &asked.token, &asked.name).await.map_err(refused)?;
        member::may_join(&self.client, &asked.name, &asked.id).await.map_err(refused)
    }

    async fn register(&self, request: Request<Incoming>) -> Result<Certified, (StatusCode, String)> {
        let asked: Registration = read(request).await?;
        let name = asked.joining.name.clone();
        let token = token::check(&self.client, &asked.token, &name).await.map_err(refused)?;
        let cluster = match &asked.credential {
            Some(credential) => {
                // What is wrong with the name costs no token.
                member::may_join(&self.client, &name, &credential.id).await.map_err(refused)?;
                token.redeem(&self.client).await.map_err(refused)?;
                member::enter(&self.client, &asked.joining, credential, member::PULL).await.map_err(refused)?
            }
            None => {
                let cluster = self.cluster(&name).await?;
                if !member::is_pull(&cluster) || meta::deletion_timestamp(&cluster).is_some() {
                    let why = format!("`{name}` is dialled by the hub, or leaves it: it takes no agents");
                    return Err((StatusCode::CONFLICT, why));
                }
                token.redeem(&self.client).await.map_err(refused)?;
                cluster
            }
        };
        let certified = self.certify(&cluster, &asked.request)?;
        // Its agent dials at once, and must not be a stranger then.
        let seen = async {
            while (self.known)(&name).is_none_or(|known| guest::epoch(&known) != guest::epoch(&cluster)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(SEEN, seen).await;
        tracing::info!(member = name, "an agent was let in");
        Ok(certified)
    }

    async fn renew(
        &self,
        request: Request<Incoming>,
        shown: Option<String>,
    ) -> Result<Certified, (StatusCode, String)> {
        let no = |why: String| (StatusCode::FORBIDDEN, why);
        let shown = shown.ok_or_else(|| no(guest::NOBODY.to_owned()))?;
        let member = guest::judged(&self.known, &shown).map_err(no)?;
        let asked: Renewal = read(request).await?;
        // Its certificate may have been ended since: judged is by what the new one is made for.
        let cluster = Arc::new(self.cluster(&member).await?);
        let now = Arc::clone(&cluster);
        let known: Known = Arc::new(move |_| Some(Arc::clone(&now)));
        guest::judged(&known, &shown).map_err(no)?;
        self.certify(&cluster, &asked.request)
    }

    async fn cluster(&self, name: &str) -> Result<Value, (StatusCode, String)> {
        let known = objects::get(&self.client, &kinds::clusters(), None, name).await;
        let known = known.map_err(|error| refused(error.into()))?;
        known.ok_or_else(|| (StatusCode::FORBIDDEN, format!("the hub has no cluster `{name}` any more")))
    }

    fn certify(&self, cluster: &Value, request: &str) -> Result<Certified, (StatusCode, String)> {
        let id = guest::identity(cluster);
        let signed = self.authority.sign_workload(request, &id, CERTIFICATE, SystemTime::now());
        let signed = signed.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        // The authority, which is last, has the agent already.
        let chain = signed.split_last().map(|(_, chain)| chain.concat()).unwrap_or_default();
        Ok(Certified { chain })
    }
}

/// What is said of an error to one that is not let in yet: the hub's own troubles stay in its log.
fn refused(error: Error) -> (StatusCode, String) {
    match error {
        Error::Token(_) => (StatusCode::UNAUTHORIZED, error.to_string()),
        Error::Name { .. } | Error::Joined(_) => (StatusCode::CONFLICT, error.to_string()),
        error => {
            tracing::warn!(%error, "an agent could not be let in");
            (StatusCode::SERVICE_UNAVAILABLE, "the hub cannot do it now".to_owned())
        }
    }
}

async fn read<T: DeserializeOwned>(request: Request<Incoming>) -> Result<T, (StatusCode, String)> {
    let unreadable = |why: String| (StatusCode::BAD_REQUEST, why);
    let body = Limited::new(request.into_body(), LARGEST).collect().await.map_err(|e| unreadable(e.to_string()))?;
    serde_json::from_slice(&body.to_bytes()).map_err(|e| unreadable(e.to_string()))
}
