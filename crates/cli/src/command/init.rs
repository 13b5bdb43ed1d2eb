mod adopt;
mod questions;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use stolos_cluster::Kubeconfig;
use stolos_serve::Stop;
use stolos_spec::{Mesh, MeshName, base_yaml, from_contexts, mesh_yaml, suggest_name, topology_yaml};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ClusterArgs, StateArgs};
use crate::screen::{Screen, count};

/// `stolos init`
#[derive(Args, Debug)]
pub(crate) struct InitArgs {
    /// The kubeconfig contexts of the mesh's clusters, each with its network; without any, all contexts there are
    #[arg(value_name = "CONTEXT[=NETWORK]")]
    contexts: Vec<String>,

    /// Prepare a folder as another system did: `setup-mesh` writes topology.yaml, base.yaml and the root [DIR: $WORKDIR]
    #[arg(long, num_args = 1..=2, value_names = ["SYSTEM", "DIR"])]
    from: Option<Vec<String>>,

    /// Read from the clusters what they are already, whoever installed it
    #[arg(long, conflicts_with = "from")]
    from_clusters: bool,

    /// The mesh's name
    #[arg(long, value_name = "ID", env = "MESH_ID")]
    mesh_id: Option<String>,

    /// The organization in the certificates
    #[arg(long, value_name = "ORG", env = "ORG_NAME")]
    org: Option<String>,

    /// The file to write; `-` is standard output
    #[arg(short, long, value_name = "FILE", default_value = "mesh.yaml")]
    output: PathBuf,

    /// Replace the file if it is there
    #[arg(long)]
    force: bool,

    /// Only say what would be written
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    clusters: ClusterArgs,
    #[command(flatten)]
    state: StateArgs,
}

pub(crate) async fn run(args: InitArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    if args.from_clusters {
        return adopt::run(args, screen, stop).await;
    }
    match args.from.as_deref() {
        None => native(args, screen),
        Some([system, dir @ ..]) if system == "setup-mesh" => {
            let dir = match dir.first().map(PathBuf::from).or_else(|| std::env::var_os("WORKDIR").map(PathBuf::from)) {
                Some(dir) if !dir.as_os_str().is_empty() => dir,
                _ => {
                    return Err(Failure::new("no folder to prepare is named")
                        .hint("`stolos init --from setup-mesh DIR`, or set `WORKDIR`"));
                }
            };
            setup_mesh(&args, &dir, screen)
        }
        Some(other) => Err(Failure::new(format!("`{}` is not a system whose files Stolos prepares", other.join(" ")))
            .hint("write `--from setup-mesh DIR`")),
    }
}

fn name(args: &InitArgs) -> Result<Option<MeshName>, Failure> {
    let Some(text) = args.mesh_id.as_deref().filter(|t| !t.is_empty()) else { return Ok(None) };
    MeshName::parse(text).map(Some).map_err(|error| {
        let failure = Failure::caused(&error);
        match suggest_name(text) {
            Some(like) => failure.hint(format!("write `--mesh-id {like}`")),
            None => failure,
        }
    })
}

fn contexts(args: &InitArgs) -> Vec<(String, Option<String>)> {
    let understood = |text: &String| match text.rsplit_once('=') {
        Some((context, network)) => (context.to_owned(), Some(network.to_owned())),
        None => (text.clone(), None),
    };
    args.contexts.iter().map(understood).collect()
}

/// A `Mesh` from contexts.
fn native(args: InitArgs, screen: &Screen) -> Result<Exit, Failure> {
    let mut given = name(&args)?;
    let kubeconfig = Kubeconfig::find(args.clusters.kubeconfig.as_deref(), None);
    let mut contexts = contexts(&args);
    if contexts.is_empty()
        && let Some(answers) = questions::ask(kubeconfig.as_ref().map(Kubeconfig::contexts).unwrap_or_default(), screen)
    {
        contexts = answers.contexts;
        given = given.or(MeshName::parse(&answers.name).ok());
    }
    let name = match given {
        Some(name) => name,
        None => MeshName::parse("mesh").map_err(|e| Failure::caused(&e))?,
    };
    if contexts.is_empty() {
        contexts = kubeconfig?.contexts().into_iter().map(|c| (c.to_owned(), None)).collect();
    } else if let Ok(kubeconfig) = kubeconfig {
        let have = kubeconfig.contexts();
        for (context, _) in contexts.iter().filter(|(c, _)| !have.contains(&c.as_str())) {
            screen.say(&format!(
                "warning: the context `{context}` is not in your kubeconfig (there is {})",
                have.join(", ")
            ));
        }
    }
    let reading = from_contexts(&name, &contexts)?;
    reading.warnings.iter().for_each(|warning| screen.warning(warning));
    let mut mesh = reading.mesh;
    if let Some(organization) = args.org.clone().filter(|o| !o.is_empty()) {
        mesh.trust.organization = organization;
    }
    let unsaid = mesh.clusters.len() > 1 && contexts.iter().all(|(_, network)| network.is_none());
    save(&args, &mesh, unsaid, screen)
}

/// Writes the mesh file, or says what it would be. `unsaid` is whether nobody said anything of networks.
fn save(args: &InitArgs, mesh: &Mesh, unsaid: bool, screen: &Screen) -> Result<Exit, Failure> {
    let text = mesh_yaml(mesh);
    if args.output == Path::new("-") {
        screen.data(&text);
        return Ok(Exit::Good);
    }
    let path = args.output.display();
    let there = args.output.exists();
    if there && !args.force {
        return Err(
            Failure::new(format!("{path} is there already")).hint("`--force` replaces it; `-o FILE` writes another")
        );
    }
    if args.dry_run {
        screen.line(format!("{path} would be written:"));
        screen.data(&text);
        return Ok(Exit::Findings);
    }
    write(&args.output, &text, there)?;
    let (clusters, networks) = (count(mesh.clusters.len(), "cluster"), count(mesh.networks().len(), "network"));
    screen.line(format!("wrote {path}: {clusters} on {networks}"));
    if unsaid {
        screen.line("  all on one network: give those that cannot dial the others' pods a network of their own");
    }
    screen.line(format!("next: stolos plan -f {path}"));
    Ok(Exit::Good)
}

/// What `setup-mesh.sh prep-mesh` did: topology.yaml, base.yaml and the root; what is there is kept.
fn setup_mesh(args: &InitArgs, dir: &Path, screen: &Screen) -> Result<Exit, Failure> {
    let topology = dir.join("topology.yaml");
    // A second run needs no ID: the file has it.
    let known = std::fs::read_to_string(&topology).ok().and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("mesh_id:"))?;
        MeshName::parse(line.trim().trim_matches('"')).ok()
    });
    let name = match (name(args)?, known) {
        (Some(asked), Some(known)) if asked != known => {
            return Err(Failure::new(format!("{} is for the mesh `{known}`, not `{asked}`", topology.display()))
                .hint("prepare another folder, or leave `--mesh-id` (and `MESH_ID`) away"));
        }
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) => {
            return Err(Failure::new("the mesh has no name").hint("`--mesh-id ID`, or set `MESH_ID`"));
        }
    };
    let organization = args.org.clone().filter(|o| !o.is_empty()).unwrap_or_else(|| name.to_string());
    let state = args.state.folder(name.as_str())?;
    let files =
        [(topology.clone(), topology_yaml(&name, &contexts(args))), (dir.join("base.yaml"), base_yaml().to_owned())];
    let mut changes = false;
    for (path, text) in files {
        let there = path.exists();
        let verb = match (there, args.dry_run) {
            (true, _) => "kept ",
            (false, true) => "would write",
            (false, false) => "wrote",
        };
        changes |= !there;
        if !there && !args.dry_run {
            std::fs::create_dir_all(dir)
                .map_err(|e| Failure::caused(&e).while_doing(format!("could not make the folder {}", dir.display())))?;
            write(&path, &text, false)?;
        }
        screen.line(format!("{verb} {}", path.display()));
    }
    changes |= crate::root::prepare(&state, &organization, args.dry_run, screen)?;
    if args.dry_run {
        return Ok(if changes { Exit::Findings } else { Exit::Good });
    }
    if args.contexts.is_empty() {
        screen.line(format!("next: name your clusters' contexts in {}, then stolos plan -f {0}", topology.display()));
    } else {
        screen.line(format!("next: stolos plan -f {}", topology.display()));
    }
    Ok(Exit::Good)
}

/// Writes a whole file or none; one that came into being meanwhile is not replaced unless `replace`.
fn write(path: &Path, text: &str, replace: bool) -> Result<(), Failure> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    if replace {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|e| Failure::caused(&e).while_doing(format!("could not write {}", path.display())))
}
