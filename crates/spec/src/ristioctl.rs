//! Rafay's `ristioctl`: documents of the kinds `Certificate` and `Cluster` in one file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::draft::{self, Member};
use crate::mesh::{Mesh, Origin, Root, Sample};
use crate::problem::{At, Notes, nearest, quoted};
use crate::yaml::{Fields, Node, Unknown};
use crate::{ClusterName, MeshName, NetworkName};

const KINDS: &[&str] = &["Certificate", "Cluster"];
const DOCUMENT: &[&str] = &["apiVersion", "kind", "metadata", "spec"];
const METADATA: &[&str] = &["name", "labels", "annotations"];
const CERTIFICATE: &[&str] =
    &["validityHours", "sanSuffix", "meshID", "folder", "password", "folderPath", "installHelloWorld"];
const CLUSTER: &[&str] = &["kubeconfigFile", "context", "meshID", "version", "installHelloWorld"];

/// Whether a document is of such a file. `ristioctl` itself looks at nothing but the kind.
pub(crate) fn is_one(node: &Node) -> bool {
    let api = node.get("apiVersion").and_then(Node::text).unwrap_or_default();
    let kind = node.get("kind").and_then(Node::text).unwrap_or_default();
    let foreign = ["cert-manager.io/", "cluster.x-k8s.io/", "cluster.karmada.io/", "stolos.dev/"];
    api.starts_with("ristioctl.k8smgmt.io/")
        || KINDS.contains(&kind) && !foreign.iter().any(|group| api.starts_with(group))
}

struct Certificate<'n> {
    at: At,
    mesh: Option<(&'n str, At)>,
    validity: Option<Duration>,
    suffix: Option<(&'n str, At)>,
}

struct Cluster<'n> {
    member: Member,
    mesh: Option<(&'n str, At)>,
    version: Option<(&'n str, At)>,
    hello: bool,
}

pub(crate) fn read(notes: &mut Notes<'_>, documents: &[Node]) -> Option<Mesh> {
    let (mut certificates, mut clusters) = (Vec::new(), Vec::new());
    for document in documents {
        let Some(kind) = document.get("kind") else {
            notes.warn(document.at, "this document has no kind", "it is ignored, as `ristioctl` does");
            continue;
        };
        match kind.text().unwrap_or_default() {
            "Certificate" => certificates.extend(certificate(notes, document)),
            "Cluster" => clusters.extend(cluster(notes, document)),
            other => {
                let meant = nearest(other, KINDS).map(|near| format!("; was `{near}` meant?")).unwrap_or_default();
                notes.warn(
                    kind.at,
                    format!("{} is not a kind that `ristioctl` reads", quoted(other)),
                    format!("the document is ignored{meant}"),
                );
            }
        }
    }
    if clusters.is_empty() && notes.is_clean() {
        notes
            .problem(None, "the file names no clusters")
            .expected("at least one document of kind `Cluster`")
            .hint("write\napiVersion: ristioctl.k8smgmt.io/v3\nkind: Cluster\nmetadata:\n  name: cluster1\nspec:\n  kubeconfigFile: kubeconfig.yaml\n  context: cluster1\n  meshID: mymesh");
    }
    let (name, name_at) = mesh_name(notes, &clusters, &certificates)?;
    let mut mesh = draft::mesh(name, Origin::Ristioctl);
    trust(notes, &mut mesh, name_at, &certificates);
    wishes(notes, &mut mesh, &clusters);
    mesh.clusters = draft::clusters(notes, clusters.into_iter().map(|c| c.member).collect());
    Some(mesh)
}

fn certificate<'n>(notes: &mut Notes<'_>, document: &'n Node) -> Option<Certificate<'n>> {
    let spec = spec(notes, document, CERTIFICATE)?.1;
    if let Some(password) = spec.node("password") {
        let instead = match password.boolean() {
            Some(true) => "the root key is encrypted when `STOLOS_PASSPHRASE` or a file gives a passphrase; set one",
            _ => {
                "the root key is encrypted when `STOLOS_PASSPHRASE` or a file gives a passphrase, and 0600 in any case"
            }
        };
        let what =
            format!("`password` is {}; `ristioctl` never encrypted a key, whatever it said", password.description());
        notes.warn(password.at, what, instead);
    }
    for key in ["folder", "folderPath"] {
        if let Some((folder, at)) = spec.text(notes, key) {
            let never = if key == "folderPath" { ", which `ristioctl` never read" } else { "" };
            notes.warn(
                at,
                format!("`{key}` is {}{never}", quoted(folder)),
                "the root lives in the mesh's own state folder (`--state DIR` or `STOLOS_STATE` chooses another)",
            );
        }
    }
    if let Some(hello) = spec.node("installHelloWorld") {
        notes.warn(hello.at, "`installHelloWorld` means nothing in a `Certificate`", "only a `Cluster`'s is looked at");
    }
    let validity = match spec.text(notes, "validityHours") {
        Some((text, at)) => {
            let hours = text.parse::<u64>().ok().and_then(|h| h.checked_mul(3600)).map(Duration::from_secs);
            if hours.is_none_or(|h| h.is_zero() || h > draft::LONGEST) {
                notes
                    .problem(at, format!("`validityHours` is {}", quoted(text)))
                    .expected("a number of hours from 1 to 876000")
                    .hint("write `validityHours: 2190` for a quarter of a year");
            }
            hours
        }
        None => None,
    };
    Some(Certificate {
        at: document.get("kind").map_or(document.at, |k| k.at),
        mesh: spec.text(notes, "meshID"),
        validity,
        suffix: spec.text(notes, "sanSuffix").filter(|(text, _)| !text.is_empty()),
    })
}

fn cluster<'n>(notes: &mut Notes<'_>, document: &'n Node) -> Option<Cluster<'n>> {
    let (metadata, spec) = spec(notes, document, CLUSTER)?;
    let at = document.get("kind").map_or(document.at, |k| k.at);
    let Some((text, name_at)) = metadata.text(notes, "name").filter(|(text, _)| !text.is_empty()) else {
        notes.problem(at, "this cluster has no `metadata.name`").hint("write `metadata: {name: cluster1}`");
        return None;
    };
    let name = draft::name(notes, name_at, ClusterName::parse(text))?;
    let network = draft::name(notes, name_at, NetworkName::parse(&format!("network-{name}")))?;
    let (context, context_at) = spec.text(notes, "context").unwrap_or((text, name_at));
    let kubeconfig = spec.text(notes, "kubeconfigFile").filter(|(text, _)| !text.is_empty());
    let hello = spec.text(notes, "installHelloWorld");
    if let Some((text, at)) = hello
        && !matches!(text, "true" | "false")
    {
        notes.warn(
            at,
            format!("`installHelloWorld` is {}, and only the literal `true` turns it on", quoted(text)),
            "HelloWorld is not installed because of this line",
        );
    }
    Some(Cluster {
        member: Member {
            name,
            context_at,
            kubeconfig: kubeconfig.map(|(path, _)| PathBuf::from(path)),
            ..Member::new(name_at, context, network)
        },
        mesh: spec.text(notes, "meshID").filter(|(text, _)| !text.is_empty()),
        version: spec.text(notes, "version").filter(|(text, _)| !text.is_empty()),
        hello: hello.is_some_and(|(text, _)| text == "true"),
    })
}

fn spec<'n>(notes: &mut Notes<'_>, document: &'n Node, known: &[&'static str]) -> Option<(Fields<'n>, Fields<'n>)> {
    static EMPTY: std::sync::LazyLock<Node> = std::sync::LazyLock::new(Node::null);
    let top = Fields::of(notes, document, "", DOCUMENT, Unknown::Ignored)?;
    let node = |key: &str| top.node(key).unwrap_or(&EMPTY);
    let metadata = Fields::of(notes, node("metadata"), "metadata", METADATA, Unknown::Ignored)?;
    let spec = Fields::of(notes, node("spec"), "spec", known, Unknown::Ignored)?;
    Some((metadata, spec))
}

/// One file is one mesh. `ristioctl` handed every cluster of a file to every other, whatever their mesh IDs.
fn mesh_name(
    notes: &mut Notes<'_>,
    clusters: &[Cluster<'_>],
    certificates: &[Certificate<'_>],
) -> Option<(MeshName, At)> {
    let mut names: BTreeMap<&str, (At, Vec<String>)> = BTreeMap::new();
    for cluster in clusters {
        match cluster.mesh {
            Some((mesh, at)) => names.entry(mesh).or_insert((at, Vec::new())).1.push(cluster.member.name.to_string()),
            None => {
                let what = format!("the cluster `{}` has no `meshID`", cluster.member.name);
                notes.problem(cluster.member.at, what).hint(match certificates.iter().find_map(|c| c.mesh) {
                    Some((mesh, _)) => format!("write `meshID: {mesh}` below its `spec`"),
                    None => "write `meshID: mymesh` below its `spec`".to_owned(),
                });
            }
        }
    }
    let mut names: Vec<_> = names.into_iter().collect();
    names.sort_by_key(|(_, (at, _))| at.line);
    let [(mesh, (at, _)), others @ ..] = names.as_slice() else { return None };
    if let [(_, (other_at, _)), ..] = others {
        let list: Vec<_> = names.iter().map(|(m, (_, c))| format!("{} ({})", quoted(m), c.join(", "))).collect();
        notes
            .problem(*other_at, format!("the clusters belong to {} meshes: {}", names.len(), list.join(" and ")))
            .expected("one `meshID` in all clusters of a file; `ristioctl` would have joined them all regardless")
            .hint("write one file for each mesh");
        return None;
    }
    draft::name(notes, *at, MeshName::parse(mesh)).map(|name| (name, *at))
}

fn trust(notes: &mut Notes<'_>, mesh: &mut Mesh, name_at: At, certificates: &[Certificate<'_>]) {
    let (mine, others): (Vec<_>, Vec<_>) =
        certificates.iter().partition(|c| c.mesh.is_some_and(|(m, _)| m == mesh.name.as_str()));
    let certificate = match mine.as_slice() {
        [] if certificates.is_empty() => {
            notes.warn(
                name_at,
                format!("there is no `Certificate` for the mesh `{}`", mesh.name),
                "the root and the intermediates get Stolos' defaults: ten and two years",
            );
            return;
        }
        [] => {
            let found: Vec<_> = certificates.iter().filter_map(|c| c.mesh).map(|(m, _)| quoted(m)).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            notes
                .problem(
                    certificates[0].mesh.map_or(certificates[0].at, |(_, at)| at),
                    format!("no `Certificate` has the clusters' `meshID`; found {found}"),
                )
                .expected(format!("`{}`", mesh.name))
                .hint(format!("write `meshID: {}`", mesh.name));
            return;
        }
        [one] => one,
        [one, second, ..] => {
            notes.warn(
                second.at,
                format!("the mesh `{}` has more than one `Certificate`", mesh.name),
                format!("the first one counts, in line {}", one.at.line),
            );
            one
        }
    };
    for other in others {
        let whose = other.mesh.map_or("no mesh".to_owned(), |(m, _)| quoted(m));
        notes.warn(
            other.at,
            format!("this `Certificate` is for {whose}, of which no cluster is here"),
            "it is ignored",
        );
    }
    match certificate.validity {
        Some(validity) => {
            mesh.trust.root = Root::SelfSigned { validity };
            mesh.trust.intermediates.validity = validity;
            mesh.trust.intermediates.renew_before = draft::renew_before(validity);
        }
        None => notes.warn(
            certificate.at,
            "the `Certificate` has no `validityHours`",
            "the root and the intermediates get Stolos' defaults: ten and two years",
        ),
    }
    if let Some((suffix, at)) = certificate.suffix
        && let Some(organization) = crate::mesh_file::organization(notes, suffix, at)
    {
        notes.warn(
            at,
            format!("`sanSuffix` is {}: `ristioctl` made it part of each certificate's name", quoted(suffix)),
            "it becomes the certificates' organization; identities are SPIFFE URIs in the trust domain `cluster.local`",
        );
        mesh.trust.organization = organization;
    }
}

fn wishes(notes: &mut Notes<'_>, mesh: &mut Mesh, clusters: &[Cluster<'_>]) {
    let mut versions = clusters.iter().filter_map(|c| c.version);
    if let Some((version, at)) = versions.next() {
        mesh.control_plane.version = Some(version.to_owned());
        if let Some((other, _)) = versions.find(|(other, _)| *other != version) {
            notes.warn(
                at,
                format!("the clusters ask for different versions, such as {} and {}", quoted(version), quoted(other)),
                format!("{version} counts: a mesh has one version, but for the time of an upgrade"),
            );
        }
    }
    if clusters.iter().any(|c| c.hello) {
        mesh.samples.extend([Sample::Helloworld, Sample::Sleep]);
        if let Some(without) = clusters.iter().find(|c| !c.hello) {
            notes.warn(
                without.member.at,
                format!("`{}` does not ask for HelloWorld, but another cluster does", without.member.name),
                "samples are installed in all clusters of the mesh: the service must be known wherever it is called",
            );
        }
    }
}
