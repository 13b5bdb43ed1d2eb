//! Reads a mesh from any of the files it may stand in, recognised by what is in them.

use crate::mesh::{Mesh, Origin};
use crate::problem::{At, Notes, Problem, Problems, SourceText, Warning, finish_all, nearest, quoted};
use crate::yaml::{Node, Value, documents};
use crate::{karmada, mesh_file, ristioctl, shared, topology};

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
    read_all(std::slice::from_ref(file), base, &Told::default())
}

/// Reads a file that is a mesh by itself, or says what it is instead.
fn read_one(file: &SourceText, base: Option<&SourceText>) -> Result<Reading, Problems> {
    let mut notes = Notes::on(file);
    let mut base_notes = base.map(Notes::on);
    let mesh = understand(&mut notes, base_notes.as_mut());
    let (mesh, warnings) = notes.finish(mesh, base_notes)?;
    Ok(Reading { mesh, warnings })
}

/// What the files of other systems have no place for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The mesh's name.
    pub name: Option<String>,
    /// The cluster whose control plane the others share: its context, and its network where one is told.
    pub primary: Option<(String, Option<String>)>,
    /// Clusters that share it, likewise.
    pub remotes: Vec<(String, Option<String>)>,
}

/// Reads one mesh from several files of another system: Karmada's policies with what stands beside them, or the
/// kubeconfigs, remote secrets and values of a shared control plane. A single file may be of any kind.
///
/// # Errors
///
/// With everything that is wrong with the files.
pub fn read_all(files: &[SourceText], base: Option<&SourceText>, told: &Told) -> Result<Reading, Problems> {
    let none = SourceText::new("", "");
    let mut common = Notes::on(&none);
    if let [only] = files
        && recognise(only).is_some()
    {
        if told.primary.is_none() && told.remotes.is_empty() {
            return read_one(only, base);
        }
        common
            .problem(None, format!("{} says itself which clusters there are", only.path.display()))
            .hint("leave `--primary` and `--remote` away");
    }
    let mut read_files = Vec::new();
    for file in files {
        let mut notes = Notes::on(file);
        let documents = documents(&mut notes).unwrap_or_default();
        // Also where what stands in it is refused.
        let credentials =
            |node: &Node| node.get("users").is_some() || node.get("kind").and_then(Node::text) == Some("Secret");
        if documents.iter().any(credentials) {
            notes.keep_secrets();
        }
        read_files.push((notes, documents));
    }
    let all = || read_files.iter().flat_map(|(_, documents)| documents);
    let foreign =
        |node: &Node| shared::is_kubeconfig(node) || shared::is_remote_secret(node) || shared::is_values(node);
    let (karmada, remote) = (all().any(karmada::is_one), all().any(foreign) && told.primary.is_some());
    // What is no part of such files is refused with its own words.
    for (notes, documents) in &mut read_files {
        for document in documents.iter() {
            let mesh = mesh_file::is_one(document) || topology::is_one(document) || ristioctl::is_one(document);
            if mesh && files.len() > 1 {
                let at = document.entries().first().map_or(document.at, |e| e.key_at);
                notes.problem(at, "this is a mesh of its own").expected("one mesh, in one file");
            } else if !(karmada || mesh || remote && foreign(document)) {
                refuse(notes, document);
                break;
            }
        }
    }
    let mut mesh = match (karmada, remote) {
        (true, _) => karmada::read(&mut common, &mut read_files, told),
        (false, true) => shared::read(&mut common, &mut read_files, told),
        (false, false) => None,
    };
    if read_files.iter().all(|(_, documents)| documents.is_empty()) && common.is_clean() {
        if let ([file], true) = (files, told.primary.is_none()) {
            return read_one(file, base);
        }
        mesh = match told.primary {
            Some(_) => shared::read(&mut common, &mut [], told),
            None => mesh,
        };
    }
    let mut base_notes = base.map(Notes::on);
    if let (Some(mesh), Some(base)) = (&mut mesh, &mut base_notes) {
        topology::lay_over(base, mesh);
    }
    let notes = std::iter::once(common).chain(read_files.into_iter().map(|(notes, _)| notes)).chain(base_notes);
    let (mesh, warnings) = finish_all(mesh, notes.collect())?;
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
pub(crate) fn what_is(node: &Node) -> Option<String> {
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
        ("v1", "Secret") if shared::is_remote_secret(node) => "a remote secret of Istio's".to_owned(),
        ("", "") if shared::is_values(node) => "the values of an `istio-remote` chart".to_owned(),
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
            "only a PropagationPolicy names clusters; the mesh it works in has a file of its own"
        }
        ("v1", "Config") => {
            "`stolos init CONTEXT…` writes a mesh file from its contexts; of a cluster that shares another's control plane, \
             say whose: `--primary CONTEXT`"
        }
        ("v1", "Secret") if shared::is_remote_secret(node) => {
            "Stolos makes the remote secrets of a mesh itself; of a cluster that shares another's control plane, say whose: \
             `--primary CONTEXT`"
        }
        ("", "") if shared::is_values(node) => {
            "say whose control plane is shared, and with whom: `--primary CONTEXT --remote CONTEXT`"
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

/// A label whose value is a boolean: YAML's old trap, which an API server answers with a bare 400.
fn boolean_label(notes: &mut Notes<'_>, node: &Node) {
    let wrong: Vec<(At, String, String)> = shared::labels(node)
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
