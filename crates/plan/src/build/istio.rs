//! Real Istio in each cluster, by its own charts: definitions, control plane, gateways (contract C.1, C.2 and C.4).
//!
//! Nothing of Istio is rendered here. What is decided is which releases there are to be, from which chart, with which
//! values, in which order; what is there already is read from Helm's own memory of it.

mod adopted;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use stolos_spec::{Charts, Cluster, ClusterName, Installer, Origin};

use super::addresses::{self, Way};
use super::{Reach, Scene, Sketch, control, gateways, id, reason, remote, upgrade};
use crate::graph::Work;
use crate::object::{SYSTEM_NAMESPACE, mesh_of, ours};
use crate::operator::{self, Operator, recorded};
use crate::release::{Deployed, deployed, value_differences};
use crate::values::{EASTWEST, INGRESS, Layers, Minor, Place};
use crate::{Action, Change, Chart, ClusterState, Condition, FieldDiff, ObjectDiff, ObjectKey, Release, Uninstall};

/// The release of the definitions.
pub(crate) const BASE: &str = "istio-base";

/// The document of the control plane, before its revision, and that of the east-west gateway.
const CONTROL: &str = "stolos-control";
const GATEWAY: &str = "stolos-eastwest";

/// The name of a revision's own document: one name would have the installer take the other revision away.
fn document(revision: Option<&str>, name: &str) -> String {
    revision.map_or_else(|| name.to_owned(), |revision| format!("{name}-{revision}"))
}

/// The oldest Istio that is installed (contract G); older ones are only read.
const OLDEST: Minor = Minor(1, 20);
/// What is installed where nobody names a version: the newest of which every reported fault of remote secrets that
/// concerns everyday changes is mended (contract B.5, G: 1.30.3).
const USUAL: Minor = Minor(1, 30);

/// The Kubernetes minors (1.x) that each Istio supports, as istio.io's table of supported releases had them.
const KUBERNETES: &[(Minor, u32, u32)] = &[
    (Minor(1, 20), 25, 29),
    (Minor(1, 21), 26, 29),
    (Minor(1, 22), 27, 30),
    (Minor(1, 23), 27, 30),
    (Minor(1, 24), 28, 31),
    (Minor(1, 25), 29, 32),
    (Minor(1, 26), 29, 32),
    (Minor(1, 27), 29, 33),
    (Minor(1, 28), 30, 34),
    (Minor(1, 29), 31, 35),
    (Minor(1, 30), 32, 36),
];

/// The kinds that Stolos itself writes objects of.
const DEFINITIONS: [&str; 2] = ["gateways.networking.istio.io", "peerauthentications.security.istio.io"];

/// Which Istio.
struct Wanted {
    minor: Minor,
    /// All of it, `1.28.0`, where the file says so; else the newest of its minor.
    exact: Option<String>,
}

impl Wanted {
    /// As people say it.
    fn text(&self) -> String {
        self.exact.clone().unwrap_or_else(|| self.minor.to_string())
    }

    /// As `helm --version` takes it.
    fn constraint(&self) -> String {
        self.exact.clone().unwrap_or_else(|| format!("~{}.0", self.minor))
    }

    /// Whether a chart of that version is as wanted.
    fn is(&self, version: &str) -> bool {
        let version = version.trim_start_matches('v');
        match &self.exact {
            Some(exact) => exact.trim_start_matches('v') == version,
            None => Minor::of(version) == Some(self.minor),
        }
    }
}

pub(super) fn steps(scene: &Scene<'_>, sketch: &mut Sketch) {
    let releases: Vec<_> = scene.live.iter().map(|(_, state)| deployed(&state.objects)).collect();
    let Some(wanted) = version(scene, sketch, &releases) else { return };
    let by = match scene.mesh.control_plane.installer {
        Installer::Helm => "helm",
        Installer::Istioctl => "istioctl",
        Installer::None => "somebody else",
    };
    sketch.engine = format!("istio {}, by {by}", wanted.text());
    for ((cluster, state), releases) in scene.live.iter().zip(&releases) {
        if scene.mesh.control_plane.installer == Installer::None {
            adopted::steps(scene, sketch, &wanted, cluster, state, releases);
        } else if is_free(scene, sketch, cluster.name.as_str(), state, releases) {
            here(scene, sketch, &wanted, cluster, state, releases);
        }
    }
}

/// The steps of one cluster. They bear the names of the small engine's where they play the same part.
fn here(
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
    let own = |object: Value| ours(scene.mesh_name(), object);
    let mut address = None;
    if let Some(primary) = cluster.primary() {
        if remote::was_primary(scene, sketch, name, state) {
            return;
        }
        address = remote::address(scene, sketch, cluster, primary);
        if address.is_none() {
            // Nothing is known of the way to its primary: it stays as it is.
            return keep(scene, sketch, name, state, releases);
        }
    }
    let place = Place { mesh: scene.mesh, cluster, version: wanted.minor, primary_address: address.as_deref() };
    let mut helm = Helm { scene, sketch, wanted, cluster: name, state, releases };
    let istiod = scene.istiod();
    let revision = scene.mesh.control_plane.revision.as_deref();

    let namespace = id("trust", name, "namespace");
    let by_helm = scene.mesh.control_plane.installer == Installer::Helm;
    let until = DEFINITIONS.map(|crd| Condition::Established { crd: crd.to_owned() }).into();
    // The signing certificate first: an istiod that finds none signs for itself (B.1).
    if by_helm {
        // A second control plane beside the first is not the default one yet (C.10).
        let mut base = place.base();
        if let Some(live) = installed(releases, BASE).filter(|_| scene.reach != Reach::Retirement) {
            let revision = live.values.get("defaultRevision").cloned();
            base.suggested = revision.map_or_else(|| json!({}), |revision| json!({"defaultRevision": revision}));
        }
        helm.install(control("base"), vec![namespace], BASE, "base", base, None);
        helm.sketch.wait(name, state, control("crds-served"), vec![control("base")], until);
        let mut before = vec![control("base"), id("trust", name, "cacerts")];
        if let Some(primary) = cluster.primary() {
            before.extend(exposed(primary));
            // A remote has a chart of its own below 1.24 (B.7, E.15).
            let chart = if wanted.minor < Minor(1, 24) { "istiod-remote" } else { "istiod" };
            helm.install(control("istiod"), before, &istiod, chart, place.istiod(), None);
            helm.sketch.late(primary, EASTWEST);
        } else {
            helm.install(control("istiod"), before, &istiod, "istiod", place.istiod(), Some(&istiod));
        }
    } else {
        let (values, overridden) = place.istiod().merged();
        helm.overridden(&overridden, "istiod");
        let ingress = scene.mesh.control_plane.gateways.ingress.as_ref().filter(|_| cluster.primary().is_none());
        let mut spec = operator::control(values, revision, ingress);
        let mut before = vec![namespace, id("trust", name, "cacerts")];
        if let Some(primary) = cluster.primary() {
            spec["profile"] = "remote".into();
            before.extend(exposed(primary));
            helm.operate(control("istiod"), before, &document(revision, CONTROL), spec, None);
            helm.sketch.late(primary, EASTWEST);
        } else {
            helm.operate(control("istiod"), before, &document(revision, CONTROL), spec, Some(&istiod));
        }
        helm.sketch.wait(name, state, control("crds-served"), vec![control("istiod")], until);
    }
    let webhook = match revision {
        Some(revision) => format!("{}-{revision}", control::INJECTOR),
        None => control::INJECTOR.to_owned(),
    };
    let (mut before, mut until) = (vec![control("istiod")], vec![Condition::Trusted { webhook }]);
    if let Some(primary) = cluster.primary() {
        // The primary does both once it reads this cluster.
        before.extend([id("links", primary.as_str(), name), id("control", primary.as_str(), "ready")]);
        until.push(Condition::RootReceived { namespace: SYSTEM_NAMESPACE.to_owned() });
    } else {
        let deployment = istiod.clone();
        until.insert(0, Condition::Available { namespace: SYSTEM_NAMESPACE.to_owned(), deployment });
        // Which root an authority elsewhere has, no Secret here says.
        if scene.mesh.authority_elsewhere().is_none() {
            until.push(Condition::RootPublished { namespace: SYSTEM_NAMESPACE.to_owned() });
        }
    }
    if cluster.primary().is_some() {
        helm.sketch.wait(name, state, control("trusted"), before, until);
        remote::ready(helm.sketch, name, revision);
    } else {
        helm.sketch.wait(name, state, control("ready"), before, until);
    }

    // What Istio's validating webhook looks at comes when it answers. Of a remote nobody reads it (E.19).
    let served = || vec![control("ready"), control("crds-served")];
    if cluster.primary().is_none() {
        let strict = own(versioned(control::mtls(scene.mesh), wanted.minor, state));
        helm.sketch.write(name, state, control("mtls"), served(), vec![strict]);
        if scene.mesh.needs_gateways() {
            let expose = own(versioned(gateways::expose(scene.mesh), wanted.minor, state));
            helm.sketch.write(name, state, gateway("expose"), served(), vec![expose]);
        }
        if place.has_remotes() {
            let expose = remote::expose(&istiod, revision).into_iter();
            let expose = expose.map(|object| own(versioned(object, wanted.minor, state))).collect();
            helm.sketch.write(name, state, gateway("expose-istiod"), served(), expose);
        }
    }

    if scene.reach == Reach::Beside {
        return;
    }
    if scene.reach == Reach::Held {
        for release in [EASTWEST, INGRESS].into_iter().filter(|name| installed(releases, name).is_some()) {
            helm.sketch.want(name, key(release));
        }
        unwanted(scene, sketch, name, state, releases);
        return control::membership(scene, sketch, name, state);
    }
    if place.needs_eastwest() {
        // Before the injector answers, a gateway's pod has the image `auto`, which nobody can pull (C.2).
        if by_helm {
            let values = place.eastwest();
            helm.install(gateway("eastwest"), vec![control("ready")], EASTWEST, "gateway", values, Some(EASTWEST));
        } else {
            let spec = operator::eastwest(EASTWEST, cluster.network.as_str(), revision);
            helm.operate(gateway("eastwest"), vec![control("ready")], GATEWAY, spec, Some(EASTWEST));
        }
        let mut until =
            vec![Condition::Available { namespace: SYSTEM_NAMESPACE.to_owned(), deployment: EASTWEST.to_owned() }];
        // What `istioctl` installs gets no values: its Service is of type LoadBalancer.
        if Way::of(cluster, &addresses::values(scene.mesh, cluster)) == Way::Service || !by_helm {
            until.push(Condition::Addressed { namespace: SYSTEM_NAMESPACE.to_owned(), service: EASTWEST.to_owned() });
        }
        let before = ["expose", "expose-istiod", "eastwest"].map(gateway).to_vec();
        helm.sketch.wait(name, state, gateway("ready"), before, until);
    }
    if let Some(ingress) = place.ingress().filter(|_| by_helm && cluster.primary().is_none()) {
        helm.install(gateway("ingress"), vec![control("ready")], INGRESS, "gateway", ingress, Some(INGRESS));
        let until =
            vec![Condition::Available { namespace: SYSTEM_NAMESPACE.to_owned(), deployment: INGRESS.to_owned() }];
        helm.sketch.wait(name, state, gateway("ingress-ready"), vec![gateway("ingress")], until);
    }
    if scene.reach == Reach::Gateways {
        return;
    }
    unwanted(scene, sketch, name, state, releases);
    control::membership(scene, sketch, name, state);
}

/// After which a remote can be led to its primary.
fn exposed(primary: &ClusterName) -> [String; 2] {
    ["ready", "expose-istiod"].map(|what| id("gateways", primary.as_str(), what))
}

/// What is installed stays as it is.
fn keep(scene: &Scene<'_>, sketch: &mut Sketch, cluster: &str, state: &ClusterState, releases: &Releases) {
    for release in releases.values() {
        sketch.want(cluster, ObjectKey { namespace: Some(release.namespace.clone()), ..key(&release.name) });
    }
    for operator in recorded(&state.objects, scene.mesh_name()) {
        sketch.want(cluster, Operator::record_key(&operator.name));
    }
    control::membership(scene, sketch, cluster, state);
}

pub(super) type Releases = BTreeMap<(String, String), Deployed>;

pub(super) fn installed<'r>(releases: &'r Releases, name: &str) -> Option<&'r Deployed> {
    releases.get(&(SYSTEM_NAMESPACE.to_owned(), name.to_owned()))
}

pub(super) fn key(name: &str) -> ObjectKey {
    ObjectKey::new(crate::RELEASE_SECRET, "Release", Some(SYSTEM_NAMESPACE), name)
}

/// `networking.istio.io/v1` is served from 1.22 on; v1beta1 by every version (B.4). Definitions may be newer than the
/// control plane that is wanted: then the newest that they serve is what others see.
fn versioned(mut object: Value, minor: Minor, state: &ClusterState) -> Value {
    let served = || {
        let kind = stolos_k8s::istio::kind(object["kind"].as_str()?)?;
        let key = ObjectKey::new("apiextensions.k8s.io/v1", "CustomResourceDefinition", None, &kind.crd_name());
        let versions = state.objects.get(&key)?["spec"]["versions"].as_array()?;
        Some(versions.iter().any(|version| version["name"] == "v1" && version["served"] == true))
    };
    if minor < Minor(1, 22)
        && served() != Some(true)
        && let Some((group, _)) = object["apiVersion"].as_str().and_then(|text| text.split_once('/'))
    {
        object["apiVersion"] = format!("{group}/v1beta1").into();
    }
    object
}

struct Helm<'a, 's> {
    scene: &'a Scene<'s>,
    sketch: &'a mut Sketch,
    wanted: &'a Wanted,
    cluster: &'a str,
    state: &'a ClusterState,
    releases: &'a Releases,
}

impl Helm<'_, '_> {
    /// Names what the file says in vain.
    fn overridden(&mut self, overridden: &[(String, Value, Value)], chart: &str) {
        for (path, given, used) in overridden {
            let text = format!("the mesh file's value {path} of chart {chart} is {given}: the mesh needs {used}");
            self.sketch.note(None, text);
        }
    }

    /// What this document says is to be in the cluster, installed by `istioctl`. `deployment` is what it runs.
    fn operate(&mut self, id: String, after: Vec<String>, name: &str, spec: Value, deployment: Option<&str>) {
        let manifests = match &self.scene.mesh.control_plane.charts {
            Charts::Folder(folder) => Some(folder.to_string_lossy().into_owned()),
            // `istioctl` has its charts in itself.
            Charts::Repository(_) | Charts::Registry(_) => None,
        };
        let operator = Operator::new(name, &self.wanted.text(), self.scene.mesh_name(), spec, manifests);
        let key = Operator::record_key(name);
        self.sketch.want(self.cluster, key.clone());
        let all = recorded(&self.state.objects, self.scene.mesh_name());
        let live = all.iter().find(|live| live.name == name);
        let action = if live.is_none() { Action::Add } else { Action::Change };
        let mut fields = Vec::new();
        if let Some(live) = live {
            let field = |path: &str, from: &str, to: &str| FieldDiff {
                path: path.to_owned(),
                from: Some(from.to_owned()),
                to: Some(to.to_owned()),
            };
            if live.version != operator.version {
                fields.push(field("version", &live.version, &operator.version));
            }
            fields.extend(value_differences(&operator.document, &live.document));
            let there = |name| ObjectKey::new("apps/v1", "Deployment", Some(SYSTEM_NAMESPACE), name);
            if deployment.is_some_and(|name| self.state.objects.get(&there(name)).is_none()) {
                fields.push(field("Deployment", "gone", "there"));
            }
            if fields.is_empty() {
                return self.sketch.draft(id, Some(self.cluster), after, Work::Nothing);
            }
        }
        let object = ObjectKey { kind: "IstioOperator".to_owned(), name: name.to_owned(), ..key };
        let diff = vec![ObjectDiff { object, action, fields }];
        let because = reason(&diff);
        let change = Change::Operate { context: self.scene.context(self.cluster), operator };
        self.sketch.draft(id, Some(self.cluster), after, Work::Do { action, change, because, diff });
    }

    /// This release is to be in the cluster, from this chart, with these values. `deployment` is what it runs.
    fn install(
        &mut self,
        id: String,
        after: Vec<String>,
        name: &str,
        chart: &str,
        layers: Layers,
        deployment: Option<&str>,
    ) {
        let Some((chart, version)) = self.chart(chart) else { return };
        let (values, overridden) = layers.merged();
        self.overridden(&overridden, chart_name(&chart));
        let key = key(name);
        self.sketch.want(self.cluster, key.clone());
        let live = installed(self.releases, name);
        let action = if live.is_none() { Action::Add } else { Action::Change };
        let mut fields = Vec::new();
        if let Some(live) = live {
            let field = |path: &str, from: String, to: &str| FieldDiff {
                path: path.to_owned(),
                from: Some(from),
                to: Some(to.to_owned()),
            };
            if live.status != "deployed" {
                fields.push(field("status", live.status.clone(), "deployed"));
            }
            let is = live.chart.as_ref().map_or("unreadable", |(_, version)| version);
            let fits = match &version {
                Some(local) => local.trim_start_matches('v') == is.trim_start_matches('v'),
                None => self.wanted.is(is),
            };
            if !fits {
                let to = version.clone().unwrap_or_else(|| self.wanted.constraint());
                fields.push(field("chart", live.chart_text(), &to));
            }
            fields.extend(value_differences(&values, &live.values));
            // Helm does not look at what became of the objects it made; the most important one is looked at here.
            let missing = deployment.is_some_and(|deployment| {
                let key = ObjectKey::new("apps/v1", "Deployment", Some(SYSTEM_NAMESPACE), deployment);
                self.state.objects.get(&key).is_none()
            });
            if missing {
                fields.push(field("Deployment", "gone".to_owned(), "there"));
            }
            if fields.is_empty() {
                return self.sketch.draft(id, Some(self.cluster), after, Work::Nothing);
            }
        }
        let release = Release {
            name: name.to_owned(),
            namespace: SYSTEM_NAMESPACE.to_owned(),
            chart,
            values,
            mesh: self.scene.mesh_name().to_owned(),
            stuck: live.is_some_and(Deployed::is_pending),
        };
        let diff = vec![ObjectDiff { object: key, action, fields }];
        let because = reason(&diff);
        let change = Change::Install { context: self.scene.context(self.cluster), release };
        self.sketch.draft(id, Some(self.cluster), after, Work::Do { action, change, because, diff });
    }

    /// Where a chart is, and its version where the place decides it.
    fn chart(&mut self, name: &str) -> Option<(Chart, Option<String>)> {
        let version = Some(self.wanted.constraint());
        match &self.scene.mesh.control_plane.charts {
            Charts::Repository(url) => {
                Some((Chart { reference: name.to_owned(), repository: Some(url.clone()), version }, None))
            }
            Charts::Registry(registry) => {
                Some((Chart { reference: format!("{registry}/{name}"), repository: None, version }, None))
            }
            Charts::Folder(folder) => {
                let there: Vec<_> = self.scene.observed.charts.iter().filter(|chart| chart.name == name).collect();
                let fitting = there.iter().find(|chart| self.wanted.is(&chart.version));
                let Some(found) = fitting else {
                    let has: Vec<_> = there.iter().map(|chart| format!("{} {}", chart.name, chart.version)).collect();
                    let has = if has.is_empty() { "none of that name".to_owned() } else { has.join(", ") };
                    let text = format!(
                        "the folder {} has no chart `{name}` of version {} (it has {has})",
                        folder.display(),
                        self.wanted.constraint()
                    );
                    let ways =
                        ["a folder with `base`, `istiod` and `gateway`, as folders or as `NAME-VERSION.tgz`, or an \
                         unpacked Istio release's `manifests/charts`"];
                    self.sketch.problem("charts", None, text, &ways);
                    return None;
                };
                let chart = Chart { reference: found.path.clone(), repository: None, version: None };
                Some((chart, Some(found.version.clone())))
            }
        }
    }
}

/// The chart's name for people, wherever it is.
fn chart_name(chart: &Chart) -> &str {
    chart.reference.trim_end_matches('/').rsplit('/').next().unwrap_or(&chart.reference)
}

/// Whether nobody else's control plane is where ours is to be.
fn is_free(scene: &Scene<'_>, sketch: &mut Sketch, cluster: &str, state: &ClusterState, releases: &Releases) -> bool {
    let mesh = scene.mesh_name();
    let before = sketch.problems.len();
    let control = [BASE, EASTWEST, INGRESS].into_iter().map(str::to_owned).chain([scene.istiod()]);
    for name in control {
        let Some(there) = installed(releases, &name) else { continue };
        match there.mesh.as_deref() {
            Some(theirs) if theirs == mesh => {}
            Some(theirs) => {
                let text = format!("{} belongs to mesh `{theirs}`", key(&name));
                sketch.problem(
                    "other-mesh",
                    Some(cluster),
                    text,
                    &["tear that mesh down first, or use another cluster"],
                );
            }
            None => {
                let text = format!("{} exists and was not made by Stolos", key(&name));
                sketch.problem("foreign", Some(cluster), text, &["uninstall it, or use another cluster"]);
            }
        }
    }
    let operators = recorded(&state.objects, mesh);
    let by_helm = releases.values().any(|release| release.mesh.as_deref() == Some(mesh));
    let other = match scene.mesh.control_plane.installer {
        Installer::Helm => (!operators.is_empty()).then_some("istioctl"),
        Installer::Istioctl => by_helm.then_some("helm"),
        Installer::None => None,
    };
    if let Some(other) = other {
        let text = format!("this mesh was installed with `{other}`, and the file now names another installer");
        let way = format!("`installer: {other}` to keep it");
        sketch.problem("engine-changed", Some(cluster), text, &["`stolos teardown` first", &way]);
    }
    for (key, object) in state.objects.kind("Deployment") {
        if object["metadata"]["labels"]["app"] != control::ISTIOD
            || belongs(releases, mesh, object)
            || operator::is_of(object, &operators)
        {
            continue;
        }
        match mesh_of(object) {
            Some(_) => {
                let text = format!("{key} is the small engine's: this mesh was built with `engine: stolos`");
                let ways = ["`stolos teardown` first, then apply with the other engine", "`engine: stolos` to keep it"];
                sketch.problem("engine-changed", Some(cluster), text, &ways);
            }
            None if releases.values().any(|release| is_of(object, release)) => {}
            None => {
                let text = format!("{key} is an Istio that Stolos did not install");
                sketch.problem("foreign", Some(cluster), text, &["uninstall it, or use another cluster"]);
            }
        }
    }
    sketch.problems.len() == before
}

/// Whether Helm made `object` for `release`.
fn is_of(object: &Value, release: &Deployed) -> bool {
    let annotations = &object["metadata"]["annotations"];
    annotations["meta.helm.sh/release-name"] == release.name.as_str()
        && annotations["meta.helm.sh/release-namespace"] == release.namespace.as_str()
}

/// Whether `object` was made for one of our releases.
pub(super) fn belongs(releases: &Releases, mesh: &str, object: &Value) -> bool {
    releases.values().any(|release| release.mesh.as_deref() == Some(mesh) && is_of(object, release))
}

/// Our releases that the file no longer asks for. A control plane stays: workloads may still be its own.
fn unwanted(scene: &Scene<'_>, sketch: &mut Sketch, cluster: &str, state: &ClusterState, releases: &Releases) {
    for operator in recorded(&state.objects, scene.mesh_name()) {
        let key = Operator::record_key(&operator.name);
        if sketch.wanted.contains(&(cluster.to_owned(), key.clone())) {
            continue;
        }
        // The memory of it is not to be swept away like any other object.
        sketch.want(cluster, key);
        if operator.name == GATEWAY {
            let because = format!("IstioOperator {} is no longer wanted", operator.name);
            let step = id("leftovers", cluster, "operator-eastwest");
            withdraw(scene, sketch, cluster, step, last(scene, cluster), &[operator], &because);
        } else {
            let text = format!(
                "what `istioctl` installed as {} ({}) is not what the mesh file asks for, and stays: workloads may still \
                 be injected by it",
                operator.name, operator.version
            );
            sketch.note(Some(cluster), text);
        }
    }
    for release in releases.values().filter(|release| release.mesh.as_deref() == Some(scene.mesh_name())) {
        let key = ObjectKey { namespace: Some(release.namespace.clone()), ..key(&release.name) };
        if sketch.wanted.contains(&(cluster.to_owned(), key.clone())) {
            continue;
        }
        if [EASTWEST, INGRESS].contains(&release.name.as_str()) {
            let because = format!("{key} is no longer wanted");
            let step = id("leftovers", cluster, &format!("release-{}", release.name));
            uninstall(scene, sketch, cluster, step, last(scene, cluster), &[release], &because);
        } else if scene.reach == Reach::Retirement {
            let because = format!("{key} serves nobody any more");
            let mut after = last(scene, cluster);
            after.push(id("control", cluster, "base"));
            after.extend(upgrade::before_primary(scene, cluster, &release.name));
            uninstall(scene, sketch, cluster, upgrade::retire(cluster, &release.name), after, &[release], &because);
        } else {
            let text = format!(
                "{key} ({}) is not what the mesh file asks for, and stays: workloads may still be injected by it",
                release.chart_text()
            );
            sketch.note(Some(cluster), text);
        }
    }
}

/// A gateway goes when its control plane is as it is to be, and no remote is led to it any more.
fn last(scene: &Scene<'_>, cluster: &str) -> Vec<String> {
    let mut after = remote::served(scene);
    after.push(id("control", cluster, "ready"));
    after
}

/// Uninstalls releases, one after the other. None, and there is no work.
pub(super) fn uninstall(
    scene: &Scene<'_>,
    sketch: &mut Sketch,
    cluster: &str,
    id: String,
    after: Vec<String>,
    releases: &[&Deployed],
    because: &str,
) {
    let gone = |r: &&Deployed| Uninstall { name: r.name.clone(), namespace: r.namespace.clone() };
    let diff = |r: &&Deployed| {
        let object = ObjectKey { namespace: Some(r.namespace.clone()), ..key(&r.name) };
        ObjectDiff { object, action: Action::Remove, fields: vec![] }
    };
    let work = match releases.is_empty() {
        true => Work::Nothing,
        false => Work::Do {
            action: Action::Remove,
            change: Change::Uninstall {
                context: scene.context(cluster),
                releases: releases.iter().map(gone).collect(),
            },
            because: because.to_owned(),
            diff: releases.iter().map(diff).collect(),
        },
    };
    sketch.draft(id, Some(cluster), after, work);
}

/// Takes away with `istioctl` what it installed. None, and there is no work.
pub(super) fn withdraw(
    scene: &Scene<'_>,
    sketch: &mut Sketch,
    cluster: &str,
    id: String,
    after: Vec<String>,
    operators: &[Operator],
    because: &str,
) {
    let diff = |operator: &Operator| {
        let key = Operator::record_key(&operator.name);
        let object = ObjectKey { kind: "IstioOperator".to_owned(), name: operator.name.clone(), ..key };
        ObjectDiff { object, action: Action::Remove, fields: vec![] }
    };
    let work = match operators.is_empty() {
        true => Work::Nothing,
        false => Work::Do {
            action: Action::Remove,
            change: Change::Withdraw { context: scene.context(cluster), operators: operators.to_vec() },
            because: because.to_owned(),
            diff: operators.iter().map(diff).collect(),
        },
    };
    sketch.draft(id, Some(cluster), after, work);
}

/// In which moment of a teardown a release goes: gateways first, the definitions last.
pub(super) fn stage(release: &Deployed) -> &'static str {
    match release.chart.as_ref().map(|(chart, _)| chart.as_str()) {
        Some("gateway") => "helm-gateways",
        Some("base") => "helm-base",
        Some(_) => "helm-istiod",
        None if release.name == BASE => "helm-base",
        None if [EASTWEST, INGRESS].contains(&release.name.as_str()) => "helm-gateways",
        None => "helm-istiod",
    }
}

/// Which version, or why none: decision 18.
fn version(scene: &Scene<'_>, sketch: &mut Sketch, releases: &[Releases]) -> Option<Wanted> {
    let control = &scene.mesh.control_plane;
    let kubernetes: Vec<(String, Option<u32>)> = scene
        .live
        .iter()
        .map(|(c, state)| (c.name.to_string(), Minor::of(&state.version).map(|Minor(_, minor)| minor)))
        .collect();
    let allows = |istio: Minor, minor: Option<u32>| match (KUBERNETES.iter().find(|(known, ..)| *known == istio), minor)
    {
        (Some((_, least, most)), Some(minor)) => (*least..=*most).contains(&minor),
        _ => true,
    };
    let wanted = match control.version.as_deref().and_then(|text| Some((text, Minor::of(text)?))) {
        Some((text, minor)) if minor >= OLDEST || control.installer == Installer::None => {
            let exact = (text.split('.').count() > 2).then(|| text.trim_start_matches('v').to_owned());
            Wanted { minor, exact }
        }
        Some((text, minor)) if scene.mesh.origin == Origin::Mesh => {
            let text = format!(
                "Istio {text} is older than what can be installed: {OLDEST} is the oldest ({minor} can only be read)"
            );
            sketch.problem("istio-version", None, text, &["name a later version as `spec.controlPlane.version`"]);
            return None;
        }
        Some((text, _)) => {
            let fits = |istio: &Minor| kubernetes.iter().all(|(_, minor)| allows(*istio, *minor));
            let minor = KUBERNETES.iter().map(|(istio, ..)| *istio).find(fits).unwrap_or(USUAL);
            sketch.note(None, format!("the file wishes for Istio {text}, which is too old: Istio {minor} is used"));
            Wanted { minor, exact: None }
        }
        // What is there stays; a version in the folder decides; else the usual one.
        None => {
            let there = releases.iter().flat_map(|releases| installed(releases, &scene.istiod()));
            let there = there.filter_map(|release| Minor::of(&release.chart.as_ref()?.1));
            let documents = scene.live.iter().flat_map(|(_, state)| recorded(&state.objects, scene.mesh_name()));
            let there = there.chain(documents.filter_map(|operator| Minor::of(&operator.version))).max();
            let local = match control.charts {
                Charts::Folder(_) => scene.observed.charts.iter().filter_map(|chart| Minor::of(&chart.version)).max(),
                _ => None,
            };
            let minor = local.or(there).unwrap_or(USUAL);
            Wanted { minor, exact: None }
        }
    };
    for (cluster, minor) in kubernetes.iter().filter(|(_, minor)| !allows(wanted.minor, *minor)) {
        let text = format!(
            "Istio {} was never tried on Kubernetes 1.{} by its makers",
            wanted.minor,
            minor.unwrap_or_default()
        );
        sketch.note(Some(cluster), text);
    }
    Some(wanted)
}
