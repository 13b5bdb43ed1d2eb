//! Plans of engine `istio`: the same laws as for the small engine, with Helm's releases in between.

use serde_json::{Value, json};
use stolos_spec::{Mesh, SourceText, read};

use crate::tests::{DAY, World, ids};
use crate::*;

fn mesh(control: &Value, clusters: &[(&str, &str)]) -> Mesh {
    let mut control = control.clone();
    control["engine"] = "istio".into();
    let cluster = |(name, network): &(&str, &str)| json!({"name": name, "context": format!("context-{name}"), "network": network});
    let document = json!({
        "apiVersion": "stolos.dev/v1alpha1", "kind": "Mesh", "metadata": {"name": "mymesh"},
        "spec": {"controlPlane": control, "clusters": clusters.iter().map(cluster).collect::<Vec<_>>(),
            "samples": ["helloworld", "sleep"]},
    });
    read(&SourceText { path: "mesh.yaml".into(), text: document.to_string() }, None).unwrap().mesh
}

const THREE: [(&str, &str); 3] = [("east-1", "network-east"), ("east-2", "network-east"), ("west-1", "network-west")];

fn three(control: Value) -> Mesh {
    mesh(&control, &THREE)
}

fn world() -> World {
    World::new(&["east-1", "east-2", "west-1"])
}

fn problems(mesh: &Mesh, world: &World) -> Vec<String> {
    plan(mesh, &world.observed).map_or_else(|blocked| blocked.problems.into_iter().map(|p| p.id).collect(), |_| vec![])
}

#[test]
fn three_fresh_clusters_get_releases() {
    let plan = plan(&three(json!({"version": "1.28.0"})), &world().observed).unwrap();
    insta::assert_snapshot!(Show::default().text(&plan));
    let stored = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), plan);
    let step = |id: &str| plan.steps.iter().find(|s| s.id.as_str() == id).unwrap();
    let after = |id: &str| step(id).after.iter().map(|a| a.as_str().to_owned()).collect::<Vec<_>>();
    // The signing certificate before the control plane, that before the gateway, and the reader before a token of it.
    assert_eq!(after("control/east-1/istiod"), ["control/east-1/base", "trust/east-1/cacerts"]);
    assert_eq!(after("gateways/east-1/eastwest"), ["control/east-1/ready"]);
    assert!(after("links/west-1/east-1").contains(&"control/east-1/istiod".to_owned()));
}

#[test]
fn what_is_built_needs_nothing() {
    let mut world = world();
    for control in [json!({"version": "1.28.0"}), json!({"version": "1.28"}), json!({})] {
        let mesh = three(control);
        world.run(&plan(&mesh, &world.observed).unwrap());
        let second = plan(&mesh, &world.observed).unwrap();
        assert_eq!(ids(&second), Vec::<String>::new());
        assert!(second.engine.starts_with("istio 1.28"), "what is there stays: {}", second.engine);
    }
}

#[test]
fn a_change_in_the_file_upgrades_what_it_concerns() {
    let mut world = world();
    world.run(&plan(&three(json!({"version": "1.27.0"})), &world.observed).unwrap());
    let newer = plan(&three(json!({"version": "1.28.0", "values": {"pilot": {"traceSampling": 10}}})), &world.observed)
        .unwrap();
    let of_one: Vec<_> =
        newer.steps.iter().filter(|s| s.cluster.as_deref() == Some("east-1") && s.action != Action::Wait).collect();
    let lines: Vec<_> = of_one.iter().map(|s| format!("{} {}  {}", s.action.symbol(), s.id, s.because)).collect();
    insta::assert_snapshot!(lines.join("\n"), @r"
    ~ control/east-1/base  Release istio-system/istio-base: chart is base 1.27.0, not 1.28.0
    ~ control/east-1/istiod  Release istio-system/istiod: chart is istiod 1.27.0, not 1.28.0
    ~ gateways/east-1/eastwest  Release istio-system/istio-eastwestgateway: chart is gateway 1.27.0, not 1.28.0
    ");
    let fields: Vec<_> = of_one[1].diff[0].fields.iter().map(|f| f.path.as_str()).collect();
    assert_eq!(fields, ["chart", "values.pilot.traceSampling"]);
    world.run(&newer);
    // A Deployment that somebody deleted is brought back by Helm.
    let key = ObjectKey::new("apps/v1", "Deployment", Some(SYSTEM_NAMESPACE), "istiod");
    world.state("west-1").objects.remove(&key);
    let mesh = three(json!({"version": "1.28.0", "values": {"pilot": {"traceSampling": 10}}}));
    let healing = plan(&mesh, &world.observed).unwrap();
    assert_eq!(healing.summary(), Summary { add: 0, change: 1, remove: 0 });
    world.run(&healing);
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
}

/// C.10: the new control plane stands beside the old one, which stays as long as it may have workloads.
#[test]
fn another_revision_comes_beside_the_first() {
    let mut world = world();
    world.run(&plan(&three(json!({"version": "1.27.0"})), &world.observed).unwrap());
    let mesh = three(json!({"version": "1.28.0", "revision": "1-28-0"}));
    let canary = plan(&mesh, &world.observed).unwrap();
    let east: Vec<_> = ids(&canary).into_iter().filter(|id| id.contains("/east-1/") && !id.starts_with('…')).collect();
    assert_eq!(
        east,
        [
            "~ control/east-1/base",
            "+ control/east-1/istiod",
            "~ gateways/east-1/eastwest",
            "~ samples/east-1/namespace-sample"
        ]
    );
    let note = "Release istio-system/istiod (istiod 1.27.0) is not what the mesh file asks for, and stays";
    assert!(canary.notes.iter().any(|n| n.text.starts_with(note)), "{:?}", canary.notes);
    let Change::Install { release, .. } =
        &canary.steps.iter().find(|s| s.id.as_str() == "control/east-1/base").unwrap().change
    else {
        panic!("the definitions come by helm")
    };
    assert_eq!(release.values.get("defaultRevision"), None, "the default stays the default");
    world.run(&canary);
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
    world.run(&teardown(&mesh, &world.observed).unwrap());
    assert_eq!(world.state("east-1").objects.iter().count(), 1, "both go with the mesh");
}

#[test]
fn a_release_that_was_cut_short_is_taken_up_again() {
    let mut world = world();
    let mesh = three(json!({"version": "1.28.0"}));
    let first = plan(&mesh, &world.observed).unwrap();
    world.run(&first);
    let installing = |step: &Step| match &step.change {
        Change::Install { release, .. } if step.id.as_str() == "control/east-1/istiod" => Some(release.clone()),
        _ => None,
    };
    let release = first.steps.iter().find_map(installing).unwrap();
    let pending = crate::release::tests::secret(&release, 2, "pending-upgrade", "1.28.0");
    world.state("east-1").objects.put(pending);
    let again = plan(&mesh, &world.observed).unwrap();
    let again: Vec<_> = again.steps.iter().filter(|s| s.action != Action::Wait).collect();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].because, "Release istio-system/istiod: status is pending-upgrade, not deployed");
    assert!(installing(again[0]).unwrap().stuck);
}

#[test]
fn a_teardown_leaves_what_was_there_before() {
    let mut world = world();
    let before = |world: &mut World| -> Vec<String> {
        world.state("east-1").objects.iter().map(|(key, _)| key.to_string()).collect()
    };
    let untouched = before(&mut world);
    let mesh = three(json!({"version": "1.28.0", "gateways": {"ingress": {}}}));
    world.run(&plan(&mesh, &world.observed).unwrap());
    let away = teardown(&mesh, &world.observed).unwrap();
    let of_one: Vec<_> = ids(&away).into_iter().filter(|id| id.contains("/east-1/")).collect();
    insta::assert_snapshot!(of_one.join("\n"), @r"
    - teardown/east-1/links
    - teardown/east-1/samples
    - teardown/east-1/helm-gateways
    - teardown/east-1/helm-istiod
    … teardown/east-1/stopped
    - teardown/east-1/roots
    - teardown/east-1/config
    - teardown/east-1/helm-base
    - teardown/east-1/crds
    - teardown/east-1/namespaces
    … teardown/east-1/gone
    ");
    world.run(&away);
    assert_eq!(before(&mut world), untouched);
    assert!(teardown(&mesh, &world.observed).unwrap().is_settled());
}

#[test]
fn definitions_that_others_use_stay_and_so_does_what_lives_in_the_namespace() {
    let mut world = world();
    let mesh = three(json!({"version": "1.28.0"}));
    world.run(&plan(&mesh, &world.observed).unwrap());
    world.state("east-1").objects.put(json!({"apiVersion": "networking.istio.io/v1", "kind": "Gateway",
        "metadata": {"name": "theirs", "namespace": "shop"}}));
    let away = teardown(&mesh, &world.observed).unwrap();
    let left: Vec<_> = away.leftovers.iter().map(|l| l.object.as_ref().unwrap().to_string()).collect();
    assert_eq!(left, ["CustomResourceDefinition gateways.networking.istio.io"]);
    // A definition that Helm would not keep keeps the whole release.
    let key =
        ObjectKey::new("apiextensions.k8s.io/v1", "CustomResourceDefinition", None, "gateways.networking.istio.io");
    let mut crd = world.state("east-1").objects.get(&key).unwrap().clone();
    crd["metadata"]["annotations"].as_object_mut().unwrap().remove("helm.sh/resource-policy");
    world.state("east-1").objects.put(crd);
    let away = teardown(&mesh, &world.observed).unwrap();
    assert!(away.leftovers.iter().any(|l| l.object.as_ref().unwrap().name == "istio-base"), "{:?}", away.leftovers);
    assert!(ids(&away).iter().all(|id| id != "- teardown/east-1/helm-base"));
}

#[test]
fn a_cluster_that_leaves_is_cleaned_and_a_gateway_that_is_not_needed_goes() {
    let mut world = world();
    let all = three(json!({"version": "1.28.0"}));
    world.run(&plan(&all, &world.observed).unwrap());
    let rest = mesh(&json!({"version": "1.28.0"}), &THREE[..2]);
    let leaving = plan(&rest, &world.observed).unwrap();
    let gone = |id: &str| ids(&leaving).contains(&format!("- {id}"));
    assert!(gone("teardown/west-1/helm-istiod") && gone("teardown/west-1/helm-base"), "{:?}", ids(&leaving));
    assert!(gone("leftovers/east-1/release-istio-eastwestgateway"), "one network is left");
    world.run(&leaving);
    assert!(plan(&rest, &world.observed).unwrap().is_settled());
}

#[test]
fn what_stands_in_the_way_is_said_before_anything_is_touched() {
    let mesh = three(json!({"version": "1.28.0"}));
    let mut built = world();
    built.run(&plan(&mesh, &built.observed).unwrap());

    // Somebody else's release, Istio or mesh.
    let mut release = None;
    for (key, secret) in built.state("east-1").objects.kind("Secret") {
        if key.name == "sh.helm.release.v1.istiod.v1" {
            release = Some(secret.clone());
        }
    }
    let mut theirs = release.unwrap();
    theirs["metadata"]["labels"] = json!({"owner": "helm"});
    let mut foreign = world();
    foreign.state("east-1").objects.put(theirs.clone());
    assert_eq!(problems(&mesh, &foreign), ["foreign"]);
    theirs["metadata"]["labels"] = json!({"app.kubernetes.io/managed-by": "stolos", "stolos.dev/mesh": "other"});
    foreign.state("east-1").objects.put(theirs);
    assert_eq!(problems(&mesh, &foreign), ["other-mesh"]);
    let mut other = world();
    other.state("east-1").objects.put(json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "istiod-1-20", "namespace": "istio-system", "labels": {"app": "istiod"}}}));
    assert_eq!(problems(&mesh, &other), ["foreign"]);

    // Lab clusters and real ones.
    let mut mixed = world();
    mixed.state("west-1").is_lab = false;
    assert_eq!(problems(&mesh, &mixed), ["engine-mixed"]);
    let text = plan(&mesh, &mixed.observed).unwrap_err().to_string();
    assert!(text.contains("lab clusters: east-1, east-2") && text.contains("these are not: west-1"), "{text}");

    assert_eq!(problems(&three(json!({"version": "1.19.3"})), &world()), ["istio-version"]);
    let folder = three(json!({"version": "1.28.0", "charts": "/charts"}));
    assert!(problems(&folder, &world()).iter().all(|id| id == "charts"));
}

#[test]
fn the_engine_follows_from_the_clusters() {
    let mut real = world();
    ["east-1", "east-2", "west-1"].iter().for_each(|name| real.state(name).is_lab = false);
    let mut auto = three(json!({}));
    auto.control_plane.engine = stolos_spec::Engine::Auto;
    assert_eq!(plan(&auto, &real.observed).unwrap().engine, "istio 1.30, by helm");
    assert!(plan(&auto, &world().observed).unwrap().engine.starts_with("stolos "));
}

/// Decision 18: a foreign file's version is a wish.
#[test]
fn a_wish_that_is_too_old_gets_the_oldest_that_kubernetes_allows() {
    let mut mesh = three(json!({}));
    mesh.origin = stolos_spec::Origin::Ristioctl;
    mesh.control_plane.version = Some("1.18.0".into());
    for (kubernetes, istio) in [("v1.27.3", "1.20"), ("v1.32.0-eks", "1.25"), ("v1.34.1", "1.28")] {
        let mut world = world();
        THREE.iter().for_each(|(name, _)| world.state(name).version = kubernetes.into());
        let plan = plan(&mesh, &world.observed).unwrap();
        assert_eq!(plan.engine, format!("istio {istio}, by helm"));
        let note = format!("the file wishes for Istio 1.18.0, which is too old: Istio {istio} is used");
        assert!(plan.notes.iter().any(|n| n.text == note), "{:?}", plan.notes);
    }
}

#[test]
fn charts_come_from_a_repository_a_registry_or_a_folder() {
    let command = |control: Value, charts: Vec<LocalChart>| {
        let mut world = world();
        world.observed.charts = charts;
        let plan = plan(&three(control), &world.observed).unwrap();
        let step = plan.steps.iter().find(|s| s.id.as_str() == "control/east-1/istiod").unwrap();
        let command = step.change.commands().remove(0);
        command.split(" --namespace").next().unwrap().to_owned()
    };
    let local = |name: &str, version: &str, path: &str| LocalChart {
        name: name.into(),
        version: version.into(),
        path: path.into(),
    };
    let folder = || {
        let mut charts = vec![local("istiod", "1.27.1", "/charts/istiod-1.27.1.tgz")];
        charts.extend(["base", "istiod", "gateway"].map(|name| local(name, "1.28.0", &format!("/charts/{name}"))));
        charts
    };
    insta::assert_snapshot!(command(json!({"version": "1.28.0"}), vec![]), @"helm upgrade --install istiod istiod --repo https://istio-release.storage.googleapis.com/charts --version 1.28.0");
    insta::assert_snapshot!(command(json!({"charts": "oci://registry.example.com/istio", "version": "1.28"}), vec![]), @"helm upgrade --install istiod oci://registry.example.com/istio/istiod --version ~1.28.0");
    insta::assert_snapshot!(command(json!({"charts": "/charts"}), folder()), @"helm upgrade --install istiod /charts/istiod");
}

/// Decision 23: 90 days, renewed at a third left, one holder after the other.
#[test]
fn tokens_are_renewed_late_and_one_holder_at_a_time() {
    let mut world = world();
    let mesh = three(json!({"version": "1.28.0"}));
    world.run(&plan(&mesh, &world.observed).unwrap());
    // An API server that grants less than was asked for is named, and what it granted is what counts.
    assert!(plan(&mesh, &world.observed).unwrap().notes.iter().all(|note| !note.text.contains("grants")));
    let first = world.clone();
    world.observed.now += 59 * DAY;
    assert!(plan(&mesh, &world.observed).unwrap().is_settled());
    world.observed.now += 2 * DAY;
    let renewal = plan(&mesh, &world.observed).unwrap();
    let links: Vec<_> = renewal.steps.iter().filter(|s| s.id.as_str().starts_with("links/")).collect();
    assert_eq!(links.len(), 6);
    let after = |id: &str| {
        links.iter().find(|s| s.id.as_str() == id).unwrap().after.iter().map(|a| a.as_str()).collect::<Vec<_>>()
    };
    assert_eq!(after("links/east-1/west-1"), Vec::<&str>::new());
    assert_eq!(after("links/east-2/west-1"), ["links/east-1/east-2", "links/east-1/west-1"]);
    assert_eq!(after("links/west-1/east-1"), ["links/east-2/east-1", "links/east-2/west-1"]);

    let mut world = first;
    world.observed.now += 61 * DAY;
    let mut renewal = plan(&mesh, &world.observed).unwrap();
    for step in &mut renewal.steps {
        if let Change::Link { token_seconds, .. } = &mut step.change {
            *token_seconds = 24 * 3600;
        }
    }
    world.run(&renewal);
    let notes = plan(&mesh, &world.observed).unwrap().notes;
    let note = "it grants tokens of 24 h where 2160 h were asked for; they are renewed by what it grants";
    assert!(notes.iter().any(|n| n.text == note && n.cluster.as_deref() == Some("east-1")), "{notes:?}");
}

/// The same mesh by `istioctl`: two documents in each cluster, and a memory of them.
#[test]
fn istioctl_installs_upgrades_and_takes_away() {
    let mut world = world();
    let mesh = |version: &str| three(json!({"version": version, "installer": "istioctl", "gateways": {"ingress": {}}}));
    let first = plan(&mesh("1.27.0"), &world.observed).unwrap();
    let operated = |plan: &Plan, id: &str| {
        let step = plan.steps.iter().find(|step| step.id.as_str() == id).unwrap();
        let Change::Operate { operator, .. } = &step.change else { panic!("{id} is done by istioctl") };
        (step.change.commands().remove(0), operator.document.clone())
    };
    let (command, document) = operated(&first, "control/east-1/istiod");
    insta::assert_snapshot!(command, @"istioctl install --skip-confirmation --filename stolos-control.yaml --readiness-timeout 120s --context context-east-1");
    insta::assert_snapshot!(document, @r#"{"apiVersion":"install.istio.io/v1alpha1","kind":"IstioOperator","metadata":{"name":"stolos-control","namespace":"istio-system"},"spec":{"components":{"ingressGateways":[{"enabled":true,"name":"istio-ingressgateway","namespace":"istio-system"}]},"meshConfig":{"accessLogEncoding":"JSON","accessLogFile":"/dev/stdout","defaultConfig":{"proxyMetadata":{"ISTIO_META_DNS_CAPTURE":"true","PROXY_CONFIG_XDS_AGENT":"true"}},"trustDomain":"cluster.local"},"profile":"minimal","values":{"global":{"istioNamespace":"istio-system","meshID":"mymesh","multiCluster":{"clusterName":"east-1"},"network":"network-east"},"pilot":{"env":{"ISTIO_MULTIROOT_MESH":"true"}}}}}"#);
    let (_, document) = operated(&first, "gateways/west-1/eastwest");
    insta::assert_snapshot!(document["spec"], @r#"{"components":{"ingressGateways":[{"enabled":true,"k8s":{"env":[{"name":"ISTIO_META_REQUESTED_NETWORK_VIEW","value":"network-west"}],"service":{"ports":[{"name":"status-port","port":15021,"targetPort":15021},{"name":"tls","port":15443,"targetPort":15443},{"name":"tls-istiod","port":15012,"targetPort":15012},{"name":"tls-webhook","port":15017,"targetPort":15017}]}},"label":{"app":"istio-eastwestgateway","istio":"eastwestgateway","topology.istio.io/network":"network-west"},"name":"istio-eastwestgateway","namespace":"istio-system"}]},"profile":"empty","values":{"gateways":{"istio-ingressgateway":{"injectionTemplate":"gateway"}},"global":{"network":"network-west"}}}"#);
    world.run(&first);
    let settled = plan(&mesh("1.27.0"), &world.observed).unwrap();
    assert_eq!(ids(&settled), Vec::<String>::new());
    assert_eq!(settled.engine, "istio 1.27.0, by istioctl");

    let newer = plan(&mesh("1.28.0"), &world.observed).unwrap();
    let east: Vec<_> =
        newer.steps.iter().filter(|s| s.cluster.as_deref() == Some("east-1") && s.action != Action::Wait).collect();
    let lines: Vec<_> = east.iter().map(|s| format!("{} {}", s.id, s.because)).collect();
    assert_eq!(
        lines,
        [
            "control/east-1/istiod IstioOperator istio-system/stolos-control: version is 1.27.0, not 1.28.0",
            "gateways/east-1/eastwest IstioOperator istio-system/stolos-eastwest: version is 1.27.0, not 1.28.0",
        ]
    );
    world.run(&newer);
    assert!(plan(&mesh("1.28.0"), &world.observed).unwrap().is_settled());

    // Two installers would each take the other's objects for somebody else's.
    assert_eq!(problems(&three(json!({"version": "1.28.0"})), &world), ["engine-changed"; 3]);
    let away = teardown(&mesh("1.28.0"), &world.observed).unwrap();
    assert!(ids(&away).contains(&"- teardown/east-1/istioctl".to_owned()), "{:?}", ids(&away));
    world.run(&away);
    let left: Vec<_> = world.state("east-1").objects.iter().map(|(key, _)| key.to_string()).collect();
    assert_eq!(left, ["Namespace kube-system"]);
}

/// Istio below 1.22 does not serve v1 of its kinds, unless somebody brought newer definitions.
#[test]
fn objects_are_written_in_a_version_that_is_served() {
    let gateway = |plan: &Plan| {
        let step = plan.steps.iter().find(|step| step.id.as_str() == "gateways/east-1/expose")?;
        let Change::Write { objects } = &step.change else { return None };
        objects[0]["apiVersion"].as_str().map(str::to_owned)
    };
    let old = three(json!({"version": "1.21.0"}));
    assert_eq!(gateway(&plan(&old, &world().observed).unwrap()).unwrap(), "networking.istio.io/v1beta1");
    let new = three(json!({"version": "1.22.0"}));
    assert_eq!(gateway(&plan(&new, &world().observed).unwrap()).unwrap(), "networking.istio.io/v1");
    let mut world = world();
    for mut crd in stolos_k8s::istio::crds() {
        crd["metadata"]["uid"] = "theirs".into();
        world.state("east-1").objects.put(crd);
    }
    assert_eq!(gateway(&plan(&old, &world.observed).unwrap()).unwrap(), "networking.istio.io/v1");
}
