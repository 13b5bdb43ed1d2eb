//! Reads a mesh from any of the files it may stand in, recognised by what is in them.

use crate::mesh::{Mesh, Origin};
use crate::problem::{At, Notes, Problem, Problems, SourceText, Warning, nearest, quoted};
use crate::yaml::{Node, Value, documents};
use crate::{mesh_file, ristioctl, topology};

/// What was understood of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// The mesh.
    pub mesh: Mesh,
    /// What Stolos reads differently, or does not act on.
    pub warnings: Vec<Warning>,
}

/// Reads a mesh; `base` is a file of Helm values laid over what Stolos computes, such as the `base.yaml` beside a
/// `topology.yaml`.
///
/// # Errors
///
/// With everything that is wrong with the files.
pub fn read(file: &SourceText, base: Option<&SourceText>) -> Result<Reading, Problems> {
    let mut notes = Notes::on(file);
    let mut base_notes = base.map(Notes::on);
    let mesh = understand(&mut notes, base_notes.as_mut());
    let (mesh, warnings) = notes.finish(mesh, base_notes)?;
    Ok(Reading { mesh, warnings })
}

/// Which kind of mesh file this is, if it is one: how its author finds out whether a `base.yaml` belongs to it.
#[must_use]
pub fn recognise(file: &SourceText) -> Option<Origin> {
    let documents = documents(&mut Notes::on(file))?;
    origin(&documents)
}

fn origin(documents: &[Node]) -> Option<Origin> {
    let first = documents.first()?;
    if documents.iter().any(ristioctl::is_one) {
        Some(Origin::Ristioctl)
    } else if topology::is_one(first) {
        Some(Origin::Topology)
    } else if documents.iter().any(mesh_file::is_one) {
        Some(Origin::Mesh)
    } else {
        None
    }
}

fn understand(notes: &mut Notes<'_>, base: Option<&mut Notes<'_>>) -> Option<Mesh> {
    let documents = documents(notes)?;
    let Some(first) = documents.first() else {
        notes
            .problem(None, "the file is empty")
            .hint("`stolos init` writes a mesh file from the contexts of your kubeconfig");
        return None;
    };
    let origin = origin(&documents);
    if let (Some(Origin::Mesh | Origin::Topology), [_, second, ..]) = (origin, documents.as_slice()) {
        let at = second.entries().first().map_or(second.at, |e| e.key_at);
        let what =
            format!("a second document starts here{}", what_is(second).map(|w| format!(": {w}")).unwrap_or_default());
        notes.problem(at, what).expected("one mesh in one document").hint("move it to a file of its own");
        return None;
    }
    match origin {
        Some(Origin::Mesh) => mesh_file::read(notes, base, first),
        Some(Origin::Topology) => topology::read(notes, base, first),
        Some(Origin::Ristioctl) => {
            let mut mesh = ristioctl::read(notes, &documents)?;
            if let Some(base) = base {
                topology::lay_over(base, &mut mesh);
            }
            Some(mesh)
        }
        _ => {
            refuse(notes, first);
            None
        }
    }
}

/// Says what a file is instead of a mesh.
fn refuse(notes: &mut Notes<'_>, node: &Node) {
    const EXPECTED: &str =
        "`kind: Mesh`, a topology.yaml (`mesh_id`, `contexts`), or ristioctl's `Certificate` and `Cluster`";
    let kind = node.get("kind");
    let at = kind.map(|k| k.at).or_else(|| node.entries().first().map(|e| e.key_at)).unwrap_or(node.at);
    let what = match what_is(node) {
        Some(what) => format!("this is {what}, not a mesh"),
        None if !matches!(node.value, Value::Map(_)) => format!("the file is {}", node.description()),
        None => "this is not a mesh file".to_owned(),
    };
    let hint = hint(node);
    let problem: &mut Problem = notes.problem(at, what);
    problem.expected(EXPECTED);
    if let Some(hint) = hint {
        problem.hint(hint);
    }
    boolean_label(notes, node);
}

fn api_and_kind(node: &Node) -> (&str, &str) {
    let text = |key: &str| node.get(key).and_then(Node::text).unwrap_or_default();
    (text("apiVersion"), text("kind"))
}

/// What a document is, where it is something known.
fn what_is(node: &Node) -> Option<String> {
    let (api, kind) = api_and_kind(node);
    let group = api.split('/').next().unwrap_or_default();
    let what = match (group, kind) {
        (_, "Mesh") => "a mesh".to_owned(),
        ("install.istio.io", _) | (_, "IstioOperator" | "IstioControlPlane") => {
            "an overlay of Istio's values".to_owned()
        }
        ("policy.karmada.io" | "work.karmada.io" | "cluster.karmada.io", _) => {
            format!("Karmada's {}", quoted(kind))
        }
        ("v1", "Config") => "a kubeconfig".to_owned(),
        ("v1", "Secret") if is_remote_secret(node) => "a remote secret of Istio's".to_owned(),
        ("", "") if node.get("remotePilotAddress").is_some() => "the values of an `istio-remote` chart".to_owned(),
        ("", "") if node.get("global").is_some() => "a file of Helm values".to_owned(),
        (group, kind) if group.ends_with("istio.io") => format!("an Istio object of kind {}", quoted(kind)),
        (_, "") => return None,
        ("cert-manager.io", kind) => format!("cert-manager's {}", quoted(kind)),
        (_, kind) => format!("a Kubernetes object of kind {}", quoted(kind)),
    };
    Some(what)
}

fn hint(node: &Node) -> Option<String> {
    let (api, kind) = api_and_kind(node);
    let group = api.split('/').next().unwrap_or_default();
    let meant = nearest(kind, &["Mesh", "Certificate", "Cluster"]);
    let hint = match (group, kind) {
        _ if crate::eastwest::is_one(node) => {
            "give it to `stolos create-mesh … --gateway FILE`, or with `--base FILE` beside a mesh file"
        }
        ("install.istio.io", _) | (_, "IstioOperator" | "IstioControlPlane") => {
            "name it `base.yaml` beside a topology.yaml, or give it below `spec.controlPlane.values` of a `Mesh`"
        }
        ("policy.karmada.io", _) => {
            "a placement policy says where workloads go; the mesh it works in has a file of its own"
        }
        ("v1", "Config") => "`stolos init CONTEXT…` writes a mesh file from its contexts",
        ("v1", "Secret") if is_remote_secret(node) => {
            "Stolos makes the remote secrets of a mesh itself; name the cluster in a mesh file"
        }
        ("", "") if node.get("remotePilotAddress").is_some() => {
            "a shared control plane is written `controlPlane: {primary: NAME}` at the remote cluster of a `Mesh`"
        }
        ("", "") if node.get("global").is_some() => "give it below `spec.controlPlane.values` of a `Mesh`",
        ("", "") => {
            let keys: Vec<_> = node.entries().iter().map(|e| e.key.as_str()).collect();
            let known = ["mesh_id", "contexts", "clusters"];
            let near = keys.iter().find_map(|key| nearest(key, &known).map(|near| (*key, near)));
            return near.map(|(key, near)| format!("was {} meant to be `{near}`?", quoted(key)));
        }
        _ => return meant.map(|meant| format!("was `kind: {meant}` meant?")),
    };
    Some(hint.to_owned())
}

fn labels(node: &Node) -> &[crate::yaml::Entry] {
    node.get("metadata").and_then(|m| m.get("labels")).map(Node::entries).unwrap_or_default()
}

fn is_remote_secret(node: &Node) -> bool {
    labels(node).iter().any(|e| e.key == "istio/multiCluster")
}

/// A label whose value is a boolean: YAML's old trap, which an API server answers with a bare 400.
fn boolean_label(notes: &mut Notes<'_>, node: &Node) {
    let wrong: Vec<(At, String, String)> = labels(node)
        .iter()
        .filter(|e| e.value.boolean().is_some())
        .map(|e| (e.value.at, e.key.clone(), e.value.description()))
        .collect();
    for (at, key, value) in wrong {
        let text = value.trim_matches('`');
        notes
            .problem(at, format!("the label {} is the boolean {value}", quoted(&key)))
            .expected("a text: Kubernetes refuses anything else as a label's value")
            .hint(format!("write `{key}: \"{text}\"`"));
    }
}
