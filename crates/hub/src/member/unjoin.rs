//! How a member leaves the hub, also one that is dead.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;
use stolos_serve::{Net, because};
use tokio::time::Instant;

use super::CREDENTIALS;
use super::join::role;
use crate::control::binding_of;
use crate::evict::guard;
use crate::kinds::{bindings, cluster_bindings, clusters, works};
use crate::mirror::Key;
use crate::{Error, label, name};

/// How often it is looked what keeps a member.
const LOOK: Duration = Duration::from_secs(1);
/// How long a member must have been kept by workloads that fit nowhere else until that is said.
const KEPT: Duration = Duration::from_secs(5);
/// Of so many Works at most it is asked why they are still there.
const MOST_KEPT: usize = 200;

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
/// When there is no such cluster, the hub refuses, nothing but workloads that fit nowhere else keeps it, or it takes longer
/// than `patience`. It leaves all the same as soon as it can.
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
    let (mut kept_since, mut looked) = (None, Instant::now());
    let gone = async {
        while let Some(cluster) = objects::get(hub, &clusters(), None, name).await? {
            said = meta::annotation(&cluster, label::ACCOUNT_LEFT).map(str::to_owned).or(said.take());
            tokio::time::sleep(Duration::from_millis(100)).await;
            if looked.elapsed() < LOOK {
                continue;
            }
            looked = Instant::now();
            let workloads = kept(hub, name).await?;
            if workloads.is_empty() {
                kept_since = None;
            } else if kept_since.get_or_insert(looked).elapsed() >= KEPT {
                return Err(Error::Kept { cluster: name.to_owned(), workloads });
            }
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

/// What keeps a member that leaves, if nothing else does: workloads that the hub has no other place for. It waits for
/// somebody who changes that.
async fn kept(hub: &kube::Client, name: &str) -> Result<Vec<String>, Error> {
    let works = objects::list(hub, &works(), Some(&name::execution_namespace(name)), None).await?;
    // Namespaces and others that the hub brings by itself have none.
    let of: Vec<Key> = works.iter().filter_map(binding_of).collect();
    let mut workloads = Vec::new();
    if of.len() > MOST_KEPT {
        return Ok(workloads);
    }
    for (namespace, name) in of {
        let found = match namespace.as_str() {
            "" => objects::get(hub, &cluster_bindings(), None, &name).await?,
            namespace => objects::get(hub, &bindings(), Some(namespace), &name).await?,
        };
        match found.as_ref().and_then(nowhere) {
            Some(workload) => workloads.push(workload),
            None => return Ok(Vec::new()),
        }
    }
    Ok(workloads)
}

/// What a binding is of and why it can go nowhere, if the scheduler says so and it is kept for that alone: what a member that
/// does not answer has is waited for as well, and goes when that member counts as lost.
fn nowhere(binding: &Value) -> Option<String> {
    if meta::deletion_timestamp(binding).is_some() {
        return None;
    }
    let conditions = binding["status"]["conditions"].as_array()?;
    let says = |kind: &str| conditions.iter().find(|it| it["type"] == kind && it["status"] == "False");
    let (scheduled, settled) = (says("Scheduled")?, says(label::SETTLED)?);
    let of = &binding["spec"]["resource"];
    let text = |field: &str| of[field].as_str().unwrap_or_default();
    let place = [text("namespace"), text("name")].into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join("/");
    let why = scheduled["message"].as_str().unwrap_or_default();
    (settled["reason"] == guard::REPLACEMENT_NOT_READY)
        .then(|| format!("{} {place} has nowhere else to go ({why})", text("kind")))
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

#[cfg(test)]
mod tests {
    use serde_json::json;
    use stolos_apiserver::Builder;
    use stolos_serve::HostNet;

    use super::*;
    use crate::{MANAGER, install};

    async fn make(hub: &kube::Client, resource: &Resource, object: Value) {
        let made = objects::create(hub, resource, &object, MANAGER).await.unwrap();
        if !object["status"].is_null() {
            let place = (Some(meta::namespace(&made)).filter(|it| !it.is_empty()), meta::name(&made));
            objects::merge(hub, resource, place, &json!({"status": object["status"]}), true, MANAGER).await.unwrap();
        }
    }

    /// A workload in `eu`: whether it fits elsewhere, and why it is still there.
    async fn place(hub: &kube::Client, name: &str, scheduled: &str, waits: &str) {
        let conditions =
            [("Scheduled", scheduled, "Any", "0/1 clusters are available"), (label::SETTLED, "False", waits, "")];
        make(
            hub,
            &bindings(),
            json!({"apiVersion": "work.karmada.io/v1alpha2", "kind": "ResourceBinding",
            "metadata": {"namespace": "default", "name": format!("{name}-deployment")},
            "spec": {"resource": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "default", "name": name}},
            "status": {"conditions": conditions.map(|(kind, status, reason, message)| json!({"type": kind,
                "status": status, "reason": reason, "message": message, "lastTransitionTime": "2026-11-22T10:00:00Z"}))}}),
        )
        .await;
        make(hub, &works(), json!({"apiVersion": "work.karmada.io/v1alpha1", "kind": "Work",
            "metadata": {"namespace": "karmada-es-eu", "name": name, "finalizers": [label::WORK_FINALIZER],
                "annotations": {label::BINDING_NAMESPACE: "default", label::BINDING_NAME: format!("{name}-deployment")}},
            "spec": {"workload": {"manifests": []}}}))
        .await;
    }

    #[tokio::test]
    async fn what_fits_nowhere_else_is_said_soon() {
        let server = Builder::new().start().await.unwrap();
        let hub = server.client();
        install::install(&hub).await.unwrap();
        let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "karmada-es-eu"}});
        make(&hub, &Resource::named("v1", "Namespace").unwrap(), space).await;
        make(
            &hub,
            &clusters(),
            json!({"apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster",
            "metadata": {"name": "eu", "finalizers": [label::CLUSTER_FINALIZER]}, "spec": {"syncMode": "Push"}}),
        )
        .await;
        place(&hub, "web", "False", guard::REPLACEMENT_NOT_READY).await;
        let net = Arc::new(HostNet::default());
        let error = unjoin(&hub, "eu", net, Duration::from_secs(60)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "could not take `eu` out of the hub: Deployment default/web has nowhere else to go (0/1 clusters are \
             available); delete it in the hub, or let its policy mean members that stay"
        );
        // Another one is still on its way to where it fits; or its member does not answer, which ends.
        for (name, scheduled, waits) in
            [("api", "True", guard::REPLACEMENT_NOT_READY), ("db", "False", "ClusterNotReady")]
        {
            place(&hub, name, scheduled, waits).await;
            assert_eq!(kept(&hub, "eu").await.unwrap(), [""; 0]);
            let space = Some("karmada-es-eu");
            let free = json!({"metadata": {"finalizers": []}});
            objects::merge(&hub, &works(), (space, name), &free, false, MANAGER).await.unwrap();
            objects::delete(&hub, &works(), space, name, None).await.unwrap();
        }
        assert_eq!(kept(&hub, "eu").await.unwrap().len(), 1);
    }
}
