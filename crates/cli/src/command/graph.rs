use clap::{Args, ValueEnum};
use stolos_check::Format;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::BuiltArgs;
use crate::screen::{Output, Screen};

/// `stolos graph`
#[derive(Args, Debug)]
pub(crate) struct GraphArgs {
    #[command(flatten)]
    built: BuiltArgs,

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
    let (mesh, clusters) = args.built.ask(screen).await?;
    let status = stolos_check::status(&mesh, &clusters).await;
    match args.output {
        Drawing::Text => screen.data(&stolos_check::graph(&status, Format::Text)),
        Drawing::Dot => screen.data(&stolos_check::graph(&status, Format::Dot)),
        Drawing::Svg => screen.data(&stolos_check::graph(&status, Format::Svg)),
        Drawing::Json => screen.document(Output::Json, &status)?,
    }
    Ok(Exit::Good)
}
