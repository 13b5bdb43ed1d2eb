//! The ConfigMap that tells people and other hubs where members are reached.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use serde_json::json;
use stolos_cluster::objects::{self, Resource};

use super::{Front, REACHED};
use crate::install::NAMESPACE;
use crate::{Error, MANAGER, label, told};

/// The ConfigMap that says where members are reached, and which of several hubs leads; the role that lets everybody read
/// it has the same name.
pub(super) const NOTICE: &str = "stolos-hub";
/// How long it is taken to be true where the hub that leads is.
const KNOWN: Duration = Duration::from_secs(2);

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
    Ok(told::read(api, NOTICE).await?.map(|(address, authority)| Notice { address, authority }))
}

impl Front {
    /// Says where members are reached, to everybody who is known to the API.
    pub(super) async fn tell(&self) -> Result<(), Error> {
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

    /// Where the hub that leads is reached; nothing where nobody has said it.
    pub(super) async fn place_of(&self, leader: &str) -> Option<String> {
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
