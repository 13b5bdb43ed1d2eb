use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use futures::future::try_join_all;
use stolos_apply::{Clusters, Goal, State};
use stolos_check::Options;
use stolos_cluster::objects::{self, Resource};
use stolos_cluster::{Cluster, Kubeconfig, connect};
use stolos_plan::{SYSTEM_NAMESPACE, quoted};
use stolos_serve::Stop;
use stolos_spec::{FleetMember, Mesh, Sample, from_fleet, mesh_yaml};

use crate::command::apply::{CarryOutArgs, summary};
use crate::command::plan::{Scene, carried_out, planned, show};
use crate::command::verify;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::file::{self, Eyes};
use crate::input::{SampleArgs, StateArgs, source};
use crate::screen::{Output, Screen, count};
use crate::view;

/// `stolos create-mesh`
///
/// In the form of `asmcli create-mesh`: the fleet's id first, then every cluster of the mesh by its kubeconfig.
#[derive(Args, Debug)]
pub(crate) struct CreateMeshArgs {
    /// The fleet's id: the mesh's name
    #[arg(value_name = "FLEET_ID")]
    fleet: String,

    /// A kubeconfig for each cluster of the mesh; its current context counts
    #[arg(value_name = "KUBECONFIG", required = true)]
    clusters: Vec<String>,

    /// The network of a cluster, or of all; without it, the one a cluster is labelled with, else one of its own
    #[arg(long, value_name = "[CONTEXT=]NETWORK")]
    network: Vec<String>,

    /// What `gen-eastwest-gateway.sh` printed: once for all clusters, or once for each
    #[arg(long, value_name = "FILE")]
    gateway: Vec<PathBuf>,

    /// Where to write the mesh file, to go on with [default: mesh.yaml in the state folder]
    #[arg(long, value_name = "FILE", conflicts_with = "output_dir")]
    write: Option<PathBuf>,

    /// Replace that file if it is there and says something else
    #[arg(long)]
    force: bool,

    /// Do not prove the mesh once it is built
    #[arg(long)]
    no_verify: bool,

    #[command(flatten)]
    samples: SampleArgs,

    #[command(flatten)]
    state: StateArgs,

    /// A file whose first line is the passphrase of the root's key [default: $STOLOS_PASSPHRASE]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,

    #[command(flatten)]
    carry_out: CarryOutArgs,

    /// As asmcli has it: the mesh file is written there
    #[arg(short = 'D', long = "output_dir", alias = "output-dir", value_name = "DIR")]
    output_dir: Option<PathBuf>,

    /// As asmcli has it: nothing is downloaded in any case
    #[arg(long, hide = true)]
    offline: bool,

    /// As asmcli has it: no workload identity is looked at
    #[arg(long = "ignore_workload_identity_mismatch", hide = true)]
    ignore_workload_identity_mismatch: bool,
}

/// How long a cluster may take to say which network it is on.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn run(args: CreateMeshArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    if args.ignore_workload_identity_mismatch {
        screen.say(
            "warning: `--ignore_workload_identity_mismatch` is ignored: identities come from the mesh's own root, and \
             no fleet is asked",
        );
    }
    if args.offline {
        screen.line("`--offline`: Stolos downloads no tools; charts of real Istio come from where the mesh file says");
    }
    let mut mesh = understand(&args, screen).await?;
    mesh.samples.extend(args.samples.samples.iter().copied().map(Sample::from));
    let folder = args.state.folder(mesh.name.as_str())?;
    let clusters = connected(&mesh).await?;
    let state = State::at(folder.clone(), stolos_apply::passphrase(args.passphrase_file.as_deref())?);
    let scene = Scene { mesh, clusters: Clusters::of(clusters.iter().cloned()), state };

    let plan = scene.plan(Goal::Apply, screen, stop).await?;
    show(&plan, Output::Table, screen)?;
    if args.carry_out.dry_run {
        return Ok(planned(&plan));
    }
    let file = args.write.clone().or(args.output_dir.as_ref().map(|dir| dir.join("mesh.yaml")));
    let own = file.is_none();
    let file = file.unwrap_or_else(|| folder.join("mesh.yaml"));
    let text = mesh_yaml(&scene.mesh);
    let there = std::fs::read_to_string(&file).ok();
    if there.as_ref().is_some_and(|there| *there != text) && !own && !args.force {
        return Err(Failure::new(format!("{} is there already, and says something else", file.display()))
            .hint("`--force` replaces it; `--write FILE` writes another"));
    }
    if !plan.is_settled() && !args.carry_out.yes {
        consent(screen, scene.mesh.clusters.len())?;
    }
    // Before anything is touched: whoever is interrupted goes on from there.
    if there.as_deref() != Some(text.as_str()) {
        write(&file, &text, own)?;
        screen.line(format!("wrote {}", file.display()));
    }
    let patience = args.carry_out.patience();
    let report = scene.carry_out(Goal::Apply, &plan, patience, screen, stop).await?;
    screen.data(&summary(&plan, &report, screen));
    let built = carried_out(&report);
    if built != Exit::Good || args.no_verify {
        return Ok(built);
    }
    let options = Options { ready: patience, ..Options::default() };
    let proof = verify::prove(&scene.mesh, &clusters, &options, screen, stop).await?;
    screen.data(&view::verify(screen, &proof, Output::Table));
    let exit = verify::exit(&proof);
    let file = quoted(&file.to_string_lossy()).into_owned();
    match exit {
        Exit::Good => {
            screen.line(format!("next: stolos status -f {file}; stolos teardown -f {file} takes it all out again"))
        }
        _ => screen.line(format!("next: stolos check -f {file} names the cause")),
    }
    Ok(exit)
}

/// Looks into the kubeconfigs, asks the clusters for their networks where nobody says them, and makes a mesh of it.
async fn understand(args: &CreateMeshArgs, screen: &Screen) -> Result<Mesh, Failure> {
    let mut entries = Vec::new();
    for cluster in &args.clusters {
        entries.push(entry(cluster)?);
    }
    let mut networks = Vec::new();
    for network in &args.network {
        match network.rsplit_once('=') {
            Some((context, network)) => {
                if entries.iter().all(|(path, _, own)| own != context && path != Path::new(context)) {
                    let have = entries.iter().map(|(_, _, context)| format!("`{context}`")).collect::<Vec<_>>();
                    return Err(Failure::new(format!("`--network {context}={network}` names no cluster of this mesh"))
                        .hint(format!("there is {}", have.join(", "))));
                }
                networks.push((Some(context), network));
            }
            None => networks.push((None, network.as_str())),
        }
    }
    let asked = |path: &Path, context: &str| {
        let own = networks.iter().rev().find(|(of, _)| of.is_some_and(|of| of == context || Path::new(of) == path));
        own.or_else(|| networks.iter().rev().find(|(of, _)| of.is_none())).map(|(_, network)| (*network).to_owned())
    };
    screen.line(format!("Asking {}", count(entries.len(), "cluster")));
    let asked = &asked;
    let members = entries.iter().map(|(path, kubeconfig, context)| async move {
        let cluster = connect(kubeconfig, context, context).await?;
        Ok::<_, Failure>(FleetMember {
            kubeconfig: std::path::absolute(path).unwrap_or_else(|_| path.clone()),
            context: context.clone(),
            network: asked(path, context),
            labelled: label(&cluster).await?,
        })
    });
    let members = try_join_all(members).await?;
    let gateways = args.gateway.iter().map(|path| source(path)).collect::<Result<Vec<_>, _>>()?;
    let reading = from_fleet(&args.fleet, &members, &gateways)?;
    reading.warnings.iter().for_each(|warning| screen.warning(warning));
    Ok(reading.mesh)
}

/// A cluster as asmcli takes it: a kubeconfig where a file of that name is, else a cluster of Google's.
fn entry(text: &str) -> Result<(PathBuf, Kubeconfig, String), Failure> {
    let path = PathBuf::from(text);
    if !path.is_file() {
        let parts: Vec<_> = text.split('/').collect();
        if let [project, location, cluster] = parts.as_slice()
            && parts.iter().all(|part| !part.is_empty() && !part.starts_with('.'))
        {
            return Err(Failure::new(format!("`{text}` is no file; asmcli would have fetched a kubeconfig for it"))
                .because("Stolos calls no cloud's programs")
                .hint(format!(
                    "KUBECONFIG={cluster}.yaml gcloud container clusters get-credentials {} --project {} --location {}\nthen give `{cluster}.yaml`",
                    quoted(cluster), quoted(project), quoted(location)
                )));
        }
        return Err(Failure::new(format!("there is no kubeconfig `{text}`")).hint(
            "`stolos create-mesh FLEET_ID KUBECONFIG…`: the fleet's id comes first, then a file for each cluster",
        ));
    }
    let kubeconfig = Kubeconfig::find(Some(&path), None)?;
    let contexts = kubeconfig.contexts();
    let context = match (kubeconfig.current_context().filter(|c| !c.is_empty()), contexts.as_slice()) {
        (Some(current), _) => current.to_owned(),
        (None, [only]) => (*only).to_owned(),
        (None, _) => {
            return Err(Failure::new(format!("{text} has no current context"))
                .because(format!("it has {}", contexts.join(", ")))
                .hint(format!("kubectl --kubeconfig {} config use-context CONTEXT", quoted(text))));
        }
    };
    Ok((path, kubeconfig, context))
}

/// The network that a cluster says it is on.
async fn label(cluster: &Cluster) -> Result<Option<String>, Failure> {
    let namespaces = Resource::named("v1", "Namespace")?;
    let asking = objects::get(&cluster.client, &namespaces, None, SYSTEM_NAMESPACE);
    let failed =
        |failure: Failure| failure.while_doing(format!("could not ask `{}` which network it is on", cluster.context));
    let found = match tokio::time::timeout(PATIENCE, asking).await {
        Ok(found) => found.map_err(|error| failed(error.into()))?,
        Err(_) => {
            let silent = Failure::new(format!("no answer from {} in {} s", cluster.server, PATIENCE.as_secs()));
            return Err(failed(silent).exit_with(Exit::TimedOut));
        }
    };
    let text = |namespace: serde_json::Value| {
        namespace["metadata"]["labels"]["topology.istio.io/network"].as_str().map(str::to_owned)
    };
    Ok(found.and_then(text))
}

async fn connected(mesh: &Mesh) -> Result<Vec<Cluster>, Failure> {
    let mut clusters = Vec::new();
    for cluster in &mesh.clusters {
        let kubeconfig = Kubeconfig::find(cluster.kubeconfig.as_deref(), None)?;
        clusters.push(connect(&kubeconfig, &cluster.context, cluster.name.as_str()).await?);
    }
    Ok(clusters)
}

fn consent(screen: &Screen, clusters: usize) -> Result<(), Failure> {
    match screen.ask(&format!("Make {} one mesh?", count(clusters, "cluster"))) {
        Some(true) => Ok(()),
        Some(false) => Err(Failure::new("nothing was changed, as you said no")),
        None => Err(Failure::new("nothing was changed: nobody can be asked")
            .hint("`--yes` goes on without asking; `--dry-run` only shows the plan")),
    }
}

/// Writes the mesh file; its folder is made where it is the state's own.
fn write(path: &Path, text: &str, own: bool) -> Result<(), Failure> {
    if let Some(folder) = path.parent().filter(|_| own) {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|e| Failure::caused(&e).while_doing(format!("could not make {}", folder.display())))?;
    }
    file::replace(path, text, Eyes::All)
}
