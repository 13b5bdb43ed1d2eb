//! `stolos cluster add` and `remove`: a line of the mesh file comes or goes, and then what `apply` does.

use std::path::Path;

use clap::Args;
use similar::TextDiff;
use stolos_apply::Goal;
use stolos_serve::Stop;
use stolos_spec::{EditError, Edited, NewCluster, SourceText, with_cluster, without_cluster};

use crate::command::apply::{CarryOutArgs, carry_out};
use crate::command::plan::SceneArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::file::{self, Eyes};
use crate::input::{OutputArgs, SampleArgs};
use crate::screen::{Screen, Tone};

/// What `add` and `remove` share.
#[derive(Args, Debug)]
struct EditArgs {
    #[command(flatten)]
    scene: SceneArgs,

    /// Only change the file
    #[arg(long)]
    no_apply: bool,

    #[command(flatten)]
    carry_out: CarryOutArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// `stolos cluster add`
#[derive(Args, Debug)]
pub(crate) struct AddArgs {
    /// The cluster's name in the mesh
    #[arg(value_name = "NAME")]
    name: String,

    /// Its kubeconfig context [default: its name]
    #[arg(long, value_name = "CONTEXT")]
    context: Option<String>,

    /// Its network [default: the one of clusters that name none]
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,

    /// The region of its nodes
    #[arg(long, value_name = "REGION")]
    region: Option<String>,

    /// The zone of its nodes
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,

    /// The cluster whose control plane it uses, instead of one of its own
    #[arg(long, value_name = "CLUSTER")]
    control_plane: Option<String>,

    #[command(flatten)]
    edit: EditArgs,
}

/// `stolos cluster remove`
#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// The cluster, by its name in the mesh or its context; it may be dead
    #[arg(value_name = "CLUSTER")]
    name: String,

    #[command(flatten)]
    edit: EditArgs,
}

pub(crate) async fn add(args: AddArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let new = NewCluster {
        context: args.context.unwrap_or_else(|| args.name.clone()),
        name: Some(args.name),
        network: args.network,
        region: args.region,
        zone: args.zone,
        primary: args.control_plane,
    };
    args.edit.carry_out(|file, base| with_cluster(file, base, &new), screen, stop).await
}

pub(crate) async fn remove(args: RemoveArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    args.edit.carry_out(|file, base| without_cluster(file, base, &args.name), screen, stop).await
}

impl EditArgs {
    async fn carry_out(
        &self,
        edit: impl FnOnce(&SourceText, Option<&SourceText>) -> Result<Edited, EditError>,
        screen: &Screen,
        stop: &Stop,
    ) -> Result<Exit, Failure> {
        let mesh = &self.scene.mesh;
        let (files, base) = mesh.sources(screen)?;
        let [file] = files.as_slice() else {
            return Err(
                Failure::new("the mesh stands in several files").hint("add or remove the cluster there by hand")
            );
        };
        let path = mesh.path()?;
        if path == Path::new("-") {
            return Err(Failure::new("a mesh from standard input cannot be changed").hint("name a file with `-f FILE`"));
        }
        let edited = edit(file, base.as_ref()).map_err(|error| match error {
            EditError::Problems(problems) => Failure::from(problems),
            other => Failure::caused(&other),
        })?;
        // With what the command line and the environment say besides the file.
        let text = edited.text;
        let reading = mesh.understood(&[SourceText::new(file.path.clone(), text.clone())], base.as_ref())?;
        screen.line(difference(&path.display().to_string(), &file.text, &text, screen).trim_end());
        let write = || {
            // Somebody may have written it while we asked.
            match std::fs::read_to_string(&path) {
                Ok(now) if now == file.text => written(&path, &text),
                _ => Err(Failure::new(format!("{} was changed meanwhile, and is left as it is", path.display()))
                    .hint("run the command again")),
            }
        };
        if self.no_apply {
            if self.carry_out.dry_run {
                return Ok(Exit::Findings);
            }
            write()?;
            screen.line(format!("{} is written; `stolos apply` makes the clusters so", path.display()));
            return Ok(Exit::Good);
        }
        let scene = self.scene.of(reading.mesh, &SampleArgs { samples: Vec::new() }).await?;
        carry_out(Goal::Apply, &scene, &self.carry_out, self.output, write, screen, stop).await
    }
}

/// Replaces the file: the one behind a link, with the rights that it has.
fn written(path: &Path, text: &str) -> Result<(), Failure> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let rights = std::fs::metadata(&path).map(|m| m.permissions());
    file::replace(&path, text, Eyes::Owner)?;
    let kept = rights.and_then(|rights| std::fs::set_permissions(&path, rights));
    kept.map_err(|e| Failure::caused(&e).while_doing(format!("{} is written, but for its owner alone", path.display())))
}

/// What changes in a file, as `diff -u` shows it.
fn difference(name: &str, before: &str, after: &str, screen: &Screen) -> String {
    let diff = TextDiff::from_lines(before, after);
    let text = diff.unified_diff().context_radius(2).header(name, name).to_string();
    let tone = |line: &str| match line.chars().next() {
        Some('+') => screen.progress_tone(Tone::Good, line),
        Some('-') => screen.progress_tone(Tone::Bad, line),
        _ => line.to_owned(),
    };
    text.lines().map(|line| tone(line) + "\n").collect()
}
