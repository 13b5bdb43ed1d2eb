use clap::Args;
use stolos_check::diagnose::{self, CheckOptions, CheckReport, CheckVerdict};
use stolos_serve::Stop;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::BuiltArgs;
use crate::screen::{Output, Screen};
use crate::view_check;

/// `stolos check`
#[derive(Args, Debug)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    built: BuiltArgs,

    /// Look into an archive of `stolos bundle` instead of asking clusters; what is not in it is not measured
    #[arg(long, value_name = "BUNDLE", conflicts_with_all = ["before", "kubeconfig"])]
    from: Option<std::path::PathBuf>,

    /// How the report is printed
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: CheckFormat,

    /// Before anything is installed: look only for what stands in the way then
    #[arg(long)]
    before: bool,

    /// Look for these causes only, such as `D-05,D-08`
    #[arg(long, value_name = "ID", value_delimiter = ',', value_parser = known)]
    only: Vec<String>,

    /// Do not look for these causes
    #[arg(long, value_name = "ID", value_delimiter = ',', value_parser = known)]
    skip: Vec<String>,
}

/// How a report of causes is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum CheckFormat {
    /// For people
    Table,
    /// For people who also want to see what this mesh cannot have
    Wide,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
    /// Test results, as CI systems read them
    Junit,
    /// SARIF 2.1.0, as code scanners read it
    Sarif,
}

fn known(id: &str) -> Result<String, String> {
    let found = diagnose::cause(id).map(|c| c.id.to_owned());
    found.ok_or_else(|| format!("there is no cause `{id}`; `stolos explain` lists them all"))
}

pub(crate) async fn run(args: CheckArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let apply = args.built.other("apply");
    let options = CheckOptions { before: args.before, only: args.only, skip: args.skip, apply };
    let report = match &args.from {
        Some(archive) => judged(archive, &options, screen)?,
        None => {
            let (mesh, clusters) = args.built.ask(screen).await?;
            diagnose::check(&mesh, &clusters, &options, stop).await?
        }
    };
    match args.output {
        CheckFormat::Table => screen.data(&view_check::check(screen, &report, false)),
        CheckFormat::Wide => screen.data(&view_check::check(screen, &report, true)),
        CheckFormat::Json => screen.document(Output::Json, &report)?,
        CheckFormat::Yaml => screen.document(Output::Yaml, &report)?,
        CheckFormat::Junit => screen.data(&diagnose::junit(&report)),
        CheckFormat::Sarif => {
            let file = if args.from.is_some() { "mesh.yaml".into() } else { args.built.path()? };
            screen.document(Output::Json, &diagnose::sarif(&report, &file.display().to_string()))?;
        }
    }
    Ok(exit(&report))
}

/// What an archive says, as of when it was made.
fn judged(archive: &std::path::Path, options: &CheckOptions, screen: &Screen) -> Result<CheckReport, Failure> {
    let bundle = crate::command::bundle::open(archive)?;
    screen.line(format!("Looking into {}, made {}", archive.display(), bundle.manifest.made_at));
    Ok(diagnose::judge(&bundle.mesh, &bundle.snapshot(), options))
}

/// Findings come first; a cluster that could not be asked is never good news.
fn exit(report: &CheckReport) -> Exit {
    let unreachable = report.clusters.iter().filter(|c| c.unreachable.is_some()).count();
    match (report.verdict, unreachable) {
        (CheckVerdict::Fail, _) => Exit::Findings,
        (_, 0) => Exit::Good,
        (_, all) if all == report.clusters.len() => Exit::Error,
        _ => Exit::Partial,
    }
}
