use clap::Args;
use stolos_check::diagnose::{self, CAUSES, Cause, Severity};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::screen::Screen;

/// `stolos explain`
#[derive(Args, Debug)]
pub(crate) struct ExplainArgs {
    /// The id, as it stands in brackets behind a message; all ids are listed without it
    id: Option<String>,
}

/// Every finding: its id, what it means, what to do.
const FINDINGS: &[(&str, &str, &str)] = &[
    (
        "charts",
        "The mesh file names a folder with Istio's charts (`controlPlane.charts`), and a chart that is needed is not in it, \
         or is there in another version than the file asks for.",
        "Put `base`, `istiod` and `gateway` there, as folders or as `NAME-VERSION.tgz` (`helm pull`), or name the \
         `manifests/charts` of an unpacked Istio release.",
    ),
    (
        "engine-changed",
        "The mesh in the cluster was built with the small engine, and the file now asks for real Istio (or the other way \
         round). Both would have the same names.",
        "`stolos teardown`, then apply the file with the other engine; or go back to the engine there is.",
    ),
    (
        "engine-mixed",
        "Some clusters of the mesh are lab clusters and some are not. Traffic cannot go between them: a lab's networks \
         exist inside one machine.",
        "Take the ones or the others out of the mesh file.",
    ),
    (
        "istio-version",
        "The mesh file asks for an Istio that is older than 1.20. Older ones are read, but not installed.",
        "Name a later version as `spec.controlPlane.version`.",
    ),
    (
        "no-cluster",
        "None of the mesh's clusters answered, so nothing is known and nothing may be changed.",
        "Look at the addresses that the plan prints: is the kubeconfig right, and are the clusters running?",
    ),
    (
        "no-member",
        "A cluster is to be reached through the hub, and the hub does not have it, or has another one under its name. The mesh \
         file asks for that with `api: {via: tunnel}`.",
        "`stolos hub token create NAME` at the hub prints the line that makes it a member, typed in that cluster.",
    ),
    (
        "no-root",
        "Clusters of this mesh are built already, but the state folder has no root to issue certificates from. A new root \
         would make two halves of a mesh that do not trust each other.",
        "Name the folder the mesh was built with (`--state DIR` or `STOLOS_STATE`), or give the root as \
         `spec.trust.root.files`.",
    ),
    (
        "other-mesh",
        "A cluster carries objects of another mesh of Stolos'. One cluster is part of one mesh.",
        "Tear that mesh down first, or use another cluster.",
    ),
    (
        "other-root",
        "A cluster's signing certificate (Secret `cacerts`) comes from another root than the state folder's. Workloads of \
         the two would refuse each other.",
        "Name the folder the mesh was built with (`--state DIR` or `STOLOS_STATE`), or give that root as \
         `spec.trust.root.files`.",
    ),
    (
        "revision",
        "The mesh file names a revision of the control plane, which only Istio has; the small engine has one control plane \
         in each cluster.",
        "Leave `controlPlane.revision` out, or use `engine: istio`.",
    ),
    (
        "root-key",
        "A new certificate is needed, and the root's key cannot be used: it is not there, or its passphrase is not given.",
        "Give the passphrase in `STOLOS_PASSPHRASE`, or name the folder that has the key with `--state DIR`.",
    ),
    (
        "root-refused",
        "The root certificate that the mesh file names cannot be used: it is expired, not a CA, signed with SHA-1, or its \
         key belongs to another certificate.",
        "The message says which; give another certificate and key under `spec.trust.root.files`.",
    ),
    (
        "root-rotation",
        "The mesh's root is being replaced from another state folder, and a cluster needs a signing certificate. One of this \
         folder's root would undo what was done there.",
        "Run from the folder that knows of it (`stolos cert rotate root --status --state DIR`).",
    ),
    (
        "same-cluster",
        "Two entries of the mesh file lead to one cluster: their `kube-system` namespaces have the same UID.",
        "Give each cluster of the mesh one entry.",
    ),
    (
        "unreachable",
        "A cluster did not answer in time. It is left as it is, and so is what the others know of it.",
        "`stolos status` says what happened; run the command again once it answers.",
    ),
];

pub(crate) fn run(args: &ExplainArgs, screen: &Screen) -> Result<Exit, Failure> {
    let Some(id) = &args.id else {
        let mut table = crate::view::table(&["id", "meaning"]);
        for (id, meaning, _) in FINDINGS {
            let first = meaning.split_once(". ").or(meaning.split_once(": ")).map_or(*meaning, |(first, _)| first);
            table.add_row(vec![*id, first.trim_end_matches('.')]);
        }
        for cause in CAUSES {
            table.add_row(vec![cause.id, cause.title]);
        }
        screen.data(&crate::view::lines(&table));
        return Ok(Exit::Good);
    };
    if let Some(cause) = diagnose::cause(id) {
        screen.data(&of_cause(cause));
        return Ok(Exit::Good);
    }
    let Some((id, meaning, remedy)) = FINDINGS.iter().find(|(known, ..)| known == id) else {
        let near = FINDINGS.iter().find(|(known, ..)| known.contains(id.as_str()) || id.contains(known));
        let failure = Failure::new(format!("there is no finding `{id}`"));
        return Err(match near {
            Some((near, ..)) => failure.hint(format!("`stolos explain {near}`")),
            None => failure.hint("`stolos explain` lists them all"),
        });
    };
    screen.data(&format!("{id}\n\n{meaning}\n\nWhat to do: {remedy}"));
    Ok(Exit::Good)
}

/// A cause of `check`.
fn of_cause(cause: &Cause) -> String {
    let severity = match cause.severity {
        Severity::Error => "error: traffic is broken",
        Severity::Warning => "warning: traffic will break, or some of it does",
        Severity::Info => "note: it looks like a fault and is none",
    };
    format!(
        "{}  {}\n\n{}\n\nHow it shows: {}\n\nWhy it breaks the mesh: {}\n\nWhat to do: {}\n\nGroup: {} ({severity})\nLook for it alone: stolos check --only {}",
        cause.id,
        cause.title,
        sentence(cause.healthy),
        cause.shows,
        cause.why,
        cause.mend,
        cause.group.title(),
        cause.id
    )
}

/// What holds where the cause is absent, as a sentence.
fn sentence(healthy: &str) -> String {
    format!("In a healthy mesh {healthy}.")
}
