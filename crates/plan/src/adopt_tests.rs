//! A mesh that is read back plans nothing, whoever built it; what is missing is all that is planned.

use serde_json::json;
use stolos_spec::{SourceText, from_contexts, mesh_yaml, read};

use super::*;
use crate::tests::{World, ids};
use crate::{Plan, plan, teardown};

const THREE: [(&str, &str); 3] = [("east-1", "network-east"), ("east-2", "network-east"), ("west-1", "network-west")];

fn mesh(control: &Value) -> Mesh {
    let cluster = |(name, network): &(&str, &str)| json!({"name": name, "context": format!("context-{name}"), "network": network});
    let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"}, "spec": {
        "trust": {"organization": "mymesh.example.com"}, "controlPlane": control,
        "clusters": THREE.iter().map(cluster).collect::<Vec<_>>(), "samples": ["helloworld", "sleep"]}});
    read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh
}

fn built(mesh: &Mesh, lab: bool) -> World {
    let mut world = World::new(&["east-1", "east-2", "west-1"]);
    for name in ["east-1", "east-2", "west-1"] {
        world.state(name).is_lab = lab;
    }
    world.run(&plan(mesh, &world.observed).unwrap());
    world
}

/// What `init --from-clusters` makes of the contexts alone: the file that it writes, read again.
fn adopted(world: &World) -> (Mesh, Vec<String>) {
    let contexts: Vec<_> = THREE.iter().map(|(name, _)| (format!("context-{name}"), None)).collect();
    let fresh = from_contexts(&MeshName::parse("mesh").unwrap(), &contexts).unwrap().mesh;
    let seen = fresh.clusters.iter().filter_map(|cluster| {
        let state = world.observed.cluster(cluster.context.strip_prefix("context-")?)?;
        Some((cluster.name.to_string(), state.clone()))
    });
    let found = adopt(fresh.clone(), &seen.collect(), false, &BTreeSet::new()).unwrap();
    let notes = found.notes.iter().map(|note| {
        let place = note.cluster.as_ref().map(|cluster| format!("{cluster}: ")).unwrap_or_default();
        format!("{place}{}", note.text)
    });
    let file = SourceText::new("mesh.yaml", mesh_yaml(&found.mesh));
    let again = read(&file, None).unwrap_or_else(|problems| panic!("{}\n{problems}", file.text)).mesh;
    (again, notes.collect())
}

fn planned(mesh: &Mesh, world: &World) -> Plan {
    plan(mesh, &world.observed).unwrap_or_else(|blocked| panic!("{blocked}"))
}

/// Takes the labels off everything: whoever looks now does not know that Stolos made it.
fn disown(world: &mut World) {
    for (name, _) in THREE {
        let objects = &mut world.state(name).objects;
        let all: Vec<_> = objects.iter().map(|(_, object)| object.clone()).collect();
        for mut object in all {
            if let Some(labels) = object["metadata"]["labels"].as_object_mut() {
                labels.remove(MANAGED_BY_LABEL);
                labels.remove(MESH_LABEL);
            }
            objects.put(object);
        }
    }
}

#[test]
fn the_small_engines_mesh_is_read_back_as_it_was() {
    let wanted = mesh(&json!({}));
    let world = built(&wanted, true);
    let (found, notes) = adopted(&world);
    assert_eq!((found.name.as_str(), &found.clusters), ("mymesh", &wanted.clusters));
    assert_eq!((&found.trust, found.mtls, &found.samples), (&wanted.trust, wanted.mtls, &wanted.samples));
    assert_eq!(notes, Vec::<String>::new());
    assert_eq!(ids(&planned(&found, &world)), Vec::<String>::new());
}

#[test]
fn what_lost_its_labels_is_used_as_it_is_and_never_taken_away() {
    let mut world = built(&mesh(&json!({})), true);
    disown(&mut world);
    let (found, _) = adopted(&world);
    let nothing = planned(&found, &world);
    assert_eq!(ids(&nothing), Vec::<String>::new());
    assert!(nothing.notes.iter().any(|note| note.text.contains("not labelled as Stolos' own")), "{:?}", nothing.notes);
    let going = teardown(&found, &world.observed).unwrap();
    assert_eq!(ids(&going), Vec::<String>::new());

    // What is missing is all that is planned.
    let secret = ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), "istio-remote-secret-west-1");
    world.state("east-1").objects.remove(&secret);
    let missing = planned(&found, &world);
    assert_eq!(ids(&missing), ["+ links/east-1/west-1"]);
    world.run(&missing);
    assert_eq!(ids(&planned(&found, &world)), Vec::<String>::new());
}

#[test]
fn what_helm_was_given_by_stolos_is_given_again() {
    let values = json!({"pilot": {"traceSampling": 10}, "meshConfig": {"accessLogFile": ""}});
    let control = json!({"engine": "istio", "version": "1.28.3", "values": values,
        "gateways": {"eastwest": {"replicaCount": 2}, "ingress": {"service": {"type": "NodePort"}}}});
    let wanted = mesh(&control);
    let world = built(&wanted, false);
    let (found, notes) = adopted(&world);
    assert_eq!(notes, Vec::<String>::new());
    let mut expected = wanted.control_plane.clone();
    expected.charts = found.control_plane.charts.clone();
    assert_eq!(found.control_plane, expected);
    assert_eq!(ids(&planned(&found, &world)), Vec::<String>::new());
}

/// Helm's memory of who asked for it is gone as well: somebody else's Istio, complete.
#[test]
fn somebody_elses_istio_stays_as_it_is() {
    let mut world = built(&mesh(&json!({"engine": "istio", "version": "1.28.3"})), false);
    disown(&mut world);
    for (name, _) in THREE {
        let objects = &mut world.state(name).objects;
        objects.remove(&ObjectKey::new("v1", "ConfigMap", Some(SYSTEM_NAMESPACE), MEMBERSHIP));
        let key = ObjectKey::new("apps/v1", "Deployment", Some(SYSTEM_NAMESPACE), "istiod");
        let mut istiod = objects.get(&key).unwrap().clone();
        istiod["spec"]["template"]["spec"]["containers"] = json!([{"name": "discovery",
            "image": "docker.io/istio/pilot:1.28.3-distroless", "env": [{"name": "CLUSTER_ID", "value": name}]}]);
        objects.put(istiod);
        let values = json!({"global": {"meshID": "theirs", "network": "ignored: the label wins"}});
        objects.put(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"values": values.to_string()},
            "metadata": {"name": "istio-sidecar-injector", "namespace": SYSTEM_NAMESPACE}}));
    }
    let (found, notes) = adopted(&world);
    assert_eq!(found.name.as_str(), "theirs");
    assert_eq!(found.clusters.iter().map(|c| (c.name.as_str(), c.network.as_str())).collect::<Vec<_>>(), THREE);
    assert_eq!(found.control_plane.version.as_deref(), Some("1.28.3"));
    assert_eq!(found.control_plane.installer, Installer::None);
    assert!(notes.iter().any(|note| note.contains("installed by somebody with Helm")), "{notes:?}");
    // Nothing but Stolos' own memory of the mesh.
    let first = planned(&found, &world);
    let memory = THREE.map(|(name, _)| format!("+ control/{name}/membership"));
    assert_eq!(ids(&first), memory);
    world.run(&first);
    assert_eq!(ids(&planned(&found, &world)), Vec::<String>::new());
    // A gateway that serves nothing gets what it is to serve, and keeps it.
    let expose = ObjectKey::new("networking.istio.io/v1", "Gateway", Some(SYSTEM_NAMESPACE), "cross-network-gateway");
    let theirs = world.state("west-1").objects.remove(&expose).unwrap();
    let missing = planned(&found, &world);
    assert_eq!(ids(&missing), ["+ gateways/west-1/expose"]);
    world.run(&missing);
    assert_eq!(ids(&planned(&found, &world)), Vec::<String>::new());
    world.state("west-1").objects.put(theirs);
    // And that is all that a teardown takes.
    let going = teardown(&found, &world.observed).unwrap();
    let objects = going.steps.iter().flat_map(|step| &step.diff).map(|diff| diff.object.name.clone());
    assert_eq!(objects.collect::<BTreeSet<_>>(), BTreeSet::from([MEMBERSHIP.to_owned()]));
}

#[test]
fn what_cannot_be_one_mesh_is_said() {
    let mut world = built(&mesh(&json!({})), true);
    world.state("east-2").uid = "uid-east-1".to_owned();
    let contexts: Vec<_> = ["east-1", "east-2"].iter().map(|name| ((*name).to_owned(), None)).collect();
    let fresh = from_contexts(&MeshName::parse("mesh").unwrap(), &contexts).unwrap().mesh;
    let seen =
        fresh.clusters.iter().map(|c| (c.name.to_string(), world.observed.cluster(c.name.as_str()).unwrap().clone()));
    let refused = adopt(fresh.clone(), &seen.collect(), false, &BTreeSet::new()).unwrap_err();
    assert_eq!(refused, "east-1 and east-2 are the same cluster");
}

#[test]
fn empty_clusters_are_a_mesh_to_be() {
    let world = World::new(&["east-1", "east-2", "west-1"]);
    let (found, notes) = adopted(&world);
    assert_eq!(found.clusters.len(), 3);
    assert!(notes.contains(&"context-east-1: there is no control plane in it yet".to_owned()), "{notes:?}");
}
