//! The files of a shared control plane, as Istio 1.0's `istio-remote` left them: a kubeconfig for each remote cluster, the
//! Secret that was made of it, and the values of the chart. None of them says where the control plane is.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};

use crate::draft::{self, DEFAULT_NETWORK, Member};
use crate::file::Told;
use crate::mesh::{Mesh, Mtls, Origin};
use crate::problem::{At, Notes, SourceText, quoted};
use crate::yaml::{self, Node};
use crate::{ClusterName, MeshName, NetworkName};

/// The name of a mesh whose files name none.
const DEFAULT_MESH: &str = "mesh";

/// A kubeconfig.
pub(crate) fn is_kubeconfig(node: &Node) -> bool {
    node.get("kind").and_then(Node::text) == Some("Config") && node.get("contexts").is_some()
}

/// Values of the chart `istio-remote`.
pub(crate) fn is_values(node: &Node) -> bool {
    const KEY: &str = "remotePilotAddress";
    node.get("kind").is_none()
        && (node.get(KEY).is_some() || node.get("global").is_some_and(|global| global.get(KEY).is_some()))
}

/// The label by which istiod finds a remote secret.
pub(crate) const REMOTE: &str = "istio/multiCluster";

/// A remote secret.
pub(crate) fn is_remote_secret(node: &Node) -> bool {
    node.get("kind").and_then(Node::text) == Some("Secret") && labels(node).iter().any(|label| label.key == REMOTE)
}

pub(crate) fn labels(node: &Node) -> &[yaml::Entry] {
    node.get("metadata").and_then(|m| m.get("labels")).map(Node::entries).unwrap_or_default()
}

/// The name of the mesh: what was told, else the usual one.
pub(crate) fn mesh_name(notes: &mut Notes<'_>, told: &Told) -> Option<MeshName> {
    draft::name(notes, At::default(), MeshName::parse(told.name.as_deref().unwrap_or(DEFAULT_MESH)))
}

/// Reads the documents of all files as one mesh of a primary and its remotes.
pub(crate) fn read(common: &mut Notes<'_>, files: &mut [(Notes<'_>, Vec<Node>)], told: &Told) -> Option<Mesh> {
    let name = mesh_name(common, told);
    let (primary, network) = told.primary.clone()?;
    let network =
        draft::name(common, At::default(), NetworkName::parse(network.as_deref().unwrap_or(DEFAULT_NETWORK)))?;
    let first = Member::new(At::default(), &primary, network.clone());
    draft::warn_of_context(common, At::default(), &primary, &first.name);
    let primary = (first.name.to_string(), At::default());
    let remote = |context: &str, network: NetworkName| Member {
        primary: Some(primary.clone()),
        ..Member::new(At::default(), context, network)
    };
    let mut members = vec![first];
    for (context, own) in &told.remotes {
        let own = own.as_deref().map_or(Ok(network.clone()), NetworkName::parse);
        let member = remote(context, draft::name(common, At::default(), own)?);
        draft::warn_of_context(common, At::default(), context, &member.name);
        members.push(member);
    }
    let mut mtls = None;
    for (notes, documents) in files {
        for document in documents.iter() {
            let found = if is_kubeconfig(document) {
                kubeconfig(notes, document).map(|(context, path)| Member {
                    kubeconfig: Some(path.into()),
                    ..remote(&context, network.clone())
                })
            } else if is_remote_secret(document) {
                let found = remote_secret(notes, document);
                // All but the last: one secret may hold several clusters.
                for (cluster, context) in found {
                    let Ok(name) = ClusterName::parse(&cluster) else {
                        draft::name(notes, document.at, ClusterName::parse(&cluster));
                        continue;
                    };
                    join(&mut members, Member { name, ..remote(&context, network.clone()) });
                }
                None
            } else {
                mtls = values(notes, document).or(mtls);
                None
            };
            if let Some(member) = found {
                join(&mut members, member);
            }
        }
    }
    if members.len() == 1 {
        common
            .problem(None, "nothing names a cluster that shares the control plane")
            .expected("a kubeconfig or a remote secret of each, or its context")
            .hint("`--remote CONTEXT`, once for each");
    }
    let mut mesh = draft::mesh(name?, Origin::SharedControlPlane);
    mesh.mtls = mtls.unwrap_or(mesh.mtls);
    mesh.clusters = draft::clusters(common, members);
    Some(mesh)
}

/// A cluster that is named twice (its kubeconfig, the Secret made of it, a flag) is one; the first that names it says how
/// it is reached, and flags come first.
fn join(members: &mut Vec<Member>, member: Member) {
    if members.iter().all(|m| m.name != member.name) {
        members.push(member);
    }
}

/// The context of a kubeconfig and the file it stands in. What its credential is gets said.
fn kubeconfig(notes: &mut Notes<'_>, node: &Node) -> Option<(String, String)> {
    let path = notes.file().path.to_string_lossy().into_owned();
    if path == "<stdin>" {
        notes
            .problem(node.at, "a kubeconfig comes from standard input, and will be needed again")
            .expected("a file")
            .hint("write it to a file and name that");
        return None;
    }
    let contexts = node.get("contexts").map(Node::items).unwrap_or_default();
    let names: Vec<_> = contexts.iter().filter_map(|c| c.get("name").and_then(Node::text)).collect();
    let current = node.get("current-context").and_then(Node::text).filter(|c| !c.is_empty());
    let context = match (current, names.as_slice()) {
        (Some(current), _) => current,
        (None, [only]) => *only,
        (None, _) => {
            let at = node.get("contexts").map_or(node.at, |c| c.at);
            notes
                .problem(
                    at,
                    format!("this kubeconfig has {} contexts and none of them is the current one", names.len()),
                )
                .expected("one cluster for each file")
                .hint("name the clusters by their contexts instead: `--remote CONTEXT`");
            return None;
        }
    };
    credential(notes, node, "it is used to reach the cluster");
    Some((context.to_owned(), path))
}

/// Says what is to be known of the credentials in a kubeconfig. None of them goes into any cluster.
fn credential(notes: &mut Notes<'_>, kubeconfig: &Node, purpose: &str) {
    for user in kubeconfig.get("users").map(Node::items).unwrap_or_default() {
        let Some(user) = user.get("user") else { continue };
        let at = kubeconfig.get("kind").map_or(kubeconfig.at, |kind| kind.at);
        let has = |key: &str| user.get(key).is_some_and(|value| !value.is_null());
        let own = "the clusters get a reader account's token of their own, which expires";
        if has("exec") || has("auth-provider") {
            let what = if has("exec") { "runs a program (`exec`)" } else { "uses a plugin (`auth-provider`)" };
            notes.warn(
                at,
                format!("the credential {what}: a control plane that is handed it refuses it"),
                format!("{purpose}, and copied nowhere; {own}"),
            );
        } else if has("client-certificate-data") || has("client-certificate") {
            notes.warn(
                at,
                "the credential is a client certificate, an administrator's more often than not: whoever holds it holds \
                 the cluster, and it cannot be revoked",
                format!("{purpose}, and copied nowhere; {own}"),
            );
        } else if let Some(account) = user.get("token").and_then(Node::text).and_then(account) {
            notes.warn(
                at,
                format!(
                    "the credential is the service account {}'s, which can do as much as that may",
                    quoted(&account)
                ),
                format!(
                    "it is used to {purpose}; where it may only read, name a context that may write: `--remote CONTEXT`"
                ),
            );
        }
    }
}

/// The service account whose token this is.
fn account(token: &str) -> Option<String> {
    let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&claims).ok()?;
    let account = claims["sub"].as_str()?.strip_prefix("system:serviceaccount:")?;
    Some(account.replacen(':', "/", 1))
}

/// The clusters in a remote secret, each with the context it probably has. The credential in it is looked at, not used.
pub(crate) fn remote_secret(notes: &mut Notes<'_>, node: &Node) -> Vec<(String, String)> {
    for label in labels(node).iter().filter(|label| label.key == REMOTE && label.value.text() != Some("true")) {
        notes.warn(
            label.value.at,
            format!("the label `{REMOTE}` is {}, and no control plane looks at this Secret", label.value.description()),
            "Stolos writes remote secrets of its own, labelled as istiod wants it",
        );
    }
    boolean_label(notes, node);
    let metadata = node.get("metadata");
    let annotation = |key: &str| metadata?.get("annotations")?.get(key)?.text();
    let at = node.get("kind").map_or(node.at, |kind| kind.at);
    let mut found = Vec::new();
    for (place, encoded) in [("data", true), ("stringData", false)] {
        for entry in node.get(place).map(Node::entries).unwrap_or_default() {
            let text = entry.value.text().unwrap_or_default();
            let text = if encoded { decoded(text) } else { Some(text.to_owned()) };
            let inner = SourceText::new("", text.unwrap_or_default());
            let mut below = Notes::on(&inner);
            let documents = yaml::documents(&mut below).unwrap_or_default();
            match documents.first().filter(|d| is_kubeconfig(d)) {
                Some(kubeconfig) => {
                    let mut aside = Notes::on(&inner);
                    credential(&mut aside, kubeconfig, "it is not used");
                    notes.adopt(aside, at);
                }
                None => notes.warn(
                    at,
                    format!("there is no usable kubeconfig in {}", quoted(&format!("{place}.{}", entry.key))),
                    "none is needed: Stolos makes a credential of its own",
                ),
            }
            let context = annotation("istio.io/clusterContext").unwrap_or(&entry.key);
            found.push((entry.key.clone(), context.to_owned()));
        }
    }
    if found.is_empty() {
        notes.warn(at, "this remote secret holds no cluster", "it is ignored");
    }
    found
}

fn decoded(text: &str) -> Option<String> {
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    String::from_utf8(BASE64_STANDARD.decode(compact).ok()?).ok()
}

/// A boolean where Kubernetes wants a text: the fault of documents that print the label without quotes.
fn boolean_label(notes: &mut Notes<'_>, node: &Node) {
    for label in labels(node).iter().filter(|label| label.value.boolean().is_some()) {
        notes.warn(
            label.value.at,
            format!(
                "the label {} is the boolean {}: the API server would have refused this object",
                quoted(&label.key),
                label.value.description()
            ),
            format!("were it to be used, it would say `{}: \"{}\"`", label.key, label.value.text().unwrap_or_default()),
        );
    }
}

/// What Istio 1.0's `istio-remote` was told, key by key. Nearly all of it is found by itself today.
fn values(notes: &mut Notes<'_>, node: &Node) -> Option<Mtls> {
    let mut mtls = None;
    let mut gone: Vec<(At, String)> = Vec::new();
    for entry in node.entries() {
        match entry.key.as_str() {
            "global" => mtls = values(notes, &entry.value).or(mtls),
            "remotePilotAddress" => notes.warn(
                entry.value.at,
                format!(
                    "the control plane was at {}: a pod's address, which was another after every restart",
                    entry.value.description()
                ),
                "a remote finds its primary through the primary's gateway, whose address is read from the cluster",
            ),
            "remoteZipkinAddress" => notes.warn(
                entry.value.at,
                format!("spans went to {}", entry.value.description()),
                "tracing is left as it is; with the engine `istio`, \
                 `controlPlane.values.meshConfig.defaultConfig.tracing` of a `Mesh` says where they go",
            ),
            "remotePolicyAddress" | "remoteTelemetryAddress" | "envoyStatsd" | "mixer" | "disablePolicyChecks" => {
                gone.push((entry.key_at, entry.key.clone()));
            }
            "mtls" => {
                mtls = entry.value.get("enabled").and_then(Node::boolean).map(|enabled| match enabled {
                    true => Mtls::Strict,
                    false => Mtls::Permissive,
                });
            }
            "controlPlaneSecurityEnabled" | "security" => notes.warn(
                entry.key_at,
                format!("`{}` is from the time when clusters signed for themselves", entry.key),
                "all clusters trust one root, and the way to the control plane is always encrypted",
            ),
            _ => notes.warn(
                entry.key_at,
                format!("`{}` is a value that only the chart `istio-remote` had", entry.key),
                "it is ignored",
            ),
        }
    }
    if let Some((at, _)) = gone.first() {
        let keys: Vec<_> = gone.iter().map(|(_, key)| quoted(key)).collect();
        notes.warn(*at, format!("Mixer and its statsd bridge are no more: {}", keys.join(", ")), "they are dropped");
    }
    mtls
}
