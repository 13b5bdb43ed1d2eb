//! An upgrade carried out part by part leads to where the plan of the whole mesh leads; led back, to where it began.

use proptest::prelude::*;
use serde_json::{Value, json};
use stolos_spec::{Mesh, SourceText, read};

use super::*;
use crate::tests::{World, ids};
use crate::{ObjectKey, SYSTEM_NAMESPACE, plan};

const CLUSTERS: [&str; 2] = ["east", "west"];

fn mesh(control: &Value) -> Mesh {
    let mut control = control.clone();
    control["engine"] = "istio".into();
    let cluster = |name: &&str| json!({"name": name, "context": name, "network": name});
    let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"},
        "spec": {"controlPlane": control, "clusters": CLUSTERS.iter().map(cluster).collect::<Vec<_>>()}});
    read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh
}

fn old() -> Mesh {
    mesh(&json!({"version": "1.27.0"}))
}

fn new() -> Mesh {
    mesh(&json!({"version": "1.28.0", "revision": "1-28-0"}))
}

fn built() -> World {
    let mut world = World::new(&CLUSTERS);
    world.run(&plan(&old(), &world.observed).unwrap());
    world
}

fn namespace(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

fn deployment(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": namespace, "name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}}},
        "status": {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}})
}

fn pod(namespace: &str, app: &str, by: &str) -> Value {
    let status = json!({"revision": by}).to_string();
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": format!("{app}-x"), "labels": {"app": app},
            "annotations": {"sidecar.istio.io/status": status}},
        "status": {"phase": "Running"}})
}

/// What is seen of every cluster, with these pods and workloads in each.
fn sights(mesh: &Mesh, world: &World, besides: &Besides) -> Vec<ClusterSight> {
    let see = |member: &stolos_spec::Cluster| {
        ClusterSight::of(mesh, member, world.observed.cluster(member.name.as_str()).unwrap(), besides)
    };
    mesh.clusters.iter().map(see).collect()
}

fn besides(by: &str) -> Besides {
    Besides {
        pods: vec![pod("shop", "cart", by), pod("shop", "alone", by), pod("bank", "ledger", by)],
        workloads: vec![deployment("shop", "cart"), deployment("bank", "ledger")],
        ..Besides::default()
    }
}

fn inhabit(world: &mut World) {
    for cluster in CLUSTERS {
        for (name, labels) in [
            ("shop", json!({"istio-injection": "enabled"})),
            ("bank", json!({"istio-injection": "enabled"})),
            ("plain", json!({})),
        ] {
            world.state(cluster).objects.put(namespace(name, &labels));
        }
    }
}

fn refused(way: Way, mesh: &Mesh, world: &World) -> Vec<String> {
    let result = check(mesh, &world.observed)
        .and_then(|()| decide(way, mesh, &[], &sights(mesh, world, &Besides::default())).map(drop));
    result.err().into_iter().flat_map(|blocked| blocked.problems).map(|problem| problem.id).collect()
}

#[test]
fn what_is_to_be_done_is_said_in_order() {
    let mut world = built();
    inhabit(&mut world);
    let upgrade = decide(Way::Forward, &new(), &["shop".into()], &sights(&new(), &world, &besides("default"))).unwrap();
    insta::assert_snapshot!(upgrade.text());
    assert_eq!(upgrade.next(), Some(Phase::Canary));
}

#[test]
fn part_by_part_leads_to_where_apply_leads() {
    let (mut world, mesh) = (built(), new());
    let run = |world: &mut World, phase| {
        let part = plan_of(phase, Way::Forward, "1-28-0", &mesh, &world.observed).unwrap();
        let lines: Vec<_> = ids(&part).into_iter().filter(|id| !id.starts_with('…') && id.contains("/east/")).collect();
        world.run(&part);
        lines.join(" ")
    };
    assert_eq!(run(&mut world, Phase::Canary), "~ control/east/base + control/east/istiod");
    let now = |world: &World| decide(Way::Forward, &mesh, &[], &sights(&mesh, world, &Besides::default())).unwrap();
    assert_eq!(now(&world).next(), Some(Phase::Gateways));
    assert_eq!(run(&mut world, Phase::Canary), "", "what is done stays done");
    assert_eq!(run(&mut world, Phase::Gateways), "~ gateways/east/eastwest");
    assert_eq!(now(&world).next(), Some(Phase::Retire));
    // The default is the new one before the old one goes: the validating webhook must not lead to nobody.
    assert_eq!(run(&mut world, Phase::Retire), "~ control/east/base - leftovers/east/release-istiod");
    assert!(now(&world).is_done());
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
}

#[test]
fn back_leads_to_where_it_began() {
    for reached in [Phase::Canary, Phase::Gateways] {
        let (mut world, mesh) = (built(), new());
        for phase in [Phase::Canary, Phase::Gateways].into_iter().take_while(|phase| *phase <= reached) {
            world.run(&plan_of(phase, Way::Forward, "1-28-0", &mesh, &world.observed).unwrap());
        }
        let back = |world: &World| decide(Way::Back, &mesh, &[], &sights(&mesh, world, &Besides::default())).unwrap();
        let gateways = plan_of(Phase::Gateways, Way::Back, "default", &mesh, &world.observed).unwrap();
        assert_eq!(gateways.is_empty(), reached == Phase::Canary, "{:?}", ids(&gateways));
        world.run(&gateways);
        assert_eq!(back(&world).next(), Some(Phase::Retire));
        world.run(&plan_of(Phase::Retire, Way::Back, "1-28-0", &mesh, &world.observed).unwrap());
        assert_eq!(refused(Way::Back, &mesh, &world), ["canary"]);
        let rest = plan(&old(), &world.observed).unwrap();
        let rest: Vec<_> = ids(&rest).into_iter().filter(|id| !id.starts_with('…')).collect();
        assert_eq!(rest, ["~ control/east/base", "~ control/west/base"], "the definitions stay as new as they are");
    }
}

/// Killed between the default and the end of the old control plane: the default is the old one again.
#[test]
fn a_default_that_was_changed_is_changed_back() {
    let (mut world, mesh) = (built(), new());
    for phase in [Phase::Canary, Phase::Gateways] {
        world.run(&plan_of(phase, Way::Forward, "1-28-0", &mesh, &world.observed).unwrap());
    }
    let retirement = plan_of(Phase::Retire, Way::Forward, "1-28-0", &mesh, &world.observed).unwrap();
    retirement.steps.iter().filter(|step| step.id.as_str().ends_with("/base")).for_each(|step| world.carry_out(step));
    world.run(&plan_of(Phase::Gateways, Way::Back, "default", &mesh, &world.observed).unwrap());
    let withdrawal = plan_of(Phase::Retire, Way::Back, "1-28-0", &mesh, &world.observed).unwrap();
    let commands: Vec<_> = withdrawal.steps.iter().flat_map(|step| step.change.commands()).collect();
    insta::assert_snapshot!(commands[..2].join("\n"), @r"
    helm rollback istio-base 2 --namespace istio-system --history-max 5 --timeout 120s --kube-context east
    helm uninstall istiod-1-28-0 --namespace istio-system --timeout 120s --kube-context east
    ");
    world.run(&withdrawal);
    let base = &crate::release::deployed(&world.state("east").objects)[&(SYSTEM_NAMESPACE.into(), "istio-base".into())];
    assert_eq!(base.values.get("defaultRevision"), None);
}

#[test]
fn what_cannot_be_upgraded_is_refused() {
    let world = built();
    let fresh = World::new(&CLUSTERS);
    for (way, control, world, problem) in [
        (Way::Forward, json!({"version": "1.28.0"}), &world, "in-place"),
        (Way::Forward, json!({"version": "1.28.0", "revision": "a"}), &fresh, "not-built"),
        (Way::Forward, json!({"version": "1.28.0", "revision": "a", "installer": "istioctl"}), &world, "installer"),
        (Way::Forward, json!({"version": "1.28.0", "installer": "none"}), &world, "installer"),
        (Way::Back, json!({"version": "1.28.0", "revision": "a"}), &world, "canary"),
        (Way::Back, json!({"version": "1.27.0"}), &world, "retired"),
    ] {
        let found = refused(way, &mesh(&control), world);
        assert!(found.iter().all(|id| id == problem) && !found.is_empty(), "{control}: {found:?}, not {problem}");
    }
    let mut small = new();
    small.control_plane.engine = stolos_spec::Engine::Stolos;
    assert_eq!(refused(Way::Forward, &small, &world), ["no-revisions"]);
    let mut dark = world.clone();
    dark.observed.clusters.insert("west".into(), Sight::Unreachable { server: None, why: "no route".into() });
    assert_eq!(check(&new(), &dark.observed).unwrap_err().problems[0].id, "unreachable");
    let unknown = decide(Way::Forward, &new(), &["nowhere".into()], &sights(&new(), &world, &Besides::default()));
    assert_eq!(unknown.unwrap_err().problems[0].id, "namespace");
    let same = decide(Way::Forward, &old(), &[], &sights(&old(), &world, &Besides::default())).unwrap();
    assert!(same.is_done());
    assert_eq!(same.text().lines().next(), Some("Everything is at default (1.27.0)"));
}

/// How a namespace asks, whose proxies it gets, and what is done about that.
#[test]
fn namespaces_ask_in_several_ways() {
    let mut world = built();
    let tag = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "istio-revision-tag-stable", "labels": {"istio.io/tag": "stable", "istio.io/rev": "default"}}});
    world.state("east").objects.put(tag);
    let mut lines = Vec::new();
    for (name, labels) in [
        ("a-enabled", json!({"istio-injection": "enabled"})),
        ("b-both", json!({"istio-injection": "enabled", "istio.io/rev": "1-28-0"})),
        ("c-named", json!({"istio.io/rev": "default"})),
        ("d-new", json!({"istio.io/rev": "1-28-0"})),
        ("e-tagged", json!({"istio.io/rev": "stable"})),
        ("f-off", json!({"istio-injection": "disabled", "istio.io/rev": "default"})),
        ("g-other", json!({"istio.io/rev": "somebody-elses"})),
    ] {
        world.state("east").objects.put(namespace(name, &labels));
    }
    let seen = sights(&new(), &world, &Besides::default());
    let upgrade = decide(Way::Forward, &new(), &[], &seen).unwrap();
    for task in upgrade.open(Phase::Namespaces) {
        lines.push(format!("{}: {}{}", task.subject, task.what, task.by_hand.join(" ")));
    }
    insta::assert_snapshot!(lines.join("\n"), @r"
    a-enabled: istio-injection=enabled → istio.io/rev=1-28-0
    b-both: istio-injection=enabled → istio.io/rev=1-28-0
    c-named: istio.io/rev=default → istio.io/rev=1-28-0
    e-tagged: it follows the tag `stable`: `istioctl tag set stable --revision 1-28-0 --overwrite`
    ");
    insta::assert_snapshot!(holds(&upgrade.from, &seen).join("\n"), @r"
    east: namespace a-enabled asks for its proxies (istio-injection=enabled)
    east: namespace b-both asks for its proxies (istio-injection=enabled)
    east: namespace c-named asks for its proxies (istio.io/rev=default)
    east: namespace e-tagged asks for its proxies (istio.io/rev=stable)
    ");
    for asks in [Asks::Enabled, Asks::Revision("x".into())] {
        assert_eq!(Asks::parse(&asks.to_string()), Some(asks));
    }
}

#[test]
fn who_holds_a_control_plane_is_named() {
    let mut world = built();
    inhabit(&mut world);
    let mut besides = besides("default");
    besides.pods.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": SYSTEM_NAMESPACE,
        "name": "istiod-1", "labels": {"app": "istiod", "istio.io/rev": "default"}}}));
    besides.connected = vec![
        ("istiod-1".into(), Ok(vec!["cart-x.shop".into(), "ledger-x.bank".into()])),
        ("istiod-gone".into(), Err("no such pod".into())),
    ];
    let seen = sights(&new(), &world, &besides);
    insta::assert_snapshot!(holds(&[("default".into(), "1.27.0".into())], &seen[..1]).join("\n"), @r"
    east: deployment/ledger of namespace bank
    east: deployment/cart, pod/alone-x of namespace shop
    east: cart-x.shop and 1 more connected to `default`
    ");
    assert_eq!(holds(&[("other".into(), String::new())], &seen), [""; 0]);
}

#[test]
fn a_rollout_is_told_as_kubectl_tells_it() {
    let mut object = deployment("a", "b");
    let mut told = |path: &str, value: Value| {
        *object.pointer_mut(path).unwrap() = value;
        rolling(&object).unwrap_or_default()
    };
    assert_eq!(told("/spec/selector", json!({})), "");
    assert_eq!(told("/status/availableReplicas", json!(0)), "0 of 1 pods are ready");
    assert_eq!(told("/status/replicas", json!(2)), "1 old pods are not gone yet");
    assert_eq!(told("/status/updatedReplicas", json!(0)), "0 of 1 pods are new");
    object["metadata"]["generation"] = 3.into();
    assert_eq!(rolling(&object).as_deref(), Some("its change has not been seen yet"));
    let daemon = json!({"kind": "DaemonSet", "status": {"desiredNumberScheduled": 2, "updatedNumberScheduled": 1}});
    assert_eq!(rolling(&daemon).as_deref(), Some("1 of 2 pods are new"));
    let stateful = json!({"kind": "StatefulSet", "spec": {"replicas": 2},
        "status": {"currentRevision": "a", "updateRevision": "a", "readyReplicas": 2}});
    assert_eq!(rolling(&stateful), None);
}

proptest! {
    /// Whoever has proxies of the old control plane, or would get them, keeps the upgrade from its end: it is either to
    /// be moved or said to be somebody's to move. Who has none is left alone.
    #[test]
    fn nobody_is_forgotten(
        labels in prop::sample::select(vec![json!({}), json!({"istio-injection": "enabled"}),
            json!({"istio.io/rev": "default"}), json!({"istio.io/rev": "1-28-0"}), json!({"istio-injection": "disabled"})]),
        by in prop::sample::select(vec![None, Some("default"), Some("1-28-0"), Some("foreign")]),
        managed in any::<bool>(),
    ) {
        let mut world = built();
        world.state("east").objects.put(namespace("it", &labels));
        let mut besides = Besides::default();
        besides.pods.extend(by.map(|by| pod("it", "app", by)));
        if managed {
            besides.workloads.push(deployment("it", "app"));
        }
        let seen = sights(&new(), &world, &besides)[..1].to_vec();
        let upgrade = decide(Way::Forward, &new(), &[], &seen).unwrap();
        let held = holds(&upgrade.from, &seen);
        let tasks: Vec<_> = upgrade.open(Phase::Namespaces).collect();
        prop_assert_eq!(held.is_empty(), tasks.is_empty(), "{:?} {:?}", held, tasks);
        for task in tasks {
            prop_assert!(!task.what.is_empty() || !task.by_hand.is_empty());
        }
    }
}

#[test]
fn a_deployment_of_a_canary_is_waited_for() {
    let (mut world, mesh) = (built(), new());
    world.run(&plan_of(Phase::Canary, Way::Forward, "1-28-0", &mesh, &world.observed).unwrap());
    let key = ObjectKey::new("apps/v1", "Deployment", Some(SYSTEM_NAMESPACE), "istiod-1-28-0");
    world.state("west").objects.remove(&key);
    let upgrade = decide(Way::Forward, &mesh, &[], &sights(&mesh, &world, &Besides::default())).unwrap();
    let open: Vec<_> = upgrade.open(Phase::Canary).map(|task| task.cluster.as_str()).collect();
    assert_eq!(open, ["west"]);
}

/// While an upgrade is under way, the plan of the whole mesh leaves to it what is its to move.
#[test]
fn apply_does_not_overtake_an_upgrade() {
    let mut mesh = new();
    mesh.samples = [stolos_spec::Sample::Sleep].into();
    let mut world = World::new(&CLUSTERS);
    world.run(&plan(&Mesh { control_plane: old().control_plane, ..mesh.clone() }, &world.observed).unwrap());
    let changes = |world: &World| -> Vec<String> {
        let found = ids(&plan(&mesh, &world.observed).unwrap()).into_iter();
        found.filter(|id| !id.starts_with('…') && id.contains("/east/")).collect()
    };
    let all =
        ["~ control/east/base", "+ control/east/istiod", "~ gateways/east/eastwest", "~ samples/east/namespace-sample"];
    assert_eq!(changes(&world), all);
    let key = ObjectKey::new("v1", "Namespace", None, SYSTEM_NAMESPACE);
    for (to, left) in [("other", &all[..]), ("1-28-0", &all[..2])] {
        let mut namespace = world.state("west").objects.get(&key).unwrap().clone();
        namespace["metadata"]["annotations"][crate::UPGRADING] = to.into();
        world.state("west").objects.put(namespace);
        assert_eq!(changes(&world), left, "{to}");
    }
    let held = plan(&mesh, &world.observed).unwrap();
    assert!(held.notes.iter().any(|note| note.text.contains("`stolos upgrade` goes on")), "{:?}", held.notes);
    assert!(!held.destroys());
    world.run(&held);
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
    // The upgrade itself does not hold back, and forgets at the end that it was under way.
    let upgrade = decide(Way::Forward, &mesh, &[], &sights(&mesh, &world, &Besides::default())).unwrap();
    assert_eq!(upgrade.next(), Some(Phase::Namespaces));
    let forgets: Vec<_> = upgrade.open(Phase::Retire).map(|task| (&*task.cluster, &*task.what)).collect();
    assert_eq!(forgets.last(), Some(&("west", "the word that an upgrade is under way goes")));
}
