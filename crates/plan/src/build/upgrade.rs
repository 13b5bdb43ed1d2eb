//! An upgrade by revision, part by part (contract C.10): what each part of it asks of the clusters.
//!
//! Forward, a part is the plan of the whole mesh as far as the part reaches. Back, Helm's own memory says what a release
//! was; the charts of the old version need not be at hand.

use serde_json::Value;
use stolos_spec::Mesh;

use super::istio::{self, BASE, installed};
use super::{Blocked, ISTIO_PARTS, Reach, Scene, Sketch, id};
use crate::graph::Work;
use crate::object::{SYSTEM_NAMESPACE, is_owned};
use crate::release::{deployed, history};
use crate::values::{EASTWEST, INGRESS};
use crate::{Action, Change, ClusterState, Condition, ObjectDiff, ObjectKey, Observed, Plan, Purpose, Rollback};

/// The revision that Istio calls a control plane by that was given none (contract B.8).
pub(crate) const DEFAULT: &str = "default";

/// The plan of as much of the mesh as `reach` says.
pub(crate) fn part(reach: Reach, mesh: &Mesh, observed: &Observed) -> Result<Plan, Blocked> {
    let scene = Scene { reach, ..Scene::new(mesh, observed) };
    let mut sketch = Sketch::new(mesh);
    scene.preflight(&mut sketch);
    if sketch.problems.is_empty() {
        if reach == Reach::Retirement {
            ISTIO_PARTS.iter().for_each(|part| part(&scene, &mut sketch));
        } else {
            istio::steps(&scene, &mut sketch);
        }
    }
    sketch.finish(&scene, Purpose::Apply)
}

/// The gateways go back to the control plane `revision`.
pub(crate) fn gateways_back(revision: &str, mesh: &Mesh, observed: &Observed) -> Result<Plan, Blocked> {
    let scene = Scene::new(mesh, observed);
    let mut sketch = Sketch::new(mesh);
    for (cluster, state) in &scene.live {
        let name = cluster.name.as_str();
        for (release, part) in [(EASTWEST, "eastwest"), (INGRESS, "ingress")] {
            let (step, because) = (id("gateways", name, part), format!("it goes back to revision {revision}"));
            if !back(&scene, &mut sketch, name, state, step, release, because, |v| revision_of(v) == revision) {
                continue;
            }
            let until =
                vec![Condition::Available { namespace: SYSTEM_NAMESPACE.to_owned(), deployment: release.to_owned() }];
            let ready = id("gateways", name, &format!("{part}-ready"));
            sketch.wait(name, state, ready, vec![id("gateways", name, part)], until);
        }
    }
    sketch.finish(&scene, Purpose::Apply)
}

/// The control planes called `revision` go, which nobody uses.
pub(crate) fn withdrawal(revision: &str, mesh: &Mesh, observed: &Observed) -> Result<Plan, Blocked> {
    let scene = Scene::new(mesh, observed);
    let mut sketch = Sketch::new(mesh);
    for (cluster, state) in &scene.live {
        let name = cluster.name.as_str();
        let releases = deployed(&state.objects);
        // One that was called the default already is it no longer.
        if installed(&releases, BASE).is_some_and(|base| base.values["defaultRevision"] == revision) {
            let because = format!("revision {revision} is not the default");
            let is_other = |values: &Value| values["defaultRevision"] != revision;
            back(&scene, &mut sketch, name, state, id("control", name, "base"), BASE, because, is_other);
        }
        let going: Vec<_> = releases.values().filter(|release| is_control(release, scene.mesh_name())).collect();
        for release in going.into_iter().filter(|release| revision_of(&release.values) == revision) {
            let mut after = vec![id("control", name, "base")];
            after.extend(before_primary(&scene, name, &release.name));
            let because = format!("the upgrade to revision {revision} is taken back");
            istio::uninstall(&scene, &mut sketch, name, retire(name, &release.name), after, &[release], &because);
            // What led remotes to it (B.7).
            let routes = format!("istiod-vs-{revision}");
            let routes: Vec<&Value> = state
                .objects
                .kind("VirtualService")
                .filter(|(key, object)| key.name == routes && is_owned(scene.mesh_name(), object))
                .map(|(_, object)| object)
                .collect();
            let step = id("gateways", name, "expose-istiod");
            sketch.remove(name, step, vec![retire(name, &release.name)], routes, because);
        }
    }
    sketch.finish(&scene, Purpose::Apply)
}

/// Leads a release back to the newest revision of it whose values are `wanted`. Whether there is anything to do.
#[expect(clippy::too_many_arguments, reason = "each is a different thing, and all are needed")]
fn back(
    scene: &Scene<'_>,
    sketch: &mut Sketch,
    cluster: &str,
    state: &ClusterState,
    step: String,
    release: &str,
    because: String,
    wanted: impl Fn(&Value) -> bool,
) -> bool {
    let known = history(&state.objects, SYSTEM_NAMESPACE, release);
    let Some(now) = known.first().filter(|now| now.mesh.as_deref() == Some(scene.mesh_name())) else { return false };
    if wanted(&now.values) && !now.is_pending() {
        return false;
    }
    let was = known.iter().find(|then| {
        let ended = ["deployed", "superseded"].contains(&then.status.as_str());
        ended && then.chart.is_some() && wanted(&then.values)
    });
    let Some(was) = was else {
        let text = format!("Helm does not remember release {release} as it was before the upgrade");
        let ways = ["put the old revision and version back into the mesh file, and `stolos apply`"];
        sketch.problem("no-history", Some(cluster), text, &ways);
        return false;
    };
    let object = ObjectKey { name: release.to_owned(), ..istio::key(release) };
    let back = Rollback { name: release.to_owned(), namespace: SYSTEM_NAMESPACE.to_owned(), revision: was.revision };
    let change = Change::Rollback { context: scene.context(cluster), release: back };
    let diff = vec![ObjectDiff { object, action: Action::Change, fields: vec![] }];
    sketch.draft(step, Some(cluster), vec![], Work::Do { action: Action::Change, change, because, diff });
    true
}

/// The step after which a control plane is gone.
pub(super) fn retire(cluster: &str, release: &str) -> String {
    id("leftovers", cluster, &format!("release-{release}"))
}

/// What goes before a primary's control plane: those of its remotes, which lead to it.
pub(super) fn before_primary(scene: &Scene<'_>, cluster: &str, release: &str) -> Vec<String> {
    let led = |primary: &str| {
        let remotes = scene.live.iter().filter(move |(c, _)| c.primary().is_some_and(|p| p.as_str() == primary));
        remotes.map(|(c, _)| retire(c.name.as_str(), release)).collect()
    };
    led(cluster)
}

/// Whether a release is a control plane's, of this mesh: chart `istiod`, or `istiod-remote` below 1.24.
pub(crate) fn is_control(release: &crate::release::Deployed, mesh: &str) -> bool {
    let chart = release.chart.as_ref().map(|(name, _)| name.as_str());
    release.mesh.as_deref() == Some(mesh) && matches!(chart, Some("istiod" | "istiod-remote"))
}

/// The revision that a chart's values name.
pub(crate) fn revision_of(values: &Value) -> &str {
    values["revision"].as_str().filter(|revision| !revision.is_empty()).unwrap_or(DEFAULT)
}
