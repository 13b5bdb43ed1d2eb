//! The names and labels that Stolos gives, and how it knows its own again.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use stolos_k8s::istio::RemoteSecret;
pub use stolos_k8s::istio::{
    CACERTS_SECRET, DRAINED_ANNOTATION as DRAINED, MANAGED_BY_LABEL, MESH_LABEL, READER_SERVICE_ACCOUNT,
    ROOT_CONFIG_MAP, SYSTEM_NAMESPACE, UPGRADING_ANNOTATION as UPGRADING,
};

/// The field manager of every server-side apply.
pub const MANAGER: &str = "stolos";
/// Label of what `credential create` made, with the credential's name: nobody plans it, and nobody takes it away but who
/// revokes it, or tears the mesh down.
pub const CREDENTIAL_LABEL: &str = "stolos.dev/credential";
/// The ConfigMap, in each cluster, that remembers which clusters the mesh is made of.
pub const MEMBERSHIP: &str = "stolos-mesh";
/// The field manager of that annotation: an apply neither sets it nor takes it away.
pub const DRAINER: &str = "stolos-drain";
/// The namespace of the agent that dials a hub, its Deployment, and the Secret with its certificate.
pub const AGENT: &str = "stolos-agent";
/// Where the samples run.
pub const SAMPLE_NAMESPACE: &str = "sample";

/// `object` with the labels that say whose it is.
#[must_use]
pub fn ours(mesh: &str, mut object: Value) -> Value {
    object["metadata"]["labels"][MANAGED_BY_LABEL] = MANAGER.into();
    object["metadata"]["labels"][MESH_LABEL] = mesh.into();
    object
}

/// Whether Stolos made `object` for `mesh`: both labels say so. Nothing else is ever deleted.
#[must_use]
pub fn is_owned(mesh: &str, object: &Value) -> bool {
    let labels = &object["metadata"]["labels"];
    labels[MANAGED_BY_LABEL] == MANAGER && labels[MESH_LABEL] == mesh
}

/// Since when a cluster is drained, if it is.
#[must_use]
pub fn drained(state: &crate::ClusterState) -> Option<&str> {
    let namespace = state.objects.get(&crate::ObjectKey::new("v1", "Namespace", None, SYSTEM_NAMESPACE))?;
    namespace["metadata"]["annotations"][DRAINED].as_str()
}

/// The revision that an upgrade under way leads to, if one is.
#[must_use]
pub fn upgrading(state: &crate::ClusterState) -> Option<&str> {
    let namespace = state.objects.get(&crate::ObjectKey::new("v1", "Namespace", None, SYSTEM_NAMESPACE))?;
    namespace["metadata"]["annotations"][UPGRADING].as_str()
}

/// The mesh that `object` was made for, if Stolos made it.
pub(crate) fn mesh_of(object: &Value) -> Option<&str> {
    let labels = &object["metadata"]["labels"];
    labels[MESH_LABEL].as_str().filter(|_| labels[MANAGED_BY_LABEL] == MANAGER)
}

/// Whether Stolos has applied anything to `object`.
pub(crate) fn is_touched(object: &Value) -> bool {
    let entries = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    entries.iter().any(|entry| entry["manager"] == MANAGER && entry["operation"] == "Apply")
}

/// The Secret, in a cluster that is read, that stands for the cluster `reader`: tokens are bound to it, so that
/// deleting it revokes them.
#[must_use]
pub fn peer_secret(reader: &str) -> String {
    format!("stolos-peer-{reader}")
}

/// The Secret, in a cluster that reads, with the credential for the cluster `read`.
#[must_use]
pub fn remote_secret_name(read: &str) -> String {
    stolos_k8s::istio::remote_secret_name(read)
}

/// A value of a Secret, decoded.
#[must_use]
pub fn secret_text(secret: &Value, key: &str) -> Option<String> {
    let data = BASE64_STANDARD.decode(secret["data"][key].as_str()?).ok()?;
    String::from_utf8(data).ok()
}

/// The kubeconfig inside a remote secret. All names in it are the cluster's, as istiod expects.
#[must_use]
pub fn link_kubeconfig(cluster: &str, server: &str, authority: &str, token: &str) -> String {
    let remote = RemoteSecret {
        namespace: SYSTEM_NAMESPACE.to_owned(),
        cluster: cluster.to_owned(),
        server: server.to_owned(),
        ca_pem: authority.to_owned(),
        tls_server_name: None,
        token: token.to_owned(),
    };
    remote.kubeconfig()
}

/// What a remote secret's credential says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credential {
    /// Seconds since 1970.
    pub(crate) issued: i64,
    /// Seconds since 1970.
    pub(crate) expires: i64,
    /// UID of the Secret the token is bound to.
    pub(crate) bound_to: Option<String>,
    /// UID of the service account.
    pub(crate) account: Option<String>,
}

/// Reads the claims of a service account token, without judging its signature: that is the API server's part.
pub(crate) fn claims(token: &str) -> Option<Credential> {
    let payload = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: Value = serde_json::from_slice(&payload).ok()?;
    let kubernetes = &claims["kubernetes.io"];
    Some(Credential {
        issued: claims["iat"].as_i64()?,
        expires: claims["exp"].as_i64()?,
        bound_to: kubernetes["secret"]["uid"].as_str().map(str::to_owned),
        account: kubernetes["serviceaccount"]["uid"].as_str().map(str::to_owned),
    })
}

/// For how many seconds a service account token was granted, by its own words.
#[must_use]
pub fn token_life(token: &str) -> Option<u64> {
    let claims = claims(token)?;
    u64::try_from(claims.expires - claims.issued).ok()
}

/// The token in a kubeconfig that [`link_kubeconfig`] wrote.
pub(crate) fn token_in(kubeconfig: &str) -> Option<String> {
    let quoted = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("token: "))?;
    serde_json::from_str(quoted).ok()
}

pub(crate) fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {}}})
}
