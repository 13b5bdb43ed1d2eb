//! `topology.yaml` of Istio's `setup-mesh.sh`, with its `base.yaml`.

use crate::base;
use crate::draft::{self, DEFAULT_NETWORK, Member};
use crate::eastwest;
use crate::mesh::{Mesh, Origin};
use crate::problem::{At, Notes, quoted};
use crate::yaml::{Entry, Fields, Node, Unknown, Value};
use crate::{MeshName, NetworkName};

const FIELDS: &[&str] = &["mesh_id", "contexts"];
const CONTEXT_FIELDS: &[&str] = &["network", "namespace", "serviceAccountReader", "disableRegistryJoin"];

/// Whether a document is one: it names its mesh as no other file does, or has a map of contexts and no kind.
pub(crate) fn is_one(node: &Node) -> bool {
    let has = |field: &str| node.entries().iter().any(|e| e.key.eq_ignore_ascii_case(field));
    node.get("kind").is_none() && (has("mesh_id") || has("contexts"))
}

pub(crate) fn read(notes: &mut Notes<'_>, base: Option<&mut Notes<'_>>, node: &Node) -> Option<Mesh> {
    if let Some(meant) = lost_indentation(node) {
        let at = node.entries().iter().find(|e| e.key == "contexts").map(|e| e.key_at);
        notes
            .problem(at, "`contexts` is empty, and what belongs below it stands beside it: the indentation is lost")
            .expected("each context indented by two spaces, its fields by four")
            .hint(format!("write\n{meant}"));
        return None;
    }
    let fields = Fields::of(notes, node, "", FIELDS, Unknown::Ignored)?;
    let name = match fields.text(notes, "mesh_id").filter(|(text, _)| !text.is_empty()) {
        Some((text, at)) => draft::name(notes, at, MeshName::parse(text)),
        None => {
            if fields.node("mesh_id").is_none_or(|n| n.text().is_some()) {
                let at = fields.entry("mesh_id").map(|e| e.key_at).or(Some(start(node)));
                notes.problem(at, "the mesh has no `mesh_id`").hint("write `mesh_id: mymesh`");
            }
            None
        }
    };
    let members = contexts(notes, &fields);
    let clusters = draft::clusters(notes, members?);
    let mut mesh = draft::mesh(name?, Origin::Topology);
    mesh.clusters = clusters;
    if let Some(base) = base {
        lay_over(base, &mut mesh);
    }
    Some(mesh)
}

/// Applies a base file, a document of its own.
pub(crate) fn lay_over(base: &mut Notes<'_>, mesh: &mut Mesh) {
    let Some(documents) = crate::yaml::documents(base) else { return };
    let document = match documents.as_slice() {
        [] => return,
        [one] => one,
        [_, second, ..] => {
            base.problem(second.at, "a base file has one document; here a second one starts").expected("one document");
            return;
        }
    };
    if eastwest::is_one(document) {
        let Some(gateway) = eastwest::understand(base, document) else { return };
        if let Some(network) = gateway.network.filter(|n| mesh.clusters.iter().all(|c| c.network.as_str() != n)) {
            let what = format!("the gateway is for the network {}, on which no cluster is", quoted(&network));
            base.warn(
                document.get("spec").map_or(document.at, |spec| spec.at),
                what,
                "every gateway gets its cluster's own",
            );
        }
        return base::merge(&mut mesh.control_plane.gateways.eastwest, gateway.values);
    }
    let Some(overlay) = base::read(base, document, "", mesh) else { return };
    accept(base, overlay, mesh);
}

/// Lays an overlay onto what a mesh has so far.
pub(crate) fn accept(notes: &mut Notes<'_>, overlay: base::Overlay, mesh: &mut Mesh) {
    if let Some(mtls) = overlay.mtls {
        mesh.mtls = mtls;
    }
    if let Some((domain, at)) = overlay.trust_domain
        && let Some(domain) = crate::mesh_file::trust_domain(notes, &domain, at)
    {
        mesh.trust.domain = domain;
    }
    if let serde_json::Value::Object(values) = &mut mesh.control_plane.values {
        base::merge(values, overlay.values);
    }
}

fn contexts(notes: &mut Notes<'_>, fields: &Fields<'_>) -> Option<Vec<Member>> {
    const SHAPE: &str = "write\ncontexts:\n  context-1:\n    network: network-1";
    let Some(contexts) = fields.node("contexts").filter(|n| !matches!(&n.value, Value::Map(e) if e.is_empty())) else {
        let at = fields.entry("contexts").map(|e| e.key_at);
        notes
            .problem(at, "the file names no clusters")
            .expected("the kubeconfig contexts of the mesh's clusters below `contexts`")
            .hint(SHAPE);
        return None;
    };
    if !matches!(contexts.value, Value::Map(_)) {
        notes
            .problem(contexts.at, format!("`contexts` is {}", contexts.description()))
            .expected("a map from kubeconfig contexts to their networks")
            .hint(SHAPE);
        return None;
    }
    let mut members: Vec<Member> = Vec::new();
    for entry in contexts.entries() {
        if let Some(first) = members.iter().find(|m| m.context == entry.key) {
            let line = first.at.line;
            notes
                .problem(entry.key_at, format!("the context {} is written twice", quoted(&entry.key)))
                .expected(format!("each once; the first stands in line {line}"));
            continue;
        }
        members.extend(context(notes, entry));
    }
    Some(members)
}

fn context(notes: &mut Notes<'_>, entry: &Entry) -> Option<Member> {
    if entry.key.is_empty() {
        notes.problem(entry.key_at, "this context has no name").expected("a context of your kubeconfig");
        return None;
    }
    let path = format!("contexts.{}", entry.key);
    let fields = Fields::of(notes, &entry.value, &path, CONTEXT_FIELDS, Unknown::Ignored)?;
    warn_of_old_readers(notes, entry);
    if let Some((namespace, at)) = fields.text(notes, "namespace")
        && namespace != "istio-system"
    {
        notes.warn(
            at,
            format!("the control plane's namespace is {}", quoted(namespace)),
            "Stolos uses `istio-system`, as `setup-mesh.sh` always did",
        );
    }
    if let Some((account, at)) = fields.text(notes, "serviceAccountReader") {
        notes.warn(
            at,
            format!("the service account {} is to lend its token to the other clusters", quoted(account)),
            "Stolos makes a reader account of its own with the least rights that do, and a token that expires",
        );
    }
    if let Some(disabled) = fields.node("disableRegistryJoin") {
        match disabled.boolean() {
            Some(true) => notes.warn(
                disabled.at,
                format!("`{path}.disableRegistryJoin` keeps the cluster out of the others' registries"),
                "Stolos joins every cluster that the file names; take it out of the file to keep it apart",
            ),
            Some(false) => {}
            None => {
                let what = format!("`{path}.disableRegistryJoin` is {}", disabled.description());
                notes.problem(disabled.at, what).expected("`true` or `false`");
            }
        }
    }
    let network = match fields.text(notes, "network").filter(|(text, _)| !text.is_empty()) {
        Some((text, at)) => draft::name(notes, at, NetworkName::parse(text)),
        None => {
            notes.warn(
                entry.key_at,
                format!("the context {} has no network", quoted(&entry.key)),
                format!(
                    "it is taken to be on the network `{DEFAULT_NETWORK}`, together with all others that have none"
                ),
            );
            NetworkName::parse(DEFAULT_NETWORK).ok()
        }
    };
    let member = Member::new(entry.key_at, &entry.key, network?);
    draft::warn_of_context(notes, entry.key_at, &entry.key, &member.name);
    Some(member)
}

/// `setup-mesh.sh` found contexts with `sed`, and only where the line was two spaces, a word and a colon.
fn warn_of_old_readers(notes: &mut Notes<'_>, entry: &Entry) {
    let line = notes.line(entry.key_at.line);
    let why = if line == format!("  {}:", entry.key) {
        return;
    } else if line.trim_start().starts_with(['"', '\'']) {
        "it is quoted"
    } else if line.len() - line.trim_start().len() != 2 {
        "it is not indented by exactly two spaces"
    } else if line.contains('#') {
        "a comment follows it"
    } else {
        "more than a colon follows it"
    };
    notes.warn(
        entry.key_at,
        format!("`setup-mesh.sh` would have passed over {}: {why}", quoted(&entry.key)),
        "Stolos reads YAML: the cluster is part of the mesh",
    );
}

/// The file as it was meant, where a web page or a mail has taken its indentation.
fn lost_indentation(node: &Node) -> Option<String> {
    let entries = node.entries();
    let contexts = entries.iter().position(|e| e.key == "contexts" && e.value.is_null())?;
    let (before, after) = (&entries[..contexts], &entries[contexts + 1..]);
    after.first().filter(|first| first.value.is_null() && !FIELDS.contains(&first.key.as_str()))?;
    let line = |indent: usize, entry: &Entry| {
        let value = entry.value.text().map(|text| format!(" {text}")).unwrap_or_default();
        format!("{:indent$}{}:{value}\n", "", entry.key)
    };
    let mut meant = String::new();
    before.iter().for_each(|e| meant += &line(0, e));
    meant += "contexts:\n";
    for entry in after {
        match &entry.value {
            _ if FIELDS.contains(&entry.key.as_str()) => meant += &line(0, entry),
            value if value.is_null() => meant += &line(2, entry),
            _ => meant += &line(4, entry),
        }
    }
    Some(meant.trim_end().to_owned())
}

fn start(node: &Node) -> At {
    node.entries().first().map_or(node.at, |e| e.key_at)
}
