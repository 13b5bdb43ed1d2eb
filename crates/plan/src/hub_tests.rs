//! Clusters that are read through a hub.

use serde_json::{Value, json};
use stolos_spec::{HUB, Join, Mesh, SourceText, read};

use crate::tests::{DAY, World, ids, mesh as direct};
use crate::*;

/// Two clusters on networks of their own; those of `through` are reached through the hub.
fn mesh(through: &[&str]) -> Mesh {
    let cluster = |name: &str| {
        let mut cluster = json!({"name": name, "network": format!("n-{name}")});
        if through.contains(&name) {
            cluster["api"] = json!({"via": "tunnel"});
        }
        cluster
    };
    let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"},
        "spec": {"clusters": [cluster("east"), cluster("west")], "hub": {"context": "over-there"}}});
    read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh
}

/// A hub with these members, beside the clusters.
fn world(members: &[&str]) -> World {
    let mut world = World::new(&["east", "west"]);
    let mut hub = ClusterState {
        server: "https://hub:5443".into(),
        authority: "the hub's authority\n".into(),
        version: "v1.34.0+stolos-hub".into(),
        uid: "uid-hub".into(),
        ..ClusterState::default()
    };
    for member in members {
        hub.objects.put(json!({"apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster",
            "metadata": {"name": member}, "spec": {"id": format!("uid-{member}"), "syncMode": "Pull"}}));
    }
    world.observed.hub = Some(Sight::Seen(hub));
    world
}

fn of_hub(plan: &Plan) -> Vec<String> {
    let here = plan.steps.iter().filter(|step| step.cluster.as_deref() == Some(HUB));
    here.map(|step| format!("{} {}", step.action.symbol(), step.id)).collect()
}

/// What the mesh has in the hub.
fn left(world: &mut World) -> Vec<String> {
    let objects = world.state(HUB).objects.iter().filter(|(key, _)| key.kind != "Cluster");
    objects.map(|(key, _)| key.to_string()).collect()
}

fn kubeconfig(world: &mut World, into: &str, read: &str) -> String {
    let key = ObjectKey::new("v1", "Secret", Some(SYSTEM_NAMESPACE), &remote_secret_name(read));
    secret_text(world.state(into).objects.get(&key).unwrap(), read).unwrap()
}

#[test]
fn each_control_plane_gets_an_account_in_the_hub_for_each_cluster_it_reads() {
    let (mesh, mut world) = (mesh(&["east", "west"]), world(&["east", "west"]));
    let first = plan(&mesh, &world.observed).unwrap();
    insta::assert_snapshot!(Show::default().text(&first));
    assert_eq!(of_hub(&first), ["+ links/hub/namespace", "+ links/hub/west.reads.east", "+ links/hub/east.reads.west"]);
    world.run(&first);
    assert_eq!(ids(&plan(&mesh, &world.observed).unwrap()), Vec::<String>::new());

    // What is granted, in the hub and behind it.
    let objects = &world.state(HUB).objects;
    let role =
        ObjectKey::new("rbac.authorization.k8s.io/v1", "ClusterRole", None, "stolos-mesh-mymesh:east.reads.west");
    assert_eq!(
        objects.get(&role).unwrap()["rules"],
        json!([{"apiGroups": ["cluster.karmada.io"], "resources": ["clusters/proxy"], "resourceNames": ["west"],
            "verbs": ["get", "list", "watch"]}])
    );
    let space = ObjectKey::new("v1", "Namespace", None, "stolos-mesh-mymesh");
    let labels = &objects.get(&space).unwrap()["metadata"]["labels"];
    assert_eq!(labels["namespace.karmada.io/skip-auto-propagation"], "true", "it is nothing for members");
    let binding = ObjectKey::new("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", None, "stolos-hub-readers");
    let binding = world.state("west").objects.get(&binding).unwrap().clone();
    assert_eq!(binding["roleRef"]["name"], "istio-reader-clusterrole-istio-system");
    let users: Vec<&Value> = binding["subjects"].as_array().unwrap().iter().map(|user| &user["name"]).collect();
    assert_eq!(users, ["system:serviceaccount:stolos-mesh-mymesh:east.reads.west"]);
    let text = kubeconfig(&mut world, "east", "west");
    assert!(
        text.contains("https://hub:5443/apis/cluster.karmada.io/v1alpha1/clusters/west/proxy")
            && !text.contains("https://west"),
        "{text}"
    );
    let peers =
        |world: &mut World| world.state("west").objects.kind("Secret").filter(|(k, _)| k.name.contains("peer")).count();
    assert_eq!(peers(&mut world), 0, "nobody dials it, so that nobody has a credential of its own");

    // Half of the life is over; what the token is bound to is gone.
    world.observed.now += 16 * DAY;
    let renewed = plan(&mesh, &world.observed).unwrap();
    assert_eq!(ids(&renewed), ["~ links/east/west", "~ links/west/east"]);
    world.run(&renewed);
    let bound = ObjectKey::new("v1", "Secret", Some("stolos-mesh-mymesh"), "east.reads.west");
    world.state(HUB).objects.remove(&bound);
    let again = plan(&mesh, &world.observed).unwrap();
    assert_eq!(ids(&again), ["+ links/hub/east.reads.west", "~ links/east/west"]);
    world.run(&again);

    // Another address of the hub is another kubeconfig and nothing else.
    let mut moved = mesh.clone();
    moved.hub.as_mut().unwrap().address = Some("https://hub.example.com".into());
    let plan_of_it = plan(&moved, &world.observed).unwrap();
    assert_eq!(ids(&plan_of_it), ["~ links/east/west", "~ links/west/east"]);
    world.run(&plan_of_it);
    assert!(kubeconfig(&mut world, "east", "west").contains("https://hub.example.com/apis/"));
}

#[test]
fn a_mesh_without_such_clusters_has_nothing_in_the_hub() {
    let mut world = world(&[]);
    let mesh = mesh(&[]);
    let plan = plan(&mesh, &world.observed).unwrap();
    assert_eq!(of_hub(&plan), Vec::<String>::new());
    world.run(&plan);
    assert_eq!(left(&mut world), Vec::<String>::new());
}

#[test]
fn what_the_hub_does_not_have_is_said_before_anything_is_written() {
    let mut world = world(&["east"]);
    let of = |world: &World| plan(&mesh(&["east", "west"]), &world.observed).map(drop).unwrap_err().to_string();
    insta::assert_snapshot!(of(&world), @r"
    west: its API server is to be reached through the hub, and it is not a member of that
      → `stolos hub token create west` at the hub, and what it prints in the cluster; or `hub.join: agent`
      → leave `api: {via: tunnel}` out where the others can dial it
    ");
    world.state(HUB).objects.put(json!({"apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster",
        "metadata": {"name": "west"}, "spec": {"id": "another"}}));
    assert!(of(&world).contains("what the hub calls so is another cluster"), "{}", of(&world));
    // It may be called otherwise there.
    world.state(HUB).objects.put(json!({"apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster",
        "metadata": {"name": "far-west"}, "spec": {"id": "uid-west"},
        "status": {"conditions": [{"type": "Ready", "status": "False", "message": "no agent of `far-west` is connected"}]}}));
    let mesh = mesh(&["east", "west"]);
    let plan_of_it = plan(&mesh, &world.observed).unwrap();
    let notes: Vec<_> = plan_of_it.notes.iter().map(|note| note.text.as_str()).collect();
    assert!(notes.iter().any(|note| note.contains("no agent of `far-west`")), "{notes:?}");
    world.run(&plan_of_it);
    assert!(kubeconfig(&mut world, "east", "west").contains("/clusters/far-west/proxy"));
    world.state(HUB).uid = "uid-east".into();
    assert!(plan(&mesh, &world.observed).unwrap_err().to_string().contains("it is the same as east"));
}

#[test]
fn a_hub_that_does_not_answer_changes_nothing() {
    let (mesh, mut world) = (mesh(&["west"]), world(&["east", "west"]));
    world.run(&plan(&mesh, &world.observed).unwrap());
    let before = kubeconfig(&mut world, "east", "west");
    let alive = world.observed.hub.replace(Sight::Unreachable { server: None, why: "no route".into() });
    let dark = plan(&mesh, &world.observed).unwrap();
    assert_eq!(ids(&dark), Vec::<String>::new());
    assert_eq!(dark.members.last().map(|m| (m.name.as_str(), m.unreachable.as_deref())), Some((HUB, Some("no route"))));
    assert_eq!(kubeconfig(&mut world, "east", "west"), before);
    // Without it the mesh goes all the same, and what stays in the hub is named.
    let torn = teardown(&mesh, &world.observed).unwrap();
    assert!(torn.leftovers.iter().any(|left| left.cluster == HUB && left.why.contains("stolos-mesh-mymesh")));
    world.run(&torn);
    world.observed.hub = alive;
    world.run(&teardown(&mesh, &world.observed).unwrap());
    assert_eq!(left(&mut world), Vec::<String>::new());
}

#[test]
fn a_cluster_that_leaves_loses_its_accounts_and_who_read_it_too() {
    let (whole, mut world) = (mesh(&["east", "west"]), world(&["east", "west"]));
    world.run(&plan(&whole, &world.observed).unwrap());
    let mut one = whole.clone();
    one.clusters.retain(|cluster| cluster.name.as_str() == "east");
    let leaving = plan(&one, &world.observed).unwrap();
    assert!(leaving.blast.credentials.iter().any(|c| c == "west: its token for east, of the hub"), "{leaving:?}");
    let place =
        |id: &str| leaving.steps.iter().position(|step| step.id.as_str() == id).unwrap_or_else(|| panic!("{id}"));
    assert!(place("leftovers/east/forget-west") < place("leftovers/hub/revoke-east.reads.west"));
    assert!(place("teardown/west/links") < place("leftovers/hub/revoke-west.reads.east"));
    world.run(&leaving);
    assert_eq!(left(&mut world), ["Namespace stolos-mesh-mymesh"], "one cluster reads nobody");
    assert_eq!(ids(&plan(&one, &world.observed).unwrap()), Vec::<String>::new());
    world.run(&teardown(&one, &world.observed).unwrap());
    assert_eq!(left(&mut world), Vec::<String>::new());
}

/// One that is dialled again, or no hub in the file any more: what the hub had goes when nobody uses it.
#[test]
fn the_hub_is_left_when_nobody_is_reached_through_it() {
    for after in [mesh(&[]), direct(&[("east", "n-east"), ("west", "n-west")])] {
        let (before, mut world) = (mesh(&["west"]), world(&["east", "west"]));
        world.run(&plan(&before, &world.observed).unwrap());
        assert!(remembered_hub("mymesh", world.state("east")).is_some_and(|hub| hub.context == "over-there"));
        let back = plan(&after, &world.observed).unwrap();
        let place =
            |id: &str| back.steps.iter().position(|step| step.id.as_str() == id).unwrap_or_else(|| panic!("{id}"));
        assert!(place("links/east/west") < place("leftovers/hub/revoke-east.reads.west"));
        assert!(place("links/east/west") < place("leftovers/west/clusterrolebinding-stolos-hub-readers"));
        assert!(place("leftovers/hub/gone") < place("control/east/membership"));
        world.run(&back);
        assert!(kubeconfig(&mut world, "east", "west").contains("https://west:6443"));
        assert_eq!(left(&mut world), Vec::<String>::new());
        assert_eq!(remembered_hub("mymesh", world.state("east")), None);
        assert_eq!(ids(&plan(&after, &world.observed).unwrap()), Vec::<String>::new());

        // And there again: the credential that dialled it ends when nobody uses it any more.
        let forth = plan(&before, &world.observed).unwrap();
        let place =
            |id: &str| forth.steps.iter().position(|step| step.id.as_str() == id).unwrap_or_else(|| panic!("{id}"));
        assert!(place("links/east/west") < place("leftovers/west/secret-stolos-peer-east"));
        world.run(&forth);
        assert_eq!(ids(&plan(&before, &world.observed).unwrap()), Vec::<String>::new());
    }
}

/// Who cannot be given a credential of the other kind now keeps the one it has.
#[test]
fn nobody_is_cut_off_that_cannot_be_reached_itself() {
    let (through, plain) = (mesh(&["west"]), mesh(&[]));
    for (before, after) in [(&through, &plain), (&plain, &through)] {
        let mut world = world(&["east", "west"]);
        world.run(&plan(before, &world.observed).unwrap());
        let dark = Sight::Unreachable { server: None, why: "no route".into() };
        let alive = world.observed.clusters.insert("east".into(), dark).unwrap();
        let apart = plan(after, &world.observed).unwrap();
        assert!(
            apart.steps.iter().all(|step| step.action != Action::Remove || !step.id.as_str().contains("east")),
            "{:?}",
            ids(&apart)
        );
        world.run(&apart);
        world.observed.clusters.insert("east".into(), alive);
        world.run(&plan(after, &world.observed).unwrap());
        assert_eq!(ids(&plan(after, &world.observed).unwrap()), Vec::<String>::new());
    }
}

#[test]
fn what_others_put_beside_it_stays() {
    let (mesh, mut world) = (mesh(&["west"]), world(&["east", "west"]));
    world.run(&plan(&mesh, &world.observed).unwrap());
    world.state(HUB).objects.put(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "mine", "namespace": "stolos-mesh-mymesh", "uid": "mine"}}));
    let torn = teardown(&mesh, &world.observed).unwrap();
    assert!(torn.leftovers.iter().any(|left| left.cluster == HUB), "{:?}", torn.leftovers);
    world.run(&torn);
    assert_eq!(left(&mut world), ["ConfigMap stolos-mesh-mymesh/mine", "Namespace stolos-mesh-mymesh"]);
}

/// A primary does more in its own remote than read, and so may its account in the hub; another one's may not.
#[test]
fn a_remote_behind_the_hub() {
    let document = json!({"apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"},
        "spec": {"hub": "over-there", "clusters": [{"name": "east", "network": "a"}, {"name": "other", "network": "c"},
            {"name": "west", "network": "b", "api": {"via": "tunnel"}, "controlPlane": {"primary": "east"}}]}});
    let mesh = read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh;
    let mut world = world(&["west"]);
    world.join("other");
    world.run(&plan(&mesh, &world.observed).unwrap());
    assert_eq!(ids(&plan(&mesh, &world.observed).unwrap()), Vec::<String>::new());
    let mut verbs = |into: &str| {
        let name = format!("stolos-mesh-mymesh:{into}.reads.west");
        let key = ObjectKey::new("rbac.authorization.k8s.io/v1", "ClusterRole", None, &name);
        world.state(HUB).objects.get(&key).unwrap()["rules"][0]["verbs"].as_array().unwrap().len()
    };
    assert_eq!((verbs("east"), verbs("other")), (6, 3));
}

/// Who can be dialled becomes a member and leaves with the mesh; who was one before stays.
#[test]
fn apply_joins_what_can_be_dialled() {
    let mut mesh = mesh(&["west"]);
    mesh.hub.as_mut().unwrap().join = Some(Join::Dialled);
    let fresh = world(&["west"]);
    let first = plan(&mesh, &fresh.observed).unwrap();
    assert!(of_hub(&first).contains(&"+ hub/hub/join-east".to_owned()), "{:?}", of_hub(&first));
    assert!(first.steps.iter().all(|step| !step.id.as_str().contains("join-west")));
    let members = |world: &mut World| {
        let clusters = world.state(HUB).objects.kind("Cluster");
        clusters.map(|(key, _)| key.name.clone()).collect::<Vec<_>>()
    };
    let mut built = fresh.clone();
    built.run(&first);
    assert_eq!(members(&mut built), ["east", "west"]);
    assert_eq!(ids(&plan(&mesh, &built.observed).unwrap()), Vec::<String>::new());
    // Cut short between the Cluster and its credential.
    let mut half = built.clone();
    let key = ObjectKey::new("cluster.karmada.io/v1alpha1", "Cluster", None, "east");
    let mut cluster = half.state(HUB).objects.remove(&key).unwrap();
    cluster["status"] = json!({});
    half.state(HUB).objects.put(cluster);
    assert_eq!(ids(&plan(&mesh, &half.observed).unwrap()), ["~ hub/hub/join-east"]);

    let mut unwilling = mesh.clone();
    unwilling.hub.as_mut().unwrap().join = None;
    let leaving = plan(&unwilling, &built.observed).unwrap();
    assert_eq!(ids(&leaving), ["- leftovers/hub/unjoin-east"]);
    let mut alone = mesh.clone();
    alone.hub = None;
    alone.clusters.iter_mut().for_each(|cluster| cluster.api = None);
    for (after, rest) in [(&unwilling, vec!["west"]), (&alone, vec!["west"])] {
        let mut world = built.clone();
        world.run(&plan(after, &world.observed).unwrap());
        assert_eq!(members(&mut world), rest);
        assert_eq!(ids(&plan(after, &world.observed).unwrap()), Vec::<String>::new());
    }
    let back = teardown(&mesh, &built.observed).unwrap();
    let place = |id: &str| back.steps.iter().position(|step| step.id.as_str() == id).unwrap_or_else(|| panic!("{id}"));
    assert!(place("teardown/east/gone") < place("teardown/hub/unjoin-east"));
    for cut in 0..=back.steps.len() {
        let mut world = built.clone();
        back.steps[..cut].iter().for_each(|step| world.carry_out(step));
        world.run(&teardown(&mesh, &world.observed).unwrap());
        assert_eq!((members(&mut world), left(&mut world)), (vec!["west".to_owned()], vec![]), "after {cut} steps");
    }

    // The hub has another one of that name.
    let mut other = fresh.clone();
    other.state(HUB).objects.put(json!({"apiVersion": "cluster.karmada.io/v1alpha1", "kind": "Cluster",
        "metadata": {"name": "east"}, "spec": {"id": "another"}}));
    assert!(plan(&mesh, &other.observed).unwrap_err().to_string().contains("is another cluster"));
}

/// One run makes clusters members that nobody dials, and a mesh over them; and takes both back, whatever cut it short.
#[test]
fn apply_installs_agents_and_reads_through_them() {
    let mut mesh = mesh(&["east", "west"]);
    mesh.hub.as_mut().unwrap().join = Some(Join::Agent);
    let fresh = world(&[]);
    let first = plan(&mesh, &fresh.observed).unwrap();
    let place = |id: &str| first.steps.iter().position(|step| step.id.as_str() == id).unwrap_or_else(|| panic!("{id}"));
    assert!(place("hub/hub/join-west") < place("links/east/west"));
    let mut built = fresh.clone();
    built.run(&first);
    assert_eq!(ids(&plan(&mesh, &built.observed).unwrap()), Vec::<String>::new());
    assert!(kubeconfig(&mut built, "east", "west").contains("/clusters/west/proxy"));

    let because = |world: &World| {
        let plan = plan(&mesh, &world.observed).unwrap();
        plan.steps.iter().map(|step| format!("{}: {}", step.id, step.because)).collect::<Vec<_>>().join("\n")
    };
    let here = |api: &str, kind: &str| ObjectKey::new(api, kind, Some(AGENT), AGENT);
    let cluster = |name: &str| ObjectKey::new("cluster.karmada.io/v1alpha1", "Cluster", None, name);
    let mut said = Vec::new();
    for what in ["no Deployment", "another image", "no certificate", "ended by hand", "over", "dialled"] {
        let mut world = built.clone();
        match what {
            "no Deployment" => drop(world.state("west").objects.remove(&here("apps/v1", "Deployment"))),
            "another image" => {
                let mut live = world.state("west").objects.remove(&here("apps/v1", "Deployment")).unwrap();
                live["spec"]["template"]["spec"]["containers"][0]["image"] = "stolos:old".into();
                world.state("west").objects.put(live);
            }
            "no certificate" => {
                let mut live = world.state("west").objects.remove(&here("v1", "Secret")).unwrap();
                live["data"] = json!({"token": "dXNlZA=="});
                world.state("west").objects.put(live);
            }
            "ended by hand" => {
                let mut live = world.state(HUB).objects.remove(&cluster("west")).unwrap();
                live["metadata"]["annotations"] = json!({"stolos.dev/agents-epoch": "2"});
                world.state(HUB).objects.put(live);
            }
            "dialled" => {
                let mut live = world.state(HUB).objects.remove(&cluster("west")).unwrap();
                live["spec"]["syncMode"] = "Push".into();
                world.state(HUB).objects.put(live);
            }
            _ => world.observed.now += 2 * DAY,
        }
        said.push(format!("{what}: {}", because(&world)));
        // Whatever it was, the next run puts it right.
        if what != "ended by hand" {
            world.run(&plan(&mesh, &world.observed).unwrap());
            assert_eq!(because(&world), "", "{what}");
        }
    }
    insta::assert_snapshot!(said.join("\n").replace(VERSION, "VERSION"), @"
    no Deployment: hub/hub/join-west: the agent of west is not installed
    another image: hub/hub/join-west: the agent of west runs stolos:old, not stolos:VERSION
    no certificate: hub/hub/join-west: the agent of west has no certificate that the hub takes: it gets a token for another
    ended by hand: hub/hub/join-west: the agent of west has no certificate that the hub takes: it gets a token for another
    over: hub/hub/join-east: the agent of east has no certificate that the hub takes: it gets a token for another
    hub/hub/join-west: the agent of west has no certificate that the hub takes: it gets a token for another
    dialled: hub/hub/join-west: the hub dials west, where an agent is to dial it
    ");

    // Nobody who is read through the hub is taken out of it, and who is to be dialled from now on has no agent any more.
    let mut kept = mesh.clone();
    kept.hub.as_mut().unwrap().join = None;
    assert_eq!(ids(&plan(&kept, &built.observed).unwrap()), Vec::<String>::new());
    let mut dialled = mesh.clone();
    dialled.hub.as_mut().unwrap().join = Some(Join::Dialled);
    dialled.clusters.iter_mut().for_each(|cluster| cluster.api = None);
    let mut world = built.clone();
    world.run(&plan(&dialled, &world.observed).unwrap());
    assert_eq!(ids(&plan(&dialled, &world.observed).unwrap()), Vec::<String>::new());
    assert!(world.state("west").objects.get(&here("apps/v1", "Deployment")).is_none());

    for cut in 0..first.steps.len() {
        let mut world = fresh.clone();
        first.steps[..cut].iter().for_each(|step| world.carry_out(step));
        world.run(&plan(&mesh, &world.observed).unwrap());
        assert_eq!(ids(&plan(&mesh, &world.observed).unwrap()), Vec::<String>::new(), "after {cut} steps");
    }
    let back = teardown(&mesh, &built.observed).unwrap();
    for cut in 0..=back.steps.len() {
        let mut world = built.clone();
        back.steps[..cut].iter().for_each(|step| world.carry_out(step));
        world.run(&teardown(&mesh, &world.observed).unwrap());
        assert_eq!(world.state(HUB).objects.iter().count(), 0, "after {cut} steps");
        let rest: Vec<_> = ["east", "west"].map(|name| world.state(name).objects.iter().count()).into();
        assert_eq!(rest, [1, 1], "after {cut} steps");
    }
}

/// Cut short after any step, forth and back, the next run ends in the same state.
#[test]
fn a_run_that_is_cut_short_is_taken_up_again() {
    let mesh = mesh(&["east", "west"]);
    let fresh = world(&["east", "west"]);
    let first = plan(&mesh, &fresh.observed).unwrap();
    let mut built = fresh.clone();
    built.run(&first);
    for cut in 0..first.steps.len() {
        let mut world = fresh.clone();
        first.steps[..cut].iter().for_each(|step| world.carry_out(step));
        world.run(&plan(&mesh, &world.observed).unwrap());
        assert_eq!(ids(&plan(&mesh, &world.observed).unwrap()), Vec::<String>::new(), "after {cut} steps");
        assert_eq!(left(&mut world), left(&mut built), "after {cut} steps");
    }
    let back = teardown(&mesh, &built.observed).unwrap();
    for cut in 0..back.steps.len() {
        let mut world = built.clone();
        back.steps[..cut].iter().for_each(|step| world.carry_out(step));
        world.run(&teardown(&mesh, &world.observed).unwrap());
        assert_eq!(left(&mut world), Vec::<String>::new(), "after {cut} steps");
        let rest: Vec<_> = ["east", "west"].map(|name| world.state(name).objects.iter().count()).into();
        assert_eq!(rest, [1, 1], "after {cut} steps");
    }
}
