use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use stolos_plan::{ExportOptions, Format, Secrets};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::file::{self, Eyes};
use crate::input::MeshArgs;
use crate::screen::{Screen, count};

/// The file that says which files of a folder an export wrote, so that the next one takes away what it no longer writes.
const LIST: &str = ".stolos-export";

/// `stolos export`
#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    mesh: MeshArgs,

    /// The folder to write; one that is there must be an earlier export or empty
    #[arg(value_name = "DIR")]
    folder: PathBuf,

    /// For whom the files are
    #[arg(long, value_enum, default_value = "plain")]
    format: ExportFormat,

    /// What stands for secrets: none is ever written
    #[arg(long, value_enum, default_value = "external-secret")]
    secrets: SecretsFormat,

    /// The ClusterSecretStore that has them
    #[arg(long, value_name = "NAME", default_value = "stolos")]
    secret_store: String,

    /// The Kubernetes version of the clusters, which are not asked
    #[arg(long, value_name = "VERSION", default_value = "1.34")]
    kubernetes: String,

    /// The Git repository that the folder will be in (Argo CD)
    #[arg(long, value_name = "URL", required_if_eq("format", "argocd"), default_value = "")]
    repository: String,

    /// Its branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = "HEAD")]
    revision: String,

    /// The folder's path in it (Argo CD, Flux)
    #[arg(long, value_name = "PATH", default_value = ".")]
    path: String,

    /// Only say which files would be written and removed; exits with 2 if there are any
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ExportFormat {
    /// Folders for `kubectl apply -f`, and Helm's commands
    Plain,
    /// A kustomization.yaml for each cluster
    Kustomize,
    /// An ApplicationSet of Argo CD
    Argocd,
    /// Kustomizations and HelmReleases of Flux
    Flux,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SecretsFormat {
    /// An ExternalSecret of external-secrets.io
    ExternalSecret,
    /// A Secret to fill in and encrypt with SOPS
    Sops,
}

pub(crate) fn run(args: &ExportArgs, screen: &Screen) -> Result<Exit, Failure> {
    let mesh = args.mesh.read(screen)?;
    let options = ExportOptions {
        format: match args.format {
            ExportFormat::Plain => Format::Plain,
            ExportFormat::Kustomize => Format::Kustomize,
            ExportFormat::Argocd => Format::ArgoCd,
            ExportFormat::Flux => Format::Flux,
        },
        secrets: match args.secrets {
            SecretsFormat::ExternalSecret => Secrets::External { store: args.secret_store.clone() },
            SecretsFormat::Sops => Secrets::Sops,
        },
        kubernetes: format!("v{}", args.kubernetes.trim_start_matches('v')),
        charts: stolos_apply::charts(&mesh),
        repository: args.repository.clone(),
        revision: args.revision.clone(),
        path: args.path.clone(),
    };
    let export = stolos_plan::export(&mesh, &options, SystemTime::now())?;
    let before = earlier(&args.folder)?;
    let gone: Vec<_> = before.iter().filter(|path| !export.files.contains_key(*path)).collect();
    let changed: Vec<_> = export
        .files
        .iter()
        .filter(|(path, text)| std::fs::read(args.folder.join(path)).ok().as_deref() != Some(text.as_bytes()))
        .collect();
    if args.dry_run {
        let lines = changed.iter().map(|(path, _)| format!("+ {path}\n"));
        screen.data(&lines.chain(gone.iter().map(|path| format!("- {path}\n"))).collect::<String>());
        return Ok(if changed.is_empty() && gone.is_empty() { Exit::Good } else { Exit::Findings });
    }
    // The list first, with all that there may be, so that an export that is cut short is known as one.
    let all: BTreeSet<&String> = before.iter().chain(export.files.keys()).collect();
    write(&args.folder, LIST, &list(all))?;
    for (path, text) in &changed {
        write(&args.folder, path, text)?;
    }
    for path in &gone {
        match std::fs::remove_file(args.folder.join(path)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Failure::caused(&error).while_doing(format!("could not remove {path}")));
            }
            _ => {}
        }
    }
    write(&args.folder, LIST, &list(export.files.keys()))?;
    let written = count(export.files.len(), "file");
    screen.say(&format!(
        "{written} in {}, {} of them new or changed, {} removed",
        args.folder.display(),
        changed.len(),
        gone.len()
    ));
    if !export.notes.is_empty() {
        let readme = args.folder.join("README.md");
        screen.say(&format!("{} to fill in or to know: {}", count(export.notes.len(), "thing"), readme.display()));
    }
    Ok(Exit::Good)
}

fn list<'a>(paths: impl IntoIterator<Item = &'a String>) -> String {
    paths.into_iter().map(|path| format!("{path}\n")).collect()
}

/// What an earlier export wrote into the folder.
fn earlier(folder: &Path) -> Result<BTreeSet<String>, Failure> {
    let failed = |error: &std::io::Error| {
        Failure::caused(error).while_doing(format!("could not look into {}", folder.display()))
    };
    match std::fs::read_to_string(folder.join(LIST)) {
        // Nothing above the folder is ever touched, whatever the list says.
        Ok(text) => Ok(text.lines().filter(|path| is_below(path)).map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match std::fs::read_dir(folder) {
            Ok(mut entries) => match entries.next() {
                None => Ok(BTreeSet::new()),
                Some(_) => Err(Failure::new(format!("{} is not empty, and no earlier export", folder.display()))
                    .hint("name a folder that is empty or not there")),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            Err(error) => Err(failed(&error)),
        },
        Err(error) => Err(failed(&error)),
    }
}

fn is_below(path: &str) -> bool {
    !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

fn write(folder: &Path, path: &str, text: &str) -> Result<(), Failure> {
    let target = folder.join(path);
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)
            .map_err(|error| Failure::caused(&error).while_doing(format!("could not make {}", parent.display())))?;
    }
    file::replace(&target, text, Eyes::All)
}
