//! A cluster whose Istio somebody else looks after (`installer: none`).

use serde_json::Value;
use stolos_spec::{Cluster, Mtls};

use super::{Helm, Releases, Wanted, installed, unwanted, versioned};
use crate::build::{Scene, Sketch, control, gateways, id};
use crate::graph::Work;
use crate::object::{SYSTEM_NAMESPACE, mesh_of, ours};
use crate::values::{EASTWEST, Place};
use crate::{ClusterState, Condition, ObjectKey};

/// Nothing of that Istio is touched. What is missing between it and the others is
/// brought: a gateway and what it serves where there are other networks, and a mode of mTLS that the file asks for.
pub(super) fn steps(
    scene: &Scene<'_>,
    sketch: &mut Sketch,
    wanted: &Wanted,
    cluster: &Cluster,
    state: &ClusterState,
    releases: &Releases,
) {
    let name = cluster.name.as_str();
    let control = |what: &str| id("control", name, what);
    let gateway = |what: &str| id("gateways", name, what);
    let own = |object: Value| ours(scene.mesh_name(), versioned(object, wanted.minor, state));
    let istiod = scene.istiod();
    if cluster.primary().is_some() {
        // Its primary's control plane serves it, and whoever installed that also led it there.
        sketch.draft(control("istiod"), Some(name), vec![], Work::Nothing);
        sketch.draft(control("ready"), Some(name), vec![control("istiod")], Work::Nothing);
        return control::membership(scene, sketch, name, state);
    }
    let there = ObjectKey::new("apps/v1", "Deployment", Some(SYSTEM_NAMESPACE), &istiod);
    if state.objects.get(&there).is_none() {
        let text = format!("there is no {there}, and the mesh file says that Stolos installs none (`installer: none`)");
        return sketch.problem("no-control-plane", Some(name), text, &["install Istio there", "`installer: helm`"]);
    }
    sketch.draft(control("istiod"), Some(name), vec![], Work::Nothing);
    let until = vec![
        Condition::Available { namespace: SYSTEM_NAMESPACE.to_owned(), deployment: istiod },
        Condition::RootPublished { namespace: SYSTEM_NAMESPACE.to_owned() },
    ];
    sketch.wait(name, state, control("ready"), vec![control("istiod")], until);
    let mtls = control::mtls(scene.mesh);
    // Without one, plaintext is accepted as well.
    let silent =
        state.objects.kind("PeerAuthentication").all(|(key, _)| key.namespace.as_deref() != Some(SYSTEM_NAMESPACE));
    if !(silent && scene.mesh.mtls == Mtls::Permissive) {
        sketch.write(name, state, control("mtls"), vec![control("ready")], vec![own(mtls)]);
    }
    let place = Place { mesh: scene.mesh, cluster, version: wanted.minor, primary_address: None };
    if place.needs_eastwest() {
        let network = cluster.network.as_str();
        let stands = state
            .objects
            .kind("Service")
            .any(|(_, service)| service["metadata"]["labels"]["topology.istio.io/network"] == network);
        let serves = state.objects.kind("Gateway").any(|(key, gateway)| {
            let servers = gateway["spec"]["servers"].as_array().map(Vec::as_slice).unwrap_or_default();
            // Ours is wanted as long as there is no other.
            mesh_of(gateway) != Some(scene.mesh_name())
                && key.namespace.as_deref() == Some(SYSTEM_NAMESPACE)
                && servers.iter().any(|s| s["tls"]["mode"] == "AUTO_PASSTHROUGH")
        });
        if serves {
            sketch.draft(gateway("expose"), Some(name), vec![], Work::Nothing);
        } else {
            let expose = own(gateways::expose(scene.mesh));
            sketch.write(name, state, gateway("expose"), vec![control("ready")], vec![expose]);
        }
        let ours_already = installed(releases, EASTWEST).is_some_and(|r| r.mesh.as_deref() == Some(scene.mesh_name()));
        if !stands || ours_already {
            let values = place.eastwest();
            let mut helm = Helm { scene, sketch, wanted, cluster: name, state, releases };
            helm.install(gateway("eastwest"), vec![control("ready")], EASTWEST, "gateway", values, Some(EASTWEST));
        } else {
            sketch.draft(gateway("eastwest"), Some(name), vec![], Work::Nothing);
        }
        sketch.wait(name, state, gateway("ready"), vec![gateway("eastwest")], vec![]);
    }
    unwanted(scene, sketch, name, state, releases);
    control::membership(scene, sketch, name, state);
}
