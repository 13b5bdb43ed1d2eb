//! When members that dial out were heard last: their Leases.
//!
//! Karmada's agent renews `karmada-cluster/NAME` itself. Here the hub asks each member through its tunnel and renews it with
//! the answer; whoever reads it learns the same.

use serde_json::{Value, json};
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::meta;

use super::Hub;
use crate::MANAGER;
use crate::member::CREDENTIALS;

/// Who has not been heard for so many seconds is silent (Karmada's `--cluster-lease-duration`).
const LIFE: u64 = 40;

/// Renews the Lease of a member that has just answered. It goes with its Cluster.
pub(super) async fn renew(hub: &Hub, cluster: &Value) -> Result<(), stolos_cluster::Error> {
    let leases = Resource::named("coordination.k8s.io/v1", "Lease")?;
    objects::apply(&hub.client, &leases, &lease(cluster, jiff::Timestamp::now()), MANAGER, true).await.map(drop)
}

fn lease(cluster: &Value, now: jiff::Timestamp) -> Value {
    let name = meta::name(cluster);
    let owner = json!({"apiVersion": meta::api_version(cluster), "kind": meta::kind(cluster), "name": name,
        "uid": meta::uid(cluster)});
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": CREDENTIALS, "ownerReferences": [owner]},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": LIFE,
            "renewTime": format!("{now:.6}")}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_its_clusters() {
        let cluster = json!({"apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster",
            "metadata": {"name": "eu", "uid": "u"}});
        let lease = lease(&cluster, "2026-11-22T10:00:00Z".parse().unwrap());
        assert_eq!(
            (&lease["spec"]["renewTime"], &lease["metadata"]["ownerReferences"][0]["uid"]),
            (&json!("2026-11-22T10:00:00.000000Z"), &json!("u"))
        );
    }
}
