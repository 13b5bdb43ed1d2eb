//! Pictures made in steps, and what is shared.

use std::sync::Arc;
use std::time::Instant;

use stolos_xds::{Snapshot, message};

use super::groups::Groups;
use super::picture::{Built, build};
use crate::model::{ClusterView, ProxyInfo, Resolution, Service, World};
use crate::translate::fixture;

fn names(snapshot: &Snapshot, type_url: &str) -> Vec<String> {
    snapshot.get(type_url).unwrap().iter().map(|resource| resource.name.to_string()).collect()
}

#[test]
fn an_endpoint_change_makes_only_that_anew() {
    let mut world = fixture::world();
    let info = Arc::new(fixture::proxy("c1"));
    let mut groups = Groups::default();
    groups.begin(&Arc::new(world.clone()));
    let built = build(&info, &mut groups, None);
    let first = Arc::clone(&built.snapshot);
    groups.end();
    assert_eq!(
        names(&first, message::CLUSTER),
        [
            "BlackHoleCluster",
            "InboundPassthroughCluster",
            "PassthroughCluster",
            "inbound|8080||",
            "outbound|8080||web.shop.svc.cluster.local",
        ]
    );
    assert_eq!(names(&first, message::LISTENER), ["0.0.0.0_8080", "virtualInbound", "virtualOutbound"]);
    assert_eq!(names(&first, message::ROUTE), ["8080"]);
    assert_eq!(names(&first, message::ENDPOINT), ["outbound|8080||web.shop.svc.cluster.local"]);

    fixture::change_endpoints(&mut world, "c3", |endpoints| endpoints.truncate(1));
    let world = Arc::new(world);
    groups.begin(&world);
    assert_eq!((groups.moved.len(), groups.only_endpoints), (1, true));
    let second = built.follow(&info, &groups, &"2".into()).unwrap().snapshot;
    for kept in [message::CLUSTER, message::LISTENER, message::ROUTE] {
        assert!(Arc::ptr_eq(first.get(kept).unwrap(), second.get(kept).unwrap()), "{kept}");
    }
    assert_ne!(first.get(message::ENDPOINT), second.get(message::ENDPOINT));
    let again = build(&info, &mut groups, Some(&built)).snapshot;
    assert!(Arc::ptr_eq(again.get(message::ENDPOINT).unwrap(), second.get(message::ENDPOINT).unwrap()));
}

#[test]
fn whom_a_change_does_not_concern_has_the_same_as_before() {
    let mut world = fixture::world();
    fixture::change_service(&mut world, "c1", |service| service.export_to = [".".to_owned()].into());
    let here = Arc::new(fixture::proxy("c1"));
    let there = Arc::new(ProxyInfo { namespace: "elsewhere".into(), ..fixture::proxy("c1") });
    let mut groups = Groups::default();
    groups.begin(&Arc::new(world.clone()));
    let [before_here, before_there] = [&here, &there].map(|info| build(info, &mut groups, None));
    groups.end();
    fixture::change_endpoints(&mut world, "c2", |endpoints| endpoints[0].weight += 1);
    groups.begin(&Arc::new(world));
    let follow = |info, before: &Built| before.follow(info, &groups, &"2".into()).unwrap().snapshot;
    assert!(!Arc::ptr_eq(&follow(&here, &before_here), &before_here.snapshot));
    assert!(Arc::ptr_eq(&follow(&there, &before_there), &before_there.snapshot));
}

/// Proxies of several places and namespaces, in steps that share what they can, against all of it made at once.
#[test]
fn a_picture_made_in_steps_is_the_one_made_at_once() {
    let mut world = fixture::world();
    let rule = |outlier: bool| crate::policy::DestinationRule {
        namespace: fixture::NAMESPACE.into(),
        name: "web".into(),
        host: fixture::HOST.into(),
        policy: outlier.then(|| crate::policy::TrafficPolicy {
            all: crate::policy::PortPolicy { outlier: Some(Default::default()), ..Default::default() },
            ..Default::default()
        }),
        subsets: Vec::new(),
        export_to: [".".to_owned()].into(),
        workloads: Default::default(),
    };
    let router = ProxyInfo { kind: crate::model::ProxyKind::Router, ..fixture::proxy("c1") };
    let proxies = [
        fixture::proxy("c1"),
        ProxyInfo { namespace: "elsewhere".into(), ..fixture::proxy("c1") },
        ProxyInfo { locality: crate::model::Locality::parse("r1/z2"), ..fixture::proxy("c1") },
        ProxyInfo { dns: true, ..fixture::proxy("c2") },
        fixture::proxy("c3"),
        router,
    ]
    .map(Arc::new);
    let mut groups = Groups::default();
    let mut built: Vec<Option<Built>> = vec![None; proxies.len()];
    for step in 0..24usize {
        match step % 6 {
            0 => fixture::change_endpoints(&mut world, "c2", |e| e[0].weight += 1),
            1 if step == 19 => fixture::change(&mut world, "c2", |view| view.endpoints.clear()),
            1 => fixture::set_gateways(&mut world, "c3", &["3.3.3.3", "3.3.3.9"][..1 + step % 2]),
            2 => fixture::change_service(&mut world, "c1", |s| s.ports[0].name = format!("http-{step}")),
            3 => fixture::change_endpoints(&mut world, "c1", |e| e.truncate(1)),
            4 => {
                let destinations = vec![rule(step % 12 == 4)];
                fixture::set_policies(&mut world, crate::policy::Policies { destinations, ..Default::default() });
            }
            _ => fixture::change_service(&mut world, "c1", |s| {
                s.resolution = [Resolution::ClientSide, Resolution::Passthrough][step / 6 % 2].clone();
                s.ports[0].name = "http".into();
            }),
        }
        let world = Arc::new(world.clone());
        groups.begin(&world);
        let mut fresh = Groups::default();
        fresh.begin(&world);
        for (info, built) in proxies.iter().zip(&mut built) {
            let followed = built.as_ref().filter(|_| groups.only_endpoints);
            let followed = followed.and_then(|before| before.follow(info, &groups, &"x".into()));
            let now = followed.unwrap_or_else(|| build(info, &mut groups, built.as_ref()));
            let at_once = build(info, &mut fresh, None).snapshot;
            for (type_url, expected) in at_once.iter() {
                assert_eq!(now.snapshot.get(type_url), Some(expected), "{type_url} after step {step} for {info:?}");
            }
            *built = Some(now);
        }
        groups.end();
    }
}

#[test]
fn proxies_alike_share() {
    let world = Arc::new(fixture::world());
    let mut groups = Groups::default();
    groups.begin(&world);
    let mut of = |info: ProxyInfo| groups.of(&Arc::new(info));
    let one = of(fixture::proxy("c1"));
    assert!(Arc::ptr_eq(&one, &of(ProxyInfo { name: "web-2".into(), ..fixture::proxy("c1") })));
    let place = crate::model::Locality::parse("r1/z9");
    assert!(Arc::ptr_eq(&one, &of(ProxyInfo { locality: place, ..fixture::proxy("c1") })), "nothing goes by places");
    let neighbour = of(ProxyInfo { namespace: "elsewhere".into(), ..fixture::proxy("c1") });
    let name = "outbound|8080||web.shop.svc.cluster.local";
    let shared = |group: &super::groups::Group| group.endpoints.get(name).cloned().unwrap();
    assert!(Arc::ptr_eq(&shared(&one), &shared(&neighbour)), "endpoints do not depend on the namespace");
    assert!(!Arc::ptr_eq(&shared(&one), &shared(&of(fixture::proxy("c3")))), "another network");
}

/// Time for 100 clusters, 1,000 services and 1,000 proxies: everything, then one endpoint's change. Printed.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stderr, reason = "a measurement")]
fn one_change_among_many() {
    let (of_clusters, of_services, of_proxies) = (100, 1000, 1000);
    let small = fixture::world();
    let (service, endpoints) =
        (small.services.by_host[fixture::HOST].clone(), &small.clusters[0].endpoints[fixture::HOST]);
    let hosts: Vec<Arc<str>> =
        (0..of_services).map(|n| format!("s{n}.ns{}.svc.cluster.local", n % 20).into()).collect();
    let clusters = (0..of_clusters).map(|c| {
        let id: Arc<str> = format!("c{c}").into();
        let mut view = ClusterView::clone(&small.clusters[0]);
        view.id = id.clone();
        let services = hosts.iter().enumerate().map(|(n, host)| {
            let service = Service {
                name: format!("s{n}"),
                namespace: format!("ns{}", n % 20),
                host: host.clone(),
                ..Service::clone(&service)
            };
            (host.clone(), Arc::new(service))
        });
        view.services = Arc::new(services.collect());
        view.accounts = Arc::default();
        let endpoints = hosts.iter().enumerate().filter(|(n, _)| n % 10 == c % 10).map(|(_, host)| {
            let of = endpoints.iter().map(|e| crate::model::Endpoint { cluster: id.clone(), ..e.clone() });
            (host.clone(), Arc::new(of.collect()))
        });
        view.endpoints = endpoints.collect();
        Arc::new(view)
    });
    let mut world = World::compose(&World::default(), small.settings.clone(), clusters.collect(), Arc::default());
    let proxies: Vec<_> = (0..of_proxies)
        .map(|n| {
            Arc::new(ProxyInfo {
                cluster: "c0".into(),
                name: format!("p{n}"),
                namespace: format!("ns{}", n % 20),
                ..fixture::proxy("c1")
            })
        })
        .collect();
    let mut groups = Groups::default();
    let mut built: Vec<Built> = Vec::new();
    let mut round = |world: &World, what: &str| {
        let world = Arc::new(world.clone());
        let begun = Instant::now();
        groups.begin(&world);
        let made: Vec<_> = proxies
            .iter()
            .enumerate()
            .map(|(n, info)| {
                let before = built.get(n);
                let followed = before.filter(|_| groups.only_endpoints);
                let followed = followed.and_then(|before| before.follow(info, &groups, &"x".into()));
                followed.unwrap_or_else(|| build(info, &mut groups, before))
            })
            .collect();
        built = made;
        groups.end();
        eprintln!("{what}: {:?} for {} proxies in {} groups", begun.elapsed(), proxies.len(), groups.len());
    };
    round(&world, "everything");
    for _ in 0..3 {
        let mut clusters = world.clusters.clone();
        let view = Arc::make_mut(&mut clusters[7]);
        let endpoints = view.endpoints.values_mut().next().unwrap();
        Arc::make_mut(endpoints)[0].weight += 1;
        let begun = Instant::now();
        world = World::compose(&world, world.settings.clone(), clusters, world.policies.clone());
        eprintln!("compose: {:?}", begun.elapsed());
        round(&world, "one endpoint");
    }
    let mut clusters = world.clusters.clone();
    let view = Arc::make_mut(&mut clusters[7]);
    Arc::make_mut(Arc::make_mut(&mut view.services).values_mut().next().unwrap()).accounts.insert("spiffe://x".into());
    world = World::compose(&world, world.settings.clone(), clusters, world.policies.clone());
    round(&world, "one service");
}
