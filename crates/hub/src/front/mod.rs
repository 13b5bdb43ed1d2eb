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

mod caller;

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use percent_encoding::percent_decode_str;
use rustls::ServerConfig;
use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::{Status, meta};
use stolos_pki::tls::ClientAuth;
use stolos_pki::{Authority, Credentials, Roots};
use stolos_serve::listen::{self, Aside, Peer};
use stolos_serve::{Listener, Stop, Stream, because};
use tokio::sync::{Semaphore, watch};

use crate::admit::Others;
use crate::control::{Review, Running};
use crate::gate::authority;
use crate::model;
use crate::proxy::{Audit, Body, Call, Limits, Proxy};
use crate::{Error, MANAGER, install, label};
use caller::Callers;

const NAMESPACE: &str = "karmada-system";
/// The ConfigMap that says where members are reached, and which of several hubs leads; the role that lets everybody read
/// it has the same name.
const NOTICE: &str = "stolos-hub";
/// Where API servers say by which authority their clients' certificates are good (Kubernetes 1.34).
const AUTHENTICATION: (&str, &str) = ("kube-system", "extension-apiserver-authentication");
/// How long what is shown in TLS is used before it is made anew, with the clients' authority as it is then; the certificate
/// is good for much longer.
const SHOWN: Duration = Duration::from_secs(3_600);
const CERTIFICATE: Duration = Duration::from_secs(2 * 86_400);
/// After so long that is tried again where it failed.
const AGAIN: Duration = Duration::from_secs(60);
/// How long it is taken to be true where the hub that leads is.
const KNOWN: Duration = Duration::from_secs(2);
/// How long a connection to it may take to be made.
const REACHED: Duration = Duration::from_secs(2);
/// How many questions are answered at once, and how long one may take to arrive: nobody is asked who they are.
const REVIEWS: usize = 64;
const ARRIVED: Duration = Duration::from_secs(10);
/// The largest question: an object as it was and as it is to be, each of at most 3 MiB.
const LARGEST: usize = 8 << 20;
const MEMBERS: &str = "/apis/cluster.karmada.io/v1alpha1/clusters/";

/// Where a hub on somebody else's API listens, and what it is called there.
pub struct Address {
    /// The socket.
    pub listener: Listener,
    /// Names and addresses that it is reached by, for its certificate; the first is the one that is told.
    pub names: Vec<String>,
    /// The Service in the API server's own cluster that leads here, if one does.
    pub service: Option<Service>,
    /// Where other hubs reach this one, if that is not where it listens.
    pub peer: Option<IpAddr>,
    /// Who this one is among several.
    pub identity: String,
}

/// A Service, as `namespace/name[:port]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its port; 443 where none is named.
    pub port: u16,
}

impl std::str::FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no Service; write NAMESPACE/NAME[:PORT]");
        let (place, port) = match text.rsplit_once(':') {
            Some((place, port)) => (place, port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?),
            None => (text, 443),
        };
        let (namespace, name) = place.split_once('/').ok_or_else(wrong)?;
        if !(meta::check_label(namespace).is_empty() && meta::check_label(name).is_empty()) {
            return Err(wrong());
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned(), port })
    }
}

/// Where members of a hub on somebody else's API are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// `host:port`.
    pub address: String,
    /// The authority of its certificate (PEM).
    pub authority: String,
}

/// Where members are reached, of a hub that has no API of its own; nothing of one that has.
///
/// # Errors
///
/// When the API refuses or does not answer.
pub async fn notice(api: &kube::Client) -> Result<Option<Notice>, Error> {
    let found = objects::get(api, &Resource::named("v1", "ConfigMap")?, Some(NAMESPACE), NOTICE).await?;
    let text = |found: &Value, key: &str| found["data"][key].as_str().map(str::to_owned);
    Ok(found.and_then(|it| Some(Notice { address: text(&it, "address")?, authority: text(&it, "authority")? })))
}

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
        let told = names.first().cloned().unwrap_or_else(|| "localhost".to_owned());
        let peer = peer.or(Some(bound.ip()).filter(|ip| !ip.is_unspecified())).map(|ip| ip.to_string());
        let front = Arc::new(Self {
            client: client.clone(),
            authority,
            address: place(&told, bound),
            peer: place(&peer.unwrap_or(told), bound),
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

    /// How the API server is told to ask here before it writes.
    pub(crate) fn hook(&self) -> Value {
        let bundle = BASE64_STANDARD.encode(self.authority.roots_pem());
        match &self.service {
            Some(Service { namespace, name, port }) => json!({"caBundle": bundle,
                "service": {"namespace": namespace, "name": name, "port": port, "path": "/review"}}),
            None => json!({"caBundle": bundle, "url": format!("https://{}/review", self.address)}),
        }
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

    /// Says where members are reached, to everybody who is known to the API.
    async fn tell(&self) -> Result<(), Error> {
        let metadata = json!({"name": NOTICE, "namespace": NAMESPACE, "labels": {label::SYSTEM: "true"}});
        const RBAC: &str = "rbac.authorization.k8s.io";
        let all = [
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
                "data": {"address": self.address, "authority": self.authority.roots_pem(),
                    "leader": self.identity, "peer": self.peer}}),
            json!({"apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": metadata,
                "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NOTICE],
                    "verbs": ["get"]}]}),
            json!({"apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding", "metadata": metadata,
                "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": NOTICE},
                "subjects": [{"apiGroup": RBAC, "kind": "Group", "name": "system:authenticated"}]}),
        ];
        for object in &all {
            objects::apply(&self.client, &Resource::of(object)?, object, MANAGER, true).await?;
        }
        Ok(())
    }

    /// Makes anew what is shown in TLS: its own certificate, and whose clients' certificates are believed.
    async fn show(&self) -> Result<(), Error> {
        let config_maps = Resource::named("v1", "ConfigMap")?;
        let (namespace, name) = AUTHENTICATION;
        let clients = match objects::get(&self.client, &config_maps, Some(namespace), name).await {
            Ok(found) => found.and_then(|found| Some(found["data"]["client-ca-file"].as_str()?.to_owned())),
            Err(error) if error.is_forbidden() => {
                tracing::warn!(error = because(&error), "clients' certificates are good for nothing here, tokens are");
                None
            }
            Err(error) => return Err(error.into()),
        };
        let failed = |error: stolos_pki::Error| Error::Front(format!("could not make its certificate: {error}"));
        let mut names = self.names.clone();
        if let Some(Service { namespace, name, .. }) = &self.service {
            names.extend([format!("{name}.{namespace}.svc"), format!("{name}.{namespace}"), name.clone()]);
        }
        let addresses: Vec<IpAddr> = names.iter().filter_map(|name| name.parse().ok()).collect();
        names.retain(|name| name.parse::<IpAddr>().is_err());
        let own =
            self.authority.sign_server(&names, &addresses, None, CERTIFICATE, SystemTime::now()).map_err(failed)?;
        let own = Credentials::from_pem(&own.chain_pem(), own.key_pem().map_err(failed)?.expose()).map_err(failed)?;
        let clients = match clients {
            Some(pem) => ClientAuth::Named(Roots::from_pem(&pem).map_err(failed)?),
            None => ClientAuth::None,
        };
        let shown = stolos_pki::tls::server(&own, clients, &[b"h2", b"http/1.1"]).map_err(failed)?;
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(shown);
        Ok(())
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

    /// Answers the API server that asks whether something may be written.
    async fn review(&self, request: Request<Incoming>) -> Response<Body> {
        let Ok(_turn) = self.reviews.try_acquire() else {
            return said(&Status::too_many_requests("too much is asked at once", 1));
        };
        let arriving = Limited::new(request.into_body(), LARGEST).collect();
        let body = match tokio::time::timeout(ARRIVED, arriving).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) => return said(&Status::bad_request(error.to_string())),
            Err(_) => return said(&Status::timeout("the question has not arrived in time", 1)),
        };
        let asked: Value = match serde_json::from_slice(&body) {
            Ok(asked) => asked,
            Err(error) => return said(&Status::bad_request(format!("this is no AdmissionReview: {error}"))),
        };
        let leading = match &*self.part.borrow() {
            Part::Leads(leading) => Some(Arc::clone(leading)),
            _ => None,
        };
        let answer = match leading {
            Some(leading) => (leading.review)(&asked),
            None => match self.others(&asked).await {
                Ok(known) => crate::admit::review(&asked, &known),
                Err(error) => return said(&Status::unavailable(because(&error))),
            },
        };
        plain(StatusCode::OK, "application/json", answer.to_string())
    }

    /// What there is that one that is asked about may contradict: a hub that stands by keeps nothing in mind.
    async fn others(&self, asked: &Value) -> Result<Others, Error> {
        let mut others = Others::default();
        match asked["request"]["kind"]["kind"].as_str().unwrap_or_default() {
            kind @ "ResourceInterpreterCustomization" => {
                let plural = "resourceinterpretercustomizations";
                others.customizations = self.all("config.karmada.io/v1alpha1", kind, plural).await?;
            }
            kind @ "ClusterTaintPolicy" => {
                others.taint_policies = self.all("policy.karmada.io/v1alpha1", kind, "clustertaintpolicies").await?;
            }
            _ => {}
        }
        Ok(others)
    }

    /// All objects of a kind of the hub's that can be read.
    async fn all<T: serde::de::DeserializeOwned>(
        &self,
        version: &str,
        kind: &str,
        plural: &str,
    ) -> Result<Vec<T>, Error> {
        let resource = Resource {
            api_version: version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            namespaced: false,
        };
        let all = objects::list(&self.client, &resource, None, None).await?;
        Ok(all.iter().filter_map(|object| model::read(object).ok().map(|(object, _)| object)).collect())
    }

    /// Where the hub that leads is reached; nothing where nobody has said it.
    async fn place_of(&self, leader: &str) -> Option<String> {
        let known = self.leader.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((read, who, place)) = known
            && who == leader
            && read.elapsed() < KNOWN
        {
            return Some(place);
        }
        let config_maps = Resource::named("v1", "ConfigMap").ok()?;
        let reading = objects::get(&self.client, &config_maps, Some(NAMESPACE), NOTICE);
        let found = tokio::time::timeout(REACHED, reading).await.ok()?.ok()??;
        let place = found["data"]["peer"].as_str().filter(|_| found["data"]["leader"] == leader)?.to_owned();
        // Where both are told the same, such as a load balancer, a connection would come back here, again and again.
        if place == self.peer {
            return None;
        }
        let known = (Instant::now(), leader.to_owned(), place.clone());
        *self.leader.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        Some(place)
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

/// `host:port`.
fn place(host: &str, bound: SocketAddr) -> String {
    let port = bound.port();
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
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

    #[test]
    fn a_service_is_named_as_people_write_it() {
        let service = |text: &str| text.parse::<Service>().map(|s| format!("{} {} {}", s.namespace, s.name, s.port));
        assert_eq!(service("stolos/hub").unwrap(), "stolos hub 443");
        assert_eq!(service("stolos/hub:8443").unwrap(), "stolos hub 8443");
        for text in ["hub", "stolos/hub:0", "stolos/hub:x", "/hub", "a/b/c"] {
            assert_eq!(service(text).unwrap_err(), format!("`{text}` is no Service; write NAMESPACE/NAME[:PORT]"));
        }
    }
}
