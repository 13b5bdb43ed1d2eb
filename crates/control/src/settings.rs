//! The mesh's settings, from the ConfigMap `istio` and the environment.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use stolos_k8s::istio;

use crate::Config;
use crate::model::{Gateway, Settings};
use crate::policy::LocalitySetting;

/// Reads the data of the ConfigMap; what is not acted on is named in the second value.
///
/// A key that is not understood changes nothing: the defaults of [`Settings`] hold.
#[must_use]
pub fn read(config: &Config, data: &BTreeMap<String, String>) -> (Settings, Vec<String>) {
    let mut settings = Settings {
        own: Arc::from(config.cluster.as_str()),
        mesh: config.mesh.clone(),
        trust_domain: config.trust_domain.clone(),
        root_namespace: config.namespace.clone(),
        access_log: "/dev/stdout".to_owned(),
        ..Settings::default()
    };
    let mut left = Vec::new();
    if let Some(text) = data.get(istio::MESH_KEY) {
        match serde_saphyr::from_str::<Value>(text) {
            Ok(Value::Object(mesh)) => apply(&mut settings, &mesh, &mut left),
            Ok(Value::Null) => {}
            Ok(_) => left.push("mesh: not a mapping".to_owned()),
            Err(error) => left.push(format!("mesh: {error}")),
        }
    }
    if let Some(text) = data.get(istio::MESH_NETWORKS_KEY) {
        match serde_saphyr::from_str::<Value>(text) {
            Ok(value) => networks(&mut settings, &value, &mut left),
            Err(error) => left.push(format!("meshNetworks: {error}")),
        }
    }
    (settings, left)
}

fn apply(settings: &mut Settings, mesh: &Map<String, Value>, left: &mut Vec<String>) {
    for (key, value) in mesh {
        match (key.as_str(), value) {
            ("trustDomain", Value::String(domain)) => settings.trust_domain = domain.clone(),
            ("rootNamespace", Value::String(namespace)) => settings.root_namespace = namespace.clone(),
            ("enableAutoMtls", Value::Bool(on)) => settings.auto_mtls = *on,
            ("accessLogFile", Value::String(path)) => settings.access_log = path.clone(),
            ("trustDomainAliases", Value::Array(aliases)) => {
                settings.trust_domain_aliases = aliases.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            }
            ("outboundTrafficPolicy", Value::Object(policy)) => {
                settings.allow_any = policy.get("mode").and_then(Value::as_str) != Some("REGISTRY_ONLY");
            }
            ("protocolDetectionTimeout", Value::String(text)) => match crate::policy::duration(text) {
                Some(detection) => settings.detection = detection,
                None => left.push("protocolDetectionTimeout (not a duration)".to_owned()),
            },
            ("localityLbSetting", value) => {
                settings.locality = Some(LocalitySetting::read(value, "localityLbSetting", left));
            }
            ("serviceSettings", Value::Array(list)) => cluster_local(settings, list),
            // What these ask for is so.
            ("accessLogEncoding", Value::String(encoding)) if encoding == "JSON" => {}
            ("defaultConfig", Value::Object(proxy)) => {
                let known = ["discoveryAddress", "meshId", "proxyMetadata"];
                left.extend(
                    proxy.keys().filter(|k| !known.contains(&k.as_str())).map(|k| format!("defaultConfig.{k}")),
                );
            }
            (key, _) => left.push(key.to_owned()),
        }
    }
}

/// The most specific pattern comes first, so that it decides.
fn cluster_local(settings: &mut Settings, list: &[Value]) {
    for entry in list {
        let local = entry.get("settings").and_then(|s| s.get("clusterLocal")).and_then(Value::as_bool);
        let hosts = entry.get("hosts").and_then(Value::as_array).into_iter().flatten();
        for host in hosts.filter_map(Value::as_str) {
            settings.cluster_local.retain(|(pattern, _)| pattern != host);
            settings.cluster_local.push((host.to_owned(), local == Some(true)));
        }
    }
    settings.cluster_local.sort_by_key(|(pattern, _)| (pattern.starts_with('*'), usize::MAX - pattern.len()));
}

fn networks(settings: &mut Settings, value: &Value, left: &mut Vec<String>) {
    let networks = value.get("networks").and_then(Value::as_object);
    for (network, entry) in networks.into_iter().flatten() {
        let list = |name: &str| entry.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        for endpoint in list("endpoints") {
            match endpoint.get("fromRegistry").and_then(Value::as_str) {
                Some(cluster) => _ = settings.networks.insert(cluster.to_owned(), network.clone()),
                None => left.push(format!("meshNetworks.networks.{network}.endpoints (only fromRegistry is read)")),
            }
        }
        for gateway in list("gateways") {
            let written = gateway.get("address").and_then(Value::as_str);
            let address = written.and_then(|a| a.parse().ok());
            let port = gateway.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
            match (address, port) {
                (Some(address), port) => settings.gateways.push(Gateway {
                    address,
                    port: port.unwrap_or(istio::CROSS_NETWORK_PORT),
                    network: network.as_str().into(),
                    cluster: "".into(),
                }),
                (None, port) if written.is_some_and(|name| !name.is_empty()) => {
                    let name = written.unwrap_or_default().to_owned();
                    let port = port.unwrap_or(istio::CROSS_NETWORK_PORT);
                    settings.gateway_names.push((name, port, network.as_str().into()));
                }
                _ => left.push(format!("meshNetworks.networks.{network}.gateways (only address is read)")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mesh_config_is_read_and_the_rest_is_named() {
        let config = Config { cluster: "east".into(), ..Config::default() };
        let mesh = "trustDomain: example.org\naccessLogFile: ''\nenablePrometheusMerge: true\n\
                    protocolDetectionTimeout: 100ms\n\
                    defaultConfig: {discoveryAddress: x, holdApplicationUntilProxyStarts: true}\n\
                    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n\
                    serviceSettings:\n- settings: {clusterLocal: false}\n  hosts: ['*.kube-system.svc.cluster.local']\n\
                    - settings: {clusterLocal: true}\n  hosts: ['*.billing.svc.cluster.local']\n";
        let networks = "networks:\n  net1:\n    endpoints: [{fromRegistry: c1}, {fromCidr: 10.0.0.0/8}]\n    gateways: [{address: 192.0.2.1, port: 443}, {address: gw.example.com}, {registryServiceName: x}]\n";
        let data = [("mesh".to_owned(), mesh.to_owned()), ("meshNetworks".to_owned(), networks.to_owned())];
        let (settings, left) = read(&config, &data.into());
        assert_eq!(settings.trust_domain, "example.org");
        assert_eq!(settings.detection, std::time::Duration::from_millis(100));
        assert!(!settings.allow_any && settings.access_log.is_empty());
        assert!(settings.is_cluster_local("x.billing.svc.cluster.local"));
        assert!(!settings.is_cluster_local("x.kube-system.svc.cluster.local"));
        assert!(settings.is_cluster_local("kubernetes.default.svc.cluster.local"));
        assert_eq!(settings.networks["c1"], "net1");
        assert_eq!(settings.gateways[0].port, 443);
        assert_eq!(settings.gateway_names, [("gw.example.com".to_owned(), 15443, "net1".into())]);
        insta::assert_snapshot!(left.join("\n"), @r"
        defaultConfig.holdApplicationUntilProxyStarts
        enablePrometheusMerge
        meshNetworks.networks.net1.endpoints (only fromRegistry is read)
        meshNetworks.networks.net1.gateways (only address is read)
        ");
        assert!(read(&config, &[("mesh".to_owned(), "[".to_owned())].into()).1[0].starts_with("mesh: "));
    }
}
