//! Where the gateways between networks are to be dialled, by the mesh file and by what is in the clusters (B.3).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use stolos_cluster::Cluster;
use stolos_cluster::objects::{self, Resource};
use stolos_k8s::{istio, meta};
use stolos_spec::ClusterGateway;

use super::{Error, failed, gateway_addresses, planned_gateways};
use crate::status::page;

/// How long the system's own resolver may take.
const RESOLVE: Duration = Duration::from_secs(2);

/// The addresses of a cluster's gateways, as `ip:port`: what is given by hand, else what its Services have.
pub(super) async fn addresses(cluster: &Cluster, by_hand: Option<&ClusterGateway>) -> Result<BTreeSet<String>, Error> {
    let written: Vec<String> = match by_hand {
        Some(gateway) => gateway.addresses.iter().map(|address| joined(address, gateway.port)).collect(),
        None => {
            let services = planned_gateways(cluster).await?;
            let mut written: Vec<_> = services.iter().flat_map(gateway_addresses).collect();
            for service in &services {
                written.extend(on_nodes(cluster, service).await?);
            }
            written
        }
    };
    let mut found = BTreeSet::new();
    for address in written {
        let Some((host, port)) = address.rsplit_once(':').filter(|_| address.parse::<std::net::SocketAddr>().is_err())
        else {
            found.insert(address);
            continue;
        };
        let resolved = resolve(cluster, host, port).await;
        // A name that nobody knows stands for itself: no proxy will have dialled it.
        if resolved.is_empty() {
            found.insert(address);
        } else {
            found.extend(resolved);
        }
    }
    Ok(found)
}

fn joined(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// What a name stands for, by this machine's resolver; where that does not know it, by the cluster's control plane.
async fn resolve(cluster: &Cluster, host: &str, port: &str) -> BTreeSet<String> {
    let asking = tokio::net::lookup_host(format!("{host}:{port}"));
    if let Ok(Ok(addresses)) = tokio::time::timeout(RESOLVE, asking).await {
        return addresses.map(|address| address.to_string()).collect();
    }
    let pods = async {
        let pods = Resource::named("v1", "Pod").ok()?;
        let selector = format!("{}={}", istio::APP_LABEL, istio::ISTIOD);
        let all = objects::list(&cluster.client, &pods, Some(istio::SYSTEM_NAMESPACE), Some(&selector)).await.ok()?;
        page(&cluster.client, meta::name(all.first()?), "networkz").await
    };
    let known = pods.await.unwrap_or_default();
    let of_cluster = |gateway: &&Value| {
        let of = gateway["cluster"].as_str().unwrap_or_default();
        of.is_empty() || of == cluster.name
    };
    let gateways = known.as_array().into_iter().flatten().filter(of_cluster);
    let at_port = gateways.filter(|gateway| gateway["port"].as_u64().is_some_and(|have| have.to_string() == port));
    at_port.filter_map(|gateway| Some(joined(gateway["address"].as_str()?, port.parse().ok()?))).collect()
}

/// Where the nodes lead to a gateway of type NodePort, if its annotation says which.
async fn on_nodes(cluster: &Cluster, service: &Value) -> Result<Vec<String>, Error> {
    let selector = meta::annotation(service, istio::NODE_SELECTOR_ANNOTATION);
    let Some(selector) = selector.filter(|_| service["spec"]["type"] == "NodePort") else { return Ok(Vec::new()) };
    let selector: BTreeMap<String, String> = serde_json::from_str(selector).unwrap_or_default();
    let wanted = meta::label(service, istio::GATEWAY_PORT_LABEL).and_then(|port| port.parse().ok());
    let wanted: u64 = wanted.unwrap_or(istio::CROSS_NETWORK_PORT.into());
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let Some(port) = ports.filter(|port| port["port"] == wanted).find_map(|port| port["nodePort"].as_u64()) else {
        return Ok(Vec::new());
    };
    let nodes = Resource::named("v1", "Node").map_err(|e| failed(&cluster.name, e))?;
    let nodes = objects::list(&cluster.client, &nodes, None, None).await.map_err(|e| failed(&cluster.name, e))?;
    let fits = |node: &&Value| selector.iter().all(|(key, value)| meta::label(node, key) == Some(value.as_str()));
    let outside = |node: &Value| {
        let addresses = node.pointer("/status/addresses")?.as_array()?;
        let external = addresses.iter().find(|address| address["type"] == "ExternalIP")?;
        Some(format!("{}:{port}", external["address"].as_str()?))
    };
    Ok(nodes.iter().filter(fits).filter_map(outside).collect())
}
