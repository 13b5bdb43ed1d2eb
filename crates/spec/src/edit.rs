//! Changes a mesh file in place: lines come and lines go, and all else stays as its author wrote it.
//!
//! Where a cluster stands is known from the tree with places; that the new text means what was intended is not believed
//! but proven, by reading it again and comparing the two meshes.

use crate::mesh::{Mesh, Origin};
use crate::problem::{At, Notes, Problems, SourceText};
use crate::write::scalar;
use crate::yaml::{Node, Value, documents};
use crate::{Reading, Role, read};

/// A cluster to be written into a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewCluster {
    /// Its name; none where the context makes one.
    pub name: Option<String>,
    /// Its kubeconfig context.
    pub context: String,
    /// Its network; none for the default.
    pub network: Option<String>,
    /// The region of its nodes.
    pub region: Option<String>,
    /// The zone of its nodes.
    pub zone: Option<String>,
    /// The cluster whose control plane it uses.
    pub primary: Option<String>,
}

/// A file with a cluster more or less.
#[derive(Clone, Debug, PartialEq)]
pub struct Edited {
    /// Its text.
    pub text: String,
    /// What it means now.
    pub mesh: Mesh,
}

/// Why a file stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// It cannot be read, or could not be any more.
    #[error("{0}")]
    Problems(Problems),
    /// It would be there twice, or is not there.
    #[error("{0}")]
    Names(String),
    /// It is written in a way that is not edited by programs.
    #[error("{what} is left as it is: {why}")]
    Shape {
        /// The file.
        what: String,
        /// Why.
        why: &'static str,
    },
}

/// The file with one cluster more, behind the others.
///
/// # Errors
///
/// [`EditError`]; nothing is guessed.
pub fn with_cluster(file: &SourceText, base: Option<&SourceText>, new: &NewCluster) -> Result<Edited, EditError> {
    let before = read(file, base).map_err(EditError::Problems)?.mesh;
    let name = new.name.as_deref().unwrap_or(&new.context);
    if let Some(same) = before.clusters.iter().find(|c| c.name.as_str() == name || c.context == new.context) {
        let text = format!("{} is in the mesh already, with the context `{}`", same.name, same.context);
        return Err(EditError::Names(text));
    }
    let places = Places::of(file)?;
    let ending = if file.text.contains("\r\n") { "\r\n" } else { "\n" };
    let last = places.items.last().ok_or_else(|| shape(file, "it has no cluster to stand behind"))?;
    let lines = match places.origin {
        Origin::Topology => topology(&places, new, file)?,
        _ => item(&places, new),
    };
    let mut text = String::new();
    for (number, line) in (1..).zip(file.text.split_inclusive('\n')) {
        text += line;
        if number == last.until {
            if !line.ends_with('\n') {
                text += ending;
            }
            lines.iter().for_each(|line| text += &format!("{line}{ending}"));
        }
    }
    let Reading { mesh, .. } = again(file, base, &text)?;
    let mut rest = mesh.clone();
    let added = rest.clusters.pop();
    let meant = added.is_some_and(|c| {
        c.context == new.context
            && new.name.as_ref().is_none_or(|n| c.name.as_str() == n)
            && new.network.as_ref().is_none_or(|n| c.network.as_str() == n)
            && (c.region == new.region && c.zone == new.zone)
            && c.primary().map(|p| p.as_str()) == new.primary.as_deref()
    });
    if !meant || rest != before {
        return Err(shape(file, "the new line would mean something else there; add it by hand"));
    }
    Ok(Edited { text, mesh })
}

/// The file without the cluster of this name or context.
///
/// # Errors
///
/// [`EditError`]; nothing is guessed.
pub fn without_cluster(file: &SourceText, base: Option<&SourceText>, name: &str) -> Result<Edited, EditError> {
    let mut before = read(file, base).map_err(EditError::Problems)?.mesh;
    let find = |c: &crate::Cluster| c.name.as_str() == name || c.context == name;
    let Some(index) = before.clusters.iter().position(find) else {
        let have: Vec<_> = before.clusters.iter().map(|c| c.name.as_str()).collect();
        return Err(EditError::Names(format!(
            "there is no cluster `{name}` in the mesh; there is {}",
            have.join(", ")
        )));
    };
    let gone = before.clusters.remove(index);
    if before.clusters.is_empty() {
        return Err(EditError::Names(format!(
            "{name} is the only cluster: `stolos teardown` takes the whole mesh away"
        )));
    }
    let served = |c: &&crate::Cluster| matches!(&c.role, Role::Remote { primary } if *primary == gone.name);
    if let Some(remote) = before.clusters.iter().find(served) {
        return Err(EditError::Names(format!(
            "{} uses the control plane of {name}; give it another one first (`controlPlane: {{primary: …}}`)",
            remote.name
        )));
    }
    let places = Places::of(file)?;
    let item = places.items.get(index).filter(|_| places.items.len() == before.clusters.len() + 1);
    let item = item.ok_or_else(|| shape(file, "its clusters do not stand one below the other; remove it by hand"))?;
    let kept = (1..).zip(file.text.split_inclusive('\n')).filter(|(n, _)| !(item.from..=item.until).contains(n));
    let text: String = kept.map(|(_, line)| line).collect();
    let Reading { mesh, .. } = again(file, base, &text)?;
    if mesh != before {
        return Err(shape(file, "without its lines the file would mean something else; remove it by hand"));
    }
    Ok(Edited { text, mesh })
}

fn again(file: &SourceText, base: Option<&SourceText>, text: &str) -> Result<Reading, EditError> {
    read(&SourceText::new(file.path.clone(), text), base).map_err(EditError::Problems)
}

fn shape(file: &SourceText, why: &'static str) -> EditError {
    EditError::Shape { what: file.path.display().to_string(), why }
}

/// The lines of one cluster.
struct Item {
    from: usize,
    until: usize,
}

/// Where the clusters of a file stand.
struct Places {
    origin: Origin,
    items: Vec<Item>,
    /// What stands before a cluster's first line.
    indent: String,
    /// By how much the fields of a cluster stand further right.
    step: usize,
    /// Whether a cluster is written on one line, in braces.
    flow: bool,
}

impl Places {
    fn of(file: &SourceText) -> Result<Self, EditError> {
        let documents = documents(&mut Notes::on(file)).unwrap_or_default();
        let [document] = documents.as_slice() else {
            return Err(shape(file, "it has more than one document"));
        };
        let lines: Vec<&str> = file.text.lines().collect();
        let line = |at: At| lines.get(at.line - 1).copied().unwrap_or_default();
        let before = |at: At| line(at).chars().take(at.column - 1).collect::<String>();
        let origin = crate::file::recognise(file).ok_or_else(|| shape(file, "it is no mesh file"))?;
        match origin {
            Origin::Mesh => {
                let list = match &document.value {
                    Value::List(_) => Some(document),
                    _ => document.get("spec").unwrap_or(document).get("clusters"),
                };
                let list = list.ok_or_else(|| shape(file, "it has no list of clusters"))?;
                let mut items = Vec::new();
                let mut indent = None;
                for node in list.items() {
                    let lead = before(node.at);
                    let Some(spaces) = lead.trim_end().strip_suffix('-').filter(|s| s.trim().is_empty()) else {
                        return Err(shape(file, "its clusters do not stand one below the other; edit it by hand"));
                    };
                    indent = Some((spaces.to_owned(), lead.chars().count() - spaces.chars().count(), line(node.at)));
                    items.push((Item { from: node.at.line, until: last_line(node) }, node));
                }
                let (indent, step, _) = indent.ok_or_else(|| shape(file, "it has no cluster to stand behind"))?;
                let flow = items.last().is_some_and(|(_, node)| {
                    let first = line(node.at).chars().nth(node.at.column - 1);
                    first == Some('{') || !matches!(node.value, Value::Map(_))
                });
                Ok(Self { origin, items: items.into_iter().map(|(item, _)| item).collect(), indent, step, flow })
            }
            Origin::Topology => {
                let contexts = document.entries().iter().find(|e| e.key.eq_ignore_ascii_case("contexts"));
                let entries = contexts.map(|e| e.value.entries()).unwrap_or_default();
                let mut items = Vec::new();
                let (mut indent, mut step, mut flow) = (String::new(), 2, false);
                for entry in entries {
                    indent = before(entry.key_at);
                    if !indent.trim().is_empty() {
                        return Err(shape(file, "its contexts do not stand one below the other; edit it by hand"));
                    }
                    if let Some(field) = entry.value.entries().first() {
                        flow = field.key_at.line == entry.key_at.line;
                        step = field.key_at.column.saturating_sub(entry.key_at.column).max(1);
                    }
                    let until = last_line(&entry.value).max(entry.key_at.line);
                    items.push(Item { from: entry.key_at.line, until });
                }
                Ok(Self { origin, items, indent, step, flow })
            }
            _ => Err(shape(file, "only a `Mesh` and a topology.yaml are edited; other systems' files are theirs")),
        }
    }
}

/// The last line on which something of a node begins.
fn last_line(node: &Node) -> usize {
    let below = node.items().iter().map(last_line).max();
    let beside = node.entries().iter().map(|e| last_line(&e.value).max(e.key_at.line)).max();
    below.max(beside).unwrap_or_default().max(node.at.line)
}

fn item(places: &Places, new: &NewCluster) -> Vec<String> {
    let mut fields: Vec<(&str, String)> = Vec::new();
    let mut add = |key: &'static str, value: &Option<String>| {
        fields.extend(value.as_ref().map(|value| (key, scalar(value))));
    };
    add("name", &new.name);
    add("context", &Some(new.context.clone()));
    add("network", &new.network);
    add("region", &new.region);
    add("zone", &new.zone);
    if let Some(primary) = &new.primary {
        fields.push(("controlPlane", format!("{{primary: {}}}", scalar(primary))));
    }
    let indent = &places.indent;
    let dash = format!("-{}", " ".repeat(places.step.saturating_sub(1).max(1)));
    if places.flow {
        let fields: Vec<_> = fields.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        return vec![format!("{indent}{dash}{{{}}}", fields.join(", "))];
    }
    let blank = " ".repeat(dash.len());
    let lines = fields.iter().enumerate();
    lines.map(|(i, (key, value))| format!("{indent}{}{key}: {value}", if i == 0 { &dash } else { &blank })).collect()
}

fn topology(places: &Places, new: &NewCluster, file: &SourceText) -> Result<Vec<String>, EditError> {
    if new.name.as_ref().is_some_and(|n| *n != new.context)
        || new.region.is_some()
        || new.zone.is_some()
        || new.primary.is_some()
    {
        return Err(shape(file, "a topology.yaml has a place for contexts and networks alone"));
    }
    let (indent, context) = (&places.indent, scalar(&new.context));
    let network = scalar(new.network.as_deref().unwrap_or(crate::DEFAULT_NETWORK));
    Ok(match places.flow {
        true => vec![format!("{indent}{context}: {{network: {network}}}")],
        false => vec![format!("{indent}{context}:"), format!("{indent}{}network: {network}", " ".repeat(places.step))],
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCK: &str = "\
# Our mesh.
apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}   # short
spec:
  clusters:
    # the first
    - name: east
      context: ctx-east
      network: net-east   # where the users are

    # the second
    - name: west
      context: 'ctx-west'
      network: net-west
      gateway:
        addresses: [192.0.2.1]
    # that is all
  mtls: strict
";

    fn file(text: &str) -> SourceText {
        SourceText::new("mesh.yaml", text)
    }

    fn north() -> NewCluster {
        NewCluster {
            name: Some("north".to_owned()),
            context: "arn:aws:eks:eu-1:1:cluster/north".to_owned(),
            network: Some("net-north".to_owned()),
            ..NewCluster::default()
        }
    }

    #[test]
    fn a_cluster_comes_behind_the_others_and_nothing_else_moves() {
        let edited = with_cluster(&file(BLOCK), None, &north()).unwrap();
        let added =
            "    - name: north\n      context: \"arn:aws:eks:eu-1:1:cluster/north\"\n      network: net-north\n";
        assert_eq!(edited.text, BLOCK.replace("    # that is all\n", &format!("{added}    # that is all\n")));
        assert_eq!(edited.mesh.clusters.len(), 3);
        let gone = without_cluster(&file(&edited.text), None, "north").unwrap();
        assert_eq!(gone.text, BLOCK);
        let gone = without_cluster(&file(BLOCK), None, "ctx-east").unwrap();
        let mine = "    - name: east\n      context: ctx-east\n      network: net-east   # where the users are\n";
        assert_eq!(gone.text, BLOCK.replace(mine, ""));
    }

    #[test]
    fn every_way_to_write_it_is_kept() {
        let flow = "clusters:\n- {name: a, context: a}\n- {name: b, context: b}";
        let edited = with_cluster(&file(flow), None, &NewCluster { context: "c".into(), ..NewCluster::default() });
        assert_eq!(edited.unwrap().text, format!("{flow}\n- {{context: c}}\n"));
        let windows = flow.replace('\n', "\r\n") + "\r\n";
        let edited = with_cluster(&file(&windows), None, &NewCluster { context: "c".into(), ..NewCluster::default() });
        assert_eq!(edited.unwrap().text, format!("{windows}- {{context: c}}\r\n"));
        let topology = "mesh_id: m\ncontexts:\n   a:\n      network: n1\n   b:\n      network: n2\n# end\n";
        let new = NewCluster { context: "c".into(), network: Some("n2".into()), ..NewCluster::default() };
        let edited = with_cluster(&file(topology), None, &new).unwrap();
        assert_eq!(edited.text, topology.replace("# end", "   c:\n      network: n2\n# end"));
        assert_eq!(without_cluster(&file(&edited.text), None, "c").unwrap().text, topology);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let said = |result: Result<Edited, EditError>| result.unwrap_err().to_string();
        let add = |text: &str, new: &NewCluster| said(with_cluster(&file(text), None, new));
        let again = NewCluster { context: "ctx-east".into(), ..NewCluster::default() };
        assert_eq!(add(BLOCK, &again), "east is in the mesh already, with the context `ctx-east`");
        let line = "clusters: [{name: a, context: a}, {name: b, context: b}]\n";
        assert!(add(line, &north()).contains("edit it by hand"), "{}", add(line, &north()));
        let nowhere = NewCluster { primary: Some("nowhere".into()), ..north() };
        assert!(add(BLOCK, &nowhere).contains("nowhere"), "{}", add(BLOCK, &nowhere));
        let remove = |text: &str, name: &str| said(without_cluster(&file(text), None, name));
        assert_eq!(remove(BLOCK, "north"), "there is no cluster `north` in the mesh; there is east, west");
        assert!(remove("clusters: \n- {name: a, context: a}\n", "a").contains("the only cluster"));
        let remote = "clusters:\n- {name: a, context: a}\n- {name: b, context: b, controlPlane: {primary: a}}\n";
        assert!(remove(remote, "a").contains("b uses the control plane of a"), "{}", remove(remote, "a"));
        let anchor = "clusters:\n- &a {name: a, context: a, network: x}\n- {<<: *a, name: b, context: b}\n";
        assert!(without_cluster(&file(anchor), None, "a").is_err());
    }

    proptest! {
        /// Whoever joins and leaves again leaves the file as it was, byte by byte.
        #[test]
        fn there_and_back(
            names in prop::collection::btree_set("[a-z]{1,6}", 2..6),
            comments in prop::collection::vec("( *# [a-z: {-]{0,12})?", 6),
            flow in any::<bool>(),
            indent in 0..4_usize,
        ) {
            let mut text = String::from("clusters:\n");
            for (name, comment) in names.iter().zip(&comments) {
                let pad = " ".repeat(indent);
                if flow {
                    text += &format!("{comment}\n{pad}- {{name: {name}, context: {name}}}{comment}\n");
                } else {
                    text += &format!("{comment}\n{pad}- context: {name}{comment}\n{pad}  name: {name}\n");
                }
            }
            prop_assume!(read(&file(&text), None).is_ok());
            let new = NewCluster { name: Some("joiner".into()), context: "joiner@x".into(), ..NewCluster::default() };
            let more = with_cluster(&file(&text), None, &new).unwrap();
            prop_assert_eq!(more.mesh.clusters.len(), names.len() + 1);
            let less = without_cluster(&file(&more.text), None, "joiner").unwrap();
            prop_assert_eq!(less.text, text);
        }
    }
}
