//! Where east-west gateways are reached (B.3): by their Services, or by hand.

use serde_json::{Map, Value, json};
use stolos_spec::{Cluster, Mesh};

use super::{Scene, Sketch};
use crate::values::lay;

/// Without this annotation the address of a gateway of type NodePort is nobody's to find (B.3, E.28).
const NODE_SELECTOR: &str = "traffic.istio.io/nodeSelector";

/// The values of chart `gateway` for a cluster's east-west gateway: the mesh's, and over them its own.
pub(crate) fn values(mesh: &Mesh, cluster: &Cluster) -> Map<String, Value> {
    let mut all = Value::Object(mesh.control_plane.gateways.eastwest.clone());
    if let Some(gateway) = &cluster.gateway {
        lay(&mut all, Value::Object(gateway.values.clone()));
    }
    match all {
        Value::Object(all) => all,
        _ => Map::new(),
    }
}

/// `meshNetworks` of every control plane: the gateways whose addresses are given by hand; none where there are none.
///
/// Such a gateway's Service bears no network label, so that nothing but these addresses leads there (E.22).
pub(crate) fn mesh_networks(mesh: &Mesh) -> Option<Value> {
    let mut networks = Map::new();
    for network in mesh.networks() {
        let of_network = || mesh.clusters.iter().filter(|cluster| cluster.network == *network);
        let gateways: Vec<_> = of_network()
            .filter_map(Cluster::gateway_by_hand)
            .flat_map(|gateway| {
                gateway.addresses.iter().map(|address| json!({"address": address, "port": gateway.port}))
            })
            .collect();
        if !gateways.is_empty() {
            let registries: Vec<_> =
                of_network().map(|cluster| json!({"fromRegistry": cluster.name.as_str()})).collect();
            networks.insert(network.to_string(), json!({"endpoints": registries, "gateways": gateways}));
        }
    }
    (!networks.is_empty()).then_some(Value::Object(networks))
}

/// How the Service of a gateway gets its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is given by hand, and the Service's does not count.
    ByHand,
    /// It comes in the Service's status, or stands in its spec: it can be waited for.
    Service,
    /// Those of the nodes.
    Nodes,
    /// There will never be any.
    None,
}

impl Way {
    /// By the file and the values that the Service is made of.
    pub(crate) fn of(cluster: &Cluster, values: &Map<String, Value>) -> Self {
        if cluster.gateway_by_hand().is_some() {
            return Self::ByHand;
        }
        let service = values.get("service").cloned().unwrap_or_default();
        let external = service["externalIPs"].as_array().is_some_and(|all| !all.is_empty());
        match service["type"].as_str().unwrap_or("LoadBalancer") {
            "LoadBalancer" => Self::Service,
            _ if external => Self::Service,
            "NodePort" if service["annotations"][NODE_SELECTOR].is_string() => Self::Nodes,
            _ => Self::None,
        }
    }
}

/// Says where a gateway of a mesh with several networks could never be reached.
pub(super) fn check(scene: &Scene<'_>, sketch: &mut Sketch) {
    for cluster in scene.mesh.clusters.iter().filter(|cluster| scene.mesh.needs_gateway(cluster)) {
        let values = values(scene.mesh, cluster);
        if Way::of(cluster, &values) != Way::None {
            continue;
        }
        let kind = values.get("service").and_then(|service| service["type"].as_str()).unwrap_or_default().to_owned();
        let text = match kind.as_str() {
            "NodePort" => format!(
                "its east-west gateway is of type NodePort without the annotation {NODE_SELECTOR}: other networks do not \
                 find it"
            ),
            _ => format!("its east-west gateway is of type {kind}, which has no address outside the cluster"),
        };
        let ways = [
            "`gateway: {values: {service: {type: NodePort, annotations: {traffic.istio.io/nodeSelector: '{}'}}}}`",
            "`gateway: {values: {service: {externalIPs: [192.0.2.10]}}}`",
            "`gateway: {addresses: [192.0.2.10], port: 15443}`, where something of yours leads to it",
        ];
        sketch.problem("gateway-address", Some(cluster.name.as_str()), text, &ways);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stolos_spec::{SourceText, read};

    fn mesh(text: &str) -> Mesh {
        read(&SourceText { path: "mesh.yaml".into(), text: text.to_owned() }, None).unwrap().mesh
    }

    #[test]
    fn a_gateways_address_comes_in_one_of_four_ways() {
        let cases = [
            ("", Way::Service),
            (", gateway: {addresses: [192.0.2.1]}", Way::ByHand),
            (", gateway: {values: {service: {type: NodePort}}}", Way::None),
            (
                ", gateway: {values: {service: {type: NodePort, annotations: {traffic.istio.io/nodeSelector: '{}'}}}}",
                Way::Nodes,
            ),
            (", gateway: {values: {service: {type: ClusterIP, externalIPs: [192.0.2.1]}}}", Way::Service),
            (", gateway: {values: {service: {type: ClusterIP}}}", Way::None),
        ];
        for (said, expected) in cases {
            let mesh = mesh(&format!("clusters: [{{name: a, network: x{said}}}, {{name: b, network: y}}]"));
            let cluster = &mesh.clusters[0];
            assert_eq!(Way::of(cluster, &values(&mesh, cluster)), expected, "{said}");
        }
    }

    #[test]
    fn addresses_by_hand_are_mesh_networks_and_nothing_else_is() {
        let of = |text: &str| mesh_networks(&mesh(text)).map(|networks| networks.to_string());
        assert_eq!(of("clusters: [{name: a, network: x}, {name: b, network: y}]"), None);
        insta::assert_snapshot!(
            of("clusters: [{name: a, network: x, gateway: {addresses: [192.0.2.1, gw.example.com], port: 443}}, {name: b, network: x}, {name: c, network: y}]").unwrap(),
            @r#"{"x":{"endpoints":[{"fromRegistry":"a"},{"fromRegistry":"b"}],"gateways":[{"address":"192.0.2.1","port":443},{"address":"gw.example.com","port":443}]}}"#
        );
    }
}
