//! The agent in a member that cannot be dialled: gets a certificate of the hub's, keeps it fresh, and keeps the tunnel.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use stolos_pki::{Certificate, Credentials, Roots, SpiffeId, WorkloadRequest};
use stolos_serve::{Net, Stop, handshake, net};
use stolos_tunnel::PROTOCOL;
use stolos_tunnel::agent::Config;
pub use stolos_tunnel::agent::{News, Target};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

pub use super::store::Store;
use super::{API, Certified, LARGEST, Question, Registration, Renewal, TRUST_DOMAIN};
use crate::Error;
use crate::member::{Credential, Joining};

/// How long asking the hub for something may take.
const ASKING: Duration = Duration::from_secs(30);
/// How often the age of the certificate is looked at, and how long until a renewal that failed is tried again.
const LOOKED: Duration = Duration::from_secs(60);
/// When it is looked at first: an agent that never runs for long has to renew it, too.
const LOOKED_FIRST: Duration = Duration::from_secs(2);
/// The age at which a certificate is renewed: long before it ends, so that a hub may be away for weeks.
const RENEWED: Duration = Duration::from_secs(86_400);
/// How many streams the hub may have open at once.
const STREAMS: u32 = 1024;

/// Where the hub's door is.
#[derive(Clone)]
pub struct Hub {
    /// Where sockets come from.
    pub net: Arc<dyn Net>,
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// Who an agent is to the hub: what [`Identity::load`] finds or [`register`] gets.
#[derive(Clone)]
pub struct Identity {
    store: Store,
    root: String,
    own: Arc<RwLock<Arc<Credentials>>>,
}

/// What is said when an agent registers.
pub struct Registering {
    /// The one-time token.
    pub token: stolos_pki::Secret,
    /// SHA-256 of the hub's authority, as `hub token create` prints it (`sha256:…` or the hex alone).
    pub fingerprint: String,
    /// What is said of the cluster.
    pub joining: Joining,
    /// How the hub gets in; nothing where it knows that, and the token is for this member.
    pub credential: Option<Credential>,
}

impl Identity {
    /// What an earlier run of an agent of `member` kept in `store`.
    ///
    /// # Errors
    ///
    /// When something is there that cannot be read or used, or is another member's; [`Error::Ended`] when the certificate is
    /// over.
    pub async fn load(store: &Store, member: &str, now: SystemTime) -> Result<Option<Self>, Error> {
        let Some((own, root)) = store.read().await? else { return Ok(None) };
        let own = Credentials::from_pem(own.expose(), own.expose()).map_err(|error| store.failed(error))?;
        let whose = own.leaf().uris().iter().filter_map(|uri| SpiffeId::parse(uri).ok()).next();
        let whose = whose.map(|id| id.service_account.split('.').next().unwrap_or_default().to_owned());
        if whose.as_deref() != Some(member) {
            let whose = whose.unwrap_or_else(|| "nobody".to_owned());
            return Err(store.failed(format!("it is the identity of `{whose}`, not of `{member}`")));
        }
        if let Ok(over) = now.duration_since(own.leaf().not_after()) {
            let ended =
                jiff::Timestamp::try_from(own.leaf().not_after()).map(|end| end.to_string()).unwrap_or_default();
            let days = over.as_secs() / 86_400;
            return Err(Error::Ended(format!("its certificate ended on {ended}, {days} days ago")));
        }
        let own = Arc::new(RwLock::new(Arc::new(own)));
        Ok(Some(Self { store: store.clone(), root, own }))
    }

    fn own(&self) -> Arc<Credentials> {
        Arc::clone(&self.own.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over a certificate, when it is kept: whoever starts again finds the newest, or the one before.
    async fn take(&self, key: &stolos_pki::Secret, chain: &str) -> Result<(), Error> {
        let fresh = Credentials::from_pem(chain, key.expose()).map_err(|error| self.store.failed(error))?;
        let own = stolos_pki::Secret::new(format!("{}{chain}", key.expose()));
        self.store.write(&own, &self.root).await?;
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(())
    }

    fn tls(&self, protocol: &[u8]) -> Result<Arc<ClientConfig>, Error> {
        let roots = Roots::from_pem(&self.root).map_err(|error| self.store.failed(error))?;
        stolos_pki::tls::client_by_name(Some(&self.own()), &roots, &[protocol]).map_err(|e| self.store.failed(e))
    }

    /// Whether it is a day old, or two thirds of its life are over.
    fn is_old(&self, now: SystemTime) -> bool {
        let own = self.own();
        let (from, until) = (own.leaf().not_before(), own.leaf().not_after());
        let life = until.duration_since(from).unwrap_or_default();
        now >= from + (life * 2 / 3).min(RENEWED)
    }
}

/// Gets a certificate for a token, and keeps it in `store`.
///
/// The hub is known by its authority's fingerprint alone: the chain that it shows must have that certificate in it, and
/// the connection that carries the token is made anew with it as the only root.
///
/// # Errors
///
/// When the hub is not reached, is another one, or does not let it in.
pub async fn register(hub: &Hub, registering: Registering, store: &Store) -> Result<Identity, Error> {
    store.prepare()?;
    let root = root(hub, &registering.fingerprint).await?;
    let request = request(&registering.joining.name)?;
    let body = Registration {
        token: registering.token.expose().to_owned(),
        request: request.csr_pem.clone(),
        joining: registering.joining,
        credential: registering.credential,
    };
    let certified: Certified =
        ask(hub, by_root(hub, &root)?, "/register", &body).await?.map_err(|said| said.into_error(hub))?;
    let key = request.key.to_pem();
    let own = Credentials::from_pem(&certified.chain, key.expose()).map_err(|error| unreached(hub, error))?;
    let identity = Identity { store: store.clone(), root, own: Arc::new(RwLock::new(Arc::new(own))) };
    identity.take(&key, &certified.chain).await?;
    Ok(identity)
}

/// Asks whether a token would let a member in with this `id` (the UID of its `kube-system`), without using it up: whoever
/// is refused has made nothing in the member then.
///
/// # Errors
///
/// As [`register`].
pub async fn may_register(
    hub: &Hub,
    token: &stolos_pki::Secret,
    fingerprint: &str,
    (member, id): (&str, &str),
) -> Result<(), Error> {
    let root = root(hub, fingerprint).await?;
    let question = Question { token: token.expose().to_owned(), name: member.to_owned(), id: id.to_owned() };
    let answer: serde_json::Value =
        ask(hub, by_root(hub, &root)?, "/ask", &question).await?.map_err(|said| said.into_error(hub))?;
    drop(answer);
    Ok(())
}

/// TLS towards a hub that is known by its authority, from one that has no certificate yet.
fn by_root(hub: &Hub, root: &str) -> Result<Arc<ClientConfig>, Error> {
    let roots = Roots::from_pem(root).map_err(|error| unreached(hub, error))?;
    stolos_pki::tls::client_by_name(None, &roots, &[b"http/1.1"]).map_err(|error| unreached(hub, error))
}

fn request(member: &str) -> Result<WorkloadRequest, Error> {
    let id = SpiffeId::new(TRUST_DOMAIN, crate::member::CREDENTIALS, member);
    WorkloadRequest::new(&id).map_err(|error| Error::Agents(format!("could not make a key: {error}")))
}

fn unreached(hub: &Hub, why: impl ToString) -> Error {
    Error::Agents(format!("could not ask the hub at {}:{}: {}", hub.host, hub.port, why.to_string()))
}

/// The hub's authority, which it must show.
async fn root(hub: &Hub, fingerprint: &str) -> Result<String, Error> {
    let wanted = fingerprint.strip_prefix("sha256:").unwrap_or(fingerprint).to_lowercase();
    let looking = async {
        let stream = reach(hub).await.map_err(|error| error.to_string())?;
        handshake::shown(stream, &hub.host, &["http/1.1"]).await
    };
    let shown = tokio::time::timeout(ASKING, looking).await.unwrap_or_else(|_| Err("it does not answer".to_owned()));
    let shown = shown.map_err(|why| unreached(hub, why))?;
    let certificates = shown.into_iter().filter_map(|der| Certificate::from_der(der.into()).ok());
    let root = certificates.into_iter().find(|certificate| certificate.fingerprint() == wanted);
    root.map(|root| root.pem()).ok_or_else(|| {
        unreached(hub, format!("it is another hub, or somebody between: it shows no authority with sha256:{wanted}"))
    })
}

async fn reach(hub: &Hub) -> io::Result<stolos_serve::Stream> {
    net::reach(&*hub.net, &hub.host, hub.port).await
}

/// What the hub said instead.
struct No {
    status: StatusCode,
    why: String,
}

impl No {
    fn into_error(self, hub: &Hub) -> Error {
        match self.status {
            StatusCode::UNAUTHORIZED => Error::Token(self.why),
            status => unreached(hub, format!("it said {status}: {}", self.why)),
        }
    }
}

async fn ask<T: DeserializeOwned>(
    hub: &Hub,
    tls: Arc<ClientConfig>,
    path: &str,
    body: &impl Serialize,
) -> Result<Result<T, No>, Error> {
    let body = serde_json::to_vec(body).map_err(|error| unreached(hub, error))?;
    let name = server_name(hub)?;
    let asking = async {
        let stream = TlsConnector::from(tls).connect(name, reach(hub).await?).await?;
        let (mut send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        let request = Request::post(path)
            .header(header::HOST, &hub.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .map_err(io::Error::other)?;
        let talking = async {
            let response = send.send_request(request).await.map_err(io::Error::other)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), LARGEST).collect().await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((status, body.to_bytes()))
        };
        let (answer, _) = tokio::join!(talking, connection);
        answer
    };
    let answer = tokio::time::timeout(ASKING, asking).await;
    let (status, body) = answer.map_err(|_| unreached(hub, "no answer"))?.map_err(|error| unreached(hub, error))?;
    if status != StatusCode::OK {
        return Ok(Err(No { status, why: String::from_utf8_lossy(&body).into_owned() }));
    }
    serde_json::from_slice(&body).map(Ok).map_err(|error| unreached(hub, error))
}

fn server_name(hub: &Hub) -> Result<ServerName<'static>, Error> {
    ServerName::try_from(hub.host.clone()).map_err(|error| unreached(hub, error))
}

/// Keeps the tunnel, and the certificate that opens it, until `stop`. Streams lead to `api` (host and port of the
/// member's API server) and nowhere else.
///
/// # Errors
///
/// When what is kept cannot be used; [`Error::Ended`] when the hub takes its certificate no more.
pub async fn run(
    hub: Hub,
    identity: Identity,
    member: &str,
    api: Target,
    stop: Stop,
    news: impl Fn(News) + Send + Sync,
) -> Result<(), Error> {
    let tls = RwLock::new(identity.tls(PROTOCOL)?);
    let tls = Arc::new(tls);
    let current = Arc::clone(&tls);
    let config = Config {
        net: Arc::clone(&hub.net),
        host: hub.host.clone(),
        port: hub.port,
        name: server_name(&hub)?,
        tls: Arc::new(move || Arc::clone(&current.read().unwrap_or_else(PoisonError::into_inner))),
        targets: BTreeMap::from([(API.to_owned(), api)]),
        streams: STREAMS,
    };
    // A connection that was made and is lost: why, the hub says to who asks it for a certificate.
    let (lost, reached) = (Notify::new(), AtomicBool::new(false));
    let heard = |heard: News| {
        match heard {
            News::Connected => reached.store(true, Ordering::Relaxed),
            News::Lost { .. } if reached.swap(false, Ordering::Relaxed) => lost.notify_one(),
            News::Lost { .. } => {}
        }
        news(heard);
    };
    let end = stop.child();
    let renewing = async {
        let mut pause = LOOKED_FIRST;
        loop {
            tokio::select! {
                () = tokio::time::sleep(std::mem::replace(&mut pause, LOOKED)) => if !identity.is_old(SystemTime::now()) { continue },
                () = lost.notified() => {}
                () = stop.asked() => return Ok(()),
            }
            match renew(&hub, &identity, member).await {
                Ok(fresh) => *tls.write().unwrap_or_else(PoisonError::into_inner) = fresh,
                Err(error @ Error::Ended(_)) => {
                    end.ask();
                    return Err(error);
                }
                Err(error) => tracing::warn!(%error, "the certificate could not be renewed; trying again"),
            }
        }
    };
    tokio::join!(stolos_tunnel::agent::run(config, end.clone(), heard), renewing).1
}

async fn renew(hub: &Hub, identity: &Identity, member: &str) -> Result<Arc<ClientConfig>, Error> {
    let request = request(member)?;
    let asked = Renewal { request: request.csr_pem.clone() };
    let certified: Certified = match ask(hub, identity.tls(b"http/1.1")?, "/renew", &asked).await? {
        Ok(certified) => certified,
        Err(said) if said.status == StatusCode::FORBIDDEN => return Err(Error::Ended(said.why)),
        Err(said) => return Err(said.into_error(hub)),
    };
    identity.take(&request.key.to_pem(), &certified.chain).await?;
    identity.tls(PROTOCOL)
}
