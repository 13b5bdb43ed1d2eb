use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use stolos_apply::{Clusters, Goal, State};
use stolos_check::{Format, Options};
use stolos_cluster::{Cluster, Kubeconfig, connect};
use stolos_lab::{Lab, LabConfig};
use stolos_plan::Show;
use stolos_serve::Stop;
use stolos_spec::{Mesh, SourceText};

use crate::command::plan::{Scene, carried_out};
use crate::command::verify;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::folder::Folder;
use crate::input::OutputArgs;
use crate::screen::{Screen, Tone, elapsed};
use crate::view;

/// `stolos demo`
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {
    /// End after the proof, with its verdict as exit code
    #[arg(long)]
    once: bool,

    /// Leave the demo's folder where it is: mesh file, root, journal, kubeconfig
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    output: OutputArgs,
}

const MESH: &str = "\
apiVersion: stolos.dev/v1alpha1
kind: Mesh
metadata:
  name: demo
spec:
  trust:
    organization: demo.stolos.dev
  clusters:
    - {name: cluster-east-1, network: network-east, region: us-east}
    - {name: cluster-east-2, network: network-east, region: us-east}
    - {name: cluster-west-1, network: network-west, region: us-west}
  samples: [helloworld, sleep]
";

/// How long one wait of the demo may take: everything is in this process.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(args: DemoArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let began = Instant::now();
    screen.heading("Stolos demo: one mesh over three clusters, in this process");
    crate::lab::supported()?;
    let folder = Folder::temporary("stolos-demo", args.keep)?;
    let file = folder.path().join("mesh.yaml");
    std::fs::write(&file, MESH).map_err(|e| Failure::caused(&e).while_doing("could not write the mesh file"))?;
    let mesh = stolos_spec::read(&SourceText::new(&file, MESH), None)?.mesh;

    let config = LabConfig::from_mesh(&mesh, folder.path());
    let starting = Instant::now();
    let lab = tokio::select! {
        lab = Lab::start(config) => lab?,
        () = stop.asked() => return Err(Failure::interrupted()),
    };
    for cluster in &mesh.clusters {
        screen.line(format!("  {} {} on {}", screen.progress_tone(Tone::Good, "✓"), cluster.name, cluster.network));
    }
    screen.line(format!("  3 clusters are up after {}", elapsed(starting.elapsed())));

    let outcome = build_and_prove(&args, &mesh, &folder, began, screen, stop).await;
    if outcome.is_ok() && !args.once {
        screen.line("The demo stays up until Ctrl-C.");
        tokio::select! {
            () = stop.asked() => {}
            () = lab.asked_down() => {}
        }
    }
    lab.stop().await;
    if args.keep {
        screen.line(format!("kept {}", folder.path().display()));
    }
    outcome
}

async fn build_and_prove(
    args: &DemoArgs,
    mesh: &Mesh,
    folder: &Folder,
    began: Instant,
    screen: &Screen,
    stop: &Stop,
) -> Result<Exit, Failure> {
    let output = args.output.output;
    let clusters = clusters(mesh, &folder.path().join("kubeconfig")).await?;
    let scene = Scene {
        mesh: mesh.clone(),
        clusters: Clusters::of(clusters.iter().cloned()),
        state: State::at(folder.path(), None),
    };
    let plan = scene.plan(Goal::Apply, screen, stop).await?;
    if !output.is_document() {
        screen.data(&Show { color: screen.colors_data(), objects: false }.text(&plan));
    }
    screen.heading("Building the mesh");
    let applied = scene.carry_out(Goal::Apply, &plan, PATIENCE, screen, stop).await?;
    match carried_out(&applied) {
        Exit::Good => {}
        exit => {
            let mut failure = Failure::new("the mesh could not be built").exit_with(exit);
            for failed in &applied.failed {
                failure = failure.because(format!("{}: {}", failed.step, failed.why));
            }
            return Err(failure);
        }
    }
    screen.line(format!("  {} steps, {} writes in {}", applied.done.len(), applied.writes, elapsed(applied.took)));

    if let [near, .., far] = &clusters[..] {
        tokio::select! {
            reached = stolos_check::reaches(near, far, PATIENCE) => reached?,
            () = stop.asked() => return Err(Failure::interrupted()),
        };
        let (near, far, after) = (&near.name, &far.name, elapsed(began.elapsed()));
        screen.line(format!("  {far} answers {near} for the first time, {after} after the start"));
    }

    let report = verify::prove(mesh, &clusters, &Options::default(), screen, stop).await?;
    let proven = began.elapsed();
    if output.is_document() {
        screen.document(output, &report)?;
    } else {
        let status = stolos_check::status(mesh, &clusters).await;
        screen.data(&format!("\n{}", view::verify(screen, &report, output)));
        screen.data(&format!("\nWho reaches whom\n\n{}", view::matrix(screen, &report)));
        screen.data(&format!("\n{}", stolos_check::graph(&status, Format::Text)));
    }
    screen.line(format!("From start to proof: {}", elapsed(proven)));
    if !args.once && !output.is_document() {
        screen.data(&look_around(mesh, folder.path(), screen));
    }
    Ok(verify::exit(&report))
}

async fn clusters(mesh: &Mesh, kubeconfig: &Path) -> Result<Vec<Cluster>, Failure> {
    let kubeconfig = Kubeconfig::find(Some(kubeconfig), None)?;
    let mut clusters = Vec::new();
    for cluster in &mesh.clusters {
        clusters.push(connect(&kubeconfig, &cluster.context, cluster.name.as_str()).await?);
    }
    Ok(clusters)
}

/// The exact commands to look around with.
fn look_around(mesh: &Mesh, folder: &Path, screen: &Screen) -> String {
    let stolos =
        std::env::current_exe().ok().filter(|_| !on_path()).map_or("stolos".to_owned(), |p| p.display().to_string());
    let first = mesh.clusters.first().map_or("", |c| c.context.as_str());
    let folder = folder.display();
    let title = screen.data_tone(Tone::Strong, "Look around, in another terminal");
    format!(
        "\n{title}\n\n  \
         export KUBECONFIG={folder}/kubeconfig STOLOS_STATE={folder} STOLOS_FILE={folder}/mesh.yaml\n  \
         kubectl --context {first} get pods --all-namespaces\n  \
         kubectl --context {first} -n sample exec deploy/sleep -c sleep -- sh -c \
         'for i in $(seq 1 10); do curl -sS helloworld.sample:5000/hello; done'\n  \
         {stolos} verify\n  \
         {stolos} status\n  \
         {stolos} plan\n  \
         {stolos} lab fault partition network-east network-west\n"
    )
}

/// Whether people can simply type `stolos`.
fn on_path() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("stolos")).any(|program: PathBuf| program.is_file())
}

#[cfg(test)]
mod tests {
    use stolos_spec::Sample;

    use super::*;

    #[test]
    fn the_demos_mesh_is_the_one_of_the_readme() {
        let mesh = stolos_spec::read(&SourceText::new("mesh.yaml", MESH), None).unwrap();
        assert!(mesh.warnings.is_empty());
        assert_eq!(mesh.mesh.networks().len(), 2);
        assert!(mesh.mesh.samples.contains(&Sample::Helloworld));
    }
}
