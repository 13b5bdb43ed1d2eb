//! The world of the worked examples: three clusters, two networks, six pods of one service.

use std::collections::BTreeMap;
use std::sync::Arc;

use stolos_k8s::istio;

use crate::model::{
    ClusterView, Endpoint, Gateway, Health, Labels, Locality, Port, Protocol, ProxyInfo, Resolution, Service, Settings,
    Target, World,
};

pub(crate) const NAMESPACE: &str = "shop";
pub(crate) const HOST: &str = "web.shop.svc.cluster.local";

const CLUSTERS: [(&str, &str, &str, u8, u8, &str); 3] = [
    ("c1", "net1", "r1/z1", 1, 2, "1.1.1.1"),
    ("c2", "net1", "r1/z2", 2, 1, "2.2.2.2"),
    ("c3", "net2", "r2/z1", 3, 3, "3.3.3.3"),
];

pub(crate) fn world() -> World {
    let clusters = CLUSTERS.iter().map(|(id, network, place, net, pods, gateway)| {
        let endpoints = (1..=*pods).map(|n| endpoint(id, network, place, &format!("10.{net}.0.{n}"))).collect();
        Arc::new(ClusterView {
            id: (*id).into(),
            network: (*network).into(),
            services: Arc::new([(HOST.into(), Arc::new(service(id, *net)))].into()),
            accounts: Arc::new([(HOST.into(), [format!("spiffe://cluster.local/ns/shop/sa/web-{id}")].into())].into()),
            endpoints: [(HOST.into(), Arc::new(endpoints))].into(),
            gateways: Arc::new(vec![gateway_of(id, network, gateway)]),
            namespaces: Arc::new(BTreeMap::from([(NAMESPACE.to_owned(), Labels::new())])),
            pods: Arc::default(),
        })
    });
    let settings = Settings { own: "c1".into(), mesh: "mesh".into(), ..Settings::default() };
    World::compose(&World::default(), Arc::new(settings), clusters.collect(), Arc::default())
}

pub(crate) fn proxy(cluster: &str) -> ProxyInfo {
    let (id, network, place, net, ..) = CLUSTERS.iter().find(|(id, ..)| *id == cluster).unwrap();
    ProxyInfo {
        id: format!("sidecar~10.{net}.0.1~web-1.{NAMESPACE}~{NAMESPACE}.svc.cluster.local"),
        address: Some(format!("10.{net}.0.1").parse().unwrap()),
        name: "web-1".into(),
        namespace: NAMESPACE.into(),
        cluster: (*id).into(),
        network: (*network).into(),
        labels: labels(id, network, place),
        locality: Locality::parse(place),
        account: format!("web-{id}"),
        ..ProxyInfo::default()
    }
}

fn labels(id: &str, network: &str, place: &str) -> Labels {
    let place = Locality::parse(place);
    Labels::from([
        (istio::APP_LABEL.to_owned(), "web".to_owned()),
        (istio::CLUSTER_LABEL.to_owned(), id.to_owned()),
        (istio::NETWORK_LABEL.to_owned(), network.to_owned()),
        (istio::REGION_LABEL.to_owned(), place.region),
        (istio::ZONE_LABEL.to_owned(), place.zone),
    ])
}

fn service(cluster: &str, net: u8) -> Service {
    let vip = format!("10.10{net}.0.1").parse().unwrap();
    Service {
        name: "web".into(),
        namespace: NAMESPACE.into(),
        host: HOST.into(),
        ports: vec![Port { name: "http".into(), number: 8080, protocol: Protocol::Http, target: Target::Number(8080) }],
        resolution: Resolution::ClientSide,
        vips: [(cluster.into(), vec![vip])].into(),
        vip: Some(vip),
        accounts: Default::default(),
        labels: Labels::new(),
        selector: [(istio::APP_LABEL.to_owned(), "web".to_owned())].into(),
        created: 1,
        export_to: Default::default(),
        node_local: false,
        publish_not_ready: false,
        distribution: None,
    }
}

fn endpoint(cluster: &str, network: &str, place: &str, address: &str) -> Endpoint {
    Endpoint {
        address: Some(address.parse().unwrap()),
        port: 8080,
        port_name: "http".into(),
        cluster: cluster.into(),
        network: network.into(),
        locality: Locality::parse(place),
        identity: format!("spiffe://cluster.local/ns/shop/sa/web-{cluster}"),
        tls: true,
        weight: 1,
        labels: Arc::new(labels(cluster, network, place)),
        health: Health::Healthy,
        workload: "web".into(),
        namespace: NAMESPACE.into(),
        node: "node".into(),
        hostname: None,
    }
}

fn gateway_of(cluster: &str, network: &str, address: &str) -> Gateway {
    Gateway { address: address.parse().unwrap(), port: 15443, network: network.into(), cluster: cluster.into() }
}

pub(crate) fn change(world: &mut World, cluster: &str, change: impl FnOnce(&mut ClusterView)) {
    let mut clusters = world.clusters.clone();
    let view = clusters.iter_mut().find(|c| &*c.id == cluster).unwrap();
    change(Arc::make_mut(view));
    *world = World::compose(world, world.settings.clone(), clusters, world.policies.clone());
}

pub(crate) fn change_endpoints(world: &mut World, cluster: &str, by: impl FnOnce(&mut Vec<Endpoint>)) {
    change(world, cluster, |view| by(Arc::make_mut(view.endpoints.get_mut(HOST).unwrap())));
}

pub(crate) fn change_service(world: &mut World, cluster: &str, by: impl FnOnce(&mut Service)) {
    change(world, cluster, |view| {
        by(Arc::make_mut(Arc::make_mut(&mut view.services).get_mut(HOST).unwrap()));
    });
}

pub(crate) fn set_gateways(world: &mut World, cluster: &str, addresses: &[&str]) {
    change(world, cluster, |view| {
        let network = view.network.clone();
        view.gateways = Arc::new(addresses.iter().map(|a| gateway_of(cluster, &network, a)).collect());
    });
}

pub(crate) fn set_policies(world: &mut World, policies: crate::policy::Policies) {
    *world = World::compose(world, world.settings.clone(), world.clusters.clone(), Arc::new(policies));
}
