//! How a cluster becomes a member.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;
use stolos_pki::Certificate;

use super::CREDENTIALS;
use crate::kinds::clusters;
use crate::{Error, MANAGER, label, name};

const RBAC: &str = "rbac.authorization.k8s.io/v1";
/// How long an API server may take to fill in a token.
const TOKEN: Duration = Duration::from_secs(30);
/// What the account is called, in each member with the member's name behind it, that others' requests go by.
const IMPERSONATOR: &str = "karmada-impersonator";
/// The longest name of a member (Karmada v1.18.2).
const LONGEST: usize = 48;

/// What is said of a cluster that joins.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Joining {
    /// Its name in the hub.
    pub name: String,
    /// Who runs it.
    pub provider: Option<String>,
    /// Where it is.
    pub region: Option<String>,
    /// Where in the region it is.
    pub zones: Vec<String>,
    /// Labels of the Cluster, for policies to select by.
    pub labels: BTreeMap<String, String>,
}

/// How the hub gets into a member.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credential {
    /// UID of the member's namespace `kube-system`: what the cluster is, whatever it is called.
    pub id: String,
    /// The API server's URL; of one that is reached through a tunnel, what its certificate is for.
    pub server: String,
    /// The authorities of that address, as PEM; nothing for the system's.
    pub authority: String,
    /// The token of the hub's account.
    pub token: String,
    /// The token of the account by which the hub passes others' requests on, in their names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonator: Option<String>,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("id", &self.id).field("server", &self.server).finish_non_exhaustive()
    }
}

/// `syncMode` of a member that the hub dials.
pub const PUSH: &str = "Push";
/// `syncMode` of a member whose agent dials the hub.
pub const PULL: &str = "Pull";

/// Makes an account in the member and a Cluster with its credential in the hub. The same again renews both.
///
/// # Flow
///
/// 1. Look: the name, the member's identity, whether the hub has either under another name.
/// 2. In the member: an account of the hub's, its role and its token.
/// 3. In the hub: the Cluster, then the Secret with the token, which goes with the Cluster.
///
/// # Errors
///
/// When the name cannot be, either is taken, or a cluster refuses or does not answer.
pub async fn join(hub: &kube::Client, member: &Cluster, joining: &Joining) -> Result<(), Error> {
    may_join(hub, &joining.name, &identity(&member.client).await?).await?;
    enter(hub, joining, &credential(member, &joining.name).await?, PUSH).await.map(drop)
}

/// Makes an account for the hub in a member, and says how the hub gets in with it.
///
/// # Errors
///
/// When the name cannot be, or the member refuses or does not answer.
pub async fn credential(member: &Cluster, name: &str) -> Result<Credential, Error> {
    check_name(name)?;
    let id = identity(&member.client).await?;
    let (token, impersonator) = accounts(&member.client, name).await?;
    let (server, authority) = (member.server.clone(), authority(member));
    Ok(Credential { id, server, authority, token, impersonator: Some(impersonator) })
}

/// What a cluster is, whatever it is called: the UID of its `kube-system`.
///
/// # Errors
///
/// When it refuses or does not answer.
pub async fn identity(member: &kube::Client) -> Result<String, Error> {
    let namespaces = Resource::named("v1", "Namespace")?;
    let system = objects::get(member, &namespaces, None, "kube-system").await?;
    Ok(system.as_ref().map(|system| meta::uid(system).to_owned()).unwrap_or_default())
}

/// Whether the cluster with this `id` may have this name in the hub.
pub(crate) async fn may_join(hub: &kube::Client, name: &str, id: &str) -> Result<(), Error> {
    check_name(name)?;
    let known = objects::list(hub, &clusters(), None, None).await?;
    for cluster in &known {
        let (of, other) = (meta::name(cluster), cluster["spec"]["id"].as_str().unwrap_or_default());
        if of == name && !other.is_empty() && other != id {
            let text =
                format!("the hub has another cluster `{name}`: `stolos hub unjoin {name}` first, or another name");
            return Err(Error::Joined(text));
        }
        if of != name && !id.is_empty() && other == id {
            return Err(Error::Joined(format!("the hub has this cluster already, as `{of}`")));
        }
        if of == name && meta::deletion_timestamp(cluster).is_some() {
            return Err(Error::Joined(format!("`{name}` is leaving the hub; wait until it is gone")));
        }
    }
    Ok(())
}

/// Makes the Cluster and its Secret in the hub, or renews them; what the Cluster is then.
pub(crate) async fn enter(
    hub: &kube::Client,
    joining: &Joining,
    credential: &Credential,
    mode: &str,
) -> Result<Value, Error> {
    let name = joining.name.as_str();
    let mut labels = json!({});
    for (key, value) in &joining.labels {
        labels[key] = value.as_str().into();
    }
    let mut spec = json!({"id": credential.id, "syncMode": mode, "apiEndpoint": credential.server,
        "secretRef": {"namespace": CREDENTIALS, "name": name}});
    if credential.impersonator.is_some() {
        spec["impersonatorSecretRef"] = json!({"namespace": CREDENTIALS, "name": name::impersonator(name)});
    }
    for (field, value) in [("provider", &joining.provider), ("region", &joining.region)] {
        if let Some(value) = value {
            spec[field] = value.as_str().into();
        }
    }
    if let Some(first) = joining.zones.first() {
        spec["zone"] = first.as_str().into();
        spec["zones"] = joining.zones.clone().into();
    }
    let cluster = json!({"apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster",
        "metadata": {"name": name, "labels": labels}, "spec": spec});
    // As the user's own, so that what the controllers say of it (taints, finalizers) stays.
    let cluster = objects::apply(hub, &clusters(), &cluster, "stolos-hub-join", true).await?;
    let data = |text: &str| BASE64_STANDARD.encode(text);
    let mut secrets =
        vec![(name.to_owned(), json!({"token": data(&credential.token), "caBundle": data(&credential.authority)}))];
    if let Some(token) = &credential.impersonator {
        secrets.push((name::impersonator(name), json!({"token": data(token)})));
    }
    for (secret, data) in secrets {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": secret, "namespace": CREDENTIALS, "labels": {label::SYSTEM: "true"},
                "ownerReferences": [owner("cluster.karmada.io/v1alpha1", "Cluster", &cluster)]},
            "data": data});
        objects::apply(hub, &Resource::named("v1", "Secret")?, &secret, "stolos-hub-join", true).await?;
    }
    Ok(cluster)
}

/// Waits until the hub says of a member that it is ready.
///
/// # Errors
///
/// When it is not after `patience`, or the hub cannot be asked.
pub async fn ready(hub: &kube::Client, name: &str, patience: Duration) -> Result<(), Error> {
    let mut said = "it has not been looked at".to_owned();
    let waiting = async {
        loop {
            let cluster = objects::get(hub, &clusters(), None, name).await?;
            let status = cluster.map(|cluster| cluster["status"].clone()).unwrap_or_default();
            let ready = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
            match ready {
                Some(ready) if ready["status"] == "True" => return Ok(()),
                Some(ready) => said = ready["message"].as_str().unwrap_or_default().to_owned(),
                None => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let ended = tokio::time::timeout(patience, waiting).await;
    ended.unwrap_or_else(|_| Err(Error::NotYet { what: format!("see `{name}` ready"), after: patience, left: said }))
}

/// The names that clusters can have (Karmada v1.18.2, `validation.ValidateClusterName`).
///
/// # Errors
///
/// Why a name is none.
pub fn check_name(name: &str) -> Result<(), Error> {
    let refused = |why: String| Err(Error::Name { name: name.to_owned(), why });
    if name.len() > LONGEST {
        return refused(format!("it is longer than {LONGEST} characters"));
    }
    if name.ends_with("-impersonator") {
        return refused("its Secret would be another member's: names do not end in `-impersonator`".to_owned());
    }
    match meta::check_label(name).into_iter().next() {
        Some(problem) => refused(problem),
        None => Ok(()),
    }
}

/// The name of what the hub has in a member: its account, and its role.
fn names(name: &str) -> (String, String) {
    (format!("karmada-{name}"), role(name))
}

/// The hub's role in a member. It owns everything else that joining makes there, so that its end is the end of that.
#[must_use]
pub fn role(name: &str) -> String {
    format!("karmada-controller-manager:karmada-{name}")
}

/// The role, in a member, of the account that others' requests go by.
pub(crate) fn impersonator_role(name: &str) -> String {
    format!("{IMPERSONATOR}-{name}")
}

pub(super) fn owner(api_version: &str, kind: &str, owner: &Value) -> Value {
    json!({"apiVersion": api_version, "kind": kind, "name": meta::name(owner), "uid": meta::uid(owner)})
}

/// The hub's accounts in a member: the tokens of the one that it acts by, and of the one by which it passes others'
/// requests on in their names.
///
/// Any kind may be a template, so that the first's role names all of them; but it may neither grant what it does not have
/// (`escalate`, `bind`) nor be somebody else (`impersonate`), which Karmada's may, with one exception: the second account's
/// role. That one, called as Karmada's is, may be somebody else and nothing more; whom, the hub says by its own roles
/// ([`super::impersonate`]).
async fn accounts(client: &kube::Client, name: &str) -> Result<(String, String), Error> {
    let (account, role) = names(name);
    let labels = json!({label::SYSTEM: "true"});
    let put = async |object: Value| -> Result<Value, Error> {
        Ok(objects::apply(client, &Resource::of(&object)?, &object, MANAGER, true).await?)
    };
    let rules = json!([
        {"apiGroups": ["*"], "resources": ["*"],
            "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"],
            "resourceNames": [impersonator_role(name)], "verbs": ["escalate"]},
        {"nonResourceURLs": ["/readyz", "/healthz", "/version", "/api", "/api/*", "/apis", "/apis/*", "/openapi/*"],
            "verbs": ["get"]},
    ]);
    let role = put(json!({"apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": role, "labels": labels},
        "rules": rules}))
    .await?;
    let owners = json!([owner(RBAC, "ClusterRole", &role)]);
    let namespaces = Resource::named("v1", "Namespace")?;
    let before = objects::get(client, &namespaces, None, CREDENTIALS).await?;
    if before.as_ref().is_none_or(|before| !meta::owner_references(before).is_empty()) {
        // Somebody else's namespace of that name stays when the hub goes.
        put(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": CREDENTIALS, "labels": labels, "ownerReferences": owners}}))
        .await?;
    }
    // Its rules are the hub's to say, and stay as they are when a member joins again.
    let impersonating = put(json!({"apiVersion": RBAC, "kind": "ClusterRole",
        "metadata": {"name": impersonator_role(name), "labels": labels, "ownerReferences": owners}}))
    .await?;
    let impersonator = format!("{IMPERSONATOR}-{name}");
    for (account, role) in [(&account, &role), (&impersonator, &impersonating)] {
        put(json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": account, "namespace": CREDENTIALS, "labels": labels, "ownerReferences": owners}}))
        .await?;
        put(json!({"apiVersion": RBAC, "kind": "ClusterRoleBinding",
            "metadata": {"name": meta::name(role), "labels": labels, "ownerReferences": owners},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": meta::name(role)},
            "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": CREDENTIALS}]}))
        .await?;
        put(json!({"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": {"name": account, "namespace": CREDENTIALS, "labels": labels, "ownerReferences": owners,
                "annotations": {"kubernetes.io/service-account.name": account}}}))
        .await?;
    }
    Ok((token(client, name, &account).await?, token(client, name, &impersonator).await?))
}

/// The token of an account, as soon as the member has filled in its Secret.
async fn token(client: &kube::Client, name: &str, account: &str) -> Result<String, Error> {
    let secrets = Resource::named("v1", "Secret")?;
    let filled = async {
        loop {
            let secret = objects::get(client, &secrets, Some(CREDENTIALS), account).await?;
            let token = secret.as_ref().and_then(|secret| secret["data"]["token"].as_str());
            let token = token.and_then(|token| String::from_utf8(BASE64_STANDARD.decode(token).ok()?).ok());
            if let Some(token) = token.filter(|token| !token.is_empty()) {
                return Ok(token);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let late = || Error::NotYet {
        what: format!("get a token of {name}"),
        after: TOKEN,
        left: "its API server has not filled in the Secret of the account".to_owned(),
    };
    tokio::time::timeout(TOKEN, filled).await.unwrap_or_else(|_| Err(late()))
}

/// The authorities of the address that the member is reached by, as PEM; nothing for the system's.
fn authority(member: &Cluster) -> String {
    let certificates = member.authorities.iter().map(|der| Certificate::from_der(der.clone().into()));
    certificates.flatten().map(|certificate| certificate.pem()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_members_are_labels_of_at_most_48_characters() {
        for (name, fine) in
            [("eu", true), ("eu-1", true), ("EU", false), ("a.b", false), ("", false), ("eu-impersonator", false)]
        {
            assert_eq!(check_name(name).is_ok(), fine, "{name}");
        }
        assert!(check_name(&"a".repeat(48)).is_ok() && check_name(&"a".repeat(49)).is_err());
    }
}
