//! What every connected proxy has of its configuration, as the control planes say it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use serde_json::Value;
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::{istio, meta};
use stolos_spec::Mesh;

use crate::status::page;

/// How long one cluster may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The types of configuration, by their names in `syncz` and as people call them.
const TYPES: [(&str, &str); 5] =
    [("cluster", "CDS"), ("listener", "LDS"), ("endpoint", "EDS"), ("route", "RDS"), ("extension", "ECDS")];

/// What `proxy-status` says.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyReport {
    /// `stolos.dev/v1alpha1`.
    pub api_version: &'static str,
    /// `ProxyReport`.
    pub kind: &'static str,
    /// The mesh.
    pub mesh: String,
    /// The proxies that are connected, by cluster and name.
    pub proxies: Vec<ProxyStatus>,
    /// Clusters whose control planes did not answer, and why.
    pub unanswered: BTreeMap<String, String>,
}

/// One proxy.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProxyStatus {
    /// `pod.namespace`.
    pub name: String,
    /// Its cluster.
    pub cluster: String,
    /// The control plane's pod that it is connected to.
    pub istiod: String,
    /// The version it says it is of.
    pub version: String,
    /// What it is: `stolos`, `envoy 1.40.0`.
    pub program: String,
    /// By type: `CDS`, `LDS`, `EDS`, `RDS`, `ECDS`.
    pub types: BTreeMap<&'static str, TypeStatus>,
}

/// What a proxy has of one type.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// `SYNCED`, `STALE` (its answer is outstanding), `NOT SENT`, or `ERROR` (it refused).
    pub status: String,
    /// The version that was sent last.
    pub sent: Option<String>,
    /// The version that it has taken.
    pub acked: Option<String>,
    /// How often it has refused one.
    pub rejects: u64,
    /// Why it refused the last one.
    pub error: Option<String>,
}

/// Asks every control plane of `mesh`, all side by side.
pub async fn proxies(mesh: &Mesh, clusters: &[Cluster]) -> ProxyReport {
    let asked = join_all(clusters.iter().map(|cluster| async move {
        let answer = tokio::time::timeout(PATIENCE, of_cluster(cluster)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer in {} s", PATIENCE.as_secs())));
        (cluster.name.clone(), answer)
    }))
    .await;
    let (mut proxies, mut unanswered) = (Vec::new(), BTreeMap::new());
    for (cluster, answer) in asked {
        match answer {
            Ok(found) => proxies.extend(found),
            Err(why) => _ = unanswered.insert(cluster, why),
        }
    }
    proxies.sort_by(|a, b| (&a.cluster, &a.name).cmp(&(&b.cluster, &b.name)));
    ProxyReport {
        api_version: "stolos.dev/v1alpha1",
        kind: "ProxyReport",
        mesh: mesh.name.to_string(),
        proxies,
        unanswered,
    }
}

/// The proxies of one cluster's control plane: every running pod of it is asked. A cluster without one has none.
async fn of_cluster(cluster: &Cluster) -> Result<Vec<ProxyStatus>, String> {
    let listing = async {
        objects::list(&cluster.client, &Resource::named("v1", "Pod")?, Some(istio::SYSTEM_NAMESPACE), None).await
    };
    let pods = listing.await.map_err(|error: stolos_cluster::Error| stolos_serve::because(&error))?;
    let is_running = |pod: &&Value| pod.pointer("/status/phase").and_then(Value::as_str) == Some("Running");
    let istiods =
        pods.iter().filter(|pod| meta::label(pod, istio::APP_LABEL) == Some(istio::ISTIOD)).filter(is_running);
    let mut proxies = Vec::new();
    for istiod in istiods.map(meta::name) {
        let Some(syncz) = page(&cluster.client, istiod, "syncz").await else {
            return Err(format!("the control plane {istiod} did not answer"));
        };
        proxies.extend(read(istiod, &syncz));
    }
    Ok(proxies)
}

/// The rows of a `syncz` page.
fn read(istiod: &str, syncz: &Value) -> Vec<ProxyStatus> {
    let row = |row: &Value| {
        let text = |key: &str| row.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
        let types = TYPES.map(|(name, short)| {
            let of = |what: &str| text(&format!("{name}_{what}"));
            let status = TypeStatus {
                status: of("status").unwrap_or_else(|| "NOT SENT".to_owned()),
                sent: of("sent"),
                acked: of("acked"),
                rejects: row.get(format!("{name}_rejects")).and_then(Value::as_u64).unwrap_or(0),
                error: of("error"),
            };
            (short, status)
        });
        ProxyStatus {
            name: text("proxy").unwrap_or_default(),
            cluster: text("cluster_id").unwrap_or_default(),
            istiod: istiod.to_owned(),
            version: text("istio_version").unwrap_or_default(),
            program: text("program").unwrap_or_default(),
            types: types.into(),
        }
    };
    syncz.as_array().into_iter().flatten().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_is_read_type_by_type() {
        let page = json!([{
            "proxy": "sleep-1.sample", "cluster_id": "east", "istio_version": "0.1.0-stolos", "program": "envoy 1.40.0",
            "cluster_sent": "7", "cluster_acked": "7", "cluster_status": "SYNCED", "cluster_rejects": 0,
            "listener_sent": "7", "listener_acked": "6", "listener_status": "ERROR", "listener_rejects": 2,
            "listener_error": "no such filter",
        }]);
        let [proxy] = &read("istiod-1", &page)[..] else { panic!("one proxy") };
        let words: Vec<_> = proxy.types.iter().map(|(name, status)| format!("{name} {}", status.status)).collect();
        assert_eq!(words, ["CDS SYNCED", "ECDS NOT SENT", "EDS NOT SENT", "LDS ERROR", "RDS NOT SENT"]);
        assert_eq!(proxy.types["LDS"].error.as_deref(), Some("no such filter"));
        assert_eq!((proxy.types["LDS"].rejects, &*proxy.istiod), (2, "istiod-1"));
        assert_eq!(read("istiod-1", &json!({})), []);
    }
}
