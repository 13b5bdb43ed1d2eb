//! Member clusters: how they join and leave, how they are reached, what they say of themselves.

mod join;
mod status;
mod unjoin;

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use stolos_cluster::objects::Resource;
use stolos_k8s::meta;
use stolos_serve::Net;

pub use join::{Joining, join, ready, role};
pub use unjoin::{Left, unjoin};

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

/// A client of the member that a Cluster and its Secret describe. Nothing is sent yet.
pub(crate) fn client(cluster: &Value, secret: &Value, net: Arc<dyn Net>) -> Result<kube::Client, Error> {
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
    Ok(stolos_cluster::client(config, net)?)
}
