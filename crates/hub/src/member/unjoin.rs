//! How a member leaves the hub, also one that is dead.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;
use stolos_serve::{Net, because};

use super::CREDENTIALS;
use super::join::role;
use crate::kinds::{clusters, works};
use crate::{Error, label, name};

/// What a member that left still has of the hub's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// Objects that the hub brought and could not take back, such as `Deployment default/hello`.
    pub objects: Vec<String>,
    /// Why the hub's account is still there, if it is.
    pub account: Option<String>,
}

/// Takes a cluster out of the hub: what the hub brought goes with it where it can be reached, then the hub's account in
/// it. What could not be taken back is said.
///
/// # Errors
///
/// When there is no such cluster, the hub refuses, or it takes longer than `patience`.
pub async fn unjoin(hub: &kube::Client, name: &str, net: Arc<dyn Net>, patience: Duration) -> Result<Left, Error> {
    let cluster = objects::get(hub, &clusters(), None, name).await?;
    let cluster = cluster.ok_or_else(|| Error::NoCluster(name.to_owned()))?;
    let secrets = Resource::named("v1", "Secret")?;
    let secret = objects::get(hub, &secrets, Some(CREDENTIALS), name).await?;
    let ways = super::Ways { net, relay: None };
    let client = secret.as_ref().map(|secret| super::client(&cluster, secret, &ways));
    let brought = brought(hub, name).await?;
    objects::delete(hub, &clusters(), None, name, None).await?;
    // Of one that dials in the hub says itself what became of its account there.
    let mut said = None;
    let gone = async {
        while let Some(cluster) = objects::get(hub, &clusters(), None, name).await? {
            said = meta::annotation(&cluster, label::ACCOUNT_LEFT).map(str::to_owned).or(said.take());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok::<_, Error>(())
    };
    match tokio::time::timeout(patience, gone).await {
        Ok(gone) => gone?,
        Err(_) => {
            let works = objects::list(hub, &works(), Some(&name::execution_namespace(name)), None).await?;
            return Err(Error::NotYet {
                what: format!("take `{name}` out of the hub"),
                after: patience,
                left: format!("{} of its Works are still there", works.len()),
            });
        }
    }
    if super::is_pull(&cluster) {
        return Ok(match said.as_deref() {
            Some("") => Left::default(),
            Some(why) => Left { objects: brought, account: Some(why.to_owned()) },
            None => Left { objects: brought, account: Some("the hub has not said that it is gone".to_owned()) },
        });
    }
    let client = match client {
        Some(Ok(client)) => client,
        Some(Err(error)) => return Ok(Left { objects: brought, account: Some(error.to_string()) }),
        None => return Ok(Left { objects: brought, account: Some("the hub has no credential of it".to_owned()) }),
    };
    let mut left = Left::default();
    for object in &brought {
        if is_there(&client, object).await {
            left.objects.push(object.clone());
        }
    }
    left.account = dismiss(&client, name).await;
    Ok(left)
}

/// Ends the hub's account in a member. Why it is still there, if it is.
pub(crate) async fn dismiss(member: &kube::Client, name: &str) -> Option<String> {
    let roles = match Resource::named("rbac.authorization.k8s.io/v1", "ClusterRole") {
        Ok(roles) => roles,
        Err(error) => return Some(because(&error)),
    };
    // All that joining made is this role's.
    let role = role(name);
    match tokio::time::timeout(Duration::from_secs(10), objects::delete(member, &roles, None, &role, None)).await {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(because(&error)),
        Err(_) => Some("it does not answer".to_owned()),
    }
}

/// What the Works of a member bring there, as `Kind namespace/name` with its `apiVersion` before it.
async fn brought(hub: &kube::Client, name: &str) -> Result<Vec<String>, Error> {
    let works = objects::list(hub, &works(), Some(&name::execution_namespace(name)), None).await?;
    let manifests = works.iter().flat_map(|work| work["spec"]["workload"]["manifests"].as_array()).flatten();
    let mut all: Vec<_> = manifests.map(written).collect();
    all.sort();
    Ok(all)
}

fn written(object: &Value) -> String {
    let place = match meta::namespace(object) {
        "" => meta::name(object).to_owned(),
        namespace => format!("{namespace}/{}", meta::name(object)),
    };
    format!("{} {} {place}", meta::api_version(object), meta::kind(object))
}

/// Whether an object is still in a member; one that cannot be asked for is.
async fn is_there(client: &kube::Client, object: &str) -> bool {
    let mut words = object.split(' ');
    let (Some(version), Some(kind), Some(place)) = (words.next(), words.next(), words.next()) else { return true };
    let Ok(resource) = Resource::named(version, kind) else { return true };
    let (namespace, name) = place.split_once('/').map_or((None, place), |(n, name)| (Some(n), name));
    let asked = tokio::time::timeout(Duration::from_secs(5), objects::get(client, &resource, namespace, name)).await;
    !matches!(asked, Ok(Ok(None)))
}
