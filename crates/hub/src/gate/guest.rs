//! Whose certificate is good: it names the member, and what it was a member by when it was signed.
//!
//! That is the UID of its Cluster, so that a certificate of one that has left stays over also when one of the same name
//! joins; or what [`end`] wrote into the Cluster since, when the certificates of a member were ended by hand.

use std::sync::Arc;

use rand::RngExt as _;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use stolos_cluster::objects;
use stolos_k8s::meta;
use stolos_pki::SpiffeId;
use stolos_pki::tls::peer_uri;

use super::{TRUST_DOMAIN, token};
use crate::member::{self, CREDENTIALS};
use crate::{Error, MANAGER, kinds, label};

/// The Cluster of a member, as the hub had it a moment ago.
pub(crate) type Known = Arc<dyn Fn(&str) -> Option<Arc<Value>> + Send + Sync>;

/// What is said of one without a certificate.
pub(super) const NOBODY: &str = "it shows no certificate of a member";

/// What certificates of a member's agents must be of.
pub(crate) fn epoch(cluster: &Value) -> &str {
    meta::annotation(cluster, label::AGENTS_EPOCH).unwrap_or(meta::uid(cluster))
}

/// Who an agent of a member is. No name of a member has a dot.
pub(super) fn identity(cluster: &Value) -> SpiffeId {
    SpiffeId::new(TRUST_DOMAIN, CREDENTIALS, format!("{}.{}", meta::name(cluster), epoch(cluster)))
}

/// The member that a certificate of ours is for, if it is good now; else why it is not.
pub(super) fn admitted(known: &Known, certificates: &[CertificateDer<'_>]) -> Result<String, String> {
    judged(known, &peer_uri(certificates).ok_or(NOBODY)?)
}

/// The same by what a certificate is for.
pub(super) fn judged(known: &Known, uri: &str) -> Result<String, String> {
    let id = SpiffeId::parse(uri).map_err(|error| error.to_string())?;
    let ours = id.trust_domain == TRUST_DOMAIN && id.namespace == CREDENTIALS;
    let parts = id.service_account.split_once('.').filter(|_| ours);
    let (name, of) = parts.ok_or_else(|| format!("`{uri}` is no member of this hub"))?;
    match known(name) {
        None => Err(format!("the hub has no cluster `{name}` any more")),
        Some(cluster) if epoch(&cluster) != of => {
            Err(format!("the certificate of this agent of `{name}` was ended: another took its place since"))
        }
        Some(_) => Ok(name.to_owned()),
    }
}

/// Ends the certificates of all agents of a member, their connections, and the tokens for more of them.
///
/// # Errors
///
/// When there is no such member, its agents do not dial, or the hub's API refuses or does not answer.
pub async fn end(hub: &kube::Client, name: &str) -> Result<(), Error> {
    let cluster = objects::get(hub, &kinds::clusters(), None, name).await?;
    let cluster = cluster.ok_or_else(|| Error::NoCluster(name.to_owned()))?;
    if !member::is_pull(&cluster) {
        return Err(Error::Joined(format!("the hub dials `{name}`: it has no agents with certificates")));
    }
    let next = format!("{:032x}", rand::rng().random::<u128>());
    let patch = json!({"metadata": {"annotations": {label::AGENTS_EPOCH: next}}});
    objects::merge(hub, &kinds::clusters(), (None, name), &patch, false, MANAGER).await?;
    token::forget(hub, name).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(uid: &str, annotations: Value) -> Value {
        json!({"metadata": {"name": "eu", "uid": uid, "annotations": annotations}})
    }

    #[test]
    fn a_certificate_ends_with_the_membership_that_it_is_of() {
        let before = identity(&cluster("uid-1", json!({}))).to_string();
        let rotated = cluster("uid-1", json!({label::AGENTS_EPOCH: "2"}));
        let after = identity(&rotated).to_string();
        for (what, uri, now, good) in [
            ("a member", &before, Some(cluster("uid-1", json!({"other": "x"}))), true),
            ("gone", &before, None, false),
            ("another of its name", &before, Some(cluster("uid-2", json!({}))), false),
            ("ended by hand", &before, Some(rotated.clone()), false),
            ("after that", &after, Some(rotated.clone()), true),
            ("ended by hand, and then gone and back", &after, Some(cluster("uid-2", json!({}))), false),
            ("no member", &"spiffe://hub.stolos.dev/ns/other/sa/eu.uid-1".into(), Some(rotated.clone()), false),
            ("of another trust domain", &before.replace("hub.", "other."), Some(cluster("uid-1", json!({}))), false),
            ("of nothing", &"spiffe://hub.stolos.dev/ns/karmada-cluster/sa/eu".into(), Some(rotated.clone()), false),
        ] {
            let now = now.map(Arc::new);
            let known: Known = Arc::new(move |name| now.clone().filter(|_| name == "eu"));
            assert_eq!(judged(&known, uri).is_ok(), good, "{what}: {:?}", judged(&known, uri));
        }
    }
}
