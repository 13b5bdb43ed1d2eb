//! Clusters that use the control plane of another, in the world of [`crate::tests`].

use std::fmt::Write as _;

use serde_json::{Value, json};
use stolos_spec::{Mesh, SourceText, read};

use crate::tests::{World, ids};
use crate::{Action, ClusterState, ObjectKey, SYSTEM_NAMESPACE, is_owned, plan, teardown};

/// Clusters by name, network and primary.
fn mesh(clusters: &[(&str, &str, &str)]) -> Mesh {
    mesh_of(json!({}), clusters)
}

/// With this said of the control plane.
fn mesh_of(control: Value, clusters: &[(&str, &str, &str)]) -> Mesh {
    let cluster = |(name, network, primary): &(&str, &str, &str)| match *primary {
        "" => json!({"name": name, "network": network}),
        primary => json!({"name": name, "network": network, "controlPlane": {"primary": primary}}),
    };
    let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"},
        "spec": {"controlPlane": control, "clusters": clusters.iter().map(cluster).collect::<Vec<_>>()}});
    read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh
}

fn live<'w>(world: &'w mut World, cluster: &str, version: &str, kind: &str, name: &str) -> &'w Value {
    let namespace = (kind != "MutatingWebhookConfiguration" && kind != "Namespace").then_some(SYSTEM_NAMESPACE);
    let key = ObjectKey::new(version, kind, namespace, name);
    world.state(cluster).objects.get(&key).unwrap_or_else(|| panic!("{cluster}: {key}"))
}

/// Where the remote's Service `istiod` leads.
fn way(world: &mut World, remote: &str) -> String {
    let slice = live(world, remote, "discovery.k8s.io/v1", "EndpointSlice", "istiod");
    slice["endpoints"][0]["addresses"][0].as_str().unwrap().to_owned()
}

fn owned(state: &ClusterState) -> usize {
    state.objects.iter().filter(|(_, o)| is_owned("mymesh", o)).count()
}

/// On one network the primary has a gateway all the same (E.11); the remote has none, no signing certificate, no
/// control plane and no credential for anybody.
#[test]
fn a_remote_on_the_same_network() {
    let mut world = World::new(&["p", "r"]);
    let mesh = mesh(&[("p", "net", ""), ("r", "net", "p")]);
    let first = plan(&mesh, &world.observed).unwrap();
    insta::assert_snapshot!(ids(&first).join("\n"), @r"
    + trust/root
    + trust/p/namespace
    + trust/p/cacerts
    + trust/r/namespace
    + control/p/crds
    … control/p/crds-served
    + control/p/access
    + control/p/config
    + control/p/istiod
    + control/p/injector
    + control/p/mtls
    … control/p/ready
    + control/p/membership
    + gateways/p/expose-istiod
    + gateways/p/address
    + gateways/p/eastwest
    … gateways/p/ready
    + control/r/istiod
    + control/r/injector
    + links/r/reader
    + links/r/peers
    + links/p/r
    … control/r/trusted
    … control/r/ready
    + control/r/membership
    + links/p/reader
    ");
    let late = first.steps.iter().find(|step| step.id.as_str() == "control/r/istiod").unwrap();
    assert!(late.diff.len() == 2 && serde_json::to_string(late).unwrap().contains(crate::ADDRESS));
    let stored: crate::Step = serde_json::from_str(&serde_json::to_string(late).unwrap()).unwrap();
    assert_eq!(stored, *late, "a step survives being stored");

    world.run(&first);
    assert_eq!(ids(&plan(&mesh, &world.observed).unwrap()), Vec::<String>::new());
    assert_eq!(way(&mut world, "r"), "127.16.0.16");
    let namespace = live(&mut world, "r", "v1", "Namespace", SYSTEM_NAMESPACE);
    assert_eq!(namespace["metadata"]["annotations"], json!({"topology.istio.io/controlPlaneClusters": "p"}));
    let hooks = live(
        &mut world,
        "r",
        "admissionregistration.k8s.io/v1",
        "MutatingWebhookConfiguration",
        "istio-sidecar-injector",
    );
    assert!(hooks["webhooks"].as_array().unwrap().iter().all(|hook| {
        hook["clientConfig"]["service"]
            == json!({"name": "istiod", "namespace": "istio-system",
            "path": "/inject/cluster/r/net/net", "port": 443})
    }));
    let mut text = String::new();
    for (cluster, state) in world.observed.seen() {
        let kept = state
            .objects
            .iter()
            .filter(|(key, object)| is_owned("mymesh", object) && key.kind != "CustomResourceDefinition");
        for (key, _) in kept {
            let _ = writeln!(text, "{cluster} {key}");
        }
    }
    insta::assert_snapshot!(text, @r"
    p MutatingWebhookConfiguration istio-sidecar-injector
    p Deployment istio-system/istio-eastwestgateway
    p Deployment istio-system/istiod
    p Gateway istio-system/istiod-gateway
    p VirtualService istio-system/istiod-vs
    p ClusterRole istio-reader-clusterrole-istio-system
    p ClusterRole istiod-clusterrole-istio-system
    p ClusterRoleBinding istio-reader-clusterrole-istio-system
    p ClusterRoleBinding istiod-clusterrole-istio-system
    p Role istio-system/istiod
    p RoleBinding istio-system/istiod
    p PeerAuthentication istio-system/default
    p ConfigMap istio-system/istio
    p ConfigMap istio-system/istio-sidecar-injector
    p ConfigMap istio-system/stolos-mesh
    p Namespace istio-system
    p Secret istio-system/cacerts
    p Secret istio-system/istio-remote-secret-r
    p Service istio-system/istio-eastwestgateway
    p Service istio-system/istiod
    p ServiceAccount istio-system/istio-eastwestgateway
    p ServiceAccount istio-system/istio-reader-service-account
    p ServiceAccount istio-system/istiod
    r MutatingWebhookConfiguration istio-sidecar-injector
    r EndpointSlice istio-system/istiod
    r ClusterRole istio-reader-clusterrole-istio-system
    r ClusterRoleBinding istio-reader-clusterrole-istio-system
    r ConfigMap istio-system/stolos-mesh
    r Namespace istio-system
    r Secret istio-system/stolos-peer-p
    r Service istio-system/istiod
    r ServiceAccount istio-system/istio-reader-service-account
    ");
}

/// The remote's gateway comes last, since its primary makes the pod; and only primaries read others (C.3, C.4).
#[test]
fn remotes_on_several_networks_and_their_order() {
    let names = [("p", "a", ""), ("q", "b", ""), ("r", "b", "p"), ("s", "a", "q")];
    let mut world = World::new(&["p", "q", "r", "s"]);
    let mesh = mesh(&names);
    let first = plan(&mesh, &world.observed).unwrap();
    let links: Vec<_> = ids(&first)
        .into_iter()
        .filter(|id| id.contains("links/") && !id.contains("reader") && !id.contains("peers"))
        .collect();
    insta::assert_snapshot!(links.join("\n"), @r"
    + links/p/r
    + links/q/s
    + links/p/q
    + links/p/s
    + links/q/p
    + links/q/r
    ");
    let place = |id: &str| first.steps.iter().position(|step| step.id.as_str() == id).unwrap_or_else(|| panic!("{id}"));
    let order = [
        "trust/r/namespace",
        "gateways/p/ready",
        "control/r/istiod",
        "control/r/injector",
        "links/p/r",
        "control/r/ready",
        "gateways/r/eastwest",
        "gateways/r/ready",
    ];
    assert!(order.windows(2).all(|two| place(two[0]) < place(two[1])), "{:?}", ids(&first));
    world.run(&first);
    assert_eq!(ids(&plan(&mesh, &world.observed).unwrap()), Vec::<String>::new());
    for remote in ["r", "s"] {
        let state = world.state(remote);
        let has = |kind: &str| state.objects.kind(kind).any(|(_, object)| is_owned("mymesh", object));
        assert!(!has("Gateway") && !has("VirtualService") && !has("PeerAuthentication"));
    }

    let gone = teardown(&mesh, &world.observed).unwrap();
    world.run(&gone);
    for name in ["p", "q", "r", "s"] {
        assert_eq!(owned(world.state(name)), 0, "{name}");
        assert!(world.state(name).objects.kind("ConfigMap").next().is_none(), "{name}");
    }
}

/// The remote is led to its new primary before anything of the old one goes.
#[test]
fn a_primary_is_replaced() {
    let mut world = World::new(&["p", "q", "r"]);
    let before = mesh(&[("p", "net", ""), ("q", "net", ""), ("r", "net", "p")]);
    world.run(&plan(&before, &world.observed).unwrap());
    assert_eq!(way(&mut world, "r"), "127.16.0.16");

    let after = mesh(&[("p", "net", ""), ("q", "net", ""), ("r", "net", "q")]);
    let change = plan(&after, &world.observed).unwrap();
    assert!(change.notes.iter().any(|note| note.text.starts_with("its primary changes from p to q")));
    insta::assert_snapshot!(ids(&change).join("\n"), @r"
    ~ trust/r/namespace
    ~ control/p/istiod
    … control/p/ready
    ~ control/q/istiod
    … control/q/ready
    + gateways/q/expose-istiod
    + gateways/q/address
    + gateways/q/eastwest
    … gateways/q/ready
    ~ control/r/istiod
    … control/r/trusted
    … control/r/ready
    - leftovers/p/deployment-istio-eastwestgateway
    - leftovers/p/gateway-istiod-gateway
    - leftovers/p/virtualservice-istiod-vs
    - leftovers/p/service-istio-eastwestgateway
    - leftovers/p/serviceaccount-istio-eastwestgateway
    ");
    world.run(&change);
    assert_eq!(way(&mut world, "r"), "127.16.16.16");
    assert_eq!(ids(&plan(&after, &world.observed).unwrap()), Vec::<String>::new());

    // And the old primary leaves.
    let alone = mesh(&[("q", "net", ""), ("r", "net", "q")]);
    world.run(&plan(&alone, &world.observed).unwrap());
    assert_eq!(owned(world.state("p")), 0);
    assert_eq!(ids(&plan(&alone, &world.observed).unwrap()), Vec::<String>::new());
}

/// In one edit of the file.
#[test]
fn a_primary_leaves_and_another_takes_its_remotes() {
    let mut world = World::new(&["p", "q", "r"]);
    world.run(&plan(&mesh(&[("p", "a", ""), ("r", "b", "p")]), &world.observed).unwrap());
    let after = mesh(&[("q", "a", ""), ("r", "b", "q")]);
    let change = plan(&after, &world.observed).unwrap();
    let place =
        |id: &str| change.steps.iter().position(|step| step.id.as_str() == id).unwrap_or_else(|| panic!("{id}"));
    // Proxies of the remote have their next control plane before what they send to goes.
    let order = ["control/r/istiod", "leftovers/q/forgot-p", "teardown/p/istiod", "leftovers/q/leads-without-p"];
    let order = [&order[..], &["teardown/p/gateways", "teardown/p/stopped"]].concat();
    assert!(order.is_sorted_by_key(|step| place(step)), "{:?}", ids(&change));
    world.run(&change);
    assert_eq!(owned(world.state("p")), 0);
    assert_eq!(way(&mut world, "r"), "127.16.16.16");
    assert_eq!(ids(&plan(&after, &world.observed).unwrap()), Vec::<String>::new());
}

#[test]
fn a_remote_leaves_or_becomes_a_primary() {
    let mut world = World::new(&["p", "r", "s"]);
    let both = mesh(&[("p", "a", ""), ("r", "b", "p"), ("s", "b", "p")]);
    world.run(&plan(&both, &world.observed).unwrap());
    let promoted = mesh(&[("p", "a", ""), ("r", "b", ""), ("s", "b", "p")]);
    let change = plan(&promoted, &world.observed).unwrap();
    assert!(
        change
            .steps
            .iter()
            .any(|step| step.action == Action::Remove && step.id.as_str() == "leftovers/r/endpointslice-istiod"),
        "{:?}",
        ids(&change)
    );
    world.run(&change);
    assert_eq!(ids(&plan(&promoted, &world.observed).unwrap()), Vec::<String>::new());
    let alone = mesh(&[("p", "a", ""), ("r", "b", "")]);
    world.run(&plan(&alone, &world.observed).unwrap());
    assert_eq!(owned(world.state("s")), 0);
    assert_eq!(ids(&plan(&alone, &world.observed).unwrap()), Vec::<String>::new());
    // The other way round is no change of one file.
    let blocked = plan(&mesh(&[("p", "a", ""), ("r", "b", "p")]), &world.observed).unwrap_err();
    insta::assert_snapshot!(blocked, @r"
    r: it runs a control plane of its own and is to use that of another cluster
      → take it out of the mesh file, apply, put it back as a remote, and apply again
      → leave `controlPlane.primary` out
    ");
}

#[test]
fn a_gateway_with_a_name_only_is_refused() {
    let mut world = World::new(&["p", "r"]);
    let mesh = mesh(&[("p", "net", ""), ("r", "net", "p")]);
    world.run(&plan(&mesh, &world.observed).unwrap());
    let key = ObjectKey::new("v1", "Service", Some(SYSTEM_NAMESPACE), "istio-eastwestgateway");
    let mut service = world.state("p").objects.get(&key).unwrap().clone();
    service["status"]["loadBalancer"]["ingress"] = json!([{"hostname": "lb.example.com"}]);
    world.state("p").objects.put(service);
    insta::assert_snapshot!(plan(&mesh, &world.observed).unwrap_err(), @r"
    r: the gateway of its primary p has no IP address but a name, lb.example.com: an API server calls no webhook through it (a Service of type ExternalName), so no pod of r would get a sidecar
      → give the load balancer of that gateway a fixed IP address
      → make it a primary
    ");
}

/// With Istio's charts: the same order, the remote's profile by version (E.15), and the address in its values.
#[test]
fn remotes_by_helm_and_by_istioctl() {
    for (control, profile) in [
        (json!({"engine": "istio", "version": "1.28.0"}), true),
        (json!({"engine": "istio", "version": "1.22.0"}), false),
        (json!({"engine": "istio", "version": "1.28.0", "revision": "canary"}), true),
        (json!({"engine": "istio", "version": "1.28.0", "installer": "istioctl"}), true),
    ] {
        let names = [("p", "a", ""), ("q", "a", ""), ("r", "b", "p")];
        let mut world = World::new(&["p", "q", "r"]);
        let before = mesh_of(control.clone(), &names);
        let first = plan(&before, &world.observed).unwrap();
        let place =
            |id: &str| first.steps.iter().position(|step| step.id.as_str() == id).unwrap_or_else(|| panic!("{id}"));
        let order = [
            "control/p/ready",
            "gateways/p/expose-istiod",
            "gateways/p/ready",
            "control/r/istiod",
            "links/p/r",
            "control/r/ready",
            "gateways/r/eastwest",
        ];
        assert!(order.windows(2).all(|two| place(two[0]) < place(two[1])), "{:?}", ids(&first));
        let remote = &first.steps[place("control/r/istiod")];
        let text = serde_json::to_string(&remote.change).unwrap();
        assert!(text.contains(crate::ADDRESS) && !text.contains("injectionURL"), "{text}");
        assert_eq!(text.contains(r#""profile":"remote""#), profile, "{text}");
        assert_eq!(text.contains("istiod-remote"), control["version"] == "1.22.0", "{text}");
        assert_eq!(remote.change.commands().len(), 1, "a plan shows the command");
        world.run(&first);
        assert_eq!(ids(&plan(&before, &world.observed).unwrap()), Vec::<String>::new());
        let name = control["revision"].as_str().map_or("istiod".to_owned(), |revision| format!("istiod-{revision}"));
        let leads = |world: &mut World| {
            let slice = live(world, "r", "discovery.k8s.io/v1", "EndpointSlice", &name);
            slice["endpoints"][0]["addresses"][0].as_str().unwrap().to_owned()
        };
        assert_eq!(leads(&mut world), "127.16.0.16");

        let after = mesh_of(control, &[("p", "a", ""), ("q", "a", ""), ("r", "b", "q")]);
        world.run(&plan(&after, &world.observed).unwrap());
        assert_eq!(leads(&mut world), "127.16.16.16");
        assert_eq!(ids(&plan(&after, &world.observed).unwrap()), Vec::<String>::new());
        world.run(&teardown(&after, &world.observed).unwrap());
        for name in ["p", "q", "r"] {
            assert_eq!(world.state(name).objects.iter().count(), 1, "{name}");
        }
    }
}

/// A primary that does not answer leaves its remotes as they are.
#[test]
fn a_primary_that_is_away_changes_nothing() {
    for control in [json!({}), json!({"engine": "istio", "version": "1.28.0"})] {
        let mut world = World::new(&["p", "q", "r"]);
        let mesh = mesh_of(control, &[("p", "net", ""), ("q", "net", ""), ("r", "net", "p")]);
        world.run(&plan(&mesh, &world.observed).unwrap());
        let away = crate::Sight::Unreachable { server: None, why: "no route".into() };
        world.observed.clusters.insert("p".into(), away);
        let plan = plan(&mesh, &world.observed).unwrap();
        assert_eq!(ids(&plan), Vec::<String>::new());
        let note = "its primary, p, is not reachable: its way there stays as it is";
        assert!(plan.notes.iter().any(|n| n.cluster.as_deref() == Some("r") && n.text == note), "{:?}", plan.notes);
    }
}

/// Cut short after any step, the next run ends in the same state.
#[test]
fn a_run_that_is_cut_short_is_taken_up_again() {
    for control in [json!({}), json!({"engine": "istio", "version": "1.28.0"})] {
        let mesh = mesh_of(control, &[("p", "a", ""), ("r", "b", "p")]);
        let fresh = World::new(&["p", "r"]);
        let first = plan(&mesh, &fresh.observed).unwrap();
        for cut in 0..first.steps.len() {
            let mut world = fresh.clone();
            first.steps[..cut].iter().for_each(|step| world.carry_out(step));
            world.run(&plan(&mesh, &world.observed).unwrap());
            assert_eq!(ids(&plan(&mesh, &world.observed).unwrap()), Vec::<String>::new(), "after {cut} steps");
            assert!(owned(world.state("r")) > 0);
        }
    }
}

/// A remote finds its control plane at 15012 and 15017 of an address: nodes have other ports.
#[test]
fn a_gateway_at_the_nodes_ports_serves_no_remote() {
    let control = json!({"gateways": {"eastwest": {"service": {"type": "NodePort",
        "annotations": {"traffic.istio.io/nodeSelector": "{}"}}}}});
    let mesh = mesh_of(control, &[("p", "a", ""), ("r", "b", "p")]);
    let blocked = plan(&mesh, &World::new(&["p", "r"]).observed).unwrap_err();
    let problems: Vec<_> = blocked.problems.iter().map(|p| (p.id.as_str(), p.cluster.as_deref())).collect();
    assert_eq!(problems, [("nodeport-gateway", Some("r"))]);
}
