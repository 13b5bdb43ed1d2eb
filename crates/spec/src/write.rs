//! Writes mesh files: what `stolos init` leaves for a person to edit.

use std::fmt::Write as _;

use crate::draft;
use crate::mesh::{Api, ControlPlane, Engine, Installer, Join, Mesh, Mtls, Origin, Role, Sample};
use crate::name::like;
use crate::problem::{Notes, Problems, SourceText};
use crate::{MeshName, NetworkName, Reading};

/// The mesh of a list of kubeconfig contexts, each with its network.
///
/// # Errors
///
/// When the list is empty, a context is in it twice, or a network's name is none.
pub fn from_contexts(name: &MeshName, contexts: &[(String, Option<String>)]) -> Result<Reading, Problems> {
    let file = SourceText::new("", "");
    let mut notes = Notes::on(&file);
    if contexts.is_empty() {
        notes
            .problem(None, "there are no contexts to make a mesh of")
            .hint("name at least one, such as `context-1=network-1`");
    }
    let mut members = Vec::new();
    for (context, network) in contexts {
        let at = crate::problem::At::default();
        let network = NetworkName::parse(network.as_deref().unwrap_or(draft::DEFAULT_NETWORK));
        let Some(network) = draft::name(&mut notes, at, network) else { continue };
        let member = draft::Member::new(at, context, network);
        draft::warn_of_context(&mut notes, at, context, &member.name);
        members.push(member);
    }
    let mut seen = std::collections::BTreeSet::new();
    for member in &members {
        if !seen.insert(&member.context) {
            notes.problem(None, format!("the context `{}` is given twice", member.context));
        }
    }
    let mut mesh = draft::mesh(name.clone(), Origin::Mesh);
    if notes.is_clean() {
        mesh.clusters = draft::clusters(&mut notes, members);
    }
    let (mesh, warnings) = notes.finish(Some(mesh), None)?;
    Ok(Reading { mesh, warnings })
}

/// A `topology.yaml` as `setup-mesh.sh prep-mesh` wrote it; with contexts where they are known.
#[must_use]
pub fn topology_yaml(name: &MeshName, contexts: &[(String, Option<String>)]) -> String {
    let mut text = String::from(
        "# The clusters of the mesh, by their kubeconfig contexts. Clusters on one network reach each other's pods\n\
         # directly; between networks traffic goes through gateways. For example:\n\
         #\n\
         # contexts:\n\
         #   context-east-1:\n\
         #     network: network-east\n\
         #   context-west-1:\n\
         #     network: network-west\n",
    );
    let _ = write!(text, "mesh_id: {}\ncontexts:\n", scalar(name.as_str()));
    for (context, network) in contexts {
        let network = network.as_deref().unwrap_or(draft::DEFAULT_NETWORK);
        let _ = write!(text, "  {}:\n    network: {}\n", scalar(context), scalar(network));
    }
    text
}

/// The `base.yaml` that `prep-mesh` wrote, for an Istio of today.
#[must_use]
pub fn base_yaml() -> &'static str {
    "apiVersion: install.istio.io/v1alpha1\n\
     kind: IstioOperator\n\
     spec:\n  values:\n    security:\n      selfSigned: false\n    global:\n      mtls:\n        enabled: true\n"
}

/// A mesh as a native file: its clusters and what differs from the defaults. A root of the user's own and where charts
/// come from are not written: nobody but the file's author decides those.
#[must_use]
pub fn mesh_yaml(mesh: &Mesh) -> String {
    let mut text = format!(
        "apiVersion: {}\nkind: Mesh\nmetadata:\n  name: {}\nspec:\n",
        crate::mesh_file::API_VERSION,
        scalar(mesh.name.as_str())
    );
    if mesh.trust.domain != draft::DEFAULT_TRUST_DOMAIN || mesh.trust.organization != mesh.name.as_str() {
        let (domain, organization) = (scalar(&mesh.trust.domain), scalar(&mesh.trust.organization));
        let _ = write!(text, "  trust:\n    domain: {domain}\n    organization: {organization}\n");
    }
    text += &control_plane(&mesh.control_plane, mesh.origin);
    text.push_str("  clusters:\n");
    for cluster in &mesh.clusters {
        let _ = writeln!(text, "    - name: {}", scalar(cluster.name.as_str()));
        if cluster.context != cluster.name.as_str() {
            let _ = writeln!(text, "      context: {}", scalar(&cluster.context));
        }
        if let Some(kubeconfig) = &cluster.kubeconfig {
            let _ = writeln!(text, "      kubeconfig: {}", scalar(&kubeconfig.to_string_lossy()));
        }
        let _ = writeln!(text, "      network: {}", scalar(cluster.network.as_str()));
        for (key, value) in [("region", &cluster.region), ("zone", &cluster.zone)] {
            if let Some(value) = value {
                let _ = writeln!(text, "      {key}: {}", scalar(value));
            }
        }
        if let Role::Remote { primary } = &cluster.role {
            let _ = writeln!(text, "      controlPlane: {{primary: {}}}", scalar(primary.as_str()));
        }
        match &cluster.api {
            Some(Api::Server(server)) => {
                let _ = writeln!(text, "      api: {{server: {}}}", scalar(server));
            }
            Some(Api::Tunnel) => text.push_str("      api: {via: tunnel}\n"),
            None => {}
        }
        if let Some(gateway) = &cluster.gateway {
            let mut said = Vec::new();
            if !gateway.addresses.is_empty() {
                let addresses: Vec<_> = gateway.addresses.iter().map(|address| scalar(address)).collect();
                said.push(format!("addresses: [{}]", addresses.join(", ")));
                if gateway.port != crate::gateway::GATEWAY_PORT {
                    said.push(format!("port: {}", gateway.port));
                }
            }
            if !gateway.values.is_empty() {
                // JSON is YAML.
                said.push(format!("values: {}", serde_json::Value::Object(gateway.values.clone())));
            }
            let _ = writeln!(text, "      gateway: {{{}}}", said.join(", "));
        }
    }
    if let Some(hub) = &mesh.hub {
        let _ = writeln!(text, "  hub:\n    context: {}", scalar(&hub.context));
        let files = hub.kubeconfig.as_deref().map(std::path::Path::to_string_lossy);
        for (key, value) in [("kubeconfig", files.as_deref()), ("address", hub.address.as_deref())] {
            if let Some(value) = value {
                let _ = writeln!(text, "    {key}: {}", scalar(value));
            }
        }
        match hub.join {
            Some(Join::Dialled) => text.push_str("    join: true\n"),
            Some(Join::Agent) => text.push_str("    join: agent\n"),
            None => {}
        }
    }
    if mesh.mtls == Mtls::Permissive {
        text.push_str("  mtls: permissive\n");
    }
    if mesh.expose != ["*.local"] {
        let hosts: Vec<_> = mesh.expose.iter().map(|host| scalar(host)).collect();
        let _ = writeln!(text, "  expose: [{}]", hosts.join(", "));
    }
    if !mesh.samples.is_empty() {
        let name = |sample: &Sample| match sample {
            Sample::Helloworld => "helloworld",
            Sample::Sleep => "sleep",
            Sample::Bookinfo => "bookinfo",
        };
        let _ = writeln!(text, "  samples: [{}]", mesh.samples.iter().map(name).collect::<Vec<_>>().join(", "));
    }
    text
}

/// What a mesh's control plane is said to be; nothing where all is left to Stolos. A foreign file's version stays the
/// wish it was, and is not written as a demand.
fn control_plane(control: &ControlPlane, origin: Origin) -> String {
    let mut lines = Vec::new();
    match control.engine {
        Engine::Auto => {}
        Engine::Stolos => lines.push("engine: stolos".to_owned()),
        Engine::Istio => lines.push("engine: istio".to_owned()),
    }
    if let Some(version) = control.version.as_ref().filter(|_| origin == Origin::Mesh) {
        lines.push(format!("version: {}", scalar(version)));
    }
    match control.installer {
        Installer::Helm => {}
        Installer::Istioctl => lines.push("installer: istioctl".to_owned()),
        Installer::None => lines.push("installer: none".to_owned()),
    }
    if let Some(revision) = &control.revision {
        lines.push(format!("revision: {}", scalar(revision)));
    }
    // JSON is YAML.
    if control.values.as_object().is_some_and(|values| !values.is_empty()) {
        lines.push(format!("values: {}", control.values));
    }
    let gateways = [("eastwest", Some(&control.gateways.eastwest)), ("ingress", control.gateways.ingress.as_ref())];
    let gateways: Vec<_> = gateways
        .into_iter()
        .filter_map(|(key, values)| Some((key, values?)))
        .filter(|(key, values)| *key == "ingress" || !values.is_empty())
        .map(|(key, values)| format!("{key}: {}", serde_json::json!(values)))
        .collect();
    if !gateways.is_empty() {
        lines.push(format!("gateways: {{{}}}", gateways.join(", ")));
    }
    if lines.is_empty() {
        return String::new();
    }
    lines.iter().fold("  controlPlane:\n".to_owned(), |text, line| text + "    " + line + "\n")
}

/// A name like `text` that a mesh can have, to suggest.
#[must_use]
pub fn suggest_name(text: &str) -> Option<String> {
    like(text)
}

/// A text as a YAML scalar: bare where nothing can be misread, else quoted.
pub(crate) fn scalar(text: &str) -> String {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '@');
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(inner);
    let reserved = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    if word && !reserved.iter().any(|r| text.eq_ignore_ascii_case(r)) {
        return text.to_owned();
    }
    // JSON's strings are YAML's.
    serde_json::Value::from(text).to_string()
}
