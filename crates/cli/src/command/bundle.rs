//! `stolos bundle`: one archive of what can be known of a mesh, without its secrets.

use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::json;
use stolos_apply::{Clusters, Goal, State, because, observe};
use stolos_check::bundle::{self, Bundle, Contents, Extra, GatherOptions, Manifest, ManifestTold, News};
use stolos_check::diagnose::CheckOptions;
use stolos_cluster::{Cluster, Kubeconfig, connect};
use stolos_plan::Show;
use stolos_serve::Stop;
use stolos_spec::{Mesh, MeshName, from_contexts};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ClusterArgs, MeshArgs};
use crate::screen::{Screen, Tone, count};
use crate::view_check;

/// How long a plan may take to be made.
const PLAN: Duration = Duration::from_secs(60);

/// `stolos bundle`
#[derive(Args, Debug)]
pub(crate) struct BundleArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    clusters: ClusterArgs,

    /// The archive to write [default: stolos-bundle-MESH-TIME.tar.gz]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write over an archive that is there
    #[arg(long)]
    force: bool,

    /// Only these clusters, by their kubeconfig contexts; without a mesh file they are the mesh
    #[arg(long = "context", value_name = "CONTEXT", value_delimiter = ',')]
    contexts: Vec<String>,

    /// Ask so many proxies of each cluster what they have, gateways first
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=10_000))]
    proxies: u16,

    /// So many lines of every log; 0 for none
    #[arg(long, value_name = "LINES", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    log_lines: u32,

    /// At most so many objects of each cluster
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    max_objects: u32,

    /// At most so many MiB of objects of each cluster
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_size: u32,
}

pub(crate) async fn run(args: BundleArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let mesh = read_mesh(&args, screen)?;
    let (path, folder) = place(&args, &mesh)?;
    let (clusters, absent) = reach(&args, &mesh).await;
    for (name, why) in &absent {
        screen.line(format!("  {} {name}: {why}", screen.progress_tone(Tone::Warn, "-")));
    }
    screen.line(format!("Asking {}", count(clusters.len(), "cluster")));
    let checks = CheckOptions { apply: "stolos apply".to_owned(), ..CheckOptions::default() };
    let options = GatherOptions { proxies: args.proxies.into(), log_lines: args.log_lines as usize };
    let good = screen.progress_tone(Tone::Good, "✓");
    let hear = |news: News<'_>| match news {
        News::Looked => screen.line(format!("  {good} objects, and what `check` tries")),
        News::Asked(cluster, had, 0) => screen.line(format!("  {good} {cluster}: {}", count(had, "page"))),
        News::Asked(cluster, had, missing) => {
            screen.line(format!("  {good} {cluster}: {}, {missing} not to be had", count(had, "page")));
        }
    };
    let mut gathered = bundle::gather(&mesh, &clusters, &checks, options, &hear, stop).await?;
    for (name, why) in &absent {
        gathered.absent(name, why);
    }
    let mut extras = planned(&args, &mesh, &clusters, screen, stop).await?;
    let status = stolos_check::status(&mesh, &clusters).await;
    extras.push(extra("status.json", "what `stolos status` says", serde_json::to_string(&status)));
    extras.push(Extra {
        path: "check.txt".to_owned(),
        what: "what `stolos check` says, for people".to_owned(),
        body: Ok(view_check::check(screen, &gathered.report, true)),
    });
    let versions = json!({"stolos": crate::command::LONG_VERSION.lines().collect::<Vec<_>>(),
        "system": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        "clusters": gathered.report.clusters.iter().map(|c| (c.name.clone(), json!(c.version))).collect::<serde_json::Map<_, _>>()});
    extras.push(extra("versions.json", "versions", Ok(versions.to_string())));
    let contents = Contents {
        mesh: &mesh,
        inputs: args.mesh.given(),
        told: ManifestTold { base: args.mesh.given_base(), ..args.mesh.told.manifest() },
        gathered,
        extras,
        made_by: format!("stolos {}", env!("CARGO_PKG_VERSION")),
        folder,
        most_objects: args.max_objects as usize,
        most_bytes: (args.max_size as usize) << 20,
    };
    let manifest = written(&path, args.force, contents)?;
    said(&manifest, &path, screen);
    let unreachable = manifest.clusters.iter().filter(|c| c.unreachable.is_some()).count();
    Ok(match unreachable {
        0 => Exit::Good,
        all if all == manifest.clusters.len() => Exit::Error,
        _ => Exit::Partial,
    })
}

/// Reads an archive.
pub(crate) fn open(path: &Path) -> Result<Bundle, Failure> {
    let doing = || format!("could not read {}", path.display());
    let file = std::fs::File::open(path).map_err(|e| Failure::caused(&e).while_doing(doing()))?;
    Bundle::open(std::io::BufReader::new(file)).map_err(|e| Failure::caused(&e).while_doing(doing()))
}

fn read_mesh(args: &BundleArgs, screen: &Screen) -> Result<Mesh, Failure> {
    if !args.contexts.is_empty() && args.mesh.path().is_err() {
        let name = MeshName::parse("mesh").map_err(|e| Failure::caused(&e))?;
        let contexts: Vec<_> = args.contexts.iter().map(|context| (context.clone(), None)).collect();
        screen.line("No mesh file is here: the contexts stand for one, all on one network");
        return Ok(from_contexts(&name, &contexts)?.mesh);
    }
    let mesh = args.mesh.read(screen)?;
    for context in &args.contexts {
        if !mesh.clusters.iter().any(|c| c.context == *context || c.name.as_str() == context) {
            let have: Vec<_> = mesh.clusters.iter().map(|c| c.context.as_str()).collect();
            return Err(Failure::new(format!("no cluster of the mesh has the context `{context}`"))
                .hint(format!("it has {}", have.join(", "))));
        }
    }
    Ok(mesh)
}

/// Where the archive goes, and the folder it unpacks to.
fn place(args: &BundleArgs, mesh: &Mesh) -> Result<(PathBuf, String), Failure> {
    let folder = format!("stolos-bundle-{}-{}", mesh.name, stolos_check::compact_time(SystemTime::now()));
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{folder}.tar.gz")));
    if path.exists() && !args.force {
        return Err(Failure::new(format!("{} is there already", path.display()))
            .hint("name another with `-o FILE`, or write over it with `--force`"));
    }
    Ok((path, folder))
}

/// Connects what can be connected; of the rest, why not.
async fn reach(args: &BundleArgs, mesh: &Mesh) -> (Vec<Cluster>, Vec<(String, String)>) {
    let (mut clusters, mut absent) = (Vec::new(), Vec::new());
    for cluster in &mesh.clusters {
        let name = cluster.name.to_string();
        if !args.contexts.is_empty() && !args.contexts.iter().any(|c| *c == cluster.context || *c == name) {
            absent.push((name, "it was not asked for".to_owned()));
            continue;
        }
        let connecting = async {
            let kubeconfig = Kubeconfig::find(args.clusters.kubeconfig.as_deref(), cluster.kubeconfig.as_deref())?;
            connect(&kubeconfig, &cluster.context, &name).await
        };
        match connecting.await {
            Ok(connected) => clusters.push(connected),
            Err(error) => absent.push((name, because(&error))),
        }
    }
    (clusters, absent)
}

/// The plan as document and as text, if one can be made.
async fn planned(
    args: &BundleArgs,
    mesh: &Mesh,
    clusters: &[Cluster],
    screen: &Screen,
    stop: &Stop,
) -> Result<Vec<Extra>, Failure> {
    let planning = async {
        let state = State::at(args.mesh.state(mesh).map_err(|f| f.to_string())?, None);
        let clusters = Clusters::of(clusters.iter().cloned());
        let observed = tokio::time::timeout(PLAN, observe(mesh, &clusters, &state)).await;
        let observed = observed.map_err(|_| format!("no answer in {} s", PLAN.as_secs()))?;
        Goal::Apply.plan(mesh, &observed).map_err(|e| Failure::from(e).to_string())
    };
    let plan = tokio::select! {
        plan = planning => plan,
        () = stop.asked() => return Err(Failure::interrupted()),
    };
    let what = "what `stolos apply` would change";
    let document = plan.as_ref().map_err(Clone::clone).map(|plan| plan.document().to_string());
    let text = plan.map(|plan| Show { color: false, objects: true }.text(&plan));
    if document.is_ok() {
        screen.line(format!("  {} plan", screen.progress_tone(Tone::Good, "✓")));
    }
    Ok(vec![
        Extra { path: "plan.json".to_owned(), what: what.to_owned(), body: document },
        Extra { path: "plan.txt".to_owned(), what: format!("{what}, for people"), body: text },
    ])
}

fn extra(path: &str, what: &str, body: Result<String, serde_json::Error>) -> Extra {
    Extra { path: path.to_owned(), what: what.to_owned(), body: body.map_err(|e| e.to_string()) }
}

/// Writes beside the place and moves it there, for its owner alone.
fn written(path: &Path, force: bool, contents: Contents<'_>) -> Result<Manifest, Failure> {
    let doing = || format!("could not write {}", path.display());
    let fresh = path.with_file_name(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    let attempt = || -> Result<Manifest, Failure> {
        let io = |error: std::io::Error| Failure::caused(&error).while_doing(doing());
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh).map_err(io)?;
        let mut file = BufWriter::new(file);
        let manifest = bundle::write(contents, &mut file).map_err(|e| Failure::caused(&e).while_doing(doing()))?;
        file.flush().map_err(io)?;
        if force {
            std::fs::rename(&fresh, path).map_err(io)?;
        } else {
            // A link is made only where nothing is: somebody may have been faster.
            std::fs::hard_link(&fresh, path).map_err(io)?;
            std::fs::remove_file(&fresh).map_err(io)?;
        }
        Ok(manifest)
    };
    attempt().inspect_err(|_| drop(std::fs::remove_file(&fresh)))
}

fn said(manifest: &Manifest, path: &Path, screen: &Screen) {
    let secrets: usize = manifest.redacted.values().sum();
    let size = std::fs::metadata(path).map(|m| m.len()).unwrap_or_default();
    let mut text = format!(
        "{} {} ({} KiB): {} of {}, {} taken out",
        screen.data_tone(Tone::Good, "✓"),
        path.display(),
        size.div_ceil(1024),
        count(manifest.files.len(), "file"),
        count(manifest.clusters.len(), "cluster"),
        count(secrets, "secret"),
    );
    if !manifest.missing.is_empty() {
        text += &format!("; {} could not be had (manifest.json says what, and why)", manifest.missing.len());
    }
    screen.data(&text);
    screen.line("Names, addresses and labels are in it as they are: look through it before you give it away.");
}
