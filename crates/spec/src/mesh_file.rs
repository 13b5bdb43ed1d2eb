//! Our own file: `kind: Mesh`, and its short forms.

use std::path::PathBuf;
use std::time::Duration;

use crate::draft::{self, DEFAULT_NETWORK, Member};
use crate::gateway;
use crate::mesh::{Api, Charts, Engine, Hub, Installer, Join, Mesh, Mtls, Origin, Root, Sample};
use crate::problem::{At, Notes, nearest, one_of, quoted};
use crate::yaml::{Fields, Node, Unknown, Value};
use crate::{ClusterName, MeshName, NetworkName};

/// The version of the document that this reads.
pub const API_VERSION: &str = "stolos.dev/v1alpha1";

const DOCUMENT: &[&str] = &["apiVersion", "kind", "metadata", "spec"];
const METADATA: &[&str] = &["name", "labels", "annotations"];
const SPEC: &[&str] = &["trust", "controlPlane", "clusters", "mtls", "expose", "samples", "hub"];
const SHORT: &[&str] = &["name", "trust", "controlPlane", "clusters", "mtls", "expose", "samples", "hub"];
const TRUST: &[&str] = &["domain", "organization", "root", "intermediates"];
const ROOT: &[&str] = &["selfSigned", "files", "exec"];
const INTERMEDIATES: &[&str] = &["validity", "renewBefore"];
const CONTROL_PLANE: &[&str] = &["engine", "version", "values", "installer", "charts", "revision", "gateways"];
const CLUSTER: &[&str] =
    &["name", "context", "kubeconfig", "network", "region", "zone", "controlPlane", "api", "gateway"];

/// The name of a mesh whose short form names none.
const DEFAULT_MESH: &str = "mesh";

/// Whether a document is one, or one of its short forms: a map with `clusters` and no kind, or a list of clusters.
pub(crate) fn is_one(node: &Node) -> bool {
    let kind = node.get("kind").and_then(Node::text);
    let api = node.get("apiVersion").and_then(Node::text).unwrap_or_default();
    match kind {
        Some("Mesh") => true,
        Some(_) => api.starts_with("stolos.dev/"),
        None => {
            api.starts_with("stolos.dev/") || node.get("clusters").is_some() || matches!(node.value, Value::List(_))
        }
    }
}

pub(crate) fn read(notes: &mut Notes<'_>, base: Option<&mut Notes<'_>>, node: &Node) -> Option<Mesh> {
    static EMPTY: std::sync::LazyLock<Node> = std::sync::LazyLock::new(Node::null);
    let long = node.get("kind").is_some() || node.get("apiVersion").is_some() || node.get("spec").is_some();
    let list = matches!(node.value, Value::List(_));
    let (name, spec) = if long {
        let top = Fields::of(notes, node, "", DOCUMENT, Unknown::Refused)?;
        let kind_at = top.entry("kind").map_or(node.at, |e| e.key_at);
        match top.text(notes, "kind") {
            Some(("Mesh", _)) => {}
            Some((other, at)) => {
                notes.problem(at, format!("the kind is {}", quoted(other))).expected("`Mesh`");
            }
            None => {
                notes.problem(node.at, "the document has no kind").hint("write `kind: Mesh`");
            }
        }
        if let Some((version, at)) = top.text(notes, "apiVersion")
            && version != API_VERSION
        {
            notes
                .problem(at, format!("the version of this file is {}", quoted(version)))
                .expected(format!("`{API_VERSION}`"));
        }
        let metadata =
            Fields::of(notes, top.node("metadata").unwrap_or(&EMPTY), "metadata", METADATA, Unknown::Refused);
        let name = metadata.and_then(|metadata| match metadata.text(notes, "name") {
            Some((text, at)) => draft::name(notes, at, MeshName::parse(text)),
            None => {
                if metadata.node("name").is_none() {
                    let at = top.entry("metadata").map_or(kind_at, |e| e.key_at);
                    notes.problem(at, "the mesh has no `metadata.name`").hint("write `metadata: {name: mymesh}`");
                }
                None
            }
        });
        let Some(spec) = top.node("spec") else {
            let at = top.entry("spec").map_or(kind_at, |e| e.key_at);
            no_clusters(notes, Some(at));
            return None;
        };
        (name, Fields::of(notes, spec, "spec", SPEC, Unknown::Refused)?)
    } else if list {
        (MeshName::parse(DEFAULT_MESH).ok(), Fields::of(notes, &EMPTY, "", SHORT, Unknown::Refused)?)
    } else {
        let top = Fields::of(notes, node, "", SHORT, Unknown::Refused)?;
        let name = match top.text(notes, "name") {
            Some((text, at)) => draft::name(notes, at, MeshName::parse(text)),
            None => MeshName::parse(DEFAULT_MESH).ok(),
        };
        (name, top)
    };

    let clusters = if list { Some(node) } else { spec.node("clusters") };
    let members = match clusters {
        Some(clusters) => self::clusters(notes, clusters, &spec.path_of("clusters")),
        None => {
            no_clusters(notes, Some(spec.entry("clusters").map_or(spec.at, |e| e.key_at)));
            Vec::new()
        }
    };
    let hub = spec.node("hub").and_then(|node| hub(notes, node, &spec.path_of("hub"), &members, name.as_ref()));
    if spec.node("hub").is_none() {
        for (member, at) in members.iter().filter_map(|member| Some((member, member.tunnel_at?))) {
            let what = format!("`{}` is reached through the tunnel of a hub, and the file names none", member.name);
            let problem = notes.problem(at, what);
            problem.hint("write `hub: {context: hub}` beside `clusters`, with the kubeconfig context of the hub's API");
        }
    }
    let understood = draft::clusters(notes, members);
    // A problem is already noted where the name is none; the rest is read all the same, to tell everything at once.
    let mut mesh = draft::mesh(name.or_else(|| MeshName::parse(DEFAULT_MESH).ok())?, Origin::Mesh);
    mesh.clusters = understood;
    mesh.hub = hub;
    if let Some(base) = base {
        crate::topology::lay_over(base, &mut mesh);
    }
    if let Some(node) = spec.node("controlPlane") {
        control_plane(notes, node, &spec.path_of("controlPlane"), &mut mesh);
    }
    if let Some(node) = spec.node("trust") {
        trust(notes, node, &spec.path_of("trust"), &mut mesh);
    }
    if let Some((text, at)) = spec.text(notes, "mtls") {
        let choices = [("strict", Mtls::Strict), ("permissive", Mtls::Permissive)];
        mesh.mtls = choice(notes, text, at, "mode of mTLS", &choices).unwrap_or(mesh.mtls);
    }
    if let Some(node) = spec.node("expose") {
        mesh.expose =
            texts(notes, node, &spec.path_of("expose")).into_iter().filter_map(|(t, at)| host(notes, t, at)).collect();
    }
    if let Some(node) = spec.node("samples") {
        let choices = [("helloworld", Sample::Helloworld), ("sleep", Sample::Sleep), ("bookinfo", Sample::Bookinfo)];
        let texts = texts(notes, node, &spec.path_of("samples"));
        mesh.samples = texts.into_iter().filter_map(|(t, at)| choice(notes, t, at, "sample", &choices)).collect();
    }
    Some(mesh)
}

fn no_clusters(notes: &mut Notes<'_>, at: Option<At>) {
    notes
        .problem(at, "the mesh has no clusters")
        .expected("at least one, by its kubeconfig context")
        .hint("write\nclusters:\n  - {name: cluster-1, context: context-1, network: network-1}");
}

fn clusters(notes: &mut Notes<'_>, node: &Node, path: &str) -> Vec<Member> {
    let folder = notes.file().path.parent().map(PathBuf::from).unwrap_or_default();
    let members: Vec<_> = match &node.value {
        Value::List(items) => items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| listed(notes, item, &format!("{path}[{index}]"), &folder))
            .collect(),
        Value::Map(entries) => entries
            .iter()
            .filter_map(|e| keyed(notes, &e.key, e.key_at, &e.value, &format!("{path}.{}", e.key), &folder))
            .collect(),
        Value::Scalar { .. } => {
            notes
                .problem(node.at, format!("`{path}` is {}", node.description()))
                .expected("a list of clusters, or a map from contexts to networks");
            return Vec::new();
        }
    };
    if matches!(&node.value, Value::List(items) if items.is_empty())
        || matches!(&node.value, Value::Map(entries) if entries.is_empty())
    {
        no_clusters(notes, Some(node.at));
    }
    members
}

/// An item of a list: a context, `context: network`, or a map of fields.
fn listed(notes: &mut Notes<'_>, item: &Node, path: &str, folder: &std::path::Path) -> Option<Member> {
    match (&item.value, item.text()) {
        (Value::Scalar { .. }, Some(context)) => keyed(notes, context, item.at, &Node::null(), path, folder),
        (Value::Map(entries), _) => match entries.as_slice() {
            [only] if nearest(&only.key, CLUSTER).is_none() => {
                keyed(notes, &only.key, only.key_at, &only.value, path, folder)
            }
            _ => member(notes, item, None, path, folder),
        },
        _ => {
            notes
                .problem(item.at, format!("`{path}` is {}", item.description()))
                .expected("a context, `context: network`, or a map of the cluster's fields");
            None
        }
    }
}

/// A cluster under its context: nothing more, its network, or a map of fields.
fn keyed(
    notes: &mut Notes<'_>,
    context: &str,
    at: At,
    value: &Node,
    path: &str,
    folder: &std::path::Path,
) -> Option<Member> {
    match value.text() {
        Some(network) => {
            let network = draft::name(notes, value.at, NetworkName::parse(network))?;
            let member = Member::new(at, context, network);
            draft::warn_of_context(notes, at, context, &member.name);
            Some(member)
        }
        None => member(notes, value, Some((context, at)), path, folder),
    }
}

fn member(
    notes: &mut Notes<'_>,
    node: &Node,
    key: Option<(&str, At)>,
    path: &str,
    folder: &std::path::Path,
) -> Option<Member> {
    let fields = Fields::of(notes, node, path, CLUSTER, Unknown::Refused)?;
    let written = fields.text(notes, "name");
    let context = fields.text(notes, "context").or(key).or(written);
    let Some((context, context_at)) = context.filter(|(text, _)| !text.is_empty()) else {
        let at = node.entries().first().map_or(node.at, |e| e.key_at);
        notes
            .problem(at, format!("`{path}` has neither a name nor a context"))
            .hint("write `{name: cluster-1, context: context-1, network: network-1}`; one of the first two is enough");
        return None;
    };
    let name = match written {
        Some((text, at)) => draft::name(notes, at, ClusterName::parse(text)),
        None => {
            let name = ClusterName::from_context(context);
            draft::warn_of_context(notes, context_at, context, &name);
            Some(name)
        }
    };
    let network = match fields.text(notes, "network") {
        Some((text, at)) => draft::name(notes, at, NetworkName::parse(text)),
        None => NetworkName::parse(DEFAULT_NETWORK).ok(),
    };
    let region = place(notes, &fields, "region");
    let zone = place(notes, &fields, "zone");
    let primary = fields.node("controlPlane").and_then(|node| {
        let path = fields.path_of("controlPlane");
        let fields = Fields::of(notes, node, &path, &["primary"], Unknown::Refused)?;
        fields.text(notes, "primary").map(|(text, at)| (text.to_owned(), at))
    });
    let api = fields.node("api").and_then(|node| api(notes, node, &fields.path_of("api")));
    let tunnel_at = fields.node("api").filter(|_| api == Some(Api::Tunnel)).map(|node| node.at);
    let gateway = fields.node("gateway").and_then(|node| gateway::read(notes, node, &fields.path_of("gateway")));
    let kubeconfig = fields.text(notes, "kubeconfig").filter(|(text, _)| !text.is_empty());
    let at = written.or(key).map_or(context_at, |(_, at)| at);
    Some(Member {
        at,
        name: name?,
        context: context.to_owned(),
        context_at,
        kubeconfig: kubeconfig.map(|(path, _)| folder.join(path)),
        network: network?,
        region,
        zone,
        primary,
        api,
        tunnel_at,
        gateway,
    })
}

/// A region or a zone: the value of a node's label.
fn place(notes: &mut Notes<'_>, fields: &Fields<'_>, key: &'static str) -> Option<String> {
    let (text, at) = fields.text(notes, key)?;
    match NetworkName::parse(text) {
        Ok(_) => Some(text.to_owned()),
        Err(error) => {
            notes.problem(at, format!("{} is not a {key}: {}", quoted(text), error.why));
            None
        }
    }
}

fn api(notes: &mut Notes<'_>, node: &Node, path: &str) -> Option<Api> {
    let fields = Fields::of(notes, node, path, &["server", "via"], Unknown::Refused)?;
    match (fields.text(notes, "server"), fields.text(notes, "via")) {
        (Some(_), Some((_, at))) => {
            notes.problem(at, format!("`{path}` has both `server` and `via`")).expected("one of them");
            None
        }
        (Some((server, at)), None) => {
            check_url(notes, server, at, "an API server");
            Some(Api::Server(server.to_owned()))
        }
        (None, Some((via, at))) => choice(notes, via, at, "way to an API server", &[("tunnel", Api::Tunnel)]),
        (None, None) => None,
    }
}

fn check_url(notes: &mut Notes<'_>, url: &str, at: At, of: &str) {
    if !url.starts_with("https://") || url.len() == "https://".len() || url.contains(char::is_whitespace) {
        notes
            .problem(at, format!("{} is not the address of {of}", quoted(url)))
            .expected("a URL such as `https://10.0.0.1:6443`");
    }
}

/// What a plan calls the hub: no cluster of such a mesh can be called so.
pub const HUB: &str = "hub";
/// The longest name of a mesh that has a hub: its namespace there is called after it.
const LONGEST_WITH_HUB: usize = 51;

/// `hub`: a kubeconfig context, or a map of fields.
fn hub(notes: &mut Notes<'_>, node: &Node, path: &str, members: &[Member], mesh: Option<&MeshName>) -> Option<Hub> {
    let folder = notes.file().path.parent().map(PathBuf::from).unwrap_or_default();
    let (context, at, kubeconfig, address, join) = match node.text() {
        Some(context) => (context.to_owned(), node.at, None, None, None),
        None => {
            let fields =
                Fields::of(notes, node, path, &["context", "kubeconfig", "address", "join"], Unknown::Refused)?;
            let kubeconfig = fields.text(notes, "kubeconfig").filter(|(text, _)| !text.is_empty());
            let address = fields.text(notes, "address").map(|(url, at)| {
                check_url(notes, url, at, "a hub");
                url.trim_end_matches('/').to_owned()
            });
            let choices = [("true", Some(Join::Dialled)), ("agent", Some(Join::Agent)), ("false", None)];
            let join = fields.text(notes, "join");
            let join = join.and_then(|(text, at)| choice(notes, text, at, "answer to whether to join", &choices));
            let Some((context, at)) = fields.text(notes, "context").filter(|(text, _)| !text.is_empty()) else {
                notes
                    .problem(node.at, format!("`{path}` names no context"))
                    .hint("write `hub: {context: hub}`, with the kubeconfig context of the hub's API");
                return None;
            };
            (context.to_owned(), at, kubeconfig.map(|(path, _)| folder.join(path)), address, join.flatten())
        }
    };
    for member in members {
        if member.name.as_str() == HUB {
            notes
                .problem(member.at, format!("a cluster is called `{HUB}`, which is what a mesh with a hub calls that"))
                .hint("choose another name for the cluster");
        }
        if member.context == context && member.kubeconfig == kubeconfig {
            let what = format!("the hub is the cluster `{}`: context {}", member.name, quoted(&context));
            notes.problem(at, what).expected("a context of its own for the hub");
        }
    }
    if let Some(mesh) = mesh.filter(|mesh| mesh.as_str().len() > LONGEST_WITH_HUB) {
        let what = format!("the name of the mesh, {}, is too long for one with a hub", quoted(mesh.as_str()));
        notes.problem(at, what).expected(format!("at most {LONGEST_WITH_HUB} characters"));
    }
    Some(Hub { context, kubeconfig, address, join })
}

fn control_plane(notes: &mut Notes<'_>, node: &Node, path: &str, mesh: &mut Mesh) {
    let Some(fields) = Fields::of(notes, node, path, CONTROL_PLANE, Unknown::Refused) else { return };
    if let Some((text, at)) = fields.text(notes, "engine") {
        let choices = [("auto", Engine::Auto), ("stolos", Engine::Stolos), ("istio", Engine::Istio)];
        mesh.control_plane.engine = choice(notes, text, at, "engine", &choices).unwrap_or(Engine::Auto);
    }
    if let Some((text, at)) = fields.text(notes, "version") {
        let parts: Vec<_> = text.split('-').next().unwrap_or_default().split('.').collect();
        let numeric = parts.iter().all(|p| !p.is_empty() && p.len() < 6 && p.bytes().all(|b| b.is_ascii_digit()));
        if !(2..=3).contains(&parts.len()) || !numeric {
            notes
                .problem(at, format!("{} is not a version of Istio", quoted(text)))
                .expected("a version such as `1.28.0`");
        }
        mesh.control_plane.version = Some(text.to_owned());
    }
    if let Some((text, at)) = fields.text(notes, "installer") {
        let choices = [("helm", Installer::Helm), ("istioctl", Installer::Istioctl), ("none", Installer::None)];
        mesh.control_plane.installer = choice(notes, text, at, "installer", &choices).unwrap_or(Installer::Helm);
    }
    if let Some((text, at)) = fields.text(notes, "charts")
        && let Some(charts) = charts(notes, text, at)
    {
        mesh.control_plane.charts = charts;
    }
    if let Some((text, at)) = fields.text(notes, "revision") {
        match ClusterName::parse(text) {
            // The revision that Istio calls `default` is the one without a name.
            Ok(_) => mesh.control_plane.revision = Some(text.to_owned()).filter(|r| r != "default"),
            Err(error) => {
                let problem = notes.problem(at, format!("{} is not a revision: {}", quoted(text), error.why));
                problem.hint(format!("write `{}`", text.to_lowercase().replace(['.', '_'], "-")));
            }
        }
    }
    if let Some(node) = fields.node("gateways") {
        gateways(notes, node, &fields.path_of("gateways"), mesh);
    }
    if let Some(values) = fields.node("values")
        && let Some(overlay) = crate::base::read(notes, values, &fields.path_of("values"), mesh)
    {
        crate::topology::accept(notes, overlay, mesh);
    }
}

/// Where Istio's charts come from: a repository, a registry, or a folder beside the mesh file.
fn charts(notes: &mut Notes<'_>, text: &str, at: At) -> Option<Charts> {
    let place = text.trim_end_matches('/');
    match place.split_once("://") {
        Some(("https" | "http", rest)) if !rest.is_empty() => Some(Charts::Repository(place.to_owned())),
        Some(("oci", rest)) if !rest.is_empty() => Some(Charts::Registry(place.to_owned())),
        None if !place.is_empty() => {
            let folder = notes.file().path.parent().map(PathBuf::from).unwrap_or_default();
            Some(Charts::Folder(folder.join(place)))
        }
        _ => {
            notes
                .problem(at, format!("{} is no place for charts", quoted(text)))
                .expected("a repository (`https://…`), a registry (`oci://…`) or a folder");
            None
        }
    }
}

fn gateways(notes: &mut Notes<'_>, node: &Node, path: &str, mesh: &mut Mesh) {
    let Some(fields) = Fields::of(notes, node, path, &["eastwest", "ingress"], Unknown::Refused) else { return };
    let mut values = |key: &str| {
        let node = fields.node(key)?;
        match (node.json(), node.boolean()) {
            (serde_json::Value::Object(values), _) => Some(values),
            (serde_json::Value::Null, _) | (_, Some(true)) => Some(serde_json::Map::new()),
            (_, Some(false)) => None,
            _ => {
                let what = format!("`{}` is {}", fields.path_of(key), node.description());
                notes.problem(node.at, what).expected("a map of values of Istio's chart `gateway`, or `true`");
                None
            }
        }
    };
    mesh.control_plane.gateways.eastwest = values("eastwest").unwrap_or_default();
    mesh.control_plane.gateways.ingress = values("ingress");
}

fn trust(notes: &mut Notes<'_>, node: &Node, path: &str, mesh: &mut Mesh) {
    let Some(fields) = Fields::of(notes, node, path, TRUST, Unknown::Refused) else { return };
    if let Some((text, at)) = fields.text(notes, "domain")
        && let Some(domain) = trust_domain(notes, text, at)
    {
        mesh.trust.domain = domain;
    }
    if let Some((text, at)) = fields.text(notes, "organization")
        && let Some(organization) = organization(notes, text, at)
    {
        mesh.trust.organization = organization;
    }
    if let Some(node) = fields.node("root")
        && let Some(root) = root(notes, node, &fields.path_of("root"), &mesh.trust.root)
    {
        mesh.trust.root = root;
    }
    if let Some(node) = fields.node("intermediates") {
        let path = fields.path_of("intermediates");
        let Some(fields) = Fields::of(notes, node, &path, INTERMEDIATES, Unknown::Refused) else { return };
        let validity = duration(notes, &fields, "validity");
        let renew_before = duration(notes, &fields, "renewBefore");
        let intermediates = &mut mesh.trust.intermediates;
        intermediates.validity = validity.map_or(intermediates.validity, |(d, _)| d);
        if let (Root::SelfSigned { validity: root }, Some((validity, at))) = (&mesh.trust.root, validity)
            && validity > *root
        {
            notes
                .problem(at, format!("`{path}.validity` is longer than the root's"))
                .expected("at most the root's: no certificate outlives the one that signed it");
        }
        intermediates.renew_before = match renew_before {
            Some((renew_before, at)) => {
                if renew_before >= intermediates.validity {
                    notes
                        .problem(at, format!("`{path}.renewBefore` is not shorter than the validity"))
                        .expected("less, or an intermediate is renewed as soon as it is issued");
                }
                renew_before
            }
            None => draft::renew_before(intermediates.validity),
        };
    }
}

fn root(notes: &mut Notes<'_>, node: &Node, path: &str, default: &Root) -> Option<Root> {
    if let Some(text) = node.text() {
        return choice(notes, text, node.at, "root", &[("selfSigned", default.clone())]);
    }
    let fields = Fields::of(notes, node, path, ROOT, Unknown::Refused)?;
    let written: Vec<_> = ROOT.iter().filter_map(|key| fields.entry(key)).collect();
    let [entry] = written.as_slice() else {
        let at = written.get(1).map_or(fields.at, |e| e.key_at);
        let count = if written.is_empty() { "no source" } else { "more than one source" };
        notes.problem(at, format!("`{path}` has {count}")).expected(format!("one of {}", one_of(ROOT)));
        return None;
    };
    let folder = notes.file().path.parent().map(PathBuf::from).unwrap_or_default();
    let path = fields.path_of(&entry.key);
    match entry.key.as_str() {
        "selfSigned" => {
            let fields = Fields::of(notes, &entry.value, &path, &["validity"], Unknown::Refused)?;
            match duration(notes, &fields, "validity") {
                Some((validity, _)) => Some(Root::SelfSigned { validity }),
                None => Some(default.clone()),
            }
        }
        "files" => {
            let fields = Fields::of(notes, &entry.value, &path, &["certificate", "key"], Unknown::Refused)?;
            let mut file = |key: &str| {
                let text = fields.text(notes, key).filter(|(text, _)| !text.is_empty());
                if text.is_none() {
                    notes
                        .problem(entry.key_at, format!("`{path}` has no `{key}`"))
                        .hint("write `files: {certificate: root-cert.pem, key: root-key.pem}`");
                }
                text.map(|(text, _)| folder.join(text))
            };
            let (certificate, key) = (file("certificate"), file("key"));
            Some(Root::Files { certificate: certificate?, key: key? })
        }
        _ => {
            let mut command: Vec<String> = match (&entry.value.value, entry.value.text()) {
                (_, Some(program)) => vec![program.to_owned()],
                (Value::Map(_), _) => {
                    let fields = Fields::of(notes, &entry.value, &path, &["command"], Unknown::Refused)?;
                    let texts = fields.node("command").map(|n| texts(notes, n, &fields.path_of("command")));
                    texts.unwrap_or_default().into_iter().map(|(text, _)| text.to_owned()).collect()
                }
                _ => texts(notes, &entry.value, &path).into_iter().map(|(text, _)| text.to_owned()).collect(),
            };
            if command.is_empty() {
                notes
                    .problem(entry.key_at, format!("`{path}` names no program"))
                    .hint("write `exec: {command: [sign-csr, --profile, ca]}`");
                return None;
            }
            // As with files: a path that is not whole begins at the mesh file; a bare name is looked for in PATH.
            if let Some(program) = command.first_mut().filter(|program| program.contains('/')) {
                *program = folder.join(&*program).to_string_lossy().into_owned();
            }
            Some(Root::Exec { command })
        }
    }
}

fn duration(notes: &mut Notes<'_>, fields: &Fields<'_>, key: &str) -> Option<(Duration, At)> {
    let (text, at) = fields.text(notes, key)?;
    match draft::duration(text) {
        Ok(duration) => Some((duration, at)),
        Err(why) => {
            let what = format!("`{}` is {}: {why}", fields.path_of(key), quoted(text));
            let bare = !text.is_empty() && text.len() < 6 && text.bytes().all(|b| b.is_ascii_digit());
            let problem = notes.problem(at, what);
            problem.expected("a time such as `730d`, `24h` or `90m`");
            if bare && text != "0" {
                problem.hint(format!("write `{text}d` for days, or `{text}h` for hours"));
            }
            None
        }
    }
}

/// A list of texts; one text is a list of one.
pub(crate) fn texts<'n>(notes: &mut Notes<'_>, node: &'n Node, path: &str) -> Vec<(&'n str, At)> {
    match (&node.value, node.text()) {
        (_, Some(text)) => vec![(text, node.at)],
        (Value::List(items), _) => items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| match item.text() {
                Some(text) => Some((text, item.at)),
                None => {
                    let what = format!("`{path}[{index}]` is {}", item.description());
                    notes.problem(item.at, what).expected("one text");
                    None
                }
            })
            .collect(),
        _ => {
            notes.problem(node.at, format!("`{path}` is {}", node.description())).expected("a list of texts");
            Vec::new()
        }
    }
}

fn choice<T: Clone>(notes: &mut Notes<'_>, text: &str, at: At, what: &str, choices: &[(&'static str, T)]) -> Option<T> {
    let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone());
    if found.is_none() {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let near = nearest(text, &words);
        let problem = notes.problem(at, format!("{} is not a known {what}", quoted(text)));
        problem.expected(one_of(&words));
        if let Some(near) = near {
            problem.hint(format!("write `{near}`"));
        }
    }
    found
}

/// A host pattern of a Gateway: a DNS name whose first label may be `*`.
fn host(notes: &mut Notes<'_>, text: &str, at: At) -> Option<String> {
    let label = |l: &str| {
        !l.is_empty() && l.len() < 64 && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = text.strip_prefix("*.").unwrap_or(text);
    if text == "*" || (name.len() < 254 && name.split('.').all(label)) {
        return Some(text.to_owned());
    }
    notes
        .problem(at, format!("{} is not a host that a gateway can serve", quoted(text)))
        .expected("a DNS name, or a pattern such as `*.local`");
    None
}

/// A SPIFFE trust domain.
pub(crate) fn trust_domain(notes: &mut Notes<'_>, text: &str, at: At) -> Option<String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
    if !text.is_empty() && text.len() < 256 && text.bytes().all(inner) {
        return Some(text.to_owned());
    }
    let lower = text.to_ascii_lowercase();
    let problem = notes.problem(at, format!("{} is not a trust domain", quoted(text)));
    problem.expected("lower-case letters, digits, `.`, `-` and `_`, such as `cluster.local`");
    if lower != text && lower.bytes().all(inner) {
        problem.hint(format!("write `{lower}`"));
    }
    None
}

/// What may stand as `O=` in a certificate.
pub(crate) fn organization(notes: &mut Notes<'_>, text: &str, at: At) -> Option<String> {
    let long = text.chars().count() > 64;
    if !text.trim().is_empty() && !long && !text.chars().any(char::is_control) {
        return Some(text.to_owned());
    }
    let what = format!("{} cannot stand as the organization of a certificate", quoted(text));
    notes.problem(at, what).expected("1 to 64 characters of text");
    None
}
