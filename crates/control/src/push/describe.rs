//! Who a proxy is: what it says of itself, and what its pod says of it.

use std::sync::Arc;

use stolos_k8s::istio;
use stolos_xds::envoy::config::core::v3::{Node, node::UserAgentVersionType};
use stolos_xds::envoy::r#type::v3::SemanticVersion;
use stolos_xds::message::{text_at, texts_at};
use stolos_xds::server::Proxy;

use crate::model::{Locality, PodFacts, ProxyInfo, ProxyKind, World};

/// What a proxy says of itself.
pub(super) fn describe(proxy: &Proxy) -> Result<ProxyInfo, tonic::Status> {
    let node = &proxy.node;
    let parts: Vec<_> = node.id.split('~').collect();
    let [kind, address, name, domain] = parts[..] else {
        return Err(tonic::Status::invalid_argument(format!("`{}` is not <type>~<ip>~<pod>.<ns>~<domain>", node.id)));
    };
    let kind = match kind {
        "sidecar" => ProxyKind::Sidecar,
        "router" => ProxyKind::Router,
        other => return Err(tonic::Status::invalid_argument(format!("proxies of type {other} are not served"))),
    };
    let empty = Default::default();
    let metadata = node.metadata.as_ref().unwrap_or(&empty);
    let text = |field: &str| text_at(metadata, &[field]).unwrap_or_default();
    let (pod, namespace) = name.rsplit_once('.').unwrap_or((name, ""));
    let namespace = [text("NAMESPACE"), namespace, domain.split('.').next().unwrap_or_default()]
        .into_iter()
        .find(|namespace| !namespace.is_empty());
    let is_on = |value: &str| value.eq_ignore_ascii_case("true") || value == "1";
    let locality = node.locality.as_ref().map(|locality| Locality {
        region: locality.region.clone(),
        zone: locality.zone.clone(),
        subzone: locality.sub_zone.clone(),
    });
    Ok(ProxyInfo {
        id: node.id.clone(),
        kind,
        address: address.parse().ok(),
        name: pod.to_owned(),
        namespace: namespace.unwrap_or_default().to_owned(),
        cluster: text("CLUSTER_ID").into(),
        network: text("NETWORK").into(),
        view: text("REQUESTED_NETWORK_VIEW")
            .split(',')
            .map(|network| network.trim().to_owned())
            .filter(|network| !network.is_empty())
            .collect(),
        account: text("SERVICE_ACCOUNT").to_owned(),
        labels: texts_at(metadata, &["LABELS"]),
        locality: locality.unwrap_or_default(),
        node: text("NODE_NAME").to_owned(),
        proxy_protocol: text("STOLOS_REDIRECT") == istio::REDIRECT_PROXY_PROTOCOL,
        bind: text("STOLOS_BIND").parse().ok(),
        dns: is_on(text("DNS_CAPTURE")),
        version: [text("ISTIO_VERSION"), text("STOLOS_VERSION")].concat(),
        program: program(node),
    })
}

/// What a proxy is, and its version.
fn program(node: &Node) -> String {
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => {
            let number = |v: &SemanticVersion| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch);
            build.version.as_ref().map(number).unwrap_or_default()
        }
        None => String::new(),
    };
    format!("{} {version}", node.user_agent_name).trim().to_owned()
}

/// With what its pod says now: labels, node, place.
pub(super) fn refreshed(info: &Arc<ProxyInfo>, world: &World) -> Arc<ProxyInfo> {
    let Some(pod) = pod_of(info, world) else { return Arc::clone(info) };
    if info.labels == pod.labels && info.node == pod.node && (info.locality == pod.locality || pod.locality.is_empty())
    {
        return Arc::clone(info);
    }
    let locality = if pod.locality.is_empty() { info.locality.clone() } else { pod.locality.clone() };
    Arc::new(ProxyInfo { labels: pod.labels.clone(), node: pod.node.clone(), locality, ..ProxyInfo::clone(info) })
}

pub(super) fn pod_of<'a>(info: &ProxyInfo, world: &'a World) -> Option<&'a Arc<PodFacts>> {
    world.cluster(&info.cluster)?.pods.get(&(info.namespace.clone(), info.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_says_who_it_is() {
        use stolos_xds::message::{object, string, structure};
        let node = Node {
            id: "router~10.0.0.1~gw-1.istio-system~istio-system.svc.cluster.local".into(),
            metadata: Some(structure([
                ("CLUSTER_ID", string("east")),
                ("NETWORK", string("net1")),
                ("REQUESTED_NETWORK_VIEW", string("net1, net2")),
                ("LABELS", object([("istio", string("eastwestgateway"))])),
                ("STOLOS_REDIRECT", string("proxy-protocol")),
                ("STOLOS_BIND", string("127.9.9.1")),
                ("DNS_CAPTURE", string("true")),
            ])),
            ..Node::default()
        };
        let proxy = |node: Node| Proxy {
            connection: 1,
            node,
            metadata: tonic::metadata::MetadataMap::new(),
            extensions: http::Extensions::new(),
        };
        let info = describe(&proxy(node)).unwrap();
        assert_eq!((info.kind, &*info.name, &*info.namespace), (ProxyKind::Router, "gw-1", "istio-system"));
        assert_eq!(info.view.len(), 2);
        assert!(info.proxy_protocol && info.dns);
        assert_eq!(info.listens_at().to_string(), "127.9.9.1");
        let redirected = ProxyInfo { bind: None, ..info.clone() };
        assert_eq!(redirected.listens_at().to_string(), "10.0.0.1", "brought to it");
        assert_eq!(ProxyInfo { proxy_protocol: false, ..redirected }.listens_at().to_string(), "0.0.0.0");
        for bad in ["", "sidecar~1.1.1.1", "ztunnel~10.0.0.1~a.b~b.svc.cluster.local"] {
            let node = Node { id: bad.into(), ..Node::default() };
            assert_eq!(describe(&proxy(node)).unwrap_err().code(), tonic::Code::InvalidArgument);
        }
    }
}
