//! What a client's proxy itself says it has of the shared service.

use std::time::Duration;

use serde_json::Value;
use stolos_cluster::{Cluster, forward};
use stolos_k8s::istio;

use crate::judge::{Held, View};
use crate::probe::{PORT, SERVER};

/// Envoy's clusters with the state of their hosts (admin/v3/clusters.proto); our proxy has the same page.
const PAGE: &str = "/clusters?format=json";
/// How long after a look that found something missing the next one comes.
pub(super) const AGAIN: Duration = Duration::from_millis(100);

/// The endpoints that the proxy of `pod` has of the shared service.
pub(super) async fn of(cluster: &Cluster, namespace: &str, pod: &str) -> View {
    let text = forward::page(&cluster.client, namespace, pod, istio::ADMIN_PORT, PAGE).await;
    let text = text.map_err(|error| stolos_serve::because(&error))?;
    let page = serde_json::from_str(&text).map_err(|error| format!("what {PAGE} shows is no JSON: {error}"))?;
    read(&page, &format!("outbound|{PORT}||{}", istio::host(SERVER, namespace, istio::DEFAULT_DOMAIN)))
}

/// The hosts of one cluster of the page. A proxy that does not know the cluster has no endpoints for it.
fn read(page: &Value, name: &str) -> View {
    let clusters = page["cluster_statuses"].as_array().ok_or(format!("{PAGE} shows no clusters"))?;
    let cluster = clusters.iter().find(|cluster| cluster["name"] == name);
    let hosts = cluster.and_then(|cluster| cluster["host_statuses"].as_array()).into_iter().flatten();
    Ok(hosts.filter_map(held).collect())
}

fn held(host: &Value) -> Option<Held> {
    let socket = host.pointer("/address/socket_address")?;
    let (ip, port) = (socket["address"].as_str()?, socket["port_value"].as_u64()?);
    let address = if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
    // Flags that are not up are left out of the page. UNKNOWN is what the control plane says of a gateway: nothing.
    let flags = host["health_status"].as_object().into_iter().flatten();
    let unfit = flags.filter_map(|(flag, value)| match (flag.as_str(), value) {
        ("eds_health_status", Value::String(status)) => {
            (!matches!(status.as_str(), "HEALTHY" | "UNKNOWN" | "DEGRADED")).then(|| status.clone())
        }
        ("failed_active_degraded_check", _) => None,
        (flag, Value::Bool(true)) => Some(flag.to_owned()),
        _ => None,
    });
    let unfit = unfit.collect::<Vec<_>>().join(", ");
    Some(Held { address, unfit: (!unfit.is_empty()).then_some(unfit) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_is_read_host_by_host() {
        let host = |address: &str, health: Value| json!({"address": {"socket_address": {"address": address, "port_value": 5000}}, "health_status": health});
        let page = json!({"cluster_statuses": [
            {"name": "outbound|80||other", "host_statuses": [host("10.0.0.9", json!({}))]},
            {"name": "outbound|5000||helloworld", "added_via_api": true, "host_statuses": [
                host("10.0.0.1", json!({"eds_health_status": "HEALTHY"})),
                host("10.0.0.2", json!({"eds_health_status": "DRAINING"})),
                host("fd00::3", json!({"eds_health_status": "HEALTHY", "failed_outlier_check": true})),
                {"address": {"pipe": {"path": "/x"}}},
            ]},
        ]});
        let held =
            |address: &str, unfit: Option<&str>| Held { address: address.into(), unfit: unfit.map(str::to_owned) };
        assert_eq!(
            read(&page, "outbound|5000||helloworld"),
            Ok(vec![
                held("10.0.0.1:5000", None),
                held("10.0.0.2:5000", Some("DRAINING")),
                held("[fd00::3]:5000", Some("failed_outlier_check")),
            ])
        );
        assert_eq!(read(&page, "outbound|5000||unheard.of"), Ok(vec![]));
        assert_eq!(read(&json!({}), "x"), Err("/clusters?format=json shows no clusters".to_owned()));
    }
}
