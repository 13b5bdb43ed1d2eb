use std::time::Duration;

use clap::{Args, ValueEnum};
use stolos_hub::everywhere::{self, Answer, Question};

use crate::command::hub::WhichArgs;
use crate::exit::Exit;
use crate::failure::{Failure, plainly};
use crate::screen::{Output, Screen, Tone};
use crate::view;

/// `stolos get`
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  stolos get pods --all-clusters
  stolos get deployments,services -A -l app=hello --clusters eu,us -o wide
  stolos get deployment/hello -n shop -o yaml")]
pub(crate) struct GetArgs {
    /// The kind, or several: `pods`, `po`, `deployments.apps`, `pods,services`, `all`; also with a name, `pod/hello`
    #[arg(value_name = "RESOURCE")]
    resource: String,

    /// Only the object of this name
    name: Option<String>,

    /// The namespace to look in
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default", conflicts_with = "all_namespaces")]
    namespace: String,

    /// Look in all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,

    /// Only what has these labels, as `app=hello,tier!=db`
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,

    /// Only what has these fields, as `status.phase=Running`
    #[arg(long, value_name = "FIELDS")]
    field_selector: Option<String>,

    /// Ask all members, which is what happens where none is named
    #[arg(long, conflicts_with = "clusters")]
    all_clusters: bool,

    /// Ask these members alone
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    clusters: Vec<String>,

    /// How data is printed
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Form,

    /// Print no line with the columns' names
    #[arg(long)]
    no_headers: bool,

    /// How long to wait for a member, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,

    #[command(flatten)]
    which: WhichArgs,
}

/// How objects are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people
    Table,
    /// For people with wide screens
    Wide,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
    /// A line for each object: its cluster and its name
    Name,
}

pub(crate) async fn run(args: GetArgs, screen: &Screen) -> Result<Exit, Failure> {
    let hub = args.which.client().await?;
    let members = everywhere::members(&hub, &args.clusters).await?;
    if members.is_empty() {
        return Err(Failure::new("the hub has no members").hint("`stolos hub join NAME --context CTX` makes one"));
    }
    let (kinds, name) = match (args.resource.split_once('/'), args.name) {
        (Some((kind, name)), None) => (kind.to_owned(), Some(name.to_owned())),
        (Some(_), Some(_)) => return Err(Failure::new("the name is said twice").hint("write `pod/NAME` or `pod NAME`")),
        (None, name) => (args.resource, name),
    };
    let question = Question {
        kinds,
        name,
        namespace: (!args.all_namespaces).then(|| args.namespace.clone()),
        labels: args.selector,
        fields: args.field_selector,
        as_table: !matches!(args.output, Form::Json | Form::Yaml),
    };
    let answers =
        everywhere::ask(&args.which.members().await?, &members, &question, Duration::from_secs(args.timeout)).await;
    let empty = match args.output {
        Form::Json => {
            screen.document(Output::Json, &everywhere::list(&answers))?;
            false
        }
        Form::Yaml => {
            screen.document(Output::Yaml, &everywhere::list(&answers))?;
            false
        }
        Form::Name => {
            let names = everywhere::names(&answers);
            screen.data(&names);
            names.is_empty()
        }
        form => {
            let tables = everywhere::merge(&answers, args.all_namespaces, form == Form::Wide);
            for (number, table) in tables.iter().enumerate() {
                // As kubectl: where there are several kinds, each has a table, and names say of which kind they are.
                if number > 0 {
                    screen.data("\n");
                }
                screen.data(&view::rows(&table.columns, &table.rows, args.no_headers));
            }
            tables.is_empty()
        }
    };
    let silent = said(screen, &answers);
    if empty && silent == 0 {
        let place = if args.all_namespaces { String::new() } else { format!(" in namespace {}", args.namespace) };
        screen.line(format!("No resources found{place}"));
    }
    Ok(match silent {
        0 => Exit::Good,
        some if some == answers.len() => Exit::Error,
        _ => Exit::Partial,
    })
}

/// Names the members that gave no answer; how many they are.
fn said(screen: &Screen, answers: &[Answer]) -> usize {
    let silent: Vec<_> =
        answers.iter().filter_map(|answer| Some((&answer.cluster, answer.found.as_ref().err()?))).collect();
    for (cluster, why) in &silent {
        screen.say(&format!("{} {cluster}: {}", screen.progress_tone(Tone::Bad, "✗"), plainly(why)));
    }
    silent.len()
}
