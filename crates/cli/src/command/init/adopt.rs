//! `stolos init --from-clusters`: a mesh that is there becomes a mesh file.

use std::collections::{BTreeMap, BTreeSet};

use stolos_apply::{Clusters, State, observe};
use stolos_cluster::Kubeconfig;
use stolos_plan::{ClusterState, Sight, adopt};
use stolos_serve::Stop;
use stolos_spec::{MeshName, from_contexts};

use super::{InitArgs, contexts, name, save};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::{Screen, count};

pub(super) async fn run(args: InitArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let asked = name(&args)?;
    let mut contexts = contexts(&args);
    if contexts.is_empty() {
        let kubeconfig = Kubeconfig::find(args.clusters.kubeconfig.as_deref(), None)?;
        contexts = kubeconfig.contexts().into_iter().map(|context| (context.to_owned(), None)).collect();
    }
    let provisional = match &asked {
        Some(name) => name.clone(),
        None => MeshName::parse("mesh").map_err(|e| Failure::caused(&e))?,
    };
    let mesh = from_contexts(&provisional, &contexts)?.mesh;
    let clusters = Clusters::connect(&mesh, args.clusters.kubeconfig.as_deref()).await?;
    screen.line(format!("Looking at {}", count(mesh.clusters.len(), "cluster")));
    // Nothing of the folder matters before the mesh's name is known.
    let state = State::at(args.state.folder(provisional.as_str())?, None);
    let observed = tokio::select! {
        observed = observe(&mesh, &clusters, &state) => observed,
        () = stop.asked() => return Err(Failure::interrupted()),
    };
    let mut seen: BTreeMap<String, ClusterState> = BTreeMap::new();
    for (cluster, sight) in observed.clusters {
        match sight {
            Sight::Seen(state) => {
                for missing in &state.unreadable {
                    screen.say(&format!("warning: {cluster}: could not read {}: {}", missing.what, missing.why));
                }
                seen.insert(cluster, state);
            }
            Sight::Unreachable { why, .. } => screen.say(&format!("warning: {cluster} did not answer: {why}")),
        }
    }
    if seen.is_empty() {
        return Err(Failure::new("no cluster answers, so there is nothing to read a mesh from"));
    }
    let networks: BTreeSet<_> =
        contexts.iter().filter(|(_, network)| network.is_some()).map(|(context, _)| context.clone()).collect();
    let found = adopt(mesh, &seen, asked.is_some(), &networks)
        .map_err(|why| Failure::new("these clusters cannot be one mesh").because(why))?;
    for note in &found.notes {
        let place = note.cluster.as_ref().map(|cluster| format!("{cluster}: ")).unwrap_or_default();
        screen.say(&format!("note: {place}{}", note.text));
    }
    let state = State::at(args.state.folder(found.mesh.name.as_str())?, None);
    let exit = save(&args, &found.mesh, false, screen)?;
    if let Some(root) = found.root.filter(|_| !args.dry_run)
        && state.keep_root(&root)?
    {
        screen.line(format!(
            "kept the clusters' root certificate in {}; its key is not known here: put it beside, as root-key.pem, before \
             a signing certificate must be renewed",
            state.folder().display()
        ));
    }
    Ok(exit)
}
