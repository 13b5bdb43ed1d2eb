use std::time::Duration;

use clap::Args;
use stolos_check::{News, Options, Verdict, VerifyReport, Workload};
use stolos_cluster::Cluster;
use stolos_serve::Stop;
use stolos_spec::Mesh;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::BuiltArgs;
use crate::screen::{Mark, Output, Screen, count};
use crate::view;

/// `stolos verify`
#[derive(Args, Debug)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    built: BuiltArgs,

    /// How the report is printed
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: ReportFormat,

    /// Leave what verify brings along in the clusters
    #[arg(long)]
    keep: bool,

    /// Requests per cluster, instead of the number that makes luck negligible; more, up to that number, if a cluster did
    /// not answer any of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: Option<u32>,

    /// How long verify's own pods may take to become ready, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,

    /// The image of verify's server (Istio's helloworld-v1) or of its clients (sh and curl)
    #[arg(long, value_name = "server=|client=IMAGE", value_parser = image)]
    image: Vec<(Part, String)>,

    /// A registry that mirrors Docker Hub, for the images that --image does not name
    #[arg(long, value_name = "HOST[/PATH]")]
    registry: Option<String>,

    /// The namespace that verify makes and removes again, instead of one with a random name
    #[arg(long, value_name = "NAME", value_parser = namespace)]
    namespace: Option<String>,

    /// The revision of the control plane that is to be proven, instead of the mesh file's
    #[arg(long, value_name = "REVISION", conflicts_with = "injection_label")]
    revision: Option<String>,

    /// The label by which namespaces get proxies
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    injection_label: Option<(String, String)>,
}

/// Whose image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Server,
    Client,
}

fn image(text: &str) -> Result<(Part, String), String> {
    match text.split_once('=') {
        Some(("server", image)) if !image.is_empty() => Ok((Part::Server, image.to_owned())),
        Some(("client", image)) if !image.is_empty() => Ok((Part::Client, image.to_owned())),
        _ => Err("write server=IMAGE or client=IMAGE".to_owned()),
    }
}

fn namespace(text: &str) -> Result<String, String> {
    fine(stolos_k8s::meta::check_label(text))?;
    Ok(text.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, such as istio.io/rev=canary")?;
    fine(stolos_k8s::meta::check_qualified_name(key))?;
    fine(stolos_k8s::meta::check_label_value(value))?;
    Ok((key.to_owned(), value.to_owned()))
}

fn fine(problems: Vec<String>) -> Result<(), String> {
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

impl VerifyArgs {
    fn workload(&self) -> Workload {
        let mut workload = Workload::default();
        if let Some(registry) = &self.registry {
            workload = workload.mirrored(registry);
        }
        for (part, image) in &self.image {
            match part {
                Part::Server => workload.server.clone_from(image),
                Part::Client => workload.client.clone_from(image),
            }
        }
        workload.namespace.clone_from(&self.namespace);
        let revision = self.revision.as_ref().map(|revision| ("istio.io/rev".to_owned(), revision.clone()));
        workload.injection = self.injection_label.clone().or(revision);
        workload
    }
}

/// How a report of findings is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ReportFormat {
    /// For people
    Table,
    /// For people with wide screens
    Wide,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
    /// Test results, as CI systems read them
    Junit,
}

pub(crate) async fn run(args: VerifyArgs, screen: &Screen, stop: &Stop) -> Result<Exit, Failure> {
    let (mesh, clusters) = args.built.connect(screen).await?;
    let options = Options {
        keep: args.keep,
        ready: Duration::from_secs(args.timeout),
        requests: args.requests.and_then(|n| usize::try_from(n).ok()),
        workload: args.workload(),
        ..Options::default()
    };
    let report = prove(&mesh, &clusters, &options, screen, stop).await?;
    match args.output {
        ReportFormat::Table => screen.data(&view::verify(screen, &report, Output::Table)),
        ReportFormat::Wide => screen.data(&view::verify(screen, &report, Output::Wide)),
        ReportFormat::Json => screen.document(Output::Json, &report)?,
        ReportFormat::Yaml => screen.document(Output::Yaml, &report)?,
        ReportFormat::Junit => screen.data(&view::junit(&report)),
    }
    Ok(exit(&report))
}

pub(crate) fn exit(report: &VerifyReport) -> Exit {
    if report.verdict == Verdict::Fail { Exit::Findings } else { Exit::Good }
}

/// Verifies with progress on the screen.
pub(crate) async fn prove(
    mesh: &Mesh,
    clusters: &[Cluster],
    options: &Options,
    screen: &Screen,
    stop: &Stop,
) -> Result<VerifyReport, Failure> {
    screen.heading(format!("Proving {}", count(clusters.len() * clusters.len(), "ordered pair")));
    let progress = screen.progress(None);
    let ready = |cluster: &str| format!("ready/{cluster}");
    let ask = |cluster: &str| format!("ask/{cluster}");
    let news = |news: News| match news {
        News::Installing { .. } => {
            for cluster in clusters {
                progress.begin(&ready(&cluster.name), &format!("{}: starting a server and clients", cluster.name));
            }
        }
        News::Ready { cluster } => {
            progress.end(&ready(&cluster), Mark::Done, &format!("{cluster}: server and clients are ready"));
            progress.begin(&ask(&cluster), &format!("{cluster}: waiting for an answer from every cluster"));
        }
        News::Settled { cluster } => progress.note(&ask(&cluster), &format!("{cluster}: asking")),
        News::Asked { cluster, requests } => {
            progress.end(&ask(&cluster), Mark::Done, &format!("{cluster}: sent {}", count(requests, "request")));
        }
        News::Cleaning => screen.line("  removing what verify brought along"),
    };
    let report = stolos_check::verify(mesh, clusters, options, stop, &news).await?;
    drop(progress);
    Ok(report)
}
