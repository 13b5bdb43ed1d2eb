//! Plans of meshes that somebody is at work on: a cluster is drained, a root is being replaced, an authority is elsewhere.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use stolos_pki::Authority;
use stolos_spec::{Mesh, SourceText, read};

use crate::rotation::{Phase, Rotation};
use crate::tests::{DAY, World, ids};
use crate::*;

fn mesh(spec: serde_json::Value) -> Mesh {
    let mut document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"},
        "spec": {"clusters": [{"name": "a", "context": "a", "network": "n"}, {"name": "b", "context": "b", "network": "m"}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        document["spec"][key] = value.clone();
    }
    read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh
}

fn built(mesh: &Mesh) -> World {
    let mut world = World::new(&["a", "b"]);
    world.run(&plan(mesh, &world.observed).unwrap());
    world
}

fn notes(plan: &Plan) -> Vec<&str> {
    plan.notes.iter().map(|note| note.text.as_str()).collect()
}

#[test]
fn a_drained_cluster_is_read_by_nobody_until_it_is_drained_no_longer() {
    let mesh = mesh(json!({}));
    let mut world = built(&mesh);
    let key = ObjectKey::new("v1", "Namespace", None, SYSTEM_NAMESPACE);
    let said = |world: &mut World, since: Option<&str>| {
        let mut namespace = world.state("b").objects.get(&key).unwrap().clone();
        namespace["metadata"]["annotations"][DRAINED] = json!(since);
        world.state("b").objects.put(namespace);
    };
    said(&mut world, Some("2026-01-01T00:00:00Z"));
    let away = plan(&mesh, &world.observed).unwrap();
    assert_eq!(ids(&away), ["- links/a/drain-b"]);
    world.run(&away);
    let kept = plan(&mesh, &world.observed).unwrap();
    assert_eq!(ids(&kept), Vec::<String>::new());
    assert_eq!(
        notes(&kept),
        ["drained since 2026-01-01T00:00:00Z, so the others do not send to it: `stolos cluster undrain b`"]
    );
    said(&mut world, None);
    let back = plan(&mesh, &world.observed).unwrap();
    assert_eq!(ids(&back), ["+ links/a/b"]);
    world.run(&back);
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
}

#[test]
fn a_root_that_is_being_replaced_is_left_alone() {
    let mesh = mesh(json!({}));
    let mut world = built(&mesh);
    // Both roots in one cluster, as after half a phase.
    let key = ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), CACERTS_SECRET);
    let mut secret = world.state("a").objects.get(&key).unwrap().clone();
    let next = Authority::new_root("example.com", 4000 * DAY, world.observed.now).unwrap();
    let both = secret_text(&secret, "root-cert.pem").unwrap() + next.roots_pem();
    secret["data"]["root-cert.pem"] = BASE64_STANDARD.encode(both).into();
    world.state("a").objects.put(secret);

    // From a folder that knows nothing of it: said, and nothing of trust is written.
    let elsewhere = plan(&mesh, &world.observed).unwrap();
    assert!(ids(&elsewhere).iter().all(|id| id.starts_with('…')), "{:?}", ids(&elsewhere));
    assert!(notes(&elsewhere)[0].contains("has several roots"), "{:?}", notes(&elsewhere));
    let mut later = world.clone();
    later.observed.now += 715 * DAY;
    let blocked = plan(&mesh, &later.observed).unwrap_err();
    assert!(blocked.problems.iter().all(|problem| problem.id == "root-rotation"), "{blocked}");

    // From the folder of it: said, and what ends is issued anew by the root that signs now.
    later.observed.state.rotation = Some(Rotation {
        phase: Phase::Distribute,
        from: "old".into(),
        to: "new".into(),
        started_at: "2026-01-01T00:00:00Z".into(),
    });
    let here = plan(&mesh, &later.observed).unwrap();
    assert!(ids(&here).contains(&"~ trust/a/cacerts".to_owned()), "{:?}", ids(&here));
    insta::assert_snapshot!(notes(&here)[0], @"the root is being replaced, phase distribute since 2026-01-01T00:00:00Z: `stolos cert rotate root` goes on with it, `--abort` takes it back");
}

/// What a program signs is asked for step by step like any other; only a root is not made.
#[test]
fn a_root_behind_a_program_needs_no_step_of_its_own() {
    let mesh = mesh(json!({"trust": {"root": {"exec": {"command": ["sign-csr"]}}}}));
    let steps = ids(&plan(&mesh, &World::new(&["a", "b"]).observed).unwrap());
    assert!(steps.contains(&"+ trust/a/cacerts".to_owned()) && !steps.contains(&"+ trust/root".to_owned()));
}

#[test]
fn an_authority_elsewhere_needs_nothing_of_ours() {
    for (values, said) in [
        (json!({"global": {"caAddress": "ca.example.com:443"}}), Some("global.caAddress: ca.example.com:443")),
        (json!({"global": {"pilotCertProvider": "k8s.io/x"}}), Some("global.pilotCertProvider: k8s.io/x")),
        (json!({"global": {"pilotCertProvider": "istiod", "caAddress": ""}}), None),
    ] {
        let mesh = mesh(json!({"controlPlane": {"engine": "istio", "values": values}}));
        let plan = plan(&mesh, &World::new(&["a", "b"]).observed).unwrap();
        let issues = ids(&plan).iter().any(|id| id.ends_with("/cacerts"));
        assert_eq!(issues, said.is_none(), "{values}");
        let told =
            notes(&plan).iter().any(|note| note.contains(said.unwrap_or("get their certificates from elsewhere")));
        assert_eq!(told, said.is_some(), "{values}");
        // The value itself goes to the chart as it is.
        let text = serde_json::to_string(&plan).unwrap();
        assert!(values["global"].as_object().unwrap().values().all(|v| v == "" || text.contains(&v.to_string())));
    }
}
