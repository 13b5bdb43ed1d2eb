//! `stolos proxy-status`: what every proxy has of its configuration.

use clap::Args;
use stolos_check::ProxyReport;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{BuiltArgs, OutputArgs};
use crate::screen::Screen;
use crate::view;

/// `stolos proxy-status`
#[derive(Args, Debug)]
pub(crate) struct ProxyStatusArgs {
    /// Only this proxy, in detail: `POD.NAMESPACE`, or a pod's name
    #[arg(value_name = "POD.NAMESPACE")]
    proxy: Option<String>,

    #[command(flatten)]
    built: BuiltArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) async fn run(args: ProxyStatusArgs, screen: &Screen) -> Result<Exit, Failure> {
    let (mesh, clusters) = args.built.ask(screen).await?;
    let mut report = stolos_check::proxies(&mesh, &clusters).await;
    if let Some(wanted) = &args.proxy {
        keep(&mut report, wanted)?;
    }
    match args.output.output {
        output if output.is_document() => screen.document(output, &report)?,
        output => screen.data(&view::proxies(screen, &report, output, args.proxy.is_some())),
    }
    Ok(match report.unanswered.len() {
        0 => Exit::Good,
        all if all == clusters.len() => Exit::Error,
        _ => Exit::Partial,
    })
}

/// Leaves only the proxies of this name.
fn keep(report: &mut ProxyReport, wanted: &str) -> Result<(), Failure> {
    let all: Vec<_> = report.proxies.iter().map(|proxy| proxy.name.clone()).collect();
    let is_meant = |name: &str| name == wanted || name.split_once('.').is_some_and(|(pod, _)| pod == wanted);
    report.proxies.retain(|proxy| is_meant(&proxy.name));
    if report.proxies.is_empty() {
        let connected =
            if all.is_empty() { "no proxy is".to_owned() } else { format!("connected: {}", all.join(", ")) };
        return Err(Failure::new(format!("no proxy `{wanted}` is connected to a control plane")).hint(connected));
    }
    Ok(())
}
