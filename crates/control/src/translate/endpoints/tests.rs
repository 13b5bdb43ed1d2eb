//! The worked examples of Istio's algorithm, E1 to E13, and its failover.

use super::*;
use crate::model::{Settings, World};
use crate::policy::{LocalitySetting, Outlier, PortPolicy, TrafficPolicy};
use crate::translate::fixture::{self, HOST};

/// What a proxy in `cluster` gets, as `place: address weight, … (W)`.
fn seen(world: &World, proxy: &ProxyInfo, style: Style, rule: Option<&DestinationRule>) -> Vec<String> {
    let service = &world.services.by_host[HOST];
    let groups = select(world, proxy, service, &service.ports[0], "", style, rule);
    groups.iter().map(show).collect()
}

fn show(group: &Group) -> String {
    let endpoints: Vec<_> = group.endpoints.iter().map(|e| format!("{} w{}", e.address, e.weight)).collect();
    let weight = group.weight.map_or("-".to_owned(), |weight| weight.to_string());
    let priority = if group.priority > 0 { format!(" p{}", group.priority) } else { String::new() };
    format!("{}: {} (W{weight}){priority}", group.locality, endpoints.join(", "))
}

fn check(world: &World, in_c1: &[&str], in_c3: &[&str]) {
    assert_eq!(seen(world, &fixture::proxy("c1"), Style::Client, None), in_c1, "in c1");
    let mut in_c2 = fixture::proxy("c2");
    in_c2.network = fixture::proxy("c1").network;
    assert_eq!(seen(world, &in_c2, Style::Client, None), in_c1, "in c2");
    assert_eq!(seen(world, &fixture::proxy("c3"), Style::Client, None), in_c3, "in c3");
}

const LOCAL_Z1: &str = "r1/z1: 10.1.0.1 w2, 10.1.0.2 w2 (W4)";
const LOCAL_Z2: &str = "r1/z2: 10.2.0.1 w2 (W2)";
const FAR_Z1: &str = "r1/z1: 1.1.1.1 w4 (W4)";
const FAR_Z2: &str = "r1/z2: 2.2.2.2 w2 (W2)";
const OWN_C3: &str = "r2/z1: 10.3.0.1 w2, 10.3.0.2 w2, 10.3.0.3 w2 (W6)";

#[test]
fn e1_gateways_stand_for_another_networks_pods() {
    let world = fixture::world();
    assert_eq!(world.gateways.scale(), 2);
    check(&world, &[LOCAL_Z1, LOCAL_Z2, "r2/z1: 3.3.3.3 w6 (W6)"], &[FAR_Z1, FAR_Z2, OWN_C3]);
}

#[test]
fn e2_two_addresses_share() {
    let mut world = fixture::world();
    fixture::set_gateways(&mut world, "c3", &["3.3.3.3", "3.3.3.4"]);
    check(&world, &[LOCAL_Z1, LOCAL_Z2, "r2/z1: 3.3.3.3 w3, 3.3.3.4 w3 (W6)"], &[FAR_Z1, FAR_Z2, OWN_C3]);
}

#[test]
fn e3_without_a_gateway_pods_are_sent_as_they_are() {
    let mut world = fixture::world();
    fixture::set_gateways(&mut world, "c3", &[]);
    check(&world, &[LOCAL_Z1, LOCAL_Z2, OWN_C3], &[FAR_Z1, FAR_Z2, OWN_C3]);
}

#[test]
fn e4_plaintext_pods_do_not_count_across_networks() {
    let mut world = fixture::world();
    fixture::change_endpoints(&mut world, "c3", |endpoints| endpoints[2].tls = false);
    check(&world, &[LOCAL_Z1, LOCAL_Z2, "r2/z1: 3.3.3.3 w4 (W4)"], &[FAR_Z1, FAR_Z2, OWN_C3]);
}

#[test]
fn e5_gateways_of_no_cluster_serve_the_whole_network() {
    let mut world = fixture::world();
    for cluster in ["c1", "c2", "c3"] {
        fixture::set_gateways(&mut world, cluster, &[]);
    }
    let gateway = |address: &str, network: &str| Gateway {
        address: address.parse().unwrap(),
        port: 15443,
        network: network.into(),
        cluster: "".into(),
    };
    let gateways = vec![gateway("1.1.1.1", "net1"), gateway("1.1.1.2", "net1"), gateway("3.3.3.3", "net2")];
    let settings = Settings { gateways, ..Settings::clone(&world.settings) };
    world = World::compose(&world, Arc::new(settings), world.clusters.clone(), world.policies.clone());
    check(
        &world,
        &[LOCAL_Z1, LOCAL_Z2, "r2/z1: 3.3.3.3 w6 (W6)"],
        &["r1/z1: 1.1.1.1 w2, 1.1.1.2 w2 (W4)", "r1/z2: 1.1.1.1 w1, 1.1.1.2 w1 (W2)", OWN_C3],
    );
}

#[test]
fn e6_weights_scale_by_all_gateways_of_the_mesh() {
    let mut world = fixture::world();
    fixture::set_gateways(&mut world, "c1", &["1.1.1.1", "1.1.1.2"]);
    assert_eq!(world.gateways.scale(), 6);
    check(
        &world,
        &["r1/z1: 10.1.0.1 w6, 10.1.0.2 w6 (W12)", "r1/z2: 10.2.0.1 w6 (W6)", "r2/z1: 3.3.3.3 w18 (W18)"],
        &[
            "r1/z1: 1.1.1.1 w6, 1.1.1.2 w6 (W12)",
            "r1/z2: 2.2.2.2 w6 (W6)",
            "r2/z1: 10.3.0.1 w6, 10.3.0.2 w6, 10.3.0.3 w6 (W18)",
        ],
    );
}

#[test]
fn e7_a_proxy_without_a_network_uses_gateways_for_everything() {
    let world = fixture::world();
    for cluster in ["c1", "c3"] {
        let proxy = ProxyInfo { network: "".into(), ..fixture::proxy(cluster) };
        assert_eq!(seen(&world, &proxy, Style::Client, None), [FAR_Z1, FAR_Z2, "r2/z1: 3.3.3.3 w6 (W6)"]);
    }
}

#[test]
fn e8_weights_of_endpoints_count() {
    let mut world = fixture::world();
    fixture::change_endpoints(&mut world, "c3", |endpoints| endpoints[0].weight = 10);
    check(
        &world,
        &[LOCAL_Z1, LOCAL_Z2, "r2/z1: 3.3.3.3 w24 (W24)"],
        &[FAR_Z1, FAR_Z2, "r2/z1: 10.3.0.1 w20, 10.3.0.2 w2, 10.3.0.3 w2 (W24)"],
    );
}

#[test]
fn e9_an_emptied_group_stays_without_a_weight() {
    let mut world = fixture::world();
    fixture::change_endpoints(&mut world, "c3", |endpoints| endpoints.iter_mut().for_each(|e| e.tls = false));
    check(&world, &[LOCAL_Z1, LOCAL_Z2, "r2/z1:  (W-)"], &[FAR_Z1, FAR_Z2, OWN_C3]);
}

#[test]
fn e10_without_any_gateway_nothing_is_scaled() {
    let mut world = fixture::world();
    for cluster in ["c1", "c2", "c3"] {
        fixture::set_gateways(&mut world, cluster, &[]);
    }
    let all = [
        "r1/z1: 10.1.0.1 w1, 10.1.0.2 w1 (W2)",
        "r1/z2: 10.2.0.1 w1 (W1)",
        "r2/z1: 10.3.0.1 w1, 10.3.0.2 w1, 10.3.0.3 w1 (W3)",
    ];
    check(&world, &all, &all);
}

#[test]
fn e11_two_addresses_on_both_sides() {
    let mut world = fixture::world();
    fixture::set_gateways(&mut world, "c1", &["1.1.1.1", "1.1.1.2"]);
    fixture::set_gateways(&mut world, "c3", &["3.3.3.3", "3.3.3.4"]);
    check(
        &world,
        &["r1/z1: 10.1.0.1 w6, 10.1.0.2 w6 (W12)", "r1/z2: 10.2.0.1 w6 (W6)", "r2/z1: 3.3.3.3 w9, 3.3.3.4 w9 (W18)"],
        &[
            "r1/z1: 1.1.1.1 w6, 1.1.1.2 w6 (W12)",
            "r1/z2: 2.2.2.2 w6 (W6)",
            "r2/z1: 10.3.0.1 w6, 10.3.0.2 w6, 10.3.0.3 w6 (W18)",
        ],
    );
}

#[test]
fn e12_an_endpoint_without_a_network_is_near_everybody() {
    let mut world = fixture::world();
    fixture::change_endpoints(&mut world, "c2", |endpoints| endpoints[0].network = "".into());
    check(&world, &[LOCAL_Z1, LOCAL_Z2, "r2/z1: 3.3.3.3 w6 (W6)"], &[FAR_Z1, "r1/z2: 10.2.0.1 w2 (W2)", OWN_C3]);
}

#[test]
fn e13_one_place_is_one_group() {
    let mut world = fixture::world();
    for cluster in ["c1", "c2", "c3"] {
        fixture::change_endpoints(&mut world, cluster, |endpoints| {
            endpoints.iter_mut().for_each(|e| e.locality = Locality::parse("r1/z1"));
        });
    }
    check(
        &world,
        &["r1/z1: 10.1.0.1 w2, 10.1.0.2 w2, 10.2.0.1 w2, 3.3.3.3 w6 (W12)"],
        &["r1/z1: 10.3.0.1 w2, 10.3.0.2 w2, 10.3.0.3 w2, 1.1.1.1 w4, 2.2.2.2 w2 (W12)"],
    );
}

#[test]
fn gateways_see_the_pods_of_their_network_and_no_other_gateway() {
    let world = fixture::world();
    let gateway = |cluster: &str| {
        let proxy = fixture::proxy(cluster);
        ProxyInfo { kind: crate::model::ProxyKind::Router, view: [proxy.network.to_string()].into(), ..proxy }
    };
    assert_eq!(seen(&world, &gateway("c3"), Style::Passthrough, None), [OWN_C3]);
    for cluster in ["c1", "c2"] {
        assert_eq!(seen(&world, &gateway(cluster), Style::Passthrough, None), [LOCAL_Z1, LOCAL_Z2]);
    }
}

#[test]
fn gateways_do_not_pass_to_pods_without_a_sidecar() {
    let mut world = fixture::world();
    fixture::change_endpoints(&mut world, "c3", |endpoints| endpoints[1].tls = false);
    let proxy = ProxyInfo { view: ["net2".to_owned()].into(), ..fixture::proxy("c3") };
    assert_eq!(seen(&world, &proxy, Style::Passthrough, None), ["r2/z1: 10.3.0.1 w2, 10.3.0.3 w2 (W4)"]);
}

fn rule(policy: PortPolicy) -> DestinationRule {
    DestinationRule {
        namespace: fixture::NAMESPACE.into(),
        name: "rule".into(),
        host: HOST.into(),
        policy: Some(TrafficPolicy { all: policy, ports: Default::default() }),
        subsets: Vec::new(),
        export_to: Default::default(),
        workloads: Labels::new(),
    }
}

fn outlier() -> PortPolicy {
    PortPolicy { outlier: Some(Outlier::default()), ..Default::default() }
}

#[test]
fn failover_goes_by_distance_where_outlier_detection_is_asked_for() {
    let world = fixture::world();
    let (c1, c3) = (fixture::proxy("c1"), fixture::proxy("c3"));
    let far = |priority| format!("r2/z1: 3.3.3.3 w6 (W6) p{priority}");
    let near = [LOCAL_Z1.to_owned(), format!("{LOCAL_Z2} p1"), far(2)];
    assert_eq!(seen(&world, &c1, Style::Client, Some(&rule(outlier()))), near);
    assert_eq!(
        seen(&world, &c3, Style::Client, Some(&rule(outlier()))),
        [format!("{FAR_Z1} p1"), format!("{FAR_Z2} p1"), OWN_C3.to_owned()]
    );

    let failover = LocalitySetting { failover: vec![("r1".into(), "r3".into())], ..Default::default() };
    let with = PortPolicy { locality: Some(failover), ..outlier() };
    assert_eq!(seen(&world, &c1, Style::Client, Some(&rule(with))), near);

    let labels = [istio::NETWORK_LABEL, istio::REGION_LABEL, istio::ZONE_LABEL].map(str::to_owned);
    let failover_priority = LocalitySetting { failover_priority: labels.into(), ..Default::default() };
    let with = PortPolicy { locality: Some(failover_priority.clone()), ..outlier() };
    assert_eq!(seen(&world, &c1, Style::Client, Some(&rule(with))), near);

    let silent = PortPolicy { locality: Some(failover_priority), ..Default::default() };
    let without = seen(&world, &c1, Style::Client, Some(&rule(silent)));
    assert_eq!(without, [LOCAL_Z1, LOCAL_Z2, "r2/z1: 3.3.3.3 w6 (W6)"], "without outlier detection: inactive");
}

#[test]
fn distribute_gives_fixed_shares() {
    let world = fixture::world();
    let to = vec![("r1/*".to_owned(), 80), ("r2/*".to_owned(), 20)];
    let setting = LocalitySetting { distribute: vec![("r1/z1/*".into(), to)], ..Default::default() };
    let policy = PortPolicy { locality: Some(setting), ..Default::default() };
    assert_eq!(
        seen(&world, &fixture::proxy("c1"), Style::Client, Some(&rule(policy))),
        ["r1/z1: 10.1.0.1 w2, 10.1.0.2 w2 (W54)", "r1/z2: 10.2.0.1 w2 (W27)", "r2/z1: 3.3.3.3 w6 (W20)"]
    );
}

#[test]
fn cluster_local_hosts_stay_in_their_cluster() {
    let mut world = fixture::world();
    let settings = Settings { cluster_local: vec![(HOST.to_owned(), true)], ..Settings::clone(&world.settings) };
    world = World::compose(&world, Arc::new(settings), world.clusters.clone(), world.policies.clone());
    assert_eq!(seen(&world, &fixture::proxy("c1"), Style::Client, None), [LOCAL_Z1]);
}

#[test]
fn what_is_not_ready_is_left_out() {
    let mut world = fixture::world();
    fixture::change_endpoints(&mut world, "c1", |endpoints| endpoints[0].health = Health::Unhealthy);
    fixture::change_endpoints(&mut world, "c2", |endpoints| endpoints[0].health = Health::Terminating);
    let seen = seen(&world, &fixture::proxy("c1"), Style::Client, None);
    assert_eq!(seen, ["r1/z1: 10.1.0.2 w2 (W2)", "r2/z1: 3.3.3.3 w6 (W6)"]);
}
