//! Member clusters: how they join and leave, how they are reached, what they say of themselves.

mod impersonate;
mod install;
mod join;
mod standing;
mod status;
mod unjoin;

use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use stolos_cluster::{Carried, Passage, Reach, Way};
use stolos_k8s::meta;
use stolos_serve::Net;
use stolos_tunnel::Relay;

pub use install::{AGENT, AGENT_NAMESPACE, install, registered, uninstall};
pub use join::{Credential, Joining, PULL, PUSH, check_name, credential, identity, join, ready, role};
pub use standing::{Standing, standings};
pub use unjoin::{Left, unjoin};

pub(crate) use impersonate::{Came, Let, Names};
pub(crate) use join::{enter, impersonator_role, may_join};
pub(crate) use status::{Kind, enablements, kinds, observe, summary};
pub(crate) use unjoin::dismiss;

use crate::Error;

/// The namespace, in the hub and in members, that credentials are in.
pub const CREDENTIALS: &str = "karmada-cluster";

/// How the hub reaches its members.
#[derive(Clone)]
pub struct Ways {
    /// Where sockets to those come from that it dials.
    pub net: Arc<dyn Net>,
    /// The ends of the tunnels of those that dial it.
    pub relay: Option<Arc<Relay>>,
}

/// A stream to a member's API server through its tunnel, for each connection.
struct Tunnel {
    relay: Arc<Relay>,
    member: String,
}

impl Way for Tunnel {
    fn open(&self) -> BoxFuture<'_, io::Result<Carried>> {
        Box::pin(async move {
            let stream = self.relay.open(&self.member, crate::gate::API).await.map_err(io::Error::other)?;
            Ok(Box::pin(stream) as Carried)
        })
    }
}

/// A client of the member that a Cluster and its Secret describe. Nothing is sent yet.
pub(crate) fn client(cluster: &Value, secret: &Value, ways: &Ways) -> Result<kube::Client, Error> {
    client_by(cluster, secret, secret, ways)
}

/// The same, of the account whose token is in `by`.
pub(crate) fn client_by(cluster: &Value, secret: &Value, by: &Value, ways: &Ways) -> Result<kube::Client, Error> {
    let mut config = config(cluster, secret)?;
    config.auth_info.token = Some(token(cluster, by)?.into());
    Ok(match reach(cluster, ways)? {
        Reach::Net(net) => stolos_cluster::client(config, net)?,
        Reach::Way(way) => stolos_cluster::client_over(&config, way)?,
    })
}

/// A way for others' requests to the same member, with the token in `by`.
pub(crate) fn passage(cluster: &Value, secret: &Value, by: &Value, ways: &Ways) -> Result<Passage, Error> {
    let token = token(cluster, by)?;
    Ok(Passage::new(&config(cluster, secret)?, &reach(cluster, ways)?, &token)?)
}

fn unusable(cluster: &Value, why: String) -> Error {
    Error::Credential { cluster: meta::name(cluster).to_owned(), why }
}

/// A text in a Secret.
fn data(cluster: &Value, secret: &Value, key: &str) -> Result<Option<String>, Error> {
    let Some(text) = secret["data"][key].as_str() else { return Ok(None) };
    let bytes = BASE64_STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    bytes.map(Some).ok_or_else(|| unusable(cluster, format!("`{key}` is no text in Base64")))
}

fn token(cluster: &Value, secret: &Value) -> Result<String, Error> {
    data(cluster, secret, "token")?.ok_or_else(|| unusable(cluster, "it has no `token`".into()))
}

/// Where the member is and how it is known; not yet who asks.
fn config(cluster: &Value, secret: &Value) -> Result<kube::Config, Error> {
    let endpoint = cluster["spec"]["apiEndpoint"].as_str().unwrap_or_default();
    let url = if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") };
    let url = url.parse().map_err(|_| unusable(cluster, format!("`{endpoint}` is no address")))?;
    let mut config = kube::Config::new(url);
    if let Some(bundle) = data(cluster, secret, "caBundle")?.filter(|bundle| !bundle.trim().is_empty()) {
        let certificates = CertificateDer::pem_slice_iter(bundle.as_bytes()).collect::<Result<Vec<_>, _>>();
        let certificates =
            certificates.map_err(|error| unusable(cluster, format!("`caBundle` is no certificate: {error}")))?;
        config.root_cert = Some(certificates.into_iter().map(|der| der.to_vec()).collect());
    }
    config.accept_invalid_certs = cluster["spec"]["insecureSkipTLSVerification"] == true;
    Ok(config)
}

/// How connections to the member are made.
fn reach(cluster: &Value, ways: &Ways) -> Result<Reach, Error> {
    if !is_pull(cluster) {
        // Dialled past the proxy it might answer, and nobody would know that the field does nothing.
        if cluster["spec"]["proxyURL"].as_str().is_some_and(|url| !url.is_empty()) {
            let why = "the hub dials its API server itself, and through no proxy; take it out, or let it dial in: `stolos agent`";
            return Err(Error::Proxied { cluster: meta::name(cluster).to_owned(), why });
        }
        return Ok(Reach::Net(Arc::clone(&ways.net)));
    }
    let member = meta::name(cluster).to_owned();
    match &ways.relay {
        Some(relay) => Ok(Reach::Way(Arc::new(Tunnel { relay: Arc::clone(relay), member }))),
        None => Err(unusable(cluster, "its agent dials a hub, and this is not the process that it dials".into())),
    }
}

/// Whether the member's agent dials the hub.
pub(crate) fn is_pull(cluster: &Value) -> bool {
    cluster["spec"]["syncMode"] == PULL
}
