use clap::{Args, ValueEnum};
use stolos_check::Format;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ClusterArgs, MeshArgs, clusters};
use crate::screen::{Output, Screen, count};

/// `stolos graph`
#[derive(Args, Debug)]
pub(crate) struct GraphArgs {
    #[command(flatten)]
    mesh: MeshArgs,
    #[command(flatten)]
    clusters: ClusterArgs,

    /// How the mesh is drawn
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: Drawing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Drawing {
    /// For a terminal
    #[value(alias = "table", alias = "wide")]
    Text,
    /// Graphviz
    Dot,
    /// A picture
    Svg,
    /// What the drawing is made from, as one JSON document
    Json,
}

pub(crate) async fn run(args: GraphArgs, screen: &Screen) -> Result<Exit, Failure> {
    let mesh = args.mesh.read(screen)?;
    let clusters = clusters(&mesh, &args.mesh, &args.clusters).await?;
    screen.line(format!("Asking {}", count(clusters.len(), "cluster")));
    let status = stolos_check::status(&mesh, &clusters).await;
    match args.output {
        Drawing::Text => screen.data(&stolos_check::graph(&status, Format::Text)),
        Drawing::Dot => screen.data(&stolos_check::graph(&status, Format::Dot)),
        Drawing::Svg => screen.data(&stolos_check::graph(&status, Format::Svg)),
        Drawing::Json => screen.document(Output::Json, &status)?,
    }
    Ok(Exit::Good)
}
