//! Member clusters: how they join and leave, how they are reached, what they say of themselves.

mod join;
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
use stolos_cluster::objects::Resource;
use stolos_cluster::{Carried, Way};
use stolos_k8s::meta;
use stolos_serve::Net;
use stolos_tunnel::Relay;

pub use join::{Credential, Joining, PULL, PUSH, credential, join, ready, role};
pub use unjoin::{Left, unjoin};

pub(crate) use join::{enter, may_join};
pub(crate) use status::{Kind, enablements, kinds, observe, summary};

use crate::Error;

/// The namespace, in the hub and in members, that credentials are in.
pub const CREDENTIALS: &str = "karmada-cluster";

/// Member clusters, as a kind.
pub(crate) fn clusters() -> Resource {
    Resource {
        api_version: "cluster.karmada.io/v1alpha1".into(),
        kind: "Cluster".into(),
        plural: "clusters".into(),
        namespaced: false,
    }
}

/// What members are to hold, as a kind.
pub(crate) fn works() -> Resource {
    Resource {
        api_version: "work.karmada.io/v1alpha1".into(),
        kind: "Work".into(),
        plural: "works".into(),
        namespaced: true,
    }
}

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
    let failed = |why: String| Error::Credential { cluster: meta::name(cluster).to_owned(), why };
    let endpoint = cluster["spec"]["apiEndpoint"].as_str().unwrap_or_default();
    let url = if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") };
    let url = url.parse().map_err(|_| failed(format!("`{endpoint}` is no address")))?;
    let data = |key: &str| -> Result<Option<String>, Error> {
        let Some(text) = secret["data"][key].as_str() else { return Ok(None) };
        let bytes = BASE64_STANDARD.decode(text).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        bytes.map(Some).ok_or_else(|| failed(format!("`{key}` is no text in Base64")))
    };
    let mut config = kube::Config::new(url);
    if let Some(bundle) = data("caBundle")?.filter(|bundle| !bundle.trim().is_empty()) {
        let certificates = CertificateDer::pem_slice_iter(bundle.as_bytes()).collect::<Result<Vec<_>, _>>();
        let certificates = certificates.map_err(|error| failed(format!("`caBundle` is no certificate: {error}")))?;
        config.root_cert = Some(certificates.into_iter().map(|der| der.to_vec()).collect());
    }
    config.accept_invalid_certs = cluster["spec"]["insecureSkipTLSVerification"] == true;
    let token = data("token")?.ok_or_else(|| failed("it has no `token`".into()))?;
    config.auth_info.token = Some(token.into());
    if cluster["spec"]["syncMode"] != PULL {
        return Ok(stolos_cluster::client(config, Arc::clone(&ways.net))?);
    }
    let member = meta::name(cluster).to_owned();
    match &ways.relay {
        Some(relay) => Ok(stolos_cluster::client_over(&config, Arc::new(Tunnel { relay: Arc::clone(relay), member }))?),
        None => Err(failed("its agent dials a hub, and this is not the process that it dials".into())),
    }
}
